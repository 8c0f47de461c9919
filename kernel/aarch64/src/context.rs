// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saved state of threads and vCPUs, laid out as `entry.S` reads it.

use crate::debug::Debug;
use crate::registers::{self, Pstate};
use core::mem::offset_of;
use trellis_core::float::Layout;
use trellis_core::lines::{LIST_ENTRIES, ListEntry};
use trellis_core::machine::{NEVER, Page, ThreadContext, Ticks, VcpuContext};
use trellis_idl::kernel::{Answer, Refusal, Traps, VcpuRegister};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A thread's registers.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Thread {
    /// x0–x30 where it was interrupted or faulted; one dead place.
    pub x: [u64; 32],
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Processor state where it was interrupted.
    pub pstate: u64,
    /// VTTBR_EL2 of its domain.
    pub vttbr: u64,
    /// Parked message words.
    pub words: [u64; 10],
    /// x0–x2 at the end of a system call.
    pub results: [u64; 3],
}

const _: () = assert!(
    offset_of!(Thread, pc) == 256
        && offset_of!(Thread, vttbr) == 280
        && offset_of!(Thread, words) == 288
        && offset_of!(Thread, results) == 368
);

impl ThreadContext for Thread {
    const EMPTY: Self =
        Thread { x: [0; 32], pc: 0, sp: 0, pstate: 0, vttbr: 0, words: [0; 10], results: [0; 3] };

    fn start(&mut self, pc: u64, sp: u64, argument: u64) {
        self.pc = pc;
        self.sp = sp;
        self.results = [argument, 0, 0];
        self.words = [0; 10];
    }

    fn set_map(&mut self, tag: u16, root: Page) {
        self.vttbr = vttbr(tag, root);
    }

    fn set_return(&mut self, values: [u64; 3]) {
        self.results = values;
    }

    fn words(&self) -> &[u64; 10] {
        &self.words
    }

    fn words_mut(&mut self) -> &mut [u64; 10] {
        &mut self.words
    }

    fn register(&self, n: usize) -> u64 {
        match n {
            0..=30 => self.x[n],
            31 => self.sp,
            32 => self.pc,
            _ => 0,
        }
    }
}

impl Thread {
    /// Does the last instructions again.
    pub fn step_back(&mut self, bytes: u64) {
        self.pc = self.pc.wrapping_sub(bytes);
    }
}

/// VTTBR_EL2: VMID and root table (Arm ARM D19.2.153). CnP = 0.
pub const fn vttbr(tag: u16, root: Page) -> u64 {
    (tag as u64) << 48 | root << 12
}

/// EL1 system registers that stay in the hardware until another vCPU needs the CPU, in the order `isa.rs` moves them.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs)]
pub struct El1 {
    pub sp_el1: u64,
    pub elr: u64,
    pub spsr: u64,
    pub vbar: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub mair: u64,
    pub amair: u64,
    pub esr: u64,
    pub far: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub par: u64,
    pub cpacr: u64,
    pub contextidr: u64,
    pub tpidr_el1: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub cntkctl: u64,
    pub csselr: u64,
    pub vmpidr: u64,
    pub vpidr: u64,
    pub cntvoff: u64,
    pub cntv_ctl: u64,
    pub cntv_cval: u64,
}

impl El1 {
    const EMPTY: El1 = El1 {
        sp_el1: 0, elr: 0, spsr: 0, vbar: 0, ttbr0: 0, ttbr1: 0, tcr: 0, mair: 0, amair: 0, esr: 0, far: 0, afsr0: 0,
        afsr1: 0, par: 0, cpacr: 0, contextidr: 0, tpidr_el1: 0, tpidr_el0: 0, tpidrro_el0: 0, cntkctl: 0, csselr: 0,
        vmpidr: 0, vpidr: 0, cntvoff: 0, cntv_ctl: 0, cntv_cval: 0,
    };
}

/// A save area for fixed vectors: FPSR, FPCR, V0–V31, as [`Layout`] has them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Vectors(pub [u64; Layout::new(0).bytes() as usize / 8]);

