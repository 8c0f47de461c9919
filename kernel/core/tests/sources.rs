// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt sources and their queues in every order that the memory model allows, up to a bound on preemptions.
//!
//! Raisers and servers run as threads of the model. What is asked at the end: what was raised was served after that
//! (nothing is lost, and no wake-up is), one server at a time has a source, and every source that was linked came out of
//! a queue once. The same questions are put to protocols with a mistake built in, and must find it.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use trellis_core::atomic::Atomic;
use trellis_core::queue::{Backlog, Queue, retire};
use trellis_core::source::{Service, Source, Sources, Unlinked};
use trellis_idl::kernel::Refusal;

/// A word with the orderings of the kernel's, or (`RELAXED`) with none.
#[derive(Debug)]
struct Word<const RELAXED: bool>(AtomicU64);

impl<const RELAXED: bool> Word<RELAXED> {
    fn or_relaxed(order: Ordering) -> Ordering {
        if RELAXED { Ordering::Relaxed } else { order }
    }
}

impl<const RELAXED: bool> Atomic for Word<RELAXED> {
    fn load(&self) -> u64 {
        self.0.load(Self::or_relaxed(Ordering::Acquire))
    }
    fn store(&self, value: u64) {
        self.0.store(value, Self::or_relaxed(Ordering::Release));
    }
    fn swap(&self, value: u64) -> u64 {
        self.0.swap(value, Self::or_relaxed(Ordering::AcqRel))
    }
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        let (both, read) = (Self::or_relaxed(Ordering::AcqRel), Self::or_relaxed(Ordering::Acquire));
        self.0.compare_exchange(old, new, both, read).map(drop)
    }
}

/// A protocol of sources and queues of two CPUs, right or wrong.
trait Protocol: Send + Sync + 'static {
    /// What a CPU keeps beside its queue.
    type Own: Send + 'static;
    fn new() -> Self;
    fn own() -> Self::Own;
    /// True: the CPU's server must be woken.
    fn raise(&self, cpu: usize, source: u16) -> bool;
    /// The source fired on the CPU of a server that waits for just that.
    fn begin(&self, source: u16) -> Option<Taken>;
    /// Ends a service if nothing came meanwhile.
    fn finish(&self, taken: &Taken) -> bool;
    fn take(&self, cpu: usize, own: &mut Self::Own) -> Option<Taken>;
    /// True: the CPU's server must be woken.
    fn complete(&self, cpu: usize, taken: Taken) -> bool;
}

/// What a server took: a source to serve, or one that needs nothing.
struct Taken {
    source: u16,
    turn: u32,
    latched: bool,
    serve: bool,
}

/// The kernel's own.
struct Real<const RELAXED: bool> {
    sources: Sources<Word<RELAXED>, 2>,
    queues: [Queue<Word<RELAXED>>; 2],
}

impl<const RELAXED: bool> Real<RELAXED> {
    fn push(&self, cpu: usize, source: Option<Unlinked>) -> bool {
        source.is_some_and(|source| self.queues[cpu].push(&self.sources, source))
    }
}

impl<const RELAXED: bool> Protocol for Real<RELAXED> {
    type Own = Backlog;
    fn new() -> Self {
        let word = || Word(AtomicU64::new(0));
        let sources = Sources([0, 1].map(|_| Source::new(word(), word(), word())));
        (0..2).for_each(|index| sources.bind(index).expect("it is new"));
        Real { sources, queues: [0, 1].map(|_| Queue(word())) }
    }
    fn own() -> Backlog {
        Backlog::EMPTY
    }
    fn raise(&self, cpu: usize, source: u16) -> bool {
        self.push(cpu, self.sources.raise(source))
    }
    fn begin(&self, source: u16) -> Option<Taken> {
        let Service { source, turn, latched } = self.sources.begin(source)?;
        Some(Taken { source, turn, latched, serve: true })
    }
    fn finish(&self, taken: &Taken) -> bool {
        self.sources.finish(taken.source, taken.turn)
    }
    fn take(&self, cpu: usize, own: &mut Backlog) -> Option<Taken> {
        let popped = own.pop(&self.queues[cpu], &self.sources)?;
        Some(match self.sources.serve(popped) {
            Some(Service { source, turn, latched }) => Taken { source, turn, latched, serve: true },
            None => Taken { source: 0, turn: 0, latched: false, serve: false },
        })
    }
    fn complete(&self, cpu: usize, taken: Taken) -> bool {
        self.push(cpu, self.sources.complete(taken.source, taken.turn).expect("nobody took it away"))
    }
}

