// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel and a board for tests: capability tables, runs, maps; calls are answered by a script.

use crate::Board;
use crate::build::STORED;
use crate::events::Events;
use crate::rules::Kepts;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use trellis_idl::control::Control;
use trellis_idl::interface::ATTACH;
use trellis_idl::kernel::{Access, Op, PAGE, PAUSE, Refusal, Rights, Seat, WORDS};
use trellis_idl::layout::{PROGRAM, ring, root_slot};
use trellis_idl::plan::*;
use trellis_idl::trace::{MOST_READ, RECORDS, Record, TraceKind, Who};
use trellis_idl::wire::{MonitorOp, MonitorState, to_answer};
use trellis_runtime::{RingPage, Shared, System};

/// Pages of the payload.
const PAYLOAD_PAGES: u64 = 64;
/// Machine page of the first free page: not aligned to anything.
const MEMORY_BASE: u64 = 0x40123;
const MEMORY_PAGES: u64 = 0x40000;

/// What a capability names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Object {
    Domain(usize),
    /// Domain and number in it.
    Thread(usize, usize),
    /// Thread and badge.
    Portal(usize, usize, u64),
    /// Thread and bits.
    Signal(usize, usize, u64),
    Run(usize),
    Guest(usize),
    Vcpu(usize),
    Line(u64),
    /// Guest and number.
    Session(usize, u64),
    System,
}

/// Something mapped: address, run, first page in it, pages, access.
pub type Mapped = (u64, usize, u64, u64, u64);

#[derive(Clone, Debug, Default)]
pub struct FakeDomain {
    pub rank: u64,
    pub table: BTreeMap<u64, (Object, Rights)>,
    pub maps: Vec<Mapped>,
    /// Priority and budget of each thread.
    pub threads: Vec<(u64, u64)>,
    /// Entry, stack and first word of each thread that was started.
    pub started: Vec<(u64, u64, u64)>,
    /// Threads with a supervisor's bits.
    pub supervised: BTreeMap<usize, u64>,
    /// Microseconds that each may take for an answer.
    pub patience: Vec<u64>,
    /// Where the floating-point registers of its threads are saved.
    pub float: BTreeMap<usize, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    pages: u64,
    parent: Option<usize>,
}

/// Who watches a guest.
#[derive(Clone, Debug, Default)]
pub struct FakeSession {
    pub epoch: u64,
    /// As a number of [`trellis_idl::kernel::Seat`].
    pub seat: u64,
    /// vCPUs whose event is owed.
    pub owed: u64,
    /// Who sits where: by vCPU and seat.
    pub places: BTreeMap<(u64, u64), Object>,
    /// Every seat that was committed, in order.
    pub commits: Vec<u64>,
    /// The seats it had when a vCPU was settled.
    pub settled: Vec<(u64, u64)>,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<(usize, u64), FakeSession>,
    domains: Vec<FakeDomain>,
    runs: Vec<Run>,
    guests: usize,
    vcpus: Vec<BTreeMap<u64, (Object, u64, u64)>>,
    windows: Vec<Vec<(u64, u64, u64)>>,
    line: Option<(u64, Object)>,
    /// The trace of every CPU, and the bytes that a read put into the buffer.
    noted: Vec<Record>,
    read: Vec<u8>,
    log: Vec<(Op, [u64; 6])>,
    /// Pauses that find an exit being served.
    serving: u32,
    /// Records that each read of the trace leaves there.
    noisy: u64,
    /// Who pauses each vCPU: a bit for each badge.
    paused: BTreeMap<Object, u64>,
}

/// The kernel.
pub struct Fake {
    state: RefCell<State>,
    /// State word of each (domain, thread) that stopped.
    pub stopped: RefCell<BTreeMap<(usize, usize), u64>>,
    /// What the next waits give.
    pub bits: RefCell<VecDeque<u64>>,
    pub waited: RefCell<Vec<(u64, u64)>>,
    /// Calls: what the portal is, and the first word.
    pub calls: RefCell<Vec<(Object, u64)>>,
    /// The next call to this domain is refused.
    pub refuse_calls: Cell<Option<usize>>,
    /// So many of the next calls to monitors are refused.
    pub refuse_monitors: Cell<usize>,
    /// The next call of this operation to this domain is refused so.
    pub fail: Cell<Option<(usize, u64, Refusal)>>,
    /// This domain has another interface than root expects.
    pub disagrees: Cell<Option<usize>>,
}

