// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of answers that come late or never, and of servers that wait for servers. A tick is a microsecond here.

mod common;

use common::*;
use trellis_core::portal::Client;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::small::{self, CLIENT, INNER, OUTER, ROOT, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Answer, ExitClass, Op, Refusal, ThreadFault};

/// How long a server may take.
const PATIENCE: u64 = 20_000;

fn supervise(hosted: &mut Hosted, server: usize, patience: u64) {
    must(hosted, Op::ThreadSupervise, [slot::THREADS[server], slot::SIGNALS[0], patience, 0, 0, 0]);
}

fn record(hosted: &mut Hosted, server: usize, word: ThreadFault) -> u64 {
    must(hosted, Op::ThreadFault, [slot::THREADS[server], word as u64, 0, 0, 0, 0])[1]
}

/// The client runs, root sleeps, both servers must answer in time.
fn client_with_patience() -> Hosted {
    let mut hosted = system();
    supervise(&mut hosted, 0, PATIENCE);
    supervise(&mut hosted, 1, PATIENCE);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    hosted
}

fn guest_with_patience() -> Hosted {
    let mut hosted = system();
    supervise(&mut hosted, 0, PATIENCE);
    supervise(&mut hosted, 1, PATIENCE);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    hosted
}

/// Lets time pass until root runs: how long.
fn until_root(hosted: &mut Hosted) -> u64 {
    let begin = hosted.board.borrow().now;
    while hosted.now(0) != Now::Thread(ROOT) {
        hosted.advance(100);
        assert!(hosted.board.borrow().now - begin < 10 * PATIENCE, "root was never told");
    }
    hosted.board.borrow().now - begin
}

#[test]
fn a_call_that_is_never_answered_ends_in_time_and_the_late_answer_finds_nobody() {
    let mut hosted = client_with_patience();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    let took = until_root(&mut hosted);
    assert!((PATIENCE..=PATIENCE * 3 / 2 + 200).contains(&took), "{took}");
    lawful(&hosted);
    assert_eq!(record(&mut hosted, 0, ThreadFault::State), 3);
    assert_eq!(record(&mut hosted, 0, ThreadFault::LateFor), 1);
    // Client and server are equals now; the client learns it, and nobody else can be kept waiting by this server.
    wait(&mut hosted);
    while hosted.now(0) != Now::Thread(CLIENT) {
        hosted.advance(1000);
    }
    assert_eq!(x0(&hosted), Err(Refusal::Late));
    call(&mut hosted, TO_INNER, WORDS);
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(CLIENT), Err(Refusal::Late)));
    while hosted.now(0) != Now::Thread(INNER) {
        hosted.advance(1000);
    }
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT), "the answer went nowhere");
    assert_eq!(x0(&hosted), Err(Refusal::Late));
    lawful(&hosted);
    // It has come to itself: it serves again.
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
    assert_eq!(words(&hosted), BACK);
}

#[test]
fn a_vcpu_whose_exit_is_never_answered_is_stopped_and_reported_and_starts_again() {
    let mut hosted = guest_with_patience();
    assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Thread(OUTER));
    // It waits for something that never comes: the CPU is idle meanwhile.
    assert_eq!(hosted.syscall(0, Op::Wait as u16, [1 << 40, 0, 0, 0, 0, 0], [0; 10]), Now::Idle);
    let took = until_root(&mut hosted);
    assert!((PATIENCE..=PATIENCE * 3 / 2 + 200).contains(&took), "{took}");
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).state, VcpuState::Stopped);
    let told = [ThreadFault::State, ThreadFault::LateFor, ThreadFault::LateVcpu, ThreadFault::LateExit];
    let told = told.map(|word| record(&mut hosted, 1, word));
    assert_eq!(told, [3, 2, 0, ExitClass::Hypercall as u64]);
    lawful(&hosted);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0; 10]), Now::Idle, "a late server gets nothing more");
    lawful(&hosted);
}

