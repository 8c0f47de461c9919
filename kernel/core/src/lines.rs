// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual interrupts: per vCPU the state of 128 lines, and which of them sit in list registers.
//!
//! Lines 0–15 are software interrupts, 16–31 private, the rest the guest's (kept in the vCPU they are sent to). To
//! inject means to make pending, never *done*: pending lines wait here and are put into list registers by priority; a
//! maintenance interrupt asks for more while some wait.

use crate::local::{Local, Running};
use crate::machine::{Machine, VcpuContext};
use crate::remote;
use crate::schedule;
use crate::shared::{GUEST_VCPUS, Shared};
use crate::trap::Next;
use crate::pool::Id;
use crate::vcpu::{self, Vcpu};
use trellis_idl::kernel::{FIRST_MESSAGE, LineField, LineState, Refusal};

/// The virtual timer's line (Arm BSA: PPI 11 of the virtual timer = INTID 27).
pub const VIRTUAL_TIMER: u8 = 27;

/// Most list registers (GICv3 has at most 16).
pub const LIST_ENTRIES: usize = 16;

/// Software interrupts: lines below this number.
const SOFTWARE: u8 = 16;
/// Software and private lines: those below this number.
const PRIVATE: u8 = 32;

/// The guest's lines: all others.
const SHARED: u128 = !((1 << PRIVATE) - 1);

/// Senders of software interrupts that a version 2 guest can tell apart.
const SENDERS: u64 = 8;

/// What of a line goes with it from one vCPU to another.
const MOVING: [(u64, LineField); 5] = [
    (LineState::ENABLED, LineField::Enabled),
    (LineState::PENDING, LineField::Pending),
    (LineState::LEVEL, LineField::Level),
    (LineState::EDGE, LineField::Edge),
    (LineState::GROUP, LineField::Group),
];

/// No line: what an unused list register holds.
const FREE: u8 = 0xff;

/// What a list register holds, without the machine's packing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListEntry {
    /// The line; 0 with neither flag = empty.
    pub line: u8,
    /// Its priority.
    pub priority: u8,
    /// Pending.
    pub pending: bool,
    /// Active.
    pub active: bool,
    /// In group 1.
    pub group: bool,
    /// The physical line that it is tied to, which the guest's end of interrupt deactivates; below 16 it is tied to none,
    /// and this is who sent it, where a version 2 guest asks: a software interrupt's vCPU number.
    pub origin: u16,
    /// Ask for a maintenance interrupt when it ends.
    pub notify: bool,
}

impl ListEntry {
    /// Whether it holds nothing.
    pub const fn is_empty(&self) -> bool {
        !self.pending && !self.active
    }

    /// Whether it is tied to a physical line.
    #[inline(always)]
    pub const fn is_tied(&self) -> bool {
        self.origin >= SOFTWARE as u16
    }

    /// The vCPU that sent it.
    #[inline(always)]
    pub const fn sender(&self) -> u8 {
        if self.is_tied() { 0 } else { self.origin as u8 }
    }
}

/// Software interrupts that a guest sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftwareInterrupt {
    /// 0–15.
    pub line: u8,
    /// vCPU numbers of the guest, one bit each; the sender's own included if it is meant.
    pub targets: u64,
    /// All but the sender.
    pub others: bool,
}

/// The lines of a vCPU. One bit a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lines {
    enabled: u128,
    /// Pending by edge or software.
    pending: u128,
    /// Input of a level line.
    level: u128,
    /// Edge triggered.
    edge: u128,
    group: u128,
    /// Taken and not ended, as far as known here (list registers know better).
    active: u128,
    /// In a list register.
    listed: u128,
    /// Tied to a physical line.
    hardware: u128,
    /// Guest-wide lines that are sent to this vCPU.
    home: u128,
    priority: [u8; 128],
    /// Who sent each pending software interrupt, one bit a vCPU. None while it is pending: vCPU 0.
    senders: [u8; SOFTWARE as usize],
    /// Which line each list register holds, or [`FREE`].
    slots: [u8; LIST_ENTRIES],
    /// The list register that each private line was put into last; it holds the line if `slots` says so too.
    places: [u8; PRIVATE as usize],
    /// The physical line that each of the guest's is tied to.
    physical: [u16; 128],
    /// The distributor forwards.
    forwarding: bool,
    /// Lines wait for a list register, and a maintenance interrupt is asked for.
    starved: bool,
}

