// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the CPUs of the hosted machine share: memory, TLBs, the clock, power, the kernel's log.
//!
//! A page that was written since it was zeroed is *unclean*; so is all memory at the start. A translation that a guest
//! or server used stays in the TLB of its CPU until an invalidation of its tag covers its page, as on hardware.

use crate::entry;
use crate::machine::HostedMachine;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use trellis_core::lock::Lock;
use trellis_core::machine::{Entry, Leaf, Page, Stale, Ticks};
use trellis_core::passage::Passage;
use trellis_core::space::needs_break;

/// What a word of memory holds that nobody has written: never zero.
const NOISE: u64 = 0xa5a5_a5a5_a5a5_a5a5;
const WORDS: usize = 512;

/// A cached translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cached {
    /// Root table it was walked from.
    pub root: Page,
    /// What the walk found.
    pub leaf: Leaf,
}

/// What CPUs share.
#[derive(Debug)]
pub struct Board {
    first: Page,
    clean: Vec<bool>,
    words: BTreeMap<Page, Box<[u64; WORDS]>>,
    /// Cached translations by CPU, tag and page.
    pub tlb: BTreeMap<(u16, u16, u64), Cached>,
    /// The clock.
    pub now: Ticks,
    /// CPUs that were kicked and have not been told yet, in order.
    pub kicks: VecDeque<u16>,
    /// Physical lines that are not masked, and the CPU that each comes to.
    pub lines: BTreeMap<u32, u16>,
    /// Physical lines that came and were not ended yet.
    pub active: BTreeSet<u32>,
    /// Those that are triggered by an edge.
    pub edges: BTreeSet<u32>,
    /// CPUs that have stopped for good.
    pub retired: BTreeSet<u16>,
    /// What was asked of the power switch: true = restart.
    pub power: Option<bool>,
    /// The kernel's log.
    pub log: VecDeque<u8>,
    /// What of the log was said because nobody would read it.
    pub said: Vec<u8>,
    /// Invalidations carried out.
    pub invalidations: u64,
    /// Pages that were zeroed, each time that some were.
    pub zeroed: Vec<u64>,
    /// Where a vCPU is while it moves to another CPU.
    pub passage: Rc<Lock<Passage<HostedMachine>>>,
    /// Translations that a CPU used from a map it was not in: its TLB should have been dropped (cpu, tag, page).
    pub strays: Vec<(u16, u16, u64)>,
}

impl Board {
    /// A board with memory at these pages.
    pub fn new(first: Page, pages: u64) -> Board {
        Board {
            first,
            clean: vec![false; pages as usize],
            words: BTreeMap::new(),
            tlb: BTreeMap::new(),
            now: 1,
            kicks: VecDeque::new(),
            lines: BTreeMap::new(),
            active: BTreeSet::new(),
            edges: BTreeSet::new(),
            retired: BTreeSet::new(),
            power: None,
            log: VecDeque::new(),
            said: Vec::new(),
            invalidations: 0,
            zeroed: Vec::new(),
            passage: Rc::new(Lock::new(Passage::EMPTY)),
            strays: Vec::new(),
        }
    }

    /// Whether this page is memory.
    pub fn is_memory(&self, page: Page) -> bool {
        page.checked_sub(self.first).is_some_and(|index| index < self.clean.len() as u64)
    }

    fn index(&self, page: Page) -> usize {
        assert!(self.is_memory(page), "the kernel touched page {page:#x}, which is no memory");
        (page - self.first) as usize
    }

    /// Whether nobody has written to this page since it was zeroed.
    pub fn is_clean(&self, page: Page) -> bool {
        self.clean[self.index(page)]
    }

    /// Reads a word.
    pub fn word(&self, address: u64) -> u64 {
        let (page, at) = (address / 4096, (address % 4096 / 8) as usize);
        let clean = self.clean[self.index(page)];
        self.words.get(&page).map_or(if clean { 0 } else { NOISE }, |words| words[at])
    }

    /// Writes a word.
    pub fn set_word(&mut self, address: u64, value: u64) {
        let (page, at) = (address / 4096, (address % 4096 / 8) as usize);
        let index = self.index(page);
        let fill = if self.clean[index] { 0 } else { NOISE };
        self.clean[index] = false;
        self.words.entry(page).or_insert_with(|| Box::new([fill; WORDS]))[at] = value;
    }

