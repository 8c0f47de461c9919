// SPDX-License-Identifier: MIT OR Apache-2.0
//! irqfwd as root makes it: its lines, the signals of its queues, the vCPUs of guests that own devices. It is made again
//! of the same slots and memory when it dies; lines that are sources stay so meanwhile, and wait for the next one.

use crate::build::{self, Built, Time};
use crate::estate::{self, Ends};
use crate::guest::Made;
use crate::supply::{Lot, Supply};
use crate::wire::{self, Pair};
use crate::{Board, StartError, Step};
use heapless::Vec;
use trellis_idl::control::SourceState;
use trellis_idl::interface;
use trellis_idl::kernel::{Rights, Refusal};
use trellis_idl::layout::{badge, irqfwd_signal, root_slot, slot};
use trellis_idl::plan::{IrqfwdConfig, MAX_SOURCES, MAX_VCPUS, Plan, Role, ServerPlan};
use trellis_idl::wire::IrqfwdOp;
use trellis_runtime::handle::{budget, clock};
use trellis_runtime::memory::decode_config;
use trellis_runtime::{Line, Machine, Portal, System, log, message};

/// Above all guests, so that an interrupt of one that waits is not kept waiting by one that runs, and bounded, so that a
/// device that storms does not take a neighbour's time.
const TIME: Time = Time { priority: 210, budget: budget(2_500, 10_000) };
/// Microseconds that its control thread may take for an answer.
const CONTROL: u64 = 30_000_000;
/// Times that a guest's lines are asked for again, a millisecond apart, while something is on its way.
const PATIENCE: u32 = 100;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);

/// irqfwd, and what it is made of.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Its index in the plan.
    pub number: usize,
    lot: Lot,
    rings: Pair,
    lines: Vec<Line, MAX_SOURCES>,
    portal: Portal,
}

/// The plan's irqfwd, if a guest owns a device.
fn planned<'a>(plan: &'a Plan<'a>) -> Option<(usize, &'a ServerPlan<'a>)> {
    plan.servers.iter().enumerate().find(|(_, server)| server.role == Role::Irqfwd)
}

/// Its configuration.
fn config(board: &impl Board, server: &ServerPlan<'_>) -> Result<IrqfwdConfig, StartError> {
    let bytes = board.payload(server.config).ok_or(StartError::Plan("a configuration outside the payload"))?;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(StartError::Plan("a configuration without length"))?;
    decode_config(u64::from_le_bytes(*length), rest).map_err(|_| StartError::Plan("a configuration nobody understands"))
}

/// Makes it for the first time, if the plan has one. It does not run yet.
#[inline(never)]
pub fn make(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, guests: &[Made], ends: Ends<'_>,
) -> Result<Option<(Forward, Built)>, StartError> {
    let Some((number, server)) = planned(plan) else { return Ok(None) };
    let mut lines = Vec::new();
    for source in &config(board, server)?.sources {
        let line = MACHINE.line(system, source.line, source.edge, supply.slot()).step("make a line")?;
        lines.push(line).map_err(|_| StartError::Plan("too many lines"))?;
    }
    let rings = wire::pair(system, supply, ends.console.domain, number)?;
    supply.begin();
    let (built, portal) = server_of(system, board, supply, (number, server), &lines, &rings, ends)?;
    let lot = supply.end()?;
    for (index, made) in guests.iter().enumerate() {
        grant_guest(system, plan, index, made, &built)?;
    }
    Ok(Some((Forward { number, lot, rings, lines, portal }, built)))
}

