// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each CPU did lately, out of its trace: no counter that anybody would have to keep for it.

use crate::trace;
use trellis_idl::control::{GuestLoad, Load};
use trellis_idl::plan::{Plan, Role};
use trellis_idl::trace::{Record, TraceKind, Who};
use trellis_runtime::System;
use trellis_runtime::handle::clock;

/// Oldest records that are left out: another CPU that is asked for its records notes that, so they are overwritten while the
/// others are read.
const MARGIN: u64 = 32;

/// Adds up records of one CPU.
struct Tally<'a> {
    plan: &'a Plan<'a>,
    /// Nothing before this counts.
    from: u64,
    /// Everything before this has been counted.
    until: u64,
    who: Option<Who>,
    load: Load,
}

/// What a CPU did during the last `ticks`, as far back as its trace goes; nothing of one that does not run.
pub fn of(system: &impl System, plan: &Plan<'_>, cpu: u8, ticks: u64) -> Option<Load> {
    let (_, _, newest) = trace::read(system, cpu, 0).ok()?;
    let (now, _) = clock(system);
    let mut tally = Tally::new(plan, cpu, now.saturating_sub(ticks));
    let (mut place, mut before) = (newest + MARGIN, 0);
    for _ in 0..trace::READS {
        let Ok((piece, behind, _)) = trace::read(system, cpu, place) else { break };
        // A record that is older than the one before it stands behind the newest: the ring is not full, or went round.
        for record in piece.iter().filter(|record| record.time != 0) {
            if record.time >= before {
                before = record.time;
                tally.add(record);
            }
        }
        if piece.is_empty() {
            break;
        }
        place = behind;
    }
    Some(tally.end(clock(system).0))
}

impl<'a> Tally<'a> {
    fn new(plan: &'a Plan<'a>, cpu: u8, from: u64) -> Tally<'a> {
        let load = Load { cpu, ticks: 0, idle: 0, interrupts: 0, guests: Default::default() };
        Tally { plan, from, until: 0, who: None, load }
    }

    fn add(&mut self, record: &Record) {
        self.pass(record.time);
        let counts = record.time >= self.from;
        let kind = record.kind();
        match (kind, record.who) {
            (Some(TraceKind::Exit), who @ Who::Vcpu { .. }) if counts => {
                if let Some(guest) = self.guest(who) {
                    guest.exits = guest.exits.saturating_add(1);
                }
            }
            (Some(TraceKind::Interrupt), _) if counts => self.load.interrupts = self.load.interrupts.saturating_add(1),
            _ => {}
        }
        // What is noted says who runs; an answer leaves no record.
        match kind {
            Some(TraceKind::Idle) => self.who = Some(Who::Nobody),
            Some(_) if record.who != Who::Nobody => self.who = Some(record.who),
            _ => {}
        }
    }

    /// Time passes for whoever runs.
    fn pass(&mut self, time: u64) {
        // Before the first record nobody knows who it was.
        let begin = if self.until == 0 { time } else { self.until };
        let ticks = time.saturating_sub(begin.max(self.from));
        self.until = time.max(self.until);
        self.load.ticks += ticks;
        match self.who {
            Some(Who::Nobody) => self.load.idle += ticks,
            Some(who) => {
                if let Some(guest) = self.guest(who) {
                    guest.ticks += ticks;
                }
            }
            None => {}
        }
    }

    fn end(mut self, now: u64) -> Load {
        if self.until != 0 {
            self.pass(now);
        }
        self.load
    }

    /// The guest that somebody is, or works for.
    fn guest(&mut self, who: Who) -> Option<&mut GuestLoad> {
        let guest = match who {
            Who::Nobody => return None,
            Who::Vcpu { guest, .. } => u8::try_from(guest).ok()?,
            // Root is domain 0, then come the servers.
            Who::Thread { domain, .. } => match self.plan.servers.get(usize::from(domain).checked_sub(1)?)?.role {
                Role::P2m(guest) | Role::Vcpu(guest) => guest,
                Role::Console | Role::Irqfwd | Role::Smmu | Role::Monitor => return None,
            },
        };
        if !self.load.guests.iter().any(|known| known.guest == guest) {
            self.load.guests.push(GuestLoad { guest, ticks: 0, exits: 0 }).ok()?;
        }
        self.load.guests.iter_mut().find(|known| known.guest == guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, plan};
    use trellis_idl::trace::RECORDS;

    /// The fake's clock stands here.
    const NOW: u64 = 1_000_000;

    fn note(fake: &Fake, time: u64, kind: TraceKind, who: Who) {
        fake.note(Record { what: kind.with(0), argument: 0, time, who });
    }

    const GUEST: Who = Who::Vcpu { guest: 1, number: 0 };
    /// vcpu.b is the fourth server behind the console.
    const SERVER: Who = Who::Thread { domain: 5, number: 0 };

    #[test]
    fn time_goes_to_who_ran_and_exits_to_their_guest() {
        let (fake, plan) = (Fake::new(), plan());
        note(&fake, NOW - 1000, TraceKind::Idle, Who::Nobody);
        note(&fake, NOW - 600, TraceKind::Interrupt, Who::Nobody);
        note(&fake, NOW - 600, TraceKind::Runs, GUEST);
        note(&fake, NOW - 500, TraceKind::Exit, GUEST);
        note(&fake, NOW - 400, TraceKind::Runs, SERVER);
        note(&fake, NOW - 300, TraceKind::Runs, Who::Thread { domain: 0, number: 0 });
        note(&fake, NOW - 100, TraceKind::Idle, Who::Nobody);
        let load = of(&fake, &plan, 0, 10_000).expect("it runs");
        let guests = [GuestLoad { guest: 1, ticks: 300, exits: 1 }].into_iter().collect();
        assert_eq!(load, Load { cpu: 0, ticks: 1000, idle: 500, interrupts: 1, guests });
        // Only the last stretch: what was before it says who ran at its begin.
        let load = of(&fake, &plan, 0, 450).expect("it runs");
        assert_eq!((load.ticks, load.idle, load.guests[0].ticks, load.guests[0].exits), (450, 100, 150, 0));
    }

    #[test]
    fn records_that_come_while_it_reads_do_not_hide_the_others() {
        let (fake, plan) = (Fake::new(), plan());
        for index in 0..RECORDS * 2 {
            note(&fake, 1000 + index, TraceKind::Exit, GUEST);
        }
        fake.notes_reads(2);
        let load = of(&fake, &plan, 0, NOW).expect("it runs");
        assert!(u64::from(load.guests[0].exits) > RECORDS - 2 * MARGIN, "{load:?}");
    }

    #[test]
    fn a_ring_that_went_round_counts_once_and_says_how_far_back_it_goes() {
        let (fake, plan) = (Fake::new(), plan());
        let all = 3 * RECORDS + 17;
        for index in 0..all {
            note(&fake, NOW - all + index, TraceKind::Exit, GUEST);
        }
        let load = of(&fake, &plan, 0, NOW).expect("it runs");
        assert!(load.ticks >= RECORDS - MARGIN - 2 && load.ticks <= RECORDS, "{load:?}");
        assert_eq!(load.guests[0].ticks, load.ticks);
        assert!(u64::from(load.guests[0].exits) >= RECORDS - MARGIN - 2, "{load:?}");
        assert_eq!(of(&Fake::new(), &plan, 0, 5).map(|load| load.ticks), Some(0), "nothing was noted");
    }
}
