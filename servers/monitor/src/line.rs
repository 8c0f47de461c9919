// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line of the log: what a guest did and what became of it, in words that its user knows.

use crate::event::{Event, What};
use core::fmt::{Display, Formatter, Result};
use trellis_idl::event::EventKind;
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

/// What became of an event.
const fn word_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "denied",
        Verdict::Give(_) => "given another value",
        Verdict::Inject(_) => "given an exception",
        Verdict::Registers { .. } => "sent elsewhere",
        Verdict::Step(_) => "stepped",
        Verdict::Enter(_) => "put into another view",
        Verdict::Retry => "tried again",
        Verdict::Stop => "stopped",
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
    /// The rule that speaks of it, counted from 0: of those about memory, or of those about other events.
    pub rule: usize,
    /// What was said.
    pub verdict: Verdict,
    /// Events of this rule that were not logged since the last line.
    pub spared: u64,
}

impl Line<'_> {
    fn access(&self, f: &mut Formatter<'_>) -> Result {
        let event = self.event;
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
        write!(f, " at {} (page watched by rule {})", Address(event.physical()), self.rule + 1)
    }

    fn heard(&self, f: &mut Formatter<'_>, kind: EventKind) -> Result {
        let (event, [function, first, ..]) = (self.event, self.event.arguments());
        match (kind, kind.register()) {
            (_, Some(register)) => {
                let (old, new) = event.change();
                write!(f, " wrote {} to {register}, {} before", Address(new), Address(old))?;
            }
            (EventKind::Identity, _) => write!(f, " read the register {}", Identity(event.exit.syndrome))?,
            (EventKind::Firmware, _) => write!(f, " called firmware, {}", Address(function))?,
            (EventKind::Hypercall, _) => write!(f, " called the hypervisor, {}", Address(function))?,
            (EventKind::Power, _) => write!(f, " asked for power, {} {}", Address(function), Address(first))?,
            (EventKind::Request, _) => write!(f, " asked {}", Address(first))?,
            (EventKind::Start, _) => write!(f, " was switched on, with {} in x0", Address(function))?,
            (EventKind::Stop, _) => f.write_str(" was switched off")?,
            (EventKind::Breakpoint, _) => write!(f, " came to breakpoint {:#x}", event.exit.syndrome & 0xffff)?,
            _ => f.write_str(" had a debug exception")?,
        }
        write!(f, " (heard by rule {} of events)", self.rule + 1)
    }
}

/// The register that a syndrome of class 0x18 names, as assemblers name those without a name (Arm ARM D24.2.40).
struct Identity(u64);

impl Display for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let bits = |low: u32, width: u32| self.0 >> low & ((1 << width) - 1);
        write!(f, "S{}_{}_C{}_C{}_{}", bits(20, 2), bits(14, 3), bits(10, 4), bits(1, 4), bits(17, 3))
    }
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(self.guest)?;
        if self.is_many {
            write!(f, " (vCPU {})", self.event.vcpu)?;
        }
        match self.event.what() {
            Some(What::Heard(kind)) => self.heard(f, kind)?,
            _ => self.access(f)?,
        }
        write!(f, ", pc {}, {}", Address(self.event.pc()), word_of(self.verdict))?;
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
        let event = Event { guest: 0, vcpu: 1, exit, again: false };
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
    fn what_is_heard_is_said_in_words_too() {
        use trellis_idl::event::EventKind as K;
        let said = |kind: K, syndrome: u64, general: [u64; 4]| {
            let exit = Exit {
                header: ExitHeader(2), syndrome, physical: kind.note(1), virtual_address: 0x4000_0000, pc: 0x4008_0124, value: 0x4100_0000,
                general,
            };
            let event = Event { guest: 0, vcpu: 0, exit, again: false };
            Line { guest: "web", is_many: false, event: &event, rule: 1, verdict: Verdict::Allow, spared: 0 }.to_string()
        };
        let line = |what: &str| format!("web {what} (heard by rule 2 of events), pc 0x4008_0124, allowed");
        assert_eq!(said(K::Tables0, 0, [0; 4]), line("wrote 0x4100_0000 to TTBR0_EL1, 0x4000_0000 before"));
        assert_eq!(said(K::Identity, 0x6230_0129, [0; 4]), line("read the register S3_0_C0_C4_0"));
        assert_eq!(said(K::Firmware, 0, [0x8400_0000, 0, 0, 0]), line("called firmware, 0x8400_0000"));
        assert_eq!(said(K::Hypercall, 0, [7, 0, 0, 0]), line("called the hypervisor, 0x7"));
        assert_eq!(said(K::Power, 0, [0xc400_0003, 1, 0, 0]), line("asked for power, 0xc400_0003 0x1"));
        assert_eq!(said(K::Request, 0, [0xc600_0001, 9, 0, 0]), line("asked 0x9"));
        assert_eq!(said(K::Breakpoint, 0xf200_0077, [0; 4]), line("came to breakpoint 0x77"));
        assert_eq!(said(K::Start, 0, [0x4000_0000, 0, 0, 0]), line("was switched on, with 0x4000_0000 in x0"));
        assert_eq!(said(K::Stop, 0, [0; 4]), line("was switched off"));
        assert_eq!(said(K::Debug, 0, [0; 4]), line("had a debug exception"));
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
