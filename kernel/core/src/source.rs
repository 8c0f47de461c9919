// SPDX-License-Identifier: MIT OR Apache-2.0
//! A source of interrupts that a server forwards: raised by any CPU, served by one thread at a time, never lost.
//!
//! Its word says whether it is *scheduled* (something came that nobody has served yet), *running* (a server has it) and
//! *linked* (it is in a queue). Three rules follow, and the model in `tests/sources.rs` tries them in every order:
//!
//! - Who makes it linked puts it into exactly one queue; only who takes it out makes it unlinked. So it is in one queue
//!   at most, and a queue needs no more room than there are sources.
//! - Raised while it is running it becomes scheduled and nothing else; who completes it links it again. So no server
//!   has to wait for another one, and none serves what another one serves.
//! - Whether the line fired is a latch apart from the word: set before the word is looked at, taken after the word was
//!   changed, and both times read and written at once. So either the server sees the latch, or the raiser sees what the
//!   server did to the word; a plain store of the latch would let each miss the other.

use crate::atomic::Atomic;
use trellis_idl::kernel::Refusal;

/// Something came and was not served yet.
const SCHEDULED: u64 = 1;
/// A server has it.
const RUNNING: u64 = 2;
/// It is in a queue.
const LINKED: u64 = 4;
/// It is bound: raising it means something.
const BOUND: u64 = 8;
/// Counts services and bindings: the right to complete one is good for that one only.
const TURN: u64 = 1 << 32;

/// The right and the duty to put a source into a queue: [`crate::queue::Queue::push`] takes it.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the source is marked as linked and must get into a queue"]
pub struct Unlinked(pub(crate) u16);

/// A source that came out of a queue: to be served, or moved to another queue.
#[derive(PartialEq, Eq, Debug)]
#[must_use = "the source is in no queue any more"]
pub struct Popped(pub(crate) u16);

impl Popped {
    /// To be put into another queue: its CPU takes no more of them.
    pub fn into_other(self) -> Unlinked {
        Unlinked(self.0)
    }
}

/// A service that has begun. The numbers go to the server, which completes it by them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// Which source.
    pub source: u16,
    /// Which service of it.
    pub turn: u32,
    /// The line fired since the last service began.
    pub latched: bool,
}

/// One source.
#[derive(Debug)]
#[repr(align(32))]
pub struct Source<A> {
    word: A,
    latch: A,
    /// The next in its queue: index + 1, 0 at the end. Belongs to the queue it is linked in.
    pub(crate) next: A,
}

impl<A: Atomic> Source<A> {
    /// A source that is bound to nothing, of three words that are 0.
    pub const fn new(word: A, latch: A, next: A) -> Self {
        Source { word, latch, next }
    }

    /// Changes the word to what `step` makes of it (`None`: not at all). Gives what it was before.
    #[inline(always)]
    fn change(&self, step: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut old = self.word.load();
        loop {
            let Some(new) = step(old) else { return Err(old) };
            match self.word.exchange(old, new) {
                Ok(()) => return Ok(old),
                Err(found) => old = found,
            }
        }
    }
}

/// All sources; `N` is a power of two.
#[derive(Debug)]
pub struct Sources<A, const N: usize>(pub [Source<A>; N]);

impl<A: Atomic, const N: usize> Sources<A, N> {
    #[inline(always)]
    pub(crate) fn at(&self, index: u16) -> &Source<A> {
        &self.0[index as usize & (N - 1)]
    }

    /// It may be raised from now on. `Again`: what was bound before is still being served or queued.
    pub fn bind(&self, index: u16) -> Result<(), Refusal> {
        let source = self.at(index);
        let before = source.word.load();
        if before & BOUND != 0 {
            return Err(Refusal::Occupied);
        }
        if before & (RUNNING | LINKED) != 0 {
            return Err(Refusal::Again);
        }
        source.latch.store(0);
        let free = |old: u64| (old & 0xffff_ffff == 0).then(|| old.wrapping_add(TURN) | BOUND);
        source.change(free).map(drop).map_err(|_| Refusal::Again)
    }

    /// Raising it means nothing any more, and what came before is dropped. `Again`: a server or a queue still has it;
    /// it may be bound to something else once that is over ([`Sources::is_idle`]).
    pub fn unbind(&self, index: u16) -> Result<(), Refusal> {
        let before = self.at(index).change(|old| Some(old & !(BOUND | SCHEDULED)));
        let busy = before.is_ok_and(|old| old & (RUNNING | LINKED) != 0);
        if busy { Err(Refusal::Again) } else { Ok(()) }
    }

