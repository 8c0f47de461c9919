// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a server links: start-up, system calls, the serve loop, rings and logs.
//!
//! A server's library is written against [`System`] and [`Server`] only, so that the same code runs on the kernel and,
//! in ordinary host tests, on a kernel made of memory.
#![cfg_attr(target_os = "none", no_std)]

pub mod system;

pub use system::{Reply, Server, System};
