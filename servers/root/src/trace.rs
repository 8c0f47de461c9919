// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUs did last, from the kernel's rings to the host: all of it where the image says so, else only the end of the
//! ring of the CPU on which something faulted.

use heapless::Vec;
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::Refusal;
use trellis_idl::layout::root_slot;
use trellis_idl::trace::{MOST_READ, RECORD_WORDS, RECORDS, Record};
use trellis_idl::wire::{Report, TRACE_PIECE};
use trellis_runtime::handle::clock;
use trellis_runtime::{Machine, System};

/// Records that go with the report of a fault.
const LAST: u64 = TRACE_PIECE as u64;
/// Times a second that the rings are emptied: what comes faster than this is lost, and said to be.
const RATE: u64 = 500;
/// Reads of a ring in one go: once round, and the piece that came meanwhile.
pub(crate) const READS: u64 = RECORDS / MOST_READ + 1;

const MACHINE: Machine = Machine::at(root_slot::SYSTEM);

/// Records of one read.
pub(crate) type Piece = Vec<Record, { MOST_READ as usize }>;

/// How far a ring has been read.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    /// The place to go on at.
    place: u16,
    /// When the record before it was noted; 0 before the first read. Two of one time do not stand at one place.
    before: u64,
}

/// Empties every CPU's ring as long as the system runs.
#[derive(Debug)]
pub struct Tracer {
    cpus: Vec<Read, MAX_CPUS>,
}

impl Tracer {
    /// For so many CPUs; none where nobody wants a trace.
    pub fn new(cpus: u64) -> Tracer {
        Tracer { cpus: core::iter::repeat_n(Read::default(), (cpus as usize).min(MAX_CPUS)).collect() }
    }

    /// When the rings want to be emptied next, as a deadline of [`System::wait`]; 0 = never.
    pub fn deadline(&self, system: &impl System) -> u64 {
        if self.cpus.is_empty() {
            return 0;
        }
        let (now, hz) = clock(system);
        now + hz / RATE + 1
    }

    /// Empties them.
    pub fn drain(&mut self, system: &impl System, mut send: impl FnMut(&Report)) {
        for (cpu, read) in (0..).zip(&mut self.cpus) {
            for _ in 0..READS {
                // A CPU that did not start has nothing to say; one that is asked by another just now, later.
                let Ok((piece, is_gap)) = read.go_on(system, cpu) else { break };
                if piece.is_empty() {
                    break;
                }
                each_report(cpu, is_gap, &piece, &mut send);
            }
        }
    }
}

impl Read {
    /// The next records of a ring, and whether some before them are lost.
    fn go_on(&mut self, system: &impl System, cpu: u8) -> Result<(Piece, bool), Refusal> {
        let (mut piece, mut behind, mut is_gap) = (Piece::new(), 0, false);
        if self.before != 0 {
            // The last one again: when another stands there now, the ring has gone round.
            (piece, behind, _) = read(system, cpu, u64::from(self.place).wrapping_sub(1))?;
            is_gap = piece.first().is_none_or(|first| first.time != self.before);
        }
        if is_gap || self.before == 0 {
            let (_, _, newest) = read(system, cpu, 0)?;
            // The oldest record stands where the next one will, which is already gone when that is noted: one on.
            (piece, behind, _) = read(system, cpu, newest + 1)?;
            if piece.first().is_some_and(|first| first.time == 0) {
                // It has not gone round yet.
                (piece, behind, _) = read(system, cpu, 0)?;
            }
        } else {
            piece.remove(0);
        }
        if let Some(last) = piece.last() {
            (self.place, self.before) = ((behind % RECORDS) as u16, last.time);
        }
        Ok((piece, is_gap))
    }
}

/// The end of a CPU's ring, for the report of a fault there.
pub fn last(system: &impl System, cpu: u8, mut send: impl FnMut(&Report)) {
    let Ok((_, _, newest)) = read(system, cpu, 0) else { return };
    let Ok((mut piece, _, _)) = read(system, cpu, newest.wrapping_sub(LAST)) else { return };
    piece.retain(|record| record.time != 0);
    if piece.is_empty() {
        return;
    }
    send(&Report::Last { cpu, records: piece.iter().take(TRACE_PIECE).copied().collect() });
}

