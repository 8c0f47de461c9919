// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that are watched, in whole systems under the emulator: the example on every board; a monitor that dies with an
//! event in its hands, in every way, or never begins; a verdict that ends its guest; a guest that starts again.
//!
//! The guest `watched` looks from inside whether each access had just the effect that was ordered, and crashes otherwise. Runs
//! with a monitor that dies are by instruction count, so that its deadline is exact.

use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::status::Status;
use trellis_cli::system::{FAULTY, StandIns};

const LIMIT: Duration = Duration::from_secs(300);

/// What `watched` needs: writes to its first page allowed, to the second denied, reads of the third denied.
const RULES: [(u64, &str, &str); 3] = [(0, "w", "allow"), (1, "w", "deny"), (2, "r", "deny")];

/// A guest `web` with these keys, and a monitor with these rules and as many more, over pages that nobody uses, as there
/// shall be.
fn run(name: &str, guest: &str, monitor: &str, (rules, count): (&[(u64, &str, &str)], usize), with: (bool, StandIns)) -> Seen {
    let mut text = format!("name = \"{name}\"\nboard = \"virt\"\n\n[guest.web]\nmemory = \"16M\"\n{guest}\n");
    text += &format!("[guest.web.monitor]\nserver = \"watchdog\"\n{monitor}\n\n[server.watchdog]\nimage = \"monitor-standard\"\n");
    let idle = (rules.len()..count).map(|number| (0x100 + number as u64, "r", "allow"));
    let rule = |(page, access, verdict): (u64, &str, &str)| {
        let at = 0x4080_0000 + page * 0x1000;
        format!("    {{ guest = \"web\", pages = \"{at:#x}..{:#x}\", access = \"{access}\", verdict = \"{verdict}\" }},\n", at + 0x1000)
    };
    let rules: String = rules.iter().copied().chain(idle).map(rule).collect();
    text += &format!("[server.watchdog.config]\nwatch = [\n{rules}]\n");
    let (icount, stand_ins) = with;
    story::of_text(&text, Run { icount, timeout: Some(LIMIT), stand_ins, ..Run::default() })
}

fn count(seen: &Seen, text: &str) -> usize {
    seen.log.matches(text).count()
}

fn expect_ordered(seen: &Seen, cpus: usize) {
    let line = format!("web| watched: every access as ordered on {cpus} of {cpus} CPUs");
    seen.expect(seen.out.contains(&line), &line);
    seen.expect_good_end();
}

#[test]
fn the_example_runs_to_its_end_on_every_board() {
    for board in ["virt", "virt-gicv2", "raspi4b"] {
        let seen = story::seen(&Run { board: Some(board.into()), ..story::of("monitor.toml", LIMIT) }, &[]);
        expect_ordered(&seen, 2);
        seen.expect(seen.log.contains("watchdog| web begins, 4 stretches of its memory watched"), "it begins");
        for line in ["wrote 8 bytes at 0x4080_0", "wrote 4 bytes at 0x4080_1"] {
            seen.expect(seen.log.contains(line), line);
        }
        seen.expect(!seen.log.contains("is made again"), "the monitor lives");
    }
}

/// What need not be decided happens at once, in every form, and the monitor reads of it, or of how much it missed.
#[test]
fn what_is_only_reported_has_its_effect_at_once_and_is_read_later() {
    let text = std::fs::read_to_string(story::manifest("monitor.toml")).expect("it comes with Trellis");
    let (asked, told) = ("access = \"w\", verdict = \"allow\"", "access = \"w\", verdict = \"report\"");
    assert!(text.contains(asked) && text.contains("rounds=50"), "the example allows writes of one page");
    let text = text.replace(asked, told).replace("rounds=50", "rounds=50 forms=all");
    let seen = story::of_text(&text, Run { timeout: Some(LIMIT), ..Run::default() });
    expect_ordered(&seen, 2);
    seen.expect(seen.log.contains("wrote 8 bytes at 0x4080_0"), "what was reported is read");
    seen.expect(seen.log.contains("at 0x4080_1"), "and the other page is asked about");
    seen.expect(!seen.log.contains("is made again"), "the monitor lives");
}

/// Pairs, exclusive stores and stores that move their base have no syndrome that says what they do.
#[test]
fn what_no_syndrome_describes_has_the_effect_that_was_ordered_too() {
    let guest = "kernel = \"watched\"\ncommand-line = \"rounds=20 forms=all\"\ncpus = [0, 1]\non-reset = \"end\"";
    expect_ordered(&run("forms", guest, "", (&RULES, 3), (true, &[])), 2);
}

