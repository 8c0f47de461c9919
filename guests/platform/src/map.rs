// SPDX-License-Identifier: MIT OR Apache-2.0
//! The identity map: 1 GiB blocks, the first for devices, the rest ordinary cached memory; and two windows for
//! misdeeds that devices' memory type or EL1's own rights would stop before they reach the second stage.

/// The device gigabyte once more, as uncached ordinary memory: unaligned accesses pass stage 1 here.
pub const DEVICES_AS_MEMORY: u64 = 511 << 30;
/// The first gigabyte of memory once more, for EL0; low enough for AArch32.
pub const USER: u64 = 3 << 30;
/// Where memory begins; what [`USER`] shows.
pub const MEMORY: u64 = 1 << 30;

/// Attribute 0 Device-nGnRE, 1 write-back, 2 uncached.
pub const MAIR: u64 = 0x44_ff_04;
/// 39-bit addresses in TTBR0, 4 KiB granule, walks cached and inner shareable; TTBR1 off.
pub const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// MMU and caches on, everything else as the reserved-one bits of Armv8.0 say.
pub const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12;

/// A level-1 table.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Table([u64; 512]);

const BLOCK: u64 = 1 | 1 << 10;
const NEVER_EXECUTE: u64 = 3 << 53;
const INNER_SHAREABLE: u64 = 3 << 8;
const USER_ACCESS: u64 = 1 << 6;

/// The only table; it never changes, so every CPU can use it from its first load on.
pub static TABLE: Table = Table(entries());

const fn entries() -> [u64; 512] {
    let mut entries = [0; 512];
    let mut index = 1;
    while index < 511 {
        entries[index] = (index as u64) << 30 | BLOCK | INNER_SHAREABLE | 1 << 2;
        index += 1;
    }
    entries[0] = BLOCK | NEVER_EXECUTE;
    entries[(USER >> 30) as usize] = MEMORY | BLOCK | INNER_SHAREABLE | 1 << 2 | USER_ACCESS;
    entries[511] = BLOCK | NEVER_EXECUTE | 2 << 2;
    entries
}
