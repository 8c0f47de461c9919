// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of floating-point registers: whose they are, and every time they move.

mod common;

use proptest::prelude::*;
use std::sync::atomic::Ordering;
use trellis_core::float::{self, EAGER_LOADS, FloatMove, Layout, Lengths, STORM};
use trellis_core::thread::ThreadState;
use trellis_core::trap::Trap;
use trellis_hosted::float::{Moved, pattern};
use trellis_hosted::small::{self, OUTER, ROOT, must, slot};
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::kernel::{Answer, EXIT_CLASSES, ExitClass, Kind, Op, Refusal, float_register};
use trellis_idl::layout::root_slot;

/// Slots of the story's guests: tables, guest and vCPU of each.
const FIRST: u64 = slot::FREE;
/// How long a turn lasts: much less than a slice.
const TURN: u64 = 100;

/// Where the pages of root's memory begin that the story takes.
const PAGES: u64 = 2048;

fn slots(n: usize) -> [u64; 3] {
    [0, 1, 2].map(|i| FIRST + 3 * n as u64 + i)
}

/// Guests with one vCPU each and vectors of so many lanes; root runs. The vCPU of guest n has index n + 1.
fn guests(lanes: &[u8]) -> Hosted {
    let mut hosted = small::system(Settings::default());
    for (n, lanes) in lanes.iter().enumerate() {
        let [tables, guest, vcpu] = slots(n);
        small::split(&mut hosted, PAGES + 32 * n as u64, 32, tables);
        make(&mut hosted, tables, guest, vcpu, *lanes, 0);
    }
    hosted
}

fn make(hosted: &mut Hosted, tables: u64, guest: u64, vcpu: u64, lanes: u8, cpu: u64) {
    must(hosted, Op::GuestCreate, [tables, 1, guest, lanes.into(), u64::from(lanes != 0), 0]);
    must(hosted, Op::VcpuCreate, [guest, cpu, 0, vcpu, 50, 0]);
    if cpu == 0 {
        for class in 0..EXIT_CLASSES as u64 {
            must(hosted, Op::VcpuRoute, [vcpu, class, slot::PORTALS[1], 7, 0, 0]);
        }
    }
}

/// Lets the vCPU of guest n run alone for a moment; root runs again afterwards.
fn turn<R>(hosted: &mut Hosted, n: usize, act: impl FnOnce(&mut Hosted) -> R) -> R {
    let vcpu = slots(n)[2];
    must(hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]);
    let until = hosted.board.borrow().now + TURN;
    assert_eq!(hosted.syscall(0, Op::Wait as u16, [1, until, 0, 0, 0, 0], [0; 10]), Now::Guest(n as u16 + 1));
    let result = act(hosted);
    hosted.advance(TURN);
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    must(hosted, Op::VcpuStop, [vcpu, 0, 0, 0, 0, 0]);
    laws::full(hosted).expect("the laws hold");
    result
}

/// The guest writes registers of its own.
fn writes(hosted: &mut Hosted, n: usize, lanes: u8, seed: u8) {
    turn(hosted, n, |hosted| hosted.float(0).expect("a guest gets them").write_pattern(lanes, seed));
}

/// The guest looks at everything it can see.
fn sees(hosted: &mut Hosted, n: usize, lanes: u8) -> Vec<u8> {
    turn(hosted, n, |hosted| hosted.float(0).expect("a guest gets them").seen(lanes))
}

fn moves(hosted: &mut Hosted) -> Vec<FloatMove> {
    take_moves(hosted).iter().map(|moved| moved.way).collect()
}

fn take_moves(hosted: &mut Hosted) -> Vec<Moved> {
    std::mem::take(&mut hosted.cpus[0].machine.float.moves)
}

fn get(hosted: &mut Hosted, n: usize, register: u64) -> Result<u64, Refusal> {
    hosted.invoke(0, Op::VcpuGet, [slots(n)[2], register, 0, 0, 0, 0]).map(|[_, value, _]| value)
}

fn set(hosted: &mut Hosted, n: usize, register: u64, value: u64) -> Result<(), Refusal> {
    hosted.invoke(0, Op::VcpuSet, [slots(n)[2], register, value, 0, 0, 0]).map(drop)
}

