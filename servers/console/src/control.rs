// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host asks, out of the bytes of a frame: decoded here, where nobody holds authority, and decided by root.

use trellis_idl::control::{Ask, FromHost, Head, VERSION};

/// What root learns of a frame; nothing of one that is not even a head.
pub fn decode(payload: &[u8]) -> Option<FromHost> {
    let (Head { version, number }, rest) = postcard::take_from_bytes(payload).ok()?;
    if version != VERSION {
        return Some(FromHost::Foreign(number));
    }
    Some(match postcard::take_from_bytes::<Ask>(rest) {
        Ok((ask, [])) => FromHost::Asked(number, ask),
        _ => FromHost::Meaningless(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trellis_idl::control::{Name, Offer, Piece, Proof, UPLOAD_PIECE, Watch, WatchWhat};
    use trellis_idl::plan::{Rule, RulePlan, RuleVerdict};

    fn bytes(version: u16, number: u32, ask: &Ask) -> Vec<u8> {
        let mut buffer = [0; 512];
        postcard::to_slice(&(Head { version, number }, ask), &mut buffer).expect("it fits").to_vec()
    }

    fn any_ask() -> impl Strategy<Value = Ask> {
        let name = "[a-z0-9-]{0,32}".prop_map(|name| Name::try_from(name.as_str()).expect("at most 32 bytes"));
        prop_oneof![
            Just(Ask::Status),
            name.clone().prop_map(Ask::Pause),
            name.clone().prop_map(Ask::Resume),
            name.clone().prop_map(Ask::Reboot),
            name.clone().prop_map(Ask::Views),
            name.clone().prop_map(Ask::Kill),
            name.clone().prop_map(Ask::Swap),
            any::<u64>().prop_map(Ask::Events),
            (name.clone(), name.clone(), any::<u16>(), any::<[u64; 2]>()).prop_map(|(guest, monitor, number, [first, pages])| {
                let rule = RulePlan { guest: 0, first, pages, access: number as u8, verdict: RuleVerdict::Report, log: number > 99 };
                let all = [WatchWhat::List, WatchWhat::Remove(number), WatchWhat::Add(Rule::Pages(rule))];
                Ask::Watch(Watch { guest, monitor, what: all[usize::from(number) % 3] })
            }),
            (name, any::<[u32; 2]>(), any::<[[u8; 32]; 3]>(), any::<Option<u64>>(), any::<bool>()).prop_map(
                |(monitor, [bytes, _], [digest, first, second], counter, is_fresh)| {
                    let proof = counter.map(|counter| Proof { counter, signature: [first, second] });
                    Ask::Upload(Offer { monitor, bytes, digest, proof, is_fresh })
                },
            ),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..=UPLOAD_PIECE)).prop_map(|(offset, bytes)| {
                Ask::Piece(Piece { offset, bytes: bytes.into_iter().collect() })
            }),
            any::<u16>().prop_map(Ask::Load),
        ]
    }

    #[test]
    fn another_version_is_told_apart_from_what_means_nothing() {
        assert_eq!(decode(&bytes(VERSION + 1, 9, &Ask::Status)), Some(FromHost::Foreign(9)));
        assert_eq!(decode(&[2, 9, 0xff, 0xff]), Some(FromHost::Foreign(9)), "whatever follows");
        assert_eq!(decode(&[1, 9, 200]), Some(FromHost::Meaningless(9)), "no such question");
        assert_eq!(decode(&[1, 9]), Some(FromHost::Meaningless(9)), "nothing asked");
        assert_eq!(decode(&[1, 9, 0, 0]), Some(FromHost::Meaningless(9)), "more than a question");
        assert_eq!(decode(&[1, 9, 1, 33]), Some(FromHost::Meaningless(9)), "a name that is cut off");
        assert_eq!(decode(&[1, 9, 1, 2, 0xff, 0xfe]), Some(FromHost::Meaningless(9)), "a name that is no text");
        assert_eq!(decode(&[0x80]), None);
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn a_name_longer_than_any_means_nothing() {
        let mut long = vec![1, 9, 1, 40];
        long.extend([b'x'; 40]);
        assert_eq!(decode(&long), Some(FromHost::Meaningless(9)));
    }

    proptest! {
        #[test]
        fn what_is_asked_is_understood(number in any::<u32>(), ask in any_ask()) {
            prop_assert_eq!(decode(&bytes(VERSION, number, &ask)), Some(FromHost::Asked(number, ask)));
        }

        #[test]
        fn no_bytes_break_it_and_what_is_understood_is_small(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(heard) = decode(&bytes) {
                prop_assert!(postcard::to_slice(&heard, &mut [0; 300]).is_ok());
            }
        }
    }
}
