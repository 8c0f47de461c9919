// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who is told of what a view forbids: the guest's monitors, each by its session.
//!
//! All that watch a guest's memory do so in views made for that, pages of their own in each: a vCPU is in one view at a
//! time, so they share one and cannot take the guest out of it while others watch there. What a monitor asks sets a state,
//! so that the one that comes after it may ask the same again. [`Recent`] makes the decision short for what was found once.

use crate::map::{GUEST, Map};
use crate::patch::{Setting, Watcher};
use crate::view::{CHUNK, Failure, View, Views, put, range_of, wanted};
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{Access, Answer, Exit, ExitHeader, Refusal, SESSIONS};
use trellis_idl::layout::{badge as badges, slot};
use trellis_idl::plan::{MAX_RULES, MAX_VCPUS};
use trellis_idl::wire::ViewAccess;
use trellis_runtime::{Reply, System};

/// Views in which one session watches at most.
pub const MOST_VIEWS: usize = 4;
/// Stretches of pages that one session watches at most: what the rules of one monitor can make. With as many old ones, and as
/// many of each other session, there is room for all.
pub const MOST_STRETCHES: usize = 2 * MAX_RULES - 1;

/// Sessions that watch in a view.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watchers(u8);

impl Watchers {
    /// None.
    pub const NOBODY: Watchers = Watchers(0);

    /// This one alone.
    const fn only(session: u8) -> Watchers {
        Watchers(1 << (session & 7))
    }

    const fn has(self, session: u8) -> bool {
        self.0 & Self::only(session).0 != 0
    }

    const fn with(self, session: u8) -> Watchers {
        Watchers(self.0 | Self::only(session).0)
    }

    const fn without(self, session: u8) -> Watchers {
        Watchers(self.0 & !Self::only(session).0)
    }
}

impl Views {
    /// A session watches in a view, which is made if it is not there. What it watched there before is old.
    pub fn join(&mut self, system: &impl System, session: u8, view: u64) -> Result<(), Refusal> {
        if view == 0 || u64::from(session) >= SESSIONS {
            return Err(Refusal::BadArgument);
        }
        let (view, found) = match self.view(view) {
            Ok((_, View { watchers: Watchers::NOBODY, .. })) => return Err(Refusal::Occupied),
            Ok((view, found)) if found.watchers.has(session) => {
                self.patches.age(view, session);
                return Ok(());
            }
            Err(refusal) if refusal != Refusal::NotMapped => return Err(refusal),
            _ if self.each().filter(|view| self.at(*view).watchers.has(session)).count() >= MOST_VIEWS => {
                return Err(Refusal::Quota);
            }
            Ok(found) => found,
            Err(_) => {
                let made = self.create(system, Some(view), ViewAccess::DEFAULT, false)?;
                (made, self.at(made))
            }
        };
        self.set(view, View { watchers: found.watchers.with(session), ..found });
        Ok(())
    }

    /// A view in which this session watches.
    fn own(&self, session: u8, view: u64) -> Result<u16, Refusal> {
        match self.view(view) {
            Ok((index, found)) if found.watchers.has(session) => Ok(index),
            _ => Err(Refusal::MissingRight),
        }
    }

    /// Allows only this access to pages; anything else is the watcher's event. Back: pages done, at most [`CHUNK`].
    pub fn watch(
        &mut self, system: &impl System, map: &Map, watcher: Watcher, view: u64, (first, pages): (u64, u64),
        access: ViewAccess,
    ) -> Result<u64, Failure> {
        let session = watcher.session();
        let fail = |refusal| Failure { refusal, page: first };
        let view = self.own(session, view).map_err(fail)?;
        if access != ViewAccess::DEFAULT && access.0 & !ViewAccess::ALL.0 != 0 {
            return Err(fail(Refusal::BadArgument));
        }
        let pages = pages.min(CHUNK);
        let (from, to) = range_of(map, first, pages)?;
        if let Some(page) = self.first_of_others(view, from, to, session) {
            return Err(Failure { refusal: Refusal::Occupied, page: page.into() });
        }
        let setting = match access {
            ViewAccess::DEFAULT => Setting::NONE,
            access => Setting { access, session: Some(watcher), ..Setting::NONE },
        };
        if setting != Setting::NONE && self.patches.of_session(session) >= MOST_STRETCHES {
            return Err(fail(Refusal::Quota));
        }
        self.patches.edit(view, from, to, |_, _| setting).map_err(fail)?;
        self.changed(system, view, (first, pages)).map_err(fail)?;
        Ok(pages)
    }

