// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image: kernel, then the payload with everything else, byte-identical for the same inputs.
//!
//! Parts: manifest, board, programs, guests' files, configurations, plan, index. The kernel finds the plan and root's
//! program through its header; root finds the rest through the plan.

use crate::guest::Guest;
use crate::hear::EventEntry;
use crate::monitor::{self, Monitor, Shipped};
use crate::payload::Payload;
use crate::program::{ComposeError, Program};
use crate::system::{System, bounded};
use crate::watch::RuleEntry;
use trellis_idl::boot::{self, BootHeader, HEADER_OFFSET};
use trellis_idl::kernel::PAGE;
use std::collections::BTreeMap;
use trellis_idl::plan::{
    ConsoleConfig, DevicePages, IrqfwdConfig, Load, MonitorConfig, P2mConfig, Part, Plan, Role, Segment,
    ServerPlan, SourcePlan, Sve, SwapPlan, VcpuConfig, WatchedPlan,
};
use zerocopy::{FromBytes, IntoBytes};

/// Where the arm64 Image header says how much memory the kernel takes.
const IMAGE_SIZE: std::ops::Range<usize> = 16..24;
const IMAGE_MAGIC: std::ops::Range<usize> = 56..60;
/// Most pieces of root's program: the header's.
const ROOT_PIECES: usize = 4;
/// Most pieces of a server's program: the plan's.
pub const SERVER_PIECES: usize = 6;
/// A GICv2 guest's CPU interface.
const GICC_PAGE: u64 = trellis_idl::layout::platform::CPU_INTERFACE / PAGE;

/// What an image is composed of besides the manifest.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The kernel: a flat binary with an arm64 Image header.
    pub kernel: Vec<u8>,
    /// Root's ELF file.
    pub root: Vec<u8>,
    /// The console server's.
    pub console: Vec<u8>,
    /// The p2m server's.
    pub p2m: Vec<u8>,
    /// The vcpu server's.
    pub vcpu: Vec<u8>,
    /// irqfwd's; used where a guest owns a device.
    pub irqfwd: Vec<u8>,
    /// smmu's; used where it keeps a device to its guest's memory.
    pub smmu: Vec<u8>,
    /// The standard monitor's; used where a manifest names it.
    pub monitor: Vec<u8>,
    /// The tracer's; likewise.
    pub tracer: Vec<u8>,
    /// The guard's; likewise.
    pub guard: Vec<u8>,
    /// The image shall send its trace to the host.
    pub trace: bool,
}

struct Placed {
    entry: u64,
    segments: Vec<Segment>,
}

impl System {
    /// Makes the image.
    pub fn compose(&self, programs: &Programs) -> Result<Vec<u8>, ComposeError> {
        let mut kernel = kernel_pages(&programs.kernel)?;
        let mut payload = Payload::default();
        let manifest = payload.add("manifest", self.text.as_bytes());
        payload.add("board", self.board_text.as_bytes());
        let root = place(&mut payload, "root", &programs.root, ROOT_PIECES)?;
        let console = place(&mut payload, "console", &programs.console, SERVER_PIECES)?;
        let p2m = place(&mut payload, "p2m", &programs.p2m, SERVER_PIECES)?;
        let vcpu = place(&mut payload, "vcpu", &programs.vcpu, SERVER_PIECES)?;
        let irqfwd = match self.owned().next() {
            Some(_) => Some(place(&mut payload, "irqfwd", &programs.irqfwd, SERVER_PIECES)?),
            None => None,
        };
        let smmu = match self.has_smmu() {
            true => Some(place(&mut payload, "smmu", &programs.smmu, SERVER_PIECES)?),
            false => None,
        };
        let monitors = self.place_monitors(programs, &mut payload)?;
        let mut plan = Plan { manifest, trace: programs.trace, ..self.plan() };
        for server in &mut plan.servers {
            let program = match server.role {
                Role::Console => &console,
                Role::P2m(_) => &p2m,
                Role::Vcpu(_) => &vcpu,
                Role::Irqfwd => irqfwd.as_ref().ok_or(ComposeError::Encoding("irqfwd"))?,
                Role::Smmu => smmu.as_ref().ok_or(ComposeError::Encoding("smmu"))?,
                Role::Monitor => monitors.get(server.name).ok_or(ComposeError::Encoding("monitor"))?,
            };
            self.fill(server, program, &mut payload)?;
        }
        let encoded = postcard::to_stdvec(&plan).map_err(|_| ComposeError::Encoding("plan"))?;
        let plan = payload.add("plan", &encoded);
        self.write_header(&mut kernel, &payload, plan, &root)?;
        payload.finish(kernel)
    }

