// SPDX-License-Identifier: MIT OR Apache-2.0
//! One instruction in another view: what an answer that steps does, and what ends it.

mod common;

use common::*;
use trellis_core::lines::{SoftwareInterrupt, VIRTUAL_TIMER};
use trellis_core::trap::Trap;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::guest::Touch;
use trellis_hosted::small::{self, GUEST_PAGE, INNER, OUTER, anywhere, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{
    Access, Answer, ExitClass, ExitHeader, GuestCall, LineField, Op, PLACE, Refusal, VcpuRegister,
};

const READ: Access = Access::READ;
const WRITE: Access = Access::WRITE;
const WATCHED: u64 = GUEST_PAGE * 4096 + 0x18;
/// Nobody may write here in view 1.
const VIEW: u64 = 1;
const HVC: ExitClass = ExitClass::Hypercall;

/// The guest runs in view 1, in which its first page is to be read only; view 2 is there and shows nothing.
fn watched_in(mut hosted: Hosted) -> Hosted {
    must(&mut hosted, Op::GuestMap, [slot::GUEST, GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    for view in [VIEW, 2] {
        must(&mut hosted, Op::ViewCreate, [slot::GUEST, view, 0, 0, 0, 0]);
    }
    must(&mut hosted, Op::ViewCopy, [slot::GUEST, VIEW << 48 | GUEST_PAGE, 1, 5, 1, 0]);
    must(&mut hosted, Op::ViewCopy, [slot::GUEST, VIEW << 48 | (GUEST_PAGE + 1), 8, Access::AS_HOST.0, 1, 0]);
    must(&mut hosted, Op::ViewSwitch, [slot::GUEST, 0, VIEW, 0, 0, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    hosted
}

fn watched() -> Hosted {
    watched_in(system())
}

fn vcpu(hosted: &Hosted) -> &trellis_core::vcpu::Vcpu<trellis_hosted::HostedMachine> {
    hosted.cpus[0].local.vcpus.at(0)
}

/// The guest writes, its view forbids it, and the server is asked.
fn forbidden(hosted: &mut Hosted) {
    assert_eq!(hosted.touch(0, WATCHED, WRITE), Touch::Stopped(Now::Thread(INNER)));
    let header = ExitHeader(words(hosted)[0]);
    assert!(header.has(ExitHeader::PERMISSION) && header.view() == VIEW as u16);
}

/// It is not stepping, and in view 1.
fn is_back(hosted: &Hosted) {
    let vcpu = vcpu(hosted);
    assert_eq!((vcpu.context.view, vcpu.view(), vcpu.step_view(), vcpu.context.step), (1, 1, 0, None));
    assert!(!vcpu.step.is_active());
    lawful(hosted);
}

fn steps_in(hosted: &Hosted, view: u16) {
    let vcpu = vcpu(hosted);
    assert_eq!((vcpu.context.view, vcpu.view(), vcpu.context.step), (view, 1, Some(true)));
    lawful(hosted);
}

fn stored(hosted: &Hosted) -> u64 {
    let frame = must_frame(hosted);
    hosted.board.borrow().word(frame * 4096 + 0x18)
}

fn must_frame(hosted: &Hosted) -> u64 {
    let guest = hosted.shared.guests[0].lock();
    guest.leaf(&hosted.cpus[0].machine, 0, GUEST_PAGE).expect("it is mapped").page
}

/// Begins a step in view 0 from a forbidden write.
fn stepping() -> Hosted {
    let mut hosted = watched();
    forbidden(&mut hosted);
    assert_eq!(reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]), Now::Guest(0));
    steps_in(&hosted, 0);
    hosted
}

#[test]
fn a_forbidden_write_is_done_once_and_the_next_one_is_forbidden_again() {
    let mut hosted = stepping();
    assert_ne!(stored(&hosted), WATCHED);
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!(hosted.now(0), Now::Guest(0), "it goes on by itself");
    assert_eq!(stored(&hosted), WATCHED);
    is_back(&hosted);
    forbidden(&mut hosted);
}

#[test]
fn whoever_wants_to_know_is_told_that_the_step_is_over() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    assert_eq!(reply(&mut hosted, Answer::REPORT.step(0).0, [0; 10]), Now::Guest(0));
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!(hosted.now(0), Now::Thread(OUTER), "by the route of its class");
    let header = ExitHeader(words(&hosted)[0]);
    assert_eq!(header.class(), Some(ExitClass::Debug));
    assert!(header.has(ExitHeader::STEPPED) && header.length() == 0);
    assert_eq!(header.view(), 1, "it is back already");
    is_back(&hosted);
    // The next one in the view that it is in, and then on.
    assert_eq!(reply(&mut hosted, Answer::REPORT.step(1).0, [0; 10]), Now::Guest(0));
    assert_eq!(hosted.executed(0), Now::Thread(OUTER));
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    assert_eq!(hosted.executed(0), Now::Guest(0));
    is_back(&hosted);
}

#[test]
fn an_answer_whose_view_is_not_there_is_refused_and_can_be_given_again() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    let step = |view: u16| Answer::RETRY.step(view).0;
    for (mask, refusal) in [
        (step(3), Refusal::NotMapped),
        (step(5), Refusal::OutOfRange),
        (step(511), Refusal::OutOfRange),
        (step(512), Refusal::OutOfRange),
        (step(u16::MAX), Refusal::OutOfRange),
        (step(0) | Answer::STOP.0, Refusal::BadArgument),
        (Answer::REPORT.0, Refusal::BadArgument),
        (1 << 16, Refusal::BadArgument),
        (1 << 7, Refusal::BadArgument),
        (step(0) | 1 << 32, Refusal::BadArgument),
    ] {
        assert_eq!(reply(&mut hosted, mask, [9; 10]), Now::Thread(INNER), "{mask:#x}");
        assert_eq!(x0(&hosted), Err(refusal), "{mask:#x}");
        is_back(&hosted);
    }
    assert_eq!(reply(&mut hosted, step(0), [0; 10]), Now::Guest(0));
    steps_in(&hosted, 0);
}

#[test]
fn what_else_the_answer_changes_is_done_first() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    let mut words = [0; 10];
    (words[4], words[5]) = (0x5000, 77);
    let answer = Answer::PC.register(9).step(0);
    assert_eq!(reply(&mut hosted, answer.0, words), Now::Guest(0));
    steps_in(&hosted, 0);
    assert_eq!((vcpu(&hosted).context.pc(), vcpu(&hosted).context.general(9)), (0x5000, 77));
}

