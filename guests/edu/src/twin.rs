// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network card with a reset of its own (82576): a register is told something that only a reset makes it forget, and each of
//! its messages is called for.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use trellis_guest_platform::cpu::{device_read, device_write};
use trellis_guest_platform::tree::{Card, MAX_LINES};
use trellis_guest_platform::{Machine, cpu, gic, println};

/// Registers (Intel 82576 datasheet, 8.2.3): how long others are to hold back, how interrupts come, causes by command, causes that
/// count, and those that are over when their message was written.
const HOLD_BACK: u64 = 0x170;
const MODE: u64 = 0x1514;
const CALL: u64 = 0x1520;
const COUNT: u64 = 0x1524;
const AT_ONCE: u64 = 0x152c;
/// Each cause has the message with its number.
const EACH_ITS_OWN: u32 = 1 << 4;
/// What it is told.
const TOLD: u32 = 0x1234;

static LINES: [AtomicU32; MAX_LINES] = [const { AtomicU32::new(0) }; MAX_LINES];
static CAME: [AtomicU64; MAX_LINES] = [const { AtomicU64::new(0) }; MAX_LINES];

/// Calls for each message so many times, if there is one.
pub fn run(machine: &'static Machine, calls: u64) {
    let Some(Card { base, lines }) = machine.tree.twin else { return };
    let before = device_read(base + HOLD_BACK);
    device_write(base + HOLD_BACK, TOLD);
    for (own, line) in LINES.iter().zip(lines).filter(|(_, line)| *line != 0) {
        own.store(line, Ordering::Release);
        gic::open_edge(line, 0, machine.affinity(0));
    }
    let count = lines.iter().filter(|line| **line != 0).count();
    device_write(base + MODE, EACH_ITS_OWN);
    device_write(base + AT_ONCE, (1 << count) - 1);
    device_write(base + COUNT, (1 << count) - 1);
    for number in 0..calls as usize * count {
        let came = &CAME[number % count];
        let so_far = came.load(Ordering::Acquire);
        device_write(base + CALL, 1 << (number % count));
        cpu::sleep_until(|| came.load(Ordering::Acquire) > so_far);
    }
    let right = CAME.iter().take(count).filter(|came| came.load(Ordering::Acquire) == calls).count();
    println!("edu: a twin at {base:#x}, {count} messages called for {calls} times each, {right} heard as often");
    println!("edu: the twin was told {before:#x} before, and {:#x} since", device_read(base + HOLD_BACK));
}

/// A line of its.
pub fn came(line: u32) {
    if let Some(message) = LINES.iter().position(|own| own.load(Ordering::Acquire) == line) {
        CAME[message].fetch_add(1, Ordering::Release);
    }
}
