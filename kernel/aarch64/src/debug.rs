// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's breakpoints, watchpoints and single step (Arm ARM D2): real, and loaded only while they are switched on.
//!
//! Accesses always trap (MDCR_EL2.TDA), so that nothing of them can leak, and nothing an external debugger shares
//! (transfer registers, claim tags) is a guest's; those, and the OS lock, are the vcpu server's to play. What the guest
//! writes takes effect at its next entry. While MDSCR_EL1 says that nothing fires, nothing is loaded.

/// Breakpoints that are kept: as many as Cortex-A57 to Neoverse-V2 have.
pub const BREAKPOINTS: usize = 6;
/// Watchpoints that are kept.
pub const WATCHPOINTS: usize = 4;

/// MDSCR_EL1: single step, and breakpoints and watchpoints.
const SS: u64 = 1 << 0;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;
/// PSTATE.D: debug exceptions are masked.
const MASKED: u64 = 1 << 9;
/// Of MDSCR_EL1 a guest has SS, TDCC, KDE, MDE; the others are an external debugger's.
const MONITOR: u64 = SS | 1 << 12 | 1 << 13 | MDE;
/// Of DBGBCR: E, PMC, BAS, HMC, SSC, LBN, BT.
const BREAKPOINT: u64 = 0x00ff_e1e7;
/// Of DBGWCR: E, PAC, LSC, BAS, HMC, SSC, LBN, WT, MASK.
const WATCHPOINT: u64 = 0x1f1f_ffff;

/// The registers of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Debug {
    /// MDSCR_EL1.
    pub monitor: u64,
    /// DBGBVR and DBGBCR.
    pub breakpoints: [[u64; 2]; BREAKPOINTS],
    /// DBGWVR and DBGWCR.
    pub watchpoints: [[u64; 2]; WATCHPOINTS],
}

/// How many a CPU has, of those that are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// Breakpoints.
    pub breakpoints: usize,
    /// Watchpoints.
    pub watchpoints: usize,
}

impl Count {
    /// From ID_AA64DFR0_EL1: BRPs and WRPs, each less one.
    pub const fn of(dfr0: u64) -> Count {
        const fn least(a: usize, b: usize) -> usize {
            if a < b { a } else { b }
        }
        Count {
            breakpoints: least((dfr0 >> 12 & 15) as usize + 1, BREAKPOINTS),
            watchpoints: least((dfr0 >> 20 & 15) as usize + 1, WATCHPOINTS),
        }
    }
}

impl Debug {
    /// As after reset.
    pub const EMPTY: Debug =
        Debug { monitor: 0, breakpoints: [[0; 2]; BREAKPOINTS], watchpoints: [[0; 2]; WATCHPOINTS] };

    /// Whether anything can fire.
    #[inline]
    pub const fn is_active(&self) -> bool {
        self.monitor & (SS | MDE) != 0
    }

    /// Whether the guest itself would get the exception of a breakpoint or watchpoint in this processor state: at EL0, and
    /// at EL1 with KDE and without PSTATE.D. Where debug exceptions go to EL2 nothing masks them (Arm ARM D2.4.2).
    pub const fn is_let_in(&self, pstate: u64) -> bool {
        pstate & 0xf == 0 || (self.monitor & KDE != 0 && pstate & MASKED == 0)
    }

    /// MDSCR_EL1 while the vCPU executes one instruction for an answer that steps, in this processor state.
    pub const fn stepping(&self, pstate: u64) -> u64 {
        (if self.is_let_in(pstate) { self.monitor } else { self.monitor & !MDE }) | SS
    }

    /// Whether the guest steps itself.
    pub const fn has_own_step(&self) -> bool {
        self.monitor & SS != 0
    }

    /// The place of a register of op0 = 2, and the bits that a guest has of it. None: it is not the kernel's.
    fn place(&mut self, op1: u64, crn: u64, crm: u64, op2: u64, count: Count) -> Option<(&mut u64, u64)> {
        let n = crm as usize;
        match (op1, crn, op2) {
            (0, 0, 2) if crm == 2 => Some((&mut self.monitor, MONITOR)),
            // Addresses are of instructions, of words.
            (0, 0, 4) if n < count.breakpoints => Some((&mut self.breakpoints[n][0], !3)),
            (0, 0, 5) if n < count.breakpoints => Some((&mut self.breakpoints[n][1], BREAKPOINT)),
            (0, 0, 6) if n < count.watchpoints => Some((&mut self.watchpoints[n][0], !3)),
            (0, 0, 7) if n < count.watchpoints => Some((&mut self.watchpoints[n][1], WATCHPOINT)),
            _ => None,
        }
    }

