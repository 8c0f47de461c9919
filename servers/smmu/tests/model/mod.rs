// SPDX-License-Identifier: MIT OR Apache-2.0
//! An SMMU made of memory (SMMUv3 chapters 3 to 7): it remembers entries and translations until it is told to forget them,
//! carries out commands, walks tables, and writes events. What software may not do fails the test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::space::ADDRESS;
use trellis_runtime::memory::{Hardware, Registers, SharedMemory};

/// Machine address of the shared memory.
pub const BASE: u64 = 0x4200_0000;
const AT: u64 = 0x000f_ffff_ffff_f000;

/// What hardware is like.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// IDR0, IDR1, IDR5.
    pub features: [u32; 3],
    /// It carries no command out, or takes no change of its control.
    pub silent: bool,
    pub frozen: bool,
    /// Writes of registers and of memory that are heard still.
    pub writes: Option<u64>,
}

/// What becomes of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes there.
    Goes(u64),
    /// It is stopped; an event says so, or not.
    Stopped(bool),
}

#[derive(Debug)]
pub struct Whole {
    pub settings: Settings,
    registers: BTreeMap<usize, u32>,
    memory: BTreeMap<u64, u64>,
    entries: BTreeMap<u32, [u64; 8]>,
    /// By space and page: where to, and whether it may be written, read.
    translations: BTreeMap<(u16, u64), (u64, bool, bool)>,
    /// Commands that were carried out.
    pub commands: usize,
    /// Times that it raised its line.
    pub raised: usize,
}

/// The hardware, as a test and as the server see it.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Whole>>, Memory);

#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<Whole>>);

#[derive(Clone, Debug)]
pub struct Page(Arc<Mutex<Whole>>, usize);

fn lock(whole: &Mutex<Whole>) -> MutexGuard<'_, Whole> {
    whole.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Fake {
    pub fn with(spoil: impl FnOnce(&mut Settings)) -> Fake {
        // As the emulator's.
        let features = [0x0d44_101b, 0x0273_0010, 0x0000_0074];
        let mut settings = Settings { features, silent: false, frozen: false, writes: None };
        spoil(&mut settings);
        let memory = BTreeMap::from([(ADDRESS, BASE)]);
        let whole = Whole {
            settings, registers: BTreeMap::new(), memory, entries: BTreeMap::new(), translations: BTreeMap::new(), commands: 0, raised: 0,
        };
        let whole = Arc::new(Mutex::new(whole));
        Fake(whole.clone(), Memory(whole))
    }

    pub fn whole(&self) -> MutexGuard<'_, Whole> {
        lock(&self.0)
    }

    /// A device touches memory.
    pub fn access(&self, stream: u32, address: u64, writes: bool) -> Outcome {
        self.whole().access(stream, address, writes)
    }
}

impl Whole {
    fn register(&self, offset: usize) -> u32 {
        match offset {
            0x0 => self.settings.features[0],
            0x4 => self.settings.features[1],
            0x14 => self.settings.features[2],
            _ => self.registers.get(&offset).copied().unwrap_or(0),
        }
    }

    fn wide(&self, offset: usize) -> u64 {
        u64::from(self.register(offset)) | u64::from(self.register(offset + 4)) << 32
    }

