// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guard: no page that it guards is ever both written and executed.
//!
//! At first a guarded page may only be read. Whether it is written or executed first decides what it is, for as long as the
//! guest runs; the other is a violation, and the rule says what becomes of it. What p2m has room for it lets happen without a
//! word from then on; where it has none, each access is a step, and the guard's own table decides.

use crate::event::{Event, What};
use crate::guest::{Here, WatchedGuest};
use crate::limit::Limit;
use crate::line::Address;
use crate::monitor::Monitor;
use crate::rules::Rules;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::plan::{MAX_RULES, RulePlan};
use trellis_idl::wire::{Verdict, ViewAccess};
use trellis_runtime::handle::clock;
use trellis_runtime::{Shared, System, log};

/// Pages that one guard guards at most.
pub const MOST_PAGES: usize = 1 << 14;
/// Runs of pages that it can hand over; of those behind them p2m knows.
const MOST_RUNS: usize = 100;

/// What a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u8)]
pub enum Use {
    /// Neither written nor executed.
    Fresh = 0,
    /// Written.
    Data = 1,
    /// Executed.
    Code = 2,
}

impl Use {
    const fn of(number: u8) -> Use {
        match number {
            1 => Use::Data,
            2 => Use::Code,
            _ => Use::Fresh,
        }
    }

    /// What may be done with such a page without a word.
    const fn allows(self) -> ViewAccess {
        ViewAccess::bits(match self {
            Use::Fresh => Access::READ,
            Use::Data => Access::READ.with(Access::WRITE),
            Use::Code => Access::READ.with(Access::EXECUTE),
        })
    }
}

/// Pages that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alike {
    /// The first, by its place among all guarded pages.
    pub first: u16,
    /// How many.
    pub pages: u16,
    /// What they are.
    pub what: Use,
}

/// What is known of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Guarded {
    /// The rule.
    pub rule: RulePlan,
    /// Events.
    pub seen: u64,
    /// Violations.
    pub violations: u64,
    /// Lines that the log was spared.
    pub spared: u64,
}

/// What a guard hands over; to one with other rules nothing but the counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Of each rule.
    pub rules: Vec<Guarded, MAX_RULES>,
    /// Pages that are not fresh, as many as there is room for.
    pub pages: Vec<Alike, MOST_RUNS>,
}

/// The monitor.
#[derive(Debug)]
pub struct Guard {
    rules: Rules,
    /// A [`Use`] for each page of each rule, in the order of the rules.
    pages: [AtomicU8; MOST_PAGES],
    violations: [AtomicU64; MAX_RULES],
    limits: [Shared<Limit>; MAX_RULES],
    before: Shared<[u64; MAX_RULES]>,
}

impl Guard {
    /// One that guards the pages of these rules. None: there are more of them than it can.
    pub fn new(rules: &[RulePlan]) -> Option<Guard> {
        let only = |rule: &RulePlan| RulePlan { access: Access::WRITE.with(Access::EXECUTE).0 as u8, ..*rule };
        let rules: Vec<RulePlan, MAX_RULES> = rules.iter().take(MAX_RULES).map(only).collect();
        let pages = rules.iter().try_fold(0u64, |all, rule| all.checked_add(rule.pages))?;
        (pages <= MOST_PAGES as u64).then(|| Guard {
            rules: Rules::new(&rules),
            pages: [const { AtomicU8::new(0) }; MOST_PAGES],
            violations: [const { AtomicU64::new(0) }; MAX_RULES],
            limits: [const { Shared::new(Limit::NEW) }; MAX_RULES],
            before: Shared::new([0; MAX_RULES]),
        })
    }

    /// The place of a rule's first page among all.
    fn place_of(&self, rule: usize) -> usize {
        self.rules.all().iter().take(rule).map(|rule| rule.pages as usize).sum()
    }

    /// Every page of a rule: its number in the guest, and its state.
    fn pages_of(&self, index: usize, rule: &RulePlan) -> impl Iterator<Item = (u64, &AtomicU8)> {
        (rule.first..).zip(self.pages.iter().skip(self.place_of(index)).take(rule.pages as usize))
    }

