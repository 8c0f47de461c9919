// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the CPU's predictors may learn from a guest or server, and what the kernel does about it at every entry.
//!
//! Branch targets (Spectre v2), branch history (Spectre-BHB, CVE-2022-23960) and stores that loads pass (Spectre v4).
//! Meltdown (v3) needs no remedy: the kernel's own map belongs to another translation regime than a guest's or
//! server's. Reading registers ahead (v3a) would tell where the kernel stands, which is no secret here.
//! Straight-line speculation past an ERET is stopped in `entry.S`.

use crate::part::{Midr, Part};
use Part::*;

/// Functions of the firmware (SMCCC, DEN 0028, 7.4–7.7).
pub mod firmware {
    /// SMCCC_VERSION.
    pub const VERSION: u64 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    pub const FEATURES: u64 = 0x8000_0001;
    /// SMCCC_ARCH_WORKAROUND_1: forget branch targets.
    pub const WORKAROUND_1: u32 = 0x8000_8000;
    /// SMCCC_ARCH_WORKAROUND_2: loads may not pass stores (x1 = 1).
    pub const WORKAROUND_2: u32 = 0x8000_7fff;
    /// SMCCC_ARCH_WORKAROUND_3: forget branch targets and history.
    pub const WORKAROUND_3: u32 = 0x8000_3fff;
    /// PSCI_VERSION and PSCI_FEATURES, which say whether there is SMCCC_VERSION (DEN 0028, 8.1).
    pub const PSCI_VERSION: u64 = 0x8400_0000;
    /// PSCI_FEATURES.
    pub const PSCI_FEATURES: u64 = 0x8400_000a;
}

/// What SMCCC_ARCH_FEATURES said about a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer {
    /// Call it.
    Call,
    /// This CPU does not need it.
    NotNeeded,
    /// It is not there.
    Absent,
}

impl Offer {
    /// From the answer: 0 call, 1 not needed, negative not there (DEN 0028, 7.4).
    pub const fn from_answer(answer: u64) -> Offer {
        match answer as i32 {
            0 => Offer::Call,
            1 => Offer::NotNeeded,
            _ => Offer::Absent,
        }
    }
}

/// What is known about a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Which CPU.
    pub midr: Midr,
    /// ID_AA64PFR0_EL1: CSV2 in bits 56–59, CSV3 in 60–63.
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1: SSBS in bits 4–7.
    pub pfr1: u64,
    /// ID_AA64ISAR2_EL1: CLRBHB in bits 28–31.
    pub isar2: u64,
    /// ID_AA64MMFR1_EL1: ECBHB in bits 60–63.
    pub mmfr1: u64,
    /// Workarounds 1, 2, 3 of the firmware.
    pub offers: [Offer; 3],
}

/// What is done about branch targets and history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Branches {
    /// Nothing: the board is an emulator's, which predicts nothing.
    Emulated,
    /// Nothing: the CPU keeps contexts apart.
    Safe,
    /// History is pushed out by this many taken branches.
    Loop(u8),
    /// History is cleared by CLRBHB.
    Clear,
    /// The firmware is called, then this many taken branches (0 = the call does both).
    Firmware(u32, u8),
    /// The CPU needs what its firmware does not have; this many taken branches push out history at least.
    Exposed(u8),
}

/// What is done about loads that pass stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stores {
    /// Nothing: the board is an emulator's.
    Emulated,
    /// Nothing: the CPU does not do it.
    Safe,
    /// PSTATE.SSBS is 0 in kernel and servers (SCTLR_EL2.DSSBS = 0, SPSR_EL2 = 0); a guest's is its own.
    Bit,
    /// The firmware was told once, at boot, for everybody.
    Firmware,
    /// Neither bit nor firmware.
    Exposed,
}

/// The policy of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Branch targets and history.
    pub branches: Branches,
    /// Loads and stores.
    pub stores: Stores,
}

/// Parts in order, without target prediction worth the name: neither v2, BHB nor v4 (Arm's security update).
const IN_ORDER: [Part; 3] = [CortexA35, CortexA53, CortexA55];

/// Taken branches that push out the history of each part (Arm: Spectre-BHB, table of loop counts). A part that no list
/// knows gets the most.
const LOOPS: [(Part, u8); 12] = [
    (CortexA57, 8), (CortexA72, 8), (CortexA76, 24), (CortexA77, 24), (NeoverseN1, 24), (CortexA78, 32),
    (CortexX1, 32), (CortexA710, 32), (NeoverseN2, 32), (NeoverseV1, 32), (NeoverseV2, 132), (NeoverseV3, 132),
];
const MOST: u8 = 132;
/// Parts whose history only the firmware can clear.
const FIRMWARE_ONLY: [Part; 2] = [CortexA73, CortexA75];

const fn field(register: u64, low: u32) -> u64 {
    register >> low & 15
}

impl Policy {
    /// Before a CPU has looked at itself.
    pub const EMULATED: Policy = Policy { branches: Branches::Emulated, stores: Stores::Emulated };

    /// Decides.
    pub fn choose(known: &Known) -> Policy {
        Policy { branches: branches(known), stores: stores(known) }
    }

    /// What the guarded vectors read: bits 0–31 the firmware's function, 32–39 taken branches, 40 CLRBHB.
    pub const fn guard(self) -> u64 {
        match self.branches {
            Branches::Emulated | Branches::Safe => 0,
            Branches::Loop(count) | Branches::Exposed(count) => (count as u64) << 32,
            Branches::Clear => 1 << 40,
            Branches::Firmware(function, count) => function as u64 | (count as u64) << 32,
        }
    }
}

fn is_in_order(known: &Known) -> bool {
    known.midr.part().is_some_and(|part| IN_ORDER.contains(&part))
}

