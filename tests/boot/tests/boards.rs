// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same kernel on several CPUs, and on every board: GICv3 and GICv2, PSCI and release addresses.

use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;

/// Debian's kernel with four vCPUs on four CPUs of this board.
fn four_vcpus_on(board: &str) {
    let run = Run { board: Some(board.into()), ..story::of("linux-smp.toml", Duration::from_secs(400)) };
    let seen = story::seen(&run, &[]);
    seen.expect_good_end();
    for text in ["processors: 4", "trellis: linux is up", "reboot: Power down"] {
        seen.expect(seen.guests_with(|line| line.contains(text)).len() == 1, text);
    }
}

#[test]
fn linux_uses_four_cpus_with_gicv3() {
    four_vcpus_on("virt");
}

#[test]
fn linux_uses_four_cpus_with_gicv2() {
    four_vcpus_on("virt-gicv2");
}

#[test]
fn linux_uses_four_cpus_of_a_raspberry_pi_4() {
    four_vcpus_on("raspi4b");
}
