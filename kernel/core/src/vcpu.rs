// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual processor: its routes, its windows, and how it stops and goes on.

use crate::float;
use crate::grace::Mark;
use crate::lines::{self, Lines};
use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, NEVER, VcpuContext};
use crate::notice::Notice;
use crate::patience;
use crate::pool::{Empty, Id, align::Page};
use crate::portal::{self, Client, Portal};
use crate::schedule::{self, BudgetId};
use crate::session::Watch;
use crate::shared::{GUESTS, Shared};
use crate::step::{self, Step};
use crate::thread::{Thread, ThreadState};
use crate::trap::Next;
use crate::view::Views;
use trellis_idl::kernel::{EXIT_CLASSES, ExitClass, Groups};

/// What a vCPU is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum VcpuState {
    /// Does not run until `VcpuStart`.
    Stopped,
    /// Runs as soon as its budget does.
    Running,
    /// Stopped for an exit that somebody serves.
    Awaiting,
    /// Stopped for an exit, in the queue of a busy server.
    Queued,
    /// Waits for an interrupt.
    Waiting,
    /// Stopped for an event that nobody serves now; it keeps its words ([`crate::session`]).
    Owed,
    /// It is not here yet: a place for a vCPU of another CPU ([`crate::passage`]).
    Vacant,
}

/// Whether somebody outside keeps a vCPU from running, unseen by its servers ([`trellis_idl::kernel::Op::VcpuStop`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Pause {
    /// Nobody does.
    No,
    /// It would not run anyhow.
    Still,
    /// It runs once the pause is over.
    Runs,
}

/// Where a class of exits goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The portal's name; 0 = none.
    pub portal: u64,
    /// What the server learns about who came.
    pub badge: u64,
    /// Register groups that travel.
    pub groups: u64,
}

impl Route {
    /// Every class stops the vCPU.
    pub const NONE: [Route; EXIT_CLASSES] = [Route { portal: 0, badge: 0, groups: 0 }; EXIT_CLASSES];
}

/// Guest pages without a leaf whose faults are a device's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// First page.
    pub first: u64,
    /// Pages; 0 = unused.
    pub count: u64,
    /// Class whose route its faults take.
    pub class: u8,
}

pub use trellis_idl::kernel::WINDOWS;

/// What vCPU names name, without the machine in the type.
#[derive(Debug)]
pub struct VcpuName;

/// A virtual processor.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Vcpu<M: Machine> {
    /// Saved registers; first, so that the machine's entry code finds it at the object's own address.
    pub context: M::Vcpu,
    /// What it is doing.
    pub state: VcpuState,
    /// Something must be looked at before it runs: a pending line.
    pub hazard: bool,
    /// Stop instead of going on at the next answer.
    pub stop_wanted: bool,
    /// Somebody keeps it from running.
    pub pause: Pause,
    /// Who does: a bit for each badge of its capabilities ([`trellis_idl::kernel::PAUSERS`]).
    pub pausers: u16,
    /// Counts exits that were cancelled.
    pub turn: u32,
    /// One route a class.
    pub routes: [Route; EXIT_CLASSES],
    /// Device windows.
    pub windows: [Window; WINDOWS],
    /// Windows in use: the first this many.
    pub window_count: u8,
    /// Its number in its guest.
    pub number: u8,
    /// Index of its guest.
    pub guest: u16,
    /// Its index in the pool.
    pub index: u16,
    /// The next in the queue it waits in.
    pub next: Client,
    /// Badge of the route it took, while it waits in a queue.
    pub queued_badge: u64,
    /// Groups of that route.
    pub queued_groups: u64,
    /// Whose its open event is.
    pub watch: Watch,
    /// Its guest's views.
    pub views: Views,
    /// The one instruction that it executes in another view.
    pub step: Step,
    /// What it wants to be told itself.
    pub notice: Notice,
    /// Virtual interrupt state.
    pub lines: Lines,
    /// Where its floating-point registers are.
    pub float: float::State,
    /// It came from another CPU: lines may still be put into its mail without a word to this one, by whoever has not
    /// left the kernel since. 0 = nobody can.
    pub moved: Mark,
}

