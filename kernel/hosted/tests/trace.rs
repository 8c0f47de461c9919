// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stories of what a CPU did last, as root reads it.

mod common;

use common::*;
use trellis_core::trace;
use trellis_hosted::small::{self, CLIENT, INNER, ROOT, must, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{Answer, ExitClass, Op, Refusal};
use trellis_idl::layout::root_slot;
use trellis_idl::trace::{MOST_READ, RECORDS, Record, TraceKind, Who};

const GUEST: Who = Who::Vcpu { guest: 0, number: 0 };
const SYSTEM: u64 = root_slot::SYSTEM;

/// Records in the message buffer of root, which runs on CPU 0.
fn in_buffer(hosted: &Hosted, count: u64) -> Vec<Record> {
    let page = hosted.cpus[0].local.threads.at(ROOT).buffer;
    let board = hosted.board.borrow();
    let word = |record: u64, word: u64| board.word(page * 4096 + record * 32 + word * 8);
    (0..count).map(|index| Record::from_words(std::array::from_fn(|n| word(index, n as u64)))).collect()
}

/// The last records that a CPU noted, as it prints them itself.
fn last(hosted: &Hosted, cpu: usize, count: u64) -> Vec<Record> {
    trace::last(&hosted.cpus[cpu].local, &hosted.cpus[cpu].machine, count).collect()
}

#[test]
fn an_exit_and_a_refusal_are_noted_and_calls_are_not() {
    let mut hosted = guest_runs();
    hosted.exit(0, ExitClass::Hypercall, [0, 0x5a00_0000, 0, 0, 0x4008_0000, 0, 0, 0, 0, 0]);
    reply(&mut hosted, Answer::ADVANCE.0, WORDS);
    let records = last(&hosted, 0, 1);
    assert_eq!((records[0].kind(), records[0].detail()), (Some(TraceKind::Exit), 0x5a00_0000));
    assert_eq!((records[0].argument, records[0].who), (0x4008_0000, GUEST));

    let mut hosted = client_runs();
    let before = hosted.cpus[0].machine.trace_length();
    assert_eq!(call(&mut hosted, TO_INNER, WORDS), Now::Thread(INNER));
    reply(&mut hosted, 0, BACK);
    assert_eq!(hosted.cpus[0].machine.trace_length(), before);
    call(&mut hosted, 9, WORDS);
    assert_eq!(x0(&hosted), Err(Refusal::NoCapability));
    let refused = last(&hosted, 0, 1)[0];
    assert_eq!((refused.kind(), refused.detail()), (Some(TraceKind::Refused), Op::Call as u64));
    assert_eq!(refused.argument, Refusal::NoCapability as u64);
    assert_eq!(refused.who, Who::Thread { domain: 3, number: CLIENT });
    lawful(&hosted);
}

#[test]
fn root_reads_every_record_once_though_the_ring_goes_round() {
    let mut hosted = system();
    let mut from = must(&mut hosted, Op::TraceRead, [SYSTEM, 0, 0, 0, 0, 0])[2];
    let mut seen = Vec::new();
    for round in 0..RECORDS {
        // That root goes on leaves no record.
        hosted.syscall(0, Op::Signal as u16, [1000 + round, 0, 0, 0, 0, 0], [0; 10]);
        let [count, next, _] = must(&mut hosted, Op::TraceRead, [SYSTEM, 0, from, 0, 0, 0]);
        assert!(count <= MOST_READ && next < RECORDS);
        seen.extend(in_buffer(&hosted, count));
        from = next;
    }
    let refused = seen.iter().filter(|record| record.kind() == Some(TraceKind::Refused)).count();
    assert_eq!(refused as u64, RECORDS);
    assert!(seen.windows(2).all(|pair| pair[0].time <= pair[1].time));
    assert!(seen.iter().all(|record| record.who == Who::Thread { domain: 0, number: ROOT }));
}

#[test]
fn a_read_is_bounded_and_any_place_is_in_the_ring() {
    let mut hosted = system();
    for place in [0, RECORDS - 1, RECORDS, 7 * RECORDS + 3, u64::MAX] {
        let [count, next, newest] = must(&mut hosted, Op::TraceRead, [SYSTEM, 0, place, 0, 0, 0]);
        assert!(count <= MOST_READ && next < RECORDS && newest < RECORDS, "{place}");
        assert_eq!(next, (place % RECORDS + count) % RECORDS);
    }
}

#[test]
fn who_is_not_allowed_or_asks_for_no_cpu_is_refused() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    let refused = |hosted: &mut Hosted, a: [u64; 6]| hosted.invoke(0, Op::TraceRead, a);
    assert_eq!(refused(&mut hosted, [slot::GUEST, 0, 0, 0, 0, 0]), Err(Refusal::WrongKind));
    assert_eq!(refused(&mut hosted, [SYSTEM, 2, 0, 0, 0, 0]), Err(Refusal::WrongCpu));
    for cpu in [MAX_CPUS as u64, MAX_CPUS as u64 + 1, u64::MAX] {
        assert_eq!(refused(&mut hosted, [SYSTEM, cpu, 0, 0, 0, 0]), Err(Refusal::OutOfRange), "{cpu}");
    }
    // The console's capability reads the kernel's log and no more.
    small::grant(&mut hosted, SYSTEM, slot::DOMAINS[2], 50, trellis_idl::kernel::Rights::READ);
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    wait(&mut hosted);
    hosted.syscall(0, Op::TraceRead as u16, [50, 0, 0, 0, 0, 0], [0; 10]);
    assert_eq!(x0(&hosted), Err(Refusal::MissingRight));
}

#[test]
fn the_trace_of_another_cpu_comes_into_the_askers_buffer() {
    let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
    // Root sleeps: what is on top of CPU 1's trace is that it has nothing to do.
    assert_eq!(hosted.syscall(0, Op::TraceRead as u16, [SYSTEM, 1, 0, 0, 0, 0], [0; 10]), Now::Idle);
    hosted.deliver_kicks();
    let [count, next, newest] = hosted.registers(0).x;
    assert_eq!((hosted.now(0), next, newest), (Now::Thread(ROOT), count, count));
    let records = in_buffer(&hosted, count);
    assert!(!records.is_empty());
    assert!(records.iter().all(|record| record.kind() == Some(TraceKind::Idle) && record.who == Who::Nobody));
    lawful(&hosted);
}

#[test]
fn the_last_records_are_fewer_where_less_has_happened() {
    let hosted = system();
    let noted = hosted.cpus[0].machine.trace_length();
    assert!(noted > 0 && noted < RECORDS);
    assert_eq!(last(&hosted, 0, u64::MAX).len() as u64, noted);
    assert_eq!(last(&hosted, 0, 2).len(), 2);
}
