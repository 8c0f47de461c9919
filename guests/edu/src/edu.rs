// SPDX-License-Identifier: MIT OR Apache-2.0
//! Has factorials computed and waits for the message that each is done; has the device ring; lets it ring without an end.
//! Command line: `facts=` factorials, `rings=` rings, each heard before the next; `storm=` rings in a row that nobody waits
//! for; `passes=` rings for the figure named `figure=`; `beats=` rings until it resets itself, for ever, each sent to another CPU than
//! the one before; `calls=` calls for each message of a card, and of another kind of card; `pages=` of memory that the device copies; `strays=` accesses of the device to what is none of the guest's memory,
//! from `stray-at=` on, each `stray-by=` behind the one before; `resets=1`: it resets itself once all that is done, and ends when it
//! comes again; `keeps=` milliseconds for which it looks after its memory, that nobody else writes it: a guest without the device can
//! do that.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use trellis_guest_platform::cpu::{device_read, device_write};
use trellis_guest_platform::tree::Device;
use trellis_guest_platform::figure::Sum;
use trellis_guest_platform::{Machine, cpu, gic, guest, println, psci, timer, vectors};

use crate::{card, twin};

/// Registers of the device (QEMU's manual, "EDU device").
const IDENTITY: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const REASON: u64 = 0x24;
const RING: u64 = 0x60;
const ANSWER: u64 = 0x64;
const FROM: u64 = 0x80;
const TO: u64 = 0x88;
const COUNT: u64 = 0x90;
const COPY: u64 = 0x98;
/// Its own memory, and the bytes of that.
const BUFFER: u64 = 0x4_0000;
const BUFFER_BYTES: u64 = 4096;
/// In the status: it computes; it is to write a message when it is done.
const COMPUTES: u32 = 1;
const TELLS: u32 = 0x80;
/// Why it wrote a message: a factorial is done; we rang.
const DONE: u32 = 1;
const RUNG: u32 = 2;
const COPIED: u32 = 0x100;
/// Copies: begin; from its own memory, not into it; write a message then.
const BEGIN: u32 = 1;
const OUT: u32 = 2;
const TELL: u32 = 4;

/// Memory that the device reads and writes.
#[repr(align(4096))]
struct Page([AtomicU64; BUFFER_BYTES as usize / 8]);

static SOURCE: Page = Page::new();
static TARGET: Page = Page::new();

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
    let keeps = machine.arguments().number("keeps", 0);
    if keeps > 0 {
        return keep(machine, keeps);
    }
    let Some(device) = machine.tree.edu else { return println!("edu: it is not there") };
    println!("edu: at {:#x} with interrupt {}", device.base, device.line);
    BASE.store(device.base, Ordering::Relaxed);
    LINE.store(device.line, Ordering::Release);
    vectors::set_handler(came);
    gic::open_edge(device.line, 0, machine.affinity(0));
    cpu::unmask();
    let wanted = |name: &str| machine.arguments().number(name, 0);
    let comes_again = device_read(device.base + LIVENESS) != 0;
    lives(device);
    facts(device, wanted("facts") as u32);
    rings(device, wanted("rings"));
    if let Some(figure) = machine.arguments().value("figure") {
        measure(device, figure, wanted("passes"));
    }
    everywhere(machine, device);
    copies(device, wanted("pages"));
    strays(device, [wanted("strays"), wanted("stray-at"), wanted("stray-by")]);
    beats(machine, device, wanted("beats"));
    storm(device, wanted("storm"));
    card::run(machine, wanted("calls"));
    twin::run(machine, wanted("calls"));
    if wanted("resets") > 0 && !comes_again {
        println!("edu: resets itself");
        psci::system_reset()
    }
    println!("edu: done{}", if comes_again { " again" } else { "" });
}

impl Page {
    const fn new() -> Page {
        Page([const { AtomicU64::new(0) }; BUFFER_BYTES as usize / 8])
    }

    /// Where the device finds it: our addresses are those of our memory.
    fn address(&self) -> u64 {
        core::ptr::from_ref(self).addr() as u64
    }

