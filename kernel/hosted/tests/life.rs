// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of how objects end: on several CPUs, in pieces, and so that everything they had comes back.

mod common;

use common::{lawful, x0};
use trellis_core::frame::{Taking, Use};
use trellis_core::init;
use trellis_core::shared::{GUEST_VCPUS, GUESTS};
use trellis_hosted::small::{self, BUFFER, ROOT, anywhere, inner_slot, must, pieces, slot};
use trellis_hosted::hosted::FIRST_PAGE;
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Access, ExitClass, Fact, Kind, Op, PASSIVE, Refusal};
use trellis_idl::layout::root_slot;

/// First slot of what a story makes.
const FREE: u64 = slot::FREE;

fn system(cpus: u16) -> Hosted {
    small::system(Settings { cpus, ..Settings::default() })
}

fn done(hosted: &mut Hosted, op: Op, a: [u64; 6]) {
    let result = anywhere(hosted, op, a);
    assert!(result.is_ok(), "{op:?} {a:x?}: {result:?}");
}

fn drop_slots(hosted: &mut Hosted, slots: impl IntoIterator<Item = u64>) {
    slots.into_iter().for_each(|slot| done(hosted, Op::Drop, [slot, 0, 0, 0, 0, 0]));
}

/// Everything that can be used up.
fn counts(hosted: &Hosted) -> impl PartialEq + std::fmt::Debug + use<> {
    let control = hosted.shared.control.lock();
    let pools = (control.domains.free(), control.guests.free(), control.runs.pool.free(), control.tags);
    let tables = control.runs.pool.names().filter(|id| control.runs.pool.get(*id).is_some_and(|r| r.use_ == Use::Tables));
    let gaps = control.slots.free().to_vec();
    let mail = hosted.shared.vcpus.iter().flatten().map(|mail| mail.name.load(std::sync::atomic::Ordering::Relaxed));
    let local = |cpu: &trellis_hosted::hosted::Cpu| {
        let local = &cpu.local;
        let alive = local.budgets.iter().filter(|budget| budget.priority() != 0).count();
        (local.threads.free(), local.vcpus.free(), local.portals.free(), alive, local.ready.count_ones())
    };
    (pools, tables.count(), gaps, mail.collect::<Vec<_>>(), hosted.cpus.iter().map(local).collect::<Vec<_>>())
}

