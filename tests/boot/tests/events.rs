// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests of which more than their memory is watched, in whole systems under the emulator: what the standard monitor hears and says
//! to it, scenario by scenario of what others test their monitors with; the tracer; the guard.
//!
//! The guest `acts` does each of them and says what it found.

use std::time::Duration;
use trellis_boot_tests::story::{self, Seen};
use trellis_cli::run::Run;
use trellis_cli::status::Status;

const LIMIT: Duration = Duration::from_secs(300);

/// The guest `acts` with one vCPU, which does this, and a monitor of this image with this configuration.
fn run(name: &str, acts: &str, image: &str, config: &str) -> Seen {
    run_as(name, acts, image, config, None)
}

fn run_as(name: &str, acts: &str, image: &str, config: &str, machine: Option<&str>) -> Seen {
    let guest = format!("kernel = \"acts\"\ncommand-line = \"do={acts}\"\nmemory = \"16M\"\non-reset = \"end\"");
    run_of(name, [&guest, "verdict-deadline = \"5s\"", image, config], machine)
}

/// A guest and its monitor with these keys.
fn run_of(name: &str, [guest, monitor, image, config]: [&str; 4], machine: Option<&str>) -> Seen {
    let text = format!(
        "name = \"{name}\"\nboard = \"virt\"\n\n[guest.web]\n{guest}\n\
         [guest.web.monitor]\nserver = \"watchdog\"\n{monitor}\n[server.watchdog]\nimage = \"{image}\"\n[server.watchdog.config]\n{config}\n"
    );
    story::of_text(&text, Run { board: machine.map(Into::into), icount: true, timeout: Some(LIMIT), ..Run::default() })
}

fn event(on: &str, rest: &str) -> String {
    format!("events = [{{ guest = \"web\", on = \"{on}\", {rest}, log = true }}]")
}

fn watch(pages: &str, access: &str, verdict: &str) -> String {
    format!("watch = [{{ guest = \"web\", pages = \"{pages}\", access = \"{access}\", verdict = \"{verdict}\", log = true }}]")
}

fn count(seen: &Seen, text: &str) -> usize {
    seen.log.matches(text).count()
}

/// It did its act to the end, and found this.
fn found(seen: &Seen, what: &str) {
    let line = format!("web| acts: {what}");
    seen.expect(seen.out.contains(&line), &line);
    seen.expect(seen.out.contains("web| acts: done"), "it goes on to its end");
    seen.expect_good_end();
}

fn logged(seen: &Seen, what: &str) {
    seen.expect(seen.log.contains(what), what);
}

#[test]
fn the_example_of_events_runs_to_its_end_on_every_board() {
    for board in ["virt", "virt-gicv2", "raspi4b"] {
        let seen = story::seen(&Run { board: Some(board.into()), ..story::of("events.toml", LIMIT) }, &[]);
        logged(&seen, "watchdog| web begins, 0 stretches of its memory watched, 9 kinds of events heard");
        for what in [
            "ttbr0: as it was", "contextidr: 0x0", "sctlr: changed", "smc: 0x10001", "hvc: 0x10001", "request: 0", "breakpoint: class 0x3c",
            "debug: class 0x31", "power: 0", "count: 1 2 3",
        ] {
            found(&seen, what);
        }
        for what in ["to CONTEXTIDR_EL1, ", "read the register S3_0_C0_C4_0", "called firmware, 0x8400_0000", "asked for power, 0xc400_0003 0x1"] {
            logged(&seen, what);
        }
        seen.expect(count(&seen, "to TTBR0_EL1, ") == 2, "each CPU's first root, and nothing that is ignored");
    }
}

/// xen-access: write, with a verdict of each kind.
#[test]
fn a_watched_write_is_told_and_done() {
    let seen = run("scenario-write", "store", "monitor-standard", &watch("0x40920000..0x40921000", "w", "allow"));
    logged(&seen, "wrote 8 bytes at 0x4092_0000 (page watched by rule 1)");
    found(&seen, "store: 0x5eed");
    let seen = run("scenario-write-fault", "store", "monitor-standard", &watch("0x40920000..0x40921000", "w", "fault"));
    // A data abort of its own level, a write, an external abort, at a known address.
    found(&seen, "store: fault (class 0x25, syndrome 0x96000050, address 0x40920000)");
}

