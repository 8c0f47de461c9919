// SPDX-License-Identifier: MIT OR Apache-2.0
//! The measured loops, and the small system they run in: a second domain whose thread answers with what it got.

use core::arch::{asm, global_asm};
use core::fmt::Write;
use trellis_idl::kernel::{Access, ExitClass, Fact, Groups, Op, PASSIVE, Rights, VcpuRegister};
use trellis_idl::layout::{self, root_slot};
use trellis_runtime::{Svc, System};

/// Passes of each loop.
const PASSES: u64 = 1000;
/// Slots this program fills.
const TABLES: u64 = 70;
pub const ECHO: u64 = 71;
const CODE: u64 = 72;
const STACK: u64 = 73;
const THREAD: u64 = 74;
const PORTAL: u64 = 75;
const WAITER: u64 = 76;
const WAITER_STACK: u64 = 77;
const SIGNAL: u64 = 78;
const GUEST_TABLES: u64 = 79;
const GUEST: u64 = 80;
const MEMORY: u64 = 81;
const BACK: u64 = 82;
const GUEST_CODE: u64 = 83;
const EXITS: u64 = 84;
const EXITS_STACK: u64 = 85;
pub const EXITS_PORTAL: u64 = 86;
const VCPU: u64 = 87;
const LINE: u64 = 88;
/// The serial port's physical line on the board that this runs on (images/boards/virt.toml).
pub const SERIAL_LINE: u64 = 33;
const BUFFER: u64 = 89;
/// Views of the guest.
const VIEWS: u64 = 8;
/// Where a run is mapped for a moment.
const SCRATCH: u64 = 0x5000_0000;
/// The first of as many slots as boot has pages, and where each page is looked at.
const BOOT: u64 = 120;
const SCRATCH_BOOT: u64 = 0x5010_0000;

global_asm!(
    ".pushsection .rodata.echo, \"a\"",
    // Answers with the words it was called with.
    "echo_begin:",
    "mov x0, xzr",
    "mov x1, xzr",
    "svc #1",
    "b echo_begin",
    // Waits for a signal, notes the time on its stack, signals back through the capability in slot 1 of its table.
    "waiter_begin:",
    "mov x0, #1",
    "mov x1, xzr",
    "svc #4",
    "svc #5",
    "str x0, [sp, #-8]",
    "mov x0, #1",
    "svc #3",
    "b waiter_begin",
    // Serves exits: a device read gives 42, a hypercall x0 + 1, a hypercall with x0 = -1 stops the vCPU and signals.
    "exits_begin:",
    "mov x0, xzr",
    "3: mov x1, xzr",
    "svc #1",
    "and x2, x19, #0xff",
    "cmp x2, #1",
    "b.ne 4f",
    "mov x24, #42",
    "ubfx x0, x19, #16, #5",
    "lsl x0, x0, #8",
    "add x0, x0, #9",
    "b 3b",
    "4: cmn x25, #1",
    "b.eq 5f",
    "add x25, x25, #1",
    "mov x0, #4",
    "b 3b",
    "5: mov x0, #1",
    "svc #3",
    "mov x0, #16",
    "b 3b",
    // Serves exits: everything is done in view 0, one instruction.
    "stepper_begin:",
    "mov x0, xzr",
    "6: mov x1, xzr",
    "svc #1",
    "mov x0, #32",
    "b 6b",
    "echo_end:",
    ".popsection",
    ".pushsection .rodata.guest, \"a\"",
    // The guest: 1,000 hypercalls, 1,000 device reads; their ticks come out in x1 and x2.
    "guest_begin:",
    "mov x9, #1000",
    "mov x0, #0",
    "mrs x10, cntvct_el0",
    "1: hvc #0",
    "sub x9, x9, #1",
    "cbnz x9, 1b",
    "mrs x11, cntvct_el0",
    "sub x3, x11, x10",
    "mov x12, x0",
    "mov x9, #1000",
    "movz x13, #0x900, lsl #16",
    "mov x14, #0",
    "mrs x10, cntvct_el0",
    "2: ldr w0, [x13]",
    "sub x9, x9, #1",
    "cbnz x9, 2b",
    "mrs x11, cntvct_el0",
    "sub x2, x11, x10",
    "mov x1, x3",
    "mov x3, x12",
    "mov x4, x0",
    "mov x0, #-1",
    "hvc #0",
    "guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static echo_begin: u32;
    static waiter_begin: u32;
    static exits_begin: u32;
    static stepper_begin: u32;
    static echo_end: u32;
    static guest_begin: u32;
    static guest_end: u32;
}

