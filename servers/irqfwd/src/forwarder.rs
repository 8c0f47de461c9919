// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server: takes what came to a CPU, and hands each interrupt to the vCPU that the guest sends it to.
//!
//! Threads, one a CPU, share it; each source has a lock of its own, and what belongs to different sources never meets.
//! Which vCPU a line goes to the kernel knows; here is remembered where it went last, and the others are tried when that
//! is refused. While the guest is just moving the line, or a vCPU has moved and its new name is not known here, no vCPU has
//! it: the service is kept and tried again for as long as the line is bound, since nobody else would ever end the line.

use crate::binding::{self, Leaving, Masked, Open};
use crate::delays::{Delays, STEPS};
use crate::messages::{Gate, Nobody};
use crate::queue::{Queue, Served, Woken};
use crate::storm::{Limit, Storm};
use heapless::Vec;
use trellis_idl::kernel::{Op, Refusal};
use trellis_idl::plan::MAX_VCPUS;
use trellis_runtime::handle::clock;
use trellis_runtime::{Line, Shared, System, Vcpu, log};

/// Sources that the kernel has.
pub const SOURCES: usize = 64;
/// The part of a second after which a service that no vCPU takes is tried again the first time. Each time it is twice as
/// long, up to a second.
const FIRST_TRY: u64 = 20_000;

/// What a source shall do.
#[derive(Clone, Debug)]
pub struct Wish<G = Nobody> {
    /// The physical line.
    pub line: Line,
    /// The guest's line that it comes as; 0 = that of its number.
    pub guest_line: u8,
    /// The guest's vCPUs in order of their numbers.
    pub vcpus: Vec<Vcpu, MAX_VCPUS>,
    /// The CPU that each is on.
    pub cpus: Vec<u8, MAX_VCPUS>,
    /// What is too much.
    pub limit: Limit,
    /// The physical line's number, for reports.
    pub number: u32,
    /// The kernel hands it to the vCPU that it goes to, and this server sees only what that vCPU does not take.
    pub direct: bool,
    /// Who masks it and sends it to a CPU, where messages make it.
    pub gate: Option<G>,
}

/// What a source did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Services taken out of queues.
    pub taken: u64,
    /// Interrupts handed to a vCPU.
    pub passed: u64,
    /// Interrupts that went straight to a vCPU.
    pub direct: u64,
    /// Times that they went to another vCPU than before.
    pub moved: u64,
    /// Services that no vCPU took at first.
    pub waited: u64,
    /// Times that it was masked since it came too often.
    pub storms: u64,
}

impl Counters {
    fn add(&mut self, more: &Counters) {
        let Counters { taken, passed, direct, moved, waited, storms } = more;
        let own = [&mut self.taken, &mut self.passed, &mut self.direct, &mut self.moved, &mut self.waited, &mut self.storms];
        for (own, more) in own.into_iter().zip([taken, passed, direct, moved, waited, storms]) {
            *own = own.saturating_add(*more);
        }
    }
}

/// Where a line is in its life.
#[derive(Debug)]
enum Stage<G> {
    Open(Open<G>),
    /// Masked by whoever owns it.
    Masked(Masked<G>),
    /// Masked since it came too often, until then.
    Cooling(Masked<G>, u64),
    Leaving(Leaving),
    /// Only for as long as it goes from one to the other.
    Between,
}

#[derive(Debug)]
struct Source<G> {
    stage: Stage<G>,
    wish: Wish<G>,
    /// The vCPU that took the last one, by its place in the wish.
    target: usize,
    storm: Storm,
    counters: Counters,
    delays: Delays,
    /// Ticks of a second.
    hertz: u64,
    held: Option<Held>,
}

/// A service that no vCPU took yet.
#[derive(Debug)]
struct Held {
    served: Served,
    /// Times that it was tried.
    tries: u32,
    /// When it will be again.
    at: u64,
    /// When it was tried first.
    since: u64,
}

/// A thread's place at its CPU's queue.
#[derive(Debug)]
pub struct Post {
    queue: Queue,
    /// Bits of its signal word that end its wait as well.
    others: u64,
    /// When something is to be done though nothing comes; 0 = never.
    deadline: u64,
}