    /// The first page of a range that has something of its own, but not from this session.
    fn first_of_others(&self, view: u16, from: u32, to: u32, session: u8) -> Option<u32> {
        let mut page = from;
        while page < to {
            let (setting, (_, stop)) = self.patches.around(view, page, (page, to));
            if setting != Setting::NONE && !setting.is_of(session) {
                return Some(page);
            }
            page = stop;
        }
        None
    }

    /// Puts a vCPU (all ones: every vCPU, and what is old in the view is watched no more) into a view of the session's, or into
    /// view 0.
    pub fn enter(&mut self, system: &impl System, session: u8, vcpu: u64, view: u64) -> Result<(), Refusal> {
        let view = if view == 0 { 0 } else { self.own(session, view)? };
        let vcpus = if vcpu == u64::MAX { 0..u64::from(self.vcpus) } else { vcpu..vcpu.saturating_add(1) };
        // All are looked at before one is moved.
        for one in vcpus.clone() {
            match GUEST.view_of(system, one) {
                Ok(now) if self.may_leave(session, now, view) => {}
                Ok(_) => return Err(Refusal::Occupied),
                Err(Refusal::NotMapped) if vcpu == u64::MAX => {}
                Err(refusal) => return Err(refusal),
            }
        }
        for one in vcpus {
            match put(system, one, view) {
                // There need not be one for each number.
                Err(Refusal::NotMapped) if vcpu == u64::MAX => {}
                other => other?,
            }
        }
        while let (true, Some((from, to))) = (vcpu == u64::MAX, self.patches.forget_old(view, session)) {
            self.changed(system, view, (from.into(), (to - from).into()))?;
        }
        Ok(())
    }

    /// Whether a vCPU may go from one view to another, as far as this session is concerned.
    fn may_leave(&self, session: u8, now: u16, next: u16) -> bool {
        now == 0 || now == next || self.at(now).watchers == Watchers::only(session)
    }

    /// A session watches in a view no more. The view goes with the last one.
    pub fn leave(&mut self, system: &impl System, session: u8, view: u64) -> Result<(), Refusal> {
        let view = self.own(session, view)?;
        let found = self.at(view);
        let watchers = found.watchers.without(session);
        if watchers == Watchers::NOBODY {
            for vcpu in 0..u64::from(self.vcpus) {
                if GUEST.view_of(system, vcpu) == Ok(view) {
                    put(system, vcpu, 0)?;
                }
            }
            return self.destroy(system, view.into());
        }
        self.patches.forget_session(view, session);
        self.set(view, View { watchers, ..found });
        GUEST.reset_view(system, view)
    }
}

/// What becomes of a watched access of which nobody need be asked: it happens. One step in the host map does it; where the
/// syndrome does not say what the access moves (of fetches and walks it never does), the instruction may be an exclusive access,
/// which no step gets over: the vcpu server knows.
#[inline(always)]
pub(crate) fn allowed(badge: u64, exit: &Exit) -> Reply {
    if exit.header.width().is_some() {
        return Reply::Value(Answer::RETRY.step(0), 0);
    }
    let header = ExitHeader(exit.header.0 | ExitHeader::ALLOWED);
    Reply::Forward(slot::VCPU_SERVER + u64::from(badges::index(badge)), Exit { header, ..*exit }.to_words())
}

/// Pages that a vCPU remembers.
const REMEMBERED: usize = 16;

/// Pages that were found to be watched, for each vCPU: what was found once need not be looked for under the lock again.
/// An entry is one word, so that it is never half of one thing and half of another: page in bits 0–26, view in 27–35,
/// the access that is allowed in 36–38, the watcher in 39–43, and 63 = there is one.
#[derive(Debug)]
pub(crate) struct Recent([[AtomicU64; REMEMBERED]; MAX_VCPUS], [AtomicU64; MAX_VCPUS]);

const THERE: u64 = 1 << 63;

impl Recent {
    pub const fn new() -> Recent {
        Recent([const { [const { AtomicU64::new(0) }; REMEMBERED] }; MAX_VCPUS], [const { AtomicU64::new(0) }; MAX_VCPUS])
    }

