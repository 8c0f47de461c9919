// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on runs of memory: split, take back, tell; and what the makers of maps need to know of a run.

use super::{Call, Done, one};
use crate::cap::Cap;
use crate::frame::{MapName, Use};
use crate::local::THREADS;
use crate::machine::Machine;
use crate::shared::{Control, DOMAINS, GUESTS};
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, Kind, Refusal, Rights};

impl<M: Machine> Call<'_, M> {
    pub(super) fn frames_split(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        self.shared.table.check_empty(self.table, self.a[3])?;
        let mut control = self.shared.control.lock();
        let part = control.runs.split(cap.name, self.a[1], self.a[2])?;
        let run = *control.runs.get(part)?;
        if !run.device && !run.constant {
            self.machine.zero(run.first, run.pages);
        }
        self.put(self.a[3], Kind::Frames, cap.word.rights(), 0, part)?;
        one(0)
    }

    pub(super) fn frames_reclaim(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights::CONTROL)?;
        let mut control = self.shared.control.lock();
        let run = *control.runs.get(cap.name)?;
        if run.use_ != Use::Memory || control.runs.has_parts(cap.name) {
            return Err(Refusal::BadState);
        }
        let range = run.first..run.first + run.pages;
        let here = self.local.cpu as usize;
        let elsewhere = self.shared.cpus.iter().enumerate().filter(|(cpu, _)| *cpu != here);
        // Message buffers of this CPU's threads are taken away below; those of others must go with their threads first.
        if elsewhere.flat_map(|(_, mail)| &mail.buffers).any(|page| range.contains(&page.load(Ordering::Acquire))) {
            return Err(Refusal::BadState);
        }
        let keep = Some((self.table, self.a[0]));
        self.shared.table.clear_name(Kind::Frames, cap.name, keep);
        for map in run.mapped() {
            match map {
                MapName::Domain(index) => {
                    let mut domain = self.shared.domains[index as usize % DOMAINS].lock();
                    let stale = domain.space.purge(self.machine, run.first, run.pages)?;
                    self.machine.invalidate(stale);
                }
                MapName::Guest(index) => {
                    let mut guest = self.shared.guests[index as usize % GUESTS].lock();
                    let stale = guest.space.purge(self.machine, run.first, run.pages)?;
                    self.machine.invalidate(stale);
                }
                MapName::None => {}
            }
            control.runs.get_mut(cap.name)?.forget(map);
        }
        for index in 0..THREADS as u16 {
            let thread = self.local.threads.at_mut(index);
            if range.contains(&thread.buffer) {
                thread.buffer = 0;
                self.shared.cpus[here].buffers[index as usize].store(0, Ordering::Release);
            }
        }
        if !run.device && !run.constant {
            self.machine.zero(run.first, run.pages);
        }
        one(0)
    }

    pub(super) fn frames_info(&mut self) -> Done {
        let cap = self.cap(0, Kind::Frames, Rights(0))?;
        let control = self.shared.control.lock();
        let run = control.runs.get(cap.name)?;
        let first = if cap.word.rights().covers(Rights::CONTROL) { run.first } else { 0 };
        Ok([run.pages, first, u64::from(run.device)])
    }

    /// Takes a whole run for page tables.
    pub(super) fn take_tables(&self, control: &mut Control, name: u64) -> Result<(u64, u64), Refusal> {
        let run = *control.runs.get(name)?;
        control.runs.check(name, 0, run.pages)?;
        if run.device || run.constant || run.mapped().next().is_some() {
            return Err(Refusal::BadArgument);
        }
        control.runs.get_mut(name)?.use_ = Use::Tables;
        Ok((run.first, run.pages))
    }

    /// A map is gone: its tables are memory again, without what stood in them, and no run is in it any more.
    pub(super) fn give_tables_back(&mut self, control: &mut Control, tables: u64, map: MapName) {
        if let Ok(run) = control.runs.get_mut(tables) {
            run.use_ = Use::Memory;
            let (first, pages) = (run.first, run.pages);
            self.machine.zero(first, pages);
        }
        control.runs.forget_map(map);
    }

    /// What a mapping may allow, given the rights of the frames' capability.
    pub(super) fn access_of(cap: Cap, wanted: u64, device: bool, constant: bool) -> Result<Access, Refusal> {
        if wanted & !7 != 0 {
            return Err(Refusal::BadArgument);
        }
        let held = (cap.word.rights().0 & 7) as u64;
        if wanted & !held != 0 || (constant && wanted & Access::WRITE.0 != 0) {
            return Err(Refusal::MissingRight);
        }
        Ok(if device { Access(wanted).with(Access::DEVICE) } else { Access(wanted) })
    }

    /// What any mapping of these frames may allow.
    pub(super) fn most_of(cap: Cap, constant: bool) -> Access {
        let held = Access(u64::from(cap.word.rights().0 & 7));
        if constant { Access(held.0 & !Access::WRITE.0) } else { held }
    }
}
