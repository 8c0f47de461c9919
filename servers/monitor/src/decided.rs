// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which event of each vCPU was decided last, so that one that is told again is counted once.
//!
//! An event is told again when its answer did not come in time: another monitor takes this one's place, or did not. Its number
//! is the same then. What was counted, and up to which event, is handed over together; each vCPU's thread says when it begins
//! to decide and when it is done, so whoever exports sees whether both belong together.

use core::sync::atomic::{AtomicU64, Ordering};
use heapless::Vec;
use trellis_idl::plan::{MAX_VCPUS, MAX_WATCHED, WatchedPlan};

/// Numbers of events, of every vCPU of every guest.
pub type Numbers = Vec<u64, { MAX_WATCHED * MAX_VCPUS }>;

/// Events of one vCPU: the number of the one that is being decided, or was last, and of the last that was.
#[derive(Debug)]
pub struct Last {
    begun: AtomicU64,
    done: AtomicU64,
}

impl Last {
    /// An event is about to be decided. True: it was before. Numbers begin at 1; 0 is that of none.
    #[inline(always)]
    pub fn begin(&self, number: u64) -> bool {
        self.begun.store(number, Ordering::Relaxed);
        number != 0 && self.done.load(Ordering::Relaxed) == number
    }

    /// It is decided, and counted.
    #[inline(always)]
    pub fn end(&self, number: u64) {
        self.done.store(number, Ordering::Release);
    }
}

/// What every vCPU's thread has decided. Each word has one writer, so none is fought for.
#[derive(Debug)]
pub struct Decided([[Last; MAX_VCPUS]; MAX_WATCHED]);

impl Decided {
    /// Nothing.
    pub const NOTHING: Decided =
        Decided([const { [const { Last { begun: AtomicU64::new(0), done: AtomicU64::new(0) } }; MAX_VCPUS] }; MAX_WATCHED]);

    /// Of a vCPU.
    #[inline(always)]
    pub fn last(&self, guest: usize, vcpu: usize) -> &Last {
        &self.0[guest % MAX_WATCHED][vcpu % MAX_VCPUS]
    }

    /// A guest begins: its events are counted anew.
    pub fn forget(&self, guest: usize) {
        (0..MAX_VCPUS).for_each(|vcpu| self.set(guest, vcpu, 0));
    }

    fn set(&self, guest: usize, vcpu: usize, number: u64) {
        let last = self.last(guest, vcpu);
        last.begin(number);
        last.end(number);
    }

    /// What was decided last of each vCPU, and whether nothing is being decided.
    pub fn numbers(&self, guests: &[WatchedPlan<'_>]) -> (Numbers, bool) {
        let mut is_whole = true;
        let numbers = places(guests).map(|(guest, vcpu)| {
            let last = self.last(guest, vcpu);
            let done = last.done.load(Ordering::Acquire);
            is_whole &= last.begun.load(Ordering::Acquire) == done;
            done
        });
        (numbers.collect(), is_whole)
    }

    /// What another monitor decided last; of other guests than these it says nothing.
    pub fn recall(&self, guests: &[WatchedPlan<'_>], numbers: &Numbers) {
        if places(guests).count() == numbers.len() {
            places(guests).zip(numbers).for_each(|((guest, vcpu), number)| self.set(guest, vcpu, *number));
        }
    }
}

/// Every vCPU of these guests.
fn places<'g>(guests: &'g [WatchedPlan<'_>]) -> impl Iterator<Item = (usize, usize)> + 'g {
    let vcpus = |(guest, plan): (usize, &WatchedPlan<'_>)| {
        (0..usize::from(plan.vcpus).min(MAX_VCPUS)).map(move |vcpu| (guest, vcpu))
    };
    guests.iter().take(MAX_WATCHED).enumerate().flat_map(vcpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(vcpus: &[u8]) -> std::vec::Vec<WatchedPlan<'static>> {
        vcpus.iter().map(|vcpus| WatchedPlan { vcpus: *vcpus, ..WatchedPlan::default() }).collect()
    }

    #[test]
    fn an_event_is_new_once() {
        let decided = Decided::NOTHING;
        assert!(!decided.last(0, 1).begin(7));
        decided.last(0, 1).end(7);
        assert!(decided.last(0, 1).begin(7) && !decided.last(0, 0).begin(7) && !decided.last(1, 1).begin(7), "of this vCPU alone");
        decided.forget(0);
        assert!(!decided.last(0, 1).begin(7));
        assert!(!decided.last(2, 0).begin(0) && !decided.last(2, 0).begin(0), "what has no number is new each time");
    }

    #[test]
    fn numbers_are_whole_while_nobody_decides_and_another_one_goes_on_there() {
        let (decided, guests) = (Decided::NOTHING, guests(&[2, 1]));
        decided.last(1, 0).begin(5);
        assert_eq!(decided.numbers(&guests), (Numbers::from_slice(&[0, 0, 0]).expect("three"), false));
        decided.last(1, 0).end(5);
        let (numbers, is_whole) = decided.numbers(&guests);
        assert!(is_whole && numbers == [0, 0, 5]);
        let next = Decided::NOTHING;
        next.recall(&guests, &numbers);
        assert!(next.last(1, 0).begin(5) && !next.last(0, 0).begin(5));
        let other = Decided::NOTHING;
        other.recall(&guests[..1], &numbers);
        assert!(!other.last(0, 0).begin(0) && !other.last(1, 0).begin(5), "it watches others");
    }
}
