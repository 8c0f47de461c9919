// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errata of the CPUs that Trellis runs on, as far as they bear on a hypervisor at EL2 without VHE, and what the kernel
//! does about each. Chosen at boot for each CPU by its own main ID register.
//!
//! Numbers and revisions are those of Arm's Software Developers Errata Notices. What only an operating system can work
//! around is left to the guest's: it sees the CPU's true MIDR_EL1 and REVIDR_EL1.

use crate::part::{Midr, Part, revision};

/// What the kernel does about an erratum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// The one AT instruction stands in a page of its own, which is mapped only while it is needed and the guest's whole
    /// context is loaded: nothing can speculate it in between ([`crate::isa::translate`]).
    TranslateApart,
    /// A broadcast TLB invalidation and its DSB are done twice.
    RepeatInvalidation,
    /// A second-stage fault of an access over the end of a page counts only if the first stage has none.
    AskFirstStage,
    /// Devices are read with load-acquire, on every CPU ([`crate::mmio`]).
    AcquireDevices,
    /// The guest's kernel works around it.
    Guest,
    /// It cannot happen here, and why.
    NotHere(&'static str),
}

use Part::*;
use Remedy::*;

/// An erratum of one part.
#[derive(Clone, Copy, Debug)]
pub struct Erratum {
    /// The part.
    pub part: Part,
    /// Its number.
    pub number: u32,
    /// First revision that has it.
    pub first: u8,
    /// Last one.
    pub last: u8,
    /// What goes wrong.
    pub what: &'static str,
    /// What the kernel does.
    pub remedy: Remedy,
}

const FIRST: u8 = 0;
const OPEN: u8 = u8::MAX;

const AT: &str = "a speculative AT caches a translation of a mixed context";
const TLBI: &str = "a broadcast TLBI completes before the accesses that it should wait for";
const COUNTER: &str = "32-bit code at EL0 may read a wrong counter value";
const AES: &str = "an interrupt between paired AES instructions of 32-bit code corrupts the result";
const SSBS: &str = "a write of PSTATE.SSBS is late";
const NO_SSBS: Remedy = NotHere("the kernel changes SSBS only by exception entry and return");
const NARROW: &str = "writing registers of a 32-bit EL1 spoils those of an AArch64 one";
const NO_NARROW: Remedy = NotHere("EL1 is always AArch64, and DACR32_EL2 and IFSR32_EL2 are never written");
const TRACE: &str = "the trace buffer writes where it should not, or loses data";
const NO_TRACE: Remedy = NotHere("trace buffers are hidden and trapped");

const fn row(part: Part, number: u32, first: u8, last: u8, what: &'static str, remedy: Remedy) -> Erratum {
    Erratum { part, number, first, last, what, remedy }
}

