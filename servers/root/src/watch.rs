// SPDX-License-Identifier: MIT OR Apache-2.0
//! Monitors as root makes them, and what each has of the guests that it watches.
//!
//! A guest's *ways* are its sessions and the portals into its servers that its monitors get. They belong to the guest: they
//! are taken apart with it, and made again with it. A monitor is made again of the same slots and memory when it dies;
//! what its guests were doing then is owed to them by the kernel, and settled with the next one.

use crate::build::{self, Built, READ_WRITE, Stored, Time, UNKNOWN};
use crate::estate::{self, Ends};
use crate::guest::{self, Made};
use crate::program::PIECES;
use crate::room::{Room, Store};
use crate::supply::{Lot, Supply};
use crate::wire::{self, Trio};
use crate::{Board, StartError, Step, patiently};
use heapless::Vec;
use trellis_idl::interface;
use trellis_idl::kernel::{PAGE, Refusal, Rights, SESSIONS, Seat};
use trellis_idl::layout::{RINGS, badge, monitor_signal, ring, slot, watched};
use trellis_idl::plan::{GuestPlan, MAX_VCPUS, MAX_WATCHED, Plan, Role, Rule, ServerPlan, WatcherPlan, Without};
use trellis_idl::wire::{AddedRule, KnownRule, MonitorOp, MonitorState};
use trellis_runtime::{Consumer, Domain, Frames, Portal, Session, Signal, System, message};

/// Microseconds that a monitor's control thread may take for an answer: it asks p2m for every page of its rules.
pub const CONTROL: u64 = 10_000_000;
/// The same while one takes another's place: guests wait, and root hears of nobody else.
pub const BRIEF: u64 = 100_000;
/// What a monitor may take to read what it is told, beside and before guests: a tenth of its CPU.
const READING: Time = Time { priority: guest::MAX_PRIORITY as u64 + 1, budget: trellis_runtime::handle::budget(2_000, 20_000) };

/// What a guest's monitors have of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways {
    lot: Lot,
    /// The first slot of each session: the session, then for each thread a portal into p2m and one into vcpu.
    first: [u64; SESSIONS as usize],
    /// What each session's monitor is told: rings of p2m, one for each vCPU, then vcpu's. They stay when the servers are made
    /// again: the other ends are in use.
    told: [Option<Frames>; SESSIONS as usize],
    /// The guest's p2m and vcpu server.
    finders: Option<[Domain; 2]>,
}

impl Ways {
    /// A session of the guest.
    pub fn session(&self, number: usize) -> Option<Session> {
        self.first.get(number).filter(|first| **first != 0).map(|first| Session::at(*first))
    }

    /// Gives the guest's servers their ends of what monitors are told.
    fn connect(&self, system: &impl System, plan: &GuestPlan<'_>) -> Result<(), StartError> {
        let vcpus = plan.cpus.len() as u64;
        for (session, run) in (0..).zip(self.told.iter().flatten()) {
            for (finder, domain) in (0..).zip(self.finders.iter().flatten()) {
                let at = RINGS + (ring::EVENTS as u64 + session * vcpus) * PAGE;
                domain.map(system, at, *run, finder * vcpus, vcpus, READ_WRITE).step("map rings of events")?;
            }
        }
        Ok(())
    }

    /// The portals of a session's monitor into a thread of p2m, and into the same of vcpu.
    fn portals(&self, session: usize, thread: u64) -> Option<[Portal; 2]> {
        let first = self.session(session)?.slot() + 1 + 2 * thread;
        Some([Portal::at(first), Portal::at(first + 1)])
    }
}

/// Makes a guest's sessions, and the ways into its servers for those who will have them.
pub fn ways(
    system: &impl System, supply: &mut Supply, plan: &GuestPlan<'_>, made: &Made, servers: [&Built; 2],
) -> Result<Ways, StartError> {
    let mut ways = Ways::default();
    if plan.watchers.is_empty() {
        return Ok(ways);
    }
    for told in ways.told.iter_mut().take(plan.watchers.len()) {
        *told = Some(supply.take(system, 2 * plan.cpus.len() as u64)?);
    }
    ways.finders = Some(servers.map(|server| server.domain));
    supply.begin();
    ways.first = sessions(system, supply, plan, made, servers)?;
    ways.lot = supply.end()?;
    ways.connect(system, plan)?;
    Ok(ways)
}

