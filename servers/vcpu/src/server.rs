// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server: which exit goes to which part of the platform, and what goes back.
//!
//! Threads share one value. Each device has a lock of its own, each vCPU's registers too, and the power states are
//! atomics, so vCPUs meet only where the hardware's would. No lock is held over a call to another server.

use crate::access::{Devices, Trouble, emulate};
use crate::boot::{self, Payload};
use crate::debug::DebugRegisters;
use crate::events::Hearing;
use crate::heard::Heard;
use crate::distributor::{self, Distributor};
use crate::function::{self, Functions, View};
use crate::identity::Shown;
use crate::instruction::{NotEmulated, extend};
use crate::pl011::{self, Pl011, Wire};
use crate::pl031::{self, Pl031};
use crate::psci::{Memory, Power, Request};
use crate::redistributor::{self, Redistributor};
use crate::sysreg::{Outcome, Processor, Trapped, memory_register};
use crate::timer::{self, PhysicalTimer};
use crate::watched::{Stopped, Watched};
use crate::{bank, bus, crash, hypercall, platform};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Fact, LineField, Op, PAGE, Refusal, WORDS, float_register};
use trellis_idl::layout::{badge as badges, slot, vcpu_signal};
use trellis_idl::plan::{MAX_VCPUS, VcpuConfig};
use trellis_idl::wire::{GuestEnd, Order, P2mOp, ToRoot, VcpuOp};
use trellis_runtime::event_ring::{EventPage, Tells};
use trellis_runtime::memory::Registers;
use trellis_runtime::{Attends, Guest, Portal, Reply, Server, Shared, Signal, System, Vcpu, message};

/// What lies outside the server: the wire of the serial port, the payload, the ear of root.
pub trait Outside: Wire + Payload + Sync {
    /// A page of a function of PCI.
    type Page: Registers;
    /// Puts a report where root finds it; root is woken by the caller.
    fn report(&self, system: &impl System, report: &ToRoot) -> bool;
    /// The page with this place ([`trellis_idl::layout::bus`]).
    fn page(&self, place: usize) -> Self::Page;
}

/// What belongs to one vCPU.
#[derive(Debug)]
pub(crate) struct Local {
    redistributor: Redistributor,
    debug: DebugRegisters,
    timer: PhysicalTimer,
    pub(crate) watched: Watched,
}

impl Local {
    const fn new() -> Local {
        let (debug, timer) = (DebugRegisters::new(), PhysicalTimer::new());
        Local { redistributor: Redistributor::new(), debug, timer, watched: Watched::new() }
    }
}

/// The vcpu server of one guest.
#[derive(Debug)]
pub struct VcpuServer<'a, O> {
    config: VcpuConfig<'a>,
    outside: O,
    power: Power,
    /// The guest has ended and root knows.
    ended: AtomicBool,
    /// Its vCPUs have scalable vectors: the kernel knows, and is asked when the guest starts.
    vectors: AtomicBool,
    /// What monitors hear of.
    pub(crate) heard: Heard,
    /// What they are told, and not asked.
    pub(crate) tells: Tells,
    serial: Shared<Pl011>,
    /// UARTFR as it was when the port's lock was last given back, to be read without it.
    serial_flags: AtomicU32,
    clock: Shared<Pl031>,
    distributor: Shared<Distributor>,
    /// Taken before the distributor's.
    functions: Shared<Functions>,
    locals: [Shared<Local>; MAX_VCPUS],
}

/// What becomes of an exit: what changes, and the one word that any answer here moves. It travels in two registers,
/// where a whole message would be copied from function to function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    pub(crate) value: u64,
}

#[inline(always)]
const fn verdict(answer: Answer, value: u64) -> Verdict {
    Verdict { answer, value }
}

/// Past the instruction, unless the program counter is there already.
#[inline(always)]
pub(crate) const fn past(exit: &Exit) -> Answer {
    if exit.header.length() == 0 { Answer::RETRY } else { Answer::ADVANCE }
}

pub(crate) fn vcpu_at(index: u8) -> Vcpu {
    Vcpu::at(slot::VCPU + u64::from(index))
}

