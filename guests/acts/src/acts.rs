// SPDX-License-Identifier: MIT OR Apache-2.0
//! The acts. Command line: `do=` which of them, with commas between; all but `written-code` unless it says so.

use core::arch::asm;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, Ordering};

use trellis_guest_platform::fault::attempt;
use trellis_guest_platform::{Machine, cpu, guest, println, psci, read_register, write_register};

use crate::code;

/// What the guest asks its monitor (a vendor's hypervisor service, 64-bit; idl's `REQUEST`).
const REQUEST: u64 = 0xc600_0001;
/// MDSCR_EL1: breakpoints are on (MDE), at the kernel's own level too (KDE) (Arm ARM D24.3.22).
const BREAKPOINTS_ON: u64 = 1 << 15 | 1 << 13;
/// DBGBCR0_EL1: on, at EL1, all four bytes (Arm ARM D24.3.2).
const AT_EL1: u64 = 1 | 1 << 1 | 0xf << 5;

/// Every act, by name.
const ACTS: [(&str, fn(&'static Machine)); 11] = [
    ("registers", registers), ("identity", identity), ("smc", firmware), ("hvc", hypervisor), ("request", request),
    ("breakpoint", breakpoint), ("debug", debug), ("power", power), ("store", store), ("code", code), ("count", count),
];

static STARTED: AtomicBool = AtomicBool::new(false);

guest!(run);

fn run(machine: &'static Machine) {
    let wanted = machine.arguments().value("do");
    for (name, act) in ACTS {
        if wanted.is_none_or(|wanted| wanted.split(',').any(|word| word == name)) {
            act(machine);
        }
    }
    if wanted.is_some_and(|wanted| wanted.split(',').any(|word| word == "written-code")) {
        written_code();
    }
    println!("acts: done");
}

/// What an act came to.
fn say(act: &str, what: impl Display) {
    println!("acts: {act}: {what}");
}

fn registers(_: &'static Machine) {
    let tables = read_register!("ttbr0_el1");
    for value in [tables, tables | 1 << 48, tables] {
        write_register!("ttbr0_el1", value);
    }
    say("ttbr0", if read_register!("ttbr0_el1") == tables { "as it was" } else { "changed" });
    write_register!("contextidr_el1", 0x77);
    say("contextidr", format_args!("{:#x}", read_register!("contextidr_el1")));
    let (control, attributes, translation) = (read_register!("sctlr_el1"), read_register!("mair_el1"), read_register!("tcr_el1"));
    // UCI: cache maintenance by the user level, of which there is none.
    write_register!("sctlr_el1", control ^ 1 << 26);
    say("sctlr", if read_register!("sctlr_el1") == control { "as it was" } else { "changed" });
    write_register!("sctlr_el1", control);
    write_register!("mair_el1", attributes);
    write_register!("tcr_el1", translation);
}

fn identity(_: &'static Machine) {
    say("id_aa64pfr0", format_args!("{:#x}", read_register!("id_aa64pfr0_el1")));
}

fn firmware(_: &'static Machine) {
    match attempt(|| cpu::smc([psci::VERSION, 0, 0, 0])) {
        Ok([version, ..]) => say("smc", format_args!("{version:#x}")),
        Err(fault) => say("smc", fault),
    }
}

fn hypervisor(_: &'static Machine) {
    say("hvc", format_args!("{:#x}", psci::version()));
}

fn request(_: &'static Machine) {
    say("request", cpu::hvc([REQUEST, 7, 0, 0])[0] as i64);
}

fn breakpoint(_: &'static Machine) {
    // SAFETY: whoever gets the exception goes on behind the instruction.
    match attempt(|| unsafe { asm!("brk #0x77", options(nostack)) }) {
        Ok(()) => say("breakpoint", "skipped"),
        Err(fault) => say("breakpoint", format_args!("class {:#x}", fault.class())),
    }
}

/// A hardware breakpoint of the guest's own, at a function that it then calls.
fn debug(_: &'static Machine) {
    write_register!("dbgbvr0_el1", here as *const () as u64);
    write_register!("dbgbcr0_el1", AT_EL1);
    write_register!("mdscr_el1", BREAKPOINTS_ON);
    let met = attempt(|| {
        // SAFETY: debug exceptions go to this program's own vectors.
        unsafe { asm!("msr daifclr, #8", options(nostack)) };
        here();
        // SAFETY: as above.
        unsafe { asm!("msr daifset, #8", options(nostack)) };
    });
    write_register!("mdscr_el1", 0);
    write_register!("dbgbcr0_el1", 0);
    match met {
        Ok(()) => say("debug", "nothing"),
        Err(fault) => say("debug", format_args!("class {:#x}", fault.class())),
    }
}

/// Its first instruction is skipped when the breakpoint has been met, so it begins with one that does nothing.
#[unsafe(naked)]
extern "C" fn here() {
    core::arch::naked_asm!("nop", "ret")
}

fn power(machine: &'static Machine) {
    if machine.cpus() < 2 {
        return say("power", "alone");
    }
    let status = machine.start(1, other);
    while status == psci::SUCCESS && !STARTED.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    say("power", status);
}

fn other(_: &'static Machine, _: usize, _: u64) {
    STARTED.store(true, Ordering::Release);
}

fn store(_: &'static Machine) {
    match attempt(code::store) {
        Ok(found) => say("store", format_args!("{found:#x}")),
        Err(fault) => say("store", fault),
    }
}

/// Executes what was put there before.
fn code(_: &'static Machine) {
    code::put_seven(code::PLAIN);
    match attempt(|| code::call(code::PLAIN)) {
        Ok(value) => say("code", value),
        Err(fault) => say("code", fault),
    }
}

/// Counts by exclusive accesses, in code that may be watched.
fn count(_: &'static Machine) {
    code::put_counter();
    say("count", format_args!("{} {} {}", code::count(), code::count(), code::count()));
}

/// Writes what it has executed.
fn written_code() {
    match attempt(code::rewrite_start) {
        Ok(()) => say("written-code", "written"),
        Err(fault) => say("written-code", fault),
    }
}
