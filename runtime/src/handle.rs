// SPDX-License-Identifier: MIT OR Apache-2.0
//! Capabilities by the kind of what they name: an operation on the wrong kind does not compile.
//!
//! Each method is one system call; what it needs and why it may be refused stands at its [`Op`].

use crate::system::System;
use core::marker::PhantomData;
use trellis_idl::kernel::{
    ANY_VIEW, Access, ExitClass, Fact, Groups, Inside, LineField, LineState, Op, PAUSE, PAUSERS, PLACE, Refusal, Rights, Seat,
    Service, ThreadFault, Traps, VcpuRegister, WORDS,
};

/// Kinds of objects, as types.
pub mod kind {
    /// A protection domain.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Domain {}
    /// A thread.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Thread {}
    /// A synchronous entry into a thread.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Portal {}
    /// Bits of a thread's signal word.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Signal {}
    /// A virtual processor.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Vcpu {}
    /// A guest.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Guest {}
    /// A run of memory.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Frames {}
    /// A physical interrupt.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Line {}
    /// The machine itself.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Machine {}
    /// Who watches a guest.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Session {}
}

/// A capability of a known kind: a slot of this server's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle<K> {
    slot: u64,
    kind: PhantomData<K>,
}

/// A protection domain.
pub type Domain = Handle<kind::Domain>;
/// A thread.
pub type Thread = Handle<kind::Thread>;
/// A synchronous entry into a thread.
pub type Portal = Handle<kind::Portal>;
/// Bits of a thread's signal word.
pub type Signal = Handle<kind::Signal>;
/// A virtual processor.
pub type Vcpu = Handle<kind::Vcpu>;
/// A guest.
pub type Guest = Handle<kind::Guest>;
/// A run of memory.
pub type Frames = Handle<kind::Frames>;
/// A physical interrupt.
pub type Line = Handle<kind::Line>;
/// The machine itself.
pub type Machine = Handle<kind::Machine>;
/// Who watches a guest.
pub type Session = Handle<kind::Session>;

/// What an operation without results says.
pub type Done = Result<(), Refusal>;

/// One operation: the arguments given, zeroes behind them.
#[inline(always)]
fn ask<const N: usize>(system: &impl System, op: Op, given: [u64; N]) -> Result<[u64; 3], Refusal> {
    const { assert!(N <= 6) };
    let mut arguments = [0; 6];
    let mut index = 0;
    while index < N {
        arguments[index] = given[index];
        index += 1;
    }
    system.invoke(op, arguments)
}

/// One operation without results.
#[inline(always)]
fn tell<const N: usize>(system: &impl System, op: Op, given: [u64; N]) -> Done {
    ask(system, op, given).map(|_| ())
}

/// One operation that is done piece by piece, to its end. (Another thread of this CPU may be asking another CPU just now.)
fn finish(system: &impl System, op: Op, slot: u64) -> Done {
    loop {
        match ask(system, op, [slot]) {
            Ok([0, ..]) => return Ok(()),
            Ok(_) | Err(Refusal::Again) => {}
            Err(refusal) => return Err(refusal),
        }
    }
}

/// How much of a CPU, as an argument: time in the low half, period in the high half, in µs; 0 = no budget.
pub const fn budget(time_us: u32, period_us: u32) -> u64 {
    time_us as u64 | (period_us as u64) << 32
}

/// A guest page in a view, as an argument.
#[inline(always)]
const fn viewed(view: u16, page: u64) -> u64 {
    (view as u64) << 48 | page
}

/// The clock: ticks now, and ticks a second.
#[inline(always)]
pub fn clock(system: &impl System) -> (u64, u64) {
    match system.invoke(Op::Clock, [0; 6]) {
        Ok([now, hz, _]) => (now, hz),
        Err(_) => (0, 0),
    }
}

impl<K> Handle<K> {
    /// The capability in this slot.
    #[inline(always)]
    pub const fn at(slot: u64) -> Handle<K> {
        Handle { slot, kind: PhantomData }
    }

