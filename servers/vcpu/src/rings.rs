// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server's outside on the board: rings to console and root, the image's payload, and pages of functions.

use crate::boot::Payload;
use crate::pl011::{Sent, Wire};
use crate::server::Outside;
use trellis_idl::wire::ToRoot;
use trellis_runtime::memory::Registers;
use trellis_runtime::ring::Memory;
use trellis_runtime::{Consumer, Producer, Shared, System};

/// Three rings, the payload, pages. `M` is a ring page on the board, `P` a device's.
pub struct Rings<M, P> {
    /// To the console: what the guest's serial port sends. Used under that port's lock only.
    output: M,
    /// From the console, likewise.
    input: M,
    /// To root, by whichever thread has something to say.
    reports: Shared<M>,
    /// Finds a part of the payload.
    payload: fn(u64, u64) -> Option<&'static [u8]>,
    /// The page of a function with a place.
    page: fn(usize) -> P,
}

impl<M: Memory + Copy, P> Rings<M, P> {
    /// The rings in these pages.
    pub const fn new(output: M, input: M, reports: M, payload: fn(u64, u64) -> Option<&'static [u8]>, page: fn(usize) -> P) -> Rings<M, P> {
        Rings { output, input, reports: Shared::new(reports), payload, page }
    }
}

impl<M, P> core::fmt::Debug for Rings<M, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Rings")
    }
}

impl<M: Memory + Copy, P> Wire for Rings<M, P> {
    fn send(&self, byte: u8) -> Sent {
        if !Producer::new(self.output).write_all(&[byte]) {
            return Sent::Full;
        }
        // The reader sleeps once it has emptied the ring, so the first byte after that wakes it. Looked at after the
        // byte is in, with a fence between: reader and writer must not both miss the other's index. A line's end wakes
        // it too, which costs little and does not rest on the reader's own fence.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        let waiting = Consumer::new(self.output).available();
        if waiting <= 1 || byte == b'\n' { Sent::Wake } else { Sent::Quietly }
    }

    fn has_room(&self) -> bool {
        Producer::new(self.output).space() > 0
    }

    #[inline(always)]
    fn has_input(&self) -> bool {
        // No more than a hint: indices that mean nothing look like input here, and `receive` finds none.
        self.input.head() != self.input.tail()
    }

    fn receive(&self) -> Option<u8> {
        let mut byte = [0];
        (Consumer::new(self.input).read(&mut byte) == 1).then_some(byte[0])
    }
}

impl<M, P> Payload for Rings<M, P> {
    fn part(&self, offset: u64, bytes: u64) -> Option<&[u8]> {
        (self.payload)(offset, bytes)
    }
}

impl<M: Memory + Copy + Send + Sync, P: Registers> Outside for Rings<M, P> {
    type Page = P;

    fn report(&self, system: &impl System, report: &ToRoot) -> bool {
        let page = self.reports.lock(system);
        Producer::new(*page).send(report)
    }

    fn page(&self, place: usize) -> P {
        (self.page)(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use trellis_runtime::RingPage;
    use trellis_runtime::memory::Absent;

    #[test]
    fn the_first_byte_after_silence_and_each_line_wake_the_reader() {
        let pages = [const { RingPage::new() }; 3];
        let rings = Rings::new(&pages[0], &pages[1], &pages[2], |_, _| None, |_| Absent);
        assert_eq!(rings.send(b'a'), Sent::Wake);
        assert_eq!(rings.send(b'b'), Sent::Quietly);
        assert_eq!(rings.send(b'\n'), Sent::Wake);
        Consumer::new(&pages[0]).clear();
        assert_eq!(rings.send(b'c'), Sent::Wake);
        while rings.has_room() {
            rings.send(b'x');
        }
        assert_eq!(rings.send(b'y'), Sent::Full);
        assert_eq!(rings.receive(), None);
        Producer::new(&pages[1]).write_all(b"q");
        assert_eq!(rings.receive(), Some(b'q'));
        assert!(rings.report(&Fake::new(1), &ToRoot::Ready));
        assert_eq!(Consumer::new(&pages[2]).receive::<ToRoot>(), Some(Ok(ToRoot::Ready)));
    }
}
