// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that owns functions of PCI: the emulator's device for teaching, which it has count and ring, and if it has them
//! network cards whose messages it calls for, and a source of randomness that it looks at. It ends well when every message came.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
mod edu;
#[cfg(target_os = "none")]
mod twin;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
