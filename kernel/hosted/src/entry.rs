// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page-table entry of this machine's own: page << 12 | access << 2 | what it is. Leaves are linear in their page.

use trellis_core::machine::{Entry, Leaf};
use trellis_idl::kernel::Access;

const TABLE: u64 = 1;
const LEAF: u64 = 2;

/// Packs an entry.
pub fn pack(entry: Entry) -> u64 {
    match entry {
        Entry::Absent => 0,
        Entry::Table(page) => page << 12 | TABLE,
        Entry::Leaf(leaf) => leaf.page << 12 | (leaf.access.0 & 0x3ff) << 2 | LEAF,
    }
}

/// Unpacks one.
pub fn unpack(entry: u64) -> Entry {
    match entry & 3 {
        TABLE => Entry::Table(entry >> 12),
        LEAF => Entry::Leaf(Leaf { page: entry >> 12, access: Access(entry >> 2 & 0x3ff) }),
        _ => Entry::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_linear_and_survive() {
        let leaf = |page| Entry::Leaf(Leaf { page, access: Access::READ.with(Access::DEVICE) });
        for page in [0, 7, 512, 0x40000] {
            assert_eq!(unpack(pack(leaf(page))), leaf(page));
            assert_eq!(pack(leaf(page + 512)) - pack(leaf(page)), 512 << 12);
        }
        assert_eq!(unpack(pack(Entry::Table(9))), Entry::Table(9));
        assert_eq!(unpack(pack(Entry::Absent)), Entry::Absent);
    }
}
