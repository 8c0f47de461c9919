// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function of a PCI device that a guest owns: its registers get their place, and it may write messages for as long as its
//! guest is there.
//!
//! All of this stands in its configuration page (PCI Local Bus 3.0, chapter 6), and where it has a table of messages in the
//! pages of that: no guest sees any of them.

use crate::its::Failure;
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::{FunctionPlan, MAX_RANGES, RangePlan, TablePlace, TablePlan};
use trellis_runtime::memory::Registers;
use trellis_runtime::pci::{self, BASE, COMMAND, ENTRY, HEADER, IDENTITY, MASTER, MEMORY, NO_WIRE, TABLE, TABLE_MASKED, TABLE_WRITES};

/// Where its program for a start of the machine is; the lowest bit lets it answer there.
const ROM: usize = 0x30;
/// The capability of messages (6.8.1): it may write them, 64 bits of address, so many as a power of two that it can and may.
const MESSAGES: u32 = 5;
const WRITES: u32 = 1 << 16;
const WIDE: u32 = 1 << 23;

/// A function's configuration, and the page that its table of messages begins on, if it has one.
#[derive(Debug)]
pub struct Function<R> {
    pub(crate) page: R,
    table: R,
}

impl<R: Registers> Function<R> {
    /// The function behind these pages. Of one without a table the second is not looked at.
    pub const fn new(page: R, table: R) -> Function<R> {
        Function { page, table }
    }

    /// Puts its registers where they are to be, and lets it write its messages to the doorbell. One that is all that
    /// already stays so without a break: its guest may use it.
    pub fn connect(&self, plan: &FunctionPlan, doorbell: u64) -> Result<(), Failure> {
        let capability = match &plan.table {
            Some(table) => self.table(table, plan.messages)?,
            None => self.messages(plan.messages)?,
        };
        let is_used = self.is_used();
        self.place(plan)?;
        match &plan.table {
            Some(_) if is_used && is_chosen(plan) => {}
            Some(table) if is_chosen(plan) => self.clear(capability, table),
            Some(table) => self.fill(capability, table, plan.messages, doorbell),
            None => self.direct(capability, plan.messages, doorbell)?,
        }
        self.command(MEMORY | MASTER | NO_WIRE);
        Ok(())
    }

    /// Whether it may make accesses of its own: its guest uses it.
    pub fn is_used(&self) -> bool {
        self.answers() && self.page.read(COMMAND) & MASTER != 0
    }

    /// Whether its configuration can be read: one that is not there, or is being reset, has no maker, or the one of those that want to be
    /// asked again (PCI Express 2.3.1).
    pub(crate) fn answers(&self) -> bool {
        !matches!(self.page.read(IDENTITY) & 0xffff, 0 | 1 | 0xffff)
    }

    /// It makes no access of its own any more, and so writes no message.
    pub fn disconnect(&self) {
        self.command(self.page.read(COMMAND) & MEMORY | NO_WIRE);
        if let Ok(capability) = self.capability(MESSAGES) {
            self.page.write(capability, self.page.read(capability) & !WRITES);
        }
        if let Ok(capability) = self.capability(TABLE) {
            self.page.write(capability, self.page.read(capability) & !TABLE_WRITES | TABLE_MASKED);
        }
    }

    /// Writing the status, which is in the same word, as zeroes changes nothing of it.
    fn command(&self, bits: u32) {
        self.page.write(COMMAND, bits);
    }

    /// Where a capability is.
    pub(crate) fn capability(&self, kind: u32) -> Result<usize, Failure> {
        if !self.answers() || self.page.read(HEADER) >> 16 & 0x7f != 0 {
            return Err(Failure::NoFunction);
        }
        let found = pci::capabilities(&self.page).find(|one| one.kind == kind);
        found.map(|one| one.at).ok_or(Failure::NoMessages)
    }

    /// Where the capability of messages is, if it has so many.
    fn messages(&self, messages: u8) -> Result<usize, Failure> {
        let capability = self.capability(MESSAGES)?;
        let most = 1 << (self.page.read(capability) >> 17 & 7);
        if u32::from(messages) <= most { Ok(capability) } else { Err(Failure::NoMessages) }
    }

    /// Where the capability of messages in a table is, if the table is where the board file says. With more entries than
    /// that says the guest would see some.
    fn table(&self, plan: &TablePlan, messages: u8) -> Result<usize, Failure> {
        let capability = self.capability(TABLE)?;
        let entries = (self.page.read(capability) >> 16 & 0x7ff) + 1;
        if entries < messages.into() {
            return Err(Failure::NoMessages);
        }
        // The range, by its base address register, stands in the lowest three bits.
        let at = |place: TablePlace| place.offset & !7 | u32::from(place.register);
        let is_there = [plan.at, plan.pending].map(at) == [4, 8].map(|offset| self.page.read(capability + offset));
        if is_there && entries <= plan.entries.into() { Ok(capability) } else { Err(Failure::OtherTable) }
    }

    /// Messages whose address stands in the configuration page.
    fn direct(&self, capability: usize, messages: u8, doorbell: u64) -> Result<(), Failure> {
        let control = self.page.read(capability);
        let is_wide = control & WIDE != 0;
        if doorbell >> 32 != 0 && !is_wide {
            return Err(Failure::NoMessages);
        }
        self.page.write(capability + 4, doorbell as u32);
        if is_wide {
            self.page.write(capability + 8, (doorbell >> 32) as u32);
        }
        // Data is the number of the first message; the function puts the others into its lowest bits.
        self.page.write(capability + if is_wide { 12 } else { 8 }, 0);
        let may = messages.trailing_zeros() << 20;
        self.page.write(capability, control & !(7 << 20) | may | WRITES);
        Ok(())
    }

