// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every argument of every operation at its bounds: 0, the last value, the count, one more, and numbers that are round or
//! enormous, alone and two at a time. Nothing panics, every law holds, what is out of bounds is refused with its reason, and
//! what is refused changes nothing; whether the object is this CPU's or another's.
//!
//! A new operation does not compile here before it has a row.

use trellis_core::shared::GUEST_VCPUS;
use trellis_core::space::LIMIT;
use trellis_core::vcpu::WINDOWS;
use trellis_hosted::digest::digest;
use trellis_hosted::small::{self, BUFFER, GUEST_PAGE, ROOT, VCPU_PRIORITY, VIEWS, must, slot};
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::kernel::{Access, EXIT_CLASSES, ExitClass, MAX_VIEWS, Op, PAUSE, Refusal, SESSIONS, Traps, VcpuRegister};
use trellis_idl::layout::root_slot;
use trellis_idl::boot::MAX_CPUS;

/// CPUs of the machine.
const CPUS: u64 = 2;
/// Pages of [`MEMORY`].
const PAGES: u64 = 8;
/// Slots of root's, beside those of the small system.
const EMPTY: u64 = slot::FREE;
const THREAD: u64 = slot::FREE + 1;
const VCPU: u64 = slot::FREE + 2;
const PORTAL: u64 = slot::FREE + 3;
const MEMORY: u64 = slot::FREE + 4;
const TABLES: u64 = slot::FREE + 5;
const LINE: u64 = slot::FREE + 6;
const FORWARDED: u64 = slot::FREE + 7;
const ONE_PAGE: u64 = slot::FREE + 8;
const SIGNAL: u64 = slot::SIGNALS[0];
const SYSTEM: u64 = root_slot::SYSTEM;
/// Slots of root's table.
const SLOTS: u64 = 1024;
/// Lines of a vCPU.
const LINES: u64 = 128;
/// The view that is there beside the host map.
const VIEW: u64 = 1;
/// A page in it.
const PLACE: u64 = VIEW << 48 | GUEST_PAGE;

/// The small system with a bit more in it; a thread and a vCPU live on this CPU.
fn prepared(home: u64) -> Hosted {
    let mut hosted = small::running(Settings { cpus: CPUS as u16, ..Settings::default() });
    let h = &mut hosted;
    must(h, Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]);
    let far = |h: &mut Hosted, op, a| small::anywhere(h, op, a).unwrap_or_else(|why| panic!("{op:?}: {why:?}"));
    far(h, Op::ThreadCreate, [slot::DOMAINS[2], home, 100, THREAD, BUFFER, 0]);
    far(h, Op::VcpuCreate, [slot::GUEST, home, 1, VCPU, VCPU_PRIORITY, 0]);
    far(h, Op::PortalCreate, [THREAD, 5, PORTAL, 0, 0, 0]);
    small::split(h, 200, PAGES, MEMORY);
    small::split(h, 216, 16, TABLES);
    small::split(h, 240, 1, ONE_PAGE);
    must(h, Op::LineCreate, [SYSTEM, 40, LINE, 0, 0, 0]);
    must(h, Op::LineCreate, [SYSTEM, 41, FORWARDED, 0, 0, 0]);
    must(h, Op::LineForward, [FORWARDED, 0, 0, 0, 0, 0]);
    must(h, Op::ViewCreate, [slot::GUEST, VIEW, 0, 0, 0, 0]);
    hosted
}

/// From a value of an argument on, up to another, each is refused with one of these reasons. The last one before is not.
struct Limit {
    argument: usize,
    values: std::ops::Range<u64>,
    why: &'static [Refusal],
    last: Option<u64>,
}

/// Arguments with which an operation is done.
struct Row {
    a: [u64; 6],
    limits: Vec<Limit>,
}

impl Row {
    /// An argument that must be below a count.
    fn below(self, argument: usize, count: u64, why: Refusal) -> Row {
        self.within(argument, count..u64::MAX, why)
    }

    /// An argument that must not be one of these values.
    fn within(mut self, argument: usize, values: std::ops::Range<u64>, why: Refusal) -> Row {
        let why: &[Refusal] = match why {
            Refusal::OutOfRange => &[Refusal::OutOfRange],
            Refusal::BadArgument => &[Refusal::BadArgument],
            // Which CPUs there could be is a constant; which there are is found out by asking them.
            Refusal::WrongCpu => &[Refusal::WrongCpu, Refusal::OutOfRange, Refusal::BadArgument],
            other => panic!("{other:?} says nothing of bounds"),
        };
        let last = values.start.checked_sub(1);
        self.limits.push(Limit { argument, values, why, last });
        self
    }

