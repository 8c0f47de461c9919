// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server's log: lines into a ring that the console reads. [`crate::log!`] is how.
//!
//! A line that finds the ring full is dropped and counted: a log never makes a server wait for the console. On a host
//! the lines go to the standard error.

use core::fmt::Write;

/// Most bytes of a line; the rest is cut off.
pub const MAX_LINE: usize = 240;

/// Writes a line to this server's log: `log!("mapped {count} pages")`.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => {
        $crate::log::write(::core::format_args!($($argument)*))
    };
}

/// A line in the making.
#[derive(Debug)]
struct LineText {
    bytes: [u8; MAX_LINE],
    used: usize,
}

impl LineText {
    /// The text, cut to size, with one line end.
    fn of(text: core::fmt::Arguments<'_>) -> LineText {
        let mut line = LineText { bytes: [0; MAX_LINE], used: 0 };
        // Writing here cannot fail: what does not fit is left out.
        let _ = line.write_fmt(text);
        if let Some(end) = line.bytes.get_mut(line.used) {
            *end = b'\n';
            line.used += 1;
        }
        line
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Write for LineText {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.used..MAX_LINE - 1).unwrap_or_default();
        let count = room.len().min(text.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.used += count;
        Ok(())
    }
}

/// Writes a line; use [`crate::log!`].
#[cfg(not(target_os = "none"))]
pub fn write(text: core::fmt::Arguments<'_>) {
    let line = LineText::of(text);
    std::eprint!("{}", std::string::String::from_utf8_lossy(line.bytes()));
}

#[cfg(target_os = "none")]
pub use board::{use_ring, write};

#[cfg(target_os = "none")]
mod board {
    use super::LineText;
    use crate::handle::Signal;
    use crate::ring::{Producer, page};
    use crate::shared::Shared;
    use crate::svc::Svc;
    use trellis_idl::layout::slot;

    /// Where lines go, and how many found no room.
    struct Log {
        ring: usize,
        console: u64,
        lost: u32,
    }

    static LOG: Shared<Log> = Shared::new(Log { ring: 0, console: slot::CONSOLE, lost: 0 });

    /// For root, whose log ring and console signal stand elsewhere.
    pub fn use_ring(ring: usize, console: u64) {
        let mut log = LOG.lock(&Svc);
        (log.ring, log.console) = (ring, console);
    }

    /// Writes a line; use [`crate::log!`].
    #[cold]
    pub fn write(text: core::fmt::Arguments<'_>) {
        let line = LineText::of(text);
        let console = {
            let mut log = LOG.lock(&Svc);
            let mut ring = Producer::new(page(log.ring));
            if log.lost > 0 && ring.write_all(LineText::of(format_args!("({} lines lost)", log.lost)).bytes()) {
                log.lost = 0;
            }
            if !ring.write_all(line.bytes()) {
                log.lost = log.lost.saturating_add(1);
            }
            log.console
        };
        // Before root has made the console there is nobody to wake.
        let _ = Signal::at(console).raise(&Svc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_cut_and_still_ends() {
        let long = "x".repeat(1000);
        let line = LineText::of(format_args!("{long}"));
        assert_eq!(line.bytes().len(), MAX_LINE);
        assert_eq!(line.bytes().last(), Some(&b'\n'));
        assert_eq!(LineText::of(format_args!("a{}", 1)).bytes(), b"a1\n");
    }
}
