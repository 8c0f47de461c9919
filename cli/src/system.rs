// SPDX-License-Identifier: MIT OR Apache-2.0
//! A manifest on this host: loads it with what the host can build and fetch, composes it with the board's programs.

use crate::debian;
use crate::flat::flatten;
use crate::programs::{self, KERNEL, Programs};
use crate::status::{Doing, Failure};
use std::cell::OnceCell;
use std::io;
use std::path::{Path, PathBuf};
use trellis_images::{Download, Shipped, Source, System};

/// Programs that take another's place, for measuring and for tests: which, and what stands there instead.
pub type StandIns = &'static [(&'static str, &'static str)];

/// The first server.
pub const ROOT: &str = "servers/root";
/// The program that measures the kernel's own paths takes root's place.
pub const MEASURE: StandIns = &[(ROOT, programs::BENCH_ROOT)];
/// A guest's servers that the guest can make crash or hang, and an irqfwd, an smmu and a monitor that die by themselves.
pub const FAULTY: StandIns = &[
    ("servers/p2m", "tests/faulty/faulty-p2m"),
    ("servers/vcpu", "tests/faulty/faulty-vcpu"),
    ("servers/irqfwd", "tests/faulty/faulty-irqfwd"),
    ("servers/smmu", "tests/faulty/faulty-smmu"),
    ("servers/monitor", "tests/faulty/faulty-monitor"),
];
/// A guest's servers that let it do step by step what its views forbid.
pub const STEPPING: StandIns = &[("servers/p2m", "tests/faulty/stepping-p2m"), ("servers/vcpu", "tests/faulty/stepping-vcpu")];
/// Folder of the Linux program that keeps vector registers busy.
const CHURN: &str = "guests/churn";

/// This host as the composer sees it: files, our own guests built when they are asked for, downloads fetched then.
#[derive(Debug, Default)]
pub struct Host {
    programs: OnceCell<Result<Programs, String>>,
    stand_ins: StandIns,
}

impl Host {
    /// A host whose images have these stand-ins.
    pub fn with(stand_ins: StandIns) -> Host {
        Host { programs: OnceCell::new(), stand_ins }
    }

    /// The board's programs, built once.
    fn programs(&self) -> Result<&Programs, String> {
        let faulty = [FAULTY, STEPPING].contains(&self.stand_ins);
        let build = || programs::build(faulty).map_err(|failure| failure.text(false));
        self.programs.get_or_init(build).as_ref().map_err(Clone::clone)
    }

    /// The bytes of one of them.
    fn program(&self, folder: &str) -> Result<Vec<u8>, Failure> {
        let programs = self.programs().map_err(Failure::says)?;
        let path = programs.get(folder).ok_or_else(|| Failure::says(format!("there is no program in {folder}")))?;
        std::fs::read(path).doing(|| format!("read {}", path.display()))
    }

    /// Makes the image.
    pub fn compose(&self, system: &System) -> Result<Vec<u8>, Failure> {
        self.compose_with(system, false)
    }

    /// Makes an image that may send a trace to the host.
    pub fn compose_with(&self, system: &System, trace: bool) -> Result<Vec<u8>, Failure> {
        let kernel = flatten(&self.program(KERNEL)?)?;
        let server = |name: &str| {
            let name = format!("servers/{name}");
            let stand_in = self.stand_ins.iter().find(|(shipped, _)| *shipped == name);
            self.program(stand_in.map_or(&name, |(_, stand_in)| stand_in))
        };
        let shipped = |which, name: &str| if system.names(which) { server(name) } else { Ok(Vec::new()) };
        let programs = trellis_images::Programs {
            kernel,
            root: server("root")?,
            console: server("console")?,
            p2m: server("p2m")?,
            vcpu: server("vcpu")?,
            irqfwd: server("irqfwd")?,
            smmu: if system.has_smmu() { server("smmu")? } else { Vec::new() },
            monitor: shipped(Shipped::Standard, "monitor")?,
            tracer: shipped(Shipped::Tracer, "monitor/trellis-tracer")?,
            guard: shipped(Shipped::Guard, "monitor/trellis-guard")?,
            trace,
        };
        Ok(system.compose(&programs)?)
    }

