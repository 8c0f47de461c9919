// SPDX-License-Identifier: MIT OR Apache-2.0
//! Walks the guest's own (stage 1) page tables, to find the instruction behind an access without a valid syndrome.
//!
//! Arm ARM D8 (VMSAv8-64): granules of 4, 16 and 64 KiB, 48-bit addresses; larger ones are hidden from guests
//! (`identity.rs`). Permissions are not checked: the guest has just executed the instruction.

/// The registers that say how addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regime {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
}

/// Why an address has no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The address lies between the two halves, or walks of its half are switched off.
    OutsideTables,
    /// The control register holds a combination that the architecture reserves.
    BadControl,
    /// A descriptor is invalid.
    Absent,
    /// A table lies where there is no guest memory.
    Unreadable,
}

const SCTLR_M: u64 = 1;
const SCTLR_EE: u64 = 1 << 25;
/// Bits 47–12 of a descriptor hold an address.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// A root table is aligned to its own size, at least 64 bytes; above the address stands the ASID.
const ROOT: u64 = 0x0000_ffff_ffff_ffc0;

/// One half of the address space.
struct Half {
    root: u64,
    size_bits: u32,
    granule_bits: u32,
    top_byte_ignored: bool,
}

impl Regime {
    /// Guest-physical address of a guest virtual one; `read` fetches 8 bytes of guest-physical memory.
    pub fn translate(&self, address: u64, read: impl FnMut(u64) -> Option<u64>) -> Result<u64, WalkError> {
        if self.sctlr & SCTLR_M == 0 {
            return Ok(address & 0x000f_ffff_ffff_ffff);
        }
        let upper = address >> 55 & 1 == 1;
        let half = self.half(upper)?;
        check_range(&half, address, upper)?;
        self.descend(&half, address, read)
    }

    fn half(&self, upper: bool) -> Result<Half, WalkError> {
        let shift = if upper { 16 } else { 0 };
        if self.tcr >> (7 + shift) & 1 == 1 {
            return Err(WalkError::OutsideTables);
        }
        // TG0 and TG1 number the same three granules differently (Arm ARM D24.2.193).
        let granule_bits = match (upper, self.tcr >> if upper { 30 } else { 14 } & 3) {
            (false, 0) | (true, 2) => 12,
            (false, 2) | (true, 1) => 14,
            (false, 1) | (true, 3) => 16,
            _ => return Err(WalkError::BadControl),
        };
        let unused_bits = (self.tcr >> shift & 63) as u32;
        if !(16..=39).contains(&unused_bits) {
            return Err(WalkError::BadControl);
        }
        Ok(Half {
            root: if upper { self.ttbr1 } else { self.ttbr0 },
            size_bits: 64 - unused_bits,
            granule_bits,
            top_byte_ignored: self.tcr >> if upper { 38 } else { 37 } & 1 == 1,
        })
    }