/// Makes a guest with a vCPU on each of three CPUs, which run.
fn make_guest(hosted: &mut Hosted, tables: u64) {
    done(hosted, Op::GuestCreate, [tables, 1, FREE, 0, 0, 0]);
    done(hosted, Op::GuestMap, [FREE, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    for cpu in 0..3 {
        let vcpu = FREE + 1 + cpu;
        done(hosted, Op::VcpuCreate, [FREE, cpu, cpu, vcpu, 40, 0]);
        done(hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn guests_with_vcpus_on_several_cpus_come_and_go_and_nothing_is_used_up() {
    let mut hosted = system(3);
    let tables = FREE + 10;
    small::split(&mut hosted, 2000, 8, tables);
    make_guest(&mut hosted, tables);
    pieces(&mut hosted, Op::GuestDestroy, [FREE, 0, 0, 0, 0, 0]);
    drop_slots(&mut hosted, FREE + 1..FREE + 4);
    let before = counts(&hosted);
    for round in 0..10_000 {
        make_guest(&mut hosted, tables);
        assert_eq!((hosted.now(1), hosted.now(2)), (Now::Guest(0), Now::Guest(0)));
        if round % 3 == 0 {
            // One that runs on another CPU goes first.
            done(&mut hosted, Op::VcpuDestroy, [FREE + 2, 0, 0, 0, 0, 0]);
            assert_eq!(hosted.now(1), Now::Idle);
        }
        pieces(&mut hosted, Op::GuestDestroy, [FREE, 0, 0, 0, 0, 0]);
        assert_eq!((hosted.now(1), hosted.now(2)), (Now::Idle, Now::Idle));
        drop_slots(&mut hosted, FREE + 1..FREE + 4);
    }
    assert_eq!(counts(&hosted), before);
    lawful(&hosted);
}

#[test]
fn domains_with_threads_on_several_cpus_come_and_go_and_nothing_is_used_up() {
    let mut hosted = system(3);
    let (tables, memory) = (FREE + 10, FREE + 11);
    small::split(&mut hosted, 2000, 8, tables);
    small::split(&mut hosted, 2008, 8, memory);
    let before = counts(&hosted);
    for round in 0..10_000 {
        done(&mut hosted, Op::DomainCreate, [tables, 64 + round % 7, 3, FREE, 0, 0]);
        done(&mut hosted, Op::DomainMap, [FREE, BUFFER, memory, 0, 8, 3]);
        for cpu in 0..3 {
            let thread = FREE + 1 + cpu;
            let priority = if cpu == 0 { PASSIVE } else { 30 };
            done(&mut hosted, Op::ThreadCreate, [FREE, cpu, priority, thread, BUFFER + cpu * 4096, 0]);
            done(&mut hosted, Op::PortalCreate, [thread, 9, FREE + 4 + cpu, 0, 0, 0]);
            done(&mut hosted, Op::Grant, [FREE + 4 + cpu, FREE, 5 + cpu, 0xff, 0, 0]);
            if cpu != 0 {
                done(&mut hosted, Op::ThreadStart, [thread, 0, 0, 0, 0, 0]);
            }
        }
        pieces(&mut hosted, Op::DomainDestroy, [FREE, 0, 0, 0, 0, 0]);
        drop_slots(&mut hosted, FREE + 1..FREE + 7);
        pieces(&mut hosted, Op::FramesReclaim, [memory, 0, 0, 0, 0, 0]);
    }
    assert_eq!(counts(&hosted), before);
    lawful(&hosted);
}

#[test]
fn however_much_is_split_off_or_taken_back_the_control_lock_is_held_for_a_bounded_piece() {
    const PIECE: u64 = 1024;
    let mut hosted = small::system(Settings { pages: 16_384, ..Settings::default() });
    // Holds of the lock, and the most pages that were zeroed in one of them.
    let holds = |hosted: &mut Hosted, op, a, wanted: u64| {
        hosted.board.borrow_mut().zeroed.clear();
        let before = hosted.shared.control.taken();
        let more = must_once(hosted, op, a)[0];
        let holds = hosted.shared.control.taken() - before;
        let zeroed: Vec<u64> = hosted.board.borrow().zeroed.iter().copied().filter(|pages| *pages > 0).collect();
        assert!(zeroed.iter().all(|pages| *pages <= PIECE), "{zeroed:?}");
        assert!(zeroed.len() as u64 <= holds, "each piece has a hold of its own: {zeroed:?}, {holds}");
        assert_eq!(zeroed.iter().sum::<u64>(), wanted);
        (holds, more)
    };
    let mut first = 4096;
    for (part, pages) in (FREE..).zip([1, PIECE, PIECE + 1, 10_000]) {
        let (taken, _) = holds(&mut hosted, Op::FramesSplit, [root_slot::MEMORY, first, pages, part, 0, 0], pages);
        first += pages;
        assert_eq!(taken, pages.div_ceil(PIECE), "{pages} pages");
        let mut left = pages;
        while left > 0 {
            let (taken, more) = holds(&mut hosted, Op::FramesReclaim, [part, 0, 0, 0, 0, 0], left.min(PIECE));
            left -= left.min(PIECE);
            assert_eq!((taken, more), (1, u64::from(left > 0)));
        }
        lawful(&hosted);
    }
}

#[test]
fn a_table_slot_is_used_again_only_after_every_cpu_has_left_the_kernel() {
    let mut hosted = system(2);
    hosted.deliver_kicks();
    must(&mut hosted, Op::Drop, [slot::BUFFERS, 0, 0, 0, 0, 0]);
    // CPU 1 may have read the old name just before, and read the word just now.
    let again = [root_slot::MEMORY, 2000, 1, slot::BUFFERS, 0, 0];
    assert_eq!(hosted.invoke(0, Op::FramesSplit, again), Err(Refusal::Again));
    assert_eq!(hosted.invoke(0, Op::FramesSplit, again), Err(Refusal::Again), "it was only kicked");
    let other = [root_slot::MEMORY, 2000, 1, FREE, 0, 0];
    must(&mut hosted, Op::FramesSplit, other);
    hosted.deliver_kicks();
    must(&mut hosted, Op::FramesSplit, [root_slot::MEMORY, 2001, 1, slot::BUFFERS, 0, 0]);
    lawful(&hosted);
}

#[test]
fn a_revocation_ends_when_no_cpu_can_be_in_the_middle_of_using_a_copy() {
    let mut hosted = system(2);
    let [more, mark, _] = must_once(&mut hosted, Op::Revoke, [slot::MEMORY, 0, 0, 0, 0, 0]);
    assert_eq!(more, 1);
    let inner = hosted.shared.domains[1].lock().table;
    assert!(hosted.shared.table.read(inner, inner_slot::MEMORY).word.is_empty(), "no copy is left");
    let [more, same, _] = must_once(&mut hosted, Op::Revoke, [slot::MEMORY, mark, 0, 0, 0, 0]);
    assert_eq!((more, same), (1, mark));
    hosted.deliver_kicks();
    assert_eq!(must_once(&mut hosted, Op::Revoke, [slot::MEMORY, mark, 0, 0, 0, 0])[0], 0);
    // A mark that nobody gave cannot move the clock that all marks are of.
    assert_eq!(must_once(&mut hosted, Op::Revoke, [slot::MEMORY, u64::MAX, 0, 0, 0, 0])[0], 1);
    hosted.deliver_kicks();
    assert_eq!(pieces(&mut hosted, Op::Revoke, [slot::MEMORY, 0, 0, 0, 0, 0]), 1);
}

/// One piece of root's operation.
fn must_once(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> [u64; 3] {
    hosted.invoke(0, op, a).unwrap_or_else(|refusal| panic!("{op:?}: {refusal:?}"))
}

#[test]
fn a_run_is_taken_back_with_everything_that_was_made_of_it() {
    let mut hosted = system(3);
    let whole = FREE;
    small::split(&mut hosted, 2000, 64, whole);
    let (tables, guest_tables, memory) = (FREE + 1, FREE + 2, FREE + 3);
    for (slot, first) in [(tables, 0), (guest_tables, 8), (memory, 16)] {
        must(&mut hosted, Op::FramesSplit, [whole, first, 8, slot, 0, 0]);
    }
    must(&mut hosted, Op::FramesSplit, [memory, 0, 4, FREE + 4, 0, 0]);
    // A domain and a guest live in it, on two other CPUs; threads of the client's domain have buffers in it.
    must(&mut hosted, Op::DomainCreate, [tables, 32, 3, FREE + 5, 0, 0]);
    must(&mut hosted, Op::GuestCreate, [guest_tables, 1, FREE + 6, 0, 0, 0]);
    must(&mut hosted, Op::GuestMap, [FREE + 6, small::GUEST_PAGE, FREE + 4, 0, 4, 7]);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, memory, 4, 4, 7]);
    must(&mut hosted, Op::DomainMap, [slot::DOMAINS[2], BUFFER + 0x1_0000, FREE + 4, 0, 4, 3]);
    done(&mut hosted, Op::ThreadCreate, [FREE + 5, 1, 30, FREE + 7, 0, 0]);
    done(&mut hosted, Op::ThreadStart, [FREE + 7, 0, 0, 0, 0, 0]);
    done(&mut hosted, Op::VcpuCreate, [FREE + 6, 2, 0, FREE + 8, 30, 0]);
    done(&mut hosted, Op::VcpuStart, [FREE + 8, 0, 0, 0, 0, 0]);
    for cpu in 1..3 {
        done(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], cpu, 20, FREE + 8 + cpu, BUFFER + 0x1_0000 + cpu * 4096, 0]);
    }
    assert_eq!((hosted.now(1), hosted.now(2)), (Now::Thread(0), Now::Guest(0)));
    let page = small::GUEST_PAGE * 4096;
    assert!(matches!(hosted.touch(2, page, Access::WRITE), trellis_hosted::guest::Touch::Reached(_)));
    lawful(&hosted);

    assert_eq!(must_once(&mut hosted, Op::FramesReclaim, [whole, 0, 0, 0, 0, 0])[0], 1, "there is more to do");
    lawful(&hosted);
    for (op, a) in [
        (Op::FramesSplit, [whole, 40, 1, FREE + 20, 0, 0]),
        (Op::FramesSplit, [memory, 4, 1, FREE + 20, 0, 0]),
        (Op::GuestMap, [slot::GUEST, small::GUEST_PAGE + 99, memory, 4, 1, 7]),
    ] {
        assert_eq!(hosted.invoke(0, op, a), Err(Refusal::BadState), "it is being taken back");
    }
    pieces(&mut hosted, Op::FramesReclaim, [whole, 0, 0, 0, 0, 0]);

    assert_eq!((hosted.now(1), hosted.now(2)), (Now::Idle, Now::Idle));
    let control = hosted.shared.control.lock();
    let name = hosted.shared.table.read(hosted.shared.domains[0].lock().table, whole).name;
    let run = *control.runs.get(name).expect("it lives");
    assert_eq!((run.parts, run.taking, run.mapped().count()), (0, Taking::No, 0));
    drop(control);
    let board = hosted.board.borrow();
    assert!((run.first..run.first + 64).all(|page| board.is_clean(page)));
    assert!(board.tlb.values().all(|cached| !(run.first..run.first + 64).contains(&cached.leaf.page)));
    drop(board);
    for cpu in 1..3 {
        let local = &hosted.cpus[cpu].local;
        assert!(local.threads.names().all(|id| local.threads.at(id.index() as u16).buffer == 0));
    }
    for slot in [tables, guest_tables, memory, FREE + 4, FREE + 5, FREE + 6] {
        let read = hosted.invoke(0, Op::Drop, [slot, 0, 0, 0, 0, 0]);
        assert_eq!(read, Err(Refusal::NoCapability), "slot {slot}");
    }
    // All of it can be used again.
    must(&mut hosted, Op::FramesSplit, [whole, 0, 64, FREE + 20, 0, 0]);
    lawful(&hosted);
}

#[test]
fn a_large_run_is_taken_back_in_pieces_between_which_others_run() {
    let mut hosted = small::system(Settings { pages: 20_000, ..Settings::default() });
    small::split(&mut hosted, 4000, 10_000, FREE);
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE + 1, FREE, 0, 10_000, 3]);
    let count = pieces(&mut hosted, Op::FramesReclaim, [FREE, 0, 0, 0, 0, 0]);
    // 10,000 entries in pieces of 4,096, and 10,000 pages in pieces of 1,024.
    assert!((12..20).contains(&count), "{count}");
    lawful(&hosted);
}

