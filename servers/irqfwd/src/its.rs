// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt translation service (GICv3 chapter 5): makes an LPI, for the CPU that is wished, of each message of a
//! device.
//!
//! What it and the redistributors read and write by themselves lies in memory that root gives, whose machine address they
//! are told: whoever can say so much to them can have all of memory written. All of it outlives this server; the next
//! one finds it and goes on.

use crate::command::{BYTES, Command, Event, Target};
use heapless::Vec;
use trellis_idl::kernel::{FIRST_MESSAGE, MESSAGES, PAGE};
use trellis_idl::layout::message::{ADDRESS, BLOCK, SERVICE, redistributor};
use trellis_idl::layout::platform::REDISTRIBUTOR_BYTES;
use trellis_idl::plan::{MAX_FUNCTIONS, MAX_VCPUS};
use trellis_runtime::memory::{Hardware, Registers, SharedMemory};

/// Registers of the service (GICv3 12.19).
const CONTROL: usize = 0x0;
const TYPE: usize = 0x8;
const QUEUE: usize = 0x80;
const WRITER: usize = 0x88;
const READER: usize = 0x90;
const TABLE: usize = 0x100;
const TABLE_REGISTERS: usize = 8;
const ENABLED: u32 = 1;
const QUIESCENT: u32 = 1 << 31;
const STALLED: u64 = 1;

/// Registers of a redistributor (12.11).
const REDISTRIBUTOR_TYPE: usize = 0x8;
const PROPERTIES_AT: usize = 0x70;
const PENDING_AT: usize = 0x78;
const ENABLE_LPIS: u32 = 1;
/// The pending table is all zeroes.
const PENDING_ZERO: u64 = 1 << 62;

const VALID: u64 = 1 << 63;
/// Inner shareable, and cached alike by whoever reads or writes (the fields of 12.19.1, and of 12.11.31 and 12.11.32).
const SHARED: u64 = 1 << 10;
const CACHED_TABLE: u64 = 7 << 59 | SHARED;
const CACHED_LPIS: u64 = 7 << 7 | SHARED;
const SHAREABILITY: u64 = 3 << 10;
/// The address in each of these registers; a pending table's has fewer bits.
const AT: u64 = 0x000f_ffff_ffff_f000;
/// The address of a table of the service has fewer bits: the size of an entry is above it.
const TABLE_AT: u64 = 0x0000_ffff_ffff_f000;

/// Where what is in the first block.
const DONE: u64 = ADDRESS + 8;
const NOTES: u64 = ADDRESS + 16;
const PROPERTIES: u64 = PAGE;
const COMMANDS: u64 = 3 * PAGE;
const EVENTS: u64 = 4 * PAGE;
/// Blocks of the tables of devices and of collections, and the first of those of pending lines.
const DEVICES: u64 = BLOCK;
const COLLECTIONS: u64 = 2 * BLOCK;
const PENDING: u64 = 3 * BLOCK;

/// Lines have numbers of so many bits: the fewest with which there are LPIs.
const LINE_BITS: u64 = 14;
/// A device has messages of so many bits, and a table of so many bytes for them: what an entry has at most (GITS_TYPER).
const EVENT_BITS: u8 = 5;
const EVENT_TABLE: u64 = 16 << EVENT_BITS;
/// Priority of all lines, as the kernel gives it to others; the lowest bit lets a line come.
const PRIORITY: u64 = 0x80;
/// Looks at hardware before it counts as stuck.
const PATIENCE: u32 = 1_000_000;
/// In the first block: what is there is complete.
const COMPLETE: u64 = u64::from_le_bytes(*b"complete");

/// Why messages cannot be made interrupts of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The service does not translate for lines that software sees.
    NoLines,
    /// A CPU has no redistributor that knows of them.
    NoRedistributor,
    /// Somebody else's tables are in use already.
    Elsewhere,
    /// It does not see what is in caches.
    NotCoherent,
    /// It has no table that is needed, or one with larger entries than there may be.
    NoTable,
    /// A device's number is too high for its table, or there are too many devices.
    TooMany,
    /// It does not answer.
    Stuck,
    /// It stopped at a command.
    Refused,
    /// A function that is not there, or has other registers than the board file says.
    NoFunction,
    /// A function that cannot write so many messages.
    NoMessages,
    /// A function whose table of messages is elsewhere than the board file says.
    OtherTable,
    /// A function that is being reset, or has begun accesses that are not over.
    NotYet,
}