    /// Whether neither a server nor a queue has it.
    pub fn is_idle(&self, index: u16) -> bool {
        self.at(index).word.load() & (RUNNING | LINKED) == 0
    }

    /// Whether it is in a queue.
    pub fn is_linked(&self, index: u16) -> bool {
        self.at(index).word.load() & LINKED != 0
    }

    /// The line fired. What comes back must go into this CPU's queue.
    #[inline(always)]
    pub fn raise(&self, index: u16) -> Option<Unlinked> {
        let source = self.at(index);
        source.latch.swap(1);
        let before = source.change(|old| match old & (BOUND | SCHEDULED | RUNNING | LINKED) {
            BOUND => Some(old | SCHEDULED | LINKED),
            bits if bits & (BOUND | SCHEDULED) == BOUND => Some(old | SCHEDULED),
            _ => None,
        });
        match before {
            Ok(old) if old & (RUNNING | LINKED) == 0 => Some(Unlinked(index)),
            _ => None,
        }
    }

    /// Begins to serve what came out of a queue. `None`: it was unbound meanwhile.
    pub fn serve(&self, popped: Popped) -> Option<Service> {
        let source = self.at(popped.0);
        let before = source.change(|old| {
            let rest = old & !(SCHEDULED | LINKED);
            Some(if old & SCHEDULED != 0 { rest.wrapping_add(TURN) | RUNNING } else { rest })
        });
        let before = before.unwrap_or(0);
        if before & SCHEDULED == 0 {
            return None;
        }
        let turn = (before.wrapping_add(TURN) >> 32) as u32;
        Some(Service { source: popped.0, turn, latched: source.latch.swap(0) != 0 })
    }

    /// The line fired on a CPU whose server waits for just that: the service begins at once, and the source gets into no
    /// queue. `None`, with nothing changed: it is in one, or with a server, and is to be raised. The latch says what came
    /// besides, and stays as it is.
    #[inline(always)]
    pub fn begin(&self, index: u16) -> Option<Service> {
        let idle = |old: u64| (old & (BOUND | SCHEDULED | RUNNING | LINKED) == BOUND).then(|| old.wrapping_add(TURN) | RUNNING);
        let before = self.at(index).change(idle).ok()?;
        Some(Service { source: index, turn: (before.wrapping_add(TURN) >> 32) as u32, latched: true })
    }

    /// A service is over, and nothing was raised meanwhile. False, with nothing changed: it is not so
    /// ([`Sources::complete`]).
    #[inline(always)]
    pub fn finish(&self, index: u16, turn: u32) -> bool {
        let mine = |old: u64| old & (SCHEDULED | RUNNING) == RUNNING && (old >> 32) as u32 == turn;
        self.at(index).change(|old| mine(old).then_some(old & !RUNNING)).is_ok()
    }

    /// A service is over. What comes back was raised meanwhile and must go into this CPU's queue. `Gone`: this service
    /// is over already, or was taken away from its server.
    pub fn complete(&self, index: u16, turn: u32) -> Result<Option<Unlinked>, Refusal> {
        let done = self.at(index).change(|old| {
            let mine = old & RUNNING != 0 && (old >> 32) as u32 == turn;
            mine.then_some(if old & SCHEDULED != 0 { old & !RUNNING | LINKED } else { old & !RUNNING })
        });
        match done {
            Ok(old) if old & SCHEDULED != 0 => Ok(Some(Unlinked(index))),
            Ok(_) => Ok(None),
            Err(_) => Err(Refusal::Gone),
        }
    }

    /// The server that had it is no more: it is to be served again, and the old right to complete it is void. What comes
    /// back must go into this CPU's queue.
    pub fn adopt(&self, index: u16) -> Option<Unlinked> {
        let source = self.at(index);
        if source.word.load() & (RUNNING | BOUND) == RUNNING | BOUND {
            source.latch.store(1);
        }
        let taken = source.change(|old| match old & (RUNNING | BOUND) {
            RUNNING => Some((old & !RUNNING).wrapping_add(TURN)),
            0 | BOUND => None,
            _ => Some((old & !RUNNING).wrapping_add(TURN) | SCHEDULED | LINKED),
        });
        taken.is_ok_and(|old| old & BOUND != 0).then_some(Unlinked(index))
    }
}
