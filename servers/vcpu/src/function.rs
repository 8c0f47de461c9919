// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions of PCI as the guest sees them: their configuration (PCI Local Bus 3.0, chapter 6), the tables of their messages, and
//! the frame that makes lines of these (GICv2m, Server Base System Architecture, appendix E).
//!
//! Most of what the guest reads is read from the function. What it writes is kept here and changes nothing there, but for the
//! entries of a table: each gets the machine's doorbell and the event that makes the line which the guest has chosen.

use crate::bus::{Registers, merge};
use heapless::Vec;
use trellis_idl::kernel::{MESSAGES, PAGE};
use trellis_idl::layout::bus;
use trellis_idl::layout::platform::{CONFIGURATION, CONFIGURATION_BYTES, FRAME};
use trellis_idl::plan::{BusPlan, MAX_FUNCTIONS, RangePlan, ShownFunction, TablePlan};
use trellis_runtime::memory::Registers as Page;
use trellis_runtime::pci::{
    self, BASE, CAPABILITIES, CAPABILITIES_END, COMMAND, ENTRY, EXPRESS, FIRST_CAPABILITY, HEADER, IDENTITY, MASKED, MASTER, MEMORY,
    MOST_CAPABILITIES, NO_WIRE, TABLE, TABLE_MASKED, TABLE_WRITES,
};

/// Bytes of configuration of each function, and functions of each device.
const CONFIGURED: u64 = 0x1000;
const FUNCTIONS: u64 = 8;
/// What a bus reads where nothing answers.
const NOTHING: u32 = u32::MAX;

const CLASS: usize = 0x08;
const BASE_END: usize = 0x28;
const SUBSYSTEM: usize = 0x2c;
const INTERRUPT: usize = 0x3c;

/// Bits of the command that the guest reads as it wrote them: memory, accesses of its own, errors, no wire.
const COMMANDS: u32 = MEMORY | MASTER | 1 << 6 | 1 << 8 | NO_WIRE;
/// The kind of header, without the bit that says that there are other functions.
const KIND: u32 = 0x7f << 16;
/// A base address register of 64 bits, and what says so.
const WIDE: u32 = 4;
const WIDTH: u32 = 7;
/// The first of the four wires.
const WIRE: u32 = 1 << 8;

/// The vendor's own capability (PCI Code and ID Assignment, chapter 2), which is shown as those of PCI Express and of messages in a table
/// are.
const VENDOR: u32 = 0x09;
/// In the second word of PCI Express: it can be reset (PCI Express Base 3.0, 7.8.3).
const CAN_RESET: u32 = 1 << 28;

/// The frame's registers: which lines it makes; where messages are written to.
const FRAME_TYPE: u64 = 0x8;
const FRAME_SET: u64 = 0x40;

/// An entry of a table as the guest wrote it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    words: [u32; 3],
    is_masked: bool,
}

/// A function as the guest left it.
#[derive(Clone, Copy, Debug)]
struct Written {
    command: u32,
    /// Registers in which all ones were written, to learn what they keep of it.
    sized: u8,
    /// A number that means nothing to the function.
    line: u8,
    /// [`TABLE_WRITES`] and [`TABLE_MASKED`].
    control: u32,
}

const UNTOUCHED: Entry = Entry { words: [0; 3], is_masked: true };
const RESET: Written = Written { command: 0, sized: 0, line: 0, control: 0 };

/// What the guest has written, of all its functions.
#[derive(Debug)]
pub struct Functions {
    written: [Written; MAX_FUNCTIONS],
    /// Entries of all tables, one after the other.
    entries: [Entry; MESSAGES as usize],
}

/// What of its functions an address means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The frame.
    Frame,
    /// The configuration of the function with this place in the plan, or of none.
    Configuration(Option<usize>),
    /// Registers of that function that the guest has not got.
    Hidden(usize),
}

