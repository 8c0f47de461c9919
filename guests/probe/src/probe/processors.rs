// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures that need a second CPU. The counter is one for all, so these count both.

use core::sync::atomic::{AtomicU64, Ordering};

use trellis_guest_platform::figure::Sum;
use trellis_guest_platform::start::CpuMain;
use trellis_guest_platform::{Machine, cpu, gic, psci, timer};

use super::Figure;

/// SGI that asks and answers.
const BALL: u32 = 1;
/// SGI that ends the game.
const END: u32 = 2;
/// The other CPU.
const OTHER: usize = 1;
/// Starts are dear; more of them say nothing more.
const MOST_STARTS: u64 = 100;

/// The counter at the other CPU's first instruction.
static ENTERED: AtomicU64 = AtomicU64::new(0);

/// Sleeps, interrupts masked, until one comes; takes it and says which.
fn next_interrupt() -> u32 {
    loop {
        cpu::wait_for_interrupt();
        let line = gic::acknowledge();
        if line < gic::SPURIOUS {
            gic::end(line);
            return line;
        }
    }
}

/// CPU_ON → the other CPU's first instruction.
pub fn start(machine: &'static Machine, passes: u64) -> Figure {
    if machine.cpus() < 2 {
        return Err("needs 2 CPUs");
    }
    let mut sum = Sum::default();
    for _ in 0..passes.min(MOST_STARTS) {
        let begin = started(machine, arrive)?;
        next_interrupt();
        sum.add(ENTERED.load(Ordering::Acquire).wrapping_sub(begin));
        wait_until_off(machine);
    }
    Ok(sum.mean())
}

/// Starts the other CPU. Says when it was asked to: one that has said CPU_OFF may still be on its way out, and is asked
/// again.
fn started(machine: &'static Machine, entry: CpuMain) -> Result<u64, &'static str> {
    loop {
        let begin = cpu::counter();
        match machine.start(OTHER, entry) {
            psci::SUCCESS => return Ok(begin),
            psci::ALREADY_ON => {}
            _ => return Err("CPU_ON refused"),
        }
    }
}

fn arrive(machine: &'static Machine, _: usize, entered: u64) {
    ENTERED.store(entered, Ordering::Release);
    gic::send(gic::sgi_to(machine.affinity(0), BALL));
}

/// Sleeps between looks, so that the other CPU gets on where both share one.
fn wait_until_off(machine: &'static Machine) {
    while psci::affinity_info(machine.affinity(OTHER)) != psci::OFF {
        timer::arm(cpu::counter() + timer::microseconds(100));
        next_interrupt();
        timer::stop();
        gic::discard();
    }
}

/// An SGI to the other CPU and one back, both in WFI.
pub fn round_trip(machine: &'static Machine, passes: u64) -> Figure {
    if machine.cpus() < 2 {
        return Err("needs 2 CPUs");
    }
    started(machine, answer)?;
    next_interrupt();
    let word = gic::sgi_to(machine.affinity(OTHER), BALL);
    let mut sum = Sum::default();
    for _ in 0..passes {
        let begin = cpu::counter();
        gic::send(word);
        next_interrupt();
        sum.add(cpu::counter() - begin);
    }
    gic::send(gic::sgi_to(machine.affinity(OTHER), END));
    wait_until_off(machine);
    Ok(sum.mean())
}

fn answer(machine: &'static Machine, _: usize, _: u64) {
    let word = gic::sgi_to(machine.affinity(0), BALL);
    gic::send(word);
    while next_interrupt() == BALL {
        gic::send(word);
    }
}
