// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saved state of threads and vCPUs on the hosted machine.

use trellis_core::float::Layout;
use trellis_core::lines::{LIST_ENTRIES, ListEntry};
use trellis_core::machine::{NEVER, Page, ThreadContext, Ticks, VcpuContext};
use trellis_idl::kernel::{Answer, Refusal, Traps, VcpuRegister};

/// Registers of a thread while it runs, as far as the kernel's interface knows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// `x0`–`x2`.
    pub x: [u64; 3],
    /// `m0`–`m9`.
    pub words: [u64; 10],
}

/// A thread's saved state.
#[derive(Clone, Debug)]
pub struct HostedThread {
    /// What it gets at the end of a system call.
    pub parked: Registers,
    /// Every register, when it was interrupted.
    pub full: Registers,
    /// Where it goes on.
    pub pc: u64,
    /// Its stack.
    pub sp: u64,
    /// Tag of its map.
    pub tag: u16,
    /// Root of its map.
    pub root: Page,
}

impl ThreadContext for HostedThread {
    const EMPTY: Self = HostedThread {
        parked: Registers { x: [0; 3], words: [0; 10] },
        full: Registers { x: [0; 3], words: [0; 10] },
        pc: 0,
        sp: 0,
        tag: 0,
        root: 0,
    };

    fn start(&mut self, pc: u64, sp: u64, argument: u64) {
        self.pc = pc;
        self.sp = sp;
        self.parked.x[0] = argument;
    }

    fn set_map(&mut self, tag: u16, root: Page) {
        self.tag = tag;
        self.root = root;
    }

    fn set_return(&mut self, values: [u64; 3]) {
        self.parked.x = values;
    }

    fn words(&self) -> &[u64; 10] {
        &self.parked.words
    }

    fn words_mut(&mut self) -> &mut [u64; 10] {
        &mut self.parked.words
    }

    fn register(&self, n: usize) -> u64 {
        match n {
            0..=2 => self.full.x[n],
            19..=28 => self.full.words[n - 19],
            31 => self.sp,
            32 => self.pc,
            _ => 0,
        }
    }
}

/// First register number that is no general one, and past the last.
const SPECIAL: std::ops::Range<u64> = 32..63;

/// A vCPU's saved state.
#[derive(Clone, Debug)]
pub struct HostedVcpu {
    exit: [u64; 10],
    x: [u64; 32],
    special: [u64; 31],
    /// Tag of its map.
    pub tag: u16,
    /// Root of its map.
    pub root: Page,
    /// The view it is in.
    pub view: u16,
    /// Its number in its guest.
    pub number: u8,
    /// Waiting instructions stop it.
    pub waits_trap: bool,
    /// List registers while it is not loaded.
    pub lists: [ListEntry; LIST_ENTRIES],
    /// A maintenance interrupt is wanted for it when at most one list register is in use.
    pub underflow: bool,
    /// Its timer's physical line is active.
    pub timer_active: bool,
    /// Lanes of its vectors.
    pub lanes: u8,
    /// Its save area, if that is not in here.
    pub area: Page,
    /// Its use of floating-point registers does not trap.
    pub float_open: bool,
    /// It executes one instruction: `Some(true)` = that is to come, `Some(false)` = it is done, the trap is due.
    pub step: Option<bool>,
    /// What stops it beside what always does.
    pub traps: Traps,
    vectors: [u64; VECTOR_WORDS],
}

/// Words of a save area for fixed vectors.
const VECTOR_WORDS: usize = Layout::new(0).bytes() as usize / 8;

const NO_LINE: ListEntry = ListEntry {
    line: 0, priority: 0, pending: false, active: false, group: false, origin: 0, notify: false,
};

impl HostedVcpu {
    fn special(&self, register: VcpuRegister) -> u64 {
        self.special[register as usize - SPECIAL.start as usize]
    }

    /// Writes one of the registers that are no general ones.
    pub fn set_special(&mut self, register: VcpuRegister, value: u64) {
        self.special[register as usize - SPECIAL.start as usize] = value;
    }

    /// Its program counter.
    pub fn pc(&self) -> u64 {
        self.special(VcpuRegister::Pc)
    }

    /// An instruction has been executed, or was done for it.
    pub fn step_done(&mut self) {
        self.step = self.step.map(|_| false);
    }

    /// Writes a general register.
    pub fn set_general(&mut self, n: usize, value: u64) {
        self.x[n & 31] = value;
    }

    /// A general register.
    pub fn general(&self, n: usize) -> u64 {
        self.x[n & 31]
    }
}

impl VcpuContext for HostedVcpu {
    const EMPTY: Self = HostedVcpu {
        exit: [0; 10],
        x: [0; 32],
        special: [0; 31],
        tag: 0,
        root: 0,
        view: 0,
        number: 0,
        waits_trap: false,
        lists: [NO_LINE; LIST_ENTRIES],
        underflow: false,
        timer_active: false,
        lanes: 0,
        area: 0,
        float_open: false,
        step: None,
        traps: Traps::NONE,
        vectors: [0; VECTOR_WORDS],
    };

