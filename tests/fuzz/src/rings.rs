// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring page whose other side is hostile: its index and its bytes are another number at every look.

use std::cell::{Cell, RefCell};
use trellis_idl::wire::ToRoot;
use trellis_runtime::ring::{CAPACITY, Consumer, MAX_RECORD, Memory, Producer};

/// A page that a neighbour rewrites all the time. Our own index is where we put it, unless the neighbour writes over it.
struct Hostile<'a> {
    left: RefCell<&'a [u8]>,
    head: Cell<u32>,
    tail: Cell<u32>,
}

impl Hostile<'_> {
    fn byte(&self) -> Option<u8> {
        let mut left = self.left.borrow_mut();
        let (first, rest) = left.split_first()?;
        *left = rest;
        Some(*first)
    }

    /// A place near the one there was, at an end, or anywhere.
    fn index(&self, before: u32) -> u32 {
        let Some(byte) = self.byte() else { return before };
        match byte {
            0..0x80 => before,
            0x80..0xc0 => before.wrapping_add(u32::from(byte & 0x3f)),
            0xc0..0xe0 => CAPACITY as u32 - 16 + u32::from(byte & 0x1f),
            _ => u32::from_le_bytes([0; 4].map(|_: u8| self.byte().unwrap_or(byte))),
        }
    }
}

impl Memory for &Hostile<'_> {
    fn capacity(&self) -> usize {
        CAPACITY
    }
    fn head(&self) -> u32 {
        self.head.set(self.index(self.head.get()));
        self.head.get()
    }
    fn set_head(&self, value: u32) {
        assert!((value as usize) < CAPACITY, "a producer stores no index outside the ring");
        self.head.set(value);
    }
    fn tail(&self) -> u32 {
        self.tail.set(self.index(self.tail.get()));
        self.tail.get()
    }
    fn set_tail(&self, value: u32) {
        assert!((value as usize) < CAPACITY, "a consumer stores no index outside the ring");
        self.tail.set(value);
    }
    fn load(&self, index: usize) -> u8 {
        assert!(index < CAPACITY);
        self.byte().unwrap_or_default()
    }
    fn store(&self, index: usize, _: u8) {
        assert!(index < CAPACITY);
    }
}

/// Both sides against such a page until the bytes are used up.
pub fn run(bytes: &[u8]) {
    let page = Hostile { left: RefCell::new(bytes), head: Cell::new(0), tail: Cell::new(0) };
    let (mut producer, mut consumer) = (Producer::new(&page), Consumer::new(&page));
    let mut record = [0; MAX_RECORD];
    // The page keeps its last numbers when nothing is left, so an end is certain.
    while let Some(what) = page.byte() {
        let count = usize::from(what >> 3) * 16;
        match what & 7 {
            0 => assert!(producer.space() < CAPACITY),
            1 => assert!(producer.write(&record[..count]) <= count),
            2 => drop(producer.write_record(&record[..count])),
            3 => drop(producer.send(&ToRoot::Ready)),
            4 => assert!(consumer.read(&mut record[..count]) <= count),
            5 => assert!(consumer.read_record(&mut record).is_none_or(|record| record.len() <= MAX_RECORD)),
            6 => drop(consumer.receive::<ToRoot>()),
            _ => consumer.clear(),
        }
    }
}

/// Indices that stay, move a little, jump to the end, and are wild; each operation on each.
pub fn seeds() -> Vec<Vec<u8>> {
    let moods = [0x00, 0x85, 0xdf, 0xf0];
    moods.map(|mood| (0..=255u8).step_by(5).flat_map(|what| [what, mood, mood, what, 1, 0]).collect()).to_vec()
}
