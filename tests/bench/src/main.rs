// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stands in root's place and measures what a system call, a call and reply, a signal, an interrupt and a batched map cost, in
//! instructions (ticks at 1 GHz under `-icount shift=0`); on two CPUs, whether vCPUs that move between them keep what is theirs. Prints `figure NAME VALUE instructions` on the serial port.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod float;
#[cfg(target_os = "none")]
mod forward;
#[cfg(target_os = "none")]
mod moves;
#[cfg(target_os = "none")]
mod paths;
#[cfg(target_os = "none")]
mod steps;

#[cfg(target_os = "none")]
trellis_runtime::entry!(paths::run);
