// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on runs of memory: split, tell; and the life of the tables that maps are made of.

use super::{Call, Done};
use crate::cap::Cap;
use crate::frame::{MapName, Run, Taking, Use};
use crate::machine::{Machine, Stale};
use crate::shared::Control;
use crate::space::{LIMIT, Space};
use trellis_idl::kernel::{Access, Kind, Refusal, Rights};

/// Pages that are zeroed in one go, when something is taken back or split off: bounds the time that others wait for the
/// lock.
pub(super) const CLEAN_PAGES: u64 = 1024;

impl<M: Machine> Call<'_, M> {
    pub(super) fn frames_split(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        let mut control = self.shared.control.lock();
        self.check_empty(self.table, self.a[3])?;
        let part = control.runs.split(cap.name, self.a[1], self.a[2])?;
        control.runs.get_mut(part)?.taking = Taking::Cleaned(0);
        // Nobody has it yet, and others want the lock. It is gone if what it is split off is taken back meanwhile.
        while !self.clean(control.runs.get_mut(part)?) {
            drop(control);
            control = self.shared.control.lock();
        }
        control.runs.taken(part)?;
        let given = self.check_empty(self.table, self.a[3]);
        let given = given.and_then(|()| self.put(&control, self.a[3], Kind::Frames, cap.word.rights(), part));
        given.inspect_err(|_| control.runs.join(part))?;
        Ok(0)
    }

    /// Zeroes some of the pages of a run that nobody reaches. Says whether all are.
    pub(super) fn clean(&mut self, run: &mut Run) -> bool {
        let done = if let Taking::Cleaned(done) = run.taking { done } else { 0 };
        let left = if run.device || run.constant { 0 } else { run.pages - done };
        let step = left.min(CLEAN_PAGES);
        self.machine.zero(run.first + done, step);
        run.taking = Taking::Cleaned(done + step);
        step == left
    }

    pub(super) fn frames_info(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights(0))?;
        let control = self.shared.control.lock();
        let run = control.runs.get(cap.name)?;
        let first = if cap.word.rights().covers(Rights::CONTROL) { run.first } else { 0 };
        self.with(run.pages, [first, u64::from(run.device)])
    }

    /// A map with nothing in it, under a tag of its own, whose tables are a whole run but for its last `kept` pages.
    pub(super) fn begin_map(&mut self, control: &mut Control, tables: u64, kept: u64) -> Result<Space, Refusal> {
        let run = *control.runs.get(tables)?;
        control.runs.check(tables, 0, run.pages)?;
        if run.device || run.constant || run.mapped().next().is_some() {
            return Err(Refusal::BadArgument);
        }
        let tag = control.take_tag().ok_or(Refusal::Quota)?;
        let space = Space::new(self.machine, tag, run.first, run.pages.saturating_sub(kept)).inspect_err(|_| control.give_tag(tag))?;
        // A walker that still had this tag from the last one that bore it may have looked at anything since.
        self.machine.invalidate(Stale { tag, root: space.root, first: 0, pages: LIMIT });
        control.runs.get_mut(tables)?.use_ = Use::Tables;
        Ok(space)
    }

    /// Nobody runs in a map any more: it is emptied, and its tag is free.
    pub(super) fn end_map(&mut self, control: &mut Control, space: &mut Space, map: MapName) {
        let stale = space.clear(self.machine);
        self.machine.invalidate(stale);
        control.give_tag(space.tag);
        control.runs.forget_map(map);
        *space = Space::EMPTY;
    }

    /// Some of the tables of a map that is gone become memory again, without what stood in them. Says whether all are.
    pub(super) fn give_tables_back(&mut self, control: &mut Control, tables: u64) -> bool {
        let Ok(run) = control.runs.get_mut(tables) else { return true };
        if run.use_ != Use::Tables {
            return true;
        }
        let (done, first, pages) = (run.cursor, run.first, run.pages);
        let step = (pages - done).min(CLEAN_PAGES);
        run.cursor = done + step;
        let all = run.cursor == pages;
        if all {
            run.use_ = Use::Memory;
            run.cursor = 0;
        }
        self.machine.zero(first + done, step);
        all
    }

    /// What a mapping may allow, given the rights of the frames' capability.
    pub(super) fn access_of(cap: Cap, wanted: u64, device: bool, constant: bool) -> Result<Access, Refusal> {
        if wanted & !7 != 0 {
            return Err(Refusal::BadArgument);
        }
        let held = (cap.word.rights().0 & 7) as u64;
        if wanted & !held != 0 || (constant && wanted & Access::WRITE.0 != 0) {
            return Err(Refusal::MissingRight);
        }
        Ok(if device { Access(wanted).with(Access::DEVICE) } else { Access(wanted) })
    }

    /// What any mapping of these frames may allow.
    pub(super) fn most_of(cap: Cap) -> Access {
        Access(u64::from(cap.word.rights().0 & 7))
    }
}
