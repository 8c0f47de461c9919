// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories: what monitors hear, and what becomes of it.

use crate::fake::{Desk, Fake, MEMORY};
use crate::server::VcpuServer;
use trellis_idl::event::{EventKind, Injected, REQUEST};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Op, Refusal, Traps, VcpuRegister, WORDS};
use trellis_idl::layout::{badge, slot};
use trellis_idl::plan::{MAX_VCPUS, VcpuConfig};
use trellis_idl::wire::{GuestEnd, Order, ToRoot, VcpuOp, from_answer};
use trellis_runtime::event_ring::{EventPage, Found, Reader};
use trellis_runtime::{Reply, Server, dispatch};

const PC: u64 = MEMORY + 0x400;
/// `msr ttbr0_el1, x9`, `msr sctlr_el1, xzr`, `mrs x9, id_aa64pfr0_el1`.
const WRITE_TABLES: u64 = 0x6230_0920;
const CLEAR_CONTROL: u64 = 0x6230_07e0;
const READ_IDENTITY: u64 = 0x6230_0129;
const BREAKPOINT: u64 = 0x3c << 26 | 1 << 25 | 0x77;
const CPU_OFF: u64 = 0x8400_0002;
const PSCI_VERSION: u64 = 0x8400_0000;

fn config(vcpus: u8) -> VcpuConfig<'static> {
    VcpuConfig {
        watchers: 0,
        guest: "g", vcpus, memory_base: MEMORY, memory_bytes: 1 << 20, loads: Default::default(), entry: MEMORY, x0: 5, gic: 3,
        aarch32: false,
        bus: None,
    }
}

fn start(server: &VcpuServer<'_, Desk>, system: &Fake) {
    let mut words = [0; WORDS];
    words[0] = VcpuOp::Start as u64;
    assert!(matches!(dispatch(server, system, badge::ROOT, words), Reply::Call([0, ..])));
}

fn started(vcpus: u8) -> (VcpuServer<'static, Desk>, Fake) {
    let (server, system) = (VcpuServer::new(config(vcpus), Desk::default()), Fake::new(vcpus.into()));
    start(&server, &system);
    (server, system)
}

fn call(server: &VcpuServer<'_, Desk>, system: &Fake, badge: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
    match dispatch(server, system, badge, words) {
        Reply::Call(words) => from_answer(words[0]).map(|()| words),
        other => panic!("{other:?}"),
    }
}

fn bits(kinds: &[EventKind]) -> u64 {
    kinds.iter().fold(0, |all, kind| all | u64::from(kind.bit()))
}

/// A session hears these; of registers all writes, but for ignored bits of the translation tables' root.
fn listen(server: &VcpuServer<'_, Desk>, system: &Fake, session: u64, kinds: &[EventKind], changes: u64, ignored: u64) -> Result<(), Refusal> {
    // Of some kinds one can only be told.
    let told: Vec<_> = kinds.iter().copied().filter(|kind| kind.is_only_told()).collect();
    let words = [VcpuOp::Listen as u64, bits(kinds) | bits(&told) << 32, changes, 0, ignored, 0, 0, 0, 0, 0];
    call(server, system, badge::monitor(session, 0), words).map(drop)
}

fn exit(class: ExitClass, syndrome: u64, general: [u64; 4]) -> Exit {
    let length = if class == ExitClass::Hypercall { 0 } else { 4 };
    Exit { header: ExitHeader(class as u64 | length << 48), syndrome, general, pc: PC, ..Exit::default() }
}

fn write(syndrome: u64, value: u64) -> Exit {
    Exit { value, ..exit(ExitClass::Register, syndrome, [0; 4]) }
}

/// What an exit is told as, if anybody hears of it.
fn told(server: &VcpuServer<'_, Desk>, system: &Fake, index: u64, exit: &Exit) -> Option<(u64, Exit)> {
    match server.exit(system, badge::EXIT | index, exit) {
        Reply::Watched(session, words) => Some((session - slot::SESSION, Exit::from_words(words))),
        Reply::Value(..) => None,
        other => panic!("{other:?}"),
    }
}

