// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's serial port, an Arm PL011 r1p5 (DDI 0183): what it sends goes to the console, what it receives comes
//! from there.
//!
//! Sending takes no time: the transmitter is empty after each byte unless the console's ring is full. The receive
//! time-out likewise fires at once, so that a guest that waits for half a FIFO sees single key presses.

use crate::bus::{Registers, merge};

/// What became of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// There is no room.
    Full,
    /// It is on its way, and somebody is at it already.
    Quietly,
    /// It is on its way, and the one who takes it must be woken.
    Wake,
}

/// The other end of the wire.
pub trait Wire {
    /// Sends a byte.
    fn send(&self, byte: u8) -> Sent;
    /// Whether a byte would find room.
    fn has_room(&self) -> bool;
    /// Whether a byte came in.
    fn has_input(&self) -> bool;
    /// Takes a byte that came in.
    fn receive(&self) -> Option<u8>;
}

/// Depth of the FIFO in this revision.
const DEPTH: usize = 32;

/// Interrupts: receive, transmit, receive time-out.
const RECEIVE: u32 = 1 << 4;
const TRANSMIT: u32 = 1 << 5;
const TIME_OUT: u32 = 1 << 6;
/// Interrupts that exist.
const INTERRUPTS: u32 = 0x7ff;

/// Offset of UARTFR.
pub const FLAGS: u64 = 0x18;
/// UARTFR bits.
const RECEIVE_EMPTY: u32 = 1 << 4;
/// UARTFR.TXFF.
pub const TRANSMIT_FULL: u32 = 1 << 5;
const RECEIVE_FULL: u32 = 1 << 6;
const TRANSMIT_EMPTY: u32 = 1 << 7;

/// UARTLCR_H.FEN: the FIFOs are on.
const FIFO_ON: u32 = 1 << 4;

/// UARTPeriphID0–3 and UARTPCellID0–3.
const IDENTITY: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The serial port's state.
#[derive(Debug)]
pub struct Pl011 {
    fifo: [u8; DEPTH],
    first: usize,
    count: usize,
    /// UARTRIS.
    raw: u32,
    /// UARTIMSC.
    mask: u32,
    low_power: u32,
    integer_divisor: u32,
    fraction_divisor: u32,
    line_control: u32,
    control: u32,
    levels: u32,
    dma: u32,
    /// A byte found no room since the last look.
    is_stalled: bool,
    /// Somebody must be woken for what was sent.
    wake: bool,
    /// What the interrupt line was told last.
    level: bool,
}

impl Pl011 {
    /// As after reset.
    pub const fn new() -> Pl011 {
        Pl011 {
            fifo: [0; DEPTH],
            first: 0,
            count: 0,
            raw: 0,
            mask: 0,
            low_power: 0,
            integer_divisor: 0,
            fraction_divisor: 0,
            line_control: 0,
            control: 0x300,
            levels: 0x12,
            dma: 0,
            is_stalled: false,
            wake: false,
            level: false,
        }
    }

    /// The level of the interrupt line, when it is not what it was.
    #[inline]
    pub fn level_change(&mut self) -> Option<bool> {
        let level = self.raw & self.mask != 0;
        if level == self.level {
            return None;
        }
        self.level = level;
        Some(level)
    }

    /// Whether the console must be woken; asked once.
    #[inline]
    pub fn take_wake(&mut self) -> bool {
        core::mem::take(&mut self.wake)
    }

    /// Looks at the wire: takes what came in, as far as it fits, and notices new room.
    pub fn look(&mut self, wire: &impl Wire) {
        while self.count < self.depth() {
            let Some(byte) = wire.receive() else { break };
            self.push(byte);
        }
        if self.is_stalled && wire.has_room() {
            self.is_stalled = false;
            self.raw |= TRANSMIT;
        }
    }

    fn depth(&self) -> usize {
        if self.line_control & FIFO_ON != 0 { DEPTH } else { 1 }
    }

    /// Bytes at which the receive interrupt comes (UARTIFLS.RXIFLSEL).
    fn trigger(&self) -> usize {
        if self.line_control & FIFO_ON == 0 {
            return 1;
        }
        match self.levels >> 3 & 7 {
            0 => DEPTH / 8,
            1 => DEPTH / 4,
            2 => DEPTH / 2,
            3 => DEPTH * 3 / 4,
            _ => DEPTH * 7 / 8,
        }
    }

