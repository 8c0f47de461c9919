// SPDX-License-Identifier: MIT OR Apache-2.0
//! Free ranges of capability slots: taken when a domain is made, given back when it is gone. Bounded: between `N`
//! tables there are at most `N + 1` gaps.

use crate::shared::DOMAINS;
use crate::table::{SLOTS, TableRange};

const GAPS: usize = DOMAINS + 1;

/// The gaps between tables, in order, no two of which touch.
#[derive(Debug)]
pub struct Ranges {
    gaps: [TableRange; GAPS],
    used: usize,
}

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}

impl Ranges {
    /// Everything is free.
    pub const fn new() -> Self {
        let mut gaps = [TableRange { first: 0, count: 0 }; GAPS];
        gaps[0] = TableRange { first: 0, count: SLOTS as u32 };
        Ranges { gaps, used: 1 }
    }

    /// The gaps.
    pub fn free(&self) -> &[TableRange] {
        &self.gaps[..self.used.min(GAPS)]
    }

    /// Whether [`Ranges::take`] would find room.
    pub fn has(&self, count: u32) -> bool {
        self.free().iter().any(|gap| gap.count >= count)
    }

    /// Takes a range: from the first gap that is large enough.
    pub fn take(&mut self, count: u32) -> Option<TableRange> {
        let at = self.free().iter().position(|gap| gap.count >= count && count != 0)?;
        let first = self.gaps[at].first;
        self.gaps[at].first += count;
        self.gaps[at].count -= count;
        if self.gaps[at].count == 0 {
            self.close(at);
        }
        Some(TableRange { first, count })
    }

    /// Gives a range back.
    pub fn give(&mut self, range: TableRange) {
        let at = self.free().iter().position(|gap| gap.first > range.first).unwrap_or(self.used);
        let touches_next = self.free().get(at).is_some_and(|next| range.first + range.count == next.first);
        let before = at.checked_sub(1).filter(|i| self.gaps[*i].first + self.gaps[*i].count == range.first);
        match (before, touches_next) {
            (Some(before), true) => {
                self.gaps[before].count += range.count + self.gaps[at].count;
                self.close(at);
            }
            (Some(before), false) => self.gaps[before].count += range.count,
            (None, true) => {
                self.gaps[at].first = range.first;
                self.gaps[at].count += range.count;
            }
            (None, false) => self.open(at, range),
        }
    }

    /// Removes a gap that is none any more.
    fn close(&mut self, at: usize) {
        self.gaps.copy_within(at + 1..self.used, at);
        self.used -= 1;
    }

    /// Puts a gap between two others. There is room: fewer gaps than tables and one.
    fn open(&mut self, at: usize, range: TableRange) {
        if self.used < GAPS && range.count != 0 {
            self.gaps.copy_within(at..self.used, at + 1);
            self.gaps[at] = range;
            self.used += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn total(ranges: &Ranges) -> u32 {
        ranges.free().iter().map(|gap| gap.count).sum()
    }

    #[test]
    fn what_is_given_back_in_any_order_becomes_one_again() {
        let mut ranges = Ranges::new();
        let taken: Vec<TableRange> = (0..DOMAINS).map(|i| ranges.take(1 + i as u32 % 60).expect("room")).collect();
        assert!(taken.windows(2).all(|pair| pair[0].first + pair[0].count <= pair[1].first));
        // Every other first: as many gaps as there can be.
        for range in taken.iter().step_by(2).chain(taken.iter().skip(1).step_by(2)) {
            ranges.give(*range);
            assert!(ranges.free().windows(2).all(|pair| pair[0].first + pair[0].count < pair[1].first));
        }
        assert_eq!(ranges.free(), [TableRange { first: 0, count: SLOTS as u32 }]);
    }

    #[test]
    fn the_first_gap_that_is_large_enough_is_taken_from() {
        let mut ranges = Ranges::new();
        let small = ranges.take(8).expect("room");
        let _between = ranges.take(8).expect("room");
        ranges.give(small);
        assert_eq!(ranges.take(9), Some(TableRange { first: 16, count: 9 }));
        assert_eq!(ranges.take(8), Some(small));
        assert!(!ranges.has(SLOTS as u32) && ranges.take(SLOTS as u32).is_none() && ranges.take(0).is_none());
        assert_eq!(total(&ranges), SLOTS as u32 - 25);
    }
}
