// SPDX-License-Identifier: MIT OR Apache-2.0
//! Budgets: who pays for a CPU's time, and who runs next.
//!
//! Every thread and every vCPU has a budget; a call or exit lends it to the server without moving anything. Only when
//! a budget stops running is it noted what would run on it next (`head`). Time is charged at those moments, so the hot
//! doors read no clock. A server that works on a lent budget is not stopped in the middle when the budget is used up:
//! the overrun is taken from the next period.

use crate::local::{BUDGETS, Local, Running, THREADS, VCPUS};
use crate::machine::{Machine, NEVER, Ticks, VcpuContext};
use crate::patience;
use crate::retire;
use crate::shared::Shared;
use crate::thread::{Entry, ThreadState};
use crate::trap::Next;
use crate::vcpu::{self, VcpuState};

/// Index of a budget.
pub type BudgetId = u16;

/// No budget: the CPU is idle.
pub const NO_BUDGET: BudgetId = u16::MAX;

/// Order of what has just woken with time left: before all that wait.
const WOKEN: u64 = 0;

/// Turns of equal priority last this many milliseconds.
pub const SLICE_MS: u64 = 10;

/// Time on a CPU: a priority, and how much of each period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(align(64))]
pub struct Budget {
    /// What runs on it next.
    pub head: Running,
    own: u8,
    raised: u8,
    alive: bool,
    order: u64,
    time: Ticks,
    period: Ticks,
    left: i64,
    refill_at: Ticks,
    /// Ticks it has used in all.
    pub used: Ticks,
}

impl Budget {
    /// A budget of nobody.
    pub const EMPTY: Budget = Budget {
        head: Running::Idle,
        own: 0,
        raised: 0,
        alive: false,
        order: 0,
        time: 0,
        period: 0,
        left: 0,
        refill_at: NEVER,
        used: 0,
    };

    /// A budget of this priority; `time` of each `period`, or everything when `period` is 0.
    pub const fn new(priority: u8, time: Ticks, period: Ticks) -> Budget {
        let mut budget = Budget::EMPTY;
        budget.own = priority;
        budget.raised = priority;
        budget.alive = true;
        budget.time = time;
        budget.period = period;
        budget.left = time as i64;
        budget
    }

    /// What it counts for now.
    pub const fn priority(&self) -> u8 {
        self.raised
    }

    /// Somebody of this priority waits for what runs on it.
    pub fn raise(&mut self, priority: u8) {
        if priority > self.raised {
            self.raised = priority;
        }
    }

    /// Whether somebody better than its owner waits for what runs on it.
    pub const fn is_raised(&self) -> bool {
        self.raised != self.own
    }

    /// Nobody waits for what ran on it any more.
    pub fn settle(&mut self) {
        self.raised = self.own;
    }

    const fn is_limited(&self) -> bool {
        self.period != 0
    }

    const fn is_spent(&self) -> bool {
        self.is_limited() && self.left <= 0
    }
}

/// A budget's bit. Made of a 64-bit shift: a 128-bit one by a variable is a loop or a call on the machines there are.
#[inline(always)]
const fn bit(budget: BudgetId) -> u128 {
    let half = (1u64 << (budget & 63)) as u128;
    if budget & 64 == 0 { half } else { half << 64 }
}

/// The indices of the bits that are set, lowest first.
fn each(mut bits: u128) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let id = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        Some(id % BUDGETS)
    })
}

/// Whether a thread works on a budget that is not its own.
fn is_lent<M: Machine>(local: &Local<M>) -> bool {
    matches!(local.running, Running::Thread(index) if index != local.budget)
}

/// Makes a budget able to run, with this on it.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn ready<M: Machine>(local: &mut Local<M>, id: BudgetId, head: Running) {
    local.turn += 1;
    let order = local.turn;
    let Some(budget) = local.budgets.get_mut(id as usize) else { return };
    budget.head = head;
    budget.order = order;
    if budget.alive && !budget.is_spent() {
        local.ready |= bit(id);
    }
    local.timed &= !bit(id);
    wants_cpu(local);
}

