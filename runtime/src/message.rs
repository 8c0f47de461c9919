// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages of any serde type, up to a page: short ones ride in the words, longer ones lie in the message buffer.
//!
//! `m0` is the operation (or, in an answer, 0 or 1 + a refusal), `m1` the body's bytes in postcard, `m2`–`m9` the body if it
//! has at most [`INLINE`] bytes. A longer one travels in the buffer, and the kernel says how much of that came: a message
//! that claims another length is refused, so that nobody reads what somebody else left there. A body is decoded once,
//! into a value of its own.

use crate::handle::Portal;
use crate::system::{Reply, System};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trellis_idl::interface::{ATTACH, Interface};
use trellis_idl::kernel::{PAGE, Refusal, WORDS};
use trellis_idl::wire::{from_answer, to_answer};

/// Words before the body.
const HEAD: usize = 2;
/// Most bytes of a body that rides in the words.
pub const INLINE: usize = (WORDS - HEAD) * 8;

/// Words, and how many bytes of the buffer go with them.
pub type Letter = ([u64; WORDS], usize);

/// Puts a value under a first word. Refused `OutOfRange`: it needs more than a page.
pub fn encode<T: Serialize>(system: &impl System, first: u64, value: &T) -> Result<Letter, Refusal> {
    system.with_buffer(|buffer| {
        let body = postcard::to_slice(value, buffer).map_err(|_| Refusal::OutOfRange)?;
        let mut words = [0; WORDS];
        (words[0], words[1]) = (first, body.len() as u64);
        if body.len() > INLINE {
            return Ok((words, body.len()));
        }
        for (word, bytes) in words.iter_mut().skip(HEAD).zip(body.chunks(8)) {
            let mut whole = [0; 8];
            for (to, from) in whole.iter_mut().zip(bytes) {
                *to = *from;
            }
            *word = u64::from_le_bytes(whole);
        }
        Ok((words, 0))
    })
}

/// Takes the value out again; `bytes` of the buffer came along. Refused `BadArgument`: the lengths contradict each other,
/// or it is no such value.
pub fn decode<T: DeserializeOwned>(system: &impl System, words: &[u64; WORDS], bytes: usize) -> Result<T, Refusal> {
    let length = usize::try_from(words[1]).map_err(|_| Refusal::BadArgument)?;
    if length <= INLINE {
        let mut body = [0; INLINE];
        for (to, word) in body.chunks_mut(8).zip(&words[HEAD..]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        return value(body.get(..length));
    }
    if length != bytes || length > PAGE as usize {
        return Err(Refusal::BadArgument);
    }
    system.with_buffer(|buffer| value(buffer.get(..length)))
}

/// Exactly one value, and nothing behind it.
fn value<T: DeserializeOwned>(body: Option<&[u8]>) -> Result<T, Refusal> {
    match postcard::take_from_bytes(body.unwrap_or_default()) {
        Ok((value, [])) => Ok(value),
        _ => Err(Refusal::BadArgument),
    }
}

impl Portal {
    /// Calls with an operation and the words behind it. Back: the answer, which is no refusal.
    pub fn order<const N: usize>(
        self, system: &impl System, operation: u64, given: [u64; N],
    ) -> Result<[u64; WORDS], Refusal> {
        const { assert!(N < WORDS) };
        let mut words = [0; WORDS];
        words[0] = operation;
        words[1..=N].copy_from_slice(&given);
        let answer = self.call(system, words)?;
        from_answer(answer[0]).map(|()| answer)
    }

    /// Calls with an operation and a value, and takes a value out of the answer.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(
        self, system: &impl System, operation: u64, question: &Q,
    ) -> Result<A, Refusal> {
        let (words, bytes) = encode(system, operation, question)?;
        // However short the question is, the answer may be long.
        let (answer, bytes) = system.call_with_buffer(self.slot(), words, bytes)?;
        from_answer(answer[0])?;
        decode(system, &answer, bytes)
    }
}

/// Asks whether the server means the same by this interface. Refused `Unsupported`: it does not.
pub fn attach(system: &impl System, portal: Portal, interface: Interface) -> Result<(), Refusal> {
    let answer = portal.call(system, interface.to_words(ATTACH))?;
    from_answer(answer[0])?;
    if interface.is_in(&answer) { Ok(()) } else { Err(Refusal::Unsupported) }
}

/// What a server with this interface says to [`attach`].
pub fn attached(interface: Interface, question: &[u64; WORDS]) -> Reply {
    let agree = if interface.is_in(question) { Ok(()) } else { Err(Refusal::Unsupported) };
    Reply::Call(interface.to_words(to_answer(agree)))
}

