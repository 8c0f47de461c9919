// SPDX-License-Identifier: MIT OR Apache-2.0
//! A whole system: the real root makes the console, a guest with a vCPU on each of two CPUs and its real servers; what
//! the guest does, and what befalls a server in the middle of an exit, is a script.

use crate::body::{Body, Dead};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use trellis_core::local::Running;
use trellis_core::machine::VcpuContext;
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_hosted::guest::Touch;
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::control::{self, Answer, Ask, FromHost};
use trellis_idl::kernel::{Access, Exit, ExitClass, Op, PAGE, Refusal, VcpuRegister, WORDS};
use trellis_idl::layout::{PROGRAM, RINGS, SCRATCH, badge, ring, slot};
use trellis_idl::plan::*;
use trellis_idl::wire::Report;
use trellis_monitor::{Ears, Guard, Monitor, MonitorServer, Reports, Standard, Tracer};
use trellis_p2m::P2m;
use trellis_root::events::Events;
use trellis_root::rules::Kepts;
use trellis_root::{Board, Root};
use trellis_runtime::memory::Absent;
use trellis_runtime::event_ring::EventPage;
use trellis_runtime::{Attends, Consumer, Producer, Reply, RingPage, Server, Shared, System, dispatch};
use trellis_vcpu::{Rings, VcpuServer};

/// CPUs, each with a vCPU of the guest.
pub const CPUS: u16 = 2;
/// First byte of the guest's memory.
pub const BASE: u64 = 0x4000_0000;
/// Bytes of it.
pub const BYTES: u64 = 4 << 20;
/// Where it starts.
pub const ENTRY: u64 = BASE + 0x8_0000;
/// The payload: configuration of vcpu, a program, the guest's image.
const PAYLOAD_BYTES: usize = 4 * PAGE as usize;
const IMAGE: Part = Part { offset: 2 * PAGE, bytes: 5000 };
/// Ranks tell servers apart.
const P2M: u8 = 1;
const VCPU: u8 = 2;
const MONITOR: u8 = 3;
/// Views of the guest, for those who watch it.
const VIEWS: u16 = 4;

/// What a server does with the next exit it gets, instead of answering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It touches what it may not.
    Crash,
    /// It goes on for ever.
    Hang,
    /// It does what [`Whole::misdeeds`] says, and then crashes.
    Misbehave,
    /// It begins to decide, and crashes at so many things that it asks the kernel for, or before it answers.
    CrashIn(u32),
    /// It answers what no answer is, and goes on for ever.
    Garbage,
    /// It takes so long to begin, as if its CPU were slow.
    SlowToDecide(u32),
    /// It has decided, and takes so long to say so.
    SlowToAnswer(u32),
}

/// What a monitor does with what root asks of it, instead of answering.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whim {
    /// It touches what it may not.
    Crash,
    /// It goes on for ever.
    Hang,
    /// It says what means nothing.
    Garbage,
    /// It begins to do it, and crashes at so many things that it asks the kernel for, or before it answers.
    CrashIn(u32),
}

/// Which monitor watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// The standard one.
    #[default]
    Standard,
    /// The one that follows execution.
    Tracer,
    /// The one that lets no page be both written and executed.
    Guard,
}

/// What a server does that nobody wrote as it should be.
type Misdeeds = Box<dyn Fn(&Body)>;

/// What the guest does next.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Writes to its memory.
    Write(u64),
    /// `hvc #0` with this in x0.
    Hypercall(u64),
    /// The same with these in x0–x3.
    Call([u64; 4]),
    /// Another instruction that stops for this, with these words, and is done when it has been answered. Of calls `m6`–`m9` are
    /// x0–x3; of others `m5` is x9.
    Stop(ExitClass, [u64; WORDS]),
    /// One instruction: a store to its memory (of its own address), or what is done instead of it.
    Store(u64),
    /// Such a store that has been tried, by the instruction at this program counter.
    Storing(u64, u64),
    /// Executes the instruction at this address, or goes on behind it.
    Execute(u64),
    /// Such an instruction that has been tried.
    Executing(u64),
}

/// What became of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// The memory has it.
    Done,
    /// The guest goes on behind it.
    Skipped,
}

type Rings3 = Rings<&'static RingPage, Absent>;

/// A server's program, with the state it has in all its threads.
enum Program {
    P2m(P2m),
    Vcpu(Box<VcpuServer<'static, Rings3>>),
    Standard(Box<Watching<Standard>>),
    Tracer(Box<Watching<Tracer>>),
    Guard(Box<Watching<Guard>>),
    Console,
}

type Watching<M> = MonitorServer<'static, M, Reports<&'static RingPage>>;

/// Does the same with a monitor, whichever it is.
macro_rules! monitor {
    ($program:expr, $server:ident => $done:expr, $other:expr) => {
        match $program {
            Program::Standard($server) => $done,
            Program::Tracer($server) => $done,
            Program::Guard($server) => $done,
            _ => $other,
        }
    };
}

/// An event as a monitor was told it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// The monitor's domain: another one for each monitor, and for each that comes after it.
    pub domain: u64,
    /// The vCPU.
    pub vcpu: usize,
    /// Its words.
    pub exit: Exit,
}

