// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that owns devices: a clock whose alarms interrupt it, and a serial port. It counts what comes and ends well when
//! all of it came.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod alarm;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
