// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that tries everything beside one that only wants to say hello, on one CPU: the first goes on or ends with a
//! precise report, the second does not notice.
//!
//! Runs are by instruction count: the counter of a guest then counts the instructions of its CPU, whoever executed
//! them, at one a nanosecond, and a wait is as long as it was asked to be. So what `hello` prints for its three waits
//! is exact, the same on every host, and holds all that others took from it.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_boot_tests::tree;
use trellis_cli::run::Run;
use trellis_cli::status::Status;

const BUDGET: &str = "{ time = \"4ms\", period = \"10ms\" }";

/// What it may do and go on.
const MEMORY: &[&str] = &["unaligned-device", "pair-device", "set-way"];
const STORMS: &[&str] = &["spin-masked", "flood-console", "timer-storm", "sgi-storm", "psci-race"];
const MOODS: &[&str] =
    &["big-endian", "alignment-faults", "software-step", "watchpoints", "trap-clock", "cpacr-off", "fp-use"];
const CALLS: &[&str] =
    &["random-hypercalls", "random-smc", "write-id-registers", "debug-registers", "aarch32", "aarch32-hidden", "spoil-vcpu"];

/// What ends it: the misdeed, how many of its addresses to leave out, the report.
const ENDINGS: &[(&str, u32, &str)] = &[
    ("touch-outside", 0, "read from 0xf000000, where it has nothing"),
    ("touch-outside", 4, "read from 0x41000000, where it has nothing"),
    ("touch-outside", 7, "read from 0x7f40000000, where it has nothing"),
    ("spoil-p2m", 0, "read from 0x66600000, where it has nothing"),
    ("jump-nowhere", 0, "jumped to 0x41000000, where it has nothing"),
    ("jump-nowhere", 2, "jumped to 0x4000000000, where it has nothing"),
    ("jump-device", 0, "jumped to 0xf000000, where it has nothing"),
    ("jump-device", 1, "jumped to 0x9000000"),
    ("jump-device", 3, "jumped to 0x80a0000"),
];

/// A manifest with `hello` and, if there are misdeeds, the guest that does them beside it. Their priority is the same:
/// budgets divide time, and who wakes with time left goes before an equal that has had more of its own.
struct Pair<'a> {
    name: &'a str,
    misdeeds: &'a str,
    cpus: &'a str,
    budget: &'a str,
}

impl Default for Pair<'_> {
    fn default() -> Self {
        Pair { name: "alone", misdeeds: "", cpus: "[0]", budget: BUDGET }
    }
}

impl Pair<'_> {
    fn text(&self) -> String {
        let Pair { name, misdeeds, cpus, budget } = self;
        let common = "memory = \"16M\"\non-reset = \"end\"\n";
        let mut text = format!("name = \"{name}\"\nboard = \"virt\"\n\n[guest.hello]\nkernel = \"hello\"\n{common}");
        text += &format!("cpus = [0]\npriority = 100\nbudget = {BUDGET}\n");
        if !misdeeds.is_empty() {
            text += &format!("\n[guest.hostile]\nkernel = \"hostile\"\ncommand-line = \"{misdeeds}\"\n{common}");
            text += &format!("cpus = {cpus}\npriority = 100\nbudget = {budget}\n");
        }
        text
    }

    fn run(&self) -> Seen {
        let timeout = Some(Duration::from_secs(200));
        story::of_text(&self.text(), Run { icount: true, timeout, ..Run::default() })
    }
}

/// What `hello` took for its three waits, in microseconds.
fn waits(seen: &Seen) -> u64 {
    let line = seen.out.lines().find(|line| line.starts_with("hello| ") && line.ends_with(" us"));
    let number = line.and_then(|line| line.rsplit(' ').nth(1)).and_then(|word| word.parse().ok());
    seen.expect(number.is_some(), "hello says how long its waits took");
    number.unwrap_or(u64::MAX)
}

