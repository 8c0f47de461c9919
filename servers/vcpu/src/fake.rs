// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel made of memory for this crate's tests: registers, lines and guest memory it holds; operations it records.

use crate::boot::Payload;
use crate::pl011::{Sent, Wire};
use crate::server::Outside;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use trellis_idl::interface::ATTACH;
use trellis_idl::kernel::{Fact, LineField, Op, Refusal, VcpuRegister, WORDS};
use trellis_idl::layout::slot;
use trellis_idl::wire::ToRoot;
use trellis_runtime::System;
use trellis_runtime::memory::Registers;

/// First byte of guest memory.
pub const MEMORY: u64 = 0x4000_0000;
const MEMORY_BYTES: usize = 1 << 20;

#[derive(Default)]
pub struct State {
    pub registers: HashMap<(u64, u64), u64>,
    /// By vCPU (private lines; 0 for the guest's), field, block of 32.
    pub lines: HashMap<(u64, u64, u64), u32>,
    pub priorities: HashMap<(u64, u64), u32>,
    /// Where guest-wide lines are; those that are not here are with vCPU 0.
    pub targets: HashMap<u64, u64>,
    /// Lines that cannot leave their vCPU just now.
    pub active: HashSet<u64>,
    /// Senders of pending software interrupts, by vCPU and line.
    pub senders: HashMap<(u64, u64), u8>,
    pub forwards: bool,
    pub running: HashSet<u64>,
    /// What traps in each vCPU by order.
    pub traps: HashMap<u64, u64>,
    pub memory: Vec<u8>,
    pub now: u64,
    pub id_registers: HashMap<u64, u64>,
    pub done: Vec<(Op, [u64; 6])>,
    pub calls: Vec<(u64, [u64; WORDS])>,
    pub call_answer: u64,
    pub refuse: Option<(Op, Refusal)>,
}

/// The kernel.
pub struct Fake {
    pub state: Mutex<State>,
    vcpus: u64,
}

impl Fake {
    pub fn new(vcpus: u64) -> Fake {
        let state = State { memory: vec![0; MEMORY_BYTES], ..State::default() };
        Fake { state: Mutex::new(state), vcpus }
    }

    pub fn register(&self, vcpu: u64, register: VcpuRegister) -> u64 {
        self.general(vcpu, register as u64)
    }

    pub fn general(&self, vcpu: u64, number: u64) -> u64 {
        self.state.lock().unwrap().registers.get(&(vcpu, number)).copied().unwrap_or(0)
    }

