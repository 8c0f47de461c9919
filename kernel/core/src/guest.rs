// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest: the maps its vCPUs see. What is particular to views other than the host map is in [`crate::view`].

use crate::float::Areas;
use crate::grace::Mark;
use crate::machine::{Memory, PAGE_BYTES};
use crate::space::{FIXED, Space};
use crate::view::Views;
use trellis_idl::kernel::{Access, Refusal};

/// Most bytes that one `GuestRead` or `GuestWrite` moves: bounds the time in the kernel.
pub const MOST_BYTES: u64 = 64 * 1024;

/// A guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guest {
    /// The host map. Its tables serve the views as well.
    pub space: Space,
    /// Where the views are.
    pub views: Views,
    /// Name of the run its tables are in.
    pub tables: u64,
    /// CPUs on which it has vCPUs, one bit each.
    pub cpus: u64,
    /// Since when it has no map any more: its index is used again after that.
    pub mark: Mark,
    /// What every frame that was ever mapped here allows: no access may be changed to more.
    pub most: Access,
    /// Save areas of its vCPUs' floating-point registers.
    pub float: Areas,
}

impl Guest {
    /// Every access to memory.
    pub const ANY: Access = Access(7);
    /// No guest.
    pub const EMPTY: Guest = Guest {
        space: Space::EMPTY, views: Views::NONE, tables: 0, cpus: 0, mark: 0, most: Guest::ANY, float: Areas::NONE,
    };
}

/// Where a value of up to 16 bytes stands in the 16 bytes around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Machine address of those.
    address: u64,
    /// Which of the two words it is in; both, if it is as large.
    half: usize,
    /// Bits below it.
    shift: u32,
    /// Its own bits, where it is no larger than a word.
    bits: u64,
    is_pair: bool,
}

impl Place {
    fn new(address: u64, size: u64) -> Place {
        Place {
            address: address & !15,
            half: (address >> 3 & 1) as usize,
            shift: (address & 7) as u32 * 8,
            bits: u64::MAX >> (64 - (8u32 << size.min(3))),
            is_pair: size == 4,
        }
    }

    /// A value as it stands there, and nothing around it.
    fn put(&self, value: [u64; 2]) -> [u64; 2] {
        if self.is_pair {
            return value;
        }
        let mut words = [0; 2];
        words[self.half & 1] = (value[0] & self.bits) << self.shift;
        words
    }

    /// Compares and swaps: whether it was written, and what was there.
    pub fn swap<M: Memory>(&self, memory: &mut M, expected: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]) {
        let mask = self.put([u64::MAX; 2]);
        let (written, found) = memory.swap(self.address, mask, self.put(expected), self.put(new));
        (written, if self.is_pair { found } else { [found[self.half & 1] >> self.shift & self.bits, 0] })
    }
}

impl Guest {
    /// Where a value of guest memory is that may be swapped: as for what is copied into a guest ([`copy`]), the host map and
    /// what its frames allow to everybody count.
    pub fn swappable<M: Memory>(&self, memory: &M, size: u64, address: u64) -> Result<Place, Refusal> {
        if size > 4 || address & ((1 << size) - 1) != 0 {
            return Err(Refusal::BadArgument);
        }
        let leaf = self.space.find(memory, address / PAGE_BYTES).ok_or(Refusal::NotMapped)?;
        let may = self.most.covers(Access::WRITE) || leaf.access.covers(Access::WRITE);
        if leaf.access.0 & (Access::DEVICE.0 | FIXED.0) != 0 || !may {
            return Err(Refusal::BadArgument);
        }
        Ok(Place::new(leaf.page * PAGE_BYTES + address % PAGE_BYTES, size))
    }
}

/// Copies between two maps page by page; stops where either has no page or forbids it. Says how many bytes.
pub fn copy<M: Memory>(
    memory: &mut M, to: (&Space, u64, Access), from: (&Space, u64, Access), bytes: u64, code: bool,
) -> Result<u64, Refusal> {
    if bytes > MOST_BYTES {
        return Err(Refusal::BadArgument);
    }
    let end_to = to.1.checked_add(bytes).ok_or(Refusal::OutOfRange)?;
    from.1.checked_add(bytes).ok_or(Refusal::OutOfRange)?;
    let mut done = 0;
    while to.1 + done < end_to {
        let (target, source) = (to.1 + done, from.1 + done);
        let room = PAGE_BYTES - (target % PAGE_BYTES).max(source % PAGE_BYTES);
        let step = room.min(bytes - done);
        let (Some(t), Some(s)) = (to.0.find(memory, target / PAGE_BYTES), from.0.find(memory, source / PAGE_BYTES))
        else {
            break;
        };
        let device = t.access.covers(Access::DEVICE) || s.access.covers(Access::DEVICE);
        let fixed = t.access.covers(FIXED);
        if device || fixed || !t.access.covers(to.2) || !s.access.covers(from.2) {
            break;
        }
        let target = t.page * PAGE_BYTES + target % PAGE_BYTES;
        let source = s.page * PAGE_BYTES + source % PAGE_BYTES;
        memory.copy(target, source, step, code);
        done += step;
    }
    Ok(done)
}
