// SPDX-License-Identifier: MIT OR Apache-2.0
//! Register formats: what each bit is and why it is set so. Pure; tested on any host.

use crate::traps;
use trellis_core::lines::ListEntry;
use trellis_core::machine::{Entry, Leaf};
use trellis_idl::kernel::Access;

/// HCR_EL2.TWI: WFI stops the guest (off while it has the CPU for itself).
pub const HCR_TWI: u64 = 1 << 13;

/// HCR_EL2 while a guest runs.
pub const HCR_GUEST: u64 = traps::value(traps::HCR_GUEST);

/// HCR_EL2.TVM: writes of the registers that say how memory is translated trap (Arm ARM D19.2.53).
pub const HCR_TVM: u64 = 1 << 26;

/// What HCR_EL2 has as well while a guest executes one instruction.
pub const HCR_STEP: u64 = traps::value(traps::HCR_STEP);

/// HCR_EL2 while a server runs.
pub const HCR_SERVER: u64 = traps::value(traps::HCR_SERVER);

/// CPTR_EL2 with every trap on.
pub const CPTR_TRAP_ALL: u64 = traps::CPTR_RES1 | traps::value(traps::CPTR);
/// The same without the trap on floating point.
pub const CPTR_FLOAT: u64 = CPTR_TRAP_ALL & !(1 << 10);
/// The same without the traps on floating point and SVE.
pub const CPTR_VECTORS: u64 = CPTR_FLOAT & !(1 << 8);

/// CPTR_EL2 for who owns the floating-point registers and has so many lanes in scalable vectors.
pub const fn cptr_of_owner(lanes: u8) -> u64 {
    if lanes == 0 { CPTR_FLOAT } else { CPTR_VECTORS }
}

/// CPACR_EL1 while a server may use floating point: EL0 obeys FPEN under TGE (Arm ARM D24.2.34).
pub const CPACR_FLOAT: u64 = 3 << 20;

/// SCTLR_EL1 out of reset: MMU and caches off, RES1 bits set.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0800;
/// SCTLR_EL1 while a server runs: little-endian, no alignment check; cache maintenance (UCI), CTR_EL0 (UCT), DC ZVA
/// (DZE) and WFE are its own business; WFI traps, and is a fault.
pub const SCTLR_EL1_SERVER: u64 = 0x30d0_0800 | 1 << 26 | 1 << 15 | 1 << 14 | 1 << 18;

/// MDCR_EL2, but for the number of counters in its low bits.
pub const MDCR: u64 = traps::value(traps::MDCR);

/// MDCR_EL2.TDE: debug exceptions come to EL2, whatever the guest masks (Arm ARM D2.4).
pub const MDCR_TDE: u64 = 1 << 8;

/// CNTHCTL_EL2.
pub const CNTHCTL: u64 = traps::value(traps::CNTHCTL);

/// VTCR_EL2 (Arm ARM D19.2.152): 39-bit addresses from level 1, 4 KiB granule, walks cacheable and inner shareable.
/// `pa_range` is ID_AA64MMFR0_EL1.PARange.
pub const fn vtcr(pa_range: u64) -> u64 {
    // PS at most 48 bits (5).
    let ps = if pa_range > 5 { 5 } else { pa_range };
    25 | 1 << 6 | 1 << 8 | 1 << 10 | 3 << 12 | ps << 16 | 1 << 31
}

/// Processor state (SPSR_EL2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Pstate(pub u64);

impl Pstate {
    /// EL1h, everything masked.
    pub const RESET: Pstate = Pstate(0x3c5);

    /// A state that a guest may be in: EL0t, EL1t, EL1h of AArch64; not single-stepped, not illegal.
    pub const fn for_guest(value: u64) -> Option<Pstate> {
        // N Z C V, TCO, DIT, UAO, PAN, SSBS, BTYPE, D A I F.
        const ALLOWED: u64 = 0xf000_0000 | 1 << 25 | 1 << 24 | 1 << 23 | 1 << 22 | 1 << 12 | 3 << 10 | 0xf << 6 | 0xf;
        if value & !ALLOWED != 0 || !matches!(value & 0xf, 0 | 4 | 5) {
            return None;
        }
        Some(Pstate(value))
    }

