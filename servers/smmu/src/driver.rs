// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SMMU (SMMUv3 chapter 6): sees a table of streams, in which everything is stopped that nobody attached, and does what
//! is in a queue of commands.
//!
//! All that it reads lies in memory that root gives and outlives this server. The next one finds the SMMU at work and goes on,
//! or, where anything is not as it should be, has it stop every access first and begins anew.

use crate::command::{BYTES, Command};
use crate::event::{self, Event};
use crate::space::Space;
use crate::stream::{Entry, WORDS};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::space::{
    ADDRESS, COMMAND_QUEUE, EVENT_QUEUE, EVENTS, LEAST_BITS, MOST_BITS, REGISTERS, STREAM_BYTES, streams, tables,
};
use trellis_idl::plan::{SmmuConfig, SpacePlan};
use trellis_runtime::memory::{Hardware, Registers, SharedMemory};

/// Registers (6.3), on the first page.
const FEATURES: usize = 0x0;
const SIZES: usize = 0x4;
const OUTPUT: usize = 0x14;
const CONTROL: usize = 0x20;
const CONTROL_DONE: usize = 0x24;
const ATTRIBUTES: usize = 0x28;
const BEHAVIOUR: usize = 0x2c;
const BYPASS: usize = 0x44;
const INTERRUPTS: usize = 0x50;
const INTERRUPTS_DONE: usize = 0x54;
const ERRORS: usize = 0x60;
const ERRORS_SEEN: usize = 0x64;
const ERROR_MESSAGE: usize = 0x68;
const STREAMS_AT: usize = 0x80;
const STREAMS_KIND: usize = 0x88;
const COMMANDS_AT: usize = 0x90;
const COMMAND_WRITER: usize = 0x98;
const COMMAND_READER: usize = 0x9c;
const EVENTS_AT: usize = 0xa0;
const EVENT_MESSAGE: usize = 0xb0;
/// And on the second one.
const EVENT_WRITER: usize = 0xa8;
const EVENT_READER: usize = 0xac;

/// In FEATURES (IDR0): second stage, AArch64's tables, sees what is in caches, messages of its own.
const SECOND_STAGE: u32 = 1;
const LONG_TABLES: u32 = 2 << 2;
const COHERENT: u32 = 1 << 4;
const MESSAGES: u32 = 1 << 13;
/// In SIZES (IDR1): where its tables and queues are is fixed.
const PRESET: u32 = 7 << 28;
/// In OUTPUT (IDR5): tables of 4 KiB.
const SMALL_TABLES: u32 = 1 << 4;
/// In CONTROL: it translates, there are events, there are commands.
const TRANSLATES: u32 = 1;
const HAS_EVENTS: u32 = 1 << 2;
const HAS_COMMANDS: u32 = 1 << 3;
const AT_WORK: u32 = TRANSLATES | HAS_EVENTS | HAS_COMMANDS;
/// In ATTRIBUTES: queues and tables are cached alike by all, inner shareable.
const CACHED: u32 = 0x0d75;
/// In BEHAVIOUR: streams without an entry are events; CPUs' own maintenance of their tables is none of this (PTM).
const STRICT: u32 = 1 << 1 | 1 << 2;
/// In BYPASS (GBPA): while it does not translate everything is stopped; take that over.
const STOPS: u32 = 1 << 20;
const UPDATE: u32 = 1 << 31;
/// In INTERRUPTS.
const ON_ERROR: u32 = 1;
const ON_EVENT: u32 = 1 << 2;
/// In ERRORS: a command is none; an event could not be written.
const COMMAND_ERROR: u32 = 1;
/// See [`COMMAND_ERROR`].
pub const EVENTS_LOST: u32 = 1 << 2;
/// An address that may be put into caches (RA, WA).
const ALLOCATES: u64 = 1 << 62;
/// Entries of both queues, as powers of two.
const COMMAND_BITS: u32 = 8;
const EVENT_BITS: u32 = 7;
/// In the places of the queue of events: some were lost, and that was seen.
const LOST: u32 = 1 << 31;
/// Looks at hardware before it counts as stuck.
const PATIENCE: u32 = 1_000_000;
/// In shared memory: what is there is complete.
const DONE: u64 = ADDRESS + 8;
const COMPLETE: u64 = u64::from_le_bytes(*b"complete");

