// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel core on a machine made of ordinary memory: every system call, exit and interrupt takes the walk it takes
//! on a board, and what a board does not show (stale TLB entries, memory handed over unclean) is a failure here.
//!
//! Read in this order: [`board`] (memory, TLBs, clock: what CPUs share), [`entry`] (page-table entries), [`context`]
//! (saved state), [`machine`] (one CPU's hardware), [`hosted`] (the doors, as entry code goes through them), [`guest`]
//! (what a guest does), [`laws`] (what must hold whatever happens), [`small`]
//! (a system to begin with), [`action`] (random steps).
#![forbid(unsafe_code)]

pub mod action;
pub mod board;
pub mod context;
pub mod digest;
pub mod entry;
pub mod float;
pub mod guest;
pub mod hosted;
pub mod laws;
pub mod machine;
pub mod small;

pub use board::Board;
pub use hosted::{Hosted, Now, Settings};
pub use machine::HostedMachine;
