// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of a server that hands an interrupt on and waits for the next in one operation: the same as taking, passing and
//! waiting, only sooner.

mod common;

use common::*;
use proptest::prelude::*;
use trellis_core::local::{Running, THREADS};
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, CLIENT, ROOT, anywhere, grant, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{LineField, Op, Refusal, Rights, Service};
use trellis_idl::layout::root_slot;

/// The guest's lines, and one that it does not have; their sources are numbered in this order.
const LINES: [u64; 3] = [34, 35, 200];
/// Slots of root's.
const LINE_SLOTS: u64 = slot::FREE;
const SECOND: u64 = slot::FREE + 4;
/// In the client's table: the machine, its own signals (its queue's, another bit), and the lines.
const MACHINE: u64 = 40;
const QUEUE: u64 = 41;
const OTHER: u64 = 42;
const CLIENT_LINES: u64 = 43;
const FOREIGN: u64 = 46;
/// In the client's table: the vCPU.
const VCPU: u64 = trellis_idl::layout::slot::VCPU;
/// The client's bits: of its queue, and one more.
const BIT: u64 = 2;
const MORE: u64 = 4;

/// The guest runs and has two lines; the client serves CPU 0's queue and waits for the next.
fn forwarded(cpus: u16) -> Hosted {
    let mut hosted = small::system(Settings { cpus, ..Settings::default() });
    must(&mut hosted, Op::SignalCreate, [slot::THREADS[2], MORE, SECOND + 1, 0, 0, 0]);
    for (from, to, rights) in [
        (root_slot::SYSTEM, MACHINE, Rights::LINES), (slot::SIGNALS[1], QUEUE, Rights::USE), (SECOND + 1, OTHER, Rights::USE),
    ] {
        grant(&mut hosted, from, slot::DOMAINS[2], to, rights);
    }
    must(&mut hosted, Op::LinesEnable, [slot::VCPU, 1, 0, 0, 0, 0]);
    // Of different priorities: which of two equal ones comes first depends on their list registers.
    must(&mut hosted, Op::LinesPriority, [slot::VCPU, 32, 0x2010_0000, 0b1100, 0, 0]);
    for (index, line) in LINES.into_iter().enumerate() {
        let place = LINE_SLOTS + index as u64;
        must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, line, place, 0, 0, 0]);
        grant(&mut hosted, place, slot::DOMAINS[2], CLIENT_LINES + index as u64, Rights::CONTROL);
        assert_eq!(must(&mut hosted, Op::LineForward, [place, 0, 0, 0, 0, 0])[0], index as u64);
        must(&mut hosted, Op::LineAck, [place, 0, 0, 0, 0, 0]);
        if line < 128 {
            must(&mut hosted, Op::LineTie, [slot::VCPU, place, 1, 0, 0, 0]);
            let bit = 1 << (line - 32);
            must(&mut hosted, Op::LinesWrite, [slot::VCPU, LineField::Enabled as u64, 32, bit, bit, 0]);
        }
    }
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0x20_0000, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(client(&mut hosted, Op::QueueNext, [0; 6]), Err(Refusal::BadState), "it serves nothing yet");
    client(&mut hosted, Op::QueueServe, [MACHINE, QUEUE, 0, 0, 0, 0]).expect("it may serve");
    assert_eq!(next(&mut hosted, 0, 0), Now::Guest(0), "it is told to look once, and looks itself");
    hosted
}

/// An operation of the client's after which it goes on.
fn client(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
    hosted.invoke(0, op, a)
}

/// The client hands a service to a vCPU (0 = none) and waits for the next.
fn next(hosted: &mut Hosted, vcpu: u64, service: u64) -> Now {
    hosted.syscall(0, Op::QueueNext as u16, [vcpu, service, MORE, 0, 0, 0], [0; 10])
}

/// What the client was given: the bits, and the service.
fn given(hosted: &Hosted) -> (u64, Option<Service>) {
    assert_eq!(hosted.now(0), Now::Thread(CLIENT));
    let [bits, service, count] = hosted.registers(0).x;
    (bits, (count == 1).then_some(Service(service)))
}

