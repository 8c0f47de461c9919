// SPDX-License-Identifier: MIT OR Apache-2.0
//! A checked system: a manifest that makes sense, its board, its guests with their files.
//!
//! This is what the host tool holds: it loads one, and composes, explains or runs it.

use crate::board::Board;
use crate::check::Checker;
use crate::device::Owned;
use crate::fit;
use crate::function;
use crate::guest::Guest;
use crate::manifest::{MAX_BYTES, Manifest};
use crate::monitor::{IRQFWD, Monitor, MonitorEntry, Program, Shipped};
use crate::problem::{Code, Problem, Report, Text, nearest};
use crate::ranges::Stretch;
use crate::smmu::SMMU;
use crate::source::Source;
use crate::table::{Placed, Problems};
use heapless::Vec as Bounded;
use miette::NamedSource;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use trellis_idl::boot::{BootHeader, Range};
use trellis_idl::control::Control;
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::watched;
use trellis_idl::plan::{Channel, GuestPlan, MAX_SERVERS, MAX_WATCHED, Part, Plan, Role, ServerPlan, SwapPlan, VERSION, WatcherPlan};

/// Capability slots of every server.
const SLOTS: u16 = 64;
/// Those of irqfwd: every vCPU and line may be there.
const IRQFWD_SLOTS: u16 = 256;
/// Pages of page tables of every server.
const TABLE_PAGES: u16 = 16;

/// A checked system.
#[derive(Clone, Debug)]
pub struct System {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) board: Board,
    pub(crate) board_text: String,
    pub(crate) guests: Vec<Guest>,
    pub(crate) servers: Vec<(String, Role)>,
    pub(crate) server_float: bool,
    pub(crate) monitors: Vec<Monitor>,
    pub(crate) control: Control,
    /// What is kept for a program in irqfwd's place.
    pub(crate) forward: Option<SwapPlan>,
}

impl System {
    /// Reads and checks a manifest and all it names.
    pub fn load(path: &Path, source: &dyn Source) -> Result<System, Report> {
        let shown = path.display().to_string();
        let bytes = source.read(path).map_err(|error| {
            let problem = Problem::new(Code::Unreadable, format!("cannot read `{shown}`: {error}"));
            Report::new(vec![problem.hint("name a manifest, such as images/hello.toml")])
        })?;
        let text = decode(&shown, bytes)?;
        System::from_text(path, text, source)
    }

    /// Checks a manifest's text as if it stood at `path`.
    pub fn from_text(path: &Path, text: String, source: &dyn Source) -> Result<System, Report> {
        let shown: Text = Arc::new(NamedSource::new(path.display().to_string(), text.clone()));
        let mut problems = Problems::new();
        let system = check(path, text, source, &mut problems);
        match system {
            Some(system) if problems.is_empty() => Ok(system),
            _ => Err(Report::new(problems.into_iter().map(|problem| problem.within(&shown)).collect())),
        }
    }

    /// The system's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The manifest's text.
    pub fn manifest(&self) -> &str {
        &self.text
    }

    /// The board, with how to emulate it.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The guests, in the plan's order: the index is the guest's channel on the serial port.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Names and roles of the servers, in the plan's order: the index is the server's channel on the serial port.
    pub fn servers(&self) -> &[(String, Role)] {
        &self.servers
    }

    /// CPUs that the system uses: every one up to the highest that a guest names.
    pub fn cpus(&self) -> usize {
        self.guests.iter().flat_map(|guest| &guest.cpus).max().map_or(1, |cpu| usize::from(*cpu) + 1)
    }

    /// Devices that guests own, each with its guest's index.
    pub fn owned(&self) -> impl Iterator<Item = (usize, &Owned)> {
        self.guests.iter().enumerate().flat_map(|(index, guest)| guest.devices.iter().map(move |owned| (index, owned)))
    }

    /// What guests are shown of their devices' registers, each with its guest's index: a run each, in this order.
    pub(crate) fn stretches(&self) -> impl Iterator<Item = (usize, &Stretch)> {
        self.owned().flat_map(|(guest, owned)| owned.stretches.iter().map(move |stretch| (guest, stretch)))
    }

    /// CPUs that owned devices interrupt, and root's, where irqfwd's control thread is.
    pub(crate) fn irqfwd_cpus(&self) -> Vec<u8> {
        let owners = self.guests.iter().filter(|guest| !guest.devices.is_empty());
        let cpus: BTreeSet<u8> = owners.flat_map(|guest| guest.cpus.iter().copied()).collect();
        cpus.into_iter().chain([0]).collect()
    }

    /// What the emulator is told of devices that guests own, and of the SMMU where they go through it.
    pub fn emulator_arguments(&self) -> Vec<String> {
        let smmu = self.board.smmu.iter().filter(|_| self.has_smmu()).flat_map(|smmu| smmu.emulator.iter().cloned());
        smmu.chain(self.owned().flat_map(|(_, owned)| owned.device.emulator.iter().cloned())).collect()
    }

