// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace of a CPU: who a record is about, and handing records over. The machine keeps the ring and writes it.
//!
//! Only its own CPU reads or writes a ring, so no word of it is shared and no record is ever half written: what another
//! CPU wants to see of it, it asks for ([`crate::remote`]). A machine notes "who" as the address of a context, which its
//! entry code has at hand; names are looked up when somebody reads.

use crate::local::{Local, THREADS, VCPUS};
use crate::machine::{Machine, Page};
use trellis_idl::trace::{MOST_READ, RECORD_WORDS, RECORDS, Record, Who};

/// The record at a place of the running CPU's ring; places count modulo its length.
pub fn record<M: Machine>(local: &Local<M>, machine: &M, place: u64) -> Record {
    let [what, argument, time, context] = machine.noted(place % RECORDS);
    Record { what, argument, time, who: who(local, context) }
}

/// Whom a noted address means: a context of this CPU's pools, or nobody.
fn who<M: Machine>(local: &Local<M>, context: u64) -> Who {
    if context == 0 {
        return Who::Nobody;
    }
    let vcpu = (0..VCPUS as u16).map(|index| local.vcpus.at(index)).find(|vcpu| place_of(&vcpu.context) == context);
    if let Some(vcpu) = vcpu {
        return Who::Vcpu { guest: vcpu.guest, number: vcpu.number.into() };
    }
    let thread = (0..THREADS as u16).find(|index| place_of(&local.threads.at(*index).context) == context);
    thread.map_or(Who::Nobody, |number| Who::Thread { domain: local.threads.at(number).domain, number })
}

/// The address of a context, as an identity and nothing else.
pub fn place_of<T>(context: &T) -> u64 {
    core::ptr::from_ref(context).addr() as u64
}

/// Puts records from `from` on into a page, up to the newest. Back: how many, the place behind them, and the next
/// record's.
pub(crate) fn read<M: Machine>(local: &Local<M>, machine: &mut M, from: u64, page: Page) -> [u64; 3] {
    let (from, next) = (from % RECORDS, machine.next_note() % RECORDS);
    let count = (next.wrapping_sub(from) % RECORDS).min(MOST_READ);
    for index in 0..count {
        let words = record(local, machine, from + index).to_words();
        for (word, value) in words.iter().enumerate() {
            machine.set_word(page, index as usize * RECORD_WORDS + word, *value);
        }
    }
    [count, (from + count) % RECORDS, next]
}

/// Records that go with the kernel's last words.
const LAST_WORDS: usize = 16;

/// The machine is about to go off and nobody is left who could say why: it says what this CPU did last.
pub(crate) fn last_words<M: Machine>(local: &Local<M>, machine: &mut M) {
    let mut records = [Record { what: 0, argument: 0, time: 0, who: Who::Nobody }; LAST_WORDS];
    let mut count = 0;
    for (place, record) in records.iter_mut().zip(last(local, machine, LAST_WORDS as u64)) {
        *place = record;
        count += 1;
    }
    machine.last_words(records.get(..count).unwrap_or_default());
}

/// The last records of the running CPU, oldest first; fewer when it has not done so much yet.
pub fn last<M: Machine>(local: &Local<M>, machine: &M, count: u64) -> impl Iterator<Item = Record> {
    let next = machine.next_note();
    let places = (1..=count.min(RECORDS)).rev();
    places.map(move |back| record(local, machine, next.wrapping_sub(back))).filter(|record| record.time != 0)
}