/// The table.
pub const TABLE: &[Erratum] = &[
    row(CortexA53, 1530924, FIRST, OPEN, AT, TranslateApart),
    row(CortexA55, 1530923, FIRST, OPEN, AT, TranslateApart),
    row(CortexA55, 2441007, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(CortexA57, 832075, FIRST, revision(1, 2), "a device load among exclusives may deadlock", AcquireDevices),
    row(CortexA57, 834220, FIRST, revision(1, 2), "a second-stage fault hides one of the first", AskFirstStage),
    row(CortexA57, 852523, FIRST, OPEN, NARROW, NO_NARROW),
    row(CortexA57, 1319537, FIRST, OPEN, AT, TranslateApart),
    row(CortexA57, 1742098, FIRST, OPEN, AES, Guest),
    row(CortexA72, 853709, FIRST, OPEN, NARROW, NO_NARROW),
    row(CortexA72, 1319367, FIRST, OPEN, AT, TranslateApart),
    row(CortexA72, 1655431, FIRST, OPEN, AES, Guest),
    row(CortexA76, 1165522, FIRST, revision(3, 0), AT, TranslateApart),
    row(CortexA76, 1286807, FIRST, revision(3, 0), TLBI, RepeatInvalidation),
    row(CortexA76, 1418040, FIRST, revision(3, 1), COUNTER, Guest),
    row(CortexA76, 3324349, FIRST, OPEN, SSBS, NO_SSBS),
    row(CortexA76, 4193800, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(CortexA77, 4193798, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(CortexA78, 4193791, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(CortexX1, 4193791, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(CortexA710, 4193788, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(NeoverseN1, 1165522, FIRST, revision(2, 0), AT, TranslateApart),
    row(NeoverseN1, 1349291, FIRST, OPEN, "an error that is not contained is reported as one that cannot be recovered",
        NotHere("both stop whoever ran (errors.rs)")),
    row(NeoverseN1, 1418040, FIRST, revision(3, 1), COUNTER, Guest),
    row(NeoverseN1, 1542419, revision(3, 0), revision(4, 0),
        "an instruction fetched again may be older than one fetched before", Guest),
    row(NeoverseN1, 3324349, FIRST, OPEN, SSBS, NO_SSBS),
    row(NeoverseN1, 4193800, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(NeoverseN2, 2067961, FIRST, revision(0, 0), TRACE, NO_TRACE),
    row(NeoverseN2, 2139208, FIRST, revision(0, 0), TRACE, NO_TRACE),
    row(NeoverseN2, 2253138, FIRST, revision(0, 0), TRACE, NO_TRACE),
    row(NeoverseN2, 3324339, FIRST, OPEN, SSBS, NO_SSBS),
    row(NeoverseN2, 4193789, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(NeoverseV1, 3324341, FIRST, OPEN, SSBS, NO_SSBS),
    row(NeoverseV1, 4193790, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(NeoverseV2, 3324336, FIRST, OPEN, SSBS, NO_SSBS),
    row(NeoverseV2, 4193787, FIRST, OPEN, TLBI, RepeatInvalidation),
    row(NeoverseV3, 4193784, FIRST, OPEN, TLBI, RepeatInvalidation),
];

/// Errata that this CPU has.
pub fn of(midr: Midr) -> impl Iterator<Item = &'static Erratum> {
    let (part, revision) = (midr.part(), midr.revision());
    TABLE.iter().filter(move |row| Some(row.part) == part && (row.first..=row.last).contains(&revision))
}

/// Whether this CPU has one with this remedy.
pub fn needs(midr: Midr, remedy: Remedy) -> bool {
    of(midr).any(|row| row.remedy == remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(midr: u64) -> Vec<u32> {
        of(Midr(midr)).map(|row| row.number).collect()
    }

    #[test]
    fn each_cpu_gets_the_errata_of_its_own_revision() {
        assert_eq!(numbers(0x411f_d070), [832075, 834220, 852523, 1319537, 1742098], "A57 r1p0");
        assert_eq!(numbers(0x411f_d073), [852523, 1319537, 1742098], "A57 r1p3");
        assert_eq!(numbers(0x410f_d083), [853709, 1319367, 1655431], "A72 r0p3");
        assert_eq!(numbers(0x414f_d0c1), [1349291, 3324349, 4193800], "N1 r4p1");
        assert_eq!(numbers(0x413f_d0c1), [1349291, 1418040, 1542419, 3324349, 4193800], "N1 r3p1, as in Graviton 2");
        assert_eq!(numbers(0x411f_d401), [3324341, 4193790], "V1 r1p1, as in Graviton 3");
        assert_eq!(numbers(0x410f_d4f1), [3324336, 4193787], "V2 r0p1, as in Graviton 4");
        assert_eq!(numbers(0x000f_0510), [0; 0], "an unknown part");
    }

    #[test]
    fn the_remedies_of_the_parts_that_trellis_is_for() {
        let (a72, n1, v1) = (Midr(0x410f_d083), Midr(0x413f_d0c1), Midr(0x411f_d401));
        assert!(needs(a72, TranslateApart) && !needs(n1, TranslateApart));
        assert!(!needs(a72, RepeatInvalidation) && needs(n1, RepeatInvalidation) && needs(v1, RepeatInvalidation));
        assert!(!needs(a72, AskFirstStage));
    }

    #[test]
    fn a_row_names_each_erratum_of_a_part_once() {
        for (index, row) in TABLE.iter().enumerate() {
            let again = TABLE[..index].iter().any(|other| other.part == row.part && other.number == row.number);
            assert!(!again && row.first <= row.last && !row.what.is_empty(), "{row:?}");
        }
    }
}
