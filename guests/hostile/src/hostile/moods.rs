// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misdeeds of leaving EL1 registers at their worst when exiting to a server that runs at EL0 under them.

use core::arch::asm;

use trellis_guest_platform::fault::{attempt, execute, expect_steps};
use trellis_guest_platform::{Machine, cpu, println, psci, read_register, timer, uart, write_register};

use super::Outcome;

/// PL011's first identification register.
const IDENTITY: u64 = uart::BASE + 0xfe0;
const IDENTITY_VALUE: u64 = 0x11;

/// Sets a register, then exits three ways (hypercall, device read, WFI with the timer due soon), then sets it back.
/// Only registers are used in between, whatever loads and stores would do. Back: PSCI's version, the device's value.
macro_rules! exit_under {
    ($register:literal, $value:expr) => {{
        let normal = read_register!($register);
        let mut version = psci::VERSION;
        let device: u64;
        timer::arm(cpu::counter() + timer::microseconds(50));
        // SAFETY: interrupts are masked, the code is fetched as before, and the register is as before at the end.
        unsafe {
            asm!(concat!("msr ", $register, ", {value}"), "isb", "hvc #0", "ldr {device:w}, [{at}]", "dsb sy", "wfi",
                concat!("msr ", $register, ", {normal}"), "isb", value = in(reg) $value, normal = in(reg) normal,
                device = out(reg) device, at = in(reg) IDENTITY, inout("x0") version, out("x1") _, out("x2") _,
                out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _,
                out("x17") _, options(nostack))
        };
        timer::stop();
        trellis_guest_platform::gic::discard();
        (i64::from(version as i32), device)
    }};
}

/// Both answers are as if nothing had been set.
fn check((version, device): (i64, u64), expected: u64) -> Outcome {
    println!("PSCI version {version:#x}, device {device:#x}");
    match (version == psci::version(), device == expected) {
        (true, true) => Ok(()),
        (false, _) => Err("a hypercall was answered otherwise than before"),
        (_, false) => Err("a device read was answered otherwise than before"),
    }
}

const SCTLR_MMU: u64 = 1;
const SCTLR_E0E: u64 = 1 << 24;
const SCTLR_EE: u64 = 1 << 25;

pub(super) fn big_endian(_: &'static Machine) -> Outcome {
    let normal = read_register!("sctlr_el1");
    check(exit_under!("sctlr_el1", normal | SCTLR_E0E), IDENTITY_VALUE)?;
    // EE turns the walks of the map too, which is little-endian: without the MMU.
    let turned = (normal | SCTLR_E0E | SCTLR_EE) & !SCTLR_MMU;
    check(exit_under!("sctlr_el1", turned), u64::from((IDENTITY_VALUE as u32).swap_bytes()))
}

pub(super) fn alignment_faults(_: &'static Machine) -> Outcome {
    let strict = read_register!("sctlr_el1") | 1 << 1 | 1 << 3 | 1 << 4;
    check(exit_under!("sctlr_el1", strict), IDENTITY_VALUE)?;
    let place = [0u64; 2];
    let normal = read_register!("sctlr_el1");
    write_register!("sctlr_el1", strict);
    let unaligned = attempt(|| {
        // SAFETY: within `place`; it faults.
        unsafe { asm!("ldr {0}, [{1}]", out(reg) _, in(reg) place.as_ptr() as u64 + 1, options(nostack)) };
    });
    write_register!("sctlr_el1", normal);
    if unaligned.is_err() { Ok(()) } else { Err("SCTLR_EL1.A has no effect") }
}

const MDSCR_SS: u64 = 1;
const MDSCR_KDE: u64 = 1 << 13;
const MDSCR_MDE: u64 = 1 << 15;

/// Debug exceptions need the OS lock open.
fn open_lock() {
    write_register!("oslar_el1", 0);
}

pub(super) fn software_step(_: &'static Machine) -> Outcome {
    open_lock();
    let all = MDSCR_SS | MDSCR_KDE | MDSCR_MDE;
    check(exit_under!("mdscr_el1", all), IDENTITY_VALUE)?;
    expect_steps(8);
    let mut version = psci::VERSION;
    // SAFETY: each step comes back here; the handler turns stepping off after eight of them.
    unsafe {
        asm!("msr mdscr_el1, {all}", "isb", "msr daifclr, #8", "nop", "nop", "hvc #0", "ldr {device:w}, [{at}]", "nop",
            "nop", "nop", "nop", "nop", "msr daifset, #8", "msr mdscr_el1, xzr", "isb", all = in(reg) all,
            device = out(reg) _, at = in(reg) IDENTITY, inout("x0") version, out("x1") _, out("x2") _, out("x3") _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack))
    };
    println!("{} steps across a hypercall and a device read", expect_steps(0));
    match i64::from(version as i32) == psci::version() {
        true => Ok(()),
        false => Err("a stepped hypercall was answered otherwise"),
    }
}

