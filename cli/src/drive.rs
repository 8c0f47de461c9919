// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs an image to its end: the emulator's events into the session, the keys of a console to the board.

use crate::door::Door;
use crate::emulator::{Emulator, Event, arguments, type_in};
use crate::frame::Frame;
use crate::lines::Lines;
use crate::names::Names;
use crate::relay::Relay;
use crate::session::{Outputs, Session, Started};
use crate::status::{Doing, Failure, Status};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trellis_idl::wire::FrameKind;

/// Root has said `Off`: how long QEMU may take to follow.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// Bytes of QEMU's own messages that are kept.
const MOST_COMPLAINTS: usize = 1 << 16;

/// Somebody asked the tool to end (Ctrl-C) while an emulator ran.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the emulator first; before, it ends this program at once. A second one does too: whoever
/// reads our output may have stopped reading, and then the first is not seen.
fn watch_for_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without it a signal still ends this program, only less tidily.
        let _ = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(Status::Failed as i32);
            }
        });
    });
}

/// How to run an image.
#[derive(Default)]
pub struct Wish {
    /// One instruction is one nanosecond.
    pub icount: bool,
    /// The only thing here that depends on the host's clock.
    pub timeout: Option<Duration>,
    /// Where the trace goes, of an image that sends one.
    pub trace: Option<PathBuf>,
    /// Where the board's loader puts the kernel and how long it is: looked at when the machine hangs.
    pub kernel: Option<Range<u64>>,
    /// The guest whose console is raw, by index, with the keys that go to it.
    pub console: Option<(u8, Box<dyn Read + Send>)>,
    /// Where others connect to talk to the system.
    pub control: Option<Door>,
}

impl std::fmt::Debug for Wish {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let console = self.console.as_ref().map(|(guest, _)| guest);
        write!(formatter, "Wish {{ icount: {}, timeout: {:?}, console: {console:?} }}", self.icount, self.timeout)
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// What root said when it started.
    pub started: Option<Started>,
}

/// Runs an image on a board, given by the emulator's arguments for it, and says how it ended.
pub fn drive(board: &[String], image: &Path, names: Names, wish: Wish, outputs: &mut Outputs) -> Result<Outcome, Failure> {
    watch_for_signals();
    let emulator = Emulator::start(&arguments(board, image, wish.icount))?;
    if let Some(serial) = emulator.input() {
        // The port holds one byte until the console is there, and drops it when its queues are switched on: an empty frame is no loss.
        // An emulator that has ended already is found out below.
        let _ = serial.send(&[0]);
    }
    let mut session = Session::new(names, wish.console.as_ref().map(|(guest, _)| *guest));
    // Without a console the input stays open and silent until the emulator is dropped.
    if let Some((guest, keys)) = wish.console
        && let Some(serial) = emulator.input()
    {
        type_in(keys, serial, move |bytes| to_guest(guest, bytes));
    }
    let relay = wish.control.zip(emulator.input()).map(|(door, serial)| Relay::start(door, serial));
    let deadline = wish.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut complaints = Vec::new();
    let end = follow(&emulator, &mut session, relay.as_ref(), &mut complaints, deadline, outputs);
    drop(relay);
    let finished = session.finish(outputs).and_then(|()| complain(&session, &complaints, outputs.log));
    if let Some(file) = &wish.trace {
        session.timeline().save(file, session.names())?;
        let records = session.timeline().len();
        writeln!(outputs.log, "trellis| {records} records of the trace in {}", file.display()).doing(|| "write the output".into())?;
    }
    let end = end?;
    finished.doing(|| "write the output".into())?;
    if let (End::Late, Some(kernel)) = (&end, wish.kernel) {
        for line in emulator.autopsy(kernel) {
            writeln!(outputs.log, "trellis| {line}").doing(|| "write the output".into())?;
        }
    }
    let status = conclude(end, emulator, &session, wish.timeout, outputs.log)?;
    Ok(Outcome { status, started: session.started() })
}

fn to_guest(guest: u8, bytes: &[u8]) -> Vec<u8> {
    Frame { kind: FrameKind::Guest, channel: guest, payload: bytes.to_vec() }.encode()
}

/// Shows what QEMU itself said, unless the system ended as it should: then it is about a machine going off.
fn complain(session: &Session, complaints: &[u8], log: &mut dyn Write) -> std::io::Result<()> {
    if session.is_off() {
        return Ok(());
    }
    let mut lines = Lines::of("emulator");
    lines.push(complaints, log)?;
    lines.finish(log)
}

/// Why the loop ended.
enum End {
    Closed,
    /// Off was reported, but QEMU stayed.
    Stayed,
    Late,
    Interrupted,
}

fn follow(
    emulator: &Emulator,
    session: &mut Session,
    relay: Option<&Relay>,
    complaints: &mut Vec<u8>,
    timeout: Option<Instant>,
    outputs: &mut Outputs,
) -> Result<End, Failure> {
    let mut deadline = timeout;
    let mut was_off = false;
    loop {
        match emulator.next(deadline) {
            Event::Serial(bytes) => session.take(&bytes, outputs).doing(|| "write the output".into())?,
            Event::Complaint(bytes) if complaints.len() < MOST_COMPLAINTS => complaints.extend(bytes),
            Event::Complaint(_) => {}
            Event::Closed => return Ok(End::Closed),
            Event::Late if was_off => return Ok(End::Stayed),
            Event::Late => return Ok(End::Late),
            Event::Quiet => {}
        }
        for answer in session.take_answers() {
            if let Some(relay) = relay {
                relay.answer(&answer);
            }
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Ok(End::Interrupted);
        }
        if session.is_off() && !was_off {
            was_off = true;
            deadline = Some(Instant::now() + LAST_BREATH);
        }
    }
}

fn conclude(
    end: End,
    emulator: Emulator,
    session: &Session,
    timeout: Option<Duration>,
    log: &mut dyn Write,
) -> Result<Status, Failure> {
    let (status, sentence) = match end {
        End::Late => {
            let seconds = timeout.unwrap_or_default().as_secs_f64();
            (Status::TimedOut, Some(format!("not finished after {seconds} s, ended (--timeout)")))
        }
        End::Interrupted => (Status::Failed, Some("interrupted, ended".into())),
        End::Stayed => (session.status(), None),
        End::Closed => (session.status(), left(emulator, session.is_off())?),
    };
    if let Some(sentence) = sentence {
        writeln!(log, "trellis| {sentence}").doing(|| "write the output".into())?;
    }
    Ok(status)
}

/// QEMU has ended: what to say when nobody announced it.
fn left(emulator: Emulator, is_off: bool) -> Result<Option<String>, Failure> {
    let status = emulator.wait()?;
    Ok((!is_off).then(|| format!("the machine went off before root said so (emulator: {status})")))
}
