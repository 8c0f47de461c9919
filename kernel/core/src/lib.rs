// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every decision the kernel takes. It forbids unsafe, knows no architecture, and runs in ordinary host tests.
//!
//! A machine crate decodes what happened, asks one of the doors in [`trap`], and obeys the [`trap::Next`] it gets
//! back. Read in this order: [`machine`] (what a machine owes), [`pool`] (names), [`cap`] and [`table`] (authority),
//! [`local`] and [`shared`] (state), [`portal`] (IPC), [`vcpu`] (exits), [`schedule`] (time), [`patience`] (deadlines of
//! answers), [`float`] (vector registers), [`lines`] (virtual interrupts), [`source`] and [`queue`] (interrupts that a
//! server forwards), [`session`] and [`ring`] (what a guest's watcher is owed), [`space`], [`view`], [`step`], [`notice`]
//! and [`frame`] (memory), [`grace`] (when what was taken away may be used again), [`syscall`] (the table of operations),
//! [`trace`] (what happened last), [`init`] (the first domain).
//!
//! Four principles: the kernel decides, returns, and is carried out once; a CPU's own objects are reached without
//! locks or atomics ([`local::Local`]); what CPUs share is atomic or behind one lock each ([`shared::Shared`]); a
//! refused call leaves everything as it was.
#![cfg_attr(target_os = "none", feature(optimize_attribute))]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod atomic;
pub mod cap;
pub mod domain;
pub mod errand;
pub mod float;
pub mod forward;
pub mod frame;
pub mod grace;
pub mod guest;
pub mod init;
pub mod lines;
pub mod local;
pub mod lock;
pub mod machine;
pub mod notice;
pub mod passage;
pub mod patience;
pub mod pool;
pub mod portal;
pub mod queue;
pub mod range;
pub mod remote;
pub mod request;
pub mod retire;
pub mod schedule;
pub mod session;
pub mod shared;
pub mod signal;
pub mod signal_word;
pub mod source;
pub mod space;
pub mod step;
pub mod syscall;
pub mod table;
pub mod thread;
pub mod trace;
pub mod trap;
pub mod vcpu;
pub mod view;
pub mod word;
