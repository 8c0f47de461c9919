// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does with its processor that a monitor can hear of, and exceptions that it can be given instead.

use crate::kernel::Refusal;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// An exception that a guest can be given instead of what it tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum Injected {
    /// The instruction does not exist.
    Undefined = 0,
    /// The access, or the fetch, went wrong outside the processor.
    Abort = 1,
    /// A breakpoint instruction.
    Breakpoint = 2,
}

impl Injected {
    /// The exception with this number.
    pub const fn from_number(number: u64) -> Option<Injected> {
        match number {
            0 => Some(Injected::Undefined),
            1 => Some(Injected::Abort),
            2 => Some(Injected::Breakpoint),
            _ => None,
        }
    }
}

/// What a guest does with its processor that a monitor can hear of ([`VcpuOp::Listen`](crate::wire::VcpuOp::Listen)), by the exit's own words. Only `m2` and
/// `m3`, which such exits have no use for, are the vcpu server's: `m2` says which event it is ([`EventKind::note`]), and `m3`
/// what the register held that is being written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, Schema)]
#[repr(u8)]
pub enum EventKind {
    /// SCTLR_EL1 is written.
    SystemControl = 0,
    /// TTBR0_EL1 is written.
    Tables0 = 1,
    /// TTBR1_EL1 is written.
    Tables1 = 2,
    /// TCR_EL1 is written.
    Translation = 3,
    /// MAIR_EL1 is written.
    Attributes = 4,
    /// CONTEXTIDR_EL1 is written.
    Context = 5,
    /// An ID register is read.
    Identity = 6,
    /// A call to firmware: SMC.
    Firmware = 7,
    /// The guest asks its monitor ([`REQUEST`] in `x0`, by either instruction).
    Request = 8,
    /// A breakpoint instruction.
    Breakpoint = 9,
    /// Another debug exception of the guest's own.
    Debug = 10,
    /// A vCPU or the whole guest is switched on or off, by either instruction.
    Power = 11,
    /// A call to the hypervisor: HVC, but for [`EventKind::Request`].
    Hypercall = 12,
    /// A vCPU begins to run at an entry: the guest's first, or one that is switched on. It is told alone ([`EventKind::is_only_told`]), as if by the
    /// vCPU itself, before its first instruction: `pc` and `x0` are those it begins with, `m3` is its number.
    Start = 13,
    /// A vCPU runs no more: it has gone off, or the guest has ended. Told alone, by whoever switched it off: `m3` is which, and `pc` where it stood.
    Stop = 14,
}

/// Kinds of events.
pub const EVENT_KINDS: usize = EventKind::ALL.len();
/// Those that are writes of registers are the first ones.
pub const EVENT_REGISTERS: usize = 6;
/// What a guest has in `x0` when it asks its monitor (a vendor's hypervisor service, 64-bit); the monitor gives its `x0`. Where
/// nobody hears it, it is a call that does not exist.
pub const REQUEST: u64 = 0xc600_0001;

impl EventKind {
    /// Every kind, in order of number.
    pub const ALL: [EventKind; 15] = [
        EventKind::SystemControl, EventKind::Tables0, EventKind::Tables1, EventKind::Translation, EventKind::Attributes,
        EventKind::Context, EventKind::Identity, EventKind::Firmware, EventKind::Request, EventKind::Breakpoint,
        EventKind::Debug, EventKind::Power, EventKind::Hypercall, EventKind::Start, EventKind::Stop,
    ];

    /// Whether it has happened when it is found: a session may be told of it, and is never asked.
    pub const fn is_only_told(self) -> bool {
        matches!(self, EventKind::Start | EventKind::Stop)
    }

    /// The kind with this number.
    pub fn from_number(number: u64) -> Option<EventKind> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Its bit.
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whether a register is written.
    pub const fn is_register(self) -> bool {
        (self as usize) < EVENT_REGISTERS
    }

    /// The register that is written, by the name that the architecture gives it.
    pub const fn register(self) -> Option<&'static str> {
        match self {
            EventKind::SystemControl => Some("SCTLR_EL1"),
            EventKind::Tables0 => Some("TTBR0_EL1"),
            EventKind::Tables1 => Some("TTBR1_EL1"),
            EventKind::Translation => Some("TCR_EL1"),
            EventKind::Attributes => Some("MAIR_EL1"),
            EventKind::Context => Some("CONTEXTIDR_EL1"),
            _ => None,
        }
    }

    /// Whether the guest calls somebody, and looks for the answer in its `x0`.
    pub const fn is_call(self) -> bool {
        matches!(self, EventKind::Firmware | EventKind::Request | EventKind::Power | EventKind::Hypercall)
    }

    /// The word that says so: bit 63, the kind in bits 48–55, which event of the vCPU below.
    pub const fn note(self, number: u64) -> u64 {
        1 << 63 | (self as u64) << 48 | number & ((1 << 48) - 1)
    }

    /// What such a word says. None: it is no such word.
    pub fn of_note(word: u64) -> Option<EventKind> {
        if word >> 63 == 1 { EventKind::from_number(word >> 48 & 0x7fff) } else { None }
    }
}

