// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel finds out about CPUs and does about it, as far as an emulator shows: the line in the log, guarded
//! vectors, hidden features, breakpoints that are a guest's own.

use std::time::Duration;
use trellis_boot_tests::story::{self, Seen, seen};
use trellis_cli::run::Run;

const LIMIT: Duration = Duration::from_secs(120);

fn hello_on(board: Option<&str>, cpu: &str) -> Seen {
    let board = board.map(Into::into);
    let seen = seen(&Run { board, cpu: Some(cpu.into()), ..story::of("hello.toml", LIMIT) }, &[]);
    seen.expect_good_end();
    seen
}

#[test]
fn the_log_names_each_cpu_its_errata_and_its_policy() {
    for (cpu, line) in [
        ("cortex-a57", "cpu 0: Cortex-A57 r1p0, errata 832075 834220 852523 1319537; branches not guarded (emulated board)"),
        ("neoverse-v1", "cpu 0: Neoverse-V1 r1p2, errata 3324341 4193790; branches not guarded (emulated board)"),
        ("max", ", errata none; branches not guarded (emulated board)"),
    ] {
        let seen = hello_on(None, cpu);
        seen.expect(seen.log.contains(line), line);
    }
}

/// Every entry by the guarded vectors: the loop, ESB where the CPU has RAS, and in the end nothing else differs.
#[test]
fn guarded_predictors_change_nothing_but_time() {
    let board = story::manifest("guarded-board.toml").display().to_string();
    for (cpu, line) in [
        ("cortex-a72", "branch targets EXPOSED (no firmware), loop of 8, stores EXPOSED"),
        ("neoverse-n1", "branch history by a loop of 24, stores by SSBS"),
        ("neoverse-v1", "branch history by a loop of 32, stores by SSBS"),
    ] {
        let seen = hello_on(Some(&board), cpu);
        seen.expect(seen.log.contains(line), line);
    }
}

/// A guest that tries what its CPU has and its ID registers do not say.
fn hostile_on(cpu: &str, misdeeds: &[&str]) {
    let text = format!(
        "name = \"silicon\"\nboard = \"virt\"\n\n[guest.hostile]\nkernel = \"hostile\"\nmemory = \"16M\"\ncpus = [0]\n\
         on-reset = \"end\"\ncommand-line = \"misdeed={}\"\n",
        misdeeds.join(",")
    );
    let seen = story::of_text(&text, Run { cpu: Some(cpu.into()), timeout: Some(LIMIT), ..Run::default() });
    seen.expect_good_end();
    for name in misdeeds {
        seen.expect(seen.out.contains(&format!("misdeed {name} survived")), name);
    }
    if misdeeds.contains(&"software-step") {
        seen.expect(seen.out.contains("8 steps across a hypercall and a device read"), "its own single step works");
    }
}

#[test]
fn registers_of_hidden_features_are_survived_on_cpus_that_have_them() {
    for cpu in ["neoverse-n1", "neoverse-v1", "max"] {
        hostile_on(cpu, &["write-id-registers", "debug-registers", "software-step", "watchpoints"]);
    }
}

#[test]
fn a_guest_steps_itself_and_its_server_does_not() {
    hostile_on("cortex-a57", &["debug-registers", "software-step", "watchpoints"]);
}
