// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain: an address space, a capability table and a rank.

use crate::grace::Mark;
use crate::space::Space;
use crate::table::TableRange;

/// A domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Domain {
    /// Its map.
    pub space: Space,
    /// Its capability table.
    pub table: TableRange,
    /// Calls go to lower ranks, forwards to higher ones.
    pub rank: u8,
    /// Name of the run its tables are in.
    pub tables: u64,
    /// CPUs on which it has threads, one bit each.
    pub cpus: u64,
    /// Since when it has no map any more: its slots and index are used again after that.
    pub mark: Mark,
}

impl Domain {
    /// No domain.
    pub const EMPTY: Domain =
        Domain { space: Space::EMPTY, table: TableRange { first: 0, count: 0 }, rank: 0, tables: 0, cpus: 0, mark: 0 };
}
