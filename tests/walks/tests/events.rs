// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of a guest whose processor is watched: the real root, vcpu and monitors through the real kernel, on two CPUs.

use trellis_core::machine::VcpuContext;
use trellis_idl::event::{EventKind, REQUEST};
use trellis_idl::kernel::{Access, Exit, ExitClass, ExitHeader, Traps, VcpuRegister, WORDS};
use trellis_idl::plan::{EventPlan, OnReset, RulePlan, RuleVerdict, Without};
use trellis_idl::wire::{GuestEnd, Report};
use trellis_root::Root;
use trellis_walks::whole::{Act, BASE, ENTRY, Fate, Sight, Told, Whole, watched_plan};

const CPU_ON: u64 = 0xc400_0003;
const PSCI_VERSION: u64 = 0x8400_0000;
/// Rank of monitors.
const MONITOR: u8 = 3;
const PAGE: u64 = BASE + (2 << 20) + 0x3000;
/// `msr ttbr0_el1, x9`, `msr contextidr_el1, x9`, `mrs x9, id_aa64pfr0_el1`, `brk #0x77`.
const WRITE_TABLES: u64 = 0x6230_0920;
const WRITE_CONTEXT: u64 = 0x62 << 24 | 3 << 20 | 1 << 17 | 13 << 10 | 9 << 5;
const READ_IDENTITY: u64 = 0x6230_0129;
const BREAKPOINT: u64 = 0x3c << 26 | 1 << 25 | 0x77;

fn event(kind: EventKind, verdict: RuleVerdict) -> EventPlan {
    EventPlan { guest: 0, kind, only_changes: kind == EventKind::Tables0, ignored: 0xffff << 48, verdict, log: true }
}

type Rules = (Vec<RulePlan>, Vec<EventPlan>);

fn started(monitors: &[Rules], without: Without) -> (&'static Whole, Root<'static, Sight<'static>>) {
    let whole = Whole::hearing(monitors);
    let pages: Vec<_> = monitors.iter().map(|(pages, _)| pages.clone()).collect();
    let root = whole.root(watched_plan(OnReset::Reboot, without, &pages));
    assert!(matches!(whole.reports()[..], [Report::Started { .. }]));
    whole.lawful();
    // What its servers need is there before it is looked at.
    whole.does([Act::Hypercall(PSCI_VERSION)]);
    all_done(whole);
    whole.told.take();
    (whole, root)
}

fn one(events: &[EventPlan]) -> (&'static Whole, Root<'static, Sight<'static>>) {
    started(&[(Vec::new(), events.to_vec())], Without::Hold)
}

fn all_done(whole: &'static Whole) {
    for _ in 0..100 {
        if whole.left() == 0 {
            whole.go_on();
            return whole.lawful();
        }
        whole.go_on();
    }
    panic!("{} acts are left", whole.left());
}

/// What root tells the host next.
fn reported(whole: &'static Whole, root: &mut Root<'static, Sight<'static>>) -> Vec<Report> {
    whole.told_by(root, 8)
}

fn stop(class: ExitClass, syndrome: u64, value: u64, general: [u64; 4]) -> Act {
    let header = ExitHeader(if class == ExitClass::Hypercall { 0 } else { 4 << 48 });
    Act::Stop(class, Exit { header, syndrome, value, general, ..Exit::default() }.to_words())
}

fn write(syndrome: u64, value: u64) -> Act {
    stop(ExitClass::Register, syndrome, value, [0; 4])
}

fn smc(x: [u64; 4]) -> Act {
    stop(ExitClass::Firmware, 0x17 << 26 | 1 << 25, 0, x)
}

fn hvc(x: [u64; 4]) -> Act {
    stop(ExitClass::Hypercall, 0x16 << 26 | 1 << 25, 0, x)
}

fn kinds(whole: &Whole) -> Vec<(usize, EventKind)> {
    let kind = |told: Told| (told.vcpu, EventKind::of_note(told.exit.physical).expect("an event"));
    whole.told.take().into_iter().map(kind).collect()
}

