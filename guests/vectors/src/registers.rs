// SPDX-License-Identifier: MIT OR Apache-2.0
//! All floating-point registers of this CPU, to and from memory.

use core::arch::global_asm;

use trellis_guest_platform::{read_register, write_register};

global_asm!(include_str!("registers.S"));

unsafe extern "C" {
    fn put_fixed(vectors: *const u8, predicates: *const u8, status: *const u64);
    fn take_fixed(vectors: *mut u8, predicates: *mut u8, status: *mut u64);
    fn put_scalable(vectors: *const u8, predicates: *const u8, status: *const u64);
    fn take_scalable(vectors: *mut u8, predicates: *mut u8, status: *mut u64);
    safe fn vector_bytes() -> u64;
}

/// Room for the longest vectors, whatever length is used: each register begins where it begins at that length.
#[derive(Clone)]
#[repr(C, align(16))]
pub struct Registers {
    /// 32 vectors, one behind the other.
    pub vectors: [u8; 32 * 256],
    /// 16 predicates and FFR.
    pub predicates: [u8; 17 * 32],
    /// FPSR, FPCR.
    pub status: [u64; 2],
}

impl Registers {
    /// Zeroes.
    pub const NONE: Registers = Registers { vectors: [0; 32 * 256], predicates: [0; 17 * 32], status: [0; 2] };
}

/// What this CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// Vectors of 128 bits and nothing else.
    Fixed,
    /// Vectors of so many bytes, and predicates.
    Scalable(usize),
}

impl Length {
    /// Bytes of a vector.
    pub const fn vector(self) -> usize {
        match self {
            Length::Fixed => 16,
            Length::Scalable(bytes) => bytes,
        }
    }

    /// Bytes of a predicate.
    pub const fn predicate(self) -> usize {
        match self {
            Length::Fixed => 0,
            Length::Scalable(bytes) => bytes / 8,
        }
    }
}

/// CPACR_EL1 with floating point, scalable vectors and SME allowed (Arm ARM D24.2.34).
pub const ALLOW_ALL: u64 = 3 << 16 | 3 << 20 | 3 << 24;

/// Whether the ID registers say that there are scalable vectors.
pub fn has_scalable() -> bool {
    read_register!("id_aa64pfr0_el1") >> 32 & 15 != 0
}

/// Allows everything that there is, at the longest length, and says what it is.
pub fn switch_on() -> Length {
    write_register!("cpacr_el1", ALLOW_ALL);
    if !has_scalable() {
        return Length::Fixed;
    }
    set_length(15);
    Length::Scalable(vector_bytes() as usize)
}

/// ZCR_EL1: lanes of 128 bits, less one.
pub fn set_length(zcr: u64) {
    write_register!("S3_0_C1_C2_0", zcr);
}

/// Loads every register.
pub fn put(length: Length, from: &Registers) {
    let (vectors, predicates, status) = (from.vectors.as_ptr(), from.predicates.as_ptr(), from.status.as_ptr());
    // SAFETY: reads no more than the longest registers have; this program keeps nothing in them.
    unsafe {
        match length {
            Length::Fixed => put_fixed(vectors, predicates, status),
            Length::Scalable(_) => put_scalable(vectors, predicates, status),
        }
    }
}

/// Stores every register.
pub fn take(length: Length, to: &mut Registers) {
    let (vectors, predicates) = (to.vectors.as_mut_ptr(), to.predicates.as_mut_ptr());
    let status = to.status.as_mut_ptr();
    // SAFETY: writes no more than the longest registers have.
    unsafe {
        match length {
            Length::Fixed => take_fixed(vectors, predicates, status),
            Length::Scalable(_) => take_scalable(vectors, predicates, status),
        }
    }
}
