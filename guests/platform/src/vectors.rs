// SPDX-License-Identifier: MIT OR Apache-2.0
//! The exception vectors: registers onto the stack, then the interrupt's handler or `fault`.

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::{fault, gic, gic2};

// The counter is read by the second instruction, so that a handler can say when it was entered. x19-x29 are kept by
// the Rust functions called from here.
global_asm!(
    r#"
    .macro vector kind
    .balign 128
    str x0, [sp, #-192]!
    mrs x0, cntvct_el0
    stp x1, x2, [sp, #8]
    mov x1, #\kind
    b 9f
    .endm

    .section .vectors, "ax"
    .balign 2048
    .global vectors
vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15
    .balign 128
9:  stp x3, x4, [sp, #24]
    stp x5, x6, [sp, #40]
    stp x7, x8, [sp, #56]
    stp x9, x10, [sp, #72]
    stp x11, x12, [sp, #88]
    stp x13, x14, [sp, #104]
    stp x15, x16, [sp, #120]
    stp x17, x18, [sp, #136]
    mrs x2, elr_el1
    stp x30, x2, [sp, #152]
    mrs x2, spsr_el1
    stp x2, x0, [sp, #168]
    mov x0, sp
    bl {exception}
    ldp x30, x2, [sp, #152]
    msr elr_el1, x2
    ldr x2, [sp, #168]
    msr spsr_el1, x2
    ldp x17, x18, [sp, #136]
    ldp x15, x16, [sp, #120]
    ldp x13, x14, [sp, #104]
    ldp x11, x12, [sp, #88]
    ldp x9, x10, [sp, #72]
    ldp x7, x8, [sp, #56]
    ldp x5, x6, [sp, #40]
    ldp x3, x4, [sp, #24]
    ldp x1, x2, [sp, #8]
    ldr x0, [sp], #192
    eret
    dsb nsh
    isb
    "#,
    exception = sym exception,
);

/// What the vectors put on the stack.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// x0-x18.
    pub x: [u64; 19],
    /// x30.
    pub link: u64,
    /// Where the exception came from and goes back to.
    pub pc: u64,
    /// PSTATE there.
    pub pstate: u64,
    /// The counter at the vector.
    pub entered: u64,
    /// Keeps the stack aligned.
    pub unused: u64,
}

const _: () = assert!(size_of::<Frame>() == 192);

/// What to do with an interrupt: its number, and the counter at the vector.
pub type Handler = fn(u32, u64);

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Sets the handler of all CPUs. It runs with interrupts masked and must not print.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as usize, Ordering::Release);
}

extern "C" fn exception(frame: &mut Frame, kind: u64) {
    match kind & 3 {
        1 if kind == 5 => interrupt(frame.entered),
        0 => fault::synchronous(frame, kind),
        _ => fault::fatal(frame, kind),
    }
}

fn interrupt(entered: u64) {
    if gic::is_version_2() {
        let taken = gic2::acknowledge();
        if taken.line() < gic::SPURIOUS {
            handle(taken.line(), entered);
            gic2::end(taken);
        }
        return;
    }
    let line = gic::acknowledge();
    if line < gic::SPURIOUS {
        handle(line, entered);
        gic::end(line);
    }
}

fn handle(line: u32, entered: u64) {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler != 0 {
        // SAFETY: the word is not zero, so `set_handler` put a `Handler` there.
        let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
        handler(line, entered);
    }
}
