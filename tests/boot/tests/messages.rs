// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that owns a function of PCI, in whole systems under the emulator: its messages become LPIs by the interrupt
//! translation service, and one of the guest's lines.

use std::path::Path;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::system::{FAULTY, StandIns};
use trellis_images::Board;

const LIMIT: Duration = Duration::from_secs(300);

/// A guest that owns the function, with this command line, on these CPUs.
fn run(forward: &str, arguments: &str, cpus: &str, with: (bool, StandIns)) -> Seen {
    let text = story::owner("edu", "edu", forward, arguments, cpus) + "dma = \"unprotected\"\n";
    let (icount, stand_ins) = with;
    story::of_text(&text, Run { icount, timeout: Some(LIMIT), stand_ins, ..Run::default() })
}

fn expect_lines(seen: &Seen, lines: &[&str]) {
    seen.expect_lines("edu", lines);
    seen.expect_lines("edu", &["done"]);
    seen.expect_good_end();
}

#[test]
fn every_message_of_a_function_interrupts_the_guest_that_owns_it() {
    for forward in ["server", "direct"] {
        let seen = run(forward, "facts=12 rings=100", "[0]", (false, &[]));
        expect_lines(&seen, &["at 0xb000000 with interrupt 127", "is 0x10000ed and lives"]);
        expect_lines(&seen, &["12 factorials, 12 right, each with a message", "100 rings, 100 heard"]);
    }
}

/// Three functions at once. The tables of two are on pages that the guest does not see, among registers that it does. Back:
/// what was seen, where each message of the card was heard as often as it was called for.
fn three_functions(forward: &str, (facts, rings, calls): (u32, u32, u32), stand_ins: StandIns) -> Seen {
    let shown = std::fs::read_to_string(story::manifest("functions.toml")).expect("the manifest");
    let text = shown.replace("dma =", &format!("forward = \"{forward}\"\ndma ="));
    let text = text.replace("facts=12 rings=100 calls=20", &format!("facts={facts} rings={rings} calls={calls}"));
    let seen = story::of_text(&text, Run { timeout: Some(LIMIT), stand_ins, ..Run::default() });
    expect_lines(&seen, &[&format!("{facts} factorials, {facts} right"), &format!("{rings} rings, {rings} heard")]);
    expect_lines(&seen, &[&format!("a card at 0xb100000, 5 messages called for {calls} times each, 5 heard as often")]);
    expect_lines(&seen, &["a source at 0xb160000 is as Virtio 1 says"]);
    seen
}

#[test]
fn every_message_of_a_table_comes_as_a_line_of_its_own() {
    for forward in ["server", "direct"] {
        let seen = three_functions(forward, (12, 100, 20), &[]);
        seen.expect(!seen.log.contains("irqfwd| "), "irqfwd has nothing to say");
    }
}

/// It dies with every twentieth message in its hands; the card writes each of 25 once or twice. The next one finds the tables
/// filled, and lets them be.
#[test]
fn a_table_of_messages_outlives_an_irqfwd_that_crashes() {
    let seen = three_functions("server", (0, 0, 5), FAULTY);
    let count = |text: &str| seen.log.matches(text).count();
    let deaths = count("root| server irqfwd faulted: ");
    seen.expect((1..=3).contains(&deaths) && count("root| irqfwd is made again") == deaths, "it died, and was made again");
}

#[test]
fn a_message_goes_to_the_cpu_that_the_guest_sends_it_to() {
    for forward in ["server", "direct"] {
        let seen = run(forward, "rings=5", "[1, 0, 2, 1]", (false, &[]));
        expect_lines(&seen, &["CPU 1 sent for, CPU 1 got it", "CPU 2 sent for, CPU 2 got it", "CPU 3 sent for, CPU 3 got it"]);
        expect_lines(&seen, &["5 rings, 5 heard"]);
    }
}

/// The service masks it: what comes meanwhile is one interrupt afterwards.
#[test]
fn a_function_that_writes_too_many_messages_is_masked_for_a_while_and_none_that_counts_is_lost() {
    let seen = run("server", "storm=20000", "[0]", (true, &[]));
    expect_lines(&seen, &["a storm of 20000 took"]);
    seen.expect(seen.log.contains("irqfwd| line 8192 comes too often: masked for a while"), "it is said");
}

