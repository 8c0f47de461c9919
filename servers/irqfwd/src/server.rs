// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server on the board: which lines of which guests it forwards, by its configuration, and what root may ask of it.
//!
//! One thread a CPU serves that CPU's queue, and one more answers root. What an earlier server had is taken over: lines
//! that are sources stay so, and what it was serving comes again once they are bound here.

use crate::{Forwarder, Limit, Post, Queue, Wish, Woken};
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Exit, Refusal, WORDS};
use trellis_idl::layout::{badge as badges, slot};
use trellis_idl::plan::{IrqfwdConfig, MAX_SOURCES, MAX_VCPUS, SourcePlan};
use trellis_idl::wire::{IrqfwdOp, to_answer};
use trellis_runtime::handle::clock;
use trellis_runtime::{Line, Machine, Reply, Server, Shared, Signal, System, Vcpu, message};

/// Interrupts of a line, in as many milliseconds, that are no storm.
const MOST: u32 = 500;
const WINDOW_MS: u64 = 10;
/// Milliseconds for which a line that came more often is masked.
const COOL_DOWN_MS: u64 = 20;

/// No source.
const NONE: u16 = u16::MAX;

/// The server.
#[derive(Debug)]
pub struct Irqfwd {
    config: IrqfwdConfig,
    forwarder: Forwarder,
    /// The source of each line of the configuration, or [`NONE`].
    sources: Shared<[u16; MAX_SOURCES]>,
    limit: Limit,
    /// What an earlier server was serving is in the queues again.
    adopted: Shared<bool>,
}

impl Irqfwd {
    /// Binds every line whose guest is there.
    pub fn start(system: &impl System, config: IrqfwdConfig) -> Irqfwd {
        let (_, hertz) = clock(system);
        let ticks = |milliseconds: u64| hertz * milliseconds / 1000;
        let limit = Limit { most: MOST, window: ticks(WINDOW_MS), cool_down: ticks(COOL_DOWN_MS) };
        let sources = Shared::new([NONE; MAX_SOURCES]);
        let server = Irqfwd { config, forwarder: Forwarder::new(), sources, limit, adopted: Shared::new(false) };
        server.bind_all(system);
        server
    }

    /// The queue of a thread's CPU is its own from now on. The first thread also has served again what an earlier server was
    /// serving; the others wait for that, lest their services be taken for such.
    pub fn post(&self, system: &impl System, thread: usize) -> Result<Post, Refusal> {
        let (machine, signal) = (Machine::at(slot::SYSTEM), Signal::at(slot::QUEUE + thread as u64));
        let mut adopted = self.adopted.lock(system);
        let queue = Queue::open(system, machine, signal, !*adopted)?;
        let mut post = Post::new(queue);
        if !core::mem::replace(&mut *adopted, true) {
            self.forwarder.serve_all(system, &mut post);
            // Lines that were leaving have left.
            self.bind_all(system);
        }
        Ok(post)
    }

    /// Whether a thread answers root, and serves no queue.
    pub fn is_control(&self, thread: usize) -> bool {
        thread as u64 >= cpus(&self.config)
    }

    /// Serves what this thread was woken for, and waits for the next ([`Forwarder::step`]).
    #[inline]
    pub fn step(&self, system: &impl System, post: &mut Post, woken: Woken) -> Result<Woken, Refusal> {
        self.forwarder.step(system, post, woken)
    }

    fn bind_all(&self, system: &impl System) {
        for guest in 0..self.config.guests.len() as u64 {
            // Refused: it has ended, or something of it is on its way; root asks for it when it starts again.
            let _ = self.bind(system, guest);
        }
    }

    /// The lines of a guest, with their places in the configuration.
    fn lines(&self, guest: u64) -> impl Iterator<Item = (usize, &SourcePlan)> {
        self.config.sources.iter().enumerate().filter(move |(_, source)| u64::from(source.guest) == guest)
    }

    fn bind(&self, system: &impl System, guest: u64) -> Result<(), Refusal> {
        let mut result = Ok(());
        for (index, plan) in self.lines(guest) {
            let mut sources = self.sources.lock(system);
            let Some(place) = sources.get_mut(index).filter(|place| **place == NONE) else { continue };
            match self.forwarder.bind(system, self.wish(index, plan)) {
                Ok(source) => *place = source,
                Err(refusal) => result = Err(refusal),
            }
        }
        result
    }

    fn wish(&self, index: usize, plan: &SourcePlan) -> Wish {
        let cpus = self.config.guests.get(usize::from(plan.guest)).cloned().unwrap_or_default();
        let first = slot::VCPUS + u64::from(plan.guest) * MAX_VCPUS as u64;
        let vcpus = (first..).take(cpus.len()).map(Vcpu::at).collect();
        Wish { line: Line::at(slot::LINE + index as u64), vcpus, cpus, limit: self.limit, direct: plan.direct, number: plan.line }
    }

    fn unbind(&self, system: &impl System, guest: u64) -> Result<(), Refusal> {
        let queue = Queue::of_any(Machine::at(slot::SYSTEM));
        let mut result = Ok(());
        for (index, _) in self.lines(guest) {
            let mut sources = self.sources.lock(system);
            let Some(place) = sources.get_mut(index).filter(|place| **place != NONE) else { continue };
            match self.forwarder.unbind(system, *place, queue) {
                Ok(()) => *place = NONE,
                Err(refusal) => result = Err(refusal),
            }
        }
        result
    }

    fn count(&self, system: &impl System, index: u64) -> Result<[u64; 6], Refusal> {
        let sources = self.sources.lock(system);
        let place = usize::try_from(index).ok().and_then(|index| sources.get(index)).ok_or(Refusal::OutOfRange)?;
        let all = self.forwarder.counters(system, *place).filter(|_| *place != NONE).ok_or(Refusal::Gone)?;
        Ok([all.taken, all.passed, all.direct, all.dropped, all.storms, all.moved])
    }
}

/// CPUs that have a vCPU of a guest with a device: each has a thread.
fn cpus(config: &IrqfwdConfig) -> u64 {
    let all = config.guests.iter().flatten().fold(0u64, |all, cpu| all | 1 << (cpu & 63));
    all.count_ones().into()
}

impl Server for Irqfwd {
    fn exit(&self, _: &impl System, _: u64, _: &Exit) -> Reply {
        // No vCPU's exits are routed here.
        Reply::Call([0; WORDS])
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::IRQFWD, &words);
        }
        let mut answer = [0; WORDS];
        if badges::kind(badge) != badges::ROOT {
            answer[0] = to_answer(Err(Refusal::MissingRight));
            return Reply::Call(answer);
        }
        answer[0] = to_answer(match IrqfwdOp::from_number(words[0]) {
            Some(IrqfwdOp::Bind) => self.bind(system, words[1]),
            Some(IrqfwdOp::Unbind) => self.unbind(system, words[1]),
            Some(IrqfwdOp::Count) => self.count(system, words[1]).map(|counts| answer[1..7].copy_from_slice(&counts)),
            None => Err(Refusal::NoOperation),
        });
        Reply::Call(answer)
    }
}
