// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' monitors while the system runs: each watches before its guest starts, and is made again when it is lost. What
//! guests were doing then is owed to them, and asked again.

use super::*;
use crate::watch::{Instance, Subject, watched_by};
use trellis_idl::control::{EventState, Handed, Refused, Replaced};
use trellis_idl::plan::{MAX_WATCHED, Without};
use trellis_idl::wire::{MonitorOp, Seen};

/// Events taken from a ring in one go: more than it holds.
const MOST_SEEN: usize = 256;

impl<'a, B: Board> Root<'a, B> {
    /// Makes every monitor of the plan, and gives each what it has of its guests.
    #[inline(never)]
    pub(super) fn make_monitors(&mut self, system: &impl System) -> Result<(), StartError> {
        for (number, _) in self.plan.servers.iter().enumerate().filter(|(_, server)| server.role == Role::Monitor) {
            let console = self.servers.first().ok_or(StartError::Plan("no console"))?;
            let ends = Ends { console, output: self.console[0] };
            let monitor = Monitor::make(system, &self.board, &mut self.supply, self.plan, number, ends)?;
            for guest in self.subjects(number) {
                monitor.now.admit(system, &guest)?;
            }
            if let Some(place) = self.servers.get_mut(number) {
                *place = monitor.now.built.clone();
            }
            self.monitors.push(monitor).map_err(|_| StartError::Plan("too many monitors"))?;
        }
        Ok(())
    }

    /// One that is no monitor as root knows them is lost at once.
    pub(super) fn attach_monitors(&mut self, system: &impl System) {
        for index in 0..self.monitors.len() {
            let Some(monitor) = self.monitors.get(index) else { return };
            let number = monitor.number;
            if let Err(why) = monitor.now.attach(system) {
                self.fails(system, number, why);
            }
        }
    }

