// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor: does what the manifest's rules say, counts, and writes down what it is asked to.

use crate::event::{Event, What};
use crate::guest::{Here, WatchedGuest};
use crate::hearing::Hearing;
use crate::limit::Limit;
use crate::line::{Address, Line};
use crate::monitor::Monitor;
use crate::rules::{Rules, Stretch};
use crate::witness::Witness;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::event::EventKind;
use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::plan::{EventPlan, MAX_EVENT_RULES, MAX_RULES, RulePlan, RuleVerdict};
use trellis_idl::wire::{Seen, Verdict};
use trellis_runtime::handle::clock;
use trellis_runtime::{Shared, System, log};

/// What is known of a rule beyond the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counted<R> {
    /// The rule: another monitor's may stand elsewhere.
    pub rule: R,
    /// How often it was used.
    pub seen: u64,
    /// How often its vCPU had to be stopped instead.
    pub stopped: u32,
    /// Lines that the log was spared.
    pub spared: u64,
}

/// All that a standard monitor hands over.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Of rules about memory.
    pub pages: Vec<Counted<RulePlan>, MAX_RULES>,
    /// Of rules about other events.
    pub events: Vec<Counted<EventPlan>, MAX_EVENT_RULES>,
}

/// Rules of both kinds: those about memory, and those about other events behind them.
const ALL_RULES: usize = MAX_RULES + MAX_EVENT_RULES;

/// The monitor.
#[derive(Debug)]
pub struct Standard<W = ()> {
    witness: W,
    rules: Rules,
    hearing: Hearing,
    limits: [Shared<Limit>; ALL_RULES],
    stopped: [AtomicU32; ALL_RULES],
    /// How often each rule was used for what was told; the thread that reads alone counts it.
    told: [AtomicU64; ALL_RULES],
    /// Events that it was to be told of and was not.
    missed: AtomicU64,
    missing: Shared<Limit>,
    /// What earlier monitors have seen.
    before: Shared<[u64; ALL_RULES]>,
}

impl Standard {
    /// One that has seen nothing.
    pub fn new(rules: &[RulePlan], events: &[EventPlan]) -> Standard {
        Standard::with(rules, events, ())
    }
}

impl<W: Witness> Standard<W> {
    /// The same, with a witness of what its rules log.
    pub fn with(rules: &[RulePlan], events: &[EventPlan], witness: W) -> Standard<W> {
        Standard {
            witness,
            rules: Rules::new(rules),
            hearing: Hearing::new(events),
            limits: [const { Shared::new(Limit::NEW) }; ALL_RULES],
            stopped: [const { AtomicU32::new(0) }; ALL_RULES],
            told: [const { AtomicU64::new(0) }; ALL_RULES],
            missed: AtomicU64::new(0),
            missing: Shared::new(Limit::NEW),
            before: Shared::new([0; ALL_RULES]),
        }
    }

