// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a program that the host sent into a monitor's place, while the monitor's guests run.
//!
//! One step at a time, and between two of them root hears what others have to say. Until the third nothing of the old one
//! is touched; until the last it can be asked again as if nothing had been. What fails on the way ends the new one.

use super::*;
use crate::build::{OWN, READ_WRITE, STORED, Stored};
use crate::program::Program;
use crate::room::Store;
use crate::upload::Upload;
use crate::watch::{BRIEF, CONTROL, Instance};
use trellis_idl::control::{Handed, Offer, Piece, Refused, Step as Stage};
use trellis_idl::kernel::{Access, PAGE, Seat};
use trellis_idl::layout::SCRATCH;
use trellis_idl::plan::{MAX_WATCHED, SwapPlan};
use trellis_idl::wire::MonitorOp;

/// Steps of [`Root::exchange`]; what comes behind them tells the host.
pub(super) const STEPS: u16 = 5;
/// Microseconds for verdicts that the old one is just giving, before it is asked what it knows.
const DRAIN: u64 = 20;
/// Most bytes in which a program's headers stand.
const HEAD: usize = PAGE as usize;

/// A monitor that is about to take another's place.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The server's index in the plan, and the monitor's place among root's.
    pub(super) number: usize,
    place: usize,
    new: Instance,
    stored: Stored,
    counter: u64,
    is_fresh: bool,
    /// It has none of the rules that the host added: they are forgotten with the old one.
    has_other_rules: bool,
    /// Since when nobody is asked.
    held: Option<u64>,
    /// The old one has said what it knows, or the new one may have changed what is watched.
    is_watching: bool,
    /// The old one was lost meanwhile.
    is_lost: bool,
    state: Handed,
}

