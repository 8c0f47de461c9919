// SPDX-License-Identifier: MIT OR Apache-2.0
//! A system that runs in a thread of its own while a test talks to it, as `./trellis ctl` does from another terminal.

use crate::story;
use std::io::{self, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use trellis_cli::ctl::{Ctl, What};
use trellis_cli::run::Run;
use trellis_cli::session::Outputs;
use trellis_cli::status::{Failure, Status};

/// More than any machine should need.
const LIMIT: Duration = Duration::from_secs(900);

/// Text that one thread writes and another reads.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// What has been written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panicked")).into_owned()
    }
}

/// A system that runs.
#[derive(Debug)]
pub struct System {
    /// Consoles of guests.
    pub out: Shared,
    /// Logs.
    pub log: Shared,
    /// The keyboard.
    pub keys: PipeWriter,
    /// Where it listens.
    pub socket: PathBuf,
    /// The run itself.
    pub run: JoinHandle<Result<Status, Failure>>,
    _folder: tempfile::TempDir,
}

impl System {
    /// Starts the manifest with this text; the rest of the run is as it is given.
    pub fn start(text: &str, run: Run) -> System {
        let folder = tempfile::tempdir().expect("a folder");
        let manifest = story::written(folder.path(), text);
        let socket = folder.path().join("socket");
        let run = Run { manifest: Some(manifest), control: Some(socket.clone()), timeout: Some(LIMIT), ..run };
        let (read, keys) = io::pipe().expect("a pipe");
        let (out, log) = (Shared::default(), Shared::default());
        let mut writers = (out.clone(), log.clone());
        let run = thread::spawn(move || {
            let mut outputs = Outputs { out: &mut writers.0, log: &mut writers.1 };
            run.with_keys(Box::new(read), &mut outputs).map(|outcome| outcome.status)
        });
        System { out, log, keys, socket, run, _folder: folder }
    }

    /// Waits until something holds, as long as the system runs.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&System) -> bool) {
        while !holds(self) {
            assert!(!self.run.is_finished(), "it ended before {what}\n{}\n{}", self.out.text(), self.log.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the tool says to it.
    pub fn ctl(&self, what: What, json: bool) -> Result<String, Failure> {
        ctl(&self.socket, what, json)
    }

    /// The same, where it must be done.
    pub fn says(&self, what: What) -> String {
        self.ctl(what, false).unwrap_or_else(|failure| panic!("{}\n{}", failure.text(false), self.log.text()))
    }
}

/// What the tool says to a system that listens there.
pub fn ctl(socket: &Path, what: What, json: bool) -> Result<String, Failure> {
    let (mut out, mut log) = (Vec::new(), Vec::new());
    let ctl = Ctl { socket: Some(socket.to_owned()), json, what };
    ctl.carry_out(&mut Outputs { out: &mut out, log: &mut log })?;
    Ok(String::from_utf8(out).expect("text"))
}