/// Sixteen writes are denied, and each instance dies with the sixth that it would deny.
#[test]
fn a_monitor_that_dies_with_an_event_in_its_hands_is_made_again_and_the_event_is_asked_again() {
    let ways = ["server watchdog faulted", "server watchdog does not answer", "server watchdog does not answer", "server watchdog is lost"];
    for (number, how) in ways.into_iter().enumerate() {
        let guest = "kernel = \"watched\"\ncommand-line = \"rounds=2\"\ncpus = [0, 1]\non-reset = \"end\"";
        let name = format!("dies-{number}");
        let seen = run(&name, guest, "verdict-deadline = \"20ms\"", (&RULES, 3 + number), (true, FAULTY));
        expect_ordered(&seen, 2);
        let lives = count(&seen, "root| watchdog is made again");
        seen.expect((2..=3).contains(&lives), "it died two or three times");
        seen.expect(count(&seen, &format!("root| {how}")) == lives, how);
        seen.expect(count(&seen, "web goes on, ") == lives, "each new one adopts the guest");
        seen.expect(!seen.log.contains("starts again"), "the guest does not notice");
    }
}

#[test]
fn a_monitor_that_never_begins_leaves_its_guest_to_the_manifest() {
    let hello = "kernel = \"hello\"\ncommand-line = \"waits=5\"\non-reset = \"end\"";
    let without = |word: &str| {
        let policy = format!("without-monitor = {{ memory = \"{word}\" }}");
        run(&format!("never-{word}"), hello, &policy, (&RULES, 7), (true, FAULTY))
    };
    let seen = without("hold");
    seen.expect(count(&seen, "root| server watchdog faulted") == 4, "the fourth death in a row is the last");
    seen.expect(seen.log.contains("root| guest web ended because its server watchdog stopped"), "nobody to wait for");
    seen.expect(!seen.out.contains("web| "), "its first instruction is not executed");
    seen.expect(seen.outcome.status == Status::GuestFailed, "no good end");
    let seen = without("allow");
    seen.expect(seen.log.contains("root| guest web goes on unwatched: watchdog died too often"), "it is said");
    seen.expect(seen.out.contains("web| hello: 1 of 1 CPUs finished"), "the guest runs to its end");
    seen.expect_good_end();
}

#[test]
fn a_guest_that_shall_not_be_without_its_monitor_ends_with_it() {
    let guest = "kernel = \"watched\"\ncommand-line = \"rounds=2\"\non-reset = \"end\"";
    let seen = run("no-monitor-no-guest", guest, "without-monitor = { memory = \"stop\" }", (&RULES, 3), (true, FAULTY));
    seen.expect(seen.log.contains("root| guest web ended because its server watchdog stopped"), "it ends");
    seen.expect(!seen.log.contains("is made again"), "for nobody");
    seen.expect(seen.outcome.status == Status::GuestFailed, "no good end");
}

#[test]
fn a_verdict_ends_the_guest() {
    let rules = [(0, "w", "allow"), (1, "w", "stop"), (2, "r", "deny")];
    let guest = "kernel = \"watched\"\ncommand-line = \"rounds=2\"\ncpus = [0, 1]\non-reset = \"end\"";
    let seen = run("verdict", guest, "", (&rules, 3), (false, &[]));
    seen.expect(seen.log.contains("root| guest web was stopped by watchdog, which watches it"), "and why");
    seen.expect(!seen.out.contains("every access as ordered"), "it does not go on");
    seen.expect(seen.outcome.status == Status::GuestFailed, "no good end");
}

/// Its vcpu server crashes once; the guest, which is made again, is watched in its second life as in its first.
#[test]
fn a_guest_that_is_made_again_is_watched_again() {
    let guest = "kernel = \"hostile\"\ncommand-line = \"misdeed=spoil-vcpu how=0 at=30\"\non-reset = \"reboot\"";
    let seen = run("again", guest, "", (&[(0, "w", "deny")], 3), (true, FAULTY));
    seen.expect(seen.log.contains("root| guest web starts again, restart 1"), "it was lost");
    seen.expect(count(&seen, "watchdog| web begins, 3 stretches of its memory watched") == 2, "it is watched twice");
    seen.expect(!seen.log.contains("watchdog is made again"), "by the same monitor");
    seen.expect_good_end();
}
