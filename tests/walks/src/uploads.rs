// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's side of a swap: a program's file, and questions that root answers.

use crate::whole::{Act, ENTRY, Kind, Sight, Whole, watched_plan};
use sha2::{Digest, Sha256};
use trellis_idl::control::{Ask, Control, Name, Offer, Part, Piece, UPLOAD_PIECE};
use trellis_idl::layout::PROGRAM;
use trellis_idl::plan::{OnReset, RulePlan, SwapPlan, Without};
use trellis_root::Root;

/// PSCI 5.1: CPU_ON, in 64 bits.
const CPU_ON: u64 = 0xc400_0003;

/// A program's file: a page of code and one of data (System V gABI 4, 5). Whatever is in them, what runs is the walks' own monitor.
pub fn file() -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
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

/// The monitor's name.
pub fn watchdog() -> Name {
    Name::try_from("watchdog").expect("a short name")
}

/// A file is offered that nobody has signed.
pub fn offer(file: &[u8], is_fresh: bool) -> Offer {
    Offer { monitor: watchdog(), bytes: file.len() as u32, digest: Sha256::digest(file).into(), proof: None, is_fresh }
}

/// A system that a host asks.
#[derive(Debug)]
pub struct Asked {
    /// The system.
    pub whole: &'static Whole,
    /// Its root.
    pub root: Root<'static, Sight<'static>>,
    number: u32,
}

impl Asked {
    /// A guest with a monitor of this kind and these rules, which the host may replace: by whatever `signer` has signed if there
    /// is one.
    pub fn watching(kind: Kind, rules: Vec<RulePlan>, on_reset: OnReset, signer: Option<[u8; 32]>) -> Asked {
        let rules = [rules];
        let whole = Whole::watched(&rules);
        whole.kind.set(kind);
        let mut plan = watched_plan(on_reset, Without::Hold, &rules);
        plan.control = Control::Full;
        plan.servers[3].swap = Some(SwapPlan { pages: 4, signer, counter: 0 });
        let root = whole.root(plan);
        whole.reports();
        Asked { whole, root, number: 0 }
    }

    /// The guest switches its second vCPU on.
    pub fn both_on(&self) {
        self.whole.does([Act::Call([CPU_ON, 1, ENTRY, 0])]);
        self.all_done();
    }

    /// The guest does all that it was to do, without root.
    pub fn all_done(&self) {
        for _ in 0..100 {
            if self.whole.left() == 0 {
                self.whole.go_on();
                return self.whole.lawful();
            }
            self.whole.go_on();
        }
        panic!("{} acts are left: {:?}", self.whole.left(), self.whole.reports());
    }

    /// What the host asks, and the whole answer.
    pub fn ask(&mut self, ask: Ask) -> Vec<Part> {
        self.begin(ask);
        self.answer(|_, _| {})
    }

    /// What the host asks. Root has not heard of it yet.
    pub fn begin(&mut self, ask: Ask) {
        self.number += 1;
        self.whole.ask(self.number, ask);
    }

    /// Lets root work until it has answered; before each of its steps something may happen, the first is number 1.
    pub fn answer(&mut self, mut before: impl FnMut(&'static Whole, u64)) -> Vec<Part> {
        let mut parts = Vec::new();
        for step in 1..100 {
            before(self.whole, step);
            self.root.step(&self.whole.body(0, 0));
            parts.extend(self.whole.answers());
            if let Some(Part::Done | Part::Refused(_)) = parts.last() {
                return parts;
            }
        }
        panic!("no answer: {parts:?}")
    }

    /// Sends a file.
    pub fn upload(&mut self, offer: Offer, file: &[u8]) {
        assert_eq!(self.ask(Ask::Upload(offer)), [Part::Done]);
        for (index, bytes) in file.chunks(UPLOAD_PIECE).enumerate() {
            let piece = Piece { offset: (index * UPLOAD_PIECE) as u32, bytes: bytes.iter().copied().collect() };
            assert_eq!(self.ask(Ask::Piece(piece)), [Part::Done]);
        }
    }

    /// Root has its say if there is something for it; else the others go on.
    pub fn step_or_rest(&mut self) {
        self.whole.go_on();
        if self.whole.is_root_wanted() {
            self.root.step(&self.whole.body(0, 0));
        }
    }
}
