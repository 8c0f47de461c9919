// SPDX-License-Identifier: MIT OR Apache-2.0
//! Commands of an SMMU (SMMUv3 chapter 4): two words each.

/// Bytes of a command.
pub const BYTES: u64 = 16;

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command(pub [u64; 2]);

impl Command {
    /// CMD_CFGI_STE (4.3.1): a stream's entry is read again, and what follows from it.
    pub const fn reread(stream: u32) -> Command {
        // Leaf: the table itself did not change.
        Command([0x03 | (stream as u64) << 32, 1])
    }

    /// CMD_CFGI_ALL (4.3.2): every entry is read again.
    pub const fn reread_all() -> Command {
        Command([0x04, 31])
    }

    /// CMD_TLBI_S12_VMALL (4.4.2): nothing of this space is remembered.
    pub const fn forget(space: u16) -> Command {
        Command([0x28 | (space as u64) << 32, 0])
    }

    /// CMD_TLBI_NSNH_ALL (4.4.2): nothing of any is.
    pub const fn forget_all() -> Command {
        Command([0x30, 0])
    }

    /// CMD_SYNC (4.7.3): all before it is done, and so is every access that went by what was forgotten. Nobody is told: the
    /// queue's reader moves on.
    pub const fn settle() -> Command {
        Command([0x46, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each made by hand from the manual's pictures.
    #[test]
    fn commands_are_as_the_manual_draws_them() {
        let golden: [(Command, [u64; 2]); 5] = [
            (Command::reread(0x0001_0203), [0x0001_0203_0000_0003, 1]),
            (Command::reread_all(), [0x04, 31]),
            (Command::forget(0xabcd), [0x0000_abcd_0000_0028, 0]),
            (Command::forget_all(), [0x30, 0]),
            (Command::settle(), [0x46, 0]),
        ];
        for (command, words) in golden {
            assert_eq!(command.0, words, "{command:x?}");
        }
    }
}
