// SPDX-License-Identifier: MIT OR Apache-2.0
//! What SME would add to a vCPU's state. It is hidden, trapped and undefined for every guest; this says how large the
//! state is and in which order it goes, so that whoever switches it one day begins with the type.

/// SVCR: which of the two parts are on (Arm ARM D24.2.189).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Svcr(pub u64);

impl Svcr {
    /// Streaming mode: Z and P have the streaming length; entering and leaving zeroes Z, P and FFR.
    pub const fn is_streaming(self) -> bool {
        self.0 & 1 == 1
    }

    /// ZA (and ZT0) hold something.
    pub const fn has_array(self) -> bool {
        self.0 >> 1 & 1 == 1
    }
}

/// A part of the state, in the order in which a save takes them. SVCR comes first, since it says what the others are;
/// a load goes the same way, since writing SVCR zeroes what was loaded before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// SVCR, SMCR_EL1, TPIDR2_EL0, SMPRI_EL1.
    Control,
    /// Z, P, and FFR only outside streaming mode or with FA64, at the length that SVCR says.
    Vectors,
    /// The array: as many vectors as a vector has bytes.
    Array,
    /// ZT0, with SME2.
    Table,
}

impl Part {
    /// In order.
    pub const ORDER: [Part; 4] = [Part::Control, Part::Vectors, Part::Array, Part::Table];
}

/// What a vCPU's SME state takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Streaming {
    /// Lanes of 128 bits of the streaming length. No length need be common to all CPUs.
    pub lanes: u8,
    /// FEAT_SME2: ZT0 is there.
    pub version_2: bool,
}

impl Streaming {
    /// Bytes of a part, with SVCR as it is.
    pub const fn bytes(self, part: Part, svcr: Svcr) -> u64 {
        let vector = self.lanes as u64 * 16;
        match part {
            Part::Control => 32,
            Part::Vectors if svcr.is_streaming() => 32 * vector + 17 * (vector / 8),
            Part::Array if svcr.has_array() => vector * vector,
            Part::Table if svcr.has_array() && self.version_2 => 64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_array_is_as_high_as_a_vector_is_wide() {
        let all = Svcr(3);
        let of = |lanes, part| Streaming { lanes, version_2: true }.bytes(part, all);
        assert_eq!([1, 2, 4, 16].map(|lanes| of(lanes, Part::Array)), [256, 1024, 4096, 65536]);
        assert_eq!(of(16, Part::Vectors), 8192 + 544);
        assert_eq!(of(4, Part::Table), 64);
    }

    #[test]
    fn what_is_off_takes_nothing() {
        let state = Streaming { lanes: 16, version_2: true };
        let off = Part::ORDER.map(|part| state.bytes(part, Svcr(0)));
        assert_eq!(off, [32, 0, 0, 0]);
        assert_eq!(Streaming { version_2: false, ..state }.bytes(Part::Table, Svcr(3)), 0);
        assert!(!Svcr(2).is_streaming() && Svcr(2).has_array());
    }
}
