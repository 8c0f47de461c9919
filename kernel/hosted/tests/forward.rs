// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of physical lines that a server forwards to a guest.

mod common;

use common::*;
use trellis_core::forward::SOURCES;
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, CLIENT, ROOT, anywhere, grant, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{FIRST_MESSAGE, LineField, MESSAGES, Op, Refusal, Rights, Service};
use trellis_idl::layout::root_slot;

/// The line that these stories are about, and one that the guest does not have.
const LINE: u64 = 34;
const OTHER: u64 = 200;
/// Slots: of the two lines, of a second vCPU.
const LINE_SLOT: u64 = slot::FREE;
const OTHER_SLOT: u64 = slot::FREE + 1;
const SECOND: u64 = slot::FREE + 2;
/// In the client's table: the machine, with the right to serve queues; its own signal; the line.
const MACHINE: u64 = 40;
const SIGNAL: u64 = 41;
const CLIENT_LINE: u64 = 42;
/// In the client's table: the vCPUs.
const VCPU: u64 = trellis_idl::layout::slot::VCPU;
/// The client's bit.
const BIT: u64 = 2;

fn enable(hosted: &mut Hosted, vcpu: u64) {
    must(hosted, Op::LinesEnable, [vcpu, 1, 0, 0, 0, 0]);
    must(hosted, Op::LinesWrite, [vcpu, LineField::Enabled as u64, 32, 1 << (LINE - 32), 1 << (LINE - 32), 0]);
}

/// The guest runs and has the line; the client serves CPU 0's queue, and waits.
fn forwarded(cpus: u16) -> Hosted {
    forwarded_as(cpus, LINE, 0)
}

/// The same with this physical line, which comes as this one of the guest's.
fn forwarded_as(cpus: u16, line: u64, as_line: u64) -> Hosted {
    let mut hosted = small::system(Settings { cpus, ..Settings::default() });
    for (line, to) in [(line, LINE_SLOT), (OTHER, OTHER_SLOT)] {
        must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, line, to, 0, 0, 0]);
    }
    grant(&mut hosted, root_slot::SYSTEM, slot::DOMAINS[2], MACHINE, Rights::LINES);
    grant(&mut hosted, slot::SIGNALS[1], slot::DOMAINS[2], SIGNAL, Rights::USE);
    grant(&mut hosted, LINE_SLOT, slot::DOMAINS[2], CLIENT_LINE, Rights::CONTROL);
    // What is not forwarded yet is tied by its number, and stays so.
    if as_line == 0 {
        must(&mut hosted, Op::LineTie, [slot::VCPU, LINE_SLOT, 1, 0, 0, 0]);
    }
    enable(&mut hosted, slot::VCPU);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0x20_0000, 0, 0, 0, 0]);
    assert_eq!(must(&mut hosted, Op::LineForward, [LINE_SLOT, as_line, 0, 0, 0, 0])[0], 0, "the first source");
    if as_line != 0 {
        must(&mut hosted, Op::LineTie, [slot::VCPU, LINE_SLOT, 1, 0, 0, 0]);
        let (first, bit) = (as_line & !31, 1 << (as_line & 31));
        must(&mut hosted, Op::LinesWrite, [slot::VCPU, LineField::Enabled as u64, first, bit, bit, 0]);
        // A guest is told that a message is an edge.
        let edge = if line >= FIRST_MESSAGE { bit } else { 0 };
        must(&mut hosted, Op::LinesWrite, [slot::VCPU, LineField::Edge as u64, first, bit, edge, 0]);
    }
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    client(&mut hosted, Op::QueueServe, [MACHINE, SIGNAL, 0, 0, 0, 0]).expect("it may serve");
    client(&mut hosted, Op::LineAck, [CLIENT_LINE, 0, 0, 0, 0, 0]).expect("the line is its own");
    assert_eq!(idle(&mut hosted), Now::Thread(CLIENT), "it is told to look once");
    assert_eq!((take(&mut hosted), idle(&mut hosted)), (vec![], Now::Guest(0)));
    hosted
}

