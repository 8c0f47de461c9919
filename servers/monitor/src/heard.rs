// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor is told without being asked: rings of events that are over, one of each vCPU from each server that finds
//! some, read by a thread that has time of its own.

use crate::event::Event;
use trellis_idl::kernel::Exit;
use trellis_idl::layout::badge;
use trellis_idl::plan::{MAX_VCPUS, MAX_WATCHED, MonitorConfig};
use trellis_runtime::event_ring::{ENTRIES, ENTRY_WORDS, EventPage, Found, Reader};
use trellis_runtime::{Shared, System};

/// Servers of a guest that find events: its p2m and its vcpu server.
pub const FINDERS: usize = 2;

/// The rings of a guest's vCPUs, from each finder.
pub type Pages = [&'static [EventPage]; FINDERS];

/// What a vCPU's ring says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// This happened.
    Event(Event),
    /// So many events of this vCPU are lost.
    Missed(u64),
}

/// The rings of all guests that a monitor watches.
#[derive(Debug)]
pub struct Ears {
    pages: [Pages; MAX_WATCHED],
    readers: Shared<[Open; MAX_WATCHED]>,
}

/// How far a guest's rings have been read.
#[derive(Clone, Copy, Debug)]
struct Open {
    is_open: bool,
    readers: [[Reader; MAX_VCPUS]; FINDERS],
}

impl Open {
    const NEW: Open = Open { is_open: false, readers: [[Reader::NEW; MAX_VCPUS]; FINDERS] };
}

impl Ears {
    /// Of the guests of a configuration; `pages` says where the rings of the one at a place are.
    pub fn new(config: &MonitorConfig<'_>, pages: impl Fn(usize, usize) -> Pages) -> Ears {
        let mut all = [[&[][..]; FINDERS]; MAX_WATCHED];
        for ((place, guest), to) in config.guests.iter().enumerate().zip(&mut all) {
            *to = pages(place, usize::from(guest.vcpus).min(MAX_VCPUS));
        }
        Ears { pages: all, readers: Shared::new([Open::NEW; MAX_WATCHED]) }
    }

    /// Nobody tells anything.
    pub fn deaf() -> Ears {
        Ears { pages: [[&[]; FINDERS]; MAX_WATCHED], readers: Shared::new([Open::NEW; MAX_WATCHED]) }
    }

    /// A guest begins (`anew`), or its rings are read on where an earlier monitor was.
    pub fn open(&self, system: &impl System, place: usize, anew: bool) {
        let mut all = self.readers.lock(system);
        let (Some(open), Some(pages)) = (all.get_mut(place), self.pages.get(place)) else { return };
        open.is_open = true;
        for (readers, pages) in open.readers.iter_mut().zip(pages) {
            for (reader, page) in readers.iter_mut().zip(*pages) {
                if anew { reader.begin(&page.0) } else { reader.go_on(&page.0) }
            }
        }
    }

    /// Another monitor reads from here on.
    pub fn close(&self, system: &impl System) {
        self.readers.lock(system).iter_mut().for_each(|open| open.is_open = false);
    }

    /// Reads one, and has it heard before another monitor can read on: who closes knows that all that was read was heard.
    fn next(
        &self, system: &impl System, (place, finder, vcpu): (usize, usize, usize), hear: &mut impl FnMut(usize, usize, Told),
    ) -> Option<()> {
        let ring = &self.pages.get(place)?.get(finder)?.get(vcpu)?.0;
        let mut all = self.readers.lock(system);
        let open = all.get_mut(place).filter(|open| open.is_open)?;
        let found = open.readers.get_mut(finder)?.get_mut(vcpu)?.next(ring)?;
        hear(place, vcpu, told((place, vcpu), found));
        Some(())
    }

    /// Reads every ring to its end, but not more than it holds. True: there is more.
    pub fn read(&self, system: &impl System, mut hear: impl FnMut(usize, usize, Told)) -> bool {
        let mut is_more = false;
        for place in 0..MAX_WATCHED {
            for finder in 0..FINDERS {
                for vcpu in 0..self.pages[place][finder].len() {
                    let at = (place, finder, vcpu);
                    let count = (0..ENTRIES).take_while(|_| self.next(system, at, &mut hear).is_some()).count();
                    is_more |= count == ENTRIES;
                }
            }
        }
        is_more
    }
}

