// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much of a rule's log is written: a guest decides how often it does what is watched, and must not drown the rest.

/// Lines in a second at most.
pub const MOST: u32 = 16;

/// What is known of one rule's lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limit {
    /// When the current second began, in ticks.
    since: u64,
    /// Lines in it.
    lines: u32,
    /// Lines spared since one was written.
    waiting: u64,
    /// Lines spared in all.
    spared: u64,
}

impl Limit {
    /// Nothing has been written.
    pub const NEW: Limit = Limit { since: 0, lines: 0, waiting: 0, spared: 0 };

    /// One more line, now, with so many ticks a second. None: it is spared; else how many were since the last one.
    pub fn admit(&mut self, now: u64, hertz: u64) -> Option<u64> {
        if self.lines == 0 || now.wrapping_sub(self.since) >= hertz {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= MOST {
            self.waiting = self.waiting.saturating_add(1);
            self.spared = self.spared.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(core::mem::take(&mut self.waiting))
    }

    /// Lines spared in all.
    pub const fn spared(&self) -> u64 {
        self.spared
    }

    /// Nothing has been written; so many were spared by who was here before.
    pub const fn with_spared(spared: u64) -> Limit {
        Limit { spared, ..Limit::NEW }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_written_and_the_rest_counted() {
        let mut limit = Limit::NEW;
        for n in 0..u64::from(MOST) {
            assert_eq!(limit.admit(5 + n, 1000), Some(0));
        }
        assert!((0..100).all(|n| limit.admit(100 + n, 1000).is_none()));
        assert_eq!((limit.admit(1004, 1000), limit.admit(1005, 1000)), (None, Some(101)), "a second after the first");
        assert_eq!((limit.admit(1006, 1000), limit.spared()), (Some(0), 101));
    }

    #[test]
    fn no_clock_stops_the_log_for_ever() {
        let mut limit = Limit::NEW;
        let written = (0..40).filter(|_| limit.admit(0, 0).is_some()).count();
        assert_eq!(written, 40, "without a clock every line is written");
    }
}
