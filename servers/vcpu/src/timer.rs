// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's physical timer (CNTP): its registers trap (Arm ARM D24.10) because the physical timer is the kernel's.
//!
//! Its line is right whenever somebody looks: at each access, and when the server's attending thread wakes at
//! [`PhysicalTimer::deadline`].

/// Interrupt line of the physical timer: PPI 14.
pub const LINE: u32 = 30;
/// CNTP_CTL_EL0 bits.
const ENABLE: u64 = 1;
const MASKED: u64 = 2;
const STATUS: u64 = 4;

/// What the timer remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhysicalTimer {
    control: u64,
    compare: u64,
    level: bool,
}

impl PhysicalTimer {
    /// As after reset: off.
    pub const fn new() -> PhysicalTimer {
        PhysicalTimer { control: 0, compare: 0, level: false }
    }

    /// CNTP_CTL_EL0.
    pub fn control(&self, now: u64) -> u64 {
        self.control | if self.is_due(now) { STATUS } else { 0 }
    }

    /// CNTP_CVAL_EL0.
    pub fn compare(&self) -> u64 {
        self.compare
    }

    /// CNTP_TVAL_EL0: the low 32 bits of the time that is left.
    pub fn left(&self, now: u64) -> u64 {
        self.compare.wrapping_sub(now) & 0xffff_ffff
    }

    /// Writes CNTP_CTL_EL0.
    pub fn set_control(&mut self, value: u64) {
        self.control = value & (ENABLE | MASKED);
    }

    /// Writes CNTP_CVAL_EL0.
    pub fn set_compare(&mut self, value: u64) {
        self.compare = value;
    }

    /// Writes CNTP_TVAL_EL0, a signed number of 32 bits.
    pub fn set_left(&mut self, now: u64, value: u64) {
        self.compare = now.wrapping_add(i64::from(value as i32) as u64);
    }

    /// The level of its line, when it is not what it was.
    pub fn level_change(&mut self, now: u64) -> Option<bool> {
        let level = self.is_due(now) && self.control & MASKED == 0;
        if level == self.level {
            return None;
        }
        self.level = level;
        Some(level)
    }

    /// When somebody must look again.
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.control == ENABLE && !self.level;
        waits.then_some(self.compare)
    }

    fn is_due(&self, now: u64) -> bool {
        self.control & ENABLE != 0 && now >= self.compare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_when_due_and_falls_when_moved_on() {
        let mut timer = PhysicalTimer::new();
        timer.set_left(1000, 50);
        timer.set_control(1);
        assert_eq!((timer.level_change(1049), timer.deadline()), (None, Some(1050)));
        assert_eq!(timer.control(1050), 5);
        assert_eq!(timer.level_change(1050), Some(true));
        assert_eq!(timer.left(1060), 0xffff_fff6);
        timer.set_control(3);
        assert_eq!((timer.level_change(1060), timer.control(1060)), (Some(false), 7));
        timer.set_left(1060, 0xffff_ffff);
        assert_eq!(timer.compare(), 1059);
    }
}
