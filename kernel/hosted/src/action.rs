// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random steps: system calls with arguments that are nearly right or not at all, exits, touches, interrupts, time.
//! The same steps feed the laws' test and the fuzzer.

use crate::digest::digest;
use crate::hosted::{Hosted, Now};
use crate::laws::{self, Broken};
use crate::small;
use trellis_core::cap::Cap;
use trellis_core::frame::{Run, Use};
use trellis_core::lines::SoftwareInterrupt;
use trellis_core::local::Running;
use trellis_core::shared::DOMAINS;
use trellis_core::table::{SLOTS, TableRange};
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_idl::kernel::{ANY_VIEW, Access, ExitClass, GuestCall, Kind, Op, PASSIVE, PLACE, Refusal, Rights};

/// One step: numbers that mean something only when it is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Step {
    /// Which CPU.
    pub cpu: u8,
    /// What happens there.
    pub what: u8,
    /// Which operation.
    pub op: u8,
    /// What its arguments are like.
    pub choice: [u16; 6],
    /// A word of its message.
    pub word: u64,
}

/// What an argument is.
#[derive(Clone, Copy)]
enum Shape {
    /// Nothing.
    No,
    /// A slot that holds this kind.
    Of(Kind),
    /// A slot that holds a portal or a session.
    Entry,
    /// Any slot in use.
    Used,
    /// An empty slot.
    Empty,
    /// Below this.
    Below(u64),
    /// A guest page, in the guest's memory mostly.
    GuestPage,
    /// The same in some view.
    ViewPage,
    /// A view, or any.
    View,
    /// Pages of a block.
    Block,
    /// An address in a domain.
    Address,
    /// Pages: few, or a block's worth.
    Pages,
    /// Where in a run.
    Offset,
    /// A first line: a multiple of this.
    Line(u64),
    /// Access or rights bits.
    Bits,
    /// What an answer changes; the view of a step where it has one.
    Answer,
    /// A vCPU's number, now and then with the bit of a place.
    Number,
    /// A vCPU's register, or a number beside them.
    Register,
    /// A time soon.
    Soon,
    /// How long an answer may take.
    Patience,
    /// A priority, or passive.
    Priority,
    /// A budget, or none.
    Budget,
    /// Any word.
    Word,
    /// Any half of a word.
    Half,
    /// A service that has begun.
    Taken,
    /// The epoch of a session.
    Epoch,
}

