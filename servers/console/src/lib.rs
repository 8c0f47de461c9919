// SPDX-License-Identifier: MIT OR Apache-2.0
//! console: the board's first serial port. Logs, guests' serial ports and reports go out in frames; input comes in.
//!
//! [`frame`] is the format, [`uart`] the device, [`channel`] whose bytes are next, [`control`] what the host asks, [`pump`]
//! moves them. It holds no authority over anybody: what it can do is print, wake a vcpu server whose guest has input, and
//! hand root what the host asks.
//!
//! Its own log goes nowhere: ring page 0 is root's here. Nothing in this crate may use `log!`.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod channel;
pub mod control;
pub mod frame;
pub mod pump;
pub mod uart;

pub use pump::Console;
