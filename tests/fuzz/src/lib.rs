// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a fuzzer's bytes are given to: every decoder of bytes that somebody else wrote, and the laws of the kernel.
//!
//! Each target is an ordinary function that panics when it finds a fault, and brings seeds that code makes. `fuzz/` runs
//! them under libFuzzer; the test of this crate runs them on their seeds and on what lies near.
#![forbid(unsafe_code)]

pub mod boot_header;
pub mod compose;
pub mod console;
pub mod context;
pub mod control;
pub mod device_tree;
pub mod elf;
pub mod host_frames;
pub mod instruction;
pub mod kernel_file;
pub mod manifest;
pub mod messages;
pub mod plan;
pub mod program;
pub mod query;
pub mod rings;
pub mod syndrome;
pub mod syscalls;
pub mod upload;

/// One thing to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As `cargo fuzz` calls it.
    pub name: &'static str,
    /// Takes any bytes; panics when something is wrong.
    pub run: fn(&[u8]),
    /// Inputs to begin with: small, and one for each way through.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them, by name.
pub const TARGETS: [Target; 18] = [
    Target { name: "boot_header", run: boot_header::run, seeds: boot_header::seeds },
    Target { name: "compose", run: compose::run, seeds: compose::seeds },
    Target { name: "console", run: console::run, seeds: console::seeds },
    Target { name: "context", run: context::run, seeds: context::seeds },
    Target { name: "control", run: control::run, seeds: control::seeds },
    Target { name: "device_tree", run: device_tree::run, seeds: device_tree::seeds },
    Target { name: "host_frames", run: host_frames::run, seeds: host_frames::seeds },
    Target { name: "instruction", run: instruction::run, seeds: instruction::seeds },
    Target { name: "kernel_file", run: kernel_file::run, seeds: kernel_file::seeds },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds },
    Target { name: "messages", run: messages::run, seeds: messages::seeds },
    Target { name: "plan", run: plan::run, seeds: plan::seeds },
    Target { name: "program", run: program::run, seeds: program::seeds },
    Target { name: "query", run: query::run, seeds: query::seeds },
    Target { name: "rings", run: rings::run, seeds: rings::seeds },
    Target { name: "syndrome", run: syndrome::run, seeds: syndrome::seeds },
    Target { name: "syscalls", run: syscalls::run, seeds: syscalls::seeds },
    Target { name: "upload", run: upload::run, seeds: upload::seeds },
];