    /// At EL0.
    pub const fn is_user(self) -> bool {
        self.0 & 0xf == 0
    }

    /// In AArch32, which only EL0 can be in here.
    pub const fn is_narrow(self) -> bool {
        self.0 >> 4 & 1 == 1
    }

    /// At EL1 with SP_EL0.
    pub const fn uses_sp_el0(self) -> bool {
        self.0 & 0xf == 4
    }
}

/// Why the last trap to EL2 happened (ESR_EL2, Arm ARM D19.2.39).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Esr(pub u64);

impl Esr {
    /// Exception class.
    pub const fn class(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// A thread's use of floating point: trapped by CPTR_EL2, or unknown while the loaded guest's CPACR_EL1 forbids it.
    pub const fn is_float(self, cpacr: u64) -> bool {
        self.class() == 0x07 || (self.class() == 0 && cpacr & CPACR_FLOAT != CPACR_FLOAT)
    }

    /// The instruction was 32 bits long (always, in AArch64, but for some asynchronous classes).
    pub const fn iss(self) -> u64 {
        self.0 & 0x1ff_ffff
    }

    /// Data abort: width, register and the rest are valid.
    pub const fn has_access(self) -> bool {
        self.0 >> 24 & 1 == 1
    }

    /// Data abort: bytes accessed.
    pub const fn access_bytes(self) -> u64 {
        1 << (self.0 >> 22 & 3)
    }

    /// Data abort: the register moved (SRT).
    pub const fn register(self) -> u64 {
        self.0 >> 16 & 31
    }

    /// Data abort: a write.
    pub const fn is_write(self) -> bool {
        self.0 >> 6 & 1 == 1
    }

    /// Abort: on a stage 1 table walk (S1PTW).
    pub const fn is_walk(self) -> bool {
        self.0 >> 7 & 1 == 1
    }

    /// Abort: FAR is not valid (FnV).
    pub const fn is_address_invalid(self) -> bool {
        self.0 >> 10 & 1 == 1
    }

    /// Abort: cache maintenance (CM).
    pub const fn is_maintenance(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// Abort: permission fault at any level (DFSC 0b0011xx).
    pub const fn is_permission(self) -> bool {
        self.0 >> 2 & 0xf == 3
    }

    /// Abort: translation, access flag or permission fault: one the second stage's owner can mend.
    pub const fn is_stage2(self) -> bool {
        matches!(self.0 >> 2 & 0xf, 1..=3)
    }

    /// System register access: a read (MRS).
    pub const fn is_read(self) -> bool {
        self.0 & 1 == 1
    }

    /// System register access: the general register.
    pub const fn system_register(self) -> u64 {
        self.0 >> 5 & 31
    }

    /// System register access: op0, op1, CRn, CRm, op2 as in the syndrome, without direction and register.
    pub const fn encoding(self) -> u64 {
        self.0 & 0x3f_fc1e
    }
}

/// Encoding of ICC_SGI1R_EL1 (3, 0, 12, 11, 5) as [`Esr::encoding`] gives it.
pub const ICC_SGI1R: u64 = encode(3, 0, 12, 11, 5);

/// A system register's place in a syndrome (Arm ARM D19.2.39, ISS for MSR, MRS).
pub const fn encode(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// A list register (ICH_LR<n>_EL2, GICv3 12.4.8).
#[inline(always)]
pub const fn pack_list(entry: ListEntry) -> u64 {
    if entry.is_empty() {
        return 0;
    }
    let state = (entry.pending as u64) | (entry.active as u64) << 1;
    // GICv3 has no sender there; a context that is kept in this format remembers the one of a version 2 guest.
    let origin = entry.origin as u64;
    let origin = if entry.is_tied() { 1 << 61 | origin << 32 } else { (entry.notify as u64) << 41 | (origin & 7) << 10 };
    state << 62
        | (entry.group as u64) << 60
        | (entry.priority as u64) << 48
        | origin
        | entry.line as u64
}

/// The other way.
#[cfg_attr(target_os = "none", optimize(speed))]
pub const fn unpack_list(list: u64) -> ListEntry {
    let hardware = list >> 61 & 1 == 1;
    ListEntry {
        line: list as u8,
        priority: (list >> 48) as u8,
        pending: list >> 62 & 1 == 1,
        active: list >> 63 & 1 == 1,
        group: list >> 60 & 1 == 1,
        origin: if hardware { (list >> 32) as u16 & 0x3ff } else { (list >> 10) as u16 & 7 },
        notify: !hardware && list >> 41 & 1 == 1,
    }
}

/// A list register of GICv2 (GICH_LR<n>, GICv2 5.3.11). Priorities have 5 bits there.
#[cfg_attr(target_os = "none", optimize(speed))]
pub const fn pack_list_2(entry: ListEntry) -> u32 {
    if entry.is_empty() {
        return 0;
    }
    let state = (entry.pending as u32) | (entry.active as u32) << 1;
    let software = (entry.notify as u32) << 19 | (entry.origin as u32 & 7) << 10;
    let origin = if entry.is_tied() { 1 << 31 | (entry.origin as u32) << 10 } else { software };
    origin
        | (entry.group as u32) << 30
        | state << 28
        | (entry.priority as u32 >> 3) << 23
        | entry.line as u32
}

/// The other way.
pub const fn unpack_list_2(list: u32) -> ListEntry {
    let hardware = list >> 31 & 1 == 1;
    ListEntry {
        line: list as u8,
        priority: (list >> 23 & 31) as u8 * 8,
        pending: list >> 28 & 1 == 1,
        active: list >> 29 & 1 == 1,
        group: list >> 30 & 1 == 1,
        // The field is the physical line's when it is tied to one, else the sender's (GICH_LR<n>.CPUID).
        origin: (list >> 10) as u16 & if hardware { 0x3ff } else { 7 },
        notify: !hardware && list >> 19 & 1 == 1,
    }
}

const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Bits 58:55 of a leaf are for software (Arm ARM D8.3.2): 55 `NOTIFY`, 56 and 57 marks of the
/// core's own.
const SOFTWARE: u64 = 55;

/// XN[1:0] of a leaf (Arm ARM D8.4.2) by bits 5:2 of its access, which say who executes and whether it is a device: two
/// bits each.
const NEVER: u64 = {
    let (mut table, mut bits) = (0, 0);
    while bits < 16 {
        let access = Access(bits << 2);
        let never = match access {
            device if device.covers(Access::DEVICE) => 2,
            both if both.covers(Access::EXECUTE) => 0,
            user if user.covers(Access::USER_EXECUTE) => 1,
            kernel if kernel.covers(Access::KERNEL_EXECUTE) => 3,
            _ => 2,
        };
        table |= never << (2 * bits);
        bits += 1;
    }
    table
};

/// A stage 2 entry (Arm ARM D8.3.2).
#[cfg_attr(target_os = "none", optimize(speed))]
pub const fn unpack_entry(entry: u64, level: u8) -> Entry {
    if entry & 1 == 0 {
        return Entry::Absent;
    }
    if let Some(page) = table_of(entry, level) {
        return Entry::Table(page);
    }
    if level == 3 && entry & 2 == 0 {
        return Entry::Absent;
    }
    Entry::Leaf(unpack_leaf(entry))
}

/// The table that an entry leads to. (Levels count from 1: a leaf of the last has the same bits.)
#[inline(always)]
pub const fn table_of(entry: u64, level: u8) -> Option<u64> {
    if level < 3 && entry & 3 == 3 { Some((entry & ADDRESS) >> 12) } else { None }
}

/// Apart, so that walks over tables stay short.
#[inline(never)]
const fn unpack_leaf(entry: u64) -> Leaf {
    // XN[1:0] (Arm ARM D8.4.2, FEAT_XNX) counts the bytes: 0 both levels execute, 1 EL0 alone, 2 none, 3 EL1 alone.
    const EXECUTE: u64 =
        Access::EXECUTE.0 | Access::USER_EXECUTE.0 << 8 | Access::KERNEL_EXECUTE.0 << 24;
    let execute = EXECUTE >> (8 * (entry >> 53 & 3)) & 0xff;
    let device = if entry >> 4 & 3 == 0 { Access::DEVICE.0 } else { 0 };
    let access = entry >> 6 & 3 | execute | (entry >> SOFTWARE & 7) << 6 | device;
    Leaf { page: (entry & ADDRESS) >> 12, access: Access(access) }
}

/// The other way. Normal memory is write-back, inner shareable; device memory nGnRE; the access flag is set.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline]
pub const fn pack_entry(entry: Entry, level: u8) -> u64 {
    match entry {
        Entry::Absent => 0,
        Entry::Table(page) => page << 12 | 3,
        Entry::Leaf(leaf) => pack_leaf(leaf, level),
    }
}

#[inline(never)]
const fn pack_leaf(leaf: Leaf, level: u8) -> u64 {
    let kind = if level == 3 { 3 } else { 1 };
    let device = leaf.access.covers(Access::DEVICE);
    let memory = if device { 1 << 2 } else { 0xf << 2 | 3 << 8 };
    let never = (NEVER >> (2 * (leaf.access.0 >> 2 & 15)) & 3) << 53;
    let marks = (leaf.access.0 >> 6 & 7) << SOFTWARE;
    leaf.page << 12 | 1 << 10 | memory | (leaf.access.0 & 3) << 6 | never | marks | kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_survive_packing_at_every_level() {
        for level in 1..=3 {
            for bits in 0..8 {
                let leaf = Leaf { page: 0x40000, access: Access(bits) };
                assert_eq!(unpack_entry(pack_entry(Entry::Leaf(leaf), level), level), Entry::Leaf(leaf));
            }
        }
        for bits in [16, 32, 64 | 1, 128 | 16, 64 | 128 | 4, 256 | 1] {
            let leaf = Leaf { page: 0x40000, access: Access(bits) };
            assert_eq!(unpack_entry(pack_entry(Entry::Leaf(leaf), 3), 3), Entry::Leaf(leaf));
        }
        let xn = |bits| pack_entry(Entry::Leaf(Leaf { page: 0, access: Access(bits) }), 3) >> 53 & 3;
        assert_eq!([xn(4), xn(32), xn(0), xn(16)], [0, 1, 2, 3]);
        let device = Leaf { page: 0x9000, access: Access(3 | 8) };
        assert_eq!(unpack_entry(pack_entry(Entry::Leaf(device), 3), 3), Entry::Leaf(device));
        assert_eq!(unpack_entry(pack_entry(Entry::Table(5), 1), 1), Entry::Table(5));
        assert_eq!(unpack_entry(0, 2), Entry::Absent);
    }

    #[test]
    fn a_list_register_seen_working_reads_as_what_it_is() {
        // Group 1, pending, priority 0x80, notice at its end, line 40: a value tried on the emulator.
        let entry = unpack_list(0x5080_0200_0000_0028);
        assert_eq!(entry, ListEntry { line: 40, priority: 0x80, pending: true, group: true, notify: true, ..ListEntry::default() });
        assert_eq!(pack_list(entry), 0x5080_0200_0000_0028);
        let timer = ListEntry { line: 27, origin: 27, pending: true, group: true, ..ListEntry::default() };
        assert_eq!(unpack_list(pack_list(timer)), timer);
        assert_eq!(pack_list(ListEntry { line: 3, ..ListEntry::default() }), 0);
    }

    #[test]
    fn a_list_register_of_version_2_reads_as_what_it_is() {
        // Pending, priority 0x80, notice at its end, line 40: a value tried on the emulator.
        let entry = unpack_list_2(1 << 28 | 1 << 19 | 16 << 23 | 40);
        assert_eq!(entry, ListEntry { line: 40, priority: 0x80, pending: true, notify: true, ..ListEntry::default() });
        assert_eq!(pack_list_2(entry), 1 << 28 | 1 << 19 | 16 << 23 | 40);
        let timer = ListEntry { line: 27, origin: 27, active: true, ..ListEntry::default() };
        assert_eq!(unpack_list_2(pack_list_2(timer)), timer);
    }

    #[test]
    fn a_data_abort_from_a_real_trace_decodes() {
        // LDR w1 from a device page: EC 0x24, ISV, 4 bytes, SRT 1, read, translation fault level 3.
        let esr = Esr(0x9381_0007);
        assert_eq!((esr.class(), esr.has_access(), esr.access_bytes(), esr.register()), (0x24, true, 4, 1));
        assert!(!esr.is_write() && !esr.is_permission() && esr.is_stage2() && !esr.is_walk());
        assert!(Esr(0x9381_000f).is_permission());
    }
}
