// SPDX-License-Identifier: MIT OR Apache-2.0
//! Alternative views of the guest's memory: what each shows and allows, and how the kernel's maps follow.
//!
//! What is said here is what counts; the kernel's map of a view is a cache of it. A change drops leaves, a fault fills
//! them in again, block by block. So a change is small however many pages it is about, a view costs little while nobody
//! is in it, and the kernel may drop leaves by itself when pages leave the host map. Rules: docs/decisions/0020.

use crate::log::Log;
use crate::map::{ANY, BLOCK, GIANT, GUEST, Map};
use crate::patch::{Patches, Setting, Watcher};
use crate::watch::Watchers;
use trellis_idl::kernel::{Access, Exit, ExitHeader, MAX_VIEWS, PAGE, Refusal};
use trellis_idl::wire::ViewAccess;
use trellis_runtime::System;

/// Pages that one call changes at most: bounds the time in the kernel and under the lock. Callers go on behind them.
pub const CHUNK: u64 = 16 * BLOCK;

/// A vCPU that has moved so often while it is looked for is left alone.
const MOVES: u32 = 8;

/// A view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct View {
    pub(crate) there: bool,
    pub(crate) shown: bool,
    /// Access of pages that have none of their own; `DEFAULT` = as the host map.
    pub(crate) default: ViewAccess,
    /// Sessions that watch in it; a view without any is not for watching.
    pub(crate) watchers: Watchers,
}

impl View {
    const NONE: View = View { there: false, shown: false, default: ViewAccess(0), watchers: Watchers::NOBODY };
}

/// A range that could not be changed: why, and the first page of which that is so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Why.
    pub refusal: Refusal,
    /// The first page that could not be done.
    pub page: u64,
}

/// What an access is that a view's map does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It may be tried again.
    Shown,
    /// An event of this watcher's; all that the page may be used for is this.
    Watched(Watcher, Access),
}

/// What a page of a view is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// The page whose frame it shows.
    pub page: u64,
    /// What it may be used for now; none = as the host map has it.
    pub access: Option<Access>,
    /// The guest itself is told of what is forbidden.
    pub notify: bool,
}

/// All views of a guest; 0 is its host map.
#[derive(Debug)]
pub struct Views {
    count: u16,
    pub(crate) vcpus: u8,
    views: [View; MAX_VIEWS as usize],
    pub(crate) patches: Patches,
    log: Log,
}

impl Default for Views {
    fn default() -> Self {
        Self::new()
    }
}

impl Views {
    /// Of no guest yet.
    pub const fn new() -> Views {
        Views { count: 0, vcpus: 0, views: [View::NONE; MAX_VIEWS as usize], patches: Patches::new(), log: Log::OFF }
    }

    /// Only the host map, of a guest that may have `count` views and has so many vCPUs.
    pub fn begin(&mut self, count: u16, vcpus: u8) {
        self.count = count.clamp(1, MAX_VIEWS as u16);
        self.vcpus = vcpus;
        self.views = [View::NONE; MAX_VIEWS as usize];
        self.views[0] = View { there: true, shown: true, default: ViewAccess::ALL, ..View::NONE };
        self.patches = Patches::new();
        self.log.stop();
    }

    /// Whether the host map is more than memory that may be used for anything.
    pub fn is_host_special(&self) -> bool {
        self.log.is_on() || self.patches.has_any(0)
    }

    pub(crate) fn view(&self, view: u64) -> Result<(u16, View), Refusal> {
        let index = u16::try_from(view).ok().filter(|view| *view < self.count).ok_or(Refusal::OutOfRange)?;
        match self.at(index) {
            View { there: false, .. } => Err(Refusal::NotMapped),
            there => Ok((index, there)),
        }
    }

    /// The same, but not the host map.
    fn other(&self, view: u64) -> Result<(u16, View), Refusal> {
        if view == 0 { Err(Refusal::BadArgument) } else { self.view(view) }
    }

    pub(crate) fn set(&mut self, view: u16, to: View) {
        let views = self.views.len();
        self.views[usize::from(view) % views] = to;
    }

