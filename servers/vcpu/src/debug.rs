// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's debug registers (Arm ARM D24.3). They are remembered and have no effect: breakpoints and watchpoints of
//! a guest never fire, which its ID register cannot say, since two of each are the least there is.

use crate::sysreg::Encoding;

/// Breakpoints and watchpoints that exist.
pub const COUNT: usize = 2;

/// What the registers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// Values and controls of breakpoints and watchpoints: BVR, BCR, WVR, WCR.
    points: [[u64; COUNT]; 4],
    monitor: u64,
    channel_interrupt: u64,
    double_lock: u64,
    is_locked: bool,
    claimed: u64,
}

/// OSLSR_EL1: the lock exists (OSLM = 0b10); bit 1 says that it is held.
const LOCK_EXISTS: u64 = 1 << 3;

impl DebugRegisters {
    /// As after reset.
    pub const fn new() -> DebugRegisters {
        DebugRegisters {
            points: [[0; COUNT]; 4],
            monitor: 0,
            channel_interrupt: 0,
            double_lock: 0,
            is_locked: true,
            claimed: 0,
        }
    }

    /// Reads a register of op0 = 2; none = it does not exist.
    pub fn read(&self, register: Encoding) -> Option<u64> {
        Some(match register.fields() {
            (2, 0, 0, number, kind @ 4..=7) => *self.points.get(usize::from(kind - 4))?.get(usize::from(number))?,
            (2, 0, 0, 0, 2) => 0,
            (2, 0, 0, 2, 0) => self.channel_interrupt,
            (2, 0, 0, 2, 2) => self.monitor,
            (2, 0, 0, 3 | 6, 2) => 0,
            (2, 0, 1, 0, 0) => 0,
            (2, 0, 1, 1, 4) => LOCK_EXISTS | u64::from(self.is_locked) << 1,
            (2, 0, 1, 3, 4) => self.double_lock,
            (2, 0, 1, 4, 4) => 0,
            // DBGCLAIMSET_EL1 reads as the tags that exist.
            (2, 0, 7, 8, 6) => 0xff,
            (2, 0, 7, 9, 6) => self.claimed,
            (2, 0, 7, 14, 6) => 0,
            (2, 3, 0, 1 | 4 | 5, 0) => 0,
            _ => return None,
        })
    }

    /// Writes one; none = it does not exist.
    pub fn write(&mut self, register: Encoding, value: u64) -> Option<()> {
        match register.fields() {
            (2, 0, 0, number, kind @ 4..=7) => {
                *self.points.get_mut(usize::from(kind - 4))?.get_mut(usize::from(number))? = value;
            }
            (2, 0, 0, 2, 0) => self.channel_interrupt = value & 0x6000_0000,
            (2, 0, 0, 2, 2) => self.monitor = value & 0xffff_ffff,
            (2, 0, 1, 0, 4) => self.is_locked = value & 1 == 1,
            (2, 0, 1, 3, 4) => self.double_lock = value & 1,
            (2, 0, 7, 8, 6) => self.claimed |= value & 0xff,
            (2, 0, 7, 9, 6) => self.claimed &= !value,
            // Transfer registers, catch and power requests: nobody is at the other end.
            (2, 0, 0, 0 | 3 | 6, 2) | (2, 0, 1, 4, 4) | (2, 3, 0, 4 | 5, 0) => {}
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysreg::encoding;

    #[test]
    fn two_breakpoints_are_remembered_and_a_third_does_not_exist() {
        let mut debug = DebugRegisters::new();
        assert_eq!(debug.write(encoding(2, 0, 0, 1, 5), 0x1e5), Some(()));
        assert_eq!(debug.read(encoding(2, 0, 0, 1, 5)), Some(0x1e5));
        assert_eq!(debug.read(encoding(2, 0, 0, 2, 5)), None);
        assert_eq!(debug.write(encoding(2, 0, 0, 2, 5), 0), None);
    }

    #[test]
    fn the_lock_says_what_was_written() {
        let mut debug = DebugRegisters::new();
        let status = encoding(2, 0, 1, 1, 4);
        assert_eq!(debug.read(status), Some(0xa));
        debug.write(encoding(2, 0, 1, 0, 4), 0);
        assert_eq!(debug.read(status), Some(0x8));
        assert_eq!(debug.write(status, 0), None);
    }
}