/// Why devices cannot be kept to their guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It has no second stage with such tables, or its tables are fixed.
    Features,
    /// It does not see what is in caches.
    NotCoherent,
    /// Streams have fewer bits than are needed, or queues fewer entries.
    TooSmall,
    /// It does not answer.
    Stuck,
    /// It stopped at a command.
    Refused,
    /// There is no room for the tables of a space.
    NoRoom,
    /// There is no such guest or stream.
    Unknown,
}

/// The SMMU, and what this server has told it.
#[derive(Debug)]
pub struct Smmu<H: Hardware> {
    hardware: H,
    registers: H::Page,
    /// Machine address of the shared memory.
    base: u64,
    /// Where the next command goes, and in the bit above it how often the queue went round.
    next: u32,
    /// How many bits the machine's addresses have, by their code.
    size: u64,
}

impl<H: Hardware> Smmu<H> {
    /// Takes over what an earlier server brought up, or has everything stopped and brings it up.
    pub fn start(hardware: H, config: &SmmuConfig) -> Result<Smmu<H>, Failure> {
        let registers = hardware.page(REGISTERS);
        let base = hardware.memory().read(ADDRESS);
        let size = u64::from(registers.read(OUTPUT) & 7);
        let mut smmu = Smmu { hardware, registers, base, next: 0, size };
        smmu.look(config.stream_bits)?;
        if smmu.is_at_work(config.stream_bits) {
            smmu.next = smmu.registers.read(COMMAND_WRITER) & mask(COMMAND_BITS);
            if smmu.settled().is_ok() {
                return Ok(smmu);
            }
        }
        smmu.begin(config.stream_bits)?;
        Ok(smmu)
    }

    /// Whether it can do what is needed.
    fn look(&self, bits: u8) -> Result<(), Failure> {
        let (features, sizes) = (self.registers.read(FEATURES), self.registers.read(SIZES));
        if features & SECOND_STAGE == 0 || features & LONG_TABLES == 0 || self.registers.read(OUTPUT) & SMALL_TABLES == 0 || sizes & PRESET != 0 {
            return Err(Failure::Features);
        }
        if features & COHERENT == 0 {
            return Err(Failure::NotCoherent);
        }
        let is_small = sizes & 63 < bits.into() || sizes >> 21 & 31 < COMMAND_BITS || sizes >> 16 & 31 < EVENT_BITS;
        if is_small || !(LEAST_BITS..=MOST_BITS).contains(&bits) { Err(Failure::TooSmall) } else { Ok(()) }
    }

    /// Whether an earlier server did everything, and nothing went wrong.
    fn is_at_work(&self, bits: u8) -> bool {
        let at = |register: usize| self.registers.read_wide(register) & !ALLOCATES;
        self.hardware.memory().read(DONE) == COMPLETE
            && self.registers.read(CONTROL) & AT_WORK == AT_WORK
            && at(STREAMS_AT) == self.base + streams(bits)
            && self.registers.read(STREAMS_KIND) == bits.into()
            && at(COMMANDS_AT) == self.base + COMMAND_QUEUE | u64::from(COMMAND_BITS)
            && at(EVENTS_AT) == self.base + EVENT_QUEUE | u64::from(EVENT_BITS)
            && (self.registers.read(ERRORS) ^ self.registers.read(ERRORS_SEEN)) & COMMAND_ERROR == 0
    }