/// [`ready`] for something that slept on a budget of its own: with time left it goes before its equals.
pub fn wake<M: Machine>(local: &mut Local<M>, id: BudgetId, head: Running) {
    ready(local, id, head);
    if let Some(budget) = local.budgets.get_mut(id as usize)
        && budget.is_limited()
        && !budget.is_spent()
    {
        budget.order = WOKEN;
    }
}

/// Whether one that woke takes the CPU from an equal: it has been promised time, and has had less of its own than the
/// other of its. One that is promised nothing gives way; one that wakes without end uses up what it has.
fn goes_before<M: Machine>(local: &Local<M>, woken: BudgetId, now: Ticks) -> bool {
    let (mine, theirs) = (&local.budgets[local.budget as usize % BUDGETS], &local.budgets[woken as usize % BUDGETS]);
    if theirs.raised != mine.raised || theirs.order != WOKEN {
        return false;
    }
    let left = mine.left.saturating_sub(now.saturating_sub(local.since) as i64);
    !mine.is_limited() || i128::from(theirs.left) * i128::from(mine.time) > i128::from(left) * i128::from(theirs.time)
}

/// Whether the vCPU that runs may not keep the CPU while it waits: others can run, or it would pay for its sleep.
#[inline]
fn wants_cpu<M: Machine>(local: &mut Local<M>) {
    let others = local.ready & !bit(local.budget) != 0;
    let limited = local.budgets.get(local.budget as usize).is_some_and(Budget::is_limited);
    if let Running::Vcpu(index) = local.running {
        let vcpu = local.vcpus.at_mut(index);
        vcpu.context.trap_wait(others || limited || vcpu.step.is_active());
    }
}

/// Nothing runs on a budget until it is made ready again. Its period goes on, or it would never be refilled.
pub fn retire<M: Machine>(local: &mut Local<M>, id: BudgetId) {
    local.ready &= !bit(id);
    local.timed &= !bit(id);
    local.budgets[id as usize].head = Running::Idle;
}

/// A budget's owner is gone.
pub fn forget<M: Machine>(local: &mut Local<M>, id: BudgetId) {
    retire(local, id);
    local.refilling &= !bit(id);
    local.budgets[id as usize] = Budget::EMPTY;
}

/// What runs is over; whoever is made ready on its budget after this keeps it.
#[inline(always)]
pub fn leave<M: Machine>(local: &mut Local<M>) {
    if local.budget != NO_BUDGET {
        retire(local, local.budget);
    }
    local.running = Running::Idle;
}

/// Another budget pays for a thread from now on: the one that paid is its owner's no longer.
pub fn pay_from<M: Machine>(local: &mut Local<M>, thread: u16, heir: BudgetId) {
    let lent = core::mem::replace(&mut local.threads.at_mut(thread).budget, heir);
    // At the priority it worked at until now, not at that of its own start.
    let raised = local.budgets[lent as usize % BUDGETS].raised;
    local.budgets[heir as usize % BUDGETS].raised = raised;
    if local.running == Running::Thread(thread) {
        retire(local, local.budget);
        local.budget = heir;
        local.ready |= bit(heir);
    } else if local.threads.at(thread).state == ThreadState::Ready {
        if local.budgets[lent as usize % BUDGETS].head == Running::Thread(thread) {
            retire(local, lent);
        }
        ready(local, heir, Running::Thread(thread));
    }
}

/// The budget with the highest priority that has waited longest.
#[cfg_attr(target_os = "none", optimize(speed))]
fn pick<M: Machine>(local: &Local<M>) -> Option<BudgetId> {
    let mut rest = local.ready;
    let mut best: Option<(u8, u64, BudgetId)> = None;
    while rest != 0 {
        let id = rest.trailing_zeros() as BudgetId;
        rest &= rest - 1;
        let budget = &local.budgets[id as usize % BUDGETS];
        let better = match best {
            None => true,
            Some((priority, order, _)) => {
                budget.raised > priority || (budget.raised == priority && budget.order < order)
            }
        };
        if better {
            best = Some((budget.raised, budget.order, id));
        }
    }
    best.map(|(_, _, id)| id)
}

