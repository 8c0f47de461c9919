// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between CPUs: operations on objects of another CPU, and lines made pending there.
//!
//! Nobody spins: the asking thread sleeps, the other CPU is kicked, does the operation with the asker's capability
//! table, and kicks back. Objects stay reachable by their own CPU alone, so hot paths need neither locks nor atomics.

use crate::errand::{Errand, each};
use crate::forward;
use crate::lines;
use crate::local::{Local, Running, THREADS, VCPUS};
use crate::machine::{Machine, ThreadContext};
use crate::passage;
use crate::pool::Id;
use crate::request::Asked;
use crate::schedule;
use crate::shared::{GUEST_VCPUS, GUESTS, Shared};
use crate::syscall;
use crate::thread::{Entry, Thread, ThreadState};
use crate::trap::Next;
use crate::vcpu::{self, VcpuState};
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::Refusal;

/// Leaves an errand at another CPU, and kicks it unless somebody has already.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn send<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, to: u16, errand: Errand) {
    local.shared_writes += 1;
    if shared.cpus.get(to as usize).is_some_and(|cpu| cpu.errands.leave(errand)) {
        machine.kick(to);
    }
}

/// Asks another CPU to do an operation for the running thread, which sleeps until it is done.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn ask<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, target: u16, number: u16, a: &[u64; 6],
) -> Result<Next, Refusal> {
    if target == local.cpu || !runs(shared, target) {
        return Err(Refusal::WrongCpu);
    }
    let me = local.thread();
    let wish = Wish { number, target, a: *a };
    if shared.requests[local.cpu as usize % MAX_CPUS].is_free() {
        post(local, shared, machine, me, &wish);
    } else {
        // Another thread of this CPU is asking: this one's turn comes when that has its answer.
        local.turn += 1;
        let turn = local.turn;
        let thread = local.threads.at_mut(me);
        *thread.context.words_mut() = wish.pack(turn);
        thread.state = ThreadState::Asking;
    }
    Ok(schedule::block(local, shared, machine))
}

/// An operation that a thread wants from another CPU.
struct Wish {
    number: u16,
    target: u16,
    a: [u64; 6],
}

impl Wish {
    /// As the words that a thread keeps while it waits for its turn: an operation without message destroys them anyway.
    fn pack(&self, turn: u64) -> [u64; 10] {
        let [a0, a1, a2, a3, a4, a5] = self.a;
        [a0, a1, a2, a3, a4, a5, self.number as u64, self.target as u64, turn, 0]
    }

    fn unpack(words: &[u64; 10]) -> Wish {
        let [a0, a1, a2, a3, a4, a5, number, target, ..] = *words;
        Wish { number: number as u16, target: target as u16, a: [a0, a1, a2, a3, a4, a5] }
    }
}

/// Puts a thread's wish into this CPU's free slot.
#[cfg_attr(target_os = "none", optimize(speed))]
fn post<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, thread: u16, wish: &Wish) {
    let slot = &shared.requests[local.cpu as usize % MAX_CPUS];
    let table = local.threads.at(thread).table;
    let name = local.threads.name_at(thread).0;
    slot.ask(wish.target, &Asked { number: wish.number, arguments: wish.a, table, thread: name });
    local.threads.at_mut(thread).state = ThreadState::Remote;
    let errand = Errand::Request(local.cpu);
    send(local, shared, machine, wish.target, errand);
}

/// The slot is free: the thread that has waited longest for it asks.
#[cfg_attr(target_os = "none", optimize(speed))]
fn next_wish<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) {
    loop {
        let is_asking = |id: &Id<Thread<M>>| local.threads.get(*id).is_some_and(|t| t.state == ThreadState::Asking);
        let turn = |id: &Id<Thread<M>>| local.threads.get(*id).map(|t| t.context.words()[8]);
        let Some(id) = local.threads.names().filter(is_asking).min_by_key(turn) else { return };
        let index = id.index() as u16;
        let wish = Wish::unpack(local.threads.at(index).context.words());
        *local.threads.at_mut(index).context.words_mut() = [0; 10];
        if runs(shared, wish.target) {
            return post(local, shared, machine, index, &wish);
        }
        // The CPU has retired meanwhile.
        local.threads.at_mut(index).state = ThreadState::Remote;
        finish(local, id.0, [Refusal::WrongCpu.to_register(), 0, 0]);
    }
}

fn runs(shared: &Shared, cpu: u16) -> bool {
    (cpu as usize) < MAX_CPUS && shared.running.load(Ordering::Acquire) >> cpu & 1 == 1
}

