// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that one types to: Debian's U-Boot.

use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;

fn u_boot_on(board: &str) {
    let console = Some(story::only_guest("u-boot.toml"));
    let run = Run { console, board: Some(board.into()), ..story::of("u-boot.toml", Duration::from_secs(300)) };
    let script = [("Hit any key", "\r"), ("=> ", "version\r"), ("=> ", "poweroff\r")];
    let seen = story::seen(&run, &script);
    seen.expect_good_end();
    let answers = seen.out.matches("U-Boot 20").count();
    seen.expect(answers >= 2, "the version shows at the start and again when it is asked for");
    seen.expect(seen.out.contains("poweroff"), "the last command is echoed");
}

#[test]
fn u_boot_answers_version_and_powers_off_when_told_to() {
    u_boot_on("virt");
}

#[test]
fn u_boot_does_so_on_boards_with_gicv2() {
    u_boot_on("virt-gicv2");
    u_boot_on("raspi4b");
}
