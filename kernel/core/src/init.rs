// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first domain: root, from the image's header, with a capability to everything that is left.

use crate::cap::{Cap, CapWord};
use crate::domain::Domain;
use crate::frame::{MapName, Run, Use};
use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, Page, ThreadContext};
use crate::pool::{Empty, Id};
use crate::schedule::{self, Budget};
use crate::shared::{Control, DOMAINS, Shared};
use crate::space::Space;
use crate::table::TableRange;
use crate::thread::{Entry, Thread, ThreadState};
use core::sync::atomic::Ordering;
use trellis_idl::boot::{BootHeader, MAX_CPUS};
use trellis_idl::kernel::{Access, Kind, PAGE, Refusal, Rights};
use trellis_idl::layout::{self, root_slot};

/// Index of root's domain: the first that is made.
pub const ROOT_DOMAIN: u16 = 0;
/// Root's capability slots.
const SLOTS: u32 = 1024;
/// Root's rank: above what it calls, below console.
const RANK: u8 = 4;
/// Root's priority.
const PRIORITY: u8 = 240;
/// Pages for root's page tables.
const TABLE_PAGES: u64 = 64;

/// Free memory, handed out from its low end while root is made.
struct Supply {
    next: Page,
    end: Page,
}

impl Supply {
    fn take(&mut self, pages: u64) -> Result<Page, Refusal> {
        let first = self.next;
        if first + pages > self.end {
            return Err(Refusal::Quota);
        }
        self.next += pages;
        Ok(first)
    }
}

/// Free memory: of each range of the header the part behind the image, whose first page this is; first page and pages.
pub fn free_memory(header: &BootHeader, image: Page) -> [(Page, u64); 4] {
    let image_end = image + header.image_bytes / PAGE;
    header.ram.map(|range| {
        let (base, end) = (range.base.div_ceil(PAGE), (range.base + range.bytes) / PAGE);
        let first = if image_end > base && image < end { image_end } else { base };
        (first, end.saturating_sub(first))
    })
}

/// Makes root. `image` is the image's first page, `free` the ranges of free memory (first page, pages), of which the
/// first is used for root itself; they have the order of the header's `ram`.
pub fn root<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, header: &BootHeader, image: Page, free: &[(Page, u64)],
) -> Result<(), Refusal> {
    let (first, pages) = *free.first().ok_or(Refusal::BadArgument)?;
    let mut supply = Supply { next: first, end: first + pages };
    let mut control = shared.control.lock();
    let tag = control.take_tag().ok_or(Refusal::Quota)?;
    let tables = supply.take(TABLE_PAGES)?;
    let mut space = Space::new(machine, tag, tables, TABLE_PAGES)?;
    map_program(machine, &mut space, &mut supply, header, image)?;

    let stack_pages = layout::STACK_BYTES / PAGE;
    let stack = supply.take(stack_pages)?;
    machine.zero(stack, stack_pages);
    let read_write = Access::READ.with(Access::WRITE);
    let stack_end = layout::STACKS + layout::STACK_STRIDE;
    let stale = space.map(machine, (stack_end - layout::STACK_BYTES) / PAGE, stack, stack_pages, read_write)?;
    machine.invalidate(stale);
    let buffer = supply.take(1)?;
    machine.zero(buffer, 1);
    let stale = space.map(machine, layout::BUFFERS / PAGE, buffer, 1, read_write)?;
    machine.invalidate(stale);
    let payload = image + header.payload.base / PAGE;
    let payload_pages = header.payload.bytes.div_ceil(PAGE);
    let stale = space.map(machine, layout::PAYLOAD / PAGE, payload, payload_pages, Access::READ)?;
    machine.invalidate(stale);

    let table = control.slots.take(SLOTS).ok_or(Refusal::Quota)?;
    let domain = control.domains.insert(Empty::EMPTY).ok_or(Refusal::Quota)?;
    *shared.domains[domain.index() % DOMAINS].lock() = Domain { space, table, rank: RANK, tables: 0, cpus: 1 << local.cpu, mark: 0 };
    let thread = make_thread(local, shared, domain.index() as u16, table, &space, buffer)?;
    let argument = header.plan.base | header.plan.bytes << 32;
    local.threads.at_mut(thread.index() as u16).context.start(header.root_entry, stack_end, argument);
    local.threads.at_mut(thread.index() as u16).context.set_return([argument, 0, 0]);

    let put = |selector, kind, rights, name| {
        shared.table.put(table, selector, Cap { word: CapWord::new(kind, rights, 0), name })
    };
    put(root_slot::DOMAIN, Kind::Domain, Rights::ALL, domain.0)?;
    put(root_slot::THREAD, Kind::Thread, Rights::ALL, thread.0)?;
    put(root_slot::SYSTEM, Kind::System, Rights::ALL, 1)?;
    let mut run = Run { first: payload, pages: payload_pages, constant: true, ..Run::EMPTY };
    run.note(MapName::Domain(domain.index() as u16))?;
    put(root_slot::PAYLOAD, Kind::Frames, Rights::ALL, add(&mut control, run)?)?;
    give_memory(&mut control, header, free, &supply, put)
}

