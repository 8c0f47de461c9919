// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of budgets, priorities and deadlines. A tick is a microsecond here.

mod common;

use common::*;
use trellis_hosted::small::{self, CLIENT, INNER, ROOT, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now};
use trellis_idl::kernel::{ExitClass, Op, Refusal};

/// A thread of the client's domain: its index.
fn thread(hosted: &mut Hosted, number: u64, priority: u64, budget: u64) -> u16 {
    let free = slot::FREE + number;
    must(hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, priority, free, 0, budget]);
    must(hosted, Op::ThreadStart, [free, 0, 0, 0, 0, 0]);
    CLIENT + 1 + number as u16
}

const fn budget(time: u64, period: u64) -> u64 {
    time | period << 32
}

fn used(hosted: &Hosted, id: u16) -> u64 {
    hosted.cpus[0].local.budgets[id as usize].used
}

#[test]
fn threads_of_one_priority_take_turns_even_if_the_second_came_later() {
    let mut hosted = system();
    let first = thread(&mut hosted, 0, 50, 0);
    assert_eq!(wait(&mut hosted), Now::Thread(first));
    hosted.advance(25_000);
    assert_eq!(hosted.now(0), Now::Thread(first), "it is alone");
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    let second = thread(&mut hosted, 1, 50, 0);
    wait(&mut hosted);
    let mut turns = Vec::new();
    for _ in 0..6 {
        turns.push(hosted.now(0));
        hosted.advance(10_000);
    }
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    assert!(used(&hosted, second).abs_diff(used(&hosted, first) - 25_000) <= 10_000);
}

#[test]
fn one_that_becomes_ready_beside_a_lone_one_is_not_left_waiting() {
    let mut hosted = system();
    let first = thread(&mut hosted, 0, 50, 0);
    let second = thread(&mut hosted, 1, 50, 0);
    wait(&mut hosted);
    assert_eq!(hosted.now(0), Now::Thread(first));
    hosted.syscall(0, Op::Wait as u16, [1, 3000, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(second));
    // The second begins its turn alone; the first comes back at 3 ms and gets its turn a slice later.
    hosted.advance(14_000);
    assert_eq!(hosted.now(0), Now::Thread(first));
    assert_eq!(x0(&hosted), Ok(0), "its deadline passed");
}

#[test]
fn a_signal_wakes_a_better_thread_at_once() {
    let mut hosted = client_runs();
    assert_eq!(hosted.now(0), Now::Thread(CLIENT));
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [7; 10]);
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(ROOT), Ok(1)));
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(x0(&hosted), Ok(0));
    lawful(&hosted);
}

#[test]
fn a_signal_that_came_before_ends_a_wait_at_once_and_only_its_bits_go() {
    let mut hosted = system();
    must(&mut hosted, Op::Signal, [slot::SIGNALS[0], 0, 0, 0, 0, 0]);
    let [bits, ..] = must(&mut hosted, Op::Wait, [3, 0, 0, 0, 0, 0]);
    assert_eq!(bits, 1);
    assert_eq!(hosted.invoke(0, Op::Wait, [0; 6]), Err(Refusal::BadArgument));
    assert_eq!(hosted.syscall(0, Op::Wait as u16, [1, 500, 0, 0, 0, 0], [0; 10]), Now::Idle);
    hosted.advance(498);
    assert_eq!(hosted.now(0), Now::Idle);
    hosted.advance(2);
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(ROOT), Ok(0)));
}

#[test]
fn a_server_that_waits_on_lent_time_keeps_its_deadline() {
    let mut hosted = client_runs();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    let until = hosted.board.borrow().now + 300;
    assert_eq!(hosted.syscall(0, Op::Wait as u16, [4, until, 0, 0, 0, 0], [0; 10]), Now::Idle);
    hosted.advance(400);
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(INNER), Ok(0)));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
    lawful(&hosted);
}

#[test]
fn a_limited_thread_gets_its_share_and_no_more() {
    let mut hosted = system();
    let limited = thread(&mut hosted, 0, 60, budget(2000, 10_000));
    let rest = thread(&mut hosted, 1, 50, 0);
    wait(&mut hosted);
    hosted.advance(100_000);
    assert!((19_000..=22_000).contains(&used(&hosted, limited)), "{}", used(&hosted, limited));
    assert!(used(&hosted, rest) >= 77_000);
}

#[test]
fn an_overrun_on_lent_time_is_paid_back() {
    let mut hosted = system();
    let limited = thread(&mut hosted, 0, 60, budget(2000, 10_000));
    assert_eq!(wait(&mut hosted), Now::Thread(limited));
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    hosted.advance(7000);
    assert_eq!(hosted.now(0), Now::Thread(INNER), "nobody is stopped in the middle of lent work");
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Idle, "5 ms too much: the owner stops as soon as it is answered");
    // Two refills of 2 ms leave 1 ms to pay; the third gives 1 ms.
    hosted.advance(20_000);
    assert_eq!(hosted.now(0), Now::Idle);
    hosted.advance(3300);
    assert_eq!(hosted.now(0), Now::Thread(limited));
    let total = used(&hosted, limited);
    hosted.advance(100_000);
    assert!(used(&hosted, limited) - total <= 22_000);
}

#[test]
fn a_vcpu_that_was_stopped_and_started_is_refilled_again() {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, slot::FREE, 50, budget(1000, 10_000)]);
    must(&mut hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]);
    hosted.syscall(0, Op::Wait as u16, [1, 600, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Guest(1));
    hosted.advance(700);
    must(&mut hosted, Op::VcpuStop, [slot::FREE, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]);
    wait(&mut hosted);
    hosted.advance(50_000);
    let id = trellis_core::local::THREADS as u16 + 1;
    assert!(used(&hosted, id) >= 4500, "{}", used(&hosted, id));
}

