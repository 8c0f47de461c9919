// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory and capability slots to hand out: parts of the free runs, first fit, and parts of the payload, each once.

use crate::{StartError, Step};
use heapless::Vec;
use trellis_idl::kernel::{PAGE, Refusal};
use trellis_idl::layout::root_slot;
use trellis_idl::plan::Part;
use trellis_runtime::{Frames, System};

/// Free pieces that are kept track of; what is cut off beyond that is lost.
const PIECES: usize = 64;
/// Parts of the payload in use.
const PARTS: usize = 128;
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

/// What root still has.
#[derive(Debug)]
pub struct Supply {
    pieces: Vec<Piece, PIECES>,
    parts: Vec<(Part, Frames), PARTS>,
    next_slot: u64,
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
        Supply { pieces, parts: Vec::new(), next_slot: root_slot::FREE }
    }

    /// An empty slot.
    pub fn slot(&mut self) -> u64 {
        self.next_slot += 1;
        self.next_slot - 1
    }

    /// A run of so many pages.
    pub fn take(&mut self, system: &impl System, pages: u64) -> Result<Frames, StartError> {
        self.take_aligned(system, pages, 1)
    }

    /// A run of so many pages, at a machine page that `align` (a power of two) divides.
    pub fn take_aligned(&mut self, system: &impl System, pages: u64, align: u64) -> Result<Frames, StartError> {
        let fit = self.pieces.iter().enumerate().find_map(|(index, piece)| {
            let gap = (piece.base + piece.first).wrapping_neg() & (align - 1);
            (piece.pages.checked_sub(gap)? >= pages).then_some((index, *piece, gap))
        });
        let Some((index, piece, gap)) = fit else { return Err(StartError::Refused("memory", Refusal::Quota)) };
        let slot = self.slot();
        let run = piece.run.split(system, piece.first + gap, pages, slot).step("split memory")?;
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
        let slot = self.slot();
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