impl Fake {
    pub fn new() -> Fake {
        let mut state = State::default();
        let mut root = FakeDomain { rank: 4, ..FakeDomain::default() };
        state.runs.push(Run { first: 0x100, pages: PAYLOAD_PAGES, parent: None });
        state.runs.push(Run { first: MEMORY_BASE, pages: MEMORY_PAGES, parent: None });
        state.runs.push(Run { first: 0x9000, pages: 1, parent: None });
        state.runs.push(Run { first: 0x9010, pages: 1, parent: None });
        root.threads.push((240, 0));
        for (slot, object) in [
            (root_slot::DOMAIN, Object::Domain(0)),
            (root_slot::THREAD, Object::Thread(0, 0)),
            (root_slot::SYSTEM, Object::System),
            (root_slot::PAYLOAD, Object::Run(0)),
            (root_slot::MEMORY, Object::Run(1)),
            (root_slot::DEVICES, Object::Run(2)),
            (root_slot::DEVICES + 1, Object::Run(3)),
        ] {
            root.table.insert(slot, (object, Rights::ALL));
        }
        state.domains.push(root);
        Fake {
            state: RefCell::new(state),
            stopped: RefCell::default(),
            bits: RefCell::default(),
            waited: RefCell::default(),
            calls: RefCell::default(),
            refuse_calls: Cell::new(None),
            refuse_monitors: Cell::new(0),
            fail: Cell::new(None),
            disagrees: Cell::new(None),
        }
    }

    /// CPUs note this.
    pub fn note(&self, record: Record) {
        self.state.borrow_mut().noted.push(record);
    }

    /// Free memory's parts: machine page and pages.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        self.state.borrow().runs.iter().filter(|run| run.parent == Some(1)).map(|run| (run.first, run.pages)).collect()
    }

    pub fn memory_end(&self) -> u64 {
        MEMORY_BASE + MEMORY_PAGES
    }

    pub fn check_runs_do_not_overlap(&self) {
        let mut runs = self.runs();
        runs.sort();
        assert!(runs.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{runs:x?}");
    }

    /// Domain `index`: 0 is root, then the servers in order.
    pub fn domain(&self, index: usize) -> FakeDomain {
        self.state.borrow().domains[index].clone()
    }

    /// Session `number` of a guest.
    pub fn session(&self, guest: usize, number: u64) -> FakeSession {
        self.state.borrow().sessions[&(guest, number)].clone()
    }

    /// These vCPUs of a guest wait for somebody to be asked, until they are settled.
    pub fn owe(&self, guest: usize, number: u64, vcpus: u64) {
        self.state.borrow_mut().sessions.get_mut(&(guest, number)).expect("a session").owed = vcpus;
    }

    /// Where this class of a vCPU's exits goes: portal, groups, badge.
    pub fn route(&self, vcpu: usize, class: u64) -> (Object, u64, u64) {
        self.state.borrow().vcpus[vcpu][&class]
    }

    pub fn windows(&self, vcpu: usize) -> Vec<(u64, u64, u64)> {
        self.state.borrow().windows[vcpu].clone()
    }

    pub fn line(&self) -> Option<(u64, Object)> {
        self.state.borrow().line
    }

    /// Operations of this kind so far.
    pub fn count(&self, op: Op) -> usize {
        self.state.borrow().log.iter().filter(|(done, _)| *done == op).count()
    }

    /// Each read of the trace notes so many records itself, as that of another CPU does.
    pub fn notes_reads(&self, records: u64) {
        self.state.borrow_mut().noisy = records;
    }

    /// So many pauses find an exit being served.
    pub fn serve(&self, pauses: u32) {
        self.state.borrow_mut().serving = pauses;
    }

    /// Whoever has these badges pauses the vCPU in this slot of root's.
    pub fn pause(&self, slot: u64, badges: u64) {
        let mut state = self.state.borrow_mut();
        let vcpu = state.cap(slot).expect("a vCPU");
        *state.paused.entry(vcpu).or_default() |= badges;
    }

    /// Who pauses it.
    pub fn paused(&self, slot: u64) -> u64 {
        let state = self.state.borrow();
        state.paused.get(&state.cap(slot).expect("a vCPU")).copied().unwrap_or(0)
    }

    /// Pauses of vCPUs that were begun (`VcpuStop`) or ended (`VcpuStart`), by their slots; forgotten afterwards.
    pub fn take_pauses(&self) -> Vec<(Op, u64)> {
        let mut state = self.state.borrow_mut();
        // Whoever asks who pauses it ends nobody's.
        let is_pause = |(op, a): &(Op, [u64; 6])| matches!(op, Op::VcpuStop | Op::VcpuStart) && a[1] == PAUSE && a[2] != 1 << 15;
        let pauses = state.log.iter().filter(|entry| is_pause(entry)).map(|(op, a)| (*op, a[0])).collect();
        state.log.retain(|entry| !is_pause(entry));
        pauses
    }

    /// Machine page and pages of a run.
    pub fn run(&self, run: usize) -> (u64, u64) {
        let run = self.state.borrow().runs[run];
        (run.first, run.pages)
    }
}

