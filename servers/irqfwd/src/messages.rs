// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines that messages make: whoever opens, moves and masks one asks the translation service, behind a lock, since threads
//! of several CPUs do.

use crate::function::{Function, is_chosen};
use crate::its::{self, Failure, Its};
use crate::reset::{Reset, Turn};
use heapless::Vec;
use trellis_idl::kernel::{MESSAGES, Refusal};
use trellis_idl::layout::message::{function, table};
use trellis_idl::plan::{FunctionPlan, MAX_FUNCTIONS, MAX_VCPUS, MessagePlan};
use trellis_runtime::memory::Hardware;
use trellis_runtime::handle::clock;
use trellis_runtime::{Shared, System, log};

/// Whoever masks lines and sends them to CPUs where the kernel does not.
pub trait Gate: Clone + Send + Sync {
    /// A line may come, to this CPU.
    fn open(&self, system: &impl System, line: u32, cpu: u8) -> Result<(), Refusal>;
    /// It may not.
    fn close(&self, system: &impl System, line: u32);
    /// What a guest owns may write messages. [`Failure::NotYet`]: it is not ready; the same call later goes on.
    fn connect(&self, system: &impl System, guest: u8) -> Result<(), Failure>;
    /// It may not, and is reset. [`Failure::NotYet`]: accesses that it has begun are not over; the same call later goes on.
    fn disconnect(&self, system: &impl System, guest: u8) -> Result<(), Failure>;
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

    fn disconnect(&self, _: &impl System, _: u8) -> Result<(), Failure> {
        match *self {}
    }
}

/// The translation service, and the functions whose messages it translates.
#[derive(Debug)]
pub struct Messages<H: Hardware> {
    its: Shared<Its<H>>,
    hardware: H,
    functions: Vec<(Function<H::Page>, FunctionPlan), MAX_FUNCTIONS>,
    /// How far each function is between two lives of its guest. Whoever connects them holds it, and waits for nothing meanwhile.
    resets: Shared<[Reset; MAX_FUNCTIONS]>,
    doorbell: u64,
    /// The CPU of each place among those to which messages may come.
    cpus: Vec<u8, MAX_VCPUS>,
}

impl<H: Hardware + Clone> Messages<H> {
    /// Brings all up. No line may come yet, and no function write a message.
    pub fn start(hardware: H, plan: &MessagePlan) -> Result<Messages<H>, Failure> {
        let page_of = |place| Function::new(hardware.page(function(place)), hardware.page(table(place)));
        let functions: Vec<_, MAX_FUNCTIONS> = (0..).zip(&plan.functions).map(|(place, one)| (page_of(place), one.clone())).collect();
        let affinities: Vec<u32, MAX_VCPUS> = plan.cpus.iter().map(|(_, affinity)| *affinity).collect();
        let mut its = Its::start(hardware.clone(), plan.redistributors_at, plan.frames.into(), &affinities)?;
        for one in &plan.functions {
            its.add_device(one.requester.into(), &lines(plan, one)?)?;
        }
        if !its.is_taken_over() {
            // Whoever used them before is no guest.
            functions.iter().for_each(|(function, _)| function.disconnect());
        }
        its.finish();
        let cpus = plan.cpus.iter().map(|(cpu, _)| *cpu).collect();
        let resets = Shared::new([Reset::default(); MAX_FUNCTIONS]);
        Ok(Messages { its: Shared::new(its), hardware, functions, resets, doorbell: plan.doorbell, cpus })
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
        self.for_each(system, guest, |function, plan, reset, turn| {
            if !reset.is_ready(function, turn) {
                return Err(Failure::NotYet);
            }
            function.connect(plan, self.doorbell)?;
            if reset.used() {
                let (bus, device, number) = (plan.requester >> 8, plan.requester >> 3 & 31, plan.requester & 7);
                log!("function {bus:02x}:{device:02x}.{number} of guest {guest} was not reset: it keeps what it was told before");
            }
            Ok(())
        })
    }

    fn disconnect(&self, system: &impl System, guest: u8) -> Result<(), Failure> {
        self.for_each(system, guest, |function, _, reset, turn| match reset.is_busy_leaving(function, turn) {
            true => Err(Failure::NotYet),
            false => Ok(()),
        })
    }
}

impl<H: Hardware> Messages<H> {
    /// Does something with each function of a guest. What is not over yet is told before what failed.
    fn for_each(
        &self, system: &impl System, guest: u8,
        each: impl Fn(&Function<H::Page>, &FunctionPlan, &mut Reset, &Turn<'_, H::Memory>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let ((now, hertz), memory) = (clock(system), self.hardware.memory());
        let mut resets = self.resets.lock(system);
        let all = (0..).zip(self.functions.iter().zip(resets.iter_mut()));
        let mut result = Ok(());
        for (place, ((function, plan), reset)) in all.filter(|(_, ((_, plan), _))| plan.guest == guest) {
            let done = each(function, plan, reset, &Turn { now, hertz, memory, note: its::note(place) });
            result = if done == Err(Failure::NotYet) { done } else { result.and(done) };
        }
        result
    }
}
