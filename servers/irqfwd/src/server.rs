// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server on the board: which lines of which guests it forwards, by its configuration, and what root may ask of it.
//!
//! One thread a CPU serves that CPU's queue, and one more answers root. What an earlier server had is taken over: lines
//! that are sources stay so, and what it was serving comes again once they are bound here.

use crate::delays::STEPS;
use crate::its::Failure;
use crate::messages::{Gate, Nobody};
use crate::{Counters, Forwarder, Limit, Post, Queue, Wish, Woken};
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Exit, FIRST_MESSAGE, Refusal, WORDS};
use trellis_idl::layout::{badge as badges, slot};
use trellis_idl::plan::{IrqfwdConfig, MAX_SOURCES, MAX_VCPUS, SourcePlan};
use trellis_idl::wire::{IrqfwdOp, to_answer};
use trellis_runtime::handle::clock;
use trellis_runtime::{Line, Machine, Reply, Server, Shared, Signal, System, Vcpu, log, message};

/// Interrupts of a line, in as many milliseconds, that are no storm.
const MOST: u32 = 500;
const WINDOW_MS: u64 = 10;
/// Milliseconds for which a line that came more often is masked.
const COOL_DOWN_MS: u64 = 20;

/// Milliseconds for which functions that nobody used are waited for at the start.
const PATIENCE: u32 = 1000;

/// No source.
const NONE: u16 = u16::MAX;

/// The server.
#[derive(Debug)]
pub struct Irqfwd<G: 'static = Nobody> {
    config: IrqfwdConfig,
    /// Too much for a stack, on which a server is made.
    forwarder: &'static Forwarder<G>,
    /// Who makes lines of messages, if anybody.
    gate: Option<G>,
    /// The source of each line of the configuration, or [`NONE`].
    sources: Shared<[u16; MAX_SOURCES]>,
    limit: Limit,
    /// What an earlier server was serving is in the queues again.
    adopted: Shared<bool>,
    /// Guests of which something is not ready yet, one bit each.
    waiting: Shared<u32>,
}

impl<G: Gate> Irqfwd<G> {
    /// Binds every line whose guest is there.
    pub fn start(
        system: &impl System, config: IrqfwdConfig, forwarder: &'static Forwarder<G>, gate: Option<G>,
    ) -> Irqfwd<G> {
        let (_, hertz) = clock(system);
        let ticks = |milliseconds: u64| hertz * milliseconds / 1000;
        let limit = Limit { most: MOST, window: ticks(WINDOW_MS), cool_down: ticks(COOL_DOWN_MS) };
        let sources = Shared::new([NONE; MAX_SOURCES]);
        let server = Irqfwd { config, forwarder, gate, sources, limit, adopted: Shared::new(false), waiting: Shared::new(0) };
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

    /// Waits until functions are ready that nobody used, so that guests find them when root has been answered. Only whoever answers root
    /// does that: nobody waits for the clock with a lock, or with interrupts to serve.
    pub fn settle(&self, system: &impl System) {
        for _ in 0..PATIENCE {
            let waiting = *self.waiting.lock(system);
            if waiting == 0 {
                return;
            }
            let (now, hertz) = clock(system);
            system.wait(0, now + hertz / 1000 + 1);
            for guest in (0..self.config.guests.len() as u64).filter(|guest| waiting >> guest & 1 == 1) {
                // What is refused still is tried the next time.
                let _ = self.bind(system, guest);
            }
        }
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
            let wish = self.wish(index, plan);
            if is_message(plan.line) && wish.gate.is_none() {
                result = Err(Refusal::Unsupported);
                continue;
            }
            match self.forwarder.bind(system, wish) {
                Ok(source) => *place = source,
                Err(refusal) => result = Err(refusal),
            }
        }
        // Whose lines cannot come makes no accesses: its guest has ended, or something of it is on its way.
        let result = result.and_then(|()| self.connect(system, guest));
        let (mut waiting, bit) = (self.waiting.lock(system), 1 << (guest & 31));
        *waiting = if result == Err(Refusal::Again) { *waiting | bit } else { *waiting & !bit };
        result
    }

    /// What a guest owns may write messages, once they are heard.
    fn connect(&self, system: &impl System, guest: u64) -> Result<(), Refusal> {
        let Some(gate) = self.gate.as_ref() else { return Ok(()) };
        gate.connect(system, guest as u8).map_err(|why| refused(guest, why))
    }

    /// It may not, touches no memory, and forgets what it was told.
    fn disconnect(&self, system: &impl System, guest: u64) -> Result<(), Refusal> {
        let Some(gate) = self.gate.as_ref() else { return Ok(()) };
        gate.disconnect(system, guest as u8).map_err(|why| refused(guest, why))
    }

    fn wish(&self, index: usize, plan: &SourcePlan) -> Wish<G> {
        let cpus = self.config.guests.get(usize::from(plan.guest)).cloned().unwrap_or_default();
        let first = slot::VCPUS + u64::from(plan.guest) * MAX_VCPUS as u64;
        let vcpus = (first..).take(cpus.len()).map(Vcpu::at).collect();
        let line = Line::at(slot::LINE + index as u64);
        let (guest_line, number, direct) = (plan.guest_line, plan.line, plan.direct);
        let gate = self.gate.clone().filter(|_| is_message(number));
        Wish { line, guest_line, vcpus, cpus, limit: self.limit, direct, number, gate }
    }

