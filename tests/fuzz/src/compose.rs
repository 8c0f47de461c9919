// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole systems of a fuzzer's choice: what the composer accepts makes an image that root and the tool can read.

use crate::elf;
use arbitrary::{Arbitrary, Unstructured};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use trellis_cli::names::Names;
use trellis_idl::boot::{BootHeader, HEADER_OFFSET};
use trellis_idl::layout::PROGRAM;
use trellis_idl::plan::{Plan, VcpuConfig};
use trellis_images::{Download, Programs, Source, System, query};
use zerocopy::FromBytes;

/// A guest's numbers.
#[derive(Arbitrary)]
struct Guest {
    kind: u8,
    memory: u16,
    cpus: Vec<u8>,
    initrd: bool,
    lazy: bool,
    priority: u8,
    budget: Option<(u16, u16)>,
    reboots: bool,
    offset: Option<u16>,
    command_line: u8,
}

/// A system's.
#[derive(Arbitrary)]
struct Wish {
    board: u8,
    guests: Vec<Guest>,
}

/// Kernels are named by their kind.
struct Shelf;

impl Source for Shelf {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        const MEMORY: u64 = 0x4000_0000;
        Ok(match path.to_str() {
            Some("image") => elf::image(0, 4096),
            Some("elf") => elf::program(&[(5, MEMORY + (2 << 20), &[0xd5; 16], 16), (6, MEMORY + (4 << 20), b"data", 9000)]),
            _ => vec![0x14; 5000],
        })
    }

    fn guest(&self, _: &str) -> Result<PathBuf, String> {
        Ok("elf".into())
    }

    fn fetch(&self, _: Download) -> Result<PathBuf, String> {
        Ok("raw".into())
    }
}

fn manifest(wish: &Wish) -> Result<String, std::fmt::Error> {
    let board = ["virt", "virt-gicv2", "raspi4b"][usize::from(wish.board % 3)];
    let mut text = format!("name = \"n\"\nboard = \"{board}\"\n");
    for (index, guest) in wish.guests.iter().enumerate() {
        let kind = ["image", "raw", "elf"][usize::from(guest.kind % 3)];
        writeln!(text, "[guest.g{index}]\nkind = \"{kind}\"\nkernel = \"{kind}\"\nmemory = \"{}M\"", guest.memory)?;
        writeln!(text, "cpus = {:?}\npriority = {}", guest.cpus, guest.priority)?;
        writeln!(text, "on-reset = \"{}\"", if guest.reboots { "reboot" } else { "end" })?;
        writeln!(text, "populate = \"{}\"", if guest.lazy { "lazy" } else { "eager" })?;
        writeln!(text, "command-line = \"{}\"", "x".repeat(guest.command_line.into()))?;
        if guest.initrd {
            writeln!(text, "initrd = \"raw\"")?;
        }
        if let Some((time, period)) = guest.budget {
            writeln!(text, "budget = {{ time = \"{time}us\", period = \"{period}us\" }}")?;
        }
        if let Some(offset) = guest.offset {
            writeln!(text, "load-offset = \"{offset}K\"")?;
        }
    }
    Ok(text)
}

/// Servers that do nothing.
pub(crate) fn programs() -> Programs {
    let program = elf::program(&[(5, PROGRAM, &[0xd5; 32], 32), (6, PROGRAM + 0x1010, &[1; 8], 9000)]);
    Programs { kernel: elf::kernel(), root: program.clone(), console: program.clone(), p2m: program.clone(), vcpu: program.clone(), irqfwd: program.clone(), monitor: program.clone(), tracer: program.clone(), guard: program.clone(), smmu: program, trace: false }
}

/// The smallest system.
pub(crate) fn smallest() -> System {
    let text = "name = \"n\"\nboard = \"virt\"\n[guest.a]\nkind = \"raw\"\nkernel = \"raw\"\nmemory = \"4M\"\ncpus = [0]\n";
    System::from_text(Path::new("m.toml"), text.into(), &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)))
}

/// Everybody who reads an image can read this one.
pub(crate) fn is_sound(image: &[u8]) {
    let queried = query(image).expect("what was composed can be queried");
    assert!(queried.parts.iter().all(|part| part.intact));
    Names::from_image(image, "m.toml").unwrap_or_else(|failure| panic!("{}", failure.text(false)));
    let header = BootHeader::read_from_prefix(&image[HEADER_OFFSET..]).expect("there is a header").0;
    assert!(header.holds_together(), "the kernel takes the header");
    let payload = &image[header.payload.base as usize..][..header.payload.bytes as usize];
    let at = |offset: u64, bytes: u64| &payload[offset as usize..][..bytes as usize];
    let plan: Plan<'_> = postcard::from_bytes(at(header.plan.base, header.plan.bytes)).expect("root can read the plan");
    assert_eq!(trellis_root::check::check(&plan), Ok(()));
    for guest in &plan.guests {
        let config = plan.servers[usize::from(guest.vcpu)].config;
        let config: VcpuConfig<'_> = postcard::from_bytes(&at(config.offset, config.bytes)[8..]).expect("a configuration");
        for load in &config.loads {
            let end = load.address.checked_add(load.part.bytes).expect("a load ends");
            assert!(load.address >= guest.memory_base && end <= guest.memory_base + guest.memory_bytes, "{load:x?}");
            at(load.part.offset, load.part.bytes);
        }
    }
}

/// One system.
pub fn run(bytes: &[u8]) {
    let Ok(wish) = Wish::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let text = manifest(&wish).expect("text is written");
    match System::from_text(Path::new("m.toml"), text, &Shelf) {
        Err(report) => {
            assert!(!report.problems().is_empty());
            report.render(false);
        }
        Ok(system) => {
            assert!(!system.explain().is_empty() && !system.picture().is_empty());
            if let Ok(image) = system.compose(&programs()) {
                is_sound(&image);
            }
        }
    }
}

/// Bytes of which different systems are made.
pub fn seeds() -> Vec<Vec<u8>> {
    [3u64, 17, 64, 131].map(|stride| (0..160u64).map(|i| (i * stride) as u8).collect()).into_iter().chain([vec![0; 40]]).collect()
}
