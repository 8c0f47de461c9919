// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel and the servers have no instruction that touches a floating-point or vector register, but for the five
//! routines that carry a guest's: a compiler that puts vectors into a memset would break the guest whose registers are
//! still loaded.

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use trellis_cli::programs;

/// Routines of `fp.S`.
const CARRIERS: [&str; 5] = ["save_fixed", "load_fixed", "save_scalable", "load_scalable", "probe_length"];
const PROGRAMS: [&str; 5] = ["kernel/aarch64", "servers/root", "servers/console", "servers/p2m", "servers/vcpu"];

/// Whether an instruction is SVE, SME or floating point, moves a vector register to or from memory, or names FPSR or
/// FPCR (Arm ARM C4.1: the classes by bits 28–25).
const fn touches(word: u32) -> bool {
    let class = word >> 25 & 15;
    class == 0b0010
        || class & 0b0111 == 0b0111
        || class & 0b0101 == 0b0100 && word >> 26 & 1 == 1
        || class == 0 && word >> 31 == 1
        || word & 0xffdf_ffc0 == 0xd51b_4400
}

/// The routines of a program that touch such registers, and how many instructions were looked at.
fn who_touches(program: &[u8]) -> (Vec<String>, usize) {
    let file = object::File::parse(program).expect("an ELF file");
    let mut symbols: Vec<(u64, &str)> = file.symbols().filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?))).collect();
    symbols.sort();
    // Mapping symbols say what is code and what is data (AAELF64, 5.5.4).
    let before = |address: u64, wanted: fn(&str) -> bool| {
        let end = symbols.partition_point(|(at, _)| *at <= address);
        symbols[..end].iter().rev().map(|(_, name)| *name).find(|name| wanted(name)).unwrap_or_default()
    };
    let (mut found, mut seen) = (Vec::new(), 0);
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let words = section.data().expect("its bytes").chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four")));
        for (word, address) in words.zip((section.address()..).step_by(4)) {
            seen += 1;
            if touches(word) && !before(address, |name| name.starts_with("$d") || name.starts_with("$x")).starts_with("$d") {
                found.push(before(address, |name| !name.starts_with('$')).to_owned());
            }
        }
    }
    found.sort();
    found.dedup();
    (found, seen)
}

#[test]
fn instructions_that_touch_vectors_are_known() {
    // str q0, [x0]; ldp q2, q3, [x0, 96]; fmov d0, xzr; movi v0.16b, 1; ptrue p0.b; str z0, [x0]; rdvl x0, 1; msr fpcr, x2;
    // mrs x0, fpsr; zero {za}
    let vectors = [0x3d80_0000, 0xad43_0c02, 0x9e67_03e0, 0x4f00_e420, 0x2518_e3e0, 0xe580_4000, 0x04bf_5020, 0xd51b_4402, 0xd53b_4420, 0xc008_00ff];
    assert!(vectors.into_iter().all(touches));
    // ldp x0, x1, [x0]; str x4, [x0, 16]; add x0, x0, 64; b .; mrs x0, tpidr_el0; udf 0; casal x0, x1, [x2]; madd x0, x1, x2, x3
    let others = [0xa940_0400, 0xf900_0804, 0x9101_0000, 0x1400_0000, 0xd53b_d040, 0, 0xc8e0_fc41, 0x9b02_0c20];
    assert!(!others.into_iter().any(touches));
}

#[test]
fn only_the_routines_that_carry_registers_touch_them() {
    let built = programs::build(false).expect("the board's programs");
    for name in PROGRAMS {
        let bytes = std::fs::read(&built[name]).expect("a program");
        let (found, seen) = who_touches(&bytes);
        assert!(seen > 1_000, "{name} has code");
        let expected: &[&str] = if name == programs::KERNEL { &CARRIERS } else { &[] };
        assert!(found.iter().all(|routine| expected.contains(&routine.as_str())), "{name}: {found:?} touch vector registers");
        assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
    }
}