impl Post {
    /// The thread serves this queue and nothing else.
    pub const fn new(queue: Queue) -> Post {
        Post { queue, others: 0, deadline: 0 }
    }

    /// It also wants to know of these bits.
    pub const fn with(queue: Queue, others: u64) -> Post {
        Post { queue, others, deadline: 0 }
    }

    /// Waits for the next.
    pub fn wait(&self, system: &impl System) -> Result<Woken, Refusal> {
        self.queue.next(system, self.others, self.deadline)
    }
}

/// The server.
#[derive(Debug)]
pub struct Forwarder<G = Nobody> {
    sources: [Shared<Option<Source<G>>>; SOURCES],
}

impl<G: Gate> Default for Forwarder<G> {
    fn default() -> Self {
        Self::new()
    }
}

impl<G: Gate> Forwarder<G> {
    /// Nothing is forwarded.
    pub const fn new() -> Forwarder<G> {
        Forwarder { sources: [const { Shared::new(None) }; SOURCES] }
    }

    #[inline(always)]
    fn at(&self, source: u16) -> &Shared<Option<Source<G>>> {
        &self.sources[source as usize % SOURCES]
    }

    /// Forwards a line to a guest. Back: the number of its source.
    pub fn bind(&self, system: &impl System, wish: Wish<G>) -> Result<u16, Refusal> {
        if wish.vcpus.is_empty() || wish.vcpus.len() != wish.cpus.len() {
            return Err(Refusal::BadArgument);
        }
        let (number, _) = wish.line.forward(system, wish.guest_line)?;
        let cpu = wish.cpus.first().copied().unwrap_or(0);
        // Nobody gets a service of it before it is open, and then this lock is to be taken.
        let mut source = self.at(number).lock(system);
        if source.is_some() {
            return Err(Refusal::Occupied);
        }
        let gate = wish.gate.clone().map(|gate| (gate, wish.number));
        let masked = binding::bind(system, wish.line, wish.guest_line, &wish.vcpus, wish.direct, gate)?;
        let (stage, result) = match masked.open(system, cpu) {
            Ok(open) => (Stage::Open(open), Ok(number)),
            Err((masked, refusal)) => (Stage::Leaving(masked.leave(system, &wish.vcpus)), Err(refusal)),
        };
        if let Stage::Leaving(leaving) = &stage {
            // It never came: nobody has it.
            let _ = leaving.is_free(system);
            return result;
        }
        let (now, hertz) = clock(system);
        let (storm, counters, delays) = (Storm::new(wish.limit, now), Counters::default(), Delays::default());
        *source = Some(Source { stage, wish, target: 0, storm, counters, delays, hertz, held: None });
        result
    }

    /// Ends that. `Again`: a service is on its way still; the same call later ends it. What is not bound is unbound.
    pub fn unbind(&self, system: &impl System, source: u16, queue: Queue) -> Result<(), Refusal> {
        let mut place = self.at(source).lock(system);
        let Some(source) = place.as_mut() else { return Ok(()) };
        if let Some(held) = source.held.take() {
            queue.done(system, held.served);
        }
        let vcpus = &source.wish.vcpus;
        source.stage = match core::mem::replace(&mut source.stage, Stage::Between) {
            Stage::Open(open) => Stage::Leaving(open.mask(system).leave(system, vcpus)),
            Stage::Masked(masked) | Stage::Cooling(masked, _) => Stage::Leaving(masked.leave(system, vcpus)),
            stage @ (Stage::Leaving(_) | Stage::Between) => stage,
        };
        if let Stage::Leaving(leaving) = &source.stage
            && !leaving.is_free(system)?
        {
            return Err(Refusal::Again);
        }
        *place = None;
        Ok(())
    }

    /// Ends it and forwards the line anew, to another guest or otherwise. `Again`: nothing is forwarded yet; the same call
    /// later goes on.
    pub fn rebind(&self, system: &impl System, source: u16, queue: Queue, wish: Wish<G>) -> Result<u16, Refusal> {
        self.unbind(system, source, queue)?;
        self.bind(system, wish)
    }

