// SPDX-License-Identifier: MIT OR Apache-2.0
//! The service and the redistributors (GICv3 chapters 5 and 12), with the memory that they share with software.

use std::collections::{BTreeMap, BTreeSet};
use trellis_idl::layout::message::ADDRESS;

/// Machine address of the memory, and its bytes.
const BASE: u64 = 0x4100_0000;
const BYTES: u64 = 5 << 16;
const AT: u64 = 0x0000_ffff_ffff_f000;
const FIRST: u32 = 8192;

/// What hardware is like.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// GITS_TYPER.
    pub kind: u64,
    /// It wants redistributors' addresses.
    pub by_address: bool,
    /// It sees what is in caches.
    pub shareable: bool,
    /// Bytes of an entry of the table of devices.
    pub entry: u64,
    /// The only size of a table's pages that it takes: 4, 16 or 64 KiB.
    pub page_size: u64,
    /// Redistributors, one for each affinity from 0 on.
    pub redistributors: usize,
    /// They have LPIs.
    pub lpis: bool,
    /// Somebody else gave them tables.
    pub elsewhere: bool,
    /// It takes no command.
    pub silent: bool,
    /// Writes of registers and of memory that are heard still.
    pub writes: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        // As the emulator's: 16 bits of lines, events and devices, entries of 12 bytes.
        let kind = 0x0000_001f_0001_efb1;
        Settings {
            kind, by_address: false, shareable: true, entry: 8, page_size: 2, redistributors: 4, lpis: true, elsewhere: false, silent: false,
            writes: None,
        }
    }
}

#[derive(Debug, Default)]
struct Redistributor {
    control: u64,
    properties: u64,
    pending: u64,
}

/// What of a line a redistributor has read.
type Enabled = BTreeSet<u32>;

#[derive(Debug)]
pub struct Service {
    pub settings: Settings,
    pub commands: usize,
    /// Memory as software sees it, and as hardware does.
    own: BTreeMap<u64, u64>,
    seen: BTreeMap<u64, u64>,
    control: u64,
    queue: u64,
    writer: u64,
    reader: u64,
    tables: [u64; 2],
    redistributors: Vec<Redistributor>,
    /// Tables of devices: address and bits.
    devices: BTreeMap<u32, (u64, u64)>,
    events: BTreeMap<(u32, u32), (u32, u16)>,
    collections: BTreeMap<u16, u64>,
    enabled: Enabled,
    waiting: BTreeSet<(usize, u32)>,
}

impl Service {
    pub fn new(settings: Settings) -> Service {
        let mut redistributors: Vec<_> = (0..settings.redistributors).map(|_| Redistributor::default()).collect();
        if settings.elsewhere {
            redistributors[1] = Redistributor { control: 1, properties: 0x5000_0000, pending: 0x5100_0000 };
        }
        Service {
            settings, commands: 0, own: BTreeMap::from([(ADDRESS, BASE)]), seen: BTreeMap::new(), control: 1 << 31, queue: 0, writer: 0, reader: 0,
            tables: [0; 2], redistributors, devices: BTreeMap::new(), events: BTreeMap::new(), collections: BTreeMap::new(),
            enabled: BTreeSet::new(), waiting: BTreeSet::new(),
        }
    }

