// SPDX-License-Identifier: MIT OR Apache-2.0
//! irqfwd as root makes it: its lines, the signals of its queues, the vCPUs of guests that own devices. It is made again
//! in the same room when it dies, or when the host sends another program for it; lines that are sources stay so meanwhile, and
//! wait for the next one.

use crate::build::{self, Built, Stored, Time, UNKNOWN};
use crate::estate::{self, Ends};
use crate::guest::Made;
use crate::messages;
use crate::program;
use crate::room::{Room, Store};
use crate::supply::Supply;
use crate::wire::{self, Pair};
use crate::{Board, StartError, Step, patiently};
use heapless::Vec;
use trellis_idl::control::SourceState;
use trellis_idl::interface;
use trellis_idl::kernel::{Rights, Refusal};
use trellis_idl::layout::{badge, irqfwd_signal, root_slot, slot};
use trellis_idl::plan::{IrqfwdConfig, MAX_SOURCES, MAX_VCPUS, MessagePlan, Plan, Role, ServerPlan};
use trellis_idl::wire::IrqfwdOp;
use trellis_runtime::handle::{budget, clock};
use trellis_runtime::{Frames, Line, Machine, Portal, Signal, System, Thread, log, message};

/// Above all guests, so that an interrupt of one that waits is not kept waiting by one that runs, and bounded, so that a
/// device that storms does not take a neighbour's time.
const TIME: Time = Time { priority: 210, budget: budget(2_500, 10_000) };
/// Microseconds that its control thread may take for an answer.
pub const CONTROL: u64 = 30_000_000;
/// The same while nobody knows whether it is one: interrupts wait, and root hears of nobody else.
pub const BRIEF: u64 = 100_000;
/// Times that a guest's lines are asked for again, a millisecond apart, while something is on its way, or a function is being reset.
const PATIENCE: u32 = 1000;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);

/// irqfwd, and what it is made of.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Its index in the plan.
    pub number: usize,
    room: Room,
    rings: Pair,
    lines: Vec<Line, MAX_SOURCES>,
    /// Memory that hardware which makes lines of messages reads and writes by itself: the same for each irqfwd.
    tables: Option<Frames>,
    ends: Ways,
    /// Where what the host sends is kept, if another may take its place.
    pub store: Option<Store>,
    /// The program that runs, if it is not the image's.
    pub stored: Option<Stored>,
}

/// Ways into it.
#[derive(Clone, Copy, Debug)]
struct Ways {
    portal: Portal,
    /// The thread that answers root, and what wakes root when it does not.
    control: Thread,
    signal: Signal,
}

/// What a line of its configuration did, as one server tells it and the next one is told.
pub type Counted = [u64; 1 + COUNTS + DELAYS];
/// Words of [`IrqfwdOp::Count`] and of [`IrqfwdOp::Delays`]; before them stands the line.
const COUNTS: usize = 6;
const DELAYS: usize = 9;

/// What of that is about messages. Apart, since the rest is large and the stack is not.
#[inline(never)]
fn messages(board: &impl Board, server: &ServerPlan<'_>) -> Result<Option<MessagePlan>, StartError> {
    Ok(build::config::<IrqfwdConfig>(board, server)?.messages)
}

/// Makes it for the first time, if the plan has one. It does not run yet.
#[inline(never)]
pub fn make(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, guests: &[Made], ends: Ends<'_>,
) -> Result<Option<(Forward, Built)>, StartError> {
    let Some((number, server)) = build::planned(plan, Role::Irqfwd) else { return Ok(None) };
    let lines = lines(system, board, supply, server)?;
    let messages = messages(board, server)?;
    let tables = messages::tables(system, board, supply, messages.as_ref())?;
    let rings = wire::pair(system, supply, ends.console.domain, number)?;
    let threads = server.cpus.len() as u64;
    let room = Room::make(system, supply, build::most_pages(server, threads), slots(threads))?;
    let store = Store::make(system, supply, server)?;
    let (built, ways) = in_room(system, board, supply, room, (number, server), (&lines, &rings), ends, None)?;
    messages::attach(system, messages.as_ref(), tables, built.domain)?;
    for (index, made) in guests.iter().enumerate() {
        grant_guest(system, plan, index, made, &built)?;
    }
    Ok(Some((Forward { number, room, rings, lines, tables, ends: ways, store, stored: None }, built)))
}