    /// A trapped access by its syndrome (Arm ARM D19.2.39, ISS for MSR, MRS): the value read, or what was written.
    /// None: the register is not the kernel's.
    pub fn access(&mut self, syndrome: u64, written: u64, count: Count) -> Option<u64> {
        if syndrome >> 20 & 3 != 2 {
            return None;
        }
        let (op2, op1, crn, crm) = (syndrome >> 17 & 7, syndrome >> 14 & 7, syndrome >> 10 & 15, syndrome >> 1 & 15);
        let (place, has) = self.place(op1, crn, crm, op2, count)?;
        if syndrome & 1 == 0 {
            *place = written & has;
        }
        Some(*place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::encode;

    const COUNT: Count = Count::of(0x1030_5106);

    fn write(debug: &mut Debug, crm: u64, op2: u64, value: u64) -> Option<u64> {
        debug.access(encode(2, 0, 0, crm, op2), value, COUNT)
    }

    #[test]
    fn a_cortex_a57_has_six_and_four() {
        assert_eq!(COUNT, Count { breakpoints: 6, watchpoints: 4 });
        assert_eq!(Count::of(u64::MAX), COUNT, "more are not kept");
        assert_eq!(Count::of(0x0010_1006), Count { breakpoints: 2, watchpoints: 2 });
    }

    #[test]
    fn what_is_written_is_read_but_for_bits_of_others() {
        let mut debug = Debug::EMPTY;
        assert_eq!(write(&mut debug, 5, 5, u64::MAX), Some(0x00ff_e1e7));
        assert_eq!(debug.access(encode(2, 0, 0, 5, 5) | 1, 0, COUNT), Some(0x00ff_e1e7));
        assert_eq!(write(&mut debug, 3, 7, u64::MAX), Some(0x1f1f_ffff));
        assert_eq!(write(&mut debug, 0, 4, 0xffff_8000_1234_5677), Some(0xffff_8000_1234_5674));
        assert_eq!(write(&mut debug, 2, 2, u64::MAX), Some(0xb001));
    }

    #[test]
    fn what_is_not_there_is_not_the_kernels() {
        let mut debug = Debug::EMPTY;
        for (crm, op2) in [(6, 4), (6, 5), (4, 6), (4, 7), (0, 0), (3, 2)] {
            assert_eq!(write(&mut debug, crm, op2, 1), None, "{crm} {op2}");
        }
        assert_eq!(debug.access(encode(3, 0, 0, 0, 4), 1, COUNT), None, "another space");
        assert_eq!(debug.access(encode(2, 0, 1, 0, 4), 1, COUNT), None, "the OS lock is the server's");
        assert_eq!(debug, Debug::EMPTY);
    }

    #[test]
    fn in_a_step_breakpoints_fire_only_where_the_guest_would_get_them() {
        let mut debug = Debug::EMPTY;
        assert_eq!(debug.stepping(0x3c5), 1);
        write(&mut debug, 2, 2, 1 << 15);
        for (pstate, monitor) in [(0, 1 << 15 | 1), (0x200, 1 << 15 | 1), (5, 1), (0x205, 1)] {
            assert_eq!(debug.stepping(pstate), monitor, "{pstate:#x}");
        }
        write(&mut debug, 2, 2, 5 << 13);
        for (pstate, monitor) in [(0, 5 << 13 | 1), (5, 5 << 13 | 1), (0x205, 1 << 13 | 1)] {
            assert_eq!(debug.stepping(pstate), monitor, "{pstate:#x}");
        }
        assert_eq!(debug.monitor, 5 << 13, "what the guest reads is its own");
    }

    #[test]
    fn it_is_active_while_something_can_fire() {
        let mut debug = Debug::EMPTY;
        write(&mut debug, 0, 5, 0x1e5);
        assert!(!debug.is_active(), "a breakpoint without MDE fires never");
        for (monitor, active) in [(1, true), (1 << 15, true), (1 << 13, false), (0, false)] {
            write(&mut debug, 2, 2, monitor);
            assert_eq!(debug.is_active(), active, "{monitor:#x}");
        }
    }
}
