// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of watched guests: who is asked about an event, and what becomes of it when that one dies, is late, or is
//! replaced.

mod common;

use common::*;
use trellis_core::machine::VcpuContext;
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::small::{self, CLIENT, INNER, OUTER, ROOT, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now};
use trellis_idl::kernel::{Answer, ExitClass, Op, Refusal, SESSIONS, Seat, VcpuRegister};
use trellis_idl::layout::root_slot;

/// The session as the inner server's table has it.
const TO_WATCHER: u64 = inner_slot::SESSION;
/// Portal to the client, which is the second watcher.
const SECOND: u64 = slot::FREE;
const SECOND_BADGE: u64 = 0x33;
/// What the inner server makes of an exit.
const EVENT: [u64; 10] = [0, 11, 12, 13, 14, 15, 16, 17, 18, 19];

/// The guest runs; the outer server is placed at the first seat and the client, which serves, at the second.
fn watched(seat: Seat) -> Hosted {
    let mut hosted = system();
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    must(&mut hosted, Op::PortalCreate, [slot::THREADS[2], SECOND_BADGE, SECOND, 0, 0, 0]);
    must(&mut hosted, Op::SessionPlace, [slot::SESSION, 0, 0, slot::PORTALS[1], 0, 0]);
    must(&mut hosted, Op::SessionPlace, [slot::SESSION, 0, 1, SECOND, 0, 0]);
    assert_eq!(commit(&mut hosted, 1, seat), Ok(2));
    let start = [slot::THREADS[2], 0, 0, 0, 0, 0];
    hosted.syscall(0, Op::ThreadStart as u16, start, [0; 10]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(reply(&mut hosted, 0, [0; 10]), Now::Guest(0));
    hosted
}

fn commit(hosted: &mut Hosted, epoch: u64, seat: Seat) -> Result<u64, Refusal> {
    hosted.invoke(0, Op::SessionCommit, [slot::SESSION, epoch, seat as u64, 0, 0, 0]).map(|[epoch, ..]| epoch)
}

fn settle(hosted: &mut Hosted) -> u64 {
    must(hosted, Op::SessionSettle, [slot::SESSION, 0, 0, 0, 0, 0])[0]
}

/// Epoch, seat, and vCPUs that are owed.
fn info(hosted: &mut Hosted) -> [u64; 3] {
    must(hosted, Op::SessionInfo, [slot::SESSION, 0, 0, 0, 0, 0])
}

/// The guest stops for an access and the inner server forwards it to the session.
fn event(hosted: &mut Hosted) -> Now {
    assert_eq!(hosted.exit(0, ExitClass::Memory, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), Now::Thread(INNER));
    forward(hosted, TO_WATCHER, EVENT)
}

fn state(hosted: &Hosted) -> VcpuState {
    hosted.cpus[0].local.vcpus.at(0).state
}

/// What a watcher that runs was given.
fn given(hosted: &Hosted) -> (Result<u64, Refusal>, [u64; 10]) {
    (x0(hosted), words(hosted))
}

const FIRST_GIVEN: (Result<u64, Refusal>, [u64; 10]) = (Ok(small::PORTAL_BADGES[1]), EVENT);
const SECOND_GIVEN: (Result<u64, Refusal>, [u64; 10]) = (Ok(SECOND_BADGE), EVENT);

#[test]
fn an_event_goes_to_who_watches_and_its_answer_to_the_vcpu() {
    for (seat, watcher, expected) in [(Seat::First, OUTER, FIRST_GIVEN), (Seat::Second, CLIENT, SECOND_GIVEN)] {
        let mut hosted = watched(seat);
        assert_eq!(event(&mut hosted), Now::Thread(watcher));
        assert_eq!(given(&hosted), expected);
        lawful(&hosted);
        let mut answer = [0; 10];
        answer[4] = 0x4000;
        assert_eq!(reply(&mut hosted, Answer::PC.0, answer), Now::Guest(0));
        assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.get(VcpuRegister::Pc as u64), Ok(0x4000));
        lawful(&hosted);
    }
}