    fn fill(&self, server: &mut ServerPlan<'_>, program: &Placed, payload: &mut Payload) -> Result<(), ComposeError> {
        server.entry = program.entry;
        server.segments = bounded(program.segments.iter().copied());
        server.config = match server.role {
            Role::Console => {
                payload.add_config(server.name, &ConsoleConfig { channels: bounded(self.channels()), uart: true, monitors: self.monitors.len() as u8 })?
            }
            Role::P2m(index) => payload.add_config(server.name, &p2m_config(&self.guests[usize::from(index)]))?,
            Role::Vcpu(index) => {
                let guest = &self.guests[usize::from(index)];
                let loads = loads(guest, payload);
                payload.add_config(server.name, &VcpuConfig { bus: self.bus_plan(usize::from(index)), ..vcpu_config(guest, loads) })?
            }
            Role::Irqfwd => payload.add_config(server.name, &self.irqfwd_config())?,
            Role::Smmu => payload.add_config(server.name, &self.smmu_config().ok_or(ComposeError::Encoding("smmu"))?)?,
            Role::Monitor => {
                let monitor = self.monitor_named(server.name).ok_or(ComposeError::Encoding("monitor"))?;
                payload.add_config(server.name, &self.monitor_config(monitor))?
            }
        };
        Ok(())
    }

    fn write_header(&self, kernel: &mut [u8], payload: &Payload, plan: Part, root: &Placed) -> Result<(), ComposeError> {
        let base = kernel.len() as u64;
        let bytes = payload.finished_bytes(base)?;
        self.check_room(base + bytes)?;
        let mut header = self.board.header(self.cpus());
        if self.guests.iter().any(|guest| guest.sve != Sve::Off) {
            header.flags |= boot::flags::VECTORS;
        }
        self.write_devices(&mut header);
        header.image_bytes = base + bytes;
        header.payload = boot::Range { base, bytes };
        header.plan = boot::Range { base: plan.offset, bytes: plan.bytes };
        header.root_entry = root.entry;
        for (to, from) in header.root.iter_mut().zip(&root.segments) {
            *to = boot::Segment {
                offset: base + from.part.offset,
                address: from.address,
                file_bytes: from.part.bytes,
                memory_bytes: from.memory_bytes,
                access: from.access,
            };
        }
        kernel[HEADER_OFFSET..HEADER_OFFSET + size_of::<BootHeader>()].copy_from_slice(header.as_bytes());
        kernel[IMAGE_SIZE].copy_from_slice(&(base + bytes).to_le_bytes());
        Ok(())
    }

    fn irqfwd_config(&self) -> IrqfwdConfig {
        let cpus = |guest: &Guest| bounded(guest.cpus.iter().copied().filter(|_| !guest.devices.is_empty()));
        let mut sources: Vec<SourcePlan> = Vec::new();
        for (guest, owned) in self.owned() {
            for (line, seen) in owned.device.lines.iter().zip(&owned.lines) {
                match sources.iter_mut().find(|source| source.line == *line) {
                    // A line that devices share is handed on straight where all of them say so.
                    Some(source) => source.direct &= owned.direct,
                    None => sources.push(SourcePlan {
                        guest: guest as u8, line: *line, guest_line: *seen as u8, edge: owned.device.edge, direct: owned.direct,
                    }),
                }
            }
        }
        IrqfwdConfig { guests: bounded(self.guests.iter().map(cpus)), sources: bounded(sources), messages: self.message_plan() }
    }

