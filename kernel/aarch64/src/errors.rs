// SPDX-License-Identifier: MIT OR Apache-2.0
//! SErrors: what a syndrome says about whether whoever ran can go on.
//!
//! A guest or server that cannot is stopped with a report, never the machine: a virtual SError (HCR_EL2.VSE) would leave
//! the guest to go on with lost data for as long as it keeps PSTATE.A set. The kernel itself panics.

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Nothing was lost: note it and go on.
    Tolerable,
    /// Whoever ran cannot go on.
    Fatal,
}

/// Reads the syndrome of an SError (Arm ARM D19.2.39, ISS of an SError); `told_apart` = the CPU has the RAS extension,
/// without which the type is not defined. DISR_EL1 has the same bits in the same places.
pub const fn severity(syndrome: u64, told_apart: bool) -> Severity {
    let own_format = syndrome >> 24 & 1 == 1;
    // The type (AET) counts when the status is "asynchronous SError".
    if !told_apart || own_format || syndrome & 0x3f != 0x11 {
        return Severity::Fatal;
    }
    match syndrome >> 10 & 7 {
        // 6: corrected; 2: restartable, the error was not consumed. 0, 1, 3: uncontainable, unrecoverable, recoverable
        // only by whoever knows what was lost.
        2 | 6 => Severity::Tolerable,
        _ => Severity::Fatal,
    }
}

/// Bytes to take from the program counter so that an instruction is done again whose exception was given up for an error
/// found at the same time: SVC and HVC leave it past themselves (Arm ARM D1.3.5).
pub const fn undo(syndrome: u64) -> u64 {
    match syndrome >> 26 & 0x3f {
        0x15 | 0x16 => 4,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn error(kind: u64) -> u64 {
        0x2f << 26 | 1 << 25 | kind << 10 | 0x11
    }

    #[test]
    fn only_errors_that_lost_nothing_are_tolerated() {
        let kinds = [0, 1, 2, 3, 4, 5, 6, 7].map(|kind| severity(error(kind), true));
        use Severity::{Fatal, Tolerable};
        assert_eq!(kinds, [Fatal, Fatal, Tolerable, Fatal, Fatal, Fatal, Tolerable, Fatal]);
    }

    #[test]
    fn without_the_extension_nothing_is_known() {
        assert_eq!(severity(error(6), false), Severity::Fatal);
        assert_eq!(severity(error(6) | 1 << 24, true), Severity::Fatal, "the maker's own format");
        assert_eq!(severity(0xbe00_0000, true), Severity::Fatal, "uncategorised");
    }

    #[test]
    fn calls_are_done_again_and_faults_repeat_themselves() {
        assert_eq!([0x5600_0000, 0x5a00_0000].map(undo), [4, 4]);
        assert_eq!([0x9381_0007, 0x5e00_0000, 0x6200_0000, 0].map(undo), [0; 4]);
    }
}