#[test]
fn many_quick_answers_are_not_one_slow_one() {
    let mut hosted = guest_with_patience();
    let mut marked = 0;
    for _ in 0..40 {
        assert_eq!(hosted.exit(0, ExitClass::Memory, [0; 10]), Now::Thread(INNER));
        hosted.advance(4_900);
        marked += u32::from(hosted.cpus[0].local.threads.at(INNER).client.is_seen());
        let before = hosted.sharing();
        assert_eq!(reply(&mut hosted, 0, [0; 10]), Now::Guest(0));
        assert_eq!(hosted.sharing(), before, "an answer shares nothing, whichever way it takes");
    }
    assert!(marked > 20, "it was looked at in the middle of most: {marked}");
    assert_eq!(hosted.cpus[0].local.threads.at(INNER).late, [0; 3]);
    lawful(&hosted);
}

#[test]
fn nobody_is_late_while_something_better_runs() {
    let mut hosted = client_with_patience();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    // Root, which goes before all, works for a long time: woken by the client's server.
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    hosted.advance(10 * PATIENCE);
    assert_eq!(record(&mut hosted, 0, ThreadFault::State), 0);
    assert_eq!(wait(&mut hosted), Now::Thread(INNER));
    hosted.advance(PATIENCE / 2);
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
    assert_eq!(words(&hosted), BACK);
}

#[test]
fn the_server_that_hangs_is_late_and_not_the_one_that_waits_for_it() {
    let mut hosted = client_with_patience();
    assert_eq!(call(&mut hosted, TO_OUTER, WORDS), Now::Thread(OUTER));
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    until_root(&mut hosted);
    assert_eq!((record(&mut hosted, 0, ThreadFault::State), record(&mut hosted, 1, ThreadFault::State)), (3, 0));
    wait(&mut hosted);
    while hosted.now(0) != Now::Thread(OUTER) {
        hosted.advance(1000);
    }
    assert_eq!(x0(&hosted), Err(Refusal::Late));
    assert_eq!(hosted.cpus[0].local.threads.at(OUTER).client.plain(), Client::Thread(
        hosted.cpus[0].local.threads.name_at(CLIENT).0, 0));
    lawful(&hosted);
    reply(&mut hosted, 0, BACK);
    while hosted.now(0) != Now::Thread(CLIENT) {
        hosted.advance(1000);
    }
    assert_eq!((x0(&hosted), words(&hosted)), (Ok(0), BACK));
}

#[test]
fn those_that_queue_at_a_late_server_do_not_wait_on() {
    let mut hosted = client_with_patience();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    // A better client comes and queues.
    must(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, 150, slot::FREE, 0, 0]);
    must(&mut hosted, Op::ThreadStart, [slot::FREE, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(4));
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    until_root(&mut hosted);
    assert_eq!(wait(&mut hosted), Now::Thread(4));
    assert_eq!(x0(&hosted), Err(Refusal::Late));
    lawful(&hosted);
    hosted.syscall(0, Op::Exit as u16, [0; 6], [0; 10]);
    while hosted.now(0) != Now::Thread(CLIENT) {
        hosted.advance(1000);
    }
    assert_eq!(x0(&hosted), Err(Refusal::Late));
    lawful(&hosted);
}

#[test]
fn an_idle_cpu_on_which_nobody_is_served_sets_no_clock() {
    let mut hosted = system();
    supervise(&mut hosted, 0, PATIENCE);
    assert_eq!(wait(&mut hosted), Now::Idle);
    assert_eq!(hosted.cpus[0].machine.alarm, trellis_core::machine::NEVER);
}

#[test]
fn a_patience_that_can_never_be_right_is_refused_and_a_dead_server_is_forgotten() {
    let mut hosted = system();
    for patience in [1, 999, (1 << 40) + 1, u64::MAX] {
        let a = [slot::THREADS[0], slot::SIGNALS[0], patience, 0, 0, 0];
        assert_eq!(hosted.invoke(0, Op::ThreadSupervise, a), Err(Refusal::BadArgument), "{patience}");
    }
    supervise(&mut hosted, 0, 1000);
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[0], 0, 0, 0, 0, 0]);
    hosted.advance(10 * PATIENCE);
    lawful(&hosted);
}

