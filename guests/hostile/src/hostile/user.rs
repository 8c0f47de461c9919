// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of one or two instructions at EL0, in both instruction sets: where the hypervisor cannot forbid AArch32
//! it must know its exceptions.

use core::cell::UnsafeCell;

use trellis_guest_platform::fault::run_at_el0;
use trellis_guest_platform::{Machine, map, println, read_register};

use super::Outcome;

/// PSTATE of EL0 with interrupts masked.
const AARCH64: u64 = 0x3c0;
const AARCH32: u64 = 0x1d0;

/// Two instructions of a user program.
#[repr(align(64))]
struct Program(UnsafeCell<[u32; 2]>);

// SAFETY: only the boot CPU writes and runs it.
unsafe impl Sync for Program {}

static PROGRAM: Program = Program(UnsafeCell::new([0; 2]));

/// What, first instruction, second instruction (most programs end at the first).
type Case = (&'static str, [u32; 2]);

const CASES_64: [Case; 5] = [
    ("svc", [0xd400_0001, 0xd400_0001]),
    ("wfi; svc", [0xd503_207f, 0xd400_0001]),
    ("hvc", [0xd400_0002, 0xd400_0001]),
    ("mrs x0, cntvct_el0; svc", [0xd53b_e040, 0xd400_0001]),
    ("mrs x0, midr_el1; svc", [0xd538_0000, 0xd400_0001]),
];

const CASES_32: [Case; 10] = [
    ("svc", [0xef00_0005, 0xef00_0005]),
    ("wfi; svc", [0xe320_f003, 0xef00_0005]),
    ("bkpt", [0xe120_0070, 0xef00_0005]),
    ("hvc", [0xe140_0070, 0xef00_0005]),
    ("smc", [0xe160_0070, 0xef00_0005]),
    ("mrc p15, 0, r0, c0, c0, 0; svc", [0xee10_0f10, 0xef00_0005]),
    ("mrrc p15, 1, r0, r1, c14; svc", [0xec51_0f1e, 0xef00_0005]),
    ("mrc p14, 0, r0, c0, c1, 0; svc", [0xee10_0e11, 0xef00_0005]),
    ("ldc p14, c5, [r0]; svc", [0xed90_5e00, 0xef00_0005]),
    ("vmov s0, r0; svc", [0xee00_0a10, 0xef00_0005]),
];

pub(super) fn aarch32(_: &'static Machine) -> Outcome {
    for case in &CASES_64 {
        run("AArch64", case, AARCH64)?;
    }
    if read_register!("id_aa64pfr0_el1") & 0xf != 2 {
        println!("no AArch32 here");
        return Ok(());
    }
    narrow()
}

/// Where only the ID registers say that there is no AArch32.
pub(super) fn aarch32_hidden(_: &'static Machine) -> Outcome {
    narrow()
}

fn narrow() -> Outcome {
    for case in &CASES_32 {
        run("AArch32", case, AARCH32)?;
    }
    Ok(())
}

fn run(state: &str, (what, words): &Case, pstate: u64) -> Outcome {
    let program = PROGRAM.0.get();
    // SAFETY: the program is this CPU's; it is made visible to instruction fetch before it runs (Arm ARM B2.4.4).
    unsafe {
        core::arch::asm!("stp {0:w}, {1:w}, [{2}]", "dc cvau, {2}", "dsb ish", "ic ialluis", "dsb ish", "isb",
            in(reg) words[0], in(reg) words[1], in(reg) program, options(nostack))
    };
    match run_at_el0(program as u64 - map::MEMORY + map::USER, pstate) {
        Err(fault) => {
            println!("{state} {what}: {fault}");
            Ok(())
        }
        Ok(()) => Err("EL0 came back without an exception"),
    }
}
