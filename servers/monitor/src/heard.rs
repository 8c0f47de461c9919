// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor is told without being asked: rings of events that are over, one of each vCPU from each server that finds
//! some, read by a thread that has time of its own.

use crate::event::Event;
use trellis_idl::event::EventKind;
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
    /// Events of each guest that are read in a second at most; 0 = all.
    most: [u32; MAX_WATCHED],
}

/// How much of a guest is read: what is more stays where it is, and what then finds no room is counted by whoever finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Rate {
    /// When the current second began, in ticks.
    since: u64,
    /// Events read in it.
    read: u32,
}

impl Rate {
    /// Begins another second, if this one is over.
    fn look(&mut self, now: u64, hertz: u64) {
        if self.read == 0 || now.wrapping_sub(self.since) >= hertz {
            *self = Rate { since: now, read: 0 };
        }
    }
}

/// How far a guest's rings have been read.
#[derive(Clone, Copy, Debug)]
struct Open {
    is_open: bool,
    rate: Rate,
    readers: [[Reader; MAX_VCPUS]; FINDERS],
}

impl Open {
    const NEW: Open = Open { is_open: false, rate: Rate { since: 0, read: 0 }, readers: [[Reader::NEW; MAX_VCPUS]; FINDERS] };
}

impl Ears {
    /// Of the guests of a configuration; `pages` says where the rings of the one at a place are.
    pub fn new(config: &MonitorConfig<'_>, pages: impl Fn(usize, usize) -> Pages) -> Ears {
        let (mut all, mut most) = ([[&[][..]; FINDERS]; MAX_WATCHED], [0; MAX_WATCHED]);
        for (((place, guest), to), most) in config.guests.iter().enumerate().zip(&mut all).zip(&mut most) {
            *to = pages(place, usize::from(guest.vcpus).min(MAX_VCPUS));
            *most = guest.reports;
        }
        Ears { pages: all, readers: Shared::new([Open::NEW; MAX_WATCHED]), most }
    }

    /// Nobody tells anything.
    pub fn deaf() -> Ears {
        Ears { pages: [[&[]; FINDERS]; MAX_WATCHED], readers: Shared::new([Open::NEW; MAX_WATCHED]), most: [0; MAX_WATCHED] }
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
        let most = self.most.get(place).copied().unwrap_or(0);
        let reader = open.readers.get_mut(finder)?.get_mut(vcpu)?;
        let found = if most != 0 && open.rate.read >= most {
            // What is lost meanwhile is told all the same: a guest that floods never lets the reader come to the end.
            Some(reader.missed(ring)).filter(|missed| *missed != 0).map(Found::Missed)
        } else {
            reader.next(ring)
        }?;
        open.rate.read += u32::from(matches!(found, Found::Entry(_)));
        hear(place, vcpu, told((place, vcpu), found));
        Some(())
    }

    /// Begins another second for each guest whose last one is over.
    fn look(&self, system: &impl System, now: u64, hertz: u64) {
        self.readers.lock(system).iter_mut().for_each(|open| open.rate.look(now, hertz));
    }

    /// When the next guest is read again of which as much was read as may be. None: there is no such guest.
    pub fn held_until(&self, system: &impl System, hertz: u64) -> Option<u64> {
        let all = self.readers.lock(system);
        let held = all.iter().zip(self.most).filter(|(open, most)| open.is_open && *most != 0 && open.rate.read >= *most);
        held.map(|(open, _)| open.rate.since.wrapping_add(hertz)).min()
    }

    /// Reads every ring to its end, but not more than it holds, nor more of a guest than may be. True: there is more.
    pub fn read(&self, system: &impl System, (now, hertz): (u64, u64), mut hear: impl FnMut(usize, usize, Told)) -> bool {
        let mut is_more = false;
        self.look(system, now, hertz);
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
            let exit = Exit::from_words(words);
            // One vCPU may tell of another that it has switched off. Whoever tells is not trusted.
            let vcpu = match EventKind::of_note(exit.physical) {
                Some(EventKind::Start | EventKind::Stop) => (exit.virtual_address as usize).min(MAX_VCPUS - 1),
                _ => vcpu,
            };
            Told::Event(Event::of(badge::event(place as u64, vcpu as u64), &exit))
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
        heard_at(ears, 0)
    }

