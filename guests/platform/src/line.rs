// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line of text made in full before any of it is written, so that the CPUs of a guest do not mix their words.

use core::fmt;

/// Longest line; what is beyond is cut off.
pub const LINE_BYTES: usize = 240;

/// A line under construction.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    bytes: [u8; LINE_BYTES],
    used: usize,
}

impl Line {
    /// Nothing written yet.
    pub const fn new() -> Line {
        Line { bytes: [0; LINE_BYTES], used: 0 }
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used.min(LINE_BYTES)]
    }
}

impl Default for Line {
    fn default() -> Line {
        Line::new()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn a_line_that_is_too_long_is_cut_off() {
        let mut line = Line::new();
        for _ in 0..100 {
            assert!(write!(line, "abc").is_ok());
        }
        assert_eq!(line.bytes().len(), LINE_BYTES);
        assert!(line.bytes().starts_with(b"abcabc"));
    }
}
