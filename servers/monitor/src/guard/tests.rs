// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of pages that are guarded.

use super::*;
use crate::fake::{Fake, WEB};
use proptest::prelude::*;
use std::collections::BTreeMap;
use trellis_idl::kernel::{Exit, ExitHeader, PAGE};
use trellis_idl::layout::badge;
use trellis_idl::plan::{MAX_VCPUS, MAX_WATCHED, RuleVerdict};
use trellis_idl::wire::{MAX_STATE, P2mOp};

const FIRST: u64 = 0x4_0200;

fn rule(first: u64, pages: u64, verdict: RuleVerdict) -> RulePlan {
    RulePlan { guest: 0, first, pages, access: 6, verdict, log: true }
}

fn guard(rules: &[RulePlan]) -> Box<Guard> {
    Box::new(Guard::new(rules).expect("not too many pages"))
}

fn access(page: u64, flags: u64) -> Event {
    let header = ExitHeader(flags | ExitHeader::PERMISSION | 1 << 32);
    Event::of(badge::event(0, 1), &Exit { header, physical: page * PAGE, pc: 0x4020_0000, ..Exit::default() })
}

fn write(page: u64) -> Event {
    access(page, ExitHeader::WRITE | 8 << 8)
}

fn execute(page: u64) -> Event {
    access(page, ExitHeader::FETCH)
}

#[test]
fn the_first_use_of_a_page_decides_and_the_other_is_a_violation() {
    let (fake, guest) = (Fake::default(), WatchedGuest::new(0, &WEB));
    for (verdict, expected) in [
        (RuleVerdict::Stop, Verdict::Stop), (RuleVerdict::Allow, Verdict::Allow),
        (RuleVerdict::Fault, Verdict::Inject(trellis_idl::event::Injected::Abort)),
    ] {
        let guard = guard(&[rule(FIRST - 7, 3, verdict), rule(FIRST, 4, verdict)]);
        assert_eq!(guard.event(&fake, &guest, &write(FIRST)), Verdict::Retry);
        assert_eq!(fake.asked()[0][..4], [P2mOp::Watch as u64, 1 << 48 | FIRST, 1, 3]);
        assert_eq!(guard.event(&fake, &guest, &execute(FIRST + 3)), Verdict::Retry);
        assert_eq!(fake.asked()[0][..4], [P2mOp::Watch as u64, 1 << 48 | (FIRST + 3), 1, 5]);
        assert_eq!(guard.event(&fake, &guest, &execute(FIRST)), expected);
        assert_eq!(guard.event(&fake, &guest, &write(FIRST + 3)), expected);
        assert_eq!(guard.event(&fake, &guest, &write(FIRST)), Verdict::Allow, "what was told before p2m knew");
        assert!(fake.asked().is_empty());
        assert_eq!(guard.count(&fake, 1), Ok([5, 3, 2, 0, 0]));
        assert_eq!(guard.count(&fake, 0), Ok([0; 5]));
    }
}

#[test]
fn where_p2m_has_no_room_each_access_is_a_step_and_the_table_decides() {
    let (fake, guest, guard) = (Fake::default(), WatchedGuest::new(0, &WEB), guard(&[rule(FIRST, 4, RuleVerdict::Stop)]));
    fake.refuse();
    for _ in 0..3 {
        assert_eq!(guard.event(&fake, &guest, &write(FIRST)), Verdict::Allow);
    }
    assert_eq!(guard.event(&fake, &guest, &execute(FIRST)), Verdict::Stop);
}

#[test]
fn a_guest_that_begins_anew_has_only_fresh_pages() {
    let (fake, guest, guard) = (Fake::default(), WatchedGuest::new(0, &WEB), guard(&[rule(FIRST, 4, RuleVerdict::Stop)]));
    guard.event(&fake, &guest, &write(FIRST));
    fake.asked();
    guard.begin(&fake, &guest, true).expect("it begins");
    let watched: std::vec::Vec<_> = fake.asked().into_iter().filter(|words| words[0] == P2mOp::Watch as u64).collect();
    assert_eq!(watched.len(), 1);
    assert_eq!(watched[0][1..4], [1 << 48 | FIRST, 4, 1], "to be read alone");
    assert_eq!(guard.event(&fake, &guest, &execute(FIRST)), Verdict::Retry);
}

