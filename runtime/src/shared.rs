// SPDX-License-Identifier: MIT OR Apache-2.0
//! State that the threads of one server share: a FIFO lock, and a value that whoever comes first builds.
//!
//! A waiter spins a little, then lets others of its priority run, then sleeps on the clock: a holder of lower priority
//! on the same CPU gets its turn. The holder does not inherit the waiter's priority, which needs the kernel's help; hold
//! it for a few hundred instructions and make no call while it is held.

use crate::system::System;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use trellis_idl::kernel::Op;

/// Looks before a waiter lets others run.
const SPINS: u32 = 64;
/// Times that it lets others of its priority run before it sleeps.
const YIELDS: u32 = 4;

/// A word of the lock; a trait, so that a model checker can stand in for the processor.
trait Word {
    fn load(&self, order: Ordering) -> u32;
    fn store(&self, value: u32, order: Ordering);
    fn count_up(&self) -> u32;
}

impl Word for AtomicU32 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }

    #[inline(always)]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }

    #[inline(always)]
    fn count_up(&self) -> u32 {
        self.fetch_add(1, Ordering::Relaxed)
    }
}

/// Whose turn it is: everybody draws a number, and numbers are served in order.
#[derive(Debug)]
struct Turns<W = AtomicU32> {
    next: W,
    serving: W,
}

impl<W: Word> Turns<W> {
    #[inline(always)]
    fn draw(&self) -> u32 {
        self.next.count_up()
    }

    #[inline(always)]
    fn is(&self, number: u32) -> bool {
        self.serving.load(Ordering::Acquire) == number
    }

    /// Whoever has the turn gives it to the next.
    #[inline(always)]
    fn pass(&self) {
        let next = self.serving.load(Ordering::Relaxed).wrapping_add(1);
        self.serving.store(next, Ordering::Release);
    }
}

/// A value behind a FIFO lock.
pub struct Shared<T> {
    turns: Turns,
    value: UnsafeCell<T>,
}

// SAFETY: the ticket gives the value to one thread at a time.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Puts a value behind a lock.
    pub const fn new(value: T) -> Shared<T> {
        Shared { turns: Turns { next: AtomicU32::new(0), serving: AtomicU32::new(0) }, value: UnsafeCell::new(value) }
    }

    /// Waits for the turn and takes the value.
    #[inline]
    pub fn lock(&self, system: &impl System) -> Guard<'_, T> {
        let ticket = self.turns.draw();
        if !self.turns.is(ticket) {
            self.wait(system, ticket);
        }
        Guard { shared: self }
    }

    /// Waits until it is this ticket's turn.
    #[cold]
    fn wait(&self, system: &impl System, ticket: u32) {
        let mut tries = 0u32;
        while !self.turns.is(ticket) {
            tries = tries.saturating_add(1);
            match tries {
                0..=SPINS => core::hint::spin_loop(),
                _ if tries <= SPINS + YIELDS => let_others_run(system),
                _ => sleep(system),
            }
        }
    }
}

/// Others of this priority run.
fn let_others_run(system: &impl System) {
    // A kernel that refuses this leaves a busy wait, which is right as well.
    let _ = system.invoke(Op::Yield, [0; 6]);
    #[cfg(not(target_os = "none"))]
    std::thread::yield_now();
}

/// Everybody runs for a tenth of a millisecond.
fn sleep(system: &impl System) {
    if let Ok([now, hz, _]) = system.invoke(Op::Clock, [0; 6]) {
        system.wait(0, now + hz / 10_000 + 1);
    }
    #[cfg(not(target_os = "none"))]
    std::thread::yield_now();
}

impl<T> core::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shared").field("turns", &self.turns).finish_non_exhaustive()
    }
}

/// The value while it is held.
#[derive(Debug)]
pub struct Guard<'a, T> {
    shared: &'a Shared<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard's ticket is served, nobody else's.
        unsafe { &*self.shared.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard's ticket is served, nobody else's, and the guard is borrowed mutably.
        unsafe { &mut *self.shared.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.shared.turns.pass();
    }
}

