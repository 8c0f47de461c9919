// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who watches a guest, and what is owed to it: one word for the watcher, one slot a vCPU for what waits for a verdict.
//!
//! A vCPU that a watch stopped leaves its event in its slot and waits. The watcher reads the slot and answers by the
//! event's generation; the vCPU's CPU takes the verdict and frees the slot. The slots are the kernel's, so nothing is
//! lost with a watcher that dies, and the next one finds what is owed. Three rules, which the models below try in every
//! order that memory allows:
//!
//! - An event gets one verdict. Whoever claims the slot for this generation gives it; everybody else is told that it is
//!   gone: a second answer, a late one, one for another event, a withdrawal.
//! - A watcher changes by one compare-and-swap of owner and epoch, for all CPUs at once. Before it the old one goes on;
//!   after it the old one's answers are refused.
//! - An answer that had passed that check when the watcher changed may still come in, on a CPU that is in the kernel at
//!   that moment. So the new one reads slots only after every CPU has been outside since ([`crate::grace`]); what it finds
//!   then nobody else will answer.

use crate::grace::Mark;
use crate::word::Word;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::Refusal;

/// Words of an event, and of its verdict.
pub const WORDS: usize = 32;

/// What a slot holds: low byte of its state, under the generation of its event.
mod phase {
    /// Nothing; the generation is the last event's.
    pub const IDLE: u64 = 0;
    /// An event that nobody has answered.
    pub const SUBMITTED: u64 = 1;
    /// Somebody is writing its verdict.
    pub const CLAIMED: u64 = 2;
    /// Its verdict.
    pub const FINISHED: u64 = 3;
}

/// Which event of a slot: an answer is good for that one only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(u64);

impl Generation {
    /// As a message names it. `Gone`: there never was one with this number.
    pub const fn from_word(word: u64) -> Result<Self, Refusal> {
        if word >> (64 - PHASE_BITS) == 0 { Ok(Generation(word)) } else { Err(Refusal::Gone) }
    }

    /// What a message names it by.
    pub const fn word(self) -> u64 {
        self.0
    }

    const fn at(self, phase: u64) -> u64 {
        self.0 << PHASE_BITS | phase
    }
}

const PHASE_BITS: u32 = 8;

const fn phase_of(state: u64) -> u64 {
    state & ((1 << PHASE_BITS) - 1)
}

/// What a vCPU waits for. The same words carry the event there and the verdict back.
#[derive(Debug)]
pub struct Slot<W = AtomicU64, const N: usize = WORDS> {
    state: W,
    words: [W; N],
}

impl Slot {
    /// No event yet.
    pub const EMPTY: Slot = {
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Slot { state: ZERO, words: [ZERO; WORDS] }
    };
}

impl<W: Word, const N: usize> Slot<W, N> {
    /// The vCPU's CPU: leaves an event, of which words that are not given are 0. `None`: one is open already.
    pub fn submit(&self, event: &[u64]) -> Option<Generation> {
        let state = self.state.load(Ordering::Relaxed);
        if phase_of(state) != phase::IDLE {
            return None;
        }
        // 2^56 events are three years of one in each nanosecond.
        let next = Generation((state >> PHASE_BITS) + 1);
        self.write(event);
        self.state.store(next.at(phase::SUBMITTED), Ordering::Release);
        Some(next)
    }

    /// The event that waits for its verdict.
    pub fn open(&self) -> Option<Generation> {
        let state = self.state.load(Ordering::Acquire);
        (phase_of(state) == phase::SUBMITTED).then_some(Generation(state >> PHASE_BITS))
    }

    /// A watcher: the words of an event that waits for its verdict. `Gone`: it has one, or was withdrawn.
    pub fn read(&self, event: Generation) -> Result<[u64; N], Refusal> {
        let waits = |order| self.state.load(order) == event.at(phase::SUBMITTED);
        if !waits(Ordering::Acquire) {
            return Err(Refusal::Gone);
        }
        // Words change only after the phase has: whoever sees a later word sees a later phase.
        let words = core::array::from_fn(|i| self.words[i].load(Ordering::Acquire));
        if waits(Ordering::Relaxed) { Ok(words) } else { Err(Refusal::Gone) }
    }

