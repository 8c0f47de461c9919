// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's memory: one range of guest pages over one run of frames, page by page at the same distance.
//!
//! What is mapped is the kernel's to know: it refuses a page that is mapped already, and this relies on it. So threads
//! need no lock among each other: of two that map the same block, one is told that it is there.

use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::layout::slot;
use trellis_idl::plan::DevicePages;
use trellis_runtime::{Frames, Guest, System};

/// Pages of a 2 MiB block.
pub const BLOCK: u64 = 512;
/// Pages of a 1 GiB block: what is mapped by one call at most.
pub const GIANT: u64 = BLOCK * BLOCK;
/// Guest-physical pages end here (39 bits of address, as the kernel's maps).
const LIMIT: u64 = 1 << 27;

/// The guest.
pub(crate) const GUEST: Guest = Guest::at(slot::GUEST);
const MEMORY: Frames = Frames::at(slot::MEMORY);
/// Guest memory may be used for anything; the guest's own tables say for what.
pub(crate) const ANY: Access = Access::READ.with(Access::WRITE).with(Access::EXECUTE);

/// Maps GICv2's virtual CPU interface (8 KiB) at a guest page; root granted its frames behind those of memory.
pub fn map_interface(system: &impl System, page: u64) -> Result<(), Refusal> {
    stays(GUEST.map(system, 0, page, Frames::at(slot::MEMORY + 1), 0, 2, Access::READ.with(Access::WRITE)))
}

/// Maps the guest's own devices, where they are not memory; root granted their frames.
pub fn map_devices(system: &impl System, devices: &[DevicePages]) -> Result<(), Refusal> {
    for (slot, device) in (slot::DEVICE..).zip(devices) {
        let access = Access::READ.with(Access::WRITE);
        stays(GUEST.map(system, 0, device.page, Frames::at(slot), 0, device.pages, access))?;
    }
    Ok(())
}

/// What is there already has stayed when memory was cleared.
fn stays(mapped: Result<(), Refusal>) -> Result<(), Refusal> {
    if mapped == Err(Refusal::Occupied) { Ok(()) } else { mapped }
}

/// The guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Map {
    first: u64,
    pages: u64,
}

impl Map {
    /// Memory of `pages` guest pages from `first` on.
    pub fn new(first: u64, pages: u64) -> Result<Map, Refusal> {
        match first.checked_add(pages) {
            Some(end) if end <= LIMIT && pages > 0 => Ok(Map { first, pages }),
            _ => Err(Refusal::OutOfRange),
        }
    }

    /// Its first page.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Its pages.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Its first page and the one behind its last: guest pages have at most 27 bits ([`LIMIT`]).
    pub const fn range(&self) -> (u32, u32) {
        (self.first as u32, (self.first + self.pages) as u32)
    }

    /// Whether a guest page is memory.
    #[inline(always)]
    pub fn has(&self, page: u64) -> bool {
        page.wrapping_sub(self.first) < self.pages
    }

    /// Gives a page of memory its frame, and its neighbours in the 2 MiB block theirs. True: the access may be tried
    /// again, whoever mapped the page.
    #[inline(always)]
    pub fn touch(&self, system: &impl System, page: u64) -> Result<(), Refusal> {
        let block = page & !(BLOCK - 1);
        if self.has(block) && self.has(block + BLOCK - 1) {
            let done = self.map(system, block, BLOCK);
            if done.is_ok() {
                return done;
            }
        }
        self.touch_page(system, page)
    }

    /// The same for one page: a part of its block is mapped already, or is not memory.
    #[cold]
    fn touch_page(&self, system: &impl System, page: u64) -> Result<(), Refusal> {
        match self.map(system, page, 1) {
            // Another vCPU touched it first.
            Err(Refusal::Occupied) => Ok(()),
            other => other,
        }
    }

    /// Maps all of memory, where nothing is mapped yet, with the largest blocks.
    pub fn map_all(&self, system: &impl System) -> Result<(), Refusal> {
        let end = self.first + self.pages;
        let mut page = self.first;
        while page < end {
            let stop = end.min((page / GIANT + 1) * GIANT);
            self.map(system, page, stop - page)?;
            page = stop;
        }
        Ok(())
    }

