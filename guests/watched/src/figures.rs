// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a watched access costs, from the instruction that is watched to the one behind it.

use core::arch::asm;

use trellis_guest_platform::figure::mean_without_loop;
use trellis_guest_platform::{cpu, println};

/// Instructions of a pass that are not the access: the count and the way back.
const LOOP: u64 = 2;

/// Ticks that so many stores take in all.
fn stores(address: u64, passes: u64) -> u64 {
    let ticks: u64;
    // SAFETY: the page lies behind the program, see `memory`.
    unsafe {
        asm!("isb", "mrs {begin}, cntvct_el0", "2:", "str xzr, [{address}]", "subs {left}, {left}, #1", "b.ne 2b", "isb",
            "mrs {end}, cntvct_el0", "sub {end}, {end}, {begin}",
            begin = out(reg) _, left = inout(reg) passes => _, end = out(reg) ticks, address = in(reg) address,
            options(nostack));
    }
    ticks
}

/// Requests that a monitor's ring takes without anybody reading it, with the one that is there already.
const FITTING: u64 = 31;

/// What a guest has in `x0` when it asks its monitor.
const REQUEST: u64 = 0xc600_0001;

/// Ticks that so many requests to the monitor take in all.
fn requests(passes: u64) -> u64 {
    let ticks: u64;
    // SAFETY: the call changes x0 alone.
    unsafe {
        asm!("isb", "mrs {begin}, cntvct_el0", "2:", "mov x0, {request}", "hvc #0", "subs {left}, {left}, #1", "b.ne 2b", "isb",
            "mrs {end}, cntvct_el0", "sub {end}, {end}, {begin}",
            begin = out(reg) _, left = inout(reg) passes => _, end = out(reg) ticks, request = in(reg) REQUEST,
            out("x0") _, options(nostack));
    }
    ticks
}

/// Prints the figures: a store that is denied is the way there and back and nothing else; one that is allowed, or that is
/// reported, is executed on the way; a request that is reported is the event alone.
pub fn print(allowed: u64, denied: u64, reported: u64, passes: u64) {
    let unit = if cpu::frequency() == 1_000_000_000 { "instructions" } else { "ticks" };
    for (name, address) in [("event_sync_roundtrip", denied), ("event_allowed", allowed), ("event_reported", reported)] {
        // The first one finds nothing where the others find it.
        stores(address, 1);
        let mean = mean_without_loop(stores(address, passes), LOOP * passes, passes);
        println!("figure {name} {mean} {unit}");
    }
    // The first wakes the reader; so many more find room, and what comes behind them is counted.
    requests(1);
    for (name, passes) in [("event_async", FITTING), ("event_overflow", passes)] {
        let mean = mean_without_loop(requests(passes), (LOOP + 1) * passes, passes);
        println!("figure {name} {mean} {unit}");
    }
}
