// SPDX-License-Identifier: MIT OR Apache-2.0
//! A slot by which one CPU asks another for an operation: the asker fills it, the other CPU answers into it, and the
//! asker frees it. One word says whose turn it is, and orders everything else.

use crate::table::TableRange;
use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};

/// An operation that a thread of one CPU asks of another: the object it means lives there. One slot a CPU that asks.
#[derive(Debug)]
pub struct Request<W = AtomicU64> {
    /// [`FREE`], [`asked`] of a CPU, [`TAKEN`] or [`DONE`].
    state: W,
    /// The operation's number.
    number: W,
    /// Its arguments, then its results.
    words: [W; 6],
    /// The asking domain's capability table: first slot, and count in the high half.
    table: W,
    /// The asking thread's name.
    thread: W,
}

/// Nobody asks.
const FREE: u64 = 0;
/// Waits to be done by this CPU. One word, so that nobody takes what was taken back and asked of another meanwhile.
const fn asked(target: u16) -> u64 {
    ASKED | (target as u64) << 8
}
/// The low byte of [`asked`].
const ASKED: u64 = 1;
/// Results are there.
const DONE: u64 = 2;
/// Is being done: whoever asked cannot take it back any more.
const TAKEN: u64 = 3;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The operation's number.
    pub number: u16,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// The asking domain's capability table.
    pub table: TableRange,
    /// The asking thread's name.
    pub thread: u64,
}

impl Request {
    /// A free slot.
    pub const EMPTY: Request = {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Request { state: ZERO, number: ZERO, words: [ZERO; 6], table: ZERO, thread: ZERO }
    };
}

impl<W: Word> Request<W> {
    /// Whether its CPU may ask.
    pub fn is_free(&self) -> bool {
        self.state.load(Ordering::Acquire) == FREE
    }

    /// The asker, in its own free slot: asks that CPU.
    pub fn ask(&self, target: u16, what: &Asked) {
        for (word, value) in self.words.iter().zip(what.arguments) {
            word.store(value, Ordering::Relaxed);
        }
        self.number.store(what.number.into(), Ordering::Relaxed);
        self.table.store(what.table.first as u64 | (what.table.count as u64) << 32, Ordering::Relaxed);
        self.thread.store(what.thread, Ordering::Relaxed);
        self.state.store(asked(target), Ordering::Release);
    }

    /// Takes what is asked of this CPU: it must answer.
    pub fn take_asked(&self, cpu: u16) -> Option<Asked> {
        self.state.replace(asked(cpu), TAKEN).ok()?;
        let table = self.table.load(Ordering::Relaxed);
        Some(Asked {
            number: self.number.load(Ordering::Relaxed) as u16,
            arguments: core::array::from_fn(|i| self.words[i].load(Ordering::Relaxed)),
            table: TableRange { first: table as u32, count: (table >> 32) as u32 },
            thread: self.thread.load(Ordering::Relaxed),
        })
    }

    /// The CPU that was asked: it is done.
    pub fn answer(&self, values: [u64; 3]) {
        for (word, value) in self.words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        self.state.store(DONE, Ordering::Release);
    }

    /// The asker takes back what this thread of it asked, unless somebody has begun: the slot is free again.
    pub fn retract(&self, thread: u64) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let waits = state & 0xff == ASKED && self.thread.load(Ordering::Relaxed) == thread;
        waits && self.state.replace(state, FREE).is_ok()
    }

    /// The asker takes its answer, with the name of the thread that asked; the slot is free again.
    pub fn take_answer(&self) -> Option<(u64, [u64; 3])> {
        if self.state.load(Ordering::Acquire) != DONE {
            return None;
        }
        let values = core::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
        let thread = self.thread.load(Ordering::Relaxed);
        self.state.store(FREE, Ordering::Release);
        Some((thread, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use std::vec::Vec;

    type Slot = Request<LoomWord>;

    fn slot() -> Arc<Slot> {
        let word = || LoomWord::new(0);
        Arc::new(Request { state: word(), number: word(), words: [(); 6].map(|()| word()), table: word(), thread: word() })
    }

    /// The `n`th thing that is asked, and its answer.
    fn thing(n: u64) -> (Asked, [u64; 3]) {
        let table = TableRange { first: n as u32, count: 64 };
        (Asked { number: n as u16, arguments: [n; 6], table, thread: 100 + n }, [n + 10; 3])
    }

    /// CPU 0 asks CPU 1, takes the answer if it is there, else takes its question back, and asks something else.
    fn two_requests(ask: fn(&Slot, u16, &Asked), take: fn(&Slot) -> Option<Asked>) {
        let slot = slot();
        let server = slot.clone();
        let other = loom::thread::spawn(move || {
            let mut seen = Vec::new();
            for _ in 0..2 {
                if let Some(found) = take(&server) {
                    let n = u64::from(found.number);
                    assert_eq!(found, thing(n).0, "what is asked is seen whole");
                    server.answer(thing(n).1);
                    seen.push(n);
                }
            }
            seen
        });
        ask(&slot, 1, &thing(1).0);
        let mut answered = Vec::new();
        let mut look = || {
            if let Some((thread, values)) = slot.take_answer() {
                assert_eq!((thread, values), (thread, thing(thread - 100).1), "an answer is seen whole");
                answered.push(thread - 100);
            }
        };
        look();
        if slot.is_free() || slot.retract(101) {
            ask(&slot, 1, &thing(2).0);
        }
        look();
        let done = other.join().unwrap();
        look();
        assert_eq!(answered, done, "what was done is answered once, and what was taken back is not done");
    }

    fn properly(slot: &Slot) -> Option<Asked> {
        slot.take_asked(1)
    }

    #[test]
    fn no_order_of_memory_tears_or_loses_a_request_or_its_answer() {
        loom::model(|| two_requests(|slot, target, what| slot.ask(target, what), properly));
    }

    #[test]
    fn nobody_else_takes_it() {
        loom::model(|| {
            let slot = slot();
            slot.ask(3, &thing(1).0);
            assert_eq!((slot.take_asked(1), slot.take_answer()), (None, None));
            assert!(!slot.retract(7) && slot.retract(101) && slot.is_free());
        });
    }

    #[test]
    fn asking_before_the_slot_is_filled_is_found_out() {
        let early = |slot: &Slot, target, what: &Asked| {
            slot.state.store(asked(target), Ordering::Release);
            slot.ask(target, what);
        };
        assert!(is_broken(move || two_requests(early, properly)));
    }

    #[test]
    fn a_relaxed_turn_is_found_out() {
        let relaxed = |slot: &Slot, target, what: &Asked| {
            slot.ask(3, what);
            slot.words.iter().for_each(|word| word.store(what.arguments[0], Ordering::Relaxed));
            slot.state.store(asked(target), Ordering::Relaxed);
        };
        assert!(is_broken(move || two_requests(relaxed, properly)));
    }

    #[test]
    fn taking_without_saying_so_is_found_out() {
        let look = |slot: &Slot| {
            (slot.state.load(Ordering::Acquire) == asked(1)).then(|| Asked {
                number: slot.number.load(Ordering::Relaxed) as u16,
                arguments: std::array::from_fn(|i| slot.words[i].load(Ordering::Relaxed)),
                table: TableRange { first: slot.table.load(Ordering::Relaxed) as u32, count: 64 },
                thread: slot.thread.load(Ordering::Relaxed),
            })
        };
        assert!(is_broken(move || two_requests(|slot, target, what| slot.ask(target, what), look)));
    }
}
