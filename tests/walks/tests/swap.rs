// SPDX-License-Identifier: MIT OR Apache-2.0
//! The oracle: monitors that are replaced, ended and lost in every way while two vCPUs store to watched pages as fast as they can,
//! with the real root, p2m, vcpu and monitors through the real kernel. Each store has just the effect that was ordered, once and
//! in order, and each was asked about.
//!
//! `TRELLIS_SWAPS` says how many rounds (10,000).

use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use trellis_idl::control::{Ask, Control, Handed, Name, Offer, Part, Piece, Proof, Refused, Step, UPLOAD_PIECE, statement};
use trellis_idl::interface::ATTACH;
use trellis_idl::kernel::Access;
use trellis_idl::layout::PROGRAM;
use trellis_idl::plan::{OnReset, RulePlan, RuleVerdict, SwapPlan, Without};
use trellis_idl::wire::MonitorOp;
use trellis_root::Root;
use trellis_walks::whole::{Act, BASE, CPUS, ENTRY, Fate, Sight, Stored, Told, Whim, Whole, watched_plan};

/// Pages that are not in the block that the image was loaded into.
const ALLOWED: u64 = BASE + (2 << 20) + 0x3000;
const DENIED: u64 = ALLOWED + 0x1000;
/// PSCI 5.1: CPU_ON, in 64 bits.
const CPU_ON: u64 = 0xc400_0003;
/// Rank of monitors.
const MONITOR: u8 = 3;
/// Rounds of one system.
const LIFE: u64 = 100;

