// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls on the board: [`Svc`] is the [`System`] of a real server.
//!
//! The kernel keeps SP and PC over a call and nothing else, so each stub declares every register destroyed.
//! `asm!` takes neither x19 nor x29 as operand: the stubs save these two on the stack themselves.

use crate::system::System;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use trellis_idl::kernel::{Op, PAGE, Refusal, WORDS};
use trellis_idl::layout::{BUFFERS, STACK_STRIDE, STACKS};

/// Most threads of a server.
pub const MAX_THREADS: usize = 16;

/// The kernel, as a server's thread sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Svc;

/// What a thread is asked next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Who asks; or why the answer was refused, as it stood in `x0`.
    pub badge: u64,
    /// The words.
    pub words: [u64; WORDS],
}

impl Asked {
    /// Why the answer before was refused, if it was: then nobody asks.
    #[inline(always)]
    pub fn refusal(&self) -> Option<Refusal> {
        Refusal::from_register(self.badge).err()
    }
}

/// Whether this thread's buffer is lent to a closure just now.
static LENT: [AtomicBool; MAX_THREADS] = [const { AtomicBool::new(false) }; MAX_THREADS];

impl Svc {
    /// Which thread of the server this is: told by its stack.
    #[inline(always)]
    pub fn thread(&self) -> usize {
        let sp: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
        let index = (sp.wrapping_sub(STACKS) / STACK_STRIDE) as usize;
        if index < MAX_THREADS { index } else { 0 }
    }

    /// Answers what this thread serves, if anything, and waits for the next: [`Op::ReplyAndWait`].
    #[inline(always)]
    pub(crate) fn reply_and_wait(&self, answer: u64, words: [u64; WORDS]) -> Asked {
        let (badge, words) = ipc::<{ Op::ReplyAndWait as u16 }>(answer, 0, words);
        Asked { badge, words }
    }

    /// The same to a vCPU of which one register changes: the other words are whatever they are, and the answer names none.
    #[inline(always)]
    pub(crate) fn reply_with_value(&self, answer: u64, value: u64) -> Asked {
        let (badge, words) = answer_with(answer, value);
        Asked { badge, words }
    }

    /// The same, with so many bytes of this thread's buffer for a caller. Inlined like the others: what comes back through
    /// memory in one arm of the serve loop would do so in all of them.
    #[inline(always)]
    pub(crate) fn reply_with_buffer(&self, answer: u64, words: [u64; WORDS], bytes: usize) -> Asked {
        let (badge, words) = ipc::<{ Op::ReplyAndWait as u16 }>(answer, bytes as u64, words);
        Asked { badge, words }
    }

    /// Hands what this thread serves to a portal of a higher rank and waits for the next: [`Op::Forward`].
    #[inline(always)]
    pub(crate) fn forward(&self, portal: u64, words: [u64; WORDS]) -> Asked {
        let (badge, words) = ipc::<{ Op::Forward as u16 }>(portal, 0, words);
        Asked { badge, words }
    }

    /// An answer may come with bytes, so nobody may hold a reference to the buffer now.
    #[inline]
    fn own_buffer(&self) {
        assert!(!LENT[self.thread()].load(Ordering::Relaxed), "a call while the message buffer is lent");
    }

    /// For the panic handler: whoever borrowed the buffer never runs again.
    pub(crate) fn take_buffer_back(&self) {
        LENT[self.thread()].store(false, Ordering::Relaxed);
    }

    /// Ends this thread.
    pub fn exit(&self) -> ! {
        loop {
            svc::<{ Op::Exit as u16 }>([0; 6]);
        }
    }
}

