// SPDX-License-Identifier: MIT OR Apache-2.0
//! smmu with an SMMU made of memory, which remembers what it read: a command that is forgotten is noticed.

mod model;

use model::{Fake, Outcome};
use std::cell::{Cell, RefCell};
use trellis_idl::kernel::{Op, Refusal, WORDS};
use trellis_idl::layout::space::tables;
use trellis_idl::layout::{badge, smmu_signal};
use trellis_idl::plan::{SmmuConfig, SpacePlan, StreamPlan};
use trellis_idl::wire::{SmmuOp, Stopped};
use trellis_runtime::{Reply, Server as _, System};
use trellis_smmu::limit::{MOST, MOST_EVENTS};
use trellis_smmu::server::Told;
use trellis_smmu::{Failure, Server};

/// A clock that a test moves, a thousand ticks a second.
struct Time(Cell<u64>);

impl System for Time {
    fn invoke(&self, op: Op, _: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Clock { Ok([self.0.get(), 1000, 0]) } else { Err(Refusal::Unsupported) }
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

const EDU: u32 = 0x10;
const NET: u32 = 0x18;
const DISK: u32 = 0x20;
const STRANGER: u32 = 0x28;
/// Machine pages of both guests' memory.
const FRAMES: [u64; 2] = [0x6_0200, 0x6_2200];
const BYTES: u64 = 16 << 20;

/// Two guests: one owns edu and net, the other disk, which is not protected.
fn config() -> SmmuConfig {
    let stream = |number, guest, protected| StreamPlan { number, guest, protected, line: 10 + u32::from(guest) };
    let space = SpacePlan { guest: 0, first: 0x4_0000, pages: BYTES / 4096, doorbell: Some(0x8090), tables: 4 };
    SmmuConfig {
        run: 5,
        lines: [106, 109],
        stream_bits: 6,
        pages: (tables(6) / 4096) as u32 + 4,
        spaces: [space].into_iter().collect(),
        streams: [stream(EDU, 0, true), stream(NET, 0, true), stream(DISK, 1, false)].into_iter().collect(),
    }
}

fn time() -> Time {
    Time(Cell::new(1))
}

fn start(fake: &Fake) -> Result<Server<Fake>, Failure> {
    Server::start(fake.clone(), config())
}

fn ask(server: &Server<Fake>, op: SmmuOp, guest: u64) -> Result<(), u64> {
    let mut words = [0; WORDS];
    (words[0], words[1], words[2]) = (op as u64, guest, FRAMES[guest as usize]);
    let Reply::Call(answer) = server.call(&time(), badge::ROOT, words) else { panic!("an answer") };
    if answer[0] == 0 { Ok(()) } else { Err(answer[0]) }
}

#[test]
fn a_device_sees_its_guests_memory_as_long_as_it_is_attached() {
    let fake = Fake::with(|_| {});
    let server = start(&fake).expect("it can do all");
    let nothing = Outcome::Stopped(false);
    let all = [EDU, NET, DISK];
    assert!(all.iter().all(|stream| fake.access(*stream, 0x4000_0000, true) == nothing), "and nobody hears of it");
    ask(&server, SmmuOp::Attach, 0).expect("there is such a guest");
    for stream in [EDU, NET] {
        assert_eq!(fake.access(stream, 0x4000_1234, true), Outcome::Goes(0x6020_1234));
        assert_eq!(fake.access(stream, 0x40ff_ffff, false), Outcome::Goes(0x611f_ffff));
        assert_eq!(fake.access(stream, 0x0809_0040, true), Outcome::Goes(0x0809_0040));
        for (address, writes) in [(0x0809_0040, false), (0x4100_0000, true), (0x6020_0000, false), (0, true), (1 << 40, true)] {
            assert_eq!(fake.access(stream, address, writes), Outcome::Stopped(true), "{address:#x}");
        }
    }
    assert_eq!(fake.access(DISK, 0x4000_0000, true), nothing, "another guest's");
    assert_eq!(fake.access(STRANGER, 0x4000_0000, true), nothing);
    assert_eq!(fake.access(1 << 20, 0x4000_0000, true), Outcome::Stopped(true), "no stream of the table");
    ask(&server, SmmuOp::Attach, 1).expect("there is such a guest");
    assert_eq!(fake.access(DISK, 0x1234_5678, true), Outcome::Goes(0x1234_5678), "the manifest says so");
    ask(&server, SmmuOp::Detach, 0).expect("it was attached");
    assert!([EDU, NET].iter().all(|stream| fake.access(*stream, 0x4000_1234, true) == nothing), "nothing is remembered");
    ask(&server, SmmuOp::Detach, 1).expect("it was attached");
    assert_eq!(fake.access(DISK, 0x1234_5678, true), nothing);
    ask(&server, SmmuOp::Attach, 0).expect("again");
    assert_eq!(fake.access(EDU, 0x4000_1234, true), Outcome::Goes(0x6020_1234));
}

#[test]
fn only_root_says_what_devices_see_and_of_guests_that_have_some() {
    let fake = Fake::with(|_| {});
    let server = start(&fake).expect("it can do all");
    let mut words = [0; WORDS];
    words[0] = SmmuOp::Attach as u64;
    for (badge, number) in [(badge::MONITOR, 1), (badge::ROOT, 3), (badge::ROOT, 99)] {
        words[0] = number;
        let Reply::Call(answer) = server.call(&time(), badge, words) else { panic!("an answer") };
        assert_ne!(answer[0], 0);
    }
    // A guest is a number of eight bits where it counts: others are none of it.
    for (op, guest) in [SmmuOp::Attach, SmmuOp::Detach].into_iter().flat_map(|op| [2, 255, 256, 1 << 32, u64::MAX].map(|guest| (op, guest))) {
        (words[0], words[1]) = (op as u64, guest);
        let Reply::Call(answer) = server.call(&time(), badge::ROOT, words) else { panic!("an answer") };
        assert_ne!(answer[0], 0, "{op:?} {guest}");
    }
    assert_eq!(fake.access(EDU, 0x4000_0000, true), Outcome::Stopped(false));
}

/// The first ends without a word; devices go on while there is none.
#[test]
fn a_server_that_follows_a_lost_one_finds_devices_at_work() {
    let fake = Fake::with(|_| {});
    let first = start(&fake).expect("it can do all");
    ask(&first, SmmuOp::Attach, 0).expect("there is such a guest");
    assert_eq!(fake.access(EDU, 0x4000_0000, true), Outcome::Goes(0x6020_0000));
    drop(first);
    let before = fake.whole().commands;
    let second = start(&fake).expect("it is at work");
    ask(&second, SmmuOp::Attach, 0).expect("it is attached");
    assert_eq!(fake.whole().commands, before, "nothing changes");
    assert_eq!(fake.access(NET, 0x4000_0000, true), Outcome::Goes(0x6020_0000));
    ask(&second, SmmuOp::Detach, 0).expect("it is attached");
    assert_eq!(fake.access(EDU, 0x4000_0000, true), Outcome::Stopped(false));
}

/// At any point: what follows shows a device its guest's memory or nothing.
#[test]
fn a_server_that_was_lost_in_the_middle_is_followed_by_one_that_does_it_all() {
    // Whoever is lost here waits for hardware that hears nothing: not each point, but such as are everywhere.
    for writes in (0..).step_by(131) {
        let fake = Fake::with(|settings| settings.writes = Some(writes));
        let lost = start(&fake).and_then(|server| ask(&server, SmmuOp::Attach, 0).map_err(|_| Failure::Stuck));
        let is_over = fake.whole().settings.writes != Some(0);
        fake.whole().settings.writes = None;
        let server = start(&fake).unwrap_or_else(|why| panic!("{writes}: {why:?} after {lost:?}"));
        ask(&server, SmmuOp::Detach, 1).expect("it is not attached");
        ask(&server, SmmuOp::Attach, 0).expect("it is attached or not");
        assert_eq!(fake.access(EDU, 0x4000_1000, true), Outcome::Goes(0x6020_1000), "{writes}");
        assert_eq!(fake.access(DISK, 0x4000_1000, true), Outcome::Stopped(false), "{writes}");
        ask(&server, SmmuOp::Detach, 0).expect("it is attached");
        assert_eq!(fake.access(NET, 0x4000_1000, true), Outcome::Stopped(false), "{writes}");
        if is_over {
            assert!(writes > 100, "there are that many");
            return;
        }
    }
}

#[test]
fn hardware_that_cannot_do_it_is_told_apart() {
    let spoilt: [(fn(&mut model::Settings), Failure); 8] = [
        (|settings| settings.features[0] &= !1, Failure::Features),
        (|settings| settings.features[0] &= !(2 << 2), Failure::Features),
        (|settings| settings.features[1] |= 1 << 30, Failure::Features),
        (|settings| settings.features[2] &= !(1 << 4), Failure::Features),
        (|settings| settings.features[0] &= !(1 << 4), Failure::NotCoherent),
        (|settings| settings.features[1] = settings.features[1] & !63 | 5, Failure::TooSmall),
        (|settings| settings.silent = true, Failure::Stuck),
        (|settings| settings.frozen = true, Failure::Stuck),
    ];
    for (spoil, why) in spoilt {
        assert_eq!(start(&Fake::with(spoil)).map(drop), Err(why));
    }
}

/// Whoever asked hears of it, and the next server begins anew.
#[test]
fn a_command_that_is_not_understood_ends_in_a_new_beginning_with_everything_stopped() {
    let fake = Fake::with(|_| {});
    let server = start(&fake).expect("it can do all");
    ask(&server, SmmuOp::Attach, 0).expect("there is such a guest");
    fake.whole().spoil();
    assert!(ask(&server, SmmuOp::Detach, 0).is_err());
    let next = start(&fake).expect("it begins anew");
    assert_eq!(fake.access(EDU, 0x4000_0000, true), Outcome::Stopped(false));
    ask(&next, SmmuOp::Attach, 0).expect("there is such a guest");
    assert_eq!(fake.access(EDU, 0x4000_0000, true), Outcome::Goes(0x6020_0000));
}

/// What is told from one wake-up to the next.
fn told(server: &Server<Fake>, time: &Time, told: &mut Told) -> (Vec<Stopped>, u64) {
    let said = RefCell::new(Vec::new());
    let deadline = server.heard(time, smmu_signal::EVENTS | smmu_signal::ERROR, told, &|stopped| said.borrow_mut().push(stopped));
    (said.into_inner(), deadline)
}

#[test]
fn an_access_that_is_stopped_is_told_with_guest_line_and_address() {
    let (fake, time) = (Fake::with(|_| {}), time());
    let server = start(&fake).expect("it can do all");
    ask(&server, SmmuOp::Attach, 0).expect("there is such a guest");
    let mut state = Told::new(&time);
    assert_eq!(told(&server, &time, &mut state), (vec![], 0));
    fake.access(EDU, 0x4400_0000, true);
    fake.access(NET, 0x0809_0040, false);
    fake.access(1 << 20, 0x4000_0000, true);
    let one = Stopped { guest: 0, line: 10, address: 0x4400_0000, event: 0x10, writes: true, more: 0 };
    let other = Stopped { address: 0x0809_0040, event: 0x13, writes: false, ..one };
    let (said, deadline) = told(&server, &time, &mut state);
    assert_eq!((said, deadline > 0), (vec![one, other], true));
    time.0.set(deadline);
    assert_eq!(told(&server, &time, &mut state), (vec![], 0), "there is nothing to wait for");
}

#[test]
fn a_device_that_does_nothing_else_is_told_of_little_and_all_is_counted() {
    let (fake, time) = (Fake::with(|_| {}), time());
    let server = start(&fake).expect("it can do all");
    ask(&server, SmmuOp::Attach, 0).expect("there is such a guest");
    let mut state = Told::new(&time);
    let (mut said, mut deadline) = (Vec::new(), 0);
    for round in 0..100 {
        for _ in 0..50 {
            fake.access(EDU, 0x4400_0000 + round, true);
        }
        let (more, until) = told(&server, &time, &mut state);
        (said.extend(more), deadline = until);
    }
    assert_eq!(said.len(), MOST as usize, "in one window");
    let raised = fake.whole().raised;
    assert!((MOST_EVENTS as usize..MOST_EVENTS as usize + 50).contains(&raised), "then it is not listened to: {raised}");
    // The queue is full, and what does not fit is lost; both are known at the window's end.
    time.0.set(deadline);
    let (last, _) = told(&server, &time, &mut state);
    assert_eq!(last[0].more, MOST_EVENTS - MOST - 1, "those that were read and not told");
    assert!(last.len() <= 1 + MOST as usize, "{last:?}");
    fake.access(NET, 0x4500_0000, true);
    assert_eq!(fake.whole().raised, raised + 1, "it is listened to again");
    let (said, _) = told(&server, &time, &mut state);
    assert_eq!(said.iter().map(|one| one.address).collect::<Vec<_>>(), [0x4500_0000], "another device's is told");
    // One that had enough of it is lost; the next one listens.
    for _ in 0..150 {
        fake.access(EDU, 0x4400_0000, true);
        told(&server, &time, &mut state);
    }
    let raised = fake.whole().raised;
    fake.access(EDU, 0x4400_0000, true);
    assert_eq!(fake.whole().raised, raised);
    drop(start(&fake).expect("it is at work"));
    fake.access(EDU, 0x4400_0000, true);
    assert_eq!(fake.whole().raised, raised + 1);
}