fn shape(op: Op) -> [Shape; 6] {
    use Shape::*;
    let of = |a: &[Shape]| {
        let mut all = [No; 6];
        all[..a.len()].copy_from_slice(a);
        all
    };
    match op {
        Op::Call => of(&[Of(Kind::Portal), Below(2)]),
        Op::ReplyAndWait => of(&[Answer, Below(2)]),
        Op::Forward => of(&[Entry]),
        Op::Signal => of(&[Of(Kind::Signal)]),
        Op::Wait => of(&[Below(4), Soon]),
        Op::Clock | Op::Exit | Op::Yield => of(&[]),
        Op::FramesSplit => of(&[Of(Kind::Frames), Offset, Pages, Empty]),
        Op::FramesReclaim | Op::FramesInfo => of(&[Of(Kind::Frames)]),
        Op::DomainCreate => of(&[Of(Kind::Frames), Below(40), Below(5), Empty]),
        Op::DomainMap => of(&[Of(Kind::Domain), Address, Of(Kind::Frames), Offset, Pages, Bits]),
        Op::DomainUnmap => of(&[Of(Kind::Domain), Address, Pages]),
        Op::DomainDestroy => of(&[Of(Kind::Domain)]),
        Op::ThreadCreate => of(&[Of(Kind::Domain), Below(2), Priority, Empty, Address, Budget]),
        Op::ThreadStart => of(&[Of(Kind::Thread), Address, Address, Word]),
        Op::ThreadDestroy => of(&[Of(Kind::Thread)]),
        Op::ThreadFault => of(&[Of(Kind::Thread), Below(40)]),
        Op::ThreadSupervise => of(&[Of(Kind::Thread), Of(Kind::Signal), Patience]),
        Op::ThreadFloat => of(&[Of(Kind::Thread), Of(Kind::Frames)]),
        Op::PortalCreate => of(&[Of(Kind::Thread), Word, Empty]),
        Op::SignalCreate => of(&[Of(Kind::Thread), Below(8), Empty]),
        Op::Grant => of(&[Used, Of(Kind::Domain), Below(64), Bits, Below(3)]),
        Op::Drop | Op::Revoke => of(&[Used]),
        Op::GuestCreate => of(&[Of(Kind::Frames), Below(6), Empty, Below(6), Below(4), Below(4)]),
        Op::GuestMap => of(&[Of(Kind::Guest), GuestPage, Of(Kind::Frames), Offset, Pages, Bits]),
        Op::GuestUnmap => of(&[Of(Kind::Guest), ViewPage, Pages]),
        Op::GuestProtect => of(&[Of(Kind::Guest), ViewPage, Pages, Bits]),
        Op::GuestRead | Op::GuestWrite => of(&[Of(Kind::Guest), Address, Address, Below(9000)]),
        Op::GuestDestroy | Op::GuestInfo => of(&[Of(Kind::Guest)]),
        Op::ViewCreate => of(&[Of(Kind::Guest), View]),
        Op::ViewDestroy => of(&[Of(Kind::Guest), View]),
        Op::ViewReset => of(&[Of(Kind::Guest), ViewPage]),
        Op::ViewCopy => of(&[Of(Kind::Guest), ViewPage, Pages, Bits, Block]),
        Op::ViewRemap => of(&[Of(Kind::Guest), ViewPage, GuestPage, Bits]),
        Op::ViewSwitch => of(&[Of(Kind::Guest), Below(3), View]),
        Op::ViewShow => of(&[Of(Kind::Guest), View, Below(3)]),
        Op::ViewOf => of(&[Of(Kind::Guest), Below(3)]),
        Op::SessionCreate => of(&[Of(Kind::Guest), Below(5), Empty]),
        Op::SessionPlace => of(&[Of(Kind::Session), Below(3), Below(3), Of(Kind::Portal)]),
        Op::SessionCommit => of(&[Of(Kind::Session), Epoch, Below(5)]),
        Op::SessionSettle => of(&[Of(Kind::Session), Below(3)]),
        Op::SessionInfo => of(&[Of(Kind::Session)]),
        Op::VcpuCreate => of(&[Of(Kind::Guest), Below(2), Number, Empty, Priority, Budget]),
        Op::VcpuRoute => of(&[Of(Kind::Vcpu), Below(17), Of(Kind::Portal), Below(8), Word]),
        Op::VcpuWindow => of(&[Of(Kind::Vcpu), Below(17), GuestPage, Pages, Below(11)]),
        Op::VcpuTraps => of(&[Of(Kind::Vcpu), Below(5)]),
        Op::GuestSwap => of(&[Of(Kind::Guest), Address, Word, Word, Word, Word]),
        Op::VcpuGet => of(&[Of(Kind::Vcpu), Register]),
        Op::VcpuSet => of(&[Of(Kind::Vcpu), Register, Word]),
        Op::VcpuLaunch => of(&[Of(Kind::Vcpu), GuestPage, Word]),
        Op::VcpuStart | Op::VcpuStop => of(&[Of(Kind::Vcpu), Below(2), Below(4)]),
        Op::VcpuReset | Op::VcpuDestroy | Op::VcpuMove => of(&[Of(Kind::Vcpu)]),
        Op::VcpuException => of(&[Of(Kind::Vcpu), Word, Word]),
        Op::LinesWrite => of(&[Of(Kind::Vcpu), Below(7), Line(32), Half, Half, Below(10)]),
        Op::LinesRead => of(&[Of(Kind::Vcpu), Below(7), Line(32), Below(10)]),
        Op::LinesPriority => of(&[Of(Kind::Vcpu), Line(4), Word, Below(16)]),
        Op::LinesPriorityRead => of(&[Of(Kind::Vcpu), Line(4)]),
        Op::LineTarget => of(&[Of(Kind::Vcpu), Below(129), Below(0x1_0000)]),
        Op::LineTake => of(&[Of(Kind::Vcpu), Below(129)]),
        Op::LinesEnable => of(&[Of(Kind::Vcpu), Below(3)]),
        Op::LineBind => of(&[Of(Kind::Line), Of(Kind::Signal)]),
        Op::LineAck => of(&[Of(Kind::Line), Below(3), Below(4)]),
        Op::LineForward => of(&[Of(Kind::Line), Below(140)]),
        Op::LineRelease => of(&[Of(Kind::Line)]),
        Op::LineTie => of(&[Of(Kind::Vcpu), Of(Kind::Line), Below(4)]),
        Op::LinePass => of(&[Of(Kind::Vcpu), Taken]),
        Op::QueueServe => of(&[Of(Kind::System), Of(Kind::Signal), Below(3)]),
        Op::QueueTake => of(&[Of(Kind::System)]),
        Op::QueueDone => of(&[Of(Kind::System), Taken]),
        Op::QueueNext => of(&[Of(Kind::Vcpu), Taken, Below(4), Soon]),
        Op::LineCreate => of(&[Of(Kind::System), Below(64), Empty, Below(3)]),
        Op::SystemOff => of(&[Of(Kind::System), Below(2)]),
        Op::Log => of(&[Below(64)]),
        Op::LogRead => of(&[Of(Kind::System)]),
        Op::Fact => of(&[Of(Kind::System), Below(10), Below(10)]),
        Op::TraceRead => of(&[Of(Kind::System), Below(3), Below(600)]),
        Op::CpuRetire => of(&[Of(Kind::System), Below(9)]),
    }
}