    /// What was said of an argument last is of multiples of this alone.
    fn in_steps(mut self, step: u64) -> Row {
        let limit = self.limits.last_mut().expect("something was said");
        limit.last = limit.last.map(|last| last / step * step);
        self
    }

    /// The one before what was said last is not right either.
    fn anyway(mut self) -> Row {
        self.limits.last_mut().expect("something was said").last = None;
        self
    }

    /// Pages from a view's page on.
    fn pages_of_view(self, argument: usize, pages: u64) -> Row {
        let first = LIMIT - pages + 1;
        self.within(argument, first..1 << 48, Refusal::OutOfRange).below(argument, VIEWS << 48, Refusal::OutOfRange)
    }
}

fn of<const N: usize>(given: [u64; N]) -> Row {
    Row { a: std::array::from_fn(|n| given.get(n).copied().unwrap_or(0)), limits: Vec::new() }
}

/// A row for each operation, in its order.
fn row(op: Op, home: u64) -> Row {
    use Refusal::{BadArgument as Bad, OutOfRange as Range, WrongCpu};
    match op {
        Op::Call => of([slot::PORTALS[0], 0]).below(1, 4097, Bad),
        Op::ReplyAndWait => of([0, 0]).below(1, 4097, Bad),
        Op::Forward => of([slot::PORTALS[1]]),
        Op::Signal => of([SIGNAL]),
        Op::Wait => of([1, 1]),
        Op::Clock | Op::Exit | Op::Yield => of([]),
        Op::FramesSplit => {
            of([MEMORY, 2, 3, EMPTY]).below(1, PAGES - 2, Range).below(2, PAGES - 1, Range).within(2, 0..1, Range).below(3, SLOTS, Range)
        }
        Op::FramesReclaim | Op::FramesInfo | Op::Drop => of([MEMORY]),
        Op::DomainCreate => of([TABLES, 64, 4, EMPTY]).below(1, 4097, Bad).within(1, 0..1, Bad).below(2, 16, Bad).below(3, SLOTS, Range),
        Op::DomainMap => {
            let row = of([slot::DOMAINS[2], BUFFER + (1 << 20), MEMORY, 0, 2, 3]);
            let row = row.within(1, (LIMIT - 1) << 12..((LIMIT - 1) << 12) + 1, Range).in_steps(4096);
            let row = row.within(1, LIMIT << 12..(LIMIT << 12) + 1, Range).anyway();
            // The last is both to be written and to be executed.
            row.below(3, PAGES - 1, Range).below(4, PAGES + 1, Range).within(4, 0..1, Range).below(5, 8, Bad).anyway()
        }
        Op::DomainUnmap => {
            let row = of([slot::DOMAINS[2], BUFFER, 1]).within(1, LIMIT << 12..(LIMIT << 12) + 1, Range).in_steps(4096);
            row.below(2, LIMIT - (BUFFER >> 12) + 1, Range)
        }
        Op::DomainDestroy => of([slot::DOMAINS[2]]),
        Op::ThreadCreate => {
            let row = of([slot::DOMAINS[2], home, 100, EMPTY, BUFFER, 0]).below(1, CPUS, WrongCpu).below(1, MAX_CPUS as u64, Range);
            row.within(2, 250..0xffff, Bad).below(2, 0x1_0000, Bad).below(3, SLOTS, Range)
        }
        Op::ThreadStart => of([THREAD, 0x20_0000, 0, 0]),
        Op::ThreadDestroy => of([THREAD]),
        Op::ThreadFault => of([THREAD, 0]).below(1, 39, Range),
        Op::ThreadSupervise => of([THREAD, SIGNAL, 1000]).below(2, (1 << 40) + 1, Bad).within(2, 1..1000, Bad),
        Op::ThreadFloat => of([THREAD, ONE_PAGE]),
        Op::PortalCreate => of([THREAD, 5, EMPTY]).below(2, SLOTS, Range),
        Op::SignalCreate => of([THREAD, 1, EMPTY]).below(1, 1 << 48, Bad).within(1, 0..1, Bad).below(2, SLOTS, Range),
        Op::Grant => of([SIGNAL, slot::DOMAINS[2], 50, 0xff]).below(2, 64, Range),
        Op::Revoke => of([MEMORY, 0]),
        Op::GuestCreate => {
            let row = of([TABLES, 4, EMPTY, 0, 0, 0]).below(1, MAX_VIEWS + 1, Bad).within(1, 0..1, Bad);
            row.below(2, SLOTS, Range).below(5, 4, Bad)
        }
        Op::GuestMap => {
            let row = of([slot::GUEST, GUEST_PAGE + 1024, MEMORY, 0, 2, 7]).within(1, LIMIT - 1..1 << 48, Range).below(1, 1 << 48, Bad);
            row.below(3, PAGES - 1, Range).below(4, PAGES + 1, Range).within(4, 0..1, Range).below(5, 8, Bad)
        }
        Op::GuestUnmap => of([slot::GUEST, GUEST_PAGE, 2]).pages_of_view(1, 2).below(2, LIMIT - GUEST_PAGE + 1, Range),
        Op::GuestProtect => of([slot::GUEST, GUEST_PAGE, 2, 1]).pages_of_view(1, 2).below(2, LIMIT - GUEST_PAGE + 1, Range),
        Op::GuestRead | Op::GuestWrite => of([slot::GUEST, GUEST_PAGE << 12, BUFFER, 64]).below(3, 65_537, Bad),
        Op::GuestDestroy | Op::GuestInfo => of([slot::GUEST]),
        Op::ViewCreate => of([slot::GUEST, 2]).below(1, VIEWS, Range),
        Op::ViewDestroy => of([slot::GUEST, VIEW]).below(1, VIEWS, Range),
        Op::ViewReset => of([slot::GUEST, PLACE]).within(1, VIEW << 48 | LIMIT..2 << 48, Range).within(1, VIEWS << 48..u64::MAX, Range),
        Op::ViewCopy => {
            let row = of([slot::GUEST, PLACE, 1, Access::AS_HOST.0, 1]).within(1, VIEWS << 48..u64::MAX, Range).within(2, 0..1, Range);
            row.within(1, VIEW << 48 | LIMIT..2 << 48, Range).below(2, LIMIT - GUEST_PAGE + 1, Range)
        }
        Op::ViewRemap => {
            let row = of([slot::GUEST, PLACE, GUEST_PAGE + 5, 1]).within(1, VIEW << 48 | LIMIT..2 << 48, Range);
            row.within(1, VIEWS << 48..u64::MAX, Range).below(2, LIMIT, Range)
        }
        Op::ViewSwitch => of([slot::GUEST, 1, VIEW]).below(1, GUEST_VCPUS as u64, Range).below(2, VIEWS, Range),
        Op::ViewShow => of([slot::GUEST, VIEW, 1]).below(1, VIEWS, Range).below(2, 2, Bad),
        Op::ViewOf => of([slot::GUEST, 1]).below(1, GUEST_VCPUS as u64, Range),
        Op::SessionCreate => of([slot::GUEST, 1, EMPTY]).below(1, SESSIONS, Range).below(2, SLOTS, Range),
        Op::SessionPlace => of([slot::SESSION, 1, 1, PORTAL]).below(1, GUEST_VCPUS as u64, Range).below(2, 2, Bad),
        Op::SessionCommit => of([slot::SESSION, 2, 1]).below(2, 4, Bad),
        Op::SessionSettle => of([slot::SESSION, 1]).below(1, GUEST_VCPUS as u64, Range),
        Op::SessionInfo => of([slot::SESSION]),
        Op::VcpuCreate => {
            let row = of([slot::GUEST, home, 2, EMPTY, VCPU_PRIORITY, 0]).below(1, CPUS, WrongCpu).below(1, MAX_CPUS as u64, Range);
            row.within(2, GUEST_VCPUS as u64..256, Bad).within(2, 512..u64::MAX, Bad).anyway().below(3, SLOTS, Range).below(4, 250, Bad)
        }
        Op::VcpuRoute => of([VCPU, 0, PORTAL, 0, 7]).below(1, EXIT_CLASSES as u64, Range),
        Op::VcpuWindow => of([VCPU, 0, 0x9000, 1, 1]).below(1, WINDOWS as u64, Range).below(4, ExitClass::ALL.len() as u64, Range),
        Op::VcpuTraps => of([VCPU, 1]).below(1, Traps::ALL.0 + 1, Bad),
        Op::VcpuGet => of([VCPU, VcpuRegister::Pc as u64]),
        Op::VcpuSet => of([VCPU, VcpuRegister::Pc as u64, 4]),
        Op::VcpuStart | Op::VcpuReset | Op::VcpuDestroy | Op::VcpuMove => of([VCPU]),
        Op::VcpuStop => of([VCPU, PAUSE]),
        Op::VcpuException => of([VCPU, 0, 0]),
        Op::VcpuLaunch => of([VCPU, 4, 0]),
        Op::GuestSwap => of([slot::GUEST, GUEST_PAGE << 12 | 3 << 56, 0, 0, 1, 0]).below(1, 5 << 56, Bad).anyway(),
        Op::LinesWrite => {
            let row = of([VCPU, 0, 0, 1, 1, 0]).below(1, 6, Bad).below(2, LINES, Range).in_steps(32);
            row.below(3, 1 << 32, Range).below(4, 1 << 32, Range)
        }
        Op::LinesRead => of([VCPU, 0, 0, 0]).below(1, 6, Bad).below(2, LINES, Range).in_steps(32),
        Op::LinesPriority => of([VCPU, 0, 0, 1]).below(1, LINES, Range).in_steps(4),
        Op::LinesPriorityRead => of([VCPU, 0]).below(1, LINES, Range).in_steps(4),
        Op::LineTarget => of([VCPU, 40, 0]).below(1, LINES, Range).within(1, 0..32, Range),
        Op::LineTake => of([VCPU, 40]).below(1, LINES, Range).within(1, 0..32, Range),
        Op::LinesEnable => of([VCPU, 1]).below(1, 2, Bad),
        Op::LineBind => of([LINE, SIGNAL]),
        Op::LineAck => of([FORWARDED, 0, 0]).below(1, 2, Bad).below(2, CPUS + 1, WrongCpu).below(2, MAX_CPUS as u64 + 1, Bad),
        Op::LineCreate => of([SYSTEM, 42, EMPTY, 0]).below(1, 1020, Range).within(1, 0..32, Range).below(2, SLOTS, Range).below(3, 2, Bad),
        Op::LineForward => of([LINE, 0]),
        Op::LineRelease => of([FORWARDED]),
        Op::LineTie => of([VCPU, FORWARDED, 1]).below(2, 3, Bad),
        Op::LinePass => of([VCPU, 0]),
        Op::QueueServe => of([SYSTEM, SIGNAL, 0]).below(2, 2, Bad),
        Op::QueueTake | Op::LogRead => of([SYSTEM]),
        Op::QueueDone | Op::SystemOff => of([SYSTEM, 0]),
        Op::QueueNext => of([0, 0, 1, 1]),
        Op::Log => of([8]).below(0, 4097, Range),
        Op::Fact => of([SYSTEM, 0, 0]),
        Op::TraceRead => of([SYSTEM, home, 0]).below(1, CPUS, WrongCpu).below(1, MAX_CPUS as u64, Range),
        Op::CpuRetire => of([SYSTEM, home]).below(1, CPUS, WrongCpu).below(1, MAX_CPUS as u64, Range),
    }
}

