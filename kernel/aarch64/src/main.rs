// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's image for AArch64: everything is in the library; this makes it a program.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(target_os = "none")]
use trellis_kernel_aarch64 as _;

#[cfg(not(target_os = "none"))]
fn main() {}
