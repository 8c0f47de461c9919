// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start sequence against the layout, and what root does when something happens.

use super::*;
use crate::fake::{Fake, FakeBoard, FakeDomain, Mapped, Object, plan, plan_with_device};
use trellis_idl::kernel::{Access, ExitClass, Groups, Op, PAGE, PASSIVE};
use trellis_idl::layout::{BUFFERS, CONFIG, PAYLOAD, PROGRAM, RINGS, STACK_BYTES, STACK_STRIDE, STACKS, TABLES, badge, bus, message, vcpu_signal};
use trellis_idl::plan::{FunctionPlan, MessagePlan, RangePlan, TablePlace, TablePlan};
use trellis_idl::wire::GuestEnd;

/// Domains in the fake kernel: root is 0, server `i` is `i + 1`.
const CONSOLE_DOMAIN: usize = 1;
const VCPU_RIGHTS: u8 = 1 | 2 | 4 | 16;

fn start(fake: &Fake) -> (Root<'static, FakeBoard>, FakeBoard) {
    start_plan(fake, plan())
}

pub(super) fn start_plan(fake: &Fake, plan: Plan<'static>) -> (Root<'static, FakeBoard>, FakeBoard) {
    start_on(fake, plan, FakeBoard::new())
}

pub(super) fn start_on(fake: &Fake, plan: Plan<'static>, board: FakeBoard) -> (Root<'static, FakeBoard>, FakeBoard) {
    let plan: &'static Plan<'static> = Box::leak(Box::new(plan));
    let root = Root::start(fake, board, plan, |_| {}).unwrap();
    (root, board)
}

pub(super) fn reports(board: &FakeBoard) -> Vec<Report, 16> {
    let mut ring = Consumer::new(board.ring(ring::ROOT_REPORT));
    core::iter::from_fn(|| ring.receive().map(Result::unwrap)).collect()
}

#[test]
fn p2m_gets_what_the_layout_says_and_nothing_else() {
    let fake = Fake::new();
    start(&fake);
    for (guest, server, vcpus) in [(0, 1, 1), (1, 3, 2)] {
        let table = fake.domain(server + 1).table;
        let vcpu = server + 2;
        assert_eq!(table[&slot::ROOT], (Object::Signal(0, 0, root_signal::server(server)), Rights::USE));
        assert_eq!(table[&slot::CONSOLE], (Object::Signal(CONSOLE_DOMAIN, 0, console_signal::OUTPUT), Rights::USE));
        assert_eq!(table[&slot::GUEST], (Object::Guest(guest), Rights::EDIT.with(Rights::EXECUTE)));
        let (Object::Run(memory), rights) = table[&slot::MEMORY] else { panic!() };
        assert_eq!(rights.0, 7);
        assert_eq!((fake.run(memory).0 % 512, fake.run(memory).1), (0, 1024));
        let (Object::Run(blank), rights) = table[&slot::BLANK] else { panic!() };
        assert_eq!((rights.0, fake.run(blank).1), (7, 1));
        for index in 0..vcpus {
            let forward = (Object::Portal(vcpu, index, badge::EXIT | index as u64), Rights::USE);
            assert_eq!(table[&(slot::VCPU_SERVER + index as u64)], forward);
        }
        assert_eq!(table.len(), 5 + vcpus);
    }
}

#[test]
fn vcpu_gets_what_the_layout_says_and_nothing_else() {
    let fake = Fake::new();
    start(&fake);
    for (guest, server, first, vcpus) in [(0, 2, 0, 1), (1, 4, 1, 2)] {
        let domain = server + 1;
        let table = fake.domain(domain).table;
        assert_eq!(table[&slot::ROOT], (Object::Signal(0, 0, root_signal::server(server)), Rights::USE));
        assert_eq!(table[&slot::CONSOLE], (Object::Signal(CONSOLE_DOMAIN, 0, console_signal::OUTPUT), Rights::USE));
        assert_eq!(table[&slot::GUEST], (Object::Guest(guest), Rights(1 | 2 | 16)));
        let attending = vcpus + 1;
        assert_eq!(table[&slot::SELF], (Object::Signal(domain, attending, vcpu_signal::INPUT), Rights::USE));
        for index in 0..vcpus {
            assert_eq!(table[&(slot::VCPU + index as u64)], (Object::Vcpu(first + index), Rights(VCPU_RIGHTS)));
        }
        for thread in 0..=vcpus {
            let portal = Object::Portal(domain - 1, thread, badge::VCPU_SERVER | thread as u64);
            assert_eq!(table[&(slot::P2M + thread as u64)], (portal, Rights::USE));
        }
        assert_eq!(table.len(), 4 + vcpus + vcpus + 1);
    }
}

#[test]
fn console_gets_what_the_layout_says_and_nothing_else() {
    let fake = Fake::new();
    start(&fake);
    let table = fake.domain(CONSOLE_DOMAIN).table;
    assert_eq!(table[&slot::ROOT], (Object::Signal(0, 0, root_signal::server(0)), Rights::USE));
    assert_eq!(table[&slot::UART_LINE], (Object::Line(33), Rights::CONTROL));
    assert_eq!(table[&slot::SYSTEM], (Object::System, Rights::READ));
    assert_eq!(table[&slot::INPUT], (Object::Signal(3, 2, vcpu_signal::INPUT), Rights::USE));
    assert_eq!(table[&(slot::INPUT + 1)], (Object::Signal(5, 3, vcpu_signal::INPUT), Rights::USE));
    assert_eq!(table[&slot::ASKED], (Object::Signal(0, 0, root_signal::ASKED), Rights::USE));
    assert_eq!(table.len(), 6);
    assert_eq!(fake.line(), Some((33, Object::Signal(CONSOLE_DOMAIN, 0, console_signal::LINE))));
}

