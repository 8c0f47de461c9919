// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on domains: make one, edit its map, end it with its threads.

use super::{Call, Done, MORE};
use crate::domain::Domain;
use crate::frame::MapName;
use crate::local::{Local, THREADS};
use crate::machine::Machine;
use crate::pool::{Empty, Id};
use crate::shared::{Control, DOMAINS, DomainName};
use crate::table::SLOTS;
use trellis_idl::kernel::{Access, Kind, PAGE, Refusal, Rights};

impl<M: Machine> Call<'_, M> {
    pub(super) fn domain_create(&mut self) -> Done {
        let tables = self.name(0, Kind::Frames, Rights::CONTROL)?;
        let (count, rank) = (self.a[1], self.a[2]);
        if count == 0 || count > SLOTS as u64 || rank > 15 {
            return Err(Refusal::BadArgument);
        }
        let mut control = self.shared.control.lock();
        self.check_empty(self.table, self.a[3])?;
        if !control.slots.has(count as u32) || control.domains.free() == 0 {
            return Err(Refusal::Quota);
        }
        let space = self.begin_map(&mut control, tables, 0)?;
        let id = control.domains.insert(DomainName::EMPTY).ok_or(Refusal::Quota)?;
        let table = control.slots.take(count as u32).ok_or(Refusal::Quota)?;
        *self.shared.domains[id.index() % DOMAINS].lock() =
            Domain { space, table, rank: rank as u8, tables, ..Domain::EMPTY };
        self.put(&control, self.a[3], Kind::Domain, Rights::ALL, id.0)?;
        Ok(0)
    }

    /// The index of a living domain.
    pub(super) fn domain(&self, argument: usize, need: Rights) -> Result<usize, Refusal> {
        self.domain_in(&self.shared.control.lock(), argument, need)
    }

    /// The same under the control lock: it lives as long as that is held.
    pub(super) fn domain_in(&self, control: &Control, argument: usize, need: Rights) -> Result<usize, Refusal> {
        let name = self.name(argument, Kind::Domain, need)?;
        let id = Id::from_word(name);
        control.domains.get(id).filter(|name| !name.dying).ok_or(Refusal::Gone)?;
        Ok(id.index() % DOMAINS)
    }

    pub(super) fn domain_map(&mut self) -> Done {
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
        Ok(0)
    }

    pub(super) fn domain_unmap(&mut self) -> Done {
        let index = self.domain(0, Rights::EDIT)?;
        if !self.a[1].is_multiple_of(PAGE) {
            return Err(Refusal::BadArgument);
        }
        let mut domain = self.shared.domains[index].lock();
        let stale = domain.space.unmap(self.machine, self.a[1] / PAGE, self.a[2])?;
        self.machine.invalidate(stale);
        Ok(0)
    }

    pub(super) fn domain_destroy(&mut self) -> Done {
        let name = self.name(0, Kind::Domain, Rights::CONTROL)?;
        let id = Id::<DomainName>::from_word(name);
        let control = self.shared.control.lock();
        control.domains.get(id).ok_or(Refusal::Gone)?;
        drop(control);
        if self.shared.domains[id.index() % DOMAINS].lock().table == self.table {
            return Err(Refusal::BadState);
        }
        self.end_domain(name)
    }

    /// A domain ends, a piece a call: its threads on each CPU, its capabilities and its map, its tables, its name.
    pub(super) fn end_domain(&mut self, name: u64) -> Done {
        let id = Id::<DomainName>::from_word(name);
        let index = id.index() % DOMAINS;
        let mut control = self.shared.control.lock();
        let begins = !core::mem::replace(&mut control.domains.get_mut(id).ok_or(Refusal::Gone)?.dying, true);
        drop(control);
        let removed = self.remove_threads_of(index);
        let cpus = self.shared.domains[index].lock().cpus;
        if cpus != 0 {
            return if begins || removed { MORE } else { self.go_on_at(cpus) };
        }
        let mut control = self.shared.control.lock();
        let mut domain = self.shared.domains[index].lock();
        if domain.space.root != 0 {
            domain.mark = self.shared.grace.mark();
            for slot in 0..domain.table.count as u64 {
                self.shared.table.clear(domain.table, slot, domain.mark);
            }
            self.end_map(&mut control, &mut domain.space, MapName::Domain(index as u16));
        }
        if !self.settled(domain.mark) || !self.give_tables_back(&mut control, domain.tables) {
            return MORE;
        }
        control.slots.give(domain.table);
        *domain = Domain::EMPTY;
        control.domains.remove(id);
        self.shared.table.clear_name(Kind::Domain, name, None, self.shared.grace.mark());
        Ok(0)
    }

    /// Removes a domain's threads of this CPU. Says whether there were any.
    fn remove_threads_of(&mut self, index: usize) -> bool {
        let of = |local: &Local<M>, i: u16| {
            local.threads.name_at(i).0 != 0 && local.threads.at(i).domain as usize == index
        };
        let mut removed = false;
        for i in 0..THREADS as u16 {
            if of(self.local, i) {
                self.remove_thread(i);
                removed = true;
            }
        }
        removed
    }
}
