// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of calls, answers and exits.

mod common;

use common::*;
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_core::vcpu::{Pause, VcpuState};
use trellis_hosted::guest::Touch;
use trellis_hosted::small::{self, CLIENT, INNER, OUTER, PORTAL_BADGES, ROOT, inner_slot, must, slot};
use trellis_hosted::{Now, Settings};
use trellis_idl::kernel::{Access, Answer, BADGE_BITS, ExitClass, Groups, Op, PAUSE, Refusal, Rights, VcpuRegister};
use trellis_idl::layout::root_slot;

#[test]
fn a_call_reaches_its_server_and_the_answer_comes_back_without_locks_or_shared_writes() {
    let mut hosted = client_runs();
    let before = hosted.sharing();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!((x0(&hosted), words(&hosted)), (Ok(PORTAL_BADGES[0]), WORDS));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
    assert_eq!((x0(&hosted), words(&hosted)), (Ok(0), BACK));
    assert_eq!(hosted.sharing(), before);
    lawful(&hosted);
}

#[test]
fn an_exit_reaches_its_server_and_the_guest_goes_on_without_locks_or_shared_writes() {
    let mut hosted = guest_runs();
    let before = hosted.sharing();
    assert_eq!(hosted.exit(0, ExitClass::Hypercall, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), Now::Thread(OUTER));
    assert_eq!(x0(&hosted), Ok(small::EXIT_BADGE));
    assert_eq!(words(&hosted), [ExitClass::Hypercall as u64, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let answer = Answer::ADVANCE.with(Answer::GENERAL);
    assert_eq!(reply(&mut hosted, answer.0, WORDS), Now::Guest(0));
    assert_eq!(hosted.sharing(), before);
    let context = &hosted.cpus[0].local.vcpus.at(0).context;
    assert_eq!((context.pc(), context.general(0), context.general(3)), (4, 7, 10));
    lawful(&hosted);
}

#[test]
fn words_of_groups_that_do_not_travel_are_zero() {
    let class = ExitClass::Hypercall;
    let all: [u64; 10] = [class as u64, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let groups = [(Groups::PC, 4..5), (Groups::VALUE, 5..6), (Groups::GENERAL, 6..10)];
    for wanted in 0..8 {
        let chosen = |index: usize| wanted >> index & 1 == 1;
        let mask = groups.iter().enumerate().filter(|(index, _)| chosen(*index)).fold(0, |mask, (_, (group, _))| mask | group.0);
        let mut hosted = system();
        must(&mut hosted, Op::VcpuRoute, [slot::VCPU, class as u64, slot::PORTALS[1], mask, small::EXIT_BADGE, 0]);
        must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
        assert_eq!(wait(&mut hosted), Now::Guest(0));
        assert_eq!(hosted.exit(0, class, all), Now::Thread(OUTER));
        let mut expected = all;
        for (index, (_, place)) in groups.iter().enumerate() {
            if !chosen(index) {
                expected[place.clone()].fill(0);
            }
        }
        assert_eq!(words(&hosted), expected, "{mask:#x}");
    }
}

#[test]
fn a_guest_has_sixteen_device_windows_and_no_more() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    let page = |index: u64| 0x8000 + 16 * index;
    let window = |hosted: &mut trellis_hosted::Hosted, index: u64| {
        let a = [inner_slot::VCPU, index, page(index), 2, ExitClass::Device as u64, 0];
        hosted.invoke(0, Op::VcpuWindow, a)
    };
    for index in 0..16 {
        assert!(window(&mut hosted, index).is_ok(), "{index}");
    }
    assert_eq!(window(&mut hosted, 16), Err(Refusal::OutOfRange));
    reply(&mut hosted, 0, [0; 10]);
    // Every page of every window goes to the outer server, in one hop; what lies beside goes to the inner one.
    for index in 0..16 {
        for (offset, server) in [(0, OUTER), (1, OUTER), (2, INNER)] {
            let address = (page(index) + offset) * 4096;
            assert_eq!(hosted.touch(0, address, Access::READ), Touch::Stopped(Now::Thread(server)), "{index} {offset}");
            assert_eq!(reply(&mut hosted, 0, [0; 10]), Now::Guest(0));
        }
    }
    lawful(&hosted);
}

#[test]
fn a_message_buffer_travels_with_a_call() {
    let mut hosted = client_runs();
    assert!(hosted.touch_own(0, small::BUFFER + 8, Access::WRITE));
    let now = hosted.syscall(0, Op::Call as u16, [TO_INNER, 16, 0, 0, 0, 0], WORDS);
    assert_eq!(now, Now::Thread(INNER));
    let page = hosted.cpus[0].local.threads.at(INNER).buffer;
    assert_eq!(hosted.board.borrow().word(page * 4096 + 8), small::BUFFER + 8);
    assert_eq!((x0(&hosted), words(&hosted)), (Ok(PORTAL_BADGES[0] | 16 << BADGE_BITS), WORDS));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
}

#[test]
fn calls_go_down_and_forwards_go_up_only() {
    let mut hosted = client_runs();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!(call(&mut hosted, inner_slot::OUTER, WORDS), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::Order));
    assert_eq!(forward(&mut hosted, inner_slot::OUTER, BACK), Now::Thread(OUTER));
    assert_eq!((x0(&hosted), words(&hosted)), (Ok(PORTAL_BADGES[1]), BACK));
    assert_eq!(forward(&mut hosted, TO_INNER, WORDS), Now::Thread(OUTER));
    assert_eq!(x0(&hosted), Err(Refusal::Order));
    assert_eq!(reply(&mut hosted, 0, WORDS), Now::Thread(CLIENT));
    assert_eq!(words(&hosted), WORDS);
    lawful(&hosted);
}

#[test]
fn a_server_calls_an_inner_one_in_the_middle_of_an_exit() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(OUTER));
    assert_eq!(reply(&mut hosted, 0, [0; 10]), Now::Guest(0));
    lawful(&hosted);
}

