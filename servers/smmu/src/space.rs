// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables of a device space: guest-physical addresses of a guest's memory to its frames, in the largest pieces that fit,
//! and the page that messages are written to. The format is that of a CPU's second stage (SMMUv3 3.4, VMSAv8-64).

use crate::stream::SPACE_BITS;
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::SpacePlan;
use trellis_runtime::memory::SharedMemory;

/// Entries of a table, each of 8 bytes.
const ENTRIES: u64 = 512;
/// In an entry: it says something; it is a table, or a page and no larger piece.
const VALID: u64 = 1;
const TABLE: u64 = 2;
/// Everybody's memory, read and written, cached, inner shareable, never executed, touched before.
const MEMORY: u64 = VALID | 0xf << 2 | 3 << 6 | 3 << 8 | 1 << 10 | 2 << 53;
/// A register (Device-nGnRE) that is only written.
const DOORBELL: u64 = VALID | 1 << 2 | 2 << 6 | 1 << 10 | 2 << 53;
const AT: u64 = 0x0000_ffff_ffff_f000;

/// Pages of the pieces that an entry of level 1, 2 and 3 maps.
const SIZES: [u64; 3] = [ENTRIES * ENTRIES, ENTRIES, 1];

/// There are too few pages for the tables, or an address has too many bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// The tables of one space, in shared memory.
#[derive(Debug)]
pub struct Space<'a, M> {
    memory: &'a M,
    /// Machine address of the memory, and where the first table is there.
    base: u64,
    first: u64,
    /// Pages for tables, and how many are used.
    pages: u64,
    used: u64,
}

impl<'a, M: SharedMemory> Space<'a, M> {
    /// Makes the tables of a space in the memory from `first` on, for a guest whose memory begins at this machine page. Back:
    /// the machine address of the first one. Nobody may be using them.
    pub fn make(memory: &'a M, base: u64, first: u64, plan: &SpacePlan, frames: u64) -> Result<u64, NoRoom> {
        let pages = u64::from(plan.tables);
        let mut space = Space { memory, base, first, pages, used: 0 };
        space.table()?;
        space.map(plan.first, frames, plan.pages, MEMORY)?;
        if let Some(doorbell) = plan.doorbell {
            space.map(doorbell, doorbell, 1, DOORBELL)?;
        }
        Ok(base + first)
    }

    /// An empty table more. Back: where it is in the memory.
    fn table(&mut self) -> Result<u64, NoRoom> {
        if self.used >= self.pages {
            return Err(NoRoom);
        }
        let at = self.first + self.used * PAGE;
        self.used += 1;
        (at..at + PAGE).step_by(8).for_each(|offset| self.memory.write(offset, 0));
        Ok(at)
    }

    /// Maps so many pages, the first to this one of the machine's, each piece as large as it can be.
    fn map(&mut self, mut from: u64, mut to: u64, mut pages: u64, kind: u64) -> Result<(), NoRoom> {
        let most = 1 << (SPACE_BITS - 12);
        if from.checked_add(pages).is_none_or(|end| end > most) || to.checked_add(pages).is_none_or(|end| end > AT / PAGE) {
            return Err(NoRoom);
        }
        while pages > 0 {
            let fits = |size: &u64| from.is_multiple_of(*size) && to.is_multiple_of(*size) && pages >= *size;
            let level = SIZES.iter().position(fits).unwrap_or(2);
            let size = SIZES.get(level).copied().unwrap_or(1);
            let page = if level == 2 { TABLE } else { 0 };
            self.put(level, from, kind | page | to * PAGE)?;
            (from, to, pages) = (from + size, to + size, pages - size);
        }
        Ok(())
    }