    fn descend(&self, half: &Half, address: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Result<u64, WalkError> {
        let stride = half.granule_bits - 3;
        let levels = (half.size_bits - half.granule_bits).div_ceil(stride);
        let mut table = half.root & ROOT;
        for remaining in (0..levels).rev() {
            let shift = half.granule_bits + remaining * stride;
            let index_bits = stride.min(half.size_bits - shift);
            let index = address >> shift & ((1 << index_bits) - 1);
            let raw = read(table + index * 8).ok_or(WalkError::Unreadable)?;
            let descriptor = if self.sctlr & SCTLR_EE != 0 { raw.swap_bytes() } else { raw };
            match (descriptor & 3, remaining) {
                (3, 0) | (1, 1) => return Ok(leaf(descriptor, shift, address)),
                // Blocks two levels up (1 GiB) exist with 4 KiB granules only.
                (1, 2) if half.granule_bits == 12 => return Ok(leaf(descriptor, shift, address)),
                (3, _) => table = descriptor & ADDRESS & !((1 << half.granule_bits) - 1),
                _ => return Err(WalkError::Absent),
            }
        }
        Err(WalkError::BadControl)
    }
}

fn check_range(half: &Half, address: u64, upper: bool) -> Result<(), WalkError> {
    let address = if half.top_byte_ignored { (address << 8) as i64 >> 8 } else { address as i64 };
    let above = address >> half.size_bits;
    if above == if upper { -1 } else { 0 } { Ok(()) } else { Err(WalkError::OutsideTables) }
}

fn leaf(descriptor: u64, shift: u32, address: u64) -> u64 {
    let offset = (1u64 << shift) - 1;
    descriptor & ADDRESS & !offset | address & offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const TABLE: u64 = 3;
    const PAGE: u64 = 3;
    const BLOCK: u64 = 1;

    fn walk(regime: Regime, memory: &[(u64, u64)], address: u64) -> Result<u64, WalkError> {
        let memory: HashMap<u64, u64> = memory.iter().copied().collect();
        regime.translate(address, |at| Some(memory.get(&at).copied().unwrap_or(0)))
    }

    #[test]
    fn with_translation_off_an_address_is_itself() {
        assert_eq!(walk(Regime::default(), &[], 0x4020_0000), Ok(0x4020_0000));
    }

    #[test]
    fn linux_kernel_addresses_go_through_four_levels_of_4k() {
        // T1SZ = 16, TG1 = 4K as Linux runs it; T0SZ = 16.
        let regime = Regime { sctlr: 1, tcr: 16 | 16 << 16 | 2 << 30, ttbr0: 0, ttbr1: 0x4100_0000 };
        let address = 0xffff_8000_0801_2abc;
        let memory = [
            (0x4100_0000 + 8 * 256, 0x4100_1000 | TABLE),
            (0x4100_1000, 0x4100_2000 | TABLE),
            (0x4100_2000 + 8 * 64, 0x4100_3000 | TABLE),
            (0x4100_3000 + 8 * 18, 0x0040_0000_4567_8000 | PAGE | 0x700),
        ];
        assert_eq!(walk(regime, &memory, address), Ok(0x4567_8abc));
        let block = [
            (0x4100_0000 + 8 * 256, 0x4100_1000 | TABLE),
            (0x4100_1000, 0x4100_2000 | TABLE),
            (0x4100_2000 + 8 * 64, 0x4020_0000 | BLOCK),
        ];
        assert_eq!(walk(regime, &block, address), Ok(0x4021_2abc));
        assert_eq!(walk(regime, &block, 0xffff_9000_0000_0000), Err(WalkError::Absent));
        assert_eq!(walk(regime, &block, 0xff7f_8000_0801_2abc), Err(WalkError::OutsideTables));
    }

    #[test]
    fn a_39_bit_half_begins_one_level_lower() {
        let regime = Regime { sctlr: 1, tcr: 25 | 25 << 16 | 2 << 30, ttbr0: 0x5000_0000 | 1, ttbr1: 0 };
        let memory = [(0x5000_0000 + 8, 0x4000_0000 | BLOCK)];
        assert_eq!(walk(regime, &memory, 0x4123_4567), Ok(0x4123_4567));
    }

    #[test]
    fn granules_of_16k_and_64k_walk_too() {
        let regime = Regime { sctlr: 1, tcr: 28 | 2 << 14, ttbr0: 0x5000_0000, ttbr1: 0 };
        // 36 bits of 16 KiB: two levels, 11 bits each.
        let memory = [(0x5000_0000 + 8 * 3, 0x5000_4000 | TABLE), (0x5000_4000 + 8 * 5, 0x6000_8000 | PAGE)];
        assert_eq!(walk(regime, &memory, 3 << 25 | 5 << 14 | 0x123), Ok(0x6000_8123));
        let regime = Regime { sctlr: 1, tcr: 22 | 1 << 14, ttbr0: 0x5000_0000, ttbr1: 0 };
        // 42 bits of 64 KiB: two levels, 13 bits each.
        let memory = [(0x5000_0000 + 8 * 2, 0x5001_0000 | TABLE), (0x5001_0000 + 8 * 7, 0x7003_0000 | PAGE)];
        assert_eq!(walk(regime, &memory, 2 << 29 | 7 << 16 | 0xbeef), Ok(0x7003_beef));
        let memory = [(0x5000_0000 + 8 * 2, 0x4000_0000 | BLOCK)];
        assert_eq!(walk(regime, &memory, 2 << 29 | 7 << 16), Ok(0x4007_0000));
    }

    #[test]
    fn tags_are_ignored_only_where_the_guest_says_so() {
        let tagged = 0x5a00_0000_4123_4567;
        let memory = [(0x5000_0000 + 8, 0x4000_0000 | BLOCK)];
        let regime = Regime { sctlr: 1, tcr: 25 | 2 << 30, ttbr0: 0x5000_0000, ttbr1: 0 };
        assert_eq!(walk(regime, &memory, tagged), Err(WalkError::OutsideTables));
        let regime = Regime { tcr: regime.tcr | 1 << 37, ..regime };
        assert_eq!(walk(regime, &memory, tagged), Ok(0x4123_4567));
    }

    #[test]
    fn tables_outside_memory_and_odd_controls_are_errors() {
        let regime = Regime { sctlr: 1, tcr: 25, ttbr0: 0x5000_0000, ttbr1: 0 };
        assert_eq!(regime.translate(0x1000, |_| None), Err(WalkError::Unreadable));
        assert_eq!(Regime { tcr: 3, ..regime }.translate(0, |_| None), Err(WalkError::BadControl));
        assert_eq!(Regime { tcr: 25 | 1 << 7, ..regime }.translate(0, |_| None), Err(WalkError::OutsideTables));
    }

    proptest::proptest! {
        #[test]
        fn no_registers_and_no_memory_make_it_panic(s: u64, tcr: u64, t0: u64, t1: u64, address: u64, word: u64) {
            let regime = Regime { sctlr: s | 1, tcr, ttbr0: t0, ttbr1: t1 };
            let _ = regime.translate(address, |at| (at & 8 == 0).then_some(word ^ at));
        }
    }
}
