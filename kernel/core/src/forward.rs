// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical lines that a server forwards to guests: each is a source ([`crate::source`]) and goes into the queue of the CPU
//! that took its interrupt.
//!
//! Such a line is not masked when it arrives: its priority is dropped and it stays active, so it does not come again
//! before the guest has ended it, through the list register that is tied to it, or its server let it go.

use crate::lines;
use crate::local::{Local, Running, THREADS, VCPUS};
use crate::machine::{Machine, ThreadContext};
use crate::pool::Id;
use crate::queue::Queue;
use crate::schedule;
use crate::shared::{LINES, Shared};
use crate::signal;
use crate::signal_word;
use crate::source::{self, Source, Sources, Unlinked};
use crate::thread::{Entry, ThreadName, ThreadState};
use crate::trap::Next;
use crate::vcpu::VcpuState;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{Kind, Refusal, Rights, Service};

/// Lines that can be forwarded at a time.
pub const SOURCES: usize = 64;

/// In [`crate::shared::LineSlot::bits`]: the line is forwarded, as the source of the number below. No badge has this bit.
pub const FORWARDED: u64 = 1 << 63;

/// In [`crate::thread::Thread::mask`]: the thread waits for the next of its CPU's queue. No signal has this bit.
pub(crate) const TAKES: u64 = 1 << 63;

/// What CPUs share about forwarded lines.
#[derive(Debug)]
pub struct Forwarding {
    /// The state of each source.
    pub sources: Sources<AtomicU64, SOURCES>,
    /// Its physical line; from bit 16 on the guest's; from bit 32 on interrupts that went to a vCPU without a server.
    pub lines: [AtomicU64; SOURCES],
    /// When it got into its queue.
    pub since: [AtomicU64; SOURCES],
    /// One queue a CPU.
    pub queues: [Queue<AtomicU64>; MAX_CPUS],
}

impl Forwarding {
    /// Nothing is forwarded.
    pub const NONE: Forwarding = {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Forwarding {
            sources: Sources([const { Source::new(ZERO, ZERO, ZERO) }; SOURCES]),
            lines: [ZERO; SOURCES],
            since: [ZERO; SOURCES],
            queues: [const { Queue(ZERO) }; MAX_CPUS],
        }
    };

    /// The physical line of a source.
    #[inline(always)]
    pub fn line_of(&self, source: u16) -> u32 {
        self.ends_of(source).0
    }

    /// The physical line of a source, and the guest's line that it comes as.
    #[inline(always)]
    pub fn ends_of(&self, source: u16) -> (u32, u8) {
        let word = self.lines[source as usize % SOURCES].load(Ordering::Relaxed);
        (word as u16 as u32, (word >> 16) as u8)
    }
}

/// Who serves a CPU's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueServer {
    /// The thread's name.
    pub thread: u64,
    /// The bits it gets when the queue was empty and is no more; 0 = nobody serves.
    pub bits: u64,
}

/// Whether a line stays active and unmasked when its interrupt was taken.
#[inline(always)]
pub fn is_forwarded(shared: &Shared, line: u32) -> bool {
    shared.lines[line as usize % LINES].bits.load(Ordering::Acquire) & FORWARDED != 0
}

/// The source of this line fired: it goes into this CPU's queue. Back: whom to wake, if there is anybody to be woken.
#[inline(never)]
pub(crate) fn fired<M: Machine>(local: &Local<M>, shared: &Shared, machine: &M, bits: u64) -> Option<QueueServer> {
    let source = shared.forwarding.sources.raise(bits as u16)?;
    put(local, shared, machine, source)
}

/// The vCPU of this name, on this CPU, that gets a source's interrupts without a server, if its guest sends the line to it.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn direct_to<M: Machine>(local: &Local<M>, shared: &Shared, vcpu: u64, bits: u64) -> Option<(u16, u8)> {
    let (id, (physical, line)) = (Local::<M>::vcpu_id(vcpu), shared.forwarding.ends_of(bits as u16));
    local.vcpus.get(id)?.lines.is_tied_here(physical, line).then_some((id.index() as u16, line))
}

/// One more interrupt was handed on without a server. Only the CPU that the line comes to counts.
#[inline(always)]
fn count(shared: &Shared, bits: u64) {
    shared.forwarding.lines[bits as usize % SOURCES].fetch_add(1 << 32, Ordering::Relaxed);
}

/// A line that goes straight to this vCPU arrived. False: it does not go there now, so a server is to look where it goes.
#[inline(never)]
pub(crate) fn direct<M: Machine>(local: &mut Local<M>, shared: &Shared, vcpu: u64, bits: u64) -> bool {
    let Some((index, line)) = direct_to(local, shared, vcpu, bits) else { return false };
    count(shared, bits);
    lines::arrive_tied(local, index, line);
    true
}

/// The same where that vCPU runs: it goes on at once. [`Next::Slow`]: nothing was done.
#[inline(always)]
pub(crate) fn direct_at_once<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, vcpu: u64, bits: u64,
) -> Next {
    let Some((index, line)) = direct_to(local, shared, vcpu, bits) else { return Next::Slow };
    if local.running != Running::Vcpu(index) || !lines::list_tied_at_once(local, machine, index, line) {
        return Next::Slow;
    }
    count(shared, bits);
    Next::Again
}

