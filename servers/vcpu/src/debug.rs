// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's debug registers (Arm ARM D24.3) but for breakpoints, watchpoints and MDSCR_EL1, which the kernel keeps and
//! makes real. What is here is remembered and has no effect: nobody is at the other end of the transfer registers, and
//! the guest's OS lock holds nothing back.

use crate::sysreg::Encoding;

/// What the registers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
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
            channel_interrupt: 0,
            double_lock: 0,
            is_locked: true,
            claimed: 0,
        }
    }

    /// Reads a register of op0 = 2; none = it does not exist.
    pub fn read(&self, register: Encoding) -> Option<u64> {
        Some(match register.fields() {
            (2, 0, 0, 0, 2) => 0,
            (2, 0, 0, 2, 0) => self.channel_interrupt,
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
            (2, 0, 0, 2, 0) => self.channel_interrupt = value & 0x6000_0000,
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
    fn breakpoints_that_the_kernel_does_not_keep_do_not_exist() {
        let mut debug = DebugRegisters::new();
        for kind in 4..=7 {
            assert_eq!(debug.read(encoding(2, 0, 0, 9, kind)), None);
            assert_eq!(debug.write(encoding(2, 0, 0, 9, kind), 0), None);
        }
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
