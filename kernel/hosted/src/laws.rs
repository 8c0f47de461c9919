// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must hold after whatever happened. [`quick`] looks at queues, clients, budgets and TLBs; [`full`] at every leaf
//! of every map as well.

use crate::context::is_guest_state;
use crate::hosted::{Cpu, Hosted};
use crate::machine::HostedMachine;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use trellis_core::float::Owner;
use trellis_core::forward::SOURCES;
use trellis_core::frame::{MapName, Run, Use};
use trellis_core::local::{BUDGETS, Local, Running, THREADS, VCPUS};
use trellis_core::machine::{Entry, Leaf, Page, VcpuContext};
use trellis_core::portal::Client;
use trellis_core::guest::Guest;
use trellis_core::shared::{DOMAINS, GUEST_VCPUS, GUESTS};
use trellis_core::space::OTHER;
use trellis_core::thread::{Thread, ThreadState};
use trellis_core::vcpu::{Pause, Vcpu, VcpuState};
use trellis_idl::kernel::VcpuRegister;
use trellis_core::view::{Views, in_views};

/// A law that was broken, as a sentence.
pub type Broken = String;

macro_rules! law {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err(format!($($sentence)*));
        }
    };
}

/// The laws that need no walk through maps.
pub fn quick(hosted: &Hosted) -> Result<(), Broken> {
    for cpu in &hosted.cpus {
        running(cpu)?;
        queues(&cpu.local)?;
        clients(&cpu.local)?;
        budgets(&cpu.local)?;
        floats(cpu)?;
    }
    alive(hosted)?;
    homes(hosted)?;
    sources(hosted)?;
    owed(hosted)?;
    let stale = hosted.board.borrow().stale_translations();
    law!(stale.is_empty(), "a TLB holds what no table says (cpu, tag, page): {stale:x?}");
    let strays = hosted.board.borrow().strays.clone();
    law!(strays.is_empty(), "a CPU used what its TLB had from another map (cpu, tag, page): {strays:x?}");
    Ok(())
}

/// All laws.
pub fn full(hosted: &Hosted) -> Result<(), Broken> {
    quick(hosted)?;
    runs(hosted)?;
    maps(hosted)
}

type LocalState = Local<HostedMachine>;

fn threads(local: &LocalState) -> impl Iterator<Item = (u16, u64, &Thread<HostedMachine>)> {
    let all = (0..THREADS as u16).map(|index| (index, local.threads.name_at(index).0, local.threads.at(index)));
    all.filter(|(_, name, _)| *name != 0)
}

fn vcpus(local: &LocalState) -> impl Iterator<Item = (u16, u64, &Vcpu<HostedMachine>)> {
    let all = (0..VCPUS as u16).map(|index| (index, local.vcpus.name_at(index).0, local.vcpus.at(index)));
    all.filter(|(_, name, _)| *name != 0)
}

fn can_run(local: &LocalState, what: Running) -> bool {
    match what {
        Running::Idle => false,
        Running::Thread(i) => {
            local.threads.name_at(i).0 != 0 && local.threads.at(i).state == ThreadState::Ready
        }
        Running::Vcpu(i) => local.vcpus.name_at(i).0 != 0 && local.vcpus.at(i).state == VcpuState::Running,
    }
}

/// Whoever may use the floating-point registers is their owner, and both sides say so.
fn floats(cpu: &Cpu) -> Result<(), Broken> {
    let (local, registers) = (&cpu.local, &cpu.local.float);
    for (index, name, v) in vcpus(local) {
        let holds = registers.hold(local.cpu, Owner::Vcpu(name), &v.float);
        law!(holds == v.context.float_open, "vCPU {index} owns its registers ({holds}) and they trap, or the other way");
        law!(holds == v.float.is_away(), "vCPU {index} has its registers nowhere or twice");
    }
    for (index, name, t) in threads(local) {
        let holds = registers.hold(local.cpu, Owner::Thread(name), &t.float);
        law!(holds == t.float.is_away(), "thread {index} has its registers nowhere or twice");
        let opened = cpu.machine.float.opened == Some(index);
        law!(!opened || holds, "thread {index} uses registers that are not its own");
    }
    Ok(())
}

