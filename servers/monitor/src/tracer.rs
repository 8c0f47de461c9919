// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tracer: follows the execution of chosen pages, instruction by instruction, and writes down each jump.
//!
//! A page that is followed may not be executed in the view in which its guest is watched, so each instruction there is an event,
//! and is executed in a step. What comes one behind the other is a *run*; only where a new one begins is a line written.

use crate::event::{Event, What};
use crate::guest::{Here, WatchedGuest};
use crate::limit::Limit;
use crate::line::Address;
use crate::monitor::Monitor;
use crate::rules::Rules;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::plan::{MAX_RULES, MAX_VCPUS, MAX_WATCHED, RulePlan};
use trellis_idl::wire::Verdict;
use trellis_runtime::handle::clock;
use trellis_runtime::{Shared, System, log};

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// Instructions that a vCPU executed one behind the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Run {
    first: u64,
    next: u64,
    count: u64,
}

impl Run {
    /// None.
    const NONE: Run = Run { first: 0, next: 0, count: 0 };

    /// One more, at this address. Back: the run that this one ends, where it begins another.
    fn go_on(&mut self, pc: u64) -> Option<Run> {
        let ended = (self.count == 0 || self.next != pc).then_some(*self);
        if ended.is_some() {
            *self = Run { first: pc, ..Run::NONE };
        }
        (self.next, self.count) = (pc.wrapping_add(INSTRUCTION), self.count.saturating_add(1));
        ended
    }
}

/// What is known of a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Followed {
    /// The rule: another tracer's may stand elsewhere.
    pub rule: RulePlan,
    /// Instructions executed.
    pub instructions: u64,
    /// Runs that began.
    pub runs: u64,
    /// Lines that the log was spared.
    pub spared: u64,
}

/// The monitor.
#[derive(Debug)]
pub struct Tracer {
    rules: Rules,
    /// Of each vCPU of each guest the run that it is in.
    runs: [[Shared<Run>; MAX_VCPUS]; MAX_WATCHED],
    begun: [AtomicU64; MAX_RULES],
    limits: [Shared<Limit>; MAX_RULES],
    stopped: [AtomicU32; MAX_RULES],
    /// What earlier tracers have seen: instructions of each rule.
    before: Shared<[u64; MAX_RULES]>,
}

impl Tracer {
    /// One that follows the pages of these rules, whatever else they say.
    pub fn new(rules: &[RulePlan]) -> Tracer {
        let only = |rule: &RulePlan| RulePlan { access: Access::EXECUTE.0 as u8, ..*rule };
        let rules: Vec<RulePlan, MAX_RULES> = rules.iter().take(MAX_RULES).map(only).collect();
        Tracer {
            rules: Rules::new(&rules),
            runs: [const { [const { Shared::new(Run::NONE) }; MAX_VCPUS] }; MAX_WATCHED],
            begun: [const { AtomicU64::new(0) }; MAX_RULES],
            limits: [const { Shared::new(Limit::NEW) }; MAX_RULES],
            stopped: [const { AtomicU32::new(0) }; MAX_RULES],
            before: Shared::new([0; MAX_RULES]),
        }
    }

    /// An instruction of a page that is followed.
    fn follow(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, rule: usize) {
        self.rules.count(event.vcpu, rule);
        let run = self.runs.get(event.guest).and_then(|runs| runs.get(event.vcpu));
        let Some(ended) = run.and_then(|run| run.lock(system).go_on(event.pc())) else { return };
        if let Some(begun) = self.begun.get(rule) {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        let (now, hertz) = clock(system);
        let Some(limit) = self.limits.get(rule) else { return };
        let Some(spared) = limit.lock(system).admit(now, hertz) else { return };
        log!("{}", Line { guest: guest.name(), event, rule, ended, spared });
    }

    fn followed(&self, system: &impl System, index: usize, rule: &RulePlan) -> Followed {
        let before = self.before.lock(system).get(index).copied().unwrap_or(0);
        Followed {
            rule: *rule,
            instructions: before.wrapping_add(self.rules.seen(index)),
            runs: self.begun.get(index).map_or(0, |begun| begun.load(Ordering::Relaxed)),
            spared: self.limits.get(index).map_or(0, |limit| limit.lock(system).spared()),
        }
    }
}

/// Where a vCPU is now, and what it came from.
struct Line<'a> {
    guest: &'a str,
    event: &'a Event,
    rule: usize,
    ended: Run,
    spared: u64,
}