/// Adds a client of this priority; returns its thread slot. Clients start when root sleeps.
fn another_client(hosted: &mut trellis_hosted::Hosted, number: u64, priority: u64) -> u64 {
    let thread = slot::FREE + number;
    must(hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, priority, thread, 0, 0]);
    must(hosted, Op::ThreadStart, [thread, 0, 0, number, 0, 0]);
    thread
}

/// Three clients: 60 calls first, while it is served 70 and then 80 come and queue.
fn busy_server() -> trellis_hosted::Hosted {
    let mut hosted = system();
    let low = CLIENT + 1;
    another_client(&mut hosted, 0, 60);
    assert_eq!(wait(&mut hosted), Now::Thread(low));
    assert_eq!(call(&mut hosted, TO_INNER, [60; 10]), Now::Thread(INNER));
    // Root wakes up and lets two better clients come.
    for (number, priority) in [(1, 70), (2, 80)] {
        hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
        assert_eq!(hosted.now(0), Now::Thread(ROOT));
        another_client(&mut hosted, number, priority);
        assert_eq!(wait(&mut hosted), Now::Thread(low + number as u16));
        assert_eq!(call(&mut hosted, TO_INNER, [priority; 10]), Now::Thread(INNER), "they queue");
        lawful(&hosted);
    }
    hosted
}

#[test]
fn a_busy_server_takes_its_queue_in_order_and_works_at_the_best_priority_that_waits() {
    let mut hosted = busy_server();
    let low = CLIENT + 1;
    assert_eq!(hosted.cpus[0].local.budgets[low as usize].priority(), 80);
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(INNER), "the second is served for the third, before the first");
    assert_eq!((words(&hosted), x0(&hosted)), ([70; 10], Ok(PORTAL_BADGES[0])));
    assert_eq!(hosted.cpus[0].local.budgets[low as usize].priority(), 60);
    assert_eq!(hosted.cpus[0].local.budgets[low as usize + 1].priority(), 80);
    assert_eq!(reply(&mut hosted, 0, [71; 10]), Now::Thread(INNER));
    assert_eq!(words(&hosted), [80; 10]);
    assert_eq!(reply(&mut hosted, 0, [81; 10]), Now::Thread(low + 2));
    assert_eq!(words(&hosted), [81; 10]);
    lawful(&hosted);
    assert_eq!(wait(&mut hosted), Now::Thread(low + 1));
    assert_eq!(words(&hosted), [71; 10]);
    assert_eq!(wait(&mut hosted), Now::Thread(low));
    assert_eq!(words(&hosted), BACK);
}

