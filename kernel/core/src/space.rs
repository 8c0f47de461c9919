// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second-stage map: one walker for guests and domains, over entries that the machine packs.
//!
//! Three levels of 512 entries: 1 GiB, 2 MiB, 4 KiB. A change is two passes: *prepare* counts the tables it needs and
//! refuses what cannot be done; *commit* cannot fail. Mapping goes only over absent entries; a block is split only by
//! unmapping or protecting part of it, by break-before-make (the whole block becomes absent and is invalidated before
//! its pieces appear).

use crate::machine::{Entry, Leaf, Memory, Page, Stale};
use trellis_idl::kernel::{Access, Refusal};

/// Pages that a map can address: 39 bits of address.
pub const LIMIT: u64 = 1 << 27;

const ENTRIES: u64 = 512;

/// Pages of a leaf at this level.
const fn span(level: u8) -> u64 {
    match level {
        1 => ENTRIES * ENTRIES,
        2 => ENTRIES,
        _ => 1,
    }
}

/// Index of a page's entry in its table at this level.
const fn index(page: u64, level: u8) -> usize {
    (page / span(level) % ENTRIES) as usize
}

/// Pages for tables, out of the quota of whom the map serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tables {
    first: Page,
    count: u64,
    next: u64,
    /// Head of a chain of tables given back (linked through entry 0); 0 = none.
    free: Page,
    free_count: u64,
}

impl Tables {
    /// All of a run.
    pub const fn new(first: Page, count: u64) -> Self {
        Tables { first, count, next: 0, free: 0, free_count: 0 }
    }

    /// How many more there are.
    pub const fn left(&self) -> u64 {
        self.count - self.next + self.free_count
    }

    fn take<M: Memory>(&mut self, memory: &mut M) -> Option<Page> {
        let page = if self.free != 0 {
            let page = self.free;
            self.free = memory.entry(page, 0);
            self.free_count -= 1;
            page
        } else if self.next < self.count {
            self.next += 1;
            self.first + self.next - 1
        } else {
            return None;
        };
        memory.zero(page, 1);
        Some(page)
    }

    fn give<M: Memory>(&mut self, memory: &mut M, page: Page) {
        memory.set_entry(page, 0, self.free);
        self.free = page;
        self.free_count += 1;
    }
}

/// A map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Root table; 0 = no map.
    pub root: Page,
    /// Hardware tag (VMID).
    pub tag: u16,
    tables: Tables,
}

impl Space {
    /// No map.
    pub const EMPTY: Space =
        Space { root: 0, tag: 0, tables: Tables { first: 0, count: 0, next: 0, free: 0, free_count: 0 } };

    /// A map with nothing in it.
    pub fn new<M: Memory>(memory: &mut M, tag: u16, first: Page, count: u64) -> Result<Space, Refusal> {
        let mut tables = Tables::new(first, count);
        let root = tables.take(memory).ok_or(Refusal::Quota)?;
        Ok(Space { root, tag, tables })
    }

    /// Tables it can still make.
    pub const fn tables_left(&self) -> u64 {
        self.tables.left()
    }

    /// The frame behind a page, and its access.
    pub fn find<M: Memory>(&self, memory: &M, page: u64) -> Option<Leaf> {
        if page >= LIMIT || self.root == 0 {
            return None;
        }
        let mut table = self.root;
        for level in 1..=3 {
            match M::unpack(memory.entry(table, index(page, level)), level) {
                Entry::Absent => return None,
                Entry::Table(next) => table = next,
                Entry::Leaf(leaf) => return Some(Leaf { page: leaf.page + page % span(level), ..leaf }),
            }
        }
        None
    }

    /// Maps a run of frames over absent pages, with the largest leaves that alignment allows.
    pub fn map<M: Memory>(
        &mut self, memory: &mut M, first: u64, frame: Page, count: u64, access: Access,
    ) -> Result<Stale, Refusal> {
        let end = first.checked_add(count).ok_or(Refusal::OutOfRange)?;
        if count == 0 || end > LIMIT {
            return Err(Refusal::OutOfRange);
        }
        let needed = self.prepare(memory, first, frame, end)?;
        if needed > self.tables.left() {
            return Err(Refusal::Quota);
        }
        let mut page = first;
        while page < end {
            page = self.fill(memory, page, frame + (page - first), end, access)?;
        }
        Ok(Stale { tag: self.tag, root: self.root, first, pages: 0 })
    }