use FloatMove::{Load, Save};

#[test]
fn a_switch_between_guests_that_use_nothing_moves_nothing() {
    let mut hosted = guests(&[0, 2, 4]);
    for n in [0, 1, 2, 0, 2, 1] {
        turn(&mut hosted, n, |_| ());
    }
    assert_eq!(moves(&mut hosted), []);
    assert_eq!(hosted.cpus[0].local.float.moved, 0);
}

#[test]
fn a_guest_that_alone_uses_registers_has_them_loaded_once() {
    let mut hosted = guests(&[2, 0]);
    writes(&mut hosted, 0, 2, 7);
    for n in [1, 0, 1, 0] {
        turn(&mut hosted, n, |_| ());
    }
    assert_eq!(sees(&mut hosted, 0, 2), pattern(2, 7));
    assert_eq!(moves(&mut hosted), [Load]);
    assert_eq!(hosted.cpus[0].local.float.moved, Layout::new(2).moved());
}

#[test]
fn the_last_owner_is_saved_once_and_in_full_before_the_next_is_loaded() {
    let mut hosted = guests(&[4, 0]);
    writes(&mut hosted, 0, 4, 1);
    let area = hosted.cpus[0].local.vcpus.at(1).float.area;
    take_moves(&mut hosted);
    writes(&mut hosted, 1, 0, 2);
    let moves = take_moves(&mut hosted);
    assert_eq!(moves[0], Moved { way: Save, who: area, lanes: 4 });
    assert_eq!((moves[1].way, moves[1].lanes, moves.len()), (Load, 0, 2));
    let board = hosted.board.borrow();
    let words: Vec<u8> = (0..Layout::new(4).bytes() / 8).flat_map(|i| board.word(area * 4096 + i * 8).to_le_bytes()).collect();
    assert_eq!(words, pattern(4, 1));
}

#[test]
fn guests_of_different_lengths_alternate_and_each_finds_its_own() {
    let lanes = [0, 4, 2, 1];
    let mut hosted = guests(&lanes);
    // None to scalable, scalable to none, longer to shorter and back, fixed to scalable: every pair.
    for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let seeds = [a as u8 * 16 + b as u8, 0x80 + b as u8 * 16 + a as u8];
        writes(&mut hosted, a, lanes[a], seeds[0]);
        writes(&mut hosted, b, lanes[b], seeds[1]);
        assert_eq!(sees(&mut hosted, a, lanes[a]), pattern(lanes[a], seeds[0]), "{a} beside {b}");
        assert_eq!(sees(&mut hosted, b, lanes[b]), pattern(lanes[b], seeds[1]), "{b} beside {a}");
    }
}

#[test]
fn a_guest_begins_with_zeroes_whatever_others_left() {
    let mut hosted = guests(&[4, 4, 0]);
    writes(&mut hosted, 0, 4, 9);
    assert_eq!(sees(&mut hosted, 1, 4), vec![0; Layout::new(4).bytes() as usize]);
    writes(&mut hosted, 1, 4, 10);
    assert_eq!(sees(&mut hosted, 2, 0), vec![0; Layout::new(0).bytes() as usize]);
}

#[test]
fn an_exit_to_a_server_and_back_moves_nothing() {
    let mut hosted = guests(&[4]);
    turn(&mut hosted, 0, |hosted| {
        hosted.float(0).expect("a guest gets them").write_pattern(4, 3);
        assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Thread(OUTER));
        assert_eq!(common::reply(hosted, Answer::ADVANCE.0, [0; 10]), Now::Guest(1));
        assert_eq!(hosted.float(0).expect("still its own").seen(4), pattern(4, 3));
    });
    assert_eq!(moves(&mut hosted), [Load]);
}