    /// The guests of a monitor that have not ended.
    pub(super) fn subjects(&self, server: usize) -> impl Iterator<Item = Subject<'_>> {
        watched_by(self.plan, server).filter_map(|(guest, session, _)| self.subject(guest, session))
    }

    /// A guest that has not ended, as the monitor sees it that has this session.
    fn subject(&self, guest: usize, session: usize) -> Option<Subject<'_>> {
        let plan = self.plan.guests.get(guest).filter(|_| !self.policy.has_ended(guest))?;
        let (made, ways) = (self.guests.get(guest)?, self.ways.get(guest)?);
        Some(Subject { index: guest, plan, made, ways, session, watcher: *plan.watchers.get(session)? })
    }

    /// Has every monitor of a guest watch it, which begins. One that cannot is lost, and the next is asked.
    pub(super) fn have_watched(&mut self, system: &impl System, guest: usize) -> Result<(), StartError> {
        let sessions = self.plan.guests.get(guest).map_or(0, |guest| guest.watchers.len());
        for session in 0..sessions {
            while let Some(subject) = self.subject(guest, session) {
                let number = usize::from(subject.watcher.server);
                if self.policy.has_stopped(number) {
                    // It was given up before, and the manifest allows to go on.
                    subject.release(system)?;
                    break;
                }
                let monitor = self.monitors.iter().find(|monitor| monitor.number == number);
                let monitor = monitor.ok_or(StartError::Plan("no such monitor"))?;
                match monitor.now.watch(system, MonitorOp::Begin, &subject) {
                    Ok(_) => break,
                    Err(why) => self.fails(system, number, why),
                }
            }
        }
        Ok(())
    }

    /// Makes a guest's sessions again, and lets its monitors have what they had of it.
    pub(super) fn ways_again(&mut self, system: &impl System, index: usize) -> Result<(), StartError> {
        let missing = StartError::Plan("no such guest");
        let plan = self.plan.guests.get(index).ok_or(missing)?;
        let servers = [plan.p2m, plan.vcpu].map(|number| self.servers.get(usize::from(number)));
        let ([Some(p2m), Some(vcpu)], Some(made)) = (servers, self.guests.get(index)) else { return Err(missing) };
        let ways = self.ways.get_mut(index).ok_or(missing)?;
        *ways = watch::ways_again(system, &mut self.supply, ways, plan, made, [p2m, vcpu])?;
        for session in 0..plan.watchers.len() {
            let Some(subject) = self.subject(index, session) else { continue };
            let number = usize::from(subject.watcher.server);
            let monitor = self.monitors.iter().find(|monitor| monitor.number == number);
            if let (Some(monitor), false) = (monitor, self.policy.has_stopped(number)) {
                monitor.now.admit(system, &subject)?;
            }
        }
        Ok(())
    }

    /// A monitor does not do what root asks of it: it is lost, whether or not a thread of it says so.
    fn fails(&mut self, system: &impl System, number: usize, why: StartError) {
        log!("{} is of no use: {why:?}", self.name(number));
        let event = self.loss(system, number);
        self.happened(system, event);
    }

    /// The loss of a server, as a thread of it tells it, if one does.
    fn loss(&mut self, system: &impl System, number: usize) -> Event {
        let death = self.stopped(system, number).unwrap_or(Death::Ended);
        self.faulted = self.faulted_on(system, number);
        Event::ServerStopped(number as u8, death, seconds(system))
    }

    /// The guest that a monitor ends by its verdict.
    pub(super) fn condemned(&self, server: usize, place: u8) -> Option<Event> {
        let guest = watched_by(self.plan, server).find(|(.., watcher)| watcher.place == place);
        guest.map(|(guest, ..)| Event::Condemned(guest as u8, GuestEnd::Stopped(server as u8)))
    }

    /// Makes a monitor anew. Back: what happened instead.
    pub(super) fn relieve_or_not(&mut self, system: &impl System, server: u8) -> Option<Event> {
        let number = usize::from(server);
        self.condemn(system, number, |without| without == Without::Stop);
        // Nobody needs it any more.
        self.subjects(number).next()?;
        match self.relieve(system, number) {
            Ok(replaced) => {
                log!("{} is made again", self.name(number));
                self.replaced = Some(replaced);
                None
            }
            Err(why) => {
                log!("{} cannot be made again: {why:?}", self.name(number));
                Some(self.loss(system, number))
            }
        }
    }

    /// Ends the guests of a monitor whose manifest says so.
    fn condemn(&mut self, system: &impl System, number: usize, ends: impl Fn(Without) -> bool) {
        let guests = self.subjects(number).filter(|guest| ends(guest.watcher.without)).map(|guest| guest.index);
        let guests: Vec<usize, MAX_WATCHED> = guests.collect();
        for guest in guests {
            self.happened(system, Event::Condemned(guest as u8, GuestEnd::Server(number as u8)));
        }
    }

    /// Guests wait or go on; the dead one goes; the next one is asked what they are owed.
    #[inline(never)]
    fn relieve(&mut self, system: &impl System, number: usize) -> Result<Replaced, StartError> {
        let missing = StartError::Plan("no such monitor");
        self.end_exchange(system, number);
        // What the lost one was told of last is worth most.
        self.gather(system, number);
        let (held, clock_hz) = clock(system);
        self.subjects(number).try_for_each(|guest| guest.suspend(system))?;
        let place = self.monitors.iter().position(|monitor| monitor.number == number).ok_or(missing)?;
        let console = self.servers.first().ok_or(missing)?;
        let ends = Ends { console, output: self.console[0] };
        let monitor = self.monitors.get_mut(place).ok_or(missing)?;
        let old = monitor.now.clone();
        monitor.again(system, &self.board, &mut self.supply, self.plan, ends)?;
        let new = monitor.now.clone();
        if let Some(server) = self.servers.get_mut(number) {
            *server = new.built.clone();
        }
        build::start(system, &new.built)?;
        new.attach(system)?;
        self.tell_rules_again(system, number, &new);
        let (mut guests, mut owed) = (0, 0);
        for guest in self.subjects(number) {
            old.unpause(system, &guest)?;
            new.admit(system, &guest)?;
            if self.running >> guest.index & 1 == 1 {
                owed += new.watch(system, MonitorOp::Adopt, &guest)?;
                guests += 1;
            }
        }
        let ticks = clock(system).0.saturating_sub(held);
        // Nobody waits any more.
        self.monitors.get_mut(place).ok_or(missing)?.tidy(system)?;
        Ok(Replaced { server: number as u8, guests, owed: owed as u8, ticks, clock_hz, state: Handed::Lost })
    }

    /// Takes what a monitor was told of out of its rings.
    pub(super) fn gather(&self, system: &impl System, number: usize) {
        let Some(monitor) = self.monitors.iter().find(|monitor| monitor.number == number) else { return };
        for page in monitor.seen(self.plan) {
            let mut ring = Consumer::new(self.board.ring(page));
            // No more than a ring holds at a time: one that floods has its turn, and no more.
            for _ in 0..MOST_SEEN {
                let Some(seen) = ring.receive::<Seen>() else { break };
                let Ok(seen) = seen else { continue };
                let guest = watched_by(self.plan, number).find(|(.., watcher)| watcher.place == seen.place);
                let Some((guest, ..)) = guest else { continue };
                self.board.events().lock(system).push(EventState { sequence: 0, server: number as u8, guest: guest as u8, seen });
            }
        }
    }

    /// The same for all of them: the host asks.
    pub(super) fn gather_all(&self, system: &impl System) {
        self.monitors.iter().for_each(|monitor| self.gather(system, monitor.number));
    }

    /// Ends a monitor by the host's wish, and has it made again.
    // Out of line, as all that is done for the host: it takes much of the stack.
    #[inline(never)]
    pub(super) fn kill(&mut self, system: &impl System, name: &str) -> Result<Replaced, Refused> {
        let number = self.monitor_named(name)?;
        self.replaced = None;
        self.happened(system, Event::Killed(number as u8));
        self.replaced.take().ok_or(Refused::Lost)
    }

    /// The monitor with this name, if it lives and somebody needs it.
    pub(super) fn monitor_named(&self, name: &str) -> Result<usize, Refused> {
        let servers = self.plan.servers.iter().enumerate();
        let number = servers.into_iter().find(|(_, server)| server.role == Role::Monitor && server.name == name);
        let (number, _) = number.ok_or(Refused::NoMonitor)?;
        if self.policy.has_stopped(number) {
            return Err(Refused::GivenUp);
        }
        self.subjects(number).next().map(|_| number).ok_or(Refused::NothingWatched)
    }

    /// Guests that an instance had paused, which is no more, go on.
    pub(super) fn unpause(&self, system: &impl System, number: usize, instance: &Instance) {
        for guest in self.subjects(number) {
            if let Err(why) = instance.unpause(system, &guest) {
                log!("guest {} stays paused: {why:?}", guest.plan.name);
            }
        }
    }

    /// There is no monitor any more: its guests end, or go on as if there had been none.
    pub(super) fn abandon(&mut self, system: &impl System, number: usize) {
        self.condemn(system, number, |without| without != Without::Allow);
        for guest in self.subjects(number) {
            match guest.release(system) {
                Ok(()) => log!("guest {} goes on unwatched: {} died too often", guest.plan.name, self.name(number)),
                Err(why) => log!("guest {} cannot go on: {why:?}", guest.plan.name),
            }
        }
        for thread in self.servers.get(number).into_iter().flat_map(|server| &server.threads) {
            // Those that are no more need not be stopped.
            let _ = thread.destroy(system);
        }
        if let Some(monitor) = self.monitors.iter().find(|monitor| monitor.number == number) {
            self.unpause(system, number, &monitor.now);
        }
    }
}