    /// The programs of the monitors, by the monitors' names.
    fn place_monitors(&self, programs: &Programs, payload: &mut Payload) -> Result<BTreeMap<&str, Placed>, ComposeError> {
        let place = |monitor: &'_ Monitor, payload: &mut Payload| match &monitor.program {
            monitor::Program::Own(program) => place_as(payload, "server", &monitor.name, program, SERVER_PIECES),
            monitor::Program::Shipped(Shipped::Standard) => place(payload, "monitor", &programs.monitor, SERVER_PIECES),
            monitor::Program::Shipped(Shipped::Tracer) => place(payload, "tracer", &programs.tracer, SERVER_PIECES),
            monitor::Program::Shipped(Shipped::Guard) => place(payload, "guard", &programs.guard, SERVER_PIECES),
        };
        self.monitors.iter().map(|monitor| Ok((monitor.name.as_str(), place(monitor, payload)?))).collect()
    }

    fn monitor_config(&self, monitor: &Monitor) -> MonitorConfig<'_> {
        let guest = |(index, session): &(usize, u8)| {
            let guest = &self.guests[*index];
            WatchedPlan {
                name: &guest.name,
                session: *session,
                view: guest.watched_view(),
                vcpus: guest.cpus.len() as u8,
                first_page: Guest::MEMORY_BASE / PAGE,
                pages: guest.memory_bytes / PAGE,
                gic: guest.gic,
                reports: guest.monitors.get(usize::from(*session)).map_or(0, |entry| entry.reports),
            }
        };
        let place = |name: &str| monitor.guests.iter().position(|(index, _)| self.guests[*index].name == name);
        let rule = |rule: &RuleEntry| Some(rule.plan(place(&rule.guest.value)? as u8));
        let event = |rule: &EventEntry| Some(rule.plan(place(&rule.guest.value)? as u8));
        MonitorConfig {
            guests: bounded(monitor.guests.iter().map(guest)),
            rules: bounded(monitor.rules.iter().filter_map(rule)),
            events: bounded(monitor.events.iter().filter_map(event)),
            hands_over: true,
            threads: self.monitor_cpus(monitor).len() as u8,
        }
    }

    fn check_room(&self, image_bytes: u64) -> Result<(), ComposeError> {
        // Each has a page of zeroes besides its memory and its page tables.
        let of = |guest: &Guest| guest.memory_bytes + (u64::from(guest.table_pages()) + 1) * PAGE;
        let guests: u64 = self.guests.iter().map(of).sum();
        // Two files and two programs of each monitor; irqfwd has one program at a time.
        let pages = |swap: &SwapPlan| u64::from(swap.pages);
        let monitors = self.monitors.iter().filter_map(|monitor| monitor.swap.as_ref()).map(|swap| 4 * pages(swap));
        let swaps = monitors.chain(self.forward.as_ref().map(|swap| 3 * pages(swap))).sum::<u64>() * PAGE;
        let room = self.board.memory().saturating_sub(guests).saturating_sub(swaps).saturating_sub(self.smmu_bytes());
        let at = self.board.image_at;
        let range = self.board.ram.iter().find(|ram| (ram.base..ram.base + ram.bytes).contains(&at));
        let room = room.min(range.map_or(0, |ram| ram.base + ram.bytes - at));
        if image_bytes > room { Err(ComposeError::TooLarge(image_bytes, room)) } else { Ok(()) }
    }
}

