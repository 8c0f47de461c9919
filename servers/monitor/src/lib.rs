// SPDX-License-Identifier: MIT OR Apache-2.0
//! A library for monitors, and the standard one on it.
//!
//! A [`Monitor`] is told of each access that it asked to be told of ([`event`]) and says what becomes of it. [`server`] makes
//! a server of it, which root can swap while the guests run; [`guest`] is what it may do to a guest it watches. The
//! [`standard`] monitor does what the manifest's rules say ([`rules`]) and writes it down ([`line`], [`limit`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod event;
#[cfg(test)]
mod fake;
pub mod guest;
pub mod heard;
pub mod limit;
pub mod line;
pub mod monitor;
pub mod reports;
pub mod rules;
pub mod server;
pub mod standard;

pub use event::Event;
pub use guest::WatchedGuest;
pub use monitor::Monitor;
pub use reports::{Outside, Reports};
pub use server::MonitorServer;
pub use standard::Standard;
