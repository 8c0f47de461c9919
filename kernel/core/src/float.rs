// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point and vector registers: whose they are on each CPU, and when they move.
//!
//! Loading is lazy: registers move when somebody first uses them. Saving is not left behind: whoever gets them has the
//! last owner saved in full first. There is one record of the owner, the CPU's ([`Registers`]); it counts only where the
//! owner says the same ([`State`]), so a stale one of either side moves nothing. Why, and what else was thought of:
//! `docs/decisions`, "Floating-point registers have one owner".

use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, Memory, PAGE_BYTES, Page, Ticks, VcpuContext};
use crate::pool::Id;
use crate::schedule::{self, SLICE_MS};
use crate::shared::Shared;
use crate::thread::FaultRecord;
use crate::trap::{self, Next};
use crate::vcpu::Vcpu;
use trellis_idl::kernel::{Refusal, float_register};

/// Traps within a time slice that make a vCPU's registers come with it unasked.
pub const STORM: u16 = 4;
/// How often they do before it is asked again.
pub const EAGER_LOADS: u16 = 32;
/// Most lanes of 128 bits a vector can have.
pub const MOST_LANES: u8 = 16;

/// Whose the registers of a CPU are. Names carry their generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nobody's: whatever they hold, nobody can reach it.
    Free,
    /// A vCPU's.
    Vcpu(u64),
    /// A thread's.
    Thread(u64),
}

/// The CPU's side of the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    owner: Owner,
    /// Number of the last load on this CPU; the first is 1.
    load: u64,
    /// Bytes that moved between registers and memory.
    pub moved: u64,
}

impl Registers {
    /// Nobody has used them.
    pub const NEW: Registers = Registers { owner: Owner::Free, load: 0, moved: 0 };

    /// Whose they are, as this side has it.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// This owner's state was put into the registers, which were nobody's.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn take(&mut self, cpu: u16, owner: Owner, state: &mut State) {
        self.load += 1;
        self.owner = owner;
        self.moved += Layout::new(state.lanes).moved();
        state.load = self.load;
        state.cpu = cpu;
    }

    /// The registers become nobody's. True: they hold this owner's state, which must be saved now.
    pub fn give(&mut self, cpu: u16, owner: Owner, state: &mut State) -> bool {
        let holds = self.hold(cpu, owner, state);
        self.owner = Owner::Free;
        if holds {
            state.load = 0;
            self.moved += Layout::new(state.lanes).moved();
        }
        holds
    }

    /// Whether this owner's state is in the registers: both sides must say so.
    #[inline(always)]
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn hold(&self, cpu: u16, owner: Owner, state: &State) -> bool {
        self.owner == owner && self.owner != Owner::Free && state.load != 0 && state.load == self.load && state.cpu == cpu
    }
}

/// The owner's side of the record, in each vCPU and thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// The load that put it into registers; 0 = it is in memory.
    load: u64,
    /// The CPU of that load.
    cpu: u16,
    /// Lanes of 128 bits in its vectors; 0 = the fixed vectors of 128 bits, and nothing that scales.
    pub lanes: u8,
    /// Loads left that come unasked.
    eager: u16,
    /// Traps since `since`.
    traps: u16,
    since: Ticks,
    /// First page of its save area; 0 = it lies in the context.
    pub area: Page,
}

impl State {
    /// In memory, of the fixed length.
    pub const EMPTY: State = State { load: 0, cpu: 0, lanes: 0, eager: 0, traps: 0, since: 0, area: 0 };

    /// In memory: at this page, or in the context.
    pub const fn new(lanes: u8, area: Page) -> State {
        State { lanes, area, ..State::EMPTY }
    }

    /// Whether its registers come with it unasked.
    pub const fn is_eager(&self) -> bool {
        self.eager != 0
    }

    /// Whether this side says that it is in registers.
    pub const fn is_away(&self) -> bool {
        self.load != 0
    }

    fn count_trap(&mut self, now: Ticks, slice: Ticks) {
        if now.saturating_sub(self.since) > slice {
            self.since = now;
            self.traps = 0;
        }
        self.traps += 1;
        if self.traps >= STORM {
            self.traps = 0;
            self.eager = EAGER_LOADS;
        }
    }
}

