// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU has, from its ID registers: what the kernel must switch off, what it may use, and what it cannot run on.
//!
//! The kernel keeps it, with the CPU's errata, in one word a CPU (TPIDR_EL2), read on slow paths only.

use crate::errata::{self, Remedy};
use crate::part::Midr;

/// The ID registers that matter (Arm ARM D19.2, ID_AA64*_EL1).
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Registers {
    pub midr: u64,
    pub pfr0: u64,
    pub pfr1: u64,
    pub dfr0: u64,
    pub isar1: u64,
    pub isar2: u64,
    pub mmfr0: u64,
    pub mmfr1: u64,
    pub mmfr4: u64,
}

/// One CPU's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Features(pub u64);

impl Features {
    /// Errors can be synchronised and told apart (ESB, DISR_EL1).
    pub const ERRORS: u64 = 1 << 0;
    /// Fine-grained traps (HFGRTR_EL2 …).
    pub const FINE_TRAPS: u64 = 1 << 1;
    /// HCRX_EL2.
    pub const EXTENDED_CONTROL: u64 = 1 << 2;
    /// Memory partitioning.
    pub const PARTITIONS: u64 = 1 << 3;
    /// Trace filters (TRFCR_EL2).
    pub const TRACE_FILTERS: u64 = 1 << 4;
    /// A PMU of version 3 (PMCR_EL0).
    pub const COUNTERS: u64 = 1 << 5;
    /// The AT instruction stands apart ([`Remedy::TranslateApart`]).
    pub const TRANSLATE_APART: u64 = 1 << 8;
    /// Broadcast invalidations are done twice ([`Remedy::RepeatInvalidation`]).
    pub const REPEAT_INVALIDATION: u64 = 1 << 9;
    /// [`Remedy::AskFirstStage`].
    pub const ASK_FIRST_STAGE: u64 = 1 << 10;

    /// What these registers announce.
    pub fn of(r: &Registers) -> Features {
        let midr = Midr(r.midr);
        let debug = field(r.dfr0, 8);
        let table = [
            (field(r.pfr0, 28) != 0, Self::ERRORS),
            (field(r.mmfr0, 56) != 0, Self::FINE_TRAPS),
            (field(r.mmfr1, 40) != 0, Self::EXTENDED_CONTROL),
            (field(r.pfr0, 40) != 0 || field(r.pfr1, 16) != 0, Self::PARTITIONS),
            (field(r.dfr0, 40) != 0, Self::TRACE_FILTERS),
            (debug != 0 && debug != 15, Self::COUNTERS),
            (errata::needs(midr, Remedy::TranslateApart), Self::TRANSLATE_APART),
            (errata::needs(midr, Remedy::RepeatInvalidation), Self::REPEAT_INVALIDATION),
            (errata::needs(midr, Remedy::AskFirstStage), Self::ASK_FIRST_STAGE),
        ];
        Features(table.iter().filter(|(there, _)| *there).fold(0, |word, (_, bit)| word | bit))
    }

    /// Whether it has one.
    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
}

const fn field(register: u64, low: u32) -> u64 {
    register >> low & 15
}

/// Why a CPU cannot run this kernel, in one sentence; `hcr` is HCR_EL2 as it reads after E2H was written as zero.
pub fn refusal(r: &Registers, hcr: u64) -> Option<&'static str> {
    // E2H0 is signed: 0 = HCR_EL2.E2H may be 0; negative = it is 1 whatever is written (Arm ARM D19.2.73).
    if field(r.mmfr4, 24) >= 8 || hcr >> 34 & 1 == 1 {
        return Some("this CPU runs EL2 with E2H = 1 only, and this kernel needs E2H = 0");
    }
    // TGran4 is signed: 15 = not there.
    if field(r.mmfr0, 28) >= 8 {
        return Some("this CPU has no page tables of 4 KiB pages");
    }
    if field(r.pfr0, 4) == 0 {
        return Some("this CPU has no AArch64 at EL1");
    }
    None
}

/// Why the kernel cannot run at this exception level.
pub const fn level_refusal(level: u64) -> Option<&'static str> {
    match level {
        2 => None,
        1 => Some("started at EL1: EL2 is taken or switched off; start the board with virtualization"),
        3 => Some("started at EL3: firmware must hand over at EL2"),
        _ => Some("started at an exception level that is not EL2"),
    }
}