    /// Events that it was to be told of and was not.
    pub fn missed_so_far(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// No rule speaks of this: the page is as an earlier monitor, with other rules, left it.
    #[cold]
    #[inline(never)]
    fn put_right(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let access = self.rules.allowed(event.guest, event.page());
        match self.watch(system, guest, Here::Vcpu(event.vcpu), ((event.page(), 1), access)) {
            Ok(()) => Verdict::Retry,
            Err(why) => {
                self.stopped(system, guest, event, why);
                Verdict::Stop
            }
        }
    }

    /// Pages of which the rules say the same are watched as they say.
    fn watch(&self, system: &impl System, guest: &WatchedGuest<'_>, here: Here, (pages, access): Stretch) -> Result<(), Refusal> {
        guest.watch_so(system, here, pages, access, self.rules.wishes(guest.index(), pages.0))
    }

    /// Something else than an access. What no rule speaks of an earlier monitor heard: it is as if nobody did.
    #[cold]
    #[inline(never)]
    fn heard(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, kind: EventKind) -> Verdict {
        let Some((index, rule)) = self.hearing.find(event.guest, kind) else { return Verdict::Allow };
        let verdict = rule.verdict.into();
        if event.again {
            return verdict;
        }
        self.hearing.count(event.vcpu, index);
        if rule.log {
            self.write(system, guest, event, (MAX_RULES + index, index), verdict);
        }
        verdict
    }

    /// The rule that speaks of an access.
    #[inline(always)]
    fn find(&self, event: &Event, access: Access) -> Option<(usize, &RulePlan)> {
        match event.is_walk() {
            true => self.rules.find_walk(event.guest, event.page(), access),
            false => self.rules.find(event.guest, event.page(), access),
        }
    }

    /// The rule that speaks of an event: its place among all, the one in its own list, and whether it logs.
    fn rule_of(&self, event: &Event) -> Option<(usize, usize, bool)> {
        match event.what()? {
            What::Access(access) => self.find(event, access).map(|(index, rule)| (index, index, rule.log)),
            What::Heard(kind) => self.hearing.find(event.guest, kind).map(|(index, rule)| (MAX_RULES + index, index, rule.log)),
        }
    }

    /// Writes a line, unless there are too many: of the rule of all, and as its list counts it.
    #[cold]
    #[inline(never)]
    fn write(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, (all, rule): (usize, usize), verdict: Verdict) {
        let (now, hertz) = clock(system);
        self.witness.note(system, seen(event, rule, verdict, now));
        let Some(limit) = self.limits.get(all) else { return };
        let Some(spared) = limit.lock(system).admit(now, hertz) else { return };
        log!("{}", Line { guest: guest.name(), is_many: guest.vcpus() > 1, event, rule, verdict, spared });
    }

    /// What is known of a rule, by its place among all.
    fn counted<R: Copy>(&self, system: &impl System, all: usize, rule: &R, seen: u64) -> Counted<R> {
        let before = self.before.lock(system).get(all).copied().unwrap_or(0);
        Counted {
            rule: *rule,
            seen: before.wrapping_add(seen).wrapping_add(self.told.get(all).map_or(0, |told| told.load(Ordering::Relaxed))),
            stopped: self.stopped.get(all).map_or(0, |stopped| stopped.load(Ordering::Relaxed)),
            spared: self.limits.get(all).map_or(0, |limit| limit.lock(system).spared()),
        }
    }

    /// What an earlier monitor knew of a rule, by its place among all.
    fn remember<R>(&self, system: &impl System, all: usize, known: &Counted<R>) {
        if let Some(before) = self.before.lock(system).get_mut(all) {
            *before = known.seen;
        }
        if let Some(stopped) = self.stopped.get(all) {
            stopped.store(known.stopped, Ordering::Relaxed);
        }
        if let Some(limit) = self.limits.get(all) {
            *limit.lock(system) = Limit::with_spared(known.spared);
        }
    }
}

/// An event as a witness is told of it.
fn seen(event: &Event, rule: usize, verdict: Verdict, time: u64) -> Seen {
    let verdict = match verdict {
        Verdict::Deny | Verdict::Give(_) => RuleVerdict::Deny,
        Verdict::Inject(_) => RuleVerdict::Fault,
        Verdict::Stop => RuleVerdict::Stop,
        _ => RuleVerdict::Allow,
    };
    Seen {
        place: event.guest as u8,
        vcpu: event.vcpu as u8,
        rule: rule as u8,
        verdict: verdict as u8,
        number: event.number(),
        lost: 0,
        header: event.exit.header.0,
        physical: event.physical(),
        pc: event.pc(),
        time,
    }
}

impl<W: Witness> Monitor for Standard<W> {
    type State = State;
    const VERSION: u32 = 1 << 16 | 3;

    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal> {
        let here = Here::Control;
        guest.attach(system, here)?;
        guest.join(system, here)?;
        let mut stretches = 0;
        for (pages, access) in self.rules.stretches(guest.index()) {
            self.watch(system, guest, here, (pages, access)).inspect_err(|why| {
                log!("{}: {} pages at page {:#x} cannot be watched: {why:?}", guest.name(), pages.1, pages.0);
            })?;
            stretches += 1;
        }
        guest.enter(system, here)?;
        let wish = self.hearing.wish(guest.index());
        guest.listen(system, here, &wish).inspect_err(|why| log!("{}: its events cannot be heard: {why:?}", guest.name()))?;
        let how = if anew { "begins" } else { "goes on" };
        match wish.kinds.count_ones() {
            0 => log!("{} {how}, {stretches} stretches of its memory watched", guest.name()),
            kinds => log!("{} {how}, {stretches} stretches of its memory watched, {kinds} kinds of events heard", guest.name()),
        }
        Ok(())
    }

