// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device that touches memory by itself, behind the emulator's SMMU: it sees its guest's memory, at the guest's addresses,
//! and nothing else, whatever its guest tells it.

use std::path::Path;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::system::{FAULTY, StandIns};
use trellis_images::Board;

const LIMIT: Duration = Duration::from_secs(300);

/// images/dma.toml with other words in it.
fn run(changes: &[(&str, &str)], stand_ins: StandIns) -> Seen {
    let mut text = std::fs::read_to_string(story::manifest("dma.toml")).expect("the manifest");
    for (from, to) in changes {
        assert!(text.contains(from), "images/dma.toml has {from}");
        text = text.replace(from, to);
    }
    story::of_text(&text, Run { timeout: Some(LIMIT), stand_ins, ..Run::default() })
}

fn expect_lines(seen: &Seen, lines: &[&str]) {
    for line in lines {
        seen.expect(seen.out.contains(line), line);
    }
    seen.expect_good_end();
}

/// What its guest's strays lead to is told, with address and line.
fn expect_strays(seen: &Seen, first: u64) {
    let device = |what: &str| format!("root| a device of guest dma {what} {first:#x}, which is not its guest's");
    seen.expect(seen.log.contains(&device("wrote to")), "a write is told");
    let line = seen.log.lines().find(|line| line.contains("given by")).unwrap_or_default();
    seen.expect(line.ends_with(".toml:15: device = \"edu\""), "and who gave the guest the device");
}

#[test]
fn a_device_behind_the_smmu_copies_its_guests_pages_and_interrupts_and_gets_nowhere_else() {
    // Through all of the machine's memory, where the neighbour's is too: it looks after that until the strays are over.
    let strays = [("strays=4 stray-at=0x48000000 stray-by=0x8000000", "strays=31 stray-at=0x42000000 stray-by=0x2000000"), ("keeps=3000", "keeps=12000")];
    let seen = run(&strays, &[]);
    expect_lines(&seen, &["dma| edu: 3 pages copied there and back, 3 right, each with two messages"]);
    expect_lines(&seen, &["dma| edu: 3 factorials, 3 right, each with a message", "dma| edu: 5 rings, 5 heard"]);
    expect_lines(&seen, &["dma| edu: strayed 31 times from 0x42000000 on, brought nothing", "dma| edu: done"]);
    expect_lines(&seen, &["neighbour| edu: kept it, 0 changed"]);
    expect_strays(&seen, 0x4200_0000);
    // 62 times 1024 accesses in some seconds, of which 4 a second are told, and one more.
    let told = seen.log.matches("a device of guest dma").count();
    seen.expect(seen.log.contains("times more before: it was stopped"), "what is not told is counted");
    seen.expect((5..200).contains(&told), "a device that does nothing else is told of little");
}

#[test]
fn a_guest_that_starts_again_finds_its_device_with_the_memory_that_it_has_then() {
    // Pages that the guest has not touched yet are its own too.
    let changes = [("on-reset = \"end\"", "on-reset = \"reboot\"\npopulate = \"lazy\""), ("pages=3 strays=4", "resets=1 pages=2 strays=1")];
    let seen = run(&changes, &[]);
    let count = |text: &str| seen.out.matches(text).count();
    seen.expect(count("dma| edu: 2 pages copied there and back, 2 right") == 2, "in both lives");
    seen.expect(count("dma| edu: strayed 1 times from 0x48000000 on, brought nothing") == 2, "it is kept in, in both");
    expect_lines(&seen, &["dma| edu: resets itself", "dma| edu: done again", "neighbour| edu: kept it, 0 changed"]);
}

/// It dies with each third access of which it should tell, three times: devices go on, and stay kept in.
#[test]
fn an_smmu_server_that_crashes_is_made_again_and_devices_go_on() {
    let changes = [("pages=3 strays=4", "strays=2 pages=4")];
    let seen = run(&changes, FAULTY);
    let count = |text: &str| seen.log.matches(text).count();
    let deaths = count("root| server smmu faulted: ");
    seen.expect(deaths >= 1 && count("root| smmu is made again") == deaths.min(3), "it dies, and is made again");
    expect_lines(&seen, &["dma| edu: 4 pages copied there and back, 4 right", "dma| edu: strayed 2 times", "brought nothing", "dma| edu: done"]);
    expect_lines(&seen, &["neighbour| edu: kept it, 0 changed"]);
}

/// The key says what it said: it sees all of memory, at the machine's addresses, and interrupts; no SMMU is used.
#[test]
fn a_device_that_the_manifest_does_not_protect_goes_around_the_smmu() {
    let changes = [("forward = \"server\"", "dma = \"unprotected\""), (" pages=3 strays=4 stray-at=0x48000000 stray-by=0x8000000", "")];
    let seen = run(&changes, &[]);
    expect_lines(&seen, &["dma| edu: 3 factorials, 3 right, each with a message", "dma| edu: 5 rings, 5 heard", "dma| edu: done"]);
}

/// Two of them: the SMMU keeps one in, and lets the other one's accesses through as they are.
#[test]
fn an_unprotected_device_beside_a_protected_one_goes_through_the_smmu() {
    let board = Board::built_in("virt").expect("a board of ours").to_owned();
    let second = "\n[[device]]\nname = \"edu2\"\nbase = 0x10800000\nbytes = 0x100000\nfunction = \"00:08.0\"\nmessages = 1\n\
                  compatible = [\"trellis,edu\"]\nemulator = [\"-device\", \"edu,addr=8\"]\n\n[emulator]\n";
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spaces-board.toml");
    std::fs::write(&path, board.replace("\n[emulator]\n", second)).expect("a board in the folder for temporary files");
    let board = format!("board = {path:?}");
    let owner = "cpus = [1]\n\n[[guest.neighbour.device]]\ndevice = \"edu2\"\ndma = \"unprotected\"";
    let seen = run(&[("board = \"virt\"", board.as_str()), ("keeps=3000", "facts=2 rings=5"), ("cpus = [1]", owner)], &[]);
    expect_lines(&seen, &["neighbour| edu: 2 factorials, 2 right, each with a message", "neighbour| edu: 5 rings, 5 heard"]);
    expect_lines(&seen, &["dma| edu: 3 pages copied there and back, 3 right", "dma| edu: strayed 4 times from 0x48000000 on, brought nothing"]);
    expect_strays(&seen, 0x4800_0000);
}
