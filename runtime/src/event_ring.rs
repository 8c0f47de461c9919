// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring of numbered entries in one page that two servers share: events that nobody waits for, from whoever finds them
//! to a monitor.
//!
//! The writer keeps its own count; the reader's count is a word that the reader writes, and is never more than a hint: a
//! forged one can make the writer believe that the ring is full, or that its reader has seen what it has not, and both
//! cost the reader alone. What finds no room is counted: a reader either sees an event or learns how many it missed, and
//! the events' own numbers say where.
//!
//! Who writes into a ring that had been read to its end wakes the reader, and nobody else does. Each side writes its own
//! count, then reads the other's, with a full fence between: at least one of them sees what the other wrote, so either
//! the reader finds the entry or the writer finds that it must wake it.

use crate::handle::Signal;
use crate::system::System;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use trellis_idl::kernel::{SESSIONS, WORDS};
use trellis_idl::layout::slot;
use trellis_idl::plan::MAX_VCPUS;

/// Words of an entry: its number, from 1 on; which event of its vCPU it is; and the words of the exit.
pub const ENTRY_WORDS: usize = 2 + WORDS;
/// Entries of a page.
pub const ENTRIES: usize = 32;

/// The ring that stands in a page.
pub type EventRing = Ring<AtomicU64, ENTRIES, ENTRY_WORDS>;

const _: () = assert!(size_of::<EventRing>() <= 4096);

/// A word that two share, so that a model checker can stand in for the processor.
pub trait Word {
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Writes it.
    fn store(&self, value: u64, order: Ordering);
    /// What was written before is seen by all before what is read afterwards is read.
    fn fence();
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
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Two counts of one side, on a line of the cache of their own.
#[derive(Debug)]
#[repr(C, align(64))]
struct Side<A> {
    /// Entries.
    entries: A,
    /// Events that found no room: of the writer, how many; of the reader, how many it knows of.
    missed: A,
}

/// The words that both share: `N` entries of `W` words; `N` is a power of two.
#[derive(Debug)]
#[repr(C)]
pub struct Ring<A, const N: usize, const W: usize> {
    writer: Side<A>,
    reader: Side<A>,
    entries: [[A; W]; N],
}

impl EventRing {
    /// An empty one, as a zeroed page is.
    pub const EMPTY: EventRing = {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        const SIDE: Side<AtomicU64> = Side { entries: ZERO, missed: ZERO };
        Ring { writer: SIDE, reader: SIDE, entries: [const { [ZERO; ENTRY_WORDS] }; ENTRIES] }
    };
}

impl<A: Word, const N: usize, const W: usize> Ring<A, N, W> {
    /// Entries that the reader has not taken, as far as it can be believed: never more than there are.
    #[inline(always)]
    fn unread(&self, written: u64) -> u64 {
        written.wrapping_sub(self.reader.entries.load(Ordering::Acquire)).min(N as u64)
    }
}

/// The writer's side. There is one for each ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Writer {
    written: u64,
    missed: u64,
}

impl Writer {
    /// Nothing written.
    pub const NEW: Writer = Writer { written: 0, missed: 0 };

    /// Begins anew, while no reader looks.
    pub fn begin<A: Word, const N: usize, const W: usize>(ring: &Ring<A, N, W>) -> Writer {
        ring.writer.entries.store(0, Ordering::Release);
        ring.writer.missed.store(0, Ordering::Release);
        Writer::NEW
    }

    /// Writes an event, or counts it where there is no room. True: the reader had read all there was, and must be woken.
    #[inline(always)]
    pub fn put<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>, event: [u64; W]) -> bool {
        self.fill(ring, |entry| (1..W).for_each(|i| entry[i].store(event[i], Ordering::Relaxed)))
    }

    /// The same; who calls it writes the words but the first.
    #[inline(always)]
    fn fill<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>, write: impl FnOnce(&[A; W])) -> bool {
        if ring.unread(self.written) >= N as u64 {
            self.missed = self.missed.wrapping_add(1);
            ring.writer.missed.store(self.missed, Ordering::Release);
            A::fence();
            return ring.unread(self.written) == 0;
        }
        let entry = &ring.entries[self.written as usize & (N - 1)];
        self.written = self.written.wrapping_add(1);
        entry[0].store(self.written, Ordering::Relaxed);
        write(entry);
        ring.writer.entries.store(self.written, Ordering::Release);
        A::fence();
        // The entry alone is unread. If not even that is, the reader was quicker.
        ring.unread(self.written) == 1
    }
}