pub(super) fn watchpoints(_: &'static Machine) -> Outcome {
    open_lock();
    // Enabled, EL0 and EL1 (and EL2 in the second round), loads and stores, 2 GiB from 0; a breakpoint at the address
    // where this project links its servers.
    for higher in [0, 1 << 13] {
        write_register!("dbgwvr0_el1", 0);
        write_register!("dbgwcr0_el1", 1 | 3 << 1 | 3 << 3 | 0xff << 5 | 31 << 24 | higher);
        write_register!("dbgbvr0_el1", 0x20_0000);
        write_register!("dbgbcr0_el1", 1 | 3 << 1 | 0xf << 5 | higher);
        let result = check(exit_under!("mdscr_el1", MDSCR_KDE | MDSCR_MDE), IDENTITY_VALUE);
        write_register!("dbgwcr0_el1", 0);
        write_register!("dbgbcr0_el1", 0);
        result?;
    }
    println!("own watchpoint: {}", if own_watchpoint() { "came" } else { "never came" });
    Ok(())
}

/// A watchpoint for EL1 itself.
fn own_watchpoint() -> bool {
    let place = 0u64;
    write_register!("dbgwvr0_el1", &raw const place as u64);
    write_register!("dbgwcr0_el1", 1 | 1 << 1 | 3 << 3 | 0xff << 5);
    write_register!("mdscr_el1", MDSCR_KDE | MDSCR_MDE);
    let result = attempt(|| {
        // SAFETY: reads a local, with debug exceptions let in for this one instruction.
        unsafe {
            asm!("msr daifclr, #8", "ldr {0}, [{1}]", "msr daifset, #8", out(reg) _, in(reg) &raw const place,
                options(nostack))
        };
    });
    write_register!("mdscr_el1", 0);
    write_register!("dbgwcr0_el1", 0);
    result.is_err_and(|fault| fault.class() == 0x35)
}

/// Nothing let through, then nothing let through and an event at every tick.
pub(super) fn trap_clock(_: &'static Machine) -> Outcome {
    check(exit_under!("cntkctl_el1", 0u64), IDENTITY_VALUE)?;
    check(exit_under!("cntkctl_el1", 1u64 << 2), IDENTITY_VALUE)
}

/// `fmov d0, d0`.
const FLOATING_POINT: u32 = 0x1e60_4000;

pub(super) fn cpacr_off(_: &'static Machine) -> Outcome {
    check(exit_under!("cpacr_el1", 0u64), IDENTITY_VALUE)?;
    match execute(FLOATING_POINT, 0, 0) {
        Err(fault) if fault.class() == 7 => Ok(()),
        Err(_) => Err("floating point was refused in another way than CPACR_EL1 says"),
        Ok(_) => Err("floating point was not refused"),
    }
}

pub(super) fn fp_use(machine: &'static Machine) -> Outcome {
    write_register!("cpacr_el1", 3 << 20);
    let mut outcome = Ok(());
    for pass in 0..machine.arguments().number("loops", 100) {
        if !keeps_vectors(pass) {
            outcome = Err("a vector register changed across an exit");
        }
    }
    write_register!("cpacr_el1", 0);
    outcome
}

/// Fills all 32 vector registers, FPCR and FPSR, exits three ways, and looks.
fn keeps_vectors(pass: u64) -> bool {
    let before: [u128; 32] = core::array::from_fn(|at| (u128::from(pass) << 64 | at as u128) * 0x0101_0101_0101_0101);
    let mut after = [0u128; 32];
    let (control, status) = (3u64 << 22, 1u64 << 27 | 0x1f);
    let (control_after, status_after): (u64, u64);
    timer::arm(cpu::counter() + timer::microseconds(20));
    macro_rules! all {
        ($instruction:literal) => {
            concat!(
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n",
                $instruction,
                "\n.endr"
            )
        };
    }
    // SAFETY: loads from and stores to the two arrays; this program is compiled without vector registers, so nobody
    // else's values are in them.
    unsafe {
        asm!(".arch_extension fp", ".arch_extension simd", all!("ldr q\\n, [{before}, #16*\\n]"),
            "msr fpcr, {control}", "msr fpsr, {status}", "hvc #0", "ldr {control:w}, [{at}]", "dsb sy", "wfi",
            "mrs {control}, fpcr", "mrs {status}, fpsr", "msr fpcr, xzr", all!("str q\\n, [{after}, #16*\\n]"),
            before = in(reg) before.as_ptr(), after = in(reg) after.as_mut_ptr(), at = in(reg) IDENTITY,
            control = inout(reg) control => control_after, status = inout(reg) status => status_after,
            inout("x0") psci::VERSION => _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
            out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack))
    };
    timer::stop();
    trellis_guest_platform::gic::discard();
    before == after && control_after == control && status_after == status
}