#[test]
fn exits_go_where_they_belong() {
    let fake = Fake::new();
    start(&fake);
    for (vcpu, number, p2m) in [(0, 0, 2), (1, 0, 4), (2, 1, 4)] {
        let badge = badge::EXIT | number;
        for class in ExitClass::ALL {
            let (domain, groups) = match class {
                ExitClass::Memory => (p2m, Groups::PC),
                ExitClass::Device | ExitClass::Register => (p2m + 1, Groups::PC.with(Groups::VALUE)),
                _ => (p2m + 1, Groups::PC.with(Groups::GENERAL)),
            };
            let portal = Object::Portal(domain, number as usize, badge);
            assert_eq!(fake.route(vcpu, class as u64), (portal, groups.0, badge), "{class:?}");
        }
    }
    let device = ExitClass::Device as u64;
    let expected = [(0x8000, 16), (0x80a0, 64), (0x9000, 1), (0x9010, 1), (0xa000, 4), (0, 0x8000)]
        .map(|(page, pages)| (page, pages, device));
    assert_eq!(fake.windows(2), expected);
}

#[test]
fn servers_have_their_programs_stacks_and_threads() {
    let fake = Fake::new();
    start(&fake);
    for (index, threads) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4)] {
        let domain = fake.domain(index);
        let access = |address: u64| {
            let map = domain.maps.iter().find(|(at, _, _, pages, _)| (*at..at + pages * PAGE).contains(&address));
            map.map(|map| map.4)
        };
        let read_write = Some(Access::READ.with(Access::WRITE).0);
        assert_eq!(access(PROGRAM), Some(Access::READ.with(Access::EXECUTE).0));
        assert_eq!(access(PROGRAM + 0x1000), Some(Access::READ.with(Access::EXECUTE).0));
        assert_eq!(access(PROGRAM + 0x2000), read_write);
        assert_eq!(access(PROGRAM + 0x4000), read_write);
        assert_eq!(access(PROGRAM + 0x5000), None);
        assert_eq!(access(CONFIG), Some(1));
        for (number, started) in (0u64..).zip(&domain.started) {
            let end = STACKS + (number + 1) * STACK_STRIDE;
            assert_eq!(*started, (PROGRAM, end, number));
            assert_eq!(access(end - 8), read_write);
            assert_eq!(access(end - STACK_BYTES), read_write);
            assert_eq!(access(end - STACK_BYTES - 1), None);
            assert_eq!(access(BUFFERS + number * PAGE), read_write);
            assert_eq!(domain.supervised[&(number as usize)], root_signal::server(index - 1));
        }
        assert_eq!((domain.started.len(), domain.supervised.len()), (threads, threads));
    }
    assert_eq!(fake.domain(2).rank, 1);
    assert_eq!(fake.domain(3).rank, 2);
    assert_eq!(fake.domain(2).threads, [(PASSIVE, 0), (PASSIVE, 0)]);
    let attending = (101, trellis_runtime::handle::budget(4000, 10000));
    assert_eq!(fake.domain(3).threads, [(PASSIVE, 0), (PASSIVE, 0), attending]);
    fake.check_runs_do_not_overlap();
}

#[test]
fn threads_have_floating_point_registers_only_where_the_plan_says_so() {
    let fake = Fake::new();
    let mut plan = plan();
    for server in [0, 2] {
        plan.servers[server].float = true;
    }
    start_plan(&fake, plan);
    for (index, threads) in [(1, 1), (2, 0), (3, 3), (4, 0), (5, 0)] {
        assert!(fake.domain(index).float.keys().copied().eq(0..threads), "server {index}");
    }
    let mut areas: Vec<usize, 8> = [1, 3].iter().flat_map(|index| fake.domain(*index).float.into_values()).collect();
    areas.sort_unstable();
    assert!(areas.windows(2).all(|pair| pair[0] != pair[1]), "each has a page of its own");
    fake.check_runs_do_not_overlap();
    // The usual plan: nobody has any, and their use is a fault.
    let fake = Fake::new();
    start(&fake);
    assert_eq!(fake.count(Op::ThreadFloat), 0);
}

#[test]
fn each_ring_is_one_page_with_two_ends() {
    let fake = Fake::new();
    start(&fake);
    let at = |domain: usize, page: usize| {
        let address = RINGS + page as u64 * PAGE;
        let map = fake.domain(domain).maps.into_iter().find(|map| map.0 == address);
        map.unwrap_or_else(|| panic!("domain {domain} has no ring {page}")).1
    };
    let mut rings = std::vec![
        (at(0, ring::ROOT_LOG), at(1, ring::console_log(0))),
        (at(0, ring::ROOT_REPORT), at(1, ring::CONSOLE_REPORT)),
        (at(0, ring::ROOT_ASKED), at(1, ring::CONSOLE_ASKED)),
        (at(0, ring::ROOT_ANSWER), at(1, ring::CONSOLE_ANSWER)),
    ];
    for server in 1..5 {
        rings.push((at(server + 1, ring::LOG), at(1, ring::console_log(server))));
        rings.push((at(server + 1, ring::REPORT), at(0, ring::root_report(server))));
    }
    for (guest, vcpu) in [(0, 3), (1, 5)] {
        rings.push((at(vcpu, ring::SERIAL_OUT), at(1, ring::console_out(guest))));
        rings.push((at(vcpu, ring::SERIAL_IN), at(1, ring::console_in(guest))));
    }
    assert!(rings.iter().all(|(one, other)| one == other));
    let mut runs: std::vec::Vec<_> = rings.iter().map(|(run, _)| *run).collect();
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), rings.len());
}

#[test]
fn a_vcpu_server_sees_its_own_loads_only() {
    let fake = Fake::new();
    start(&fake);
    let seen = |domain: usize| -> std::vec::Vec<(u64, u64)> {
        let maps = fake.domain(domain).maps;
        maps.into_iter().filter(|map| map.0 >= PAYLOAD).map(|map| (map.0 - PAYLOAD, map.3)).collect()
    };
    assert_eq!(seen(3), [(0x20000, 2), (0x24000, 1)]);
    assert_eq!(seen(5), [(0x22000, 2), (0x24000, 1)]);
    assert!(seen(2).is_empty() && seen(1).is_empty());
}

