// SPDX-License-Identifier: MIT OR Apache-2.0
//! One CPU's block, and the doors that `entry.S` calls: decode, ask the core, say what to obey.

use crate::context::{Thread, Vcpu};
use crate::decode;
use crate::errors::{self, Severity};
use crate::features::Features;
use crate::fp;
use crate::gic;
use crate::isa::{self, read, write};
use crate::log::LOG;
use crate::machine::{Aarch64, TRACE_BYTES};
use crate::predictor::Policy;
use crate::registers::{self, Esr};
use crate::silicon;
use core::fmt::Write;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use trellis_core::float::{self, Lengths};
use trellis_core::forward::is_forwarded;
use trellis_core::local::{Local, Running, THREADS, VCPUS};
use trellis_core::machine::{Machine, VcpuContext};
use trellis_core::shared::{GUESTS, Shared};
use trellis_core::syscall::dispatch;
use trellis_core::thread::{Entry, FaultRecord};
use trellis_core::trap::{self, Next, Trap, take};
use trellis_core::vcpu::mask_words;
use trellis_core::view::LastMap;
use trellis_core::{forward, lines, notice, portal, session, signal, step, vcpu};
use trellis_idl::boot::{BootHeader, flags};
use trellis_idl::kernel::{ExitClass, ExitHeader, Groups, GuestCall, Op, Refusal};
use trellis_idl::trace::{RECORD_WORDS, RECORDS, TraceKind};

/// The first line that messages make.
const FIRST_MESSAGE: u32 = trellis_idl::kernel::FIRST_MESSAGE as u32;

/// A CPU's block. SP_EL2 at rest points at `current`; the stack lies below, and below that the trace.
///
/// Its alignment is twice the trace's size, so that clearing one bit of a pointer goes round the ring.
#[derive(Debug)]
#[repr(C, align(32768))]
pub struct Cpu {
    trace: [[u64; RECORD_WORDS]; RECORDS as usize],
    stack: [u8; STACK],
    current: *mut Thread,
    mode: u64,
    server: [u64; 3],
    /// The vCPU whose exit one thread hands to another.
    passed: *mut Vcpu,
    number: u64,
    arguments: [u64; 6],
    /// The interrupt that its hot door could not decide.
    interrupt: Trap,
    /// What the guarded vectors do at every entry.
    guard: u64,
    /// Where the exception vectors are that this CPU uses.
    vectors: u64,
    /// The hardware.
    pub machine: Aarch64,
    /// The core's state of this CPU.
    pub local: Local<Aarch64>,
}

const _: () = assert!(
    align_of::<Cpu>() as u64 == 2 * TRACE_BYTES && offset_of!(Cpu, trace) == 0 && BLOCK_OFFSET == align_of::<Cpu>()
);

const STACK: usize = 16 * 1024;

/// Where SP_EL2 points in the block.
pub const BLOCK_OFFSET: usize = offset_of!(Cpu, current);
const CURRENT: usize = 0;
const PASSED: usize = offset_of!(Cpu, passed) - BLOCK_OFFSET;
const MODE: usize = offset_of!(Cpu, mode) - BLOCK_OFFSET;
pub(crate) const SERVER: usize = offset_of!(Cpu, server) - BLOCK_OFFSET;
pub(crate) const VECTORS: usize = offset_of!(Cpu, vectors) - BLOCK_OFFSET;
pub(crate) const GUARD: usize = offset_of!(Cpu, guard) - BLOCK_OFFSET;
const NOTE: usize = offset_of!(Cpu, machine) + offset_of!(Aarch64, next_note) - BLOCK_OFFSET;
const LOADED: usize = offset_of!(Cpu, machine) + offset_of!(Aarch64, loaded) - BLOCK_OFFSET;

core::arch::global_asm!(
    include_str!("entry.S"),
    CURRENT = const CURRENT,
    LOADED = const LOADED,
    MODE = const MODE,
    PASSED = const PASSED,
    SERVER = const SERVER,
    GUARD = const GUARD,
    NOTE = const NOTE,
    NOTE_WRAP = const !TRACE_BYTES,
);

core::arch::global_asm!(include_str!("memory.S"));

unsafe extern "C" {
    static vectors: u8;
    static guarded_vectors: u8;
}

