// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many CPUs: the hot paths share nothing however many there are, and all that the kernel supports reach one another.

mod common;

use common::*;
use trellis_core::lines::SoftwareInterrupt;
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, INNER, OUTER, ROOT, VCPU_PRIORITY, grant, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{Answer, ExitClass, Groups, LineField, Op, PASSIVE, Rights, Seat};

/// Slot of the thread that lives on a CPU, in root's table.
const THREADS: u64 = slot::FREE;
/// Signals to them, in root's table.
const SIGNALS: u64 = THREADS + MAX_CPUS as u64;
/// vCPUs.
const VCPUS: u64 = SIGNALS + MAX_CPUS as u64;
/// The signal to the thread on CPU 2, in the client's table.
const TO_CPU_2: u64 = 60;
/// What a vCPU that waits enables.
const LINE: u64 = 3;

fn settings(cpus: u16) -> Settings {
    Settings { cpus, ..Settings::default() }
}

/// Root asks for something on another CPU: it sleeps until that has done it.
fn remote(hosted: &mut Hosted, op: Op, a: [u64; 6]) {
    hosted.syscall(0, op as u16, a, [0; 10]);
    hosted.deliver_kicks();
    assert_eq!((hosted.now(0), x0(hosted)), (Now::Thread(ROOT), Ok(0)), "{op:?} {a:x?}");
}

/// A thread of the client's domain on every CPU but the first, started, with a signal to each.
fn thread_everywhere(hosted: &mut Hosted, cpus: u16) {
    for cpu in 1..u64::from(cpus) {
        remote(hosted, Op::ThreadCreate, [slot::DOMAINS[2], cpu, 100, THREADS + cpu, 0, 0]);
        must(hosted, Op::SignalCreate, [THREADS + cpu, 1, SIGNALS + cpu, 0, 0, 0]);
        if cpu == 2 {
            grant(hosted, SIGNALS + cpu, slot::DOMAINS[2], TO_CPU_2, Rights::USE);
        }
        remote(hosted, Op::ThreadStart, [THREADS + cpu, 0x20_0000, 0, 0, 0, 0]);
        assert_eq!(hosted.now(cpu as u16), Now::Thread(0));
    }
}

#[test]
fn call_answer_exit_and_resume_share_nothing_with_one_two_four_and_eight_cpus() {
    for cpus in [1, 2, 4, 8] {
        let mut hosted = small::system(settings(cpus));
        thread_everywhere(&mut hosted, cpus);
        must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
        must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
        assert_eq!(wait(&mut hosted), Now::Guest(0));
        let before = hosted.sharing();
        let writes: Vec<u64> = hosted.cpus.iter().map(|cpu| cpu.local.shared_writes).collect();
        for class in [ExitClass::Hypercall, ExitClass::Memory] {
            let server = if class == ExitClass::Memory { INNER } else { OUTER };
            assert_eq!(hosted.exit(0, class, [0; 10]), Now::Thread(server), "{class:?}");
            if server == OUTER {
                assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
                assert_eq!(reply(&mut hosted, 0, BACK), Now::Thread(OUTER));
            }
            assert_eq!(reply(&mut hosted, Answer::ADVANCE.0, WORDS), Now::Guest(0));
        }
        assert_eq!(hosted.sharing(), before, "{cpus} CPUs");
        assert_eq!(hosted.cpus.iter().map(|cpu| cpu.local.shared_writes).collect::<Vec<_>>(), writes);
        assert!(hosted.board.borrow().kicks.is_empty());
        lawful(&hosted);
    }
}

/// On a CPU a thread of the inner and one of the outer server, which wait, and a vCPU of the guest whose events the outer one gets.
fn watched_on(hosted: &mut Hosted, cpu: u64) {
    let [inner, outer] = [THREADS, SIGNALS].map(|slots| slots + cpu);
    let [finds, hears, vcpu] = [VCPUS + cpu, VCPUS + MAX_CPUS as u64 + cpu, VCPUS + 2 * MAX_CPUS as u64 + cpu];
    for (thread, (domain, portal)) in [inner, outer].into_iter().zip(slot::DOMAINS.into_iter().zip([finds, hears])) {
        remote(hosted, Op::ThreadCreate, [domain, cpu, PASSIVE, thread, 0, 0]);
        remote(hosted, Op::PortalCreate, [thread, cpu, portal, 0, 0, 0]);
        remote(hosted, Op::ThreadStart, [thread, 0x20_0000, 0, 0, 0, 0]);
        assert_eq!(hosted.syscall(cpu as u16, Op::ReplyAndWait as u16, [0; 6], [0; 10]), Now::Idle);
    }
    remote(hosted, Op::VcpuCreate, [slot::GUEST, cpu, cpu, vcpu, VCPU_PRIORITY, 0]);
    let groups = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;
    remote(hosted, Op::VcpuRoute, [vcpu, ExitClass::Memory as u64, finds, groups, small::EXIT_BADGE, 0]);
    must(hosted, Op::SessionPlace, [slot::SESSION, cpu, Seat::First as u64, hears, 0, 0]);
    remote(hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]);
}

