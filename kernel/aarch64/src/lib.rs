// SPDX-License-Identifier: MIT OR Apache-2.0
//! The EL2 machine: decodes what happened, asks the core, obeys.
//!
//! Promise: what the core asks through `trellis_core::machine::Machine` touches only memory and registers that the core
//! may name: frames of runs, table pages of maps, contexts of living threads and vCPUs.
//! Pure parts (the modules above the line) compile and are tested on any host.
#![cfg_attr(target_os = "none", feature(optimize_attribute))]
#![cfg_attr(target_os = "none", no_std)]

pub mod context;
pub mod debug;
pub mod decode;
pub mod errata;
pub mod errors;
pub mod features;
pub mod narrow;
pub mod part;
pub mod predictor;
pub mod registers;
pub mod streaming;
pub mod traps;

#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod fp;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod gic2;
#[cfg(target_os = "none")]
pub mod gic3;
#[cfg(target_os = "none")]
pub mod isa;
#[cfg(target_os = "none")]
pub mod log;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod mmio;
#[cfg(target_os = "none")]
pub mod secondary;
#[cfg(target_os = "none")]
pub mod silicon;
#[cfg(target_os = "none")]
pub mod stage1;
