// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running system: builds it in order, then listens to servers and carries out what [`crate::policy`] decides.

use crate::build::{self, Built, Time};
use crate::estate::{self, Ends};
use crate::forward::{self, Forward};
use crate::guest::{self, Made};
use crate::host::Host;
use crate::policy::{Action, Death, Event, Policy};
use crate::smmu::Shield;
use crate::supply::{Lot, Supply};
use crate::trace::{self, Tracer};
use crate::upload::Upload;
use crate::watch::{self, Monitor, Ways};
use crate::wire::Rings;
use crate::{Board, StartError, Step, check, wire};
use heapless::Vec;
use trellis_idl::control::{Refused, Replaced};
use trellis_idl::kernel::{Fact, Refusal, Rights, ThreadFault};
use trellis_idl::interface;
use trellis_idl::layout::{DEVICE, console_signal, ring, root_signal, root_slot, slot};
use trellis_idl::plan::{MAX_GUESTS, MAX_MONITORS, MAX_SERVERS, Plan, Role};
use trellis_idl::wire::{Fault, GuestEnd, IrqfwdOp, P2mOp, Report, ToRoot, VcpuOp};
use trellis_runtime::handle::clock;
use trellis_runtime::{Consumer, Frames, Machine, Producer, Signal, System, Thread, log, message};

/// The console's priority and share of its CPU: above all guests, so that one that spins cannot silence the others,
/// and bounded, so that one that floods cannot take their time.
const CONSOLE: Time = Time { priority: 220, budget: trellis_runtime::handle::budget(5_000, 20_000) };
/// Reports taken from a server before others get their turn.
const MAX_REPORTS: usize = 8;
/// Times that a report is tried again, a millisecond apart, while the console has no room for it.
const PATIENCE: u32 = 100;

use exchange::Exchange;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);

/// The system as root knows it.
#[derive(Debug)]
pub struct Root<'a, B> {
    board: B,
    plan: &'a Plan<'a>,
    supply: Supply,
    servers: Vec<Built, MAX_SERVERS>,
    guests: Vec<Made, MAX_GUESTS>,
    /// What each guest is made of, with its servers.
    lots: Vec<(Lot, Rings), MAX_GUESTS>,
    /// irqfwd, if a guest owns a device.
    forward: Option<Forward>,
    /// smmu, if the SMMU keeps a device to its guest's memory.
    shield: Option<Shield>,
    /// What each guest's monitors have of it.
    ways: Vec<Ways, MAX_GUESTS>,
    monitors: Vec<Monitor, MAX_MONITORS>,
    /// Which guests run, one bit each: a new monitor finds them so.
    running: u32,
    /// Wakes the console: output; and the end.
    console: [Signal; 2],
    policy: Policy,
    /// A server has more to say than was taken.
    unheard: u64,
    tracer: Tracer,
    /// Who asks through the console.
    host: Host,
    /// The CPU of the thread that faulted last.
    faulted: Option<u8>,
    /// What became of the monitor that was made again last, for whoever asked for it.
    replaced: Option<Replaced>,
    /// Why another one was not put into its place.
    refused: Option<Refused>,
    /// The one that the host gets next.
    asked_from: Option<u64>,
    /// What the host is sending.
    upload: Option<Upload>,
    /// A monitor that is about to take another's place.
    exchange: Option<Exchange>,
    off: bool,
}

