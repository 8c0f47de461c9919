// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor says to root: that a verdict ends a guest.

use trellis_idl::layout::slot;
use trellis_idl::wire::ToRoot;
use trellis_runtime::ring::Memory;
use trellis_runtime::{Producer, Shared, Signal, System};

/// The ear of root.
pub trait Outside: Sync {
    /// Puts a report where root finds it, and wakes root. False: there is no room, or nobody listens.
    fn report(&self, system: &impl System, report: &ToRoot) -> bool;
}

/// The ring of reports; a page of it on the board.
#[derive(Debug)]
pub struct Reports<M>(Shared<M>);

impl<M> Reports<M> {
    /// The ring in this page.
    pub const fn new(page: M) -> Reports<M> {
        Reports(Shared::new(page))
    }
}

impl<M: Memory + Copy + Send + Sync> Outside for Reports<M> {
    fn report(&self, system: &impl System, report: &ToRoot) -> bool {
        let is_there = Producer::new(*self.0.lock(system)).send(report);
        is_there && Signal::at(slot::ROOT).raise(system).is_ok()
    }
}
