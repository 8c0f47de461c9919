// SPDX-License-Identifier: MIT OR Apache-2.0
//! One story: a manifest of ours, run as `./trellis run` does, with somebody typing and a limit of its own.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use trellis_cli::drive::Outcome;
use trellis_cli::place;
use trellis_cli::run::Run;
use trellis_cli::session::Outputs;
use trellis_cli::status::Status;

/// What was seen of a run.
#[derive(Debug)]
pub struct Seen {
    /// Consoles of guests.
    pub out: String,
    /// Logs.
    pub log: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// A manifest that comes with Trellis.
pub fn manifest(name: &str) -> PathBuf {
    place::root().join("images").join(name)
}

/// A run of one of our manifests that is ended, and then fails, after this time.
pub fn of(name: &str, limit: Duration) -> Run {
    Run { manifest: Some(manifest(name)), timeout: Some(limit), ..Run::default() }
}

/// Carries out a manifest with this text; the rest of the run is as it is given.
pub fn of_text(text: &str, run: Run) -> Seen {
    let folder = tempfile::tempdir().expect("a folder");
    seen(&Run { manifest: Some(written(folder.path(), text)), ..run }, &[])
}

/// A manifest with this text in a folder.
pub fn written(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("m.toml");
    std::fs::write(&path, text).expect("a manifest in a folder of ours");
    path
}

/// The text of a manifest for a guest of ours with this command line, on these CPUs, that owns a device. More keys of the device may
/// follow.
pub fn owner(guest: &str, device: &str, forward: &str, arguments: &str, cpus: &str) -> String {
    format!(
        "name = \"{guest}\"\nboard = \"virt\"\n\n[guest.{guest}]\nkernel = \"{guest}\"\ncommand-line = \"{arguments}\"\n\
         memory = \"16M\"\ncpus = {cpus}\non-reset = \"end\"\n\n\
         [[guest.{guest}.device]]\ndevice = \"{device}\"\nforward = \"{forward}\"\n"
    )
}

/// The one guest of a manifest that has only one.
pub fn only_guest(name: &str) -> String {
    let text = std::fs::read_to_string(manifest(name)).unwrap_or_else(|error| panic!("images/{name}: {error}"));
    let guests: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("[guest.")?.strip_suffix(']')).collect();
    assert_eq!(guests.len(), 1, "images/{name} has one guest");
    guests[0].to_owned()
}

/// Carries it out; `script` says what to type when which text has shown.
pub fn seen(run: &Run, script: &[(&str, &str)]) -> Seen {
    let (keys, typed) = channel();
    let script = script.iter().map(|(text, keys)| ((*text).to_owned(), (*keys).to_owned())).rev().collect();
    let mut out = Typist { seen: Vec::new(), read: 0, script, keys };
    let mut log = Vec::new();
    let outcome = run.with_keys(Box::new(Keys { typed, rest: Vec::new() }), &mut Outputs { out: &mut out, log: &mut log });
    let log = String::from_utf8_lossy(&log).into_owned();
    let out = String::from_utf8_lossy(&out.seen).into_owned();
    match outcome {
        Ok(outcome) => Seen { out, log, outcome },
        Err(failure) => panic!("{}\n{log}", failure.text(false)),
    }
}

impl Seen {
    /// Fails with everything that was seen unless this holds.
    pub fn expect(&self, holds: bool, sentence: &str) {
        assert!(holds, "{sentence}\n{:?}\n── consoles ──\n{}\n── logs ──\n{}", self.outcome, self.out, self.log);
    }

    /// Fails unless a guest said each of these, with its program's name before it.
    pub fn expect_lines(&self, guest: &str, lines: &[&str]) {
        for line in lines {
            self.expect(self.out.contains(&format!("{guest}| {guest}: {line}")), line);
        }
    }

    /// Fails unless every guest ended well.
    pub fn expect_good_end(&self) {
        self.expect(self.outcome.status == Status::Well, "every guest ends well");
    }

    /// Names of guests with a console line like this.
    pub fn guests_with(&self, wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let lines = self.out.lines().filter_map(|line| line.split_once("| "));
        let mut names: Vec<&str> = lines.filter(|(_, text)| wanted(text)).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Reads along and types what the script says, in its order.
struct Typist {
    seen: Vec<u8>,
    /// Bytes that earlier steps of the script were answers to.
    read: usize,
    /// The next step last.
    script: Vec<(String, String)>,
    keys: Sender<Vec<u8>>,
}

impl Write for Typist {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        while let Some((text, keys)) = self.script.last() {
            let new = &self.seen[self.read..];
            let Some(at) = new.windows(text.len().max(1)).position(|window| window == text.as_bytes()) else { break };
            self.read += at + text.len();
            // The run may be over: then nobody waits for keys.
            let _ = self.keys.send(keys.clone().into_bytes());
            self.script.pop();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The keys that were typed; blocks until there are some.
struct Keys {
    typed: Receiver<Vec<u8>>,
    rest: Vec<u8>,
}

impl Read for Keys {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.typed.recv().unwrap_or_default();
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest[..length]);
        self.rest.drain(..length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_typed_in_the_scripts_order_and_once() {
        let (keys, typed) = channel();
        let script = vec![("=> ".into(), "off\n".into()), ("=> ".into(), "version\n".into())];
        let mut typist = Typist { seen: Vec::new(), read: 0, script, keys };
        for piece in [b"boot\n=".as_slice(), b"> ", b"version\nU-Boot\n=> ", b"=> "] {
            typist.write_all(piece).expect("it takes everything");
        }
        drop(typist);
        let mut text = String::new();
        Keys { typed, rest: Vec::new() }.read_to_string(&mut text).expect("keys are text");
        assert_eq!(text, "version\noff\n");
    }
}
