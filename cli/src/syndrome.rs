// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an AArch64 syndrome (ESR_EL2, Arm ARM D24.2.40) says, in words for reports.

use trellis_idl::kernel::ExitClass;

/// An ESR_EL2 value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Syndrome(pub u64);

impl Syndrome {
    /// EC, bits 31–26.
    pub const fn class(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// ISS, bits 24–0.
    pub const fn specific(self) -> u32 {
        (self.0 & 0x01ff_ffff) as u32
    }

    /// An instruction fetch (EC 0x20, 0x21).
    pub const fn is_fetch(self) -> bool {
        matches!(self.class(), 0x20 | 0x21)
    }

    /// A data access (EC 0x24, 0x25).
    pub const fn is_data(self) -> bool {
        matches!(self.class(), 0x24 | 0x25)
    }

    /// WnR, bit 6, for data accesses.
    pub const fn is_write(self) -> bool {
        self.is_data() && self.0 >> 6 & 1 == 1
    }

    /// Whether a leaf was there but forbade the access (fault status 0b0011xx).
    pub const fn is_permission(self) -> bool {
        self.0 >> 2 & 0xf == 3
    }

    /// The verb for the access: "wrote to", "read from", "jumped to".
    pub const fn access(self) -> &'static str {
        if self.is_fetch() {
            "jumped to"
        } else if self.is_write() {
            "wrote to"
        } else {
            "read from"
        }
    }

    /// EC in words.
    pub const fn cause(self) -> &'static str {
        match self.class() {
            0x00 => "an unknown or undefined instruction",
            0x01 => "WFI or WFE",
            0x03..=0x06 | 0x08 | 0x0c => "an AArch32 coprocessor access",
            0x07 => "floating point or vectors",
            0x09 | 0x1c => "pointer authentication",
            0x0d => "a branch to a place that is no branch target",
            0x0e => "an illegal execution state",
            0x11 | 0x15 => "SVC",
            0x12 | 0x16 => "HVC",
            0x13 | 0x17 => "SMC",
            0x18 => "a system register access",
            0x19 => "SVE",
            0x1d => "SME",
            0x20 | 0x21 => "an instruction fetch",
            0x22 => "a misaligned program counter",
            0x24 | 0x25 => "a data access",
            0x26 => "a misaligned stack pointer",
            0x2c => "a floating-point exception",
            0x2f => "a system error (SError)",
            0x30 | 0x31 => "a breakpoint",
            0x32 | 0x33 => "a single step",
            0x34 | 0x35 => "a watchpoint",
            0x38 | 0x3c => "a breakpoint instruction",
            _ => "a reason this tool has no word for",
        }
    }
}

/// What a guest stopped for, when it was not an access to an address.
pub const fn stopped_for(class: ExitClass) -> &'static str {
    match class {
        ExitClass::Memory => "an access outside its memory",
        ExitClass::Device => "an access to a device page that no device answers",
        ExitClass::Register => "a system register that it may not use",
        ExitClass::Hypercall => "a hypercall that nobody answers",
        ExitClass::Firmware => "a firmware call that nobody answers",
        ExitClass::Wait => "a wait that nothing can end",
        ExitClass::Debug => "a debug event that nobody watches for",
        ExitClass::Float => "floating point or vectors that it may not use",
        ExitClass::Illegal => "an instruction or state that it may not use",
        ExitClass::SystemError => "a system error (SError) that it caused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_faulted_at_level_two_reads_as_one() {
        let syndrome = Syndrome(0x9200_0046);
        assert_eq!((syndrome.class(), syndrome.access(), syndrome.is_permission()), (0x24, "wrote to", false));
    }

    #[test]
    fn a_fetch_is_a_jump_and_a_permission_fault_is_known() {
        assert_eq!(Syndrome(0x8200_0006).access(), "jumped to");
        assert!(Syndrome(0x9200_004f).is_permission());
        assert_eq!(Syndrome(0x6000_0000).cause(), "a system register access");
    }
}