    /// Masks a line, or lets it come again.
    pub fn mask(&self, system: &impl System, source: u16, masked: bool) -> Result<(), Refusal> {
        let mut place = self.at(source).lock(system);
        let source = place.as_mut().ok_or(Refusal::Gone)?;
        match (core::mem::replace(&mut source.stage, Stage::Between), masked) {
            (Stage::Open(open), true) => {
                source.stage = Stage::Masked(open.mask(system));
                Ok(())
            }
            // Whoever wants it masked wants it so for longer than until it is calm.
            (Stage::Cooling(line, _), true) => {
                source.stage = Stage::Masked(line);
                Ok(())
            }
            (Stage::Masked(line), false) => source.open(system, line),
            (stage @ Stage::Leaving(_), _) => {
                source.stage = stage;
                Err(Refusal::BadState)
            }
            (stage, _) => {
                source.stage = stage;
                Ok(())
            }
        }
    }

    /// The guest's vCPU of this number has moved to this CPU, and is known by this capability. The line follows it if the
    /// last interrupt was its, and what waits for a vCPU is tried at once.
    pub fn moved(&self, system: &impl System, source: u16, number: usize, vcpu: Vcpu, cpu: u8) -> Result<(), Refusal> {
        let mut place = self.at(source).lock(system);
        let source = place.as_mut().ok_or(Refusal::Gone)?;
        *source.wish.vcpus.get_mut(number).ok_or(Refusal::OutOfRange)? = vcpu;
        *source.wish.cpus.get_mut(number).ok_or(Refusal::OutOfRange)? = cpu;
        if number == source.target {
            source.follow(system);
        }
        if let Some(held) = source.held.take() {
            source.pass(system, held.served, Some((held.tries, held.since)));
        }
        Ok(())
    }

    /// What a source did.
    pub fn counters(&self, system: &impl System, source: u16) -> Option<Counters> {
        let place = self.at(source).lock(system);
        let source = place.as_ref()?;
        // It stays forwarded as it is.
        let direct = source.wish.line.forward(system, source.wish.guest_line).map_or(0, |(_, direct)| direct);
        Some(Counters { direct, ..source.counters })
    }

    /// How long its interrupts waited before a vCPU had them, in the steps of [`crate::delays`].
    pub fn delays(&self, system: &impl System, source: u16) -> Option<[u64; STEPS]> {
        let place = self.at(source).lock(system);
        place.as_ref().map(|source| source.delays.of(source.counters.passed))
    }

    /// A source had done this before: an earlier server counted it, which this one has replaced. Interrupts that went straight to
    /// a vCPU are the kernel's to count.
    pub fn restore(&self, system: &impl System, source: u16, before: Counters, longer: [u64; STEPS - 1], unknown: u64) -> Result<(), Refusal> {
        let mut place = self.at(source).lock(system);
        let source = place.as_mut().ok_or(Refusal::Gone)?;
        source.counters.add(&before);
        source.delays.add(longer, unknown);
        Ok(())
    }

    /// Serves all that came to this CPU, and does what time has come for.
    pub fn serve_all(&self, system: &impl System, post: &mut Post) {
        if self.serve(system, post.queue) {
            self.look_after(system, post);
        }
    }

    /// Serves all that came to this CPU. True: something is to be done later ([`Forwarder::attend`]).
    pub fn serve(&self, system: &impl System, queue: Queue) -> bool {
        let mut waits = false;
        loop {
            let (taken, more) = queue.take(system);
            for served in taken.into_iter().flatten() {
                waits |= self.one(system, queue, served);
            }
            if !more {
                return waits;
            }
        }
    }

    /// Serves what this thread was woken for, then waits for the next: one system call, where the vCPU that got the last
    /// interrupt of its line gets this one.
    #[inline]
    pub fn step(&self, system: &impl System, post: &mut Post, woken: Woken) -> Result<Woken, Refusal> {
        let Some(served) = woken.served else {
            if woken.bits == 0 {
                self.look_after(system, post);
            }
            return post.wait(system);
        };
        let Some((served, vcpu)) = self.admit(system, post, served) else { return post.wait(system) };
        match served.pass_and_wait(system, vcpu, post.others, post.deadline) {
            Ok(woken) => Ok(woken),
            Err(served) => {
                self.refused(system, post, served);
                post.wait(system)
            }
        }
    }