impl State {
    fn cap(&self, slot: u64) -> Result<Object, Refusal> {
        self.domains[0].table.get(&slot).map(|(object, _)| *object).ok_or(Refusal::NoCapability)
    }

    fn put(&mut self, slot: u64, object: Object) -> Result<[u64; 3], Refusal> {
        match self.domains[0].table.insert(slot, (object, Rights::ALL)) {
            None if slot != 0 => Ok([0; 3]),
            _ => Err(Refusal::Occupied),
        }
    }

    fn domain(&mut self, slot: u64) -> Result<(usize, &mut FakeDomain), Refusal> {
        match self.cap(slot)? {
            Object::Domain(index) => Ok((index, &mut self.domains[index])),
            _ => Err(Refusal::WrongKind),
        }
    }

    fn thread(&self, slot: u64) -> Result<(usize, usize), Refusal> {
        match self.cap(slot)? {
            Object::Thread(domain, index) => Ok((domain, index)),
            _ => Err(Refusal::WrongKind),
        }
    }

    fn frames(&self, slot: u64) -> Result<usize, Refusal> {
        match self.cap(slot)? {
            Object::Run(index) => Ok(index),
            _ => Err(Refusal::WrongKind),
        }
    }

    fn session(&mut self, slot: u64) -> Result<&mut FakeSession, Refusal> {
        let Object::Session(guest, number) = self.cap(slot)? else { return Err(Refusal::WrongKind) };
        self.sessions.get_mut(&(guest, number)).ok_or(Refusal::Gone)
    }

    fn watch(&mut self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let portal = if op == Op::SessionPlace { Some(self.cap(a[3])?) } else { None };
        let session = self.session(a[0])?;
        match (op, portal) {
            (Op::SessionPlace, Some(portal @ Object::Portal(..))) => drop(session.places.insert((a[1], a[2]), portal)),
            (Op::SessionPlace, _) => return Err(Refusal::WrongKind),
            (Op::SessionCommit, _) if a[1] != session.epoch => return Err(Refusal::Gone),
            (Op::SessionCommit, _) => {
                (session.epoch, session.seat) = (session.epoch + 1, a[2]);
                session.commits.push(a[2]);
                return Ok([session.epoch, 0, 0]);
            }
            (Op::SessionSettle, _) => {
                session.settled.push((a[1], session.seat));
                // While nobody is asked it stays owed.
                session.owed &= if session.seat == Seat::Held as u64 { u64::MAX } else { !(1 << a[1]) };
            }
            _ => return Ok([session.epoch, session.seat, session.owed]),
        }
        Ok([0; 3])
    }

    /// A run's parts are its own again, and nobody has them.
    fn join(&mut self, run: usize) {
        let parts: Vec<usize> = (0..self.runs.len()).filter(|part| self.runs[*part].parent == Some(run)).collect();
        for part in parts {
            self.join(part);
            self.runs[part] = Run { pages: 0, parent: None, ..self.runs[part] };
            self.domains.iter_mut().for_each(|domain| domain.table.retain(|_, (object, _)| *object != Object::Run(part)));
        }
    }