#[test]
fn one_of_a_queue_may_go_and_those_behind_it_are_still_served() {
    let mut hosted = busy_server();
    let low = CLIENT + 1;
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    must(&mut hosted, Op::ThreadDestroy, [slot::FREE + 1, 0, 0, 0, 0, 0]);
    lawful(&hosted);
    // Its place in the pool is used again.
    must(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, 1, slot::FREE + 5, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(INNER));
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(INNER));
    assert_eq!(words(&hosted), [80; 10]);
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(low + 2));
    lawful(&hosted);
}

#[test]
fn whoever_waits_for_a_server_that_faults_gets_gone() {
    let mut hosted = busy_server();
    hosted.trap(0, Trap::Fault(FaultRecord { syndrome: 7, address: 8 }));
    lawful(&hosted);
    for client in [CLIENT + 3, CLIENT + 2, CLIENT + 1] {
        assert_eq!(hosted.now(0), Now::Thread(client));
        assert_eq!(x0(&hosted), Err(Refusal::Gone));
        assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(client));
        assert_eq!(x0(&hosted), Err(Refusal::Gone));
        wait(&mut hosted);
    }
    assert_eq!(hosted.now(0), Now::Idle);
}

#[test]
fn a_server_that_is_destroyed_in_the_middle_of_a_nested_call_leaves_the_inner_one_to_finish() {
    let mut hosted = client_runs();
    call(&mut hosted, TO_OUTER, WORDS);
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[1], 0, 0, 0, 0, 0]);
    lawful(&hosted);
    wait(&mut hosted);
    assert_eq!(hosted.now(0), Now::Thread(INNER), "at its own expense");
    assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(CLIENT));
    assert_eq!(x0(&hosted), Err(Refusal::Gone));
    lawful(&hosted);
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
}

#[test]
fn an_answer_or_forward_for_a_client_that_is_gone_finds_nobody() {
    for forwards in [false, true] {
        let mut hosted = client_runs();
        call(&mut hosted, TO_INNER, WORDS);
        hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
        must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[2], 0, 0, 0, 0, 0]);
        // A new thread in the same place of the pool.
        must(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, 10, slot::FREE, 0, 0]);
        must(&mut hosted, Op::ThreadStart, [slot::FREE, 0, 0, 77, 0, 0]);
        assert_eq!(wait(&mut hosted), Now::Thread(INNER));
        let now = if forwards { forward(&mut hosted, TO_OUTER, BACK) } else { reply(&mut hosted, 0, BACK) };
        assert_eq!((now, x0(&hosted), words(&hosted)), (Now::Thread(CLIENT), Ok(77), [0; 10]));
        lawful(&hosted);
        assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    }
}

#[test]
fn an_answer_with_unknown_bits_is_refused_and_can_be_given_again() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Register, [0; 10]);
    for bad in [0x80, 1 << 13, 1 << 63] {
        assert_eq!(reply(&mut hosted, bad, WORDS), Now::Thread(OUTER));
        assert_eq!(x0(&hosted), Err(Refusal::BadArgument));
    }
    assert_eq!(reply(&mut hosted, Answer::ADVANCE.register(3).0, WORDS), Now::Guest(0));
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.general(3), 6);
}

#[test]
fn an_exit_to_a_dead_server_stops_the_vcpu() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Register, [0; 10]);
    hosted.trap(0, Trap::Fault(FaultRecord::default()));
    assert_eq!(hosted.now(0), Now::Idle);
    let state = |hosted: &trellis_hosted::Hosted| hosted.cpus[0].local.vcpus.at(0).state;
    assert_eq!(state(&hosted), VcpuState::Stopped, "it was being served");
    let mut hosted = system();
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[1], 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    assert_eq!(hosted.exit(0, ExitClass::Register, [0; 10]), Now::Idle);
    assert_eq!(state(&hosted), VcpuState::Stopped);
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_is_stopped_while_it_is_served_does_not_go_on() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    hosted.invoke(0, Op::VcpuStop, [inner_slot::VCPU, 0, 0, 0, 0, 0]).expect("it has the right");
    assert_eq!(reply(&mut hosted, Answer::ADVANCE.0, [0; 10]), Now::Idle);
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).state, VcpuState::Stopped);
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.pc(), 4, "the answer counts");
}

