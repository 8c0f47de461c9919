// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory and capability slots to hand out: parts of the free runs, first fit, and parts of the payload, each once.

use crate::{StartError, Step, patiently};
use crate::room::Room;
use heapless::Vec;
use trellis_idl::kernel::{PAGE, Refusal};
use trellis_idl::layout::root_slot;
use trellis_idl::plan::Part;
use trellis_runtime::{Frames, System};

/// Free pieces that are kept track of; what is cut off beyond that is lost.
const PIECES: usize = 64;
/// Parts of the payload in use, each in a slot of its own before all others.
const PARTS: usize = 128;
/// First slot of everything else.
const FIRST: u64 = root_slot::FREE + PARTS as u64;
/// Free runs that the kernel gives at most.
const RUNS: u64 = root_slot::DEVICES - root_slot::MEMORY;

/// A free piece of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    run: Frames,
    /// First page in the run.
    first: u64,
    pages: u64,
    /// Machine page of the run's first page.
    base: u64,
}

/// Slots that were handed out one after the other, and which of them hold runs of memory: what is made of them can be
/// made again of the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lot {
    first: u16,
    end: u16,
    /// One bit a slot.
    runs: u128,
}

impl Lot {
    const fn has_run(&self, slot: u64) -> bool {
        let bit = slot.wrapping_sub(self.first as u64);
        bit < 128 && self.runs >> bit & 1 == 1
    }

    fn slots(&self) -> impl Iterator<Item = u64> + use<> {
        u64::from(self.first)..u64::from(self.end)
    }

    /// Its runs of memory.
    pub fn runs(&self) -> impl Iterator<Item = Frames> + use<> {
        let lot = *self;
        self.slots().filter(move |slot| lot.has_run(*slot)).map(Frames::at)
    }

    /// Slots of everything else.
    pub fn objects(&self) -> impl Iterator<Item = u64> + use<> {
        let lot = *self;
        self.slots().filter(move |slot| !lot.has_run(*slot))
    }

    /// Empties the slots of everything but memory.
    pub fn forget(&self, system: &impl System) {
        for slot in self.objects() {
            // What ended with whom it was made for is out of its slot already.
            let _ = Frames::at(slot).forget(system);
        }
    }

    /// The same, and takes its memory back: it can be used again.
    pub fn take_back(&self, system: &impl System) -> Result<(), StartError> {
        self.forget(system);
        self.runs().try_for_each(|run| run.reclaim(system)).step("reclaim memory")
    }
}

/// What root still has.
#[derive(Debug)]
pub struct Supply {
    pieces: Vec<Piece, PIECES>,
    parts: Vec<(Part, Frames), PARTS>,
    next_slot: u64,
    /// What is being handed out belongs to this; it was handed out before when it has an end.
    lot: Lot,
    /// What is being handed out is of this room, whose memory is used up to this page.
    room: Option<(Room, u64)>,
}

impl Supply {
    /// Everything that the kernel gave root.
    pub fn new(system: &impl System) -> Supply {
        let mut pieces = Vec::new();
        for slot in root_slot::MEMORY..root_slot::MEMORY + RUNS {
            let run = Frames::at(slot);
            let Ok(info) = run.info(system) else { continue };
            // As many as there can be runs, and there is room for more.
            let _ = pieces.push(Piece { run, first: 0, pages: info.pages, base: info.first });
        }
        Supply { pieces, parts: Vec::new(), next_slot: FIRST, lot: Lot::default(), room: None }
    }

