// SPDX-License-Identifier: MIT OR Apache-2.0
//! What travels between servers beyond the kernel's own messages, and over the serial port.
//!
//! Serial port: each frame is `COBS(kind, channel, payload…, CRC-16 little-endian)` followed by a zero byte; the CRC
//! (CRC-16/IBM-3740, as crate `crc` names it) covers kind, channel and payload. Bytes that belong to no valid frame are
//! raw text, such as the kernel prints before the console server runs and when it panics.

use crate::event::Injected;
use crate::kernel::{ExitClass, Refusal};
use crate::plan::{OnReset, Rule};
use crate::trace::Record;
use heapless::{String, Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Kinds of frames on the serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Board to host: bytes of the kernel's log.
    KernelLog = 1,
    /// Board to host: text of a server's log; channel = index of the server in the plan, 255 = root.
    ServerLog = 2,
    /// Board to host: bytes of a guest's serial port; channel = index of the guest in the plan. Host to board: its input.
    Guest = 3,
    /// Board to host: a postcard [`Report`].
    Report = 4,
    /// Host to board: a question; board to host: a part of its answer ([`crate::control`]). Channel 0.
    Control = 5,
}

impl FrameKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<FrameKind> {
        use FrameKind::*;
        match number {
            1 => Some(KernelLog),
            2 => Some(ServerLog),
            3 => Some(Guest),
            4 => Some(Report),
            5 => Some(Control),
            _ => None,
        }
    }
}

/// Channel of root in [`FrameKind::ServerLog`].
pub const ROOT_CHANNEL: u8 = 255;
/// Added to the index of a monitor: the log of the other one of its name, while one takes the other's place.
pub const SECOND_LOG: u8 = 64;
/// Most payload bytes in a frame.
pub const MAX_PAYLOAD: usize = 512;

/// What root tells the host in numbers; the host turns it into sentences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Report {
    /// Root runs: instructions since the kernel's first one (ticks at 1 GHz under `--icount`), bytes the kernel keeps.
    Started {
        /// Ticks of the clock from the kernel's first instruction to root's.
        boot_ticks: u64,
        /// Ticks a second.
        clock_hz: u64,
        /// Bytes of memory the kernel keeps.
        kernel_memory: u64,
        /// Version of these reports ([`HOST`](crate::interface::HOST)).
        version: u16,
        /// Their schema's hash: a tool that has another cannot know what the next reports mean.
        schema: u64,
    },
    /// A guest came to an end.
    GuestEnded {
        /// Its index in the plan.
        guest: u8,
        /// How.
        end: GuestEnd,
    },
    /// A guest starts again.
    GuestRebooted {
        /// Its index in the plan.
        guest: u8,
        /// How often it has now.
        times: u32,
    },
    /// A server stopped.
    ServerFaulted {
        /// Its index in the plan.
        server: u8,
        /// Its registers.
        record: Fault,
    },
    /// Every essential guest has ended; the machine goes off.
    Off {
        /// All ended well.
        well: bool,
    },
    /// A server took too long for an answer.
    ServerLate {
        /// Its index in the plan.
        server: u8,
        /// The vCPU whose exit it was and the exit's class, unless it was a thread's call.
        exit: Option<(u8, u8)>,
    },
    /// What a CPU did, piece by piece from the start ([`Plan::trace`](crate::plan::Plan::trace)).
    Trace {
        /// Which CPU.
        cpu: u8,
        /// Records between the last piece of this CPU and this one are lost.
        is_gap: bool,
        /// In the order they were noted.
        records: Vec<Record, TRACE_PIECE>,
    },
    /// What a CPU did before something faulted there; comes right after the report of that.
    Last {
        /// Which CPU.
        cpu: u8,
        /// In the order they were noted.
        records: Vec<Record, TRACE_PIECE>,
    },
    /// A device touched memory that is not its guest's, and the SMMU stopped it.
    DeviceStopped(Stopped),
}