    /// Puts owned devices into the header, behind the board's own.
    pub(crate) fn write_devices(&self, header: &mut BootHeader) {
        let free = header.devices.iter_mut().skip(self.board.fixed_devices().len());
        let owned = self.stretches().map(|(_, stretch)| Range { base: stretch.page() * PAGE, bytes: stretch.pages() * PAGE });
        let more = self.message_runs().into_iter().chain(self.smmu_run()).map(|(_, range)| range);
        for (to, range) in free.zip(owned.chain(more)) {
            *to = range;
        }
    }

    /// What root gets besides when a guest owns what writes messages, behind owned devices.
    pub(crate) fn message_runs(&self) -> Vec<(String, Range)> {
        function::runs(&self.board, self.owned().map(|(_, owned)| owned))
    }

    /// The monitors, in the plan's order.
    pub fn monitors(&self) -> &[Monitor] {
        &self.monitors
    }

    /// Whether a monitor that comes with Trellis is among them.
    pub fn names(&self, shipped: Shipped) -> bool {
        self.monitors.iter().any(|monitor| matches!(monitor.program, Program::Shipped(its) if its == shipped))
    }

    pub(crate) fn monitor_named(&self, name: &str) -> Option<&Monitor> {
        self.monitors.iter().find(|monitor| monitor.name == name)
    }

    /// CPUs of the vCPUs that a monitor watches, each once, and root's, where its control thread is.
    pub(crate) fn monitor_cpus(&self, monitor: &Monitor) -> Vec<u8> {
        let watched = monitor.guests.iter().filter_map(|(guest, _)| self.guests.get(*guest));
        let cpus: BTreeSet<u8> = watched.flat_map(|guest| guest.cpus.iter().copied()).collect();
        cpus.into_iter().chain([0]).collect()
    }

    /// Who watches a guest, in the order of its sessions.
    fn watchers(&self, guest: usize) -> Vec<WatcherPlan> {
        let first = self.servers.len() - self.monitors.len();
        let one = |entry: &MonitorEntry| {
            let index = self.monitors.iter().position(|monitor| monitor.name == entry.server.value)?;
            let place = self.monitors[index].place_of(guest)?;
            let deadline_us = entry.deadline as u32;
            Some(WatcherPlan { server: (first + index) as u8, place, deadline_us, without: entry.without, reads: entry.reads, writes: entry.writes, sets: entry.sets, pauses: entry.pauses })
        };
        self.guests[guest].monitors.iter().filter_map(one).collect()
    }

    /// The console's channels: one for each server's log, then one for each guest's serial port.
    pub fn channels(&self) -> Vec<Channel<'_>> {
        let logs = self.servers.iter().map(|(name, _)| Channel { name, is_guest: false });
        logs.chain(self.guests.iter().map(|guest| Channel { name: &guest.name, is_guest: true })).collect()
    }

    /// The plan, without what only composing decides: programs and places in the payload.
    pub fn plan(&self) -> Plan<'_> {
        let servers = self.servers.iter().map(|(name, role)| self.server_plan(name, *role));
        let first_run = self.board.fixed_devices().len() as u8;
        let guests = self.guests.iter().enumerate().map(|(index, guest)| GuestPlan {
            devices: bounded(self.stretches().zip(first_run..).filter(|((owner, _), _)| *owner == index).map(|(_, run)| run)),
            watchers: bounded(self.watchers(index)),
            ..guest_plan(index, guest)
        });
        Plan {
            version: VERSION,
            name: &self.name,
            servers: bounded(servers),
            guests: bounded(guests),
            manifest: Part::default(),
            uart_line: self.board.uart.line,
            trace: false,
            control: self.control,
        }
    }

    /// What is kept for a program in a server's place.
    pub(crate) fn swap_of(&self, name: &str, role: Role) -> Option<SwapPlan> {
        if role == Role::Irqfwd { self.forward } else { self.monitor_named(name)?.swap }
    }

    fn server_plan<'a>(&'a self, name: &'a str, role: Role) -> ServerPlan<'a> {
        let cpus = match role {
            Role::Console => bounded([0]),
            Role::P2m(guest) | Role::Vcpu(guest) => bounded(self.guests[usize::from(guest)].server_cpus()),
            Role::Irqfwd => bounded(self.irqfwd_cpus()),
            Role::Smmu => bounded([0]),
            Role::Monitor => bounded(self.monitor_named(name).map_or(Vec::new(), |monitor| self.monitor_cpus(monitor))),
        };
        ServerPlan {
            name,
            role,
            entry: 0,
            segments: Bounded::new(),
            cpus,
            table_pages: TABLE_PAGES,
            slots: match role {
                Role::Irqfwd => IRQFWD_SLOTS,
                Role::Monitor => watched::slots(MAX_WATCHED as u64) as u16,
                _ => SLOTS,
            },
            config: Part::default(),
            float: self.server_float,
            swap: self.swap_of(name, role),
        }
    }
}

/// The line of a text that its byte with this number is on.
pub(crate) fn line_of(text: &str, at: usize) -> u32 {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() as u32 + 1
}