#[test]
fn the_next_guard_knows_what_pages_are() {
    let rules = [rule(FIRST - 7, 3, RuleVerdict::Stop), rule(FIRST, 6, RuleVerdict::Stop)];
    let (fake, guest, [old, new]) = (Fake::default(), WatchedGuest::new(0, &WEB), [guard(&rules), guard(&rules)]);
    for (page, event) in [(0, write as fn(u64) -> Event), (1, write), (2, execute), (4, execute), (5, execute)] {
        old.event(&fake, &guest, &event(FIRST + page));
    }
    let state = old.export(&fake);
    let alike = |first, pages, what| Alike { first, pages, what };
    assert_eq!(state.pages[..], [alike(3, 2, Use::Data), alike(5, 1, Use::Code), alike(7, 2, Use::Code)]);
    assert_eq!(new.import(&fake, state.clone()), Ok(()));
    fake.asked();
    new.begin(&fake, &guest, false).expect("it adopts the guest");
    let watched: std::vec::Vec<_> = fake.asked().into_iter().filter(|words| words[0] == P2mOp::Watch as u64).map(|words| [words[1] & 0xff_ffff, words[2], words[3]]).collect();
    // Everything to be read alone first, so that nothing is left open, then what is known.
    assert_eq!(watched, [
        [FIRST - 7, 3, 1], [FIRST, 6, 1], [FIRST, 2, 3], [FIRST + 2, 1, 5], [FIRST + 4, 2, 5],
    ]);
    assert_eq!(new.event(&fake, &guest, &execute(FIRST + 1)), Verdict::Stop);
    assert_eq!(new.count(&fake, 1).map(|counts| counts[0]), Ok(6));
    // One with other rules takes the counts of those that are the same.
    let other = guard(&rules[1..]);
    assert_eq!(other.import(&fake, state), Ok(()));
    assert_eq!(other.count(&fake, 0).map(|counts| counts[0]), Ok(5));
    assert_eq!(other.event(&fake, &guest, &execute(FIRST)), Verdict::Retry);
}

#[test]
fn the_largest_state_fits() {
    let rules: std::vec::Vec<_> = (0..MAX_RULES as u64).map(|n| RulePlan { guest: 7, first: u64::MAX - n, ..rule(0, 512, RuleVerdict::Fault) }).collect();
    let (fake, guard) = (Fake::default(), guard(&rules));
    for (n, page) in guard.pages.iter().enumerate() {
        page.store((n % 3) as u8, Ordering::Relaxed);
    }
    let mut state = guard.export(&fake);
    assert_eq!(state.pages.len(), MOST_RUNS);
    for known in &mut state.rules {
        (known.seen, known.violations, known.spared) = (u64::MAX, u64::MAX, u64::MAX);
    }
    for alike in &mut state.pages {
        (alike.first, alike.pages) = (u16::MAX, u16::MAX);
    }
    // And which event of each vCPU was decided last.
    let numbers: crate::decided::Numbers = core::iter::repeat_n(u64::MAX, MAX_WATCHED * MAX_VCPUS).collect();
    assert!(postcard::to_slice(&(&state, numbers), &mut [0; MAX_STATE]).is_ok());
    assert_eq!(guard.import(&fake, state), Ok(()), "pages that are nowhere change nothing");
}

#[test]
fn more_pages_than_it_can_are_refused() {
    assert!(Guard::new(&[rule(0, MOST_PAGES as u64, RuleVerdict::Stop)]).is_some());
    assert!(Guard::new(&[rule(0, MOST_PAGES as u64, RuleVerdict::Stop), rule(0, 1, RuleVerdict::Stop)]).is_none());
    assert!(Guard::new(&[rule(0, u64::MAX, RuleVerdict::Stop), rule(0, 2, RuleVerdict::Stop)]).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Whatever is done in whatever order, a page is used in one way, and the rest are violations.
    #[test]
    fn no_page_is_ever_written_and_executed(acts in prop::collection::vec((0..12u64, any::<bool>(), any::<bool>()), 0..80)) {
        let rules = [rule(FIRST, 5, RuleVerdict::Stop), rule(FIRST + 5, 5, RuleVerdict::Stop)];
        let (guest, guard) = (WatchedGuest::new(0, &WEB), guard(&rules));
        let mut uses: BTreeMap<u64, bool> = BTreeMap::new();
        for (page, executes, has_room) in acts {
            let fake = Fake::default();
            if !has_room {
                fake.refuse();
            }
            let event = if executes { execute(FIRST + page) } else { write(FIRST + page) };
            let verdict = guard.event(&fake, &guest, &event);
            if page >= 10 {
                prop_assert!(verdict != Verdict::Stop, "it guards no other pages");
                continue;
            }
            let first = *uses.entry(page).or_insert(executes);
            prop_assert_eq!(verdict == Verdict::Stop, first != executes);
        }
    }
}
