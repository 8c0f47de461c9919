// SPDX-License-Identifier: MIT OR Apache-2.0
//! Portals: synchronous entries into a thread. Call, answer, forward, and the queue of a busy server.
//!
//! Words never pass through here: on the hot doors they stay in registers, on the slow ones they are parked in the
//! contexts and moved by [`pass_words`]. An answer is a one-shot: the server holds `{client, turn}`; answering takes it
//! out first and then asks whether the client still waits for just that.

use crate::init::ROOT_DOMAIN;
use crate::local::{Local, Running, THREADS};
use crate::machine::{Machine, ThreadContext, VcpuContext};
use crate::patience;
use crate::pool::{Empty, Id};
use crate::schedule::{self, BudgetId};
use crate::session::{self, Watch};
use crate::shared::Shared;
use crate::signal;
use crate::step;
use crate::trace;
use crate::thread::{Entry, Thread, ThreadState};
use crate::trap::Next;
use crate::vcpu::{self, Pause, Vcpu, VcpuState};
use trellis_idl::kernel::{Answer, BADGE_BITS, Kind, PAGE, Refusal, Rights};

/// Ranks that a chain of calls can go through.
const RANKS: usize = 16;

/// A synchronous entry into a thread.
#[derive(Clone, Copy, Debug)]
pub struct Portal {
    /// The thread's name.
    pub thread: u64,
    /// What the thread learns about who came.
    pub badge: u64,
}

impl Empty for Portal {
    type Align = ();
    const EMPTY: Portal = Portal { thread: 0, badge: 0 };
}

/// The portals into a thread that goes.
pub(crate) fn remove_all<M: Machine>(local: &mut Local<M>, thread: Id<Thread<M>>) {
    local.portals.remove_where(|portal| portal.thread == thread.0);
}

/// Somebody who waits for an answer (or in a queue), and which of its calls it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// Nobody.
    None,
    /// A thread by name, in this turn of its.
    Thread(u64, u32),
    /// A vCPU by name, in this turn of its.
    Vcpu(u64, u32),
}

impl Client {
    /// Set in the turn of a client that was seen with its server ([`crate::patience`]). Turns do not have it, so the hot
    /// door of answers finds nobody and leaves the answer to the slow one.
    const SEEN: u32 = 1 << 31;

    /// With the mark.
    pub const fn seen(self) -> Client {
        match self {
            Client::None => Client::None,
            Client::Thread(name, turn) => Client::Thread(name, turn | Self::SEEN),
            Client::Vcpu(name, turn) => Client::Vcpu(name, turn | Self::SEEN),
        }
    }

    /// Without the mark: as the client itself is called.
    pub const fn plain(self) -> Client {
        match self {
            Client::None => Client::None,
            Client::Thread(name, turn) => Client::Thread(name, turn & !Self::SEEN),
            Client::Vcpu(name, turn) => Client::Vcpu(name, turn & !Self::SEEN),
        }
    }

    /// Whether it bears the mark.
    pub const fn is_seen(self) -> bool {
        match self {
            Client::None => false,
            Client::Thread(_, turn) | Client::Vcpu(_, turn) => turn & Self::SEEN != 0,
        }
    }

    /// The turn after this one.
    pub const fn next_turn(turn: u32) -> u32 {
        turn.wrapping_add(1) & !Self::SEEN
    }
}

