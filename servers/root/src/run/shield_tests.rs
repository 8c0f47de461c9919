// SPDX-License-Identifier: MIT OR Apache-2.0
//! When devices see memory, on the fake kernel.

use super::tests::{reports, start_on};
use super::*;
use crate::fake::{Fake, FakeBoard, Object, plan_with_shield};
use trellis_idl::kernel::{Op, PAGE};
use trellis_idl::layout::space::{EVENTS, REGISTERS};
use trellis_idl::layout::{TABLES, badge};
use trellis_idl::wire::{SmmuOp, Stopped};

/// Its place in the plan, and its first domain in the fake kernel.
const SMMU: usize = 6;
const DOMAIN: usize = SMMU + 1;

fn start(fake: &Fake) -> (Root<'static, FakeBoard>, FakeBoard) {
    // The SMMU's registers, which the fake kernel does not know of.
    let registers = Frames::at(root_slot::MEMORY).split(fake, 0x3f000, 32, root_slot::DEVICES + 2);
    registers.expect("the end of memory is nobody's");
    let (root, board) = start_on(fake, plan_with_shield(), FakeBoard::new());
    reports(&board);
    (root, board)
}

fn smmu(domain: usize, op: SmmuOp) -> (Object, u64) {
    (Object::Portal(domain, 0, badge::ROOT), op as u64)
}

/// The operations of smmu and of the second guest's servers that matter here, in their order.
fn orders(fake: &Fake) -> Vec<(Object, u64), 64> {
    let calls = core::mem::take(&mut *fake.calls.borrow_mut());
    calls.into_iter().filter(|(_, op)| *op != trellis_idl::interface::ATTACH).collect()
}

#[test]
fn smmu_alone_gets_what_the_smmu_is_told_by_and_the_next_one_gets_the_same() {
    let fake = Fake::new();
    let (mut root, _) = start(&fake);
    let expect = |domain: usize| {
        let maps = fake.domain(domain).maps;
        let page = |place: usize| maps.iter().find(|map| map.0 == DEVICE + place as u64 * PAGE).map(|map| (map.2, map.3));
        assert_eq!([REGISTERS, EVENTS].map(page), [Some((0, 1)), Some((16, 1))]);
        let tables = *maps.iter().find(|map| map.0 == TABLES).expect("what both share");
        assert_eq!((tables.3, fake.run(tables.1).0 % 4), (9, 0), "at a multiple of the table of streams");
        let table = fake.domain(domain).table;
        assert!(table.contains_key(&slot::SMMU_LINE) && table.contains_key(&slot::SMMU_ERROR));
        tables.1
    };
    let run = expect(DOMAIN);
    let others = (0..DOMAIN).filter(|domain| fake.domain(*domain).maps.iter().any(|map| map.0 == TABLES || map.1 == run));
    assert_eq!(others.count(), 0, "nobody else has it");
    orders(&fake);
    fake.stopped.borrow_mut().insert((DOMAIN, 1), 2);
    fake.bits.borrow_mut().push_back(root_signal::server(SMMU));
    root.step(&fake);
    assert_eq!(expect(DOMAIN + 1), run, "what the SMMU reads stays where it is");
    // The first guest has no device; the second's see what they saw.
    assert_eq!(orders(&fake)[..], [smmu(DOMAIN + 1, SmmuOp::Attach)]);
    assert_eq!(fake.count(Op::VcpuStop), 0, "guests go on");
}

#[test]
fn devices_see_memory_before_their_guest_starts_and_none_when_it_has_ended() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    let seen = orders(&fake);
    let place = |call: (Object, u64)| seen.iter().position(|one| *one == call).expect("it was asked");
    let starts = (Object::Portal(5, 2, badge::ROOT), VcpuOp::Start as u64);
    assert!(place(smmu(DOMAIN, SmmuOp::Detach)) < place(smmu(DOMAIN, SmmuOp::Attach)));
    assert!(place(smmu(DOMAIN, SmmuOp::Attach)) < place(starts));
    assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Ended(GuestEnd::Off)));
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(&fake);
    assert!(orders(&fake).contains(&smmu(DOMAIN, SmmuOp::Detach)));
}

/// Asks for a reset of the second guest.
fn reset(fake: &Fake, root: &mut Root<'static, FakeBoard>, board: &FakeBoard) {
    assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Reset));
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(fake);
}

#[test]
fn memory_is_cleared_only_when_no_device_sees_it() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    orders(&fake);
    let before = fake.count(Op::FramesReclaim);
    reset(&fake, &mut root, &board);
    assert_eq!(fake.count(Op::FramesReclaim), before + 1);
    let irqfwd = |op: IrqfwdOp| (Object::Portal(6, 1, badge::ROOT), op as u64);
    let seen: std::vec::Vec<_> = orders(&fake).into_iter().filter(|(to, _)| matches!(to, Object::Portal(6 | DOMAIN, ..))).collect();
    let expected = [irqfwd(IrqfwdOp::Disconnect), smmu(DOMAIN, SmmuOp::Detach), irqfwd(IrqfwdOp::Connect), smmu(DOMAIN, SmmuOp::Attach)];
    assert_eq!(seen, expected);
    // One that does not do it is made again, and asked again.
    reports(&board);
    fake.fail.set(Some((DOMAIN, SmmuOp::Detach as u64, Refusal::BadState)));
    reset(&fake, &mut root, &board);
    assert!(orders(&fake).contains(&smmu(DOMAIN + 1, SmmuOp::Detach)), "the next one does");
    assert!(matches!(reports(&board)[..], [Report::GuestRebooted { guest: 1, times: 2 }]));
}

#[test]
fn memory_stays_as_it_is_while_nobody_knows_whether_a_device_sees_it() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    // It dies more often than it is made again.
    for domain in DOMAIN..DOMAIN + 4 {
        fake.stopped.borrow_mut().insert((domain, 0), 2);
        fake.bits.borrow_mut().push_back(root_signal::server(SMMU));
        root.step(&fake);
    }
    let (before, _) = (fake.count(Op::FramesReclaim), reports(&board));
    reset(&fake, &mut root, &board);
    assert_eq!(fake.count(Op::FramesReclaim), before, "nothing is cleared");
    let seen = reports(&board);
    assert!(seen.iter().any(|report| matches!(report, Report::GuestEnded { guest: 1, .. })), "{seen:?}");
}

#[test]
fn what_a_device_must_not_do_is_told_the_host_if_smmu_says_it() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    let stopped = Stopped { guest: 1, line: 7, address: 0x4400_0000, event: 0x10, writes: true, more: 3 };
    for server in [SMMU, 4] {
        assert!(Producer::new(board.ring(ring::root_report(server))).send(&ToRoot::DeviceStopped(stopped)));
        fake.bits.borrow_mut().push_back(root_signal::server(server));
        root.step(&fake);
    }
    assert_eq!(reports(&board), [Report::DeviceStopped(stopped)], "and nobody else");
    let shield = root.shield.as_ref().expect("smmu");
    assert_eq!([0, 1, 2, 16, usize::MAX].map(|guest| shield.stopped(guest)), [0, 4, 0, 0, 0]);
}
