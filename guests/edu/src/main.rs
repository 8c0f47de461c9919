// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that owns a function of PCI: the emulator's device for teaching. It has it count and ring, and ends well when
//! every message came.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod edu;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
