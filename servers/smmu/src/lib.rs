// SPDX-License-Identifier: MIT OR Apache-2.0
//! smmu: keeps each device that touches memory by itself to the memory of the guest that owns it, by an SMMUv3.
//!
//! A guest's devices have a space of their own: [`space`] makes its tables, of which a [`stream`] entry speaks for each
//! device. [`driver`] has the SMMU see both, by [`command`]s, and [`event`] is what it says of accesses that it stopped;
//! [`limit`] is how much of that is told. [`server`] is all that with a configuration and root's questions.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(target_os = "none")]
pub mod board;
pub mod command;
pub mod driver;
pub mod event;
pub mod limit;
pub mod server;
pub mod space;
pub mod stream;

pub use driver::{Failure, Smmu};
pub use server::Server;
