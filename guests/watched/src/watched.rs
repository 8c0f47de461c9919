// SPDX-License-Identifier: MIT OR Apache-2.0
//! Round by round, on every CPU. Command line: `rounds=` of each CPU, or `until=key`: rounds until a byte comes by the serial port; `bench=` passes of each figure instead, `forms=`
//! "plain" or "all" (exclusive and atomic accesses too), `pages=` address of the first of the four pages.
//!
//! The pages, as the manifest's rules must have them: writes allowed, writes denied, reads denied, reads allowed. Each CPU
//! has a quarter of each to itself.

use core::fmt::Arguments;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use trellis_guest_platform::tree::MAX_CPUS;
use trellis_guest_platform::{Machine, cpu, guest, println, psci, read_register, timer, uart, vectors};

use crate::figures;
use crate::memory::{
    add_at_once, add_exclusively, load, store_8, store_16, store_32, store_64, store_and_go_on, store_pair,
};

/// The first page, unless the command line says otherwise.
const PAGES: u64 = 0x4080_0000;
const PAGE: u64 = 0x1000;
/// Bytes of a page that are one CPU's.
const OWN: u64 = 0x100;
/// Among them: where its interrupt handler stores.
const TICK: u64 = 0xf8;
/// Between interrupts, in microseconds.
const PERIOD: u64 = 300;
/// Nothing is there: the guest ends with a crash.
const NOWHERE: u64 = 0x0c00_0000;
/// Tries of an exclusive sequence after which it is said never to end.
const MOST_TRIES: u64 = 10_000;

static FIRST: AtomicU64 = AtomicU64::new(PAGES);
static PRESSED: AtomicBool = AtomicBool::new(false);
static FINISHED: AtomicUsize = AtomicUsize::new(0);
/// Interrupts of each CPU's timer.
static TICKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

guest!(run);

fn run(machine: &'static Machine) {
    let arguments = machine.arguments();
    FIRST.store(arguments.number("pages", PAGES), Ordering::Relaxed);
    let passes = arguments.number("bench", 0);
    if passes != 0 {
        let at = |page| place(page, 0);
        return figures::print(at(Page::Allowed), at(Page::Denied), at(Page::Blind), passes);
    }
    vectors::set_handler(tick);
    let mut started = 1;
    for index in 1..machine.cpus() {
        match machine.start(index, other) {
            psci::SUCCESS => started += 1,
            error => fail(index, format_args!("did not start: {error}")),
        }
    }
    work(machine, 0);
    while FINISHED.load(Ordering::Acquire) < started {
        core::hint::spin_loop();
    }
    println!("watched: every access as ordered on {started} of {} CPUs", machine.cpus());
}

fn other(machine: &'static Machine, index: usize, _: u64) {
    work(machine, index);
}

/// The pages, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    Allowed,
    Denied,
    Blind,
    Seen,
}

/// A CPU's own part of a page.
fn place(page: Page, index: usize) -> u64 {
    FIRST.load(Ordering::Relaxed) + page as u64 * PAGE + index as u64 * OWN
}

/// The timer's interrupt: it stores to the watched page as well, in the middle of whatever was going on.
fn tick(line: u32, _: u64) {
    if line != timer::LINE {
        return;
    }
    let index = cpu::index();
    let count = TICKS[index].load(Ordering::Relaxed) + 1;
    let at = place(Page::Allowed, index) + TICK;
    if load(at) != count - 1 {
        fail(index, format_args!("tick {count} found {}", load(at)));
    }
    store_64(at, count);
    TICKS[index].store(count, Ordering::Relaxed);
    timer::arm(cpu::counter() + timer::microseconds(PERIOD));
}

fn work(machine: &'static Machine, index: usize) {
    let arguments = machine.arguments();
    let rounds = arguments.number("rounds", 200);
    let is_endless = arguments.value("until") == Some("key");
    let all = arguments.value("forms") == Some("all");
    // ID_AA64ISAR0_EL1.Atomic (Arm ARM D24.2.78).
    let at_once = all && read_register!("id_aa64isar0_el1") >> 20 & 15 >= 2;
    timer::arm(cpu::counter() + timer::microseconds(PERIOD));
    cpu::unmask();
    let mut tries = 0;
    // Rounds of a guest that goes on until somebody presses a key.
    let mut round = 0;
    while if is_endless { !is_key_pressed(index) } else { round < rounds } {
        round += 1;
        allowed(index, round);
        denied(index, round);
        reads(index, round);
        if all {
            tries += exclusive(index, round);
            denied_otherwise(index, round);
        }
        if at_once {
            atomic(index, round);
        }
    }
    // A slow machine's last interrupt must not be missed by a fast guest.
    cpu::sleep_until(|| TICKS[index].load(Ordering::Relaxed) != 0);
    timer::stop();
    cpu::mask();
    let ticks = TICKS[index].load(Ordering::Relaxed);
    expect(index, round, "the last tick", load(place(Page::Allowed, index) + TICK), ticks);
    println!("watched: CPU {index}: {round} rounds, {ticks} interrupts, {tries} tries");
    FINISHED.fetch_add(1, Ordering::Release);
}

