// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUs share: atomics, and things behind one lock each.

use crate::domain::Domain;
use crate::errand::{Errand, Errands, each};
use crate::forward::Forwarding;
use crate::frame::Runs;
use crate::grace::{Grace, Mark};
use crate::guest::Guest;
use crate::local::THREADS;
use crate::lock::Lock;
use crate::machine::Machine;
use crate::pool::{Pool, SHARED_HOME};
use crate::range::Ranges;
use crate::request::Request;
use crate::session::Session;
use crate::signal_word;
use crate::table::Table;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::SESSIONS;

/// Domains in the system.
pub const DOMAINS: usize = 64;
/// Guests in the system.
pub const GUESTS: usize = 16;
/// Physical lines that can be bound.
pub const LINES: usize = 1024;

/// What other CPUs may touch of a CPU.
#[derive(Debug)]
pub struct CpuMail {
    /// What it is kicked for.
    pub errands: Errands,
    /// Names of its threads (0 = none), so that a dead name raises nothing.
    pub names: [AtomicU64; THREADS],
    /// Their signal words.
    pub signals: [AtomicU64; THREADS],
    /// Pages of their message buffers (0 = none), so that no other CPU takes one of them back.
    pub buffers: [AtomicU64; THREADS],
}

/// What other CPUs may touch of a vCPU.
#[derive(Debug)]
#[repr(align(64))]
pub struct VcpuMail {
    /// Its name (0 = there is none).
    pub name: AtomicU64,
    /// Name of the place on another CPU that was made for it (0 = there is none).
    pub place: AtomicU64,
    /// Lines made pending from other CPUs.
    pub pending: [AtomicU64; 2],
    /// The view it is in, the one it is about to enter, and the one of its step ([`crate::view::in_views`]); its own CPU
    /// writes it.
    pub view: AtomicU64,
}

/// vCPUs of one guest that can get mail.
pub const GUEST_VCPUS: usize = 16;

/// Whom a physical line is bound to.
#[derive(Debug)]
pub struct LineSlot {
    /// The thread's name.
    pub thread: AtomicU64,
    /// The bits it gets; 0 = not bound; [`crate::forward::FORWARDED`] and a source: it is forwarded.
    pub bits: AtomicU64,
}

/// Everything that CPUs share.
#[derive(Debug)]
pub struct Shared {
    /// Capability tables.
    pub table: Table,
    /// One mailbox a CPU.
    pub cpus: [CpuMail; MAX_CPUS],
    /// Operations asked of other CPUs, one slot an asking CPU.
    pub requests: [Request; MAX_CPUS],
    /// Mail of each guest's vCPUs.
    pub vcpus: [[VcpuMail; GUEST_VCPUS]; GUESTS],
    /// CPUs that run, one bit each.
    pub running: AtomicU64,
    /// CPUs whose queue of interrupts somebody has served, one bit each.
    pub served: AtomicU64,
    /// 1 while a CPU is being taken out of use.
    pub retiring: AtomicU64,
    /// Which CPUs have left the kernel since when.
    pub grace: Grace,
    /// Lengths of vectors that all CPUs have which have come up so far ([`crate::float::Lengths`]).
    pub vector_lengths: AtomicU64,
    /// Physical lines.
    pub lines: [LineSlot; LINES],
    /// Lines that are forwarded.
    pub forwarding: Forwarding,
    /// Taken by operations that make, destroy, grant or revoke.
    pub control: Lock<Control>,
    /// Who watches each guest.
    pub sessions: [[Session; SESSIONS as usize]; GUESTS],
    /// Each guest's maps, under the guest's own lock.
    pub guests: [Lock<Guest>; GUESTS],
    /// Each domain's map, under the domain's own lock.
    pub domains: [Lock<Domain>; DOMAINS],
}

/// State behind the control lock.
#[derive(Debug)]
pub struct Control {
    /// Names of guests.
    pub guests: Pool<GuestName, GUESTS>,
    /// Names of domains.
    pub domains: Pool<DomainName, DOMAINS>,
    /// Runs of physical memory.
    pub runs: Runs,
    /// Capability slots that no table owns.
    pub slots: Ranges,
    /// Hardware tags (VMIDs) in use.
    pub tags: [u64; 4],
}