/// What an address means, and its offset there; of hidden registers the address itself.
pub fn find(plan: &BusPlan, address: u64) -> Option<(Place, u64)> {
    let within = |base: u64, bytes: u64| address.checked_sub(base).filter(|offset| *offset < bytes);
    if let Some(offset) = within(FRAME, PAGE) {
        return Some((Place::Frame, offset));
    }
    if let Some(offset) = within(CONFIGURATION, CONFIGURATION_BYTES) {
        let (number, register) = (offset / CONFIGURED, offset % CONFIGURED);
        let place = (number % FUNCTIONS == 0).then_some((number / FUNCTIONS) as usize);
        return Some((Place::Configuration(place.filter(|place| *place < plan.functions.len())), register));
    }
    let page = address / PAGE;
    let hides = |function: &ShownFunction| function.hidden.iter().any(|run| (run.page..run.page.saturating_add(run.pages)).contains(&page));
    plan.functions.iter().position(hides).map(|function| (Place::Hidden(function), address))
}

impl Default for Functions {
    fn default() -> Functions {
        Functions::new()
    }
}

impl Functions {
    /// As after reset.
    pub const fn new() -> Functions {
        Functions { written: [RESET; MAX_FUNCTIONS], entries: [UNTOUCHED; MESSAGES as usize] }
    }
}

/// The frame, for an access.
#[derive(Debug)]
pub struct Frame<'a, F> {
    /// Which lines it makes.
    pub plan: &'a BusPlan,
    /// Makes an edge of a line.
    pub raise: F,
}

impl<F: FnMut(u32)> Registers for Frame<'_, F> {
    fn read(&mut self, offset: u64) -> u32 {
        let (first, lines) = (u32::from(self.plan.first_line), u32::from(self.plan.lines));
        if offset == FRAME_TYPE { first << 16 | lines } else { 0 }
    }

    fn write(&mut self, offset: u64, value: u32, _lanes: u32) {
        if offset == FRAME_SET
            && let Some(message) = message(self.plan, value)
        {
            (self.raise)(u32::from(self.plan.first_line) + message);
        }
    }
}

/// The message that makes a line, if the frame makes it.
fn message(plan: &BusPlan, line: u32) -> Option<u32> {
    line.checked_sub(plan.first_line.into()).filter(|message| *message < plan.lines.into())
}

/// A function that the guest may see, for an access.
#[derive(Debug)]
pub struct View<'a, P> {
    plan: &'a BusPlan,
    state: &'a mut Functions,
    place: usize,
    configuration: P,
    /// The page that the table of its messages begins on. Of one without a table it is not looked at.
    table: P,
}

impl<'a, P> View<'a, P> {
    /// The function with this place in the plan, whose pages these are ([`trellis_idl::layout::bus`]).
    pub fn new(plan: &'a BusPlan, state: &'a mut Functions, place: usize, page: impl Fn(usize) -> P) -> View<'a, P> {
        View { plan, state, place, configuration: page(bus::configuration(place)), table: page(bus::table(place)) }
    }
}

/// Configuration where no function is.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Registers for Nothing {
    fn read(&mut self, _offset: u64) -> u32 {
        NOTHING
    }

    fn write(&mut self, _offset: u64, _value: u32, _lanes: u32) {}
}

/// Its configuration.
#[derive(Debug)]
pub struct Configuration<'a, P>(pub View<'a, P>);

/// Its registers that the guest has not got.
#[derive(Debug)]
pub struct Hidden<'a, P>(pub View<'a, P>);

impl<P: Page> Registers for Configuration<'_, P> {
    fn read(&mut self, offset: u64) -> u32 {
        self.0.configured(offset as usize).unwrap_or(NOTHING)
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        self.0.configure(offset as usize, value, lanes);
    }
}

impl<P: Page> Registers for Hidden<'_, P> {
    fn read(&mut self, address: u64) -> u32 {
        self.0.hidden(address).unwrap_or(0)
    }

    fn write(&mut self, address: u64, value: u32, lanes: u32) {
        self.0.fill(address, value, lanes);
    }
}