/// A line for each source of its configuration.
#[inline(never)]
fn lines(
    system: &impl System, board: &impl Board, supply: &mut Supply, server: &ServerPlan<'_>,
) -> Result<Vec<Line, MAX_SOURCES>, StartError> {
    let mut lines = Vec::new();
    for source in &build::config::<IrqfwdConfig>(board, server)?.sources {
        let line = MACHINE.line(system, source.line, source.edge, supply.slot()).step("make a line")?;
        lines.push(line).map_err(|_| StartError::Plan("too many lines"))?;
    }
    Ok(lines)
}

/// Slots: tables, domain, segments, stacks, threads and what they save registers in, root's signal, the queues', the portal.
const fn slots(threads: u64) -> u64 {
    2 + program::PIECES as u64 + 1 + 2 * threads + 1 + threads + 1
}

/// The server, made in its room.
#[allow(clippy::too_many_arguments, reason = "what a server is made of, and where")]
fn in_room(
    system: &impl System, board: &impl Board, supply: &mut Supply, room: Room, server: (usize, &ServerPlan<'_>),
    (lines, rings): (&[Line], &Pair), ends: Ends<'_>, stored: Option<&Stored>,
) -> Result<(Built, Ways), StartError> {
    let before = supply.enter(room);
    let made = server_of(system, board, supply, server, lines, rings, ends, stored);
    supply.leave(before)?;
    made
}

/// The server, without the guests' vCPUs.
#[allow(clippy::too_many_arguments, reason = "what a server is made of")]
fn server_of(
    system: &impl System, board: &impl Board, supply: &mut Supply, (number, server): (usize, &ServerPlan<'_>),
    lines: &[Line], rings: &Pair, ends: Ends<'_>, stored: Option<&Stored>,
) -> Result<(Built, Ways), StartError> {
    let mut times = build::times(server.role, server.cpus.len(), TIME);
    if let (Some(_), Some(control)) = (stored, times.last_mut()) {
        // Nobody here knows it: until it answers root it must be seen whether it hangs.
        *control = UNKNOWN;
    }
    let built = build::server_of(system, board, supply, server, &times, 0, stored)?;
    wire::attach_pair(system, rings, built.domain)?;
    let control = built.threads.len().saturating_sub(1);
    let own = estate::supervise(system, supply, number, &built, |thread| if thread == control { CONTROL } else { 0 })?;
    ends.output.grant(system, built.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
    MACHINE.grant(system, built.domain, slot::SYSTEM, Rights::LINES).step("grant the right to serve queues")?;
    for (index, thread) in (0..).zip(built.threads.iter().take(control)) {
        let at = supply.slot();
        let signal = patiently(system, || thread.signal(system, irqfwd_signal::QUEUE, at)).step("make a signal")?;
        signal.grant(system, built.domain, slot::QUEUE + index, Rights::USE).step("grant a signal")?;
    }
    for (index, line) in (0..).zip(lines) {
        line.grant(system, built.domain, slot::LINE + index, Rights::CONTROL).step("grant a line")?;
    }
    let thread = built.threads.get(control).ok_or(StartError::Plan("no control thread"))?;
    let at = supply.slot();
    let portal = patiently(system, || thread.portal(system, badge::ROOT, at)).step("make a portal")?;
    let ways = Ways { portal, control: *thread, signal: own };
    Ok((built, ways))
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
    /// Makes it again, of the program in its store or of the image's, after it died or to end it. `goes_on`: which guests have not ended.
    #[inline(never)]
    pub fn again(
        &mut self, system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, dead: &Built,
        guests: &[Made], goes_on: impl Fn(usize) -> bool, ends: Ends<'_>,
    ) -> Result<Built, StartError> {
        let server = build::planned(plan, Role::Irqfwd).ok_or(StartError::Plan("no such server"))?;
        build::end(system, dead)?;
        self.room.clear(system)?;
        let made = in_room(system, board, supply, self.room, server, (&self.lines, &self.rings), ends, self.stored.as_ref());
        let (built, ways) = made?;
        self.ends = ways;
        messages::attach(system, messages(board, server.1)?.as_ref(), self.tables, built.domain)?;
        for (index, made) in guests.iter().enumerate().filter(|(index, _)| goes_on(*index)) {
            grant_guest(system, plan, index, made, &built)?;
        }
        Ok(built)
    }

    /// How long it may take for what root asks, in microseconds.
    pub fn be_patient(&self, system: &impl System, patience: u64) -> Result<(), StartError> {
        self.ends.control.supervise(system, self.ends.signal, patience).step("supervise a thread")
    }

    /// What each of its lines did, for the one that comes after it: of those that are bound. `None`: it does not say it.
    #[inline(never)]
    pub fn counted(&self, system: &impl System) -> Option<Vec<Counted, MAX_SOURCES>> {
        let mut all = Vec::new();
        for line in 0..self.sources() as u64 {
            let ask = |op: IrqfwdOp| self.ends.portal.order(system, op as u64, [line]);
            let (counts, delays) = match (ask(IrqfwdOp::Count), ask(IrqfwdOp::Delays)) {
                (Ok(counts), Ok(delays)) => (counts, delays),
                // Its guest has ended.
                (Err(Refusal::Gone), _) => continue,
                _ => return None,
            };
            let mut counted = [line; 1 + COUNTS + DELAYS];
            let words = counts.into_iter().skip(1).take(COUNTS).chain(delays.into_iter().skip(1));
            counted.iter_mut().skip(1).zip(words).for_each(|(place, word)| *place = word);
            // There are not more lines than there is room.
            let _ = all.push(counted);
        }
        Some(all)
    }

    /// Tells it what the one before counted.
    #[inline(never)]
    pub fn restore(&self, system: &impl System, all: &[Counted]) -> Result<(), Refusal> {
        for [line, taken, passed, _, waited, storms, moved, least, longer @ ..] in all.iter().copied() {
            let known = longer.iter().fold(least, |sum, count| sum.saturating_add(*count));
            let unknown = passed.saturating_sub(known);
            let portal = self.ends.portal;
            portal.order(system, IrqfwdOp::Restore as u64, [line, taken, passed, waited, storms, moved, unknown])?;
            let [a, b, c, d, e, f, g, h] = longer;
            portal.order(system, IrqfwdOp::RestoreDelays as u64, [line, a, b, c, d, e, f, g, h])?;
        }
        Ok(())
    }

    /// Whether it is the server that root knows.
    pub fn attach(&self, system: &impl System) -> Result<(), StartError> {
        message::attach(system, self.ends.portal, interface::IRQFWD).step("agree with irqfwd")
    }

    /// What a line of the configuration did. Nothing while its guest has ended, or irqfwd has.
    #[inline(never)]
    pub fn source(&self, system: &impl System, board: &impl Board, plan: &Plan<'_>, index: usize) -> Option<SourceState> {
        let (_, server) = build::planned(plan, Role::Irqfwd)?;
        let source = *build::config::<IrqfwdConfig>(board, server).ok()?.sources.get(index)?;
        let ask = |op: IrqfwdOp| self.ends.portal.order(system, op as u64, [index as u64]).ok();
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

    /// Asks for a guest's lines to be forwarded, or no more. What is on its way is waited for, a while. What is refused is said, and told.
    pub fn ask(&self, system: &impl System, op: IrqfwdOp, guest: usize) -> Result<(), Refusal> {
        for _ in 0..PATIENCE {
            match self.ends.portal.order(system, op as u64, [guest as u64]) {
                Ok(_) => return Ok(()),
                Err(Refusal::Again) => {
                    let (now, hz) = clock(system);
                    system.wait(0, now + hz / 1000 + 1);
                }
                Err(refusal) => {
                    log!("guest {guest}'s lines: irqfwd refuses {op:?}: {refusal:?}");
                    return Err(refusal);
                }
            }
        }
        log!("guest {guest}'s lines: irqfwd is busy for too long");
        Err(Refusal::Again)
    }
}
