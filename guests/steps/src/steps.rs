// SPDX-License-Identifier: MIT OR Apache-2.0
//! The story. A line says WRONG when something was not as it must be.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_guest_platform::fault::{attempt, expect_steps};
use trellis_guest_platform::{Machine, cpu, guest, println, read_register, timer, vectors, write_register};

/// View 1 forbids writes to this page (`images/steps.toml`).
const WATCHED: u64 = 0x4080_2000;
/// The handler of interrupts counts here.
const COUNTED: u64 = WATCHED + 0xff8;
/// The guest's own tables have nothing here.
const NOWHERE: u64 = 0x00ff_ff00_0000_0000;
const ROUNDS: u64 = 200;
/// Between two timer interrupts, in microseconds.
const PERIOD: u64 = 100;
/// Hypercall whose server lets the next instruction be executed in a step, in view 0, and wants to know when it is over.
const STEP_NEXT: u64 = 0xc600_57e9;
/// Hypercall that asks how many were over.
const STEPS_OVER: u64 = 0xc600_57ea;

static TICKS: AtomicU64 = AtomicU64::new(0);

/// How often each CPU counts in each way.
const COUNT: u64 = 100;
/// Where both count, a way each.
const COUNTERS: u64 = WATCHED + 0x600;
/// Set in what has been counted to its end, one bit a CPU; set at all when a pair was torn.
static FINISHED: AtomicU64 = AtomicU64::new(0);
static TORN: AtomicU64 = AtomicU64::new(0);

guest!(run);

/// Instructions that touch the watched page, or nothing but registers.
macro_rules! act {
    ($($text:literal),+; $($operand:tt)*) => {
        // SAFETY: of memory only the watched page changes, which nothing of Rust's is in; registers are named.
        unsafe {
            asm!(".arch_extension fp", ".arch_extension simd", ".arch_extension lse", $($text),+, $($operand)*
                options(nostack))
        }
    };
}

/// The next instruction is executed in a step.
macro_rules! stepped {
    ($($text:literal),+; $($operand:tt)*) => {
        act!("hvc #0", $($text),+; $($operand)* inout("x0") STEP_NEXT => _, out("x1") _, out("x2") _, out("x3") _,)
    };
}

fn switch(view: u64) -> i64 {
    let result: i64;
    act!("hvc #0x5400"; inout("x0") view => result,);
    result
}

fn steps_over() -> u64 {
    cpu::hvc([STEPS_OVER, 0, 0, 0])[0]
}

fn read(address: u64) -> u64 {
    let value;
    act!("ldr {value}, [{address}]"; value = out(reg) value, address = in(reg) address,);
    value
}

fn write(address: u64, value: u64) {
    act!("str {value}, [{address}]"; value = in(reg) value, address = in(reg) address,);
}

fn expect(what: &str, found: u64, expected: u64) {
    if found != expected {
        println!("{what}: WRONG, {found:#x} instead of {expected:#x}");
    }
}

fn tick(line: u32, _: u64) {
    if line == timer::LINE {
        TICKS.fetch_add(1, Ordering::Relaxed);
        write(COUNTED, read(COUNTED) + 1);
        timer::arm(cpu::counter() + timer::microseconds(PERIOD));
    }
}

fn run(machine: &'static Machine) {
    for offset in 0..16 {
        write(COUNTERS + 8 * offset, 0);
    }
    expect("the second CPU starts", machine.start(1, other) as u64, 0);
    write_register!("cpacr_el1", 3u64 << 20);
    act!("isb"; );
    write(COUNTED, 0);
    let before = own_steps();
    expect("view 1 is entered", switch(1) as u64, 0);
    expect("its own single steps over a watched write", own_steps(), before);
    vectors::set_handler(tick);
    timer::arm(cpu::counter() + timer::microseconds(PERIOD));
    cpu::unmask();
    // ID_AA64ISAR0_EL1.Atomic.
    let has_atomics = read_register!("id_aa64isar0_el1") >> 20 & 15 >= 2;
    for round in 1..=ROUNDS {
        registers(round);
        vector_registers(round);
        zero_block(round);
        if has_atomics {
            atomics(round);
        }
    }
    println!("steps: {ROUNDS} rounds, with atomics: {has_atomics}");
    count();
    while FINISHED.load(Ordering::Acquire) < 2 {
        core::hint::spin_loop();
    }
    counted();
    while TICKS.load(Ordering::Relaxed) < 20 {
        registers(1);
    }
    cpu::mask();
    timer::stop();
    expect("what the handler of interrupts counted", read(COUNTED), TICKS.load(Ordering::Relaxed));
    others();
    println!("steps: done, {} interrupts", if TICKS.load(Ordering::Relaxed) >= 20 { "enough" } else { "too few" });
}

fn other(_: &'static Machine, _: usize, _: u64) {
    expect("view 1 is entered by the second CPU", switch(1) as u64, 0);
    count();
}

