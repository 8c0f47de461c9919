// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts at their hot doors: the same as on the slow way, only sooner; and errands between CPUs.

mod common;

use common::*;
use proptest::prelude::*;
use trellis_core::lines::{SoftwareInterrupt, VIRTUAL_TIMER};
use trellis_core::trap::Trap;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::small::{self, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Answer, ExitClass, LineField, Op, Refusal, VcpuRegister};
use trellis_idl::layout::root_slot;

const HVC: ExitClass = ExitClass::Hypercall;
const ALL: u64 = 0xffff_ffff;

/// A guest that runs, each of whose private lines is enabled and has a priority of its own.
fn guest() -> Hosted {
    let mut hosted = guest_runs();
    hosted.exit(0, HVC, [0; 10]);
    let mut lines = |op: Op, a: [u64; 4]| {
        hosted.invoke(0, op, [inner_slot::VCPU, a[0], a[1], a[2], a[3], 0]).expect("its server may");
    };
    lines(Op::LinesEnable, [1, 0, 0, 0]);
    lines(Op::LinesWrite, [LineField::Enabled as u64, 0, ALL, ALL]);
    for line in (0..32).step_by(4) {
        let byte = |i: u64| ((line + i) << 3) << (8 * i);
        lines(Op::LinesPriority, [line, (0..4).map(byte).sum(), 15, 0]);
    }
    assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
    hosted
}

/// What can happen to the guest.
#[derive(Clone, Copy, Debug)]
enum Step {
    Software(u8),
    Timer(u64),
    Pass(u64),
    Acknowledge,
    End,
    Enable(u32),
    Pending(u32),
    Forward(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..16).prop_map(Step::Software),
        2 => (0u64..300).prop_map(Step::Timer),
        2 => (1u64..200).prop_map(Step::Pass),
        4 => Just(Step::Acknowledge),
        4 => Just(Step::End),
        1 => any::<u32>().prop_map(Step::Enable),
        1 => any::<u32>().prop_map(Step::Pending),
        1 => any::<bool>().prop_map(Step::Forward),
    ]
}