fn each_report(cpu: u8, is_gap: bool, piece: &Piece, send: &mut impl FnMut(&Report)) {
    for (index, part) in piece.chunks(TRACE_PIECE).enumerate() {
        send(&Report::Trace { cpu, is_gap: is_gap && index == 0, records: part.iter().copied().collect() });
    }
}

/// Records from a place on, the place behind them, and that of the next one to be noted.
pub(crate) fn read(system: &impl System, cpu: u8, from: u64) -> Result<(Piece, u64, u64), Refusal> {
    let [count, behind, newest] = MACHINE.trace_read(system, cpu, from)?;
    let record = |bytes: &[u8]| {
        let mut words = [0; RECORD_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Record::from_words(words)
    };
    let piece = system.with_buffer(|buffer| {
        buffer.chunks(RECORD_WORDS * 8).take(count.min(MOST_READ) as usize).map(record).collect()
    });
    Ok((piece, behind, newest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use trellis_idl::trace::{TraceKind, Who};

    fn noted(fake: &Fake, times: core::ops::RangeInclusive<u64>) {
        for time in times {
            fake.note(Record { what: TraceKind::Runs.with(0), argument: 0, time, who: Who::Nobody });
        }
    }

    /// What a drain sends: times, and whether there was a gap.
    fn drain(tracer: &mut Tracer, fake: &Fake) -> (Vec<u64, 2048>, bool) {
        let (mut times, mut gap) = (Vec::new(), false);
        tracer.drain(fake, |report| {
            let Report::Trace { cpu: 0, is_gap, records } = report else { panic!("{report:?}") };
            gap |= is_gap;
            times.extend(records.iter().map(|record| record.time));
        });
        (times, gap)
    }

    #[test]
    fn every_record_goes_out_once_and_in_order() {
        let fake = Fake::new();
        let mut tracer = Tracer::new(1);
        noted(&fake, 1..=3);
        assert_eq!(drain(&mut tracer, &fake), ([1, 2, 3].into_iter().collect(), false));
        assert_eq!(drain(&mut tracer, &fake).0.len(), 0);
        for round in 0..20u64 {
            let from = 4 + round * 300;
            noted(&fake, from..=from + 299);
            assert_eq!(drain(&mut tracer, &fake), ((from..from + 300).collect(), false), "round {round}");
        }
    }

    #[test]
    fn what_was_lost_is_said_and_the_rest_goes_out() {
        let fake = Fake::new();
        let mut tracer = Tracer::new(1);
        noted(&fake, 1..=10);
        drain(&mut tracer, &fake);
        noted(&fake, 11..=11 + 3 * RECORDS);
        let (times, gap) = drain(&mut tracer, &fake);
        assert!(gap);
        assert_eq!(times.last(), Some(&(11 + 3 * RECORDS)));
        assert!(times.len() as u64 >= RECORDS - 2 && times.windows(2).all(|pair| pair[0] + 1 == pair[1]));
        assert_eq!(drain(&mut tracer, &fake), (Vec::new(), false));
    }

    #[test]
    fn nobody_waits_for_a_trace_that_nobody_wants() {
        let fake = Fake::new();
        assert_eq!(Tracer::new(0).deadline(&fake), 0);
        assert!(Tracer::new(2).deadline(&fake) > 0);
    }

    #[test]
    fn a_fault_comes_with_the_last_records_of_its_cpu() {
        let fake = Fake::new();
        noted(&fake, 1..=1000);
        let mut times = Vec::<u64, 64>::new();
        last(&fake, 0, |report| match report {
            Report::Last { cpu: 0, records } => times.extend(records.iter().map(|record| record.time)),
            other => panic!("{other:?}"),
        });
        assert_eq!(times, (1000 - LAST + 1..=1000).collect::<Vec<u64, 64>>());
    }
}
