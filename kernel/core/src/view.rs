// SPDX-License-Identifier: MIT OR Apache-2.0
//! Alternative views: further maps of a guest, which show what its host map shows, with other access or elsewhere.
//!
//! A view's tables come from the guest's quota. A view is a cache of what its p2m server wants: it may lose leaves at any
//! time, and never shows a frame that the host map does not show. Each leaf is either *plain* (the host map shows the same
//! frame under the same page) or carries [`OTHER`] (the host map shows it under another page). The guest notes between
//! which pages those others lie, so that what leaves the host map is looked for only where it can be.
//!
//! Which views there are stands in pages of the guest's own quota, two words a view. A vCPU says in its mail which view
//! it is in and which it is about to enter; who destroys a view takes it off the list first and then looks at the mail.

use crate::guest::Guest;
use crate::local::Local;
use crate::machine::{Entry, Leaf, Machine, Memory, Page, Stale, VcpuContext};
use crate::shared::{GUESTS, Shared};
use crate::space::{ENTRIES, FIXED, LIMIT, OTHER, Space, changed_access, deepest, index, span};
use crate::vcpu::Vcpu;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};
use trellis_idl::kernel::{ANY_VIEW, Access, Inside, MAX_VIEWS, Refusal};

/// Entries that one call looks at: bounds the time in the kernel.
const BATCH: usize = 512;
/// Words of a view on the list.
const WORDS: u64 = 2;
/// The view is there.
const ACTIVE: u64 = 1;
/// The guest itself may enter it.
const SHOWN: u64 = 2;
/// No page is shown elsewhere: lowest above highest.
const NO_OTHERS: u64 = 0xffff_ffff;

/// Where the list of a guest's views is, and what the guest may do about them. Never changes while the guest lives, so
/// that each vCPU has a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Views {
    /// First page of the list; 0 when there is only the host map.
    pub list: Page,
    /// Views there can be.
    pub count: u16,
    /// What the guest itself may do.
    pub inside: Inside,
}

/// A view on the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noted {
    /// Its root table.
    pub root: Page,
    /// The guest itself may enter it.
    pub shown: bool,
}

impl Views {
    /// Only a host map.
    pub const NONE: Views = Views { list: 0, count: 1, inside: Inside::NONE };

    /// Pages of the list for so many views.
    pub const fn list_pages(count: u64) -> u64 {
        if count > 1 { (count * WORDS).div_ceil(ENTRIES) } else { 0 }
    }

    /// Page and index of a view's first word. The index is clamped, so that no speculation leaves the list.
    #[inline(always)]
    fn place(self, view: u16) -> (Page, usize) {
        let word = u64::from(view & (MAX_VIEWS as u16 - 1)) * WORDS;
        (self.list + word / ENTRIES, (word % ENTRIES) as usize)
    }

    /// A view that is there. Read without a lock.
    #[inline(always)]
    pub fn find<M: Memory>(self, memory: &M, view: u16) -> Option<Noted> {
        if view >= self.count || self.list == 0 {
            return None;
        }
        let (page, at) = self.place(view);
        let word = memory.entry(page, at);
        (word & ACTIVE != 0).then_some(Noted { root: word >> 12, shown: word & SHOWN != 0 })
    }

    fn note<M: Memory>(self, memory: &mut M, view: u16, root: Page, flags: u64) {
        let (page, at) = self.place(view);
        memory.set_word(page, at, root << 12 | flags);
    }

    /// The lowest and highest page whose frame a view shows elsewhere.
    fn others<M: Memory>(self, memory: &M, view: u16) -> (u64, u64) {
        let (page, at) = self.place(view);
        let word = memory.entry(page, at + 1);
        (word & NO_OTHERS, word >> 32)
    }

    fn set_others<M: Memory>(self, memory: &mut M, view: u16, lowest: u64, highest: u64) {
        let (page, at) = self.place(view);
        memory.set_word(page, at + 1, highest << 32 | lowest);
    }

    /// The views that are there, without the host map.
    fn each<M: Memory>(self, memory: &M, from: u16) -> Option<(u16, Noted)> {
        (from.max(1)..self.count).find_map(|view| Some((view, self.find(memory, view)?)))
    }
}

/// What the TLBs of a CPU may hold of a guest: entries of one map, and first-stage entries of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastMap {
    /// Tag and root as the machine packs them; 0 = nothing.
    pub map: u64,
    /// Which vCPU, as the machine names it.
    pub vcpu: u64,
}

