// SPDX-License-Identifier: MIT OR Apache-2.0
//! HVC and SMC: the calling convention (SMCCC 1.1, DEN 0028), PSCI behind it, and one function of our own.
//!
//! A guest reaches the same functions by both instructions, whatever its device tree says.

use crate::psci::{Power, Request, Switched, status};
use trellis_runtime::System;

/// SMCCC_VERSION.
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
const ARCH_FEATURES: u32 = 0x8000_0001;
/// Version 1.1.
const VERSION_1_1: i64 = 0x1_0001;
/// Ours (vendor hypervisor service, 64-bit): x0 = x1 + 1. It measures the way to a server and back.
pub const PING: u64 = 0xc600_0000;

/// Any call but [`PING`]. Numbers that mean nothing answer "not supported".
pub fn answer(
    system: &impl System, power: &Power, caller: u8, immediate: u16, general: [u64; 4], switched: &impl Switched,
) -> Request {
    let [id, first, second, third] = general;
    // A function number is 32 bits wide (2.5); the instruction's own number is zero (2.9).
    let id = id as u32;
    if immediate != 0 {
        return Request::Answer(status::NOT_SUPPORTED);
    }
    match id {
        SMCCC_VERSION => Request::Answer(VERSION_1_1),
        ARCH_FEATURES => Request::Answer(features(first as u32)),
        _ => {
            let done = power.call_telling(system, caller, id, [first, second, third], switched);
            done.unwrap_or(Request::Answer(status::NOT_SUPPORTED))
        }
    }
}

/// Which functions of the architecture's own range exist. The firmware work-arounds do not: the guest then says
/// rightly that it is not protected.
fn features(id: u32) -> i64 {
    if matches!(id, SMCCC_VERSION | ARCH_FEATURES) { status::SUCCESS } else { status::NOT_SUPPORTED }
}
