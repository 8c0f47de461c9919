// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of virtual interrupts.

mod common;

use common::*;
use trellis_core::lines::{ListEntry, SoftwareInterrupt, VIRTUAL_TIMER};
use trellis_core::trap::Trap;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::small::{inner_slot, must, slot};
use trellis_hosted::{Hosted, Now};
use trellis_idl::kernel::{Answer, ExitClass, LineField, Op, Refusal, VcpuRegister};

const HVC: ExitClass = ExitClass::Hypercall;

/// The outer server, which serves an exit, does an operation on the vCPU.
fn lines(hosted: &mut Hosted, op: Op, a: [u64; 4]) -> u64 {
    hosted.invoke(0, op, [inner_slot::VCPU, a[0], a[1], a[2], a[3], 0]).expect("it has the right")[0]
}

fn write(hosted: &mut Hosted, field: LineField, lines_: &[u8], on: bool) {
    for line in lines_ {
        let bit = 1u64 << (line % 32);
        let value = if on { bit } else { 0 };
        lines(hosted, Op::LinesWrite, [field as u64, u64::from(line / 32 * 32), bit, value]);
    }
}

/// A guest that is being served, with these lines enabled as edges.
fn served(edges: &[u8]) -> Hosted {
    let mut hosted = guest_runs();
    hosted.exit(0, HVC, [0; 10]);
    lines(&mut hosted, Op::LinesEnable, [1, 0, 0, 0]);
    write(&mut hosted, LineField::Edge, edges, true);
    write(&mut hosted, LineField::Enabled, edges, true);
    hosted
}

fn resume(hosted: &mut Hosted) {
    assert_eq!(reply(hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
}

/// Takes and ends every interrupt that comes.
fn take_all(hosted: &mut Hosted) -> Vec<u8> {
    let mut taken = Vec::new();
    while let Some(line) = hosted.acknowledge(0) {
        hosted.end_of_interrupt(0, line);
        taken.push(line);
        assert!(taken.len() < 100, "it never ends: {taken:?}");
    }
    taken
}

#[test]
fn the_fifth_pending_line_arrives_too() {
    let edges = [40, 41, 42, 43, 44, 45, 46, 47, 48];
    let mut hosted = served(&edges);
    write(&mut hosted, LineField::Pending, &edges, true);
    resume(&mut hosted);
    let mut taken = take_all(&mut hosted);
    taken.sort_unstable();
    assert_eq!(taken, edges);
}

#[test]
fn the_fifth_line_arrives_although_another_guest_ran_in_between() {
    let edges = [40, 41, 42, 43, 44, 45];
    let mut hosted = served(&edges);
    write(&mut hosted, LineField::Pending, &edges, true);
    resume(&mut hosted);
    hosted.exit(0, HVC, [0; 10]);
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    must(&mut hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, slot::FREE, 90, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(1));
    assert_eq!(hosted.acknowledge(0), None);
    assert_eq!(hosted.wait_for_interrupt(0), Now::Thread(2), "the server of the first goes on");
    resume(&mut hosted);
    assert_eq!(take_all(&mut hosted).len(), 6);
}

#[test]
fn lines_come_by_priority() {
    let edges = [40, 41, 42, 43, 44, 45];
    let mut hosted = served(&edges);
    for (first, bytes) in [(40, 0x5060_7080), (44, 0x1030)] {
        lines(&mut hosted, Op::LinesPriority, [first, bytes, 15, 0]);
    }
    write(&mut hosted, LineField::Pending, &edges, true);
    resume(&mut hosted);
    assert_eq!(take_all(&mut hosted), [45, 44, 43, 42, 41, 40]);
}

#[test]
fn a_level_line_comes_again_until_it_is_lowered() {
    let mut hosted = served(&[]);
    write(&mut hosted, LineField::Enabled, &[50], true);
    write(&mut hosted, LineField::Level, &[50], true);
    resume(&mut hosted);
    for _ in 0..3 {
        assert_eq!(hosted.acknowledge(0), Some(50));
        hosted.end_of_interrupt(0, 50);
    }
    hosted.exit(0, HVC, [0; 10]);
    write(&mut hosted, LineField::Level, &[50], false);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), None);
}

