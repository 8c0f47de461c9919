// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories: exits as the kernel sends them, answers as it gets them.

use super::*;
use crate::fake::{Desk, Fake, MEMORY};
use trellis_idl::kernel::VcpuRegister;
use trellis_idl::plan::{Load, Part};
use trellis_runtime::dispatch;

const PC: u64 = MEMORY + 0x400;

fn server(vcpus: u8) -> VcpuServer<'static, Desk> {
    let loads = [Load { part: Part { offset: 0, bytes: 64 }, address: MEMORY }];
    let config = VcpuConfig {
        watchers: 0,
        guest: "g",
        vcpus,
        memory_base: MEMORY,
        memory_bytes: 1 << 20,
        loads: loads.into_iter().collect(),
        entry: MEMORY,
        x0: MEMORY + 0x8000,
        gic: 3,
        aarch32: false,
        bus: None,
    };
    VcpuServer::new(config, Desk { payload: vec![7; 64], ..Desk::default() })
}

fn root(server: &VcpuServer<'_, Desk>, system: &Fake, op: VcpuOp) -> u64 {
    let mut words = [0; WORDS];
    words[0] = op as u64;
    match dispatch(server, system, badges::ROOT, words) {
        Reply::Call(words) => words[0],
        other => panic!("{other:?}"),
    }
}

fn started(vcpus: u8) -> (VcpuServer<'static, Desk>, Fake) {
    let (server, system) = (server(vcpus), Fake::new(vcpus.into()));
    assert_eq!(root(&server, &system, VcpuOp::Start), 0);
    (server, system)
}

fn header(class: ExitClass, length: u64) -> u64 {
    class as u64 | length << 48
}

fn exit(server: &VcpuServer<'_, Desk>, system: &Fake, index: u64, exit: Exit) -> (Answer, u64) {
    match dispatch(server, system, badges::EXIT | index, exit.to_words()) {
        Reply::Value(answer, value) => (answer, value),
        other => panic!("{other:?}"),
    }
}

fn device(address: u64, width: u64, rest: u64, value: u64) -> Exit {
    let header = ExitHeader(header(ExitClass::Device, 4) | width << 8 | 9 << 16 | rest);
    Exit { header, physical: address, value, pc: PC, ..Exit::default() }
}

fn call(class: ExitClass, general: [u64; 4]) -> Exit {
    let length = if class == ExitClass::Firmware { 4 } else { 0 };
    Exit { header: ExitHeader(header(class, length)), syndrome: 0x5a00_0000, general, pc: PC, ..Exit::default() }
}

#[test]
fn a_ping_comes_back_one_larger_by_both_roads() {
    let (server, system) = started(1);
    let by_hypercall = exit(&server, &system, 0, call(ExitClass::Hypercall, [0xc600_0000, 41, 0, 0]));
    assert_eq!(by_hypercall, (Answer::RETRY.register(0), 42));
    let by_firmware = exit(&server, &system, 0, call(ExitClass::Firmware, [0xc600_0000, 41, 0, 0]));
    assert_eq!(by_firmware, (Answer::ADVANCE.register(0), 42));
}

#[test]
fn unknown_calls_are_not_supported() {
    let (server, system) = started(1);
    for id in [0, 1, 0x8600_ff01, 0x8400_0013, 0xc400_0012, 0x8000_8000, u64::MAX] {
        for class in [ExitClass::Hypercall, ExitClass::Firmware] {
            assert_eq!(exit(&server, &system, 0, call(class, [id, 0, 0, 0])).1, u64::MAX, "{id:#x}");
        }
    }
    let version = exit(&server, &system, 0, call(ExitClass::Hypercall, [0x8000_0000, 0, 0, 0]));
    assert_eq!(version.1, 0x1_0001);
    let other_number = Exit { syndrome: 0x5a00_0001, ..call(ExitClass::Hypercall, [0x8400_0000, 0, 0, 0]) };
    assert_eq!(exit(&server, &system, 0, other_number).1, u64::MAX);
}

#[test]
fn output_and_flags_of_the_serial_port() {
    let (server, system) = started(1);
    let (answer, value) = exit(&server, &system, 0, device(0x0900_0018, 4, 0, 0));
    assert_eq!((answer, value), (Answer::ADVANCE.register(9), 0x90));
    let (answer, _) = exit(&server, &system, 0, device(0x0900_0000, 1, ExitHeader::WRITE, 0xff41));
    assert_eq!(answer, Answer::ADVANCE);
    assert_eq!(system.count(Op::Signal), 0);
    exit(&server, &system, 0, device(0x0900_0000, 4, ExitHeader::WRITE, 0x0a));
    assert_eq!(*server.outside.sent.lock().unwrap(), b"A\n");
    assert_eq!(system.count(Op::Signal), 1);
}

