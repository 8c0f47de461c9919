// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host is told, and what it may order.

use super::tests::{reports, start_plan};
use super::*;
use crate::fake::{Fake, FakeBoard, MONITOR, MONITOR_NAME, Object, plan, plan_with_device, plan_with_monitor, plan_with_shield};
use crate::host::TURN;
use trellis_idl::control::{Answer, Ask, Control, Ended, FromHost, Handed, Head, Life, Name, Part, Refused, VERSION};
use trellis_idl::kernel::{Op, Seat};
use trellis_idl::layout::badge::pauser;
use trellis_idl::plan::Without;
use trellis_idl::wire::Seen;

fn system(fake: &Fake, control: Control) -> (Root<'static, FakeBoard>, FakeBoard) {
    let mut plan = plan();
    plan.control = control;
    (plan.guests[0].name, plan.guests[1].name) = ("a", "b");
    let (root, board) = start_plan(fake, plan);
    reports(&board);
    (root, board)
}

fn ask(board: &FakeBoard, number: u32, ask: Ask) -> bool {
    Producer::new(board.ring(ring::ROOT_ASKED)).send(&FromHost::Asked(number, ask))
}

/// Every part that has been said.
fn said(board: &FakeBoard) -> std::vec::Vec<(u32, Part)> {
    let mut ring = Consumer::new(board.ring(ring::ROOT_ANSWER));
    let answers = core::iter::from_fn(|| ring.receive::<Answer>()).map(|answer| answer.expect("an answer"));
    answers
        .map(|Answer { head: Head { version, number }, part }| {
            assert_eq!(version, VERSION);
            (number, part)
        })
        .collect()
}

/// The whole answer to a question.
fn answer(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard, question: Ask) -> std::vec::Vec<Part> {
    assert!(ask(board, 77, question));
    for _ in 0..100 {
        root.step(fake);
    }
    let parts = said(board);
    assert!(parts.iter().all(|(number, _)| *number == 77));
    parts.into_iter().map(|(_, part)| part).collect()
}

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a short name")
}

#[test]
fn a_status_tells_of_lines_of_devices_while_somebody_forwards_them() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, Plan { control: Control::Observe, ..plan_with_device() });
    reports(&board);
    let lines = |root: &mut Root<'_, FakeBoard>| {
        let parts = answer(root, &fake, &board, Ask::Status);
        assert_eq!(parts.last(), Some(&Part::Done));
        let lines = parts.iter().filter_map(|part| if let Part::Source(source) = part { Some(*source) } else { None });
        lines.map(|source| (source.guest, source.line, source.guest_line, source.is_direct)).collect::<std::vec::Vec<_>>()
    };
    assert_eq!(lines(&mut root), [(1, 34, 34, false), (1, 40, 40, true)]);
    let portal = fake.calls.borrow().last().map(|(object, _)| *object);
    let Some(Object::Portal(irqfwd, ..)) = portal else { panic!("{portal:?}") };
    fake.refuse_calls.set(Some(irqfwd));
    assert_eq!(lines(&mut root), [], "their guest has ended, or nobody answers");
}

#[test]
fn a_status_tells_of_system_guests_servers_and_silicon() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Observe);
    let parts = answer(&mut root, &fake, &board, Ask::Status);
    let kinds: std::vec::Vec<u8> = parts.iter().map(|part| match part {
        Part::System(system) => {
            assert_eq!((system.name.as_str(), system.control, system.cpus), ("test", Control::Observe, 7));
            assert!(system.free_bytes > 0 && system.free_bytes < fake.memory_end() << 12);
            0
        }
        Part::Guest(guest) => {
            assert_eq!((guest.life, guest.reboots, guest.tables, guest.vcpus.len()), (Life::Runs, 0, [30, 12], 1 + usize::from(guest.guest)));
            1
        }
        Part::Server(server) => {
            assert!(!server.has_stopped && server.memory_bytes > 0 && server.threads > 0);
            2
        }
        Part::Silicon(_) => 3,
        Part::Done => 4,
        other => panic!("{other:?}"),
    }).collect();
    assert_eq!(kinds, [0, 1, 1, 2, 2, 2, 2, 2, 3, 4]);
}

