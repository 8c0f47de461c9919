// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor: does what the manifest's rules say, counts, and writes down what it is asked to.

use crate::added::{self, Added, number_of, place_of};
use crate::event::{Event, What};
use crate::guest::{Here, WatchedGuest};
use crate::hearing::Hearing;
use crate::limit::Limit;
use crate::line::{Address, Line};
use crate::monitor::Monitor;
use crate::rules::{self, Rules, Stretch};
use crate::witness::Witness;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::event::{EventKind, Wish};
use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::plan::{EventPlan, FIRST_ADDED, MAX_ADDED, MAX_EVENT_RULES, MAX_RULES, Rule, RulePlan, RuleVerdict};
use trellis_idl::wire::{KnownRule, Seen, Verdict};
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
    /// Of rules that were added.
    pub added: Vec<Counted<Rule>, MAX_ADDED>,
}

/// Rules of both kinds: those about memory, those about other events behind them, and then those that were added.
const ALL_RULES: usize = FIRST_PLACE + MAX_ADDED;
/// Where those that were added begin.
const FIRST_PLACE: usize = MAX_RULES + MAX_EVENT_RULES;

/// The monitor.
#[derive(Debug)]
pub struct Standard<W = ()> {
    witness: W,
    rules: Rules,
    hearing: Hearing,
    added: Added,
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
            added: Added::new(),
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

