// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of a watched guest: the real root, p2m, vcpu and monitors through the real kernel, on two CPUs.

use trellis_idl::kernel::{Access, ExitHeader};
use trellis_idl::plan::{OnReset, RulePlan, RuleVerdict, Without};
use trellis_idl::wire::{GuestEnd, Report};
use trellis_root::Root;
use trellis_walks::whole::{Act, BASE, ENTRY, Fate, Sight, Stored, Told, Whole, watched_plan};

/// PSCI 5.1: CPU_ON, in 64 bits, and PSCI_VERSION.
const CPU_ON: u64 = 0xc400_0003;
const PSCI_VERSION: u64 = 0x8400_0000;
/// Rank of monitors.
const MONITOR: u8 = 3;
/// Pages that are not in the block that the image was loaded into.
const ALLOWED: u64 = BASE + (2 << 20) + 0x3000;
const DENIED: u64 = ALLOWED + 0x1000;
const STOPS: u64 = ALLOWED + 0x2000;
const FREE: u64 = ALLOWED + 0x4000;

fn rule(address: u64, verdict: RuleVerdict) -> RulePlan {
    RulePlan { guest: 0, first: address / 4096, pages: 1, access: Access::WRITE.0 as u8, verdict, log: false }
}

/// One monitor with a rule of each kind.
fn rules() -> Vec<RulePlan> {
    vec![rule(ALLOWED, RuleVerdict::Allow), rule(DENIED, RuleVerdict::Deny), rule(STOPS, RuleVerdict::Stop)]
}

fn started(rules: &[Vec<RulePlan>], without: Without) -> (&'static Whole, Root<'static, Sight<'static>>) {
    let whole = Whole::watched(rules);
    let root = whole.root(watched_plan(OnReset::Reboot, without, rules));
    assert!(matches!(whole.reports()[..], [Report::Started { .. }]));
    whole.lawful();
    (whole, root)
}

/// Lets everybody but root work until the guest has done all it is told to.
fn all_done(whole: &'static Whole) {
    for _ in 0..100 {
        if whole.left() == 0 {
            return whole.lawful();
        }
        whole.go_on();
    }
    panic!("{} acts are left", whole.left());
}

/// Stores at `count` places of a page.
fn stores(page: u64, count: u64) -> impl Iterator<Item = Act> {
    (0..count).map(move |n| Act::Store(page + 8 * n))
}

/// Each store of an allowed page is there, none of a denied one.
fn as_ordered(whole: &Whole, cpu: u16) -> usize {
    let stores = &whole.stores.borrow()[usize::from(cpu)];
    for (address, what) in stores {
        let denied = address & !0xfff == DENIED;
        assert_eq!(*what, if denied { Stored::Skipped } else { Stored::Done }, "{address:#x}");
        assert_eq!(whole.word(*address), Some(if denied { 0 } else { *address }), "{address:#x}");
    }
    stores.len()
}

/// Lets root work until it has told the host something. (It also wakes for threads that it ended itself.)
fn reported(whole: &'static Whole, root: &mut Root<'static, Sight<'static>>) -> Vec<Report> {
    for _ in 0..8 {
        root.step(&whole.body(0, 0));
        let mut seen = whole.reports();
        // What the CPU did before is another story.
        seen.retain(|report| !matches!(report, Report::Last { .. }));
        if !seen.is_empty() {
            return seen;
        }
    }
    panic!("root has nothing to say")
}

fn told(whole: &Whole) -> Vec<Told> {
    whole.told.take()
}