/// The serial port's page, mapped here.
pub struct Serial;

impl Serial {
    /// Lets the port interrupt when it has sent something, or not (PL011 3.3.10, UARTIMSC.TXIM).
    pub fn interrupt(&self, on: bool) {
        // SAFETY: as in `write_str`.
        unsafe { ((layout::DEVICE + 0x38) as *mut u32).write_volatile(u32::from(on) << 5) };
    }
}

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            // SAFETY: `run` mapped the PL011's page there before anything is printed.
            unsafe { (layout::DEVICE as *mut u32).write_volatile(byte as u32) };
        }
        Ok(())
    }
}

pub fn kernel(op: Op, arguments: [u64; 6]) -> [u64; 3] {
    match Svc.invoke(op, arguments) {
        Ok(values) => values,
        Err(refusal) => {
            let _ = writeln!(Serial, "{op:?} {arguments:x?}: {refusal:?}");
            panic!("{op:?} {arguments:x?}: {refusal:?}")
        }
    }
}

pub fn now() -> u64 {
    kernel(Op::Clock, [0; 6])[0]
}

/// Runs `loops` and takes off what the same loop costs without the call.
fn measure(name: &str, loops: impl Fn(u64), empty: impl Fn(u64)) {
    loops(10);
    let times = [now(), { loops(PASSES); now() }, { empty(PASSES); now() }];
    let cost = (times[1] - times[0]).saturating_sub(times[2] - times[1]);
    let _ = writeln!(Serial, "figure {name} {} instructions", (cost + PASSES / 2) / PASSES);
}

/// A loop around system calls: the counter stands on the stack, since nothing but SP survives every call.
macro_rules! repeat {
    ($count:expr, $x0:expr, $($body:literal),*) => {{
        // SAFETY: the system calls in the body change no memory of this program; every register is given up.
        unsafe {
            asm!(
                "stp x19, x29, [sp, #-16]!",
                "str x28, [sp, #-16]!",
                "2:",
                $($body,)*
                "ldr x28, [sp]",
                "sub x28, x28, #1",
                "str x28, [sp]",
                "cbnz x28, 2b",
                "add sp, sp, #16",
                "ldp x19, x29, [sp], #16",
                in("x9") $x0, inlateout("x28") $count => _,
                lateout("x0") _, lateout("x1") _, lateout("x2") _, lateout("x3") _, lateout("x4") _, lateout("x5") _,
                lateout("x6") _, lateout("x7") _, lateout("x8") _, lateout("x10") _, lateout("x11") _,
                lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _, lateout("x16") _,
                lateout("x17") _, lateout("x18") _, lateout("x20") _, lateout("x21") _, lateout("x22") _,
                lateout("x23") _, lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
                lateout("x30") _,
            );
        }
    }};
}

pub fn split(pages: u64, slot: u64, at: &mut u64) {
    kernel(Op::FramesSplit, [root_slot::MEMORY, *at, pages, slot, 0, 0]);
    *at += pages;
}

/// The second domain: one page of code, two threads.
fn build(at: &mut u64) {
    split(16, TABLES, at);
    split(1, CODE, at);
    split(1, STACK, at);
    split(1, WAITER_STACK, at);
    kernel(Op::DomainCreate, [TABLES, 16, 1, ECHO, 0, 0]);
    let write = Access::READ.with(Access::WRITE).0;
    let code = &raw const echo_begin;
    write_code(CODE, code, (&raw const echo_end as usize - code as usize) / 4);
    let execute = Access::READ.with(Access::EXECUTE).0;
    kernel(Op::DomainMap, [ECHO, layout::PROGRAM, CODE, 0, 1, execute]);
    kernel(Op::DomainMap, [ECHO, layout::STACKS, STACK, 0, 1, write]);
    split(1, BUFFER, at);
    kernel(Op::DomainMap, [ECHO, layout::BUFFERS, BUFFER, 0, 1, write]);
    kernel(Op::ThreadCreate, [ECHO, 0, PASSIVE, THREAD, layout::BUFFERS, 0]);
    kernel(Op::PortalCreate, [THREAD, 5, PORTAL, 0, 0, 0]);
    kernel(Op::ThreadStart, [THREAD, layout::PROGRAM, layout::STACKS + 4096, 0, 0, 0]);
    kernel(Op::ThreadCreate, [ECHO, 0, 245, WAITER, 0, 0]);
    kernel(Op::SignalCreate, [WAITER, 1, SIGNAL, 0, 0, 0]);
    kernel(Op::SignalCreate, [root_slot::THREAD, 1, BACK, 0, 0, 0]);
    kernel(Op::Grant, [BACK, ECHO, 1, Rights::ALL.0 as u64, 0, 0]);
    let entry = layout::PROGRAM + (&raw const waiter_begin as u64 - code as u64);
    kernel(Op::ThreadStart, [WAITER, entry, layout::STACKS + 4096, 0, 0, 0]);
}

