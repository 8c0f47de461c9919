// SPDX-License-Identifier: MIT OR Apache-2.0
//! A CPU's queue of interrupt sources: anybody puts in, without a lock; this CPU takes out.
//!
//! New ones are linked in front of each other ([`Queue`], one word that CPUs share). The CPU takes all of them at once
//! and turns them round ([`Backlog`], its own), so the one that came first is served first and nothing is compared that
//! could have been taken and put back meanwhile. A source is in one queue at most (see [`crate::source`]), so there is
//! always room.

use crate::atomic::Atomic;
use crate::source::{Popped, Sources, Unlinked};

/// What came and was not looked at yet: the last one's index + 1, 0 = nothing.
#[derive(Debug)]
pub struct Queue<A>(pub A);

/// What was taken out of the queue and waits for its turn; belongs to one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backlog {
    /// The first one's index + 1, 0 = nothing.
    first: u64,
}

impl<A: Atomic> Queue<A> {
    /// Whether nothing came since it was looked at last.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0.load() == 0
    }

    /// Puts a source in. True: the queue was empty, so whoever serves it must be woken.
    #[inline(always)]
    #[must_use = "the server of a queue that was empty must be woken"]
    pub fn push<const N: usize>(&self, sources: &Sources<A, N>, source: Unlinked) -> bool {
        let mut last = self.0.load();
        loop {
            sources.at(source.0).next.store(last);
            match self.0.exchange(last, source.0 as u64 + 1) {
                Ok(()) => return last == 0,
                Err(found) => last = found,
            }
        }
    }
}

impl Backlog {
    /// Nothing.
    pub const EMPTY: Backlog = Backlog { first: 0 };

    /// Whether nothing waits here (something may in the queue).
    pub const fn is_empty(&self) -> bool {
        self.first == 0
    }

    /// What waits here and in the queue, to be looked at while nobody else does anything.
    pub fn waiting<A: Atomic, const N: usize>(
        &self, queue: &Queue<A>, sources: &Sources<A, N>,
    ) -> impl Iterator<Item = u16> {
        [self.first, queue.0.load()].into_iter().flat_map(|first| {
            let next = |last: &u64| Some(sources.at(last.checked_sub(1)? as u16).next.load());
            core::iter::successors(Some(first), next).filter_map(|place| Some(place.checked_sub(1)? as u16))
        })
    }

    /// Takes the one that came first.
    pub fn pop<A: Atomic, const N: usize>(&mut self, queue: &Queue<A>, sources: &Sources<A, N>) -> Option<Popped> {
        if self.first == 0 {
            self.turn_round(queue.0.swap(0), sources);
        }
        let index = self.first.checked_sub(1)? as u16;
        self.first = sources.at(index).next.load();
        Some(Popped(index))
    }

    /// Links what was taken the other way round. Bounded by the number of sources.
    fn turn_round<A: Atomic, const N: usize>(&mut self, mut last: u64, sources: &Sources<A, N>) {
        while let Some(index) = last.checked_sub(1) {
            let before = &sources.at(index as u16).next;
            let earlier = before.load();
            before.store(self.first);
            self.first = last;
            last = earlier;
        }
    }
}

/// Puts everything of a CPU that stops into the queue of one that goes on. True: wake whoever serves that.
pub fn retire<A: Atomic, const N: usize>(
    sources: &Sources<A, N>, from: (&Queue<A>, &mut Backlog), to: &Queue<A>,
) -> bool {
    let mut wake = false;
    while let Some(popped) = from.1.pop(from.0, sources) {
        wake |= to.push(sources, popped.into_other());
    }
    wake
}
