// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which pages were written: one bit a granule of the guest's memory. Large memories have larger granules.

/// Words of bits.
const WORDS: usize = 1024;

/// The log.
#[derive(Debug)]
pub struct Log {
    on: bool,
    /// Pages of a granule are 1 << this.
    shift: u8,
    bits: [u64; WORDS],
}

impl Log {
    /// Nothing is noted.
    pub const OFF: Log = Log { on: false, shift: 0, bits: [0; WORDS] };

    /// Whether writes are noted.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Pages of a granule.
    pub const fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// Begins, for so many pages: nothing has been written.
    pub fn start(&mut self, pages: u64) {
        let granules = WORDS as u64 * 64;
        self.shift = pages.div_ceil(granules).next_power_of_two().trailing_zeros() as u8;
        self.bits = [0; WORDS];
        self.on = true;
    }

    /// Ends.
    pub fn stop(&mut self) {
        self.on = false;
    }

    const fn place(&self, page: u64) -> (usize, u64) {
        let granule = page >> self.shift;
        (granule as usize / 64 % WORDS, 1 << (granule % 64))
    }

    /// Whether a page (counted from the first of memory) may be written without being noted.
    pub const fn is_noted(&self, page: u64) -> bool {
        let (word, bit) = self.place(page);
        !self.on || self.bits[word] & bit != 0
    }

    /// Notes a page. Back: its granule's first page and its pages.
    pub fn note(&mut self, page: u64) -> (u64, u64) {
        let (word, bit) = self.place(page);
        self.bits[word] |= bit;
        (page >> self.shift << self.shift, self.granule())
    }

    /// Takes back what [`Log::note`] noted.
    pub fn forget(&mut self, page: u64) {
        let (word, bit) = self.place(page);
        self.bits[word] &= !bit;
    }

    /// Takes the bits of 64 granules from a multiple of 64 on; none when there are no such granules.
    pub fn take(&mut self, granule: u64) -> Option<u64> {
        let word = usize::try_from(granule / 64).ok().filter(|word| granule.is_multiple_of(64) && *word < WORDS)?;
        Some(core::mem::take(&mut self.bits[word]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_a_bit_and_large_memories_larger_granules() {
        let mut log = Log::OFF;
        assert!(log.is_noted(7), "nothing is noted while it is off");
        for (pages, granule) in [(1, 1), (65536, 1), (65537, 2), (1 << 27, 2048)] {
            log.start(pages);
            assert_eq!(log.granule(), granule);
            assert!(!log.is_noted(pages - 1));
            let (first, count) = log.note(pages - 1);
            assert!(first < pages && pages <= first + count);
            assert!(log.is_noted(pages - 1));
            let taken = (0..WORDS as u64).filter(|word| log.take(word * 64) != Some(0)).count();
            assert_eq!(taken, 1);
            assert!(!log.is_noted(pages - 1));
        }
        assert_eq!((log.take(1), log.take(65536), log.take(u64::MAX)), (None, None, None));
    }
}
