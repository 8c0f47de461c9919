// SPDX-License-Identifier: MIT OR Apache-2.0
//! What root asks of irqfwd, with every number at its bounds.

use std::sync::Mutex;
use trellis_idl::kernel::{FIRST_MESSAGE, Op, Refusal, WORDS};
use trellis_idl::layout::{badge, slot};
use trellis_idl::plan::{IrqfwdConfig, SourcePlan};
use trellis_idl::wire::{IrqfwdOp, from_answer};
use trellis_irqfwd::Forwarder;
use trellis_irqfwd::its::Failure;
use trellis_irqfwd::messages::Gate;
use trellis_irqfwd::server::Irqfwd;
use trellis_runtime::{Reply, Server, System};

/// 0, the last, the count, one more, and what is round or enormous; of a byte too.
const NUMBERS: [u64; 14] = [0, 1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 65_535, 1 << 32, u64::MAX];

/// A kernel that does whatever it is asked, with these exceptions. The source of a line has its place as a number.
#[derive(Default)]
struct Willing {
    /// The line with this place is gone.
    gone: Option<u64>,
    /// It has not finished with the line with this place, for so many times that it is asked.
    busy: Mutex<(u64, u32)>,
}

impl Willing {
    fn is_busy(&self, line: u64) -> bool {
        let mut busy = self.busy.lock().unwrap();
        let is_so = line == busy.0 && busy.1 > 0;
        busy.1 -= u32::from(is_so);
        is_so
    }
}

impl System for Willing {
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        Ok(match op {
            Op::Clock => [5, 1_000_000_000, 0],
            Op::LineForward if self.gone == Some(arguments[0] - slot::LINE) => return Err(Refusal::Gone),
            Op::LineForward => [arguments[0] - slot::LINE, 0, 0],
            Op::LineRelease => [self.is_busy(arguments[0] - slot::LINE).into(), 0, 0],
            _ => [0; 3],
        })
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// Guests whose functions were connected, and disconnected.
#[derive(Default)]
struct Noted(Mutex<(Vec<u8>, Vec<u8>)>);

impl Gate for &Noted {
    fn open(&self, _: &impl System, _: u32, _: u8) -> Result<(), Refusal> {
        Ok(())
    }

    fn close(&self, _: &impl System, _: u32) {}

    fn connect(&self, _: &impl System, guest: u8) -> Result<(), Failure> {
        self.0.lock().unwrap().0.push(guest);
        Ok(())
    }

    fn disconnect(&self, _: &impl System, guest: u8) -> Result<(), Failure> {
        self.0.lock().unwrap().1.push(guest);
        Ok(())
    }
}

/// Functions that are ready when they have been asked for so many times; and the clock.
#[derive(Default)]
struct Slow(Mutex<(u32, u64)>);

impl Gate for &Slow {
    fn open(&self, _: &impl System, _: u32, _: u8) -> Result<(), Refusal> {
        Ok(())
    }

    fn close(&self, _: &impl System, _: u32) {}

    fn connect(&self, _: &impl System, guest: u8) -> Result<(), Failure> {
        let mut slow = self.0.lock().unwrap();
        // Guest 0 has none.
        slow.0 = slow.0.saturating_sub(guest.into());
        if slow.0 == 0 || guest == 0 { Ok(()) } else { Err(Failure::NotYet) }
    }

    fn disconnect(&self, system: &impl System, guest: u8) -> Result<(), Failure> {
        self.connect(system, guest)
    }
}

/// Waiting takes as long as is said.
struct Timed<'a>(&'a Slow);