/// What each argument is tried with, whatever it means.
const EDGES: [u64; 13] =
    [0, 1, 511, 512, 513, 65_535, 65_536, u32::MAX as u64, 1 << 32, 1 << 48, i64::MAX as u64, u64::MAX - 1, u64::MAX];
/// What two arguments are tried with at once.
const BOTH: [u64; 5] = [0, 512, 65_535, 1 << 48, u64::MAX];

/// A system that is made again when it has changed.
struct Trial {
    home: u64,
    hosted: Hosted,
    /// What it is like.
    now: u64,
    failures: Vec<String>,
}

impl Trial {
    fn new(home: u64) -> Trial {
        let hosted = prepared(home);
        Trial { home, now: digest(&hosted), hosted, failures: Vec::new() }
    }

    /// What root gets for this; nothing: somebody else has the CPU.
    fn said(&mut self, op: Op, a: [u64; 6]) -> Option<Result<u64, Refusal>> {
        let hosted = &mut self.hosted;
        if hosted.syscall(0, op as u16, a, [0; 10]) != Now::Thread(ROOT) {
            hosted.deliver_kicks();
        }
        (hosted.now(0) == Now::Thread(ROOT)).then(|| Refusal::from_register(hosted.registers(0).x[0]))
    }

    fn take(&mut self, op: Op, a: [u64; 6]) -> Option<Result<u64, Refusal>> {
        let said = self.said(op, a);
        let is_same = digest(&self.hosted) == self.now;
        match said {
            // The power switch is asked before it can say that it came back.
            Some(Err(why)) if !is_same && op != Op::SystemOff => {
                self.failures.push(format!("{op:?} {a:x?} was refused ({why:?}) and changed something"));
            }
            _ => {}
        }
        if !is_same {
            let broken = laws::full(&self.hosted).err();
            self.failures.extend(broken.map(|law| format!("{op:?} {a:x?}: {law}")));
            self.hosted = prepared(self.home);
            self.now = digest(&self.hosted);
        }
        said
    }