    /// The slot.
    #[inline(always)]
    pub const fn slot(self) -> u64 {
        self.slot
    }

    /// [`Op::Grant`]: a copy into another domain's table.
    pub fn grant(self, system: &impl System, to: Domain, slot: u64, keep: Rights) -> Done {
        tell(system, Op::Grant, [self.slot, to.slot, slot, keep.0.into()])
    }

    /// The same with a badge, where this has none.
    pub fn grant_badged(self, system: &impl System, to: Domain, slot: u64, keep: Rights, badge: u64) -> Done {
        tell(system, Op::Grant, [self.slot, to.slot, slot, keep.0.into(), badge])
    }

    /// [`Op::Drop`]: the slot is empty afterwards.
    pub fn forget(self, system: &impl System) -> Done {
        tell(system, Op::Drop, [self.slot])
    }

    /// [`Op::Revoke`]: every other capability to the object is dead afterwards.
    pub fn revoke(self, system: &impl System) -> Done {
        let mut mark = 0;
        loop {
            match ask(system, Op::Revoke, [self.slot, mark])? {
                [0, ..] => return Ok(()),
                [_, more, _] => mark = more,
            }
        }
    }
}

/// What is known about a run of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramesInfo {
    /// Pages.
    pub pages: u64,
    /// First machine page, 0 when this capability may not know.
    pub first: u64,
    /// Registers of a device.
    pub is_device: bool,
}

impl Frames {
    /// [`Op::FramesSplit`]: makes a run of its own of a part, in an empty slot.
    pub fn split(self, system: &impl System, first: u64, pages: u64, slot: u64) -> Result<Frames, Refusal> {
        tell(system, Op::FramesSplit, [self.slot, first, pages, slot])?;
        Ok(Frames::at(slot))
    }

    /// [`Op::FramesReclaim`].
    pub fn reclaim(self, system: &impl System) -> Done {
        finish(system, Op::FramesReclaim, self.slot)
    }

    /// [`Op::FramesInfo`].
    pub fn info(self, system: &impl System) -> Result<FramesInfo, Refusal> {
        let [pages, first, device] = ask(system, Op::FramesInfo, [self.slot])?;
        Ok(FramesInfo { pages, first, is_device: device == 1 })
    }
}

impl Domain {
    /// [`Op::DomainCreate`].
    pub fn create(system: &impl System, tables: Frames, slots: u64, rank: u8, slot: u64) -> Result<Domain, Refusal> {
        tell(system, Op::DomainCreate, [tables.slot, slots, rank.into(), slot])?;
        Ok(Domain::at(slot))
    }

    /// [`Op::DomainMap`]: `pages` of the run from its page `first` on.
    pub fn map(
        self, system: &impl System, address: u64, frames: Frames, first: u64, pages: u64, access: Access,
    ) -> Done {
        tell(system, Op::DomainMap, [self.slot, address, frames.slot, first, pages, access.0])
    }

    /// [`Op::DomainUnmap`].
    pub fn unmap(self, system: &impl System, address: u64, pages: u64) -> Done {
        tell(system, Op::DomainUnmap, [self.slot, address, pages])
    }

    /// [`Op::DomainDestroy`].
    pub fn destroy(self, system: &impl System) -> Done {
        finish(system, Op::DomainDestroy, self.slot)
    }
}

/// What a thread is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThreadSetup {
    /// Its CPU.
    pub cpu: u8,
    /// Its priority, or [`trellis_idl::kernel::PASSIVE`].
    pub priority: u64,
    /// Virtual address of its message buffer page.
    pub buffer: u64,
    /// See [`budget`].
    pub budget: u64,
}

impl Thread {
    /// [`Op::ThreadCreate`].
    pub fn create(system: &impl System, domain: Domain, setup: ThreadSetup, slot: u64) -> Result<Thread, Refusal> {
        let ThreadSetup { cpu, priority, buffer, budget } = setup;
        tell(system, Op::ThreadCreate, [domain.slot, cpu.into(), priority, slot, buffer, budget])?;
        Ok(Thread::at(slot))
    }

