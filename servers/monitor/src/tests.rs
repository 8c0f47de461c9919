// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories: what a monitor hears beside accesses to memory, every verdict there is, and its tools.

use crate::fake::{Ear, Fake, MEMORY, WEB, Watchdog, hearing};
use crate::guest::{Here, WatchedGuest};
use crate::tools::{Area, Kind, VECTOR_WORDS};
use crate::{Event, Monitor, MonitorServer, What};
use std::cell::Cell;
use std::sync::Mutex;
use trellis_idl::event::{EventKind, Injected, REQUEST};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Op, PAUSE, Refusal, VcpuRegister, WORDS, float_register};
use trellis_idl::layout::{badge, watched};
use trellis_idl::plan::{EventPlan, MAX_EVENT_RULES, MAX_RULES, MAX_VCPUS, MAX_WATCHED, MonitorConfig, Rule, RulePlan, RuleVerdict};
use trellis_idl::wire::{MAX_STATE, MonitorOp, Order, P2mOp, ToRoot, VcpuOp, Verdict, from_answer};
use trellis_runtime::stage1::WalkError;
use trellis_runtime::{Reply, Server, System};

fn plan(kind: EventKind, verdict: RuleVerdict) -> EventPlan {
    EventPlan { guest: 0, kind, only_changes: kind == EventKind::Tables0, ignored: 0xf00, verdict, log: true }
}

fn exit(kind: EventKind, class: ExitClass) -> Exit {
    let header = ExitHeader(class as u64 | 4 << 48);
    Exit { header, syndrome: 0x6230_0920, physical: kind.note(9), virtual_address: 1, pc: 0x4008_0000, general: [REQUEST, 5, 6, 7], value: 2 }
}

