// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that can happen to a device's interrupts, in random order while they come: guests that reset themselves, that
//! are started again, paused and let go on, an irqfwd that is ended and made again, or replaced by another. On four CPUs, with
//! three guests that own devices, one of which interrupts by messages, and one beside them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use trellis_boot_tests::running::System;
use trellis_cli::ctl::What;
use trellis_cli::run::Run;
use trellis_cli::status::Status;
use trellis_cli::system::Host;

/// Guests that own devices.
const OWNERS: [&str; 3] = ["clock", "port", "ring"];

/// A guest whose clock goes from CPU to CPU, one whose messages do, one with a port on one of the same CPUs, and one that only
/// talks.
fn manifest(forward: &str) -> String {
    let device = |guest: &str, device: &str| format!("[[guest.{guest}.device]]\ndevice = \"{device}\"\nforward = \"{forward}\"\n");
    let mut text = String::from("name = \"storms\"\nboard = \"virt\"\ncontrol = \"full\"\n");
    text += "[guest.talk]\nkernel = \"hello\"\ncommand-line = \"name=talk talks=100\"\nmemory = \"16M\"\ncpus = [0]\n";
    text += "[guest.clock]\nkernel = \"alarm\"\ncommand-line = \"beats=100\"\nmemory = \"16M\"\ncpus = [1, 2, 3]\nessential = false\n";
    text += &device("clock", "rtc");
    text += "[guest.port]\nkernel = \"alarm\"\ncommand-line = \"port=200 resets=1\"\nmemory = \"16M\"\ncpus = [2]\nessential = false\n";
    text += &device("port", "serial1");
    text += "[guest.ring]\nkernel = \"edu\"\ncommand-line = \"beats=100\"\nmemory = \"16M\"\ncpus = [3, 1]\nessential = false\n";
    text + &device("ring", "edu") + "dma = \"unprotected\"\n"
}

/// A number that follows from the one before.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// What a guest says when its device goes on.
const SAID: [&str; 3] = ["| alarm: beat ", "| alarm: sent ", "| edu: beat "];

/// How often a guest has said that its device goes on.
fn beats(system: &System, guest: &str) -> usize {
    let text = system.log.text();
    let of = |line: &&str| line.strip_prefix(guest).is_some_and(|rest| SAID.iter().any(|said| rest.starts_with(said)));
    text.lines().filter(of).count()
}

/// Every interrupt leads to another, for all.
fn goes_on(system: &System) {
    let goals = OWNERS.map(|guest| (guest, beats(system, guest) + 2));
    system.until("each device went on", |system| {
        assert!(!system.log.text().contains("the line is dead"), "{}", system.log.text());
        goals.iter().all(|(guest, goal)| beats(system, guest) >= *goal)
    });
}

/// What is left over of things that run out: memory that is nobody's, pages of page tables of each guest.
fn left(system: &System) -> Vec<String> {
    let text = system.ctl(What::Status, true).unwrap_or_else(|failure| panic!("{}", failure.text(false)));
    let is_one = |line: &&str| line.contains("\"free_bytes\"") || line.contains("\"tables_left\"");
    text.lines().filter(is_one).map(|line| line.trim().to_owned()).collect()
}

fn step(system: &System, seed: &mut u64) {
    let guest = OWNERS[next(seed) as usize % OWNERS.len()].to_owned();
    let what = match next(seed) % 5 {
        0 | 1 => What::Reboot { guest },
        2 => What::Pause { guest },
        3 => What::Resume { guest },
        _ => What::Kill { monitor: "irqfwd".into() },
    };
    system.says(what);
}

/// Another program in irqfwd's place.
fn swap(program: &Path) -> What {
    What::Swap { monitor: "irqfwd".into(), program: program.into(), signature: None, fresh: false }
}

/// irqfwd's program in a file of its own.
fn program(folder: &Path) -> PathBuf {
    let file = Host::default().irqfwd().expect("the board's programs build");
    let path = folder.join("next.elf");
    std::fs::write(&path, file).expect("a file in a folder of ours");
    path
}

