// SPDX-License-Identifier: MIT OR Apache-2.0
//! The story, line by line; each line says what was expected when it did not come.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_guest_platform::{Machine, cpu, guest, println, read_register, write_register};

/// View 1 shows under this page the frame of the next.
const MOVED: u64 = 0x4080_0000;
const OTHER: u64 = 0x4080_1000;
/// View 2 forbids writes to this page, and the guest is told.
const WATCHED: u64 = 0x4080_2000;
/// Where it is told.
const NOTICE: u64 = 0x4080_3000;
/// Blocks that nothing has touched: first, and how many.
const BLOCKS: (u64, u64) = (0x4100_0000, 24);
const BLOCK: u64 = 2 << 20;

// What is forbidden is done in view 0: the handler goes there, says that it has read the page, and goes back.
global_asm!(
    ".global notice_handler",
    "notice_handler:",
    "stp x0, x1, [sp, #-16]!",
    "mov x0, #0",
    "hvc #0x5400",
    "adrp x0, {told}",
    "add x0, x0, :lo12:{told}",
    "ldr x1, [x0]",
    "add x1, x1, #1",
    "str x1, [x0]",
    "movz x0, #0x4080, lsl #16",
    "movk x0, #0x3000",
    "str wzr, [x0, #4]",
    "ldp x0, x1, [sp], #16",
    "hvc #0x5402",
    "b .",
    told = sym TOLD,
);

unsafe extern "C" {
    fn notice_handler();
}

/// How often this CPU was told.
static TOLD: AtomicU64 = AtomicU64::new(0);

guest!(run);

/// Enters a view.
fn switch(view: u64) -> i64 {
    let result: i64;
    // SAFETY: the kernel changes x0 and nothing else; every view shows this program where it is.
    unsafe { asm!("hvc #0x5400", inout("x0") view => result, options(nostack)) };
    result
}

/// Asks to be told of forbidden accesses.
fn listen(page: u64, entry: u64) -> i64 {
    let result: i64;
    // SAFETY: the page is nothing of Rust's, the entry keeps all registers.
    unsafe { asm!("hvc #0x5401", inout("x0") page => result, in("x1") entry, options(nostack)) };
    result
}

fn read(address: u64) -> u64 {
    // SAFETY: memory behind the image, which the guest's map covers and nothing of Rust's is in.
    unsafe { (address as *const u64).read_volatile() }
}

fn write(address: u64, value: u64) {
    // SAFETY: as in `read`.
    unsafe { (address as *mut u64).write_volatile(value) }
}

fn expect(what: &str, found: i64, expected: i64) {
    match found == expected {
        true => println!("{what}: {found}"),
        false => println!("{what}: WRONG, {found:#x} instead of {expected:#x}"),
    }
}

fn run(machine: &'static Machine) {
    if machine.arguments().number("split", 0) == 1 {
        return split();
    }
    write(MOVED, 1);
    write(OTHER, 2);
    expect("view 1 is entered", switch(1), 0);
    expect("it shows the other page", read(MOVED) as i64, 2);
    expect("back in view 0", switch(0), 0);
    expect("it shows its own", read(MOVED) as i64, 1);
    expect("a hidden view is not entered", switch(3), -12);
    expect("nor one that cannot be", switch(4), -6);
    expect("nor one that is no number of a view", switch(u64::MAX), -6);
    told();
    measure();
    println!("views: done");
}

/// Executes a page that holds `ret` alone.
fn call(page: u64) {
    // SAFETY: by `split` the page holds a return, which changes the link register and nothing else.
    unsafe { asm!("blr {page}", page = in(reg) page, out("lr") _, options(nostack)) };
}

