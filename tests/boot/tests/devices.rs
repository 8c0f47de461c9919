// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that own devices, in whole systems under the emulator: a real-time clock whose alarms interrupt, and a second
//! serial port, through irqfwd and straight from the kernel.

use std::path::Path;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::system::{FAULTY, StandIns};

const LIMIT: Duration = Duration::from_secs(300);

/// A guest that owns a clock, with this command line, on these CPUs; `more` is another guest.
fn run(name: &str, forward: &str, arguments: &str, cpus: &str, more: &str, with: (bool, StandIns)) -> Seen {
    let mut text = format!("name = \"{name}\"\nboard = \"virt\"\n\n[guest.alarm]\nkernel = \"alarm\"\ncommand-line = \"{arguments}\"\n");
    text += &format!("memory = \"16M\"\ncpus = {cpus}\non-reset = \"end\"\n\n");
    text += &format!("[[guest.alarm.device]]\ndevice = \"rtc\"\nforward = \"{forward}\"\n{more}");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{forward}.toml"));
    std::fs::write(&path, text).expect("a manifest in the folder for temporary files");
    let (icount, stand_ins) = with;
    story::seen(&Run { manifest: Some(path), icount, timeout: Some(LIMIT), stand_ins, ..Run::default() }, &[])
}

fn expect_lines(seen: &Seen, lines: &[&str]) {
    for line in lines {
        seen.expect(seen.out.contains(&format!("alarm| alarm: {line}")), line);
    }
    seen.expect_good_end();
}

#[test]
fn every_alarm_and_every_byte_interrupts_the_guest_that_owns_the_device() {
    for manifest in ["devices.toml", "devices-direct.toml"] {
        for board in ["virt", "virt-gicv2"] {
            let seen = story::seen(&Run { board: Some(board.into()), ..story::of(manifest, LIMIT) }, &[]);
            expect_lines(&seen, &["a clock at 0xb000000 with interrupt 34", "100 alarms set, 100 came"]);
            expect_lines(&seen, &["a port at 0xb010000 with interrupt 40", "50 bytes sent, 50 interrupts", "done"]);
        }
    }
}

#[test]
fn an_interrupt_goes_to_the_cpu_that_the_guest_sends_it_to() {
    for forward in ["server", "direct"] {
        let seen = run("everywhere", forward, "alarms=5", "[0, 1, 2, 1]", "", (false, &[]));
        let turns = ["CPU 1 sent for, CPU 1 got it", "CPU 2 sent for, CPU 2 got it", "CPU 3 sent for, CPU 3 got it"];
        expect_lines(&seen, &turns);
        expect_lines(&seen, &["5 alarms set, 5 came", "done"]);
    }
}

#[test]
fn a_device_that_interrupts_too_often_is_masked_for_a_while_and_its_neighbour_goes_on() {
    let hello = "\n[guest.hello]\nkernel = \"hello\"\ncommand-line = \"waits=300\"\nmemory = \"16M\"\n";
    let seen = run("storm", "server", "alarms=1 storm=10000", "[0]", hello, (true, &[]));
    expect_lines(&seen, &["a storm of 10000 took", "done"]);
    seen.expect(seen.log.contains("irqfwd| line 34 comes too often: masked for a while"), "it is said");
    let took = |before: &str| seen.out.split(before).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
    // 20 times 500 interrupts, and 20 ms of rest after each: by instruction count, so the machine at the desk has no say.
    let storm = took("a storm of 10000 took ").unwrap_or_default();
    seen.expect((380..1000).contains(&storm), "the line rested");
    // 300 periods of a millisecond; irqfwd and the guest that storms have a higher and an equal priority.
    let hello = took("300 timer interrupts in ").unwrap_or_default();
    seen.expect((300_000..400_000).contains(&hello), "the neighbour keeps its time");
}

/// It dies with every twentieth interrupt in its hands, three times.
#[test]
fn an_irqfwd_that_crashes_is_made_again_and_no_interrupt_is_lost() {
    let seen = run("killed", "server", "alarms=70", "[0, 1]", "", (false, FAULTY));
    expect_lines(&seen, &["70 alarms set, 70 came", "CPU 1 sent for, CPU 1 got it", "done"]);
    let count = |text: &str| seen.log.matches(text).count();
    let deaths = count("root| server irqfwd faulted: ");
    seen.expect(deaths == 3 && count("root| irqfwd is made again") == 3, "it died three times");
    seen.expect(!seen.log.contains("starts again"), "its guest went on");
}