#[test]
fn a_line_that_is_disabled_is_withdrawn_and_comes_back_when_it_is_enabled() {
    let mut hosted = served(&[40]);
    write(&mut hosted, LineField::Pending, &[40], true);
    resume(&mut hosted);
    hosted.exit(0, HVC, [0; 10]);
    write(&mut hosted, LineField::Enabled, &[40], false);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), None);
    hosted.exit(0, HVC, [0; 10]);
    assert_eq!(lines(&mut hosted, Op::LinesRead, [LineField::Pending as u64, 32, 0, 0]), 1 << 8);
    write(&mut hosted, LineField::Enabled, &[40], true);
    resume(&mut hosted);
    assert_eq!(take_all(&mut hosted), [40]);
}

#[test]
fn an_active_line_that_is_deactivated_can_come_again() {
    let mut hosted = served(&[40]);
    write(&mut hosted, LineField::Pending, &[40], true);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(40));
    hosted.exit(0, HVC, [0; 10]);
    assert_eq!(lines(&mut hosted, Op::LinesRead, [LineField::Active as u64, 32, 0, 0]), 1 << 8);
    write(&mut hosted, LineField::Pending, &[40], true);
    write(&mut hosted, LineField::Active, &[40], false);
    resume(&mut hosted);
    assert_eq!(take_all(&mut hosted), [40]);
}

#[test]
fn a_line_is_in_one_list_register_at_most() {
    let mut hosted = served(&[0, 40, 41]);
    for _ in 0..3 {
        write(&mut hosted, LineField::Pending, &[0, 40], true);
        resume(&mut hosted);
        hosted.exit(0, HVC, [0; 10]);
        write(&mut hosted, LineField::Pending, &[0, 41], true);
        resume(&mut hosted);
        let lists = &hosted.cpus[0].machine.lists;
        for line in [0, 40, 41] {
            let count = lists.iter().filter(|entry| !entry.is_empty() && entry.line == line).count();
            assert!(count <= 1, "line {line} is in {count} list registers");
        }
        let first = hosted.acknowledge(0).expect("three are pending");
        hosted.exit(0, HVC, [0; 10]);
        write(&mut hosted, LineField::Pending, &[0, 40, 41], true);
        resume(&mut hosted);
        hosted.end_of_interrupt(0, first);
        let taken = take_all(&mut hosted);
        assert!([0, 40, 41].iter().all(|line| taken.contains(line)), "{first}, then {taken:?}");
        hosted.exit(0, HVC, [0; 10]);
    }
}

#[test]
fn the_timers_line_is_tied_to_the_hardware_and_comes_once_a_deadline() {
    let mut hosted = served(&[]);
    write(&mut hosted, LineField::Enabled, &[VIRTUAL_TIMER], true);
    let due = hosted.board.borrow().now + 1000;
    for (register, value) in [(VcpuRegister::CntvCval, due), (VcpuRegister::CntvCtl, 1)] {
        hosted.invoke(0, Op::VcpuSet, [inner_slot::VCPU, register as u64, value, 0, 0, 0]).expect("it is stopped");
    }
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), None);
    hosted.advance(1001);
    let entry = hosted.cpus[0].machine.lists[0];
    assert!(entry.pending && entry.is_tied() && entry.line == VIRTUAL_TIMER);
    assert_eq!(hosted.acknowledge(0), Some(VIRTUAL_TIMER));
    hosted.advance(1);
    assert_eq!(hosted.acknowledge(0), None, "it is active");
    // The deadline still lies in the past when the guest ends it: it fires again.
    hosted.end_of_interrupt(0, VIRTUAL_TIMER);
    hosted.advance(1);
    assert_eq!(hosted.acknowledge(0), Some(VIRTUAL_TIMER));
}

/// Two vCPUs of one guest, so that waiting stops them; the first runs.
fn two_vcpus() -> Hosted {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, slot::FREE, 50, 0]);
    for vcpu in [slot::VCPU, slot::FREE] {
        must(&mut hosted, Op::LinesEnable, [vcpu, 1, 0, 0, 0, 0]);
        must(&mut hosted, Op::LinesWrite, [vcpu, LineField::Enabled as u64, 0, 0xffff_ffff, 0xffff_ffff, 0]);
        must(&mut hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]);
    }
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    hosted
}

