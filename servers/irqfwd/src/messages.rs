// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines that messages make: whoever opens, moves and masks one asks the translation service, behind a lock, since threads
//! of several CPUs do.

use crate::function::{Function, is_chosen};
use crate::its::{Failure, Its};
use heapless::Vec;
use trellis_idl::kernel::{MESSAGES, Refusal};
use trellis_idl::layout::message::{function, table};
use trellis_idl::plan::{FunctionPlan, MAX_FUNCTIONS, MAX_VCPUS, MessagePlan};
use trellis_runtime::memory::Hardware;
use trellis_runtime::{Shared, System};

/// Whoever masks lines and sends them to CPUs where the kernel does not.
pub trait Gate: Clone + Send + Sync {
    /// A line may come, to this CPU.
    fn open(&self, system: &impl System, line: u32, cpu: u8) -> Result<(), Refusal>;
    /// It may not.
    fn close(&self, system: &impl System, line: u32);
    /// What a guest owns may write messages.
    fn connect(&self, system: &impl System, guest: u8) -> Result<(), Failure>;
    /// It may not.
    fn disconnect(&self, system: &impl System, guest: u8);
}

/// Nobody: there are no such lines.
#[derive(Clone, Copy, Debug)]
pub enum Nobody {}

impl Gate for Nobody {
    fn open(&self, _: &impl System, _: u32, _: u8) -> Result<(), Refusal> {
        match *self {}
    }

    fn close(&self, _: &impl System, _: u32) {
        match *self {}
    }

    fn connect(&self, _: &impl System, _: u8) -> Result<(), Failure> {
        match *self {}
    }

    fn disconnect(&self, _: &impl System, _: u8) {
        match *self {}
    }
}

/// The translation service, and the functions whose messages it translates.
#[derive(Debug)]
pub struct Messages<H: Hardware> {
    its: Shared<Its<H>>,
    functions: Vec<(Function<H::Page>, FunctionPlan), MAX_FUNCTIONS>,
    doorbell: u64,
    /// The CPU of each place among those to which messages may come.
    cpus: Vec<u8, MAX_VCPUS>,
}

impl<H: Hardware> Messages<H> {
    /// Brings all up. No line may come yet, and no function write a message.
    pub fn start(hardware: H, plan: &MessagePlan) -> Result<Messages<H>, Failure> {
        let page_of = |place| Function::new(hardware.page(function(place)), hardware.page(table(place)));
        let functions = (0..).zip(&plan.functions).map(|(place, one)| (page_of(place), one.clone())).collect();
        let affinities: Vec<u32, MAX_VCPUS> = plan.cpus.iter().map(|(_, affinity)| *affinity).collect();
        let mut its = Its::start(hardware, plan.redistributors_at, plan.frames.into(), &affinities)?;
        for one in &plan.functions {
            its.add_device(one.requester.into(), &lines(plan, one)?)?;
        }
        its.finish();
        let cpus = plan.cpus.iter().map(|(cpu, _)| *cpu).collect();
        Ok(Messages { its: Shared::new(its), functions, doorbell: plan.doorbell, cpus })
    }
}

/// The lines of a function's messages. Those of a guest's functions whose tables it fills make the same ones, whichever of them
/// writes: all that these functions have.
fn lines(plan: &MessagePlan, one: &FunctionPlan) -> Result<Vec<u32, { MESSAGES as usize }>, Failure> {
    let is_alike = |other: &&FunctionPlan| is_chosen(other) && other.guest == one.guest;
    let chosen = plan.functions.iter().filter(|_| is_chosen(one)).filter(is_alike);
    let own = Some(one).filter(|one| !is_chosen(one));
    let mut all = Vec::new();
    for line in chosen.chain(own).flat_map(|one| (one.line..=u32::MAX).take(one.messages.into())) {
        all.push(line).map_err(|_| Failure::TooMany)?;
    }
    Ok(all)
}

impl<H: Hardware> Gate for &Messages<H> {
    fn open(&self, system: &impl System, line: u32, cpu: u8) -> Result<(), Refusal> {
        // A CPU that none may come to is as good as any other: the service finds the vCPU wherever it is.
        let place = self.cpus.iter().position(|known| *known == cpu).unwrap_or(0);
        self.its.lock(system).open(line, place).map_err(|_| Refusal::BadState)
    }

    fn close(&self, system: &impl System, line: u32) {
        // A service that does not answer makes no interrupts either.
        let _ = self.its.lock(system).close(line);
    }

    fn connect(&self, system: &impl System, guest: u8) -> Result<(), Failure> {
        let _turn = self.its.lock(system);
        let own = self.functions.iter().filter(|(_, plan)| plan.guest == guest);
        own.map(|(function, plan)| function.connect(plan, self.doorbell)).fold(Ok(()), Result::and)
    }

    fn disconnect(&self, system: &impl System, guest: u8) {
        let _turn = self.its.lock(system);
        self.functions.iter().filter(|(_, plan)| plan.guest == guest).for_each(|(function, _)| function.disconnect());
    }
}
