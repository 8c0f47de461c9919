// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules that the host adds to a monitor, lists and removes while its guest runs: the real root, p2m, vcpu and monitor through the
//! real kernel, with losses and another program in the monitor's place in between.

use trellis_idl::control::{Ask, Name, Part, Refused, RuleState, Watch, WatchWhat};
use trellis_idl::event::EventKind;
use trellis_idl::kernel::{Access, Exit, ExitClass, ExitHeader, VcpuRegister};
use trellis_idl::plan::{EventPlan, FIRST_ADDED, MAX_ADDED, OnReset, Rule, RulePlan, RuleVerdict};
use trellis_walks::uploads::{Asked, file, offer, watchdog};
use trellis_walks::whole::{Act, BASE, Fate, Kind, Stored};

const ALLOWED: u64 = BASE + (2 << 20) + 0x3000;
const ADDED: u64 = ALLOWED + 0x1000;
const FREE: u64 = ALLOWED + 0x2000;
/// `msr contextidr_el1, x9`.
const WRITE_CONTEXT: u64 = 0x62 << 24 | 3 << 20 | 1 << 17 | 13 << 10 | 9 << 5;
/// PSCI 5.1.11: SYSTEM_RESET.
const RESET: u64 = 0x8400_0009;
/// Rank of monitors.
const MONITOR: u8 = 3;

fn rule(address: u64, verdict: RuleVerdict) -> RulePlan {
    RulePlan { guest: 0, first: address / 4096, pages: 1, access: Access::WRITE.0 as u8, verdict, log: false }
}

fn event(kind: EventKind, verdict: RuleVerdict) -> Rule {
    Rule::Event(EventPlan { guest: 0, kind, only_changes: false, ignored: 0, verdict, log: false })
}

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a short name")
}

struct Story(Asked);

impl Story {
    fn begin() -> Story {
        Story(Asked::watching(Kind::Standard, vec![rule(ALLOWED, RuleVerdict::Allow)], OnReset::Reboot, None))
    }

    fn watch(&mut self, what: WatchWhat) -> Vec<Part> {
        self.0.ask(Ask::Watch(Watch { guest: name("script"), monitor: Name::new(), what }))
    }

    fn add(&mut self, rule: Rule) -> Result<u16, Refused> {
        match self.watch(WatchWhat::Add(rule))[..] {
            [Part::Rule(RuleState { server: 3, known }), Part::Done] => {
                assert!(known.is_added && known.rule == rule);
                Ok(known.number)
            }
            [Part::Refused(why)] => Err(why),
            ref other => panic!("{other:?}"),
        }
    }

    /// Number, whether it was added, and how often it was seen.
    fn list(&mut self) -> Vec<(u16, bool, u64)> {
        let parts = self.watch(WatchWhat::List);
        assert_eq!(parts.last(), Some(&Part::Done));
        let of = |part: &Part| match part {
            Part::Rule(state) => Some((state.known.number, state.known.is_added, state.known.counts[0])),
            _ => None,
        };
        parts.iter().filter_map(of).collect()
    }

    fn remove(&mut self, number: u16) -> Part {
        self.watch(WatchWhat::Remove(number)).pop().expect("an answer")
    }

    /// The guest stores to places of a page; what becomes of it.
    fn stores(&mut self, page: u64, count: u64) -> Vec<Stored> {
        let before = self.0.whole.stores.borrow()[0].len();
        self.0.whole.does((0..count).map(|n| Act::Store(page + 8 * n)));
        self.all_done();
        self.0.whole.stores.borrow()[0][before..].iter().map(|(_, what)| *what).collect()
    }

    fn all_done(&mut self) {
        for _ in 0..200 {
            if self.0.whole.left() == 0 {
                self.0.whole.go_on();
                return self.0.whole.lawful();
            }
            if self.0.whole.is_root_wanted() {
                self.0.root.step(&self.0.whole.body(0, 0));
            } else {
                self.0.whole.go_on();
            }
        }
        panic!("{} acts are left", self.0.whole.left());
    }
}

#[test]
fn a_rule_is_added_counts_and_is_removed_while_its_guest_runs() {
    let mut story = Story::begin();
    assert_eq!(story.stores(ADDED, 3), [Stored::Done; 3], "nobody watches it");
    assert_eq!(story.add(Rule::Pages(rule(ADDED, RuleVerdict::Deny))), Ok(FIRST_ADDED));
    assert_eq!(story.stores(ADDED + 0x100, 5), [Stored::Skipped; 5]);
    assert_eq!(story.stores(ALLOWED, 2), [Stored::Done; 2]);
    assert_eq!(story.list(), [(1, false, 2), (FIRST_ADDED, true, 5)]);
    // What it does with its processor as well.
    assert_eq!(story.add(event(EventKind::Context, RuleVerdict::Deny)), Ok(FIRST_ADDED + 1));
    let header = ExitHeader(4 << 48);
    let write = Exit { header, syndrome: WRITE_CONTEXT, value: 77, ..Exit::default() };
    story.0.whole.does([Act::Stop(ExitClass::Register, write.to_words())]);
    story.all_done();
    let context = {
        let hosted = story.0.whole.hosted.borrow();
        let index = hosted.cpus[0].local.vcpus.names().next().expect("a vCPU").index() as u16;
        trellis_core::machine::VcpuContext::get(&hosted.cpus[0].local.vcpus.at(index).context, VcpuRegister::ContextidrEl1 as u64)
    };
    assert_eq!(context, Ok(0), "denied");
    assert_eq!(story.list()[2], (FIRST_ADDED + 1, true, 1));
    assert_eq!(story.remove(FIRST_ADDED), Part::Done);
    assert_eq!(story.stores(ADDED + 0x200, 3), [Stored::Done; 3], "nobody watches it any more");
    assert_eq!(story.list(), [(1, false, 2), (FIRST_ADDED + 1, true, 1)]);
    assert_eq!(story.add(Rule::Pages(rule(FREE, RuleVerdict::Report))), Ok(FIRST_ADDED), "its place is free");
    assert_eq!(story.stores(FREE, 4), [Stored::Done; 4]);
    assert_eq!(story.list()[1], (FIRST_ADDED, true, 4), "told of it, and counted from nothing");
}