#[test]
fn the_short_way_to_the_flags_sees_input_and_new_room() {
    let (server, system) = started(1);
    let flags = || exit(&server, &system, 0, device(0x0900_0018, 4, 0, 0)).1;
    server.outside.typed.lock().unwrap().push_back(b'x');
    assert_eq!(flags(), 0xc0);
    exit(&server, &system, 0, device(0x0900_0000, 4, 0, 0));
    *server.outside.room.lock().unwrap() = Some(1);
    exit(&server, &system, 0, device(0x0900_0000, 1, ExitHeader::WRITE, 0x41));
    assert_eq!(flags(), 0x30);
    *server.outside.room.lock().unwrap() = None;
    assert_eq!(flags(), 0x90);
}

#[test]
fn input_raises_the_line_when_somebody_attends() {
    let (server, system) = started(1);
    exit(&server, &system, 0, device(0x0900_0038, 4, ExitHeader::WRITE, 0x50));
    server.outside.typed.lock().unwrap().push_back(b'v');
    assert_eq!(server.attend(&system), None);
    assert!(system.line(0, LineField::Level, 33));
    assert_eq!(exit(&server, &system, 0, device(0x0900_0000, 4, 0, 0)).1, u64::from(b'v'));
    assert!(!system.line(0, LineField::Level, 33));
}

#[test]
fn reads_are_extended_as_the_instruction_says() {
    let (server, system) = started(1);
    // The last identification register, 0xb1, as a signed byte to 64 and to 32 bits.
    let wide = exit(&server, &system, 0, device(0x0900_0ffc, 1, 1 << 22 | 1 << 21, 0));
    assert_eq!(wide.1, 0xffff_ffff_ffff_ffb1);
    assert_eq!(exit(&server, &system, 0, device(0x0900_0ffc, 1, 1 << 22, 0)).1, 0xffff_ffb1);
    assert_eq!(exit(&server, &system, 0, device(0x0900_0ffc, 1, 0, 0)).1, 0xb1);
}

#[test]
fn a_big_endian_guest_sees_devices_turned() {
    let (server, system) = started(1);
    let turned = |address, width, rest, value| {
        exit(&server, &system, 0, device(address, width, rest | ExitHeader::BIG_ENDIAN, value)).1
    };
    assert_eq!(turned(0x0900_0018, 4, 0, 0), 0x9000_0000);
    assert_eq!(turned(0x0900_0fe0, 4, 0, 0), 0x1100_0000);
    assert_eq!(turned(0x0900_0fe0, 2, 0, 0), 0x1100);
    assert_eq!(turned(0x0900_0fe0, 1, 0, 0), 0x11);
    turned(0x0900_0000, 4, ExitHeader::WRITE, 0x4100_0000);
    assert_eq!(*server.outside.sent.lock().unwrap(), b"A");
}

#[test]
fn what_no_device_supports_is_the_guests_own_data_abort() {
    let (server, system) = started(1);
    // stxr w0, x1, [x2]; dc zva, x2
    for (word, user, pstate, syndrome) in [
        (0xc800_7c41u32, 0, 0x3c5, 0x9600_0075),
        (0xc800_7c41, ExitHeader::USER, 0x3c0, 0x9200_0075),
        (0xd50b_7422, 0, 0x3c5, 0x9600_0061),
    ] {
        system.put(PC, &word.to_le_bytes());
        for (register, value) in [(2, 0x0900_0000), (VcpuRegister::Pc as u64, PC), (33, pstate)] {
            system.set(0, register, value);
        }
        let flags = ExitHeader::WRITE | ExitHeader::VIRTUAL_VALID | user;
        let trapped = Exit { syndrome: 0x9200_0046, virtual_address: 0xff00, ..device(0x0900_0000, 0, flags, 0) };
        assert_eq!(exit(&server, &system, 0, trapped).0, Answer::RETRY);
        let done = system.state.lock().unwrap().done.last().copied();
        assert_eq!(done, Some((Op::VcpuException, [slot::VCPU, syndrome, 0xff00, 0, 0, 0])));
    }
}

#[test]
fn an_empty_slot_has_no_device() {
    let (server, system) = started(1);
    for (offset, value) in [(0x600, 0x7472_6976), (0x604, 2), (0x608, 0), (0x670, 0)] {
        assert_eq!(exit(&server, &system, 0, device(0x0a00_0000 + offset, 4, 0, 0)).1, value);
    }
}