/// Protocols as others had them, each with its mistake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A raise during a service links the source at once.
    RunNotChecked,
    /// The latch is stored, not exchanged: raiser and server can miss each other.
    LatchStored,
    /// One word for the latch and the state; ending a service clears both.
    LatchInTheStateWord,
    /// Whether the queue is empty is asked before the source is put in.
    AsksTooEarly,
    /// A waiting server is given a source though it is in a queue.
    GivesWhatIsQueued,
    /// What came during the service is forgotten when that ends at once.
    EndsWhatCame,
}

/// A sketch of the protocol in plain words, to put mistakes into: 1 scheduled, 2 running, 4 linked.
struct Sketch<const MISTAKE: u8> {
    words: [AtomicU64; 2],
    latches: [AtomicU64; 2],
    /// A queue is a set of sources here.
    queues: [AtomicU64; 2],
}

impl<const MISTAKE: u8> Sketch<MISTAKE> {
    const MISTAKE: Mistake = match MISTAKE {
        0 => Mistake::None,
        1 => Mistake::RunNotChecked,
        2 => Mistake::LatchStored,
        3 => Mistake::LatchInTheStateWord,
        4 => Mistake::AsksTooEarly,
        5 => Mistake::GivesWhatIsQueued,
        _ => Mistake::EndsWhatCame,
    };

    fn link(&self, cpu: usize, source: u16) -> bool {
        let early = self.queues[cpu].load(Ordering::Acquire) == 0;
        let empty = self.queues[cpu].fetch_or(1 << source, Ordering::AcqRel) == 0;
        if Self::MISTAKE == Mistake::AsksTooEarly { early } else { empty }
    }

    fn change(&self, source: u16, step: impl Fn(u64) -> u64) -> u64 {
        let word = &self.words[source as usize];
        let mut old = word.load(Ordering::Acquire);
        while let Err(found) = word.compare_exchange(old, step(old), Ordering::AcqRel, Ordering::Acquire) {
            old = found;
        }
        old
    }
}

impl<const MISTAKE: u8> Protocol for Sketch<MISTAKE> {
    type Own = ();
    fn new() -> Self {
        let zeros = || [0, 1].map(|_| AtomicU64::new(0));
        Sketch { words: zeros(), latches: zeros(), queues: zeros() }
    }
    fn own() {}
    fn raise(&self, cpu: usize, source: u16) -> bool {
        match Self::MISTAKE {
            Mistake::LatchStored => self.latches[source as usize].store(1, Ordering::Release),
            _ => drop(self.latches[source as usize].swap(1, Ordering::AcqRel)),
        }
        let busy = if Self::MISTAKE == Mistake::RunNotChecked { 4 } else { 2 | 4 };
        if self.words[source as usize].load(Ordering::Acquire) & 1 != 0 {
            return false;
        }
        let old = self.change(source, |old| if old & busy == 0 { old | 1 | 4 } else { old | 1 });
        old & busy == 0 && self.link(cpu, source)
    }
    fn begin(&self, source: u16) -> Option<Taken> {
        let busy = if Self::MISTAKE == Mistake::GivesWhatIsQueued { 2 } else { 1 | 2 | 4 };
        let old = self.change(source, |old| if old & busy == 0 { old | 2 } else { old });
        (old & busy == 0).then_some(Taken { source, turn: 0, latched: true, serve: true })
    }
    fn finish(&self, taken: &Taken) -> bool {
        let always = Self::MISTAKE == Mistake::EndsWhatCame;
        let ends = |old: u64| always || old & 1 == 0;
        ends(self.change(taken.source, |old| if ends(old) { 0 } else { old }))
    }
    fn take(&self, cpu: usize, (): &mut ()) -> Option<Taken> {
        let set = self.queues[cpu].load(Ordering::Acquire);
        let source = (0..2).find(|source| set >> source & 1 != 0)?;
        self.queues[cpu].fetch_and(!(1 << source), Ordering::AcqRel);
        let old = self.change(source, |old| old & !(1 | 4) | 2);
        let latched = self.latches[source as usize].swap(0, Ordering::AcqRel) != 0;
        Some(Taken { source, turn: 0, latched, serve: old & 1 != 0 })
    }
    fn complete(&self, cpu: usize, taken: Taken) -> bool {
        let all = Self::MISTAKE == Mistake::LatchInTheStateWord;
        let old = self.change(taken.source, |old| match old & 1 {
            _ if all => 0,
            0 => old & !2,
            _ => old & !2 | 4,
        });
        !all && old & 1 != 0 && self.link(cpu, taken.source)
    }
}

/// The system around a protocol.
struct World<P> {
    protocol: P,
    /// Only read and written at once, as a signal word is.
    wakes: [AtomicU64; 2],
    /// Set by a device before it raises its line, cleared by the server of the line: plain data as far as order goes.
    device: [AtomicU64; 2],
    /// How many servers have the source.
    serving: [AtomicU64; 2],
}

