// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second-stage map: one walker for guests and domains, over entries that the machine packs.
//!
//! Three levels of 512 entries: 1 GiB, 2 MiB, 4 KiB. A change is two passes: *prepare* counts the tables it needs and
//! refuses what cannot be done; *commit* cannot fail. Mapping goes only over absent entries; a block is split only by
//! unmapping or protecting part of it.
//!
//! Every store to an entry that walkers can reach is one of three: onto an absent entry; to an absent one; or a change
//! of access alone. Anything else goes through absent and an invalidation first (break before make): see
//! [`needs_break`].

use crate::machine::{Entry, Leaf, Memory, Page, Stale};
use trellis_idl::kernel::{Access, Refusal};

/// Pages that a map can address: 39 bits of address.
pub const LIMIT: u64 = 1 << 27;

/// Entries of a table.
pub(crate) const ENTRIES: u64 = 512;

/// Mark of a leaf that shows the frame of another page than its own (see [`crate::view`]). The kernel's own.
pub const OTHER: Access = Access(128);

/// Mark of a leaf of memory that nobody may write: its access never becomes more than it was. The kernel's own.
pub const FIXED: Access = Access(256);

/// The access of a leaf that shall have another: what kind of memory it is stays, and so do the kernel's marks.
pub(crate) fn changed_access(old: Access, wanted: Access) -> Access {
    let most = if old.covers(FIXED) { old.0 | Access::NOTIFY.0 } else { ACCESS };
    Access(wanted.0 & ACCESS & most | old.0 & !ACCESS)
}

/// Links of free tables stand this far left: their low bits, by which machines tell entries, are zero.
const LINK: u32 = 12;

/// Whether an entry may only become another by way of an absent one and an invalidation (Arm ARM D8.16.1): when size,
/// address or kind of memory differ. A change of access alone is one store, made before the invalidation (x86: the
/// same holds for everything that is cached by address).
pub fn needs_break(old: Entry, new: Entry) -> bool {
    match (old, new) {
        (Entry::Absent, _) | (_, Entry::Absent) => false,
        (Entry::Leaf(old), Entry::Leaf(new)) => {
            old.page != new.page || (old.access.0 ^ new.access.0) & !ACCESS != 0
        }
        (Entry::Table(old), Entry::Table(new)) => old != new,
        _ => true,
    }
}

/// What may change without a break: who may read, write, execute, and who is told.
const ACCESS: u64 = Access::LEAF.0;

/// Pages of a leaf at this level.
pub(crate) const fn span(level: u8) -> u64 {
    1 << (ENTRIES.trailing_zeros() * (3 - level as u32))
}