/// xen-access: exec.
#[test]
fn watched_execution_is_told_and_done_or_ends_in_a_fault() {
    let seen = run("scenario-exec", "code", "monitor-standard", &watch("0x40900000..0x40901000", "x", "allow"));
    seen.expect(count(&seen, "executed at 0x4090_000") == 2, "each of two instructions");
    found(&seen, "code: 7");
    let seen = run("scenario-exec-fault", "code", "monitor-standard", &watch("0x40900000..0x40901000", "x", "fault"));
    found(&seen, "code: fault (class 0x21, syndrome 0x86000010, address 0x40900000)");
}

/// xen-access: altp2m_write and altp2m_exec are these two in a view of their own, as every watched page is here; and
/// altp2m_write_no_gpt: what the guest's own walks do to a watched page is told as what it is.
#[test]
fn a_walk_of_the_guests_tables_is_no_write_of_its_program() {
    // The only table of this guest is among its data; nothing reads those before the first walk does.
    let seen = run("scenario-walk", "nothing", "monitor-standard", &watch("0x40206000..0x4020c000", "r", "stop"));
    seen.expect(count(&seen, "web walked its tables at 0x4020_") == 1, "the first walk is told");
    logged(&seen, "root| guest web was stopped by watchdog, which watches it");
}

/// Every instruction walks anew, since each is a step: a guest that does next to nothing comes to its end, exclusive accesses and all.
#[test]
#[ignore = "nightly: long"]
fn a_guest_whose_walks_are_all_watched_comes_to_its_end() {
    let seen = run("scenario-walks", "nothing", "monitor-standard", &watch("0x40206000..0x4020c000", "r", "allow"));
    seen.expect(count(&seen, "web walked its tables at 0x4020_") > 0, "walks are told");
    seen.expect(seen.out.contains("web| acts: done"), "it goes on");
    seen.expect_good_end();
}

/// altp2m_write_no_gpt: the same rule without walks; they happen, one step an instruction, and a read would have ended the guest.
#[test]
#[ignore = "nightly: long"]
fn a_walk_that_is_none_of_a_rules_ends_nobody() {
    let rule = "watch = [{ guest = \"web\", pages = \"0x40209000..0x4020a000\", access = \"r\", verdict = \"stop\", walks = false }]";
    let seen = run("scenario-no-walks", "nothing", "monitor-standard", rule);
    seen.expect(count(&seen, "walked its tables") == 0, "nobody hears of them");
    seen.expect(seen.out.contains("web| acts: done"), "it goes on to its end");
    seen.expect_good_end();
    let stops = run("scenario-walks-too", "nothing", "monitor-standard", &rule.replace(", walks = false", ", log = true"));
    logged(&stops, "web walked its tables at 0x4020_9");
    logged(&stops, "root| guest web was stopped by watchdog, which watches it");
}

#[test]
fn vcpus_that_start_and_stop_are_told_of() {
    let rule = |on| format!("{{ guest = \"web\", on = \"{on}\", verdict = \"report\", log = true }}");
    let config = format!("events = [{}, {}]", rule("vcpu-start"), rule("vcpu-stop"));
    let guest = "kernel = \"acts\"\ncommand-line = \"do=power,hvc\"\nmemory = \"16M\"\non-reset = \"end\"\ncpus = [0, 1]";
    for board in ["virt", "raspi4b"] {
        let seen = run_of(&format!("scenario-start-{board}"), [guest, "", "monitor-standard", &config], Some(board));
        found(&seen, "power: 0");
        logged(&seen, "web (vCPU 0) was switched on, with 0x4000_0000 in x0 (heard by rule 1 of events), pc 0x4020_0040");
        logged(&seen, "web (vCPU 1) was switched on, with ");
        seen.expect((count(&seen, " was switched on, "), count(&seen, " was switched off ")) == (2, 2), "each once");
    }
}