impl<P: Protocol> World<P> {
    fn new() -> Arc<Self> {
        let zeros = || [0, 1].map(|_| AtomicU64::new(0));
        Arc::new(World { protocol: P::new(), wakes: zeros(), device: zeros(), serving: zeros() })
    }

    fn wake(&self, cpu: usize, wake: bool) {
        if wake {
            self.wakes[cpu].swap(1, Ordering::AcqRel);
        }
    }

    fn fire(&self, cpu: usize, source: u16) {
        self.device[source as usize].store(1, Ordering::Relaxed);
        self.wake(cpu, self.protocol.raise(cpu, source));
    }

    /// The line fires on the CPU of a server that waits for just that: it is given the service, or woken.
    fn give(&self, cpu: usize, own: &mut P::Own, source: u16) {
        self.device[source as usize].store(1, Ordering::Relaxed);
        match self.protocol.begin(source) {
            Some(taken) => self.one(cpu, taken, true),
            None => self.wake(cpu, self.protocol.raise(cpu, source)),
        }
        self.serve(cpu, own);
    }

    /// Serves one.
    fn one(&self, cpu: usize, taken: Taken, at_once: bool) {
        let source = taken.source as usize;
        assert_eq!(self.serving[source].fetch_add(1, Ordering::Relaxed), 0, "one server at a time");
        if taken.latched {
            self.device[source].store(0, Ordering::Relaxed);
        }
        self.serving[source].fetch_sub(1, Ordering::Relaxed);
        if !at_once || !self.protocol.finish(&taken) {
            self.wake(cpu, self.protocol.complete(cpu, taken));
        }
    }

    /// A server's thread: sleeps unless it is woken, then takes all there is.
    fn serve(&self, cpu: usize, own: &mut P::Own) {
        while self.wakes[cpu].swap(0, Ordering::AcqRel) != 0 {
            while let Some(taken) = self.protocol.take(cpu, own) {
                if taken.serve {
                    self.one(cpu, taken, false);
                }
            }
        }
    }

    /// Everybody has done what they do: whoever is awake still serves, then nothing may be left.
    fn settle(&self, own: [&mut P::Own; 2]) {
        let [first, second] = own;
        self.serve(0, first);
        self.serve(1, second);
        for device in &self.device {
            assert_eq!(device.load(Ordering::Relaxed), 0, "an interrupt was lost");
        }
    }
}

/// Tries every order with at most this many preemptions.
fn check(preemptions: usize, story: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 100_000;
    model.check(story);
}

/// Lines that fire on both CPUs while the servers of both run. `fires`: what CPU 0 and CPU 1 see, and a third raiser.
fn storm<P: Protocol>(fires: [&'static [u16]; 3]) {
    let world = World::<P>::new();
    let raise = |cpu: usize, sources: &'static [u16]| {
        let world = world.clone();
        move || sources.iter().for_each(|source| world.fire(cpu, *source))
    };
    let serve = |cpu: usize| {
        let world = world.clone();
        move || {
            let mut own = P::own();
            world.serve(cpu, &mut own);
            own
        }
    };
    let others = [fires[1], fires[2]].into_iter().filter(|sources| !sources.is_empty());
    let raisers: Vec<_> = others.map(|sources| thread::spawn(raise(1, sources))).collect();
    let servers = [thread::spawn(serve(0)), thread::spawn(serve(1))];
    raise(0, fires[0])();
    raisers.into_iter().for_each(|raiser| raiser.join().expect("it ended"));
    let [mut first, mut second] = servers.map(|server| server.join().expect("it ended"));
    world.settle([&mut first, &mut second]);
}

fn three_raisers<P: Protocol>() {
    check(1, || storm::<P>([&[0], &[0], &[0]]));
}

fn fired_again<P: Protocol>() {
    check(2, || storm::<P>([&[0, 0], &[0], &[]]));
}

fn two_sources<P: Protocol>() {
    check(1, || storm::<P>([&[0, 1], &[1, 0], &[]]));
}

/// A line that fires on the CPU of a server that waits, while it fires on another CPU too, whose server runs.
fn given<P: Protocol>() {
    check(3, || {
        let world = World::<P>::new();
        let raiser = {
            let world = world.clone();
            thread::spawn(move || {
                let mut own = P::own();
                world.fire(1, 0);
                world.serve(1, &mut own);
                own
            })
        };
        let mut own = P::own();
        world.give(0, &mut own, 0);
        world.give(0, &mut own, 0);
        let mut other = raiser.join().expect("it ended");
        world.settle([&mut own, &mut other]);
    });
}

/// Whether the questions find the mistake.
fn finds_it<P: Protocol>() -> bool {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let stories: [fn(); 4] = [three_raisers::<P>, fired_again::<P>, two_sources::<P>, given::<P>];
    let found = stories.iter().any(|story| std::panic::catch_unwind(story).is_err());
    std::panic::set_hook(silent);
    found
}