/// The kernel's bytes with its zero-initialised memory, in whole pages.
fn kernel_pages(file: &[u8]) -> Result<Vec<u8>, ComposeError> {
    let header = file.get(HEADER_OFFSET..).and_then(|rest| BootHeader::read_from_prefix(rest).ok());
    let (Some((header, _)), Some(b"ARM\x64")) = (header, file.get(IMAGE_MAGIC)) else {
        return Err(ComposeError::KernelNotAnImage);
    };
    if header.magic != 0 {
        return Err(ComposeError::KernelHasHeader(header.magic));
    }
    if header.version != boot::VERSION {
        return Err(ComposeError::KernelVersion(header.version));
    }
    let size = file[IMAGE_SIZE].iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    // A kernel of more than 64 MiB is a damaged header, not a kernel.
    if size < file.len() as u64 || size > 64 << 20 {
        return Err(ComposeError::KernelSize(size, file.len() as u64));
    }
    let mut pages = file.to_vec();
    pages.resize(size.next_multiple_of(PAGE) as usize, 0);
    Ok(pages)
}

fn place(payload: &mut Payload, name: &'static str, file: &[u8], most: usize) -> Result<Placed, ComposeError> {
    place_as(payload, name, name, file, most)
}

/// The same under another name in the image's index.
fn place_as(
    payload: &mut Payload, name: &'static str, shown: &str, file: &[u8], most: usize,
) -> Result<Placed, ComposeError> {
    let program = Program::parse(name, file, most)?;
    let segments = program.pieces.iter().enumerate().map(|(index, piece)| Segment {
        part: payload.add(format!("program.{shown}.{index}"), &piece.bytes),
        address: piece.address,
        memory_bytes: piece.memory_bytes,
        access: piece.access.0,
    });
    Ok(Placed { segments: segments.collect(), entry: program.entry })
}

fn p2m_config(guest: &Guest) -> P2mConfig<'_> {
    P2mConfig {
        guest: &guest.name,
        first_page: Guest::MEMORY_BASE / PAGE,
        pages: guest.memory_bytes / PAGE,
        populate: guest.populate,
        vcpus: guest.cpus.len() as u8,
        gicv_page: (guest.gic == 2).then_some(GICC_PAGE),
        watchers: guest.monitors.len() as u8,
        views: guest.views_count(),
        view: bounded(guest.views.planned.iter().map(|view| view.value.clone())),
        devices: bounded(guest.devices.iter().flat_map(|owned| &owned.stretches).map(|stretch| DevicePages {
            page: stretch.address / PAGE,
            pages: stretch.pages(),
        })),
    }
}

fn loads(guest: &Guest, payload: &mut Payload) -> Vec<Load> {
    let name = &guest.name;
    let pieces = guest.placement.kernel.pieces.iter().filter(|piece| !piece.file.is_empty());
    let mut loads: Vec<Load> = pieces
        .enumerate()
        .map(|(index, piece)| Load {
            part: payload.add(format!("guest.{name}.kernel.{index}"), &guest.kernel[piece.file.clone()]),
            address: piece.address,
        })
        .collect();
    if let (Some(bytes), Some(place)) = (&guest.initrd, &guest.placement.initrd) {
        loads.push(Load { part: payload.add(format!("guest.{name}.initrd"), bytes), address: place.start });
    }
    let tree = payload.add(format!("guest.{name}.device-tree"), &guest.placement.tree);
    loads.push(Load { part: tree, address: guest.placement.tree_at });
    loads
}

fn vcpu_config(guest: &Guest, loads: Vec<Load>) -> VcpuConfig<'_> {
    VcpuConfig {
        watchers: guest.monitors.len() as u8,
        guest: &guest.name,
        vcpus: guest.cpus.len() as u8,
        memory_base: Guest::MEMORY_BASE,
        memory_bytes: guest.memory_bytes,
        loads: bounded(loads),
        entry: guest.placement.kernel.entry,
        x0: guest.placement.tree_at,
        gic: guest.gic,
        aarch32: false,
        bus: None,
    }
}