impl Lines {
    /// Reset state: software interrupts are edge triggered, the virtual timer is tied to its physical line.
    pub const EMPTY: Lines = Lines {
        enabled: 0,
        pending: 0,
        level: 0,
        edge: 0xffff,
        group: 0,
        active: 0,
        listed: 0,
        hardware: 1 << VIRTUAL_TIMER,
        home: 0,
        priority: [0; 128],
        senders: [0; SOFTWARE as usize],
        slots: [FREE; LIST_ENTRIES],
        places: [0; PRIVATE as usize],
        physical: [0; 128],
        forwarding: false,
        starved: false,
    };

    /// Lines that should be taken and are in no list register.
    #[inline(always)]
    const fn waiting(&self) -> u128 {
        if !self.forwarding {
            return 0;
        }
        self.enabled & (self.pending | (self.level & !self.edge)) & !self.active & !self.listed
    }

    /// Whether a guest that waits has something to wake up for.
    pub const fn has_deliverable(&self) -> bool {
        self.listed_pending() | self.waiting() != 0
    }

    const fn listed_pending(&self) -> u128 {
        self.listed & !self.active & self.enabled
    }

    /// The line of the highest priority (the lowest number) among these; there is at least one.
    fn first_of(&self, waiting: u128) -> u8 {
        let mut best = waiting.trailing_zeros() as u8 & 127;
        let mut rest = waiting & (waiting - 1);
        while rest != 0 {
            let line = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            if self.priority[line as usize & 127] < self.priority[best as usize & 127] {
                best = line;
            }
        }
        best
    }

    /// A line is in no list register any more.
    #[inline(always)]
    fn unlist(&mut self, line: u8) {
        self.listed &= !bit(line);
        for slot in self.slots.iter_mut().filter(|slot| **slot == line) {
            *slot = FREE;
        }
    }