/// The service, and what this server has told it.
#[derive(Debug)]
pub struct Its<H: Hardware> {
    hardware: H,
    service: H::Page,
    /// Machine address of the first block.
    base: u64,
    /// Where the next command goes.
    next: u64,
    /// Each CPU's redistributor; its place is the number of its collection.
    targets: Vec<Target, MAX_VCPUS>,
    /// The collection that each line is in, with all messages that make it.
    collections: [u16; MESSAGES as usize],
    /// Devices that have tables.
    devices: Vec<Device, MAX_FUNCTIONS>,
    /// What was there was complete: nothing in it is new.
    is_taken_over: bool,
}

/// A device, and the lines that its messages make: message 0 the first, and so on. Several devices may make one line.
#[derive(Debug)]
struct Device {
    number: u32,
    lines: Vec<u32, { 1 << EVENT_BITS }>,
}

impl<H: Hardware> Its<H> {
    /// Brings it up for CPUs with these affinities, or takes over what an earlier server brought up. There are `frames`
    /// redistributors at most, from this machine address on.
    pub fn start(hardware: H, redistributors: u64, frames: usize, cpus: &[u32]) -> Result<Its<H>, Failure> {
        let (service, first) = (hardware.page(SERVICE), redistributor(0));
        let base = hardware.memory().read(ADDRESS);
        let kind = service.read_wide(TYPE);
        if kind & 1 == 0 || kind >> 8 & 31 < LINE_BITS - 1 || (kind >> 13 & 31) + 1 < u64::from(EVENT_BITS) {
            return Err(Failure::NoLines);
        }
        let mut its = Its {
            hardware, service, base, next: 0, targets: Vec::new(), collections: [0; MESSAGES as usize], devices: Vec::new(), is_taken_over: false,
        };
        let by_address = kind >> 19 & 1 == 1;
        for (index, affinity) in (0..).zip(cpus) {
            let (place, number) = its.redistributor(first, frames, *affinity, index)?;
            let address = redistributors + place as u64 * REDISTRIBUTOR_BYTES;
            let target = if by_address { Target::by_address(address) } else { Target::by_number(number) };
            its.targets.push(target).map_err(|_| Failure::TooMany)?;
        }
        if its.is_complete() {
            its.is_taken_over = true;
            its.next = its.service.read_wide(WRITER) & 0xf_ffe0;
            its.settled()?;
        } else {
            its.begin()?;
        }
        Ok(its)
    }

    /// Whether an earlier server did everything, with these tables.
    fn is_complete(&self) -> bool {
        self.hardware.memory().read(DONE) == COMPLETE
            && self.service.read(CONTROL) & ENABLED != 0
            && self.service.read_wide(QUEUE) & (VALID | AT) == VALID | self.base + COMMANDS
    }

    /// Finds the redistributor of a CPU, and lets it have LPIs. Back: its place, and the number of its processor.
    fn redistributor(&self, first: usize, frames: usize, affinity: u32, index: u64) -> Result<(usize, u16), Failure> {
        for place in 0..frames {
            let page = self.hardware.page(first + place);
            let kind = page.read_wide(REDISTRIBUTOR_TYPE);
            if kind >> 32 != u64::from(affinity) {
                // Bit 4: the last one (12.11.38).
                if kind >> 4 & 1 == 1 {
                    break;
                }
                continue;
            }
            if kind & 1 == 0 {
                break;
            }
            self.enable(&page, index)?;
            return Ok((place, (kind >> 8) as u16));
        }
        Err(Failure::NoRedistributor)
    }

    /// Lets a redistributor have LPIs. Where it has them already nothing can be changed any more, and is as it was.
    fn enable(&self, page: &H::Page, index: u64) -> Result<(), Failure> {
        let (properties, pending) = (self.base + PROPERTIES, self.base + PENDING + index * BLOCK);
        if page.read(CONTROL) & ENABLE_LPIS == 0 {
            page.write_wide(PROPERTIES_AT, properties | CACHED_LPIS | (LINE_BITS - 1));
            page.write_wide(PENDING_AT, pending | CACHED_LPIS | PENDING_ZERO);
            if page.read_wide(PROPERTIES_AT) & SHAREABILITY == 0 || page.read_wide(PENDING_AT) & SHAREABILITY == 0 {
                return Err(Failure::NotCoherent);
            }
            self.hardware.memory().publish();
            page.write(CONTROL, page.read(CONTROL) | ENABLE_LPIS);
        }
        let is_ours = page.read_wide(PROPERTIES_AT) & AT == properties && page.read_wide(PENDING_AT) & AT == pending;
        if is_ours { Ok(()) } else { Err(Failure::Elsewhere) }
    }

