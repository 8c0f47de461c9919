// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on domains: make one, edit its map, end it with its threads.

use super::{Call, Done, one};
use crate::domain::Domain;
use crate::frame::MapName;
use crate::local::{Local, THREADS};
use crate::machine::Machine;
use crate::pool::{Empty, Id};
use crate::shared::DOMAINS;
use crate::space::Space;
use crate::table::{SLOTS, TableRange};
use trellis_idl::kernel::{Access, Kind, PAGE, Refusal, Rights};

impl<M: Machine> Call<'_, M> {
    pub(super) fn domain_create(&mut self) -> Done {
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
        let space = Space::new(self.machine, tag, page, pages)?;
        let id = control.domains.insert(Empty::EMPTY).ok_or(Refusal::Quota)?;
        control.next_slot = first + count as u32;
        let table = TableRange { first, count: count as u32 };
        *self.shared.domains[id.index() % DOMAINS].lock() =
            Domain { space, table, rank: rank as u8, tables: tables.name, threads: 0 };
        self.put(self.a[3], Kind::Domain, Rights::ALL, 0, id.0)?;
        one(0)
    }

    /// The index of a living domain.
    pub(super) fn domain(&self, argument: usize, need: Rights) -> Result<usize, Refusal> {
        let cap = self.cap(argument, Kind::Domain, need)?;
        let control = self.shared.control.lock();
        let id = Id::from_word(cap.name);
        control.domains.get(id).ok_or(Refusal::Gone)?;
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
        one(0)
    }

    pub(super) fn domain_unmap(&mut self) -> Done {
        let index = self.domain(0, Rights::EDIT)?;
        if !self.a[1].is_multiple_of(PAGE) {
            return Err(Refusal::BadArgument);
        }
        let mut domain = self.shared.domains[index].lock();
        let stale = domain.space.unmap(self.machine, self.a[1] / PAGE, self.a[2])?;
        self.machine.invalidate(stale);
        one(0)
    }

    pub(super) fn domain_destroy(&mut self) -> Done {
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
}
