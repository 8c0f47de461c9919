// SPDX-License-Identifier: MIT OR Apache-2.0
//! A watched write that is stepped over: what it costs from the access to the instruction behind it, with the view switched
//! there and back.

use crate::paths::{ECHO, EXITS_PORTAL, Serial, kernel, split, write_code};
use core::arch::global_asm;
use core::fmt::Write;
use trellis_idl::kernel::{Access, Op, VcpuRegister};
use trellis_idl::layout;
use trellis_runtime::{Svc, System};

/// Writes; the guest's code has the number too.
const PASSES: u64 = 1000;
const TABLES: u64 = 140;
const GUEST: u64 = 141;
const CODE: u64 = 142;
const DATA: u64 = 143;
const VCPU: u64 = 144;
const STACK: u64 = 145;
const THREAD: u64 = 146;
const PORTAL: u64 = 147;
/// The watched page.
const PAGE: u64 = 0x40010;

global_asm!(
    ".pushsection .rodata.step_guest, \"a\"",
    // Adds one to a watched word 1,000 times; ticks come out in x1, what is there then in x2.
    "step_guest_begin:",
    "mov x9, #1000",
    "movz x13, #0x4001, lsl #16",
    "mov x14, xzr",
    "mrs x10, cntvct_el0",
    "1: add x14, x14, #1",
    "str x14, [x13]",
    "sub x9, x9, #1",
    "cbnz x9, 1b",
    "mrs x11, cntvct_el0",
    "sub x1, x11, x10",
    "ldr x2, [x13]",
    "mov x0, #-1",
    "hvc #0",
    "step_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static step_guest_begin: u32;
    static step_guest_end: u32;
}

/// A guest in view 1, which forbids the write; the bare stub answers memory exits with a step in view 0.
pub fn run(stepper: u64, at: &mut u64) {
    split(64, TABLES, at);
    split(1, CODE, at);
    split(1, DATA, at);
    split(1, STACK, at);
    kernel(Op::ThreadCreate, [ECHO, 0, trellis_idl::kernel::PASSIVE, THREAD, 0, 0]);
    kernel(Op::PortalCreate, [THREAD, 0, PORTAL, 0, 0, 0]);
    kernel(Op::ThreadStart, [THREAD, stepper, layout::STACKS + 4096, 0, 0, 0]);
    kernel(Op::GuestCreate, [TABLES, 2, GUEST, 0, 0, 0]);
    let code = &raw const step_guest_begin;
    write_code(CODE, code, (&raw const step_guest_end as usize - code as usize) / 4);
    let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE);
    kernel(Op::GuestMap, [GUEST, 0x40000, CODE, 0, 1, all.0]);
    kernel(Op::GuestMap, [GUEST, PAGE, DATA, 0, 1, all.0]);
    kernel(Op::ViewCreate, [GUEST, 1, 0, 0, 0, 0]);
    kernel(Op::ViewCopy, [GUEST, 1 << 48 | 0x40000, 1, Access::AS_HOST.0, 1, 0]);
    kernel(Op::ViewCopy, [GUEST, 1 << 48 | PAGE, 1, Access::READ.0, 1, 0]);
    kernel(Op::VcpuCreate, [GUEST, 0, 0, VCPU, 100, 0]);
    for class in 0..10 {
        let portal = if class == 0 { PORTAL } else { EXITS_PORTAL };
        kernel(Op::VcpuRoute, [VCPU, class, portal, 7, 0, 0]);
    }
    kernel(Op::VcpuReset, [VCPU, 0, 0, 0, 0, 0]);
    kernel(Op::VcpuSet, [VCPU, VcpuRegister::Pc as u64, 0x4000_0000, 0, 0, 0]);
    kernel(Op::ViewSwitch, [GUEST, 0, 1, 0, 0, 0]);
    kernel(Op::VcpuStart, [VCPU, 0, 0, 0, 0, 0]);
    Svc.wait(1, 0);
    let x = |n: u64| kernel(Op::VcpuGet, [VCPU, n, 0, 0, 0, 0])[1];
    assert!(x(2) == PASSES, "each write took effect once: {}", x(2));
    let _ = writeln!(Serial, "figure step_once {} instructions", (x(1) - 3 * PASSES) / PASSES);
}
