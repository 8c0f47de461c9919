// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same guests on one, two, four and eight CPUs.

use std::io::Write;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;

/// A guest with one vCPU on each of so many CPUs; `guest` are the lines that say which.
fn on_cpus(count: usize, guest: &str, limit: Duration) -> Seen {
    let mut manifest = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    let cpus: Vec<usize> = (0..count).collect();
    write!(manifest, "name = \"cpus\"\nboard = \"virt\"\n[guest.one]\n{guest}\ncpus = {cpus:?}\non-reset = \"end\"\n")
        .expect("a manifest is written");
    story::seen(&Run { manifest: Some(manifest.path().to_owned()), timeout: Some(limit), ..Run::default() }, &[])
}

#[test]
fn hello_uses_one_two_four_and_eight_cpus() {
    for count in [1, 2, 4, 8] {
        let seen = on_cpus(count, "kernel = \"hello\"\nmemory = \"16M\"", Duration::from_secs(300));
        seen.expect_good_end();
        let all = format!("hello: {count} of {count} CPUs finished");
        seen.expect(seen.guests_with(|line| line.contains(&all)) == ["one"], &all);
    }
}

/// One and four vCPUs have tests of their own (`linux.rs`, `boards.rs`).
#[test]
fn linux_uses_two_cpus() {
    let guest = "kernel = \"debian:linux\"\ninitrd = \"debian:busybox-initrd\"\nmemory = \"256M\"\n\
                 command-line = \"console=ttyAMA0 panic=-1\"";
    let seen = on_cpus(2, guest, Duration::from_secs(600));
    seen.expect_good_end();
    for text in ["processors: 2", "trellis: linux is up", "reboot: Power down"] {
        seen.expect(seen.guests_with(|line| line.contains(text)).len() == 1, text);
    }
}