/// What all CPUs have of an ID register: field by field the least. Fields of `signed` count 8–15 as less than zero.
pub fn common(one: u64, other: u64, signed: &[u32]) -> u64 {
    let mut result = 0;
    for low in (0..64).step_by(4) {
        let (a, b) = (field(one, low), field(other, low));
        // Eight more, modulo sixteen: negative numbers come first.
        let key = |value: u64| if signed.contains(&low) { value + 8 & 15 } else { value };
        result |= if key(a) <= key(b) { a << low } else { b << low };
    }
    result
}

/// Whether one guest may run on two CPUs with these CTR_EL0 (Arm ARM D24.2.38). A guest reads the register itself and
/// maintains caches by what it says, whichever CPU it read it on: the smallest lines, and whether data must be cleaned
/// (IDC) and instructions invalidated (DIC), must be the same.
pub const fn same_caches(one: u64, other: u64) -> bool {
    const IMIN_LINE: u64 = 0xf;
    const DMIN_LINE: u64 = 0xf << 16;
    const IDC_DIC: u64 = 3 << 28;
    (one ^ other) & (IMIN_LINE | DMIN_LINE | IDC_DIC) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the emulator's CPUs have them.
    fn cortex_a72() -> Registers {
        Registers { midr: 0x410f_d083, pfr0: 0x2222, dfr0: 0x1030_5106, mmfr0: 0x1124, ..Registers::default() }
    }

    fn neoverse_v1() -> Registers {
        Registers {
            midr: 0x411f_d402, pfr0: 0x1101_1101_2111_1112, pfr1: 0x20, dfr0: 0x0001_1f21_0305_519,
            isar1: 0x0111_1100_0111_1f32, isar2: 0, mmfr0: 0x0220_1111_0010_1125, mmfr1: 0x1021_2122, mmfr4: 0,
        }
    }

    #[test]
    fn an_old_cpu_has_little_to_switch_off() {
        let features = Features::of(&cortex_a72());
        assert_eq!(features, Features(Features::COUNTERS | Features::TRANSLATE_APART));
    }

    #[test]
    fn a_server_cpu_has_errors_and_repeats_invalidations() {
        let features = Features::of(&neoverse_v1());
        assert!(features.has(Features::ERRORS) && features.has(Features::REPEAT_INVALIDATION));
        assert!(!features.has(Features::TRANSLATE_APART) && !features.has(Features::ASK_FIRST_STAGE));
    }

    #[test]
    fn a_cpu_that_cannot_run_the_kernel_is_refused_with_a_sentence() {
        let good = cortex_a72();
        assert_eq!(refusal(&good, 0x8000_0000), None);
        assert!(refusal(&good, 1 << 34).is_some_and(|why| why.contains("E2H")));
        // −1 and −2: FEAT_E2H0 is absent.
        for absent in [0xf, 0xe] {
            assert!(refusal(&Registers { mmfr4: absent << 24, ..good }, 0).is_some());
        }
        assert!(refusal(&Registers { mmfr0: 0xf000_0000, ..good }, 0).is_some_and(|why| why.contains("4 KiB")));
        assert_eq!(level_refusal(2), None);
        assert!([0, 1, 3].iter().all(|level| level_refusal(*level).is_some()));
    }

    #[test]
    fn a_cpu_whose_caches_are_kept_otherwise_is_no_partner() {
        // Cortex-A53 and A72 differ in how instruction caches are indexed, which nobody relies on who invalidates all.
        let (a53, a72, n1) = (0x8444_8004, 0x8444_c004, 0xb444_c004);
        assert!(same_caches(a53, a72) && same_caches(n1, n1));
        assert!(!same_caches(a72, n1), "one says that nothing need be cleaned");
        assert!(!same_caches(a72, a72 & !(0xf << 16) | 3 << 16) && !same_caches(a72, a72 - 1), "shorter lines");
    }

    #[test]
    fn cpus_share_the_least_of_each_field() {
        assert_eq!(common(0x21, 0x12, &[]), 0x11);
        assert_eq!(common(0x0f00, 0x0100, &[8]), 0x0f00, "15 is minus one: floating point is not there");
        assert_eq!(common(0x0f00, 0x0100, &[]), 0x0100);
        assert_eq!(common(u64::MAX, u64::MAX, &[0]), u64::MAX);
    }
}