/// Which way registers move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloatMove {
    /// To memory; their use traps afterwards.
    Save,
    /// From memory; their use no longer traps.
    Load,
}

/// Lengths of vectors that a CPU has: bit n for n + 1 lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lengths(pub u16);

impl Lengths {
    /// Whether vectors can have exactly so many lanes.
    pub const fn has(self, lanes: u8) -> bool {
        lanes >= 1 && lanes <= MOST_LANES && self.0 >> (lanes - 1) & 1 == 1
    }

    /// What the hardware makes of a wish: the longest length that is not longer; 0 = none.
    pub const fn rounded(self, lanes: u8) -> u8 {
        let most = if lanes > MOST_LANES { MOST_LANES } else { lanes };
        let fitting = self.0 as u32 & ((1 << most) - 1);
        (u32::BITS - fitting.leading_zeros()) as u8
    }
}

/// Where each register stands in a save area, in bytes: FPSR, FPCR, ZCR, then vectors, predicates, FFR.
///
/// Total: any number of lanes gives a layout; [`Layout::new`] says for which it is a machine's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of a vector.
    pub vector: u64,
    /// Bytes of a predicate, and of FFR.
    pub predicate: u64,
}

impl Layout {
    /// FPSR, FPCR and ZCR_EL1 stand here, 8 bytes each.
    pub const STATUS: u64 = 0;
    /// Vectors begin here.
    pub const VECTORS: u64 = 64;

    /// For so many lanes; 0 = fixed vectors of 128 bits without predicates.
    pub const fn new(lanes: u8) -> Layout {
        Layout { vector: if lanes == 0 { 16 } else { lanes as u64 * 16 }, predicate: lanes as u64 * 2 }
    }

    /// Predicates begin here; FFR is the seventeenth.
    pub const fn predicates(self) -> u64 {
        Self::VECTORS + 32 * self.vector
    }

    /// FFR stands here.
    pub const fn ffr(self) -> u64 {
        self.predicates() + 16 * self.predicate
    }

    /// Bytes of the whole area, in words of 8.
    pub const fn bytes(self) -> u64 {
        (self.ffr() + self.predicate).next_multiple_of(8)
    }

    /// Pages of the whole area.
    pub const fn pages(self) -> u64 {
        self.bytes().div_ceil(PAGE_BYTES)
    }

    /// Bytes that a move carries.
    pub const fn moved(self) -> u64 {
        16 + 32 * self.vector + 17 * self.predicate + if self.predicate == 0 { 0 } else { 8 }
    }

    /// Where a register's word stands, and how many bytes of it there are.
    fn find(self, register: u64) -> Option<(u64, u64)> {
        use float_register::{FPCR, FPSR, PREDICATES, VECTORS, ZCR_EL1};
        const VECTORS_END: u64 = VECTORS + 32 * 32;
        match register {
            FPSR => Some((Self::STATUS, 8)),
            FPCR => Some((Self::STATUS + 8, 8)),
            ZCR_EL1 if self.predicate != 0 => Some((Self::STATUS + 16, 8)),
            VECTORS..VECTORS_END => {
                let (number, at) = ((register - VECTORS) / 32, (register - VECTORS) % 32 * 8);
                (at < self.vector).then_some((Self::VECTORS + number * self.vector + at, 8))
            }
            PREDICATES.. => {
                let (number, at) = ((register - PREDICATES) / 4, (register - PREDICATES) % 4 * 8);
                let left = self.predicate.checked_sub(at).filter(|left| *left != 0 && number < 17)?;
                Some((self.predicates() + number * self.predicate + at, left.min(8)))
            }
            _ => None,
        }
    }
}

/// Save areas of a guest's vCPUs: the end of the run that its tables are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Areas {
    /// Lanes of its vectors; 0 = areas lie in the contexts.
    pub lanes: u8,
    first: Page,
    count: u8,
    used: u16,
}

