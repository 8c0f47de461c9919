// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that ends a monitor while its guest runs, and puts another into its place.
//!
//! The guest `watched` looks from inside whether each access had just the effect that was ordered, and crashes otherwise.

use std::io::Write;
use std::path::{Path, PathBuf};
use trellis_boot_tests::running::System;
use trellis_boot_tests::story;
use trellis_cli::ctl::What;
use trellis_cli::rules::Rules;
use trellis_cli::run::Run;
use trellis_cli::session::Outputs;
use trellis_cli::sign::Sign;
use trellis_cli::status::Status;
use trellis_cli::system::Host;

/// The example with a host that may do this, and a guest that goes on, on these CPUs, until it is told to end.
fn start(control: &str, cpus: &str, swap: &str) -> System {
    let text = std::fs::read_to_string(story::manifest("monitor.toml")).expect("the manifest");
    let text = text.replace("control = \"full\"", &format!("control = \"{control}\"")).replace("cpus = [0, 1]", &format!("cpus = {cpus}"));
    let text = text.replace("rounds=50", "until=key").replace("\n\n[server.watchdog.config]", &format!("\n{swap}\n\n[server.watchdog.config]"));
    let system = System::start(&text, Run { icount: true, console: Some("web".into()), ..Run::default() });
    system.until("its guest ran", |system| system.log.text().contains("watchdog| web ") && system.log.text().contains(" wrote "));
    system
}

fn kill(monitor: &str) -> What {
    What::Kill { monitor: monitor.into() }
}

/// The guest is told to end; every access of it had the effect that was ordered.
fn ends_well(mut system: System, cpus: usize) -> String {
    system.keys.write_all(b"x").expect("it listens");
    let (out, log) = (system.out.clone(), system.log.clone());
    let outcome = system.run.join().expect("it does not panic");
    let seen = format!("{}\n{}", out.text(), log.text());
    assert_eq!(outcome.map_err(|failure| failure.text(false)), Ok(Status::Well), "{seen}");
    assert!(seen.contains(&format!("watched: every access as ordered on {cpus} of {cpus} CPUs")), "{seen}");
    log.text()
}

#[test]
fn a_host_ends_a_monitor_again_and_again_and_its_guest_does_not_notice() {
    let system = start("full", "[0, 1]", "");
    let nobody = system.ctl(kill("nobody"), false).expect_err("there is none").text(false);
    assert!(nobody.contains("there is no monitor nobody") && nobody.contains("there are: watchdog"), "{nobody}");
    let said: Vec<String> = (0..6).map(|life| system.says(kill(if life % 2 == 0 { "watchdog" } else { "monitor" }))).collect();
    for said in &said {
        assert!(said.starts_with("watchdog was ended and made again; 1 guest is watched\n"), "{said}");
    }
    let log = ends_well(system, 2);
    assert_eq!(log.matches("root| watchdog is made again").count(), 6, "{log}");
    assert!(!log.contains("starts again") && !log.contains("faulted"), "{log}");
}

#[test]
fn a_host_that_may_only_look_ends_no_monitor() {
    let system = start("observe", "[0, 1]", "");
    let refused = system.ctl(kill("watchdog"), false).expect_err("it is refused").text(false);
    assert!(refused.contains("control = \"observe\""), "{refused}");
    assert!(!ends_well(system, 2).contains("is made again"));
}

/// Another build of the standard monitor: the same file with other bytes behind what is loaded.
fn program(folder: &Path, name: &str, spoil: impl Fn(&mut Vec<u8>)) -> PathBuf {
    let mut file = Host::default().monitor().expect("the board's programs build");
    spoil(&mut file);
    let path = folder.join(name);
    std::fs::write(&path, file).expect("a file in a folder of ours");
    path
}

/// Its first segment's file reaches over 600 KiB.
fn long(file: &mut Vec<u8>) {
    file.resize(700 << 10, 0);
    file[64 + 32..64 + 40].copy_from_slice(&(600u64 << 10).to_le_bytes());
}