/// What all CPUs share.
pub static SHARED: Shared = Shared::new();

/// What a door hands back to `entry.S`.
#[repr(C)]
#[derive(Debug)]
pub struct Obey {
    target: u64,
    value: u64,
}

/// Targets that are no context: what ran goes on as it is; the hot door of interrupts could not decide.
const SAME: u64 = 0;
const UNDECIDED: u64 = 1;
/// Goes with a thread's context: at the end of its system call.
const PARKED: u64 = 4;

impl Cpu {
    /// A CPU's block before boot.
    pub const fn new(cpu: u16) -> Self {
        Cpu {
            trace: [[0; RECORD_WORDS]; RECORDS as usize],
            stack: [0; STACK],
            current: core::ptr::null_mut(),
            mode: 0,
            server: [registers::HCR_SERVER, registers::CPTR_TRAP_ALL, registers::SCTLR_EL1_SERVER],
            passed: core::ptr::null_mut(),
            number: 0,
            arguments: [0; 6],
            interrupt: Trap::Spurious,
            guard: 0,
            vectors: 0,
            local: Local::new(cpu),
            machine: Aarch64 {
                gic: crate::gic::Gic::None,
                loaded: core::ptr::null_mut(),
                visible: core::ptr::null_mut(),
                direct_behind: core::ptr::null_mut(),
                direct: core::ptr::null_mut(),
                debug_owner: core::ptr::null_mut(),
                stepping: false,
                routed: false,
                underflow: false,
                lengths: Lengths(0),
                last: [LastMap { map: 0, vcpu: 0 }; GUESTS],
                hertz: 0,
                first_tick: 0,
                boot_ticks: 0,
                policy: Policy::EMULATED,
                kernel_bytes: 0,
                header: &crate::boot::NO_HEADER,
                guest_mode: false,
                next_note: core::ptr::null_mut(),
            },
        }
    }

    /// The block that a pointer from `entry.S` means.
    ///
    /// # Safety
    /// `at` is SP_EL2 at rest of this CPU, and no other reference to the block lives.
    unsafe fn from_stack<'a>(at: *mut u8) -> &'a mut Cpu {
        // SAFETY: by the caller: SP_EL2 at rest is BLOCK_OFFSET into the block.
        unsafe { &mut *at.sub(BLOCK_OFFSET).cast::<Cpu>() }
    }

    #[inline(always)]
    fn thread(&mut self, index: u16) -> *mut Thread {
        &raw mut self.local.threads.at_mut(index).context
    }

    #[inline(always)]
    fn vcpu(&mut self, index: u16) -> *mut Vcpu {
        &raw mut self.local.vcpus.at_mut(index).context
    }

    /// Registers that every CPU sets once; from here on it notes what it does.
    pub fn set_up(&mut self, header: &BootHeader) {
        self.machine.next_note = (&raw mut self.trace).cast();
        self.machine.policy = silicon::choose(header);
        self.guard = self.machine.policy.guard() | u64::from(isa::features().has(Features::ERRORS)) << 41;
        self.set_vectors(false);
        write!("hcr_el2", registers::HCR_SERVER);
        write!("cptr_el2", registers::CPTR_TRAP_ALL);
        write!("cnthctl_el2", registers::CNTHCTL);
        write!("cntvoff_el2", 0);
        write!("cntv_ctl_el0", 0);
        write!("cnthp_ctl_el2", 0);
        write!("hstr_el2", 0);
        write!("actlr_el2", 0);
        write!("mdscr_el1", 0);
        write!("sctlr_el1", registers::SCTLR_EL1_SERVER);
        write!("vtcr_el2", registers::vtcr(read!("id_aa64mmfr0_el1") & 15));
        isa::isb();
        if header.flags & flags::VECTORS != 0 {
            self.machine.lengths = fp::discover();
        }
        SHARED.vector_lengths.fetch_and(self.machine.lengths.0.into(), Ordering::AcqRel);
        self.machine.hertz = read!("cntfrq_el0");
        // What firmware left pending is told here, not blamed on the first server.
        isa::let_errors_in();
    }

    /// Plain vectors where nothing is to be done at entry.
    fn set_vectors(&mut self, debugging: bool) {
        let table = if self.guard != 0 || debugging { &raw const guarded_vectors } else { &raw const vectors };
        self.vectors = table as u64;
        write!("vbar_el2", self.vectors);
    }

