// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is put into the registers: every byte tells whose, which and when.

use trellis_guest_platform::read_register;

use crate::registers::{Length, Registers};

/// Numbers that look random.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
}

/// Bits of FPSR that keep what is written: QC and the cumulative exceptions (Arm ARM C5.2.10).
const FPSR: u64 = 0x0800_009f;
/// Bits of FPCR: AHP, DN, FZ, RMode (Arm ARM C5.2.9).
const FPCR: u64 = 0x07c0_0000;
/// With FEAT_AFP: NEP, AH, FIZ.
const FPCR_ALTERNATE: u64 = 7;

/// Fills all registers of this length.
pub fn fill(length: Length, random: &mut Random, to: &mut Registers) {
    for byte in &mut to.vectors[..32 * length.vector()] {
        *byte = random.next() as u8;
    }
    for byte in &mut to.predicates[..16 * length.predicate()] {
        *byte = random.next() as u8;
    }
    // FFR holds ones, then zeroes (Arm ARM C8.2, WRFFR: anything else is undefined).
    let ones = random.next() as usize % (8 * length.predicate() + 1);
    for (index, byte) in to.predicates[16 * length.predicate()..][..length.predicate()].iter_mut().enumerate() {
        *byte = (0..8).filter(|bit| index * 8 + bit < ones).fold(0, |byte, bit| byte | 1 << bit);
    }
    let alternate = read_register!("id_aa64mmfr1_el1") >> 44 & 15 != 0;
    let control = if alternate { FPCR | FPCR_ALTERNATE } else { FPCR };
    to.status = [random.next() & FPSR, random.next() & control];
}

/// Which register is not as it was, and its byte.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// A vector.
    Vector(usize, usize),
    /// A predicate; 16 is FFR.
    Predicate(usize, usize),
    /// FPSR.
    Fpsr,
    /// FPCR.
    Fpcr,
}

impl core::fmt::Display for Wrong {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Wrong::Vector(number, byte) => write!(out, "byte {byte} of vector {number}"),
            Wrong::Predicate(16, byte) => write!(out, "byte {byte} of FFR"),
            Wrong::Predicate(number, byte) => write!(out, "byte {byte} of predicate {number}"),
            Wrong::Fpsr => write!(out, "FPSR"),
            Wrong::Fpcr => write!(out, "FPCR"),
        }
    }
}

/// Looks at every byte. What lies above `kept` bytes of a vector may have become zero: the length was shorter meanwhile
/// (Arm ARM B1.4.2).
pub fn compare(length: Length, kept: usize, was: &Registers, is: &Registers) -> Result<(), Wrong> {
    let differs = |kept: usize, at: usize, was: u8, is: u8| is != was && !(at >= kept && is == 0);
    let (vector, predicate) = (length.vector(), length.predicate());
    for index in 0..32 * vector {
        if differs(kept, index % vector, was.vectors[index], is.vectors[index]) {
            return Err(Wrong::Vector(index / vector, index % vector));
        }
    }
    for index in 0..17 * predicate {
        if differs(kept / 8, index % predicate, was.predicates[index], is.predicates[index]) {
            return Err(Wrong::Predicate(index / predicate, index % predicate));
        }
    }
    match (was.status[0] == is.status[0], was.status[1] == is.status[1]) {
        (true, true) => Ok(()),
        (false, _) => Err(Wrong::Fpsr),
        _ => Err(Wrong::Fpcr),
    }
}
