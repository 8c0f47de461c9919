// SPDX-License-Identifier: MIT OR Apache-2.0
//! ESR and fault addresses → what a guest stopped for, in the neutral words of the exit message.

use crate::context::Vcpu;
use crate::debug::Count;
use crate::narrow::{self, Meaning};
use crate::registers::{Esr, ICC_SGI1R};
use trellis_core::lines::SoftwareInterrupt;
use trellis_core::machine::VcpuContext;
use trellis_idl::kernel::{ExitClass, ExitHeader, GuestCall};

/// What the exit is, for the classes that come often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Common {
    /// For a server; the words are in the context, the class is not in the header yet.
    Exit(ExitClass),
    /// A second-stage fault on a guest page: memory's or a device's.
    Fault {
        /// Guest page.
        page: u64,
    },
    /// A write of ICC_SGI1R_EL1, which [`software_interrupt`] reads.
    SoftwareInterrupt {
        /// What was written.
        value: u64,
    },
    /// HVC with the number of a call that the kernel may answer itself; the words are those of an HVC.
    GuestCall(GuestCall),
    /// [`rare`] knows.
    Rare,
}

/// What the exit is, for all other classes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// As [`Common::Exit`].
    Exit(ExitClass),
    /// As [`Common::Fault`].
    Fault {
        /// Guest page.
        page: u64,
    },
    /// A debug register was written or read.
    DebugRegister,
    /// WFI.
    Wait,
    /// Floating point, to be loaded.
    Float,
    /// Something the guest does not have: UNDEF at its own level.
    Undefined,
    /// The one instruction of a step has been executed.
    Stepped,
    /// A breakpoint or watchpoint whose exception the guest masks.
    NotLetIn,
    /// Let it try again.
    Retry,
}

/// Exception classes (Arm ARM D19.2.39).
mod ec {
    pub const WAIT: u8 = 0x01;
    pub const FLOAT: u8 = 0x07;
    pub const HVC: u8 = 0x16;
    pub const SMC: u8 = 0x17;
    pub const SYSTEM: u8 = 0x18;
    pub const SVE: u8 = 0x19;
    pub const SME: u8 = 0x1d;
    pub const FETCH: u8 = 0x20;
    pub const DATA: u8 = 0x24;
    pub const BREAKPOINT: u8 = 0x30;
    pub const STEP: u8 = 0x32;
    pub const WATCHPOINT: u8 = 0x34;
    pub const BRK: u8 = 0x3c;
}

/// Fills the exit words and says what it is.
#[inline(always)]
pub fn common(context: &mut Vcpu, esr: Esr) -> Common {
    match esr.class() {
        ec::DATA | ec::FETCH => match plain_address(esr) {
            Some((physical, far)) => abort(context, esr, physical, far),
            None => Common::Rare,
        },
        ec::HVC => {
            // The program counter is past an HVC already (Arm ARM D1.3.5).
            words(context, esr, 0, 0);
            match GuestCall::from_number(esr.0 as u16) {
                Some(call) => Common::GuestCall(call),
                None => Common::Exit(ExitClass::Hypercall),
            }
        }
        ec::SMC => {
            words(context, esr, LENGTH_4, 0);
            Common::Exit(ExitClass::Firmware)
        }
        // op0 = 2: debug registers.
        ec::SYSTEM if esr.0 >> 20 & 3 != 2 => system(context, esr),
        _ => Common::Rare,
    }
}

const LENGTH_4: u64 = 4 << 48;

#[inline(always)]
fn words(context: &mut Vcpu, esr: Esr, header: u64, value: u64) {
    let user = if context.pstate & 0xf == 0 { ExitHeader::USER } else { 0 };
    context.exit[0] = header | user | context.view << 32;
    context.exit[1] = esr.0;
    context.exit[2] = 0;
    context.exit[3] = 0;
    context.exit[4] = context.pc;
    context.exit[5] = value;
    context.exit[6] = context.x[0];
    context.exit[7] = context.x[1];
    context.exit[8] = context.x[2];
    context.exit[9] = context.x[3];
}