/// Makes them again, of the same slots.
pub fn ways_again(
    system: &impl System, supply: &mut Supply, ways: &Ways, plan: &GuestPlan<'_>, made: &Made, servers: [&Built; 2],
) -> Result<Ways, StartError> {
    if plan.watchers.is_empty() {
        return Ok(*ways);
    }
    let before = supply.repeat(&ways.lot);
    let first = sessions(system, supply, plan, made, servers);
    supply.go_on(before);
    let ways = Ways { first: first?, finders: Some(servers.map(|server| server.domain)), ..*ways };
    ways.connect(system, plan)?;
    Ok(ways)
}

fn sessions(
    system: &impl System, supply: &mut Supply, plan: &GuestPlan<'_>, made: &Made, [p2m, vcpu]: [&Built; 2],
) -> Result<[u64; SESSIONS as usize], StartError> {
    let mut first = [0; SESSIONS as usize];
    for (number, first) in (0..plan.watchers.len() as u64).zip(&mut first) {
        *first = supply.slot();
        let session = patiently(system, || Session::create(system, made.guest, number, *first)).step("make a session")?;
        for server in [p2m, vcpu] {
            session.grant(system, server.domain, slot::SESSION + number, Rights::USE).step("grant a session")?;
        }
        for thread in 0..=plan.cpus.len() {
            let badge = badge::monitor(number, thread as u64);
            for server in [p2m, vcpu] {
                let thread = server.threads.get(thread).ok_or(StartError::Plan("too few threads"))?;
                let slot = supply.slot();
                patiently(system, || thread.portal(system, badge, slot)).step("make a portal")?;
            }
        }
    }
    Ok(first)
}

/// Takes everything of a guest from those who watch it: the guest is about to be taken apart.
pub fn bar(system: &impl System, plan: &GuestPlan<'_>, made: &Made, ways: &Ways) -> Result<(), StartError> {
    if plan.watchers.is_empty() {
        return Ok(());
    }
    // Monitors have copies, which nothing else would take out of their slots.
    made.guest.revoke(system).step("revoke a guest")?;
    for vcpu in &made.vcpus {
        vcpu.revoke(system).step("revoke a vCPU")?;
    }
    for session in 0..plan.watchers.len() {
        for portal in (0..=plan.cpus.len() as u64).filter_map(|thread| ways.portals(session, thread)).flatten() {
            portal.revoke(system).step("revoke a portal")?;
        }
    }
    Ok(())
}

/// Empties the slots of a guest that was taken apart.
pub fn clear(system: &impl System, ways: &Ways) {
    ways.lot.forget(system);
}

/// Whom a monitor watches: each guest's index, which of its sessions, and what the manifest says.
pub fn watched_by<'p>(plan: &'p Plan<'_>, server: usize) -> impl Iterator<Item = (usize, usize, WatcherPlan)> + 'p {
    plan.guests.iter().enumerate().flat_map(move |(index, guest)| {
        let own = guest.watchers.iter().enumerate().filter(move |(_, watcher)| usize::from(watcher.server) == server);
        own.map(move |(session, watcher)| (index, session, *watcher))
    })
}

/// A monitor, and what it is made of. There are two halves of everything, so that one can be made while the other runs:
/// rings, memory, slots, and the seat in the guests' sessions.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// Its index in the plan.
    pub number: usize,
    /// Who is asked, or was until it was lost.
    pub now: Instance,
    halves: [Half; 2],
    /// Where what the host sends is kept, if another may take its place.
    pub store: Option<Store>,
    /// The program that runs, if it is not the image's.
    pub stored: Option<Stored>,
}

/// Half of a monitor.
#[derive(Clone, Copy, Debug)]
struct Half {
    rings: Trio,
    room: Room,
    /// Something was made in it since it was emptied.
    is_used: bool,
}

/// A monitor's domain, which runs or will.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The server.
    pub built: Built,
    portals: Portals,
    /// Wakes root.
    signal: Signal,
    /// Wakes its thread that reads what it is told.
    ear: Signal,
    /// Which of its threads root calls.
    control: usize,
    /// Which half it is in.
    half: usize,
}

