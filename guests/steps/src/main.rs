// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes to a page that its view forbids to write, in every way there is, and looks whether each access took effect exactly
//! once; and executes other instructions in steps that it asks for. For tests, whose servers step (`tests/faulty`).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod steps;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