    /// Bytes of memory that belong to nobody yet.
    pub fn free_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.pages * PAGE).sum()
    }

    /// An empty slot.
    pub fn slot(&mut self) -> u64 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    /// The first of so many empty slots.
    pub fn slots(&mut self, count: u64) -> u64 {
        self.next_slot += count;
        self.next_slot - count
    }

    /// From now on hands out what is in an empty room. Back: for [`Supply::leave`].
    pub fn enter(&mut self, room: Room) -> u64 {
        self.room = Some((room, 0));
        core::mem::replace(&mut self.next_slot, room.first)
    }

    /// Hands out what belongs to nobody again. Refused: the room had too few slots.
    pub fn leave(&mut self, before: u64) -> Result<(), StartError> {
        let used = core::mem::replace(&mut self.next_slot, before);
        match self.room.take() {
            Some((room, _)) if used <= room.first + room.slots => Ok(()),
            _ => Err(StartError::Plan("too much for a room")),
        }
    }

    /// From now on everything belongs to one lot.
    pub fn begin(&mut self) {
        self.lot = Lot { first: self.next_slot as u16, end: 0, runs: 0 };
    }

    /// The lot is complete.
    pub fn end(&mut self) -> Result<Lot, StartError> {
        let lot = Lot { end: self.next_slot as u16, ..core::mem::take(&mut self.lot) };
        let fits = lot.end.wrapping_sub(lot.first) <= 128;
        if fits { Ok(lot) } else { Err(StartError::Plan("too much that belongs together")) }
    }

    /// From now on hands out a lot that was handed out before, and is empty and clean again: every slot and run in its
    /// order. Back: for [`Supply::go_on`].
    pub fn repeat(&mut self, lot: &Lot) -> u64 {
        self.lot = *lot;
        core::mem::replace(&mut self.next_slot, lot.first.into())
    }

    /// Hands out what is new again.
    pub fn go_on(&mut self, before: u64) {
        self.lot = Lot::default();
        self.next_slot = before;
    }

    /// A run of so many pages.
    pub fn take(&mut self, system: &impl System, pages: u64) -> Result<Frames, StartError> {
        self.take_aligned(system, pages, 1)
    }

    /// A run of so many pages, at a machine page that `align` (a power of two) divides.
    pub fn take_aligned(&mut self, system: &impl System, pages: u64, align: u64) -> Result<Frames, StartError> {
        if let Some((room, used)) = self.room {
            let slot = self.slot();
            let run = patiently(system, || room.run.split(system, used, pages, slot)).step("split a room's memory")?;
            self.room = Some((room, used + pages));
            return Ok(run);
        }
        if self.lot.end != 0 {
            let run = Frames::at(self.slot());
            let fits = run.info(system).step("take memory again")?.pages == pages;
            return if fits { Ok(run) } else { Err(StartError::Plan("another lot")) };
        }
        let fit = self.pieces.iter().enumerate().find_map(|(index, piece)| {
            let gap = (piece.base + piece.first).wrapping_neg() & (align - 1);
            (piece.pages.checked_sub(gap)? >= pages).then_some((index, *piece, gap))
        });
        let Some((index, piece, gap)) = fit else { return Err(StartError::Refused("memory", Refusal::Quota)) };
        let slot = self.slot();
        let run = piece.run.split(system, piece.first + gap, pages, slot).step("split memory")?;
        self.lot.runs |= 1u128.checked_shl(slot.wrapping_sub(u64::from(self.lot.first)) as u32).unwrap_or(0);
        let behind = Piece { first: piece.first + gap + pages, pages: piece.pages - gap - pages, ..piece };
        if let Some(place) = self.pieces.get_mut(index) {
            *place = behind;
        }
        if gap > 0 {
            // With too many pieces the gap stays unused.
            let _ = self.pieces.push(Piece { pages: gap, ..piece });
        }
        Ok(run)
    }

    /// The run of a part of the payload. Servers whose plans name the same part share it.
    pub fn part(&mut self, system: &impl System, part: Part) -> Result<Frames, StartError> {
        if let Some((_, run)) = self.parts.iter().find(|(known, _)| *known == part) {
            return Ok(*run);
        }
        if !part.offset.is_multiple_of(PAGE) || part.bytes == 0 {
            return Err(StartError::Plan("a part that is empty or not at a page"));
        }
        let slot = root_slot::FREE + self.parts.len() as u64;
        let run = Frames::at(root_slot::PAYLOAD)
            .split(system, part.offset / PAGE, part.bytes.div_ceil(PAGE), slot)
            .step("split payload")?;
        self.parts.push((part, run)).map_err(|_| StartError::Plan("too many parts"))?;
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn aligned_runs_leave_their_gap_for_others() {
        let fake = Fake::new();
        let mut supply = Supply::new(&fake);
        let first = supply.take_aligned(&fake, 1024, 512).unwrap();
        assert_eq!(first.info(&fake).unwrap().first % 512, 0);
        let second = supply.take(&fake, 4).unwrap();
        let runs = fake.runs();
        assert!(runs.iter().all(|(first, pages)| first + pages <= fake.memory_end()));
        assert_ne!(first.slot(), second.slot());
        fake.check_runs_do_not_overlap();
    }

    #[test]
    fn a_lot_that_was_taken_apart_is_handed_out_again_in_its_order() {
        let fake = Fake::new();
        let mut supply = Supply::new(&fake);
        let other = supply.slot();
        let part = Part { offset: 0x2000, bytes: 5000 };
        let make = |supply: &mut Supply| {
            let run = supply.take(&fake, 3)?;
            let slot = supply.slot();
            supply.part(&fake, part)?;
            Ok::<_, StartError>((run, slot, supply.take_aligned(&fake, 512, 512)?))
        };
        supply.begin();
        let first = make(&mut supply).unwrap();
        let lot = supply.end().unwrap();
        assert_eq!(lot.runs().collect::<std::vec::Vec<_>>(), [first.0, first.2]);
        assert_eq!(lot.objects().collect::<std::vec::Vec<_>>(), [first.1]);
        let next = supply.slot();
        let before = supply.repeat(&lot);
        assert_eq!(make(&mut supply), Ok(first));
        supply.go_on(before);
        assert_eq!((supply.slot(), other + 4), (next + 1, next));
        supply.repeat(&lot);
        assert!(supply.take(&fake, 4).is_err(), "another size");
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let fake = Fake::new();
        let mut supply = Supply::new(&fake);
        assert!(matches!(supply.take(&fake, 1 << 40), Err(StartError::Refused("memory", Refusal::Quota))));
    }

    #[test]
    fn a_part_is_split_off_once() {
        let fake = Fake::new();
        let mut supply = Supply::new(&fake);
        let part = Part { offset: 0x2000, bytes: 5000 };
        let run = supply.part(&fake, part).unwrap();
        assert_eq!(supply.part(&fake, part), Ok(run));
        assert!(supply.part(&fake, Part { offset: 0x2001, bytes: 1 }).is_err());
    }
}
