// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames on the board's serial port, in both directions; the format stands in `trellis_idl::wire`.
//!
//! The serial port also carries raw text: what the kernel prints before the console server runs and when it panics,
//! possibly in the middle of a frame. So the decoder looks for a frame at every place one may begin, and hands over
//! as text what can no longer belong to one as soon as that is certain.

use crc::{CRC_16_IBM_3740, Crc};
use trellis_idl::wire::{FrameKind, MAX_PAYLOAD};

const CHECK: Crc<u16> = Crc::<u16>::new(&CRC_16_IBM_3740);
/// Kind, channel and CRC around the payload.
const AROUND: usize = 4;
/// Bytes of the longest frame as it travels, without the zero byte.
const MAX_ENCODED: usize = cobs::max_encoding_length(MAX_PAYLOAD + AROUND);

/// What the serial port brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A frame whose CRC is right.
    Frame(Frame),
    /// Bytes outside every frame.
    Raw(Vec<u8>),
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// Which guest or server.
    pub channel: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Bytes as they travel, the ending zero included. The payload must not be longer than [`MAX_PAYLOAD`]; what is
    /// longer is cut off, since the board would refuse the whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = vec![self.kind as u8, self.channel];
        plain.extend_from_slice(&self.payload[..self.payload.len().min(MAX_PAYLOAD)]);
        plain.extend_from_slice(&CHECK.checksum(&plain).to_le_bytes());
        let mut bytes = vec![0; cobs::max_encoding_length(plain.len())];
        let used = cobs::encode(&plain, &mut bytes);
        bytes.truncate(used);
        bytes.push(0);
        bytes
    }

    /// The frame in these bytes (without the zero byte), if they are exactly one.
    fn decode(bytes: &[u8]) -> Option<Frame> {
        if bytes.len() > MAX_ENCODED {
            return None;
        }
        let mut plain = [0; MAX_ENCODED];
        let used = cobs::decode(bytes, &mut plain).ok()?.frame_size();
        let (body, check) = plain[..used].split_last_chunk::<2>()?;
        let (&kind, rest) = body.split_first()?;
        let (&channel, payload) = rest.split_first()?;
        let kind = FrameKind::from_number(kind)?;
        let is_whole = CHECK.checksum(body) == u16::from_le_bytes(*check);
        is_whole.then(|| Frame { kind, channel, payload: payload.to_vec() })
    }
}

/// Cuts a stream of bytes into frames and text.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes since the last zero that may still belong to a frame.
    pending: Vec<u8>,
}

impl Decoder {
    /// Takes more bytes, however they were cut; appends what is certain now.
    pub fn push(&mut self, bytes: &[u8], items: &mut Vec<Item>) {
        for &byte in bytes {
            if byte == 0 {
                self.close(items);
                continue;
            }
            self.pending.push(byte);
            if self.pending.len() > MAX_ENCODED || !may_begin(&self.pending) {
                self.shed(items);
            }
        }
    }

    /// The stream has ended, or stands still for good: everything left is text.
    pub fn finish(&mut self, items: &mut Vec<Item>) {
        raw(&std::mem::take(&mut self.pending), items);
    }

    /// A zero byte: the frame, if there is one, ends here.
    fn close(&mut self, items: &mut Vec<Item>) {
        let bytes = std::mem::take(&mut self.pending);
        let found = (0..bytes.len())
            .filter(|&start| may_begin(&bytes[start..]))
            .find_map(|start| Frame::decode(&bytes[start..]).map(|frame| (start, frame)));
        match found {
            Some((start, frame)) => {
                raw(&bytes[..start], items);
                items.push(Item::Frame(frame));
            }
            None => raw(&bytes, items),
        }
    }

    /// No frame begins at the first pending byte: hands over everything before the next place where one may.
    fn shed(&mut self, items: &mut Vec<Item>) {
        let next = (1..self.pending.len()).find(|&start| may_begin(&self.pending[start..]));
        let rest = self.pending.split_off(next.unwrap_or(self.pending.len()));
        raw(&self.pending, items);
        self.pending = rest;
    }
}