    /// [`Op::ThreadStart`].
    pub fn start(self, system: &impl System, entry: u64, stack: u64, x0: u64) -> Done {
        tell(system, Op::ThreadStart, [self.slot, entry, stack, x0])
    }

    /// [`Op::ThreadDestroy`].
    pub fn destroy(self, system: &impl System) -> Done {
        tell(system, Op::ThreadDestroy, [self.slot])
    }

    /// [`Op::ThreadFault`]: one of the fixed words.
    pub fn fault(self, system: &impl System, word: ThreadFault) -> Result<u64, Refusal> {
        self.fault_word(system, word as u64)
    }

    /// [`Op::ThreadFault`]: general register `n` (0–30) as it was.
    pub fn fault_general(self, system: &impl System, n: u8) -> Result<u64, Refusal> {
        self.fault_word(system, ThreadFault::General as u64 + u64::from(n))
    }

    fn fault_word(self, system: &impl System, word: u64) -> Result<u64, Refusal> {
        ask(system, Op::ThreadFault, [self.slot, word]).map(|[_, value, _]| value)
    }

    /// [`Op::ThreadSupervise`]; `patience` is how many microseconds it may take for an answer (0: any).
    pub fn supervise(self, system: &impl System, by: Signal, patience: u64) -> Done {
        tell(system, Op::ThreadSupervise, [self.slot, by.slot, patience])
    }

    /// [`Op::ThreadFloat`]: the thread may use floating-point registers, saved in these frames.
    pub fn float(self, system: &impl System, area: Frames) -> Done {
        tell(system, Op::ThreadFloat, [self.slot, area.slot])
    }

    /// [`Op::PortalCreate`].
    pub fn portal(self, system: &impl System, badge: u64, slot: u64) -> Result<Portal, Refusal> {
        tell(system, Op::PortalCreate, [self.slot, badge, slot])?;
        Ok(Portal::at(slot))
    }

    /// [`Op::SignalCreate`].
    pub fn signal(self, system: &impl System, bits: u64, slot: u64) -> Result<Signal, Refusal> {
        tell(system, Op::SignalCreate, [self.slot, bits, slot])?;
        Ok(Signal::at(slot))
    }
}

impl Portal {
    /// [`Op::Call`].
    #[inline(always)]
    pub fn call(self, system: &impl System, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        system.call(self.slot, words)
    }
}

impl Signal {
    /// [`Op::Signal`].
    #[inline(always)]
    pub fn raise(self, system: &impl System) -> Done {
        tell(system, Op::Signal, [self.slot])
    }
}

/// What a guest is made with.
#[derive(Clone, Copy, Debug)]
pub struct GuestShape {
    /// Views it may have, its host map among them.
    pub views: u16,
    /// What it may do about them itself.
    pub inside: Inside,
    /// Lanes of 128 bits of its scalable vectors; 0 = it has none.
    pub lanes: u8,
    /// Its vCPUs.
    pub vcpus: u64,
}

impl Guest {
    /// [`Op::GuestCreate`].
    pub fn create(system: &impl System, tables: Frames, slot: u64, shape: GuestShape) -> Result<Guest, Refusal> {
        let vcpus = if shape.lanes == 0 { 0 } else { shape.vcpus };
        let arguments = [tables.slot, shape.views.into(), slot, shape.lanes.into(), vcpus, shape.inside.0];
        tell(system, Op::GuestCreate, arguments)?;
        Ok(Guest::at(slot))
    }

    /// [`Op::GuestSwap`] of `1 << size` bytes: whether it was written, and what was there.
    pub fn swap(
        self, system: &impl System, address: u64, size: u8, expected: [u64; 2], new: [u64; 2],
    ) -> Result<(bool, [u64; 2]), Refusal> {
        let place = u64::from(size) << 56 | address & (u64::MAX >> 8);
        let arguments = [self.slot, place, expected[0], expected[1], new[0], new[1]];
        let [written, low, high] = ask(system, Op::GuestSwap, arguments)?;
        Ok((written == 1, [low, high]))
    }

