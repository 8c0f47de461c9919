// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sets alarms and waits for each; lets the line storm; sends through the serial port. Command line: `alarms=` how many,
//! `storm=` interrupts that are not answered at the device, `port=` bytes; `beats=` alarms until it resets itself, for ever, each sent
//! to another CPU than the one before; `resets=1`: it does so after its last byte too;
//! `rings=` writes of `bell=` to a doorbell, which each interrupt once.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use trellis_guest_platform::cpu::{device_read, device_write};
use trellis_guest_platform::tree::Device;
use trellis_guest_platform::{Machine, cpu, gic, guest, println, psci, timer, vectors};

/// Registers of a PL031: data, match, mask, whether it asks, clear (its manual, 3.2).
const DATA: u64 = 0x0;
const MATCH: u64 = 0x4;
const MASK: u64 = 0x10;
const ASKS: u64 = 0x14;
const CLEAR: u64 = 0x1c;
/// The register of a GICv2m frame that makes an interrupt of a number written (Arm's Base System Architecture 1.0, appendix I).
const RING: u64 = 0x40;
/// Registers of a PL011: data, mask; the transmit interrupt (its manual, 3.2).
const PORT_DATA: u64 = 0x0;
const PORT_CONTROL: u64 = 0x30;
const PORT_MASK: u64 = 0x38;
const TRANSMITTED: u32 = 1 << 5;

static CLOCK: AtomicU64 = AtomicU64::new(0);
static CLOCK_LINE: AtomicU32 = AtomicU32::new(0);
static PORT: AtomicU64 = AtomicU64::new(0);
static PORT_LINE: AtomicU32 = AtomicU32::new(0);
static BELL_LINE: AtomicU32 = AtomicU32::new(0);
static RUNG: AtomicU64 = AtomicU64::new(0);
/// Interrupts that came, by device, and on which CPU the last one did.
static ALARMS: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static CAME_TO: AtomicU64 = AtomicU64::new(0);
/// The clock's interrupts up to this one are not answered at the device.
static IGNORED: AtomicU64 = AtomicU64::new(0);

guest!(run);

fn run(machine: &'static Machine) {
    vectors::set_handler(came);
    let wanted = |name: &str| machine.arguments().number(name, 0);
    if let Some(clock) = machine.tree.clock {
        println!("alarm: a clock at {:#x} with interrupt {}", clock.base, clock.line);
        open(machine, clock, &CLOCK, &CLOCK_LINE);
        alarms(clock, wanted("alarms").max(1));
        everywhere(machine, clock);
        beats(machine, clock, wanted("beats"));
        storm(clock, wanted("storm"));
    }
    if let Some(port) = machine.tree.port {
        println!("alarm: a port at {:#x} with interrupt {}", port.base, port.line);
        open(machine, port, &PORT, &PORT_LINE);
        send(port, wanted("port").max(1));
    }
    if let Some(bell) = machine.tree.bell {
        println!("alarm: a doorbell at {:#x} with interrupt {}", bell.base, bell.line);
        BELL_LINE.store(bell.line, Ordering::Release);
        gic::open(bell.line, 0, machine.affinity(0));
        rings(bell, wanted("bell") as u32, wanted("rings"));
    }
    if wanted("resets") != 0 {
        println!("alarm: resets itself");
        psci::system_reset()
    }
    println!("alarm: done");
}

fn open(machine: &Machine, device: Device, base: &AtomicU64, line: &AtomicU32) {
    base.store(device.base, Ordering::Relaxed);
    line.store(device.line, Ordering::Release);
    gic::open(device.line, 0, machine.affinity(0));
}

/// The first alarm is a second off, the others are due at once.
fn alarms(clock: Device, count: u64) {
    device_write(clock.base + MASK, 1);
    let begin = cpu::counter();
    for number in 1..=count {
        arm(clock, u32::from(number == 1));
        cpu::sleep_until(|| ALARMS.load(Ordering::Acquire) >= number);
        if number == 1 {
            let took = (cpu::counter() - begin) / timer::microseconds(1000);
            println!("alarm: the first came {}", if took < 3000 { "in time" } else { "late" });
        }
    }
    // A second look: none may have come twice.
    println!("alarm: {count} alarms set, {} came", ALARMS.load(Ordering::Acquire));
}

fn arm(clock: Device, seconds: u32) {
    device_write(clock.base + MATCH, device_read(clock.base + DATA).wrapping_add(seconds));
}

