// SPDX-License-Identifier: MIT OR Apache-2.0
//! A monitor as a server: events come from the guests' sessions, root's calls to the control thread.

use crate::decided::{Decided, Numbers};
use crate::event::{Event, What};
use crate::guest::WatchedGuest;
use crate::heard::{Ears, Told};
use crate::monitor::Monitor;
use crate::reports::Outside;
use heapless::Vec;
use serde::{Deserialize, Serialize};
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Access, Answer, Exit, Refusal, WORDS};
use trellis_idl::layout::{badge as badges, monitor_signal};
use trellis_idl::plan::{MAX_WATCHED, MonitorConfig, WatchedPlan};
use trellis_idl::wire::{AddedRule, MAX_STATE, MonitorOp, MonitorState, Order, ToRoot, Verdict, to_answer};
use trellis_runtime::handle::clock;
use trellis_runtime::{Attends, Reply, Server, System, message};

/// What is allowed happens in one instruction in view 0, the host map.
const ALLOW: Answer = Answer::RETRY.step(0);

/// Times in a second that a monitor reads what it is told, while there is more each time: 64,000 events a second of each vCPU
/// and finder, for about a fiftieth of its CPU.
const READS: u64 = 2_000;

/// Times that an export looks whether an event is being decided, a ten-thousandth of a second apart.
const LOOKS: u32 = 20;

/// What is handed over: what the monitor knows, and up to which event of each vCPU.
#[derive(Serialize, Deserialize)]
struct Known<S> {
    state: S,
    decided: Numbers,
}

/// The server.
#[derive(Debug)]
pub struct MonitorServer<'a, M, O> {
    guests: Vec<WatchedPlan<'a>, MAX_WATCHED>,
    hands_over: bool,
    /// Index of the last thread that serves.
    control: usize,
    monitor: M,
    outside: O,
    ears: Ears,
    decided: Decided,
}

impl<'a, M: Monitor, O: Outside> MonitorServer<'a, M, O> {
    /// The server of this monitor.
    pub fn new(config: &MonitorConfig<'a>, monitor: M, outside: O) -> MonitorServer<'a, M, O> {
        let control = usize::from(config.threads).saturating_sub(1);
        MonitorServer { guests: config.guests.clone(), hands_over: config.hands_over, control, monitor, outside, ears: Ears::deaf(), decided: Decided::NOTHING }
    }

    /// The same, that is told of what it is not asked.
    pub fn hearing(self, ears: Ears) -> Self {
        MonitorServer { ears, ..self }
    }

    /// The monitor itself.
    pub const fn monitor(&self) -> &M {
        &self.monitor
    }

    #[inline(always)]
    fn guest(&self, index: usize) -> Option<WatchedGuest<'_>> {
        self.guests.get(index).map(|plan| WatchedGuest::new(index, plan))
    }

    /// What goes to the vCPU: bits alone, or what its vcpu server is to be asked for, with a value.
    #[inline(always)]
    fn answer(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, verdict: Verdict) -> Result<Answer, (Order, u64)> {
        // The syndrome says all that there is to know of it.
        let is_plain = event.width().is_some() && !event.is_walk();
        Ok(match (verdict, event.what()) {
            (Verdict::Allow, Some(What::Access(Access::READ | Access::WRITE))) if is_plain => ALLOW,
            // It may be an exclusive access, which no step gets over.
            (Verdict::Allow, _) => return Err((Order::Do, 0)),
            (Verdict::Deny, Some(What::Access(Access::WRITE))) if is_plain => Answer::ADVANCE,
            // The register becomes zero.
            (Verdict::Deny, Some(What::Access(Access::READ))) if is_plain => Answer::ADVANCE.register(event.exit.header.register()),
            (Verdict::Deny, _) => return Err((Order::Deny, 0)),
            (Verdict::Give(value), _) => return Err((Order::Give, value)),
            (Verdict::Inject(what), _) => return Err((Order::Inject, what as u64)),
            (Verdict::Step(view), _) => Answer::RETRY.step(view),
            (Verdict::Enter(view), _) => self.enter(system, guest, event, view),
            (Verdict::Retry, _) => Answer::RETRY,
            (Verdict::Registers { .. } | Verdict::Stop, _) => self.stop(system, guest),
        })
    }