/// Every thread's and vCPU's map is that of a living domain or guest.
fn alive(hosted: &Hosted) -> Result<(), Broken> {
    for cpu in &hosted.cpus {
        for (index, _, t) in threads(&cpu.local) {
            let space = hosted.shared.domains[t.domain as usize % DOMAINS].lock().space;
            let same = (space.root, space.tag) == (t.context.root, t.context.tag);
            law!(same, "thread {index} runs in a map that is gone");
        }
        for (index, _, v) in vcpus(&cpu.local) {
            let guest = *hosted.shared.guests[v.guest as usize % GUESTS].lock();
            let view = v.context.view;
            let noted = guest.views.find(&cpu.machine, view).map(|noted| noted.root);
            let root = if view == 0 { Some(guest.space.root) } else { noted };
            let same = (root, guest.space.tag) == (Some(v.context.root), v.context.tag);
            law!(same, "vCPU {index} runs in a map that is gone");
            let state = v.context.get(VcpuRegister::Pstate as u64).unwrap_or_default();
            law!(is_guest_state(state), "vCPU {index} is in the state {state:#x}, which no guest may be in");
            if v.state == VcpuState::Vacant {
                // The one that it is a place for says where that is.
                continue;
            }
            let mail = &hosted.shared.vcpus[v.guest as usize % GUESTS][v.number as usize % GUEST_VCPUS];
            let said = mail.view.load(Ordering::Relaxed);
            let uses = in_views(v.view(), v.view(), v.step_view());
            law!(said == uses, "vCPU {index} is in view {view} and says {said:x} instead of {uses:x}");
            let back = v.view() == 0 || guest.views.find(&cpu.machine, v.view()).is_some();
            law!(back, "vCPU {index} steps, and the view {} is gone that it goes back to", v.view());
            let steps = v.step.is_active();
            law!(steps == v.context.step.is_some(), "vCPU {index}: the core and the machine disagree about its step");
            let stands = matches!(v.state, VcpuState::Stopped | VcpuState::Vacant);
            law!(!steps || !stands, "vCPU {index} is {:?} in the middle of a step", v.state);
        }
    }
    Ok(())
}

/// Who ends knows on which CPUs it has something, and a mailbox names who lives.
fn homes(hosted: &Hosted) -> Result<(), Broken> {
    let (mut domains, mut guests) = (BTreeMap::new(), BTreeMap::new());
    for cpu in &hosted.cpus {
        let bit = 1u64 << cpu.local.cpu;
        threads(&cpu.local).for_each(|(_, _, t)| *domains.entry(t.domain as usize).or_insert(0) |= bit);
        for (index, name, v) in vcpus(&cpu.local) {
            *guests.entry(v.guest as usize).or_insert(0) |= bit;
            let mail = &hosted.shared.vcpus[v.guest as usize % GUESTS][v.number as usize % GUEST_VCPUS];
            let waits = v.state == VcpuState::Vacant && !hosted.board.borrow().passage.lock().leads_to(name);
            let known = if waits { &mail.place } else { &mail.name };
            law!(known.load(Ordering::Relaxed) == name, "vCPU {index} gets no mail");
        }
    }
    for index in 0..DOMAINS {
        let (known, found) = (hosted.shared.domains[index].lock().cpus, domains.get(&index).copied().unwrap_or(0));
        law!(known == found, "domain {index} has threads on CPUs {found:#b} and knows of {known:#b}");
    }
    for index in 0..GUESTS {
        let (known, found) = (hosted.shared.guests[index].lock().cpus, guests.get(&index).copied().unwrap_or(0));
        law!(known == found, "guest {index} has vCPUs on CPUs {found:#b} and knows of {known:#b}");
    }
    Ok(())
}

/// A session knows which vCPUs are owed an answer, and nobody serves them.
fn owed(hosted: &Hosted) -> Result<(), Broken> {
    let mut found = BTreeMap::new();
    for cpu in &hosted.cpus {
        for (index, name, v) in vcpus(&cpu.local).filter(|(_, _, v)| v.state == VcpuState::Owed) {
            *found.entry((v.guest as usize % GUESTS, usize::from(v.watch.session))).or_insert(0) |= 1u64 << v.number;
            let served = threads(&cpu.local).any(|(_, _, t)| t.client.plain() == Client::Vcpu(name, v.turn));
            law!(!served, "vCPU {index} is owed an answer and somebody serves it");
        }
    }
    for (guest, sessions) in hosted.shared.sessions.iter().enumerate() {
        for (number, session) in sessions.iter().enumerate() {
            let (says, is) = (session.owed(), found.get(&(guest, number)).copied().unwrap_or(0));
            law!(says == is, "session {number} of guest {guest} owes answers to {is:#b} and says {says:#b}");
        }
    }
    Ok(())
}