/// A generator of numbers (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A program's file: a page of code and one of data.
fn file(spoilt: bool) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, if spoilt { 9 } else { 1 }, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2u16, 183].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([PROGRAM, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    for (offset, address, flags) in [(0u64, PROGRAM, 5u32), (100, PROGRAM + 0x1000, 6)] {
        file.extend([1, flags].map(u32::to_le_bytes).concat());
        file.extend([offset, address, address, 200, 300, 0x1000].map(u64::to_le_bytes).concat());
    }
    file.resize(700, 0x5a);
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
    whole: &'static Whole,
    root: Root<'static, Sight<'static>>,
    random: Random,
    /// Stores of each vCPU in the round, watched or not.
    stores: [Vec<u64>; CPUS as usize],
    /// How far each vCPU is in its pages.
    at: u64,
    counter: u64,
    lowest: u64,
    number: u32,
    signed: bool,
}

impl Oracle {
    fn new(seed: u64, signed: bool) -> Oracle {
        let rules = [vec![rule(ALLOWED, RuleVerdict::Allow), rule(DENIED, RuleVerdict::Deny)]];
        let whole = Whole::watched(&rules);
        let mut plan = watched_plan(OnReset::End, Without::Hold, &rules);
        plan.control = Control::Full;
        let signer = signed.then(|| key().verifying_key().to_bytes());
        plan.servers[3].swap = Some(SwapPlan { pages: 4, signer, counter: 0 });
        let root = whole.root(plan);
        whole.reports();
        // The second vCPU is switched on by the first.
        whole.does([Act::Call([CPU_ON, 1, ENTRY, 0])]);
        (0..100).take_while(|_| whole.left() > 0).for_each(|_| whole.go_on());
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Oracle { whole, root, random, stores: Default::default(), at: 0, counter: 0, lowest: 0, number: 0, signed }
    }

    /// Both vCPUs are given stores to do: to pages of their own halves, in order.
    fn store(&mut self) {
        for cpu in 0..CPUS {
            let count = 1 + self.random.below(6);
            let stores: Vec<u64> = (0..count)
                .map(|n| self.random.one_of(&[ALLOWED, DENIED]) + u64::from(cpu) * 2048 + (self.at + n) % 250 * 8)
                .collect();
            self.whole.does_on(cpu, stores.iter().map(|address| Act::Store(*address)));
            self.stores[usize::from(cpu)].extend(stores);
        }
        self.at += 6;
    }

    /// What the host asks, and the whole answer.
    fn ask(&mut self, ask: Ask) -> Vec<Part> {
        self.number += 1;
        self.whole.ask(self.number, ask);
        let mut parts = Vec::new();
        for _ in 0..100 {
            self.root.step(&self.whole.body(0, 0));
            parts.extend(self.whole.answers());
            if let Some(Part::Done | Part::Refused(_)) = parts.last() {
                return parts;
            }
        }
        panic!("no answer: {parts:?}")
    }

    fn offer(&self, file: &[u8], counter: u64, is_fresh: bool) -> Offer {
        let digest: [u8; 32] = Sha256::digest(file).into();
        let proof = self.signed.then(|| {
            let signature = key().sign(&statement(counter, &digest));
            Proof { counter, signature: [*signature.r_bytes(), *signature.s_bytes()] }
        });
        Offer { monitor: Name::try_from("watchdog").expect("short"), bytes: file.len() as u32, digest, proof, is_fresh }
    }

    fn upload(&mut self, offer: Offer, file: &[u8]) {
        assert_eq!(self.ask(Ask::Upload(offer)), [Part::Done]);
        for (index, bytes) in file.chunks(UPLOAD_PIECE).enumerate() {
            let piece = Piece { offset: (index * UPLOAD_PIECE) as u32, bytes: bytes.iter().copied().collect() };
            assert_eq!(self.ask(Ask::Piece(piece)), [Part::Done]);
        }
    }

    fn swap(&mut self) -> Vec<Part> {
        // In the middle of it all.
        self.store();
        self.ask(Ask::Swap(Name::try_from("watchdog").expect("short")))
    }

    /// One that is as it should be, but for what befalls it.
    fn attempt(&mut self, whims: &[(Option<u64>, Whim)], is_fresh: bool) -> Vec<Part> {
        let (file, counter) = (file(false), self.counter);
        let offer = self.offer(&file, counter, is_fresh);
        self.upload(offer, &file);
        self.whole.whims.borrow_mut().extend(whims.iter().copied());
        let parts = self.swap();
        self.whole.whims.borrow_mut().clear();
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
        let (good, kinds) = (file(false), if self.signed { 5 } else { 3 });
        let mut offer = self.offer(&good, self.counter, false);
        let (file, why) = match self.random.below(kinds) {
            0 => (good[..400].to_vec(), Refused::CutOff(400)),
            1 => {
                offer.digest[5] ^= 1;
                (good, Refused::Digest)
            }
            2 => {
                let file = file(true);
                offer = self.offer(&file, self.counter, false);
                (file, Refused::Unfit(trellis_idl::control::Unfit::Format))
            }
            3 => {
                offer.proof = None;
                (good, Refused::Signature)
            }
            _ if self.lowest > 0 => {
                offer = self.offer(&good, self.lowest - 1, false);
                (good, Refused::Older(self.lowest))
            }
            _ => return,
        };
        self.upload(offer, &file);
        assert_eq!(self.swap(), [Part::Refused(why)]);
    }

    /// Something happens while the guest stores.
    fn round(&mut self) {
        use MonitorOp::{Adopt, Export, Import};
        let op = |op: MonitorOp| Some(op as u64);
        self.counter += self.random.below(2);
        self.store();
        let bad = self.random.one_of(&[Whim::Crash, Whim::Hang]);
        let kind = self.random.below(12);
        if std::env::var_os("TRELLIS_SWAPS_SHOWN").is_some() {
            eprintln!("{kind} {bad:?}");
        }
        match kind {
            0 | 1 => self.is_replaced(&[], false, |state| matches!(state, Handed::Taken(_))),
            2 => self.is_replaced(&[], true, |state| state == Handed::NotWanted),
            3 => {
                let parts = self.ask(Ask::Kill(Name::try_from("watchdog").expect("short")));
                assert!(matches!(parts[..], [Part::Replaced(_), Part::Done]), "{parts:?}");
            }
            4 => self.is_refused(&[(None, bad)], |why| why == Refused::Fails(Step::Begin)),
            5 => {
                let whim = self.random.one_of(&[Whim::Crash, Whim::Hang, Whim::Garbage]);
                self.is_refused(&[(Some(ATTACH), whim)], |why| matches!(why, Refused::Interface | Refused::Fails(Step::Begin)));
            }
            6 => {
                let whim = self.random.one_of(&[Whim::Crash, Whim::Hang, Whim::Garbage]);
                self.is_refused(&[(op(Import), whim)], |why| matches!(why, Refused::State(_) | Refused::Fails(Step::TakeOver)));
            }
            7 => self.is_refused(&[(op(Adopt), bad)], |why| why == Refused::Fails(Step::Watch)),
            8 => self.is_replaced(&[(op(Export), bad)], false, |state| state == Handed::Lost),
            9 => self.is_replaced(&[(op(Export), Whim::Garbage)], false, |state| matches!(state, Handed::NotGiven(_))),
            10 => self.spoilt(),
            _ => {
                // It dies with an event in its hands, which is its own fault: often in a row would end the guest.
                let fate = self.random.one_of(&[Fate::Crash, Fate::Hang]);
                self.whole.fate.set(Some((MONITOR, fate)));
                self.store();
                self.root.step(&self.whole.body(0, 0));
                self.whole.later(61);
            }
        }
        self.done();
    }

    /// All that was stored had its effect, once, in order, and was asked about.
    fn done(&mut self) {
        for _ in 0..400 {
            if self.whole.left() == 0 && self.stores.iter().zip(&*self.whole.stores.borrow()).all(|(all, done)| all.len() == done.len()) {
                break;
            }
            self.root.step_or_rest(self.whole);
        }
        if self.number % 16 == 0 {
            self.whole.lawful();
        }
        let told: Vec<Told> = self.whole.told.take();
        for cpu in 0..usize::from(CPUS) {
            let ordered = std::mem::take(&mut self.stores[cpu]);
            let done = std::mem::take(&mut self.whole.stores.borrow_mut()[cpu]);
            let expected: Vec<_> = ordered.iter().map(|address| (*address, if address & !0xfff == DENIED { Stored::Skipped } else { Stored::Done })).collect();
            assert_eq!(done, expected, "vCPU {cpu}");
            for (address, what) in done {
                let word = self.whole.word(address);
                assert!(what == Stored::Done && word == Some(address) || what == Stored::Skipped && word.is_none_or(|word| word == 0), "{address:#x}");
            }
            // Whoever is asked again is asked the same.
            let mut asked: Vec<u64> = told.iter().filter(|told| told.vcpu == cpu).map(|told| told.exit.physical).collect();
            asked.dedup();
            let mut expected = ordered;
            expected.dedup();
            assert_eq!(asked, expected, "vCPU {cpu} was asked about, in order");
        }
        let ended = self.whole.reports().into_iter().find(|report| matches!(report, trellis_idl::wire::Report::GuestEnded { .. }));
        assert_eq!(ended, None, "no guest is disturbed");
    }
}

/// Root has its say if there is something for it; else the others go on.
trait Steps {
    fn step_or_rest(&mut self, whole: &'static Whole);
}

impl Steps for Root<'static, Sight<'static>> {
    fn step_or_rest(&mut self, whole: &'static Whole) {
        whole.go_on();
        if whole.is_root_wanted() {
            self.step(&whole.body(0, 0));
        }
    }
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