    fn exit(&self) -> &[u64; 10] {
        &self.exit
    }

    fn set_exit(&mut self, words: [u64; 10]) {
        self.exit = words;
    }

    fn reset(&mut self) {
        let HostedVcpu { tag, root, view, number, lanes, area, traps, .. } = *self;
        *self = HostedVcpu { tag, root, view, number, lanes, area, traps, ..HostedVcpu::EMPTY };
        self.set_special(VcpuRegister::Pstate, 0x3c5);
    }

    fn set_map(&mut self, tag: u16, root: Page, index: u8) {
        self.tag = tag;
        self.root = root;
        self.number = index;
    }

    fn set_float(&mut self, lanes: u8, area: Page) {
        self.lanes = lanes;
        self.area = area;
    }

    fn float(&self) -> &[u64] {
        &self.vectors
    }

    fn float_mut(&mut self) -> &mut [u64] {
        &mut self.vectors
    }

    fn view(&self) -> u16 {
        self.view
    }

    fn general(&self, n: usize) -> u64 {
        self.x[n & 31]
    }

    fn set_general(&mut self, n: usize, value: u64) {
        self.x[n & 31] = value;
    }

    fn divert(&mut self, pc: u64) -> [u64; 2] {
        let was = [self.pc(), self.special(VcpuRegister::Pstate)];
        self.step_done();
        self.set_special(VcpuRegister::Pc, pc);
        self.set_special(VcpuRegister::Pstate, 0x3c5);
        was
    }

    fn go_back(&mut self, [pc, state]: [u64; 2]) {
        self.set_special(VcpuRegister::Pc, pc);
        self.set_special(VcpuRegister::Pstate, state);
    }

    fn get(&self, register: u64) -> Result<u64, Refusal> {
        match register {
            0..=30 => Ok(self.x[register as usize]),
            n if SPECIAL.contains(&n) => Ok(self.special[(n - SPECIAL.start) as usize]),
            _ => Err(Refusal::OutOfRange),
        }
    }

    fn set(&mut self, register: u64, value: u64) -> Result<(), Refusal> {
        match register {
            0..=30 => self.x[register as usize] = value,
            n if n == VcpuRegister::Pstate as u64 && !is_guest_state(value) => return Err(Refusal::BadArgument),
            n if SPECIAL.contains(&n) => self.special[(n - SPECIAL.start) as usize] = value,
            _ => return Err(Refusal::OutOfRange),
        }
        Ok(())
    }

    fn answer(&mut self, mask: u64, words: &[u64; 10]) {
        let mask = Answer(mask);
        if mask.0 & 0xf != 0 {
            self.step_done();
        }
        if mask.has(Answer::ADVANCE) {
            self.advance();
        }
        if mask.has(Answer::PC) {
            self.set_special(VcpuRegister::Pc, words[4]);
        }
        if mask.has(Answer::GENERAL) {
            self.x[..4].copy_from_slice(&words[6..]);
        }
        if mask.has(Answer::REGISTER) {
            self.x[(mask.0 >> 8 & 31) as usize] = words[5];
        }
    }

    fn start(&mut self, pc: u64, argument: u64) {
        self.set_special(VcpuRegister::Pc, pc);
        self.x[0] = argument;
    }

    fn advance(&mut self) {
        self.set_special(VcpuRegister::Pc, self.pc().wrapping_add(4));
        self.step_done();
    }

    fn exception(&mut self, syndrome: u64, address: u64) {
        self.step_done();
        self.set_special(VcpuRegister::ElrEl1, self.pc());
        self.set_special(VcpuRegister::SpsrEl1, self.special(VcpuRegister::Pstate));
        self.set_special(VcpuRegister::EsrEl1, syndrome);
        self.set_special(VcpuRegister::FarEl1, address);
        self.set_special(VcpuRegister::Pc, self.special(VcpuRegister::VbarEl1).wrapping_add(0x200));
        self.set_special(VcpuRegister::Pstate, 0x3c5);
    }

    fn set_traps(&mut self, traps: Traps) {
        self.traps = traps;
    }

    fn trap_wait(&mut self, on: bool) {
        self.waits_trap = on;
    }

    fn timer_deadline(&self) -> Ticks {
        match self.special(VcpuRegister::CntvCtl) & 3 {
            1 => self.special(VcpuRegister::CntvCval).wrapping_add(self.special(VcpuRegister::Cntvoff)),
            _ => NEVER,
        }
    }

    fn list_entry(&self, index: usize) -> ListEntry {
        self.lists[index % LIST_ENTRIES]
    }

    fn set_list_entry(&mut self, index: usize, entry: ListEntry) {
        self.lists[index % LIST_ENTRIES] = entry;
    }

    fn watch_underflow(&mut self, on: bool) {
        self.underflow = on;
    }
}

/// EL0t, EL1t or EL1h with any flags and masks, and nothing else.
pub fn is_guest_state(pstate: u64) -> bool {
    pstate & !(0xf << 28 | 0xf << 6 | 0xf) == 0 && matches!(pstate & 0xf, 0 | 4 | 5)
}