/// What is left over is what it was. A guest that is just made again comes to that in the end.
fn is_whole(system: &System, before: &[String]) {
    let mut now = Vec::new();
    for _ in 0..100 {
        now = left(system);
        if now == before {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("something was lost: {before:?}, now {now:?}");
}

/// A key for the guest that only talks ends it, and the system with it.
fn ends_well(mut system: System) {
    system.keys.write_all(b"x").expect("it listens");
    let outcome = system.run.join().expect("it does not panic");
    assert_eq!(outcome.map_err(|failure| failure.text(false)), Ok(Status::Well), "{}", system.log.text());
}

fn storm(forward: &str, rounds: u64, mut seed: u64) {
    let system = System::start(&manifest(forward), Run { console: Some("talk".into()), ..Run::default() });
    let folder = tempfile::tempdir().expect("a folder");
    let irqfwd = program(folder.path());
    goes_on(&system);
    let before = left(&system);
    assert_eq!(before.len(), 5, "{before:?}");
    for round in 0..rounds {
        for _ in 0..1 + next(&mut seed) % 6 {
            step(&system, &mut seed);
        }
        // Bytes come slowly to four CPUs that are emulated beside each other: once is enough.
        if round == rounds / 2 {
            system.says(swap(&irqfwd));
        }
        for guest in OWNERS {
            system.says(What::Resume { guest: guest.into() });
        }
        goes_on(&system);
    }
    is_whole(&system, &before);
    let status = system.says(What::Status);
    assert!(status.contains("LINE  GUEST") && status.lines().any(|line| line.starts_with("34    clock")), "{status}");
    ends_well(system);
}

/// Rounds of one to six steps each: six of a system for a way in each run, at night fifty of each of ten systems, a thousand in all.
fn storms(forward: &str) {
    let (systems, rounds) = if std::env::var_os("TRELLIS_NIGHTLY").is_some() { (10, 50) } else { (1, 6) };
    for seed in 0..systems {
        storm(forward, rounds, seed);
        println!("system {seed}: {rounds} rounds");
    }
}

#[test]
fn whatever_is_ended_and_made_again_devices_through_the_server_go_on() {
    storms("server");
}

#[test]
fn whatever_is_ended_and_made_again_devices_without_the_server_go_on() {
    storms("direct");
}

/// Guests that storm on CPUs 0 to 3, by their timer, a clock, a port and messages; guests that sleep on CPUs 4 to 7.
fn neighbours() -> String {
    let mut text = String::from("name = \"neighbours\"\nboard = \"virt\"\ncontrol = \"full\"\n");
    let mut guest = |name: &str, kernel: &str, line: &str, cpu: usize, rest: &str| {
        text += &format!("[guest.{name}]\nkernel = \"{kernel}\"\ncommand-line = \"{line}\"\nmemory = \"16M\"\ncpus = [{cpu}]\n{rest}");
    };
    let device = |guest: &str, device: &str| format!("essential = false\n[[guest.{guest}.device]]\ndevice = \"{device}\"\n");
    guest("talk", "hello", "name=talk talks=100", 0, "");
    guest("clock", "alarm", "storm=100000000", 1, &device("clock", "rtc"));
    guest("port", "alarm", "port=100000000", 2, &device("port", "serial1"));
    guest("ring", "edu", "rings=100000000", 3, &(device("ring", "edu") + "dma = \"unprotected\"\n"));
    for cpu in 4..8 {
        guest(&format!("idle{cpu}"), "hello", &format!("name=idle{cpu} sleeps=1"), cpu, "essential = false\n");
    }
    text
}

/// How often each CPU's kernel was entered in the last second by an interrupt, and by exits of each guest on its own. What looking at
/// them takes is among the former: the CPU whose records are read is asked for them.
fn entries(system: &System) -> (Vec<u64>, Vec<f64>) {
    let text = system.ctl(What::Top { once: true }, true).unwrap_or_else(|failure| panic!("{}", failure.text(false)));
    let top: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let number = |one: &serde_json::Value, key: &str| one[key].as_f64().expect("a number");
    let list = |name: &str| top[name].as_array().expect("a list").clone();
    let count = |cpu: &serde_json::Value| (number(cpu, "interrupts_per_second") * number(cpu, "window_seconds")).round() as u64;
    (list("cpus").iter().map(count).collect(), list("guests").iter().map(|guest| number(guest, "exits_per_second")).collect())
}

/// The same three times, each time after a second of which nobody saw anything.
fn looks(system: &System) -> Vec<(Vec<u64>, Vec<f64>)> {
    let look = |_| {
        thread::sleep(Duration::from_millis(1500));
        entries(system)
    };
    (0..3).map(look).collect()
}

/// The figure of the seed: what a storm costs those who have nothing to do with it. They are entered as often as without it.
#[test]
fn a_cpu_whose_guest_sleeps_executes_nothing_for_the_storms_of_others() {
    let system = System::start(&neighbours(), Run { console: Some("talk".into()), ..Run::default() });
    system.until("the storms are on, and the others sleep", |system| {
        let text = system.log.text();
        text.contains("port| alarm: sent 500") && (4..8).all(|cpu| text.contains(&format!("idle{cpu}: sleeps")))
    });
    thread::sleep(Duration::from_secs(3));
    let storm = looks(&system);
    for guest in OWNERS {
        system.says(What::Pause { guest: guest.into() });
    }
    let calm = looks(&system);
    let all = format!("{storm:?}, and without it {calm:?}");
    // One entry for each question may lie on either side of the second's edge.
    let looked = 1 + calm.iter().flat_map(|(interrupts, _)| &interrupts[4..]).max().expect("four CPUs");
    assert!(looked < 20, "there is little to be told of who sleeps: {all}");
    assert!(calm.iter().all(|(_, exits)| exits[2] == 0.0), "who is paused does nothing: {all}");
    for (interrupts, exits) in &storm {
        assert!(interrupts[1..4].iter().sum::<u64>() > 200 && exits[2] > 0.0, "they storm: {all}");
        assert!(interrupts[4..].iter().all(|count| *count <= looked) && exits[4..] == [0.0; 4], "nobody else has to do with it: {all}");
    }
    ends_well(system);
}