    fn split(&mut self, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let parent = self.frames(a[0])?;
        let run = self.runs[parent];
        if a[2] == 0 || a[1] + a[2] > run.pages {
            return Err(Refusal::OutOfRange);
        }
        let part = Run { first: run.first + a[1], pages: a[2], parent: Some(parent) };
        let overlaps = |other: &Run| {
            other.parent == Some(parent) && other.first < part.first + part.pages && part.first < other.first + other.pages
        };
        if self.runs.iter().any(overlaps) {
            return Err(Refusal::Occupied);
        }
        self.runs.push(part);
        self.put(a[3], Object::Run(self.runs.len() - 1))
    }

    fn map(&mut self, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let run = self.frames(a[2])?;
        let (pages, payload) = (self.runs[run].pages, run == 0 || self.runs[run].parent == Some(0));
        if !a[1].is_multiple_of(PAGE) || a[4] == 0 || a[3] + a[4] > pages {
            return Err(Refusal::OutOfRange);
        }
        let access = Access(a[5]);
        let wrong = a[5] & !7 != 0 || access.covers(Access::WRITE.with(Access::EXECUTE));
        if wrong || (payload && access.covers(Access::WRITE)) {
            return Err(Refusal::BadArgument);
        }
        let (_, domain) = self.domain(a[0])?;
        let end = a[1] + a[4] * PAGE;
        if domain.maps.iter().any(|(at, _, _, pages, _)| *at < end && a[1] < at + pages * PAGE) {
            return Err(Refusal::Occupied);
        }
        domain.maps.push((a[1], run, a[3], a[4], a[5]));
        Ok([0; 3])
    }

    fn grant(&mut self, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let object = self.cap(a[0])?;
        let (_, domain) = self.domain(a[1])?;
        match domain.table.insert(a[2], (object, Rights(a[3] as u8))) {
            None => Ok([0; 3]),
            Some(_) => Err(Refusal::Occupied),
        }
    }

