// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial port: a PL011, polled.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{device_read, device_write};
use crate::line::Line;

/// Its first register.
pub const BASE: u64 = 0x0900_0000;
/// Flag register: bit 3 busy, bit 4 receive FIFO empty, bit 5 transmit FIFO full.
pub const FLAGS: u64 = BASE + 0x18;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Enables the port (UARTLCR_H: 8 bits, FIFOs; UARTCR: on, both ways). No interrupts.
pub fn init() {
    device_write(BASE + 0x38, 0);
    device_write(BASE + 0x2c, 0x70);
    device_write(BASE + 0x30, 0x301);
}

/// Sends one byte.
pub fn put(byte: u8) {
    while device_read(FLAGS) & 1 << 5 != 0 {
        core::hint::spin_loop();
    }
    put_at_once(byte);
}

/// Sends one byte whether there is room or not.
pub fn put_at_once(byte: u8) {
    device_write(BASE, u32::from(byte));
}

/// Takes a byte that came.
pub fn get() -> Option<u8> {
    if device_read(FLAGS) & 1 << 4 != 0 { None } else { Some(device_read(BASE) as u8) }
}

/// Waits until everything is sent.
pub fn drain() {
    while device_read(FLAGS) & 1 << 3 != 0 {
        core::hint::spin_loop();
    }
}

/// Sends text in one piece. Not for interrupt handlers: the holder may be the one they interrupted.
pub fn print(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    // A line never refuses; a value's own formatting may, and then the line is shorter.
    let _ = line.write_fmt(text);
    while BUSY.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        core::hint::spin_loop();
    }
    send(&line);
    BUSY.store(false, Ordering::Release);
}

/// Sends text whoever is sending: for reports of which nobody will come back.
pub fn print_last(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    let _ = line.write_fmt(text);
    send(&line);
}

fn send(line: &Line) {
    for byte in line.bytes() {
        if *byte == b'\n' {
            put(b'\r');
        }
        put(*byte);
    }
}

/// Prints text.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::uart::print(format_args!($($text)*)) };
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::uart::print(format_args!("{}\n", format_args!($($text)*))) };
}