/// What a guest's name names.
#[derive(Debug, Default)]
pub struct GuestName {
    /// Its destruction has begun: nothing can be made of it any more.
    pub dying: bool,
}
/// What a domain's name names.
#[derive(Debug, Default)]
pub struct DomainName {
    /// Its destruction has begun: nothing can be made of it any more.
    pub dying: bool,
}

impl crate::pool::Empty for GuestName {
    type Align = ();
    const EMPTY: Self = GuestName { dying: false };
}
impl crate::pool::Empty for DomainName {
    type Align = ();
    const EMPTY: Self = DomainName { dying: false };
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    /// A system with nothing in it.
    pub const fn new() -> Self {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Shared {
            table: Table::new(),
            cpus: [const {
                CpuMail {
                    errands: Errands::EMPTY,
                    names: [ZERO; THREADS],
                    signals: [ZERO; THREADS],
                    buffers: [ZERO; THREADS],
                }
            }; MAX_CPUS],
            requests: [const { Request::EMPTY }; MAX_CPUS],
            vcpus: [const { [const { VcpuMail { name: ZERO, place: ZERO, pending: [ZERO; 2], view: ZERO } }; GUEST_VCPUS] }; GUESTS],
            running: ZERO,
            served: ZERO,
            retiring: ZERO,
            grace: Grace::new(),
            vector_lengths: AtomicU64::new(0xffff),
            lines: [const { LineSlot { thread: ZERO, bits: ZERO } }; LINES],
            forwarding: Forwarding::NONE,
            control: Lock::new(Control {
                guests: Pool::new(SHARED_HOME),
                domains: Pool::new(SHARED_HOME),
                runs: Runs::new(),
                slots: Ranges::new(),
                tags: [1, 0, 0, 0],
            }),
            sessions: [const { [const { Session::NONE }; SESSIONS as usize] }; GUESTS],
            guests: [const { Lock::new(Guest::EMPTY) }; GUESTS],
            domains: [const { Lock::new(Domain::EMPTY) }; DOMAINS],
        }
    }

    /// A vCPU's mail.
    #[inline(always)]
    pub fn mail(&self, guest: u16, number: u8) -> &VcpuMail {
        &self.vcpus[guest as usize % GUESTS][number as usize % GUEST_VCPUS]
    }

    /// How often any lock was taken.
    pub fn locks_taken(&self) -> u64 {
        self.control.taken()
            + self.guests.iter().map(Lock::taken).sum::<u64>()
            + self.domains.iter().map(Lock::taken).sum::<u64>()
    }

    /// Whether every other CPU has left the kernel since the mark; those that have not are kicked.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn settled<M: Machine>(&self, machine: &mut M, cpu: u16, mark: Mark) -> bool {
        let others = self.running.load(Ordering::Acquire) & !(1 << (cpu & 63));
        let behind = self.grace.behind(mark, others);
        for cpu in each(behind) {
            if self.cpus[cpu as usize % MAX_CPUS].errands.leave(Errand::Pass) {
                machine.kick(cpu);
            }
        }
        behind == 0
    }

    /// Puts a thread's name where other CPUs see it (0 = gone), with an empty signal word.
    pub fn publish(&self, cpu: u16, index: u16, name: u64) {
        let mail = &self.cpus[cpu as usize % MAX_CPUS];
        let index = index as usize % THREADS;
        mail.buffers[index].store(0, Ordering::Release);
        signal_word::publish(&mail.names[index], &mail.signals[index], name);
    }
}

impl Control {
    /// A hardware tag that nobody has; never 0.
    pub fn take_tag(&mut self) -> Option<u16> {
        for (word, bits) in self.tags.iter_mut().enumerate() {
            if *bits != u64::MAX {
                let bit = bits.trailing_ones();
                *bits |= 1 << bit;
                return Some(word as u16 * 64 + bit as u16);
            }
        }
        None
    }

    /// Gives a tag back. Every TLB entry under it must be gone.
    pub fn give_tag(&mut self, tag: u16) {
        if let Some(bits) = self.tags.get_mut(tag as usize / 64) {
            *bits &= !(1 << (tag % 64));
        }
    }
}