#[test]
fn interrupts_wait_until_the_step_is_over() {
    let mut hosted = watched();
    hosted.exit(0, HVC, [0; 10]);
    let mut lines = |op: Op, a: [u64; 4]| {
        hosted.invoke(0, op, [inner_slot::VCPU, a[0], a[1], a[2], a[3], 0]).expect("its server may");
    };
    lines(Op::LinesEnable, [1, 0, 0, 0]);
    lines(Op::LinesWrite, [LineField::Enabled as u64, 0, 0xffff_ffff, 0xffff_ffff]);
    reply(&mut hosted, 0, [0; 10]);
    let due = hosted.board.borrow().now + 10;
    let context = &mut hosted.cpus[0].local.vcpus.at_mut(0).context;
    context.set_special(VcpuRegister::CntvCval, due);
    context.set_special(VcpuRegister::CntvCtl, 1);
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    hosted.advance(20);
    steps_in(&hosted, 0);
    assert_eq!(hosted.acknowledge(0), None, "the timer came, and waits");
    assert!(vcpu(&hosted).context.waits_trap, "a waiting instruction may not sleep over it");
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!(hosted.acknowledge(0), Some(VIRTUAL_TIMER));
    is_back(&hosted);
}

#[test]
fn a_waiting_instruction_does_not_wait_in_a_step() {
    let mut hosted = stepping();
    assert_eq!(hosted.wait_for_interrupt(0), Now::Guest(0));
    assert_eq!(vcpu(&hosted).state, VcpuState::Running);
    is_back(&hosted);
}

/// Whether an exit of this class comes to the inner server or the outer one.
fn server(class: ExitClass) -> u16 {
    if class == ExitClass::Memory { INNER } else { OUTER }
}