#[test]
fn an_event_and_its_answer_take_no_lock_and_write_no_shared_word() {
    let mut hosted = watched(Seat::First);
    let before = hosted.sharing();
    for _ in 0..3 {
        assert_eq!(event(&mut hosted), Now::Thread(OUTER));
        assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    }
    assert_eq!(hosted.sharing(), before);
}

#[test]
fn with_nobody_there_an_event_is_owed_and_the_next_watcher_gets_it() {
    let mut hosted = watched(Seat::Held);
    assert_eq!(event(&mut hosted), Now::Idle);
    assert_eq!(state(&hosted), VcpuState::Owed);
    wake_root(&mut hosted);
    assert_eq!(info(&mut hosted), [2, Seat::Held as u64, 1]);
    assert_eq!(settle(&mut hosted), 2, "still nobody");
    assert_eq!(commit(&mut hosted, 2, Seat::Second), Ok(3));
    assert_eq!(settle(&mut hosted), 1);
    assert_eq!(info(&mut hosted), [3, Seat::Second as u64, 0]);
    lawful(&hosted);
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(given(&hosted), SECOND_GIVEN);
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
}

#[test]
fn a_watcher_that_dies_owes_what_it_was_asked() {
    let mut hosted = watched(Seat::First);
    assert_eq!(event(&mut hosted), Now::Thread(OUTER));
    assert_eq!(hosted.trap(0, Trap::Fault(FaultRecord::default())), Now::Idle);
    assert_eq!(state(&hosted), VcpuState::Owed);
    lawful(&hosted);
    wake_root(&mut hosted);
    assert_eq!(info(&mut hosted), [2, Seat::First as u64, 1]);
    assert_eq!(settle(&mut hosted), 2, "its portal leads to nobody who lives");
    assert_eq!(commit(&mut hosted, 2, Seat::Second), Ok(3));
    assert_eq!(settle(&mut hosted), 1);
    wait(&mut hosted);
    assert_eq!(given(&hosted), SECOND_GIVEN);
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    assert_eq!(event(&mut hosted), Now::Thread(CLIENT));
}

#[test]
fn a_forward_to_a_watcher_that_has_died_is_owed_as_well() {
    let mut hosted = watched(Seat::First);
    wake_root(&mut hosted);
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[1], 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    assert_eq!(event(&mut hosted), Now::Idle);
    wake_root(&mut hosted);
    assert_eq!(info(&mut hosted)[2], 1);
}

#[test]
fn a_watcher_that_is_late_loses_the_event_and_its_answer_finds_nobody() {
    let mut hosted = watched(Seat::First);
    wake_root(&mut hosted);
    must(&mut hosted, Op::ThreadSupervise, [slot::THREADS[1], slot::SIGNALS[0], 20_000, 0, 0, 0]);
    wait(&mut hosted);
    assert_eq!(event(&mut hosted), Now::Thread(OUTER));
    let mut left = 1000;
    while hosted.now(0) != Now::Thread(ROOT) {
        hosted.advance(100);
        left -= 1;
        assert!(left > 0, "root was never told");
    }
    assert_eq!(info(&mut hosted), [2, Seat::First as u64, 1]);
    lawful(&hosted);
    commit(&mut hosted, 2, Seat::Second).expect("nobody else did");
    assert_eq!(settle(&mut hosted), 1);
    wait(&mut hosted);
    while hosted.now(0) == Now::Thread(OUTER) {
        // What the late one says now is nobody's.
        reply(&mut hosted, Answer::STOP.0, [0; 10]);
    }
    assert_eq!(given(&hosted), SECOND_GIVEN);
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    lawful(&hosted);
}

