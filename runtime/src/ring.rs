// SPDX-License-Identifier: MIT OR Apache-2.0
//! A byte ring in one page that two servers share: one produces, the other consumes, neither trusts the other.
//!
//! The page: the producer's index at byte 0, the consumer's at byte 64, data from byte 128 on. Each index is a place in
//! the data; equal means empty, so one byte always stays free. Either side may find any number in the page at any time:
//! an index that is no place in the data reads as "empty" to the consumer and "full" to the producer, and every byte is
//! an atomic, so that a race with a hostile neighbour is a wrong byte and never undefined behaviour.
//!
//! Records (reports) are framed: length, two bytes little-endian, then postcard; written whole or not at all.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of data in a ring page.
pub const CAPACITY: usize = 4096 - 128;
/// Most bytes of a record.
pub const MAX_RECORD: usize = 512;

/// What a ring stands in. `Relaxed` accesses of data; the index stores release, the index loads acquire.
pub trait Memory {
    /// Bytes of data.
    fn capacity(&self) -> usize;
    /// Loads the producer's index (acquire).
    fn head(&self) -> u32;
    /// Stores the producer's index (release).
    fn set_head(&self, value: u32);
    /// Loads the consumer's index (acquire).
    fn tail(&self) -> u32;
    /// Stores the consumer's index (release).
    fn set_tail(&self, value: u32);
    /// One byte of data; callers keep `index` below the capacity.
    fn load(&self, index: usize) -> u8;
    /// Puts one byte.
    fn store(&self, index: usize, value: u8);
}

/// A ring page.
#[repr(C, align(4096))]
pub struct RingPage {
    head: AtomicU32,
    _head_line: [AtomicU32; 15],
    tail: AtomicU32,
    _tail_line: [AtomicU32; 15],
    data: [AtomicU8; CAPACITY],
}

const _: () = assert!(size_of::<RingPage>() == 4096);
const _: () = assert!(core::mem::offset_of!(RingPage, tail) == 64);
const _: () = assert!(core::mem::offset_of!(RingPage, data) == 128);

impl RingPage {
    /// An empty ring, as a zeroed page is.
    pub const fn new() -> RingPage {
        RingPage {
            head: AtomicU32::new(0),
            _head_line: [const { AtomicU32::new(0) }; 15],
            tail: AtomicU32::new(0),
            _tail_line: [const { AtomicU32::new(0) }; 15],
            data: [const { AtomicU8::new(0) }; CAPACITY],
        }
    }
}

impl Default for RingPage {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for RingPage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RingPage").field("head", &self.head).field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl Memory for &RingPage {
    fn capacity(&self) -> usize {
        CAPACITY
    }
    fn head(&self) -> u32 {
        self.head.load(Ordering::Acquire)
    }
    fn set_head(&self, value: u32) {
        self.head.store(value, Ordering::Release);
    }
    fn tail(&self) -> u32 {
        self.tail.load(Ordering::Acquire)
    }
    fn set_tail(&self, value: u32) {
        self.tail.store(value, Ordering::Release);
    }
    fn load(&self, index: usize) -> u8 {
        self.data.get(index).map_or(0, |byte| byte.load(Ordering::Relaxed))
    }
    fn store(&self, index: usize, value: u8) {
        if let Some(byte) = self.data.get(index) {
            byte.store(value, Ordering::Relaxed);
        }
    }
}

/// Ring page `index` of this server ([`trellis_idl::layout::RINGS`]).
#[cfg(target_os = "none")]
pub fn page(index: usize) -> &'static RingPage {
    use trellis_idl::layout::{MAX_RINGS, RINGS};
    assert!(index < MAX_RINGS, "no such ring page");
    let address = RINGS as usize + index * 4096;
    // SAFETY: a page aligned address in a range that holds nothing but ring pages. Every bit pattern is a valid
    // `RingPage`, all of it is atomics, so it may be shared with anybody; where root mapped none, using it is a fault.
    unsafe { &*(address as *const RingPage) }
}

/// The two indices, when both are places in the data.
fn indices(memory: &impl Memory) -> Option<(usize, usize)> {
    let (head, tail) = (memory.head() as usize, memory.tail() as usize);
    let capacity = memory.capacity();
    (head < capacity && tail < capacity).then_some((head, tail))
}

/// `index + count`, round the end; both below the capacity or equal to it.
fn advance(index: usize, count: usize, capacity: usize) -> usize {
    let next = index + count;
    if next >= capacity { next - capacity } else { next }
}

/// The writing side. There is one for each ring; threads that share it lock.
#[derive(Debug)]
pub struct Producer<M>(M);

impl<M: Memory> Producer<M> {
    /// The writing side of a ring.
    pub const fn new(memory: M) -> Producer<M> {
        Producer(memory)
    }

    /// Bytes that fit just now.
    pub fn space(&self) -> usize {
        let capacity = self.0.capacity();
        match indices(&self.0) {
            Some((head, tail)) if head >= tail => capacity - 1 - (head - tail),
            Some((head, tail)) => tail - head - 1,
            None => 0,
        }
    }

