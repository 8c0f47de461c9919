// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel executes at boot alone is given away when root starts. So nothing that stays may lead there: neither a
//! branch, nor an address in an instruction, nor one in the data.

use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::ops::Range;
use trellis_cli::programs;

/// The section of `kernel.ld`.
const BOOT: &str = ".init.text";

/// Who stays and may name a place there: the image's first instruction, and who takes the pages out of the map.
const MAY: [&str; 2] = ["_start", "forget_boot"];

/// Where an instruction leads, or what address it makes (Arm ARM C4.1.65, C4.1.66: B, BL, B.cond, CBZ, TBZ, ADR, ADRP).
fn target(word: u32, at: u64) -> Option<u64> {
    let signed = |value: u32, bits: u32| i64::from((value << (32 - bits)) as i32 >> (32 - bits));
    let words = |value: u32, bits: u32| Some(at.wrapping_add_signed(signed(value, bits) * 4));
    let parts = signed((word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3, 21);
    match word {
        _ if word & 0x7c00_0000 == 0x1400_0000 => words(word & 0x3ff_ffff, 26),
        _ if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 => words(word >> 5 & 0x7_ffff, 19),
        _ if word & 0x7e00_0000 == 0x3600_0000 => words(word >> 5 & 0x3fff, 14),
        _ if word & 0x9f00_0000 == 0x1000_0000 => Some(at.wrapping_add_signed(parts)),
        _ if word & 0x9f00_0000 == 0x9000_0000 => Some((at & !0xfff).wrapping_add_signed(parts << 12)),
        _ => None,
    }
}

/// Symbols of code and data, by address.
fn symbols<'file>(file: &'file object::File<'_>) -> Vec<(u64, &'file str)> {
    let named = file.symbols().filter(|symbol| symbol.section_index().is_some() && symbol.kind() != SymbolKind::Section);
    let mut symbols: Vec<(u64, &str)> = named.filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?))).collect();
    symbols.retain(|(_, name)| !name.starts_with('$'));
    symbols.sort();
    symbols
}

/// Routines that stay and name a place that does not, and how many instructions were looked at. What the compiler took out
/// of several routines because it is the same in all, and leads to boot, was taken out of routines of boot alone if none
/// that stays leads there.
fn who_names(file: &object::File<'_>, section: &Range<u64>) -> (Vec<String>, usize) {
    let symbols = symbols(file);
    let mut boot = vec![section.clone()];
    loop {
        let (found, seen) = who_names_any(file, &symbols, &boot);
        let before = boot.len();
        for (index, (begin, name)) in symbols.iter().enumerate() {
            let range = *begin..symbols.get(index + 1).map_or(*begin, |(next, _)| *next);
            if name.starts_with("OUTLINED_FUNCTION") && found.iter().any(|found| found == name) && !boot.contains(&range) {
                boot.push(range);
            }
        }
        if boot.len() == before {
            return (found.into_iter().filter(|name| !name.starts_with("OUTLINED_FUNCTION")).collect(), seen);
        }
    }
}

fn who_names_any(file: &object::File<'_>, symbols: &[(u64, &str)], boot: &[Range<u64>]) -> (Vec<String>, usize) {
    let (mut found, mut seen) = (Vec::new(), 0);
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text && section.name() != Ok(BOOT)) {
        let words = section.data().expect("its bytes").chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
        for (word, at) in words.zip((section.address()..).step_by(4)) {
            seen += 1;
            if target(word, at).is_some_and(|target| boot.iter().any(|range| range.contains(&target) && !range.contains(&at))) {
                let known = symbols.partition_point(|(begin, _)| *begin <= at);
                found.push(symbols[..known].last().map_or("?", |(_, name)| name).to_owned());
            }
        }
    }
    (found, seen)
}

/// Places of data that hold an address of the section: every entry of `.rela.dyn` is an address and its place.
fn data_that_names(file: &object::File<'_>, boot: &Range<u64>) -> Vec<u64> {
    let table = file.section_by_name(".rela.dyn").expect("a position-independent kernel");
    let words: Vec<u64> = table.data().expect("its bytes").chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight"))).collect();
    assert!(words.len() > 3, "there are addresses in the data");
    words.chunks_exact(3).filter(|entry| boot.contains(&entry[2])).map(|entry| entry[0]).collect()
}

#[test]
fn targets_are_read_as_the_processor_does() {
    // bl +8; b −4; b.ne +16; cbz x0, −8; tbnz w1, 3, +4; adr x0, +1; adrp x0, +0x3000; ret
    let at = 0x1_2340;
    let cases = [
        (0x9400_0002, Some(at + 8)), (0x17ff_ffff, Some(at - 4)), (0x5400_0081, Some(at + 16)), (0xb4ff_ffc0, Some(at - 8)),
        (0x3718_0021, Some(at + 4)), (0x3000_0000, Some(at + 1)), (0xf000_0000, Some(0x1_5000)), (0xd65f_03c0, None),
    ];
    for (word, expected) in cases {
        assert_eq!(target(word, at), expected, "{word:#x}");
    }
}

#[test]
fn nothing_that_stays_leads_to_code_that_is_given_away() {
    let built = programs::build(false).expect("the board's programs");
    let bytes = std::fs::read(&built[programs::KERNEL]).expect("the kernel");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let section = file.section_by_name(BOOT).expect("code of boot");
    let boot = section.address()..section.address() + section.size();
    assert!(boot.start % 4096 == 0 && boot.end % 4096 == 0 && section.size() >= 4096, "whole pages: {boot:x?}");
    let (found, seen) = who_names(&file, &boot);
    assert!(seen > 10_000 && found.iter().any(|name| name == "_start"), "the kernel begins there: {found:?}");
    assert!(found.iter().all(|name| MAY.iter().any(|may| name.contains(may))), "{found:?} lead to {boot:x?}");
    assert_eq!(data_that_names(&file, &boot), [0u64; 0], "addresses of {boot:x?} in data");
}
