// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trapped system registers: which register a syndrome names, and who answers for it.
//!
//! What no list here names does not exist for the guest, and its access is an undefined instruction there.

use crate::debug::DebugRegisters;
use crate::identity;
use crate::timer::PhysicalTimer;
use trellis_idl::kernel::VcpuRegister;

/// A system register or instruction by its five fields, packed as in a syndrome (Arm ARM D24.2.40, class 0x18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding(u32);

/// The bits of a syndrome that name the register.
const NAME: u32 = 0x003f_fc1e;

/// A register by name: op0, op1, CRn, CRm, op2.
pub const fn encoding(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Encoding {
    Encoding((op0 as u32) << 20 | (op2 as u32) << 17 | (op1 as u32) << 14 | (crn as u32) << 10 | (crm as u32) << 1)
}

impl Encoding {
    /// op0, op1, CRn, CRm, op2.
    pub const fn fields(self) -> (u8, u8, u8, u8, u8) {
        let Encoding(word) = self;
        (bits(word, 20, 3), bits(word, 14, 7), bits(word, 10, 15), bits(word, 1, 15), bits(word, 17, 7))
    }
}

const fn bits(word: u32, low: u32, mask: u32) -> u8 {
    (word >> low & mask) as u8
}

/// A trapped access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trapped {
    /// Which register.
    pub register: Encoding,
    /// The general register that it moves (31 = zero).
    pub general: u8,
    /// MRS; else MSR or an instruction of that space.
    pub is_read: bool,
}

impl Trapped {
    /// From a syndrome of class 0x18; none for any other.
    pub const fn from_syndrome(syndrome: u64) -> Option<Trapped> {
        if syndrome >> 26 & 0x3f != 0x18 {
            return None;
        }
        let iss = syndrome as u32;
        Some(Trapped { register: Encoding(iss & NAME), general: (iss >> 5 & 31) as u8, is_read: iss & 1 == 1 })
    }

    /// What is written, with this in its general register.
    pub const fn written(self, value: u64) -> u64 {
        if self.general == 31 { 0 } else { value }
    }
}

/// What a register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A read gives this.
    Value(u64),
    /// It is done.
    Done,
    /// There is no such register.
    Undefined,
}

/// What the registers of one vCPU need to know.
#[derive(Debug)]
pub struct Processor<'a> {
    /// Debug registers.
    pub debug: &'a mut DebugRegisters,
    /// The physical timer.
    pub timer: &'a mut PhysicalTimer,
    /// The clock.
    pub now: u64,
    /// What a guest may see.
    pub shown: identity::Shown,
}

impl Processor<'_> {
    /// Reads a register; `host` gives the machine's ID registers.
    pub fn read(&mut self, register: Encoding, host: impl FnOnce(u8) -> u64) -> Outcome {
        let value = match register.fields() {
            (3, 0, 0, crm @ 1..=7, op2) => Some(identity::value(crm, op2, self.shown, host)),
            (2, ..) => self.debug.read(register),
            (3, 3, 14, 0, 1) => Some(self.now),
            (3, 3, 14, 2, 0) => Some(self.timer.left(self.now)),
            (3, 3, 14, 2, 1) => Some(self.timer.control(self.now)),
            (3, 3, 14, 2, 2) => Some(self.timer.compare()),
            _ if is_ignored(register) => Some(0),
            _ => None,
        };
        value.map_or(Outcome::Undefined, Outcome::Value)
    }

    /// Writes a register, or carries out an instruction of that space.
    pub fn write(&mut self, register: Encoding, value: u64) -> Outcome {
        match register.fields() {
            (2, ..) => return self.debug.write(register, value).map_or(Outcome::Undefined, |()| Outcome::Done),
            (3, 3, 14, 2, 0) => self.timer.set_left(self.now, value),
            (3, 3, 14, 2, 1) => self.timer.set_control(value),
            (3, 3, 14, 2, 2) => self.timer.set_compare(value),
            // DC ISW, CSW, CISW: no guest's business here. The kernel keeps memory coherent when it changes owner,
            // and set/way operations reach one CPU's cache only (Arm ARM D7.5.9).
            (1, 0, 7, 6 | 10 | 14, 2) => {}
            _ if is_ignored(register) => {}
            _ => return Outcome::Undefined,
        }
        Outcome::Done
    }
}