/// Operations after which less can happen: not taken as often as others.
const ENDING: [Op; 11] = [
    Op::DomainDestroy, Op::GuestDestroy, Op::ThreadDestroy, Op::Drop, Op::Revoke, Op::SystemOff, Op::FramesReclaim,
    Op::VcpuDestroy, Op::LineRelease, Op::CpuRetire, Op::Exit,
];

/// What is done instead.
const MAKING: [Op; 17] = [
    Op::SessionPlace, Op::SessionCommit,
    Op::ViewCreate, Op::ViewCopy, Op::ViewRemap, Op::ViewSwitch, Op::Call, Op::FramesSplit, Op::DomainMap, Op::ThreadCreate, Op::ThreadStart, Op::Forward, Op::GuestMap,
    Op::VcpuStart, Op::LinesWrite, Op::LinesEnable, Op::VcpuCreate,
];

/// Words that are nobody's friend.
const HOSTILE: [u64; 8] = [0, 1, u64::MAX, 1 << 56, i64::MIN as u64, 1 << 48, 0xffff_ffff, (1 << 27) - 1];

/// The running thread, its table and domain.
struct Caller {
    thread: u16,
    table: TableRange,
    domain: u16,
}

impl Caller {
    fn of(hosted: &Hosted, cpu: u16) -> Option<Caller> {
        let local = &hosted.cpus[cpu as usize].local;
        let Running::Thread(thread) = local.running else { return None };
        let t = local.threads.at(thread);
        Some(Caller { thread, table: t.table, domain: t.domain })
    }

    /// The `n`th slot that satisfies.
    fn slot(&self, hosted: &Hosted, n: u64, is: impl Fn(Cap) -> bool) -> u64 {
        let table = &hosted.shared.table;
        let most = self.table.count.min(160) as u64;
        let all: Vec<u64> = (1..most).filter(|slot| is(table.read(self.table, *slot))).collect();
        if all.is_empty() { n } else { all[(n % all.len() as u64) as usize] }
    }
}