/// A source that is linked is in one queue, once; one that is not is in none.
fn sources(hosted: &Hosted) -> Result<(), Broken> {
    let forwarding = &hosted.shared.forwarding;
    let mut seen = BTreeSet::new();
    for (cpu, queue) in hosted.cpus.iter().zip(&forwarding.queues) {
        for source in cpu.local.backlog.waiting(queue, &forwarding.sources) {
            law!(forwarding.sources.is_linked(source), "source {source} is in a queue and does not know");
            law!(seen.insert(source), "source {source} is in two queues, or twice in one");
        }
    }
    for source in 0..SOURCES as u16 {
        let linked = forwarding.sources.is_linked(source);
        law!(linked == seen.contains(&source), "source {source} is linked and in no queue");
    }
    Ok(())
}

/// What runs is alive and may run, and pays.
fn running(cpu: &Cpu) -> Result<(), Broken> {
    let local = &cpu.local;
    if local.running != Running::Idle {
        law!(can_run(local, local.running), "what runs may not: {:?}", local.running);
        law!((local.budget as usize) < BUDGETS, "{:?} runs and nobody pays", local.running);
    }
    Ok(())
}

/// Every queue ends, holds each waiting client once, and every client that queues is in one.
fn queues(local: &LocalState) -> Result<(), Broken> {
    let mut seen = BTreeSet::new();
    for (index, _, server) in threads(local) {
        let mut client = server.queue;
        let mut last = Client::None;
        let mut length = 0;
        while client != Client::None {
            length += 1;
            law!(length <= THREADS + VCPUS, "the queue of thread {index} has no end");
            last = client;
            let (key, next, waits) = match client {
                Client::Thread(name, turn) => {
                    let found = local.threads.get(LocalState::thread_id(name));
                    let Some(t) = found else { return Err(format!("a dead thread is in the queue of {index}")) };
                    ((false, name), t.next, t.state == ThreadState::Queued && t.turn == turn)
                }
                Client::Vcpu(name, turn) => {
                    let found = local.vcpus.get(LocalState::vcpu_id(name));
                    let Some(v) = found else { return Err(format!("a dead vCPU is in the queue of {index}")) };
                    ((true, name), v.next, v.state == VcpuState::Queued && v.turn == turn)
                }
                Client::None => break,
            };
            law!(waits, "{client:?} is in the queue of thread {index} and does not wait there");
            law!(seen.insert(key), "{client:?} is in two queues");
            client = next;
        }
        law!(server.queue_last == last, "the end of the queue of thread {index} is not its last");
        if server.state == ThreadState::Open {
            law!(server.client == Client::None, "thread {index} is open and serves {:?}", server.client);
            law!(server.queue == Client::None, "thread {index} is open and somebody queues");
        }
    }
    for (index, name, t) in threads(local).filter(|(_, _, t)| t.state == ThreadState::Queued) {
        law!(seen.contains(&(false, name)), "thread {index} queues nowhere (turn {})", t.turn);
    }
    for (index, name, _) in vcpus(local).filter(|(_, _, v)| v.state == VcpuState::Queued) {
        law!(seen.contains(&(true, name)), "vCPU {index} queues nowhere");
    }
    Ok(())
}

/// Whoever waits for an answer is served by exactly one living thread.
fn clients(local: &LocalState) -> Result<(), Broken> {
    let mut served = BTreeMap::new();
    for (index, _, server) in threads(local) {
        let key = match server.client.plain() {
            Client::None => continue,
            Client::Thread(name, turn) => (false, name, turn),
            Client::Vcpu(name, turn) => (true, name, turn),
        };
        let other = served.insert(key, index);
        law!(other.is_none(), "threads {index} and {other:?} both serve {:?}", server.client);
    }
    for (index, name, t) in threads(local).filter(|(_, _, t)| t.state == ThreadState::Awaiting) {
        law!(served.contains_key(&(false, name, t.turn)), "nobody will answer thread {index}");
    }
    for (index, name, v) in vcpus(local).filter(|(_, _, v)| v.state == VcpuState::Awaiting) {
        law!(served.contains_key(&(true, name, v.turn)), "nobody will answer vCPU {index}");
    }
    Ok(())
}