/// From before the signal to the waiter's first instruction, less what reading the clock costs.
fn signal_to_thread() {
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::DomainMap, [root_slot::DOMAIN, SCRATCH, STACK, 0, 1, write]);
    let mut spent = 0;
    for _ in 0..PASSES {
        let before = now();
        let begin = now();
        kernel(Op::Signal, [SIGNAL, 0, 0, 0, 0, 0]);
        // SAFETY: the waiter's stack page, mapped above; the waiter wrote the time there before it signalled back.
        let noted = unsafe { ((SCRATCH + 4096 - 8) as *const u64).read_volatile() };
        spent += noted.saturating_sub(begin).saturating_sub(begin - before);
        Svc.wait(1, 0);
    }
    kernel(Op::DomainUnmap, [root_slot::DOMAIN, SCRATCH, 1, 0, 0, 0]);
    let _ = writeln!(Serial, "figure signal_to_thread {} instructions", spent / PASSES);
}

/// From before the store that makes a device interrupt to the first instruction of the thread that waits for it, which
/// goes before this one; less what reading the clock costs. The device is the serial port: it has sent something.
fn irq_to_thread() {
    kernel(Op::LineCreate, [root_slot::SYSTEM, SERIAL_LINE, LINE, 0, 0, 0]);
    kernel(Op::LineBind, [LINE, SIGNAL, 0, 0, 0, 0]);
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::DomainMap, [root_slot::DOMAIN, SCRATCH, STACK, 0, 1, write]);
    let mut spent = 0;
    for _ in 0..PASSES {
        let before = now();
        let begin = now();
        Serial.interrupt(true);
        // SAFETY: as in `signal_to_thread`.
        let noted = unsafe { ((SCRATCH + 4096 - 8) as *const u64).read_volatile() };
        spent += noted.checked_sub(begin + (begin - before)).expect("the waiter ran before this went on");
        Serial.interrupt(false);
        kernel(Op::LineAck, [LINE, 0, 0, 0, 0, 0]);
        Svc.wait(1, 0);
    }
    kernel(Op::DomainUnmap, [root_slot::DOMAIN, SCRATCH, 1, 0, 0, 0]);
    let _ = writeln!(Serial, "figure irq_to_thread {} instructions", spent / PASSES);
}

/// Maps and unmaps 256 pages of 4 KiB; only mapping is measured.
fn map_batched(at: &mut u64) {
    split(64, GUEST_TABLES, at);
    *at = at.next_multiple_of(512) + 1;
    split(256, MEMORY, at);
    kernel(Op::GuestCreate, [GUEST_TABLES, VIEWS, GUEST, 0, 0, 0]);
    let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0;
    let mut spent = 0;
    for _ in 0..16 {
        let begin = now();
        kernel(Op::GuestMap, [GUEST, 0x40000, MEMORY, 0, 256, all]);
        spent += now() - begin;
        kernel(Op::GuestUnmap, [GUEST, 0x40000, 256, 0, 0, 0]);
    }
    let _ = writeln!(Serial, "figure map_page_batched {} instructions", spent.div_ceil(16 * 256));
}

/// Puts words of this program into a run.
pub fn write_code(run: u64, code: *const u32, words: usize) {
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::DomainMap, [root_slot::DOMAIN, SCRATCH, run, 0, 1, write]);
    for i in 0..words {
        // SAFETY: both ranges are mapped: constants of this program and the page just mapped.
        unsafe { (SCRATCH as *mut u32).add(i).write_volatile(code.add(i).read_volatile()) };
    }
    kernel(Op::DomainUnmap, [root_slot::DOMAIN, SCRATCH, 1, 0, 0, 0]);
}

