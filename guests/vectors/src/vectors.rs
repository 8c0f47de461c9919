// SPDX-License-Identifier: MIT OR Apache-2.0
//! Round by round, on every CPU: fill the registers, let something happen, look.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use trellis_guest_platform::tree::MAX_CPUS;
use trellis_guest_platform::{Machine, cpu, gic, guest, println, psci, timer};

use crate::pattern::{Random, compare, fill};
use crate::registers::{Length, Registers, put, set_length, switch_on, take};
use crate::traps;

/// A hypercall that the platform answers with x1 + 1.
const PING: u64 = 0xc600_0000;
/// Nothing is there: the guest ends with a crash.
const NOWHERE: u64 = 0x0c00_0000;

/// What one CPU put and took.
struct Room(UnsafeCell<[Registers; 2]>);

// SAFETY: each CPU uses its own element only.
unsafe impl Sync for Room {}

static ROOMS: [Room; MAX_CPUS] = [const { Room(UnsafeCell::new([Registers::NONE; 2])) }; MAX_CPUS];
static FINISHED: AtomicUsize = AtomicUsize::new(0);

guest!(run);

fn run(machine: &'static Machine) {
    if let Err(what) = traps::check() {
        fail(format_args!("CPU 0: {what}: not as it must be"));
    }
    let mut started = 1;
    for index in 1..machine.cpus() {
        match machine.start(index, other) {
            psci::SUCCESS => started += 1,
            error => println!("CPU {index} did not start: {error}"),
        }
    }
    work(machine, 0);
    while FINISHED.load(Ordering::Acquire) < started {
        sleep(1_000);
    }
    let name = machine.arguments().value("name").unwrap_or("vectors");
    println!("{name}: every register right on {} of {} CPUs", FINISHED.load(Ordering::Acquire), machine.cpus());
}

fn other(machine: &'static Machine, index: usize, _: u64) {
    work(machine, index);
}

fn work(machine: &'static Machine, index: usize) {
    let arguments = machine.arguments();
    let length = switch_on();
    let bits = match length {
        Length::Fixed => 0,
        Length::Scalable(bytes) => bytes as u64 * 8,
    };
    if arguments.number("bits", bits) != bits {
        fail(format_args!("CPU {index}: vectors of {bits} bits, not {}", arguments.number("bits", bits)));
    }
    // SAFETY: this CPU's own, and `work` runs once on each.
    let [was, is] = unsafe { &mut *ROOMS[index % MAX_CPUS].0.get() };
    take(length, is);
    // A CPU begins with zeroes, or something of somebody else's is in there.
    look(index, "at the start", compare(length, length.vector(), was, is));
    println!("CPU {index}: vectors of {bits} bits");
    let mut random = Random::new(arguments.number("seed", 1) << 8 | index as u64);
    for round in 0..arguments.number("rounds", 200) {
        fill(length, &mut random, was);
        put(length, was);
        let kept = something(length, &mut random);
        take(length, is);
        look(index, "after a round", compare(length, kept, was, is));
        if round % 500 == 499 {
            println!("CPU {index}: {} rounds", round + 1);
        }
    }
    FINISHED.fetch_add(1, Ordering::Release);
}

/// Lets time pass, one way or another. Back: bytes of a vector that must be as they were.
fn something(length: Length, random: &mut Random) -> usize {
    match random.next() % 8 {
        0 => {}
        1 | 2 => spin(random.next() % 20_000),
        3 => {
            let value = random.next();
            if cpu::hvc([PING, value, 0, 0])[0] != value + 1 {
                fail(format_args!("a hypercall came back wrong"));
            }
        }
        4 if length.vector() > 16 && length != Length::Fixed => {
            set_length(0);
            sleep(random.next() % 300);
            set_length(15);
            return 16;
        }
        _ => sleep(random.next() % 500),
    }
    length.vector()
}

fn spin(count: u64) {
    for _ in 0..count {
        core::hint::spin_loop();
    }
}

/// So many microseconds in which others have the CPU.
fn sleep(microseconds: u64) {
    timer::arm(cpu::counter() + timer::microseconds(microseconds));
    cpu::wait_for_interrupt();
    timer::stop();
    gic::discard();
}

fn look(index: usize, when: &str, found: Result<(), crate::pattern::Wrong>) {
    if let Err(wrong) = found {
        fail(format_args!("CPU {index}: {wrong} holds what is not its own {when}"));
    }
}

fn fail(what: core::fmt::Arguments<'_>) -> ! {
    println!("vectors: WRONG: {what}");
    trellis_guest_platform::uart::drain();
    cpu::device_read(NOWHERE);
    psci::system_off()
}