impl<M: Machine> Vcpu<M> {
    /// Its servers and its guest take it for stopped: it may be started, reset and moved.
    pub fn is_still(&self) -> bool {
        self.state == VcpuState::Stopped && self.pause != Pause::Runs
    }

    /// It shall not run after a pause either.
    pub fn settle(&mut self) {
        if self.pause == Pause::Runs {
            self.pause = Pause::Still;
        }
    }
}

impl<M: Machine> Empty for Vcpu<M> {
    type Align = Page;
    const EMPTY: Self = Vcpu {
        context: M::Vcpu::EMPTY,
        state: VcpuState::Stopped,
        hazard: false,
        stop_wanted: false,
        pause: Pause::No,
        pausers: 0,
        turn: 0,
        routes: Route::NONE,
        windows: [Window { first: 0, count: 0, class: 0 }; WINDOWS],
        window_count: 0,
        number: 0,
        guest: 0,
        index: 0,
        next: Client::None,
        queued_badge: 0,
        queued_groups: 0,
        watch: Watch { session: 0, thread: 0 },
        views: Views::NONE,
        step: Step::NONE,
        notice: Notice::NONE,
        lines: Lines::EMPTY,
        float: float::State::EMPTY,
        moved: 0,
    };
}

impl<M: Machine> Vcpu<M> {
    /// Its own budget.
    pub const fn budget(&self) -> BudgetId {
        THREADS as BudgetId + self.index
    }

    /// The words of its exit, without those of groups that do not travel.
    pub fn exit_words(&self) -> [u64; 10] {
        let mut words = *self.context.exit();
        mask_words(&mut words, Groups(self.queued_groups));
        words
    }

    /// The class of a memory fault: a device's, if it lies in a window.
    #[inline(always)]
    pub fn class_of(&self, page: u64) -> u8 {
        let mut i = 0;
        while i < self.window_count as usize {
            let window = &self.windows[i & (WINDOWS - 1)];
            if page.wrapping_sub(window.first) < window.count {
                return window.class;
            }
            i += 1;
        }
        ExitClass::Memory as u8
    }
}

/// Clears the words of groups that do not travel.
#[inline(always)]
pub fn mask_words(words: &mut [u64; 10], groups: Groups) {
    if groups.0 & Groups::PC.0 == 0 {
        words[4] = 0;
    }
    if groups.0 & Groups::VALUE.0 == 0 {
        words[5] = 0;
    }
    if groups.0 & Groups::GENERAL.0 == 0 {
        words[6] = 0;
        words[7] = 0;
        words[8] = 0;
        words[9] = 0;
    }
}

/// A vCPU stopped: its exit goes to the thread behind the class's route, if that is free.
#[inline(always)]
pub fn exited<M: Machine>(local: &mut Local<M>, index: u16, class: u8) -> Next {
    let vcpu = local.vcpus.at(index);
    let route = vcpu.routes[class as usize & (EXIT_CLASSES - 1)];
    let turn = vcpu.turn;
    let Some(portal) = local.portals.get(Id::<Portal>::from_word(route.portal)) else {
        return Next::Slow;
    };
    let id = Id::<Thread<M>>::from_word(portal.thread);
    let name = local.vcpus.name_at(index).0;
    let budget = local.budget;
    let Some(server) = local.threads.get_mut(id) else {
        return Next::Slow;
    };
    if server.state != ThreadState::Open {
        return Next::Slow;
    }
    server.state = ThreadState::Ready;
    server.client = Client::Vcpu(name, turn);
    server.budget = budget;
    local.vcpus.at_mut(index).state = VcpuState::Awaiting;
    local.running = Running::Thread(id.index() as u16);
    Next::Deliver { thread: id.index() as u16, vcpu: index, badge: route.badge, groups: route.groups }
}

