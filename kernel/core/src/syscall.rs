// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of operations: who asks, on which CPU it is done, and one arm an operation. Each noun has a file below.

use crate::cap::{Cap, CapWord};
use crate::forward::TAKES;
use crate::local::{Local, Running};
use crate::machine::{Machine, ThreadContext};
use crate::pool::Id;
use crate::portal;
use crate::remote;
use crate::schedule;
use crate::shared::Shared;
use crate::signal;
use crate::signal_word;
use crate::table::TableRange;
use crate::thread::{Entry, ThreadState};
use crate::trace::place_of;
use crate::trap::Next;
use crate::grace::Mark;
use crate::shared::Control;
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{Kind, Op, Refusal, Rights};
use trellis_idl::trace::TraceKind;

mod capability;
mod domain;
mod guest;
mod line;
mod memory;
mod reclaim;
mod session;
mod system;
mod thread;
mod vcpu;
mod views;

/// Priority at which a passive thread starts up, before it first waits.
const START_UP: u8 = 250;

/// Arguments and environment of an operation.
struct Call<'a, M: Machine> {
    local: &'a mut Local<M>,
    shared: &'a Shared,
    machine: &'a mut M,
    table: TableRange,
    a: &'a [u64; 6],
    /// The thread that asks, unless it is another CPU's.
    caller: Option<u16>,
    /// Where the operation goes on, when it says [`Refusal::WrongCpu`] and that is not the home of what it names.
    elsewhere: Option<u16>,
    /// Page of its message buffer, wherever it lives; 0 = none.
    buffer: u64,
    /// The second and third value of the answer.
    rest: [u64; 2],
}

/// What an operation says that has come nearer to its end, and must be asked for again.
const MORE: Done = Ok(1);

/// Carries out an operation that is not decided at a hot door; its message words are parked in the caller's context.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn dispatch<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, number: u16, a: &[u64; 6],
) -> Next {
    let me = local.thread();
    local.threads.at_mut(me).entry = Entry::Parked;
    let result = match Op::from_number(number) {
        None => Err(Refusal::NoOperation),
        Some(Op::Call) => portal::call_slow(local, shared, machine, a[0], a[1]),
        Some(Op::ReplyAndWait) => portal::reply_slow(local, shared, machine, a[0], a[1]),
        Some(Op::Forward) => portal::forward(local, shared, machine, a[0]),
        Some(Op::Wait) => signal::wait(local, shared, machine, a[0] & signal_word::SIGNALS, a[1]),
        Some(Op::Exit) => Ok(portal::end(local, shared, machine, me, ThreadState::Ended)),
        Some(Op::Yield) => {
            local.threads.at_mut(me).context.set_return([0; 3]);
            Ok(schedule::yield_now(local, shared, machine))
        }
        Some(op) => {
            // Nothing that was read in an earlier entry is in use any more.
            shared.grace.pass(local.cpu);
            let (table, buffer) = (local.threads.at(me).table, local.threads.at(me).buffer);
            let ready = local.ready;
            let mut call = Call { local, shared, machine, table, a, caller: Some(me), buffer, rest: [0; 2], elsewhere: None };
            let result = call.perform(op);
            let (elsewhere, rest) = (call.elsewhere, call.rest);
            match result {
                Ok(bits) if op == Op::QueueNext && rest[1] == 0 => {
                    signal::wait(local, shared, machine, a[2] | bits | TAKES, a[3])
                }
                Ok(first) => {
                    let caller = local.threads.at_mut(me);
                    caller.context.set_return([first, rest[0], rest[1]]);
                    if caller.state == ThreadState::Ready && local.ready == ready && !local.overdue {
                        // Nobody else became able to run: the caller goes on.
                        return Next::Thread(me);
                    }
                    Ok(schedule::go_on(local, shared, machine))
                }
                Err(Refusal::WrongCpu) => {
                    let target = elsewhere.map_or_else(|| home_of(shared, table, op, a), Ok);
                    target.and_then(|cpu| remote::ask(local, shared, machine, cpu, number, a))
                }
                Err(refusal) => Err(refusal),
            }
        }
    };
    result.unwrap_or_else(|refusal| {
        let context = place_of(&local.threads.at(me).context);
        machine.note(TraceKind::Refused.with(number.into()), refusal as u64, context);
        local.threads.at_mut(me).context.set_return([refusal.to_register(), 0, 0]);
        local.running = Running::Thread(me);
        schedule::go_on(local, shared, machine)
    })
}