/// A vCPU's registers.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Vcpu {
    /// x0–x30; one dead place that an answer for register 31 falls into.
    pub x: [u64; 32],
    /// Program counter.
    pub pc: u64,
    /// SP_EL0.
    pub sp_el0: u64,
    /// Processor state.
    pub pstate: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// HCR_EL2 while it runs.
    pub hcr: u64,
    /// CPTR_EL2 while it runs: traps floating point until its state is loaded.
    pub cptr: u64,
    /// SCTLR_EL1, valid while a server runs.
    pub sctlr: u64,
    /// The view it is in; `vttbr` is of that view.
    pub view: u64,
    /// Words of its exit message.
    pub exit: [u64; 10],
    /// Registers that are switched lazily; valid while it is not loaded (the timer's also at a WFI).
    pub el1: El1,
    /// ICH_LR<n>_EL2 while it is not loaded.
    pub lists: [u64; LIST_ENTRIES],
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// ICH_AP1R0_EL2.
    pub active_priorities: u64,
    /// The physical virtual-timer interrupt is active: its virtual one is in flight.
    pub timer_active: bool,
    /// Lines wait for a list register: ask for the maintenance interrupt while loaded.
    pub underflow: bool,
    /// Breakpoints, watchpoints, single step.
    pub debug: Debug,
    /// It executes one instruction: PSTATE.SS says whether that is to come, and is not the guest's.
    pub stepping: bool,
    /// PSTATE.SS as the guest had it.
    pub own_step: u64,
    /// Its breakpoint instructions stop it.
    pub stops_at_breakpoints: bool,
    /// Vector registers of a guest without scalable ones, valid while another owns the hardware's.
    pub vectors: Vectors,
    /// Lanes of its scalable vectors; 0 = it has none.
    pub lanes: u8,
    /// Page of its save area; 0 = `vectors`.
    pub area: Page,
}

const _: () = assert!(
    offset_of!(Vcpu, pc) == 256
        && offset_of!(Vcpu, hcr) == 288
        && offset_of!(Vcpu, sctlr) == 304
        && offset_of!(Vcpu, exit) == 320
);

impl VcpuContext for Vcpu {
    const EMPTY: Self = Vcpu {
        x: [0; 32], pc: 0, sp_el0: 0, pstate: 0, vttbr: 0, hcr: 0, cptr: 0, sctlr: 0, view: 0, exit: [0; 10],
        el1: El1::EMPTY, lists: [0; LIST_ENTRIES], vmcr: 0, active_priorities: 0, timer_active: false, underflow: false,
        debug: Debug::EMPTY, stepping: false, own_step: 0, stops_at_breakpoints: false, vectors: Vectors([0; Layout::new(0).bytes() as usize / 8]), lanes: 0, area: 0,
    };

    fn exit(&self) -> &[u64; 10] {
        &self.exit
    }

    fn set_exit(&mut self, words: [u64; 10]) {
        self.exit = words;
    }

    fn reset(&mut self) {
        let (vttbr, view, vmpidr, vpidr) = (self.vttbr, self.view, self.el1.vmpidr, self.el1.vpidr);
        let (lanes, area) = (self.lanes, self.area);
        let (traps, stops_at_breakpoints) = (self.hcr & registers::HCR_TVM, self.stops_at_breakpoints);
        *self = Self::EMPTY;
        self.stops_at_breakpoints = stops_at_breakpoints;
        self.set_float(lanes, area);
        self.vttbr = vttbr;
        self.view = view;
        self.el1.vmpidr = vmpidr;
        self.el1.vpidr = vpidr;
        self.hcr = registers::HCR_GUEST | traps;
        self.cptr = registers::CPTR_TRAP_ALL;
        self.sctlr = registers::SCTLR_EL1_RESET;
        self.pstate = Pstate::RESET.0;
    }

    fn set_map(&mut self, tag: u16, root: Page, index: u8) {
        self.vttbr = vttbr(tag, root);
        self.el1.vmpidr = 1 << 31 | index as u64;
    }

