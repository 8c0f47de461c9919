// SPDX-License-Identifier: MIT OR Apache-2.0
//! An atomic word, as the protocols between CPUs use it: a trait, so that a model checker can stand in for the
//! processor and try every order that memory allows.

use core::sync::atomic::{AtomicU64, Ordering};

/// A word that CPUs share. Each use says what it orders, and the model in the same file shows that it is enough.
pub trait Word {
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Writes it.
    fn store(&self, value: u64, order: Ordering);
    /// Puts another value there; what was there before.
    fn swap(&self, value: u64) -> u64;
    /// Clears all bits but these; what was there before.
    fn keep(&self, bits: u64) -> u64;
    /// Puts this value there unless a larger one is.
    fn raise_to(&self, value: u64);
    /// Puts `new` there if `old` is; else says what is.
    fn replace(&self, old: u64, new: u64) -> Result<u64, u64>;
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }

    #[inline(always)]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }

    #[inline(always)]
    fn swap(&self, value: u64) -> u64 {
        AtomicU64::swap(self, value, Ordering::AcqRel)
    }

    #[inline(always)]
    fn keep(&self, bits: u64) -> u64 {
        self.fetch_and(bits, Ordering::AcqRel)
    }

    #[inline(always)]
    fn raise_to(&self, value: u64) {
        self.fetch_max(value, Ordering::AcqRel);
    }

    #[inline(always)]
    fn replace(&self, old: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }
}

#[cfg(test)]
pub(crate) mod model {
    //! Words of loom's, and what broken variants are expected to do.

    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    impl Word for loom::sync::atomic::AtomicU64 {
        fn load(&self, order: Ordering) -> u64 {
            self.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.store(value, order);
        }

        fn swap(&self, value: u64) -> u64 {
            self.swap(value, Ordering::AcqRel)
        }

        fn keep(&self, bits: u64) -> u64 {
            self.fetch_and(bits, Ordering::AcqRel)
        }

        fn raise_to(&self, value: u64) {
            self.fetch_max(value, Ordering::AcqRel);
        }

        fn replace(&self, old: u64, new: u64) -> Result<u64, u64> {
            self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
        }
    }

    /// Whether some order of memory breaks what the model asserts.
    pub fn is_broken(model: impl Fn() + Sync + Send + 'static) -> bool {
        catch_unwind(AssertUnwindSafe(|| loom::model(model))).is_err()
    }
}
