// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel core on the hosted machine with the real server libraries on it, in one process; the guest is a script.
//!
//! [`world`] binds p2m and vcpu to threads of the hosted kernel, [`handle`] is the kernel as such a thread sees it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod handle;
pub mod world;

pub use handle::Handle;
pub use world::{Station, World};
