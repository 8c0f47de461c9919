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
fn two_guests_say_hello_on_boards_with_gicv2() {
    for board in ["virt-gicv2", "raspi4b"] {
        let run = trellis_cli::run::Run { board: Some(board.into()), ..story::of("hello.toml", LIMIT) };
        let seen = story::seen(&run, &[]);
        seen.expect_good_end();
        seen.expect(seen.guests_with(|text| text.contains("1 of 1 CPUs finished")) == ["one", "two"], board);
    }
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

#[test]
fn a_trace_shows_each_cpu_from_its_first_record_to_the_end() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("hello-trace.txt");
    let trace = Some(file.clone());
    let seen = story::seen(&trellis_cli::run::Run { icount: true, trace, ..story::of("hello.toml", LIMIT) }, &[]);
    seen.expect_good_end();
    let text = std::fs::read_to_string(&file).expect("the trace is there");
    for part in ["CPU 0  root runs", "p2m.one (thread", "one vCPU 0 stops for HVC", "two vCPU 0 stops for a data access", "the kernel's alarm"] {
        assert!(text.contains(part), "{part} is in the trace:\n{text}");
    }
    seen.expect(!text.contains("are lost"), "nothing is lost in so small a system");
    let times: Vec<f64> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    seen.expect(times.len() > 100 && times.windows(2).all(|pair| pair[0] <= pair[1]), "records are by time");
}

/// Programs of the board and all: nothing of the host or of the hour is in an image.
#[test]
fn an_image_that_is_made_again_is_the_same_to_the_byte() {
    let make = || {
        let host = trellis_cli::system::Host::default();
        let system = trellis_cli::system::load(&story::manifest("hello.toml"), None, &host).expect("a good manifest");
        host.compose(&system).expect("an image")
    };
    assert!(make() == make());
}