    /// Writes the entry of this level that speaks of a page; tables above it are made if they are not there.
    fn put(&mut self, level: usize, page: u64, entry: u64) -> Result<(), NoRoom> {
        let mut table = self.first;
        for size in SIZES.iter().take(level) {
            let at = table + page / size % ENTRIES * 8;
            let there = self.memory.read(at);
            table = if there & VALID != 0 {
                (there & AT) - self.base
            } else {
                let new = self.table()?;
                self.memory.write(at, self.base + new | TABLE | VALID);
                new
            };
        }
        let size = SIZES.get(level).copied().unwrap_or(1);
        self.memory.write(table + page / size % ENTRIES * 8, entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// Machine address of the memory.
    const BASE: u64 = 0x4200_0000;
    const FIRST: u64 = 0x8000;

    /// Memory that tells what was written.
    #[derive(Default)]
    struct Words(RefCell<BTreeMap<u64, u64>>);

    impl SharedMemory for Words {
        fn read(&self, offset: u64) -> u64 {
            self.0.borrow().get(&offset).copied().unwrap_or(0xdead_beef_dead_beef)
        }

        fn write(&self, offset: u64, value: u64) {
            assert!(offset >= FIRST, "the tables begin behind {offset:#x}");
            self.0.borrow_mut().insert(offset, value);
        }

        fn publish(&self) {}
    }

    /// What hardware makes of an address: the machine's, and the bits of the leaf that say how it is accessed.
    fn walk(words: &Words, root: u64, address: u64) -> Option<(u64, u64)> {
        let mut table = root - BASE;
        for level in 0..3 {
            let size = SIZES[level] * PAGE;
            let entry = words.read(table + address / size % ENTRIES * 8);
            match entry & 3 {
                3 if level < 2 => table = (entry & AT) - BASE,
                3 if level == 2 => return Some(((entry & AT) + address % size, entry & !AT)),
                1 if level < 2 => return Some(((entry & AT) + address % size, entry & !AT)),
                _ => return None,
            }
        }
        None
    }

    fn plan(first: u64, pages: u64, doorbell: Option<u64>, tables: u16) -> SpacePlan {
        SpacePlan { guest: 0, first, pages, doorbell, tables }
    }

    #[test]
    fn a_space_has_the_guests_memory_and_the_doorbell_and_nothing_else() {
        let words = Words::default();
        let root = Space::make(&words, BASE, FIRST, &plan(0x4_0000, 8 * 512, Some(0x8090), 4), 0x6_0200).unwrap();
        assert_eq!(root, BASE + FIRST);
        for (address, there) in [(0x4000_0000, 0x6020_0000), (0x40ff_fff8, 0x611f_fff8), (0x4020_1234, 0x6040_1234)] {
            assert_eq!(walk(&words, root, address).map(|(at, _)| at), Some(there));
        }
        // Memory: write-back, read and written, inner shareable, touched, never executed.
        assert_eq!(walk(&words, root, 0x4000_0000).map(|(_, bits)| bits), Some(0x0040_0000_0000_07fd));
        let (at, bits) = walk(&words, root, 0x0809_0040).expect("messages are written there");
        assert_eq!((at, bits), (0x0809_0040, 0x0040_0000_0000_0487));
        for address in [0, 0x3fff_fff8, 0x4100_0000, 0x0809_1000, 0x0808_f000, 0x6020_0000, 0x7f_ffff_f000] {
            assert_eq!(walk(&words, root, address), None, "{address:#x}");
        }
    }

    #[test]
    fn large_memory_is_mapped_in_large_pieces() {
        let words = Words::default();
        let giant = 0x4_0000;
        let root = Space::make(&words, BASE, FIRST, &plan(giant, 2 * giant + 512, None, 2), 3 * giant).unwrap();
        assert_eq!(walk(&words, root, 0x7fff_fff8), Some((0xffff_fff8, 0x0040_0000_0000_07fd)));
        assert_eq!(walk(&words, root, 0xc01f_fff8).map(|(at, _)| at), Some(0x1_401f_fff8));
        assert_eq!(words.0.borrow().keys().last(), Some(&(FIRST + 2 * PAGE - 8)), "the first table, and one for 2 MiB");
    }

    #[test]
    fn too_few_tables_and_addresses_that_are_none_are_refused() {
        let words = Words::default();
        let refused = |plan: SpacePlan, frames| Space::make(&words, BASE, FIRST, &plan, frames).is_err();
        assert!(refused(plan(0x4_0000, 512, Some(0x8090), 3), 0x200));
        assert!(refused(plan(0x4_0000, 512, None, 0), 0x200));
        assert!(refused(plan(1 << 27, 512, None, 9), 0x200));
        assert!(refused(plan(0x4_0000, 512, None, 9), u64::MAX - 5));
        assert!(refused(plan(u64::MAX, 512, None, 9), 0x200));
        assert!(refused(plan(0x4_0000, 512, Some(1 << 40), 9), 0x200));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_asked_each_address_leads_where_it_should(
            first in 0x3_f000..0x4_2000u64, pages in 1..0x4_2000u64, frames in 0..0x10_0000u64, probe in 0..0xa_0000u64,
        ) {
            // The same distance to a 2 MiB boundary, or there would be a table for each.
            let frames = frames & !511 | first & 511;
            let words = Words::default();
            let root = Space::make(&words, BASE, FIRST, &plan(first, pages, Some(0x8090), 16), frames).unwrap();
            let expected = match probe {
                0x8090 => Some(0x8090),
                page if (first..first + pages).contains(&page) => Some(page - first + frames),
                _ => None,
            };
            prop_assert_eq!(walk(&words, root, probe * PAGE + 0x40).map(|(at, _)| at), expected.map(|page| page * PAGE + 0x40));
        }
    }
}