    /// At this time, of a clock with a hundred ticks a second.
    fn heard_at(ears: &Ears, now: u64) -> (Vec<(usize, usize, Option<u64>)>, bool) {
        let mut all = Vec::new();
        let is_more = ears.read(&Fake::default(), (now, 100), |place, vcpu, told| {
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

    /// Events of the first vCPU of the first guest, and what was lost of it.
    fn counted(ears: &Ears, now: u64) -> (usize, u64) {
        let (mut events, mut missed) = (0, 0);
        while ears.read(&Fake::default(), (now, 100), |_, _, told| match told {
            Told::Event(_) => events += 1,
            Told::Missed(count) => missed += count,
        }) {}
        (events, missed)
    }

    #[test]
    fn no_more_of_a_guest_is_read_in_a_second_than_may_be_and_the_rest_is_counted() {
        let (mut config, pages) = two_guests();
        config.guests[0].reports = 20;
        let ears = Ears::new(&config, |place, _| pages[place]);
        let fake = Fake::default();
        (0..2).for_each(|place| ears.open(&fake, place, true));
        let mut writers = [Writer::NEW; 3];
        let mut write = |count: u64| (0..count).for_each(|n| {
            write(&mut writers[0], &pages[0][0][0], n);
            write(&mut writers[1], &pages[0][1][0], n);
        });
        write(10);
        assert_eq!((counted(&ears, 5), ears.held_until(&fake, 100)), ((20, 0), Some(105)));
        // The rest waits in the rings, and what finds no room there is counted at once.
        write(ENTRIES as u64 + 3);
        assert_eq!(counted(&ears, 50), (0, 6));
        assert_eq!((counted(&ears, 104), ears.held_until(&fake, 100)), ((0, 0), Some(105)));
        let mut all = 0;
        for second in 0..3 {
            let (events, missed) = counted(&ears, 105 + 100 * second);
            assert!(events <= 20 && missed == 0, "{second}: {events} and {missed}");
            all += events;
        }
        assert_eq!(all, 60, "a second each");
        assert_eq!((counted(&ears, 500), ears.held_until(&fake, 100)), ((4, 0), None));
    }

    #[test]
    fn a_limit_is_one_guests_alone() {
        let (mut config, pages) = two_guests();
        config.guests[0].reports = 1;
        let ears = Ears::new(&config, |place, _| pages[place]);
        let fake = Fake::default();
        (0..2).for_each(|place| ears.open(&fake, place, true));
        let (mut held, mut free) = (Writer::NEW, Writer::NEW);
        (0..9).for_each(|n| write(&mut held, &pages[0][0][0], n));
        (0..9).for_each(|n| write(&mut free, &pages[1][0][0], n));
        let (all, _) = heard_at(&ears, 0);
        assert_eq!([0, 1].map(|place| all.iter().filter(|event| event.0 == place).count()), [1, 9]);
    }

    #[test]
    fn what_is_told_of_another_vcpu_names_that_one() {
        let (config, pages) = two_guests();
        let ears = Ears::new(&config, |place, _| pages[place]);
        ears.open(&Fake::default(), 0, true);
        let mut writer = Writer::NEW;
        for vcpu in [1, 0, u64::MAX] {
            let exit = Exit { physical: EventKind::Stop.note(9), virtual_address: vcpu, ..Exit::default() };
            let [a, b, c, d, e, f, g, h, i, j] = exit.to_words();
            writer.put(&pages[0][1][0].0, [0, 9, a, b, c, d, e, f, g, h, i, j]);
        }
        let mut all = Vec::new();
        ears.read(&Fake::default(), (0, 100), |_, _, told| if let Told::Event(event) = told { all.push(event.vcpu) });
        assert_eq!(all, [1, 0, MAX_VCPUS - 1]);
    }

    #[test]
    fn a_guest_that_is_not_there_tells_nothing() {
        Ears::deaf().open(&Fake::default(), 7, true);
        Ears::deaf().open(&Fake::default(), usize::MAX, true);
        assert_eq!(heard(&Ears::deaf()), (vec![], false));
    }
}
