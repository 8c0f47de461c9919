// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose rules the host means, and what is refused before a monitor is asked.

use super::tests::{reports, start_plan};
use super::*;
use crate::fake::{Fake, FakeBoard, MONITOR, MONITOR_NAME, plan_with_monitor};
use trellis_idl::control::{Answer, Ask, Control, FromHost, Name, Part, Watch, WatchWhat};
use trellis_idl::plan::{FIRST_ADDED, Rule, RulePlan, RuleVerdict, Without};
use trellis_idl::wire::MonitorOp;

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a short name")
}

fn system(fake: &Fake, control: Control) -> (Root<'static, FakeBoard>, FakeBoard) {
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    (plan.guests[0].name, plan.guests[1].name, plan.control) = ("a", "b", control);
    let (root, board) = start_plan(fake, plan);
    reports(&board);
    fake.calls.borrow_mut().clear();
    (root, board)
}

fn ask(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard, watch: (&str, &str, WatchWhat)) -> std::vec::Vec<Part> {
    let ask = Ask::Watch(Watch { guest: name(watch.0), monitor: name(watch.1), what: watch.2 });
    assert!(Producer::new(board.ring(ring::ROOT_ASKED)).send(&FromHost::Asked(7, ask)));
    for _ in 0..10 {
        root.step(fake);
    }
    let mut ring = Consumer::new(board.ring(ring::ROOT_ANSWER));
    core::iter::from_fn(|| ring.receive::<Answer>()).map(|answer| answer.expect("an answer").part).collect()
}

const RULE: Rule = Rule::Pages(RulePlan { guest: 9, first: 1, pages: 1, access: 2, verdict: RuleVerdict::Deny, log: false });

#[test]
fn a_host_names_the_guest_and_where_there_are_several_the_monitor() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    for (guest, monitor, why) in [
        ("c", "", Refused::NoGuest), ("a", "", Refused::Unwatched), ("a", MONITOR_NAME, Refused::Unwatched), ("b", "other", Refused::NoMonitor),
        ("b", "console", Refused::NoMonitor),
    ] {
        for what in [WatchWhat::List, WatchWhat::Add(RULE), WatchWhat::Remove(FIRST_ADDED)] {
            assert_eq!(ask(&mut root, &fake, &board, (guest, monitor, what)), [Part::Refused(why)], "{guest} {monitor}");
        }
    }
    assert!(fake.calls.borrow().is_empty(), "nobody is asked");
    for monitor in ["", MONITOR_NAME] {
        let parts = ask(&mut root, &fake, &board, ("b", monitor, WatchWhat::Add(RULE)));
        let [Part::Rule(state), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
        assert_eq!((state.server, state.known.number, state.known.rule), (MONITOR as u8, FIRST_ADDED, RULE.of(0)), "about its own place of the guest");
    }
}

#[test]
fn each_refusal_of_a_monitor_has_a_reason() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    let refusals = [
        (Refusal::NoOperation, Refused::NoRules), (Refusal::BadArgument, Refused::Senseless), (Refusal::OutOfRange, Refused::Elsewhere),
        (Refusal::Occupied, Refused::Overlaps), (Refusal::Quota, Refused::RulesFull), (Refusal::NotMapped, Refused::NoRule),
        (Refusal::MissingRight, Refused::Manifests), (Refusal::Unsupported, Refused::Kernel(Refusal::Unsupported as u8)),
    ];
    for (refusal, why) in refusals {
        for (op, what) in [(MonitorOp::Add, WatchWhat::Add(RULE)), (MonitorOp::Remove, WatchWhat::Remove(FIRST_ADDED))] {
            fake.fail.set(Some((MONITOR + 1, op as u64, refusal)));
            assert_eq!(ask(&mut root, &fake, &board, ("b", "", what)), [Part::Refused(why)], "{refusal:?}");
        }
    }
    assert!(board.rules().lock(&fake).next(MONITOR as u8, 0).is_none(), "nothing is remembered");
}

#[test]
fn a_monitor_that_is_made_again_has_its_rules_before_it_watches() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    ask(&mut root, &fake, &board, ("b", "", WatchWhat::Add(RULE)));
    fake.calls.borrow_mut().clear();
    root.kill(&fake, MONITOR_NAME).expect("it is made again");
    let operations: std::vec::Vec<u64> = fake.calls.borrow().iter().map(|(_, operation)| *operation).collect();
    assert_eq!(operations, [MonitorOp::Add as u64, MonitorOp::Adopt as u64]);
    ask(&mut root, &fake, &board, ("b", "", WatchWhat::Remove(FIRST_ADDED)));
    fake.calls.borrow_mut().clear();
    root.kill(&fake, MONITOR_NAME).expect("it is made again");
    assert_eq!(fake.calls.borrow().len(), 1, "and none any more");
}
