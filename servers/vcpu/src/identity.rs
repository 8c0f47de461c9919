// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's ID registers say: the machine's own values, less what a guest cannot have.
//!
//! A field that the table does not name reads as zero, so a feature of tomorrow's CPU stays hidden until somebody
//! decides about it. Fields are those of the Arm ARM, D24.2 (ID_*_EL1).

/// What the manifest lets a guest see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Version of its interrupt controller.
    pub gic: u8,
    /// 32-bit code at its user level.
    pub aarch32: bool,
    /// Scalable vectors.
    pub vectors: bool,
}

/// What becomes of a field of four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The machine's.
    Keep,
    /// The machine's, or this if that is less.
    AtMost(u8),
    /// The same for a signed field: 15 says "not there".
    SignedAtMost(u8),
    /// This, whatever the machine says.
    Exactly(u8),
    /// 1 for a guest with a version 3 interrupt controller: system registers to talk to it.
    GicRegisters,
    /// The machine's for a guest with scalable vectors.
    WithVectors,
    /// 2 where the guest may run 32-bit code at user level, else 1.
    UserState,
}

use Rule::{AtMost, Exactly, GicRegisters, Keep, SignedAtMost, UserState, WithVectors};

/// Lowest bit, rule.
type Field = (u8, Rule);