/// What must be dropped from this CPU's TLBs before a vCPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drop {
    /// Nothing.
    Nothing,
    /// First-stage entries of the tag: another vCPU of the guest ran here.
    FirstStage,
    /// Everything under the tag: another map of the guest was used here.
    Everything,
}

impl LastMap {
    /// A vCPU is about to run in this map.
    pub fn enter(&mut self, map: u64, vcpu: u64) -> Drop {
        let before = core::mem::replace(self, LastMap { map, vcpu });
        if before.map != map {
            Drop::Everything
        } else if before.vcpu != vcpu {
            Drop::FirstStage
        } else {
            Drop::Nothing
        }
    }

    /// What first-stage entries there are may not be this vCPU's, though it is named like one that ran here.
    pub fn forget(&mut self, vcpu: u64) {
        if self.vcpu == vcpu {
            self.vcpu = 0;
        }
    }
}

/// How far a copy came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Pages from the first on that are done.
    pub pages: u64,
    /// Leaves made.
    pub leaves: u64,
}

impl Space {
    /// Shows what the map under the root `host` shows where nothing is shown yet. See
    /// [`trellis_idl::kernel::Op::ViewCopy`].
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub fn copy_from<M: Memory>(
        &mut self, memory: &mut M, host: Page, (first, count): (u64, u64), access: Access, largest: u8,
    ) -> Result<Copied, Refusal> {
        let end = first.checked_add(count).filter(|end| *end <= LIMIT && count > 0).ok_or(Refusal::OutOfRange)?;
        let (mut page, mut leaves) = (first, 0);
        for _ in 0..BATCH {
            if page >= end {
                break;
            }
            let (table, level) = deepest(memory, host, page);
            let mut step = span(level);
            if let Entry::Leaf(leaf) = M::unpack(memory.entry(table, index(page, level)), level) {
                let own = deepest(memory, self.root, page);
                if M::is_absent(memory.entry(own.0, index(page, own.1))) {
                    let to = level.max(own.1).max(largest);
                    step = span(to);
                    let base = page & !(step - 1);
                    let access = match access {
                        Access::AS_HOST => leaf.access,
                        other => changed_access(leaf.access, other),
                    };
                    let leaf = Leaf { page: leaf.page + (base & (span(level) - 1)), access };
                    if own.1 == to {
                        memory.set_entry(own.0, index(base, to), M::pack(Entry::Leaf(leaf), to));
                    } else if let Err(refusal) = self.map(memory, base, leaf.page, span(to), access) {
                        if leaves == 0 {
                            return Err(refusal);
                        }
                        break;
                    }
                    leaves += 1;
                } else {
                    step = span(own.1);
                }
            }
            page = (page | (step - 1)) + 1;
        }
        Ok(Copied { pages: page - first, leaves })
    }
}

/// Makes every leaf absent that reaches into a range, whole: never refused. Says which pages that were.
fn forget<M: Memory>(memory: &mut M, root: Page, first: u64, count: u64) -> (u64, u64) {
    let (mut lowest, mut highest) = (first, first + count);
    let mut page = first;
    while page < first + count {
        let (table, level) = deepest(memory, root, page);
        let (at, pages) = (index(page, level), span(level));
        let base = page / pages * pages;
        if !M::is_absent(memory.entry(table, at)) {
            memory.set_entry(table, at, M::pack(Entry::Absent, level));
            (lowest, highest) = (lowest.min(base), highest.max(base + pages));
        }
        page = base + pages;
    }
    (lowest, highest)
}

/// Makes every leaf absent that shows the frame of another page than its own.
fn forget_others<M: Memory>(memory: &mut M, table: Page, level: u8) {
    for i in 0..ENTRIES as usize {
        match M::unpack(memory.entry(table, i), level) {
            Entry::Table(next) => forget_others(memory, next, level + 1),
            Entry::Leaf(leaf) if leaf.access.covers(OTHER) => {
                memory.set_entry(table, i, M::pack(Entry::Absent, level));
            }
            _ => {}
        }
    }
}

impl Guest {
    /// The root of a view's map.
    #[inline(never)]
    pub fn root_of<M: Memory>(&self, memory: &M, view: u64) -> Result<Page, Refusal> {
        if view == 0 {
            return Ok(self.space.root);
        }
        if view >= self.views.count.into() {
            return Err(Refusal::OutOfRange);
        }
        Ok(self.views.find(memory, view as u16).ok_or(Refusal::NotMapped)?.root)
    }