/// A source fired, and the server of this CPU's queue waits for the next, and goes before what runs: it runs at once with
/// the service. [`Next::Slow`]: nothing was done.
#[inline(always)]
pub(crate) fn give_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, bits: u64) -> Next {
    let server = local.server;
    let id = Local::<M>::thread_id(server.thread);
    let index = id.index() as u16 % THREADS as u16;
    let Some(thread) = local.threads.get(id) else { return Next::Slow };
    if thread.state != ThreadState::Waiting || thread.mask & TAKES == 0 || !schedule::may_overtake(local, index) {
        return Next::Slow;
    }
    let Some(service) = shared.forwarding.sources.begin(bits as u16) else { return Next::Slow };
    schedule::overtake(local, machine, index);
    let thread = local.threads.at_mut(index);
    thread.state = ThreadState::Ready;
    thread.entry = Entry::Parked;
    thread.context.set_return([server.bits, word_of(service), 1]);
    Next::Overtake { thread: index, value: server.bits }
}

/// A service as its server knows it.
#[inline(always)]
pub(crate) fn word_of(service: source::Service) -> u64 {
    Service::new(service.source, service.turn, service.latched).0
}

/// Takes the first of this CPU's queue that is still to be served: its service, and 1 + the time that it was in the queue; 0 = there is
/// none.
#[inline(never)]
pub(crate) fn take<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &M) -> [u64; 2] {
    let forwarding = &shared.forwarding;
    let queue = &forwarding.queues[local.cpu as usize % MAX_CPUS];
    loop {
        let Some(popped) = local.backlog.pop(queue, &forwarding.sources) else { return [0; 2] };
        if let Some(service) = forwarding.sources.serve(popped) {
            let since = forwarding.since[service.source as usize % SOURCES].load(Ordering::Relaxed);
            return [word_of(service), machine.now().wrapping_sub(since) + 1];
        }
    }
}

/// `Op::QueueNext` where the service goes to the vCPU that is the next to run, nothing else is in the queue, and nothing is
/// to end the wait: the vCPU goes on at once with the interrupt. `None`: nothing was done.
#[inline(always)]
pub fn next_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, a: &[u64; 6]) -> Option<Next> {
    let [vcpu, service, others, deadline, ..] = *a;
    let me = local.thread();
    let cap = shared.table.read(local.threads.at(me).table, vcpu);
    let server = local.server;
    if !cap.word.is(Kind::Vcpu, Rights::LINES) || deadline != 0 || server.thread != local.threads.name_at(me).0 {
        return None;
    }
    let (id, (physical, line)) = (Local::<M>::vcpu_id(cap.name), shared.forwarding.ends_of(service as u16));
    let index = id.index() as u16 % VCPUS as u16;
    let vcpu = local.vcpus.get(id)?;
    if vcpu.state != VcpuState::Running || vcpu.stop_wanted || !vcpu.lines.is_tied_here(physical, line) {
        return None;
    }
    let (forwarding, cpu) = (&shared.forwarding, local.cpu as usize % MAX_CPUS);
    let mask = others | server.bits;
    let signals = signal_word::waiting(&shared.cpus[cpu].signals[me as usize % THREADS], mask);
    if signals != 0 || !local.backlog.is_empty() || !forwarding.queues[cpu].is_empty() || !schedule::may_follow(local, index) {
        return None;
    }
    if !forwarding.sources.finish(service as u16, (service >> 32) as u32) {
        return None;
    }
    let thread = local.threads.at_mut(me);
    thread.mask = mask | TAKES;
    thread.state = ThreadState::Waiting;
    thread.entry = Entry::Parked;
    schedule::follow(local, machine, index);
    if lines::list_tied_at_once(local, machine, index, line) {
        return Some(Next::Guest(index));
    }
    lines::arrive_tied(local, index, line);
    Some(schedule::enter(local, shared, machine))
}

#[inline(always)]
fn put<M: Machine>(local: &Local<M>, shared: &Shared, machine: &M, source: Unlinked) -> Option<QueueServer> {
    let forwarding = &shared.forwarding;
    forwarding.since[source.0 as usize % SOURCES].store(machine.now(), Ordering::Relaxed);
    let was_empty = forwarding.queues[local.cpu as usize % MAX_CPUS].push(&forwarding.sources, source);
    (was_empty && local.server.bits != 0).then_some(local.server)
}

/// Puts a source into this CPU's queue, and wakes who serves it.
#[inline(never)]
pub(crate) fn queue<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, source: Option<Unlinked>) {
    if let Some(server) = source.and_then(|source| put(local, shared, machine, source)) {
        wake(local, shared, machine, server);
    }
}

/// Wakes a queue's server.
#[inline(never)]
pub(crate) fn wake<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, server: QueueServer) {
    signal::raise(local, shared, machine, Id::<ThreadName>::from_word(server.thread), server.bits);
}

/// A service is over, by the word that began it.
#[inline(never)]
pub(crate) fn complete<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, service: u64,
) -> Result<(), Refusal> {
    let raised = shared.forwarding.sources.complete(service as u16, (service >> 32) as u32)?;
    if raised.is_some() {
        queue(local, shared, machine, raised);
    }
    Ok(())
}
