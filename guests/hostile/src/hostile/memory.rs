// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misdeeds of loads, stores, fetches and cache maintenance.

use core::arch::asm;
use core::fmt;

use trellis_guest_platform::fault::{Fault, attempt};
use trellis_guest_platform::{Machine, gic, map, println, read_register, uart, write_register};

use super::Outcome;

/// One access by an instruction written out; `{value}` and `{address}` are its operands. What it faults with, or the
/// value.
macro_rules! access {
    ($instruction:literal, $address:expr, $value:expr) => {
        attempt(|| {
            let mut value: u64 = $value;
            // SAFETY: the address is no memory that Rust knows of, or the store writes what is harmless there.
            unsafe {
                asm!($instruction, "/* {address} {value} */", address = inout(reg) $address => _,
                    value = inout(reg) value, out("x2") _, out("x3") _, options(nostack))
            };
            value
        })
    };
}

/// An instruction without the marks of its operands.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.split(['{', '}']).try_for_each(|piece| out.write_str(piece.trim_end_matches(":w")))
    }
}

fn tell(what: &str, address: u64, result: Result<u64, Fault>) {
    let what = Plain(what);
    match result {
        Ok(value) => println!("{what} at {address:#x}: {value:#x}"),
        Err(fault) => println!("{what} at {address:#x}: {fault}"),
    }
}

/// The addresses but the first `skip=`: each of them may be the guest's last.
fn left<const N: usize>(machine: &Machine, addresses: [u64; N]) -> impl Iterator<Item = u64> {
    addresses.into_iter().skip(machine.arguments().number("skip", 0) as usize)
}

pub(super) fn touch_outside(machine: &'static Machine) -> Outcome {
    let end = machine.tree.memory_base + machine.tree.memory_bytes;
    let addresses = [0, 0x0f00_0000, 0x2000_0000, 0x3fff_f000, end, end + (1 << 30), 1 << 38, 509 << 30];
    for address in left(machine, addresses) {
        tell("read", address, access!("ldr {value}, [{address}]", address, 0));
        tell("write", address, access!("str {value}, [{address}]", address, 0));
    }
    Ok(())
}

pub(super) fn jump_nowhere(machine: &'static Machine) -> Outcome {
    let end = machine.tree.memory_base + machine.tree.memory_bytes;
    for address in left(machine, [end, end + (1 << 30), 1 << 38, end + 2]) {
        tell("call", address, call(address));
    }
    Ok(())
}

/// Stage 1 forbids execution from devices; with the MMU off only the second stage can.
pub(super) fn jump_device(machine: &'static Machine) -> Outcome {
    for address in left(machine, [0x0f00_0000, uart::BASE, gic::DISTRIBUTOR, gic::REDISTRIBUTORS]) {
        let normal = read_register!("sctlr_el1");
        write_register!("sctlr_el1", normal & !1);
        let result = call(address);
        write_register!("sctlr_el1", normal);
        tell("call without MMU", address, result);
    }
    Ok(())
}

fn call(address: u64) -> Result<u64, Fault> {
    attempt(|| {
        // SAFETY: nothing can run there; the fault handler returns to the instruction after the call.
        unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) };
        0
    })
}

pub(super) fn unaligned_device(_: &'static Machine) -> Outcome {
    for window in [0, map::DEVICES_AS_MEMORY] {
        for address in [uart::BASE + 0xfe1, uart::BASE + 0xffd, gic::DISTRIBUTOR + 0x102, gic::REDISTRIBUTORS + 0xd] {
            let address = window + address;
            tell("ldrh", address, access!("ldrh {value:w}, [{address}]", address, 0));
            tell("ldr w", address, access!("ldr {value:w}, [{address}]", address, 0));
            tell("ldr x", address, access!("ldr {value}, [{address}]", address, 0));
        }
        let address = window + gic::DISTRIBUTOR + 0x102;
        tell("strh", address, access!("strh {value:w}, [{address}]", address, 0));
        tell("str w", address, access!("str {value:w}, [{address}]", address, 0));
        tell("str x", address, access!("str {value}, [{address}]", address, 0));
    }
    Ok(())
}

pub(super) fn pair_device(_: &'static Machine) -> Outcome {
    macro_rules! reads {
        ($($instruction:literal)*) => {
            for address in [uart::BASE + 0xfe0, gic::DISTRIBUTOR + 0x100, 0x0a00_0000] {
                $(tell($instruction, address, access!($instruction, address, 0));)*
            }
        };
    }
    reads! {
        "ldp {value:w}, w2, [{address}]" "ldp {value}, x2, [{address}]" "ldpsw {value}, x2, [{address}]"
        "ldnp {value:w}, w2, [{address}]" "ldr {value:w}, [{address}], #4" "ldr {value:w}, [{address}, #4]!"
        "ldrb {value:w}, [{address}]" "ldrsh {value}, [{address}]" "ldr {value}, [{address}]" "ldr wzr, [{address}]"
        "ldtr {value:w}, [{address}]" "ldar {value:w}, [{address}]" "ldarb {value:w}, [{address}]"
        "ldxr {value:w}, [{address}]" "ldaxr {value}, [{address}]" "ldxp {value:w}, w2, [{address}]"
    }
    writes();
    Ok(())
}

/// Zeros to set-enable registers, which change nothing, in every shape.
fn writes() {
    let address = gic::DISTRIBUTOR + 0x108;
    macro_rules! writes {
        ($($instruction:literal)*) => { $(tell($instruction, address, access!($instruction, address, 0));)* };
    }
    writes! {
        "stp wzr, wzr, [{address}]" "stp xzr, xzr, [{address}]" "stnp wzr, wzr, [{address}]"
        "str wzr, [{address}], #4" "str wzr, [{address}, #4]!" "strb wzr, [{address}]" "str xzr, [{address}]"
        "sttr wzr, [{address}]" "stlr wzr, [{address}]" "stlrb wzr, [{address}]" "stxr {value:w}, wzr, [{address}]"
        "stlxr {value:w}, xzr, [{address}]" "stxp {value:w}, wzr, wzr, [{address}]" "dc zva, {address}"
        "dc civac, {address}" "dc ivac, {address}" "prfm pldl1keep, [{address}]" "at s1e1r, {address}"
    }
}

/// CCSIDR_EL1 in its 32-bit format: sets, ways and line of each data or unified cache.
pub(super) fn set_way(_: &'static Machine) -> Outcome {
    let levels = read_register!("clidr_el1");
    let mut lines = 0;
    for level in 0..7 {
        if levels >> (3 * level) & 7 >= 2 {
            write_register!("csselr_el1", level << 1);
            lines += sweep(level, read_register!("ccsidr_el1"));
        }
    }
    println!("{lines} lines");
    Ok(())
}

fn sweep(level: u64, geometry: u64) -> u64 {
    let (line, last_way, last_set) = ((geometry & 7) + 4, geometry >> 3 & 0x3ff, geometry >> 13 & 0x7fff);
    let way_shift = if last_way == 0 { 0 } else { (last_way as u32).leading_zeros() };
    for way in 0..=last_way {
        for set in 0..=last_set {
            let word = way << way_shift | set << line | level << 1;
            // SAFETY: a hypervisor must make the invalidation a clean and invalidation (HCR_EL2.SWIO): if it does
            // not, this guest's own memory is what suffers.
            unsafe { asm!("dc csw, {0}", "dc cisw, {0}", "dc isw, {0}", in(reg) word, options(nostack)) };
        }
    }
    (last_way + 1) * (last_set + 1)
}
