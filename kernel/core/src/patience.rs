// SPDX-License-Identifier: MIT OR Apache-2.0
//! Deadlines of answers: a server that keeps a client for longer than its supervisor has patience is *late*.
//!
//! The hot doors read no clock. A few times within the shortest patience this CPU looks at its servers: it puts a mark on
//! whom each of them serves, and an answer takes the mark along with the client. What still bears its mark at a later
//! look has been there all the time. Only time in which the server could have gone on counts: not while it is ready and
//! something better runs, nor while it waits for another server that is looked after itself.
//!
//! One that has not begun to serve is late for those in its queue.
//!
//! A late server's client is told [`Refusal::Late`] (a vCPU stays stopped), as are those in its queue and those that come
//! before it has answered; its answer finds nobody. What becomes of the server is its supervisor's business.

use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, NEVER, Ticks};
use crate::portal::{self, Client};
use crate::schedule;
use crate::shared::Shared;
use crate::thread::{Thread, ThreadState};
use trellis_idl::kernel::Refusal;

/// The shortest patience in microseconds: looking takes time, too.
pub const SHORTEST: u64 = 1000;
/// The longest: what can be counted in ticks whatever the clock.
pub const LONGEST: u64 = 1 << 40;
/// Looks within the shortest patience of a CPU.
const LOOKS: u64 = 4;
/// Servers that wait for one another: a call goes to a lower rank, so there cannot be more.
const RANKS: usize = 16;

/// Whom a server kept for too long: the first word is 0 for nobody, 1 for a thread, 2 for a vCPU; then the vCPU's number
/// in its guest and the first word of its exit.
pub type Late = [u64; 3];

/// When a CPU looks at its servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Looks {
    /// Threads that are looked after, one bit each.
    watched: u64,
    every: Ticks,
    last: Ticks,
    /// The next look.
    pub next: Ticks,
}

impl Looks {
    /// Nobody is looked after.
    pub const NONE: Looks = Looks { watched: 0, every: NEVER, last: 0, next: NEVER };

    /// Something runs: whom it calls shall be looked after.
    #[inline]
    pub fn begin(&mut self, now: Ticks) {
        if self.watched != 0 && self.next == NEVER {
            self.last = now;
            self.next = now.saturating_add(self.every);
        }
    }
}

/// Sets how long a thread may take for an answer; 0 = for ever.
pub fn set<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, patience: Ticks) {
    local.threads.at_mut(index).patience = patience;
    let bit = 1 << (index % THREADS as u16);
    local.looks.watched = if patience == 0 { local.looks.watched & !bit } else { local.looks.watched | bit };
    let shortest = watched(local).map(|index| local.threads.at(index).patience).min();
    local.looks.every = shortest.map_or(NEVER, |patience| (patience / LOOKS).max(1));
    local.looks.next = NEVER;
    local.looks.begin(machine.now());
    schedule::set_alarm(local, machine);
}

/// A thread goes.
pub fn forget<M: Machine>(local: &mut Local<M>, index: u16) {
    local.looks.watched &= !(1 << (index % THREADS as u16));
}

fn watched<M: Machine>(local: &Local<M>) -> impl Iterator<Item = u16> + use<M> {
    let bits = local.looks.watched;
    (0..THREADS as u16).filter(move |index| bits >> index & 1 == 1)
}

/// This CPU has nothing to run: it need not look while nobody waits for an answer.
pub fn rest<M: Machine>(local: &mut Local<M>) {
    if local.looks.next != NEVER && !watched(local).any(|index| is_awaited(local.threads.at(index))) {
        local.looks.next = NEVER;
    }
}

/// Whether somebody waits for this server.
fn is_awaited<M: Machine>(thread: &Thread<M>) -> bool {
    thread.client != Client::None || thread.queue != Client::None
}

/// Looks at the servers, if it is time.
pub fn look<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, now: Ticks) {
    if local.looks.next > now {
        return;
    }
    let passed = now.saturating_sub(local.looks.last);
    local.looks.last = now;
    local.looks.next = now.saturating_add(local.looks.every);
    for index in watched(local) {
        let could = could_go_on(local, index);
        let thread = local.threads.at_mut(index);
        // One that has not begun to serve has no client, only a queue: that counts from its first look at all.
        if !is_awaited(thread) || thread.client != Client::None && !thread.client.is_seen() {
            thread.client = thread.client.seen();
            thread.waited = 0;
        } else if could {
            thread.waited = thread.waited.saturating_add(passed);
            if thread.waited >= thread.patience {
                portal::late(local, shared, machine, index);
            }
        }
    }
}

/// Whether it is a server's own fault that it does not answer just now.
fn could_go_on<M: Machine>(local: &Local<M>, index: u16) -> bool {
    let mut at = index;
    for _ in 0..RANKS {
        let next = match local.threads.at(at).state {
            ThreadState::Ready => return local.running == Running::Thread(at),
            ThreadState::Awaiting | ThreadState::Queued => portal::served_at(local, at),
            _ => return true,
        };
        match next {
            Some(next) if local.threads.at(next).patience != 0 => return false,
            Some(next) => at = next,
            None => return true,
        }
    }
    true
}

/// Why nothing can be sent to a server just now, if it is late and has not answered yet.
pub fn refusal<M: Machine>(local: &Local<M>, index: u16) -> Result<(), Refusal> {
    let thread = local.threads.at(index);
    if thread.late[0] != 0 && thread.state != ThreadState::Open { Err(Refusal::Late) } else { Ok(()) }
}