/// What only boot needed becomes root's: one more run of memory, behind those of the header's `ram`.
pub fn give_boot_pages(shared: &Shared, first: Page, pages: u64) -> Result<(), Refusal> {
    let mut control = shared.control.lock();
    let table = shared.domains[ROOT_DOMAIN as usize].lock().table;
    let name = add(&mut control, Run { first, pages, ..Run::EMPTY })?;
    let cap = Cap { word: CapWord::new(Kind::Frames, Rights::ALL, 0), name };
    shared.table.put(table, root_slot::MEMORY + BootHeader::EMPTY.ram.len() as u64, cap)
}

/// Runs of what is left, and of devices.
fn give_memory(
    control: &mut Control, header: &BootHeader, free: &[(Page, u64)], supply: &Supply,
    put: impl Fn(u64, Kind, Rights, u64) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    for (i, (first, pages)) in free.iter().enumerate().filter(|(_, (_, pages))| *pages != 0) {
        let (first, end) = if i == 0 { (supply.next, supply.end) } else { (*first, first + pages) };
        let name = add(control, Run { first, pages: end - first, ..Run::EMPTY })?;
        put(root_slot::MEMORY + i as u64, Kind::Frames, Rights::ALL, name)?;
    }
    for (i, range) in header.devices.iter().enumerate().filter(|(_, range)| range.bytes != 0) {
        let run = Run { first: range.base / PAGE, pages: range.bytes.div_ceil(PAGE), device: true, ..Run::EMPTY };
        put(root_slot::DEVICES + i as u64, Kind::Frames, Rights::ALL, add(control, run)?)?;
    }
    Ok(())
}

fn add(control: &mut Control, run: Run) -> Result<u64, Refusal> {
    debug_assert!(run.use_ == Use::Memory);
    control.runs.pool.insert(run).map(|id| id.0).ok_or(Refusal::Quota)
}

/// Root's pieces: constant ones from the image in place, writable ones copied.
fn map_program<M: Machine>(
    machine: &mut M, space: &mut Space, supply: &mut Supply, header: &BootHeader, image: Page,
) -> Result<(), Refusal> {
    for segment in header.root.iter().filter(|segment| segment.memory_bytes != 0) {
        let pages = segment.memory_bytes.div_ceil(PAGE);
        let in_image = image + segment.offset / PAGE;
        let access = Access(segment.access & 7);
        let in_place = !access.covers(Access::WRITE) && segment.file_bytes.div_ceil(PAGE) == pages;
        let first = if in_place {
            in_image
        } else {
            let first = supply.take(pages)?;
            machine.zero(first, pages);
            machine.copy(first * PAGE, in_image * PAGE, segment.file_bytes, false);
            first
        };
        if access.covers(Access::EXECUTE) {
            machine.copy(first * PAGE, first * PAGE, pages * PAGE, true);
        }
        let stale = space.map(machine, segment.address / PAGE, first, pages, access)?;
        machine.invalidate(stale);
    }
    Ok(())
}

fn make_thread<M: Machine>(
    local: &mut Local<M>, shared: &Shared, domain: u16, table: TableRange, space: &Space, buffer: Page,
) -> Result<Id<Thread<M>>, Refusal> {
    let mut thread = Thread::<M>::EMPTY;
    thread.domain = domain;
    thread.table = table;
    thread.rank = RANK;
    thread.buffer = buffer;
    thread.state = ThreadState::Ready;
    thread.entry = Entry::Parked;
    thread.context.set_map(space.tag, space.root);
    let id = local.threads.insert(thread).ok_or(Refusal::Quota)?;
    let index = id.index() as u16;
    local.threads.at_mut(index).budget = index;
    local.budgets[index as usize] = Budget::new(PRIORITY, 0, 0);
    shared.publish(local.cpu, index, id.0);
    shared.cpus[local.cpu as usize % MAX_CPUS].buffers[id.index() % THREADS].store(buffer, Ordering::Release);
    schedule::ready(local, index, Running::Thread(index));
    Ok(id)
}
