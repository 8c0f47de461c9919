// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of pages that are followed.

use super::*;
use crate::fake::{Fake, WEB};
use trellis_idl::kernel::{Exit, ExitHeader, PAGE};
use trellis_idl::layout::badge;
use trellis_idl::plan::RuleVerdict;
use trellis_idl::wire::P2mOp;

const CODE: u64 = 0x4_0200;

fn rule(first: u64, pages: u64) -> RulePlan {
    RulePlan { guest: 0, first, pages, access: 4, verdict: RuleVerdict::Allow, log: true }
}

fn executes(vcpu: u64, pc: u64) -> Event {
    let header = ExitHeader(ExitHeader::FETCH | ExitHeader::PERMISSION | 1 << 32);
    Event::of(badge::event(0, vcpu), &Exit { header, physical: pc, pc, ..Exit::default() })
}

#[test]
fn what_comes_one_behind_the_other_is_a_run() {
    let mut run = Run::NONE;
    let steps = [(0x100, Some(0)), (0x104, None), (0x108, None), (0x100, Some(3)), (0x104, None), (0x200, Some(2)), (0x200, Some(1))];
    for (pc, ended) in steps {
        assert_eq!(run.go_on(pc).map(|run| run.count), ended, "{pc:#x}");
    }
    let mut last = Run::NONE;
    assert!(last.go_on(u64::MAX - 3).is_some() && last.go_on(0).is_none(), "addresses go round");
}

#[test]
fn each_instruction_is_counted_and_happens() {
    let (fake, tracer, guest) = (Fake::default(), Tracer::new(&[rule(CODE, 2), rule(CODE + 9, 1)]), WatchedGuest::new(0, &WEB));
    let at = CODE * PAGE;
    for (vcpu, pc) in [(0, at), (0, at + 4), (1, at), (0, at + 8), (1, at + 4), (0, at), (0, (CODE + 9) * PAGE)] {
        assert_eq!(tracer.event(&fake, &guest, &executes(vcpu, pc)), Verdict::Allow);
    }
    assert_eq!(tracer.count(&fake, 0), Ok([6, 6, 0, 0, 0]));
    let state = tracer.export(&fake);
    assert_eq!(state.iter().map(|known| (known.instructions, known.runs)).collect::<std::vec::Vec<_>>(), [(6, 3), (1, 1)]);
    let next = Tracer::new(&[rule(CODE + 9, 1), rule(CODE, 2)]);
    assert_eq!(next.import(&fake, state), Ok(()));
    assert_eq!((next.count(&fake, 1), next.count(&fake, 2)), (Ok([6, 6, 0, 0, 0]), Err(Refusal::OutOfRange)));
    assert!(fake.asked().is_empty());
}

#[test]
fn only_execution_is_followed_whatever_the_rule_says() {
    let all = RulePlan { access: 7, verdict: RuleVerdict::Stop, ..rule(CODE, 2) };
    let (fake, tracer, guest) = (Fake::default(), Tracer::new(&[all]), WatchedGuest::new(0, &WEB));
    tracer.begin(&fake, &guest, true).expect("it begins");
    let watched = fake.asked().into_iter().find(|words| words[0] == P2mOp::Watch as u64).expect("it watches");
    assert_eq!(watched[1..4], [1 << 48 | CODE, 2, 3]);
    // A page that is none of its own is let go.
    assert_eq!(tracer.event(&fake, &guest, &executes(1, (CODE + 2) * PAGE)), Verdict::Retry);
    assert_eq!(fake.asked()[0][3], 0x102);
}

#[test]
fn a_line_says_where_it_is_and_what_was_before() {
    let event = executes(1, 0x4020_0100);
    let line = |ended, spared| Line { guest: "web", event: &event, rule: 1, ended, spared }.to_string();
    assert_eq!(line(Run::NONE, 0), "web (vCPU 1) executes 0x4020_0100, at 0x4020_0100 (followed by rule 2)");
    let before = Run { first: 0x4020_0000, next: 0x4020_0010, count: 4 };
    assert_eq!(
        line(before, 9),
        "web (vCPU 1) executes 0x4020_0100, at 0x4020_0100 (followed by rule 2), after 4 from 0x4020_0000 on (9 runs not written before)"
    );
}
