// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor is: a value that is told of events and decides, and that can say what the next one should know.

use crate::event::Event;
use crate::guest::WatchedGuest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trellis_idl::kernel::Refusal;
use trellis_idl::plan::Rule;
use trellis_idl::wire::{KnownRule, Verdict};
use trellis_runtime::System;

/// A monitor. Its threads share it, so it locks inside where it must; events of one vCPU come one after another.
///
/// It may be gone at any moment, and another one in its place: what it asks of a guest's p2m stays and sets states, so the
/// next one asks for the same again; what it has been told and not answered the next one is told. All it must hand over
/// is its [`Monitor::State`], and if it has no time for that, the next one begins without.
pub trait Monitor: Sync {
    /// What the next one should know. Small enough for [`trellis_idl::wire::MAX_STATE`] bytes of postcard.
    type State: Serialize + DeserializeOwned;
    /// Which monitor's state this is, and how it is written; changes with it.
    const VERSION: u32;

    /// A guest begins, and nothing of it is watched (`anew`); or it runs, and what an earlier monitor asked for stands.
    /// Called by the control thread, before the guest's first instruction or before its first event comes here.
    fn begin(&self, system: &impl System, guest: &WatchedGuest<'_>, anew: bool) -> Result<(), Refusal>;

    /// What becomes of what a vCPU tried. Called by the thread of the vCPU's CPU; the vCPU waits.
    fn event(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event) -> Verdict;

    /// What a vCPU did, of which it asked to be told. Called by the thread that reads; the vCPU has gone on, or ended.
    fn told(&self, _system: &impl System, _guest: &WatchedGuest<'_>, _event: &Event) {}

    /// So many events of a vCPU are lost, of those it asked to be told of: they came faster than they were read.
    fn missed(&self, _system: &impl System, guest: &WatchedGuest<'_>, vcpu: usize, count: u64) {
        trellis_runtime::log!("{} (vCPU {vcpu}): {count} events were not read in time", guest.name());
    }

    /// It could not be treated as was said, and the vCPU stops.
    fn stopped(&self, system: &impl System, guest: &WatchedGuest<'_>, event: &Event, why: Refusal);

    /// What the next one should know.
    fn export(&self, system: &impl System) -> Self::State;

    /// What the one before knew. Refused: nothing has changed.
    fn import(&self, system: &impl System, state: Self::State) -> Result<(), Refusal>;

    /// What its rule of this number did: seen, allowed, denied, stopped, lines spared. Rules about other events than accesses stand
    /// behind those about memory.
    fn count(&self, system: &impl System, rule: u64) -> Result<[u64; 5], Refusal>;

    /// Has a rule about a guest more, from now on or, where that does not `apply`, from the next time on that the guest begins or is
    /// adopted; at the place of this number, or at any (0). Back: its number. Refused: nothing has changed.
    fn add(&self, _system: &impl System, _guest: &WatchedGuest<'_>, _rule: Rule, _number: u16, _applies: bool) -> Result<u16, Refusal> {
        Err(Refusal::NoOperation)
    }

    /// Has a rule about a guest no more that was added.
    fn remove(&self, _system: &impl System, _guest: &WatchedGuest<'_>, _number: u64) -> Result<(), Refusal> {
        Err(Refusal::NoOperation)
    }

    /// The rule at a place among all, those of the manifest first. `NotMapped`: none stands there, but behind it; `OutOfRange`: there are no more.
    fn rule(&self, _system: &impl System, _place: u64) -> Result<KnownRule, Refusal> {
        Err(Refusal::NoOperation)
    }
}