/// Index of a page's entry in its table at this level.
pub(crate) const fn index(page: u64, level: u8) -> usize {
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

    #[cfg_attr(target_os = "none", optimize(speed))]
    pub(crate) fn take<M: Memory>(&mut self, memory: &mut M) -> Option<Page> {
        let page = if self.free != 0 {
            let page = self.free;
            self.free = memory.entry(page, 0) >> LINK;
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

    pub(crate) fn give<M: Memory>(&mut self, memory: &mut M, page: Page) {
        // A walker that still remembers this table must find nothing in the link.
        memory.set_entry(page, 0, self.free << LINK);
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
    pub(crate) tables: Tables,
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
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn find<M: Memory>(&self, memory: &M, page: u64) -> Option<Leaf> {
        if page >= LIMIT || self.root == 0 {
            return None;
        }
        let (table, level) = deepest(memory, self.root, page);
        match M::unpack(memory.entry(table, index(page, level)), level) {
            Entry::Leaf(leaf) => Some(Leaf { page: leaf.page + page % span(level), ..leaf }),
            _ => None,
        }
    }

    /// Maps a run of frames over absent pages, with the largest leaves that alignment and the tables there allow.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn map<M: Memory>(
        &mut self, memory: &mut M, first: u64, frame: Page, count: u64, access: Access,
    ) -> Result<Stale, Refusal> {
        let end = first.checked_add(count).ok_or(Refusal::OutOfRange)?;
        if count == 0 || end > LIMIT {
            return Err(Refusal::OutOfRange);
        }
        if self.root == 0 {
            return Err(Refusal::Gone);
        }
        let at = Stretch::find(self.root, memory, first, frame, end)?;
        if at.stop == end {
            // Mostly it is one stretch: it is looked for once.
            at.check_absent(memory)?;
            if u64::from(at.level - at.found) > self.tables.left() {
                return Err(Refusal::Quota);
            }
            self.fill(memory, at, first, frame, access)?;
        } else {
            self.map_stretches(memory, first, frame, end, access)?;
        }
        Ok(Stale { tag: self.tag, root: self.root, first, pages: 0 })
    }

    /// Maps several stretches: all of them, or none.
    #[inline(never)]
    fn map_stretches<M: Memory>(
        &mut self, memory: &mut M, first: u64, frame: Page, end: u64, access: Access,
    ) -> Result<(), Refusal> {
        let needed = self.prepare(memory, first, frame, end)?;
        if needed > self.tables.left() {
            return Err(Refusal::Quota);
        }
        let mut page = first;
        while page < end {
            let frame = frame + (page - first);
            let at = Stretch::find(self.root, memory, page, frame, end)?;
            let stop = at.stop;
            self.fill(memory, at, page, frame, access)?;
            page = stop;
        }
        Ok(())
    }

    /// First pass of [`Space::map_stretches`]: tables it needs; refuses when something is there.
    fn prepare<M: Memory>(&self, memory: &M, first: u64, frame: Page, end: u64) -> Result<u64, Refusal> {
        let mut needed = 0;
        let mut page = first;
        // The table of 2 MiB leaves that was counted last: several stretches share it.
        let mut counted = u64::MAX;
        while page < end {
            let at = Stretch::find(self.root, memory, page, frame + (page - first), end)?;
            needed += u64::from(at.level - at.found);
            if at.found == 1 && at.level > 1 {
                needed -= u64::from(counted == page / span(1));
                counted = page / span(1);
            }
            at.check_absent(memory)?;
            page = at.stop;
        }
        Ok(needed)
    }

    /// Second pass, one stretch: it begins at this page.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn fill<M: Memory>(
        &mut self, memory: &mut M, at: Stretch, page: u64, frame: Page, access: Access,
    ) -> Result<(), Refusal> {
        let mut table = at.table;
        for level in at.found..at.level {
            let next = self.tables.take(memory).ok_or(Refusal::Quota)?;
            memory.set_entry(table, index(page, level), M::pack(Entry::Table(next), level));
            table = next;
        }
        // Entries of one run differ by a constant: pack two, add the difference.
        let mut entry = M::pack(Entry::Leaf(Leaf { page: frame, access }), at.level);
        let step = M::pack(Entry::Leaf(Leaf { page: frame + span(at.level), access }), at.level) - entry;
        for i in at.entries() {
            memory.set_entry(table, i, entry);
            entry = entry.wrapping_add(step);
        }
        Ok(())
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

    /// Changes pages: to another access, or to absent. Absent ones are passed over.
    #[inline(never)]
    pub(crate) fn change<M: Memory>(
        &mut self, memory: &mut M, first: u64, count: u64, access: Option<Access>,
    ) -> Result<Stale, Refusal> {
        let end = first.checked_add(count).filter(|end| *end <= LIMIT).ok_or(Refusal::OutOfRange)?;
        if self.root == 0 {
            return Err(Refusal::Gone);
        }
        let edges = if count == 0 { [0, 0] } else { [first, end] };
        // At most the blocks at both ends are split, each into at most two levels of tables; they may be the same.
        let [from, to] = edges.map(|edge| self.split_cost(memory, edge));
        let shared = [1, 2].map(|level| u64::from(first / span(level) == end / span(level)));
        let split = from[0] + from[1] + to[0] * (1 - from[0] * shared[0]) + to[1] * (1 - from[1] * shared[1]);
        if split > self.tables.left() {
            return Err(Refusal::Quota);
        }
        for edge in edges {
            self.split_at(memory, edge)?;
        }
        let mut page = first;
        while page < end {
            page = self.change_one(memory, page, access);
        }
        Ok(Stale { tag: self.tag, root: self.root, first, pages: count })
    }

    /// Changes the leaf at `page`; says where the next one begins.
    fn change_one<M: Memory>(&mut self, memory: &mut M, page: u64, access: Option<Access>) -> u64 {
        let (table, level) = deepest(memory, self.root, page);
        let at = index(page, level);
        if let Entry::Leaf(leaf) = M::unpack(memory.entry(table, at), level) {
            let entry = match access {
                // What kind of memory it is does not change, so this needs no break.
                Some(access) => Entry::Leaf(Leaf { access: changed_access(leaf.access, access), ..leaf }),
                None => Entry::Absent,
            };
            memory.set_entry(table, at, M::pack(entry, level));
        }
        (page / span(level) + 1) * span(level)
    }

    /// Tables that [`Space::split_at`] needs for this edge: of 2 MiB leaves, of pages.
    fn split_cost<M: Memory>(&self, memory: &M, edge: u64) -> [u64; 2] {
        match self.cut_by(memory, edge) {
            Some((_, level, _)) => [u64::from(level == 1), u64::from(edge % span(2) != 0)],
            None => [0, 0],
        }
    }

    /// The leaf that this edge would cut, its table and level.
    #[inline(never)]
    fn cut_by<M: Memory>(&self, memory: &M, edge: u64) -> Option<(Page, u8, Leaf)> {
        if edge >= LIMIT {
            return None;
        }
        let (table, level) = deepest(memory, self.root, edge);
        match M::unpack(memory.entry(table, index(edge, level)), level) {
            Entry::Leaf(leaf) if edge % span(level) != 0 => Some((table, level, leaf)),
            _ => None,
        }
    }

    /// Makes `edge` a boundary between leaves.
    fn split_at<M: Memory>(&mut self, memory: &mut M, edge: u64) -> Result<(), Refusal> {
        while let Some((table, level, leaf)) = self.cut_by(memory, edge) {
            let at = index(edge, level);
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
        }
        Ok(())
    }

    /// Unmaps leaves whose frame lies in a range of machine pages, from page `from` of the map on: what revoking frames
    /// needs. Looks at about `most` entries; says where to go on ([`LIMIT`]: all is seen).
    pub fn purge<M: Memory>(
        &mut self, memory: &mut M, frames: core::ops::Range<Page>, from: u64, most: usize,
    ) -> (Stale, u64) {
        let (mut page, mut seen) = (if self.root == 0 { LIMIT } else { from }, 0);
        while page < LIMIT && seen < most {
            page = self.purge_table(memory, page, &frames, &mut seen);
        }
        (Stale { tag: self.tag, root: self.root, first: from, pages: page.saturating_sub(from) }, page)
    }

    /// The same in the deepest table that has an entry for `page`, as far as no deeper one begins.
    fn purge_table<M: Memory>(
        &mut self, memory: &mut M, mut page: u64, frames: &core::ops::Range<Page>, seen: &mut usize,
    ) -> u64 {
        let (table, level) = deepest(memory, self.root, page);
        for i in index(page, level)..ENTRIES as usize {
            match M::unpack(memory.entry(table, i), level) {
                Entry::Table(_) if level < 3 => return page,
                // A block that is partly of the range goes whole: its owner faults and maps the rest again.
                Entry::Leaf(leaf) if leaf.page < frames.end && leaf.page + span(level) > frames.start => {
                    memory.set_entry(table, i, M::pack(Entry::Absent, level));
                }
                _ => {}
            }
            *seen += 1;
            page = (page / span(level) + 1) * span(level);
        }
        page
    }

    /// Empties the map and gives its tables back, but the root.
    pub fn clear<M: Memory>(&mut self, memory: &mut M) -> Stale {
        let mut from = if self.root == 0 { None } else { Some(0) };
        while let Some(page) = from {
            from = self.clear_from(memory, page);
        }
        Stale { tag: self.tag, root: self.root, first: 0, pages: LIMIT }
    }

    /// Takes one table of the first level out, beginning at `page`, with what is in it. Says where to go on.
    #[inline(never)]
    pub(crate) fn clear_from<M: Memory>(&mut self, memory: &mut M, page: u64) -> Option<u64> {
        let at = (index(page, 1)..ENTRIES as usize).find(|at| !M::is_absent(memory.entry(self.root, *at)))?;
        let entry = memory.entry(self.root, at);
        memory.set_entry(self.root, at, M::pack(Entry::Absent, 1));
        // Walkers of other CPUs may be in these tables until the invalidation.
        memory.invalidate(Stale { tag: self.tag, root: self.root, first: at as u64 * span(1), pages: span(1) });
        if let Some(table) = M::table(entry, 1) {
            for i in 0..ENTRIES as usize {
                if let Some(last) = M::table(memory.entry(table, i), 2) {
                    self.tables.give(memory, last);
                }
            }
            self.tables.give(memory, table);
        }
        let next = (at as u64 + 1) * span(1);
        (next < LIMIT).then_some(next)
    }
}

/// The deepest table under this root that has an entry for a page, and its level.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
pub(crate) fn deepest<M: Memory>(memory: &M, root: Page, page: u64) -> (Page, u8) {
    let (mut table, mut level) = (root, 1);
    while level < 3
        && let Some(next) = M::table(memory.entry(table, index(page, level)), level)
    {
        table = next;
        level += 1;
    }
    (table, level)
}

/// Where the next leaves of a mapping go.
struct Stretch {
    /// The deepest table that is there.
    table: Page,
    /// Its level.
    found: u8,
    /// The level that the leaves get: deeper when tables must be made.
    level: u8,
    first: u64,
    /// The page after these leaves.
    stop: u64,
}

impl Stretch {
    /// Finds it: the largest leaf that alignment allows, or smaller ones where a table is already (even if nothing is
    /// left in it).
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn find<M: Memory>(root: Page, memory: &M, page: u64, frame: Page, end: u64) -> Result<Stretch, Refusal> {
        let (table, found) = deepest(memory, root, page);
        if found < 3 && !M::is_absent(memory.entry(table, index(page, found))) {
            return Err(Refusal::Occupied);
        }
        let level = best_level(page, frame, end).max(found);
        // Pages up to where a block could begin, or one block.
        let stop = if level == 3 { end.min((page / ENTRIES + 1) * ENTRIES) } else { page + span(level) };
        Ok(Stretch { table, found, level, first: page, stop })
    }

    /// Refuses when something is where the leaves shall go.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn check_absent<M: Memory>(&self, memory: &M) -> Result<(), Refusal> {
        let is_free = |i| M::is_absent(memory.entry(self.table, i));
        if self.found < self.level || self.entries().all(is_free) { Ok(()) } else { Err(Refusal::Occupied) }
    }

    /// The entries of the leaves in their table.
    #[inline(always)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn entries(&self) -> core::ops::Range<usize> {
        let first = index(self.first, self.level);
        first..first + ((self.stop - self.first) / span(self.level)) as usize
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_access_needs_no_break() {
        let leaf = |page, access| Entry::Leaf(Leaf { page, access: Access(access) });
        let one = leaf(512, 7);
        assert!(!needs_break(one, leaf(512, 1)) && !needs_break(one, leaf(512, 0)));
        assert!(!needs_break(one, Entry::Absent) && !needs_break(Entry::Absent, one));
        assert!(needs_break(one, leaf(513, 7)), "another address");
        assert!(needs_break(one, leaf(512, 7 | Access::DEVICE.0)), "another kind of memory");
        assert!(needs_break(one, Entry::Table(9)) && needs_break(Entry::Table(9), one), "another size");
        assert!(needs_break(Entry::Table(9), Entry::Table(8)));
    }
}