fn swap(program: &Path, fresh: bool) -> What {
    What::Swap { monitor: "watchdog".into(), program: program.into(), signature: None, fresh }
}

#[test]
fn another_program_takes_the_monitors_place_with_what_it_knows_and_its_guest_does_not_notice() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = program(folder.path(), "next.elf", |_| {});
    let system = start("full", "[0, 1]", "");
    for (name, spoil, why) in [
        ("foreign.elf", (|file| file[18] = 62) as fn(&mut Vec<u8>), "it is for another machine"),
        ("text.elf", |file| file.truncate(60), "it is no ELF file"),
        ("long.elf", long, "the file is too long"),
        // Its code begins with a branch to itself: it never begins to serve.
        ("hangs.elf", |file| file[0x1000..0x1004].copy_from_slice(&[0, 0, 0, 0x14]), "it could not begin"),
        // And with an instruction that is none.
        ("crashes.elf", |file| file[0x1000..0x1004].copy_from_slice(&[0; 4]), "it could not begin"),
    ] {
        let bad = program(folder.path(), name, spoil);
        let refused = system.ctl(swap(&bad, false), false).expect_err("it is refused").text(false);
        assert!(refused.contains(why), "{name}: {refused}\n{}", system.log.text());
    }
    for round in 0..4 {
        let said = system.says(swap(&good, round == 3));
        assert!(said.contains("next.elf now; 1 guest is watched"), "{said}");
        assert!(said.contains(if round == 3 { "it begins without what the old one knew" } else { "bytes of state were handed over" }), "{said}");
    }
    // What was uploaded is what is made again.
    assert!(system.says(kill("watchdog")).contains("was ended and made again"));
    let log = ends_well(system, 2);
    assert_eq!(log.matches("root| watchdog is replaced").count(), 4, "{log}");
    assert!(!log.contains("starts again") && !log.contains("web ended"), "{log}");
}

/// Where in a list of rules the one with this number is: what was seen, and what it says.
fn listed(text: &str, number: &str, list: &str) -> Option<(u64, String)> {
    let row = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row.len() > 7 && row[..2] == [number, list])?;
    Some((row[3].parse().ok()?, row[7..].join(" ")))
}

/// In the manifest's words, on a system that runs; what was added outlives the monitor that it was added to.
#[test]
fn rules_are_listed_added_and_removed_while_the_guest_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let system = start("full", "[0, 1]", "");
    let watch = |rules: Rules| What::Watch(Rules { guest: "web".into(), ..rules });
    let list = || system.says(watch(Rules::default()));
    let text = list();
    assert_eq!(listed(&text, "2", "watch").map(|(_, says)| says).as_deref(), Some("0x40801000..0x40802000 w: denied, and logged"), "{text}");
    let pages = |pages: &str, access: &str| {
        watch(Rules { pages: Some(pages.into()), access: Some(access.into()), verdict: "report".into(), ..Rules::default() })
    };
    let said = system.says(pages("0x40802000..0x40803000", "w"));
    assert_eq!(said, "rule 101 of watchdog for guest web: 0x40802000..0x40803000 w: happens, and is reported\n");
    let starts = watch(Rules { on: Some("vcpu-stop".into()), verdict: "report".into(), log: true, ..Rules::default() });
    assert!(system.says(starts).starts_with("rule 102 of watchdog for guest web: a vCPU that runs no more"));
    system.until("the guest wrote there", |_| listed(&list(), "101", "added").is_some_and(|(seen, _)| seen > 10));
    let refused = |what| system.ctl(what, false).expect_err("it is refused").text(false);
    assert!(refused(pages("0x40800000..0x40801000", "w")).contains("another rule, or another monitor of guest web, has that already"));
    assert!(refused(pages("0x90000000..0x90001000", "w")).contains("not the memory of guest web"));
    assert!(refused(watch(Rules { remove: Some(1), ..Rules::default() })).contains("the manifest's"));
    assert!(refused(watch(Rules { remove: Some(103), ..Rules::default() })).contains("no such rule was added"));
    // Another in its place, by a crash and by a swap, has them; and what the last one counted.
    assert!(system.says(kill("watchdog")).contains("was ended and made again"));
    system.until("it is seen again", |_| listed(&list(), "101", "added").is_some_and(|(seen, _)| seen > 10));
    let before = listed(&list(), "101", "added").expect("it is there").0;
    assert!(system.says(swap(&program(folder.path(), "next.elf", |_| {}), false)).contains("bytes of state were handed over"));
    let after = listed(&list(), "101", "added").expect("it is there").0;
    assert!(after >= before, "{before} and then {after}");
    let json = system.ctl(watch(Rules::default()), true).expect("it answers");
    assert!(json.contains("\"number\": 102") && json.contains("\"of\": \"added\""), "{json}");
    assert_eq!(system.says(watch(Rules { remove: Some(101), ..Rules::default() })), "rule 101 of guest web is no more\n");
    assert!(listed(&list(), "101", "added").is_none());
    let log = ends_well(system, 2);
    assert!(log.contains("was switched off (heard by rule 102 of events)"), "the last that it tells of\n{log}");
}