    /// Everything from the beginning: tables of zeroes, an empty queue, a collection for each CPU.
    fn begin(&mut self) -> Result<(), Failure> {
        self.service.write(CONTROL, self.service.read(CONTROL) & !ENABLED);
        self.wait(|its| its.service.read(CONTROL) & QUIESCENT != 0)?;
        let memory = self.hardware.memory();
        for offset in (DONE..PROPERTIES).chain(EVENTS..PENDING).step_by(8) {
            memory.write(offset, 0);
        }
        for offset in (PROPERTIES..COMMANDS).step_by(8) {
            memory.write(offset, PRIORITY * 0x0101_0101_0101_0101);
        }
        memory.publish();
        self.table(1, DEVICES)?;
        self.table(4, COLLECTIONS)?;
        self.service.write_wide(QUEUE, VALID | self.base + COMMANDS | CACHED_TABLE);
        if self.service.read_wide(QUEUE) & SHAREABILITY == 0 {
            return Err(Failure::NotCoherent);
        }
        self.service.write_wide(WRITER, 0);
        self.service.write(CONTROL, self.service.read(CONTROL) | ENABLED);
        for index in 0..self.targets.len() {
            let target = self.target(index as u16)?;
            self.send([Command::map_collection(index as u16, target), Command::settle(target)])?;
        }
        Ok(())
    }

    /// Gives it a block as its table of one kind, flat, in pages of the size that it likes. It may have none of collections
    /// where it keeps them itself.
    fn table(&self, kind: u64, at: u64) -> Result<(), Failure> {
        let registers = (0..TABLE_REGISTERS).map(|index| TABLE + 8 * index);
        let found = registers.into_iter().find(|register| self.service.read_wide(*register) >> 56 & 7 == kind);
        let Some(register) = found else {
            let keeps = (self.service.read_wide(TYPE) >> 24 & 0xff) as usize;
            return if kind == 4 && keeps >= self.targets.len() { Ok(()) } else { Err(Failure::NoTable) };
        };
        // The largest pages, if it has a choice.
        for size in [2u64, 1, 0] {
            let pages = BLOCK >> (12 + 2 * size);
            self.service.write_wide(register, VALID | self.base + at | CACHED_TABLE | size << 8 | (pages - 1));
            let now = self.service.read_wide(register);
            if now & SHAREABILITY == 0 {
                return Err(Failure::NotCoherent);
            }
            if now >> 8 & 3 == size && now & TABLE_AT == self.base + at {
                return Ok(());
            }
        }
        Err(Failure::NoTable)
    }

    /// Entries of the table of devices.
    fn device_entries(&self) -> u64 {
        let registers = (0..TABLE_REGISTERS).map(|index| self.service.read_wide(TABLE + 8 * index));
        let entry = registers.into_iter().find(|table| table >> 56 & 7 == 1).map_or(u64::MAX, |table| (table >> 48 & 31) + 1);
        let bits = (self.service.read_wide(TYPE) >> 13 & 31) + 1;
        (BLOCK / entry).min(1 << bits)
    }

    /// Whether an earlier server did everything: its devices may be in use.
    pub const fn is_taken_over(&self) -> bool {
        self.is_taken_over
    }

    /// A device's messages make these lines, message 0 the first one: none of them may come yet, and no other message of the device makes any.
    pub fn add_device(&mut self, number: u32, lines: &[u32]) -> Result<(), Failure> {
        let table = EVENTS + self.devices.len() as u64 * EVENT_TABLE;
        if u64::from(number) >= self.device_entries() || table + EVENT_TABLE > BLOCK || lines.iter().any(|line| index_of(*line).is_none()) {
            return Err(Failure::TooMany);
        }
        let device = Device { number, lines: Vec::from_slice(lines).map_err(|_| Failure::TooMany)? };
        self.devices.push(device).map_err(|_| Failure::TooMany)?;
        if self.is_taken_over {
            return Ok(());
        }
        self.send([Command::unmap_device(number), Command::map_device(number, self.base + table, EVENT_BITS)])?;
        self.send((0..).zip(lines).map(|(event, line)| Command::map_event(Event { device: number, number: event }, *line, 0)))?;
        let target = self.target(0)?;
        self.send([Command::settle(target)])
    }

