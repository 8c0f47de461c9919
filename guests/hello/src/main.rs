// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest whole guest: every CPU says hello, sleeps through three timer interrupts and says so; then the guest
//! powers off. `name=…` on the command line is what it calls itself. With `talks=MILLISECONDS` it says a line as often as that
//! instead, until a key comes; with `sleeps=1` it sleeps for ever, and nothing wakes it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod hello;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