impl Areas {
    /// None.
    pub const NONE: Areas = Areas { lanes: 0, first: 0, count: 0, used: 0 };

    /// As many areas as vCPUs, at the end of these pages. Back: how many pages are left.
    pub fn cut(first: Page, pages: u64, lanes: u64, count: u64) -> Result<(Areas, u64), Refusal> {
        if lanes == 0 {
            return Ok((Areas::NONE, pages));
        }
        if lanes > MOST_LANES as u64 || count == 0 || count > 16 {
            return Err(Refusal::BadArgument);
        }
        let left = pages.checked_sub(count * Layout::new(lanes as u8).pages()).ok_or(Refusal::Quota)?;
        Ok((Areas { lanes: lanes as u8, first: first + left, count: count as u8, used: 0 }, left))
    }

    /// Pages of all of them.
    pub fn pages(&self) -> u64 {
        u64::from(self.count) * Layout::new(self.lanes).pages()
    }

    /// One for a new vCPU, zeroed. Nothing happens for a guest without.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub fn take<M: Memory>(&mut self, memory: &mut M) -> Result<Page, Refusal> {
        if self.lanes == 0 {
            return Ok(0);
        }
        let free = self.used.trailing_ones() as u8;
        if free >= self.count {
            return Err(Refusal::Quota);
        }
        self.used |= 1 << free;
        let pages = Layout::new(self.lanes).pages();
        let page = self.first + free as u64 * pages;
        memory.zero(page, pages);
        Ok(page)
    }

    /// A vCPU is gone.
    pub fn give(&mut self, page: Page) {
        if self.lanes != 0 && page >= self.first {
            let index = (page - self.first) / Layout::new(self.lanes).pages();
            self.used &= !(1u16.checked_shl(index as u32).unwrap_or(0));
        }
    }

    /// How many are taken.
    pub const fn used(&self) -> u32 {
        self.used.count_ones()
    }
}

/// Somebody used the registers while they trapped.
pub fn trapped<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, record: FaultRecord) -> Next {
    match local.running {
        Running::Vcpu(index) => {
            let (now, slice) = (machine.now(), SLICE_MS * machine.hertz() / 1000);
            local.vcpus.at_mut(index).float.count_trap(now, slice);
            acquire_vcpu(local, machine, index);
        }
        Running::Thread(index) if local.threads.at(index).float.area != 0 => acquire_thread(local, machine, index),
        Running::Thread(_) => return trap::fault(local, shared, machine, record),
        Running::Idle => {}
    }
    schedule::go_on(local, shared, machine)
}

/// A vCPU with something to be looked at is about to run: the registers of one that always uses them come with it.
#[inline]
pub fn entering<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    if local.vcpus.at(index).float.is_eager() {
        come_along(local, machine, index);
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
#[cold]
#[inline(never)]
fn come_along<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    let owner = Owner::Vcpu(local.vcpus.name_at(index).0);
    if !local.float.hold(local.cpu, owner, &local.vcpus.at(index).float) {
        local.vcpus.at_mut(index).float.eager -= 1;
        acquire_vcpu(local, machine, index);
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
fn acquire_vcpu<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    let owner = Owner::Vcpu(local.vcpus.name_at(index).0);
    if local.float.hold(local.cpu, owner, &local.vcpus.at(index).float) {
        return;
    }
    put_away(local, machine);
    let vcpu = local.vcpus.at_mut(index);
    machine.move_float(FloatMove::Load, &mut vcpu.context);
    local.float.take(local.cpu, owner, &mut vcpu.float);
}

fn acquire_thread<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    let owner = Owner::Thread(local.threads.name_at(index).0);
    if local.float.hold(local.cpu, owner, &local.threads.at(index).float) {
        return;
    }
    put_away(local, machine);
    let thread = local.threads.at_mut(index);
    machine.move_thread_float(FloatMove::Load, thread.float.area);
    local.float.take(local.cpu, owner, &mut thread.float);
}