#[test]
fn a_redistributor_is_reached_at_its_own_address() {
    let (server, system) = started(2);
    assert_eq!(exit(&server, &system, 0, device(0x080a_0008, 8, 1 << 21, 0)).1, 0);
    assert_eq!(exit(&server, &system, 0, device(0x080c_0008, 8, 1 << 21, 0)).1, 1 << 32 | 1 << 8 | 1 << 4);
    exit(&server, &system, 0, device(0x080d_0100, 4, ExitHeader::WRITE, 1 << 27));
    assert!(system.line(1, LineField::Enabled, 27));
}

#[test]
fn an_access_without_a_valid_syndrome_is_carried_out() {
    let (server, system) = started(1);
    system.put(PC, &0xb800_4441u32.to_le_bytes()); // str w1, [x2], #4
    for (register, value) in [(1, 0x5a), (2, 0x0900_0000), (VcpuRegister::Pc as u64, PC), (33, 0x3c5)] {
        system.set(0, register, value);
    }
    let trapped = Exit { syndrome: 0x9200_0046, ..device(0x0900_0000, 0, ExitHeader::WRITE, 0) };
    assert_eq!(exit(&server, &system, 0, trapped).0, Answer::ADVANCE);
    assert_eq!(*server.outside.sent.lock().unwrap(), b"Z");
    assert_eq!(system.general(0, 2), 0x0900_0004);
}

#[test]
fn id_registers_are_sanitised_and_hidden_ones_undefined() {
    let (server, system) = started(1);
    system.state.lock().unwrap().id_registers.insert(0x20, 0x0100_2222);
    let read = |iss: u64| Exit {
        header: ExitHeader(header(ExitClass::Register, 4)),
        syndrome: 0x6200_0000 | iss,
        value: 1,
        ..Exit::default()
    };
    // mrs x3, id_aa64pfr0_el1
    assert_eq!(exit(&server, &system, 0, read(0x0030_0069)), (Answer::ADVANCE.register(3), 0x0100_0011));
    // msr pmcr_el0, x3
    assert_eq!(exit(&server, &system, 0, read(0x0030_e478)).0, Answer::RETRY);
    let done = system.state.lock().unwrap().done.last().copied();
    assert_eq!(done, Some((Op::VcpuException, [slot::VCPU, 1 << 25, 0, 0, 0, 0])));
}

#[test]
fn the_physical_timer_raises_line_30_when_attended() {
    let (server, system) = started(1);
    let write = |op2: u64, value: u64| Exit {
        header: ExitHeader(header(ExitClass::Register, 4)),
        syndrome: 0x6230_0000 | op2 << 17 | 3 << 14 | 14 << 10 | 1 << 5 | 2 << 1,
        value,
        ..Exit::default()
    };
    system.state.lock().unwrap().now = 100;
    exit(&server, &system, 0, write(0, 50));
    exit(&server, &system, 0, write(1, 1));
    let raised = system.state.lock().unwrap().done.last().copied();
    assert_eq!(raised, Some((Op::Signal, [slot::SELF, 0, 0, 0, 0, 0])), "whoever attends must know of it");
    assert_eq!(server.attend(&system), Some(150));
    system.state.lock().unwrap().now = 150;
    assert_eq!(server.attend(&system), None);
    assert!(system.line(0, LineField::Level, 30));
    exit(&server, &system, 0, write(1, 0));
    assert!(!system.line(0, LineField::Level, 30));
}

#[test]
fn off_and_reset_reach_root_once_and_stop_every_vcpu() {
    for (id, report) in [(0x8400_0008, ToRoot::Ended(GuestEnd::Off)), (0x8400_0009, ToRoot::Reset)] {
        let (server, system) = started(2);
        assert_eq!(exit(&server, &system, 0, call(ExitClass::Firmware, [0xc400_0003, 1, MEMORY, 0])).1, 0);
        assert_eq!(exit(&server, &system, 0, call(ExitClass::Hypercall, [id, 0, 0, 0])).0, Answer::STOP);
        assert_eq!(exit(&server, &system, 1, call(ExitClass::Hypercall, [id, 0, 0, 0])).0, Answer::STOP);
        assert_eq!(*server.outside.reports.lock().unwrap(), [report]);
        let state = system.state.lock().unwrap();
        assert_eq!(state.done.iter().filter(|done| done.0 == Op::Signal && done.1[0] == slot::ROOT).count(), 1);
        assert!(!state.running.contains(&1));
    }
}

