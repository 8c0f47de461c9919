// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever ends the tool, no emulator stays behind: signals that it can answer, and the one that it cannot.
//!
//! The tool in these tests is this test's own program, started again with a word in its environment.

use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use trellis_cli::drive::{Wish, drive};
use trellis_cli::names::Names;
use trellis_cli::session::Outputs;
use trellis_cli::status::Status;

const WORD: &str = "TRELLIS_TEST_RUNS_FOR_EVER";
const LIMIT: Duration = Duration::from_secs(60);

/// An arm64 Image that branches to itself.
fn image() -> Vec<u8> {
    let mut words = vec![0u32; 17];
    words[0] = 0x1400_0010; // b 64
    words[4] = 0x10000; // image_size
    words[6] = 0xa; // flags: 4 KiB pages, anywhere
    words[14] = 0x644d_5241; // "ARM\x64"
    words[16] = 0x1400_0000; // b .
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// No test of its own: what the others start.
#[test]
fn a_machine_that_never_ends() {
    if std::env::var_os(WORD).is_none() {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&image()).expect("room for an image");
    let board = ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57", "-m", "128M"].map(String::from);
    // In case the test that started this is killed itself.
    let wish = Wish { timeout: Some(LIMIT), ..Wish::default() };
    let (mut out, mut log) = (Vec::new(), Vec::new());
    let outcome = drive(&board, file.path(), Names::default(), wish, &mut Outputs { out: &mut out, log: &mut log });
    assert_eq!(outcome.expect("the emulator runs").status, Status::Failed);
    assert_eq!(String::from_utf8_lossy(&log), "trellis| interrupted, ended\n");
}

/// Name, parent and state of a process; none when it is gone.
fn process(id: i32) -> Option<(String, i32, char)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((name.to_owned(), words.next()?.parse().ok()?, state))
}

fn emulator_of(tool: &Child) -> Option<i32> {
    let all = std::fs::read_dir("/proc").expect("Linux lists its processes").flatten();
    let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.find(|id| process(*id).is_some_and(|(name, parent, _)| parent == tool.id() as i32 && name.starts_with("qemu")))
}

/// One that has ended and that nobody has asked for has no state but that.
fn is_running(id: i32) -> bool {
    process(id).is_some_and(|(name, _, state)| name.starts_with("qemu") && !matches!(state, 'Z' | 'X'))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        match look() {
            Some(found) => return found,
            None => assert!(begin.elapsed() < LIMIT / 2, "{what}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs the tool, sends it a signal when its emulator runs, and looks that both end. Whether the tool ended well.
fn signalled(signal: Signal) -> bool {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(["--exact", "a_machine_that_never_ends"]).env(WORD, "1").stdout(Stdio::null()).stderr(Stdio::null());
    let mut tool = command.spawn().expect("this program starts once more");
    let emulator = wait_for("the emulator starts", || emulator_of(&tool));
    assert!(is_running(emulator));
    kill_process(Pid::from_child(&tool), signal).expect("a child may be signalled");
    let status = wait_for("the tool ends", || tool.try_wait().expect("it is our child"));
    wait_for("the emulator ends", || (!is_running(emulator)).then_some(()));
    status.success()
}

#[test]
fn a_signal_ends_the_emulator_first() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        assert!(signalled(signal), "{signal:?}: the run says that it was interrupted");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_tool_that_is_killed_leaves_no_emulator_behind() {
    assert!(!signalled(Signal::KILL));
}