    fn set_float(&mut self, lanes: u8, area: Page) {
        self.lanes = lanes;
        self.area = area;
    }

    fn float(&self) -> &[u64] {
        &self.vectors.0
    }

    fn float_mut(&mut self) -> &mut [u64] {
        &mut self.vectors.0
    }

    #[inline(always)]
    fn view(&self) -> u16 {
        self.view as u16
    }

    #[inline(always)]
    fn general(&self, n: usize) -> u64 {
        self.x[n & 31]
    }

    #[inline(always)]
    fn set_general(&mut self, n: usize, value: u64) {
        self.x[n & 31] = value;
    }

    fn divert(&mut self, pc: u64) -> [u64; 2] {
        let was = [self.pc, self.pstate];
        self.pc = pc;
        self.pstate = Pstate::RESET.0;
        was
    }

    fn go_back(&mut self, [pc, state]: [u64; 2]) {
        self.pc = pc;
        self.pstate = state;
    }

    fn get(&self, register: u64) -> Result<u64, Refusal> {
        if register <= 30 {
            return Ok(self.x[register as usize]);
        }
        self.place(register).ok_or(Refusal::OutOfRange)
    }

    fn set(&mut self, register: u64, value: u64) -> Result<(), Refusal> {
        if register <= 30 {
            self.x[register as usize] = value;
            return Ok(());
        }
        if register == VcpuRegister::Pstate as u64 {
            let step = if self.stepping { self.pstate & STEP } else { 0 };
            self.pstate = Pstate::for_guest(value).ok_or(Refusal::BadArgument)?.0 | step;
            return Ok(());
        }
        *self.place_mut(register).ok_or(Refusal::OutOfRange)? = value;
        Ok(())
    }

    fn answer(&mut self, mask: u64, words: &[u64; 10]) {
        let mask = Answer(mask);
        if mask.0 & Answer::QUICK != 0 {
            self.step_done();
        }
        if mask.has(Answer::ADVANCE) {
            self.pc = self.pc.wrapping_add(4);
        }
        if mask.has(Answer::PC) {
            self.pc = words[4];
        }
        if mask.has(Answer::GENERAL) {
            self.x[..4].copy_from_slice(&words[6..]);
        }
        if mask.has(Answer::REGISTER) {
            self.x[(mask.0 >> 8 & 31) as usize] = words[5];
        }
    }

    fn start(&mut self, pc: u64, argument: u64) {
        self.pc = pc;
        self.x[0] = argument;
    }

    fn advance(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.step_done();
    }

    /// Arm ARM D1.3.6: the vector by where it came from, the state saved, everything masked.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn exception(&mut self, syndrome: u64, address: u64) {
        let from = Pstate(self.pstate);
        let offset = if from.is_narrow() { 0x600 } else if from.is_user() { 0x400 } else if from.uses_sp_el0() { 0 } else { 0x200 };
        self.el1.elr = self.pc;
        self.el1.spsr = self.own_state();
        self.el1.esr = syndrome;
        self.el1.far = address;
        self.pc = (self.el1.vbar & !0x7ff).wrapping_add(offset);
        self.pstate = Pstate::RESET.0;
    }

    fn set_traps(&mut self, traps: Traps) {
        self.stops_at_breakpoints = traps.has(Traps::BREAKPOINT);
        let wanted = if traps.has(Traps::MEMORY_REGISTERS) { registers::HCR_TVM } else { 0 };
        self.hcr = self.hcr & !registers::HCR_TVM | wanted;
    }

    fn trap_wait(&mut self, on: bool) {
        self.hcr = if on { self.hcr | registers::HCR_TWI } else { self.hcr & !registers::HCR_TWI };
    }

    fn timer_deadline(&self) -> Ticks {
        // CNTV_CTL: ENABLE and not IMASK.
        if self.el1.cntv_ctl & 3 == 1 {
            self.el1.cntv_cval.wrapping_add(self.el1.cntvoff)
        } else {
            NEVER
        }
    }

    #[inline(always)]
    fn list_entry(&self, index: usize) -> ListEntry {
        registers::unpack_list(self.lists[index % LIST_ENTRIES])
    }

    fn watch_underflow(&mut self, on: bool) {
        self.underflow = on;
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn set_list_entry(&mut self, index: usize, entry: ListEntry) {
        self.lists[index % LIST_ENTRIES] = registers::pack_list(entry);
    }
}

