// SPDX-License-Identifier: MIT OR Apache-2.0
//! What monitors were told of lately, for a host that asks: each event has a number, and a number that is left out is an event
//! that was lost, be it that the monitor's ring was full or that nobody asked in time.

use heapless::Deque;
use trellis_idl::control::EventState;

/// Events that are remembered.
pub const REMEMBERED: usize = 256;

/// The last events.
#[derive(Debug)]
pub struct Events {
    kept: Deque<EventState, REMEMBERED>,
    next: u64,
}

impl Events {
    /// None yet.
    pub const NONE: Events = Events { kept: Deque::new(), next: 0 };

    /// Another one, before which its monitor had no room for some.
    pub fn push(&mut self, event: EventState) {
        let sequence = self.next.saturating_add(event.seen.lost.into());
        if self.kept.is_full() {
            self.kept.pop_front();
        }
        // There is room now.
        let _ = self.kept.push_back(EventState { sequence, ..event });
        self.next = sequence.saturating_add(1);
    }

    /// The first one that is remembered with this number or a higher one.
    pub fn from(&self, sequence: u64) -> Option<EventState> {
        let before = self.kept.iter().position(|event| event.sequence >= sequence)?;
        self.kept.iter().nth(before).copied()
    }

    /// The number that the next one has if none is lost before it.
    pub fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::wire::Seen;

    fn event(lost: u32, number: u64) -> EventState {
        let seen = Seen { place: 0, vcpu: 0, rule: 0, verdict: 0, number, lost, header: 0, physical: 0, pc: 0, time: 0 };
        EventState { sequence: 99, server: 5, guest: 1, seen }
    }

    #[test]
    fn each_has_a_number_and_those_that_were_lost_had_theirs() {
        let mut events = Events::NONE;
        (0..3).for_each(|number| events.push(event(0, number)));
        events.push(event(7, 3));
        let mut sequence = 0;
        let mut seen = Vec::new();
        while let Some(event) = events.from(sequence) {
            seen.push((event.sequence, event.seen.number));
            sequence = event.sequence + 1;
        }
        assert_eq!((seen.as_slice(), events.next()), (&[(0, 0), (1, 1), (2, 2), (10, 3)][..], 11));
        assert_eq!(events.from(11), None);
    }

    #[test]
    fn the_last_ones_are_remembered() {
        let mut events = Events::NONE;
        (0..1000).for_each(|number| events.push(event(0, number)));
        let first = events.from(0).expect("some are remembered");
        assert_eq!((first.sequence, first.seen.number), (1000 - REMEMBERED as u64, 1000 - REMEMBERED as u64));
        events.push(event(u32::MAX, 0));
        assert_eq!(events.next(), 1001 + u64::from(u32::MAX));
    }
}