/// An access of a device that the SMMU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Stopped {
    /// The guest that owns the device.
    pub guest: u8,
    /// The line of the manifest that gives the guest the device.
    pub line: u32,
    /// The address, as the device said it.
    pub address: u64,
    /// Why: the number of the SMMU's event (SMMUv3 7.3).
    pub event: u8,
    /// It was a write.
    pub writes: bool,
    /// So many others of this device since it was told of last are not told.
    pub more: u32,
}

/// Most records in a report: none takes more than 40 bytes, and a report has to fit [`MAX_PAYLOAD`].
pub const TRACE_PIECE: usize = 12;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum GuestEnd {
    /// It switched itself off.
    Off,
    /// It asked for a reset and the manifest says `on-reset = "end"`.
    Reset,
    /// It ended with a status of its own (not 0).
    Status(u64),
    /// It did something that nobody answers.
    Crash(Crash),
    /// One of its servers stopped.
    Server(u8),
    /// It was not started: the machine cannot give it the scalable vectors that its manifest asks for.
    Vectors {
        /// Lanes of 128 bits that it asks for; 0 = as many as there are.
        wanted: u8,
        /// Lengths that every CPU has: bit n for n + 1 lanes.
        lengths: u16,
    },
    /// A monitor stopped it: index of the monitor's server in the plan.
    Stopped(u8),
}

/// Why a guest crashed, with its registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Crash {
    /// Which vCPU.
    pub vcpu: u8,
    /// What it stopped for.
    pub class: u8,
    /// The machine's syndrome.
    pub syndrome: u64,
    /// Guest-physical address, if it was an access.
    pub physical: u64,
    /// Guest virtual address.
    pub virtual_address: u64,
    /// Program counter.
    pub pc: u64,
    /// Processor state.
    pub pstate: u64,
    /// x0–x30.
    pub general: Vec<u64, 31>,
}

impl Crash {
    /// What it stopped for, by name.
    pub fn exit_class(&self) -> Option<ExitClass> {
        ExitClass::from_number(self.class.into())
    }
}

/// A server's registers when it stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Fault {
    /// The machine's syndrome.
    pub syndrome: u64,
    /// The address.
    pub address: u64,
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// x0–x30.
    pub general: Vec<u64, 31>,
}

/// What a server tells root; in the report ring, one record a length byte pair and postcard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum ToRoot {
    /// The guest ended; every vCPU is stopped or will find itself stopped.
    Ended(GuestEnd),
    /// The guest asks for a reset.
    Reset,
    /// The server is ready.
    Ready,
    /// The server cannot go on.
    Failed(String<96>),
    /// Monitor: a verdict ends the guest of this place ([`crate::plan::MonitorConfig::guests`]).
    Stop(u8),
    /// smmu: an access of a device was stopped.
    DeviceStopped(Stopped),
}

/// What a monitor was told of and said to it, in its ring of these ([`crate::layout::ring::SEEN`]): for the host to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Seen {
    /// The guest, by its place ([`crate::plan::MonitorConfig::guests`]).
    pub place: u8,
    /// The vCPU.
    pub vcpu: u8,
    /// The rule that speaks of it.
    pub rule: u8,
    /// What was said: the number of a [`crate::plan::RuleVerdict`].
    pub verdict: u8,
    /// Which event of this vCPU it is; the same when it is told again.
    pub number: u64,
    /// So many before it found no room.
    pub lost: u32,
    /// The first word of the exit ([`crate::kernel::ExitHeader`]).
    pub header: u64,
    /// Guest-physical address.
    pub physical: u64,
    /// Program counter.
    pub pc: u64,
    /// When: ticks.
    pub time: u64,
}

