// SPDX-License-Identifier: MIT OR Apache-2.0
//! A first-in-first-out lock that counts how often it was taken, so that hosts can show that hot paths take none.

use core::sync::atomic::{AtomicU64, Ordering};
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// Something that CPUs share under a lock. Holds are bounded; nobody waits for another CPU while holding one.
#[derive(Debug)]
pub struct Lock<T> {
    taken: AtomicU64,
    inner: TicketMutex<T>,
}

impl<T> Lock<T> {
    /// A free lock around a value.
    pub const fn new(value: T) -> Self {
        Lock { taken: AtomicU64::new(0), inner: TicketMutex::new(value) }
    }

    /// Takes the lock, in order of asking. Out of line: no hot path comes here, and there are many that do.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub fn lock(&self) -> TicketMutexGuard<'_, T> {
        let guard = self.inner.lock();
        self.taken.fetch_add(1, Ordering::Relaxed);
        guard
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<TicketMutexGuard<'_, T>> {
        self.inner.try_lock()
    }

    /// How often it was taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}