#[test]
fn a_host_that_may_only_look_lists_rules_and_adds_none() {
    let system = start("observe", "[0, 1]", "");
    let watch = |rules: Rules| What::Watch(Rules { guest: "web".into(), verdict: "allow".into(), ..rules });
    assert!(listed(&system.says(watch(Rules::default())), "1", "watch").is_some());
    for rules in [Rules { on: Some("smc".into()), ..Rules::default() }, Rules { remove: Some(101), ..Rules::default() }] {
        let refused = system.ctl(watch(rules), false).expect_err("it is refused").text(false);
        assert!(refused.contains("control = \"observe\""), "{refused}");
    }
    ends_well(system, 2);
}

/// The oracle of `tests/walks/tests/swap.rs` once more, in short, with the guest's own eyes.
#[test]
fn monitors_come_and_go_on_one_cpu_and_on_four() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = program(folder.path(), "next.elf", |_| {});
    let bad = program(folder.path(), "crashes.elf", |file| file[0x1000..0x1004].copy_from_slice(&[0; 4]));
    for (cpus, count) in [("[0]", 1), ("[0, 1, 2, 3]", 4)] {
        let system = start("full", cpus, "");
        for round in 0..2 {
            assert!(system.says(swap(&good, round == 1)).contains("1 guest is watched"));
            assert!(system.ctl(swap(&bad, false), false).is_err());
            assert!(system.says(kill("watchdog")).contains("was ended and made again"));
        }
        ends_well(system, count);
    }
}

/// Rounds of one system: it must end within its time limit.
const LIFE: u64 = 40;

/// Something happens to the monitor of a running system, and it is said as it should be.
fn round(system: &System, [good, bad, hangs, none]: [&Path; 4], kind: u64) {
    let refused = |program: &Path, why: &str| {
        let refused = system.ctl(swap(program, false), false).expect_err("it is refused").text(false);
        assert!(refused.contains(why), "{refused}\n{}", system.log.text());
    };
    match kind {
        0..=3 => {
            let said = system.says(swap(good, kind == 3));
            assert!(said.contains("1 guest is watched"), "{said}");
            assert!(kind == 3 || said.contains("bytes of state were handed over"), "{said}");
        }
        4 => assert!(system.says(kill("watchdog")).contains("was ended and made again")),
        5 => refused(bad, "it could not begin"),
        6 => refused(hangs, "it could not begin"),
        _ => refused(none, "it is no ELF file"),
    }
}