#[test]
fn what_nobody_answers_ends_the_guest_with_its_registers() {
    let (server, system) = started(1);
    (0..31).for_each(|n| system.set(0, n, 100 + n));
    system.set(0, VcpuRegister::Pc as u64, PC);
    let memory = Exit {
        header: ExitHeader(header(ExitClass::Memory, 4) | ExitHeader::VIRTUAL_VALID),
        syndrome: 0x9200_0006,
        physical: 0x3000,
        virtual_address: 0xffff_0000,
        ..Exit::default()
    };
    assert_eq!(exit(&server, &system, 0, memory).0, Answer::STOP);
    let reports = server.outside.reports.lock().unwrap();
    let [ToRoot::Ended(GuestEnd::Crash(crash))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((crash.class, crash.physical, crash.virtual_address, crash.pc), (0, 0x3000, 0xffff_0000, PC));
    assert_eq!(crash.general.iter().copied().collect::<Vec<_>>(), (100..131).collect::<Vec<_>>());
}

#[test]
fn a_breakpoint_instruction_goes_back_to_the_guest() {
    let (server, system) = started(1);
    let brk = Exit { header: ExitHeader(header(ExitClass::Debug, 4)), syndrome: 0xf200_0800, ..Exit::default() };
    assert_eq!(exit(&server, &system, 0, brk).0, Answer::RETRY);
    let watch = Exit {
        header: ExitHeader(header(ExitClass::Debug, 4)),
        syndrome: 0xd200_0022,
        virtual_address: 0x1234,
        ..Exit::default()
    };
    exit(&server, &system, 0, watch);
    let done = system.state.lock().unwrap().done.last().copied();
    assert_eq!(done, Some((Op::VcpuException, [slot::VCPU, 0xd600_0022, 0x1234, 0, 0, 0])));
}

#[test]
fn only_root_controls_and_reset_forgets() {
    let (server, system) = started(1);
    exit(&server, &system, 0, device(0x0900_0038, 4, ExitHeader::WRITE, 0x10));
    exit(&server, &system, 0, device(0x0800_0000, 4, ExitHeader::WRITE, 3));
    exit(&server, &system, 0, device(0x0800_0104, 4, ExitHeader::WRITE, 2));
    let mut words = [0; WORDS];
    words[0] = VcpuOp::Reset as u64;
    let Reply::Call(refused) = server.call(&system, badges::VCPU_SERVER, words) else { panic!() };
    assert_eq!(refused[0], 1 + Refusal::MissingRight as u64);
    assert_eq!(root(&server, &system, VcpuOp::Reset), 0);
    assert!(!system.line(0, LineField::Enabled, 33) && !system.state.lock().unwrap().forwards);
    assert!(system.line(0, LineField::Edge, 3));
    assert_eq!(root(&server, &system, VcpuOp::Start), 0);
    assert_eq!(exit(&server, &system, 0, device(0x0900_0038, 4, 0, 0)).1, 0);
}

proptest::proptest! {
    #[test]
    fn no_exit_makes_it_panic(
        exits in proptest::collection::vec(
            (proptest::array::uniform10(proptest::num::u64::ANY), 0u64..11, 0u64..3, 0usize..7, 0u64..0x2000),
            1..30,
        ),
    ) {
        let (server, system) = started(2);
        let bases = [0x0800_0000, 0x0800_6000, 0x080a_0000, 0x080b_0000, 0x0900_0000, 0x0901_0000, 0x0a00_0000];
        for (mut words, class, vcpu, base, offset) in exits {
            words[0] = words[0] & !0xff | class;
            if class == ExitClass::Device as u64 {
                words[0] = words[0] & !0xff00 | (words[1] & 15) << 8;
                words[2] = bases[base] + offset;
            }
            dispatch(&server, &system, badges::EXIT | vcpu, words);
        }
    }
}

/// A monitor asks how to answer an exit: 1 + a refusal or 0, the answer, its words.
fn ask(server: &VcpuServer<'_, Desk>, system: &Fake, which: u64, value: u64, number: u64, exit: &Exit) -> [u64; 4] {
    let [header, syndrome, physical, virtual_address, ..] = exit.to_words();
    let words = [VcpuOp::Complete as u64, which, value, number, header, syndrome, physical, virtual_address, 0, 0];
    match dispatch(server, system, badges::MONITOR, words) {
        Reply::Call([refusal, answer, pc, value, ..]) => [refusal, answer, pc, value],
        other => panic!("{other:?}"),
    }
}

const WATCHED: u64 = MEMORY + 0x2040;

/// The vCPU stands at this instruction, which its view 1 forbids.
fn forbidden(system: &Fake, word: u32) -> Exit {
    stands_at(system, PC, word);
    let header = ExitHeader(header(ExitClass::Memory, 4) | ExitHeader::PERMISSION | ExitHeader::WRITE | 1 << 32);
    Exit { header, physical: WATCHED, virtual_address: WATCHED, ..Exit::default() }
}

fn stands_at(system: &Fake, pc: u64, word: u32) {
    system.put(pc, &word.to_le_bytes());
    system.set(0, VcpuRegister::Pc as u64, pc);
}

/// It has executed one instruction and stands at the next.
fn stepped(server: &VcpuServer<'_, Desk>, system: &Fake, word: u32) -> (Answer, u64) {
    stands_at(system, PC + 4, word);
    let header = ExitHeader(header(ExitClass::Debug, 0) | ExitHeader::STEPPED | 1 << 32);
    exit(server, system, 0, Exit { header, ..Exit::default() })
}

const FOLLOW: Answer = Answer::REPORT.step(1);
const DENY: u64 = (Order::Deny as u64) << 8;

#[test]
fn an_allowed_exclusive_store_fails_once_and_the_next_one_is_done_here() {
    let (server, system) = started(1);
    system.put(WATCHED, &41u64.to_le_bytes());
    system.set(0, 2, WATCHED);
    // stxr w3, x1, [x2]; then back to ldxr x1, [x2]; add x1, x1, #1; stxr again.
    let first = forbidden(&system, 0xc803_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 1, &first), [0, FOLLOW.with(Answer::ADVANCE).register(3).0, 0, 1]);
    assert_eq!(stepped(&server, &system, 0x35ff_ffa3), (FOLLOW, 0), "cbnz");
    assert_eq!(stepped(&server, &system, 0xc85f_7c41), (FOLLOW.with(Answer::ADVANCE), 0));
    assert_eq!(system.general(0, 1), 41);
    system.set(0, 1, 42);
    assert_eq!(stepped(&server, &system, 0x9100_0421), (FOLLOW, 0), "add");
    assert_eq!(stepped(&server, &system, 0xc803_7c41), (Answer::ADVANCE.register(3), 0));
    assert_eq!(system.state.lock().unwrap().memory[(WATCHED - MEMORY) as usize], 42);
    assert_eq!(stepped(&server, &system, 0x9100_0421), (Answer::RETRY, 0), "nobody is followed any more");
}