    #[cold]
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.fifo.get_mut((self.first + self.count) % DEPTH) {
            *place = byte;
            self.count += 1;
        }
        self.raw |= TIME_OUT;
        if self.count >= self.trigger() {
            self.raw |= RECEIVE;
        }
    }

    fn pop(&mut self, wire: &impl Wire) -> u32 {
        self.look(wire);
        if self.count == 0 {
            return 0;
        }
        let byte = self.fifo.get(self.first).copied().unwrap_or(0);
        self.first = (self.first + 1) % DEPTH;
        self.count -= 1;
        if self.count < self.trigger() {
            self.raw &= !RECEIVE;
        }
        if self.count == 0 {
            self.raw &= !TIME_OUT;
        }
        self.look(wire);
        byte.into()
    }

    fn send(&mut self, wire: &impl Wire, byte: u8) {
        match wire.send(byte) {
            Sent::Full => {
                // As on hardware, a byte written to a full transmitter is lost.
                self.is_stalled = true;
                self.wake = true;
                self.raw &= !TRANSMIT;
            }
            sent => {
                self.wake |= sent == Sent::Wake;
                self.raw |= TRANSMIT;
                if !wire.has_room() {
                    self.is_stalled = true;
                    self.wake = true;
                    self.raw &= !TRANSMIT;
                }
            }
        }
    }

    /// UARTFR.
    pub fn flags(&self) -> u32 {
        let receive = match self.count {
            0 => RECEIVE_EMPTY,
            count if count >= self.depth() => RECEIVE_FULL,
            _ => 0,
        };
        receive | if self.is_stalled { TRANSMIT_FULL } else { TRANSMIT_EMPTY }
    }

    fn set_line_control(&mut self, value: u32) {
        if (self.line_control ^ value) & FIFO_ON != 0 {
            // Switching the FIFOs on or off flushes them.
            (self.first, self.count) = (0, 0);
            self.raw &= !(RECEIVE | TIME_OUT);
        }
        self.line_control = value & 0xff;
    }
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

/// The serial port with its wire.
#[derive(Debug)]
pub struct View<'a, W> {
    /// Its state.
    pub port: &'a mut Pl011,
    /// Its wire.
    pub wire: &'a W,
}

impl<W: Wire> Registers for View<'_, W> {
    #[inline]
    fn read(&mut self, offset: u64) -> u32 {
        let port = &mut *self.port;
        match offset {
            0x00 => port.pop(self.wire),
            FLAGS => {
                port.look(self.wire);
                port.flags()
            }
            0x20 => port.low_power,
            0x24 => port.integer_divisor,
            0x28 => port.fraction_divisor,
            0x2c => port.line_control,
            0x30 => port.control,
            0x34 => port.levels,
            0x38 => port.mask,
            0x3c | 0x40 => {
                port.look(self.wire);
                port.raw & if offset == 0x40 { port.mask } else { u32::MAX }
            }
            0x48 => port.dma,
            0xfe0..0x1000 => IDENTITY.get((offset as usize - 0xfe0) / 4).copied().unwrap_or(0).into(),
            // UARTRSR among them: nothing is ever received wrongly.
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        let port = &mut *self.port;
        match offset {
            0x00 if lanes & 0xff != 0 => port.send(self.wire, value as u8),
            0x20 => port.low_power = merge(port.low_power, value, lanes) & 0xff,
            0x24 => port.integer_divisor = merge(port.integer_divisor, value, lanes) & 0xffff,
            0x28 => port.fraction_divisor = merge(port.fraction_divisor, value, lanes) & 0x3f,
            0x2c => port.set_line_control(merge(port.line_control, value, lanes)),
            0x30 => port.control = merge(port.control, value, lanes) & 0xffff,
            0x34 => port.levels = merge(port.levels, value, lanes) & 0x3f,
            0x38 => port.mask = merge(port.mask, value, lanes) & INTERRUPTS,
            0x44 => port.raw &= !value,
            0x48 => port.dma = merge(port.dma, value, lanes) & 7,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
