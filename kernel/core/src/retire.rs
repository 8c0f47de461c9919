// SPDX-License-Identifier: MIT OR Apache-2.0
//! A CPU is taken out of use.
//!
//! It has neither threads nor vCPUs any more, and says that it does not run: nobody asks it for anything from then on. Who
//! asked before is told that it is the wrong CPU. When every other CPU has left the kernel since ([`crate::grace`]), nobody
//! can still be asking: its lines and its queue go to another, and it stops.

use crate::errand::Errand;
use crate::float;
use crate::local::Local;
use crate::machine::Machine;
use crate::queue;
use crate::remote;
use crate::shared::{LINES, Shared};
use core::sync::atomic::Ordering;
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::Refusal;

/// This CPU begins to stop.
pub(crate) fn begin<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) -> Result<(), Refusal> {
    if local.threads.names().next().is_some() || local.vcpus.names().next().is_some() {
        return Err(Refusal::BadState);
    }
    // One at a time: whoever inherits must not be about to stop as well.
    if shared.retiring.swap(1, Ordering::AcqRel) != 0 {
        return Err(Refusal::Again);
    }
    shared.running.fetch_and(!(1 << (local.cpu & 63)), Ordering::AcqRel);
    local.retiring = shared.grace.mark();
    // The rest is done when it has nothing else to do, which is at once.
    machine.wake_at(machine.now());
    Ok(())
}

/// Stops if nobody can still be asking it for something; else it looks again in a moment.
#[cold]
#[inline(never)]
pub(crate) fn go_on<M: Machine>(local: &mut Local<M>, shared: &Shared, machine: &mut M) {
    if !shared.settled(machine, local.cpu, local.retiring) {
        machine.wake_at(machine.now() + machine.hertz() / 1000);
        return;
    }
    remote::attend(local, shared, machine);
    float::put_away(local, machine);
    let running = shared.running.load(Ordering::Acquire);
    // Where somebody serves the queue, if anybody does anywhere.
    let served = running & shared.served.load(Ordering::Acquire);
    let heirs = if served != 0 { served } else { running };
    let heir = heirs.trailing_zeros() as u16 % MAX_CPUS as u16;
    for line in (0..LINES).filter(|line| shared.lines[*line].bits.load(Ordering::Acquire) != 0) {
        machine.bequeath(line as u32, heir);
    }
    let queues = &shared.forwarding.queues;
    let from = (&queues[local.cpu as usize % MAX_CPUS], &mut local.backlog);
    if queue::retire(&shared.forwarding.sources, from, &queues[heir as usize]) {
        remote::send(local, shared, machine, heir, Errand::Queue);
    }
    shared.retiring.store(0, Ordering::Release);
    machine.retire();
}

#[cfg(test)]
mod tests {
    use crate::grace::tests::model as grace;
    use crate::word::model::is_broken;
    use core::sync::atomic::Ordering;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;

    /// How often CPU 0 came to its end, and how often CPU 1 had asked it for something then.
    static ENDS: [std::sync::atomic::AtomicU64; 2] = [const { std::sync::atomic::AtomicU64::new(0) }; 2];

    /// CPU 1 asks CPU 0 for something if it runs, while CPU 0 stops: what was asked is answered.
    fn a_request_meets_the_end(waits: bool) {
        let shared = Arc::new((LoomWord::new(1), LoomWord::new(0), grace()));
        let asker = shared.clone();
        let asking = loom::thread::spawn(move || {
            let (running, request, grace) = &*asker;
            grace.pass(1);
            let runs = running.load(Ordering::Acquire) == 1;
            if runs {
                request.fetch_or(1, Ordering::AcqRel);
            }
            // It leaves, and comes again for a kick.
            grace.pass(1);
            runs
        });
        let (running, request, grace) = &*shared;
        running.store(0, Ordering::Release);
        let mark = grace.mark();
        let mut seen = None;
        for _ in 0..2 {
            if !waits || grace.behind(mark, 0b10) == 0 {
                seen = Some(request.swap(0, Ordering::AcqRel));
                break;
            }
            loom::thread::yield_now();
        }
        let asked = asking.join().unwrap();
        if let Some(seen) = seen {
            ENDS[usize::from(asked)].fetch_add(1, Ordering::Relaxed);
            assert!(!asked || seen == 1, "CPU 1 waits for an answer that nobody gives");
        }
    }

    #[test]
    fn no_request_is_left_without_an_answer() {
        loom::model(|| a_request_meets_the_end(true));
        assert!(ENDS.iter().all(|count| count.load(Ordering::Relaxed) > 0), "both came to pass");
    }

    #[test]
    fn a_cpu_that_stops_at_once_is_found_out() {
        assert!(is_broken(|| a_request_meets_the_end(false)));
    }
}
