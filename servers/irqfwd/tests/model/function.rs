// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function's configuration page.

/// A function with one range of registers and the capability of messages.
#[derive(Clone, Debug)]
pub struct Function {
    pub identity: u32,
    pub header: u32,
    /// Bytes of its registers, and of others that it should not have.
    pub bytes: u64,
    pub second: u32,
    /// Messages that it can write.
    pub most: u32,
    /// Where the capability is; 0 = it has none.
    pub capability: u32,
    /// Its capabilities are a ring without that of messages.
    pub is_ring: bool,
    /// It may be taken from its place.
    pub may_move: bool,
    wide: bool,
    command: u32,
    bars: [u32; 6],
    control: u32,
    address: u64,
    data: u32,
}

const AT: u32 = 0x50;

impl Function {
    pub fn new(bytes: u64, wide: bool, most: u32) -> Function {
        Function {
            identity: 0x11e8_1234, header: 0, bytes, second: 0, most, capability: AT, is_ring: false, may_move: true, wide, command: 0,
            bars: [0; 6], control: 0, address: 0, data: 0,
        }
    }

    /// Where its registers are.
    pub fn base(&self) -> u64 {
        let high = if self.wide { u64::from(self.bars[1]) << 32 } else { 0 };
        u64::from(self.bars[0]) & !15 | high
    }

    /// It answers at its place.
    pub fn is_on(&self) -> bool {
        self.command & 2 != 0
    }

    /// It makes accesses of its own.
    pub fn is_master(&self) -> bool {
        self.command & 4 != 0
    }

    /// Where it writes messages to, the first one's data, and how many it writes.
    pub fn writes(&self) -> Option<(u64, u32, u32)> {
        (self.control & 1 << 16 != 0).then_some((self.address, self.data, 1 << (self.control >> 20 & 7)))
    }

    pub fn read(&self, offset: usize) -> u32 {
        let kind = if self.wide { 4 } else { 0 };
        match offset {
            0x00 => self.identity,
            0x04 => self.command | if self.capability != 0 { 1 << 20 } else { 0 },
            0x0c => self.header,
            0x10 => self.bars[0] | if self.bytes != 0 { kind } else { 0 },
            0x14..0x28 => self.bars[(offset - 0x10) / 4],
            0x34 => if self.capability == 0 { 0 } else { 0x40 },
            // Another capability comes first.
            0x40 => 1 | if self.is_ring { 0x40 } else { self.capability } << 8,
            0x50 => 5 | self.most.trailing_zeros() << 17 | if self.wide { 1 << 23 } else { 0 } | self.control,
            0x54 => self.address as u32,
            0x58 if self.wide => (self.address >> 32) as u32,
            0x58 | 0x5c => self.data,
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: usize, value: u32) {
        match offset {
            0x04 => {
                assert!(self.may_move || value & 2 != 0, "its guest uses it");
                self.command = value & 0x407;
            }
            0x10..0x28 => self.place((offset - 0x10) / 4, value),
            0x50 => self.control = value & (1 << 16 | 7 << 20),
            0x54 => self.address = self.address & !0xffff_ffff | u64::from(value),
            0x58 if self.wide => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            0x58 | 0x5c => self.data = value,
            _ => panic!("nobody writes {offset:#x}"),
        }
    }

    /// Only bits that choose a place can be written.
    fn place(&mut self, index: usize, value: u32) {
        assert!(!self.is_on() && self.may_move, "it would answer elsewhere for a moment");
        let size = self.bytes.wrapping_neg();
        self.bars[index] = match index {
            0 if self.bytes != 0 => value & size as u32 & !15,
            1 if self.wide => value & (size >> 32) as u32,
            2 if self.second != 0 => value & self.second.wrapping_neg(),
            _ => 0,
        };
    }
}
