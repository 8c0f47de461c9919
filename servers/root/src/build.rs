// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a server of its plan: domain, program, configuration, stacks, buffers, threads. Nothing runs yet.

use crate::program::{Piece, Program};
use crate::supply::Supply;
use crate::{Board, StartError, Step, patiently};
use heapless::Vec;
use serde::Deserialize;
use trellis_idl::kernel::{Access, PAGE, PASSIVE, Refusal};
use trellis_idl::layout::{BUFFERS, CONFIG, SCRATCH, SCRATCH_BYTES, STACK_BYTES, STACK_STRIDE, STACKS, root_slot};
use trellis_idl::plan::{Plan, Role, Segment, ServerPlan};
use trellis_runtime::handle::ThreadSetup;
use trellis_runtime::memory::decode_config;
use trellis_runtime::{Domain, Frames, System, Thread};

/// Most threads of a server: one for each vCPU, control, attending.
pub const MAX_THREADS: usize = 10;
/// Root's own domain.
pub const OWN: Domain = Domain::at(root_slot::DOMAIN);
/// May be read and written.
pub const READ_WRITE: Access = Access::READ.with(Access::WRITE);

const STACK_PAGES: u64 = STACK_BYTES / PAGE;
/// Where an upload stands in the scratch window while something is copied from or to it: behind what is filled.
pub const STORED: u64 = SCRATCH_BYTES / 2;

/// How a thread of a server gets its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Time {
    /// Priority, or [`PASSIVE`].
    pub priority: u64,
    /// See [`trellis_runtime::handle::budget`].
    pub budget: u64,
}

/// Only what callers lend.
pub const LENT: Time = Time { priority: PASSIVE, budget: 0 };

/// How threads of a program that was uploaded get their time while they do not serve: before guests, behind root, and half
/// of it at most. The kernel looks at servers in round periods: this one is in step with none of them, so that one that hangs is
/// seen to run.
pub const UNKNOWN: Time = Time { priority: 205, budget: trellis_runtime::handle::budget(4_000, 7_919) };

/// A server that exists.
#[derive(Clone, Debug)]
pub struct Built {
    /// Its domain.
    pub domain: Domain,
    /// Its threads.
    pub threads: Vec<Thread, MAX_THREADS>,
    /// Pages of its program, tables, stacks and buffers.
    pub pages: u64,
    /// Where its threads begin.
    pub entry: u64,
}

/// A program that was uploaded: a file in memory of root's.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The memory.
    pub run: Frames,
    /// The file's first page there, and its pages.
    pub pages: (u64, u64),
    /// What is in it.
    pub program: Program,
}

/// Makes a server. `times` says how each thread gets its time; `more_tables` pages of page tables are added to the
/// plan's.
pub fn server(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &ServerPlan<'_>, times: &[Time],
    more_tables: u64,
) -> Result<Built, StartError> {
    server_of(system, board, supply, plan, times, more_tables, None)
}

/// The same, with the program that was uploaded instead of the plan's, if there is one.
pub fn server_of(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &ServerPlan<'_>, times: &[Time],
    more_tables: u64, stored: Option<&Stored>,
) -> Result<Built, StartError> {
    let tables = supply.take(system, u64::from(plan.table_pages) + more_tables)?;
    let slot = supply.slot();
    let make = || Domain::create(system, tables, plan.slots.into(), plan.role.rank(), slot);
    let domain = patiently(system, make).step("make a domain")?;
    match stored {
        Some(stored) => stored.program.pieces.iter().try_for_each(|one| piece(system, board, supply, domain, stored, one))?,
        None => plan.segments.iter().try_for_each(|segment| program(system, board, supply, domain, segment))?,
    }
    if plan.config.bytes > 0 {
        let run = supply.part(system, plan.config)?;
        let pages = plan.config.bytes.div_ceil(PAGE);
        domain.map(system, CONFIG, run, 0, pages, Access::READ).step("map a configuration")?;
    }
    let threads = threads(system, supply, domain, plan, times)?;
    let program = match stored {
        Some(stored) => stored.program.pieces.iter().map(Piece::pages).sum(),
        None => program_pages(plan),
    };
    let entry = stored.map_or(plan.entry, |stored| stored.program.entry);
    let pages = u64::from(plan.table_pages) + more_tables + program + threads.len() as u64 * (STACK_PAGES + 1);
    Ok(Built { domain, threads, pages, entry })
}