/// An operation of the client's.
fn client(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
    hosted.invoke(0, op, a)
}

/// The client waits for its queue.
fn idle(hosted: &mut Hosted) -> Now {
    hosted.syscall(0, Op::Wait as u16, [BIT, 0, 0, 0, 0, 0], [0; 10])
}

/// What the client finds in its queue.
fn take(hosted: &mut Hosted) -> Vec<Service> {
    let [count, rest @ ..] = client(hosted, Op::QueueTake, [MACHINE, 0, 0, 0, 0, 0]).expect("it may");
    rest.iter().take(count as usize).map(|word| Service(*word)).collect()
}

fn fire(hosted: &mut Hosted) -> Now {
    hosted.trap(0, Trap::Line(LINE as u32))
}

fn is_active(hosted: &Hosted) -> bool {
    hosted.board.borrow().active.contains(&(LINE as u32))
}

/// The client, just woken, hands on the one interrupt that came.
fn pass(hosted: &mut Hosted) -> Now {
    let services = take(hosted);
    assert_eq!(services.len(), 1);
    assert!(services[0].has_fired());
    client(hosted, Op::LinePass, [VCPU, services[0].0, 0, 0, 0, 0]).expect("the guest has the line");
    assert_eq!(take(hosted), []);
    idle(hosted)
}

/// The guest takes the interrupt and ends it.
fn serve(hosted: &mut Hosted) {
    assert_eq!(hosted.acknowledge(0), Some(LINE as u8));
    assert!(is_active(hosted), "the guest has not ended it");
    assert_eq!(fire(hosted), Now::Guest(0), "it cannot come twice");
    hosted.end_of_interrupt(0, LINE as u8);
    assert!(!is_active(hosted), "its end is the line's end");
}

#[test]
fn an_interrupt_reaches_the_guest_and_the_guest_ends_it() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        for _ in 0..5 {
            assert_eq!(fire(&mut hosted), Now::Thread(CLIENT), "its server goes before the guest");
            assert_eq!(hosted.registers(0).x[0], BIT);
            assert_eq!(pass(&mut hosted), Now::Guest(0));
            serve(&mut hosted);
        }
        lawful(&hosted);
    }
}

/// Every line that there can be, as any that a guest has: its own number or another.
#[test]
fn a_line_reaches_the_guest_as_the_one_that_it_is_given() {
    let pairs = [(32, 127), (127, 32), (128, 40), (255, 63), (256, 64), (287, 100), (511, 96), (512, 95), (1018, 33), (1019, 127)];
    for (line, as_line) in pairs {
        for way in [1, 2] {
            let mut hosted = forwarded_as(1, line, as_line);
            let active = |hosted: &Hosted| hosted.board.borrow().active.contains(&(line as u32));
            if way == 2 {
                wake_client(&mut hosted);
                client(&mut hosted, Op::LineTie, [VCPU, CLIENT_LINE, 2, 0, 0, 0]).expect("the line is its own");
                assert_eq!(idle(&mut hosted), Now::Guest(0));
            }
            for _ in 0..3 {
                let now = hosted.trap(0, Trap::Line(line as u32));
                assert_eq!(now, if way == 1 { Now::Thread(CLIENT) } else { Now::Guest(0) }, "line {line}");
                if way == 1 {
                    assert_eq!(pass(&mut hosted), Now::Guest(0));
                }
                assert_eq!(hosted.acknowledge(0), Some(as_line as u8));
                assert!(active(&hosted), "the guest has not ended it");
                hosted.end_of_interrupt(0, as_line as u8);
                assert!(!active(&hosted), "its end is the line's end");
            }
            // What it has taken and does not end is the physical line's end all the same.
            hosted.trap(0, Trap::Line(line as u32));
            if way == 1 {
                assert_eq!(pass(&mut hosted), Now::Guest(0));
            }
            assert_eq!(hosted.acknowledge(0), Some(as_line as u8));
            wake_client(&mut hosted);
            client(&mut hosted, Op::LineTie, [VCPU, CLIENT_LINE, 0, 0, 0, 0]).expect("the line is its own");
            assert!(!active(&hosted), "line {line}: untied, and not stuck");
            lawful(&hosted);
        }
    }
}

