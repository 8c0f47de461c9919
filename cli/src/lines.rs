// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes of one source as lines `NAME| text`, whole lines only, so that sources never mix within a line.

use std::io::{self, Write};

/// A guest that never ends a line still shows: longer lines are broken here.
const LONGEST: usize = 4096;

/// What a source has written since its last line end.
#[derive(Debug)]
pub struct Lines {
    label: String,
    line: Vec<u8>,
}

impl Lines {
    /// For the source with this name.
    pub fn of(label: impl Into<String>) -> Lines {
        Lines { label: label.into(), line: Vec::new() }
    }

    /// Takes bytes and writes every line they complete.
    pub fn push(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        for &byte in bytes {
            match byte {
                b'\n' => self.write(out)?,
                b'\r' => {}
                _ => self.line.push(byte),
            }
            if self.line.len() >= LONGEST {
                self.write(out)?;
            }
        }
        Ok(())
    }

    /// Writes what is left of an unended line.
    pub fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.line.is_empty() { Ok(()) } else { self.write(out) }
    }

    fn write(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let text = harmless(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        writeln!(out, "{}| {text}", self.label)
    }
}

/// The text with control characters made visible: a guest must not drive the terminal of who watches it.
fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => safe.push('\t'),
            other if other.is_control() => safe.extend(other.escape_default()),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(chunks: &[&[u8]]) -> String {
        let mut out = Vec::new();
        let mut lines = Lines::of("web");
        for chunk in chunks {
            lines.push(chunk, &mut out).expect("writing to memory");
        }
        lines.finish(&mut out).expect("writing to memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_are_whole_however_the_bytes_come() {
        assert_eq!(shown(&[b"he", b"llo\r", b"\nwor", b"ld"]), "web| hello\nweb| world\n");
    }

    #[test]
    fn empty_lines_stay_and_the_end_adds_none() {
        assert_eq!(shown(&[b"\n\n"]), "web| \nweb| \n");
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(shown(&[b"\x1b[2Jx\ty\n"]), "web| \\u{1b}[2Jx\ty\n");
    }

    #[test]
    fn a_flood_without_line_ends_is_broken() {
        assert_eq!(shown(&[&[b'x'; 2 * LONGEST + 1]]).lines().count(), 3);
    }
}
