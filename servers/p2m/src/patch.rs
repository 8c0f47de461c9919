// SPDX-License-Identifier: MIT OR Apache-2.0
//! What pages of views have of their own: stretches of pages in order, so that a range costs what a page costs.

use heapless::Vec;
use trellis_idl::kernel::Refusal;
use trellis_idl::wire::ViewAccess;

/// Stretches that all views of a guest together can have.
pub const PATCHES: usize = 512;

/// Whose event an access is: a session's, which is asked, or told while the access happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watcher(u8);

impl Watcher {
    const TOLD: u8 = 8;
    const NO_WALKS: u8 = 16;

    /// This session is asked.
    pub const fn asked(session: u8) -> Watcher {
        Watcher(session & 7)
    }

    /// This session is told.
    pub const fn told(session: u8) -> Watcher {
        Watcher(session & 7 | Self::TOLD)
    }

    /// The same, and walks of the guest's tables are none.
    pub const fn without_walks(self) -> Watcher {
        Watcher(self.0 | Self::NO_WALKS)
    }

    /// As five bits say it.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Watcher {
        Watcher(bits & 31)
    }

    /// Five bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The session.
    #[inline(always)]
    pub const fn session(self) -> u8 {
        self.0 & 7
    }

    /// Whether it need not be asked, of some accesses or of all.
    #[inline(always)]
    pub const fn has_wishes(self) -> bool {
        self.0 & (Self::TOLD | Self::NO_WALKS) != 0
    }

    /// Whether it need not be asked.
    pub const fn is_told(self) -> bool {
        self.0 & Self::TOLD != 0
    }

    /// Whether walks of the guest's tables are none.
    pub const fn ignores_walks(self) -> bool {
        self.0 & Self::NO_WALKS != 0
    }
}

/// What a page has of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Its access; `DEFAULT` = the view's.
    pub access: ViewAccess,
    /// The guest itself is told of what is forbidden.
    pub notify: bool,
    /// The page whose frame is shown instead.
    pub shows: Option<u32>,
    /// Out of the guest's reach (of the host map only).
    pub withdrawn: bool,
    /// The session whose events are what is forbidden.
    pub session: Option<Watcher>,
    /// An earlier monitor of that session asked for it, and this one has not yet.
    pub is_old: bool,
}

impl Setting {
    /// Nothing.
    pub const NONE: Setting =
        Setting { access: ViewAccess::DEFAULT, notify: false, shows: None, withdrawn: false, session: None, is_old: false };

    /// Whether its events are this session's.
    pub fn is_of(&self, session: u8) -> bool {
        self.session.is_some_and(|watcher| watcher.session() == session)
    }

    /// The setting of the page so far behind the one that has this.
    const fn behind(self, pages: u32) -> Setting {
        match self.shows {
            Some(page) => Setting { shows: Some(page + pages), ..self },
            None => self,
        }
    }
}

/// A stretch of pages of a view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch {
    view: u16,
    first: u32,
    end: u32,
    /// Of its first page; frames that are shown instead follow one another.
    setting: Setting,
}

impl Patch {
    fn cut(self, first: u32, end: u32) -> Patch {
        Patch { first, end, setting: self.setting.behind(first - self.first), ..self }
    }
}

/// All stretches, in order of view and page; they do not overlap.
#[derive(Debug, Default)]
pub struct Patches {
    all: Vec<Patch, PATCHES>,
}

impl Patches {
    /// None.
    pub const fn new() -> Patches {
        Patches { all: Vec::new() }
    }

    /// Where the first stretch of a view stands that ends behind a page.
    fn position(&self, view: u16, page: u32) -> usize {
        let key = |view: u16, page: u32| u64::from(view) << 32 | u64::from(page);
        self.all.partition_point(|patch| key(patch.view, patch.end) <= key(view, page))
    }