    fn perform(&mut self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        match op {
            Op::FramesInfo => {
                let run = self.runs[self.frames(a[0])?];
                Ok([run.pages, run.first, 0])
            }
            Op::FramesSplit => self.split(a),
            Op::FramesReclaim => {
                let name = Object::Run(self.frames(a[0])?);
                self.join(self.frames(a[0])?);
                self.domains[1..].iter_mut().for_each(|domain| domain.table.retain(|_, (object, _)| *object != name));
                Ok([0; 3])
            }
            Op::DomainCreate => {
                self.frames(a[0])?;
                self.domains.push(FakeDomain { rank: a[2], ..FakeDomain::default() });
                self.put(a[3], Object::Domain(self.domains.len() - 1))
            }
            Op::DomainMap => self.map(a),
            Op::DomainUnmap => {
                let (_, domain) = self.domain(a[0])?;
                domain.maps.retain(|(at, ..)| *at != a[1]);
                Ok([0; 3])
            }
            Op::ThreadCreate => {
                let (index, domain) = self.domain(a[0])?;
                if !domain.maps.iter().any(|(at, _, _, pages, _)| (*at..at + pages * PAGE).contains(&a[4])) {
                    return Err(Refusal::NotMapped);
                }
                domain.threads.push((a[2], a[5]));
                let number = domain.threads.len() - 1;
                self.put(a[3], Object::Thread(index, number))
            }
            Op::ThreadStart => {
                let (domain, index) = self.thread(a[0])?;
                assert_eq!(self.domains[domain].started.len(), index);
                self.domains[domain].started.push((a[1], a[2], a[3]));
                Ok([0; 3])
            }
            Op::ThreadSupervise => {
                let (domain, index) = self.thread(a[0])?;
                let Object::Signal(0, 0, bits) = self.cap(a[1])? else { return Err(Refusal::WrongKind) };
                self.domains[domain].supervised.insert(index, bits);
                let patience = &mut self.domains[domain].patience;
                patience.resize(patience.len().max(index + 1), 0);
                patience[index] = a[2];
                Ok([0; 3])
            }
            Op::ThreadFloat => {
                let ((domain, index), run) = (self.thread(a[0])?, self.frames(a[1])?);
                assert_eq!(self.runs[run].pages, 1);
                assert_eq!(self.domains[domain].float.insert(index, run), None);
                Ok([0; 3])
            }
            Op::PortalCreate => {
                let (domain, index) = self.thread(a[0])?;
                self.put(a[2], Object::Portal(domain, index, a[1]))
            }
            Op::SignalCreate => {
                let (domain, index) = self.thread(a[0])?;
                self.put(a[2], Object::Signal(domain, index, a[1]))
            }
            Op::Grant => self.grant(a),
            Op::GuestCreate => {
                self.frames(a[0])?;
                self.guests += 1;
                self.put(a[2], Object::Guest(self.guests - 1))
            }
            Op::VcpuCreate => {
                self.vcpus.push(BTreeMap::new());
                self.windows.push(Vec::new());
                self.put(a[3], Object::Vcpu(self.vcpus.len() - 1))
            }
            Op::VcpuRoute => {
                let (Object::Vcpu(vcpu), portal) = (self.cap(a[0])?, self.cap(a[2])?) else { return Err(Refusal::WrongKind) };
                self.vcpus[vcpu].insert(a[1], (portal, a[3], a[4]));
                Ok([0; 3])
            }
            Op::VcpuWindow => {
                let Object::Vcpu(vcpu) = self.cap(a[0])? else { return Err(Refusal::WrongKind) };
                self.windows[vcpu].push((a[2], a[3], a[4]));
                Ok([0; 3])
            }
            Op::SessionCreate => {
                let Object::Guest(guest) = self.cap(a[0])? else { return Err(Refusal::WrongKind) };
                self.sessions.insert((guest, a[1]), FakeSession { seat: 2, ..FakeSession::default() });
                self.put(a[2], Object::Session(guest, a[1]))
            }
            Op::SessionPlace | Op::SessionCommit | Op::SessionSettle | Op::SessionInfo => self.watch(op, a),
            Op::LineCreate => self.put(a[2], Object::Line(a[1])),
            Op::LineBind => {
                let (Object::Line(line), signal) = (self.cap(a[0])?, self.cap(a[1])?) else { return Err(Refusal::WrongKind) };
                self.line = Some((line, signal));
                Ok([0; 3])
            }
            Op::Clock => Ok([1_000_000, 1_000_000_000, 0]),
            Op::Fact => Ok([0, 7, 0]),
            Op::TraceRead => {
                for _ in 0..self.noisy {
                    let what = TraceKind::Interrupt.with(0);
                    self.noted.push(Record { what, argument: 0, time: 999_999, who: Who::Nobody });
                }
                let noted = self.noted.len() as u64;
                let (from, next) = (a[2] % RECORDS, noted % RECORDS);
                let count = (next.wrapping_sub(from) % RECORDS).min(MOST_READ);
                // What stands at a place is the newest that was noted there.
                let at = |place: u64| {
                    let back = next.wrapping_sub(place).wrapping_sub(1) % RECORDS + 1;
                    noted.checked_sub(back).map(|index| self.noted[index as usize])
                };
                let words = (from..from + count).flat_map(|place| at(place % RECORDS).map_or([0; 4], |r| r.to_words()));
                self.read = words.flat_map(u64::to_le_bytes).collect();
                Ok([count, (from + count) % RECORDS, next])
            }
            Op::VcpuStart if a[1] == PAUSE => {
                let paused = self.paused.entry(self.cap(a[0])?).or_default();
                *paused &= !if a[2] == 0 { 1 } else { a[2] };
                Ok([*paused, 0, 0])
            }
            Op::VcpuStop if a[1] == PAUSE => {
                *self.paused.entry(self.cap(a[0])?).or_default() |= 1;
                self.serving = self.serving.saturating_sub(1);
                Ok([u64::from(self.serving > 0), 0, 0])
            }
            Op::Signal | Op::VcpuStop | Op::VcpuStart | Op::ThreadDestroy | Op::ViewOf => self.cap(a[0]).map(|_| [0; 3]),
            Op::GuestInfo => self.cap(a[0]).map(|_| [12, 1, 1]),
            Op::Revoke => {
                let object = self.cap(a[0])?;
                self.domains[1..].iter_mut().for_each(|domain| domain.table.retain(|_, (other, _)| *other != object));
                Ok([0; 3])
            }
            Op::Drop => self.domains[0].table.remove(&a[0]).map(|_| [0; 3]).ok_or(Refusal::NoCapability),
            Op::GuestDestroy | Op::DomainDestroy => {
                let object = self.cap(a[0])?;
                if let Object::Domain(index) = object {
                    self.domains[index] = FakeDomain::default();
                }
                self.domains.iter_mut().for_each(|domain| domain.table.retain(|_, (other, _)| *other != object));
                Ok([0; 3])
            }
            Op::SystemOff => Ok([0; 3]),
            other => panic!("{other:?}"),
        }
    }
}

