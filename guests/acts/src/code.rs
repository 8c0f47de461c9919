// SPDX-License-Identifier: MIT OR Apache-2.0
//! Code that is put into pages of memory, to be executed there. All of it goes behind the program and its stacks, where the map
//! allows everything and nothing of Rust's is.

use core::arch::asm;

/// Where a function is put that says seven.
pub const PLAIN: u64 = 0x4090_0000;
/// Where one is put that counts.
const COUNTER: u64 = 0x4091_0000;
/// Where the program begins.
const START: u64 = 0x4020_0000;
/// What it counts, and what is stored.
const COUNTED: u64 = 0x4092_0000;

/// One instruction to memory, where fetches find it: clean to the point of unification, invalidate (Arm ARM D7.5).
fn put(address: u64, words: &[u32]) {
    for (at, word) in (address..).step_by(4).zip(words) {
        // SAFETY: see the file's head.
        unsafe {
            asm!("str {v:w}, [{a}]", "dc cvau, {a}", "dsb ish", "ic ivau, {a}", "dsb ish", "isb", v = in(reg) *word, a = in(reg) at,
                options(nostack, preserves_flags));
        }
    }
}

/// `mov x0, #7; ret`.
pub fn put_seven(address: u64) {
    put(address, &[0xd280_00e0, 0xd65f_03c0]);
}

/// `again: ldxr x1, [x0]; add x1, x1, #1; stxr w2, x1, [x0]; cbnz w2, again; mov x0, x1; ret`.
pub fn put_counter() {
    put(COUNTER, &[0xc85f_7c01, 0x9100_0421, 0xc802_7c01, 0x35ff_ffa2, 0xaa01_03e0, 0xd65f_03c0]);
}

/// Calls what was put there.
pub fn call(address: u64) -> u64 {
    call_with(address, COUNTED)
}

/// Counts one up; back comes the count.
pub fn count() -> u64 {
    call_with(COUNTER, COUNTED + 64)
}

fn call_with(address: u64, argument: u64) -> u64 {
    let result;
    // SAFETY: what was put there is a function of the convention that changes x0 to x2.
    unsafe { asm!("blr {f}", f = in(reg) address, inout("x0") argument => result, out("x1") _, out("x2") _, clobber_abi("C")) };
    result
}

/// Writes the program's first instruction, as it is.
pub fn rewrite_start() {
    // SAFETY: the word is the one that is there, and the program is linked to begin there.
    unsafe {
        asm!("ldr {v:w}, [{a}]", "str {v:w}, [{a}]", v = out(reg) _, a = in(reg) START, options(nostack, preserves_flags));
    }
}

/// Stores, and says what is there afterwards.
pub fn store() -> u64 {
    let found;
    // SAFETY: see the file's head.
    unsafe {
        asm!("str {v:x}, [{a}]", "ldr {f:x}, [{a}]", v = in(reg) 0x5eedu64, a = in(reg) COUNTED, f = out(reg) found,
            options(nostack, preserves_flags));
    }
    found
}