    /// What goes to the vCPU where its instruction must be looked at: the guest's vcpu server knows how.
    #[cold]
    #[inline(never)]
    fn complete(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, (order, value): (Order, u64)) -> (Answer, u64) {
        let is_access = matches!(event.what(), Some(What::Access(_)));
        match guest.complete(system, event, order, value) {
            Ok(said) => said,
            // What it does not know a step does.
            Err(Refusal::Unsupported | Refusal::NotMapped) if order == Order::Do && is_access => (ALLOW, 0),
            Err(why) => (self.fail(system, guest, event, why), 0),
        }
    }

    /// The vCPU goes to another view of this monitor's, and tries again.
    #[cold]
    #[inline(never)]
    fn enter(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, view: u16) -> Answer {
        match guest.enter_one(system, event.vcpu, view) {
            Ok(()) => Answer::RETRY,
            Err(why) => self.fail(system, guest, event, why),
        }
    }

    /// The guest of an event that somebody asked to be told of.
    #[inline(always)]
    fn guest_of(&self, event: &Event) -> Option<WatchedGuest<'_>> {
        self.guest(event.guest).filter(|guest| event.vcpu < usize::from(guest.vcpus()) && event.what().is_some())
    }

    /// The vCPU stops, and root is asked to end the guest.
    #[cold]
    #[inline(never)]
    fn stop(&self, system: &impl System, guest: &WatchedGuest<'_>) -> Answer {
        self.outside.report(system, &ToRoot::Stop(guest.index() as u8));
        Answer::STOP
    }

    /// What was said cannot be done: nobody has decided, so the guest must not go on.
    #[cold]
    #[inline(never)]
    fn fail(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal) -> Answer {
        self.monitor.stopped(system, guest, event, why);
        self.stop(system, guest)
    }

    // ── root's calls ──

    /// The guest that root means.
    fn place(&self, index: u64) -> Result<WatchedGuest<'_>, Refusal> {
        usize::try_from(index).ok().and_then(|index| self.guest(index)).ok_or(Refusal::OutOfRange)
    }

    fn add(&self, system: &impl System, added: &AddedRule) -> Result<u16, Refusal> {
        let guest = self.place(added.rule.guest().into())?;
        self.monitor.add(system, &guest, added.rule, added.number, added.applies)
    }

    fn begin(&self, system: &impl System, index: u64, anew: bool) -> Result<(), Refusal> {
        let guest = self.place(index)?;
        if anew {
            self.decided.forget(guest.index());
        }
        self.monitor.begin(system, &guest, anew)?;
        self.ears.open(system, guest.index(), anew);
        Ok(())
    }

    fn export(&self, system: &impl System) -> Result<MonitorState, Refusal> {
        // What comes now the next one reads, unless root has this one go on. What was read until now is counted.
        self.ears.close(system);
        if !self.hands_over {
            return Err(Refusal::Unsupported);
        }
        let mut bytes = [0; MAX_STATE];
        let used = postcard::to_slice(&self.known(system), &mut bytes).map_err(|_| Refusal::OutOfRange)?;
        let body = Vec::from_slice(used).map_err(|_| Refusal::OutOfRange)?;
        Ok(MonitorState { version: M::VERSION, body })
    }

    /// What is counted, up to which events. Nobody is asked about anything new meanwhile; a thread that does not come to the end
    /// of what it decides is not waited for, and its event may count twice.
    fn known(&self, system: &impl System) -> Known<M::State> {
        for _ in 0..LOOKS {
            let (decided, is_whole) = self.decided.numbers(&self.guests);
            let known = Known { state: self.monitor.export(system), decided };
            if is_whole && self.decided.numbers(&self.guests) == (known.decided.clone(), true) {
                return known;
            }
            let (now, hertz) = clock(system);
            system.wait(0, now + hertz / 10_000 + 1);
        }
        Known { state: self.monitor.export(system), decided: self.decided.numbers(&self.guests).0 }
    }

    fn import(&self, system: &impl System, state: &MonitorState) -> Result<(), Refusal> {
        if state.version != M::VERSION {
            return Err(Refusal::Unsupported);
        }
        match postcard::take_from_bytes(&state.body) {
            Ok((Known { state, decided }, [])) => {
                self.decided.recall(&self.guests, &decided);
                self.monitor.import(system, state)
            }
            _ => Err(Refusal::BadArgument),
        }
    }

    fn control(&self, system: &impl System, words: &[u64; WORDS], bytes: usize) -> Reply {
        let mut answer = [0; WORDS];
        let done = match MonitorOp::from_number(words[0]) {
            Some(MonitorOp::Begin) => self.begin(system, words[1], true),
            Some(MonitorOp::Adopt) => self.begin(system, words[1], false),
            Some(MonitorOp::Export) => return message::answer(system, self.export(system)),
            Some(MonitorOp::Import) => {
                let state = message::decode(system, words, bytes);
                return message::answer(system, state.and_then(|state| self.import(system, &state)));
            }
            Some(MonitorOp::Add) => {
                let added = message::decode(system, words, bytes);
                return message::answer(system, added.and_then(|added| self.add(system, &added)));
            }
            Some(MonitorOp::Remove) => self.place(words[2]).and_then(|guest| self.monitor.remove(system, &guest, words[1])),
            Some(MonitorOp::Rule) => {
                let place = message::decode(system, words, bytes);
                return message::answer(system, place.and_then(|place| self.monitor.rule(system, place)));
            }
            Some(MonitorOp::Count) => {
                self.monitor.count(system, words[1]).map(|counts| answer[1..6].copy_from_slice(&counts))
            }
            None => Err(Refusal::NoOperation),
        };
        answer[0] = to_answer(done);
        Reply::Call(answer)
    }
}

