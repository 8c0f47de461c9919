// SPDX-License-Identifier: MIT OR Apache-2.0
//! The harness: CPUs whose every entry into the kernel takes the doors that a board's entry code takes, in its order.
//!
//! What runs has its registers in [`Cpu::registers`]; words of an IPC ride there from the one that stopped to the one
//! that goes on, as they do on a board.

use crate::board::Board;
use crate::context::Registers;
use crate::float::FloatFile;
use crate::machine::HostedMachine;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use trellis_core::float::Lengths;
use trellis_core::forward::is_forwarded;
use trellis_core::local::{Local, Running, VCPUS};
use trellis_core::machine::{Machine, NEVER, VcpuContext};
use trellis_core::shared::Shared;
use trellis_core::syscall::dispatch;
use trellis_core::thread::{Entry, FaultRecord};
use trellis_core::trace::place_of;
use trellis_core::trap::{Next, Trap, interrupt, take};
use trellis_core::vcpu::mask_words;
use trellis_core::{float, forward, init, lines, notice, portal, session, signal, step, vcpu};
use trellis_idl::boot::{BootHeader, MAGIC, Range, Segment};
use trellis_idl::kernel::{Access, ExitClass, ExitHeader, FIRST_MESSAGE, Groups, GuestCall, Op, Refusal};
use trellis_idl::layout;
use trellis_idl::trace::TraceKind;

/// First page of memory: 1 GiB.
pub const FIRST_PAGE: u64 = 0x4_0000;
/// Pages of the made-up image.
pub const IMAGE_PAGES: u64 = 8;
/// Page of the payload in the image.
const PAYLOAD_PAGE: u64 = 4;
/// A device page that root gets a run of.
pub const DEVICE_PAGE: u64 = 0x9000;

/// What a hosted machine looks like.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// CPUs.
    pub cpus: u16,
    /// Pages of memory.
    pub pages: u64,
    /// List registers.
    pub list_registers: usize,
    /// Lengths of vectors that its CPUs have.
    pub lengths: Lengths,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { cpus: 1, pages: 4096, list_registers: 4, lengths: Lengths(0b1011) }
    }
}

/// What a CPU does now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Now {
    /// A thread, by index.
    Thread(u16),
    /// A vCPU, by index.
    Guest(u16),
    /// Nothing.
    Idle,
}

/// One CPU.
#[derive(Debug)]
pub struct Cpu {
    /// The core's state of it. Boxed: a loaded context is known by its address.
    pub local: Box<Local<HostedMachine>>,
    /// The hardware.
    pub machine: HostedMachine,
    /// Registers of the thread that runs.
    pub registers: Registers,
    /// What runs.
    pub now: Now,
}

/// The machine with the kernel on it.
#[derive(Debug)]
pub struct Hosted {
    /// Its CPUs.
    pub cpus: Vec<Cpu>,
    /// What the core shares between them.
    pub shared: Box<Shared>,
    /// What the hardware shares between them.
    pub board: Rc<RefCell<Board>>,
    /// Services of sources that the last ones to look into a queue were given, for steps to use.
    pub taken: Vec<u64>,
    /// Interrupts, and who hands them on, never take their hot doors.
    pub only_slow: bool,
}

/// The header of an image with a root of one page of code, one of data, and a payload of four pages.
pub fn header(settings: &Settings) -> BootHeader {
    let mut header = BootHeader { magic: MAGIC, cpus: settings.cpus.into(), ..BootHeader::EMPTY };
    header.image_bytes = IMAGE_PAGES * 4096;
    header.payload = Range { base: PAYLOAD_PAGE * 4096, bytes: (IMAGE_PAGES - PAYLOAD_PAGE) * 4096 };
    header.plan = Range { base: 0, bytes: 100 };
    header.ram[0] = Range { base: FIRST_PAGE * 4096, bytes: settings.pages * 4096 };
    header.devices[0] = Range { base: DEVICE_PAGE * 4096, bytes: 2 * 4096 };
    header.root_entry = layout::PROGRAM;
    let code = Access::READ.with(Access::EXECUTE).0;
    let data = Access::READ.with(Access::WRITE).0;
    header.root[0] =
        Segment { offset: 4096, address: layout::PROGRAM, file_bytes: 4096, memory_bytes: 4096, access: code };
    header.root[1] = Segment {
        offset: 8192, address: layout::PROGRAM + 4096, file_bytes: 100, memory_bytes: 4096, access: data,
    };
    header
}

