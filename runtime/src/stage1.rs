// SPDX-License-Identifier: MIT OR Apache-2.0
//! Walks a guest's own (stage 1) page tables, over memory that the guest may change at any moment: bounded by the levels there
//! are, and nothing that it finds makes it fail otherwise than with an error.
//!
//! Arm ARM D8 (VMSAv8-64): granules of 4, 16 and 64 KiB, 48-bit addresses; larger ones are hidden from guests.

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

/// What a translation is to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Data is read.
    Read,
    /// Data is written.
    Write,
    /// Instructions are fetched.
    Execute,
}

/// Who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The guest's user level (EL0), else its kernel's (EL1).
    pub is_low: bool,
    /// PSTATE.PAN: the kernel may not touch data of the user level's.
    pub keeps_off: bool,
}

impl User {
    /// Who runs in this processor state.
    pub const fn of(pstate: u64) -> User {
        User { is_low: pstate & 0xf == 0, keeps_off: pstate >> 22 & 1 == 1 }
    }
}

/// What an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub address: u64,
    /// Bytes of the page or block, as a power of two.
    pub size_bits: u32,
    /// The level of its descriptor: 3 for pages.
    pub level: u8,
    /// The descriptor, in the usual order of bytes. 0 with translation switched off.
    pub descriptor: u64,
    /// Where that stands, guest-physical.
    pub at: u64,
    /// What the tables above forbid: bits 59–63 of their descriptors, together.
    limits: u64,
    sctlr: u64,
    tcr: u64,
}

const SCTLR_M: u64 = 1;
const SCTLR_WXN: u64 = 1 << 19;
const SCTLR_EE: u64 = 1 << 25;
/// TCR_EL1: hardware sets access flags, and dirty state.
const TCR_HA: u64 = 1 << 39;
const TCR_HD: u64 = 1 << 40;
/// Descriptors: the user level may, nobody may write, was accessed; dirty state is hardware's; kernel, user may not execute.
const AP_USER: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
const DIRTY_BY_HARDWARE: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
/// Table descriptors: PXNTable, UXNTable, APTable.
const PXN_TABLE: u64 = 1 << 59;
const UXN_TABLE: u64 = 1 << 60;
const NO_USER_TABLE: u64 = 1 << 61;
const READ_ONLY_TABLE: u64 = 1 << 62;
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
    /// Tables forbid nothing (TCR_EL1.HPD0, HPD1).
    is_flat: bool,
}

impl Translation {
    /// Whether the tables allow this (Arm ARM D8.4), with access flag and dirty state as hardware would set them.
    pub fn permits(&self, what: Use, who: User) -> bool {
        if self.sctlr & SCTLR_M == 0 {
            return true;
        }
        let has = |bit| self.descriptor & bit != 0;
        let limited = |bit| self.limits & bit != 0;
        let user = has(AP_USER) && !limited(NO_USER_TABLE);
        let dirties = self.tcr & TCR_HD != 0 && has(DIRTY_BY_HARDWARE);
        let writable = (!has(AP_READ_ONLY) || dirties) && !limited(READ_ONLY_TABLE);
        let wxn = writable && self.sctlr & SCTLR_WXN != 0;
        let accessed = has(ACCESSED) || self.tcr & TCR_HA != 0;
        accessed && match (what, who.is_low) {
            (Use::Read, true) => user,
            (Use::Write, true) => user && writable,
            (Use::Read, false) => !(user && who.keeps_off),
            (Use::Write, false) => writable && !(user && who.keeps_off),
            (Use::Execute, true) => user && !has(UXN) && !limited(UXN_TABLE) && !wxn,
            // What the user level may write its kernel does not execute.
            (Use::Execute, false) => !has(PXN) && !limited(PXN_TABLE) && !wxn && !(user && writable),
        }
    }

    /// What the descriptor in memory is to become before this is done, if it is not that already: as hardware marks it.
    pub fn marked(&self, what: Use) -> Option<[u64; 2]> {
        let mut marked = self.descriptor;
        if self.sctlr & SCTLR_M != 0 && self.tcr & TCR_HA != 0 {
            marked |= ACCESSED;
        }
        if what == Use::Write && self.tcr & TCR_HD != 0 && marked & DIRTY_BY_HARDWARE != 0 {
            marked &= !AP_READ_ONLY;
        }
        let stored = |word: u64| if self.sctlr & SCTLR_EE != 0 { word.swap_bytes() } else { word };
        (marked != self.descriptor).then_some([stored(self.descriptor), stored(marked)])
    }

