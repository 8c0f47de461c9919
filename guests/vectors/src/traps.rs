// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is not allowed is an exception of the guest's own level: by its own control register, or because it does not
//! have it.

use trellis_guest_platform::fault::execute;
use trellis_guest_platform::write_register;

use crate::registers::{ALLOW_ALL, has_scalable};

const FLOAT: u32 = 0x9e67_03e0; // fmov d0, xzr
const LENGTH: u32 = 0x04bf_5020; // rdvl x0, #1
const READ_ZCR: u32 = 0xd538_1200; // mrs x0, zcr_el1
const STREAM: u32 = 0xd503_477f; // smstart
/// State of extensions that no guest has: whoever could write it would leave it to the next guest.
const HIDDEN: [(u32, &str); 8] = [
    (0xd53b_4240, "SVCR"),       // mrs x0, svcr
    (0xd538_12c0, "SMCR_EL1"),   // mrs x0, smcr_el1
    (0xd538_1280, "SMPRI_EL1"),  // mrs x0, smpri_el1
    (0xd53b_d0a0, "TPIDR2_EL0"), // mrs x0, tpidr2_el0
    (0xd51b_d0a0, "TPIDR2_EL0"), // msr tpidr2_el0, x0
    (0xd53b_4440, "FPMR"),       // mrs x0, fpmr
    (0xd51b_4440, "FPMR"),       // msr fpmr, x0
    (0xc008_00ff, "ZA"),         // zero {za}
];

/// Exception classes (Arm ARM D24.2.40).
const UNKNOWN: u64 = 0x00;
const FLOAT_TRAP: u64 = 0x07;
const VECTOR_TRAP: u64 = 0x19;

/// Which of these does not end as it must.
pub fn check() -> Result<(), &'static str> {
    write_register!("cpacr_el1", 0);
    is(FLOAT, Some(FLOAT_TRAP), "floating point, which CPACR_EL1 forbids")?;
    write_register!("cpacr_el1", ALLOW_ALL & !(3 << 16));
    is(FLOAT, None, "floating point")?;
    if has_scalable() {
        is(LENGTH, Some(VECTOR_TRAP), "scalable vectors, which CPACR_EL1 forbids")?;
        is(READ_ZCR, Some(VECTOR_TRAP), "ZCR_EL1, which CPACR_EL1 forbids")?;
    }
    write_register!("cpacr_el1", ALLOW_ALL);
    let vectors = if has_scalable() { None } else { Some(UNKNOWN) };
    is(LENGTH, vectors, "scalable vectors")?;
    is(READ_ZCR, vectors, "ZCR_EL1")?;
    is(STREAM, Some(UNKNOWN), "streaming mode")?;
    HIDDEN.iter().try_for_each(|(word, what)| is(*word, Some(UNKNOWN), what))
}

fn is(word: u32, class: Option<u64>, what: &'static str) -> Result<(), &'static str> {
    if execute(word, 0, 0).err().map(|fault| fault.class()) == class { Ok(()) } else { Err(what) }
}