fn told((place, vcpu): (usize, usize), found: Found<ENTRY_WORDS>) -> Told {
    match found {
        Found::Missed(count) => Told::Missed(count),
        Found::Entry([_, _, words @ ..]) => {
            Told::Event(Event::of(badge::event(place as u64, vcpu as u64), &Exit::from_words(words)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use trellis_idl::plan::WatchedPlan;
    use trellis_runtime::event_ring::Writer;

    fn pages(count: usize) -> &'static [EventPage] {
        Box::leak((0..count).map(|_| EventPage::EMPTY).collect::<Box<[EventPage]>>())
    }

    fn two_guests() -> (MonitorConfig<'static>, [Pages; 2]) {
        let guest = |vcpus| WatchedPlan { vcpus, ..WatchedPlan::default() };
        let guests = [guest(2), guest(1)].into_iter().collect();
        (MonitorConfig { guests, ..MonitorConfig::default() }, [[pages(2), pages(2)], [pages(1), pages(1)]])
    }

    fn write(writer: &mut Writer, page: &EventPage, physical: u64) {
        writer.put(&page.0, [0, 9, 0, 0, physical, 0, 0, 0, 0, 0, 0, 9]);
    }

    fn heard(ears: &Ears) -> (Vec<(usize, usize, Option<u64>)>, bool) {
        let mut all = Vec::new();
        let is_more = ears.read(&Fake::default(), |place, vcpu, told| {
            all.push((place, vcpu, match told {
                Told::Event(event) => {
                    assert_eq!((event.guest, event.vcpu, event.number()), (place, vcpu, 9));
                    Some(event.physical())
                }
                Told::Missed(_) => None,
            }));
        });
        (all, is_more)
    }

    #[test]
    fn each_ring_is_read_as_its_own_vcpus() {
        let (config, pages) = two_guests();
        let ears = Ears::new(&config, |place, _| pages[place]);
        let mut writers = [Writer::NEW; 3];
        write(&mut writers[0], &pages[0][0][1], 0x1000);
        write(&mut writers[1], &pages[0][1][0], 0x2000);
        write(&mut writers[2], &pages[1][0][0], 0x3000);
        assert_eq!(heard(&ears), (vec![], false), "nobody has begun");
        ears.open(&Fake::default(), 0, false);
        assert_eq!(heard(&ears), (vec![(0, 1, Some(0x1000)), (0, 0, Some(0x2000))], false));
        ears.open(&Fake::default(), 1, false);
        assert_eq!(heard(&ears), (vec![(1, 0, Some(0x3000))], false));
        ears.close(&Fake::default());
        write(&mut writers[2], &pages[1][0][0], 0x4000);
        assert_eq!(heard(&ears), (vec![], false), "it is another's to read");
        let next = Ears::new(&config, |place, _| pages[place]);
        next.open(&Fake::default(), 1, false);
        assert_eq!(heard(&next), (vec![(1, 0, Some(0x4000))], false), "and goes on there");
    }

    #[test]
    fn a_ring_without_an_end_does_not_keep_others_waiting() {
        let (config, pages) = two_guests();
        let ears = Ears::new(&config, |place, _| pages[place]);
        ears.open(&Fake::default(), 0, true);
        let (mut first, mut second) = (Writer::NEW, Writer::NEW);
        (0..2 * ENTRIES as u64).for_each(|n| write(&mut first, &pages[0][0][0], n));
        write(&mut second, &pages[0][0][1], 77);
        let (all, is_more) = heard(&ears);
        assert_eq!((all.len(), all.last()), (ENTRIES + 1, Some(&(0, 1, Some(77)))));
        assert!(is_more);
        assert_eq!(heard(&ears), (vec![(0, 0, None)], false), "and then what found no room");
    }

    #[test]
    fn a_guest_that_is_not_there_tells_nothing() {
        Ears::deaf().open(&Fake::default(), 7, true);
        Ears::deaf().open(&Fake::default(), usize::MAX, true);
        assert_eq!(heard(&Ears::deaf()), (vec![], false));
    }
}