/// What the guest `watched` does to a page is only reported, and faster than is read: no access of it is another than it was.
#[test]
fn what_is_more_than_may_be_read_is_counted_and_the_guest_goes_on() {
    let guest = "kernel = \"watched\"\ncommand-line = \"rounds=50\"\nmemory = \"16M\"\non-reset = \"end\"";
    let rules = [("0x40800000..0x40801000", "w", "report"), ("0x40801000..0x40802000", "w", "deny"), ("0x40802000..0x40803000", "r", "deny")];
    let rules = rules.map(|(pages, access, verdict)| {
        format!("{{ guest = \"web\", pages = \"{pages}\", access = \"{access}\", verdict = \"{verdict}\" }}")
    });
    let config = format!("watch = [{}]", rules.join(", "));
    let seen = run_of("scenario-flood", [guest, "reports-per-second = 20", "monitor-standard", &config], None);
    logged(&seen, "events came faster than they are read");
    seen.expect(seen.out.contains("every access as ordered on 1 of 1 CPUs"), "and it finds what it wrote");
    seen.expect_good_end();
}

/// xen-access: breakpoint.
#[test]
fn a_breakpoint_is_told_and_given_to_the_guest_or_skipped() {
    let seen = run("scenario-brk", "breakpoint", "monitor-standard", &event("breakpoint", "verdict = \"allow\""));
    logged(&seen, "came to breakpoint 0x77 (heard by rule 1 of events)");
    found(&seen, "breakpoint: class 0x3c");
    let seen = run("scenario-brk-deny", "breakpoint", "monitor-standard", &event("breakpoint", "verdict = \"deny\""));
    found(&seen, "breakpoint: skipped");
}

/// xen-access: debug.
#[test]
fn a_debug_exception_of_the_guests_own_is_told_and_its_own() {
    let seen = run("scenario-debug", "debug,hvc", "monitor-standard", &event("debug", "verdict = \"allow\""));
    logged(&seen, "had a debug exception (heard by rule 1 of events)");
    found(&seen, "debug: class 0x31");
}

/// xen-access: write_ctrlreg, with mask and on-change-only.
#[test]
fn a_write_of_a_control_register_is_told_where_it_changes_what_is_of_interest() {
    let rest = "only-changes = true, ignore = \"0xffff_0000_0000_0001\", verdict = \"allow\"";
    let seen = run("scenario-ttbr0", "registers", "monitor-standard", &event("ttbr0", rest));
    seen.expect(count(&seen, "to TTBR0_EL1, ") == 1, "the first of four");
    found(&seen, "ttbr0: as it was");
    let seen = run("scenario-ttbr0-all", "registers", "monitor-standard", &event("ttbr0", "verdict = \"allow\""));
    seen.expect(count(&seen, "to TTBR0_EL1, ") == 4, "all four");
    let seen = run("scenario-sctlr", "registers", "monitor-standard", &event("sctlr", "only-changes = true, verdict = \"allow\""));
    seen.expect(count(&seen, "to SCTLR_EL1, ") == 3, "MMU on, a bit, and back");
    found(&seen, "sctlr: changed");
    let seen = run("scenario-contextidr", "registers", "monitor-standard", &event("contextidr", "verdict = \"deny\""));
    found(&seen, "contextidr: 0x0");
}

/// xen-access: privcall.
#[test]
fn a_privileged_call_is_told_and_psci_goes_on_working() {
    let seen = run("scenario-smc", "smc,hvc", "monitor-standard", &event("smc", "verdict = \"allow\""));
    logged(&seen, "called firmware, 0x8400_0000 (heard by rule 1 of events)");
    found(&seen, "smc: 0x10001");
    let seen = run("scenario-smc-deny", "smc,hvc", "monitor-standard", &event("smc", "verdict = \"deny\""));
    found(&seen, "smc: 0xffffffffffffffff");
    found(&seen, "hvc: 0x10001");
    let seen = run("scenario-smc-fault", "smc,hvc", "monitor-standard", &event("smc", "verdict = \"fault\""));
    found(&seen, "smc: fault (class 0x0, ");
    let seen = run("scenario-smc-stop", "smc,hvc", "monitor-standard", &event("smc", "verdict = \"stop\""));
    logged(&seen, "root| guest web was stopped by watchdog, which watches it");
    seen.expect(seen.outcome.status == Status::GuestFailed && !seen.out.contains("acts: hvc"), "no good end");
}