    /// Writes as much as fits. Back: how much that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        self.put(bytes.get(..count).unwrap_or_default(), &[]);
        count
    }

    /// Writes all or nothing. Back: whether it did.
    pub fn write_all(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.space();
        if fits {
            self.put(bytes, &[]);
        }
        fits
    }

    /// Writes a record of bytes, whole or not at all. Back: whether it did.
    pub fn write_record(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > MAX_RECORD || bytes.len() + 2 > self.space() {
            return false;
        }
        self.put(&(bytes.len() as u16).to_le_bytes(), bytes);
        true
    }

    /// Sends a value as a record. Back: whether it went; a full ring is the caller's to try again.
    pub fn send<T: Serialize>(&mut self, value: &T) -> bool {
        let mut scratch = [0; MAX_RECORD];
        match postcard::to_slice(value, &mut scratch) {
            Ok(bytes) => self.write_record(bytes),
            Err(_) => false,
        }
    }

    /// Stores both pieces, which fit, and makes them visible at once.
    fn put(&mut self, first: &[u8], second: &[u8]) {
        let Some((mut head, _)) = indices(&self.0) else { return };
        let capacity = self.0.capacity();
        for &byte in first.iter().chain(second) {
            self.0.store(head, byte);
            head = advance(head, 1, capacity);
        }
        self.0.set_head(head as u32);
    }
}

/// The reading side. There is one for each ring.
#[derive(Debug)]
pub struct Consumer<M>(M);

impl<M: Memory> Consumer<M> {
    /// The reading side of a ring.
    pub const fn new(memory: M) -> Consumer<M> {
        Consumer(memory)
    }

    /// Bytes that wait.
    pub fn available(&self) -> usize {
        match indices(&self.0) {
            Some((head, tail)) if head >= tail => head - tail,
            Some((head, tail)) => self.0.capacity() - tail + head,
            None => 0,
        }
    }

