// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that a monitor watches, and what it may do to it: by the capabilities that root gave it, and by asking the
//! guest's p2m and vcpu server, which know its session.

use crate::event::Event;
use trellis_idl::event::Wish;
use trellis_idl::interface;
use trellis_idl::kernel::{Answer, Refusal};
use trellis_idl::layout::watched;
use trellis_idl::plan::WatchedPlan;
use trellis_idl::wire::{Order, P2mOp, VcpuOp, ViewAccess};
use trellis_runtime::{Guest, Portal, System, Vcpu, message};

/// Which of a guest's servers' threads is called: calls stay on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Here {
    /// The caller is on this vCPU's CPU: it serves an event of it.
    Vcpu(usize),
    /// The caller is the control thread.
    Control,
}

/// A guest that is watched.
#[derive(Clone, Copy, Debug)]
pub struct WatchedGuest<'a> {
    index: u64,
    plan: &'a WatchedPlan<'a>,
}

impl<'a> WatchedGuest<'a> {
    /// The one at this place of the configuration.
    pub fn new(index: usize, plan: &'a WatchedPlan<'a>) -> WatchedGuest<'a> {
        WatchedGuest { index: index as u64, plan }
    }

    /// Its place in the configuration.
    pub const fn index(&self) -> usize {
        self.index as usize
    }

    /// Its name.
    pub const fn name(&self) -> &'a str {
        self.plan.name
    }

    /// Its vCPUs.
    pub const fn vcpus(&self) -> u8 {
        self.plan.vcpus
    }

    /// First page of its memory, and pages.
    pub const fn pages(&self) -> (u64, u64) {
        (self.plan.first_page, self.plan.pages)
    }

    /// Version of its interrupt controller.
    pub const fn gic(&self) -> u8 {
        self.plan.gic
    }

    /// The view in which it is watched.
    pub const fn view(&self) -> u64 {
        self.plan.view as u64
    }

    /// Its memory, as far as the manifest lets this monitor at it.
    pub const fn memory(&self) -> Guest {
        Guest::at(watched::guest(self.index))
    }

    /// One of its vCPUs.
    pub const fn vcpu(&self, vcpu: usize) -> Vcpu {
        Vcpu::at(watched::vcpu(self.index, vcpu as u64))
    }

    const fn thread(&self, here: Here) -> u64 {
        match here {
            Here::Vcpu(vcpu) => vcpu as u64,
            Here::Control => self.plan.vcpus as u64,
        }
    }

    /// Its p2m.
    pub const fn p2m(&self, here: Here) -> Portal {
        Portal::at(watched::p2m(self.index, self.thread(here)))
    }

    /// Its vcpu server.
    pub const fn vcpu_server(&self, here: Here) -> Portal {
        Portal::at(watched::vcpu_server(self.index, self.thread(here)))
    }

    /// Whether its servers mean the same by what they are asked. Refused `Unsupported`: they do not.
    pub fn attach(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        message::attach(system, self.p2m(here), interface::P2M)?;
        message::attach(system, self.vcpu_server(here), interface::VCPU)
    }

    fn ask(&self, system: &impl System, here: Here, op: P2mOp, given: [u64; 3]) -> Result<u64, Refusal> {
        self.p2m(here).order(system, op as u64, given).map(|answer| answer[1])
    }

    /// [`P2mOp::WatchJoin`] of the view in which it is watched.
    pub fn join(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        self.ask(system, here, P2mOp::WatchJoin, [self.view(), 0, 0]).map(drop)
    }

    /// [`P2mOp::Watch`]: only this access is allowed to these pages without a word. To the end of the pages.
    pub fn watch(&self, system: &impl System, here: Here, pages: (u64, u64), access: ViewAccess) -> Result<(), Refusal> {
        self.watch_so(system, here, pages, access, 0)
    }

    /// The same with wishes: [`P2mOp::TOLD`], [`P2mOp::NO_WALKS`].
    pub fn watch_so(
        &self, system: &impl System, here: Here, (first, pages): (u64, u64), access: ViewAccess, wishes: u64,
    ) -> Result<(), Refusal> {
        let how = u64::from(access.0) | if access == ViewAccess::DEFAULT { 0 } else { wishes };
        let mut done = 0;
        while done < pages {
            let at = self.view() << 48 | first + done;
            let more = self.ask(system, here, P2mOp::Watch, [at, pages - done, how])?;
            // One that does nothing would be asked for ever.
            done += if more == 0 { return Err(Refusal::BadState) } else { more };
        }
        Ok(())
    }

    /// [`P2mOp::WatchEnter`]: every vCPU is watched.
    pub fn enter(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        self.ask(system, here, P2mOp::WatchEnter, [u64::MAX, self.view(), 0]).map(drop)
    }

    /// [`P2mOp::WatchEnter`] of one vCPU: into a view of the monitor's own, or 0.
    pub fn enter_one(&self, system: &impl System, vcpu: usize, view: u16) -> Result<(), Refusal> {
        self.ask(system, Here::Vcpu(vcpu), P2mOp::WatchEnter, [vcpu as u64, view.into(), 0]).map(drop)
    }

    /// [`VcpuOp::Listen`]: all that is heard of the guest from now on beside accesses to memory.
    pub fn listen(&self, system: &impl System, here: Here, wish: &Wish) -> Result<(), Refusal> {
        self.vcpu_server(here).order(system, VcpuOp::Listen as u64, wish.to_words()).map(drop)
    }

    /// [`VcpuOp::Complete`]: how to answer an event of this vCPU so that it is carried out, or seems to have been, or ends in an
    /// exception: bits, and the word that goes to a register. `value` is what the order says. Refused `Unsupported` also
    /// where an answer would move more.
    pub fn complete(
        &self, system: &impl System, event: &Event, order: Order, value: u64,
    ) -> Result<(Answer, u64), Refusal> {
        let (vcpu, [m4, m5, m6, m7, ..], order) = (event.vcpu, event.exit.to_words(), (order as u64) << 8);
        let given = [vcpu as u64 | order, value, event.number(), m4, m5, m6, m7];
        let answer = self.vcpu_server(Here::Vcpu(vcpu)).order(system, VcpuOp::Complete as u64, given)?;
        // m2–m7 are the answer's m4–m9, of which m5 is the register's.
        let (said, more) = (Answer(answer[1]), Answer::PC.with(Answer::GENERAL));
        if said.0 & more.0 == 0 { Ok((said, answer[3])) } else { Err(Refusal::Unsupported) }
    }

    /// [`P2mOp::WatchLeave`].
    pub fn leave(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        self.ask(system, here, P2mOp::WatchLeave, [self.view(), 0, 0]).map(drop)
    }
}
