// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line. Others script it: its words are an interface.

use crate::{bench, build, check, ctl, explain, query, run, sign};
use clap::{Parser, Subcommand};

/// Composes system images from a manifest and runs them.
///
/// `./trellis test [--nightly]` runs every test; the launcher does that without this program.
#[derive(Clone, Debug, Parser)]
#[command(name = "trellis", bin_name = "./trellis", version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Composes an image and runs it in the emulator
    Run(run::Run),
    /// Says what is wrong with a manifest
    Check(check::Check),
    /// Composes a bootable image
    Build(build::Build),
    /// Shows what an image was made of
    Query(query::Query),
    /// Shows who may do what to whom
    Explain(explain::Explain),
    /// Talks to a running system
    Ctl(ctl::Ctl),
    /// Signs a program that takes a monitor's place
    Sign(sign::Sign),
    /// Measures the system
    Bench(bench::Bench),
}