impl System for Fake {
    fn invoke(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let mut state = self.state.borrow_mut();
        if op == Op::ThreadFault {
            let stopped = self.stopped.borrow().get(&state.thread(a[0])?).copied();
            let word = if a[1] == 0 { stopped.unwrap_or(0) } else { 0x100 + a[1] };
            return Ok([0, word, 0]);
        }
        state.log.push((op, a));
        state.perform(op, a)
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        let object = self.state.borrow().cap(portal)?;
        let Object::Portal(domain, ..) = object else { return Err(Refusal::WrongKind) };
        if words[0] == ATTACH {
            // Everybody agrees on whatever is asked, but for one.
            if let Some((whose, ATTACH, why)) = self.fail.get()
                && whose == domain
            {
                self.fail.set(None);
                return Err(why);
            }
            let disagrees = self.disagrees.get() == Some(domain);
            let mut answer = words;
            answer[0] = to_answer(if disagrees { Err(Refusal::Unsupported) } else { Ok(()) });
            return Ok(answer);
        }
        self.calls.borrow_mut().push((object, words[0]));
        let refused = self.refuse_monitors.get();
        if refused > 0 && self.state.borrow().domains[domain].rank == 3 {
            self.refuse_monitors.set(refused - 1);
            return Err(Refusal::Gone);
        }
        if self.refuse_calls.get() == Some(domain) {
            return Err(Refusal::Gone);
        }
        if let Some((whose, op, why)) = self.fail.get()
            && (whose, op) == (domain, words[0])
        {
            self.fail.set(None);
            return Err(why);
        }
        let mut answer = [0; WORDS];
        if self.state.borrow().domains[domain].rank == 3 && words[0] == MonitorOp::Export as u64 {
            let mut body = [0; 8];
            let state = MonitorState { version: 1, body: [7, 8, 9].into_iter().collect() };
            answer[1] = postcard::to_slice(&state, &mut body).expect("it fits").len() as u64;
            answer[2] = u64::from_le_bytes(body);
        }
        if self.state.borrow().domains[domain].rank == 3 && words[0] == MonitorOp::Add as u64 {
            // The number of the first rule that is added: one byte in postcard.
            (answer[1], answer[2]) = (1, FIRST_ADDED.into());
        }
        Ok(answer)
    }

    fn wait(&self, mask: u64, deadline: u64) -> u64 {
        self.waited.borrow_mut().push((mask, deadline));
        self.bits.borrow_mut().pop_front().unwrap_or(0) & mask
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        let mut buffer = [0; 4096];
        let state = self.state.borrow();
        buffer[..state.read.len()].copy_from_slice(&state.read);
        f(&mut buffer)
    }
}

/// Root's memory in a test.
#[derive(Clone, Copy)]
pub struct FakeBoard {
    payload: &'static [u8],
    rings: &'static [RingPage],
    /// What was written into the scratch window, wherever that was mapped.
    scratch: &'static RefCell<BTreeMap<u64, u8>>,
    events: &'static Shared<Events>,
    rules: &'static Shared<Kepts>,
}

/// What guest 1 sees of its functions whose messages it chooses.
fn bus(plan: &MessagePlan) -> Option<BusPlan> {
    let shown = |one: &FunctionPlan| ShownFunction {
        run: one.run,
        ranges: one.ranges.clone(),
        table: one.table,
        entries: one.messages,
        hidden: [DevicePages { page: 0xb000, pages: 2 }].into_iter().collect(),
        wire: None,
    };
    let functions: heapless::Vec<_, MAX_FUNCTIONS> = plan.functions.iter().filter(|one| one.chosen).map(shown).collect();
    (!functions.is_empty()).then_some(BusPlan { doorbell: plan.doorbell, first_line: 120, lines: 1, functions })
}

