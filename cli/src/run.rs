// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis run`: composes an image into a temporary file, runs it, shows its consoles.

use crate::door::Door;
use crate::drive::{Outcome, Wish, drive};
use crate::emulator::arguments;
use crate::names::Names;
use crate::place;
use crate::session::Outputs;
use crate::status::{Doing, Failure, Status};
use crate::system::{Host, StandIns, emulation, load};
use crate::terminal::RawInput;
use clap::Args;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use trellis_idl::control::Control;
use trellis_idl::boot::{BootHeader, HEADER_OFFSET};
use zerocopy::FromBytes;

/// Composes an image and runs it in the emulator.
///
/// Consoles of guests go to the standard output as `GUEST| text`, logs to the standard error. Exit status: 0 all ended
/// well, 3 a guest crashed or ended with an error, 4 time-out, 2 wrong manifest or usage, 1 anything else.
#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// The manifest [default: images/hello.toml of Trellis itself]
    pub manifest: Option<PathBuf>,
    /// Runs it on this board instead of the manifest's
    #[arg(long, value_name = "NAME")]
    pub board: Option<String>,
    /// Runs it with this CPU model
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Makes it deterministic: one instruction takes one nanosecond
    #[arg(long)]
    pub icount: bool,
    /// Ends it after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Connects the terminal to this guest: its bytes raw to the standard output, the standard input to it
    #[arg(long, value_name = "GUEST")]
    pub console: Option<String>,
    /// Writes what every CPU did to this file: as text, or, if its name ends in .json, as trace events for
    /// ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Listens at this socket for `trellis ctl`, as far as the manifest's `control` allows
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Programs that take the place of shipped ones, for measuring and for tests.
    #[arg(skip)]
    pub stand_ins: StandIns,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero()).ok_or_else(|| "not a time to wait".to_owned())
}

impl Run {
    /// Does it, with the terminal's keys if a console is asked for.
    pub fn carry_out(&self, outputs: &mut Outputs) -> Result<Status, Failure> {
        let ready = self.prepare()?;
        let terminal = ready.console.map(|_| RawInput::enter());
        let outcome = ready.go(Box::new(io::stdin()), outputs);
        drop(terminal);
        outcome.map(|outcome| outcome.status)
    }

    /// Does it, with these keys for the console.
    pub fn with_keys(&self, keys: Box<dyn Read + Send>, outputs: &mut Outputs) -> Result<Outcome, Failure> {
        self.prepare()?.go(keys, outputs)
    }

    /// The emulator's whole command line, with the image that it needs for as long as it runs, and where the kernel
    /// then lies.
    pub fn command_line(&self) -> Result<(Vec<String>, tempfile::NamedTempFile, u64), Failure> {
        let Ready { board, image, icount, image_at, .. } = self.prepare()?;
        Ok((arguments(&board, image.path(), icount), image, image_at))
    }

    /// Everything that comes before the emulator.
    fn prepare(&self) -> Result<Ready, Failure> {
        if let Some(file) = &self.trace {
            // Not only after the run: what cannot be written is better known before.
            std::fs::File::create(file).doing(|| format!("write the trace to {}", file.display()))?;
        }
        let manifest = self.manifest.clone().unwrap_or_else(|| place::root().join("images/hello.toml"));
        let host = Host::with(self.stand_ins);
        let system = load(&manifest, self.board.as_deref(), &host)?;
        let board = emulation(&system, self.cpu.as_deref(), self.icount)?;
        let image = host.compose_with(&system, self.trace.is_some())?;
        let names = Names::from_image(&image, &manifest.display().to_string())?;
        let console = self.console_guest(&names)?;
        let control = self.door(&names)?;
        let (icount, timeout, trace) = (self.icount, self.timeout, self.trace.clone());
        let image_at = system.board().image_at;
        let header = image.get(HEADER_OFFSET..).and_then(|rest| BootHeader::read_from_prefix(rest).ok());
        let kernel_bytes = header.map_or(0, |(header, _)| header.payload.base);
        Ok(Ready { board, image: temporary(&image)?, names, console, control, icount, timeout, trace, image_at, kernel_bytes })
    }

    fn door(&self, names: &Names) -> Result<Option<Door>, Failure> {
        let Some(path) = &self.control else { return Ok(None) };
        if names.control == Control::Off {
            let hint = "write control = \"observe\" or control = \"full\" into it";
            return Err(Failure::usage("the manifest says control = \"off\", so nobody could ask anything", hint));
        }
        Door::open(path).map(Some)
    }

    fn console_guest(&self, names: &Names) -> Result<Option<u8>, Failure> {
        let Some(name) = &self.console else { return Ok(None) };
        let known = || names.guests.iter().map(|guest| guest.name.as_str()).collect::<Vec<_>>().join(", ");
        let guest = names.channel(name);
        guest.map(Some).ok_or_else(|| Failure::usage(format!("there is no guest {name}"), format!("there are: {}", known())))
    }
}

/// An image that only waits to be run.
struct Ready {
    board: Vec<String>,
    image: tempfile::NamedTempFile,
    names: Names,
    console: Option<u8>,
    control: Option<Door>,
    icount: bool,
    timeout: Option<Duration>,
    trace: Option<PathBuf>,
    /// Where the board's loader puts the image.
    image_at: u64,
    /// Bytes of the kernel in it.
    kernel_bytes: u64,
}

impl Ready {
    fn go(self, keys: Box<dyn Read + Send>, outputs: &mut Outputs) -> Result<Outcome, Failure> {
        let console = self.console.map(|guest| (guest, keys));
        let kernel = Some(self.image_at..self.image_at + self.kernel_bytes);
        let wish = Wish { icount: self.icount, timeout: self.timeout, trace: self.trace, kernel, console, control: self.control };
        drive(&self.board, self.image.path(), self.names, wish, outputs)
    }
}

fn temporary(image: &[u8]) -> Result<tempfile::NamedTempFile, Failure> {
    let doing = || "write the image into a temporary file".to_owned();
    let mut file = tempfile::Builder::new().prefix("trellis-").suffix(".img").tempfile().doing(doing)?;
    file.write_all(image).and_then(|()| file.flush()).doing(doing)?;
    Ok(file)
}

/// Runs a manifest without a terminal, as tests do.
pub fn run(manifest: &Path, timeout: Duration, outputs: &mut Outputs) -> Result<Outcome, Failure> {
    let run = Run { manifest: Some(manifest.to_owned()), timeout: Some(timeout), ..Run::default() };
    run.with_keys(Box::new(io::empty()), outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_positive_seconds() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["0", "-1", "NaN", "inf", "soon", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
