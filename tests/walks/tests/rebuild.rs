// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server is lost in the middle of an exit: the real root makes it again with its guest, through the real kernel.

use trellis_idl::kernel::ExitClass;
use trellis_idl::plan::OnReset;
use trellis_idl::wire::{GuestEnd, Report};
use trellis_root::Root;
use trellis_walks::whole::{Act, BASE, Fate, Sight, Whole, plan};

/// PSCI 5.1: PSCI_VERSION.
const PSCI_VERSION: u64 = 0x8400_0000;
/// A page that is not in the block that the image was loaded into.
const FAR: u64 = BASE + (2 << 20) + 0x3000;
/// Ranks of the two servers.
const P2M: u8 = 1;
const VCPU: u8 = 2;

/// Everything that can be used up.
fn counts(whole: &Whole) -> impl PartialEq + std::fmt::Debug + use<> {
    let hosted = whole.hosted.borrow();
    let control = hosted.shared.control.lock();
    let shared = (control.domains.free(), control.guests.free(), control.runs.pool.free(), control.tags);
    let gaps: u32 = control.slots.free().iter().map(|gap| gap.count).sum();
    let local = |cpu: &trellis_hosted::hosted::Cpu| {
        (cpu.local.threads.free(), cpu.local.vcpus.free(), cpu.local.portals.free())
    };
    (shared, gaps, hosted.cpus.iter().map(local).collect::<Vec<_>>())
}

/// What root tells the host next.
fn told(whole: &'static Whole, root: &mut Root<'static, Sight<'static>>) -> Vec<Report> {
    whole.told_by(root, 4)
}

#[test]
fn a_guest_whose_servers_crash_or_hang_starts_again_until_that_happens_too_often() {
    let whole = Whole::new();
    let mut root = whole.root(plan(OnReset::Reboot));
    assert!(matches!(whole.reports()[..], [Report::Started { .. }]));
    whole.lawful();
    let before = counts(whole);
    for (times, (rank, fate)) in (1..).zip([(VCPU, Fate::Crash), (P2M, Fate::Hang), (VCPU, Fate::Hang)]) {
        // It lives: its first touch of a page gives it a frame, and a call is answered.
        whole.does([Act::Write(FAR), Act::Hypercall(PSCI_VERSION)]);
        whole.does(match rank {
            P2M => [Act::Write(FAR + (1 << 12)), Act::Hypercall(PSCI_VERSION)],
            _ => [Act::Hypercall(PSCI_VERSION), Act::Hypercall(PSCI_VERSION)],
        });
        whole.fate.set(Some((rank, fate)));
        let seen = told(whole, &mut root);
        match (fate, &seen[0]) {
            (Fate::Crash, Report::ServerFaulted { server, record }) => {
                assert_eq!((*server, record.syndrome, record.address), (rank, 0x9200_0046, 0xdead));
            }
            (Fate::Hang, Report::ServerLate { server, exit }) => {
                let class = if rank == P2M { ExitClass::Memory } else { ExitClass::Hypercall };
                assert_eq!((*server, *exit), (rank, Some((0, class as u8))));
            }
            _ => panic!("{seen:?}"),
        }
        assert_eq!(seen[1..], [Report::GuestRebooted { guest: 0, times }]);
        whole.lawful();
        assert_eq!(counts(whole), before, "death {times}");
    }
    whole.fate.set(Some((VCPU, Fate::Crash)));
    whole.does([Act::Hypercall(PSCI_VERSION)]);
    let seen = told(whole, &mut root);
    let ended = Report::GuestEnded { guest: 0, end: GuestEnd::Server(2) };
    assert_eq!(seen[1..], [ended, Report::Off { well: false }], "{seen:?}");
    assert_eq!(whole.hosted.borrow().board.borrow().power, Some(false));
    whole.lawful();
}

