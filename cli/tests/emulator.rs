// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way from QEMU's serial port to lines and exit statuses, with a few hand-written instructions as the system.

use std::io::{Cursor, Read, Write};
use std::time::Duration;
use trellis_cli::drive::{Wish, drive};
use trellis_cli::frame::Frame;
use trellis_cli::names::{GuestName, Names};
use trellis_cli::session::Outputs;
use trellis_cli::status::Status;
use trellis_idl::boot::{LOG_BYTES, LOG_MARK};
use trellis_idl::wire::{FrameKind, GuestEnd, Report};

/// An arm64 Image for QEMU's virt that writes `said` to the PL011, sends back the next `echoed` bytes it reads, and
/// switches off by PSCI, or stands still.
fn image(said: &[u8], echoed: u16, switches_off: bool) -> Vec<u8> {
    let mut code = vec![0u32; 16];
    code[0] = 0x1400_0010; // b 64
    code[4] = 0x10000; // image_size
    code[6] = 0xa; // flags: 4 KiB pages, anywhere
    code[14] = 0x644d_5241; // "ARM\x64"
    let end: &[u32] = if switches_off {
        &[0x5280_0100, 0x72b0_8000, 0xd400_0003, 0x1400_0000] // w0 = 0x84000008 (SYSTEM_OFF); smc #0; b .
    } else {
        &[0x1400_0000]
    };
    let echo: &[u32] = match echoed {
        0 => &[],
        // w2 = echoed; wait while UARTFR.RXFE; w4 = UARTDR; UARTDR = w4; count down
        _ => &[0x5280_0002 | (echoed as u32) << 5, 0xb940_1865, 0x3727_ffe5, 0xb940_0064, 0xb900_0064, 0x7100_0442, 0x54ff_ff61],
    };
    let length = said.len() as u32;
    let after_adr = 9 + echo.len() as u32 + end.len() as u32;
    code.push(0x1000_0001 | (after_adr + 1) << 5); // adr x1, the bytes after the code
    code.push(0x5280_0002 | (length & 0xffff) << 5); // w2 = length
    code.push(0x72a0_0002 | (length >> 16) << 5);
    code.push(0xd2a1_2003); // x3 = 0x09000000
    code.push(0x5280_6024); // w4 = 0x301
    code.push(0xb900_3064); // UARTCR = w4
    code.extend([0x3840_1424, 0xb900_0064, 0x7100_0442, 0x54ff_ffa1]); // each byte: UARTDR = *x1++
    code.extend(echo);
    code.extend(end);
    let mut bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(said);
    bytes
}

fn frame(kind: FrameKind, channel: u8, payload: &[u8]) -> Vec<u8> {
    Frame { kind, channel, payload: payload.to_vec() }.encode()
}

fn report(report: &Report) -> Vec<u8> {
    frame(FrameKind::Report, 0, &postcard::to_stdvec(report).expect("reports encode"))
}

struct Seen {
    out: String,
    log: String,
    status: Status,
}

fn run(image: &[u8], wish: Wish) -> Seen {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(image).expect("room for an image");
    let board = ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57", "-m", "128M"].map(String::from);
    let guest = GuestName { name: "web".into(), memory: 0..0, line: 1 };
    let names = Names { guests: vec![guest], servers: vec!["console".into()], ..Names::default() };
    let (mut out, mut log) = (Vec::new(), Vec::new());
    let outcome = drive(&board, file.path(), names, wish, &mut Outputs { out: &mut out, log: &mut log });
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Seen { out: text(out), log: text(log), status: outcome.expect("the emulator runs").status }
}

fn patient() -> Wish {
    Wish { timeout: Some(Duration::from_secs(60)), ..Wish::default() }
}