/// Saves whatever the registers of this CPU hold that is somebody's; then they are nobody's. For all that must not leave
/// anything behind: another owner, and a CPU that retires.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn put_away<M: Machine>(local: &mut Local<M>, machine: &mut M) {
    let owner = local.float.owner;
    match owner {
        Owner::Free => {}
        Owner::Vcpu(name) => {
            // One that is gone left nothing to keep: its area is zeroed before anybody has it again.
            if let Some(vcpu) = local.vcpus.get_mut(Local::<M>::vcpu_id(name))
                && local.float.give(local.cpu, owner, &mut vcpu.float)
            {
                machine.move_float(FloatMove::Save, &mut vcpu.context);
                // It gets them back at its next entry, which looks at this.
                vcpu.hazard |= vcpu.float.is_eager();
            }
        }
        Owner::Thread(name) => {
            if let Some(thread) = local.threads.get_mut(Local::<M>::thread_id(name))
                && local.float.give(local.cpu, owner, &mut thread.float)
            {
                machine.move_thread_float(FloatMove::Save, thread.float.area);
            }
        }
    }
    local.float.owner = Owner::Free;
}

/// Puts a vCPU's state into its memory, if it is in the registers: before others read or write it, and before it moves
/// to another CPU.
pub fn release<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    let owner = Owner::Vcpu(local.vcpus.name_at(index).0);
    if local.float.hold(local.cpu, owner, &local.vcpus.at(index).float) {
        put_away(local, machine);
    }
}

/// A vCPU's state ends: it is reset or destroyed. What the registers hold of it is nobody's, and the next load covers
/// every bit of it that its owner can see.
pub fn forget_vcpu<M: Machine>(local: &mut Local<M>, index: u16) {
    let owner = Owner::Vcpu(local.vcpus.name_at(index).0);
    if local.float.owner == owner {
        local.float.owner = Owner::Free;
    }
    let state = &mut local.vcpus.at_mut(index).float;
    *state = State::new(state.lanes, state.area);
}

/// A thread is destroyed.
pub fn forget_thread<M: Machine>(local: &mut Local<M>, index: u16) {
    let owner = Owner::Thread(local.threads.name_at(index).0);
    if local.float.owner == owner {
        local.float.owner = Owner::Free;
    }
    local.threads.at_mut(index).float = State::EMPTY;
}

/// A vCPU was reset: every register of its area to zero.
pub fn reset<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    forget_vcpu(local, index);
    let state = local.vcpus.at(index).float;
    if state.area != 0 {
        machine.zero(state.area, Layout::new(state.lanes).pages());
    }
}

/// Whether this number names a floating-point register.
pub const fn is_register(register: u64) -> bool {
    register >= float_register::FIRST
}

/// Reads a register of a vCPU, after writing it if there is something to write. Its state goes to memory first.
#[inline(never)]
pub fn access<M: Machine>(
    local: &mut Local<M>, machine: &mut M, index: u16, register: u64, write: Option<u64>,
) -> Result<u64, Refusal> {
    release(local, machine, index);
    let vcpu = local.vcpus.at_mut(index);
    if register == float_register::LENGTH && write.is_none() {
        return Ok(vcpu.float.lanes.into());
    }
    let (at, bytes) = Layout::new(vcpu.float.lanes).find(register).ok_or(Refusal::OutOfRange)?;
    // ZCR_EL1 has four bits of length and nothing else (Arm ARM D24.2.216).
    let most = if register == float_register::ZCR_EL1 { 15 } else { u64::MAX >> (64 - 8 * bytes) };
    if write.is_some_and(|value| value > most) {
        return Err(Refusal::BadArgument);
    }
    let mut read = 0;
    for n in 0..bytes {
        let (place, shift) = ((at + n) / 8, (at + n) % 8 * 8);
        let mut word_there = word(vcpu, machine, place);
        if let Some(value) = write {
            word_there = word_there & !(0xff << shift) | (value >> (8 * n) & 0xff) << shift;
            set_word(vcpu, machine, place, word_there);
        }
        read |= (word_there >> shift & 0xff) << (8 * n);
    }
    Ok(read)
}

