// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a server links: start-up, system calls, the serve loop, rings and logs.
//!
//! A server's library is written against [`System`] and [`Server`] only, so that the same code runs on the kernel and,
//! in ordinary host tests, on a kernel made of memory. Its `main.rs` binds the library to the board:
//!
//! ```ignore
//! #![cfg_attr(target_os = "none", no_std, no_main)]
//! #![deny(unsafe_code)]
//! trellis_runtime::server!(build);                 // fn build(svc: &Svc) -> Result<MyServer, &'static str>
//! ```
//!
//! and its `build.rs` is `fn main() { … }` with one call that hands [`server.ld`] to the linker when
//! `CARGO_CFG_TARGET_OS` is `none`: `println!("cargo:rustc-link-arg-bins=-T{dir}/../../runtime/server.ld")`.
//!
//! **Promise.** This is the only crate of a server with `unsafe` in it. Whatever a safe caller does with it, it reads
//! and writes nothing but the fixed ranges of [`trellis_idl::layout`], which root sets up before the first
//! instruction; where nothing is mapped, the thread stops with a fault.
//!
//! [`server.ld`]: https://sourceware.org/binutils/docs/ld/Scripts.html
#![cfg_attr(target_os = "none", no_std)]

pub mod event_ring;
pub mod handle;
pub mod log;
pub mod memory;
pub mod message;
pub mod pci;
pub mod ring;
pub mod serve;
pub mod shared;
pub mod stage1;
pub mod system;

#[cfg(target_os = "none")]
pub mod start;
#[cfg(target_os = "none")]
pub mod svc;

pub use handle::{Domain, Frames, Guest, Line, Machine, Portal, Session, Signal, Thread, Vcpu};
pub use ring::{Consumer, Producer, RingPage};
pub use serve::dispatch;
pub use shared::{Once, Shared};
pub use system::{Attends, Reply, Server, System};

#[cfg(target_os = "none")]
pub use memory::config;
#[cfg(target_os = "none")]
pub use serve::serve;
#[cfg(target_os = "none")]
pub use svc::Svc;
