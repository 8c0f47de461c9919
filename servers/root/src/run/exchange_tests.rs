// SPDX-License-Identifier: MIT OR Apache-2.0
//! A monitor that another one takes the place of, and everything that stops it.

use super::tests::{reports, start_plan};
use super::*;
use crate::fake::{Fake, FakeBoard, MONITOR, MONITOR_NAME, Object, plan_with_monitor, plan_with_swap};
use crate::program::tests::{CODE, DATA, file};
use crate::upload::tests::{SWAP, demands, offer, signed};
use crate::watch::CONTROL;
use trellis_idl::control::{Answer, Ask, Control, FromHost, Handed, Name, Offer, Part, Piece, Step, UPLOAD_PIECE, Unfit};
use trellis_idl::kernel::{Op, Seat};
use trellis_idl::layout::{PROGRAM, badge};
use trellis_idl::plan::{MAX_SWAP_PAGES, SwapPlan, Without};
use trellis_idl::wire::MonitorOp;

/// Its domain in the fake kernel, and that of the next.
const OLD: usize = MONITOR + 1;
const NEW: usize = OLD + 1;

pub type Parts = std::vec::Vec<Part>;

pub fn program() -> std::vec::Vec<u8> {
    file(PROGRAM + 8, &[(0, 0x40, PROGRAM, 0x40, 5), (0x40, 0x20, PROGRAM + 0x1000, 0x1800, 6)])
}

fn system(fake: &Fake, swap: SwapPlan) -> (Root<'static, FakeBoard>, FakeBoard) {
    let (root, board) = start_plan(fake, plan_with_swap(&[1], swap));
    reports(&board);
    fake.calls.borrow_mut().clear();
    (root, board)
}

fn name() -> Name {
    Name::try_from(MONITOR_NAME).expect("a short name")
}

pub fn ask(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard, ask: Ask) -> Parts {
    assert!(Producer::new(board.ring(ring::ROOT_ASKED)).send(&FromHost::Asked(7, ask)));
    for _ in 0..20 {
        root.step(fake);
    }
    let mut ring = Consumer::new(board.ring(ring::ROOT_ANSWER));
    core::iter::from_fn(|| ring.receive::<Answer>()).map(|answer| answer.expect("an answer").part).collect()
}

pub fn upload(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard, offer: Offer, file: &[u8]) {
    assert_eq!(ask(root, fake, board, Ask::Upload(offer)), [Part::Done]);
    for (index, bytes) in file.chunks(UPLOAD_PIECE).enumerate() {
        let bytes = bytes.iter().copied().collect();
        assert_eq!(ask(root, fake, board, Ask::Piece(Piece { offset: (index * UPLOAD_PIECE) as u32, bytes })), [Part::Done]);
    }
}

fn swap(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard) -> Parts {
    ask(root, fake, board, Ask::Swap(name()))
}

/// The old one is asked about its guest, and nothing is left of the other.
fn as_before(fake: &Fake, root: &Root<'_, FakeBoard>, board: &FakeBoard) {
    let session = fake.session(1, 0);
    assert_eq!(session.seat, Seat::First as u64);
    assert_eq!(session.places[&(0, 0)], Object::Portal(OLD, 0, badge::event(0, 0)));
    assert_eq!(fake.domain(OLD).patience, [50_000, CONTROL, 50_000]);
    assert!(root.exchange.is_none() && reports(board).is_empty());
    assert!((OLD + 1..OLD + 1 + fake.count(Op::DomainDestroy)).all(|domain| fake.domain(domain).threads.is_empty()));
    assert_eq!(fake.count(Op::VcpuStop), 0);
}

#[test]
fn another_one_is_made_beside_it_takes_over_and_is_asked() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, SWAP);
    let file = program();
    for life in 0..4u64 {
        upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
        fake.calls.borrow_mut().clear();
        fake.owe(1, 0, 0b11);
        let before = fake.count(Op::Signal);
        // What the old one paused goes on without it, and nothing else does.
        let (first, others) = (root.guests[1].vcpus[0].slot(), 1 | 1 << badge::pauser::monitor(0, 1 - life % 2));
        fake.pause(first, others | 1 << badge::pauser::monitor(0, life % 2));
        let parts = swap(&mut root, &fake, &board);
        assert_eq!(fake.paused(first), others);
        let [Part::Replaced(replaced), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((replaced.guests, replaced.owed, replaced.state), (1, 2, Handed::Taken(3)));
        let (old, new) = (OLD + life as usize, NEW + life as usize);
        let order = |domain, op| (Object::Portal(domain, 1, badge::ROOT), op as u64);
        let calls = [order(old, MonitorOp::Export), order(new, MonitorOp::Import), order(new, MonitorOp::Adopt)];
        assert_eq!(*fake.calls.borrow(), calls);
        let (session, seat) = (fake.session(1, 0), (life + 1) % 2);
        assert_eq!(session.commits[session.commits.len() - 2..], [Seat::Held as u64, seat]);
        assert_eq!(session.places[&(1, seat)], Object::Portal(new, 0, badge::event(0, 1)));
        // What the old one still held was taken from it before it was asked what it knows.
        let held = Seat::Held as u64;
        assert_eq!(session.settled[session.settled.len() - 4..], [(0, held), (1, held), (0, seat), (1, seat)]);
        assert_eq!(fake.count(Op::Signal) - before, 2, "the console is woken, and who reads what it is told");
        let made = fake.domain(new);
        assert_eq!(made.started.iter().map(|(entry, ..)| *entry).collect::<std::vec::Vec<_>>(), [PROGRAM + 8; 3]);
        // Its threads have little time of their own, and that behind root.
        assert!(made.threads.iter().all(|(priority, budget)| *priority < 240 && *budget != 0));
        assert_eq!(made.patience, [50_000, CONTROL, 50_000]);
        assert!(fake.domain(old).threads.is_empty(), "the old one is gone");
        assert_eq!(fake.count(Op::DomainDestroy) as u64, life + 1);
        assert!(reports(&board).is_empty() && fake.count(Op::VcpuStop) == 0);
    }
    // What is left for others is what was left before.
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::CutOff(0))], "an upload is used once");
}

