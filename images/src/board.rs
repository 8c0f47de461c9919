// SPDX-License-Identifier: MIT OR Apache-2.0
//! A board: its memory, CPUs, interrupt controller and serial port, and how to emulate it.
//!
//! The facts stand in `boards/*.toml`; a manifest may also name a board file of its own.

use crate::device::{self, Device};
use crate::function::{self, Messages};
use crate::problem::{Code, Problem, Text};
use crate::quantity::parse_size;
use crate::smmu::{self, Smmu};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use trellis_idl::boot;

const BUILT_IN: [(&str, &str); 3] = [
    ("virt", include_str!("../boards/virt.toml")),
    ("virt-gicv2", include_str!("../boards/virt-gicv2.toml")),
    ("raspi4b", include_str!("../boards/raspi4b.toml")),
];

/// A board.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Board {
    /// As manifests name it.
    pub name: String,
    /// As people call it.
    pub title: String,
    /// Bits of a VMID.
    pub vmid_bits: u8,
    /// Interrupt controllers that guests may see; the first is the default.
    pub guest_gic: Vec<u8>,
    /// Whether its CPUs have scalable vectors; none = that is known only when it runs.
    pub sve: Option<bool>,
    /// Where a loader puts the image.
    pub image_at: u64,
    /// Only an emulator is ever meant: its CPUs predict nothing, and the kernel does nothing about predictors.
    #[serde(default)]
    pub emulated: bool,
    /// How CPUs are started.
    pub start: Start,
    /// Spin table: CPU i's release address is at `release + 8 * i`.
    #[serde(default)]
    pub release: u64,
    /// Affinity of each CPU, the boot CPU first.
    pub cpus: Vec<u64>,
    /// Memory, ascending.
    pub ram: Vec<Ram>,
    /// Interrupt controller.
    pub gic: Gic,
    /// First serial port.
    pub uart: Uart,
    /// What makes interrupts of messages, if anything does.
    #[serde(default)]
    pub messages: Option<Messages>,
    /// Its SMMU, if it has one.
    #[serde(default)]
    pub smmu: Option<Smmu>,
    /// What guests may own.
    #[serde(default, rename = "device")]
    pub devices: Vec<Device>,
    /// How to emulate it, where that is possible.
    pub emulator: Option<Emulator>,
}

/// How CPUs other than the first are started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// They are not.
    None,
    /// PSCI through SMC.
    Psci,
    /// A release address per CPU.
    SpinTable,
}

/// A range of memory.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ram {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The interrupt controller.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Gic {
    /// 2 or 3.
    pub version: u32,
    /// GICD.
    pub distributor: u64,
    /// GICR or GICC.
    pub cpu: u64,
    /// GICH.
    #[serde(default)]
    pub control: u64,
    /// GICV.
    #[serde(default)]
    pub virtual_cpu: u64,
    /// Lines that it has, the private ones among them (GICD_TYPER.ITLinesNumber).
    #[serde(default = "most_lines")]
    pub lines: u32,
}

/// As many as there can be.
const fn most_lines() -> u32 {
    1020
}

/// The serial port.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uart {
    /// What it is.
    pub kind: UartKind,
    /// First byte of its page.
    pub base: u64,
    /// Its interrupt.
    pub line: u32,
}

/// What a serial port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UartKind {
    /// Arm's PrimeCell.
    Pl011,
}

/// How to emulate the board.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Emulator {
    /// `-machine`.
    pub machine: String,
    /// CPU model unless another is asked for.
    pub cpu: String,
    /// CPU models it can be run with.
    pub cpus: Vec<String>,
    /// Bytes of memory.
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    /// CPUs, if the machine always has the same number.
    pub smp: Option<u32>,
    /// The machine takes neither a CPU model nor a memory size.
    #[serde(default)]
    pub fixed: bool,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a size such as \"1G\"")))
}

impl Emulator {
    /// The emulator's arguments for a CPU model and a number of CPUs; `nominal` makes its clock tick once a nanosecond,
    /// whatever the model.
    pub fn arguments(&self, cpu: &str, cpus: u32, nominal: bool) -> Vec<String> {
        let mut arguments = vec!["-machine".to_string(), self.machine.clone()];
        if !self.fixed {
            arguments.extend(["-cpu".into(), cpu.into(), "-m".into(), format!("{}M", self.memory >> 20)]);
        }
        arguments.extend(["-nic".into(), "none".into(), "-smp".into(), self.smp.unwrap_or(cpus.max(1)).to_string()]);
        if nominal {
            // Properties may follow the model's name.
            let model = cpu.split(',').next().unwrap_or(cpu);
            arguments.extend(["-global".into(), format!("{model}-arm-cpu.cntfrq=1000000000")]);
        }
        arguments
    }
}