    /// Turns the core's word into what `entry.S` obeys; sleeps while there is nothing to run.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn obey(&mut self, mut next: Next) -> Obey {
        let mut slept = false;
        loop {
            match next {
                Next::Thread(index) => {
                    let context = self.thread(index) as u64;
                    self.note_change(context, slept);
                    let kind = match self.local.threads.at(index).entry {
                        Entry::Parked => PARKED,
                        Entry::Full => 8,
                    };
                    self.hide_guest(index);
                    self.machine.guest_mode = false;
                    return Obey { target: self.thread(index) as u64 | kind, value: 0 };
                }
                Next::Guest(index) => {
                    let context = self.vcpu(index) as u64;
                    self.note_change(context, slept);
                    self.load(index);
                    self.machine.guest_mode = true;
                    return Obey { target: self.vcpu(index) as u64, value: 0 };
                }
                Next::Idle => {
                    if !slept {
                        self.machine.note(TraceKind::Idle.with(0), 0, 0);
                    }
                    slept = true;
                    isa::wfi();
                    // An SError pending now is the kernel's own; it would keep the CPU awake (ISR_EL1.A).
                    if read!("isr_el1") & 1 << 8 != 0 {
                        isa::let_errors_in();
                    }
                    let trap = self.interrupt();
                    next = take(&mut self.local, &SHARED, &mut self.machine, trap);
                }
                // Hot words come only from hot doors.
                Next::Same(_) | Next::Again | Next::Ride { .. } | Next::Overtake { .. } | Next::Answered { .. } | Next::Deliver { .. }
                | Next::Pass { .. } | Next::Slow => {
                    next = take(&mut self.local, &SHARED, &mut self.machine, Trap::Spurious);
                }
            }
        }
    }

    /// Another than the one that came in goes on. That the same one does shows by what it does next.
    #[inline(always)]
    fn note_change(&mut self, context: u64, slept: bool) {
        if slept || self.current as u64 != context {
            self.machine.note(TraceKind::Runs.with(0), 0, context);
        }
    }

    /// EL0 reads TPIDR_EL0 and TPIDRRO_EL0 as the loaded vCPU left them, and may be let to its timer. Its own servers have
    /// authority over it anyway; from a thread that does not run on its budget all that is veiled.
    #[inline]
    fn hide_guest(&mut self, thread: u16) {
        if self.machine.visible.is_null() {
            return;
        }
        let payer = (self.local.threads.at(thread).budget as usize).wrapping_sub(THREADS);
        if payer < VCPUS && self.vcpu(payer as u16) == self.machine.visible {
            return;
        }
        self.machine.veil();
    }

    /// Puts a vCPU's state into the hardware, if it is not there.
    #[inline(always)]
    fn load(&mut self, index: u16) {
        let context = self.vcpu(index);
        if self.machine.direct != context {
            self.load_indirect(context, index);
        }
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    fn load_indirect(&mut self, context: *mut Vcpu, index: u16) {
        if self.machine.loaded != context {
            let guest = self.local.vcpus.at(index).guest;
            self.machine.guest_mode = self.mode == 1;
            self.machine.load(context, guest);
            self.mode = 0;
        }
        self.machine.unveil();
        let debugging = self.machine.load_debug(context);
        self.set_vectors(debugging);
    }

    /// Acknowledges an interrupt and says what it means.
    fn interrupt(&mut self) -> Trap {
        let line = self.machine.gic.acknowledge();
        let context = if self.local.running == Running::Idle { 0 } else { self.current as u64 };
        self.machine.note(TraceKind::Interrupt.with(0), line.into(), context);
        self.meaning(line)
    }

    /// More must be decided about an interrupt than its hot door does.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[cold]
    fn undecided(&mut self, trap: Trap, line: u32) -> u64 {
        self.machine.note(TraceKind::Interrupt.with(0), line.into(), self.current as u64);
        self.interrupt = trap;
        UNDECIDED
    }

    /// A line's thread goes on instead of what ran, or more must be decided.
    #[inline(always)]
    fn overtaken(&mut self, running: Running, next: Next, line: u32) -> u64 {
        let Next::Overtake { thread, .. } = next else { return self.undecided(Trap::Line(line), line) };
        if let Running::Thread(index) = running {
            self.local.threads.at_mut(index).entry = Entry::Full;
        }
        self.hide_guest(thread);
        self.thread(thread) as u64 | PARKED
    }

    /// What an interrupt means, which the kernel ends itself unless a guest will.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn meaning(&mut self, line: u32) -> Trap {
        match line {
            gic::VIRTUAL_TIMER => Trap::VirtualTimer,
            gic::ALARM => {
                write!("cnthp_ctl_el2", 0);
                self.machine.gic.deactivate(line);
                Trap::Alarm
            }
            gic::MAINTENANCE => {
                self.machine.gic.deactivate(line);
                Trap::Maintenance
            }
            gic::KICK => {
                self.machine.gic.deactivate(line);
                Trap::Kick
            }
            32..1020 => {
                if !is_forwarded(&SHARED, line) {
                    self.machine.gic.mask(line, true);
                    self.machine.gic.deactivate(line);
                }
                Trap::Line(line)
            }
            // A message: whoever has the translation service masks it, and it has no active state.
            FIRST_MESSAGE.. => Trap::Line(line),
            _ => Trap::Spurious,
        }
    }

    /// What was interrupted goes on from its full frame.
    #[inline(always)]
    fn note_interrupted(&mut self) {
        self.machine.guest_mode = self.mode == 1;
        if let Running::Thread(index) = self.local.running {
            self.local.threads.at_mut(index).entry = Entry::Full;
        }
    }
}

