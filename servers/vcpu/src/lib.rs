// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vcpu server of one guest: boots it and answers everything it asks of its processor or platform.
//!
//! Read [`server`] first: it sends each exit to one of the others. `psci`, `hypercall`, `sysreg`, `identity`, `debug`,
//! `timer` are the processor; `platform` says where the devices live, `distributor`, `redistributor`, `bank`, `pl011`,
//! `pl031` are the devices, `function` what the guest sees of its PCI functions, `bus` and `access` the ways to them, `instruction` what `access` needs. `heard` says what of it all a monitor
//! wants to hear before it happens, `events` how it is answered then.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod access;
pub mod bank;
pub mod boot;
pub mod bus;
pub mod complete;
pub mod crash;
pub mod debug;
pub mod distributor;
pub mod events;
pub mod exclusive;
pub mod function;
pub mod heard;
pub mod hypercall;
pub mod identity;
pub mod instruction;
pub mod kind;
pub mod pl011;
pub mod pl031;
pub mod platform;
pub mod psci;
pub mod redistributor;
pub mod rings;
pub mod server;
pub mod sysreg;
pub mod timer;
pub mod watched;

#[cfg(test)]
mod fake;

pub use rings::Rings;
pub use server::{Outside, VcpuServer};
