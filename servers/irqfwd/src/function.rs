// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function of a PCI device that a guest owns: its registers get their place, and it may write messages for as long as its
//! guest is there.
//!
//! All of this stands in its configuration page, which no guest sees (PCI Local Bus 3.0, chapter 6).

use crate::its::Failure;
use trellis_idl::plan::FunctionPlan;
use trellis_runtime::memory::Registers;

const IDENTITY: usize = 0x00;
/// The command, and above it the status.
const COMMAND: usize = 0x04;
const HEADER: usize = 0x0c;
const BASE: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// It answers accesses to memory, makes accesses of its own, has no wire.
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
const NO_WIRE: u32 = 1 << 10;
/// In the status: there are capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
/// The capability of messages (6.8.1): it may write them, 64 bits of address, so many as a power of two that it can and may.
const MESSAGES: u32 = 5;
const WRITES: u32 = 1 << 16;
const WIDE: u32 = 1 << 23;

/// A function's configuration.
#[derive(Debug)]
pub struct Function<R>(R);

impl<R: Registers> Function<R> {
    /// The function behind this page.
    pub const fn new(page: R) -> Function<R> {
        Function(page)
    }

    /// Puts its registers where they are to be, and lets it write its messages to the doorbell. One that is all that
    /// already stays so without a break: its guest may use it.
    pub fn connect(&self, plan: &FunctionPlan, doorbell: u64) -> Result<(), Failure> {
        let capability = self.capability(plan.messages)?;
        self.place(plan)?;
        let control = self.0.read(capability);
        let is_wide = control & WIDE != 0;
        if doorbell >> 32 != 0 && !is_wide {
            return Err(Failure::NoMessages);
        }
        self.0.write(capability + 4, doorbell as u32);
        if is_wide {
            self.0.write(capability + 8, (doorbell >> 32) as u32);
        }
        // Data is the number of the first message; the function puts the others into its lowest bits.
        self.0.write(capability + if is_wide { 12 } else { 8 }, 0);
        let may = plan.messages.trailing_zeros() << 20;
        self.0.write(capability, control & !(7 << 20) | may | WRITES);
        self.command(MEMORY | MASTER | NO_WIRE);
        Ok(())
    }

    /// It makes no access of its own any more, and so writes no message.
    pub fn disconnect(&self) {
        self.command(MEMORY | NO_WIRE);
        if let Ok(capability) = self.capability(1) {
            self.0.write(capability, self.0.read(capability) & !WRITES);
        }
    }

    /// Writing the status, which is in the same word, as zeroes changes nothing of it.
    fn command(&self, bits: u32) {
        self.0.write(COMMAND, bits);
    }

    /// Where the capability of messages is, if it has so many.
    fn capability(&self, messages: u8) -> Result<usize, Failure> {
        if matches!(self.0.read(IDENTITY), 0 | u32::MAX) || self.0.read(HEADER) >> 16 & 0x7f != 0 {
            return Err(Failure::NoFunction);
        }
        if self.0.read(COMMAND) & HAS_CAPABILITIES == 0 {
            return Err(Failure::NoMessages);
        }
        let mut at = self.0.read(CAPABILITIES) as usize & 0xfc;
        // As many as fit into the page's first part: a ring of them has no end.
        for _ in 0..48 {
            let word = self.0.read(at);
            if at >= 0x40 && word & 0xff == MESSAGES {
                let most = 1 << (word >> 17 & 7);
                return if u32::from(messages) <= most { Ok(at) } else { Err(Failure::NoMessages) };
            }
            at = (word >> 8) as usize & 0xfc;
            if at < 0x40 {
                break;
            }
        }
        Err(Failure::NoMessages)
    }

    /// Its first registers get their place. They must have as many bytes as the board file says: with more it would answer
    /// where something else is.
    fn place(&self, plan: &FunctionPlan) -> Result<(), Failure> {
        let first = self.0.read(BASE);
        let is_wide = first >> 1 & 3 == 2;
        let high = |this: &Self| if is_wide { u64::from(this.0.read(BASE + 4)) << 32 } else { 0 };
        let there = u64::from(first & !15) | high(self);
        if there == plan.base && self.0.read(COMMAND) & MEMORY != 0 {
            return Ok(());
        }
        if first & 1 != 0 || plan.base >> 32 != 0 && !is_wide {
            return Err(Failure::NoFunction);
        }
        self.command(NO_WIRE);
        self.0.write(BASE, u32::MAX);
        if is_wide {
            self.0.write(BASE + 4, u32::MAX);
        }
        let top = if is_wide { 0 } else { 0xffff_ffff_0000_0000 };
        let bytes = (u64::from(self.0.read(BASE) & !15) | high(self) | top).wrapping_neg();
        self.0.write(BASE, plan.base as u32);
        if is_wide {
            self.0.write(BASE + 4, (plan.base >> 32) as u32);
        }
        if bytes != plan.bytes || !plan.base.is_multiple_of(bytes.max(1)) {
            return Err(Failure::NoFunction);
        }
        self.others()
    }

    /// No other registers of it may be anywhere: they would answer at address 0, or where they were left.
    fn others(&self) -> Result<(), Failure> {
        let first = self.0.read(BASE);
        let from = if first >> 1 & 3 == 2 { BASE + 8 } else { BASE + 4 };
        let is_there = |at: usize| {
            let before = self.0.read(at);
            self.0.write(at, u32::MAX);
            let size = self.0.read(at);
            self.0.write(at, before);
            size != 0
        };
        if (from..BASE + 24).step_by(4).any(is_there) { Err(Failure::NoFunction) } else { Ok(()) }
    }
}
