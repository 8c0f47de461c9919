// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel for tests: remembers what p2m was asked, and answers for it.

use crate::{MonitorServer, Outside, Standard};
use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Answer, Op, Refusal, WORDS};
use trellis_idl::layout::watched;
use trellis_idl::plan::{MAX_RULES, MonitorConfig, RulePlan, WatchedPlan};
use trellis_idl::wire::{P2mOp, ToRoot, to_answer};
use trellis_runtime::System;

/// Time stands still; p2m does what it is asked, piece by piece, until it is told to refuse.
pub struct Fake {
    asked: RefCell<Vec<[u64; WORDS]>>,
    buffer: RefCell<[u8; 4096]>,
    refusing: Cell<bool>,
    /// What the vcpu server was asked, and what it says: an answer and its word.
    completed: RefCell<Vec<[u64; WORDS]>>,
    completes: Cell<(Result<Answer, Refusal>, u64)>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake { asked: RefCell::default(), buffer: RefCell::new([0; 4096]), refusing: Cell::new(false), completed: RefCell::default(), completes: Cell::new((Err(Refusal::Unsupported), 0)) }
    }
}

impl Fake {
    /// What p2m was asked since this was asked last.
    pub fn asked(&self) -> Vec<[u64; WORDS]> {
        self.asked.take()
    }

    /// What the vcpu server says from now on.
    pub fn completes(&self, answer: Result<Answer, Refusal>, word: u64) {
        self.completes.set((answer, word));
    }

    /// What it was asked since this was asked last.
    pub fn completed(&self) -> Vec<[u64; WORDS]> {
        self.completed.take()
    }

    pub fn refuse(&self) {
        self.refusing.set(true);
    }
}

impl System for Fake {
    fn invoke(&self, op: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Clock { Ok([1_000, 1_000_000, 0]) } else { Err(Refusal::NoCapability) }
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        if portal == watched::vcpu_server(0, 1) {
            self.completed.borrow_mut().push(words);
            let (answer, word) = self.completes.get();
            let said = to_answer(answer.map(drop));
            return Ok([said, answer.map_or(0, |answer| answer.0), 0, word, 0, 0, 0, 0, 0, 0]);
        }
        assert!((watched::p2m(0, 0)..=watched::p2m(0, 2)).contains(&portal), "{portal}");
        self.asked.borrow_mut().push(words);
        if words[0] == ATTACH {
            return Ok(interface::P2M.to_words(0));
        }
        let mut answer = [0; WORDS];
        if self.refusing.get() {
            answer[0] = to_answer(Err(Refusal::Occupied));
        } else if words[0] == P2mOp::Watch as u64 {
            answer[1] = words[2].min(8192);
        }
        Ok(answer)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut self.buffer.borrow_mut())
    }
}

/// What root was told since it was asked last.
#[derive(Debug, Default)]
pub struct Ear(Mutex<Vec<ToRoot>>);

impl Ear {
    pub fn heard(&self) -> Vec<ToRoot> {
        std::mem::take(&mut *self.0.lock().expect("nobody panicked"))
    }
}

impl Outside for &Ear {
    fn report(&self, _: &impl System, report: &ToRoot) -> bool {
        self.0.lock().expect("nobody panicked").push(report.clone());
        true
    }
}

/// What is tested.
pub type Watchdog = MonitorServer<'static, Standard, &'static Ear>;

/// The standard monitor over one guest of two vCPUs, and who hears it.
pub fn heard(rules: &[RulePlan], hands_over: bool) -> (Watchdog, &'static Ear) {
    let guest = WatchedPlan { name: "web", session: 0, view: 1, vcpus: 2 };
    let rules = heapless::Vec::from_slice(&rules[..rules.len().min(MAX_RULES)]).expect("no more than fit");
    let config = MonitorConfig { guests: heapless::Vec::from_slice(&[guest]).expect("one"), rules, hands_over };
    let monitor = Standard::new(&config.rules);
    let ear = Box::leak(Box::new(Ear::default()));
    (MonitorServer::new(&config, monitor, ear), ear)
}

/// The same, where nobody need hear it.
pub fn server(rules: &[RulePlan], hands_over: bool) -> Watchdog {
    heard(rules, hands_over).0
}