impl FakeBoard {
    /// A payload with the configuration of both vcpu servers where [`plan`] says.
    pub fn new() -> FakeBoard {
        FakeBoard::with(None)
    }

    /// The same; irqfwd gets this for messages.
    pub fn with(messages: Option<MessagePlan>) -> FakeBoard {
        let mut payload = vec![0; (PAYLOAD_PAGES * PAGE) as usize];
        for guest in 0..2u64 {
            let at = (vcpu_config(guest).offset) as usize;
            let loads = [part(0x20 + 2 * guest, 5000), part(0x24, 100)].map(|part| Load { part, address: 0x4000_0000 });
            let config = VcpuConfig {
                watchers: 0,
                guest: "g",
                vcpus: 1 + guest as u8,
                memory_base: 0x4000_0000,
                memory_bytes: 4 << 20,
                loads: loads.into_iter().collect(),
                entry: 0,
                x0: 0,
                gic: 3,
                aarch32: false,
                bus: messages.as_ref().filter(|_| guest == 1).and_then(bus),
            };
            let used = postcard::to_slice(&config, &mut payload[at + 8..]).unwrap().len() as u64;
            payload[at..at + 8].copy_from_slice(&used.to_le_bytes());
        }
        let sources = [(34, false), (40, true)].map(|(line, direct)| SourcePlan { guest: 1, line, guest_line: line as u8, edge: false, direct });
        let guests = [heapless::Vec::new(), [0, 0].into_iter().collect()];
        let config = IrqfwdConfig { guests: guests.into_iter().collect(), sources: sources.into_iter().collect(), messages };
        let at = IRQFWD_CONFIG.offset as usize;
        let used = postcard::to_slice(&config, &mut payload[at + 8..]).unwrap().len() as u64;
        payload[at..at + 8].copy_from_slice(&used.to_le_bytes());
        let space = SpacePlan { guest: 1, first: 0x4_0000, pages: 1024, doorbell: None, tables: 4 };
        let stream = StreamPlan { number: 0x10, guest: 1, protected: true, line: 7 };
        let (spaces, streams) = ([space].into_iter().collect(), [stream].into_iter().collect());
        let config = SmmuConfig { run: 2, lines: [106, 109], stream_bits: 6, pages: 9, spaces, streams };
        let at = SMMU_CONFIG.offset as usize;
        let used = postcard::to_slice(&config, &mut payload[at + 8..]).unwrap().len() as u64;
        payload[at..at + 8].copy_from_slice(&used.to_le_bytes());
        FakeBoard { payload: payload.leak(), rings: Vec::leak((0..128).map(|_| RingPage::new()).collect()), scratch: Box::leak(Box::default()), events: Box::leak(Box::new(Shared::new(Events::NONE))), rules: Box::leak(Box::new(Shared::new(Kepts::NONE))) }
    }
}

impl Board for FakeBoard {
    fn payload(&self, part: Part) -> Option<&'static [u8]> {
        let start = usize::try_from(part.offset).ok()?;
        self.payload.get(start..start.checked_add(part.bytes.try_into().ok()?)?)
    }

    fn scratch(&self, offset: u64, bytes: &[u8]) -> bool {
        self.scratch.borrow_mut().extend((offset..).zip(bytes.iter().copied()));
        (offset == 0 || offset >= STORED) && bytes.len() < 0x10000
    }

    fn scratch_read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let scratch = self.scratch.borrow();
        for (place, byte) in (offset..).zip(bytes) {
            *byte = scratch.get(&place).copied().unwrap_or(0);
        }
        true
    }

    fn events(&self) -> &'static Shared<Events> {
        self.events
    }

    fn rules(&self) -> &'static Shared<Kepts> {
        self.rules
    }

    fn ring(&self, index: usize) -> &'static RingPage {
        assert!(index <= ring::root_seen(MAX_MONITORS - 1, 1));
        &self.rings[index]
    }
}

fn part(page: u64, bytes: u64) -> Part {
    Part { offset: page * PAGE, bytes }
}

fn vcpu_config(guest: u64) -> Part {
    part(0x10 + guest, 200)
}

