// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misdeeds of taking more than one's share: of time, of the console, of interrupts.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use trellis_guest_platform::{Machine, cpu, gic, println, psci, timer, uart, vectors};

use super::Outcome;

static CAME: AtomicU64 = AtomicU64::new(0);
static LEFT: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);

fn loops(machine: &Machine, default: u64) -> u64 {
    machine.arguments().number("loops", default)
}

pub(super) fn spin_masked(machine: &'static Machine) -> Outcome {
    let count = loops(machine, 20_000_000).max(1);
    // SAFETY: masks and counts; start-up left everything masked, so the end is the beginning.
    unsafe { asm!("msr daifset, #0xf", "2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) count => _, options(nostack)) };
    println!("{count} loops");
    Ok(())
}

pub(super) fn flood_console(machine: &'static Machine) -> Outcome {
    let count = loops(machine, 20_000);
    for at in 0..count {
        let byte = if at % 64 == 63 { b'\n' } else { b'a' + (at % 26) as u8 };
        uart::put_at_once(byte);
    }
    println!("\n{count} bytes");
    Ok(())
}

/// The handler leaves the timer as it is, due in the past, until enough have come.
pub(super) fn timer_storm(machine: &'static Machine) -> Outcome {
    let count = loops(machine, 10_000).max(1);
    LEFT.store(count, Ordering::Relaxed);
    CAME.store(0, Ordering::Relaxed);
    vectors::set_handler(past_timer);
    timer::arm(0);
    cpu::sleep_until(|| LEFT.load(Ordering::Relaxed) == 0);
    cpu::mask();
    println!("{} timer interrupts", CAME.load(Ordering::Relaxed));
    Ok(())
}

fn past_timer(line: u32, _: u64) {
    if line != timer::LINE {
        return;
    }
    CAME.fetch_add(1, Ordering::Relaxed);
    let left = LEFT.load(Ordering::Relaxed).saturating_sub(1);
    LEFT.store(left, Ordering::Relaxed);
    match left {
        0 => timer::stop(),
        left if left % 2 == 0 => timer::arm(0),
        _ => timer::arm(cpu::counter() + 1),
    }
}

pub(super) fn sgi_storm(machine: &'static Machine) -> Outcome {
    CAME.store(0, Ordering::Relaxed);
    FINISHED.store(0, Ordering::Relaxed);
    vectors::set_handler(count_interrupt);
    let mut storming = 1;
    for index in 1..machine.cpus() {
        storming += usize::from(machine.start(index, storm_elsewhere) == psci::SUCCESS);
    }
    storm(machine);
    cpu::unmask();
    while FINISHED.load(Ordering::Acquire) < storming {
        core::hint::spin_loop();
    }
    cpu::mask();
    println!("{} interrupts on {storming} CPUs", CAME.load(Ordering::Relaxed));
    if CAME.load(Ordering::Relaxed) == 0 { Err("no interrupt came") } else { Ok(()) }
}

fn storm_elsewhere(machine: &'static Machine, _: usize, _: u64) {
    storm(machine);
}

fn storm(machine: &'static Machine) {
    let own = cpu::affinity();
    cpu::unmask();
    for at in 0..loops(machine, 2_000) {
        let line = (at % 16) as u32;
        gic::send(gic::sgi_to(own, line));
        gic::send(gic::sgi_to_others(line));
        // A target list of CPUs of which most do not exist.
        gic::send(0xffff | u64::from(line) << 24);
        gic::send(0xffff | 0xff << 16 | u64::from(line) << 24);
    }
    cpu::mask();
    FINISHED.fetch_add(1, Ordering::Release);
}

fn count_interrupt(_: u32, _: u64) {
    CAME.fetch_add(1, Ordering::Relaxed);
}