impl core::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Line { guest, event, rule, ended, spared } = self;
        let pc = Address(event.pc());
        write!(f, "{guest} (vCPU {}) executes {pc}, at {} (followed by rule {})", event.vcpu, Address(event.physical()), rule + 1)?;
        if ended.count != 0 {
            write!(f, ", after {} from {} on", ended.count, Address(ended.first))?;
        }
        match spared {
            0 => Ok(()),
            spared => write!(f, " ({spared} runs not written before)"),
        }
    }
}

impl Monitor for Tracer {
    type State = Vec<Followed, MAX_RULES>;
    const VERSION: u32 = 2 << 16 | 2;

    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal> {
        let here = Here::Control;
        guest.attach(system, here)?;
        guest.join(system, here)?;
        let mut pages = 0;
        for (stretch, access) in self.rules.stretches(guest.index()) {
            guest.watch(system, here, stretch, access).inspect_err(|why| {
                log!("{}: {} pages at page {:#x} cannot be followed: {why:?}", guest.name(), stretch.1, stretch.0);
            })?;
            pages += stretch.1;
        }
        guest.enter(system, here)?;
        for run in self.runs.get(guest.index()).into_iter().flatten() {
            *run.lock(system) = Run::NONE;
        }
        log!("{} {}, {pages} of its pages followed", guest.name(), if anew { "begins" } else { "goes on" });
        Ok(())
    }

    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let Some(What::Access(access)) = event.what() else { return Verdict::Allow };
        match self.rules.find(event.guest, event.page(), access) {
            Some(_) if event.again => {}
            Some((rule, _)) => self.follow(system, guest, event, rule),
            // As an earlier monitor, with other rules, left it.
            None => {
                let allowed = self.rules.allowed(event.guest, event.page());
                if guest.watch(system, Here::Vcpu(event.vcpu), (event.page(), 1), allowed).is_ok() {
                    return Verdict::Retry;
                }
            }
        }
        Verdict::Allow
    }

    fn stopped(&self, _: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        if let Some(stopped) = self.rules.find(event.guest, event.page(), Access::EXECUTE).and_then(|(index, _)| self.stopped.get(index)) {
            stopped.fetch_add(1, Ordering::Relaxed);
        }
        log!("{} (vCPU {}) stopped at pc {}: {why:?}", guest.name(), event.vcpu, Address(event.pc()));
    }

    fn export(&self, system: &impl System) -> Self::State {
        self.rules.all().iter().enumerate().map(|(index, rule)| self.followed(system, index, rule)).collect()
    }

    fn import(&self, system: &impl System, state: Self::State) -> Result<(), Refusal> {
        for (index, rule) in self.rules.all().iter().enumerate() {
            let Some(known) = state.iter().find(|known| known.rule == *rule) else { continue };
            if let Some(before) = self.before.lock(system).get_mut(index) {
                *before = known.instructions;
            }
            if let Some(begun) = self.begun.get(index) {
                begun.store(known.runs, Ordering::Relaxed);
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
        let Followed { instructions, spared, .. } = self.followed(system, index, rule);
        let stopped: u64 = self.stopped.get(index).map_or(0, |stopped| stopped.load(Ordering::Relaxed)).into();
        Ok([instructions, instructions.wrapping_sub(stopped), 0, stopped, spared])
    }
}

#[cfg(test)]
mod tests;