/// What the old one reads of no more the new one reads, and nothing is read by both.
#[test]
fn one_that_is_to_begin_afresh_is_told_nothing_and_the_old_one_reads_no_more() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, SWAP);
    let file = program();
    upload(&mut root, &fake, &board, Offer { is_fresh: true, ..offer(MONITOR_NAME, &file) }, &file);
    fake.calls.borrow_mut().clear();
    let parts = swap(&mut root, &fake, &board);
    assert!(matches!(parts[..], [Part::Replaced(replaced), Part::Done] if replaced.state == Handed::NotWanted), "{parts:?}");
    let order = |domain, op| (Object::Portal(domain, 1, badge::ROOT), op as u64);
    assert_eq!(*fake.calls.borrow(), [order(OLD, MonitorOp::Export), order(NEW, MonitorOp::Adopt)]);
}

#[test]
fn what_is_not_as_it_was_announced_changes_nothing() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, SWAP);
    let file = program();
    let mut other = offer(MONITOR_NAME, &file);
    other.digest[0] ^= 1;
    upload(&mut root, &fake, &board, other, &file);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::Digest)]);
    upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file[..100]);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::CutOff(100))]);
    let too_long = offer(MONITOR_NAME, &[0; 5 << 12]);
    assert_eq!(ask(&mut root, &fake, &board, Ask::Upload(too_long)), [Part::Refused(Refused::TooLarge(4 << 12))]);
    assert_eq!(ask(&mut root, &fake, &board, Ask::Upload(offer("p2m.a", &file))), [Part::Refused(Refused::NoMonitor)]);
    let foreign = crate::program::tests::file(PROGRAM, &[CODE, DATA]);
    upload(&mut root, &fake, &board, offer(MONITOR_NAME, &foreign), &foreign);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::Unfit(Unfit::Outside))]);
    as_before(&fake, &root, &board);
    assert!(fake.calls.borrow().is_empty() && fake.count(Op::DomainDestroy) == 0, "nobody was asked anything");
    upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
    assert!(matches!(swap(&mut root, &fake, &board)[..], [Part::Replaced(_), Part::Done]), "and it is done when all is well");
}

#[test]
fn where_it_must_be_signed_an_older_one_comes_never_again() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, demands(3));
    let file = program();
    let mut attempt = |offer| {
        upload(&mut root, &fake, &board, offer, &file);
        swap(&mut root, &fake, &board)
    };
    assert_eq!(attempt(offer(MONITOR_NAME, &file)), [Part::Refused(Refused::Signature)]);
    assert_eq!(attempt(signed(MONITOR_NAME, &file, 2)), [Part::Refused(Refused::Older(3))]);
    assert!(matches!(attempt(signed(MONITOR_NAME, &file, 5))[..], [Part::Replaced(_), Part::Done]));
    assert_eq!(attempt(signed(MONITOR_NAME, &file, 4)), [Part::Refused(Refused::Older(5))]);
    assert!(matches!(attempt(signed(MONITOR_NAME, &file, 5))[..], [Part::Replaced(_), Part::Done]));
}

/// It has another interface, does not answer, does not take the state, does not watch: at each step, the old one goes on.
#[test]
fn one_that_fails_on_the_way_leaves_everything_as_it_was() {
    let spoilt: [(fn(&Fake), Refused); 4] = [
        (|fake| fake.disagrees.set(Some(NEW)), Refused::Interface),
        (|fake| fake.fail.set(Some((NEW, MonitorOp::Import as u64, Refusal::Late))), Refused::Fails(Step::TakeOver)),
        (|fake| fake.fail.set(Some((NEW, MonitorOp::Import as u64, Refusal::BadArgument))), Refused::State(Refusal::BadArgument as u8)),
        (|fake| fake.fail.set(Some((NEW, MonitorOp::Adopt as u64, Refusal::Gone))), Refused::Fails(Step::Watch)),
    ];
    for (spoil, why) in spoilt {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, SWAP);
        let runs = fake.runs();
        let file = program();
        spoil(&fake);
        upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
        assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(why)]);
        as_before(&fake, &root, &board);
        assert_eq!(fake.runs(), runs, "no memory more and no memory less");
        if why == Refused::Fails(Step::Watch) {
            // It may have changed what is watched.
            assert_eq!(fake.calls.borrow().last(), Some(&(Object::Portal(OLD, 1, badge::ROOT), MonitorOp::Adopt as u64)));
        }
        let settled = fake.session(1, 0).settled;
        assert!(why == Refused::Interface || settled[settled.len() - 2..] == [(0, 0), (1, 0)], "what waited is asked");
    }
}