/// What can run is on one budget, and a budget that counts as ready has something on it that can.
fn budgets(local: &LocalState) -> Result<(), Broken> {
    let mut on = BTreeMap::new();
    for id in 0..BUDGETS {
        let current = id == local.budget as usize && local.running != Running::Idle;
        let head = if current { local.running } else { local.budgets[id].head };
        let ready = local.ready >> id & 1 == 1;
        if ready && !current {
            law!(can_run(local, head), "budget {id} is ready and {head:?} on it cannot run");
        }
        if ready || current || local.refilling >> id & 1 == 1 {
            let key = match head {
                Running::Thread(i) => (false, i),
                Running::Vcpu(i) => (true, i),
                Running::Idle => continue,
            };
            if can_run(local, head) {
                let other = on.insert(key, id);
                law!(other.is_none(), "{head:?} is on budgets {id} and {other:?}");
            }
        }
    }
    for (index, _, t) in threads(local).filter(|(_, _, t)| t.state == ThreadState::Ready) {
        law!(on.contains_key(&(false, index)), "thread {index} can run and no budget has it (its: {})", t.budget);
    }
    for (index, _, v) in vcpus(local) {
        law!((v.pause == Pause::No) == (v.pausers == 0), "vCPU {index} is paused by {:#b} and is {:?}", v.pausers, v.pause);
    }
    for (index, _, v) in vcpus(local).filter(|(_, _, v)| matches!(v.state, VcpuState::Running | VcpuState::Waiting)) {
        law!(v.pause == Pause::No, "vCPU {index} runs in spite of a pause");
    }
    for (index, _, _) in vcpus(local).filter(|(_, _, v)| v.state == VcpuState::Running) {
        law!(on.contains_key(&(true, index)), "vCPU {index} can run and no budget has it");
    }
    Ok(())
}

/// Parts lie in what they were split off, beside one another; nothing else overlaps.
fn runs(hosted: &Hosted) -> Result<(), Broken> {
    let control = hosted.shared.control.lock();
    let all: Vec<(u64, &Run)> =
        control.runs.pool.names().filter_map(|id| Some((id.0, control.runs.pool.get(id)?))).collect();
    for (i, (name, run)) in all.iter().enumerate() {
        let end = run.first + run.pages;
        if let Some((_, parent)) = all.iter().find(|(other, _)| *other == run.parent) {
            let inside = run.first >= parent.first && end <= parent.first + parent.pages;
            law!(inside, "run {name:#x} is not inside what it was split off");
        }
        for (other, that) in &all[i + 1..] {
            let apart = that.first >= end || that.first + that.pages <= run.first;
            law!(apart || run.parent != that.parent, "runs {name:#x} and {other:#x} share a page");
        }
    }
    Ok(())
}

/// Every leaf shows memory that may be mapped there; every table lies in its owner's tables.
fn maps(hosted: &Hosted) -> Result<(), Broken> {
    let (domains, guests): (Vec<_>, Vec<_>) = {
        let control = hosted.shared.control.lock();
        (control.domains.names().map(|id| id.index()).collect(), control.guests.names().map(|id| id.index()).collect())
    };
    let mut roots = Vec::new();
    for index in domains {
        let domain = *hosted.shared.domains[index % DOMAINS].lock();
        roots.push((MapName::Domain(index as u16), domain.space.root, domain.tables));
    }
    for index in guests {
        let guest = *hosted.shared.guests[index % GUESTS].lock();
        roots.push((MapName::Guest(index as u16), guest.space.root, guest.tables));
        if guest.space.root != 0 {
            views(hosted, index, &guest)?;
        }
    }
    // One that is about to end has no map any more.
    for (map, root, tables) in roots.into_iter().filter(|(_, root, _)| *root != 0) {
        let mut found = Found::default();
        walk(hosted, root, 1, 0, &mut found);
        owned(hosted, map, tables, &found)?;
    }
    Ok(())
}

