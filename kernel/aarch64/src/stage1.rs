// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own map: memory and devices where they are, its own image by what it is (no page writable and
//! executable).

use crate::errata::{self, Remedy};
use crate::isa::{self, read, write};
use crate::part::Midr;
use core::cell::UnsafeCell;
use trellis_idl::boot::BootHeader;

/// MAIR_EL2: attribute 0 normal write-back, 1 device nGnRE.
const MAIR: u64 = 0xff | 0x04 << 8;
/// TCR_EL2: 39-bit addresses, 4 KiB, walks write-back inner shareable, RES1 bits 31 and 23.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 31 | 1 << 23;
/// SCTLR_EL2: M, A off, C, SA, I, WXN and the RES1 bits.
const SCTLR: u64 = 0x30c5_0830 | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;

const VALID: u64 = 1;
const TABLE: u64 = 3;
const PAGE: u64 = 3;
const DEVICE: u64 = 1 << 2;
const READ_ONLY: u64 = 2 << 6;
const SHARED: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NEVER_EXECUTE: u64 = 1 << 54;
/// AP[1] is RES1 in EL2's stage 1.
const RES1: u64 = 1 << 6;

#[repr(C, align(4096))]
struct Tables {
    gigabytes: UnsafeCell<[u64; 512]>,
    megabytes: UnsafeCell<[u64; 512]>,
    pages: UnsafeCell<[u64; 512]>,
}
// SAFETY: written once, at boot, before anything else runs.
unsafe impl Sync for Tables {}

const EMPTY: Tables = Tables {
    gigabytes: UnsafeCell::new([0; 512]),
    megabytes: UnsafeCell::new([0; 512]),
    pages: UnsafeCell::new([0; 512]),
};

/// The map, without the page of the AT instruction.
static TABLES: Tables = EMPTY;
/// The same with it ([`isa::translate`]).
static TRANSLATING: Tables = EMPTY;

/// Root of the map.
pub fn plain() -> u64 {
    TABLES.gigabytes.get() as u64
}

/// Root of the map that has the AT instruction.
pub fn translating() -> u64 {
    TRANSLATING.gigabytes.get() as u64
}

/// What the linker says about the image: first byte, end of text, end of constants.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// First byte; at a 2 MiB boundary.
    pub start: u64,
    /// End of text.
    pub text_end: u64,
    /// What of it boot alone executes: first byte and end.
    pub boot: (u64, u64),
    /// The page of the AT instruction.
    pub translate: u64,
    /// End of constants.
    pub constants_end: u64,
}

/// Builds the map. Called once with the MMU off.
pub fn build(header: &BootHeader, image: Image) {
    // SAFETY: called once on the boot CPU before anything else uses the tables.
    let (gigabytes, megabytes, pages) =
        unsafe { (&mut *TABLES.gigabytes.get(), &mut *TABLES.megabytes.get(), &mut *TABLES.pages.get()) };
    let normal = VALID | SHARED | ACCESSED | RES1;
    for (i, entry) in gigabytes.iter_mut().enumerate() {
        let (first, end) = ((i as u64) << 30, (i as u64 + 1) << 30);
        let memory = header.ram.iter().any(|r| r.bytes != 0 && r.base < end && r.base + r.bytes > first);
        let device = |base: u64| base >= first && base < end;
        let gic = [header.gic.distributor, header.gic.cpu, header.gic.control, header.gic.virtual_cpu];
        if memory {
            *entry = first | normal | NEVER_EXECUTE;
        } else if gic.iter().any(|base| *base != 0 && device(*base)) || (header.uart.kind != 0 && device(header.uart.base)) {
            *entry = first | VALID | DEVICE | ACCESSED | RES1 | NEVER_EXECUTE;
        }
    }
    let gigabyte = image.start >> 30;
    for (i, entry) in megabytes.iter_mut().enumerate() {
        *entry = gigabyte << 30 | (i as u64) << 21 | normal | NEVER_EXECUTE;
    }
    for (i, entry) in pages.iter_mut().enumerate() {
        let at = (image.start & !0x1f_ffff) + ((i as u64) << 12);
        let kind = if at >= image.start && at < image.text_end {
            READ_ONLY
        } else if at >= image.start && at < image.constants_end {
            READ_ONLY | NEVER_EXECUTE
        } else {
            NEVER_EXECUTE
        };
        *entry = at | PAGE | SHARED | ACCESSED | RES1 | kind;
    }
    // SAFETY: as above.
    let other =
        unsafe { (&mut *TRANSLATING.gigabytes.get(), &mut *TRANSLATING.megabytes.get(), &mut *TRANSLATING.pages.get()) };
    (*other.0, *other.1, *other.2) = (*gigabytes, *megabytes, *pages);
    pages[(image.translate >> 12 & 511) as usize] = 0;
    let (block, region) = ((image.start >> 21 & 511) as usize, gigabyte as usize % 512);
    megabytes[block] = TABLES.pages.get() as u64 | TABLE;
    gigabytes[region] = TABLES.megabytes.get() as u64 | TABLE;
    other.1[block] = TRANSLATING.pages.get() as u64 | TABLE;
    other.0[region] = TRANSLATING.megabytes.get() as u64 | TABLE;
}

/// Switches the map on, on this CPU.
pub fn switch_on() {
    write!("mair_el2", MAIR);
    let range = (read!("id_aa64mmfr0_el1") & 15).min(5);
    write!("tcr_el2", TCR | range << 16);
    let apart = errata::needs(Midr(read!("midr_el1")), Remedy::TranslateApart);
    write!("ttbr0_el2", if apart { plain() } else { translating() });
    // SAFETY: only removes cached translations.
    unsafe { core::arch::asm!("tlbi alle2", "dsb nsh", "isb", "ic iallu", "dsb nsh", "isb", options(nostack)) };
    write!("sctlr_el2", SCTLR);
    isa::isb();
}

/// What only boot executes is memory from here on. Permissions alone change, which needs no break before make (Arm ARM
/// D8.16.1). Called once, when every CPU that was started has come out of boot.
pub fn forget_boot(image: Image) {
    let memory = VALID | SHARED | ACCESSED | RES1 | PAGE | NEVER_EXECUTE;
    for tables in [&TABLES, &TRANSLATING] {
        let mut at = image.boot.0;
        while at < image.boot.1 {
            let entry = tables.pages.get().cast::<u64>().wrapping_add((at >> 12 & 511) as usize);
            // SAFETY: an entry of the table of the image's own 2 MiB; nobody else writes the tables any more.
            unsafe { entry.write_volatile(at | memory) };
            at += 4096;
        }
    }
    // Twice, as errata 4193787 … want it (errata.rs): after this no CPU may still take those pages for read-only.
    isa::tlbi_alle2is();
    isa::tlbi_alle2is();
}