/// A system call: hot operations are decided here, the others are noted for [`slow_door`].
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn svc_door(a0: u64, a1: u64, a2: u64, a3: u64, a4: u64, a5: u64, number: u64, at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    const CALL: u64 = Op::Call as u64;
    const REPLY: u64 = Op::ReplyAndWait as u64;
    const SIGNAL: u64 = Op::Signal as u64;
    const FORWARD: u64 = Op::Forward as u64;
    let next = match number {
        CALL => portal::call(&mut cpu.local, &SHARED, a0, a1),
        REPLY => portal::reply(&mut cpu.local, a0, a1),
        SIGNAL => return signal_door(cpu, a0),
        n if n > Op::LAST as u64 => Next::Same(Refusal::NoOperation.to_register()),
        _ => Next::Slow,
    };
    match next {
        Next::Ride { thread, value } => Obey { target: cpu.thread(thread) as u64 + 1, value },
        Next::Answered { vcpu, mask } => {
            let context = cpu.vcpu(vcpu);
            if cpu.machine.direct != context {
                return answer_another(cpu, vcpu, mask);
            }
            Obey { target: context as u64 + 2, value: mask }
        }
        Next::Same(value) => Obey { target: 0, value },
        _ if number == FORWARD => forward_door(cpu, a0),
        _ => {
            cpu.number = number;
            cpu.arguments = [a0, a1, a2, a3, a4, a5];
            Obey { target: 4, value: 0 }
        }
    }
}

/// An answer to a vCPU whose state is not in the hardware, or whose debug registers are in use.
#[cfg_attr(target_os = "none", optimize(speed))]
#[cold]
#[inline(never)]
fn answer_another(cpu: &mut Cpu, vcpu: u16, mask: u64) -> Obey {
    cpu.load(vcpu);
    if mask != 0 {
        cpu.local.vcpus.at_mut(vcpu).context.step_done();
    }
    Obey { target: cpu.vcpu(vcpu) as u64 + 2, value: mask }
}

/// A signal, apart from the other hot operations so that they keep their registers.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn signal_door(cpu: &mut Cpu, selector: u64) -> Obey {
    match signal::overtaking(&mut cpu.local, &SHARED, &mut cpu.machine, selector) {
        Next::Overtake { thread, value } => {
            cpu.hide_guest(thread);
            Obey { target: cpu.thread(thread) as u64 + 8, value }
        }
        _ => {
            cpu.number = Op::Signal as u64;
            cpu.arguments = [selector, 0, 0, 0, 0, 0];
            Obey { target: 4, value: 0 }
        }
    }
}

