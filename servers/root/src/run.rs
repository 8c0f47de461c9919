// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running system: builds it in order, then listens to servers and carries out what [`crate::policy`] decides.

use crate::build::{self, Built, Time};
use crate::guest::{self, Made};
use crate::policy::{Action, Event, Policy};
use crate::supply::Supply;
use crate::{Board, StartError, Step, check, wire};
use heapless::Vec;
use trellis_idl::kernel::{Fact, Refusal, Rights, ThreadFault, WORDS};
use trellis_idl::layout::{DEVICE, console_signal, ring, root_signal, root_slot, slot};
use trellis_idl::plan::{MAX_GUESTS, MAX_SERVERS, Plan, Role};
use trellis_idl::wire::{Fault, P2mOp, Report, ToRoot, VcpuOp, from_answer};
use trellis_runtime::handle::clock;
use trellis_runtime::{Consumer, Frames, Machine, Portal, Producer, Signal, System, Thread, log};

/// The console's priority and share of its CPU: above all guests, so that one that spins cannot silence the others,
/// and bounded, so that one that floods cannot take their time.
const CONSOLE: Time = Time { priority: 220, budget: trellis_runtime::handle::budget(5_000, 20_000) };
/// Reports taken from a server before others get their turn.
const MAX_REPORTS: usize = 8;
/// Times that a report is tried again, a millisecond apart, while the console has no room for it.
const PATIENCE: u32 = 100;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);
const SELF: Thread = Thread::at(root_slot::THREAD);

/// The system as root knows it.
#[derive(Debug)]
pub struct Root<'a, B> {
    board: B,
    plan: &'a Plan<'a>,
    servers: Vec<Built, MAX_SERVERS>,
    guests: Vec<Made, MAX_GUESTS>,
    /// Wakes the console: output; and the end.
    console: [Signal; 2],
    policy: Policy,
    /// A server has more to say than was taken.
    unheard: u64,
    off: bool,
}

