// SPDX-License-Identifier: MIT OR Apache-2.0
//! The oracle: monitors that are replaced, ended and lost in every way while two vCPUs store to watched pages as fast as they can,
//! with the real root, p2m, vcpu and monitors through the real kernel. Each store has just the effect that was ordered, once and
//! in order, and each was asked about, or told of. What a monitor has counted its successor goes on from, one by one.
//!
//! `TRELLIS_SWAPS` says how many rounds (10,000).

use ed25519_dalek::{Signer, SigningKey};
use trellis_idl::control::{Ask, Handed, Offer, Part, Proof, Refused, Step, Unfit, statement};
use trellis_idl::interface::ATTACH;
use trellis_idl::kernel::Access;
use trellis_idl::layout::PROGRAM;
use trellis_idl::plan::{OnReset, RulePlan, RuleVerdict};
use trellis_idl::wire::{MonitorOp, Report};
use trellis_walks::random::Random;
use trellis_walks::uploads::{Asked, file, offer, watchdog};
use trellis_walks::whole::{Act, BASE, CPUS, Fate, Kind, Stored, Told, Whim, Whole};

/// Pages that are not in the block that the image was loaded into.
const ALLOWED: u64 = BASE + (2 << 20) + 0x3000;
const DENIED: u64 = ALLOWED + 0x1000;
/// Of that one nobody is asked: it happens, and is told.
const TOLD: u64 = ALLOWED + 0x2000;
/// Rank of monitors.
const MONITOR: u8 = 3;
/// Rounds of one system.
const LIFE: u64 = 100;

/// Where a file says what, and what makes it none (System V gABI 4, 5): its kind, its machine, where it begins, how much memory
/// its data take, and where they go.
const SPOILT: [(usize, u64, Unfit); 5] = [
    (5, 9, Unfit::Format), (18, 62, Unfit::Machine), (24, PROGRAM + 0x1000, Unfit::Entry), (64 + 56 + 40, 1 << 20, Unfit::Memory),
    (64 + 56 + 16, PROGRAM - 0x1000, Unfit::Outside),
];

