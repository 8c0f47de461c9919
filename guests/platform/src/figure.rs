// SPDX-License-Identifier: MIT OR Apache-2.0
//! A measured figure: sums of counter differences become a rounded mean.

/// Differences added up over some passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Sum of the differences.
    pub ticks: u64,
    /// Passes they come from.
    pub passes: u64,
}

impl Sum {
    /// Adds one pass.
    pub fn add(&mut self, ticks: u64) {
        self.ticks = self.ticks.wrapping_add(ticks);
        self.passes += 1;
    }

    /// The mean, rounded to the nearest integer; 0 without passes.
    pub fn mean(self) -> u64 {
        match self.passes {
            0 => 0,
            passes => (self.ticks + passes / 2) / passes,
        }
    }
}

/// The mean of `passes` operations that took `with` ticks in all, where the same loop without the operation took
/// `without`.
pub fn mean_without_loop(with: u64, without: u64, passes: u64) -> u64 {
    Sum { ticks: with.saturating_sub(without), passes }.mean()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_rounded_to_the_nearest() {
        let mut sum = Sum::default();
        assert_eq!(sum.mean(), 0);
        sum.add(1);
        sum.add(2);
        assert_eq!(sum.mean(), 2);
        sum.add(1);
        assert_eq!(sum.mean(), 1);
    }

    #[test]
    fn the_empty_loop_is_taken_off_and_never_makes_a_figure_negative() {
        assert_eq!(mean_without_loop(13_000, 3_000, 1_000), 10);
        assert_eq!(mean_without_loop(2_000, 3_000, 1_000), 0);
    }
}
