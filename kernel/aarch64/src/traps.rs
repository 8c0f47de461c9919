// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is trapped, and why: one row a bit. The values are computed from the rows.
//!
//! A bit that a CPU does not have is RES0 there, and writing it changes nothing. What the ID registers that a guest
//! sees do not announce is trapped as well: hidden *and* trapped.

/// A bit: its number, its name in the manual, why it is set.
pub type Row = (u8, &'static str, &'static str);

/// All bits of a table.
pub const fn value(rows: &[Row]) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < rows.len() {
        bits |= 1 << rows[i].0;
        i += 1;
    }
    bits
}

/// HCR_EL2 while a guest runs (Arm ARM D19.2.53). Of the bits that are not here: API and APK (pointer authentication),
/// ATA (memory tags), EnSCXT, FIEN, AMVOFFEN, NV, E2H let through or switch on what stays hidden; TEA would take a
/// guest's own synchronous external aborts from it; TID1 would hide REVIDR_EL1, by which its kernel knows errata.
pub const HCR_GUEST: &[Row] = &[
    (0, "VM", "the second stage is on"),
    (1, "SWIO", "a guest's invalidate by set and way cleans too"),
    (2, "PTW", "no table walks in device memory"),
    (3, "FMO", "FIQ to EL2"),
    (4, "IMO", "IRQ to EL2, virtual ones to the guest"),
    (5, "AMO", "SError to EL2"),
    (9, "FB", "a guest's TLB maintenance reaches all CPUs"),
    (10, "BSU", "its barriers are at least inner shareable"),
    (18, "TID3", "feature ID registers are answered by the vcpu server"),
    (19, "TSC", "SMC never reaches EL3"),
    (20, "TIDCP", "registers that the maker defined"),
    (21, "TACR", "auxiliary control"),
    (22, "TSW", "cache maintenance by set and way"),
    (31, "RW", "EL1 is AArch64"),
    (35, "TLOR", "limited ordering regions are hidden"),
    (36, "TERR", "error records belong to the machine: RAS is hidden"),
    (58, "TID5", "memory tags are hidden"),
];

/// HCR_EL2 while a server runs.
pub const HCR_SERVER: &[Row] = &[
    (0, "VM", "the second stage is its address space"),
    (3, "FMO", "FIQ to EL2"),
    (4, "IMO", "IRQ to EL2"),
    (5, "AMO", "SError to EL2"),
    (12, "DC", "the first stage is off under TGE, and memory is cacheable all the same"),
    (27, "TGE", "EL0 without an EL1: its exceptions come here"),
    (31, "RW", "AArch64"),
];

/// HCR_EL2 while a guest executes one instruction for an answer that steps: beside WFI, which the core sees to.
pub const HCR_STEP: &[Row] = &[(14, "TWE", "nothing may be slept over while virtual interrupts wait")];

/// MDCR_EL2 (Arm ARM D19.3.18), for guests and servers. HPMN stands in bits 0–4. Of the bits that are not here: TDE would
/// take a guest's own debug exceptions from it (a server's come to EL2 by TGE), and is set for a step, and where breakpoints shall stop the vCPU; E2PB and E2TB = 0 keep the profiling and
/// trace buffers to EL2 and trap their registers.
pub const MDCR: &[Row] = &[
    (5, "TPMCR", "the PMU is hidden"),
    (6, "TPM", "the PMU is hidden"),
    (9, "TDA", "debug registers: the kernel answers and keeps the guest's (debug.rs)"),
    (10, "TDOSA", "the OS lock is the guest's own, in the vcpu server"),
    (11, "TDRA", "there is no debug ROM"),
    (14, "TPMS", "statistical profiling is hidden"),
    (17, "HPMD", "nothing that guests set up counts in the kernel"),
    (19, "TTRF", "trace filters are hidden"),
    (23, "HCCD", "nor do cycles"),
    (27, "TDCC", "what goes to an external debugger is the machine's, not the guest's"),
];

/// CPTR_EL2 with E2H = 0 (Arm ARM D19.2.30) while nobody's vector registers are for the one that runs: traps.
pub const CPTR: &[Row] = &[
    (8, "TZ", "SVE"),
    (10, "TFP", "vector registers are loaded at their first use"),
    (12, "TSM", "SME is hidden"),
    (20, "TTA", "trace registers are hidden"),
    (30, "TAM", "activity monitors are hidden"),
];

/// CPTR_EL2's RES1 bits that name no trap.
pub const CPTR_RES1: u64 = 0x22ff;

/// CNTHCTL_EL2 with E2H = 0 (Arm ARM D19.12.2): what is *not* trapped.
pub const CNTHCTL: &[Row] = &[(0, "EL1PCTEN", "the physical counter may be read; EL1PCEN = 0: the physical timer traps")];

/// MPAM2_EL2 (Arm ARM D19.6.9).
pub const MPAM: &[Row] = &[
    (48, "TRAPMPAM1EL1", "memory partitioning is hidden"),
    (49, "TRAPMPAM0EL1", "memory partitioning is hidden"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: [&[Row]; 7] = [HCR_GUEST, HCR_SERVER, HCR_STEP, MDCR, CPTR, CNTHCTL, MPAM];

    #[test]
    fn every_bit_stands_once_with_name_and_reason() {
        for rows in TABLES {
            for pair in rows.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{} before {}", pair[0].1, pair[1].1);
            }
            assert!(rows.iter().all(|(_, name, why)| !name.is_empty() && !why.is_empty()));
        }
    }

    #[test]
    fn no_guest_gets_to_el2_or_el3() {
        let (guest, server) = (value(HCR_GUEST), value(HCR_SERVER));
        for bit in [0, 3, 4, 5, 19, 31] {
            assert!(guest >> bit & 1 == 1, "bit {bit}");
        }
        // TGE and E2H: a guest has an EL1, and nobody runs with E2H.
        assert!(guest >> 27 & 1 == 0 && server >> 27 & 1 == 1 && (guest | server) >> 34 & 1 == 0);
        // HCD would take HVC away; TVM and TRVM are for watching.
        assert_eq!(guest & (1 << 29 | 1 << 26 | 1 << 30), 0);
    }

    #[test]
    fn what_is_hidden_is_trapped() {
        assert_eq!(value(CPTR) | CPTR_RES1, 0x4010_37ff);
        assert_eq!(value(HCR_GUEST) & (1 << 40 | 1 << 41 | 1 << 56 | 1 << 53), 0, "keys, tags and contexts stay off");
        assert_eq!(value(MDCR) & (3 << 12 | 3 << 24), 0, "buffers stay EL2's");
    }
}
