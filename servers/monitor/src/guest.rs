// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that a monitor watches, and what it may do to it: by the capabilities that root gave it, and by asking the
//! guest's p2m, which knows its session.

use trellis_idl::interface;
use trellis_idl::kernel::{Answer, Exit, Refusal};
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

    /// Whether its p2m means the same by what it is asked. Refused `Unsupported`: it does not.
    pub fn attach(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        message::attach(system, self.p2m(here), interface::P2M)
    }

    fn ask(&self, system: &impl System, here: Here, op: P2mOp, given: [u64; 3]) -> Result<u64, Refusal> {
        self.p2m(here).order(system, op as u64, given).map(|answer| answer[1])
    }

    /// [`P2mOp::WatchJoin`] of the view in which it is watched.
    pub fn join(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        self.ask(system, here, P2mOp::WatchJoin, [self.view(), 0, 0]).map(drop)
    }

    /// [`P2mOp::Watch`]: only this access is allowed to these pages without a word. To the end of the pages.
    pub fn watch(
        &self, system: &impl System, here: Here, (first, pages): (u64, u64), access: ViewAccess,
    ) -> Result<(), Refusal> {
        let mut done = 0;
        while done < pages {
            let at = self.view() << 48 | first + done;
            let more = self.ask(system, here, P2mOp::Watch, [at, pages - done, access.0.into()])?;
            // One that does nothing would be asked for ever.
            done += if more == 0 { return Err(Refusal::BadState) } else { more };
        }
        Ok(())
    }

    /// [`P2mOp::WatchEnter`]: every vCPU is watched.
    pub fn enter(&self, system: &impl System, here: Here) -> Result<(), Refusal> {
        self.ask(system, here, P2mOp::WatchEnter, [u64::MAX, self.view(), 0]).map(drop)
    }

    /// [`VcpuOp::Complete`]: how to answer an exit of this vCPU so that its access is carried out, or seems to have been: bits,
    /// and the word that goes to a register. Refused `Unsupported` also where an answer would move more.
    pub fn complete(
        &self, system: &impl System, vcpu: usize, order: Order, number: u64, exit: &Exit,
    ) -> Result<(Answer, u64), Refusal> {
        let ([m4, m5, m6, m7, ..], order) = (exit.to_words(), (order as u64) << 8);
        let given = [vcpu as u64 | order, 0, number, m4, m5, m6, m7];
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