    /// Everything from the beginning: first no device gets anywhere, then there is a table in which none does.
    fn begin(&mut self, bits: u8) -> Result<(), Failure> {
        let memory = self.hardware.memory();
        memory.write(DONE, 0);
        self.set(INTERRUPTS, 0, INTERRUPTS_DONE)?;
        self.wait(|registers| registers.read(BYPASS) & UPDATE == 0)?;
        self.registers.write(BYPASS, self.registers.read(BYPASS) | STOPS | UPDATE);
        self.wait(|registers| registers.read(BYPASS) & UPDATE == 0)?;
        self.set(CONTROL, 0, CONTROL_DONE)?;
        for stream in 0..1 << bits {
            self.write_entry(bits, stream, &Entry::STOPPED);
        }
        memory.publish();
        self.registers.write(ATTRIBUTES, CACHED);
        self.registers.write(BEHAVIOUR, STRICT);
        self.registers.write_wide(STREAMS_AT, self.base + streams(bits) | ALLOCATES);
        // Linear, so many bits.
        self.registers.write(STREAMS_KIND, bits.into());
        self.queues();
        self.registers.write(ERRORS_SEEN, self.registers.read(ERRORS));
        self.set(CONTROL, HAS_COMMANDS, CONTROL_DONE)?;
        self.send(&[Command::reread_all(), Command::forget_all()])?;
        self.set(CONTROL, HAS_COMMANDS | HAS_EVENTS, CONTROL_DONE)?;
        self.set(CONTROL, AT_WORK, CONTROL_DONE)?;
        self.set(INTERRUPTS, ON_ERROR | ON_EVENT, INTERRUPTS_DONE)?;
        self.hardware.memory().write(DONE, COMPLETE);
        self.hardware.memory().publish();
        Ok(())
    }

    /// Both queues, empty. It raises its lines, and writes no messages.
    fn queues(&mut self) {
        let (commands, events) = (self.base + COMMAND_QUEUE, self.base + EVENT_QUEUE);
        self.registers.write_wide(COMMANDS_AT, commands | u64::from(COMMAND_BITS) | ALLOCATES);
        self.registers.write(COMMAND_WRITER, 0);
        self.registers.write(COMMAND_READER, 0);
        self.registers.write_wide(EVENTS_AT, events | u64::from(EVENT_BITS) | ALLOCATES);
        let second = self.hardware.page(EVENTS);
        second.write(EVENT_WRITER, 0);
        second.write(EVENT_READER, 0);
        if self.registers.read(FEATURES) & MESSAGES != 0 {
            self.registers.write_wide(ERROR_MESSAGE, 0);
            self.registers.write_wide(EVENT_MESSAGE, 0);
        }
        self.next = 0;
    }

    /// Makes a guest's space, whose tables are behind those of others; nobody may see it. Back: its entry.
    pub fn space(&self, bits: u8, spaces: &[SpacePlan], place: usize, frames: u64) -> Result<Entry, Failure> {
        let plan = spaces.get(place).ok_or(Failure::Unknown)?;
        let before: u64 = spaces.iter().take(place).map(|plan| u64::from(plan.tables)).sum();
        let memory = self.hardware.memory();
        let root = Space::make(memory, self.base, tables(bits) + before * PAGE, plan, frames).map_err(|_| Failure::NoRoom)?;
        memory.publish();
        Ok(Entry::of(number(plan.guest), root, self.size))
    }

    /// Whether a stream is stopped.
    pub fn is_stopped(&self, bits: u8, stream: u32) -> bool {
        self.hardware.memory().read(place(bits, stream)) == Entry::STOPPED.0[0]
    }

    /// A stream that is stopped goes by this entry from now on.
    pub fn open(&mut self, bits: u8, stream: u32, entry: &Entry) -> Result<(), Failure> {
        if stream >> bits != 0 {
            return Err(Failure::Unknown);
        }
        // While it is stopped nothing but its first word counts, and that changes last.
        let [first, ..] = entry.0;
        let [stopped, ..] = Entry::STOPPED.0;
        let mut still = *entry;
        still.0[0] = stopped;
        self.write_entry(bits, stream, &still);
        self.send(&[Command::reread(stream)])?;
        self.hardware.memory().write(place(bits, stream), first);
        self.send(&[Command::reread(stream)])
    }

    /// A stream is stopped.
    pub fn stop(&mut self, bits: u8, stream: u32) -> Result<(), Failure> {
        if stream >> bits != 0 {
            return Err(Failure::Unknown);
        }
        self.hardware.memory().write(place(bits, stream), Entry::STOPPED.0[0]);
        self.send(&[Command::reread(stream)])
    }

    /// Nothing of a guest's space is remembered, and what went by it is over.
    pub fn forget(&mut self, guest: u8) -> Result<(), Failure> {
        self.send(&[Command::forget(number(guest))])
    }

    fn write_entry(&self, bits: u8, stream: u32, entry: &Entry) {
        let at = place(bits, stream);
        for (word, offset) in entry.0.iter().zip((0..8 * WORDS as u64).step_by(8)) {
            self.hardware.memory().write(at + offset, *word);
        }
    }