    /// What a view shows under a page.
    pub fn leaf<M: Memory>(&self, memory: &M, view: u16, page: u64) -> Option<Leaf> {
        Space { root: self.root_of(memory, view.into()).ok()?, ..self.space }.find(memory, page)
    }

    /// Puts the host map on a list of `count` views, whose pages begin here.
    pub fn open_views<M: Memory>(&mut self, memory: &mut M, list: Page, count: u16, inside: Inside) {
        self.views = Views { list: if count > 1 { list } else { 0 }, count, inside };
        memory.zero(list, Views::list_pages(count.into()));
        if count > 1 {
            self.views.note(memory, 0, self.space.root, ACTIVE | SHOWN);
        }
    }

    /// Views that are there, the host map among them.
    pub fn views_there<M: Memory>(&self, memory: &M) -> u64 {
        1 + (1..self.views.count).filter(|view| self.views.find(memory, *view).is_some()).count() as u64
    }

    /// Makes an empty view, hidden from the guest: at this index, or the lowest free one.
    pub fn create_view<M: Memory>(&mut self, memory: &mut M, wanted: u64) -> Result<u64, Refusal> {
        let count = u64::from(self.views.count);
        let views = if wanted == ANY_VIEW { 1..count } else { wanted..wanted.saturating_add(1).min(count) };
        let refusal = match wanted {
            ANY_VIEW => Refusal::Quota,
            wanted if wanted >= count => Refusal::OutOfRange,
            _ => Refusal::Occupied,
        };
        let mut free = views.filter(|view| *view != 0 && self.views.find(memory, *view as u16).is_none());
        let view = free.next().ok_or(refusal)?;
        let root = self.space.tables.take(memory).ok_or(Refusal::Quota)?;
        self.views.set_others(memory, view as u16, NO_OTHERS, 0);
        self.views.note(memory, view as u16, root, ACTIVE);
        Ok(view)
    }

    /// Destroys an empty view that no vCPU is in. `in_use` looks at the vCPUs after the view is off the list.
    pub fn destroy_view<M: Memory>(
        &mut self, memory: &mut M, view: u16, root: Page, in_use: impl FnOnce() -> bool,
    ) -> Result<u64, Refusal> {
        if !(0..ENTRIES as usize).all(|at| M::is_absent(memory.entry(root, at))) {
            return Err(Refusal::Occupied);
        }
        let (page, at) = self.views.place(view);
        let word = memory.entry(page, at);
        memory.set_word(page, at, 0);
        fence(Ordering::SeqCst);
        if in_use() {
            memory.set_word(page, at, word);
            return Err(Refusal::BadState);
        }
        memory.invalidate(Stale { tag: self.space.tag, root, first: 0, pages: LIMIT });
        self.space.tables.give(memory, root);
        Ok(0)
    }

    /// Whether the guest itself may enter a view.
    pub fn show_view<M: Memory>(&self, memory: &mut M, view: u16, root: Page, shown: bool) -> u64 {
        self.views.note(memory, view, root, if shown { ACTIVE | SHOWN } else { ACTIVE });
        0
    }

    /// Shows in the view under this root, under `page`, what the host map shows under `other`.
    pub fn remap<M: Memory>(
        &mut self, memory: &mut M, (view, root): (u16, Page), [page, other]: [u64; 2], access: Access,
    ) -> Result<u64, Refusal> {
        if page >= LIMIT || other >= LIMIT {
            return Err(Refusal::OutOfRange);
        }
        let [shown, target] = [page, other].map(|page| self.space.find(memory, page));
        let (Some(shown), Some(target)) = (shown, target) else { return Err(Refusal::NotMapped) };
        if (shown.access.0 | target.access.0) & (Access::DEVICE.0 | FIXED.0) != 0 {
            return Err(Refusal::BadArgument);
        }
        let done = self.in_view(root, |space| {
            // Another frame: absent and invalidated first (Arm ARM D8.16.1). Where a leaf was, no table is missing.
            let stale = space.change(memory, page, 1, None)?;
            memory.invalidate(stale);
            space.map(memory, page, target.page, 1, access.with(OTHER))
        });
        memory.invalidate(done?);
        let (lowest, highest) = self.views.others(memory, view);
        self.views.set_others(memory, view, lowest.min(other), highest.max(other));
        Ok(0)
    }