fn argument(hosted: &Hosted, caller: &Caller, shape: Shape, choice: u16, word: u64) -> u64 {
    let n = u64::from(choice) / 24;
    if choice.is_multiple_of(24) {
        return HOSTILE[(n % 8) as usize];
    }
    match shape {
        Shape::No => 0,
        Shape::Of(kind) => caller.slot(hosted, n, |cap| cap.word.is(kind, Rights(0))),
        Shape::Entry => {
            let kind = if n.is_multiple_of(3) { Kind::Session } else { Kind::Portal };
            caller.slot(hosted, n, |cap| cap.word.is(kind, Rights(0)))
        }
        Shape::Used => caller.slot(hosted, n, |cap| !cap.word.is_empty()),
        Shape::Empty => caller.slot(hosted, n % 8, |cap| cap.word.is_empty()),
        Shape::Below(most) => n % most,
        Shape::GuestPage => small::GUEST_PAGE + [0, 1, 5, 511, 512, 513, 1000, 1024][(n % 8) as usize],
        Shape::ViewPage => {
            let page = if n.is_multiple_of(7) { 0 } else { argument(hosted, caller, Shape::GuestPage, choice, word) };
            (u64::from(choice) / 4 % 4) << 48 | page
        }
        Shape::View => if n.is_multiple_of(5) { ANY_VIEW } else { n % 5 },
        Shape::Block => [1, 512, 512 * 512][(n % 3) as usize],
        Shape::Address => match n % 4 {
            0 => small::BUFFER,
            1 => small::GUEST_PAGE * 4096 + n * 8,
            _ => small::BUFFER + n % 16 * 4096,
        },
        Shape::Pages => [1, 1, 2, 3, 0, 511, 512, 1024][(n % 8) as usize],
        Shape::Offset => if n.is_multiple_of(4) { n % 4 * 512 } else { n % 40 },
        Shape::Line(step) => n % (130 / step) * step,
        Shape::Taken => hosted.taken.get((n % 4) as usize).copied().unwrap_or(n),
        Shape::Epoch => u64::from(hosted.shared.sessions[(n % 2) as usize][0].owner.now().0),
        Shape::Half => word >> (n % 32) & 0xffff_ffff,
        Shape::Bits => if n.is_multiple_of(8) { 0xff } else { n % 16 },
        Shape::Answer if n / 32 % 4 == 1 => 32 | n % 8 | (n / 8 % 2) << 6 | (n / 128 % 6) << 16,
        Shape::Answer => n % 32,
        Shape::Number => n / 4 % 3 / 2 * PLACE | n % 4,
        Shape::Register if n.is_multiple_of(2) => n / 2 % 72,
        Shape::Register => [0x1000, 0x2000, 0x3000][(n % 3) as usize] + word % 0x420,
        Shape::Soon => hosted.board.borrow().now + n % 5000,
        Shape::Patience => n % 3 * 1500,
        Shape::Priority => if n.is_multiple_of(3) { PASSIVE } else { n % 250 },
        Shape::Budget => if n.is_multiple_of(3) { 0 } else { (n % 9 * 500) | (n % 7 * 1000) << 32 },
        Shape::Word => word >> (n % 32),
    }
}

/// Takes a step; says which law it broke.
pub fn take(hosted: &mut Hosted, step: &Step) -> Result<(), Broken> {
    let count = hosted.cpus.len() as u16;
    let mut cpu = u16::from(step.cpu) % count;
    if step.what & 0x60 != 0 {
        // Mostly something happens where something runs.
        cpu = (0..count).map(|i| (cpu + i) % count).find(|cpu| hosted.now(*cpu) != Now::Idle).unwrap_or(cpu);
    }
    if hosted.board.borrow().retired.contains(&cpu) {
        return Ok(());
    }
    match hosted.now(cpu) {
        Now::Thread(_) => thread_step(hosted, cpu, step)?,
        Now::Guest(_) => guest_step(hosted, cpu, step),
        Now::Idle => idle_step(hosted, cpu, step),
    }
    if step.what & 0x80 != 0 {
        hosted.deliver_kicks();
    }
    laws::quick(hosted)
}

fn interrupt(hosted: &mut Hosted, cpu: u16, step: &Step) {
    match step.choice[1] % 4 {
        0 => drop(hosted.trap(cpu, Trap::Spurious)),
        1 => drop(hosted.trap(cpu, Trap::Kick)),
        2 => drop(hosted.trap(cpu, Trap::Line(32 + u32::from(step.choice[2] % 32)))),
        _ => hosted.advance(u64::from(step.choice[2]) * 4),
    }
}

fn idle_step(hosted: &mut Hosted, cpu: u16, step: &Step) {
    hosted.deliver_kicks();
    interrupt(hosted, cpu, step);
    hosted.advance(20_000);
}

fn guest_step(hosted: &mut Hosted, cpu: u16, step: &Step) {
    let n = u64::from(step.choice[0]);
    match step.what % 8 {
        0..=2 => {
            let page = small::GUEST_PAGE + n % 1100;
            let access = Access([1, 2, 4][usize::from(step.choice[1] % 3)]);
            hosted.touch(cpu, page * 4096 + n % 512 * 8, access);
        }
        3 => {
            let class = ExitClass::ALL[n as usize % 10];
            hosted.exit(cpu, class, [0, 1, 2, 3, 4, 5, 6, 7, 8, step.word]);
        }
        4 if n & 1 == 1 => drop(hosted.float(cpu).map(|file| file.status[0] = step.word)),
        4 => drop(hosted.wait_for_interrupt(cpu)),
        5 => {
            if let Some(line) = hosted.acknowledge(cpu) {
                hosted.end_of_interrupt(cpu, line);
            }
        }
        6 if step.op & 32 != 0 => {
            let call = [GuestCall::Switch, GuestCall::Notify, GuestCall::Return][usize::from(step.choice[1] % 3)];
            let page = (small::GUEST_PAGE + n % 1100) * 4096;
            let x0 = if call == GuestCall::Switch { n % 6 } else { [page, u64::MAX, page + 8][usize::from(step.choice[2] % 3)] };
            hosted.guest_call(cpu, call, [x0, 0x4000]);
        }
        6 => {
            let what = SoftwareInterrupt { line: step.op & 15, targets: step.word, others: n & 1 == 1 };
            hosted.trap(cpu, Trap::SoftwareInterrupt(what));
        }
        _ => interrupt(hosted, cpu, step),
    }
}

