// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a program that the host sent into irqfwd's place, while the guests whose devices it serves run.
//!
//! There is one at a time: lines are a server's alone. The old one says what it counted, and ends; what it was serving comes
//! again when the new one has bound the lines, as after a crash. One that does not begin, or is none, ends, and the program
//! that ran before is made again.

use super::*;
use crate::forward::{self, Counted};
use crate::room::Store;
use trellis_idl::control::{Handed, Refused, Step as Stage};
use trellis_idl::plan::{MAX_SOURCES, SwapPlan};

impl<B: Board> Root<'_, B> {
    /// irqfwd, if it may be replaced: its number, where its programs are kept, and what is demanded of them.
    pub(super) fn swappable_forward(&self) -> Result<(usize, Store, SwapPlan), Refused> {
        let forward = self.forward.as_ref().ok_or(Refused::Server)?;
        if self.policy.has_stopped(forward.number) {
            return Err(Refused::GivenUp);
        }
        let swap = self.plan.servers.get(forward.number).and_then(|server| server.swap).ok_or(Refused::NoSwap)?;
        Ok((forward.number, forward.store.ok_or(Refused::NoSwap)?, swap))
    }

    /// Replaces it by what was sent. What stops that is kept for the host.
    #[inline(never)]
    pub(super) fn replace_forward(&mut self, system: &impl System) {
        match self.try_forward(system) {
            Ok(replaced) => self.replaced = Some(replaced),
            Err(why) => self.refused = Some(why),
        }
    }

    fn try_forward(&mut self, system: &impl System) -> Result<Replaced, Refused> {
        let (number, store, swap) = self.swappable_forward()?;
        let plan = self.plan;
        let name = plan.servers.get(number).map_or("", |server| server.name);
        let (upload, stored) = self.sent(system, name, (store, swap))?;
        let mut forward = self.forward.take().ok_or(Refused::Server)?;
        let counted = if upload.is_fresh() { None } else { self.last_count(system, &forward) };
        let (before, clock_hz) = clock(system);
        let old = forward.stored.replace(stored);
        if let Err(why) = self.remake(system, &mut forward, forward::BRIEF) {
            log!("{name} cannot be replaced: {why:?}");
            forward.stored = old;
            return Err(self.take_back_forward(system, forward, counted.as_deref(), why));
        }
        let (now, _) = clock(system);
        if let Some(store) = &mut forward.store {
            store.turn(upload.counter());
        }
        let state = match &counted {
            _ if upload.is_fresh() => Handed::NotWanted,
            None => Handed::Lost,
            Some(counted) => match forward.restore(system, counted) {
                Ok(()) => Handed::Taken(size_of_val(&counted[..]) as u16),
                Err(refusal) => Handed::NotGiven(refusal as u8),
            },
        };
        if let Err(why) = forward.be_patient(system, forward::CONTROL) {
            log!("{name} cannot be waited for: {why:?}");
        }
        self.forward = Some(forward);
        log!("{name} is replaced");
        let served = |guest: usize| !self.policy.has_ended(guest);
        let owners = plan.guests.iter().enumerate().filter(|(guest, planned)| served(*guest) && !planned.devices.is_empty());
        let guests = owners.count() as u8;
        Ok(Replaced { server: number as u8, guests, owed: 0, ticks: now.saturating_sub(before), clock_hz, state })
    }

    /// What it counted, if it says so in time.
    fn last_count(&self, system: &impl System, forward: &Forward) -> Option<Vec<Counted, MAX_SOURCES>> {
        forward.be_patient(system, forward::BRIEF).ok()?;
        forward.counted(system)
    }

    /// What ran before runs again, with what it had counted. Back: what to tell the host.
    fn take_back_forward(&mut self, system: &impl System, mut forward: Forward, counted: Option<&[Counted]>, why: StartError) -> Refused {
        if let Err(why) = self.remake(system, &mut forward, forward::CONTROL) {
            log!("nor can the one before be made again: {why:?}");
            return Refused::Server;
        }
        if let Some(Err(why)) = counted.map(|counted| forward.restore(system, counted)) {
            log!("what it had counted is lost: {why:?}");
        }
        self.forward = Some(forward);
        match why {
            StartError::Refused(_, Refusal::Unsupported) => Refused::Interface,
            StartError::Refused(..) | StartError::Plan(_) => Refused::Fails(Stage::Begin),
        }
    }
}
