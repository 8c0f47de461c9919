// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an access of any width and alignment reaches a device made of 32-bit registers.
//!
//! A device sees whole words and, for a write, which bits of the word it covers: a byte write to a register of four
//! bytes, an unaligned write over two registers and a 64-bit write all become the same thing.

use trellis_idl::kernel::ExitHeader;

/// A device, as words.
pub trait Registers {
    /// The word at this offset (a multiple of 4).
    fn read(&mut self, offset: u64) -> u32;

    /// Writes the bits in `lanes` of the word at this offset; the other bits of `value` are zero.
    fn write(&mut self, offset: u64, value: u32, lanes: u32);
}

/// The bits that an access of this many bytes moves.
pub const fn bits(width: u8) -> u64 {
    match width {
        0 => 0,
        1..=7 => (1 << (width as u64 * 8)) - 1,
        _ => u64::MAX,
    }
}

/// In which order an access has its bytes. Devices are little-endian, as the board's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Lowest byte first.
    Little,
    /// Highest byte first.
    Big,
}

impl Order {
    /// The order of an exit's access.
    #[inline(always)]
    pub const fn of(header: ExitHeader) -> Order {
        if header.has(ExitHeader::BIG_ENDIAN) { Order::Big } else { Order::Little }
    }

    /// From what a register holds to what the device sees, and back: `width` (1–8) bytes.
    #[inline(always)]
    pub const fn turn(self, value: u64, width: u8) -> u64 {
        match (self, width) {
            (Order::Little, _) => value & bits(width),
            (Order::Big, 1..=7) => value.swap_bytes() >> (64 - width as u32 * 8),
            (Order::Big, _) => value.swap_bytes(),
        }
    }
}

/// Reads `width` (1–8) bytes at any offset.
pub fn read(device: &mut impl Registers, offset: u64, width: u8) -> u64 {
    let shift = (offset & 3) * 8;
    let first = offset & !3;
    let mut value = u64::from(device.read(first)) >> shift;
    let end = (offset & 3) + u64::from(width);
    if end > 4 {
        value |= u64::from(device.read(first + 4)) << (32 - shift);
    }
    if end > 8 {
        // Only an access that is not aligned goes so far: `shift` is not 0 here.
        value |= u64::from(device.read(first + 8)) << (64 - shift);
    }
    value & bits(width)
}

/// Writes `width` (1–8) bytes at any offset.
pub fn write(device: &mut impl Registers, offset: u64, width: u8, value: u64) {
    let shift = (offset & 3) * 8;
    let mut place = offset & !3;
    let (mut lanes, mut value) = (bits(width), value & bits(width));
    // The first word takes what fits above the shift, the following ones 32 bits each.
    let (first_lanes, first) = ((lanes << shift) as u32, (value << shift) as u32);
    if first_lanes != 0 {
        device.write(place, first, first_lanes);
    }
    (lanes, value) = (lanes >> (32 - shift), value >> (32 - shift));
    while lanes != 0 {
        place += 4;
        device.write(place, value as u32, lanes as u32);
        (lanes, value) = (lanes >> 32, value >> 32);
    }
}

/// A register's new value when `lanes` of it are written.
pub const fn merge(old: u32, value: u32, lanes: u32) -> u32 {
    old & !lanes | value & lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Plain([u32; 8]);

    impl Registers for Plain {
        fn read(&mut self, offset: u64) -> u32 {
            self.0[offset as usize / 4]
        }

        fn write(&mut self, offset: u64, value: u32, lanes: u32) {
            assert_eq!(value & !lanes, 0);
            self.0[offset as usize / 4] = merge(self.0[offset as usize / 4], value, lanes);
        }
    }

    #[test]
    fn every_width_at_every_offset_behaves_like_memory() {
        for width in 1..=8u8 {
            for offset in 0..16u64 {
                let mut device = Plain([0xeeee_eeee; 8]);
                let value = 0x1122_3344_5566_7788u64;
                write(&mut device, offset, width, value);
                let mut bytes = [0xee; 32];
                let at = offset as usize;
                bytes[at..at + width as usize].copy_from_slice(&value.to_le_bytes()[..width as usize]);
                let seen: Vec<u8> = device.0.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!(seen, bytes, "{width} bytes at {offset}");
                assert_eq!(read(&mut device, offset, width), value & bits(width));
            }
        }
    }
}
