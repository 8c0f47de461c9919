// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a load or store instruction moves, for the accesses whose syndrome does not say so.
//!
//! Arm ARM C4.1 (loads and stores). Decoded are the general-register forms that make sense on a device: every offset
//! and write-back form, pairs, acquire and release. Vector registers, exclusives and atomics are refused by name.

/// Why an instruction is not emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEmulated {
    /// It moves vector registers.
    Vector,
    /// It is an exclusive or atomic access.
    Atomic,
    /// It zeroes a block (DC ZVA).
    ZeroBlock,
    /// It is no load or store known here.
    Unknown,
}

/// How the address is made from the base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// Base plus a constant.
    Constant(i64),
    /// Base plus a register, extended as `option` says and shifted left.
    Register {
        /// The register (31 = zero).
        number: u8,
        /// The instruction's option field.
        option: u8,
        /// Bits to the left.
        shift: u8,
    },
}

/// What happens to the base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteBack {
    /// It stays.
    None,
    /// It becomes the address of the access.
    Before,
    /// The access uses it as it is; then the offset is added.
    After,
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// From the device to the register.
    pub is_load: bool,
    /// Bytes of one register in memory.
    pub bytes: u8,
    /// A load is sign-extended.
    pub is_signed: bool,
    /// … to 64 bits, else to 32.
    pub is_wide: bool,
    /// The register (31 = zero).
    pub first: u8,
    /// The second register of a pair.
    pub second: Option<u8>,
    /// The base register (31 = stack pointer).
    pub base: u8,
    /// What is added to it.
    pub offset: Offset,
    /// What becomes of it.
    pub write_back: WriteBack,
}

impl Transfer {
    /// What a load puts into its register when `value` was read.
    pub const fn extend(&self, value: u64) -> u64 {
        extend(value, self.bytes, self.is_signed, self.is_wide)
    }

    /// Bytes of the whole access.
    pub const fn total_bytes(&self) -> u64 {
        self.bytes as u64 * if self.second.is_some() { 2 } else { 1 }
    }
}

/// A value of `bytes` bytes as a register holds it after a load.
#[inline]
pub const fn extend(value: u64, bytes: u8, is_signed: bool, is_wide: bool) -> u64 {
    if bytes >= 8 || bytes == 0 {
        return value;
    }
    let unused = 64 - bytes as u32 * 8;
    if !is_signed {
        return value << unused >> unused;
    }
    let extended = ((value << unused) as i64 >> unused) as u64;
    if is_wide { extended } else { extended & 0xffff_ffff }
}

/// Decodes an A64 instruction.
pub fn decode(word: u32) -> Result<Transfer, NotEmulated> {
    let is_transfer = field(word, 27, 1) == 1 && field(word, 25, 1) == 0;
    if is_transfer && field(word, 26, 1) == 1 {
        return Err(NotEmulated::Vector);
    }
    match field(word, 27, 3) {
        0b111 => register(word),
        0b101 if field(word, 25, 1) == 0 => pair(word),
        0b001 if field(word, 24, 3) == 0 => ordered(word),
        0b011 if word & 0x3f20_0c00 == 0x1900_0000 => {
            sized(word, Offset::Constant(signed(word, 12, 9)), WriteBack::None)
        }
        _ if word & !0x1f == DC_ZVA => Err(NotEmulated::ZeroBlock),
        _ => Err(NotEmulated::Unknown),
    }
}

/// DC ZVA, X0.
const DC_ZVA: u32 = 0xd50b_7420;

/// One register, all addressing forms.
fn register(word: u32) -> Result<Transfer, NotEmulated> {
    let size = field(word, 30, 2) as u8;
    match (field(word, 24, 2), field(word, 21, 1), field(word, 10, 2)) {
        (1, ..) => sized(word, Offset::Constant(i64::from(field(word, 10, 12)) << size), WriteBack::None),
        (0, 0, form) => {
            let write_back = match form {
                1 => WriteBack::After,
                3 => WriteBack::Before,
                _ => WriteBack::None,
            };
            sized(word, Offset::Constant(signed(word, 12, 9)), write_back)
        }
        (0, 1, 2) => {
            let shift = if field(word, 12, 1) == 1 { size } else { 0 };
            let offset = Offset::Register { number: register_at(word, 16), option: field(word, 13, 3) as u8, shift };
            if field(word, 14, 1) == 0 { Err(NotEmulated::Unknown) } else { sized(word, offset, WriteBack::None) }
        }
        // LDAPR stands among the atomics.
        (0, 1, 0) if word & 0x3fff_fc00 == 0x38bf_c000 => Ok(plain(word, true, Offset::Constant(0))),
        (0, 1, 0) => Err(NotEmulated::Atomic),
        _ => Err(NotEmulated::Unknown),
    }
}

/// The forms that share size (31–30) and opc (23–22).
fn sized(word: u32, offset: Offset, write_back: WriteBack) -> Result<Transfer, NotEmulated> {
    let size = field(word, 30, 2) as u8;
    let opcode = field(word, 22, 2);
    let is_reserved = matches!((size, opcode), (3, 2 | 3) | (2, 3));
    if is_reserved {
        return Err(NotEmulated::Unknown);
    }
    let plain = plain(word, opcode != 0, offset);
    Ok(Transfer { is_signed: opcode >= 2, is_wide: opcode == 2 || size == 3, write_back, ..plain })
}

fn plain(word: u32, is_load: bool, offset: Offset) -> Transfer {
    let size = field(word, 30, 2) as u8;
    Transfer {
        is_load,
        bytes: 1 << size,
        is_signed: false,
        is_wide: size == 3,
        first: register_at(word, 0),
        second: None,
        base: register_at(word, 5),
        offset,
        write_back: WriteBack::None,
    }
}

/// LDP, STP, LDPSW, LDNP, STNP.
fn pair(word: u32) -> Result<Transfer, NotEmulated> {
    let is_load = field(word, 22, 1) == 1;
    let (bytes, is_signed) = match (field(word, 30, 2), is_load) {
        (0, _) => (4, false),
        (1, true) if field(word, 23, 2) != 0 => (4, true),
        (2, _) => (8, false),
        _ => return Err(NotEmulated::Unknown),
    };
    let write_back = match field(word, 23, 2) {
        1 => WriteBack::After,
        3 => WriteBack::Before,
        _ => WriteBack::None,
    };
    Ok(Transfer {
        is_load,
        bytes,
        is_signed,
        is_wide: is_signed || bytes == 8,
        first: register_at(word, 0),
        second: Some(register_at(word, 10)),
        base: register_at(word, 5),
        offset: Offset::Constant(signed(word, 15, 7) * i64::from(bytes)),
        write_back,
    })
}

/// LDAR, STLR, LDLAR, STLLR; beside them exclusives and compare-and-swap.
fn ordered(word: u32) -> Result<Transfer, NotEmulated> {
    if field(word, 23, 1) == 1 && field(word, 21, 1) == 0 {
        Ok(plain(word, field(word, 22, 1) == 1, Offset::Constant(0)))
    } else {
        Err(NotEmulated::Atomic)
    }
}

fn field(word: u32, low: u32, width: u32) -> u32 {
    word >> low & ((1 << width) - 1)
}

fn register_at(word: u32, low: u32) -> u8 {
    field(word, low, 5) as u8
}

fn signed(word: u32, low: u32, width: u32) -> i64 {
    i64::from(((word << (32 - low - width)) as i32) >> (32 - width))
}

#[cfg(test)]
mod tests;