    /// A watcher that has been found to be the owner: the verdict. `Gone`: there is one, or the event was withdrawn.
    pub fn finish(&self, event: Generation, verdict: &[u64]) -> Result<(), Refusal> {
        self.claim(event)?;
        self.write(verdict);
        self.state.store(event.at(phase::FINISHED), Ordering::Release);
        Ok(())
    }

    /// The vCPU's CPU: nobody's verdict is wanted any more (its guest ends, or the deadline brought the default one).
    /// `Gone`: one came first, and counts.
    pub fn withdraw(&self, event: Generation) -> Result<(), Refusal> {
        let idle = event.at(phase::IDLE);
        self.state.replace(event.at(phase::SUBMITTED), idle).map(drop).map_err(|_| Refusal::Gone)
    }

    /// The vCPU's CPU: the verdict of its event. The slot is free again.
    pub fn take(&self) -> Option<[u64; N]> {
        let state = self.state.load(Ordering::Acquire);
        if phase_of(state) != phase::FINISHED {
            return None;
        }
        let words = core::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
        self.state.store(Generation(state >> PHASE_BITS).at(phase::IDLE), Ordering::Release);
        Some(words)
    }

    fn claim(&self, event: Generation) -> Result<(), Refusal> {
        let claimed = event.at(phase::CLAIMED);
        self.state.replace(event.at(phase::SUBMITTED), claimed).map(drop).map_err(|_| Refusal::Gone)
    }

    fn write(&self, values: &[u64]) {
        for (i, word) in self.words.iter().enumerate() {
            word.store(values.get(i).copied().unwrap_or(0), Ordering::Release);
        }
    }
}

/// Who watches, and since which change of watchers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The watcher's number; 0 = nobody.
    pub watcher: u16,
    /// Counts changes: what an earlier watcher with the same number holds is not the later one's.
    pub epoch: u32,
}

/// A hand-over is under way: the watcher goes on with what is open, and new events wait.
const MOVING: u64 = 1 << 63;

impl Holder {
    const fn from_word(word: u64) -> Self {
        Holder { watcher: word as u16, epoch: (word >> 16) as u32 }
    }

    const fn word(self) -> u64 {
        self.watcher as u64 | (self.epoch as u64) << 16
    }
}

/// The word that says who watches.
#[derive(Debug)]
pub struct Owner<W = AtomicU64>(pub W);

impl<W: Word> Owner<W> {
    /// Who watches, and whether it is being replaced.
    pub fn now(&self) -> (Holder, bool) {
        let word = self.0.load(Ordering::Acquire);
        (Holder::from_word(word), word & MOVING != 0)
    }

    /// Whether this watcher may answer: it still watches, even if it is being replaced.
    pub fn check(&self, holder: Holder) -> Result<(), Refusal> {
        let is_owner = holder.watcher != 0 && self.now().0 == holder;
        if is_owner { Ok(()) } else { Err(Refusal::Gone) }
    }

    /// From now on new events wait in their slots. `Occupied`: it is being replaced already.
    pub fn begin_move(&self, holder: Holder) -> Result<(), Refusal> {
        match self.0.replace(holder.word(), holder.word() | MOVING) {
            Ok(_) => Ok(()),
            Err(found) if Holder::from_word(found) == holder => Err(Refusal::Occupied),
            Err(_) => Err(Refusal::Gone),
        }
    }

    /// It is not replaced after all.
    pub fn end_move(&self, holder: Holder) -> Result<(), Refusal> {
        self.0.replace(holder.word() | MOVING, holder.word()).map(drop).map_err(|_| Refusal::Gone)
    }

