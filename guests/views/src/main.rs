// SPDX-License-Identifier: MIT OR Apache-2.0
//! Uses views from inside: enters those that its manifest shows it, sees another page's frame in one of them, is told of a
//! write that another forbids, and measures both. `images/views.toml` is its manifest.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod views;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