/// An exit that the hot door could not deliver: its server is busy, or there is none (then the vCPU stops).
pub fn exited_slow<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, class: u8,
) -> Next {
    let Running::Vcpu(index) = local.running else {
        return schedule::go_on(local, shared, machine);
    };
    let vcpu = local.vcpus.at_mut(index);
    let route = vcpu.routes[class as usize & (EXIT_CLASSES - 1)];
    vcpu.queued_badge = route.badge;
    vcpu.queued_groups = route.groups;
    let client = Client::Vcpu(local.vcpus.name_at(index).0, local.vcpus.at(index).turn);
    let server = local.portals.get(Id::<Portal>::from_word(route.portal)).map(|portal| portal.thread);
    let server = server.and_then(|name| {
        let id = Id::<Thread<M>>::from_word(name);
        let state = local.threads.get(id)?.state;
        let index = id.index() as u16;
        let answers = !matches!(state, ThreadState::Ended | ThreadState::Faulted) && patience::refusal(local, index).is_ok();
        answers.then_some(index)
    });
    match server {
        Some(server) => portal::arrive(local, shared, machine, server, client),
        None => {
            stopped(local, shared, machine, index);
            schedule::block_as(local, shared, machine, Running::Idle)
        }
    }
}

/// A vCPU is stopped until somebody starts it, and so is the step it may have been in.
pub(crate) fn stopped<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) {
    let vcpu = local.vcpus.at_mut(index);
    vcpu.state = VcpuState::Stopped;
    vcpu.stop_wanted = false;
    if vcpu.step.is_active() {
        step::end(local, shared, machine, index);
    }
}

/// The running vCPU waits for an interrupt: none pending, so its budget sleeps until a line or its timer.
pub fn waits<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let Running::Vcpu(index) = local.running else {
        return schedule::go_on(local, shared, machine);
    };
    local.vcpus.at_mut(index).context.advance();
    lines::refresh(local, machine, index);
    // A step is over with that; what wakes it up waits for the step.
    if local.vcpus.at(index).lines.has_deliverable() || local.vcpus.at(index).step.is_active() {
        return schedule::go_on(local, shared, machine);
    }
    let vcpu = local.vcpus.at_mut(index);
    vcpu.state = VcpuState::Waiting;
    let budget = vcpu.budget();
    // While its state stays in the hardware the timer's own interrupt would come as well; the earlier of both counts.
    let deadline = vcpu.context.timer_deadline();
    if deadline != NEVER {
        schedule::set_deadline(local, machine, budget, deadline);
    }
    schedule::block_as(local, shared, machine, Running::Vcpu(index))
}

/// Something became pending for a vCPU that waits: it can run.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn wake<M: Machine>(local: &mut Local<M>, index: u16) {
    let vcpu = local.vcpus.at_mut(index);
    vcpu.hazard = true;
    if vcpu.state == VcpuState::Waiting {
        vcpu.state = VcpuState::Running;
        let budget = vcpu.budget();
        schedule::wake(local, budget, Running::Vcpu(index));
    }
}

/// The virtual timer of a vCPU that does not run came due: it must be awake to take the interrupt, which arrives by
/// itself once the vCPU's state is in the hardware.
pub fn timer_while_away<M: Machine>(local: &mut Local<M>, index: u16) {
    if local.vcpus.at(index).state != VcpuState::Stopped {
        wake(local, index);
    }
}

/// Its name ends; its guest has no vCPU on this CPU any more if it was the last.
pub(crate) fn remove<M: Machine>(local: &mut Local<M>, shared: &Shared, index: u16, guest: u16) {
    let id = local.vcpus.name_at(index);
    local.vcpus.remove(id);
    if !local.vcpus.names().any(|id| local.vcpus.at(id.index() as u16).guest == guest) {
        shared.guests[guest as usize % GUESTS].lock().cpus &= !(1 << local.cpu);
    }
}

/// The last thing before a vCPU runs: pending lines into list registers.
pub fn enter<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) -> Next {
    let vcpu = local.vcpus.at_mut(index);
    if vcpu.stop_wanted {
        stopped(local, shared, machine, index);
        return schedule::block_as(local, shared, machine, Running::Idle);
    }
    vcpu.state = VcpuState::Running;
    if vcpu.hazard {
        vcpu.hazard = false;
        float::entering(local, machine, index);
        lines::refresh(local, machine, index);
    }
    Next::Guest(index)
}