/// What a server says to [`Portal::ask`].
pub fn answer<A: Serialize>(system: &impl System, result: Result<A, Refusal>) -> Reply {
    let letter = result.and_then(|value| encode(system, to_answer(Ok(())), &value));
    match letter {
        Ok((words, 0)) => Reply::Call(words),
        Ok((words, bytes)) => Reply::Letter(words, bytes),
        Err(refusal) => {
            let mut words = [0; WORDS];
            words[0] = to_answer(Err(refusal));
            Reply::Call(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapless::Vec;
    use std::cell::RefCell;
    use trellis_idl::kernel::Op;

    type Numbers = Vec<u32, 4096>;

    /// One thread with a buffer; a call comes back as it went, or as a list that is as long as it says.
    struct Mirror(RefCell<[u8; 4096]>);

    /// The operation that is answered by a list.
    const LIST: u64 = 9;

    impl System for Mirror {
        fn invoke(&self, _: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
            Err(Refusal::NoOperation)
        }
        fn call(&self, _: u64, mut words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
            words[0] = 0;
            Ok(words)
        }
        fn call_with_buffer(&self, _: u64, mut words: [u64; WORDS], bytes: usize) -> Result<Letter, Refusal> {
            if words[0] == LIST {
                let count: u32 = decode(self, &words, bytes)?;
                return encode(self, 0, &body(count as usize));
            }
            words[0] = 0;
            Ok((words, bytes))
        }
        fn wait(&self, _: u64, _: u64) -> u64 {
            0
        }
        fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
            f(&mut self.0.borrow_mut())
        }
    }

    fn mirror() -> Mirror {
        Mirror(RefCell::new([0; 4096]))
    }

    /// A list whose body has this many bytes: two for its length, one each for its numbers.
    fn body(bytes: usize) -> Numbers {
        let head = if bytes > 128 { 2 } else { 1 };
        core::iter::repeat_n(7, bytes - head).collect()
    }

    #[test]
    fn a_value_comes_back_whatever_its_length() {
        for bytes in [1, 2, 8, 9, INLINE - 1, INLINE, INLINE + 1, 1000, 4095, 4096] {
            let system = mirror();
            let sent = body(bytes);
            let (words, buffer) = encode(&system, 5, &sent).unwrap();
            assert_eq!((words[0], words[1] as usize, buffer), (5, bytes, if bytes > INLINE { bytes } else { 0 }));
            assert_eq!(Portal::at(1).ask::<_, Numbers>(&system, 5, &sent), Ok(sent), "{bytes}");
        }
    }

    #[test]
    fn a_short_question_may_have_a_long_answer() {
        for bytes in [1, INLINE, INLINE + 1, 1000, 4096] {
            assert_eq!(Portal::at(1).ask::<_, Numbers>(&mirror(), LIST, &(bytes as u32)), Ok(body(bytes)), "{bytes}");
        }
    }

    #[test]
    fn more_than_a_page_is_refused() {
        assert_eq!(encode(&mirror(), 0, &body(4097)), Err(Refusal::OutOfRange));
        assert!(matches!(answer(&mirror(), Ok(body(4097))), Reply::Call([word, ..]) if word == to_answer(Err(Refusal::OutOfRange))));
    }

    #[test]
    fn a_claimed_length_that_did_not_come_is_refused() {
        let system = mirror();
        // What another client left in the buffer.
        let (words, bytes) = encode(&system, 0, &body(500)).unwrap();
        for came in [0, 1, bytes - 1, bytes + 1, 4096] {
            assert_eq!(decode::<Numbers>(&system, &words, came), Err(Refusal::BadArgument), "{came}");
        }
        for claimed in [4097, 1 << 40, u64::MAX] {
            let words = [0, claimed, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(decode::<Numbers>(&system, &words, claimed as usize), Err(Refusal::BadArgument));
        }
    }

    #[test]
    fn what_stands_behind_a_value_is_refused() {
        let system = mirror();
        let (mut words, _) = encode(&system, 0, &3u8).unwrap();
        assert_eq!(decode::<u8>(&system, &words, 0), Ok(3));
        words[1] = 2;
        assert_eq!(decode::<u8>(&system, &words, 0), Err(Refusal::BadArgument));
        words[1] = 0;
        assert_eq!(decode::<u8>(&system, &words, 0), Err(Refusal::BadArgument));
    }

    #[test]
    fn a_refusal_comes_back_as_one() {
        let Reply::Call(words) = answer::<u8>(&mirror(), Err(Refusal::Quota)) else { panic!("no letter") };
        assert_eq!(from_answer(words[0]), Err(Refusal::Quota));
    }
}
