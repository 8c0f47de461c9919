// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which CPU this is: the main ID register, and the names of the parts that the tables know.

use core::fmt;

/// A part of Arm's, by its number in the main ID register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Part {
    CortexA35 = 0xd04, CortexA53 = 0xd03, CortexA55 = 0xd05, CortexA57 = 0xd07, CortexA72 = 0xd08, CortexA73 = 0xd09,
    CortexA75 = 0xd0a, CortexA76 = 0xd0b, NeoverseN1 = 0xd0c, CortexA77 = 0xd0d, NeoverseV1 = 0xd40,
    CortexA78 = 0xd41, CortexX1 = 0xd44, CortexA710 = 0xd47, NeoverseN2 = 0xd49, NeoverseV2 = 0xd4f,
    NeoverseV3 = 0xd84,
}

use Part::*;

const NAMES: [(Part, &str); 17] = [
    (CortexA35, "Cortex-A35"), (CortexA53, "Cortex-A53"), (CortexA55, "Cortex-A55"), (CortexA57, "Cortex-A57"),
    (CortexA72, "Cortex-A72"), (CortexA73, "Cortex-A73"), (CortexA75, "Cortex-A75"), (CortexA76, "Cortex-A76"),
    (NeoverseN1, "Neoverse-N1"), (CortexA77, "Cortex-A77"), (NeoverseV1, "Neoverse-V1"), (CortexA78, "Cortex-A78"),
    (CortexX1, "Cortex-X1"), (CortexA710, "Cortex-A710"), (NeoverseN2, "Neoverse-N2"), (NeoverseV2, "Neoverse-V2"),
    (NeoverseV3, "Neoverse-V3"),
];

/// A revision, `rXpY`, as it compares: X in the high half.
pub const fn revision(variant: u8, revision: u8) -> u8 {
    variant << 4 | revision
}

/// The main ID register (MIDR_EL1, Arm ARM D19.2.102).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Midr(pub u64);

impl Midr {
    /// The part, where the tables know it.
    pub fn part(self) -> Option<Part> {
        // Implementer 0x41: Arm.
        let number = if self.0 >> 24 & 0xff == 0x41 { (self.0 >> 4 & 0xfff) as u16 } else { 0 };
        NAMES.iter().map(|(part, _)| *part).find(|part| *part as u16 == number)
    }

    /// Its revision, to be compared with [`revision`].
    pub const fn revision(self) -> u8 {
        revision((self.0 >> 20 & 15) as u8, (self.0 & 15) as u8)
    }
}

impl fmt::Display for Midr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(part, _)| Some(*part) == self.part()).map(|(_, name)| *name);
        match name {
            Some(name) => {
                out.write_str(name)?;
                write!(out, " r{}p{}", self.revision() >> 4, self.revision() & 15)
            }
            None => write!(out, "unknown part, MIDR {:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_were_seen_have_their_names() {
        // As the emulator's and a Raspberry Pi 4's CPUs say.
        for (midr, name) in [
            (0x411f_d070, "Cortex-A57 r1p0"), (0x410f_d083, "Cortex-A72 r0p3"), (0x414f_d0c1, "Neoverse-N1 r4p1"),
            (0x411f_d402, "Neoverse-V1 r1p2"), (0x000f_0510, "unknown part, MIDR 0xf0510"),
        ] {
            assert_eq!(Midr(midr).to_string(), name);
        }
        assert_eq!(Midr(0x511f_d070).part(), None, "another maker's numbers are its own");
    }
}