fn thread_step(hosted: &mut Hosted, cpu: u16, step: &Step) -> Result<(), Broken> {
    let Some(caller) = Caller::of(hosted, cpu) else { return Ok(()) };
    let is_root = caller.domain == 0;
    match step.what % 32 {
        0 | 1 => interrupt(hosted, cpu, step),
        2 if !is_root && step.choice[0] & 1 == 1 => drop(hosted.trap(cpu, Trap::Fault(FaultRecord { syndrome: 1, address: 2 }))),
        2 => drop(hosted.float(cpu).map(|file| file.status[1] = step.word)),
        3 => drop(hosted.touch_own(cpu, small::BUFFER + u64::from(step.choice[0] % 8) * 4096, Access::WRITE)),
        // Servers mostly serve, and everybody waits now and then, or nothing else would ever run.
        4..=11 if !is_root => call(hosted, cpu, &caller, Op::ReplyAndWait, step)?,
        12..=13 => call(hosted, cpu, &caller, Op::Wait, step)?,
        _ => {
            let mut op = Op::ALL[usize::from(step.op) % Op::ALL.len()];
            if ENDING.contains(&op) && !step.word.is_multiple_of(4) {
                op = MAKING[usize::from(step.op) % MAKING.len()];
            }
            if !(is_root && op == Op::Exit) {
                call(hosted, cpu, &caller, op, step)?;
            }
        }
    }
    Ok(())
}

fn call(hosted: &mut Hosted, cpu: u16, caller: &Caller, op: Op, step: &Step) -> Result<(), Broken> {
    let shapes = shape(op);
    let a = std::array::from_fn(|i| argument(hosted, caller, shapes[i], step.choice[i], step.word));
    let before = digest(hosted);
    let tables = runs_of_tables(hosted);
    let now = hosted.syscall(cpu, op as u16, a, [step.word; 10]);
    let goes_on = now == Now::Thread(caller.thread);
    let result = Refusal::from_register(hosted.registers(cpu).x[0]);
    match result {
        Err(refusal) if goes_on => {
            // The power switch is asked before it can say that it came back.
            if op != Op::SystemOff && digest(hosted) != before {
                return Err(format!("{op:?} {a:x?} was refused ({refusal:?}) and changed something"));
            }
            Ok(())
        }
        Ok(count) if goes_on && op == Op::QueueTake => {
            let services = hosted.registers(cpu).x;
            hosted.taken.splice(0..0, services[1..].iter().copied().take(count as usize));
            hosted.taken.truncate(4);
            Ok(())
        }
        Ok(_) if goes_on => after(hosted, cpu, caller, op, &a).map_err(|broken| format!("{op:?} {a:x?}: {broken}")),
        _ => Ok(()),
    }?;
    tables_came_back_clean(hosted, &tables)
}

