// SPDX-License-Identifier: MIT OR Apache-2.0
//! root: starts the system from the image's plan, supervises it, switches it off.
//!
//! [`check`] trusts nothing in the plan that an index could break. [`supply`] hands out memory, [`build`] makes the
//! servers and [`guest`] the guests, [`wire`] the rings between them, [`estate`] all that belongs to one guest together,
//! [`forward`] the server that hands devices' interrupts to guests, [`watch`] the monitors. Then [`policy`] decides what follows from what
//! happens, a value without any system call, and [`run`] carries it out. [`trace`] sends what CPUs did last, [`load`] adds it
//! up, and [`host`] says what of the host's wishes is obeyed.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod board;
pub mod build;
pub mod check;
pub mod estate;
pub mod forward;
pub mod guest;
pub mod host;
pub mod load;
pub mod policy;
pub mod run;
pub mod supply;
pub mod trace;
pub mod watch;
pub mod wire;
#[cfg(test)]
mod fake;

pub use board::Board;
pub use run::Root;

use trellis_idl::kernel::Refusal;

/// Why the system cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartError {
    /// The plan contradicts itself.
    Plan(&'static str),
    /// The kernel refused a step.
    Refused(&'static str, Refusal),
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