/// A read of four bytes, in the usual order, whose register is known.
#[inline(always)]
const fn is_word_read(header: ExitHeader) -> bool {
    header.0 & (ExitHeader::WRITE | ExitHeader::BIG_ENDIAN | 0xff00) == 4 << 8
}

/// ESR_EL1 of an undefined instruction: class 0, 32-bit instruction (Arm ARM D24.2.40).
pub(crate) const UNDEFINED: u64 = 1 << 25;

/// What hardware tells the guest itself about an access that no device supports, as a fault status (Arm ARM D24.2.40).
const fn own_fault(trouble: Trouble) -> Option<u64> {
    match trouble {
        Trouble::Instruction(NotEmulated::Atomic) => Some(0x35),
        // Zeroing a block of a device is an alignment fault (Arm ARM C6.2, DC ZVA).
        Trouble::Instruction(NotEmulated::ZeroBlock) => Some(0x21),
        _ => None,
    }
}

/// ESR_EL1 of a data abort: class 0x24 from the user level and 0x25 from its own, WnR as it was (Arm ARM D24.2.40).
const fn data_abort(exit: &Exit, status: u64) -> u64 {
    let class = if exit.header.has(ExitHeader::USER) { 0x24 } else { 0x25 };
    class << 26 | 1 << 25 | exit.syndrome & 1 << 6 | status
}

/// Exception class of a syndrome.
pub(crate) const fn class_of(syndrome: u64) -> u64 {
    syndrome >> 26 & 0x3f
}

impl<O: Outside> Attends for VcpuServer<'_, O> {
    fn control_thread(&self) -> usize {
        VcpuServer::control_thread(self)
    }

    fn attend(&self, system: &impl System) -> (u64, u64) {
        (vcpu_signal::INPUT | vcpu_signal::TIMER, VcpuServer::attend(self, system).unwrap_or(0))
    }
}

impl<O: Outside> Server for VcpuServer<'_, O> {
    #[inline(always)]
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        let index = badges::index(badge);
        let Verdict { answer, value } = match exit.header.0 as u8 {
            HYPERCALL if exit.general[0] == hypercall::PING && exit.syndrome as u16 == 0 && self.heard.is_quiet() => {
                verdict(Answer::RETRY.register(0), exit.general[1].wrapping_add(1))
            }
            // What guests do before each byte: the one register with a short way of its own.
            DEVICE if exit.physical == platform::SERIAL + pl011::FLAGS && is_word_read(exit.header) => {
                match self.quiet_flags() {
                    Some(flags) => verdict(Answer::ADVANCE.register(exit.header.register()), flags.into()),
                    None => self.device(system, index, *exit),
                }
            }
            // By value: a reference to this exit would have its words written to memory on the short ways too.
            DEVICE => self.device(system, index, *exit),
            _ if self.heard.is_quiet() => self.other(system, index, *exit),
            HYPERCALL if self.is_told(system, index, exit) => verdict(Answer::RETRY.register(0), 0),
            _ => {
                // A copy: the words of this exit stay in registers on the short ways.
                let mut event = *exit;
                match self.event(system, index, &mut event) {
                    Hearing::Asked(session) => return Reply::Watched(session, event.to_words()),
                    Hearing::Answered => verdict(past(exit).register(0), 0),
                    Hearing::Unasked => self.other(system, index, *exit),
                }
            }
        };
        Reply::Value(answer, value)
    }

    fn unwatched(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        self.unheard(system, badge, exit)
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::VCPU, &words);
        }
        let mut answer = [0; WORDS];
        if words[0] == VcpuOp::Complete as u64 && matches!(badges::kind(badge), badges::ROOT | badges::MONITOR) {
            return Reply::Call(self.complete_for(system, &words));
        }
        let result = match words[0] {
            op if op == VcpuOp::Listen as u64 && badges::kind(badge) == badges::MONITOR => self.listen(system, badge, &words),
            _ if badges::kind(badge) != badges::ROOT => Err(Refusal::MissingRight),
            op if op == VcpuOp::Start as u64 => self.start(system),
            op if op == VcpuOp::Reset as u64 => self.reset(system),
            op if op == VcpuOp::Power as u64 => {
                answer[1] = self.power.on();
                Ok(())
            }
            _ => Err(Refusal::NoOperation),
        };
        if let Err(refusal) = result {
            answer[0] = 1 + refusal as u64;
        }
        Reply::Call(answer)
    }
}