/// `Op::Call` with registers only, to a server that is free.
#[inline(always)]
pub fn call<M: Machine>(local: &mut Local<M>, shared: &Shared, selector: u64, bytes: u64) -> Next {
    let me = local.thread();
    let caller = local.threads.at(me);
    let (rank, turn) = (caller.rank, caller.turn);
    let cap = shared.table.read(caller.table, selector);
    if !cap.word.is(Kind::Portal, Rights::USE) || bytes != 0 {
        return Next::Slow;
    }
    let Some(portal) = local.portals.get(Id::from_word(cap.name)) else {
        return Next::Slow;
    };
    let (name, badge) = (Id::<Thread<M>>::from_word(portal.thread), portal.badge);
    let my_name = local.threads.name_at(me).0;
    let budget = local.budget;
    let Some(server) = local.threads.get_mut(name) else {
        return Next::Slow;
    };
    if server.state != ThreadState::Open || server.rank >= rank {
        return Next::Slow;
    }
    server.state = ThreadState::Ready;
    server.client = Client::Thread(my_name, turn);
    server.budget = budget;
    local.threads.at_mut(me).state = ThreadState::Awaiting;
    local.running = Running::Thread(name.index() as u16);
    Next::Ride { thread: name.index() as u16, value: badge }
}

/// `Op::ReplyAndWait` with registers only, when nobody queues here and the client can go on at once.
#[inline(always)]
pub fn reply<M: Machine>(local: &mut Local<M>, mask: u64, bytes: u64) -> Next {
    let me = local.thread();
    let overdue = local.overdue;
    let server = local.threads.at_mut(me);
    if server.queue != Client::None || bytes != 0 || overdue {
        return Next::Slow;
    }
    match server.client {
        Client::Vcpu(name, turn) => {
            if mask & !Answer::QUICK != 0 {
                return Next::Slow;
            }
            let id = Local::<M>::vcpu_id(name);
            let Some(vcpu) = local.vcpus.get_mut(id) else {
                return Next::Slow;
            };
            if vcpu.state != VcpuState::Awaiting || vcpu.turn != turn || vcpu.hazard {
                return Next::Slow;
            }
            vcpu.state = VcpuState::Running;
            server.client = Client::None;
            server.state = ThreadState::Open;
            local.running = Running::Vcpu(id.index() as u16);
            Next::Answered { vcpu: id.index() as u16, mask }
        }
        Client::Thread(name, turn) => {
            let id = Local::<M>::thread_id(name);
            if mask != 0 {
                return Next::Slow;
            }
            server.client = Client::None;
            server.state = ThreadState::Open;
            let Some(client) = local.threads.get_mut(id) else {
                gone(local, me, name, turn);
                return Next::Slow;
            };
            if client.state != ThreadState::Awaiting || client.turn != turn {
                gone(local, me, name, turn);
                return Next::Slow;
            }
            client.state = ThreadState::Ready;
            local.running = Running::Thread(id.index() as u16);
            Next::Ride { thread: id.index() as u16, value: 0 }
        }
        Client::None => Next::Slow,
    }
}

/// The hot door found nobody to answer: put things back and let the slow one see.
#[cold]
#[inline(never)]
fn gone<M: Machine>(local: &mut Local<M>, me: u16, name: u64, turn: u32) {
    let server = local.threads.at_mut(me);
    server.client = Client::Thread(name, turn);
    server.state = ThreadState::Ready;
}

/// `Op::Call`, every case.
pub fn call_slow<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, selector: u64, bytes: u64,
) -> Result<Next, Refusal> {
    let me = local.thread();
    let (table, rank, turn, name) = {
        let caller = local.threads.at(me);
        (caller.table, caller.rank, caller.turn, local.threads.name_at(me).0)
    };
    let (server, badge) = target(local, shared, table, selector)?;
    if local.threads.at(server).rank >= rank {
        return Err(Refusal::Order);
    }
    check_bytes(local, me, bytes)?;
    let caller = local.threads.at_mut(me);
    caller.queued_badge = badge;
    caller.queued_bytes = bytes;
    caller.entry = Entry::Parked;
    Ok(arrive(local, shared, machine, server, Client::Thread(name, turn)))
}

/// The thread and badge behind a portal capability.
#[cfg_attr(target_os = "none", optimize(speed))]
fn target<M: Machine>(
    local: &Local<M>, shared: &Shared, table: crate::table::TableRange, selector: u64,
) -> Result<(u16, u64), Refusal> {
    entry(local, shared.table.find(table, selector, Kind::Portal, Rights::USE)?.name)
}