/// Ways into a monitor.
#[derive(Clone, Debug)]
struct Portals {
    control: Portal,
    /// Of each guest by its place: the slot for events of the first vCPU, the others behind it.
    events: Vec<u64, MAX_WATCHED>,
}

/// A guest of a monitor, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'g> {
    /// Its index.
    pub index: usize,
    /// Its plan.
    pub plan: &'g GuestPlan<'g>,
    /// Itself.
    pub made: &'g Made,
    /// Its sessions.
    pub ways: &'g Ways,
    /// Which of them is the monitor's.
    pub session: usize,
    /// What the manifest says.
    pub watcher: WatcherPlan,
}

impl Subject<'_> {
    fn own(&self) -> Result<Session, StartError> {
        self.ways.session(self.session).ok_or(StartError::Plan("no such session"))
    }

    /// Says who is asked from now on.
    pub fn commit(&self, system: &impl System, seat: Seat) -> Result<(), StartError> {
        self.own()?.commit(system, seat).step("say who watches")
    }

    /// How many of its vCPUs wait for somebody to be asked.
    fn owed(&self, system: &impl System) -> Result<u32, StartError> {
        self.own()?.info(system).map(|info| info.owed.count_ones()).step("ask what is owed")
    }

    /// Gives every event that is open or owed to whoever is asked now.
    pub fn settle(&self, system: &impl System) -> Result<(), StartError> {
        for vcpu in 0..self.plan.cpus.len() as u64 {
            self.own()?.settle(system, vcpu).step("settle what is owed")?;
        }
        Ok(())
    }

    /// The monitor is lost: who does what is watched waits, or goes on without being watched.
    pub fn suspend(&self, system: &impl System) -> Result<(), StartError> {
        match self.watcher.without {
            Without::Allow => self.release(system),
            Without::Hold | Without::Stop => self.commit(system, Seat::Held),
        }
    }

    /// Nobody watches any more.
    pub fn release(&self, system: &impl System) -> Result<(), StartError> {
        self.commit(system, Seat::Nobody)?;
        self.settle(system)
    }
}

impl Monitor {
    /// Makes a monitor for the first time. It does not run yet, and has nothing of its guests.
    #[inline(never)]
    pub fn make(
        system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, number: usize, ends: Ends<'_>,
    ) -> Result<Monitor, StartError> {
        let server = plan_of(plan, number)?;
        let console = ends.console.domain;
        let place = place_of(plan, number);
        let mut trio = |half| wire::trio(system, supply, console, number, (place, half));
        let rings = [trio(0)?, trio(1)?];
        let [first, second] = rings.map(|rings| {
            let threads = server.cpus.len() as u64 + 1;
            let room = Room::make(system, supply, build::most_pages(server, threads), slots(plan, number, threads))?;
            Ok(Half { rings, room, is_used: false })
        });
        let mut halves = [first?, second?];
        let store = Store::make(system, supply, server)?;
        let now = instance(system, board, supply, plan, number, (0, &mut halves[0]), ends, None)?;
        Ok(Monitor { number, now, halves, store, stored: None })
    }

    /// Makes it again, in its other half, after it died.
    #[inline(never)]
    pub fn again(
        &mut self, system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, ends: Ends<'_>,
    ) -> Result<(), StartError> {
        self.end(system, &self.now)?;
        let stored = self.stored.clone();
        self.now = self.beside(system, board, supply, plan, ends, stored.as_ref())?;
        Ok(())
    }

    /// Makes another one, of this program or the image's, in the half in which nobody lives.
    #[inline(never)]
    pub fn beside(
        &mut self, system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, ends: Ends<'_>,
        stored: Option<&Stored>,
    ) -> Result<Instance, StartError> {
        let other = 1 - self.now.half;
        self.tidy(system)?;
        // What an earlier one in this half still had to say is not the new one's.
        Consumer::new(board.ring(self.report_ring(plan, other))).clear();
        Consumer::new(board.ring(ring::root_seen(self.place(plan), other))).clear();
        let half = self.halves.get_mut(other).ok_or(StartError::Plan("no such half"))?;
        instance(system, board, supply, plan, self.number, (other, half), ends, stored)
    }