/// All that a session hears of a guest's processor, as [`VcpuOp::Listen`](crate::wire::VcpuOp::Listen) says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// A bit for each [`EventKind`].
    pub kinds: u32,
    /// Registers of which writes that leave them as they are are none, a bit each.
    pub only_changes: u32,
    /// Of each register, bits whose changes alone are none.
    pub ignored: [u64; EVENT_REGISTERS],
    /// Kinds of which it is told, and not asked.
    pub told: u32,
}

impl Wish {
    /// A message's words `m1`–`m8`.
    pub const fn to_words(&self) -> [u64; 2 + EVENT_REGISTERS] {
        let [a, b, c, d, e, f] = self.ignored;
        [self.kinds as u64 | (self.told as u64) << 32, self.only_changes as u64, a, b, c, d, e, f]
    }

    /// From them. Refused `BadArgument`: a kind that there is not, one that is told and not heard, one that can only be told and
    /// is not, or what is no register.
    pub fn from_words(words: [u64; 2 + EVENT_REGISTERS]) -> Result<Wish, Refusal> {
        let [both, only_changes, ignored @ ..] = words;
        let (kinds, told) = (both & 0xffff_ffff, both >> 32);
        let only_told = u64::from(EventKind::Start.bit() | EventKind::Stop.bit());
        if kinds >> EVENT_KINDS != 0 || told & !kinds != 0 || kinds & only_told & !told != 0 || only_changes >> EVENT_REGISTERS != 0 {
            return Err(Refusal::BadArgument);
        }
        Ok(Wish { kinds: kinds as u32, only_changes: only_changes as u32, ignored, told: told as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_its_number_its_bit_and_its_note() {
        for (number, kind) in (0..).zip(EventKind::ALL) {
            assert_eq!((EventKind::from_number(number), kind.bit()), (Some(kind), 1 << number));
            assert_eq!(EventKind::of_note(kind.note(u64::MAX)), Some(kind));
            assert_eq!(kind.note(7) & 0xffff_ffff, 7);
            assert_eq!(kind.is_register(), number < EVENT_REGISTERS as u64);
        }
        assert_eq!(EventKind::from_number(EVENT_KINDS as u64), None);
        // A guest-physical address is no note, and a note of no kind is none.
        for word in [0, 0x4020_0000, u64::MAX >> 1, u64::MAX, 1 << 63 | 15 << 48] {
            assert_eq!(EventKind::of_note(word), None, "{word:#x}");
        }
        for (number, injected) in (0..).zip([Injected::Undefined, Injected::Abort, Injected::Breakpoint]) {
            assert_eq!((Injected::from_number(number), injected as u64), (Some(injected), number));
        }
        assert_eq!(Injected::from_number(3), None);
    }

    #[test]
    fn a_wish_is_its_words_and_what_means_nothing_is_refused() {
        let wish = Wish { kinds: 0x1fff, only_changes: 0x3f, ignored: [1, 2, 3, 4, 5, u64::MAX], told: 0x1001 };
        assert_eq!(Wish::from_words(wish.to_words()), Ok(wish));
        let both = Wish { kinds: 3 << 13, told: 3 << 13, ..Wish::default() };
        assert_eq!(Wish::from_words(both.to_words()), Ok(both));
        for words in [[1 << 13, 0], [3 << 13 | 1 << 45, 0], [1 << 15, 0], [1 << 32, 0], [1 | 2 << 32, 0], [0, 1 << 6], [u64::MAX, 0], [0, u64::MAX]] {
            let [a, b] = words;
            assert_eq!(Wish::from_words([a, b, 0, 0, 0, 0, 0, 0]), Err(Refusal::BadArgument), "{words:x?}");
        }
        let names = EventKind::ALL.iter().filter(|kind| kind.register().is_some());
        assert!(names.eq(EventKind::ALL.iter().filter(|kind| kind.is_register())), "each that is written has a name");
    }
}