    fn heard(&mut self) -> bool {
        match &mut self.settings.writes {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        true
    }

    fn set(&mut self, offset: usize, value: u32) {
        if !self.heard() {
            return;
        }
        let translates = self.register(0x24) & 1 != 0;
        assert!(!(translates && (0x80..0x98).contains(&offset)), "its tables change while it reads them");
        self.registers.insert(offset, value);
        let shown = match offset {
            0x20 | 0x50 if !self.settings.frozen => Some((offset + 4, value)),
            0x44 if value >> 31 == 1 => Some((offset, value & !(1 << 31))),
            _ => None,
        };
        self.registers.extend(shown);
        if offset == 0x98 {
            self.work();
        }
    }

    /// Carries out what is in the queue of commands.
    fn work(&mut self) {
        let (base, size) = (self.wide(0x90) & AT, 1u32 << (self.wide(0x90) & 31));
        while self.register(0x24) & 8 != 0 && !self.settings.silent && self.register(0x9c) != self.register(0x98) {
            let reader = self.register(0x9c);
            let at = base - BASE + u64::from(reader % size) * 16;
            let [first, second] = [at, at + 8].map(|at| self.memory.get(&at).copied().unwrap_or(0));
            match first as u8 {
                0x03 if second & 1 == 1 => drop(self.entries.remove(&((first >> 32) as u32))),
                0x04 if second & 31 == 31 => self.entries.clear(),
                0x28 => self.translations.retain(|(space, _), _| u64::from(*space) != first >> 32 & 0xffff),
                0x30 => self.translations.clear(),
                0x46 => {}
                _ => return self.spoil(),
            }
            self.commands += 1;
            self.registers.insert(0x9c, (reader + 1) % (2 * size));
        }
    }

    fn access(&mut self, stream: u32, address: u64, writes: bool) -> Outcome {
        if self.register(0x24) & 1 == 0 {
            let stops = self.register(0x44) >> 20 & 1 == 1;
            return if stops { Outcome::Stopped(false) } else { Outcome::Goes(address) };
        }
        if stream >> (self.register(0x88) & 63) != 0 {
            return self.event([2 | u64::from(stream) << 32, 0, 0, 0]);
        }
        let entry = self.entry(stream);
        assert_eq!(entry[0] & 1, 1, "stream {stream:#x} has no entry");
        match entry[0] >> 1 & 7 {
            0 => Outcome::Stopped(false),
            4 => Outcome::Goes(address),
            6 => self.translate(stream, &entry, address, writes),
            other => panic!("stream {stream:#x} has configuration {other}"),
        }
    }

    fn entry(&mut self, stream: u32) -> [u64; 8] {
        let base = (self.wide(0x80) & AT) - BASE;
        assert_eq!(base % (64 << (self.register(0x88) & 63)), 0, "the table is at a multiple of its size");
        let words = std::array::from_fn(|index| self.memory.get(&(base + u64::from(stream) * 64 + 8 * index as u64)).copied().unwrap_or(0));
        *self.entries.entry(stream).or_insert(words)
    }

    fn translate(&mut self, stream: u32, entry: &[u64; 8], address: u64, writes: bool) -> Outcome {
        let space = entry[2] as u16;
        let known = self.translations.get(&(space, address / PAGE)).copied();
        let Some((to, write, read)) = known.or_else(|| self.walk(entry, address)) else {
            return self.event([0x10 | u64::from(stream) << 32, if writes { 0 } else { 1 << 35 }, address, 0]);
        };
        self.translations.insert((space, address / PAGE), (to, write, read));
        if writes && write || !writes && read {
            return Outcome::Goes(to + address % PAGE);
        }
        self.event([0x13 | u64::from(stream) << 32, if writes { 0 } else { 1 << 35 }, address, 0])
    }

    /// From level 1 on, by the tables as they are now.
    fn walk(&self, entry: &[u64; 8], address: u64) -> Option<(u64, bool, bool)> {
        assert_eq!((entry[2] >> 32 & 63, entry[2] >> 38 & 3, entry[2] >> 46 & 3), (25, 1, 0), "39 bits from level 1, 4 KiB");
        if address >> 39 != 0 {
            return None;
        }
        let mut table = entry[3] & AT;
        for shift in [30, 21, 12] {
            let word = *self.memory.get(&(table - BASE + (address >> shift & 511) * 8))?;
            let (is_leaf, end) = (word & 3 == if shift == 12 { 3 } else { 1 }, word & AT);
            if is_leaf {
                assert_eq!(word >> 10 & 1, 1, "touched before");
                return Some((end + (address & ((1 << shift) - 1) & !(PAGE - 1)), word >> 7 & 1 == 1, word >> 6 & 1 == 1));
            }
            if word & 3 != 3 {
                return None;
            }
            table = end;
        }
        None
    }

    fn event(&mut self, words: [u64; 4]) -> Outcome {
        let (base, size) = (self.wide(0xa0) & AT, 1u32 << (self.wide(0xa0) & 31));
        let (writer, reader) = (self.register(0x1_00a8), self.register(0x1_00ac));
        let place = writer & (2 * size - 1);
        if place ^ reader & (2 * size - 1) == size {
            // Full: the sign that some were lost is turned, unless it says so already.
            if (writer ^ reader) >> 31 == 0 {
                self.registers.insert(0x1_00a8, writer ^ 1 << 31);
            }
            return Outcome::Stopped(false);
        }
        for (index, word) in (0..).zip(words) {
            self.memory.insert(base - BASE + u64::from(place % size) * 32 + 8 * index, word);
        }
        self.registers.insert(0x1_00a8, writer & 1 << 31 | (place + 1) % (2 * size));
        self.raised += usize::from(self.register(0x54) & 4 != 0);
        Outcome::Stopped(true)
    }

    /// A command that is none is found.
    pub fn spoil(&mut self) {
        self.registers.insert(0x60, self.register(0x64) ^ 1);
    }
}

impl Hardware for Fake {
    type Page = Page;
    type Memory = Memory;

    fn page(&self, place: usize) -> Page {
        Page(self.0.clone(), place * 0x1_0000)
    }

    fn memory(&self) -> &Memory {
        &self.1
    }
}

impl Registers for Page {
    fn read(&self, offset: usize) -> u32 {
        lock(&self.0).register(self.1 + offset)
    }

    fn write(&self, offset: usize, value: u32) {
        lock(&self.0).set(self.1 + offset, value);
    }
}

impl SharedMemory for Memory {
    fn read(&self, offset: u64) -> u64 {
        lock(&self.0).memory.get(&offset).copied().unwrap_or(0)
    }

    fn write(&self, offset: u64, value: u64) {
        let mut whole = lock(&self.0);
        if whole.heard() {
            whole.memory.insert(offset, value);
        }
    }

    fn publish(&self) {}
}