/// The server of the guest does something to its lines.
fn serve(hosted: &mut Hosted, op: Op, a: [u64; 4]) {
    hosted.exit(0, HVC, [0; 10]);
    hosted.invoke(0, op, [inner_slot::VCPU, a[0], a[1], a[2], a[3], 0]).expect("its server may");
    assert_eq!(reply(hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
}

/// Does it; back comes what the guest sees of it.
fn act(hosted: &mut Hosted, active: &mut Vec<u8>, step: Step) -> Option<u8> {
    match step {
        Step::Software(line) => drop(hosted.trap(0, Trap::SoftwareInterrupt(SoftwareInterrupt { line, targets: 1, others: false }))),
        Step::Timer(ahead) => {
            let due = hosted.board.borrow().now + ahead;
            let context = &mut hosted.cpus[0].local.vcpus.at_mut(0).context;
            context.set_special(VcpuRegister::CntvCval, due);
            context.set_special(VcpuRegister::CntvCtl, 1);
        }
        Step::Pass(ticks) => hosted.advance(ticks),
        Step::Acknowledge => {
            let line = hosted.acknowledge(0)?;
            if line == VIRTUAL_TIMER {
                hosted.cpus[0].local.vcpus.at_mut(0).context.set_special(VcpuRegister::CntvCtl, 0);
            }
            active.push(line);
            return Some(line);
        }
        Step::End => {
            let line = active.pop()?;
            hosted.end_of_interrupt(0, line);
        }
        Step::Enable(which) => serve(hosted, Op::LinesWrite, [LineField::Enabled as u64, 0, ALL, which.into()]),
        Step::Pending(which) => {
            // The timer's own line follows the timer.
            let which = u64::from(which) & 0xffff;
            serve(hosted, Op::LinesWrite, [LineField::Pending as u64, 0, which, which]);
        }
        Step::Forward(on) => serve(hosted, Op::LinesEnable, [on.into(), 0, 0, 0]),
    }
    assert_eq!(hosted.now(0), Now::Guest(0));
    None
}

proptest! {
    #[test]
    fn a_guest_cannot_tell_the_hot_door_from_the_slow_way(steps in prop::collection::vec(step(), 1..80)) {
        let (mut hot, mut slow) = (guest(), guest());
        slow.only_slow = true;
        let (mut active, mut active_slow) = (Vec::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            let seen = act(&mut hot, &mut active, *step);
            prop_assert_eq!(seen, act(&mut slow, &mut active_slow, *step), "step {}: {:?}", index, step);
        }
        lawful(&hot);
        // Whatever still waits comes in the same order.
        for step in [Step::Enable(u32::MAX), Step::Forward(true)].into_iter().chain([Step::End; 32]) {
            act(&mut hot, &mut active, step);
            act(&mut slow, &mut active_slow, step);
        }
        for _ in 0..64 {
            prop_assert_eq!(act(&mut hot, &mut active, Step::Acknowledge), act(&mut slow, &mut active_slow, Step::Acknowledge));
            act(&mut hot, &mut active, Step::End);
            act(&mut slow, &mut active_slow, Step::End);
        }
    }
}

fn software(hosted: &mut Hosted, cpu: u16, targets: u64) -> Now {
    hosted.trap(cpu, Trap::SoftwareInterrupt(SoftwareInterrupt { line: 3, targets, others: false }))
}

/// A guest with a vCPU on each of two CPUs, both running.
fn pair() -> Hosted {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    let remote = |hosted: &mut Hosted, op: Op, a: [u64; 6]| {
        assert_eq!(hosted.syscall(0, op as u16, a, [0; 10]), Now::Idle, "{op:?} is done by CPU 1");
        let kicks = hosted.board.borrow().kicks.len();
        assert_eq!(kicks, 1);
        hosted.deliver_kicks();
        assert_eq!((hosted.now(0), x0(hosted)), (Now::Thread(small::ROOT), Ok(0)), "{op:?}");
    };
    remote(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, 1, slot::FREE, 50, 0]);
    for op in [(Op::LinesEnable, [1, 0, 0, 0]), (Op::LinesWrite, [LineField::Enabled as u64, 0, ALL, ALL])] {
        let (op, a) = op;
        must(&mut hosted, op, [slot::VCPU, a[0], a[1], a[2], a[3], 0]);
    }
    // One request, and the other CPU's vCPU runs from its entry. Reset clears enabled lines, so those come after it.
    remote(&mut hosted, Op::VcpuLaunch, [slot::FREE, 0x4000_1000, 0x77, 0, 0, 0]);
    remote(&mut hosted, Op::LinesEnable, [slot::FREE, 1, 0, 0, 0, 0]);
    remote(&mut hosted, Op::LinesWrite, [slot::FREE, LineField::Enabled as u64, 0, ALL, ALL, 0]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    assert_eq!(hosted.now(1), Now::Guest(0));
    hosted
}

#[test]
fn a_vcpu_is_launched_from_another_cpu_by_one_request() {
    let hosted = pair();
    let vcpu = hosted.cpus[1].local.vcpus.at(0);
    assert_eq!((vcpu.state, vcpu.context.pc(), vcpu.context.general(0)), (VcpuState::Running, 0x4000_1000, 0x77));
    lawful(&hosted);
}

#[test]
fn a_vcpu_that_runs_is_not_launched_again() {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuLaunch, [slot::VCPU, 0x4000_0000, 1, 0, 0, 0]);
    let again = hosted.invoke(0, Op::VcpuLaunch, [slot::VCPU, 0x4000_2000, 2, 0, 0, 0]);
    assert_eq!(again, Err(Refusal::BadState));
    assert_eq!(hosted.cpus[0].local.vcpus.at(0).context.pc(), 0x4000_0000);
    // Neither the right to write registers alone nor the right to start is enough.
    for right in [trellis_idl::kernel::Rights::WRITE, trellis_idl::kernel::Rights::EXECUTE] {
        must(&mut hosted, Op::Grant, [slot::VCPU, root_slot::DOMAIN, slot::FREE, right.0.into(), 0, 0]);
        let refused = hosted.invoke(0, Op::VcpuLaunch, [slot::FREE, 0, 0, 0, 0, 0]);
        assert_eq!(refused, Err(Refusal::MissingRight));
        must(&mut hosted, Op::Drop, [slot::FREE, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_software_interrupt_reaches_the_vcpu_that_runs_on_another_cpu_at_once() {
    let mut hosted = pair();
    for (from, to) in [(0u16, 1u16), (1, 0), (0, 1)] {
        assert_eq!(software(&mut hosted, from, 1 << to), Now::Guest(0), "the sender goes on");
        let kicks: Vec<u16> = hosted.board.borrow().kicks.iter().copied().collect();
        assert_eq!(kicks, [to]);
        // A second one before the kick arrives needs no kick of its own, and is the same interrupt.
        software(&mut hosted, from, 1 << to);
        assert_eq!(hosted.board.borrow().kicks.len(), 1);
        hosted.deliver_kicks();
        assert_eq!(hosted.now(to), Now::Guest(0));
        assert_eq!(hosted.acknowledge(to), Some(3));
        hosted.end_of_interrupt(to, 3);
        assert_eq!(hosted.acknowledge(to), None);
    }
    lawful(&hosted);
}

#[test]
fn a_kick_for_a_vcpu_and_a_thread_serves_both() {
    let mut hosted = pair();
    software(&mut hosted, 1, 1);
    // Root of CPU 0 waits for a signal; a thread of CPU 1 could raise it: here by the errand itself.
    let root = hosted.cpus[0].local.threads.name_at(small::ROOT).0;
    let (this, shared) = (&mut hosted.cpus[1], &hosted.shared);
    let to = trellis_core::pool::Id::from_word(root);
    assert!(trellis_core::signal::raise(&mut this.local, shared, &mut this.machine, to, 1));
    assert_eq!(hosted.board.borrow().kicks.len(), 1, "the first kick is on its way");
    hosted.deliver_kicks();
    assert_eq!(hosted.now(0), Now::Thread(small::ROOT));
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    assert_eq!(hosted.acknowledge(0), Some(3));
}

#[test]
fn a_device_line_runs_the_thread_that_waits_for_it_and_what_it_interrupted_goes_on_after() {
    for only_slow in [false, true] {
        let mut hosted = guest();
        hosted.only_slow = only_slow;
        hosted.exit(0, HVC, [0; 10]);
        hosted.syscall(0, Op::Signal as u16, [inner_slot::ROOT, 0, 0, 0, 0, 0], [0; 10]);
        must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, 40, slot::FREE, 0, 0, 0]);
        must(&mut hosted, Op::LineBind, [slot::FREE, slot::SIGNALS[0], 0, 0, 0, 0]);
        let server = wait(&mut hosted);
        for _ in 0..3 {
            // Root's signal is bound: it goes before the guest's server, which was in the middle of something.
            assert_eq!(hosted.trap(0, Trap::Line(40)), Now::Thread(small::ROOT));
            assert_eq!(hosted.registers(0).x[0], 1);
            assert!(!hosted.board.borrow().lines.contains_key(&40), "it is masked");
            must(&mut hosted, Op::LineAck, [slot::FREE, 0, 0, 0, 0, 0]);
            assert_eq!(wait(&mut hosted), server);
        }
        assert_eq!(reply(&mut hosted, Answer::RETRY.0, [0; 10]), Now::Guest(0));
        assert_eq!(hosted.trap(0, Trap::Line(40)), Now::Thread(small::ROOT));
        assert_eq!(wait(&mut hosted), Now::Guest(0));
        lawful(&hosted);
    }
}
