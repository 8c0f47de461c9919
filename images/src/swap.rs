// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is kept for a monitor that the host puts into another's place: memory, and who must have signed it.

use crate::problem::{Code, Problem};
use crate::table::{Placed, Problems, Table};
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::{MAX_SWAP_PAGES, SwapPlan};

/// Bytes of a program, and of its file, where the manifest says nothing.
const MEMORY: u64 = 512 << 10;
const KEYS: [&str; 3] = ["memory", "signed-by", "counter"];
const EXAMPLE: &str = "swap = { memory = \"512K\" }";

/// `swap` of a server.
#[derive(Clone, Debug)]
pub struct SwapEntry {
    /// `memory`.
    pub memory: u64,
    /// `signed-by`: a file with a public key.
    pub signed_by: Option<Placed<String>>,
    /// `counter`.
    pub counter: u64,
}

impl Default for SwapEntry {
    fn default() -> SwapEntry {
        SwapEntry { memory: MEMORY, signed_by: None, counter: 0 }
    }
}

/// Reads the key `swap` of a server.
pub(crate) fn read(table: &Table<'_, '_>, problems: &mut Problems) -> SwapEntry {
    let Some(swap) = table.table("swap", format!("`swap` of {}", table.name), EXAMPLE, problems) else {
        return SwapEntry::default();
    };
    swap.allow(&KEYS, &[], problems);
    let memory = swap.size("memory", "512K", problems);
    let most = u64::from(MAX_SWAP_PAGES) * PAGE;
    if let Some(memory) = memory.as_ref().filter(|memory| memory.value > most) {
        problems.push(
            Problem::new(Code::OutOfRange, format!("too much is kept for the next program of {}", table.name))
                .at(memory.span.clone(), "of this many bytes")
                .hint(format!("at most \"{}M\"; \"0\" keeps nothing, and then none can take its place", most >> 20)),
        );
    }
    let signed_by = swap.text("signed-by", "signed-by = \"ops.pub\"", problems);
    let counter = swap.number("counter", 0..u64::MAX, problems);
    if let (Some(counter), None) = (&counter, &signed_by) {
        problems.push(
            Problem::new(Code::SwapKey, "a counter means nothing without a signature")
                .at(counter.span.clone(), "whoever sends a program could choose it")
                .hint("add signed-by = \"ops.pub\", a file with the public key of who signs programs"),
        );
    }
    SwapEntry {
        memory: memory.map_or(MEMORY, |memory| memory.value),
        signed_by,
        counter: counter.map_or(0, |counter| counter.value),
    }
}

impl SwapEntry {
    /// As root has it; with the key that the file named there holds.
    pub fn plan(&self, signer: Option<[u8; 32]>) -> Option<SwapPlan> {
        let pages = self.memory.div_ceil(PAGE).min(MAX_SWAP_PAGES.into()) as u16;
        (pages > 0).then_some(SwapPlan { pages, signer, counter: self.counter })
    }
}

/// A public key, as `trellis sign` writes it: 64 hexadecimal digits.
pub fn key(text: &[u8]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_digits_and_nothing_else() {
        let text = "0123456789abcdefABCDEF000000000000000000000000000000000000000001";
        let expected = [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xab, 0xcd, 0xef];
        assert!(key(format!("{text}\n").as_bytes()).is_some_and(|key| key[..11] == expected && key[31] == 1));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace('a', "g"), &text.replace('a', "+")] {
            assert_eq!(key(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(key(&[0xff; 64]), None);
    }

    #[test]
    fn nothing_is_kept_where_none_shall_come() {
        let entry = |memory| SwapEntry { memory, ..SwapEntry::default() };
        assert_eq!(entry(0).plan(None), None);
        assert_eq!(entry(1).plan(None), Some(SwapPlan { pages: 1, signer: None, counter: 0 }));
        assert_eq!(SwapEntry::default().plan(None).map(|plan| plan.pages), Some(128));
    }
}
