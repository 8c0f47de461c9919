// SPDX-License-Identifier: MIT OR Apache-2.0
//! Does, one after the other, what a monitor can hear of, and says what it found afterwards. `images/events.toml` is its
//! manifest.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod acts;
#[cfg(target_os = "none")]
mod code;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
