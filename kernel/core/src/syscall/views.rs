// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on a guest's views ([`crate::view`]).

use super::{Call, Done};
use crate::guest::Guest;
use crate::local::Local;
use crate::machine::{Machine, Stale};
use crate::pool::Id;
use crate::remote;
use crate::shared::{GUEST_VCPUS, GUESTS, Shared};
use crate::space::{LIMIT, span};
use crate::table::TableRange;
use crate::vcpu::VcpuState;
use crate::view;
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, Inside, MAX_VIEWS, Op, Refusal, Rights};

/// Where the view begins in a word that names a page of a view.
pub(super) const VIEW_SHIFT: u32 = 48;

/// The CPU of the vCPU that a guest and a number name.
pub(super) fn home_of_vcpu(shared: &Shared, table: TableRange, a: &[u64; 6]) -> Result<u16, Refusal> {
    let guest = Id::<()>::from_word(shared.table.read(table, a[0]).name).index() % GUESTS;
    Ok(Id::<()>::from_word(name_of(shared, guest, a[1])?).home())
}

/// The name of a guest's vCPU by its number.
fn name_of(shared: &Shared, guest: usize, number: u64) -> Result<u64, Refusal> {
    let number = usize::try_from(number).ok().filter(|number| *number < GUEST_VCPUS).ok_or(Refusal::OutOfRange)?;
    match shared.vcpus[guest % GUESTS][number % GUEST_VCPUS].name.load(Ordering::Acquire) {
        0 => Err(Refusal::NotMapped),
        name => Ok(name),
    }
}

