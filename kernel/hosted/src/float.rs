// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point registers that remember: what they hold, and every move to and from memory.
//!
//! A load writes what its owner can see and leaves the rest as it was, so what a shorter vector's owner must not see
//! stays there to be found.

use crate::board::Board;
use trellis_core::float::{FloatMove, Layout, Lengths, MOST_LANES};

const VECTOR: usize = 16 * MOST_LANES as usize;
const PREDICATE: usize = 2 * MOST_LANES as usize;

/// A move that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Which way.
    pub way: FloatMove,
    /// Whose: the first page of its area, or guest's tag and vCPU's number for one that lies in a context.
    pub who: u64,
    /// Lanes of its vectors.
    pub lanes: u8,
}

/// A CPU's registers.
#[derive(Clone, Debug)]
pub struct FloatFile {
    /// FPSR, FPCR, ZCR.
    pub status: [u64; 3],
    vectors: [[u8; VECTOR]; 32],
    /// Predicates, then FFR.
    predicates: [[u8; PREDICATE]; 17],
    /// Every move, in order.
    pub moves: Vec<Moved>,
    /// Lengths it can have.
    pub lengths: Lengths,
    /// The thread that may use them until its next entry into the kernel.
    pub opened: Option<u16>,
}

impl FloatFile {
    /// Registers with noise in them.
    pub fn new(lengths: Lengths) -> FloatFile {
        FloatFile {
            status: [0x5a; 3],
            vectors: [[0xa5; VECTOR]; 32],
            predicates: [[0xa5; PREDICATE]; 17],
            moves: Vec::new(),
            lengths,
            opened: None,
        }
    }

    /// Every bit that an owner with so many lanes can see, as an area of its has them.
    pub fn seen(&self, lanes: u8) -> Vec<u8> {
        let layout = Layout::new(lanes);
        let mut bytes = vec![0; layout.bytes() as usize];
        for (index, word) in self.status.iter().enumerate().take(if lanes == 0 { 2 } else { 3 }) {
            bytes[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        for (vector, place) in self.vectors.iter().zip(0u64..) {
            let at = (Layout::VECTORS + place * layout.vector) as usize;
            let length = layout.vector as usize;
            bytes[at..at + length].copy_from_slice(&vector[..length]);
        }
        for (predicate, place) in self.predicates.iter().zip(0u64..) {
            let at = (layout.predicates() + place * layout.predicate) as usize;
            let length = layout.predicate as usize;
            bytes[at..at + length].copy_from_slice(&predicate[..length]);
        }
        bytes
    }

    /// Puts an area into the registers, as far as so many lanes reach.
    pub fn put(&mut self, lanes: u8, bytes: &[u8]) {
        let layout = Layout::new(lanes);
        let word = |index: usize| u64::from_le_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"));
        for index in 0..if lanes == 0 { 2 } else { 3 } {
            self.status[index] = word(index);
        }
        for (vector, place) in self.vectors.iter_mut().zip(0u64..) {
            let at = (Layout::VECTORS + place * layout.vector) as usize;
            let length = layout.vector as usize;
            vector[..length].copy_from_slice(&bytes[at..at + length]);
        }
        for (predicate, place) in self.predicates.iter_mut().zip(0u64..) {
            let at = (layout.predicates() + place * layout.predicate) as usize;
            let length = layout.predicate as usize;
            predicate[..length].copy_from_slice(&bytes[at..at + length]);
        }
    }

    /// A guest writes something of its own, unique to `seed`, into all it can see.
    pub fn write_pattern(&mut self, lanes: u8, seed: u8) {
        self.put(lanes, &pattern(lanes, seed));
    }

    /// The same in memory: an area of the board.
    pub fn move_area(&mut self, way: FloatMove, lanes: u8, board: &mut Board, first: u64) {
        let words = Layout::new(lanes).bytes() / 8;
        match way {
            FloatMove::Save => {
                for (index, word) in self.seen(lanes).chunks(8).enumerate() {
                    let word = u64::from_le_bytes(word.try_into().expect("areas are whole words"));
                    board.set_word(first * 4096 + index as u64 * 8, word);
                }
            }
            FloatMove::Load => {
                let bytes: Vec<u8> = (0..words).flat_map(|i| board.word(first * 4096 + i * 8).to_le_bytes()).collect();
                self.put(lanes, &bytes);
            }
        }
    }

    /// The same in a context.
    pub fn move_context(&mut self, way: FloatMove, words: &mut [u64]) {
        match way {
            FloatMove::Save => {
                for (word, bytes) in words.iter_mut().zip(self.seen(0).chunks(8)) {
                    *word = u64::from_le_bytes(bytes.try_into().expect("areas are whole words"));
                }
            }
            FloatMove::Load => {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                self.put(0, &bytes);
            }
        }
    }
}

/// What [`FloatFile::write_pattern`] writes: every byte that a register has depends on the seed and its place.
pub fn pattern(lanes: u8, seed: u8) -> Vec<u8> {
    let layout = Layout::new(lanes);
    let mut bytes = vec![0; layout.bytes() as usize];
    let registers = (Layout::VECTORS as usize..(layout.ffr() + layout.predicate) as usize).chain(0..16);
    for at in registers {
        bytes[at] = (at as u8).wrapping_mul(37) ^ (at >> 8) as u8 ^ seed.wrapping_mul(101);
    }
    if lanes != 0 {
        bytes[16] = seed & 15;
    }
    bytes
}