fn word<M: Machine>(vcpu: &Vcpu<M>, machine: &M, place: u64) -> u64 {
    match vcpu.float.area {
        0 => vcpu.context.float().get(place as usize).copied().unwrap_or(0),
        area => machine.word(area + place / 512, (place % 512) as usize),
    }
}

fn set_word<M: Machine>(vcpu: &mut Vcpu<M>, machine: &mut M, place: u64, value: u64) {
    match vcpu.float.area {
        0 => {
            if let Some(word) = vcpu.context.float_mut().get_mut(place as usize) {
                *word = value;
            }
        }
        area => machine.set_word(area + place / 512, (place % 512) as usize, value),
    }
}

/// The thread whose registers these are, by index: its machine lets it use them when it goes on.
pub fn open_thread<M: Machine>(local: &Local<M>) -> Option<u16> {
    let Owner::Thread(name) = local.float.owner else { return None };
    let index = (Id::<()>::from_word(name).index() % THREADS) as u16;
    local.float.hold(local.cpu, local.float.owner, &local.threads.at(index).float).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_both_sides_together_say_whose_registers_these_are() {
        let mut registers = Registers::NEW;
        let mut state = State::EMPTY;
        let owner = Owner::Vcpu(0x1_0000_0003);
        assert!(!registers.hold(0, owner, &state));
        registers.take(0, owner, &mut state);
        assert!(registers.hold(0, owner, &state));
        // Another CPU's record of the same owner and the same load number.
        assert!(!registers.hold(1, owner, &state));
        // The same slot in its next life.
        assert!(!registers.hold(0, Owner::Vcpu(0x2_0000_0003), &state));
        // It went away and came back: this CPU still names it, with an older load.
        let stale = registers;
        registers.take(0, owner, &mut state);
        assert!(!stale.hold(0, owner, &state));
        // Its state was taken to memory by somebody else.
        state.load = 0;
        assert!(!registers.hold(0, owner, &state));
    }

    #[test]
    fn a_wish_is_rounded_down_as_hardware_does() {
        // Neoverse V1: 128 and 256; A64FX: 128, 256 and 512.
        assert_eq!([1, 2, 3, 16].map(|lanes| Lengths(0b11).rounded(lanes)), [1, 2, 2, 2]);
        assert_eq!([1, 2, 3, 4, 8, 40].map(|lanes| Lengths(0b1011).rounded(lanes)), [1, 2, 2, 4, 4, 4]);
        assert_eq!(Lengths(0).rounded(16), 0);
        assert!(Lengths(0b11).has(2) && !Lengths(0b11).has(3) && !Lengths(0xffff).has(0) && !Lengths(0xffff).has(17));
    }

    #[test]
    fn areas_have_the_known_sizes() {
        // 32 vectors, 16 predicates, FFR: 512+32+2, 1024+64+4, 2048+128+8, 8192+512+32; 64 bytes before.
        assert_eq!([1, 2, 4, 16].map(|lanes| Layout::new(lanes).bytes()), [616, 1160, 2248, 8800]);
        assert_eq!([0, 1, 4, 7, 8, 16].map(|lanes| Layout::new(lanes).pages()), [1, 1, 1, 1, 2, 3]);
        assert_eq!(Layout::new(0).bytes(), 576);
    }

    #[test]
    fn a_guests_areas_are_counted_and_given_back() {
        let (areas, left) = Areas::cut(100, 40, 16, 4).expect("room");
        assert_eq!((areas.first, left), (128, 28));
        assert_eq!(Areas::cut(100, 11, 16, 4), Err(Refusal::Quota));
        assert_eq!(Areas::cut(100, 40, 17, 1), Err(Refusal::BadArgument));
        assert_eq!(Areas::cut(100, 40, 2, 17), Err(Refusal::BadArgument));
        assert_eq!(Areas::cut(100, 40, 0, 99), Ok((Areas::NONE, 40)));
    }

    proptest! {
        #[test]
        fn a_layout_is_total_monotone_and_without_overlap(lanes: u8) {
            let layout = Layout::new(lanes);
            let places = [Layout::STATUS, Layout::VECTORS, layout.predicates(), layout.ffr(), layout.bytes()];
            prop_assert!(places.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(layout.ffr() + layout.predicate <= layout.bytes());
            prop_assert!(layout.pages() * PAGE_BYTES >= layout.bytes());
            if lanes < u8::MAX {
                prop_assert!(Layout::new(lanes + 1).bytes() > layout.bytes() || lanes == 0);
            }
        }

        /// Owners that move between CPUs, are read from outside, start anew and leave: each finds what it wrote last,
        /// wherever it is, and no CPU takes a stale record for a live one.
        #[test]
        fn whoever_moves_between_cpus_finds_what_it_wrote_last(
            steps in prop::collection::vec((0usize..4, 0u16..3, 0u8..5, 1u64..), 1..200),
        ) {
            let mut cpus = [(Registers::NEW, 0u64); 3];
            let mut owners = [(State::new(2, 5), 0u64, 0u64, 0u64); 4];
            let name = |index: usize, life: u64| Owner::Vcpu(life << 32 | index as u64);
            // What a CPU's registers hold goes to memory, if it is somebody's who lives.
            let put_away = |cpu: u16, cpus: &mut [(Registers, u64); 3], owners: &mut [(State, u64, u64, u64); 4]| {
                let (registers, hardware) = &mut cpus[cpu as usize];
                let Owner::Vcpu(word) = registers.owner() else { return };
                let (state, life, memory, _) = &mut owners[word as u32 as usize];
                if word >> 32 == *life && registers.give(cpu, Owner::Vcpu(word), state) {
                    *memory = *hardware;
                }
                registers.owner = Owner::Free;
            };
            for (index, cpu, what, value) in steps {
                let (state, life, ..) = owners[index];
                let owner = name(index, life);
                if state.is_away() && (what == 1 || (what == 0 && state.cpu != cpu)) {
                    // Before it moves, and before somebody looks.
                    prop_assert!(cpus[state.cpu as usize].0.hold(state.cpu, owner, &state));
                    put_away(state.cpu, &mut cpus, &mut owners);
                    prop_assert!(!owners[index].0.is_away());
                }
                match what {
                    0 => {
                        if !cpus[cpu as usize].0.hold(cpu, owner, &owners[index].0) {
                            put_away(cpu, &mut cpus, &mut owners);
                            cpus[cpu as usize].1 = owners[index].2;
                            cpus[cpu as usize].0.take(cpu, owner, &mut owners[index].0);
                        }
                        prop_assert_eq!(cpus[cpu as usize].1, owners[index].3, "what it sees on CPU {}", cpu);
                        cpus[cpu as usize].1 = value;
                        owners[index].3 = value;
                    }
                    1 => prop_assert_eq!(owners[index].2, owners[index].3, "what others read"),
                    // Gone, and another in its place; the CPU's record may still name the old one.
                    2 => owners[index] = (State::new(2, 5), life + 1, 0, 0),
                    3 => put_away(cpu, &mut cpus, &mut owners),
                    // It went to memory, and the CPU's record stays behind: one side is enough to make it stale.
                    _ if state.is_away() => {
                        owners[index].2 = cpus[state.cpu as usize].1;
                        owners[index].0.load = 0;
                    }
                    _ => {}
                }
            }
        }

        #[test]
        fn no_two_registers_share_a_byte(lanes in 0u8..=16) {
            let layout = Layout::new(lanes);
            let mut seen = std::collections::BTreeSet::new();
            let mut bytes = 0;
            for register in float_register::FIRST..0x4000 {
                if let Some((at, length)) = layout.find(register) {
                    prop_assert!(at + length <= layout.bytes());
                    bytes += length;
                    seen.extend(at..at + length);
                }
            }
            prop_assert_eq!(seen.len() as u64, bytes);
            // Everything that moves can be read and written, and nothing else.
            prop_assert_eq!(bytes, layout.moved());
        }

        #[test]
        fn no_register_number_makes_it_panic(lanes: u8, register: u64) {
            if let Some((at, length)) = Layout::new(lanes).find(register) {
                prop_assert!((1..=8).contains(&length) && at + length <= Layout::new(lanes).bytes());
            }
        }
    }
}
