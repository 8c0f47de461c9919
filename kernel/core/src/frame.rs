// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs of physical memory: who may map them, where they are mapped, and how they are taken back.

use crate::grace::Mark;
use crate::machine::Page;
use crate::pool::{Empty, Id, Pool, SHARED_HOME};
use trellis_idl::kernel::Refusal;

/// Runs in the system.
pub const RUNS: usize = 512;
/// Maps a run can be in at once.
const MAPS: usize = 8;

/// What a run is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// To be mapped.
    Memory,
    /// The kernel's: page tables of a domain or guest.
    Tables,
    /// The kernel's: a thread's floating-point registers. Not to be taken back before the thread ends.
    Registers,
}

/// How far a run is with being taken back: it is not to be used meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taking {
    /// It is not being taken back.
    No,
    /// It is, or what it was split off is: its parts and maps go.
    Begun,
    /// Nobody reaches it any more; this many of its pages are zero.
    Cleaned(u64),
    /// No copy of its capability is left since this mark.
    Settles(Mark),
}

/// A map that a run may be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapName {
    /// None.
    None,
    /// A domain's, by index.
    Domain(u16),
    /// A guest's, by index.
    Guest(u16),
}

/// Physical memory, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First page.
    pub first: Page,
    /// Pages.
    pub pages: u64,
    /// Device memory.
    pub device: bool,
    /// Never written: the image's payload.
    pub constant: bool,
    /// What it is for.
    pub use_: Use,
    /// The run it was split off.
    pub parent: u64,
    /// Runs that were split off it.
    pub parts: u32,
    /// How many splits lie between it and what there was at boot.
    pub depth: u16,
    /// How far it is with being taken back.
    pub taking: Taking,
    /// Where in the first of its maps its pages are looked for next.
    pub cursor: u64,
    pub(crate) maps: [MapName; MAPS],
}

impl Empty for Run {
    type Align = ();
    const EMPTY: Run = Run {
        first: 0,
        pages: 0,
        device: false,
        constant: false,
        use_: Use::Memory,
        parent: 0,
        parts: 0,
        depth: 0,
        taking: Taking::No,
        cursor: 0,
        maps: [MapName::None; MAPS],
    };
}

impl Run {
    /// Notes that it is mapped there.
    #[inline]
    pub fn note(&mut self, map: MapName) -> Result<(), Refusal> {
        // What never changes is never taken back: it may be mapped anywhere.
        if self.constant || self.maps.contains(&map) {
            return Ok(());
        }
        let free = self.maps.iter_mut().find(|m| **m == MapName::None).ok_or(Refusal::Quota)?;
        *free = map;
        Ok(())
    }

    /// Whether [`Run::note`] would find room.
    pub fn can_note(&self, map: MapName) -> Result<(), Refusal> {
        let known = self.constant || self.maps.contains(&map);
        if known || self.maps.contains(&MapName::None) { Ok(()) } else { Err(Refusal::Quota) }
    }

    /// Forgets one map.
    pub fn forget(&mut self, map: MapName) {
        for known in self.maps.iter_mut().filter(|known| **known == map) {
            *known = MapName::None;
            // Whoever has this name next is looked through from its beginning.
            self.cursor = 0;
        }
    }

    /// Whether the two share a page.
    pub const fn overlaps(&self, other: &Run) -> bool {
        self.first < other.first + other.pages && other.first < self.first + self.pages
    }

    /// Whether it was split off this one, directly or not: its pages lie inside, and it came later.
    fn lies_in(&self, whole: &Run) -> bool {
        let end = whole.first + whole.pages;
        self.depth > whole.depth && whole.first <= self.first && self.first + self.pages <= end
    }

    /// Where it is mapped.
    pub fn mapped(&self) -> impl Iterator<Item = MapName> + use<> {
        self.maps.into_iter().filter(|map| *map != MapName::None)
    }
}

/// All runs.
#[derive(Debug)]
pub struct Runs {
    /// The pool; names are what capabilities hold.
    pub pool: Pool<Run, RUNS>,
}