/// Charges the current budget for the time since it was last charged; refills where a period has begun.
#[cfg_attr(target_os = "none", optimize(speed))]
fn charge<M: Machine>(local: &mut Local<M>, now: Ticks) {
    let spent = now.saturating_sub(local.since);
    local.since = now;
    if let Some(budget) = local.budgets.get_mut(local.budget as usize) {
        budget.used += spent;
        if budget.is_limited() {
            if budget.refill_at == NEVER {
                budget.refill_at = now.saturating_sub(spent).saturating_add(budget.period);
                local.refilling |= bit(local.budget);
            }
            budget.left -= spent as i64;
        }
    }
}

/// Gives every budget whose period has begun its time again, less what it overran.
#[cfg_attr(target_os = "none", optimize(speed))]
fn refill<M: Machine>(local: &mut Local<M>, now: Ticks) {
    for id in each(local.refilling) {
        let budget = &mut local.budgets[id];
        if budget.refill_at > now {
            continue;
        }
        let was_spent = budget.is_spent();
        let period = budget.period.max(1);
        let periods = (now - budget.refill_at) / period + 1;
        let time = budget.time as i64;
        budget.left = budget.left.saturating_add(time.saturating_mul(periods.min(1 << 32) as i64)).min(time);
        budget.refill_at = budget.refill_at.saturating_add(periods.saturating_mul(period));
        let runnable = budget.head != Running::Idle && budget.alive;
        if budget.left == budget.time as i64 && local.ready & bit(id as BudgetId) == 0 {
            budget.refill_at = NEVER;
            local.refilling &= !bit(id as BudgetId);
        }
        if was_spent && !budget.is_spent() && runnable && is_runnable(local, local.budgets[id].head) {
            local.ready |= bit(id as BudgetId);
        }
    }
}

/// Whether what is on a budget could run.
#[inline(always)]
fn is_runnable<M: Machine>(local: &Local<M>, head: Running) -> bool {
    match head {
        Running::Idle => false,
        Running::Thread(index) => local.threads.at(index).state == ThreadState::Ready,
        Running::Vcpu(index) => local.vcpus.at(index).state == VcpuState::Running,
    }
}

/// What runs goes on unless something better can: after anything that may have made others ready.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn go_on<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let current = local.budget;
    if current == NO_BUDGET || local.running == Running::Idle {
        return choose(local, shared, machine);
    }
    if !is_runnable(local, local.running) {
        // It was stopped or destroyed from another CPU meanwhile.
        return block_as(local, shared, machine, Running::Idle);
    }
    if local.overdue && !is_lent(local) {
        // Its server has answered: what it ran over its budget begins to count now.
        let now = machine.now();
        charge(local, now);
        local.overdue = false;
        if local.budgets[current as usize % BUDGETS].is_spent() {
            let running = local.running;
            local.ready &= !bit(current);
            ready(local, current, running);
            return choose(local, shared, machine);
        }
    }
    if local.ready & !bit(current) == 0 {
        return enter(local, shared, machine);
    }
    let mine = local.budgets[current as usize].raised;
    match pick(local) {
        Some(id) if id != current && (local.budgets[id as usize].raised > mine || goes_before(local, id, machine.now())) => {
            let running = local.running;
            ready(local, current, running);
            let now = machine.now();
            charge(local, now);
            switch_to(local, shared, machine, id, now)
        }
        _ => {
            if local.slice_end == NEVER {
                // It was alone when its turn began, and is not any more.
                local.slice_end = machine.now().saturating_add(SLICE_MS * machine.hertz() / 1000);
                set_alarm(local, machine);
            }
            enter(local, shared, machine)
        }
    }
}

/// [`go_on`] for a vCPU that may have got a line just now: the common case enters it without looking for others.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn go_on_fresh<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    if local.ready & !bit(local.budget) == 0 && local.running != Running::Idle {
        return enter(local, shared, machine);
    }
    go_on(local, shared, machine)
}

/// What runs cannot go on; its budget keeps it for later.
#[inline(always)]
pub fn block<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let running = local.running;
    block_as(local, shared, machine, running)
}