/// A thousand swaps and as many failures in random order, with one, two and four CPUs. `TRELLIS_BOOT_SWAPS`: another number.
#[test]
#[ignore = "nightly: hours"]
fn monitors_come_and_go_and_fail_a_thousand_times() {
    let rounds: u64 = std::env::var("TRELLIS_BOOT_SWAPS").ok().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let folder = tempfile::tempdir().expect("a folder");
    let good = program(folder.path(), "next.elf", |_| {});
    let bad = program(folder.path(), "crashes.elf", |file| file[0x1000..0x1004].copy_from_slice(&[0; 4]));
    let hangs = program(folder.path(), "hangs.elf", |file| file[0x1000..0x1004].copy_from_slice(&[0, 0, 0, 0x14]));
    let none = program(folder.path(), "text.elf", |file| file.truncate(60));
    let mut numbers = 1u64;
    for (cpus, count) in [("[0]", 1), ("[0, 1]", 2), ("[0, 1, 2, 3]", 4)] {
        // Half of them are swaps.
        for begin in (0..2 * rounds).step_by(LIFE as usize) {
            let system = start("full", cpus, "");
            for _ in begin..(begin + LIFE).min(2 * rounds) {
                // Marsaglia's xorshift.
                numbers ^= numbers << 13;
                numbers ^= numbers >> 7;
                numbers ^= numbers << 17;
                round(&system, [&good, &bad, &hangs, &none], numbers % 8);
            }
            let log = ends_well(system, count);
            assert!(!log.contains("starts again") && !log.contains("web ended"), "{log}");
        }
    }
}

/// The boot ring's bound; `./trellis bench` prints the figures.
#[test]
fn a_guest_waits_for_another_monitor_for_half_a_million_instructions_at_most() {
    let figures = trellis_cli::swaps::measure().unwrap_or_else(|failure| panic!("{}", failure.text(false)));
    assert_eq!(figures.len(), 2);
    assert!(figures.iter().all(|figure| (1..500_000).contains(&figure.value)), "{figures:?}");
}

#[test]
fn where_the_manifest_demands_it_only_signed_programs_that_are_not_older_are_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let (key, good) = (folder.path().join("ops"), program(folder.path(), "next.elf", |_| {}));
    let sign = |sign: Sign| sign.carry_out(&mut Outputs { out: &mut Vec::new(), log: &mut Vec::new() }).expect("it is done");
    sign(Sign { program: None, key: None, counter: 0, new: Some(key.clone()) });
    let public = folder.path().join("ops.pub");
    let system = start("full", "[0, 1]", &format!("swap = {{ signed-by = \"{}\", counter = 3 }}", public.display()));
    let refused = |why: &str| {
        let refused = system.ctl(swap(&good, false), false).expect_err("it is refused").text(false);
        assert!(refused.contains(why), "{refused}");
    };
    refused("it is not signed by whom the manifest names");
    let number = |counter| sign(Sign { program: Some(good.clone()), key: Some(key.clone()), counter, new: None });
    number(2);
    refused("its number must be 3 or higher");
    number(5);
    system.says(swap(&good, false));
    number(4);
    refused("its number must be 5 or higher");
    ends_well(system, 2);
}

/// Numbers of the events in what the tool printed, and what it says was lost.
fn numbers(text: &str) -> (Vec<u64>, usize) {
    let events = text.lines().filter(|line| line.contains("watchdog| web (vCPU "));
    let numbers = events.map(|line| line.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")).collect();
    (numbers, text.lines().filter(|line| line.ends_with("lost)")).count())
}

#[test]
fn a_host_follows_events_goes_away_and_comes_back() {
    let system = start("observe", "[0, 1]", "");
    let list = || system.says(What::Events { follow: false });
    let (first, _) = numbers(&list());
    assert!(first.len() > 10 && first.windows(2).all(|pair| pair[0] < pair[1]), "{first:?}");
    // Nobody asks for a while: what is not remembered is counted.
    system.until("more events came", |_| numbers(&list()).0.first() > first.last());
    let text = list();
    assert!(text.lines().next().is_some_and(|line| line.ends_with("events lost)")), "{text}");
    let json = system.ctl(What::Events { follow: false }, true).expect("it answers");
    assert!(json.contains("\"verdict\":\"denied\"") && json.contains("\"guest\":\"web\"") && json.contains("\"lost\":"), "{json}");
    // Somebody follows them, and goes away in the middle.
    drop(std::os::unix::net::UnixStream::connect(&system.socket).and_then(|mut client| client.write_all(&[5, 1, 1, 10])));
    assert!(numbers(&list()).0.len() > 10);
    ends_well(system, 2);
}