#[test]
fn a_budget_that_can_never_be_right_is_refused() {
    let mut hosted = system();
    for (time, period) in [(0, 1000), (2000, 1000), (1, 1), (50, 99)] {
        let a = [slot::DOMAINS[2], 0, 10, slot::FREE, 0, budget(time, period)];
        assert_eq!(hosted.invoke(0, Op::ThreadCreate, a), Err(Refusal::BadArgument), "{time} of {period}");
    }
}

#[test]
fn an_owner_that_is_nearly_always_served_does_not_outlast_its_budget() {
    let mut hosted = system();
    let limited = thread(&mut hosted, 0, 60, budget(2000, 10_000));
    let equal = thread(&mut hosted, 1, 60, 0);
    wait(&mut hosted);
    // The limited one calls again as soon as it is answered: every alarm finds its server at work.
    for _ in 0..1000 {
        if hosted.now(0) == Now::Thread(limited) {
            call(&mut hosted, TO_INNER, WORDS);
        }
        hosted.advance(99);
        if hosted.now(0) == Now::Thread(INNER) {
            reply(&mut hosted, 0, BACK);
        }
    }
    assert!(used(&hosted, limited) <= 23_000, "{}", used(&hosted, limited));
    assert!(used(&hosted, equal) >= 75_000, "{}", used(&hosted, equal));
}

#[test]
fn an_exit_is_paid_by_the_vcpu() {
    let mut hosted = guest_runs();
    let id = trellis_core::local::THREADS as u16;
    let before = used(&hosted, id);
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    hosted.advance(800);
    reply(&mut hosted, 0, [0; 10]);
    hosted.advance(1);
    hosted.exit(0, ExitClass::Wait, [0; 10]);
    let stop = trellis_idl::kernel::Answer::STOP.0;
    assert_eq!(reply(&mut hosted, stop, [0; 10]), Now::Idle);
    assert!(used(&hosted, id) - before >= 800);
    assert_eq!(small::VCPU_PRIORITY, 50);
}

/// Two vCPUs of one priority on CPU 0: their budgets, in microseconds of each 10 ms (0: none). The second sleeps.
fn equals(first: u64, second: u64) -> Hosted {
    let mut hosted = system();
    let share = |time: u64| if time == 0 { 0 } else { budget(time, 10_000) };
    for (number, time) in [(1, first), (2, second)] {
        must(&mut hosted, Op::VcpuCreate, [slot::GUEST, 0, number, slot::FREE + number, 50, share(time)]);
    }
    arm(&mut hosted, 2, 500);
    must(&mut hosted, Op::VcpuStart, [slot::FREE + 2, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.syscall(0, Op::Wait as u16, [1, 300, 0, 0, 0, 0], [0; 10]), Now::Guest(2));
    hosted.advance(10);
    assert_eq!(hosted.trap(0, trellis_core::trap::Trap::WaitForInterrupt), Now::Idle);
    while hosted.now(0) != Now::Thread(ROOT) {
        hosted.advance(10);
    }
    must(&mut hosted, Op::VcpuStart, [slot::FREE + 1, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(1));
    hosted
}

/// Sets a vCPU's timer, whatever it does.
fn arm(hosted: &mut Hosted, index: u16, due: u64) {
    let context = &mut hosted.cpus[0].local.vcpus.at_mut(index).context;
    context.set_special(trellis_idl::kernel::VcpuRegister::CntvCval, due);
    context.set_special(trellis_idl::kernel::VcpuRegister::CntvCtl, 1);
}

#[test]
fn one_that_wakes_with_time_left_goes_before_an_equal_that_has_had_more() {
    for first in [0, 4000] {
        let mut hosted = equals(first, 4000);
        let now = hosted.board.borrow().now;
        hosted.advance(502 - now);
        assert_eq!(hosted.now(0), Now::Guest(2), "beside {first}");
        lawful(&hosted);
    }
}

#[test]
fn one_that_was_promised_nothing_waits_for_its_turn_when_it_wakes() {
    for first in [0, 4000] {
        let mut hosted = equals(first, 0);
        let now = hosted.board.borrow().now;
        hosted.advance(600 - now);
        assert_eq!(hosted.now(0), Now::Guest(1), "beside {first}");
        hosted.advance(10_000);
        assert_eq!(hosted.now(0), Now::Guest(2), "and gets it");
    }
}

#[test]
fn one_that_wakes_without_end_gets_its_share_and_no_more() {
    let mut hosted = equals(4000, 4000);
    let [spins, storms] = [1, 2].map(|number| trellis_core::local::THREADS as u16 + number);
    let mut ran = 0;
    for _ in 0..20_000 {
        hosted.advance(5);
        if hosted.now(0) == Now::Guest(2) {
            ran += 1;
            // It sleeps for 5 µs at a time; its interrupt is not taken, its timer only set again.
            let now = hosted.board.borrow().now;
            arm(&mut hosted, 2, now + 5);
            hosted.acknowledge(0);
            hosted.end_of_interrupt(0, 27);
            hosted.wait_for_interrupt(0);
        }
    }
    assert!(ran > 1000, "{ran}");
    // A tenth of a second: four tenths of it for each, if they want them.
    assert!(used(&hosted, storms) <= 42_000, "{}", used(&hosted, storms));
    assert!(used(&hosted, spins) >= 38_000, "{}", used(&hosted, spins));
    lawful(&hosted);
}
