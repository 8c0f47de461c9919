// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's EL0 in AArch32, which some CPUs cannot forbid: conditions of trapped instructions, and what becomes of
//! each class of exits.
//!
//! Memory faults go the ordinary way, since they are tried again. Nothing else that 32-bit code can trap on exists for
//! it, so its kernel gets an undefined instruction, or the guest stops with a report. EL1 is always AArch64: the registers
//! that only a 32-bit EL1 has (DACR32_EL2, IFSR32_EL2, FPEXC32_EL2, SPSR_abt …) can be reached from no guest, so none
//! leaks to another, and none is switched (Arm ARM D1.9.2).

use crate::registers::Esr;

/// PSTATE.T: T32 instructions.
const T32: u64 = 1 << 5;

/// What a trapped 32-bit instruction leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// As from AArch64: a memory fault.
    Memory,
    /// Vector registers, to be loaded.
    Float,
    /// It does nothing: its condition fails, or it only waits.
    Skip,
    /// It does not exist.
    Undefined,
    /// The guest stops with a report.
    Stop,
}

/// IT of a saved PSTATE (Arm ARM C5.2.19): bits 26–25 and 15–10.
const fn it(pstate: u64) -> u64 {
    pstate >> 25 & 3 | (pstate >> 10 & 0x3f) << 2
}

const fn with_it(pstate: u64, it: u64) -> u64 {
    pstate & !(3 << 25 | 0x3f << 10) | (it & 3) << 25 | (it >> 2 & 0x3f) << 10
}

/// Whether a condition holds (Arm ARM F1.3.1).
const fn holds(condition: u64, pstate: u64) -> bool {
    let (n, z, c, v) = (pstate >> 31 & 1 == 1, pstate >> 30 & 1 == 1, pstate >> 29 & 1 == 1, pstate >> 28 & 1 == 1);
    let result = match condition >> 1 & 7 {
        0 => z,
        1 => c,
        2 => n,
        3 => v,
        4 => c && !z,
        5 => n == v,
        6 => n == v && !z,
        _ => return true,
    };
    result != (condition & 1 == 1)
}

/// Whether the trapped instruction's condition holds: a CPU may trap before it looks (Arm ARM D19.2.39, CV and COND).
/// Without a condition in the syndrome it is that of the IT block.
const fn passes(esr: Esr, pstate: u64) -> bool {
    let condition = if esr.0 >> 24 & 1 == 1 {
        esr.0 >> 20 & 15
    } else if pstate & T32 != 0 && it(pstate) != 0 {
        it(pstate) >> 4
    } else {
        14
    };
    holds(condition, pstate)
}

/// What the exit means.
pub const fn meaning(esr: Esr, pstate: u64) -> Meaning {
    match esr.class() {
        0x20 | 0x24 => Meaning::Memory,
        // WFI or WFE, MCR, MRC, MCRR, MRRC, LDC, STC of both coprocessors, VMRS, vectors.
        0x01 | 0x03..=0x08 | 0x0c if !passes(esr, pstate) => Meaning::Skip,
        0x01 => Meaning::Skip,
        0x07 => Meaning::Float,
        0x03..=0x06 | 0x08 | 0x0c => Meaning::Undefined,
        _ => Meaning::Stop,
    }
}

/// Program counter and PSTATE after an instruction that is skipped: its length is in the syndrome, and it was one of its
/// IT block (Arm ARM F1.2.3).
pub const fn after(pc: u64, pstate: u64, esr: Esr) -> (u64, u64) {
    let length = if esr.0 >> 25 & 1 == 1 { 4 } else { 2 };
    let state = it(pstate);
    let next = if state & 7 == 0 { 0 } else { state & 0xe0 | state << 1 & 0x1f };
    let pstate = if pstate & T32 != 0 { with_it(pstate, next) } else { pstate };
    ((pc + length) & 0xffff_ffff, pstate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A32: u64 = 0x10;
    const Z: u64 = 1 << 30;

    const fn trapped(class: u64, condition: u64) -> Esr {
        Esr(class << 26 | 1 << 25 | 1 << 24 | condition << 20)
    }

    #[test]
    fn each_class_has_its_meaning() {
        let mean = |class| meaning(trapped(class, 14), A32);
        assert_eq!([0x20, 0x24].map(mean), [Meaning::Memory; 2]);
        assert_eq!([0x03, 0x04, 0x05, 0x06, 0x08, 0x0c].map(mean), [Meaning::Undefined; 6]);
        assert_eq!((mean(0x07), mean(0x01)), (Meaning::Float, Meaning::Skip));
        // Illegal state, HVC, SMC, breakpoints, vector catch, anything of tomorrow.
        assert_eq!([0x00, 0x0e, 0x12, 0x13, 0x38, 0x3a, 0x3f].map(mean), [Meaning::Stop; 7]);
    }

    #[test]
    fn conditions_hold_as_the_manual_says() {
        // EQ, NE, CS, CC, MI, PL, VS, VC, HI, LS, GE, LT, GT, LE, AL and the unconditional space.
        let all = |pstate| (0..16).fold(0u32, |bits, condition| bits | u32::from(holds(condition, pstate)) << condition);
        assert_eq!(all(0), 0b1101_0110_1010_1010);
        assert_eq!(all(Z), 0b1110_0110_1010_1001);
        assert_eq!(all(1 << 31), 0b1110_1010_1001_1010);
        assert_eq!(all(1 << 29), 0b1101_0101_1010_0110);
        assert_eq!(all(1 << 31 | 1 << 28), 0b1101_0110_0101_1010);
    }

    #[test]
    fn an_instruction_whose_condition_fails_is_skipped() {
        let mrceq = trapped(0x03, 0);
        assert_eq!(meaning(mrceq, A32), Meaning::Skip);
        assert_eq!(meaning(mrceq, A32 | Z), Meaning::Undefined);
        assert_eq!(after(0x8000, A32, mrceq), (0x8004, A32));
        assert_eq!(after(0xffff_fffc, A32, mrceq).0, 0);
    }

    #[test]
    fn an_it_block_says_the_condition_and_moves_on() {
        // ITTE EQ: conditions EQ, EQ, NE; the first of the three.
        let first = with_it(A32 | T32, 0b0000_0110);
        let quiet = Esr(0x03 << 26);
        assert_eq!(meaning(quiet, first), Meaning::Skip);
        assert_eq!(meaning(quiet, first | Z), Meaning::Undefined);
        let (pc, second) = after(0x100, first, quiet);
        assert_eq!((pc, it(second)), (0x102, 0b0000_1100));
        let (_, third) = after(pc, second, quiet);
        assert_eq!((it(third), meaning(quiet, third)), (0b0001_1000, Meaning::Undefined), "NE");
        assert_eq!(it(after(pc, third, quiet).1), 0);
    }
}