/// The thread and badge behind a portal of this name, when it can be asked.
#[cfg_attr(target_os = "none", optimize(speed))]
pub(crate) fn entry<M: Machine>(local: &Local<M>, name: u64) -> Result<(u16, u64), Refusal> {
    let id = Id::<Portal>::from_word(name);
    if id.home() != local.cpu {
        return Err(Refusal::WrongCpu);
    }
    let portal = local.portals.get(id).ok_or(Refusal::Gone)?;
    let thread = Id::<Thread<M>>::from_word(portal.thread);
    let state = local.threads.get(thread).ok_or(Refusal::Gone)?.state;
    if matches!(state, ThreadState::Ended | ThreadState::Faulted) {
        return Err(Refusal::Gone);
    }
    patience::refusal(local, thread.index() as u16)?;
    Ok((thread.index() as u16, portal.badge))
}

fn check_bytes<M: Machine>(local: &Local<M>, thread: u16, bytes: u64) -> Result<(), Refusal> {
    if bytes > PAGE || (bytes != 0 && local.threads.at(thread).buffer == 0) {
        return Err(Refusal::BadArgument);
    }
    Ok(())
}

/// A client comes to a server: it is served now, or it waits in the server's queue.
///
/// The client's words are parked, its badge and bytes noted in it. The client's budget becomes the server's.
#[cfg_attr(target_os = "none", optimize(speed))]
pub(crate) fn arrive<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, server: u16, client: Client,
) -> Next {
    if local.threads.at(server).state != ThreadState::Open {
        let budget = local.budget;
        enqueue(local, server, client, budget);
        return schedule::block_as(local, shared, machine, Running::Idle);
    }
    let budget = local.budget;
    begin(local, machine, server, client, budget);
    local.running = Running::Thread(server);
    Next::Thread(server)
}

/// The same for a vCPU that waits for somebody to serve its exit, whoever runs.
pub(crate) fn present<M: Machine>(local: &mut Local<M>, machine: &mut M, server: u16, index: u16) {
    let vcpu = local.vcpus.at(index);
    let (client, budget) = (Client::Vcpu(local.vcpus.name_at(index).0, vcpu.turn), vcpu.budget());
    if local.threads.at(server).state != ThreadState::Open {
        return enqueue(local, server, client, budget);
    }
    begin(local, machine, server, client, budget);
    schedule::ready(local, budget, Running::Thread(server));
}

/// Whether a server serves a client, or has it in its queue.
pub(crate) fn has<M: Machine>(local: &Local<M>, server: u16, client: Client) -> bool {
    let thread = local.threads.at(server);
    let mut at = thread.queue;
    while at != Client::None && at != client {
        at = next_of(local, at);
    }
    at == client || thread.client.plain() == client
}

/// A client does not wait any more, for an answer or in a queue: its server's finds nobody, and is paid by the server.
pub(crate) fn withdraw<M: Machine>(local: &mut Local<M>, client: Client) {
    orphan(local, client);
    leave_queue(local, client);
}

/// A server begins to serve a client whose words are parked.
#[cfg_attr(target_os = "none", optimize(speed))]
fn begin<M: Machine>(local: &mut Local<M>, machine: &mut M, server: u16, client: Client, budget: BudgetId) {
    let badge = match client {
        Client::Thread(name, _) => {
            let index = Id::<Thread<M>>::from_word(name).index() as u16;
            local.threads.at_mut(index).state = ThreadState::Awaiting;
            pass_words(local, index, server);
            let bytes = local.threads.at(index).queued_bytes;
            let passed = pass_buffer(local, machine, index, server, bytes);
            local.threads.at(index).queued_badge | passed << BADGE_BITS
        }
        Client::Vcpu(name, _) => {
            let index = Id::<Vcpu<M>>::from_word(name).index() as u16;
            let vcpu = local.vcpus.at_mut(index);
            vcpu.state = VcpuState::Awaiting;
            let (words, badge) = (vcpu.exit_words(), vcpu.queued_badge);
            *local.threads.at_mut(server).context.words_mut() = words;
            badge
        }
        Client::None => return,
    };
    let thread = local.threads.at_mut(server);
    thread.client = client;
    thread.state = ThreadState::Ready;
    thread.entry = Entry::Parked;
    thread.budget = budget;
    thread.context.set_return([badge, 0, 0]);
    inherit(local, server);
}