#[test]
fn guests_are_started_once_p2m_is_ready() {
    let fake = Fake::new();
    let (_, board) = start(&fake);
    let control = |domain, thread, op| (Object::Portal(domain, thread, badge::ROOT), op);
    let (ready, start) = (P2mOp::Ready as u64, VcpuOp::Start as u64);
    let expected = [control(2, 1, ready), control(3, 1, start), control(4, 2, ready), control(5, 2, start)];
    assert_eq!(*fake.calls.borrow(), expected);
    let interface::Interface { version, schema, .. } = interface::HOST;
    assert_eq!(reports(&board), [Report::Started { boot_ticks: 7, clock_hz: 7, kernel_memory: 7, version, schema }]);
}

#[test]
fn reports_of_a_vcpu_server_end_its_guest_and_then_the_machine() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    reports(&board);
    for (server, guest) in [(2, 0), (4, 1)] {
        assert!(Producer::new(board.ring(ring::root_report(server))).send(&ToRoot::Ended(GuestEnd::Off)));
        assert_eq!(fake.count(Op::SystemOff), 0);
        fake.bits.borrow_mut().extend([root_signal::server(server), root_signal::server(0)]);
        root.step(&fake);
        fake.bits.borrow_mut().clear();
        assert_eq!(reports(&board)[0], Report::GuestEnded { guest, end: GuestEnd::Off });
    }
    assert_eq!(fake.count(Op::SystemOff), 1);
    let last = *fake.waited.borrow().last().unwrap();
    assert_eq!(last.0, root_signal::server(0));
    assert_ne!(last.1, 0, "with a deadline");
}

#[test]
fn a_reset_gives_the_guest_clean_memory_and_starts_it_again() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    reports(&board);
    fake.calls.borrow_mut().clear();
    assert!(Producer::new(board.ring(ring::root_report(2))).send(&ToRoot::Reset));
    fake.bits.borrow_mut().push_back(root_signal::server(2));
    root.step(&fake);
    let control = |domain, op| (Object::Portal(domain, 1, badge::ROOT), op);
    let expected = [control(3, VcpuOp::Reset as u64), control(2, P2mOp::Reset as u64), control(3, VcpuOp::Start as u64)];
    assert_eq!(*fake.calls.borrow(), expected);
    assert_eq!(fake.count(Op::FramesReclaim), 1);
    assert!(fake.domain(2).table.contains_key(&slot::MEMORY));
    assert_eq!(reports(&board), [Report::GuestRebooted { guest: 0, times: 1 }]);
}

#[test]
fn a_server_that_faults_is_reported_with_its_registers_and_ends_its_guest() {
    let fake = Fake::new();
    let mut plan = plan();
    plan.guests[1].on_reset = trellis_idl::plan::OnReset::End;
    let (mut root, board) = start_plan(&fake, plan);
    reports(&board);
    // The first serving thread of p2m.b.
    fake.stopped.borrow_mut().insert((4, 0), 2);
    fake.bits.borrow_mut().push_back(root_signal::server(3));
    root.step(&fake);
    let seen = reports(&board);
    let Report::ServerFaulted { server: 3, record } = &seen[0] else { panic!("{seen:?}") };
    assert_eq!((record.syndrome, record.pc, record.general[30]), (0x101, 0x103, 0x100 + 38));
    assert_eq!(seen[1], Report::GuestEnded { guest: 1, end: GuestEnd::Server(3) });
    assert_eq!(fake.count(Op::VcpuStop), 2);
    assert_eq!(fake.count(Op::ThreadDestroy), 7, "what is left of its servers stops too");
    assert_eq!(fake.count(Op::SystemOff), 0);
}

#[test]
fn a_server_that_does_not_answer_is_made_again_with_its_guest_of_the_same_memory() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    reports(&board);
    let (runs, before) = (fake.runs(), [fake.domain(4), fake.domain(5)]);
    fake.calls.borrow_mut().clear();
    // A thread of vcpu.b, which is domain 5.
    fake.stopped.borrow_mut().insert((5, 1), 3);
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(&fake);
    let seen = reports(&board);
    assert!(matches!(seen[0], Report::ServerLate { server: 4, .. }), "{seen:?}");
    assert_eq!(seen[1..], [Report::GuestRebooted { guest: 1, times: 1 }]);
    assert_eq!(fake.runs(), runs, "no memory more and no memory less");
    assert_eq!((fake.count(Op::GuestDestroy), fake.count(Op::DomainDestroy)), (1, 2));
    for (old, new) in before.iter().zip([fake.domain(6), fake.domain(7)]) {
        assert_eq!((&old.maps, &old.started, &old.threads), (&new.maps, &new.started, &new.threads));
        assert_eq!((old.rank, &old.supervised), (new.rank, &new.supervised));
        assert!(old.table.keys().eq(new.table.keys()));
    }
    assert_eq!(fake.domain(CONSOLE_DOMAIN).table[&(slot::INPUT + 1)].0, Object::Signal(7, 3, vcpu_signal::INPUT));
    let control = |domain, op| (Object::Portal(domain, 2, badge::ROOT), op);
    assert_eq!(*fake.calls.borrow(), [control(6, P2mOp::Ready as u64), control(7, VcpuOp::Start as u64)]);
}

#[test]
fn a_reboot_that_fails_ends_the_guest() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    reports(&board);
    fake.refuse_calls.set(Some(3));
    assert!(Producer::new(board.ring(ring::root_report(2))).send(&ToRoot::Reset));
    fake.bits.borrow_mut().push_back(root_signal::server(2));
    root.step(&fake);
    assert_eq!(reports(&board)[1], Report::GuestEnded { guest: 0, end: GuestEnd::Server(2) });
}