fn server(name: &'static str, role: Role, threads: usize, config: Part) -> ServerPlan<'static> {
    let segment = |part: Part, address, memory_bytes, access| Segment { part, address, memory_bytes, access };
    // Programs of one role are the same parts.
    let page = match role {
        Role::Console => 1,
        Role::P2m(_) => 4,
        Role::Vcpu(_) => 7,
        Role::Irqfwd => 0x1a,
        Role::Smmu => 0x34,
        Role::Monitor => 0x1d,
    };
    let segments = [
        segment(part(page, 5000), PROGRAM, 5000, 5),
        segment(part(page + 2, 100), PROGRAM + 0x2000, 9000, 3),
    ];
    ServerPlan {
        name,
        role,
        entry: PROGRAM,
        segments: segments.into_iter().collect(),
        cpus: core::iter::repeat_n(0, threads).collect(),
        table_pages: 16,
        slots: 64,
        config,
        float: false,
        swap: None,
    }
}

const IRQFWD_CONFIG: Part = Part { offset: 0x12 * PAGE, bytes: 200 };

/// The same; the second guest owns a device with two lines, one of them direct.
pub fn plan_with_device() -> Plan<'static> {
    let mut plan = plan();
    plan.servers.push(server("irqfwd", Role::Irqfwd, 2, IRQFWD_CONFIG)).unwrap();
    plan.guests[1].devices.push(1).unwrap();
    plan
}

/// The same, and the SMMU keeps the device to the guest's memory.
pub fn plan_with_shield() -> Plan<'static> {
    let mut plan = plan_with_device();
    plan.servers.push(server("smmu", Role::Smmu, 1, SMMU_CONFIG)).unwrap();
    plan
}

const SMMU_CONFIG: Part = Part { offset: 0x38 * PAGE, bytes: 200 };

/// Root's, the console's and both guests' servers come first.
pub const MONITOR: usize = 5;
/// What it is called.
pub const MONITOR_NAME: &str = "watchdog";

/// The same, and the host may put another one into the monitor's place.
pub fn plan_with_swap(guests: &[usize], swap: SwapPlan) -> Plan<'static> {
    let mut plan = plan_with_monitor(guests, Without::Hold);
    plan.servers[MONITOR].swap = Some(swap);
    plan.control = Control::Full;
    plan
}

/// The same as [`plan`]; a monitor watches the second guest, or both.
pub fn plan_with_monitor(guests: &[usize], without: Without) -> Plan<'static> {
    let mut plan = plan();
    plan.servers.push(server(MONITOR_NAME, Role::Monitor, 2, part(0xd, 30))).unwrap();
    plan.servers[MONITOR].slots = 300;
    for (place, guest) in (0..).zip(guests) {
        let watcher = WatcherPlan { server: MONITOR as u8, place, deadline_us: 50_000, without, reads: place == 0, writes: false, sets: place == 0, pauses: place != 0 };
        plan.guests[*guest].watchers.push(watcher).unwrap();
    }
    plan
}

/// Console and two guests, with one and two vCPUs.
pub fn plan() -> Plan<'static> {
    let servers = [
        server("console", Role::Console, 1, part(0xa, 30)),
        server("p2m.a", Role::P2m(0), 2, part(0xb, 30)),
        server("vcpu.a", Role::Vcpu(0), 2, vcpu_config(0)),
        server("p2m.b", Role::P2m(1), 3, part(0xc, 30)),
        server("vcpu.b", Role::Vcpu(1), 3, vcpu_config(1)),
    ];
    let guest = |index: u8| GuestPlan {
        name: "g",
        memory_base: 0x4000_0000,
        memory_bytes: 4 << 20,
        cpus: core::iter::repeat_n(0, 1 + usize::from(index)).collect(),
        priority: 100,
        budget: Some(Budget { time_us: 4000, period_us: 10000 }),
        table_pages: 30,
        views: 1,
        inside: 0,
        essential: true,
        on_reset: OnReset::Reboot,
        p2m: 1 + 2 * index,
        vcpu: 2 + 2 * index,
        manifest_line: 1,
        sve: Sve::Off,
        devices: Default::default(),
        watchers: Default::default(),
    };
    Plan {
        version: VERSION,
        name: "test",
        servers: servers.into_iter().collect(),
        guests: [guest(0), guest(1)].into_iter().collect(),
        manifest: Part::default(),
        uart_line: 33,
        trace: false,
        control: Control::Off,
    }
}
