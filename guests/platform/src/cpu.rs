// SPDX-License-Identifier: MIT OR Apache-2.0
//! This CPU: its registers, its counter, its interrupt mask, and the two doors to whoever is below.

use core::arch::asm;

/// Reads a system register by name.
#[macro_export]
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register of EL1 changes no memory; a register that is not there ends in `fault`.
        unsafe { ::core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register by name and synchronises.
#[macro_export]
macro_rules! write_register {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the caller writes registers whose effect this program is made for; none moves its map or stack.
        unsafe {
            ::core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack, preserves_flags))
        };
    }};
}

/// Index of this CPU (0 = the one that booted).
pub fn index() -> usize {
    (read_register!("tpidr_el1") as usize) % crate::tree::MAX_CPUS
}

/// Affinity of this CPU, as PSCI wants it.
pub fn affinity() -> u64 {
    read_register!("mpidr_el1") & 0xff_00ff_ffff
}

/// The virtual counter, not before what comes earlier in the program.
#[inline(always)]
pub fn counter() -> u64 {
    let value: u64;
    // SAFETY: reads the counter only.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, preserves_flags)) };
    value
}

/// Ticks of the counter in a second.
pub fn frequency() -> u64 {
    read_register!("cntfrq_el0")
}

/// Waits for an interrupt; a masked one wakes too.
#[inline(always)]
pub fn wait_for_interrupt() {
    // SAFETY: only waits.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Lets interrupts in.
#[inline(always)]
pub fn unmask() {
    // SAFETY: the vectors are set up before any Rust runs.
    unsafe { asm!("msr daifclr, #2", options(nostack, preserves_flags)) };
}

/// Keeps interrupts out.
#[inline(always)]
pub fn mask() {
    // SAFETY: delays interrupts only.
    unsafe { asm!("msr daifset, #2", options(nostack, preserves_flags)) };
}

/// Sleeps with interrupts let in until `done` says so; never misses the interrupt that makes it say so.
pub fn sleep_until(mut done: impl FnMut() -> bool) {
    loop {
        mask();
        let is_done = done();
        if !is_done {
            wait_for_interrupt();
        }
        unmask();
        if is_done {
            return;
        }
    }
}

/// HVC by the SMC calling convention.
pub fn hvc(arguments: [u64; 4]) -> [u64; 4] {
    let [mut x0, mut x1, mut x2, mut x3] = arguments;
    // SAFETY: a call may change what the convention says (x0-x17, listed) and memory the caller gave it; asm! without
    // `nomem` allows that.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3, out("x4") _, out("x5") _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack))
    };
    [x0, x1, x2, x3]
}

/// SMC by the SMC calling convention.
pub fn smc(arguments: [u64; 4]) -> [u64; 4] {
    let [mut x0, mut x1, mut x2, mut x3] = arguments;
    // SAFETY: as for `hvc`.
    unsafe {
        asm!("smc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3, out("x4") _, out("x5") _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack))
    };
    [x0, x1, x2, x3]
}

/// A 32-bit read from a device.
#[inline(always)]
pub fn device_read(address: u64) -> u32 {
    let value: u32;
    // SAFETY: callers name device registers of the platform, in the device part of the map: no Rust object is there.
    // Plain `ldr` with a base register only, so that the syndrome of an emulated access is valid.
    unsafe { asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// A 32-bit write to a device.
#[inline(always)]
pub fn device_write(address: u64, value: u32) {
    // SAFETY: as for `device_read`.
    unsafe { asm!("str {0:w}, [{1}]", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
}