    /// Views that are there, without the host map.
    pub(crate) fn each(&self) -> impl Iterator<Item = u16> + '_ {
        (1..self.count).filter(|view| self.at(*view).there)
    }

    pub(crate) fn at(&self, view: u16) -> View {
        self.views[usize::from(view) % self.views.len()]
    }

    // ── life ──

    /// Makes a view, at this index or the lowest free one.
    pub fn create(
        &mut self, system: &impl System, view: Option<u64>, default: ViewAccess, shown: bool,
    ) -> Result<u16, Refusal> {
        let wanted = match view {
            Some(view) => Some(u16::try_from(view).map_err(|_| Refusal::OutOfRange)?),
            None => None,
        };
        let view = GUEST.create_view(system, wanted)?;
        if shown && let Err(refusal) = GUEST.show_view(system, view, true) {
            GUEST.destroy_view(system, view)?;
            return Err(refusal);
        }
        self.patches.forget(view);
        self.set(view, View { there: true, shown, default, ..View::NONE });
        Ok(view)
    }

    /// Destroys a view that no vCPU is in.
    pub fn destroy(&mut self, system: &impl System, view: u64) -> Result<(), Refusal> {
        let (view, _) = self.other(view)?;
        if (0..u64::from(self.vcpus)).any(|vcpu| GUEST.view_of(system, vcpu) == Ok(view)) {
            return Err(Refusal::BadState);
        }
        GUEST.reset_view(system, view)?;
        // A vCPU may have entered it by itself meanwhile: then it stays, and fills again.
        GUEST.destroy_view(system, view)?;
        self.patches.forget(view);
        self.set(view, View::NONE);
        Ok(())
    }

    /// Forgets what pages of a view have of their own.
    pub fn reset(&mut self, system: &impl System, view: u64) -> Result<(), Refusal> {
        let (view, _) = self.other(view)?;
        self.patches.forget(view);
        GUEST.reset_view(system, view)
    }

    /// Drops the leaves of a view.
    pub fn flush(&mut self, system: &impl System, view: u64) -> Result<(), Refusal> {
        let (view, _) = self.other(view)?;
        GUEST.reset_view(system, view)
    }

    /// Every vCPU leaves, every view goes.
    pub fn end(&mut self, system: &impl System) -> Result<(), Refusal> {
        let vcpus = if self.each().next().is_some() { self.vcpus } else { 0 };
        for vcpu in 0..u64::from(vcpus) {
            match put(system, vcpu, 0) {
                Err(Refusal::NotMapped) => {}
                other => other?,
            }
        }
        for view in 1..self.count {
            if self.at(view).there {
                self.destroy(system, view.into())?;
            }
        }
        self.begin(self.count, self.vcpus);
        Ok(())
    }

    /// Puts a vCPU into a view, shown to the guest or not.
    pub fn switch(&self, system: &impl System, vcpu: u64, view: u64) -> Result<(), Refusal> {
        let (view, _) = self.view(view)?;
        put(system, vcpu, view)
    }

    /// Puts every vCPU into a view that the guest itself may enter.
    pub fn switch_all(&self, system: &impl System, view: u64) -> Result<(), Refusal> {
        let (view, found) = self.view(view)?;
        if !found.shown {
            return Err(Refusal::NotMapped);
        }
        for vcpu in 0..u64::from(self.vcpus) {
            match put(system, vcpu, view) {
                // There need not be one for each number.
                Err(Refusal::NotMapped) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The view that a vCPU is in.
    pub fn of(&self, system: &impl System, vcpu: u64) -> Result<u16, Refusal> {
        GUEST.view_of(system, vcpu)
    }

    /// Says whether the guest itself may enter a view.
    pub fn show(&mut self, system: &impl System, view: u64, shown: bool) -> Result<(), Refusal> {
        let (view, found) = self.other(view)?;
        GUEST.show_view(system, view, shown)?;
        self.set(view, View { shown, ..found });
        Ok(())
    }

    // ── what a view shows ──

    /// The default access of a view.
    pub fn default_of(&self, view: u64) -> Result<ViewAccess, Refusal> {
        self.view(view).map(|(_, view)| view.default)
    }

    /// Sets it. The host map's is everything, always.
    pub fn set_default(&mut self, system: &impl System, view: u64, default: ViewAccess) -> Result<(), Refusal> {
        let (view, found) = self.other(view)?;
        GUEST.reset_view(system, view)?;
        self.set(view, View { default, ..found });
        Ok(())
    }

    /// The access of a page, and whether it is the view's default.
    pub fn access(&self, map: &Map, view: u64, page: u64) -> Result<(ViewAccess, bool), Refusal> {
        let (index, found) = self.view(view)?;
        let own = self.patches.of(index, page_of(map, page)?).access;
        match own {
            ViewAccess::DEFAULT => match found.default {
                ViewAccess::DEFAULT => Ok((self.access(map, 0, page)?.0, true)),
                default => Ok((default, true)),
            },
            own => Ok((own, false)),
        }
    }

    /// Gives pages an access. Back: pages done, at most [`CHUNK`].
    pub fn set_access(
        &mut self, system: &impl System, map: &Map, view: u64, (first, pages): (u64, u64), access: ViewAccess,
    ) -> Result<u64, Failure> {
        let fail = |refusal| Failure { refusal, page: first };
        let (view, _) = self.view(view).map_err(fail)?;
        let pages = pages.min(CHUNK);
        let (from, to) = range_of(map, first, pages)?;
        if view == 0 {
            self.patches.check_room(0, from, to).map_err(fail)?;
            self.protect_host(system, map, (first, pages), access).map_err(fail)?;
        }
        self.patches.edit(view, from, to, |setting, _| Setting { access, ..setting }).map_err(fail)?;
        self.changed(system, view, (first, pages)).map_err(fail)?;
        Ok(pages)
    }

    /// Gives each page of a list an access. The first that fails ends it.
    pub fn set_access_list(
        &mut self, system: &impl System, map: &Map, view: u64, pages: &[u64], access: ViewAccess,
    ) -> Result<u64, Failure> {
        self.view(view).map_err(|refusal| Failure { refusal, page: pages.first().copied().unwrap_or(0) })?;
        for page in pages {
            self.set_access(system, map, view, (*page, 1), access)?;
        }
        Ok(pages.len() as u64)
    }

    /// Whether the guest itself is told of what is forbidden on a page.
    pub fn notify(&self, map: &Map, view: u64, page: u64) -> Result<bool, Refusal> {
        let (view, _) = self.view(view)?;
        Ok(self.patches.of(view, page_of(map, page)?).notify)
    }

    /// Sets it for pages. Back: pages done, at most [`CHUNK`].
    pub fn set_notify(
        &mut self, system: &impl System, map: &Map, view: u64, (first, pages): (u64, u64), notify: bool,
    ) -> Result<u64, Failure> {
        let fail = |refusal| Failure { refusal, page: first };
        let (view, _) = self.other(view).map_err(fail)?;
        let pages = pages.min(CHUNK);
        let (from, to) = range_of(map, first, pages)?;
        self.patches.edit(view, from, to, |setting, _| Setting { notify, ..setting }).map_err(fail)?;
        self.changed(system, view, (first, pages)).map_err(fail)?;
        Ok(pages)
    }

    /// Shows under pages of a view the frames of others from `shows` on, or their own again. Back: pages done, at most
    /// [`CHUNK`].
    pub fn remap(
        &mut self, system: &impl System, map: &Map, view: u64, (first, pages): (u64, u64), shows: Option<u64>,
    ) -> Result<u64, Failure> {
        let fail = |refusal| Failure { refusal, page: first };
        let (view, _) = self.other(view).map_err(fail)?;
        let pages = pages.min(CHUNK);
        let (from, to) = range_of(map, first, pages)?;
        let target = match shows {
            Some(page) => Some(range_of(map, page, pages)?.0),
            None => None,
        };
        let change = |setting, n| Setting { shows: target.map(|page| page + n), ..setting };
        self.patches.edit(view, from, to, change).map_err(fail)?;
        self.changed(system, view, (first, pages)).map_err(fail)?;
        Ok(pages)
    }

    /// Whether pages without an access of their own are as the host map has them.
    fn follows_host(&self, view: u16) -> bool {
        self.at(view).default == ViewAccess::DEFAULT
    }

    /// How often a page's frame is shown under other pages.
    pub fn references(&self, page: u64) -> usize {
        u32::try_from(page).map_or(0, |page| self.patches.references(page))
    }

    /// What a page of a view is now.
    pub fn shown(&self, map: &Map, view: u16, page: u32) -> Shown {
        self.shown_with(map, view, page, self.patches.of(view, page))
    }

    /// The same, of a page that has this of its own.
    #[inline(always)]
    fn shown_with(&self, map: &Map, view: u16, page: u32, setting: Setting) -> Shown {
        let default = self.at(view).default;
        let access = match setting.access {
            ViewAccess::DEFAULT if default == ViewAccess::DEFAULT && setting == Setting::NONE => None,
            ViewAccess::DEFAULT if default == ViewAccess::DEFAULT => Some(self.host_access(map, page)),
            ViewAccess::DEFAULT => default.now(),
            own => own.now(),
        };
        Shown { page: setting.shows.unwrap_or(page).into(), access, notify: setting.notify }
    }

    /// What the host map allows, apart from what is noted.
    fn host_access(&self, map: &Map, page: u32) -> Access {
        let access = self.access(map, 0, page.into()).map_or(ANY, |(access, _)| access.now().unwrap_or(ANY));
        access.normal()
    }

    // ── the kernel's maps follow ──

    /// Pages of a view have changed: it loses their leaves, and so do views that are as the host map.
    pub(crate) fn changed(&self, system: &impl System, view: u16, (first, pages): (u64, u64)) -> Result<(), Refusal> {
        if view != 0 {
            return drop_leaves(system, view, first, pages);
        }
        for other in self.each() {
            if self.follows_host(other) {
                drop_leaves(system, other, first, pages)?;
            }
        }
        Ok(())
    }

    /// Gives pages of the host map an access, those that are not withdrawn.
    fn protect_host(
        &self, system: &impl System, map: &Map, (first, pages): (u64, u64), access: ViewAccess,
    ) -> Result<(), Refusal> {
        let access = access.now().unwrap_or(ANY);
        // What is noted is writable again after the next write.
        let access = if self.log.is_on() { without_write(access) } else { access };
        self.populate_host(system, map, first, pages)?;
        GUEST.protect(system, 0, first, pages, access)
    }

    /// Makes sure that pages are in the host map, but for those that are withdrawn.
    fn populate_host(&self, system: &impl System, map: &Map, first: u64, pages: u64) -> Result<(), Refusal> {
        let end = first + pages;
        let mut page = first;
        while page < end {
            let (setting, (_, stop)) = self.patches.around(0, page as u32, (page as u32, end as u32));
            let stop = u64::from(stop);
            if !setting.withdrawn {
                map.populate(system, page, stop - page)?;
            }
            page = stop;
        }
        Ok(())
    }

    /// Gives pages of the host map what is said of them.
    fn restore_host(&self, system: &impl System, map: &Map, first: u64, pages: u64) -> Result<(), Refusal> {
        let end = first + pages;
        let mut page = first;
        while page < end {
            let (_, (_, stop)) = self.patches.around(0, page as u32, (page as u32, end as u32));
            let mut stop = u64::from(stop);
            let access = self.host_access(map, page as u32);
            let noted = self.log.is_noted(page - map.first());
            if self.log.is_on() {
                stop = stop.min(map.first() + ((page - map.first()) / self.log.granule() + 1) * self.log.granule());
            }
            GUEST.protect(system, 0, page, stop - page, if noted { access } else { without_write(access) })?;
            page = stop;
        }
        Ok(())
    }

    /// A guest's own request for frames, or a page given back: pages are there afterwards, and withdrawn no more.
    pub fn populate(&mut self, system: &impl System, map: &Map, first: u64, pages: u64) -> Result<(), Refusal> {
        let (from, to) = range_of(map, first, pages).map_err(|failure| failure.refusal)?;
        if !self.is_host_special() {
            return map.populate(system, first, pages);
        }
        self.patches.check_room(0, from, to)?;
        let mut page = from;
        while page < to {
            // Leaves within a stretch of pages that are alike need not be split when they get their access.
            let (_, (_, stop)) = self.patches.around(0, page, (page, to));
            let (at, count) = (u64::from(page), u64::from(stop - page));
            let given = map.populate(system, at, count).and_then(|()| self.restore_host(system, map, at, count));
            if let Err(refusal) = given {
                self.withdraw_again(system, from, stop)?;
                return Err(refusal);
            }
            page = stop;
        }
        self.patches.edit(0, from, to, |setting, _| Setting { withdrawn: false, ..setting })
    }

    /// Pages are not given back after all.
    fn withdraw_again(&self, system: &impl System, from: u32, to: u32) -> Result<(), Refusal> {
        let mut page = from;
        while page < to {
            let (setting, (_, stop)) = self.patches.around(0, page, (page, to));
            if setting.withdrawn {
                GUEST.unmap(system, 0, page.into(), (stop - page).into())?;
            }
            page = stop;
        }
        Ok(())
    }

    /// Takes pages out of the guest's reach.
    pub fn withdraw(&mut self, system: &impl System, map: &Map, first: u64, pages: u64) -> Result<(), Refusal> {
        let (from, to) = range_of(map, first, pages).map_err(|failure| failure.refusal)?;
        // Nothing may be noted of pages that stay: some of them may be withdrawn already.
        self.patches.check_room(0, from, to)?;
        GUEST.unmap(system, 0, first, pages)?;
        self.patches.edit(0, from, to, |setting, _| Setting { withdrawn: true, ..setting })
    }

    /// Shows a page of a view in the kernel's map, with as many neighbours as are alike.
    #[inline(always)]
    fn fill(&self, system: &impl System, map: &Map, view: u16, page: u32) -> Result<(), Refusal> {
        let (setting, (start, end)) = self.patches.around(view, page, map.range());
        let shown = self.shown_with(map, view, page, setting);
        let noted = self.log.is_noted(shown.page - map.first());
        let access = match shown.access {
            None => Access::AS_HOST,
            Some(access) if noted => access,
            Some(access) => without_write(access),
        };
        let access = if shown.notify { access.with(Access::NOTIFY) } else { access };
        if shown.page != u64::from(page) {
            return self.fill_other(system, map, view, page, shown.page, access);
        }
        let page = u64::from(page);
        let block = page / BLOCK * BLOCK;
        let (mut start, mut end) = (u64::from(start), u64::from(end));
        if self.follows_host(view) {
            // What one of these pages has from the host map, another may not.
            let (_, (first, last)) = self.patches.around(0, page as u32, (start as u32, end as u32));
            (start, end) = (first.into(), last.into());
        }
        let own = |span: u64| start <= page / span * span && page / span * span + span <= end;
        let mut largest = [GIANT, BLOCK].into_iter().find(|span| own(*span)).unwrap_or(1);
        if self.log.is_on() && access != Access::AS_HOST {
            // What is noted differs from granule to granule.
            let granule = map.first() + (page - map.first()) / self.log.granule() * self.log.granule();
            (start, end, largest) = (start.max(granule), end.min(granule + self.log.granule()), 1);
        }
        let (first, last) = (block.max(start), (block + BLOCK).min(end));
        let (_, leaves) = GUEST.copy_view(system, view, (first, last - first), access, largest)?;
        if leaves == 0 {
            self.give(system, map, page)?;
            GUEST.copy_view(system, view, (page, 1), access, 1)?;
        }
        Ok(())
    }

    /// The same for a page that shows the frame of another.
    #[inline(never)]
    fn fill_other(
        &self, system: &impl System, map: &Map, view: u16, page: u32, other: u64, access: Access,
    ) -> Result<(), Refusal> {
        let show = || GUEST.remap(system, view, page.into(), other, access);
        match show() {
            Err(Refusal::NotMapped) => {
                self.give(system, map, page.into())?;
                self.give(system, map, other)?;
                show()
            }
            done => done,
        }
    }

    /// Puts a page into the host map, unless it is withdrawn.
    fn give(&self, system: &impl System, map: &Map, page: u64) -> Result<(), Refusal> {
        if self.patches.of(0, page as u32).withdrawn {
            return Err(Refusal::NotMapped);
        }
        if !self.is_host_special() {
            return map.touch(system, page);
        }
        map.populate(system, page, 1)?;
        self.restore_host(system, map, page, 1)
    }

    // ── faults ──

    /// A page of memory that a view's map does not show. Refused: it is not to be shown.
    pub fn absent(&mut self, system: &impl System, map: &Map, view: u16, page: u64) -> Result<(), Refusal> {
        let (view, _) = self.view(view.into())?;
        self.show_page(system, map, view, page_of(map, page)?)
    }

    /// An access to memory that a leaf of a view's map forbids. Refused: nobody here wants it.
    pub fn forbidden(&mut self, system: &impl System, map: &Map, exit: &Exit) -> Result<Found, Refusal> {
        let (view, _) = self.view(exit.header.view().into())?;
        let page = page_of(map, exit.physical / PAGE)?;
        let wanted = wanted(exit.header);
        let shown = self.shown(map, view, page);
        let now = shown.access.unwrap_or_else(|| self.host_access(map, page));
        let watcher = self.patches.of(view, page).session;
        // What a walk wanted to do with its table no syndrome says for certain: it may read it for a store, and mark it for a
        // load (Arm ARM D8.5). Where it may not do both somebody is told.
        let is_told = watcher.is_some() && exit.header.has(ExitHeader::WALK) && !now.covers(Access::READ.with(Access::WRITE));
        if !is_told && (now.normal().covers(wanted) || (wanted.0 & 0x30 != 0 && now.covers(Access::EXECUTE))) {
            if wanted.covers(Access::WRITE) && self.log.is_on() {
                if self.log.is_noted(shown.page - map.first()) {
                    // The host map was given another access since: a view that is as the host map gets no more.
                    self.restore_host(system, map, shown.page, 1)?;
                } else {
                    self.note(system, map, shown.page)?;
                }
            }
            drop_page(system, view, page)?;
            return self.show_page(system, map, view, page).map(|()| Found::Shown);
        }
        if let Some(watcher) = watcher {
            return Ok(Found::Watched(watcher, now));
        }
        let access = match (self.access(map, view.into(), page.into())?.0, wanted) {
            (ViewAccess::RX2RW, Access::WRITE) => ViewAccess(3),
            (ViewAccess::N2RWX, _) => ViewAccess::ALL,
            _ => return Err(Refusal::MissingRight),
        };
        self.set_access(system, map, view.into(), (page.into(), 1), access).map_err(|failure| failure.refusal)?;
        self.show_page(system, map, view, page).map(|()| Found::Shown)
    }

    /// A page is absent from a view's map.
    fn show_page(&self, system: &impl System, map: &Map, view: u16, page: u32) -> Result<(), Refusal> {
        if view == 0 {
            return self.give(system, map, page.into());
        }
        let mut has_made_room = false;
        loop {
            match self.fill(system, map, view, page) {
                // Other views' leaves are only a cache: those that nobody is in make room.
                Err(Refusal::Quota) if !has_made_room => self.make_room(system)?,
                done => return done,
            }
            has_made_room = true;
        }
    }

    /// Empties every view that no vCPU is in.
    #[cold]
    #[inline(never)]
    fn make_room(&self, system: &impl System) -> Result<(), Refusal> {
        for view in self.each() {
            if (0..u64::from(self.vcpus)).all(|vcpu| GUEST.view_of(system, vcpu) != Ok(view)) {
                GUEST.reset_view(system, view)?;
            }
        }
        Ok(())
    }

    // ── the log of writes ──

    /// Begins to note writes. Back: pages of a granule.
    pub fn log_start(&mut self, system: &impl System, map: &Map) -> Result<u64, Refusal> {
        self.log.start(map.pages());
        self.log_again(system, map, map.first(), map.pages())?;
        Ok(self.log.granule())
    }

    /// Ends it.
    pub fn log_stop(&mut self, system: &impl System, map: &Map) -> Result<(), Refusal> {
        self.log.stop();
        self.log_again(system, map, map.first(), map.pages())
    }

    /// Takes 64 bits, and notes writes to those pages afresh.
    pub fn log_take(&mut self, system: &impl System, map: &Map, granule: u64) -> Result<u64, Refusal> {
        if !self.log.is_on() {
            return Err(Refusal::BadState);
        }
        let size = self.log.granule();
        let first = granule.checked_mul(size).filter(|first| *first < map.pages()).ok_or(Refusal::OutOfRange)?;
        let bits = self.log.take(granule).ok_or(Refusal::BadArgument)?;
        if bits != 0 {
            let pages = (64 * size).min(map.pages() - first);
            self.log_again(system, map, map.first() + first, pages)?;
        }
        Ok(bits)
    }

    /// Every map says of these pages again what may be written without being noted.
    fn log_again(&self, system: &impl System, map: &Map, first: u64, pages: u64) -> Result<(), Refusal> {
        if !self.log.is_on() || pages < map.pages() {
            self.restore_host(system, map, first, pages)?;
        } else {
            self.restore_all(system, map)?;
        }
        for view in self.each() {
            // A frame may be shown under other pages than its own.
            if pages == map.pages() || self.patches.shows_others(view) {
                GUEST.reset_view(system, view)?;
            } else {
                drop_leaves(system, view, first, pages)?;
            }
        }
        Ok(())
    }

    /// Nothing has been noted: no page of the host map may be written.
    fn restore_all(&self, system: &impl System, map: &Map) -> Result<(), Refusal> {
        let (mut page, end) = map.range();
        while page < end {
            let (_, (_, stop)) = self.patches.around(0, page, (page, end));
            let access = without_write(self.host_access(map, page));
            GUEST.protect(system, 0, page.into(), (stop - page).into(), access)?;
            page = stop;
        }
        Ok(())
    }

    /// A first write to the frame of a page: noted, and not asked about again.
    fn note(&mut self, system: &impl System, map: &Map, page: u64) -> Result<(), Refusal> {
        let (first, pages) = self.log.note(page - map.first());
        let (first, pages) = (map.first() + first, pages.min(map.pages() - first));
        let done = self.restore_host(system, map, first, pages);
        if done.is_err() {
            // The host map could not be split: the page stays as it was, and whoever writes it next asks again.
            self.log.forget(page - map.first());
            let _ = self.restore_host(system, map, first, pages);
        }
        done
    }
}

/// What an exit says was wanted.
pub(crate) fn wanted(header: ExitHeader) -> Access {
    // The guest's table walk for a fetch reads its tables.
    if header.has(ExitHeader::FETCH) && !header.has(ExitHeader::WALK) {
        if header.has(ExitHeader::USER) { Access::USER_EXECUTE } else { Access::KERNEL_EXECUTE }
    } else if header.has(ExitHeader::WRITE) {
        Access::WRITE
    } else {
        Access::READ
    }
}

fn without_write(access: Access) -> Access {
    Access(access.0 & !Access::WRITE.0)
}

/// Puts a vCPU into a view, on the CPU where it is by then: it may move meanwhile.
pub(crate) fn put(system: &impl System, vcpu: u64, view: u16) -> Result<(), Refusal> {
    for _ in 0..MOVES {
        match GUEST.switch_view(system, vcpu, view) {
            Err(Refusal::WrongCpu) => {}
            done => return done,
        }
    }
    Err(Refusal::WrongCpu)
}

/// A page of memory.
fn page_of(map: &Map, page: u64) -> Result<u32, Refusal> {
    if map.has(page) { Ok(page as u32) } else { Err(Refusal::OutOfRange) }
}

/// A range of memory that is not empty; else the first page that is none.
pub(crate) fn range_of(map: &Map, first: u64, pages: u64) -> Result<(u32, u32), Failure> {
    let (_, stop) = map.range();
    let fail = |page| Err(Failure { refusal: Refusal::OutOfRange, page });
    match first.checked_add(pages) {
        _ if !map.has(first) || pages == 0 => fail(first),
        Some(end) if end <= stop.into() => Ok((first as u32, end as u32)),
        _ => fail(stop.into()),
    }
}

/// Drops leaves of a view; of larger blocks, when splitting one would take a table that is not there.
fn drop_leaves(system: &impl System, view: u16, first: u64, pages: u64) -> Result<(), Refusal> {
    for block in [1, BLOCK, GIANT] {
        let (from, end) = (first / block * block, (first + pages).next_multiple_of(block));
        match GUEST.unmap(system, view, from, end - from) {
            Err(Refusal::Quota) => {}
            done => return done,
        }
    }
    Err(Refusal::Quota)
}

/// Drops the leaf of a page. The host map keeps it: what it says is set anew.
fn drop_page(system: &impl System, view: u16, page: u32) -> Result<(), Refusal> {
    if view == 0 { Ok(()) } else { drop_leaves(system, view, page.into(), 1) }
}
