// SPDX-License-Identifier: MIT OR Apache-2.0
//! irqfwd: owns the interrupts of devices that belong to guests, and hands each to the vCPU that its guest sends it to.
//!
//! The kernel keeps the state of each source and one queue a CPU; [`queue`] is this server's side of that protocol, as
//! types that can be used in the right order only. [`binding`] is the life of a line, [`storm`] when it is too much,
//! [`delays`] how long it took, and [`forwarder`] puts them together; [`server`] is all that with a configuration and
//! root's questions. Lines that devices make by messages go through [`messages`]: [`its`] is the translation service with its
//! [`command`]s, [`function`] the device's end, and [`reset`] what becomes of it between two lives of its guest.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod binding;
#[cfg(target_os = "none")]
pub mod board;
pub mod command;
pub mod delays;
pub mod forwarder;
pub mod function;
pub mod its;
pub mod messages;
pub mod queue;
pub mod reset;
pub mod server;
pub mod storm;

pub use forwarder::{Counters, Forwarder, Post, Wish};
pub use queue::{Queue, Served, Woken};
pub use server::Irqfwd;
pub use storm::Limit;