    /// That was all: the next server need not do it again.
    pub fn finish(&mut self) {
        self.hardware.memory().write(DONE, COMPLETE);
        self.hardware.memory().publish();
    }

    /// A line may come, to the CPU with this place. Each message that makes it is moved.
    pub fn open(&mut self, line: u32, cpu: usize) -> Result<(), Failure> {
        let (index, events) = self.events(line)?;
        let before = self.collections.get(index).copied().unwrap_or(0);
        let (from, target) = (self.target(before)?, self.target(cpu as u16)?);
        if let Some(place) = self.collections.get_mut(index) {
            *place = cpu as u16;
        }
        self.set_enabled(index, true);
        let moves = events.iter().map(|event| Command::move_event(*event, cpu as u16));
        let rereads = events.iter().map(|event| Command::reread(*event));
        self.send(moves.chain(rereads).chain([Command::settle(from), Command::settle(target)]))
    }

    /// It may not.
    pub fn close(&mut self, line: u32) -> Result<(), Failure> {
        let (index, events) = self.events(line)?;
        let target = self.target(self.collections.get(index).copied().unwrap_or(0))?;
        self.set_enabled(index, false);
        self.send(events.iter().map(|event| Command::reread(*event)).chain([Command::settle(target)]))
    }

    /// The place of a line, and the messages that make it: of a device one at most.
    fn events(&self, line: u32) -> Result<(usize, Vec<Event, MAX_FUNCTIONS>), Failure> {
        let index = index_of(line).ok_or(Failure::TooMany)?;
        let event = |device: &Device| {
            let number = device.lines.iter().position(|own| *own == line)?;
            Some(Event { device: device.number, number: number as u32 })
        };
        let events: Vec<Event, MAX_FUNCTIONS> = self.devices.iter().filter_map(event).collect();
        if events.is_empty() { Err(Failure::TooMany) } else { Ok((index, events)) }
    }

    fn target(&self, collection: u16) -> Result<Target, Failure> {
        self.targets.get(usize::from(collection)).copied().ok_or(Failure::TooMany)
    }

    /// Eight lines are a word.
    fn set_enabled(&self, index: usize, enabled: bool) {
        let memory = self.hardware.memory();
        let (at, bit) = (PROPERTIES + (index as u64 & !7), 1 << (8 * (index & 7)));
        let word = memory.read(at);
        memory.write(at, if enabled { word | bit } else { word & !bit });
        memory.publish();
    }

    /// Has commands carried out: fewer than there is room for.
    fn send(&mut self, commands: impl IntoIterator<Item = Command>) -> Result<(), Failure> {
        let memory = self.hardware.memory();
        for command in commands {
            for (word, offset) in command.0.into_iter().zip((0..BYTES).step_by(8)) {
                memory.write(COMMANDS + self.next + offset, word);
            }
            self.next = (self.next + BYTES) % PAGE;
        }
        memory.publish();
        self.service.write_wide(WRITER, self.next);
        self.settled()
    }

    /// The queue is empty.
    fn settled(&self) -> Result<(), Failure> {
        self.wait(|its| {
            let reader = its.service.read_wide(READER);
            reader & STALLED != 0 || reader & 0xf_ffe0 == its.next
        })?;
        if self.service.read_wide(READER) & STALLED != 0 { Err(Failure::Refused) } else { Ok(()) }
    }

    fn wait(&self, is_so: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        if (0..PATIENCE).any(|_| is_so(self)) { Ok(()) } else { Err(Failure::Stuck) }
    }
}

/// Where in the first block a word for the function with this place is, which is 0 at first.
pub const fn note(place: u64) -> u64 {
    NOTES + 8 * place
}

/// The place of a line among those that messages make.
fn index_of(line: u32) -> Option<usize> {
    let index = u64::from(line).checked_sub(FIRST_MESSAGE)?;
    (index < MESSAGES).then_some(index as usize)
}