    /// A line is in this list register from now on; whatever was there has ended.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn list(&mut self, line: u8, slot: usize) {
        let before = core::mem::replace(&mut self.slots[slot & (LIST_ENTRIES - 1)], line);
        if before != FREE && before != line {
            self.listed &= !bit(before);
            self.active &= !bit(before);
        }
        if let Some(place) = self.places.get_mut(line as usize) {
            *place = slot as u8;
        }
        self.listed |= bit(line);
    }

    /// What a list register holds when this line has just become pending.
    #[inline(always)]
    fn pending_entry(&self, line: u8) -> ListEntry {
        let this = bit(line);
        let (hardware, edge) = (self.hardware & this != 0, self.edge & this != 0);
        ListEntry {
            line,
            priority: self.priority[line as usize & 127],
            pending: true,
            active: false,
            group: self.group & this != 0,
            origin: if hardware { self.physical_of(line) } else { 0 },
            notify: !edge && !hardware,
        }
    }

    /// The physical line that a line is tied to: a private one to that of its number.
    #[inline(always)]
    const fn physical_of(&self, line: u8) -> u16 {
        if line < PRIVATE { line as u16 } else { self.physical[line as usize & 127] }
    }

    /// Software interrupts have their senders apart, and are put into list registers one after the other: takes the first
    /// out. The line stays pending for the others, and the next follows when the guest has ended this one.
    fn take_sender(&mut self, entry: ListEntry) -> ListEntry {
        let Some(senders) = self.senders.get_mut(entry.line as usize).filter(|senders| **senders != 0) else {
            return entry;
        };
        let sender = senders.trailing_zeros() as u8;
        *senders &= *senders - 1;
        let others = *senders != 0;
        if others {
            self.pending |= bit(entry.line);
        }
        ListEntry { origin: sender as u16, notify: others, ..entry }
    }

    /// What a list register holds once more of its line came. A software interrupt comes again from the same sender, or
    /// from others, who wait until it has ended.
    fn join(&mut self, held: ListEntry) -> ListEntry {
        let senders = self.senders.get_mut(held.line as usize).filter(|senders| **senders != 0);
        let Some(senders) = senders else {
            self.pending &= !bit(held.line);
            return ListEntry { pending: true, ..held };
        };
        let again = *senders >> (held.sender() & 7) & 1 == 1;
        *senders &= !(1 << (held.sender() & 7));
        let others = *senders != 0;
        if !others {
            self.pending &= !bit(held.line);
        }
        ListEntry { pending: held.pending || again, notify: others, ..held }
    }

    /// A software interrupt that was in a list register is pending here again.
    fn give_back(&mut self, held: ListEntry) {
        self.pending |= bit(held.line);
        if let Some(senders) = self.senders.get_mut(held.line as usize)
            && (held.sender() != 0 || *senders != 0)
        {
            *senders |= 1 << (held.sender() & 7);
        }
    }

    /// Software interrupts that are pending from nobody in particular are vCPU 0's.
    fn name_senders(&mut self) {
        for line in (0..SOFTWARE).filter(|line| self.pending & bit(*line) != 0) {
            let senders = &mut self.senders[line as usize % SOFTWARE as usize];
            *senders |= u8::from(*senders == 0);
        }
    }

    /// Software interrupts from one sender (its number + 1) become pending or not, or from everybody (0) pending no more.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn set_senders(&mut self, which: u16, pending: u16, sender: u64) {
        for line in (0..SOFTWARE).filter(|line| which >> line & 1 == 1) {
            let senders = &mut self.senders[line as usize % SOFTWARE as usize];
            let on = pending >> line & 1 == 1;
            match (sender, on) {
                (0, false) => *senders = 0,
                (0, true) => *senders |= u8::from(*senders != 0),
                (from, true) => *senders |= 1 << (from - 1 & 7),
                (from, false) => *senders &= !(1 << (from - 1 & 7)),
            }
            if *senders != 0 {
                self.pending |= bit(line);
            }
        }
    }

    /// Guest-wide lines are all sent to a guest's first vCPU at first.
    pub fn begin(&mut self, is_first: bool) {
        self.home = if is_first { SHARED } else { 0 };
    }

    /// Whether a physical line is tied to this line of the guest's, and that is sent to this vCPU.
    #[inline(always)]
    pub fn is_tied_here(&self, physical: u32, line: u8) -> bool {
        self.home & bit(line) != 0 && self.physical_of(line) == physical as u16
    }

    /// Makes a line pending.
    pub fn make_pending(&mut self, line: u8) {
        self.pending |= bit(line);
    }

    /// Lines that became pending at another place for the same vCPU.
    pub fn join_pending(&mut self, other: &Lines) {
        self.pending |= other.pending;
    }

    /// Takes everything that is known of a line out.
    fn clear(&mut self, line: u8) -> LineState {
        let mut bits = 0;
        for (number, field) in MOVING {
            let word = self.field(field);
            if *word & bit(line) != 0 {
                bits |= number;
            }
            *word &= !bit(line);
        }
        self.home &= !bit(line);
        LineState::new(bits, core::mem::take(&mut self.priority[line as usize & 127]))
    }

    /// Puts it in.
    fn put(&mut self, line: u8, state: LineState) {
        for (number, field) in MOVING {
            let word = self.field(field);
            *word = *word & !bit(line) | if state.has(number) { bit(line) } else { 0 };
        }
        self.priority[line as usize & 127] = state.priority() & 0xf8;
        self.home |= bit(line);
    }

    /// Reset state, but for what is the guest's and not this vCPU's: whether the distributor forwards, and its lines.
    fn forget_own(&mut self) {
        for word in [&mut self.enabled, &mut self.pending, &mut self.level, &mut self.group, &mut self.edge, &mut self.hardware] {
            *word &= SHARED;
        }
        self.edge |= Lines::EMPTY.edge;
        self.hardware |= Lines::EMPTY.hardware;
        (self.active, self.listed, self.starved) = (0, 0, false);
        self.senders = Lines::EMPTY.senders;
        self.slots = Lines::EMPTY.slots;
        self.places = Lines::EMPTY.places;
        self.priority[..PRIVATE as usize].fill(0);
    }

    #[inline(always)]
    fn field(&mut self, field: LineField) -> &mut u128 {
        match field {
            LineField::Enabled => &mut self.enabled,
            LineField::Pending => &mut self.pending,
            LineField::Active => &mut self.active,
            LineField::Edge => &mut self.edge,
            LineField::Level => &mut self.level,
            LineField::Group => &mut self.group,
        }
    }

    /// Whether the physical line of this number may interrupt now: the guest has it enabled.
    pub const fn is_enabled(&self, line: u8) -> bool {
        self.enabled & bit(line) != 0
    }
}

