// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel that nobody here wrote: Debian's, with one vCPU.

use std::time::Duration;
use trellis_boot_tests::story;

#[test]
fn linux_boots_and_powers_itself_off() {
    let seen = story::seen(&story::of("linux.toml", Duration::from_secs(400)), &[]);
    seen.expect_good_end();
    for text in ["processors: 1", "trellis: linux is up", "reboot: Power down"] {
        seen.expect(seen.guests_with(|line| line.contains(text)).len() == 1, text);
    }
}