/// A general register as an instruction sees it: 31 is zero.
#[inline(always)]
fn general(context: &Vcpu, n: u64) -> u64 {
    if n == 31 { 0 } else { context.x[n as usize & 31] }
}

/// Fills the exit words of what [`common`] leaves, and says what it is.
pub fn rare(context: &mut Vcpu, esr: Esr) -> Decoded {
    let class = esr.class();
    match class {
        ec::DATA | ec::FETCH => return match fault_address(esr) {
            Some((physical, far)) => uncommon(abort(context, esr, physical, far)),
            None => Decoded::Retry,
        },
        ec::SYSTEM if debug_register(context, esr) => return Decoded::DebugRegister,
        ec::SYSTEM => return uncommon(system(context, esr)),
        ec::WAIT if esr.0 & 1 == 0 => return Decoded::Wait,
        ec::FLOAT => return Decoded::Float,
        // Its own CPACR_EL1 comes first (Arm ARM D1.3.5), so what arrives here is the guest's to use or not to have.
        ec::SVE if context.lanes != 0 => return Decoded::Float,
        ec::SVE | ec::SME => return Decoded::Undefined,
        ec::STEP if context.stepping => return Decoded::Stepped,
        ec::BREAKPOINT | ec::WATCHPOINT if !context.debug.is_let_in(context.pstate) => return Decoded::NotLetIn,
        _ => {}
    }
    let class = match class {
        ec::WAIT => ExitClass::Wait,
        ec::BREAKPOINT | ec::STEP | ec::WATCHPOINT | ec::BRK => ExitClass::Debug,
        _ => ExitClass::Illegal,
    };
    words(context, esr, LENGTH_4, 0);
    if esr.class() == ec::WATCHPOINT {
        context.exit[0] |= ExitHeader::VIRTUAL_VALID;
        context.exit[3] = watched_address();
    }
    Decoded::Exit(class)
}

/// What a watchpoint fired at (FAR_EL2, Arm ARM D2.10.5).
#[cfg(target_os = "none")]
fn watched_address() -> u64 {
    crate::isa::read!("far_el2")
}

#[cfg(not(target_os = "none"))]
fn watched_address() -> u64 {
    0x1000
}

/// Fills the words for a class that has no details.
pub fn describe(context: &mut Vcpu, esr: Esr, class: ExitClass) {
    words(context, esr, class as u64, 0);
}

#[inline(always)]
fn system(context: &mut Vcpu, esr: Esr) -> Common {
    let register = esr.system_register();
    if esr.encoding() == ICC_SGI1R && !esr.is_read() {
        return Common::SoftwareInterrupt { value: general(context, register) };
    }
    let write = if esr.is_read() { 0 } else { ExitHeader::WRITE };
    let value = if esr.is_read() { 0 } else { general(context, register) };
    words(context, esr, LENGTH_4 | write | register << 16 | 1 << 21 | 8 << 8, value);
    Common::Exit(ExitClass::Register)
}

/// What a decoder of common exits says, where more was needed first.
fn uncommon(decoded: Common) -> Decoded {
    match decoded {
        Common::Exit(class) => Decoded::Exit(class),
        Common::Fault { page } => Decoded::Fault { page },
        // No debug register is one; neither is an abort.
        Common::SoftwareInterrupt { .. } | Common::GuestCall(_) | Common::Rare => Decoded::Retry,
    }
}

/// A debug register that the kernel keeps: done, and past it.
fn debug_register(context: &mut Vcpu, esr: Esr) -> bool {
    let register = esr.system_register();
    let written = general(context, register);
    let Some(value) = context.debug.access(esr.0, written, debug_count()) else { return false };
    if esr.is_read() {
        // Register 31 is a dead place.
        context.x[register as usize & 31] = value;
    }
    context.advance();
    true
}

#[cfg(target_os = "none")]
fn debug_count() -> Count {
    Count::of(crate::silicon::id_register(0x28))
}

#[cfg(not(target_os = "none"))]
fn debug_count() -> Count {
    Count::of(0x1030_5106)
}

