// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread: where a domain's program runs, whom it serves, and what it waits for.

use crate::float;
use crate::machine::{Machine, ThreadContext, Ticks};
use crate::patience::Late;
use crate::pool::{Empty, Id, align::Kilobyte};
use crate::portal::Client;
use crate::schedule::BudgetId;
use crate::table::TableRange;
use trellis_idl::kernel::{Refusal, ThreadFault};

/// What a thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ThreadState {
    /// Made, not started.
    New,
    /// Runs, or may run as soon as its budget does.
    Ready,
    /// In `ReplyAndWait`, with nobody to serve.
    Open,
    /// Called, and waits for the answer.
    Awaiting,
    /// Called, and waits for a server that serves somebody else.
    Queued,
    /// In `Wait`.
    Waiting,
    /// Asked another CPU, and waits until that has done it.
    Remote,
    /// Will ask another CPU as soon as what this CPU asked before is done.
    Asking,
    /// Ended by itself.
    Ended,
    /// Broke its contract.
    Faulted,
}

/// How a thread is entered when its budget runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Entry {
    /// At the end of a system call: return registers and message words.
    Parked,
    /// Where it was interrupted: every register.
    Full,
}

/// Why a thread stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultRecord {
    /// The machine's syndrome.
    pub syndrome: u64,
    /// The address.
    pub address: u64,
}

/// A thread.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Thread<M: Machine> {
    /// Saved registers; first, so that the machine's entry code finds it at the object's own address.
    pub context: M::Thread,
    /// Whom it serves.
    pub client: Client,
    /// Its capability table.
    pub table: TableRange,
    /// A call may only go to a lower rank.
    pub rank: u8,
    /// What it is doing.
    pub state: ThreadState,
    /// How it is entered.
    pub entry: Entry,
    /// The budget it runs on: its own, or what its client lends.
    pub budget: BudgetId,
    /// Counts calls that were cancelled, so that a late answer finds nobody.
    pub turn: u32,
    /// First of those that wait for this server.
    pub queue: Client,
    /// Last of them.
    pub queue_last: Client,
    /// The next in the queue this thread waits in.
    pub next: Client,
    /// The badge it called with, while it waits in a queue.
    pub queued_badge: u64,
    /// Bytes of buffer that came with its call.
    pub queued_bytes: u64,
    /// Signal bits it waits for.
    pub mask: u64,
    /// Index of its domain.
    pub domain: u16,
    /// Physical page of its message buffer (0 = none).
    pub buffer: u64,
    /// Whom to tell when it stops: a thread and bits.
    pub supervisor: (Id<ThreadName>, u64),
    /// Why it stopped.
    pub fault: FaultRecord,
    /// The server in whose queue it waits.
    pub waits_at: u16,
    /// Ticks that it may take for an answer; 0 = for ever.
    pub patience: Ticks,
    /// Ticks that it has had its client since that was first seen.
    pub waited: Ticks,
    /// Whom it has kept for too long.
    pub late: Late,
    /// Where its floating-point registers are; without a save area it may not have any.
    pub float: float::State,
    /// Name of the run that its save area is in.
    pub float_frames: u64,
}

/// What thread names name, without the machine in the type (they travel in capabilities).
#[derive(Debug)]
pub struct ThreadName;

impl<M: Machine> Empty for Thread<M> {
    type Align = Kilobyte;
    const EMPTY: Self = Thread {
        context: M::Thread::EMPTY,
        client: Client::None,
        table: TableRange { first: 0, count: 0 },
        rank: 0,
        state: ThreadState::New,
        entry: Entry::Parked,
        budget: 0,
        turn: 0,
        queue: Client::None,
        queue_last: Client::None,
        next: Client::None,
        queued_badge: 0,
        queued_bytes: 0,
        mask: 0,
        domain: 0,
        buffer: 0,
        supervisor: (Id::NONE, 0),
        fault: FaultRecord { syndrome: 0, address: 0 },
        waits_at: 0,
        patience: 0,
        waited: 0,
        late: [0; 3],
        float: float::State::EMPTY,
        float_frames: 0,
    };
}

impl<M: Machine> Thread<M> {
    /// A word of the record that a supervisor reads.
    pub fn record(&self, which: u64) -> Result<u64, Refusal> {
        Ok(match which {
            w if w == ThreadFault::State as u64 => match self.state {
                ThreadState::Ended => 1,
                ThreadState::Faulted => 2,
                _ if self.late[0] != 0 => 3,
                _ => 0,
            },
            w if w == ThreadFault::Syndrome as u64 => self.fault.syndrome,
            w if w == ThreadFault::Address as u64 => self.fault.address,
            w if w == ThreadFault::Pc as u64 => self.context.register(32),
            w if w == ThreadFault::Sp as u64 => self.context.register(31),
            w @ 5..=7 => self.late[w as usize - 5],
            w @ 8..=38 => self.context.register(w as usize - 8),
            _ => return Err(Refusal::OutOfRange),
        })
    }
}
