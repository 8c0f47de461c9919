// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's log: a ring that the console server empties. Oldest bytes go when it is full, and are counted.

use trellis_core::lock::Lock;
use trellis_idl::boot::{LOG_BYTES as BYTES, LOG_MARK};

/// The ring, laid out as `trellis_idl::boot::LOG_MARK` says: whoever looks at a machine that hangs finds it.
#[derive(Debug)]
#[repr(C)]
pub struct Log {
    mark: [u8; 16],
    head: usize,
    tail: usize,
    bytes: [u8; BYTES],
}

/// The kernel's log.
pub static LOG: Lock<Log> = Lock::new(Log { mark: LOG_MARK, head: 0, tail: 0, bytes: [0; BYTES] });

impl Log {
    /// Appends a byte.
    pub fn put(&mut self, byte: u8) {
        self.bytes[self.head % BYTES] = byte;
        self.head += 1;
        if self.head - self.tail > BYTES {
            self.tail = self.head - BYTES;
        }
    }

    /// Takes the oldest byte.
    pub fn take(&mut self) -> Option<u8> {
        if self.tail == self.head {
            return None;
        }
        let byte = self.bytes[self.tail % BYTES];
        self.tail += 1;
        Some(byte)
    }
}

impl core::fmt::Write for Log {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        Ok(())
    }
}

/// The board's serial port, polled: only before the console server runs, and on panic.
#[derive(Debug)]
pub struct Serial(pub u64);

impl core::fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes().filter(|_| self.0 != 0) {
            // PL011: UARTFR.TXFF is bit 5 of 0x18.
            while crate::mmio::read32(self.0 + 0x18) & 1 << 5 != 0 {}
            crate::mmio::write32(self.0, byte as u32);
        }
        Ok(())
    }
}