    /// [`Op::GuestInfo`]: pages of tables left, views it may have, views it has.
    pub fn info(self, system: &impl System) -> Result<[u64; 3], Refusal> {
        ask(system, Op::GuestInfo, [self.slot])
    }

    /// [`Op::ViewCreate`]: at this index, or the lowest free one.
    pub fn create_view(self, system: &impl System, view: Option<u16>) -> Result<u16, Refusal> {
        let [view, ..] = ask(system, Op::ViewCreate, [self.slot, view.map_or(ANY_VIEW, u64::from)])?;
        Ok(view as u16)
    }

    /// [`Op::ViewDestroy`].
    pub fn destroy_view(self, system: &impl System, view: u16) -> Done {
        tell(system, Op::ViewDestroy, [self.slot, view.into()])
    }

    /// [`Op::ViewReset`], to its end.
    pub fn reset_view(self, system: &impl System, view: u16) -> Done {
        let mut page = 0;
        loop {
            [page, ..] = ask(system, Op::ViewReset, [self.slot, viewed(view, page)])?;
            if page == 0 {
                return Ok(());
            }
        }
    }

    /// [`Op::ViewCopy`]. Back: pages done, leaves made.
    pub fn copy_view(
        self, system: &impl System, view: u16, (page, pages): (u64, u64), access: Access, largest: u64,
    ) -> Result<(u64, u64), Refusal> {
        let [done, leaves, _] =
            ask(system, Op::ViewCopy, [self.slot, viewed(view, page), pages, access.0, largest])?;
        Ok((done, leaves))
    }

    /// [`Op::ViewRemap`].
    pub fn remap(self, system: &impl System, view: u16, page: u64, other: u64, access: Access) -> Done {
        tell(system, Op::ViewRemap, [self.slot, viewed(view, page), other, access.0])
    }

    /// [`Op::ViewSwitch`].
    pub fn switch_view(self, system: &impl System, vcpu: u64, view: u16) -> Done {
        tell(system, Op::ViewSwitch, [self.slot, vcpu, view.into()])
    }

    /// [`Op::ViewShow`].
    pub fn show_view(self, system: &impl System, view: u16, shown: bool) -> Done {
        tell(system, Op::ViewShow, [self.slot, view.into(), shown.into()])
    }

    /// [`Op::ViewOf`].
    pub fn view_of(self, system: &impl System, vcpu: u64) -> Result<u16, Refusal> {
        ask(system, Op::ViewOf, [self.slot, vcpu]).map(|[view, ..]| view as u16)
    }

    /// [`Op::GuestMap`]: `pages` of the run from its page `first` on, at guest page `page`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the operation has as many")]
    pub fn map(
        self, system: &impl System, view: u16, page: u64, frames: Frames, first: u64, pages: u64, access: Access,
    ) -> Done {
        tell(system, Op::GuestMap, [self.slot, viewed(view, page), frames.slot, first, pages, access.0])
    }

    /// [`Op::GuestUnmap`].
    pub fn unmap(self, system: &impl System, view: u16, page: u64, pages: u64) -> Done {
        tell(system, Op::GuestUnmap, [self.slot, viewed(view, page), pages])
    }

    /// [`Op::GuestProtect`].
    pub fn protect(self, system: &impl System, view: u16, page: u64, pages: u64, access: Access) -> Done {
        tell(system, Op::GuestProtect, [self.slot, viewed(view, page), pages, access.0])
    }

    /// [`Op::GuestRead`]. Back: bytes copied.
    pub fn read(self, system: &impl System, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        system.read_guest(self.slot, address, bytes)
    }

    /// [`Op::GuestWrite`]. Back: bytes copied.
    pub fn write(self, system: &impl System, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        system.write_guest(self.slot, address, bytes)
    }

    /// [`Op::GuestDestroy`].
    pub fn destroy(self, system: &impl System) -> Done {
        finish(system, Op::GuestDestroy, self.slot)
    }
}