#[test]
fn registers_of_a_destroyed_vcpu_are_nobodys_and_its_area_comes_back_empty() {
    let mut hosted = guests(&[4, 2]);
    writes(&mut hosted, 0, 4, 5);
    let area = hosted.cpus[0].local.vcpus.at(1).float.area;
    must(&mut hosted, Op::GuestDestroy, [slots(0)[1], 0, 0, 0, 0, 0]);
    assert_eq!(hosted.cpus[0].local.float.owner(), float::Owner::Free);
    // The same frames make another guest, whose vCPU takes the same slot.
    let [tables, guest, vcpu] = slots(0);
    must(&mut hosted, Op::Drop, [vcpu, 0, 0, 0, 0, 0]);
    make(&mut hosted, tables, guest, vcpu, 4, 0);
    assert_eq!(hosted.cpus[0].local.vcpus.at(1).float.area, area);
    assert_eq!(sees(&mut hosted, 0, 4), vec![0; Layout::new(4).bytes() as usize]);
    assert_eq!(sees(&mut hosted, 1, 2), vec![0; Layout::new(2).bytes() as usize]);
    // Nothing was ever saved for the dead one.
    assert_eq!(moves(&mut hosted), [Load, Load, Save, Load]);
}

#[test]
fn others_read_live_registers_and_what_they_write_is_found() {
    let mut hosted = guests(&[2, 0]);
    writes(&mut hosted, 0, 2, 77);
    let bytes = pattern(2, 77);
    let word = |at: u64| u64::from_le_bytes(bytes[at as usize..][..8].try_into().expect("eight"));
    let layout = Layout::new(2);
    assert_eq!(get(&mut hosted, 0, float_register::LENGTH), Ok(2));
    assert_eq!(get(&mut hosted, 0, float_register::FPCR), Ok(word(8)));
    assert_eq!(get(&mut hosted, 0, float_register::VECTORS + 31 * 32 + 3), Ok(word(Layout::VECTORS + 31 * 32 + 24)));
    // A predicate of two lanes has 32 bits, FFR is the seventeenth.
    assert_eq!(get(&mut hosted, 0, float_register::PREDICATES + 64), Ok(word(layout.ffr()) & 0xffff_ffff));
    assert_eq!(moves(&mut hosted), [Load, Save]);
    // Beyond its length there is nothing.
    for beyond in [float_register::VECTORS + 4, float_register::VECTORS + 32 * 32, float_register::PREDICATES + 1] {
        assert_eq!(get(&mut hosted, 0, beyond), Err(Refusal::OutOfRange));
    }
    assert_eq!(set(&mut hosted, 0, float_register::VECTORS + 32, 0x1234), Ok(()));
    assert_eq!(set(&mut hosted, 0, float_register::PREDICATES + 64, 1 << 32), Err(Refusal::BadArgument));
    assert_eq!(set(&mut hosted, 0, float_register::ZCR_EL1, 16), Err(Refusal::BadArgument));
    assert_eq!(set(&mut hosted, 0, float_register::LENGTH, 4), Err(Refusal::OutOfRange));
    let mut expected = bytes.clone();
    expected[Layout::VECTORS as usize + 32..][..8].copy_from_slice(&0x1234u64.to_le_bytes());
    assert_eq!(sees(&mut hosted, 0, 2), expected);
    // The same for fixed vectors, which lie in the context.
    writes(&mut hosted, 1, 0, 5);
    assert_eq!(get(&mut hosted, 1, float_register::LENGTH), Ok(0));
    assert_eq!(set(&mut hosted, 1, float_register::VECTORS + 1, 99), Ok(()));
    assert_eq!(get(&mut hosted, 1, float_register::ZCR_EL1), Err(Refusal::OutOfRange));
    assert_eq!(get(&mut hosted, 1, float_register::PREDICATES), Err(Refusal::OutOfRange));
    assert_eq!(sees(&mut hosted, 1, 0)[Layout::VECTORS as usize + 8..][..8], 99u64.to_le_bytes());
}