    /// Ends an instance, whatever it does.
    pub fn end(&self, system: &impl System, instance: &Instance) -> Result<(), StartError> {
        // Its guests' servers have copies, which nothing else would take out of their slots.
        let _ = instance.ear.revoke(system);
        build::end(system, &instance.built)
    }

    /// Empties the half in which nobody lives any more, if somebody did.
    pub fn tidy(&mut self, system: &impl System) -> Result<(), StartError> {
        let Some(half) = self.halves.get_mut(1 - self.now.half) else { return Ok(()) };
        if half.is_used {
            half.room.clear(system)?;
            half.is_used = false;
        }
        Ok(())
    }

    /// Which of root's rings the one that is asked reports by.
    pub fn reports(&self, plan: &Plan<'_>) -> usize {
        self.report_ring(plan, self.now.half)
    }

    fn report_ring(&self, plan: &Plan<'_>, half: usize) -> usize {
        if half == 0 { ring::root_report(self.number) } else { ring::root_second(self.place(plan)) }
    }

    /// Its place among monitors.
    fn place(&self, plan: &Plan<'_>) -> usize {
        place_of(plan, self.number)
    }

    /// Root's rings of what it was told of: those of the half in which it does not live first, where an earlier one's last words are.
    pub fn seen(&self, plan: &Plan<'_>) -> [usize; 2] {
        [1 - self.now.half, self.now.half].map(|half| ring::root_seen(self.place(plan), half))
    }
}

impl Instance {
    /// Whether it is a monitor as root knows them.
    pub fn attach(&self, system: &impl System) -> Result<(), StartError> {
        message::attach(system, self.portals.control, interface::MONITOR).step("agree with a monitor")
    }

    /// Gives it what it may have of a guest, and puts it where the guest's session will look.
    pub fn admit(&self, system: &impl System, guest: &Subject<'_>) -> Result<(), StartError> {
        let built = &self.built;
        let place = u64::from(guest.watcher.place);
        let some = |has, right| if has { right } else { Rights::default() };
        let memory = some(guest.watcher.reads, Rights::READ).with(some(guest.watcher.writes, Rights::WRITE));
        if memory != Rights::default() {
            guest.made.guest.grant(system, built.domain, watched::guest(place), memory).step("grant a guest")?;
        }
        let more = some(guest.watcher.sets, Rights::WRITE).with(some(guest.watcher.pauses, Rights::EXECUTE));
        for (number, vcpu) in (0..).zip(&guest.made.vcpus) {
            let (at, whose) = (watched::vcpu(place, number), badge::pauser::monitor(guest.session as u64, self.half as u64));
            vcpu.grant_badged(system, built.domain, at, Rights::READ.with(more), whose).step("grant a vCPU")?;
        }
        for thread in 0..=guest.made.vcpus.len() as u64 {
            let [p2m, vcpu] = guest.ways.portals(guest.session, thread).ok_or(StartError::Plan("no such session"))?;
            p2m.grant(system, built.domain, watched::p2m(place, thread), Rights::USE).step("grant a portal")?;
            vcpu.grant(system, built.domain, watched::vcpu_server(place, thread), Rights::USE).step("grant a portal")?;
        }
        self.listen(system, guest)?;
        let session = guest.own()?;
        let first = self.portals.events.get(place as usize).ok_or(StartError::Plan("no such place"))?;
        for vcpu in 0..guest.made.vcpus.len() as u64 {
            session.place(system, vcpu, self.seat() as u64, Some(Portal::at(first + vcpu))).step("place a monitor")?;
        }
        Ok(())
    }