/// How a physical line and a vCPU belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tie {
    /// Not at all.
    No = 0,
    /// The guest's end of the interrupt is the physical one's.
    Ends = 1,
    /// And it goes there without a server, as long as it is sent there.
    Direct = 2,
}

/// What a vCPU is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuSetup {
    /// Its CPU.
    pub cpu: u8,
    /// Its number in the guest.
    pub number: u8,
    /// Its priority.
    pub priority: u8,
    /// See [`budget`].
    pub budget: u64,
}

impl Vcpu {
    /// [`Op::VcpuCreate`].
    pub fn create(system: &impl System, guest: Guest, setup: VcpuSetup, slot: u64) -> Result<Vcpu, Refusal> {
        let VcpuSetup { cpu, number, priority, budget } = setup;
        tell(system, Op::VcpuCreate, [guest.slot, cpu.into(), number.into(), slot, priority.into(), budget])?;
        Ok(Vcpu::at(slot))
    }

    /// [`Op::VcpuCreate`] of a place for the vCPU of this number, which lives on another CPU.
    pub fn place(system: &impl System, guest: Guest, setup: VcpuSetup, slot: u64) -> Result<Vcpu, Refusal> {
        let VcpuSetup { cpu, number, priority, budget } = setup;
        let number = PLACE | u64::from(number);
        tell(system, Op::VcpuCreate, [guest.slot, cpu.into(), number, slot, priority.into(), budget])?;
        Ok(Vcpu::at(slot))
    }

    /// [`Op::VcpuMove`]: the place that was made for it names it from now on.
    pub fn go(self, system: &impl System) -> Done {
        tell(system, Op::VcpuMove, [self.slot])
    }

    /// [`Op::VcpuRoute`].
    pub fn route(self, system: &impl System, class: ExitClass, portal: Portal, groups: Groups, badge: u64) -> Done {
        tell(system, Op::VcpuRoute, [self.slot, class as u64, portal.slot, groups.0, badge])
    }

    /// [`Op::VcpuWindow`].
    pub fn window(self, system: &impl System, index: u8, page: u64, pages: u64, class: ExitClass) -> Done {
        tell(system, Op::VcpuWindow, [self.slot, index.into(), page, pages, class as u64])
    }

    /// [`Op::VcpuGet`].
    pub fn get(self, system: &impl System, register: VcpuRegister) -> Result<u64, Refusal> {
        ask(system, Op::VcpuGet, [self.slot, register as u64]).map(|[_, value, _]| value)
    }

    /// [`Op::VcpuGet`] of x`n`.
    pub fn get_general(self, system: &impl System, n: u8) -> Result<u64, Refusal> {
        ask(system, Op::VcpuGet, [self.slot, u64::from(n & 31)]).map(|[_, value, _]| value)
    }

    /// [`Op::VcpuGet`] of a floating-point register ([`trellis_idl::kernel::float_register`]).
    pub fn get_float(self, system: &impl System, register: u64) -> Result<u64, Refusal> {
        ask(system, Op::VcpuGet, [self.slot, register]).map(|[_, value, _]| value)
    }

    /// [`Op::VcpuSet`] of a floating-point register.
    pub fn set_float(self, system: &impl System, register: u64, value: u64) -> Done {
        tell(system, Op::VcpuSet, [self.slot, register, value])
    }

    /// [`Op::VcpuSet`].
    pub fn set(self, system: &impl System, register: VcpuRegister, value: u64) -> Done {
        tell(system, Op::VcpuSet, [self.slot, register as u64, value])
    }

    /// [`Op::VcpuSet`] of x`n`.
    pub fn set_general(self, system: &impl System, n: u8, value: u64) -> Done {
        tell(system, Op::VcpuSet, [self.slot, u64::from(n & 31), value])
    }

    /// [`Op::VcpuTraps`].
    pub fn set_traps(self, system: &impl System, traps: Traps) -> Done {
        tell(system, Op::VcpuTraps, [self.slot, traps.0])
    }