    /// What a page has of its own, and the stretch of pages around it, within `range`, that have the same.
    pub fn around(&self, view: u16, page: u32, range: (u32, u32)) -> (Setting, (u32, u32)) {
        let at = self.position(view, page);
        let before = at.checked_sub(1).and_then(|at| self.all.get(at)).filter(|patch| patch.view == view);
        match self.all.get(at).filter(|patch| patch.view == view) {
            Some(patch) if patch.first <= page => {
                (patch.setting.behind(page - patch.first), (patch.first.max(range.0), patch.end.min(range.1)))
            }
            next => {
                let first = before.map_or(range.0, |patch| patch.end.max(range.0));
                let end = next.map_or(range.1, |patch| patch.first.min(range.1));
                (Setting::NONE, (first, end))
            }
        }
    }

    /// What a page has of its own.
    pub fn of(&self, view: u16, page: u32) -> Setting {
        self.around(view, page, (0, u32::MAX)).0
    }

    /// Whether [`Patches::edit`] would find room for these pages.
    pub fn check_room(&self, view: u16, first: u32, end: u32) -> Result<(), Refusal> {
        // Two are cut at the edges, and each gap between those inside is a stretch of its own.
        let inside = self.position(view, end) - self.position(view, first) + 1;
        if self.all.len() + inside + 3 > PATCHES { Err(Refusal::Quota) } else { Ok(()) }
    }

    /// Changes what pages `first..end` have of their own. `change` gets the setting and how far behind `first` it is.
    pub fn edit(
        &mut self, view: u16, first: u32, end: u32, change: impl Fn(Setting, u32) -> Setting,
    ) -> Result<(), Refusal> {
        self.check_room(view, first, end)?;
        self.cut(view, first);
        self.cut(view, end);
        let mut page = first;
        while page < end {
            let (setting, (_, stop)) = self.around(view, page, (page, end));
            let at = self.position(view, page);
            let there = self.all.get(at).is_some_and(|patch| patch.view == view && patch.first <= page);
            let setting = change(setting, page - first);
            let patch = Patch { view, first: page, end: stop, setting };
            match (there, setting == Setting::NONE) {
                (true, true) => drop(self.all.remove(at)),
                (true, false) => self.all[at] = patch,
                (false, true) => {}
                // There is room: it was looked at above.
                (false, false) => drop(self.all.insert(at, patch)),
            }
            page = stop;
        }
        self.join(view, first, end);
        Ok(())
    }

    /// Makes a page the first of a stretch, if it lies in one.
    fn cut(&mut self, view: u16, page: u32) {
        let at = self.position(view, page);
        let Some(patch) = self.all.get(at).copied() else { return };
        if patch.view == view && patch.first < page {
            self.all[at] = patch.cut(patch.first, page);
            // There is room: `edit` looked.
            let _ = self.all.insert(at + 1, patch.cut(page, patch.end));
        }
    }

    /// Joins stretches that continue one another, from the one before `first` to the one behind `end`.
    fn join(&mut self, view: u16, first: u32, end: u32) {
        let mut at = self.position(view, first.saturating_sub(1));
        while let (Some(one), Some(next)) = (self.all.get(at).copied(), self.all.get(at + 1).copied()) {
            if one.view != view || one.first > end {
                return;
            }
            let same = next.view == view && next.first == one.end && one.setting.behind(one.end - one.first) == next.setting;
            if same {
                self.all[at].end = next.end;
                self.all.remove(at + 1);
            } else {
                at += 1;
            }
        }
    }

    /// Forgets what pages of a view have of their own.
    pub fn forget(&mut self, view: u16) {
        self.all.retain(|patch| patch.view != view);
    }

    /// Forgets what a session watches in a view.
    pub fn forget_session(&mut self, view: u16, session: u8) {
        self.all.retain(|patch| patch.view != view || !patch.setting.is_of(session));
    }

    /// Stretches that a session watches, in all views, beside the old ones.
    pub fn of_session(&self, session: u8) -> usize {
        self.all.iter().filter(|patch| patch.setting.is_of(session) && !patch.setting.is_old).count()
    }

    /// What a session watches in a view is old from now on.
    pub fn age(&mut self, view: u16, session: u8) {
        let own = |patch: &&mut Patch| patch.view == view && patch.setting.is_of(session);
        self.all.iter_mut().filter(own).for_each(|patch| patch.setting.is_old = true);
        // Old and new stretches were told apart until now.
        self.join(view, 0, u32::MAX);
    }