    /// A guarded page is tried to be used so: what it was, and what it is now.
    fn claim(&self, rule: usize, page: u64, wanted: Use) -> (Use, Use) {
        let first = self.rules.all().get(rule).map_or(0, |rule| rule.first);
        let Some(state) = self.pages.get(self.place_of(rule) + page.wrapping_sub(first) as usize) else { return (Use::Fresh, Use::Fresh) };
        // Of two vCPUs that come at once one is first.
        match state.compare_exchange(Use::Fresh as u8, wanted as u8, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => (Use::Fresh, wanted),
            Err(now) => (Use::of(now), Use::of(now)),
        }
    }

    /// A page is written or executed.
    fn used(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, index: usize, rule: &RulePlan) -> Verdict {
        if !event.again {
            self.rules.count(event.vcpu, index);
        }
        let wanted = if event.access() == Access::EXECUTE { Use::Code } else { Use::Data };
        match self.claim(index, event.page(), wanted) {
            (Use::Fresh, now) if now == wanted => {
                // p2m may have no room for one more stretch: then this is a step, and so is the next.
                match guest.watch(system, Here::Vcpu(event.vcpu), (event.page(), 1), wanted.allows()) {
                    Ok(()) => Verdict::Retry,
                    Err(_) => Verdict::Allow,
                }
            }
            (_, now) if now == wanted => Verdict::Allow,
            _ => self.violated(system, guest, event, index, rule),
        }
    }

    #[cold]
    fn violated(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, index: usize, rule: &RulePlan) -> Verdict {
        if event.again {
            return rule.verdict.into();
        }
        if let Some(violations) = self.violations.get(index) {
            violations.fetch_add(1, Ordering::Relaxed);
        }
        let (now, hertz) = clock(system);
        let admitted = self.limits.get(index).and_then(|limit| limit.lock(system).admit(now, hertz));
        if let Some(spared) = admitted {
            let what = if event.access() == Access::EXECUTE { "executes what it has written" } else { "writes what it has executed" };
            let (at, pc) = (Address(event.physical()), Address(event.pc()));
            log!("{} (vCPU {}) {what}, at {at} (guarded by rule {}), pc {pc} ({spared} more before)", guest.name(), event.vcpu, index + 1);
        }
        rule.verdict.into()
    }