    /// One argument at a time.
    fn alone(&mut self, op: Op, row: &Row) {
        let good = self.take(op, row.a);
        if matches!(good, Some(Err(Refusal::OutOfRange | Refusal::BadArgument | Refusal::NoCapability | Refusal::WrongKind))) {
            self.failures.push(format!("{op:?} {:x?}, which is right: {good:?}", row.a));
        }
        for argument in 0..row.a.len() {
            for value in EDGES {
                self.at(op, row, argument, value);
            }
            for limit in row.limits.iter().filter(|limit| limit.argument == argument) {
                let Limit { values, .. } = limit;
                for value in [values.start, values.start.saturating_add(1), values.end - 1, values.end].into_iter().chain(limit.last) {
                    self.at(op, row, argument, value);
                }
            }
        }
    }

    /// An argument with a value is refused if and only if a limit says so; other reasons to refuse it are its own.
    fn at(&mut self, op: Op, row: &Row, argument: usize, value: u64) {
        let mut a = row.a;
        a[argument] = value;
        let said = self.take(op, a);
        let is_limit = |limit: &&Limit| limit.argument == argument && limit.values.contains(&value);
        for limit in row.limits.iter().filter(is_limit) {
            if !matches!(said, Some(Err(why)) if limit.why.contains(&why)) {
                self.failures.push(format!("{op:?}, argument {argument} = {value:#x}: {said:?} instead of {:?}", limit.why));
            }
        }
        let is_before = |limit: &&Limit| limit.argument == argument && limit.last == Some(value);
        if row.limits.iter().any(|limit| is_limit(&limit)) || !row.limits.iter().any(|limit| is_before(&limit)) {
            return;
        }
        if let Some(Err(Refusal::OutOfRange | Refusal::BadArgument)) = said {
            self.failures.push(format!("{op:?}, argument {argument} = {value:#x}, the last: {said:?}"));
        }
    }

