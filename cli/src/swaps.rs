// SPDX-License-Identifier: MIT OR Apache-2.0
//! What replacing a monitor costs its guest: `images/bench-swap.toml` with a host that does it a few times.
//!
//! Where in its work the guest is then depends on the host, so these figures are not the same each time.

use crate::asking::{Asking, name};
use crate::figures::Figure;
use crate::place;
use crate::replaced;
use crate::run::Run;
use crate::session::Outputs;
use crate::status::{Doing, Failure};
use crate::system::Host;
use crate::upload::Program;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use trellis_idl::control::Replaced;

/// The monitor in the manifest.
const MONITOR: &str = "watchdog";
/// Times that it is replaced: an odd number, so that there is one in the middle.
const TIMES: usize = 9;
/// More than any machine should need.
const LIMIT: Duration = Duration::from_secs(600);

/// Instructions during which nobody was asked: the middle and the most of a few times.
pub fn measure() -> Result<Vec<Figure>, Failure> {
    let folder = tempfile::tempdir().doing(|| "make a folder for temporary files".into())?;
    let (socket, program) = (folder.path().join("socket"), folder.path().join("monitor.elf"));
    std::fs::write(&program, Host::default().monitor()?).doing(|| format!("write {}", program.display()))?;
    let manifest = place::root().join("images/bench-swap.toml");
    let run = Run {
        manifest: Some(manifest), console: Some("web".into()), control: Some(socket.clone()), icount: true, timeout: Some(LIMIT),
        ..Run::default()
    };
    let (read, mut keys) = io::pipe().doing(|| "make a pipe".into())?;
    let system = thread::spawn(move || {
        let (mut out, mut log) = (Vec::new(), Vec::new());
        run.with_keys(Box::new(read), &mut Outputs { out: &mut out, log: &mut log }).map(|outcome| outcome.status)
    });
    let swaps = connect(&socket).and_then(|mut asking| (0..TIMES).map(|_| swap(&mut asking, &program)).collect::<Result<Vec<u64>, Failure>>());
    // The guest ends at any key, and the system with it.
    let _ = keys.write_all(b"x");
    let ended = system.join().map_err(|_| Failure::says("the run of images/bench-swap.toml panicked"))?;
    let mut swaps = swaps?;
    ended?;
    swaps.sort_unstable();
    let figure = |name, at: usize| Figure::new(name, swaps.get(at).copied().unwrap_or(0), "instructions");
    Ok(vec![figure("swap_guest_pause_p50", TIMES / 2), figure("swap_guest_pause_max", TIMES - 1)])
}

/// Waits until the system listens.
fn connect(socket: &Path) -> Result<Asking, Failure> {
    let begin = Instant::now();
    loop {
        match Asking::connect(socket) {
            Err(_) if begin.elapsed() < LIMIT => thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

fn swap(asking: &mut Asking, program: &Path) -> Result<u64, Failure> {
    let parts = Program::read(name(MONITOR)?, program, None, false)?.send(asking)?;
    let Replaced { ticks, clock_hz, .. } = replaced::of(&parts).ok_or_else(|| Failure::says("a monitor was not replaced"))?;
    // By instruction count, an instruction is a nanosecond.
    Ok((u128::from(ticks) * 1_000_000_000 / u128::from(clock_hz.max(1))) as u64)
}
