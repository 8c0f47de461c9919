// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual timer of this CPU.

use crate::{read_register, write_register};

/// Its interrupt.
pub const LINE: u32 = 27;

/// Raises the line when the counter reaches `at`.
#[inline(always)]
pub fn arm(at: u64) {
    write_register!("cntv_cval_el0", at);
    write_register!("cntv_ctl_el0", 1);
}

/// Lowers the line.
#[inline(always)]
pub fn stop() {
    write_register!("cntv_ctl_el0", 0);
}

/// Ticks in so many microseconds, at least one.
pub fn microseconds(count: u64) -> u64 {
    (crate::cpu::frequency() * count / 1_000_000).max(1)
}

/// When the timer is due.
pub fn due() -> u64 {
    read_register!("cntv_cval_el0")
}