impl<'a, B: Board> Root<'a, B> {
    /// Makes the system and lets it run.
    pub fn start(
        system: &impl System, board: B, plan: &'a Plan<'a>, log_to: impl FnOnce(u64),
    ) -> Result<Root<'a, B>, StartError> {
        let mut root = Root::make(system, board, plan, log_to)?;
        root.begin(system)?;
        Ok(root)
    }

    /// Makes the console, and nothing runs yet. `log_to` learns the signal that wakes the console as soon as root's log ring
    /// is there.
    pub fn make(
        system: &impl System, board: B, plan: &'a Plan<'a>, log_to: impl FnOnce(u64),
    ) -> Result<Root<'a, B>, StartError> {
        check::check(plan)?;
        let mut supply = Supply::new(system);
        let console = build_console(system, &board, &mut supply, plan)?;
        let output = console_signals(system, &mut supply, &console)?;
        wire::root(system, &mut supply, console.domain)?;
        log_to(output[0].slot());
        estate::supervise(system, &mut supply, 0, &console, |_| 0)?;
        console_device(system, &mut supply, &console, plan.uart_line)?;
        let servers = core::iter::repeat_n(console, plan.servers.len()).collect();
        let (guests, lots) = (Vec::new(), Vec::new());
        let policy = Policy::new(plan);
        let cpus = if plan.trace { MACHINE.fact(system, Fact::Cpus, 0).unwrap_or(0) } else { 0 };
        let tracer = Tracer::new(cpus);
        let host = Host::new(plan.control, clock(system).0);
        Ok(Root { host, board, plan, supply, servers, guests, lots, console: output, policy, unheard: 0, tracer, forward: None, shield: None, ways: Vec::new(), monitors: Vec::new(), running: 0, faulted: None, replaced: None, refused: None, asked_from: None, upload: None, exchange: None, off: false })
    }

    /// Makes all guests and servers. Not in [`Root::make`]: while a root is made and given to its caller the stack is full of it.
    #[inline(never)]
    fn make_all(&mut self, system: &impl System) -> Result<(), StartError> {
        for index in 0..self.plan.guests.len() {
            self.make_guest(system, index)?;
        }
        self.make_forward(system)?;
        self.make_shield(system)?;
        self.make_monitors(system)
    }

    /// Makes a guest and its servers for the first time.
    #[inline(never)]
    fn make_guest(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        let plan = self.plan.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        let console = self.servers.first().ok_or(StartError::Plan("no console"))?.domain;
        let rings = wire::rings(system, &mut self.supply, console, index, plan)?;
        self.supply.begin();
        let made = self.make_whole(system, index, &rings)?;
        let lot = self.supply.end()?;
        let servers = [plan.p2m, plan.vcpu].map(|number| self.servers.get(usize::from(number)));
        let [Some(p2m), Some(vcpu)] = servers else { return Err(StartError::Plan("a guest without servers")) };
        let ways = watch::ways(system, &mut self.supply, plan, &made, [p2m, vcpu])?;
        let room = self.guests.push(made).is_ok() && self.lots.push((lot, rings)).is_ok() && self.ways.push(ways).is_ok();
        if room { Ok(()) } else { Err(StartError::Plan("too many guests")) }
    }

    /// Makes irqfwd, if a guest owns a device.
    #[inline(never)]
    fn make_forward(&mut self, system: &impl System) -> Result<(), StartError> {
        let console = self.servers.first().ok_or(StartError::Plan("no console"))?;
        let ends = Ends { console, output: self.console[0] };
        let made = forward::make(system, &self.board, &mut self.supply, self.plan, &self.guests, ends)?;
        let Some((forward, built)) = made else { return Ok(()) };
        if let Some(place) = self.servers.get_mut(forward.number) {
            *place = built;
        }
        self.forward = Some(forward);
        Ok(())
    }

    /// Makes irqfwd or smmu anew, and lets it run.
    #[inline(never)]
    fn revive(&mut self, system: &impl System, number: usize) -> Result<(), StartError> {
        if self.shield.as_ref().is_some_and(|shield| shield.number == number) {
            return self.revive_shield(system, number);
        }
        let mut forward = self.forward.take().ok_or(StartError::Plan("no such server"))?;
        self.remake(system, &mut forward, forward::CONTROL)?;
        log!("{} is made again", self.name(number));
        self.forward = Some(forward);
        Ok(())
    }

    /// Makes irqfwd of the program that it has now in place of the one that runs or died, and lets it run. It may take so many
    /// microseconds for an answer.
    #[inline(never)]
    fn remake(&mut self, system: &impl System, forward: &mut Forward, patience: u64) -> Result<(), StartError> {
        let (number, missing) = (forward.number, StartError::Plan("no such server"));
        let [Some(console), Some(dead)] = [0, number].map(|number| self.servers.get(number)) else { return Err(missing) };
        let ends = Ends { console, output: self.console[0] };
        let policy = &self.policy;
        let goes_on = |guest: usize| !policy.has_ended(guest);
        let (supply, guests) = (&mut self.supply, &self.guests);
        let built = forward.again(system, &self.board, supply, self.plan, dead, guests, goes_on, ends)?;
        // What the dead one still had to say is not the new one's.
        Consumer::new(self.board.ring(ring::root_report(number))).clear();
        let started = build::start(system, &built);
        if let Some(place) = self.servers.get_mut(number) {
            *place = built;
        }
        started?;
        forward.be_patient(system, patience)?;
        forward.attach(system)
    }

    /// A guest's lines are forwarded from now on, or no more. An irqfwd that is lost over it is made again and asked again: else a
    /// function would go on as the life before left it.
    fn forward(&mut self, system: &impl System, op: IrqfwdOp, guest: usize) {
        let owns = self.plan.guests.get(guest).is_some_and(|guest| !guest.devices.is_empty());
        for _ in 0..2 {
            let Some(forward) = self.forward.as_ref().filter(|forward| owns && !self.policy.has_stopped(forward.number)) else { return };
            let number = forward.number;
            if forward.ask(system, op, guest).is_ok() {
                return;
            }
            let Some(death) = self.stopped(system, number) else { return };
            log!("server {} is lost", self.name(number));
            self.faulted = self.faulted_on(system, number);
            // A death while another one is dealt with is none of a guest's.
            self.happened(system, Event::ServerStopped(number as u8, death, seconds(system)));
        }
    }

    /// Makes a guest and its servers of what the supply hands out, and remembers the servers.
    fn make_whole(&mut self, system: &impl System, index: usize, rings: &Rings) -> Result<Made, StartError> {
        let console = self.servers.first().ok_or(StartError::Plan("no console"))?;
        let ends = Ends { console, output: self.console[0] };
        let whole = estate::make(system, &self.board, &mut self.supply, self.plan, index, rings, ends)?;
        let guest = self.plan.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        for (number, built) in [(guest.p2m, whole.p2m), (guest.vcpu, whole.vcpu)] {
            if let Some(place) = self.servers.get_mut(usize::from(number)) {
                *place = built;
            }
        }
        Ok(whole.made)
    }

    /// Lets the servers run, then the guests.
    #[inline(never)]
    pub fn begin(&mut self, system: &impl System) -> Result<(), StartError> {
        self.make_all(system)?;
        // Before irqfwd lets devices touch memory.
        self.start_shield(system)?;
        let shield = self.shield.as_ref().map(|shield| shield.number);
        for (_, built) in self.servers.iter().enumerate().filter(|(number, _)| Some(*number) != shield) {
            build::start(system, built)?;
        }
        let fact = |fact| MACHINE.fact(system, fact, 0).unwrap_or(0);
        let started = Report::Started {
            boot_ticks: fact(Fact::BootTicks),
            clock_hz: fact(Fact::ClockHz),
            kernel_memory: fact(Fact::KernelMemory),
            version: interface::HOST.version,
            schema: interface::HOST.schema,
        };
        self.report(system, &started);
        let lengths = guest::lengths(system);
        for (index, guest) in (0u8..).zip(&self.plan.guests) {
            if let Err(end) = guest::lanes(guest.sve, lengths) {
                self.happened(system, Event::Ended(index, end));
            }
        }
        if let Some(forward) = &self.forward {
            forward.attach(system)?;
        }
        self.attach_monitors(system);
        for guest in 0..self.guests.len() {
            if self.policy.has_ended(guest) {
                continue;
            }
            if let Err(why) = self.start_guest(system, guest) {
                self.not_started(system, guest, why);
            }
        }
        Ok(())
    }

    /// Waits until somebody has something to say, and deals with it.
    pub fn step(&mut self, system: &impl System) {
        let all = (1u64 << self.servers.len()) - 1 | root_signal::ASKED;
        let bits = match core::mem::take(&mut self.unheard) {
            0 => system.wait(all, self.deadline(system)),
            unheard => unheard,
        };
        self.drain(system);
        for index in (0..self.servers.len()).filter(|index| bits & root_signal::server(*index) != 0) {
            self.listen(system, index);
        }
        self.attend_host(system);
    }

    /// When something is to be done though nobody says anything; 0 = never.
    fn deadline(&self, system: &impl System) -> u64 {
        match (self.tracer.deadline(system), self.host_deadline(system)) {
            (0, other) | (other, 0) => other,
            (trace, host) => trace.min(host),
        }
    }

    /// What a server has to say: its reports, then whether it still runs.
    fn listen(&mut self, system: &impl System, index: usize) {
        let mut left = MAX_REPORTS;
        while let Some(event) = self.next_event(system, index) {
            if let Some(event) = event {
                self.happened(system, event);
            }
            left -= 1;
            if left == 0 {
                self.unheard |= root_signal::server(index);
                break;
            }
        }
        self.gather(system, index);
        if self.attend_exchange(system, index) {
            return;
        }
        if !self.policy.has_stopped(index)
            && let Some(record) = self.stopped(system, index)
        {
            log!("server {} is lost", self.name(index));
            // Asked now: what follows may destroy the thread.
            self.faulted = self.faulted_on(system, index);
            self.happened(system, Event::ServerStopped(index as u8, record, seconds(system)));
        }
    }

    /// The next report of a server, and what it means: a server speaks for its own guest only.
    fn next_event(&mut self, system: &impl System, index: usize) -> Option<Option<Event>> {
        let role = self.plan.servers.get(index)?.role;
        // The console has no such ring.
        let guest = match role {
            Role::P2m(guest) | Role::Vcpu(guest) => guest,
            Role::Irqfwd | Role::Smmu | Role::Monitor => u8::MAX,
            Role::Console => return None,
        };
        let own = self.monitors.iter().find(|monitor| monitor.number == index).map(|monitor| monitor.reports(self.plan));
        let page = own.unwrap_or(ring::root_report(index));
        let report = Consumer::new(self.board.ring(page)).receive::<ToRoot>()?;
        Some(match (report, role) {
            (Ok(ToRoot::Ended(end)), Role::Vcpu(_)) => Some(Event::Ended(guest, end)),
            (Ok(ToRoot::Reset), Role::Vcpu(_)) => Some(Event::Reset(guest)),
            (Ok(ToRoot::Stop(place)), Role::Monitor) => self.condemned(index, place),
            (Ok(ToRoot::Ready), _) => None,
            (Ok(ToRoot::DeviceStopped(stopped)), Role::Smmu) => {
                if let Some(shield) = &mut self.shield {
                    shield.count(&stopped);
                }
                self.report(system, &Report::DeviceStopped(stopped));
                None
            }
            (Ok(ToRoot::Failed(why)), _) => {
                log!("server {} failed: {why}", self.name(index));
                Some(Event::ServerStopped(index as u8, Death::Ended, seconds(system)))
            }
            _ => {
                log!("server {} says what is not its to say", self.name(index));
                None
            }
        })
    }

    /// Whether a thread of a server has stopped or takes too long for an answer, and how.
    fn stopped(&self, system: &impl System, index: usize) -> Option<Death> {
        halted(system, self.servers.get(index)?)
    }

    /// Decides and acts until nothing follows any more.
    #[inline(never)]
    fn happened(&mut self, system: &impl System, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            for action in self.policy.decide(event) {
                match action {
                    Action::Report(report) => {
                        self.report(system, &report);
                        self.report_last(system, &report);
                        if let Report::GuestEnded { guest, .. } = report {
                            self.host.set_paused(guest.into(), false);
                            self.forward(system, IrqfwdOp::Unbind, guest.into());
                            if let Err(why) = self.hide_devices(system, guest.into()) {
                                log!("devices of guest {guest} may see its memory still: {why:?}");
                            }
                        }
                    }
                    Action::Stop(guest) => self.stop_guest(system, guest.into()),
                    Action::Reboot(guest) => {
                        if let Err(why) = self.reboot(system, guest.into()) {
                            log!("guest {guest} cannot start again: {why:?}");
                            next = Some(Event::NotStarted(guest));
                        }
                    }
                    Action::Rebuild(guest) => {
                        if let Err(why) = self.rebuild(system, guest.into()) {
                            log!("guest {guest} cannot be made again: {why:?}");
                            self.stop_guest(system, guest.into());
                            next = Some(Event::NotStarted(guest));
                        }
                    }
                    Action::Revive(server) => {
                        if let Err(why) = self.revive(system, server.into()) {
                            log!("{} cannot be made again: {why:?}", self.name(server.into()));
                        }
                    }
                    Action::Relieve(server) => next = self.relieve_or_not(system, server),
                    Action::Abandon(server) => self.abandon(system, server.into()),
                    Action::Off => self.off(system),
                }
            }
        }
    }

    /// Starts a guest whose memory is empty.
    fn start_guest(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        let guest = self.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        message::attach(system, guest.p2m, interface::P2M).step("agree with p2m")?;
        message::attach(system, guest.vcpu, interface::VCPU).step("agree with vcpu")?;
        guest.p2m.order(system, P2mOp::Ready as u64, []).step("wait for p2m")?;
        self.launch(system, index)
    }

    /// Lets a guest run whose servers are ready, once its monitors watch it.
    fn launch(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        self.show_devices(system, index)?;
        self.have_watched(system, index)?;
        if self.policy.has_ended(index) {
            return Ok(());
        }
        let guest = self.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        guest.vcpu.order(system, VcpuOp::Start as u64, []).step("start a guest")?;
        self.running |= 1 << index;
        Ok(())
    }

    fn not_started(&mut self, system: &impl System, index: usize, why: StartError) {
        log!("guest {index} cannot start: {why:?}");
        // A server that stopped meanwhile is the reason to give.
        let plan = self.plan.guests.get(index).map(|guest| (guest.p2m, guest.vcpu));
        for server in plan.into_iter().flat_map(|(p2m, vcpu)| [p2m, vcpu]) {
            self.listen(system, server.into());
        }
        self.happened(system, Event::NotStarted(index as u8));
    }

    /// Starts a guest again: empty memory, forgotten platform, then as at first.
    fn reboot(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        self.running &= !(1 << index);
        self.forward(system, IrqfwdOp::Disconnect, index);
        self.hide_devices(system, index)?;
        let guest = self.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        let p2m = self.plan.guests.get(index).and_then(|plan| self.servers.get(usize::from(plan.p2m)));
        guest.vcpu.order(system, VcpuOp::Reset as u64, []).step("reset a guest")?;
        guest.memory.reclaim(system).step("reclaim memory")?;
        guest::grant_memory(system, guest.memory, p2m.ok_or(StartError::Plan("no p2m"))?)?;
        guest.p2m.order(system, P2mOp::Reset as u64, []).step("reset maps")?;
        self.forward(system, IrqfwdOp::Connect, index);
        self.launch(system, index)?;
        // Whoever paused it paused what it was before.
        let ended = self.resume(system, index, u64::MAX);
        ended.map(drop).map_err(|_| StartError::Refused("end a pause", Refusal::BadState))
    }

    /// Makes a guest and its servers anew, of the same memory, and starts it.
    #[inline(never)]
    fn rebuild(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        let missing = StartError::Plan("no such guest");
        let (lot, rings) = *self.lots.get(index).ok_or(missing)?;
        self.forward(system, IrqfwdOp::Unbind, index);
        self.hide_devices(system, index)?;
        let (plan, made) = (self.plan.guests.get(index).ok_or(missing)?, self.guests.get(index).ok_or(missing)?);
        let numbers = [usize::from(plan.p2m), usize::from(plan.vcpu)];
        let [Some(p2m), Some(vcpu)] = numbers.map(|number| self.servers.get(number)) else { return Err(missing) };
        self.running &= !(1 << index);
        let ways = self.ways.get(index).ok_or(missing)?;
        watch::bar(system, plan, made, ways)?;
        for vcpu in made.vcpus.iter().filter(|_| !plan.devices.is_empty()) {
            // irqfwd has copies, which nothing else would take out of their slots.
            vcpu.revoke(system).step("revoke a vCPU")?;
        }
        estate::take_apart(system, &lot, [p2m, vcpu], made)?;
        watch::clear(system, ways);
        // What the dead ones still had to say is not the new ones'.
        for number in numbers {
            Consumer::new(self.board.ring(ring::root_report(number))).clear();
        }
        let made = self.again(system, index, &lot, &rings)?;
        if let Some(place) = self.guests.get_mut(index) {
            *place = made;
        }
        for number in numbers {
            if let Some(built) = self.servers.get(number) {
                build::start(system, built)?;
            }
        }
        if let (Some(forward), Some(made)) = (&self.forward, self.guests.get(index))
            && let Some(built) = self.servers.get(forward.number)
        {
            forward::grant_guest(system, self.plan, index, made, built)?;
        }
        self.forward(system, IrqfwdOp::Bind, index);
        self.ways_again(system, index)?;
        self.host.set_paused(index, false);
        self.start_guest(system, index)
    }

    fn again(&mut self, system: &impl System, index: usize, lot: &Lot, rings: &Rings) -> Result<Made, StartError> {
        let before = self.supply.repeat(lot);
        let made = self.make_whole(system, index, rings);
        self.supply.go_on(before);
        made
    }

    /// Stops a guest, and what is left of its servers: one that hangs would go on for ever.
    fn stop_guest(&mut self, system: &impl System, index: usize) {
        self.running &= !(1 << index);
        for vcpu in self.guests.get(index).into_iter().flat_map(|guest| &guest.vcpus) {
            if let Err(refusal) = vcpu.stop(system) {
                log!("a vCPU of guest {index} cannot be stopped: {refusal:?}");
            }
        }
        let servers = self.plan.guests.get(index).map(|plan| [plan.p2m, plan.vcpu]);
        for number in servers.into_iter().flatten() {
            for thread in self.servers.get(usize::from(number)).into_iter().flat_map(|server| &server.threads) {
                // Those that are no more need not be stopped.
                let _ = thread.destroy(system);
            }
        }
    }

    /// Sends what CPUs did since the last time, if that is wanted.
    fn drain(&mut self, system: &impl System) {
        let mut tracer = core::mem::replace(&mut self.tracer, Tracer::new(0));
        tracer.drain(system, |report| self.report(system, report));
        self.tracer = tracer;
    }

    /// What the CPU did on which the reported fault was.
    // Its records would else stand on the stack for as long as what follows takes.
    #[inline(never)]
    fn report_last(&self, system: &impl System, report: &Report) {
        let cpu = match report {
            Report::GuestEnded { guest, end: GuestEnd::Crash(crash) } => {
                let guest = self.plan.guests.get(usize::from(*guest));
                guest.and_then(|guest| guest.cpus.get(usize::from(crash.vcpu)).copied())
            }
            Report::ServerFaulted { .. } => self.faulted,
            _ => None,
        };
        if let Some(cpu) = cpu {
            trace::last(system, cpu, |report| self.report(system, report));
        }
    }

    /// The CPU of a server's thread that faulted.
    fn faulted_on(&self, system: &impl System, server: usize) -> Option<u8> {
        let (built, plan) = (self.servers.get(server)?, self.plan.servers.get(server)?);
        let thread = built.threads.iter().position(|thread| thread.fault(system, ThreadFault::State) == Ok(2))?;
        // A thread behind those in the plan is on the last one's CPU.
        plan.cpus.get(thread).or(plan.cpus.last()).copied()
    }

    /// Tells the host. A console that makes no room in time misses it.
    fn report(&self, system: &impl System, report: &Report) {
        for _ in 0..PATIENCE {
            let sent = Producer::new(self.board.ring(ring::ROOT_REPORT)).send(report);
            // A dead console is noticed by its own signal.
            let _ = self.console[0].raise(system);
            if sent {
                return;
            }
            let (now, hz) = clock(system);
            system.wait(0, now + hz / 1000 + 1);
        }
        log!("a report was lost: the console does not read");
    }

    /// Lets the console finish, then switches the machine off.
    #[inline(never)]
    fn off(&mut self, system: &impl System) {
        if core::mem::replace(&mut self.off, true) {
            return;
        }
        if !self.monitors.is_empty() {
            // What guests did last is in their monitors' rings, which read some thousand times a second.
            let (now, hz) = clock(system);
            system.wait(0, now + hz / 500);
        }
        self.drain(system);
        if !self.policy.has_stopped(0) && self.console[1].raise(system).is_ok() {
            let (now, hz) = clock(system);
            // 64 KiB of text at the slowest usual speed take six seconds.
            system.wait(root_signal::server(0), now + 8 * hz);
        }
        if let Err(refusal) = MACHINE.off(system) {
            log!("the machine cannot be switched off: {refusal:?}");
        }
    }

    fn name(&self, server: usize) -> &str {
        self.plan.servers.get(server).map_or("?", |server| server.name)
    }
}