/// A page with a ring in it.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct EventPage(pub EventRing);

impl EventPage {
    /// A zeroed page.
    pub const EMPTY: EventPage = EventPage(EventRing::EMPTY);
}

/// The event rings of this server, `count` pages from page `first` of its rings on.
#[cfg(target_os = "none")]
pub fn pages(first: usize, count: usize) -> &'static [EventPage] {
    use trellis_idl::layout::{MAX_RINGS, RINGS};
    assert!(first <= MAX_RINGS && count <= MAX_RINGS - first, "no such ring page");
    let address = RINGS as usize + first * size_of::<EventPage>();
    // SAFETY: page aligned, in a range that holds nothing but ring pages. Every bit pattern is a valid `EventPage`, all of it
    // is atomics, so it may be shared with anybody; where root mapped none, using it is a fault.
    unsafe { core::slice::from_raw_parts(address as *const EventPage, count) }
}

/// The rings of a guest's p2m or vcpu server: of each session of its monitors one for each vCPU.
#[cfg(target_os = "none")]
pub fn of_guest(watchers: u8, vcpus: u8) -> &'static [EventPage] {
    pages(trellis_idl::layout::ring::EVENTS, usize::from(watchers) * usize::from(vcpus))
}

/// What a guest's server tells the guest's monitors: a ring for each session and vCPU. A vCPU's events come one after
/// another, so that each ring has one writer.
#[derive(Debug)]
pub struct Tells {
    pages: &'static [EventPage],
    vcpus: usize,
    counts: [[AtomicU64; 2]; SESSIONS as usize * MAX_VCPUS],
}

impl Tells {
    /// Into these pages: of the first session a ring for each vCPU, then of the next.
    pub const fn new(pages: &'static [EventPage], vcpus: u8) -> Tells {
        let counts = [const { [const { AtomicU64::new(0) }; 2] }; SESSIONS as usize * MAX_VCPUS];
        Tells { pages, vcpus: vcpus as usize, counts }
    }

    #[inline(always)]
    fn ring(&self, session: u8, vcpu: usize) -> Option<(&'static EventRing, &[AtomicU64; 2])> {
        let index = session as usize * self.vcpus + vcpu;
        if vcpu < self.vcpus { Some((&self.pages.get(index)?.0, self.counts.get(index)?)) } else { None }
    }

    /// Tells a session of an event of this vCPU: its number, and the words of its exit. Nobody waits for anybody.
    #[inline(always)]
    pub fn tell(&self, system: &impl System, session: u8, vcpu: usize, number: u64, words: [u64; WORDS]) {
        let Some((ring, [written, missed])) = self.ring(session, vcpu) else { return };
        let mut writer = Writer { written: written.load(Ordering::Relaxed), missed: missed.load(Ordering::Relaxed) };
        let [a, b, c, d, e, f, g, h, i, j] = words;
        // One by one: a loop would want the words in memory, and mostly they come in registers.
        let must_wake = writer.fill(ring, |[_, n, m0, m1, m2, m3, m4, m5, m6, m7, m8, m9]| {
            let set = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
            (set(n, number), set(m0, a), set(m1, b), set(m2, c), set(m3, d), set(m4, e));
            (set(m5, f), set(m6, g), set(m7, h), set(m8, i), set(m9, j));
        });
        written.store(writer.written, Ordering::Relaxed);
        missed.store(writer.missed, Ordering::Relaxed);
        if must_wake {
            wake(system, session);
        }
    }

    /// The guest begins anew, and its monitors with it.
    pub fn begin(&self) {
        for (page, counts) in self.pages.iter().zip(&self.counts) {
            Writer::begin(&page.0);
            counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
    }
}

/// Wakes the reader, and the one that may be about to take its place. Neither need be there.
#[cold]
#[inline(never)]
fn wake(system: &impl System, session: u8) {
    for half in 0..2 {
        let _ = Signal::at(slot::READER + 2 * u64::from(session) + half).raise(system);
    }
}

/// What a reader finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<const W: usize> {
    /// An entry.
    Entry([u64; W]),
    /// So many events found no room since this was said last.
    Missed(u64),
}