    /// Another watcher, or nobody, in the place of this one: the commit, for all CPUs. The new one may read slots when
    /// every CPU has been outside of the kernel since a mark that is taken now. `Gone`: somebody else was quicker.
    /// `Quota`: the epochs are used up.
    pub fn change(&self, from: Holder, watcher: u16) -> Result<Holder, Refusal> {
        let next = Holder { watcher, epoch: from.epoch.checked_add(1).ok_or(Refusal::Quota)? };
        let mut word = self.0.load(Ordering::Acquire);
        while Holder::from_word(word) == from {
            match self.0.replace(word, next.word()) {
                Ok(_) => return Ok(next),
                Err(found) => word = found,
            }
        }
        Err(Refusal::Gone)
    }
}

/// One guest's session with one watcher; `V` vCPUs.
#[derive(Debug)]
pub struct Session<W = AtomicU64, const N: usize = WORDS, const V: usize = 16> {
    /// Who watches.
    pub owner: Owner<W>,
    /// What waits for a verdict.
    pub slots: [Slot<W, N>; V],
}

impl<W: Word, const N: usize, const V: usize> Session<W, N, V> {
    fn slot(&self, vcpu: u16) -> Result<&Slot<W, N>, Refusal> {
        self.slots.get(usize::from(vcpu)).ok_or(Refusal::OutOfRange)
    }

    /// A watcher asks what a vCPU waits for. `settled` says whether every CPU has been outside of the kernel since the
    /// mark of the watcher's adoption.
    pub fn read(
        &self, holder: Holder, vcpu: u16, adopted: Mark, settled: impl FnOnce(Mark) -> bool,
    ) -> Result<Option<(Generation, [u64; N])>, Refusal> {
        self.owner.check(holder)?;
        let slot = self.slot(vcpu)?;
        if !settled(adopted) {
            return Err(Refusal::Again);
        }
        let Some(event) = slot.open() else { return Ok(None) };
        // It may be withdrawn between both looks.
        Ok(slot.read(event).ok().map(|words| (event, words)))
    }