/// Pages of the program that the plan has for a server.
pub fn program_pages(plan: &ServerPlan<'_>) -> u64 {
    plan.segments.iter().map(|segment| segment.memory_bytes.div_ceil(PAGE)).sum()
}

/// Pages of a server with the plan's program, or with the largest that may take its place.
pub fn most_pages(plan: &ServerPlan<'_>, threads: u64) -> u64 {
    let program = program_pages(plan).max(plan.swap.map_or(0, |swap| swap.pages.into()));
    let float = if plan.float { threads } else { 0 };
    u64::from(plan.table_pages) + program + threads * (STACK_PAGES + 1) + float
}

/// Maps a piece of an uploaded program, in frames of its own.
fn piece(
    system: &impl System, board: &impl Board, supply: &mut Supply, domain: Domain, stored: &Stored, piece: &Piece,
) -> Result<(), StartError> {
    let run = supply.take(system, piece.pages())?;
    let (first, pages) = stored.pages;
    OWN.map(system, SCRATCH, run, 0, piece.pages(), READ_WRITE).step("map the scratch window")?;
    let copied = OWN.map(system, SCRATCH + STORED, stored.run, first, pages, Access::READ).map(|()| {
        let copied = copy(board, piece);
        // It was mapped just now.
        let _ = OWN.unmap(system, SCRATCH + STORED, pages);
        copied
    });
    OWN.unmap(system, SCRATCH, piece.pages()).step("unmap the scratch window")?;
    if !copied.step("map an upload")? {
        return Err(StartError::Plan("an upload larger than the scratch window"));
    }
    domain.map(system, piece.address - piece.before(), run, 0, piece.pages(), piece.access).step("map a program")
}

/// Copies a piece's bytes from one half of the scratch window to the other.
fn copy(board: &impl Board, piece: &Piece) -> bool {
    let mut bytes = [0; 512];
    (0..piece.bytes).step_by(bytes.len()).all(|at| {
        let length = (piece.bytes - at).min(bytes.len() as u64) as usize;
        let Some(bytes) = bytes.get_mut(..length) else { return false };
        board.scratch_read(STORED + piece.offset + at, bytes) && board.scratch(piece.before() + at, bytes)
    })
}

/// Maps a piece of a program: constant ones from the payload, others into frames of their own.
fn program(
    system: &impl System, board: &impl Board, supply: &mut Supply, domain: Domain, segment: &Segment,
) -> Result<(), StartError> {
    let access = Access(segment.access & READ_WRITE.with(Access::EXECUTE).0);
    let pages = segment.memory_bytes.div_ceil(PAGE);
    if pages == 0 {
        return Ok(());
    }
    let in_place = !access.covers(Access::WRITE) && segment.part.bytes.div_ceil(PAGE) == pages;
    let run = if in_place {
        supply.part(system, segment.part)?
    } else {
        let run = supply.take(system, pages)?;
        let bytes = match segment.part.bytes {
            0 => &[],
            _ => board.payload(segment.part).ok_or(StartError::Plan("a segment outside the payload"))?,
        };
        fill(system, board, run, bytes)?;
        run
    };
    domain.map(system, segment.address, run, 0, pages, access).step("map a program")
}

/// What a server's configuration says, where root needs some of it.
pub fn config<T: Deserialize<'static>>(board: &impl Board, server: &ServerPlan<'_>) -> Result<T, StartError> {
    let bytes = board.payload(server.config).ok_or(StartError::Plan("a configuration outside the payload"))?;
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or(StartError::Plan("a configuration without length"))?;
    decode_config(u64::from_le_bytes(*length), rest).map_err(|_| StartError::Plan("a configuration nobody understands"))
}

/// The plan's first server of a role, and its index.
pub fn planned<'a>(plan: &'a Plan<'a>, role: Role) -> Option<(usize, &'a ServerPlan<'a>)> {
    plan.servers.iter().enumerate().find(|(_, server)| server.role == role)
}

