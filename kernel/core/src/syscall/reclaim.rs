// SPDX-License-Identifier: MIT OR Apache-2.0
//! Takes a run of memory back, with all that was ever split off it: every map, table, buffer and capability made of it.
//!
//! One call does a bounded piece and says whether there is more to do; the state of the work is in the runs, so it may be
//! left and taken up by anybody who has the right. From the first call on none of the runs can be used. The order: the
//! deepest part first (its tables with whom they serve, then its leaves in each map), it ends; then, for the whole, the
//! message buffers on each CPU, zeroes, the copies of its capability, and a look at every CPU that none is left in use.

use super::{Call, Done, MORE};
use crate::frame::{MapName, Run, Taking, Use};
use crate::grace::Mark;
use crate::local::THREADS;
use crate::machine::Machine;
use crate::shared::{Control, DOMAINS, GUESTS};
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Kind, Refusal, Rights};

/// Entries of maps that one call looks at.
const ENTRIES: usize = 4096;

/// Whom page tables serve.
enum Served {
    Domain(u64),
    Guest(u64),
}

impl<M: Machine> Call<'_, M> {
    pub(super) fn frames_reclaim(&mut self) -> Done {
        let name = self.name(0, Kind::Frames, Rights::CONTROL)?;
        let mut control = self.shared.control.lock();
        if self.lives_in(control.runs.get(name)?, &control) || control.runs.has_registers(name)? {
            return Err(Refusal::BadState);
        }
        control.runs.begin_taking(name)?;
        let part = control.runs.deepest(name)?;
        let run = *control.runs.get(part)?;
        if run.use_ == Use::Tables {
            return match self.served_by(&control, part) {
                Some(served) => {
                    drop(control);
                    // Finished or not: the tables' run itself is still to be taken back.
                    self.end_served(served).and(MORE)
                }
                None => {
                    self.give_tables_back(&mut control, part);
                    MORE
                }
            };
        }
        if !run.constant && run.mapped().next().is_some() {
            self.purge(&mut control, part)?;
            return MORE;
        }
        if part != name {
            self.shared.table.clear_name(Kind::Frames, part, None, self.shared.grace.mark());
            control.runs.join(part);
            return MORE;
        }
        self.finish(&mut control, name, &run)
    }

    /// Whether the caller's own map is made of these pages.
    fn lives_in(&self, run: &Run, control: &Control) -> bool {
        control.domains.names().any(|id| {
            let domain = self.shared.domains[id.index() % DOMAINS].lock();
            let tables = control.runs.get(domain.tables).is_ok_and(|tables| run.overlaps(tables));
            domain.table == self.table && tables
        })
    }

    fn served_by(&self, control: &Control, tables: u64) -> Option<Served> {
        let domain = |index: usize| self.shared.domains[index % DOMAINS].lock().tables == tables;
        let guest = |index: usize| self.shared.guests[index % GUESTS].lock().tables == tables;
        let domains = control.domains.names().find(|id| domain(id.index())).map(|id| Served::Domain(id.0));
        domains.or_else(|| control.guests.names().find(|id| guest(id.index())).map(|id| Served::Guest(id.0)))
    }

    /// A map without its tables is none: whom it serves ends.
    fn end_served(&mut self, served: Served) -> Done {
        match served {
            Served::Domain(name) => self.end_domain(name),
            Served::Guest(name) => self.end_guest(name),
        }
    }

    /// Unmaps a run's pages from the first of its maps, as far as one call goes.
    fn purge(&mut self, control: &mut Control, name: u64) -> Result<(), Refusal> {
        let run = control.runs.get_mut(name)?;
        let Some(map) = run.mapped().next() else { return Ok(()) };
        let frames = run.first..run.first + run.pages;
        let (stale, next) = match map {
            MapName::Domain(index) => {
                let mut domain = self.shared.domains[index as usize % DOMAINS].lock();
                domain.space.purge(self.machine, frames, run.cursor, ENTRIES)
            }
            MapName::Guest(index) => {
                let mut guest = self.shared.guests[index as usize % GUESTS].lock();
                guest.purge(self.machine, frames, run.cursor, ENTRIES)
            }
            MapName::None => return Ok(()),
        };
        self.machine.invalidate(stale);
        run.cursor = next;
        if next >= crate::space::LIMIT {
            run.forget(map);
        }
        Ok(())
    }

    /// The whole run, when it has neither parts nor maps any more.
    fn finish(&mut self, control: &mut Control, name: u64, run: &Run) -> Done {
        match run.taking {
            Taking::Settles(mark) => return self.settle(control, name, mark),
            Taking::Cleaned(_) => {}
            Taking::No | Taking::Begun => {
                // Nothing of it is mapped, so no buffer can be put there any more.
                let elsewhere = self.take_buffers(run);
                if elsewhere != 0 {
                    return self.go_on_at(elsewhere);
                }
            }
        }
        if !self.clean(control.runs.get_mut(name)?) {
            return MORE;
        }
        let mark = self.shared.grace.mark();
        self.shared.table.clear_name(Kind::Frames, name, Some((self.table, self.a[0])), mark);
        control.runs.get_mut(name)?.taking = Taking::Settles(mark);
        self.settle(control, name, mark)
    }

    fn settle(&mut self, control: &mut Control, name: u64, mark: Mark) -> Done {
        if !self.settled(mark) {
            return MORE;
        }
        control.runs.taken(name)?;
        Ok(0)
    }

    /// Threads of this CPU lose message buffers in the run. Says which other CPUs have threads with such buffers.
    fn take_buffers(&mut self, run: &Run) -> u64 {
        let range = run.first..run.first + run.pages;
        let here = self.local.cpu as usize;
        for index in 0..THREADS as u16 {
            let thread = self.local.threads.at_mut(index);
            if range.contains(&thread.buffer) {
                thread.buffer = 0;
                self.shared.cpus[here].buffers[index as usize].store(0, Ordering::Release);
            }
        }
        let has = |page: &core::sync::atomic::AtomicU64| range.contains(&page.load(Ordering::Acquire));
        let holding = self.shared.cpus.iter().enumerate().filter(|(_, mail)| mail.buffers.iter().any(has));
        holding.fold(0, |cpus, (cpu, _)| cpus | 1 << cpu)
    }
}