#[test]
fn a_guest_is_paused_and_goes_on_and_a_status_says_so() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    let life = |root: &mut Root<'_, FakeBoard>| {
        let parts = answer(root, &fake, &board, Ask::Status);
        parts.into_iter().filter_map(|part| if let Part::Guest(guest) = part { Some(guest.life) } else { None }).collect::<std::vec::Vec<_>>()
    };
    let slots: std::vec::Vec<u64> = root.guests[1].vcpus.iter().map(|vcpu| vcpu.slot()).collect();
    assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("b"))), [Part::Done]);
    assert_eq!(fake.take_pauses(), slots.iter().map(|slot| (Op::VcpuStop, *slot)).collect::<std::vec::Vec<_>>());
    assert_eq!(life(&mut root), [Life::Runs, Life::Paused]);
    assert_eq!(answer(&mut root, &fake, &board, Ask::Resume(name("b"))), [Part::Done]);
    assert_eq!(fake.take_pauses(), slots.iter().map(|slot| (Op::VcpuStart, *slot)).collect::<std::vec::Vec<_>>());
    assert_eq!(life(&mut root), [Life::Runs, Life::Runs]);
}

/// The only guest with a monitor, which this pauses; then what `ends` does.
fn paused_by_its_monitor() -> (Fake, Root<'static, FakeBoard>, FakeBoard, std::vec::Vec<u64>) {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    (plan.control, plan.guests[1].name) = (Control::Full, "b");
    let (root, board) = start_plan(&fake, plan);
    reports(&board);
    let slots: std::vec::Vec<u64> = root.guests[1].vcpus.iter().map(|vcpu| vcpu.slot()).collect();
    slots.iter().for_each(|slot| fake.pause(*slot, 1 << pauser::monitor(0, 0)));
    (fake, root, board, slots)
}

fn life(root: &mut Root<'_, FakeBoard>, fake: &Fake, board: &FakeBoard) -> Life {
    let parts = answer(root, fake, board, Ask::Status);
    let guests = parts.into_iter().filter_map(|part| if let Part::Guest(guest) = part { Some(guest.life) } else { None });
    guests.last().expect("a guest")
}

#[test]
fn a_guest_that_host_and_monitor_pause_goes_on_when_both_have_ended_that() {
    let (fake, mut root, board, slots) = paused_by_its_monitor();
    let monitors = 1 << pauser::monitor(0, 0);
    let paused = |fake: &Fake| slots.iter().map(|slot| fake.paused(*slot)).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(life(&mut root, &fake, &board), Life::Paused, "whoever does it");
    assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("b"))), [Part::Done]);
    assert_eq!(paused(&fake), [monitors | 1].into());
    assert_eq!(answer(&mut root, &fake, &board, Ask::Resume(name("b"))), [Part::Refused(Refused::StillPaused)]);
    assert_eq!((paused(&fake), life(&mut root, &fake, &board)), ([monitors].into(), Life::Paused));
    // The other way round.
    assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("b"))), [Part::Done]);
    slots.iter().for_each(|slot| root.guests[1].vcpus.iter().find(|vcpu| vcpu.slot() == *slot).map(|vcpu| vcpu.resume_for(&fake, monitors)).map_or((), drop));
    assert_eq!((paused(&fake), life(&mut root, &fake, &board)), ([1].into(), Life::Paused));
    assert_eq!(answer(&mut root, &fake, &board, Ask::Resume(name("b"))), [Part::Done]);
    assert_eq!((paused(&fake), life(&mut root, &fake, &board)), ([0].into(), Life::Runs));
}