/// How far a thread's program is.
#[derive(Clone)]
struct Thread {
    number: u64,
    program: Rc<Program>,
}

/// The system.
pub struct Whole {
    /// The kernel on its machine.
    pub hosted: RefCell<Hosted>,
    /// Threads that have begun, by name.
    threads: RefCell<BTreeMap<u64, Thread>>,
    /// Programs by the domain they run in.
    programs: RefCell<BTreeMap<u64, Rc<Program>>>,
    /// Threads in the middle of something.
    busy: RefCell<BTreeSet<u64>>,
    /// Threads that will wake root when they are done: it has the CPU then, and they cannot end what they began.
    waking: RefCell<BTreeSet<u64>>,
    /// What threads that root was let go before still have to say.
    unsaid: RefCell<BTreeMap<u64, (u64, Reply)>>,
    scripts: RefCell<[VecDeque<Act>; CPUS as usize]>,
    /// What became of each CPU's stores and executed instructions, by address.
    pub stores: RefCell<[Vec<(u64, Stored)>; CPUS as usize]>,
    /// What monitors were told, in order, whether they answered or not.
    pub told: RefCell<Vec<Told>>,
    /// What the guest's first vCPU had in x0 before each act.
    pub found: RefCell<Vec<u64>>,
    /// What befalls the server of this rank at its next exit.
    pub fate: Cell<Option<(u8, Fate)>>,
    /// What befalls the next monitor that is asked for an operation, by its number; none of them = as it begins.
    pub whims: RefCell<BTreeMap<Option<u64>, Whim>>,
    /// Whether a thread of the next monitor that begins is doomed ([`Whole::doom_next`]).
    will_doom: Cell<bool>,
    /// That thread.
    doomed: Cell<Option<u64>>,
    /// Whether its hour has come.
    is_time: Cell<bool>,
    /// Threads that take their time: how long still, and whether they have been told of it.
    slow: RefCell<BTreeMap<u64, u32>>,
    /// Threads that will crash at so many things that they ask the kernel for.
    dying: RefCell<BTreeMap<u64, u32>>,
    /// Which monitor watches.
    pub kind: Cell<Kind>,
    /// What [`Fate::Misbehave`] means.
    pub misdeeds: RefCell<Option<Misdeeds>>,
    payload: &'static [u8],
    monitors: Vec<MonitorConfig<'static>>,
    pages: &'static [RingPage],
    events: &'static Shared<Events>,
    rules: &'static Shared<Kepts>,
    /// What p2m, and the vcpu server, tell monitors: of each a ring for each vCPU.
    rings: [&'static [EventPage]; 2],
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("hosted", &self.hosted).finish_non_exhaustive()
    }
}

/// Root's view of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a>(&'a Whole);

impl Board for Sight<'_> {
    fn payload(&self, part: Part) -> Option<&'static [u8]> {
        self.0.payload.get(part.offset as usize..(part.offset + part.bytes) as usize)
    }

    fn scratch(&self, offset: u64, bytes: &[u8]) -> bool {
        let hosted = self.0.hosted.borrow();
        let space = hosted.shared.domains[0].lock().space;
        (SCRATCH + offset..).zip(bytes).all(|(address, byte)| {
            let Some(leaf) = hosted.board.borrow().walk(space.root, address / PAGE) else { return false };
            hosted.board.borrow_mut().set_byte(leaf.page * PAGE + address % PAGE, *byte);
            leaf.access.covers(Access::WRITE)
        })
    }

    fn scratch_read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let hosted = self.0.hosted.borrow();
        let space = hosted.shared.domains[0].lock().space;
        (SCRATCH + offset..).zip(bytes).all(|(address, byte)| {
            let Some(leaf) = hosted.board.borrow().walk(space.root, address / PAGE) else { return false };
            let word = hosted.board.borrow().word(leaf.page * PAGE + address % PAGE / 8 * 8);
            *byte = word.to_le_bytes()[address as usize % 8];
            true
        })
    }

    fn rules(&self) -> &'static Shared<Kepts> {
        self.0.rules
    }

    fn events(&self) -> &'static Shared<Events> {
        self.0.events
    }

    fn ring(&self, index: usize) -> &'static RingPage {
        &self.0.pages[index]
    }
}

fn vcpu_config() -> VcpuConfig<'static> {
    let loads = [Load { part: IMAGE, address: ENTRY }];
    VcpuConfig {
        watchers: 0,
        guest: "script",
        vcpus: CPUS as u8,
        memory_base: BASE,
        memory_bytes: BYTES,
        loads: loads.into_iter().collect(),
        entry: ENTRY,
        x0: BASE,
        gic: 3,
        aarch32: false,
        bus: None,
    }
}

fn payload() -> &'static [u8] {
    let mut bytes = vec![0x5a; PAYLOAD_BYTES];
    let used = postcard::to_slice(&vcpu_config(), &mut bytes[8..]).expect("a page is enough").len() as u64;
    bytes[..8].copy_from_slice(&used.to_le_bytes());
    bytes.leak()
}

