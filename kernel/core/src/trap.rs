// SPDX-License-Identifier: MIT OR Apache-2.0
//! The doors in: everything that can bring a CPU into the kernel, and what it may do next.
//!
//! A machine has a hot door for each of call, reply and exit ([`crate::portal`]), which decides with the message words
//! still in registers and may answer [`Next::Slow`]: nothing has changed, park the words and use
//! [`crate::syscall::dispatch`] or, for an exit, [`take`].

use crate::local::{Local, Running};
use crate::machine::Machine;
use crate::shared::Shared;
use crate::thread::{FaultRecord, ThreadState};
use crate::{float, lines, portal, remote, schedule, signal, vcpu};

/// What brought this CPU into the kernel, off the hot doors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// The running vCPU stopped; the words of its exit are in its context.
    Exit(u8),
    /// The running vCPU waits for an interrupt.
    WaitForInterrupt,
    /// The running vCPU sends software interrupts.
    SoftwareInterrupt(lines::SoftwareInterrupt),
    /// The vCPU whose state is loaded here has its timer due.
    VirtualTimer,
    /// The virtual interrupt interface wants attention.
    Maintenance,
    /// The clock reached the alarm.
    Alarm,
    /// Another CPU has something for this one.
    Kick,
    /// A device line, masked by the machine already.
    Line(u32),
    /// The running thread broke its contract.
    Fault(FaultRecord),
    /// What runs used floating-point registers that trap; a thread that may not have any broke its contract.
    Float(FaultRecord),
    /// Nothing: go on (a spurious interrupt).
    Spurious,
}

/// What the machine does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Next {
    /// The running thread goes on at once with this in `x0`.
    Same(u64),
    /// The running vCPU goes on at once, just as it is.
    Again,
    /// This thread goes on; message words stay in their registers; `x0` = value.
    Ride {
        /// Which.
        thread: u16,
        /// Badge, or 0.
        value: u64,
    },
    /// This thread goes on instead of the caller, whose words are nobody's business; `x0` = value.
    Overtake {
        /// Which.
        thread: u16,
        /// Signal bits.
        value: u64,
    },
    /// This vCPU goes on; the answer's words are in their registers.
    Answered {
        /// Which.
        vcpu: u16,
        /// What the words change.
        mask: u64,
    },
    /// This thread gets the exit of the vCPU that ran.
    Deliver {
        /// Which thread.
        thread: u16,
        /// Which vCPU.
        vcpu: u16,
        /// `x0`.
        badge: u64,
        /// Groups that travel.
        groups: u64,
    },
    /// This thread gets the exit that the running thread hands on: the message words stay in their registers, and the vCPU
    /// keeps them, should nobody answer.
    Pass {
        /// Which thread.
        thread: u16,
        /// Which vCPU.
        vcpu: u16,
        /// `x0`.
        badge: u64,
    },
    /// A hot door cannot: park the words and go the slow way.
    Slow,
    /// This thread goes on as its `entry` says.
    Thread(u16),
    /// This vCPU goes on.
    Guest(u16),
    /// Nothing can run.
    Idle,
}

/// The hot door of interrupts, decided with most registers of what was interrupted still in place: the running vCPU goes
/// on just as it is ([`Next::Again`]), or a thread that waits for the line goes on instead ([`Next::Overtake`]; what was
/// interrupted is to be saved whole, the thread's words and result are in its context). [`Next::Slow`]: save everything
/// and use [`take`].
#[inline(always)]
pub fn interrupt<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, trap: Trap) -> Next {
    match trap {
        Trap::VirtualTimer => lines::timer_at_once(local, machine),
        Trap::Kick => remote::lines_at_once(local, shared, machine),
        Trap::Line(line) => signal::line_at_once(local, shared, machine, line),
        _ => Next::Slow,
    }
}

/// Decides everything that is not decided at a hot door.
pub fn take<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, trap: Trap) -> Next {
    match trap {
        Trap::Exit(class) => vcpu::exited_slow(local, shared, machine, class),
        Trap::WaitForInterrupt => vcpu::waits(local, shared, machine),
        Trap::SoftwareInterrupt(what) => lines::software(local, shared, machine, what),
        Trap::VirtualTimer => lines::timer_due(local, shared, machine),
        Trap::Maintenance => lines::maintenance(local, shared, machine),
        Trap::Alarm => schedule::alarm(local, shared, machine),
        Trap::Kick => signal::kicked(local, shared, machine),
        Trap::Line(line) => signal::line_arrived(local, shared, machine, line),
        Trap::Fault(record) => fault(local, shared, machine, record),
        Trap::Float(record) => float::trapped(local, shared, machine, record),
        Trap::Spurious => schedule::go_on(local, shared, machine),
    }
}

/// A thread broke its contract: it stops, its client gets nothing more from it, its supervisor is told.
pub(crate) fn fault<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, record: FaultRecord) -> Next {
    let Running::Thread(index) = local.running else {
        return schedule::go_on(local, shared, machine);
    };
    local.threads.at_mut(index).fault = record;
    portal::end(local, shared, machine, index, ThreadState::Faulted)
}