fn expect_hello_undisturbed(seen: &Seen) {
    static ALONE: OnceLock<u64> = OnceLock::new();
    let (alone, beside) = (*ALONE.get_or_init(|| waits(&Pair::default().run())), waits(seen));
    seen.expect(seen.out.contains("hello| hello: 1 of 1 CPUs finished"), "hello finishes well");
    let sentence = format!("hello takes at most 1.2 times as long as alone: {beside} us, {alone} us");
    seen.expect(beside * 10 <= alone * 12, &sentence);
}

fn expect_survival(seen: &Seen, misdeeds: &[&str]) {
    seen.expect_good_end();
    for name in misdeeds {
        seen.expect(seen.out.contains(&format!("hostile| misdeed {name} survived")), name);
    }
    seen.expect(!seen.out.contains(" failed: "), "it gets nothing that it must not get");
    expect_hello_undisturbed(seen);
}

/// One run for each: `hello` lives for three milliseconds, in which all of them are to be seen.
fn survive(misdeeds: &[&str]) {
    for name in misdeeds {
        let wanted = format!("misdeed={name}");
        expect_survival(&Pair { name, misdeeds: &wanted, ..Pair::default() }.run(), &[name]);
    }
}

#[test]
fn accesses_that_no_device_expects_are_survived() {
    survive(MEMORY);
}

#[test]
fn storms_are_survived() {
    survive(STORMS);
}

#[test]
fn registers_at_their_worst_are_survived() {
    survive(MOODS);
}

#[test]
fn calls_and_registers_at_random_are_survived() {
    survive(CALLS);
}

#[test]
fn races_of_several_vcpus_are_survived_and_one_wins() {
    let misdeeds = ["psci-race", "sgi-storm"];
    let (cpus, budget) = ("[0, 0, 0]", "{ time = \"1500us\", period = \"10ms\" }");
    let wanted = format!("misdeed={} loops=20", misdeeds.join(","));
    let seen = Pair { name: "races", misdeeds: &wanted, cpus, budget }.run();
    expect_survival(&seen, &misdeeds);
    seen.expect(seen.out.contains("20 rounds, 2 CPUs: one winner each"), "each round has one winner");
}

#[test]
fn what_has_no_answer_ends_the_guest_with_a_report() {
    for (misdeed, skip, report) in ENDINGS {
        let wanted = format!("misdeed={misdeed} skip={skip}");
        let seen = Pair { name: "endings", misdeeds: &wanted, ..Pair::default() }.run();
        seen.expect(seen.outcome.status == Status::GuestFailed, "a guest that crashed is no good end");
        let sentence = format!("root| guest hostile crashed: vCPU 0 {report}");
        for text in [sentence.as_str(), "µs before: hostile vCPU 0 stops for", "root|   pc  ", ".toml:", "memory = \"16M\"", "root| guest hello switched itself off"] {
            seen.expect(seen.log.contains(text), text);
        }
        seen.expect(!seen.out.contains("survived"), misdeed);
        expect_hello_undisturbed(&seen);
    }
}

/// What the guest can do is what is tried here, and what `docs/checks.md` lists.
#[test]
fn every_misdeed_of_the_guest_is_tried() {
    let read = |path: &str| std::fs::read_to_string(tree::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let source = read("guests/hostile/src/hostile.rs");
    let table = source.split("= misdeeds! {").nth(1).and_then(|rest| rest.split("};").next()).expect("a table of misdeeds");
    let known: BTreeSet<&str> = table.lines().filter_map(|line| line.trim().strip_prefix('"')?.split('"').next()).collect();
    let ended = ENDINGS.iter().map(|(name, ..)| name);
    let tried: BTreeSet<&str> = [MEMORY, STORMS, MOODS, CALLS].into_iter().flatten().chain(ended).copied().collect();
    assert!(known.len() > 20);
    assert_eq!(known, tried);
    let page = read("docs/checks.md");
    let rows: String = page.split("## Misdeeds").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section").into();
    let listed: BTreeSet<&str> = rows.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
    let missing: Vec<_> = known.iter().filter(|name| !listed.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/checks.md says nothing of {missing:?}");
}