/// Ends a server, whatever it does.
pub fn end(system: &impl System, built: &Built) -> Result<(), StartError> {
    match built.domain.destroy(system) {
        // It is gone already.
        Ok(_) | Err(Refusal::Gone | Refusal::NoCapability) => Ok(()),
        Err(refusal) => Err(StartError::Refused("destroy a domain", refusal)),
    }
}

/// Memory that hardware reads and writes by itself, which begins with its own machine address, a multiple of so many pages.
pub fn addressed(
    system: &impl System, board: &impl Board, supply: &mut Supply, pages: u64, align: u64,
) -> Result<Frames, StartError> {
    let run = supply.take_aligned(system, pages, align)?;
    let address = run.info(system).step("ask where memory is")?.first * PAGE;
    fill(system, board, run, &address.to_le_bytes())?;
    Ok(run)
}

/// Fills fresh frames, which are zeroes, through root's scratch window.
pub(crate) fn fill(system: &impl System, board: &impl Board, run: Frames, bytes: &[u8]) -> Result<(), StartError> {
    let piece_pages = STORED / PAGE;
    for (index, piece) in bytes.chunks(STORED as usize).enumerate() {
        let pages = (piece.len() as u64).div_ceil(PAGE);
        OWN.map(system, SCRATCH, run, index as u64 * piece_pages, pages, READ_WRITE).step("map the scratch window")?;
        let written = board.scratch(0, piece);
        OWN.unmap(system, SCRATCH, pages).step("unmap the scratch window")?;
        if !written {
            return Err(StartError::Plan("a segment larger than the scratch window"));
        }
    }
    Ok(())
}

/// Stacks, buffers and the threads that use them, with floating-point registers if the plan says so.
fn threads(
    system: &impl System, supply: &mut Supply, domain: Domain, plan: &ServerPlan<'_>, times: &[Time],
) -> Result<Vec<Thread, MAX_THREADS>, StartError> {
    let count = times.len() as u64;
    let run = supply.take(system, count * (STACK_PAGES + 1))?;
    domain.map(system, BUFFERS, run, 0, count, READ_WRITE).step("map buffers")?;
    let last = plan.cpus.last().copied().unwrap_or(0);
    let mut threads = Vec::new();
    for (index, time) in times.iter().enumerate() {
        let number = index as u64;
        let bottom = stack(number) - STACK_BYTES;
        let first = count + number * STACK_PAGES;
        domain.map(system, bottom, run, first, STACK_PAGES, READ_WRITE).step("map a stack")?;
        let setup = ThreadSetup {
            cpu: plan.cpus.get(index).copied().unwrap_or(last),
            priority: time.priority,
            buffer: BUFFERS + number * PAGE,
            budget: time.budget,
        };
        let slot = supply.slot();
        let thread = patiently(system, || Thread::create(system, domain, setup, slot)).step("make a thread")?;
        if plan.float {
            thread.float(system, supply.take(system, 1)?).step("give a thread floating-point registers")?;
        }
        threads.push(thread).map_err(|_| StartError::Plan("too many threads"))?;
    }
    Ok(threads)
}

/// Where the stack of a thread begins: its upper end.
const fn stack(thread: u64) -> u64 {
    STACKS + (thread + 1) * STACK_STRIDE
}

/// Lets all threads of a server run.
pub fn start(system: &impl System, built: &Built) -> Result<(), StartError> {
    for (index, thread) in (0..).zip(&built.threads) {
        thread.start(system, built.entry, stack(index), index).step("start a thread")?;
    }
    Ok(())
}

/// How the threads of a server get their time; a vcpu server, smmu and a monitor have an attending thread besides those in its plan.
pub fn times(role: Role, planned: usize, attending: Time) -> Vec<Time, MAX_THREADS> {
    let lent = core::iter::repeat_n(LENT, planned);
    match role {
        Role::Console => core::iter::repeat_n(attending, planned).take(MAX_THREADS).collect(),
        Role::P2m(_) => lent.take(MAX_THREADS).collect(),
        Role::Vcpu(_) | Role::Smmu | Role::Monitor => lent.chain([attending]).take(MAX_THREADS).collect(),
        Role::Irqfwd => {
            let posts = core::iter::repeat_n(attending, planned.saturating_sub(1));
            posts.chain([LENT]).take(MAX_THREADS).collect()
        }
    }
}