/// Before, while, and after nobody is asked: a thread of the new one stops, and root hears of it between two steps.
#[test]
fn one_that_crashes_between_two_steps_is_ended_and_the_old_one_goes_on() {
    for steps in 1..4 {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, SWAP);
        let file = program();
        upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
        assert!(Producer::new(board.ring(ring::ROOT_ASKED)).send(&FromHost::Asked(7, Ask::Swap(name()))));
        (0..steps).for_each(|_| root.step(&fake));
        assert!(root.exchange.is_some(), "{steps}");
        fake.stopped.borrow_mut().insert((NEW, 0), 2);
        fake.bits.borrow_mut().push_back(root_signal::server(MONITOR));
        (0..9).for_each(|_| root.step(&fake));
        let answer = Consumer::new(board.ring(ring::ROOT_ANSWER)).receive::<Answer>();
        assert!(answer.is_some_and(|answer| answer.is_ok_and(|answer| answer.part == Part::Refused(Refused::Fails(Step::Begin)))));
        fake.stopped.borrow_mut().clear();
        as_before(&fake, &root, &board);
    }
}

/// That is no reason to keep it: only what it knew is lost.
#[test]
fn an_old_one_that_is_lost_on_the_way_is_replaced_all_the_same() {
    for how in 0..3 {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, SWAP);
        let file = program();
        upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
        assert!(Producer::new(board.ring(ring::ROOT_ASKED)).send(&FromHost::Asked(7, Ask::Swap(name()))));
        root.step(&fake);
        match how {
            0 => fake.fail.set(Some((OLD, MonitorOp::Export as u64, Refusal::Late))),
            1 => fake.fail.set(Some((OLD, MonitorOp::Export as u64, Refusal::Unsupported))),
            _ => {
                fake.stopped.borrow_mut().insert((OLD, 0), 2);
                fake.bits.borrow_mut().push_back(root_signal::server(MONITOR));
            }
        }
        (0..9).for_each(|_| root.step(&fake));
        let answer = Consumer::new(board.ring(ring::ROOT_ANSWER)).receive::<Answer>().and_then(Result::ok);
        let Some(Answer { part: Part::Replaced(replaced), .. }) = answer else { panic!("{answer:?}") };
        let state = if how == 1 { Handed::NotGiven(Refusal::Unsupported as u8) } else { Handed::Lost };
        assert_eq!((replaced.guests, replaced.state), (1, state));
        assert_eq!(fake.session(1, 0).seat, Seat::Second as u64);
        assert!(reports(&board).is_empty(), "nobody is blamed");
    }
}

/// A file of a program that has run is kept: it, and not the image's, is made again.
#[test]
fn a_lost_one_is_made_again_of_what_was_uploaded() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, SWAP);
    let file = program();
    upload(&mut root, &fake, &board, offer(MONITOR_NAME, &file), &file);
    assert!(matches!(swap(&mut root, &fake, &board)[..], [Part::Replaced(_), Part::Done]));
    // Another one is on its way, and is cut off: what runs is not touched by that.
    assert_eq!(ask(&mut root, &fake, &board, Ask::Upload(offer(MONITOR_NAME, &file))), [Part::Done]);
    assert_eq!(ask(&mut root, &fake, &board, Ask::Piece(Piece { offset: 0, bytes: [9; 50].into_iter().collect() })), [Part::Done]);
    fake.stopped.borrow_mut().insert((NEW, 0), 1);
    fake.bits.borrow_mut().push_back(root_signal::server(MONITOR));
    root.step(&fake);
    assert_eq!(fake.domain(NEW + 1).started[0].0, PROGRAM + 8);
    assert_eq!(fake.session(1, 0).seat, Seat::First as u64);
}

#[test]
fn without_memory_for_another_one_or_the_right_to_order_it_none_is_taken() {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    plan.control = Control::Full;
    let (mut root, board) = start_plan(&fake, plan);
    let file = program();
    assert_eq!(ask(&mut root, &fake, &board, Ask::Upload(offer(MONITOR_NAME, &file))), [Part::Refused(Refused::NoSwap)]);
    let mut plan = plan_with_swap(&[1], SwapPlan { pages: MAX_SWAP_PAGES, ..SWAP });
    plan.control = Control::Observe;
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, plan);
    let piece = Piece { offset: 0, bytes: Default::default() };
    for order in [Ask::Upload(offer(MONITOR_NAME, &file)), Ask::Piece(piece), Ask::Swap(name())] {
        assert_eq!(ask(&mut root, &fake, &board, order), [Part::Refused(Refused::ObserveOnly)]);
    }
}
