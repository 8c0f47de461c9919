// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of vCPUs that move from one CPU to another: what goes with them, who finds them, what is refused.

mod common;

use common::lawful;
use proptest::prelude::*;
use std::sync::atomic::Ordering;
use trellis_core::float::Layout;
use trellis_core::lines::SoftwareInterrupt;
use trellis_core::trap::Trap;
use trellis_hosted::float::pattern;
use trellis_hosted::small::{self, ROOT, anywhere, must, pieces, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{ExitClass, Kind, LineField, Op, PLACE, Refusal, VcpuRegister};
use trellis_idl::layout::root_slot;

const CPUS: u16 = 3;
/// How long root lets a guest of CPU 0 run: less than a slice.
const TURN: u64 = 100;
/// Where the pages of root's memory begin that the stories take.
const PAGES: u64 = 2048;

/// A guest of the story: its tables, itself, its vCPU and the slot for that when it has moved.
struct Guest {
    slots: [u64; 4],
    cpu: u16,
    lanes: u8,
}

impl Guest {
    fn new(hosted: &mut Hosted, n: u64, lanes: u8) -> Guest {
        let first = slot::FREE + 4 * n;
        let slots = [first, first + 1, first + 2, first + 3];
        small::split(hosted, PAGES + 64 * n, 64, slots[0]);
        must(hosted, Op::GuestCreate, [slots[0], 1, slots[1], lanes.into(), u64::from(lanes != 0), 0]);
        must(hosted, Op::VcpuCreate, [slots[1], 0, 0, slots[2], 50, 0]);
        Guest { slots, cpu: 0, lanes }
    }

    fn vcpu(&self) -> u64 {
        self.slots[2]
    }

    fn op(&self, hosted: &mut Hosted, op: Op, a: [u64; 4]) -> Result<[u64; 3], Refusal> {
        anywhere(hosted, op, [self.vcpu(), a[0], a[1], a[2], a[3], 0])
    }

    fn do_op(&self, hosted: &mut Hosted, op: Op, a: [u64; 4]) -> u64 {
        self.op(hosted, op, a).unwrap_or_else(|refusal| panic!("{op:?} {a:x?}: {refusal:?}"))[0]
    }

    fn place(&self, hosted: &mut Hosted, cpu: u16) -> Result<[u64; 3], Refusal> {
        anywhere(hosted, Op::VcpuCreate, [self.slots[1], cpu.into(), PLACE, self.slots[3], 50, 0])
    }

    /// Goes to another CPU; its old capability is dropped.
    fn go(&mut self, hosted: &mut Hosted, cpu: u16) {
        self.place(hosted, cpu).expect("a place");
        self.do_op(hosted, Op::VcpuMove, [0; 4]);
        assert_eq!(self.op(hosted, Op::VcpuStart, [0; 4]), Err(Refusal::Gone), "its old name is dead");
        anywhere(hosted, Op::Drop, [self.slots[2], 0, 0, 0, 0, 0]).expect("dropped");
        self.slots.swap(2, 3);
        self.cpu = cpu;
        lawful(hosted);
    }

    /// Runs alone on its CPU for a moment.
    fn runs<R>(&self, hosted: &mut Hosted, act: impl FnOnce(&mut Hosted, u16) -> R) -> R {
        self.do_op(hosted, Op::VcpuStart, [0; 4]);
        if self.cpu == 0 {
            let until = hosted.board.borrow().now + TURN;
            hosted.syscall(0, Op::Wait as u16, [1, until, 0, 0, 0, 0], [0; 10]);
        }
        assert!(matches!(hosted.now(self.cpu), Now::Guest(_)), "it runs on CPU {}", self.cpu);
        let result = act(hosted, self.cpu);
        if self.cpu == 0 {
            hosted.advance(TURN);
            assert_eq!(hosted.now(0), Now::Thread(ROOT));
        }
        self.do_op(hosted, Op::VcpuStop, [0; 4]);
        lawful(hosted);
        result
    }

    fn writes(&self, hosted: &mut Hosted, seed: u8) {
        self.runs(hosted, |hosted, cpu| hosted.float(cpu).expect("a guest gets them").write_pattern(self.lanes, seed));
    }

    fn sees(&self, hosted: &mut Hosted) -> Vec<u8> {
        self.runs(hosted, |hosted, cpu| hosted.float(cpu).expect("a guest gets them").seen(self.lanes))
    }
}

fn system() -> Hosted {
    small::system(Settings { cpus: CPUS, ..Settings::default() })
}

#[test]
fn a_vcpu_goes_on_elsewhere_with_its_registers_and_its_vectors() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 4);
    guest.do_op(&mut hosted, Op::VcpuSet, [VcpuRegister::Pc as u64, 0x4000_1234, 0, 0]);
    guest.do_op(&mut hosted, Op::VcpuSet, [5, 55, 0, 0]);
    guest.writes(&mut hosted, 7);
    for cpu in [1, 2, 0, 2] {
        guest.go(&mut hosted, cpu);
        assert_eq!(guest.op(&mut hosted, Op::VcpuGet, [VcpuRegister::Pc as u64, 0, 0, 0]), Ok([0, 0x4000_1234, 0]));
        assert_eq!(guest.op(&mut hosted, Op::VcpuGet, [5, 0, 0, 0]), Ok([0, 55, 0]));
        assert_eq!(guest.sees(&mut hosted), pattern(4, 7), "on CPU {cpu}");
    }
}

