// SPDX-License-Identifier: MIT OR Apache-2.0
//! One guest, many misdeeds: what a guest may try against its hypervisor and its neighbours, chosen by `misdeed=…` on
//! its command line.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod hostile;

/// There is nothing to do on a host.
#[cfg(not(target_os = "none"))]
fn main() {}