impl<M: Monitor, O: Outside> Attends for MonitorServer<'_, M, O> {
    fn control_thread(&self) -> usize {
        self.control
    }

    /// Reads what it is told, to the end. While there is much to read it comes back after a while, and is not woken for each
    /// event: guests would pay for that.
    fn attend(&self, system: &impl System) -> (u64, u64) {
        let mut is_any = false;
        let mut hear = |place: usize, vcpu: usize, told: Told| {
            is_any |= matches!(told, Told::Event(_));
            let Some(guest) = self.guest(place) else { return };
            match told {
                Told::Event(event) => self.monitor.told(system, &guest, &event),
                Told::Missed(count) => self.monitor.missed(system, &guest, vcpu, count),
            }
        };
        while self.ears.read(system, clock(system), &mut hear) {}
        let (now, hertz) = clock(system);
        let held = self.ears.held_until(system, hertz);
        if !is_any {
            // Who is not read to the end wakes nobody.
            return (monitor_signal::TOLD, held.unwrap_or(0));
        }
        (0, now + hertz / READS)
    }
}

impl<M: Monitor, O: Outside> Server for MonitorServer<'_, M, O> {
    #[inline(always)]
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        let event = Event::of(badge, exit);
        // Nobody asked to be told of that: the vCPU must not go on as if somebody had decided.
        let Some(guest) = self.guest_of(&event) else { return Reply::Value(Answer::STOP, 0) };
        let (last, number) = (self.decided.last(event.guest, event.vcpu), event.number());
        let event = Event { again: last.begin(number), ..event };
        let verdict = self.monitor.event(system, &guest, &event);
        last.end(number);
        if let Verdict::Registers { pc, general: [a, b, c, d] } = verdict {
            return Reply::Exit(Answer::PC.with(Answer::GENERAL), [0, 0, 0, 0, pc, 0, a, b, c, d]);
        }
        // One way out with one word, so that the others stay in registers.
        let (answer, value) = match self.answer(system, &guest, &event, verdict) {
            Ok(answer) => (answer, 0),
            Err(order) => self.complete(system, &guest, &event, order),
        };
        Reply::Value(answer, value)
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        self.letter(system, badge, words, 0)
    }

    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::MONITOR, &words);
        }
        if badges::kind(badge) != badges::ROOT {
            let mut answer = [0; WORDS];
            answer[0] = to_answer(Err(Refusal::MissingRight));
            return Reply::Call(answer);
        }
        self.control(system, &words, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::ALLOW;
    use crate::Standard;
    use crate::fake::{Fake, Watchdog, heard, server};
    use trellis_idl::interface::{self, ATTACH};
    use trellis_idl::kernel::{Answer, Exit, ExitHeader, PAGE, Refusal, WORDS};
    use trellis_idl::layout::badge;
    use trellis_idl::plan::{RulePlan, RuleVerdict};
    use trellis_idl::wire::{MonitorOp, Order, P2mOp, ToRoot, VcpuOp, from_answer, to_answer};
    use trellis_runtime::{Reply, Server};

    const PAGES: u64 = 0x4_0200;

    fn rule(first: u64, access: u8, verdict: RuleVerdict) -> RulePlan {
        RulePlan { guest: 0, first, pages: 1, access, verdict, log: true }
    }

    fn rules() -> Vec<RulePlan> {
        vec![
            rule(PAGES, 2, RuleVerdict::Allow), rule(PAGES + 1, 3, RuleVerdict::Deny), rule(PAGES + 2, 7, RuleVerdict::Stop),
            rule(PAGES + 3, 4, RuleVerdict::Deny),
        ]
    }

    fn exit(page: u64, flags: u64) -> Exit {
        let header = ExitHeader(flags | ExitHeader::PERMISSION | 1 << 32 | 4 << 48);
        Exit { header, physical: page * PAGE + 16, pc: 0x4008_0000, ..Exit::default() }
    }

    fn event(server: &Watchdog, fake: &Fake, page: u64, flags: u64) -> Answer {
        match server.exit(fake, badge::event(0, 1), &exit(page, flags)) {
            Reply::Value(answer, 0) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn call(server: &Watchdog, fake: &Fake, op: MonitorOp, m1: u64) -> Result<[u64; 5], Refusal> {
        let mut words = [0; WORDS];
        (words[0], words[1]) = (op as u64, m1);
        match server.call(fake, badge::ROOT, words) {
            Reply::Call(words) => from_answer(words[0]).map(|()| [words[1], words[2], words[3], words[4], words[5]]),
            other => panic!("{other:?}"),
        }
    }

    const WRITE: u64 = ExitHeader::WRITE | 8 << 8;
    const READ: u64 = 4 << 8 | 7 << 16;

    #[test]
    fn each_rule_has_its_way() {
        let (fake, (server, ear)) = (Fake::default(), heard(&rules(), true));
        assert_eq!(event(&server, &fake, PAGES, WRITE), ALLOW);
        assert_eq!(event(&server, &fake, PAGES, ExitHeader::WRITE), ALLOW, "a pair, say");
        assert_eq!(event(&server, &fake, PAGES, ExitHeader::WRITE | ExitHeader::WALK), ALLOW, "whatever walks");
        assert_eq!(event(&server, &fake, PAGES + 1, WRITE), Answer::ADVANCE);
        assert_eq!(event(&server, &fake, PAGES + 1, READ), Answer::ADVANCE.register(7), "it reads zero");
        assert_eq!(ear.heard(), []);
        assert_eq!(event(&server, &fake, PAGES + 2, ExitHeader::FETCH), Answer::STOP);
        assert_eq!(ear.heard(), [ToRoot::Stop(0)], "root ends the guest");
        let counts = |rule| call(&server, &fake, MonitorOp::Count, rule);
        assert_eq!(counts(0), Ok([3, 3, 0, 0, 0]));
        assert_eq!(counts(1), Ok([2, 0, 2, 0, 0]));
        assert_eq!(counts(2), Ok([1, 0, 0, 1, 0]));
        assert_eq!((counts(4), counts(u64::MAX)), (Err(Refusal::OutOfRange), Err(Refusal::OutOfRange)));
        assert!(fake.asked().is_empty(), "all that is decided here");
    }

    #[test]
    fn what_the_syndrome_does_not_say_the_vcpu_server_knows() {
        let (fake, (server, ear)) = (Fake::default(), heard(&rules(), true));
        let said = |page, flags| server.exit(&fake, badge::event(0, 1), &exit(page, flags));
        fake.completes(Ok(Answer::ADVANCE.register(3)), 77);
        for (page, flags, order) in [
            (PAGES, ExitHeader::WRITE, Order::Do), (PAGES + 1, ExitHeader::WRITE, Order::Deny), (PAGES + 1, 0, Order::Deny),
            (PAGES + 3, ExitHeader::FETCH, Order::Deny),
        ] {
            assert_eq!(said(page, flags), Reply::Value(Answer::ADVANCE.register(3), 77));
            let sent = exit(page, flags).to_words();
            let asked = [VcpuOp::Complete as u64, 1 | (order as u64) << 8, 0, 0, sent[0], sent[1], sent[2], sent[3], 0, 0];
            assert_eq!(fake.completed(), [asked]);
        }
        assert_eq!(ear.heard(), []);
        // What it does not know: a step does what is allowed; for what is denied nobody knows.
        fake.completes(Err(Refusal::Unsupported), 0);
        assert_eq!(said(PAGES, ExitHeader::WRITE), Reply::Value(ALLOW, 0));
        assert_eq!(said(PAGES + 1, ExitHeader::WRITE), Reply::Value(Answer::STOP, 0));
        assert_eq!(ear.heard(), [ToRoot::Stop(0)]);
        assert_eq!(call(&server, &fake, MonitorOp::Count, 1), Ok([3, 0, 2, 1, 0]));
    }

    #[test]
    fn what_nobody_asked_to_be_told_of_stops_the_vcpu() {
        let (fake, server) = (Fake::default(), server(&rules(), true));
        for badge in [badge::event(1, 0), badge::event(0, 2), badge::event(15, 15)] {
            let reply = server.exit(&fake, badge, &exit(PAGES, WRITE));
            assert_eq!(reply, Reply::Value(Answer::STOP, 0));
        }
        assert_eq!(event(&server, &fake, PAGES, WRITE | 3), Answer::STOP, "no access to memory");
        assert_eq!(call(&server, &fake, MonitorOp::Count, 0), Ok([0; 5]));
    }

    #[test]
    fn a_page_that_an_earlier_monitor_watched_is_put_right() {
        let (fake, server) = (Fake::default(), server(&rules(), true));
        assert_eq!(event(&server, &fake, PAGES + 9, WRITE), Answer::RETRY);
        assert_eq!(event(&server, &fake, PAGES, READ), Answer::RETRY);
        let asked = fake.asked();
        assert_eq!(asked[0][..4], [P2mOp::Watch as u64, 1 << 48 | (PAGES + 9), 1, 0x102]);
        assert_eq!(asked[1][..4], [P2mOp::Watch as u64, 1 << 48 | PAGES, 1, 5]);
        fake.refuse();
        assert_eq!(event(&server, &fake, PAGES + 9, WRITE), Answer::STOP, "it would come again for ever");
    }

    #[test]
    fn a_guest_that_begins_is_watched() {
        let (fake, server) = (Fake::default(), server(&rules(), true));
        for op in [MonitorOp::Begin, MonitorOp::Adopt] {
            assert_eq!(call(&server, &fake, op, 0), Ok([0; 5]));
            let asked = fake.asked();
            let ops: Vec<u64> = asked.iter().map(|words| words[0]).collect();
            let (join, watch, enter) = (P2mOp::WatchJoin as u64, P2mOp::Watch as u64, P2mOp::WatchEnter as u64);
            assert_eq!(ops, [ATTACH, join, watch, watch, watch, watch, enter]);
            assert_eq!(asked[3][1..4], [1 << 48 | (PAGES + 1), 1, 4]);
            assert_eq!(asked[6][1..3], [u64::MAX, 1]);
        }
        assert_eq!(call(&server, &fake, MonitorOp::Begin, 1), Err(Refusal::OutOfRange));
        assert_eq!(call(&server, &fake, MonitorOp::Begin, u64::MAX), Err(Refusal::OutOfRange));
        fake.refuse();
        assert_eq!(call(&server, &fake, MonitorOp::Begin, 0), Err(Refusal::Occupied));
    }

    #[test]
    fn root_alone_controls_it() {
        let (fake, server) = (Fake::default(), server(&rules(), true));
        for who in [badge::VCPU_SERVER, badge::monitor(0, 0)] {
            for op in 0..8 {
                let mut words = [0; WORDS];
                words[0] = op;
                let expected = if op == ATTACH { Refusal::Unsupported } else { Refusal::MissingRight };
                let Reply::Call(answer) = server.call(&fake, who, words) else { panic!("a short answer") };
                assert_eq!(from_answer(answer[0]), Err(expected));
            }
        }
        let Reply::Call(answer) = server.call(&fake, badge::ROOT, interface::MONITOR.to_words(ATTACH)) else { panic!() };
        assert_eq!(answer[0], to_answer(Ok(())));
        for op in [9, 64, u64::MAX] {
            let mut words = [0; WORDS];
            words[0] = op;
            let Reply::Call(answer) = server.call(&fake, badge::ROOT, words) else { panic!("a short answer") };
            assert_eq!(from_answer(answer[0]), Err(Refusal::NoOperation));
        }
    }

    /// Operations, guests and rules: 0, the last, the count, one more, and what is round or enormous.
    #[test]
    fn every_number_that_root_says_is_tried_at_its_bounds() {
        let (fake, server) = (Fake::default(), server(&rules(), true));
        let counts = |server: &Watchdog| [0, 1, 2, 3].map(|rule| call(server, &fake, MonitorOp::Count, rule));
        event(&server, &fake, PAGES, WRITE);
        let before = counts(&server);
        for number in [1, 2, 3, 4, 5, 511, 512, 65_535, 1 << 32, 1 << 48, u64::MAX] {
            for op in [MonitorOp::Begin, MonitorOp::Adopt] {
                assert_eq!(call(&server, &fake, op, number), Err(Refusal::OutOfRange), "{op:?} {number}, of one guest");
            }
            let count = call(&server, &fake, MonitorOp::Count, number);
            assert_eq!(count.err(), (number > 3).then_some(Refusal::OutOfRange), "rule {number} of four");
            if MonitorOp::from_number(number).is_none() {
                let Reply::Call(answer) = server.call(&fake, badge::ROOT, [number; WORDS]) else { panic!("a short answer") };
                assert_eq!(from_answer(answer[0]), Err(Refusal::NoOperation), "{number}");
            }
            for event in [badge::event(number, 0), badge::event(0, number)] {
                let (guest, vcpu) = badge::of_event(event);
                if guest != 0 || vcpu > 1 {
                    let said = server.exit(&fake, event, &exit(PAGES, WRITE));
                    assert_eq!(said, Reply::Value(Answer::STOP, 0), "guest {guest}, vCPU {vcpu}: nobody asked");
                }
            }
        }
        assert_eq!(counts(&server), before, "what is refused changes nothing");
    }

    /// What root does: it carries the old one's answer to the new one as it came.
    fn hand_over(fake: &Fake, old: &Watchdog, new: &Watchdog) -> Result<(), Refusal> {
        let mut words = [0; WORDS];
        words[0] = MonitorOp::Export as u64;
        let (mut words, bytes) = match old.call(fake, badge::ROOT, words) {
            Reply::Letter(words, bytes) => (words, bytes),
            Reply::Call(words) => (words, 0),
            other => panic!("{other:?}"),
        };
        from_answer(words[0])?;
        words[0] = MonitorOp::Import as u64;
        match new.letter(fake, badge::ROOT, words, bytes) {
            Reply::Call(words) => from_answer(words[0]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_counted_is_handed_over() {
        let (fake, old, new) = (Fake::default(), server(&rules(), true), server(&rules()[1..], true));
        (0..300).for_each(|_| assert_eq!(event(&old, &fake, PAGES + 1, WRITE), Answer::ADVANCE));
        let before = call(&old, &fake, MonitorOp::Count, 1).expect("it is there");
        assert_eq!((before[0], before[4]), (300, 284), "the log was spared most");
        assert_eq!(hand_over(&fake, &old, &new), Ok(()));
        assert_eq!(call(&new, &fake, MonitorOp::Count, 0), Ok(before), "the rule stands elsewhere");
        assert_eq!(hand_over(&fake, &old, &new), Ok(()), "again changes nothing");
        event(&new, &fake, PAGES + 1, WRITE);
        assert_eq!(call(&new, &fake, MonitorOp::Count, 0).map(|counts| counts[0]), Ok(301));
    }

    /// The same event comes again where the answer to it found nobody: to this monitor, or to the one that comes after it.
    #[test]
    fn an_event_that_is_told_again_counts_once_also_after_it_was_handed_over() {
        let (fake, old, new) = (Fake::default(), server(&rules(), true), server(&rules(), true));
        let tell = |server: &Watchdog, vcpu, number| {
            let told = Exit { general: [0, 0, 0, number], ..exit(PAGES + 1, WRITE) };
            assert_eq!(server.exit(&fake, badge::event(0, vcpu), &told), Reply::Value(Answer::ADVANCE, 0));
            call(server, &fake, MonitorOp::Count, 1).map(|counts| counts[0])
        };
        assert_eq!([(0, 1), (0, 1), (1, 1), (0, 2), (0, 2), (1, 1)].map(|(vcpu, number)| tell(&old, vcpu, number)), [1, 1, 2, 3, 3, 3].map(Ok));
        assert_eq!(hand_over(&fake, &old, &new), Ok(()));
        assert_eq!([(0, 2), (1, 1), (1, 2), (0, 3)].map(|(vcpu, number)| tell(&new, vcpu, number)), [3, 3, 4, 5].map(Ok));
        // One that begins anew counts its events from 1 on.
        assert_eq!(call(&new, &fake, MonitorOp::Begin, 0), Ok([0; 5]));
        assert_eq!(tell(&new, 0, 3), Ok(6));
    }

    #[test]
    fn nothing_is_handed_over_that_is_not_to_be() {
        let (fake, old, new) = (Fake::default(), server(&rules(), false), server(&rules(), true));
        assert_eq!(hand_over(&fake, &old, &new), Err(Refusal::Unsupported));
    }

    #[test]
    fn a_state_that_is_none_changes_nothing() {
        use trellis_idl::wire::MonitorState;
        use trellis_runtime::message;
        let (fake, server) = (Fake::default(), server(&rules(), true));
        event(&server, &fake, PAGES, WRITE);
        let body = |bytes: &[u8]| heapless::Vec::from_slice(bytes).expect("short");
        let version = <Standard as crate::Monitor>::VERSION;
        let empty = MonitorState { version, body: body(&[0, 0, 0, 0]) };
        let cases = [
            (MonitorState { version: version + 1, ..empty.clone() }, Err(Refusal::Unsupported)),
            (MonitorState { version, body: body(&[]) }, Err(Refusal::BadArgument)),
            (MonitorState { version, body: body(&[0, 0, 0]) }, Err(Refusal::BadArgument)),
            (MonitorState { version, body: body(&[0, 0, 0, 0, 0]) }, Err(Refusal::BadArgument)),
            (MonitorState { version, body: body(&[33, 1, 2, 3]) }, Err(Refusal::BadArgument)),
            (MonitorState { version, body: body(&[0xff; 100]) }, Err(Refusal::BadArgument)),
            (empty.clone(), Ok(())),
        ];
        for (state, expected) in cases {
            let (words, bytes) = message::encode(&fake, MonitorOp::Import as u64, &state).expect("it fits");
            let Reply::Call(answer) = server.letter(&fake, badge::ROOT, words, bytes) else { panic!("a short answer") };
            assert_eq!(from_answer(answer[0]), expected);
            assert_eq!(call(&server, &fake, MonitorOp::Count, 0).map(|counts| counts[0]), Ok(1));
        }
        // A length that did not come along.
        let (mut words, _) = message::encode(&fake, MonitorOp::Import as u64, &empty).expect("it fits");
        words[1] = 4096;
        let Reply::Call(answer) = server.letter(&fake, badge::ROOT, words, 0) else { panic!("a short answer") };
        assert_eq!(from_answer(answer[0]), Err(Refusal::BadArgument));
    }
}