/// No view shows a frame that the host map does not show: under the same page, or under another if the leaf says so.
/// Every table of the guest is used once, and what is not used is on the chain of free ones.
fn views(hosted: &Hosted, index: usize, guest: &Guest) -> Result<(), Broken> {
    let memory = &hosted.cpus[0].machine;
    let mut host = Found::default();
    walk(hosted, guest.space.root, 1, 0, &mut host);
    let frames: Vec<(Page, u64)> = host.leaves.iter().map(|(leaf, pages, _)| (leaf.page, *pages)).collect();
    let mut used = host.tables.len() as u64 + Views::list_pages(guest.views.count.into()) + guest.float.pages();
    let mut seen: BTreeSet<Page> = host.tables.iter().copied().collect();
    for view in 1..guest.views.count {
        let Some(noted) = guest.views.find(memory, view) else { continue };
        let mut found = Found::default();
        walk(hosted, noted.root, 1, 0, &mut found);
        for table in &found.tables {
            law!(seen.insert(*table), "guest {index} has the table at {table:#x} twice");
        }
        used += found.tables.len() as u64;
        for (leaf, pages, at) in &found.leaves {
            if leaf.access.covers(OTHER) {
                let known = frames.iter().any(|(first, pages)| *first <= leaf.page && leaf.page < first + pages);
                law!(known, "view {view} shows at {at:#x} the frame {:#x}, which the host map does not show", leaf.page);
                continue;
            }
            for page in [*at, at + pages - 1] {
                let shown = guest.space.find(memory, page).map(|leaf| leaf.page);
                let same = shown == Some(leaf.page + (page - at));
                law!(same, "view {view} shows at {page:#x} the frame {:#x}, the host map {shown:x?}", leaf.page);
            }
        }
        owned(hosted, MapName::Guest(index as u16), guest.tables, &found)?;
    }
    let control = hosted.shared.control.lock();
    if let Ok(run) = control.runs.get(guest.tables) {
        let left = guest.space.tables_left();
        law!(used + left == run.pages, "guest {index} uses {used} tables of {}, and {left} are left", run.pages);
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    tables: Vec<Page>,
    /// With their pages, and the first page they show.
    leaves: Vec<(Leaf, u64, u64)>,
}

fn walk(hosted: &Hosted, table: Page, level: u32, page: u64, found: &mut Found) {
    found.tables.push(table);
    for index in 0..512 {
        let word = hosted.board.borrow().word(table * 4096 + index * 8);
        match crate::entry::unpack(word) {
            Entry::Absent => {}
            Entry::Table(next) => walk(hosted, next, level + 1, page + index * 512u64.pow(3 - level), found),
            Entry::Leaf(leaf) => {
                let pages = 512u64.pow(3 - level);
                found.leaves.push((leaf, pages, page + index * pages));
            }
        }
    }
}

fn owned(hosted: &Hosted, map: MapName, tables: u64, found: &Found) -> Result<(), Broken> {
    let control = hosted.shared.control.lock();
    let all: Vec<(u64, &Run)> =
        control.runs.pool.names().filter_map(|id| Some((id.0, control.runs.pool.get(id)?))).collect();
    for (leaf, pages, _) in &found.leaves {
        for page in [leaf.page, leaf.page + pages - 1] {
            let holding = all.iter().filter(|(_, run)| run.first <= page && page < run.first + run.pages);
            // The run that holds it and has no part that does is its owner; root's own program is in none.
            let is_whole = |name: &u64| !holding.clone().any(|(_, part)| part.parent == *name);
            let Some((_, run)) = holding.clone().find(|(name, _)| is_whole(name)) else {
                law!(map == MapName::Domain(0), "{map:?} shows page {page:#x} of no run");
                continue;
            };
            law!(run.use_ == Use::Memory, "{map:?} shows page {page:#x} of the kernel's tables");
            // What is constant is never taken back, so it need not know.
            let known = run.constant || run.mapped().any(|known| known == map);
            law!(known, "{map:?} shows page {page:#x}, and its run does not know");
            let writes = leaf.access.covers(trellis_idl::kernel::Access::WRITE);
            law!(!(run.constant && writes), "{map:?} may write page {page:#x}, which is constant");
            let device = leaf.access.covers(trellis_idl::kernel::Access::DEVICE);
            law!(device == run.device, "{map:?} has page {page:#x} as the wrong kind of memory");
        }
    }
    if let Ok(run) = control.runs.get(tables) {
        let mut seen = BTreeSet::new();
        for table in &found.tables {
            let inside = run.first <= *table && *table < run.first + run.pages;
            law!(inside, "{map:?} has a table at {table:#x}, outside its quota");
            law!(seen.insert(table), "{map:?} has the table at {table:#x} twice");
        }
    }
    Ok(())
}