    pub fn set(&self, vcpu: u64, number: u64, value: u64) {
        self.state.lock().unwrap().registers.insert((vcpu, number), value);
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        let at = (address - MEMORY) as usize;
        self.state.lock().unwrap().memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// One bit of a line.
    pub fn line(&self, vcpu: u64, field: LineField, line: u64) -> bool {
        let owner = if line < 32 { vcpu } else { 0 };
        let state = self.state.lock().unwrap();
        state.lines.get(&(owner, field as u64, line & !31)).copied().unwrap_or(0) >> (line & 31) & 1 == 1
    }

    pub fn priority(&self, vcpu: u64, line: u64) -> u8 {
        let owner = if line < 32 { vcpu } else { 0 };
        let state = self.state.lock().unwrap();
        (state.priorities.get(&(owner, line & !3)).copied().unwrap_or(0) >> (8 * (line & 3))) as u8
    }

    pub fn count(&self, op: Op) -> usize {
        self.state.lock().unwrap().done.iter().filter(|done| done.0 == op).count()
    }

    fn vcpu(&self, slot: u64) -> Result<u64, Refusal> {
        slot.checked_sub(slot::VCPU).filter(|index| *index < self.vcpus).ok_or(Refusal::NoCapability)
    }
}

fn owner(vcpu: u64, first: u64) -> u64 {
    if first < 32 { vcpu } else { 0 }
}

fn masked(old: u32, which: u64, values: u64) -> u32 {
    old & !(which as u32) | values as u32 & which as u32
}

impl System for Fake {
    fn invoke(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::VcpuLaunch {
            // Long enough for others to come between: races are looked for here.
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        let mut guard = self.state.lock().unwrap();
        let state = &mut *guard;
        state.done.push((op, a));
        if let Some((refused, refusal)) = state.refuse && refused == op {
            return Err(refusal);
        }
        match op {
            Op::Clock => return Ok([state.now, 1000, 0]),
            Op::Signal | Op::Yield => return Ok([0; 3]),
            Op::Fact => {
                assert_eq!(a[1], Fact::IdRegister as u64);
                return Ok([0, state.id_registers.get(&a[2]).copied().unwrap_or(0), 0]);
            }
            Op::GuestSwap => {
                assert_eq!(a[0], slot::GUEST);
                let (size, at) = (a[1] >> 56, (a[1] & u64::MAX >> 8) - MEMORY);
                let place = &mut state.memory[at as usize..at as usize + (1 << size)];
                let bytes = |words: [u64; 2]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
                let mut found = [0; 16];
                found[..place.len()].copy_from_slice(place);
                let same = place == &bytes([a[2], a[3]])[..1 << size];
                if same {
                    place.copy_from_slice(&bytes([a[4], a[5]])[..1 << size]);
                }
                let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().expect("eight"));
                return Ok([same.into(), word(0), word(8)]);
            }
            _ => {}
        }
        let vcpu = self.vcpu(a[0])?;
        match op {
            Op::VcpuGet => Ok([0, state.registers.get(&(vcpu, a[1])).copied().unwrap_or(0), 0]),
            Op::VcpuSet => {
                state.registers.insert((vcpu, a[1]), a[2]);
                Ok([0; 3])
            }
            Op::VcpuReset => {
                state.registers.retain(|(owner, _), _| *owner != vcpu);
                Ok([0; 3])
            }
            Op::VcpuLaunch => {
                if !state.running.insert(vcpu) {
                    return Err(Refusal::BadState);
                }
                state.registers.retain(|(owner, _), _| *owner != vcpu);
                let reset = [(VcpuRegister::Pstate, 0x3c5), (VcpuRegister::Vmpidr, 0x8000_0000 | vcpu)];
                let given = [(VcpuRegister::Pc, a[1]), (VcpuRegister::X0, a[2])];
                state.registers.extend(reset.into_iter().chain(given).map(|(register, value)| ((vcpu, register as u64), value)));
                Ok([0; 3])
            }
            Op::VcpuStart if !state.running.insert(vcpu) => Err(Refusal::BadState),
            Op::VcpuStop => {
                state.running.remove(&vcpu);
                Ok([0; 3])
            }
            Op::VcpuTraps if state.running.contains(&vcpu) => Err(Refusal::BadState),
            Op::VcpuTraps => {
                state.traps.insert(vcpu, a[1]);
                Ok([0; 3])
            }
            Op::VcpuStart | Op::VcpuException => Ok([0; 3]),
            Op::LinesWrite if a[5] != 0 => {
                assert_eq!((a[1], a[2], a[3] >> 16), (LineField::Pending as u64, 0, 0));
                for line in (0..16).filter(|line| a[3] >> line & 1 == 1) {
                    let senders = state.senders.entry((vcpu, line)).or_default();
                    let bit = 1 << (a[5] - 1);
                    *senders = if a[4] >> line & 1 == 1 { *senders | bit } else { *senders & !bit };
                }
                Ok([0; 3])
            }
            Op::LinesRead if a[3] != 0 => {
                let of = |line: &u64| state.senders.get(&(vcpu, *line)).is_some_and(|s| s >> (a[3] - 1) & 1 == 1);
                Ok([(0..16).filter(of).fold(0, |all, line| all | 1 << line), 0, 0])
            }
            Op::LinesWrite => {
                assert!(LineField::from_number(a[1]).is_some() && a[2].is_multiple_of(32) && a[2] < 128);
                assert!(a[3] <= u32::MAX.into() && a[4] <= u32::MAX.into());
                let word = state.lines.entry((owner(vcpu, a[2]), a[1], a[2])).or_default();
                *word = masked(*word, a[3], a[4]);
                Ok([0; 3])
            }
            Op::LinesRead => {
                assert!(LineField::from_number(a[1]).is_some() && a[2].is_multiple_of(32) && a[2] < 128);
                Ok([state.lines.get(&(owner(vcpu, a[2]), a[1], a[2])).copied().unwrap_or(0).into(), 0, 0])
            }
            Op::LinesPriority => {
                assert!(a[1].is_multiple_of(4) && a[1] < 128 && a[3] < 16);
                let lanes = (0..4).filter(|i| a[3] >> i & 1 == 1).fold(0, |all, i| all | 0xff << (8 * i));
                let word = state.priorities.entry((owner(vcpu, a[1]), a[1])).or_default();
                *word = masked(*word, lanes, a[2]);
                Ok([0; 3])
            }
            Op::LinesPriorityRead => {
                assert!(a[1].is_multiple_of(4) && a[1] < 128);
                Ok([state.priorities.get(&(owner(vcpu, a[1]), a[1])).copied().unwrap_or(0).into(), 0, 0])
            }
            Op::LineTake => {
                assert!((32..128).contains(&a[1]));
                assert_eq!(state.targets.get(&a[1]).copied().unwrap_or(0), vcpu, "line {} is not there", a[1]);
                if state.active.contains(&a[1]) { Err(Refusal::BadState) } else { Ok([a[1] << 8, 0, 0]) }
            }
            Op::LineTarget => {
                assert!((32..128).contains(&a[1]));
                assert_eq!(a[2], a[1] << 8, "with the state that came");
                state.targets.insert(a[1], vcpu);
                Ok([0; 3])
            }
            Op::LinesEnable => {
                state.forwards = a[1] == 1;
                Ok([0; 3])
            }
            _ => panic!("nobody should ask for {op:?}"),
        }
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        if words[0] == ATTACH {
            // p2m means the same, whatever it is.
            return Ok(words);
        }
        let mut state = self.state.lock().unwrap();
        state.calls.push((portal, words));
        let mut answer = [0; WORDS];
        answer[0] = state.call_answer;
        Ok(answer)
    }