/// How a monitor is told to answer.
fn complete(server: &VcpuServer<'_, Desk>, system: &Fake, order: Order, value: u64, event: &Exit) -> Result<(Answer, u64), Refusal> {
    let [header, syndrome, physical, virtual_address, ..] = event.to_words();
    let words = [VcpuOp::Complete as u64, (order as u64) << 8, value, physical, header, syndrome, physical, virtual_address, 0, 0];
    call(server, system, badge::monitor(0, 0), words).map(|words| (Answer(words[1]), words[3]))
}

#[test]
fn what_nobody_hears_costs_no_message_and_is_done() {
    let (server, system) = started(1);
    let everything = [
        write(WRITE_TABLES, 7), exit(ExitClass::Register, READ_IDENTITY, [0; 4]), exit(ExitClass::Firmware, 0, [PSCI_VERSION, 0, 0, 0]),
        exit(ExitClass::Hypercall, 0, [REQUEST, 0, 0, 0]), exit(ExitClass::Debug, BREAKPOINT, [0; 4]),
    ];
    for exit in &everything {
        assert_eq!(told(&server, &system, 0, exit), None);
    }
    // And one that hears something else hears nothing of them.
    listen(&server, &system, 0, &[EventKind::Power], 0, 0).expect("it may");
    for exit in &everything {
        assert_eq!(told(&server, &system, 0, exit), None);
    }
    assert_eq!(system.register(0, VcpuRegister::Ttbr0El1), 7);
}

#[test]
fn each_kind_is_told_to_the_session_that_hears_it_with_the_exits_words() {
    let (server, system) = started(2);
    listen(&server, &system, 1, &[EventKind::Tables0, EventKind::Identity, EventKind::Breakpoint], 0, 0).expect("it may");
    listen(&server, &system, 3, &[EventKind::Firmware, EventKind::Request, EventKind::Power], 0, 0).expect("it may");
    system.set(1, VcpuRegister::Ttbr0El1 as u64, 0x4000_0000);
    let cases = [
        (write(WRITE_TABLES, 0x4100_0000), 1, EventKind::Tables0),
        (exit(ExitClass::Register, READ_IDENTITY, [0; 4]), 1, EventKind::Identity),
        (exit(ExitClass::Debug, BREAKPOINT, [0; 4]), 1, EventKind::Breakpoint),
        (exit(ExitClass::Firmware, 0, [PSCI_VERSION, 1, 2, 3]), 3, EventKind::Firmware),
        (exit(ExitClass::Firmware, 5, [REQUEST, 1, 2, 3]), 3, EventKind::Firmware),
        (exit(ExitClass::Firmware, 0, [REQUEST, 1, 2, 3]), 3, EventKind::Request),
        (exit(ExitClass::Hypercall, 0, [REQUEST, 1, 2, 3]), 3, EventKind::Request),
        (exit(ExitClass::Hypercall, 0, [CPU_OFF, 1, 2, 3]), 3, EventKind::Power),
        (exit(ExitClass::Firmware, 0, [CPU_OFF, 1, 2, 3]), 3, EventKind::Power),
    ];
    for (number, (sent, session, kind)) in (1..).zip(&cases) {
        let (whose, event) = told(&server, &system, 1, sent).expect("it is heard");
        assert_eq!((whose, EventKind::of_note(event.physical)), (*session, Some(*kind)));
        assert_eq!(event.physical, kind.note(number), "each has its number");
        let held = if kind.is_register() { 0x4000_0000 } else { 0 };
        assert_eq!(Exit { physical: 0, ..event }, Exit { virtual_address: held, ..*sent });
        // Told again it is the same.
        let (_, again) = told(&server, &system, 1, &event).expect("it is heard");
        assert_eq!(again, event);
    }
    assert_eq!(told(&server, &system, 0, &exit(ExitClass::Hypercall, 0, [PSCI_VERSION, 0, 0, 0])), None);
    let stepped = ExitHeader(ExitClass::Debug as u64 | ExitHeader::STEPPED);
    assert_eq!(told(&server, &system, 0, &Exit { header: stepped, syndrome: BREAKPOINT, ..Exit::default() }), None);
}

