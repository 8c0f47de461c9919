// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way of a vCPU from one CPU to another.
//!
//! Objects belong to one CPU, which alone reaches them, so a vCPU goes through a place that all share: it leaves its CPU
//! whole, and the other takes it out when it is kicked. Everything that can be refused was refused when the *place* was
//! made there, an empty vCPU with its number; nothing is lost on the way. A line that becomes pending meanwhile is put into
//! its mail or into the place; what is put there by a CPU that still took it to be at home is found when it starts, which
//! is only when every CPU has left the kernel since ([`crate::grace`]).

use crate::errand::Errand;
use crate::float;
use crate::local::Local;
use crate::machine::Machine;
use crate::pool::Empty;
use crate::remote;
use crate::schedule;
use crate::shared::Shared;
use crate::vcpu::{self, Route, Vcpu};
use core::sync::atomic::Ordering;
use trellis_idl::kernel::Refusal;

/// Where it is meanwhile: one at a time.
#[derive(Debug)]
pub struct Passage<M: Machine> {
    /// The name of the place that it goes to; 0 = nobody is on the way.
    to: u64,
    vcpu: Vcpu<M>,
}

impl<M: Machine> Passage<M> {
    /// Nobody is on the way.
    pub const EMPTY: Passage<M> = Passage { to: 0, vcpu: Vcpu::EMPTY };

    /// Whether a vCPU is on its way to this place.
    pub const fn leads_to(&self, place: u64) -> bool {
        self.to == place
    }
}

/// A stopped vCPU of this CPU goes to its place.
pub fn leave<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16) -> Result<(), Refusal> {
    let vcpu = local.vcpus.at_mut(index);
    let mail = shared.mail(vcpu.guest, vcpu.number);
    let (guest, budget) = (vcpu.guest, vcpu.budget());
    let passage = machine.passage();
    let mut passage = passage.lock();
    let place = mail.place.load(Ordering::Acquire);
    if !vcpu.is_still() || place == 0 {
        return Err(Refusal::BadState);
    }
    if passage.to != 0 {
        return Err(Refusal::Again);
    }
    machine.unload(&mut vcpu.context);
    float::release(local, machine, index);
    passage.to = place;
    core::mem::swap(&mut passage.vcpu, local.vcpus.at_mut(index));
    mail.place.store(0, Ordering::Relaxed);
    mail.name.store(place, Ordering::Release);
    passage.vcpu.moved = shared.grace.mark();
    drop(passage);
    schedule::forget(local, budget);
    vcpu::remove(local, shared, index, guest);
    let to = Local::<M>::vcpu_id(place);
    remote::send(local, shared, machine, to.home(), Errand::Lines(to.index() as u16));
    Ok(())
}

/// Whoever is on the way to a vacant place of this CPU arrives. With `close` the place ends if nobody is.
pub fn arrive<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M, index: u16, close: bool) {
    let name = local.vcpus.name_at(index).0;
    let passage = machine.passage();
    let mut passage = passage.lock();
    let vcpu = local.vcpus.at_mut(index);
    if !passage.leads_to(name) {
        if close {
            shared.mail(vcpu.guest, vcpu.number).place.store(0, Ordering::Release);
        }
        return;
    }
    passage.to = 0;
    core::mem::swap(&mut passage.vcpu, vcpu);
    vcpu.lines.join_pending(&passage.vcpu.lines);
    vcpu.index = index;
    vcpu.routes = Route::NONE;
    machine.forget(&vcpu.context);
}

#[cfg(test)]
mod tests {
    use crate::grace::tests::model as grace;
    use crate::word::model::is_broken;
    use core::sync::atomic::Ordering;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;

    const OLD: u64 = 7;
    const NEW: u64 = 8;

    /// How often a model came to the start of the vCPU, and how often the line had been sent by its old name then.
    static STARTS: [std::sync::atomic::AtomicU64; 2] = [const { std::sync::atomic::AtomicU64::new(0) }; 2];

    /// CPU 1 sends a line to a vCPU that moves to CPU 0, which takes the mail when the vCPU starts. What was put into the
    /// mail by its old name is told to nobody, so it must be there by then; by its new name CPU 0 is told.
    fn a_line_meets_a_move(waits: bool) {
        let shared = Arc::new((LoomWord::new(OLD), LoomWord::new(0), grace()));
        let sender = shared.clone();
        let sending = loom::thread::spawn(move || {
            let (name, mail, grace) = &*sender;
            grace.pass(1);
            let found = name.load(Ordering::Acquire);
            mail.fetch_or(1, Ordering::AcqRel);
            // It leaves, and comes again for a kick.
            grace.pass(1);
            found
        });
        let (name, mail, grace) = &*shared;
        name.store(NEW, Ordering::Release);
        let mark = grace.mark();
        let mut taken = None;
        for _ in 0..2 {
            if !waits || grace.behind(mark, 0b10) == 0 {
                taken = Some(mail.swap(0, Ordering::AcqRel));
                break;
            }
            loom::thread::yield_now();
        }
        let by_old_name = sending.join().unwrap() == OLD;
        if let Some(taken) = taken {
            STARTS[usize::from(by_old_name)].fetch_add(1, Ordering::Relaxed);
            assert!(taken == 1 || !by_old_name, "a line was put into the mail and nobody looks there any more");
        }
    }

    #[test]
    fn no_line_is_lost_that_was_sent_by_an_old_name() {
        loom::model(|| a_line_meets_a_move(true));
        assert!(STARTS.iter().all(|count| count.load(Ordering::Relaxed) > 0), "both came to pass");
    }

    #[test]
    fn a_vcpu_that_starts_at_once_is_found_out() {
        assert!(is_broken(|| a_line_meets_a_move(false)));
    }
}