/// The server, without the guests' vCPUs.
fn server_of(
    system: &impl System, board: &impl Board, supply: &mut Supply, (number, server): (usize, &ServerPlan<'_>),
    lines: &[Line], rings: &Pair, ends: Ends<'_>,
) -> Result<(Built, Portal), StartError> {
    let times = build::times(server.role, server.cpus.len(), TIME);
    let built = build::server(system, board, supply, server, &times, 0)?;
    wire::attach_pair(system, rings, built.domain)?;
    let control = built.threads.len().saturating_sub(1);
    estate::supervise(system, supply, number, &built, |thread| if thread == control { CONTROL } else { 0 })?;
    ends.output.grant(system, built.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
    MACHINE.grant(system, built.domain, slot::SYSTEM, Rights::LINES).step("grant the right to serve queues")?;
    for (index, thread) in (0..).zip(built.threads.iter().take(control)) {
        let signal = thread.signal(system, irqfwd_signal::QUEUE, supply.slot()).step("make a signal")?;
        signal.grant(system, built.domain, slot::QUEUE + index, Rights::USE).step("grant a signal")?;
    }
    for (index, line) in (0..).zip(lines) {
        line.grant(system, built.domain, slot::LINE + index, Rights::CONTROL).step("grant a line")?;
    }
    let thread = built.threads.get(control).ok_or(StartError::Plan("no control thread"))?;
    let portal = thread.portal(system, badge::ROOT, supply.slot()).step("make a portal")?;
    Ok((built, portal))
}

/// Gives it the vCPUs of a guest that owns a device.
pub fn grant_guest(
    system: &impl System, plan: &Plan<'_>, index: usize, made: &Made, forward: &Built,
) -> Result<(), StartError> {
    if plan.guests.get(index).is_none_or(|guest| guest.devices.is_empty()) {
        return Ok(());
    }
    let first = slot::VCPUS + (index * MAX_VCPUS) as u64;
    for (slot, vcpu) in (first..).zip(&made.vcpus) {
        vcpu.grant(system, forward.domain, slot, Rights::LINES).step("grant a vCPU")?;
    }
    Ok(())
}

impl Forward {
    /// Makes it again, of the same, after it died. `goes_on`: which guests have not ended.
    #[inline(never)]
    pub fn again(
        &mut self, system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, dead: &Built,
        guests: &[Made], goes_on: impl Fn(usize) -> bool, ends: Ends<'_>,
    ) -> Result<Built, StartError> {
        let (number, server) = planned(plan).ok_or(StartError::Plan("no such server"))?;
        dead.domain.destroy(system).step("destroy a domain")?;
        self.lot.take_back(system)?;
        let before = supply.repeat(&self.lot);
        let made = server_of(system, board, supply, (number, server), &self.lines, &self.rings, ends);
        supply.go_on(before);
        let (built, portal) = made?;
        self.portal = portal;
        for (index, made) in guests.iter().enumerate().filter(|(index, _)| goes_on(*index)) {
            grant_guest(system, plan, index, made, &built)?;
        }
        Ok(built)
    }

    /// Whether it is the server that root knows.
    pub fn attach(&self, system: &impl System) -> Result<(), StartError> {
        message::attach(system, self.portal, interface::IRQFWD).step("agree with irqfwd")
    }

    /// What a line of the configuration did. Nothing while its guest has ended, or irqfwd has.
    #[inline(never)]
    pub fn source(&self, system: &impl System, board: &impl Board, plan: &Plan<'_>, index: usize) -> Option<SourceState> {
        let (_, server) = planned(plan)?;
        let source = *config(board, server).ok()?.sources.get(index)?;
        let ask = |op: IrqfwdOp| self.portal.order(system, op as u64, [index as u64]).ok();
        let [_, _, passed, straight, waited, storms, moved, ..] = ask(IrqfwdOp::Count)?;
        let [_, delays @ ..] = ask(IrqfwdOp::Delays)?;
        Some(SourceState {
            guest: source.guest,
            line: source.line as u16,
            guest_line: source.guest_line,
            is_direct: source.direct,
            passed,
            straight,
            waited,
            storms,
            moved,
            delays,
        })
    }

    /// How many lines it forwards.
    pub fn sources(&self) -> usize {
        self.lines.len()
    }

    /// Asks for a guest's lines to be forwarded, or no more. What is on its way is waited for, a while.
    pub fn ask(&self, system: &impl System, op: IrqfwdOp, guest: usize) {
        for _ in 0..PATIENCE {
            match self.portal.order(system, op as u64, [guest as u64]) {
                Ok(_) => return,
                Err(Refusal::Again) => {
                    let (now, hz) = clock(system);
                    system.wait(0, now + hz / 1000 + 1);
                }
                Err(refusal) => {
                    log!("guest {guest}'s lines: irqfwd refuses {op:?}: {refusal:?}");
                    return;
                }
            }
        }
        log!("guest {guest}'s lines: irqfwd is busy for too long");
    }
}
