// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control channel between a hostile host and root: what console makes of any bytes, and what root's answers read as.

use crate::plan::decoded;
use trellis_console::control::decode;
use trellis_console::frame::{Decoder, Outgoing};
use trellis_idl::control::{Answer, Ask, FromHost, Head, Name, Offer, Part, Piece, Proof, Refused, VERSION};
use trellis_idl::wire::FrameKind;

/// The first byte says whether the others are the host's or root's.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 3 {
        // The whole way from the wire.
        0 => {
            let mut decoder = Decoder::new();
            for byte in bytes {
                if let Some(frame) = decoder.push(*byte)
                    && frame.kind == FrameKind::Control
                {
                    heard(frame.payload);
                }
            }
        }
        1 => heard(bytes),
        _ => drop(decoded::<Answer>(bytes)),
    }
}

/// What is understood is small, and says again what was asked.
fn heard(payload: &[u8]) {
    let Some(heard) = decode(payload) else { return };
    let record = postcard::to_stdvec(&heard).expect("it encodes");
    assert!(record.len() <= 300);
    assert_eq!(postcard::from_bytes::<FromHost>(&record).as_ref(), Ok(&heard));
    let head = postcard::take_from_bytes::<Head>(payload).expect("it was understood").0;
    match heard {
        FromHost::Asked(number, ask) => {
            assert_eq!((head.number, head.version), (number, VERSION));
            let again = postcard::to_stdvec(&(head, &ask)).expect("it encodes");
            assert_eq!(decode(&again), Some(FromHost::Asked(number, ask)));
        }
        FromHost::Foreign(number) => assert!(head.number == number && head.version != VERSION),
        FromHost::Meaningless(number) => assert!(head.number == number && head.version == VERSION),
    }
}

fn upload(monitor: Name) -> Ask {
    let proof = Some(Proof { counter: 3, signature: [[4; 32], [5; 32]] });
    Ask::Upload(Offer { monitor, bytes: 700, digest: [6; 32], proof, is_fresh: false })
}

/// Each question, one in another version, and answers.
pub fn seeds() -> Vec<Vec<u8>> {
    let name = || Name::try_from("web").expect("a short name");
    let asks = [Ask::Status, Ask::Pause(name()), Ask::Resume(name()), Ask::Reboot(name()), Ask::Views(name()), Ask::Load(1000), Ask::Kill(name()), Ask::Swap(name()), Ask::Events(4), upload(name()), Ask::Piece(Piece { offset: 9, bytes: [1, 2, 3].into_iter().collect() })];
    let bytes = |version, ask: &Ask| postcard::to_stdvec(&(Head { version, number: 7 }, ask)).expect("it encodes");
    let framed = |ask: &Ask| {
        let mut frame = Outgoing::new();
        frame.fill(FrameKind::Control, 0, &bytes(VERSION, ask));
        frame.rest().to_vec()
    };
    let mut seeds: Vec<Vec<u8>> = asks.iter().map(|ask| [vec![1], bytes(VERSION, ask)].concat()).collect();
    seeds.push([vec![1], bytes(VERSION + 1, &Ask::Status)].concat());
    seeds.push([vec![0], asks.iter().flat_map(framed).collect()].concat());
    let part = |part| [vec![2], postcard::to_stdvec(&Answer { head: Head { version: VERSION, number: 7 }, part }).expect("it encodes")].concat();
    seeds.extend([part(Part::Done), part(Part::Refused(Refused::Kernel(3)))]);
    seeds
}
