// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories that whole systems live through under an emulator, and what can only be checked over the whole tree:
//! which way dependencies point, how much is unsafe, whether the walks are true. Everything is in `tests/`; here is
//! what reads the tree.
#![forbid(unsafe_code)]

pub mod count;
pub mod running;
pub mod source;
pub mod story;
pub mod tree;