fn fire(hosted: &mut Hosted, index: usize) -> Now {
    hosted.trap(0, Trap::Line(LINES[index] as u32))
}

/// The service of this source that the client was given.
fn service_of(hosted: &Hosted, source: u16) -> u64 {
    let (bits, service) = given(hosted);
    let service = service.expect("it was given one");
    assert_eq!((bits, service.source(), service.has_fired()), (BIT, source, true));
    service.0
}

/// The guest takes a line's interrupt and ends it.
fn serve(hosted: &mut Hosted, index: usize) {
    assert_eq!(hosted.acknowledge(0), Some(LINES[index] as u8));
    assert!(hosted.board.borrow().active.contains(&(LINES[index] as u32)), "the guest has not ended it");
    hosted.end_of_interrupt(0, LINES[index] as u8);
    assert!(!hosted.board.borrow().active.contains(&(LINES[index] as u32)), "its end is the line's end");
}

#[test]
fn a_server_that_waits_is_given_the_service_and_hands_it_on_in_one() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        for round in 0..6 {
            let index = round % 2;
            assert_eq!(fire(&mut hosted, index), Now::Thread(CLIENT), "its server goes before the guest");
            let service = service_of(&hosted, index as u16);
            assert!(!hosted.shared.forwarding.sources.is_linked(index as u16), "it is in no queue");
            assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
            serve(&mut hosted, index);
        }
        lawful(&hosted);
    }
}

#[test]
fn giving_and_handing_on_share_nothing_with_one_two_four_and_eight_cpus() {
    for cpus in [1, 2, 4, 8] {
        let mut hosted = forwarded(cpus);
        let before = hosted.sharing();
        for _ in 0..3 {
            fire(&mut hosted, 0);
            let service = service_of(&hosted, 0);
            assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
            serve(&mut hosted, 0);
        }
        assert_eq!(hosted.sharing(), before, "{cpus} CPUs");
        assert!(hosted.board.borrow().kicks.is_empty());
    }
}

#[test]
fn what_comes_while_one_is_served_is_given_next() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        fire(&mut hosted, 0);
        let first = service_of(&hosted, 0);
        assert_eq!(fire(&mut hosted, 1), Now::Thread(CLIENT), "it goes on");
        assert!(hosted.shared.forwarding.sources.is_linked(1), "and the second waits");
        assert_eq!(next(&mut hosted, VCPU, first), Now::Thread(CLIENT));
        let second = service_of(&hosted, 1);
        assert_eq!(next(&mut hosted, VCPU, second), Now::Guest(0), "the wake-up for it was taken with it");
        serve(&mut hosted, 0);
        serve(&mut hosted, 1);
        lawful(&hosted);
    }
}

#[test]
fn one_that_comes_again_while_it_is_served_is_given_again() {
    let mut hosted = forwarded(1);
    fire(&mut hosted, 0);
    let service = service_of(&hosted, 0);
    // Its server ended it by hand, as a line of several sources must be.
    hosted.board.borrow_mut().active.clear();
    assert_eq!(fire(&mut hosted, 0), Now::Thread(CLIENT), "it goes on");
    assert!(!hosted.shared.forwarding.sources.is_linked(0), "nobody serves it twice at once");
    assert_eq!(next(&mut hosted, VCPU, service), Now::Thread(CLIENT));
    let again = service_of(&hosted, 0);
    assert_ne!(service, again);
    assert_eq!(next(&mut hosted, VCPU, again), Now::Guest(0));
    serve(&mut hosted, 0);
    lawful(&hosted);
}

#[test]
fn a_cpu_that_sleeps_gives_the_service_as_well() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        assert_eq!(hosted.trap(0, Trap::WaitForInterrupt), Now::Idle);
        assert_eq!(fire(&mut hosted, 0), Now::Thread(CLIENT));
        let service = service_of(&hosted, 0);
        assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0), "it wakes the vCPU");
        serve(&mut hosted, 0);
        lawful(&hosted);
    }
}