fn has_memory(board: &RefCell<Board>, first: u64, pages: u64) -> bool {
    board.borrow().is_memory(first) && board.borrow().is_memory(first + pages - 1)
}

impl Hosted {
    /// A machine on which root is about to execute its first instruction.
    pub fn new(settings: Settings) -> Hosted {
        Hosted::with_header(settings, &header(&settings)).expect("the made-up header suits")
    }

    /// The same with an image whose header says this.
    pub fn with_header(settings: Settings, header: &BootHeader) -> Result<Hosted, Refusal> {
        if !header.holds_together() {
            return Err(Refusal::BadArgument);
        }
        let board = Rc::new(RefCell::new(Board::new(FIRST_PAGE, settings.pages)));
        board.borrow_mut().zero(FIRST_PAGE, IMAGE_PAGES);
        let shared = Box::new(Shared::new());
        let mut cpus: Vec<Cpu> = (0..settings.cpus).map(|cpu| Cpu::new(cpu, &settings, &board)).collect();
        shared.running.store(u64::MAX >> (64 - settings.cpus), Ordering::Release);
        shared.vector_lengths.fetch_and(settings.lengths.0.into(), Ordering::AcqRel);
        let free = init::free_memory(header, FIRST_PAGE);
        if free.iter().any(|(first, pages)| *pages != 0 && !has_memory(&board, *first, *pages)) {
            return Err(Refusal::BadArgument);
        }
        let first = &mut cpus[0];
        init::root(&mut first.local, &shared, &mut first.machine, header, FIRST_PAGE, &free)?;
        let mut hosted = Hosted { cpus, shared, board, taken: Vec::new(), only_slow: false };
        for cpu in 0..settings.cpus {
            hosted.trap(cpu, Trap::Spurious);
        }
        Ok(hosted)
    }

    /// What this CPU does now.
    pub fn now(&self, cpu: u16) -> Now {
        self.cpus[cpu as usize].now
    }

    /// Registers of the thread that runs there.
    pub fn registers(&self, cpu: u16) -> Registers {
        self.cpus[cpu as usize].registers
    }

    /// A system call of the running thread, as `svc` makes it.
    pub fn syscall(&mut self, cpu: u16, number: u16, a: [u64; 6], words: [u64; 10]) -> Now {
        let this = &mut self.cpus[cpu as usize];
        let Running::Thread(me) = this.local.running else { panic!("no thread runs on CPU {cpu}") };
        this.registers.words = words;
        this.machine.float.opened = None;
        const CALL: u16 = Op::Call as u16;
        const REPLY: u16 = Op::ReplyAndWait as u16;
        const SIGNAL: u16 = Op::Signal as u16;
        const FORWARD: u16 = Op::Forward as u16;
        const NEXT: u16 = Op::QueueNext as u16;
        let mut next = match number {
            CALL => portal::call(&mut this.local, &self.shared, a[0], a[1]),
            REPLY => portal::reply(&mut this.local, a[0], a[1]),
            FORWARD if !self.only_slow => session::forward(&mut this.local, &self.shared, a[0]),
            NEXT if !self.only_slow => {
                forward::next_at_once(&mut this.local, &self.shared, &mut this.machine, &a).unwrap_or(Next::Slow)
            }
            SIGNAL => signal::overtaking(&mut this.local, &self.shared, &mut this.machine, a[0]),
            n if n > Op::LAST => Next::Same(Refusal::NoOperation.to_register()),
            _ => Next::Slow,
        };
        if next == Next::Slow {
            this.local.threads.at_mut(me).context.parked.words = words;
            next = dispatch(&mut this.local, &self.shared, &mut this.machine, number, &a);
        }
        this.obey(next);
        self.settle(cpu)
    }