/// An exit is handed on, apart for the same reason. The words are in registers: `entry.S` notes them where they are kept.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn forward_door(cpu: &mut Cpu, selector: u64) -> Obey {
    match session::forward(&mut cpu.local, &SHARED, selector) {
        Next::Pass { thread, vcpu, badge } => {
            cpu.passed = cpu.vcpu(vcpu);
            Obey { target: cpu.thread(thread) as u64 + 24, value: badge }
        }
        _ => {
            cpu.number = Op::Forward as u64;
            cpu.arguments[0] = selector;
            Obey { target: 4, value: 0 }
        }
    }
}

/// A forwarded interrupt is handed on, and its vCPU goes on with it at once. Apart: it has many registers of its own.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn next_door(cpu: &mut Cpu) -> u64 {
    match forward::next_at_once(&mut cpu.local, &SHARED, &mut cpu.machine, &cpu.arguments) {
        Some(Next::Guest(vcpu)) => {
            cpu.machine.unveil();
            cpu.load(vcpu);
            cpu.vcpu(vcpu) as u64
        }
        Some(next) => cpu.obey(next).target,
        None => UNDECIDED,
    }
}

/// A system call whose words are parked.
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn slow_door(at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    cpu.machine.guest_mode = false;
    if cpu.number == Op::QueueNext as u64 {
        let target = next_door(cpu);
        if target != UNDECIDED {
            return Obey { target, value: 0 };
        }
    }
    let before = (cpu.local.running, cpu.local.budget);
    let next = dispatch(&mut cpu.local, &SHARED, &mut cpu.machine, cpu.number as u16, &cpu.arguments);
    match next {
        // The caller goes on for whom it worked: what it may see of the loaded guest is as before.
        Next::Thread(index) if (Running::Thread(index), cpu.local.budget) == before => {
            Obey { target: cpu.thread(index) as u64 | PARKED, value: 0 }
        }
        next => cpu.obey(next),
    }
}

/// A guest stopped or a server faulted; everything is in the running context.
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn exit_door(esr: u64, at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    let Running::Vcpu(index) = cpu.local.running else {
        return server_fault(cpu, esr);
    };
    let vcpu = cpu.local.vcpus.at_mut(index);
    // Classes without a case here cost those that have one nothing: they share no registers and no stack.
    let class = match decode::common(&mut vcpu.context, Esr(esr)) {
        decode::Common::Exit(class) => class as u8,
        decode::Common::Fault { page } => vcpu.class_of(page),
        decode::Common::GuestCall(call) if vcpu.views.inside.has(call.needs()) => return guest_call(cpu, index, call),
        decode::Common::GuestCall(_) => ExitClass::Hypercall as u8,
        decode::Common::SoftwareInterrupt { value } => return software_interrupt(cpu, value),
        decode::Common::Rare => return exit_rare(cpu, index, esr),
    };
    deliver(cpu, index, class)
}

/// An exit that is not decoded in a few instructions.
#[cfg_attr(target_os = "none", optimize(speed))]
#[cold]
#[inline(never)]
fn exit_rare(cpu: &mut Cpu, index: u16, esr: u64) -> Obey {
    let vcpu = cpu.local.vcpus.at_mut(index);
    let class = match decode::rare(&mut vcpu.context, Esr(esr)) {
        decode::Decoded::Exit(class) => class as u8,
        decode::Decoded::Fault { page } => {
            let class = vcpu.class_of(page);
            if class == ExitClass::Memory as u8 && vcpu.notice.is_open() {
                vcpu.context.exit[0] |= class as u64;
                if notice::tell(&mut cpu.local, &SHARED, &mut cpu.machine, index) {
                    cpu.load(index);
                    return Obey { target: cpu.vcpu(index) as u64, value: 0 };
                }
            }
            class
        }
        decode::Decoded::Stepped => return stepped(cpu, index),
        decode::Decoded::NotLetIn => {
            step::past(&mut cpu.local, &SHARED, &mut cpu.machine, index);
            cpu.load(index);
            return Obey { target: cpu.vcpu(index) as u64, value: 0 };
        }
        other => return exit_in_kernel(cpu, index, other),
    };
    deliver(cpu, index, class)
}