/// What is particular to one operation.
fn after(hosted: &Hosted, cpu: u16, caller: &Caller, op: Op, a: &[u64; 6]) -> Result<(), Broken> {
    let table = &hosted.shared.table;
    match op {
        Op::Grant => {
            let (source, domain) = (table.read(caller.table, a[0]), table.read(caller.table, a[1]));
            let index = (domain.name & 0xffff) as usize;
            let target = table.read(hosted.shared.domains[index % DOMAINS].lock().table, a[2]);
            let grew = target.word.rights().0 & !(source.word.rights().0 & a[3] as u8) != 0;
            // A badge comes to what has none, by who controls it; none that is there changes.
            let badge = target.word.badge();
            let may_badge = source.word.badge() == 0 && source.word.rights().covers(Rights::CONTROL);
            let is_own = badge == source.word.badge() || may_badge && badge == source.word.badged(a[4]).badge();
            if grew || target.name != source.name || !is_own {
                return Err(format!("{source:x?} became {target:x?}"));
            }
        }
        Op::FramesSplit => {
            let (whole, part) = (table.read(caller.table, a[0]), table.read(caller.table, a[3]));
            let grew = part.word.rights().0 & !whole.word.rights().0 != 0;
            if grew {
                return Err(format!("{part:x?} was split off {whole:x?}"));
            }
            is_clean(hosted, &run(hosted, part)?)?;
        }
        // With more to do it is not to be used, and that is all.
        Op::FramesReclaim | Op::Revoke if hosted.registers(cpu).x[0] != 0 => {}
        Op::FramesReclaim => {
            let cap = table.read(caller.table, a[0]);
            let run = run(hosted, cap)?;
            is_clean(hosted, &run)?;
            if !run.constant {
                out_of_reach(hosted, &run)?;
            }
            alone(hosted, cap)?;
            laws::full(hosted)?;
        }
        Op::Revoke => {
            let cap = table.read(caller.table, a[0]);
            if !cap.word.is(Kind::System, Rights(0)) {
                alone(hosted, cap)?;
            }
        }
        Op::ViewDestroy | Op::ViewReset | Op::ViewCopy | Op::ViewRemap | Op::GuestUnmap => laws::full(hosted)?,
        Op::DomainMap | Op::GuestMap => {
            let held = u64::from(table.read(caller.table, a[2]).word.rights().0);
            if a[5] & !held != 0 {
                return Err(format!("access {:x} through a capability with rights {held:x}", a[5]));
            }
            laws::full(hosted)?;
        }
        Op::GuestProtect | Op::DomainDestroy | Op::GuestDestroy => laws::full(hosted)?,
        _ => {}
    }
    Ok(())
}

fn run(hosted: &Hosted, cap: Cap) -> Result<Run, Broken> {
    let control = hosted.shared.control.lock();
    control.runs.get(cap.name).copied().map_err(|_| format!("{cap:x?} names no run"))
}

fn is_clean(hosted: &Hosted, run: &Run) -> Result<(), Broken> {
    let board = hosted.board.borrow();
    let dirty = (run.first..run.first + run.pages).find(|page| !run.device && !run.constant && !board.is_clean(*page));
    dirty.map_or(Ok(()), |page| Err(format!("page {page:#x} was handed over unclean")))
}

/// Neither a TLB nor a message buffer leads to the run.
fn out_of_reach(hosted: &Hosted, run: &Run) -> Result<(), Broken> {
    let range = run.first..run.first + run.pages;
    let cached = hosted.board.borrow().tlb.values().any(|cached| range.contains(&cached.leaf.page));
    let threads = |cpu: &crate::hosted::Cpu| {
        cpu.local.threads.names().any(|id| cpu.local.threads.get(id).is_some_and(|t| range.contains(&t.buffer)))
    };
    if cached || hosted.cpus.iter().any(threads) {
        return Err(format!("the run at {:#x} was taken back and can still be reached", run.first));
    }
    Ok(())
}

/// Nobody else has a capability to the object.
fn alone(hosted: &Hosted, cap: Cap) -> Result<(), Broken> {
    let all = TableRange { first: 0, count: SLOTS as u32 };
    let same = |other: &Cap| other.name == cap.name && other.word.0 & 0xff == cap.word.0 & 0xff;
    let count = (0..SLOTS as u64).filter(|slot| same(&hosted.shared.table.read(all, *slot))).count();
    if count == 1 { Ok(()) } else { Err(format!("{count} capabilities are left to {cap:x?}")) }
}

fn runs_of_tables(hosted: &Hosted) -> Vec<u64> {
    let control = hosted.shared.control.lock();
    let tables = control.runs.pool.names().filter(|id| {
        control.runs.pool.get(*id).is_some_and(|run| run.use_ == Use::Tables)
    });
    tables.map(|id| id.0).collect()
}

fn tables_came_back_clean(hosted: &Hosted, before: &[u64]) -> Result<(), Broken> {
    for name in before {
        let run = hosted.shared.control.lock().runs.get(*name).copied();
        if let Ok(run) = run
            && run.use_ == Use::Memory
        {
            is_clean(hosted, &run)?;
        }
    }
    Ok(())
}
