// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of a watched guest: the real root, p2m, vcpu and monitors through the real kernel, on two CPUs.

use trellis_idl::kernel::{Access, Answer, ExitHeader, Op, Refusal, VcpuRegister, WORDS};
use trellis_idl::layout::watched;
use trellis_idl::plan::{OnReset, RulePlan, RuleVerdict, Without};
use trellis_idl::wire::{GuestEnd, P2mOp, Report, from_answer};
use trellis_root::Root;
use trellis_runtime::System;
use trellis_walks::body::Body;
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

/// What root tells the host next.
fn reported(whole: &'static Whole, root: &mut Root<'static, Sight<'static>>) -> Vec<Report> {
    whole.told_by(root, 8)
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

#[test]
fn what_is_only_reported_happens_at_once_and_is_read_by_whoever_watches_then() {
    let (whole, mut root) = started(&[vec![rule(ALLOWED, RuleVerdict::Report), rule(DENIED, RuleVerdict::Deny)]], Without::Hold);
    whole.does([Act::Hypercall(PSCI_VERSION)]);
    whole.does(stores(ALLOWED, 20));
    all_done(whole);
    assert_eq!(as_ordered(whole, 0), 20);
    let asked = told(whole);
    assert!(asked.is_empty(), "nobody was asked: {asked:x?}");
    assert_eq!(whole.count(0), [20, 20, 0, 0, 0]);
    // More than a ring holds, while nobody reads: the monitor hangs over an event of another rule.
    whole.fate.set(Some((MONITOR, Fate::Crash)));
    whole.does([Act::Store(DENIED)]);
    reported(whole, &mut root);
    whole.does(stores(ALLOWED + 0x400, 5));
    all_done(whole);
    assert_eq!(as_ordered(whole, 0), 26);
    // The next one did not get what the lost one knew, but all that was said since.
    assert_eq!(whole.count(0), [5, 5, 0, 0, 0]);
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

/// What p2m says to a call by the first monitor, from this CPU's thread.
fn p2m(body: &Body, thread: u64, op: P2mOp, given: [u64; 3]) -> Result<(), Refusal> {
    let mut words = [0; WORDS];
    words[0] = op as u64;
    words[1..4].copy_from_slice(&given);
    body.call(watched::p2m(0, thread), words).and_then(|answer| from_answer(answer[0]))
}

/// A monitor that serves an event of vCPU 0 tries what it may not, one thing after the other.
fn misdeeds(body: &Body) {
    let no = |op: Op, given: [u64; 4], why: Refusal| {
        let a = [given[0], given[1], given[2], given[3], 0, 0];
        assert_eq!(body.invoke(op, a), Err(why), "{op:?} {given:?}");
    };
    // Answers that nobody may give: unknown bits, views that are not there, contradictions.
    for bits in [1 << 7, 1 << 16, 1 << 32, u64::MAX >> 1, Answer::REPORT.0, Answer::STOP.0 | Answer::STEP.0] {
        no(Op::ReplyAndWait, [bits, 0, 0, 0], Refusal::BadArgument);
    }
    no(Op::ReplyAndWait, [Answer::RETRY.step(3).0, 0, 0, 0], Refusal::NotMapped);
    for view in [4, 511, 512, u16::MAX] {
        no(Op::ReplyAndWait, [Answer::RETRY.step(view).0, 0, 0, 0], Refusal::OutOfRange);
    }
    // Handing the event on: to a lower rank, to nothing.
    no(Op::Forward, [watched::p2m(0, 0), 0, 0, 0], Refusal::Order);
    no(Op::Forward, [watched::guest(0), 0, 0, 0], Refusal::WrongKind);
    no(Op::Forward, [watched::p2m(1, 0), 0, 0, 0], Refusal::NoCapability);
    // It reads registers and memory, and changes neither; it starts and stops nobody.
    let (vcpu, guest) = (watched::vcpu(0, 0), watched::guest(0));
    assert!(body.invoke(Op::VcpuGet, [vcpu, VcpuRegister::Pc as u64, 0, 0, 0, 0]).is_ok());
    no(Op::VcpuSet, [vcpu, VcpuRegister::Pc as u64, 0x1000, 0], Refusal::MissingRight);
    no(Op::VcpuSet, [vcpu, VcpuRegister::Pstate as u64, 9, 0], Refusal::MissingRight);
    for op in [Op::VcpuStart, Op::VcpuStop, Op::VcpuReset] {
        no(op, [vcpu, 0, 0, 0], Refusal::MissingRight);
    }
    assert!(body.read_guest(guest, ENTRY, &mut [0; 16]).is_ok());
    assert_eq!(body.write_guest(guest, ENTRY, &[0; 16]), Err(Refusal::MissingRight));
    no(Op::ViewSwitch, [guest, 0, 0, 0], Refusal::MissingRight);
    no(Op::GuestUnmap, [guest, ALLOWED / 4096, 1, 0], Refusal::MissingRight);
    no(Op::SessionCreate, [guest, 0, 900, 0], Refusal::MissingRight);
    // Nothing of other guests, or of itself.
    for slot in [watched::guest(1), watched::vcpu(1, 0), watched::vcpu(0, 2), 8, 9, u64::MAX] {
        no(Op::VcpuGet, [slot, 0, 0, 0], Refusal::NoCapability);
    }
    // p2m: view 0, views that are not its own, another's pages, what only root asks, and the wrong CPU.
    let at = |view: u64, address: u64| view << 48 | address / 4096;
    assert_eq!(p2m(body, 0, P2mOp::Watch, [at(0, FREE), 1, 0]), Err(Refusal::MissingRight));
    assert_eq!(p2m(body, 0, P2mOp::Watch, [at(2, FREE), 1, 0]), Err(Refusal::MissingRight));
    assert_eq!(p2m(body, 0, P2mOp::Watch, [at(1, DENIED), 1, 7]), Err(Refusal::Occupied));
    assert_eq!(p2m(body, 0, P2mOp::Watch, [at(1, BASE - 4096), 1, 0]), Err(Refusal::OutOfRange));
    assert_eq!(p2m(body, 0, P2mOp::WatchEnter, [u64::MAX, 0, 0]), Err(Refusal::Occupied));
    for op in [P2mOp::ViewSwitch, P2mOp::ViewDestroy, P2mOp::Reset, P2mOp::Protect, P2mOp::Withdraw] {
        assert_eq!(p2m(body, 0, op, [1, 0, 0]), Err(Refusal::MissingRight), "{op:?}");
    }
    assert_eq!(p2m(body, 1, P2mOp::Ready, [0; 3]), Err(Refusal::WrongCpu));
    // A flood: each is answered, none is remembered.
    for n in 0..2000 {
        let _ = p2m(body, 0, P2mOp::Watch, [at(1, FREE + (n % 700) * 8192), 1, n % 8]);
        let _ = p2m(body, 0, P2mOp::WatchJoin, [n % 9, 0, 0]);
    }
}

#[test]
fn a_hostile_monitor_is_refused_with_a_reason_and_disturbs_nobody() {
    let both = [vec![rule(ALLOWED, RuleVerdict::Allow)], vec![rule(DENIED, RuleVerdict::Deny)]];
    let (whole, mut root) = started(&both, Without::Hold);
    whole.does([second(), Act::Store(DENIED)]);
    all_done(whole);
    *whole.misdeeds.borrow_mut() = Some(Box::new(misdeeds));
    whole.fate.set(Some((MONITOR, Fate::Misbehave)));
    whole.does([Act::Store(ALLOWED)]);
    whole.does_on(1, stores(DENIED + 0x100, 10));
    reported(whole, &mut root);
    whole.does(stores(ALLOWED + 0x80, 3).chain(stores(DENIED, 3)).chain(stores(FREE, 3)));
    all_done(whole);
    assert_eq!((as_ordered(whole, 0), as_ordered(whole, 1)), (11, 10), "the other monitor and the other vCPU go on");
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % end
    }
}

#[test]
fn whenever_a_monitor_is_lost_each_event_has_one_effect_and_none_is_forgotten() {
    let (whole, mut root) = started(&[rules()], Without::Hold);
    whole.does([second()]);
    all_done(whole);
    let rounds = std::env::var("TRELLIS_WATCH").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    let mut numbers = Numbers(1);
    for round in 0..rounds {
        let mut wanted = [Vec::new(), Vec::new()];
        for (cpu, wanted) in (0..2).zip(&mut wanted) {
            for n in 0..1 + numbers.below(6) {
                // Each other than the one before.
                let page = [ALLOWED, DENIED, FREE][numbers.below(3) as usize];
                let address = page + u64::from(cpu) * 0x800 + 8 * (round * 8 + n) % 0x800;
                whole.does_on(cpu, [Act::Store(address)]);
                wanted.push(address);
            }
        }
        let events = |list: &[u64]| list.iter().filter(|at| **at & !0xfff != FREE).copied().collect::<Vec<_>>();
        let any: usize = wanted.iter().map(|list| events(list).len()).sum();
        let fate = [None, Some(Fate::Crash), Some(Fate::Hang)][numbers.below(3) as usize].filter(|_| any > 0);
        whole.fate.set(fate.map(|fate| (MONITOR, fate)));
        if fate.is_some() {
            reported(whole, &mut root);
        }
        all_done(whole);
        let told = told(whole);
        for (vcpu, wanted) in wanted.iter().enumerate() {
            let of_it = told.iter().filter(|told| told.vcpu == vcpu).map(|told| told.exit.physical);
            let mut asked: Vec<u64> = of_it.collect();
            asked.dedup();
            assert_eq!(asked, events(wanted), "round {round}, {fate:?}");
            let done: Vec<u64> = whole.stores.borrow()[vcpu].iter().map(|(address, _)| *address).collect();
            assert_eq!(done, *wanted);
            as_ordered(whole, vcpu as u16);
        }
        assert!(told.len() <= any + if fate.is_some() { 2 } else { 0 }, "round {round}: an event was asked about twice");
        whole.forget();
        // Deaths of long ago do not count.
        whole.later(120);
    }
}