/// The CPU on which an operation that is not for this one must be done.
fn home_of(shared: &Shared, table: TableRange, op: Op, a: &[u64; 6]) -> Result<u16, Refusal> {
    match op {
        Op::ThreadCreate | Op::VcpuCreate | Op::TraceRead | Op::CpuRetire => {
            u16::try_from(a[1]).ok().filter(|cpu| usize::from(*cpu) < MAX_CPUS).ok_or(Refusal::OutOfRange)
        }
        Op::ViewSwitch | Op::SessionSettle => views::home_of_vcpu(shared, table, a),
        _ => Ok(Id::<()>::from_word(shared.table.read(table, a[0]).name).home()),
    }
}

/// Does an operation for a thread of another CPU, with its domain's capability table and its message buffer.
pub(crate) fn perform_for<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, table: TableRange, buffer: u64, number: u16, a: &[u64; 6],
) -> Result<[u64; 3], Refusal> {
    let op = Op::from_number(number).ok_or(Refusal::NoOperation)?;
    let mut call = Call { local, shared, machine, table, a, caller: None, buffer, rest: [0; 2], elsewhere: None };
    match call.perform(op) {
        // What is left is a third CPU's: whoever asks sends it there.
        Err(Refusal::WrongCpu) if call.elsewhere.is_some() => Ok([1, 0, 0]),
        result => result.map(|first| [first, call.rest[0], call.rest[1]]),
    }
}

/// The first value of an answer; the others are in [`Call::rest`].
type Done = Result<u64, Refusal>;

