// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tracer and the guard: the real monitors with the real root, p2m and vcpu through the real kernel, on two CPUs, while they
//! are replaced, ended and lost.

use trellis_idl::control::{Ask, Handed, Part};
use trellis_idl::kernel::VcpuRegister;
use trellis_idl::plan::{OnReset, RulePlan, RuleVerdict};
use trellis_idl::wire::{GuestEnd, MonitorOp, Report};
use trellis_core::machine::VcpuContext;
use trellis_walks::random::Random;
use trellis_walks::uploads::{Asked, file, offer, watchdog};
use trellis_walks::whole::{Act, BASE, CPUS, Fate, Kind, Stored, Whim, Whole};

/// Rank of monitors.
const MONITOR: u8 = 3;
/// Pages that are not in the block that the image was loaded into. The first of them are spoken of by the rule.
const FIRST: u64 = BASE + (2 << 20) + 0x3000;
const PAGES: u64 = 8;
const FREE: u64 = FIRST + 0x1000 * PAGES;
/// Where exceptions of the guest go.
const VECTORS: u64 = BASE + 0x1_0000;

/// A guest that runs on both CPUs, watched by one of them with a rule about [`PAGES`] pages.
fn started(kind: Kind, verdict: RuleVerdict) -> Asked {
    let rule = RulePlan { guest: 0, first: FIRST / 4096, pages: PAGES, access: 7, verdict, log: true };
    let asked = Asked::watching(kind, vec![rule], OnReset::End, None);
    asked.both_on();
    for cpu in 0..CPUS {
        let mut hosted = asked.whole.hosted.borrow_mut();
        let vcpus = &mut hosted.cpus[usize::from(cpu)].local.vcpus;
        let index = vcpus.names().next().expect("a vCPU").index() as u16;
        vcpus.at_mut(index).context.set(VcpuRegister::VbarEl1 as u64, VECTORS).expect("an address");
    }
    asked
}

/// What became of all that a vCPU was to do.
fn done(asked: &Asked, cpu: usize) -> Vec<(u64, Stored)> {
    std::mem::take(&mut asked.whole.stores.borrow_mut()[cpu])
}

/// Instructions one behind the other.
fn run(first: u64, count: u64) -> impl Iterator<Item = Act> {
    (0..count).map(move |n| Act::Execute(first + 4 * n))
}

