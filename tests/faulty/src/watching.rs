// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor with a weakness: it dies with the sixth event that it would deny in its hands. How many rules it has
//! says how: three for the first [`Way`], and so on; with one more than that it dies before it watches anything.

use crate::Way;
use core::sync::atomic::{AtomicU32, Ordering};
use trellis_idl::kernel::Refusal;
use trellis_idl::plan::{EventPlan, RulePlan};
use trellis_idl::wire::Verdict;
use trellis_monitor::{Event, Monitor, Standard, WatchedGuest};
use trellis_runtime::System;

/// The rules that are needed anyway.
const FEWEST: usize = 3;
/// Events that it denies in its life.
const LIFE: u32 = 5;

/// The monitor.
#[derive(Debug)]
pub struct Weak {
    standard: Standard,
    /// How it dies with an event in its hands; otherwise it dies at the beginning.
    way: Option<Way>,
    denied: AtomicU32,
}

impl Weak {
    /// One that has these rules, and dies as their number says.
    pub fn new(rules: &[RulePlan], events: &[EventPlan]) -> Weak {
        let way = rules.len().checked_sub(FEWEST).and_then(|number| Way::ALL.get(number)).copied();
        Weak { standard: Standard::new(rules, events), way, denied: AtomicU32::new(0) }
    }
}

impl Monitor for Weak {
    type State = <Standard as Monitor>::State;
    const VERSION: u32 = <Standard as Monitor>::VERSION;

    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal> {
        if self.way.is_none() {
            Way::Crash.go(system);
        }
        self.standard.begin(system, guest, anew)
    }

    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let verdict = self.standard.event(system, guest, event);
        match self.way {
            Some(way) if verdict == Verdict::Deny && self.denied.fetch_add(1, Ordering::Relaxed) >= LIFE => way.go(system),
            _ => verdict,
        }
    }

    fn stopped(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        self.standard.stopped(system, guest, event, why);
    }

    fn export(&self, system: &impl System) -> Self::State {
        self.standard.export(system)
    }

    fn import(&self, system: &impl System, state: Self::State) -> Result<(), Refusal> {
        self.standard.import(system, state)
    }

    fn count(&self, system: &impl System, rule: u64) -> Result<[u64; 5], Refusal> {
        self.standard.count(system, rule)
    }
}