impl<M: Machine> Call<'_, M> {
    /// How many views a new guest may have, and what it may do about them.
    pub(super) fn views_of(count: u64, inside: u64) -> Result<(u16, Inside), Refusal> {
        if count == 0 || count > MAX_VIEWS || inside & !Inside::ALL.0 != 0 {
            return Err(Refusal::BadArgument);
        }
        Ok((count as u16, Inside(inside)))
    }

    /// Access that a leaf of a guest may be given: which leaf came with which right is not known, so what one of them may
    /// not, none gets later.
    #[inline(never)]
    pub(super) fn leaf_access(machine: &M, guest: &Guest, access: Access) -> Result<Access, Refusal> {
        if access.0 & !Access::LEAF.0 != 0 {
            return Err(Refusal::BadArgument);
        }
        if !guest.most.covers(access.needs()) {
            return Err(Refusal::MissingRight);
        }
        if access.splits_execute() && !machine.splits_execute() {
            return Err(Refusal::Unsupported);
        }
        Ok(access.normal())
    }

    /// An operation on a guest's maps, or on what they use: one look for the guest, then one lock.
    #[inline(never)]
    pub(super) fn views(&mut self, op: Op) -> Done {
        let need = match op {
            Op::GuestInfo | Op::ViewOf => Rights(0),
            Op::ViewSwitch => Rights::EXECUTE,
            _ => Rights::EDIT,
        };
        let index = self.guest(0, need)?;
        match op {
            Op::ViewSwitch => return self.view_switch(index),
            Op::ViewOf => return self.view_of(index),
            _ => {}
        }
        let mut guest = self.shared.guests[index].lock();
        match op {
            Op::GuestInfo => {
                self.rest = [guest.views.count.into(), guest.views_there(self.machine)];
                Ok(guest.space.tables_left())
            }
            Op::ViewCreate => guest.create_view(self.machine, self.a[1]),
            Op::ViewCopy => self.view_copy(&mut guest),
            _ => self.change_view(op, index, &mut guest),
        }
    }

    /// An operation on one map of a guest.
    #[inline(never)]
    fn change_view(&mut self, op: Op, index: usize, guest: &mut Guest) -> Done {
        let a = self.a;
        let machine = &mut *self.machine;
        let (view, page) = match op {
            Op::ViewDestroy | Op::ViewShow => (a[1], 0),
            _ => (a[1] >> VIEW_SHIFT, a[1] & ((1 << VIEW_SHIFT) - 1)),
        };
        let access = match op {
            Op::GuestProtect => Access(a[3] & Access::LEAF.0),
            Op::ViewRemap => Access(a[3]),
            _ => Access(0),
        };
        if view == 0 && !matches!(op, Op::GuestUnmap | Op::GuestProtect) {
            return Err(Refusal::BadArgument);
        }
        let access = Self::leaf_access(machine, guest, access)?;
        let root = guest.root_of(machine, view)?;
        let number = view as u16;
        let mut stale = Stale { tag: guest.space.tag, root, first: 0, pages: 0 };
        let done = match op {
            Op::GuestUnmap if view == 0 => {
                stale = guest.unmap(machine, page, a[2])?;
                Ok(0)
            }
            Op::GuestUnmap | Op::GuestProtect => {
                let access = (op == Op::GuestProtect).then_some(access);
                stale = guest.in_view(root, |space| space.change(machine, page, a[2], access))?;
                Ok(0)
            }
            Op::ViewRemap => guest.remap(machine, (number, root), [page, a[2]], access),
            Op::ViewReset if page >= LIMIT => Err(Refusal::OutOfRange),
            Op::ViewReset => Ok(guest.in_view(root, |space| space.clear_from(machine, page)).unwrap_or(0)),
            Op::ViewShow if a[2] > 1 => Err(Refusal::BadArgument),
            Op::ViewShow => Ok(guest.show_view(machine, number, root, a[2] == 1)),
            _ => guest.destroy_view(machine, number, root, || view::is_in_use(self.shared, index, number)),
        };
        machine.invalidate(stale);
        done
    }

    /// Apart from the others: this is what a fault in a view costs.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn view_copy(&mut self, guest: &mut Guest) -> Done {
        let [_, at, count, access, span_of_largest, _] = *self.a;
        let (view, page) = (at >> VIEW_SHIFT, at & ((1 << VIEW_SHIFT) - 1));
        if view == 0 {
            return Err(Refusal::BadArgument);
        }
        let access = match Access(access) {
            Access::AS_HOST => Access::AS_HOST,
            access => Self::leaf_access(self.machine, guest, access)?,
        };
        let root = guest.root_of(self.machine, view)?;
        let largest = (1..4).find(|level| span(*level) == span_of_largest).ok_or(Refusal::BadArgument)?;
        let host = guest.space.root;
        let copied =
            guest.in_view(root, |space| space.copy_from(self.machine, host, (page, count), access, largest))?;
        self.rest = [copied.leaves, 0];
        // Nothing was there before: only what the tables say must be seen.
        self.machine.invalidate(Stale { tag: guest.space.tag, root, first: 0, pages: 0 });
        Ok(copied.pages)
    }

    /// The index of the vCPU of this CPU that is the second argument by its number.
    pub(super) fn vcpu_of(&mut self, guest: usize) -> Result<u16, Refusal> {
        let id = Local::<M>::vcpu_id(name_of(self.shared, guest, self.a[1])?);
        if id.home() != self.local.cpu {
            return Err(Refusal::WrongCpu);
        }
        let index = id.index() as u16;
        if self.local.vcpus.get(id).ok_or(Refusal::Gone)?.state == VcpuState::Vacant {
            // It is called by this name, so it is on its way here.
            remote::collect(self.local, self.shared, self.machine, index);
        }
        Ok(index)
    }

    fn view_switch(&mut self, guest: usize) -> Done {
        let index = self.vcpu_of(guest)?;
        view::switch(self.local, self.shared, self.machine, index, self.a[2], false)?;
        Ok(0)
    }

    fn view_of(&mut self, guest: usize) -> Done {
        name_of(self.shared, guest, self.a[1])?;
        let mail = &self.shared.vcpus[guest % GUESTS][self.a[1] as usize % GUEST_VCPUS];
        Ok(mail.view.load(Ordering::Acquire) & 0xffff)
    }
}