/// Another one takes its place, in the middle of what the guest does before a step.
fn swap(asked: &mut Asked, is_fresh: bool, before: impl FnMut(&'static Whole, u64)) -> Vec<Part> {
    let file = file();
    asked.upload(offer(&file, is_fresh), &file);
    asked.begin(Ask::Swap(watchdog()));
    asked.answer(before)
}

fn is_taken(parts: &[Part]) -> bool {
    matches!(parts, [Part::Replaced(replaced), Part::Done] if matches!(replaced.state, Handed::Taken(_)))
}

#[test]
fn each_instruction_that_is_followed_is_an_event_and_happens_once() {
    let asked = started(Kind::Tracer, RuleVerdict::Allow);
    let runs = [(FIRST, 5), (FIRST + 0x100, 3), (FIRST + 0x104, 2), (FREE, 4), (FIRST + 0x2000, 1)];
    for cpu in 0..CPUS {
        asked.whole.does_on(cpu, runs.into_iter().flat_map(|(first, count)| run(first + 0x400 * u64::from(cpu), count)));
        // What is not executed nobody is asked about.
        asked.whole.does_on(cpu, (0..5).map(|n| Act::Store(FIRST + 0x4000 + 0x800 * u64::from(cpu) + 8 * n)));
    }
    asked.all_done();
    let told = asked.whole.told.take();
    for cpu in 0..usize::from(CPUS) {
        let wanted: Vec<u64> = runs.into_iter().flat_map(|(first, count)| (0..count).map(move |n| first + 0x400 * cpu as u64 + 4 * n)).collect();
        let done = done(&asked, cpu);
        assert_eq!(done.len(), wanted.len() + 5);
        assert!(done.iter().zip(&wanted).all(|(done, wanted)| *done == (*wanted, Stored::Done)), "{done:x?}");
        let asked: Vec<(u64, u64)> = told.iter().filter(|told| told.vcpu == cpu).map(|told| (told.exit.physical, told.exit.pc)).collect();
        let followed: Vec<(u64, u64)> = wanted.into_iter().filter(|at| *at < FREE || *at >= FREE + 0x1000).map(|at| (at, at)).collect();
        assert_eq!(asked, followed, "in order, each where it stands");
    }
    assert_eq!(asked.whole.count(0), [22, 22, 0, 0, 0]);
}

/// Whatever becomes of the tracer, the guest executes each instruction once and in order; what was counted is handed over.
#[test]
fn a_tracer_is_replaced_and_lost_and_every_instruction_happens_once() {
    let (mut asked, mut random, mut counted) = (started(Kind::Tracer, RuleVerdict::Allow), Random::new(7), 0);
    for round in 0..300u64 {
        let mut wanted = [Vec::new(), Vec::new()];
        for (cpu, wanted) in (0..CPUS).zip(&mut wanted) {
            for _ in 0..1 + random.below(3) {
                let first = FIRST + random.below(PAGES + 1) * 0x1000 + u64::from(cpu) * 0x800 + random.below(100) * 4;
                let length = 1 + random.below(6);
                wanted.extend((0..length).map(|n| first + 4 * n));
                asked.whole.does_on(cpu, run(first, length));
            }
        }
        let followed = wanted.iter().flatten().filter(|at| **at < FREE).count() as u64;
        let is_kept = befalls(&mut asked, &mut random);
        finish(&mut asked, [wanted[0].len(), wanted[1].len()]);
        for (cpu, wanted) in wanted.into_iter().enumerate() {
            let wanted: Vec<_> = wanted.into_iter().map(|at| (at, Stored::Done)).collect();
            assert_eq!(done(&asked, cpu), wanted, "round {round}, vCPU {cpu}");
        }
        let [seen, ..] = asked.whole.count(0);
        assert!(!is_kept || seen == counted + followed, "round {round}: {seen}, not {counted} + {followed}");
        counted = seen;
    }
}

/// Something happens to the monitor while the guest does what it was told to. True: what it has counted is not lost.
fn befalls(asked: &mut Asked, random: &mut Random) -> bool {
    let op = |op: MonitorOp| Some(op as u64);
    let time = random.below(8) as u32;
    let at = 1 + random.below(5);
    let slow = [None, Some(Fate::SlowToDecide(time)), Some(Fate::SlowToAnswer(time))][random.below(3) as usize];
    let is_kept = match random.below(6) {
        0 | 1 => {
            let parts = swap(asked, false, |whole, step| {
                if let (true, Some(slow)) = (step == at, slow) {
                    whole.fate.set(Some((MONITOR, slow)));
                    whole.moment();
                }
            });
            assert!(is_taken(&parts), "{parts:?}");
            true
        }
        2 => {
            let amid = Whim::CrashIn(random.below(16) as u32);
            asked.whole.whims.borrow_mut().insert(op(MonitorOp::Adopt), amid);
            assert!(matches!(swap(asked, false, |_, _| {})[..], [Part::Refused(_)]));
            true
        }
        3 => {
            assert!(matches!(asked.ask(Ask::Kill(watchdog()))[..], [Part::Replaced(_), Part::Done]));
            false
        }
        4 => {
            asked.whole.fate.set(Some((MONITOR, [Fate::Crash, Fate::Hang, Fate::CrashIn(time / 2)][random.below(3) as usize])));
            false
        }
        _ => true,
    };
    if is_kept {
        asked.whole.fate.set(None);
    }
    is_kept
}

/// Both vCPUs come to the end of what they were told to do.
fn finish(asked: &mut Asked, counts: [usize; CPUS as usize]) {
    for _ in 0..400 {
        let is_done = asked.whole.stores.borrow().iter().zip(counts).all(|(done, count)| done.len() == count);
        if is_done && asked.whole.left() == 0 {
            break;
        }
        asked.step_or_rest();
    }
    asked.whole.fate.set(None);
    asked.whole.go_on();
    asked.whole.lawful();
    let ended = asked.whole.reports().into_iter().find(|report| matches!(report, Report::GuestEnded { .. }));
    assert_eq!(ended, None, "no guest is disturbed");
    // Deaths of long ago do not count.
    asked.whole.later(61);
}

#[test]
fn the_first_use_of_a_page_decides_and_the_other_is_a_violation() {
    let asked = started(Kind::Guard, RuleVerdict::Fault);
    let (data, code) = (FIRST, FIRST + 0x1000);
    asked.whole.does((0..3).map(|n| Act::Store(data + 8 * n)).chain(run(code, 3)));
    asked.all_done();
    assert_eq!(asked.whole.told.take().len(), 2, "one for each page, and no word from then on");
    assert_eq!(asked.whole.count(0), [2, 2, 0, 0, 0]);
    assert!(done(&asked, 0).iter().all(|(_, what)| *what == Stored::Done));
    // The other vCPU may do the same with them, and no other.
    asked.whole.does_on(1, [Act::Store(data + 0x800), Act::Execute(code + 0x800), Act::Store(code + 0x808), Act::Execute(data + 0x800), Act::Store(FREE)]);
    asked.all_done();
    let what: Vec<Stored> = done(&asked, 1).into_iter().map(|(_, what)| what).collect();
    assert_eq!(what, [Stored::Done, Stored::Done, Stored::Skipped, Stored::Skipped, Stored::Done]);
    assert_eq!((asked.whole.count(0), asked.whole.told.take().len()), ([4, 2, 2, 0, 0], 2));
    assert_eq!(asked.whole.word(code + 0x808), Some(0), "it was not written");
}

#[test]
fn a_violation_that_stops_ends_the_guest() {
    let mut asked = started(Kind::Guard, RuleVerdict::Stop);
    asked.whole.does([Act::Store(FIRST), Act::Execute(FIRST), Act::Store(FREE)]);
    let reports = asked.whole.told_by(&mut asked.root, 8);
    assert!(reports.contains(&Report::GuestEnded { guest: 0, end: GuestEnd::Stopped(3) }), "{reports:?}");
    assert_eq!(done(&asked, 0), [(FIRST, Stored::Done)]);
}

/// What pages are for outlives every guard, whether it could say so or not.
#[test]
fn a_guard_is_replaced_and_lost_and_no_page_is_ever_both_written_and_executed() {
    for life in 0..30u64 {
        let (mut asked, mut random, mut counted) = (started(Kind::Guard, RuleVerdict::Fault), Random::new(life), 0);
        // A page is a vCPU's alone, so that it is known which use is first.
        let mut is_code = [None; PAGES as usize];
        for round in 0..10 {
            let mut wanted = [Vec::new(), Vec::new()];
            let mut violations = 0;
            for (cpu, wanted) in (0..u64::from(CPUS)).zip(&mut wanted) {
                for n in 0..1 + random.below(5) {
                    let page = random.below(PAGES / 2) * 2 + cpu;
                    let (at, executes) = (FIRST + page * 0x1000 + 8 * (round * 8 + n), random.below(2) == 0);
                    let is_allowed = *is_code[page as usize].get_or_insert(executes) == executes;
                    violations += u64::from(!is_allowed);
                    wanted.push((at, if is_allowed { Stored::Done } else { Stored::Skipped }));
                    asked.whole.does_on(cpu as u16, [if executes { Act::Execute(at) } else { Act::Store(at) }]);
                }
            }
            let is_kept = befalls(&mut asked, &mut random);
            finish(&mut asked, [wanted[0].len(), wanted[1].len()]);
            for (cpu, wanted) in wanted.into_iter().enumerate() {
                assert_eq!(done(&asked, cpu), wanted, "life {life}, round {round}, vCPU {cpu}");
            }
            let [_, _, seen, ..] = asked.whole.count(0);
            assert!(!is_kept || seen == counted + violations, "life {life}, round {round}: {seen}, not {counted} + {violations}");
            counted = seen;
        }
    }
}