/// An exit of 32-bit code at EL0.
pub fn narrow(context: &mut Vcpu, esr: Esr) -> Decoded {
    match narrow::meaning(esr, context.pstate) {
        _ if context.stepping && esr.class() == ec::STEP => Decoded::Stepped,
        Meaning::Memory => rare(context, esr),
        Meaning::Float => Decoded::Float,
        Meaning::Undefined => Decoded::Undefined,
        Meaning::Skip => {
            (context.pc, context.pstate) = narrow::after(context.pc, context.pstate, esr);
            context.step_done();
            Decoded::Retry
        }
        Meaning::Stop => {
            words(context, esr, 0, 0);
            Decoded::Exit(ExitClass::Illegal)
        }
    }
}

/// ICC_SGI1R_EL1 (GICv3 12.2.19). vCPUs have affinity 0.0.0.number: the target list counts for cluster 0 only.
#[inline(always)]
pub fn software_interrupt(value: u64) -> SoftwareInterrupt {
    let others = value >> 40 & 1 == 1;
    let cluster = (value >> 48 & 0xff) | (value >> 32 & 0xff) | (value >> 16 & 0xff) | (value >> 44 & 0xf);
    SoftwareInterrupt {
        line: (value >> 24 & 15) as u8,
        targets: if others || cluster != 0 { 0 } else { value & 0xffff },
        others,
    }
}

#[inline(always)]
fn abort(context: &mut Vcpu, esr: Esr, physical: u64, far: u64) -> Common {
    let fetch = esr.class() == ec::FETCH;
    let mut header = LENGTH_4;
    let mut value = 0;
    if fetch {
        header |= ExitHeader::FETCH;
    } else {
        if esr.is_write() {
            header |= ExitHeader::WRITE;
        }
        if is_big_endian(guest_sctlr(), context.pstate) {
            header |= ExitHeader::BIG_ENDIAN;
        }
        if esr.has_access() {
            let register = esr.register();
            header |= esr.access_bytes() << 8 | register << 16 | (esr.0 >> 15 & 1) << 21 | (esr.0 >> 21 & 1) << 22;
            if esr.is_write() {
                value = general(context, register);
            }
        }
    }
    if esr.is_walk() {
        header |= ExitHeader::WALK;
    }
    if esr.is_permission() {
        header |= ExitHeader::PERMISSION;
    }
    if !esr.is_address_invalid() {
        header |= ExitHeader::VIRTUAL_VALID;
    }
    words(context, esr, header, value);
    context.exit[2] = physical;
    context.exit[3] = far;
    if !esr.is_stage2() {
        // External aborts, alignment and the rest: nobody's map can mend them.
        return Common::Exit(ExitClass::SystemError);
    }
    Common::Fault { page: physical >> 12 }
}

/// The order of a guest's data accesses: SCTLR_EL1.E0E at EL0, .EE at EL1 (Arm ARM D24.2.174).
#[inline(always)]
const fn is_big_endian(sctlr: u64, pstate: u64) -> bool {
    sctlr >> if pstate & 0xf == 0 { 24 } else { 25 } & 1 == 1
}

/// SCTLR_EL1 of the guest that has just stopped: still in the hardware.
#[cfg(target_os = "none")]
#[inline(always)]
fn guest_sctlr() -> u64 {
    crate::isa::read!("sctlr_el1")
}

#[cfg(not(target_os = "none"))]
fn guest_sctlr() -> u64 {
    0
}

/// The guest-physical and virtual address of an abort where the registers tell it. HPFAR_EL2 is not valid for permission
/// faults outside a table walk (Arm ARM D19.2.57). Near the end of a page somebody must look twice (erratum 834220); no
/// access is wider than 64 bytes.
#[cfg(target_os = "none")]
#[inline(always)]
fn plain_address(esr: Esr) -> Option<(u64, u64)> {
    use crate::isa::read;
    let far = read!("far_el2");
    if esr.is_permission() && !esr.is_walk() || far & 0xfc0 == 0xfc0 {
        return None;
    }
    Some((read!("hpfar_el2") >> 4 << 12 | far & 0xfff, far))
}