#[test]
fn what_p2m_lets_happen_is_done_as_if_a_monitor_had_allowed_it() {
    let (server, system) = started(1);
    system.set(0, 2, WATCHED);
    let sent = |word, number| {
        let found = forbidden(&system, word);
        Exit { header: ExitHeader(found.header.0 | ExitHeader::ALLOWED), general: [0, 0, 0, number], ..found }
    };
    // stxr w3, x1, [x2]: followed until it succeeds.
    let answer = exit(&server, &system, 0, sent(0xc803_7c41, 1));
    assert_eq!(answer, (FOLLOW.with(Answer::ADVANCE).register(3), 1));
    assert_eq!(stepped(&server, &system, 0xc85f_7c41), (FOLLOW.with(Answer::ADVANCE), 0));
    assert_eq!(stepped(&server, &system, 0xc803_7c41), (Answer::ADVANCE.register(3), 0));
    // stp x1, x4, [x2], and an instruction that is nowhere: a step does what there is to do.
    assert_eq!(exit(&server, &system, 0, sent(0xa900_1041, 2)).0, Answer::RETRY.step(0));
    let lost = sent(0xc803_7c41, 3);
    system.set(0, VcpuRegister::Pc as u64, 0x1000);
    assert_eq!(exit(&server, &system, 0, lost).0, Answer::RETRY.step(0));
    let unmarked = Exit { header: ExitHeader(lost.header.0 & !ExitHeader::ALLOWED), ..lost };
    assert_eq!(exit(&server, &system, 0, unmarked).0, Answer::STOP, "the guest's own words allow nothing");
}

#[test]
fn an_exclusive_store_over_what_another_has_written_fails_and_goes_on() {
    let (server, system) = started(1);
    system.set(0, 2, WATCHED);
    // ldxp x1, x4, [x2] is watched itself; then stxp w3, x1, x4, [x2].
    let first = forbidden(&system, 0xc87f_1041);
    assert_eq!(ask(&server, &system, 0, 0, 1, &first)[1], FOLLOW.with(Answer::ADVANCE).0);
    system.put(WATCHED + 8, &[9]);
    assert_eq!(stepped(&server, &system, 0xc823_1041), (FOLLOW.with(Answer::ADVANCE).register(3), 1));
    assert_eq!(stepped(&server, &system, 0xc87f_1041), (FOLLOW.with(Answer::ADVANCE), 0));
    assert_eq!((system.general(0, 1), system.general(0, 4)), (0, 9));
    system.set(0, 1, 5);
    assert_eq!(stepped(&server, &system, 0xc823_1041), (Answer::ADVANCE.register(3), 0));
    let memory = system.state.lock().unwrap().memory[(WATCHED - MEMORY) as usize..][..16].to_vec();
    assert_eq!((memory[0], memory[8]), (5, 9));
}