/// A line's bit. Made of a 64-bit shift: a 128-bit one by a variable is a loop or a call on the machines there are.
#[inline(always)]
const fn bit(line: u8) -> u128 {
    let half = (1u64 << (line & 63)) as u128;
    if line & 127 < 64 { half } else { half << 64 }
}

/// The list registers of a vCPU, wherever they are.
#[inline(always)]
fn entry<M: Machine>(local: &Local<M>, machine: &M, index: u16, slot: usize) -> ListEntry {
    let vcpu = local.vcpus.at(index);
    if machine.is_loaded(&vcpu.context) { machine.list_entry(slot) } else { vcpu.context.list_entry(slot) }
}

#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn set_entry<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, slot: usize, value: ListEntry) {
    let loaded = machine.is_loaded(&local.vcpus.at(index).context);
    if loaded {
        machine.set_list_entry(slot, value);
    } else {
        local.vcpus.at_mut(index).context.set_list_entry(slot, value);
    }
}

/// Learns what the guest did with its list registers: ended lines leave, active ones are noted. A register whose end was
/// to be noticed is emptied: until then it holds the maintenance interrupt up (GICv3 12.4.4, GICv2 5.3.4).
#[cfg_attr(target_os = "none", optimize(speed))]
fn sync<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    if local.vcpus.at(index).lines.listed == 0 {
        return;
    }
    for slot in 0..machine.list_entries().min(LIST_ENTRIES) {
        let line = local.vcpus.at(index).lines.slots[slot];
        if line == FREE {
            continue;
        }
        let held = entry(local, machine, index, slot);
        let lines = &mut local.vcpus.at_mut(index).lines;
        if !held.is_empty() && held.line != line {
            continue;
        }
        if held.is_empty() {
            lines.slots[slot] = FREE;
            lines.listed &= !bit(line);
            lines.active &= !bit(line);
            if held.notify {
                set_entry(local, machine, index, slot, ListEntry::default());
            }
        } else if held.active {
            lines.active |= bit(line);
        } else {
            lines.active &= !bit(line);
        }
    }
}

/// Edges that came for lines which sit in a list register: one that is pending there stays one; one that is active
/// becomes pending as well, so that it follows at once when the guest ends it.
fn merge<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    for slot in 0..machine.list_entries() {
        let lines = &mut local.vcpus.at_mut(index).lines;
        let edges = lines.pending & lines.listed & lines.edge & !lines.hardware & lines.enabled;
        if edges == 0 {
            return;
        }
        let held = entry(local, machine, index, slot);
        if !held.is_empty() && edges & bit(held.line) != 0 {
            let entry = local.vcpus.at_mut(index).lines.join(held);
            set_entry(local, machine, index, slot, entry);
        }
    }
}

/// Learns what ended and fills list registers with what waits.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn refresh<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    sync(local, machine, index);
    merge(local, machine, index);
    let entries = machine.list_entries().min(LIST_ENTRIES);
    let mut slot = 0;
    let starved = loop {
        let lines = &mut local.vcpus.at_mut(index).lines;
        let waiting = lines.waiting();
        if waiting == 0 {
            break false;
        }
        while slot < entries && lines.slots[slot] != FREE {
            slot += 1;
        }
        if slot == entries {
            break true;
        }
        let line = lines.first_of(waiting);
        lines.pending &= !bit(line);
        let value = lines.pending_entry(line);
        let value = lines.take_sender(value);
        lines.list(line, slot);
        set_entry(local, machine, index, slot, value);
    };
    let lines = &mut local.vcpus.at_mut(index).lines;
    if lines.starved != starved {
        lines.starved = starved;
        local.vcpus.at_mut(index).context.watch_underflow(starved);
        if machine.is_loaded(&local.vcpus.at(index).context) {
            machine.watch_underflow(starved);
        }
    }
}

/// Puts a private line that has just become pending straight into a list register of the vCPU that runs: nothing else
/// waits to be put there, and there is room. False, with nothing changed: it goes the way of all others.
#[inline(always)]
pub(crate) fn list_at_once<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, line: u8) -> bool {
    let line = line & (PRIVATE - 1);
    let vcpu = local.vcpus.at_mut(index);
    let lines = &mut vcpu.lines;
    let may_come = lines.forwarding && lines.enabled & bit(line) != 0;
    if vcpu.hazard || lines.starved || !may_come || !machine.is_loaded(&vcpu.context) {
        return false;
    }
    let slot = lines.places[line as usize];
    if lines.slots[slot as usize & (LIST_ENTRIES - 1)] != line {
        return list_anew(local, machine, index, line);
    }
    if machine.empty_lists() >> (slot & 63) & 1 == 0 {
        // It is there still: an edge more, for `merge`.
        return false;
    }
    lines.pending &= !bit(line);
    lines.active &= !bit(line);
    let entry = lines.pending_entry(line);
    machine.set_list_entry(slot as usize, entry);
    true
}

