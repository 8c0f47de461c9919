// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first thing a user does: two unikernels beside each other.

use std::time::Duration;
use trellis_boot_tests::story;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn two_guests_say_hello_and_end_well() {
    let seen = story::seen(&story::of("hello.toml", LIMIT), &[]);
    seen.expect_good_end();
    let greeters = seen.guests_with(|text| text.to_lowercase().contains("hello")).len();
    seen.expect(greeters == 2, "both guests say hello");
}

#[test]
fn a_run_by_instruction_count_repeats_to_the_letter() {
    let run = trellis_cli::run::Run { icount: true, ..story::of("hello.toml", LIMIT) };
    let (first, second) = (story::seen(&run, &[]), story::seen(&run, &[]));
    first.expect_good_end();
    second.expect_good_end();
    assert_eq!((first.out, first.log), (second.out, second.log));
    assert_eq!(first.outcome, second.outcome);
}

#[test]
fn every_cpu_model_of_the_board_runs_it() {
    for cpu in ["cortex-a72", "neoverse-n1", "neoverse-v1", "max"] {
        let run = trellis_cli::run::Run { cpu: Some(cpu.into()), ..story::of("hello.toml", LIMIT) };
        let seen = story::seen(&run, &[]);
        seen.expect(seen.outcome.status == trellis_cli::status::Status::Well, cpu);
    }
}
