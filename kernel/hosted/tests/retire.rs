// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of a CPU that is taken out of use.

mod common;

use common::lawful;
use trellis_core::float::{Lengths, Owner};
use trellis_core::trap::Trap;
use trellis_hosted::float::pattern;
use trellis_hosted::small::{self, ROOT, anywhere, must, pieces, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Kind, Op, PLACE, Refusal, Service};
use trellis_idl::layout::root_slot;

const CPUS: u16 = 3;
const LAST: u64 = CPUS as u64 - 1;
const LINE: u64 = 40;
const LINE_SLOT: u64 = slot::FREE;
const VCPU: u64 = slot::FREE + 1;
const PLACE_SLOT: u64 = slot::FREE + 2;

fn system() -> Hosted {
    small::system(Settings { cpus: CPUS, lengths: Lengths(0b1111), ..Settings::default() })
}

fn retire(hosted: &mut Hosted, cpu: u64) -> Result<(), Refusal> {
    let result = anywhere(hosted, Op::CpuRetire, [root_slot::SYSTEM, cpu, 0, 0, 0, 0]).map(drop);
    // It stops when every other CPU has been seen to leave the kernel.
    hosted.deliver_kicks();
    hosted.advance(5000);
    hosted.deliver_kicks();
    hosted.advance(5000);
    result
}

fn has_stopped(hosted: &Hosted, cpu: u64) -> bool {
    hosted.board.borrow().retired.contains(&(cpu as u16))
}

fn make(hosted: &mut Hosted, cpu: u64) -> Result<(), Refusal> {
    anywhere(hosted, Op::VcpuCreate, [slot::GUEST, cpu, 1, VCPU, 50, 0]).map(drop)
}

#[test]
fn a_cpu_that_has_stopped_is_asked_for_nothing_and_keeps_nobody_waiting() {
    let mut hosted = system();
    assert_eq!(retire(&mut hosted, LAST), Ok(()));
    assert!(has_stopped(&hosted, LAST));
    assert_eq!(retire(&mut hosted, LAST), Err(Refusal::WrongCpu), "it does not run");
    assert_eq!(make(&mut hosted, LAST), Err(Refusal::WrongCpu));
    // What waits until every CPU has left the kernel does not wait for it.
    must(&mut hosted, Op::Grant, [slot::VCPU, slot::DOMAINS[2], 30, 0xff, 0, 0]);
    pieces(&mut hosted, Op::Revoke, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(make(&mut hosted, 1), Ok(()));
    lawful(&hosted);
}

#[test]
fn a_cpu_with_threads_or_vcpus_goes_on() {
    let mut hosted = system();
    assert_eq!(retire(&mut hosted, 0), Err(Refusal::BadState), "root is there");
    assert_eq!(retire(&mut hosted, CPUS.into()), Err(Refusal::WrongCpu), "there is none");
    assert_eq!(retire(&mut hosted, u64::MAX), Err(Refusal::OutOfRange));
    make(&mut hosted, LAST).expect("made there");
    assert_eq!(retire(&mut hosted, LAST), Err(Refusal::BadState));
    assert!(!has_stopped(&hosted, LAST));
    anywhere(&mut hosted, Op::VcpuDestroy, [VCPU, 0, 0, 0, 0, 0]).expect("destroyed");
    anywhere(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], LAST, 10, LINE_SLOT, 0, 0]).expect("a thread");
    assert_eq!(retire(&mut hosted, LAST), Err(Refusal::BadState));
    anywhere(&mut hosted, Op::ThreadDestroy, [LINE_SLOT, 0, 0, 0, 0, 0]).expect("destroyed");
    assert_eq!(retire(&mut hosted, LAST), Ok(()));
    assert!(has_stopped(&hosted, LAST));
}

