// SPDX-License-Identifier: MIT OR Apache-2.0
//! What kind of access an instruction makes, for all that touch memory: more than a device is accessed by
//! ([`crate::instruction`]). Arm ARM C4.1, loads and stores.

use crate::instruction::{NotEmulated, Offset, Transfer, WriteBack, decode};

/// An exclusive load or store, of one register or a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusive {
    /// A load; else a store.
    pub is_load: bool,
    /// Bytes of one register in memory.
    pub bytes: u8,
    /// Where a store says whether it failed (31 = nowhere).
    pub status: u8,
    /// The register (31 = zero).
    pub first: u8,
    /// The second register of a pair.
    pub second: Option<u8>,
    /// The base register (31 = stack pointer).
    pub base: u8,
}

impl Exclusive {
    /// Bytes of the whole access, by their logarithm.
    pub const fn size(&self) -> u8 {
        self.bytes.trailing_zeros() as u8 + self.second.is_some() as u8
    }
}

/// An access of vector registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vectors {
    /// A load; else a store.
    pub is_load: bool,
    /// The first register; those after it follow, modulo 32. A pair has its second one anywhere.
    pub first: u8,
    /// The second of a pair.
    pub second: Option<u8>,
    /// How many.
    pub count: u8,
    /// Bytes of each that a load changes, before zeroes.
    pub bytes: u8,
    /// A load leaves other lanes of them alone.
    pub is_partial: bool,
    /// The base register (31 = stack pointer).
    pub base: u8,
    /// What is added to it.
    pub offset: Offset,
    /// What becomes of it.
    pub write_back: WriteBack,
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of general registers.
    Plain(Transfer),
    /// Exclusive.
    Exclusive(Exclusive),
    /// Atomic: a register gets what was there, and the next one if it is a pair (31 = none).
    Atomic {
        /// Which register.
        old: u8,
        /// Bytes of one register in memory.
        bytes: u8,
        /// Two of them.
        is_pair: bool,
    },
    /// Of vector registers.
    Vectors(Vectors),
    /// DC ZVA.
    ZeroBlock,
}

impl Kind {
    /// Decodes an A64 instruction; none if it is no access that is known.
    pub fn of(word: u32) -> Option<Kind> {
        if let Some(exclusive) = exclusive(word) {
            return Some(Kind::Exclusive(exclusive));
        }
        match decode(word) {
            Ok(transfer) => Some(Kind::Plain(transfer)),
            Err(NotEmulated::ZeroBlock) => Some(Kind::ZeroBlock),
            Err(NotEmulated::Atomic) => atomic(word),
            Err(NotEmulated::Vector) => vectors(word).map(Kind::Vectors),
            Err(NotEmulated::Unknown) => literal(word),
        }
    }
}

const fn field(word: u32, low: u32, width: u32) -> u32 {
    word >> low & ((1 << width) - 1)
}

const fn register_at(word: u32, low: u32) -> u8 {
    field(word, low, 5) as u8
}

fn signed(word: u32, low: u32, width: u32) -> i64 {
    i64::from(((word << (32 - low - width)) as i32) >> (32 - width))
}

/// LDXR, STXR, LDXP, STXP, with acquire and release or without: bits 29–23 are 0010000; a pair has bit 21, and bit 31.
fn exclusive(word: u32) -> Option<Exclusive> {
    let is_pair = field(word, 21, 1) == 1;
    if field(word, 23, 7) != 0b001_0000 || is_pair && field(word, 31, 1) == 0 {
        return None;
    }
    Some(Exclusive {
        is_load: field(word, 22, 1) == 1,
        bytes: 1 << field(word, 30, 2),
        status: register_at(word, 16),
        first: register_at(word, 0),
        second: is_pair.then_some(register_at(word, 10)),
        base: register_at(word, 5),
    })
}

/// LDADD and its like, SWP, CAS, CASP.
fn atomic(word: u32) -> Option<Kind> {
    let bytes = 1 << field(word, 30, 2);
    if word & 0x3f20_0c00 == 0x3820_0000 && field(word, 12, 4) <= 8 {
        return Some(Kind::Atomic { old: register_at(word, 0), bytes, is_pair: false });
    }
    if word & 0x3fa0_7c00 == 0x08a0_7c00 {
        return Some(Kind::Atomic { old: register_at(word, 16), bytes, is_pair: false });
    }
    if word & 0xbfa0_7c00 == 0x0820_7c00 {
        return Some(Kind::Atomic { old: register_at(word, 16), bytes: 4 << field(word, 30, 1), is_pair: true });
    }
    None
}