#[test]
fn the_measured_call_is_heard_like_any_other() {
    let (server, system) = started(1);
    let ping = exit(ExitClass::Hypercall, 0x5a00_0000, [0xc600_0000, 41, 0, 0]);
    assert_eq!(told(&server, &system, 0, &ping), None);
    listen(&server, &system, 0, &[EventKind::Hypercall], 0, 0).expect("it may");
    let (_, event) = told(&server, &system, 0, &ping).expect("it is heard");
    for (number, value) in ping.general.iter().zip(0..).map(|(value, number)| (number, *value)) {
        system.set(0, number, value);
    }
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::RETRY.register(0), 42)));
}

#[test]
fn writes_that_change_nothing_of_interest_are_none() {
    let (server, system) = started(1);
    let (tables, asid) = (0x4000_0000u64, 0xffff << 48);
    let is_told = |old, new| {
        system.set(0, VcpuRegister::Ttbr0El1 as u64, old);
        let told = told(&server, &system, 0, &write(WRITE_TABLES, new)).is_some();
        assert!(told || system.register(0, VcpuRegister::Ttbr0El1) == new, "what is not told is done");
        told
    };
    listen(&server, &system, 0, &[EventKind::Tables0], 0, asid).expect("it may");
    assert!(is_told(tables, tables), "every write");
    assert!(!is_told(tables, tables | 1 << 48), "ignored bits alone");
    assert!(is_told(tables, tables + 0x1000) && is_told(tables, tables + 0x1000 | 1 << 48), "all that changes must be ignored");
    listen(&server, &system, 0, &[EventKind::Tables0], EventKind::Tables0.bit().into(), 0).expect("it may");
    assert!(!is_told(tables, tables) && is_told(tables, tables | 1 << 48));
    // What is written with register 31 is zero.
    listen(&server, &system, 0, &[EventKind::SystemControl], EventKind::SystemControl.bit().into(), 0).expect("it may");
    system.set(0, VcpuRegister::SctlrEl1 as u64, 0);
    assert_eq!(told(&server, &system, 0, &write(CLEAR_CONTROL, 99)), None);
    system.set(0, VcpuRegister::SctlrEl1 as u64, 1);
    assert!(told(&server, &system, 0, &write(CLEAR_CONTROL, 99)).is_some());
    assert_eq!(told(&server, &system, 0, &write(WRITE_TABLES, 99)), None, "not heard any more");
}

#[test]
fn what_is_heard_traps_in_every_vcpu_whether_it_runs_or_not() {
    let (server, system) = started(2);
    // vCPU 0 runs, vCPU 1 does not.
    let traps = || (0..2).map(|vcpu| system.state.lock().unwrap().traps.get(&vcpu).copied()).collect::<Vec<_>>();
    let running = || system.state.lock().unwrap().running.contains(&0);
    assert!(running());
    listen(&server, &system, 0, &[EventKind::Tables1], 0, 0).expect("it may");
    assert_eq!(traps(), [Some(Traps::MEMORY_REGISTERS.0); 2]);
    listen(&server, &system, 1, &[EventKind::Debug], 0, 0).expect("it may");
    assert_eq!(traps(), [Some(Traps::ALL.0); 2]);
    listen(&server, &system, 0, &[EventKind::Firmware], 0, 0).expect("it may");
    assert_eq!(traps(), [Some(Traps::BREAKPOINT.0); 2]);
    listen(&server, &system, 1, &[], 0, 0).expect("it may");
    assert_eq!(traps(), [Some(0); 2]);
    assert!(running(), "it goes on");
}