/// Puts a client at the end of a busy server's queue, and lends the server its priority.
fn enqueue<M: Machine>(local: &mut Local<M>, server: u16, client: Client, budget: BudgetId) {
    let priority = local.budgets.get(budget as usize).map_or(0, |budget| budget.priority());
    match client {
        Client::Thread(name, _) => {
            let thread = local.threads.at_mut(Id::<Thread<M>>::from_word(name).index() as u16);
            thread.state = ThreadState::Queued;
            thread.budget = budget;
            thread.waits_at = server;
        }
        Client::Vcpu(name, _) => {
            local.vcpus.at_mut(Id::<Vcpu<M>>::from_word(name).index() as u16).state = VcpuState::Queued;
        }
        Client::None => {}
    }
    set_next(local, client, Client::None);
    match local.threads.at(server).queue_last {
        Client::None => local.threads.at_mut(server).queue = client,
        last => set_next(local, last, client),
    }
    local.threads.at_mut(server).queue_last = client;
    lend(local, server, priority);
}

/// Gives a priority to whatever must run for a server to go on: what pays for it, and if it waits itself, for those it
/// waits for. As many as there are ranks at most: a call goes to a lower one.
#[cfg_attr(target_os = "none", optimize(speed))]
fn lend<M: Machine>(local: &mut Local<M>, server: u16, priority: u8) {
    let mut at = server;
    for _ in 0..RANKS {
        let payer = local.threads.at(at).budget as usize;
        if let Some(budget) = local.budgets.get_mut(payer) {
            budget.raise(priority);
        }
        match served_at(local, at) {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// Where a thread waits for an answer, or in a queue.
pub(crate) fn served_at<M: Machine>(local: &Local<M>, index: u16) -> Option<u16> {
    let thread = local.threads.at(index);
    match thread.state {
        ThreadState::Queued => Some(thread.waits_at),
        ThreadState::Awaiting => serving(local, Client::Thread(local.threads.name_at(index).0, thread.turn)),
        _ => None,
    }
}

/// Nobody waits any more for what was just done on a budget; those that wait for other servers it pays still do.
fn settle<M: Machine>(local: &mut Local<M>, payer: BudgetId) {
    let Some(budget) = local.budgets.get_mut(payer as usize) else { return };
    if !budget.is_raised() {
        return;
    }
    budget.settle();
    for index in 0..THREADS as u16 {
        if local.threads.at(index).budget == payer && local.threads.at(index).queue != Client::None {
            inherit(local, index);
        }
    }
}

/// The one behind a client in a queue.
#[inline(always)]
fn next_of<M: Machine>(local: &Local<M>, client: Client) -> Client {
    match client {
        Client::None => Client::None,
        Client::Thread(name, _) => local.threads.at(Id::<Thread<M>>::from_word(name).index() as u16).next,
        Client::Vcpu(name, _) => local.vcpus.at(Id::<Vcpu<M>>::from_word(name).index() as u16).next,
    }
}

fn set_next<M: Machine>(local: &mut Local<M>, client: Client, next: Client) {
    match client {
        Client::None => {}
        Client::Thread(name, _) => local.threads.at_mut(Id::<Thread<M>>::from_word(name).index() as u16).next = next,
        Client::Vcpu(name, _) => local.vcpus.at_mut(Id::<Vcpu<M>>::from_word(name).index() as u16).next = next,
    }
}

/// Takes a client that is about to go out of the queue it waits in: those behind it must stay reachable.
pub(crate) fn leave_queue<M: Machine>(local: &mut Local<M>, client: Client) {
    for server in 0..THREADS as u16 {
        let mut before = Client::None;
        let mut at = local.threads.at(server).queue;
        while at != Client::None && at != client {
            before = at;
            at = next_of(local, at);
        }
        if at == Client::None {
            continue;
        }
        let next = next_of(local, at);
        match before {
            Client::None => local.threads.at_mut(server).queue = next,
            before => set_next(local, before, next),
        }
        let server = local.threads.at_mut(server);
        if server.queue_last == at {
            server.queue_last = before;
        }
        let payer = server.budget;
        settle(local, payer);
        return;
    }
}

/// A client is about to go: what its server does for it, and whomever that called, is paid by the server itself.
pub(crate) fn orphan<M: Machine>(local: &mut Local<M>, client: Client) {
    let Some(heir) = serving(local, client) else { return };
    let mut at = heir;
    for _ in 0..THREADS {
        schedule::pay_from(local, at, heir);
        let name = local.threads.name_at(at).0;
        let calls = local.threads.at(at).state == ThreadState::Awaiting;
        match serving(local, Client::Thread(name, local.threads.at(at).turn)) {
            Some(next) if calls => at = next,
            _ => return,
        }
    }
}

/// The thread that serves a client.
fn serving<M: Machine>(local: &Local<M>, client: Client) -> Option<u16> {
    (0..THREADS as u16).find(|index| client != Client::None && local.threads.at(*index).client.plain() == client)
}

/// Those who still wait for a server lend it their priority.
#[cfg_attr(target_os = "none", optimize(speed))]
fn inherit<M: Machine>(local: &mut Local<M>, server: u16) {
    let mut client = local.threads.at(server).queue;
    let mut best = 0;
    while client != Client::None {
        let budget = match client {
            Client::Thread(name, _) => local.threads.at(Id::<Thread<M>>::from_word(name).index() as u16).budget,
            Client::Vcpu(name, _) => local.vcpus.at(Id::<Vcpu<M>>::from_word(name).index() as u16).budget(),
            Client::None => break,
        };
        best = best.max(local.budgets.get(budget as usize).map_or(0, |budget| budget.priority()));
        client = next_of(local, client);
    }
    lend(local, server, best);
}

/// The first of a server's queue that still waits there.
#[cfg_attr(target_os = "none", optimize(speed))]
fn dequeue<M: Machine>(local: &mut Local<M>, server: u16) -> Option<(Client, BudgetId)> {
    loop {
        let client = local.threads.at(server).queue;
        let (next, valid, budget) = match client {
            Client::None => return None,
            Client::Thread(name, turn) => match local.threads.get(Id::from_word(name)) {
                Some(t) => (t.next, t.state == ThreadState::Queued && t.turn == turn, t.budget),
                None => (Client::None, false, 0),
            },
            Client::Vcpu(name, turn) => match local.vcpus.get(Id::from_word(name)) {
                Some(v) => (v.next, v.state == VcpuState::Queued && v.turn == turn, v.budget()),
                None => (Client::None, false, 0),
            },
        };
        let thread = local.threads.at_mut(server);
        thread.queue = next;
        if next == Client::None {
            thread.queue_last = Client::None;
        }
        if valid {
            return Some((client, budget));
        }
    }
}

/// Copies parked words from one thread to another.
fn pass_words<M: Machine>(local: &mut Local<M>, from: u16, to: u16) {
    let words = *local.threads.at(from).context.words();
    *local.threads.at_mut(to).context.words_mut() = words;
}

/// Copies bytes of message buffer from one thread to another. Back: how many; none where either has no buffer.
#[cfg_attr(target_os = "none", optimize(speed))]
fn pass_buffer<M: Machine>(local: &Local<M>, machine: &mut M, from: u16, to: u16, bytes: u64) -> u64 {
    let (source, target) = (local.threads.at(from).buffer, local.threads.at(to).buffer);
    if bytes == 0 || source == 0 || target == 0 {
        return 0;
    }
    machine.copy(target * PAGE, source * PAGE, bytes.min(PAGE), false);
    bytes.min(PAGE)
}

/// `Op::ReplyAndWait`, every case.
pub fn reply_slow<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, mask: u64, bytes: u64,
) -> Result<Next, Refusal> {
    let me = local.thread();
    check_bytes(local, me, bytes)?;
    match local.threads.at(me).client {
        Client::Vcpu(..) if mask & !Answer::KNOWN != 0 => return Err(Refusal::BadArgument),
        Client::Vcpu(name, _) if mask & !Answer::QUICK & !Answer::STOP.0 != 0 => {
            if awaits(local, local.threads.at(me).client.plain()) {
                step::prepare(local, shared, machine, Local::<M>::vcpu_id(name).index() as u16, Answer(mask))?;
            }
        }
        Client::Thread(..) if mask != 0 => return Err(Refusal::BadArgument),
        _ => {}
    }
    let client = core::mem::replace(&mut local.threads.at_mut(me).client, Client::None).plain();
    let answered = answer(local, shared, machine, me, client, mask, bytes);
    Ok(open(local, shared, machine, me, answered))
}

/// Gives the parked words of `server` to the client. Says whether it can go on now.
fn answer<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, server: u16, client: Client, mask: u64, bytes: u64,
) -> Option<Running> {
    match client {
        Client::None => None,
        Client::Thread(name, turn) => {
            let id = Local::<M>::thread_id(name);
            let waiting = local.threads.get(id).is_some_and(|t| t.state == ThreadState::Awaiting && t.turn == turn);
            if !waiting {
                return None;
            }
            let index = id.index() as u16;
            pass_words(local, server, index);
            let bytes = pass_buffer(local, machine, server, index, bytes);
            let thread = local.threads.at_mut(index);
            thread.state = ThreadState::Ready;
            thread.entry = Entry::Parked;
            thread.context.set_return([bytes, 0, 0]);
            Some(Running::Thread(index))
        }
        Client::Vcpu(name, turn) => {
            let id = Local::<M>::vcpu_id(name);
            let words = *local.threads.at(server).context.words();
            let vcpu = local.vcpus.get_mut(id)?;
            if vcpu.state != VcpuState::Awaiting || vcpu.turn != turn {
                return None;
            }
            vcpu.context.answer(mask, &words);
            if mask & Answer::STOP.0 != 0 || vcpu.stop_wanted {
                if mask & Answer::STOP.0 != 0 {
                    vcpu.settle();
                }
                vcpu::stopped(local, shared, machine, id.index() as u16);
                return None;
            }
            if mask & Answer::STEP.0 != 0 {
                machine.set_step(&mut vcpu.context, true);
            }
            vcpu.state = VcpuState::Running;
            Some(Running::Vcpu(id.index() as u16))
        }
    }
}

/// A server is free: it takes the next of its queue or waits; whoever was answered goes on, else somebody else does.
#[cfg_attr(target_os = "none", optimize(speed))]
fn open<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, server: u16, answered: Option<Running>,
) -> Next {
    local.threads.at_mut(server).state = ThreadState::Open;
    let payer = local.budget;
    let next = dequeue(local, server);
    if let Some((next, budget)) = next {
        begin(local, machine, server, next, budget);
    }
    settle(local, payer);
    if let Some((_, budget)) = next {
        if budget == payer && answered.is_none() {
            local.running = Running::Thread(server);
            return Next::Thread(server);
        }
        schedule::ready(local, budget, Running::Thread(server));
    }
    match answered {
        Some(running) => {
            local.running = running;
            schedule::go_on(local, shared, machine)
        }
        None => {
            local.running = Running::Idle;
            schedule::block_as(local, shared, machine, Running::Idle)
        }
    }
}

