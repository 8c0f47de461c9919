// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on guests: make one, edit its map, copy into and out of it, end it with its vCPUs.

use super::{Call, Done, MORE};
use crate::float::{Areas, Lengths};
use crate::frame::MapName;
use crate::guest::{self, Guest};
use crate::local::VCPUS;
use crate::machine::Machine;
use crate::pool::{Empty, Id};
use crate::session;
use crate::shared::{Control, DOMAINS, GUESTS, GuestName};
use crate::space::FIXED;
use super::views::VIEW_SHIFT;
use crate::view::Views;
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, Kind, Refusal, Rights};

/// Where the size begins in a word that names a place of guest memory and its size.
const SIZE_SHIFT: u32 = 56;

impl<M: Machine> Call<'_, M> {
    pub(super) fn guest_create(&mut self) -> Done {
        let tables = self.name(0, Kind::Frames, Rights::CONTROL)?;
        let (views, inside) = Self::views_of(self.a[1], self.a[5])?;
        let mut control = self.shared.control.lock();
        self.check_empty(self.table, self.a[2])?;
        if control.guests.free() == 0 {
            return Err(Refusal::Quota);
        }
        let run = *control.runs.get(tables)?;
        let (float, left) = self.float_areas(run.first, run.pages)?;
        let left = left.checked_sub(Views::list_pages(views.into())).filter(|left| *left > 0).ok_or(Refusal::Quota)?;
        let space = self.begin_map(&mut control, tables, run.pages - left)?;
        let mut guest = Guest { space, tables, float, ..Guest::EMPTY };
        guest.open_views(self.machine, run.first + left, views, inside);
        let id = control.guests.insert(GuestName::EMPTY).ok_or(Refusal::Quota)?;
        *self.shared.guests[id.index() % GUESTS].lock() = guest;
        for (number, session) in (0..).zip(&self.shared.sessions[id.index() % GUESTS]) {
            session.begin(session::name_of(id.0, number));
        }
        self.put(&control, self.a[2], Kind::Guest, Rights::ALL, id.0)?;
        Ok(0)
    }

    /// Save areas for a new guest's vCPUs, and the pages that are left for its tables. A length that hardware would
    /// round down is none.
    fn float_areas(&self, first: u64, pages: u64) -> Result<(Areas, u64), Refusal> {
        let (areas, left) = Areas::cut(first, pages, self.a[3], self.a[4])?;
        let lengths = Lengths(self.shared.vector_lengths.load(Ordering::Acquire) as u16);
        if areas.lanes != 0 && !lengths.has(areas.lanes) {
            return Err(Refusal::Unsupported);
        }
        if left == 0 { Err(Refusal::Quota) } else { Ok((areas, left)) }
    }

    /// The index of a living guest.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub(super) fn guest(&self, argument: usize, need: Rights) -> Result<usize, Refusal> {
        self.guest_in(&self.shared.control.lock(), argument, need)
    }

    /// The same under the control lock: it lives as long as that is held.
    #[cfg_attr(target_os = "none", optimize(speed))]
    pub(super) fn guest_in(&self, control: &Control, argument: usize, need: Rights) -> Result<usize, Refusal> {
        let name = self.name(argument, Kind::Guest, need)?;
        let id = Id::<GuestName>::from_word(name);
        control.guests.get(id).filter(|name| !name.dying).ok_or(Refusal::Gone)?;
        Ok(id.index() % GUESTS)
    }

    pub(super) fn guest_map(&mut self) -> Done {
        let page = self.a[1];
        if page >> VIEW_SHIFT != 0 {
            return Err(Refusal::BadArgument);
        }
        let cap = self.cap(2, Kind::Frames, Rights(0))?;
        let mut control = self.shared.control.lock();
        let index = self.guest_in(&control, 0, Rights::EDIT)?;
        let frame = control.runs.check(cap.name, self.a[3], self.a[4])?;
        let run = control.runs.get_mut(cap.name)?;
        let access = Self::access_of(cap, self.a[5], run.device, run.constant)?;
        run.can_note(MapName::Guest(index as u16))?;
        // The control lock is kept: nobody may take the run back between the check and the mapping.
        let mut guest = self.shared.guests[index].lock();
        let access = if run.constant { access.with(FIXED) } else { access };
        let stale = guest.space.map(self.machine, page, frame, self.a[4], access)?;
        run.note(MapName::Guest(index as u16))?;
        if !run.constant {
            guest.most = Access(guest.most.0 & Self::most_of(cap).0);
        }
        self.machine.invalidate(stale);
        Ok(0)
    }

    pub(super) fn guest_copy(&mut self, write: bool) -> Done {
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
        Ok(copied)
    }

    pub(super) fn guest_swap(&mut self) -> Done {
        let index = self.guest(0, Rights::READ.with(Rights::WRITE))?;
        let [_, at, e0, e1, n0, n1] = *self.a;
        let (size, address) = (at >> SIZE_SHIFT, at & ((1 << SIZE_SHIFT) - 1));
        let guest = self.shared.guests[index].lock();
        let place = guest.swappable(self.machine, size, address)?;
        let (written, found) = place.swap(self.machine, [e0, e1], [n0, n1]);
        self.with(written.into(), found)
    }

    pub(super) fn guest_destroy(&mut self) -> Done {
        let name = self.name(0, Kind::Guest, Rights::CONTROL)?;
        self.end_guest(name)
    }

    /// A guest ends, a piece a call: its vCPUs on each CPU, its map, its tables, its name.
    pub(super) fn end_guest(&mut self, name: u64) -> Done {
        let id = Id::<GuestName>::from_word(name);
        let index = id.index() % GUESTS;
        let mut control = self.shared.control.lock();
        let begins = !core::mem::replace(&mut control.guests.get_mut(id).ok_or(Refusal::Gone)?.dying, true);
        drop(control);
        let removed = self.remove_vcpus_of(index);
        let cpus = self.shared.guests[index].lock().cpus;
        if cpus != 0 {
            return if begins || removed { MORE } else { self.go_on_at(cpus) };
        }
        let mut control = self.shared.control.lock();
        let mut guest = self.shared.guests[index].lock();
        if guest.space.root != 0 {
            guest.mark = self.shared.grace.mark();
            guest.views = Views::NONE;
            self.end_map(&mut control, &mut guest.space, MapName::Guest(index as u16));
        }
        if !self.settled(guest.mark) || !self.give_tables_back(&mut control, guest.tables) {
            return MORE;
        }
        *guest = Guest::EMPTY;
        self.shared.sessions[index].iter().for_each(|session| session.begin(0));
        control.guests.remove(id);
        self.shared.table.clear_name(Kind::Guest, name, None, self.shared.grace.mark());
        Ok(0)
    }

    /// Removes a guest's vCPUs of this CPU. Says whether there were any.
    fn remove_vcpus_of(&mut self, index: usize) -> bool {
        let mut removed = false;
        for i in 0..VCPUS as u16 {
            if self.local.vcpus.name_at(i).0 != 0 && self.local.vcpus.at(i).guest as usize == index {
                self.remove_vcpu(i);
                removed = true;
            }
        }
        removed
    }
}