#[test]
fn a_vcpu_that_waits_wakes_on_a_line_and_on_its_timer() {
    let mut hosted = two_vcpus();
    assert_eq!(hosted.wait_for_interrupt(0), Now::Guest(1));
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).state, VcpuState::Waiting);
    let what = SoftwareInterrupt { line: 3, targets: 1, others: false };
    hosted.trap(0, Trap::SoftwareInterrupt(what));
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).state, VcpuState::Running);
    assert_eq!(hosted.wait_for_interrupt(0), Now::Guest(0));
    assert_eq!(take_all(&mut hosted), [3]);
    let due = hosted.board.borrow().now + 700;
    let context = &mut hosted.cpus[0].local.vcpus.at_mut(0).context;
    context.set_special(VcpuRegister::CntvCval, due);
    context.set_special(VcpuRegister::CntvCtl, 1);
    // Both wait; the second's state is not loaded, the first's deadline counts all the same.
    let now = hosted.wait_for_interrupt(0);
    assert!(matches!(now, Now::Idle | Now::Guest(0)), "{now:?}");
    hosted.advance(800);
    assert_eq!(hosted.now(0), Now::Guest(0));
    assert_eq!(hosted.acknowledge(0), Some(VIRTUAL_TIMER));
    lawful(&hosted);
}

#[test]
fn a_vcpu_with_a_pending_line_does_not_wait() {
    let mut hosted = two_vcpus();
    let what = SoftwareInterrupt { line: 3, targets: 1, others: false };
    hosted.trap(0, Trap::SoftwareInterrupt(what));
    assert_eq!(hosted.wait_for_interrupt(0), Now::Guest(0));
    assert_eq!(take_all(&mut hosted), [3]);
}

/// The vCPU that another one's lines go to.
const OTHER: u64 = 60;

/// A second vCPU on the same CPU, which the outer server may use; its lines are forwarded too.
fn with_another(hosted: &mut Hosted) {
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    must(hosted, Op::VcpuCreate, [slot::GUEST, 0, 1, slot::FREE, 90, 0]);
    must(hosted, Op::Grant, [slot::FREE, slot::DOMAINS[1], OTHER, 0xff, 0, 0]);
    assert_eq!(wait(hosted), Now::Thread(2));
    hosted.invoke(0, Op::LinesEnable, [OTHER, 1, 0, 0, 0, 0]).expect("it has the right");
}

fn take(hosted: &mut Hosted, vcpu: u64, line: u8) -> Result<u64, Refusal> {
    hosted.invoke(0, Op::LineTake, [vcpu, line.into(), 0, 0, 0, 0]).map(|[state, ..]| state)
}

fn target(hosted: &mut Hosted, vcpu: u64, line: u8, state: u64) {
    hosted.invoke(0, Op::LineTarget, [vcpu, line.into(), state, 0, 0, 0]).expect("it may go there");
}

/// Moves a line from the first vCPU to the second, as a server does.
fn retarget(hosted: &mut Hosted, line: u8) {
    let state = take(hosted, inner_slot::VCPU, line).expect("it is not active");
    target(hosted, OTHER, line, state);
}

fn start_other(hosted: &mut Hosted) {
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    must(hosted, Op::VcpuStart, [slot::FREE, 0, 0, 0, 0, 0]);
    wait(hosted);
    // The server of the first goes on at the first's priority, below that of the second.
    assert_eq!(hosted.now(0), Now::Guest(1));
}

#[test]
fn a_pending_line_goes_with_its_state_to_the_vcpu_it_is_sent_to() {
    let mut hosted = served(&[40]);
    with_another(&mut hosted);
    write(&mut hosted, LineField::Group, &[40], true);
    lines(&mut hosted, Op::LinesPriority, [40, 0x50, 1, 0]);
    write(&mut hosted, LineField::Pending, &[40], true);
    retarget(&mut hosted, 40);
    assert_eq!(lines(&mut hosted, Op::LinesRead, [LineField::Enabled as u64, 32, 0, 0]), 0);
    assert_eq!(lines(&mut hosted, Op::LinesPriorityRead, [40, 0, 0, 0]), 0);
    start_other(&mut hosted);
    let entry = hosted.cpus[0].machine.lists[0];
    assert_eq!((entry.line, entry.priority, entry.group), (40, 0x50, true));
    assert_eq!(hosted.acknowledge(0), Some(40));
}

