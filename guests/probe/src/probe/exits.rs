// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures of exits that the guest causes by an instruction: a loop with it, less the same loop without it.

use core::arch::asm;

use trellis_guest_platform::figure::mean_without_loop;
use trellis_guest_platform::{Machine, cpu, uart};

use super::Figure;

/// The vendor hypercall that answers its argument plus one.
const ADD_ONE: u64 = 0xc600_0000;

/// A loop around one hypercall; the answer of each pass is the argument of the next. Back: ticks and the last answer.
macro_rules! hypercall_loop {
    ($instruction:literal, $passes:expr) => {{
        let (begin, end, mut last): (u64, u64, u64);
        // SAFETY: a hypercall may change what its convention says, and memory, which asm! without `nomem` allows.
        unsafe {
            asm!("isb", "mrs {begin}, cntvct_el0", "2:", "mov x1, x0", "mov x0, {function}", $instruction,
                "subs {left}, {left}, #1", "b.ne 2b", "isb", "mrs {end}, cntvct_el0",
                begin = out(reg) begin, end = out(reg) end, left = inout(reg) $passes => _, function = in(reg) ADD_ONE,
                inout("x0") 0u64 => last, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _,
                out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
                out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack))
        };
        (end - begin, last)
    }};
}

/// A loop around one access to `{address}`, which moves on by a stride each pass. Back: ticks.
macro_rules! access_loop {
    ($instruction:literal, $passes:expr, $address:expr, $stride:expr) => {{
        let (begin, end): (u64, u64);
        // SAFETY: reads a device register, or stores into memory that `Machine::free_memory` says nobody uses.
        unsafe {
            asm!("isb", "mrs {begin}, cntvct_el0", "2:", $instruction, "add {address}, {address}, {stride}",
                "subs {left}, {left}, #1", "b.ne 2b", "isb", "mrs {end}, cntvct_el0", "/* {value} */",
                begin = out(reg) begin, end = out(reg) end, left = inout(reg) $passes => _,
                address = inout(reg) $address => _, stride = in(reg) $stride, value = out(reg) _, options(nostack))
        };
        end - begin
    }};
}

/// HVC → vcpu server → resume.
pub fn hypercall(_: &'static Machine, passes: u64) -> Figure {
    const PROBE: u64 = 41;
    if cpu::hvc([ADD_ONE, PROBE, 0, 0])[0] != PROBE + 1 {
        return Err("nobody answers hypercall 0xc6000000");
    }
    let (with, last) = hypercall_loop!("hvc #0", passes);
    let (without, _) = hypercall_loop!("", passes);
    if last == passes { Ok(mean_without_loop(with, without, passes)) } else { Err("wrong answers") }
}

/// A read of the serial port's flags.
pub fn device_read(_: &'static Machine, passes: u64) -> Figure {
    let with = access_loop!("ldr {value:w}, [{address}]", passes, uart::FLAGS, 0u64);
    let without = access_loop!("", passes, uart::FLAGS, 0u64);
    Ok(mean_without_loop(with, without, passes))
}

/// One store; back: ticks.
fn store(address: u64, value: u64) -> u64 {
    let (begin, end): (u64, u64);
    // SAFETY: stores into memory that `Machine::free_memory` says nobody uses.
    unsafe {
        asm!("isb", "mrs {begin}, cntvct_el0", "str {value}, [{address}]", "isb", "mrs {end}, cntvct_el0",
            begin = out(reg) begin, end = out(reg) end, value = in(reg) value, address = in(reg) address, options(nostack))
    };
    end - begin
}

/// The first store to each of many pages. Where memory is filled by larger blocks, `stride=` must say so, and then there
/// are few: the middle one of all counts, so that what else happens on this CPU at one of them does not.
pub fn first_touch(machine: &'static Machine, passes: u64) -> Figure {
    const MOST: usize = 128;
    let stride = machine.arguments().number("stride", 4096).max(8) & !7;
    let (from, to) = machine.free_memory();
    let pages = machine.arguments().number("pages", passes).min(to.saturating_sub(from) / stride).min(MOST as u64);
    let (mut first, mut again) = ([0; MOST], [0; MOST]);
    let all = || (0..pages).map(|page| (from + page * stride, page + 1));
    for (samples, pass) in [(&mut first, 0), (&mut again, 1000)] {
        for (sample, (address, value)) in samples.iter_mut().zip(all()) {
            *sample = store(address, value + pass);
        }
    }
    // SAFETY: within `free_memory`, aligned to 8, just written above.
    let kept = all().all(|(address, value)| unsafe { core::ptr::read_volatile(address as *const u64) } == value + 1000);
    let middle = |samples: &mut [u64; MOST]| {
        let samples = samples.get_mut(..pages as usize)?;
        samples.sort_unstable();
        samples.get(samples.len() / 2).copied()
    };
    match (middle(&mut first), middle(&mut again)) {
        (Some(first), Some(again)) if kept => Ok(first.saturating_sub(again)),
        (Some(_), _) => Err("a page lost what was stored"),
        _ => Err("no free memory"),
    }
}