/// Operations of a vcpu server's control portal (`m0`); root calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum VcpuOp {
    /// Loads the guest's parts into its memory and starts vCPU 0. Back: `m0` = 0 or 1 + a refusal.
    Start = 1,
    /// Stops all vCPUs and forgets all platform state. Root has stopped and cleared memory before or does so next.
    Reset = 2,
    /// Says how to answer an event, an exit of class Memory or one of [`EventKind`](crate::event::EventKind), so that what the guest tried is carried
    /// out ([`Order::Do`]), or has no effect and otherwise seems to have been ([`Order::Deny`], [`Order::Give`]), or ends in an
    /// exception of the guest's ([`Order::Inject`]): for whoever answers exits and knows no machine, on the vCPU's CPU,
    /// while the exit waits for that answer. `m1` = the vCPU's number, and the [`Order`] from bit 8 on; `m2` = what the order
    /// says; `m3` = which exit of this vCPU it is (asked again with the same number it says the same); `m4`–`m7` = the
    /// first four words of the exit. Back: `m0` = 0 or 1 + a refusal; `m1` = bits of [`crate::kernel::Answer`]; `m2`–`m7` =
    /// `m4`–`m9` of the answer. Refused: `OutOfRange` (no such vCPU), `BadArgument` (no such order), `Unsupported` (an
    /// instruction that is not known; for [`Order::Do`] a step in view 0 still does it), `NotMapped` (it cannot be read).
    Complete = 3,
    /// Which vCPUs the guest has switched on. Back: `m0` = 0, `m1` = a bit each.
    Power = 4,
    /// A monitor says all that its session hears of this guest's processor from now on: `m1` = a bit for each [`EventKind`](crate::event::EventKind), and 32
    /// bits above it those of which it is only told, through its ring, while they happen; of
    /// those that are registers, `m2` = only where the value changes, and `m3`–`m8` = bits of SystemControl, Tables0, …
    /// whose changes alone are none. It says states, so asking again changes nothing. Back: `m0`. Refused:
    /// `BadArgument` (no such kind), `Occupied` (another session hears of one of them), `OutOfRange` (no such session).
    Listen = 5,
}

/// What shall become of an access, for [`VcpuOp::Complete`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum Order {
    /// It is carried out.
    Do = 0,
    /// It has no effect on memory. Registers that it changes change: a read gives `m2`, an exclusive store succeeds. A call
    /// is answered as one that does not exist.
    Deny = 1,
    /// As `Deny`; a call gives `m2` too.
    Give = 2,
    /// The guest gets an exception there: `m2` is an [`Injected`].
    Inject = 3,
}

impl Order {
    /// The order with this number.
    pub const fn from_number(number: u64) -> Option<Order> {
        match number {
            0 => Some(Order::Do),
            1 => Some(Order::Deny),
            2 => Some(Order::Give),
            3 => Some(Order::Inject),
            _ => None,
        }
    }
}

