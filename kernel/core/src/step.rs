// SPDX-License-Identifier: MIT OR Apache-2.0
//! One instruction in another view: what an answer with [`Answer::STEP`] asks for.
//!
//! The machine executes the instruction and traps ([`Machine::set_step`]); here is which view that is in and what the vCPU
//! goes back to. The vCPU's mail names both views, so that neither can be destroyed meanwhile. A step outlives every exit
//! on the way and the loss of the CPU; what stops the vCPU ends it.

use crate::local::Local;
use crate::machine::{Machine, VcpuContext};
use crate::shared::Shared;
use crate::view;
use trellis_idl::kernel::{Answer, Refusal};

/// The step a vCPU is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    active: bool,
    report: bool,
    /// The view it goes back to.
    pub(crate) back: u16,
}

impl Step {
    /// None.
    pub const NONE: Step = Step { active: false, report: false, back: 0 };

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.active
    }
}

/// An answer asks for a step of the vCPU it is for: puts that into its view. What is refused has changed nothing. The
/// machine is told when the rest of the answer is done.
#[inline(never)]
pub fn prepare<M: Machine>(
    local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, answer: Answer,
) -> Result<(), Refusal> {
    if !answer.has(Answer::STEP) || answer.has(Answer::STOP) {
        return Err(Refusal::BadArgument);
    }
    let (vcpu, view) = (local.vcpus.at_mut(index), answer.view());
    if view >= vcpu.views.count {
        return Err(Refusal::OutOfRange);
    }
    let back = vcpu.view();
    if view != vcpu.context.view() {
        let root = view::claim(vcpu, shared, machine, view, false)?;
        machine.switch_map(&mut vcpu.context, vcpu.guest, root, view);
    }
    vcpu.step = Step { active: true, report: vcpu.step.report || answer.has(Answer::REPORT), back };
    vcpu.say_views(shared);
    Ok(())
}

/// The running vCPU executes the instruction it is at, and nobody is asked or told: what stopped it is not to stop it.
#[inline(never)]
pub fn past<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) {
    let vcpu = local.vcpus.at_mut(index);
    if !vcpu.step.active {
        vcpu.step = Step { active: true, report: false, back: vcpu.context.view() };
        vcpu.say_views(shared);
    }
    machine.set_step(&mut vcpu.context, true);
}

/// A vCPU is as if it had never stepped: its step is over, or it will not come to its end. Back: whether somebody wants to
/// know.
#[inline(never)]
pub fn end<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) -> bool {
    let vcpu = local.vcpus.at_mut(index);
    let step = core::mem::replace(&mut vcpu.step, Step::NONE);
    if !step.active {
        return false;
    }
    machine.set_step(&mut vcpu.context, false);
    if step.back != vcpu.context.view()
        && let Some(noted) = vcpu.views.find(machine, step.back)
    {
        // It is there: the mail has named it all the time.
        machine.switch_map(&mut vcpu.context, vcpu.guest, noted.root, step.back);
    }
    vcpu.say_views(shared);
    step.report
}