    fn fill(&self, word: impl Fn(u64) -> u64) {
        (0..).zip(&self.0).for_each(|(index, place)| place.store(word(index), Ordering::Relaxed));
        fence(Ordering::SeqCst);
    }

    fn has(&self, word: impl Fn(u64) -> u64) -> bool {
        fence(Ordering::SeqCst);
        (0..).zip(&self.0).all(|(index, place)| place.load(Ordering::Relaxed) == word(index))
    }
}

/// What stands in word `index` of page `number`.
fn pattern(number: u64) -> impl Fn(u64) -> u64 {
    move |index| (number << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The device copies a page, and says so.
fn copy(device: Device, from: u64, to: u64, way: u32) -> bool {
    let before = CAME.load(Ordering::Acquire);
    REASONS.store(0, Ordering::Release);
    for (register, value) in [(FROM, from), (TO, to), (COUNT, BUFFER_BYTES)] {
        device_write(device.base + register, value as u32);
        device_write(device.base + register + 4, (value >> 32) as u32);
    }
    device_write(device.base + COPY, BEGIN | way | TELL);
    cpu::sleep_until(|| CAME.load(Ordering::Acquire) > before);
    REASONS.load(Ordering::Acquire) == COPIED
}

/// From our memory to its own and back to another place of ours.
fn copies(device: Device, pages: u64) {
    if pages == 0 {
        return;
    }
    let mut right = 0;
    for number in 1..=pages {
        SOURCE.fill(pattern(number));
        TARGET.fill(|_| 0);
        let told = copy(device, SOURCE.address(), BUFFER, 0) && copy(device, BUFFER, TARGET.address(), OUT);
        right += u64::from(told && TARGET.has(pattern(number)));
    }
    println!("edu: {pages} pages copied there and back, {right} right, each with two messages");
}

/// It writes what it has to where we have no memory, and reads from there: what it has stays what it was, or is zeroes.
fn strays(device: Device, [count, at, by]: [u64; 3]) {
    if count == 0 {
        return;
    }
    SOURCE.fill(pattern(0));
    copy(device, SOURCE.address(), BUFFER, 0);
    for number in 0..count {
        copy(device, BUFFER, at + number * by, OUT);
        copy(device, at + number * by, BUFFER, 0);
    }
    TARGET.fill(|_| 0);
    copy(device, BUFFER, TARGET.address(), OUT);
    let brought = if TARGET.has(pattern(0)) || TARGET.has(|_| 0) { "nothing" } else { "something" };
    println!("edu: strayed {count} times from {at:#x} on, brought {brought}");
}

/// Writes all of its memory that nobody uses, and looks whether it stays so.
fn keep(machine: &'static Machine, milliseconds: u64) {
    let end = machine.tree.memory_base + machine.tree.memory_bytes - (2 << 20);
    let words = || (machine.tree.memory_base + (4 << 20)..end).step_by(64);
    words().for_each(|at| device_write(at, at as u32 ^ 0x5a5a_a5a5));
    println!("edu: keeps {} KiB", (end - machine.tree.memory_base - (4 << 20)) >> 10);
    let (begin, mut changed) = (cpu::counter(), 0);
    while cpu::counter() - begin < timer::microseconds(milliseconds * 1000) {
        changed = words().filter(|at| device_read(*at) != *at as u32 ^ 0x5a5a_a5a5).count();
        if changed > 0 {
            break;
        }
    }
    println!("edu: kept it, {changed} changed");
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
        card::came(line);
        return twin::came(line);
    }
    let base = BASE.load(Ordering::Relaxed);
    let reasons = device_read(base + REASON);
    device_write(base + ANSWER, reasons);
    REASONS.fetch_or(reasons, Ordering::AcqRel);
    CAME_TO.store(cpu::index() as u64, Ordering::Relaxed);
    CAME_AT.store(entered, Ordering::Relaxed);
    CAME.fetch_add(1, Ordering::Release);
}