/// What the guest's image looks like from its server.
fn image(offset: u64, bytes: u64) -> Option<&'static [u8]> {
    static IMAGE_BYTES: [u8; PAYLOAD_BYTES] = [0x5a; PAYLOAD_BYTES];
    IMAGE_BYTES.get(offset as usize..(offset + bytes) as usize)
}

/// The words of an `hvc #0` with these in x0–x3: ESR's class 0x16 (HVC from AArch64), 32-bit instruction.
const fn hypercall(x: [u64; 4]) -> [u64; WORDS] {
    [0, 0x16 << 26 | 1 << 25, 0, 0, ENTRY, 0, x[0], x[1], x[2], x[3]]
}

fn server(name: &'static str, role: Role, cpus: &[u8], config: Part) -> ServerPlan<'static> {
    let text = Segment { part: Part { offset: PAGE, bytes: PAGE }, address: PROGRAM, memory_bytes: PAGE, access: 5 };
    let data = Segment { part: Part { offset: PAGE, bytes: 100 }, address: PROGRAM + PAGE, memory_bytes: 9000, access: 3 };
    ServerPlan {
        name,
        role,
        entry: PROGRAM,
        segments: [text, data].into_iter().collect(),
        cpus: cpus.iter().copied().collect(),
        table_pages: 24,
        slots: 64,
        config,
        float: false,
        swap: None,
    }
}

/// One guest with a vCPU on each CPU.
pub fn plan(on_reset: OnReset) -> Plan<'static> {
    let servers = [
        server("console", Role::Console, &[0], Part::default()),
        server("p2m.script", Role::P2m(0), &[0, 1, 0], Part::default()),
        server("vcpu.script", Role::Vcpu(0), &[0, 1, 0], Part { offset: 0, bytes: 400 }),
    ];
    let guest = GuestPlan {
        name: "script",
        memory_base: BASE,
        memory_bytes: BYTES,
        cpus: [0, 1].into_iter().collect(),
        priority: 100,
        budget: None,
        table_pages: 16,
        essential: true,
        on_reset,
        sve: Sve::Off,
        devices: Default::default(),
        watchers: Default::default(),
        p2m: 1,
        vcpu: 2,
        views: VIEWS,
        inside: 0,
        manifest_line: 1,
    };
    Plan {
        version: VERSION,
        name: "walk",
        servers: servers.into_iter().collect(),
        guests: [guest].into_iter().collect(),
        manifest: Part::default(),
        uart_line: 33,
        trace: false,
        control: Default::default(),
    }
}

/// The same, watched by monitors with these rules.
pub fn watched_plan(on_reset: OnReset, without: Without, monitors: &[Vec<RulePlan>]) -> Plan<'static> {
    let mut plan = plan(on_reset);
    for (session, (name, _)) in ["watchdog", "second"].into_iter().zip(monitors).enumerate() {
        let mut monitor = server(name, Role::Monitor, &[0, 1, 0], Part::default());
        monitor.slots = trellis_idl::layout::watched::slots(1) as u16;
        plan.servers.push(monitor).expect("there is room");
        let server = 3 + session as u8;
        let watcher = WatcherPlan { server, place: 0, deadline_us: 20_000, without, reads: true, writes: false, sets: false, pauses: false };
        plan.guests[0].watchers.push(watcher).expect("there is room");
    }
    plan
}

/// What such a monitor's configuration says.
fn monitor_config(session: usize, rules: &[RulePlan], events: &[EventPlan]) -> MonitorConfig<'static> {
    let guest = WatchedPlan { name: "script", session: session as u8, view: 1, vcpus: CPUS as u8, first_page: BASE / PAGE, pages: BYTES / PAGE, gic: 3, reports: 0 };
    MonitorConfig {
        guests: [guest].into_iter().collect(),
        rules: rules.iter().copied().collect(),
        events: events.iter().copied().collect(),
        hands_over: true,
        threads: CPUS as u8 + 1,
    }
}