#[test]
fn priority_goes_through_a_server_that_queues_at_another() {
    let mut hosted = small::system(Settings::default());
    let thread = |hosted: &mut Hosted, number: u64, priority: u64| {
        must(hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, priority, slot::FREE + number, 0, 0]);
        must(hosted, Op::ThreadStart, [slot::FREE + number, 0, 0, 0, 0, 0]);
        4 + number as u16
    };
    // The lowest calls the inner server, which is then kept from running by one in the middle.
    let wake = |hosted: &mut Hosted| hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    let low = thread(&mut hosted, 0, 10);
    assert_eq!(wait(&mut hosted), Now::Thread(low));
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!(wake(&mut hosted), Now::Thread(ROOT));
    // A little better: calls the outer server, which calls the inner one and queues there.
    let better = thread(&mut hosted, 1, 20);
    assert_eq!(wait(&mut hosted), Now::Thread(better));
    assert_eq!(call(&mut hosted, TO_OUTER, WORDS), Now::Thread(OUTER));
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER), "at 20");
    assert_eq!(wake(&mut hosted), Now::Thread(ROOT));
    let middle = thread(&mut hosted, 2, 50);
    let best = thread(&mut hosted, 3, 90);
    assert_eq!(wait(&mut hosted), Now::Thread(best));
    // The best waits for the outer server, which waits for the inner one: the middle one must not come between.
    assert_eq!(call(&mut hosted, TO_OUTER, WORDS), Now::Thread(INNER));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(INNER), "the outer server's call, still for the best one");
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(OUTER));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(OUTER), "now the best one's own call");
    lawful(&hosted);
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(best));
    assert_eq!(hosted.syscall(0, Op::Exit as u16, [0; 6], [0; 10]), Now::Thread(middle));
    hosted.syscall(0, Op::Exit as u16, [0; 6], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(better), "nobody keeps what was lent");
    let budgets = hosted.cpus[0].local.budgets;
    assert_eq!((budgets[low as usize].priority(), budgets[better as usize].priority()), (10, 20));
    assert_eq!(Answer::RETRY.0, 0);
    lawful(&hosted);
}

/// Whoever calls a server that goes on for ever, or sleeps, instead of beginning to serve.
#[test]
fn a_server_that_does_not_begin_to_serve_is_late_for_who_calls_it() {
    const PORTAL: u64 = slot::FREE;
    for sleeps in [false, true] {
        let mut hosted = system();
        must(&mut hosted, Op::PortalCreate, [slot::THREADS[2], 9, PORTAL, 0, 0, 0]);
        supervise(&mut hosted, 2, PATIENCE);
        // Time in which nobody waits for it does not count.
        must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
        hosted.advance(3 * PATIENCE);
        assert_eq!((hosted.now(0), record(&mut hosted, 2, ThreadFault::State)), (Now::Thread(ROOT), 0));
        let begin = hosted.board.borrow().now;
        assert_eq!(call(&mut hosted, PORTAL, WORDS), Now::Thread(CLIENT));
        if sleeps {
            assert_eq!(hosted.syscall(0, Op::Wait as u16, [4, 0, 0, 0, 0, 0], [0; 10]), Now::Idle);
        }
        while hosted.now(0) != Now::Thread(ROOT) {
            hosted.advance(100);
            assert!(hosted.board.borrow().now - begin < 10 * PATIENCE, "root waits for ever");
        }
        let took = hosted.board.borrow().now - begin;
        assert!((PATIENCE / 2..=PATIENCE * 3 / 2 + 200).contains(&took), "{took}");
        assert_eq!(x0(&hosted), Err(Refusal::Late));
        assert_eq!((record(&mut hosted, 2, ThreadFault::State), record(&mut hosted, 2, ThreadFault::LateFor)), (3, 1));
        lawful(&hosted);
    }
}