/// LDR of one general or vector register from beside the program counter, which is then the base of nothing.
fn literal(word: u32) -> Option<Kind> {
    if field(word, 27, 3) != 0b011 || field(word, 24, 3) != 0 {
        return None;
    }
    let (bytes, is_signed) = match field(word, 30, 2) {
        0 => (4, false),
        1 => (8, false),
        2 => (4, true),
        _ => return None,
    };
    Some(Kind::Plain(Transfer {
        is_load: true,
        bytes,
        is_signed,
        is_wide: is_signed || bytes == 8,
        first: register_at(word, 0),
        second: None,
        base: 31,
        offset: Offset::Constant(0),
        write_back: WriteBack::None,
    }))
}

fn vectors(word: u32) -> Option<Vectors> {
    match (field(word, 27, 3), field(word, 24, 2)) {
        (0b111, _) => one_vector(word),
        (0b101, 0 | 1) => vector_pair(word),
        (0b001, 0) if field(word, 31, 1) == 0 => several_vectors(word),
        (0b001, 1) if field(word, 31, 1) == 0 => lanes(word),
        (0b011, 0) if field(word, 30, 2) != 3 => {
            let plain = plain_vector(word, 31, Offset::Constant(0), WriteBack::None);
            Some(Vectors { is_load: true, bytes: 4 << field(word, 30, 2), ..plain })
        }
        _ => None,
    }
}

fn plain_vector(word: u32, base: u8, offset: Offset, write_back: WriteBack) -> Vectors {
    let is_load = field(word, 22, 1) == 1;
    let first = register_at(word, 0);
    Vectors { is_load, first, second: None, count: 1, bytes: 16, is_partial: false, base, offset, write_back }
}

/// LDR and STR of B, H, S, D, Q, all addressing forms.
fn one_vector(word: u32) -> Option<Vectors> {
    let scale = field(word, 23, 1) << 2 | field(word, 30, 2);
    if scale > 4 {
        return None;
    }
    let base = register_at(word, 5);
    let (offset, write_back) = match (field(word, 24, 2), field(word, 21, 1), field(word, 10, 2)) {
        (1, ..) => (Offset::Constant(i64::from(field(word, 10, 12)) << scale), WriteBack::None),
        (0, 0, 0) => (Offset::Constant(signed(word, 12, 9)), WriteBack::None),
        (0, 0, 1) => (Offset::Constant(signed(word, 12, 9)), WriteBack::After),
        (0, 0, 3) => (Offset::Constant(signed(word, 12, 9)), WriteBack::Before),
        // Without write-back nobody asks what is added.
        (0, 1, 2) => (Offset::Constant(0), WriteBack::None),
        _ => return None,
    };
    Some(Vectors { bytes: 1 << scale, ..plain_vector(word, base, offset, write_back) })
}

/// LDP, STP, LDNP, STNP of S, D, Q.
fn vector_pair(word: u32) -> Option<Vectors> {
    let size = field(word, 30, 2);
    if size == 3 {
        return None;
    }
    let write_back = match field(word, 23, 2) {
        1 => WriteBack::After,
        3 => WriteBack::Before,
        _ => WriteBack::None,
    };
    let offset = Offset::Constant(signed(word, 15, 7) * (4 << size));
    let plain = plain_vector(word, register_at(word, 5), offset, write_back);
    Some(Vectors { second: Some(register_at(word, 10)), count: 2, bytes: 4 << size, ..plain })
}

/// What is added behind an access of so many bytes: a register, or, for number 31, just these.
fn behind(word: u32, bytes: u32) -> (Offset, WriteBack) {
    if field(word, 23, 1) == 0 {
        return (Offset::Constant(0), WriteBack::None);
    }
    match register_at(word, 16) {
        31 => (Offset::Constant(bytes.into()), WriteBack::After),
        number => (Offset::Register { number, option: 3, shift: 0 }, WriteBack::After),
    }
}

/// LD1 to LD4 and ST1 to ST4 of whole registers.
fn several_vectors(word: u32) -> Option<Vectors> {
    let count = match field(word, 12, 4) {
        0b0000 | 0b0010 => 4,
        0b0100 | 0b0110 => 3,
        0b1000 | 0b1010 => 2,
        0b0111 => 1,
        _ => return None,
    };
    let (offset, write_back) = behind(word, count * (8 << field(word, 30, 1)));
    let plain = plain_vector(word, register_at(word, 5), offset, write_back);
    Some(Vectors { count: count as u8, ..plain })
}

/// The same of one lane of each, or of all of them alike.
fn lanes(word: u32) -> Option<Vectors> {
    let count = (field(word, 13, 1) << 1 | field(word, 21, 1)) + 1;
    let bytes = match (field(word, 14, 2), field(word, 10, 2)) {
        (0, _) => 1,
        (1, 0 | 2) => 2,
        (2, 0) => 4,
        (2, 1) => 8,
        (3, size) if field(word, 22, 1) == 1 => 1 << size,
        _ => return None,
    };
    let (offset, write_back) = behind(word, count * bytes);
    let plain = plain_vector(word, register_at(word, 5), offset, write_back);
    Some(Vectors { count: count as u8, is_partial: field(word, 14, 2) != 3, ..plain })
}

#[cfg(test)]
mod tests;
