// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that keeps something of its own in every floating-point register and looks whether it is still there: after
//! spinning, hypercalls, and sleeps in which others use the CPU. Scalable vectors are used where its ID registers say so.
//!
//! On the command line: `name=` (vectors), `seed=` (1), `rounds=` (200), `bits=` that its vectors must have (0 = it must
//! have no scalable ones; absent = whatever there is). A register that holds anything else is told and ends the guest
//! with a crash.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod pattern;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod traps;
#[cfg(target_os = "none")]
mod vectors;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