    /// No rule of the manifest's speaks of this: one that was added does, or the page is as an earlier monitor, with other rules, left it.
    #[cold]
    #[inline(never)]
    fn put_right(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict {
        if let Some(verdict) = self.late(system, guest, event) {
            return verdict;
        }
        let rules = self.pages(system);
        let access = rules::allowed(&rules, event.guest, event.page());
        match self.watch(system, guest, Here::Vcpu(event.vcpu), ((event.page(), 1), access), &rules) {
            Ok(()) => Verdict::Retry,
            Err(why) => {
                self.stopped(system, guest, event, why);
                Verdict::Stop
            }
        }
    }

    /// What a rule says that was added.
    fn late(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Option<Verdict> {
        let (place, rule) = self.added.find(system, event)?;
        let (verdict, log) = said(&rule);
        if log && !event.again {
            self.write(system, guest, event, (FIRST_PLACE + place, number_of(place) as usize - 1), verdict.into());
        }
        Some(verdict.into())
    }

    /// All rules about memory.
    fn pages(&self, system: &impl System) -> Vec<RulePlan, MAX_RULES> {
        added::pages_of(self.rules.all(), &self.added.all(system))
    }

    /// Pages of which the rules say the same are watched as they say.
    fn watch(
        &self, system: &impl System, guest: &WatchedGuest<'_>, here: Here, (pages, access): Stretch, rules: &[RulePlan],
    ) -> Result<(), Refusal> {
        guest.watch_so(system, here, pages, access, rules::wishes(rules, guest.index(), pages.0))
    }

    /// What a rule is about is watched or heard as all rules say now.
    fn settle(&self, system: &impl System, guest: &WatchedGuest<'_>, rule: &Rule) -> Result<(), Refusal> {
        match rule {
            Rule::Pages(rule) => {
                let rules = self.pages(system);
                let mut stretches = rules::within(&rules, guest.index(), (rule.first, rule.pages));
                stretches.try_for_each(|stretch| self.watch(system, guest, Here::Control, stretch, &rules))
            }
            Rule::Event(_) => guest.listen(system, Here::Control, &self.wish(system, guest.index())),
        }
    }

    /// All that is to be heard of a guest.
    fn wish(&self, system: &impl System, guest: usize) -> Wish {
        added::wish_of(self.hearing.all(), &self.added.all(system), guest)
    }

    /// Whether there is room for a rule, and nothing says anything about that yet.
    fn has_room_for(&self, system: &impl System, rule: &Rule) -> Result<(), Refusal> {
        let late = self.added.all(system);
        let pages = self.rules.all().iter().map(|rule| Rule::Pages(*rule));
        let events = self.hearing.all().iter().map(|rule| Rule::Event(*rule));
        let mut all = pages.chain(events).chain(late.iter().map(|(_, rule)| *rule));
        if all.any(|other| added::overlap(&other, rule)) {
            return Err(Refusal::Occupied);
        }
        let is_full = matches!(rule, Rule::Pages(_)) && added::pages_of(self.rules.all(), &late).is_full();
        if is_full { Err(Refusal::Quota) } else { Ok(()) }
    }

    /// What is counted of a place begins anew.
    fn forget(&self, system: &impl System, place: usize) {
        self.remember(system, place, &Counted { rule: (), seen: 0, stopped: 0, spared: 0 });
        if let Some(told) = self.told.get(place) {
            told.store(0, Ordering::Relaxed);
        }
    }

    /// Something else than an access. What no rule speaks of an earlier monitor heard: it is as if nobody did.
    #[cold]
    #[inline(never)]
    fn heard(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, kind: EventKind) -> Verdict {
        let Some((index, rule)) = self.hearing.find(event.guest, kind) else {
            return self.late(system, guest, event).unwrap_or(Verdict::Allow);
        };
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
    fn rule_of(&self, system: &impl System, event: &Event) -> Option<(usize, usize, bool)> {
        let manifests = match event.what()? {
            What::Access(access) => self.find(event, access).map(|(index, rule)| (index, index, rule.log)),
            What::Heard(kind) => self.hearing.find(event.guest, kind).map(|(index, rule)| (MAX_RULES + index, index, rule.log)),
        };
        let late = |(place, rule)| (FIRST_PLACE + place, number_of(place) as usize - 1, said(&rule).1);
        manifests.or_else(|| self.added.find(system, event).map(late))
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
        let rules = self.pages(system);
        for (pages, access) in rules::stretches(&rules, guest.index()) {
            self.watch(system, guest, here, (pages, access), &rules).inspect_err(|why| {
                log!("{}: {} pages at page {:#x} cannot be watched: {why:?}", guest.name(), pages.1, pages.0);
            })?;
            stretches += 1;
        }
        guest.enter(system, here)?;
        let wish = self.wish(system, guest.index());
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
        let Some((all, index, is_logged)) = self.rule_of(system, event) else { return };
        // Those that were added count themselves when they are found.
        if let Some(told) = self.told.get(all).filter(|_| all < FIRST_PLACE) {
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

    fn stopped(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) {
        if let Some(stopped) = self.rule_of(system, event).and_then(|(all, ..)| self.stopped.get(all)) {
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
            added: self.added.all(system).into_iter().filter_map(|(place, _)| self.counted_at(system, place)).collect(),
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
        // Which rules were added root knows, and has told already.
        for (place, rule) in self.added.all(system) {
            let known = state.added.iter().find(|known| known.rule == rule);
            known.into_iter().for_each(|known| self.remember(system, FIRST_PLACE + place, known));
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

    fn add(&self, system: &impl System, guest: &WatchedGuest<'_>, rule: Rule, number: u16, applies: bool) -> Result<u16, Refusal> {
        added::check(&rule, guest.pages())?;
        self.has_room_for(system, &rule)?;
        // It is there before anybody asks about it.
        let place = self.added.put(system, rule, number)?;
        self.forget(system, FIRST_PLACE + place);
        if let Err(why) = if applies { self.settle(system, guest, &rule) } else { Ok(()) } {
            self.added.take(system, place);
            // As it was before; where that is refused too, events that nobody speaks of put it right.
            let _ = self.settle(system, guest, &rule);
            return Err(why);
        }
        Ok(number_of(place))
    }

    fn remove(&self, system: &impl System, guest: &WatchedGuest<'_>, number: u64) -> Result<(), Refusal> {
        let place = match u16::try_from(number) {
            Ok(number) if number < FIRST_ADDED => return Err(Refusal::MissingRight),
            Ok(number) => place_of(number).ok_or(Refusal::NotMapped)?,
            Err(_) => return Err(Refusal::NotMapped),
        };
        let (rule, _) = self.added.at(system, place).ok_or(Refusal::NotMapped)?;
        if usize::from(rule.guest()) != guest.index() {
            return Err(Refusal::NotMapped);
        }
        self.added.take(system, place);
        // What is asked about it meanwhile is as if nobody had watched.
        self.settle(system, guest, &rule)
    }

    fn rule(&self, system: &impl System, place: u64) -> Result<KnownRule, Refusal> {
        let place = usize::try_from(place).map_err(|_| Refusal::OutOfRange)?;
        let (pages, events) = (self.rules.all(), self.hearing.all());
        let known = |number: usize, is_added, rule, counts| KnownRule { number: number as u16, is_added, rule, counts };
        if let Some(rule) = pages.get(place) {
            return Ok(known(place + 1, false, Rule::Pages(*rule), self.count(system, place as u64)?));
        }
        if let Some(rule) = events.get(place - pages.len()) {
            return Ok(known(place - pages.len() + 1, false, Rule::Event(*rule), self.count(system, place as u64)?));
        }
        let place = place - pages.len() - events.len();
        if place >= MAX_ADDED {
            return Err(Refusal::OutOfRange);
        }
        let counted = self.counted_at(system, place).ok_or(Refusal::NotMapped)?;
        Ok(known(number_of(place).into(), true, counted.rule, counts(&counted, said(&counted.rule).0)))
    }
}

impl<W: Witness> Standard<W> {
    /// What is known of a rule that was added.
    fn counted_at(&self, system: &impl System, place: usize) -> Option<Counted<Rule>> {
        let (rule, used) = self.added.at(system, place)?;
        Some(self.counted(system, FIRST_PLACE + place, &rule, used))
    }
}

/// What a rule says, and whether it is written down.
const fn said(rule: &Rule) -> (RuleVerdict, bool) {
    match rule {
        Rule::Pages(rule) => (rule.verdict, rule.log),
        Rule::Event(rule) => (rule.verdict, rule.log),
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