#[test]
fn a_session_speaks_for_itself_and_takes_nothing_of_others() {
    let (server, system) = started(1);
    listen(&server, &system, 0, &[EventKind::Firmware, EventKind::Identity], 0, 0).expect("it may");
    assert_eq!(listen(&server, &system, 1, &[EventKind::Power, EventKind::Identity], 0, 0), Err(Refusal::Occupied));
    assert_eq!(told(&server, &system, 0, &exit(ExitClass::Hypercall, 0, [CPU_OFF, 0, 0, 0])), None, "nothing of it is done");
    assert_eq!(listen(&server, &system, 4, &[EventKind::Power], 0, 0), Err(Refusal::OutOfRange));
    assert_eq!(listen(&server, &system, 15, &[EventKind::Power], 0, 0), Err(Refusal::OutOfRange));
    for (kinds, changes) in [(1 << 13, 0), (u64::MAX, 0), (1 << 32, 0), (0, 1 << 6), (0, u64::MAX)] {
        let words = [VcpuOp::Listen as u64, kinds, changes, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(call(&server, &system, badge::monitor(2, 0), words), Err(Refusal::BadArgument));
    }
    for badge in [badge::ROOT, badge::VCPU_SERVER] {
        let refused = call(&server, &system, badge, [VcpuOp::Listen as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(refused, Err(if badge == badge::ROOT { Refusal::NoOperation } else { Refusal::MissingRight }));
    }
    // The other has what it had.
    listen(&server, &system, 0, &[EventKind::Firmware], 0, 0).expect("it may");
    listen(&server, &system, 1, &[EventKind::Power, EventKind::Identity], 0, 0).expect("it is free now");
}

/// vCPUs, orders, kinds, sessions and operations: 0, the last, the count, one more, and what is round or enormous.
#[test]
fn every_number_that_is_said_to_it_is_tried_at_its_bounds() {
    let (server, system) = started(2);
    listen(&server, &system, 0, &[EventKind::Tables0], 0, 0).expect("it may");
    system.set(0, VcpuRegister::Ttbr0El1 as u64, 7);
    system.set(0, 9, 0x4200_0000);
    let (_, event) = told(&server, &system, 0, &write(WRITE_TABLES, 0x4200_0000)).expect("it is heard");
    let [header, syndrome, physical, virtual_address, ..] = event.to_words();
    let completes = |which: u64, badge: u64| {
        let words = [VcpuOp::Complete as u64, which, 0, physical, header, syndrome, physical, virtual_address, 0, 0];
        call(&server, &system, badge, words)
    };
    for number in [0, 1, 2, 3, 4, 5, 7, 8, 63, 64, 255, 256, 511, 512, 65_535, 1 << 32, 1 << 48, u64::MAX] {
        if (2..256).contains(&number) {
            assert_eq!(completes(number, badge::monitor(0, 0)), Err(Refusal::OutOfRange), "vCPU {number}");
        }
        if (4..1 << 56).contains(&number) {
            assert_eq!(completes(number << 8, badge::monitor(0, 0)), Err(Refusal::BadArgument), "order {number}");
        }
        if VcpuOp::Listen as u64 + 1 <= number {
            for badge in [badge::ROOT, badge::monitor(0, 0)] {
                let refused = call(&server, &system, badge, [number; WORDS]);
                assert_eq!(refused, Err(if badge == badge::ROOT { Refusal::NoOperation } else { Refusal::MissingRight }), "{number}");
            }
        }
        let kinds = [VcpuOp::Listen as u64, number, number, number, number, number, number, number, number, 0];
        let known = EventKind::ALL.iter().fold(0, |all, kind| all | u64::from(kind.bit()));
        if number & !(known | known << 32) != 0 {
            assert_eq!(call(&server, &system, badge::monitor(0, 0), kinds), Err(Refusal::BadArgument), "kinds {number:#x}");
        }
        let said = server.exit(&system, badge::EXIT | number & 0xff, &write(READ_IDENTITY, 0));
        assert!(matches!(said, Reply::Value(..)), "vCPU {number}: nobody hears of that");
    }
    for session in [4, 5, 14, 15] {
        let words = [VcpuOp::Listen as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(call(&server, &system, badge::monitor(session, 0), words), Err(Refusal::OutOfRange), "session {session}");
    }
    assert_eq!(system.register(0, VcpuRegister::Ttbr0El1), 7, "what is refused has no effect");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::ADVANCE, 0)), "and what waits goes on");
    assert_eq!(system.register(0, VcpuRegister::Ttbr0El1), 0x4200_0000);
}

#[test]
fn what_is_allowed_is_done_as_if_nobody_had_heard_of_it() {
    let (server, system) = started(1);
    listen(&server, &system, 0, &EventKind::ALL, 0, 0).expect("it may");
    system.set(0, 9, 0x4200_0000);
    let (_, event) = told(&server, &system, 0, &write(WRITE_TABLES, 0x4200_0000)).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::ADVANCE, 0)));
    assert_eq!(system.register(0, VcpuRegister::Ttbr0El1), 0x4200_0000);
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Register, READ_IDENTITY, [0; 4])).expect("it is heard");
    let (answer, _) = complete(&server, &system, Order::Do, 0, &event).expect("it is done");
    assert_eq!(answer, Answer::ADVANCE.register(9));
    system.set(0, 0, PSCI_VERSION);
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Firmware, 0, [PSCI_VERSION, 0, 0, 0])).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::ADVANCE.register(0), 0x1_0001)), "PSCI goes on");
    system.set(0, 0, REQUEST);
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Hypercall, 0, [REQUEST, 0, 0, 0])).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::RETRY.register(0), 0)));
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Debug, BREAKPOINT, [0; 4])).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::RETRY, 0)));
    let exceptions: Vec<_> = system.state.lock().unwrap().done.iter().filter(|(op, _)| *op == Op::VcpuException).map(|(_, a)| a[1]).collect();
    assert_eq!(exceptions, [BREAKPOINT], "it is the guest's own");
}