/// One level of the guest may execute, and the other may not.
fn split() {
    write(MOVED, 0xd65f_03c0);
    // SAFETY: maintenance of caches of one line.
    unsafe { asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) MOVED, options(nostack)) };
    call(MOVED);
    expect("the page is taken", listen(NOTICE, notice_handler as *const () as u64), 0);
    expect("view 1 is entered", switch(1), 0);
    call(MOVED);
    expect("the kernel level executes it", TOLD.load(Ordering::Relaxed) as i64, 0);
    expect("view 2 is entered", switch(2), 0);
    expect("which can read it", read(MOVED) as i64, 0xd65f_03c0);
    call(MOVED);
    expect("told of the execution", TOLD.load(Ordering::Relaxed) as i64, 1);
    expect("a fetch", (read(NOTICE + 8) >> 25) as i64 & 1, 1);
    expect("at", read(NOTICE + 16) as i64, MOVED as i64);
    println!("split: done");
}

fn told() {
    expect("a page that is none is not taken", listen(NOTICE + 8, 0), -5);
    expect("the page is taken", listen(NOTICE, notice_handler as *const () as u64), 0);
    expect("once", listen(NOTICE, 0), -7);
    write(WATCHED, 7);
    write_register!("elr_el1", 0x1234_5000u64);
    write_register!("spsr_el1", 0x3c4u64);
    expect("view 2 is entered", switch(2), 0);
    expect("it can be read", read(WATCHED) as i64, 7);
    write(WATCHED, 8);
    expect("told of the write", TOLD.load(Ordering::Relaxed) as i64, 1);
    expect("which was then done", read(WATCHED) as i64, 8);
    let word = |index: u64| read(NOTICE + 8 * index);
    expect("reason, and read by now", word(0) as i64, 1);
    expect("a write at a known address", (word(1) >> 24) as i64 & 0xb, 9);
    expect("where", word(2) as i64, WATCHED as i64);
    expect("in the guest's memory", word(3) as i64, WATCHED as i64);
    expect("in view", word(4) as i64, 2);
    expect("the exception's return address is kept", read_register!("elr_el1") as i64, 0x1234_5000);
    expect("and its state", read_register!("spsr_el1") as i64, 0x3c4);
    expect("there is nothing to go back to", go_back(), -14);
    expect("no more", listen(u64::MAX, 0), 0);
}

/// A return without a notice.
fn go_back() -> i64 {
    let result: i64;
    // SAFETY: refused, so that only x0 changes.
    unsafe { asm!("hvc #0x5402", inout("x0") 0i64 => result, options(nostack)) };
    result
}

fn measure() {
    const PASSES: u64 = 1_000;
    let unit = if cpu::frequency() == 1_000_000_000 { "instructions" } else { "ticks" };
    switch(1);
    let ticks: u64;
    // SAFETY: as in `switch`; the loop ends in view 0 and changes the registers it names.
    unsafe {
        asm!("isb", "mrs {begin}, cntvct_el0", "2:", "mov x0, #0", "hvc #0x5400", "mov x0, #1", "hvc #0x5400",
            "subs {left}, {left}, #1", "b.ne 2b", "isb", "mrs {end}, cntvct_el0", "sub {end}, {end}, {begin}",
            begin = out(reg) _, left = inout(reg) PASSES => _, end = out(reg) ticks, out("x0") _, options(nostack));
    }
    // Of each pass, four instructions are the loop's.
    println!("figure view_switch_hvc {} {unit}", (ticks - 4 * PASSES) / (2 * PASSES));
    let touch = |block: u64| {
        let begin = cpu::counter();
        let _ = read(BLOCKS.0 + block * BLOCK);
        cpu::counter() - begin
    };
    // What a view's fault costs: where the host map has the memory, and where that must be given first.
    for (name, blocks, there) in [("lazy_copy_fault", 0..BLOCKS.1 / 2, true), ("lazy_copy_new", BLOCKS.1 / 2..BLOCKS.1, false)] {
        let count = blocks.end - blocks.start;
        if there {
            switch(0);
            blocks.clone().for_each(|block| {
                let _ = touch(block);
            });
            switch(1);
        }
        let (mut first, mut again) = (0, 0);
        for block in blocks {
            first += touch(block);
            again += touch(block);
        }
        println!("figure {name} {} {unit}", (first - again) / count);
    }
    switch(0);
}
