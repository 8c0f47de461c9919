// SPDX-License-Identifier: MIT OR Apache-2.0
//! smmu as root makes it: the registers of the SMMU, memory that both share, and its lines. It is made again in the same room
//! when it dies; what the SMMU reads stays where it is, so that devices go on meanwhile.
//!
//! Root says which guests' devices see memory. They see none before memory is cleared or changes hands: if smmu does not
//! say so, it is made again, and if that does not help either, the memory stays as it is.

use crate::build::{self, Built, READ_WRITE, Stored, Time};
use crate::estate::{self, Ends};
use crate::guest::Made;
use crate::messages;
use crate::program;
use crate::room::Room;
use crate::supply::Supply;
use crate::wire::{self, Pair};
use crate::{Board, StartError, Step, patiently};
use trellis_idl::interface;
use trellis_idl::kernel::{PAGE, Rights};
use trellis_idl::layout::space::{EVENTS, REGISTERS, streams, tables};
use trellis_idl::layout::{TABLES, TABLES_BYTES, badge, root_slot, slot, smmu_signal};
use trellis_idl::plan::{MAX_GUESTS, Plan, Role, ServerPlan, SmmuConfig};
use trellis_idl::wire::{SmmuOp, Stopped};
use trellis_runtime::handle::budget;
use trellis_runtime::{Domain, Frames, Line, Machine, Portal, System, message};

/// Above guests, so that what a device does is known soon, and bounded, so that one that does nothing else takes no time.
const TIME: Time = Time { priority: 205, budget: budget(500, 10_000) };
/// Microseconds that its control thread may take for an answer.
const CONTROL: u64 = 30_000_000;
/// Threads, slots: tables, domain, segments, stacks, threads and what they save registers in, root's signal, two for lines, the
/// portal.
const THREADS: u64 = 2;
const SLOTS: u64 = 2 + program::PIECES as u64 + 1 + 2 * THREADS + 1 + 2 + 1;
/// From the first page of the SMMU's registers to the second.
const SECOND_PAGE: u64 = 0x1_0000 / PAGE;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);

/// smmu, and what it is made of.
#[derive(Clone, Debug)]
pub struct Shield {
    /// Its index in the plan.
    pub number: usize,
    room: Room,
    rings: Pair,
    lines: [Line; 2],
    /// What the SMMU reads and writes by itself: the same for each smmu.
    tables: Frames,
    portal: Portal,
    /// Guests whose devices it is about, and those whose devices see memory: a bit each.
    concerned: u32,
    attached: u32,
    /// Accesses of each guest's devices that were stopped and told of.
    stopped: [u64; MAX_GUESTS],
}

/// What root needs of that. Apart, since the rest is large and the stack is not.
struct Needs {
    run: u8,
    lines: [u32; 2],
    bits: u8,
    pages: u64,
    concerned: u32,
}

#[inline(never)]
fn needs(board: &impl Board, server: &ServerPlan<'_>) -> Result<Needs, StartError> {
    let config: SmmuConfig = build::config(board, server)?;
    let pages = u64::from(config.pages);
    if config.stream_bits > 16 || pages * PAGE < tables(config.stream_bits) || pages * PAGE > TABLES_BYTES {
        return Err(StartError::Plan("more tables of an SMMU than there is room for"));
    }
    let concerned = config.streams.iter().fold(0, |all, stream| all | 1u32.checked_shl(stream.guest.into()).unwrap_or(0));
    Ok(Needs { run: config.run, lines: config.lines, bits: config.stream_bits, pages, concerned })
}

/// Makes it for the first time, if the plan has one. It does not run yet.
#[inline(never)]
pub fn make(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, ends: Ends<'_>,
) -> Result<Option<(Shield, Built)>, StartError> {
    let Some((number, server)) = build::planned(plan, Role::Smmu) else { return Ok(None) };
    let needs = needs(board, server)?;
    let line = |number: u32, slot: u64| MACHINE.line(system, number, true, slot).step("make a line");
    let lines = [line(needs.lines[0], supply.slot())?, line(needs.lines[1], supply.slot())?];
    let tables = shared(system, board, supply, &needs)?;
    let rings = wire::pair(system, supply, ends.console.domain, number)?;
    let room = Room::make(system, supply, build::most_pages(server, THREADS), SLOTS)?;
    let (built, portal) = in_room(system, board, supply, room, (number, server), (&lines, &rings), ends)?;
    attach(system, &needs, tables, built.domain)?;
    let concerned = needs.concerned;
    Ok(Some((Shield { number, room, rings, lines, tables, portal, concerned, attached: 0, stopped: [0; MAX_GUESTS] }, built)))
}

/// Memory that begins with its own machine address, of which the table of streams is at a multiple of its size.
fn shared(system: &impl System, board: &impl Board, supply: &mut Supply, needs: &Needs) -> Result<Frames, StartError> {
    build::addressed(system, board, supply, needs.pages, streams(needs.bits) / PAGE)
}

