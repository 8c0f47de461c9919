// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console server between hostile bytes on the serial port and hostile servers and guests behind its rings: what
//! it sends reads as frames on the other side, all of them.

use std::cell::{Cell, RefCell};
use trellis_cli::frame::{Decoder, Frame, Item};
use trellis_console::Console;
use trellis_idl::kernel::{Op, Refusal, WORDS};
use trellis_idl::layout::{console_signal, ring};
use trellis_idl::plan::{Channel, ConsoleConfig};
use trellis_idl::wire::FrameKind;
use trellis_runtime::memory::Registers;
use trellis_runtime::{Consumer, Producer, RingPage, System};

/// Ring pages of a console with one server beside it and one guest.
const PAGES: usize = 8;
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const SEND_FULL: u32 = 1 << 5;
const RECEIVE_EMPTY: u32 = 1 << 4;

/// A serial port and a kernel that do what the bytes say.
struct Outside<'a> {
    left: RefCell<&'a [u8]>,
    sent: RefCell<Vec<u8>>,
    /// Bytes that may be read from the serial port before it is empty.
    waiting: Cell<u8>,
    /// Bytes that may be sent before it is full.
    room: Cell<u16>,
}

impl Outside<'_> {
    fn byte(&self) -> u8 {
        let mut left = self.left.borrow_mut();
        let Some((first, rest)) = left.split_first() else { return 0 };
        *left = rest;
        *first
    }
}

impl Registers for &Outside<'_> {
    fn read(&self, offset: usize) -> u32 {
        match offset {
            DATA => {
                self.waiting.set(self.waiting.get().saturating_sub(1));
                u32::from(self.byte())
            }
            FLAGS => {
                let empty = if self.waiting.get() == 0 { RECEIVE_EMPTY } else { 0 };
                empty | if self.room.get() == 0 { SEND_FULL } else { 0 }
            }
            _ => 0,
        }
    }

    fn write(&self, offset: usize, value: u32) {
        if offset == DATA {
            self.room.set(self.room.get().checked_sub(1).expect("there was room"));
            self.sent.borrow_mut().push(value as u8);
        }
    }
}

impl System for Outside<'_> {
    fn invoke(&self, op: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
        match op {
            Op::Clock => Ok([1, 1_000_000, 0]),
            Op::LogRead => Ok([u64::from(self.byte() % 16), 0, 0]),
            _ => Ok([0; 3]),
        }
    }
    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::NoOperation)
    }
    fn wait(&self, mask: u64, _: u64) -> u64 {
        mask & (console_signal::OUTPUT | console_signal::LINE)
    }
    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [b'k'; 4096])
    }
}

thread_local! {
    static RINGS: &'static [RingPage; PAGES] = Box::leak(Box::new([const { RingPage::new() }; PAGES]));
}

/// Each step: bytes into a ring, bytes from the host, room to send; then the console takes a turn.
pub fn run(bytes: &[u8]) {
    let rings = RINGS.with(|rings| *rings);
    rings.iter().for_each(|page| Consumer::new(page).clear());
    let outside =
        Outside { left: RefCell::new(bytes), sent: RefCell::default(), waiting: Cell::new(0), room: Cell::new(0) };
    let channel = |name, is_guest| Channel { name, is_guest };
    let channels = [channel("console", false), channel("p2m.a", false), channel("a", true)];
    let config = ConsoleConfig { channels: channels.into_iter().collect(), uart: true, monitors: 0 };
    let mut console = Console::new(&config, &outside, |index: usize| &rings[index % PAGES]);
    console.open(&outside);
    while !outside.left.borrow().is_empty() {
        fill(&outside, rings);
        outside.waiting.set(outside.byte());
        outside.room.set(u16::from(outside.byte()) * 8);
        console.step(&outside);
    }
    // What is left goes out; then every byte on the wire belongs to a frame.
    for _ in 0..64 {
        outside.room.set(u16::MAX);
        console.step(&outside);
    }
    let (mut decoder, mut items) = (Decoder::default(), Vec::new());
    decoder.push(&outside.sent.borrow(), &mut items);
    decoder.finish(&mut items);
    let raw = items.iter().find(|item| matches!(item, Item::Raw(_)));
    assert_eq!(raw, None, "what the console sends is frames");
}

/// A neighbour writes into one of the rings: text, or a record, or what is no record.
fn fill(outside: &Outside<'_>, rings: &[RingPage; PAGES]) {
    let (which, count) = (outside.byte(), usize::from(outside.byte()));
    let pages = [ring::console_log(0), ring::console_log(1), ring::console_out(0), ring::CONSOLE_REPORT];
    let mut producer = Producer::new(&rings[pages[usize::from(which % 4)] % PAGES]);
    let text: Vec<u8> = (0..count).map(|_| outside.byte()).collect();
    // A full ring takes less, or nothing.
    let _ = if which & 4 == 0 { producer.write(&text) > 0 } else { producer.write_record(&text) };
}

/// Output of each channel, and a host that types.
pub fn seeds() -> Vec<Vec<u8>> {
    let typed = Frame { kind: FrameKind::Guest, channel: 0, payload: b"ls\n".to_vec() }.encode();
    let text = |which: u8, text: &[u8]| [&[which, text.len() as u8], text, &[0, 255]].concat();
    let input = [&[0, 0, typed.len() as u8, 255], typed.as_slice()].concat();
    let all = [text(0, b"root\n"), text(1, b"p2m\n"), text(2, b"guest\0\n"), text(7, b"report"), text(3, b"\xff\xff junk"), input];
    let mut seeds = all.to_vec();
    seeds.push(all.concat());
    seeds
}
