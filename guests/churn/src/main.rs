// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program for Linux, static and without a library: it keeps something in every vector register while others of its
//! kind do the same, and looks whether it is still there. `churn ROUNDS SEED`; its status is 0 if everything was.
//!
//! Linux may change vectors in a system call (its `sve.rst`), so there is none between filling and looking: only
//! preemption, by Linux and by whoever is below. Between rounds it changes its length, as programs may.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod churn;
#[cfg(target_os = "none")]
mod linux;

/// There is nothing to do on a host that is no AArch64 Linux.
#[cfg(not(target_os = "none"))]
fn main() {}