#[test]
fn lines_that_do_not_exist_are_refused() {
    let mut hosted = small::system(Settings::default());
    let mut create = |line| trellis_hosted::small::anywhere(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, line, LINE_SLOT, 0, 0, 0]);
    for line in [0, 1, 15, 16, 31, 1020, 1023, 1024, 65_535, 1 << 32, u64::MAX] {
        assert_eq!(create(line), Err(Refusal::OutOfRange), "line {line}");
    }
    create(1019).expect("the last one");
    let mut edge = |how, slot| anywhere(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, 1018, slot, how, 0, 0]);
    assert_eq!(edge(2, OTHER_SLOT), Err(Refusal::BadArgument), "an edge or a level");
    edge(1, OTHER_SLOT).expect("an edge");
    assert!(hosted.board.borrow().edges.iter().eq(&[1018]));
    for as_line in [31, 128, 255, 256, 300, 65_535, u64::MAX, 0] {
        // Its own number (0) is no guest's either.
        must(&mut hosted, Op::LineForward, [LINE_SLOT, as_line, 0, 0, 0, 0]);
        let tie = anywhere(&mut hosted, Op::LineTie, [slot::VCPU, LINE_SLOT, 1, 0, 0, 0]);
        assert_eq!(tie, Err(Refusal::OutOfRange), "as line {as_line}");
        must(&mut hosted, Op::LineRelease, [LINE_SLOT, 0, 0, 0, 0, 0]);
    }
    lawful(&hosted);
}

#[test]
fn raising_and_taking_share_nothing_with_one_two_four_and_eight_cpus() {
    for cpus in [1, 2, 4, 8] {
        let mut hosted = forwarded(cpus);
        let before = hosted.sharing();
        for _ in 0..3 {
            fire(&mut hosted);
            pass(&mut hosted);
            serve(&mut hosted);
        }
        assert_eq!(hosted.sharing(), before, "{cpus} CPUs");
        assert!(hosted.board.borrow().kicks.is_empty());
    }
}