    /// Does something to the map under a view's root, with the guest's tables.
    pub fn in_view<R>(&mut self, root: Page, how: impl FnOnce(&mut Space) -> R) -> R {
        let host = core::mem::replace(&mut self.space.root, root);
        let result = how(&mut self.space);
        self.space.root = host;
        result
    }

    /// Unmaps pages of the host map, and with it of every view.
    pub fn unmap<M: Memory>(&mut self, memory: &mut M, first: u64, count: u64) -> Result<Stale, Refusal> {
        let stale = self.space.unmap(memory, first, count)?;
        Ok(self.forget(memory, stale))
    }

    /// A piece of taking frames back ([`Space::purge`]): what leaves the host map leaves every view in the same piece.
    pub fn purge<M: Memory>(
        &mut self, memory: &mut M, frames: Range<Page>, from: u64, most: usize,
    ) -> (Stale, u64) {
        let (stale, next) = self.space.purge(memory, frames, from, most);
        (self.forget(memory, stale), next)
    }

    /// Every view loses what left the host map, and, if some of that was shown under other pages, all that it shows
    /// under other pages: what p2m wants shown, it shows again. The invalidation covers what all of them lost.
    #[inline(never)]
    fn forget<M: Memory>(&mut self, memory: &mut M, stale: Stale) -> Stale {
        let (first, end) = (stale.first, stale.first + stale.pages);
        let (mut lowest, mut highest) = (first, end);
        let mut from = 1;
        while let Some((view, noted)) = self.views.each(memory, from) {
            let (low, high) = forget(memory, noted.root, first, stale.pages);
            (lowest, highest) = (lowest.min(low), highest.max(high));
            let (low, high) = self.views.others(memory, view);
            if low < end && first <= high {
                forget_others(memory, noted.root, 1);
                self.views.set_others(memory, view, NO_OTHERS, 0);
                (lowest, highest) = (0, LIMIT);
            }
            from = view + 1;
        }
        Stale { first: lowest, pages: highest - lowest, ..stale }
    }
}

/// What a vCPU's mail says: the view it is in, the one it may be about to enter, and the one it is in for one step.
pub const fn in_views(from: u16, to: u16, step: u16) -> u64 {
    from as u64 | (to as u64) << 16 | (step as u64) << 32
}

/// Whether a vCPU whose mail says this uses a view.
const fn uses(word: u64, view: u16) -> bool {
    word as u16 == view || (word >> 16) as u16 == view || (word >> 32) as u16 == view
}

/// Whether a vCPU of a guest is in a view, or about to enter it.
pub fn is_in_use(shared: &Shared, guest: usize, view: u16) -> bool {
    shared.vcpus[guest % GUESTS].iter().any(|mail| {
        let word = mail.view.load(Ordering::SeqCst);
        mail.name.load(Ordering::Acquire) != 0 && uses(word, view)
    })
}

/// Puts a vCPU of this CPU into a view; in the middle of a step, when that is over.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
pub fn switch<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, view: u64, inside: bool,
) -> Result<(), Refusal> {
    let vcpu = local.vcpus.at_mut(index);
    if view >= u64::from(vcpu.views.count) {
        return Err(Refusal::OutOfRange);
    }
    let view = view as u16;
    if view == vcpu.view() {
        return Ok(());
    }
    let root = claim(vcpu, shared, machine, view, inside)?;
    if vcpu.step.is_active() {
        vcpu.step.back = view;
    } else {
        machine.switch_map(&mut vcpu.context, vcpu.guest, root, view);
    }
    vcpu.say_views(shared);
    Ok(())
}

