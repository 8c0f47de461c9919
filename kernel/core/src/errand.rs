// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU is kicked for. Whoever wants something of another CPU leaves an errand here and kicks; the other CPU takes
//! the errands and looks only at what they name.
//!
//! Details are written before the word that says there are some, and read after it: whoever is not seen by one taking
//! finds the word empty, kicks, and is seen by the next. While the word is not empty a kick is on its way already.

use core::sync::atomic::{AtomicU64, Ordering};

/// Something for another CPU to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Errand {
    /// Its vCPU of this index has lines in its mail.
    Lines(u16),
    /// Its thread of this index was signalled.
    Signal(u16),
    /// This CPU's slot asks it for an operation.
    Request(u16),
    /// What it asked for is done.
    Answer,
    /// Somebody wants to know that it has left the kernel ([`crate::grace`]).
    Pass,
    /// Another CPU's queue of interrupts was put into its own, which was empty.
    Queue,
}

/// The word as errands use it; a trait so that a model checker can stand in for the processor.
pub trait Word {
    /// Sets bits; what was there before.
    fn set(&self, bits: u64) -> u64;
    /// Takes all bits.
    fn take(&self) -> u64;
    /// Takes just these bits if no others are there.
    fn take_only(&self, bits: u64) -> bool;
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn set(&self, bits: u64) -> u64 {
        self.fetch_or(bits, Ordering::AcqRel)
    }

    #[inline(always)]
    fn take(&self) -> u64 {
        self.swap(0, Ordering::AcqRel)
    }

    #[inline(always)]
    fn take_only(&self, bits: u64) -> bool {
        self.compare_exchange(bits, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

const SIGNALLED: u64 = 1 << 32;
const ASKED: u64 = 1 << 33;
const ANSWERED: u64 = 1 << 34;
const PASS: u64 = 1 << 35;
const QUEUE: u64 = 1 << 36;
/// Bits of the first word that are vCPUs.
const VCPUS: u64 = 0xffff;

/// The errands of one CPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Errands<W = AtomicU64> {
    /// vCPUs with lines (bits 0–15), and which of the other words say more.
    what: W,
    /// Threads that were signalled.
    threads: W,
    /// CPUs that ask for an operation.
    askers: W,
}

/// Errands that were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// vCPUs with lines in their mail, one bit each.
    pub vcpus: u64,
    /// Threads that were signalled, one bit each.
    pub threads: u64,
    /// CPUs that ask for an operation, one bit each.
    pub askers: u64,
    /// What this CPU asked for is done.
    pub answered: bool,
    /// It shall say that it has left the kernel.
    pub pass: bool,
    /// Its queue of interrupts is no longer empty.
    pub queue: bool,
}

impl Errands {
    /// None.
    pub const EMPTY: Errands =
        Errands { what: AtomicU64::new(0), threads: AtomicU64::new(0), askers: AtomicU64::new(0) };
}

impl<W: Word> Errands<W> {
    /// Of words that are zero.
    pub const fn of(what: W, threads: W, askers: W) -> Errands<W> {
        Errands { what, threads, askers }
    }

    /// Leaves an errand. True: the CPU must be kicked; else a kick is on its way already.
    #[inline]
    pub fn leave(&self, errand: Errand) -> bool {
        let what = match errand {
            Errand::Lines(vcpu) => 1 << (vcpu & 15),
            Errand::Signal(thread) => {
                self.threads.set(1 << (thread & 63));
                SIGNALLED
            }
            Errand::Request(cpu) => {
                self.askers.set(1 << (cpu & 63));
                ASKED
            }
            Errand::Answer => ANSWERED,
            Errand::Pass => PASS,
            Errand::Queue => QUEUE,
        };
        self.what.set(what) == 0
    }

    /// Takes all.
    pub fn take(&self) -> Taken {
        let what = self.what.take();
        Taken {
            vcpus: what & VCPUS,
            threads: if what & SIGNALLED != 0 { self.threads.take() } else { 0 },
            askers: if what & ASKED != 0 { self.askers.take() } else { 0 },
            answered: what & ANSWERED != 0,
            pass: what & PASS != 0,
            queue: what & QUEUE != 0,
        }
    }