/// `Op::Forward`: another server, of a higher rank, shall answer.
pub fn forward<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, selector: u64,
) -> Result<Next, Refusal> {
    let me = local.thread();
    let (table, rank, client) = {
        let server = local.threads.at(me);
        (server.table, server.rank, server.client.plain())
    };
    if client == Client::None {
        return Err(Refusal::BadState);
    }
    let cap = shared.table.read(table, selector);
    let is_session = cap.word.is(Kind::Session, Rights::USE);
    let to = if is_session {
        session::target(local, shared, cap.name, client)?
    } else {
        Some(target(local, shared, table, selector)?)
    };
    if to.is_some_and(|(server, _)| local.threads.at(server).rank <= rank) {
        return Err(Refusal::Order);
    }
    let words = *local.threads.at(me).context.words();
    local.threads.at_mut(me).client = Client::None;
    if !awaits(local, client) {
        return Ok(open(local, shared, machine, me, None));
    }
    match client {
        Client::Thread(name, _) => {
            let index = Id::<Thread<M>>::from_word(name).index() as u16;
            let thread = local.threads.at_mut(index);
            *thread.context.words_mut() = words;
            thread.queued_badge = to.map_or(0, |(_, badge)| badge);
            thread.queued_bytes = 0;
        }
        Client::Vcpu(name, _) => {
            let index = Id::<Vcpu<M>>::from_word(name).index() as u16;
            let asked = to.filter(|_| is_session).map_or(0, |(thread, _)| local.threads.name_at(thread).0);
            let vcpu = local.vcpus.at_mut(index);
            vcpu.watch = Watch { session: Id::<()>::from_word(cap.name).home() as u8, thread: asked };
            vcpu.context.set_exit(words);
            vcpu.queued_badge = to.map_or(0, |(_, badge)| badge);
            vcpu.queued_groups = session::WORDS;
        }
        Client::None => {}
    }
    // The forwarder is free first: it may have a queue of its own, which runs on its clients' budgets.
    local.threads.at_mut(me).state = ThreadState::Open;
    if let Some((next, budget)) = dequeue(local, me) {
        begin(local, machine, me, next, budget);
        schedule::ready(local, budget, Running::Thread(me));
    }
    match (to, client) {
        (Some((server, _)), _) => Ok(arrive(local, shared, machine, server, client)),
        (None, Client::Vcpu(name, _)) => {
            session::owe(local, shared, Id::<Vcpu<M>>::from_word(name).index() as u16);
            Ok(schedule::block_as(local, shared, machine, Running::Idle))
        }
        // Only a vCPU's exit goes to a session.
        _ => Err(Refusal::BadArgument),
    }
}