    /// Two arguments at once: sums that are too large, say.
    fn together(&mut self, op: Op, row: &Row) {
        let used = row.a.iter().rposition(|value| *value != 0).map_or(0, |last| last + 1);
        for (first, second) in (1..used).flat_map(|second| (1..second).map(move |first| (first, second))) {
            for (one, other) in BOTH.into_iter().flat_map(|one| BOTH.map(|other| (one, other))) {
                let mut a = row.a;
                (a[first], a[second]) = (one, other);
                self.take(op, a);
            }
        }
    }
}

fn every_operation_on(home: u64) {
    let mut trial = Trial::new(home);
    for op in Op::ALL {
        let row = row(*op, home);
        trial.alone(*op, &row);
        trial.together(*op, &row);
    }
    assert!(trial.failures.is_empty(), "{}", trial.failures.join("\n"));
}

#[test]
fn every_argument_of_every_operation_is_tried_at_its_bounds() {
    every_operation_on(0);
}

#[test]
fn every_argument_is_tried_at_its_bounds_where_the_object_is_another_cpus() {
    every_operation_on(1);
}

/// Slots of another kind, empty ones and those beyond the table.
#[test]
fn every_operation_looks_what_its_capability_is() {
    let mut trial = Trial::new(0);
    for op in Op::ALL {
        let row = row(*op, 0);
        // Those have none, or may do without, or look first whether they serve anybody.
        if matches!(op, Op::Wait | Op::Log | Op::Clock | Op::Exit | Op::Yield | Op::ReplyAndWait | Op::QueueNext | Op::Forward) {
            continue;
        }
        for selector in [0, 5, 511, 512, SLOTS - 1, SLOTS, SLOTS + 1, 65_535, 65_536, u64::MAX] {
            let mut a = row.a;
            a[0] = selector;
            let said = trial.take(*op, a);
            assert_eq!(said, Some(Err(Refusal::NoCapability)), "{op:?} {selector:#x}");
        }
    }
    assert!(trial.failures.is_empty(), "{}", trial.failures.join("\n"));
}
