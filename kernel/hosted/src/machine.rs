// SPDX-License-Identifier: MIT OR Apache-2.0
//! One CPU's hardware.

use crate::board::Board;
use crate::context::{HostedThread, HostedVcpu};
use crate::entry;
use crate::float::{FloatFile, Moved};
use std::cell::RefCell;
use std::rc::Rc;
use trellis_core::float::{FloatMove, Lengths};
use trellis_core::lines::{LIST_ENTRIES, ListEntry};
use trellis_core::lock::Lock;
use trellis_core::machine::{Entry, Machine, Memory, NEVER, Page, Stale, Ticks, VcpuContext};
use trellis_core::passage::Passage;
use trellis_core::shared::GUESTS;
use trellis_core::view::{Drop, LastMap};
use trellis_idl::kernel::{FIRST_MESSAGE, Fact, Refusal};
use trellis_idl::trace::{RECORDS, Record};

/// Ticks a second.
pub const HERTZ: u64 = 1_000_000;

/// A CPU of the hosted machine.
#[derive(Debug)]
pub struct HostedMachine {
    /// What it shares with the others.
    pub board: Rc<RefCell<Board>>,
    /// Number of list registers.
    pub list_registers: usize,
    /// List registers in hardware.
    pub lists: [ListEntry; LIST_ENTRIES],
    /// A maintenance interrupt is wanted when at most one list register is in use.
    pub underflow: bool,
    /// When the timer fires.
    pub alarm: Ticks,
    /// Its number.
    pub cpu: u16,
    /// CPUs of the machine.
    pub cpus: u16,
    /// What its TLB may hold of each guest.
    pub last: [LastMap; GUESTS],
    /// Leaves can allow one kind of execution alone.
    pub splits_execute: bool,
    /// The virtual timer's physical line was acknowledged and not ended yet.
    pub timer_active: bool,
    /// Floating-point registers.
    pub float: FloatFile,
    /// Address of the context that is loaded, as an identity and nothing else; 0 = none.
    loaded: usize,
    /// The trace: words of each record, and where the next one goes.
    trace: Box<[[u64; 4]; RECORDS as usize]>,
    next_note: u64,
}

impl HostedMachine {
    /// The CPU of this number of this board.
    pub fn new(board: Rc<RefCell<Board>>, cpu: u16, cpus: u16) -> HostedMachine {
        HostedMachine {
            board,
            list_registers: 4,
            lists: [ListEntry::default(); LIST_ENTRIES],
            underflow: false,
            alarm: NEVER,
            cpu,
            cpus,
            last: [LastMap::default(); GUESTS],
            splits_execute: true,
            timer_active: false,
            float: FloatFile::new(Lengths(0)),
            loaded: 0,
            trace: Box::new([[0; 4]; RECORDS as usize]),
            next_note: 0,
        }
    }

    /// Records noted so far, if the trace has not gone round yet.
    pub fn trace_length(&self) -> u64 {
        self.next_note
    }

    /// Puts a vCPU's state into the hardware. The one that was there must have been unloaded.
    pub fn load(&mut self, vcpu: &HostedVcpu, guest: u16) {
        let last = &mut self.last[guest as usize % GUESTS];
        if last.enter(map_of(vcpu), identity(vcpu) as u64) != Drop::Nothing {
            self.board.borrow_mut().drop_local(self.cpu, vcpu.tag);
        }
        self.lists = vcpu.lists;
        self.underflow = vcpu.underflow;
        self.timer_active = vcpu.timer_active;
        self.loaded = identity(vcpu);
    }
}

/// Tag and root in one word.
fn map_of(vcpu: &HostedVcpu) -> u64 {
    u64::from(vcpu.tag) << 48 | vcpu.root
}

fn identity(vcpu: &HostedVcpu) -> usize {
    std::ptr::from_ref(vcpu).addr()
}

impl Memory for HostedMachine {
    fn entry(&self, table: Page, index: usize) -> u64 {
        self.board.borrow().word(table * 4096 + index as u64 * 8)
    }

    fn set_entry(&mut self, table: Page, index: usize, value: u64) {
        self.board.borrow_mut().set_entry(table, index, value);
    }