/// Whether a client is alive and waits for just this answer.
fn awaits<M: Machine>(local: &Local<M>, client: Client) -> bool {
    match client {
        Client::None => false,
        Client::Thread(name, turn) => {
            let thread = local.threads.get(Local::<M>::thread_id(name));
            thread.is_some_and(|t| t.state == ThreadState::Awaiting && t.turn == turn)
        }
        Client::Vcpu(name, turn) => {
            let vcpu = local.vcpus.get(Local::<M>::vcpu_id(name));
            vcpu.is_some_and(|v| v.state == VcpuState::Awaiting && v.turn == turn)
        }
    }
}

/// A thread stops for good: whom it serves gets `Gone` (a vCPU stays stopped), as do those who wait for it; its
/// supervisor is told.
pub fn end<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, state: ThreadState,
) -> Next {
    dismiss(local, shared, machine, index, state);
    schedule::go_on(local, shared, machine)
}

/// The same for any thread, without deciding what runs next.
pub(crate) fn dismiss<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, state: ThreadState,
) {
    if local.running == Running::Thread(index) {
        // Another CPU wants it gone, or it ended by itself: whoever lent it time gets that back.
        schedule::leave(local);
    }
    let own = Client::Thread(local.threads.name_at(index).0, local.threads.at(index).turn);
    match local.threads.at(index).state {
        ThreadState::Awaiting => orphan(local, own),
        ThreadState::Queued => leave_queue(local, own),
        _ => {}
    }
    let thread = local.threads.at_mut(index);
    let lent = thread.budget;
    thread.state = state;
    thread.turn = Client::next_turn(thread.turn);
    let supervisor = thread.supervisor;
    let client = core::mem::replace(&mut thread.client, Client::None).plain();
    if local.budgets.get(lent as usize).is_some_and(|budget| budget.head == Running::Thread(index)) {
        schedule::retire(local, lent);
    }
    if let Some(budget) = local.budgets.get_mut(lent as usize) {
        budget.settle();
    }
    refuse(local, shared, machine, index, (client, lent), Refusal::Gone);
    while let Some(waiting) = dequeue(local, index) {
        refuse(local, shared, machine, index, waiting, Refusal::Gone);
    }
    schedule::retire(local, index as BudgetId);
    if supervisor.1 != 0 {
        signal::raise(local, shared, machine, supervisor.0, supervisor.1);
    } else if local.threads.at(index).domain == ROOT_DOMAIN {
        // Nobody is left who could start, supervise or end anything: its last words must not stay in memory.
        trace::last_words(local, machine);
        machine.power(false);
    }
}

