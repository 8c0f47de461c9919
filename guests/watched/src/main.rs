// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that is watched: every CPU stores numbered sequences to pages that a monitor watches, as fast as it can, and
//! checks from inside that each access had just the effect that was ordered, while its timer interrupts it.
//! `images/monitor.toml` is its manifest.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod figures;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod watched;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