    /// Has commands carried out, and waits until all that follows from them is done.
    fn send(&mut self, commands: &[Command]) -> Result<(), Failure> {
        let memory = self.hardware.memory();
        for command in commands.iter().chain([&Command::settle()]) {
            let at = COMMAND_QUEUE + u64::from(self.next & mask(COMMAND_BITS - 1)) * BYTES;
            memory.write(at, command.0[0]);
            memory.write(at + 8, command.0[1]);
            self.next = self.next + 1 & mask(COMMAND_BITS);
        }
        memory.publish();
        self.registers.write(COMMAND_WRITER, self.next);
        self.settled()
    }

    /// The queue is empty.
    fn settled(&self) -> Result<(), Failure> {
        let is_wrong = |registers: &H::Page| (registers.read(ERRORS) ^ registers.read(ERRORS_SEEN)) & COMMAND_ERROR != 0;
        self.wait(|registers| is_wrong(registers) || registers.read(COMMAND_READER) & mask(COMMAND_BITS) == self.next)?;
        if is_wrong(&self.registers) { Err(Failure::Refused) } else { Ok(()) }
    }

    /// Writes a register whose value another one shows when it counts.
    fn set(&self, register: usize, value: u32, done: usize) -> Result<(), Failure> {
        self.registers.write(register, value);
        self.wait(|registers| registers.read(done) == value)
    }

    fn wait(&self, is_so: impl Fn(&H::Page) -> bool) -> Result<(), Failure> {
        if (0..PATIENCE).any(|_| is_so(&self.registers)) { Ok(()) } else { Err(Failure::Stuck) }
    }
}

/// A guest's space has a number, by which the SMMU remembers what it read of its tables.
const fn number(guest: u8) -> u16 {
    guest as u16 + 1
}

/// Where the entry of a stream is.
const fn place(bits: u8, stream: u32) -> u64 {
    streams(bits) + stream as u64 * STREAM_BYTES
}

/// A place in a queue with so many bits of entries, and one more that says how often it went round.
const fn mask(bits: u32) -> u32 {
    (2 << bits) - 1
}

/// The queue of events, which another thread than the commands' reads.
#[derive(Debug)]
pub struct Queue<H: Hardware> {
    hardware: H,
    registers: H::Page,
    second: H::Page,
}

impl<H: Hardware> Queue<H> {
    /// The one of this SMMU, which is up.
    pub fn new(hardware: H) -> Queue<H> {
        let (registers, second) = (hardware.page(REGISTERS), hardware.page(EVENTS));
        Queue { hardware, registers, second }
    }

    /// Takes the next event.
    pub fn take(&self) -> Option<Event> {
        let (writer, reader) = (self.second.read(EVENT_WRITER), self.second.read(EVENT_READER));
        if (writer ^ reader) & mask(EVENT_BITS) == 0 {
            return None;
        }
        let at = EVENT_QUEUE + u64::from(reader & mask(EVENT_BITS - 1)) * event::BYTES;
        let words = [0, 8, 16, 24].map(|offset| self.hardware.memory().read(at + offset));
        let next = reader + 1 & mask(EVENT_BITS) | reader & LOST;
        self.second.write(EVENT_READER, next);
        Some(Event::of(words))
    }

    /// Whether events were lost since the queue was full; asked again, whether others were.
    pub fn lost(&self) -> bool {
        let (writer, reader) = (self.second.read(EVENT_WRITER), self.second.read(EVENT_READER));
        if (writer ^ reader) & LOST == 0 {
            return false;
        }
        self.second.write(EVENT_READER, reader ^ LOST);
        true
    }

    /// It raises its line for events, or does not. Nobody waits for that: what comes late comes once more.
    pub fn listen(&self, listens: bool) {
        self.registers.write(INTERRUPTS, if listens { ON_ERROR | ON_EVENT } else { ON_ERROR });
    }

    /// What is wrong with it since it was asked last, a bit each. A command that is none stays: whoever sent it sees that.
    pub fn errors(&self) -> u32 {
        let (errors, seen) = (self.registers.read(ERRORS), self.registers.read(ERRORS_SEEN));
        let new = (errors ^ seen) & !COMMAND_ERROR;
        self.registers.write(ERRORS_SEEN, seen ^ new);
        new
    }
}