#[test]
fn a_vcpu_stopped_in_the_middle_of_an_exit_starts_again_and_the_late_answer_finds_nobody() {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    hosted.syscall(0, Op::Wait as u16, [1, 600, 0, 0, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Guest(0));
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    let server = hosted.cpus[0].local.running;
    // Root's wait ends while the server works: it goes first, stops the vCPU and starts it anew.
    hosted.advance(700);
    must(&mut hosted, Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).state, VcpuState::Stopped);
    must(&mut hosted, Op::VcpuReset, [slot::VCPU, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    wait(&mut hosted);
    while hosted.cpus[0].local.running != server {
        hosted.advance(10_000);
    }
    reply(&mut hosted, Answer::ADVANCE.0, [0; 10]);
    assert_eq!(hosted.now(0), Now::Guest(0));
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.pc(), 0, "the late answer counts for nothing");
    lawful(&hosted);
}

/// Root sleeps for so long that others have all their time.
const NAP: u64 = 10_000_000;

fn nap(hosted: &mut trellis_hosted::Hosted) -> Now {
    let now = must(hosted, Op::Clock, [0; 6])[0];
    hosted.syscall(0, Op::Wait as u16, [1, now + NAP, 0, 0, 0, 0], [0; 10])
}

/// Root, woken while the guest runs or its server works, begins or ends a pause; then they go on.
fn root_does(hosted: &mut trellis_hosted::Hosted, op: Op) -> u64 {
    while hosted.now(0) != Now::Thread(ROOT) {
        hosted.advance(NAP);
    }
    let back = must(hosted, op, [slot::VCPU, PAUSE, 0, 0, 0, 0])[0];
    nap(hosted);
    back
}

#[test]
fn a_pause_in_the_middle_of_an_exit_lets_it_end_and_nothing_is_done_twice() {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(nap(&mut hosted), Now::Guest(0));
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    assert_eq!(root_does(&mut hosted, Op::VcpuStop), 1, "its exit is being served");
    assert_eq!(reply(&mut hosted, Answer::ADVANCE.0, [0; 10]), Now::Idle);
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.pc(), 4, "the answer counts");
    assert_eq!(root_does(&mut hosted, Op::VcpuStop), 0, "not any more");
    assert_eq!(hosted.now(0), Now::Idle);
    root_does(&mut hosted, Op::VcpuStart);
    assert_eq!(hosted.now(0), Now::Guest(0));
    root_does(&mut hosted, Op::VcpuStart);
    assert_eq!(hosted.now(0), Now::Guest(0), "once more changes nothing");
    // One that ends before the answer comes is none.
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    assert_eq!(root_does(&mut hosted, Op::VcpuStop), 1);
    root_does(&mut hosted, Op::VcpuStart);
    assert_eq!(reply(&mut hosted, Answer::ADVANCE.0, [0; 10]), Now::Guest(0));
    lawful(&hosted);
}

#[test]
fn what_servers_start_and_stop_during_a_pause_counts_after_it() {
    let (start, stop) = ([slot::VCPU, 0, 0, 0, 0, 0], [slot::VCPU, 0, 0, 0, 0, 0]);
    let pause = [slot::VCPU, PAUSE, 0, 0, 0, 0];
    let state = |hosted: &trellis_hosted::Hosted| hosted.cpus[0].local.vcpus.at(0).state;
    // Whether it is started before, and what servers do meanwhile; whether it runs after.
    type Case<'a> = (bool, &'a [Op], bool);
    let cases: [Case<'_>; 6] = [
        (false, &[], false),
        (true, &[], true),
        (false, &[Op::VcpuStart], true),
        (true, &[Op::VcpuStop], false),
        (true, &[Op::VcpuStop, Op::VcpuReset, Op::VcpuStart], true),
        (false, &[Op::VcpuLaunch, Op::VcpuStop], false),
    ];
    for (before, meanwhile, after) in cases {
        let mut hosted = system();
        if before {
            must(&mut hosted, Op::VcpuStart, start);
        }
        must(&mut hosted, Op::VcpuStop, pause);
        assert_eq!(state(&hosted), VcpuState::Stopped);
        // To its servers it runs as long as nobody stops it.
        let refused = hosted.invoke(0, Op::VcpuReset, stop).is_err();
        assert_eq!(refused, before);
        for op in meanwhile {
            must(&mut hosted, *op, start);
            assert_eq!(state(&hosted), VcpuState::Stopped, "{op:?}");
        }
        must(&mut hosted, Op::VcpuStart, pause);
        assert_eq!(state(&hosted) == VcpuState::Running, after, "{before} {meanwhile:?}");
        assert_eq!(wait(&mut hosted), if after { Now::Guest(0) } else { Now::Idle });
        lawful(&hosted);
    }
}

