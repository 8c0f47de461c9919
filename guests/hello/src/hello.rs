// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each CPU does, and how the boot CPU waits for the others.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use trellis_guest_platform::tree::MAX_CPUS;
use trellis_guest_platform::{Machine, cpu, gic, gic2, guest, println, psci, timer, uart, vectors};

/// Timer interrupts that each CPU waits for, unless the command line says another number: `waits=`.
const INTERRUPTS: u64 = 3;
/// Between two of them, in microseconds.
const PERIOD: u64 = 1_000;

static CAME: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// The software interrupt by which a CPU says that it is about to finish, where an interrupt says who sent it.
const BYE: u32 = 1;
/// CPUs that CPU 0 got it from, one bit each.
static SENDERS: AtomicU32 = AtomicU32::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);
static WANTED: AtomicU64 = AtomicU64::new(INTERRUPTS);

guest!(run);

fn run(machine: &'static Machine) {
    let name = machine.arguments().value("name").unwrap_or("hello");
    println!("hello from {name}, {} CPUs, {} MiB", machine.cpus(), machine.tree.memory_bytes >> 20);
    if let Some(period) = machine.arguments().value("talks").and_then(|period| period.parse().ok()) {
        return talk(name, period);
    }
    if machine.arguments().number("sleeps", 0) != 0 {
        println!("{name}: sleeps");
        return cpu::sleep_until(|| false);
    }
    WANTED.store(machine.arguments().number("waits", INTERRUPTS), Ordering::Relaxed);
    vectors::set_handler(tick);
    let mut started = 1;
    for index in 1..machine.cpus() {
        match machine.start(index, other) {
            psci::SUCCESS => started += 1,
            error => println!("CPU {index} did not start: {error}"),
        }
    }
    greet(0);
    FINISHED.fetch_add(1, Ordering::Release);
    wait_for_others(started);
    if gic::is_version_2() {
        println!("{name}: software interrupts from CPUs {:#b}", SENDERS.load(Ordering::Relaxed));
    }
    println!("{name}: {} of {} CPUs finished", FINISHED.load(Ordering::Acquire), machine.cpus());
}

/// Says something every so many timer interrupts, until a key comes.
fn talk(name: &str, period: u64) {
    vectors::set_handler(tick);
    WANTED.store(u64::MAX, Ordering::Relaxed);
    timer::arm(cpu::counter() + timer::microseconds(PERIOD));
    for line in 0.. {
        println!("{name}: line {line}");
        cpu::sleep_until(|| CAME[0].load(Ordering::Relaxed) >= (line + 1) * period);
        cpu::mask();
        if uart::get().is_some() {
            println!("{name}: a key after {} lines", line + 1);
            return timer::stop();
        }
    }
}

fn other(_: &'static Machine, index: usize, _: u64) {
    greet(index);
    if gic::is_version_2() {
        gic2::send(BYE, 1);
    }
    FINISHED.fetch_add(1, Ordering::Release);
}

fn greet(index: usize) {
    println!("hello from CPU {index}");
    let begin = cpu::counter();
    timer::arm(begin + timer::microseconds(PERIOD));
    cpu::sleep_until(|| CAME[index].load(Ordering::Relaxed) >= WANTED.load(Ordering::Relaxed));
    cpu::mask();
    let took = (cpu::counter() - begin) * 1_000 / timer::microseconds(1_000);
    println!("CPU {index}: {} timer interrupts in {took} us", CAME[index].load(Ordering::Relaxed));
}

/// The next interrupt is due a period after the last was, however late this one came.
fn tick(line: u32, _: u64) {
    if line == BYE {
        note_sender();
    }
    if line != timer::LINE {
        return;
    }
    if CAME[cpu::index()].fetch_add(1, Ordering::Relaxed) + 1 < WANTED.load(Ordering::Relaxed) {
        timer::arm(timer::due() + timer::microseconds(PERIOD));
    } else {
        timer::stop();
    }
}

/// Looks again every period: nobody sends an interrupt when a CPU has finished.
fn wait_for_others(started: usize) {
    while FINISHED.load(Ordering::Acquire) < started {
        timer::arm(cpu::counter() + timer::microseconds(PERIOD));
        cpu::wait_for_interrupt();
        timer::stop();
        take_all();
    }
    take_all();
}

/// Takes and ends whatever is pending.
fn take_all() {
    if !gic::is_version_2() {
        gic::discard();
        return;
    }
    loop {
        let taken = gic2::acknowledge();
        match taken.line() {
            gic::SPURIOUS.. => return,
            BYE => note_sender(),
            _ => {}
        }
        gic2::end(taken);
    }
}

/// Somebody is about to finish.
fn note_sender() {
    if gic::is_version_2() {
        SENDERS.fetch_or(1 << gic2::last().sender(), Ordering::Relaxed);
    }
}