fn count(server: &Watchdog, fake: &Fake, rule: u64) -> Result<[u64; 5], Refusal> {
    let mut words = [0; WORDS];
    (words[0], words[1]) = (MonitorOp::Count as u64, rule);
    match server.call(fake, badge::ROOT, words) {
        Reply::Call(words) => from_answer(words[0]).map(|()| [words[1], words[2], words[3], words[4], words[5]]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_rule_about_events_has_its_way() {
    let kinds = [
        (EventKind::Tables0, RuleVerdict::Allow, Order::Do, 0), (EventKind::Firmware, RuleVerdict::Deny, Order::Deny, 0),
        (EventKind::Identity, RuleVerdict::Fault, Order::Inject, Injected::Abort as u64),
    ];
    let rules: Vec<EventPlan> = kinds.iter().map(|(kind, verdict, ..)| plan(*kind, *verdict)).collect();
    let page = RulePlan { guest: 0, first: 1, pages: 1, access: 2, verdict: RuleVerdict::Allow, log: false };
    let fake = Fake::default();
    let (server, ear) = hearing(&[page], &[&rules[..], &[plan(EventKind::Breakpoint, RuleVerdict::Stop)]].concat(), true);
    fake.completes(Ok(Answer::ADVANCE.register(3)), 77);
    for (kind, _, order, value) in kinds {
        let sent = exit(kind, ExitClass::Register);
        let reply = server.exit(&fake, badge::event(0, 1), &sent);
        assert_eq!(reply, Reply::Value(Answer::ADVANCE.register(3), 77));
        let [header, syndrome, physical, old, ..] = sent.to_words();
        let asked = [VcpuOp::Complete as u64, 1 | (order as u64) << 8, value, physical, header, syndrome, physical, old, 0, 0];
        assert_eq!(fake.completed(), [asked], "{kind:?}");
    }
    let stop = server.exit(&fake, badge::event(0, 0), &exit(EventKind::Breakpoint, ExitClass::Debug));
    assert_eq!((stop, ear.heard()), (Reply::Value(Answer::STOP, 0), vec![ToRoot::Stop(0)]));
    // They stand behind the rules about memory.
    let counts: Vec<_> = (0..6).map(|rule| count(&server, &fake, rule)).collect();
    let expected = [Ok([0; 5]), Ok([1, 1, 0, 0, 0]), Ok([1, 0, 1, 0, 0]), Ok([1, 0, 1, 0, 0]), Ok([1, 0, 0, 1, 0]), Err(Refusal::OutOfRange)];
    assert_eq!(counts, expected);
}

#[test]
fn what_an_earlier_monitor_heard_is_as_if_nobody_did() {
    let (fake, (server, _)) = (Fake::default(), hearing(&[], &[], true));
    fake.completes(Ok(Answer::ADVANCE), 0);
    let reply = server.exit(&fake, badge::event(0, 1), &exit(EventKind::Power, ExitClass::Hypercall));
    assert_eq!(reply, Reply::Value(Answer::ADVANCE, 0));
    assert_eq!(fake.completed()[0][1] >> 8, Order::Do as u64);
}

#[test]
fn an_event_whose_answer_nobody_knows_stops_its_guest() {
    let (fake, (server, ear)) = (Fake::default(), hearing(&[], &[plan(EventKind::Debug, RuleVerdict::Deny)], true));
    let reply = server.exit(&fake, badge::event(0, 1), &exit(EventKind::Debug, ExitClass::Debug));
    assert_eq!((reply, ear.heard()), (Reply::Value(Answer::STOP, 0), vec![ToRoot::Stop(0)]));
    assert_eq!(count(&server, &fake, 0), Ok([1, 0, 0, 1, 0]));
}

#[test]
fn a_guest_that_begins_is_heard_as_the_rules_say() {
    let rules = [plan(EventKind::Tables0, RuleVerdict::Allow), plan(EventKind::Power, RuleVerdict::Allow)];
    let (fake, (server, _)) = (Fake::default(), hearing(&[], &rules, true));
    for op in [MonitorOp::Begin, MonitorOp::Adopt] {
        let Reply::Call([0, ..]) = server.call(&fake, badge::ROOT, [op as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0]) else { panic!("it begins") };
        let kinds = u64::from(EventKind::Tables0.bit() | EventKind::Power.bit());
        assert_eq!(fake.listened(), [[VcpuOp::Listen as u64, kinds, 2, 0, 0xf00, 0, 0, 0, 0, 0]]);
    }
}

#[test]
fn the_largest_state_fits_and_is_taken_over() {
    let page = |n: u64| RulePlan { guest: 7, first: u64::MAX - n, pages: u64::MAX, access: 255, verdict: RuleVerdict::Fault, log: true };
    let event = |n: u64| EventPlan { guest: n as u8, ignored: u64::MAX, ..plan(EventKind::Hypercall, RuleVerdict::Fault) };
    let pages: Vec<_> = (0..MAX_RULES as u64).map(page).collect();
    let events: Vec<_> = (0..MAX_EVENT_RULES as u64).map(event).collect();
    let fake = Fake::default();
    let [(old, _), (new, _)] = [hearing(&pages, &events, true), hearing(&pages, &events[1..], true)];
    // As many more as there are kinds that no rule of the guest is about.
    let guest = WatchedGuest::new(0, &WEB);
    for monitor in [old.monitor(), new.monitor()] {
        for kind in EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::Hypercall) {
            let ignored = if kind.is_register() { u64::MAX } else { 0 };
            let rule = EventPlan { guest: 0, kind, only_changes: kind.is_register(), ignored, verdict: RuleVerdict::Report, log: true };
            monitor.add(&fake, &guest, Rule::Event(rule), 0, false).expect("there is room");
        }
    }
    let mut largest = old.monitor().export(&fake);
    assert_eq!(largest.added.len(), EventKind::ALL.len() - 1);
    for known in &mut largest.added {
        (known.seen, known.stopped, known.spared) = (u64::MAX, u32::MAX, u64::MAX);
    }
    for known in &mut largest.pages {
        (known.seen, known.stopped, known.spared) = (u64::MAX, u32::MAX, u64::MAX);
    }
    for (n, known) in (0..).zip(&mut largest.events) {
        (known.seen, known.stopped, known.spared) = (u64::MAX - n, u32::MAX, u64::MAX);
    }
    assert_eq!(old.monitor().import(&fake, largest), Ok(()));
    let mut words = [0; WORDS];
    words[0] = MonitorOp::Export as u64;
    let Reply::Letter(mut words, bytes) = old.call(&fake, badge::ROOT, words) else { panic!("it does not fit") };
    // It watches one guest of two vCPUs, which have decided nothing; there may be as many as a monitor watches.
    let numbers = 10 * MAX_WATCHED * MAX_VCPUS;
    assert!(bytes + numbers <= MAX_STATE, "{bytes} + {numbers}");
    words[0] = MonitorOp::Import as u64;
    let Reply::Call([0, ..]) = new.letter(&fake, badge::ROOT, words, bytes) else { panic!("it is not taken") };
    assert_eq!(count(&new, &fake, MAX_RULES as u64).map(|counts| counts[0]), Ok(u64::MAX - 1), "the rule stands elsewhere");
}

/// A monitor that says what it is told to say.
struct Parrot(Mutex<Verdict>);

impl Monitor for Parrot {
    type State = ();
    const VERSION: u32 = 0;

    fn begin(&self, _: &impl System, _: &WatchedGuest<'_>, _: bool) -> Result<(), Refusal> {
        Ok(())
    }

    fn event(&self, _: &impl System, _: &WatchedGuest<'_>, event: &Event) -> Verdict {
        assert!(matches!(event.what(), Some(What::Heard(_) | What::Access(_))));
        *self.0.lock().expect("nobody panicked")
    }

    fn stopped(&self, _: &impl System, _: &WatchedGuest<'_>, _: &Event, _: Refusal) {}
    fn export(&self, _: &impl System) {}

    fn import(&self, _: &impl System, (): ()) -> Result<(), Refusal> {
        Ok(())
    }

    fn count(&self, _: &impl System, _: u64) -> Result<[u64; 5], Refusal> {
        Err(Refusal::OutOfRange)
    }
}

#[test]
fn every_verdict_is_one_answer_to_every_kind_of_event() {
    let config = MonitorConfig { guests: [WEB].into_iter().collect(), ..MonitorConfig::default() };
    let ear: &'static Ear = Box::leak(Box::default());
    let server = MonitorServer::new(&config, Parrot(Mutex::new(Verdict::Allow)), ear);
    let fake = Fake::default();
    fake.completes(Ok(Answer::ADVANCE.register(2)), 5);
    let access = Exit { header: ExitHeader(ExitHeader::WRITE | 8 << 8 | 1 << 32), physical: 0x4020_0000, general: [0, 0, 0, 77], ..Exit::default() };
    let last = Cell::new(0);
    let asked = |order: Order, value| {
        let completed = fake.completed();
        assert_eq!(completed.len(), 1);
        assert_eq!((completed[0][1], completed[0][2], completed[0][3]), (1 | (order as u64) << 8, value, last.get()));
    };
    for sent in [access, exit(EventKind::Firmware, ExitClass::Firmware), exit(EventKind::Breakpoint, ExitClass::Debug)] {
        last.set(Event::of(0, &sent).number());
        let say = |verdict| {
            *server.monitor().0.lock().expect("nobody panicked") = verdict;
            match server.exit(&fake, badge::event(0, 1), &sent) {
                Reply::Value(answer, value) => (answer, [0, 0, 0, 0, 0, value, 0, 0, 0, 0]),
                Reply::Exit(answer, words) => (answer, words),
                other => panic!("{other:?}"),
            }
        };
        let completed = (Answer::ADVANCE.register(2), [0, 0, 0, 0, 0, 5, 0, 0, 0, 0]);
        assert_eq!(say(Verdict::Give(55)), completed);
        asked(Order::Give, 55);
        assert_eq!(say(Verdict::Inject(Injected::Breakpoint)), completed);
        asked(Order::Inject, 2);
        let elsewhere = say(Verdict::Registers { pc: 0x4000, general: [1, 2, 3, 4] });
        assert_eq!(elsewhere, (Answer::PC.with(Answer::GENERAL), [0, 0, 0, 0, 0x4000, 0, 1, 2, 3, 4]));
        assert_eq!(say(Verdict::Step(3)), (Answer::RETRY.step(3), [0; WORDS]));
        assert_eq!(say(Verdict::Retry), (Answer::RETRY, [0; WORDS]));
        assert!(fake.asked().is_empty());
        assert_eq!(say(Verdict::Enter(2)), (Answer::RETRY, [0; WORDS]));
        assert_eq!(fake.asked()[0][..3], [P2mOp::WatchEnter as u64, 1, 2]);
        assert_eq!((say(Verdict::Stop), ear.heard()), ((Answer::STOP, [0; WORDS]), vec![ToRoot::Stop(0)]));
    }
    fake.refuse();
    *server.monitor().0.lock().expect("nobody panicked") = Verdict::Enter(9);
    assert_eq!(server.exit(&fake, badge::event(0, 1), &access), Reply::Value(Answer::STOP, 0), "a view that is not its own");
    // What is no event stops the vCPU and asks nobody.
    for class in [ExitClass::Register, ExitClass::Hypercall, ExitClass::Device, ExitClass::Illegal] {
        let foreign = Exit { header: ExitHeader(class as u64), physical: 0x4020_0000, ..Exit::default() };
        assert_eq!(server.exit(&fake, badge::event(0, 1), &foreign), Reply::Value(Answer::STOP, 0));
    }
}

#[test]
fn a_guests_memory_is_read_and_written_as_far_as_it_is_there() {
    let fake = Fake::default();
    *fake.memory.borrow_mut() = vec![0; 0x10];
    let guest = WatchedGuest::new(0, &WEB);
    assert_eq!(guest.write(&fake, MEMORY + 8, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), Ok(8));
    assert_eq!(guest.read_word(&fake, MEMORY + 8), Some(0x0807_0605_0403_0201));
    assert_eq!((guest.read_word(&fake, MEMORY + 9), guest.read_word(&fake, 0), guest.read_word(&fake, u64::MAX)), (None, None, None));
    let mut bytes = [0xff; 4];
    assert_eq!((guest.read(&fake, MEMORY + 14, &mut bytes), bytes), (Ok(2), [7, 8, 0xff, 0xff]));
}

#[test]
fn a_virtual_address_is_walked_in_the_guests_memory() {
    let (fake, guest) = (Fake::default(), WatchedGuest::new(0, &WEB));
    *fake.memory.borrow_mut() = vec![0; 0x3000];
    // 39 bits in steps of 4 KiB: a table for the second GiB, in it the fourth page of the first 2 MiB.
    for (at, word) in [(8, MEMORY + 0x1000 | 3), (0x1000, MEMORY + 0x2000 | 3), (0x2018, 0x4567_8000 | 3 | 1 << 10)] {
        guest.write(&fake, MEMORY + at, &u64::to_le_bytes(word)).expect("it is there");
    }
    let registers = [
        (VcpuRegister::SctlrEl1, 1), (VcpuRegister::TcrEl1, 25), (VcpuRegister::Ttbr0El1, MEMORY), (VcpuRegister::Ttbr1El1, 0),
    ];
    assert_eq!(guest.regime(&fake, 1), Err(Refusal::BadState), "it runs");
    for (register, value) in registers {
        assert_eq!(guest.set_register(&fake, 1, register, value), Ok(()));
    }
    let regime = guest.regime(&fake, 1).expect("it stands");
    let found = guest.translate(&fake, &regime, 0x4000_3123).expect("it is mapped");
    assert_eq!((found.address, found.level), (0x4567_8123, 3));
    assert_eq!(guest.translate(&fake, &regime, 0x4000_4123).err(), Some(WalkError::Absent));
    let elsewhere = trellis_runtime::stage1::Regime { ttbr0: 0x9000_0000, ..regime };
    assert_eq!(guest.translate(&fake, &elsewhere, 0x4000_3123).err(), Some(WalkError::Unreadable));
}

#[test]
fn vector_registers_are_as_long_as_the_guests() {
    let (fake, guest) = (Fake::default(), WatchedGuest::new(0, &WEB));
    let mut words = [0; VECTOR_WORDS];
    assert_eq!(guest.vector(&fake, 1, 3, &mut words), Err(Refusal::BadState), "it runs");
    for lanes in [0, 1, 4, 16] {
        let there = |register, value| fake.registers.borrow_mut().insert((watched::vcpu(0, 1), register), value);
        there(float_register::LENGTH, lanes);
        let count = 2 * lanes.max(1);
        for word in 0..count {
            there(float_register::VECTORS + 32 * 3 + word, 100 * lanes + word);
        }
        words.fill(0);
        assert_eq!(guest.vector(&fake, 1, 3, &mut words), Ok(count as usize));
        let expected: Vec<u64> = (0..32).map(|word| if word < count { 100 * lanes + word } else { 0 }).collect();
        assert_eq!(words[..], expected, "{lanes} lanes");
    }
    assert_eq!(guest.vector(&fake, 1, 32, &mut words), Err(Refusal::OutOfRange));
    for (register, value) in [(float_register::FPSR, 5), (float_register::FPCR, 6)] {
        fake.registers.borrow_mut().insert((watched::vcpu(0, 0), register), value);
    }
    assert_eq!(guest.float_status(&fake, 0), Ok([5, 6]));
}

#[test]
fn all_vcpus_are_paused_and_resumed() {
    let (fake, guest) = (Fake::default(), WatchedGuest::new(0, &WEB));
    assert_eq!((guest.pause(&fake), guest.resume(&fake)), (Ok(1), Ok(())), "one serves an exit still");
    let done: Vec<_> = fake.done.take().into_iter().map(|(op, a)| (op, a[0], a[1])).collect();
    let [first, second] = [watched::vcpu(0, 0), watched::vcpu(0, 1)];
    assert_eq!(done, [
        (Op::VcpuStop, first, PAUSE), (Op::VcpuStop, second, PAUSE), (Op::VcpuStart, first, PAUSE), (Op::VcpuStart, second, PAUSE),
    ]);
}

#[test]
fn the_map_says_what_is_where() {
    let guest = WatchedGuest::new(0, &WEB);
    let map: Vec<Area> = guest.map().collect();
    assert_eq!(map[0], Area { first: 0x4_0000, pages: 0x1000, kind: Kind::Memory });
    let serial = Area { first: 0x9000, pages: 1, kind: Kind::Device };
    assert!(map.contains(&serial) && map.iter().all(|area| area.pages != 0));
    let mut places: Vec<_> = map.iter().map(|area| (area.first, area.first + area.pages)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "each is one thing: {places:x?}");
}

#[test]
fn what_a_page_may_be_used_for_is_asked_of_p2m() {
    let (fake, guest) = (Fake::default(), WatchedGuest::new(0, &WEB));
    assert!(guest.access(&fake, Here::Control, 0x4_0001).is_ok());
    assert_eq!(fake.asked()[0][..2], [P2mOp::ViewAccess as u64, 1 << 48 | 0x4_0001]);
}