    /// The vCPU that is to get it. `None`: all is done.
    #[inline]
    fn admit(&self, system: &impl System, post: &mut Post, served: Served) -> Option<(Served, Vcpu)> {
        let mut place = self.at(served.source()).lock(system);
        if let Some(source) = place.as_mut()
            && let Some(vcpu) = source.admit(&served)
        {
            return Some((served, vcpu));
        }
        drop(place);
        if self.one(system, post.queue, served) {
            self.look_after(system, post);
        }
        None
    }

    /// The vCPU that it was handed to does not take it.
    #[cold]
    fn refused(&self, system: &impl System, post: &mut Post, served: Served) {
        let mut place = self.at(served.source()).lock(system);
        // Until its service is over nobody else has the source.
        let is_held = match place.as_mut() {
            Some(source) => source.refused(system, post.queue, served),
            None => {
                post.queue.done(system, served);
                false
            }
        };
        drop(place);
        if is_held {
            self.look_after(system, post);
        }
    }

    /// Does what time has come for, and notes when to do it again.
    #[cold]
    fn look_after(&self, system: &impl System, post: &mut Post) {
        post.deadline = self.attend(system).unwrap_or(0);
    }

    /// Serves one. True: something is to be done later ([`Forwarder::attend`]).
    #[inline]
    fn one(&self, system: &impl System, queue: Queue, served: Served) -> bool {
        let mut place = self.at(served.source()).lock(system);
        match place.as_mut() {
            Some(source) => source.serve(system, queue, served),
            None => {
                queue.done(system, served);
                false
            }
        }
    }

    /// Does what time has come for: lines that were masked since they came too often, services that no vCPU took. Back: when
    /// to call again, if at any time.
    pub fn attend(&self, system: &impl System) -> Option<u64> {
        let now = now(system);
        let attend = |place: &Shared<Option<Source<G>>>| place.lock(system).as_mut()?.attend(system, now);
        self.sources.iter().filter_map(attend).min()
    }
}

impl<G: Gate> Source<G> {
    /// The vCPU that gets its next interrupt, if nothing else is to be thought of; it is counted as handed on.
    #[inline]
    fn admit(&mut self, served: &Served) -> Option<Vcpu> {
        let vcpu = *self.wish.vcpus.get(self.target)?;
        if matches!(self.stage, Stage::Leaving(_)) || !self.storm.count_quietly() {
            return None;
        }
        self.counters.taken += 1;
        self.counters.passed += 1;
        if !served.is_at_once() {
            self.delays.count(served.waited(), self.hertz);
        }
        Some(vcpu)
    }

    /// What was admitted was not taken. True: by nobody yet.
    fn refused(&mut self, system: &impl System, queue: Queue, served: Served) -> bool {
        self.counters.passed -= 1;
        self.delays.uncount(served.waited(), self.hertz);
        if matches!(self.stage, Stage::Leaving(_)) {
            queue.done(system, served);
            return false;
        }
        self.look_for(system, served, None)
    }

    #[inline]
    fn serve(&mut self, system: &impl System, queue: Queue, served: Served) -> bool {
        self.counters.taken += 1;
        if matches!(self.stage, Stage::Leaving(_)) {
            queue.done(system, served);
            return false;
        }
        let too_much = self.storm.count(|| now(system));
        let is_held = self.pass(system, served, None);
        if let Some(until) = too_much {
            self.stage = match core::mem::replace(&mut self.stage, Stage::Between) {
                Stage::Open(open) => {
                    self.counters.storms += 1;
                    too_often(self.wish.number, self.counters.storms);
                    Stage::Cooling(open.mask(system), until)
                }
                stage => stage,
            };
        }
        is_held || too_much.is_some()
    }

