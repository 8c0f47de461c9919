// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose bytes go out next: every channel in turn, a bounded piece each, so that one that floods starves nobody.

use core::sync::atomic::{Ordering, fence};
use trellis_idl::layout::ring;
use trellis_idl::wire::{FrameKind, MAX_PAYLOAD, ROOT_CHANNEL, SECOND_LOG};
use trellis_runtime::ring::MAX_RECORD;
use trellis_runtime::{Consumer, RingPage};

/// Most bytes of a channel in one turn.
pub const TURN: usize = 256;
/// Frames after which a report goes out though others have bytes left.
const PATIENCE: u32 = 64;

const _: () = assert!(TURN <= MAX_PAYLOAD && MAX_RECORD <= MAX_PAYLOAD);

/// A piece that shall go out; its bytes are in the buffer it was put into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// What it is.
    pub kind: FrameKind,
    /// Whose.
    pub channel: u8,
    /// Bytes.
    pub bytes: usize,
}

/// Rings that the console reads.
#[derive(Debug)]
pub struct Channels<P> {
    page: P,
    servers: usize,
    guests: usize,
    /// So many servers, the last ones, have a second log.
    monitors: usize,
    /// The channel whose turn it is: servers, then guests, then answers to the host, then second logs.
    turn: usize,
    /// Frames since the last report, while one may wait.
    since_report: u32,
}

impl<P: Fn(usize) -> &'static RingPage> Channels<P> {
    /// Channels of so many servers, monitors among them, and guests; `page` gives ring page `i`.
    pub fn new(page: P, [servers, monitors]: [usize; 2], guests: usize) -> Channels<P> {
        Channels { page, servers, guests, monitors: monitors.min(servers), turn: 0, since_report: 0 }
    }

    /// Guests that there are.
    pub fn guests(&self) -> usize {
        self.guests
    }

    /// Ring page `i`.
    pub fn page(&self, index: usize) -> &'static RingPage {
        (self.page)(index)
    }

    /// Takes the next piece. Reports come after what was written before them, unless that goes on for too long.
    pub fn next(&mut self, bytes: &mut [u8; MAX_RECORD]) -> Option<Piece> {
        // A writer wakes us when it finds that we had emptied its ring. Our index before, its index after this fence: of
        // the two of us, one sees the other's last step.
        fence(Ordering::SeqCst);
        if self.since_report >= PATIENCE {
            self.since_report = 0;
            if let Some(piece) = self.report(bytes) {
                return Some(piece);
            }
        }
        let count = self.servers + self.guests + 1 + self.monitors;
        for _ in 0..count {
            let channel = self.turn;
            self.turn = (self.turn + 1) % count;
            if let Some(piece) = self.take(channel, bytes) {
                self.since_report += 1;
                return Some(piece);
            }
        }
        self.since_report = 0;
        self.report(bytes)
    }

    /// A piece of this channel, if it has any.
    fn take(&self, channel: usize, bytes: &mut [u8; MAX_RECORD]) -> Option<Piece> {
        let (kind, name, page) = match channel.checked_sub(self.servers) {
            Some(guest) if guest == self.guests => return self.record(ring::CONSOLE_ANSWER, FrameKind::Control, bytes),
            Some(behind) if behind > self.guests => {
                let monitor = behind - self.guests - 1;
                let server = self.servers - self.monitors + monitor;
                (FrameKind::ServerLog, server as u8 + SECOND_LOG, ring::console_second(monitor))
            }
            Some(guest) => (FrameKind::Guest, guest as u8, ring::console_out(guest)),
            // The console's own place is root's.
            None if channel == 0 => (FrameKind::ServerLog, ROOT_CHANNEL, ring::console_log(0)),
            None => (FrameKind::ServerLog, channel as u8, ring::console_log(channel)),
        };
        let taken = Consumer::new(self.page(page)).read(bytes.get_mut(..TURN)?);
        (taken > 0).then_some(Piece { kind, channel: name, bytes: taken })
    }

    /// The next report, if one waits.
    fn report(&self, bytes: &mut [u8; MAX_RECORD]) -> Option<Piece> {
        self.record(ring::CONSOLE_REPORT, FrameKind::Report, bytes)
    }

    /// The next record of a ring from root, as it stands there.
    fn record(&self, page: usize, kind: FrameKind, bytes: &mut [u8; MAX_RECORD]) -> Option<Piece> {
        let taken = Consumer::new(self.page(page)).read_record(bytes)?.len();
        Some(Piece { kind, channel: 0, bytes: taken })
    }
}
