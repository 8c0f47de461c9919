// SPDX-License-Identifier: MIT OR Apache-2.0
//! PSCI by HVC, and the ways a guest ends.

use crate::cpu;

/// Function number of PSCI_VERSION.
pub const VERSION: u64 = 0x8400_0000;
/// Done.
pub const SUCCESS: i64 = 0;
/// That function does not exist.
pub const NOT_SUPPORTED: i64 = -1;
/// The CPU runs already.
pub const ALREADY_ON: i64 = -4;
/// The CPU is being started.
pub const ON_PENDING: i64 = -5;
/// What AFFINITY_INFO says of a CPU that is off.
pub const OFF: i64 = 1;

/// Results are 32 bits wide in some versions: sign-extended here.
fn call(arguments: [u64; 4]) -> i64 {
    i64::from(cpu::hvc(arguments)[0] as i32)
}

/// Version, major in the upper half.
pub fn version() -> i64 {
    call([VERSION, 0, 0, 0])
}

/// Starts the CPU with this affinity at `entry`, `context` in its x0.
pub fn cpu_on(affinity: u64, entry: u64, context: u64) -> i64 {
    call([0xc400_0003, affinity, entry, context])
}

/// 0 on, 1 off, 2 being started.
pub fn affinity_info(affinity: u64) -> i64 {
    call([0xc400_0004, affinity, 0, 0])
}

/// This CPU ends.
pub fn cpu_off() -> ! {
    call([0x8400_0002, 0, 0, 0]);
    stop()
}

/// The guest ends.
pub fn system_off() -> ! {
    crate::uart::drain();
    call([0x8400_0008, 0, 0, 0]);
    stop()
}

/// The guest starts again.
pub fn system_reset() -> ! {
    crate::uart::drain();
    call([0x8400_0009, 0, 0, 0]);
    stop()
}

/// Where a call ends up that was not to come back.
fn stop() -> ! {
    loop {
        cpu::mask();
        cpu::wait_for_interrupt();
    }
}