/// The one instruction of a step has been executed: the vCPU goes on as before it, unless somebody wants to know.
#[inline(never)]
fn stepped(cpu: &mut Cpu, index: u16) -> Obey {
    if step::end(&mut cpu.local, &SHARED, &mut cpu.machine, index) {
        decode::describe(&mut cpu.local.vcpus.at_mut(index).context, Esr(0), ExitClass::Debug);
        cpu.local.vcpus.at_mut(index).context.exit[0] |= ExitHeader::STEPPED;
        return exit_slow(cpu, ExitClass::Debug as u8);
    }
    cpu.load(index);
    Obey { target: cpu.vcpu(index) as u64, value: 0 }
}

/// Sends an exit whose words are filled in to its server.
#[inline(always)]
fn deliver(cpu: &mut Cpu, index: u16, class: u8) -> Obey {
    cpu.local.vcpus.at_mut(index).context.exit[0] |= class as u64;
    match vcpu::exited(&mut cpu.local, index, class) {
        Next::Deliver { thread, vcpu, badge, groups } => {
            mask_words(&mut cpu.local.vcpus.at_mut(vcpu).context.exit, Groups(groups));
            cpu.machine.guest_mode = false;
            Obey { target: cpu.thread(thread) as u64 + 1, value: badge }
        }
        _ => exit_slow(cpu, class),
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
#[cold]
#[inline(never)]
fn exit_slow(cpu: &mut Cpu, class: u8) -> Obey {
    cpu.machine.guest_mode = true;
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Exit(class));
    cpu.obey(next)
}

/// A call of the guest's that the kernel answers. The vCPU goes on at once: nothing else can have become ready.
#[inline(never)]
fn guest_call(cpu: &mut Cpu, index: u16, call: GuestCall) -> Obey {
    notice::call(&mut cpu.local, &SHARED, &mut cpu.machine, index, call);
    cpu.load(index);
    Obey { target: cpu.vcpu(index) as u64, value: 0 }
}

/// The running guest sends a software interrupt, to itself if that is simple.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn software_interrupt(cpu: &mut Cpu, value: u64) -> Obey {
    let what = decode::software_interrupt(value);
    match lines::software_at_once(&mut cpu.local, &mut cpu.machine, what) {
        Next::Again => Obey { target: SAME, value: 0 },
        _ => software_interrupts(cpu, value),
    }
}

/// The same to others, or when lines wait.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn software_interrupts(cpu: &mut Cpu, value: u64) -> Obey {
    let what = decode::software_interrupt(value);
    cpu.machine.guest_mode = true;
    match lines::software(&mut cpu.local, &SHARED, &mut cpu.machine, what) {
        Next::Again => Obey { target: SAME, value: 0 },
        next => cpu.obey(next),
    }
}

/// Exits that the kernel answers itself.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn exit_in_kernel(cpu: &mut Cpu, index: u16, what: decode::Decoded) -> Obey {
    cpu.machine.guest_mode = true;
    let trap = match what {
        decode::Decoded::Wait => {
            let context = &mut cpu.local.vcpus.at_mut(index).context;
            context.el1.cntv_ctl = read!("cntv_ctl_el0");
            context.el1.cntv_cval = read!("cntv_cval_el0");
            Trap::WaitForInterrupt
        }
        decode::Decoded::Float => Trap::Float(FaultRecord::default()),
        decode::Decoded::Undefined => {
            // Arm ARM: an undefined instruction at EL1 or EL0 is EC 0 with IL set, taken to EL1.
            let context = cpu.vcpu(index);
            // SAFETY: a living vCPU of this CPU's pool; nobody else refers to it now.
            unsafe {
                cpu.machine.save_loaded();
                (*context).exception(1 << 25, 0);
            }
            cpu.mode = 0;
            Trap::Spurious
        }
        decode::Decoded::DebugRegister => {
            cpu.machine.debug_changed();
            Trap::Spurious
        }
        decode::Decoded::Retry | decode::Decoded::Stepped | decode::Decoded::NotLetIn | decode::Decoded::Exit(_) | decode::Decoded::Fault { .. } => Trap::Spurious,
    };
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, trap);
    cpu.obey(next)
}

#[cold]
#[inline(never)]
fn server_fault(cpu: &mut Cpu, esr: u64) -> Obey {
    cpu.machine.guest_mode = false;
    let record = FaultRecord { syndrome: esr, address: read!("far_el2") };
    if Esr(esr).is_float(read!("cpacr_el1")) {
        return server_float(cpu, record);
    }
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Fault(record));
    cpu.obey(next)
}