#[test]
fn asked_twice_it_is_done_once() {
    let (server, system) = started(1);
    listen(&server, &system, 0, &[EventKind::Power], 0, 0).expect("it may");
    system.set(0, 0, CPU_OFF);
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Hypercall, 0, [CPU_OFF, 0, 0, 0])).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::STOP, 0)));
    // Its registers are another's by now; the next monitor asks again all the same.
    system.set(0, 0, 0x8400_0008);
    assert_eq!(complete(&server, &system, Order::Do, 0, &event), Ok((Answer::STOP, 0)));
    assert!(server.outside_for_tests().reports.lock().unwrap().is_empty());
    let next = Exit { physical: EventKind::Power.note(99), ..event };
    complete(&server, &system, Order::Do, 0, &next).expect("another event");
    assert_eq!(*server.outside_for_tests().reports.lock().unwrap(), [ToRoot::Ended(GuestEnd::Off)]);
}

#[test]
fn what_is_denied_is_skipped_and_what_is_given_is_found() {
    let (server, system) = started(1);
    listen(&server, &system, 0, &EventKind::ALL, 0, 0).expect("it may");
    let cases = [
        (write(WRITE_TABLES, 7), Answer::ADVANCE, [0, 0]),
        (exit(ExitClass::Register, READ_IDENTITY, [0; 4]), Answer::ADVANCE.register(9), [0, 55]),
        (exit(ExitClass::Firmware, 0, [CPU_OFF, 0, 0, 0]), Answer::ADVANCE.register(0), [u64::MAX, 55]),
        (exit(ExitClass::Hypercall, 0, [REQUEST, 0, 0, 0]), Answer::RETRY.register(0), [u64::MAX, 55]),
        (exit(ExitClass::Debug, BREAKPOINT, [0; 4]), Answer::ADVANCE, [0, 0]),
    ];
    let before = system.count(Op::VcpuSet);
    for (sent, answer, values) in cases {
        for (order, value) in [Order::Deny, Order::Give].into_iter().zip(values) {
            let (_, event) = told(&server, &system, 0, &sent).expect("it is heard");
            assert_eq!(complete(&server, &system, order, 55, &event), Ok((answer, value)), "{sent:?}");
        }
    }
    assert_eq!(system.count(Op::VcpuSet), before, "nothing of it is done");
    let (_, watchpoint) = told(&server, &system, 0, &exit(ExitClass::Debug, 0x34 << 26, [0; 4])).expect("it is heard");
    assert_eq!(complete(&server, &system, Order::Deny, 0, &watchpoint), Err(Refusal::Unsupported));
    for class in [ExitClass::Device, ExitClass::Wait, ExitClass::Float, ExitClass::Illegal, ExitClass::SystemError] {
        for order in [Order::Do, Order::Deny, Order::Give] {
            let forged = Exit { physical: EventKind::Debug.note(1000), ..exit(class, 0, [0; 4]) };
            assert_eq!(complete(&server, &system, order, 0, &forged), Err(Refusal::BadArgument), "{class:?}");
        }
    }
}