#[test]
fn only_who_may_control_the_machine_retires_a_cpu() {
    let mut hosted = system();
    let rights = trellis_idl::kernel::Rights::READ.with(trellis_idl::kernel::Rights::LINES);
    must(&mut hosted, Op::Grant, [root_slot::SYSTEM, root_slot::DOMAIN, LINE_SLOT, rights.0.into(), 0, 0]);
    let refused = anywhere(&mut hosted, Op::CpuRetire, [LINE_SLOT, LAST, 0, 0, 0, 0]);
    assert_eq!(refused, Err(Refusal::MissingRight));
    lawful(&hosted);
}

/// The registers of the CPU still hold what its last vCPU left when that moved away: nothing when it has stopped.
#[test]
fn a_vcpu_moves_away_from_a_cpu_that_stops_and_nothing_of_it_stays() {
    let mut hosted = system();
    small::split(&mut hosted, 2048, 64, LINE_SLOT);
    let guest = slot::FREE + 5;
    must(&mut hosted, Op::GuestCreate, [LINE_SLOT, 1, guest, 4, 1, 0]);
    anywhere(&mut hosted, Op::VcpuCreate, [guest, LAST, 0, VCPU, 50, 0]).expect("made there");
    let run = |hosted: &mut Hosted, vcpu: u64, act: &mut dyn FnMut(&mut Hosted)| {
        anywhere(hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]).expect("starts");
        act(hosted);
        anywhere(hosted, Op::VcpuStop, [vcpu, 0, 0, 0, 0, 0]).expect("stops");
    };
    run(&mut hosted, VCPU, &mut |hosted| hosted.float(LAST as u16).expect("its registers").write_pattern(4, 6));
    anywhere(&mut hosted, Op::VcpuCreate, [guest, 1, PLACE, PLACE_SLOT, 50, 0]).expect("a place");
    assert_eq!(retire(&mut hosted, LAST), Err(Refusal::BadState));
    anywhere(&mut hosted, Op::VcpuMove, [VCPU, 0, 0, 0, 0, 0]).expect("moves");
    assert_eq!(retire(&mut hosted, LAST), Ok(()));
    assert!(has_stopped(&hosted, LAST));
    assert_eq!(hosted.cpus[LAST as usize].local.float.owner(), Owner::Free);
    let mut seen = Vec::new();
    run(&mut hosted, PLACE_SLOT, &mut |hosted| seen = hosted.float(1).expect("its registers").seen(4));
    assert_eq!(seen, pattern(4, 6));
    lawful(&hosted);
}

#[test]
fn lines_and_what_waits_in_the_queue_go_to_a_cpu_that_runs() {
    let mut hosted = system();
    must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, LINE, LINE_SLOT, 0, 0, 0]);
    let source = must(&mut hosted, Op::LineForward, [LINE_SLOT, 0, 0, 0, 0, 0])[0];
    must(&mut hosted, Op::QueueServe, [root_slot::SYSTEM, slot::SIGNALS[0], 0, 0, 0, 0]);
    let wait = |hosted: &mut Hosted| {
        let until = hosted.board.borrow().now + 100;
        if hosted.syscall(0, Op::Wait as u16, [1, until, 0, 0, 0, 0], [0; 10]) != Now::Thread(ROOT) {
            hosted.advance(100);
        }
        hosted.registers(0).x[0]
    };
    assert_eq!(wait(&mut hosted), 1, "told to look once");
    anywhere(&mut hosted, Op::LineAck, [LINE_SLOT, 0, LAST + 1, 0, 0, 0]).expect("the last CPU gets it");
    hosted.trap(LAST as u16, Trap::Line(LINE as u32));
    hosted.deliver_kicks();
    let take = |hosted: &mut Hosted| must(hosted, Op::QueueTake, [root_slot::SYSTEM, 0, 0, 0, 0, 0]);
    assert_eq!((wait(&mut hosted), take(&mut hosted)[0]), (0, 0), "it waits there, and nobody serves");
    assert_eq!(retire(&mut hosted, LAST), Ok(()));
    lawful(&hosted);
    assert_eq!(wait(&mut hosted), 1, "whoever serves the other queue is told");
    let [count, service, _] = take(&mut hosted);
    assert_eq!((count, u64::from(Service(service).source())), (1, source));
    must(&mut hosted, Op::QueueDone, [root_slot::SYSTEM, service, 0, 0, 0, 0]);
    // The next comes to that CPU by itself.
    hosted.board.borrow_mut().active.remove(&(LINE as u32));
    hosted.trap(0, Trap::Line(LINE as u32));
    assert_eq!((wait(&mut hosted), take(&mut hosted)[0]), (1, 1));
    lawful(&hosted);
}