#[test]
fn another_cpu_reads_registers_that_are_live_where_their_vcpu_runs() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    let [tables, guest, vcpu] = slots(0);
    small::split(&mut hosted, PAGES, 32, tables);
    must(&mut hosted, Op::GuestCreate, [tables, 1, guest, 4, 1, 0]);
    let ask = |hosted: &mut Hosted, op: Op, a: [u64; 6]| {
        assert_eq!(hosted.syscall(0, op as u16, a, [0; 10]), Now::Idle);
        hosted.deliver_kicks();
        assert_eq!(hosted.now(0), Now::Thread(ROOT));
        Refusal::from_register(hosted.registers(0).x[0]).map(|_| hosted.registers(0).x[1])
    };
    ask(&mut hosted, Op::VcpuCreate, [guest, 1, 0, vcpu, 50, 0]).expect("made there");
    ask(&mut hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]).expect("started there");
    assert_eq!(hosted.now(1), Now::Guest(0));
    hosted.float(1).expect("a guest gets them").write_pattern(4, 8);
    let register = float_register::VECTORS + 32 * 5;
    assert_eq!(ask(&mut hosted, Op::VcpuGet, [vcpu, register, 0, 0, 0, 0]), Err(Refusal::BadState), "it runs");
    ask(&mut hosted, Op::VcpuStop, [vcpu, 0, 0, 0, 0, 0]).expect("stopped");
    let at = Layout::VECTORS as usize + 5 * 64;
    let word = u64::from_le_bytes(pattern(4, 8)[at..at + 8].try_into().expect("eight"));
    assert_eq!(ask(&mut hosted, Op::VcpuGet, [vcpu, register, 0, 0, 0, 0]), Ok(word));
    laws::full(&hosted).expect("the laws hold");
}

#[test]
fn a_vcpu_that_leaves_its_cpu_takes_its_registers_along_and_a_stale_record_moves_nothing() {
    let mut hosted = guests(&[4, 0]);
    writes(&mut hosted, 0, 4, 3);
    take_moves(&mut hosted);
    let cpu = &mut hosted.cpus[0];
    float::release(&mut cpu.local, &mut cpu.machine, 1);
    assert!(!cpu.local.vcpus.at(1).float.is_away());
    // A second time there is nothing to save, and whoever uses the registers next finds nobody to save.
    float::release(&mut cpu.local, &mut cpu.machine, 1);
    assert_eq!(moves(&mut hosted), [Save]);
    writes(&mut hosted, 1, 0, 4);
    assert_eq!(moves(&mut hosted), [Load]);
    assert_eq!(sees(&mut hosted, 0, 4), pattern(4, 3));
}

#[test]
fn a_cpu_that_retires_leaves_nobodys_state_in_its_registers() {
    let mut hosted = guests(&[4]);
    writes(&mut hosted, 0, 4, 3);
    let cpu = &mut hosted.cpus[0];
    float::put_away(&mut cpu.local, &mut cpu.machine);
    assert_eq!(cpu.local.float.owner(), float::Owner::Free);
    assert!(!cpu.local.vcpus.at(1).context.float_open);
    assert_eq!(moves(&mut hosted), [Load, Save]);
    assert_eq!(sees(&mut hosted, 0, 4), pattern(4, 3));
}

#[test]
fn the_death_of_a_server_leaves_its_guests_registers_alone() {
    let mut hosted = guests(&[4]);
    let [_, _, vcpu] = slots(0);
    must(&mut hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]);
    let until = hosted.board.borrow().now + TURN;
    hosted.syscall(0, Op::Wait as u16, [1, until, 0, 0, 0, 0], [0; 10]);
    hosted.float(0).expect("a guest gets them").write_pattern(4, 6);
    assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Thread(OUTER));
    hosted.trap(0, Trap::Fault(Default::default()));
    hosted.advance(TURN);
    must(&mut hosted, Op::DomainDestroy, [slot::DOMAINS[1], 0, 0, 0, 0, 0]);
    laws::full(&hosted).expect("the laws hold");
    assert_eq!(sees(&mut hosted, 0, 4), pattern(4, 6));
    assert_eq!(moves(&mut hosted), [Load]);
}