    #[inline(always)]
    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        let access = match event.what() {
            Some(What::Access(access)) => access,
            Some(What::Heard(kind)) => return self.heard(system, guest, event, kind),
            None => return Verdict::Stop,
        };
        let Some((index, rule)) = self.find(event, access) else { return self.put_right(system, guest, event) };
        let verdict = rule.verdict.into();
        if event.again {
            return verdict;
        }
        self.rules.count(event.vcpu, index);
        if rule.log {
            self.write(system, guest, event, (index, index), verdict);
        }
        verdict
    }

    fn told(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) {
        // What no rule speaks of an earlier monitor had asked for.
        let Some((all, index, is_logged)) = self.rule_of(event) else { return };
        if let Some(told) = self.told.get(all) {
            told.store(told.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
        if is_logged {
            self.write(system, guest, event, (all, index), Verdict::Allow);
        }
    }

    fn missed(&self, system: &impl System, guest: &WatchedGuest<'_>, vcpu: usize, count: u64) {
        let all = self.missed.fetch_add(count, Ordering::Relaxed).wrapping_add(count);
        let (now, hertz) = clock(system);
        if self.missing.lock(system).admit(now, hertz).is_some() {
            log!("{} (vCPU {vcpu}): {count} events came faster than they are read, {all} in all", guest.name());
        }
    }

    fn stopped(&self, _: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        if let Some(stopped) = self.rule_of(event).and_then(|(all, ..)| self.stopped.get(all)) {
            stopped.fetch_add(1, Ordering::Relaxed);
        }
        log!("{} (vCPU {}) stopped at pc {}: {:?} {why:?}", guest.name(), event.vcpu, Address(event.pc()), event.what());
    }

    fn export(&self, system: &impl System) -> State {
        let pages = self.rules.all().iter().enumerate();
        let events = self.hearing.all().iter().enumerate();
        State {
            pages: pages.map(|(index, rule)| self.counted(system, index, rule, self.rules.seen(index))).collect(),
            events: events.map(|(index, rule)| self.counted(system, MAX_RULES + index, rule, self.hearing.seen(index))).collect(),
        }
    }

    fn import(&self, system: &impl System, state: State) -> Result<(), Refusal> {
        for (index, rule) in self.rules.all().iter().enumerate() {
            let known = state.pages.iter().find(|known| known.rule == *rule);
            known.into_iter().for_each(|known| self.remember(system, index, known));
        }
        for (index, rule) in self.hearing.all().iter().enumerate() {
            let known = state.events.iter().find(|known| known.rule == *rule);
            known.into_iter().for_each(|known| self.remember(system, MAX_RULES + index, known));
        }
        Ok(())
    }

    fn count(&self, system: &impl System, rule: u64) -> Result<[u64; 5], Refusal> {
        let index = usize::try_from(rule).map_err(|_| Refusal::OutOfRange)?;
        let pages = self.rules.all();
        if let Some(rule) = pages.get(index) {
            return Ok(counts(&self.counted(system, index, rule, self.rules.seen(index)), rule.verdict));
        }
        let index = index - pages.len();
        let rule = self.hearing.all().get(index).ok_or(Refusal::OutOfRange)?;
        Ok(counts(&self.counted(system, MAX_RULES + index, rule, self.hearing.seen(index)), rule.verdict))
    }
}

/// Seen, allowed, not allowed, stopped, lines spared.
fn counts<R>(counted: &Counted<R>, verdict: RuleVerdict) -> [u64; 5] {
    let Counted { seen, stopped, spared, .. } = *counted;
    let done = seen.wrapping_sub(stopped.into());
    match verdict {
        RuleVerdict::Allow | RuleVerdict::Report => [seen, done, 0, stopped.into(), spared],
        RuleVerdict::Deny | RuleVerdict::Fault => [seen, 0, done, stopped.into(), spared],
        RuleVerdict::Stop => [seen, 0, 0, seen, spared],
    }
}
