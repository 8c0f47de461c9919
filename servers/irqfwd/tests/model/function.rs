// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function's configuration page, and the table of its messages where it has one.

/// A function with one range of registers and the capability of messages, or with what else a test gives it.
#[derive(Clone, Debug)]
pub struct Function {
    pub identity: u32,
    pub header: u32,
    /// What each base address register is for; one of 64 bits has the next one's place too.
    pub ranges: [Range; 6],
    /// Messages that it can write.
    pub most: u32,
    /// Where the capability is; 0 = it has none.
    pub capability: u32,
    /// Its capabilities are a ring without that of messages.
    pub is_ring: bool,
    /// It may be taken from its place.
    pub may_move: bool,
    /// It keeps its messages in a table: entries, and where the table is and what waits, as the capability says it.
    pub table: Option<(u32, u32, u32)>,
    pub entries: Vec<[u32; 4]>,
    /// How it can be reset.
    pub ways: Ways,
    /// What its driver told it, among its registers.
    pub told: u32,
    /// Times that it was reset.
    pub resets: usize,
    /// Ticks of the clock: a millisecond each.
    pub now: u64,
    wide: bool,
    command: u32,
    bars: [u32; 6],
    control: u32,
    address: u64,
    data: u32,
    rom: u32,
}

/// What a function says of resets, by its capabilities, and how it does them.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// It has the capability of PCI Express; and can reset itself by it.
    pub express: Option<bool>,
    /// The same of advanced features.
    pub features: Option<bool>,
    /// That of power management; and keeps what it was told while it sleeps.
    pub power: Option<bool>,
    /// Accesses that it has begun are over at this tick.
    pub pending_until: u64,
    /// Ticks after a reset until it answers.
    pub takes: u64,
    /// It does as if.
    pub pretends: bool,
    /// What PCI Express tells it to do, and its state of power.
    pub control: u32,
    pub state: u32,
    /// Nobody may ask it anything before this tick, nor wake it or have it sleep; it answers from this one on.
    pub not_before: u64,
    pub answers_at: u64,
}

/// What a base address register is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Range {
    #[default]
    None,
    /// Memory of so many bytes, in 32 bits of address.
    Narrow(u64),
    /// The same in 64 bits.
    Wide(u64),
    /// The other half of the one before.
    High,
    Ports(u64),
}

const AT: u32 = 0x50;
/// Capabilities that say something of resets.
const EXPRESS: usize = 0x70;
const FEATURES: usize = 0x90;
const POWER: usize = 0xa0;
/// Milliseconds that a reset, and going to sleep or waking take.
const RESETS: u64 = 100;
const WAKES: u64 = 10;
/// Milliseconds after which accesses that were begun count as lost.
const LOST: u64 = 100;

impl Function {
    pub fn new(bytes: u64, wide: bool, most: u32) -> Function {
        let mut ranges = [Range::None; 6];
        ranges[0] = if wide { Range::Wide(bytes) } else { Range::Narrow(bytes) };
        ranges[1] = if wide { Range::High } else { Range::None };
        Function {
            identity: 0x11e8_1234, header: 0, ranges, most, capability: AT, is_ring: false, may_move: true, table: None, entries: Vec::new(),
            ways: Ways::default(), told: 0, resets: 0, now: 0, wide, command: 0, bars: [0; 6], control: 0, address: 0, data: 0, rom: 1,
        }
    }

    /// One with these ranges, and with a table of so many entries and this place, all of it as a start of the machine leaves it.
    pub fn with_table(ranges: [Range; 6], entries: u32, at: u32, pending: u32) -> Function {
        let table = Some((entries, at, pending));
        Function { ranges, table, entries: vec![[0xdead, 0xbeef, 7, 1]; entries as usize], ..Function::new(0, false, 1) }
    }

    /// Where the registers of a base address register are.
    pub fn at(&self, register: usize) -> u64 {
        let high = if matches!(self.ranges[register], Range::Wide(_)) { u64::from(self.bars[register + 1]) << 32 } else { 0 };
        u64::from(self.bars[register]) & !15 | high
    }