#[test]
fn a_storm_of_traps_makes_a_vcpu_eager_and_it_becomes_lazy_again() {
    let mut hosted = guests(&[2, 0]);
    let is_eager = |hosted: &Hosted| [1, 2].map(|index| hosted.cpus[0].local.vcpus.at(index).float.is_eager());
    for pass in 0..STORM {
        assert_eq!(is_eager(&hosted), [false; 2], "pass {pass}");
        writes(&mut hosted, 0, 2, pass as u8);
        writes(&mut hosted, 1, 0, pass as u8);
    }
    assert_eq!(is_eager(&hosted), [true; 2]);
    // From now on they come without a trap, though nothing asks for them.
    turn(&mut hosted, 0, |hosted| assert!(hosted.cpus[0].local.vcpus.at(1).context.float_open));
    turn(&mut hosted, 1, |hosted| assert!(hosted.cpus[0].local.vcpus.at(2).context.float_open));
    for _ in 1..EAGER_LOADS {
        turn(&mut hosted, 0, |_| ());
        turn(&mut hosted, 1, |_| ());
    }
    // The last unasked loads are used up, and neither uses them: nothing moves any more.
    assert_eq!(is_eager(&hosted), [false; 2]);
    take_moves(&mut hosted);
    turn(&mut hosted, 0, |_| ());
    turn(&mut hosted, 1, |_| ());
    assert_eq!(moves(&mut hosted), []);
    assert_eq!(sees(&mut hosted, 0, 2), pattern(2, STORM as u8 - 1));
}

#[test]
fn traps_that_are_far_apart_are_no_storm() {
    let mut hosted = guests(&[2, 0]);
    for pass in 0..3 * STORM {
        writes(&mut hosted, 0, 2, pass as u8);
        writes(&mut hosted, 1, 0, pass as u8);
        hosted.advance(20_000);
    }
    assert!(!hosted.cpus[0].local.vcpus.at(1).float.is_eager());
}

#[test]
fn being_preempted_between_the_trap_and_the_first_use_loses_nothing() {
    let mut hosted = guests(&[4, 4]);
    writes(&mut hosted, 0, 4, 1);
    writes(&mut hosted, 1, 4, 2);
    // It traps, gets them, and another runs before its instruction does.
    turn(&mut hosted, 0, |hosted| {
        assert_eq!(hosted.trap(0, Trap::Float(Default::default())), Now::Guest(1));
    });
    assert_eq!(sees(&mut hosted, 1, 4), pattern(4, 2));
    assert_eq!(sees(&mut hosted, 0, 4), pattern(4, 1));
}

#[test]
fn a_second_trap_of_the_owner_moves_nothing() {
    let mut hosted = guests(&[4]);
    writes(&mut hosted, 0, 4, 1);
    take_moves(&mut hosted);
    turn(&mut hosted, 0, |hosted| {
        hosted.trap(0, Trap::Float(Default::default()));
        hosted.trap(0, Trap::Float(Default::default()));
    });
    assert_eq!(moves(&mut hosted), []);
    assert_eq!(sees(&mut hosted, 0, 4), pattern(4, 1));
}

#[test]
fn a_reset_vcpu_has_zero_in_every_register() {
    let mut hosted = guests(&[4, 0]);
    for (n, lanes) in [(0, 4), (1, 0)] {
        writes(&mut hosted, n, lanes, 66);
        must(&mut hosted, Op::VcpuReset, [slots(n)[2], 0, 0, 0, 0, 0]);
        assert_eq!(sees(&mut hosted, n, lanes), vec![0; Layout::new(lanes).bytes() as usize]);
    }
}

#[test]
fn a_server_that_uses_floating_point_breaks_its_contract() {
    let mut hosted = guests(&[4]);
    turn(&mut hosted, 0, |hosted| {
        hosted.float(0).expect("a guest gets them").write_pattern(4, 1);
        assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Thread(OUTER));
        assert!(hosted.float(0).is_none());
    });
    let thread = hosted.cpus[0].local.threads.at(OUTER);
    assert_eq!((thread.state, thread.fault.syndrome), (ThreadState::Faulted, 0x1e00_0000));
    assert_eq!(moves(&mut hosted), [Load]);
}