    /// The number of a vCPU's next event, from 1 on. Its thread alone counts it, so that no word is fought for.
    #[inline(always)]
    pub fn next(&self, badge: u64) -> u64 {
        let count = &self.1[badge as usize % MAX_VCPUS];
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Relaxed);
        next
    }

    #[inline(always)]
    fn entry(&self, badge: u64, page: u64) -> &AtomicU64 {
        &self.0[badge as usize % MAX_VCPUS][page as usize % REMEMBERED]
    }

    /// Whose event this access is, as far as is known.
    #[inline(always)]
    pub fn find(&self, badge: u64, header: ExitHeader, page: u64) -> Option<Watcher> {
        let entry = self.entry(badge, page).load(Ordering::Relaxed);
        let wanted = wanted(header).0;
        // Executing, at either level, is one bit of what is allowed.
        let wanted = wanted | (wanted & 0x30).wrapping_neg() >> 61 & 4;
        let is_this = entry & (THERE | (1 << 36) - 1) == THERE | u64::from(header.view()) << 27 | page;
        let forbidden = entry >> 36 & 7 & wanted == 0 && header.has(ExitHeader::PERMISSION);
        if is_this && forbidden { Some(Watcher::from_bits((entry >> 39) as u8)) } else { None }
    }

    /// A page was found to be watched. To be called while nobody can change that.
    pub fn note(&self, badge: u64, view: u16, page: u64, allowed: Access, watcher: Watcher) {
        let key = THERE | u64::from(view) << 27 | page;
        let word = key | (allowed.0 & 7) << 36 | u64::from(watcher.bits()) << 39;
        self.entry(badge, page).store(word, Ordering::Relaxed);
    }

    /// Something has changed. To be called while nobody notes anything.
    pub fn forget(&self) {
        self.0.iter().flatten().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: u64 = 3 << 32;
    const READ_ONLY: Access = Access::READ;

    fn header(flags: u64) -> ExitHeader {
        ExitHeader(flags | VIEW | ExitHeader::PERMISSION)
    }

    #[test]
    fn what_was_found_is_found_again_by_the_same_vcpu_alone() {
        let recent = Recent::new();
        recent.note(1, 3, 0x40_0123, READ_ONLY, Watcher::told(2));
        assert_eq!(recent.find(1, header(ExitHeader::WRITE), 0x40_0123), Some(Watcher::told(2)));
        assert_eq!(recent.find(2, header(ExitHeader::WRITE), 0x40_0123), None);
        for page in [0x40_0124, 0x40_0133, 0x40_0023, 0] {
            assert_eq!(recent.find(1, header(ExitHeader::WRITE), page), None, "{page:#x}");
        }
        let other_view = ExitHeader(4 << 32 | ExitHeader::PERMISSION | ExitHeader::WRITE);
        assert_eq!(recent.find(1, other_view, 0x40_0123), None);
        recent.forget();
        assert_eq!(recent.find(1, header(ExitHeader::WRITE), 0x40_0123), None);
    }

    #[test]
    fn only_what_is_forbidden_is_an_event() {
        let recent = Recent::new();
        let kinds = [
            (0, Access::READ), (ExitHeader::WRITE, Access::WRITE), (ExitHeader::FETCH, Access::EXECUTE),
            (ExitHeader::FETCH | ExitHeader::USER, Access::EXECUTE),
        ];
        for allowed in (0..8).map(Access) {
            recent.note(0, 3, 77, allowed, Watcher::asked(0));
            for (flags, needs) in kinds {
                let found = recent.find(0, header(flags), 77);
                assert_eq!(found.is_none(), allowed.covers(needs), "{allowed:?} {flags:#x}");
                assert_eq!(recent.find(0, ExitHeader(flags | VIEW), 77), None, "its leaf is only absent");
            }
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_was_noted() {
        let recent = Recent::new();
        assert_eq!(recent.find(0, ExitHeader(ExitHeader::PERMISSION), 0), None);
        recent.note(u64::MAX, 511, (1 << 27) - 1, Access(0), Watcher::told(7));
        let last = ExitHeader(511 << 32 | ExitHeader::PERMISSION);
        assert_eq!(recent.find(u64::MAX, last, (1 << 27) - 1), Some(Watcher::told(7)));
        recent.note(0, 3, 77, Access(0), Watcher::asked(2).without_walks());
        assert_eq!(recent.find(0, header(0), 77), Some(Watcher::asked(2).without_walks()));
    }
}