#[test]
fn an_exclusive_access_elsewhere_is_the_vcpus_own() {
    let (server, system) = started(1);
    system.set(0, 2, WATCHED);
    ask(&server, &system, 0, 0, 1, &forbidden(&system, 0xc803_7c41));
    system.set(0, 2, WATCHED + 0x1000);
    assert_eq!(stepped(&server, &system, 0xc85f_7c41), (Answer::RETRY, 0));
    assert_eq!(stepped(&server, &system, 0x9100_0421), (Answer::RETRY, 0));
}

#[test]
fn whatever_is_not_exclusive_is_one_step_in_view_0() {
    let (server, system) = started(1);
    for (number, word) in (1..).zip([0xf821_0062, 0xacc1_1441, 0xd50b_7423, 0xe400_0000, 0xd503_201f]) {
        let exit = forbidden(&system, word);
        assert_eq!(ask(&server, &system, 0, 0, number, &exit), [0, Answer::STEP.0, 0, 0], "{word:#x}");
    }
    let plain = Exit { header: ExitHeader(8 << 8 | 1 << 32), ..Exit::default() };
    let before = system.count(Op::VcpuGet);
    assert_eq!(ask(&server, &system, 0, 0, 9, &plain)[1], Answer::STEP.0);
    assert_eq!(system.count(Op::VcpuGet), before, "nothing need be read for what the syndrome says");
}

/// The vCPU stands at this instruction, which may not be executed in its view 1.
fn unexecuted(system: &Fake, word: u32) -> Exit {
    let exit = forbidden(system, word);
    let header = ExitHeader(exit.header.0 & !ExitHeader::WRITE | ExitHeader::FETCH);
    Exit { header, physical: PC, virtual_address: PC, ..exit }
}

#[test]
fn exclusive_accesses_in_code_that_is_watched_succeed() {
    let (server, system) = started(1);
    system.put(WATCHED, &41u64.to_le_bytes());
    system.set(0, 2, WATCHED);
    // ldxr x1, [x2]; add x1, x1, #1; stxr w3, x1, [x2]; cbnz: each is an event, and their data are nobody's.
    let load = unexecuted(&system, 0xc85f_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 1, &load)[..2], [0, FOLLOW.with(Answer::ADVANCE).0]);
    assert_eq!(system.general(0, 1), 41);
    let add = unexecuted(&system, 0x9100_0421);
    assert_eq!(ask(&server, &system, 0, 0, 2, &add)[1], Answer::REPORT.step(0).0, "followed on, in the view that shows it");
    system.set(0, 1, 42);
    let store = unexecuted(&system, 0xc803_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 3, &store), [0, Answer::ADVANCE.register(3).0, 0, 0]);
    assert_eq!(system.state.lock().unwrap().memory[(WATCHED - MEMORY) as usize], 42);
    let branch = unexecuted(&system, 0x35ff_ffa3);
    assert_eq!(ask(&server, &system, 0, 0, 4, &branch)[1], Answer::STEP.0, "nobody is followed any more");
    // So does code whose tables are watched: each of its instructions walks them anew.
    let load = unexecuted(&system, 0xc85f_7c41);
    let walk = Exit { header: ExitHeader(load.header.0 & !ExitHeader::FETCH | ExitHeader::WALK), ..load };
    assert_eq!(ask(&server, &system, 0, 0, 21, &walk)[1], FOLLOW.with(Answer::ADVANCE).0);
    // Behind a step it is told of like the rest, but what is in another page is done at once: nobody watches it there.
    let load = unexecuted(&system, 0xc85f_7c41);
    ask(&server, &system, 0, 0, 11, &load);
    assert_eq!(stepped(&server, &system, 0xc803_7c41), (FOLLOW, 0));
    stands_at(&system, PC + 0x1000, 0xc803_7c41);
    let over = Exit { header: ExitHeader(header(ExitClass::Debug, 0) | ExitHeader::STEPPED | 1 << 32), ..Exit::default() };
    assert_eq!(exit(&server, &system, 0, over), (Answer::ADVANCE.register(3), 0));
    // A store whose load was elsewhere fails once, and is followed back to it.
    let store = unexecuted(&system, 0xc803_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 5, &store), [0, FOLLOW.with(Answer::ADVANCE).register(3).0, 0, 1]);
    let load = unexecuted(&system, 0xc85f_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 12, &load)[1], FOLLOW.with(Answer::ADVANCE).0);
    system.set(0, 1, 43);
    let store = unexecuted(&system, 0xc803_7c41);
    assert_eq!(ask(&server, &system, 0, 0, 6, &store)[1], Answer::ADVANCE.register(3).0);
    assert_eq!(system.state.lock().unwrap().memory[(WATCHED - MEMORY) as usize], 43);
}