/// Counts by exclusive accesses, with every size, ordered and not, single and in pairs.
fn count() {
    for _ in 0..COUNT {
        act!("2: ldxr {v}, [{p}]", "add {v}, {v}, #1", "stxr {s:w}, {v}, [{p}]", "cbnz {s:w}, 2b";
            v = out(reg) _, s = out(reg) _, p = in(reg) COUNTERS,);
        act!("2: ldaxr {v:w}, [{p}]", "add {v:w}, {v:w}, #1", "stlxr {s:w}, {v:w}, [{p}]", "cbnz {s:w}, 2b";
            v = out(reg) _, s = out(reg) _, p = in(reg) COUNTERS + 8,);
        act!("2: ldxrb {v:w}, [{p}]", "add {v:w}, {v:w}, #1", "stlxrb {s:w}, {v:w}, [{p}]", "cbnz {s:w}, 2b";
            v = out(reg) _, s = out(reg) _, p = in(reg) COUNTERS + 0x11,);
        act!("2: ldaxrh {v:w}, [{p}]", "add {v:w}, {v:w}, #1", "stxrh {s:w}, {v:w}, [{p}]", "cbnz {s:w}, 2b";
            v = out(reg) _, s = out(reg) _, p = in(reg) COUNTERS + 0x1a,);
        let torn: u64;
        act!("2: ldxp {v}, {w}, [{p}]", "eor {t}, {v}, {w}", "add {v}, {v}, #1", "add {w}, {w}, #1", "stlxp {s:w}, {v}, {w}, [{p}]",
            "cbnz {s:w}, 2b"; v = out(reg) _, w = out(reg) _, t = out(reg) torn, s = out(reg) _, p = in(reg) COUNTERS + 0x20,);
        let torn_too: u64;
        act!("2: ldaxp {v:w}, {w:w}, [{p}]", "eor {t}, {v}, {w}", "add {v:w}, {v:w}, #1", "add {w:w}, {w:w}, #1",
            "stxp {s:w}, {v:w}, {w:w}, [{p}]", "cbnz {s:w}, 2b";
            v = out(reg) _, w = out(reg) _, t = out(reg) torn_too, s = out(reg) _, p = in(reg) COUNTERS + 0x30,);
        TORN.fetch_or(torn | torn_too, Ordering::Relaxed);
    }
    FINISHED.fetch_add(1, Ordering::Release);
}

fn counted() {
    const ALL: u64 = 2 * COUNT;
    expect("counted by words", read(COUNTERS), ALL);
    expect("by half words", read(COUNTERS + 8), ALL);
    expect("by bytes", read(COUNTERS + 0x10), (ALL & 0xff) << 8);
    expect("by two bytes", read(COUNTERS + 0x18), ALL << 16);
    expect("by pairs, the first", read(COUNTERS + 0x20), ALL);
    expect("the second", read(COUNTERS + 0x28), ALL);
    expect("by pairs of half words", read(COUNTERS + 0x30), ALL | ALL << 32);
    expect("pairs that were torn", TORN.load(Ordering::Relaxed), 0);
    println!("steps: two CPUs have counted");
}

fn registers(n: u64) {
    let place = WATCHED + 0x40;
    write(place, n);
    expect("a store", read(place), n);
    let mut next = place;
    act!("str {value:w}, [{next}], #4", "strb {value:w}, [{next}, #3]!"; value = in(reg) n << 1 | 1, next = inout(reg) next,);
    expect("after two stores with write-back", next, place + 7);
    expect("what they stored", read(place), n << 1 | 1 | (n << 1 | 1) << 56);
    let mut next = place;
    act!("stp {a}, {b}, [{next}, #16]!"; a = in(reg) n, b = in(reg) !n, next = inout(reg) next,);
    expect("after a pair", next, place + 16);
    expect("the first of it", read(next), n);
    expect("the second", read(next + 8), !n);
    act!("stlr {a}, [{next}]"; a = in(reg) n + 1, next = in(reg) next,);
    expect("a store with release", read(next), n + 1);
}

fn vector_registers(n: u64) {
    let (place, mut next) = (WATCHED + 0x80, WATCHED + 0x80);
    act!("dup v0.2d, {n}", "dup v1.2d, {m}", "str q0, [{next}], #16", "stp d1, d0, [{next}], #16"; n = in(reg) n, m = in(reg) !n, next = inout(reg) next,);
    expect("after two of vector registers", next, place + 32);
    for (index, value) in (0..).zip([n, n, !n, n]) {
        expect("what they stored", read(place + 8 * index), value);
    }
    act!("dup v0.2d, {n}", "dup v1.2d, {m}", "st1 {{v0.2d, v1.2d}}, [{next}], #32"; n = in(reg) n + 2, m = in(reg) n + 3, next = inout(reg) next,);
    expect("after two at once", next, place + 64);
    for (index, value) in (4..).zip([n + 2, n + 2, n + 3, n + 3]) {
        expect("what they stored", read(place + 8 * index), value);
    }
}

