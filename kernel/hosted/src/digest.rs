// SPDX-License-Identifier: MIT OR Apache-2.0
//! A number that stands for everything a refused call may not change.
//!
//! Left out: registers that carry answers, clocks and orders of turns, and how often locks were taken.

use crate::hosted::{Cpu, Hosted};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use trellis_core::local::{BUDGETS, THREADS, VCPUS};
use trellis_core::shared::{DOMAINS, GUESTS};
use trellis_core::table::{SLOTS, TableRange};

fn add(hasher: &mut DefaultHasher, value: impl Debug) {
    format!("{value:?}").hash(hasher);
}

fn cpu(hasher: &mut DefaultHasher, cpu: &Cpu) {
    let local = &cpu.local;
    add(hasher, (local.running, local.budget, local.ready, local.timed, local.portals.free()));
    for index in 0..THREADS as u16 {
        let name = local.threads.name_at(index).0;
        if name != 0 {
            let t = local.threads.at(index);
            add(hasher, (name, t.client, t.table, t.rank, t.state, t.budget, t.turn, t.queue, t.queue_last, t.next));
            add(hasher, (t.domain, t.buffer, t.supervisor, t.fault, t.context.tag, t.context.root, t.float.area));
        }
    }
    for index in 0..VCPUS as u16 {
        let name = local.vcpus.name_at(index).0;
        if name != 0 {
            let v = local.vcpus.at(index);
            add(hasher, (name, v.state, (v.stop_wanted, v.pause, v.pausers), v.turn, &v.routes, &v.windows, v.window_count, v.guest, v.next));
            add(hasher, (v.number, v.lines, v.float.lanes, v.float.area));
            add(hasher, (v.views, v.notice, v.context.root, v.context.view));
            add(hasher, (v.view(), v.step.is_active(), v.context.step, v.context.traps.0));
        }
    }
    for index in 0..BUDGETS {
        let budget = &local.budgets[index];
        add(hasher, (budget.head, budget.priority()));
    }
    add(hasher, (local.server, local.backlog));
}

/// The digest of everything.
pub fn digest(hosted: &Hosted) -> u64 {
    let mut hasher = DefaultHasher::new();
    for this in &hosted.cpus {
        cpu(&mut hasher, this);
    }
    let shared = &hosted.shared;
    let all = TableRange { first: 0, count: SLOTS as u32 };
    for slot in 0..SLOTS as u64 {
        let cap = shared.table.read(all, slot);
        (cap.word.0, cap.name).hash(&mut hasher);
    }
    for mail in shared.cpus.iter().take(hosted.cpus.len()) {
        add(&mut hasher, (&mail.names, &mail.signals));
    }
    for line in shared.lines.iter().take(64) {
        add(&mut hasher, line);
    }
    add(&mut hasher, &shared.forwarding);
    for mail in shared.vcpus.iter().flatten() {
        (mail.name.load(Ordering::Relaxed), mail.place.load(Ordering::Relaxed)).hash(&mut hasher);
    }
    let control = shared.control.lock();
    add(&mut hasher, (control.slots.free(), &control.tags));
    for id in control.runs.pool.names() {
        add(&mut hasher, (id, control.runs.pool.get(id)));
    }
    for id in control.guests.names() {
        let guest = *shared.guests[id.index() % GUESTS].lock();
        let views = (1..guest.views.count).map(|view| guest.views.find(&hosted.cpus[0].machine, view));
        add(&mut hasher, (id, guest, views.collect::<Vec<_>>()));
    }
    for id in control.domains.names() {
        add(&mut hasher, (id, *shared.domains[id.index() % DOMAINS].lock()));
    }
    drop(control);
    let board = hosted.board.borrow();
    add(&mut hasher, (board.power, board.log.len(), &board.lines, &board.active));
    hasher.finish()
}
