// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of figures, and how each is printed: `figure NAME VALUE instructions`, or `figure NAME skipped: WHY`.
//!
//! The counter ticks once an instruction when the emulator runs with `-icount shift=0,sleep=off` and 1 GHz; otherwise
//! the unit says `ticks`. On the command line: `passes=` (1000), `stride=` and `pages=` of `fault_p2m_map`,
//! `only=NAME`.

mod exits;
mod interrupts;
mod processors;

use trellis_guest_platform::{Machine, cpu, guest, println};

/// A figure, or why there is none.
type Figure = Result<u64, &'static str>;

/// How a figure is measured: the machine and how many passes.
type Measure = fn(&'static Machine, u64) -> Figure;

/// All figures, those that need a second CPU last.
const FIGURES: [(&str, Measure); 8] = [
    ("exit_hvc_server", exits::hypercall),
    ("mmio_read_server", exits::device_read),
    ("fault_p2m_map", exits::first_touch),
    ("vtimer_to_handler", interrupts::timer_to_handler),
    ("sgi_self", interrupts::sgi_to_self),
    ("wfi_timer", interrupts::wait_for_timer),
    ("cpu_on", processors::start),
    ("sgi_roundtrip_wfi", processors::round_trip),
];

guest!(run);

fn run(machine: &'static Machine) {
    let arguments = machine.arguments();
    let passes = arguments.number("passes", 1_000).max(1);
    let only = arguments.value("only");
    println!("probe: counter {} Hz, {} CPUs, {passes} passes", cpu::frequency(), machine.cpus());
    let unit = if cpu::frequency() == 1_000_000_000 { "instructions" } else { "ticks" };
    for (name, measure) in FIGURES {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        match measure(machine, passes) {
            Ok(value) => println!("figure {name} {value} {unit}"),
            Err(reason) => println!("figure {name} skipped: {reason}"),
        }
    }
    println!("probe: done");
}