/// What the vCPU's capabilities with these badges begin and end, in turn; and whether it runs afterwards.
#[test]
fn a_vcpu_that_several_pause_runs_when_the_last_has_ended_its_pause() {
    let (begin, end) = (Op::VcpuStop, Op::VcpuStart);
    let pause = |slot: u64, whose: u64| [slot, PAUSE, whose, 0, 0, 0];
    let mut hosted = system();
    let named = |badge: u64| 900 + badge;
    for badge in [1, 2, 15] {
        let weak = Rights::READ.with(Rights::EXECUTE).0.into();
        must(&mut hosted, Op::Grant, [slot::VCPU, root_slot::DOMAIN, named(badge), weak, badge, 0]);
    }
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    let state = |hosted: &trellis_hosted::Hosted| hosted.cpus[0].local.vcpus.at(0).state;
    // Two begin and end, in any order, each as often as it likes.
    for (first, second) in [(slot::VCPU, named(2)), (named(2), slot::VCPU), (named(1), named(2)), (named(15), named(1))] {
        for (op, slot) in [(begin, first), (begin, second), (begin, first), (end, first), (end, first)] {
            must(&mut hosted, op, pause(slot, 0));
            assert_eq!(state(&hosted), VcpuState::Stopped, "{op:?} {slot}");
            lawful(&hosted);
        }
        assert_eq!(must(&mut hosted, end, pause(second, 0))[0], 0, "nobody pauses it any more");
        assert_eq!(state(&hosted), VcpuState::Running);
    }
    // Nobody ends another's pause but who controls the vCPU, and who that is it says itself.
    must(&mut hosted, begin, pause(named(2), 0));
    must(&mut hosted, begin, pause(named(15), 0));
    assert_eq!(hosted.invoke(0, end, pause(named(1), 1 << 2)), Err(Refusal::MissingRight));
    assert_eq!(must(&mut hosted, end, pause(named(1), 0))[0], 1 << 2 | 1 << 15);
    assert_eq!(must(&mut hosted, end, pause(slot::VCPU, 1 << 2))[0], 1 << 15);
    assert_eq!(state(&hosted), VcpuState::Stopped);
    assert_eq!(must(&mut hosted, end, pause(slot::VCPU, u64::MAX))[0], 0);
    assert_eq!(state(&hosted), VcpuState::Running);
    lawful(&hosted);
}

#[test]
fn a_badge_is_given_once_and_by_who_controls() {
    let mut hosted = system();
    let grant = |from, to, rights: Rights, badge| [from, root_slot::DOMAIN, to, rights.0.into(), badge, 0];
    must(&mut hosted, Op::Grant, grant(slot::VCPU, 900, Rights::GRANT.with(Rights::EXECUTE), 3));
    assert_eq!(hosted.invoke(0, Op::Grant, grant(900, 901, Rights::EXECUTE, 4)), Err(Refusal::MissingRight));
    must(&mut hosted, Op::Grant, grant(900, 901, Rights::EXECUTE, 0));
    must(&mut hosted, Op::Grant, grant(slot::VCPU, 902, Rights::ALL, 5));
    must(&mut hosted, Op::Grant, grant(902, 903, Rights::ALL, 6));
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    for (slot, bit) in [(901, 3), (903, 5)] {
        must(&mut hosted, Op::VcpuStop, [slot, PAUSE, 0, 0, 0, 0]);
        assert_eq!(must(&mut hosted, Op::VcpuStart, [slot::VCPU, PAUSE, 0, 0, 0, 0])[0], 1 << bit);
        must(&mut hosted, Op::VcpuStart, [slot, PAUSE, 0, 0, 0, 0]);
    }
}