#[test]
fn registers_that_are_live_when_their_vcpu_moves_are_saved_once_and_loaded_once() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 2);
    guest.writes(&mut hosted, 9);
    let moves = |hosted: &mut Hosted, cpu: usize| std::mem::take(&mut hosted.cpus[cpu].machine.float.moves).len();
    assert_eq!(moves(&mut hosted, 0), 1, "loaded");
    guest.go(&mut hosted, 1);
    assert_eq!(moves(&mut hosted, 0), 1, "saved");
    assert_eq!(guest.sees(&mut hosted), pattern(2, 9));
    assert_eq!((moves(&mut hosted, 0), moves(&mut hosted, 1)), (0, 1));
}

/// The record of the CPU that it left names it no more when it comes back to the same slot.
#[test]
fn a_vcpu_that_comes_back_does_not_find_what_it_left_in_the_registers() {
    let mut hosted = system();
    let (mut guest, other) = (Guest::new(&mut hosted, 0, 4), Guest::new(&mut hosted, 1, 4));
    guest.writes(&mut hosted, 1);
    guest.go(&mut hosted, 1);
    guest.writes(&mut hosted, 2);
    guest.go(&mut hosted, 0);
    assert_eq!(guest.sees(&mut hosted), pattern(4, 2));
    assert_eq!(other.sees(&mut hosted), vec![0; Layout::new(4).bytes() as usize]);
}

#[test]
fn its_lines_go_with_it_whether_they_wait_or_are_active() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 0);
    guest.do_op(&mut hosted, Op::LinesEnable, [1, 0, 0, 0]);
    guest.do_op(&mut hosted, Op::LinesWrite, [LineField::Enabled as u64, 0, 0xffff, 0xffff]);
    guest.do_op(&mut hosted, Op::LinesWrite, [LineField::Pending as u64, 0, 0b11_1111, 0b11_1111]);
    let first = guest.runs(&mut hosted, |hosted, cpu| hosted.acknowledge(cpu)).expect("a line is pending");
    for cpu in [1, 2] {
        guest.go(&mut hosted, cpu);
        assert_eq!(guest.do_op(&mut hosted, Op::LinesRead, [LineField::Active as u64, 0, 0, 0]), 1 << first);
    }
    let mut seen = vec![first];
    guest.runs(&mut hosted, |hosted, cpu| {
        hosted.end_of_interrupt(cpu, first);
        while let Some(line) = hosted.acknowledge(cpu) {
            seen.push(line);
            hosted.end_of_interrupt(cpu, line);
        }
    });
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
}

/// Lines sent before their vCPU leaves, while it is on the way, from the CPU that it comes to before it has come, and by a
/// CPU that still takes it to be where it was: all four arrive.
#[test]
fn lines_that_become_pending_on_the_way_arrive() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 0);
    let others = [slot::FREE + 40, slot::FREE + 41];
    for (vcpu, cpu) in others.iter().zip([2, 1]) {
        anywhere(&mut hosted, Op::VcpuCreate, [guest.slots[1], cpu, cpu, *vcpu, 50, 0]).expect("another vCPU");
        anywhere(&mut hosted, Op::VcpuStart, [*vcpu, 0, 0, 0, 0, 0]).expect("starts");
    }
    guest.do_op(&mut hosted, Op::LinesEnable, [1, 0, 0, 0]);
    guest.do_op(&mut hosted, Op::LinesWrite, [LineField::Enabled as u64, 0, 0xffff, 0xffff]);
    let send = |hosted: &mut Hosted, from, line| {
        hosted.trap(from, Trap::SoftwareInterrupt(SoftwareInterrupt { line, targets: 1, others: false }));
    };
    guest.place(&mut hosted, 1).expect("a place");
    send(&mut hosted, 2, 1);
    hosted.deliver_kicks();
    // Left, and CPU 1 has not been told yet.
    assert_eq!(hosted.invoke(0, Op::VcpuMove, [guest.vcpu(), 0, 0, 0, 0, 0]).map(|all| all[0]), Ok(0));
    send(&mut hosted, 2, 2);
    send(&mut hosted, 1, 5);
    let mail = &hosted.shared.vcpus[1].iter().chain(&hosted.shared.vcpus[0]).find(|mail| mail.name.load(Ordering::Relaxed) >> 16 & 0xffff == 1);
    // Whoever has read the old name puts the line into the mail and tells the CPU where it was.
    mail.expect("its name is the place's").pending[0].fetch_or(1 << 3, Ordering::Relaxed);
    hosted.deliver_kicks();
    guest.slots.swap(2, 3);
    guest.cpu = 1;
    anywhere(&mut hosted, Op::VcpuStop, [others[1], 0, 0, 0, 0, 0]).expect("stopped");
    let mut seen = guest.runs(&mut hosted, |hosted, cpu| std::iter::from_fn(|| hosted.acknowledge(cpu)).collect::<Vec<_>>());
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 5]);
}