/// The current budget stops with this on it.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn block_as<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, head: Running) -> Next {
    let current = local.budget;
    if current != NO_BUDGET {
        local.ready &= !bit(current);
        local.budgets[current as usize].head = head;
    }
    local.running = Running::Idle;
    choose(local, shared, machine)
}

/// Lets others of the same priority run.
pub fn yield_now<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let (current, running) = (local.budget, local.running);
    if current != NO_BUDGET {
        ready(local, current, running);
    }
    choose(local, shared, machine)
}

/// Switches to the best budget.
#[cfg_attr(target_os = "none", optimize(speed))]
fn choose<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let now = machine.now();
    charge(local, now);
    refill(local, now);
    let Some(id) = pick(local) else {
        patience::rest(local);
        local.budget = NO_BUDGET;
        local.running = Running::Idle;
        local.slice_end = NEVER;
        set_alarm(local, machine);
        if local.retiring != 0 {
            retire::go_on(local, shared, machine);
        }
        return Next::Idle;
    };
    local.looks.begin(now);
    switch_to(local, shared, machine, id, now)
}

/// Makes a budget the one that pays, until its slice ends.
#[cfg_attr(target_os = "none", optimize(speed))]
fn switch_to<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, id: BudgetId, now: Ticks,
) -> Next {
    local.running = local.budgets[id as usize].head;
    begin_turn(local, machine, id, now);
    enter(local, shared, machine)
}

/// Whether a thread waits on its own budget, and that is better than what pays now.
#[inline(always)]
pub fn may_overtake<M: Machine>(local: &Local<M>, thread: u16) -> bool {
    let target = local.threads.at(thread).budget;
    let (Some(theirs), Some(mine)) = (local.budgets.get(target as usize), local.budgets.get(local.budget as usize)) else {
        return false;
    };
    theirs.raised > mine.raised && !theirs.is_spent() && theirs.alive && target == thread
}

/// A thread that [`may_overtake`] takes over from what runs at once.
#[inline(always)]
pub fn overtake<M: Machine>(local: &mut Local<M>, machine: &mut M, thread: u16) {
    local.turn += 1;
    let (order, running) = (local.turn, local.running);
    if let Some(budget) = local.budgets.get_mut(local.budget as usize) {
        budget.head = running;
        budget.order = order;
    }
    local.timed &= !bit(thread);
    let now = machine.now();
    charge(local, now);
    local.running = Running::Thread(thread);
    begin_turn(local, machine, thread, now);
}

/// Whether a vCPU is the next as soon as the thread that runs waits, which is paid by its own budget.
#[inline(always)]
pub fn may_follow<M: Machine>(local: &mut Local<M>, index: u16) -> bool {
    let (mine, theirs) = (local.thread() as usize % THREADS, THREADS + index as usize % VCPUS);
    if local.budget as usize != mine || local.budgets[theirs].head != Running::Vcpu(index) {
        return false;
    }
    let (threads, vcpus) = (local.ready as u64 & !(1 << mine), (local.ready >> 64) as u64);
    threads == 0 && vcpus == 1 << index || is_best_of(local, local.ready & !bit(mine as BudgetId), index)
}

/// Whether a vCPU's budget is the best of these. Others can run as well then: it may not keep the CPU while it waits.
#[cfg_attr(target_os = "none", optimize(speed))]
#[inline(never)]
fn is_best_of<M: Machine>(local: &mut Local<M>, these: u128, index: u16) -> bool {
    let ready = core::mem::replace(&mut local.ready, these);
    let best = pick(local);
    local.ready = ready;
    local.vcpus.at_mut(index).context.trap_wait(true);
    best == Some(THREADS as BudgetId + index)
}

/// The thread that runs waits, and a vCPU that [`may_follow`] goes on.
#[inline(always)]
pub fn follow<M: Machine>(local: &mut Local<M>, machine: &mut M, index: u16) {
    let mine = local.thread() as usize % THREADS;
    local.ready &= !bit(mine as BudgetId);
    local.budgets[mine].head = local.running;
    let now = machine.now();
    charge(local, now);
    local.running = Running::Vcpu(index);
    begin_turn(local, machine, THREADS as BudgetId + index, now);
}

