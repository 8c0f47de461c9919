// SPDX-License-Identifier: MIT OR Apache-2.0
//! When a line comes too often: how many interrupts it may make in a time, and for how long it is masked after more.
//!
//! The clock is asked only once in that many interrupts, so that counting costs next to nothing.

/// What a source may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Interrupts in a window; 0 = any number.
    pub most: u32,
    /// Ticks of the window.
    pub window: u64,
    /// Ticks that it is masked for after more than those.
    pub cool_down: u64,
}

impl Limit {
    /// Whatever it does is right.
    pub const NONE: Limit = Limit { most: 0, window: 0, cool_down: 0 };
}

/// How near a source is to its limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storm {
    limit: Limit,
    /// Interrupts since the clock was asked.
    count: u32,
    /// When that was.
    since: u64,
}

impl Storm {
    /// A source that has done nothing yet.
    pub const fn new(limit: Limit, now: u64) -> Storm {
        Storm { limit, count: 0, since: now }
    }

    /// Counts an interrupt. Back: when it may come again, if it came too often. `now` is asked when that is to be known.
    #[inline]
    pub fn count(&mut self, now: impl FnOnce() -> u64) -> Option<u64> {
        if self.limit.most == 0 {
            return None;
        }
        self.count += 1;
        if self.count < self.limit.most {
            return None;
        }
        let now = now();
        let soon = now.saturating_sub(self.since) < self.limit.window;
        *self = Storm::new(self.limit, now);
        soon.then(|| now.saturating_add(self.limit.cool_down))
    }

    /// Counts an interrupt if the clock need not be asked for it. False, with nothing changed: [`Storm::count`] is to.
    #[inline(always)]
    pub fn count_quietly(&mut self) -> bool {
        let is_quiet = self.limit.most == 0 || self.count + 1 < self.limit.most;
        self.count += u32::from(self.limit.most != 0 && is_quiet);
        is_quiet
    }

    /// It may come again from now on.
    pub fn calm(&mut self, now: u64) {
        *self = Storm::new(self.limit, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { most: 4, window: 100, cool_down: 1000 };

    #[test]
    fn the_clock_is_asked_once_in_so_many_and_only_haste_is_a_storm() {
        let mut storm = Storm::new(LIMIT, 0);
        // As its user counts: quietly where that is enough.
        let at = |storm: &mut Storm, now: u64| if storm.count_quietly() { None } else { storm.count(|| now) };
        for now in [10, 60, 90] {
            assert_eq!(storm.count(|| panic!("it is not asked at {now}")), None);
        }
        assert_eq!(at(&mut storm, 100), None, "four in a whole window");
        for now in [110, 120, 130] {
            assert_eq!(at(&mut storm, now), None);
        }
        assert_eq!(at(&mut storm, 199), Some(1199), "four in less");
        storm.calm(1300);
        for now in [1301, 1302, 1303] {
            assert_eq!(at(&mut storm, now), None);
        }
        assert_eq!(at(&mut storm, 1304), Some(2304));
    }

    #[test]
    fn without_a_limit_there_is_no_storm() {
        let mut storm = Storm::new(Limit::NONE, 0);
        for _ in 0..1000 {
            assert_eq!(storm.count(|| panic!("nobody asks")), None);
        }
    }
}
