// SPDX-License-Identifier: MIT OR Apache-2.0
//! An irqfwd whose place another program takes, and everything that stops that.

use super::exchange_tests::{Parts, ask, program, upload};
use super::tests::{IRQFWD, expect_irqfwd, expect_irqfwd_but_for_time, reports, start_plan};
use crate::build::UNKNOWN;
use super::*;
use crate::fake::{Fake, FakeBoard, Object, plan_with_device};
use crate::forward::CONTROL;
use crate::upload::tests::{SWAP, demands, offer, signed};
use trellis_idl::control::{Ask, Control, Handed, Name, Offer, Part, Step};
use trellis_idl::kernel::Op;
use trellis_idl::layout::{PROGRAM, badge};
use trellis_idl::plan::SwapPlan;

/// Its domain in the fake kernel, and that of the next.
const OLD: usize = IRQFWD + 1;
const NEW: usize = OLD + 1;
const NAME: &str = "irqfwd";

fn system(fake: &Fake, swap: Option<SwapPlan>) -> (Root<'static, FakeBoard>, FakeBoard) {
    let mut plan = plan_with_device();
    plan.servers[IRQFWD].swap = swap;
    plan.control = Control::Full;
    let (root, board) = start_plan(fake, plan);
    reports(&board);
    fake.calls.borrow_mut().clear();
    (root, board)
}

fn swap(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard) -> Parts {
    ask(root, fake, board, Ask::Swap(Name::try_from(NAME).expect("a short name")))
}

fn order(domain: usize, op: IrqfwdOp) -> (Object, u64) {
    (Object::Portal(domain, 1, badge::ROOT), op as u64)
}

#[test]
fn another_program_takes_its_place_with_what_it_counted() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Some(SWAP));
    let (file, runs) = (program(), fake.runs());
    for life in 0..4 {
        let (old, new) = (OLD + life, NEW + life);
        upload(&mut root, &fake, &board, offer(NAME, &file), &file);
        fake.calls.borrow_mut().clear();
        let parts = swap(&mut root, &fake, &board);
        let [Part::Replaced(replaced), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((replaced.server, replaced.guests, replaced.owed, replaced.state), (IRQFWD as u8, 1, 0, Handed::Taken(256)));
        let asked = [order(old, IrqfwdOp::Count), order(old, IrqfwdOp::Delays)];
        let told = [order(new, IrqfwdOp::Restore), order(new, IrqfwdOp::RestoreDelays)];
        assert_eq!(*fake.calls.borrow(), [asked, asked, told, told].concat(), "of both lines");
        // But for the time of the thread that answers root, in which it is seen whether it hangs.
        assert_eq!(fake.domain(new).threads[1], (UNKNOWN.priority, UNKNOWN.budget));
        expect_irqfwd_but_for_time(&fake, new, [1, 2]);
        assert!(fake.domain(new).started.iter().all(|(entry, ..)| *entry == PROGRAM + 8));
        assert_eq!((fake.domain(new).patience, fake.domain(old).threads), (std::vec![0, CONTROL], std::vec![]));
    }
    assert_eq!(fake.runs(), runs, "no memory more and no memory less");
    assert_eq!((fake.count(Op::VcpuStop), fake.count(Op::LineCreate)), (0, 3), "guests and lines stay");
    // One that dies is made again of what was uploaded.
    fake.stopped.borrow_mut().insert((NEW + 3, 0), 2);
    fake.bits.borrow_mut().push_back(root_signal::server(IRQFWD));
    root.step(&fake);
    assert_eq!(fake.domain(NEW + 4).started[0].0, PROGRAM + 8);
}

#[test]
fn one_that_is_none_or_does_not_begin_ends_and_the_one_before_runs_again() {
    for how in 0..2 {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, Some(SWAP));
        let (file, runs) = (program(), fake.runs());
        upload(&mut root, &fake, &board, offer(NAME, &file), &file);
        let why = match how {
            0 => {
                fake.disagrees.set(Some(NEW));
                Refused::Interface
            }
            _ => {
                fake.fail.set(Some((NEW, trellis_idl::interface::ATTACH, Refusal::Late)));
                Refused::Fails(Step::Begin)
            }
        };
        assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(why)]);
        // The image's, with what it had counted.
        expect_irqfwd(&fake, NEW + 1, [1, 2]);
        assert_eq!(fake.domain(NEW + 1).started[0].0, PROGRAM);
        let told = [order(NEW + 1, IrqfwdOp::Restore), order(NEW + 1, IrqfwdOp::RestoreDelays)];
        assert_eq!(fake.calls.borrow()[fake.calls.borrow().len() - 4..], [told, told].concat());
        assert_eq!(fake.domain(NEW + 1).patience, [0, CONTROL]);
        assert_eq!(fake.runs(), runs, "no memory more and no memory less");
        fake.disagrees.set(None);
        fake.fail.set(None);
        upload(&mut root, &fake, &board, offer(NAME, &file), &file);
        assert!(matches!(swap(&mut root, &fake, &board)[..], [Part::Replaced(_), Part::Done]), "and it is done when all is well");
    }
}

#[test]
fn one_that_does_not_say_what_it_counted_is_replaced_all_the_same() {
    for (refusal, is_fresh, state) in
        [(Some(Refusal::Late), false, Handed::Lost), (Some(Refusal::Gone), false, Handed::Taken(128)), (None, true, Handed::NotWanted)]
    {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, Some(SWAP));
        let file = program();
        upload(&mut root, &fake, &board, Offer { is_fresh, ..offer(NAME, &file) }, &file);
        fake.fail.set(refusal.map(|refusal| (OLD, IrqfwdOp::Count as u64, refusal)));
        let parts = swap(&mut root, &fake, &board);
        let [Part::Replaced(replaced), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!(replaced.state, state);
    }
}

#[test]
fn what_is_not_as_it_must_be_is_not_tried() {
    let fake = Fake::new();
    let file = program();
    let (mut root, board) = system(&fake, None);
    assert_eq!(ask(&mut root, &fake, &board, Ask::Upload(offer(NAME, &file))), [Part::Refused(Refused::NoSwap)]);
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Some(demands(3)));
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::CutOff(0))]);
    upload(&mut root, &fake, &board, offer(NAME, &file), &file);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::Signature)]);
    upload(&mut root, &fake, &board, signed(NAME, &file, 2), &file);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::Older(3))]);
    assert!(fake.calls.borrow().is_empty() && fake.count(Op::DomainDestroy) == 0, "nobody was asked anything");
    upload(&mut root, &fake, &board, signed(NAME, &file, 4), &file);
    assert!(matches!(swap(&mut root, &fake, &board)[..], [Part::Replaced(_), Part::Done]));
    upload(&mut root, &fake, &board, signed(NAME, &file, 3), &file);
    assert_eq!(swap(&mut root, &fake, &board), [Part::Refused(Refused::Older(4))]);
}
