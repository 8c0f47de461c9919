// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that nobody here wrote and one of ours, on one CPU.

use std::time::Duration;
use trellis_boot_tests::story;

#[test]
fn linux_and_hello_share_a_cpu_and_both_end_well() {
    let seen = story::seen(&story::of("pair.toml", Duration::from_secs(400)), &[]);
    seen.expect_good_end();
    let with = |text: &str| seen.guests_with(|line| line.contains(text));
    seen.expect(with("hello: 1 of 1 CPUs finished") == ["hello"], "hello finishes");
    seen.expect(with("reboot: Power down") == ["linux"], "Linux powers itself off");
}