impl<'a, B: Board> Root<'a, B> {
    /// Builds the system and starts it. `log_to` learns the signal that wakes the console as soon as root's log ring
    /// is there.
    pub fn start(
        system: &impl System, board: B, plan: &'a Plan<'a>, log_to: impl FnOnce(u64),
    ) -> Result<Root<'a, B>, StartError> {
        check::check(plan)?;
        let mut supply = Supply::new(system);
        let servers = build_servers(system, &board, &mut supply, plan)?;
        let console = servers.first().ok_or(StartError::Plan("no console"))?;
        let output = console_signals(system, &mut supply, console)?;
        wire::root(system, &mut supply, console.domain)?;
        log_to(output[0].slot());
        let mut guests = Vec::new();
        for index in 0..plan.guests.len() {
            let made = build_guest(system, &board, &mut supply, plan, &servers, index)?;
            guests.push(made).map_err(|_| StartError::Plan("too many guests"))?;
        }
        for (index, server) in servers.iter().enumerate() {
            supervise(system, &mut supply, index, server, console, output[0])?;
        }
        console_device(system, &mut supply, console, plan.uart_line)?;
        let mut root =
            Root { board, plan, servers, guests, console: output, policy: Policy::new(plan), unheard: 0, off: false };
        root.begin(system)?;
        Ok(root)
    }

    /// Lets the servers run, then the guests.
    fn begin(&mut self, system: &impl System) -> Result<(), StartError> {
        for (built, plan) in self.servers.iter().zip(&self.plan.servers) {
            build::start(system, built, plan)?;
        }
        let fact = |fact| MACHINE.fact(system, fact, 0).unwrap_or(0);
        let started = Report::Started {
            boot_ticks: fact(Fact::BootTicks),
            clock_hz: fact(Fact::ClockHz),
            kernel_memory: fact(Fact::KernelMemory),
        };
        self.report(system, &started);
        for guest in 0..self.guests.len() {
            if let Err(why) = self.start_guest(system, guest) {
                self.not_started(system, guest, why);
            }
        }
        Ok(())
    }

    /// Waits until somebody has something to say, and deals with it.
    pub fn step(&mut self, system: &impl System) {
        let all = (1u64 << self.servers.len()) - 1;
        let bits = match core::mem::take(&mut self.unheard) {
            0 => system.wait(all, 0),
            unheard => unheard,
        };
        for index in (0..self.servers.len()).filter(|index| bits & root_signal::server(*index) != 0) {
            self.listen(system, index);
        }
    }

    /// What a server has to say: its reports, then whether it still runs.
    fn listen(&mut self, system: &impl System, index: usize) {
        let mut left = MAX_REPORTS;
        while let Some(event) = self.next_event(index) {
            if let Some(event) = event {
                self.happened(system, event);
            }
            left -= 1;
            if left == 0 {
                self.unheard |= root_signal::server(index);
                break;
            }
        }
        if !self.policy.has_stopped(index)
            && let Some(record) = self.stopped(system, index)
        {
            log!("server {} stopped", self.name(index));
            self.happened(system, Event::ServerStopped(index as u8, record));
        }
    }

    /// The next report of a server, and what it means: a server speaks for its own guest only.
    fn next_event(&mut self, index: usize) -> Option<Option<Event>> {
        let role = self.plan.servers.get(index)?.role;
        // The console has no such ring.
        let (Role::P2m(guest) | Role::Vcpu(guest)) = role else { return None };
        let report = Consumer::new(self.board.ring(ring::root_report(index))).receive::<ToRoot>()?;
        Some(match (report, role) {
            (Ok(ToRoot::Ended(end)), Role::Vcpu(_)) => Some(Event::Ended(guest, end)),
            (Ok(ToRoot::Reset), Role::Vcpu(_)) => Some(Event::Reset(guest)),
            (Ok(ToRoot::Ready), _) => None,
            (Ok(ToRoot::Failed(why)), _) => {
                log!("server {} failed: {why}", self.name(index));
                Some(Event::ServerStopped(index as u8, None))
            }
            _ => {
                log!("server {} says what is not its to say", self.name(index));
                None
            }
        })
    }

    /// Whether a thread of a server has stopped; its registers when it faulted.
    fn stopped(&self, system: &impl System, index: usize) -> Option<Option<Fault>> {
        let server = self.servers.get(index)?;
        server.threads.iter().find_map(|thread| match thread.fault(system, ThreadFault::State) {
            Ok(0) => None,
            Ok(2) => Some(Some(record(system, *thread))),
            // It ended by itself, or is no more.
            _ => Some(None),
        })
    }

    /// Decides and acts until nothing follows any more.
    #[inline(never)]
    fn happened(&mut self, system: &impl System, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            for action in self.policy.decide(event) {
                match action {
                    Action::Report(report) => self.report(system, &report),
                    Action::Stop(guest) => self.stop_guest(system, guest.into()),
                    Action::Reboot(guest) => {
                        if let Err(why) = self.reboot(system, guest.into()) {
                            log!("guest {guest} cannot start again: {why:?}");
                            next = Some(Event::NotStarted(guest));
                        }
                    }
                    Action::Off => self.off(system),
                }
            }
        }
    }

    /// Starts a guest whose memory is empty.
    fn start_guest(&self, system: &impl System, index: usize) -> Result<(), StartError> {
        let guest = self.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        ask(system, guest.p2m, P2mOp::Ready as u64).step("wait for p2m")?;
        ask(system, guest.vcpu, VcpuOp::Start as u64).step("start a guest")
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
    fn reboot(&self, system: &impl System, index: usize) -> Result<(), StartError> {
        let guest = self.guests.get(index).ok_or(StartError::Plan("no such guest"))?;
        let p2m = self.plan.guests.get(index).and_then(|plan| self.servers.get(usize::from(plan.p2m)));
        ask(system, guest.vcpu, VcpuOp::Reset as u64).step("reset a guest")?;
        guest.memory.reclaim(system).step("reclaim memory")?;
        guest::grant_memory(system, guest.memory, p2m.ok_or(StartError::Plan("no p2m"))?)?;
        ask(system, guest.p2m, P2mOp::Reset as u64).step("reset maps")?;
        ask(system, guest.vcpu, VcpuOp::Start as u64).step("start a guest")
    }

    fn stop_guest(&self, system: &impl System, index: usize) {
        for vcpu in self.guests.get(index).into_iter().flat_map(|guest| &guest.vcpus) {
            if let Err(refusal) = vcpu.stop(system) {
                log!("a vCPU of guest {index} cannot be stopped: {refusal:?}");
            }
        }
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
    fn off(&mut self, system: &impl System) {
        if core::mem::replace(&mut self.off, true) {
            return;
        }
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

/// Calls a server's control portal with an operation alone.
fn ask(system: &impl System, portal: Portal, operation: u64) -> Result<(), Refusal> {
    let mut words = [0; WORDS];
    words[0] = operation;
    from_answer(portal.call(system, words)?[0])
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

/// All servers, without what connects them.
fn build_servers(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>,
) -> Result<Vec<Built, MAX_SERVERS>, StartError> {
    let mut servers = Vec::new();
    for server in &plan.servers {
        let (attending, tables) = match server.role {
            Role::Console => (CONSOLE, 0),
            Role::P2m(_) => (build::LENT, 0),
            Role::Vcpu(index) => {
                let guest = plan.guests.get(usize::from(index)).ok_or(StartError::Plan("no such guest"))?;
                let priority = u64::from(guest.priority.min(guest::MAX_PRIORITY)) + 1;
                (Time { priority, budget: guest::time(guest) }, guest::load_tables(&guest::config(board, server)?))
            }
        };
        let times = build::times(server.role, server.cpus.len(), attending);
        let built = build::server(system, board, supply, server, &times, tables)?;
        servers.push(built).map_err(|_| StartError::Plan("too many servers"))?;
    }
    Ok(servers)
}

/// A guest, and its servers' way to it and to the console.
fn build_guest(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, servers: &[Built], index: usize,
) -> Result<Made, StartError> {
    let missing = StartError::Plan("a guest without servers");
    let guest = plan.guests.get(index).ok_or(missing)?;
    let of = |server: u8| servers.get(usize::from(server)).ok_or(missing);
    let (console, p2m, vcpu) = (of(0)?, of(guest.p2m)?, of(guest.vcpu)?);
    let config = guest::config(board, plan.servers.get(usize::from(guest.vcpu)).ok_or(missing)?)?;
    let made = guest::make(system, supply, guest, config.gic, p2m, vcpu)?;
    guest::loads(system, supply, &config, vcpu)?;
    wire::serial(system, supply, console.domain, index, vcpu.domain)?;
    made.input.grant(system, console.domain, slot::INPUT + index as u64, Rights::USE).step("grant a signal")?;
    Ok(made)
}

/// Signals that wake the console: for output, and for the end.
fn console_signals(system: &impl System, supply: &mut Supply, console: &Built) -> Result<[Signal; 2], StartError> {
    let thread = console.threads.first().ok_or(StartError::Plan("no console"))?;
    let output = thread.signal(system, console_signal::OUTPUT, supply.slot()).step("make a signal")?;
    let end = thread.signal(system, console_signal::ROOT, supply.slot()).step("make a signal")?;
    Ok([output, end])
}

/// Root hears a server's threads end; the server can wake root and the console.
fn supervise(
    system: &impl System, supply: &mut Supply, index: usize, server: &Built, console: &Built, output: Signal,
) -> Result<(), StartError> {
    let signal = SELF.signal(system, root_signal::server(index), supply.slot()).step("make a signal")?;
    signal.grant(system, server.domain, slot::ROOT, Rights::USE).step("grant a signal")?;
    for thread in &server.threads {
        thread.supervise(system, signal).step("supervise a thread")?;
    }
    if index > 0 {
        output.grant(system, server.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
        wire::server(system, supply, console.domain, index, server.domain)?;
    }
    Ok(())
}

/// The console's serial port: its page, its line, and the kernel's log.
fn console_device(system: &impl System, supply: &mut Supply, console: &Built, uart_line: u32) -> Result<(), StartError> {
    let thread = console.threads.first().ok_or(StartError::Plan("no console"))?;
    let device = Frames::at(root_slot::DEVICES);
    console.domain.map(system, DEVICE, device, 0, 1, build::READ_WRITE).step("map the serial port")?;
    let line = MACHINE.line(system, uart_line, supply.slot()).step("make a line")?;
    let arrived = thread.signal(system, console_signal::LINE, supply.slot()).step("make a signal")?;
    line.bind(system, arrived).step("bind a line")?;
    line.grant(system, console.domain, slot::UART_LINE, Rights::CONTROL).step("grant a line")?;
    MACHINE.grant(system, console.domain, slot::SYSTEM, Rights::READ).step("grant the kernel's log")
}

#[cfg(test)]
mod tests;
