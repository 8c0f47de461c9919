// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a manifest to a bootable image.
//!
//! [`System::load`] reads and checks a manifest and all it names, or says in a [`Report`] what is wrong;
//! [`System::compose`] makes the image; [`query()`] reads an image back; [`System::explain`] and [`System::picture`]
//! say who may do what to whom. Read in this order: `manifest` (what is written), `check`, `watch` and `fit` (whether it
//! makes sense), `kernel_file` and `place` (what lies where in a guest), `system`, `compose`.
#![forbid(unsafe_code)]

pub mod board;
mod check;
mod compose;
pub mod device;
mod device_tree;
mod explain;
mod fit;
pub mod function;
mod guest;
mod hear;
mod kernel_file;
mod manifest;
mod monitor;
mod payload;
mod pci;
mod picture;

mod place;
pub mod problem;
mod program;
pub mod quantity;
mod query;
pub mod ranges;
pub mod smmu;
pub mod source;
pub mod swap;
mod system;
mod table;
mod view;
mod watch;
pub mod words;

pub use board::Board;
pub use compose::Programs;
pub use guest::Guest;
pub use kernel_file::{KernelFile, Piece};
pub use manifest::Kind;
pub use monitor::Shipped;
pub use place::Placement;
pub use problem::{Code, Problem, Report};
pub use program::ComposeError;
pub use query::{PartInfo, QueryError, Queried, query};
pub use source::{Download, Folders, OUR_GUESTS, Source};
pub use system::System;