#[test]
fn a_disabled_line_waits_for_the_guest() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        let enabled = |values: u64| [VCPU, LineField::Enabled as u64, 32, 1 << (LINES[0] - 32), values, 0];
        fire(&mut hosted, 0);
        let service = service_of(&hosted, 0);
        client(&mut hosted, Op::LinesWrite, enabled(0)).expect("it may");
        assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
        assert_eq!(hosted.acknowledge(0), None);
        fire(&mut hosted, 1);
        let service = service_of(&hosted, 1);
        client(&mut hosted, Op::LinesWrite, enabled(u64::from(u32::MAX))).expect("it may");
        assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
        serve(&mut hosted, 0);
        serve(&mut hosted, 1);
    }
}

#[test]
fn deadlines_and_other_bits_end_the_wait() {
    let mut hosted = forwarded(1);
    fire(&mut hosted, 0);
    let service = service_of(&hosted, 0);
    let deadline = hosted.board.borrow().now + 500;
    let a = [VCPU, service, MORE, deadline, 0, 0];
    assert_eq!(hosted.syscall(0, Op::QueueNext as u16, a, [0; 10]), Now::Guest(0));
    hosted.advance(600);
    assert_eq!(given(&hosted), (0, None), "the deadline passed");
    // One that it has itself is there already.
    client(&mut hosted, Op::Signal, [OTHER, 0, 0, 0, 0, 0]).expect("its own");
    assert_eq!((next(&mut hosted, 0, 0), given(&hosted)), (Now::Thread(CLIENT), (MORE, None)));
    assert_eq!(next(&mut hosted, 0, 0), Now::Guest(0));
    serve(&mut hosted, 0);
    // With a deadline that has not passed it is given what comes, and the deadline is forgotten.
    fire(&mut hosted, 0);
    let (service, deadline) = (service_of(&hosted, 0), hosted.board.borrow().now + 500);
    assert_eq!(hosted.syscall(0, Op::QueueNext as u16, [VCPU, service, 0, deadline, 0, 0], [0; 10]), Now::Guest(0));
    serve(&mut hosted, 0);
    fire(&mut hosted, 0);
    let service = service_of(&hosted, 0);
    assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
    hosted.advance(5000);
    assert_eq!(hosted.now(0), Now::Guest(0));
    serve(&mut hosted, 0);
    lawful(&hosted);
}

#[test]
fn a_service_that_cannot_be_handed_on_stays_with_its_server() {
    let mut hosted = forwarded(1);
    fire(&mut hosted, 2);
    let service = service_of(&hosted, 2);
    let mut refused = |vcpu: u64, service: u64| client(&mut hosted, Op::QueueNext, [vcpu, service, 0, 0, 0, 0]);
    assert_eq!(refused(VCPU, service), Err(Refusal::BadState), "the guest has no such line");
    assert_eq!(refused(MACHINE, service), Err(Refusal::WrongKind));
    assert_eq!(refused(FOREIGN, service), Err(Refusal::NoCapability));
    assert_eq!(refused(VCPU, 0), Err(Refusal::Gone), "nobody has that one");
    client(&mut hosted, Op::QueueDone, [MACHINE, service, 0, 0, 0, 0]).expect("its own service");
    assert_eq!(next(&mut hosted, 0, 0), Now::Guest(0));
    lawful(&hosted);
}

#[test]
fn a_vcpu_of_another_cpu_takes_the_longer_way() {
    let mut hosted = forwarded(2);
    wake(&mut hosted, ROOT, 1);
    anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, 1, SECOND, small::VCPU_PRIORITY, 0]).expect("a second vCPU");
    grant(&mut hosted, SECOND, slot::DOMAINS[2], FOREIGN, Rights::ALL);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    fire(&mut hosted, 0);
    let service = service_of(&hosted, 0);
    next(&mut hosted, FOREIGN, service);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(CLIENT), Err(Refusal::BadState)));
    assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0), "the service is the server's still");
    serve(&mut hosted, 0);
    lawful(&hosted);
}