/// Guest-virtual 0 is the first GiB of memory, as one block that may only be read, or that hardware has not marked yet.
#[test]
fn an_exclusive_store_done_here_obeys_the_guests_own_tables() {
    let (server, system) = started(1);
    let (tables, low) = (MEMORY + 0x8000, WATCHED - MEMORY);
    system.put(WATCHED, &41u64.to_le_bytes());
    let block = |bits: u64| system.put(tables, &(MEMORY | 1 | bits).to_le_bytes());
    for (register, value) in [(VcpuRegister::SctlrEl1, 1), (VcpuRegister::Ttbr0El1, tables)] {
        system.set(0, register as u64, value);
    }
    // TCR_EL1: 39 bits in steps of 4 KiB; HA and HD.
    let hardware = 1 << 39 | 1 << 40;
    let mut number = 0;
    let mut tried = |tcr: u64, bits: u64, word: u32| {
        number += 1;
        block(bits);
        system.set(0, VcpuRegister::TcrEl1 as u64, 25 | tcr);
        let exit = unexecuted(&system, word);
        system.set(0, VcpuRegister::Pc as u64, PC - MEMORY);
        system.set(0, VcpuRegister::Pstate as u64, 0x3c5);
        system.set(0, 2, low);
        system.set(0, 1, 42);
        let [refused, answer, _, value] = ask(&server, &system, 0, 0, number, &exit);
        let memory = |at: u64| u64::from_le_bytes(system.state.lock().unwrap().memory[(at - MEMORY) as usize..][..8].try_into().unwrap());
        assert_eq!(refused, 0);
        let last = system.state.lock().unwrap().done.iter().rfind(|(op, _)| *op == Op::VcpuException).map(|(_, a)| (a[1], a[2]));
        (Answer(answer), value, memory(WATCHED), memory(tables), last)
    };
    let (load, store) = (0xc85f_7c41, 0xc803_7c41);
    let (accessed, read_only, dirty) = (1 << 10, 1 << 7, 1 << 51);
    assert_eq!(tried(0, accessed | read_only, load).0, FOLLOW.with(Answer::ADVANCE));
    // Class 0x25, a write, permission fault at level 1.
    let fault = (0x25 << 26 | 1 << 25 | 1 << 6 | 0b1101, low);
    let (answer, _, there, _, last) = tried(0, accessed | read_only, store);
    assert_eq!((answer, there, last), (Answer::RETRY, 41, Some(fault)));
    let (answer, _, there, _, last) = tried(0, 0, store);
    assert_eq!((answer, there, last), (Answer::RETRY, 41, Some((fault.0 & !4, low))), "an access flag fault");
    assert_eq!(tried(0, 0, load).0, Answer::RETRY.step(0), "which a load takes itself");
    // What hardware would mark is marked.
    let (answer, _, _, descriptor, _) = tried(hardware, read_only | dirty, load);
    assert_eq!((answer, descriptor), (FOLLOW.with(Answer::ADVANCE), MEMORY | 1 | accessed | read_only | dirty));
    let (answer, value, there, descriptor, _) = tried(hardware, accessed | read_only | dirty, store);
    assert_eq!((answer, value, there, descriptor), (Answer::ADVANCE.register(3), 0, 42, MEMORY | 1 | accessed | dirty));
}