#[test]
fn a_system_that_ends_well_shows_its_lines_and_ends_with_0() {
    let said = [
        b"EL2 here\n".to_vec(),
        frame(FrameKind::ServerLog, 0, b"ready\n"),
        frame(FrameKind::Guest, 0, b"hello\nbye"),
        report(&Report::GuestEnded { guest: 0, end: GuestEnd::Off }),
        report(&Report::Off { well: true }),
    ];
    for icount in [false, true] {
        let seen = run(&image(&said.concat(), 0, true), Wish { icount, ..patient() });
        assert_eq!(seen.out, "web| hello\nweb| bye\n");
        let log = "root| guest web switched itself off\nroot| all guests have ended well, switching off\n";
        assert_eq!(seen.log, format!("kernel| EL2 here\nconsole| ready\n{log}"));
        assert_eq!(seen.status, Status::Well);
    }
}

#[test]
fn a_guest_that_ends_with_an_error_gives_3_even_if_the_machine_stays_on() {
    let ended = report(&Report::GuestEnded { guest: 0, end: GuestEnd::Status(9) });
    let seen = run(&image(&[ended, report(&Report::Off { well: false })].concat(), 0, false), patient());
    assert!(seen.log.starts_with("root| guest web ended with status 9\n"), "{}", seen.log);
    assert_eq!(seen.status, Status::GuestFailed);
}

#[test]
fn a_machine_that_goes_off_unannounced_gives_1() {
    let seen = run(&image(b"panic: no root\n", 0, true), patient());
    assert!(seen.log.starts_with("kernel| panic: no root\ntrellis| the machine went off before root said so"), "{}", seen.log);
    assert_eq!(seen.status, Status::Failed);
}

#[test]
fn a_machine_that_stands_still_is_ended_with_4() {
    let wish = Wish { timeout: Some(Duration::from_secs(2)), ..Wish::default() };
    let seen = run(&image(b"waiting", 0, false), wish);
    assert_eq!(seen.log, "kernel| waiting\ntrellis| not finished after 2 s, ended (--timeout)\n");
    assert_eq!(seen.status, Status::TimedOut);
}

#[test]
fn a_machine_that_hangs_says_where_and_what_was_not_printed() {
    let mut image = image(b"waiting", 0, false);
    image.extend(LOG_MARK);
    image.extend([13u64, 0].iter().flat_map(|index| index.to_le_bytes()));
    image.extend(b"CPU 3 is late");
    image.resize(image.len() + LOG_BYTES, 0);
    let kernel = Some(0x4020_0000..0x4020_0000 + image.len() as u64);
    let seen = run(&image, Wish { timeout: Some(Duration::from_secs(2)), kernel, ..Wish::default() });
    assert!(seen.log.starts_with("kernel| waiting\ntrellis| CPU 0 stands at 0x00000000402000"), "{}", seen.log);
    assert!(seen.log.contains("EL2h\ntrellis| not printed yet: CPU 3 is late\n"), "{}", seen.log);
    assert_eq!(seen.status, Status::TimedOut);
}

#[test]
fn keys_go_to_the_console_guest_as_frames() {
    let keys: Box<dyn Read + Send> = Box::new(Cursor::new(b"version\n".to_vec()));
    // An empty frame comes before all others.
    let echoed = 1 + frame(FrameKind::Guest, 0, b"version\n").len() as u16;
    let wish = Wish { console: Some((0, keys)), ..patient() };
    let seen = run(&image(&frame(FrameKind::Guest, 0, b"=> "), echoed, true), wish);
    assert_eq!(seen.out, "=> version\n");
    assert_eq!(seen.status, Status::Failed);
}

#[test]
fn a_flood_arrives_whole() {
    let line = [b'x'; 511];
    let mut said = Vec::new();
    for _ in 0..400 {
        said.extend(frame(FrameKind::Guest, 0, &[&line[..], b"\n"].concat()));
    }
    said.extend(report(&Report::Off { well: true }));
    let seen = run(&image(&said, 0, true), patient());
    assert_eq!(seen.out.lines().filter(|text| text.len() == 5 + 511).count(), 400);
    assert_eq!(seen.status, Status::Well);
}