impl Whole {
    /// A machine on which root is about to begin.
    pub fn new() -> &'static Whole {
        Whole::watched(&[])
    }

    /// The same, with configurations for monitors of these rules.
    pub fn watched(rules: &[Vec<RulePlan>]) -> &'static Whole {
        Whole::hearing(&rules.iter().map(|rules| (rules.clone(), Vec::new())).collect::<Vec<_>>())
    }

    /// The same, with rules about other events.
    pub fn hearing(rules: &[(Vec<RulePlan>, Vec<EventPlan>)]) -> &'static Whole {
        let one = |(n, (rules, events)): (usize, &(Vec<RulePlan>, Vec<EventPlan>))| monitor_config(n, rules, events);
        let monitors: Vec<_> = rules.iter().enumerate().map(one).collect();
        let settings = Settings { cpus: CPUS, pages: 8192, ..Settings::default() };
        Box::leak(Box::new(Whole {
            hosted: RefCell::new(Hosted::new(settings)),
            threads: RefCell::default(),
            programs: RefCell::default(),
            busy: RefCell::default(),
            waking: RefCell::default(),
            unsaid: RefCell::default(),
            scripts: RefCell::default(),
            stores: RefCell::default(),
            told: RefCell::default(),
            found: RefCell::default(),
            fate: Cell::new(None),
            whims: RefCell::default(),
            will_doom: Cell::new(false),
            doomed: Cell::new(None),
            is_time: Cell::new(false),
            slow: RefCell::default(),
            dying: RefCell::default(),
            kind: Cell::default(),
            misdeeds: RefCell::new(None),
            payload: payload(),
            rings: [(); 2].map(|()| -> &'static [EventPage] {
                Box::leak((0..rules.len() * usize::from(CPUS)).map(|_| EventPage::EMPTY).collect::<Box<[EventPage]>>())
            }),
            monitors,
            pages: Vec::leak((0..trellis_idl::layout::MAX_RINGS).map(|_| RingPage::new()).collect()),
            events: Box::leak(Box::new(Shared::new(Events::NONE))),
            rules: Box::leak(Box::new(Shared::new(Kepts::NONE))),
        }))
    }

    /// Root, when it has started everything.
    pub fn root(&'static self, plan: Plan<'static>) -> Root<'static, Sight<'static>> {
        let plan: &'static Plan<'static> = Box::leak(Box::new(plan));
        Root::start(&self.body(0, 0), Sight(self), plan, |_| {}).expect("the plan suits the machine")
    }

    /// The kernel as this thread of this CPU sees it; root is thread 0 of CPU 0.
    pub fn body(&'static self, cpu: u16, thread: u16) -> Body {
        Body { whole: self, cpu, thread }
    }

    /// What the guest's first vCPU does when it runs.
    pub fn does(&self, acts: impl IntoIterator<Item = Act>) {
        self.does_on(0, acts);
    }

    /// What the vCPU of this CPU does when it runs.
    pub fn does_on(&self, cpu: u16, acts: impl IntoIterator<Item = Act>) {
        self.scripts.borrow_mut()[usize::from(cpu)].extend(acts);
    }

    /// Lets everybody work while root sleeps for a while, whatever there is to tell it.
    pub fn go_on(&'static self) {
        let body = self.body(0, 0);
        let (now, hz) = trellis_runtime::handle::clock(&body);
        body.wait(0, now + hz / 1000);
    }

    /// The same for a moment, in which little can be done.
    pub fn moment(&'static self) {
        let body = self.body(0, 0);
        let (now, hz) = trellis_runtime::handle::clock(&body);
        body.wait(0, now + hz / 500_000);
    }

    /// Whether somebody has woken root.
    pub fn is_root_wanted(&self) -> bool {
        self.hosted.borrow().shared.cpus[0].signals[0].load(std::sync::atomic::Ordering::Acquire) & trellis_core::signal_word::SIGNALS != 0
    }

    /// So many seconds pass in which nothing happens.
    pub fn later(&'static self, seconds: u64) {
        let (_, hz) = trellis_runtime::handle::clock(&self.body(0, 0));
        self.hosted.borrow_mut().advance(seconds * hz);
    }

    /// The guest begins anew: what it was doing, and had done, is over.
    pub fn forget(&self) {
        self.scripts.take();
        self.stores.take();
    }

    /// Acts that the guest has not come to.
    pub fn left(&self) -> usize {
        self.scripts.borrow().iter().map(VecDeque::len).sum()
    }

    /// What the guest's memory holds at an address; none where it has none yet.
    pub fn word(&self, address: u64) -> Option<u64> {
        let hosted = self.hosted.borrow();
        let space = hosted.shared.guests.iter().map(|guest| guest.lock().space).find(|space| space.root != 0)?;
        let board = hosted.board.borrow();
        board.walk(space.root, address / PAGE).map(|leaf| board.word(leaf.page * PAGE + address % PAGE))
    }

    /// What root told the host since this was asked last.
    pub fn reports(&self) -> Vec<Report> {
        let mut ring = Consumer::new(&self.pages[ring::ROOT_REPORT]);
        std::iter::from_fn(|| ring.receive().map(|report| report.expect("a report that is understood"))).collect()
    }

    /// The name of the thread that has this CPU.
    fn name(&self, cpu: u16) -> Option<u64> {
        let hosted = self.hosted.borrow();
        match hosted.now(cpu) {
            Now::Thread(index) => Some(hosted.cpus[cpu as usize].local.threads.name_at(index).0),
            _ => None,
        }
    }

    /// Lets others work, and time pass, until this thread goes on. False: the machine was switched off.
    pub(crate) fn run_until(&'static self, cpu: u16, thread: u16) -> bool {
        let mut idle = 0;
        loop {
            self.hosted.borrow_mut().deliver_kicks();
            if self.hosted.borrow().now(cpu) == Now::Thread(thread) {
                return true;
            }
            if self.hosted.borrow().board.borrow().power.is_some() {
                return false;
            }
            if self.someone_works() || self.guest_acts() {
                continue;
            }
            idle += 1;
            assert!(idle < 50_000, "thread {thread} of CPU {cpu} waits for ever");
            self.hosted.borrow_mut().advance(1_000);
        }
    }

    /// Whether a server's thread wakes root only when it is done.
    pub(crate) fn puts_off(&self, cpu: u16, thread: u16) -> bool {
        let name = self.hosted.borrow().cpus[usize::from(cpu)].local.threads.name_at(thread).0;
        if name as u32 != 0 {
            self.waking.borrow_mut().insert(name);
        }
        name as u32 != 0
    }

    /// Lets a thread work that has a CPU and is not in the middle of something.
    fn someone_works(&'static self) -> bool {
        let free = |cpu: &u16| {
            let name = self.name(*cpu);
            name.is_some_and(|name| !self.busy.borrow().contains(&name) && name as u32 != 0 && !self.takes_its_time(*cpu, name))
        };
        // Time passes for everybody. Who took it goes first, whatever the others do.
        let all: Vec<u16> = (0..CPUS).filter(free).collect();
        let was_slow = |cpu: &&u16| self.name(**cpu).is_some_and(|name| self.slow.borrow().contains_key(&name));
        let Some(cpu) = all.iter().find(was_slow).or(all.first()).copied() else { return false };
        let Some(name) = self.name(cpu) else { return false };
        self.busy.borrow_mut().insert(name);
        let ended = self.activate(cpu, name);
        if ended {
            self.busy.borrow_mut().remove(&name);
        }
        true
    }

    /// Whether a thread does nothing just now. Its time passes.
    fn takes_its_time(&self, cpu: u16, name: u64) -> bool {
        if self.doomed.get() == Some(name) {
            if self.is_time.get() {
                self.doomed.set(None);
                self.crash(cpu);
            }
            return true;
        }
        let mut slow = self.slow.borrow_mut();
        let Some(left) = slow.get_mut(&name).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }

    /// Of the next monitor that begins the second CPU's thread does not serve, and crashes when it is told to.
    pub fn doom_next(&self) {
        self.will_doom.set(true);
        self.is_time.set(false);
    }

    /// It crashes as soon as it has the CPU.
    pub fn doom(&self) {
        self.is_time.set(true);
    }

    /// Whether it has not crashed yet.
    pub fn is_doomed(&self) -> bool {
        self.will_doom.get() || self.doomed.get().is_some()
    }

    /// The thread that has this CPU touches what it may not.
    fn crash(&self, cpu: u16) {
        let record = FaultRecord { syndrome: 0x9200_0046, address: 0xdead };
        self.hosted.borrow_mut().trap(cpu, Trap::Fault(record));
    }

    /// Whether a thread is no more, or is no more from now on: it asks the kernel for something.
    pub(crate) fn is_dead(&self, cpu: u16, thread: u16) -> bool {
        let name = self.hosted.borrow().cpus[usize::from(cpu)].local.threads.name_at(thread).0;
        let mut dying = self.dying.borrow_mut();
        match dying.get_mut(&name) {
            None => return false,
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return false;
            }
        }
        if self.name(cpu) == Some(name) {
            self.crash(cpu);
        }
        true
    }

    /// A thread that was to crash in the middle of something, and came to its end, does so now. False: it was not to.
    fn dies(&self, cpu: u16, name: u64) -> bool {
        let was_to = self.dying.borrow_mut().remove(&name).is_some();
        if was_to && self.name(cpu) == Some(name) {
            self.crash(cpu);
        }
        was_to
    }

    /// A vCPU takes its next act.
    fn guest_acts(&self) -> bool {
        (0..CPUS).any(|cpu| self.acts_on(cpu))
    }

    fn acts_on(&self, cpu: u16) -> bool {
        let Now::Guest(index) = self.hosted.borrow().now(cpu) else { return false };
        let Some(act) = self.scripts.borrow_mut()[usize::from(cpu)].pop_front() else { return false };
        let (x0, pc) = {
            let hosted = self.hosted.borrow();
            let context = &hosted.cpus[usize::from(cpu)].local.vcpus.at(index).context;
            (context.general(0), context.pc())
        };
        if cpu == 0 {
            self.found.borrow_mut().push(x0);
        }
        let mut hosted = self.hosted.borrow_mut();
        let again = |act| self.scripts.borrow_mut()[usize::from(cpu)].push_front(act);
        let stored = |address, what| self.stores.borrow_mut()[usize::from(cpu)].push((address, what));
        match act {
            Act::Write(address) => {
                // Whoever was stopped there tries again.
                if let Touch::Stopped(_) = hosted.touch(cpu, address, Access::WRITE) {
                    again(act);
                }
            }
            Act::Storing(address, _) | Act::Executing(address) if matches!(act, Act::Storing(_, at) | Act::Executing(at) if at != pc) => {
                // And on: an exception may have brought it to where one brings it again.
                let context = &mut hosted.cpus[usize::from(cpu)].local.vcpus.at_mut(index).context;
                context.set(VcpuRegister::Pc as u64, pc + 4).expect("an address");
                stored(address, Stored::Skipped);
            }
            Act::Store(address) | Act::Storing(address, _) => match hosted.touch(cpu, address, Access::WRITE) {
                Touch::Reached(_) => stored(address, Stored::Done),
                Touch::Stopped(_) => again(Act::Storing(address, pc)),
            },
            Act::Execute(address) | Act::Executing(address) => {
                let context = &mut hosted.cpus[usize::from(cpu)].local.vcpus.at_mut(index).context;
                context.set(VcpuRegister::Pc as u64, address).expect("an address");
                match hosted.touch(cpu, address, Access::EXECUTE) {
                    Touch::Reached(_) => stored(address, Stored::Done),
                    Touch::Stopped(_) => again(Act::Executing(address)),
                }
            }
            Act::Hypercall(x0) => drop(hosted.exit(cpu, ExitClass::Hypercall, hypercall([x0, 0, 0, 0]))),
            Act::Call(x) => drop(hosted.exit(cpu, ExitClass::Hypercall, hypercall(x))),
            Act::Stop(class, mut words) => {
                let context = &mut hosted.cpus[usize::from(cpu)].local.vcpus.at_mut(index).context;
                words[4] = pc;
                match class {
                    ExitClass::Hypercall | ExitClass::Firmware => (0..4).for_each(|n| context.set_general(n, words[6 + n])),
                    _ => context.set_general(9, words[5]),
                }
                hosted.exit(cpu, class, words);
            }
        }
        true
    }

    /// A thread that got the CPU does what it has to, and waits again. False: it will never be done.
    fn activate(&'static self, cpu: u16, name: u64) -> bool {
        let (index, rank, domain, x0, words) = {
            let hosted = self.hosted.borrow();
            let Running::Thread(index) = hosted.cpus[cpu as usize].local.running else { return true };
            let thread = hosted.cpus[cpu as usize].local.threads.at(index);
            let domain = hosted.shared.control.lock().domains.name_at(thread.domain).0;
            let registers = hosted.registers(cpu);
            (index, thread.rank, domain, registers.x[0], registers.words)
        };
        let body = self.body(cpu, index);
        let serves = self.threads.borrow().get(&name).is_some_and(|thread| thread.number <= CPUS.into());
        let is_late = self.slow.borrow_mut().remove(&name).is_some();
        let is_event = rank == MONITOR && badge::kind(x0) == badge::EXIT && serves;
        if is_event && !is_late && !self.unsaid.borrow().contains_key(&name) {
            let (_, vcpu) = badge::of_event(x0);
            self.told.borrow_mut().push(Told { domain, vcpu, exit: Exit::from_words(words) });
            if let Some((MONITOR, Fate::SlowToDecide(time))) = self.fate.get() {
                self.fate.set(None);
                self.slow.borrow_mut().insert(name, time);
                return true;
            }
        }
        if let Some((badge, reply)) = self.unsaid.borrow_mut().remove(&name) {
            let thread = self.threads.borrow().get(&name).cloned().expect("it has begun");
            self.say(&body, &thread.program, badge, reply);
            return true;
        }
        let known = self.threads.borrow().get(&name).cloned();
        let Some(thread) = known else {
            // The last thread is the one that root asks.
            if rank == MONITOR && x0 == CPUS.into() && let Some(whim) = self.whims.borrow_mut().remove(&None) {
                return self.errs(&body, whim);
            }
            if rank == MONITOR && x0 == 1 && self.will_doom.replace(false) {
                self.doomed.set(Some(name));
                return true;
            }
            let program = self.program(domain, rank);
            self.threads.borrow_mut().insert(name, Thread { number: x0, program: program.clone() });
            self.rest(&body, &program, x0);
            return true;
        };
        if rank == MONITOR && thread.number > CPUS.into() {
            monitor!(&*thread.program, server => { server.attend(&body); }, ());
            return self.rest(&body, &thread.program, thread.number);
        }
        let mut late = None;
        let reply = match &*thread.program {
            Program::Console => return self.rest(&body, &thread.program, thread.number),
            Program::Vcpu(server) if thread.number > CPUS.into() => {
                server.attend(&body);
                return self.rest(&body, &thread.program, thread.number);
            }
            _ if badge::kind(x0) == badge::EXIT && self.is_fated(rank, |fate| !matches!(fate, Fate::CrashIn(_) | Fate::SlowToDecide(_) | Fate::SlowToAnswer(_))) => {
                let fate = self.fate.take().map(|(_, fate)| fate);
                if fate == Some(Fate::Garbage) {
                    for answer in [u64::MAX, 1 << 40, 1 << 7] {
                        self.hosted.borrow_mut().syscall(cpu, Op::ReplyAndWait as u16, [answer, 0, 0, 0, 0, 0], [u64::MAX; WORDS]);
                        assert_eq!(self.name(cpu), Some(name), "that is no answer");
                    }
                    return false;
                }
                if let (Some(Fate::Misbehave), Some(misdeeds)) = (fate, &*self.misdeeds.borrow()) {
                    misdeeds(&body);
                }
                if fate != Some(Fate::Hang) {
                    self.crash(cpu);
                }
                return fate != Some(Fate::Hang);
            }
            _ if rank == MONITOR && badge::kind(x0) != badge::EXIT && self.whims.borrow().contains_key(&Some(words[0])) => {
                let whim = self.whims.borrow_mut().remove(&Some(words[0])).expect("it is there");
                match whim {
                    Whim::CrashIn(at) => {
                        self.dying.borrow_mut().insert(name, at);
                        monitor!(&*thread.program, server => serve(&**server, &body, x0, words), return true)
                    }
                    other => return self.errs(&body, other),
                }
            }
            Program::P2m(server) => Some(dispatch(server, &body, x0, words)),
            Program::Vcpu(server) => Some(dispatch(&**server, &body, x0, words)),
            program => {
                if is_event && self.is_fated(MONITOR, |fate| matches!(fate, Fate::CrashIn(_) | Fate::SlowToAnswer(_))) {
                    match self.fate.take() {
                        Some((_, Fate::CrashIn(at))) => drop(self.dying.borrow_mut().insert(name, at)),
                        Some((_, Fate::SlowToAnswer(time))) => late = Some(time),
                        _ => {}
                    }
                }
                monitor!(program, server => serve(&**server, &body, x0, words), return true)
            }
        };
        let was_to_die = self.dies(cpu, name);
        let Some(reply) = reply.filter(|_| !was_to_die) else { return true };
        if let Some(time) = late {
            self.slow.borrow_mut().insert(name, time);
            self.unsaid.borrow_mut().insert(name, (x0, reply));
            return true;
        }
        if self.waking.borrow_mut().remove(&name) && self.name(cpu) == Some(name) {
            self.hosted.borrow_mut().syscall(cpu, Op::Signal as u16, [slot::ROOT, 0, 0, 0, 0, 0], [0; WORDS]);
            if self.name(cpu) != Some(name) {
                self.unsaid.borrow_mut().insert(name, (x0, reply));
                return true;
            }
        }
        if self.name(cpu) == Some(name) {
            self.say(&body, &thread.program, x0, reply);
        }
        true
    }

    /// Whether something of this sort befalls the server of this rank at its next exit.
    fn is_fated(&self, rank: u8, of: impl Fn(Fate) -> bool) -> bool {
        self.fate.get().is_some_and(|(whose, fate)| whose == rank && of(fate))
    }

    /// A monitor's thread does what nobody asked it for. False: it will never be done.
    fn errs(&self, body: &Body, whim: Whim) -> bool {
        match whim {
            Whim::Hang => return false,
            Whim::Crash | Whim::CrashIn(_) => self.crash(body.cpu),
            Whim::Garbage => {
                let words = [0, 7, u64::MAX, 3, u64::MAX, 5, 6, 7, 8, 9];
                self.hosted.borrow_mut().syscall(body.cpu, Op::ReplyAndWait as u16, [0; 6], words);
            }
        }
        true
    }

    /// The host asks root for something.
    pub fn ask(&self, number: u32, ask: Ask) {
        assert!(Producer::new(&self.pages[ring::ROOT_ASKED]).send(&FromHost::Asked(number, ask)), "there is room");
    }

    /// What root has answered since this was asked last.
    pub fn answers(&self) -> Vec<control::Part> {
        let mut ring = Consumer::new(&self.pages[ring::ROOT_ANSWER]);
        std::iter::from_fn(|| ring.receive::<Answer>().map(|answer| answer.expect("an answer").part)).collect()
    }

    /// A thread says what it has to, and waits for the next; as the serve loop does, on a board.
    fn say(&'static self, body: &Body, program: &Program, badge: u64, reply: Reply) {
        let (op, a0, bytes, words) = match reply {
            // What a server leaves in the registers of words that it does not say is its own affair.
            Reply::Value(answer, value) => {
                let left = 0xdead_beef_dead_beef;
                (Op::ReplyAndWait, answer.0, 0, [left, left, left, left, left, value, left, left, left, left])
            }
            Reply::Exit(answer, words) => (Op::ReplyAndWait, answer.0, 0, words),
            Reply::Call(words) => (Op::ReplyAndWait, 0, 0, words),
            Reply::Letter(words, bytes) => (Op::ReplyAndWait, 0, bytes as u64, words),
            Reply::Forward(portal, words) | Reply::Watched(portal, words) => (Op::Forward, portal, 0, words),
        };
        let name = self.name(body.cpu);
        self.hosted.borrow_mut().syscall(body.cpu, op as u16, [a0, bytes, 0, 0, 0, 0], words);
        let is_refused = self.name(body.cpu) == name
            && Refusal::from_register(self.hosted.borrow().registers(body.cpu).x[0]) == Err(Refusal::Gone);
        if let (Reply::Watched(..), true) = (reply, is_refused) {
            let exit = Exit::from_words(self.hosted.borrow().registers(body.cpu).words);
            let own = match program {
                Program::P2m(server) => server.unwatched(body, badge, &exit),
                Program::Vcpu(server) => server.unwatched(body, badge, &exit),
                _ => panic!("they forward nothing"),
            };
            self.say(body, program, badge, own);
        }
    }

    /// A thread waits for what comes next.
    fn rest(&self, body: &Body, program: &Program, number: u64) -> bool {
        let waits = match program {
            Program::Console => true,
            Program::P2m(_) => false,
            _ => number > CPUS.into(),
        };
        let (op, a0) = if waits { (Op::Wait, 7) } else { (Op::ReplyAndWait, 0) };
        self.hosted.borrow_mut().syscall(body.cpu, op as u16, [a0, 0, 0, 0, 0, 0], [0; WORDS]);
        true
    }

    /// The program of a domain, which is known by its capability table's place and map.
    fn program(&'static self, domain: u64, rank: u8) -> Rc<Program> {
        let make = || {
            Rc::new(match rank {
                P2M => Program::P2m(self.p2m()),
                VCPU => Program::Vcpu(Box::new(self.vcpu())),
                MONITOR => self.watchdog(domain),
                _ => Program::Console,
            })
        };
        self.programs.borrow_mut().entry(domain).or_insert_with(make).clone()
    }

    fn p2m(&'static self) -> P2m {
        let (first_page, pages) = (BASE / PAGE, BYTES / PAGE);
        let populate = Populate::Lazy;
        let config = P2mConfig {
            guest: "script", first_page, pages, populate, vcpus: CPUS as u8, gicv_page: None, watchers: self.monitors.len() as u8, views: VIEWS, view: heapless::Vec::new(), devices: Default::default(),
        };
        P2m::start(&self.body(0, 0), &config, Box::leak(Box::new(trellis_runtime::Shared::new(trellis_p2m::view::Views::new()))), self.rings[0]).expect("lazy population asks for nothing")
    }

    fn vcpu(&self) -> VcpuServer<'static, Rings3> {
        let page = || -> &'static RingPage { Box::leak(Box::new(RingPage::new())) };
        VcpuServer::new(vcpu_config(), Rings::new(page(), page(), &self.pages[ring::root_report(2)], image, |_| Absent)).telling(self.rings[1])
    }

    /// The monitor that this domain is.
    fn watchdog(&self, domain: u64) -> Program {
        let hosted = self.hosted.borrow();
        let ring = |domain: usize, page: usize| {
            let root = hosted.shared.domains[domain % hosted.shared.domains.len()].lock().space.root;
            hosted.board.borrow().walk(root, RINGS / PAGE + page as u64).map(|leaf| leaf.page)
        };
        // Root is the first domain, and has the other end of the ring of reports.
        let own = ring(domain as u32 as usize, ring::REPORT);
        let pages = |session: usize| [ring::root_report(3 + session), ring::root_second(session)];
        let found = (0..self.monitors.len()).find_map(|session| {
            let page = pages(session).into_iter().find(|page| ring(0, *page) == own)?;
            Some((session, page))
        });
        let (session, page) = found.expect("root listens to it");
        let config = &self.monitors[session];
        let page = &self.pages[page];
        let ears = Ears::new(config, |_, vcpus| self.rings.map(|pages| &pages[session * vcpus..][..vcpus]));
        match self.kind.get() {
            Kind::Standard => Program::Standard(Box::new(of(config, Standard::new(&config.rules, &config.events), page, ears))),
            Kind::Tracer => Program::Tracer(Box::new(of(config, Tracer::new(&config.rules), page, ears))),
            Kind::Guard => {
                let guard = Guard::new(&config.rules).expect("no more pages than it guards");
                Program::Guard(Box::new(of(config, guard, page, ears)))
            }
        }
    }

    /// Lets root work until it has told the host something, in so many steps at most. (It also wakes for threads that it ended
    /// itself.)
    pub fn told_by(&'static self, root: &mut Root<'static, Sight<'static>>, steps: usize) -> Vec<Report> {
        for _ in 0..steps {
            root.step(&self.body(0, 0));
            let mut seen = self.reports();
            // What the CPU did before is another story.
            seen.retain(|report| !matches!(report, Report::Last { .. }));
            if !seen.is_empty() {
                return seen;
            }
        }
        panic!("root has nothing to say")
    }

    /// What the living monitor that was made last says of a rule.
    pub fn count(&'static self, rule: u64) -> [u64; 5] {
        let programs = self.programs.borrow();
        let of = |program: &Rc<Program>| monitor!(&**program, server => server.monitor().count(&self.body(0, 0), rule).ok(), None);
        let domains: Vec<u64> = self.hosted.borrow().shared.control.lock().domains.names().map(|id| id.0).collect();
        let living = programs.iter().filter(|(domain, _)| domains.contains(domain));
        // A name of a later life is a larger number.
        living.rev().find_map(|(_, program)| of(program)).expect("it counts")
    }

    /// Events that standard monitors were to be told of and were not, all of them together.
    pub fn missed(&self) -> u64 {
        let of = |program: &Rc<Program>| if let Program::Standard(server) = &**program { server.monitor().missed_so_far() } else { 0 };
        self.programs.borrow().values().map(of).sum()
    }

    /// Every law holds.
    pub fn lawful(&self) {
        laws::full(&self.hosted.borrow()).expect("the laws hold");
    }
}

/// A monitor as a server.
fn of<M: Monitor>(config: &MonitorConfig<'static>, monitor: M, page: &'static RingPage, ears: Ears) -> Watching<M> {
    MonitorServer::new(config, monitor, Reports::new(page)).hearing(ears)
}

/// What a monitor answers; nothing where it crashes meanwhile.
fn serve(server: &impl Server, body: &Body, badge: u64, words: [u64; WORDS]) -> Option<Reply> {
    let served = catch_unwind(AssertUnwindSafe(|| dispatch(server, body, badge, words)));
    served.map_err(|why| if !why.is::<Dead>() { resume_unwind(why) }).ok()
}