/// It dies with every twentieth message in its hands, three times; the next one finds the service at work.
#[test]
fn an_irqfwd_that_crashes_is_made_again_and_no_message_is_lost() {
    let seen = run("server", "rings=70", "[0, 1]", (false, FAULTY));
    expect_lines(&seen, &["70 rings, 70 heard", "CPU 1 sent for, CPU 1 got it"]);
    let count = |text: &str| seen.log.matches(text).count();
    seen.expect(count("root| server irqfwd faulted: ") == 3 && count("root| irqfwd is made again") == 3, "it died three times");
    seen.expect(!seen.log.contains("no interrupts of messages"), "and the next one has the service");
}

/// A guest that owns the device for teaching and a card (82576) that can reset itself, with a table of ten messages on a page of its own.
fn with_twin(arguments: &str, on_reset: &str, stand_ins: StandIns) -> Seen {
    let twin = "\n[[device]]\nname = \"twin\"\nfunction = \"00:08.0\"\nranges = [\n\
                { register = 0, base = 0x10200000, bytes = 0x20000 },\n\
                { register = 1, base = 0x10220000, bytes = 0x20000 },\n\
                { register = 3, base = 0x10240000, bytes = 0x4000 },\n]\n\
                table = { entries = 10, register = 3, offset = 0 }\npending = { register = 3, offset = 0x2000 }\nmessages = 3\n\
                compatible = [\"trellis,twin\"]\nemulator = [\"-device\", \"igb,addr=8,romfile=\"]\n\n[emulator]\n";
    let board = Board::built_in("virt").expect("a board of ours").replace("\n[emulator]\n", twin);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("messages-board-{on_reset}.toml"));
    std::fs::write(&path, board).expect("a board in the folder for temporary files");
    let text = story::owner("edu", "edu", "server", arguments, "[0]").replace("board = \"virt\"", &format!("board = {path:?}"));
    let text = text.replace("on-reset = \"end\"", &format!("on-reset = \"{on_reset}\""));
    let text = text + "dma = \"unprotected\"\n\n[[guest.edu.device]]\ndevice = \"twin\"\ndma = \"unprotected\"\n";
    story::of_text(&text, Run { timeout: Some(LIMIT), stand_ins, ..Run::default() })
}

/// The card forgets what it was told, and works; the other device has no reset, so that its guest knows that it comes again.
#[test]
fn a_function_that_can_is_reset_when_its_guest_starts_again() {
    let seen = with_twin("resets=1 calls=5 rings=3", "reboot", &[]);
    let count = |text: &str| seen.out.matches(text).count();
    seen.expect(count("edu: a twin at 0xb100000, 3 messages called for 5 times each, 3 heard as often") == 2, "it works in both lives");
    seen.expect(count("edu: the twin was told 0x0 before, and 0x1234 since") == 2, "and begins both as after a start of the machine");
    expect_lines(&seen, &["resets itself", "3 rings, 3 heard", "done again"]);
    let keeps = "irqfwd| function 00:02.0 of guest 0 was not reset: it keeps what it was told before";
    seen.expect(seen.log.matches(keeps).count() == 1 && !seen.log.contains("function 00:08.0"), "what cannot be reset is told");
}

/// The next one finds it in use, as often as it dies.
#[test]
fn a_function_that_can_be_reset_is_not_while_its_guest_uses_it() {
    let seen = with_twin("calls=15", "end", FAULTY);
    expect_lines(&seen, &["a twin at 0xb100000, 3 messages called for 15 times each, 3 heard as often"]);
    expect_lines(&seen, &["the twin was told 0x0 before, and 0x1234 since"]);
    let count = |text: &str| seen.log.matches(text).count();
    let deaths = count("root| server irqfwd faulted: ");
    seen.expect((1..=3).contains(&deaths) && count("root| irqfwd is made again") == deaths, "it died, and was made again");
    seen.expect(!seen.log.contains("was not reset"), "no function began anew");
}