#[test]
fn an_event_and_its_verdict_share_nothing_with_one_two_four_and_eight_vcpus() {
    for cpus in [1, 2, 4, 8] {
        let mut hosted = small::system(settings(cpus));
        must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
        must(&mut hosted, Op::SessionPlace, [slot::SESSION, 0, Seat::First as u64, slot::PORTALS[1], 0, 0]);
        must(&mut hosted, Op::SessionCommit, [slot::SESSION, 1, Seat::First as u64, 0, 0, 0]);
        (1..u64::from(cpus)).for_each(|cpu| watched_on(&mut hosted, cpu));
        must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
        assert_eq!(wait(&mut hosted), Now::Guest(0));
        let (before, writes) = (hosted.sharing(), hosted.cpus.iter().map(|cpu| cpu.local.shared_writes).collect::<Vec<_>>());
        let servers = |cpu: u16| if cpu == 0 { [INNER, OUTER] } else { [0, 1] }.map(Now::Thread);
        for _ in 0..3 {
            // All of them at once.
            for cpu in 0..cpus {
                assert_eq!(hosted.exit(cpu, ExitClass::Memory, [0; 10]), servers(cpu)[0]);
            }
            for cpu in 0..cpus {
                let session = [inner_slot::SESSION, 0, 0, 0, 0, 0];
                assert_eq!(hosted.syscall(cpu, Op::Forward as u16, session, WORDS), servers(cpu)[1]);
            }
            for cpu in 0..cpus {
                let answer = [Answer::ADVANCE.0, 0, 0, 0, 0, 0];
                assert_eq!(hosted.syscall(cpu, Op::ReplyAndWait as u16, answer, [0; 10]), Now::Guest(0));
            }
        }
        assert_eq!(hosted.sharing(), before, "{cpus} vCPUs");
        assert_eq!(hosted.cpus.iter().map(|cpu| cpu.local.shared_writes).collect::<Vec<_>>(), writes);
        assert!(hosted.board.borrow().kicks.is_empty());
        lawful(&hosted);
    }
}

#[test]
fn a_shared_write_is_counted() {
    let mut hosted = small::system(settings(2));
    thread_everywhere(&mut hosted, 2);
    let before = hosted.sharing();
    hosted.syscall(0, Op::Signal as u16, [SIGNALS + 1, 0, 0, 0, 0, 0], [0; 10]);
    assert_ne!(hosted.sharing(), before, "a signal to another CPU is no hot path");
}

#[test]
fn threads_on_all_cpus_are_made_signalled_and_woken() {
    let cpus = MAX_CPUS as u16;
    let mut hosted = small::system(settings(cpus));
    thread_everywhere(&mut hosted, cpus);
    for cpu in 1..cpus {
        assert_eq!(hosted.syscall(cpu, Op::Wait as u16, [1, 0, 0, 0, 0, 0], [0; 10]), Now::Idle);
    }
    for cpu in 1..cpus {
        must(&mut hosted, Op::Signal, [SIGNALS + u64::from(cpu), 0, 0, 0, 0, 0]);
    }
    hosted.deliver_kicks();
    for cpu in 1..cpus {
        assert_eq!((hosted.now(cpu), hosted.registers(cpu).x[0]), (Now::Thread(0), 1), "CPU {cpu}");
    }
    // The last CPU signals one near the other end.
    assert_eq!(hosted.syscall(2, Op::Wait as u16, [1, 0, 0, 0, 0, 0], [0; 10]), Now::Idle);
    let now = hosted.syscall(cpus - 1, Op::Signal as u16, [TO_CPU_2, 0, 0, 0, 0, 0], [0; 10]);
    assert_eq!((now, hosted.registers(cpus - 1).x[0]), (Now::Thread(0), 0));
    hosted.deliver_kicks();
    assert_eq!(hosted.now(2), Now::Thread(0));
    lawful(&hosted);
}

#[test]
fn vcpus_on_the_last_cpus_send_each_other_software_interrupts() {
    let mut hosted = small::system(settings(MAX_CPUS as u16));
    let first = MAX_CPUS as u64 - 15;
    for number in 1..16 {
        let cpu = first + number - 1;
        remote(&mut hosted, Op::VcpuCreate, [slot::GUEST, cpu, number, VCPUS + number, VCPU_PRIORITY, 0]);
        let enable = [VCPUS + number, LineField::Enabled as u64, 0, 1 << LINE, 1 << LINE, 0];
        remote(&mut hosted, Op::LinesWrite, enable);
        remote(&mut hosted, Op::LinesEnable, [VCPUS + number, 1, 0, 0, 0, 0]);
        remote(&mut hosted, Op::VcpuStart, [VCPUS + number, 0, 0, 0, 0, 0]);
        assert_eq!(hosted.now(cpu as u16), Now::Guest(0));
    }
    let sender = MAX_CPUS as u16 - 1;
    hosted.trap(sender, Trap::SoftwareInterrupt(SoftwareInterrupt { line: LINE as u8, targets: 0xfffe, others: false }));
    hosted.deliver_kicks();
    for cpu in first as u16..=sender {
        assert_eq!(hosted.acknowledge(cpu), Some(LINE as u8), "CPU {cpu}");
    }
    assert_eq!(hosted.acknowledge(0), None);
    lawful(&hosted);
}

#[test]
fn a_cpu_beyond_the_last_is_refused() {
    let mut hosted = small::system(settings(MAX_CPUS as u16));
    for cpu in [MAX_CPUS as u64, 65_536, u64::MAX] {
        let create = [slot::DOMAINS[2], cpu, 100, THREADS, 0, 0];
        let now = hosted.syscall(0, Op::ThreadCreate as u16, create, [0; 10]);
        assert!(now == Now::Thread(ROOT) && x0(&hosted).is_err(), "{cpu}");
    }
    // A route leads to a portal of the vCPU's own CPU.
    remote(&mut hosted, Op::VcpuCreate, [slot::GUEST, 63, 1, VCPUS, VCPU_PRIORITY, 0]);
    let route = [VCPUS, 0, slot::PORTALS[0], Groups::PC.0, 0, 0];
    hosted.syscall(0, Op::VcpuRoute as u16, route, [0; 10]);
    hosted.deliver_kicks();
    assert!(x0(&hosted).is_err());
    lawful(&hosted);
}
