// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `trellis` command as a library, so that the boot tests drive what users type.
//!
//! One file a subcommand (`args` lists them); `system` loads and composes, `programs` builds what runs on the board,
//! `debian` fetches guests and their `modules`; `drive` runs an image in the `emulator` (and holds an `autopsy` when it hangs); `frame`,
//! `session` and `report` turn its serial port into lines and an exit status, `timeline` what it says of each CPU into a
//! trace; `trace` looks at single instructions. A `door` lets others talk to the system through a `relay`; `ctl` is the
//! other end, `asking` its questions, `standing` (with `silicon`), `views_list` and `top` what it shows.
#![forbid(unsafe_code)]

pub mod apt;
pub mod args;
pub mod asking;
pub mod autopsy;
pub mod bench;
pub mod build;
pub mod check;
pub mod columns;
pub mod cpio;
pub mod ctl;
pub mod debian;
pub mod door;
pub mod drive;
pub mod emulator;
pub mod events;
pub mod explain;
pub mod figures;
pub mod flat;
pub mod frame;
pub mod lines;
pub mod modules;
pub mod names;
pub mod place;
pub mod programs;
pub mod progress;
pub mod query;
pub mod relay;
pub mod replaced;
pub mod report;
pub mod rules;
pub mod run;
pub mod session;
pub mod silicon;
pub mod sign;
pub mod standing;
pub mod status;
pub mod swaps;
pub mod syndrome;
pub mod system;
pub mod terminal;
pub mod timeline;
pub mod top;
pub mod trace;
pub mod upload;
pub mod views_list;