impl<P: Page> View<'_, P> {
    fn function(&self) -> Option<&ShownFunction> {
        self.plan.functions.get(self.place)
    }

    fn written(&mut self) -> Option<&mut Written> {
        self.state.written.get_mut(self.place)
    }

    /// A word of configuration; nothing where no function is.
    fn configured(&mut self, at: usize) -> Option<u32> {
        let real = |at| self.configuration.read(at);
        let identity = real(IDENTITY);
        if matches!(identity, 0 | NOTHING) {
            return None;
        }
        let written = *self.state.written.get(self.place)?;
        Some(match at {
            IDENTITY => identity,
            COMMAND => real(COMMAND) & 0xffff_0000 | written.command,
            CLASS | SUBSYSTEM => real(at),
            HEADER => real(HEADER) & KIND,
            BASE..BASE_END => self.base(at, written.sized)?,
            CAPABILITIES => self.capabilities().iter().find(|one| one.is_shown).map_or(0, |one| one.at as u32),
            INTERRUPT => u32::from(written.line) | if self.function()?.wire.is_some() { WIRE } else { 0 },
            FIRST_CAPABILITY..CAPABILITIES_END => self.capability(at, written.control)?,
            _ => 0,
        })
    }

    /// A base address register: where the guest has the range, or of all ones what it keeps.
    fn base(&self, at: usize, sized: u8) -> Option<u32> {
        let register = (at - BASE) / 4;
        let ranges = &self.function()?.ranges;
        let of = |register: usize| ranges.iter().find(|range| usize::from(range.register) == register);
        let kind = |register: usize| self.configuration.read(BASE + 4 * register);
        let shown = |range: &RangePlan| if sized >> register & 1 == 1 { size(range).wrapping_neg() } else { range.base };
        if let Some(range) = of(register) {
            return Some(shown(range) as u32 & !15 | kind(register) & 15);
        }
        let below = register.checked_sub(1);
        let range = below.filter(|below| kind(*below) & WIDTH == WIDE).and_then(of);
        Some(range.map_or(0, |range| (shown(range) >> 32) as u32))
    }

    /// Its capabilities, as they are linked.
    fn capabilities(&self) -> Vec<Capability, MOST_CAPABILITIES> {
        let mut all: Vec<Capability, MOST_CAPABILITIES> = Vec::new();
        let has_table = self.function().is_some_and(|function| function.table.is_some());
        for pci::Capability { at, kind } in pci::capabilities(&self.configuration) {
            if all.iter().any(|before| before.at == at) {
                break;
            }
            let is_shown = matches!(kind, VENDOR | EXPRESS) || kind == TABLE && has_table;
            // There are not more than there is room.
            let _ = all.push(Capability { at, kind, is_shown });
        }
        all
    }

    /// A word of a capability that is shown. Where one ends it does not say itself: where the next begins.
    fn capability(&self, at: usize, control: u32) -> Option<u32> {
        let all = self.capabilities();
        let own = all.iter().filter(|one| one.at <= at).max_by_key(|one| one.at);
        let Some(own) = own.filter(|one| one.is_shown) else { return Some(0) };
        let word = self.configuration.read(at);
        let next = || {
            let behind = all.iter().skip_while(|one| one.at != at).skip(1);
            behind.into_iter().find(|one| one.is_shown).map_or(0, |one| (one.at as u32) << 8)
        };
        Some(match (own.kind, at - own.at) {
            (TABLE, 0) => control | u32::from(self.function()?.entries).saturating_sub(1) << 16 | next() | TABLE,
            (_, 0) => word & 0xffff_00ff | next(),
            (EXPRESS, 4) => word & !CAN_RESET,
            _ => word,
        })
    }

    /// Writes a word of configuration.
    fn configure(&mut self, at: usize, value: u32, lanes: u32) {
        let is_table = at >= FIRST_CAPABILITY && self.capabilities().iter().any(|one| one.at == at && one.is_shown && one.kind == TABLE);
        let Some(written) = self.written() else { return };
        match at {
            COMMAND => written.command = merge(written.command, value, lanes) & COMMANDS,
            BASE..BASE_END => {
                let bit = 1 << ((at - BASE) / 4);
                written.sized = if value == u32::MAX { written.sized | bit } else { written.sized & !bit };
            }
            INTERRUPT => written.line = merge(written.line.into(), value, lanes) as u8,
            _ if is_table => {
                written.control = merge(written.control, value, lanes) & (TABLE_WRITES | TABLE_MASKED);
                let entries = self.function().map_or(0, |function| function.entries);
                (0..entries.into()).for_each(|index| self.settle(index));
            }
            _ => {}
        }
    }

    /// The entry of the table that has an address, and which of its words that is.
    fn entry_at(&self, address: u64) -> Option<(usize, usize)> {
        let function = self.function()?;
        let offset = address.checked_sub(table_at(function)?)?;
        let index = offset as usize / ENTRY;
        (index < usize::from(function.entries)).then_some((index, offset as usize % ENTRY / 4))
    }

    /// The place of an entry among all.
    fn place_of(&self, index: usize) -> usize {
        let before = self.plan.functions.iter().take(self.place);
        before.map(|function| usize::from(function.entries)).sum::<usize>() + index
    }

    /// A word that the guest has not got: of an entry as it wrote it, of what waits as it is.
    fn hidden(&self, address: u64) -> Option<u32> {
        if let Some((index, word)) = self.entry_at(address) {
            let entry = self.state.entries.get(self.place_of(index))?;
            return Some(entry.words.get(word).copied().unwrap_or(entry.is_masked.into()));
        }
        let function = self.function()?;
        let table = function.table?;
        let waits = place_at(function, table.pending.register, table.pending.offset)?;
        let bytes = u64::from(function.entries).div_ceil(64) * 8;
        let is_waits = (waits..waits.saturating_add(bytes)).contains(&address);
        let is_on_page = address / PAGE == table_at(function)? / PAGE;
        (is_waits && is_on_page && self.answers()).then(|| self.table.read((address % PAGE) as usize))
    }

    /// Writes a word that the guest has not got.
    fn fill(&mut self, address: u64, value: u32, lanes: u32) {
        let Some((index, word)) = self.entry_at(address) else { return };
        let place = self.place_of(index);
        let Some(entry) = self.state.entries.get_mut(place) else { return };
        match entry.words.get_mut(word) {
            Some(old) => *old = merge(*old, value, lanes),
            None => entry.is_masked = merge(entry.is_masked.into(), value, lanes) & MASKED != 0,
        }
        self.settle(index);
    }

    /// The function answers where the table is: whoever forwards its lines has put its registers there.
    fn answers(&self) -> bool {
        let command = self.configuration.read(COMMAND);
        command != NOTHING && command & MEMORY != 0
    }

    /// Puts into the function's entry what the guest's says.
    fn settle(&self, index: usize) {
        let (Some(TablePlan { at, .. }), Some(written)) = (self.function().and_then(|function| function.table), self.state.written.get(self.place)) else { return };
        let Some(entry) = self.state.entries.get(self.place_of(index)).filter(|_| self.answers()) else { return };
        let event = event(self.plan, entry.words);
        let is_masked = entry.is_masked || written.control != TABLE_WRITES || event.is_none();
        let first = at.offset as usize % PAGE as usize + index * ENTRY;
        let words = event.map(|event| [self.plan.doorbell as u32, (self.plan.doorbell >> 32) as u32, event]);
        pci::put_entry(&self.table, first, words, is_masked);
    }
}

/// A capability: where it begins.
#[derive(Clone, Copy, Debug)]
struct Capability {
    at: usize,
    kind: u32,
    is_shown: bool,
}

/// Bytes of a range.
fn size(range: &RangePlan) -> u64 {
    1u64.checked_shl(range.bits.into()).unwrap_or(0)
}

/// Where the guest sees a place in a function's registers.
fn place_at(function: &ShownFunction, register: u8, offset: u32) -> Option<u64> {
    let range = function.ranges.iter().find(|range| range.register == register)?;
    range.base.checked_add(offset.into())
}

fn table_at(function: &ShownFunction) -> Option<u64> {
    let table = function.table?;
    place_at(function, table.at.register, table.at.offset)
}

/// The event that makes the line which an entry names, if it names one: by the frame's address and the line's number.
fn event(plan: &BusPlan, [low, high, data]: [u32; 3]) -> Option<u32> {
    let address = u64::from(high) << 32 | u64::from(low);
    message(plan, data).filter(|_| address == FRAME + FRAME_SET)
}

#[cfg(test)]
pub(crate) mod tests;
