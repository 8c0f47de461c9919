// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel finds in its image: a header of fixed layout that the composer fills in.
//!
//! It stands at byte [`HEADER_OFFSET`] of the image, inside the kernel's own first page, after the arm64 Image
//! header. All numbers are little-endian. Offsets count from the first byte of the image, which is loaded at a 2 MiB
//! boundary. The payload (plan, programs, guests) follows the kernel.

use crate::kernel::{Access, PAGE};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the header stands in the image.
pub const HEADER_OFFSET: usize = 64;
/// "TRELLIS\0".
pub const MAGIC: u64 = u64::from_le_bytes(*b"TRELLIS\0");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// What stands in memory before the kernel's log, so that it is found from outside: then two indices of eight bytes (how
/// many bytes were written, how many of them taken), then the ring.
pub const LOG_MARK: [u8; 16] = *b"TRELLIS LOG RING";
/// Bytes of the ring.
pub const LOG_BYTES: usize = 16 * 1024;
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
    /// A guest may have scalable vectors, so CPUs are asked which lengths they have; else nobody touches them.
    pub const VECTORS: u32 = 2;
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

    /// First byte of the PL011's registers; 0 = the board has none.
    pub const fn uart_base(&self) -> u64 {
        if self.uart.kind == 1 { self.uart.base } else { 0 }
    }

    /// Whether its numbers fit together: everything in the image is inside of it, and no page is two things at once.
    /// What a damaged image says would else become addresses that the kernel uses.
    pub fn holds_together(&self) -> bool {
        let image = Range { base: 0, bytes: self.image_bytes };
        let places = self.ram.iter().chain(&self.devices);
        self.cpus as usize <= MAX_CPUS
            && (self.payload.base | self.image_bytes).is_multiple_of(PAGE)
            && image.holds(self.payload)
            && Range { base: 0, bytes: self.payload.bytes }.holds(self.plan)
            && self.root.iter().filter(|piece| piece.memory_bytes != 0).all(|piece| piece.fits(image))
            && places.clone().all(|range| range.end().is_some_and(|end| end <= MOST_MEMORY))
            && places.clone().enumerate().all(|(i, range)| places.clone().skip(i + 1).all(|other| !range.pages_meet(*other)))
    }
}

/// One past the highest address that any machine has (48 bits).
const MOST_MEMORY: u64 = 1 << 48;

impl Range {
    fn end(self) -> Option<u64> {
        self.base.checked_add(self.bytes)
    }

    fn holds(self, part: Range) -> bool {
        part.base >= self.base && part.end().zip(self.end()).is_some_and(|(end, whole)| end <= whole)
    }

    /// Whether the two have a page in common; both end.
    fn pages_meet(self, other: Range) -> bool {
        let pages = |range: Range| (range.base / PAGE, (range.base + range.bytes).div_ceil(PAGE));
        let ((first, end), (other_first, other_end)) = (pages(self), pages(other));
        self.bytes != 0 && other.bytes != 0 && first < other_end && other_first < end
    }
}

impl Segment {
    /// Whether its bytes are in the image, its pages whole, and it is not writable code.
    fn fits(&self, image: Range) -> bool {
        let access = Access(self.access);
        image.holds(Range { base: self.offset, bytes: self.file_bytes })
            && (self.offset | self.address).is_multiple_of(PAGE)
            && self.file_bytes <= self.memory_bytes
            && self.memory_bytes <= MOST_MEMORY
            && !access.covers(Access::WRITE.with(Access::EXECUTE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_seen() {
        let mut good = BootHeader { cpus: 1, image_bytes: 8 * PAGE, ..BootHeader::EMPTY };
        good.payload = Range { base: 4 * PAGE, bytes: 4 * PAGE };
        good.plan = Range { base: 0, bytes: 100 };
        good.ram[0] = Range { base: 0x4000_0000, bytes: 0x4000_0000 };
        good.devices[0] = Range { base: 0x900_0000, bytes: PAGE };
        good.root[0] = Segment { offset: PAGE, address: PAGE, file_bytes: 10, memory_bytes: 2 * PAGE, access: 3 };
        assert!(good.holds_together());
        let spoilt: [fn(&mut BootHeader); 11] = [
            |header| header.cpus = 65,
            |header| header.image_bytes = 7 * PAGE,
            |header| header.payload.base += 8,
            |header| header.plan.base = u64::MAX,
            |header| header.plan.bytes = 5 * PAGE,
            |header| header.ram[1] = Range { base: 0x7fff_ffff, bytes: 1 },
            |header| header.ram[3] = Range { base: u64::MAX, bytes: 2 },
            |header| header.devices[1] = Range { base: 0x900_0ffc, bytes: 4 },
            |header| header.devices[1] = Range { base: 0x4000_0000, bytes: 4 },
            |header| header.root[0].offset = 8 * PAGE,
            |header| header.root[0].access = 7,
        ];
        for (index, spoil) in spoilt.iter().enumerate() {
            let mut header = good;
            spoil(&mut header);
            assert!(!header.holds_together(), "{index}");
        }
    }

    #[test]
    fn the_header_keeps_its_layout() {
        assert_eq!(size_of::<BootHeader>(), 1128);
        assert_eq!(core::mem::offset_of!(BootHeader, ram), 56);
        assert_eq!(core::mem::offset_of!(BootHeader, mpidr), 184);
        assert_eq!(core::mem::offset_of!(BootHeader, root), 968);
    }
}
