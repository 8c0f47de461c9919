// SPDX-License-Identifier: MIT OR Apache-2.0
//! What CPUs did, out of the kernel's trace: as text, one line a record, and as the trace events that Chrome's viewer
//! (chrome://tracing) and Perfetto (ui.perfetto.dev) show as a timeline of each CPU.

use crate::names::Names;
use crate::status::{Doing, Failure};
use crate::syndrome::Syndrome;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use trellis_idl::kernel::{FIRST_MESSAGE, Op, Refusal};
use trellis_idl::trace::{Record, TraceKind, Who};

/// A record, or that some are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    cpu: u8,
    record: Record,
    /// Records of this CPU just before this one are lost.
    is_gap: bool,
}

/// Everything that the board sent of its trace.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    entries: Vec<Entry>,
    hertz: u64,
}

impl Timeline {
    /// The clock's ticks a second, once they are known.
    pub fn set_hertz(&mut self, hertz: u64) {
        self.hertz = hertz;
    }

    /// Adds records of a CPU, in their order.
    pub fn add(&mut self, cpu: u8, is_gap: bool, records: &[Record]) {
        let entries = records.iter().enumerate();
        self.entries.extend(entries.map(|(index, record)| Entry { cpu, record: *record, is_gap: is_gap && index == 0 }));
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the board sent none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes it: trace events if the file's name ends in `.json`, else text.
    pub fn save(&self, file: &Path, names: &Names) -> Result<(), Failure> {
        let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let text = if is_json { self.events(names).to_string() + "\n" } else { self.text(names) };
        std::fs::write(file, text).doing(|| format!("write the trace to {}", file.display()))
    }

    /// The records of all CPUs by time: the clock is the same on all of them.
    fn by_time(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        entries.sort_by_key(|entry| entry.record.time);
        entries
    }

    fn micros(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e6 / self.hertz.max(1) as f64
    }

    /// One line a record.
    pub fn text(&self, names: &Names) -> String {
        let mut text = String::from("# µs since the clock began, CPU, what happened\n");
        for Entry { cpu, record, is_gap } in self.by_time() {
            let at = self.micros(record.time);
            if is_gap {
                text.push_str(&format!("{at:>15.3}  CPU {cpu}  (records before this one are lost)\n"));
            }
            text.push_str(&format!("{at:>15.3}  CPU {cpu}  {}\n", sentence(&record, names)));
        }
        text
    }

    /// Trace events: a slice for whoever runs on a CPU, and a mark for each thing that happened.
    fn events(&self, names: &Names) -> Value {
        let mut events = vec![json!({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": names.file}})];
        let mut cpus = BTreeMap::new();
        for entry in self.by_time() {
            let lane = cpus.entry(entry.cpu).or_insert_with(|| Lane { since: entry.record.time, who: None });
            self.event(&entry, lane, names, &mut events);
        }
        let end = self.entries.iter().map(|entry| entry.record.time).max().unwrap_or(0);
        for (cpu, lane) in &mut cpus {
            self.close(*cpu, lane, end, names, &mut events);
            events.push(json!({"ph": "M", "name": "thread_name", "pid": 0, "tid": cpu, "args": {"name": format!("CPU {cpu}")}}));
        }
        json!({"displayTimeUnit": "ns", "traceEvents": events})
    }

    fn event(&self, entry: &Entry, lane: &mut Lane, names: &Names, events: &mut Vec<Value>) {
        let Entry { cpu, record, is_gap } = entry;
        let kind = record.kind();
        // What is noted says who runs: after a gap, or after an answer, which leaves no record.
        let runs = match kind {
            Some(TraceKind::Idle) => None,
            Some(TraceKind::Runs) => Some(record.who),
            _ if record.who == Who::Nobody => lane.who,
            _ => Some(record.who),
        };
        if runs != lane.who || *is_gap {
            self.close(*cpu, lane, record.time, names, events);
            *lane = Lane { since: record.time, who: runs };
        }
        if !matches!(kind, Some(TraceKind::Runs | TraceKind::Idle)) {
            let (name, at) = (short(record), self.micros(record.time));
            let arguments = json!({"what": sentence(record, names)});
            events.push(json!({"ph": "i", "s": "t", "name": name, "pid": 0, "tid": cpu, "ts": at, "args": arguments}));
        }
    }

    /// Ends the slice of who ran.
    fn close(&self, cpu: u8, lane: &mut Lane, end: u64, names: &Names, events: &mut Vec<Value>) {
        if let Some(who) = lane.who.take() {
            let (from, length) = (self.micros(lane.since), self.micros(end.saturating_sub(lane.since)));
            let name = called(who, names);
            events.push(json!({"ph": "X", "name": name, "pid": 0, "tid": cpu, "ts": from, "dur": length}));
        }
    }
}

/// Who runs on a CPU, and since when.
struct Lane {
    since: u64,
    who: Option<Who>,
}

/// Records of one CPU before a fault, the newest last, with how long before it each was.
pub fn before_fault(cpu: u8, records: &[Record], hertz: u64, names: &Names) -> Vec<String> {
    let end = records.last().map_or(0, |record| record.time);
    let line = |record: &Record| {
        let before = end.saturating_sub(record.time) as f64 * 1e6 / hertz.max(1) as f64;
        format!("  CPU {cpu}, {before:>9.3} µs before: {}", sentence(record, names))
    };
    records.iter().map(line).collect()
}

/// What somebody is called in this image.
fn called(who: Who, names: &Names) -> String {
    let small = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
    match who {
        Who::Nobody => "nobody".into(),
        Who::Thread { domain: 0, .. } => "root".into(),
        Who::Thread { domain, number } => format!("{} (thread {number})", names.server(small(domain - 1))),
        Who::Vcpu { guest, number } => format!("{} vCPU {number}", names.guest(small(guest))),
    }
}

/// A record in a word or two.
fn short(record: &Record) -> String {
    match record.kind() {
        Some(TraceKind::Exit) => Syndrome(record.detail()).cause().into(),
        Some(TraceKind::Interrupt) => format!("line {}", record.argument),
        Some(TraceKind::Refused) => "refused".into(),
        Some(TraceKind::Runs) => "runs".into(),
        Some(TraceKind::Idle) => "idle".into(),
        None => "unknown".into(),
    }
}

/// A record in a sentence.
fn sentence(record: &Record, names: &Names) -> String {
    let who = called(record.who, names);
    match record.kind() {
        Some(TraceKind::Exit) => {
            let syndrome = Syndrome(record.detail());
            let pc = record.argument;
            format!("{who} stops for {} (syndrome {:#x}) at pc {pc:#x}", syndrome.cause(), syndrome.0)
        }
        Some(TraceKind::Interrupt) if record.who == Who::Nobody => format!("{} comes", line(record.argument)),
        Some(TraceKind::Interrupt) => format!("{} interrupts {who}", line(record.argument)),
        Some(TraceKind::Runs) => format!("{who} runs"),
        Some(TraceKind::Refused) => {
            let operation = u16::try_from(record.detail()).ok().and_then(Op::from_number);
            let operation = operation.map_or(format!("operation {:#x}", record.detail()), |op| format!("{op:?}"));
            let refusal = Refusal::from_register(record.argument.wrapping_neg()).err();
            format!("{who} is refused {operation}: {}", refusal.map_or("?".into(), |refusal| format!("{refusal:?}")))
        }
        Some(TraceKind::Idle) => "has nothing to run".into(),
        None => format!("a record that this tool cannot read: {:#x} {:#x}", record.what, record.argument),
    }
}

/// An interrupt line; those below 32 are the same on every board.
fn line(number: u64) -> String {
    match number {
        0..16 => format!("a kick of another CPU (line {number})"),
        25 => "list registers that want refilling (line 25)".into(),
        26 => "the kernel's alarm (line 26)".into(),
        27 => "the guest's timer (line 27)".into(),
        FIRST_MESSAGE.. => format!("a device's message (line {number})"),
        1020.. => format!("an interrupt that went away (line {number})"),
        _ => format!("line {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::tests::two_guests;

    const WEB: Who = Who::Vcpu { guest: 0, number: 0 };
    const SERVER: Who = Who::Thread { domain: 3, number: 9 };

    fn record(kind: TraceKind, detail: u64, argument: u64, time: u64, who: Who) -> Record {
        Record { what: kind.with(detail), argument, time, who }
    }

    fn timeline() -> Timeline {
        let mut timeline = Timeline::default();
        timeline.set_hertz(1_000_000);
        timeline.add(0, false, &[
            record(TraceKind::Runs, 0, 0, 10, WEB),
            record(TraceKind::Exit, 0x5a00_0000, 0x4008_0000, 14, WEB),
            record(TraceKind::Refused, Op::GuestMap as u64, Refusal::Quota as u64, 15, SERVER),
            record(TraceKind::Idle, 0, 0, 20, Who::Nobody),
        ]);
        timeline.add(1, true, &[record(TraceKind::Interrupt, 0, 27, 12, WEB)]);
        timeline
    }

    #[test]
    fn text_is_by_time_and_names_everybody() {
        let text = timeline().text(&two_guests());
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim_start).collect();
        assert_eq!(lines, [
            "10.000  CPU 0  web vCPU 0 runs",
            "12.000  CPU 1  (records before this one are lost)",
            "12.000  CPU 1  the guest's timer (line 27) interrupts web vCPU 0",
            "14.000  CPU 0  web vCPU 0 stops for HVC (syndrome 0x5a000000) at pc 0x40080000",
            "15.000  CPU 0  vcpu-web (thread 9) is refused GuestMap: Quota",
            "20.000  CPU 0  has nothing to run",
        ]);
    }

    #[test]
    fn events_are_slices_of_who_runs_and_marks_of_what_happens() {
        let events = timeline().events(&two_guests());
        let of = |phase: &str| -> Vec<(String, f64, Option<f64>)> {
            let all = events["traceEvents"].as_array().expect("a list").iter();
            let wanted = all.filter(|event| event["ph"] == phase && event["tid"] == 0);
            wanted.map(|e| (e["name"].as_str().unwrap_or("").into(), e["ts"].as_f64().unwrap_or(-1.0), e["dur"].as_f64())).collect()
        };
        assert_eq!(of("X"), [("web vCPU 0".into(), 10.0, Some(5.0)), ("vcpu-web (thread 9)".into(), 15.0, Some(5.0))]);
        assert_eq!(of("i"), [("HVC".into(), 14.0, None), ("refused".into(), 15.0, None)]);
    }

    #[test]
    fn a_fault_counts_back_from_its_last_record() {
        let records = [record(TraceKind::Runs, 0, 0, 1_000, WEB), record(TraceKind::Exit, 0x5a00_0000, 4, 3_500, WEB)];
        let lines = before_fault(2, &records, 1_000_000_000, &two_guests());
        assert_eq!(lines[0], "  CPU 2,     2.500 µs before: web vCPU 0 runs");
        assert!(lines[1].starts_with("  CPU 2,     0.000 µs before: web vCPU 0 stops for HVC"));
    }

    #[test]
    fn each_kind_of_line_has_its_words() {
        let cases = [
            (0, "a kick of another CPU (line 0)"), (26, "the kernel's alarm (line 26)"), (34, "line 34"), (1019, "line 1019"),
            (1023, "an interrupt that went away (line 1023)"), (8191, "an interrupt that went away (line 8191)"),
            (8192, "a device's message (line 8192)"), (u64::MAX, "a device's message (line 18446744073709551615)"),
        ];
        cases.into_iter().for_each(|(number, words)| assert_eq!(line(number), words));
    }

    #[test]
    fn the_files_name_says_what_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, begin) in [("t.json", "{\"displayTimeUnit\""), ("t.txt", "# µs")] {
            let file = folder.path().join(name);
            timeline().save(&file, &two_guests()).expect("it is saved");
            assert!(std::fs::read_to_string(&file).expect("text").starts_with(begin), "{name}");
        }
        assert!(timeline().save(&folder.path().join("none/t.txt"), &two_guests()).is_err());
    }
}