/// The same for a line that has no list register yet: an empty one, if there is one. Apart, for it comes seldom.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn list_anew<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, line: u8) -> bool {
    let slot = machine.empty_lists().trailing_zeros() as usize;
    if slot >= LIST_ENTRIES {
        return false;
    }
    list_in(local, machine, index, line, slot);
    true
}

/// A tied line's interrupt came for the vCPU that runs: it goes straight into a list register, as above.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
pub(crate) fn list_tied_at_once<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, line: u8) -> bool {
    let vcpu = local.vcpus.at(index);
    let lines = &vcpu.lines;
    let may_come = lines.forwarding && lines.enabled & bit(line) != 0;
    if vcpu.hazard || lines.starved || !may_come || !machine.is_loaded(&vcpu.context) {
        return false;
    }
    let empty = machine.empty_lists();
    // One that it was in before and has left, as its end was not looked for since: a line is in one at most.
    let slot = match lines.listed & bit(line) {
        0 => empty.trailing_zeros() as usize,
        _ => lines.slots.iter().position(|held| *held == line).unwrap_or(LIST_ENTRIES),
    };
    if slot >= LIST_ENTRIES || empty >> slot & 1 == 0 {
        return false;
    }
    list_in(local, machine, index, line, slot);
    true
}

/// Puts a line that has just become pending into an empty list register.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn list_in<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, line: u8, slot: usize) {
    let lines = &mut local.vcpus.at_mut(index).lines;
    if lines.slots[slot & (LIST_ENTRIES - 1)] != line {
        lines.list(line, slot);
    }
    lines.pending &= !bit(line);
    lines.active &= !bit(line);
    let entry = lines.pending_entry(line);
    machine.set_list_entry(slot, entry);
}

/// The virtual timer of the vCPU that runs is due: it goes on at once with the interrupt.
#[inline(always)]
pub fn timer_at_once<M: Machine>(local: &mut Local<M>, machine: &mut M) -> Next {
    let Running::Vcpu(index) = local.running else { return Next::Slow };
    if list_at_once(local, machine, index, VIRTUAL_TIMER) { Next::Again } else { Next::Slow }
}

/// Makes lines pending (one bit each, from `first` on) for a vCPU of this CPU.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
pub(crate) fn arrive<M: Machine>(local: &mut Local<M>, index: u16, which: u64, first: u8) {
    if which != 0 {
        local.vcpus.at_mut(index).lines.pending |= (which as u128) << (first & 64);
        vcpu::wake(local, index);
    }
}

/// Takes a line out of its list register, if it is only pending there: it was disabled or withdrawn.
#[inline(always)]
fn withdraw<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, which: u128, keep_pending: bool) {
    withdraw_of(local, machine, index, which, None, keep_pending);
}

/// The same, only of software interrupts of this sender if there is one.
fn withdraw_of<M: Machine>(
    local: &mut Local<M>, machine: &mut M, index: u16, which: u128, sender: Option<u8>, keep_pending: bool,
) {
    for slot in 0..machine.list_entries() {
        let held = entry(local, machine, index, slot);
        if held.is_empty() || held.active || which & bit(held.line) == 0 {
            continue;
        }
        if sender.is_some_and(|sender| sender != held.sender()) {
            continue;
        }
        set_entry(local, machine, index, slot, ListEntry::default());
        let lines = &mut local.vcpus.at_mut(index).lines;
        lines.unlist(held.line);
        if keep_pending && (lines.edge & bit(held.line) != 0 || lines.hardware & bit(held.line) != 0) {
            lines.give_back(held);
        }
    }
}