    /// It reads what it is told of a guest, and is woken for it.
    fn listen(&self, system: &impl System, guest: &Subject<'_>) -> Result<(), StartError> {
        let run = guest.ways.told.get(guest.session).copied().flatten().ok_or(StartError::Plan("no such session"))?;
        let vcpus = guest.plan.cpus.len() as u64;
        for finder in 0..2 {
            let page = ring::heard(guest.watcher.place.into()) as u64 + finder * MAX_VCPUS as u64;
            match self.built.domain.map(system, RINGS + page * PAGE, run, finder * vcpus, vcpus, READ_WRITE) {
                // It is there since the guest was made for the first time.
                Ok(_) | Err(Refusal::Occupied) => {}
                Err(refusal) => return Err(StartError::Refused("map rings of events", refusal)),
            }
        }
        let at = slot::READER + 2 * guest.session as u64 + self.half as u64;
        for domain in guest.ways.finders.iter().flatten() {
            patiently(system, || self.ear.grant(system, *domain, at, Rights::USE)).step("grant a signal")?;
        }
        Ok(())
    }

    /// It is gone. What it paused goes on: nobody else knows why it did.
    pub fn unpause(&self, system: &impl System, guest: &Subject<'_>) -> Result<(), StartError> {
        let whose = 1 << badge::pauser::monitor(guest.session as u64, self.half as u64);
        guest.made.vcpus.iter().try_for_each(|vcpu| patiently(system, || vcpu.resume_for(system, whose)).map(drop)).step("end a pause")
    }

    /// Where its portals are in its guests' sessions.
    pub fn seat(&self) -> Seat {
        if self.half == 0 { Seat::First } else { Seat::Second }
    }

    /// How long it may take for what root asks, in microseconds.
    pub fn be_patient(&self, system: &impl System, patience: u64) -> Result<(), StartError> {
        let control = self.built.threads.get(self.control).ok_or(StartError::Plan("no control thread"))?;
        control.supervise(system, self.signal, patience).step("supervise a thread")
    }

    /// What it knows, for the one that comes after it.
    // Out of line, as `import` is: a state takes much of the stack.
    #[inline(never)]
    pub fn export(&self, system: &impl System) -> Result<MonitorState, Refusal> {
        self.portals.control.ask(system, MonitorOp::Export as u64, &())
    }

    /// Gives it what the one before knew.
    #[inline(never)]
    pub fn import(&self, system: &impl System, state: &MonitorState) -> Result<(), Refusal> {
        self.portals.control.ask(system, MonitorOp::Import as u64, state)
    }

    /// Has it have a rule more. Back: the rule's number there.
    #[inline(never)]
    pub fn add(&self, system: &impl System, rule: Rule, number: u16, applies: bool) -> Result<u16, Refusal> {
        self.portals.control.ask(system, MonitorOp::Add as u64, &AddedRule { rule, number, applies })
    }

    /// Has it have a rule of the guest at a place no more.
    pub fn remove(&self, system: &impl System, number: u16, place: u8) -> Result<(), Refusal> {
        self.portals.control.order(system, MonitorOp::Remove as u64, [number.into(), place.into()]).map(drop)
    }

    /// The rule at a place among all that it has.
    #[inline(never)]
    pub fn rule(&self, system: &impl System, place: u64) -> Result<KnownRule, Refusal> {
        self.portals.control.ask(system, MonitorOp::Rule as u64, &place)
    }

    /// Has it watch a guest that begins ([`MonitorOp::Begin`]) or runs already ([`MonitorOp::Adopt`]), then has it asked
    /// about the guest. Back: how many of its vCPUs waited for that.
    pub fn watch(&self, system: &impl System, op: MonitorOp, guest: &Subject<'_>) -> Result<u32, StartError> {
        self.portals.control.order(system, op as u64, [guest.watcher.place.into()]).step("have a guest watched")?;
        guest.commit(system, self.seat())?;
        let owed = guest.owed(system)?;
        guest.settle(system)?;
        // Whoever finds events wakes a reader that has read everything. This one has read nothing of what came while nobody did.
        let _ = self.ear.raise(system);
        Ok(owed)
    }
}

/// Its place among the monitors.
fn place_of(plan: &Plan<'_>, number: usize) -> usize {
    plan.servers.iter().take(number).filter(|server| server.role == Role::Monitor).count()
}

fn plan_of<'p, 'a>(plan: &'p Plan<'a>, number: usize) -> Result<&'p ServerPlan<'a>, StartError> {
    let server = plan.servers.get(number).filter(|server| server.role == Role::Monitor);
    server.ok_or(StartError::Plan("no such monitor"))
}

