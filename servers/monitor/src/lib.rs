// SPDX-License-Identifier: MIT OR Apache-2.0
//! A library for monitors, and the standard one on it.
//!
//! A [`Monitor`] is told of what it asked to be told of ([`event`]) and says what becomes of it. [`server`] makes a server of
//! it, which root can swap while the guests run; [`guest`] is what it asks of a guest's servers, [`tools`] what it may look
//! at and change itself. The [`standard`] monitor does what the manifest's rules say ([`rules`], [`hearing`]) and writes it
//! down ([`line`](mod@line), [`limit`]); the [`tracer`] follows the execution of pages; the [`guard`] lets no page be both
//! written and executed.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod added;
#[cfg(target_os = "none")]
pub mod board;
pub mod decided;
pub mod event;
#[cfg(test)]
mod fake;
pub mod guard;
pub mod guest;
pub mod heard;
pub mod hearing;
pub mod limit;
pub mod line;
pub mod monitor;
pub mod reports;
pub mod rules;
pub mod server;
pub mod standard;
#[cfg(test)]
mod tests;
pub mod tools;
pub mod tracer;
pub mod witness;

pub use event::{Event, What};
pub use guard::Guard;
pub use guest::WatchedGuest;
pub use heard::Ears;
pub use monitor::Monitor;
pub use reports::{Outside, Reports};
pub use server::MonitorServer;
pub use standard::Standard;
pub use tracer::Tracer;
pub use witness::{Noted, Witness};