/// Whether a thread of a server has stopped or takes too long for an answer, and how.
fn halted(system: &impl System, server: &Built) -> Option<Death> {
    server.threads.iter().find_map(|thread| match thread.fault(system, ThreadFault::State) {
        Ok(0) => None,
        Ok(2) => Some(Death::Faulted(record(system, *thread))),
        Ok(3) => Some(Death::Late(late(system, *thread))),
        // It ended by itself, or is no more.
        _ => Some(Death::Ended),
    })
}

/// A faulted thread's registers.
fn record(system: &impl System, thread: Thread) -> Fault {
    let word = |word| thread.fault(system, word).unwrap_or(0);
    Fault {
        syndrome: word(ThreadFault::Syndrome),
        address: word(ThreadFault::Address),
        pc: word(ThreadFault::Pc),
        sp: word(ThreadFault::Sp),
        general: (0..31).map(|n| thread.fault_general(system, n).unwrap_or(0)).collect(),
    }
}

/// Whom a thread kept waiting for too long: a vCPU with the class of its exit, or another thread.
fn late(system: &impl System, thread: Thread) -> Option<(u8, u8)> {
    let word = |word| thread.fault(system, word).unwrap_or(0);
    let (vcpu, exit) = (word(ThreadFault::LateVcpu) as u8, word(ThreadFault::LateExit) as u8);
    (word(ThreadFault::LateFor) == 2).then_some((vcpu, exit))
}

