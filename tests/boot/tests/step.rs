// SPDX-License-Identifier: MIT OR Apache-2.0
//! What views forbid, done one instruction at a time: each access takes effect exactly once, with interrupts coming.

use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;
use trellis_cli::system::STEPPING;

fn steps(change: impl FnOnce(Run) -> Run, atomics: bool) {
    let run = Run { stand_ins: STEPPING, ..story::of("steps.toml", Duration::from_secs(300)) };
    let seen = story::seen(&change(run), &[]);
    seen.expect_good_end();
    let with = |text: &str| seen.guests_with(|line| line.contains(text));
    seen.expect(with("WRONG").is_empty(), "nothing went wrong");
    let rounds = format!("steps: 200 rounds, with atomics: {atomics}");
    for line in ["steps: two CPUs have counted", rounds.as_str(), "steps: 12 were over", "steps: done, enough interrupts"] {
        seen.expect(with(line) == ["steps"], line);
    }
    seen.expect(seen.log.contains(" accesses allowed"), "they were forbidden, and allowed");
    for what in ["writes of a table's address", "breakpoint instructions"] {
        seen.expect(seen.log.contains(&format!("vcpu.steps| 1 {what} trapped")), "what can trap did");
    }
}

/// Its vcpu server hears of each write of its translation registers and of each breakpoint, and does what the guest wanted.
#[test]
fn linux_runs_to_its_end_with_everything_trapped_that_can() {
    let run = Run { stand_ins: STEPPING, ..story::of("linux.toml", Duration::from_secs(900)) };
    let seen = story::seen(&run, &[]);
    seen.expect_good_end();
    seen.expect(seen.log.contains("100 writes of a table's address trapped"), "what can trap did");
}

#[test]
fn each_watched_write_takes_effect_once_with_gicv3() {
    steps(|run| run, false);
}

#[test]
fn each_watched_write_takes_effect_once_with_gicv2() {
    steps(|run| Run { board: Some("virt-gicv2".into()), ..run }, false);
}

#[test]
fn each_watched_write_takes_effect_once_on_a_cpu_with_everything() {
    steps(|run| Run { cpu: Some("max".into()), ..run }, true);
}