/// Line 4 is put into the mail behind the mover's back, after the vCPU has come: it starts only when every CPU has left the
/// kernel since, and finds it.
#[test]
fn a_vcpu_that_has_moved_starts_only_when_nobody_can_take_it_to_be_elsewhere() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 0);
    guest.do_op(&mut hosted, Op::LinesEnable, [1, 0, 0, 0]);
    guest.do_op(&mut hosted, Op::LinesWrite, [LineField::Enabled as u64, 0, 0xffff, 0xffff]);
    guest.place(&mut hosted, 1).expect("a place");
    must(&mut hosted, Op::VcpuMove, [guest.vcpu(), 0, 0, 0, 0, 0]);
    hosted.trap(1, Trap::Kick);
    let vcpu = hosted.cpus[1].local.vcpus.at(0);
    assert_ne!(vcpu.moved, 0, "it is not yet sure that all know");
    hosted.shared.mail(vcpu.guest, 0).pending[0].fetch_or(1 << 4, Ordering::Relaxed);
    guest.slots.swap(2, 3);
    guest.cpu = 1;
    // Root on CPU 0 and idle CPU 2 have not been in the kernel's slow ways since the mark was set.
    hosted.board.borrow_mut().kicks.clear();
    assert_ne!(hosted.syscall(0, Op::VcpuStart as u16, [guest.vcpu(), 0, 0, 0, 0, 0], [0; 10]), Now::Thread(ROOT));
    hosted.trap(1, Trap::Kick);
    assert_eq!(hosted.now(1), Now::Idle, "it does not start while CPU 2 may still know the old name");
    hosted.deliver_kicks();
    assert_eq!(Refusal::from_register(hosted.registers(0).x[0]), Err(Refusal::Again));
    assert_eq!(guest.runs(&mut hosted, |hosted, cpu| hosted.acknowledge(cpu)), Some(4));
}

#[test]
fn a_place_is_made_only_for_a_vcpu_that_lives_elsewhere_and_only_once() {
    let mut hosted = system();
    let guest = Guest::new(&mut hosted, 0, 4);
    let place = |hosted: &mut Hosted, cpu: u64, number: u64, slot: u64| {
        anywhere(hosted, Op::VcpuCreate, [guest.slots[1], cpu, number, slot, 50, 0]).map(drop)
    };
    assert_eq!(place(&mut hosted, 0, PLACE, guest.slots[3]), Err(Refusal::BadArgument), "it is there already");
    assert_eq!(place(&mut hosted, 1, PLACE | 1, guest.slots[3]), Err(Refusal::Gone), "there is no vCPU 1");
    assert_eq!(place(&mut hosted, 1, PLACE | 16, guest.slots[3]), Err(Refusal::BadArgument));
    assert_eq!(place(&mut hosted, 1, PLACE << 1, guest.slots[3]), Err(Refusal::BadArgument));
    assert_eq!(place(&mut hosted, 1, PLACE, guest.slots[2]), Err(Refusal::Occupied), "the slot is in use");
    assert_eq!(place(&mut hosted, 1, PLACE, guest.slots[3]), Ok(()));
    assert_eq!(place(&mut hosted, 2, PLACE, slot::FREE + 40), Err(Refusal::Occupied), "it has a place");
    // A place is no vCPU yet.
    for op in [Op::VcpuStart, Op::VcpuStop, Op::VcpuReset, Op::VcpuGet, Op::LinesRead, Op::VcpuMove] {
        assert_eq!(anywhere(&mut hosted, op, [guest.slots[3], 0, 0, 0, 0, 0]), Err(Refusal::BadState), "{op:?}");
    }
    lawful(&hosted);
    // It can be given up, and made elsewhere.
    anywhere(&mut hosted, Op::VcpuDestroy, [guest.slots[3], 0, 0, 0, 0, 0]).expect("given up");
    assert_eq!(guest.op(&mut hosted, Op::VcpuMove, [0; 4]), Err(Refusal::BadState), "there is no place any more");
    assert_eq!(place(&mut hosted, 2, PLACE, slot::FREE + 40), Ok(()));
    lawful(&hosted);
}