/// A server used floating-point registers: its own, if it may have some, from here to its next entry.
fn server_float(cpu: &mut Cpu, record: FaultRecord) -> Obey {
    cpu.note_interrupted();
    let before = cpu.local.running;
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Float(record));
    if let Next::Thread(index) = next
        && before == Running::Thread(index)
        && float::open_thread(&cpu.local) == Some(index)
    {
        // EL0 obeys the guest's CPACR_EL1, which goes to its context first.
        cpu.machine.save_loaded();
        fp::open_thread();
        cpu.guard |= fp::OPEN;
        write!("vbar_el2", &raw const guarded_vectors as u64);
    }
    cpu.obey(next)
}

/// An interrupt; only scratch registers of what was interrupted are in its context. Each kind has a routine of its own, so
/// that the simplest ones need few registers. Back: what goes on, as [`Obey::target`].
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn irq_door(at: *mut u8) -> u64 {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    match cpu.machine.gic.acknowledge() {
        gic::VIRTUAL_TIMER => timer_door(cpu),
        gic::KICK => kick_door(cpu),
        line => line_door(cpu, line),
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn timer_door(cpu: &mut Cpu) -> u64 {
    match trap::interrupt(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::VirtualTimer) {
        Next::Again => SAME,
        _ => cpu.undecided(Trap::VirtualTimer, gic::VIRTUAL_TIMER),
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn kick_door(cpu: &mut Cpu) -> u64 {
    cpu.machine.gic.deactivate(gic::KICK);
    match trap::interrupt(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Kick) {
        Next::Again => SAME,
        _ => cpu.undecided(Trap::Kick, gic::KICK),
    }
}

/// A line that is bound to a signal.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn line_door(cpu: &mut Cpu, line: u32) -> u64 {
    if !(32..1020).contains(&line) || is_forwarded(&SHARED, line) {
        return forwarded_door(cpu, line);
    }
    cpu.machine.gic.mask(line, true);
    cpu.machine.gic.deactivate(line);
    let running = cpu.local.running;
    let next = signal::bound_at_once(&mut cpu.local, &SHARED, &mut cpu.machine, line);
    cpu.overtaken(running, next, line)
}

/// A line that is forwarded or a message's, or no line.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn forwarded_door(cpu: &mut Cpu, line: u32) -> u64 {
    if !(32..1020).contains(&line) && line < FIRST_MESSAGE {
        let trap = cpu.meaning(line);
        return cpu.undecided(trap, line);
    }
    let running = cpu.local.running;
    match signal::forwarded_at_once(&mut cpu.local, &SHARED, &mut cpu.machine, line) {
        Next::Again => SAME,
        next => cpu.overtaken(running, next, line),
    }
}

/// The same, for which more must be decided; everything is in the running context.
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn irq_slow_door(at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    cpu.note_interrupted();
    let trap = cpu.interrupt;
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, trap);
    cpu.obey(next)
}

/// A guest's EL0 was in AArch32 (narrow.rs). It has no devices: a touch of one stops the guest with a report.
#[unsafe(no_mangle)]
extern "C" fn exit_32_door(esr: u64, at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    match cpu.local.running {
        Running::Vcpu(index) => {
            let vcpu = cpu.local.vcpus.at_mut(index);
            let class = match decode::narrow(&mut vcpu.context, Esr(esr)) {
                decode::Decoded::Fault { page } if vcpu.class_of(page) == ExitClass::Memory as u8 => ExitClass::Memory,
                decode::Decoded::Exit(class) => class,
                decode::Decoded::Fault { .. } => ExitClass::Illegal,
                decode::Decoded::Stepped => return stepped(cpu, index),
                other => return exit_in_kernel(cpu, index, other),
            };
            vcpu.context.exit[0] |= class as u64;
            exit_slow(cpu, class as u8)
        }
        _ => server_fault(cpu, esr),
    }
}

/// What was interrupted goes on as it is, but the guarded vectors took MDSCR_EL1 from it.
#[cfg_attr(target_os = "none", optimize(speed))]
#[unsafe(no_mangle)]
extern "C" fn again_door(at: *mut u8) {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    if let Running::Vcpu(index) = cpu.local.running {
        let context = cpu.vcpu(index);
        cpu.machine.load_debug(context);
    }
}

/// An SError: the guest's that runs, or a server's.
#[unsafe(no_mangle)]
extern "C" fn system_error_door(esr: u64, at: *mut u8) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    system_error(cpu, esr, 0)
}

