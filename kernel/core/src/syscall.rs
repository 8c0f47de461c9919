// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of operations, and those that make, map and pass on objects.

use crate::cap::{Cap, CapWord};
use crate::domain::Domain;
use crate::frame::{MapName, Use};
use crate::guest::{self, Guest};
use crate::local::{Local, Running, THREADS, VCPUS};
use crate::machine::{Machine, ThreadContext, VcpuContext};
use crate::pool::{Empty, Id};
use crate::portal::{self, Client, Portal};
use crate::remote;
use crate::schedule::{self, Budget};
use crate::shared::{DOMAINS, GUEST_VCPUS, GUESTS, GuestName, Shared};
use crate::signal;
use crate::table::{SLOTS, TableRange};
use crate::thread::{Entry, Thread, ThreadState};
use crate::trap::Next;
use crate::vcpu::{Route, Vcpu, VcpuState, WINDOWS, Window};
use crate::lines;
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, EXIT_CLASSES, ExitClass, Fact, Kind, Op, PAGE, PASSIVE, Refusal, Rights};

/// Priority at which a passive thread starts up, before it first waits.
const START_UP: u8 = 250;

/// The shortest period of a budget in microseconds.
const SHORTEST_PERIOD: u64 = 100;

/// Arguments and environment of an operation.
struct Call<'a, M: Machine> {
    local: &'a mut Local<M>,
    shared: &'a Shared,
    machine: &'a mut M,
    table: TableRange,
    a: &'a [u64; 6],
    /// The thread that asks, unless it is another CPU's.
    caller: Option<u16>,
}

/// Carries out an operation that is not decided at a hot door; its message words are parked in the caller's context.
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
        Some(Op::Wait) => signal::wait(local, shared, machine, a[0], a[1]),
        Some(Op::Exit) => Ok(portal::end(local, shared, machine, me, ThreadState::Ended)),
        Some(Op::Yield) => {
            local.threads.at_mut(me).context.set_return([0; 3]);
            Ok(schedule::yield_now(local, shared, machine))
        }
        Some(op) => {
            let table = local.threads.at(me).table;
            match (Call { local, shared, machine, table, a, caller: Some(me) }.perform(op)) {
                Ok(values) => {
                    local.threads.at_mut(me).context.set_return(values);
                    Ok(schedule::go_on(local, shared, machine))
                }
                Err(Refusal::WrongCpu) => {
                    let target = home_of(shared, table, op, a);
                    target.and_then(|cpu| remote::ask(local, shared, machine, cpu, number, a))
                }
                Err(refusal) => Err(refusal),
            }
        }
    };
    result.unwrap_or_else(|refusal| {
        local.threads.at_mut(me).context.set_return([refusal.to_register(), 0, 0]);
        local.running = Running::Thread(me);
        schedule::go_on(local, shared, machine)
    })
}

/// The CPU on which an operation that is not for this one must be done.
fn home_of(shared: &Shared, table: TableRange, op: Op, a: &[u64; 6]) -> Result<u16, Refusal> {
    match op {
        Op::ThreadCreate | Op::VcpuCreate => u16::try_from(a[1]).map_err(|_| Refusal::OutOfRange),
        _ => Ok(Id::<()>::from_word(shared.table.read(table, a[0]).name).home()),
    }
}

/// Does an operation for a thread of another CPU, with its domain's capability table.
pub(crate) fn perform_for<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, table: TableRange, number: u16, a: &[u64; 6],
) -> Done {
    match Op::from_number(number) {
        Some(op) => Call { local, shared, machine, table, a, caller: None }.perform(op),
        None => Err(Refusal::NoOperation),
    }
}

type Done = Result<[u64; 3], Refusal>;

fn one(value: u64) -> Done {
    Ok([value, 0, 0])
}