#[test]
fn whoever_is_replaced_in_the_middle_may_answer_until_it_is_settled_and_not_later() {
    for settles in [false, true] {
        let mut hosted = watched(Seat::First);
        assert_eq!(event(&mut hosted), Now::Thread(OUTER));
        wake_root(&mut hosted);
        assert_eq!(settle(&mut hosted), 1, "it is asked, and stays so");
        commit(&mut hosted, 2, Seat::Second).expect("nobody else did");
        if settles {
            assert_eq!(settle(&mut hosted), 1);
        }
        lawful(&hosted);
        wait(&mut hosted);
        let (mut answered, mut pc) = (false, [0; 10]);
        for _ in 0..4 {
            match hosted.now(0) {
                Now::Thread(OUTER) => {
                    pc[4] = 0x1111_0000;
                    reply(&mut hosted, Answer::PC.0, pc);
                }
                Now::Thread(CLIENT) => {
                    assert!(!answered && settles);
                    assert_eq!(given(&hosted), SECOND_GIVEN);
                    answered = true;
                    pc[4] = 0x2222_0000;
                    reply(&mut hosted, Answer::PC.0, pc);
                }
                _ => {}
            }
        }
        assert_eq!(hosted.now(0), Now::Guest(0));
        let expected = if settles { 0x2222_0000 } else { 0x1111_0000 };
        assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.get(VcpuRegister::Pc as u64), Ok(expected));
        lawful(&hosted);
    }
}

#[test]
fn when_nobody_shall_be_asked_whoever_finds_an_event_decides() {
    let mut hosted = watched(Seat::Nobody);
    assert_eq!(event(&mut hosted), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::Gone));
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0), "the exit was still its to answer");
}

