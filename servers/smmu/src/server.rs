// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server on the board: whose devices see what, by its configuration, and what root may ask of it. One thread answers
//! root; another reads what the SMMU says of accesses that it stopped.

use crate::driver::{EVENTS_LOST, Failure, Queue, Smmu};
use crate::event::Event;
use crate::limit::{Limit, MOST_EVENTS};
use crate::stream::Entry;
use trellis_idl::interface::{self, ATTACH};
use trellis_idl::kernel::{Exit, Refusal, WORDS};
use trellis_idl::layout::{badge as badges, slot, smmu_signal};
use trellis_idl::plan::{MAX_STREAMS, SmmuConfig, StreamPlan};
use trellis_idl::wire::{SmmuOp, Stopped, to_answer};
use trellis_runtime::handle::clock;
use trellis_runtime::memory::Hardware;
use trellis_runtime::{Line, Reply, Shared, System, log, message};

/// What is said where the queue had no room.
const LOST: &str = "accesses were stopped of which nobody can tell: the queue was full";
/// Milliseconds in which little is told of each device ([`crate::limit`]).
const WINDOW_MS: u64 = 1000;

/// The server.
#[derive(Debug)]
pub struct Server<H: Hardware> {
    config: SmmuConfig,
    smmu: Shared<Smmu<H>>,
    queue: Queue<H>,
}

impl<H: Hardware + Clone> Server<H> {
    /// Brings the SMMU up, or takes it over.
    pub fn start(hardware: H, config: SmmuConfig) -> Result<Server<H>, Failure> {
        let smmu = Shared::new(Smmu::start(hardware.clone(), &config)?);
        let queue = Queue::new(hardware);
        // The one before may have had enough of them.
        queue.listen(true);
        Ok(Server { config, smmu, queue })
    }

    /// The streams of a guest's devices.
    fn streams(&self, guest: u64) -> impl Iterator<Item = &StreamPlan> {
        self.config.streams.iter().filter(move |stream| u64::from(stream.guest) == guest)
    }

    /// Devices of a guest see what the plan says. Where each does already, nothing changes.
    fn attach(&self, system: &impl System, guest: u64, frames: u64) -> Result<(), Failure> {
        let mut smmu = self.smmu.lock(system);
        let bits = self.config.stream_bits;
        let is_there = |stream: &StreamPlan| !smmu.is_stopped(bits, stream.number);
        if self.streams(guest).next().is_some() && self.streams(guest).all(is_there) {
            return Ok(());
        }
        // Some may see a space that is made again now.
        self.stop(&mut smmu, guest)?;
        let place = self.config.spaces.iter().position(|space| u64::from(space.guest) == guest);
        let space = match place {
            Some(place) => Some(smmu.space(bits, &self.config.spaces, place, frames)?),
            None => None,
        };
        for stream in self.streams(guest) {
            let entry = if stream.protected { space.ok_or(Failure::Unknown)? } else { Entry::open() };
            smmu.open(bits, stream.number, &entry)?;
        }
        Ok(())
    }

    fn detach(&self, system: &impl System, guest: u64) -> Result<(), Failure> {
        let mut smmu = self.smmu.lock(system);
        self.stop(&mut smmu, guest)
    }

    fn stop(&self, smmu: &mut Smmu<H>, guest: u64) -> Result<(), Failure> {
        // One without devices has no space either.
        self.streams(guest).next().ok_or(Failure::Unknown)?;
        for stream in self.streams(guest) {
            smmu.stop(self.config.stream_bits, stream.number)?;
        }
        smmu.forget(guest as u8)
    }

    /// Waits for events, and tells of them. Never comes back.
    pub fn attend(&self, system: &impl System, tell: impl Fn(Stopped)) -> ! {
        let mut told = Told::new(system);
        // What came before this server did comes now.
        let mut woken = smmu_signal::EVENTS | smmu_signal::ERROR;
        loop {
            let deadline = self.heard(system, woken, &mut told, &tell);
            woken = system.wait(smmu_signal::EVENTS | smmu_signal::ERROR, deadline);
        }
    }