/// A register that says how the guest's memory is translated, or is told of its faults: its writes trap where somebody wants
/// to know (HCR_EL2.TVM, Arm ARM D19.2.53). What is written is what it holds.
pub fn memory_register(register: Encoding) -> Option<VcpuRegister> {
    Some(match register.fields() {
        (3, 0, 1, 0, 0) => VcpuRegister::SctlrEl1,
        (3, 0, 2, 0, 0) => VcpuRegister::Ttbr0El1,
        (3, 0, 2, 0, 1) => VcpuRegister::Ttbr1El1,
        (3, 0, 2, 0, 2) => VcpuRegister::TcrEl1,
        (3, 0, 5, 1, 0) => VcpuRegister::Afsr0El1,
        (3, 0, 5, 1, 1) => VcpuRegister::Afsr1El1,
        (3, 0, 5, 2, 0) => VcpuRegister::EsrEl1,
        (3, 0, 6, 0, 0) => VcpuRegister::FarEl1,
        (3, 0, 10, 2, 0) => VcpuRegister::MairEl1,
        (3, 0, 10, 3, 0) => VcpuRegister::AmairEl1,
        (3, 0, 13, 0, 1) => VcpuRegister::ContextidrEl1,
        _ => return None,
    })
}

/// Registers that read as zero and ignore writes: ACTLR_EL1, and what a CPU's maker put into the space for that (CRn
/// 11 and 15). Kernels written for a known CPU touch the latter without asking, so they must not be undefined.
fn is_ignored(register: Encoding) -> bool {
    matches!(register.fields(), (3, 0, 1, 0, 1) | (1 | 3, _, 11 | 15, _, _))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<R>(now: u64, f: impl FnOnce(&mut Processor<'_>) -> R) -> R {
        let (mut debug, mut timer) = (DebugRegisters::new(), PhysicalTimer::new());
        let shown = identity::Shown { gic: 3, aarch32: false, vectors: false };
        f(&mut Processor { debug: &mut debug, timer: &mut timer, now, shown })
    }

    #[test]
    fn a_syndrome_names_the_register() {
        // mrs x3, id_aa64pfr0_el1: op0 3, op2 0, op1 0, CRn 0, Rt 3, CRm 4, read.
        let trapped = Trapped::from_syndrome(0x6230_0069).expect("class 0x18");
        assert_eq!(trapped, Trapped { register: encoding(3, 0, 0, 4, 0), general: 3, is_read: true });
        // dc cisw, x9
        let trapped = Trapped::from_syndrome(0x6214_1d3c).expect("class 0x18");
        assert_eq!((trapped.register, trapped.general), (encoding(1, 0, 7, 14, 2), 9));
        assert_eq!(Trapped::from_syndrome(0x5a00_0000), None);
    }

    #[test]
    fn hidden_features_have_no_registers() {
        with(0, |processor| {
            for (name, register) in [
                ("PMCR_EL0", encoding(3, 3, 9, 12, 0)),
                ("PMCCFILTR_EL0", encoding(3, 3, 14, 15, 7)),
                ("APIAKeyLo_EL1", encoding(3, 0, 2, 1, 0)),
                ("ZCR_EL1", encoding(3, 0, 1, 2, 0)),
                ("LORID_EL1", encoding(3, 0, 10, 4, 7)),
                ("ERRIDR_EL1", encoding(3, 0, 5, 3, 0)),
                ("MPAM0_EL1", encoding(3, 0, 10, 5, 1)),
                ("TRCOSLAR", encoding(2, 1, 1, 0, 4)),
            ] {
                assert_eq!(processor.read(register, |_| u64::MAX), Outcome::Undefined, "{name}");
                assert_eq!(processor.write(register, 1), Outcome::Undefined, "{name}");
            }
        });
    }

    #[test]
    fn what_kernels_touch_without_asking_is_harmless() {
        with(7, |processor| {
            assert_eq!(processor.read(encoding(3, 0, 1, 0, 1), |_| 0), Outcome::Value(0));
            assert_eq!(processor.write(encoding(3, 1, 15, 2, 1), 1), Outcome::Done);
            assert_eq!(processor.write(encoding(1, 0, 7, 10, 2), 1), Outcome::Done);
            assert_eq!(processor.read(encoding(3, 3, 14, 0, 1), |_| 0), Outcome::Value(7));
        });
    }

    #[test]
    fn eleven_registers_say_how_memory_is_translated() {
        let all = (0..1u32 << 22).filter(|iss| iss & !NAME == 0);
        let mut found: Vec<_> = all.filter_map(|iss| memory_register(Encoding(iss))).map(|register| register as u64).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 11);
        assert_eq!(memory_register(encoding(3, 0, 12, 0, 0)), None, "VBAR_EL1 never traps");
    }

    proptest::proptest! {
        #[test]
        fn no_register_makes_it_panic(iss in 0u32..1 << 22, value: u64, now: u64) {
            with(now, |processor| {
                let register = Encoding(iss & NAME);
                processor.write(register, value);
                processor.read(register, |_| value);
                processor.timer.level_change(now);
            });
        }
    }
}
