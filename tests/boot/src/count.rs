// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many instructions an emulated machine executes from its start until it switches itself off, to the digit.
//!
//! The machine's clock would not do: it jumps while a CPU sleeps. The emulator's recorder counts what was executed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use trellis_cli::emulator::program;

/// What came of it.
#[derive(Debug)]
pub struct Counted {
    /// Instructions, of the first to the last.
    pub instructions: u64,
    /// What its serial port wrote; bytes that are no text are replaced.
    pub serial: String,
}

/// Runs a machine of these arguments (the board and what it starts); `folder` keeps its files.
pub fn count(name: &str, board: &[String], folder: &Path, limit: Duration) -> Counted {
    let file = |ending: &str| folder.join(format!("{name}.{ending}")).display().to_string();
    let mut command = Command::new(program());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-qmp", "stdio"]);
    command.args(["-serial", &format!("file:{}", file("serial")), "-action", "shutdown=pause"]);
    command.args(["-icount", &format!("shift=0,sleep=off,rr=record,rrfile={}", file("record"))]);
    command.args(["-rtc", "base=2020-01-01,clock=vm"]).args(board);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the emulator starts");
    let answer = ask(&mut child, limit);
    // It may have gone already.
    let _ = child.kill();
    let _ = child.wait();
    let serial = String::from_utf8_lossy(&fs::read(file("serial")).unwrap_or_default()).into_owned();
    let number = |line: &str| line.split("\"icount\": ").nth(1)?.split([',', '}']).next()?.trim().parse().ok();
    let count = answer.as_deref().and_then(number);
    let Some(instructions) = count else { panic!("{name} does not switch itself off: {answer:?}\n{serial}") };
    Counted { instructions, serial }
}

/// Waits until the machine is off and asks for the count; the answer's line comes back.
fn ask(child: &mut Child, limit: Duration) -> Option<String> {
    let (mut commands, events) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
    let (lines, seen) = channel();
    thread::spawn(move || events.lines().map_while(Result::ok).all(|line| lines.send(line).is_ok()));
    commands.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").ok()?;
    loop {
        // Events come seldom: the limit is for the silence between two of them.
        let line = seen.recv_timeout(limit).ok()?;
        if line.contains("\"SHUTDOWN\"") {
            commands.write_all(b"{\"execute\":\"query-replay\"}\n").ok()?;
        }
        if line.contains("\"icount\"") {
            return Some(line);
        }
    }
}
