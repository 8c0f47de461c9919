// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guests of this project stand on: start-up at EL1, an identity map with caches, vectors, the serial port,
//! the GICv3, the virtual timer, PSCI and the device tree of a virt-like platform.
//!
//! Promise: a safe caller cannot break this crate's own memory, its map or its stacks. What reaches the machine below
//! (a store to a device, a hypercall) is the point of these guests and is bounded by the hypervisor, not by Rust.
//! The parts that only read values (`arguments`, `tree`, `figure`, `line`) also compile, and are tested, on the host.
#![cfg_attr(not(test), no_std)]

pub mod arguments;
pub mod figure;
pub mod line;
pub mod tree;

#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod fault;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod gic2;
#[cfg(target_os = "none")]
pub mod map;
#[cfg(target_os = "none")]
pub mod psci;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(target_os = "none")]
pub mod timer;
#[cfg(target_os = "none")]
pub mod uart;
#[cfg(target_os = "none")]
pub mod vectors;

#[cfg(target_os = "none")]
pub use start::Machine;