/// The same for every abort: where registers do not tell, the guest's own translation is asked; none if it is gone
/// meanwhile, or if the fault is the first stage's: let the guest try again.
#[cfg(target_os = "none")]
fn fault_address(esr: Esr) -> Option<(u64, u64)> {
    use crate::{features::Features, isa, isa::read};
    let far = read!("far_el2");
    if esr.is_permission() && !esr.is_walk() {
        return Some((isa::translate(far, esr.is_write())?, far));
    }
    // Erratum 834220: an access over the end of a page may report the second stage though the first has a fault.
    if !esr.is_walk() && isa::features().has(Features::ASK_FIRST_STAGE) {
        isa::translate(far, esr.is_write())?;
    }
    Some((read!("hpfar_el2") >> 4 << 12 | far & 0xfff, far))
}

#[cfg(not(target_os = "none"))]
fn plain_address(esr: Esr) -> Option<(u64, u64)> {
    if esr.is_permission() && !esr.is_walk() { None } else { fault_address(esr) }
}

#[cfg(not(target_os = "none"))]
fn fault_address(esr: Esr) -> Option<(u64, u64)> {
    Some((esr.0 >> 32, esr.0 >> 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_write_carries_its_value_and_place() {
        let mut context = Vcpu::EMPTY;
        context.x[1] = 0x55;
        context.pstate = 0x3c5;
        // EC 0x24, ISV, 4 bytes, SRT 1, write, translation fault; the address rides in the test's high half.
        let decoded = common(&mut context, Esr(0x9381_0047 | 0x0900_0018 << 32));
        assert_eq!(decoded, Common::Fault { page: 0x9000 });
        let header = ExitHeader(context.exit[0]);
        assert!(header.has(ExitHeader::WRITE) && !header.has(ExitHeader::USER));
        assert_eq!((header.width(), header.register(), header.length()), (Some(4), 1, 4));
        assert_eq!((context.exit[2], context.exit[5]), (0x0900_0018, 0x55));
    }

    #[test]
    fn a_store_of_the_zero_register_stores_zero() {
        let mut context = Vcpu::EMPTY;
        context.x[31] = 99;
        let _ = common(&mut context, Esr(0x939f_0047));
        assert_eq!(context.exit[5], 0);
    }

    #[test]
    fn each_level_has_its_own_byte_order() {
        let (user, kernel) = (0x3c0, 0x3c5);
        assert!(is_big_endian(1 << 24, user) && !is_big_endian(1 << 24, kernel));
        assert!(is_big_endian(1 << 25, kernel) && !is_big_endian(1 << 25, user));
    }

    #[test]
    fn calls_for_the_kernel_are_told_by_their_immediate() {
        let mut context = Vcpu::EMPTY;
        assert_eq!(common(&mut context, Esr(0x5a00_5400)), Common::GuestCall(GuestCall::Switch));
        assert_eq!(common(&mut context, Esr(0x5a00_5403)), Common::Exit(ExitClass::Hypercall));
        context.view = 511;
        assert_eq!(common(&mut context, Esr(0x5a00_0000)), Common::Exit(ExitClass::Hypercall));
        assert_eq!(ExitHeader(context.exit[0]).view(), 511);
    }

    #[test]
    fn software_interrupts_reach_cluster_0_only() {
        assert_eq!(software_interrupt(3 << 24 | 0b101), SoftwareInterrupt { line: 3, targets: 5, others: false });
        assert_eq!(software_interrupt(1 << 40 | 1 << 24).others, true);
        assert_eq!(software_interrupt(1 << 16 | 1).targets, 0);
        let mut context = Vcpu::EMPTY;
        context.x[2] = 7 << 24 | 2;
        let esr = 0x18 << 26 | 1 << 25 | ICC_SGI1R | 2 << 5;
        assert_eq!(common(&mut context, Esr(esr)), Common::SoftwareInterrupt { value: 7 << 24 | 2 });
        assert_eq!(software_interrupt(7 << 24 | 2).line, 7);
    }

    fn whole(context: &mut Vcpu, esr: Esr) -> Decoded {
        assert_eq!(common(context, esr), Common::Rare);
        rare(context, esr)
    }

    #[test]
    fn debug_registers_are_answered_and_stepped_over() {
        let mut context = Vcpu::EMPTY;
        context.x[3] = u64::MAX;
        context.pstate = 1 << 21 | 0x3c5;
        let class = 0x18 << 26 | 1 << 25;
        let monitor = crate::registers::encode(2, 0, 0, 2, 2);
        assert_eq!(whole(&mut context, Esr(class | monitor | 3 << 5)), Decoded::DebugRegister);
        assert_eq!((context.debug.monitor, context.pc, context.pstate), (0xb001, 4, 0x3c5), "its single step is done");
        assert_eq!(whole(&mut context, Esr(class | monitor | 4 << 5 | 1)), Decoded::DebugRegister);
        assert_eq!(context.x[4], 0xb001);
        let lock = crate::registers::encode(2, 0, 1, 0, 4);
        assert_eq!(whole(&mut context, Esr(class | lock)), Decoded::Exit(ExitClass::Register));
    }

    #[test]
    fn the_step_of_an_answer_is_told_from_the_guests_own() {
        let mut context = Vcpu::EMPTY;
        let step = Esr(0x32 << 26 | 1 << 25);
        assert_eq!(whole(&mut context, step), Decoded::Exit(ExitClass::Debug));
        context.step(true);
        assert_eq!(whole(&mut context, step), Decoded::Stepped);
        context.pstate |= 0x10;
        assert_eq!(narrow(&mut context, step), Decoded::Stepped);
        let watchpoint = Esr(0x34 << 26 | 1 << 25);
        context.pstate = 5;
        assert_eq!(whole(&mut context, watchpoint), Decoded::NotLetIn);
        context.pstate = 0;
        assert_eq!(whole(&mut context, watchpoint), Decoded::Exit(ExitClass::Debug));
        assert_eq!(context.exit[3], 0x1000);
    }

    #[test]
    fn narrow_code_faults_as_wide_code_does_and_skips_what_it_does_not_do() {
        let mut context = Vcpu::EMPTY;
        context.pstate = 0x10;
        assert_eq!(narrow(&mut context, Esr(0x9381_0047 | 0x4000_0018 << 32)), Decoded::Fault { page: 0x40000 });
        context.pc = 0x8000;
        assert_eq!(narrow(&mut context, Esr(0x03 << 26 | 1 << 25 | 1 << 24)), Decoded::Retry);
        assert_eq!(context.pc, 0x8004, "MRCEQ without Z");
        assert_eq!(narrow(&mut context, Esr(0x03 << 26 | 1 << 25 | 0x1e << 20)), Decoded::Undefined);
        assert_eq!(narrow(&mut context, Esr(0x0e << 26)), Decoded::Exit(ExitClass::Illegal));
        assert_eq!((context.exit[1], context.exit[4]), (0x0e << 26, 0x8004));
    }

    #[test]
    fn what_the_guest_does_not_have_is_undefined() {
        let mut context = Vcpu::EMPTY;
        assert_eq!(whole(&mut context, Esr(0x19 << 26)), Decoded::Undefined);
        assert_eq!(whole(&mut context, Esr(0x1d << 26)), Decoded::Undefined);
        assert_eq!(whole(&mut context, Esr(0x07 << 26)), Decoded::Float);
        context.lanes = 2;
        assert_eq!(whole(&mut context, Esr(0x19 << 26)), Decoded::Float);
        assert_eq!(whole(&mut context, Esr(0x1d << 26)), Decoded::Undefined);
        assert_eq!(whole(&mut context, Esr(0x3c << 26)), Decoded::Exit(ExitClass::Debug));
        assert_eq!(whole(&mut context, Esr(0x3f << 26)), Decoded::Exit(ExitClass::Illegal));
    }
}
