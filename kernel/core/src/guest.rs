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