#[test]
fn a_server_that_stops_the_vcpu_it_serves_is_not_overruled_by_a_pause() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Hypercall, [0; 10]);
    hosted.invoke(0, Op::VcpuStop, [inner_slot::VCPU, PAUSE, 0, 0, 0, 0]).expect("it has the right");
    assert_eq!(reply(&mut hosted, Answer::ADVANCE.with(Answer::STOP).0, [0; 10]), Now::Idle);
    let mut other = guest_runs();
    other.exit(0, ExitClass::Hypercall, [0; 10]);
    other.invoke(0, Op::VcpuStop, [inner_slot::VCPU, 0, 0, 0, 0, 0]).expect("it has the right");
    other.invoke(0, Op::VcpuStop, [inner_slot::VCPU, PAUSE, 0, 0, 0, 0]).expect("it has the right");
    other.invoke(0, Op::VcpuStart, [inner_slot::VCPU, PAUSE, 0, 0, 0, 0]).expect("it has the right");
    assert_eq!(reply(&mut other, Answer::ADVANCE.0, [0; 10]), Now::Idle);
    for hosted in [&hosted, &other] {
        let vcpu = hosted.cpus[0].local.vcpus.at(0);
        assert_eq!((vcpu.state, vcpu.pause == Pause::Runs), (VcpuState::Stopped, false));
    }
}

#[test]
fn no_message_chooses_a_state_that_a_guest_may_not_have() {
    let mut hosted = system();
    for (value, good) in [(5, true), (4, true), (0, true), (9, false), (0xd, false), (0x10, false), (1 << 21, false)] {
        let a = [slot::VCPU, VcpuRegister::Pstate as u64, value, 0, 0, 0];
        assert_eq!(hosted.invoke(0, Op::VcpuSet, a).is_ok(), good, "{value:#x}");
    }
}

#[test]
fn a_first_touch_goes_to_the_inner_server_and_is_tried_again() {
    let mut hosted = guest_runs();
    let address = (small::GUEST_PAGE + 600) * 4096;
    assert_eq!(hosted.touch(0, address, Access::WRITE), Touch::Stopped(Now::Thread(INNER)));
    assert_eq!(words(&hosted)[2], address);
    let a = [inner_slot::GUEST, small::GUEST_PAGE + 600, inner_slot::MEMORY, 600, 1, 7];
    hosted.invoke(0, Op::GuestMap, a).expect("nothing is there");
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    assert!(matches!(hosted.touch(0, address, Access::WRITE), Touch::Reached(_)));
    lawful(&hosted);
}

#[test]
fn what_is_unmapped_or_protected_is_out_of_reach_at_once_on_every_cpu() {
    let mut hosted = guest_runs();
    let address = small::GUEST_PAGE * 4096;
    assert!(matches!(hosted.touch(0, address, Access::WRITE), Touch::Reached(_)));
    hosted.exit(0, ExitClass::Memory, [0; 10]);
    let guest = inner_slot::GUEST;
    hosted.invoke(0, Op::GuestProtect, [guest, small::GUEST_PAGE, 1, 1, 0, 0]).expect("it may");
    lawful(&hosted);
    reply(&mut hosted, 0, [0; 10]);
    assert_eq!(hosted.touch(0, address, Access::WRITE), Touch::Stopped(Now::Thread(INNER)));
    hosted.invoke(0, Op::GuestUnmap, [guest, small::GUEST_PAGE, 512, 0, 0, 0]).expect("it may");
    reply(&mut hosted, 0, [0; 10]);
    assert_eq!(hosted.touch(0, address, Access::READ), Touch::Stopped(Now::Thread(INNER)));
    lawful(&hosted);
}

#[test]
fn nobody_gets_more_access_to_frames_by_way_of_a_guest() {
    let mut hosted = system();
    let read_only = slot::FREE;
    // Root gives the memory on with the right to read alone.
    must(&mut hosted, Op::Grant, [slot::MEMORY, trellis_idl::layout::root_slot::DOMAIN, read_only, 1 | 128, 0, 0]);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, read_only, 0, 512, 1]);
    let protect = [slot::GUEST, small::GUEST_PAGE, 1, 3, 0, 0];
    assert_eq!(hosted.invoke(0, Op::GuestProtect, protect), Err(Refusal::MissingRight));
    let write = [slot::GUEST, small::GUEST_PAGE * 4096, trellis_idl::layout::BUFFERS, 8, 0, 0];
    assert_eq!(hosted.invoke(0, Op::GuestWrite, write).expect("refused in part")[0], 0);
}