    /// Reads a byte.
    pub fn byte(&self, address: u64) -> u8 {
        self.word(address & !7).to_le_bytes()[(address % 8) as usize]
    }

    /// Writes a byte.
    pub fn set_byte(&mut self, address: u64, value: u8) {
        let mut bytes = self.word(address & !7).to_le_bytes();
        bytes[(address % 8) as usize] = value;
        self.set_word(address & !7, u64::from_le_bytes(bytes));
    }

    /// Zeroes pages: they are clean.
    pub fn zero(&mut self, first: Page, pages: u64) {
        self.zeroed.push(pages);
        for page in first..first + pages {
            let index = self.index(page);
            self.words.remove(&page);
            self.clean[index] = true;
        }
    }

    /// Copies bytes.
    pub fn copy(&mut self, to: u64, from: u64, bytes: u64) {
        let whole = (to | from | bytes).is_multiple_of(8);
        let step = if whole { 8 } else { 1 };
        for at in (0..bytes).step_by(step) {
            if whole {
                let word = self.word(from + at);
                self.set_word(to + at, word);
            } else {
                let byte = self.byte(from + at);
                self.set_byte(to + at, byte);
            }
        }
    }

    /// Writes an entry of a table as a walker sees it. Wrong orders are bugs of the kernel: a change that needs a break
    /// and got none, or an entry that appears while a TLB still has what was there before.
    pub fn set_entry(&mut self, table: Page, index: usize, value: u64) {
        let address = table * 4096 + index as u64 * 8;
        let (old, new) = (entry::unpack(self.word(address)), entry::unpack(value));
        // Memory that nobody has zeroed or written yet was no table.
        let was_table = self.is_clean(table) || self.words.contains_key(&table);
        assert!(!was_table || !needs_break(old, new), "{old:?} became {new:?} without a break (Arm ARM D8.16.1)");
        let absent: Vec<(u16, u16, u64)> = match (old, new) {
            (Entry::Absent, Entry::Leaf(_) | Entry::Table(_)) => self.stale_translations(),
            _ => Vec::new(),
        };
        self.set_word(address, value);
        for key in absent {
            let now = self.tlb.get(&key).and_then(|cached| self.walk(cached.root, key.2));
            assert!(now.is_none(), "{key:?} appeared while a TLB had what was there before (Arm ARM D8.16.1)");
        }
    }

    /// Walks a map without using a TLB.
    pub fn walk(&self, root: Page, page: u64) -> Option<Leaf> {
        let mut table = root;
        for level in 1..=3u32 {
            let span = 512u64.pow(3 - level);
            match entry::unpack(self.word(table * 4096 + page / span % 512 * 8)) {
                Entry::Absent => return None,
                Entry::Table(next) => table = next,
                Entry::Leaf(leaf) => return Some(Leaf { page: leaf.page + page % span, ..leaf }),
            }
        }
        None
    }

    /// Translates as a CPU does: from its TLB, else by a walk that it remembers.
    pub fn translate(&mut self, cpu: u16, tag: u16, root: Page, page: u64) -> Option<Leaf> {
        if let Some(cached) = self.tlb.get(&(cpu, tag, page)) {
            if cached.root != root {
                self.strays.push((cpu, tag, page));
            }
            return Some(cached.leaf);
        }
        let leaf = self.walk(root, page)?;
        self.tlb.insert((cpu, tag, page), Cached { root, leaf });
        Some(leaf)
    }

    /// Carries out an invalidation on every CPU: exactly what it says.
    pub fn invalidate(&mut self, stale: Stale) {
        self.invalidations += 1;
        let range = stale.first..stale.first.saturating_add(stale.pages);
        self.tlb.retain(|(_, tag, page), _| *tag != stale.tag || !range.contains(page));
    }

    /// Drops what one CPU has cached under a tag.
    pub fn drop_local(&mut self, cpu: u16, tag: u16) {
        self.tlb.retain(|(on, of, _), _| (*on, *of) != (cpu, tag));
    }

