// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GICv2, for guests on boards that have no other: a distributor whose private registers are each CPU's own, and a
//! CPU interface in memory. Group 0, which is all there is without security extensions.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::cpu::{self, device_read, device_write};
use crate::gic::DISTRIBUTOR;
use crate::timer;
use crate::tree::MAX_CPUS;

/// The CPU interface.
pub const CPU_INTERFACE: u64 = 0x0801_0000;

/// What an acknowledgement says: the line, and the sender of a software interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken(u32);

impl Taken {
    /// The line.
    pub const fn line(self) -> u32 {
        self.0 & 0x3ff
    }

    /// The number of the CPU interface that sent it, if it is a software interrupt (GICC_IAR.CPUID).
    pub const fn sender(self) -> u32 {
        self.0 >> 10 & 7
    }
}

/// Lets interrupts through (GICD_CTLR).
pub fn init_distributor() {
    device_write(DISTRIBUTOR, 1);
}

/// Enables all software interrupts and the virtual timer, and opens this CPU's interface.
pub fn init_cpu() {
    for word in 0..8 {
        device_write(DISTRIBUTOR + 0x400 + 4 * word, 0xa0a0_a0a0);
    }
    device_write(DISTRIBUTOR + 0x100, 0xffff | 1 << timer::LINE);
    device_write(CPU_INTERFACE + 4, 0xf8);
    device_write(CPU_INTERFACE, 1);
}

/// What each CPU took last.
static LAST: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Takes the interrupt of the highest priority.
pub fn acknowledge() -> Taken {
    let value = device_read(CPU_INTERFACE + 0xc);
    LAST[cpu::index()].store(value, Ordering::Relaxed);
    Taken(value)
}

/// What this CPU took last: for handlers, which learn the line only.
pub fn last() -> Taken {
    Taken(LAST[cpu::index()].load(Ordering::Relaxed))
}

/// Ends it.
pub fn end(taken: Taken) {
    device_write(CPU_INTERFACE + 0x10, taken.0);
}

/// Sends software interrupt `line` (0-15) to these CPU interfaces, one bit each (GICD_SGIR).
pub fn send(line: u32, targets: u8) {
    device_write(DISTRIBUTOR + 0xf00, u32::from(targets) << 16 | line);
}