/// Operations of a p2m server (`m0`); the guest's vcpu server and root call them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum P2mOp {
    /// Answers when the server is ready: `m0` = 0.
    Ready = 1,
    /// Makes sure that `m2` guest pages from `m1` have frames. Back: `m0` = 0 or 1 + a refusal.
    Populate = 2,
    /// Forgets every mapping and starts as at the beginning (the guest's memory has been cleared). Back: `m0`.
    Reset = 3,
    /// Gives `m2` guest pages from `m1` frames and the access in `m3` ([`crate::kernel::Access`] bits). Back: `m0`.
    Protect = 4,
    /// Shows zeroes, to be read only, at the guest page `m1`, which is not memory. Back: `m0`.
    Blank = 5,
    /// Makes sure that all of [`PageRanges`] have frames; the body stands as `runtime::message` says, in the words or in the
    /// message buffer. Back: nothing, or the refusal of the first range that cannot have them.
    PopulateAll = 6,

    // Views. Only root calls these (and, later, whoever may watch the guest). Back: `m0` = 0 or 1 + a refusal, `m1` a
    // value, `m2` the first page that could not be done. *Where* is view << 48 | guest page.
    /// Makes a view: `m1` index or [`crate::kernel::ANY_VIEW`], `m2` its default [`ViewAccess`] (`DEFAULT` = as the host
    /// map), `m3` 1 = the guest itself may enter it. Back: `m1` = index.
    ViewCreate = 16,
    /// Destroys view `m1`. Refused: `BadArgument` (view 0), `BadState` (a vCPU is in it), `NotMapped`.
    ViewDestroy = 17,
    /// Puts vCPU `m1` (all ones: every vCPU; then only into a view shown to the guest) into view `m2`.
    ViewSwitch = 18,
    /// Sets the default access of view `m1` (not 0) to `m2`: of every page that has none of its own.
    ViewSetDefault = 19,
    /// Back: `m1` = the default access of view `m1`.
    ViewDefault = 20,
    /// Gives `m2` pages at *where* `m1` the access `m3`. Back: `m1` = pages done; go on behind them.
    ViewSetAccess = 21,
    /// Gives each of the `m3` (at most 6) pages in `m4`–`m9` the access `m2` in view `m1`. Back: `m1` = pages done; the
    /// first that fails ends it.
    ViewSetAccessList = 22,
    /// Back: `m1` = the access of the page at *where* `m1`, `m2` = 1 when it is the view's default.
    ViewAccess = 23,
    /// Shows under `m2` pages at *where* `m1` what the host map shows from page `m3` on (all ones: their own frames again).
    ViewRemap = 24,
    /// Says whether the guest itself may enter view `m1`: `m2` 0 or 1.
    ViewShow = 25,
    /// Says whether the guest itself is told of forbidden accesses to `m2` pages at *where* `m1`: `m3` 0 or 1.
    /// Back: `m1` = pages done.
    ViewSetNotify = 26,
    /// Back: `m1` = whether the guest itself is told, for the page at *where* `m1`.
    ViewNotify = 27,
    /// Back: `m1` = the view that vCPU `m1` is in.
    ViewOf = 28,
    /// Forgets what pages of view `m1` have of their own; its default stays.
    ViewReset = 29,
    /// Drops every leaf of view `m1`; what it shows stays the same.
    ViewFlush = 30,
    /// Takes `m2` pages from `m1` on out of the guest's reach, in every view, until [`P2mOp::Populate`] gives them back.
    Withdraw = 31,
    /// Notes from now on which pages are written. Back: `m1` = pages of a granule (a power of two).
    LogStart = 32,
    /// Notes no more.
    LogStop = 33,
    /// Takes what was noted of 64 granules, and notes afresh: `m1` first granule, a multiple of 64. Back: `m1` = a bit each.
    LogTake = 34,

    // Watching. Only a monitor calls these; which session it speaks for, its portal's badge says. Each says how it shall
    // be, so that asking again changes nothing. A monitor may also ask `ViewAccess`, `ViewDefault`, `ViewOf` and `Ready`.
    /// Watches in view `m1`, which is made, hidden and as the host map, if it is not there. What the session watched there
    /// before is old: still watched, until it is asked for again or [`P2mOp::WatchEnter`] drops it. Back: `m0`. Refused:
    /// `BadArgument` (view 0), `Occupied` (it is there and not for watching), `OutOfRange` and `Quota` (as
    /// [`P2mOp::ViewCreate`], or this session watches in too many).
    WatchJoin = 48,
    /// Allows only the access `m3` to `m2` pages at *where* `m1`; whatever else the guest tries is an event of the session.
    /// `DEFAULT`: watches them no more. With [`P2mOp::TOLD`] in `m3` the access happens at once, and the session is told of
    /// it through its ring; with [`P2mOp::NO_WALKS`] what the guest's own table walks do happens, and nobody hears. Back: `m1` = pages done; go on behind them. Refused: `MissingRight` (no such view,
    /// or not one that this session watches in), `Occupied` (the page is another session's, or has something of its own),
    /// `BadArgument` (an access with a name, or one that the CPU cannot give), `Quota`.
    Watch = 49,
    /// Puts vCPU `m1` (all ones: every vCPU) into view `m2`, one of the session's own or 0. With every vCPU, what is old in
    /// that view is watched no more. Refused: `MissingRight` (not its own), `Occupied` (it is in a view in which others watch too, or is none for watching).
    WatchEnter = 50,
    /// Watches in view `m1` no more. With its last session the view goes, and vCPUs in it go to view 0. `MissingRight`:
    /// it is none of the session's.
    WatchLeave = 51,
}