impl<M: Machine> Call<'_, M> {
    fn perform(&mut self, op: Op) -> Done {
        match op {
            Op::Signal => signal::signal(self.local, self.shared, self.machine, self.a[0]).and_then(one),
            Op::Clock => Ok([self.machine.now(), self.machine.hertz(), 0]),
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
            Op::PortalCreate => self.portal_create(),
            Op::SignalCreate => self.signal_create(),
            Op::Grant => self.grant(),
            Op::Drop => self.drop_capability(),
            Op::Revoke => self.revoke(),
            Op::GuestCreate => self.guest_create(),
            Op::GuestMap => self.guest_map(),
            Op::GuestUnmap => self.guest_change(None),
            Op::GuestProtect => self.guest_change(Some(Access(self.a[3] & 7))),
            Op::GuestRead => self.guest_copy(false),
            Op::GuestWrite => self.guest_copy(true),
            Op::GuestDestroy => self.guest_destroy(),
            Op::VcpuCreate => self.vcpu_create(),
            Op::VcpuRoute => self.vcpu_route(),
            Op::VcpuWindow => self.vcpu_window(),
            Op::VcpuGet => self.vcpu_get(),
            Op::VcpuSet => self.vcpu_set(),
            Op::VcpuStart => self.vcpu_start(),
            Op::VcpuReset => self.vcpu_reset(),
            Op::VcpuStop => self.vcpu_stop(),
            Op::VcpuException => self.vcpu_exception(),
            Op::LinesWrite | Op::LinesRead | Op::LinesPriority | Op::LinesPriorityRead | Op::LineTarget
            | Op::LinesEnable => self.lines(op),
            Op::LineBind => signal::line_bind(self.local, self.shared, self.machine, self.a[0], self.a[1]).and_then(one),
            Op::LineAck => signal::line_ack(self.local, self.shared, self.machine, self.a[0]).and_then(one),
            Op::LineCreate => self.line_create(),
            Op::SystemOff => self.system_off(),
            Op::Log => self.log(),
            Op::LogRead => self.log_read(),
            Op::Fact => self.fact(),
            Op::Call | Op::ReplyAndWait | Op::Forward | Op::Wait | Op::Exit | Op::Yield => Err(Refusal::NoOperation),
        }
    }

    fn cap(&self, argument: usize, kind: Kind, need: Rights) -> Result<Cap, Refusal> {
        self.shared.table.find(self.table, self.a[argument], kind, need)
    }

    fn put(&self, selector: u64, kind: Kind, rights: Rights, badge: u64, name: u64) -> Result<(), Refusal> {
        self.shared.table.put(self.table, selector, Cap { word: CapWord::new(kind, rights, badge), name })
    }

    // ── memory ──

    fn frames_split(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        self.shared.table.check_empty(self.table, self.a[3])?;
        let mut control = self.shared.control.lock();
        let part = control.runs.split(cap.name, self.a[1], self.a[2])?;
        let run = *control.runs.get(part)?;
        if !run.device && !run.constant {
            self.machine.zero(run.first, run.pages);
        }
        self.put(self.a[3], Kind::Frames, cap.word.rights(), 0, part)?;
        one(0)
    }

    fn frames_reclaim(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        let mut control = self.shared.control.lock();
        let run = *control.runs.get(cap.name)?;
        if run.use_ != Use::Memory || control.runs.has_parts(cap.name) {
            return Err(Refusal::BadState);
        }
        let range = run.first..run.first + run.pages;
        let here = self.local.cpu as usize;
        let elsewhere = self.shared.cpus.iter().enumerate().filter(|(cpu, _)| *cpu != here);
        // Message buffers of this CPU's threads are taken away below; those of others must go with their threads first.
        if elsewhere.flat_map(|(_, mail)| &mail.buffers).any(|page| range.contains(&page.load(Ordering::Acquire))) {
            return Err(Refusal::BadState);
        }
        let keep = Some((self.table, self.a[0]));
        self.shared.table.clear_name(Kind::Frames, cap.name, keep);
        for map in run.mapped() {
            match map {
                MapName::Domain(index) => {
                    let mut domain = self.shared.domains[index as usize % DOMAINS].lock();
                    let stale = domain.space.purge(self.machine, run.first, run.pages)?;
                    self.machine.invalidate(stale);
                }
                MapName::Guest(index) => {
                    let mut guest = self.shared.guests[index as usize % GUESTS].lock();
                    let stale = guest.space.purge(self.machine, run.first, run.pages)?;
                    self.machine.invalidate(stale);
                }
                MapName::None => {}
            }
            control.runs.get_mut(cap.name)?.forget(map);
        }
        for index in 0..THREADS as u16 {
            let thread = self.local.threads.at_mut(index);
            if range.contains(&thread.buffer) {
                thread.buffer = 0;
                self.shared.cpus[here].buffers[index as usize].store(0, Ordering::Release);
            }
        }
        if !run.device && !run.constant {
            self.machine.zero(run.first, run.pages);
        }
        one(0)
    }

    fn frames_info(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights(0))?;
        let control = self.shared.control.lock();
        let run = control.runs.get(cap.name)?;
        let first = if cap.word.rights().covers(Rights::CONTROL) { run.first } else { 0 };
        Ok([run.pages, first, u64::from(run.device)])
    }

    /// Takes a whole run for page tables.
    fn take_tables(&self, control: &mut crate::shared::Control, name: u64) -> Result<(u64, u64), Refusal> {
        let run = *control.runs.get(name)?;
        control.runs.check(name, 0, run.pages)?;
        if run.device || run.constant || run.mapped().next().is_some() {
            return Err(Refusal::BadArgument);
        }
        control.runs.get_mut(name)?.use_ = Use::Tables;
        Ok((run.first, run.pages))
    }

    /// A map is gone: its tables are memory again, without what stood in them, and no run is in it any more.
    fn give_tables_back(&mut self, control: &mut crate::shared::Control, tables: u64, map: MapName) {
        if let Ok(run) = control.runs.get_mut(tables) {
            run.use_ = Use::Memory;
            let (first, pages) = (run.first, run.pages);
            self.machine.zero(first, pages);
        }
        control.runs.forget_map(map);
    }

    /// What a mapping may allow, given the rights of the frames' capability.
    fn access_of(cap: Cap, wanted: u64, device: bool, constant: bool) -> Result<Access, Refusal> {
        if wanted & !7 != 0 {
            return Err(Refusal::BadArgument);
        }
        let held = (cap.word.rights().0 & 7) as u64;
        if wanted & !held != 0 || (constant && wanted & Access::WRITE.0 != 0) {
            return Err(Refusal::MissingRight);
        }
        Ok(if device { Access(wanted).with(Access::DEVICE) } else { Access(wanted) })
    }

    /// What any mapping of these frames may allow.
    fn most_of(cap: Cap, constant: bool) -> Access {
        let held = Access(u64::from(cap.word.rights().0 & 7));
        if constant { Access(held.0 & !Access::WRITE.0) } else { held }
    }

    // ── domains ──

    fn domain_create(&mut self) -> Done {
        let tables = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        let (count, rank) = (self.a[1], self.a[2]);
        if count == 0 || count > SLOTS as u64 || rank > 15 {
            return Err(Refusal::BadArgument);
        }
        self.shared.table.check_empty(self.table, self.a[3])?;
        let mut control = self.shared.control.lock();
        let first = control.next_slot;
        if first as u64 + count > SLOTS as u64 || control.domains.free() == 0 {
            return Err(Refusal::Quota);
        }
        let tag = control.take_tag().ok_or(Refusal::Quota)?;
        let (page, pages) = self.take_tables(&mut control, tables.name).inspect_err(|_| control.give_tag(tag))?;
        let space = crate::space::Space::new(self.machine, tag, page, pages)?;
        let id = control.domains.insert(Empty::EMPTY).ok_or(Refusal::Quota)?;
        control.next_slot = first + count as u32;
        let table = TableRange { first, count: count as u32 };
        *self.shared.domains[id.index() % DOMAINS].lock() =
            Domain { space, table, rank: rank as u8, tables: tables.name, threads: 0 };
        self.put(self.a[3], Kind::Domain, Rights::ALL, 0, id.0)?;
        one(0)
    }

    /// The index of a living domain.
    fn domain(&self, argument: usize, need: Rights) -> Result<usize, Refusal> {
        let cap = self.cap(argument, Kind::Domain, need)?;
        let control = self.shared.control.lock();
        let id = Id::from_word(cap.name);
        control.domains.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() % DOMAINS)
    }

    fn domain_map(&mut self) -> Done {
        let index = self.domain(0, Rights::EDIT)?;
        let (page, offset, count) = (self.a[1] / PAGE, self.a[3], self.a[4]);
        if !self.a[1].is_multiple_of(PAGE) {
            return Err(Refusal::BadArgument);
        }
        let cap = self.cap(2, Kind::Frames, Rights(0))?;
        let mut control = self.shared.control.lock();
        let frame = control.runs.check(cap.name, offset, count)?;
        let run = control.runs.get_mut(cap.name)?;
        let access = Self::access_of(cap, self.a[5], run.device, run.constant)?;
        if access.covers(Access::WRITE.with(Access::EXECUTE)) {
            return Err(Refusal::BadArgument);
        }
        run.can_note(MapName::Domain(index as u16))?;
        let mut domain = self.shared.domains[index].lock();
        let stale = domain.space.map(self.machine, page, frame, count, access)?;
        run.note(MapName::Domain(index as u16))?;
        if access.covers(Access::EXECUTE) {
            self.machine.copy(frame * PAGE, frame * PAGE, count * PAGE, true);
        }
        self.machine.invalidate(stale);
        one(0)
    }

    fn domain_unmap(&mut self) -> Done {
        let index = self.domain(0, Rights::EDIT)?;
        if !self.a[1].is_multiple_of(PAGE) {
            return Err(Refusal::BadArgument);
        }
        let mut domain = self.shared.domains[index].lock();
        let stale = domain.space.unmap(self.machine, self.a[1] / PAGE, self.a[2])?;
        self.machine.invalidate(stale);
        one(0)
    }

    fn domain_destroy(&mut self) -> Done {
        let cap = self.cap(0, Kind::Domain, Rights::CONTROL)?;
        let index = self.domain(0, Rights::CONTROL)?;
        if self.local.threads.at(self.local.thread()).domain as usize == index {
            return Err(Refusal::BadState);
        }
        let of = |local: &Local<M>, i: u16| {
            local.threads.name_at(i).0 != 0 && local.threads.at(i).domain as usize == index
        };
        let here = (0..THREADS as u16).filter(|i| of(self.local, *i)).count();
        if self.shared.domains[index].lock().threads as usize > here {
            // Those on other CPUs run in its map; they must be destroyed first.
            return Err(Refusal::BadState);
        }
        for i in 0..THREADS as u16 {
            if of(self.local, i) {
                self.remove_thread(i);
            }
        }
        let mut control = self.shared.control.lock();
        let mut domain = self.shared.domains[index].lock();
        for slot in 0..domain.table.count as u64 {
            self.shared.table.clear(domain.table, slot);
        }
        let stale = domain.space.clear(self.machine);
        self.machine.invalidate(stale);
        control.give_tag(domain.space.tag);
        self.give_tables_back(&mut control, domain.tables, MapName::Domain(index as u16));
        *domain = Domain::EMPTY;
        control.domains.remove(Id::from_word(cap.name));
        self.shared.table.clear_name(Kind::Domain, cap.name, None);
        one(0)
    }

    // ── threads ──

    fn thread_create(&mut self) -> Done {
        let index = self.domain(0, Rights::EDIT)?;
        let (cpu, priority, buffer, budget) = (self.a[1], self.a[2], self.a[4], self.a[5]);
        if cpu != self.local.cpu as u64 {
            return Err(Refusal::WrongCpu);
        }
        if (priority != PASSIVE && priority >= START_UP as u64) || !Self::is_budget(budget) {
            return Err(Refusal::BadArgument);
        }
        self.shared.table.check_empty(self.table, self.a[3])?;
        let domain = *self.shared.domains[index].lock();
        let mut thread = Thread::<M>::EMPTY;
        if buffer != 0 {
            let leaf = domain.space.find(self.machine, buffer / PAGE).ok_or(Refusal::NotMapped)?;
            if !leaf.access.covers(Access::WRITE) || leaf.access.covers(Access::DEVICE) {
                return Err(Refusal::BadArgument);
            }
            thread.buffer = leaf.page;
        }
        thread.table = domain.table;
        thread.rank = domain.rank;
        thread.domain = index as u16;
        thread.context.set_map(domain.space.tag, domain.space.root);
        let id = self.local.threads.insert(thread).ok_or(Refusal::Quota)?;
        let at = id.index() as u16;
        self.shared.domains[index].lock().threads += 1;
        self.local.threads.at_mut(at).budget = at;
        self.local.budgets[at as usize] =
            if priority == PASSIVE { Budget::new(START_UP, 0, 0) } else { self.budget(priority as u8, budget) };
        self.shared.publish(self.local.cpu, at, id.0);
        let buffer = self.local.threads.at(at).buffer;
        self.shared.cpus[self.local.cpu as usize].buffers[at as usize].store(buffer, Ordering::Release);
        self.put(self.a[3], Kind::Thread, Rights::ALL, 0, id.0)?;
        one(0)
    }

    /// Whether packed microseconds are a budget: none, or some time of a period that does not keep the clock busy.
    fn is_budget(packed: u64) -> bool {
        let (time, period) = (packed & 0xffff_ffff, packed >> 32);
        period == 0 || (period >= SHORTEST_PERIOD && time != 0 && time <= period)
    }

    /// A budget from its packed microseconds.
    fn budget(&self, priority: u8, packed: u64) -> Budget {
        let hertz = self.machine.hertz();
        let ticks = |us: u64| us * hertz / 1_000_000;
        Budget::new(priority, ticks(packed & 0xffff_ffff), ticks(packed >> 32))
    }

    /// The index of a living thread of this CPU.
    fn thread(&self, argument: usize, need: Rights) -> Result<u16, Refusal> {
        let cap = self.cap(argument, Kind::Thread, need)?;
        let id = Id::<Thread<M>>::from_word(cap.name);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.threads.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() as u16)
    }

    fn thread_start(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        let thread = self.local.threads.at_mut(index);
        if thread.state != ThreadState::New {
            return Err(Refusal::BadState);
        }
        thread.context.start(self.a[1], self.a[2], self.a[3]);
        thread.context.set_return([self.a[3], 0, 0]);
        thread.state = ThreadState::Ready;
        thread.entry = Entry::Parked;
        schedule::ready(self.local, index, Running::Thread(index));
        one(0)
    }

    fn thread_destroy(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        if self.caller == Some(index) {
            return Err(Refusal::BadState);
        }
        self.remove_thread(index);
        one(0)
    }

    fn remove_thread(&mut self, index: u16) {
        portal::dismiss(self.local, self.shared, self.machine, index, ThreadState::Ended);
        let id = self.local.threads.name_at(index);
        let domain = self.local.threads.at(index).domain as usize;
        let mut domain = self.shared.domains[domain % DOMAINS].lock();
        domain.threads = domain.threads.saturating_sub(1);
        drop(domain);
        self.shared.publish(self.local.cpu, index, 0);
        schedule::forget(self.local, index);
        portal::remove_all(self.local, id);
        self.local.threads.remove(id);
    }

    fn thread_record(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        Ok([0, self.local.threads.at(index).record(self.a[1])?, 0])
    }

    fn thread_supervise(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        let signal = self.cap(1, Kind::Signal, Rights::USE)?;
        self.local.threads.at_mut(index).supervisor = (Id::from_word(signal.name), signal.word.badge());
        one(0)
    }

    fn portal_create(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        self.shared.table.check_empty(self.table, self.a[2])?;
        let badge = self.a[1] & (u64::MAX >> 16);
        let thread = self.local.threads.name_at(index).0;
        let id = self.local.portals.insert(Portal { thread, badge }).ok_or(Refusal::Quota)?;
        self.put(self.a[2], Kind::Portal, Rights::ALL, 0, id.0)?;
        one(0)
    }

    fn signal_create(&mut self) -> Done {
        let cap = self.cap(0, Kind::Thread, Rights::CONTROL)?;
        if self.a[1] >> 48 != 0 || self.a[1] == 0 {
            return Err(Refusal::BadArgument);
        }
        self.put(self.a[2], Kind::Signal, Rights::ALL, self.a[1], cap.name)?;
        one(0)
    }

    // ── capabilities ──

    fn grant(&mut self) -> Done {
        let cap = self.shared.table.read(self.table, self.a[0]);
        if cap.word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        if !cap.word.rights().covers(Rights::GRANT) {
            return Err(Refusal::MissingRight);
        }
        let index = self.domain(1, Rights::EDIT)?;
        let to = self.shared.domains[index].lock().table;
        let _control = self.shared.control.lock();
        self.shared.table.put(to, self.a[2], Cap { word: cap.word.shrink(Rights(self.a[3] as u8)), name: cap.name })?;
        one(0)
    }

    fn drop_capability(&mut self) -> Done {
        if self.shared.table.read(self.table, self.a[0]).word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        let _control = self.shared.control.lock();
        self.shared.table.clear(self.table, self.a[0]);
        one(0)
    }

    fn revoke(&mut self) -> Done {
        let cap = self.shared.table.read(self.table, self.a[0]);
        if cap.word.0 == 0 {
            return Err(Refusal::NoCapability);
        }
        if !cap.word.rights().covers(Rights::CONTROL) {
            return Err(Refusal::MissingRight);
        }
        let _control = self.shared.control.lock();
        for kind in [Kind::Domain, Kind::Thread, Kind::Portal, Kind::Signal, Kind::Vcpu, Kind::Guest, Kind::Frames, Kind::Line] {
            if cap.word.is(kind, Rights(0)) {
                self.shared.table.clear_name(kind, cap.name, Some((self.table, self.a[0])));
            }
        }
        one(0)
    }

    // ── guests ──

    fn guest_create(&mut self) -> Done {
        let tables = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        if self.a[1] != 1 {
            return Err(Refusal::Unsupported);
        }
        self.shared.table.check_empty(self.table, self.a[2])?;
        let mut control = self.shared.control.lock();
        if control.guests.free() == 0 {
            return Err(Refusal::Quota);
        }
        let tag = control.take_tag().ok_or(Refusal::Quota)?;
        let (page, pages) = self.take_tables(&mut control, tables.name).inspect_err(|_| control.give_tag(tag))?;
        let space = crate::space::Space::new(self.machine, tag, page, pages)?;
        let id = control.guests.insert(Empty::EMPTY).ok_or(Refusal::Quota)?;
        *self.shared.guests[id.index() % GUESTS].lock() = Guest { space, tables: tables.name, vcpus: 0, most: Guest::ANY };
        self.put(self.a[2], Kind::Guest, Rights::ALL, 0, id.0)?;
        one(0)
    }

    /// The index of a living guest.
    fn guest(&self, argument: usize, need: Rights) -> Result<usize, Refusal> {
        let cap = self.cap(argument, Kind::Guest, need)?;
        let control = self.shared.control.lock();
        let id = Id::<GuestName>::from_word(cap.name);
        control.guests.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() % GUESTS)
    }

    /// Splits view and page; only view 0 is there yet.
    fn page_of(word: u64) -> Result<u64, Refusal> {
        if word >> 56 == 0 { Ok(word) } else { Err(Refusal::OutOfRange) }
    }

    fn guest_map(&mut self) -> Done {
        let guest = self.cap(0, Kind::Guest, Rights::EDIT)?;
        let page = Self::page_of(self.a[1])?;
        let cap = self.cap(2, Kind::Frames, Rights(0))?;
        let mut control = self.shared.control.lock();
        let id = Id::<GuestName>::from_word(guest.name);
        control.guests.get(id).ok_or(Refusal::Gone)?;
        let index = id.index() % GUESTS;
        let frame = control.runs.check(cap.name, self.a[3], self.a[4])?;
        let run = control.runs.get_mut(cap.name)?;
        let access = Self::access_of(cap, self.a[5], run.device, run.constant)?;
        run.can_note(MapName::Guest(index as u16))?;
        // The control lock is kept: nobody may take the run back between the check and the mapping.
        let mut guest = self.shared.guests[index].lock();
        let stale = guest.space.map(self.machine, page, frame, self.a[4], access)?;
        run.note(MapName::Guest(index as u16))?;
        guest.most = Access(guest.most.0 & Self::most_of(cap, run.constant).0);
        self.machine.invalidate(stale);
        one(0)
    }

    fn guest_change(&mut self, access: Option<Access>) -> Done {
        let index = self.guest(0, Rights::EDIT)?;
        let page = Self::page_of(self.a[1])?;
        let mut guest = self.shared.guests[index].lock();
        // Which leaf came with which right is not known: what one of them may not, none gets later.
        if access.is_some_and(|access| !guest.most.covers(access)) {
            return Err(Refusal::MissingRight);
        }
        let stale = match access {
            None => guest.space.unmap(self.machine, page, self.a[2])?,
            Some(access) => guest.space.protect(self.machine, page, self.a[2], access)?,
        };
        self.machine.invalidate(stale);
        one(0)
    }

    fn guest_copy(&mut self, write: bool) -> Done {
        let index = self.guest(0, if write { Rights::WRITE } else { Rights::READ })?;
        let mine = self.local.threads.at(self.local.thread()).domain as usize % DOMAINS;
        let own = self.shared.domains[mine].lock().space;
        let guest = self.shared.guests[index].lock();
        let (there, here, bytes) = (self.a[1], self.a[2], self.a[3]);
        // A server may write where its guest may not (a protected page), but not where the frames allow it to nobody.
        let need = if guest.most.covers(Access::WRITE) { Access(0) } else { Access::WRITE };
        let copied = if write {
            let to = (&guest.space, there, need);
            guest::copy(self.machine, to, (&own, here, Access::READ), bytes, true)?
        } else {
            let from = (&guest.space, there, Access(0));
            guest::copy(self.machine, (&own, here, Access::WRITE), from, bytes, false)?
        };
        one(copied)
    }

    fn guest_destroy(&mut self) -> Done {
        let cap = self.cap(0, Kind::Guest, Rights::CONTROL)?;
        let index = self.guest(0, Rights::CONTROL)?;
        let of = |local: &Local<M>, i: u16| {
            local.vcpus.name_at(i).0 != 0 && local.vcpus.at(i).guest as usize == index
        };
        let here = (0..VCPUS as u16).filter(|i| of(self.local, *i)).count();
        if self.shared.guests[index].lock().vcpus as usize > here {
            // Those on other CPUs run in its map.
            return Err(Refusal::BadState);
        }
        for i in 0..VCPUS as u16 {
            if of(self.local, i) {
                self.remove_vcpu(i);
            }
        }
        let mut control = self.shared.control.lock();
        let mut guest = self.shared.guests[index].lock();
        let stale = guest.space.clear(self.machine);
        self.machine.invalidate(stale);
        control.give_tag(guest.space.tag);
        self.give_tables_back(&mut control, guest.tables, MapName::Guest(index as u16));
        *guest = Guest::EMPTY;
        control.guests.remove(Id::from_word(cap.name));
        self.shared.table.clear_name(Kind::Guest, cap.name, None);
        one(0)
    }

    // ── vCPUs ──

    fn vcpu_create(&mut self) -> Done {
        let guest = self.guest(0, Rights::CONTROL)?;
        let (cpu, number, priority) = (self.a[1], self.a[2], self.a[4]);
        if cpu != self.local.cpu as u64 {
            return Err(Refusal::WrongCpu);
        }
        if number >= GUEST_VCPUS as u64 || priority >= START_UP as u64 || !Self::is_budget(self.a[5]) {
            return Err(Refusal::BadArgument);
        }
        self.shared.table.check_empty(self.table, self.a[3])?;
        let mut record = self.shared.guests[guest].lock();
        let mut vcpu = Vcpu::<M>::EMPTY;
        vcpu.guest = guest as u16;
        vcpu.number = number as u8;
        vcpu.context.set_map(record.space.tag, record.space.root, number as u8);
        vcpu.context.reset();
        let id = self.local.vcpus.insert(vcpu).ok_or(Refusal::Quota)?;
        record.vcpus += 1;
        let at = id.index() as u16;
        self.local.vcpus.at_mut(at).index = at;
        let mail = &self.shared.vcpus[guest % GUESTS][number as usize % GUEST_VCPUS];
        mail.pending.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        mail.name.store(id.0, Ordering::Release);
        self.local.budgets[THREADS + at as usize] = self.budget(priority as u8, self.a[5]);
        self.put(self.a[3], Kind::Vcpu, Rights::ALL, 0, id.0)?;
        one(0)
    }

    fn remove_vcpu(&mut self, index: u16) {
        let own = Client::Vcpu(self.local.vcpus.name_at(index).0, self.local.vcpus.at(index).turn);
        portal::orphan(self.local, own);
        portal::leave_queue(self.local, own);
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.turn = vcpu.turn.wrapping_add(1);
        vcpu.state = VcpuState::Stopped;
        let budget = vcpu.budget();
        let mail = &self.shared.vcpus[vcpu.guest as usize % GUESTS][vcpu.number as usize % GUEST_VCPUS];
        mail.name.store(0, Ordering::Release);
        self.machine.unload(&mut vcpu.context);
        let mut guest = self.shared.guests[vcpu.guest as usize % GUESTS].lock();
        guest.vcpus = guest.vcpus.saturating_sub(1);
        drop(guest);
        schedule::forget(self.local, budget);
        let id = self.local.vcpus.name_at(index);
        self.local.vcpus.remove(id);
    }

    /// The index of a living vCPU of this CPU.
    fn vcpu(&self, need: Rights) -> Result<u16, Refusal> {
        let cap = self.cap(0, Kind::Vcpu, need)?;
        let id = Id::<Vcpu<M>>::from_word(cap.name);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.vcpus.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() as u16)
    }

    /// The same, when nothing of it is in the hardware: registers can be read and written in its context.
    fn still_vcpu(&mut self, need: Rights) -> Result<u16, Refusal> {
        let index = self.vcpu(need)?;
        if matches!(self.local.vcpus.at(index).state, VcpuState::Running | VcpuState::Waiting) {
            return Err(Refusal::BadState);
        }
        self.machine.unload(&mut self.local.vcpus.at_mut(index).context);
        Ok(index)
    }

    fn vcpu_route(&mut self) -> Done {
        let index = self.vcpu(Rights::CONTROL)?;
        if self.a[1] >= EXIT_CLASSES as u64 {
            return Err(Refusal::OutOfRange);
        }
        let portal = self.cap(2, Kind::Portal, Rights::USE)?;
        let id = Id::<Portal>::from_word(portal.name);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.portals.get(id).ok_or(Refusal::Gone)?;
        self.local.vcpus.at_mut(index).routes[self.a[1] as usize % EXIT_CLASSES] =
            Route { portal: portal.name, badge: self.a[4] & (u64::MAX >> 16), groups: self.a[3] };
        one(0)
    }

    fn vcpu_window(&mut self) -> Done {
        let index = self.vcpu(Rights::CONTROL)?;
        let (slot, first, count, class) = (self.a[1], self.a[2], self.a[3], self.a[4]);
        if slot >= WINDOWS as u64 || ExitClass::from_number(class).is_none() || first.checked_add(count).is_none() {
            return Err(Refusal::OutOfRange);
        }
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.windows[slot as usize % WINDOWS] = Window { first, count, class: class as u8 };
        vcpu.window_count = vcpu.window_count.max(slot as u8 + 1);
        one(0)
    }

    fn vcpu_get(&mut self) -> Done {
        let index = self.still_vcpu(Rights::READ)?;
        Ok([0, self.local.vcpus.at(index).context.get(self.a[1])?, 0])
    }

    fn vcpu_set(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        self.local.vcpus.at_mut(index).context.set(self.a[1], self.a[2])?;
        one(0)
    }

    fn vcpu_start(&mut self) -> Done {
        let index = self.vcpu(Rights::EXECUTE)?;
        let vcpu = self.local.vcpus.at_mut(index);
        if vcpu.state != VcpuState::Stopped {
            return Err(Refusal::BadState);
        }
        vcpu.state = VcpuState::Running;
        vcpu.stop_wanted = false;
        vcpu.hazard = true;
        let budget = vcpu.budget();
        schedule::ready(self.local, budget, Running::Vcpu(index));
        one(0)
    }

    fn vcpu_reset(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        if self.local.vcpus.at(index).state != VcpuState::Stopped {
            return Err(Refusal::BadState);
        }
        self.local.vcpus.at_mut(index).context.reset();
        lines::reset(self.local, self.machine, index);
        one(0)
    }

    fn vcpu_stop(&mut self) -> Done {
        let index = self.vcpu(Rights::EXECUTE)?;
        let vcpu = self.local.vcpus.at_mut(index);
        match vcpu.state {
            VcpuState::Awaiting | VcpuState::Queued => self.cancel_exit(index),
            VcpuState::Running | VcpuState::Waiting => {
                vcpu.state = VcpuState::Stopped;
                let budget = vcpu.budget();
                schedule::retire(self.local, budget);
            }
            VcpuState::Stopped => {}
        }
        one(0)
    }

    /// Stops a vCPU in the middle of an exit. Its server's answer will find nobody, and is paid by the server itself
    /// from here on; a server that stops the vCPU it serves just now answers first.
    fn cancel_exit(&mut self, index: u16) {
        let own = Client::Vcpu(self.local.vcpus.name_at(index).0, self.local.vcpus.at(index).turn);
        if self.local.threads.at(self.local.thread()).client == own {
            let vcpu = self.local.vcpus.at_mut(index);
            vcpu.stop_wanted = true;
            // The hot door of answers looks at this alone.
            vcpu.hazard = true;
            return;
        }
        portal::orphan(self.local, own);
        portal::leave_queue(self.local, own);
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.turn = vcpu.turn.wrapping_add(1);
        vcpu.state = VcpuState::Stopped;
        let budget = vcpu.budget();
        schedule::retire(self.local, budget);
    }

    fn vcpu_exception(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        self.local.vcpus.at_mut(index).context.exception(self.a[1], self.a[2]);
        one(0)
    }

    fn lines(&mut self, op: Op) -> Done {
        let index = self.vcpu(Rights::LINES)?;
        let a = self.a;
        let (local, machine) = (&mut *self.local, &mut *self.machine);
        match op {
            Op::LinesWrite => lines::write(local, machine, index, a[1], a[2], a[3], a[4]),
            Op::LinesRead => lines::read(local, machine, index, a[1], a[2]),
            Op::LinesPriority => lines::write_priority(local, index, a[1], a[2], a[3]),
            Op::LinesPriorityRead => lines::read_priority(local, index, a[1]),
            Op::LinesEnable => lines::forward(local, machine, index, a[1]),
            _ => Err(Refusal::Unsupported),
        }
        .and_then(one)
    }

    // ── the machine ──

    fn line_create(&mut self) -> Done {
        self.cap(0, Kind::System, Rights::CONTROL)?;
        // Software and private lines are the kernel's own; they are never handed out.
        if !(32..1020).contains(&self.a[1]) {
            return Err(Refusal::OutOfRange);
        }
        self.put(self.a[2], Kind::Line, Rights::ALL, 0, self.a[1])?;
        one(0)
    }

    fn system_off(&mut self) -> Done {
        self.cap(0, Kind::System, Rights::CONTROL)?;
        self.machine.power(self.a[1] == 1);
        Err(Refusal::Unsupported)
    }

    fn buffer(&self) -> Result<u64, Refusal> {
        match self.local.threads.at(self.local.thread()).buffer {
            0 => Err(Refusal::NotMapped),
            page => Ok(page * PAGE),
        }
    }

    fn log(&mut self) -> Done {
        if self.a[0] > PAGE {
            return Err(Refusal::OutOfRange);
        }
        let buffer = self.buffer()?;
        self.machine.log(buffer, self.a[0]);
        one(0)
    }

    fn log_read(&mut self) -> Done {
        self.cap(0, Kind::System, Rights::READ)?;
        let buffer = self.buffer()?;
        one(self.machine.log_read(buffer, PAGE))
    }

    fn fact(&mut self) -> Done {
        if self.a[1] != Fact::IdRegister as u64 {
            self.cap(0, Kind::System, Rights::READ)?;
        }
        let value = match self.a[1] {
            w if w == Fact::SharedWrites as u64 => self.local.shared_writes,
            w if w == Fact::FreeNames as u64 => self.free_names(self.a[2])?,
            which => self.machine.fact(which, self.a[2])?,
        };
        Ok([0, value, 0])
    }

    fn free_names(&self, kind: u64) -> Result<u64, Refusal> {
        let control = self.shared.control.lock();
        Ok(match kind {
            k if k == Kind::Domain as u64 => control.domains.free(),
            k if k == Kind::Guest as u64 => control.guests.free(),
            k if k == Kind::Frames as u64 => control.runs.pool.free(),
            k if k == Kind::Thread as u64 => self.local.threads.free(),
            k if k == Kind::Vcpu as u64 => self.local.vcpus.free(),
            k if k == Kind::Portal as u64 => self.local.portals.free(),
            _ => return Err(Refusal::BadArgument),
        } as u64)
    }
}