#[test]
fn p2m_cannot_end_a_guest_and_garbage_ends_nothing() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    reports(&board);
    assert!(Producer::new(board.ring(ring::root_report(1))).send(&ToRoot::Ended(GuestEnd::Off)));
    assert!(Producer::new(board.ring(ring::root_report(2))).write_record(&[0xff; 40]));
    fake.bits.borrow_mut().push_back(root_signal::server(1) | root_signal::server(2));
    root.step(&fake);
    assert!(reports(&board).is_empty());
}

#[test]
fn a_server_that_reports_without_end_lets_others_speak() {
    let fake = Fake::new();
    let (mut root, board) = start(&fake);
    let mut flood = Producer::new(board.ring(ring::root_report(1)));
    while flood.send(&ToRoot::Ready) {}
    assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Ended(GuestEnd::Off)));
    reports(&board);
    fake.bits.borrow_mut().push_back(root_signal::server(1) | root_signal::server(4));
    root.step(&fake);
    assert_eq!(reports(&board).len(), 1);
    // What is left of the flood needs no new signal.
    let waits = fake.waited.borrow().len();
    root.step(&fake);
    assert_eq!(fake.waited.borrow().len(), waits);
}

#[test]
fn a_server_with_another_interface_is_an_error_at_the_start_of_its_guest_and_of_no_other() {
    for (domain, server) in [(4, 4), (5, 4)] {
        let fake = Fake::new();
        fake.disagrees.set(Some(domain));
        let (_, board) = start(&fake);
        let calls = fake.calls.borrow();
        assert!(calls.iter().all(|(portal, _)| matches!(portal, Object::Portal(2 | 3, ..))), "{calls:?}");
        assert_eq!(reports(&board)[1], Report::GuestEnded { guest: 1, end: GuestEnd::Server(server) });
    }
}

/// irqfwd's index in the plan, and its domain in the fake kernel.
pub const IRQFWD: usize = 5;

/// Address, pages and access of everything that a server has, of whichever memory.
fn places(server: &FakeDomain) -> std::vec::Vec<(u64, u64, u64)> {
    server.maps.iter().map(|(at, _, _, pages, access)| (*at, *pages, *access)).collect()
}

pub fn expect_irqfwd(fake: &Fake, domain: usize, vcpus: [usize; 2]) {
    expect_irqfwd_but_for_time(fake, domain, vcpus);
    // Time of its own for the thread that serves, and none but a caller's for the one that answers root.
    let threads = fake.domain(domain).threads;
    assert_eq!((threads[0].0, threads[0].1 != 0, threads[1]), (210, true, (PASSIVE, 0)));
}

pub fn expect_irqfwd_but_for_time(fake: &Fake, domain: usize, vcpus: [usize; 2]) {
    let server = fake.domain(domain);
    let table = server.table;
    assert_eq!(server.rank, 2);
    assert_eq!(table[&slot::ROOT], (Object::Signal(0, 0, root_signal::server(IRQFWD)), Rights::USE));
    assert_eq!(table[&slot::CONSOLE], (Object::Signal(CONSOLE_DOMAIN, 0, console_signal::OUTPUT), Rights::USE));
    assert_eq!(table[&slot::SYSTEM], (Object::System, Rights::LINES));
    assert_eq!(table[&slot::QUEUE], (Object::Signal(domain, 0, trellis_idl::layout::irqfwd_signal::QUEUE), Rights::USE));
    for (place, line) in [(0, 34), (1, 40)] {
        assert_eq!(table[&(slot::LINE + place)], (Object::Line(line), Rights::CONTROL));
    }
    for (number, vcpu) in (0..).zip(vcpus) {
        assert_eq!(table[&(slot::VCPUS + 8 + number)], (Object::Vcpu(vcpu), Rights::LINES));
    }
    assert_eq!(table.len(), 8);
}

#[test]
fn irqfwd_gets_what_the_layout_says_and_nothing_else() {
    let fake = Fake::new();
    start_plan(&fake, plan_with_device());
    expect_irqfwd(&fake, IRQFWD + 1, [1, 2]);
    let device = (Object::Run(3), Rights::READ.with(Rights::WRITE).with(Rights::EXECUTE));
    assert_eq!(fake.domain(4).table[&slot::DEVICE], device, "its owner's p2m has the device");
    assert!(!fake.domain(2).table.contains_key(&slot::DEVICE), "and no other");
}

#[test]
fn an_irqfwd_that_faults_is_made_again_of_the_same_memory_and_its_guests_go_on() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, plan_with_device());
    reports(&board);
    let (runs, before) = (fake.runs(), fake.domain(IRQFWD + 1));
    for (life, domain) in (IRQFWD + 1..).take(4).enumerate() {
        fake.stopped.borrow_mut().insert((domain, 0), 2);
        fake.bits.borrow_mut().push_back(root_signal::server(IRQFWD));
        root.step(&fake);
        let seen = reports(&board);
        assert!(matches!(seen[0], Report::ServerFaulted { server: 5, .. }) && seen.len() <= 2, "{seen:?}");
        // The fourth death in a row is the last.
        assert_eq!(fake.count(Op::DomainDestroy), (life + 1).min(3));
        if life < 3 {
            expect_irqfwd(&fake, domain + 1, [1, 2]);
            // Split off its room anew: other runs, of the same size at the same places.
            assert_eq!(places(&fake.domain(domain + 1)), places(&before));
        }
    }
    assert_eq!(fake.runs(), runs, "no memory more and no memory less");
    assert_eq!((fake.count(Op::VcpuStop), fake.count(Op::LineCreate)), (0, 3), "guests and lines stay");
}