/// An SError found by the barrier at entry for something else (ESB, Arm ARM A2.3.1): that is given up and comes again.
/// `entry` = its syndrome, 0 for an interrupt; `deferred` = DISR_EL1.
#[unsafe(no_mangle)]
extern "C" fn deferred_error_door(at: *mut u8, entry: u64, deferred: u64) -> Obey {
    // SAFETY: `entry.S` passes SP_EL2 at rest.
    let cpu = unsafe { Cpu::from_stack(at) };
    let syndrome = 0x2f << 26 | 1 << 25 | deferred & 0x1ff_ffff;
    system_error(cpu, syndrome, errors::undo(entry))
}

/// Goes on `undo` bytes back where nothing was lost; else stops whoever ran.
fn system_error(cpu: &mut Cpu, esr: u64, undo: u64) -> Obey {
    if errors::severity(esr, isa::features().has(Features::ERRORS)) == Severity::Tolerable {
        let _ = writeln!(LOG.lock(), "cpu {}: SError {esr:#x} survived", cpu.local.cpu);
        match cpu.local.running {
            Running::Vcpu(index) => cpu.local.vcpus.at_mut(index).context.step_back(undo),
            Running::Thread(index) => cpu.local.threads.at_mut(index).context.step_back(undo),
            Running::Idle => {}
        }
        cpu.note_interrupted();
        let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Spurious);
        return cpu.obey(next);
    }
    match cpu.local.running {
        Running::Vcpu(index) => {
            decode::describe(&mut cpu.local.vcpus.at_mut(index).context, Esr(esr), ExitClass::SystemError);
            exit_slow(cpu, ExitClass::SystemError as u8)
        }
        _ => server_fault(cpu, esr),
    }
}

/// An SError of the kernel's own, let in where it can be told apart ([`isa::let_errors_in`]).
#[unsafe(no_mangle)]
extern "C" fn own_error_door(esr: u64) {
    if errors::severity(esr, isa::features().has(Features::ERRORS)) == Severity::Fatal {
        panic!("SError in the kernel: esr {esr:#x}");
    }
}

/// The kernel itself faulted: the end, with everything that helps.
#[unsafe(no_mangle)]
extern "C" fn own_fault_door(at: *mut u8, esr: u64, elr: u64, far: u64) -> ! {
    panic!("fault in the kernel: esr {esr:#x}, elr {elr:#x}, far {far:#x}, block {:#x}", at as u64);
}

/// What this CPU did last, for a kernel that is about to end. Nothing before its registers are set up.
pub fn last_records(count: u64, mut show: impl FnMut(trellis_idl::trace::Record)) {
    let here = 0u8;
    // The stack is in the block, whose alignment is no less than what lies below the stack's end.
    let block = (&raw const here as usize & !(align_of::<Cpu>() - 1)) as *const Cpu;
    // SAFETY: this CPU runs on its block's stack since its first instructions. Whoever held the block mutably panicked and
    // never comes back.
    let cpu = unsafe { &*block };
    if cpu.machine.next_note.is_null() {
        return;
    }
    trellis_core::trace::last(&cpu.local, &cpu.machine, count).for_each(&mut show);
}

/// The first entry from boot, of which this CPU executes nothing from here on: others may see that it runs.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn first(cpu: &'static mut Cpu) -> ! {
    SHARED.running.fetch_or(1 << (cpu.local.cpu & 63), Ordering::AcqRel);
    let next = take(&mut cpu.local, &SHARED, &mut cpu.machine, Trap::Spurious);
    cpu.machine.boot_ticks = read!("cntpct_el0") - cpu.machine.first_tick;
    let obey = cpu.obey(next);
    let top = &raw mut cpu.current as u64;
    // SAFETY: `obey` in entry.S expects SP at rest and x0; it never comes back.
    unsafe {
        core::arch::asm!("mov sp, {top}", "b obey", top = in(reg) top, in("x0") obey.target, options(noreturn));
    }
}