/// Whether a frame may begin with these bytes: COBS puts one code byte before the kind, which is never zero.
fn may_begin(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [code] => *code >= 2,
        [code, kind, ..] => *code >= 2 && FrameKind::from_number(*kind).is_some(),
    }
}

/// Appends text, to the text before it where there is some.
fn raw(bytes: &[u8], items: &mut Vec<Item>) {
    if bytes.is_empty() {
        return;
    }
    match items.last_mut() {
        Some(Item::Raw(text)) => text.extend_from_slice(bytes),
        _ => items.push(Item::Raw(bytes.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Frame {
        Frame { kind: FrameKind::Guest, channel: 1, payload: payload.to_vec() }
    }

    fn decode(chunks: &[&[u8]]) -> Vec<Item> {
        let mut decoder = Decoder::default();
        let mut items = Vec::new();
        for chunk in chunks {
            decoder.push(chunk, &mut items);
        }
        decoder.finish(&mut items);
        items
    }

    #[test]
    fn the_bytes_on_the_wire_do_not_change() {
        assert_eq!(frame(b"hi").encode(), [7, 3, 1, b'h', b'i', 0x20, 0x57, 0]);
    }

    #[test]
    fn text_before_a_frame_does_not_spoil_it() {
        let bytes = [b"kernel: EL2\n".as_slice(), &frame(b"hello\n").encode()].concat();
        assert_eq!(decode(&[&bytes]), [Item::Raw(b"kernel: EL2\n".to_vec()), Item::Frame(frame(b"hello\n"))]);
    }

    #[test]
    fn text_inside_a_frame_shows_both_as_text() {
        let whole = frame(b"a long line that the kernel interrupts").encode();
        let bytes = [&whole[..10], b"panic: no\n"].concat();
        assert_eq!(decode(&[&bytes]), [Item::Raw(bytes.clone())]);
    }

    #[test]
    fn text_shows_before_anything_follows() {
        let mut decoder = Decoder::default();
        let mut items = Vec::new();
        decoder.push(b"panic: line 7\n", &mut items);
        assert_eq!(items, [Item::Raw(b"panic: line 7".to_vec())]);
    }

    #[test]
    fn a_damaged_frame_is_text_and_the_next_one_is_whole() {
        let mut bytes = frame(b"one").encode();
        bytes[4] ^= 0x20;
        let damaged = bytes[..bytes.len() - 1].to_vec();
        bytes.extend(frame(b"two").encode());
        assert_eq!(decode(&[&bytes]), [Item::Raw(damaged), Item::Frame(frame(b"two"))]);
    }

    #[test]
    fn an_endless_stream_without_a_zero_is_not_kept() {
        let mut decoder = Decoder::default();
        let mut items = Vec::new();
        decoder.push(&[2; 100_000], &mut items);
        assert!(decoder.pending.len() <= MAX_ENCODED);
    }

    fn any_item() -> impl Strategy<Value = Item> {
        let text = "[ -~\n]{1,80}".prop_map(|text| Item::Raw(text.into_bytes()));
        let parts = (1u8..=5, any::<u8>(), prop::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD));
        let frames = parts.prop_map(|(kind, channel, payload)| {
            let kind = FrameKind::from_number(kind).expect("1 to 5 are kinds");
            Item::Frame(Frame { kind, channel, payload })
        });
        prop_oneof![text, frames]
    }

    proptest! {
        #[test]
        fn frames_and_text_survive_any_cutting(items in prop::collection::vec(any_item(), 0..8), cut in 1usize..40) {
            let mut expected = Vec::new();
            let mut bytes = Vec::new();
            for item in items {
                match item {
                    Item::Raw(text) => { bytes.extend(&text); raw(&text, &mut expected) }
                    Item::Frame(frame) => { bytes.extend(frame.encode()); expected.push(Item::Frame(frame)) }
                }
            }
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(decode(&chunks), expected);
        }

        #[test]
        fn any_bytes_are_taken_and_none_is_lost_but_zeros(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut kept = 0;
            for item in decode(&[&bytes]) {
                kept += match item { Item::Raw(text) => text.len(), Item::Frame(frame) => frame.encode().len() - 1 };
            }
            prop_assert_eq!(kept, bytes.iter().filter(|byte| **byte != 0).count());
        }
    }
}