#[test]
fn what_was_given_to_a_server_that_is_lost_is_served_again() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        fire(&mut hosted, 0);
        let lost = service_of(&hosted, 0);
        // Another server takes over; here it is the same thread.
        client(&mut hosted, Op::QueueServe, [MACHINE, QUEUE, 1, 0, 0, 0]).expect("it may serve");
        assert_eq!(client(&mut hosted, Op::QueueNext, [VCPU, lost, 0, 0, 0, 0]), Err(Refusal::Gone));
        assert_eq!(next(&mut hosted, 0, 0), Now::Thread(CLIENT), "it has work");
        let service = given(&hosted).1.expect("it waits");
        assert_eq!((service.source(), service.has_fired()), (0, true));
        assert_eq!(next(&mut hosted, VCPU, service.0), Now::Guest(0));
        serve(&mut hosted, 0);
        lawful(&hosted);
    }
}

#[test]
fn a_thread_that_only_waits_is_told_and_given_nothing() {
    let mut hosted = forwarded(1);
    fire(&mut hosted, 0);
    let service = service_of(&hosted, 0);
    client(&mut hosted, Op::LinePass, [VCPU, service, 0, 0, 0, 0]).expect("the guest has the line");
    // No mask of a plain wait can say otherwise.
    let a = [BIT | !(u64::MAX >> 16), 0, 0, 0, 0, 0];
    assert_eq!(hosted.syscall(0, Op::Wait as u16, a, [0; 10]), Now::Guest(0));
    serve(&mut hosted, 0);
    fire(&mut hosted, 0);
    assert_eq!(given(&hosted), (BIT, None));
    assert!(hosted.shared.forwarding.sources.is_linked(0));
    assert_eq!(next(&mut hosted, 0, 0), Now::Thread(CLIENT));
    let service = service_of(&hosted, 0);
    assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
    serve(&mut hosted, 0);
}

/// What a server does for an interrupt is paid from its own budget, on whichever way it came.
#[test]
fn a_server_pays_for_what_it_does() {
    let used = [false, true].map(|only_slow| {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        let used = |hosted: &Hosted| {
            let budgets = &hosted.cpus[0].local.budgets;
            [budgets[CLIENT as usize].used, budgets[THREADS].used]
        };
        let pass_time = |hosted: &Hosted, ticks: u64| hosted.board.borrow_mut().now += ticks;
        let before = used(&hosted);
        for _ in 0..4 {
            pass_time(&hosted, 1000);
            fire(&mut hosted, 0);
            let service = service_of(&hosted, 0);
            pass_time(&hosted, 30);
            assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
            serve(&mut hosted, 0);
        }
        let after = used(&hosted);
        [after[0] - before[0], after[1] - before[1]]
    });
    assert_eq!(used[0], used[1]);
    assert!(used[0][0] >= 4 * 30 && used[0][0] < 1000, "{used:?}");
}

/// Whoever else can run is neither passed over nor let in front of the guest.
#[test]
fn somebody_better_who_became_able_to_run_goes_first() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        fire(&mut hosted, 0);
        let service = service_of(&hosted, 0);
        // Root has a better priority than both: it runs at once, and lets the server go on.
        let root = trellis_hosted::small::inner_slot::ROOT;
        assert_eq!(hosted.syscall(0, Op::Signal as u16, [root, 0, 0, 0, 0, 0], [0; 10]), Now::Thread(ROOT));
        assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
        assert_eq!(next(&mut hosted, VCPU, service), Now::Guest(0));
        assert_eq!(hosted.cpus[0].local.running, Running::Vcpu(0));
        serve(&mut hosted, 0);
        lawful(&hosted);
    }
}

/// A thread that waits runs though nothing came.
fn wake(hosted: &mut Hosted, thread: u16, bit: u64) {
    if hosted.now(0) == Now::Thread(thread) {
        return;
    }
    let id = trellis_core::pool::Id::from_word(hosted.cpus[0].local.threads.name_at(thread).0);
    let this = &mut hosted.cpus[0];
    trellis_core::signal::raise(&mut this.local, &hosted.shared, &mut this.machine, id, bit);
    assert_eq!(hosted.trap(0, Trap::Spurious), Now::Thread(thread));
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    Fire(usize),
    /// The server hands on what it was given, if it runs.
    Next,
    /// The guest takes what comes, ends what it took.
    Acknowledge,
    End,
    Sleep,
    Pass(u64),
    Enable(bool),
    /// Another thread wants the server.
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..2).prop_map(Step::Fire),
        8 => Just(Step::Next),
        4 => Just(Step::Acknowledge),
        4 => Just(Step::End),
        1 => Just(Step::Sleep),
        2 => (1u64..200).prop_map(Step::Pass),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => Just(Step::Other),
    ]
}

