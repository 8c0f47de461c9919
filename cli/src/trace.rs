// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one trip through the kernel is made of: a trace of the emulator, one instruction at a time, cut into trips from
//! exception to return. Counting instructions alone would hide that some are dearer than others on silicon.

use crate::emulator::{Emulator, Event};
use crate::figures::Figure;
use crate::status::Failure;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A run that takes longer has lost its way; it would take seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// Pairs of trips that are enough: the shape that most of them have is the path.
const ENOUGH: u32 = 100;
/// `SVC` from EL0, in a syndrome's class (Arm ARM D24.2.40, ESR_EL2.EC).
const SVC: u32 = 0x15;
/// The system call that answers.
const REPLY: u32 = SVC << 26 | 1 << 25 | 1;

/// Kinds of instructions that cost more than they count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Special {
    /// Writes of system registers.
    pub writes: u32,
    /// Reads of system registers.
    pub reads: u32,
    /// Instruction barriers.
    pub isb: u32,
    /// Data barriers that wait for completion.
    pub dsb: u32,
    /// Invalidations of translations.
    pub tlbi: u32,
}

impl Special {
    /// Adds one instruction (Arm ARM C4.1.94, system instructions and barriers).
    fn add(&mut self, word: u32) {
        match word >> 20 {
            0xd51 => self.writes += 1,
            0xd53 => self.reads += 1,
            0xd50 if word & 0xf000 == 0x4000 && word & 0x1f == 0x1f => self.writes += 1,
            0xd50 if word & 0x8_f000 == 0x8_8000 => self.tlbi += 1,
            0xd50 if word & 0xf_f000 == 0x3_3000 => match word >> 5 & 7 {
                4 => self.dsb += 1,
                6 => self.isb += 1,
                _ => {}
            },
            _ => {}
        }
    }

    fn sum(self, other: Special) -> Special {
        Special {
            writes: self.writes + other.writes,
            reads: self.reads + other.reads,
            isb: self.isb + other.isb,
            dsb: self.dsb + other.dsb,
            tlbi: self.tlbi + other.tlbi,
        }
    }

    /// As figures `NAME_writes` and so on.
    pub fn figures(self, name: &str) -> [Figure; 5] {
        let kinds = [("writes", self.writes), ("reads", self.reads), ("isb", self.isb), ("dsb", self.dsb), ("tlbi", self.tlbi)];
        kinds.map(|(kind, count)| Figure::new(&format!("{name}_{kind}"), u64::from(count), kind))
    }
}

/// A path: a trip of this kind, answered by the next trip into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The figure whose path it is.
    pub name: &'static str,
    /// Syndrome bits of the first trip: value under mask.
    pub syndrome: (u32, u32),
}

/// A call and its reply.
pub const CALL: Path = Path { name: "ipc_roundtrip_4w", syndrome: (SVC << 26 | 1 << 25, u32::MAX) };
/// A guest's hypercall and the server's answer.
pub const HYPERCALL: Path = Path { name: "exit_hvc_server", syndrome: (0x16 << 26, 0x3f << 26) };
/// A guest's read of a device and the server's answer.
pub const DEVICE_READ: Path = Path { name: "mmio_read_server", syndrome: (0x24 << 26, 0x3f << 26 | 1 << 6) };

/// The kernel as it lies in memory.
#[derive(Debug)]
pub struct Code {
    /// Where.
    pub base: u64,
    /// What.
    pub bytes: Vec<u8>,
}

impl Code {
    fn word(&self, pc: u64) -> Option<u32> {
        let at = usize::try_from(pc.checked_sub(self.base)?).ok()?;
        Some(u32::from_le_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }
}

/// Runs an emulator with these arguments until every path was seen often enough, or it ends.
pub fn paths(arguments: &[String], code: &Code, paths: &[Path]) -> Result<Vec<Figure>, Failure> {
    let mut arguments = arguments.to_vec();
    let range = format!("{:#x}+{:#x}", code.base, code.bytes.len());
    arguments.extend(["-accel", "tcg,one-insn-per-tb=on", "-d", "exec,nochain,int", "-dfilter", &range].map(String::from));
    let emulator = Emulator::start(&arguments)?;
    let deadline = Some(Instant::now() + LIMIT);
    let (mut trips, mut rest) = (Trips::of(code, paths), Vec::new());
    while !trips.is_enough() {
        match emulator.next(deadline) {
            Event::Complaint(bytes) => rest = trips.take(rest, &bytes),
            Event::Serial(_) | Event::Quiet => {}
            Event::Late | Event::Closed => break,
        }
    }
    Ok(trips.figures())
}

/// The trace as trips.
struct Trips<'a> {
    code: &'a Code,
    paths: &'a [Path],
    /// How often each path had which shape.
    shapes: Vec<HashMap<Special, u32>>,
    /// The trip into the kernel that goes on: its syndrome and what it did until now.
    now: Option<(u32, Special)>,
    /// The trip before it.
    before: Option<(u32, Special)>,
}