    fn word(&self, page: Page, index: usize) -> u64 {
        self.board.borrow().word(page * 4096 + index as u64 * 8)
    }

    fn set_word(&mut self, page: Page, index: usize, value: u64) {
        self.board.borrow_mut().set_word(page * 4096 + index as u64 * 8, value);
    }

    fn unpack(word: u64, _level: u8) -> Entry {
        entry::unpack(word)
    }

    fn is_absent(word: u64) -> bool {
        word == 0
    }

    fn pack(what: Entry, _level: u8) -> u64 {
        entry::pack(what)
    }

    fn zero(&mut self, first: Page, pages: u64) {
        self.board.borrow_mut().zero(first, pages);
    }

    fn copy(&mut self, to: u64, from: u64, bytes: u64, _code: bool) {
        if to != from {
            self.board.borrow_mut().copy(to, from, bytes);
        }
    }

    fn swap(&mut self, address: u64, mask: [u64; 2], expected: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]) {
        assert!(address.is_multiple_of(16), "exclusives need their alignment");
        let mut board = self.board.borrow_mut();
        let found = [0, 8].map(|offset| board.word(address + offset));
        let same = (0..2).all(|i| (found[i] ^ expected[i]) & mask[i] == 0);
        for i in (0..2).filter(|i| same && mask[*i] != 0) {
            board.set_word(address + 8 * i as u64, found[i] & !mask[i] | new[i]);
        }
        (same, found)
    }

    fn invalidate(&mut self, stale: Stale) {
        self.board.borrow_mut().invalidate(stale);
    }
}

impl Machine for HostedMachine {
    type Thread = HostedThread;
    type Vcpu = HostedVcpu;
    type Passage = Rc<Lock<Passage<HostedMachine>>>;

    fn now(&self) -> Ticks {
        self.board.borrow().now
    }

    fn hertz(&self) -> u64 {
        HERTZ
    }

    fn wake_at(&mut self, deadline: Ticks) {
        self.alarm = deadline;
    }

    fn kick(&mut self, cpu: u16) {
        self.board.borrow_mut().kicks.push_back(cpu);
    }

    fn mask(&mut self, line: u32, masked: bool) {
        if u64::from(line) >= FIRST_MESSAGE {
            return;
        }
        let lines = &mut self.board.borrow_mut().lines;
        if masked {
            lines.remove(&line);
        } else {
            lines.insert(line, self.cpu);
        }
    }

    fn set_edge(&mut self, line: u32, edge: bool) {
        assert!(u64::from(line) < FIRST_MESSAGE, "a message's line has no trigger");
        let edges = &mut self.board.borrow_mut().edges;
        if edge { edges.insert(line) } else { edges.remove(&line) };
    }

    fn end_line(&mut self, line: u32) {
        self.board.borrow_mut().active.remove(&line);
    }

    fn bequeath(&mut self, line: u32, to: u16) {
        if let Some(cpu) = self.board.borrow_mut().lines.get_mut(&line).filter(|cpu| **cpu == self.cpu) {
            *cpu = to;
        }
    }

    fn retire(&mut self) {
        self.board.borrow_mut().retired.insert(self.cpu);
        self.alarm = NEVER;
    }

    fn is_loaded(&self, vcpu: &HostedVcpu) -> bool {
        self.loaded == identity(vcpu)
    }

    fn list_entry(&self, index: usize) -> ListEntry {
        self.lists[index]
    }

    fn set_list_entry(&mut self, index: usize, entry: ListEntry) {
        assert!(index < self.list_registers, "there is no list register {index}");
        assert!(entry.origin < 1024, "a list register has ten bits for a physical line, not {}", entry.origin);
        self.lists[index] = entry;
    }

    fn empty_lists(&self) -> u64 {
        let is_free = |entry: &ListEntry| entry.is_empty() && !entry.notify;
        let lists = self.lists.iter().take(self.list_registers).enumerate();
        lists.filter(|(_, entry)| is_free(entry)).fold(0, |bits, (index, _)| bits | 1 << index)
    }

    fn list_entries(&self) -> usize {
        self.list_registers
    }

    fn watch_underflow(&mut self, on: bool) {
        self.underflow = on;
    }