impl System for Svc {
    #[inline(always)]
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let [x0, x1, x2] = by_number(op, arguments);
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    #[inline(always)]
    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        self.own_buffer();
        let (x0, words) = ipc::<{ Op::Call as u16 }>(portal, 0, words);
        Refusal::from_register(x0).map(|_| words)
    }

    fn call_with_buffer(
        &self, portal: u64, words: [u64; WORDS], bytes: usize,
    ) -> Result<([u64; WORDS], usize), Refusal> {
        self.own_buffer();
        let (x0, words) = ipc::<{ Op::Call as u16 }>(portal, bytes as u64, words);
        Refusal::from_register(x0).map(|bytes| (words, bytes as usize))
    }

    fn read_guest(&self, guest: u64, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        let [x0, ..] =
            svc::<{ Op::GuestRead as u16 }>([guest, address, bytes.as_mut_ptr() as u64, bytes.len() as u64, 0, 0]);
        Refusal::from_register(x0)
    }

    fn write_guest(&self, guest: u64, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        let [x0, ..] = svc::<{ Op::GuestWrite as u16 }>([guest, address, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0]);
        Refusal::from_register(x0)
    }

    #[inline(always)]
    fn wait(&self, mask: u64, deadline: u64) -> u64 {
        let [bits, ..] = svc::<{ Op::Wait as u16 }>([mask, deadline, 0, 0, 0, 0]);
        Refusal::from_register(bits).unwrap_or(0)
    }

    #[inline(always)]
    fn queue_next(&self, [vcpu, service, others, deadline]: [u64; 4]) -> Result<[u64; 3], Refusal> {
        let [x0, x1, x2] = svc::<{ Op::QueueNext as u16 }>([vcpu, service, others, deadline, 0, 0]);
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        let thread = self.thread();
        let nested = LENT[thread].swap(true, Ordering::Relaxed);
        assert!(!nested, "the message buffer is lent already");
        let address = (BUFFERS + thread as u64 * PAGE) as *mut [u8; 4096];
        // SAFETY: root mapped this page for this thread alone, and `LENT` shows that no other reference to it lives.
        let buffer = unsafe { &mut *address };
        let result = f(buffer);
        LENT[thread].store(false, Ordering::Relaxed);
        result
    }
}

/// One `svc` with the operation's number in it: the kernel reads it from the syndrome. Callers name the operation as a
/// constant, so that one arm remains of the match.
#[inline(always)]
fn by_number(op: Op, a: [u64; 6]) -> [u64; 3] {
    macro_rules! arms {
        ($($name:ident)*) => {
            match op {
                $(Op::$name => svc::<{ Op::$name as u16 }>(a),)*
                // Words travel with three; the fourth needs a `&mut [u8]`: see `System::read_guest`.
                Op::Call | Op::ReplyAndWait | Op::Forward | Op::GuestRead => [Refusal::NoOperation.to_register(), 0, 0],
            }
        };
    }
    arms! {
        Signal Wait Clock Exit Yield FramesSplit FramesReclaim FramesInfo DomainCreate DomainMap DomainUnmap
        DomainDestroy ThreadCreate ThreadStart ThreadDestroy ThreadFault ThreadSupervise ThreadFloat PortalCreate SignalCreate Grant
        Drop Revoke GuestCreate GuestMap GuestUnmap GuestProtect GuestWrite GuestDestroy GuestInfo ViewCreate ViewDestroy
        ViewReset ViewCopy ViewRemap ViewSwitch ViewShow ViewOf VcpuCreate VcpuRoute VcpuWindow VcpuGet VcpuSet VcpuStart
        VcpuReset VcpuStop VcpuException VcpuLaunch VcpuDestroy VcpuMove VcpuTraps GuestSwap LinesWrite LinesRead
        LinesPriority LinesPriorityRead LineTarget LinesEnable LineTake LineBind LineAck LineCreate LineForward
        LineRelease LineTie LinePass SystemOff Log LogRead Fact QueueServe QueueTake QueueDone QueueNext TraceRead
        CpuRetire SessionCreate SessionPlace SessionCommit SessionSettle SessionInfo
    }
}