#[test]
fn a_line_that_is_listed_already_leaves_its_list_register() {
    let mut hosted = served(&[40]);
    with_another(&mut hosted);
    write(&mut hosted, LineField::Pending, &[40], true);
    resume(&mut hosted);
    assert!(hosted.cpus[0].machine.lists.iter().any(|entry| entry.line == 40 && entry.pending));
    hosted.exit(0, HVC, [0; 10]);
    retarget(&mut hosted, 40);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), None, "it is not this vCPU's any more");
    hosted.exit(0, HVC, [0; 10]);
    start_other(&mut hosted);
    assert_eq!(take_all(&mut hosted), [40]);
}

#[test]
fn a_level_line_is_high_at_its_new_vcpu_until_it_is_lowered_there() {
    let mut hosted = served(&[]);
    with_another(&mut hosted);
    write(&mut hosted, LineField::Enabled, &[50], true);
    write(&mut hosted, LineField::Level, &[50], true);
    retarget(&mut hosted, 50);
    let lower = [OTHER, LineField::Level as u64, 32, 1 << 18, 0, 0];
    hosted.invoke(0, Op::LinesWrite, lower).expect("it has the right");
    start_other(&mut hosted);
    assert_eq!(hosted.acknowledge(0), None);
}

#[test]
fn a_line_stays_where_it_is_active_until_the_guest_has_ended_it() {
    let mut hosted = served(&[40]);
    with_another(&mut hosted);
    write(&mut hosted, LineField::Pending, &[40], true);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(40));
    hosted.exit(0, HVC, [0; 10]);
    assert_eq!(take(&mut hosted, inner_slot::VCPU, 40), Err(Refusal::BadState));
    resume(&mut hosted);
    hosted.end_of_interrupt(0, 40);
    hosted.exit(0, HVC, [0; 10]);
    retarget(&mut hosted, 40);
    write(&mut hosted, LineField::Pending, &[40], false);
    lawful(&hosted);
}

#[test]
fn only_lines_of_the_guest_go_from_one_vcpu_to_another_and_only_with_states_that_exist() {
    let mut hosted = served(&[]);
    for line in [0, 27, 31, 128, 255] {
        assert_eq!(take(&mut hosted, inner_slot::VCPU, line), Err(Refusal::OutOfRange));
    }
    let strange = [inner_slot::VCPU, 40, 1 << 5, 0, 0, 0];
    assert_eq!(hosted.invoke(0, Op::LineTarget, strange), Err(Refusal::BadArgument));
}

#[test]
fn a_vcpu_that_is_reset_keeps_the_lines_that_are_the_guests() {
    let mut hosted = served(&[40]);
    with_another(&mut hosted);
    write(&mut hosted, LineField::Pending, &[40], true);
    retarget(&mut hosted, 40);
    let own = [OTHER, LineField::Enabled as u64, 0, 1 << 27, 1 << 27, 0];
    hosted.invoke(0, Op::LinesWrite, own).expect("it has the right");
    hosted.invoke(0, Op::VcpuReset, [OTHER, 0, 0, 0, 0, 0]).expect("it is stopped");
    let enabled = |hosted: &mut Hosted, first| {
        hosted.invoke(0, Op::LinesRead, [OTHER, LineField::Enabled as u64, first, 0, 0, 0]).expect("it may")[0]
    };
    assert_eq!((enabled(&mut hosted, 0), enabled(&mut hosted, 32)), (0, 1 << 8));
    start_other(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(40));
}

/// A software interrupt from this sender.
fn send(hosted: &mut Hosted, line: u8, sender: u64) {
    let a = [inner_slot::VCPU, LineField::Pending as u64, 0, 1 << line, 1 << line, sender + 1];
    hosted.invoke(0, Op::LinesWrite, a).expect("it has the right");
}

