// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses of exactly one instruction each: what the compiler would make of a volatile access is its own business.
//!
//! All of them go to pages behind the program and its stacks, which the map covers and nothing of Rust's is in.

use core::arch::asm;

macro_rules! store {
    ($name:ident, $instruction:literal, $doc:literal) => {
        #[doc = $doc]
        #[inline(always)]
        pub fn $name(address: u64, value: u64) {
            // SAFETY: see the file's head.
            unsafe { asm!($instruction, v = in(reg) value, a = in(reg) address, options(nostack, preserves_flags)) };
        }
    };
}

store!(store_8, "strb {v:w}, [{a}]", "One byte.");
store!(store_16, "strh {v:w}, [{a}]", "Two bytes.");
store!(store_32, "str {v:w}, [{a}]", "Four bytes.");
store!(store_64, "str {v:x}, [{a}]", "Eight bytes.");
store!(store_pair, "stp {v:x}, {v:x}, [{a}]", "The same eight bytes twice, by one instruction.");

/// Eight bytes; back comes the address behind them, which the instruction made.
#[inline(always)]
pub fn store_and_go_on(address: u64, value: u64) -> u64 {
    let mut next = address;
    // SAFETY: see the file's head.
    unsafe { asm!("str {v:x}, [{a}], #8", v = in(reg) value, a = inout(reg) next, options(nostack, preserves_flags)) };
    next
}

/// Reads eight bytes.
#[inline(always)]
pub fn load(address: u64) -> u64 {
    let value;
    // SAFETY: see the file's head.
    unsafe { asm!("ldr {v:x}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Adds one to eight bytes by an exclusive load and store, as often as it takes. Back: how many tries that were.
#[inline(always)]
pub fn add_exclusively(address: u64, most: u64) -> u64 {
    let mut tries = 0;
    let mut failed: u64 = 1;
    while failed != 0 && tries < most {
        tries += 1;
        // SAFETY: see the file's head.
        unsafe {
            asm!("ldxr {v:x}, [{a}]", "add {v:x}, {v:x}, #1", "stxr {f:w}, {v:x}, [{a}]",
                v = out(reg) _, f = out(reg) failed, a = in(reg) address, options(nostack, preserves_flags))
        };
    }
    if failed != 0 { u64::MAX } else { tries }
}

/// Adds to eight bytes by one instruction (LDADD: FEAT_LSE). Back: what was there.
#[inline(always)]
pub fn add_at_once(address: u64, more: u64) -> u64 {
    let before;
    // SAFETY: see the file's head; callers have looked whether the instruction is there.
    unsafe {
        asm!(".arch_extension lse", "ldadd {m:x}, {v:x}, [{a}]",
            m = in(reg) more, v = out(reg) before, a = in(reg) address, options(nostack, preserves_flags))
    };
    before
}