    fn wait(&self, _mask: u64, _deadline: u64) -> u64 {
        0
    }

    fn read_guest(&self, guest: u64, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        assert_eq!(guest, slot::GUEST);
        let state = self.state.lock().unwrap();
        let Some(start) = address.checked_sub(MEMORY) else { return Ok(0) };
        let from = state.memory.get(start as usize..).unwrap_or_default();
        let count = from.len().min(bytes.len());
        bytes[..count].copy_from_slice(&from[..count]);
        Ok(count as u64)
    }

    fn write_guest(&self, guest: u64, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        assert_eq!(guest, slot::GUEST);
        assert!(bytes.len() <= 64 << 10);
        let mut state = self.state.lock().unwrap();
        let start = (address - MEMORY) as usize;
        let Some(to) = state.memory.get_mut(start..start + bytes.len()) else { return Ok(0) };
        to.copy_from_slice(bytes);
        Ok(bytes.len() as u64)
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// The outside: what is typed, what was sent, what root was told.
#[derive(Default)]
pub struct Desk {
    pub typed: Mutex<VecDeque<u8>>,
    pub sent: Mutex<Vec<u8>>,
    /// Bytes that still fit; none = any number.
    pub room: Mutex<Option<usize>>,
    pub reports: Mutex<Vec<ToRoot>>,
    pub payload: Vec<u8>,
    pub sheets: HashMap<usize, Sheet>,
}

/// A page of a function of PCI: words, and those that were written, in order. Nobody answers without.
#[derive(Clone, Default)]
pub struct Sheet(Option<Arc<Mutex<(Vec<u32>, Vec<(usize, u32)>)>>>);

impl Sheet {
    pub fn new(words: &[(usize, u32)]) -> Sheet {
        let mut all = vec![0; 1024];
        words.iter().for_each(|(at, word)| all[at / 4] = *word);
        Sheet(Some(Arc::new(Mutex::new((all, Vec::new())))))
    }

    /// What was written since this was asked.
    pub fn written(&self) -> Vec<(usize, u32)> {
        self.0.as_ref().map(|page| std::mem::take(&mut page.lock().unwrap().1)).unwrap_or_default()
    }

    /// The device changes a word itself.
    pub fn set(&self, at: usize, word: u32) {
        self.0.as_ref().expect("a page").lock().unwrap().0[at / 4] = word;
    }
}

impl Registers for Sheet {
    fn read(&self, offset: usize) -> u32 {
        assert_eq!(offset % 4, 0, "registers are words");
        self.0.as_ref().map_or(u32::MAX, |page| page.lock().unwrap().0.get(offset / 4).copied().unwrap_or(0))
    }

    fn write(&self, offset: usize, value: u32) {
        assert_eq!(offset % 4, 0, "registers are words");
        let Some(page) = &self.0 else { return };
        let (words, written) = &mut *page.lock().unwrap();
        written.push((offset, value));
        if let Some(word) = words.get_mut(offset / 4) {
            *word = value;
        }
    }
}

impl Wire for Desk {
    fn send(&self, byte: u8) -> Sent {
        let mut room = self.room.lock().unwrap();
        match &mut *room {
            Some(0) => return Sent::Full,
            Some(left) => *left -= 1,
            None => {}
        }
        self.sent.lock().unwrap().push(byte);
        if byte == b'\n' { Sent::Wake } else { Sent::Quietly }
    }

    fn has_room(&self) -> bool {
        *self.room.lock().unwrap() != Some(0)
    }

    fn has_input(&self) -> bool {
        !self.typed.lock().unwrap().is_empty()
    }

    fn receive(&self) -> Option<u8> {
        self.typed.lock().unwrap().pop_front()
    }
}

impl Payload for Desk {
    fn part(&self, offset: u64, bytes: u64) -> Option<&[u8]> {
        self.payload.get(offset as usize..(offset + bytes) as usize)
    }
}

impl Outside for Desk {
    type Page = Sheet;

    fn page(&self, place: usize) -> Sheet {
        self.sheets.get(&place).cloned().unwrap_or_default()
    }

    fn report(&self, _system: &impl System, report: &ToRoot) -> bool {
        self.reports.lock().unwrap().push(report.clone());
        true
    }
}

/// Devices as plain memory of one page, with a record of accesses.
#[derive(Default)]
pub struct Scratch {
    pub words: RefCell<HashMap<u64, u64>>,
    pub seen: RefCell<Vec<(u64, u8, Option<u64>)>>,
}

impl crate::access::Devices for Scratch {
    fn access(&self, address: u64, bytes: u8, write: Option<u64>) -> Option<u64> {
        let write = write.map(|value| value & crate::bus::bits(bytes));
        self.seen.borrow_mut().push((address, bytes, write));
        Some(self.words.borrow().get(&address).copied().unwrap_or(0) & crate::bus::bits(bytes))
    }
}