/// Does what other CPUs left for this one. Threads that were signalled are the caller's: back come their bits.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn attend<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> u64 {
    let me = local.cpu as usize % MAX_CPUS;
    let errands = shared.cpus[me].errands.take();
    // First: what is asked for may be about a vCPU that has come.
    for index in each(errands.vcpus) {
        collect(local, shared, machine, index);
    }
    for asker in each(errands.askers) {
        let slot = &shared.requests[asker as usize % MAX_CPUS];
        if let Some(asked) = slot.take_asked(local.cpu) {
            slot.answer(serve(local, shared, machine, &asked));
            send(local, shared, machine, asker, Errand::Answer);
        }
    }
    if errands.answered
        && let Some((thread, values)) = shared.requests[me].take_answer()
    {
        finish(local, thread, values);
        next_wish(local, shared, machine);
    }
    if errands.pass {
        shared.grace.pass(me as u16);
    }
    if errands.queue {
        let server = local.server;
        forward::wake(local, shared, machine, server);
    }
    errands.threads
}

/// A kick that says only that the running vCPU has lines: it goes on at once with them. [`Next::Slow`]: there is more.
#[inline(always)]
pub fn lines_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let Running::Vcpu(index) = local.running else { return Next::Slow };
    if !shared.cpus[local.cpu as usize % MAX_CPUS].errands.take_lines_of(index) {
        return Next::Slow;
    }
    let [low, high] = lines_of(local, shared, index);
    let line = low.trailing_zeros() as u8;
    if high == 0 && low == 1 << (line & 63) && line < 16 && lines::list_at_once(local, machine, index, line) {
        return Next::Again;
    }
    lines::arrive(local, index, low, 0);
    lines::arrive(local, index, high, 64);
    Next::Slow
}

/// A thread that goes asks for nothing any more: what nobody has begun to do for it is not done, and the next may ask.
pub(crate) fn retract<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, thread: Id<Thread<M>>) {
    if shared.requests[local.cpu as usize % MAX_CPUS].retract(thread.0) {
        next_wish(local, shared, machine);
    }
}

#[cfg_attr(target_os = "none", optimize(speed))]
fn serve<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, asked: &Asked) -> [u64; 3] {
    if local.retiring != 0 {
        return [Refusal::WrongCpu.to_register(), 0, 0];
    }
    // The asker sleeps until it is answered, and its buffer stays its own for as long as it lives.
    let asker = Id::<Thread<M>>::from_word(asked.thread);
    let mail = &shared.cpus[asker.home() as usize % MAX_CPUS];
    let buffer = mail.buffers[asker.index() % THREADS].load(Ordering::Acquire);
    syscall::perform_for(local, shared, machine, asked.table, buffer, asked.number, &asked.arguments)
        .unwrap_or_else(|refusal| [refusal.to_register(), 0, 0])
}

fn finish<M: Machine>(local: &mut Local<M>, thread: u64, values: [u64; 3]) {
    let id = Id::<Thread<M>>::from_word(thread);
    let Some(thread) = local.threads.get_mut(id) else { return };
    if thread.state != ThreadState::Remote {
        return;
    }
    thread.state = ThreadState::Ready;
    thread.entry = Entry::Parked;
    thread.context.set_return(values);
    let budget = thread.budget;
    schedule::ready(local, budget, Running::Thread(id.index() as u16));
}

/// Makes lines pending for a vCPU of a guest, wherever it lives. Says whether there is such a vCPU.
pub fn post_line<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, guest: u16, number: usize, line: u8,
) -> bool {
    let mail = &shared.vcpus[guest as usize % GUESTS][number % GUEST_VCPUS];
    let id = Local::<M>::vcpu_id(mail.name.load(Ordering::Acquire));
    if id.0 == 0 {
        return false;
    }
    if id.home() == local.cpu {
        if local.vcpus.get(id).is_some() {
            let index = id.index() as u16;
            local.vcpus.at_mut(index).lines.make_pending(line);
            vcpu::wake(local, index);
        }
        return true;
    }
    mail.pending[line as usize / 64 % 2].fetch_or(1 << (line % 64), Ordering::AcqRel);
    send(local, shared, machine, id.home(), Errand::Lines(id.index() as u16));
    true
}

/// Takes the lines that other CPUs made pending for a vCPU of this one.
#[inline(always)]
fn lines_of<M: Machine>(local: &Local<M>, shared: &Shared, index: u16) -> [u64; 2] {
    let vcpu = local.vcpus.at(index);
    let mail = &shared.vcpus[vcpu.guest as usize % GUESTS][vcpu.number as usize % GUEST_VCPUS];
    let take = |word: &AtomicU64| match word.load(Ordering::Acquire) {
        0 => 0,
        _ => word.swap(0, Ordering::AcqRel),
    };
    [take(&mail.pending[0]), take(&mail.pending[1])]
}

/// Lines that other CPUs made pending for a vCPU of this one, or it itself, if it was on its way here.
pub(crate) fn collect<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) {
    if index as usize >= VCPUS || local.vcpus.name_at(index).0 == 0 {
        return;
    }
    if local.vcpus.at(index).state == VcpuState::Vacant {
        passage::arrive(local, shared, machine, index, false);
    }
    let [low, high] = lines_of(local, shared, index);
    lines::arrive(local, index, low, 0);
    lines::arrive(local, index, high, 64);
}
