// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guests' devices see memory, and when: what touches memory by itself is stopped before that memory is cleared or
//! taken apart, and sees it again when the guest begins anew.

use super::*;
use crate::smmu;

impl<B: Board> Root<'_, B> {
    /// Makes smmu, if the SMMU keeps a device to its guest's memory.
    #[inline(never)]
    pub(super) fn make_shield(&mut self, system: &impl System) -> Result<(), StartError> {
        let console = self.servers.first().ok_or(StartError::Plan("no console"))?;
        let ends = Ends { console, output: self.console[0] };
        let made = smmu::make(system, &self.board, &mut self.supply, self.plan, ends)?;
        let Some((shield, built)) = made else { return Ok(()) };
        if let Some(place) = self.servers.get_mut(shield.number) {
            *place = built;
        }
        self.shield = Some(shield);
        Ok(())
    }

    /// Lets it run: no device sees memory yet.
    #[inline(never)]
    pub(super) fn start_shield(&mut self, system: &impl System) -> Result<(), StartError> {
        let Some(shield) = &self.shield else { return Ok(()) };
        build::start(system, self.servers.get(shield.number).ok_or(StartError::Plan("no such server"))?)?;
        self.agree_with_shield(system)
    }

    /// It is what root knows, and what devices see is as it was.
    #[inline(never)]
    fn agree_with_shield(&mut self, system: &impl System) -> Result<(), StartError> {
        self.shield.as_mut().map_or(Ok(()), |shield| shield.agree(system, &self.guests))
    }

    /// Makes it anew, and lets it run. Devices go on meanwhile.
    #[inline(never)]
    pub(super) fn revive_shield(&mut self, system: &impl System, number: usize) -> Result<(), StartError> {
        let missing = StartError::Plan("no such server");
        let [Some(console), Some(dead)] = [0, number].map(|number| self.servers.get(number)) else { return Err(missing) };
        let ends = Ends { console, output: self.console[0] };
        let shield = self.shield.as_mut().ok_or(missing)?;
        let built = shield.again(system, &self.board, &mut self.supply, self.plan, dead, ends)?;
        // What the dead one still had to say is not the new one's.
        Consumer::new(self.board.ring(ring::root_report(number))).clear();
        let started = build::start(system, &built);
        if let Some(place) = self.servers.get_mut(number) {
            *place = built;
        }
        started?;
        self.agree_with_shield(system)?;
        log!("{} is made again", self.name(number));
        Ok(())
    }

    /// A guest's devices see its memory, or what the manifest says, from now on.
    #[inline(never)]
    pub(super) fn show_devices(&mut self, system: &impl System, guest: usize) -> Result<(), StartError> {
        let (Some(shield), Some(made)) = (self.shield.as_mut(), self.guests.get(guest)) else { return Ok(()) };
        if !shield.concerns(guest) {
            return Ok(());
        }
        if !self.policy.has_stopped(shield.number) && shield.show(system, guest, made).is_ok() {
            return Ok(());
        }
        self.replace_shield(system)?;
        let (Some(shield), Some(made)) = (self.shield.as_mut(), self.guests.get(guest)) else { return Ok(()) };
        shield.show(system, guest, made)
    }

    /// A guest's devices see nothing any more. Refused: nobody knows whether they do, and its memory must stay as it is.
    #[inline(never)]
    pub(super) fn hide_devices(&mut self, system: &impl System, guest: usize) -> Result<(), StartError> {
        let Some(shield) = self.shield.as_mut().filter(|shield| shield.concerns(guest)) else { return Ok(()) };
        if !self.policy.has_stopped(shield.number) && shield.hide(system, guest).is_ok() {
            return Ok(());
        }
        self.replace_shield(system)?;
        self.shield.as_mut().map_or(Ok(()), |shield| shield.hide(system, guest))
    }

    /// One that does not do what root asks is lost, whether or not a thread of it says so, and made again.
    fn replace_shield(&mut self, system: &impl System) -> Result<(), StartError> {
        let number = self.shield.as_ref().map_or(0, |shield| shield.number);
        if !self.policy.has_stopped(number) {
            log!("{} is of no use", self.name(number));
            let death = self.stopped(system, number).unwrap_or(Death::Ended);
            self.faulted = self.faulted_on(system, number);
            // A second death while the first is dealt with is none of a guest's.
            self.happened(system, Event::ServerStopped(number as u8, death, seconds(system)));
        }
        if self.policy.has_stopped(number) { Err(StartError::Plan("no smmu any more")) } else { Ok(()) }
    }
}
