// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring of numbered entries from the kernel to one reader, one ring a CPU: events that nobody waits for.
//!
//! The kernel is the only writer and keeps its own count; the reader's count is a word that the reader writes, and is
//! never more than a hint: a forged one can make the kernel believe that the ring is full, or that its reader has seen
//! what it has not, and both cost the reader alone. What finds no room is counted, and the count is an entry of its own
//! as soon as there is room again, before anything newer: a reader either sees an entry or is told how many it missed.
//!
//! Whether the reader must be woken the counts cannot say: each side could read the other's before it was written. Who
//! writes raises the reader's signal afterwards, whose word decides that ([`crate::signal_word`]).

use crate::word::Word;
use core::sync::atomic::Ordering;

/// First word of an entry: its number, from 1 on. The second says what it is.
const NUMBER: usize = 0;
/// Second word of an entry that says how many were lost; the third is the count. No event begins with it.
pub const LOST: u64 = u64::MAX;

/// The words that the kernel and the reader share: `N` entries of `W` words; `N` is a power of two.
#[derive(Debug)]
pub struct Ring<A, const N: usize, const W: usize> {
    /// Entries written; the kernel writes it.
    head: A,
    /// Entries read; the reader writes it.
    tail: A,
    entries: [[A; W]; N],
}

/// The kernel's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Writer {
    /// Entries written.
    written: u64,
    /// Entries that found no room since the last that did.
    lost: u64,
}

impl<A: Word, const N: usize, const W: usize> Ring<A, N, W> {
    /// An empty one, of words that are 0.
    pub const fn new(head: A, tail: A, entries: [[A; W]; N]) -> Self {
        Ring { head, tail, entries }
    }

    /// Entries that the reader has not taken, as far as it can be believed: never more than there are.
    fn unread(&self, written: u64) -> u64 {
        written.wrapping_sub(self.tail.load(Ordering::Acquire)).min(N as u64)
    }

    fn write(&self, number: u64, words: &[u64]) {
        let entry = &self.entries[number as usize & (N - 1)];
        for (i, word) in entry.iter().enumerate() {
            let value = if i == NUMBER { number + 1 } else { words.get(i - 1).copied().unwrap_or(0) };
            word.store(value, Ordering::Relaxed);
        }
        self.head.store(number + 1, Ordering::Release);
    }

    /// The reader: the entry after those it has taken, unless there is none.
    pub fn take(&self, taken: u64) -> Option<[u64; W]> {
        if self.head.load(Ordering::Acquire) <= taken {
            return None;
        }
        let entry = &self.entries[taken as usize & (N - 1)];
        let words = core::array::from_fn(|i| entry[i].load(Ordering::Relaxed));
        self.tail.store(taken + 1, Ordering::Release);
        Some(words)
    }
}

impl Writer {
    /// Nothing written.
    pub const NEW: Writer = Writer { written: 0, lost: 0 };