fn zero_block(n: u64) {
    let block = 4 << (read_register!("dczid_el0") & 15);
    let place = WATCHED + 0x800;
    write(place - 8, n);
    write(place, n);
    write(place + block - 8, n);
    write(place + block, n);
    act!("dc zva, {place}"; place = in(reg) place + 8,);
    for (address, value) in [(place - 8, n), (place, 0), (place + block - 8, 0), (place + block, n)] {
        expect("around a block of zeroes", read(address), value);
    }
}

fn atomics(n: u64) {
    let place = WATCHED + 0x400;
    let old: u64;
    write(place, n);
    act!("ldadd {one}, {old}, [{place}]"; one = in(reg) 1u64, old = out(reg) old, place = in(reg) place,);
    expect("what an addition found", old, n);
    expect("what it left", read(place), n + 1);
    let old: u64;
    act!("swpal {new}, {old}, [{place}]"; new = in(reg) !n, old = out(reg) old, place = in(reg) place,);
    expect("what an exchange found", old, n + 1);
    expect("what it left", read(place), !n);
    for (compare, new, left) in [(n, 5u64, !n), (!n, 7, 7)] {
        let mut compare: u64 = compare;
        act!("casal {compare}, {new}, [{place}]"; compare = inout(reg) compare, new = in(reg) new, place = in(reg) place,);
        expect("what a comparison found", compare, !n);
        expect("what it left", read(place), left);
    }
    write(place + 8, n);
    let (mut a, mut b) = (7u64, n);
    act!("casp x4, x5, x6, x7, [{place}]"; place = in(reg) place, inout("x4") a, inout("x5") b, in("x6") 1u64, in("x7") 2u64,);
    expect("what a pair found", a ^ b, 7 ^ n);
    expect("what it left", read(place) | read(place + 8), 3);
    (a, b) = (0, 0);
    act!("stadd {a}, [{place}]", "stset {b}, [{place}]"; a = in(reg) a + 4, b = in(reg) b + 8, place = in(reg) place,);
    expect("and two more", read(place), 13);
}

/// How many single steps the guest takes itself over some instructions, a watched write among them.
fn own_steps() -> u64 {
    expect_steps(9);
    // MDSCR_EL1: KDE and SS.
    act!("msr mdscr_el1, {on}", "isb", "msr daifclr, #8", "nop", "str {on}, [{place}]", "nop", "str {on}, [{place}, #8]", "nop",
        "nop", "nop", "nop", "nop", "nop", "nop", "msr daifset, #8", "msr mdscr_el1, xzr", "isb";
        on = in(reg) 1u64 << 13 | 1, place = in(reg) WATCHED + 0x20,);
    expect_steps(0)
}

/// What has nothing to do with watched pages, in steps.
fn others() {
    let before = steps_over();
    stepped!("nop";);
    let (inside, outside): (u64, u64);
    stepped!("mrs {a}, daif", "mrs {b}, daif"; a = out(reg) inside, b = out(reg) outside,);
    expect("what is masked in a step", inside, outside);
    let debug: u64;
    stepped!("mrs {a}, mdscr_el1"; a = out(reg) debug,);
    expect("debug state in a step", debug, 0);
    // Nothing would wake it.
    stepped!("wfi";);
    stepped!("wfe";);
    let there: u64;
    stepped!("b 3f", "mov {a}, #1", "b 4f", "3: mov {a}, #2", "4:"; a = out(reg) there,);
    expect("where a jump went", there, 2);
    let there: u64;
    act!("adr {a}, 2f", "msr elr_el1, {a}", "mov {a}, #0x3c5", "msr spsr_el1, {a}", "hvc #0", "eret", "mov {a}, #1", "2: add {a}, {a}, #1";
        a = out(reg) there, inout("x0") STEP_NEXT => _, out("x1") _, out("x2") _, out("x3") _,);
    expect("where an exception return went", there, 0x3c6);
    for (class, fault) in [
        (0x15, attempt(|| stepped!("svc #0", "nop";))),
        (0x3c, attempt(|| stepped!("brk #7";))),
        (0x00, attempt(|| stepped!("udf #0";))),
        (0x25, attempt(|| stepped!("str xzr, [{a}]"; a = in(reg) NOWHERE,))),
    ] {
        let saved = read_register!("spsr_el1");
        expect("the class of an exception", fault.err().map_or(0xff, |fault| fault.class()), class);
        expect("its own step in the state it saved", saved >> 21 & 1, 0);
    }
    let version = {
        let version: u64;
        act!("hvc #0", "hvc #0"; inout("x0") STEP_NEXT => _, out("x1") _, out("x2") _, out("x3") _,);
        act!("mov {a}, #0"; a = out(reg) version,);
        version
    };
    expect("a hypercall in a step", version, 0);
    println!("steps: {} were over", steps_over() - before);
}