/// Device runs of the translation service, of two redistributors, of a function and of the table of its messages, behind the guest's own device, and what
/// irqfwd is told of them.
fn messages(fake: &Fake) -> MessagePlan {
    let memory = Frames::at(root_slot::MEMORY);
    for (run, first, pages) in [(2, 0x3f000, 1), (3, 0x3f100, 64), (4, 0x3f200, 1), (5, 0x3f201, 1)] {
        memory.split(fake, first, pages, root_slot::DEVICES + run).expect("the end of memory is nobody's");
    }
    let ranges = [RangePlan { base: 0x1000_0000, register: 0, bits: 20 }].into_iter().collect();
    let place = TablePlace { register: 0, offset: 0 };
    let table = Some(TablePlan { run: 5, entries: 1, at: place, pending: place });
    let function = FunctionPlan { guest: 1, run: 4, requester: 0x10, ranges, line: 8192, messages: 1, table, chosen: false };
    MessagePlan {
        service: 2,
        redistributors: 3,
        redistributors_at: 0x080a_0000,
        frames: 2,
        doorbell: 0x0809_0040,
        cpus: [(0, 0)].into_iter().collect(),
        functions: [function].into_iter().collect(),
    }
}

#[test]
fn irqfwd_alone_gets_what_makes_lines_of_messages_and_the_next_one_gets_the_same() {
    let fake = Fake::new();
    let board = FakeBoard::with(Some(messages(&fake)));
    let (mut root, _) = start_on(&fake, plan_with_device(), board);
    let of = |address: u64, pages: u64| move |map: &&Mapped| map.0 == address && map.3 == pages;
    let expect = |domain: usize| {
        let maps = fake.domain(domain).maps;
        let page = |place: usize| maps.iter().find(of(DEVICE + place as u64 * PAGE, 1)).map(|map| map.2);
        let places = [message::SERVICE, message::function(0), message::table(0), message::redistributor(0), message::redistributor(1)];
        assert_eq!(places.map(page), [Some(0), Some(0), Some(0), Some(0), Some(32)]);
        let tables = *maps.iter().find(of(TABLES, 4 * 16)).expect("three blocks and one a CPU");
        assert_eq!(maps.iter().filter(|map| map.0 >= DEVICE).count(), 6, "{maps:x?}");
        tables.1
    };
    let run = expect(IRQFWD + 1);
    let others = (0..IRQFWD + 1).filter(|domain| fake.domain(*domain).maps.iter().any(|map| map.0 == TABLES || map.1 == run));
    assert_eq!(others.count(), 0, "nobody else has it");
    fake.stopped.borrow_mut().insert((IRQFWD + 1, 0), 2);
    fake.bits.borrow_mut().push_back(root_signal::server(IRQFWD));
    root.step(&fake);
    assert_eq!(expect(IRQFWD + 2), run, "what hardware writes stays where it is");
}

#[test]
fn a_vcpu_server_gets_the_functions_that_its_guest_sees_and_windows_on_them() {
    let fake = Fake::new();
    let mut plan = messages(&fake);
    plan.functions[0].chosen = true;
    let board = FakeBoard::with(Some(plan));
    start_on(&fake, plan_with_device(), board);
    let maps = |domain: usize| fake.domain(domain).maps.iter().copied().filter(|map| (DEVICE..PAYLOAD).contains(&map.0)).collect::<std::vec::Vec<_>>();
    let at = |place: usize| DEVICE + place as u64 * PAGE;
    let of_irqfwd = |place: usize| maps(IRQFWD + 1).into_iter().find(|map| map.0 == at(place)).expect("irqfwd has it");
    let (configuration, table) = (of_irqfwd(message::function(0)), of_irqfwd(message::table(0)));
    let expected: [Mapped; 2] = [
        (at(bus::configuration(0)), configuration.1, configuration.2, configuration.3, Access::READ.0),
        (at(bus::table(0)), table.1, table.2, table.3, table.4),
    ];
    assert_eq!(maps(5), expected, "the same pages and no others, and the configuration to read it");
    assert_eq!(maps(3), [], "the other guest's has none");
    let windows = |vcpu: usize| fake.windows(vcpu).split_off(6);
    let device = ExitClass::Device as u64;
    assert_eq!(windows(0), []);
    assert_eq!(windows(2), [(0x8020, 1, device), (0x3_f000, 256, device), (0xb000, 2, device)]);
}

#[test]
fn the_memory_of_tables_begins_with_its_own_address_in_the_machine() {
    let (fake, board) = (Fake::new(), FakeBoard::new());
    let plan = messages(&fake);
    let mut supply = crate::supply::Supply::new(&fake);
    let run = crate::messages::tables(&fake, &board, &mut supply, Some(&plan)).unwrap().expect("there is a plan");
    let mut bytes = [0; 8];
    assert!(crate::Board::scratch_read(&board, message::ADDRESS, &mut bytes));
    let address = u64::from_le_bytes(bytes);
    assert_eq!((address, address % message::BLOCK), (run.info(&fake).unwrap().first * PAGE, 0));
}

#[test]
fn runs_that_are_no_devices_are_not_handed_out_for_messages() {
    let spoilt: [fn(&mut MessagePlan); 5] = [
        |plan| plan.service = 0,
        |plan| plan.redistributors = 16,
        |plan| plan.functions[0].run = 40,
        |plan| plan.functions[0].table.as_mut().expect("it has one").run = 0,
        |plan| plan.frames = 255,
    ];
    for spoil in spoilt {
        let fake = Fake::new();
        let mut plan = messages(&fake);
        spoil(&mut plan);
        let plans: &'static Plan<'static> = Box::leak(Box::new(plan_with_device()));
        assert!(matches!(Root::start(&fake, FakeBoard::with(Some(plan)), plans, |_| {}), Err(StartError::Plan(_))));
    }
}

#[test]
fn a_guest_that_is_made_again_has_its_lines_let_go_and_forwarded_again() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, plan_with_device());
    reports(&board);
    fake.calls.borrow_mut().clear();
    fake.stopped.borrow_mut().insert((5, 1), 3);
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(&fake);
    expect_irqfwd(&fake, IRQFWD + 1, [3, 4]);
    let irqfwd = |op: IrqfwdOp| (Object::Portal(IRQFWD + 1, 1, badge::ROOT), op as u64);
    let control = |domain, op| (Object::Portal(domain, 2, badge::ROOT), op);
    let expected = [
        irqfwd(IrqfwdOp::Unbind),
        irqfwd(IrqfwdOp::Bind),
        control(7, P2mOp::Ready as u64),
        control(8, VcpuOp::Start as u64),
    ];
    assert_eq!(*fake.calls.borrow(), expected);
    assert_eq!(fake.domain(7).table[&slot::DEVICE].0, Object::Run(3));
}

