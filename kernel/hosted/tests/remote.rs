// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of operations on objects of other CPUs, with kicks that come late, merged, and in any order.

mod common;

use common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, CLIENT, ROOT, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{LineField, Op, Refusal};
use trellis_idl::layout::root_slot;

/// Where the client's table has the vCPU of each CPU.
const VCPUS: u64 = 40;

fn remote(hosted: &mut Hosted, op: Op, a: [u64; 6]) {
    assert_eq!(hosted.syscall(0, op as u16, a, [0; 10]), Now::Idle);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), x0(hosted)), (Now::Thread(ROOT), Ok(0)), "{op:?}");
}

/// A vCPU on every CPU but the first, which the client may use.
fn vcpus_everywhere(cpus: u16) -> Hosted {
    let mut hosted = small::system(Settings { cpus, ..Settings::default() });
    for cpu in 1..u64::from(cpus) {
        remote(&mut hosted, Op::VcpuCreate, [slot::GUEST, cpu, cpu, slot::FREE + cpu, 50, 0]);
        must(&mut hosted, Op::Grant, [slot::FREE + cpu, slot::DOMAINS[2], VCPUS + cpu, 0xff, 0, 0]);
    }
    must(&mut hosted, Op::Grant, [slot::VCPU, slot::DOMAINS[2], VCPUS, 0xff, 0, 0]);
    hosted
}

fn pend(vcpu: u64, bits: u64) -> [u64; 6] {
    [VCPUS + vcpu, LineField::Pending as u64, 32, bits, bits, 0]
}

fn pending(hosted: &mut Hosted, vcpu: u64) -> u64 {
    let own = if vcpu == 0 { slot::VCPU } else { slot::FREE + vcpu };
    let read = [own, LineField::Pending as u64, 32, 0, 0, 0];
    if vcpu == 0 {
        return must(hosted, Op::LinesRead, read)[0];
    }
    assert_eq!(hosted.syscall(0, Op::LinesRead as u16, read, [0; 10]), Now::Idle);
    hosted.deliver_kicks();
    x0(hosted).expect("it may be read")
}

#[test]
fn two_threads_of_a_cpu_ask_at_the_same_time_and_both_get_their_answer() {
    let mut hosted = vcpus_everywhere(2);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    let own = [slot::FREE + 1, LineField::Pending as u64, 32, 1, 1, 0];
    assert_eq!(hosted.syscall(0, Op::LinesWrite as u16, own, [0; 10]), Now::Thread(CLIENT));
    assert_eq!(hosted.syscall(0, Op::LinesWrite as u16, pend(1, 2), WORDS), Now::Idle, "its turn comes later");
    lawful(&hosted);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), x0(&hosted)), (Now::Thread(ROOT), Ok(0)));
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    assert_eq!(x0(&hosted), Ok(0));
    hosted.syscall(0, Op::Wait as u16, [2, 0, 0, 0, 0, 0], [0; 10]);
    wake_root(&mut hosted);
    assert_eq!(pending(&mut hosted, 1), 3);
    lawful(&hosted);
}

#[test]
fn what_is_asked_of_a_cpu_that_does_not_run_is_refused_at_once() {
    let mut hosted = vcpus_everywhere(2);
    hosted.shared.running.store(1, Ordering::Release);
    let create = [slot::DOMAINS[2], 1, 100, slot::FREE + 9, 0, 0];
    assert_eq!(hosted.invoke(0, Op::ThreadCreate, create), Err(Refusal::WrongCpu));
    lawful(&hosted);
}