    /// Makes sure that these pages have frames, some of which may be there.
    pub fn populate(&self, system: &impl System, first: u64, pages: u64) -> Result<(), Refusal> {
        let end = self.end(first, pages)?;
        let mut page = first;
        while page < end {
            let stop = end.min((page / BLOCK + 1) * BLOCK);
            match self.map(system, page, stop - page) {
                Err(Refusal::Occupied) => (page..stop).try_for_each(|page| self.touch_page(system, page))?,
                other => other?,
            }
            page = stop;
        }
        Ok(())
    }

    /// Shows the page of zeroes at a guest page that is not memory. It stays when memory is cleared: it is the same always.
    pub fn blank(&self, system: &impl System, page: u64) -> Result<(), Refusal> {
        if self.has(page) || page >= LIMIT {
            return Err(Refusal::OutOfRange);
        }
        match GUEST.map(system, 0, page, Frames::at(slot::BLANK), 0, 1, Access::READ) {
            // Another vCPU read it first.
            Err(Refusal::Occupied) => Ok(()),
            other => other,
        }
    }

    /// Takes every mapping away.
    pub fn clear(&self, system: &impl System) -> Result<(), Refusal> {
        GUEST.unmap(system, 0, self.first, self.pages)
    }

    /// The end of a range that lies in memory.
    fn end(&self, first: u64, pages: u64) -> Result<u64, Refusal> {
        let end = first.checked_add(pages).ok_or(Refusal::OutOfRange)?;
        let inside = pages == 0 || (self.has(first) && self.has(end - 1));
        if inside { Ok(end) } else { Err(Refusal::OutOfRange) }
    }

    /// Maps pages of memory where nothing is.
    #[inline(always)]
    fn map(&self, system: &impl System, page: u64, pages: u64) -> Result<(), Refusal> {
        GUEST.map(system, 0, page, MEMORY, page - self.first, pages, ANY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn eager_memory_is_mapped_in_giant_pieces() {
        let fake = Fake::default();
        let map = Map::new(0x40000, 3 * GIANT / 2).unwrap();
        map.map_all(&fake).unwrap();
        assert_eq!(fake.maps(), [(0x40000, 0, GIANT), (0x80000, GIANT, GIANT / 2)]);
    }

    #[test]
    fn a_touch_maps_the_whole_block_once() {
        let fake = Fake::default();
        let map = Map::new(0x40000, 4 * BLOCK).unwrap();
        map.touch(&fake, 0x40000 + 700).unwrap();
        map.touch(&fake, 0x40000 + 701).unwrap();
        assert_eq!(fake.maps(), [(0x40000 + BLOCK, BLOCK, BLOCK)]);
    }

    #[test]
    fn a_block_that_sticks_out_of_memory_is_mapped_by_page() {
        let fake = Fake::default();
        let map = Map::new(0x40010, 100).unwrap();
        map.touch(&fake, 0x40011).unwrap();
        assert_eq!(fake.maps(), [(0x40011, 1, 1)]);
    }

    #[test]
    fn populating_fills_the_holes() {
        let fake = Fake::default();
        let map = Map::new(0x40010, 1000).unwrap();
        map.touch(&fake, 0x40020).unwrap();
        map.populate(&fake, 0x4001f, 3).unwrap();
        assert_eq!(fake.maps(), [(0x40020, 0x10, 1), (0x4001f, 0xf, 1), (0x40021, 0x11, 1)]);
        assert_eq!(map.populate(&fake, 0x4000f, 3), Err(Refusal::OutOfRange));
        assert_eq!(map.populate(&fake, 0x40010, 1001), Err(Refusal::OutOfRange));
        assert_eq!(map.populate(&fake, u64::MAX, 2), Err(Refusal::OutOfRange));
    }

    #[test]
    fn impossible_memory_is_refused() {
        assert_eq!(Map::new(LIMIT, 1), Err(Refusal::OutOfRange));
        assert_eq!(Map::new(u64::MAX, 2), Err(Refusal::OutOfRange));
        assert_eq!(Map::new(5, 0), Err(Refusal::OutOfRange));
    }
}