/// A server has kept its client for too long: that one gets [`Refusal::Late`] (a vCPU stays stopped), as do those who
/// queue; what the server goes on doing it pays itself, and its supervisor is told.
pub(crate) fn late<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) {
    let client = local.threads.at(index).client.plain();
    let lent = local.threads.at(index).budget;
    let record = match client {
        // With none yet, somebody waits that it begins.
        Client::None | Client::Thread(..) => [1, 0, 0],
        Client::Vcpu(name, _) => {
            let vcpu = local.vcpus.at(Id::<Vcpu<M>>::from_word(name).index() as u16);
            [2, vcpu.number.into(), vcpu.context.exit()[0]]
        }
    };
    while let Some(waiting) = dequeue(local, index) {
        refuse(local, shared, machine, index, waiting, Refusal::Late);
    }
    // Nobody better waits for it any more: it goes on as what its client is.
    settle(local, lent);
    orphan(local, client);
    let thread = local.threads.at_mut(index);
    thread.client = Client::None;
    thread.late = record;
    let supervisor = thread.supervisor;
    refuse(local, shared, machine, index, (client, lent), Refusal::Late);
    if supervisor.1 != 0 {
        signal::raise(local, shared, machine, supervisor.0, supervisor.1);
    }
}

/// Tells a client that this server will not answer, or not in time. A vCPU whose event it was is owed an answer.
fn refuse<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, server: u16, (client, budget): (Client, BudgetId), why: Refusal,
) {
    let server = local.threads.name_at(server).0;
    match client {
        Client::None => {}
        Client::Thread(name, turn) => {
            let id = Local::<M>::thread_id(name);
            let Some(thread) = local.threads.get_mut(id) else { return };
            if thread.turn != turn || !matches!(thread.state, ThreadState::Awaiting | ThreadState::Queued) {
                return;
            }
            thread.state = ThreadState::Ready;
            thread.entry = Entry::Parked;
            thread.context.set_return([why.to_register(), 0, 0]);
            schedule::ready(local, budget, Running::Thread(id.index() as u16));
        }
        Client::Vcpu(name, turn) => {
            let id = Local::<M>::vcpu_id(name);
            let Some(vcpu) = local.vcpus.get_mut(id).filter(|vcpu| vcpu.turn == turn) else { return };
            // One that is paused is still owed its answer.
            if vcpu.watch.thread == server && (!vcpu.stop_wanted || vcpu.pause == Pause::Runs) {
                session::owe(local, shared, id.index() as u16);
            } else {
                vcpu.settle();
                vcpu::stopped(local, shared, machine, id.index() as u16);
            }
        }
    }
}
