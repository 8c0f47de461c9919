// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux sends a line to another CPU, and it comes there: with both versions of the interrupt controller.

use std::io::Write;
use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;

/// A Linux with four vCPUs that gives a shell.
const MANIFEST: &str = r#"name = "affinity"
board = "virt"

[guest.linux]
kernel = "debian:linux"
initrd = "debian:busybox-initrd"
command-line = "console=ttyAMA0 panic=-1 trellis.shell"
memory = "256M"
cpus = [0, 1, 2, 3]
on-reset = "end"
"#;

/// Shows how often each CPU took the serial port's interrupt.
const COUNT: &str = "grep pl011 /proc/interrupts\r";
/// Sends it to CPU 1.
const MOVE: &str = "cd /proc/irq/$(sed -n 's/^ *\\([0-9]*\\):.*pl011.*/\\1/p' /proc/interrupts) && echo 2 >smp_affinity\r";
/// Each line that is typed raises the serial port's line at least once.
const TYPED: &str = "true\r";

/// The counts of CPUs 0 and 1 each time they were shown.
fn counts(out: &str) -> Vec<[u64; 2]> {
    let of = |line: &str| {
        let mut words = line.split_whitespace();
        words.next()?.strip_suffix(':')?.parse::<u32>().ok()?;
        let mut count = || words.next()?.parse().ok();
        Some([count()?, count()?])
    };
    out.lines().filter(|line| line.contains("uart-pl011")).filter_map(of).collect()
}

fn serial_line_moves_on(board: &str) {
    let mut manifest = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    manifest.write_all(MANIFEST.as_bytes()).expect("a manifest is written");
    let run = Run {
        manifest: Some(manifest.path().to_owned()),
        board: Some(board.into()),
        console: Some("linux".into()),
        timeout: Some(Duration::from_secs(400)),
        ..Run::default()
    };
    let script = [TYPED, COUNT, MOVE, COUNT, TYPED, TYPED, TYPED, COUNT, "poweroff -f\r"].map(|keys| ("# ", keys));
    let seen = story::seen(&run, &script);
    seen.expect_good_end();
    let counts = counts(&seen.out);
    seen.expect(counts.len() == 3, "the counts are shown three times");
    let [before, moved, after] = [counts[0], counts[1], counts[2]];
    seen.expect(before[0] > 0 && before[1] == 0, "at first every interrupt comes to CPU 0");
    seen.expect(after[1] >= moved[1] + 4, "then CPU 1 gets them");
    seen.expect(after[0] == moved[0], "and CPU 0 no more");
}

#[test]
fn linux_moves_a_line_to_another_cpu_with_gicv3() {
    serial_line_moves_on("virt");
}

#[test]
fn linux_moves_a_line_to_another_cpu_with_gicv2() {
    serial_line_moves_on("virt-gicv2");
}