/// A register of the vCPU of a CPU, as it is while nobody moves.
fn register(whole: &Whole, cpu: u16, number: u64) -> u64 {
    let hosted = whole.hosted.borrow();
    let vcpus = &hosted.cpus[usize::from(cpu)].local.vcpus;
    let index = vcpus.names().next().expect("a vCPU").index() as u16;
    vcpus.at(index).context.get(number).expect("a register")
}

#[test]
fn each_kind_is_asked_about_and_what_is_allowed_is_done() {
    let asked = EventKind::ALL.into_iter().filter(|kind| !kind.is_only_told());
    let all: Vec<_> = asked.map(|kind| event(kind, RuleVerdict::Allow)).collect();
    let (whole, _root) = one(&all);
    whole.does([
        write(WRITE_TABLES, 0x4000_1000), write(WRITE_CONTEXT, 7), stop(ExitClass::Register, READ_IDENTITY, 0, [0; 4]),
        smc([PSCI_VERSION, 0, 0, 0]),
    ]);
    all_done(whole);
    assert_eq!(register(whole, 0, 0), 0x1_0001, "PSCI goes on by SMC");
    whole.does([hvc([REQUEST, 1, 2, 3])]);
    all_done(whole);
    assert_eq!(register(whole, 0, 0), 0);
    whole.does([stop(ExitClass::Debug, BREAKPOINT, 0, [0; 4]), hvc([CPU_ON, 1, ENTRY, 0]), hvc([PSCI_VERSION, 0, 0, 0])]);
    all_done(whole);
    let expected = [
        EventKind::Tables0, EventKind::Context, EventKind::Identity, EventKind::Firmware, EventKind::Request, EventKind::Breakpoint,
        EventKind::Power, EventKind::Hypercall,
    ];
    assert_eq!(kinds(whole), expected.map(|kind| (0, kind)));
    let is = |register_of: VcpuRegister| register(whole, 0, register_of as u64);
    assert_eq!((is(VcpuRegister::Ttbr0El1), is(VcpuRegister::ContextidrEl1), is(VcpuRegister::EsrEl1)), (0x4000_1000, 7, BREAKPOINT));
    assert!(whole.hosted.borrow().cpus[1].local.vcpus.names().next().is_some_and(|id| {
        let hosted = whole.hosted.borrow();
        hosted.cpus[1].local.vcpus.at(id.index() as u16).context.traps == Traps::ALL
    }), "the other vCPU tells of itself from its first instruction");
}

#[test]
fn only_what_is_of_interest_is_a_message() {
    let (whole, _root) = one(&[event(EventKind::Tables0, RuleVerdict::Allow), event(EventKind::Request, RuleVerdict::Allow)]);
    let asid = |n: u64| 0x4000_1000 | n << 48;
    whole.does([write(WRITE_TABLES, asid(0))]);
    whole.does((1..50).map(|n| write(WRITE_TABLES, asid(n))));
    whole.does((0..10).map(|_| write(WRITE_TABLES, asid(49))));
    whole.does([write(WRITE_CONTEXT, 5), smc([PSCI_VERSION, 0, 0, 0]), hvc([PSCI_VERSION, 0, 0, 0]), write(WRITE_TABLES, 0x4000_2000)]);
    all_done(whole);
    assert_eq!(kinds(whole), [(0, EventKind::Tables0); 2]);
    assert_eq!(register(whole, 0, VcpuRegister::ContextidrEl1 as u64), 5);
    assert_eq!(register(whole, 0, VcpuRegister::Ttbr0El1 as u64), 0x4000_2000);
}