#[test]
fn a_server_that_may_use_floating_point_has_registers_of_its_own() {
    let mut hosted = guests(&[4]);
    let area = slots(3)[0];
    small::split(&mut hosted, PAGES + 500, 1, area);
    must(&mut hosted, Op::ThreadFloat, [slot::THREADS[1], area, 0, 0, 0, 0]);
    let again = hosted.invoke(0, Op::ThreadFloat, [slot::THREADS[1], area, 0, 0, 0, 0]);
    assert_eq!(again, Err(Refusal::Occupied));
    for pass in 0..3 {
        turn(&mut hosted, 0, |hosted| {
            hosted.float(0).expect("a guest gets them").write_pattern(4, 11 + pass);
            assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Thread(OUTER));
            let expected = if pass == 0 { vec![0; 576] } else { pattern(0, 40 + pass) };
            let file = hosted.float(0).expect("the server has its own");
            assert_eq!(file.seen(0), expected);
            file.write_pattern(0, 41 + pass);
            assert_eq!(common::reply(hosted, Answer::ADVANCE.0, [0; 10]), Now::Guest(1));
            assert_eq!(hosted.float(0).expect("the guest has its own").seen(4), pattern(4, 11 + pass));
        });
    }
    // While it lives its area is the kernel's; then it is memory again, and empty.
    assert_eq!(hosted.invoke(0, Op::FramesReclaim, [area, 0, 0, 0, 0, 0]), Err(Refusal::BadState));
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[1], 0, 0, 0, 0, 0]);
    let page = must(&mut hosted, Op::FramesInfo, [area, 0, 0, 0, 0, 0])[1];
    assert!(hosted.board.borrow().is_clean(page));
    must(&mut hosted, Op::FramesReclaim, [area, 0, 0, 0, 0, 0]);
}

#[test]
fn a_length_that_hardware_would_round_is_refused_and_takes_nothing() {
    let mut hosted = small::system(Settings::default());
    let [tables, guest, vcpu] = slots(0);
    small::split(&mut hosted, PAGES, 8, tables);
    assert_eq!(hosted.invoke(0, Op::Fact, [root_slot::SYSTEM, 32, 0, 0, 0, 0]), Ok([0, 0b1011, 0]));
    for (lanes, areas, why) in [
        (3, 1, Refusal::Unsupported), (8, 1, Refusal::Unsupported), (17, 1, Refusal::BadArgument),
        (2, 0, Refusal::BadArgument), (2, 17, Refusal::BadArgument), (4, 8, Refusal::Quota), (4, 9, Refusal::Quota),
    ] {
        let refused = hosted.invoke(0, Op::GuestCreate, [tables, 1, guest, lanes, areas, 0]);
        assert_eq!(refused, Err(why), "{lanes} lanes, {areas} areas");
    }
    must(&mut hosted, Op::GuestCreate, [tables, 1, guest, 4, 2, 0]);
    must(&mut hosted, Op::VcpuCreate, [guest, 0, 0, vcpu, 50, 0]);
    must(&mut hosted, Op::VcpuCreate, [guest, 0, 1, vcpu + 1, 50, 0]);
    let third = hosted.invoke(0, Op::VcpuCreate, [guest, 0, 2, vcpu + 2, 50, 0]);
    assert_eq!(third, Err(Refusal::Quota), "it asked for two areas");
    laws::full(&hosted).expect("the laws hold");
}

/// CPUs that differ: a guest may only have what all of them have, and a CPU that comes up late without it has no vCPU of
/// such a guest.
#[test]
fn a_cpu_without_a_guests_length_gets_none_of_its_vcpus() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    hosted.cpus[1].machine.float.lengths = Lengths(0);
    let [tables, guest, vcpu] = slots(0);
    small::split(&mut hosted, PAGES, 32, tables);
    must(&mut hosted, Op::GuestCreate, [tables, 1, guest, 4, 2, 0]);
    must(&mut hosted, Op::VcpuCreate, [guest, 0, 0, vcpu, 50, 0]);
    assert_eq!(hosted.syscall(0, Op::VcpuCreate as u16, [guest, 1, 1, vcpu + 1, 50, 0], [0; 10]), Now::Idle);
    hosted.deliver_kicks();
    assert_eq!(Refusal::from_register(hosted.registers(0).x[0]), Err(Refusal::Unsupported));
    // Nothing was taken: both areas can still be had where they fit.
    must(&mut hosted, Op::VcpuCreate, [guest, 0, 1, vcpu + 1, 50, 0]);
    // The answer has come; as soon as the system knows, no guest gets it.
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    hosted.shared.vector_lengths.fetch_and(0, Ordering::AcqRel);
    let [tables, guest, _] = slots(2);
    small::split(&mut hosted, PAGES + 32, 32, tables);
    let refused = hosted.invoke(0, Op::GuestCreate, [tables, 1, guest, 1, 1, 0]);
    assert_eq!(refused, Err(Refusal::Unsupported));
    laws::full(&hosted).expect("the laws hold");
}