#[test]
fn what_a_monitor_paused_goes_on_when_it_is_lost_or_its_guest_starts_again() {
    for ask in [Ask::Kill(name(MONITOR_NAME)), Ask::Reboot(name("b"))] {
        let (fake, mut root, board, slots) = paused_by_its_monitor();
        assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("b"))), [Part::Done]);
        let parts = answer(&mut root, &fake, &board, ask.clone());
        assert_eq!(parts.last(), Some(&Part::Done), "{parts:?}");
        // The host's own pause outlives a monitor, and no start of the guest.
        let left = u64::from(matches!(ask, Ask::Kill(_)));
        assert!(slots.iter().all(|slot| fake.paused(*slot) == left), "{ask:?}");
    }
}

#[test]
fn a_reboot_waits_for_exits_and_ends_a_pause() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("a"))), [Part::Done]);
    fake.calls.borrow_mut().clear();
    fake.take_pauses();
    fake.serve(4);
    assert_eq!(answer(&mut root, &fake, &board, Ask::Reboot(name("a"))), [Part::Done]);
    let pauses = fake.take_pauses();
    let stops = pauses.iter().filter(|(op, _)| *op == Op::VcpuStop).count();
    assert_eq!((stops, pauses.last().map(|(op, _)| *op)), (4, Some(Op::VcpuStart)), "{pauses:?}");
    let operations: std::vec::Vec<u64> = fake.calls.borrow().iter().map(|(_, operation)| *operation).collect();
    assert_eq!(operations, [VcpuOp::Reset as u64, P2mOp::Reset as u64, VcpuOp::Start as u64]);
    assert_eq!(reports(&board)[0], Report::GuestRebooted { guest: 0, times: 1 });
    assert!(!root.host.has_paused(0));
}

#[test]
fn a_guest_that_ended_just_before_is_not_started_again() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    assert!(Producer::new(board.ring(ring::root_report(2))).send(&ToRoot::Ended(GuestEnd::Off)));
    fake.calls.borrow_mut().clear();
    assert_eq!(answer(&mut root, &fake, &board, Ask::Reboot(name("a"))), [Part::Refused(Refused::Ended)]);
    assert!(fake.calls.borrow().is_empty());
    assert_eq!(reports(&board)[0], Report::GuestEnded { guest: 0, end: GuestEnd::Off });
}

#[test]
fn a_guest_that_cannot_start_again_ends_and_the_host_learns_it() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    fake.refuse_calls.set(Some(3));
    assert_eq!(answer(&mut root, &fake, &board, Ask::Reboot(name("a"))), [Part::Refused(Refused::Server)]);
    fake.refuse_calls.set(None);
    for ask in [Ask::Pause(name("a")), Ask::Resume(name("a")), Ask::Reboot(name("a")), Ask::Views(name("a"))] {
        assert_eq!(answer(&mut root, &fake, &board, ask), [Part::Refused(Refused::Ended)]);
    }
    let parts = answer(&mut root, &fake, &board, Ask::Status);
    assert!(parts.iter().any(|part| matches!(part, Part::Guest(guest) if guest.life == Life::Ended(Ended::Server(2)))));
    assert_eq!(answer(&mut root, &fake, &board, Ask::Pause(name("nobody"))), [Part::Refused(Refused::NoGuest)]);
}

#[test]
fn who_may_only_look_changes_nothing_and_who_may_nothing_learns_nothing() {
    for (control, expected) in [(Control::Observe, Refused::ObserveOnly), (Control::Off, Refused::Off)] {
        let fake = Fake::new();
        let (mut root, board) = system(&fake, control);
        for ask in [Ask::Pause(name("a")), Ask::Resume(name("a")), Ask::Reboot(name("a"))] {
            assert_eq!(answer(&mut root, &fake, &board, ask), [Part::Refused(expected)]);
        }
        assert!(fake.take_pauses().is_empty() && reports(&board).is_empty());
        let looked = answer(&mut root, &fake, &board, Ask::Views(name("b")));
        assert_eq!(looked.last(), Some(if control == Control::Off { &Part::Refused(Refused::Off) } else { &Part::Done }));
    }
}

#[test]
fn views_are_listed_with_who_is_in_them() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Observe);
    let parts = answer(&mut root, &fake, &board, Ask::Views(name("b")));
    let [Part::View(view), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!((view.view, view.vcpus), (0, 0b11));
}