    fn unload(&mut self, vcpu: &mut HostedVcpu) {
        if self.is_loaded(vcpu) {
            vcpu.lists = self.lists;
            vcpu.underflow = self.underflow;
            vcpu.timer_active = std::mem::take(&mut self.timer_active);
            self.loaded = 0;
        }
    }

    fn forget(&mut self, vcpu: &HostedVcpu) {
        self.last.iter_mut().for_each(|last| last.forget(identity(vcpu) as u64));
    }

    fn passage(&self) -> Rc<Lock<Passage<HostedMachine>>> {
        self.board.borrow().passage.clone()
    }

    fn move_float(&mut self, way: FloatMove, vcpu: &mut HostedVcpu) {
        let (lanes, area) = (vcpu.lanes, vcpu.area);
        let who = if area == 0 { u64::from(vcpu.tag) << 8 | u64::from(vcpu.number) } else { area };
        match area {
            0 => self.float.move_context(way, vcpu.float_mut()),
            area => self.float.move_area(way, lanes, &mut self.board.borrow_mut(), area),
        }
        vcpu.float_open = way == FloatMove::Load;
        self.float.moves.push(Moved { way, who, lanes });
    }

    fn move_thread_float(&mut self, way: FloatMove, area: Page) {
        self.float.move_area(way, 0, &mut self.board.borrow_mut(), area);
        self.float.moves.push(Moved { way, who: area, lanes: 0 });
    }

    fn vector_lengths(&self) -> Lengths {
        self.float.lengths
    }

    fn switch_map(&mut self, vcpu: &mut HostedVcpu, guest: u16, root: Page, view: u16) {
        let old = LastMap { map: map_of(vcpu), vcpu: identity(vcpu) as u64 };
        vcpu.root = root;
        vcpu.view = view;
        let last = &mut self.last[guest as usize % GUESTS];
        if *last == old {
            last.map = map_of(vcpu);
            self.board.borrow_mut().drop_local(self.cpu, vcpu.tag);
        }
    }

    fn set_step(&mut self, vcpu: &mut HostedVcpu, on: bool) {
        vcpu.step = on.then_some(true);
    }

    fn splits_execute(&self) -> bool {
        self.splits_execute
    }

    fn fact(&self, which: u64, _argument: u64) -> Result<u64, Refusal> {
        Ok(match which {
            w if w == Fact::Cpus as u64 => self.cpus.into(),
            w if w == Fact::ClockHz as u64 => HERTZ,
            w if w == Fact::ListRegisters as u64 => self.list_registers as u64,
            w if w == Fact::IdRegister as u64 || w == Fact::Midr as u64 => 0,
            w if w == Fact::BootTicks as u64 || w == Fact::KernelMemory as u64 => 0,
            _ => return Err(Refusal::OutOfRange),
        })
    }

    fn power(&mut self, restart: bool) {
        self.board.borrow_mut().power = Some(restart);
    }

    fn last_words(&mut self, records: &[Record]) {
        let mut board = self.board.borrow_mut();
        let rest = core::mem::take(&mut board.log);
        board.said.extend(rest);
        board.said.extend(records.iter().flat_map(|record| format!("{record}\n").into_bytes()));
    }

    fn log(&mut self, address: u64, bytes: u64) {
        let mut board = self.board.borrow_mut();
        for at in address..address + bytes {
            let byte = board.byte(at);
            board.log.push_back(byte);
        }
    }

    fn log_read(&mut self, address: u64, most: u64) -> u64 {
        let mut board = self.board.borrow_mut();
        let count = most.min(board.log.len() as u64);
        for at in address..address + count {
            if let Some(byte) = board.log.pop_front() {
                board.set_byte(at, byte);
            }
        }
        count
    }
    fn note(&mut self, what: u64, argument: u64, context: u64) {
        // This clock stands still while a board's would not; a time of 0 means that nothing was noted.
        let time = self.now() + 1;
        self.trace[self.next_note as usize] = [what, argument, time, context];
        self.next_note = (self.next_note + 1) % RECORDS;
    }

    fn noted(&self, place: u64) -> [u64; 4] {
        self.trace[(place % RECORDS) as usize]
    }

    fn next_note(&self) -> u64 {
        self.next_note
    }
}