#[test]
fn what_is_denied_does_not_happen_and_a_fault_is_the_guests() {
    let events = [
        event(EventKind::Context, RuleVerdict::Deny), event(EventKind::Firmware, RuleVerdict::Deny), event(EventKind::Request, RuleVerdict::Fault),
        event(EventKind::Power, RuleVerdict::Deny),
    ];
    let (whole, _root) = one(&events);
    whole.does([write(WRITE_CONTEXT, 5), hvc([CPU_ON, 1, ENTRY, 0])]);
    all_done(whole);
    assert_eq!(register(whole, 0, VcpuRegister::ContextidrEl1 as u64), 0);
    assert_eq!(register(whole, 0, 0), u64::MAX, "such a call does not exist");
    whole.does([smc([PSCI_VERSION, 0, 0, 0])]);
    all_done(whole);
    assert_eq!(register(whole, 0, 0), u64::MAX);
    let before = register(whole, 0, VcpuRegister::Pc as u64);
    whole.does([hvc([REQUEST, 0, 0, 0])]);
    all_done(whole);
    let is = |of: VcpuRegister| register(whole, 0, of as u64);
    assert_eq!((is(VcpuRegister::EsrEl1), is(VcpuRegister::ElrEl1)), (1 << 25, before.wrapping_sub(4)), "an undefined instruction");
}

#[test]
fn a_kind_that_stops_ends_the_guest() {
    let (whole, mut root) = one(&[event(EventKind::Tables0, RuleVerdict::Stop)]);
    whole.does([write(WRITE_TABLES, 0x4000_1000), Act::Write(PAGE)]);
    let reports = reported(whole, &mut root);
    assert!(reports.contains(&Report::GuestEnded { guest: 0, end: GuestEnd::Stopped(3) }), "{reports:?}");
    assert_eq!(whole.left(), 1);
}

#[test]
fn an_event_that_a_lost_monitor_has_not_answered_is_the_next_ones() {
    for fate in [Fate::Crash, Fate::Hang] {
        let (whole, mut root) = one(&[event(EventKind::Tables0, RuleVerdict::Allow), event(EventKind::Power, RuleVerdict::Allow)]);
        whole.fate.set(Some((MONITOR, fate)));
        whole.does([write(WRITE_TABLES, 0x4000_1000), hvc([CPU_ON, 1, ENTRY, 0])]);
        whole.does_on(1, [write(WRITE_TABLES, 0x4000_5000)]);
        reported(whole, &mut root);
        all_done(whole);
        let told = whole.told.take();
        assert_eq!(told.len(), 4, "{fate:?}: the first comes twice: {told:?}");
        assert_eq!(told[0].exit, told[1].exit, "with the same words");
        assert!(told[0].domain != told[1].domain);
        let of = |cpu| register(whole, cpu, VcpuRegister::Ttbr0El1 as u64);
        assert_eq!((of(0), of(1)), (0x4000_1000, 0x4000_5000));
        assert_eq!(register(whole, 0, 0), 0, "CPU_ON was done once");
    }
}

#[test]
fn vcpus_that_start_and_stop_are_told_of_from_the_guests_first_instruction_on() {
    let (whole, mut root) = one(&[event(EventKind::Start, RuleVerdict::Report), event(EventKind::Stop, RuleVerdict::Report)]);
    assert_eq!((whole.count(0), whole.count(1)), ([1, 1, 0, 0, 0], [0; 5]), "the first vCPU");
    // The second begins, and goes off by itself; then the first switches the guest off.
    whole.does([hvc([CPU_ON, 1, ENTRY, 0])]);
    all_done(whole);
    assert_eq!(whole.count(0), [2, 2, 0, 0, 0]);
    whole.does_on(1, [hvc([0x8400_0002, 0, 0, 0])]);
    all_done(whole);
    assert_eq!(whole.count(1), [1, 1, 0, 0, 0]);
    whole.does([hvc([0x8400_0008, 0, 0, 0])]);
    reported(whole, &mut root);
    whole.go_on();
    assert_eq!(whole.count(1), [2, 2, 0, 0, 0], "one was off already");
    assert_eq!(kinds(whole), [], "nobody was asked");
}

#[test]
fn two_monitors_hear_each_its_own_kinds() {
    let rules = |kind| (Vec::new(), vec![event(kind, RuleVerdict::Allow)]);
    let (whole, _root) = started(&[rules(EventKind::Tables0), rules(EventKind::Firmware)], Without::Hold);
    whole.does([write(WRITE_TABLES, 0x4000_1000), smc([PSCI_VERSION, 0, 0, 0]), write(WRITE_TABLES, 0x4000_2000)]);
    all_done(whole);
    let told = whole.told.take();
    let domains: Vec<_> = told.iter().map(|told| told.domain).collect();
    assert!(domains.len() == 3 && domains[0] == domains[2] && domains[0] != domains[1]);
}

