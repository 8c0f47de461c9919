// SPDX-License-Identifier: MIT OR Apache-2.0
//! The few things that lock-free parts do with a word that CPUs share. A trait, so that a model checker can stand in
//! for the hardware and try every order that the memory model allows.

use core::sync::atomic::{AtomicU64, Ordering};

/// A word that CPUs share. Loads acquire, stores release, and what reads and writes at once does both.
pub trait Atomic: core::fmt::Debug {
    /// Reads it.
    fn load(&self) -> u64;
    /// Writes it.
    fn store(&self, value: u64);
    /// Writes it and says what was there.
    fn swap(&self, value: u64) -> u64;
    /// Writes `new` if `old` is there; else says what is.
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64>;
}

impl Atomic for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }
    #[inline(always)]
    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Release);
    }
    #[inline(always)]
    fn swap(&self, value: u64) -> u64 {
        AtomicU64::swap(self, value, Ordering::AcqRel)
    }
    #[inline(always)]
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}