impl Board {
    /// Names of the boards that come with Trellis.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a board that comes with Trellis.
    pub fn built_in(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// Reads a board file; `text` names it in problems.
    pub fn parse(text: &Text) -> Result<Board, Problem> {
        let mut board: Board = toml::from_str(text.inner()).map_err(|error| {
            let problem = Problem::new(Code::BadBoard, "this board file cannot be used").within(text);
            let problem = problem.at(error.span().unwrap_or(0..0), error.message().trim().replace('\n', "; "));
            problem.hint("images/boards/virt.toml shows every key of a board file")
        })?;
        match board.contradiction() {
            None => {
                function::number(&mut board);
                Ok(board)
            }
            Some(sentence) => Err(Problem::new(Code::BoardContradiction, sentence)
                .within(text)
                .at(0..0, "in this board file")
                .hint("images/boards/virt.toml shows a board that works")),
        }
    }

    fn contradiction(&self) -> Option<String> {
        let cpus: BTreeSet<_> = self.cpus.iter().collect();
        let page = |address: u64| address.is_multiple_of(4096);
        if self.cpus.is_empty() || self.cpus.len() > boot::MAX_CPUS {
            return Some(format!("a board has 1 to {} CPUs, not {}", boot::MAX_CPUS, self.cpus.len()));
        }
        if cpus.len() != self.cpus.len() {
            return Some("two CPUs have the same affinity".into());
        }
        if self.ram.is_empty() || self.ram.len() > 4 {
            return Some(format!("a board has 1 to 4 ranges of memory, not {}", self.ram.len()));
        }
        if self.ram.iter().any(|ram| !page(ram.base) || !page(ram.bytes) || ram.base.checked_add(ram.bytes).is_none()) {
            return Some("a range of memory does not consist of pages".into());
        }
        if self.ram.windows(2).any(|pair| pair[0].base + pair[0].bytes > pair[1].base) {
            return Some("two ranges of memory overlap or do not ascend".into());
        }
        if !self.ram.iter().any(|ram| (ram.base..ram.base + ram.bytes).contains(&self.image_at)) || !self.image_at.is_multiple_of(2 << 20) {
            return Some(format!("the image at {:#x} does not lie in memory at a 2 MiB boundary", self.image_at));
        }
        if !matches!(self.gic.version, 2 | 3) || self.guest_gic.is_empty() || self.guest_gic.iter().any(|gic| !matches!(gic, 2 | 3)) {
            return Some("interrupt controllers are of version 2 or 3".into());
        }
        if self.vmid_bits > 16 {
            return Some("a VMID has at most 16 bits".into());
        }
        device::contradiction(self).or_else(|| function::contradiction(self)).or_else(|| smmu::contradiction(self))
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        self.ram.iter().map(|ram| ram.bytes).sum()
    }

    /// The interrupt controller a guest sees unless its manifest says otherwise.
    pub fn default_gic(&self) -> u8 {
        self.guest_gic.first().copied().unwrap_or(3)
    }

    /// What the kernel finds in its header about this board and `cpus` of its CPUs.
    pub fn header(&self, cpus: usize) -> boot::BootHeader {
        let mut header = boot::BootHeader { magic: boot::MAGIC, cpus: cpus as u32, ..boot::BootHeader::EMPTY };
        for (to, from) in header.ram.iter_mut().zip(&self.ram) {
            *to = boot::Range { base: from.base, bytes: from.bytes };
        }
        for (to, from) in header.mpidr.iter_mut().zip(self.cpus.iter().take(cpus)) {
            *to = *from;
        }
        header.gic = boot::Gic {
            version: self.gic.version,
            reserved: 0,
            distributor: self.gic.distributor,
            cpu: self.gic.cpu,
            control: self.gic.control,
            virtual_cpu: self.gic.virtual_cpu,
        };
        header.uart = boot::Uart { kind: 1, line: self.uart.line, base: self.uart.base };
        header.release = self.release;
        header.flags = if self.emulated { boot::flags::EMULATED } else { 0 };
        header.start = match self.start {
            Start::None => boot::start::NONE,
            Start::Psci => boot::start::PSCI,
            Start::SpinTable => boot::start::SPIN_TABLE,
        };
        for (to, (_, from)) in header.devices.iter_mut().zip(self.fixed_devices()) {
            *to = from;
        }
        header
    }

    /// Device pages that root gets always, in order, and what they are: the serial port first, then GICV where there is one.
    /// What guests own comes behind.
    pub fn fixed_devices(&self) -> Vec<(&'static str, boot::Range)> {
        let mut devices = vec![("serial port", boot::Range { base: self.uart.base, bytes: 4096 })];
        if self.gic.virtual_cpu != 0 {
            devices.push(("GICV", boot::Range { base: self.gic.virtual_cpu, bytes: 8192 }));
        }
        devices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn board(name: &str) -> Board {
        let text = Board::built_in(name).expect("a board of ours").to_string();
        Board::parse(&Arc::new(miette::NamedSource::new(name, text))).expect("a good board")
    }

    #[test]
    fn every_board_of_ours_reads_and_is_called_what_it_is() {
        for name in Board::names() {
            assert_eq!(board(name).name, name);
        }
    }

    #[test]
    fn the_pi_has_its_figures_in_the_header() {
        let header = board("raspi4b").header(4);
        assert_eq!(header.start, boot::start::SPIN_TABLE);
        assert_eq!(header.flags, 0, "a Raspberry Pi predicts");
        assert_eq!(board("virt").header(1).flags, boot::flags::EMULATED);
        assert_eq!((header.uart.base, header.uart.line), (0xfe20_1000, 153));
        assert_eq!(header.devices[1], boot::Range { base: 0xff84_6000, bytes: 8192 });
    }

    #[test]
    fn the_emulator_gets_what_it_understands() {
        let virt = board("virt").emulator.expect("virt is emulated").arguments("cortex-a57", 2, true).join(" ");
        assert_eq!(
            virt,
            "-machine virt,virtualization=on,gic-version=3 -cpu cortex-a57 -m 1024M -nic none -smp 2 \
             -global cortex-a57-arm-cpu.cntfrq=1000000000"
        );
        let pi = board("raspi4b").emulator.expect("the Pi is emulated").arguments("cortex-a72", 1, false).join(" ");
        assert_eq!(pi, "-machine raspi4b -nic none -smp 4");
    }
}