#[test]
fn a_thread_that_goes_while_it_waits_for_its_turn_asks_nothing() {
    let mut hosted = vcpus_everywhere(2);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    let own = [slot::FREE + 1, LineField::Pending as u64, 32, 1, 1, 0];
    hosted.syscall(0, Op::LinesWrite as u16, own, [0; 10]);
    hosted.syscall(0, Op::LinesWrite as u16, pend(1, 2), [0; 10]);
    // The first answer is there, and root runs before the kick that brings it is taken.
    hosted.trap(1, Trap::Kick);
    hosted.board.borrow_mut().kicks.clear();
    hosted.trap(0, Trap::Kick);
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
    must(&mut hosted, Op::ThreadDestroy, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    hosted.deliver_kicks();
    assert_eq!(pending(&mut hosted, 1) & 1, 1);
    lawful(&hosted);
}

#[test]
fn root_that_breaks_down_has_its_last_words_said() {
    let mut hosted = system();
    hosted.board.borrow_mut().log.extend(b"why");
    hosted.trap(0, Trap::Fault(FaultRecord::default()));
    let board = hosted.board.borrow();
    let said = String::from_utf8_lossy(&board.said);
    assert!(said.starts_with("why") && said.contains("thread 0 of domain 0"), "its words, then what the CPU did last: {said}");
    assert_eq!(board.power, Some(false));
}

#[test]
fn a_server_that_breaks_down_does_not_end_the_machine() {
    let mut hosted = client_runs();
    hosted.trap(0, Trap::Fault(FaultRecord::default()));
    assert_eq!(hosted.board.borrow().power, None);
    assert_eq!(root_slot::THREAD, 2, "root is not supervised by anybody");
}

/// Threads on every CPU, each with lines to pend on vCPUs of any CPU, one bit each.
struct Crowd {
    hosted: Hosted,
    /// By CPU and thread: what it still has to do, last first.
    left: BTreeMap<(u16, u16), Vec<(u64, u64)>>,
}

impl Crowd {
    fn new(cpus: u16, work: &[Vec<(u64, u64)>]) -> Crowd {
        let mut hosted = vcpus_everywhere(cpus);
        let mut left = BTreeMap::new();
        // Those of root's own CPU last: they would run while root waits for other CPUs.
        let (here, there): (Vec<_>, Vec<_>) = work.iter().enumerate().partition(|(index, _)| index % cpus as usize == 0);
        for (index, todo) in there.into_iter().chain(here) {
            let (cpu, at) = (index as u64 % u64::from(cpus), slot::FREE + 20 + index as u64);
            let create = [slot::DOMAINS[2], cpu, 100, at, 0, 0];
            let start = [at, 0, 0, 0, 0, 0];
            let before = hosted.cpus[cpu as usize].local.threads.names().count() as u16;
            for (op, a) in [(Op::ThreadCreate, create), (Op::ThreadStart, start)] {
                if cpu == 0 {
                    must(&mut hosted, op, a);
                } else {
                    remote(&mut hosted, op, a);
                }
            }
            left.insert((cpu as u16, before), todo.clone());
        }
        wait(&mut hosted);
        Crowd { hosted, left }
    }

    /// One CPU does something: its thread's next operation, or the kicks that have come for it.
    fn step(&mut self, cpu: u16) {
        let kicked = self.hosted.board.borrow().kicks.contains(&cpu);
        if kicked {
            // As in hardware: pending once, however often it was sent.
            self.hosted.board.borrow_mut().kicks.retain(|other| *other != cpu);
            self.hosted.trap(cpu, Trap::Kick);
            return;
        }
        let Now::Thread(index) = self.hosted.now(cpu) else { return };
        match self.left.get_mut(&(cpu, index)).and_then(Vec::pop) {
            Some((vcpu, bits)) => self.hosted.syscall(cpu, Op::LinesWrite as u16, pend(vcpu, bits), WORDS),
            None => self.hosted.syscall(cpu, Op::Wait as u16, [2, 0, 0, 0, 0, 0], [0; 10]),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_the_order_of_kicks_every_operation_is_done(
        cpus in 2u16..5,
        work in prop::collection::vec(prop::collection::vec((0u64..4, 0u32..32), 0..6), 1..10),
        order in prop::collection::vec(0u16..4, 0..200),
    ) {
        let bits = |todo: &Vec<(u64, u32)>| -> Vec<(u64, u64)> {
            todo.iter().map(|(vcpu, line)| (vcpu % u64::from(cpus), 1 << line)).collect()
        };
        let work: Vec<_> = work.iter().map(bits).collect();
        let mut crowd = Crowd::new(cpus, &work);
        // First in a random order, then in turn until nothing is left to happen.
        let rest = (0..cpus).cycle().take(4000);
        for cpu in order.into_iter().map(|cpu| cpu % cpus).chain(rest) {
            crowd.step(cpu);
        }
        lawful(&crowd.hosted);
        prop_assert!(crowd.left.values().all(Vec::is_empty), "{:?}", crowd.left);
        prop_assert!((0..cpus).all(|cpu| crowd.hosted.now(cpu) == Now::Idle));
        wake_root(&mut crowd.hosted);
        for vcpu in 0..u64::from(cpus) {
            let expected = work.iter().flatten().filter(|(to, _)| *to == vcpu).fold(0, |all, (_, bits)| all | bits);
            prop_assert_eq!(pending(&mut crowd.hosted, vcpu), expected);
        }
    }
}
