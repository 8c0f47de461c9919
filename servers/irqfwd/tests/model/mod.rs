// SPDX-License-Identifier: MIT OR Apache-2.0
//! A translation service, redistributors and functions made of memory, and a clock.
#![allow(dead_code, unused_imports, reason = "no test uses all of it")]

mod function;
mod service;

pub use function::{Function, Range, Ways};
use service::Service;
pub use service::Settings;

use std::sync::{Arc, Mutex, MutexGuard};
use trellis_idl::layout::message::{SERVICE, function, redistributor, table};
use trellis_runtime::memory::{Hardware, Registers, SharedMemory};

/// Where the redistributors are.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Where messages are written to.
pub const DOORBELL: u64 = 0x0809_0040;

/// All of it.
#[derive(Debug)]
pub struct Whole {
    service: Service,
    functions: Vec<Function>,
}

/// The hardware as a test sees it.
#[derive(Clone, Debug)]
pub struct Fake(Arc<Mutex<Whole>>);

/// The hardware as the server sees it.
#[derive(Clone, Debug)]
pub struct Board(Fake, Memory);

/// The memory that both see.
#[derive(Clone, Debug)]
pub struct Memory(Fake);

/// A page of registers.
#[derive(Clone, Debug)]
pub struct Page(Fake, usize);

impl Fake {
    /// Hardware that can do everything.
    pub fn new() -> Fake {
        Fake::with(|_| {})
    }

    /// The same, but for this.
    pub fn with(spoil: impl FnOnce(&mut Settings)) -> Fake {
        let mut settings = Settings::default();
        spoil(&mut settings);
        let functions = vec![Function::new(0x10_0000, false, 1), Function::new(0x10_0000, false, 4)];
        Fake(Arc::new(Mutex::new(Whole { service: Service::new(settings), functions })))
    }

    pub fn board(&self) -> Board {
        Board(self.clone(), Memory(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Whole> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A device writes a message: the CPU's affinity and the line, if one comes at once.
    pub fn message(&self, device: u32, number: u32) -> Option<(u32, u32)> {
        self.lock().service.message(device, number)
    }

    /// Lines that came to nobody yet.
    pub fn pending(&self) -> Vec<u32> {
        self.lock().service.pending()
    }

    /// The CPU with this affinity takes all that is for it.
    pub fn taken(&self, affinity: u32) -> Vec<u32> {
        self.lock().service.taken(affinity)
    }

    /// Commands that were carried out.
    pub fn commands(&self) -> usize {
        self.lock().service.commands
    }

    /// Writes are heard again.
    pub fn mend(&self) {
        self.lock().service.settings.writes = None;
    }

    /// Whether there were more writes than were heard.
    pub fn is_broken(&self) -> bool {
        self.lock().service.settings.writes == Some(0)
    }

    /// These are the functions from now on.
    pub fn functions(&self, functions: &[Function]) {
        self.lock().functions = functions.to_vec();
    }

    /// So late it is.
    pub fn set_clock(&self, now: u64) {
        self.lock().functions.iter_mut().for_each(|function| function.now = now);
    }

    /// A function's driver tells it something, and it begins accesses that are over at this tick.
    pub fn tell(&self, place: usize, pending_until: u64) {
        let mut whole = self.lock();
        (whole.functions[place].told, whole.functions[place].ways.pending_until) = (7, pending_until);
    }

    /// One of them.
    pub fn function(&self, place: usize) -> Function {
        self.lock().functions[place].clone()
    }

    /// Its guest, or whoever was there before, writes an entry of its table.
    pub fn set_entry(&self, place: usize, number: usize, entry: [u32; 4]) {
        self.lock().functions[place].entries[number] = entry;
    }

    /// Whoever wants may again.
    pub fn allow_moves(&self) {
        self.lock().functions.iter_mut().for_each(|function| function.may_move = true);
    }

    /// From now on nobody may take a function from its place.
    pub fn forbid_moves(&self) {
        self.lock().functions.iter_mut().for_each(|function| function.may_move = false);
    }
}

impl Hardware for Board {
    type Page = Page;
    type Memory = Memory;

    fn page(&self, place: usize) -> Page {
        Page(self.0.clone(), place)
    }

    fn memory(&self) -> &Memory {
        &self.1
    }
}

impl SharedMemory for Memory {
    fn read(&self, offset: u64) -> u64 {
        self.0.lock().service.load(offset)
    }

    fn write(&self, offset: u64, value: u64) {
        self.0.lock().service.store(offset, value);
    }

    fn publish(&self) {
        self.0.lock().service.publish();
    }
}

impl Registers for Page {
    fn read(&self, offset: usize) -> u32 {
        if (table(0)..redistributor(0)).contains(&self.1) {
            return self.0.lock().functions[self.1 - table(0)].read_table(offset);
        }
        let value = self.read_wide(offset & !7);
        if offset & 4 == 0 { value as u32 } else { (value >> 32) as u32 }
    }

    fn write(&self, offset: usize, value: u32) {
        let mut whole = self.0.lock();
        match self.1 {
            SERVICE => whole.service.write(offset, value.into()),
            place if place >= redistributor(0) => whole.service.write_redistributor(place - redistributor(0), offset, value.into()),
            place if place >= table(0) => whole.functions[place - table(0)].write_table(offset, value),
            place => {
                // Nobody hears what is written to a function that is not there.
                if let Some(function) = whole.functions.get_mut(place - function(0)) {
                    function.write(offset, value);
                }
            }
        }
    }

    fn read_wide(&self, offset: usize) -> u64 {
        let whole = self.0.lock();
        match self.1 {
            SERVICE => whole.service.read(offset),
            place if place >= redistributor(0) => whole.service.read_redistributor(place - redistributor(0), offset),
            place => {
                let Some(function) = whole.functions.get(place - function(0)) else { return u64::MAX };
                u64::from(function.read(offset)) | u64::from(function.read(offset + 4)) << 32
            }
        }
    }

    fn write_wide(&self, offset: usize, value: u64) {
        let mut whole = self.0.lock();
        match self.1 {
            SERVICE => whole.service.write(offset, value),
            place => whole.service.write_redistributor(place - redistributor(0), offset, value),
        }
    }
}