    /// [`Op::VcpuStart`].
    pub fn start(self, system: &impl System) -> Done {
        tell(system, Op::VcpuStart, [self.slot])
    }

    /// [`Op::VcpuLaunch`].
    pub fn launch(self, system: &impl System, pc: u64, x0: u64) -> Done {
        tell(system, Op::VcpuLaunch, [self.slot, pc, x0])
    }

    /// [`Op::VcpuReset`].
    pub fn reset(self, system: &impl System) -> Done {
        tell(system, Op::VcpuReset, [self.slot])
    }

    /// [`Op::VcpuStop`].
    pub fn stop(self, system: &impl System) -> Done {
        tell(system, Op::VcpuStop, [self.slot])
    }

    /// [`Op::VcpuStop`] with [`PAUSE`]: keeps it from running. True: an exit of it is being served still.
    pub fn pause(self, system: &impl System) -> Result<bool, Refusal> {
        ask(system, Op::VcpuStop, [self.slot, PAUSE]).map(|[served, ..]| served == 1)
    }

    /// [`Op::VcpuStart`] with [`PAUSE`]: that is over. Back: who else pauses it, a bit for each badge.
    pub fn resume(self, system: &impl System) -> Result<u64, Refusal> {
        self.resume_for(system, 0)
    }

    /// Who pauses it, a bit for each badge; asked by who controls it.
    pub fn paused_by(self, system: &impl System) -> Result<u64, Refusal> {
        // The end of a pause that nobody has changes nothing.
        self.resume_for(system, 1 << (PAUSERS - 1))
    }

    /// The same for these badges, a bit each: who controls it may say that their pauses are over.
    pub fn resume_for(self, system: &impl System, badges: u64) -> Result<u64, Refusal> {
        ask(system, Op::VcpuStart, [self.slot, PAUSE, badges]).map(|[others, ..]| others)
    }

    /// [`Op::VcpuDestroy`].
    pub fn destroy(self, system: &impl System) -> Done {
        tell(system, Op::VcpuDestroy, [self.slot])
    }

    /// [`Op::VcpuException`].
    pub fn exception(self, system: &impl System, syndrome: u64, address: u64) -> Done {
        tell(system, Op::VcpuException, [self.slot, syndrome, address])
    }

    /// [`Op::LinesWrite`].
    #[inline(always)]
    pub fn lines_write(self, system: &impl System, field: LineField, first: u64, which: u32, values: u32) -> Done {
        tell(system, Op::LinesWrite, [self.slot, field as u64, first, which.into(), values.into()])
    }

    /// [`Op::LinesRead`].
    #[inline(always)]
    pub fn lines_read(self, system: &impl System, field: LineField, first: u64) -> Result<u32, Refusal> {
        ask(system, Op::LinesRead, [self.slot, field as u64, first]).map(|[values, ..]| values as u32)
    }

    /// [`Op::LinesPriority`].
    pub fn lines_priority(self, system: &impl System, first: u64, priorities: u32, which: u8) -> Done {
        tell(system, Op::LinesPriority, [self.slot, first, priorities.into(), which.into()])
    }

    /// [`Op::LinesPriorityRead`].
    pub fn lines_priority_read(self, system: &impl System, first: u64) -> Result<u32, Refusal> {
        ask(system, Op::LinesPriorityRead, [self.slot, first]).map(|[priorities, ..]| priorities as u32)
    }

    /// [`Op::LinesWrite`]: this vCPU's software interrupts of one sender become pending, or not.
    pub fn software_write(self, system: &impl System, sender: u8, which: u32, pending: bool) -> Done {
        let values = if pending { which.into() } else { 0 };
        let field = LineField::Pending as u64;
        tell(system, Op::LinesWrite, [self.slot, field, 0, which.into(), values, u64::from(sender) + 1])
    }