#[test]
fn a_flood_of_questions_is_answered_a_turn_at_a_time() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    let mut asked = 0;
    while ask(&board, asked, Ask::Resume(name("a"))) {
        asked += 1;
    }
    assert!(asked > 100);
    let mut heard = 0;
    while heard < asked as usize {
        root.step(&fake);
        let now = said(&board).len();
        assert!(now > 0 && now <= TURN, "{now} at once");
        heard += now;
        let (mask, deadline) = *fake.waited.borrow().last().expect("it waited");
        assert!(mask & root_signal::server(2) != 0, "servers are heard all the while");
        assert!(deadline != 0 || heard < asked as usize);
    }
    assert_eq!(heard, asked as usize);
}

#[test]
fn an_answer_waits_for_a_console_that_does_not_read_and_nobody_else_does() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Observe);
    for number in 0..30 {
        ask(&board, number, Ask::Status);
    }
    for _ in 0..100 {
        root.step(&fake);
    }
    assert!(root.host.pending.is_some());
    let mut parts = said(&board);
    for _ in 0..100 {
        root.step(&fake);
        parts.extend(said(&board));
    }
    let whole: std::vec::Vec<u32> = parts.iter().filter(|(_, part)| *part == Part::Done).map(|(number, _)| *number).collect();
    assert_eq!(whole, (0..30).collect::<std::vec::Vec<_>>());
    assert_eq!(parts.len(), 30 * 10);
}

#[test]
fn garbage_from_the_console_is_passed_over() {
    let fake = Fake::new();
    let (mut root, board) = system(&fake, Control::Full);
    let mut ring = Producer::new(board.ring(ring::ROOT_ASKED));
    ring.write_record(&[0xff; 20]);
    ring.send(&FromHost::Foreign(5));
    ring.send(&FromHost::Meaningless(6));
    for _ in 0..4 {
        root.step(&fake);
    }
    let refused = |number, why| (number, Part::Refused(why));
    assert_eq!(said(&board), [refused(5, Refused::Version), refused(6, Refused::NotUnderstood)]);
}

/// A monitor that the host ends is made again as often as the host likes: that it was ended is not its fault.
#[test]
fn a_monitor_is_ended_by_its_name_and_made_again_without_being_blamed() {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    plan.control = Control::Full;
    let (mut root, board) = start_plan(&fake, plan);
    reports(&board);
    for life in 0..10 {
        fake.owe(1, 0, 0b10);
        let parts = answer(&mut root, &fake, &board, Ask::Kill(name(MONITOR_NAME)));
        let [Part::Replaced(replaced), Part::Done] = parts.as_slice() else { panic!("{parts:?}") };
        let expected = (MONITOR as u8, 1, 1, Handed::Lost);
        assert_eq!((replaced.server, replaced.guests, replaced.owed, replaced.state), expected, "life {life}");
        assert_eq!(fake.count(Op::DomainDestroy), life + 1);
        let seat = if life % 2 == 0 { Seat::Second } else { Seat::First };
        assert_eq!(fake.session(1, 0).seat, seat as u64);
        assert_eq!(fake.session(1, 0).settled.last(), Some(&(1, seat as u64)));
    }
    assert_eq!(fake.count(Op::VcpuStop), 0, "its guest goes on");
    assert!(reports(&board).is_empty(), "nothing failed");
}

#[test]
fn irqfwd_is_ended_by_its_name_and_made_again_without_being_blamed() {
    let fake = Fake::new();
    let (mut root, board) = start_plan(&fake, Plan { control: Control::Full, ..plan_with_device() });
    reports(&board);
    for life in 0..10 {
        assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name("irqfwd"))), [Part::Done], "life {life}");
        assert_eq!(fake.count(Op::DomainDestroy), life + 1);
    }
    assert_eq!(fake.count(Op::VcpuStop), 0, "its guest goes on");
    assert!(reports(&board).is_empty(), "nothing failed");
}

