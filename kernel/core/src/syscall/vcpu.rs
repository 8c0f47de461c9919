// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on vCPUs: make one, wire its exits, read, write, start and stop it, and its virtual lines.

use super::{Call, Done};
use crate::float;
use crate::lines;
use crate::local::{Running, THREADS};
use crate::machine::{Machine, VcpuContext};
use crate::notice::Notice;
use crate::passage;
use crate::pool::{Empty, Id};
use crate::portal::{self, Client, Portal};
use crate::remote;
use crate::schedule;
use crate::session;
use crate::shared::{GUEST_VCPUS, GUESTS};
use crate::vcpu::{self, Pause, Route, Vcpu, VcpuState, WINDOWS, Window};
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{EXIT_CLASSES, ExitClass, Kind, Op, PAUSE, PAUSERS, PLACE, Refusal, Rights, Traps};

impl<M: Machine> Call<'_, M> {
    pub(super) fn vcpu_create(&mut self) -> Done {
        let (cpu, number, priority) = (self.a[1], self.a[2], self.a[4]);
        self.guest(0, Rights::CONTROL)?;
        self.check_time(cpu, priority, self.a[5])?;
        let (place, number) = (number & PLACE != 0, number & !PLACE);
        if number >= GUEST_VCPUS as u64 {
            return Err(Refusal::BadArgument);
        }
        let control = self.shared.control.lock();
        let guest = self.guest_in(&control, 0, Rights::CONTROL)?;
        self.check_empty(self.table, self.a[3])?;
        let mail = self.shared.mail(guest as u16, number as u8);
        let who = Id::<Vcpu<M>>::from_word(mail.name.load(Ordering::Acquire));
        if (who.0 != 0 && !place) || mail.place.load(Ordering::Acquire) != 0 {
            return Err(Refusal::Occupied);
        }
        if place && (who.0 == 0 || who.home() == self.local.cpu) {
            return Err(if who.0 == 0 { Refusal::Gone } else { Refusal::BadArgument });
        }
        let mut record = self.shared.guests[guest].lock();
        let lanes = record.float.lanes;
        if lanes != 0 && !self.machine.vector_lengths().has(lanes) {
            return Err(Refusal::Unsupported);
        }
        let area = if place { 0 } else { record.float.take(self.machine)? };
        let mut vcpu = Vcpu::<M>::EMPTY;
        vcpu.guest = guest as u16;
        vcpu.number = number as u8;
        vcpu.float = float::State::new(lanes, area);
        if place {
            vcpu.state = VcpuState::Vacant;
        } else {
            vcpu.lines.begin(number == 0);
        }
        vcpu.views = record.views;
        vcpu.context.set_map(record.space.tag, record.space.root, number as u8);
        vcpu.context.set_float(lanes, area);
        vcpu.context.reset();
        let Some(id) = self.local.vcpus.insert(vcpu) else {
            record.float.give(area);
            return Err(Refusal::Quota);
        };
        record.cpus |= 1 << self.local.cpu;
        drop(record);
        let at = id.index() as u16;
        self.local.vcpus.at_mut(at).index = at;
        self.machine.forget(&self.local.vcpus.at(at).context);
        if place {
            mail.place.store(id.0, Ordering::Release);
        } else {
            mail.pending.iter().for_each(|word| word.store(0, Ordering::Relaxed));
            mail.view.store(0, Ordering::Relaxed);
            mail.name.store(id.0, Ordering::Release);
        }
        self.local.budgets[THREADS + at as usize] = self.budget(priority as u8, self.a[5]);
        self.put(&control, self.a[3], Kind::Vcpu, Rights::ALL, id.0)?;
        Ok(0)
    }

    pub(super) fn vcpu_destroy(&mut self) -> Done {
        let index = self.vcpu_or_place(Rights::CONTROL)?;
        self.remove_vcpu(index);
        Ok(0)
    }

    pub(super) fn vcpu_move(&mut self) -> Done {
        let index = self.vcpu(Rights::CONTROL)?;
        passage::leave(self.local, self.shared, self.machine, index).and(Ok(0))
    }

    pub(super) fn remove_vcpu(&mut self, index: u16) {
        if self.local.running == Running::Vcpu(index) {
            schedule::leave(self.local);
        }
        if self.local.vcpus.at(index).state == VcpuState::Vacant {
            passage::arrive(self.local, self.shared, self.machine, index, true);
        }
        let vcpu = self.local.vcpus.at_mut(index);
        let (budget, guest) = (vcpu.budget(), vcpu.guest);
        let mail = self.shared.mail(guest, vcpu.number);
        if vcpu.state == VcpuState::Vacant {
            schedule::forget(self.local, budget);
            return vcpu::remove(self.local, self.shared, index, guest);
        }
        self.cancel(index);
        let vcpu = self.local.vcpus.at_mut(index);
        mail.name.store(0, Ordering::Release);
        self.machine.unload(&mut vcpu.context);
        let area = vcpu.float.area;
        float::forget_vcpu(self.local, index);
        if area != 0 {
            self.shared.guests[guest as usize % GUESTS].lock().float.give(area);
        }
        schedule::forget(self.local, budget);
        vcpu::remove(self.local, self.shared, index, guest);
    }

    /// Whatever a vCPU waits for will not come any more: it is stopped.
    fn cancel(&mut self, index: u16) {
        let own = Client::Vcpu(self.local.vcpus.name_at(index).0, self.local.vcpus.at(index).turn);
        portal::withdraw(self.local, own);
        let vcpu = self.local.vcpus.at_mut(index);
        session::forgive(self.shared, vcpu);
        vcpu.turn = Client::next_turn(vcpu.turn);
        vcpu::stopped(self.local, self.shared, self.machine, index);
    }

    /// The index of a living vCPU of this CPU.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub(super) fn vcpu(&self, need: Rights) -> Result<u16, Refusal> {
        let index = self.vcpu_or_place(need)?;
        if self.local.vcpus.at(index).state == VcpuState::Vacant { Err(Refusal::BadState) } else { Ok(index) }
    }

    /// The same, or of a place that nobody has come to yet.
    #[inline(always)]
    fn vcpu_or_place(&self, need: Rights) -> Result<u16, Refusal> {
        let name = self.name(0, Kind::Vcpu, need)?;
        let id = Id::<Vcpu<M>>::from_word(name);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.vcpus.get(id).ok_or(Refusal::Gone)?;
        Ok(id.index() as u16)
    }

    /// The same, when nothing of it is in the hardware: registers can be read and written in its context.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[inline(never)]
    pub(super) fn still_vcpu(&mut self, need: Rights) -> Result<u16, Refusal> {
        let index = self.vcpu(need)?;
        if matches!(self.local.vcpus.at(index).state, VcpuState::Running | VcpuState::Waiting) {
            return Err(Refusal::BadState);
        }
        self.machine.unload(&mut self.local.vcpus.at_mut(index).context);
        Ok(index)
    }

    pub(super) fn vcpu_route(&mut self) -> Done {
        let index = self.vcpu(Rights::CONTROL)?;
        if self.a[1] >= EXIT_CLASSES as u64 {
            return Err(Refusal::OutOfRange);
        }
        let portal = self.name(2, Kind::Portal, Rights::USE)?;
        let id = Id::<Portal>::from_word(portal);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        self.local.portals.get(id).ok_or(Refusal::Gone)?;
        self.local.vcpus.at_mut(index).routes[self.a[1] as usize % EXIT_CLASSES] =
            Route { portal, badge: self.a[4] & (u64::MAX >> 16), groups: self.a[3] };
        Ok(0)
    }

    pub(super) fn vcpu_window(&mut self) -> Done {
        let index = self.vcpu(Rights::CONTROL)?;
        let (slot, first, count, class) = (self.a[1], self.a[2], self.a[3], self.a[4]);
        if slot >= WINDOWS as u64 || ExitClass::from_number(class).is_none() || first.checked_add(count).is_none() {
            return Err(Refusal::OutOfRange);
        }
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.windows[slot as usize % WINDOWS] = Window { first, count, class: class as u8 };
        vcpu.window_count = vcpu.window_count.max(slot as u8 + 1);
        Ok(0)
    }

    pub(super) fn vcpu_get(&mut self) -> Done {
        let index = self.still_vcpu(Rights::READ)?;
        if float::is_register(self.a[1]) {
            let value = float::access(self.local, self.machine, index, self.a[1], None)?;
            return self.with(0, [value, 0]);
        }
        self.with(0, [self.local.vcpus.at(index).context.get(self.a[1])?, 0])
    }

    pub(super) fn vcpu_set(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        if float::is_register(self.a[1]) {
            return float::access(self.local, self.machine, index, self.a[1], Some(self.a[2])).and(Ok(0));
        }
        self.local.vcpus.at_mut(index).context.set(self.a[1], self.a[2])?;
        Ok(0)
    }

    pub(super) fn vcpu_start(&mut self) -> Done {
        let index = self.vcpu(Rights::EXECUTE)?;
        if self.a[1] == PAUSE { self.unpause(index) } else { self.start_stopped(index) }
    }

    /// What the capability says that names the vCPU: its rights, and in whose name it pauses.
    fn pauser(&self) -> (Rights, u16) {
        let word = self.shared.table.read(self.table, self.a[0]).word;
        (word.rights(), 1 << (word.badge() % PAUSERS))
    }

    /// A pause is over: it goes on if nobody else pauses it and it would be running now. Back: who else does.
    fn unpause(&mut self, index: u16) -> Done {
        let (rights, own) = self.pauser();
        let who = if self.a[2] == 0 { own } else { self.a[2] as u16 };
        if who != own && !rights.covers(Rights::CONTROL) {
            return Err(Refusal::MissingRight);
        }
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.pausers &= !who;
        if vcpu.pausers != 0 {
            return Ok(vcpu.pausers.into());
        }
        let runs = core::mem::replace(&mut vcpu.pause, Pause::No) == Pause::Runs;
        if runs && vcpu.state == VcpuState::Stopped {
            return self.start_stopped(index);
        }
        // Its exit is still being served.
        vcpu.stop_wanted &= !runs;
        Ok(0)
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn start_stopped(&mut self, index: u16) -> Done {
        let vcpu = self.local.vcpus.at_mut(index);
        if !vcpu.is_still() {
            return Err(Refusal::BadState);
        }
        if vcpu.pause != Pause::No {
            vcpu.pause = Pause::Runs;
            return Ok(0);
        }
        if vcpu.moved != 0 {
            self.gather(index)?;
        }
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.state = VcpuState::Running;
        vcpu.stop_wanted = false;
        vcpu.hazard = true;
        let budget = vcpu.budget();
        schedule::ready(self.local, budget, Running::Vcpu(index));
        Ok(0)
    }

    /// A vCPU that came from another CPU has all its mail when nobody takes it to be there any more.
    #[cold]
    #[inline(never)]
    fn gather(&mut self, index: u16) -> Result<(), Refusal> {
        if !self.settled(self.local.vcpus.at(index).moved) {
            return Err(Refusal::Again);
        }
        remote::collect(self.local, self.shared, self.machine, index);
        self.local.vcpus.at_mut(index).moved = 0;
        Ok(())
    }

    pub(super) fn vcpu_reset(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        self.reset_stopped(index)
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    fn reset_stopped(&mut self, index: u16) -> Done {
        if !self.local.vcpus.at(index).is_still() {
            return Err(Refusal::BadState);
        }
        // It stays in its view, as whoever put it there wants: its first instruction is watched as well.
        float::reset(self.local, self.machine, index);
        self.local.vcpus.at_mut(index).notice = Notice::NONE;
        // Lines first: what is in list registers is in the context.
        lines::reset(self.local, self.machine, index);
        self.local.vcpus.at_mut(index).context.reset();
        Ok(0)
    }

    /// Reset, entry and start in one: a CPU of a guest that starts another asks that one's CPU once.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub(super) fn vcpu_launch(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE.with(Rights::EXECUTE))?;
        self.reset_stopped(index)?;
        self.local.vcpus.at_mut(index).context.start(self.a[1], self.a[2]);
        self.start_stopped(index)
    }

    pub(super) fn vcpu_stop(&mut self) -> Done {
        let index = self.vcpu(Rights::EXECUTE)?;
        let vcpu = self.local.vcpus.at_mut(index);
        if self.a[1] == PAUSE {
            return self.pause(index);
        }
        vcpu.settle();
        match vcpu.state {
            VcpuState::Awaiting | VcpuState::Queued => self.cancel_exit(index),
            VcpuState::Running | VcpuState::Waiting => {
                let budget = vcpu.budget();
                vcpu::stopped(self.local, self.shared, self.machine, index);
                schedule::retire(self.local, budget);
            }
            VcpuState::Owed => self.cancel(index),
            VcpuState::Stopped | VcpuState::Vacant => {}
        }
        Ok(0)
    }

    /// Keeps a vCPU from running. An exit is served to its end, so that nothing is done twice. Back: 1 while it is.
    fn pause(&mut self, index: u16) -> Done {
        let (_, own) = self.pauser();
        let vcpu = self.local.vcpus.at_mut(index);
        vcpu.pausers |= own;
        let is_served = matches!(vcpu.state, VcpuState::Awaiting | VcpuState::Queued | VcpuState::Owed);
        if vcpu.pause == Pause::No {
            let stops = vcpu.stop_wanted || vcpu.state == VcpuState::Stopped;
            vcpu.pause = if stops { Pause::Still } else { Pause::Runs };
            if is_served {
                vcpu.stop_wanted = true;
                vcpu.hazard = true;
            } else if !stops {
                let budget = vcpu.budget();
                vcpu::stopped(self.local, self.shared, self.machine, index);
                schedule::retire(self.local, budget);
            }
        }
        Ok(is_served.into())
    }

    /// Stops a vCPU in the middle of an exit. Its server's answer will find nobody, and is paid by the server itself
    /// from here on; a server that stops the vCPU it serves just now answers first.
    pub(super) fn cancel_exit(&mut self, index: u16) {
        let own = Client::Vcpu(self.local.vcpus.name_at(index).0, self.local.vcpus.at(index).turn);
        if self.caller.is_some_and(|me| self.local.threads.at(me).client.plain() == own) {
            let vcpu = self.local.vcpus.at_mut(index);
            vcpu.stop_wanted = true;
            // The hot door of answers looks at this alone.
            vcpu.hazard = true;
            return;
        }
        self.cancel(index);
        let vcpu = self.local.vcpus.at(index);
        let budget = vcpu.budget();
        schedule::retire(self.local, budget);
    }

    pub(super) fn vcpu_traps(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        if self.a[1] & !Traps::ALL.0 != 0 {
            return Err(Refusal::BadArgument);
        }
        self.local.vcpus.at_mut(index).context.set_traps(Traps(self.a[1]));
        Ok(0)
    }

    pub(super) fn vcpu_exception(&mut self) -> Done {
        let index = self.still_vcpu(Rights::WRITE)?;
        self.local.vcpus.at_mut(index).context.exception(self.a[1], self.a[2]);
        Ok(0)
    }

    pub(super) fn lines(&mut self, op: Op) -> Done {
        let index = self.vcpu(Rights::LINES)?;
        let a = self.a;
        let (local, machine) = (&mut *self.local, &mut *self.machine);
        match op {
            Op::LinesWrite => lines::write(local, machine, index, a[1], a[2], a[3], a[4], a[5]),
            Op::LinesRead => lines::read(local, machine, index, a[1], a[2], a[3]),
            Op::LinesPriority => lines::write_priority(local, index, a[1], a[2], a[3]),
            Op::LinesPriorityRead => lines::read_priority(local, index, a[1]),
            Op::LinesEnable => lines::forward(local, machine, index, a[1]),
            Op::LineTake => lines::take(local, machine, index, a[1]),
            Op::LineTarget => lines::target(local, index, a[1], a[2]),
            _ => Err(Refusal::Unsupported),
        }
    }
}