/// An operation without message words.
#[inline(always)]
fn svc<const NUMBER: u16>(a: [u64; 6]) -> [u64; 3] {
    let [a0, a1, a2, a3, a4, a5] = a;
    let (x0, x1, x2);
    // SAFETY: the kernel checks every argument; it writes memory of this server only where an operation says so, and
    // that one, `GuestRead`, is refused by `by_number`: it goes through `read_guest`, which holds the bytes mutably.
    unsafe {
        asm!(
            "stp x19, x29, [sp, #-16]!",
            "svc #{number}",
            "ldp x19, x29, [sp], #16",
            number = const NUMBER,
            inlateout("x0") a0 => x0, inlateout("x1") a1 => x1, inlateout("x2") a2 => x2,
            inlateout("x3") a3 => _, inlateout("x4") a4 => _, inlateout("x5") a5 => _,
            lateout("x6") _, lateout("x7") _, lateout("x8") _, lateout("x9") _, lateout("x10") _, lateout("x11") _,
            lateout("x12") _, lateout("x13") _, lateout("x14") _, lateout("x15") _, lateout("x16") _,
            lateout("x17") _, lateout("x18") _, lateout("x20") _, lateout("x21") _, lateout("x22") _,
            lateout("x23") _, lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _, lateout("x30") _,
        );
    }
    [x0, x1, x2]
}

/// An IPC: ten words there and back in x19–x28, where the compiler can leave them.
#[inline(always)]
fn ipc<const NUMBER: u16>(x0: u64, bytes: u64, words: [u64; WORDS]) -> (u64, [u64; WORDS]) {
    let [m0, m1, m2, m3, m4, m5, m6, m7, m8, m9] = words;
    let (back, n0, n1, n2, n3, n4, n5, n6, n7, n8, n9);
    // SAFETY: as for `svc`. The kernel writes this thread's message buffer at most, to which no reference lives: calls look
    // at `LENT` first, and the serve loop makes the others outside of every closure.
    unsafe {
        asm!(
            "stp x19, x29, [sp, #-16]!",
            "mov x19, x9",
            "svc #{number}",
            "mov x9, x19",
            "ldp x19, x29, [sp], #16",
            number = const NUMBER,
            inlateout("x0") x0 => back, inlateout("x1") bytes => _, inlateout("x9") m0 => n0,
            inlateout("x20") m1 => n1, inlateout("x21") m2 => n2, inlateout("x22") m3 => n3,
            inlateout("x23") m4 => n4, inlateout("x24") m5 => n5, inlateout("x25") m6 => n6,
            inlateout("x26") m7 => n7, inlateout("x27") m8 => n8, inlateout("x28") m9 => n9,
            lateout("x2") _, lateout("x3") _, lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _,
            lateout("x8") _, lateout("x10") _, lateout("x11") _, lateout("x12") _, lateout("x13") _,
            lateout("x14") _, lateout("x15") _, lateout("x16") _, lateout("x17") _, lateout("x18") _,
            lateout("x30") _,
        );
    }
    (back, [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9])
}

/// The words come, and of those that go the sixth alone is said.
#[inline(always)]
fn answer_with(answer: u64, value: u64) -> (u64, [u64; WORDS]) {
    let (back, n0, n1, n2, n3, n4, n5, n6, n7, n8, n9);
    // SAFETY: as for `ipc`; no bytes of the buffer go along.
    unsafe {
        asm!(
            "stp x19, x29, [sp, #-16]!",
            "svc #{number}",
            "mov x9, x19",
            "ldp x19, x29, [sp], #16",
            number = const Op::ReplyAndWait as u16,
            inlateout("x0") answer => back, inlateout("x1") 0u64 => _, lateout("x9") n0,
            lateout("x20") n1, lateout("x21") n2, lateout("x22") n3,
            lateout("x23") n4, inlateout("x24") value => n5, lateout("x25") n6,
            lateout("x26") n7, lateout("x27") n8, lateout("x28") n9,
            lateout("x2") _, lateout("x3") _, lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _,
            lateout("x8") _, lateout("x10") _, lateout("x11") _, lateout("x12") _, lateout("x13") _,
            lateout("x14") _, lateout("x15") _, lateout("x16") _, lateout("x17") _, lateout("x18") _,
            lateout("x30") _,
        );
    }
    (back, [n0, n1, n2, n3, n4, n5, n6, n7, n8, n9])
}
