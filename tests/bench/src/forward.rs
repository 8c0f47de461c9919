// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a device's interrupt to the first instruction of a guest's handler, through the server that forwards it and without.
//!
//! The guest owns the serial port for as long as this lasts. The server is the shipped library; its thread is root's here,
//! which costs what one of another domain costs.

use crate::paths::{EXITS_PORTAL, SERIAL_LINE, Serial, kernel, now, split, write_code};
use core::arch::global_asm;
use core::fmt::Write;
use heapless::Vec;
use trellis_idl::kernel::{Access, LineField, Op, VcpuRegister};
use trellis_idl::layout::root_slot;
use trellis_irqfwd::{Forwarder, Limit, Post, Queue, Wish};
use trellis_runtime::{Line, Machine, Signal, Svc, Vcpu};

/// Interrupts; the guest's code has the number too.
const PASSES: u64 = 1000;
const TABLES: u64 = 110;
const GUEST: u64 = 111;
const CODE: u64 = 112;
const VCPU: u64 = 113;
const LINE: u64 = 114;
const SIGNAL: u64 = 115;
/// Bits of root's signal word: the stub that serves exits is done, the queue is not empty.
const DONE: u64 = 1;
const QUEUE: u64 = 2;
/// A rate that no guest reaches, so that what counting costs is measured too.
const LIMIT: Limit = Limit { most: 10_000, window: 1, cool_down: 1 };

global_asm!(
    ".pushsection .rodata.irq_guest, \"a\"",
    ".balign 8",
    "irq_guest_begin:",
    "movz x0, #0x4000, lsl #16",
    "msr vbar_el1, x0",
    // ICC_SRE_EL1, ICC_PMR_EL1, ICC_IGRPEN1_EL1.
    "mrs x0, s3_0_c12_c12_5",
    "orr x0, x0, #1",
    "msr s3_0_c12_c12_5, x0",
    "mov x0, #0xff",
    "msr s3_0_c4_c6_0, x0",
    "mov x0, #1",
    "msr s3_0_c12_c12_7, x0",
    "isb",
    "movz x13, #0x900, lsl #16",
    "mov x1, #0",
    "mov x2, #0",
    "mov x9, #1000",
    "mov x16, #0",
    "msr daifclr, #2",
    "1: mov w15, #0x20",
    "mrs x10, cntvct_el0",
    // UARTIMSC.TXIM: the port has sent something, so it interrupts at once.
    "str w15, [x13, #0x38]",
    "2: cbz x16, 2b",
    "mov x16, #0",
    "sub x9, x9, #1",
    "cbnz x9, 1b",
    "mov x0, #-1",
    "hvc #0",
    // Where an interrupt enters at this level.
    ".org irq_guest_begin + 0x280",
    "mrs x11, cntvct_el0",
    "str wzr, [x13, #0x38]",
    "sub x11, x11, x10",
    "add x1, x1, x11",
    // ICC_IAR1_EL1, ICC_EOIR1_EL1.
    "mrs x12, s3_0_c12_c12_0",
    "cmp x12, #33",
    "cinc x2, x2, eq",
    "msr s3_0_c12_c12_1, x12",
    "mov x16, #1",
    "eret",
    "irq_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static irq_guest_begin: u32;
    static irq_guest_end: u32;
}

static FORWARDER: Forwarder = Forwarder::new();

/// Makes the guest, whose other exits the bare stub serves.
fn guest(at: &mut u64) {
    split(64, TABLES, at);
    split(1, CODE, at);
    kernel(Op::GuestCreate, [TABLES, 1, GUEST, 0, 0, 0]);
    let code = &raw const irq_guest_begin;
    write_code(CODE, code, (&raw const irq_guest_end as usize - code as usize) / 4);
    let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0;
    kernel(Op::GuestMap, [GUEST, 0x40000, CODE, 0, 1, all]);
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::GuestMap, [GUEST, 0x9000, root_slot::DEVICES, 0, 1, write]);
    kernel(Op::VcpuCreate, [GUEST, 0, 0, VCPU, 100, 0]);
    for class in 0..10 {
        kernel(Op::VcpuRoute, [VCPU, class, EXITS_PORTAL, u64::MAX, 0, 0]);
    }
    kernel(Op::LinesEnable, [VCPU, 1, 0, 0, 0, 0]);
    let bit = 1 << (SERIAL_LINE - 32);
    for field in [LineField::Enabled, LineField::Group] {
        kernel(Op::LinesWrite, [VCPU, field as u64, 32, bit, bit, 0]);
    }
}