    /// Where its first registers are.
    pub fn base(&self) -> u64 {
        self.at(0)
    }

    /// It answers at its place.
    pub fn is_on(&self) -> bool {
        self.command & 2 != 0
    }

    /// It makes accesses of its own.
    pub fn is_master(&self) -> bool {
        self.command & 4 != 0
    }

    /// Its program for a start of the machine answers somewhere.
    pub fn shows_program(&self) -> bool {
        self.rom & 1 != 0
    }

    /// Where it writes messages to, the first one's data, and how many it writes.
    pub fn writes(&self) -> Option<(u64, u32, u32)> {
        (self.control & 1 << 16 != 0).then_some((self.address, self.data, 1 << (self.control >> 20 & 7)))
    }

    /// The message of each entry of its table that it may write: address and data.
    pub fn messages(&self) -> Vec<Option<(u64, u32)>> {
        let may = self.may_write();
        let message = |[low, high, data, control]: &[u32; 4]| (may && control & 1 == 0).then_some((u64::from(*high) << 32 | u64::from(*low), *data));
        self.entries.iter().map(message).collect()
    }

    /// Entries of its table that are not masked are written.
    pub fn may_write(&self) -> bool {
        self.control & 3 << 30 == 2 << 30
    }

    /// What comes behind a capability.
    fn next(&self, at: usize) -> u32 {
        let all = [(EXPRESS, self.ways.express), (FEATURES, self.ways.features), (POWER, self.ways.power)];
        let next = all.iter().find(|(place, has)| *place > at && has.is_some());
        next.map_or(0, |(place, _)| (*place as u32) << 8)
    }

    fn is_pending(&self) -> bool {
        self.now < self.ways.pending_until
    }

    /// Everything is as a start of the machine leaves it; or nothing.
    fn reset(&mut self) {
        assert!(self.may_move && !self.is_master(), "its guest uses it");
        self.resets += 1;
        (self.ways.not_before, self.ways.answers_at) = (self.now + RESETS, self.now + self.ways.takes);
        if self.ways.pretends {
            return;
        }
        (self.command, self.bars, self.control, self.address, self.data, self.rom, self.told, self.ways.control) = (0, [0; 6], 0, 0, 0, 0, 0, 0);
        self.entries.iter_mut().for_each(|entry| *entry = [0, 0, 0, 1]);
    }

    fn is_asked(&self) {
        assert!(self.now >= self.ways.not_before, "it is being reset");
    }

    pub fn read(&self, offset: usize) -> u32 {
        self.is_asked();
        if self.now < self.ways.answers_at {
            // It wants to be asked again.
            return if offset == 0 { 0xffff_0001 } else { u32::MAX };
        }
        match offset {
            EXPRESS if self.ways.express.is_some() => 0x10 | self.next(EXPRESS),
            0x74 => self.ways.express.map_or(0, |can| u32::from(can) << 28),
            0x78 => self.ways.control | u32::from(self.is_pending()) << 21,
            FEATURES => self.ways.features.map_or(0, |can| 0x13 | self.next(FEATURES) | 1 << 24 | u32::from(can) << 25),
            0x94 => u32::from(self.is_pending()) << 8,
            POWER if self.ways.power.is_some() => 0x01 | self.next(POWER),
            0xa4 => self.ways.state | self.ways.power.map_or(0, |keeps| u32::from(keeps) << 3),
            0x00 => self.identity,
            0x04 => self.command | if self.capability != 0 { 1 << 20 } else { 0 },
            0x0c => self.header,
            0x10..0x28 => self.bar((offset - 0x10) / 4),
            0x30 => self.rom,
            0x34 => if self.capability == 0 { 0 } else { 0x40 },
            // Another capability comes first.
            0x40 => 9 | if self.is_ring { 0x40 } else { self.capability } << 8,
            0x50 => match self.table {
                Some((entries, ..)) => 0x11 | self.next(0x50) | (entries - 1) << 16 | self.control,
                None => 5 | self.next(0x50) | self.most.trailing_zeros() << 17 | if self.wide() { 1 << 23 } else { 0 } | self.control,
            },
            0x54 => self.table.map_or(self.address as u32, |(_, at, _)| at),
            0x58 => match self.table {
                Some((.., pending)) => pending,
                None if self.wide() => (self.address >> 32) as u32,
                None => self.data,
            },
            0x5c => self.data,
            _ => 0,
        }
    }