#[test]
fn only_a_stopped_vcpu_moves() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 0);
    guest.go(&mut hosted, 1);
    guest.place(&mut hosted, 2).expect("a place");
    guest.do_op(&mut hosted, Op::VcpuStart, [0; 4]);
    assert_eq!(guest.op(&mut hosted, Op::VcpuMove, [0; 4]), Err(Refusal::BadState));
    guest.do_op(&mut hosted, Op::VcpuStop, [0; 4]);
    guest.do_op(&mut hosted, Op::VcpuMove, [0; 4]);
}

#[test]
fn exits_of_a_vcpu_that_has_moved_go_nowhere_before_they_are_routed_anew() {
    let mut hosted = system();
    let mut guest = Guest::new(&mut hosted, 0, 0);
    let route = |hosted: &mut Hosted, guest: &Guest| {
        guest.do_op(hosted, Op::VcpuRoute, [ExitClass::Hypercall as u64, slot::PORTALS[1], 0, 7]);
    };
    route(&mut hosted, &guest);
    guest.go(&mut hosted, 1);
    guest.go(&mut hosted, 0);
    let exit = |hosted: &mut Hosted, guest: &Guest| {
        guest.runs(hosted, |hosted, cpu| hosted.exit(cpu, ExitClass::Hypercall, [0; 10]))
    };
    assert_eq!(exit(&mut hosted, &guest), Now::Idle, "it stops");
    route(&mut hosted, &guest);
    assert_eq!(exit(&mut hosted, &guest), Now::Thread(small::OUTER));
}