/// Taken branches that history needs: 0 = none.
fn history(known: &Known) -> u8 {
    // CSV2 = 3: histories of other contexts do not count; ECBHB: not those of lower levels.
    if field(known.pfr0, 56) >= 3 || field(known.mmfr1, 60) != 0 || is_in_order(known) {
        return 0;
    }
    let part = known.midr.part();
    LOOPS.iter().find(|(other, _)| Some(*other) == part).map_or(MOST, |(_, count)| *count)
}

fn branches(known: &Known) -> Branches {
    let count = history(known);
    let targets = field(known.pfr0, 56) == 0 && !is_in_order(known) && known.offers[0] != Offer::NotNeeded;
    let only = count != 0 && known.midr.part().is_some_and(|part| FIRMWARE_ONLY.contains(&part));
    if (targets || only) && known.offers[2] == Offer::Call {
        // Whoever has the third need not call the first (DEN 0028, 7.7).
        return Branches::Firmware(firmware::WORKAROUND_3, 0);
    }
    match (targets, known.offers[0]) {
        (true, Offer::Call) => Branches::Firmware(firmware::WORKAROUND_1, count),
        (true, _) => Branches::Exposed(count),
        _ if only => Branches::Exposed(count),
        _ if count == 0 => Branches::Safe,
        _ if field(known.isar2, 28) != 0 => Branches::Clear,
        _ => Branches::Loop(count),
    }
}

fn stores(known: &Known) -> Stores {
    match known.offers[1] {
        _ if is_in_order(known) => Stores::Safe,
        _ if field(known.pfr1, 4) != 0 => Stores::Bit,
        Offer::Call => Stores::Firmware,
        Offer::NotNeeded => Stores::Safe,
        Offer::Absent => Stores::Exposed,
    }
}

impl core::fmt::Display for Policy {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.branches {
            Branches::Emulated => out.write_str("branches not guarded (emulated board)")?,
            Branches::Safe => out.write_str("branches safe")?,
            Branches::Loop(count) => write!(out, "branch history by a loop of {count}")?,
            Branches::Clear => out.write_str("branch history by CLRBHB")?,
            Branches::Firmware(function, count) => write!(out, "branches by firmware {:#x}, loop of {count}", u64::from(function))?,
            Branches::Exposed(count) => write!(out, "branch targets EXPOSED (no firmware), loop of {count}")?,
        }
        out.write_str(match self.stores {
            Stores::Emulated => "",
            Stores::Safe => ", stores safe",
            Stores::Bit => ", stores by SSBS",
            Stores::Firmware => ", stores by firmware",
            Stores::Exposed => ", stores EXPOSED",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABSENT: [Offer; 3] = [Offer::Absent; 3];

    fn known(midr: u64, csv2: u64, offers: [Offer; 3]) -> Known {
        Known { midr: Midr(midr), pfr0: csv2 << 56, pfr1: 0, isar2: 0, mmfr1: 0, offers }
    }

    #[test]
    fn a_raspberry_pi_without_firmware_is_exposed_and_says_so() {
        let policy = Policy::choose(&known(0x410f_d083, 0, ABSENT));
        assert_eq!(policy, Policy { branches: Branches::Exposed(8), stores: Stores::Exposed });
        assert_eq!(policy.guard(), 8 << 32);
        assert!(policy.to_string().contains("EXPOSED"));
    }

    #[test]
    fn firmware_with_the_third_workaround_does_both() {
        let all = Policy::choose(&known(0x410f_d083, 0, [Offer::Call; 3]));
        assert_eq!(all.branches, Branches::Firmware(firmware::WORKAROUND_3, 0));
        let first = Policy::choose(&known(0x410f_d083, 0, [Offer::Call, Offer::NotNeeded, Offer::Absent]));
        assert_eq!(first.branches, Branches::Firmware(firmware::WORKAROUND_1, 8));
        assert_eq!((first.stores, first.guard()), (Stores::Safe, 0x8_8000_8000));
    }

    #[test]
    fn servers_with_apart_targets_push_out_history_only() {
        for (midr, count) in [(0x413f_d0c1, 24), (0x411f_d401, 32), (0x410f_d4f1, 132), (0x000f_0510, 132)] {
            let mut known = known(midr, 1, ABSENT);
            known.pfr1 = 2 << 4;
            assert_eq!(Policy::choose(&known), Policy { branches: Branches::Loop(count), stores: Stores::Bit });
            known.isar2 = 1 << 28;
            assert_eq!(Policy::choose(&known).branches, Branches::Clear);
            known.mmfr1 = 1 << 60;
            assert_eq!(Policy::choose(&known).branches, Branches::Safe);
        }
        assert_eq!(Policy::choose(&known(0x411f_d401, 3, ABSENT)).branches, Branches::Safe);
    }

    #[test]
    fn cores_in_order_need_nothing_and_others_their_firmware() {
        assert_eq!(Policy::choose(&known(0x410f_d034, 0, ABSENT)), Policy { branches: Branches::Safe, stores: Stores::Safe });
        let a75 = known(0x412f_d0a1, 1, [Offer::NotNeeded, Offer::Call, Offer::Call]);
        assert_eq!(Policy::choose(&a75).branches, Branches::Firmware(firmware::WORKAROUND_3, 0));
        assert_eq!(Policy::choose(&known(0x412f_d0a1, 1, ABSENT)).branches, Branches::Exposed(132));
    }

    #[test]
    fn answers_of_the_firmware_mean_what_the_convention_says() {
        let answers = [0u64, 1, u64::MAX, 0xffff_ffff, 7];
        let offers = answers.map(Offer::from_answer);
        assert_eq!(offers, [Offer::Call, Offer::NotNeeded, Offer::Absent, Offer::Absent, Offer::Absent]);
    }
}