/// xen-access: cpuid.
#[test]
fn a_read_of_an_id_register_is_told_and_may_find_zero() {
    let seen = run("scenario-id", "identity", "monitor-standard", &event("id-register", "verdict = \"allow\""));
    logged(&seen, "read the register S3_0_C0_C4_0 (heard by rule 1 of events)");
    seen.expect(!seen.out.contains("id_aa64pfr0: 0x0\n"), "it finds what there is");
    // The platform then takes its interrupt controller for another one: the guest ends at its registers.
    let seen = run("scenario-id-deny", "identity", "monitor-standard", &event("id-register", "verdict = \"deny\""));
    logged(&seen, "read the register S3_0_C0_C4_0 (heard by rule 1 of events), pc ");
    logged(&seen, ", denied");
    logged(&seen, "root| guest web crashed: vCPU 0 wrote to 0x8010004, where it has nothing");
}

#[test]
fn a_guest_asks_its_monitor_and_without_one_the_call_does_not_exist() {
    let seen = run("scenario-request", "request", "monitor-standard", &event("request", "verdict = \"allow\""));
    logged(&seen, "asked 0x7 (heard by rule 1 of events)");
    found(&seen, "request: 0");
    let seen = run("scenario-request-none", "request", "monitor-standard", &event("debug", "verdict = \"allow\""));
    found(&seen, "request: -1");
}

/// Its code counts by exclusive accesses, which no step gets over.
#[test]
fn the_tracer_follows_each_instruction_of_its_pages() {
    for board in ["virt", "raspi4b"] {
        let seen = story::seen(&Run { board: Some(board.into()), ..story::of("tracer.toml", LIMIT) }, &[]);
        logged(&seen, "follower| web begins, 2 of its pages followed");
        logged(&seen, "web (vCPU 0) executes 0x4090_0000, at 0x4090_0000 (followed by rule 1)");
        logged(&seen, "web (vCPU 0) executes 0x4091_0000, at 0x4091_0000 (followed by rule 2), after 2 from 0x4090_0000 on");
        let calls = count(&seen, "executes 0x4091_0000, at 0x4091_0000 (followed by rule 2), after 6 from 0x4091_0000 on");
        seen.expect(calls == 2, "each of six instructions, behind the first of three calls");
        found(&seen, "code: 7");
        found(&seen, "count: 1 2 3");
    }
}

#[test]
fn the_guard_lets_no_page_be_both_written_and_executed() {
    for board in ["virt", "raspi4b"] {
        let seen = story::seen(&Run { board: Some(board.into()), ..story::of("guard.toml", LIMIT) }, &[]);
        logged(&seen, "keeper| web begins, 64 of its pages guarded");
        logged(&seen, "web (vCPU 0) executes what it has written, at 0x4090_0000 (guarded by rule 1)");
        found(&seen, "store: 0x5eed");
        found(&seen, "code: fault (class 0x21, ");
    }
    let stops = run("guard-stops", "code,hvc", "monitor-guard", &watch("0x40900000..0x40910000", "wx", "stop"));
    logged(&stops, "root| guest web was stopped by watchdog, which watches it");
    stops.expect(stops.outcome.status == Status::GuestFailed && !stops.out.contains("acts: code"), "no good end");
    let writes = run("guard-writes", "written-code", "monitor-guard", &watch("0x40200000..0x40201000", "wx", "fault"));
    logged(&writes, "web (vCPU 0) writes what it has executed, at 0x4020_0000 (guarded by rule 1)");
    found(&writes, "written-code: fault (class 0x25, syndrome 0x96000050, address 0x40200000)");
}