/// Slots of an instance: tables, domain, segments, stacks, threads and what they save registers in, two signals, the control
/// portal, and a portal for each vCPU.
fn slots(plan: &Plan<'_>, number: usize, threads: u64) -> u64 {
    let watched = watched_by(plan, number).filter_map(|(guest, ..)| plan.guests.get(guest));
    let vcpus: usize = watched.map(|guest| guest.cpus.len()).sum();
    2 + PIECES as u64 + 1 + 2 * threads + 3 + vcpus as u64
}

/// The server, without anything of its guests.
#[allow(clippy::too_many_arguments, reason = "what a server is made of, and where")]
fn instance(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, number: usize,
    (half, place): (usize, &mut Half), ends: Ends<'_>, stored: Option<&Stored>,
) -> Result<Instance, StartError> {
    place.is_used = true;
    let before = supply.enter(place.room);
    let made = server_of(system, board, supply, plan, number, &place.rings, ends, stored);
    supply.leave(before)?;
    let (built, portals, [signal, ear]) = made?;
    let control = plan_of(plan, number)?.cpus.len().saturating_sub(1);
    Ok(Instance { built, portals, signal, ear, control, half })
}

#[allow(clippy::too_many_arguments, reason = "what a server is made of")]
fn server_of(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, number: usize, rings: &Trio,
    ends: Ends<'_>, stored: Option<&Stored>,
) -> Result<(Built, Portals, [Signal; 2]), StartError> {
    let server = plan_of(plan, number)?;
    let mut times = build::times(server.role, server.cpus.len(), READING);
    if stored.is_some() {
        // Nobody here knows it: it shall not have its CPUs to itself until it begins to serve.
        times.fill(UNKNOWN);
    }
    let built = build::server_of(system, board, supply, server, &times, 0, stored)?;
    wire::attach_trio(system, rings, built.domain)?;
    let control = server.cpus.len().saturating_sub(1);
    // A thread serves every guest on its CPU: the strictest counts.
    let verdict = watched_by(plan, number).map(|(.., watcher)| u64::from(watcher.deadline_us)).min().unwrap_or(0);
    let signal = estate::supervise(system, supply, number, &built, |thread| if thread == control { CONTROL } else { verdict })?;
    ends.output.grant(system, built.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
    let thread = built.threads.get(control).ok_or(StartError::Plan("no control thread"))?;
    let own = supply.slot();
    let control = patiently(system, || thread.portal(system, badge::ROOT, own)).step("make a portal")?;
    let mut events = Vec::new();
    for (guest, _, watcher) in watched_by(plan, number) {
        let first = event_portals(system, supply, plan, (server, &built), guest, watcher.place)?;
        events.push(first).map_err(|_| StartError::Plan("too many watched guests"))?;
    }
    let reader = built.threads.last().ok_or(StartError::Plan("no reading thread"))?;
    let own = supply.slot();
    let ear = patiently(system, || reader.signal(system, monitor_signal::TOLD, own)).step("make a signal")?;
    Ok((built, Portals { control, events }, [signal, ear]))
}

/// Portals for the events of a guest's vCPUs, each into the monitor's thread on that vCPU's CPU.
fn event_portals(
    system: &impl System, supply: &mut Supply, plan: &Plan<'_>, (server, built): (&ServerPlan<'_>, &Built), guest: usize,
    place: u8,
) -> Result<u64, StartError> {
    let cpus = plan.guests.get(guest).map_or(&[][..], |guest| &guest.cpus);
    let mut first = 0;
    for (vcpu, cpu) in cpus.iter().enumerate().take(MAX_VCPUS) {
        // The last is the control thread, which serves no events.
        let serving = &server.cpus[..server.cpus.len().saturating_sub(1)];
        let thread = serving.iter().position(|at| at == cpu).and_then(|index| built.threads.get(index));
        let thread = thread.ok_or(StartError::Plan("a monitor without a thread on a watched CPU"))?;
        let slot = supply.slot();
        let badge = badge::event(place.into(), vcpu as u64);
        patiently(system, || thread.portal(system, badge, slot)).step("make a portal")?;
        if vcpu == 0 {
            first = slot;
        }
    }
    Ok(first)
}