#[test]
fn without_its_monitor_a_guest_goes_on_as_if_nobody_had_heard() {
    let page = RulePlan { guest: 0, first: PAGE / 4096, pages: 1, access: Access::WRITE.0 as u8, verdict: RuleVerdict::Allow, log: false };
    let events = vec![event(EventKind::Context, RuleVerdict::Deny), event(EventKind::Firmware, RuleVerdict::Allow)];
    let (whole, mut root) = started(&[(vec![page], events)], Without::Allow);
    for n in 1..=4 {
        whole.fate.set(Some((MONITOR, Fate::Crash)));
        whole.does([write(WRITE_CONTEXT, n)]);
        reported(whole, &mut root);
        all_done(whole);
    }
    // Whether the next monitor came before the vcpu server asked again was a matter of time; the last time there was none.
    assert_eq!(register(whole, 0, VcpuRegister::ContextidrEl1 as u64), 4, "nobody is asked, and nobody denies");
    whole.told.take();
    whole.does([write(WRITE_CONTEXT, 77), smc([PSCI_VERSION, 0, 0, 0])]);
    all_done(whole);
    assert_eq!(whole.told.take(), []);
    assert_eq!((register(whole, 0, VcpuRegister::ContextidrEl1 as u64), register(whole, 0, 0)), (77, 0x1_0001));
}

#[test]
fn a_guest_that_starts_again_is_heard_again() {
    let (whole, mut root) = one(&[event(EventKind::Tables0, RuleVerdict::Allow)]);
    // PSCI 5.1.11: SYSTEM_RESET.
    whole.does([Act::Hypercall(0x8400_0009)]);
    assert!(reported(whole, &mut root).contains(&Report::GuestRebooted { guest: 0, times: 1 }));
    whole.does([write(WRITE_TABLES, 0x4000_1000)]);
    all_done(whole);
    assert_eq!(kinds(whole), [(0, EventKind::Tables0)]);
    // And when the server that told of it is lost.
    whole.fate.set(Some((2, Fate::Crash)));
    whole.does([Act::Hypercall(PSCI_VERSION)]);
    assert!(reported(whole, &mut root).contains(&Report::GuestRebooted { guest: 0, times: 2 }));
    whole.forget();
    whole.does([write(WRITE_TABLES, 0x4000_3000)]);
    all_done(whole);
    assert_eq!(kinds(whole), [(0, EventKind::Tables0)]);
}

/// Words that no exit of this guest has had are refused or change nothing but this guest.
#[test]
fn forged_words_of_events_disturb_nobody() {
    let (whole, mut root) = one(&[event(EventKind::Tables0, RuleVerdict::Allow)]);
    *whole.misdeeds.borrow_mut() = Some(Box::new(|body| {
        use trellis_idl::layout::watched;
        use trellis_idl::wire::VcpuOp;
        use trellis_runtime::System;
        let portal = watched::vcpu_server(0, 0);
        for class in 0..16 {
            for which in [0, 1, 1 << 8, 2 << 8, 3 << 8, 4 << 8, 2, 255, u64::MAX] {
                let mut words: [u64; WORDS] = [VcpuOp::Complete as u64, which, u64::MAX, class << 20 | which, class, u64::MAX, u64::MAX, 0, 0, 0];
                let _ = body.call(portal, words);
                words[5] = BREAKPOINT;
                let _ = body.call(portal, words);
            }
        }
        for kinds in [0, 1 << 13, 1 << 15, u64::MAX, 0x1fff, 2] {
            let _ = body.call(portal, [VcpuOp::Listen as u64, kinds, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }));
    whole.fate.set(Some((MONITOR, Fate::Misbehave)));
    whole.does([write(WRITE_TABLES, 0x4000_1000)]);
    reported(whole, &mut root);
    whole.go_on();
    whole.lawful();
}