/// Its functions would go on as the life before left them.
#[test]
fn an_irqfwd_that_is_lost_when_a_function_is_to_be_taken_away_is_made_again_and_asked_again() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, plan_with_device());
    reports(&board);
    fake.calls.borrow_mut().clear();
    fake.refuse_calls.set(Some(IRQFWD + 1));
    fake.stopped.borrow_mut().insert((IRQFWD + 1, 0), 2);
    assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Reset));
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(&fake);
    let irqfwd = |next: usize, op: IrqfwdOp| (Object::Portal(IRQFWD + next, 1, badge::ROOT), op as u64);
    let asked: std::vec::Vec<_> = fake.calls.borrow().iter().copied().filter(|(to, _)| matches!(to, Object::Portal(.., 1, _))).collect();
    assert_eq!(asked, [irqfwd(1, IrqfwdOp::Disconnect), irqfwd(2, IrqfwdOp::Disconnect), irqfwd(2, IrqfwdOp::Connect)]);
    let seen = reports(&board);
    assert!(matches!(seen[..], [Report::GuestRebooted { guest: 1, times: 1 }, Report::ServerFaulted { .. }]), "{seen:?}");
}

#[test]
fn a_guest_that_ends_lets_its_lines_go() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, plan_with_device());
    fake.calls.borrow_mut().clear();
    for (server, lines) in [(2, false), (4, true)] {
        assert!(Producer::new(board.ring(ring::root_report(server))).send(&ToRoot::Ended(GuestEnd::Off)));
        fake.bits.borrow_mut().push_back(root_signal::server(server));
        root.step(&fake);
        let unbind = (Object::Portal(IRQFWD + 1, 1, badge::ROOT), IrqfwdOp::Unbind as u64);
        assert_eq!(fake.calls.borrow().contains(&unbind), lines, "only the guest that has some");
    }
}

mod watched {
    //! Guests with a monitor.

    use super::*;
    use crate::fake::{FakeSession, MONITOR, plan_with_monitor};
    use trellis_idl::kernel::Seat;
    use trellis_idl::layout::watched as place;
    use trellis_idl::plan::Without;
    use trellis_idl::wire::MonitorOp;

    /// Its domain in the fake kernel.
    const DOMAIN: usize = MONITOR + 1;

    /// A system whose second guest, with two vCPUs, is watched.
    fn one(fake: &Fake, without: Without) -> (Root<'static, FakeBoard>, FakeBoard) {
        let (root, board) = start_plan(fake, plan_with_monitor(&[1], without));
        reports(&board);
        (root, board)
    }

    /// A thread of the monitor in this domain stops, and root hears of it.
    fn dies(fake: &Fake, root: &mut Root<'static, FakeBoard>, domain: usize, how: u64) {
        fake.stopped.borrow_mut().insert((domain, 0), how);
        fake.bits.borrow_mut().push_back(root_signal::server(MONITOR));
        root.step(fake);
    }

    fn expect_admitted(fake: &Fake, domain: usize, at: u64, (guest, vcpus, p2m): (usize, &[usize], usize)) {
        let table = fake.domain(domain).table;
        if at == 0 {
            assert_eq!(table[&place::guest(0)], (Object::Guest(guest), Rights::READ));
        }
        for (number, vcpu) in (0..).zip(vcpus) {
            // As the manifest says: of the first guest it writes registers, the second it pauses.
            let more = if at == 0 { Rights::WRITE } else { Rights::EXECUTE };
            assert_eq!(table[&place::vcpu(at, number)], (Object::Vcpu(*vcpu), Rights::READ.with(more)));
        }
        for thread in 0..=vcpus.len() {
            let badge = badge::monitor(0, thread as u64);
            let way = |server: usize| (Object::Portal(server, thread, badge), Rights::USE);
            assert_eq!(table[&place::p2m(at, thread as u64)], way(p2m));
            assert_eq!(table[&place::vcpu_server(at, thread as u64)], way(p2m + 1));
        }
    }

    /// Who is asked about the guest: the monitor in this domain, at this seat, which was settled.
    fn expect_asked(session: &FakeSession, domain: usize, at: u64, seat: Seat, vcpus: u64) {
        assert_eq!(session.seat, seat as u64);
        for vcpu in 0..vcpus {
            let portal = Object::Portal(domain, 0, badge::event(at, vcpu));
            assert_eq!(session.places[&(vcpu, seat as u64)], portal);
            assert!(session.settled.contains(&(vcpu, seat as u64)));
        }
    }

    fn control(domain: usize, thread: usize, op: u64) -> (Object, u64) {
        (Object::Portal(domain, thread, badge::ROOT), op)
    }