/// What its threads keep floating-point registers in comes back with everything else when a server dies.
#[test]
fn a_server_with_floating_point_is_made_again_with_it() {
    let whole = Whole::new();
    let mut plan = plan(OnReset::Reboot);
    plan.servers.iter_mut().for_each(|server| server.float = true);
    let mut root = whole.root(plan);
    whole.reports();
    let areas = || {
        let hosted = whole.hosted.borrow();
        let of = |cpu: &trellis_hosted::hosted::Cpu| {
            let area = |id: trellis_core::pool::Id<_>| cpu.local.threads.at(id.index() as u16).float.area;
            cpu.local.threads.names().map(area).filter(|area| *area != 0).collect::<Vec<_>>()
        };
        let mut areas: Vec<_> = hosted.cpus.iter().flat_map(of).collect();
        areas.sort_unstable();
        areas
    };
    let (before, counted) = (areas(), counts(whole));
    // The console's, three of p2m, four of vcpu; not root's.
    assert_eq!(before.len(), 8);
    assert!(before.windows(2).all(|pair| pair[0] != pair[1]));
    for (rank, fate) in [(VCPU, Fate::Crash), (P2M, Fate::Hang)] {
        whole.fate.set(Some((rank, fate)));
        whole.does([Act::Write(FAR), Act::Hypercall(PSCI_VERSION)]);
        let seen = told(whole, &mut root);
        assert!(matches!(seen[1..], [Report::GuestRebooted { .. }]), "{seen:?}");
        whole.lawful();
        assert_eq!(areas(), before);
    }
    assert_eq!(counts(whole), counted);
}

#[test]
fn a_guest_that_started_again_has_clean_memory_and_lives_as_before() {
    let whole = Whole::new();
    let mut root = whole.root(plan(OnReset::Reboot));
    whole.reports();
    let page = || {
        let hosted = whole.hosted.borrow();
        let space = hosted.shared.guests.iter().map(|guest| guest.lock().space).find(|space| space.root != 0);
        let leaf = space.and_then(|space| hosted.board.borrow().walk(space.root, FAR / 4096));
        leaf.map(|leaf| hosted.board.borrow().is_clean(leaf.page))
    };
    whole.fate.set(Some((VCPU, Fate::Hang)));
    whole.does([Act::Write(FAR), Act::Hypercall(PSCI_VERSION)]);
    assert!(matches!(told(whole, &mut root)[..], [Report::ServerLate { .. }, Report::GuestRebooted { .. }]));
    assert_eq!(page(), None, "the page is not mapped any more");
    // It begins where it began at first, a call is answered, and its page comes back clean.
    whole.found.take();
    whole.does([Act::Hypercall(PSCI_VERSION), Act::Write(FAR), Act::Hypercall(PSCI_VERSION)]);
    whole.fate.set(Some((P2M, Fate::Crash)));
    assert!(matches!(told(whole, &mut root)[..], [Report::ServerFaulted { .. }, Report::GuestRebooted { times: 2, .. }]));
    assert_eq!(whole.found.take(), [BASE, 0x1_0001], "x0 at the entry, and the version");
    assert_eq!(page(), None);
    whole.fate.set(Some((VCPU, Fate::Crash)));
    told(whole, &mut root);
    assert_eq!(whole.left(), 0);
    whole.lawful();
}

#[test]
fn a_guest_that_shall_not_start_again_ends_and_nothing_of_its_servers_runs_on() {
    let whole = Whole::new();
    let mut root = whole.root(plan(OnReset::End));
    whole.reports();
    whole.fate.set(Some((P2M, Fate::Hang)));
    whole.does([Act::Write(FAR)]);
    let seen = told(whole, &mut root);
    let ended = Report::GuestEnded { guest: 0, end: GuestEnd::Server(1) };
    assert_eq!(seen[1..], [ended, Report::Off { well: false }], "{seen:?}");
    let hosted = whole.hosted.borrow();
    let threads: usize = hosted.cpus.iter().map(|cpu| cpu.local.threads.names().count()).sum();
    assert_eq!(threads, 2, "root and console");
}