/// A machine, and what the server and the guest have in hand.
struct Story {
    hosted: Hosted,
    held: Option<u64>,
    active: Vec<u8>,
}

impl Story {
    fn new(only_slow: bool) -> Story {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        Story { hosted, held: None, active: Vec::new() }
    }

    /// Does it. Back: what can be seen of it.
    fn act(&mut self, step: Step) -> (Now, Option<u64>) {
        let before = self.hosted.now(0);
        let mut seen = None;
        match (step, before) {
            (Step::Fire(index), _) => drop(fire(&mut self.hosted, index)),
            (Step::Next, Now::Thread(CLIENT)) => {
                let (vcpu, service) = self.held.take().map_or((0, 0), |service| (VCPU, service));
                next(&mut self.hosted, vcpu, service);
                self.note(true);
            }
            (Step::Acknowledge, Now::Guest(0)) => {
                seen = self.hosted.acknowledge(0).map(u64::from);
                self.active.extend(seen.map(|line| line as u8));
            }
            (Step::End, Now::Guest(0)) => {
                if let Some(line) = self.active.pop() {
                    self.hosted.end_of_interrupt(0, line);
                }
            }
            (Step::Sleep, Now::Guest(0)) if self.active.is_empty() => drop(self.hosted.trap(0, Trap::WaitForInterrupt)),
            (Step::Pass(ticks), _) => self.hosted.advance(ticks),
            (Step::Enable(on), Now::Thread(CLIENT)) => {
                let values = if on { u64::from(u32::MAX) } else { 0 };
                let a = [VCPU, LineField::Enabled as u64, 32, 0b1100, values, 0];
                client(&mut self.hosted, Op::LinesWrite, a).expect("it may");
            }
            (Step::Other, Now::Thread(CLIENT)) => {
                client(&mut self.hosted, Op::Signal, [OTHER, 0, 0, 0, 0, 0]).expect("its own");
            }
            _ => {}
        }
        if before != Now::Thread(CLIENT) {
            self.note(false);
        }
        (self.hosted.now(0), seen.or(self.held))
    }

    /// The server was woken, or never waited: with what?
    fn note(&mut self, asked: bool) {
        if self.hosted.now(0) == Now::Thread(CLIENT) {
            let [bits, service, count] = self.hosted.registers(0).x;
            assert!(bits & (BIT | MORE) != 0 || !asked, "nothing else ends its wait");
            self.held = (count > 0).then_some(service);
        }
    }
}

proptest! {
    #[test]
    fn nobody_can_tell_the_hot_doors_from_the_slow_ways(steps in prop::collection::vec(step(), 1..100)) {
        let (mut hot, mut slow) = (Story::new(false), Story::new(true));
        for (index, step) in steps.iter().enumerate() {
            let seen = hot.act(*step);
            prop_assert_eq!(seen, slow.act(*step), "step {}: {:?}", index, step);
        }
        lawful(&hot.hosted);
        lawful(&slow.hosted);
        // In the end every line still comes.
        for story in [&mut hot, &mut slow] {
            wake(&mut story.hosted, CLIENT, MORE);
            story.act(Step::Enable(true));
            story.act(Step::Next);
            let mut came = [false; 2];
            let both = [Step::Fire(0), Step::Fire(1), Step::Next, Step::Next, Step::Next];
            for step in both.into_iter().chain([Step::Acknowledge, Step::End, Step::Acknowledge, Step::End]).cycle().take(60) {
                let (_, line) = story.act(step);
                if matches!(step, Step::Acknowledge) && let Some(line @ 34..=35) = line {
                    came[line as usize - 34] = true;
                }
            }
            prop_assert_eq!(came, [true; 2], "held {:?}, {:?}", story.held, story.hosted.now(0));
        }
    }
}
