// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long interrupts waited before a vCPU had them, in steps of four.
//!
//! What did not wait at all is nearly everything, and is not counted here: it is what is left of all that were handed on.

/// Steps: less than 1 microsecond, than 4, 16, 64, 256, 1024, 4096, 16384, and the rest.
pub const STEPS: usize = 9;

/// How many waited for how long, but for the first step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delays {
    longer: [u64; STEPS - 1],
    /// Those that nobody knows it of.
    unknown: u64,
}

impl Delays {
    /// One more was handed on after so many ticks of a clock with so many a second; `None` = nobody knows.
    #[cold]
    #[inline(never)]
    pub fn count(&mut self, waited: Option<u64>, hertz: u64) {
        if let Some(count) = self.step_of(waited, hertz) {
            *count = count.saturating_add(1);
        }
    }

    /// It was not: undoes that.
    pub fn uncount(&mut self, waited: Option<u64>, hertz: u64) {
        if let Some(count) = self.step_of(waited, hertz) {
            *count = count.saturating_sub(1);
        }
    }

    fn step_of(&mut self, waited: Option<u64>, hertz: u64) -> Option<&mut u64> {
        let Some(ticks) = waited else { return Some(&mut self.unknown) };
        let microseconds = ticks.saturating_mul(1_000_000) / hertz.max(1);
        let step = ((u64::BITS - microseconds.leading_zeros()).div_ceil(2) as usize).min(STEPS - 1);
        self.longer.get_mut(step.checked_sub(1)?)
    }

    /// An earlier server counted so many of each step but the first, and so many of which nobody knows it.
    pub fn add(&mut self, longer: [u64; STEPS - 1], unknown: u64) {
        for (count, more) in self.longer.iter_mut().zip(longer).chain([(&mut self.unknown, unknown)]) {
            *count = count.saturating_add(more);
        }
    }

    /// All steps, of so many that were handed on.
    pub fn of(&self, passed: u64) -> [u64; STEPS] {
        let rest = self.longer.iter().fold(self.unknown, |sum, count| sum.saturating_add(*count));
        let mut all = [passed.saturating_sub(rest); STEPS];
        all[1..].copy_from_slice(&self.longer);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_goes_into_the_step_that_it_is_in() {
        let ends = [1u64, 4, 16, 64, 256, 1024, 4096, 16_384];
        for (step, end) in ends.into_iter().enumerate() {
            for (microseconds, expected) in [(end - 1, step), (end, step + 1)] {
                let mut delays = Delays::default();
                // 62.5 MHz, and a little more than whole microseconds.
                delays.count(Some((microseconds * 125).div_ceil(2)), 62_500_000);
                let mut all = [0; STEPS];
                all[expected] = 1;
                assert_eq!(delays.of(1), all, "{microseconds} us");
            }
        }
        let mut delays = Delays::default();
        delays.count(Some(u64::MAX), 1);
        delays.count(None, 1);
        delays.count(Some(5), 1_000_000);
        delays.uncount(Some(5), 1_000_000);
        assert_eq!(delays.of(3), [1, 0, 0, 0, 0, 0, 0, 0, 1], "one is not known");
    }
}