#[test]
fn what_is_owed_when_nobody_shall_be_asked_goes_the_way_of_its_class_again() {
    let mut hosted = watched(Seat::Held);
    assert_eq!(event(&mut hosted), Now::Idle);
    wake_root(&mut hosted);
    commit(&mut hosted, 2, Seat::Nobody).expect("nobody else did");
    assert_eq!(settle(&mut hosted), 1);
    assert_eq!(info(&mut hosted)[2], 0);
    assert_eq!(wait(&mut hosted), Now::Thread(INNER));
    assert_eq!(given(&hosted), (Ok(small::EXIT_BADGE), EVENT));
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_is_stopped_or_ends_is_owed_nothing() {
    for op in [Op::VcpuStop, Op::VcpuDestroy, Op::GuestDestroy] {
        let mut hosted = watched(Seat::Held);
        event(&mut hosted);
        wake_root(&mut hosted);
        let what = if op == Op::GuestDestroy { slot::GUEST } else { slot::VCPU };
        must(&mut hosted, op, [what, 0, 0, 0, 0, 0]);
        lawful(&hosted);
        let left = hosted.invoke(0, Op::SessionInfo, [slot::SESSION, 0, 0, 0, 0, 0]);
        let settled = hosted.invoke(0, Op::SessionSettle, [slot::SESSION, 0, 0, 0, 0, 0]).map(|[what, ..]| what);
        match op {
            Op::VcpuStop => {
                assert_eq!((left, settled), (Ok([2, Seat::Held as u64, 0]), Ok(0)));
                must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
                assert_eq!(wait(&mut hosted), Now::Guest(0));
            }
            Op::VcpuDestroy => assert_eq!((left.map(|[.., owed]| owed), settled), (Ok(0), Err(Refusal::NotMapped))),
            _ => assert_eq!((left, settled), (Err(Refusal::Gone), Err(Refusal::Gone))),
        }
        lawful(&hosted);
    }
}

#[test]
fn a_vcpu_that_queues_for_its_watcher_is_taken_out_of_the_queue() {
    let mut hosted = watched(Seat::First);
    // The outer server is busy with another exit: the second vCPU's.
    must_second_vcpu(&mut hosted);
    assert_eq!(hosted.now(0), Now::Thread(OUTER));
    wake_root(&mut hosted);
    commit(&mut hosted, 2, Seat::Second).expect("nobody else did");
    assert_eq!(must(&mut hosted, Op::SessionSettle, [slot::SESSION, 1, 0, 0, 0, 0])[0], 1, "served by the old one");
    assert_eq!(settle(&mut hosted), 1, "in the old one's queue");
    lawful(&hosted);
    wait(&mut hosted);
    let mut served = 0;
    while hosted.now(0) != Now::Guest(0) {
        if hosted.now(0) == Now::Guest(1) {
            hosted.wait_for_interrupt(0);
            continue;
        }
        served += u32::from(hosted.now(0) == Now::Thread(CLIENT) && words(&hosted) == EVENT);
        reply(&mut hosted, Answer::RETRY.0, [0; 10]);
    }
    assert_eq!(served, 2, "both were given to the new one, once");
    lawful(&hosted);
}

/// A second vCPU on the same CPU has the outer server's attention, and the first one queues there.
fn must_second_vcpu(hosted: &mut Hosted) {
    const VCPU: u64 = slot::FREE + 3;
    wake_root(hosted);
    must(hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, VCPU, small::VCPU_PRIORITY + 1, 0]);
    must(hosted, Op::VcpuRoute, [VCPU, ExitClass::Memory as u64, slot::PORTALS[0], 7, small::EXIT_BADGE, 0]);
    must(hosted, Op::SessionPlace, [slot::SESSION, 1, 0, slot::PORTALS[1], 0, 0]);
    must(hosted, Op::SessionPlace, [slot::SESSION, 1, 1, SECOND, 0, 0]);
    assert_eq!(wait(hosted), Now::Guest(0));
    assert_eq!(event(hosted), Now::Thread(OUTER));
    wake_root(hosted);
    must(hosted, Op::VcpuStart, [VCPU, 0, 0, 0, 0, 0]);
    let now = wait(hosted);
    assert_eq!(now, Now::Guest(1), "it has the higher priority");
    assert_eq!(hosted.exit(0, ExitClass::Memory, [0; 10]), Now::Thread(INNER));
    assert_eq!(forward(hosted, TO_WATCHER, EVENT), Now::Thread(OUTER));
    lawful(hosted);
}

#[test]
fn only_an_exit_of_its_own_guest_goes_to_a_session() {
    let mut hosted = client_runs();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    assert_eq!(forward(&mut hosted, TO_WATCHER, WORDS), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::BadArgument), "a call is no event");
    lawful(&hosted);

    let mut hosted = watched(Seat::First);
    wake_root(&mut hosted);
    small::split(&mut hosted, 200, 16, slot::FREE + 4);
    must(&mut hosted, Op::GuestCreate, [slot::FREE + 4, 1, slot::FREE + 5, 0, 0, 0]);
    must(&mut hosted, Op::SessionCreate, [slot::FREE + 5, 0, slot::FREE + 6, 0, 0, 0]);
    must(&mut hosted, Op::Grant, [slot::FREE + 6, slot::DOMAINS[0], 40, 0xff, 0, 0]);
    wait(&mut hosted);
    hosted.exit(0, ExitClass::Memory, [0; 10]);
    assert_eq!(forward(&mut hosted, 40, WORDS), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::BadArgument), "another guest's session");
    assert_eq!(forward(&mut hosted, TO_WATCHER, EVENT), Now::Thread(OUTER), "and nothing was lost");
}

#[test]
fn events_go_up_only() {
    let mut hosted = watched(Seat::First);
    wake_root(&mut hosted);
    // The forwarder itself at the seat: no higher rank than its own.
    must(&mut hosted, Op::SessionPlace, [slot::SESSION, 0, 0, slot::PORTALS[0], 0, 0]);
    wait(&mut hosted);
    assert_eq!(event(&mut hosted), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::Order));
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
}

