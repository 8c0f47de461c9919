// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a manifest makes a system: one guest at a time, with the files it names, on the board it names.
//!
//! `fit` then asks whether all of them together fit the board.

use crate::board::Board;
use crate::device;
use crate::device_tree::{MEMORY_BASE, Platform};
use crate::guest::Guest;
use crate::kernel_file::{Flaw, KernelFile};
use crate::compose::SERVER_PIECES;
use crate::manifest::{GuestEntry, Kind, Origin};
use crate::monitor::{self, ForwardEntry, Image, Monitor, SHIPPED, ServerEntry};
use crate::program::{ComposeError, Program};
use crate::place::{BLOCK, Placement, place};
use crate::problem::{Code, Problem, nearest};
use crate::quantity::show_size;
use crate::source::{Download, OUR_GUESTS, Source};
use crate::swap::{self, SwapEntry};
use crate::table::{Placed, Problems, Span};
use crate::view;
use std::path::{Path, PathBuf};
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::{Budget, MAX_VCPUS, OnReset, Populate, Sve, SwapPlan};

/// Longest command line: Linux takes no more.
const MAX_COMMAND_LINE: usize = 2047;
/// Priority of a guest whose manifest names none.
pub const DEFAULT_PRIORITY: u8 = 100;

/// What guests are checked against.
pub struct Checker<'a> {
    /// The board, if it is known.
    pub board: Option<&'a Board>,
    /// Where the manifest's `board` stands.
    pub board_span: Option<Span>,
    /// Paths are relative to this.
    pub folder: &'a Path,
    /// Where files come from.
    pub source: &'a dyn Source,
}

