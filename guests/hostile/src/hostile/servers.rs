// SPDX-License-Identifier: MIT OR Apache-2.0
//! Asks for what only servers made for tests do: `how=` says whether its server crashes (0), spins (1), sleeps (2) or
//! ends (3). Those that are shipped know nothing of it. With `at=` (milliseconds on the machine's clock) it waits till
//! then; when it is later already, it has asked in an earlier life and asks no more.

use trellis_guest_platform::fault::attempt;
use trellis_guest_platform::{Machine, cpu, println, timer};

use super::Outcome;

/// A number of the range that belongs to hypervisors' vendors.
const WORD: u64 = 0xc600_0bad;
/// Pages that are neither memory nor a device.
const PAGES: u64 = 0x6660_0000;

pub(super) fn spoil_vcpu(machine: &'static Machine) -> Outcome {
    let Some(how) = turn(machine) else { return Ok(()) };
    match cpu::hvc([WORD, how, 0, 0])[0] as i32 {
        -1 => Ok(()),
        _ => Err("an unknown function was not answered -1"),
    }
}

pub(super) fn spoil_p2m(machine: &'static Machine) -> Outcome {
    let Some(how) = turn(machine) else { return Ok(()) };
    // SAFETY: no memory that Rust knows of; where the read faults, it is skipped.
    match attempt(|| unsafe { ((PAGES + how * 4096) as *const u64).read_volatile() }) {
        Ok(_) => Err("something was read where nothing is"),
        Err(_) => Ok(()),
    }
}

/// How, when it is time to ask at all.
fn turn(machine: &Machine) -> Option<u64> {
    let arguments = machine.arguments();
    let at = timer::microseconds(arguments.number("at", 0) * 1_000);
    if arguments.value("at").is_some() {
        if cpu::counter() >= at {
            println!("nothing is asked again");
            return None;
        }
        while cpu::counter() < at {
            core::hint::spin_loop();
        }
    }
    Some(arguments.number("how", 0))
}