    /// Hands it to the vCPU that got the last one, or to whichever the guest has sent the line to since. True: to none.
    #[inline]
    fn pass(&mut self, system: &impl System, served: Served, held: Option<(u32, u64)>) -> bool {
        let Some(vcpu) = self.wish.vcpus.get(self.target) else { return false };
        let waited = served.waited();
        match served.pass(system, *vcpu) {
            Ok(()) => {
                self.passed(system, waited, held);
                false
            }
            Err((served, _)) => self.look_for(system, served, held),
        }
    }

    #[cold]
    fn look_for(&mut self, system: &impl System, mut served: Served, held: Option<(u32, u64)>) -> bool {
        let waited = served.waited();
        for (index, vcpu) in self.wish.vcpus.iter().enumerate() {
            match served.pass(system, *vcpu) {
                Ok(()) => {
                    self.passed(system, waited, held);
                    self.moved(system, index);
                    return false;
                }
                Err((back, _)) => served = back,
            }
        }
        self.counters.waited += u64::from(held.is_none());
        let now = now(system);
        let (tries, since) = held.unwrap_or((0, now));
        let part = FIRST_TRY.checked_shr(tries).unwrap_or(0).max(1);
        self.held = Some(Held { served, tries: tries.saturating_add(1), at: now + self.hertz / part + 1, since });
        true
    }

    /// It was handed on, after it was in the queue and held for so long.
    fn passed(&mut self, system: &impl System, waited: Option<u64>, held: Option<(u32, u64)>) {
        self.counters.passed += 1;
        let held = held.map_or(0, |(_, since)| now(system).saturating_sub(since));
        self.delays.count(waited.map(|waited| waited + held), self.hertz);
    }

    /// The line follows its vCPU, so that the next interrupt finds both on one CPU.
    fn moved(&mut self, system: &impl System, index: usize) {
        if index == self.target {
            return;
        }
        self.target = index;
        self.counters.moved += 1;
        self.follow(system);
    }

    /// The line comes to the CPU of its vCPU.
    fn follow(&self, system: &impl System) {
        if let (Stage::Open(open), Some(cpu)) = (&self.stage, self.wish.cpus.get(self.target)) {
            // Refused, it goes on coming to where it came before, which is slower and no worse.
            let _ = open.move_to(system, *cpu);
            if self.wish.direct && let Some(vcpu) = self.wish.vcpus.get(self.target) {
                let _ = open.direct_to(system, *vcpu);
            }
        }
    }

    /// Opens a masked line where its vCPU is.
    fn open(&mut self, system: &impl System, line: Masked<G>) -> Result<(), Refusal> {
        let cpu = self.wish.cpus.get(self.target).copied().unwrap_or(0);
        let (stage, result) = match line.open(system, cpu) {
            Ok(open) => (Stage::Open(open), Ok(())),
            Err((line, refusal)) => (Stage::Masked(line), Err(refusal)),
        };
        self.stage = stage;
        result
    }

    fn attend(&mut self, system: &impl System, now: u64) -> Option<u64> {
        if let Some(held) = self.held.take_if(|held| held.at <= now) {
            self.pass(system, held.served, Some((held.tries, held.since)));
        }
        if let Stage::Cooling(_, until) = self.stage
            && until <= now
            && let Stage::Cooling(line, _) = core::mem::replace(&mut self.stage, Stage::Between)
        {
            self.storm.calm(now);
            // Refused, it stays masked, which its owner can see.
            let _ = self.open(system, line);
        }
        let cool = if let Stage::Cooling(_, until) = self.stage { Some(until) } else { None };
        let held = self.held.as_ref().map(|held| held.at);
        cool.into_iter().chain(held).min()
    }
}

/// Says that a line is masked; the first times, and then ever more seldom.
#[cold]
#[inline(never)]
fn too_often(line: u32, storms: u64) {
    if storms.is_power_of_two() {
        log!("line {line} comes too often: masked for a while ({storms} times so far)");
    }
}

#[inline(never)]
fn now(system: &impl System) -> u64 {
    system.invoke(Op::Clock, [0; 6]).map_or(0, |[ticks, ..]| ticks)
}
