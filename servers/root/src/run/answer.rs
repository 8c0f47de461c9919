// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers to the host: what is asked for is looked up part by part, what is ordered is done.

use super::rules::Listed;
use super::*;
use crate::host::{Pending, RATE, TURN};
use crate::load;
use trellis_idl::control::{
    Answer, Ask, FromHost, GuestState, Head, Life, Name, Part, Refused, ServerState, Silicon, SystemState, VERSION, VcpuState,
    ViewState, WatchWhat,
};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::badge::pauser;
use trellis_idl::wire::ViewAccess;
use trellis_runtime::ring::MAX_RECORD;

/// Milliseconds that are waited for exits to end, and for another CPU to be asked.
const EXITS: u32 = 100;
/// Events in one answer.
const EVENTS: u16 = 512;
/// ID_AA64MMFR1_EL1 as [`Fact::IdRegister`] names it.
const MEMORY_MODEL: u64 = 7 << 3 | 1;

/// What one step of an answer gives.
enum Next {
    /// A part, and there are more.
    Part(Part),
    /// Nothing.
    Skip,
    /// The last part.
    Last(Part),
}

impl<B: Board> Root<'_, B> {
    /// When the host wants to be attended to again; 0 = when it asks.
    pub(super) fn host_deadline(&self, system: &impl System) -> u64 {
        let waits = self.host.pending.is_some() || Consumer::new(self.board.ring(ring::ROOT_ASKED)).available() > 0;
        if !waits {
            return 0;
        }
        if self.exchange.is_some() {
            // At once.
            return 1;
        }
        let (now, hz) = clock(system);
        now + hz / RATE + 1
    }

    /// Takes questions and answers them, for a turn.
    #[inline(never)]
    pub(super) fn attend_host(&mut self, system: &impl System) {
        let mut said = false;
        for _ in 0..TURN {
            let Some(pending) = self.host.pending.take().or_else(|| self.next_question()) else { break };
            // While guests wait for a new monitor, nobody waits for the console.
            let has_room = Producer::new(self.board.ring(ring::ROOT_ANSWER)).space() >= MAX_RECORD + 2;
            if !has_room && self.exchange.is_none() {
                self.host.pending = Some(pending);
                break;
            }
            said |= self.answer(system, pending);
            if self.exchange.is_some() {
                // Others have their say after each step.
                break;
            }
        }
        if said {
            // A dead console is noticed by its own signal.
            let _ = self.console[0].raise(system);
        }
    }

    fn next_question(&mut self) -> Option<Pending> {
        // What is no question at all was not put there by our console.
        let heard = Consumer::new(self.board.ring(ring::ROOT_ASKED)).receive::<FromHost>()?.ok()?;
        Some(self.host.decide(heard))
    }

    /// One step of an answer. Back: whether something was said.
    fn answer(&mut self, system: &impl System, mut pending: Pending) -> bool {
        let step = pending.step;
        let next = match &pending.ask {
            Err(refused) => Next::Last(Part::Refused(*refused)),
            Ok(Ask::Status) => self.status(system, step),
            Ok(Ask::Views(name)) => self.named(name).map_or_else(refused, |guest| self.view(system, guest, step)),
            Ok(Ask::Load(window)) => self.load(system, *window, step),
            Ok(Ask::Pause(name)) => done(self.named(name).and_then(|guest| self.pause(system, guest))),
            Ok(Ask::Resume(name)) => done(self.named(name).and_then(|guest| self.let_go(system, guest))),
            Ok(Ask::Reboot(name)) => done(self.named(name).and_then(|guest| self.order_reboot(system, guest))),
            Ok(Ask::Events(from)) => self.event(system, *from, step),
            Ok(Ask::Watch(watch)) => match self.rules(system, watch, step) {
                Ok(Listed::Rule(state)) => Next::Part(Part::Rule(state)),
                Ok(Listed::Nothing) => Next::Skip,
                Ok(Listed::End) => Next::Last(Part::Done),
                // Behind the last one of a list.
                Err(Refused::Elsewhere) if watch.what == WatchWhat::List => Next::Last(Part::Done),
                Err(why) => refused(why),
            },
            Ok(Ask::Upload(offer)) => done(self.offered(offer)),
            Ok(Ask::Piece(piece)) => done(self.came(system, piece)),
            Ok(Ask::Swap(name)) if step < exchange::STEPS => {
                self.exchange(system, name, step);
                Next::Skip
            }
            // Now the host is told, when the console takes it.
            Ok(Ask::Swap(_)) => match (self.refused.take(), self.replaced.take()) {
                (Some(why), _) => refused(why),
                (None, Some(replaced)) => Next::Part(Part::Replaced(replaced)),
                (None, None) => Next::Last(Part::Done),
            },
            Ok(Ask::Kill(_)) if step > 0 => Next::Last(Part::Done),
            Ok(Ask::Kill(name)) if self.is_forward(name) => done(self.kill_own(system, self.forward.as_ref().map(|forward| forward.number))),
            Ok(Ask::Kill(name)) if self.is_shield(name) => done(self.kill_own(system, self.shield.as_ref().map(|shield| shield.number))),
            Ok(Ask::Kill(name)) => self.kill(system, name).map_or_else(refused, |replaced| Next::Part(Part::Replaced(replaced))),
        };
        let (part, is_last) = match next {
            Next::Skip => (None, false),
            Next::Part(part) => (Some(part), false),
            Next::Last(part) => (Some(part), true),
        };
        let number = pending.number;
        if !is_last {
            pending.step = step.saturating_add(1);
            self.host.pending = Some(pending);
        }
        let Some(part) = part else { return false };
        // There was room for the longest.
        Producer::new(self.board.ring(ring::ROOT_ANSWER)).send(&Answer { head: Head { version: VERSION, number }, part })
    }

    /// The guest with this name, if it has not ended.
    pub(super) fn named(&self, name: &str) -> Result<usize, Refused> {
        let guest = self.plan.guests.iter().position(|guest| guest.name == name).ok_or(Refused::NoGuest)?;
        if self.policy.has_ended(guest) { Err(Refused::Ended) } else { Ok(guest) }
    }

    /// Keeps a guest from running; all of it or nothing.
    fn pause(&mut self, system: &impl System, guest: usize) -> Result<(), Refused> {
        if let Err(refusal) = self.hold(system, guest) {
            // The refusal is what counts.
            let _ = self.resume(system, guest, 0);
            return Err(refusal.into());
        }
        self.host.set_paused(guest, true);
        Ok(())
    }

    /// Pauses every vCPU. Back: whether one of them has an exit that is still being served.
    fn hold(&self, system: &impl System, guest: usize) -> Result<bool, Refusal> {
        let mut serves = false;
        for vcpu in self.guests.get(guest).into_iter().flat_map(|guest| &guest.vcpus) {
            serves |= insist(system, || vcpu.pause(system))?;
        }
        Ok(serves)
    }

    /// Ends the host's pause of a guest, which goes on if no monitor pauses it too.
    fn let_go(&mut self, system: &impl System, guest: usize) -> Result<(), Refused> {
        if self.resume(system, guest, 0)? == 0 { Ok(()) } else { Err(Refused::StillPaused) }
    }

    /// Ends pauses of a guest: root's own, or of these badges. Back: whose are left.
    pub(super) fn resume(&mut self, system: &impl System, guest: usize, whose: u64) -> Result<u64, Refused> {
        self.host.set_paused(guest, false);
        let vcpus = self.guests.get(guest).into_iter().flat_map(|guest| &guest.vcpus);
        // Each of them, even if one is refused.
        let results = vcpus.map(|vcpu| insist(system, || vcpu.resume_for(system, whose)));
        let all = results.fold(Ok(0), |all: Result<u64, Refusal>, one| Ok(all? | one?));
        all.map_err(Refused::from)
    }

    /// Whether anybody pauses it.
    fn is_paused(&self, system: &impl System, guest: usize) -> bool {
        let first = self.guests.get(guest).and_then(|guest| guest.vcpus.first());
        let monitors = first.map_or(Ok(0), |vcpu| vcpu.paused_by(system)).unwrap_or(0) & !(1 << pauser::VCPU_SERVER);
        self.host.has_paused(guest) || monitors != 0
    }

    /// Starts a guest again: no exit shall be in the middle when its platform is forgotten.
    // Out of line, as `load` is: they take much of the stack, and not both at once.
    #[inline(never)]
    fn order_reboot(&mut self, system: &impl System, guest: usize) -> Result<(), Refused> {
        if let Err(refusal) = self.settle_exits(system, guest) {
            // The refusal is what counts.
            let _ = self.resume(system, guest, 0);
            return Err(refusal.into());
        }
        // What the guest itself asked for before that comes first.
        if let Some(plan) = self.plan.guests.get(guest) {
            self.listen(system, plan.vcpu.into());
        }
        if self.policy.has_ended(guest) {
            return Err(Refused::Ended);
        }
        self.happened(system, Event::Reboot(guest as u8));
        if self.policy.has_ended(guest) { Err(Refused::Server) } else { Ok(()) }
    }

    /// Pauses a guest and waits until no exit of it is being served; one that hangs is not waited for.
    fn settle_exits(&self, system: &impl System, guest: usize) -> Result<(), Refusal> {
        for _ in 0..EXITS {
            if !self.hold(system, guest)? {
                break;
            }
            moment(system);
        }
        Ok(())
    }

    /// The system, its guests, its servers, its silicon, lines of devices.
    fn status(&self, system: &impl System, step: u16) -> Next {
        let Some(guest) = usize::from(step).checked_sub(1) else { return Next::Part(Part::System(self.whole(system))) };
        let Some(server) = guest.checked_sub(self.plan.guests.len()) else {
            return self.guest_state(system, guest).map_or(Next::Skip, |state| Next::Part(Part::Guest(state)));
        };
        match server.checked_sub(self.plan.servers.len()) {
            None => self.server_state(server).map_or(Next::Skip, |state| Next::Part(Part::Server(state))),
            Some(0) => Next::Part(Part::Silicon(silicon(system))),
            Some(source) => self.source_state(system, source - 1),
        }
    }

    /// Whether irqfwd has this name.
    pub(super) fn is_forward(&self, name: &str) -> bool {
        self.forward.as_ref().is_some_and(|forward| self.name(forward.number) == name)
    }

    /// Whether smmu has this name.
    fn is_shield(&self, name: &str) -> bool {
        self.shield.as_ref().is_some_and(|shield| self.name(shield.number) == name)
    }

    /// Ends irqfwd or smmu by the host's wish, and has it made again.
    #[inline(never)]
    fn kill_own(&mut self, system: &impl System, number: Option<usize>) -> Result<(), Refused> {
        let number = number.ok_or(Refused::Server)?;
        if self.policy.has_stopped(number) {
            return Err(Refused::GivenUp);
        }
        self.happened(system, Event::Killed(number as u8));
        // Whoever could not make it again has none any more.
        let is_there = self.forward.is_some() && self.servers.get(number).is_some_and(|server| halted(system, server).is_none());
        if is_there { Ok(()) } else { Err(Refused::Server) }
    }

    /// One line of a device after the other.
    fn source_state(&self, system: &impl System, source: usize) -> Next {
        let Some(forward) = self.forward.as_ref().filter(|forward| source < forward.sources()) else {
            return Next::Last(Part::Done);
        };
        if self.policy.has_stopped(forward.number) {
            return Next::Skip;
        }
        forward.source(system, &self.board, self.plan, source).map_or(Next::Skip, |state| Next::Part(Part::Source(state)))
    }

    fn whole(&self, system: &impl System) -> SystemState {
        let (now, clock_hz) = clock(system);
        SystemState {
            name: name(self.plan.name),
            control: self.host.control(),
            up: now.saturating_sub(self.host.since),
            clock_hz,
            cpus: fact(system, Fact::Cpus, 0) as u8,
            kernel_bytes: fact(system, Fact::KernelMemory, 0),
            free_bytes: self.supply.free_bytes(),
        }
    }

    fn guest_state(&self, system: &impl System, guest: usize) -> Option<GuestState> {
        let (plan, made) = (self.plan.guests.get(guest)?, self.guests.get(guest)?);
        let (ended, reboots) = self.policy.life(guest);
        let life = match ended {
            Some(ended) => Life::Ended(ended),
            None if self.is_paused(system, guest) => Life::Paused,
            None => Life::Runs,
        };
        let on = match ended {
            None => made.vcpu.order(system, VcpuOp::Power as u64, []).map_or(0, |answer| answer[1]),
            Some(_) => 0,
        };
        let [left, _, views] = made.guest.info(system).unwrap_or([0; 3]);
        let vcpus = (0u8..).zip(&plan.cpus).map(|(index, cpu)| VcpuState {
            cpu: *cpu,
            is_on: on >> index & 1 == 1,
            view: made.guest.view_of(system, index.into()).unwrap_or(0),
        });
        Some(GuestState {
            guest: guest as u8,
            name: name(plan.name),
            life,
            reboots,
            memory_bytes: plan.memory_bytes,
            views: [plan.views, views as u16],
            tables: [plan.table_pages, left as u32],
            stopped: self.shield.as_ref().map_or(0, |shield| shield.stopped(guest)),
            vcpus: vcpus.collect(),
        })
    }

    fn server_state(&self, server: usize) -> Option<ServerState> {
        let (plan, built) = (self.plan.servers.get(server)?, self.servers.get(server)?);
        Some(ServerState {
            server: server as u8,
            name: name(plan.name),
            rank: plan.role.rank(),
            has_stopped: self.policy.has_stopped(server),
            threads: built.threads.len() as u8,
            memory_bytes: built.pages * PAGE,
        })
    }

    /// One view of a guest after the other.
    fn view(&self, system: &impl System, guest: usize, view: u16) -> Next {
        let Some((plan, made)) = self.plan.guests.get(guest).zip(self.guests.get(guest)) else { return Next::Last(Part::Done) };
        if view >= plan.views.max(1) {
            return Next::Last(Part::Done);
        }
        let default = match view {
            0 => Ok(ViewAccess::DEFAULT.0.into()),
            _ => made.p2m.order(system, P2mOp::ViewDefault as u64, [view.into()]).map(|answer| answer[1]),
        };
        // One that is not there.
        let Ok(default) = default else { return Next::Skip };
        let is_in = |index: &u64| made.guest.view_of(system, *index) == Ok(view);
        let vcpus = (0..plan.cpus.len() as u64).filter(is_in).fold(0, |bits, index| bits | 1 << index);
        Next::Part(Part::View(ViewState { view, default: default as u16, vcpus }))
    }

    /// One event after the other, then where they end.
    fn event(&mut self, system: &impl System, from: u64, step: u16) -> Next {
        if step == 0 {
            self.gather_all(system);
            self.asked_from = Some(from);
        }
        let Some(at) = self.asked_from.take() else { return Next::Last(Part::Done) };
        let (found, next) = {
            let events = self.board.events().lock(system);
            (events.from(at), events.next())
        };
        match found {
            Some(event) if step < EVENTS => {
                self.asked_from = Some(event.sequence.saturating_add(1));
                Next::Part(Part::Event(event))
            }
            // More may have come meanwhile; whoever asks again gets them.
            more => Next::Part(Part::Until(more.map_or(next, |event| event.sequence), clock(system).1)),
        }
    }

    /// One CPU after the other.
    #[inline(never)]
    fn load(&self, system: &impl System, window: u16, cpu: u16) -> Next {
        if u64::from(cpu) >= fact(system, Fact::Cpus, 0).min(trellis_idl::boot::MAX_CPUS as u64) {
            return Next::Last(Part::Done);
        }
        let (_, hz) = clock(system);
        let ticks = u64::from(window).saturating_mul(hz / 1000);
        load::of(system, self.plan, cpu as u8, ticks).map_or(Next::Skip, |load| Next::Part(Part::Load(load)))
    }
}