/// A value that the first thread builds and all others use.
pub struct Once<T> {
    built: Shared<()>,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written once, under the lock, before any reference to it is made.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// Not built yet.
    pub const fn new() -> Once<T> {
        Once { built: Shared::new(()), value: UnsafeCell::new(None) }
    }

    /// The value; whoever comes first builds it. After an error the next one tries again.
    pub fn get_or_build<E>(&self, system: &impl System, build: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        let _turn = self.built.lock(system);
        // SAFETY: the lock is held, so nobody writes.
        if let Some(value) = unsafe { (*self.value.get()).as_ref() } {
            return Ok(value);
        }
        let built = build()?;
        // SAFETY: the lock is held and no reference was given out: the value was none.
        let place = unsafe { &mut *self.value.get() };
        Ok(place.insert(built))
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> core::fmt::Debug for Once<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Once")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::kernel::{Refusal, WORDS};

    struct Nothing;
    impl System for Nothing {
        fn invoke(&self, _: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
            Err(Refusal::NoOperation)
        }
        fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
            Err(Refusal::NoOperation)
        }
        fn wait(&self, _: u64, _: u64) -> u64 {
            0
        }
        fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
            f(&mut [0; 4096])
        }
    }

    #[test]
    fn threads_take_turns() {
        let shared = Shared::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| *shared.lock(&Nothing) += 1));
            }
        });
        assert_eq!(*shared.lock(&Nothing), 4000);
    }

    #[test]
    fn a_value_is_built_once_and_an_error_is_tried_again() {
        let once = Once::new();
        assert_eq!(once.get_or_build(&Nothing, || Err::<u8, _>("not yet")), Err("not yet"));
        assert_eq!(once.get_or_build(&Nothing, || Ok::<_, &str>(5)), Ok(&5));
        assert_eq!(once.get_or_build(&Nothing, || Ok::<_, &str>(6)), Ok(&5));
    }

    impl Word for loom::sync::atomic::AtomicU32 {
        fn load(&self, order: Ordering) -> u32 {
            self.load(order)
        }

        fn store(&self, value: u32, order: Ordering) {
            self.store(value, order);
        }

        fn count_up(&self) -> u32 {
            self.fetch_add(1, Ordering::Relaxed)
        }
    }

    type LoomTurns = Turns<loom::sync::atomic::AtomicU32>;

    /// What two threads do in turn; loom reports every access of the value that is not ordered.
    fn two_in_turn(pass: fn(&LoomTurns)) {
        let word = || loom::sync::atomic::AtomicU32::new(0);
        let shared = loom::sync::Arc::new((Turns { next: word(), serving: word() }, loom::cell::UnsafeCell::new(0)));
        let visit = move |shared: &(LoomTurns, loom::cell::UnsafeCell<u32>)| {
            let ticket = shared.0.draw();
            while !shared.0.is(ticket) {
                loom::thread::yield_now();
            }
            // SAFETY: this is what the model shows: loom fails when somebody else touches it meanwhile.
            shared.1.with_mut(|value| unsafe { *value += 1 });
            pass(&shared.0);
        };
        let other = shared.clone();
        let thread = loom::thread::spawn(move || visit(&other));
        visit(&shared);
        thread.join().unwrap();
        // SAFETY: the other thread has ended.
        assert_eq!(shared.1.with(|value| unsafe { *value }), 2);
    }

    #[test]
    fn no_order_of_memory_lets_two_in_at_once() {
        loom::model(|| two_in_turn(|turns| turns.pass()));
    }

    #[test]
    fn a_turn_that_is_passed_without_order_is_found_out() {
        let model = || two_in_turn(|turns| turns.serving.store(turns.serving.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
        assert!(std::panic::catch_unwind(|| loom::model(model)).is_err());
    }
}
