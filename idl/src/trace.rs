// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace: what each CPU did last, as the kernel notes it and [`crate::kernel::Op::TraceRead`] hands it over.
//!
//! Every CPU has a ring of [`RECORDS`] records of four words. It is always on; calls, replies and signals between
//! servers leave no record, nor do interrupts that go straight to the running guest, so these cost nothing.

use core::fmt;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Records in a CPU's ring; a power of two.
pub const RECORDS: u64 = 512;
/// Words of a record.
pub const RECORD_WORDS: usize = 4;
/// Records that one read hands over at most: as many as fit a message buffer.
pub const MOST_READ: u64 = crate::kernel::PAGE / (RECORD_WORDS as u64 * 8);

/// What a record is about; stands in the highest byte of its first word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TraceKind {
    /// A guest, or a server that broke its contract, came into the kernel. Detail: the machine's syndrome (ESR_EL2 on
    /// AArch64); argument: program counter. What was noted first has this number, so that an exit costs no shift.
    Exit = 0,
    /// An interrupt came that did not go straight to whoever runs. Argument: its physical line.
    Interrupt = 1,
    /// A thread or vCPU goes on that is another than the one that came in, or whom nothing ran before.
    Runs = 2,
    /// An operation was refused. Detail: the operation's number; argument: the refusal's.
    Refused = 3,
    /// Nothing can run.
    Idle = 4,
}

impl TraceKind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<TraceKind> {
        match number {
            0 => Some(TraceKind::Exit),
            1 => Some(TraceKind::Interrupt),
            2 => Some(TraceKind::Runs),
            3 => Some(TraceKind::Refused),
            4 => Some(TraceKind::Idle),
            _ => None,
        }
    }

    /// The first word of a record of this kind. Detail has 56 bits.
    pub const fn with(self, detail: u64) -> u64 {
        (self as u64) << 56 | detail & (u64::MAX >> 8)
    }
}

/// Whom a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub enum Who {
    /// Nobody: the CPU was idle, or who it was is gone.
    Nobody,
    /// A thread: index of its domain (0 is root, then servers in order of creation), and its number on its CPU.
    Thread {
        /// Of the domain.
        domain: u16,
        /// On its CPU.
        number: u16,
    },
    /// A vCPU: index of its guest, and its number there.
    Vcpu {
        /// Of the guest.
        guest: u16,
        /// In the guest.
        number: u16,
    },
}

impl Who {
    /// As a word of a record.
    pub const fn to_word(self) -> u64 {
        match self {
            Who::Nobody => 0,
            Who::Thread { domain, number } => 1 << 32 | (domain as u64) << 16 | number as u64,
            Who::Vcpu { guest, number } => 2 << 32 | (guest as u64) << 16 | number as u64,
        }
    }

    /// From the word; what means nothing is nobody.
    pub const fn from_word(word: u64) -> Who {
        let (first, second) = ((word >> 16) as u16, word as u16);
        match word >> 32 {
            1 => Who::Thread { domain: first, number: second },
            2 => Who::Vcpu { guest: first, number: second },
            _ => Who::Nobody,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Nobody => f.write_str("nobody"),
            Who::Thread { domain, number } => write!(f, "thread {number} of domain {domain}"),
            Who::Vcpu { guest, number } => write!(f, "vCPU {number} of guest {guest}"),
        }
    }
}

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Schema)]
pub struct Record {
    /// Kind in the highest byte, detail below.
    pub what: u64,
    /// What the kind says.
    pub argument: u64,
    /// The clock in ticks, as [`crate::kernel::Op::Clock`] gives it; 0 = nothing was noted here yet.
    pub time: u64,
    /// Whom it is about.
    pub who: Who,
}

impl Record {
    /// From the words in a buffer.
    pub const fn from_words(words: [u64; RECORD_WORDS]) -> Record {
        Record { what: words[0], argument: words[1], time: words[2], who: Who::from_word(words[3]) }
    }

    /// To the words in a buffer.
    pub const fn to_words(&self) -> [u64; RECORD_WORDS] {
        [self.what, self.argument, self.time, self.who.to_word()]
    }

    /// What it is about; none if a later kernel wrote it.
    pub const fn kind(&self) -> Option<TraceKind> {
        TraceKind::from_number((self.what >> 56) as u8)
    }

    /// The first word without the kind.
    pub const fn detail(&self) -> u64 {
        self.what & (u64::MAX >> 8)
    }
}

/// As the kernel prints it when there is nobody else who could.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>16} ", self.time)?;
        match self.kind() {
            Some(TraceKind::Exit) => write!(f, "{} exits: syndrome {:#x}, pc {:#x}", self.who, self.detail(), self.argument),
            Some(TraceKind::Interrupt) => write!(f, "line {} interrupts {}", self.argument, self.who),
            Some(TraceKind::Runs) => write!(f, "{} runs", self.who),
            Some(TraceKind::Refused) => {
                write!(f, "{} is refused operation {:#x}: {}", self.who, self.detail(), self.argument)
            }
            Some(TraceKind::Idle) => f.write_str("idle"),
            None => write!(f, "{:#x} {:#x}", self.what, self.argument),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_record_keeps_its_words() {
        for who in [Who::Nobody, Who::Thread { domain: 3, number: 60 }, Who::Vcpu { guest: 15, number: 7 }] {
            let record = Record { what: TraceKind::Refused.with(0x40), argument: 3, time: 77, who };
            assert_eq!(Record::from_words(record.to_words()), record);
            assert_eq!((record.kind(), record.detail()), (Some(TraceKind::Refused), 0x40));
        }
        assert_eq!(Who::from_word(u64::MAX), Who::Nobody);
        assert_eq!(Record::from_words([9 << 56, 0, 0, 0]).kind(), None);
    }

    #[test]
    fn an_exit_is_its_syndrome_alone() {
        let words = [0x9300_0047, 0x4008_0000, 5, Who::Vcpu { guest: 1, number: 0 }.to_word()];
        let record = Record::from_words(words);
        assert_eq!((record.kind(), record.detail()), (Some(TraceKind::Exit), 0x9300_0047));
        assert_eq!(
            record.to_string(),
            "               5 vCPU 0 of guest 1 exits: syndrome 0x93000047, pc 0x40080000"
        );
    }
}
