// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether all guests together fit the board: memory, CPU time, address spaces, and what the plan can hold.

use crate::board::Board;
use crate::device;
use crate::hear;
use crate::manifest::{GuestEntry, Manifest};
use crate::place::BLOCK;
use crate::problem::{Code, Problem};
use crate::quantity::show_size;
use crate::table::{Problems, Span};
use crate::watch;
use std::collections::BTreeMap;
use trellis_idl::plan::{MAX_MONITORS, MAX_SERVERS};

/// Most guests: the console has a channel for root, for itself, and for each guest and its two servers.
pub const MAX_GUESTS: usize = (MAX_SERVERS - 2) / 3;
/// What the kernel, root and the console need beside the guests.
const SYSTEM_BYTES: u64 = 16 << 20;
/// What the two servers of a guest need beside its page tables.
const SERVERS_BYTES: u64 = 2 << 20;
/// What a monitor needs.
const MONITOR_BYTES: u64 = 2 << 20;
/// VMIDs that no guest or server has: 0, root's and the console's.
const SYSTEM_VMIDS: u64 = 3;

/// Checks everything that concerns more than one guest.
pub fn check(manifest: &Manifest, board: Option<&Board>, problems: &mut Problems) {
    count(manifest, problems);
    essential(manifest, problems);
    servers(manifest, problems);
    overbooked(&manifest.guests, problems);
    watch::check(manifest, problems);
    hear::check(manifest, problems);
    if let (Some(board), Some(name)) = (board, &manifest.board) {
        let servers = SYSTEM_BYTES + MONITOR_BYTES * manifest.servers.len() as u64;
        memory(&manifest.guests, board, servers, &name.span, problems);
        vmids(manifest, board, &name.span, problems);
        device::check(&manifest.guests, board, problems);
    }
}

fn count(manifest: &Manifest, problems: &mut Problems) {
    if manifest.guests.is_empty() && problems.is_empty() {
        let span = manifest.name.as_ref().map_or(0..0, |name| name.span.clone());
        problems.push(
            Problem::new(Code::NoGuests, "this system has no guest")
                .at(span, "this system")
                .hint("add one: [guest.hello] with kernel = \"hello\" and memory = \"16M\""),
        );
    }
    if let Some(guest) = manifest.guests.get(MAX_GUESTS) {
        problems.push(
            Problem::new(Code::TooManyGuests, format!("{} guests are too many", manifest.guests.len()))
                .at(guest.name.span.clone(), "the first one too many")
                .hint(format!("an image holds {MAX_GUESTS}")),
        );
    }
}

/// Servers that are no guest's come on top: each has a channel of the console.
fn servers(manifest: &Manifest, problems: &mut Problems) {
    let room = (MAX_SERVERS - 1).saturating_sub(3 * manifest.guests.len().min(MAX_GUESTS) + has_devices(manifest));
    let room = room.min(MAX_MONITORS);
    if let Some(server) = manifest.servers.get(room) {
        problems.push(
            Problem::new(Code::TooManyServers, format!("{} servers are too many", manifest.servers.len()))
                .at(server.name.span.clone(), "the first one too many")
                .hint(format!("beside these guests an image holds {room}; one monitor can watch several guests")),
        );
    }
}

/// irqfwd and, where the board has an SMMU, smmu may be needed: as many.
fn has_devices(manifest: &Manifest) -> usize {
    2 * usize::from(manifest.guests.iter().any(|guest| !guest.devices.is_empty()))
}

fn essential(manifest: &Manifest, problems: &mut Problems) {
    let flags: Option<Vec<Span>> = manifest
        .guests
        .iter()
        .map(|guest| guest.essential.as_ref().filter(|flag| !flag.value).map(|flag| flag.span.clone()))
        .collect();
    let Some(flags) = flags.filter(|flags| !flags.is_empty()) else { return };
    let problem = Problem::new(Code::NoEssentialGuest, "no guest is essential, so the system would end at once");
    let problem = flags.into_iter().fold(problem, |problem, span| problem.at(span, "not essential"));
    problems.push(problem.hint("leave `essential` out for the guest that the system is there for"));
}

fn overbooked(guests: &[GuestEntry], problems: &mut Problems) {
    let mut booked: BTreeMap<u64, Vec<(u64, &GuestEntry)>> = BTreeMap::new();
    for guest in guests {
        let Some(budget) = &guest.budget else { continue };
        let share = budget.time.value * 1_000_000 / budget.period.value.max(1);
        for cpu in guest.cpu_numbers() {
            booked.entry(cpu).or_default().push((share, guest));
        }
    }
    for (cpu, shares) in booked {
        let total: u64 = shares.iter().map(|(share, _)| share).sum();
        if total <= 1_000_000 {
            continue;
        }
        let mut problem =
            Problem::new(Code::CpuOverbooked, format!("the budgets on CPU {cpu} come to {} % of it", total / 10_000));
        for (share, guest) in shares {
            let Some(budget) = &guest.budget else { continue };
            let label = format!("{}: {} % of CPU {cpu}", guest.name.value, share / 10_000);
            problem = problem.at(budget.time.span.clone(), label);
        }
        problems.push(problem.hint("shorten one of them, or move a vCPU to another CPU"));
    }
}

/// Each guest's memory is one run of whole blocks; runs are taken as root takes them, first fit in order.
fn memory(guests: &[GuestEntry], board: &Board, servers: u64, board_span: &Span, problems: &mut Problems) {
    let sizes = guests.iter().filter_map(|guest| Some((guest, guest.memory.as_ref()?)));
    let total = sizes.clone().fold(0u64, |total, (_, memory)| total.saturating_add(memory.value));
    let mut free: Vec<u64> = board.ram.iter().map(|ram| ram.bytes).collect();
    if let Some(first) = board.ram.iter().position(|ram| (ram.base..ram.base + ram.bytes).contains(&board.image_at)) {
        free[first] = free[first].saturating_sub(servers);
    }
    for (guest, memory) in sizes {
        let tables = (memory.value / BLOCK).saturating_mul(4096).saturating_add(BLOCK);
        let needed = memory.value.saturating_add(tables).saturating_add(SERVERS_BYTES);
        if let Some(room) = free.iter_mut().find(|room| **room >= needed) {
            *room -= needed;
            continue;
        }
        let available = show_size(board.memory());
        problems.push(
            Problem::new(Code::MemoryDoesNotFit, format!("the memory of guest `{}` does not fit the board", guest.name.value))
                .at(memory.span.clone(), format!("{}; all guests together: {}", show_size(memory.value), show_size(total)))
                .at(board_span.clone(), format!("has {available}, of which Trellis keeps {} and more per guest", show_size(servers)))
                .hint("page tables and servers come on top; each guest's memory lies in one piece"),
        );
        return;
    }
}

fn vmids(manifest: &Manifest, board: &Board, board_span: &Span, problems: &mut Problems) {
    let others = (has_devices(manifest) + manifest.servers.len()) as u64;
    let needed = manifest.guests.len() as u64 * 3 + SYSTEM_VMIDS + others;
    let have = 1u64 << board.vmid_bits;
    if needed > have {
        problems.push(
            Problem::new(Code::TooManyVmids, format!("this system needs {needed} address spaces and the board tells {have} apart"))
                .at(board_span.clone(), format!("has VMIDs of {} bits", board.vmid_bits))
                .hint(format!("each guest needs 3; at most {} fit", have.saturating_sub(SYSTEM_VMIDS) / 3)),
        );
    }
}