    /// First pass of [`Space::map`]: tables it needs; refuses when something is there.
    fn prepare<M: Memory>(&self, memory: &M, first: u64, frame: Page, end: u64) -> Result<u64, Refusal> {
        let mut needed = 0;
        let mut page = first;
        while page < end {
            let mut table = Some(self.root);
            let mut level = 1;
            let level_max = best_level(page, frame + (page - first), end);
            while level < level_max {
                table = match table.map(|t| M::unpack(memory.entry(t, index(page, level)), level)) {
                    Some(Entry::Table(next)) => Some(next),
                    Some(Entry::Leaf(_)) => return Err(Refusal::Occupied),
                    Some(Entry::Absent) | None => None,
                };
                needed += u64::from(table.is_none());
                level += 1;
            }
            let stop = self.run_end(page, frame + (page - first), end, level);
            if let Some(table) = table {
                let first = index(page, level);
                for i in first..first + ((stop - page) / span(level)) as usize {
                    // A table with nothing left in it could be replaced by a block; it simply stays.
                    if !M::is_absent(memory.entry(table, i)) {
                        return Err(Refusal::Occupied);
                    }
                }
            }
            page = stop;
        }
        Ok(needed)
    }

    /// End of the leaves of one level within one table.
    fn run_end(&self, page: u64, frame: Page, end: u64, level: u8) -> u64 {
        let table_end = (page / (span(level) * ENTRIES) + 1) * span(level) * ENTRIES;
        let stop = end.min(table_end);
        if level == 3 {
            // Stop where a block begins to fit, so that it is used.
            let next_block = (page / ENTRIES + 1) * ENTRIES;
            return stop.min(next_block);
        }
        let mut at = page + span(level);
        while at < stop && best_level(at, frame + (at - page), end) == level {
            at += span(level);
        }
        at.min(stop)
    }

    /// Second pass of [`Space::map`], one table's worth.
    fn fill<M: Memory>(
        &mut self, memory: &mut M, page: u64, frame: Page, end: u64, access: Access,
    ) -> Result<u64, Refusal> {
        let level_max = best_level(page, frame, end);
        let mut table = self.root;
        let mut level = 1;
        while level < level_max {
            table = self.descend(memory, table, page, level)?;
            level += 1;
        }
        let stop = self.run_end(page, frame, end, level);
        // Entries of one run differ by a constant: pack two, add the difference.
        let mut entry = M::pack(Entry::Leaf(Leaf { page: frame, access }), level);
        let step = M::pack(Entry::Leaf(Leaf { page: frame + span(level), access }), level) - entry;
        let first = index(page, level);
        for i in first..first + ((stop - page) / span(level)) as usize {
            memory.set_entry(table, i, entry);
            entry = entry.wrapping_add(step);
        }
        Ok(stop)
    }

    /// The table below an entry, made when it is absent.
    fn descend<M: Memory>(&mut self, memory: &mut M, table: Page, page: u64, level: u8) -> Result<Page, Refusal> {
        match M::unpack(memory.entry(table, index(page, level)), level) {
            Entry::Table(next) => Ok(next),
            Entry::Leaf(_) => Err(Refusal::Occupied),
            Entry::Absent => {
                let next = self.tables.take(memory).ok_or(Refusal::Quota)?;
                memory.set_entry(table, index(page, level), M::pack(Entry::Table(next), level));
                Ok(next)
            }
        }
    }

    /// Unmaps pages; absent ones are passed over. Blocks that are only partly meant are split first.
    pub fn unmap<M: Memory>(&mut self, memory: &mut M, first: u64, count: u64) -> Result<Stale, Refusal> {
        self.change(memory, first, count, None)
    }

    /// Changes the access of pages; absent ones are passed over.
    pub fn protect<M: Memory>(
        &mut self, memory: &mut M, first: u64, count: u64, access: Access,
    ) -> Result<Stale, Refusal> {
        self.change(memory, first, count, Some(access))
    }

    fn change<M: Memory>(
        &mut self, memory: &mut M, first: u64, count: u64, access: Option<Access>,
    ) -> Result<Stale, Refusal> {
        let end = first.checked_add(count).filter(|end| *end <= LIMIT).ok_or(Refusal::OutOfRange)?;
        // At most the blocks at both ends are split, each into at most two levels of tables.
        let split = [first, end].iter().map(|edge| self.split_cost(memory, *edge)).sum::<u64>();
        if split > self.tables.left() {
            return Err(Refusal::Quota);
        }
        for edge in [first, end] {
            self.split_at(memory, edge)?;
        }
        let mut page = first;
        while page < end {
            page = self.change_one(memory, page, end, access);
        }
        Ok(Stale { tag: self.tag, root: self.root, first, pages: count })
    }