/// Takes lines that were active out of their list registers; what is pending there as well stays.
#[cfg_attr(target_os = "none", optimize(speed))]
fn deactivate<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, which: u128) {
    for slot in 0..machine.list_entries() {
        let held = entry(local, machine, index, slot);
        if !held.active || which & bit(held.line) == 0 {
            continue;
        }
        let rest = if held.pending { ListEntry { active: false, ..held } } else { ListEntry::default() };
        set_entry(local, machine, index, slot, rest);
        if rest.is_empty() {
            local.vcpus.at_mut(index).lines.unlist(held.line);
        }
    }
}

/// The virtual timer of the loaded vCPU is due: its line becomes pending, tied to the physical one.
pub fn timer_due<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    if let Some(index) = loaded(local, machine) {
        // It can only come again after the guest ended it: its old list register is found empty by the next refresh.
        local.vcpus.at_mut(index).lines.make_pending(VIRTUAL_TIMER);
        vcpu::wake(local, index);
    }
    schedule::go_on_fresh(local, shared, machine)
}

/// The vCPU whose state is in the hardware here: mostly the one that runs.
#[cfg_attr(target_os = "none", optimize(speed))]
fn loaded<M: Machine>(local: &Local<M>, machine: &M) -> Option<u16> {
    if let Running::Vcpu(index) = local.running
        && machine.is_loaded(&local.vcpus.at(index).context)
    {
        return Some(index);
    }
    let is_loaded = |id: &Id<Vcpu<M>>| local.vcpus.get(*id).is_some_and(|vcpu| machine.is_loaded(&vcpu.context));
    local.vcpus.names().find(is_loaded).map(|id| id.index() as u16)
}

/// The virtual interface wants attention: a line that asked for notice ended, or room became free.
pub fn maintenance<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    if let Some(index) = loaded(local, machine) {
        refresh(local, machine, index);
    }
    schedule::go_on(local, shared, machine)
}

/// The running vCPU sends a software interrupt to itself alone, and goes on at once with it. [`Next::Slow`], with nothing
/// changed: it is not so simple.
#[inline(always)]
pub fn software_at_once<M: Machine>(local: &mut Local<M>, machine: &mut M, what: SoftwareInterrupt) -> Next {
    let Running::Vcpu(index) = local.running else { return Next::Slow };
    let own = 1 << (local.vcpus.at(index).number & 63);
    if what.others || what.targets != own || !list_at_once(local, machine, index, what.line & 15) {
        return Next::Slow;
    }
    local.vcpus.at_mut(index).context.advance();
    Next::Again
}

/// The running vCPU sends a software interrupt to vCPUs of its guest, and goes on behind the instruction.
///
/// [`Next::Again`] when nothing else became able to run and nothing waits for a list register.
pub fn software<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, what: SoftwareInterrupt,
) -> Next {
    let Running::Vcpu(index) = local.running else {
        return schedule::go_on(local, shared, machine);
    };
    let ready = local.ready;
    local.vcpus.at_mut(index).context.advance();
    let (guest, number) = (local.vcpus.at(index).guest, local.vcpus.at(index).number);
    let own = 1u64 << (number & 63);
    let targets = if what.others { !own } else { what.targets };
    if targets & own != 0 {
        arrive(local, index, 1 << (what.line & 15), 0);
    }
    let mut rest = targets & !own & ((1 << GUEST_VCPUS) - 1);
    while rest != 0 {
        let other = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        remote::post_line(local, shared, machine, guest, other, what.line & 15);
    }
    if local.ready == ready && !local.vcpus.at(index).hazard {
        return Next::Again;
    }
    schedule::go_on_fresh(local, shared, machine)
}