impl System for Timed<'_> {
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Clock { Ok([self.0.0.lock().unwrap().1, 1_000_000, 0]) } else { Willing::default().invoke(op, arguments) }
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn wait(&self, _: u64, deadline: u64) -> u64 {
        self.0.0.lock().unwrap().1 = deadline;
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// Two guests: one has two vCPUs and a wire, the other a message.
fn config() -> IrqfwdConfig {
    let source = |guest, line| SourcePlan { line: line as u32, guest, guest_line: 127, edge: false, direct: false };
    let mut config = IrqfwdConfig::default();
    for cpus in [&[0, 1][..], &[1]] {
        config.guests.push(cpus.iter().copied().collect()).expect("there is room");
    }
    for source in [source(0, 34), source(1, FIRST_MESSAGE)] {
        config.sources.push(source).expect("there is room");
    }
    config
}

fn call(server: &impl Server, words: &[u64]) -> Result<[u64; WORDS], Refusal> {
    call_on(&Willing::default(), server, words)
}

fn call_on(system: &impl System, server: &impl Server, words: &[u64]) -> Result<[u64; WORDS], Refusal> {
    let mut all = [0; WORDS];
    all[..words.len()].copy_from_slice(words);
    match server.call(system, badge::ROOT, all) {
        Reply::Call(answer) => from_answer(answer[0]).map(|()| answer),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_number_that_root_says_is_tried_at_its_bounds() {
    let noted: &Noted = Box::leak(Box::default());
    let server = Irqfwd::start(&Willing::default(), config(), Box::leak(Box::new(Forwarder::new())), Some(noted));
    assert_eq!(*noted.0.lock().unwrap(), (vec![0, 1], vec![]));
    for number in NUMBERS {
        let refused = (number > 1).then_some(Refusal::OutOfRange);
        for op in [IrqfwdOp::Unbind, IrqfwdOp::Bind, IrqfwdOp::Disconnect, IrqfwdOp::Connect] {
            assert_eq!(call(&server, &[op as u64, number]).err(), refused, "{op:?} guest {number}");
        }
        assert_eq!(call(&server, &[IrqfwdOp::Moved as u64, number, 0, 0]).err(), refused, "of guest {number}");
        assert_eq!(call(&server, &[IrqfwdOp::Moved as u64, 0, number, 0]).err(), refused, "vCPU {number}");
        // One that nobody serves leaves its lines where they are.
        assert_eq!(call(&server, &[IrqfwdOp::Moved as u64, 0, 1, number]).err(), None, "CPU {number}");
        for op in [IrqfwdOp::Count, IrqfwdOp::Delays, IrqfwdOp::Restore, IrqfwdOp::RestoreDelays] {
            let answer = call(&server, &[op as u64, number, number, number, number, number, number, number, number, number]);
            assert_eq!(answer.is_ok(), number < 2, "{op:?} line {number}: {answer:?}");
        }
        if IrqfwdOp::from_number(number).is_none() && number != 0 {
            assert_eq!(call(&server, &[number; WORDS]), Err(Refusal::NoOperation), "{number}");
        }
    }
    let (connected, disconnected) = noted.0.lock().unwrap().clone();
    assert_eq!((connected, disconnected), (vec![0, 1, 0, 0, 1, 1], vec![0, 0, 1, 1]), "nobody else's functions were touched");
}

#[test]
fn a_guest_whose_lines_cannot_come_has_no_functions_connected() {
    let noted: &Noted = Box::leak(Box::default());
    let ended = Willing { gone: Some(1), ..Willing::default() };
    let server = Irqfwd::start(&ended, config(), Box::leak(Box::new(Forwarder::new())), Some(noted));
    assert_eq!(noted.0.lock().unwrap().0, [0], "an earlier server's guest 1 has ended");
    assert_eq!(call(&server, &[IrqfwdOp::Bind as u64, 1]), Ok([0; WORDS]), "it starts again");
    assert_eq!(noted.0.lock().unwrap().0, [0, 1]);
}

#[test]
fn a_line_that_is_not_free_yet_is_not_forgotten_over_those_that_are() {
    let mut config = config();
    for line in [35, 36] {
        config.sources.push(SourcePlan { line, guest: 0, guest_line: 126, edge: false, direct: false }).expect("there is room");
    }
    // The first of the guest's three lines, and the last: 0 and 3, and between them another guest's.
    for busy in [0, 2, 3] {
        let server = Irqfwd::<&Noted>::start(&Willing::default(), config.clone(), Box::leak(Box::new(Forwarder::new())), None);
        let system = Willing { busy: Mutex::new((busy, 2)), ..Willing::default() };
        let unbind = || call_on(&system, &server, &[IrqfwdOp::Unbind as u64, 0]).err();
        let counts = || [0, 2, 3].map(|line| call_on(&system, &server, &[IrqfwdOp::Count as u64, line]).is_ok());
        for _ in 0..2 {
            assert_eq!(unbind(), Some(Refusal::Again), "line {busy}");
            assert_eq!(counts(), [0, 2, 3].map(|line| line == busy), "the others are done, and this one is known");
        }
        assert_eq!((unbind(), counts()), (None, [false; 3]), "line {busy}");
    }
}

#[test]
fn functions_that_are_not_ready_are_waited_for_before_root_is_answered_and_never_while_it_is() {
    for (asked, waited) in [(1, 0), (2, 1), (120, 119), (5000, 1000)] {
        let slow: &Slow = Box::leak(Box::default());
        slow.0.lock().unwrap().0 = asked;
        let server = Irqfwd::start(&Timed(slow), config(), Box::leak(Box::new(Forwarder::new())), Some(slow));
        assert_eq!(slow.0.lock().unwrap().1, 0, "whoever makes it does not wait");
        server.settle(&Timed(slow));
        // In microseconds: a millisecond, and a tick more.
        assert_eq!(slow.0.lock().unwrap().1, waited * 1001, "asked {asked} times");
    }
    let slow: &Slow = Box::leak(Box::default());
    let server = Irqfwd::start(&Timed(slow), config(), Box::leak(Box::new(Forwarder::new())), Some(slow));
    for op in [IrqfwdOp::Disconnect, IrqfwdOp::Connect, IrqfwdOp::Unbind, IrqfwdOp::Bind] {
        slow.0.lock().unwrap().0 = 3;
        assert_eq!(call(&server, &[op as u64, 0]).err(), None, "{op:?}");
        for expected in [Some(Refusal::Again), Some(Refusal::Again), None, None] {
            assert_eq!(call(&server, &[op as u64, 1]).err(), expected, "{op:?}");
        }
    }
    assert_eq!(slow.0.lock().unwrap().1, 0, "root asks again when it likes");
}
