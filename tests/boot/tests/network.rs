// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian's kernel with a network card of its own, behind the emulator's SMMU: its drivers find the card on a bus of PCI, and
//! fetch a file through it, each message of the card's an interrupt of Linux'. Beside it a neighbour keeps its time.

use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;
use trellis_boot_tests::running::System;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::ctl::What;
use trellis_cli::drive::Outcome;
use trellis_cli::place;
use trellis_cli::run::Run;
use trellis_cli::status::Status;

const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of the file.
const BYTES: usize = 64 << 20;
/// Where Linux fetches it: this machine, as the emulator's user network shows it.
const AT: &str = "10.0.2.2";

/// Numbers that look random, and are the same each time (xorshift64, Marsaglia 2003).
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..BYTES / 8).flat_map(|_| next()).collect()
}

/// A server with the file behind a port of this machine's own, for as long as the test lasts.
fn serve(content: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("the port's number").port();
    let content: &'static [u8] = content.leak();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever goes away in the middle is for the test to tell of.
            thread::spawn(move || answer(stream, content));
        }
    });
    port
}

/// Reads a request to its empty line, sends the file, and waits until the other end has had enough.
fn answer(mut stream: TcpStream, content: &[u8]) -> std::io::Result<()> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len())?;
    stream.write_all(content)?;
    stream.read(&mut byte).map(drop)
}

/// images/network.toml with a file to fetch, and with other words in it, on a board that is kept in the folder. Back come the text and
/// the file's checksum.
fn fetching(folder: &Path, changes: &[(&str, &str)]) -> (String, String) {
    let content = content();
    let sum = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let port = serve(content);
    let change = |text: String, from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from} is there once");
        text.replace(from, to)
    };
    let read = |path: &str| std::fs::read_to_string(place::root().join("images").join(path)).expect("a file of ours");
    let board_file = folder.join("virt.toml");
    let board = change(read("boards/virt.toml"), "restrict=on", "restrict=off");
    std::fs::write(&board_file, board).expect("a board file");
    let own = [("board = \"virt\"", format!("board = {board_file:?}")), ("10.0.2.15", format!("10.0.2.15 fetch=http://{AT}:{port}/"))];
    let text = own.iter().fold(read("network.toml"), |text, (from, to)| change(text, from, to));
    (changes.iter().fold(text, |text, (from, to)| change(text, from, to)), sum)
}

/// Waits for its end.
fn ended(system: System) -> Seen {
    let (out, log) = (system.out.clone(), system.log.clone());
    let status = system.run.join().expect("it does not panic").unwrap_or(Status::Failed);
    Seen { out: out.text(), log: log.text(), outcome: Outcome { status, started: None } }
}

/// From its start to its end.
fn fetches(changes: &[(&str, &str)]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, sum) = fetching(folder.path(), changes);
    expect_fetched(&story::of_text(&text, Run { timeout: Some(LIMIT), ..Run::default() }), &sum);
}

/// Linux has the file as it is, by interrupts; its neighbour has said a line every second, and none twice.
fn expect_fetched(seen: &Seen, sum: &str) {
    seen.expect_good_end();
    seen.expect(seen.out.contains("linux| network: eth0 by virtio_net of 0000:00:00.0, 3 msix messages"), "its driver finds the card");
    seen.expect(seen.out.contains("linux| network: 3 packets transmitted, 3 packets received, 0% packet loss"), "it is heard");
    let fetched = format!("linux| fetched: {BYTES} bytes, sha256 {sum}, interrupts ");
    let interrupts = seen.out.split(&fetched).nth(1).and_then(|rest| rest.lines().next()?.parse::<u64>().ok());
    // 45,000 packets, of which a driver that polls takes 64 at an interrupt at most, unless there are more at once.
    seen.expect(interrupts.is_some_and(|count| count >= 100), "the whole file comes, by interrupts");
    seen.expect(!seen.log.contains("a device of guest linux"), "the card goes nowhere else");
    let off = seen.out.split("linux| [").nth(1).and_then(|rest| rest.split(']').next()?.trim().parse::<f64>().ok());
    let lines: Vec<&str> = seen.out.lines().filter_map(|line| line.strip_prefix("neighbour| neighbour: line ")).collect();
    let is_whole = lines.iter().enumerate().all(|(index, line)| *line == index.to_string());
    seen.expect(is_whole, "the neighbour says all of its lines");
    // It was there before Linux. Some may be late, where this machine has other things to do.
    let seconds = off.expect("Linux says when it switches itself off");
    seen.expect(lines.len() as f64 >= seconds / 2.0, "and one about every second");
}

#[test]
fn linux_fetches_a_file_through_a_card_of_its_own_and_its_neighbour_keeps_its_time() {
    fetches(&[]);
}

#[test]
fn it_fetches_it_where_the_kernel_hands_its_messages_on_by_itself() {
    fetches(&[("as = \"pci\"", "as = \"pci\"\nforward = \"direct\"")]);
}

/// The frame makes lines of the messages of both functions, each of which its driver takes from the same ones.
#[test]
fn it_fetches_it_beside_a_second_function_whose_messages_go_to_the_same_frame() {
    let folder = tempfile::tempdir().expect("a folder");
    let second = "as = \"pci\"\n\n[[guest.linux.device]]\ndevice = \"random\"\nas = \"pci\"";
    let (text, sum) = fetching(folder.path(), &[("as = \"pci\"", second), ("quiet ", "quiet random=8 ")]);
    let seen = story::of_text(&text, Run { timeout: Some(LIMIT), ..Run::default() });
    expect_fetched(&seen, &sum);
    let random = seen.out.split("linux| random: 512 bytes from virtio_rng.0, interrupts ").nth(1);
    let interrupts = random.and_then(|rest| rest.lines().next()?.parse::<u64>().ok());
    seen.expect(interrupts.is_some_and(|count| count >= 8), "each reading is an interrupt of the second function's");
}

/// From its first packet to its last, the server that forwards its messages is ended and made again.
#[test]
fn it_fetches_it_while_irqfwd_is_ended_again_and_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, sum) = fetching(folder.path(), &[("board =", "control = \"full\"\nboard =")]);
    let system = System::start(&text, Run::default());
    system.until("Linux was heard", |system| system.out.text().contains("3 packets received"));
    let mut ends = 0;
    while !system.out.text().contains("fetched: ") && !system.run.is_finished() {
        let said = system.ctl(What::Kill { monitor: "irqfwd".into() }, false);
        // Linux may have ended meanwhile.
        ends += said.is_ok_and(|said| said.contains("was ended and made again")) as usize;
        thread::sleep(Duration::from_millis(20));
    }
    let seen = ended(system);
    expect_fetched(&seen, &sum);
    seen.expect(ends >= 3 && seen.log.matches("root| irqfwd is made again").count() >= ends, "it was ended and made again");
}

/// In the middle of it, twice: its card has places in memory that it was to write to, and packets for them.
#[test]
fn it_fetches_it_in_its_third_life_when_it_was_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, sum) = fetching(folder.path(), &[("board =", "control = \"full\"\nboard =")]);
    let system = System::start(&text, Run::default());
    for life in 1..3 {
        system.until("Linux was heard", |system| system.out.text().matches("3 packets received").count() == life);
        thread::sleep(Duration::from_millis(500));
        system.says(What::Reboot { guest: "linux".into() });
    }
    let seen = ended(system);
    expect_fetched(&seen, &sum);
    let count = |text: &str| seen.out.matches(text).count();
    seen.expect(count("linux| network: eth0 by virtio_net") == 3 && count("fetched: ") == 1, "two lives end in the middle");
}