impl Vcpu {
    /// Does the last instructions again.
    pub fn step_back(&mut self, bytes: u64) {
        self.pc = self.pc.wrapping_sub(bytes);
    }

    /// An instruction that was done for the guest counts as its single step (PSTATE.SS, Arm ARM D2.12).
    pub fn step_done(&mut self) {
        self.pstate &= !STEP;
    }

    /// Its processor state as the guest has it. An instruction that was executed counts for the guest's own single step.
    fn own_state(&self) -> u64 {
        if self.stepping && self.pstate & STEP != 0 { self.pstate & !STEP | self.own_step } else { self.pstate }
    }

    /// It executes one instruction when it is entered, or no more.
    pub fn step(&mut self, on: bool) {
        self.pstate = self.own_state();
        if on {
            self.own_step = self.pstate & STEP;
            self.pstate |= STEP;
            self.hcr |= registers::HCR_STEP;
        } else {
            self.hcr &= !registers::HCR_STEP;
        }
        self.stepping = on;
    }

    fn place(&self, register: u64) -> Option<u64> {
        match register {
            r if r == VcpuRegister::Pc as u64 => Some(self.pc),
            r if r == VcpuRegister::Pstate as u64 => Some(self.own_state()),
            r if r == VcpuRegister::SpEl0 as u64 => Some(self.sp_el0),
            r if r == VcpuRegister::SctlrEl1 as u64 => Some(self.sctlr),
            _ => {
                let words: &[u64; EL1_WORDS] = zerocopy::transmute_ref!(&self.el1);
                words.get(*PLACES.get(register as usize)? as usize).copied()
            }
        }
    }

    /// The same to be written; PSTATE is not, before it was looked at.
    fn place_mut(&mut self, register: u64) -> Option<&mut u64> {
        match register {
            r if r == VcpuRegister::Pc as u64 => Some(&mut self.pc),
            r if r == VcpuRegister::SpEl0 as u64 => Some(&mut self.sp_el0),
            r if r == VcpuRegister::SctlrEl1 as u64 => Some(&mut self.sctlr),
            _ => {
                let words: &mut [u64; EL1_WORDS] = zerocopy::transmute_mut!(&mut self.el1);
                words.get_mut(*PLACES.get(register as usize)? as usize)
            }
        }
    }
}

/// PSTATE.SS (Arm ARM D2.12.2).
pub const STEP: u64 = 1 << 21;

/// Words of [`El1`].
const EL1_WORDS: usize = size_of::<El1>() / 8;

/// In [`PLACES`]: not one of them.
const NOWHERE: u8 = EL1_WORDS as u8;