/// The senders of a pending software interrupt.
fn senders(hosted: &mut Hosted, line: u8) -> Vec<u64> {
    let is_pending = |sender: &u64| {
        let a = [inner_slot::VCPU, LineField::Pending as u64, 0, sender + 1, 0, 0];
        hosted.invoke(0, Op::LinesRead, a).expect("it has the right")[0] >> line & 1 == 1
    };
    (0..8).filter(is_pending).collect()
}

/// Takes and ends one interrupt: the line and who sent it.
fn take_sent(hosted: &mut Hosted) -> Option<(u8, u8)> {
    let line = hosted.acknowledge(0)?;
    let sender = hosted.cpus[0].machine.lists.iter().find(|entry| entry.active)?.sender();
    hosted.end_of_interrupt(0, line);
    Some((line, sender))
}

#[test]
fn a_software_interrupt_comes_once_from_each_sender() {
    let mut hosted = served(&[1]);
    for sender in [5, 2, 7, 2] {
        send(&mut hosted, 1, sender);
    }
    assert_eq!(senders(&mut hosted, 1), [2, 5, 7]);
    resume(&mut hosted);
    let taken: Vec<_> = std::iter::from_fn(|| take_sent(&mut hosted)).collect();
    assert_eq!(taken, [(1, 2), (1, 5), (1, 7)]);
    hosted.exit(0, HVC, [0; 10]);
    assert_eq!(senders(&mut hosted, 1), []);
}

#[test]
fn a_sender_that_comes_while_another_is_served_follows_at_once() {
    let mut hosted = served(&[3]);
    send(&mut hosted, 3, 4);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(3));
    hosted.exit(0, HVC, [0; 10]);
    send(&mut hosted, 3, 4);
    send(&mut hosted, 3, 0);
    assert_eq!(senders(&mut hosted, 3), [0, 4]);
    resume(&mut hosted);
    hosted.end_of_interrupt(0, 3);
    let taken: Vec<_> = std::iter::from_fn(|| take_sent(&mut hosted)).collect();
    assert_eq!(taken, [(3, 4), (3, 0)]);
}

#[test]
fn one_senders_interrupt_is_taken_back_and_the_others_stay() {
    let mut hosted = served(&[1]);
    for sender in [2, 3, 6] {
        send(&mut hosted, 1, sender);
    }
    resume(&mut hosted);
    hosted.exit(0, HVC, [0; 10]);
    for sender in [2u64, 6] {
        let a = [inner_slot::VCPU, LineField::Pending as u64, 0, 2, 0, sender + 1];
        hosted.invoke(0, Op::LinesWrite, a).expect("it has the right");
    }
    assert_eq!(senders(&mut hosted, 1), [3]);
    resume(&mut hosted);
    assert_eq!(take_sent(&mut hosted), Some((1, 3)));
    assert_eq!(take_sent(&mut hosted), None);
}

#[test]
fn a_disabled_software_interrupt_remembers_its_senders() {
    let mut hosted = served(&[1]);
    for sender in [0, 4] {
        send(&mut hosted, 1, sender);
    }
    resume(&mut hosted);
    hosted.exit(0, HVC, [0; 10]);
    write(&mut hosted, LineField::Enabled, &[1], false);
    assert_eq!(senders(&mut hosted, 1), [0, 4]);
    write(&mut hosted, LineField::Enabled, &[1], true);
    resume(&mut hosted);
    let taken: Vec<_> = std::iter::from_fn(|| take_sent(&mut hosted)).collect();
    assert_eq!(taken, [(1, 0), (1, 4)]);
}

#[test]
fn the_end_of_a_level_line_is_noticed_once() {
    let mut hosted = served(&[]);
    write(&mut hosted, LineField::Enabled, &[50], true);
    write(&mut hosted, LineField::Level, &[50], true);
    resume(&mut hosted);
    assert_eq!(hosted.acknowledge(0), Some(50));
    // Its handler satisfies the device, then ends the interrupt: nothing is left to be put into the list register.
    hosted.exit(0, HVC, [0; 10]);
    write(&mut hosted, LineField::Level, &[50], false);
    resume(&mut hosted);
    hosted.end_of_interrupt(0, 50);
    assert!(hosted.cpus[0].machine.lists.iter().all(|entry| *entry == ListEntry::default()));
}
