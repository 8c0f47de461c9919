// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has factorials computed and waits for the message that each is done; has the device ring; lets it ring without an end.
//! Command line: `facts=` factorials, `rings=` rings, each heard before the next; `storm=` rings in a row that nobody waits
//! for; `passes=` rings for the figure named `figure=`; `beats=` rings until it resets itself, for ever, each sent to another CPU than
//! the one before; `calls=` calls for each message of a card.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use trellis_guest_platform::cpu::{device_read, device_write};
use trellis_guest_platform::tree::Device;
use trellis_guest_platform::figure::Sum;
use trellis_guest_platform::{Machine, cpu, gic, guest, println, psci, timer, vectors};

use crate::card;

/// Registers of the device (QEMU's manual, "EDU device").
const IDENTITY: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const REASON: u64 = 0x24;
const RING: u64 = 0x60;
const ANSWER: u64 = 0x64;
/// In the status: it computes; it is to write a message when it is done.
const COMPUTES: u32 = 1;
const TELLS: u32 = 0x80;
/// Why it wrote a message: a factorial is done; we rang.
const DONE: u32 = 1;
const RUNG: u32 = 2;

static BASE: AtomicU64 = AtomicU64::new(0);
static LINE: AtomicU32 = AtomicU32::new(0);
static CAME: AtomicU64 = AtomicU64::new(0);
static CAME_TO: AtomicU64 = AtomicU64::new(0);
/// The counter when the last one came.
static CAME_AT: AtomicU64 = AtomicU64::new(0);
/// All the reasons that were found, one bit each.
static REASONS: AtomicU32 = AtomicU32::new(0);

guest!(run);

fn run(machine: &'static Machine) {
    let Some(device) = machine.tree.edu else { return println!("edu: it is not there") };
    println!("edu: at {:#x} with interrupt {}", device.base, device.line);
    BASE.store(device.base, Ordering::Relaxed);
    LINE.store(device.line, Ordering::Release);
    vectors::set_handler(came);
    gic::open_edge(device.line, 0, machine.affinity(0));
    cpu::unmask();
    let wanted = |name: &str| machine.arguments().number(name, 0);
    lives(device);
    facts(device, wanted("facts") as u32);
    rings(device, wanted("rings"));
    if let Some(figure) = machine.arguments().value("figure") {
        measure(device, figure, wanted("passes"));
    }
    everywhere(machine, device);
    beats(machine, device, wanted("beats"));
    storm(device, wanted("storm"));
    card::run(machine, wanted("calls"));
    println!("edu: done");
}

fn lives(device: Device) {
    let identity = device_read(device.base + IDENTITY);
    device_write(device.base + LIVENESS, 0x1234_5678);
    let inverse = device_read(device.base + LIVENESS);
    println!("edu: is {identity:#x} and {}", if inverse == !0x1234_5678 { "lives" } else { "is something else" });
}

/// Each is computed by the device and by us.
fn facts(device: Device, count: u32) {
    let mut right = 0;
    for number in 1..=count {
        let before = CAME.load(Ordering::Acquire);
        device_write(device.base + STATUS, TELLS);
        device_write(device.base + FACTORIAL, number);
        cpu::sleep_until(|| CAME.load(Ordering::Acquire) > before);
        let is_over = device_read(device.base + STATUS) & COMPUTES == 0;
        let expected = (1..=number).fold(1u32, u32::wrapping_mul);
        right += u32::from(is_over && device_read(device.base + FACTORIAL) == expected && REASONS.swap(0, Ordering::AcqRel) == DONE);
    }
    println!("edu: {count} factorials, {right} right, each with a message");
}

fn rings(device: Device, count: u64) {
    let first = CAME.load(Ordering::Acquire);
    for ring in 1..=count {
        device_write(device.base + RING, RUNG);
        cpu::sleep_until(|| CAME.load(Ordering::Acquire) >= first + ring);
    }
    println!("edu: {count} rings, {} heard", CAME.load(Ordering::Acquire) - first);
}

/// How long a message takes, from the store that rings to the first instruction of the handler. They come slowly enough not to be
/// taken for a storm.
fn measure(device: Device, figure: &str, passes: u64) {
    let mut sum = Sum::default();
    for pass in 0..=passes {
        let rested = cpu::counter() + timer::microseconds(50);
        while cpu::counter() < rested {}
        let (before, begin) = (CAME.load(Ordering::Acquire), cpu::counter());
        device_write(device.base + RING, RUNG);
        while CAME.load(Ordering::Acquire) == before {
            core::hint::spin_loop();
        }
        // The first one finds nothing where the others find it.
        if pass > 0 {
            sum.add(CAME_AT.load(Ordering::Relaxed) - begin);
        }
    }
    let unit = if cpu::frequency() == 1_000_000_000 { "instructions" } else { "ticks" };
    println!("figure {figure} {} {unit}", sum.mean());
}

/// With more CPUs: each gets the line in turn.
fn everywhere(machine: &'static Machine, device: Device) {
    for index in 1..machine.cpus() {
        machine.start(index, sleeper);
        ring_at(machine, device, index);
        println!("edu: CPU {index} sent for, CPU {} got it", CAME_TO.load(Ordering::Relaxed));
    }
    gic::route(device.line, machine.affinity(0));
}

fn sleeper(_: &'static Machine, _: usize, _: u64) {
    cpu::sleep_until(|| false);
}

/// Whether it was heard in any time that can be thought of.
fn ring_at(machine: &'static Machine, device: Device, index: usize) -> bool {
    gic::route(device.line, machine.affinity(index));
    let (before, begin) = (CAME.load(Ordering::Acquire), cpu::counter());
    device_write(device.base + RING, RUNG);
    while CAME.load(Ordering::Acquire) == before {
        if cpu::counter() - begin > timer::microseconds(20_000_000) {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Ring after ring, and in the end a reset. One that does not come ends it all.
fn beats(machine: &'static Machine, device: Device, count: u64) {
    for number in 1..=count {
        if !ring_at(machine, device, number as usize % machine.cpus()) {
            return println!("edu: the line is dead");
        }
        if number.is_multiple_of(20) {
            println!("edu: beat {number}");
        }
    }
    if count > 0 {
        println!("edu: resets itself");
        psci::system_reset()
    }
}

/// Many at once are fewer interrupts, but the last one is heard.
fn storm(device: Device, count: u64) {
    if count == 0 {
        return;
    }
    let begin = cpu::counter();
    for _ in 0..count {
        device_write(device.base + RING, RUNG);
    }
    REASONS.store(0, Ordering::Release);
    device_write(device.base + RING, RUNG << 1);
    cpu::sleep_until(|| REASONS.load(Ordering::Acquire) & RUNG << 1 != 0);
    let took = (cpu::counter() - begin) / timer::microseconds(1000);
    println!("edu: a storm of {count} took {took} ms, its last one was heard");
}

fn came(line: u32, entered: u64) {
    if line != LINE.load(Ordering::Acquire) {
        return card::came(line);
    }
    let base = BASE.load(Ordering::Relaxed);
    let reasons = device_read(base + REASON);
    device_write(base + ANSWER, reasons);
    REASONS.fetch_or(reasons, Ordering::AcqRel);
    CAME_TO.store(cpu::index() as u64, Ordering::Relaxed);
    CAME_AT.store(entered, Ordering::Relaxed);
    CAME.fetch_add(1, Ordering::Release);
}