#[test]
fn an_exception_comes_where_the_guest_stands() {
    let (server, system) = started(1);
    let last = || system.state.lock().unwrap().done.iter().rfind(|(op, _)| *op == Op::VcpuException).map(|(_, a)| [a[1], a[2]]);
    system.set(0, VcpuRegister::Pc as u64, PC);
    let mut number = 0;
    let mut inject = |exit: Exit, what: Injected| {
        number += 1;
        let event = Exit { physical: EventKind::Firmware.note(number), ..exit };
        assert_eq!(complete(&server, &system, Order::Inject, what as u64, &event), Ok((Answer::RETRY, 0)));
        last().expect("there is one")
    };
    assert_eq!(inject(exit(ExitClass::Firmware, 0, [0; 4]), Injected::Undefined), [1 << 25, 0]);
    assert_eq!(inject(exit(ExitClass::Register, WRITE_TABLES, [0; 4]), Injected::Abort), [1 << 25, 0], "nothing is accessed");
    assert_eq!(inject(exit(ExitClass::Debug, BREAKPOINT, [0; 4]), Injected::Breakpoint), [0x3c << 26 | 1 << 25, 0]);
    assert_eq!(system.register(0, VcpuRegister::Pc), PC);
    inject(exit(ExitClass::Hypercall, 0, [0; 4]), Injected::Undefined);
    assert_eq!(system.register(0, VcpuRegister::Pc), PC - 4, "HVC leaves the program counter behind itself");
    let access = |flags: u64, syndrome| Exit { header: ExitHeader(flags | 4 << 48), syndrome, virtual_address: 0x1234, ..Exit::default() };
    let valid = ExitHeader::VIRTUAL_VALID;
    assert_eq!(inject(access(valid | ExitHeader::WRITE, 1 << 6), Injected::Abort), [0x25 << 26 | 1 << 25 | 1 << 6 | 0x10, 0x1234]);
    assert_eq!(inject(access(valid | ExitHeader::USER, 0), Injected::Abort), [0x24 << 26 | 1 << 25 | 0x10, 0x1234]);
    assert_eq!(inject(access(valid | ExitHeader::FETCH, 0), Injected::Abort), [0x21 << 26 | 1 << 25 | 0x10, 0x1234]);
    assert_eq!(inject(access(ExitHeader::FETCH | ExitHeader::USER, 0), Injected::Abort), [0x20 << 26 | 1 << 25 | 1 << 10 | 0x10, 0]);
    let event = Exit { physical: EventKind::Firmware.note(999), ..exit(ExitClass::Firmware, 0, [0; 4]) };
    assert_eq!(complete(&server, &system, Order::Inject, 3, &event), Err(Refusal::BadArgument));
}

#[test]
fn without_anybody_to_hear_it_it_is_done() {
    let (server, system) = started(1);
    listen(&server, &system, 0, &[EventKind::Tables0, EventKind::Firmware], 0, 0).expect("it may");
    system.set(0, 9, 77);
    let (_, event) = told(&server, &system, 0, &write(WRITE_TABLES, 77)).expect("it is heard");
    assert_eq!(server.unwatched(&system, badge::EXIT, &event), Reply::Value(Answer::ADVANCE, 0));
    assert_eq!(system.register(0, VcpuRegister::Ttbr0El1), 77);
    system.set(0, 0, PSCI_VERSION);
    let (_, event) = told(&server, &system, 0, &exit(ExitClass::Firmware, 0, [PSCI_VERSION, 0, 0, 0])).expect("it is heard");
    assert_eq!(server.unwatched(&system, badge::EXIT, &event), Reply::Value(Answer::ADVANCE.register(0), 0x1_0001));
}

