// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of system calls, exits and interrupts against the laws of `trellis_hosted::laws`.
//!
//! `TRELLIS_LAWS` = how many sequences (1,000 unless told), shared out over machines with one, two, four and eight CPUs.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::Cell;
use std::io::Write;
use trellis_hosted::action::{self, Step};
use trellis_hosted::{Settings, laws, small};

/// Steps of a sequence.
const LENGTH: usize = 60;
/// Kinds of machines that share the sequences.
const MACHINES: u32 = 4;
/// A long campaign says how far it is after so many.
const PACE: u32 = 2500;

fn sequences() -> u32 {
    std::env::var("TRELLIS_LAWS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000)
}

fn step() -> impl Strategy<Value = Step> {
    (any::<u8>(), any::<u8>(), any::<u8>(), any::<[u16; 6]>(), any::<u64>())
        .prop_map(|(cpu, what, op, choice, word)| Step { cpu, what, op, choice, word })
}

fn hold_on(cpus: u16) {
    let cases = sequences() / MACHINES;
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let done = Cell::new(0);
    let result = TestRunner::new(config).run(&proptest::collection::vec(step(), 1..LENGTH), |steps| {
        let mut hosted = small::running(Settings { cpus, ..Settings::default() });
        for step in &steps {
            action::take(&mut hosted, step).map_err(TestCaseError::fail)?;
        }
        laws::full(&hosted).map_err(TestCaseError::fail)?;
        done.set(done.get() + 1);
        if done.get() % PACE == 0 {
            // Past the test runner, which keeps what tests print until they fail. It matters to nobody else.
            let _ = writeln!(std::io::stderr(), "laws on {cpus} CPUs: {} of {cases} sequences", done.get());
        }
        Ok(())
    });
    if let Err(broken) = result {
        panic!("{broken}");
    }
}

#[test]
fn the_laws_hold_on_one_cpu() {
    hold_on(1);
}

#[test]
fn the_laws_hold_on_two_cpus() {
    hold_on(2);
}

#[test]
fn the_laws_hold_on_four_cpus() {
    hold_on(4);
}

#[test]
fn the_laws_hold_on_eight_cpus() {
    hold_on(8);
}
