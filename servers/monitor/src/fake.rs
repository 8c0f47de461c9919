// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel for tests: remembers what p2m was asked, and answers for it.

use crate::{MonitorServer, Outside, Standard};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Mutex;
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Answer, Op, Refusal, WORDS};
use trellis_idl::layout::watched;
use trellis_idl::plan::{EventPlan, MAX_EVENT_RULES, MAX_RULES, MonitorConfig, RulePlan, WatchedPlan};
use trellis_idl::wire::{P2mOp, ToRoot, VcpuOp, to_answer};
use trellis_runtime::System;

/// First byte of the guest's memory.
pub const MEMORY: u64 = 0x4000_0000;

/// Time stands still; p2m does what it is asked, piece by piece, until it is told to refuse.
pub struct Fake {
    asked: RefCell<Vec<[u64; WORDS]>>,
    buffer: RefCell<[u8; 4096]>,
    refusing: Cell<bool>,
    /// What the vcpu server was asked, and what it says: an answer and its word.
    completed: RefCell<Vec<[u64; WORDS]>>,
    completes: Cell<(Result<Answer, Refusal>, u64)>,
    /// What it was asked to let hear.
    listened: RefCell<Vec<[u64; WORDS]>>,
    /// Memory of the guest, its registers, and what was done to its vCPUs.
    pub memory: RefCell<Vec<u8>>,
    pub registers: RefCell<BTreeMap<(u64, u64), u64>>,
    pub done: RefCell<Vec<(Op, [u64; 6])>>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            asked: RefCell::default(),
            buffer: RefCell::new([0; 4096]),
            refusing: Cell::new(false),
            completed: RefCell::default(),
            completes: Cell::new((Err(Refusal::Unsupported), 0)),
            listened: RefCell::default(),
            memory: RefCell::default(),
            registers: RefCell::default(),
            done: RefCell::default(),
        }
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

    /// What the vcpu server was asked to let hear since this was asked last.
    pub fn listened(&self) -> Vec<[u64; WORDS]> {
        self.listened.take()
    }

    pub fn refuse(&self) {
        self.refusing.set(true);
    }
}

impl System for Fake {
    fn invoke(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        match op {
            Op::Clock => Ok([1_000, 1_000_000, 0]),
            Op::VcpuGet => Ok([0, self.registers.borrow().get(&(a[0], a[1])).copied().ok_or(Refusal::BadState)?, 0]),
            Op::VcpuSet => {
                self.registers.borrow_mut().insert((a[0], a[1]), a[2]);
                Ok([0; 3])
            }
            Op::VcpuStop | Op::VcpuStart => {
                self.done.borrow_mut().push((op, a));
                Ok([(op == Op::VcpuStop && a[0] == watched::vcpu(0, 1)).into(), 0, 0])
            }
            _ => Err(Refusal::NoCapability),
        }
    }

    fn read_guest(&self, guest: u64, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        assert_eq!(guest, watched::guest(0));
        let memory = self.memory.borrow();
        let there = address.checked_sub(MEMORY).and_then(|at| memory.get(at as usize..)).unwrap_or_default();
        let count = there.len().min(bytes.len());
        bytes[..count].copy_from_slice(&there[..count]);
        Ok(count as u64)
    }

    fn write_guest(&self, guest: u64, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        assert_eq!(guest, watched::guest(0));
        let mut memory = self.memory.borrow_mut();
        let there = address.checked_sub(MEMORY).and_then(|at| memory.get_mut(at as usize..)).unwrap_or_default();
        let count = there.len().min(bytes.len());
        there[..count].copy_from_slice(&bytes[..count]);
        Ok(count as u64)
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        if (watched::vcpu_server(0, 0)..=watched::vcpu_server(0, 2)).contains(&portal) && words[0] == ATTACH {
            return Ok(interface::VCPU.to_words(0));
        }
        if portal == watched::vcpu_server(0, 2) {
            assert_eq!(words[0], VcpuOp::Listen as u64, "the control thread asks for nothing else");
            self.listened.borrow_mut().push(words);
            return Ok([if self.refusing.get() { to_answer(Err(Refusal::Occupied)) } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
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
    hearing(rules, &[], hands_over)
}

/// The guest that is watched.
pub const WEB: WatchedPlan<'static> = WatchedPlan { name: "web", session: 0, view: 1, vcpus: 2, first_page: MEMORY / 4096, pages: 0x1000, gic: 3, reports: 0 };

/// The same, with rules about other events.
pub fn hearing(rules: &[RulePlan], events: &[EventPlan], hands_over: bool) -> (Watchdog, &'static Ear) {
    let rules = heapless::Vec::from_slice(&rules[..rules.len().min(MAX_RULES)]).expect("no more than fit");
    let events = heapless::Vec::from_slice(&events[..events.len().min(MAX_EVENT_RULES)]).expect("no more than fit");
    let config = MonitorConfig { guests: heapless::Vec::from_slice(&[WEB]).expect("one"), rules, events, hands_over, threads: 2 };
    let monitor = Standard::new(&config.rules, &config.events);
    let ear = Box::leak(Box::new(Ear::default()));
    (MonitorServer::new(&config, monitor, ear), ear)
}

/// The same, where nobody need hear it.
pub fn server(rules: &[RulePlan], hands_over: bool) -> Watchdog {
    heard(rules, hands_over).0
}
