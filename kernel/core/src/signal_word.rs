// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread's signal word: bits that any CPU sets and the thread's own CPU takes.
//!
//! The lower 48 bits are signals, as many as a badge has. The upper 16 say which life of the thread's slot they belong
//! to: a CPU that found a thread alive and was slow sets nothing for its successor.

use crate::word::Word;
use core::sync::atomic::Ordering;

/// Bits that are signals.
pub const SIGNALS: u64 = u64::MAX >> 16;

/// The upper bits of the word of a thread with this name: the low half of its generation.
const fn life(name: u64) -> u64 {
    name >> 32 << 48
}

/// The thread's own CPU: from now on the slot is that of the thread with this name (0 = none), with no signal set.
pub fn publish(name: &impl Word, word: &impl Word, new: u64) {
    name.store(0, Ordering::Release);
    word.swap(life(new));
    name.store(new, Ordering::Release);
}

/// Any CPU: sets bits for the thread `to`, if the slot is still its own.
#[inline(always)]
pub fn raise(name: &impl Word, word: &impl Word, to: u64, bits: u64) -> bool {
    if name.load(Ordering::Acquire) != to {
        return false;
    }
    let mut found = word.load(Ordering::Acquire);
    while found & !SIGNALS == life(to) {
        match word.replace(found, found | bits & SIGNALS) {
            Ok(_) => return true,
            Err(other) => found = other,
        }
    }
    false
}

/// Bits of the mask that are set.
#[inline(always)]
pub fn waiting(word: &impl Word, mask: u64) -> u64 {
    word.load(Ordering::Acquire) & mask & SIGNALS
}

/// The thread's own CPU: takes the bits of the mask that are set.
pub fn take(word: &impl Word, mask: u64) -> u64 {
    let bits = waiting(word, mask);
    if bits != 0 {
        word.keep(!bits);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;

    type Raise = fn(&LoomWord, &LoomWord, u64, u64) -> bool;

    const FIRST: u64 = 1 << 32 | 5;
    const SECOND: u64 = 2 << 32 | 5;

    /// Two CPUs signal a thread with a bit each while a third takes: what was raised is taken once.
    fn two_raise(take: fn(&LoomWord, u64) -> u64) {
        let slot = Arc::new((LoomWord::new(0), LoomWord::new(0)));
        publish(&slot.0, &slot.1, FIRST);
        let others = [1u64, 2].map(|bit| {
            let slot = slot.clone();
            loom::thread::spawn(move || raise(&slot.0, &slot.1, FIRST, bit))
        });
        let first = take(&slot.1, 3);
        for other in others {
            assert!(other.join().unwrap(), "the thread lives");
        }
        let second = take(&slot.1, u64::MAX);
        assert_eq!((first | second, first & second), (3, 0), "each bit comes out once");
    }

    /// A CPU signals a thread that ends, and another one takes its slot.
    fn a_slot_changes_hands(raise: Raise) {
        let slot = Arc::new((LoomWord::new(0), LoomWord::new(0)));
        publish(&slot.0, &slot.1, FIRST);
        let other = slot.clone();
        let raiser = loom::thread::spawn(move || raise(&other.0, &other.1, FIRST, 1));
        publish(&slot.0, &slot.1, 0);
        publish(&slot.0, &slot.1, SECOND);
        let _ = raiser.join().unwrap();
        assert_eq!(take(&slot.1, u64::MAX), 0, "the successor was never signalled");
        assert!(super::raise(&slot.0, &slot.1, SECOND, 4) && take(&slot.1, u64::MAX) == 4);
    }

    #[test]
    fn no_order_of_memory_loses_a_signal_or_gives_it_twice() {
        loom::model(|| two_raise(|word, mask| take(word, mask)));
    }

    #[test]
    fn taking_without_one_step_is_found_out() {
        assert!(is_broken(|| two_raise(|word, mask| {
            let found = word.load(Ordering::Acquire);
            word.store(found & !mask, Ordering::Release);
            found & mask & SIGNALS
        })));
    }

    #[test]
    fn no_order_of_memory_signals_a_successor() {
        loom::model(|| a_slot_changes_hands(|name, word, to, bits| raise(name, word, to, bits)));
    }

    #[test]
    fn looking_at_the_name_alone_is_found_out() {
        assert!(is_broken(|| a_slot_changes_hands(|name, word, to, bits| {
            let lives = name.load(Ordering::Acquire) == to;
            if lives {
                word.fetch_or(bits, Ordering::AcqRel);
            }
            lives
        })));
    }
}