#[test]
fn nobody_takes_the_tables_from_under_itself() {
    let mut hosted = common::client_runs();
    // The client gets its own tables.
    hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
    let tables = slot::DOMAINS[2] - 3;
    small::grant(&mut hosted, tables, slot::DOMAINS[2], 40, trellis_idl::kernel::Rights::ALL);
    small::grant(&mut hosted, slot::DOMAINS[2], slot::DOMAINS[2], 41, trellis_idl::kernel::Rights::ALL);
    common::wait(&mut hosted);
    for (op, slot) in [(Op::FramesReclaim, 40), (Op::DomainDestroy, 41)] {
        hosted.syscall(0, op as u16, [slot, 0, 0, 0, 0, 0], [0; 10]);
        assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(small::CLIENT), Err(Refusal::BadState)), "{op:?}");
    }
    lawful(&hosted);
}

#[test]
fn what_a_dead_thread_asked_of_another_cpu_is_not_done() {
    let mut hosted = system(2);
    done(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 0, 245, FREE, 0, 0]);
    small::grant(&mut hosted, slot::DOMAINS[2], slot::DOMAINS[2], 40, trellis_idl::kernel::Rights::ALL);
    assert_eq!(hosted.syscall(0, Op::ThreadStart as u16, [FREE, 0, 0, 0, 0, 0], [0; 10]), Now::Thread(4));
    hosted.syscall(0, Op::ThreadCreate as u16, [40, 1, 20, 41, 0, 0], [0; 10]);
    assert_eq!(hosted.now(0), Now::Thread(ROOT), "it sleeps until the other CPU has done it");
    must(&mut hosted, Op::ThreadDestroy, [FREE, 0, 0, 0, 0, 0]);
    assert!(hosted.shared.requests[0].is_free(), "it was taken back");
    hosted.deliver_kicks();
    assert_eq!(hosted.cpus[1].local.threads.names().count(), 0);
    done(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[2], 1, 20, FREE + 1, 0, 0]);
    lawful(&hosted);
}