#[test]
fn smmu_is_ended_by_its_name_and_made_again_without_being_blamed() {
    let fake = Fake::new();
    let registers = Frames::at(root_slot::MEMORY).split(&fake, 0x3f000, 32, root_slot::DEVICES + 2);
    registers.expect("the end of memory is nobody's");
    let (mut root, board) = start_plan(&fake, Plan { control: Control::Full, ..plan_with_shield() });
    reports(&board);
    for life in 0..10 {
        assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name("smmu"))), [Part::Done], "life {life}");
        assert_eq!(fake.count(Op::DomainDestroy), life + 1);
    }
    assert_eq!(fake.count(Op::VcpuStop), 0, "its guest goes on");
    assert!(reports(&board).is_empty(), "nothing failed");
}

#[test]
fn what_is_no_monitor_or_has_nobody_to_watch_is_not_ended() {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    plan.control = Control::Full;
    let (mut root, board) = start_plan(&fake, plan);
    for other in ["console", "p2m.1", "nobody", ""] {
        assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name(other))), [Part::Refused(Refused::NoMonitor)]);
    }
    assert!(Producer::new(board.ring(ring::root_report(4))).send(&ToRoot::Ended(GuestEnd::Off)));
    fake.bits.borrow_mut().push_back(root_signal::server(4));
    root.step(&fake);
    assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name(MONITOR_NAME))), [Part::Refused(Refused::NothingWatched)]);
    assert_eq!(fake.count(Op::DomainDestroy), 0);
}

/// With another that cannot begin either, its guest goes the way of the manifest, and the host learns it.
#[test]
fn a_monitor_that_cannot_be_made_again_is_told() {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[1], Without::Hold);
    plan.control = Control::Full;
    let (mut root, board) = start_plan(&fake, plan);
    reports(&board);
    fake.refuse_monitors.set(usize::MAX);
    assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name(MONITOR_NAME))), [Part::Refused(Refused::Lost)]);
    assert_eq!(reports(&board).last(), Some(&Report::GuestEnded { guest: 1, end: GuestEnd::Server(MONITOR as u8) }));
    assert_eq!(answer(&mut root, &fake, &board, Ask::Kill(name(MONITOR_NAME))), [Part::Refused(Refused::GivenUp)]);
}

/// What a monitor was told of goes to the host that asks, each once, in order, and what was lost is told by the numbers.
#[test]
fn events_are_listed_from_a_number_on_and_what_was_lost_has_numbers_too() {
    let fake = Fake::new();
    let mut plan = plan_with_monitor(&[0, 1], Without::Hold);
    plan.control = Control::Observe;
    let (mut root, board) = start_plan(&fake, plan);
    let note = |place, number, lost| {
        let seen = Seen { place, vcpu: 1, rule: 2, verdict: 0, number, lost, header: 3, physical: 4, pc: 5, time: 6 };
        assert!(Producer::new(board.ring(ring::root_seen(0, 0))).send(&seen));
    };
    note(0, 1, 0);
    note(1, 2, 3);
    // One that is no guest of it is passed over.
    note(2, 9, 0);
    let mut listed = |from| {
        let parts = answer(&mut root, &fake, &board, Ask::Events(from));
        let event = |part: &Part| match part {
            Part::Event(event) => (event.sequence, u64::from(event.guest), event.seen.number),
            Part::Until(next, hz) => (*next, u64::MAX, *hz),
            Part::Done => (0, 0, u64::MAX),
            other => panic!("{other:?}"),
        };
        parts.iter().map(event).collect::<std::vec::Vec<_>>()
    };
    let end = |next| [(next, u64::MAX, 1_000_000_000), (0, 0, u64::MAX)];
    assert_eq!(listed(0), [&[(0, 0, 1), (4, 1, 2)][..], &end(5)].concat());
    assert_eq!(listed(1), [&[(4, 1, 2)][..], &end(5)].concat(), "a host that comes back goes on where it was");
    assert_eq!((listed(5), listed(u64::MAX)), (end(5).to_vec(), end(5).to_vec()));
    note(0, 3, 0);
    assert_eq!(listed(5), [&[(5, 0, 3)][..], &end(6)].concat());
}