/// The root of a view that a vCPU is about to enter, and which nobody can destroy until the vCPU says otherwise
/// ([`Vcpu::say_views`]).
#[inline(always)]
pub(crate) fn claim<M: Machine>(
    vcpu: &Vcpu<M>, shared: &Shared, machine: &M, view: u16, inside: bool,
) -> Result<Page, Refusal> {
    // Whoever destroys the view now sees this, or this sees that the view is gone.
    let said = in_views(vcpu.view(), view, vcpu.step_view());
    shared.mail(vcpu.guest, vcpu.number).view.store(said, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    match vcpu.views.find(machine, view) {
        Some(noted) if noted.shown || !inside => Ok(noted.root),
        _ => {
            vcpu.say_views(shared);
            Err(Refusal::NotMapped)
        }
    }
}

impl<M: Machine> Vcpu<M> {
    /// The view it is in when no step is under way.
    #[inline(always)]
    pub fn view(&self) -> u16 {
        if self.step.is_active() { self.step.back } else { self.context.view() }
    }

    /// The view of its step; 0 when there is none.
    #[inline(always)]
    pub fn step_view(&self) -> u16 {
        if self.step.is_active() { self.context.view() } else { 0 }
    }

    /// Says which views it uses, as it is now.
    #[inline(always)]
    pub(crate) fn say_views(&self, shared: &Shared) {
        let said = in_views(self.view(), self.view(), self.step_view());
        shared.mail(self.guest, self.number).view.store(said, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;

    /// How often the model ended so: whether the vCPU entered, and whether it was seen to.
    static OUTCOMES: [std::sync::atomic::AtomicU64; 4] = [const { std::sync::atomic::AtomicU64::new(0) }; 4];

    #[test]
    fn what_ran_here_last_says_what_must_be_dropped() {
        let mut last = LastMap::default();
        assert_eq!(last.enter(7, 1), Drop::Everything);
        assert_eq!(last.enter(7, 1), Drop::Nothing);
        assert_eq!(last.enter(7, 2), Drop::FirstStage);
        assert_eq!(last.enter(8, 2), Drop::Everything);
        assert_eq!(last.enter(7, 2), Drop::Everything);
        last.forget(1);
        assert_eq!(last.enter(7, 2), Drop::Nothing);
        last.forget(2);
        assert_eq!(last.enter(7, 2), Drop::FirstStage);
    }

    #[test]
    fn the_list_grows_with_the_views() {
        assert_eq!([1, 2, 256, 257, 512].map(Views::list_pages), [0, 1, 1, 2, 2]);
        let views = Views { list: 100, count: 512, inside: Inside::NONE };
        assert_eq!(views.place(255), (100, 510));
        assert_eq!(views.place(511), (101, 510));
        assert_eq!(views.place(u16::MAX), (101, 510), "clamped");
    }

    /// One CPU puts its vCPU into a view that another destroys: what [`switch`] and [`Guest::destroy_view`] do to the two
    /// words that they share, the view's on the list and the vCPU's mail. The same for one step in it.
    fn a_switch_meets_a_destruction(fenced: bool, stepping: bool) {
        let shared = Arc::new((LoomWord::new(ACTIVE), LoomWord::new(in_views(0, 0, 0))));
        let other = shared.clone();
        let switching = loom::thread::spawn(move || {
            let (view, mail) = &*other;
            mail.store(in_views(0, 1, 0), Ordering::Relaxed);
            if fenced {
                loom::sync::atomic::fence(Ordering::SeqCst);
            }
            let is_there = view.load(Ordering::Relaxed) & ACTIVE != 0;
            let is_in = u16::from(is_there);
            let said = if stepping { in_views(0, 0, is_in) } else { in_views(is_in, is_in, 0) };
            mail.store(said, Ordering::Release);
            is_there
        });
        let (view, mail) = &*shared;
        view.store(0, Ordering::Relaxed);
        if fenced {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
        let word = mail.load(Ordering::SeqCst);
        let in_use = uses(word, 1);
        if in_use {
            view.store(ACTIVE, Ordering::Relaxed);
        }
        let has_entered = switching.join().unwrap();
        OUTCOMES[usize::from(has_entered) + 2 * usize::from(in_use)].fetch_add(1, Ordering::Relaxed);
        assert!(in_use || !has_entered, "the view is gone and the vCPU is in it");
    }

    #[test]
    fn a_view_is_entered_or_destroyed_and_never_both() {
        for stepping in [false, true] {
            loom::model(move || a_switch_meets_a_destruction(true, stepping));
        }
        let [neither, _, refused, entered] = OUTCOMES.each_ref().map(|count| count.load(Ordering::Relaxed));
        assert!(neither > 0 && refused > 0 && entered > 0, "destroyed; in use for a moment only; in use");
    }

    #[test]
    fn without_the_order_a_vcpu_gets_into_a_view_that_is_gone() {
        assert!([false, true].into_iter().all(|stepping| is_broken(move || a_switch_meets_a_destruction(false, stepping))));
    }
}
