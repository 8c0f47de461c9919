// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entries of the table of streams (SMMUv3 5.2): what becomes of a device's accesses. Eight words each.

/// Words of an entry.
pub const WORDS: usize = 8;

const VALID: u64 = 1;
/// Config: bypass, and the second stage alone.
const BYPASS: u64 = 4 << 1;
const SECOND: u64 = 6 << 1;
/// Shareability as the access says it (SHCFG).
const AS_IT_COMES: u64 = 1 << 44;
/// Walks of tables: cached alike by all, inner shareable (S2IR0, S2OR0, S2SH0).
const WALKS: u64 = 1 << 40 | 1 << 42 | 3 << 44;
/// Walks begin at level 1 (S2SL0).
const LEVEL_1: u64 = 1 << 38;
/// Tables as AArch64's (S2AA64), no faults about a flag of access (S2AFFD), and faults are recorded (S2R).
const FORMAT: u64 = 1 << 51 | 1 << 53 | 1 << 58;

/// Bits of an address that a device space translates.
pub const SPACE_BITS: u64 = 39;

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub [u64; WORDS]);

impl Entry {
    /// Every access is stopped, and nobody hears of it.
    pub const STOPPED: Entry = Entry([VALID, 0, 0, 0, 0, 0, 0, 0]);

    /// Every access goes through as it is.
    pub const fn open() -> Entry {
        Entry([VALID | BYPASS, AS_IT_COMES, 0, 0, 0, 0, 0, 0])
    }

    /// Accesses go through a device space: its number, where its tables are, and how many bits the machine's addresses have,
    /// by their code (IDR5.OAS).
    pub const fn of(space: u16, tables: u64, size: u64) -> Entry {
        let second = space as u64 | (64 - SPACE_BITS) << 32 | LEVEL_1 | WALKS | (size & 7) << 48 | FORMAT;
        Entry([VALID | SECOND, AS_IT_COMES, second, tables & 0x000f_ffff_ffff_fff0, 0, 0, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each made by hand from the manual's pictures.
    #[test]
    fn entries_are_as_the_manual_draws_them() {
        assert_eq!(Entry::STOPPED.0, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Entry::open().0, [9, 0x1000_0000_0000, 0, 0, 0, 0, 0, 0]);
        // 16 bits of space; 25 leading bits that are none, level 1, write-back, inner shareable, 4 KiB; 44 bits; AA64, AFFD, R.
        let expected = [0xd, 0x1000_0000_0000, 0x042c_3559_0000_0003, 0x4_4321_7000, 0, 0, 0, 0];
        assert_eq!(Entry::of(3, 0x4_4321_7000, 4).0, expected, "{:#x}", Entry::of(3, 0x4_4321_7000, 4).0[2]);
    }
}