impl<M: Machine> Call<'_, M> {
    fn perform(&mut self, op: Op) -> Done {
        match op {
            Op::Signal => signal::signal(self.local, self.shared, self.machine, self.a[0]),
            Op::Clock => self.with(self.machine.now(), [self.machine.hertz(), 0]),
            Op::FramesSplit => self.frames_split(),
            Op::FramesReclaim => self.frames_reclaim(),
            Op::FramesInfo => self.frames_info(),
            Op::DomainCreate => self.domain_create(),
            Op::DomainMap => self.domain_map(),
            Op::DomainUnmap => self.domain_unmap(),
            Op::DomainDestroy => self.domain_destroy(),
            Op::ThreadCreate => self.thread_create(),
            Op::ThreadStart => self.thread_start(),
            Op::ThreadDestroy => self.thread_destroy(),
            Op::ThreadFault => self.thread_record(),
            Op::ThreadSupervise => self.thread_supervise(),
            Op::ThreadFloat => self.thread_float(),
            Op::PortalCreate => self.portal_create(),
            Op::SignalCreate => self.signal_create(),
            Op::Grant => self.grant(),
            Op::Drop => self.drop_capability(),
            Op::Revoke => self.revoke(),
            Op::GuestCreate => self.guest_create(),
            Op::GuestMap => self.guest_map(),
            Op::GuestRead => self.guest_copy(false),
            Op::GuestWrite => self.guest_copy(true),
            Op::GuestDestroy => self.guest_destroy(),
            Op::GuestUnmap | Op::GuestProtect | Op::GuestInfo | Op::ViewCreate | Op::ViewDestroy | Op::ViewReset
            | Op::ViewCopy | Op::ViewRemap | Op::ViewSwitch | Op::ViewShow | Op::ViewOf => self.views(op),
            Op::SessionCreate => self.session_create(),
            Op::SessionPlace | Op::SessionCommit | Op::SessionSettle | Op::SessionInfo => self.session(op),
            Op::VcpuCreate => self.vcpu_create(),
            Op::VcpuRoute => self.vcpu_route(),
            Op::VcpuWindow => self.vcpu_window(),
            Op::VcpuGet => self.vcpu_get(),
            Op::VcpuSet => self.vcpu_set(),
            Op::VcpuStart => self.vcpu_start(),
            Op::VcpuReset => self.vcpu_reset(),
            Op::VcpuStop => self.vcpu_stop(),
            Op::VcpuException => self.vcpu_exception(),
            Op::VcpuLaunch => self.vcpu_launch(),
            Op::VcpuDestroy => self.vcpu_destroy(),
            Op::VcpuMove => self.vcpu_move(),
            Op::VcpuTraps => self.vcpu_traps(),
            Op::GuestSwap => self.guest_swap(),
            Op::LinesWrite | Op::LinesRead | Op::LinesPriority | Op::LinesPriorityRead | Op::LineTarget | Op::LineTake
            | Op::LinesEnable => self.lines(op),
            Op::LineBind => self.line_bind(),
            Op::LineAck => self.line_ack(),
            Op::LineCreate => self.line_create(),
            Op::LineForward => self.line_forward(),
            Op::LineRelease => self.line_release(),
            Op::LineTie => self.line_tie(),
            Op::LinePass => self.line_pass(),
            Op::QueueServe => self.queue_serve(),
            Op::QueueTake => self.queue_take(),
            Op::QueueDone => self.queue_done(),
            Op::QueueNext => self.queue_next(),
            Op::SystemOff => self.system_off(),
            Op::Log => self.log(),
            Op::LogRead => self.log_read(),
            Op::Fact => self.fact(),
            Op::TraceRead => self.trace_read(),
            Op::CpuRetire => self.cpu_retire(),
            Op::Call | Op::ReplyAndWait | Op::Forward | Op::Wait | Op::Exit | Op::Yield => Err(Refusal::NoOperation),
        }
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    fn cap(&self, argument: usize, kind: Kind, need: Rights) -> Result<Cap, Refusal> {
        self.shared.table.find(self.table, self.a[argument], kind, need)
    }

    /// The name alone: what most operations need fits into a register.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    fn name(&self, argument: usize, kind: Kind, need: Rights) -> Result<u64, Refusal> {
        self.shared.table.find(self.table, self.a[argument], kind, need).map(|cap| cap.name)
    }

    /// Whether a slot is empty, and nobody can still be reading what was in it.
    fn check_empty(&mut self, table: TableRange, selector: u64) -> Result<(), Refusal> {
        let mark = self.shared.table.check_empty(table, selector)?;
        if self.settled(mark) { Ok(()) } else { Err(Refusal::Again) }
    }

    fn settled(&mut self, mark: Mark) -> bool {
        self.shared.settled(self.machine, self.local.cpu, mark)
    }

    /// Puts a new capability into a slot of the caller's that [`Call::check_empty`] has seen under this lock.
    #[inline(never)]
    fn put(&self, _: &Control, selector: u64, kind: Kind, rights: Rights, name: u64) -> Result<(), Refusal> {
        self.shared.table.put(self.table, selector, Cap { word: CapWord::new(kind, rights, 0), name })
    }

    /// Done, with an answer of more than one value.
    fn with(&mut self, first: u64, rest: [u64; 2]) -> Done {
        self.rest = rest;
        Ok(first)
    }

    /// The CPU with the lowest number in this set does the rest of the operation.
    fn go_on_at(&mut self, cpus: u64) -> Done {
        self.elsewhere = Some(cpus.trailing_zeros() as u16);
        Err(Refusal::WrongCpu)
    }
}