#[test]
fn a_step_outlives_every_exit_that_is_answered_with_retry() {
    for class in ExitClass::ALL {
        let mut hosted = stepping();
        assert_eq!(hosted.exit(0, class, [0; 10]), Now::Thread(server(class)), "{class:?}");
        assert_eq!(ExitHeader(words(&hosted)[0]).view(), 0, "{class:?}: the view it is in now");
        assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
        steps_in(&hosted, 0);
        assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
        is_back(&hosted);
    }
}

#[test]
fn a_step_is_over_when_a_server_does_the_instruction() {
    for class in ExitClass::ALL {
        for answer in [Answer::ADVANCE, Answer::PC, Answer::GENERAL, Answer::RETRY.register(31)] {
            let mut hosted = stepping();
            hosted.exit(0, class, [0; 10]);
            assert_eq!(reply(&mut hosted, answer.0, [0; 10]), Now::Guest(0), "{class:?}");
            is_back(&hosted);
        }
        let mut hosted = stepping();
        hosted.exit(0, class, [0; 10]);
        assert_eq!(reply(&mut hosted, Answer::STOP.0, [0; 10]), Now::Idle, "{class:?}");
        is_back(&hosted);
    }
}

#[test]
fn an_exception_that_a_server_enters_is_the_end_of_the_step() {
    let mut hosted = stepping();
    assert_eq!(hosted.exit(0, ExitClass::Debug, [0; 10]), Now::Thread(OUTER));
    hosted.invoke(0, Op::VcpuException, [inner_slot::VCPU, 0xf200_0001, 0, 0, 0, 0]).expect("its server may");
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    is_back(&hosted);
}

#[test]
fn a_step_in_a_step_chooses_another_view_and_forgets_neither_the_first_nor_the_report() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    assert_eq!(reply(&mut hosted, Answer::REPORT.step(2).0, [0; 10]), Now::Guest(0));
    steps_in(&hosted, 2);
    assert_eq!(hosted.touch(0, WATCHED, WRITE), Touch::Stopped(Now::Thread(INNER)), "nothing is there");
    assert_eq!(ExitHeader(words(&hosted)[0]).view(), 2);
    assert_eq!(reply(&mut hosted, Answer::RETRY.step(4).0, [0; 10]), Now::Thread(INNER));
    steps_in(&hosted, 2);
    assert_eq!(reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]), Now::Guest(0));
    steps_in(&hosted, 0);
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!(hosted.now(0), Now::Thread(OUTER));
    is_back(&hosted);
}

#[test]
fn a_page_that_is_not_there_yet_comes_from_its_server_in_the_middle_of_the_step() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    hosted.invoke(0, Op::GuestUnmap, [inner_slot::GUEST, GUEST_PAGE, 1, 0, 0, 0]).expect("p2m may");
    assert_eq!(reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]), Now::Guest(0));
    assert_eq!(hosted.touch(0, WATCHED, WRITE), Touch::Stopped(Now::Thread(INNER)));
    assert!(!ExitHeader(words(&hosted)[0]).has(ExitHeader::PERMISSION));
    hosted.invoke(0, Op::GuestMap, [inner_slot::GUEST, GUEST_PAGE, inner_slot::MEMORY, 0, 1, 7]).expect("p2m may");
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    steps_in(&hosted, 0);
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!(stored(&hosted), WATCHED);
    is_back(&hosted);
}

/// In a step in view 2, the guest stops, and its server does this.
fn meanwhile(hosted: &mut Hosted, op: Op, a: [u64; 3]) -> Result<u64, Refusal> {
    hosted.exit(0, HVC, [0; 10]);
    let done = hosted.invoke(0, op, [inner_slot::GUEST, a[0], a[1], a[2], 0, 0]).map(|values| values[0]);
    assert_eq!(reply(hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    lawful(hosted);
    done
}

#[test]
fn neither_view_of_a_step_can_be_destroyed() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(2).0, [0; 10]);
    while meanwhile(&mut hosted, Op::ViewReset, [VIEW << 48, 0, 0]).expect("it may be emptied") != 0 {}
    for view in [1, 2] {
        assert_eq!(meanwhile(&mut hosted, Op::ViewDestroy, [view, 0, 0]), Err(Refusal::BadState), "view {view}");
    }
    assert_eq!(meanwhile(&mut hosted, Op::ViewOf, [0, 0, 0]), Ok(1), "a step is nobody's business");
    assert_eq!(hosted.executed(0), Now::Guest(0));
    is_back(&hosted);
    assert_eq!(meanwhile(&mut hosted, Op::ViewDestroy, [2, 0, 0]), Ok(0));
    assert_eq!(meanwhile(&mut hosted, Op::ViewDestroy, [1, 0, 0]), Err(Refusal::BadState));
}