#[test]
fn what_cannot_be_added_or_removed_is_refused_and_changes_nothing() {
    let mut story = Story::begin();
    let page = |address, access| Rule::Pages(RulePlan { access, ..rule(address, RuleVerdict::Allow) });
    let outside = RulePlan { pages: u64::MAX, ..rule(FREE, RuleVerdict::Allow) };
    let cases = [
        (page(ALLOWED, 2), Refused::Overlaps), (page(ALLOWED, 7), Refused::Overlaps), (page(FREE, 0), Refused::Senseless),
        (page(FREE, 8), Refused::Senseless), (page(0, 2), Refused::Elsewhere), (page(u64::MAX, 2), Refused::Elsewhere),
        (Rule::Pages(outside), Refused::Elsewhere), (Rule::Pages(RulePlan { pages: 0, ..outside }), Refused::Elsewhere),
        (Rule::Pages(RulePlan { access: 4, ..rule(FREE, RuleVerdict::Deny) }), Refused::Senseless),
        (event(EventKind::Start, RuleVerdict::Allow), Refused::Senseless), (event(EventKind::Debug, RuleVerdict::Deny), Refused::Senseless),
    ];
    for (rule, why) in cases {
        assert_eq!(story.add(rule), Err(why), "{rule:?}");
    }
    assert_eq!(story.list(), [(1, false, 0)]);
    for (number, why) in [(1, Refused::Manifests), (0, Refused::Manifests), (FIRST_ADDED, Refused::NoRule), (u16::MAX, Refused::NoRule)] {
        assert_eq!(story.remove(number), Part::Refused(why), "{number}");
    }
    for (guest, monitor, why) in [("nobody", "", Refused::NoGuest), ("script", "nobody", Refused::NoMonitor)] {
        let ask = Ask::Watch(Watch { guest: name(guest), monitor: name(monitor), what: WatchWhat::List });
        assert_eq!(story.0.ask(ask), [Part::Refused(why)]);
    }
    for n in 0..MAX_ADDED as u64 {
        assert_eq!(story.add(page(FREE + 4096 * n, 2)), Ok(FIRST_ADDED + n as u16));
    }
    assert_eq!(story.add(page(FREE + (1 << 18), 2)), Err(Refused::RulesFull));
    assert_eq!(story.stores(ALLOWED, 2), [Stored::Done; 2], "and the guest goes on");
}

#[test]
fn rules_that_were_added_outlive_losses_swaps_and_reboots() {
    let mut story = Story::begin();
    story.add(Rule::Pages(rule(FREE, RuleVerdict::Allow))).expect("it may");
    assert_eq!(story.add(Rule::Pages(rule(ADDED, RuleVerdict::Deny))), Ok(FIRST_ADDED + 1));
    assert_eq!(story.remove(FIRST_ADDED), Part::Done);
    assert_eq!(story.stores(ADDED, 2), [Stored::Skipped; 2]);
    // Lost over an event of that rule: the next one has it before it is asked again.
    story.0.whole.fate.set(Some((MONITOR, Fate::Crash)));
    assert_eq!(story.stores(ADDED + 0x100, 3), [Stored::Skipped; 3]);
    assert_eq!(story.list(), [(1, false, 0), (FIRST_ADDED + 1, true, 3)], "with the number that it had");
    // Another program in its place takes over what it has counted.
    let file = file();
    story.0.upload(offer(&file, false), &file);
    let swapped = story.0.ask(Ask::Swap(watchdog()));
    assert!(matches!(swapped[..], [Part::Replaced(_), Part::Done]), "{swapped:?}");
    assert_eq!(story.stores(ADDED + 0x200, 2), [Stored::Skipped; 2]);
    assert_eq!(story.list()[1], (FIRST_ADDED + 1, true, 5));
    // A guest that starts again is watched so from its first instruction on.
    story.0.whole.does([Act::Hypercall(RESET)]);
    story.0.whole.told_by(&mut story.0.root, 8);
    story.0.whole.forget();
    assert_eq!(story.stores(ADDED, 2), [Stored::Skipped; 2]);
}