#[test]
fn what_is_said_of_a_session_is_checked() {
    let mut hosted = system();
    for number in [SESSIONS, SESSIONS + 1, 511, 512, 65535, u64::MAX] {
        let a = [slot::GUEST, number, slot::FREE + 1, 0, 0, 0];
        assert_eq!(hosted.invoke(0, Op::SessionCreate, a), Err(Refusal::OutOfRange), "{number}");
    }
    let place = |hosted: &mut Hosted, a: [u64; 3]| {
        hosted.invoke(0, Op::SessionPlace, [slot::SESSION, a[0], a[1], a[2], 0, 0]).map(|[x0, ..]| x0)
    };
    assert_eq!(place(&mut hosted, [15, 1, slot::PORTALS[1]]), Ok(0), "a vCPU that is not there yet");
    for vcpu in [16, 17, 511, 512, 65535, u64::MAX] {
        assert_eq!(place(&mut hosted, [vcpu, 0, slot::PORTALS[1]]), Err(Refusal::OutOfRange));
        let settle = [slot::SESSION, vcpu, 0, 0, 0, 0];
        assert_eq!(hosted.invoke(0, Op::SessionSettle, settle), Err(Refusal::OutOfRange));
    }
    for seat in [2, 3, 511, 65535, u64::MAX] {
        assert_eq!(place(&mut hosted, [0, seat, slot::PORTALS[1]]), Err(Refusal::BadArgument));
    }
    for (portal, why) in [(slot::GUEST, Refusal::WrongKind), (u64::MAX, Refusal::NoCapability)] {
        assert_eq!(place(&mut hosted, [0, 0, portal]), Err(why));
    }
    for seat in [4, 511, 65535, u64::MAX] {
        let a = [slot::SESSION, 1, seat, 0, 0, 0];
        assert_eq!(hosted.invoke(0, Op::SessionCommit, a), Err(Refusal::BadArgument));
    }
    for epoch in [0, 2, u64::from(u32::MAX), 1 << 32 | 1, u64::MAX] {
        assert_eq!(commit(&mut hosted, epoch, Seat::First), Err(Refusal::Gone));
    }
    assert_eq!(commit(&mut hosted, 1, Seat::First), Ok(2));
    let weak = Op::Grant;
    must(&mut hosted, weak, [slot::SESSION, root_slot::DOMAIN, slot::FREE + 2, 64, 0, 0]);
    for op in [Op::SessionPlace, Op::SessionCommit, Op::SessionSettle, Op::SessionInfo] {
        assert_eq!(hosted.invoke(0, op, [slot::FREE + 2, 0, 0, 0, 0, 0]), Err(Refusal::MissingRight));
        assert_eq!(hosted.invoke(0, op, [slot::GUEST, 0, 0, 0, 0, 0]), Err(Refusal::WrongKind));
    }
    lawful(&hosted);
}

#[test]
fn a_session_is_revoked_alone() {
    let mut hosted = watched(Seat::First);
    wake_root(&mut hosted);
    must(&mut hosted, Op::SessionCreate, [slot::GUEST, 1, slot::FREE + 1, 0, 0, 0]);
    must(&mut hosted, Op::Grant, [slot::FREE + 1, slot::DOMAINS[0], 41, 0xff, 0, 0]);
    must(&mut hosted, Op::Revoke, [slot::SESSION, 0, 0, 0, 0, 0]);
    wait(&mut hosted);
    assert_eq!(event(&mut hosted), Now::Thread(INNER));
    assert_eq!(x0(&hosted), Err(Refusal::NoCapability));
    assert_eq!(forward(&mut hosted, 41, EVENT), Now::Idle, "the other is held");
    wake_root(&mut hosted);
    assert_eq!(must(&mut hosted, Op::SessionInfo, [slot::FREE + 1, 0, 0, 0, 0, 0]), [1, Seat::Held as u64, 1]);
}