/// What a view lets the guest do with a page, as it travels: bits of [`crate::kernel::Access`] (`LEAF` without `NOTIFY`), or
/// one of the names here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ViewAccess(pub u16);

impl ViewAccess {
    /// Read and executed, until it is written: from then on read and written.
    pub const RX2RW: ViewAccess = ViewAccess(0x100);
    /// Nothing, until it is touched: from then on everything.
    pub const N2RWX: ViewAccess = ViewAccess(0x101);
    /// Of a page: as the view says. Of a view: as the host map has it.
    pub const DEFAULT: ViewAccess = ViewAccess(0x102);
    /// Everything.
    pub const ALL: ViewAccess = ViewAccess(7);
    /// Bits that mean something.
    const BITS: u16 = 0x37;

    /// These bits.
    pub const fn bits(access: crate::kernel::Access) -> ViewAccess {
        ViewAccess(access.normal().0 as u16 & Self::BITS)
    }

    /// From a word of a message.
    pub fn from_word(word: u64) -> Result<ViewAccess, Refusal> {
        let access = u16::try_from(word).map(ViewAccess).map_err(|_| Refusal::BadArgument)?;
        let named = [Self::RX2RW, Self::N2RWX, Self::DEFAULT].contains(&access);
        if named {
            Ok(access)
        } else if access.0 & !Self::BITS == 0 {
            Ok(Self::bits(crate::kernel::Access(word)))
        } else {
            Err(Refusal::BadArgument)
        }
    }

    /// What the page may be used for while it is so; none for [`ViewAccess::DEFAULT`].
    pub const fn now(self) -> Option<crate::kernel::Access> {
        match self {
            Self::RX2RW => Some(crate::kernel::Access(5)),
            Self::N2RWX => Some(crate::kernel::Access(0)),
            Self::DEFAULT => None,
            ViewAccess(bits) => Some(crate::kernel::Access(bits as u64)),
        }
    }
}

/// Operations of irqfwd (`m0`); root calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum IrqfwdOp {
    /// Forwards the lines of guest `m1`, whose vCPUs are there now, and connects its functions; what is so already stays so. Back:
    /// `m0` = 0 or 1 + a refusal; `Again`: a service of before is on its way, or a function is not ready, the same call later goes on.
    Bind = 1,
    /// Forwards them no more; the lines are masked and nobody's, the functions disconnected. Back: `m0`; `Again`: a service or an access
    /// is on its way, the same call later ends it.
    Unbind = 2,
    /// What line `m1` of the configuration did. Back: `m0`; `m1` = services taken, `m2` = interrupts passed, `m3` = those that
    /// went straight to a vCPU, `m4` = services that no vCPU took at first, `m5` = times that it was masked since it came too often,
    /// `m6` = times that it went to another vCPU.
    Count = 3,
    /// vCPU `m2` of guest `m1` is on CPU `m3` now, and its capability is where the one before was: its lines follow it.
    /// Back: `m0`.
    Moved = 4,
    /// How long interrupts of line `m1` of the configuration waited before a vCPU had them. Back: `m0`; `m1` to `m9` = how
    /// many waited for less than 1, 4, 16, 64, 256, 1024, 4096 and 16384 microseconds, and longer. What goes straight to a
    /// vCPU does not wait.
    Delays = 5,
    /// Line `m1` of the configuration had done this before an earlier server was replaced by this one: `m2` = services taken,
    /// `m3` = interrupts passed, `m4` = services that no vCPU took at first, `m5` = storms, `m6` = times that it went to another
    /// vCPU, `m7` = interrupts passed of which nobody knows how long they waited. Back: `m0`.
    Restore = 6,
    /// The same of those that waited: `m2` to `m9` are `m2` to `m9` of [`IrqfwdOp::Delays`]. Back: `m0`.
    RestoreDelays = 7,
    /// Functions of guest `m1` make no accesses of their own any more, and are reset where they have a way; its lines stay as they are.
    /// Back: `m0`; `Again`: accesses that they have begun are not over, the same call later goes on.
    Disconnect = 8,
    /// They may again. Back: `m0`; `Again`: one is not ready after its reset.
    Connect = 9,
}

