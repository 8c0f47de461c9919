// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions of PCI as those that drive them and those that show them see them: where what stands in their configuration (PCI Local
//! Bus 3.0, chapter 6), the way through their capabilities, and entries of their tables of messages.

use crate::memory::Registers;

/// Who made it, and what it is.
pub const IDENTITY: usize = 0x00;
/// The command, and above it the status.
pub const COMMAND: usize = 0x04;
/// The kind of header, among others.
pub const HEADER: usize = 0x0c;
/// The first base address register.
pub const BASE: usize = 0x10;
/// Where the first capability is.
pub const CAPABILITIES: usize = 0x34;
/// Capabilities begin here,
pub const FIRST_CAPABILITY: usize = 0x40;
/// and end here.
pub const CAPABILITIES_END: usize = 0x100;
/// As many as fit there: a ring of them has no end.
pub const MOST_CAPABILITIES: usize = (CAPABILITIES_END - FIRST_CAPABILITY) / 4;

/// In the command: it answers accesses to memory.
pub const MEMORY: u32 = 1 << 1;
/// It makes accesses of its own.
pub const MASTER: u32 = 1 << 2;
/// It has no wire.
pub const NO_WIRE: u32 = 1 << 10;
/// In the status: there are capabilities.
pub const HAS_CAPABILITIES: u32 = 1 << 20;

/// The capability of PCI Express (PCI Code and ID Assignment, chapter 2).
pub const EXPRESS: u32 = 0x10;
/// That of messages in a table (6.8.2).
pub const TABLE: u32 = 0x11;
/// In its first word: they may be written.
pub const TABLE_WRITES: u32 = 1 << 31;
/// None of them is, whatever their entries say.
pub const TABLE_MASKED: u32 = 1 << 30;
/// Bytes of an entry: an address, data, and a word of which the lowest bit masks it.
pub const ENTRY: usize = 16;
/// That bit.
pub const MASKED: u32 = 1;
const MASK: usize = 12;

/// A capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Where it begins.
    pub at: usize,
    /// Which one it is.
    pub kind: u32,
}

/// The capabilities of a function with this configuration, as they are linked. Of those in a ring some come again.
pub fn capabilities<R: Registers>(page: &R) -> impl Iterator<Item = Capability> {
    let link = |word: u32| Some(word as usize & 0xfc).filter(|at| *at >= FIRST_CAPABILITY);
    let has_any = page.read(COMMAND) & HAS_CAPABILITIES != 0;
    let mut next = if has_any { link(page.read(CAPABILITIES)) } else { None };
    let capability = move || {
        let at = next?;
        let word = page.read(at);
        next = link(word >> 8);
        Some(Capability { at, kind: word & 0xff })
    };
    core::iter::from_fn(capability).take(MOST_CAPABILITIES)
}

/// Puts words into the entry at a place of this page, if any are to be there, and masks it or lets it go. Nobody may change one that is not
/// masked (6.8.2.9); one that is right is not touched.
pub fn put_entry<R: Registers>(page: &R, at: usize, words: Option<[u32; 3]>, is_masked: bool) {
    let places = [at, at + 4, at + 8];
    let was_masked = page.read(at + MASK) & MASKED != 0;
    match words {
        Some(words) if places.map(|place| page.read(place)) != words => {
            if !was_masked {
                page.write(at + MASK, MASKED);
            }
            places.into_iter().zip(words).for_each(|(place, word)| page.write(place, word));
            if !is_masked {
                page.write(at + MASK, 0);
            }
        }
        _ if is_masked != was_masked => page.write(at + MASK, if is_masked { MASKED } else { 0 }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Words, and those that were written.
    struct Words(RefCell<([u32; 64], Vec<(usize, u32)>)>);

    impl Words {
        fn new(words: &[(usize, u32)]) -> Words {
            let mut all = [0; 64];
            words.iter().for_each(|(at, word)| all[at / 4] = *word);
            Words(RefCell::new((all, Vec::new())))
        }

        fn written(&self) -> Vec<(usize, u32)> {
            std::mem::take(&mut self.0.borrow_mut().1)
        }
    }

    impl Registers for Words {
        fn read(&self, offset: usize) -> u32 {
            self.0.borrow().0[offset / 4]
        }

        fn write(&self, offset: usize, value: u32) {
            let mut all = self.0.borrow_mut();
            all.0[offset / 4] = value;
            all.1.push((offset, value));
        }
    }

    #[test]
    fn capabilities_are_found_as_they_are_linked_and_a_ring_has_an_end() {
        let found = |words: &[(usize, u32)]| capabilities(&Words::new(words)).map(|one| (one.at, one.kind)).collect::<Vec<_>>();
        let chain = [(4, 0x10_0000), (0x34, 0x53), (0x50, 0x6011), (0x60, 0x4009), (0x40, 0x0005)];
        assert_eq!(found(&chain), [(0x50, 0x11), (0x60, 9), (0x40, 5)]);
        assert_eq!(found(&chain[1..]), [], "it says that it has none");
        assert_eq!(found(&[(0, 0x5011), (4, 0x10_0000), (0x34, 0), (0x50, 0x11)]), [], "none is linked");
        assert_eq!(found(&[(4, 0x10_0000), (0x34, 0x50), (0x50, 0x3c11)]), [(0x50, 0x11)], "behind the header's end there is none");
        assert_eq!(found(&[(4, 0x10_0000), (0x34, 0xfc), (0xfc, 0xfc09)]).len(), MOST_CAPABILITIES);
    }

    #[test]
    fn an_entry_is_masked_while_it_changes_and_one_that_is_right_is_let_alone() {
        let words = [1, 2, 3];
        let new = [(16, 1), (20, 2), (24, 3)];
        let page = Words::new(&[(28, 1)]);
        put_entry(&page, 16, Some(words), true);
        assert_eq!(page.written(), new);
        put_entry(&page, 16, Some(words), false);
        assert_eq!(page.written(), [(28, 0)]);
        for (words, is_masked) in [(Some(words), false), (None, false)] {
            put_entry(&page, 16, words, is_masked);
            assert_eq!(page.written(), []);
        }
        put_entry(&page, 16, Some([1, 2, 4]), false);
        assert_eq!(page.written(), [(28, 1), (16, 1), (20, 2), (24, 4), (28, 0)]);
        put_entry(&page, 16, None, true);
        assert_eq!(page.written(), [(28, 1)]);
    }
}
