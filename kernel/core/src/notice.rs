// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that is told itself of what its view forbids, and the calls it makes for its views: no server hears of either.
//!
//! The vCPU gives a page and an address; the kernel looks the page up in the host map each time, under the guest's lock,
//! so that a page that was taken away meanwhile is never written. Where the access was is kept here, out of the guest's
//! registers: ELR_EL1 and SPSR_EL1 may be live when the access happens.

use crate::local::Local;
use crate::machine::{Machine, VcpuContext};
use crate::shared::{GUESTS, Shared};
use crate::view;
use trellis_idl::kernel::{Access, ExitHeader, GuestCall, NoticePage, PAGE, Refusal};

/// What a vCPU gave to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice {
    /// Guest page; [`Notice::NOWHERE`] = it is told nothing.
    page: u64,
    /// Where it is entered.
    entry: u64,
    /// Where it was when it was told.
    interrupted: Option<[u64; 2]>,
}

impl Notice {
    const NOWHERE: u64 = u64::MAX;
    /// It is told nothing.
    pub const NONE: Notice = Notice { page: Notice::NOWHERE, entry: 0, interrupted: None };

    /// Whether it can be told now.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.page != Notice::NOWHERE
    }
}

/// A call of the running guest that the kernel answers, if the guest may make it.
pub fn call<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, call: GuestCall) {
    let result = match call {
        GuestCall::Switch => {
            let wanted = local.vcpus.at(index).context.general(0);
            view::switch(local, shared, machine, index, wanted, true)
        }
        GuestCall::Notify => listen(local, shared, machine, index),
        GuestCall::Return => return go_back(local, index),
    };
    let value = match result {
        Ok(()) => 0,
        Err(refusal) => refusal.to_register(),
    };
    local.vcpus.at_mut(index).context.set_general(0, value);
}

/// [`GuestCall::Notify`].
#[inline(never)]
fn listen<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) -> Result<(), Refusal> {
    let vcpu = local.vcpus.at_mut(index);
    let [address, entry] = [0, 1].map(|n| vcpu.context.general(n));
    if vcpu.notice.interrupted.is_some() {
        return Err(Refusal::BadState);
    }
    if address == u64::MAX {
        vcpu.notice = Notice::NONE;
        return Ok(());
    }
    if !address.is_multiple_of(PAGE) {
        return Err(Refusal::BadArgument);
    }
    if vcpu.notice.is_open() {
        return Err(Refusal::Occupied);
    }
    let guest = shared.guests[vcpu.guest as usize % GUESTS].lock();
    let leaf = guest.space.find(machine, address / PAGE).ok_or(Refusal::NotMapped)?;
    if !is_ordinary(leaf.access) {
        return Err(Refusal::BadArgument);
    }
    vcpu.notice = Notice { page: address / PAGE, entry, interrupted: None };
    Ok(())
}

/// Memory that the guest may write by its host map.
fn is_ordinary(access: Access) -> bool {
    access.covers(Access::READ.with(Access::WRITE)) && !access.covers(Access::DEVICE)
}

/// [`GuestCall::Return`]: no register changes, but for a refusal.
#[inline(never)]
fn go_back<M: Machine>(local: &mut Local<M>, index: u16) {
    let vcpu = local.vcpus.at_mut(index);
    match vcpu.notice.interrupted.take() {
        Some(to) => vcpu.context.go_back(to),
        None => vcpu.context.set_general(0, Refusal::BadState.to_register()),
    }
}

/// The running vCPU was forbidden an access; the words of its exit are in its context. True: it has been told, and goes
/// on. False: the exit takes its route.
#[inline(never)]
pub fn tell<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) -> bool {
    let vcpu = local.vcpus.at_mut(index);
    let exit = *vcpu.context.exit();
    let header = ExitHeader(exit[0]);
    // In the middle of a step nobody else than its servers is asked.
    let is_free = vcpu.notice.interrupted.is_none() && !vcpu.step.is_active();
    if !vcpu.notice.is_open() || !is_free || !header.has(ExitHeader::PERMISSION) {
        return false;
    }
    let guest = shared.guests[vcpu.guest as usize % GUESTS].lock();
    let wants = guest.leaf(machine, vcpu.context.view(), exit[2] / PAGE);
    if !wants.is_some_and(|leaf| leaf.access.covers(Access::NOTIFY)) {
        return false;
    }
    let Some(page) = guest.space.find(machine, vcpu.notice.page).filter(|leaf| is_ordinary(leaf.access)) else {
        return false;
    };
    if machine.entry(page.page, 0) >> 32 != 0 {
        return false;
    }
    const TOLD: u64 = ExitHeader::WRITE | ExitHeader::FETCH | ExitHeader::WALK | ExitHeader::VIRTUAL_VALID | ExitHeader::USER;
    let was = vcpu.context.divert(vcpu.notice.entry);
    let view = u64::from(vcpu.context.view());
    let words = [exit[0] & TOLD, exit[3], exit[2], view, exit[1], was[0], was[1]];
    for (index, word) in (1..).zip(words) {
        machine.set_word(page.page, index, word);
    }
    machine.set_word(page.page, 0, u64::from(NoticePage::FORBIDDEN) | u64::from(NoticePage::BUSY) << 32);
    vcpu.notice.interrupted = Some(was);
    true
}