/// Maps it, and the SMMU's registers.
fn attach(system: &impl System, needs: &Needs, run: Frames, domain: Domain) -> Result<(), StartError> {
    domain.map(system, TABLES, run, 0, needs.pages, READ_WRITE).step("map tables")?;
    messages::map(system, domain, REGISTERS, needs.run, 0)?;
    messages::map(system, domain, EVENTS, needs.run, SECOND_PAGE)
}

/// The server, made in its room.
fn in_room(
    system: &impl System, board: &impl Board, supply: &mut Supply, room: Room, server: (usize, &ServerPlan<'_>),
    (lines, rings): (&[Line; 2], &Pair), ends: Ends<'_>,
) -> Result<(Built, Portal), StartError> {
    let before = supply.enter(room);
    let made = server_of(system, board, supply, server, lines, rings, ends);
    supply.leave(before)?;
    made
}

fn server_of(
    system: &impl System, board: &impl Board, supply: &mut Supply, (number, server): (usize, &ServerPlan<'_>), lines: &[Line; 2],
    rings: &Pair, ends: Ends<'_>,
) -> Result<(Built, Portal), StartError> {
    let times = build::times(server.role, server.cpus.len(), TIME);
    let built = build::server_of(system, board, supply, server, &times, 0, None::<&Stored>)?;
    wire::attach_pair(system, rings, built.domain)?;
    estate::supervise(system, supply, number, &built, |thread| if thread == 0 { CONTROL } else { 0 })?;
    ends.output.grant(system, built.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
    let [control, attending] = built.threads[..] else { return Err(StartError::Plan("an smmu with other threads")) };
    let bits = [smmu_signal::EVENTS, smmu_signal::ERROR];
    for ((line, bit), place) in lines.iter().zip(bits).zip([slot::SMMU_LINE, slot::SMMU_ERROR]) {
        let at = supply.slot();
        let signal = patiently(system, || attending.signal(system, bit, at)).step("make a signal")?;
        line.bind(system, signal).step("bind a line")?;
        line.grant(system, built.domain, place, Rights::CONTROL).step("grant a line")?;
    }
    let at = supply.slot();
    let portal = patiently(system, || control.portal(system, badge::ROOT, at)).step("make a portal")?;
    Ok((built, portal))
}

impl Shield {
    /// It stopped an access, and others that it counted alone.
    pub fn count(&mut self, stopped: &Stopped) {
        if let Some(count) = self.stopped.get_mut(usize::from(stopped.guest)) {
            *count = count.saturating_add(1 + u64::from(stopped.more));
        }
    }

    /// How many of a guest's devices it stopped.
    pub fn stopped(&self, guest: usize) -> u64 {
        self.stopped.get(guest).copied().unwrap_or(0)
    }

    /// Makes it again, after it died or to end it. It has to be started, and told again which devices see memory ([`Shield::agree`]).
    #[inline(never)]
    pub fn again(
        &mut self, system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, dead: &Built, ends: Ends<'_>,
    ) -> Result<Built, StartError> {
        let server = build::planned(plan, Role::Smmu).ok_or(StartError::Plan("no such server"))?;
        build::end(system, dead)?;
        self.room.clear(system)?;
        let (built, portal) = in_room(system, board, supply, self.room, server, (&self.lines, &self.rings), ends)?;
        self.portal = portal;
        attach(system, &needs(board, server.1)?, self.tables, built.domain)?;
        Ok(built)
    }

    /// Whether it is the server that root knows; then every guest's devices see what they saw when the one before ended.
    pub fn agree(&mut self, system: &impl System, guests: &[Made]) -> Result<(), StartError> {
        message::attach(system, self.portal, interface::SMMU).step("agree with smmu")?;
        for (index, made) in guests.iter().enumerate() {
            if self.attached >> index & 1 == 1 {
                self.show(system, index, made)?;
            } else {
                self.hide(system, index)?;
            }
        }
        Ok(())
    }

    /// A guest's devices see memory from now on.
    pub fn show(&mut self, system: &impl System, guest: usize, made: &Made) -> Result<(), StartError> {
        if !self.concerns(guest) {
            return Ok(());
        }
        let first = made.memory.info(system).step("ask where memory is")?.first;
        self.portal.order(system, SmmuOp::Attach as u64, [guest as u64, first]).step("show devices memory")?;
        self.attached |= 1 << guest;
        Ok(())
    }

    /// They see none any more.
    pub fn hide(&mut self, system: &impl System, guest: usize) -> Result<(), StartError> {
        if !self.concerns(guest) {
            return Ok(());
        }
        // However it ends, nobody relies on it from here on.
        self.attached &= !(1 << guest);
        self.portal.order(system, SmmuOp::Detach as u64, [guest as u64]).step("hide memory from devices")?;
        Ok(())
    }

    /// Whether devices of this guest go through it.
    pub const fn concerns(&self, guest: usize) -> bool {
        self.concerned >> (guest & 31) & 1 == 1
    }
}