/// As many as fit; `check` has refused more.
pub(crate) fn bounded<T, const N: usize>(items: impl IntoIterator<Item = T>) -> Bounded<T, N> {
    items.into_iter().take(N).collect()
}

fn guest_plan(index: usize, guest: &Guest) -> GuestPlan<'_> {
    GuestPlan {
        name: &guest.name,
        memory_base: Guest::MEMORY_BASE,
        memory_bytes: guest.memory_bytes,
        cpus: bounded(guest.cpus.iter().copied()),
        priority: guest.priority,
        budget: guest.budget,
        table_pages: guest.table_pages(),
        views: guest.views_count(),
        inside: guest.views.inside.0 as u8,
        essential: guest.essential,
        on_reset: guest.on_reset,
        p2m: 1 + 2 * index as u8,
        vcpu: 2 + 2 * index as u8,
        manifest_line: guest.manifest_line,
        sve: guest.sve,
        devices: Bounded::new(),
        watchers: Bounded::new(),
    }
}

const _: () = assert!(3 * fit::MAX_GUESTS + 2 < MAX_SERVERS);

fn decode(shown: &str, bytes: Vec<u8>) -> Result<String, Report> {
    if bytes.len() > MAX_BYTES {
        let problem = Problem::new(Code::TooLong, format!("`{shown}` has {} bytes, too many for a manifest", bytes.len()));
        return Err(Report::new(vec![problem.hint("is it an image? `trellis query` looks into those")]));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let shown_text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let text = Arc::new(NamedSource::new(shown, shown_text));
        let problem = Problem::new(Code::NotText, "this is not UTF-8 text").at(at..at + 1, "the first byte that is not");
        Report::new(vec![problem.hint("save it as UTF-8").within(&text)])
    })
}

fn check(path: &Path, text: String, source: &dyn Source, problems: &mut Problems) -> Option<System> {
    let manifest = Manifest::parse(&text, problems);
    let folder = path.parent().unwrap_or(Path::new(""));
    let board = manifest.board.as_ref().and_then(|name| board(name, folder, source, problems));
    fit::check(&manifest, board.as_ref().map(|(board, _)| board), problems);
    let checker = Checker {
        board: board.as_ref().map(|(board, _)| board),
        board_span: manifest.board.as_ref().map(|name| name.span.clone()),
        folder,
        source,
    };
    let guests: Vec<Guest> = manifest
        .guests
        .iter()
        .filter_map(|guest| checker.guest(guest, line_of(&text, guest.name.span.start), problems))
        .collect();
    let monitors: Vec<Monitor> = manifest.servers.iter().filter_map(|server| checker.monitor(server, &manifest.guests, problems)).collect();
    let forward = checker.forward(manifest.forward.as_ref(), &guests, problems);
    let (board, board_text) = board?;
    let servers = std::iter::once(("console".to_string(), Role::Console))
        .chain(guests.iter().enumerate().flat_map(|(index, guest)| {
            [(guest.p2m_name(), Role::P2m(index as u8)), (guest.vcpu_name(), Role::Vcpu(index as u8))]
        }))
        .chain(guests.iter().any(|guest| !guest.devices.is_empty()).then(|| (IRQFWD.to_string(), Role::Irqfwd)))
        .chain(guests.iter().any(|guest| guest.protected().next().is_some()).then(|| (SMMU.to_string(), Role::Smmu)))
        .chain(monitors.iter().map(|monitor| (monitor.name.clone(), Role::Monitor)))
        .collect();
    let (server_float, control) = (manifest.server_float, manifest.control);
    Some(System { name: manifest.name?.value, text, board, board_text, guests, servers, server_float, control, monitors, forward })
}

fn board(name: &Placed<String>, folder: &Path, source: &dyn Source, problems: &mut Problems) -> Option<(Board, String)> {
    let (shown, text) = match Board::built_in(&name.value) {
        Some(text) => (format!("boards/{}.toml", name.value), text.to_string()),
        None if name.value.ends_with(".toml") => match source.read(&folder.join(&name.value)) {
            Ok(bytes) => (name.value.clone(), String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => {
                problems.push(unknown_board(name, format!("cannot read the board file: {error}")));
                return None;
            }
        },
        None => {
            problems.push(unknown_board(name, format!("there is no board `{}`", name.value)));
            return None;
        }
    };
    let source: Text = Arc::new(NamedSource::new(shown, text.clone()));
    Board::parse(&source).map(|board| (board, text)).map_err(|problem| problems.push(problem)).ok()
}

fn unknown_board(name: &Placed<String>, message: String) -> Problem {
    let all = Board::names().collect::<Vec<_>>().join(", ");
    let problem = Problem::new(Code::UnknownBoard, message).at(name.span.clone(), "no such board");
    match nearest(&name.value, Board::names()) {
        Some(meant) => problem.hint(format!("did you mean \"{meant}\"? There are: {all}; or name a board file, NAME.toml")),
        None => problem.hint(format!("there are: {all}; or name a board file, NAME.toml")),
    }
}
