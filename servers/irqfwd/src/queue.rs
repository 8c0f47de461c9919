// SPDX-License-Identifier: MIT OR Apache-2.0
//! This CPU's queue, and services that were taken out of it.
//!
//! A [`Served`] is made by taking it and consumed by ending it, so that a service cannot be ended twice, and one that is
//! not is noticed by the compiler.

use trellis_idl::kernel::{Refusal, Service};
use trellis_runtime::handle::queue_next;
use trellis_runtime::{Machine, Signal, System, Vcpu};

/// The queue of the CPU of the thread that uses it.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    machine: Machine,
}

/// A source that this server serves, and how long it was in the queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "until the service is ended its source is never served again"]
pub struct Served(Service, u64);

/// Nobody knows how long.
const UNKNOWN: u64 = u64::MAX;

/// Why a thread at its queue goes on.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "there may be a service in it"]
pub struct Woken {
    /// Bits of its signal word; 0 = a deadline passed.
    pub bits: u64,
    /// What is to be served.
    pub served: Option<Served>,
}

impl Woken {
    #[inline(always)]
    fn of((bits, service): (u64, Option<(Service, u64)>)) -> Woken {
        Woken { bits, served: service.map(|(service, ticks)| Served(service, ticks)) }
    }
}

impl Queue {
    /// From now on the signal's thread, which is on this CPU, serves it. `adopt`: what a server that is no more was
    /// serving, on whatever CPU, is to be served again.
    pub fn open(system: &impl System, machine: Machine, signal: Signal, adopt: bool) -> Result<Queue, Refusal> {
        machine.queue_serve(system, signal, adopt)?;
        Ok(Queue { machine })
    }

    /// No thread's own: good for ending a service, whatever CPU it was taken on.
    pub const fn of_any(machine: Machine) -> Queue {
        Queue { machine }
    }

    /// Takes what came first, two at most, and says whether there may be more: if there is not, the signal will come.
    #[inline]
    pub fn take(self, system: &impl System) -> ([Option<Served>; 2], bool) {
        let Ok((count, [first, second])) = self.machine.queue_take(system) else { return ([None, None], false) };
        ([(count > 0).then_some(Served(first, UNKNOWN)), (count > 1).then_some(Served(second, UNKNOWN))], count > 1)
    }

    /// Waits for the next, for one of these bits of this thread's signal word, or for a deadline (0 = for ever). Refused
    /// `BadState`: this CPU's queue is another thread's.
    pub fn next(self, system: &impl System, others: u64, deadline: u64) -> Result<Woken, Refusal> {
        queue_next(system, None, others, deadline).map(Woken::of)
    }

    /// Ends a service with nobody told.
    pub fn done(self, system: &impl System, served: Served) {
        // Refused, it is over already.
        let _ = self.machine.queue_done(system, served.0);
    }
}

impl Served {
    /// Which source.
    #[inline(always)]
    pub const fn source(&self) -> u16 {
        self.0.source()
    }

    /// Ticks that it was in the queue, where that is known.
    pub fn waited(&self) -> Option<u64> {
        (self.1 != UNKNOWN).then_some(self.1)
    }

    /// Whether it was in no queue.
    #[inline(always)]
    pub const fn is_at_once(&self) -> bool {
        self.1 == 0
    }

    /// Whether the line fired since the service before; else an earlier server was lost with this.
    pub const fn has_fired(&self) -> bool {
        self.0.has_fired()
    }

    /// Ends it: the interrupt is the vCPU's now. Refused, it goes on: `BadState` when the guest sends the line to another
    /// vCPU, `Gone` when that or the service is no more.
    #[inline]
    pub fn pass(self, system: &impl System, vcpu: Vcpu) -> Result<(), (Served, Refusal)> {
        vcpu.pass(system, self.0).map_err(|refusal| (self, refusal))
    }

    /// The same, and waits for the next as [`Queue::next`] does, all in one. Refused, nothing was done.
    #[inline(always)]
    pub fn pass_and_wait(
        self, system: &impl System, vcpu: Vcpu, others: u64, deadline: u64,
    ) -> Result<Woken, Served> {
        queue_next(system, Some((self.0, vcpu)), others, deadline).map(Woken::of).map_err(|_| self)
    }
}