#[test]
fn a_server_is_woken_once_until_it_has_looked() {
    let mut hosted = forwarded(1);
    assert_eq!(fire(&mut hosted), Now::Thread(CLIENT));
    must(&mut hosted, Op::LineAck, [CLIENT_LINE, 1, 0, 0, 0, 0]);
    let service = take(&mut hosted)[0];
    // It comes again while it is served (its server ended it by hand, as a line of several sources must be): the source waits
    // for the end of the service.
    hosted.board.borrow_mut().active.clear();
    must(&mut hosted, Op::LineAck, [CLIENT_LINE, 0, 0, 0, 0, 0]);
    assert_eq!(fire(&mut hosted), Now::Thread(CLIENT), "it goes on");
    assert_eq!(take(&mut hosted), [], "nobody serves it twice at once");
    client(&mut hosted, Op::QueueDone, [MACHINE, service.0, 0, 0, 0, 0]).expect("its own service");
    assert_eq!(client(&mut hosted, Op::QueueDone, [MACHINE, service.0, 0, 0, 0, 0]), Err(Refusal::Gone));
    assert_eq!(idle(&mut hosted), Now::Thread(CLIENT), "the edge woke it");
    assert_eq!(pass(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    lawful(&hosted);
}

#[test]
fn what_a_server_held_when_it_was_lost_is_served_again() {
    let mut hosted = forwarded(1);
    fire(&mut hosted);
    let lost = take(&mut hosted)[0];
    // Another server takes over; here it is the same thread.
    client(&mut hosted, Op::QueueServe, [MACHINE, SIGNAL, 1, 0, 0, 0]).expect("it may serve");
    assert_eq!(client(&mut hosted, Op::LinePass, [VCPU, lost.0, 0, 0, 0, 0]), Err(Refusal::Gone));
    assert_eq!(idle(&mut hosted), Now::Thread(CLIENT), "it has work");
    assert_eq!(pass(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    // What waits in the queue waits for the next server as well.
    fire(&mut hosted);
    client(&mut hosted, Op::QueueServe, [MACHINE, SIGNAL, 1, 0, 0, 0]).expect("it may serve");
    assert_eq!(idle(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(pass(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    lawful(&hosted);
}

#[test]
fn releasing_waits_for_the_service_and_ends_the_line() {
    let mut hosted = forwarded(1);
    fire(&mut hosted);
    let service = take(&mut hosted)[0];
    let release = |hosted: &mut Hosted| client(hosted, Op::LineRelease, [CLIENT_LINE, 0, 0, 0, 0, 0]).map(|all| all[0]);
    assert_eq!(release(&mut hosted), Ok(1), "a server has it");
    assert_eq!(release(&mut hosted), Ok(1));
    assert_eq!(client(&mut hosted, Op::LineForward, [CLIENT_LINE, 0, 0, 0, 0, 0]), Err(Refusal::Again));
    assert!(is_active(&hosted));
    client(&mut hosted, Op::QueueDone, [MACHINE, service.0, 0, 0, 0, 0]).expect("its own service");
    assert_eq!(release(&mut hosted), Ok(0));
    assert!(!is_active(&hosted) && hosted.board.borrow().lines.is_empty(), "it is masked, and not stuck");
    assert_eq!(release(&mut hosted), Ok(0), "a second time does nothing");
    assert_eq!(fire(&mut hosted), Now::Thread(CLIENT), "it is masked");
    assert_eq!(take(&mut hosted), []);
    // It can be forwarded again, and comes again.
    client(&mut hosted, Op::LineForward, [CLIENT_LINE, 0, 0, 0, 0, 0]).expect("it is free");
    let again = client(&mut hosted, Op::LineForward, [CLIENT_LINE, 0, 0, 0, 0, 0]);
    assert_eq!(again, Ok([0, 0, 0]), "it is the same source");
    assert_eq!(client(&mut hosted, Op::LineBind, [CLIENT_LINE, SIGNAL, 0, 0, 0, 0]), Err(Refusal::Occupied));
    client(&mut hosted, Op::LineAck, [CLIENT_LINE, 0, 0, 0, 0, 0]).expect("the line is its own");
    assert_eq!(idle(&mut hosted), Now::Guest(0));
    assert_eq!(fire(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(pass(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    lawful(&hosted);
}

#[test]
fn a_source_that_another_line_took_over_is_left_alone() {
    let mut hosted = forwarded(1);
    fire(&mut hosted);
    let service = take(&mut hosted)[0];
    assert_eq!(client(&mut hosted, Op::LineRelease, [CLIENT_LINE, 0, 0, 0, 0, 0]).map(|all| all[0]), Ok(1));
    client(&mut hosted, Op::QueueDone, [MACHINE, service.0, 0, 0, 0, 0]).expect("its own service");
    grant_to_client(&mut hosted);
    assert_eq!(client(&mut hosted, Op::LineForward, [43, 0, 0, 0, 0, 0]).map(|all| all[0]), Ok(0), "the same source");
    assert_eq!(client(&mut hosted, Op::LineRelease, [CLIENT_LINE, 0, 0, 0, 0, 0]).map(|all| all[0]), Ok(0));
    client(&mut hosted, Op::LineAck, [43, 0, 0, 0, 0, 0]).expect("its own");
    assert_eq!(hosted.trap(0, Trap::Line(OTHER as u32)), Now::Thread(CLIENT));
    let services = take(&mut hosted);
    assert_eq!(services.len(), 1, "it is still bound");
    // The guest has no such line.
    assert_eq!(client(&mut hosted, Op::LinePass, [VCPU, services[0].0, 0, 0, 0, 0]), Err(Refusal::BadState));
    client(&mut hosted, Op::QueueDone, [MACHINE, services[0].0, 0, 0, 0, 0]).expect("its own service");
    lawful(&hosted);
}

/// The client gets the other line, in slot 43: root is woken for it and sleeps again.
fn grant_to_client(hosted: &mut Hosted) {
    let root_signal = trellis_hosted::small::inner_slot::ROOT;
    assert_eq!(hosted.syscall(0, Op::Signal as u16, [root_signal, 0, 0, 0, 0, 0], [0; 10]), Now::Thread(ROOT));
    grant(hosted, OTHER_SLOT, slot::DOMAINS[2], 43, Rights::CONTROL);
    assert_eq!(wait(hosted), Now::Thread(CLIENT));
}

#[test]
fn only_who_may_serves_and_ties() {
    let mut hosted = forwarded(1);
    assert_eq!(hosted.trap(0, Trap::Line(LINE as u32)), Now::Thread(CLIENT));
    for op in [Op::QueueTake, Op::QueueDone, Op::QueueServe] {
        assert_eq!(client(&mut hosted, op, [CLIENT_LINE, 0, 0, 0, 0, 0]), Err(Refusal::WrongKind), "{op:?}");
    }
    grant_to_client(&mut hosted);
    assert_eq!(client(&mut hosted, Op::LineTie, [VCPU, SIGNAL, 1, 0, 0, 0]), Err(Refusal::WrongKind));
    assert_eq!(client(&mut hosted, Op::LineTie, [VCPU, 43, 1, 0, 0, 0]), Err(Refusal::OutOfRange), "a guest has 128 lines");
    assert_eq!(client(&mut hosted, Op::LineTie, [VCPU, CLIENT_LINE, 3, 0, 0, 0]), Err(Refusal::BadArgument));
    assert_eq!(client(&mut hosted, Op::LineAck, [CLIENT_LINE, 0, 65, 0, 0, 0]), Err(Refusal::BadArgument));
    lawful(&hosted);
}

#[test]
fn the_guest_cannot_leave_the_line_stuck() {
    let field = |field: LineField| [VCPU, field as u64, 32, 1 << (LINE - 32), 0, 0];
    // Taken and never ended, then made inactive; pending, then made not pending; reset; untied.
    for how in 0..4 {
        let mut hosted = forwarded(1);
        fire(&mut hosted);
        let service = take(&mut hosted)[0];
        client(&mut hosted, Op::LinePass, [VCPU, service.0, 0, 0, 0, 0]).expect("the guest has the line");
        if how == 0 {
            assert_eq!(idle(&mut hosted), Now::Guest(0));
            assert_eq!(hosted.acknowledge(0), Some(LINE as u8));
            // Dropping what is pending does not end what the guest has taken.
            wake_client(&mut hosted);
            client(&mut hosted, Op::LinesWrite, field(LineField::Pending)).expect("it may");
            assert!(is_active(&hosted));
        }
        let (op, a) = match how {
            0 => (Op::LinesWrite, field(LineField::Active)),
            1 => (Op::LinesWrite, field(LineField::Pending)),
            2 => (Op::LineTie, [VCPU, CLIENT_LINE, 0, 0, 0, 0]),
            _ => (Op::VcpuStop, [VCPU, 0, 0, 0, 0, 0]),
        };
        client(&mut hosted, op, a).expect("it may");
        if how == 3 {
            client(&mut hosted, Op::VcpuReset, [VCPU, 0, 0, 0, 0, 0]).expect("it is stopped");
            assert!(is_active(&hosted), "a guest-wide line stays pending over a vCPU's reset");
            client(&mut hosted, Op::LinesWrite, field(LineField::Pending)).expect("it may");
        }
        assert!(!is_active(&hosted), "case {how}");
        assert_eq!(fire(&mut hosted), Now::Thread(CLIENT));
        assert_eq!(take(&mut hosted).len(), 1, "it comes again");
        lawful(&hosted);
    }
}

/// The client runs though nothing came.
fn wake_client(hosted: &mut Hosted) {
    let root = hosted.cpus[0].local.threads.name_at(CLIENT).0;
    let id = trellis_core::pool::Id::from_word(root);
    let this = &mut hosted.cpus[0];
    trellis_core::signal::raise(&mut this.local, &hosted.shared, &mut this.machine, id, BIT);
    assert_eq!(hosted.trap(0, Trap::Spurious), Now::Thread(CLIENT));
}

#[test]
fn a_reset_of_the_vcpu_that_has_taken_it_ends_it() {
    let mut hosted = forwarded(1);
    fire(&mut hosted);
    pass(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(LINE as u8));
    wake_client(&mut hosted);
    client(&mut hosted, Op::VcpuStop, [VCPU, 0, 0, 0, 0, 0]).expect("it may");
    client(&mut hosted, Op::VcpuReset, [VCPU, 0, 0, 0, 0, 0]).expect("it is stopped");
    assert!(!is_active(&hosted));
    fire(&mut hosted);
    assert_eq!(take(&mut hosted).len(), 1);
    lawful(&hosted);
}

#[test]
fn a_line_goes_with_its_guests_wish_to_another_cpu() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, LINE, LINE_SLOT, 0, 0, 0]);
    let everywhere = |hosted: &mut Hosted, op: Op, a: [u64; 6]| anywhere(hosted, op, a).map(|all| all[0]);
    everywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, 1, SECOND, small::VCPU_PRIORITY, 0]).expect("a second vCPU");
    for vcpu in [slot::VCPU, SECOND] {
        everywhere(&mut hosted, Op::LineTie, [vcpu, LINE_SLOT, 1, 0, 0, 0]).expect("root may");
        everywhere(&mut hosted, Op::LinesEnable, [vcpu, 1, 0, 0, 0, 0]).expect("root may");
    }
    enable(&mut hosted, slot::VCPU);
    must(&mut hosted, Op::LineForward, [LINE_SLOT, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::QueueServe, [root_slot::SYSTEM, slot::SIGNALS[0], 0, 0, 0, 0]);
    must(&mut hosted, Op::LineAck, [LINE_SLOT, 0, 0, 0, 0, 0]);
    fire(&mut hosted);
    let service = must(&mut hosted, Op::QueueTake, [root_slot::SYSTEM, 0, 0, 0, 0, 0])[1];
    let pass = |hosted: &mut Hosted, vcpu: u64, service: u64| everywhere(hosted, Op::LinePass, [vcpu, service, 0, 0, 0, 0]);
    assert_eq!(pass(&mut hosted, SECOND, service), Err(Refusal::BadState), "it is not sent there");
    assert_eq!(pass(&mut hosted, slot::VCPU, service), Ok(0));
    // It is pending and goes, with what is pending, to the other vCPU.
    let state = must(&mut hosted, Op::LineTake, [slot::VCPU, LINE, 0, 0, 0, 0])[0];
    everywhere(&mut hosted, Op::LineTarget, [SECOND, LINE, state, 0, 0, 0]).expect("it is free");
    everywhere(&mut hosted, Op::VcpuStart, [SECOND, 0, 0, 0, 0, 0]).expect("it is stopped");
    assert_eq!((hosted.now(1), hosted.acknowledge(1)), (Now::Guest(0), Some(LINE as u8)));
    hosted.end_of_interrupt(1, LINE as u8);
    assert!(!is_active(&hosted));
    // From here on it comes to that CPU.
    everywhere(&mut hosted, Op::LineAck, [LINE_SLOT, 0, 2, 0, 0, 0]).expect("there is such a CPU");
    assert_eq!(hosted.board.borrow().lines[&(LINE as u32)], 1);
    fire(&mut hosted);
    assert!(!is_active(&hosted), "it does not come to CPU 0 any more");
    hosted.trap(1, Trap::Line(LINE as u32));
    assert_eq!(hosted.now(1), Now::Guest(0), "nobody serves that CPU's queue yet");
    assert!(hosted.shared.forwarding.sources.is_linked(0), "but there it waits");
    lawful(&hosted);
}

#[test]
fn there_are_so_many_sources_and_no_more() {
    let mut hosted = system();
    for line in 0..SOURCES as u64 {
        must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, 32 + line, LINE_SLOT, 0, 0, 0]);
        assert_eq!(must(&mut hosted, Op::LineForward, [LINE_SLOT, 0, 0, 0, 0, 0])[0], line);
        must(&mut hosted, Op::Drop, [LINE_SLOT, 0, 0, 0, 0, 0]);
    }
    must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, 300, LINE_SLOT, 0, 0, 0]);
    assert_eq!(hosted.invoke(0, Op::LineForward, [LINE_SLOT, 0, 0, 0, 0, 0]), Err(Refusal::Quota));
    must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, 40, OTHER_SLOT, 0, 0, 0]);
    assert_eq!(must(&mut hosted, Op::LineRelease, [OTHER_SLOT, 0, 0, 0, 0, 0])[0], 0);
    assert_eq!(must(&mut hosted, Op::LineForward, [LINE_SLOT, 0, 0, 0, 0, 0])[0], 8);
    lawful(&hosted);
}

/// How often the line went straight to the vCPU.
fn direct_count(hosted: &mut Hosted) -> u64 {
    wake_client(hosted);
    let [source, direct, _] = client(hosted, Op::LineForward, [CLIENT_LINE, 0, 0, 0, 0, 0]).expect("it is forwarded");
    assert_eq!((source, idle(hosted)), (0, Now::Guest(0)));
    direct
}

/// The line of [`forwarded`] goes straight to the vCPU.
fn direct(hosted: &mut Hosted, way: u64) {
    wake_client(hosted);
    client(hosted, Op::LineTie, [VCPU, CLIENT_LINE, way, 0, 0, 0]).expect("its own line");
    assert_eq!(idle(hosted), Now::Guest(0));
}

#[test]
fn a_direct_line_reaches_its_vcpu_without_a_server() {
    for only_slow in [false, true] {
        let mut hosted = forwarded(1);
        hosted.only_slow = only_slow;
        direct(&mut hosted, 2);
        let before = hosted.sharing();
        for _ in 0..5 {
            assert_eq!(fire(&mut hosted), Now::Guest(0), "nobody else runs");
            serve(&mut hosted);
        }
        assert_eq!(hosted.sharing(), before, "nothing is shared between CPUs");
        assert_eq!(direct_count(&mut hosted), 5);
        // Back through its server.
        direct(&mut hosted, 1);
        assert_eq!(fire(&mut hosted), Now::Thread(CLIENT));
        assert_eq!(pass(&mut hosted), Now::Guest(0));
        serve(&mut hosted);
        assert_eq!(direct_count(&mut hosted), 5);
        lawful(&hosted);
    }
}

#[test]
fn a_direct_line_wakes_a_vcpu_that_waits() {
    let mut hosted = forwarded(1);
    direct(&mut hosted, 2);
    assert_eq!(hosted.trap(0, Trap::WaitForInterrupt), Now::Idle);
    assert_eq!(fire(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    lawful(&hosted);
}

#[test]
fn a_direct_line_that_its_vcpu_does_not_take_goes_to_the_server() {
    // The guest sends the line elsewhere; the vCPU is no more.
    for gone in [false, true] {
        let mut hosted = forwarded(1);
        direct(&mut hosted, 2);
        wake_client(&mut hosted);
        if gone {
            client(&mut hosted, Op::VcpuStop, [VCPU, 0, 0, 0, 0, 0]).expect("it may");
            client(&mut hosted, Op::VcpuDestroy, [VCPU, 0, 0, 0, 0, 0]).expect("it is stopped");
        } else {
            client(&mut hosted, Op::LineTake, [VCPU, LINE, 0, 0, 0, 0]).expect("it is not active");
        }
        idle(&mut hosted);
        assert_eq!(fire(&mut hosted), Now::Thread(CLIENT));
        let services = take(&mut hosted);
        assert_eq!(services.len(), 1);
        client(&mut hosted, Op::QueueDone, [MACHINE, services[0].0, 0, 0, 0, 0]).expect("its own service");
        lawful(&hosted);
    }
}

#[test]
fn a_direct_line_that_is_disabled_waits_for_the_guest() {
    let mut hosted = forwarded(1);
    direct(&mut hosted, 2);
    let enabled = |values: u64| [VCPU, LineField::Enabled as u64, 32, 1 << (LINE - 32), values, 0];
    wake_client(&mut hosted);
    client(&mut hosted, Op::LinesWrite, enabled(0)).expect("it may");
    idle(&mut hosted);
    assert_eq!(fire(&mut hosted), Now::Guest(0));
    assert_eq!((hosted.acknowledge(0), is_active(&hosted)), (None, true));
    wake_client(&mut hosted);
    client(&mut hosted, Op::LinesWrite, enabled(1 << (LINE - 32))).expect("it may");
    assert_eq!(idle(&mut hosted), Now::Guest(0));
    serve(&mut hosted);
    lawful(&hosted);
}

/// A message's line has no active state and no list register that is tied to it: it comes again whenever it likes.
#[test]
fn a_message_reaches_the_guest_as_one_of_its_lines_and_comes_again_at_will() {
    const LAST: u64 = FIRST_MESSAGE + MESSAGES - 1;
    for (line, as_line) in [(FIRST_MESSAGE, 127), (FIRST_MESSAGE + 7, 34), (LAST, 32)] {
        for (way, only_slow) in [(1, false), (1, true), (2, false), (2, true)] {
            let mut hosted = forwarded_as(1, line, as_line);
            hosted.only_slow = only_slow;
            let fire = |hosted: &mut Hosted| hosted.trap(0, Trap::Line(line as u32));
            if way == 2 {
                wake_client(&mut hosted);
                client(&mut hosted, Op::LineTie, [VCPU, CLIENT_LINE, 2, 0, 0, 0]).expect("the line is its own");
                assert_eq!(idle(&mut hosted), Now::Guest(0));
            }
            let arrive = |hosted: &mut Hosted| {
                if fire(hosted) == Now::Thread(CLIENT) {
                    assert_eq!((way, pass(hosted)), (1, Now::Guest(0)));
                }
            };
            arrive(&mut hosted);
            assert_eq!(hosted.acknowledge(0), Some(as_line as u8), "line {line}");
            // Twice more while the guest has not ended the first: one is to come.
            arrive(&mut hosted);
            arrive(&mut hosted);
            hosted.end_of_interrupt(0, as_line as u8);
            assert_eq!(hosted.acknowledge(0), Some(as_line as u8), "what came meanwhile");
            hosted.end_of_interrupt(0, as_line as u8);
            assert_eq!(hosted.acknowledge(0), None, "and nothing that did not come");
            assert!(hosted.board.borrow().active.is_empty(), "nothing of it ever is");
            arrive(&mut hosted);
            wake_client(&mut hosted);
            client(&mut hosted, Op::LineTie, [VCPU, CLIENT_LINE, 0, 0, 0, 0]).expect("the line is its own");
            assert_eq!((idle(&mut hosted), hosted.acknowledge(0)), (Now::Guest(0), None), "untied, it is dropped");
            lawful(&hosted);
        }
    }
}

#[test]
fn only_so_many_lines_are_made_by_messages() {
    let mut hosted = small::system(Settings::default());
    for line in [FIRST_MESSAGE - 1, FIRST_MESSAGE + MESSAGES, 0xffff, FIRST_MESSAGE | 1 << 32] {
        let made = anywhere(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, line, LINE_SLOT, 0, 0, 0]);
        assert_eq!(made, Err(Refusal::OutOfRange), "line {line}");
    }
    for (line, how, slot) in [(FIRST_MESSAGE, 1, LINE_SLOT), (FIRST_MESSAGE + MESSAGES - 1, 0, OTHER_SLOT)] {
        anywhere(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, line, slot, how, 0, 0]).expect("it is a message's");
        must(&mut hosted, Op::LineForward, [slot, 40, 0, 0, 0, 0]);
        must(&mut hosted, Op::LineRelease, [slot, 0, 0, 0, 0, 0]);
    }
    lawful(&hosted);
}
