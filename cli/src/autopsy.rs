// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be learned from a machine that does not go on: where its CPUs stand, and what the kernel noted in its log
//! and nobody printed. The emulator is asked over its own control channel, so nothing in the machine need work.

use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trellis_idl::boot::{LOG_BYTES, LOG_MARK};

/// How long the emulator may think about a question.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder with the control channel's socket; gone when dropped.
#[derive(Debug)]
pub struct Channel {
    folder: tempfile::TempDir,
}

impl Channel {
    /// A place for one.
    pub fn new() -> io::Result<Channel> {
        Ok(Channel { folder: tempfile::Builder::new().prefix("trellis-").tempdir()? })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// What the emulator must be told.
    pub fn arguments(&self) -> [String; 2] {
        ["-qmp".into(), format!("unix:{},server=on,wait=off", self.socket().display())]
    }

    /// The sentences; `kernel` is where the kernel lies in physical memory.
    pub fn look(&self, kernel: Range<u64>) -> io::Result<Vec<String>> {
        let mut control = Control::open(&self.socket())?;
        control.ask("stop", json!({}))?;
        let registers = control.ask("human-monitor-command", json!({ "command-line": "info registers -a" }))?;
        let mut lines = places(registers.as_str().unwrap_or_default());
        let dump = self.folder.path().join("memory");
        let what = json!({ "val": kernel.start, "size": kernel.end - kernel.start, "filename": dump.display().to_string() });
        control.ask("pmemsave", what)?;
        let unsaid = unsaid(&fs::read(dump)?);
        lines.extend(unsaid.lines().map(|line| format!("not printed yet: {line}")));
        Ok(lines)
    }
}

/// The control channel, opened.
struct Control {
    answers: BufReader<UnixStream>,
    questions: UnixStream,
}

impl Control {
    fn open(socket: &Path) -> io::Result<Control> {
        let questions = UnixStream::connect(socket)?;
        questions.set_read_timeout(Some(PATIENCE))?;
        let mut control = Control { answers: BufReader::new(questions.try_clone()?), questions };
        control.ask("qmp_capabilities", json!({}))?;
        Ok(control)
    }

    /// Asks, and waits for the answer; greetings and events between are passed over.
    fn ask(&mut self, what: &str, arguments: Value) -> io::Result<Value> {
        writeln!(self.questions, "{}", json!({ "execute": what, "arguments": arguments }))?;
        let mut line = String::new();
        while self.answers.read_line(&mut line)? != 0 {
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("{what}: {error}")));
            }
            line.clear();
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Where each CPU stands, from the emulator's list of registers.
fn places(registers: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut cpu = 0;
    for line in registers.lines() {
        if let Some(number) = line.strip_prefix("CPU#") {
            cpu = number.trim().parse().unwrap_or(cpu);
        }
        if let Some((_, rest)) = line.split_once("PC=") {
            lines.push(format!("CPU {cpu} stands at 0x{}", rest.split_whitespace().next().unwrap_or("?")));
        }
        if let Some((_, state)) = line.split_once("PSTATE=")
            && let Some(last) = lines.last_mut()
        {
            let words: Vec<&str> = state.split_whitespace().take(3).collect();
            last.push_str(&format!(", state {}", words.join(" ")));
        }
    }
    lines
}

/// The text in the kernel's log that nobody took, found by its mark.
fn unsaid(memory: &[u8]) -> String {
    let places = memory.windows(LOG_MARK.len()).enumerate().filter(|(_, window)| *window == LOG_MARK);
    places.filter_map(|(at, _)| ring(&memory[at + LOG_MARK.len()..])).collect()
}

/// Indices, then the ring.
fn ring(bytes: &[u8]) -> Option<String> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let (tail, ring) = rest.split_first_chunk::<8>()?;
    let (head, tail) = (u64::from_le_bytes(*head), u64::from_le_bytes(*tail));
    let count = head.checked_sub(tail).filter(|count| *count <= LOG_BYTES as u64)?;
    let ring = ring.get(..LOG_BYTES)?;
    let text: Vec<u8> = (0..count).map(|i| ring[((tail + i) % LOG_BYTES as u64) as usize]).collect();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_has_its_place() {
        let registers = "\nCPU#0\n PC=0000000040200040 X00=0\nX01=0\nPSTATE=600003c9 -ZC- EL2h    FPCR=0\n\nCPU#1\n PC=0000000000000000 X00=0\nPSTATE=400003c5 -Z-- EL1h\n";
        let expected = ["CPU 0 stands at 0x0000000040200040, state 600003c9 -ZC- EL2h", "CPU 1 stands at 0x0000000000000000, state 400003c5 -Z-- EL1h"];
        assert_eq!(places(registers), expected);
    }

    #[test]
    fn the_log_is_found_by_its_mark_and_over_its_end() {
        let mut memory = vec![7; 100];
        memory.extend(LOG_MARK);
        memory.extend([LOG_BYTES as u64 + 3, LOG_BYTES as u64 - 2].iter().flat_map(|index| index.to_le_bytes()));
        let mut ring = vec![b'.'; LOG_BYTES];
        ring[..3].copy_from_slice(b"llo");
        ring[LOG_BYTES - 2..].copy_from_slice(b"he");
        memory.extend(ring);
        assert_eq!(unsaid(&memory), "hello");
        // Indices that no ring has, and a ring that is cut off.
        memory[116] = 0xff;
        memory[117] = 0xff;
        assert_eq!(unsaid(&memory), "");
        assert_eq!(unsaid(&memory[..120]), "");
    }
}