    /// [`Op::LinesRead`]: which software interrupts of this sender are pending.
    pub fn software_read(self, system: &impl System, sender: u8) -> Result<u32, Refusal> {
        let read = [self.slot, LineField::Pending as u64, 0, u64::from(sender) + 1];
        ask(system, Op::LinesRead, read).map(|[values, ..]| values as u32)
    }

    /// [`Op::LineTake`]: a guest-wide line leaves this vCPU.
    pub fn line_take(self, system: &impl System, line: u64) -> Result<LineState, Refusal> {
        ask(system, Op::LineTake, [self.slot, line]).map(|[state, ..]| LineState(state))
    }

    /// [`Op::LineTarget`]: the guest-wide line goes to this vCPU.
    pub fn line_target(self, system: &impl System, line: u64, state: LineState) -> Done {
        tell(system, Op::LineTarget, [self.slot, line, state.0])
    }

    /// [`Op::LineTie`].
    pub fn tie(self, system: &impl System, line: Line, tie: Tie) -> Done {
        tell(system, Op::LineTie, [self.slot, line.slot, tie as u64])
    }

    /// [`Op::LinePass`].
    #[inline]
    pub fn pass(self, system: &impl System, service: Service) -> Done {
        tell(system, Op::LinePass, [self.slot, service.0])
    }

    /// [`Op::LinesEnable`].
    pub fn lines_enable(self, system: &impl System, enabled: bool) -> Done {
        tell(system, Op::LinesEnable, [self.slot, enabled.into()])
    }
}

/// Who is asked in a session, and what is owed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// Counts changes of who is asked.
    pub epoch: u64,
    /// Who is.
    pub seat: Seat,
    /// vCPUs whose event is owed, one bit each.
    pub owed: u64,
}

impl Session {
    /// [`Op::SessionCreate`].
    pub fn create(system: &impl System, guest: Guest, number: u64, slot: u64) -> Result<Session, Refusal> {
        tell(system, Op::SessionCreate, [guest.slot, number, slot])?;
        Ok(Session::at(slot))
    }

    /// [`Op::SessionPlace`].
    pub fn place(self, system: &impl System, vcpu: u64, seat: u64, portal: Option<Portal>) -> Done {
        tell(system, Op::SessionPlace, [self.slot, vcpu, seat, portal.map_or(0, Portal::slot)])
    }

    /// [`Op::SessionCommit`] from whatever it is now, whoever changes it meanwhile.
    pub fn commit(self, system: &impl System, seat: Seat) -> Done {
        loop {
            let epoch = self.info(system)?.epoch;
            match tell(system, Op::SessionCommit, [self.slot, epoch, seat as u64]) {
                Err(Refusal::Gone) => {}
                done => return done,
            }
        }
    }

    /// [`Op::SessionSettle`].
    pub fn settle(self, system: &impl System, vcpu: u64) -> Result<u64, Refusal> {
        ask(system, Op::SessionSettle, [self.slot, vcpu]).map(|[what, ..]| what)
    }

    /// [`Op::SessionInfo`].
    pub fn info(self, system: &impl System) -> Result<SessionInfo, Refusal> {
        let [epoch, seat, owed] = ask(system, Op::SessionInfo, [self.slot])?;
        Ok(SessionInfo { epoch, seat: Seat::from_number(seat).ok_or(Refusal::BadState)?, owed })
    }
}

impl Line {
    /// [`Op::LineBind`].
    pub fn bind(self, system: &impl System, to: Signal) -> Done {
        tell(system, Op::LineBind, [self.slot, to.slot])
    }

    /// [`Op::LineAck`].
    pub fn acknowledge(self, system: &impl System) -> Done {
        tell(system, Op::LineAck, [self.slot])
    }

    /// [`Op::LineAck`]: from now on it comes to this CPU.
    pub fn open_at(self, system: &impl System, cpu: u8) -> Done {
        tell(system, Op::LineAck, [self.slot, 0, u64::from(cpu) + 1])
    }

    /// [`Op::LineAck`]: it does not come any more.
    pub fn mask(self, system: &impl System) -> Done {
        tell(system, Op::LineAck, [self.slot, 1])
    }