    fn wide(&self) -> bool {
        self.wide || self.ranges.iter().any(|range| matches!(range, Range::Wide(_)))
    }

    fn bar(&self, index: usize) -> u32 {
        let kind = match self.ranges[index] {
            Range::Wide(_) => 4,
            Range::Ports(_) => 1,
            _ => 0,
        };
        self.bars[index] | kind
    }

    pub fn write(&mut self, offset: usize, value: u32) {
        self.is_asked();
        if self.now < self.ways.answers_at {
            return;
        }
        assert!(self.ways.state == 0 || offset != 4 || value & 6 & !self.command == 0, "nobody switches it on while it sleeps");
        match offset {
            0x78 if value & 1 << 15 != 0 => {
                assert!(self.ways.express == Some(true), "it cannot");
                assert!(!self.is_pending() || self.now >= LOST, "what it has begun is not over");
                assert_eq!(value & 0x7fff, self.ways.control, "all else stays");
                self.reset();
            }
            0x78 => self.ways.control = value,
            0x94 if self.ways.features.is_some() => {
                assert_eq!((value, self.ways.features), (1, Some(true)));
                self.reset();
            }
            0xa4 if self.ways.power.is_some() => {
                let woken = value & 3 == 0 && self.ways.state == 3;
                assert!(value & !3 == 0, "nothing else");
                if woken && self.ways.power == Some(false) {
                    self.reset();
                }
                (self.ways.state, self.ways.not_before) = (value & 3, self.now + WAKES);
            }
            0x04 => {
                assert!(self.may_move || value & 2 != 0, "its guest uses it");
                assert!(value & 1 == 0, "nobody knows of its ports");
                self.command = value & 0x407;
            }
            0x10..0x28 => self.place((offset - 0x10) / 4, value),
            0x30 => self.rom = value & !0x7fe,
            0x50 if self.table.is_some() => {
                assert!(self.may_move || value & 3 << 30 == 2 << 30, "its guest waits for messages");
                self.control = value & 3 << 30;
            }
            0x50 => self.control = value & (1 << 16 | 7 << 20),
            _ if self.table.is_some() => panic!("nobody writes {offset:#x}"),
            0x54 => self.address = self.address & !0xffff_ffff | u64::from(value),
            0x58 if self.wide() => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            0x58 | 0x5c => self.data = value,
            _ => panic!("nobody writes {offset:#x}"),
        }
    }

    /// The table is at this offset of its page.
    fn entry(&self, offset: usize) -> (usize, usize) {
        let (_, at, _) = self.table.expect("it has a table");
        assert!(self.is_on(), "nobody answers");
        let place = offset - (at as usize & 0xff8);
        (place / 16, place % 16 / 4)
    }

    pub fn read_table(&self, offset: usize) -> u32 {
        let (number, word) = self.entry(offset);
        self.entries[number][word]
    }

    pub fn write_table(&mut self, offset: usize, value: u32) {
        let (number, word) = self.entry(offset);
        let entry = &mut self.entries[number];
        assert!(word == 3 || entry[3] & 1 != 0, "what happens then is not known");
        assert!(self.may_move, "its guest waits for messages");
        entry[word] = value;
    }

    /// Only bits that choose a place can be written.
    fn place(&mut self, index: usize, value: u32) {
        assert!(!self.is_on() && self.may_move, "it would answer elsewhere for a moment");
        self.bars[index] = match self.ranges[index] {
            Range::None => 0,
            Range::Narrow(bytes) | Range::Wide(bytes) => if bytes == 0 { 0 } else { value & bytes.wrapping_neg() as u32 & !15 },
            Range::High => match self.ranges[index - 1] {
                Range::Wide(bytes) => value & (bytes.wrapping_neg() >> 32) as u32,
                _ => 0,
            },
            Range::Ports(bytes) => value & bytes.wrapping_neg() as u32 & !3,
        };
    }
}