/// `Op::LinesWrite`.
#[allow(clippy::too_many_arguments, reason = "the operation's arguments, one by one")]
pub fn write<M: Machine>(
    local: &mut Local<M>, machine: &mut M, index: u16, field: u64, first: u64, which: u64, values: u64, sender: u64,
) -> Result<u64, Refusal> {
    let field = LineField::from_number(field).ok_or(Refusal::BadArgument)?;
    let of_one = sender != 0;
    if sender > SENDERS || of_one && (field != LineField::Pending || first != 0 || which >> SOFTWARE != 0) {
        return Err(Refusal::BadArgument);
    }
    if first >= 128 || !first.is_multiple_of(32) || which > u32::MAX as u64 || values > u32::MAX as u64 {
        return Err(Refusal::OutOfRange);
    }
    sync(local, machine, index);
    let mask = (which as u128) << first;
    let set = ((values & which) as u128) << first;
    let lines = &mut local.vcpus.at_mut(index).lines;
    if of_one {
        lines.name_senders();
    }
    let gone = mask & !set;
    let ended = gone & SHARED & lines.hardware & match field {
        LineField::Pending => lines.pending | lines.listed & !lines.active,
        LineField::Active => lines.active,
        _ => 0,
    };
    let word = lines.field(field);
    *word = *word & !mask | set;
    // Software interrupts are edge triggered, always.
    lines.edge |= 0xffff;
    match field {
        LineField::Enabled => withdraw(local, machine, index, gone, true),
        LineField::Pending if of_one => {
            lines.set_senders(which as u16, values as u16, sender);
            withdraw_of(local, machine, index, gone, Some(sender as u8 - 1), false);
        }
        LineField::Pending => {
            if first == 0 {
                lines.set_senders(which as u16, values as u16, 0);
            }
            withdraw(local, machine, index, gone, false);
        }
        LineField::Level => {
            let level_lines = !local.vcpus.at(index).lines.edge;
            withdraw(local, machine, index, gone & level_lines, false);
            let lines = &mut local.vcpus.at_mut(index).lines;
            lines.pending |= set & lines.edge;
        }
        LineField::Active => deactivate(local, machine, index, gone),
        LineField::Edge | LineField::Group => {}
    }
    let_go(&local.vcpus.at(index).lines, machine, ended);
    notice(local, index);
    Ok(0)
}

/// Physical lines whose interrupt the guest will not end any more.
fn let_go<M: Machine>(lines: &Lines, machine: &mut M, mut which: u128) {
    while which != 0 {
        machine.end_line(lines.physical_of(which.trailing_zeros() as u8).into());
        which &= which - 1;
    }
}

/// `Op::LineTie`: a guest-wide line is tied to this physical one, or is no more: what came and was not ended is dropped
/// then.
pub fn tie<M: Machine>(
    local: &mut Local<M>, machine: &mut M, index: u16, line: u8, physical: u16, on: bool,
) -> Result<u64, Refusal> {
    let which = bit(shared_line(line.into())?);
    if !on {
        for field in [LineField::Pending, LineField::Active] {
            write(local, machine, index, field as u64, line as u64 & !31, 1 << (line & 31), 0, 0)?;
        }
    }
    let lines = &mut local.vcpus.at_mut(index).lines;
    // A list register has no room for the number of a message's line (GICv3 12.4.6), which has no active state to end.
    let ends = on && (physical as u64) < FIRST_MESSAGE;
    lines.hardware = if ends { lines.hardware | which } else { lines.hardware & !which };
    lines.physical[line as usize & 127] = if on { physical } else { 0 };
    Ok(0)
}

/// A tied line's interrupt came.
#[cfg_attr(target_os = "none", optimize(speed))]
pub(crate) fn arrive_tied<M: Machine>(local: &mut Local<M>, index: u16, line: u8) {
    local.vcpus.at_mut(index).lines.pending |= bit(line);
    vcpu::wake(local, index);
}

/// Wakes the vCPU when something waits for it.
#[cfg_attr(target_os = "none", optimize(speed))]
fn notice<M: Machine>(local: &mut Local<M>, index: u16) {
    let lines = &local.vcpus.at(index).lines;
    if lines.waiting() | lines.pending & lines.listed != 0 {
        vcpu::wake(local, index);
    }
}

/// `Op::LinesRead`.
pub fn read<M: Machine>(
    local: &mut Local<M>, machine: &mut M, index: u16, field: u64, first: u64, sender: u64,
) -> Result<u64, Refusal> {
    let field = LineField::from_number(field).ok_or(Refusal::BadArgument)?;
    if sender > SENDERS || sender != 0 && (field != LineField::Pending || first != 0) {
        return Err(Refusal::BadArgument);
    }
    if first >= 128 || !first.is_multiple_of(32) {
        return Err(Refusal::OutOfRange);
    }
    sync(local, machine, index);
    if sender != 0 {
        return Ok(pending_from(local, machine, index, sender as u8 - 1).into());
    }
    let mut extra = 0;
    if field == LineField::Pending {
        let lines = &local.vcpus.at(index).lines;
        extra = lines.level & !lines.edge;
        for slot in 0..machine.list_entries() {
            let held = entry(local, machine, index, slot);
            if held.pending {
                extra |= bit(held.line);
            }
        }
    }
    let word = *local.vcpus.at_mut(index).lines.field(field) | extra;
    Ok((word >> first) as u32 as u64)
}

