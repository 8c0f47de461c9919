// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel core on the hosted machine with the real server libraries on it, in one process; the guest is a script.
//!
//! [`world`] binds p2m and vcpu to threads of the hosted kernel, [`handle`] is the kernel as such a thread sees it;
//! [`whole`] lets the real root make them, on several CPUs, and [`body`] is the kernel as a thread there sees it;
//! [`uploads`] is a host that asks that root, [`random`] makes numbers for all of them.
#![forbid(unsafe_code)]

pub mod body;
pub mod handle;
pub mod random;
pub mod uploads;
pub mod views;
pub mod whole;
pub mod world;

pub use handle::Handle;
pub use world::{Station, World};