/// From now on this budget pays, until its slice ends.
#[cfg_attr(target_os = "none", optimize(speed))]
fn begin_turn<M: Machine>(local: &mut Local<M>, machine: &mut M, id: BudgetId, now: Ticks) {
    let Some(budget) = local.budgets.get_mut(id as usize) else { return };
    local.overdue = false;
    local.budget = id;
    let alone = local.ready & !bit(id) == 0;
    local.ready |= bit(id);
    // It has had its turn: whoever waits longer now comes before it among equals, and who wakes even more so.
    budget.order = local.turn;
    let slice = SLICE_MS * machine.hertz() / 1000;
    local.slice_end = match budget.is_limited() {
        true => now.saturating_add(budget.left.max(0) as u64).min(now + slice),
        false if alone => NEVER,
        false => now + slice,
    };
    set_alarm(local, machine);
}

/// Enters what runs.
#[cfg_attr(target_os = "none", optimize(speed))]
pub(crate) fn enter<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    match local.running {
        Running::Idle => Next::Idle,
        Running::Thread(index) => Next::Thread(index),
        Running::Vcpu(index) => {
            wants_cpu(local);
            vcpu::enter(local, shared, machine, index)
        }
    }
}

/// Sets the clock to the first of all deadlines.
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn set_alarm<M: Machine>(local: &mut Local<M>, machine: &mut M) {
    let mut first = local.slice_end.min(local.looks.next);
    for id in each(local.timed) {
        first = first.min(local.deadlines[id]);
    }
    for id in each(local.refilling) {
        first = first.min(local.budgets[id].refill_at);
    }
    if first != local.alarm {
        local.alarm = first;
        machine.wake_at(first);
    }
}

/// Forgets the deadline of a budget's owner.
pub fn clear_deadline<M: Machine>(local: &mut Local<M>, id: BudgetId) {
    local.timed &= !bit(id);
}

/// Notes a deadline of a budget's owner (a thread that waits may run on another's budget; the deadline is its own).
#[cfg_attr(target_os = "none", optimize(speed))]
pub fn set_deadline<M: Machine>(local: &mut Local<M>, machine: &mut M, id: BudgetId, deadline: Ticks) {
    local.deadlines[id as usize] = deadline;
    local.timed |= bit(id);
    if deadline < local.alarm {
        local.alarm = deadline;
        machine.wake_at(deadline);
    }
}

/// The clock reached the alarm: waits end, budgets refill, slices end.
pub fn alarm<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Next {
    let now = machine.now();
    local.alarm = NEVER;
    for id in each(local.timed) {
        if local.deadlines[id] <= now {
            local.timed &= !bit(id as BudgetId);
            owner_due(local, id as BudgetId);
        }
    }
    charge(local, now);
    refill(local, now);
    patience::look(local, shared, machine, now);
    let current = local.budget;
    if current != NO_BUDGET && local.running != Running::Idle {
        let over = local.slice_end <= now;
        let spent = local.budgets[current as usize].is_spent();
        let lent = is_lent(local);
        if over && !(spent && lent) {
            let running = local.running;
            local.ready &= !bit(current);
            ready(local, current, running);
            return choose(local, shared, machine);
        }
        if over {
            // A server in the middle of lent work is not stopped; its answer is where the budget's owner stops.
            local.overdue = true;
            local.slice_end = now + machine.hertz() / 20_000;
        }
    }
    set_alarm(local, machine);
    go_on(local, shared, machine)
}

/// The deadline of a budget's owner passed: a thread's wait ends, a vCPU's timer is due.
fn owner_due<M: Machine>(local: &mut Local<M>, id: BudgetId) {
    if (id as usize) < THREADS {
        let thread = local.threads.at_mut(id);
        if thread.state == ThreadState::Waiting {
            use crate::machine::ThreadContext;
            thread.state = ThreadState::Ready;
            thread.entry = Entry::Parked;
            thread.context.set_return([0, 0, 0]);
            let budget = thread.budget;
            ready(local, budget, Running::Thread(id));
        }
    } else {
        vcpu::timer_while_away(local, id - THREADS as BudgetId);
    }
}