    /// The standard monitor's ELF file.
    pub fn monitor(&self) -> Result<Vec<u8>, Failure> {
        self.program("servers/monitor")
    }

    /// irqfwd's ELF file.
    pub fn irqfwd(&self) -> Result<Vec<u8>, Failure> {
        self.program("servers/irqfwd")
    }

    /// The kernel's ELF file.
    pub fn kernel(&self) -> Result<Vec<u8>, Failure> {
        self.program(KERNEL)
    }
}

impl Source for Host {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn guest(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.programs()?.get(&format!("guests/{name}"));
        path.cloned().ok_or_else(|| format!("there is no program in guests/{name}"))
    }

    fn fetch(&self, download: Download) -> Result<PathBuf, String> {
        let path = match download {
            Download::Linux => debian::linux().map(|linux| linux.kernel),
            Download::BusyboxInitrd => debian::linux().map(|linux| linux.initramfs),
            Download::ChurnInitrd => {
                let path = self.programs()?.get(CHURN).ok_or_else(|| format!("there is no program in {CHURN}"))?;
                debian::churn_initramfs(path)
            }
            Download::NetworkInitrd => debian::network_initramfs(),
            Download::UBoot => debian::u_boot(),
        };
        path.map_err(|failure| failure.text(false))
    }
}

/// Loads and checks a manifest, on another board than its own if that is wished.
pub fn load(manifest: &Path, board: Option<&str>, host: &Host) -> Result<System, Failure> {
    let Some(board) = board else {
        return System::load(manifest, host).map_err(Failure::wrong);
    };
    let text = std::fs::read(manifest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match text {
        Some(text) => System::from_text(manifest, on_board(&text, board), host).map_err(Failure::wrong),
        None => System::load(manifest, host).map_err(Failure::wrong),
    }
}

/// The manifest's text with its `board` line replaced; every other line stays where it was.
fn on_board(text: &str, board: &str) -> String {
    let mut is_top = true;
    let lines = text.split_inclusive('\n').map(|line| {
        is_top &= !line.trim_start().starts_with('[');
        let is_board = is_top && line.split('=').next().is_some_and(|key| key.trim() == "board");
        if is_board { format!("board = {board:?} # --board\n") } else { line.to_owned() }
    });
    lines.collect()
}

/// The emulator's arguments for the board of a system, with another CPU model if that is wished.
pub fn emulation(system: &System, cpu: Option<&str>, icount: bool) -> Result<Vec<String>, Failure> {
    let board = system.board();
    let Some(emulator) = &board.emulator else {
        let sentence = format!("the board {} has no emulator", board.name);
        return Err(Failure::usage(sentence, "`./trellis build` makes the image for it; `--board virt` runs it elsewhere"));
    };
    let cpu = cpu.unwrap_or(&emulator.cpu);
    // Properties may follow the model's name: max,sve512=on.
    let model = cpu.split(',').next().unwrap_or(cpu);
    if !emulator.cpus.iter().any(|known| known == model) {
        let sentence = format!("the board {} is not emulated with the CPU {cpu}", board.name);
        return Err(Failure::usage(sentence, format!("it can be {}", emulator.cpus.join(", "))));
    }
    let cpus = u32::try_from(system.cpus()).unwrap_or(u32::MAX);
    let mut arguments = emulator.arguments(cpu, cpus, icount);
    arguments.extend(system.emulator_arguments());
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boards_line_is_replaced_and_no_other() {
        let text = "name = \"x\"\n  board= \"virt\"\n[guest.a]\nboard = \"kept\"\n";
        let expected = "name = \"x\"\nboard = \"raspi4b\" # --board\n[guest.a]\nboard = \"kept\"\n";
        assert_eq!(on_board(text, "raspi4b"), expected);
    }
}