impl Checker<'_> {
    /// One guest; nothing comes back where something essential is wrong.
    pub fn guest(&self, entry: &GuestEntry, line: u32, problems: &mut Problems) -> Option<Guest> {
        let kind = self.kind(entry, problems);
        self.load_offset(entry, kind, problems);
        let cpus = self.cpus(entry, problems);
        let gic = self.gic(entry, problems);
        let sve = self.sve(entry, problems);
        let memory = self.memory(entry, problems);
        let command_line = command_line(entry, problems);
        let kernel = entry.kernel.as_ref().and_then(|origin| self.file("kernel", origin, problems));
        let initrd = match &entry.initrd {
            Some(origin) => Some(self.file("initrd", origin, problems)?),
            None => None,
        };
        let (kind, cpus, kernel, kernel_origin) = (kind?, cpus?, kernel?, entry.kernel.as_ref()?);
        let devices = self.board.map_or(Vec::new(), |board| device::owned(entry, board));
        let platform = Platform {
            memory_bytes: memory?,
            vcpus: cpus.len() as u8,
            gic: gic?,
            command_line: &command_line,
            initrd: None,
            devices: &devices,
        };
        let placement = place_files(entry, kind, &kernel, initrd.as_deref(), platform)
            .map_err(|flaw| problems.push(show(flaw, entry, kernel_origin)))
            .ok()?;
        view::check_memory(&entry.views, Guest::MEMORY_BASE / PAGE, memory? / PAGE, problems);
        Some(Guest {
            name: entry.name.value.clone(),
            kind,
            kernel_name: kernel_origin.value.name().into(),
            memory_bytes: memory?,
            cpus,
            priority: entry.priority.as_ref().map_or(DEFAULT_PRIORITY, |priority| priority.value as u8),
            budget: entry.budget.as_ref().map(|budget| Budget {
                time_us: budget.time.value as u32,
                period_us: budget.period.value as u32,
            }),
            populate: entry.populate.as_ref().map_or(Populate::Eager, |populate| populate.value),
            gic: gic?,
            on_reset: entry.on_reset.as_ref().map_or(OnReset::Reboot, |policy| policy.value),
            essential: entry.essential.as_ref().is_none_or(|essential| essential.value),
            manifest_line: line,
            sve: sve?,
            views: entry.views.clone(),
            devices,
            monitors: entry.monitors.clone(),
            placement,
            kernel,
            initrd,
        })
    }

    /// One monitor, its guests by their places among the guests' names.
    pub fn monitor(&self, entry: &ServerEntry, guests: &[GuestEntry], problems: &mut Problems) -> Option<Monitor> {
        let program = match &entry.image.as_ref()?.value {
            Image::Shipped(shipped) => monitor::Program::Shipped(*shipped),
            Image::File(path) => monitor::Program::Own(self.program(path, entry.image.as_ref()?.span.clone(), problems)?),
        };
        let watched = guests.iter().enumerate();
        let watched = watched.filter_map(|(index, guest)| Some((index, guest.watcher(&entry.name.value)? as u8)));
        let (name, rules) = (entry.name.value.clone(), entry.rules.clone());
        let swap = self.swap(&entry.swap, problems);
        Some(Monitor { name, program, guests: watched.collect(), rules, events: entry.events.clone(), swap })
    }

    /// What is kept for a program in irqfwd's place, where there is one.
    pub fn forward(&self, entry: Option<&ForwardEntry>, guests: &[Guest], problems: &mut Problems) -> Option<SwapPlan> {
        let is_there = guests.iter().any(|guest| !guest.devices.is_empty());
        if let (Some(entry), false) = (entry, is_there) {
            problems.push(
                Problem::new(Code::IdleServer, "there is no irqfwd here: no guest owns a device")
                    .at(entry.name.span.clone(), "what is said of it means nothing")
                    .hint("give a guest a device with [[guest.NAME.device]], or leave this table out"),
            );
        }
        let swap = entry.map_or_else(SwapEntry::default, |entry| entry.swap.clone());
        if is_there { self.swap(&swap, problems) } else { None }
    }

    fn swap(&self, entry: &SwapEntry, problems: &mut Problems) -> Option<SwapPlan> {
        entry.plan(self.signer(entry, problems))
    }

    /// The public key of who signs a server's programs.
    fn signer(&self, entry: &SwapEntry, problems: &mut Problems) -> Option<[u8; 32]> {
        let named = entry.signed_by.as_ref()?;
        let read = self.source.read(&self.folder.join(&named.value)).map_err(|error| error.to_string());
        let key = read.and_then(|bytes| swap::key(&bytes).ok_or_else(|| "not 64 hexadecimal digits".to_string()));
        if let Err(why) = &key {
            problems.push(
                Problem::new(Code::SwapKey, format!("`{}` holds no public key: {why}", named.value))
                    .at(named.span.clone(), "this file, relative to the manifest")
                    .hint("`./trellis sign --new KEY` makes a pair of keys; name KEY.pub here"),
            );
        }
        key.ok()
    }

    /// The ELF file of a server.
    fn program(&self, path: &str, span: Span, problems: &mut Problems) -> Option<Vec<u8>> {
        let hint = match nearest(path, SHIPPED.iter().map(|(name, _)| *name)) {
            Some(meant) => format!("did you mean \"{meant}\"? Otherwise the path is relative to this manifest"),
            None => format!("a path is relative to this manifest; those that come with Trellis are \"{}\"", SHIPPED.map(|(name, _)| name).join("\", \"")),
        };
        let refused = |why: String| Problem::new(Code::BadProgram, format!("`{path}` cannot be a server: {why}")).at(span, "this program");
        let bytes = match self.source.read(&self.folder.join(path)) {
            Ok(bytes) => bytes,
            Err(error) => {
                problems.push(refused(error.to_string()).hint(hint));
                return None;
            }
        };
        match Program::parse("server", &bytes, SERVER_PIECES) {
            Ok(_) => Some(bytes),
            Err(why) => {
                let why = if let ComposeError::Program(_, why) = why { why } else { why.to_string() };
                problems.push(refused(why).hint("an ELF file for AArch64, linked as docs/watch.md says"));
                None
            }
        }
    }

    fn kind(&self, entry: &GuestEntry, problems: &mut Problems) -> Option<Kind> {
        let kernel = entry.kernel.as_ref()?;
        match (&entry.kind, kernel.value.kind()) {
            (Some(said), Some(known)) if said.value != known => {
                problems.push(
                    Problem::new(Code::KindConflict, format!("`{}` is not of kind \"{}\"", kernel.value.name(), said.value.name()))
                        .at(said.span.clone(), "this kind")
                        .at(kernel.span.clone(), format!("this kernel is of kind \"{}\"", known.name()))
                        .hint("leave `kind` out: it is known for this kernel"),
                );
                None
            }
            (Some(said), _) => Some(said.value),
            (None, Some(known)) => Some(known),
            (None, None) if matches!(kernel.value, Origin::UnknownDownload(_)) => None,
            (None, None) => {
                problems.push(
                    Problem::new(Code::MissingKey, format!("guest `{}` needs the key `kind`", entry.name.value))
                        .at(entry.name.span.clone(), "`kind` is missing here")
                        .at(kernel.span.clone(), "a file of your own")
                        .hint("kind = \"image\" for Linux and its like, \"elf\" or \"raw\" for others"),
                );
                None
            }
        }
    }

    fn load_offset(&self, entry: &GuestEntry, kind: Option<Kind>, problems: &mut Problems) {
        let Some(offset) = &entry.load_offset else { return };
        if matches!(kind, Some(Kind::Image | Kind::Elf)) {
            let mut problem = Problem::new(Code::KeyDoesNotApply, "`load-offset` is for raw kernels only")
                .at(offset.span.clone(), "means nothing here");
            if let Some(kernel) = entry.kind.as_ref().map(|kind| kind.span.clone()).or(entry.kernel.as_ref().map(|kernel| kernel.span.clone())) {
                problem = problem.at(kernel, "this kind of kernel says itself where it goes");
            }
            problems.push(problem.hint("leave it out"));
        }
        if !offset.value.is_multiple_of(4096) {
            problems.push(
                Problem::new(Code::OutOfRange, format!("`load-offset` of {} is not a whole number of pages", show_size(offset.value)))
                    .at(offset.span.clone(), "not a multiple of 4K")
                    .hint("the usual one is \"2M\""),
            );
        }
    }

    fn cpus(&self, entry: &GuestEntry, problems: &mut Problems) -> Option<Vec<u8>> {
        let Some(cpus) = &entry.cpus else { return Some(vec![0]) };
        let before = problems.len();
        if cpus.value.is_empty() {
            problems.push(
                Problem::new(Code::NoVcpus, format!("guest `{}` has no vCPU", entry.name.value))
                    .at(cpus.span.clone(), "an empty list")
                    .hint("name the CPU of each vCPU: cpus = [0]"),
            );
        }
        if cpus.value.len() > MAX_VCPUS {
            problems.push(
                Problem::new(Code::TooManyVcpus, format!("{} vCPUs are too many", cpus.value.len()))
                    .at(cpus.span.clone(), "one vCPU for each number")
                    .hint(format!("a guest may have {MAX_VCPUS}")),
            );
        }
        if let Some(board) = self.board {
            let absent = cpus.value.iter().filter(|cpu| cpu.value >= board.cpus.len() as u64);
            problems.extend(absent.map(|cpu| self.no_such_cpu(board, cpu)));
        }
        (problems.len() == before).then(|| cpus.value.iter().map(|cpu| cpu.value as u8).collect())
    }

    fn no_such_cpu(&self, board: &Board, cpu: &Placed<u64>) -> Problem {
        let problem = Problem::new(Code::NoSuchCpu, format!("board `{}` has no CPU {}", board.name, cpu.value))
            .at(cpu.span.clone(), "no such CPU");
        self.label_board(problem, format!("has CPUs 0 to {}", board.cpus.len() - 1))
            .hint(format!("use one of 0 to {}; several vCPUs may share one", board.cpus.len() - 1))
    }

    fn label_board(&self, problem: Problem, label: String) -> Problem {
        match &self.board_span {
            Some(span) => problem.at(span.clone(), label),
            None => problem,
        }
    }

    fn gic(&self, entry: &GuestEntry, problems: &mut Problems) -> Option<u8> {
        let board = self.board?;
        let Some(gic) = &entry.gic else { return Some(board.default_gic()) };
        if board.guest_gic.contains(&(gic.value as u8)) {
            return Some(gic.value as u8);
        }
        let why = match gic.value {
            2 => "a GICv2 guest needs hardware with a GICV frame",
            _ => "a GICv3 guest needs hardware with ICC registers",
        };
        let problem = Problem::new(Code::GicNotOnBoard, format!("board `{}` cannot show a guest a GICv{}", board.name, gic.value))
            .at(gic.span.clone(), "this version");
        let problem = self.label_board(problem, format!("can show GICv{}", board.default_gic()));
        problems.push(problem.hint(format!("{why}; leave `gic` out to get the board's kind")));
        None
    }

    /// Whether the machine has the length is seen when it runs; a board that has none is known here.
    fn sve(&self, entry: &GuestEntry, problems: &mut Problems) -> Option<Sve> {
        let Some(sve) = &entry.sve else { return Some(Sve::Off) };
        match self.board {
            Some(board) if board.sve == Some(false) && sve.value != Sve::Off => {
                let problem = Problem::new(Code::SveNotOnBoard, format!("board `{}` has no scalable vectors", board.name))
                    .at(sve.span.clone(), "asked for here");
                let problem = self.label_board(problem, "its CPUs have no SVE".into());
                problems.push(problem.hint("sve = \"off\", or another board"));
                None
            }
            _ => Some(sve.value),
        }
    }

    fn memory(&self, entry: &GuestEntry, problems: &mut Problems) -> Option<u64> {
        let memory = entry.memory.as_ref()?;
        if memory.value == 0 || !memory.value.is_multiple_of(BLOCK) {
            let up = memory.value.max(1).checked_next_multiple_of(BLOCK).map_or("256M".into(), show_size);
            problems.push(
                Problem::new(Code::MemoryAlignment, format!("{} is not a multiple of 2M", show_size(memory.value)))
                    .at(memory.span.clone(), "not whole blocks of 2M")
                    .hint(format!("use \"{up}\"")),
            );
            return None;
        }
        // More than the whole board is said once, by `fit`.
        self.board.is_none_or(|board| memory.value <= board.memory()).then_some(memory.value)
    }

    fn file(&self, key: &str, origin: &Placed<Origin>, problems: &mut Problems) -> Option<Vec<u8>> {
        let path = self.path(origin).map_err(|problem| problems.push(problem)).ok()?;
        match self.source.read(&path) {
            Ok(bytes) if !bytes.is_empty() => Some(bytes),
            Ok(_) => {
                problems.push(
                    Problem::new(Code::EmptyFile, format!("`{}` is empty", origin.value.name()))
                        .at(origin.span.clone(), "a file without content")
                        .hint(format!("a {key} cannot be empty: was it built or copied to its end?")),
                );
                None
            }
            Err(error) => {
                problems.push(missing(key, origin, &error));
                None
            }
        }
    }

    fn path(&self, origin: &Placed<Origin>) -> Result<PathBuf, Problem> {
        let not_available = |why: String| {
            Problem::new(Code::NotAvailable, format!("`{}` could not be had: {why}", origin.value.name()))
                .at(origin.span.clone(), "named here")
                .hint("guests of ours are built, and downloads fetched, by `trellis run`")
        };
        match &origin.value {
            Origin::File(path) => Ok(self.folder.join(path)),
            Origin::Ours(name) => self.source.guest(name).map_err(not_available),
            Origin::Download(download) => self.source.fetch(*download).map_err(not_available),
            Origin::UnknownDownload(name) => {
                let all = Download::ALL.map(Download::name);
                let hint = match nearest(name, all) {
                    Some(meant) => format!("did you mean \"{meant}\"?"),
                    None => format!("there are: {}", all.join(", ")),
                };
                Err(Problem::new(Code::UnknownDownload, format!("there is no download `{name}`"))
                    .at(origin.span.clone(), "no such download")
                    .hint(hint))
            }
        }
    }
}