    /// Changes the leaf at `page`; says where the next one begins.
    fn change_one<M: Memory>(&mut self, memory: &mut M, page: u64, end: u64, access: Option<Access>) -> u64 {
        let mut table = self.root;
        for level in 1..=3 {
            let at = index(page, level);
            match M::unpack(memory.entry(table, at), level) {
                Entry::Table(next) => table = next,
                Entry::Absent => return (page / span(level) + 1) * span(level),
                Entry::Leaf(leaf) => {
                    let entry = match access {
                        Some(access) => Entry::Leaf(Leaf { access, ..leaf }),
                        None => Entry::Absent,
                    };
                    memory.set_entry(table, at, M::pack(entry, level));
                    return (page / span(level) + 1) * span(level);
                }
            }
        }
        end
    }

    /// Tables that [`Space::split_at`] needs for this edge.
    fn split_cost<M: Memory>(&self, memory: &M, edge: u64) -> u64 {
        let mut table = self.root;
        for level in 1..=2 {
            if edge % span(level) == 0 || edge >= LIMIT {
                return 0;
            }
            match M::unpack(memory.entry(table, index(edge, level)), level) {
                Entry::Table(next) => table = next,
                Entry::Absent => return 0,
                Entry::Leaf(_) if level == 1 && edge % span(2) != 0 => return 2,
                Entry::Leaf(_) => return 1,
            }
        }
        0
    }

    /// Makes `edge` a boundary between leaves.
    fn split_at<M: Memory>(&mut self, memory: &mut M, edge: u64) -> Result<(), Refusal> {
        let mut table = self.root;
        for level in 1..=2 {
            if edge % span(level) == 0 || edge >= LIMIT {
                return Ok(());
            }
            let at = index(edge, level);
            match M::unpack(memory.entry(table, at), level) {
                Entry::Table(next) => table = next,
                Entry::Absent => return Ok(()),
                Entry::Leaf(leaf) => {
                    let next = self.tables.take(memory).ok_or(Refusal::Quota)?;
                    let step = span(level + 1);
                    for i in 0..ENTRIES {
                        let piece = Leaf { page: leaf.page + i * step, ..leaf };
                        memory.set_entry(next, i as usize, M::pack(Entry::Leaf(piece), level + 1));
                    }
                    // Break before make (Arm ARM D8.16.1): absent, invalidated, then the table.
                    memory.set_entry(table, at, M::pack(Entry::Absent, level));
                    let first = edge / span(level) * span(level);
                    memory.invalidate(Stale { tag: self.tag, root: self.root, first, pages: span(level) });
                    memory.set_entry(table, at, M::pack(Entry::Table(next), level));
                    table = next;
                }
            }
        }
        Ok(())
    }

    /// Unmaps every leaf whose frame lies in a range of machine pages: what revoking frames needs. Bounded by the tables.
    pub fn purge<M: Memory>(&mut self, memory: &mut M, first: Page, count: u64) -> Result<Stale, Refusal> {
        if self.root != 0 {
            self.purge_table(memory, self.root, 1, first, first + count);
        }
        Ok(Stale { tag: self.tag, root: self.root, first: 0, pages: LIMIT })
    }

    fn purge_table<M: Memory>(&mut self, memory: &mut M, table: Page, level: u8, first: Page, end: Page) {
        for i in 0..ENTRIES as usize {
            match M::unpack(memory.entry(table, i), level) {
                Entry::Table(next) if level < 3 => self.purge_table(memory, next, level + 1, first, end),
                // A block that is partly of the range goes whole: its owner faults and maps the rest again.
                Entry::Leaf(leaf) if leaf.page < end && leaf.page + span(level) > first => {
                    memory.set_entry(table, i, M::pack(Entry::Absent, level));
                }
                _ => {}
            }
        }
    }

    /// Empties the map and gives its tables back, but the root.
    pub fn clear<M: Memory>(&mut self, memory: &mut M) -> Stale {
        for i in 0..ENTRIES as usize {
            let entry = M::unpack(memory.entry(self.root, i), 1);
            memory.set_entry(self.root, i, M::pack(Entry::Absent, 1));
            if let Entry::Table(next) = entry {
                // The walkers of other CPUs may still be in these tables until the invalidation.
                memory.invalidate(Stale {
                    tag: self.tag, root: self.root, first: i as u64 * span(1), pages: span(1),
                });
                for k in 0..ENTRIES as usize {
                    if let Entry::Table(last) = M::unpack(memory.entry(next, k), 2) {
                        self.tables.give(memory, last);
                    }
                }
                self.tables.give(memory, next);
            }
        }
        Stale { tag: self.tag, root: self.root, first: 0, pages: LIMIT }
    }
}

/// The largest leaf that page, frame and what is left allow.
const fn best_level(page: u64, frame: Page, end: u64) -> u8 {
    let both = page | frame;
    if both % span(1) == 0 && end - page >= span(1) {
        1
    } else if both % span(2) == 0 && end - page >= span(2) {
        2
    } else {
        3
    }
}