    /// A vCPU that has executed the one instruction of its step traps before the next.
    pub(crate) fn settle(&mut self, cpu: u16) -> Now {
        let this = &mut self.cpus[cpu as usize];
        let Now::Guest(index) = this.now else { return this.now };
        if this.local.vcpus.at(index).context.step != Some(false) {
            return this.now;
        }
        if !step::end(&mut this.local, &self.shared, &mut this.machine, index) {
            return this.now;
        }
        let pc = this.local.vcpus.at(index).context.pc();
        self.exit(cpu, ExitClass::Debug, [ExitHeader::STEPPED, 0, 0, 0, pc, 0, 0, 0, 0, 0])
    }

    /// A system call after which the caller runs on: what it gets back.
    pub fn invoke(&mut self, cpu: u16, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let before = self.now(cpu);
        let after = self.syscall(cpu, op as u16, a, [0; 10]);
        assert_eq!(before, after, "{op:?} was meant to come back");
        let [x0, x1, x2] = self.registers(cpu).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    /// The vCPU that runs stops with these words; the class goes into the first.
    pub fn exit(&mut self, cpu: u16, class: ExitClass, mut words: [u64; 10]) -> Now {
        let this = &mut self.cpus[cpu as usize];
        let Running::Vcpu(index) = this.local.running else { panic!("no guest runs on CPU {cpu}") };
        let context = &mut this.local.vcpus.at_mut(index).context;
        words[0] |= class as u64 | u64::from(context.view()) << 32;
        context.set_exit(words);
        this.machine.note(TraceKind::Exit.with(words[1]), words[4], place_of(&this.local.vcpus.at(index).context));
        if class == ExitClass::Memory
            && this.local.vcpus.at(index).notice.is_open()
            && notice::tell(&mut this.local, &self.shared, &mut this.machine, index)
        {
            return self.settle(cpu);
        }
        let mut next = vcpu::exited(&mut this.local, index, class as u8);
        if next == Next::Slow {
            next = take(&mut this.local, &self.shared, &mut this.machine, Trap::Exit(class as u8));
        }
        this.obey(next);
        self.settle(cpu)
    }

    /// The vCPU that runs makes a call that the kernel answers itself, if the guest may; what its `HVC` is else.
    pub fn guest_call(&mut self, cpu: u16, call: GuestCall, x: [u64; 2]) -> Now {
        let this = &mut self.cpus[cpu as usize];
        let Running::Vcpu(index) = this.local.running else { panic!("no guest runs on CPU {cpu}") };
        let vcpu = this.local.vcpus.at_mut(index);
        for (n, value) in x.into_iter().enumerate() {
            vcpu.context.set_general(n, value);
        }
        if !vcpu.views.inside.has(call.needs()) {
            let words = [0, 0x16 << 26 | u64::from(call as u16), 0, 0, 0, 0, x[0], x[1], 0, 0];
            return self.exit(cpu, ExitClass::Hypercall, words);
        }
        notice::call(&mut this.local, &self.shared, &mut this.machine, index, call);
        self.executed(cpu)
    }

    /// Something off the hot doors: an interrupt, a fault of the running thread, an exit the kernel answers itself.
    pub fn trap(&mut self, cpu: u16, trap: Trap) -> Now {
        assert!(!self.board.borrow().retired.contains(&cpu), "CPU {cpu} has stopped, and gets {trap:?}");
        let this = &mut self.cpus[cpu as usize];
        this.machine.float.opened = None;
        if let Running::Thread(index) = this.local.running {
            let thread = this.local.threads.at_mut(index);
            thread.context.full = this.registers;
            if !matches!(trap, Trap::Fault(_)) && this.now != Now::Idle {
                thread.entry = Entry::Full;
            }
        }
        if matches!(trap, Trap::Line(line) if !self.acknowledge_line(cpu, line)) {
            return self.now(cpu);
        }
        let this = &mut self.cpus[cpu as usize];
        let mut next = Next::Slow;
        if !self.only_slow && matches!(trap, Trap::VirtualTimer | Trap::Kick | Trap::Line(_)) {
            next = interrupt(&mut this.local, &self.shared, &mut this.machine, trap);
        }
        if let (false, Trap::SoftwareInterrupt(what)) = (self.only_slow, trap) {
            next = lines::software_at_once(&mut this.local, &mut this.machine, what);
        }
        next = match next {
            Next::Slow => take(&mut this.local, &self.shared, &mut this.machine, trap),
            // Its words and result are in its context.
            Next::Overtake { thread, .. } => Next::Thread(thread),
            same => same,
        };
        this.obey(next);
        self.settle(cpu)
    }

    /// A device raises its line: whether it comes to this CPU now. It is masked then, or it stays active if it is forwarded.
    fn acknowledge_line(&mut self, cpu: u16, line: u32) -> bool {
        // A message: what masks and routes it is not the kernel's, and it is never active.
        if u64::from(line) >= FIRST_MESSAGE {
            return true;
        }
        let mut board = self.board.borrow_mut();
        if board.lines.get(&line) != Some(&cpu) || board.active.contains(&line) {
            return false;
        }
        if is_forwarded(&self.shared, line) {
            board.active.insert(line);
        } else {
            board.lines.remove(&line);
        }
        true
    }

    /// What runs uses floating-point registers: the registers, if it gets them.
    pub fn float(&mut self, cpu: u16) -> Option<&mut FloatFile> {
        let before = self.now(cpu);
        if !self.cpus[cpu as usize].has_float() {
            self.trap(cpu, Trap::Float(FaultRecord { syndrome: 0x1e00_0000, address: 0 }));
        }
        let this = &mut self.cpus[cpu as usize];
        if let Now::Thread(index) = this.now
            && float::open_thread(&this.local) == Some(index)
        {
            this.machine.float.opened = Some(index);
        }
        (before == this.now && this.has_float()).then_some(&mut this.machine.float)
    }

    /// Delivers kicks until there are none.
    pub fn deliver_kicks(&mut self) {
        loop {
            let Some(cpu) = self.board.borrow_mut().kicks.pop_front() else { return };
            self.trap(cpu, Trap::Kick);
        }
    }

    /// Lets time pass: alarms and virtual timers that come due fire.
    pub fn advance(&mut self, ticks: u64) {
        let until = self.board.borrow().now + ticks;
        while let Some(due) = self.next_event().filter(|due| *due <= until) {
            let now = self.board.borrow().now.max(due);
            self.board.borrow_mut().now = now;
            self.fire(now);
        }
        self.board.borrow_mut().now = until;
    }

    /// When something fires next.
    fn next_event(&self) -> Option<u64> {
        let alarms = self.cpus.iter().map(|cpu| cpu.machine.alarm);
        let timers = self.cpus.iter().map(|cpu| match cpu.loaded() {
            Some(index) if !cpu.machine.timer_active => cpu.local.vcpus.at(index).context.timer_deadline(),
            _ => NEVER,
        });
        alarms.chain(timers).min().filter(|due| *due != NEVER)
    }

    fn fire(&mut self, now: u64) {
        for cpu in 0..self.cpus.len() as u16 {
            let this = &mut self.cpus[cpu as usize];
            if this.machine.alarm <= now {
                this.machine.alarm = NEVER;
                self.trap(cpu, Trap::Alarm);
            }
            let this = &mut self.cpus[cpu as usize];
            let Some(index) = this.loaded() else { continue };
            if !this.machine.timer_active && this.local.vcpus.at(index).context.timer_deadline() <= now {
                this.machine.timer_active = true;
                self.trap(cpu, Trap::VirtualTimer);
            }
        }
    }

    /// How often CPUs took locks that they share, and wrote words that they share, so far.
    pub fn sharing(&self) -> (u64, u64) {
        (self.shared.locks_taken(), self.cpus.iter().map(|cpu| cpu.local.shared_writes).sum())
    }
}

impl Cpu {
    fn new(cpu: u16, settings: &Settings, board: &Rc<RefCell<Board>>) -> Cpu {
        let mut machine = HostedMachine::new(board.clone(), cpu, settings.cpus);
        machine.list_registers = settings.list_registers;
        machine.float = FloatFile::new(settings.lengths);
        Cpu { local: Box::new(Local::new(cpu)), machine, registers: Registers::default(), now: Now::Idle }
    }

