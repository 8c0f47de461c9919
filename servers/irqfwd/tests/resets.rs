// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions between two lives of their guest, on ones made of memory with a clock: a tick is a millisecond. They are reset where
//! they have a way; the model says so when they are asked too early, or while their guest uses them.

mod model;

use model::{Board, Fake, Function, Ways};
use std::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{FIRST_MESSAGE, Op, Refusal, WORDS};
use trellis_idl::plan::{FunctionPlan, MessagePlan, RangePlan};
use trellis_irqfwd::its::Failure;
use trellis_irqfwd::messages::{Gate, Messages};
use trellis_runtime::System;

const LINE: u32 = FIRST_MESSAGE as u32;
/// Where the functions are to be.
const BASE: u64 = 0x1000_0000;
/// What PCI Express told them to do before: payloads and requests of 256 bytes.
const CONTROL: u32 = 0x1020;

/// A kernel that knows how late it is.
struct Clock<'a>(&'a Fake, AtomicU64);

impl System for Clock<'_> {
    fn invoke(&self, op: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Clock { Ok([self.now(), 1000, 0]) } else { Err(Refusal::Unsupported) }
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        panic!("whoever has the functions waits for nothing")
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

impl Clock<'_> {
    fn now(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    fn pass(&self) {
        self.0.set_clock(self.1.fetch_add(1, Ordering::Relaxed) + 1);
    }

    /// Asks again each millisecond until it is over. Back: what came of it, and how long it took.
    fn until_over(&self, ask: impl Fn() -> Result<(), Failure>) -> (Result<(), Failure>, u64) {
        let begin = self.now();
        loop {
            match ask() {
                Err(Failure::NotYet) if self.now() - begin < 2000 => self.pass(),
                other => return (other, self.now() - begin),
            }
        }
    }
}

/// A function of guest 0 for each of these.
fn system(all: &[Ways]) -> (Fake, MessagePlan) {
    let fake = Fake::new();
    let function = |ways: &Ways| {
        let ways = Ways { control: if ways.express.is_some() { CONTROL } else { 0 }, ..ways.clone() };
        let mut function = Function::new(0x10_0000, false, 1);
        function.ways = ways;
        function
    };
    fake.functions(&all.iter().map(function).collect::<Vec<_>>());
    let plan = |place: u16| FunctionPlan {
        guest: 0, run: 3, requester: place, line: LINE + u32::from(place), messages: 1, table: None, chosen: false,
        ranges: [RangePlan { base: BASE + (u64::from(place) << 20), register: 0, bits: 20 }].into_iter().collect(),
    };
    let functions = (0..all.len() as u16).map(plan).collect();
    let (redistributors_at, doorbell) = (model::REDISTRIBUTORS, model::DOORBELL);
    let plan = MessagePlan { service: 1, redistributors: 2, redistributors_at, frames: 8, doorbell, cpus: [(1, 1)].into_iter().collect(), functions };
    (fake, plan)
}

fn start(fake: &Fake, plan: &MessagePlan) -> Messages<Board> {
    Messages::start(fake.board(), plan).expect("all is there")
}

/// It is where it is to be, and works.
fn expect_works(fake: &Fake, place: usize) {
    let function = fake.function(place);
    assert_eq!((function.base(), function.is_on(), function.is_master()), (BASE + ((place as u64) << 20), true, true));
    assert_eq!(function.writes(), Some((model::DOORBELL, 0, 1)));
}

fn express() -> Ways {
    Ways { express: Some(true), ..Ways::default() }
}

/// Each way, each chosen though those after it are there too, and how long it takes.
fn ways() -> [(Ways, u64); 6] {
    [
        (express(), 100),
        (Ways { features: Some(true), ..Ways::default() }, 100),
        (Ways { power: Some(false), ..Ways::default() }, 20),
        (Ways { features: Some(true), power: Some(false), ..express() }, 100),
        (Ways { express: Some(false), features: Some(true), power: Some(false), ..Ways::default() }, 100),
        (Ways { express: Some(false), features: Some(false), power: Some(false), ..Ways::default() }, 20),
    ]
}

#[test]
fn a_function_is_reset_between_two_lives_of_its_guest_the_way_it_offers() {
    for (index, (way, takes)) in ways().into_iter().enumerate() {
        let (fake, plan) = system(core::slice::from_ref(&way));
        let (clock, messages) = (Clock(&fake, AtomicU64::new(0)), start(&fake, &plan));
        let gate = &messages;
        // Who had it before the first life is not known.
        for resets in 1..4 {
            assert_eq!(clock.until_over(|| gate.connect(&clock, 0)), (Ok(()), takes), "case {index}");
            expect_works(&fake, 0);
            assert_eq!((fake.function(0).resets, fake.function(0).told), (resets, 0), "case {index}");
            assert_eq!(fake.function(0).ways.control, if way.express.is_some() { CONTROL } else { 0 }, "it fits the way to it");
            fake.tell(0, 0);
            // Asked again, nothing happens to it.
            assert_eq!(gate.connect(&clock, 0), Ok(()));
            assert_eq!(clock.until_over(|| gate.disconnect(&clock, 0)), (Ok(()), 0), "nobody waits for its reset then");
            assert!(!fake.function(0).is_master() && fake.function(0).writes().is_none());
            assert_eq!(gate.disconnect(&clock, 0), Ok(()), "and it is not reset twice");
        }
    }
}

#[test]
fn a_function_without_a_way_or_that_does_not_do_it_works_as_before() {
    let none = [Ways::default(), Ways { express: Some(false), features: Some(false), power: Some(true), ..Ways::default() }];
    let pretends = [Ways { pretends: true, ..express() }, Ways { power: Some(false), pretends: true, ..Ways::default() }];
    for (way, resets, takes) in none.map(|way| (way, 0, 0)).into_iter().chain(pretends.into_iter().zip([100, 20]).map(|(way, takes)| (way, 1, takes))) {
        let (fake, plan) = system(&[way]);
        let (clock, messages) = (Clock(&fake, AtomicU64::new(0)), start(&fake, &plan));
        let gate = &messages;
        for life in 1..4 {
            assert_eq!(clock.until_over(|| gate.connect(&clock, 0)), (Ok(()), takes));
            expect_works(&fake, 0);
            assert_eq!((fake.function(0).resets, fake.function(0).told), (life * resets, if life > 1 { 7 } else { 0 }));
            fake.tell(0, 0);
            assert_eq!(gate.disconnect(&clock, 0), Ok(()));
        }
    }
}

/// The model does not let a function be reset with accesses that it has begun, but for those that are lost.
#[test]
fn what_a_function_has_begun_is_waited_for_and_what_is_lost_is_not() {
    let slow = Ways { features: Some(true), ..Ways::default() };
    let without = Ways { express: Some(false), ..Ways::default() };
    for way in [express(), slow, without] {
        for (over, waited) in [(0, 0), (30, 30), (99, 99), (u64::MAX, 100)] {
            let (fake, plan) = system(core::slice::from_ref(&way));
            let (clock, messages) = (Clock(&fake, AtomicU64::new(0)), start(&fake, &plan));
            let gate = &messages;
            assert_eq!(clock.until_over(|| gate.connect(&clock, 0)).0, Ok(()));
            fake.tell(0, (clock.now() + 1).saturating_add(over).saturating_sub(1));
            let resets = fake.function(0).resets;
            assert_eq!(clock.until_over(|| gate.disconnect(&clock, 0)), (Ok(()), waited), "{over}");
            assert_eq!(fake.function(0).resets, resets + usize::from(way.express != Some(false)));
            assert_eq!(clock.until_over(|| gate.connect(&clock, 0)).0, Ok(()));
            expect_works(&fake, 0);
        }
    }
}

#[test]
fn a_function_that_answers_late_is_waited_for_and_one_that_does_not_is_told() {
    for (takes, result) in [(99, Ok(())), (100, Ok(())), (350, Ok(())), (600, Ok(())), (u64::MAX / 2, Err(Failure::NoFunction))] {
        let (fake, plan) = system(&[Ways { takes, ..express() }]);
        let (clock, messages) = (Clock(&fake, AtomicU64::new(0)), start(&fake, &plan));
        let took = clock.until_over(|| (&messages).connect(&clock, 0));
        assert_eq!(took, (result, takes.clamp(100, 600)), "{takes}");
        if result.is_ok() {
            expect_works(&fake, 0);
        }
    }
}

/// It has begun to reset it, or not yet, or it is over: the next one does what is missing, and never what its guest would notice.
#[test]
fn a_server_that_follows_a_lost_one_resets_what_no_guest_uses_and_nothing_else() {
    for (way, takes) in [&ways()[..], &[(Ways { takes: 250, ..express() }, 250)]].concat() {
        for lost_after in [0, 1, 9, 10, 11, 12, 19, 20, 21, 50, 99, 100, 101, 249, 251] {
            if lost_after > takes + 1 {
                break;
            }
            let (fake, plan) = system(core::slice::from_ref(&way));
            let clock = Clock(&fake, AtomicU64::new(0));
            let first = start(&fake, &plan);
            assert_eq!(clock.until_over(|| (&first).connect(&clock, 0)), (Ok(()), takes));
            fake.tell(0, 0);
            drop(first);
            // In use: the model says so if it is reset or taken from its place.
            let before = fake.function(0).resets;
            fake.forbid_moves();
            let second = start(&fake, &plan);
            assert_eq!((&second).connect(&clock, 0), Ok(()));
            assert_eq!((fake.function(0).resets, fake.function(0).told), (before, 7));
            fake.allow_moves();
            // Lost while it is nobody's.
            assert_eq!((&second).disconnect(&clock, 0), Ok(()));
            for _ in 0..lost_after {
                clock.pass();
                // What is in its way between asleep and awake goes on when somebody asks.
                if way.power.is_some() && lost_after % 2 == 0 {
                    let _ = (&second).disconnect(&clock, 0);
                }
            }
            drop(second);
            let third = start(&fake, &plan);
            assert_eq!(clock.until_over(|| (&third).connect(&clock, 0)).0, Ok(()), "lost after {lost_after}");
            expect_works(&fake, 0);
            assert!(fake.function(0).resets > before && fake.function(0).told == 0);
        }
    }
}

#[test]
fn functions_of_a_guest_are_reset_at_the_same_time_and_one_that_is_wrong_does_not_keep_the_others() {
    let (fake, mut plan) = system(&[express(), Ways::default(), Ways { power: Some(false), ..Ways::default() }, express()]);
    // The last one is not what the board file says.
    plan.functions[3].ranges[0].bits = 19;
    let (clock, messages) = (Clock(&fake, AtomicU64::new(0)), start(&fake, &plan));
    for _ in 0..2 {
        let took = clock.until_over(|| (&messages).connect(&clock, 0));
        assert_eq!(took, (Err(Failure::NoFunction), 100), "what is not over is told before what failed");
        (0..3).for_each(|place| expect_works(&fake, place));
        assert!(!fake.function(3).is_on() && !fake.function(3).is_master());
        assert_eq!((&messages).disconnect(&clock, 0), Ok(()));
    }
    assert_eq!((&messages).disconnect(&clock, 1), Ok(()), "who has none");
}