    /// Takes as many bytes as wait and fit. Back: how many.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.available());
        self.copy(0, bytes.get_mut(..count).unwrap_or_default());
        self.skip(count);
        count
    }

    /// Takes a record. A length that no producer of ours writes empties the ring: what follows means nothing.
    pub fn read_record<'a>(&mut self, bytes: &'a mut [u8; MAX_RECORD]) -> Option<&'a [u8]> {
        let available = self.available();
        if available < 2 {
            return None;
        }
        let mut length = [0; 2];
        self.copy(0, &mut length);
        let length = usize::from(u16::from_le_bytes(length));
        if length > MAX_RECORD || length + 2 > available {
            self.skip(available);
            return None;
        }
        let record = bytes.get_mut(..length)?;
        self.copy(2, record);
        self.skip(length + 2);
        Some(record)
    }

    /// Takes a record and decodes it. `Some(Err)`: bytes that mean nothing came.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Option<Result<T, postcard::Error>> {
        let mut scratch = [0; MAX_RECORD];
        self.read_record(&mut scratch).map(postcard::from_bytes)
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        self.skip(self.available());
    }

    /// Copies bytes from `offset` behind the consumer's index; they are there.
    fn copy(&self, offset: usize, bytes: &mut [u8]) {
        let Some((_, tail)) = indices(&self.0) else { return };
        let capacity = self.0.capacity();
        let mut index = advance(tail, offset, capacity);
        for byte in bytes {
            *byte = self.0.load(index);
            index = advance(index, 1, capacity);
        }
    }

    /// Gives bytes back to the producer; they are there.
    fn skip(&mut self, count: usize) {
        if let Some((_, tail)) = indices(&self.0) {
            self.0.set_tail(advance(tail, count, self.0.capacity()) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn bytes_come_out_in_order_over_the_end() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        let mut next = 0u8;
        for _ in 0..100 {
            let mut piece = [0; 97];
            piece.iter_mut().enumerate().for_each(|(i, byte)| *byte = next.wrapping_add(i as u8));
            assert_eq!(producer.write(&piece), 97);
            let mut back = [0; 97];
            assert_eq!(consumer.read(&mut back), 97);
            assert_eq!(back, piece);
            next = next.wrapping_add(97);
        }
    }

    #[test]
    fn a_record_is_written_whole_or_not_at_all() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        let mut sent = 0;
        while producer.send(&(sent as u32, [7u8; 30])) {
            sent += 1;
        }
        assert!(sent > 100);
        for i in 0..sent {
            assert_eq!(consumer.receive::<(u32, [u8; 30])>(), Some(Ok((i as u32, [7; 30]))));
        }
        assert_eq!(consumer.receive::<(u32, [u8; 30])>(), None);
    }

    #[test]
    fn wild_indices_are_empty_to_one_side_and_full_to_the_other() {
        let page = RingPage::new();
        page.head.store(CAPACITY as u32, Ordering::Relaxed);
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        assert_eq!(producer.write(b"x"), 0);
        assert_eq!(consumer.read(&mut [0; 4]), 0);
        page.head.store(5, Ordering::Relaxed);
        page.tail.store(u32::MAX, Ordering::Relaxed);
        assert!(!producer.write_record(b"x"));
        assert_eq!(consumer.receive::<u8>(), None);
    }

    #[test]
    fn an_impossible_length_empties_the_ring() {
        let page = RingPage::new();
        let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
        assert!(producer.write_all(&[0xff, 0xff, 1, 2, 3]));
        assert_eq!(consumer.receive::<u8>(), None);
        assert_eq!(consumer.available(), 0);
        assert!(producer.send(&9u8));
        assert_eq!(consumer.receive::<u8>(), Some(Ok(9)));
    }

    proptest! {
        #[test]
        fn the_ring_is_a_queue(steps in proptest::collection::vec((any::<bool>(), 0usize..5000), 1..60)) {
            let page = RingPage::new();
            let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (write, count) in steps {
                if write {
                    let bytes: Vec<u8> = (0..count).map(|i| next.wrapping_add(i as u8)).collect();
                    let wrote = producer.write(&bytes);
                    prop_assert_eq!(wrote, count.min(CAPACITY - 1 - model.len()));
                    model.extend(&bytes[..wrote]);
                    next = next.wrapping_add(wrote as u8);
                } else {
                    let mut bytes = vec![0; count];
                    let read = consumer.read(&mut bytes);
                    prop_assert_eq!(read, count.min(model.len()));
                    prop_assert!(bytes[..read].iter().copied().eq(model.drain(..read)));
                }
                prop_assert_eq!(consumer.available(), model.len());
            }
        }

        #[test]
        fn no_page_content_breaks_either_side(head: u32, tail: u32, fill: u8, small in any::<bool>()) {
            let page = RingPage::new();
            let clamp = |index: u32| if small { index % CAPACITY as u32 } else { index };
            page.head.store(clamp(head), Ordering::Relaxed);
            page.tail.store(clamp(tail), Ordering::Relaxed);
            page.data.iter().for_each(|byte| byte.store(fill, Ordering::Relaxed));
            let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
            let mut bytes = [0; MAX_RECORD];
            for _ in 0..4 {
                let _ = consumer.read_record(&mut bytes).map(<[u8]>::len);
                let _ = producer.write_record(&bytes);
                let _ = consumer.read(&mut bytes);
            }
        }
    }

    /// A ring of a few bytes in loom's memory.
    struct Loom {
        head: loom::sync::atomic::AtomicU32,
        tail: loom::sync::atomic::AtomicU32,
        data: [loom::cell::UnsafeCell<u8>; 3],
    }

    // SAFETY: this is what the model shows: loom reports every unordered access of a data byte.
    unsafe impl Sync for Loom {}

    impl Memory for loom::sync::Arc<Loom> {
        fn capacity(&self) -> usize {
            3
        }
        fn head(&self) -> u32 {
            self.head.load(Ordering::Acquire)
        }
        fn set_head(&self, value: u32) {
            self.head.store(value, Ordering::Release);
        }
        fn tail(&self) -> u32 {
            self.tail.load(Ordering::Acquire)
        }
        fn set_tail(&self, value: u32) {
            self.tail.store(value, Ordering::Release);
        }
        fn load(&self, index: usize) -> u8 {
            // SAFETY: loom checks that no write runs beside this.
            self.data[index].with(|byte| unsafe { *byte })
        }
        fn store(&self, index: usize, value: u8) {
            // SAFETY: loom checks that nothing else touches the byte meanwhile.
            self.data[index].with_mut(|byte| unsafe { *byte = value });
        }
    }

    #[test]
    fn no_interleaving_loses_or_tears_a_byte() {
        loom::model(|| {
            let memory = loom::sync::Arc::new(Loom {
                head: loom::sync::atomic::AtomicU32::new(0),
                tail: loom::sync::atomic::AtomicU32::new(0),
                data: [(); 3].map(|_| loom::cell::UnsafeCell::new(0)),
            });
            let mut producer = Producer::new(memory.clone());
            let writer = loom::thread::spawn(move || {
                let mut sent = 0;
                for byte in 1..=3 {
                    sent += producer.write(&[byte]);
                }
                sent
            });
            let mut consumer = Consumer::new(memory);
            let mut seen = Vec::new();
            for _ in 0..2 {
                let mut bytes = [0; 2];
                let count = consumer.read(&mut bytes);
                seen.extend_from_slice(&bytes[..count]);
            }
            let sent = writer.join().unwrap();
            let mut bytes = [0; 3];
            let count = consumer.read(&mut bytes);
            seen.extend_from_slice(&bytes[..count]);
            // A write may find the ring full; what was written comes out once, in order.
            assert_eq!(seen.len(), sent);
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
        });
    }
}
