// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's side of a swap: a program's file, and questions that root answers.

use crate::whole::{Sight, Whole};
use trellis_idl::control::{Ask, Name, Offer, Part, Piece, UPLOAD_PIECE};
use trellis_idl::layout::PROGRAM;
use trellis_root::Root;

/// A program's file: a page of code and one of data (System V gABI 4, 5). Whatever is in them, what runs is the walks' own monitor.
pub fn file() -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2u16, 183].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([PROGRAM, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    for (offset, address, flags) in [(0u64, PROGRAM, 5u32), (100, PROGRAM + 0x1000, 6)] {
        file.extend([1, flags].map(u32::to_le_bytes).concat());
        file.extend([offset, address, address, 200, 300, 0x1000].map(u64::to_le_bytes).concat());
    }
    file.resize(700, 0x5a);
    file
}

/// The monitor's name.
pub fn watchdog() -> Name {
    Name::try_from("watchdog").expect("a short name")
}

/// A system that a host asks.
#[derive(Debug)]
pub struct Asked {
    /// The system.
    pub whole: &'static Whole,
    /// Its root.
    pub root: Root<'static, Sight<'static>>,
    number: u32,
}

impl Asked {
    /// Nothing has been asked.
    pub fn new(whole: &'static Whole, root: Root<'static, Sight<'static>>) -> Asked {
        Asked { whole, root, number: 0 }
    }

    /// What the host asks, and the whole answer.
    pub fn ask(&mut self, ask: Ask) -> Vec<Part> {
        self.begin(ask);
        self.answer(|_, _| {})
    }

    /// What the host asks. Root has not heard of it yet.
    pub fn begin(&mut self, ask: Ask) {
        self.number += 1;
        self.whole.ask(self.number, ask);
    }

    /// Lets root work until it has answered; before each of its steps something may happen, the first is number 1.
    pub fn answer(&mut self, mut before: impl FnMut(&'static Whole, u64)) -> Vec<Part> {
        let mut parts = Vec::new();
        for step in 1..100 {
            before(self.whole, step);
            self.root.step(&self.whole.body(0, 0));
            parts.extend(self.whole.answers());
            if let Some(Part::Done | Part::Refused(_)) = parts.last() {
                return parts;
            }
        }
        panic!("no answer: {parts:?}")
    }

    /// Sends a file.
    pub fn upload(&mut self, offer: Offer, file: &[u8]) {
        assert_eq!(self.ask(Ask::Upload(offer)), [Part::Done]);
        for (index, bytes) in file.chunks(UPLOAD_PIECE).enumerate() {
            let piece = Piece { offset: (index * UPLOAD_PIECE) as u32, bytes: bytes.iter().copied().collect() };
            assert_eq!(self.ask(Ask::Piece(piece)), [Part::Done]);
        }
    }

    /// Root has its say if there is something for it; else the others go on.
    pub fn step_or_rest(&mut self) {
        self.whole.go_on();
        if self.whole.is_root_wanted() {
            self.root.step(&self.whole.body(0, 0));
        }
    }
}