/// Sets an alarm that is due, and waits for it. False: the clock asks, and nobody hears of it.
fn comes_at_once(clock: Device) -> bool {
    let before = ALARMS.load(Ordering::Acquire);
    arm(clock, 0);
    let mut begin = cpu::counter();
    while ALARMS.load(Ordering::Acquire) == before {
        let waited = cpu::counter() - begin;
        if waited > timer::microseconds(2_000_000) && device_read(clock.base + ASKS) == 0 {
            // Somebody kept us from running between the second's end and its being asked for: that one comes in 136 years.
            arm(clock, 0);
            begin = cpu::counter();
        } else if waited > timer::microseconds(20_000_000) {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// With more CPUs: each gets the line in turn.
fn everywhere(machine: &'static Machine, clock: Device) {
    if machine.cpus() < 2 || gic::is_version_2() {
        return;
    }
    for index in 1..machine.cpus() {
        machine.start(index, sleeper);
        gic::route(clock.line, machine.affinity(index));
        if !comes_at_once(clock) {
            return println!("alarm: the line is dead");
        }
        println!("alarm: CPU {index} sent for, CPU {} got it", CAME_TO.load(Ordering::Relaxed));
    }
    gic::route(clock.line, machine.affinity(0));
}

/// Alarm after alarm, and in the end a reset. One that does not come ends it all.
fn beats(machine: &'static Machine, clock: Device, count: u64) {
    if count == 0 {
        return;
    }
    for number in 1..=count {
        if !gic::is_version_2() {
            gic::route(clock.line, machine.affinity(number as usize % machine.cpus()));
        }
        if !comes_at_once(clock) {
            return println!("alarm: the line is dead");
        }
        if number.is_multiple_of(20) {
            println!("alarm: beat {number}");
        }
    }
    println!("alarm: resets itself");
    psci::system_reset()
}

fn sleeper(_: &'static Machine, _: usize, _: u64) {
    cpu::sleep_until(|| false);
}

/// The device goes on asking until so many interrupts have come.
fn storm(clock: Device, count: u64) {
    if count == 0 {
        return;
    }
    let before = ALARMS.load(Ordering::Acquire);
    IGNORED.store(before + count - 1, Ordering::Release);
    let begin = cpu::counter();
    arm(clock, 0);
    cpu::sleep_until(|| ALARMS.load(Ordering::Acquire) >= before + count);
    let took = (cpu::counter() - begin) / timer::microseconds(1000);
    println!("alarm: a storm of {count} took {took} ms");
}

/// Each byte's interrupt lets the next one go.
fn send(port: Device, count: u64) {
    device_write(port.base + PORT_CONTROL, 0x301);
    for number in 1..=count {
        device_write(port.base + PORT_DATA, u32::from(b'a'));
        device_write(port.base + PORT_MASK, TRANSMITTED);
        cpu::sleep_until(|| SENT.load(Ordering::Acquire) >= number);
        if number.is_multiple_of(100) {
            println!("alarm: sent {number}");
        }
    }
    println!("alarm: {count} bytes sent, {} interrupts", SENT.load(Ordering::Acquire));
}

/// Each ring is heard before the next one. Nothing is answered at the device: it was an edge.
fn rings(bell: Device, number: u32, count: u64) {
    for ring in 1..=count {
        device_write(bell.base + RING, number);
        cpu::sleep_until(|| RUNG.load(Ordering::Acquire) >= ring);
    }
    println!("alarm: {count} rings, {} heard", RUNG.load(Ordering::Acquire));
}

fn came(line: u32, _: u64) {
    if line == BELL_LINE.load(Ordering::Acquire) {
        RUNG.fetch_add(1, Ordering::Release);
        return;
    }
    if line == CLOCK_LINE.load(Ordering::Acquire) {
        CAME_TO.store(cpu::index() as u64, Ordering::Relaxed);
        if ALARMS.load(Ordering::Relaxed) >= IGNORED.load(Ordering::Acquire) {
            device_write(CLOCK.load(Ordering::Relaxed) + CLEAR, 1);
        }
        ALARMS.fetch_add(1, Ordering::Release);
    } else if line == PORT_LINE.load(Ordering::Acquire) {
        device_write(PORT.load(Ordering::Relaxed) + PORT_MASK, 0);
        SENT.fetch_add(1, Ordering::Release);
    }
}