/// The reader's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reader {
    taken: u64,
    known: u64,
}

impl Reader {
    /// Nothing read.
    pub const NEW: Reader = Reader { taken: 0, known: 0 };

    /// Begins anew, while no writer writes.
    pub fn begin<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>) {
        *self = Reader::default();
        self.tell(ring);
    }

    /// Goes on where the one before it was.
    pub fn go_on<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>) {
        let [taken, known] = [&ring.reader.entries, &ring.reader.missed].map(|word| word.load(Ordering::Acquire));
        *self = Reader { taken, known };
    }

    fn tell<A: Word, const N: usize, const W: usize>(&self, ring: &Ring<A, N, W>) {
        ring.reader.missed.store(self.known, Ordering::Release);
        ring.reader.entries.store(self.taken, Ordering::Release);
    }

    /// How many events found no room since this was said last, of those before and behind what is still to be read.
    pub fn missed<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>) -> u64 {
        let missed = ring.writer.missed.load(Ordering::Acquire);
        let news = missed.wrapping_sub(self.known);
        self.known = missed;
        self.tell(ring);
        news
    }

    /// What comes next, unless there is nothing more. After that the writer wakes the reader when there is.
    pub fn next<A: Word, const N: usize, const W: usize>(&mut self, ring: &Ring<A, N, W>) -> Option<Found<W>> {
        A::fence();
        let written = ring.writer.entries.load(Ordering::Acquire);
        let waiting = written.wrapping_sub(self.taken);
        if waiting == 0 {
            let news = self.missed(ring);
            return (news != 0).then_some(Found::Missed(news));
        }
        if waiting > N as u64 {
            // No writer is that far ahead of what it was told: these are not the counts that were here.
            self.taken = written.wrapping_sub(N as u64).min(written);
        }
        let entry = &ring.entries[self.taken as usize & (N - 1)];
        let words = core::array::from_fn(|i| entry[i].load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        self.tell(ring);
        Some(Found::Entry(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64 as LoomWord};
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    impl Word for LoomWord {
        fn load(&self, order: Ordering) -> u64 {
            self.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.store(value, order);
        }

        fn fence() {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }

    /// The same without its fence.
    struct Bare(LoomWord);

    impl Word for Bare {
        fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, order);
        }

        fn fence() {}
    }

    /// The same with counts that order nothing.
    struct Relaxed(LoomWord);

    impl Word for Relaxed {
        fn load(&self, _: Ordering) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn store(&self, value: u64, _: Ordering) {
            self.0.store(value, Ordering::Relaxed);
        }

        fn fence() {}
    }

    fn is_broken(model: impl Fn() + Sync + Send + 'static) -> bool {
        catch_unwind(AssertUnwindSafe(|| loom::model(model))).is_err()
    }

    type Small<A> = Ring<A, 2, 2>;

    fn empty<A, const N: usize, const W: usize>(word: fn() -> A) -> Ring<A, N, W> {
        let side = || Side { entries: word(), missed: word() };
        Ring { writer: side(), reader: side(), entries: [(); N].map(|()| [(); W].map(|()| word())) }
    }

    /// What a reader has seen: numbers in order, and how many it missed.
    fn read<A: Word>(reader: &mut Reader, ring: &Small<A>, seen: &mut (u64, u64, u64)) -> bool {
        match reader.next(ring) {
            None => return false,
            Some(Found::Missed(count)) => seen.2 += count,
            Some(Found::Entry([number, event])) => {
                assert_eq!(number, seen.0 + 1, "numbered without a gap");
                assert!(event > seen.1, "in order");
                (seen.0, seen.1) = (number, event);
            }
        }
        true
    }

    /// A reader beside a writer of three events, with room for two: it reads to the end once, and again when it is woken.
    fn a_reader_beside_a_writer<A: Word + Send + Sync + 'static>(word: fn() -> A) {
        let (ring, woken) = (Arc::new(empty(word)), Arc::new(AtomicBool::new(false)));
        let (there, bell) = (ring.clone(), woken.clone());
        let writing = loom::thread::spawn(move || {
            let mut writer = Writer::NEW;
            for event in 1..=3 {
                if writer.put(&there, [0, event]) {
                    bell.store(true, Ordering::Release);
                }
            }
        });
        let (mut reader, mut seen) = (Reader::default(), (0, 0, 0));
        // It wakes, by the bell or not, and reads to the end.
        woken.swap(false, Ordering::AcqRel);
        while read(&mut reader, &ring, &mut seen) {}
        writing.join().unwrap();
        // Asleep until the bell rings again, or has rung meanwhile.
        if woken.load(Ordering::Acquire) {
            while read(&mut reader, &ring, &mut seen) {}
        }
        assert_eq!(seen.0 + seen.2, 3, "seen or counted: {seen:?}");
    }

    #[test]
    fn a_reader_sees_or_counts_each_event_and_is_woken_for_it() {
        loom::model(|| a_reader_beside_a_writer(|| LoomWord::new(0)));
    }

    #[test]
    fn a_writer_that_looks_before_it_is_seen_is_found_out() {
        assert!(is_broken(|| a_reader_beside_a_writer(|| Bare(LoomWord::new(0)))));
    }

    #[test]
    fn counts_that_order_nothing_are_found_out() {
        assert!(is_broken(|| a_reader_beside_a_writer(|| Relaxed(LoomWord::new(0)))));
    }

    type Plain = Ring<AtomicU64, 8, 3>;

    fn plain() -> Plain {
        empty(|| AtomicU64::new(0))
    }

    #[test]
    fn a_reader_is_told_what_it_missed_and_the_next_goes_on_where_it_was() {
        let (ring, mut writer, mut reader) = (plain(), Writer::NEW, Reader::default());
        assert!(writer.put(&ring, [9, 5, 6]), "its reader sleeps");
        assert!((1..8).all(|n| !writer.put(&ring, [9, 5 + n, 6])), "it will find them");
        assert_eq!([writer.put(&ring, [0; 3]), writer.put(&ring, [0; 3])], [false; 2]);
        (0..4).for_each(|n| assert_eq!(reader.next(&ring), Some(Found::Entry([n + 1, 5 + n, 6]))));
        let mut next = Reader::default();
        next.go_on(&ring);
        (4..8).for_each(|n| assert_eq!(next.next(&ring), Some(Found::Entry([n + 1, 5 + n, 6]))));
        assert_eq!([next.next(&ring), next.next(&ring)], [Some(Found::Missed(2)), None]);
        assert!(writer.put(&ring, [0, 20, 0]));
        next.go_on(&ring);
        assert_eq!([next.next(&ring), next.next(&ring)], [Some(Found::Entry([9, 20, 0])), None]);
        writer = Writer::begin(&ring);
        next.begin(&ring);
        assert!(writer.put(&ring, [0, 1, 2]));
        assert_eq!(next.next(&ring), Some(Found::Entry([1, 1, 2])));
    }

    #[test]
    fn an_empty_page_is_an_empty_ring() {
        let mut reader = Reader::default();
        assert_eq!(reader.next(&EventRing::EMPTY), None);
    }

    proptest! {
        /// Whatever the reader writes as its counts, the writer writes entries in order and loses none uncounted.
        #[test]
        fn a_forged_count_costs_its_reader_alone(tails in prop::collection::vec(any::<u64>(), 1..40)) {
            let (ring, mut writer) = (plain(), Writer::NEW);
            for (event, tail) in (1..).zip(tails) {
                ring.reader.entries.store(tail, Ordering::Relaxed);
                writer.put(&ring, [0, event, 0]);
                prop_assert_eq!(writer.written + writer.missed, event);
                let last = &ring.entries[writer.written.wrapping_sub(1) as usize & 7];
                prop_assert!(writer.written == 0 || last[0].load(Ordering::Relaxed) == writer.written);
            }
        }

        /// Whatever the writer writes, a reader comes to an end and stays in the ring.
        #[test]
        fn a_forged_writer_costs_its_reader_a_ring_at_most(heads in prop::collection::vec(any::<(u64, u64)>(), 1..20)) {
            let (ring, mut reader) = (plain(), Reader::default());
            for (head, missed) in heads {
                ring.writer.entries.store(head, Ordering::Relaxed);
                ring.writer.missed.store(missed, Ordering::Relaxed);
                let found = (0..20).take_while(|_| reader.next(&ring).is_some()).count();
                prop_assert!(found <= 9, "{} entries", found);
            }
        }
    }
}