    fn unbind(&self, system: &impl System, guest: u64) -> Result<(), Refusal> {
        let queue = Queue::of_any(Machine::at(slot::SYSTEM));
        let mut result = self.disconnect(system, guest);
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

    /// A guest's vCPU is on another CPU, and root has put its capability where the old one was. Its lines come there if a
    /// thread serves that CPU, and else where they came before.
    fn moved(&self, system: &impl System, [guest, number, cpu]: [u64; 3]) -> Result<(), Refusal> {
        let all = self.config.guests.get(guest as usize).ok_or(Refusal::OutOfRange)?;
        let before = *all.get(number as usize).ok_or(Refusal::OutOfRange)?;
        let is_served = self.config.guests.iter().flatten().any(|served| u64::from(*served) == cpu);
        let cpu = if is_served { cpu as u8 } else { before };
        let vcpu = Vcpu::at(slot::VCPUS + guest * MAX_VCPUS as u64 + number);
        let sources = self.sources.lock(system);
        let places = self.lines(guest).filter_map(|(index, _)| sources.get(index)).filter(|place| **place != NONE);
        let mut result = Ok(());
        for place in places {
            let moved = self.forwarder.moved(system, *place, number as usize, vcpu, cpu);
            result = result.and(moved);
        }
        result
    }

    /// A guest of the configuration.
    fn guest(&self, guest: u64) -> Result<u64, Refusal> {
        if guest < self.config.guests.len() as u64 { Ok(guest) } else { Err(Refusal::OutOfRange) }
    }

    /// The source of a line of the configuration.
    fn source(&self, system: &impl System, index: u64) -> Result<u16, Refusal> {
        let sources = self.sources.lock(system);
        let place = usize::try_from(index).ok().and_then(|index| sources.get(index)).ok_or(Refusal::OutOfRange)?;
        if *place == NONE { Err(Refusal::Gone) } else { Ok(*place) }
    }

    fn count(&self, system: &impl System, index: u64) -> Result<[u64; 6], Refusal> {
        let all = self.forwarder.counters(system, self.source(system, index)?).ok_or(Refusal::Gone)?;
        Ok([all.taken, all.passed, all.direct, all.waited, all.storms, all.moved])
    }

    fn restore(&self, system: &impl System, words: &[u64; WORDS]) -> Result<(), Refusal> {
        let [_, index, taken, passed, waited, storms, moved, unknown, ..] = *words;
        let before = Counters { taken, passed, direct: 0, moved, waited, storms };
        self.forwarder.restore(system, self.source(system, index)?, before, [0; STEPS - 1], unknown)
    }

    fn restore_delays(&self, system: &impl System, words: &[u64; WORDS]) -> Result<(), Refusal> {
        let [_, index, longer @ ..] = *words;
        self.forwarder.restore(system, self.source(system, index)?, Counters::default(), longer, 0)
    }

    fn delays(&self, system: &impl System, index: u64) -> Result<[u64; STEPS], Refusal> {
        self.forwarder.delays(system, self.source(system, index)?).ok_or(Refusal::Gone)
    }
}

/// Says what is wrong with a function, if it is not that it needs more time.
fn refused(guest: u64, why: Failure) -> Refusal {
    if why == Failure::NotYet {
        return Refusal::Again;
    }
    log!("a function of guest {guest}: {why:?}");
    Refusal::BadState
}

fn is_message(line: u32) -> bool {
    u64::from(line) >= FIRST_MESSAGE
}

/// CPUs that have a vCPU of a guest with a device: each has a thread.
fn cpus(config: &IrqfwdConfig) -> u64 {
    let all = config.guests.iter().flatten().fold(0u64, |all, cpu| all | 1 << (cpu & 63));
    all.count_ones().into()
}

impl<G: Gate> Server for Irqfwd<G> {
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
            Some(IrqfwdOp::Bind) => self.guest(words[1]).and_then(|guest| self.bind(system, guest)),
            Some(IrqfwdOp::Unbind) => self.guest(words[1]).and_then(|guest| self.unbind(system, guest)),
            Some(IrqfwdOp::Moved) => self.moved(system, [words[1], words[2], words[3]]),
            Some(IrqfwdOp::Count) => self.count(system, words[1]).map(|counts| answer[1..7].copy_from_slice(&counts)),
            Some(IrqfwdOp::Delays) => self.delays(system, words[1]).map(|delays| answer[1..].copy_from_slice(&delays)),
            Some(IrqfwdOp::Restore) => self.restore(system, &words),
            Some(IrqfwdOp::Disconnect) => self.guest(words[1]).and_then(|guest| self.disconnect(system, guest)),
            Some(IrqfwdOp::Connect) => self.guest(words[1]).and_then(|guest| self.connect(system, guest)),
            Some(IrqfwdOp::RestoreDelays) => self.restore_delays(system, &words),
            None => Err(Refusal::NoOperation),
        });
        Reply::Call(answer)
    }
}