    /// Forgets a stretch that is old for a session in a view: first page, and the one behind its last.
    pub fn forget_old(&mut self, view: u16, session: u8) -> Option<(u32, u32)> {
        let is_old = |patch: &Patch| patch.view == view && patch.setting.is_of(session) && patch.setting.is_old;
        let patch = self.all.remove(self.all.iter().position(is_old)?);
        Some((patch.first, patch.end))
    }

    /// Whether some page of a view has something of its own.
    pub fn has_any(&self, view: u16) -> bool {
        self.all.get(self.position(view, 0)).is_some_and(|patch| patch.view == view)
    }

    /// Whether some page of a view shows the frame of another.
    pub fn shows_others(&self, view: u16) -> bool {
        self.all.iter().any(|patch| patch.view == view && patch.setting.shows.is_some())
    }

    /// How many pages of views show the frame of this page instead of their own.
    pub fn references(&self, page: u32) -> usize {
        let shows = |patch: &&Patch| {
            patch.setting.shows.is_some_and(|first| page.checked_sub(first).is_some_and(|n| n < patch.end - patch.first))
        };
        self.all.iter().filter(shows).count()
    }

    /// Stretches in use.
    pub fn count(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn setting() -> impl Strategy<Value = Setting> {
        (0..4u16, any::<bool>(), prop::option::of(100..140u32)).prop_map(|(access, notify, shows)| Setting {
            access: if access == 3 { ViewAccess::DEFAULT } else { ViewAccess(access) },
            notify,
            shows,
            withdrawn: false,
            session: None,
            is_old: false,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stretches_say_what_a_list_of_pages_says(
            edits in prop::collection::vec((0..2u16, 0..30u32, 1..12u32, setting()), 1..20),
        ) {
            let mut patches = Patches::new();
            let mut plain: BTreeMap<(u16, u32), Setting> = BTreeMap::new();
            for (view, first, pages, new) in edits {
                patches.edit(view, first, first + pages, |_, n| new.behind(n)).unwrap();
                for n in 0..pages {
                    plain.insert((view, first + n), new.behind(n));
                }
                for patch in patches.all.windows(2) {
                    prop_assert!((patch[0].view, patch[0].end) <= (patch[1].view, patch[1].first));
                }
                for view in 0..2 {
                    for page in 0..45 {
                        let expected = plain.get(&(view, page)).copied().unwrap_or(Setting::NONE);
                        let (found, (start, end)) = patches.around(view, page, (0, 45));
                        prop_assert_eq!(found, expected);
                        prop_assert!(start <= page && page < end);
                        for other in start..end {
                            let same = plain.get(&(view, other)).copied().unwrap_or(Setting::NONE);
                            prop_assert_eq!(same.access, expected.access);
                        }
                    }
                }
            }
            patches.forget(1);
            prop_assert!(!patches.has_any(1));
        }
    }

    #[test]
    fn room_is_looked_for_before_anything_changes() {
        let mut patches = Patches::new();
        let own = Setting { notify: true, ..Setting::NONE };
        let mut page = 0;
        while patches.edit(1, page, page + 1, |_, _| own).is_ok() {
            page += 2;
        }
        let before = patches.all.clone();
        assert_eq!(patches.edit(1, 1, 2, |s, _| Setting { shows: Some(7), ..s }), Err(Refusal::Quota));
        assert_eq!(patches.all, before);
        assert!(patches.count() > PATCHES - 5);
    }

    #[test]
    fn stretches_that_continue_one_another_are_one() {
        let mut patches = Patches::new();
        for page in 0..50 {
            patches.edit(2, page, page + 1, |_, _| Setting { shows: Some(1000 + page), ..Setting::NONE }).unwrap();
        }
        assert_eq!((patches.count(), patches.references(1049), patches.references(1050)), (1, 1, 0));
        assert_eq!(patches.of(2, 30).shows, Some(1030));
        patches.edit(2, 0, 50, |_, _| Setting::NONE).unwrap();
        assert_eq!(patches.count(), 0);
    }
}
