// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small system to begin a story with: root, an inner server (rank 1), an outer one (rank 2), a client (rank 3) and a
//! guest with one vCPU whose memory exits go to the inner server and all others to the outer one.

use crate::hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{EXIT_CLASSES, ExitClass, Groups, Inside, Kind, Op, PASSIVE, Refusal, Rights, Seat};
use trellis_idl::layout::root_slot;

/// First free slot of root's.
const FIRST: u64 = root_slot::FREE;

/// Slots of root's in which the small system's capabilities are.
pub mod slot {
    use super::FIRST;
    /// Domains: inner, outer, client.
    pub const DOMAINS: [u64; 3] = [FIRST + 3, FIRST + 4, FIRST + 5];
    /// Threads of them.
    pub const THREADS: [u64; 3] = [FIRST + 6, FIRST + 7, FIRST + 8];
    /// Portals to the two servers.
    pub const PORTALS: [u64; 2] = [FIRST + 9, FIRST + 10];
    /// Memory for the guest: 1024 pages, aligned to 2 MiB.
    pub const MEMORY: u64 = FIRST + 11;
    /// The guest.
    pub const GUEST: u64 = FIRST + 13;
    /// Its vCPU.
    pub const VCPU: u64 = FIRST + 14;
    /// Signals to root (bits 1) and to the client (bits 2).
    pub const SIGNALS: [u64; 2] = [FIRST + 15, FIRST + 16];
    /// Message buffers: one run of four pages.
    pub const BUFFERS: u64 = FIRST + 17;
    /// The guest's memory again, to be read only.
    pub const READ_ONLY: u64 = FIRST + 18;
    /// The guest's first session: its memory exits may be forwarded there.
    pub const SESSION: u64 = FIRST + 19;
    /// First slot that stories use.
    pub const FREE: u64 = FIRST + 24;
}

/// Slots in the tables of the three domains. Those that real servers know are where `trellis_idl::layout` has them.
pub mod inner_slot {
    use trellis_idl::layout::slot;
    /// Portal to the inner server (outer and client have it).
    pub const INNER: u64 = 20;
    /// Portal to the outer server (inner and client have it).
    pub const OUTER: u64 = 21;
    /// The guest.
    pub const GUEST: u64 = slot::GUEST;
    /// Its memory.
    pub const MEMORY: u64 = slot::MEMORY;
    /// The vCPU.
    pub const VCPU: u64 = slot::VCPU;
    /// The guest's first session.
    pub const SESSION: u64 = 22;
    /// The signal to root.
    pub const ROOT: u64 = slot::ROOT;
}

/// Indices of threads on CPU 0: root, inner, outer, client.
pub const ROOT: u16 = 0;
/// The inner server's thread.
pub const INNER: u16 = 1;
/// The outer server's.
pub const OUTER: u16 = 2;
/// The client's.
pub const CLIENT: u16 = 3;
/// First guest page of the guest's memory.
pub const GUEST_PAGE: u64 = 0x4_0000;
/// Views that the guest may have.
pub const VIEWS: u64 = 5;
/// Where message buffers are mapped.
pub const BUFFER: u64 = 0x2800_0000;
/// Priority of the client.
pub const CLIENT_PRIORITY: u64 = 100;
/// Priority of the vCPU.
pub const VCPU_PRIORITY: u64 = 50;
/// The badge of exits.
pub const EXIT_BADGE: u64 = 7;
/// Badges of the portals.
pub const PORTAL_BADGES: [u64; 2] = [0x11, 0x22];

/// Operations that are done piece by piece: as long as they give back 1 they are asked for again.
const PIECEWISE: [Op; 4] = [Op::FramesReclaim, Op::DomainDestroy, Op::GuestDestroy, Op::Revoke];