#[test]
fn a_run_that_is_taken_back_takes_message_buffers_with_it() {
    let mut hosted = system();
    must(&mut hosted, Op::FramesReclaim, [slot::BUFFERS, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.cpus[0].local.threads.at(INNER).buffer, 0);
    lawful(&hosted);
}

#[test]
fn portals_go_with_their_thread() {
    let mut hosted = system();
    let free = hosted.cpus[0].local.portals.free();
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[0], 0, 0, 0, 0, 0]);
    assert_eq!(hosted.cpus[0].local.portals.free(), free + 1);
}

#[test]
fn root_may_make_a_thread_on_another_cpu() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    let create = [slot::DOMAINS[2], 1, 100, slot::FREE, 0, 0];
    assert_eq!(hosted.syscall(0, Op::ThreadCreate as u16, create, [0; 10]), Now::Idle, "it sleeps meanwhile");
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(ROOT), Ok(0)));
    hosted.syscall(0, Op::ThreadStart as u16, [slot::FREE, 0, 0, 5, 0, 0], [0; 10]);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(1), hosted.registers(1).x[0]), (Now::Thread(0), 5));
    lawful(&hosted);
}

#[test]
fn frames_may_be_mapped_into_one_guest_after_another() {
    let mut hosted = system();
    must(&mut hosted, Op::GuestDestroy, [slot::GUEST, 0, 0, 0, 0, 0]);
    small::split(&mut hosted, 2000, 8, slot::FREE);
    for round in 0..20 {
        let guest = slot::FREE + 1 + round;
        must(&mut hosted, Op::GuestCreate, [slot::FREE, 1, guest, 0, 0, 0]);
        must(&mut hosted, Op::GuestMap, [guest, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
        must(&mut hosted, Op::GuestDestroy, [guest, 0, 0, 0, 0, 0]);
    }
    must(&mut hosted, Op::FramesReclaim, [slot::FREE, 0, 0, 0, 0, 0]);
    lawful(&hosted);
}

#[test]
fn tables_that_come_back_hold_nothing_of_what_stood_in_them() {
    let mut hosted = system();
    must(&mut hosted, Op::DomainDestroy, [slot::DOMAINS[0], 0, 0, 0, 0, 0]);
    let tables = slot::DOMAINS[0] - 3;
    let [_, first, _] = must(&mut hosted, Op::FramesInfo, [tables, 0, 0, 0, 0, 0]);
    assert!((first..first + 16).all(|page| hosted.board.borrow().is_clean(page)));
}

#[test]
fn a_thread_that_runs_on_another_cpu_can_be_destroyed_and_its_client_is_told() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    let (client, server, portal) = (slot::FREE, slot::FREE + 1, slot::FREE + 2);
    let remote = |hosted: &mut trellis_hosted::Hosted, op: Op, a: [u64; 6]| {
        assert_eq!(hosted.syscall(0, op as u16, a, [0; 10]), Now::Idle);
        hosted.deliver_kicks();
        assert_eq!((hosted.now(0), x0(hosted)), (Now::Thread(ROOT), Ok(0)), "{op:?}");
    };
    remote(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 1, 90, client, 0, 0]);
    remote(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[0], 1, 100, server, 0, 0]);
    remote(&mut hosted, Op::PortalCreate, [server, 5, portal, 0, 0, 0]);
    must(&mut hosted, Op::Grant, [portal, slot::DOMAINS[2], 40, 0xff, 0, 0]);
    remote(&mut hosted, Op::ThreadStart, [server, 0, 0, 0, 0, 0]);
    hosted.syscall(1, Op::ReplyAndWait as u16, [0; 6], [0; 10]);
    remote(&mut hosted, Op::ThreadStart, [client, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.syscall(1, Op::Call as u16, [40, 0, 0, 0, 0, 0], WORDS), Now::Thread(1));
    remote(&mut hosted, Op::ThreadDestroy, [server, 0, 0, 0, 0, 0]);
    lawful(&hosted);
    assert_eq!(hosted.now(1), Now::Thread(0));
    assert_eq!(Refusal::from_register(hosted.registers(1).x[0]), Err(Refusal::Gone));
    remote(&mut hosted, Op::ThreadDestroy, [client, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.now(1), Now::Idle);
    lawful(&hosted);
}