impl<B: Board> Root<'_, B> {
    // ── the upload ──

    /// A program is announced.
    pub(super) fn offered(&mut self, offer: &Offer) -> Result<(), Refused> {
        self.upload = None;
        let (_, swap) = self.store_of(&offer.monitor)?;
        self.upload = Some(Upload::begin(offer.clone(), &swap)?);
        Ok(())
    }

    /// Bytes of it came.
    pub(super) fn came(&mut self, system: &impl System, piece: &Piece) -> Result<(), Refused> {
        let mut upload = self.upload.take().ok_or(Refused::CutOff(0))?;
        let taken = self.keep(system, &mut upload, piece);
        // What is refused changes nothing: it may be sent again.
        self.upload = Some(upload);
        taken
    }

    fn keep(&self, system: &impl System, upload: &mut Upload, piece: &Piece) -> Result<(), Refused> {
        let (store, _) = self.store_of(upload.monitor())?;
        upload.take(piece.offset, &piece.bytes)?;
        if piece.bytes.is_empty() {
            return Ok(());
        }
        let (first, within) = (u64::from(piece.offset) / PAGE, u64::from(piece.offset) % PAGE);
        let pages = (within + piece.bytes.len() as u64).div_ceil(PAGE);
        let at = SCRATCH + STORED;
        OWN.map(system, at, store.run, store.next * store.pages + first, pages, READ_WRITE)?;
        let is_written = self.board.scratch(STORED + within, &piece.bytes);
        OWN.unmap(system, at, pages)?;
        if is_written { Ok(()) } else { Err(Refused::Fails(Stage::Make)) }
    }

    /// Where a program for whatever has this name is kept, and what is demanded of it.
    fn store_of(&self, name: &str) -> Result<(Store, SwapPlan), Refused> {
        if self.is_forward(name) {
            return self.swappable_forward().map(|(_, store, swap)| (store, swap));
        }
        let (place, swap) = self.swappable(name)?;
        let store = self.monitors.get(place).and_then(|monitor| monitor.store).ok_or(Refused::NoSwap)?;
        Ok((store, swap))
    }

    /// A monitor that may be replaced: its place among root's, and what is kept for that.
    fn swappable(&self, name: &str) -> Result<(usize, SwapPlan), Refused> {
        let number = self.monitor_named(name)?;
        let place = self.monitors.iter().position(|monitor| monitor.number == number).ok_or(Refused::NoMonitor)?;
        let swap = self.plan.servers.get(number).and_then(|server| server.swap).ok_or(Refused::NoSwap)?;
        Ok((place, swap))
    }

    // ── the steps ──

    /// One step. What stops it is kept for the host.
    pub(super) fn exchange(&mut self, system: &impl System, name: &str, step: u16) {
        if step == 0 {
            (self.refused, self.replaced) = (None, None);
            if self.is_forward(name) {
                self.replace_forward(system);
                return;
            }
            match self.make_new(system, name) {
                Ok(exchange) => self.exchange = Some(exchange),
                Err(why) => self.refused = Some(why),
            }
            return;
        }
        // It is gone when something has failed already.
        let Some(mut exchange) = self.exchange.take() else { return };
        let done = match step {
            1 => self.agree(system, &exchange),
            2 => self.hold_events(system, &mut exchange),
            3 => self.hand_over(system, &mut exchange),
            _ => self.move_in(system, &mut exchange),
        };
        match done {
            Ok(None) => self.exchange = Some(exchange),
            Ok(Some(replaced)) => self.settle_in(system, exchange, replaced),
            Err(why) => self.take_back(system, exchange, why),
        }
    }

    /// Looks at what came, and makes a server of it beside the one that runs.
    #[inline(never)]
    fn make_new(&mut self, system: &impl System, name: &str) -> Result<Exchange, Refused> {
        let (place, swap) = self.swappable(name)?;
        let monitor = self.monitors.get(place).ok_or(Refused::NoMonitor)?;
        let (number, store) = (monitor.number, monitor.store.ok_or(Refused::NoSwap)?);
        let (upload, stored) = self.sent(system, name, (store, swap))?;
        let Some(console) = self.servers.first() else { return Err(Refused::Fails(Stage::Make)) };
        let ends = Ends { console, output: self.console[0] };
        let Some(monitor) = self.monitors.get_mut(place) else { return Err(Refused::NoMonitor) };
        let made = monitor.beside(system, &self.board, &mut self.supply, self.plan, ends, Some(&stored));
        let started = made.and_then(|new| {
            new.be_patient(system, BRIEF)?;
            build::start(system, &new.built).map(|()| new)
        });
        let (counter, is_fresh) = (upload.counter(), upload.is_fresh());
        match started {
            Ok(new) => Ok(Exchange {
                number, place, new, stored, counter, is_fresh, held: None, is_watching: false, is_lost: false, has_other_rules: false, state: Handed::Lost,
            }),
            Err(why) => {
                log!("{name} cannot be replaced: {why:?}");
                // Whatever of it is there goes.
                self.clear_half(system, place);
                Err(Refused::Fails(Stage::Make))
            }
        }
    }

    /// What was sent for whatever has this name, if it is as it must be.
    // Out of line: it takes much of the stack.
    #[inline(never)]
    pub(super) fn sent(&mut self, system: &impl System, name: &str, (store, swap): (Store, SwapPlan)) -> Result<(Upload, Stored), Refused> {
        let upload = self.upload.take().filter(|upload| upload.monitor() == name).ok_or(Refused::CutOff(0))?;
        upload.verify(&swap, store.lowest)?;
        let pages = (store.next * store.pages, u64::from(upload.bytes()).div_ceil(PAGE).max(1));
        let program = self.program(system, store.run, pages, &upload, &swap)?;
        Ok((upload, Stored { run: store.run, pages, program }))
    }

    /// The program in what came.
    // Out of line: it takes much of the stack.
    #[inline(never)]
    fn program(
        &self, system: &impl System, run: Frames, (first, _): (u64, u64), upload: &Upload, swap: &SwapPlan,
    ) -> Result<Program, Refused> {
        let mut head = [0; HEAD];
        let length = (upload.bytes() as usize).min(HEAD);
        let head = head.get_mut(..length).unwrap_or_default();
        OWN.map(system, SCRATCH + STORED, run, first, 1, Access::READ)?;
        let is_read = self.board.scratch_read(STORED, head);
        OWN.unmap(system, SCRATCH + STORED, 1)?;
        if !is_read {
            return Err(Refused::Fails(Stage::Make));
        }
        Program::read(head, upload.bytes().into(), swap.pages.into()).map_err(Refused::Unfit)
    }

    /// Whether it begins, and is a monitor as root knows them.
    fn agree(&self, system: &impl System, exchange: &Exchange) -> Result<Option<Replaced>, Refused> {
        match exchange.new.attach(system) {
            Ok(()) => Ok(None),
            Err(StartError::Refused(_, Refusal::Unsupported)) => Err(Refused::Interface),
            Err(_) => Err(Refused::Fails(Stage::Begin)),
        }
    }

    /// From now on whoever does what is watched waits.
    fn hold_events(&self, system: &impl System, exchange: &mut Exchange) -> Result<Option<Replaced>, Refused> {
        let (now, hz) = clock(system);
        exchange.held = Some(now);
        for guest in self.watched_now(exchange.number) {
            guest.commit(system, Seat::Held).map_err(|_| Refused::Fails(Stage::TakeOver))?;
        }
        if !exchange.is_lost {
            let old = self.monitors.get(exchange.place).map(|monitor| &monitor.now);
            // One whose control thread is no more is found out by asking it.
            let _ = old.map(|old| old.be_patient(system, BRIEF));
            system.wait(0, now + hz * DRAIN / 1_000_000 + 1);
        }
        // What it still holds it decides no more: so nothing is decided that it does not know when it is asked what it knows.
        for guest in self.watched_now(exchange.number) {
            guest.settle(system).map_err(|_| Refused::Fails(Stage::TakeOver))?;
        }
        Ok(None)
    }

    /// What the old one knows goes to the new one.
    #[inline(never)]
    fn hand_over(&self, system: &impl System, exchange: &mut Exchange) -> Result<Option<Replaced>, Refused> {
        // What the host has added is not the old one's alone.
        match self.tell_rules(system, exchange.number, &exchange.new) {
            Ok(()) => {}
            Err(_) if exchange.is_fresh => exchange.has_other_rules = true,
            Err(refusal) => return Err(not_taken(refusal)),
        }
        if exchange.is_fresh {
            exchange.state = Handed::NotWanted;
        }
        if let (false, Some(monitor)) = (exchange.is_lost, self.monitors.get(exchange.place)) {
            // It reads nothing any more, until it is told to go on: so it is asked even where nobody wants to know.
            exchange.is_watching = true;
            match monitor.now.export(system) {
                // It is lost, and with it what it knew: that is no reason to keep it.
                Err(Refusal::Late | Refusal::Gone) => exchange.is_lost = true,
                _ if exchange.is_fresh => {}
                Ok(state) => {
                    exchange.new.import(system, &state).map_err(not_taken)?;
                    exchange.state = Handed::Taken(state.body.len() as u16);
                }
                Err(refusal) => exchange.state = Handed::NotGiven(refusal as u8),
            }
        }
        Ok(None)
    }

    /// The new one watches, is asked, and gets what waited.
    fn move_in(&self, system: &impl System, exchange: &mut Exchange) -> Result<Option<Replaced>, Refused> {
        exchange.is_watching = true;
        let failed = |_: StartError| Refused::Fails(Stage::Watch);
        let (mut guests, mut owed) = (0, 0);
        for guest in self.subjects(exchange.number) {
            exchange.new.admit(system, &guest).map_err(failed)?;
            if self.running >> guest.index & 1 == 1 {
                owed += exchange.new.watch(system, MonitorOp::Adopt, &guest).map_err(failed)?;
                guests += 1;
            }
        }
        let (now, clock_hz) = clock(system);
        let ticks = exchange.held.map_or(0, |held| now.saturating_sub(held));
        let (server, state) = (exchange.number as u8, exchange.state);
        Ok(Some(Replaced { server, guests, owed: owed as u8, ticks, clock_hz, state }))
    }

    /// The old one goes.
    fn settle_in(&mut self, system: &impl System, exchange: Exchange, replaced: Replaced) {
        let Exchange { number, place, new, stored, counter, has_other_rules, .. } = exchange;
        self.gather(system, number);
        self.replaced = Some(replaced);
        let Some(monitor) = self.monitors.get_mut(place) else { return };
        let old = core::mem::replace(&mut monitor.now, new);
        monitor.stored = Some(stored);
        if let Some(store) = &mut monitor.store {
            store.turn(counter);
        }
        let ended = monitor.end(system, &old).and_then(|()| monitor.now.be_patient(system, CONTROL));
        if let Err(why) = ended {
            log!("what an old monitor was made of cannot be used: {why:?}");
        }
        if let Some(server) = self.servers.get_mut(number) {
            *server = monitor.now.built.clone();
        }
        self.unpause(system, number, &old);
        if has_other_rules {
            self.forget_rules(system, number);
        }
        self.clear_half(system, place);
        log!("{} is replaced", self.name(number));
        // What it said while it was not asked is heard now.
        self.unheard |= root_signal::server(number);
    }

    // ── what goes wrong ──

    /// The old one is asked again, as if nothing had been; the new one ends.
    fn take_back(&mut self, system: &impl System, exchange: Exchange, why: Refused) {
        self.refused = Some(why);
        if let (Some(_), false, Some(monitor)) = (exchange.held, exchange.is_lost, self.monitors.get(exchange.place)) {
            let old = &monitor.now;
            // Long before guests are asked to wait for it, it is noticed that it does not do this.
            let _ = old.be_patient(system, CONTROL);
            for guest in self.watched_now(exchange.number) {
                let again = match exchange.is_watching {
                    true => old.watch(system, MonitorOp::Adopt, &guest).map(|_| ()),
                    false => guest.commit(system, old.seat()).and_then(|()| guest.settle(system)),
                };
                if let Err(why) = again {
                    log!("{} does not go on watching {}: {why:?}", self.name(exchange.number), guest.plan.name);
                }
            }
        }
        self.forget_new(system, &exchange);
    }

    fn forget_new(&mut self, system: &impl System, exchange: &Exchange) {
        if let Some(monitor) = self.monitors.get(exchange.place)
            && let Err(why) = monitor.end(system, &exchange.new)
        {
            log!("a monitor that was not taken cannot be ended: {why:?}");
        }
        self.unpause(system, exchange.number, &exchange.new);
        self.clear_half(system, exchange.place);
        // Whether the old one still lives is looked at again.
        self.unheard |= root_signal::server(exchange.number);
    }

    fn clear_half(&mut self, system: &impl System, place: usize) {
        if let Some(Err(why)) = self.monitors.get_mut(place).map(|monitor| monitor.tidy(system)) {
            log!("half of a monitor cannot be emptied: {why:?}");
        }
    }

    /// The monitor is made again for another reason: nobody takes its place just now.
    pub(super) fn end_exchange(&mut self, system: &impl System, number: usize) {
        if let Some(exchange) = self.exchange.take_if(|exchange| exchange.number == number) {
            self.refused = Some(Refused::Lost);
            self.forget_new(system, &exchange);
        }
    }

    /// A thread of the old one or of the new one may have stopped. False: nobody takes this monitor's place.
    pub(super) fn attend_exchange(&mut self, system: &impl System, number: usize) -> bool {
        let Some(exchange) = self.exchange.take_if(|exchange| exchange.number == number) else { return false };
        if halted(system, &exchange.new.built).is_some() {
            self.take_back(system, exchange, Refused::Fails(Stage::Begin));
            return true;
        }
        let is_lost = self.servers.get(number).is_some_and(|old| halted(system, old).is_some());
        self.exchange = Some(Exchange { is_lost: exchange.is_lost || is_lost, ..exchange });
        true
    }

    /// The guests of a monitor that run.
    fn watched_now(&self, number: usize) -> Vec<crate::watch::Subject<'_>, MAX_WATCHED> {
        self.subjects(number).filter(|guest| self.running >> guest.index & 1 == 1).collect()
    }
}

/// Why the new one did not take what the old one knew.
fn not_taken(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::Late | Refusal::Gone => Refused::Fails(Stage::TakeOver),
        refusal => Refused::State(refusal as u8),
    }
}