const DEVICE: u8 = ExitClass::Device as u8;
const HYPERCALL: u8 = ExitClass::Hypercall as u8;

impl<'a, O: Outside> VcpuServer<'a, O> {
    /// A server whose guest has not started.
    pub fn new(config: VcpuConfig<'a>, outside: O) -> VcpuServer<'a, O> {
        let vcpus = config.vcpus.min(MAX_VCPUS as u8);
        let memory = Memory { base: config.memory_base, bytes: config.memory_bytes };
        VcpuServer {
            config: VcpuConfig { vcpus, ..config },
            outside,
            power: Power::new(vcpus, memory),
            ended: AtomicBool::new(false),
            vectors: AtomicBool::new(false),
            heard: Heard::new(),
            tells: Tells::new(&[], 0),
            serial: Shared::new(Pl011::new()),
            serial_flags: AtomicU32::new(Pl011::new().flags()),
            clock: Shared::new(Pl031::new()),
            distributor: Shared::new(Distributor::new(vcpus)),
            functions: Shared::new(Functions::new()),
            locals: [const { Shared::new(Local::new()) }; MAX_VCPUS],
        }
    }

    /// What lies outside, to look at.
    #[cfg(test)]
    pub(crate) fn outside_for_tests(&self) -> &O {
        &self.outside
    }

    /// The same, with rings for what the guest's monitors are told.
    pub fn telling(self, events: &'static [EventPage]) -> Self {
        let server = VcpuServer { tells: Tells::new(events, self.config.vcpus), ..self };
        server.tells.begin();
        server
    }

    /// Index of the thread that root's calls come to, behind those of the vCPUs.
    pub fn control_thread(&self) -> usize {
        self.config.vcpus.into()
    }

    /// Looks after what happens without the guest's doing: input from the console, room in its ring, physical timers.
    /// Called when the signal [`trellis_idl::layout::vcpu_signal::INPUT`] came or the deadline passed. Back: when to
    /// call again at the latest, if at any time.
    pub fn attend(&self, system: &impl System) -> Option<u64> {
        self.look(system, &mut self.serial.lock(system));
        let now = now(system);
        let local = |index: u8| self.locals.get(usize::from(index)).map(|local| (index, local));
        let deadlines = (0..self.config.vcpus).filter_map(local).filter_map(|(index, local)| {
            let mut local = local.lock(system);
            settle_timer(system, index, &mut local.timer, now);
            local.timer.deadline()
        });
        deadlines.min()
    }

    /// An access in a device window.
    #[inline(never)]
    fn device(&self, system: &impl System, index: u8, exit: Exit) -> Verdict {
        let header = exit.header;
        let Some(width @ 1..=8) = header.width() else { return self.unknown_access(system, index, &exit) };
        let is_write = header.has(ExitHeader::WRITE);
        let order = bus::Order::of(header);
        let write = if is_write { Some(order.turn(exit.value, width)) } else { None };
        match self.access(system, index, exit.physical, width, write) {
            None => self.trouble(system, index, &exit, Trouble::NoDevice),
            Some(_) if is_write => verdict(Answer::ADVANCE, 0),
            Some(value) => {
                let value = extend(order.turn(value, width), width, header.is_signed(), header.is_wide());
                verdict(Answer::ADVANCE.register(header.register()), value)
            }
        }
    }

    /// The serial port's flags, when nothing can have changed them since they were stored.
    #[inline(always)]
    fn quiet_flags(&self) -> Option<u32> {
        let flags = self.serial_flags.load(Ordering::Acquire);
        let may_change = flags & pl011::TRANSMIT_FULL != 0 || self.outside.has_input();
        if may_change { None } else { Some(flags) }
    }

    /// Looks at the serial port's wire.
    fn look(&self, system: &impl System, serial: &mut Pl011) {
        serial.look(&self.outside);
        self.settle_serial(system, serial);
    }

    /// The device that lives at an address.
    fn access(&self, system: &impl System, index: u8, address: u64, width: u8, write: Option<u64>) -> Option<u64> {
        if address >> 12 == platform::SERIAL >> 12 {
            return Some(self.serial(system, address & 0xfff, width, write));
        }
        self.access_rest(system, index, address, width, write)
    }

    fn access_rest(&self, system: &impl System, index: u8, address: u64, width: u8, write: Option<u64>) -> Option<u64> {
        let Some((device, offset)) = platform::find(address, self.config.gic, self.config.vcpus) else {
            return self.function(system, address, width, write);
        };
        Some(match device {
            platform::Device::Distributor if self.config.gic == 3 => {
                let mut state = self.distributor.lock(system);
                transact(&mut distributor::Version3 { state: &mut state, system }, offset, width, write)
            }
            platform::Device::Distributor => {
                let mut state = self.distributor.lock(system);
                transact(&mut distributor::Version2 { state: &mut state, system, vcpu: index }, offset, width, write)
            }
            platform::Device::Redistributor(owner) => {
                let mut local = self.locals.get(usize::from(owner))?.lock(system);
                let is_last = owner + 1 == self.config.vcpus;
                let state = &mut local.redistributor;
                let mut view = redistributor::View { state, system, vcpu: vcpu_at(owner), index: owner, is_last };
                transact(&mut view, offset, width, write)
            }
            platform::Device::Clock => {
                let seconds = seconds(system);
                let mut state = self.clock.lock(system);
                transact(&mut pl031::View { state: &mut state, seconds }, offset, width, write)
            }
            platform::Device::EmptyFlash => {
                if write.is_none() {
                    blank(system, index, address / PAGE);
                }
                transact(&mut platform::EmptyFlash, offset, width, write)
            }
            platform::Device::EmptySlots => transact(&mut platform::EmptySlots, offset, width, write),
        })
    }

    /// What the guest sees of functions of PCI.
    #[cold]
    #[inline(never)]
    fn function(&self, system: &impl System, address: u64, width: u8, write: Option<u64>) -> Option<u64> {
        let plan = self.config.bus.as_ref()?;
        let (place, offset) = function::find(plan, address)?;
        let mut state = self.functions.lock(system);
        let page = |place| self.outside.page(place);
        Some(match place {
            function::Place::Frame => {
                let raise = |line| self.distributor.lock(system).raise(system, line);
                transact(&mut function::Frame { plan, raise }, offset, width, write)
            }
            function::Place::Configuration(None) => transact(&mut function::Nothing, offset, width, write),
            function::Place::Configuration(Some(place)) => transact(&mut function::Configuration(View::new(plan, &mut state, place, page)), offset, width, write),
            function::Place::Hidden(place) => transact(&mut function::Hidden(View::new(plan, &mut state, place, page)), offset, width, write),
        })
    }

    #[inline]
    fn serial(&self, system: &impl System, offset: u64, width: u8, write: Option<u64>) -> u64 {
        let mut serial = self.serial.lock(system);
        let value = transact(&mut pl011::View { port: &mut serial, wire: &self.outside }, offset, width, write);
        self.settle_serial(system, &mut serial);
        value
    }

    /// Tells the kernel and the console what has changed.
    #[inline]
    fn settle_serial(&self, system: &impl System, serial: &mut Pl011) {
        self.serial_flags.store(serial.flags(), Ordering::Release);
        if let Some(level) = serial.level_change() {
            self.distributor.lock(system).set_level(system, platform::SERIAL_LINE, level);
        }
        if serial.take_wake() {
            let _ = Signal::at(slot::CONSOLE).raise(system);
        }
    }

    /// An access whose instruction must be read.
    #[cold]
    #[inline(never)]
    fn unknown_access(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        let devices = On { server: self, system, index };
        match emulate(system, Guest::at(slot::GUEST), vcpu_at(index), exit, &devices) {
            Ok(()) => verdict(Answer::ADVANCE, 0),
            Err(trouble) => match own_fault(trouble) {
                Some(status) => self.exception(system, index, exit, data_abort(exit, status)),
                None => self.trouble(system, index, exit, trouble),
            },
        }
    }

    /// Everything but device accesses and the measured call.
    #[inline(never)]
    pub(crate) fn other(&self, system: &impl System, index: u8, exit: Exit) -> Verdict {
        let exit = &exit;
        match exit.header.class() {
            Some(ExitClass::Hypercall | ExitClass::Firmware) => self.hypercall(system, index, exit),
            Some(ExitClass::Register) => self.register(system, index, exit),
            Some(ExitClass::Wait) => verdict(past(exit), 0),
            Some(ExitClass::Memory) if exit.header.has(ExitHeader::ALLOWED) => self.allowed(system, index, exit),
            Some(ExitClass::Debug) if exit.header.has(ExitHeader::STEPPED) => self.stepped(system, index, exit),
            Some(ExitClass::Debug) => self.debug(system, index, exit),
            Some(ExitClass::Float) => self.exception(system, index, exit, UNDEFINED),
            Some(ExitClass::Illegal) if is_undefined(exit.syndrome) => self.exception(system, index, exit, UNDEFINED),
            _ => self.crashed(system, index, exit),
        }
    }

    /// What belongs to a vCPU that the guest has.
    pub(crate) fn local(&self, index: u8) -> Option<&Shared<Local>> {
        self.locals.get(usize::from(index)).filter(|_| index < self.config.vcpus)
    }

    /// vCPUs of the guest.
    pub(crate) fn vcpus(&self) -> u8 {
        self.config.vcpus
    }

    fn hypercall(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        if exit.general[0] == hypercall::PING && exit.syndrome as u16 == 0 {
            return verdict(past(exit).register(0), exit.general[1].wrapping_add(1));
        }
        let told = self.telling_of(system);
        let request = hypercall::answer(system, &self.power, index, exit.syndrome as u16, exit.general, &told);
        match request {
            Request::Answer(value) => verdict(past(exit).register(0), value as u64),
            Request::StopSelf => verdict(Answer::STOP, 0),
            Request::SystemOff => self.end(system, index, &ToRoot::Ended(GuestEnd::Off)),
            Request::SystemReset => self.end(system, index, &ToRoot::Reset),
        }
    }

    /// A trapped system register.
    fn register(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        let Some(trapped) = Trapped::from_syndrome(exit.syndrome) else {
            // 32-bit code at user level, or an extension's instruction: neither exists for the guest.
            return self.exception(system, index, exit, UNDEFINED);
        };
        if let (false, Some(register)) = (trapped.is_read, memory_register(trapped.register)) {
            // It traps because somebody wants to know, and nobody minded.
            let value = trapped.written(exit.value);
            return match vcpu_at(index).set(system, register, value) {
                Ok(()) => verdict(past(exit), 0),
                Err(_) => self.crashed(system, index, exit),
            };
        }
        let Some(local) = self.locals.get(usize::from(index)) else { return self.crashed(system, index, exit) };
        let now = now(system);
        let outcome = {
            let mut local = local.lock(system);
            let Local { debug, timer, .. } = &mut *local;
            let before = timer.deadline();
            let vectors = self.vectors.load(Ordering::Acquire);
            let shown = Shown { gic: self.config.gic, aarch32: self.config.aarch32, vectors };
            let mut processor = Processor { debug, timer, now, shown };
            let outcome = if trapped.is_read {
                processor.read(trapped.register, |number| host_id(system, number))
            } else {
                processor.write(trapped.register, trapped.written(exit.value))
            };
            settle_timer(system, index, timer, now);
            if timer.deadline().is_some() && timer.deadline() != before {
                // The attending thread sleeps until an older deadline. Without that thread nobody listens.
                let _ = Signal::at(slot::SELF).raise(system);
            }
            outcome
        };
        match outcome {
            Outcome::Value(value) => verdict(past(exit).register(trapped.general), value),
            Outcome::Done => verdict(past(exit), 0),
            Outcome::Undefined => self.exception(system, index, exit, UNDEFINED),
        }
    }

    /// A debug exception that came to the hypervisor belongs to the guest: it gets it as if from its own level.
    fn debug(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        let from_below = exit.header.has(ExitHeader::USER);
        let syndrome = match class_of(exit.syndrome) {
            // Breakpoint, step, watchpoint: the odd class says "from the same level" (Arm ARM D24.2.40).
            0x30 | 0x32 | 0x34 if !from_below => exit.syndrome | 1 << 26,
            _ => exit.syndrome,
        };
        self.exception(system, index, exit, syndrome)
    }

    /// The guest gets an exception instead of what it wanted.
    fn exception(&self, system: &impl System, index: u8, exit: &Exit, syndrome: u64) -> Verdict {
        match vcpu_at(index).exception(system, syndrome, exit.virtual_address) {
            Ok(()) => verdict(Answer::RETRY, 0),
            Err(_) => self.crashed(system, index, exit),
        }
    }

    #[cold]
    #[inline(never)]
    fn trouble(&self, system: &impl System, index: u8, exit: &Exit, trouble: Trouble) -> Verdict {
        trellis_runtime::log!("{}: vCPU {index}: access to {:#x}: {trouble:?}", self.config.guest, exit.physical);
        self.crashed(system, index, exit)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn crashed(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        let crash = crash::collect(system, vcpu_at(index), index, exit);
        self.end(system, index, &ToRoot::Ended(GuestEnd::Crash(crash)))
    }

    /// The guest's last word: only the first counts. Its other vCPUs stop, then this one.
    #[cold]
    fn end(&self, system: &impl System, index: u8, report: &ToRoot) -> Verdict {
        if !self.ended.swap(true, Ordering::AcqRel) {
            for other in (0..self.config.vcpus).filter(|other| *other != index) {
                // One that never started is stopped already.
                let _ = vcpu_at(other).stop(system);
            }
            self.all_stop(system, index);
            if !self.outside.report(system, report) {
                trellis_runtime::log!("{}: no room for the report of its end", self.config.guest);
            }
            let _ = Signal::at(slot::ROOT).raise(system);
        }
        verdict(Answer::STOP, 0)
    }

    /// vCPUs that are not off.
    pub(crate) fn on(&self) -> u64 {
        self.power.on()
    }

    fn complete_for(&self, system: &impl System, words: &[u64; WORDS]) -> [u64; WORDS] {
        let [_, which, value, number, header, syndrome, physical, virtual_address, ..] = *words;
        let exit = Exit { header: ExitHeader(header), syndrome, physical, virtual_address, ..Exit::default() };
        let order = Order::from_number(which >> 8).ok_or(Refusal::BadArgument);
        let done = order.and_then(|order| self.complete(system, which as u8, &exit, order, value, number));
        match done {
            Ok((answer, value)) => [0, answer.0, 0, value, 0, 0, 0, 0, 0, 0],
            Err(refusal) => [1 + refusal as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    /// A watched access that shall happen, and p2m does not know how.
    #[cold]
    #[inline(never)]
    fn allowed(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        match self.complete(system, index, exit, Order::Do, 0, exit.general[3]) {
            Ok((answer, value)) => verdict(answer, value),
            // What cannot be looked at here the vCPU still does.
            Err(_) => verdict(Answer::RETRY.step(0), 0),
        }
    }

    /// The vCPU has executed the one instruction of a step of which the end was to be told.
    #[cold]
    #[inline(never)]
    fn stepped(&self, system: &impl System, index: u8, exit: &Exit) -> Verdict {
        let Some(local) = self.locals.get(usize::from(index)) else { return self.crashed(system, index, exit) };
        let on = Stopped { system, guest: Guest::at(slot::GUEST), vcpu: vcpu_at(index) };
        let said = local.lock(system).watched.stepped(&on, exit);
        said.map_or(verdict(Answer::RETRY, 0), |(answer, value)| verdict(answer, value))
    }

    /// Root: load and run.
    fn start(&self, system: &impl System) -> Result<(), Refusal> {
        self.forget(system);
        let lanes = vcpu_at(0).get_float(system, float_register::LENGTH).unwrap_or(0);
        self.vectors.store(lanes != 0, Ordering::Release);
        let (entry, x0) = (self.config.entry, self.config.x0);
        let told = self.telling_of(system);
        let started = boot::start(system, &self.config, &self.outside, || self.power.begins(0, entry, x0, &told));
        if let Err(refusal) = started {
            trellis_runtime::log!("{}: start refused: {refusal:?}", self.config.guest);
        }
        started
    }

    /// Root: stop and forget.
    fn reset(&self, system: &impl System) -> Result<(), Refusal> {
        for index in 0..self.config.vcpus {
            let _ = vcpu_at(index).stop(system);
        }
        self.tells.begin();
        self.forget(system);
        Ok(())
    }

    /// The platform as after power-on.
    fn forget(&self, system: &impl System) {
        self.power.reset();
        {
            let mut serial = self.serial.lock(system);
            *serial = Pl011::new();
            self.serial_flags.store(serial.flags(), Ordering::Release);
        }
        *self.clock.lock(system) = Pl031::new();
        *self.functions.lock(system) = Functions::new();
        self.distributor.lock(system).reset(system);
        for (index, local) in (0..self.config.vcpus).zip(&self.locals) {
            *local.lock(system) = Local::new();
            bank::reset(system, vcpu_at(index), 0);
        }
        self.ended.store(false, Ordering::Release);
    }
}

/// The devices, for one access of one vCPU.
struct On<'a, 'b, O, S> {
    server: &'a VcpuServer<'b, O>,
    system: &'a S,
    index: u8,
}

impl<O: Outside, S: System> Devices for On<'_, '_, O, S> {
    fn access(&self, address: u64, bytes: u8, write: Option<u64>) -> Option<u64> {
        self.server.access(self.system, self.index, address, bytes, write)
    }
}

/// Has p2m show zeroes at a guest page. When it does not (it may have no page tables left), reads go on coming here.
fn blank(system: &impl System, index: u8, page: u64) {
    let mut words = [0; WORDS];
    (words[0], words[1]) = (P2mOp::Blank as u64, page);
    let _ = Portal::at(slot::P2M + u64::from(index)).call(system, words);
}

#[inline]
fn transact(device: &mut impl bus::Registers, offset: u64, width: u8, write: Option<u64>) -> u64 {
    match write {
        None => bus::read(device, offset, width),
        Some(value) => {
            bus::write(device, offset, width, value);
            0
        }
    }
}

/// Classes of traps that mean "this does not exist here": unknown, 32-bit coprocessors, pointer authentication,
/// single-copy 64-byte accesses, SVE, exception return, SME (Arm ARM D24.2.40).
fn is_undefined(syndrome: u64) -> bool {
    matches!(class_of(syndrome), 0x00 | 0x03..=0x06 | 0x08..=0x0a | 0x0c | 0x19 | 0x1a | 0x1d)
}

fn settle_timer(system: &impl System, index: u8, timer: &mut PhysicalTimer, now: u64) {
    if let Some(level) = timer.level_change(now) {
        let bit = 1 << timer::LINE;
        let _ = vcpu_at(index).lines_write(system, LineField::Level, 0, bit, if level { bit } else { 0 });
    }
}

fn now(system: &impl System) -> u64 {
    system.invoke(Op::Clock, [0; 6]).map_or(0, |[ticks, ..]| ticks)
}

fn seconds(system: &impl System) -> u32 {
    let [ticks, hz, _] = system.invoke(Op::Clock, [0; 6]).unwrap_or([0; 3]);
    ticks.checked_div(hz).unwrap_or(0) as u32
}

/// An ID register of the machine, by `CRm << 3 | op2`; no capability is needed for these.
fn host_id(system: &impl System, number: u8) -> u64 {
    let arguments = [0, Fact::IdRegister as u64, number.into(), 0, 0, 0];
    system.invoke(Op::Fact, arguments).map_or(0, |[_, value, _]| value)
}

#[cfg(test)]
mod tests;
