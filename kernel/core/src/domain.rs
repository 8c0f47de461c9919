// SPDX-License-Identifier: MIT OR Apache-2.0
//! A domain: an address space, a capability table and a rank.

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
    /// Threads it has, on all CPUs.
    pub threads: u16,
}

impl Domain {
    /// No domain.
    pub const EMPTY: Domain =
        Domain { space: Space::EMPTY, table: TableRange { first: 0, count: 0 }, rank: 0, tables: 0, threads: 0 };
}
