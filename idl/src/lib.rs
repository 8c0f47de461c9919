// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interfaces of Trellis: what the kernel offers, what crosses between servers, and what an image holds.
//!
//! Read in this order: [`kernel`] (system calls, capabilities, exits), [`boot`] (what the kernel finds in its
//! image), [`plan`] (what root and the servers find there), [`wire`] (what travels over the serial port), [`control`] (what
//! the host asks and is answered), [`trace`] (what each CPU did last), [`interface`] (how two programs find out that they
//! mean the same).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod boot;
pub mod control;
pub mod event;
pub mod interface;
pub mod kernel;
pub mod layout;
pub mod plan;
pub mod trace;
pub mod wire;
