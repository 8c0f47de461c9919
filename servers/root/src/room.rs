// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rooms: memory and slots that are kept for something that comes and goes, of another size each time.
//!
//! A [`crate::supply::Lot`] is made again just as it was; a monitor that is put into another's place is not. Its room is
//! one run, of which its program, stacks and tables are split off, and a stretch of slots. Taking back the run takes back
//! whatever was made of it.

use crate::supply::Supply;
use crate::{StartError, Step};
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