#[test]
fn a_denied_access_is_skipped_once_however_often_it_is_asked_for() {
    let (server, system) = started(1);
    system.set(0, 2, WATCHED);
    // ldr x1, [x2], #8
    let exit = forbidden(&system, 0xf840_8441);
    for _ in 0..2 {
        assert_eq!(ask(&server, &system, DENY, 77, 5, &exit), [0, Answer::ADVANCE.0, 0, 0]);
        assert_eq!((system.general(0, 1), system.general(0, 2)), (77, WATCHED + 8));
    }
    ask(&server, &system, DENY, 78, 6, &exit);
    assert_eq!((system.general(0, 1), system.general(0, 2)), (78, WATCHED + 16), "another exit");
    // ldr q1, [x2], #16
    ask(&server, &system, DENY, 79, 7, &forbidden(&system, 0x3cc1_0441));
    let vector = |word| system.general(0, float_register::VECTORS + 32 + word);
    assert_eq!((vector(0), vector(1), system.general(0, 2)), (79, 0, WATCHED + 32));
    // stxr w3, x1, [x2]
    system.set(0, 3, 9);
    ask(&server, &system, DENY, 0, 8, &forbidden(&system, 0xc803_7c41));
    assert_eq!(system.general(0, 3), 0, "it says that it succeeded");
    assert!(system.state.lock().unwrap().memory[(WATCHED - MEMORY) as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_cannot_be_completed_is_refused() {
    let (server, system) = started(2);
    let exit = forbidden(&system, 0xd503_201f);
    let refusal = |which, exit: &Exit| ask(&server, &system, which, 0, 99, exit)[0];
    assert_eq!(refusal(DENY, &exit), 1 + Refusal::Unsupported as u64, "a nop");
    assert_eq!(refusal(DENY | 2, &exit), 1 + Refusal::OutOfRange as u64);
    assert_eq!(refusal(2, &exit), 1 + Refusal::OutOfRange as u64);
    assert_eq!(refusal(4 << 8, &exit), 1 + Refusal::BadArgument as u64);
    assert_eq!(refusal(u64::MAX, &exit), 1 + Refusal::BadArgument as u64);
    system.set(0, VcpuRegister::Pc as u64, 0x1000);
    assert_eq!(refusal(DENY, &exit), 1 + Refusal::NotMapped as u64, "the instruction is nowhere");
    let mut words = [0; WORDS];
    words[0] = VcpuOp::Complete as u64;
    for badge in [badges::VCPU_SERVER, badges::EXIT] {
        let Reply::Call([refused, ..]) = server.call(&system, badge, words) else { panic!() };
        assert_eq!(refused, 1 + Refusal::MissingRight as u64);
    }
}

#[test]
fn trapped_writes_of_translation_registers_are_done() {
    let (server, system) = started(1);
    // msr ttbr0_el1, x9; msr sctlr_el1, xzr
    for (syndrome, register, value) in [
        (0x6230_0920u64, VcpuRegister::Ttbr0El1, 0x4000_1000u64),
        (0x6230_07e0, VcpuRegister::SctlrEl1, 0),
    ] {
        system.set(0, register as u64, 1);
        let header = ExitHeader(header(ExitClass::Register, 4) | ExitHeader::WRITE);
        let answer = exit(&server, &system, 0, Exit { header, syndrome, value: 0x4000_1000, ..Exit::default() });
        assert_eq!((answer.0, system.register(0, register)), (Answer::ADVANCE, value), "{syndrome:#x}");
    }
    let breakpoint = Exit { header: ExitHeader(header(ExitClass::Debug, 4)), syndrome: 0xf200_0007, ..Exit::default() };
    assert_eq!(exit(&server, &system, 0, breakpoint).0, Answer::RETRY);
    let done = system.state.lock().unwrap().done.last().copied();
    assert_eq!(done, Some((Op::VcpuException, [slot::VCPU, 0xf200_0007, 0, 0, 0, 0])), "the guest gets it");
}

#[test]
fn a_function_is_reached_by_its_configuration_and_its_messages_make_lines() {
    use crate::fake::Sheet;
    use crate::function::tests::{configuration, plan};
    use trellis_idl::layout::platform::{CONFIGURATION, FRAME};
    use trellis_runtime::memory::Registers;
    let entries = Sheet::new(&[(12, 1), (28, 1), (44, 1)]);
    let desk = Desk { payload: vec![7; 64], sheets: [(0, configuration()), (1, entries.clone())].into(), ..Desk::default() };
    let config = VcpuConfig { bus: Some(plan()), ..server(1).config };
    let (server, system) = (VcpuServer::new(config, desk), Fake::new(1));
    assert_eq!(root(&server, &system, VcpuOp::Start), 0);
    let read = |address| exit(&server, &system, 0, device(address, 4, 0, 0));
    let write = |address, value| assert_eq!(exit(&server, &system, 0, device(address, 4, ExitHeader::WRITE, value)).0, Answer::ADVANCE);
    assert_eq!(read(CONFIGURATION), (Answer::ADVANCE.register(9), 0x1041_1af4));
    assert_eq!(read(CONFIGURATION + 0x1000).1, 0xffff_ffff);
    write(CONFIGURATION + 0x50, 1 << 31);
    let table = 0x0b00_0000;
    for (at, word) in [(0, FRAME + 0x40), (4, 0), (8, 101), (12, 0)] {
        write(table + at, word);
    }
    assert_eq!([0, 4, 8, 12].map(|at| entries.read(at)), [0x0809_0040, 1, 1, 0]);
    assert_eq!(read(FRAME + 8).1, 100 << 16 | 3);
    write(FRAME + 0x40, 102);
    assert!(system.line(0, LineField::Pending, 102) && !system.line(0, LineField::Pending, 101));
    // Nothing of it is left for the next life, and the function's own entries are whoever's who switches it off.
    assert_eq!(root(&server, &system, VcpuOp::Reset), 0);
    assert_eq!([read(CONFIGURATION + 0x50).1 >> 16, read(table + 8).1, read(table + 12).1], [2, 0, 1]);
}
