// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PL011 (ARM DDI 0183): bytes in and out, and its interrupt. Speed and format are as the firmware left them;
//! its queues of 16 bytes are switched on.

use trellis_runtime::memory::Registers;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;
const LEVELS: usize = 0x34;
const INTERRUPT_MASK: usize = 0x38;
const INTERRUPT_CLEAR: usize = 0x44;

const FLAG_BUSY: u32 = 1 << 3;
const FLAG_RECEIVE_EMPTY: u32 = 1 << 4;
const FLAG_SEND_FULL: u32 = 1 << 5;
/// The queues hold more than one byte.
const QUEUES: u32 = 1 << 4;
/// It interrupts when a queue is half full, or half empty.
const HALF: u32 = 2 | 2 << 3;
const CONTROL_ENABLED: u32 = 1;
/// Enabled, sending and receiving.
const CONTROL_ON: u32 = CONTROL_ENABLED | 1 << 8 | 1 << 9;
/// Received, and received some time ago.
const INTERRUPT_RECEIVE: u32 = 1 << 4 | 1 << 6;
const INTERRUPT_SEND: u32 = 1 << 5;
/// All eleven.
const INTERRUPT_ALL: u32 = 0x7ff;

/// Looks at the flags before the machine goes off; more than 16 bytes at the slowest usual speed take.
const MAX_FINISH: u32 = 1_000_000;

/// A PL011.
#[derive(Debug)]
pub struct Pl011<R> {
    registers: R,
    /// Whether the interrupt "room to send" is on.
    wants_room: bool,
}

impl<R: Registers> Pl011<R> {
    /// The device behind these registers.
    pub const fn new(registers: R) -> Pl011<R> {
        Pl011 { registers, wants_room: false }
    }

    /// Lets it receive and interrupt when it has.
    pub fn open(&mut self) {
        let format = self.registers.read(LINE_CONTROL);
        if format & QUEUES == 0 {
            // 3.3.8: it is switched off for that, with nothing on the wire.
            self.finish();
            self.registers.write(CONTROL, self.registers.read(CONTROL) & !CONTROL_ENABLED);
            self.registers.write(LINE_CONTROL, format | QUEUES);
        }
        self.registers.write(LEVELS, HALF);
        self.registers.write(CONTROL, self.registers.read(CONTROL) | CONTROL_ON);
        self.registers.write(INTERRUPT_CLEAR, INTERRUPT_ALL);
        self.registers.write(INTERRUPT_MASK, INTERRUPT_RECEIVE);
    }

    /// Sends as many bytes as there is room for. With some left, it interrupts once there is room again.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        for byte in bytes {
            if self.registers.read(FLAGS) & FLAG_SEND_FULL != 0 {
                break;
            }
            self.registers.write(DATA, u32::from(*byte));
            sent += 1;
        }
        let wants_room = sent < bytes.len();
        if wants_room != self.wants_room {
            self.wants_room = wants_room;
            let send = if wants_room { INTERRUPT_SEND } else { 0 };
            self.registers.write(INTERRUPT_MASK, INTERRUPT_RECEIVE | send);
        }
        sent
    }

    /// A byte that came.
    pub fn receive(&mut self) -> Option<u8> {
        if self.registers.read(FLAGS) & FLAG_RECEIVE_EMPTY != 0 {
            return None;
        }
        // The upper bits say what went wrong on the wire; the frame's CRC finds that too.
        Some(self.registers.read(DATA) as u8)
    }

    /// Ends its interrupt; what was received is still to be taken.
    pub fn end_interrupt(&mut self) {
        self.registers.write(INTERRUPT_CLEAR, INTERRUPT_ALL);
    }

    /// Waits until the last bit is on the wire, but not for ever.
    pub fn finish(&self) {
        for _ in 0..MAX_FINISH {
            if self.registers.read(FLAGS) & FLAG_BUSY == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    /// A PL011 made of queues.
    #[derive(Debug, Default)]
    pub struct Wire {
        /// What came out.
        pub out: RefCell<Vec<u8>>,
        /// What goes in.
        pub input: RefCell<VecDeque<u8>>,
        /// Room to send.
        pub room: Cell<usize>,
        pub mask: Cell<u32>,
        pub format: Cell<u32>,
        pub control: Cell<u32>,
    }

    impl Registers for &Wire {
        fn read(&self, offset: usize) -> u32 {
            match offset {
                DATA => self.input.borrow_mut().pop_front().map_or(0, u32::from),
                FLAGS => {
                    let empty = if self.input.borrow().is_empty() { FLAG_RECEIVE_EMPTY } else { 0 };
                    empty | if self.room.get() == 0 { FLAG_SEND_FULL } else { 0 }
                }
                LINE_CONTROL => self.format.get(),
                CONTROL => self.control.get(),
                _ => 0,
            }
        }

        fn write(&self, offset: usize, value: u32) {
            match offset {
                DATA => {
                    self.room.set(self.room.get().checked_sub(1).expect("sent into a full queue"));
                    self.out.borrow_mut().push(value as u8);
                }
                INTERRUPT_MASK => self.mask.set(value),
                LINE_CONTROL => {
                    assert_eq!(self.control.get() & CONTROL_ENABLED, 0, "its format is not changed while it is at work");
                    self.format.set(value);
                }
                CONTROL => self.control.set(value),
                _ => {}
            }
        }
    }

    #[test]
    fn its_queues_are_switched_on_and_its_format_stays() {
        for format in [0x60, 0x70, 0x06] {
            let wire = Wire { format: Cell::new(format), control: Cell::new(0x301), ..Wire::default() };
            Pl011::new(&wire).open();
            assert_eq!((wire.format.get(), wire.control.get()), (format | QUEUES, 0x301));
        }
    }

    #[test]
    fn a_full_queue_is_waited_for_by_interrupt() {
        let wire = Wire::default();
        wire.room.set(3);
        let mut uart = Pl011::new(&wire);
        uart.open();
        assert_eq!(uart.send(b"hello"), 3);
        assert_eq!(wire.mask.get(), INTERRUPT_RECEIVE | INTERRUPT_SEND);
        wire.room.set(10);
        assert_eq!(uart.send(b"lo"), 2);
        assert_eq!(wire.mask.get(), INTERRUPT_RECEIVE);
        assert_eq!(*wire.out.borrow(), b"hello");
    }
}