impl Runs {
    /// None.
    pub const fn new() -> Self {
        Runs { pool: Pool::new(SHARED_HOME) }
    }

    /// The run with this name.
    pub fn get(&self, name: u64) -> Result<&Run, Refusal> {
        self.pool.get(Id::from_word(name)).ok_or(Refusal::Gone)
    }

    /// The same, for changing.
    pub fn get_mut(&mut self, name: u64) -> Result<&mut Run, Refusal> {
        self.pool.get_mut(Id::from_word(name)).ok_or(Refusal::Gone)
    }

    /// Pages `first..first+count` of a run that may be used: inside it, and not split off.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub fn check(&self, name: u64, first: u64, count: u64) -> Result<Page, Refusal> {
        let run = self.get(name)?;
        let end = first.checked_add(count).filter(|end| *end <= run.pages).ok_or(Refusal::OutOfRange)?;
        if count == 0 {
            return Err(Refusal::OutOfRange);
        }
        if run.use_ != Use::Memory || run.taking != Taking::No {
            return Err(Refusal::BadState);
        }
        let (from, to) = (run.first + first, run.first + end);
        if run.parts == 0 {
            return Ok(from);
        }
        for id in self.pool.names() {
            let Some(other) = self.pool.get(id) else { continue };
            if other.parent == name && other.first < to && other.first + other.pages > from {
                return Err(Refusal::Occupied);
            }
        }
        Ok(from)
    }

    /// Splits a part off.
    pub fn split(&mut self, name: u64, first: u64, count: u64) -> Result<u64, Refusal> {
        let page = self.check(name, first, count)?;
        let run = *self.get(name)?;
        if run.mapped().next().is_some() && !run.constant {
            // What is mapped as part of the old run could not be found again under the new one.
            return Err(Refusal::BadState);
        }
        let depth = run.depth.checked_add(1).ok_or(Refusal::Quota)?;
        let maps = [MapName::None; MAPS];
        let part = Run { first: page, pages: count, parent: name, parts: 0, depth, cursor: 0, maps, ..run };
        let part = self.pool.insert(part).ok_or(Refusal::Quota)?;
        // A run without parts is checked without looking for them.
        self.get_mut(name)?.parts += 1;
        Ok(part.0)
    }

    /// A map is gone: no run is in it any more.
    pub fn forget_map(&mut self, map: MapName) {
        self.pool.each_mut(|run| run.forget(map));
    }

    /// Begins to take back a run and all that was ever split off it. Says whether it had not begun before.
    pub fn begin_taking(&mut self, name: u64) -> Result<bool, Refusal> {
        let whole = *self.get(name)?;
        if whole.taking != Taking::No {
            return Ok(false);
        }
        self.pool.each_mut(|run| {
            if run.lies_in(&whole) && run.taking == Taking::No {
                run.taking = Taking::Begun;
            }
        });
        self.get_mut(name)?.taking = Taking::Begun;
        Ok(true)
    }

    /// Whether a thread's registers are saved in this run or in what was split off it.
    pub fn has_registers(&self, name: u64) -> Result<bool, Refusal> {
        let whole = *self.get(name)?;
        let mut parts = self.pool.names().filter_map(|id| self.pool.get(id)).filter(|run| run.lies_in(&whole));
        Ok(whole.use_ == Use::Registers || parts.any(|run| run.use_ == Use::Registers))
    }

    /// The deepest of what was split off a run, directly or not; itself when nothing is.
    pub fn deepest(&self, name: u64) -> Result<u64, Refusal> {
        let whole = *self.get(name)?;
        let parts = self.pool.names().filter_map(|id| Some((id.0, self.pool.get(id)?)));
        let deepest = parts.filter(|(_, run)| run.lies_in(&whole)).max_by_key(|(_, run)| run.depth);
        Ok(deepest.map_or(name, |(name, _)| name))
    }

    /// Ends a run: its pages are those of what it was split off again.
    pub fn join(&mut self, name: u64) {
        let Ok(run) = self.get(name).copied() else { return };
        self.pool.remove(Id::from_word(name));
        if let Ok(parent) = self.get_mut(run.parent) {
            parent.parts = parent.parts.saturating_sub(1);
        }
    }

    /// A run was taken back: it can be used, unless what it was split off is being taken back too.
    pub fn taken(&mut self, name: u64) -> Result<(), Refusal> {
        let parent = self.get(name)?.parent;
        let goes_on = self.get(parent).is_ok_and(|parent| parent.taking != Taking::No);
        self.get_mut(name)?.taking = if goes_on { Taking::Begun } else { Taking::No };
        Ok(())
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_split_off_is_not_the_old_runs_any_more() {
        let mut runs = Runs::new();
        let whole = runs.pool.insert(Run { first: 100, pages: 50, ..Run::EMPTY }).expect("room").0;
        let part = runs.split(whole, 10, 5).expect("free");
        assert_eq!(runs.check(part, 0, 5), Ok(110));
        assert_eq!(runs.check(part, 0, 6), Err(Refusal::OutOfRange));
        assert_eq!(runs.check(whole, 0, 10), Ok(100));
        assert_eq!(runs.check(whole, 14, 1), Err(Refusal::Occupied));
        assert_eq!(runs.check(whole, 15, 35), Ok(115));
        assert_eq!(runs.check(whole, 1, u64::MAX), Err(Refusal::OutOfRange));
        assert_eq!(runs.split(whole, 0, 11), Err(Refusal::Occupied));
        assert!(runs.get(whole).is_ok_and(|run| run.parts == 1) && runs.get(part).is_ok_and(|run| run.parts == 0));
    }

    #[test]
    fn a_part_that_is_still_being_zeroed_goes_with_its_whole_or_is_not_used_before_it() {
        let mut runs = Runs::new();
        let whole = runs.pool.insert(Run { first: 100, pages: 50, ..Run::EMPTY }).expect("room").0;
        let part = runs.split(whole, 10, 20).expect("free");
        runs.get_mut(part).expect("it is there").taking = Taking::Cleaned(5);
        assert_eq!(runs.check(part, 0, 1), Err(Refusal::BadState));
        assert_eq!(runs.begin_taking(whole), Ok(true));
        assert_eq!(runs.deepest(whole), Ok(part));
        // Whoever zeroes it finishes first, or finds it gone.
        runs.taken(part).expect("it is there");
        assert_eq!(runs.check(part, 0, 1), Err(Refusal::BadState));
        runs.join(part);
        assert_eq!(runs.get(part), Err(Refusal::Gone));
    }

    #[test]
    fn what_was_split_off_is_taken_back_from_the_deepest_on_and_cannot_be_used_meanwhile() {
        let mut runs = Runs::new();
        let whole = runs.pool.insert(Run { first: 100, pages: 50, ..Run::EMPTY }).expect("room").0;
        let beside = runs.split(whole, 0, 10).expect("free");
        let part = runs.split(whole, 10, 20).expect("free");
        let inner = runs.split(part, 0, 20).expect("all of it");
        assert_eq!(runs.begin_taking(part), Ok(true));
        assert_eq!(runs.begin_taking(part), Ok(false));
        assert_eq!(runs.check(inner, 0, 1), Err(Refusal::BadState));
        assert_eq!(runs.split(part, 0, 1), Err(Refusal::BadState));
        assert_eq!((runs.check(beside, 0, 1), runs.check(whole, 30, 1)), (Ok(100), Ok(130)));
        assert_eq!(runs.deepest(part), Ok(inner));
        runs.join(inner);
        assert_eq!(runs.deepest(part), Ok(part));
        runs.taken(part).expect("it is there");
        assert_eq!(runs.split(part, 0, 20).map(|_| ()), Ok(()));
        assert_eq!(runs.begin_taking(whole), Ok(true));
        assert_eq!(runs.check(beside, 0, 1), Err(Refusal::BadState));
        runs.taken(beside).expect("it is there");
        assert_eq!(runs.check(beside, 0, 1), Err(Refusal::BadState), "what it was split off is still being taken back");
    }
}
