// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point registers on every kind of CPU: guests with vectors of different lengths, or none, on one CPU and on
//! several, each with something of its own in every register.

use std::fmt::Write as _;
use std::time::Duration;
use trellis_boot_tests::story::{Seen, of, of_text, seen};
use trellis_cli::run::Run;
use trellis_cli::status::Status;
use trellis_cli::system::MEASURE;

const LIMIT: Duration = Duration::from_secs(300);

/// One guest: what its manifest says of SVE, and the bits that its vectors must then have.
type Wish = (&'static str, u64);

/// Guests of our own side by side, all on these CPUs.
fn manifest(cpus: &[u8], rounds: u64, wishes: &[Wish]) -> String {
    let mut text = "name = \"vectors\"\nboard = \"virt\"\n".to_owned();
    for (index, (sve, bits)) in wishes.iter().enumerate() {
        let line = format!("name=g{index} seed={} bits={bits} rounds={rounds}", index + 1);
        let _ = write!(text, "\n[guest.g{index}]\nkernel = \"vectors\"\ncommand-line = \"{line}\"\n");
        let _ = writeln!(text, "memory = \"16M\"\non-reset = \"end\"\ncpus = {cpus:?}\nsve = {sve}");
    }
    text
}

/// Runs until all have ended.
fn run(cpu: &str, text: &str) -> Seen {
    of_text(text, Run { cpu: Some(cpu.into()), timeout: Some(LIMIT), ..Run::default() })
}

fn beside(cpu: &str, cpus: &[u8], rounds: u64, wishes: &[Wish]) -> Seen {
    run(cpu, &manifest(cpus, rounds, wishes))
}

/// Every guest found all its registers again.
fn all_right(cpu: &str, cpus: &[u8], rounds: u64, wishes: &[Wish]) {
    let seen = beside(cpu, cpus, rounds, wishes);
    seen.expect(!seen.out.contains("WRONG"), "nobody finds what is not its own");
    seen.expect_good_end();
    let right = seen.guests_with(|line| line.contains("every register right"));
    seen.expect(right.len() == wishes.len(), "every guest says so");
}

const NONE: Wish = ("\"off\"", 0);

/// A program in root's place moves vCPUs with vectors of 2048 and 256 bits and with fixed ones between two CPUs, then takes
/// one of them out of use, and stops at the first register that is not as it was.
#[test]
fn vcpus_that_move_between_cpus_take_every_register_along() {
    let run = Run { cpu: Some("max".into()), stand_ins: MEASURE, ..of("bench-moves.toml", LIMIT) };
    let seen = seen(&run, &[]);
    let moves = seen.log.split_once("checked: ").and_then(|(_, rest)| rest.split_once(" moves between CPUs, every register right"));
    let moves = moves.and_then(|(count, _)| count.parse::<u64>().ok());
    seen.expect(moves.is_some_and(|moves| moves > 300), "it came to its end");
    seen.expect(seen.log.contains("checked: CPU 1 has stopped, and the others go on"), "in the end one CPU stops");
}

/// Root takes the pages of all servers' threads, and nothing else changes: ours use no floating point.
#[test]
fn servers_that_may_use_floating_point_leave_their_guests_registers_alone() {
    let wishes = [("256", 256), NONE];
    let text = format!("server-float = \"own\"\n{}", manifest(&[0, 1], 60, &wishes));
    let seen = run("max", &text);
    seen.expect_good_end();
    let right = seen.guests_with(|line| line.contains("every register right"));
    seen.expect(right.len() == wishes.len(), "every guest says so");
}

#[test]
fn lengths_from_none_to_2048_bits_alternate_on_one_cpu() {
    all_right("max", &[0], 120, &[("2048", 2048), NONE, ("128", 128), ("512", 512), ("256", 256), NONE]);
}

#[test]
fn vectors_are_right_on_four_cpus() {
    all_right("max", &[0, 1, 2, 3], 60, &[("256", 256), ("2048", 2048), NONE]);
}

#[test]
fn a_cpu_without_scalable_vectors_keeps_the_fixed_ones_apart() {
    all_right("cortex-a72", &[0], 120, &[NONE, NONE, NONE]);
}

#[test]
fn a_length_that_the_cpu_would_shorten_is_refused_with_both_numbers() {
    let seen = beside("neoverse-v1", &[0], 20, &[("384", 384), NONE]);
    seen.expect(seen.outcome.status == Status::GuestFailed, "the refused guest counts as failed");
    let sentence = "it asks for SVE vectors of 384 bits, and the CPUs of this machine would give it 256 (they have 128, 256)";
    seen.expect(seen.log.contains(sentence), sentence);
    seen.expect(seen.out.contains("every register right"), "the other guest runs");
}

#[test]
fn a_cpu_without_sve_refuses_every_wish() {
    let seen = beside("cortex-a72", &[0], 20, &[("\"max\"", 0), ("128", 128)]);
    seen.expect(seen.outcome.status == Status::GuestFailed, "both count as failed");
    for sentence in ["it asks for SVE vectors, and the CPUs", "it asks for SVE vectors of 128 bits, and the CPUs"] {
        seen.expect(seen.log.contains(sentence), sentence);
    }
}

#[test]
fn neoverse_v1_has_256_and_128_bits() {
    all_right("neoverse-v1", &[0], 200, &[("256", 256), ("128", 128), ("\"max\"", 256), NONE]);
    all_right("neoverse-v1", &[0, 1, 2, 3], 100, &[("256", 256), ("128", 128), NONE]);
}

#[test]
fn neoverse_n2_has_128_bits() {
    all_right("neoverse-n2", &[0], 200, &[("128", 128), ("\"max\"", 128), NONE]);
}

#[test]
fn a64fx_has_512_256_and_128_bits() {
    all_right("a64fx", &[0], 200, &[("512", 512), ("256", 256), ("128", 128), ("\"max\"", 512), NONE]);
}

#[test]
fn max_with_fewer_lengths_has_the_longest_of_them() {
    all_right("max,sve512=on,sve256=on", &[0], 200, &[("\"max\"", 512), ("256", 256), NONE]);
    all_right("max,sve-max-vq=2", &[0, 1], 200, &[("\"max\"", 256), ("128", 128), NONE]);
    all_right("max,sve128=on,sve256=off", &[0], 200, &[("\"max\"", 128), NONE]);
}

#[test]
#[ignore = "nightly: long"]
fn all_lengths_alternate_for_long() {
    all_right("max", &[0, 1], 2_000, &[("2048", 2048), NONE, ("128", 128), ("1024", 1024), ("384", 384), ("512", 512)]);
}

/// Linux with programs in all its vectors, and a guest of ours with the fixed ones, both on the same CPUs.
fn linux_beside_ours(manifest: &str, programs: usize) {
    let run = Run { cpu: Some("max".into()), ..of(manifest, Duration::from_secs(400)) };
    let seen = seen(&run, &[]);
    seen.expect(!seen.out.contains("WRONG"), "nobody finds what is not its own");
    seen.expect_good_end();
    let lines = |text: &str| seen.out.lines().filter(|line| line.contains(text)).count();
    seen.expect(lines("vectors of 512 bits") == programs, "every program has long vectors");
    seen.expect(lines(": every register right") == programs, "every program finds everything again");
    seen.expect(seen.out.contains(&format!("churn: {programs} programs, wrong 0")), "all programs ended well");
    // The guest was at work all the while, and had it found anything wrong it would have ended.
    let begin = seen.out.find("vectors of 512 bits").unwrap_or(usize::MAX);
    let during = seen.out.get(begin..).unwrap_or_default();
    seen.expect(during.contains(" rounds"), "our guest's rounds go on beside the programs");
}

#[test]
fn programs_on_linux_and_a_guest_of_ours_keep_their_vectors_on_one_cpu() {
    linux_beside_ours("linux-vectors.toml", 3);
}

#[test]
#[ignore = "nightly: four CPUs"]
fn programs_on_linux_and_a_guest_of_ours_keep_their_vectors_on_four_cpus() {
    linux_beside_ours("linux-vectors-smp.toml", 6);
}
