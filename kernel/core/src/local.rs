// SPDX-License-Identifier: MIT OR Apache-2.0
//! What belongs to one CPU alone: its threads, vCPUs, portals, budgets and timers. Reached without locks or atomics.

use crate::float::Registers;
use crate::forward::QueueServer;
use crate::grace::Mark;
use crate::machine::{Machine, NEVER, Ticks};
use crate::patience::Looks;
use crate::pool::{Id, Pool};
use crate::portal::Portal;
use crate::queue::Backlog;
use crate::schedule::{Budget, BudgetId, NO_BUDGET};
use crate::thread::{Thread, ThreadName};
use crate::vcpu::{Vcpu, VcpuName};

/// Threads a CPU can hold.
pub const THREADS: usize = 64;
/// vCPUs a CPU can hold.
pub const VCPUS: usize = 16;
/// Portals a CPU can hold.
pub const PORTALS: usize = 128;
/// Budgets: one a thread, one a vCPU.
pub const BUDGETS: usize = THREADS + VCPUS;

/// What runs, or would.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Running {
    /// Nothing.
    Idle,
    /// A thread, by index.
    Thread(u16),
    /// A vCPU, by index.
    Vcpu(u16),
}

/// One CPU's own state.
#[derive(Debug)]
#[repr(C)]
pub struct Local<M: Machine> {
    /// What runs now.
    pub running: Running,
    /// The budget that pays.
    pub budget: BudgetId,
    /// This CPU's number.
    pub cpu: u16,
    /// Budgets that could run now, one bit each.
    pub ready: u128,
    /// Budgets whose owner has a deadline, one bit each.
    pub timed: u128,
    /// Budgets in a period that will be refilled, one bit each.
    pub refilling: u128,
    /// Order of becoming ready.
    pub turn: u64,
    /// When the current budget began to run.
    pub since: Ticks,
    /// When the current budget's slice ends.
    pub slice_end: Ticks,
    /// The current budget is spent, and its owner stops as soon as its server has answered.
    pub overdue: bool,
    /// The time the clock is set to.
    pub alarm: Ticks,
    /// When servers that take too long are looked for.
    pub looks: Looks,
    /// Writes to words that CPUs share, on IPC and exit paths.
    pub shared_writes: u64,
    /// Threads.
    pub threads: Pool<Thread<M>, THREADS>,
    /// vCPUs.
    pub vcpus: Pool<Vcpu<M>, VCPUS>,
    /// Portals.
    pub portals: Pool<Portal, PORTALS>,
    /// Budgets: thread `i`'s own at `i`, vCPU `i`'s at `THREADS + i`.
    pub budgets: [Budget; BUDGETS],
    /// Deadline of each budget's owner (a wait, a virtual timer).
    pub deadlines: [Ticks; BUDGETS],
    /// Whose its floating-point registers are.
    pub float: Registers,
    /// Who forwards this CPU's interrupts.
    pub server: QueueServer,
    /// What it took out of its queue and has not been given yet.
    pub backlog: Backlog,
    /// It is being taken out of use ([`crate::retire`]): since when, or 0.
    pub retiring: Mark,
}

impl<M: Machine> Local<M> {
    /// A CPU with nothing on it.
    pub const fn new(cpu: u16) -> Self {
        Local {
            running: Running::Idle,
            budget: NO_BUDGET,
            cpu,
            ready: 0,
            timed: 0,
            refilling: 0,
            turn: 0,
            since: 0,
            slice_end: NEVER,
            overdue: false,
            alarm: NEVER,
            looks: Looks::NONE,
            shared_writes: 0,
            threads: Pool::new(cpu),
            vcpus: Pool::new(cpu),
            portals: Pool::new(cpu),
            budgets: [Budget::EMPTY; BUDGETS],
            deadlines: [NEVER; BUDGETS],
            float: Registers::NEW,
            server: QueueServer { thread: 0, bits: 0 },
            backlog: Backlog::EMPTY,
            retiring: 0,
        }
    }

    /// Says which CPU this is; only before anything lives here.
    pub fn set_cpu(&mut self, cpu: u16) {
        self.cpu = cpu;
        self.threads.set_home(cpu);
        self.vcpus.set_home(cpu);
        self.portals.set_home(cpu);
    }

    /// The index of the thread that runs (0 when none does; a system call comes only from a thread).
    #[inline(always)]
    pub fn thread(&self) -> u16 {
        match self.running {
            Running::Thread(index) => index,
            _ => 0,
        }
    }

    /// A thread's name as capabilities hold it.
    pub fn thread_id(word: u64) -> Id<Thread<M>> {
        Id::from_word(word)
    }

    /// A vCPU's name as capabilities hold it.
    pub fn vcpu_id(word: u64) -> Id<Vcpu<M>> {
        Id::from_word(word)
    }

    /// The thread of a machine-free name.
    pub fn by_name(&self, name: Id<ThreadName>) -> Option<&Thread<M>> {
        self.threads.get(Id::from_word(name.0))
    }

    /// The vCPU of a machine-free name.
    pub fn vcpu_by_name(&self, name: Id<VcpuName>) -> Option<&Vcpu<M>> {
        self.vcpus.get(Id::from_word(name.0))
    }
}