/// A register: CRm, op2, name, fields that are not zero, and why the others are.
type Row = (u8, u8, &'static str, &'static [Field], &'static str);

/// The 64-bit registers. Every other encoding of the space reads as zero, as the architecture reserves it.
const TABLE: &[Row] = &[
    (4, 0, "ID_AA64PFR0_EL1",
        &[(0, UserState), (4, Exactly(1)), (16, Keep), (20, Keep), (24, GicRegisters), (32, WithVectors), (48, Keep), (56, AtMost(1)),
          (60, Keep)],
        "no EL2, EL3 or 32-bit EL1; RAS, MPAM, AMU, RME hidden and trapped; CSV2 without SCXTNUM: not switched"),
    (4, 1, "ID_AA64PFR1_EL1", &[(0, Keep), (4, Keep)],
        "MTE, SME, NMI, GCS, THE need EL2 state that is not switched; BTI and SSBS live in PSTATE and SCTLR"),
    (4, 2, "ID_AA64PFR2_EL1", &[], "nothing known in it is switched"),
    (4, 4, "ID_AA64ZFR0_EL1",
        &[(0, WithVectors), (4, WithVectors), (16, WithVectors), (20, WithVectors), (24, WithVectors), (32, WithVectors),
          (40, WithVectors), (44, WithVectors), (52, WithVectors), (56, WithVectors)],
        "all of it with scalable vectors, nothing without"),
    (4, 5, "ID_AA64SMFR0_EL1", &[], "SME hidden"),
    (4, 7, "ID_AA64FPFR0_EL1", &[], "FPMR is not switched"),
    (5, 0, "ID_AA64DFR0_EL1", &[(0, Exactly(6)), (12, AtMost(5)), (20, AtMost(3)), (28, AtMost(1))],
        "Armv8.0 debug with what the kernel keeps: six breakpoints, four watchpoints; PMU, SPE, TRBE, trace, BRBE hidden"),
    (5, 1, "ID_AA64DFR1_EL1", &[], "PMU and debug extensions hidden"),
    (5, 2, "ID_AA64DFR2_EL1", &[], "debug extensions hidden"),
    (5, 4, "ID_AA64AFR0_EL1", &[], "the maker's own"),
    (5, 5, "ID_AA64AFR1_EL1", &[], "the maker's own"),
    (6, 0, "ID_AA64ISAR0_EL1",
        &[(4, Keep), (8, Keep), (12, Keep), (16, Keep), (20, Keep), (28, Keep), (32, Keep), (36, Keep), (40, Keep),
          (44, Keep), (48, Keep), (52, Keep), (56, Keep), (60, Keep)],
        "TME hidden; the others are instructions without state of their own"),
    (6, 1, "ID_AA64ISAR1_EL1",
        &[(0, Keep), (12, Keep), (16, Keep), (20, Keep), (32, Keep), (36, Keep), (40, AtMost(1)),
          (44, Keep), (48, Keep), (52, Keep)],
        "pointer authentication: its keys are not switched; XS and LS64 need HCRX_EL2"),
    (6, 2, "ID_AA64ISAR2_EL1", &[(4, Keep), (20, Keep), (28, Keep), (52, Keep)],
        "MOPS needs HCRX_EL2; WFxT traps with a time-out that nobody here waits for; pointer authentication"),
    (6, 3, "ID_AA64ISAR3_EL1", &[], "nothing known in it is needed"),
    (7, 0, "ID_AA64MMFR0_EL1",
        &[(0, AtMost(2)), (4, Keep), (8, Keep), (12, Keep), (16, Keep), (20, AtMost(1)), (24, Keep), (28, SignedAtMost(0))],
        "40 bits of guest-physical address; no 52-bit addresses; FGT, ECV belong to EL2"),
    (7, 1, "ID_AA64MMFR1_EL1",
        &[(0, AtMost(2)), (12, AtMost(2)), (20, AtMost(3)), (36, Keep), (44, Keep), (48, Keep), (60, Keep)],
        "virtual host, VMIDs, execute-never at stage 2, LOR, TWED, HCRX belong to EL2"),
    (7, 2, "ID_AA64MMFR2_EL1",
        &[(0, Keep), (4, Keep), (8, Keep), (20, Keep), (32, Keep), (36, Keep), (48, Keep), (52, Keep), (60, Keep)],
        "no 52-bit addresses or small tables; nested virtualisation, FWB and EVT belong to EL2; IESB is part of RAS"),
    (7, 3, "ID_AA64MMFR3_EL1", &[], "TCR2, SCTLR2, permission indirection are not switched"),
    (7, 4, "ID_AA64MMFR4_EL1", &[], "belongs to EL2"),
];

/// The registers about 32-bit state that a guest with 32-bit user code sees as they are: CRm, op2, bits to keep.
const NARROW: &[(u8, u8, u64)] = &[
    // ID_PFR0_EL1 without RAS, AMU; ID_PFR1_EL1 without GIC, timer and virtualisation fields of higher levels.
    (1, 0, 0x0000_ffff), (1, 1, 0x000f_00ff),
    // ID_MMFR0–3_EL1.
    (1, 4, u64::MAX), (1, 5, u64::MAX), (1, 6, u64::MAX), (1, 7, u64::MAX),
    // ID_ISAR0–5_EL1, ID_MMFR4_EL1, ID_ISAR6_EL1.
    (2, 0, u64::MAX), (2, 1, u64::MAX), (2, 2, u64::MAX), (2, 3, u64::MAX), (2, 4, u64::MAX), (2, 5, u64::MAX),
    (2, 6, u64::MAX), (2, 7, u64::MAX),
    // MVFR0–2_EL1, ID_PFR2_EL1 (CSV3, SSBS).
    (3, 0, u64::MAX), (3, 1, u64::MAX), (3, 2, u64::MAX), (3, 4, 0x0000_00ff),
    // ID_DFR0_EL1, ID_AFR0_EL1, ID_DFR1_EL1 and ID_MMFR5_EL1 read as zero: no debug, no PMU for 32-bit code.
];

/// What the guest reads in the ID register of this CRm and op2; `host` gives the machine's by `CRm << 3 | op2`.
pub fn value(crm: u8, op2: u8, shown: Shown, host: impl FnOnce(u8) -> u64) -> u64 {
    let number = crm << 3 | op2;
    if let Some((.., fields, _)) = TABLE.iter().find(|row| (row.0, row.1) == (crm, op2)) {
        let machine = host(number);
        return fields.iter().fold(0, |all, field| all | apply(*field, machine, shown));
    }
    match NARROW.iter().find(|row| (row.0, row.1) == (crm, op2)) {
        Some((.., keep)) if shown.aarch32 => host(number) & keep,
        _ => 0,
    }
}

fn apply((low, rule): Field, machine: u64, shown: Shown) -> u64 {
    let theirs = (machine >> low & 15) as u8;
    let field = match rule {
        Keep => theirs,
        AtMost(most) => theirs.min(most),
        SignedAtMost(_) if theirs >= 8 => theirs,
        SignedAtMost(most) => theirs.min(most),
        Exactly(value) => value,
        GicRegisters => (shown.gic == 3).into(),
        WithVectors => if shown.vectors { theirs } else { 0 },
        UserState => 1 + u8::from(shown.aarch32 && theirs == 2),
    };
    u64::from(field) << low
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Shown = Shown { gic: 3, aarch32: false, vectors: false };

    fn of(name: &str, machine: u64) -> u64 {
        let row = TABLE.iter().find(|row| row.2 == name).expect("in the table");
        value(row.0, row.1, SHOWN, |_| machine)
    }

    #[test]
    fn a_cortex_a57_looks_like_one_without_higher_levels() {
        // As QEMU's cortex-a57 with EL2, EL3 and GICv3 has them.
        assert_eq!(of("ID_AA64PFR0_EL1", 0x0100_2222), 0x0100_0011);
        assert_eq!(of("ID_AA64DFR0_EL1", 0x1030_5106), 0x1030_5006);
        assert_eq!(of("ID_AA64DFR0_EL1", u64::MAX), 0x1030_5006);
        assert_eq!(of("ID_AA64ISAR0_EL1", 0x0001_1120), 0x0001_1120);
        assert_eq!(of("ID_AA64MMFR0_EL1", 0x0000_1124), 0x0000_1122);
        assert_eq!(of("ID_AA64MMFR0_EL1", 0xf000_1124), 0xf000_1122);
    }

    #[test]
    fn a_machine_with_everything_shows_no_state_that_is_not_switched() {
        assert_eq!(of("ID_AA64PFR0_EL1", 0x3333_3333_3333_3333), 0x3103_0000_0133_0011);
        assert_eq!(of("ID_AA64PFR1_EL1", u64::MAX), 0xff);
        assert_eq!(of("ID_AA64ISAR1_EL1", 0x1111_1111_1111_1111), 0x0011_1111_0011_1001);
        assert_eq!(of("ID_AA64DFR1_EL1", u64::MAX), 0);
        assert_eq!(of("ID_AA64MMFR3_EL1", u64::MAX), 0);
    }

    #[test]
    fn narrow_code_is_shown_only_where_the_manifest_says_so() {
        assert_eq!(value(2, 0, SHOWN, |_| 7), 0);
        let wide = Shown { aarch32: true, gic: 2, ..SHOWN };
        assert_eq!(value(2, 0, wide, |_| 7), 7);
        assert_eq!(value(4, 0, wide, |_| 0x22), 0x12);
        assert_eq!(value(1, 2, wide, |_| u64::MAX), 0);
    }

    #[test]
    fn scalable_vectors_are_shown_whole_or_not_at_all() {
        let with = Shown { vectors: true, ..SHOWN };
        // As QEMU's neoverse-n2 and max have them.
        assert_eq!(value(4, 0, with, |_| 0x1201_1101_1101_1112) >> 32 & 15, 1);
        assert_eq!(value(4, 4, with, |_| 0x0110_1101_0111_0021), 0x0110_1101_0111_0021);
        assert_eq!(value(4, 0, SHOWN, |_| u64::MAX) >> 32 & 15, 0);
        assert_eq!(value(4, 4, SHOWN, |_| u64::MAX), 0);
        assert_eq!(value(4, 5, with, |_| u64::MAX), 0);
    }

    #[test]
    fn every_row_stands_once_and_names_each_field_once() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(!row.4.is_empty());
            assert!(TABLE[..index].iter().all(|other| (other.0, other.1) != (row.0, row.1)), "{}", row.2);
            for pair in row.3.windows(2) {
                assert!(pair[0].0 + 4 <= pair[1].0, "{}", row.2);
            }
        }
    }
}
