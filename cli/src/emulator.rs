// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU as a child process: its command line from the board's own arguments, its serial port as a stream of events.
//!
//! The serial port is QEMU's standard input and output. The child is ended by its own process id, at the latest when
//! the [`Emulator`] is dropped; if nobody is left to drop it, by the host's kernel.

use crate::autopsy::Channel;
use crate::status::{Doing, Failure};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How often the loop looks whether it was interrupted.
const TICK: Duration = Duration::from_millis(100);

/// The arguments that make a board, given by its own arguments, run an image. With `icount` one instruction takes one
/// nanosecond of the machine's time.
pub fn arguments(board: &[String], image: &Path, icount: bool) -> Vec<String> {
    let quiet = ["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio"];
    let mut arguments: Vec<String> = quiet.map(String::from).to_vec();
    arguments.extend(board.iter().cloned());
    arguments.extend(["-kernel".into(), image.to_string_lossy().into_owned()]);
    if icount {
        arguments.extend(["-icount".into(), "shift=0,sleep=off".into()]);
    }
    arguments
}

/// The program to run: `TRELLIS_QEMU`, or the one on the path.
pub fn program() -> String {
    std::env::var("TRELLIS_QEMU").unwrap_or_else(|_| "qemu-system-aarch64".into())
}

/// A command for this program that ends with the thread that starts it, even if somebody kills us: on Linux the kernel
/// sees to it, when it is asked by the child itself, which `setpriv` does before it becomes the program. Where there is
/// none, only the [`Emulator`] ends it.
fn bound_to_us(program: &str) -> Command {
    let Some(setpriv) = on_path("setpriv").filter(|_| cfg!(target_os = "linux")) else { return Command::new(program) };
    // What cannot be found shall be our complaint, not that of `setpriv`.
    let Some(program) = on_path(program) else { return Command::new(program) };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Where a program lies: a path as it stands, a name on `PATH`.
fn on_path(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// What a running emulator does.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of the serial port.
    Serial(Vec<u8>),
    /// Bytes of QEMU's own standard error.
    Complaint(Vec<u8>),
    /// Nothing for a moment.
    Quiet,
    /// The deadline has passed.
    Late,
    /// Both streams are closed: it has ended.
    Closed,
}

/// The serial port's input, shared by all who write to it: each piece whole.
#[derive(Clone)]
pub struct Serial(Arc<Mutex<dyn Write + Send>>);

impl std::fmt::Debug for Serial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Serial")
    }
}

impl Serial {
    /// One that goes there.
    pub fn of(to: impl Write + Send + 'static) -> Serial {
        Serial(Arc::new(Mutex::new(to)))
    }

    /// Sends bytes in one piece; waits as long as the emulator takes none.
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        to.write_all(bytes)?;
        to.flush()
    }
}

/// A running QEMU.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    events: Receiver<Event>,
    control: Channel,
    input: Option<Serial>,
}

impl Emulator {
    /// Starts QEMU with these arguments; it does not outlive the thread that calls this.
    pub fn start(arguments: &[String]) -> Result<Emulator, Failure> {
        let program = program();
        let mut command = bound_to_us(&program);
        let control = Channel::new().doing(|| "make a folder for the emulator's control channel".into())?;
        command.args(arguments).args(control.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            Failure::hinted(format!("could not start {program}: {error}"), "`./trellis` installs it (qemu-system-arm, version 8 or later)")
        })?;
        let (sender, events) = channel();
        if let Some(serial) = child.stdout.take() {
            pump(serial, sender.clone(), Event::Serial);
        }
        if let Some(complaints) = child.stderr.take() {
            pump(complaints, sender, Event::Complaint);
        }
        let input = child.stdin.take().map(Serial::of);
        Ok(Emulator { child, events, control, input })
    }

    /// The serial port's input.
    pub fn input(&self) -> Option<Serial> {
        self.input.clone()
    }

    /// What happens next; at the latest after a tick, or when the deadline passes.
    pub fn next(&self, deadline: Option<Instant>) -> Event {
        let left = deadline.map_or(TICK, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Event::Late;
        }
        match self.events.recv_timeout(left.min(TICK)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Quiet,
            Err(RecvTimeoutError::Disconnected) => Event::Closed,
        }
    }

    /// Stops the machine and says where it stands; `kernel` is where the kernel lies.
    pub fn autopsy(&self, kernel: std::ops::Range<u64>) -> Vec<String> {
        self.control.look(kernel).unwrap_or_else(|error| vec![format!("the machine cannot be looked at: {error}")])
    }

    /// Waits for it to end by itself.
    pub fn wait(mut self) -> Result<ExitStatus, Failure> {
        self.child.wait().doing(|| "wait for the emulator".into())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a stream in a thread of its own until it ends.
fn pump(mut stream: impl Read + Send + 'static, events: Sender<Event>, wrap: fn(Vec<u8>) -> Event) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if events.send(wrap(buffer[..length].to_vec())).is_err() {
                break;
            }
        }
    });
}

/// Copies a stream to the serial port, each piece through `wrap`, in a thread of its own: the emulator takes input
/// only as fast as the guest does, and its output must go on meanwhile.
pub fn type_in(mut keys: Box<dyn Read + Send>, serial: Serial, wrap: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = keys.read(&mut buffer) {
            if serial.send(&wrap(&buffer[..length])).is_err() {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_and_the_image_stand_on_the_command_line() {
        let board = ["-machine", "virt", "-smp", "1"].map(String::from);
        let line = arguments(&board, Path::new("/tmp/x.img"), true).join(" ");
        assert!(line.contains("-serial stdio -machine virt -smp 1 -kernel /tmp/x.img"));
        assert!(line.ends_with("-icount shift=0,sleep=off"));
        assert!(!arguments(&board, Path::new("x"), false).join(" ").contains("icount"));
    }
}