    /// [`Op::LineForward`]: the number of its source, and how many interrupts went straight to a vCPU so far.
    pub fn forward(self, system: &impl System, guest_line: u8) -> Result<(u16, u64), Refusal> {
        ask(system, Op::LineForward, [self.slot, guest_line.into()]).map(|[source, direct, _]| (source as u16, direct))
    }

    /// [`Op::LineRelease`]. False: somebody has its source still.
    pub fn release(self, system: &impl System) -> Result<bool, Refusal> {
        ask(system, Op::LineRelease, [self.slot]).map(|[more, ..]| more == 0)
    }
}

/// [`Op::QueueNext`]: hands a service on, if there is one, and waits for what comes into this CPU's queue or for other bits.
/// Back: the bits, and the next service if there is one, with the ticks that it was in the queue.
#[inline(always)]
pub fn queue_next(
    system: &impl System, served: Option<(Service, Vcpu)>, others: u64, deadline: u64,
) -> Result<(u64, Option<(Service, u64)>), Refusal> {
    let (vcpu, service) = served.map_or((0, 0), |(service, vcpu)| (vcpu.slot, service.0));
    let [bits, service, waited] = system.queue_next([vcpu, service, others, deadline])?;
    Ok((bits, waited.checked_sub(1).map(|ticks| (Service(service), ticks))))
}

impl Machine {
    /// [`Op::LineCreate`].
    pub fn line(self, system: &impl System, line: u32, edge: bool, slot: u64) -> Result<Line, Refusal> {
        tell(system, Op::LineCreate, [self.slot, line.into(), slot, edge.into()])?;
        Ok(Line::at(slot))
    }

    /// [`Op::CpuRetire`].
    pub fn retire(self, system: &impl System, cpu: u8) -> Done {
        tell(system, Op::CpuRetire, [self.slot, cpu.into()])
    }

    /// [`Op::SystemOff`]: off.
    pub fn off(self, system: &impl System) -> Done {
        tell(system, Op::SystemOff, [self.slot, 0])
    }

    /// [`Op::SystemOff`]: again from the start.
    pub fn restart(self, system: &impl System) -> Done {
        tell(system, Op::SystemOff, [self.slot, 1])
    }

    /// [`Op::LogRead`]: bytes of the kernel's log that are in this thread's buffer now.
    pub fn log_read(self, system: &impl System) -> Result<u64, Refusal> {
        ask(system, Op::LogRead, [self.slot]).map(|[bytes, ..]| bytes)
    }

    /// [`Op::Fact`]. `detail` says which one, where a fact has several.
    pub fn fact(self, system: &impl System, fact: Fact, detail: u64) -> Result<u64, Refusal> {
        ask(system, Op::Fact, [self.slot, fact as u64, detail]).map(|[_, value, _]| value)
    }

    /// [`Op::QueueServe`]: this thread's CPU has its queue served by who gets this signal.
    pub fn queue_serve(self, system: &impl System, signal: Signal, adopt: bool) -> Done {
        tell(system, Op::QueueServe, [self.slot, signal.slot, adopt.into()])
    }

    /// [`Op::QueueTake`]: how many, and those.
    #[inline]
    pub fn queue_take(self, system: &impl System) -> Result<(u64, [Service; 2]), Refusal> {
        ask(system, Op::QueueTake, [self.slot]).map(|[count, first, second]| (count, [Service(first), Service(second)]))
    }

    /// [`Op::QueueDone`].
    pub fn queue_done(self, system: &impl System, service: Service) -> Done {
        tell(system, Op::QueueDone, [self.slot, service.0])
    }

    /// [`Op::TraceRead`]: records of a CPU that are in this thread's buffer now, the place behind them, and the place of
    /// the next one to be noted.
    pub fn trace_read(self, system: &impl System, cpu: u8, from: u64) -> Result<[u64; 3], Refusal> {
        ask(system, Op::TraceRead, [self.slot, cpu.into(), from])
    }
}
