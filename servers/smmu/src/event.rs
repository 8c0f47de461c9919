// SPDX-License-Identifier: MIT OR Apache-2.0
//! Records of the queue of events (SMMUv3 7.3): what the SMMU says of accesses that it stopped. Four words each.

/// Bytes of a record.
pub const BYTES: u64 = 32;

/// The access was a read (RnW), in the second word.
const READS: u64 = 1 << 35;

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which.
    pub number: u8,
    /// Whose access it was.
    pub stream: u32,
    /// Where to, as the device said it; 0 where the record says nothing of that.
    pub address: u64,
    /// It was a write.
    pub writes: bool,
}

impl Event {
    /// Of its words.
    pub const fn of([first, second, address, _]: [u64; 4]) -> Event {
        let number = first as u8;
        // Records of an access name its address; others say something else there.
        let is_access = matches!(number, 0x01 | 0x07 | 0x0b | 0x10..=0x13 | 0x20);
        Event {
            number,
            stream: (first >> 32) as u32,
            address: if is_access { address } else { 0 },
            writes: is_access && second & READS == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_who_did_what_where() {
        let write = Event::of([0x0000_0010_0000_0010, 0x0080_0000_0000, 0x4400_0000, 0]);
        assert_eq!(write, Event { number: 0x10, stream: 0x10, address: 0x4400_0000, writes: true });
        let read = Event::of([0x0000_ffff_0000_0013, 0x0088_0000_0000, 0x1_4400_0ff8, 0x1_4400_0000]);
        assert_eq!(read, Event { number: 0x13, stream: 0xffff, address: 0x1_4400_0ff8, writes: false });
        // C_BAD_STREAMID: nothing else is said.
        let other = Event::of([0x0000_0018_0000_0002, 0, 0x1234, 0]);
        assert_eq!(other, Event { number: 2, stream: 0x18, address: 0, writes: false });
    }
}