/// The bare stub that serves exits.
pub fn exits_server(at: &mut u64) {
    split(1, EXITS_STACK, at);
    kernel(Op::ThreadCreate, [ECHO, 0, PASSIVE, EXITS, 0, 0]);
    kernel(Op::PortalCreate, [EXITS, 0, EXITS_PORTAL, 0, 0, 0]);
    let entry = layout::PROGRAM + (&raw const exits_begin as u64 - &raw const echo_begin as u64);
    kernel(Op::ThreadStart, [EXITS, entry, layout::STACKS + 4096, 0, 0, 0]);
}

/// A guest whose exits the bare stub above serves: what the kernel's share of an exit costs.
fn exits(at: &mut u64) {
    split(1, GUEST_CODE, at);
    let code = &raw const guest_begin;
    write_code(GUEST_CODE, code, (&raw const guest_end as usize - code as usize) / 4);
    let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0;
    kernel(Op::GuestMap, [GUEST, 0x40000, GUEST_CODE, 0, 1, all]);
    kernel(Op::VcpuCreate, [GUEST, 0, 0, VCPU, 100, 0]);
    let groups = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;
    for class in 0..10 {
        kernel(Op::VcpuRoute, [VCPU, class, EXITS_PORTAL, groups, 0, 0]);
    }
    kernel(Op::VcpuWindow, [VCPU, 0, 0x9000, 1, ExitClass::Device as u64, 0]);
    kernel(Op::VcpuReset, [VCPU, 0, 0, 0, 0, 0]);
    kernel(Op::VcpuSet, [VCPU, VcpuRegister::Pc as u64, 0x4000_0000, 0, 0, 0]);
    kernel(Op::VcpuStart, [VCPU, 0, 0, 0, 0, 0]);
    Svc.wait(1, 0);
    let x = |n: u64| kernel(Op::VcpuGet, [VCPU, n, 0, 0, 0, 0])[1];
    // The loops' own two instructions a pass are taken off.
    let _ = writeln!(Serial, "figure exit_hvc_stub {} instructions", (x(1) - 2 * PASSES) / PASSES);
    let _ = writeln!(Serial, "figure mmio_read_stub {} instructions", (x(2) - 2 * PASSES) / PASSES);
    let _ = writeln!(Serial, "checked {} {}", x(3), x(4));
}

/// Views of a guest whose vCPU has run and is stopped: what one costs, what a switch costs, and what one more costs when a
/// page leaves the host map.
fn views() {
    let left = || kernel(Op::GuestInfo, [GUEST, 0, 0, 0, 0, 0])[0];
    let before = left();
    for _ in 0..4 {
        kernel(Op::ViewCreate, [GUEST, u64::MAX, 0, 0, 0, 0]);
    }
    // Two words on the guest's list of views beside its tables.
    let _ = writeln!(Serial, "figure view_idle_bytes {} bytes", (before - left()) * 4096 / 4 + 16);
    let switch = |view: u64| kernel(Op::ViewSwitch, [GUEST, 0, view, 0, 0, 0]);
    let begin = now();
    for _ in 0..PASSES / 2 {
        switch(1);
        switch(0);
    }
    let switches = now() - begin;
    let begin = now();
    for _ in 0..PASSES {
        kernel(Op::ViewSwitch, [GUEST, 0, 0, 0, 0, 0]);
    }
    // A switch to where the vCPU is already costs the call and all checks.
    let _ = writeln!(Serial, "figure view_switch_server {} instructions", switches / PASSES);
    let _ = writeln!(Serial, "figure view_switch_same {} instructions", (now() - begin) / PASSES);
    let all = Access::READ.with(Access::WRITE).0;
    kernel(Op::GuestMap, [GUEST, 0x50000, MEMORY, 0, 256, all]);
    for view in 1..5 {
        kernel(Op::ViewCopy, [GUEST, view << 48 | 0x50000, 256, all, 1, 0]);
    }
    let unmap = |page: u64| {
        let begin = now();
        kernel(Op::GuestUnmap, [GUEST, page, 1, 0, 0, 0]);
        now() - begin
    };
    let four = unmap(0x50010);
    for view in 2..5 {
        let mut page = 0;
        loop {
            page = kernel(Op::ViewReset, [GUEST, view << 48 | page, 0, 0, 0, 0])[0];
            if page == 0 {
                break;
            }
        }
        kernel(Op::ViewDestroy, [GUEST, view, 0, 0, 0, 0]);
    }
    let one = unmap(0x50020);
    let _ = writeln!(Serial, "figure propagate_per_view {} instructions", four.saturating_sub(one) / 3);
}

