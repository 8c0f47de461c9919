// SPDX-License-Identifier: MIT OR Apache-2.0
//! root: starts the system from the image's plan, supervises it, switches it off.
//!
//! [`check`] trusts nothing in the plan that an index could break. [`supply`] hands out memory, [`build`] makes the
//! servers and [`guest`] the guests, [`wire`] the rings between them, [`estate`] all that belongs to one guest together,
//! [`forward`] the server that hands devices' interrupts to guests, [`smmu`] the one that keeps devices to their guests' memory, [`watch`] the monitors. Then [`policy`] decides what follows from what
//! happens, a value without any system call, and [`run`] carries it out. A monitor that runs can get another one in its place: [`upload`] is how
//! that comes, [`program`] what is in it, [`room`] where it is made. [`trace`] sends what CPUs did last, [`load`] adds it
//! up, and [`host`] says what of the host's wishes is obeyed, [`events`] what monitors were told of.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod board;
pub mod build;
pub mod check;
pub mod estate;
pub mod events;
pub mod forward;
pub mod guest;
pub mod host;
pub mod load;
pub mod messages;
pub mod policy;
pub mod program;
pub mod room;
pub mod rules;
pub mod run;
pub mod smmu;
pub mod supply;
pub mod trace;
pub mod upload;
pub mod watch;
pub mod wire;
#[cfg(test)]
mod fake;

pub use board::Board;
pub use run::Root;

use trellis_idl::kernel::Refusal;
use trellis_runtime::System;
use trellis_runtime::handle::clock;

/// Why the system cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// The plan contradicts itself.
    Plan(&'static str),
    /// The kernel refused a step.
    Refused(&'static str, Refusal),
}

/// Tries that come right after one another, and behind them a millisecond apart.
const TRIES: [u32; 2] = [64, 100];

/// Makes what goes into a slot that was emptied only now: it is free once no CPU is in the middle of using it.
pub(crate) fn patiently<T>(system: &impl System, mut make: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    for attempt in 0..TRIES[0] + TRIES[1] {
        match make() {
            Err(Refusal::Again) if attempt < TRIES[0] => {}
            Err(Refusal::Again) => {
                let (now, hz) = clock(system);
                system.wait(0, now + hz / 1000 + 1);
            }
            made => return made,
        }
    }
    make()
}

/// Names the step that a refusal stopped.
pub(crate) trait Step<T> {
    /// The refusal, with the step's name.
    fn step(self, name: &'static str) -> Result<T, StartError>;
}

impl<T> Step<T> for Result<T, Refusal> {
    fn step(self, name: &'static str) -> Result<T, StartError> {
        self.map_err(|refusal| StartError::Refused(name, refusal))
    }
}