#[test]
fn one_moves_at_a_time_and_the_next_is_told_to_ask_again() {
    let mut hosted = system();
    let (a, b) = (Guest::new(&mut hosted, 0, 0), Guest::new(&mut hosted, 1, 0));
    a.place(&mut hosted, 1).expect("a place");
    b.place(&mut hosted, 1).expect("a place");
    must(&mut hosted, Op::VcpuMove, [a.vcpu(), 0, 0, 0, 0, 0]);
    assert_eq!(hosted.invoke(0, Op::VcpuMove, [b.vcpu(), 0, 0, 0, 0, 0]), Err(Refusal::Again));
    hosted.deliver_kicks();
    must(&mut hosted, Op::VcpuMove, [b.vcpu(), 0, 0, 0, 0, 0]);
    hosted.deliver_kicks();
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_moves_stays_in_its_view_which_lasts_as_long() {
    let mut hosted = system();
    let slots: [u64; 4] = core::array::from_fn(|n| slot::FREE + n as u64);
    let mut guest = Guest { slots, cpu: 0, lanes: 0 };
    let [tables, map, vcpu, _] = slots;
    small::split(&mut hosted, PAGES, 64, tables);
    must(&mut hosted, Op::GuestCreate, [tables, 3, map, 0, 0, 0]);
    must(&mut hosted, Op::VcpuCreate, [map, 0, 0, vcpu, 50, 0]);
    must(&mut hosted, Op::ViewCreate, [map, 1, 0, 0, 0, 0]);
    must(&mut hosted, Op::ViewCreate, [map, 2, 0, 0, 0, 0]);
    let switch = |hosted: &mut Hosted, view| anywhere(hosted, Op::ViewSwitch, [map, 0, view, 0, 0, 0]).map(|all| all[0]);
    let is_in = |hosted: &mut Hosted| anywhere(hosted, Op::ViewOf, [map, 0, 0, 0, 0, 0]).expect("a vCPU")[0];
    let destroy = |hosted: &mut Hosted, view| anywhere(hosted, Op::ViewDestroy, [map, view, 0, 0, 0, 0]).map(|all| all[0]);
    assert_eq!(switch(&mut hosted, 1), Ok(0));
    guest.place(&mut hosted, 1).expect("a place");
    assert_eq!(is_in(&mut hosted), 1, "a place is in no view");
    must(&mut hosted, Op::VcpuMove, [guest.vcpu(), 0, 0, 0, 0, 0]);
    assert_eq!((is_in(&mut hosted), destroy(&mut hosted, 1)), (1, Err(Refusal::BadState)), "on the way");
    hosted.deliver_kicks();
    lawful(&hosted);
    assert_eq!((is_in(&mut hosted), destroy(&mut hosted, 1)), (1, Err(Refusal::BadState)), "there");
    anywhere(&mut hosted, Op::Drop, [slots[2], 0, 0, 0, 0, 0]).expect("dropped");
    guest.slots.swap(2, 3);
    guest.cpu = 1;
    assert_eq!((switch(&mut hosted, 2), destroy(&mut hosted, 1)), (Ok(0), Ok(0)), "switched on its new CPU");
    guest.runs(&mut hosted, |_, _| ());
    guest.go(&mut hosted, 0);
    assert_eq!((switch(&mut hosted, 0), destroy(&mut hosted, 2)), (Ok(0), Ok(0)), "and on its old one");
    guest.runs(&mut hosted, |_, _| ());
}

#[test]
fn a_guest_that_ends_while_its_vcpu_is_on_the_way_leaves_nothing() {
    let mut hosted = system();
    let guest = Guest::new(&mut hosted, 0, 4);
    guest.writes(&mut hosted, 3);
    guest.place(&mut hosted, 1).expect("a place");
    must(&mut hosted, Op::VcpuMove, [guest.vcpu(), 0, 0, 0, 0, 0]);
    pieces(&mut hosted, Op::GuestDestroy, [guest.slots[1], 0, 0, 0, 0, 0]);
    lawful(&hosted);
    assert_eq!(hosted.cpus[1].local.vcpus.names().count(), 0);
    // The passage is free for others, and the guest's memory comes back.
    pieces(&mut hosted, Op::FramesReclaim, [guest.slots[0], 0, 0, 0, 0, 0]);
    let mut other = Guest::new(&mut hosted, 1, 2);
    other.go(&mut hosted, 2);
}

#[test]
fn a_place_whose_vcpu_is_on_the_way_ends_with_it() {
    let mut hosted = system();
    let guest = Guest::new(&mut hosted, 0, 4);
    guest.place(&mut hosted, 1).expect("a place");
    must(&mut hosted, Op::VcpuMove, [guest.vcpu(), 0, 0, 0, 0, 0]);
    anywhere(&mut hosted, Op::VcpuDestroy, [guest.slots[3], 0, 0, 0, 0, 0]).expect("destroyed");
    lawful(&hosted);
    let table = hosted.shared.table.read(hosted.cpus[0].local.threads.at(ROOT).table, root_slot::DOMAIN);
    assert!(table.word.is(Kind::Domain, trellis_idl::kernel::Rights(0)));
    // Its number and its save area can be used again.
    anywhere(&mut hosted, Op::VcpuCreate, [guest.slots[1], 2, 0, slot::FREE + 40, 50, 0]).expect("another vCPU 0");
    lawful(&hosted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Guests with vectors of different lengths move between CPUs at random, and each sees what it wrote last.
    #[test]
    fn guests_of_different_lengths_that_move_between_cpus_find_their_own(
        steps in prop::collection::vec((0usize..4, 0u8..5, any::<u8>()), 1..60),
    ) {
        let lanes = [0, 4, 2, 1];
        let mut hosted = system();
        let mut guests: Vec<Guest> = (0..4).map(|n| Guest::new(&mut hosted, n as u64, lanes[n])).collect();
        let mut shadow = lanes.map(|lanes| vec![0; Layout::new(lanes).bytes() as usize]);
        for (n, what, seed) in steps {
            let guest = &mut guests[n];
            match what {
                0 | 1 => {
                    guest.writes(&mut hosted, seed);
                    shadow[n] = pattern(lanes[n], seed);
                }
                2 => prop_assert_eq!(&guest.sees(&mut hosted), &shadow[n]),
                _ => {
                    let cpu = (guest.cpu + 1 + u16::from(seed) % (CPUS - 1)) % CPUS;
                    guest.go(&mut hosted, cpu);
                }
            }
        }
        for (n, guest) in guests.iter().enumerate() {
            prop_assert_eq!(&guest.sees(&mut hosted), &shadow[n]);
        }
    }
}

#[test]
fn a_place_does_not_say_which_view_its_vcpu_is_in() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, PLACE, slot::FREE, 50, 0]).expect("a place");
    must(&mut hosted, Op::ViewCreate, [slot::GUEST, 3, 0, 0, 0, 0]);
    must(&mut hosted, Op::ViewSwitch, [slot::GUEST, 0, 3, 0, 0, 0]);
    lawful(&hosted);
}