    /// Whether one more write is heard.
    fn hears(&mut self) -> bool {
        match &mut self.settings.writes {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    pub fn load(&self, offset: u64) -> u64 {
        assert!(offset < BYTES && offset.is_multiple_of(8));
        self.own.get(&offset).copied().unwrap_or(0)
    }

    pub fn store(&mut self, offset: u64, value: u64) {
        assert!(offset < BYTES && offset.is_multiple_of(8) && offset != ADDRESS);
        // Zeroes where there are zeroes are no place to stop at.
        if self.load(offset) != value && self.hears() {
            self.own.insert(offset, value);
        }
    }

    pub fn publish(&mut self) {
        self.seen = self.own.clone();
    }

    fn word(&self, address: u64) -> u64 {
        let offset = address.checked_sub(BASE).filter(|offset| *offset < BYTES).expect("hardware stays in the memory that it was given");
        self.seen.get(&(offset & !7)).copied().unwrap_or(0)
    }

    pub fn read(&self, offset: usize) -> u64 {
        let entries = [self.settings.entry.min(32) - 1, 7];
        match offset {
            0x0 => self.control | self.settings.kind << 32,
            0x8 => self.settings.kind | if self.settings.by_address { 1 << 19 } else { 0 },
            0x80 => self.queue,
            0x88 => self.writer,
            0x90 => self.reader,
            0x100 if self.settings.entry > 32 => 0,
            // The third is of no use to anybody.
            0x100 | 0x110 => self.tables[usize::from(offset == 0x110)] | if offset == 0x110 { 4 } else { 1 } << 56 | entries[usize::from(offset == 0x110)] << 48,
            _ => 0,
        }
    }

    fn attributes(&self, value: u64) -> u64 {
        if self.settings.shareable { value } else { value & !(3 << 10) }
    }

    pub fn write(&mut self, offset: usize, value: u64) {
        if !self.hears() {
            return;
        }
        let is_on = self.control & 1 != 0;
        match offset {
            0x0 => self.control = value & 1 | u64::from(value & 1 == 0) << 31,
            0x80 => {
                assert!(!is_on, "the queue is another's");
                (self.queue, self.reader) = (self.attributes(value), 0);
            }
            0x88 => {
                self.writer = value & 0xf_ffe0;
                self.carry_out();
            }
            0x100 | 0x110 => {
                assert!(!is_on, "the table is in use");
                let clean = (0..0x1_0000).step_by(8).all(|at| self.word((value & AT) + at) == 0);
                assert!(clean, "a table begins with zeroes");
                let index = usize::from(offset == 0x110);
                self.tables[index] = self.attributes(value) & !(31 << 48 | 7 << 56 | 3 << 8) | self.settings.page_size << 8;
                // All that it knew stood there.
                self.devices.clear();
                self.events.clear();
                self.collections.clear();
            }
            _ => panic!("nobody writes {offset:#x}"),
        }
    }

    pub fn read_redistributor(&self, place: usize, offset: usize) -> u64 {
        let this = self.redistributors.get(place).expect("behind the last there is nothing");
        let is_last = place + 1 == self.redistributors.len();
        match offset {
            0x0 => this.control,
            // Processors have other numbers than places.
            0x8 => (place as u64) << 32 | number_of(place) << 8 | u64::from(is_last) << 4 | u64::from(self.settings.lpis),
            0x70 => this.properties,
            0x78 => this.pending & !(1 << 62),
            _ => 0,
        }
    }

    pub fn write_redistributor(&mut self, place: usize, offset: usize, value: u64) {
        if !self.hears() {
            return;
        }
        let value = self.attributes(value);
        let this = &mut self.redistributors[place];
        match offset {
            // Once it is on it stays on (12.11.21).
            0x0 => this.control |= value & 1,
            _ if this.control & 1 != 0 => {}
            0x70 => this.properties = value,
            0x78 => {
                assert!(value & 0xffff & !(7 << 7 | 3 << 10) == 0, "in whole blocks");
                this.pending = value;
            }
            _ => panic!("nobody writes {offset:#x}"),
        }
    }

    fn carry_out(&mut self) {
        while self.control & 1 != 0 && self.queue >> 63 == 1 && self.reader != self.writer && !self.settings.silent {
            let at = (self.queue & AT) + self.reader;
            let words = [0, 8, 16, 24].map(|offset| self.word(at + offset));
            self.reader = (self.reader + 32) % 4096;
            self.commands += 1;
            self.command(words);
        }
    }

    fn command(&mut self, [first, second, third, _]: [u64; 4]) {
        let (device, event, collection) = ((first >> 32) as u32, second as u32, third as u16);
        match first & 0xff {
            0x08 if third >> 63 == 0 => {
                self.devices.remove(&device);
                self.events.retain(|(of, _), _| *of != device);
            }
            0x08 => {
                assert_eq!(third & 0xff, 0, "at a whole 256 bytes");
                assert!(u64::from(device) * self.settings.entry < 0x1_0000, "the table has no such entry");
                self.devices.insert(device, (third & 0x000f_ffff_ffff_ff00, (second & 31) + 1));
            }
            0x09 => drop(self.collections.insert(collection, third & 0x0007_ffff_ffff_0000)),
            0x0a => {
                let (_, bits) = self.devices[&device];
                assert!(u64::from(event) < 1 << bits && self.collections.contains_key(&collection));
                let before = self.events.insert((device, event), ((second >> 32) as u32, collection));
                assert_eq!(before, None, "it was mapped already");
            }
            0x01 => {
                let (line, from) = self.events[&(device, event)];
                let (from, to) = (self.place(from), self.place(collection));
                self.events.insert((device, event), (line, collection));
                if self.waiting.remove(&(from, line)) {
                    self.waiting.insert((to, line));
                }
            }
            0x0c => {
                let (line, collection) = self.events[&(device, event)];
                let place = self.place(collection);
                let properties = self.redistributors[place].properties & 0x000f_ffff_ffff_f000;
                let byte = self.word(properties + u64::from(line - FIRST)) >> (8 * (line % 8)) & 0xff;
                assert!(byte >> 2 != 0, "a line has a priority");
                if byte & 1 == 1 { self.enabled.insert(line) } else { self.enabled.remove(&line) };
            }
            0x05 => {}
            number => panic!("no such command: {number:#x}"),
        }
    }

    /// The redistributor of a collection.
    fn place(&self, collection: u16) -> usize {
        let target = self.collections[&collection];
        let is = |place: &usize| match self.settings.by_address {
            true => target == super::REDISTRIBUTORS + 0x2_0000 * *place as u64,
            false => target == number_of(*place) << 16,
        };
        (0..self.redistributors.len()).find(is).expect("a redistributor that there is")
    }

    pub fn message(&mut self, device: u32, event: u32) -> Option<(u32, u32)> {
        if self.control & 1 == 0 {
            return None;
        }
        let (line, collection) = *self.events.get(&(device, event))?;
        let place = self.place(collection);
        self.waiting.insert((place, line));
        self.taken(place as u32).first().map(|line| (place as u32, *line))
    }

    pub fn pending(&self) -> Vec<u32> {
        self.waiting.iter().map(|(_, line)| *line).collect()
    }

    pub fn taken(&mut self, affinity: u32) -> Vec<u32> {
        let place = affinity as usize;
        let can = self.redistributors[place].control & 1 == 1;
        let enabled = &self.enabled;
        let lines: Vec<u32> =
            self.waiting.iter().filter(|(at, line)| *at == place && can && enabled.contains(line)).map(|(_, line)| *line).collect();
        self.waiting.retain(|(at, line)| *at != place || !lines.contains(line));
        lines
    }
}

/// The number of the processor of a redistributor.
fn number_of(place: usize) -> u64 {
    place as u64 + 2
}
