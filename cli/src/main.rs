// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `trellis` command: reads the command line, does what it says, ends with the status that scripts rely on.
#![forbid(unsafe_code)]

use clap::Parser;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use trellis_cli::args::{Args, Command};
use trellis_cli::session::Outputs;
use trellis_cli::status::{Failure, Status};

fn main() -> ExitCode {
    let args = Args::parse();
    let status = carry_out(args.command).unwrap_or_else(|failure| {
        if !failure.is_silent() {
            // When even the standard error is closed, the status still says it.
            let _ = writeln!(io::stderr(), "{}", failure.text(io::stderr().is_terminal()));
        }
        failure.status
    });
    status.into()
}

fn carry_out(command: Command) -> Result<Status, Failure> {
    let (mut out, mut log) = (io::stdout(), io::stderr());
    let mut outputs = Outputs { out: &mut out, log: &mut log };
    match command {
        Command::Run(run) => run.carry_out(&mut outputs),
        Command::Check(check) => check.carry_out(&mut outputs),
        Command::Build(build) => build.carry_out(&mut outputs),
        Command::Query(query) => query.carry_out(&mut outputs),
        Command::Explain(explain) => explain.carry_out(&mut outputs),
        Command::Ctl(ctl) => ctl.carry_out(&mut outputs),
        Command::Sign(sign) => sign.carry_out(&mut outputs),
        Command::Bench(bench) => bench.carry_out(&mut outputs),
    }
}