impl<'a> Trips<'a> {
    fn of(code: &'a Code, paths: &'a [Path]) -> Trips<'a> {
        Trips { code, paths, shapes: vec![HashMap::new(); paths.len()], now: None, before: None }
    }

    /// Takes bytes of the trace after those that `rest` kept; back comes the line that is not whole yet.
    fn take(&mut self, mut rest: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
        rest.extend_from_slice(bytes);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        String::from_utf8_lossy(&rest[..whole]).lines().for_each(|line| self.line(line));
        rest.split_off(whole)
    }

    fn line(&mut self, line: &str) {
        if line.starts_with("Trace ") {
            let pc = line.split('/').nth(1).and_then(|pc| u64::from_str_radix(pc, 16).ok());
            if let (Some((_, special)), Some(word)) = (&mut self.now, pc.and_then(|pc| self.code.word(pc))) {
                special.add(word);
            }
        } else if line.starts_with("Taking exception") {
            // An interrupt has no syndrome and answers nothing.
            self.finish();
            self.now = Some((0, Special::default()));
        } else if let Some(syndrome) = line.strip_prefix("...with ESR ") {
            let word = syndrome.rsplit("0x").next().and_then(|word| u32::from_str_radix(word.trim(), 16).ok());
            self.now = word.map(|word| (word, Special::default()));
        } else if line.starts_with("Exception return") {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(trip) = self.now.take() else { return };
        if let (Some(first), (REPLY, answer)) = (self.before, trip) {
            for (path, shapes) in self.paths.iter().zip(&mut self.shapes) {
                let (value, mask) = path.syndrome;
                if first.0 & mask == value {
                    *shapes.entry(first.1.sum(answer)).or_default() += 1;
                }
            }
        }
        self.before = Some(trip);
    }

    fn is_enough(&self) -> bool {
        self.shapes.iter().all(|shapes| shapes.values().any(|count| *count >= ENOUGH))
    }

    fn figures(&self) -> Vec<Figure> {
        let most = |shapes: &HashMap<Special, u32>| {
            let most = shapes.iter().max_by_key(|(shape, count)| (**count, shape.writes));
            most.map(|(shape, _)| *shape)
        };
        let each = self.paths.iter().zip(&self.shapes).filter_map(|(path, shapes)| Some(most(shapes)?.figures(path.name)));
        each.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_told_apart() {
        let mut special = Special::default();
        // msr elr_el2; msr daifset; mrs esr_el2; isb; dsb ish; tlbi vmalle1; then dmb ish, hint, dc zva, add: none of them.
        for word in [
            0xd51c_4020, 0xd503_4fdf, 0xd53c_5200, 0xd503_3fdf, 0xd503_3b9f, 0xd508_871f, 0xd503_3bbf, 0xd503_201f, 0xd50b_7420,
            0x9100_0400,
        ] {
            special.add(word);
        }
        assert_eq!(special, Special { writes: 2, reads: 1, isb: 1, dsb: 1, tlbi: 1 });
    }

    #[test]
    fn a_call_and_its_reply_are_added_up_and_other_trips_are_not() {
        let words = [0xd51c_4020u32, 0xd53c_5200, 0xd503_3fdf];
        let code = Code { base: 0x1000, bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect() };
        let trip = |syndrome: &str, pc: u64| {
            format!(
                "Taking exception 2 [SVC] on CPU 0\n...with ESR 0x15/{syndrome}\nTrace 0: 0x7f [00000000/{pc:016x}/00/ff]\n\
                 Exception return from AArch64 EL2 to AArch64 EL0 PC 0x0\nTrace 0: 0x7f [00000000/0000000000001008/00/ff]\n"
            )
        };
        let trace = [trip("0x56000000", 0x1000), trip("0x56000001", 0x1004), trip("0x56000005", 0x1000), trip("0x56000001", 0x1000)];
        let paths = [CALL];
        let mut trips = Trips::of(&code, &paths);
        let rest = trace.concat().bytes().fold(Vec::new(), |rest, byte| trips.take(rest, &[byte]));
        assert!(rest.is_empty());
        assert_eq!(trips.figures(), Special { writes: 1, reads: 1, ..Special::default() }.figures("ipc_roundtrip_4w"));
    }
}