#[test]
fn a_switch_in_the_middle_of_a_step_counts_when_it_is_over() {
    let mut hosted = watched();
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    assert_eq!(meanwhile(&mut hosted, Op::ViewSwitch, [0, 3, 0]), Err(Refusal::NotMapped));
    assert_eq!(meanwhile(&mut hosted, Op::ViewSwitch, [0, 2, 0]), Ok(0));
    assert_eq!(vcpu(&hosted).context.view, 0);
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    assert_eq!((vcpu(&hosted).context.view, vcpu(&hosted).view()), (2, 2));
    lawful(&hosted);
}

#[test]
fn a_guest_that_switches_by_the_stepped_instruction_is_in_the_view_it_chose() {
    let mut hosted = watched();
    must_from_outside(&mut hosted, Op::ViewShow, [2, 1, 0]);
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    assert_eq!(hosted.guest_call(0, GuestCall::Switch, [2, 0]), Now::Guest(0));
    assert_eq!((vcpu(&hosted).context.view, vcpu(&hosted).context.general(0), vcpu(&hosted).context.step), (2, 0, None));
    lawful(&hosted);
}

fn must_from_outside(hosted: &mut Hosted, op: Op, a: [u64; 3]) {
    meanwhile(hosted, op, a).expect("its server may");
}

#[test]
fn a_guest_that_is_told_of_forbidden_accesses_is_not_told_of_those_in_a_step() {
    let mut hosted = watched();
    must_from_outside(&mut hosted, Op::GuestProtect, [VIEW << 48 | GUEST_PAGE, 1, 5 | Access::NOTIFY.0]);
    assert_eq!(hosted.guest_call(0, GuestCall::Notify, [(GUEST_PAGE + 4) * 4096, 0x7000]), Now::Guest(0));
    // Told of it when it does not step.
    assert_eq!(hosted.touch(0, WATCHED, WRITE), Touch::Stopped(Now::Guest(0)));
    assert_eq!(vcpu(&hosted).context.pc(), 0x7000);
    hosted.guest_call(0, GuestCall::Return, [0; 2]);
    hosted.exit(0, HVC, [0; 10]);
    reply(&mut hosted, Answer::RETRY.step(1).0, [0; 10]);
    assert_eq!(hosted.touch(0, WATCHED, WRITE), Touch::Stopped(Now::Thread(INNER)));
}

#[test]
fn whatever_stops_the_vcpu_ends_its_step() {
    type End = fn(&mut Hosted);
    let ends: [(&str, End); 4] = [
        ("its server stops it", |hosted| {
            hosted.exit(0, HVC, [0; 10]);
            hosted.invoke(0, Op::VcpuStop, [inner_slot::VCPU, 0, 0, 0, 0, 0]).expect("its server may");
            assert_eq!(reply(hosted, Answer::RETRY.step(0).0, [0; 10]), Now::Idle, "even if it asks for another step");
        }),
        ("its server is gone", |hosted| {
            hosted.exit(0, HVC, [0; 10]);
            hosted.trap(0, Trap::Fault(Default::default()));
        }),
        ("nobody serves it", |hosted| {
            hosted.cpus[0].local.vcpus.at_mut(0).routes[ExitClass::Illegal as usize].portal = 0;
            hosted.exit(0, ExitClass::Illegal, [0; 10]);
        }),
        ("another stops it while it runs", |hosted| {
            wake_root(hosted);
            must(hosted, Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]);
        }),
    ];
    for (what, end) in ends {
        let mut hosted = stepping();
        end(&mut hosted);
        assert_eq!(vcpu(&hosted).state, VcpuState::Stopped, "{what}");
        is_back(&hosted);
    }
}

