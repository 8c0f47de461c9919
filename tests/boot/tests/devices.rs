// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that own devices, in whole systems under the emulator: a real-time clock whose alarms interrupt, and a second
//! serial port, through irqfwd and straight from the kernel.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::place;
use trellis_cli::system::{FAULTY, StandIns};

const LIMIT: Duration = Duration::from_secs(300);

/// A guest that owns a clock, with this command line, on these CPUs; `more` is another guest.
fn run(forward: &str, arguments: &str, cpus: &str, more: &str, with: (bool, StandIns)) -> Seen {
    let text = story::owner("alarm", "rtc", forward, arguments, cpus) + more;
    let (icount, stand_ins) = with;
    story::of_text(&text, Run { icount, timeout: Some(LIMIT), stand_ins, ..Run::default() })
}

fn expect_lines(seen: &Seen, lines: &[&str]) {
    seen.expect_lines("alarm", lines);
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
        let seen = run(forward, "alarms=5", "[0, 1, 2, 1]", "", (false, &[]));
        let turns = ["CPU 1 sent for, CPU 1 got it", "CPU 2 sent for, CPU 2 got it", "CPU 3 sent for, CPU 3 got it"];
        expect_lines(&seen, &turns);
        expect_lines(&seen, &["5 alarms set, 5 came", "done"]);
    }
}

#[test]
fn a_device_that_interrupts_too_often_is_masked_for_a_while_and_its_neighbour_goes_on() {
    let hello = "\n[guest.hello]\nkernel = \"hello\"\ncommand-line = \"waits=300\"\nmemory = \"16M\"\n";
    let seen = run("server", "alarms=1 storm=10000", "[0]", hello, (true, &[]));
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
    let seen = run("server", "alarms=70", "[0, 1]", "", (false, FAULTY));
    expect_lines(&seen, &["70 alarms set, 70 came", "CPU 1 sent for, CPU 1 got it", "done"]);
    let count = |text: &str| seen.log.matches(text).count();
    let deaths = count("root| server irqfwd faulted: ");
    seen.expect(deaths == 3 && count("root| irqfwd is made again") == 3, "it died three times");
    seen.expect(!seen.log.contains("starts again"), "its guest went on");
}

/// A line that no guest has the number of, and that an edge triggers: the message register of the board's GICv2m frame.
#[test]
fn every_ring_of_a_doorbell_above_the_lines_of_a_guest_is_heard() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let board = std::fs::read_to_string(place::root().join("images/boards/virt-gicv2.toml")).expect("the board");
    let bell = "[[device]]\nname = \"bell\"\nbase = 0x08020000\nbytes = 0x1000\nlines = [140]\nedge = true\n\
        compatible = [\"trellis,doorbell\"]\n\n[emulator]";
    let board_file = folder.join("virt-gicv2-bell.toml");
    std::fs::write(&board_file, board.replace("[emulator]", bell)).expect("a board file");
    for forward in ["server", "direct"] {
        let text = story::owner("alarm", "bell", forward, "bell=140 rings=100", "[0]");
        let text = text.replace("board = \"virt\"", &format!("board = {board_file:?}"));
        let seen = story::of_text(&text, Run { timeout: Some(LIMIT), ..Run::default() });
        expect_lines(&seen, &["a doorbell at 0xb000000 with interrupt 127", "100 rings, 100 heard", "done"]);
    }
}

/// Debian's kernel with our clock and a port that ends in a socket of this machine.
fn linux(forward: &str, cpus: &str, socket: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let board = std::fs::read_to_string(place::root().join("images/boards/virt.toml")).expect("the board");
    let nowhere = r#"["-serial", "null"]"#;
    assert!(board.contains(nowhere), "the port goes nowhere until it is told where");
    let board_file = folder.join(format!("virt-port-{forward}.toml"));
    let somewhere = format!(r#"["-serial", "unix:{},server=on,wait=off"]"#, socket.display());
    std::fs::write(&board_file, board.replace(nowhere, &somewhere)).expect("a board file");
    let text = std::fs::read_to_string(story::manifest("linux-devices.toml")).expect("the manifest");
    let text = text
        .replace("board = \"virt\"", &format!("board = \"{}\"", board_file.display()))
        .replace("cpus = [0]", &format!("cpus = {cpus}"))
        .replace("alarm=2", "alarm=2 port=ttyAMA1")
        .replace("device = \"rtc\"", &format!("device = \"rtc\"\nforward = \"{forward}\""))
        .replace("device = \"serial1\"", &format!("device = \"serial1\"\nforward = \"{forward}\""));
    let path = folder.join(format!("linux-devices-{forward}.toml"));
    std::fs::write(&path, text).expect("a manifest");
    path
}

/// The other end of the port: waits until Linux says hello, sends a block and takes it back.
fn other_end(socket: &Path, block: &[u8]) -> Vec<u8> {
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            // The emulator is not there yet.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    };
    let mut to = stream.try_clone().expect("two handles of a socket");
    let mut from = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("hello from linux") {
        line.clear();
        assert!(from.read_line(&mut line).is_ok_and(|length| length > 0), "the port was closed before Linux said hello");
    }
    to.write_all(block).expect("the port takes it");
    let mut back = vec![0; block.len()];
    from.read_exact(&mut back).expect("the whole block comes back");
    to.write_all(b"all is well\n").expect("the port takes it");
    back
}

fn linux_uses(forward: &str, cpus: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("port");
    let block: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (peer, sent) = (socket.clone(), block.clone());
    let end = thread::spawn(move || other_end(&peer, &sent));
    let manifest = linux(forward, cpus, &socket);
    let seen = story::seen(&Run { manifest: Some(manifest), timeout: Some(2 * LIMIT), ..Run::default() }, &[]);
    seen.expect_good_end();
    seen.expect(seen.out.contains("clock: rtc-pl031"), "its driver finds the clock");
    let number = |before: &str| seen.out.split(before).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
    // The core of its clocks asks for one more where the second is about to end.
    seen.expect(number("interrupts ").is_some_and(|count| (1..=3).contains(&count)), "the alarm comes by interrupt");
    seen.expect(seen.out.contains("port: all is well, interrupts "), "the port hears");
    // Its driver reads 256 bytes at an interrupt at most.
    seen.expect(number("port: all is well, interrupts ").is_some_and(|count| count >= 16), "by interrupts, not by waiting");
    let back = end.join().expect("the other end is content");
    assert!(back == block, "each byte comes back as it went");
}

#[test]
fn linux_has_an_alarm_and_a_port_through_the_server() {
    linux_uses("server", "[0, 1]");
}

#[test]
fn linux_has_an_alarm_and_a_port_without_the_server() {
    linux_uses("direct", "[0]");
}
