// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rooms: memory and slots that are kept for something that comes and goes, of another size each time.
//!
//! A [`crate::supply::Lot`] is made again just as it was; a monitor that is put into another's place is not. Its room is
//! one run, of which its program, stacks and tables are split off, and a stretch of slots. Taking back the run takes back
//! whatever was made of it. What the host sends to take its place is kept in its store.

use crate::supply::Supply;
use crate::{StartError, Step};
use trellis_idl::plan::ServerPlan;
use trellis_runtime::{Frames, System};

/// Memory and slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// The memory.
    pub run: Frames,
    /// The first slot.
    pub first: u64,
    /// How many there are.
    pub slots: u64,
}

impl Room {
    /// A room of so many pages and slots.
    pub fn make(system: &impl System, supply: &mut Supply, pages: u64, slots: u64) -> Result<Room, StartError> {
        let run = supply.take(system, pages)?;
        Ok(Room { run, first: supply.slots(slots), slots })
    }

    /// Empties it: whatever domain was made of it is gone already. It can be used again.
    pub fn clear(&self, system: &impl System) -> Result<(), StartError> {
        // Parts of the run go with it, out of their slots too.
        self.run.reclaim(system).step("reclaim memory")?;
        for slot in self.first..self.first + self.slots {
            // What ended with its domain is out of its slot already.
            let _ = Frames::at(slot).forget(system);
        }
        Ok(())
    }
}

/// Memory for two files: the one of which a server was made, and the one that comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    /// The memory.
    pub run: Frames,
    /// Pages of each.
    pub pages: u64,
    /// Which of the two comes next: 0 or 1.
    pub next: u64,
    /// The lowest number that a signed one may have.
    pub lowest: u64,
}

impl Store {
    /// That of a server whose place another may take.
    pub fn make(system: &impl System, supply: &mut Supply, server: &ServerPlan<'_>) -> Result<Option<Store>, StartError> {
        let Some(swap) = server.swap else { return Ok(None) };
        let pages = u64::from(swap.pages);
        let run = supply.take(system, 2 * pages)?;
        Ok(Some(Store { run, pages, next: 0, lowest: swap.counter }))
    }

    /// The file that came is the one that runs now, with this number.
    pub fn turn(&mut self, counter: u64) {
        self.next = 1 - self.next;
        self.lowest = self.lowest.max(counter);
    }
}