/// Software interrupts of one sender that are pending, one bit each.
fn pending_from<M: Machine>(local: &Local<M>, machine: &M, index: u16, sender: u8) -> u16 {
    let lines = &local.vcpus.at(index).lines;
    let of = |line: &u8| match lines.senders[*line as usize % SOFTWARE as usize] {
        0 => sender == 0 && lines.pending & bit(*line) != 0,
        senders => senders >> sender & 1 == 1,
    };
    let mut all = (0..SOFTWARE).filter(of).fold(0, |all, line| all | 1 << line);
    for slot in 0..machine.list_entries() {
        let held = entry(local, machine, index, slot);
        if held.pending && held.line < SOFTWARE && held.sender() == sender {
            all |= 1 << held.line;
        }
    }
    all
}

/// `Op::LineTake`: a guest-wide line leaves the vCPU it is in, with everything but an active state: what the guest has
/// taken there it ends there (GICv2 4.3.12).
pub fn take<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, line: u64) -> Result<u64, Refusal> {
    let line = shared_line(line)?;
    sync(local, machine, index);
    let lines = &local.vcpus.at(index).lines;
    if lines.active & bit(line) != 0 {
        return Err(Refusal::BadState);
    }
    withdraw(local, machine, index, bit(line), true);
    Ok(local.vcpus.at_mut(index).lines.clear(line).0)
}

/// `Op::LineTarget`: a guest-wide line is this vCPU's from now on.
pub fn target<M: Machine>(local: &mut Local<M>, index: u16, line: u64, state: u64) -> Result<u64, Refusal> {
    let (line, state) = (shared_line(line)?, LineState(state));
    if !state.is_known() {
        return Err(Refusal::BadArgument);
    }
    local.vcpus.at_mut(index).lines.put(line, state);
    notice(local, index);
    Ok(0)
}

/// A guest-wide line.
fn shared_line(line: u64) -> Result<u8, Refusal> {
    if (PRIVATE as u64..128).contains(&line) { Ok(line as u8) } else { Err(Refusal::OutOfRange) }
}

/// `Op::LinesPriority`.
pub fn write_priority<M: Machine>(
    local: &mut Local<M>, index: u16, first: u64, bytes: u64, which: u64,
) -> Result<u64, Refusal> {
    if first >= 128 || !first.is_multiple_of(4) {
        return Err(Refusal::OutOfRange);
    }
    let lines = &mut local.vcpus.at_mut(index).lines;
    for i in 0..4 {
        if which >> i & 1 == 1 {
            // 32 levels: bits 7–3, as ICH_VTR_EL2.PRIbits of the boards has at least 5 bits.
            lines.priority[(first + i) as usize & 127] = (bytes >> (8 * i)) as u8 & 0xf8;
        }
    }
    Ok(0)
}

/// `Op::LinesPriorityRead`.
pub fn read_priority<M: Machine>(local: &Local<M>, index: u16, first: u64) -> Result<u64, Refusal> {
    if first >= 128 || !first.is_multiple_of(4) {
        return Err(Refusal::OutOfRange);
    }
    let lines = &local.vcpus.at(index).lines;
    Ok((0..4).fold(0, |word, i| word | (lines.priority[(first + i) as usize & 127] as u64) << (8 * i)))
}

/// `Op::LinesEnable`.
pub fn forward<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16, on: u64) -> Result<u64, Refusal> {
    if on > 1 {
        return Err(Refusal::BadArgument);
    }
    local.vcpus.at_mut(index).lines.forwarding = on == 1;
    if on == 0 {
        sync(local, machine, index);
        withdraw(local, machine, index, u128::MAX, true);
    }
    notice(local, index);
    Ok(0)
}

/// Puts a vCPU's own lines to their reset state and empties its list registers.
pub fn reset<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    withdraw(local, machine, index, SHARED, true);
    for slot in 0..machine.list_entries() {
        let held = entry(local, machine, index, slot);
        if held.active && held.origin >= PRIVATE as u16 {
            machine.end_line(held.origin.into());
        }
        set_entry(local, machine, index, slot, ListEntry::default());
    }
    let lines = &mut local.vcpus.at_mut(index).lines;
    lines.forget_own();
    local.vcpus.at_mut(index).hazard = false;
}