    /// What pages were before this guard: what p2m was asked to allow says it.
    fn recall(&self, system: &impl System, guest: &WatchedGuest<'_>) -> Result<(), Refusal> {
        let own = self.rules.all().iter().enumerate().filter(|(_, rule)| usize::from(rule.guest) == guest.index());
        for (page, state) in own.flat_map(|(index, rule)| self.pages_of(index, rule)) {
            if state.load(Ordering::Relaxed) != Use::Fresh as u8 {
                continue;
            }
            let (access, is_default) = guest.access(system, Here::Control, page)?;
            for what in [Use::Data, Use::Code] {
                if !is_default && access == u64::from(what.allows().0) {
                    state.store(what as u8, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    /// Has p2m allow what pages are known to be; as much of it as it has room for.
    fn open(&self, system: &impl System, guest: &WatchedGuest<'_>) {
        let own = self.rules.all().iter().enumerate().filter(|(_, rule)| usize::from(rule.guest) == guest.index());
        for (index, rule) in own {
            for alike in self.alike(index, rule) {
                let pages = (rule.first + (usize::from(alike.first) - self.place_of(index)) as u64, alike.pages.into());
                if guest.watch(system, Here::Control, pages, alike.what.allows()).is_err() {
                    return;
                }
            }
        }
    }

    /// The pages of a rule that are not fresh.
    fn alike(&self, index: usize, rule: &RulePlan) -> impl Iterator<Item = Alike> {
        let first = self.place_of(index);
        let states = move |at: usize| self.pages.get(at).map_or(Use::Fresh, |state| Use::of(state.load(Ordering::Relaxed)));
        let end = (first + rule.pages as usize).min(MOST_PAGES);
        let mut at = first;
        core::iter::from_fn(move || {
            at += (at..end).take_while(|at| states(*at) == Use::Fresh).count();
            let what = (at < end).then(|| states(at))?;
            let pages = (at..end).take_while(|at| states(*at) == what).count();
            at += pages;
            Some(Alike { first: (at - pages) as u16, pages: pages as u16, what })
        })
    }

    fn guarded(&self, system: &impl System, index: usize, rule: &RulePlan) -> Guarded {
        let before = self.before.lock(system).get(index).copied().unwrap_or(0);
        Guarded {
            rule: *rule,
            seen: before.wrapping_add(self.rules.seen(index)),
            violations: self.violations.get(index).map_or(0, |violations| violations.load(Ordering::Relaxed)),
            spared: self.limits.get(index).map_or(0, |limit| limit.lock(system).spared()),
        }
    }
}

impl Monitor for Guard {
    type State = State;
    const VERSION: u32 = 3 << 16 | 2;

    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal> {
        let here = Here::Control;
        guest.attach(system, here)?;
        if anew {
            let own = self.rules.all().iter().enumerate().filter(|(_, rule)| usize::from(rule.guest) == guest.index());
            own.flat_map(|(index, rule)| self.pages_of(index, rule)).for_each(|(_, state)| state.store(0, Ordering::Relaxed));
        } else {
            self.recall(system, guest)?;
        }
        guest.join(system, here)?;
        let mut pages = 0;
        for (stretch, access) in self.rules.stretches(guest.index()) {
            guest.watch(system, here, stretch, access).inspect_err(|why| {
                log!("{}: {} pages at page {:#x} cannot be guarded: {why:?}", guest.name(), stretch.1, stretch.0);
            })?;
            pages += stretch.1;
        }
        self.open(system, guest);
        guest.enter(system, here)?;
        log!("{} {}, {pages} of its pages guarded", guest.name(), if anew { "begins" } else { "goes on" });
        Ok(())
    }

    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let Some(What::Access(access)) = event.what() else { return Verdict::Allow };
        match self.rules.find(event.guest, event.page(), access) {
            Some((index, rule)) => self.used(system, guest, event, index, rule),
            None if access == Access::READ => Verdict::Allow,
            // As an earlier monitor, with other rules, left it.
            None => match guest.watch(system, Here::Vcpu(event.vcpu), (event.page(), 1), ViewAccess::DEFAULT) {
                Ok(()) => Verdict::Retry,
                Err(_) => Verdict::Allow,
            },
        }
    }

    fn stopped(&self, _: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        log!("{} (vCPU {}) stopped at pc {}: {why:?}", guest.name(), event.vcpu, Address(event.pc()));
    }

    fn export(&self, system: &impl System) -> State {
        let rules = self.rules.all().iter().enumerate();
        let pages = rules.clone().flat_map(|(index, rule)| self.alike(index, rule));
        State { rules: rules.map(|(index, rule)| self.guarded(system, index, rule)).collect(), pages: pages.take(MOST_RUNS).collect() }
    }

    fn import(&self, system: &impl System, state: State) -> Result<(), Refusal> {
        let same = |(known, own): (&Guarded, &RulePlan)| known.rule == *own;
        if state.rules.len() == self.rules.all().len() && state.rules.iter().zip(self.rules.all()).all(same) {
            for alike in &state.pages {
                let pages = self.pages.iter().skip(alike.first.into()).take(alike.pages.into());
                pages.for_each(|page| page.store(alike.what as u8, Ordering::Relaxed));
            }
        }
        for (index, rule) in self.rules.all().iter().enumerate() {
            let Some(known) = state.rules.iter().find(|known| known.rule == *rule) else { continue };
            if let Some(before) = self.before.lock(system).get_mut(index) {
                *before = known.seen;
            }
            if let Some(violations) = self.violations.get(index) {
                violations.store(known.violations, Ordering::Relaxed);
            }
            if let Some(limit) = self.limits.get(index) {
                *limit.lock(system) = Limit::with_spared(known.spared);
            }
        }
        Ok(())
    }

    fn count(&self, system: &impl System, rule: u64) -> Result<[u64; 5], Refusal> {
        let index = usize::try_from(rule).map_err(|_| Refusal::OutOfRange)?;
        let rule = self.rules.all().get(index).ok_or(Refusal::OutOfRange)?;
        let Guarded { seen, violations, spared, .. } = self.guarded(system, index, rule);
        Ok([seen, seen.wrapping_sub(violations), violations, 0, spared])
    }
}

#[cfg(test)]
mod tests;