#[test]
fn nothing_is_lost_or_served_twice_at_once() {
    three_raisers::<Real<false>>();
    fired_again::<Real<false>>();
    two_sources::<Real<false>>();
}

#[test]
fn what_is_given_to_a_waiting_server_is_neither_lost_nor_served_twice_at_once() {
    given::<Real<false>>();
}

#[test]
fn giving_what_is_queued_is_found() {
    assert!(finds_it::<Sketch<5>>());
}

#[test]
fn forgetting_what_came_during_a_service_is_found() {
    assert!(finds_it::<Sketch<6>>());
}

#[test]
fn the_sketch_without_a_mistake_passes_as_well() {
    assert!(!finds_it::<Sketch<0>>());
}

#[test]
fn a_missing_release_is_found() {
    assert!(finds_it::<Real<true>>());
}

#[test]
fn a_raise_that_ignores_a_running_service_is_found() {
    assert!(finds_it::<Sketch<1>>());
}

#[test]
fn a_latch_that_is_only_stored_is_found() {
    assert!(finds_it::<Sketch<2>>());
}

#[test]
fn a_latch_in_the_state_word_is_found() {
    assert!(finds_it::<Sketch<3>>());
}

#[test]
fn a_queue_that_is_asked_too_early_is_found() {
    assert!(finds_it::<Sketch<4>>());
}

#[test]
fn unbinding_drops_what_waits_and_the_source_can_be_bound_again() {
    check(3, || {
        let world = World::<Real<false>>::new();
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.fire(0, 0))
        };
        let server = {
            let world = world.clone();
            thread::spawn(move || {
                let mut own = Backlog::EMPTY;
                world.serve(0, &mut own);
                own
            })
        };
        let sources = &world.protocol.sources;
        let unbound = sources.unbind(0);
        assert!(matches!(unbound, Ok(()) | Err(Refusal::Again)));
        // Not waited for: refused until queue and server let go of it, and never a source bound twice.
        let bound = sources.bind(0);
        assert!(matches!(bound, Ok(()) | Err(Refusal::Again)));
        raiser.join().expect("it ended");
        let mut own = server.join().expect("it ended");
        world.serve(0, &mut own);
        assert!(sources.is_idle(0));
        if bound.is_err() {
            assert_eq!(sources.bind(0), Ok(()));
        }
        world.fire(0, 0);
        world.settle([&mut own, &mut Backlog::EMPTY.clone()]);
    });
}

#[test]
fn what_a_dead_server_had_is_served_again_and_its_late_answer_is_refused() {
    check(3, || {
        let world = World::<Real<false>>::new();
        world.fire(0, 0);
        let mut own = Backlog::EMPTY;
        let taken = world.protocol.take(0, &mut own).expect("it was raised");
        world.device[0].store(1, Ordering::Relaxed);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.fire(1, 0))
        };
        let late = {
            let (world, turn) = (world.clone(), taken.turn);
            thread::spawn(move || match world.protocol.sources.complete(0, turn) {
                Ok(source) => {
                    let wake = world.protocol.push(0, source);
                    world.wake(0, wake);
                    false
                }
                Err(refusal) => refusal == Refusal::Gone,
            })
        };
        let adopted = world.protocol.sources.adopt(0);
        let again = adopted.is_some();
        let wake = world.protocol.push(1, adopted);
        world.wake(1, wake);
        raiser.join().expect("it ended");
        // Either the old server was in time, or its answer is void and the source waits for the new one.
        let refused = late.join().expect("it ended");
        assert_eq!(refused, again);
        world.settle([&mut own, &mut Backlog::EMPTY.clone()]);
    });
}

#[test]
fn what_waits_on_a_cpu_that_stops_is_served_on_another() {
    check(3, || {
        let world = World::<Real<false>>::new();
        world.fire(0, 0);
        world.fire(0, 1);
        let mut own = Backlog::EMPTY;
        let first = world.protocol.take(0, &mut own).expect("two wait");
        assert_eq!((first.source, own.is_empty()), (0, false), "the one that came first is first");
        let wake = world.protocol.complete(0, first);
        world.wake(0, wake);
        world.device[0].store(0, Ordering::Relaxed);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || {
                world.fire(1, 0);
                world.fire(1, 1);
            })
        };
        let server = {
            let world = world.clone();
            thread::spawn(move || {
                let mut own = Backlog::EMPTY;
                world.serve(1, &mut own);
                own
            })
        };
        let protocol = &world.protocol;
        let wake = retire(&protocol.sources, (&protocol.queues[0], &mut own), &protocol.queues[1]);
        world.wake(1, wake);
        raiser.join().expect("it ended");
        let mut second = server.join().expect("it ended");
        world.wakes[0].store(0, Ordering::Relaxed);
        world.settle([&mut own, &mut second]);
    });
}