#[test]
fn what_a_rule_allows_happens_once_and_what_it_denies_does_not() {
    let (whole, _root) = started(&[rules()], Without::Hold);
    // Denied memory has no frame before it is read.
    whole.does([Act::Hypercall(PSCI_VERSION)]);
    whole.does(stores(ALLOWED, 20).chain(stores(DENIED, 20)).chain(stores(FREE, 3)));
    all_done(whole);
    assert_eq!(as_ordered(whole, 0), 43);
    let told = told(whole);
    assert_eq!(told.len(), 40, "each is asked about once");
    for (event, n) in told.iter().zip(0..) {
        let page = if n < 20 { ALLOWED } else { DENIED };
        assert_eq!((event.vcpu, event.exit.physical), (0, page + 8 * (n % 20)));
        assert!(event.exit.header.has(ExitHeader::WRITE) && event.exit.header.view() == 1);
    }
}

/// The second vCPU, which the first one starts.
fn second() -> Act {
    Act::Call([CPU_ON, 1, ENTRY, 0])
}

#[test]
fn vcpus_on_two_cpus_are_watched_from_their_first_instruction() {
    let (whole, _root) = started(&[rules()], Without::Hold);
    whole.does([second()]);
    whole.does(stores(ALLOWED, 20).chain(stores(DENIED, 20)));
    whole.does_on(1, stores(ALLOWED + 0x800, 20).chain(stores(DENIED + 0x800, 20)));
    all_done(whole);
    assert_eq!((as_ordered(whole, 0), as_ordered(whole, 1)), (40, 40));
    let told = told(whole);
    for vcpu in 0..2 {
        let own: Vec<u64> = told.iter().filter(|told| told.vcpu == vcpu).map(|told| told.exit.physical).collect();
        let wanted = stores(ALLOWED, 20).chain(stores(DENIED, 20)).map(|act| match act {
            Act::Store(address) => address + 0x800 * vcpu as u64,
            other => panic!("{other:?}"),
        });
        assert_eq!(own, wanted.collect::<Vec<_>>(), "in the order in which they happened");
    }
}

#[test]
fn an_event_that_a_lost_monitor_has_not_answered_is_the_next_ones() {
    for fate in [Fate::Crash, Fate::Hang] {
        let (whole, mut root) = started(&[rules()], Without::Hold);
        whole.does(stores(ALLOWED, 3));
        all_done(whole);
        let first = told(whole);
        whole.fate.set(Some((MONITOR, fate)));
        whole.does([Act::Store(DENIED), Act::Store(ALLOWED + 0x100)]);
        let lost = reported(whole, &mut root);
        let is_it = |report: &Report| match report {
            Report::ServerFaulted { server: 3, .. } => fate == Fate::Crash,
            Report::ServerLate { server: 3, .. } => fate == Fate::Hang,
            _ => false,
        };
        assert!(lost.iter().any(is_it), "{fate:?}: {lost:?}");
        all_done(whole);
        assert_eq!(as_ordered(whole, 0), 5, "{fate:?}");
        let told = told(whole);
        assert_eq!(told.len(), 3, "the one that it had comes twice");
        assert_eq!((told[0].exit, told[0].vcpu), (told[1].exit, told[1].vcpu), "with the same words");
        assert!(told[0].domain == first[0].domain && told[1].domain != first[0].domain);
        assert_eq!(told[2].domain, told[1].domain);
    }
}

#[test]
fn both_vcpus_wait_for_the_next_monitor_and_both_are_asked_about() {
    let (whole, mut root) = started(&[rules()], Without::Hold);
    whole.does([second(), Act::Store(ALLOWED)]);
    whole.does_on(1, [Act::Store(ALLOWED + 8)]);
    all_done(whole);
    whole.fate.set(Some((MONITOR, Fate::Hang)));
    whole.does(stores(ALLOWED + 0x100, 5));
    whole.does_on(1, stores(DENIED + 0x100, 5));
    reported(whole, &mut root);
    all_done(whole);
    assert_eq!((as_ordered(whole, 0), as_ordered(whole, 1)), (6, 6));
}