/// Whether somebody has pressed a key; the first CPU looks.
fn is_key_pressed(index: usize) -> bool {
    if index == 0 && uart::get().is_some() {
        PRESSED.store(true, Ordering::Relaxed);
    }
    PRESSED.load(Ordering::Relaxed)
}

fn expect(index: usize, round: u64, what: &str, found: u64, expected: u64) {
    if found != expected {
        fail(index, format_args!("round {round}: {what}: {found:#x} instead of {expected:#x}"));
    }
}

/// Each store is there afterwards, and nothing beside it.
fn allowed(index: usize, round: u64) {
    let at = place(Page::Allowed, index);
    let is = |what, offset: u64, value| expect(index, round, what, load(at + offset), value);
    store_64(at, round);
    is("an allowed store", 0, round);
    store_32(at + 8, round);
    is("an allowed store of 4 bytes", 8, round & 0xffff_ffff);
    store_16(at + 16 + 2, round);
    is("an allowed store of 2 bytes", 16, (round & 0xffff) << 16);
    store_8(at + 24 + 7, round);
    is("an allowed store of a byte", 24, (round & 0xff) << 56);
    store_pair(at + 32, !round);
    is("an allowed pair, first", 32, !round);
    is("an allowed pair, second", 40, !round);
    let next = store_and_go_on(at + 48, round << 8);
    expect(index, round, "the address behind an allowed store", next, at + 56);
    is("an allowed store that goes on", 48, round << 8);
    is("what no store was for", 56, 0);
}

/// No store is there, and the guest goes on behind it.
fn denied(index: usize, round: u64) {
    let at = place(Page::Denied, index);
    for (what, store) in [
        ("a denied store", store_64 as fn(u64, u64)), ("a denied store of 4 bytes", store_32),
        ("a denied store of 2 bytes", store_16), ("a denied store of a byte", store_8),
    ] {
        store(at, round | 1);
        expect(index, round, what, load(at), 0);
    }
}

/// Nor is one whose instruction must be looked at, but what else it changes has changed.
fn denied_otherwise(index: usize, round: u64) {
    let at = place(Page::Denied, index);
    store_pair(at, round | 1);
    expect(index, round, "a denied pair, first", load(at), 0);
    expect(index, round, "a denied pair, second", load(at + 8), 0);
    let next = store_and_go_on(at + 16, round | 1);
    expect(index, round, "the address behind a denied store", next, at + 24);
    expect(index, round, "a denied store that goes on", load(at + 16), 0);
    if add_exclusively(at + 24, MOST_TRIES) == u64::MAX {
        fail(index, format_args!("round {round}: a denied exclusive store never succeeds"));
    }
    expect(index, round, "a denied exclusive count", load(at + 24), 0);
}

/// What may not be read reads as zero; what may reads as it is.
fn reads(index: usize, round: u64) {
    let (blind, seen) = (place(Page::Blind, index), place(Page::Seen, index));
    store_64(blind, round);
    expect(index, round, "a denied read", load(blind), 0);
    store_64(seen, round);
    expect(index, round, "an allowed read", load(seen), round);
}

/// A count by LDXR and STXR. Back: tries.
fn exclusive(index: usize, round: u64) -> u64 {
    let at = place(Page::Allowed, index) + 64;
    let tries = add_exclusively(at, MOST_TRIES);
    if tries == u64::MAX {
        fail(index, format_args!("round {round}: an exclusive store never succeeds"));
    }
    expect(index, round, "an exclusive count", load(at), round);
    tries
}

/// A count by LDADD.
fn atomic(index: usize, round: u64) {
    let at = place(Page::Allowed, index) + 72;
    expect(index, round, "what an atomic addition found", add_at_once(at, 1), round - 1);
    expect(index, round, "an atomic count", load(at), round);
}

fn fail(index: usize, what: Arguments<'_>) -> ! {
    // It may be the interrupt handler's own finding: nobody is waited for.
    uart::print_last(format_args!("\nwatched: WRONG: CPU {index}: {what}\n"));
    uart::drain();
    cpu::device_read(NOWHERE);
    psci::system_off()
}