    /// Takes the one that this vCPU has lines, if there is no other.
    #[inline(always)]
    pub fn take_lines_of(&self, vcpu: u16) -> bool {
        self.what.take_only(1 << (vcpu & 15))
    }
}

/// The bits that are set, lowest first.
pub fn each(mut bits: u64) -> impl Iterator<Item = u16> {
    core::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros() as u16;
        bits &= bits - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use std::vec::Vec;

    impl Word for LoomWord {
        fn set(&self, bits: u64) -> u64 {
            self.fetch_or(bits, Ordering::AcqRel)
        }

        fn take(&self) -> u64 {
            self.swap(0, Ordering::AcqRel)
        }

        fn take_only(&self, bits: u64) -> bool {
            self.compare_exchange(bits, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        }
    }

    #[test]
    fn an_errand_is_taken_once_and_kicks_once() {
        let errands = Errands::EMPTY;
        assert!(errands.leave(Errand::Lines(3)));
        assert!(!errands.leave(Errand::Signal(63)));
        assert!(!errands.leave(Errand::Request(5)));
        assert!(!errands.leave(Errand::Answer));
        assert!(!errands.leave(Errand::Pass));
        assert!(!errands.leave(Errand::Queue));
        assert!(!errands.take_lines_of(3), "there are others");
        let all = Taken { vcpus: 1 << 3, threads: 1 << 63, askers: 1 << 5, answered: true, pass: true, queue: true };
        assert_eq!(errands.take(), all);
        assert_eq!(errands.take(), Taken::default());
        assert!(errands.leave(Errand::Lines(3)));
        assert!(errands.take_lines_of(3));
        assert_eq!(errands.take(), Taken::default());
    }

    #[test]
    fn bits_come_lowest_first() {
        assert_eq!(each(1 << 63 | 5).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(each(0).count(), 0);
    }

    /// Two CPUs leave errands while a third takes them whenever its kick (a word that is set, as an interrupt is) is there. Once
    /// all kicks are served, nothing may be left, and what an errand names must be visible to whoever takes it.
    #[test]
    fn no_interleaving_loses_an_errand() {
        let senders = [[Errand::Signal(1), Errand::Lines(2)], [Errand::Request(4), Errand::Lines(2)]];
        let mut model = loom::model::Builder::new();
        // All interleavings with at most this many switches away from a thread that could go on.
        model.preemption_bound = Some(3);
        model.check(move || {
            let errands = Arc::new(Errands { what: LoomWord::new(0), threads: LoomWord::new(0), askers: LoomWord::new(0) });
            let kick = Arc::new(LoomWord::new(0));
            // What the errands are about: here one bit each, in the vCPU's mail, a thread's word, a request's slot.
            let details = Arc::new([LoomWord::new(0), LoomWord::new(0), LoomWord::new(0)]);
            let threads: Vec<_> = (0..2usize)
                .map(|sender| {
                    let (errands, kick, details) = (errands.clone(), kick.clone(), details.clone());
                    loom::thread::spawn(move || {
                        for errand in senders[sender] {
                            let about = if matches!(errand, Errand::Lines(_)) { 2 } else { sender };
                            details[about].fetch_or(1 << sender, Ordering::Relaxed);
                            if errands.leave(errand) {
                                kick.set(1);
                            }
                        }
                    })
                })
                .collect();
            let mut done = [0u64; 3];
            let mut serve = |fast: bool| {
                if kick.take() == 0 {
                    return;
                }
                if fast && errands.take_lines_of(2) {
                    done[2] |= details[2].swap(0, Ordering::Relaxed);
                    return;
                }
                let taken = errands.take();
                if taken.threads & 2 != 0 {
                    done[0] |= details[0].swap(0, Ordering::Relaxed);
                }
                if taken.askers & 16 != 0 {
                    done[1] |= details[1].swap(0, Ordering::Relaxed);
                }
                if taken.vcpus & 4 != 0 {
                    done[2] |= details[2].swap(0, Ordering::Relaxed);
                }
            };
            serve(true);
            for thread in threads {
                thread.join().unwrap();
            }
            // The interrupt stays pending until it is served; a second is for whoever came between.
            serve(true);
            serve(false);
            assert_eq!(done, [1, 2, 3]);
        });
    }
}