    /// A watcher's verdict.
    pub fn answer(&self, holder: Holder, vcpu: u16, event: Generation, verdict: &[u64]) -> Result<(), Refusal> {
        self.owner.check(holder)?;
        if verdict.len() > N {
            return Err(Refusal::BadArgument);
        }
        self.slot(vcpu)?.finish(event, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grace::Grace;
    use crate::grace::tests::model as grace;
    use crate::word::model::is_broken;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use loom::thread::{JoinHandle, spawn};
    use std::vec::Vec;

    type Small = Session<LoomWord, 2, 1>;

    const OLD: Holder = Holder { watcher: 1, epoch: 1 };

    fn slot() -> Slot<LoomWord, 2> {
        Slot { state: LoomWord::new(0), words: [(); 2].map(|()| LoomWord::new(0)) }
    }

    fn session() -> Arc<(Small, Grace<LoomWord>)> {
        let owner = Owner(LoomWord::new(OLD.word()));
        Arc::new((Session { owner, slots: [slot()] }, grace()))
    }

    /// The vCPU's CPU, number 0: an event `n`, and what became of it.
    fn event(slot: &Slot<LoomWord, 2>, n: u64) -> Generation {
        slot.submit(&[n, n + 100]).expect("the slot is free")
    }

    #[test]
    fn an_event_is_read_whole_or_not_at_all() {
        loom::model(|| a_reader_beside_two_events(Slot::read));
    }

    fn a_reader_beside_two_events(read: fn(&Slot<LoomWord, 2>, Generation) -> Result<[u64; 2], Refusal>) {
        let slot = Arc::new(slot());
        let first = event(&slot, 1);
        let reader = slot.clone();
        let reading = spawn(move || {
            if let Ok(words) = read(&reader, first) {
                assert_eq!(words, [1, 101], "the words of this event and of no other");
            }
        });
        slot.withdraw(first).expect("nobody answers");
        event(&slot, 2);
        reading.join().unwrap();
    }

    #[test]
    fn reading_without_a_second_look_is_found_out() {
        let once = |slot: &Slot<LoomWord, 2>, _| {
            slot.open().ok_or(Refusal::Gone)?;
            Ok([0, 1].map(|i: usize| slot.words[i].load(Ordering::Acquire)))
        };
        assert!(is_broken(move || a_reader_beside_two_events(once)));
    }

    #[test]
    fn reading_words_in_any_order_is_found_out() {
        let relaxed = |slot: &Slot<LoomWord, 2>, generation: Generation| {
            let waits = || slot.state.load(Ordering::Acquire) == generation.at(phase::SUBMITTED);
            let before = waits();
            let words = [0, 1].map(|i: usize| slot.words[i].load(Ordering::Relaxed));
            if before && waits() { Ok(words) } else { Err(Refusal::Gone) }
        };
        assert!(is_broken(move || a_reader_beside_two_events(relaxed)));
    }

    type Finish = fn(&Slot<LoomWord, 2>, Generation, &[u64]) -> Result<(), Refusal>;

    /// Two answers and a withdrawal of one event: one of them counts, and all of it.
    fn one_event_and_who_comes_first(finish: Finish) {
        let slot = Arc::new(slot());
        let open = event(&slot, 1);
        let answering: Vec<JoinHandle<bool>> = [7, 8]
            .map(|verdict| {
                let slot = slot.clone();
                spawn(move || finish(&slot, open, &[verdict, verdict]).is_ok())
            })
            .into();
        let withdrawn = slot.withdraw(open).is_ok();
        let accepted: Vec<bool> = answering.into_iter().map(|answer| answer.join().unwrap()).collect();
        let counted = accepted.iter().filter(|ok| **ok).count() + usize::from(withdrawn);
        assert_eq!(counted, 1, "an event ends once");
        match slot.take() {
            None => assert!(withdrawn, "what was accepted arrives"),
            Some(words) => {
                let winner = if accepted[0] { 7 } else { 8 };
                assert!(!withdrawn && words == [winner; 2], "the verdict that was accepted, whole: {words:?}");
            }
        }
    }

    #[test]
    fn an_event_gets_one_verdict_whoever_comes_first() {
        loom::model(|| one_event_and_who_comes_first(Slot::finish));
    }

    #[test]
    fn a_verdict_without_a_claim_is_found_out() {
        let unclaimed: Finish = |slot, event, verdict| {
            if slot.open() != Some(event) {
                return Err(Refusal::Gone);
            }
            slot.write(verdict);
            slot.state.replace(event.at(phase::SUBMITTED), event.at(phase::FINISHED)).map(drop).map_err(|_| Refusal::Gone)
        };
        assert!(is_broken(move || one_event_and_who_comes_first(unclaimed)));
    }

    #[test]
    fn a_stale_answer_finds_nothing() {
        loom::model(|| {
            let slot = slot();
            let first = event(&slot, 1);
            assert_eq!(slot.submit(&[9]), None, "one open event a vCPU");
            slot.finish(first, &[5]).expect("it waits");
            assert_eq!(slot.finish(first, &[6]), Err(Refusal::Gone));
            assert_eq!(slot.withdraw(first), Err(Refusal::Gone));
            assert_eq!(slot.take(), Some([5, 0]));
            let second = event(&slot, 2);
            assert_eq!(slot.finish(first, &[6]), Err(Refusal::Gone));
            assert_eq!(slot.read(first), Err(Refusal::Gone));
            assert_eq!(slot.read(second), Ok([2, 102]));
            assert_ne!(first, second);
        });
    }

    /// How often a model's new watcher had something to answer.
    static NEW_ONES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

    /// The old watcher answers on CPU 1 while CPU 0 puts a new one into its place, who looks what is open and answers
    /// that. `waits`: it looks only when the mark is behind every CPU.
    fn a_watcher_is_replaced(waits: bool) {
        let shared = session();
        let open = event(&shared.0.slots[0], 1);
        let old = shared.clone();
        let answering = spawn(move || {
            old.1.pass(1);
            let accepted = old.0.answer(OLD, 0, open, &[7, 7]).is_ok();
            // It leaves the kernel and comes again for a kick.
            old.1.pass(1);
            accepted
        });
        let new = shared.0.owner.change(OLD, 2).expect("nobody else replaces it");
        let mark = shared.1.mark();
        let settled = |mark| !waits || shared.1.behind(mark, 0b10) == 0;
        // The first look begins the epoch; a later one may find that the other CPU has entered in it.
        for _ in 0..2 {
            let Ok(Some((found, words))) = shared.0.read(new, 0, mark, settled) else {
                // The checker tries what the other CPU does meanwhile.
                loom::thread::yield_now();
                continue;
            };
            // What the new one sees it acts on: it must be the one whose verdict counts.
            assert_eq!((found, words), (open, [1, 101]));
            assert_eq!(shared.0.answer(new, 0, found, &[8, 8]), Ok(()), "nobody else answers what it has seen");
            NEW_ONES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        let by_old = answering.join().unwrap();
        if let Some(words) = shared.0.slots[0].take() {
            assert_eq!(words, if by_old { [7; 2] } else { [8; 2] }, "the verdict of who was told so");
        }
    }

    #[test]
    fn what_a_new_watcher_finds_is_its_own_to_answer() {
        loom::model(|| a_watcher_is_replaced(true));
        assert!(NEW_ONES.load(std::sync::atomic::Ordering::Relaxed) > 0, "in some order it came to that");
    }

    #[test]
    fn a_new_watcher_that_looks_at_once_is_found_out() {
        assert!(is_broken(|| a_watcher_is_replaced(false)));
    }

    #[test]
    fn two_that_replace_one_watcher_do_not_both_succeed() {
        loom::model(|| {
            let shared = session();
            let other = shared.clone();
            let second = spawn(move || other.0.owner.change(OLD, 3));
            let moving = shared.0.owner.begin_move(OLD);
            let first = shared.0.owner.change(OLD, 2);
            let second = second.join().unwrap();
            assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
            let (now, is_moving) = shared.0.owner.now();
            assert_eq!(Ok(now), if first.is_ok() { first } else { second });
            assert!(!is_moving, "the commit ends the hand-over");
            assert!(moving.is_ok() || second.is_ok());
            assert_eq!(shared.0.owner.check(OLD), Err(Refusal::Gone));
        });
    }

    #[test]
    fn a_hand_over_may_be_called_off() {
        loom::model(|| {
            let session = &session().0;
            assert_eq!(session.owner.begin_move(OLD), Ok(()));
            assert_eq!(session.owner.begin_move(OLD), Err(Refusal::Occupied));
            assert_eq!(session.owner.check(OLD), Ok(()), "it goes on with what is open");
            assert_eq!(session.owner.end_move(OLD), Ok(()));
            assert_eq!(session.owner.end_move(OLD), Err(Refusal::Gone));
            assert_eq!(session.owner.now(), (OLD, false));
            let used_up = Holder { epoch: u32::MAX, ..OLD };
            assert_eq!(session.owner.change(used_up, 2), Err(Refusal::Quota));
            let nobody = session.owner.change(OLD, 0).expect("it may leave");
            assert_eq!(session.owner.check(nobody), Err(Refusal::Gone), "nobody answers nothing");
        });
    }

    #[test]
    fn what_a_watcher_names_is_checked() {
        loom::model(|| {
            let session = &session().0;
            let open = event(&session.slots[0], 1);
            for vcpu in [1, 2, 511, 512, u16::MAX] {
                assert_eq!(session.answer(OLD, vcpu, open, &[]), Err(Refusal::OutOfRange));
                assert_eq!(session.read(OLD, vcpu, 0, |_| true), Err(Refusal::OutOfRange));
            }
            assert_eq!(session.answer(OLD, 0, open, &[0; 3]), Err(Refusal::BadArgument));
            for word in [0, 2, open.word() | 1 << 56, u64::MAX] {
                let answered = Generation::from_word(word).and_then(|event| session.answer(OLD, 0, event, &[]));
                assert_eq!(answered, Err(Refusal::Gone), "{word:#x}");
            }
            assert_eq!(session.answer(OLD, 0, open, &[3]), Ok(()));
        });
    }
}
