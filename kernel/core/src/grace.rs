// SPDX-License-Identifier: MIT OR Apache-2.0
//! Quiescence: when every CPU has left the kernel once since something was taken away, nobody can still be using it.
//!
//! Whoever takes something away keeps a *mark*. Before it is used again, [`crate::shared::Shared::settled`] compares the
//! mark with what every CPU has seen; those that lag are kicked, and nobody waits in the kernel. A CPU says what it has
//! seen when it enters for a kick or an operation off the hot doors ([`Grace::pass`]); those know nothing of this.

use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::boot::MAX_CPUS;

/// A point in time that every CPU must have passed; 0 is past for all.
pub type Mark = u64;

/// The epoch, and the last one that each CPU has entered the kernel in.
#[derive(Debug)]
pub struct Grace<W = AtomicU64> {
    epoch: W,
    seen: [W; MAX_CPUS],
}

impl Default for Grace {
    fn default() -> Self {
        Self::new()
    }
}

impl Grace {
    /// Nothing was taken away yet.
    pub const fn new() -> Self {
        Grace { epoch: AtomicU64::new(0), seen: [const { AtomicU64::new(0) }; MAX_CPUS] }
    }
}

impl<W: Word> Grace<W> {
    /// The mark of what was taken away just now.
    pub fn mark(&self) -> Mark {
        self.epoch.load(Ordering::Acquire) + 1
    }

    /// This CPU uses nothing that it read in an earlier entry. Its loads were before this store.
    pub fn pass(&self, cpu: u16) {
        let epoch = self.epoch.load(Ordering::Acquire);
        let seen = &self.seen[cpu as usize % MAX_CPUS];
        if seen.load(Ordering::Relaxed) != epoch {
            seen.store(epoch, Ordering::Release);
        }
    }

    /// Those of `cpus` that have not passed the mark, one bit each. The epoch that they shall see begins with this.
    pub fn behind(&self, mark: Mark, cpus: u64) -> u64 {
        let lags = |cpu: usize| self.seen[cpu].load(Ordering::Acquire) < mark;
        let behind = (0..MAX_CPUS.min(64)).filter(|cpu| cpus >> cpu & 1 == 1 && lags(*cpu));
        let behind = behind.fold(0, |all, cpu| all | 1 << cpu);
        if behind != 0 {
            self.epoch.raise_to(mark);
        }
        behind
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One in loom's memory.
    pub fn model() -> Grace<loom::sync::atomic::AtomicU64> {
        let word = || loom::sync::atomic::AtomicU64::new(0);
        Grace { epoch: word(), seen: [(); MAX_CPUS].map(|()| word()) }
    }

    #[test]
    fn a_mark_is_passed_by_an_entry_after_it_and_by_none_before() {
        let grace = Grace::new();
        grace.pass(1);
        let mark = grace.mark();
        grace.pass(1);
        assert_eq!(grace.behind(mark, 0b110), 0b110, "the epoch had not begun");
        grace.pass(1);
        assert_eq!(grace.behind(mark, 0b110), 0b100);
        let later = grace.mark();
        grace.pass(2);
        assert_eq!(grace.behind(mark, 0b110), 0);
        assert_eq!(grace.behind(later, 0b110), 0b110);
    }

    #[test]
    fn a_lone_cpu_is_never_behind() {
        let grace = Grace::new();
        assert_eq!(grace.behind(grace.mark(), 0), 0);
    }
}
