// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals: bits in a thread's word, from any CPU; and physical lines bound to them.

use crate::errand::{Errand, each};
use crate::forward::{self, FORWARDED, QueueServer, TAKES};
use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, NEVER, ThreadContext};
use crate::pool::Id;
use crate::remote;
use crate::schedule;
use crate::shared::{LINES, Shared};
use crate::signal_word;
use crate::thread::{Entry, Thread, ThreadName, ThreadState};
use crate::trap::Next;
use core::sync::atomic::Ordering;
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{Kind, Refusal, Rights};

/// Sets bits in a thread's signal word; wakes it when it waits for one of them. A dead name sets nothing.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn raise<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, to: Id<ThreadName>, bits: u64,
) -> bool {
    let index = to.index() & (THREADS - 1);
    let home = to.home();
    let Some(cpu) = shared.cpus.get(home as usize) else { return false };
    if home != local.cpu {
        if !signal_word::raise(&cpu.names[index], &cpu.signals[index], to.0, bits) {
            return false;
        }
        remote::send(local, shared, machine, home, Errand::Signal(index as u16));
        return true;
    }
    if local.by_name(to).is_none() {
        return false;
    }
    signal_word::raise(&cpu.names[index], &cpu.signals[index], to.0, bits);
    wake(local, shared, machine, index as u16);
    true
}

/// Ends a thread's wait if one of its bits is set.
#[cfg_attr(target_os = "none", optimize(speed))]
fn wake<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &M, index: u16) {
    let thread = local.threads.at_mut(index);
    if thread.state != ThreadState::Waiting {
        return;
    }
    let bits = signal_word::take(&shared.cpus[local.cpu as usize].signals[index as usize], thread.mask);
    if bits == 0 {
        return;
    }
    let takes = thread.mask & TAKES != 0 && bits & local.server.bits != 0;
    let [service, waited] = if takes { forward::take(local, shared, machine) } else { [0; 2] };
    let thread = local.threads.at_mut(index);
    thread.state = ThreadState::Ready;
    thread.entry = Entry::Parked;
    thread.context.set_return([bits, service, waited]);
    let budget = thread.budget;
    schedule::clear_deadline(local, index);
    schedule::ready(local, budget, Running::Thread(index));
}

/// `Op::Signal` to a thread of this CPU that waits for just these bits and goes before the caller: it runs at once.
#[inline(always)]
pub fn overtaking<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, selector: u64) -> Next {
    let me = local.thread();
    let cap = shared.table.read(local.threads.at(me).table, selector);
    if !cap.word.is(Kind::Signal, Rights::USE) {
        return Next::Slow;
    }
    let next = overtake(local, shared, machine, Id::from_word(cap.name), cap.word.badge());
    if next != Next::Slow {
        let caller = local.threads.at_mut(me);
        caller.entry = Entry::Parked;
        caller.context.set_return([0, 0, 0]);
    }
    next
}

/// A thread of this CPU that waits for just these bits, with none there yet, and goes before what runs: it runs at once.
#[inline(always)]
fn overtake<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, id: Id<Thread<M>>, bits: u64,
) -> Next {
    let index = id.index() as u16 % THREADS as u16;
    let Some(thread) = local.threads.get(id) else { return Next::Slow };
    let others = signal_word::waiting(&shared.cpus[local.cpu as usize % MAX_CPUS].signals[index as usize], u64::MAX);
    if thread.state != ThreadState::Waiting || bits & !thread.mask != 0 || others != 0 {
        return Next::Slow;
    }
    if !schedule::may_overtake(local, index) {
        return Next::Slow;
    }
    schedule::overtake(local, machine, index);
    local.threads.at_mut(index).state = ThreadState::Ready;
    Next::Overtake { thread: index, value: bits }
}

/// `Op::Signal`.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn signal<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, selector: u64,
) -> Result<u64, Refusal> {
    let table = local.threads.at(local.thread()).table;
    let cap = shared.table.find(table, selector, Kind::Signal, Rights::USE)?;
    if raise(local, shared, machine, Id::from_word(cap.name), cap.word.badge()) { Ok(0) } else { Err(Refusal::Gone) }
}