impl IrqfwdOp {
    /// The operation with this number.
    pub const fn from_number(number: u64) -> Option<IrqfwdOp> {
        match number {
            1 => Some(IrqfwdOp::Bind),
            2 => Some(IrqfwdOp::Unbind),
            3 => Some(IrqfwdOp::Count),
            4 => Some(IrqfwdOp::Moved),
            5 => Some(IrqfwdOp::Delays),
            6 => Some(IrqfwdOp::Restore),
            7 => Some(IrqfwdOp::RestoreDelays),
            8 => Some(IrqfwdOp::Disconnect),
            9 => Some(IrqfwdOp::Connect),
            _ => None,
        }
    }
}

/// Operations of smmu (`m0`); root calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum SmmuOp {
    /// Devices of guest `m1` see its device space, or all of memory where the plan says so. The guest's memory begins at
    /// machine page `m2`. Nothing changes where they do already. Back: `m0` = 0 or 1 + a refusal.
    Attach = 1,
    /// They see nothing any more, and nothing of what they did before is on its way. Back: `m0`. Where that is refused
    /// nobody knows: the next smmu begins with everything stopped.
    Detach = 2,
}

impl SmmuOp {
    /// The operation with this number.
    pub const fn from_number(number: u64) -> Option<SmmuOp> {
        match number {
            1 => Some(SmmuOp::Attach),
            2 => Some(SmmuOp::Detach),
            _ => None,
        }
    }
}

/// Operations of a monitor's control portal (`m0`); root calls them. `m1` of the first two is a guest by its place in
/// [`crate::plan::MonitorConfig::guests`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Schema)]
#[repr(u64)]
pub enum MonitorOp {
    /// The guest begins anew, in view 0 and with nothing watched; it starts when this is answered. The monitor asks p2m
    /// for what it watches. Back: `m0` = 0 or 1 + a refusal.
    Begin = 1,
    /// The guest runs already, and what an earlier monitor asked of p2m stands; this monitor makes it what it wants.
    /// Back: `m0`.
    Adopt = 2,
    /// What the monitor knows beyond its configuration, for the one that comes after it. Back: a [`MonitorState`], as
    /// `runtime::message` says. `Unsupported`: it hands nothing over.
    Export = 3,
    /// Takes over what an earlier monitor exported: a [`MonitorState`]. Before `Adopt`. Back: nothing. Refused:
    /// `Unsupported` (another version of it), `BadArgument` (it is no such state); then the monitor is as before.
    Import = 4,
    /// What rule `m1` did. Back: `m0`, `m1` = accesses seen, `m2` = allowed, `m3` = denied, `m4` = stopped, `m5` = lines
    /// that its log was spared.
    Count = 5,
    /// Has a rule more: an [`AddedRule`]. Back: its number, `u16`. Refused, and as it was: `NoOperation` (it is no monitor of such rules),
    /// `BadArgument` (no such rule makes sense), `OutOfRange` (pages that are not the guest's), `Occupied` (another rule or another
    /// monitor has that), `Quota` (it has too many).
    Add = 6,
    /// Has rule `m1` of guest `m2` no more, which is one that was added. Back: `m0`. Refused: `NotMapped` (there is no such rule),
    /// `MissingRight` (it is the manifest's).
    Remove = 7,
    /// The rule that stands at a place (`u64`) among all, those of the manifest first. Back: a [`KnownRule`]. Refused: `OutOfRange` (there are
    /// not so many), `NotMapped` (none stands there, but behind it).
    Rule = 8,
}

