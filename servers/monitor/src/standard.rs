// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor: does what the manifest's rules say, counts, and writes down what it is asked to.

use crate::event::Event;
use crate::guest::{Here, WatchedGuest};
use crate::limit::Limit;
use crate::line::{Address, Line};
use crate::monitor::Monitor;
use crate::rules::Rules;
use core::sync::atomic::{AtomicU32, Ordering};
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::kernel::Refusal;
use trellis_idl::plan::{MAX_RULES, RulePlan, RuleVerdict};
use trellis_idl::wire::Verdict;
use trellis_runtime::handle::clock;
use trellis_runtime::{Shared, System, log};

/// What is known of a rule beyond the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// The rule: another monitor's may stand elsewhere.
    pub rule: RulePlan,
    /// How often it was used.
    pub seen: u64,
    /// How often its vCPU had to be stopped instead.
    pub stopped: u32,
    /// Lines that the log was spared.
    pub spared: u64,
}

/// All that a standard monitor hands over.
pub type State = Vec<Counted, MAX_RULES>;

/// The monitor.
#[derive(Debug)]
pub struct Standard {
    rules: Rules,
    limits: [Shared<Limit>; MAX_RULES],
    stopped: [AtomicU32; MAX_RULES],
    /// What earlier monitors have seen.
    before: Shared<[u64; MAX_RULES]>,
}

impl Standard {
    /// One that has seen nothing.
    pub fn new(rules: &[RulePlan]) -> Standard {
        Standard {
            rules: Rules::new(rules),
            limits: [const { Shared::new(Limit::NEW) }; MAX_RULES],
            stopped: [const { AtomicU32::new(0) }; MAX_RULES],
            before: Shared::new([0; MAX_RULES]),
        }
    }

    /// No rule speaks of this: the page is as an earlier monitor, with other rules, left it.
    #[cold]
    #[inline(never)]
    fn put_right(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let access = self.rules.allowed(event.guest, event.page());
        match guest.watch(system, Here::Vcpu(event.vcpu), (event.page(), 1), access) {
            Ok(()) => Verdict::Retry,
            Err(why) => {
                self.stopped(system, guest, event, why);
                Verdict::Stop
            }
        }
    }

    /// Writes a line, unless there are too many.
    #[cold]
    #[inline(never)]
    fn write(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, rule: usize, verdict: Verdict) {
        let (now, hertz) = clock(system);
        let Some(limit) = self.limits.get(rule) else { return };
        let Some(spared) = limit.lock(system).admit(now, hertz) else { return };
        log!("{}", Line { guest: guest.name(), is_many: guest.vcpus() > 1, event, rule, verdict, spared });
    }

    fn counted(&self, system: &impl System, index: usize, rule: &RulePlan) -> Counted {
        let before = self.before.lock(system).get(index).copied().unwrap_or(0);
        Counted {
            rule: *rule,
            seen: before.wrapping_add(self.rules.seen(index)),
            stopped: self.stopped.get(index).map_or(0, |stopped| stopped.load(Ordering::Relaxed)),
            spared: self.limits.get(index).map_or(0, |limit| limit.lock(system).spared()),
        }
    }
}

impl Monitor for Standard {
    type State = State;
    const VERSION: u32 = 1 << 16 | 1;

    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal> {
        let here = Here::Control;
        guest.attach(system, here)?;
        guest.join(system, here)?;
        let mut stretches = 0;
        for (pages, access) in self.rules.stretches(guest.index()) {
            guest.watch(system, here, pages, access).inspect_err(|why| {
                log!("{}: {} pages at page {:#x} cannot be watched: {why:?}", guest.name(), pages.1, pages.0);
            })?;
            stretches += 1;
        }
        guest.enter(system, here)?;
        let how = if anew { "begins" } else { "goes on" };
        log!("{} {how}, {stretches} stretches of its memory watched", guest.name());
        Ok(())
    }

    #[inline(always)]
    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let Some((index, rule)) = self.rules.find(event.guest, event.page(), event.access()) else {
            return self.put_right(system, guest, event);
        };
        self.rules.count(event.vcpu, index);
        let verdict = rule.verdict.into();
        if rule.log {
            self.write(system, guest, event, index, verdict);
        }
        verdict
    }

    fn stopped(&self, _: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        let rule = self.rules.find(event.guest, event.page(), event.access());
        if let Some(stopped) = rule.and_then(|(index, _)| self.stopped.get(index)) {
            stopped.fetch_add(1, Ordering::Relaxed);
        }
        let (at, pc) = (Address(event.physical()), Address(event.pc()));
        log!("{} (vCPU {}) stopped at {at}, pc {pc}: {why:?}", guest.name(), event.vcpu);
    }

    fn export(&self, system: &impl System) -> State {
        self.rules.all().iter().enumerate().map(|(index, rule)| self.counted(system, index, rule)).collect()
    }

    fn import(&self, system: &impl System, state: State) -> Result<(), Refusal> {
        let mut before = self.before.lock(system);
        for (index, rule) in self.rules.all().iter().enumerate() {
            let Some(known) = state.iter().find(|known| known.rule == *rule) else { continue };
            if let Some(before) = before.get_mut(index) {
                *before = known.seen;
            }
            if let Some(stopped) = self.stopped.get(index) {
                stopped.store(known.stopped, Ordering::Relaxed);
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
        let Counted { seen, stopped, spared, .. } = self.counted(system, index, rule);
        let done = seen.wrapping_sub(stopped.into());
        Ok(match rule.verdict {
            RuleVerdict::Allow => [seen, done, 0, stopped.into(), spared],
            RuleVerdict::Deny => [seen, 0, done, stopped.into(), spared],
            RuleVerdict::Stop => [seen, 0, 0, seen, spared],
        })
    }
}