    #[test]
    fn a_monitor_gets_what_the_layout_says_and_nothing_else() {
        let fake = Fake::new();
        start_plan(&fake, plan_with_monitor(&[0, 1], Without::Hold));
        let monitor = fake.domain(DOMAIN);
        assert_eq!(monitor.rank, 3);
        assert_eq!(monitor.table[&slot::ROOT], (Object::Signal(0, 0, root_signal::server(MONITOR)), Rights::USE));
        assert_eq!(monitor.table[&slot::CONSOLE], (Object::Signal(CONSOLE_DOMAIN, 0, console_signal::OUTPUT), Rights::USE));
        expect_admitted(&fake, DOMAIN, 0, (0, &[0], 2));
        expect_admitted(&fake, DOMAIN, 1, (1, &[1, 2], 4));
        // Two signals, the first guest's memory, three vCPUs, and ways into two and three threads of two servers.
        assert_eq!(monitor.table.len(), 2 + 1 + 3 + 2 * (2 + 3));
        assert_eq!(monitor.threads[..2], [(PASSIVE, 0), (PASSIVE, 0)]);
        assert!(monitor.threads.len() == 3 && monitor.threads[2].1 != 0, "who reads has time of its own");
        for (guest, servers) in [(0, [2, 3]), (1, [4, 5])] {
            for server in servers {
                assert_eq!(fake.domain(server).table[&slot::SESSION], (Object::Session(guest, 0), Rights::USE));
                assert_eq!(fake.domain(server).table[&slot::READER], (Object::Signal(DOMAIN, 2, 1), Rights::USE), "and wakes it");
            }
        }
        expect_asked(&fake.session(0, 0), DOMAIN, 0, Seat::First, 1);
        expect_asked(&fake.session(1, 0), DOMAIN, 1, Seat::First, 2);
        assert_eq!(monitor.patience, [50_000, 10_000_000, 50_000]);
        fake.check_runs_do_not_overlap();
    }

    #[test]
    fn a_guest_runs_once_its_monitor_watches_it() {
        let fake = Fake::new();
        one(&fake, Without::Hold);
        let (ready, start, begin) = (P2mOp::Ready as u64, VcpuOp::Start as u64, MonitorOp::Begin as u64);
        let expected = [
            control(2, 1, ready), control(3, 1, start), control(4, 2, ready), control(DOMAIN, 1, begin), control(5, 2, start),
        ];
        assert_eq!(*fake.calls.borrow(), expected);
    }

    #[test]
    fn a_monitor_that_dies_is_made_again_of_the_same_memory_and_settles_what_its_guests_are_owed() {
        for how in [1, 2, 3] {
            let fake = Fake::new();
            let (mut root, board) = one(&fake, Without::Hold);
            let (runs, before) = (fake.runs(), fake.domain(DOMAIN));
            fake.calls.borrow_mut().clear();
            dies(&fake, &mut root, DOMAIN, how);
            match (&reports(&board)[..], how) {
                ([], 1) => {}
                ([Report::ServerFaulted { server: 5, .. }, ..], 2) | ([Report::ServerLate { server: 5, .. }], 3) => {}
                other => panic!("{other:?}"),
            }
            let new = DOMAIN + 1;
            assert_eq!(*fake.calls.borrow(), [control(new, 1, MonitorOp::Adopt as u64)]);
            expect_admitted(&fake, new, 0, (1, &[1, 2], 4));
            expect_asked(&fake.session(1, 0), new, 0, Seat::Second, 2);
            // In its other half: other runs, of the same size at the same places.
            assert_eq!(places(&fake.domain(new)), places(&before));
            assert_eq!(fake.domain(new).supervised, before.supervised);
            assert!(fake.domain(new).table.keys().eq(before.table.keys()));
            assert_eq!(fake.runs(), runs, "no memory more and no memory less");
            assert_eq!((fake.count(Op::VcpuStop), fake.count(Op::DomainDestroy)), (0, 1), "its guest goes on");
            // Held, then the first seat at the beginning; held and the second now.
            assert_eq!(fake.session(1, 0).epoch, 3);
            // Once more, and it sits where the first one sat.
            dies(&fake, &mut root, new, how);
            expect_asked(&fake.session(1, 0), new + 1, 0, Seat::First, 2);
        }
    }

    #[test]
    fn while_there_is_no_monitor_a_guest_waits_or_goes_on_as_the_manifest_says() {
        for (without, seat) in [(Without::Hold, Seat::Held), (Without::Allow, Seat::Nobody)] {
            let fake = Fake::new();
            let (mut root, _) = one(&fake, without);
            // The first new one does not begin; then its guest has been without a monitor twice.
            fake.refuse_monitors.set(1);
            dies(&fake, &mut root, DOMAIN, 2);
            let commits = [Seat::First, seat, seat, Seat::First].map(|seat| seat as u64);
            assert_eq!(fake.session(1, 0).commits, commits);
        }
    }

    #[test]
    fn a_monitor_that_dies_while_it_begins_is_made_again_before_its_guest_starts() {
        let fake = Fake::new();
        fake.refuse_monitors.set(2);
        let (_, board) = start_plan(&fake, plan_with_monitor(&[1], Without::Hold));
        let begin = |domain| control(domain, 1, MonitorOp::Begin as u64);
        let last = [begin(DOMAIN), begin(DOMAIN + 1), begin(DOMAIN + 2), control(5, 2, VcpuOp::Start as u64)];
        assert_eq!(fake.calls.borrow()[3..], last);
        expect_asked(&fake.session(1, 0), DOMAIN + 2, 0, Seat::First, 2);
        assert!(matches!(reports(&board)[..], [Report::Started { .. }]));
    }

    #[test]
    fn a_monitor_with_another_interface_is_lost_before_its_guest_starts() {
        let fake = Fake::new();
        fake.disagrees.set(Some(DOMAIN));
        start_plan(&fake, plan_with_monitor(&[1], Without::Hold));
        assert_eq!(fake.calls.borrow()[3], control(DOMAIN + 1, 1, MonitorOp::Begin as u64));
        expect_asked(&fake.session(1, 0), DOMAIN + 1, 0, Seat::Second, 2);
    }