fn missing(key: &str, origin: &Placed<Origin>, error: &std::io::Error) -> Problem {
    let name = origin.value.name();
    let why = match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_string(),
        std::io::ErrorKind::PermissionDenied => "it may not be read".to_string(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_string(),
        _ => error.to_string(),
    };
    let known = OUR_GUESTS.into_iter().chain(Download::ALL.map(Download::name));
    let hint = match nearest(name, known) {
        Some(meant) => format!("did you mean \"{meant}\"? Otherwise the path is relative to this manifest"),
        None => format!("a path is relative to this manifest; guests of ours are: {}", OUR_GUESTS.join(", ")),
    };
    Problem::new(Code::FileMissing, format!("cannot read the {key} `{name}`: {why}")).at(origin.span.clone(), why).hint(hint)
}

fn command_line(entry: &GuestEntry, problems: &mut Problems) -> String {
    let Some(line) = &entry.command_line else { return String::new() };
    let why = match line.value.len() {
        _ if line.value.contains('\0') => "it contains a zero character",
        length if length > MAX_COMMAND_LINE => "it is too long",
        _ => return line.value.clone(),
    };
    problems.push(
        Problem::new(Code::BadCommandLine, format!("this command line cannot be handed over: {why}"))
            .at(line.span.clone(), why)
            .hint(format!("at most {MAX_COMMAND_LINE} bytes, none of them zero")),
    );
    String::new()
}

fn place_files(entry: &GuestEntry, kind: Kind, kernel: &[u8], initrd: Option<&[u8]>, platform: Platform<'_>) -> Result<Placement, Flaw> {
    let offset = entry.load_offset.as_ref().map(|offset| offset.value);
    let kernel = KernelFile::parse(kind, kernel, MEMORY_BASE, offset)?;
    place(kind, kernel, initrd.map(|bytes| bytes.len() as u64), platform)
}

/// A flaw of a file, shown at the keys it is about.
fn show(flaw: Flaw, entry: &GuestEntry, kernel: &Placed<Origin>) -> Problem {
    let problem = Problem::new(flaw.code, flaw.message).hint(flaw.hint);
    match (flaw.code, &entry.memory, &entry.load_offset) {
        (Code::MemoryTooSmall | Code::OutsideMemory, Some(memory), _) => {
            problem.at(kernel.span.clone(), "this kernel").at(memory.span.clone(), "this much memory")
        }
        (Code::Overlap, _, Some(offset)) => problem.at(offset.span.clone(), "puts it there").at(kernel.span.clone(), "this kernel"),
        _ => problem.at(kernel.span.clone(), "this file"),
    }
}