#[test]
fn two_monitors_of_a_guest_are_told_each_of_its_own_pages() {
    let both = [vec![rule(ALLOWED, RuleVerdict::Allow)], vec![rule(DENIED, RuleVerdict::Deny)]];
    let (whole, mut root) = started(&both, Without::Hold);
    let turns = || (0..10).flat_map(|n| [Act::Store(ALLOWED + 8 * n), Act::Store(DENIED + 8 * n)]);
    whole.does(turns());
    all_done(whole);
    let seen = told(whole);
    let domain_of = |page: u64| {
        let mut domains: Vec<u64> =
            seen.iter().filter(|told| told.exit.physical & !0xfff == page).map(|told| told.domain).collect();
        assert_eq!(domains.len(), 10);
        domains.dedup();
        assert_eq!(domains.len(), 1);
        domains[0]
    };
    assert_ne!(domain_of(ALLOWED), domain_of(DENIED));
    // One of them is lost: the other's events go on as before.
    whole.fate.set(Some((MONITOR, Fate::Crash)));
    whole.does(turns());
    reported(whole, &mut root);
    all_done(whole);
    assert_eq!(as_ordered(whole, 0), 40);
    let after = told(whole);
    assert!(after.iter().all(|told| told.exit.physical & !0xfff != DENIED || told.domain == domain_of(DENIED)));
}

#[test]
fn a_verdict_that_stops_ends_the_guest() {
    let (whole, mut root) = started(&[rules()], Without::Hold);
    whole.does([Act::Store(ALLOWED), Act::Store(STOPS), Act::Store(FREE)]);
    let reports = reported(whole, &mut root);
    assert!(reports.contains(&Report::GuestEnded { guest: 0, end: GuestEnd::Stopped(3) }), "{reports:?}");
    assert_eq!(whole.left(), 2, "it came to no other store, and this one has not happened");
    assert_eq!(as_ordered(whole, 0), 1);
}

#[test]
fn a_guest_goes_on_without_its_monitor_where_the_manifest_says_so() {
    let (whole, mut root) = started(&[rules()], Without::Allow);
    whole.does(stores(ALLOWED, 2));
    all_done(whole);
    // It dies four times, each with an event open: the last time nobody comes.
    for n in 1..=4 {
        whole.fate.set(Some((MONITOR, Fate::Crash)));
        whole.does([Act::Store(ALLOWED + 0x100 + 8 * n)]);
        reported(whole, &mut root);
        all_done(whole);
    }
    told(whole);
    whole.does(stores(ALLOWED + 0x200, 5).chain([Act::Store(DENIED), Act::Store(STOPS)]));
    all_done(whole);
    assert_eq!(told(whole), [], "nobody is asked");
    let stores = whole.stores.borrow()[0].clone();
    assert_eq!(stores.len(), 13);
    for (address, what) in stores {
        assert_eq!((what, whole.word(address)), (Stored::Done, Some(address)), "{address:#x}");
    }
}

#[test]
fn a_guest_that_starts_again_is_watched_again() {
    let (whole, mut root) = started(&[rules()], Without::Hold);
    whole.does(stores(ALLOWED, 2).chain([Act::Store(DENIED)]));
    all_done(whole);
    // PSCI 5.1.11: SYSTEM_RESET.
    whole.does([Act::Hypercall(0x8400_0009)]);
    assert!(reported(whole, &mut root).contains(&Report::GuestRebooted { guest: 0, times: 1 }));
    told(whole);
    whole.stores.take();
    whole.does(stores(ALLOWED, 2).chain([Act::Store(DENIED)]));
    all_done(whole);
    assert_eq!((as_ordered(whole, 0), told(whole).len()), (3, 3));
    // And when a server of its own is lost.
    whole.fate.set(Some((1, Fate::Crash)));
    whole.does([Act::Store(ALLOWED + 0x80)]);
    assert!(reported(whole, &mut root).contains(&Report::GuestRebooted { guest: 0, times: 2 }));
    whole.forget();
    told(whole);
    whole.does(stores(ALLOWED + 0x100, 2).chain([Act::Store(DENIED)]));
    all_done(whole);
    whole.lawful();
    assert_eq!(told(whole).len(), whole.stores.borrow()[0].len());
}