/// A rule that is added to a monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct AddedRule {
    /// What it says.
    pub rule: Rule,
    /// Which number it had in an earlier monitor; 0: any.
    pub number: u16,
    /// Its guest is watched already. Otherwise it will be, this rule and all others, when it begins or is adopted.
    pub applies: bool,
}

/// A rule that a monitor has, and what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct KnownRule {
    /// Its number: of the manifest's, from 1 on among those of its kind.
    pub number: u16,
    /// It was added.
    pub is_added: bool,
    /// What it says.
    pub rule: Rule,
    /// As [`MonitorOp::Count`] says it.
    pub counts: [u64; 5],
}

impl MonitorOp {
    /// The operation with this number.
    pub const fn from_number(number: u64) -> Option<MonitorOp> {
        match number {
            1 => Some(MonitorOp::Begin),
            2 => Some(MonitorOp::Adopt),
            3 => Some(MonitorOp::Export),
            4 => Some(MonitorOp::Import),
            5 => Some(MonitorOp::Count),
            6 => Some(MonitorOp::Add),
            7 => Some(MonitorOp::Remove),
            8 => Some(MonitorOp::Rule),
            _ => None,
        }
    }
}

/// Most bytes of a monitor's state.
pub const MAX_STATE: usize = 3456;

/// What a monitor hands over; root only carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct MonitorState {
    /// Which monitor's, and how it is written: chosen by its author.
    pub version: u32,
    /// In postcard.
    pub body: Vec<u8, MAX_STATE>,
}

/// What a monitor says to an event. Each is complete and of this event alone: what was said before plays no part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It happens, and nothing else does.
    Allow,
    /// It does not happen, and the guest goes on behind it: a write changes nothing, a read finds zero, a call finds that it
    /// does not exist. Execution cannot be skipped, nor can a walk of the guest's tables: those stop the guest.
    Deny,
    /// As `Deny`, and what is read, or called, gives this.
    Give(u64),
    /// It does not happen, and the guest gets this exception there.
    Inject(Injected),
    /// The vCPU goes on there, with these in its first registers.
    Registers {
        /// Program counter.
        pc: u64,
        /// `x0`–`x3`.
        general: [u64; 4],
    },
    /// The instruction is executed in this view, and the vCPU is back in its own behind it.
    Step(u16),
    /// The vCPU is in this view from now on, one of the monitor's or 0, and tries again.
    Enter(u16),
    /// The guest tries again; for a monitor that has changed what is allowed.
    Retry,
    /// The vCPU stops for good, and root ends its guest.
    Stop,
}

impl From<crate::plan::RuleVerdict> for Verdict {
    fn from(rule: crate::plan::RuleVerdict) -> Verdict {
        use crate::plan::RuleVerdict;
        match rule {
            // Asked all the same, because of another rule.
            RuleVerdict::Allow | RuleVerdict::Report => Verdict::Allow,
            RuleVerdict::Deny => Verdict::Deny,
            RuleVerdict::Stop => Verdict::Stop,
            RuleVerdict::Fault => Verdict::Inject(Injected::Abort),
        }
    }
}

/// Guest pages: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PageRange {
    /// First page.
    pub first: u64,
    /// Pages.
    pub pages: u64,
}

/// Most ranges of [`P2mOp::PopulateAll`].
pub const MAX_RANGES: usize = 128;

/// What [`P2mOp::PopulateAll`] is asked with.
pub type PageRanges = Vec<PageRange, MAX_RANGES>;

impl VcpuOp {
    /// The operation with this number.
    pub const fn from_number(number: u64) -> Option<VcpuOp> {
        match number {
            1 => Some(VcpuOp::Start),
            2 => Some(VcpuOp::Reset),
            3 => Some(VcpuOp::Complete),
            4 => Some(VcpuOp::Power),
            5 => Some(VcpuOp::Listen),
            _ => None,
        }
    }
}