fn seconds(system: &impl System) -> u64 {
    let (now, hz) = clock(system);
    now / hz.max(1)
}

/// The console, without what connects it.
fn build_console(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>,
) -> Result<Built, StartError> {
    let server = plan.servers.first().ok_or(StartError::Plan("no console"))?;
    let times = build::times(server.role, server.cpus.len(), CONSOLE);
    build::server(system, board, supply, server, &times, 0)
}

/// Signals that wake the console: for output, and for the end.
fn console_signals(system: &impl System, supply: &mut Supply, console: &Built) -> Result<[Signal; 2], StartError> {
    let thread = console.threads.first().ok_or(StartError::Plan("no console"))?;
    let output = thread.signal(system, console_signal::OUTPUT, supply.slot()).step("make a signal")?;
    let end = thread.signal(system, console_signal::ROOT, supply.slot()).step("make a signal")?;
    Ok([output, end])
}

/// The console's serial port: its page, its line, and the kernel's log.
fn console_device(system: &impl System, supply: &mut Supply, console: &Built, uart_line: u32) -> Result<(), StartError> {
    let thread = console.threads.first().ok_or(StartError::Plan("no console"))?;
    let device = Frames::at(root_slot::DEVICES);
    console.domain.map(system, DEVICE, device, 0, 1, build::READ_WRITE).step("map the serial port")?;
    let line = MACHINE.line(system, uart_line, false, supply.slot()).step("make a line")?;
    let arrived = thread.signal(system, console_signal::LINE, supply.slot()).step("make a signal")?;
    line.bind(system, arrived).step("bind a line")?;
    line.grant(system, console.domain, slot::UART_LINE, Rights::CONTROL).step("grant a line")?;
    MACHINE.grant(system, console.domain, slot::SYSTEM, Rights::READ).step("grant the kernel's log")?;
    let asked = Thread::at(root_slot::THREAD).signal(system, root_signal::ASKED, supply.slot()).step("make a signal")?;
    asked.grant(system, console.domain, slot::ASKED, Rights::USE).step("grant a signal")
}

mod answer;
mod exchange;
#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod answer_tests;
mod relief;
mod replace;
#[cfg(test)]
mod replace_tests;
mod rules;
mod shield;
#[cfg(test)]
mod shield_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;