#[test]
fn a_vcpu_that_was_stopped_in_a_step_begins_anew_in_its_view() {
    let mut hosted = stepping();
    hosted.exit(0, HVC, [0; 10]);
    reply(&mut hosted, Answer::STOP.0, [0; 10]);
    is_back(&hosted);
    wake_root(&mut hosted);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    hosted.exit(0, HVC, [0; 10]);
    reply(&mut hosted, Answer::STOP.0, [0; 10]);
    wake_root(&mut hosted);
    must(&mut hosted, Op::VcpuReset, [slot::VCPU, 0, 0, 0, 0, 0]);
    lawful(&hosted);
    must(&mut hosted, Op::VcpuDestroy, [slot::VCPU, 0, 0, 0, 0, 0]);
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_is_destroyed_in_a_step_leaves_its_views_alone() {
    let mut hosted = stepping();
    hosted.exit(0, HVC, [0; 10]);
    hosted.invoke(0, Op::VcpuDestroy, [inner_slot::VCPU, 0, 0, 0, 0, 0]).expect("its server may");
    lawful(&hosted);
    hosted.invoke(0, Op::ViewDestroy, [inner_slot::GUEST, 2, 0, 0, 0, 0]).expect("nobody is in it");
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_loses_its_cpu_in_a_step_goes_on_with_it() {
    let mut hosted = stepping();
    wake_root(&mut hosted);
    // Another vCPU's state takes the hardware meanwhile.
    must(&mut hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, slot::FREE, 60, 0]);
    for class in 0..10 {
        must(&mut hosted, Op::VcpuRoute, [slot::FREE, class, slot::PORTALS[1], 7, 1, 0]);
    }
    must(&mut hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(1), "a better one");
    assert!(matches!(hosted.touch(0, WATCHED, READ), Touch::Reached(_)), "which sees its own view");
    assert!(hosted.cpus[0].local.vcpus.at(1).context.step.is_none());
    let what = SoftwareInterrupt { line: 3, targets: 1, others: false };
    hosted.trap(0, Trap::SoftwareInterrupt(what));
    hosted.exit(0, HVC, [0; 10]);
    assert_eq!(reply(&mut hosted, Answer::STOP.0, [0; 10]), Now::Guest(0));
    steps_in(&hosted, 0);
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    is_back(&hosted);
}

#[test]
fn only_the_vcpu_that_steps_sees_the_other_view() {
    let mut hosted = watched_in(small::system(Settings { cpus: 2, ..Settings::default() }));
    wake_root(&mut hosted);
    anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, 1, slot::FREE, 60, 0]).expect("there is room");
    anywhere(&mut hosted, Op::ViewSwitch, [slot::GUEST, 1, VIEW, 0, 0, 0]).expect("it is there");
    anywhere(&mut hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]).expect("it is stopped");
    hosted.deliver_kicks();
    assert_eq!((wait(&mut hosted), hosted.now(1)), (Now::Guest(0), Now::Guest(0)));
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    assert!(matches!(hosted.touch(1, WATCHED, READ), Touch::Reached(_)));
    // No class has a route there: what is forbidden stops it.
    assert_eq!(hosted.touch(1, WATCHED, WRITE), Touch::Stopped(Now::Idle));
    assert!(matches!(hosted.touch(0, WATCHED, WRITE), Touch::Reached(_)));
    is_back(&hosted);
}

#[test]
fn a_vcpu_that_is_stopped_in_a_step_moves_as_if_it_had_never_stepped() {
    let mut hosted = watched_in(small::system(Settings { cpus: 2, ..Settings::default() }));
    forbidden(&mut hosted);
    reply(&mut hosted, Answer::RETRY.step(0).0, [0; 10]);
    hosted.exit(0, HVC, [0; 10]);
    reply(&mut hosted, Answer::STOP.0, [0; 10]);
    wake_root(&mut hosted);
    anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, PLACE, slot::FREE, 60, 0]).expect("there is room");
    anywhere(&mut hosted, Op::VcpuMove, [slot::VCPU, 0, 0, 0, 0, 0]).expect("it is stopped");
    hosted.deliver_kicks();
    lawful(&hosted);
    assert!(hosted.cpus[1].local.vcpus.at(0).context.step.is_none());
    assert_eq!(hosted.cpus[1].local.vcpus.at(0).context.view, 1);
}