    /// Writes an event; of more words than an entry has room for, the rest is left out. What was lost before is told
    /// first. False: there is no room, so it counts as lost.
    pub fn put<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>, event: &[u64]) -> bool {
        let unread = ring.unread(self.written);
        let needed = 1 + u64::from(self.lost != 0);
        if unread + needed > N as u64 {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        if self.lost != 0 {
            ring.write(self.written, &[LOST, core::mem::take(&mut self.lost)]);
            self.written += 1;
        }
        ring.write(self.written, event);
        self.written += 1;
        true
    }

    /// Events that were lost and have not been told yet.
    pub const fn untold(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::model::is_broken;
    use core::sync::atomic::AtomicU64;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use proptest::prelude::*;
    use std::vec::Vec;

    type Small = Ring<LoomWord, 2, 3>;

    fn ring() -> Arc<Small> {
        let word = || LoomWord::new(0);
        Arc::new(Ring::new(word(), word(), [(); 2].map(|()| [(); 3].map(|()| word()))))
    }

    /// A reader beside a writer of three events: what it read and what was lost are all there were, in order.
    fn a_reader_beside_a_writer(take: fn(&Small, u64) -> Option<[u64; 3]>) {
        let ring = ring();
        let mut writer = Writer::NEW;
        let reader = ring.clone();
        let reading = loom::thread::spawn(move || {
            let mut seen = Vec::new();
            for _ in 0..2 {
                seen.extend(take(&reader, seen.len() as u64));
            }
            seen
        });
        (1..=3).for_each(|n| {
            writer.put(&ring, &[n]);
        });
        let mut seen = reading.join().unwrap();
        while let Some(entry) = take(&ring, seen.len() as u64) {
            seen.push(entry);
        }
        let mut events = 0;
        for (i, [number, what, count]) in seen.iter().copied().enumerate() {
            assert_eq!(number, i as u64 + 1, "numbered without a gap");
            events += if what == LOST { count } else { 1 };
            assert!(what == LOST || what == events, "in order: {seen:?}");
        }
        assert_eq!(events + writer.untold(), 3, "seen or counted");
    }

    #[test]
    fn entries_are_read_whole_in_order_or_counted() {
        loom::model(|| a_reader_beside_a_writer(Ring::take));
    }

    #[test]
    fn giving_room_back_before_reading_is_found_out() {
        let early = |ring: &Small, taken: u64| {
            if ring.head.load(Ordering::Acquire) == taken {
                return None;
            }
            ring.tail.store(taken + 1, Ordering::Release);
            Some([0, 1, 2].map(|i: usize| ring.entries[taken as usize & 1][i].load(Ordering::Relaxed)))
        };
        assert!(is_broken(move || a_reader_beside_a_writer(early)));
    }

    #[test]
    fn reading_without_looking_at_the_count_in_order_is_found_out() {
        let relaxed = |ring: &Small, taken: u64| {
            (ring.head.load(Ordering::Relaxed) != taken).then(|| {
                let words = [0, 1, 2].map(|i: usize| ring.entries[taken as usize & 1][i].load(Ordering::Relaxed));
                ring.tail.store(taken + 1, Ordering::Release);
                words
            })
        };
        assert!(is_broken(move || a_reader_beside_a_writer(relaxed)));
    }

    fn plain() -> Ring<AtomicU64, 8, 4> {
        let word = || AtomicU64::new(0);
        Ring::new(word(), word(), [(); 8].map(|()| [(); 4].map(|()| word())))
    }

    #[test]
    fn a_reader_is_told_what_it_missed() {
        let (ring, mut writer) = (plain(), Writer::NEW);
        assert!(writer.put(&ring, &[5, 6, 7, 8, 9]));
        assert!((1..8).all(|_| writer.put(&ring, &[5])));
        assert_eq!([writer.put(&ring, &[5]), writer.put(&ring, &[5])], [false; 2]);
        assert_eq!(ring.take(0), Some([1, 5, 6, 7]), "what has no room in an entry is left out");
        assert!(!writer.put(&ring, &[5]), "there is room for one, and two are needed");
        ring.take(1);
        assert!(writer.put(&ring, &[4]));
        (2..8).for_each(|n| assert_eq!(ring.take(n), Some([n + 1, 5, 0, 0])));
        assert_eq!([ring.take(8), ring.take(9), ring.take(10)], [Some([9, LOST, 3, 0]), Some([10, 4, 0, 0]), None]);
    }

    proptest! {
        /// Whatever a reader writes as its count, the kernel writes entries in order and loses none uncounted.
        #[test]
        fn a_forged_count_costs_its_reader_alone(tails in prop::collection::vec(any::<u64>(), 1..40)) {
            let (ring, mut writer, mut events) = (plain(), Writer::NEW, 0);
            for tail in tails {
                ring.tail.store(tail, Ordering::Relaxed);
                let before = writer;
                let is_there = writer.put(&ring, &[1]);
                let written = before.written + 1 + u64::from(before.lost != 0);
                let expected = if is_there { Writer { written, lost: 0 } } else { Writer { lost: before.lost + 1, ..before } };
                prop_assert_eq!(writer, expected);
                events += 1;
                let last = &ring.entries[writer.written.wrapping_sub(1) as usize & 7];
                prop_assert!(writer.written == 0 || last[NUMBER].load(Ordering::Relaxed) == writer.written);
            }
            prop_assert!(writer.written + writer.lost <= 2 * events);
        }
    }
}
