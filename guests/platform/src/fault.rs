// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions that are not interrupts: expected ones are written down and stepped over, others end the guest with a
//! report.

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use crate::tree::MAX_CPUS;
use crate::vectors::Frame;
use crate::{cpu, psci, read_register, uart, write_register};

/// What an exception said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// ESR_EL1.
    pub syndrome: u64,
    /// FAR_EL1.
    pub address: u64,
}

impl Fault {
    /// The exception class.
    pub const fn class(self) -> u64 {
        self.syndrome >> 26 & 0x3f
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "fault (class {:#x}, syndrome {:#x}, address {:#x})", self.class(), self.syndrome, self.address)
    }
}

/// What one CPU expects and what came.
struct Expected {
    is_on: AtomicBool,
    count: AtomicU64,
    syndrome: AtomicU64,
    address: AtomicU64,
    steps_left: AtomicU64,
    steps: AtomicU64,
}

static EXPECTED: [Expected; MAX_CPUS] = [const {
    Expected {
        is_on: AtomicBool::new(false),
        count: AtomicU64::new(0),
        syndrome: AtomicU64::new(0),
        address: AtomicU64::new(0),
        steps_left: AtomicU64::new(0),
        steps: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Does what may fault. A faulting instruction is skipped, a jump to where nothing can run comes back to its caller
/// (so it must be a call); then the last fault is the answer.
pub fn attempt<R>(misdeed: impl FnOnce() -> R) -> Result<R, Fault> {
    let expected = &EXPECTED[cpu::index()];
    expected.count.store(0, Ordering::Relaxed);
    expected.is_on.store(true, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let done = misdeed();
    compiler_fence(Ordering::SeqCst);
    expected.is_on.store(false, Ordering::Relaxed);
    if expected.count.load(Ordering::Relaxed) == 0 {
        return Ok(done);
    }
    Err(Fault {
        syndrome: expected.syndrome.load(Ordering::Relaxed),
        address: expected.address.load(Ordering::Relaxed),
    })
}

/// Lets `count` software steps happen, then turns stepping off; back comes how many the last run took.
pub fn expect_steps(count: u64) -> u64 {
    let expected = &EXPECTED[cpu::index()];
    expected.steps_left.store(count, Ordering::Relaxed);
    expected.steps.swap(0, Ordering::Relaxed)
}

// PSTATE.SS: execute one instruction, then step again.
const STEP_ONE: u64 = 1 << 21;
/// EL1 with its own stack, everything masked.
const EL1H_MASKED: u64 = 0x3c5;

/// The exception classes told apart here (ESR_EL1.EC).
mod class {
    pub const INSTRUCTION_ABORT: u64 = 0x21;
    pub const PC_ALIGNMENT: u64 = 0x22;
    pub const SOFTWARE_STEP: u64 = 0x33;
    pub const SOFTWARE_STEP_BELOW: u64 = 0x32;
}

pub(crate) fn synchronous(frame: &mut Frame, kind: u64) {
    let expected = &EXPECTED[cpu::index()];
    let fault = Fault { syndrome: read_register!("esr_el1"), address: read_register!("far_el1") };
    if matches!(fault.class(), class::SOFTWARE_STEP | class::SOFTWARE_STEP_BELOW) {
        return step(expected, frame);
    }
    if !expected.is_on.load(Ordering::Relaxed) {
        fatal(frame, kind);
    }
    let count = expected.count.load(Ordering::Relaxed);
    expected.count.store(count + 1, Ordering::Relaxed);
    expected.syndrome.store(fault.syndrome, Ordering::Relaxed);
    expected.address.store(fault.address, Ordering::Relaxed);
    if kind >= 8 {
        frame.pc = user_return as *const () as u64;
        frame.pstate = EL1H_MASKED;
    } else if matches!(fault.class(), class::INSTRUCTION_ABORT | class::PC_ALIGNMENT) {
        frame.pc = frame.link;
    } else {
        frame.pc += 4;
    }
}

fn step(expected: &Expected, frame: &mut Frame) {
    let left = expected.steps_left.load(Ordering::Relaxed);
    expected.steps.store(expected.steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    expected.steps_left.store(left.saturating_sub(1), Ordering::Relaxed);
    if left > 1 {
        frame.pstate |= STEP_ONE;
    } else {
        write_register!("mdscr_el1", read_register!("mdscr_el1") & !1);
        frame.pstate &= !STEP_ONE;
    }
}

/// Says what happened and ends the guest.
pub(crate) fn fatal(frame: &Frame, kind: u64) -> ! {
    uart::print_last(format_args!(
        "\nguest crashed: CPU {} vector {kind} syndrome {:#x} address {:#x} pc {:#x} pstate {:#x} x30 {:#x}\n",
        cpu::index(),
        read_register!("esr_el1"),
        read_register!("far_el1"),
        frame.pc,
        frame.pstate,
        frame.link
    ));
    psci::system_off()
}

#[panic_handler]
fn panicked(what: &core::panic::PanicInfo<'_>) -> ! {
    uart::print_last(format_args!("\nguest {what}\n"));
    psci::system_off()
}

// Goes to EL0 and is back after the first exception from there: the vectors' frame is told to return to
// `user_return`, on the stack this left. x19-x30 are put where EL0 cannot lose them.
global_asm!(
    r#"
    .section .text.enter_user, "ax"
    .global enter_user
enter_user:
    stp x19, x20, [sp, #-96]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    msr elr_el1, x0
    msr spsr_el1, x1
    eret
    dsb nsh
    isb
    .global user_return
user_return:
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp x19, x20, [sp], #96
    ret
    "#
);

unsafe extern "C" {
    fn enter_user(pc: u64, pstate: u64);
    fn user_return();
}

/// Runs what is at `pc` at EL0 until its first exception. `pstate` chooses AArch64 (0x3c0) or AArch32 (0x1d0), with
/// interrupts masked.
pub fn run_at_el0(pc: u64, pstate: u64) -> Result<(), Fault> {
    // M[3:2] = 0: whatever the caller says, it is EL0.
    let pstate = pstate & !0xc;
    // SAFETY: `enter_user` keeps what the calling convention keeps, and EL0 reaches only the window `map::USER`.
    attempt(|| unsafe { enter_user(pc, pstate) })
}

/// Executes one instruction word with `value` in x0 and `base` in x1; back comes x0. The word may use x0-x17.
pub fn execute(word: u32, value: u64, base: u64) -> Result<u64, Fault> {
    #[repr(align(64))]
    struct Code(core::cell::UnsafeCell<[u32; 16]>);
    // SAFETY: each CPU writes and runs its own element only, with interrupts handlers that do not come here.
    unsafe impl Sync for Code {}
    static CODE: [Code; MAX_CPUS] = [const { Code(core::cell::UnsafeCell::new([0; 16])) }; MAX_CPUS];
    const RETURN: u32 = 0xd65f_03c0;
    let code = CODE[cpu::index()].0.get().cast::<u32>();
    attempt(|| {
        let result;
        // SAFETY: the two words are this CPU's; they are made visible to instruction fetch before the call (Arm ARM
        // B2.4.4), and the call may change what is listed.
        unsafe {
            asm!("stp {word:w}, {ret:w}, [{code}]", "dc cvau, {code}", "dsb ish", "ic ivau, {code}", "dsb ish", "isb",
                "blr {code}",
                word = in(reg) word, ret = in(reg) RETURN, code = in(reg) code,
                inout("x0") value => result, inout("x1") base => _, clobber_abi("C"))
        };
        result
    })
}
