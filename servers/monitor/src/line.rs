// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line of the log: what a guest did and what became of it, in words that its user knows.

use crate::event::Event;
use core::fmt::{Display, Formatter, Result};
use trellis_idl::kernel::Access;
use trellis_idl::wire::Verdict;

/// An address: four digits at a time.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub u64);

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let groups = 4 - (self.0 | 1).leading_zeros() / 16;
        write!(f, "0x{:x}", self.0 >> (16 * (groups - 1)))?;
        (0..groups - 1).rev().try_for_each(|group| write!(f, "_{:04x}", self.0 >> (16 * group) & 0xffff))
    }
}

/// An event, as it is logged.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The guest's name.
    pub guest: &'a str,
    /// It has more than one vCPU.
    pub is_many: bool,
    /// What it did.
    pub event: &'a Event,
    /// The rule that watches the page, counted from 0.
    pub rule: usize,
    /// What was said.
    pub verdict: Verdict,
    /// Events of this rule that were not logged since the last line.
    pub spared: u64,
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let event = self.event;
        f.write_str(self.guest)?;
        if self.is_many {
            write!(f, " (vCPU {})", event.vcpu)?;
        }
        f.write_str(match event.access() {
            _ if event.is_walk() => " walked its tables",
            Access::EXECUTE => " executed",
            Access::WRITE => " wrote",
            _ => " read",
        })?;
        match event.width() {
            Some(1) => f.write_str(" 1 byte")?,
            Some(bytes) => write!(f, " {bytes} bytes")?,
            None => {}
        }
        write!(f, " at {} (page watched by rule {}), pc {}, ", Address(event.physical()), self.rule + 1, Address(event.pc()))?;
        f.write_str(match self.verdict {
            Verdict::Allow => "allowed",
            Verdict::Deny => "denied",
            Verdict::Retry => "tried again",
            Verdict::Stop => "stopped",
        })?;
        match self.spared {
            0 => Ok(()),
            1 => f.write_str(" (1 more like it before)"),
            spared => write!(f, " ({spared} more like it before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::kernel::{Exit, ExitHeader};

    fn line(flags: u64, physical: u64, verdict: Verdict, spared: u64, is_many: bool) -> String {
        let exit = Exit { header: ExitHeader(flags), physical, pc: 0x4008_0124, ..Exit::default() };
        let event = Event { guest: 0, vcpu: 1, exit };
        Line { guest: "web", is_many, event: &event, rule: 0, verdict, spared }.to_string()
    }

    #[test]
    fn a_line_says_what_happened() {
        use ExitHeader as H;
        assert_eq!(
            line(H::WRITE | 8 << 8, 0x4020_0010, Verdict::Allow, 0, false),
            "web wrote 8 bytes at 0x4020_0010 (page watched by rule 1), pc 0x4008_0124, allowed"
        );
        assert_eq!(
            line(H::FETCH, 0x4020_0010, Verdict::Deny, 1, true),
            "web (vCPU 1) executed at 0x4020_0010 (page watched by rule 1), pc 0x4008_0124, denied (1 more like it before)"
        );
        assert_eq!(
            line(H::WALK, 0x1_4020_0010, Verdict::Stop, 9, false),
            "web walked its tables at 0x1_4020_0010 (page watched by rule 1), pc 0x4008_0124, stopped (9 more like it before)"
        );
        assert_eq!(
            line(1 << 8, 0xfff0, Verdict::Retry, 0, false),
            "web read 1 byte at 0xfff0 (page watched by rule 1), pc 0x4008_0124, tried again"
        );
    }

    #[test]
    fn addresses_are_grouped() {
        for (address, text) in [
            (0, "0x0"), (0xffff, "0xffff"), (0x1_0000, "0x1_0000"), (0x4000_0000, "0x4000_0000"),
            (0xffff_8000_0000_0001, "0xffff_8000_0000_0001"),
        ] {
            assert_eq!(Address(address).to_string(), text);
        }
    }
}
