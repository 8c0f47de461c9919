// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules that the host adds to monitors while they run, lists, and removes. A monitor has them; root remembers them, so that the next
//! one in its place, whether the one before was lost or is replaced, has them before it watches anybody.

use super::*;
use crate::rules::Kept;
use crate::watch::Instance;
use trellis_idl::control::{RuleState, Watch, WatchWhat};
use trellis_idl::kernel::SESSIONS;
use trellis_idl::plan::Rule;
use trellis_idl::wire::KnownRule;

/// A monitor and a guest of its, as the host names them.
#[derive(Clone, Copy)]
pub(super) struct Named {
    /// Index of the monitor's server.
    number: usize,
    /// Index of the guest.
    guest: usize,
    /// The guest's place among those that the monitor watches.
    place: u8,
}

/// What there is to say of a monitor's rules.
pub(super) enum Listed {
    /// This one is there.
    Rule(RuleState),
    /// None stands here.
    Nothing,
    /// That was all.
    End,
}

impl<B: Board> Root<'_, B> {
    /// Whom the host means.
    pub(super) fn whose(&self, watch: &Watch) -> Result<Named, Refused> {
        let guest = self.named(&watch.guest)?;
        let watchers = self.plan.guests.get(guest).map_or(&[][..], |guest| &guest.watchers);
        let is_named = |number: usize| self.plan.servers.get(number).is_some_and(|server| server.name == watch.monitor.as_str());
        let watcher = match watchers {
            [] => return Err(Refused::Unwatched),
            [only] if watch.monitor.is_empty() => only,
            _ if watch.monitor.is_empty() => return Err(Refused::WhichMonitor),
            all => {
                let there = self.plan.servers.iter().any(|server| server.role == Role::Monitor && server.name == watch.monitor.as_str());
                let missing = if there { Refused::NotItsMonitor } else { Refused::NoMonitor };
                all.iter().take(SESSIONS as usize).find(|watcher| is_named(watcher.server.into())).ok_or(missing)?
            }
        };
        let number = usize::from(watcher.server);
        if self.policy.has_stopped(number) {
            return Err(Refused::GivenUp);
        }
        Ok(Named { number, guest, place: watcher.place })
    }

    fn instance(&self, number: usize) -> Result<&Instance, Refused> {
        self.monitors.iter().find(|monitor| monitor.number == number).map(|monitor| &monitor.now).ok_or(Refused::NoMonitor)
    }

    /// One rule of this guest after the other; or what became of the one that is added or removed.
    #[inline(never)]
    pub(super) fn rules(&self, system: &impl System, watch: &Watch, step: u16) -> Result<Listed, Refused> {
        let named = self.whose(watch)?;
        let listed = |known| Listed::Rule(RuleState { server: named.number as u8, known });
        match watch.what {
            WatchWhat::List => self.listed(system, named, step).map(|known| known.map_or(Listed::Nothing, listed)),
            _ if step > 0 => Ok(Listed::End),
            WatchWhat::Add(rule) => {
                let rule = rule.of(named.place);
                let number = self.add(system, named, rule)?;
                Ok(listed(KnownRule { number, is_added: true, rule, counts: [0; 5] }))
            }
            WatchWhat::Remove(number) => {
                self.instance(named.number)?.remove(system, number, named.place).map_err(why_not)?;
                self.board.rules().lock(system).forget(named.number as u8, number);
                Ok(Listed::End)
            }
        }
    }

    /// The rule at this place, if there is one and it is this guest's.
    fn listed(&self, system: &impl System, named: Named, step: u16) -> Result<Option<KnownRule>, Refused> {
        match self.instance(named.number)?.rule(system, step.into()) {
            Ok(known) => Ok(Some(known).filter(|known| known.rule.guest() == named.place)),
            Err(Refusal::NotMapped) => Ok(None),
            Err(refusal) => Err(why_not(refusal)),
        }
    }

    fn add(&self, system: &impl System, named: Named, rule: Rule) -> Result<u16, Refused> {
        let applies = self.running >> named.guest & 1 == 1;
        let number = self.instance(named.number)?.add(system, rule, 0, applies).map_err(why_not)?;
        self.board.rules().lock(system).keep(Kept { server: named.number as u8, number, rule });
        Ok(number)
    }

    /// A monitor that has not begun to watch learns which rules the host has added.
    pub(super) fn tell_rules(&self, system: &impl System, number: usize, instance: &Instance) -> Result<(), Refusal> {
        let mut behind = 0;
        loop {
            let next = self.board.rules().lock(system).next(number as u8, behind);
            let Some(kept) = next else { return Ok(()) };
            behind = kept.number;
            instance.add(system, kept.rule, kept.number, false)?;
        }
    }

    /// The same for one in the place of one that was lost, of the same program.
    pub(super) fn tell_rules_again(&self, system: &impl System, number: usize, instance: &Instance) {
        if let Err(refusal) = self.tell_rules(system, number, instance) {
            log!("{} does not take the rules that were added: {refusal:?}", self.name(number));
        }
    }

    /// A monitor has no rules any more that the host added.
    pub(super) fn forget_rules(&self, system: &impl System, number: usize) {
        self.board.rules().lock(system).forget_all(number as u8);
    }
}

/// Why a monitor does not want a rule.
fn why_not(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::NoOperation => Refused::NoRules,
        Refusal::BadArgument => Refused::Senseless,
        Refusal::OutOfRange => Refused::Elsewhere,
        Refusal::Occupied => Refused::Overlaps,
        Refusal::Quota => Refused::RulesFull,
        Refusal::NotMapped => Refused::NoRule,
        Refusal::MissingRight => Refused::Manifests,
        other => other.into(),
    }
}