/// Does everything and switches off.
pub fn run(_plan: u64) -> ! {
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::DomainMap, [root_slot::DOMAIN, layout::DEVICE, root_slot::DEVICES, 0, 1, write]);
    let mut at = 1;
    build(&mut at);
    // An image with scalable vectors is for those alone: all others are measured on a CPU without.
    if fact(Fact::VectorLengths) != 0 {
        if fact(Fact::Cpus) > 1 {
            crate::moves::run(&mut at);
        } else {
            crate::float::run(&mut at);
        }
        finish();
    }
    let _ = writeln!(Serial, "figure boot_to_root {} instructions", fact(Fact::BootTicks));
    let _ = writeln!(Serial, "figure kernel_memory {} bytes", fact(Fact::KernelMemory));
    measure("null_syscall", |n| repeat!(n, 0u64, "svc #200"), |n| repeat!(n, 0u64, ""));
    measure("ipc_roundtrip_4w", |n| repeat!(n, PORTAL, "mov x0, #75", "mov x1, xzr", "svc #0"), |n| {
        repeat!(n, 0u64, "")
    });
    let ten = |n: u64, portal: u64| {
        repeat!(n, portal, "mov x0, #75", "mov x1, xzr", "mov x19, #1", "mov x20, #2", "mov x21, #3", "mov x22, #4",
            "mov x23, #5", "mov x24, #6", "mov x25, #7", "mov x26, #8", "mov x27, #9", "svc #0")
    };
    measure("ipc_roundtrip_10w", |n| ten(n, PORTAL), |n| {
        repeat!(n, 0u64, "mov x19, #1", "mov x20, #2", "mov x21, #3", "mov x22, #4", "mov x23, #5", "mov x24, #6",
            "mov x25, #7", "mov x26, #8", "mov x27, #9")
    });
    // A whole message buffer there, words alone back.
    measure("ipc_roundtrip_page", |n| repeat!(n, PORTAL, "mov x0, #75", "mov x1, #4096", "svc #0"), |n| {
        repeat!(n, 0u64, "")
    });
    signal_to_thread();
    exits_server(&mut at);
    // Before the line is bound to a signal, and for good.
    crate::forward::run(&mut at);
    irq_to_thread();
    map_batched(&mut at);
    exits(&mut at);
    views();
    crate::steps::run(layout::PROGRAM + (&raw const stepper_begin as u64 - &raw const echo_begin as u64), &mut at);
    boot_pages();
    finish();
}

/// What the kernel executed at boot is memory now: it zeroes a page of it, and that can be written here.
fn boot_pages() {
    let boot = root_slot::MEMORY + 4;
    let [pages, first, _] = kernel(Op::FramesInfo, [boot, 0, 0, 0, 0, 0]);
    for page in 0..pages {
        let slot = BOOT + page;
        kernel(Op::FramesSplit, [boot, page, 1, slot, 0, 0]);
        kernel(Op::DomainMap, [root_slot::DOMAIN, SCRATCH_BOOT, slot, 0, 1, Access::READ.with(Access::WRITE).0]);
        let place = SCRATCH_BOOT as *mut u64;
        // SAFETY: a page that was mapped just now, and nothing in Rust is in it.
        let (clean, kept) = unsafe {
            let clean = place.read_volatile() == 0;
            place.write_volatile(page + 1);
            (clean, place.read_volatile() == page + 1)
        };
        if !clean || !kept {
            panic!("page {page} of boot, at {first:#x}: clean {clean}, kept {kept}");
        }
        kernel(Op::DomainUnmap, [root_slot::DOMAIN, SCRATCH_BOOT, 1, 0, 0, 0]);
    }
    let _ = writeln!(Serial, "figure kernel_boot_pages {pages} pages");
}

fn finish() -> ! {
    let _ = writeln!(Serial, "bench done");
    kernel(Op::SystemOff, [root_slot::SYSTEM, 0, 0, 0, 0, 0]);
    Svc.exit()
}

fn fact(which: Fact) -> u64 {
    kernel(Op::Fact, [root_slot::SYSTEM, which as u64, 0, 0, 0, 0])[1]
}