impl P2mOp {
    /// Of [`P2mOp::Watch`]: nobody is asked, the monitor is told.
    pub const TOLD: u64 = 1 << 16;
    /// Of [`P2mOp::Watch`]: walks of the guest's own tables are none.
    pub const NO_WALKS: u64 = 1 << 17;

    /// The operation with this number.
    pub const fn from_number(number: u64) -> Option<P2mOp> {
        match number {
            1 => Some(P2mOp::Ready),
            2 => Some(P2mOp::Populate),
            3 => Some(P2mOp::Reset),
            4 => Some(P2mOp::Protect),
            5 => Some(P2mOp::Blank),
            6 => Some(P2mOp::PopulateAll),
            16..=34 => Some(VIEW_OPERATIONS[number as usize - 16]),
            48 => Some(P2mOp::WatchJoin),
            49 => Some(P2mOp::Watch),
            50 => Some(P2mOp::WatchEnter),
            51 => Some(P2mOp::WatchLeave),
            _ => None,
        }
    }
}

/// Operations on views, in order of number from 16 on.
const VIEW_OPERATIONS: [P2mOp; 19] = [
    P2mOp::ViewCreate, P2mOp::ViewDestroy, P2mOp::ViewSwitch, P2mOp::ViewSetDefault, P2mOp::ViewDefault,
    P2mOp::ViewSetAccess, P2mOp::ViewSetAccessList, P2mOp::ViewAccess, P2mOp::ViewRemap, P2mOp::ViewShow,
    P2mOp::ViewSetNotify, P2mOp::ViewNotify, P2mOp::ViewOf, P2mOp::ViewReset, P2mOp::ViewFlush, P2mOp::Withdraw,
    P2mOp::LogStart, P2mOp::LogStop, P2mOp::LogTake,
];

/// What `m0` of an answer says: 0, or 1 + a refusal.
pub const fn to_answer(result: Result<(), Refusal>) -> u64 {
    match result {
        Ok(()) => 0,
        Err(refusal) => 1 + refusal as u64,
    }
}

/// What an answer's `m0` says.
pub fn from_answer(m0: u64) -> Result<(), Refusal> {
    match m0 {
        0 => Ok(()),
        // Refusals count from 1.
        word => Err(usize::try_from(word - 1)
            .ok()
            .and_then(|number| Refusal::ALL.get(number.checked_sub(1)?).copied())
            .unwrap_or(Refusal::NoOperation)),
    }
}

/// What happens next to a guest that wants a reset.
pub const fn after_reset(policy: OnReset) -> Option<GuestEnd> {
    match policy {
        OnReset::Reboot => None,
        OnReset::End => Some(GuestEnd::Reset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_on_views_are_their_numbers() {
        for number in 0..64 {
            assert!(P2mOp::from_number(number).is_none_or(|op| op as u64 == number));
        }
        assert_eq!((16..35).filter(|n| P2mOp::from_number(*n).is_some()).count(), 19);
    }

    #[test]
    fn a_monitors_operations_are_their_numbers() {
        for number in 0..64 {
            assert!(MonitorOp::from_number(number).is_none_or(|op| op as u64 == number));
        }
        assert_eq!((48..64).filter(|n| P2mOp::from_number(*n).is_some()).count(), 4);
    }

    #[test]
    fn a_views_access_is_bits_or_a_name() {
        for word in 0..0x1000 {
            let known = word & !0x37 == 0 || (0x100..=0x102).contains(&word);
            assert_eq!(ViewAccess::from_word(word).is_ok(), known, "{word:#x}");
        }
        assert_eq!(ViewAccess::from_word(u64::MAX), Err(Refusal::BadArgument));
        assert_eq!(ViewAccess::from_word(0x30), Ok(ViewAccess(4)), "both kinds of execution are one");
    }
}
