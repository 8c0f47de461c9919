// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tool's side of the serial port: whatever the board sends, frames and text come out and nothing is lost.

use std::io::sink;
use trellis_cli::frame::{Decoder, Frame, Item};
use trellis_cli::names::{GuestName, Names};
use trellis_cli::session::{Outputs, Session};
use trellis_idl::wire::{FrameKind, GuestEnd, Report};

/// The first byte says how the stream is cut into pieces.
pub fn run(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else { return };
    let cut = usize::from(*cut % 64) + 1;
    let items = decoded(bytes, cut);
    assert_eq!(items, decoded(bytes, bytes.len().max(1)), "pieces of {cut} bytes read otherwise than the whole");
    let kept: usize = items.iter().map(|item| match item {
        Item::Raw(text) => text.len(),
        Item::Frame(frame) => frame.encode().len() - 1,
    }).sum();
    assert_eq!(kept, bytes.iter().filter(|byte| **byte != 0).count(), "bytes were lost");
    session(bytes, cut);
}

fn decoded(bytes: &[u8], cut: usize) -> Vec<Item> {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for piece in bytes.chunks(cut) {
        decoder.push(piece, &mut items);
    }
    decoder.finish(&mut items);
    items
}

/// A whole run as the tool shows it.
fn session(bytes: &[u8], cut: usize) {
    let guest = GuestName { name: "a".into(), memory: 0x4000_0000..0x4020_0000, line: 1 };
    let manifest = "[guest.a]\nmemory = \"2M\"\n".into();
    let names = Names { guests: vec![guest], servers: vec!["console".into()], file: "m.toml".into(), manifest, ..Names::default() };
    let mut session = Session::new(names, (cut % 2 == 0).then_some(0));
    let mut outputs = Outputs { out: &mut sink(), log: &mut sink() };
    for piece in bytes.chunks(cut) {
        session.take(piece, &mut outputs).expect("a sink takes everything");
    }
    session.finish(&mut outputs).expect("a sink takes everything");
    let _ = session.status();
}

fn frame(kind: FrameKind, channel: u8, payload: &[u8]) -> Vec<u8> {
    Frame { kind, channel, payload: payload.to_vec() }.encode()
}

/// Text, each kind of frame, a cut one, and text within one.
pub fn seeds() -> Vec<Vec<u8>> {
    let ended = postcard::to_stdvec(&Report::GuestEnded { guest: 0, end: GuestEnd::Off }).expect("it encodes");
    let off = postcard::to_stdvec(&Report::Off { well: true }).expect("it encodes");
    let whole = [
        b"EL2\n".to_vec(),
        frame(FrameKind::KernelLog, 0, b"up\n"),
        frame(FrameKind::ServerLog, 255, b"starting\n"),
        frame(FrameKind::Guest, 0, b"hello\n"),
        frame(FrameKind::Report, 0, &ended),
        frame(FrameKind::Report, 0, &off),
    ]
    .concat();
    let cut = whole[..whole.len() - 3].to_vec();
    let mut torn = whole.clone();
    torn.splice(9..9, b"panic\n".iter().copied());
    [whole, cut, torn].into_iter().enumerate().map(|(i, bytes)| [vec![6 + i as u8], bytes].concat()).collect()
}
