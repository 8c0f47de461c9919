// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that crash, hang or end while their guest runs, in whole systems under the emulator: the report names the
//! server, the guest starts again or ends as its manifest says, and `hello` beside it on the same CPU goes on.
//!
//! The servers have a weakness, for these tests only (`tests/faulty`), and `hostile` knows the word. Runs are by
//! instruction count, so that times are exact, but for the one that costs too many.

use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::status::Status;
use trellis_cli::system::FAULTY;

const CRASH: u8 = 0;
const SPIN: u8 = 1;
const SLEEP: u8 = 2;
const END: u8 = 3;

/// `hello` beside a guest that spoils one of its servers.
fn run(server: &str, how: u8, on_reset: &str, more: &str) -> Seen {
    let budget = "budget = { time = \"4ms\", period = \"10ms\" }";
    let common = format!("memory = \"16M\"\n{budget}\n");
    let mut text = format!("name = \"faulty\"\nboard = \"virt\"\n\n[guest.hello]\nkernel = \"hello\"\ncommand-line = \"waits=40\"\n{common}");
    text += &format!("\n[guest.victim]\nkernel = \"hostile\"\ncommand-line = \"misdeed=spoil-{server} how={how} {more}\"\n");
    text += &format!("on-reset = \"{on_reset}\"\n{common}");
    let timeout = Some(Duration::from_secs(300));
    // Five seconds in a circle are many instructions.
    let icount = how != SPIN;
    story::of_text(&text, Run { icount, timeout, stand_ins: FAULTY, ..Run::default() })
}

/// That these stand in the log in this order.
fn expect_in_order(seen: &Seen, wanted: &[&str]) {
    let mut rest = seen.log.as_str();
    for text in wanted {
        let at = rest.find(text);
        seen.expect(at.is_some(), &format!("{text:?} is in the log, behind what comes before it"));
        rest = &rest[at.map_or(0, |at| at + text.len())..];
    }
}

fn expect_hello_finishes(seen: &Seen) {
    seen.expect(seen.out.contains("hello| CPU 0: 40 timer interrupts"), "hello waits as often as it shall");
    seen.expect(seen.out.contains("hello| hello: 1 of 1 CPUs finished"), "hello finishes well");
    seen.expect(seen.log.contains("root| guest hello switched itself off"), "hello ends well");
}

/// What root says of a server that crashes: how, where, with which registers, what was before.
const CRASHED: [&str; 5] = ["it read from 0x300ff000, where it may not", "syndrome 0x", "  pc  0000000000", "  x0  ", "before: "];

#[test]
fn a_server_that_crashes_ends_its_guest_with_a_report_and_nobody_else() {
    for server in ["vcpu", "p2m"] {
        let seen = run(server, CRASH, "end", "");
        let (fault, end) = (format!("root| server {server}.victim faulted: "), format!("root| guest victim ended because its server {server}.victim stopped"));
        let mut wanted = vec![fault.as_str()];
        wanted.extend(CRASHED);
        wanted.extend([end.as_str(), "root| guest hello switched itself off", "not every guest has ended well"]);
        expect_in_order(&seen, &wanted);
        seen.expect(!seen.log.contains("starts again"), "its manifest says that it ends");
        seen.expect(seen.outcome.status == Status::GuestFailed, "a guest that lost its server is no good end");
        expect_hello_finishes(&seen);
    }
}

#[test]
fn a_guest_whose_server_crashes_once_starts_again_and_ends_well() {
    for server in ["vcpu", "p2m"] {
        let seen = run(server, CRASH, "reboot", "at=30");
        let fault = format!("root| server {server}.victim faulted: ");
        let again = ["root| guest victim starts again, restart 1", "root| guest victim switched itself off"];
        let mut wanted = vec![fault.as_str()];
        wanted.extend(CRASHED);
        wanted.extend(again);
        expect_in_order(&seen, &wanted);
        seen.expect(!seen.log.contains("restart 2"), "once is enough");
        seen.expect(seen.out.contains("victim| nothing is asked again"), "its second life begins at its beginning");
        seen.expect_good_end();
        expect_hello_finishes(&seen);
    }
}

#[test]
fn a_server_that_crashes_at_each_start_takes_its_guest_along_in_the_end() {
    let seen = run("vcpu", CRASH, "reboot", "");
    let faults = seen.log.matches("root| server vcpu.victim faulted: ").count();
    seen.expect(faults == 4, "the fourth death in a row is the last");
    let restarts = ["restart 1", "restart 2", "restart 3", "guest victim ended because its server vcpu.victim stopped"];
    expect_in_order(&seen, &restarts);
    seen.expect(seen.outcome.status == Status::GuestFailed, "a guest that could not go on is no good end");
    expect_hello_finishes(&seen);
}

#[test]
fn a_server_that_ends_while_its_guest_runs_is_made_again_or_ends_it() {
    for server in ["vcpu", "p2m"] {
        let seen = run(server, END, "end", "");
        let lost = format!("root| server {server}.victim is lost");
        let end = format!("root| guest victim ended because its server {server}.victim stopped");
        expect_in_order(&seen, &[&lost, &end, "root| guest hello switched itself off"]);
        seen.expect(seen.outcome.status == Status::GuestFailed, "a guest that lost its server is no good end");
        expect_hello_finishes(&seen);
        let seen = run(server, END, "reboot", "at=30");
        expect_in_order(&seen, &[&lost, "root| guest victim starts again, restart 1", "root| guest victim switched itself off"]);
        seen.expect_good_end();
        expect_hello_finishes(&seen);
    }
}

#[test]
fn a_server_that_hangs_is_found_and_its_guest_starts_again_or_ends() {
    let hello = "root| guest hello switched itself off";
    let late = |server: &str, class: &str| format!("root| server {server} does not answer: it took too long for an exit of vCPU 0, class {class}");
    for (server, class) in [("vcpu", "Hypercall"), ("p2m", "Memory")] {
        let seen = run(server, SLEEP, "reboot", "at=30");
        let late = late(&format!("{server}.victim"), class);
        expect_in_order(&seen, &[hello, &late, "root| guest victim starts again, restart 1", "root| guest victim switched itself off"]);
        seen.expect_good_end();
        expect_hello_finishes(&seen);
    }
    let seen = run("vcpu", SPIN, "end", "");
    // By the clock of the machine at the desk: it is not said here who of the two ends first.
    expect_in_order(&seen, &[&late("vcpu.victim", "Hypercall"), "root| guest victim ended because its server vcpu.victim stopped"]);
    seen.expect(seen.outcome.status == Status::GuestFailed, "a guest that lost its server is no good end");
    expect_hello_finishes(&seen);
}