#[test]
fn a_server_may_destroy_the_vcpu_it_serves_and_its_answer_finds_nobody() {
    let mut hosted = common::guest_runs();
    assert_eq!(hosted.exit(0, ExitClass::Memory, [0; 10]), Now::Thread(small::INNER));
    let destroyed = hosted.invoke(0, Op::VcpuDestroy, [inner_slot::VCPU, 0, 0, 0, 0, 0]);
    assert!(destroyed.is_ok());
    lawful(&hosted);
    assert_eq!(common::reply(&mut hosted, 0, [0; 10]), Now::Idle);
    lawful(&hosted);
    assert!(hosted.shared.vcpus.iter().flatten().count() == GUESTS * GUEST_VCPUS);
}

#[test]
fn free_names_are_told() {
    let mut hosted = system(1);
    let free = |hosted: &mut Hosted| {
        must(hosted, Op::Fact, [root_slot::SYSTEM, Fact::FreeNames as u64, Kind::Vcpu as u64, 0, 0, 0])[1]
    };
    let before = free(&mut hosted);
    must(&mut hosted, Op::VcpuDestroy, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(free(&mut hosted), before + 1);
    assert_eq!(hosted.invoke(0, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]), Err(Refusal::Gone));
}

#[test]
fn pages_that_only_boot_needed_are_roots_memory_like_any_other() {
    let mut hosted = system(1);
    let boot = root_slot::MEMORY + 4;
    assert_eq!(hosted.invoke(0, Op::FramesInfo, [boot, 0, 0, 0, 0, 0]), Err(Refusal::NoCapability), "not before");
    init::give_boot_pages(&hosted.shared, FIRST_PAGE + 2, 2).expect("room for a run");
    assert_eq!(must(&mut hosted, Op::FramesInfo, [boot, 0, 0, 0, 0, 0]), [2, FIRST_PAGE + 2, 0]);
    must(&mut hosted, Op::FramesSplit, [boot, 1, 1, FREE, 0, 0]);
    must(&mut hosted, Op::DomainMap, [root_slot::DOMAIN, 0x7000_0000, FREE, 0, 1, 3]);
    lawful(&hosted);
}

#[test]
fn a_part_as_large_as_what_it_was_split_off_knows_its_maps() {
    let mut hosted = system(1);
    must(&mut hosted, Op::FramesSplit, [root_slot::DEVICES, 0, 2, slot::FREE, 0, 0]);
    must(&mut hosted, Op::DomainMap, [root_slot::DOMAIN, small::BUFFER + 0x2000, slot::FREE, 0, 1, 1]);
    lawful(&hosted);
}
