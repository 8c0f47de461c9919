// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that nobody here wrote and one of ours, with vCPUs on the same two CPUs.

use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;

fn pair_on(board: &str) {
    let run = Run { board: Some(board.into()), ..story::of("pair.toml", Duration::from_secs(600)) };
    let seen = story::seen(&run, &[]);
    seen.expect_good_end();
    let with = |text: &str| seen.guests_with(|line| line.contains(text));
    seen.expect(with("hello: 2 of 2 CPUs finished") == ["hello"], "hello finishes");
    seen.expect(with("processors: 2") == ["linux"], "Linux has both CPUs");
    seen.expect(with("reboot: Power down") == ["linux"], "Linux powers itself off");
}

#[test]
fn linux_and_hello_share_two_cpus_and_both_end_well() {
    pair_on("virt");
}

#[test]
fn linux_and_hello_share_two_cpus_with_gicv2() {
    pair_on("virt-gicv2");
}
