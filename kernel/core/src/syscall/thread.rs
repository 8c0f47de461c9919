// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on threads, their portals and their signals.

use super::{Call, Done, START_UP};
use crate::cap::{Cap, CapWord};
use crate::float;
use crate::frame::Use;
use crate::local::Running;
use crate::machine::{Machine, ThreadContext};
use crate::patience;
use crate::pool::{Empty, Id};
use crate::portal::{self, Portal};
use crate::remote;
use crate::schedule::{self, Budget};
use crate::shared::DOMAINS;
use crate::thread::{Entry, Thread, ThreadState};
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, Kind, PAGE, PASSIVE, Refusal, Rights};

/// The shortest period of a budget in microseconds.
const SHORTEST_PERIOD: u64 = 100;

impl<M: Machine> Call<'_, M> {
    pub(super) fn thread_create(&mut self) -> Done {
        let (cpu, priority, buffer, budget) = (self.a[1], self.a[2], self.a[4], self.a[5]);
        self.domain(0, Rights::EDIT)?;
        self.check_time(cpu, if priority == PASSIVE { 0 } else { priority }, budget)?;
        let control = self.shared.control.lock();
        let index = self.domain_in(&control, 0, Rights::EDIT)?;
        self.check_empty(self.table, self.a[3])?;
        // Its lock is kept: nobody may take the buffer's page back before others can see that it is one.
        let mut domain = self.shared.domains[index].lock();
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
        domain.cpus |= 1 << self.local.cpu;
        self.local.threads.at_mut(at).budget = at;
        self.local.budgets[at as usize] =
            if priority == PASSIVE { Budget::new(START_UP, 0, 0) } else { self.budget(priority as u8, budget) };
        self.shared.publish(self.local.cpu, at, id.0);
        let buffer = self.local.threads.at(at).buffer;
        self.shared.cpus[self.local.cpu as usize].buffers[at as usize].store(buffer, Ordering::Release);
        drop(domain);
        self.put(&control, self.a[3], Kind::Thread, Rights::ALL, id.0)?;
        Ok(0)
    }

    /// Whether something with this priority and budget can be made on this CPU.
    pub(super) fn check_time(&self, cpu: u64, priority: u64, budget: u64) -> Result<(), Refusal> {
        if cpu != self.local.cpu as u64 {
            return Err(Refusal::WrongCpu);
        }
        if priority >= START_UP as u64 || !Self::is_budget(budget) {
            return Err(Refusal::BadArgument);
        }
        Ok(())
    }

    /// Whether packed microseconds are a budget: none, or some time of a period that does not keep the clock busy.
    fn is_budget(packed: u64) -> bool {
        let (time, period) = (packed & 0xffff_ffff, packed >> 32);
        period == 0 || (period >= SHORTEST_PERIOD && time != 0 && time <= period)
    }

    /// A budget from its packed microseconds.
    pub(super) fn budget(&self, priority: u8, packed: u64) -> Budget {
        let hertz = self.machine.hertz();
        let ticks = |us: u64| us * hertz / 1_000_000;
        Budget::new(priority, ticks(packed & 0xffff_ffff), ticks(packed >> 32))
    }

    /// The index of a living thread of this CPU.
    pub(super) fn thread(&self, argument: usize, need: Rights) -> Result<u16, Refusal> {
        let name = self.name(argument, Kind::Thread, need)?;
        let id = Id::<Thread<M>>::from_word(name);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.threads.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() as u16)
    }

    pub(super) fn thread_start(&mut self) -> Done {
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
        Ok(0)
    }

    pub(super) fn thread_destroy(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        if self.caller == Some(index) {
            return Err(Refusal::BadState);
        }
        self.remove_thread(index);
        Ok(0)
    }

    pub(super) fn remove_thread(&mut self, index: u16) {
        portal::dismiss(self.local, self.shared, self.machine, index, ThreadState::Ended);
        let id = self.local.threads.name_at(index);
        let domain = self.local.threads.at(index).domain;
        remote::retract(self.local, self.shared, self.machine, id);
        patience::forget(self.local, index);
        self.shared.publish(self.local.cpu, index, 0);
        schedule::forget(self.local, index);
        portal::remove_all(self.local, id);
        self.give_float_area(index);
        self.local.threads.remove(id);
        if !self.local.threads.names().any(|id| self.local.threads.at(id.index() as u16).domain == domain) {
            self.shared.domains[domain as usize % DOMAINS].lock().cpus &= !(1 << self.local.cpu);
        }
    }

    pub(super) fn thread_record(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        self.with(0, [self.local.threads.at(index).record(self.a[1])?, 0])
    }

    pub(super) fn thread_supervise(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        let signal = self.cap(1, Kind::Signal, Rights::USE)?;
        let patience = self.a[2];
        if patience != 0 && !(patience::SHORTEST..=patience::LONGEST).contains(&patience) {
            return Err(Refusal::BadArgument);
        }
        let hertz = self.machine.hertz();
        let ticks = patience / 1_000_000 * hertz + patience % 1_000_000 * hertz / 1_000_000;
        patience::set(self.local, self.machine, index, ticks);
        self.local.threads.at_mut(index).supervisor = (Id::from_word(signal.name), signal.word.badge());
        Ok(0)
    }

    /// Gives a thread a save area: from now on it may use floating-point registers.
    pub(super) fn thread_float(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        let frames = self.name(1, Kind::Frames, Rights::CONTROL)?;
        if self.local.threads.at(index).float.area != 0 {
            return Err(Refusal::Occupied);
        }
        let mut control = self.shared.control.lock();
        let run = *control.runs.get(frames)?;
        let area = control.runs.check(frames, 0, run.pages)?;
        if run.pages != 1 || run.device || run.constant || run.mapped().next().is_some() {
            return Err(Refusal::BadArgument);
        }
        control.runs.get_mut(frames)?.use_ = Use::Registers;
        self.machine.zero(area, 1);
        let thread = self.local.threads.at_mut(index);
        thread.float = float::State::new(0, area);
        thread.float_frames = frames;
        Ok(0)
    }

    /// A thread is gone: its save area is memory again, without what stood in it.
    fn give_float_area(&mut self, index: u16) {
        let thread = self.local.threads.at_mut(index);
        let (frames, area) = (core::mem::take(&mut thread.float_frames), thread.float.area);
        float::forget_thread(self.local, index);
        if area != 0 {
            let mut control = self.shared.control.lock();
            if let Ok(run) = control.runs.get_mut(frames) {
                run.use_ = Use::Memory;
            }
            self.machine.zero(area, 1);
        }
    }

    pub(super) fn portal_create(&mut self) -> Done {
        let index = self.thread(0, Rights::CONTROL)?;
        let control = self.shared.control.lock();
        self.check_empty(self.table, self.a[2])?;
        let badge = self.a[1] & (u64::MAX >> 16);
        let thread = self.local.threads.name_at(index).0;
        let id = self.local.portals.insert(Portal { thread, badge }).ok_or(Refusal::Quota)?;
        self.put(&control, self.a[2], Kind::Portal, Rights::ALL, id.0)?;
        Ok(0)
    }

    pub(super) fn signal_create(&mut self) -> Done {
        let name = self.name(0, Kind::Thread, Rights::CONTROL)?;
        if self.a[1] >> 48 != 0 || self.a[1] == 0 {
            return Err(Refusal::BadArgument);
        }
        let _control = self.shared.control.lock();
        self.check_empty(self.table, self.a[2])?;
        let word = CapWord::new(Kind::Signal, Rights::ALL, self.a[1]);
        self.shared.table.put(self.table, self.a[2], Cap { word, name })?;
        Ok(0)
    }
}