/// Which word of [`El1`] each register of `VcpuRegister` is.
const PLACES: [u8; VcpuRegister::Cntvoff as usize + 1] = {
    use VcpuRegister as R;
    let table = [
        (R::SpEl1, offset_of!(El1, sp_el1)), (R::ElrEl1, offset_of!(El1, elr)), (R::SpsrEl1, offset_of!(El1, spsr)),
        (R::VbarEl1, offset_of!(El1, vbar)), (R::Ttbr0El1, offset_of!(El1, ttbr0)), (R::Ttbr1El1, offset_of!(El1, ttbr1)),
        (R::TcrEl1, offset_of!(El1, tcr)), (R::MairEl1, offset_of!(El1, mair)), (R::EsrEl1, offset_of!(El1, esr)),
        (R::FarEl1, offset_of!(El1, far)), (R::CpacrEl1, offset_of!(El1, cpacr)),
        (R::TpidrEl1, offset_of!(El1, tpidr_el1)), (R::TpidrEl0, offset_of!(El1, tpidr_el0)),
        (R::TpidrroEl0, offset_of!(El1, tpidrro_el0)), (R::ContextidrEl1, offset_of!(El1, contextidr)),
        (R::CntkctlEl1, offset_of!(El1, cntkctl)), (R::CntvCtl, offset_of!(El1, cntv_ctl)),
        (R::CntvCval, offset_of!(El1, cntv_cval)), (R::Vmpidr, offset_of!(El1, vmpidr)),
        (R::Vpidr, offset_of!(El1, vpidr)), (R::AmairEl1, offset_of!(El1, amair)), (R::Afsr0El1, offset_of!(El1, afsr0)),
        (R::Afsr1El1, offset_of!(El1, afsr1)), (R::ParEl1, offset_of!(El1, par)), (R::CsselrEl1, offset_of!(El1, csselr)),
        (R::Cntvoff, offset_of!(El1, cntvoff)),
    ];
    let mut places = [NOWHERE; R::Cntvoff as usize + 1];
    let mut i = 0;
    while i < table.len() {
        places[table[i].0 as usize] = (table[i].1 / 8) as u8;
        i += 1;
    }
    places
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_keeps_what_was_written_and_has_a_place_of_its_own() {
        let registers = |vcpu: &Vcpu| (0..70).map(|register| vcpu.get(register)).collect::<Vec<_>>();
        for register in (0..=61).filter(|register| *register != 31 && *register != VcpuRegister::Pstate as u64) {
            let mut vcpu = Vcpu::EMPTY;
            let before = registers(&vcpu);
            assert_eq!(vcpu.set(register, 0x1234_5678), Ok(()), "{register}");
            let after = registers(&vcpu);
            assert_eq!(after[register as usize], Ok(0x1234_5678));
            let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert_eq!(changed, 1, "{register}");
        }
        let mut vcpu = Vcpu::EMPTY;
        vcpu.el1.afsr0 = 7;
        assert_eq!(vcpu.get(VcpuRegister::Afsr0El1 as u64), Ok(7));
        for nothing in [31, 62, 63, 1 << 32, u64::MAX] {
            assert_eq!((vcpu.get(nothing), vcpu.set(nothing, 1)), (Err(Refusal::OutOfRange), Err(Refusal::OutOfRange)));
        }
    }

    #[test]
    fn no_message_makes_a_vcpu_run_at_el2_or_in_aarch32() {
        let mut vcpu = Vcpu::EMPTY;
        for bad in [0x9u64, 0x8, 0xc, 0xd, 0x10, 0x3d9, 0x1d3, 0x2] {
            assert_eq!(vcpu.set(VcpuRegister::Pstate as u64, bad), Err(Refusal::BadArgument), "{bad:#x}");
        }
        for good in [0u64, 4, 5, 0x3c5, 0xf000_0000] {
            assert_eq!(vcpu.set(VcpuRegister::Pstate as u64, good), Ok(()), "{good:#x}");
        }
    }

    #[test]
    fn an_answer_for_register_31_changes_nothing() {
        let mut vcpu = Vcpu::EMPTY;
        vcpu.answer(Answer::ADVANCE.register(31).0, &[7; 10]);
        assert_eq!(&vcpu.x[..31], &[0; 31]);
        assert_eq!(vcpu.pc, 4);
        vcpu.answer(Answer::ADVANCE.register(3).0, &[7; 10]);
        assert_eq!(vcpu.x[3], 7);
    }

    #[test]
    fn an_exception_enters_by_where_it_came_from() {
        let mut vcpu = Vcpu::EMPTY;
        vcpu.el1.vbar = 0x8000;
        for (pstate, pc) in [(0u64, 0x8400u64), (0x1d0, 0x8600), (4, 0x8000), (5, 0x8200)] {
            vcpu.pstate = pstate;
            vcpu.pc = 0x1234;
            vcpu.exception(0x0200_0000, 0);
            assert_eq!((vcpu.pc, vcpu.el1.elr, vcpu.el1.spsr, vcpu.pstate), (pc, 0x1234, pstate, 0x3c5));
        }
    }

    #[test]
    fn a_vcpu_told_of_an_access_goes_back_to_it_with_its_exception_registers() {
        let mut vcpu = Vcpu::EMPTY;
        (vcpu.pc, vcpu.pstate, vcpu.el1.elr, vcpu.el1.spsr) = (0x1000, 0x8000_0000, 0x77, 0x88);
        let was = vcpu.divert(0x4000);
        assert_eq!((vcpu.pc, vcpu.pstate), (0x4000, 0x3c5));
        vcpu.go_back(was);
        assert_eq!((vcpu.pc, vcpu.pstate, vcpu.el1.elr, vcpu.el1.spsr), (0x1000, 0x8000_0000, 0x77, 0x88));
    }

    #[test]
    fn a_step_leaves_the_guests_own_as_it_was() {
        for own in [0, STEP] {
            let mut vcpu = Vcpu::EMPTY;
            vcpu.pstate = 0x3c5 | own;
            vcpu.step(true);
            assert_eq!((vcpu.pstate, vcpu.get(VcpuRegister::Pstate as u64)), (0x3c5 | STEP, Ok(0x3c5 | own)));
            assert_eq!(vcpu.set(VcpuRegister::Pstate as u64, 0x3c4), Ok(()));
            assert_eq!(vcpu.pstate, 0x3c4 | STEP, "the instruction is still to come");
            vcpu.step(true);
            vcpu.step(false);
            assert_eq!((vcpu.pstate, vcpu.stepping), (0x3c4 | own, false), "it did not come");
            vcpu.step(true);
            vcpu.answer(Answer::ADVANCE.0, &[0; 10]);
            assert_eq!(vcpu.pstate, 0x3c4);
            vcpu.step(false);
            assert_eq!(vcpu.pstate, 0x3c4, "it came, for the guest's own single step too");
        }
    }

    #[test]
    fn an_exception_in_a_step_saves_the_guests_state() {
        for own in [0, STEP] {
            let mut vcpu = Vcpu::EMPTY;
            vcpu.pstate = 5 | own;
            vcpu.step(true);
            vcpu.exception(0x0200_0000, 0);
            assert_eq!((vcpu.el1.spsr, vcpu.pstate), (5 | own, 0x3c5), "and the step is over");
        }
    }

    #[test]
    fn traps_stay_over_a_reset_and_go_when_they_are_taken_back() {
        let mut vcpu = Vcpu::EMPTY;
        vcpu.set_traps(Traps::ALL);
        vcpu.reset();
        assert_eq!((vcpu.hcr, vcpu.stops_at_breakpoints), (registers::HCR_GUEST | 1 << 26, true));
        vcpu.set_traps(Traps::BREAKPOINT);
        assert_eq!((vcpu.hcr, vcpu.stops_at_breakpoints), (registers::HCR_GUEST, true));
        vcpu.set_traps(Traps::MEMORY_REGISTERS);
        assert_eq!((vcpu.hcr, vcpu.stops_at_breakpoints), (registers::HCR_GUEST | 1 << 26, false));
    }

    #[test]
    fn waiting_instructions_trap_in_a_step() {
        let mut vcpu = Vcpu::EMPTY;
        vcpu.reset();
        vcpu.step(true);
        assert_eq!(vcpu.hcr, registers::HCR_GUEST | 1 << 14);
        vcpu.step(false);
        assert_eq!(vcpu.hcr, registers::HCR_GUEST);
    }

    #[test]
    fn every_register_that_is_read_can_be_written() {
        let mut vcpu = Vcpu::EMPTY;
        for n in 0..=64 {
            let readable = vcpu.get(n).is_ok();
            let writable = vcpu.set(n, 0).is_ok();
            assert_eq!(readable, writable, "register {n}");
        }
    }
}
