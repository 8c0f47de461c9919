// SPDX-License-Identifier: MIT OR Apache-2.0
//! The redistributors (GICR) of a version 3 guest: one per vCPU, two frames of 64 KiB each: control, private lines.

use crate::bank;
use crate::bus::Registers;
use crate::distributor::IMPLEMENTER;
use trellis_runtime::{System, Vcpu};

/// GICR_WAKER.ProcessorSleep; ChildrenAsleep follows it.
const SLEEP: u32 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep.
const ASLEEP: u32 = 1 << 2;
/// Where the frame of the private lines begins.
const LINES: u64 = 0x1_0000;

/// What a redistributor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redistributor {
    is_awake: bool,
}

impl Redistributor {
    /// As after reset: asleep.
    pub const fn new() -> Redistributor {
        Redistributor { is_awake: false }
    }
}

impl Default for Redistributor {
    fn default() -> Self {
        Self::new()
    }
}

/// A redistributor as anybody sees it.
#[derive(Debug)]
pub struct View<'a, S> {
    /// What it remembers.
    pub state: &'a mut Redistributor,
    /// The kernel.
    pub system: &'a S,
    /// Whose it is.
    pub vcpu: Vcpu,
    /// The number of that vCPU, its affinity.
    pub index: u8,
    /// It is the last one.
    pub is_last: bool,
}

impl<S: System> Registers for View<'_, S> {
    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x4 => IMPLEMENTER,
            // GICR_TYPER: processor number, last; no LPIs. The upper half is the affinity.
            0x8 => u32::from(self.index) << 8 | u32::from(self.is_last) << 4,
            0xc => u32::from(self.index),
            0x14 if self.state.is_awake => 0,
            0x14 => SLEEP | ASLEEP,
            // GICR_PIDR2: version 3.
            0xffe8 => 0x3b,
            _ => match offset.checked_sub(LINES) {
                Some(offset) if is_private(offset) => bank::read(self.system, self.vcpu, offset),
                _ => 0,
            },
        }
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        match offset {
            0x14 if lanes & SLEEP != 0 => self.state.is_awake = value & SLEEP == 0,
            _ => match offset.checked_sub(LINES) {
                Some(offset) if is_private(offset) => bank::write(self.system, self.vcpu, offset, value, lanes),
                _ => {}
            },
        }
    }
}

fn is_private(offset: u64) -> bool {
    bank::first_line(offset).is_some_and(|first| first < 32)
}