#[test]
fn ten_thousand_vcpus_come_and_go_and_every_count_returns() {
    let mut hosted = small::system(Settings::default());
    let [tables, guest, vcpu] = slots(0);
    small::split(&mut hosted, PAGES, 32, tables);
    let free = |hosted: &mut Hosted, kind: Kind| must(hosted, Op::Fact, [root_slot::SYSTEM, 4, kind as u64, 0, 0, 0])[1];
    let kinds = [Kind::Vcpu, Kind::Guest, Kind::Frames];
    let before = kinds.map(|kind| free(&mut hosted, kind));
    for round in 0..2_500u64 {
        let lanes = [0, 1, 2, 4][round as usize % 4];
        must(&mut hosted, Op::GuestCreate, [tables, 1, guest, lanes, 4 * u64::from(lanes != 0), 0]);
        for n in 0..4 {
            must(&mut hosted, Op::VcpuCreate, [guest, 0, n, vcpu + n, 50, 0]);
            if lanes != 0 {
                // Dirt that the next life must not find.
                must(&mut hosted, Op::VcpuSet, [vcpu + n, float_register::VECTORS, round + 1, 0, 0, 0]);
            }
            must(&mut hosted, Op::Drop, [vcpu + n, 0, 0, 0, 0, 0]);
        }
        must(&mut hosted, Op::GuestDestroy, [guest, 0, 0, 0, 0, 0]);
        let first = must(&mut hosted, Op::FramesInfo, [tables, 0, 0, 0, 0, 0])[1];
        assert!((first..first + 32).all(|page| hosted.board.borrow().is_clean(page)));
    }
    assert_eq!(kinds.map(|kind| free(&mut hosted, kind)), before);
    laws::full(&hosted).expect("the laws hold");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens in whatever order, each guest sees what it wrote last, or what was written for it.
    #[test]
    fn no_guest_ever_sees_what_is_not_its_own(steps in prop::collection::vec((0usize..4, 0u8..7, any::<u8>()), 1..60)) {
        let lanes = [0, 4, 2, 1];
        let mut hosted = guests(&lanes);
        let mut shadow = lanes.map(|lanes| vec![0; Layout::new(lanes).bytes() as usize]);
        for (n, what, seed) in steps {
            match what {
                0 | 1 => {
                    writes(&mut hosted, n, lanes[n], seed);
                    shadow[n] = pattern(lanes[n], seed);
                }
                2 => prop_assert_eq!(&sees(&mut hosted, n, lanes[n]), &shadow[n]),
                3 => turn(&mut hosted, n, |_| ()),
                4 => {
                    let at = Layout::VECTORS as usize + 16 * usize::from(lanes[n].max(1));
                    set(&mut hosted, n, float_register::VECTORS + 32, seed.into()).expect("stopped");
                    shadow[n][at..at + 8].copy_from_slice(&u64::from(seed).to_le_bytes());
                }
                5 => {
                    must(&mut hosted, Op::VcpuReset, [slots(n)[2], 0, 0, 0, 0, 0]);
                    shadow[n].fill(0);
                }
                _ => {
                    let cpu = &mut hosted.cpus[0];
                    float::put_away(&mut cpu.local, &mut cpu.machine);
                }
            }
        }
        for n in 0..4 {
            prop_assert_eq!(&sees(&mut hosted, n, lanes[n]), &shadow[n]);
        }
    }
}