/// Tries again while another thread of this CPU is asking another CPU just now.
fn insist<T>(system: &impl System, mut operation: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    for _ in 0..EXITS {
        match operation() {
            Err(Refusal::Again) => moment(system),
            other => return other,
        }
    }
    operation()
}

/// A millisecond for others.
fn moment(system: &impl System) {
    let (now, hz) = clock(system);
    system.wait(0, now + hz / 1000 + 1);
}

fn refused(refused: Refused) -> Next {
    Next::Last(Part::Refused(refused))
}

fn done(result: Result<(), Refused>) -> Next {
    result.map_or_else(refused, |()| Next::Last(Part::Done))
}

/// A name of the plan; the composer took none that is longer.
fn name(text: &str) -> Name {
    Name::try_from(text).unwrap_or_default()
}

fn fact(system: &impl System, fact: Fact, detail: u64) -> u64 {
    MACHINE.fact(system, fact, detail).unwrap_or(0)
}

fn silicon(system: &impl System) -> Silicon {
    Silicon {
        midr: fact(system, Fact::Midr, 0),
        features: fact(system, Fact::Silicon, 0),
        predictors: fact(system, Fact::Predictors, 0),
        memory_model: fact(system, Fact::IdRegister, MEMORY_MODEL),
        list_registers: fact(system, Fact::ListRegisters, 0) as u8,
        vectors: fact(system, Fact::VectorLengths, 0) as u16,
    }
}