    /// Messages whose addresses stand in a table: number i writes i. Those that are not used stay masked.
    fn fill(&self, capability: usize, plan: &TablePlan, messages: u8, doorbell: u64) {
        self.with_entries(capability, plan, |number, at| {
            let used = number < messages.into();
            let words = used.then_some([doorbell as u32, (doorbell >> 32) as u32, number as u32]);
            pci::put_entry(&self.table, at, words, !used);
        });
    }

    /// The same where its guest fills the table: nothing that anybody wrote before is there.
    fn clear(&self, capability: usize, plan: &TablePlan) {
        self.with_entries(capability, plan, |_, at| pci::put_entry(&self.table, at, None, true));
    }

    /// Goes through the entries on the page, by their number and place, with the function's own mask over them where they write nothing
    /// yet; in the end they write.
    fn with_entries(&self, capability: usize, plan: &TablePlan, each: impl Fn(usize, usize)) {
        let control = self.page.read(capability);
        let entries = (control >> 16 & 0x7ff) as usize + 1;
        if self.page.read(COMMAND) & MEMORY == 0 {
            // The table is among registers that answer nobody yet.
            self.command(MEMORY | NO_WIRE);
        }
        if control & TABLE_WRITES == 0 {
            self.page.write(capability, control | TABLE_WRITES | TABLE_MASKED);
        }
        let first = plan.at.offset as usize % PAGE as usize;
        (first..=PAGE as usize - ENTRY).step_by(ENTRY).take(entries).enumerate().for_each(|(number, at)| each(number, at));
        self.page.write(capability, control & !TABLE_MASKED | TABLE_WRITES);
    }

    /// Its registers get their places. They must be those that the board file lists, each with as many bytes: with more it
    /// would answer where something else is.
    fn place(&self, plan: &FunctionPlan) -> Result<(), Failure> {
        if self.page.read(COMMAND) & MEMORY != 0 && plan.ranges.iter().all(|range| self.is_at(range)) {
            return Ok(());
        }
        self.command(NO_WIRE);
        self.page.write(ROM, 0);
        let mut placed = 0;
        let mut register = 0;
        while register < MAX_RANGES {
            let planned = plan.ranges.iter().find(|range| usize::from(range.register) == register);
            if let Some(range) = planned {
                self.put(range)?;
                placed += 1;
            } else if self.bytes(register) != 0 {
                // It would answer at address 0, or where it was left.
                return Err(Failure::NoFunction);
            }
            register += if self.is_wide(register) { 2 } else { 1 };
        }
        if placed == plan.ranges.len() { Ok(()) } else { Err(Failure::NoFunction) }
    }

    fn put(&self, range: &RangePlan) -> Result<(), Failure> {
        let (register, is_wide) = (range.register.into(), self.is_wide(range.register.into()));
        let is_so = self.bytes(register) == 1u64.checked_shl(range.bits.into()).unwrap_or(0);
        if !is_so || range.base >> 32 != 0 && !is_wide {
            return Err(Failure::NoFunction);
        }
        self.page.write(base(register), range.base as u32);
        if is_wide {
            self.page.write(base(register + 1), (range.base >> 32) as u32);
        }
        if self.is_at(range) { Ok(()) } else { Err(Failure::NoFunction) }
    }

    fn is_at(&self, range: &RangePlan) -> bool {
        let register = range.register.into();
        register < MAX_RANGES && self.is_memory(register) && self.address(register) == range.base
    }

    /// A register that says something of memory. What it says of ports answers nobody: that is never switched on.
    fn is_memory(&self, register: usize) -> bool {
        self.page.read(base(register)) & 1 == 0
    }

    /// It has 64 bits, and takes the next one.
    fn is_wide(&self, register: usize) -> bool {
        register + 1 < MAX_RANGES && self.page.read(base(register)) & 7 == 4
    }

    fn address(&self, register: usize) -> u64 {
        let high = if self.is_wide(register) { self.page.read(base(register + 1)) } else { 0 };
        u64::from(self.page.read(base(register)) & !15) | u64::from(high) << 32
    }

    /// Bytes of memory behind a register, 0 for none. It is as before afterwards.
    fn bytes(&self, register: usize) -> u64 {
        if !self.is_memory(register) {
            return 0;
        }
        let is_wide = self.is_wide(register);
        let registers = [base(register), base(register + 1)];
        let used = registers.get(..if is_wide { 2 } else { 1 }).unwrap_or_default();
        let before = registers.map(|at| self.page.read(at));
        used.iter().for_each(|at| self.page.write(*at, u32::MAX));
        let all = self.address(register);
        used.iter().zip(before).for_each(|(at, word)| self.page.write(*at, word));
        if is_wide { all.wrapping_neg() } else { (all as u32).wrapping_neg().into() }
    }
}

/// Whether its guest fills its table of messages.
pub const fn is_chosen(plan: &FunctionPlan) -> bool {
    plan.chosen && plan.table.is_some()
}

/// A base address register.
const fn base(register: usize) -> usize {
    BASE + 4 * register
}