/// A request that another CPU made before it could know is answered, and not carried out.
#[test]
fn whoever_asked_a_moment_too_late_is_told_that_it_is_the_wrong_cpu() {
    let mut hosted = system();
    must(&mut hosted, Op::Grant, [root_slot::SYSTEM, slot::DOMAINS[2], 30, 0xff, 0, 0]);
    anywhere(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 1, 10, LINE_SLOT, 0, 0]).expect("a thread");
    anywhere(&mut hosted, Op::ThreadStart, [LINE_SLOT, 0x20_0000, 0, 0, 0, 0]).expect("started");
    assert!(matches!(hosted.now(1), Now::Thread(_)));
    hosted.syscall(1, Op::CpuRetire as u16, [30, LAST, 0, 0, 0, 0], [0; 10]);
    // CPU 0 has looked whether it runs, and asks.
    let running = hosted.shared.running.load(std::sync::atomic::Ordering::Relaxed);
    hosted.trap(LAST as u16, Trap::Kick);
    hosted.shared.running.store(running, std::sync::atomic::Ordering::Relaxed);
    hosted.syscall(0, Op::VcpuCreate as u16, [slot::GUEST, LAST, 1, VCPU, 50, 0], [0; 10]);
    hosted.shared.running.store(running & !(1 << LAST), std::sync::atomic::Ordering::Relaxed);
    hosted.deliver_kicks();
    hosted.advance(5000);
    hosted.deliver_kicks();
    hosted.advance(5000);
    assert!(has_stopped(&hosted, LAST));
    hosted.deliver_kicks();
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    assert_eq!(Refusal::from_register(hosted.registers(0).x[0]), Err(Refusal::WrongCpu));
    lawful(&hosted);
    let cap = hosted.shared.table.read(hosted.cpus[0].local.threads.at(ROOT).table, VCPU);
    assert!(!cap.word.is(Kind::Vcpu, trellis_idl::kernel::Rights(0)), "nothing was made");
}

/// A thread that waits for its turn to ask: by then the CPU has stopped. It is told, and so is the next behind it.
#[test]
fn whoever_waits_for_its_turn_to_ask_a_cpu_that_stops_meanwhile_is_told() {
    let mut hosted = system();
    must(&mut hosted, Op::Grant, [root_slot::SYSTEM, slot::DOMAINS[2], 30, 0xff, 0, 0]);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0x20_0000, 0, 0, 0, 0]);
    // Root asks CPU 1; the client is next, and wants something of the last CPU.
    hosted.syscall(0, Op::VcpuCreate as u16, [slot::GUEST, 1, 1, VCPU, 50, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(small::CLIENT));
    hosted.syscall(0, Op::TraceRead as u16, [30, LAST, 0, 0, 0, 0], [0; 10]);
    let all = hosted.shared.running.load(std::sync::atomic::Ordering::Relaxed);
    hosted.shared.running.store(all & !(1 << LAST), std::sync::atomic::Ordering::Relaxed);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), Refusal::from_register(hosted.registers(0).x[0])), (Now::Thread(ROOT), Ok(0)));
    assert!(hosted.shared.requests[0].is_free(), "nobody waits for a CPU that has stopped");
    hosted.syscall(0, Op::Wait as u16, [1, 0, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(small::CLIENT));
    assert_eq!(Refusal::from_register(hosted.registers(0).x[0]), Err(Refusal::WrongCpu));
    hosted.shared.running.store(all, std::sync::atomic::Ordering::Relaxed);
    lawful(&hosted);
}