/// Does an operation of root's that must succeed, to its end.
pub fn must(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> [u64; 3] {
    if PIECEWISE.contains(&op) {
        pieces(hosted, op, a);
        return [0; 3];
    }
    hosted.invoke(0, op, a).unwrap_or_else(|refusal| panic!("{op:?} {a:x?}: {refusal:?}"))
}

/// Does an operation of root's that may be another CPU's: root sleeps meanwhile.
pub fn anywhere(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
    loop {
        if hosted.syscall(0, op as u16, a, [0; 10]) != Now::Thread(ROOT) {
            hosted.deliver_kicks();
            assert_eq!(hosted.now(0), Now::Thread(ROOT), "{op:?} was meant to come back");
        }
        let [x0, x1, x2] = hosted.registers(0).x;
        match Refusal::from_register(x0) {
            // A slot that was emptied just now: the CPUs that were kicked must say that they have left the kernel.
            Err(Refusal::Again) => hosted.deliver_kicks(),
            result => return result.map(|x0| [x0, x1, x2]),
        }
    }
}

/// Does an operation that is done piece by piece, to its end. Says how many pieces there were.
pub fn pieces(hosted: &mut Hosted, op: Op, mut a: [u64; 6]) -> usize {
    for count in 1.. {
        match anywhere(hosted, op, a) {
            Ok([0, ..]) => return count,
            Ok([_, mark, _]) if op == Op::Revoke => a[1] = mark,
            Ok(_) => {}
            Err(refusal) => panic!("{op:?} {a:x?}: {refusal:?}"),
        }
        hosted.deliver_kicks();
        assert!(count < 10_000, "{op:?} {a:x?} has no end");
    }
    0
}

/// Takes pages off root's memory.
pub fn split(hosted: &mut Hosted, first: u64, pages: u64, slot: u64) {
    must(hosted, Op::FramesSplit, [root_slot::MEMORY, first, pages, slot, 0, 0]);
}

/// Grants with these rights.
pub fn grant(hosted: &mut Hosted, from: u64, domain: u64, to: u64, rights: Rights) {
    must(hosted, Op::Grant, [from, domain, to, rights.0.into(), 0, 0]);
}

/// The small system on a machine like this; both servers wait, root runs. The vCPU and the client are not started.
pub fn system(settings: Settings) -> Hosted {
    system_with(settings, 32)
}

/// The same with so many pages for the guest's tables.
pub fn system_with(settings: Settings, tables: u64) -> Hosted {
    let mut hosted = Hosted::new(settings);
    for index in 0..3 {
        split(&mut hosted, 16 * index, 16, FIRST + index);
    }
    split(&mut hosted, 48, 4, slot::BUFFERS);
    for index in 0..3 {
        make_domain(&mut hosted, index);
    }
    for index in 0..2 {
        let i = index as usize;
        must(&mut hosted, Op::PortalCreate, [slot::THREADS[i], PORTAL_BADGES[i], slot::PORTALS[i], 0, 0, 0]);
        must_start(&mut hosted, index);
    }
    must(&mut hosted, Op::SignalCreate, [root_slot::THREAD, 1, slot::SIGNALS[0], 0, 0, 0]);
    must(&mut hosted, Op::SignalCreate, [slot::THREADS[2], 2, slot::SIGNALS[1], 0, 0, 0]);
    make_guest(&mut hosted, tables);
    must(&mut hosted, Op::SessionCreate, [slot::GUEST, 0, slot::SESSION, 0, 0, 0]);
    give(&mut hosted);
    hosted
}

/// The same with the guest's first two blocks mapped, its vCPU and the client started, and root at work with a weak
/// capability beside the strong ones.
pub fn running(settings: Settings) -> Hosted {
    let mut hosted = system(settings);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, GUEST_PAGE, slot::MEMORY, 0, 1024, 7]);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0x20_0000, 0, 0, 0, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    grant(&mut hosted, slot::MEMORY, root_slot::DOMAIN, slot::READ_ONLY, Rights::READ);
    must(&mut hosted, Op::SessionPlace, [slot::SESSION, 0, 0, slot::PORTALS[1], 0, 0]);
    must(&mut hosted, Op::SessionCommit, [slot::SESSION, 1, Seat::First as u64, 0, 0, 0]);
    hosted
}

fn make_domain(hosted: &mut Hosted, index: u64) {
    let i = index as usize;
    must(hosted, Op::DomainCreate, [FIRST + index, 64, index + 1, slot::DOMAINS[i], 0, 0]);
    must(hosted, Op::DomainMap, [slot::DOMAINS[i], BUFFER, slot::BUFFERS, index, 1, 3]);
    let priority = if index < 2 { PASSIVE } else { CLIENT_PRIORITY };
    must(hosted, Op::ThreadCreate, [slot::DOMAINS[i], 0, priority, slot::THREADS[i], BUFFER, 0]);
}

/// Starts a server: it runs at once, and waits.
fn must_start(hosted: &mut Hosted, index: u64) {
    let thread = slot::THREADS[index as usize];
    let now = hosted.syscall(0, Op::ThreadStart as u16, [thread, 0x20_0000, 0, 0, 0, 0], [0; 10]);
    assert_eq!(now, Now::Thread(1 + index as u16), "a server that starts goes first");
    let now = hosted.syscall(0, Op::ReplyAndWait as u16, [0; 6], [0; 10]);
    assert_eq!(now, Now::Thread(ROOT));
}

fn make_guest(hosted: &mut Hosted, tables: u64) {
    split(hosted, 64, tables, FIRST + 12);
    must(hosted, Op::GuestCreate, [FIRST + 12, VIEWS, slot::GUEST, 0, 0, Inside::ALL.0]);
    let first = must(hosted, Op::FramesInfo, [root_slot::MEMORY, 0, 0, 0, 0, 0])[1];
    let aligned = (first + 64 + tables).next_multiple_of(512) - first;
    split(hosted, aligned, 1024, slot::MEMORY);
    must(hosted, Op::VcpuCreate, [slot::GUEST, 0, 0, slot::VCPU, VCPU_PRIORITY, 0]);
    for class in 0..EXIT_CLASSES as u64 {
        let portal = slot::PORTALS[usize::from(class != ExitClass::Memory as u64)];
        let groups = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;
        must(hosted, Op::VcpuRoute, [slot::VCPU, class, portal, groups, EXIT_BADGE, 0]);
    }
}

fn give(hosted: &mut Hosted) {
    for (index, domain) in slot::DOMAINS.into_iter().enumerate() {
        if index != 0 {
            grant(hosted, slot::PORTALS[0], domain, inner_slot::INNER, Rights::ALL);
        }
        if index != 1 {
            grant(hosted, slot::PORTALS[1], domain, inner_slot::OUTER, Rights::USE);
        }
        grant(hosted, slot::GUEST, domain, inner_slot::GUEST, Rights::ALL);
        grant(hosted, slot::SESSION, domain, inner_slot::SESSION, Rights::ALL);
        grant(hosted, slot::MEMORY, domain, inner_slot::MEMORY, Rights::ALL);
        grant(hosted, slot::VCPU, domain, inner_slot::VCPU, Rights::ALL);
        grant(hosted, slot::SIGNALS[0], domain, inner_slot::ROOT, Rights::USE);
    }
}

/// The kinds of capabilities, for tests that look for one.
pub const KINDS: [Kind; 10] = [
    Kind::Domain, Kind::Thread, Kind::Portal, Kind::Signal, Kind::Vcpu, Kind::Guest, Kind::Frames, Kind::Line,
    Kind::System, Kind::Session,
];