/// The guest's line, which it has in both ways.
fn wish(direct: bool) -> Wish {
    let (line, number) = (Line::at(LINE), SERIAL_LINE as u32);
    let mut wish = Wish { line, guest_line: 0, vcpus: Vec::new(), cpus: Vec::new(), limit: LIMIT, direct, number, gate: None };
    let room = wish.vcpus.push(Vcpu::at(VCPU)).is_ok() && wish.cpus.push(0).is_ok();
    assert!(room, "one fits");
    wish
}

/// Measures one way: the guest's code counts.
fn measure(name: &str, queue: Queue, direct: bool) {
    let source = FORWARDER.bind(&Svc, wish(direct)).expect("nobody has the line");
    kernel(Op::VcpuStop, [VCPU, 0, 0, 0, 0, 0]);
    kernel(Op::VcpuReset, [VCPU, 0, 0, 0, 0, 0]);
    kernel(Op::VcpuSet, [VCPU, VcpuRegister::Pc as u64, 0x4000_0000, 0, 0, 0]);
    kernel(Op::VcpuStart, [VCPU, 0, 0, 0, 0, 0]);
    let mut post = Post::with(queue, DONE);
    let mut woken = post.wait(&Svc).expect("the queue is its own");
    while woken.bits & DONE == 0 {
        woken = FORWARDER.step(&Svc, &mut post, woken).expect("the queue is its own");
    }
    let x = |n: u64| kernel(Op::VcpuGet, [VCPU, n, 0, 0, 0, 0])[1];
    let counters = FORWARDER.counters(&Svc, source).expect("it is bound");
    let came = if direct { counters.direct } else { counters.passed };
    assert!(x(2) == PASSES && came == PASSES, "{} interrupts came, {counters:?}", x(2));
    let _ = writeln!(Serial, "figure {name} {} instructions", x(1) / PASSES);
    FORWARDER.unbind(&Svc, source, queue).expect("nothing is on its way");
}

/// What a device costs that interrupts again and again while its first interrupt waits for the guest, for each of those: the
/// same loop with the line open and with it masked.
fn storm(queue: Queue) {
    let source = FORWARDER.bind(&Svc, wish(false)).expect("nobody has the line");
    let toggle = || {
        let begin = now();
        for _ in 0..PASSES {
            Serial.interrupt(true);
            Serial.interrupt(false);
        }
        now() - begin
    };
    Serial.interrupt(true);
    Serial.interrupt(false);
    let open = toggle();
    FORWARDER.mask(&Svc, source, true).expect("it is bound");
    let masked = toggle();
    FORWARDER.serve(&Svc, queue);
    let counters = FORWARDER.counters(&Svc, source).expect("it is bound");
    assert!(counters.taken == 1, "they are one: {counters:?}");
    let _ = writeln!(Serial, "figure irq_storm_cost {} instructions", open.saturating_sub(masked) / PASSES);
    FORWARDER.unbind(&Svc, source, queue).expect("nothing is on its way");
}

/// Measures all of it.
pub fn run(at: &mut u64) {
    guest(at);
    kernel(Op::LineCreate, [root_slot::SYSTEM, SERIAL_LINE, LINE, 0, 0, 0]);
    kernel(Op::SignalCreate, [root_slot::THREAD, QUEUE, SIGNAL, 0, 0, 0]);
    let queue = Queue::open(&Svc, Machine::at(root_slot::SYSTEM), Signal::at(SIGNAL), false).expect("root may");
    measure("irq_forward_server", queue, false);
    measure("irq_forward_direct", queue, true);
    kernel(Op::GuestUnmap, [GUEST, 0x9000, 1, 0, 0, 0]);
    storm(queue);
}