    /// Cached translations that the tables do not say any more: what a forgotten invalidation leaves behind.
    pub fn stale_translations(&self) -> Vec<(u16, u16, u64)> {
        let wrong = self.tlb.iter().filter(|((_, _, page), cached)| self.walk(cached.root, *page) != Some(cached.leaf));
        wrong.map(|(key, _)| *key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::kernel::Access;

    #[test]
    fn a_translation_lives_until_an_invalidation_covers_it() {
        let mut board = Board::new(100, 10);
        board.zero(100, 10);
        for (table, next) in [(100, 101), (101, 102)] {
            board.set_word(table * 4096, entry::pack(Entry::Table(next)));
        }
        let leaf = Leaf { page: 105, access: Access::READ };
        board.set_word(102 * 4096 + 3 * 8, entry::pack(Entry::Leaf(leaf)));
        assert_eq!(board.translate(0, 7, 100, 3), Some(leaf));
        assert_eq!(board.translate(0, 7, 100, 4), None);
        board.set_word(102 * 4096 + 3 * 8, 0);
        assert_eq!(board.translate(0, 7, 100, 3), Some(leaf), "hardware goes on with what it has");
        assert_eq!(board.stale_translations(), [(0, 7, 3)]);
        board.invalidate(Stale { tag: 8, root: 100, first: 0, pages: 512 });
        board.invalidate(Stale { tag: 7, root: 100, first: 4, pages: 8 });
        assert_eq!(board.stale_translations(), [(0, 7, 3)]);
        board.invalidate(Stale { tag: 7, root: 100, first: 0, pages: 4 });
        assert_eq!(board.translate(0, 7, 100, 3), None);
    }

    /// A board with a root, a table and one mapped page at 3, which a CPU has in its TLB.
    fn mapped() -> (Board, Leaf) {
        let mut board = Board::new(100, 10);
        board.zero(100, 10);
        board.set_entry(100, 0, entry::pack(Entry::Table(101)));
        board.set_entry(101, 0, entry::pack(Entry::Table(102)));
        let leaf = Leaf { page: 105, access: Access::READ };
        board.set_entry(102, 3, entry::pack(Entry::Leaf(leaf)));
        board.translate(0, 7, 100, 3);
        (board, leaf)
    }

    #[test]
    #[should_panic(expected = "without a break")]
    fn another_frame_in_place_of_one_is_a_bug() {
        let (mut board, leaf) = mapped();
        board.set_entry(102, 3, entry::pack(Entry::Leaf(Leaf { page: 106, ..leaf })));
    }

    #[test]
    #[should_panic(expected = "without a break")]
    fn a_block_in_place_of_a_table_is_a_bug() {
        let (mut board, leaf) = mapped();
        board.set_entry(101, 0, entry::pack(Entry::Leaf(Leaf { page: 512, ..leaf })));
    }

    #[test]
    #[should_panic(expected = "while a TLB had")]
    fn a_break_without_an_invalidation_is_a_bug() {
        let (mut board, leaf) = mapped();
        board.set_entry(102, 3, 0);
        board.set_entry(102, 3, entry::pack(Entry::Leaf(Leaf { page: 106, ..leaf })));
    }

    #[test]
    fn access_changes_in_place_and_a_frame_after_break_and_invalidation() {
        let (mut board, leaf) = mapped();
        let written = Leaf { access: Access::READ.with(Access::WRITE), ..leaf };
        board.set_entry(102, 3, entry::pack(Entry::Leaf(written)));
        board.set_entry(102, 3, 0);
        board.invalidate(Stale { tag: 7, root: 100, first: 3, pages: 1 });
        let other = Leaf { page: 106, ..leaf };
        board.set_entry(102, 3, entry::pack(Entry::Leaf(other)));
        assert_eq!(board.translate(0, 7, 100, 3), Some(other));
    }

    #[test]
    fn a_page_is_clean_until_it_is_written() {
        let mut board = Board::new(0, 2);
        assert!(!board.is_clean(0) && board.byte(9) == 0xa5);
        board.zero(0, 2);
        assert!(board.is_clean(0) && board.byte(9) == 0);
        board.set_byte(9, 3);
        board.copy(4097, 8, 3);
        assert!(!board.is_clean(0) && !board.is_clean(1));
        assert_eq!([board.byte(4097), board.byte(4098), board.byte(4099)], [0, 3, 0]);
    }
}