    #[test]
    fn a_monitor_that_dies_again_and_again_leaves_its_guest_to_the_manifest() {
        for without in [Without::Hold, Without::Allow] {
            let fake = Fake::new();
            let (mut root, board) = one(&fake, without);
            for life in 0..4 {
                assert_eq!(fake.count(Op::VcpuStop), 0);
                dies(&fake, &mut root, DOMAIN + life, 1);
            }
            assert_eq!(fake.count(Op::DomainDestroy), 3, "the fourth death in a row is the last");
            let (ends, stops) = if without == Without::Hold { (1, 2) } else { (0, 0) };
            let seen = reports(&board);
            assert_eq!(seen.len(), ends, "{seen:?}");
            assert!(seen.iter().all(|report| *report == Report::GuestEnded { guest: 1, end: GuestEnd::Server(5) }));
            assert_eq!(fake.count(Op::VcpuStop), stops);
            if without == Without::Allow {
                assert_eq!(fake.session(1, 0).seat, Seat::Nobody as u64);
                // It may start again, and nobody is asked.
                fake.calls.borrow_mut().clear();
                assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Reset));
                fake.bits.borrow_mut().push_back(root_signal::server(4));
                root.step(&fake);
                assert_eq!(fake.calls.borrow().last(), Some(&control(5, 2, VcpuOp::Start as u64)));
            }
        }
    }

    #[test]
    fn a_new_monitor_that_cannot_begin_counts_as_one_that_died() {
        let fake = Fake::new();
        let (mut root, board) = one(&fake, Without::Hold);
        fake.refuse_monitors.set(usize::MAX);
        dies(&fake, &mut root, DOMAIN, 2);
        let seen = reports(&board);
        assert_eq!(seen.last(), Some(&Report::GuestEnded { guest: 1, end: GuestEnd::Server(5) }), "{seen:?}");
        assert_eq!(fake.count(Op::DomainDestroy), 3);
        // Nothing of it is heard any more.
        dies(&fake, &mut root, DOMAIN + 3, 2);
        assert!(reports(&board).is_empty());
    }

    #[test]
    fn a_guest_that_shall_not_be_without_its_monitor_ends_with_it_and_others_go_on() {
        let fake = Fake::new();
        let mut plan = plan_with_monitor(&[0, 1], Without::Stop);
        plan.guests[0].watchers[0].without = Without::Hold;
        let (mut root, board) = start_plan(&fake, plan);
        reports(&board);
        dies(&fake, &mut root, DOMAIN, 1);
        assert_eq!(reports(&board)[..], [Report::GuestEnded { guest: 1, end: GuestEnd::Server(5) }]);
        assert_eq!(fake.count(Op::VcpuStop), 2);
        expect_asked(&fake.session(0, 0), DOMAIN + 1, 0, Seat::Second, 1);
        assert!(!fake.domain(DOMAIN + 1).table.contains_key(&place::vcpu(1, 0)), "it has nothing of who has ended");
    }

    #[test]
    fn a_guest_that_reboots_is_watched_before_it_runs_again() {
        let fake = Fake::new();
        let (mut root, board) = one(&fake, Without::Hold);
        fake.calls.borrow_mut().clear();
        assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Reset));
        fake.bits.borrow_mut().push_back(root_signal::server(4));
        root.step(&fake);
        let expected = [
            control(5, 2, VcpuOp::Reset as u64), control(4, 2, P2mOp::Reset as u64),
            control(DOMAIN, 1, MonitorOp::Begin as u64), control(5, 2, VcpuOp::Start as u64),
        ];
        assert_eq!(*fake.calls.borrow(), expected);
        assert_eq!(reports(&board)[..], [Report::GuestRebooted { guest: 1, times: 1 }]);
    }

    #[test]
    fn a_guest_that_is_made_again_is_watched_by_the_same_monitor() {
        let fake = Fake::new();
        let (mut root, board) = one(&fake, Without::Hold);
        let runs = fake.runs();
        for life in 0..3 {
            let (p2m, guest) = (if life == 0 { 4 } else { DOMAIN - 1 + 2 * life }, 2 + life);
            fake.calls.borrow_mut().clear();
            fake.stopped.borrow_mut().insert((p2m + 1, 1), 3);
            fake.bits.borrow_mut().push_back(root_signal::server(4));
            root.step(&fake);
            let new = DOMAIN + 1 + 2 * life;
            assert!(reports(&board).contains(&Report::GuestRebooted { guest: 1, times: 1 + life as u32 }));
            let expected = [
                control(new, 2, P2mOp::Ready as u64), control(DOMAIN, 1, MonitorOp::Begin as u64),
                control(new + 1, 2, VcpuOp::Start as u64),
            ];
            assert_eq!(*fake.calls.borrow(), expected);
            let vcpus = [1 + 2 * (life + 1), 2 + 2 * (life + 1)];
            expect_admitted(&fake, DOMAIN, 0, (guest, &vcpus, new));
            expect_asked(&fake.session(guest, 0), DOMAIN, 0, Seat::First, 2);
            assert_eq!(fake.runs(), runs, "no memory more and no memory less");
        }
    }

    #[test]
    fn the_monitor_of_a_guest_that_has_ended_is_not_made_again() {
        let fake = Fake::new();
        let (mut root, board) = one(&fake, Without::Hold);
        assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Ended(GuestEnd::Off)));
        fake.bits.borrow_mut().push_back(root_signal::server(4));
        root.step(&fake);
        dies(&fake, &mut root, DOMAIN, 1);
        assert_eq!((fake.count(Op::DomainDestroy), fake.count(Op::DomainCreate)), (0, 6));
        assert_eq!(reports(&board)[..], [Report::GuestEnded { guest: 1, end: GuestEnd::Off }]);
    }

    #[test]
    fn a_verdict_ends_the_guest_and_no_other() {
        let fake = Fake::new();
        let (mut root, board) = one(&fake, Without::Hold);
        let mut says = |report: &ToRoot| {
            assert!(Producer::new(board.ring(ring::root_report(MONITOR))).send(report));
            fake.bits.borrow_mut().push_back(root_signal::server(MONITOR));
            root.step(&fake);
            reports(&board)
        };
        assert!(says(&ToRoot::Stop(1)).is_empty(), "it has no such guest");
        assert!(says(&ToRoot::Ended(GuestEnd::Off)).is_empty(), "this is not its to say");
        assert_eq!(says(&ToRoot::Stop(0))[..], [Report::GuestEnded { guest: 1, end: GuestEnd::Stopped(5) }]);
        assert!(says(&ToRoot::Stop(0)).is_empty());
        assert_eq!(fake.count(Op::VcpuStop), 2);
    }
}
