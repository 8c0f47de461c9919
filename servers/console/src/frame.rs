// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on the serial port, as [`trellis_idl::wire`] defines them: encoding ours, decoding the host's.

use crc::{CRC_16_IBM_3740, Crc};
use trellis_idl::wire::{FrameKind, MAX_PAYLOAD};

const CHECK: Crc<u16> = Crc::<u16>::new(&CRC_16_IBM_3740);
/// Kind, channel and CRC around the payload.
const AROUND: usize = 4;
const MAX_PLAIN: usize = MAX_PAYLOAD + AROUND;
/// Bytes of the longest frame as it travels, the zero byte included.
pub const MAX_FRAME: usize = cobs::max_encoding_length(MAX_PLAIN) + 1;

/// A frame on its way out.
#[derive(Debug)]
pub struct Outgoing {
    bytes: [u8; MAX_FRAME],
    used: usize,
    sent: usize,
}

impl Outgoing {
    /// Nothing.
    pub const fn new() -> Outgoing {
        Outgoing { bytes: [0; MAX_FRAME], used: 0, sent: 0 }
    }

    /// Puts a payload into a frame; what was here before is forgotten. What is longer than [`MAX_PAYLOAD`] is cut off.
    pub fn fill(&mut self, kind: FrameKind, channel: u8, payload: &[u8]) {
        let payload = payload.get(..MAX_PAYLOAD).unwrap_or(payload);
        let mut plain = [0; MAX_PLAIN];
        let body = payload.len() + 2;
        plain[0] = kind as u8;
        plain[1] = channel;
        plain[2..body].copy_from_slice(payload);
        let check = CHECK.checksum(&plain[..body]).to_le_bytes();
        plain[body..body + 2].copy_from_slice(&check);
        self.used = cobs::encode(&plain[..body + 2], &mut self.bytes);
        self.bytes[self.used] = 0;
        self.used += 1;
        self.sent = 0;
    }

    /// What has not been sent yet.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..self.used).unwrap_or_default()
    }

    /// So many bytes of the rest went out.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
    }
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new()
    }
}

/// A frame that came from the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incoming<'a> {
    /// What it carries.
    pub kind: FrameKind,
    /// For whom.
    pub channel: u8,
    /// The bytes.
    pub payload: &'a [u8],
}

/// Cuts the host's bytes into frames. Bytes of no valid frame are dropped; it never holds more than one frame.
#[derive(Debug)]
pub struct Decoder {
    bytes: [u8; MAX_FRAME],
    used: usize,
    plain: [u8; MAX_FRAME],
}

impl Decoder {
    /// At the start of a stream.
    pub const fn new() -> Decoder {
        Decoder { bytes: [0; MAX_FRAME], used: 0, plain: [0; MAX_FRAME] }
    }

    /// Takes a byte; a frame when it was the last one of one.
    pub fn push(&mut self, byte: u8) -> Option<Incoming<'_>> {
        if byte != 0 {
            // A frame that is too long: keeps counting as such until its zero byte.
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
            }
            self.used = (self.used + 1).min(MAX_FRAME + 1);
            return None;
        }
        let used = core::mem::take(&mut self.used);
        let encoded = self.bytes.get(..used)?;
        let length = cobs::decode(encoded, &mut self.plain).ok()?.frame_size();
        let (body, check) = self.plain.get(..length)?.split_last_chunk::<2>()?;
        let (&[kind, channel], payload) = body.split_first_chunk::<2>()?;
        let is_whole = CHECK.checksum(body) == u16::from_le_bytes(*check) && payload.len() <= MAX_PAYLOAD;
        let kind = FrameKind::from_number(kind)?;
        is_whole.then_some(Incoming { kind, channel, payload })
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Vec<(FrameKind, u8, Vec<u8>)> {
        let mut decoder = Decoder::new();
        bytes
            .iter()
            .filter_map(|byte| decoder.push(*byte).map(|f| (f.kind, f.channel, f.payload.to_vec())))
            .collect()
    }

    #[test]
    fn a_frame_keeps_its_bytes() {
        let mut frame = Outgoing::new();
        frame.fill(FrameKind::Guest, 1, b"hi");
        // Kind, channel, "hi", CRC-16/IBM-3740 little-endian, COBS.
        let check = CHECK.checksum(&[3, 1, b'h', b'i']).to_le_bytes();
        assert_eq!(frame.rest(), [7, 3, 1, b'h', b'i', check[0], check[1], 0]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_dropped_and_the_next_one_read() {
        let mut bytes = vec![5; 3 * MAX_FRAME];
        bytes.push(0);
        let mut frame = Outgoing::new();
        frame.fill(FrameKind::Guest, 2, b"x");
        bytes.extend_from_slice(frame.rest());
        assert_eq!(decode(&bytes), [(FrameKind::Guest, 2, b"x".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_received(
            frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD)), 1..6),
        ) {
            let mut stream = Vec::new();
            let mut frame = Outgoing::new();
            for (channel, payload) in &frames {
                frame.fill(FrameKind::Guest, *channel, payload);
                stream.extend_from_slice(frame.rest());
            }
            let expected: Vec<_> = frames.into_iter().map(|(channel, payload)| (FrameKind::Guest, channel, payload)).collect();
            prop_assert_eq!(decode(&stream), expected);
        }

        #[test]
        fn no_stream_breaks_the_decoder(bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..3000)) {
            decode(&bytes);
        }

        #[test]
        fn a_changed_bit_is_noticed(payload in proptest::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, bit in 0u8..8) {
            let mut frame = Outgoing::new();
            frame.fill(FrameKind::Guest, 0, &payload);
            let mut bytes = frame.rest().to_vec();
            let at = at.index(bytes.len() - 1);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).iter().all(|(_, _, got)| *got != payload));
        }
    }
}
