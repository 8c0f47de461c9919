// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel finds in its image: a header of fixed layout that the composer fills in.
//!
//! It stands at byte [`HEADER_OFFSET`] of the image, inside the kernel's own first page, after the arm64 Image
//! header. All numbers are little-endian. Offsets count from the first byte of the image, which is loaded at a 2 MiB
//! boundary. The payload (plan, programs, guests) follows the kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the header stands in the image.
pub const HEADER_OFFSET: usize = 64;
/// "TRELLIS\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TRELLIS\0");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Most CPUs.
pub const MAX_CPUS: usize = 64;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First byte.
    pub base: u64,
    /// Bytes; 0 = unused.
    pub bytes: u64,
}

/// A piece of root's program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Where in the image (page aligned).
    pub offset: u64,
    /// Virtual address (page aligned).
    pub address: u64,
    /// Bytes in the image.
    pub file_bytes: u64,
    /// Bytes in memory; the rest is zero. 0 = unused.
    pub memory_bytes: u64,
    /// [`crate::kernel::Access`] bits.
    pub access: u64,
}

/// How CPUs are started.
pub mod start {
    /// Only the boot CPU.
    pub const NONE: u32 = 0;
    /// PSCI through SMC.
    pub const PSCI: u32 = 1;
    /// A release address per CPU (`release`).
    pub const SPIN_TABLE: u32 = 2;
}

/// What else is to be known about a board: one bit each.
pub mod flags {
    /// An emulator: it predicts nothing, so nothing is done about predictors.
    pub const EMULATED: u32 = 1;
}

/// Which interrupt controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Gic {
    /// 2 or 3.
    pub version: u32,
    /// Must be 0.
    pub reserved: u32,
    /// GICD.
    pub distributor: u64,
    /// GICv3: GICR (one frame of 128 KiB a CPU). GICv2: GICC.
    pub cpu: u64,
    /// GICv2: GICH.
    pub control: u64,
    /// GICv2: GICV.
    pub virtual_cpu: u64,
}

/// The board's first serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Uart {
    /// 0 = none, 1 = PL011.
    pub kind: u32,
    /// Its interrupt line.
    pub line: u32,
    /// First byte of its page.
    pub base: u64,
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootHeader {
    /// [`MAGIC`]; 0 in a kernel that no composer has touched.
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// CPUs in `mpidr`.
    pub cpus: u32,
    /// Bytes of the whole image, payload included; a multiple of a page.
    pub image_bytes: u64,
    /// Where the payload begins (page aligned), 0-based from the image.
    pub payload: Range,
    /// The postcard-encoded plan, within the payload: offset from the *payload's* first byte.
    pub plan: Range,
    /// Memory, first to last, not overlapping.
    pub ram: [Range; 4],
    /// Interrupt controller.
    pub gic: Gic,
    /// Serial port.
    pub uart: Uart,
    /// One of [`start`].
    pub start: u32,
    /// [`flags`].
    pub flags: u32,
    /// Affinity (MPIDR & 0xff00ffffff) of each CPU; the boot CPU first.
    pub mpidr: [u64; MAX_CPUS],
    /// Spin table: CPU i's release address is `release + 8 * i`.
    pub release: u64,
    /// Device pages that root gets as runs.
    pub devices: [Range; 16],
    /// Root's entry.
    pub root_entry: u64,
    /// Root's pieces.
    pub root: [Segment; 4],
}

const _: () = assert!(size_of::<BootHeader>() + HEADER_OFFSET <= 4096);

impl BootHeader {
    /// What a kernel is linked with; the composer writes over it.
    pub const EMPTY: BootHeader = BootHeader {
        magic: 0,
        version: VERSION,
        cpus: 0,
        image_bytes: 0,
        payload: Range { base: 0, bytes: 0 },
        plan: Range { base: 0, bytes: 0 },
        ram: [Range { base: 0, bytes: 0 }; 4],
        gic: Gic { version: 0, reserved: 0, distributor: 0, cpu: 0, control: 0, virtual_cpu: 0 },
        uart: Uart { kind: 0, line: 0, base: 0 },
        start: 0,
        flags: 0,
        mpidr: [0; MAX_CPUS],
        release: 0,
        devices: [Range { base: 0, bytes: 0 }; 16],
        root_entry: 0,
        root: [Segment { offset: 0, address: 0, file_bytes: 0, memory_bytes: 0, access: 0 }; 4],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_keeps_its_layout() {
        assert_eq!(size_of::<BootHeader>(), 1128);
        assert_eq!(core::mem::offset_of!(BootHeader, ram), 56);
        assert_eq!(core::mem::offset_of!(BootHeader, mpidr), 184);
        assert_eq!(core::mem::offset_of!(BootHeader, root), 968);
    }
}