    /// Whether its access flag is set, or hardware will.
    pub const fn is_accessible(&self) -> bool {
        self.sctlr & SCTLR_M == 0 || self.descriptor & ACCESSED != 0 || self.tcr & TCR_HA != 0
    }
}

impl Regime {
    /// Guest-physical address of a guest virtual one; `read` fetches 8 bytes of guest-physical memory.
    pub fn translate(&self, address: u64, read: impl FnMut(u64) -> Option<u64>) -> Result<u64, WalkError> {
        self.walk(address, read).map(|translation| translation.address)
    }

    /// The same, with all that the tables say.
    pub fn walk(&self, address: u64, read: impl FnMut(u64) -> Option<u64>) -> Result<Translation, WalkError> {
        if self.sctlr & SCTLR_M == 0 {
            let address = address & 0x000f_ffff_ffff_ffff;
            return Ok(Translation { address, size_bits: 12, level: 3, descriptor: 0, at: 0, limits: 0, sctlr: 0, tcr: 0 });
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
            is_flat: self.tcr >> if upper { 42 } else { 41 } & 1 == 1,
        })
    }

    fn descend(
        &self, half: &Half, address: u64, mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Result<Translation, WalkError> {
        let stride = half.granule_bits - 3;
        let levels = (half.size_bits - half.granule_bits).div_ceil(stride);
        let (mut table, mut limits) = (half.root & ROOT, 0);
        for remaining in (0..levels).rev() {
            let shift = half.granule_bits + remaining * stride;
            let index_bits = stride.min(half.size_bits - shift);
            let at = table + (address >> shift & ((1 << index_bits) - 1)) * 8;
            let raw = read(at).ok_or(WalkError::Unreadable)?;
            let descriptor = if self.sctlr & SCTLR_EE != 0 { raw.swap_bytes() } else { raw };
            let is_leaf = match (descriptor & 3, remaining) {
                (3, 0) | (1, 1) => true,
                // Blocks two levels up (1 GiB) exist with 4 KiB granules only.
                (1, 2) => half.granule_bits == 12,
                _ => false,
            };
            if is_leaf {
                let (address, level) = (leaf(descriptor, shift, address), 3 - remaining as u8);
                let Regime { sctlr, tcr, .. } = *self;
                return Ok(Translation { address, size_bits: shift, level, descriptor, at, limits, sctlr, tcr });
            }
            if descriptor & 3 != 3 || remaining == 0 {
                return Err(WalkError::Absent);
            }
            table = descriptor & ADDRESS & !((1 << half.granule_bits) - 1);
            limits |= if half.is_flat { 0 } else { descriptor };
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

    /// One page behind one table, of a 39-bit half: what `table` and `page` say besides.
    fn mapped(tcr: u64, sctlr: u64, table: u64, page: u64) -> Translation {
        let regime = Regime { sctlr: sctlr | 1, tcr: 34 | tcr, ttbr0: 0x5000_0000, ttbr1: 0 };
        let (table, page) = (0x5000_1000 | TABLE | table, 0x4200_0000 | PAGE | page);
        let read = |at| Some(match at {
            0x5000_0000 => table,
            0x5000_1008 => page,
            _ => 0,
        });
        regime.walk(0x1234, read).expect("it is mapped")
    }

    const LOW: User = User { is_low: true, keeps_off: false };
    const HIGH: User = User { is_low: false, keeps_off: false };
    const AWAY: User = User { is_low: false, keeps_off: true };

    /// Of read, write, execute: by the user level, by its kernel.
    fn allowed(found: Translation) -> (String, String) {
        let of = |who| {
            let uses = [(Use::Read, 'r'), (Use::Write, 'w'), (Use::Execute, 'x')];
            uses.into_iter().filter(|(what, _)| found.permits(*what, who)).map(|(_, letter)| letter).collect()
        };
        (of(LOW), of(HIGH))
    }

    #[test]
    fn what_is_found_says_where_and_what_it_is() {
        let found = mapped(0, 0, 0, ACCESSED);
        assert_eq!((found.address, found.size_bits, found.level, found.at), (0x4200_0234, 12, 3, 0x5000_1008));
        assert_eq!(found.descriptor, 0x4200_0000 | PAGE | ACCESSED);
    }

    #[test]
    fn descriptors_and_the_tables_above_say_who_may_what() {
        let say = |table, page| allowed(mapped(0, 0, table, page | ACCESSED));
        let texts = |low: &str, high: &str| (low.to_owned(), high.to_owned());
        assert_eq!(say(0, 0), texts("", "rwx"));
        assert_eq!(say(0, AP_USER), texts("rwx", "rw"), "a kernel does not execute what its users may write");
        assert_eq!(say(0, AP_READ_ONLY), texts("", "rx"));
        assert_eq!(say(0, AP_USER | AP_READ_ONLY), texts("rx", "rx"));
        assert_eq!(say(0, AP_USER | AP_READ_ONLY | UXN | PXN), texts("r", "r"));
        assert_eq!(say(NO_USER_TABLE, AP_USER), texts("", "rwx"));
        assert_eq!(say(READ_ONLY_TABLE, AP_USER), texts("rx", "rx"));
        assert_eq!(say(UXN_TABLE | PXN_TABLE, AP_USER | AP_READ_ONLY), texts("r", "r"));
        assert_eq!(allowed(mapped(1 << 41, 0, READ_ONLY_TABLE, ACCESSED)), texts("", "rwx"), "TCR_EL1.HPD0");
        assert_eq!(allowed(mapped(0, SCTLR_WXN, 0, ACCESSED)), texts("", "rw"));
        let kept_off = mapped(0, 0, 0, AP_USER | ACCESSED);
        assert!(!kept_off.permits(Use::Read, AWAY) && !kept_off.permits(Use::Write, AWAY));
        assert_eq!((User::of(0x3c0), User::of(0x40_03c5)), (LOW, AWAY));
        let off = Regime::default().walk(0x4020_0000, |_| None).expect("it is itself");
        assert_eq!(allowed(off), texts("rwx", "rwx"));
    }

    #[test]
    fn access_flags_and_dirty_state_are_kept_as_hardware_keeps_them() {
        let untouched = mapped(0, 0, 0, 0);
        assert!(!untouched.is_accessible() && !untouched.permits(Use::Read, HIGH));
        assert_eq!(untouched.marked(Use::Read), None);
        let by_hardware = mapped(TCR_HA, 0, 0, 0);
        assert!(by_hardware.permits(Use::Read, HIGH));
        assert_eq!(by_hardware.marked(Use::Read), Some([0x4200_0003, 0x4200_0003 | ACCESSED]));
        let clean = mapped(TCR_HA | TCR_HD, 0, 0, ACCESSED | AP_READ_ONLY | DIRTY_BY_HARDWARE);
        assert!(clean.permits(Use::Write, HIGH));
        assert_eq!(clean.marked(Use::Read), None);
        assert_eq!(clean.marked(Use::Write).map(|[_, new]| new & AP_READ_ONLY), Some(0));
        let only_read = mapped(TCR_HA | TCR_HD, 0, 0, ACCESSED | AP_READ_ONLY);
        assert!(!only_read.permits(Use::Write, HIGH) && only_read.marked(Use::Write).is_none());
    }

    #[test]
    fn tables_that_point_at_themselves_end() {
        for (tcr, root) in [(16u64, 0x5000_0000u64), (16 | 2 << 14, 0x5000_0000), (16 | 1 << 14, 0x5000_0000), (25, 0x5000_0000)] {
            let regime = Regime { sctlr: 1, tcr, ttbr0: root, ttbr1: root };
            let mut looks = 0;
            let found = regime.walk(0x1234, |_| {
                looks += 1;
                Some(root | TABLE)
            });
            assert!(looks <= 4, "{looks}");
            // At the last level it is a page.
            assert_eq!(found.map(|found| found.level), Ok(3));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_registers_and_no_memory_make_it_panic(s: u64, tcr: u64, t0: u64, t1: u64, address: u64, word: u64) {
            let regime = Regime { sctlr: s | 1, tcr, ttbr0: t0, ttbr1: t1 };
            let found = regime.walk(address, |at| (at & 8 == 0).then_some(word ^ at));
            if let Ok(found) = found {
                for what in [Use::Read, Use::Write, Use::Execute] {
                    let _ = (found.permits(what, User::of(word)), found.marked(what));
                }
            }
        }
    }
}