/// `Op::Wait`: bits that are there already end it at once.
pub fn wait<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, mask: u64, deadline: u64,
) -> Result<Next, Refusal> {
    if mask == 0 && deadline == 0 {
        return Err(Refusal::BadArgument);
    }
    let me = local.thread();
    let word = &shared.cpus[local.cpu as usize].signals[me as usize];
    let bits = signal_word::take(word, mask);
    let late = deadline != 0 && machine.now() >= deadline;
    if bits != 0 || late {
        local.threads.at_mut(me).context.set_return([bits, 0, 0]);
        return Ok(schedule::go_on(local, shared, machine));
    }
    let thread = local.threads.at_mut(me);
    thread.mask = mask;
    thread.state = ThreadState::Waiting;
    thread.entry = Entry::Parked;
    if deadline != 0 {
        schedule::set_deadline(local, machine, me, deadline.min(NEVER - 1));
    }
    Ok(schedule::block(local, shared, machine))
}

/// Another CPU left errands for this one: operations, lines, or signals, for which the threads look at their words.
pub fn kicked<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    for index in each(remote::attend(local, shared, machine)) {
        wake(local, shared, machine, index);
    }
    schedule::go_on(local, shared, machine)
}

/// A device line arrived: its thread is told, or its source queued.
pub fn line_arrived<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, line: u32) -> Next {
    let slot = &shared.lines[line as usize % LINES];
    let (thread, bits) = (slot.thread.load(Ordering::Acquire), slot.bits.load(Ordering::Relaxed));
    let server = match bits {
        0 => None,
        _ if bits & FORWARDED != 0 && forward::direct(local, shared, thread, bits) => None,
        _ if bits & FORWARDED != 0 => forward::fired(local, shared, machine, bits),
        _ => Some(QueueServer { thread, bits }),
    };
    if let Some(server) = server {
        forward::wake(local, shared, machine, server);
    }
    schedule::go_on(local, shared, machine)
}

/// A device line arrived, and its thread waits for it on this CPU and goes before what runs: it runs at once, entered at
/// the end of its system call. [`Next::Slow`]: it is not so, and nothing was done.
#[inline(always)]
pub fn line_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, line: u32) -> Next {
    if forward::is_forwarded(shared, line) {
        forwarded_at_once(local, shared, machine, line)
    } else {
        bound_at_once(local, shared, machine, line)
    }
}

/// The same for a line that is bound to a signal.
#[inline(always)]
pub fn bound_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, line: u32) -> Next {
    let slot = &shared.lines[line as usize % LINES];
    let (thread, bits) = (slot.thread.load(Ordering::Acquire), slot.bits.load(Ordering::Relaxed));
    if bits == 0 || bits & FORWARDED != 0 || local.running == Running::Idle {
        return Next::Slow;
    }
    let next = overtake(local, shared, machine, Id::from_word(thread), bits);
    if let Next::Overtake { thread, value } = next {
        let thread = local.threads.at_mut(thread);
        thread.entry = Entry::Parked;
        thread.context.set_return([value, 0, 0]);
    }
    next
}

/// The same for one that is forwarded, whose server waits for the next of its queue.
#[inline(always)]
pub fn forwarded_at_once<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, line: u32) -> Next {
    let slot = &shared.lines[line as usize % LINES];
    let (thread, bits) = (slot.thread.load(Ordering::Acquire), slot.bits.load(Ordering::Relaxed));
    if bits & FORWARDED == 0 || local.running == Running::Idle {
        return Next::Slow;
    }
    if thread != 0 {
        return forward::direct_at_once(local, shared, machine, thread, bits);
    }
    forward::give_at_once(local, shared, machine, bits)
}

/// The name of a thread without the machine in its type.
pub fn name_of<M: Machine>(id: Id<Thread<M>>) -> Id<ThreadName> {
    Id::from_word(id.0)
}