    /// The vCPU whose state is in the hardware.
    pub fn loaded(&self) -> Option<u16> {
        (0..VCPUS as u16).find(|index| self.machine.is_loaded(&self.local.vcpus.at(*index).context))
    }

    /// Whether what runs may use floating-point registers without a trap.
    fn has_float(&self) -> bool {
        match self.now {
            Now::Guest(index) => self.local.vcpus.at(index).context.float_open,
            Now::Thread(index) => self.machine.float.opened == Some(index),
            Now::Idle => false,
        }
    }

    /// Does what the core says: the second half of every entry.
    fn obey(&mut self, next: Next) -> Now {
        self.now = match next {
            Next::Same(value) => {
                self.registers.x = [value, 0, 0];
                self.now
            }
            Next::Again => self.now,
            Next::Ride { thread, value } => {
                self.registers.x = [value, 0, 0];
                Now::Thread(thread)
            }
            Next::Overtake { thread, value } => {
                self.registers = Registers { x: [value, 0, 0], ..Registers::default() };
                Now::Thread(thread)
            }
            Next::Answered { vcpu, mask } => {
                let words = self.registers.words;
                self.local.vcpus.at_mut(vcpu).context.answer(mask, &words);
                self.enter(vcpu)
            }
            Next::Pass { thread, vcpu, badge } => {
                self.local.vcpus.at_mut(vcpu).context.set_exit(self.registers.words);
                self.registers.x = [badge, 0, 0];
                Now::Thread(thread)
            }
            Next::Deliver { thread, vcpu, badge, groups } => {
                let mut words = *self.local.vcpus.at(vcpu).context.exit();
                mask_words(&mut words, Groups(groups));
                self.local.vcpus.at_mut(vcpu).context.set_exit(words);
                self.registers = Registers { x: [badge, 0, 0], words };
                Now::Thread(thread)
            }
            Next::Thread(index) => {
                let thread = self.local.threads.at(index);
                if self.now != Now::Thread(index) {
                    self.machine.note(TraceKind::Runs.with(0), 0, place_of(&thread.context));
                }
                self.registers = match thread.entry {
                    Entry::Parked => thread.context.parked,
                    Entry::Full => thread.context.full,
                };
                Now::Thread(index)
            }
            Next::Guest(index) => {
                if self.now != Now::Guest(index) {
                    self.machine.note(TraceKind::Runs.with(0), 0, place_of(&self.local.vcpus.at(index).context));
                }
                self.enter(index)
            }
            Next::Idle => {
                self.machine.note(TraceKind::Idle.with(0), 0, 0);
                Now::Idle
            }
            Next::Slow => panic!("a hot door's word from a slow one"),
        };
        self.now
    }

    /// Puts a vCPU's state into the hardware, if it is not there.
    fn enter(&mut self, index: u16) -> Now {
        if self.loaded() != Some(index) {
            if let Some(other) = self.loaded() {
                self.machine.unload(&mut self.local.vcpus.at_mut(other).context);
            }
            let vcpu = self.local.vcpus.at(index);
            self.machine.load(&vcpu.context, vcpu.guest);
        }
        Now::Guest(index)
    }
}