proptest::proptest! {
    #[test]
    fn no_listener_and_no_order_makes_it_panic(
        asked in proptest::collection::vec(
            (proptest::array::uniform10(proptest::num::u64::ANY), 0u64..6, 0u64..16, 0u64..12, proptest::bool::ANY), 1..30,
        ),
    ) {
        let (server, system) = started(2);
        for (mut words, op, session, class, small) in asked {
            words[0] = op;
            if small {
                words[1] &= if op == VcpuOp::Listen as u64 { 0x1fff } else { 0x301 };
                words[2] &= 3;
                words[4] = words[4] & !0xff | class;
            }
            let _ = dispatch(&server, &system, badge::monitor(session, 0), words);
            words[0] = words[0] & !0xff | class;
            let _ = dispatch(&server, &system, badge::EXIT | session % MAX_VCPUS as u64, words);
        }
    }
}

/// What stands in a ring: kind, vCPU, where it stands, and its `x0`.
fn read(reader: &mut Reader, page: &EventPage) -> Vec<(EventKind, u64, u64, u64)> {
    let found = std::iter::from_fn(|| match reader.next(&page.0) {
        Some(Found::Entry([_, number, words @ ..])) => {
            let exit = Exit::from_words(words);
            assert_eq!(number, exit.physical);
            Some((EventKind::of_note(exit.physical).expect("an event"), exit.virtual_address, exit.pc, exit.general[0]))
        }
        _ => None,
    });
    found.collect()
}

#[test]
fn each_vcpu_that_starts_or_stops_is_told_of_whoever_switches_it() {
    const OFF: u64 = 0x8400_0008;
    let pages: &'static [EventPage] = Box::leak(Box::new([const { EventPage::EMPTY }; 3]));
    let (server, system) = (VcpuServer::new(config(3), Desk::default()).telling(pages), Fake::new(3));
    listen(&server, &system, 0, &[EventKind::Start, EventKind::Stop], 0, 0).expect("it may");
    start(&server, &system);
    let mut readers = [Reader::NEW; 3];
    let mut told = |ring: usize| read(&mut readers[ring], &pages[ring]);
    assert_eq!(told(0), [(EventKind::Start, 0, MEMORY, 5)], "the guest's first");
    let call = |vcpu: u64, general: [u64; 4]| server.exit(&system, badge::EXIT | vcpu, &exit(ExitClass::Hypercall, 0, general));
    let entry = MEMORY + 0x1000;
    call(0, [0xc400_0003, 1, entry, 7]);
    assert_eq!((told(1), told(0)), (vec![(EventKind::Start, 1, entry, 7)], vec![]), "by the ring of the one that starts");
    for wrong in [[0xc400_0003, 1, entry, 7], [0xc400_0003, 9, entry, 7], [0xc400_0003, 2, 1, 7]] {
        call(0, wrong);
        assert_eq!((told(0), told(1), told(2)), (vec![], vec![], vec![]), "what does not start is not told");
    }
    call(1, [CPU_OFF, 0, 0, 0]);
    assert_eq!(told(1), [(EventKind::Stop, 1, entry, 0)]);
    // It is still on its way out: it does not start after all.
    system.state.lock().unwrap().refuse = Some((Op::VcpuLaunch, Refusal::BadState));
    call(0, [0xc400_0003, 1, entry, 8]);
    system.state.lock().unwrap().refuse = None;
    let both: Vec<_> = told(1).iter().map(|event| event.0).collect();
    assert_eq!(both, [EventKind::Start, EventKind::Stop]);
    call(0, [0xc400_0003, 2, entry, 9]);
    assert_eq!(told(2), [(EventKind::Start, 2, entry, 9)]);
    // Whoever ends the guest tells of all: the others' rings are their own threads'.
    call(2, [OFF, 0, 0, 0]);
    let ended: Vec<_> = told(2).iter().map(|event| (event.0, event.1)).collect();
    assert_eq!((ended, told(0), told(1)), (vec![(EventKind::Stop, 0), (EventKind::Stop, 2)], vec![], vec![]));
}

#[test]
fn nobody_is_asked_about_a_vcpu_that_starts_or_stops() {
    let (server, system) = started(2);
    for kinds in [EventKind::Start.bit(), EventKind::Stop.bit()] {
        let words = [VcpuOp::Listen as u64, kinds.into(), 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(call(&server, &system, badge::monitor(0, 0), words), Err(Refusal::BadArgument));
    }
}
