// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor was told of, for the host to see: one record an event, in a ring that root reads when somebody asks, or when it is
//! half full. What finds no room is counted, and the next one that does says so.

use trellis_idl::layout::slot;
use trellis_idl::wire::Seen;
use trellis_runtime::ring::Memory;
use trellis_runtime::{Producer, Shared, Signal, System};

/// Whoever is told of events beside the monitor's log.
pub trait Witness: Sync {
    /// Notes an event.
    fn note(&self, system: &impl System, seen: Seen);
}

/// Nobody is told.
impl Witness for () {
    fn note(&self, _: &impl System, _: Seen) {}
}

/// The ring of events; a page of it on the board.
#[derive(Debug)]
pub struct Noted<M>(Shared<(M, u32)>);

impl<M> Noted<M> {
    /// The ring in this page.
    pub const fn new(page: M) -> Noted<M> {
        Noted(Shared::new((page, 0)))
    }
}

impl<M: Memory + Copy + Send + Sync> Witness for Noted<M> {
    fn note(&self, system: &impl System, seen: Seen) {
        let is_full = {
            let mut state = self.0.lock(system);
            let (page, lost) = *state;
            let mut ring = Producer::new(page);
            let is_noted = ring.send(&Seen { lost, ..seen });
            state.1 = if is_noted { 0 } else { lost.saturating_add(1) };
            // Root is woken once for many: while nobody reads, the ring stays full, and it is woken no more.
            is_noted && ring.space() < page.capacity() / 2
        };
        if is_full {
            // Without root nobody asks.
            let _ = Signal::at(slot::ROOT).raise(system);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use trellis_runtime::{Consumer, RingPage};

    fn seen(number: u64) -> Seen {
        Seen { place: 0, vcpu: 0, rule: 0, verdict: 0, number, lost: 0, header: 0, physical: 0, pc: 0, time: 0 }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_with_the_next_that_does() {
        let (fake, page) = (Fake::default(), Box::leak(Box::new(RingPage::new())));
        let noted = Noted::new(&*page);
        (0..1000).for_each(|number| noted.note(&fake, seen(number)));
        let mut ring = Consumer::new(&*page);
        let first: Vec<Seen> = std::iter::from_fn(|| ring.receive::<Seen>()).map(|seen| seen.expect("whole")).collect();
        assert!(first.len() > 50 && first.iter().zip(0..).all(|(seen, number)| (seen.number, seen.lost) == (number, 0)));
        noted.note(&fake, seen(1000));
        noted.note(&fake, seen(1001));
        let next: Vec<(u64, u32)> = std::iter::from_fn(|| ring.receive::<Seen>()).map(|seen| seen.expect("whole")).map(|seen| (seen.number, seen.lost)).collect();
        assert_eq!(next, [(1000, 1000 - first.len() as u32), (1001, 0)]);
    }
}