/// The same, with that said otherwise.
fn spoilt((at, value, _): (usize, u64, Unfit)) -> Vec<u8> {
    let (mut file, bytes) = (file(), value.to_le_bytes());
    let length = if at < 24 { 1 } else { 8 };
    file[at..at + length].copy_from_slice(&bytes[..length]);
    file
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn rule(address: u64, verdict: RuleVerdict) -> RulePlan {
    RulePlan { guest: 0, first: address / 4096, pages: 1, access: Access::WRITE.0 as u8, verdict, log: false }
}

/// A watched guest and its system, and what has been ordered of it.
struct Oracle {
    host: Asked,
    random: Random,
    /// Stores of each vCPU in the round, watched or not.
    stores: [Vec<u64>; CPUS as usize],
    /// How far each vCPU is in its pages.
    at: u64,
    counter: u64,
    lowest: u64,
    signed: bool,
    /// What the monitors must have counted, by rule, and what they had missed when that was last looked at.
    counted: [u64; 3],
    missed: u64,
    /// What was counted may be lost in this round.
    is_lossy: bool,
    /// It takes its time for a verdict in this round, perhaps too long.
    is_slow: bool,
}

impl Oracle {
    fn new(seed: u64, signed: bool) -> Oracle {
        let mut rules = vec![rule(ALLOWED, RuleVerdict::Allow), rule(DENIED, RuleVerdict::Deny), rule(TOLD, RuleVerdict::Report)];
        // What it knows of many rules fits into no ten words.
        rules.extend((0..seed % 20).map(|n| rule(ALLOWED + 0x8000 + n * 0x1000, RuleVerdict::Deny)));
        let signer = signed.then(|| key().verifying_key().to_bytes());
        let host = Asked::watching(Kind::Standard, rules, OnReset::End, signer);
        host.both_on();
        Oracle { host, random: Random::new(seed), stores: Default::default(), at: 0, counter: 0, lowest: 0, signed, counted: [0; 3], missed: 0, is_lossy: false, is_slow: false }
    }

    /// Both vCPUs are given stores to do: to pages of their own halves, in order.
    fn store(&mut self) {
        for (cpu, stores) in (0..CPUS).zip(self.more_stores()) {
            self.host.whole.does_on(cpu, stores.iter().map(|address| Act::Store(*address)));
        }
    }

    /// What both vCPUs are to do next; whoever asks has them do it.
    fn more_stores(&mut self) -> [Vec<u64>; CPUS as usize] {
        let mut all = <[Vec<u64>; CPUS as usize]>::default();
        for (cpu, all) in (0..CPUS).zip(&mut all) {
            let count = 1 + self.random.below(6);
            let stores: Vec<u64> = (0..count)
                .map(|n| self.random.one_of(&[ALLOWED, DENIED, TOLD]) + u64::from(cpu) * 2048 + (self.at + n) % 250 * 8)
                .collect();
            self.stores[usize::from(cpu)].extend(&stores);
            *all = stores;
        }
        self.at += 6;
        all
    }

    fn offer(&self, file: &[u8], counter: u64, is_fresh: bool) -> Offer {
        let offer = offer(file, is_fresh);
        let proof = self.signed.then(|| {
            let signature = key().sign(&statement(counter, &offer.digest));
            Proof { counter, signature: [*signature.r_bytes(), *signature.s_bytes()] }
        });
        Offer { proof, ..offer }
    }

    /// Puts what was uploaded into its place, in the middle of it all: before a step the old one may be just deciding, or about to
    /// answer.
    fn swap(&mut self) -> Vec<Part> {
        self.store();
        self.host.begin(Ask::Swap(watchdog()));
        // Mostly before nobody is asked any more.
        let slow = if self.is_slow { self.random.one_of(&[1, 2, 3, 3, 3, 4, 5]) } else { 0 };
        let time = self.random.below(12) as u32;
        let fate = self.random.one_of(&[Fate::SlowToDecide(time), Fate::SlowToAnswer(time)]);
        let mut stores = if slow != 0 { Some(self.more_stores()) } else { None };
        let mut more = |whole: &Whole| {
            let cpus = (0..CPUS).zip(stores.take().into_iter().flatten());
            cpus.for_each(|(cpu, stores)| whole.does_on(cpu, stores.into_iter().map(Act::Store)));
        };
        let parts = self.host.answer(|whole, step| {
            if step == slow {
                whole.fate.set(Some((MONITOR, fate)));
                more(whole);
                whole.moment();
            }
        });
        // It was refused before that.
        more(self.host.whole);
        parts
    }

    /// One that is as it should be, but for what befalls it.
    fn attempt(&mut self, whims: &[(Option<u64>, Whim)], is_fresh: bool) -> Vec<Part> {
        let (file, counter) = (file(), self.counter);
        let offer = self.offer(&file, counter, is_fresh);
        self.host.upload(offer, &file);
        self.host.whole.whims.borrow_mut().extend(whims.iter().copied());
        let parts = self.swap();
        self.host.whole.whims.borrow_mut().clear();
        if let [Part::Replaced(_), Part::Done] = parts.as_slice() {
            self.lowest = counter;
        }
        parts
    }

    fn is_replaced(&mut self, whims: &[(Option<u64>, Whim)], is_fresh: bool, state: fn(Handed) -> bool) {
        let parts = self.attempt(whims, is_fresh);
        let [Part::Replaced(replaced), Part::Done] = parts.as_slice() else { panic!("{whims:?}: {parts:?}") };
        assert!(state(replaced.state), "{whims:?}: {replaced:?}");
    }

    fn is_refused(&mut self, whims: &[(Option<u64>, Whim)], why: fn(Refused) -> bool) {
        let parts = self.attempt(whims, false);
        let [Part::Refused(refused)] = parts.as_slice() else { panic!("{whims:?}: {parts:?}") };
        assert!(why(*refused), "{whims:?}: {refused:?}");
    }

    /// What comes is not what it should be: everything is as it was.
    fn spoilt(&mut self) {
        let (good, kinds) = (file(), if self.signed { 7 } else { 4 });
        let mut offer = self.offer(&good, self.counter, false);
        let (file, why) = match self.random.below(kinds) {
            0 => (good[..400].to_vec(), Refused::CutOff(400)),
            1 => {
                offer.digest[5] ^= 1;
                (good, Refused::Digest)
            }
            2 => {
                let how = self.random.one_of(&SPOILT);
                let file = spoilt(how);
                offer = self.offer(&file, self.counter, false);
                (file, Refused::Unfit(how.2))
            }
            3 => {
                // More than the manifest keeps for it.
                offer.bytes = 4 * 4096 + 1;
                assert_eq!(self.host.ask(Ask::Upload(offer)), [Part::Refused(Refused::TooLarge(4 * 4096))]);
                return;
            }
            4 => {
                offer.proof = None;
                (good, Refused::Signature)
            }
            5 => {
                offer.proof = offer.proof.map(|proof| Proof { counter: proof.counter + 1, ..proof });
                (good, Refused::Signature)
            }
            _ if self.lowest > 0 => {
                offer = self.offer(&good, self.lowest - 1, false);
                (good, Refused::Older(self.lowest))
            }
            _ => return,
        };
        self.host.upload(offer, &file);
        assert_eq!(self.swap(), [Part::Refused(why)]);
    }

    /// A thread of the new one crashes between two steps, or when all are done.
    fn doomed(&mut self) {
        let (file, counter, steps) = (file(), self.counter, 1 + self.random.below(7));
        let offer = self.offer(&file, counter, false);
        self.host.upload(offer, &file);
        self.host.whole.doom_next();
        self.store();
        self.host.begin(Ask::Swap(watchdog()));
        let parts = self.host.answer(|whole, step| {
            if step == steps + 1 {
                whole.doom();
                whole.go_on();
            }
        });
        self.host.whole.doom();
        match parts.as_slice() {
            [Part::Refused(why)] => assert_eq!(*why, Refused::Fails(Step::Begin), "at step {steps}"),
            [Part::Replaced(_), Part::Done] => {
                assert!(steps >= 5, "it crashed at step {steps}");
                (self.lowest, self.is_lossy) = (counter, true);
                (0..100).take_while(|_| self.host.whole.is_doomed()).for_each(|_| self.host.whole.go_on());
                assert!(!self.host.whole.is_doomed());
                self.host.root.step(&self.host.whole.body(0, 0));
            }
            other => panic!("at step {steps}: {other:?}"),
        }
        self.host.whole.later(61);
    }

    /// Something happens while the guest stores.
    fn round(&mut self) {
        use MonitorOp::{Adopt, Export, Import};
        let op = |op: MonitorOp| Some(op as u64);
        self.counter += self.random.below(2);
        self.store();
        let amid = Whim::CrashIn(self.random.below(10) as u32);
        let bad = self.random.one_of(&[Whim::Crash, Whim::Hang]);
        let kind = self.random.below(14);
        self.is_slow = self.random.below(3) == 0;
        if std::env::var_os("TRELLIS_SWAPS_SHOWN").is_some() {
            eprintln!("{kind} {bad:?} {amid:?} {}", self.is_slow);
        }
        match kind {
            0 | 1 => self.is_replaced(&[], false, |state| matches!(state, Handed::Taken(_))),
            2 => {
                self.is_lossy = true;
                self.is_replaced(&[], true, |state| state == Handed::NotWanted);
            }
            3 => {
                self.is_lossy = true;
                let parts = self.host.ask(Ask::Kill(watchdog()));
                assert!(matches!(parts[..], [Part::Replaced(_), Part::Done]), "{parts:?}");
            }
            4 => self.is_refused(&[(None, bad)], |why| why == Refused::Fails(Step::Begin)),
            5 => {
                let whim = self.random.one_of(&[Whim::Crash, Whim::Hang, Whim::Garbage]);
                self.is_refused(&[(Some(ATTACH), whim)], |why| matches!(why, Refused::Interface | Refused::Fails(Step::Begin)));
            }
            6 => {
                let whim = self.random.one_of(&[Whim::Crash, Whim::Hang, Whim::Garbage, amid]);
                self.is_refused(&[(op(Import), whim)], |why| matches!(why, Refused::State(_) | Refused::Fails(Step::TakeOver)));
            }
            7 => {
                let whim = self.random.one_of(&[bad, amid]);
                self.is_refused(&[(op(Adopt), whim)], |why| why == Refused::Fails(Step::Watch));
            }
            8 => {
                self.is_lossy = true;
                let whim = self.random.one_of(&[bad, amid]);
                self.is_replaced(&[(op(Export), whim)], false, |state| state == Handed::Lost);
            }
            9 => {
                self.is_lossy = true;
                self.is_replaced(&[(op(Export), Whim::Garbage)], false, |state| matches!(state, Handed::NotGiven(_)));
            }
            10 => self.spoilt(),
            11 | 12 => self.doomed(),
            _ => {
                // It dies with an event in its hands, which is its own fault: often in a row would end the guest.
                let fate = self.random.one_of(&[Fate::Crash, Fate::Hang, Fate::Garbage, Fate::CrashIn(0)]);
                self.is_lossy = true;
                self.host.whole.fate.set(Some((MONITOR, fate)));
                self.store();
                self.host.root.step(&self.host.whole.body(0, 0));
                self.host.whole.later(61);
            }
        }
        if !self.is_lossy {
            self.host.whole.fate.set(None);
        }
        self.done();
        self.host.whole.fate.set(None);
    }

    /// All that was stored had its effect, once, in order, and was asked about.
    fn done(&mut self) {
        for _ in 0..400 {
            if self.host.whole.left() == 0 && self.stores.iter().zip(&*self.host.whole.stores.borrow()).all(|(all, done)| all.len() == done.len()) {
                break;
            }
            self.host.step_or_rest();
        }
        if self.random.below(8) == 0 {
            self.host.whole.lawful();
        }
        let told: Vec<Told> = self.host.whole.told.take();
        for cpu in 0..usize::from(CPUS) {
            let ordered = std::mem::take(&mut self.stores[cpu]);
            let done = std::mem::take(&mut self.host.whole.stores.borrow_mut()[cpu]);
            for address in &ordered {
                self.counted[((address - ALLOWED) >> 12) as usize] += 1;
            }
            let expected: Vec<_> = ordered.iter().map(|address| (*address, if address & !0xfff == DENIED { Stored::Skipped } else { Stored::Done })).collect();
            assert_eq!(done, expected, "vCPU {cpu}");
            for (address, what) in done {
                let word = self.host.whole.word(address);
                assert!(what == Stored::Done && word == Some(address) || what == Stored::Skipped && word.is_none_or(|word| word == 0), "{address:#x}");
            }
            // Whoever is asked again is asked the same, by its number.
            let mut asked: Vec<_> = told.iter().filter(|told| told.vcpu == cpu).map(|told| (told.exit.general[3], told.exit.physical)).collect();
            asked.dedup();
            assert!(asked.windows(2).all(|pair| pair[0].0 < pair[1].0), "vCPU {cpu} was asked about in order: {asked:x?}");
            let asked: Vec<u64> = asked.into_iter().map(|(_, address)| address).collect();
            let expected: Vec<u64> = ordered.into_iter().filter(|address| address & !0xfff != TOLD).collect();
            assert_eq!(asked, expected, "vCPU {cpu} was asked about, in order");
        }
        let reports = self.host.whole.reports();
        let is_lost = |report: &Report| matches!(report, Report::ServerLate { server: 3, .. } | Report::ServerFaulted { server: 3, .. });
        if reports.iter().any(is_lost) {
            assert!(self.is_lossy || self.is_slow, "it has done nothing wrong: {reports:?}");
            self.is_lossy = true;
            // It is not given up for that.
            self.host.whole.later(61);
        }
        let ended = reports.into_iter().find(|report| matches!(report, Report::GuestEnded { .. }));
        assert_eq!(ended, None, "no guest is disturbed");
        self.counts();
    }
}

impl Oracle {
    /// What was decided is counted, once, whoever decided it; what was told is counted or is known to be missed.
    fn counts(&mut self) {
        // The thread that reads has time of its own.
        self.host.whole.go_on();
        let counts = [0, 1, 2].map(|rule| self.host.whole.count(rule)[0]);
        let missed = self.host.whole.missed();
        if !std::mem::take(&mut self.is_lossy) {
            let [allowed, denied, told] = counts;
            assert_eq!([allowed, denied, told + missed - self.missed], self.counted, "what was counted");
        }
        (self.counted, self.missed) = (counts, missed);
    }
}

/// The old one is just deciding when it is asked what it knows, or about to answer: the event is decided once, and counted once.
#[test]
fn a_verdict_in_the_middle_of_a_swap_is_counted_once() {
    let mut oracle = Oracle::new(1, false);
    let (file, mut done) = (file(), 0);
    let cases = (0..14).flat_map(|time| [Fate::SlowToDecide(time), Fate::SlowToAnswer(time)]);
    for (vcpu, fate) in cases.flat_map(|fate| [(0, fate), (1, fate)]) {
        let offer = oracle.offer(&file, 0, false);
        oracle.host.upload(offer, &file);
        oracle.host.begin(Ask::Swap(watchdog()));
        let parts = oracle.host.answer(|whole, step| {
            // Nobody is asked from the third on.
            if step == 3 {
                whole.fate.set(Some((MONITOR, fate)));
                whole.does_on(vcpu, [Act::Store(ALLOWED + 8 * done)]);
                whole.moment();
                assert_eq!(whole.fate.get(), None, "it is being asked");
            }
        });
        done += 1;
        assert!(matches!(parts[..], [Part::Replaced(replaced), Part::Done] if matches!(replaced.state, Handed::Taken(_))), "{parts:?}");
        oracle.host.whole.go_on();
        assert_eq!((oracle.host.whole.left(), oracle.host.whole.count(0)[0]), (0, done), "{fate:?}");
    }
}

/// What is told while the old one reads no more, and the new one not yet, is read, though nothing else is told afterwards.
#[test]
fn what_is_told_in_the_middle_of_a_swap_is_read_by_the_next() {
    let mut oracle = Oracle::new(1, false);
    let (file, mut told) = (file(), 0);
    for at in 1..=5 {
        let offer = oracle.offer(&file, 0, false);
        oracle.host.upload(offer, &file);
        oracle.host.begin(Ask::Swap(watchdog()));
        let acts = (0..3).map(|n| Act::Store(TOLD + 64 * at + 8 * n));
        let parts = oracle.host.answer(|whole, step| {
            if step == at {
                whole.does(acts.clone());
                whole.moment();
            }
        });
        told += 3;
        assert!(matches!(parts[..], [Part::Replaced(_), Part::Done]), "{parts:?}");
        oracle.host.whole.go_on();
        assert_eq!((oracle.host.whole.left(), oracle.host.whole.count(2)[0]), (0, told), "at step {at}");
    }
    assert_eq!(oracle.host.whole.missed(), 0);
}

#[test]
fn whatever_befalls_monitors_each_event_gets_one_verdict() {
    let rounds: u64 = std::env::var("TRELLIS_SWAPS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let lives = rounds.div_ceil(LIFE);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(2) as u64;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            scope.spawn(move || {
                for life in (worker..lives).step_by(workers as usize) {
                    // One in eight must be signed: that takes time.
                    let signed = life % 8 == 7;
                    let mut oracle = Oracle::new(life + 1, signed);
                    for _ in 0..LIFE.min(rounds) {
                        oracle.round();
                    }
                }
            });
        }
    });
}