    /// Takes what there is. Back: when to look again though nothing comes; 0 = never.
    pub fn heard(&self, system: &impl System, woken: u64, told: &mut Told, tell: &impl Fn(Stopped)) -> u64 {
        // Lines first: what comes from here on raises them again.
        for (bit, line) in [(smmu_signal::EVENTS, slot::SMMU_LINE), (smmu_signal::ERROR, slot::SMMU_ERROR)] {
            if woken & bit != 0 {
                // It cannot be refused, and if it is nothing comes of it.
                let _ = Line::at(line).acknowledge(system);
            }
        }
        self.end_window(system, told, tell);
        if woken & smmu_signal::ERROR != 0 && !told.has_errors {
            // What else goes wrong in this window is seen at its end.
            told.has_errors = self.has_errors();
        }
        while told.events < MOST_EVENTS
            && let Some(event) = self.queue.take()
        {
            told.events += 1;
            self.tell(&event, told, tell);
        }
        if told.events >= MOST_EVENTS && told.listens {
            // Until the window ends: whoever does nothing else keeps nobody from his work.
            told.listens = false;
            self.queue.listen(false);
        }
        if told.is_new() { 0 } else { told.end }
    }

    /// Where a window has ended, what was not told of it is.
    fn end_window(&self, system: &impl System, told: &mut Told, tell: &impl Fn(Stopped)) {
        let (now, hz) = clock(system);
        if now < told.end {
            return;
        }
        told.end = now + hz * WINDOW_MS / 1000;
        if core::mem::replace(&mut told.has_errors, false) {
            self.has_errors();
        }
        if self.queue.lost() {
            log!("{LOST}");
        }
        for (limit, last) in &mut told.devices {
            if let (Some(more), Some(last)) = (limit.end(), *last) {
                tell(Stopped { more, ..last });
            }
        }
        (told.events, told.strangers) = (0, 0);
        if !core::mem::replace(&mut told.listens, true) {
            self.queue.listen(true);
        }
    }

    /// Whether something is wrong with it, which is said.
    fn has_errors(&self) -> bool {
        match self.queue.errors() {
            0 => return false,
            EVENTS_LOST => log!("{LOST}"),
            errors => log!("the SMMU has errors: {errors:#x}"),
        }
        true
    }

    fn tell(&self, event: &Event, told: &mut Told, tell: &impl Fn(Stopped)) {
        let stream = self.config.streams.iter().position(|stream| stream.number == event.stream);
        let Some((index, plan)) = stream.and_then(|index| Some((index, self.config.streams.get(index)?))) else {
            told.strangers += 1;
            if told.strangers == 1 {
                log!("stream {:#x}, which is no guest's, was stopped at {:#x} (event {:#x})", event.stream, event.address, event.number);
            }
            return;
        };
        let Some((limit, last)) = told.devices.get_mut(index) else { return };
        let Event { address, number, writes, .. } = *event;
        let stopped = Stopped { guest: plan.guest, line: plan.line, address, event: number, writes, more: 0 };
        *last = Some(stopped);
        if let Some(more) = limit.event() {
            tell(Stopped { more, ..stopped });
        }
    }
}

/// What was told lately.
#[derive(Debug)]
pub struct Told {
    /// When this window ends.
    end: u64,
    /// Events of this window, and those of nobody's streams.
    events: u32,
    strangers: u32,
    /// The SMMU raises its line.
    listens: bool,
    /// Something was wrong with it in this window.
    has_errors: bool,
    /// Of each stream of the configuration: how much, and what came last.
    devices: [(Limit, Option<Stopped>); MAX_STREAMS],
}

impl Told {
    /// Nothing yet.
    pub fn new(system: &impl System) -> Told {
        let (now, hz) = clock(system);
        let devices = [(Limit::default(), None); MAX_STREAMS];
        Told { end: now + hz * WINDOW_MS / 1000, events: 0, strangers: 0, listens: true, has_errors: false, devices }
    }

    /// Nothing of this window need be told when it ends.
    const fn is_new(&self) -> bool {
        self.events == 0 && self.listens && !self.has_errors
    }
}

impl<H: Hardware + Clone> trellis_runtime::Server for Server<H> {
    fn exit(&self, _: &impl System, _: u64, _: &Exit) -> Reply {
        // No vCPU's exits are routed here.
        Reply::Call([0; WORDS])
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        if words[0] == ATTACH {
            return message::attached(interface::SMMU, &words);
        }
        let mut answer = [0; WORDS];
        if badges::kind(badge) != badges::ROOT {
            answer[0] = to_answer(Err(Refusal::MissingRight));
            return Reply::Call(answer);
        }
        let done = match SmmuOp::from_number(words[0]) {
            Some(SmmuOp::Attach) => self.attach(system, words[1], words[2]).map_err(|why| (words[1], why)),
            Some(SmmuOp::Detach) => self.detach(system, words[1]).map_err(|why| (words[1], why)),
            None => {
                answer[0] = to_answer(Err(Refusal::NoOperation));
                return Reply::Call(answer);
            }
        };
        answer[0] = to_answer(done.map_err(|(guest, why)| {
            log!("devices of guest {guest}: {why:?}");
            Refusal::BadState
        }));
        Reply::Call(answer)
    }
}
