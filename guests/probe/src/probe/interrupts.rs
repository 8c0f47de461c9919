// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures of interrupts on one CPU: to the handler's first instructions, and out of WFI.

use core::sync::atomic::{AtomicU64, Ordering};

use trellis_guest_platform::figure::Sum;
use trellis_guest_platform::{Machine, cpu, gic, timer, vectors};

use super::Figure;

/// The counter at the last interrupt's vector; 0 = none since it was cleared.
static ENTERED: AtomicU64 = AtomicU64::new(0);

/// Far enough that arming is over, near enough that nothing sleeps long.
const AHEAD: u64 = 5_000;

fn note(line: u32, entered: u64) {
    if line == timer::LINE {
        timer::stop();
    }
    ENTERED.store(entered, Ordering::Relaxed);
}

/// Spins until the handler ran; gives up after a second.
fn entered(begin: u64) -> Result<u64, &'static str> {
    let limit = begin + cpu::frequency();
    while ENTERED.load(Ordering::Relaxed) == 0 {
        if cpu::counter() > limit {
            return Err("no interrupt came");
        }
    }
    Ok(ENTERED.swap(0, Ordering::Relaxed))
}

fn with_interrupts(measure: impl FnOnce() -> Figure) -> Figure {
    vectors::set_handler(note);
    ENTERED.store(0, Ordering::Relaxed);
    cpu::unmask();
    let figure = measure();
    cpu::mask();
    timer::stop();
    figure
}

/// The virtual timer's expiry → the second instruction of the vector, while the guest computes.
pub fn timer_to_handler(_: &'static Machine, passes: u64) -> Figure {
    with_interrupts(|| {
        let mut sum = Sum::default();
        for _ in 0..passes {
            let due = cpu::counter() + AHEAD;
            timer::arm(due);
            sum.add(entered(due)?.wrapping_sub(due));
        }
        Ok(sum.mean())
    })
}

/// An SGI to this CPU → the second instruction of the vector.
pub fn sgi_to_self(_: &'static Machine, passes: u64) -> Figure {
    let word = gic::sgi_to(cpu::affinity(), 1);
    with_interrupts(|| {
        let mut sum = Sum::default();
        for _ in 0..passes {
            let begin = cpu::counter();
            gic::send(word);
            sum.add(entered(begin)? - begin);
        }
        Ok(sum.mean())
    })
}

/// The timer's expiry → the instruction after WFI, interrupts masked.
pub fn wait_for_timer(_: &'static Machine, passes: u64) -> Figure {
    let mut sum = Sum::default();
    for _ in 0..passes {
        let due = cpu::counter() + AHEAD;
        timer::arm(due);
        let mut woken = 0;
        while woken < due {
            cpu::wait_for_interrupt();
            woken = cpu::counter();
        }
        sum.add(woken - due);
        timer::stop();
        // What was injected stays pending until it is taken, whatever the timer does.
        gic::discard();
    }
    Ok(sum.mean())
}
