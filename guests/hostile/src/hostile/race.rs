// SPDX-License-Identifier: MIT OR Apache-2.0
//! All CPUs start the last one at once, each of them twice: exactly one call may succeed.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use trellis_guest_platform::{Machine, cpu, gic, println, psci, start, timer};

use super::Outcome;

/// The SGI that opens a round.
const GO: u32 = 3;

static ROUND: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicUsize = AtomicUsize::new(0);
static WON: AtomicUsize = AtomicUsize::new(0);
static STRANGE: AtomicUsize = AtomicUsize::new(0);
static ARRIVED: AtomicUsize = AtomicUsize::new(0);
static ENDED: AtomicUsize = AtomicUsize::new(0);

fn rounds(machine: &Machine) -> u64 {
    machine.arguments().number("loops", 20)
}

pub(super) fn psci_race(machine: &'static Machine) -> Outcome {
    wild_calls(machine)?;
    let cpus = machine.cpus();
    if cpus < 2 {
        println!("one CPU: nothing to race for");
        return Ok(());
    }
    for index in 1..cpus - 1 {
        if machine.start(index, other) != psci::SUCCESS {
            return Err("a contender did not start");
        }
    }
    if cpus == 2 {
        // Names `other` as what a started CPU does; the CPU arrives and is off again before the first round.
        DONE.store(1, Ordering::Release);
        machine.start(1, other);
        wait_until(|| ARRIVED.load(Ordering::Acquire) == 1 && is_off(machine));
        ARRIVED.store(0, Ordering::Release);
    }
    for round in 1..=rounds(machine) {
        race(machine, round)?;
    }
    wait_until(|| ENDED.load(Ordering::Acquire) == cpus - 2);
    println!("{} rounds, {} CPUs: one winner each", rounds(machine), cpus - 1);
    Ok(())
}

/// Calls that no platform may grant.
fn wild_calls(machine: &Machine) -> Outcome {
    let entry = start::entry_point();
    let own = psci::cpu_on(machine.affinity(0), entry, 0);
    let nobody = psci::cpu_on(0xff_00ff_fffe, entry, 0);
    let unknown = psci::affinity_info(0xff_00ff_fffe);
    println!("CPU_ON of itself {own}, of nobody {nobody}, AFFINITY_INFO of nobody {unknown}");
    if own == psci::SUCCESS || nobody == psci::SUCCESS { Err("a wild CPU_ON succeeded") } else { Ok(()) }
}

fn race(machine: &'static Machine, round: u64) -> Outcome {
    let contenders = machine.cpus() - 1;
    for counter in [&DONE, &WON, &STRANGE, &ARRIVED] {
        counter.store(0, Ordering::Relaxed);
    }
    ROUND.store(round, Ordering::Release);
    gic::send(gic::sgi_to_others(GO));
    contend(machine);
    wait_until(|| DONE.load(Ordering::Acquire) == contenders);
    wait_until(|| is_off(machine));
    if STRANGE.load(Ordering::Relaxed) != 0 {
        return Err("a loser was told neither ALREADY_ON nor ON_PENDING");
    }
    match (WON.load(Ordering::Relaxed), ARRIVED.load(Ordering::Relaxed)) {
        (1, 1) => Ok(()),
        (1, _) => Err("the CPU did not run exactly once"),
        (0, _) => Err("nobody won"),
        _ => Err("more than one won"),
    }
}

/// Two calls for the last CPU.
fn contend(machine: &'static Machine) {
    let target = machine.cpus() - 1;
    for _ in 0..2 {
        match psci::cpu_on(machine.affinity(target), start::entry_point(), target as u64) {
            psci::SUCCESS => WON.fetch_add(1, Ordering::Relaxed),
            psci::ALREADY_ON | psci::ON_PENDING => 0,
            _ => STRANGE.fetch_add(1, Ordering::Relaxed),
        };
    }
    DONE.fetch_add(1, Ordering::Release);
}

/// The last CPU arrives and stays until all have called, else a late call would rightly succeed. The others contend.
fn other(machine: &'static Machine, index: usize, _: u64) {
    let cpus = machine.cpus();
    if index == cpus - 1 {
        ARRIVED.fetch_add(1, Ordering::Release);
        wait_until(|| DONE.load(Ordering::Acquire) == cpus - 1);
        return;
    }
    for round in 1..=rounds(machine) {
        wait_until(|| ROUND.load(Ordering::Acquire) >= round);
        contend(machine);
    }
    ENDED.fetch_add(1, Ordering::Release);
}

fn is_off(machine: &Machine) -> bool {
    psci::affinity_info(machine.affinity(machine.cpus() - 1)) == psci::OFF
}

/// Sleeps, interrupts masked; any interrupt, or 200 us, and it looks again.
fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        timer::arm(cpu::counter() + timer::microseconds(200));
        cpu::wait_for_interrupt();
        timer::stop();
        gic::discard();
    }
}
