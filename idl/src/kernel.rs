// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's interface: system calls, refusals, capabilities, exits and their answers.
//!
//! A system call is `svc #n` with `n` an [`Op`]. `x0` holds a selector (an index into the caller's capability
//! table) or what the operation says; `x1`–`x5` further arguments; `x19`–`x28` the ten message words `m0`–`m9`.
//! At return `x0` is a value when it is not negative, else minus a [`Refusal`]. `x19`–`x28` hold the other side's
//! words after an IPC; `x1` and `x2` results where an operation has them. All other registers are undefined after a
//! call. The sender's stub clears the words it does not mean to send: all ten always travel.

/// Version of everything in this file; kernel and servers of one image must agree.
pub const ABI: u16 = 1;

/// Words in a message that travels in registers.
pub const WORDS: usize = 10;

/// Bits of a badge. Above them `x0` says how much of the message buffer came along.
pub const BADGE_BITS: u32 = 48;

/// Bytes of a page, of a message buffer, and of the smallest mapping.
pub const PAGE: u64 = 4096;

/// The first interrupt that a message makes (an LPI, GICv3 2.2.1).
pub const FIRST_MESSAGE: u64 = 8192;

/// How many of them there can be lines of.
pub const MESSAGES: u64 = 32;
/// Device windows that a vCPU can have.
pub const WINDOWS: usize = 16;

/// Operation numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Op {
    /// Calls the portal in `x0` with `m0`–`m9`; `x1` = bytes of the message buffer that travel along (0 = none).
    /// Back comes the answer's words, and in `x0` the bytes of buffer that came with it.
    /// Refused: `NoCapability`, `WrongKind`, `Gone`, `Order` (the portal's rank is not lower), `WrongCpu`.
    Call = 0,
    /// Answers what this thread is serving, if anything, and waits for the next call or exit. `x0` = [`Answer`] bits
    /// (0 when the one answered is a thread), `x1` = bytes of buffer. Back: `x0` = badge of the portal or route, and from bit
    /// [`BADGE_BITS`] on the bytes of buffer that came with a call.
    ReplyAndWait = 1,
    /// Hands what this thread is serving, with new words, to the portal in `x0` of a higher rank, and waits for the next.
    /// Or `x0` = a session: the exit of a vCPU of its guest goes to whoever watches ([`Op::SessionPlace`]). With nobody
    /// there it is owed; refused `Gone` when the session says that nobody shall be asked ([`Seat::Nobody`]), `BadArgument`
    /// when what is served is no exit of that guest. A refusal leaves the words as they are.
    Forward = 2,
    /// Sets the bits of the signal capability in `x0` in its thread's signal word. Works across CPUs.
    Signal = 3,
    /// Waits until a bit of the mask in `x0` is set in this thread's signal word or the clock reaches `x1`
    /// (0 = for ever). Back: `x0` = the bits, which are cleared (0 = the deadline passed).
    Wait = 4,
    /// Back: `x0` = the clock in ticks, `x1` = ticks a second.
    Clock = 5,
    /// Ends the calling thread; the supervisor is signalled.
    Exit = 6,
    /// Lets another of the same priority run.
    Yield = 7,

    /// Makes a run of frames out of part of another: `x0` frames, `x1` first page, `x2` pages, `x3` empty slot of the
    /// caller's for the new capability. The part is taken out of the old run's use.
    FramesSplit = 0x10,
    /// Unmaps the run in `x0` from every map, revokes every capability made of it, zeroes it; it is whole again: what was
    /// split off it ends, and so does a domain or guest whose page tables are among it. Back: `x0` = 1 when a piece of
    /// this is done and there is more to do: ask again (until then the run cannot be used). Refused: `BadState` when the
    /// caller's own page tables are among it.
    FramesReclaim = 0x11,
    /// Back: `x0` = pages, `x1` = first machine page (only with the right [`Rights::CONTROL`], else 0), `x2` = 1 for device memory.
    FramesInfo = 0x12,

    /// Makes a domain: `x0` frames for its page tables, `x1` slots of its capability table, `x2` rank, `x3` empty slot.
    DomainCreate = 0x18,
    /// Maps into a domain: `x0` domain, `x1` virtual address, `x2` frames, `x3` first page in the run, `x4` pages, `x5` [`Access`] bits.
    DomainMap = 0x19,
    /// Unmaps from a domain: `x0` domain, `x1` virtual address, `x2` pages.
    DomainUnmap = 0x1a,
    /// Destroys a domain: its threads, its capabilities, its maps; its table frames go back to their run. `x0` domain.
    /// Back: `x0` = 1 when there is more to do: ask again.
    DomainDestroy = 0x1b,

    /// Makes a thread: `x0` domain, `x1` CPU, `x2` priority or [`PASSIVE`], `x3` empty slot, `x4` virtual address of its
    /// message buffer page (mapped already), `x5` = budget time in µs in the low half, period in µs in the high half (0 = none).
    ThreadCreate = 0x20,
    /// Starts a thread: `x0` thread, `x1` entry, `x2` stack pointer, `x3` its first `x0`.
    ThreadStart = 0x21,
    /// Stops a thread for good and frees it. `x0` thread.
    ThreadDestroy = 0x22,
    /// Why a thread stopped: `x0` thread, `x1` which word. Back: `x0` = 0, `x1` = that word of its [`ThreadFault`] record.
    ThreadFault = 0x23,
    /// Says who supervises a thread: `x0` thread, `x1` signal capability, `x2` = µs that it may take for an answer (0 = for
    /// ever, else 1,000 to 2^40). Whom it keeps for longer (at most half as long again) gets `Late`, a vCPU stays stopped,
    /// and the supervisor is signalled; a late answer finds nobody.
    ThreadSupervise = 0x24,

    /// Lets a thread use floating-point registers, which are its own: `x0` thread, `x1` frames for its save area:
    /// a run of one page, which is the kernel's, and cannot be reclaimed, until the thread is destroyed. Without this their
    /// use is a fault.
    ThreadFloat = 0x25,

    /// Makes a portal into a thread: `x0` thread, `x1` badge, `x2` empty slot.
    PortalCreate = 0x28,
    /// Makes a signal capability: `x0` thread, `x1` bits, `x2` empty slot.
    SignalCreate = 0x29,

    /// Copies a capability into another domain's table: `x0` the caller's slot, `x1` domain, `x2` slot there,
    /// `x3` rights to keep (never more than the source has), `x4` a badge for one that has none, which needs
    /// [`Rights::CONTROL`]; 0 = as it is.
    Grant = 0x30,
    /// Drops the capability in slot `x0`.
    Drop = 0x31,
    /// Takes an object's name from everybody else: every other capability to it is dead, and in use on no CPU, when this
    /// returns 0. `x0` slot, `x1` = 0 at first. Back: `x0` = 1 when there is more to do: ask again with the `x1` of this.
    Revoke = 0x32,

    /// Makes a guest: `x0` frames for its page tables, `x1` views it may have (1 to [`MAX_VIEWS`]; view 0 is its host map),
    /// `x2` empty slot, `x3` lanes of 128 bits that its scalable vectors have (0 = it has none), `x4` vCPUs whose save areas
    /// the frames shall hold (0 without such vectors), `x5` [`Inside`] bits. Refused `Unsupported` when a CPU cannot have
    /// exactly this length.
    GuestCreate = 0x38,
    /// Maps into a guest: `x0` guest, `x1` guest page, `x2` frames, `x3` first page in the run, `x4` pages, `x5` [`Access`] bits.
    /// Only into view 0: other views get what it shows by [`Op::ViewCopy`] and [`Op::ViewRemap`] (`BadArgument`).
    GuestMap = 0x39,
    /// Unmaps: `x0` guest, `x1` view << 48 | guest page, `x2` pages. From view 0: from every view as well, and so is
    /// wherever a view shows what stood there under another page. A view may lose whole blocks around these pages.
    GuestUnmap = 0x3a,
    /// Changes access: `x0` guest, `x1` view << 48 | guest page, `x2` pages, `x3` [`Access`] bits. Absent pages are skipped.
    /// In that view alone. Refused `Unsupported`: one kind of execution alone, on a CPU without FEAT_XNX.
    GuestProtect = 0x3b,
    /// Copies guest memory into the caller's: `x0` guest, `x1` guest address, `x2` caller's address, `x3` bytes (≤ 64 KiB).
    /// Back: `x0` = bytes copied; fewer when a guest page is absent.
    GuestRead = 0x3c,
    /// Copies the caller's memory into guest memory: like [`Op::GuestRead`], the other way. Makes it coherent with instruction fetch.
    GuestWrite = 0x3d,
    /// Destroys a guest, its vCPUs and its maps. `x0` guest. Back: `x0` = 1 when there is more to do: ask again.
    GuestDestroy = 0x3e,
    /// What a guest's maps use: `x0` guest. Back: `x0` = table pages left of its quota, `x1` = views it may have,
    /// `x2` = views it has.
    GuestInfo = 0x3f,

    /// Makes a vCPU: `x0` guest, `x1` CPU, `x2` its number in the guest, `x3` empty slot, `x4` priority, `x5` budget as in [`Op::ThreadCreate`].
    /// With [`PLACE`] in `x2` a place for the vCPU that has this number now, on another CPU: see [`Op::VcpuMove`]. Nothing
    /// but [`Op::VcpuDestroy`] can be done with a place before that (`BadState`).
    VcpuCreate = 0x40,
    /// Sends a class of exits: `x0` vCPU, `x1` [`ExitClass`], `x2` portal on the vCPU's CPU, `x3` groups (see [`Groups`]), `x4` badge.
    VcpuRoute = 0x41,
    /// Makes a device window: `x0` vCPU, `x1` index < [`WINDOWS`], `x2` first guest page, `x3` pages (0 = none), `x4` the route's class.
    VcpuWindow = 0x42,
    /// Reads a register of a stopped vCPU: `x0` vCPU, `x1` [`VcpuRegister`]. Back: `x0` = 0, `x1` = value.
    VcpuGet = 0x43,
    /// Writes a register of a stopped vCPU: `x0` vCPU, `x1` [`VcpuRegister`], `x2` value. Bits a guest may not have are refused.
    VcpuSet = 0x44,
    /// Makes a stopped vCPU run. `x0` vCPU. Refused `BadState` when it is not stopped. `x1` = [`PAUSE`]: ends a pause
    /// instead, whether there is one or not; `x2` = whose: 0, the capability's own, else a bit for each badge (see
    /// [`PAUSERS`]), which needs [`Rights::CONTROL`]. Back: `x0` = who keeps it paused still, a bit for each.
    VcpuStart = 0x45,
    /// Puts a vCPU's registers to their architectural reset values. `x0` vCPU, stopped. It stays in its view.
    VcpuReset = 0x46,
    /// Stops a vCPU: `x0` vCPU. It stays until [`Op::VcpuStart`]. `x1` = [`PAUSE`]: keeps it from running until the pause is
    /// ended, unseen by its servers: an exit is served to its end, and a start or a stop in between counts afterwards. In the
    /// name of the capability's badge: while several pause it, it runs when the last has ended its pause.
    /// Back: `x0` = 1 while a pause finds an exit being served.
    VcpuStop = 0x47,
    /// Enters an exception in a stopped vCPU at EL1: `x0` vCPU, `x1` syndrome, `x2` fault address.
    VcpuException = 0x48,
    /// Starts a stopped vCPU anew: [`Op::VcpuReset`], then the program counter and `x0`, then [`Op::VcpuStart`], in one.
    /// `x0` vCPU, `x1` program counter, `x2` what it finds in its `x0`. Refused `BadState` when it is not stopped.
    VcpuLaunch = 0x49,
    /// Destroys a vCPU, whatever it does. `x0` vCPU.
    VcpuDestroy = 0x4a,
    /// Moves a stopped vCPU to the CPU where a place was made for it, with its registers, its floating-point state, its
    /// lines and its timer: `x0` vCPU. From then on the place's capability names it, and this one is dead. It is still
    /// stopped; its exits go nowhere before [`Op::VcpuRoute`], and physical lines still come where [`Op::LineAck`] sent
    /// them. Refused `BadState` when it is not stopped or has no place, `Again` while another is on its way.
    VcpuMove = 0x4b,
    /// Says what traps in a vCPU beside what always does: `x0` vCPU, stopped or in an exit, `x1` [`Traps`]. It stays over
    /// [`Op::VcpuReset`] and [`Op::VcpuMove`]. Needs [`Rights::WRITE`].
    VcpuTraps = 0x4c,
    /// Compares guest memory with a value, and if it is the same writes another, at once for every observer: `x0` guest, `x1`
    /// guest address, a multiple of the bytes, with their number's logarithm (0–4) in bits 56–63, `x2` and `x3` the value to
    /// be there (the low half first), `x4` and `x5` the other. Back: `x0` = 1 if it was written, `x1` and `x2` = what was
    /// there. It may say 0 without a reason, as an exclusive store may. By the host map, and with the limits of
    /// [`Op::GuestWrite`]; needs [`Rights::READ`] and [`Rights::WRITE`]. Refused: `BadArgument` (size, alignment, a device),
    /// `NotMapped`.
    GuestSwap = 0x4d,

    /// Writes one bit field of up to 32 virtual lines: `x0` vCPU, `x1` [`LineField`], `x2` first line (multiple of 32),
    /// `x3` which of the 32, `x4` their new values. Lines below 32 are the vCPU's own, others the guest's, each in one vCPU.
    /// `x5`, for pending software interrupts: 0 = from anybody (a new one is then vCPU 0's), else the sender's number + 1.
    LinesWrite = 0x50,
    /// Reads the same: `x0` vCPU, `x1` [`LineField`], `x2` first line, `x3` as `x5` above. Back: `x0` = the 32 values.
    LinesRead = 0x51,
    /// Writes priorities of 4 lines: `x0` vCPU, `x1` first line (multiple of 4), `x2` four bytes, `x3` which of the 4.
    LinesPriority = 0x52,
    /// Reads priorities of 4 lines: `x0` vCPU, `x1` first line. Back: `x0` = four bytes.
    LinesPriorityRead = 0x53,
    /// Sends a guest-wide line to a vCPU: `x0` vCPU it shall go to, `x1` line, `x2` its state, from `LineTake`.
    LineTarget = 0x54,
    /// Says whether the guest's distributor forwards at all: `x0` vCPU, `x1` 0 or 1.
    LinesEnable = 0x55,
    /// Takes a guest-wide line out of the vCPU it is in: `x0` vCPU, `x1` line. Back: `x0` = its state (a [`LineState`]).
    /// `BadState` while it is active there.
    LineTake = 0x56,

    /// Binds a physical line to a signal: `x0` line capability, `x1` signal capability. The line is masked when it arrives.
    LineBind = 0x58,
    /// Unmasks a bound or forwarded line (`x1` = 0) or masks it (1): `x0` line capability. Unmasked it comes to the caller's
    /// CPU (`x2` = 0) or to CPU `x2` - 1.
    LineAck = 0x59,
    /// Makes a line capability: `x0` system capability, `x1` physical line, `x2` empty slot, `x3` = 1 where the line is triggered
    /// by an edge, 0 by its level. Lines from [`FIRST_MESSAGE`] on are made by messages: whoever has the interrupt translation
    /// service says to which CPU they come and masks them, the kernel does not; they are never active, and come again at will.
    LineCreate = 0x5a,
    /// Makes a line a source of interrupts that go into the queue of the CPU that takes them: `x0` line capability, `x1` the
    /// guest's line that it comes as (32 to 127; 0 = that of its number). It stays masked until [`Op::LineAck`], and is not
    /// masked when it comes: it does not come again before it was ended. Back: `x0` = the source, `x1` = interrupts that it
    /// sent straight to a vCPU so far. A line that is forwarded already stays as it is.
    /// Refused `Occupied` when it is bound to a signal, `Again` when it was released and its source is not free yet, `Quota`
    /// when there are no more sources.
    LineForward = 0x5b,
    /// Ends that: `x0` line capability. It is masked and no longer active. Back: `x0` = 1 as long as the source is in a queue or
    /// served: ask again. A line that is not forwarded stays as it is.
    LineRelease = 0x5c,
    /// Ties the guest's line that a line is forwarded as (one that is not: that of its number) to it, or unties it: `x0` vCPU,
    /// `x1` line capability, `x2` = 1 or 0. Refused `OutOfRange` when the guest has no such line. The guest's end of the interrupt is the physical one's then. To be done for each vCPU that the line may be sent to.
    /// `x2` = 2: as 1, and as long as the guest sends the line to this vCPU, and the line comes to the vCPU's CPU, its
    /// interrupts go there without being queued.
    LineTie = 0x5d,
    /// Hands a source's interrupt to a vCPU that its line is tied to and sent to, and completes its service: `x0` vCPU, `x1` a
    /// [`Service`]. Refused `BadState` when the line is not sent to this vCPU, `Gone` when the service is over.
    LinePass = 0x5e,

    /// Switches the machine off or restarts it: `x0` system capability, `x1` 0 = off, 1 = restart.
    SystemOff = 0x60,
    /// Puts the buffer's first `x0` bytes into the kernel's log.
    Log = 0x61,
    /// Takes bytes of the kernel's log into the buffer: `x0` system capability. Back: `x0` = bytes.
    LogRead = 0x62,
    /// Facts about the machine: `x0` system capability, `x1` which [`Fact`]. Back: `x1` = its value.
    Fact = 0x63,
    /// Who serves this CPU's queue of interrupts from now on: `x0` system capability with [`Rights::LINES`], `x1` signal
    /// capability, raised when something comes into the empty queue, and now; `x2` = 1: sources that were being served, of
    /// whatever CPU, are to be served again, for who served them is no more.
    QueueServe = 0x64,
    /// Takes up to two sources out of this CPU's queue: `x0` system capability with [`Rights::LINES`]. Back: `x0` = how many
    /// (0 = it is empty), `x1` and `x2` = a [`Service`] each, to be completed by [`Op::LinePass`] or [`Op::QueueDone`].
    QueueTake = 0x65,
    /// Completes a service without handing the interrupt to anybody: `x0` system capability with [`Rights::LINES`], `x1` a
    /// [`Service`]. Refused `Gone` when it is over.
    QueueDone = 0x66,
    /// For the thread that serves this CPU's queue: hands a service on as [`Op::LinePass`] does, then gives the next of the
    /// queue or waits for it: `x0` vCPU (0 = nothing is handed on), `x1` a [`Service`], `x2` further bits of the signal word that
    /// end the wait, `x3` deadline (0 = for ever). Back: `x0` = the bits that ended it (0 = the deadline passed), `x1` = the
    /// service and `x2` = 1 + the ticks that it was in the queue, or `x2` = 0. The bits of [`Op::QueueServe`] are taken with it. Refused like [`Op::LinePass`], with
    /// nothing done, and `BadState` to any other thread and for a vCPU of another CPU.
    QueueNext = 0x67,
    /// Copies records of a CPU's trace ([`crate::trace`]) into the buffer, oldest first: `x0` system capability with
    /// [`Rights::CONTROL`], `x1` CPU, `x2` place in the ring to begin at (counted modulo its length). Back: `x0` =
    /// records copied, at most [`crate::trace::MOST_READ`]; `x1` = place behind them; `x2` = place of the next record to
    /// be noted, where the oldest one stands too.
    TraceRead = 0x68,
    /// Takes a CPU out of use until the next boot: `x0` system capability with [`Rights::CONTROL`], `x1` CPU. Its physical
    /// lines and what waits in its queue go to the running CPU with the lowest number, of those whose queue is served if there
    /// are any. Refused `BadState` while it has threads or vCPUs, `Again` while another is taken out, `WrongCpu` when it does
    /// not run.
    CpuRetire = 0x69,

    /// Makes an empty view: `x0` guest, `x1` its index or [`ANY_VIEW`] for the lowest free one. Back: `x0` = the index.
    /// Refused: `OutOfRange` (no such index), `Occupied` (it is there), `Quota` (all are, or no table is left).
    ViewCreate = 0x70,
    /// Destroys an empty view: `x0` guest, `x1` view. Refused: `BadArgument` (view 0), `OutOfRange`, `NotMapped` (no such
    /// view), `BadState` (a vCPU is in it), `Occupied` (not empty: see [`Op::ViewReset`]).
    ViewDestroy = 0x71,
    /// Empties a part of a view and takes its tables back: `x0` guest, `x1` view << 48 | page to begin at.
    /// Back: `x0` = the page to go on at, 0 = the view was looked through to its end.
    ViewReset = 0x72,
    /// Shows in a view what the host map shows: `x0` guest, `x1` view << 48 | guest page, `x2` pages, `x3` [`Access`] bits
    /// or [`Access::AS_HOST`], `x4` pages of the largest block (1, 512 or 262,144). Only absent pages get leaves, each as
    /// large as the host's leaf, the hole in the view and `x4` allow: it may reach beyond the range. Pages that the host
    /// map does not show stay absent. Back: `x0` = pages done (begin behind them again), `x1` = leaves made.
    ViewCopy = 0x73,
    /// Shows in a view under one guest page what the host map shows under another: `x0` guest, `x1` view << 48 | guest
    /// page, `x2` the other guest page, `x3` [`Access`] bits. Undone by [`Op::GuestUnmap`]. Both must be there in the
    /// host map (`NotMapped`) and be ordinary memory (`BadArgument`).
    ViewRemap = 0x74,
    /// Puts a vCPU into a view, whether it runs or not, on whatever CPU: `x0` guest, `x1` number of the vCPU, `x2` view.
    ViewSwitch = 0x75,
    /// Says whether the guest itself may enter a view: `x0` guest, `x1` view, `x2` 0 or 1. A new view is hidden.
    ViewShow = 0x76,
    /// The view that a vCPU is in: `x0` guest, `x1` number of the vCPU. Back: `x0` = view.
    ViewOf = 0x77,

    /// Makes a session capability: `x0` guest, `x1` which of its sessions, below [`SESSIONS`], `x2` empty slot. Each is there
    /// as long as its guest, once; a new guest's are held ([`Seat::Held`]).
    SessionCreate = 0x78,
    /// Says who is asked: `x0` session, `x1` number of a vCPU, `x2` seat (0 or 1), `x3` portal on that vCPU's CPU, of a
    /// higher rank than whoever forwards (0 = nobody).
    SessionPlace = 0x79,
    /// Changes who is asked, on every CPU at once: `x0` session, `x1` epoch, as [`Op::SessionInfo`] or the last change said,
    /// `x2` [`Seat`]. Back: `x0` = the new epoch. Refused `Gone`: somebody else changed it first. What the other seat has not
    /// answered it may still answer, until [`Op::SessionSettle`].
    SessionCommit = 0x7a,
    /// Takes a vCPU's open event from whoever is not asked any more, and gives it, or one that is owed, to whom the
    /// session names: `x0` session, `x1` number of the vCPU. An earlier watcher's answer finds nobody from then on. With
    /// [`Seat::Nobody`] the exit goes the way of its class again. Back: `x0` = 0 there is none, 1 it is being asked, 2 it is
    /// owed.
    SessionSettle = 0x7b,
    /// Who is asked, and what is owed: `x0` session. Back: `x0` = epoch, `x1` = [`Seat`], `x2` = vCPUs whose event is owed, one
    /// bit each.
    SessionInfo = 0x7c,
}

/// Sessions that a guest has: so many monitors can watch it, each something else.
pub const SESSIONS: u64 = 4;

/// Who is asked about a session's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Seat {
    /// The portals placed at seat 0.
    First = 0,
    /// The portals placed at seat 1.
    Second = 1,
    /// Nobody now: events are owed, and their vCPUs wait.
    Held = 2,
    /// Nobody: whoever finds an event must decide itself.
    Nobody = 3,
}

impl Seat {
    /// The seat with this number.
    pub const fn from_number(number: u64) -> Option<Seat> {
        match number {
            0 => Some(Seat::First),
            1 => Some(Seat::Second),
            2 => Some(Seat::Held),
            3 => Some(Seat::Nobody),
            _ => None,
        }
    }
}

/// Argument of [`Op::VcpuStop`] and [`Op::VcpuStart`]: begins or ends a pause.
pub const PAUSE: u64 = 1;

/// How many can pause a vCPU, each for itself: its capability's badge, modulo this, says in whose name.
pub const PAUSERS: u64 = 16;

/// Most views of a guest, its host map among them.
pub const MAX_VIEWS: u64 = 512;

/// Argument of [`Op::ViewCreate`]: the lowest free index.
pub const ANY_VIEW: u64 = u64::MAX;

/// Bits of [`Op::GuestCreate`]: what a guest may do about its views from inside, by HVC (see [`GuestCall`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Inside(pub u64);

impl Inside {
    /// Nothing.
    pub const NONE: Inside = Inside(0);
    /// Enter views that are shown to it.
    pub const SWITCH: Inside = Inside(1);
    /// Be told of forbidden accesses.
    pub const NOTIFY: Inside = Inside(2);
    /// Every bit that means something.
    pub const ALL: Inside = Inside(3);

    /// Whether all of these bits are here.
    pub const fn has(self, bits: Inside) -> bool {
        self.0 & bits.0 == bits.0
    }
}

/// What a guest that may asks of the kernel itself: `HVC #n` from its kernel level, arguments from `x0` on. At return
/// `x0` is 0, or minus the number of a [`Refusal`]. A guest that may not finds its vcpu server, as with any other HVC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum GuestCall {
    /// Enters the view in `x0`. Refused: `OutOfRange`, `NotMapped` (no such view, or it is hidden).
    Switch = 0x5400,
    /// Asks to be told of forbidden accesses of this vCPU: `x0` guest-physical address of a page of memory
    /// ([`NoticePage`]; all ones = no more), `x1` virtual address to enter at. Refused: `BadArgument` (not at a page),
    /// `NotMapped`, `Occupied` (there is a page already), `BadState` (a notice is being served).
    Notify = 0x5401,
    /// Goes back to what the last notice interrupted, with all other registers as they are. Refused: `BadState`.
    Return = 0x5402,
}

impl GuestCall {
    /// The call with this immediate.
    #[inline(always)]
    pub const fn from_number(number: u16) -> Option<GuestCall> {
        match number {
            0x5400 => Some(GuestCall::Switch),
            0x5401 => Some(GuestCall::Notify),
            0x5402 => Some(GuestCall::Return),
            _ => None,
        }
    }

    /// What a guest needs for it.
    #[inline(always)]
    pub const fn needs(self) -> Inside {
        match self {
            GuestCall::Switch => Inside::SWITCH,
            GuestCall::Notify | GuestCall::Return => Inside::NOTIFY,
        }
    }
}

/// The page in which a vCPU is told of an access that its view forbids: eight words, little-endian. The kernel writes
/// them while `busy` is zero, then enters the vCPU at the address it gave: at EL1 with its own stack pointer, everything
/// masked, ELR_EL1 and SPSR_EL1 untouched. The guest reads them, writes zero to `busy`, and goes on with
/// [`GuestCall::Return`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NoticePage {
    /// [`NoticePage::FORBIDDEN`].
    pub reason: u32,
    /// All ones when the kernel has written; the guest clears it.
    pub busy: u32,
    /// Flags of [`ExitHeader`]: WRITE, FETCH, WALK, VIRTUAL_VALID, USER.
    pub flags: u64,
    /// Guest virtual address, where the flags say it is valid.
    pub virtual_address: u64,
    /// Guest-physical address.
    pub physical: u64,
    /// The view.
    pub view: u64,
    /// The machine's syndrome.
    pub syndrome: u64,
    /// Program counter of the access. A copy: writing it changes nothing.
    pub pc: u64,
    /// Processor state there. A copy.
    pub state: u64,
}

impl NoticePage {
    /// Reason: the view forbids the access.
    pub const FORBIDDEN: u32 = 1;
    /// What `busy` holds after the kernel has written.
    pub const BUSY: u32 = u32::MAX;
    /// Words of it.
    pub const WORDS: usize = 8;
}

impl Op {
    /// Every operation, in order of number.
    pub const ALL: &[Op] = &[
        Op::Call, Op::ReplyAndWait, Op::Forward, Op::Signal, Op::Wait, Op::Clock, Op::Exit, Op::Yield,
        Op::FramesSplit, Op::FramesReclaim, Op::FramesInfo,
        Op::DomainCreate, Op::DomainMap, Op::DomainUnmap, Op::DomainDestroy,
        Op::ThreadCreate, Op::ThreadStart, Op::ThreadDestroy, Op::ThreadFault, Op::ThreadSupervise,
        Op::ThreadFloat,
        Op::PortalCreate, Op::SignalCreate, Op::Grant, Op::Drop, Op::Revoke,
        Op::GuestCreate, Op::GuestMap, Op::GuestUnmap, Op::GuestProtect, Op::GuestRead, Op::GuestWrite, Op::GuestDestroy,
        Op::GuestInfo,
        Op::VcpuCreate, Op::VcpuRoute, Op::VcpuWindow, Op::VcpuGet, Op::VcpuSet, Op::VcpuStart, Op::VcpuReset,
        Op::VcpuStop, Op::VcpuException, Op::VcpuLaunch, Op::VcpuDestroy, Op::VcpuMove, Op::VcpuTraps,
        Op::GuestSwap,
        Op::LinesWrite, Op::LinesRead, Op::LinesPriority, Op::LinesPriorityRead, Op::LineTarget, Op::LinesEnable,
        Op::LineTake,
        Op::LineBind, Op::LineAck, Op::LineCreate, Op::LineForward, Op::LineRelease, Op::LineTie, Op::LinePass,
        Op::SystemOff, Op::Log, Op::LogRead, Op::Fact, Op::QueueServe, Op::QueueTake, Op::QueueDone, Op::QueueNext,
        Op::TraceRead, Op::CpuRetire,
        Op::ViewCreate, Op::ViewDestroy, Op::ViewReset, Op::ViewCopy, Op::ViewRemap, Op::ViewSwitch, Op::ViewShow,
        Op::ViewOf,
        Op::SessionCreate, Op::SessionPlace, Op::SessionCommit, Op::SessionSettle, Op::SessionInfo,
    ];

    /// The highest number of an operation.
    pub const LAST: u16 = Op::ALL[Op::ALL.len() - 1] as u16;

    /// The operation with this number, if there is one.
    #[inline(always)]
    pub fn from_number(number: u16) -> Option<Op> {
        if number as usize >= BY_NUMBER.len() { None } else { BY_NUMBER[number as usize] }
    }
}

/// Operations by number, so that the kernel needs one load for each.
static BY_NUMBER: [Option<Op>; Op::LAST as usize + 1] = {
    let mut table = [None; Op::LAST as usize + 1];
    let mut i = 0;
    while i < Op::ALL.len() {
        table[Op::ALL[i] as usize] = Some(Op::ALL[i]);
        i += 1;
    }
    table
};

/// In the number of a vCPU that [`Op::VcpuCreate`] is asked for: a place for the one that has this number already.
pub const PLACE: u64 = 1 << 8;

/// Priority argument of [`Op::ThreadCreate`] for a thread that only runs on what its callers lend.
pub const PASSIVE: u64 = 0xffff;

/// Why the kernel did not do it. State is as before the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[repr(u64)]
pub enum Refusal {
    /// The slot is empty or outside the table.
    NoCapability = 1,
    /// The capability names another kind of object.
    WrongKind = 2,
    /// The capability lacks a right this needs.
    MissingRight = 3,
    /// The object is gone.
    Gone = 4,
    /// An argument can never be right.
    BadArgument = 5,
    /// An index, page or count lies outside the object.
    OutOfRange = 6,
    /// Something is there already.
    Occupied = 7,
    /// The pool or quota this needs is used up.
    Quota = 8,
    /// A call may only go to a lower rank, a forward only to a higher one.
    Order = 9,
    /// Not now; the same call may succeed later.
    Again = 10,
    /// The deadline passed.
    Late = 11,
    /// Nothing is mapped there.
    NotMapped = 12,
    /// This machine cannot.
    Unsupported = 13,
    /// The object is not in a state where this is possible.
    BadState = 14,
    /// The object lives on another CPU.
    WrongCpu = 15,
    /// There is no such operation.
    NoOperation = 16,
}

impl Refusal {
    /// Every refusal, in order of number.
    pub const ALL: [Refusal; 16] = [
        Refusal::NoCapability, Refusal::WrongKind, Refusal::MissingRight, Refusal::Gone, Refusal::BadArgument,
        Refusal::OutOfRange, Refusal::Occupied, Refusal::Quota, Refusal::Order, Refusal::Again, Refusal::Late,
        Refusal::NotMapped, Refusal::Unsupported, Refusal::BadState, Refusal::WrongCpu, Refusal::NoOperation,
    ];

    /// What goes into `x0`.
    pub const fn to_register(self) -> u64 {
        (-(self as i64)) as u64
    }

    /// What `x0` says: a value, or a refusal.
    pub fn from_register(x0: u64) -> Result<u64, Refusal> {
        let value = x0 as i64;
        if value >= 0 {
            return Ok(x0);
        }
        let index = (-(value + 1)) as usize;
        Err(*Self::ALL.get(index).unwrap_or(&Refusal::NoOperation))
    }
}

/// The kinds of objects a capability can name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// An empty slot.
    Empty = 0,
    /// A protection domain: an address space and a capability table.
    Domain = 1,
    /// A thread.
    Thread = 2,
    /// A synchronous entry into a thread.
    Portal = 3,
    /// Bits in a thread's signal word.
    Signal = 4,
    /// A virtual processor.
    Vcpu = 5,
    /// A guest: second-stage maps and virtual interrupt state.
    Guest = 6,
    /// A run of physical memory.
    Frames = 7,
    /// A physical interrupt.
    Line = 8,
    /// The machine itself: switching off, facts, lines.
    System = 9,
    /// Who watches a guest.
    Session = 10,
}

/// What a capability allows; which bits mean something depends on the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Rights(pub u8);

impl Rights {
    /// Frames: map readable. Guest: read its memory. vCPU: read its registers.
    pub const READ: Rights = Rights(1);
    /// Frames: map writable. Guest: write its memory. vCPU: write its registers.
    pub const WRITE: Rights = Rights(2);
    /// Frames: map executable. vCPU: start, stop. Guest: choose its vCPUs' views.
    pub const EXECUTE: Rights = Rights(4);
    /// Guest: change its maps. Domain: change its maps and threads.
    pub const EDIT: Rights = Rights(8);
    /// vCPU, guest: change virtual interrupt state. System: serve queues of interrupts.
    pub const LINES: Rights = Rights(16);
    /// Destroy, reclaim, revoke, split; make objects of it. Session: say who watches.
    pub const CONTROL: Rights = Rights(32);
    /// Portal: call. Signal: raise. Session: forward exits to it.
    pub const USE: Rights = Rights(64);
    /// Copy the capability to others.
    pub const GRANT: Rights = Rights(128);
    /// Everything.
    pub const ALL: Rights = Rights(0xff);

    /// Both together.
    pub const fn with(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// Whether every right in `need` is here.
    pub const fn covers(self, need: Rights) -> bool {
        self.0 & need.0 == need.0
    }
}

/// Access bits of a mapping, and what kind of memory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Access(pub u64);

impl Access {
    /// May be read.
    pub const READ: Access = Access(1);
    /// May be written.
    pub const WRITE: Access = Access(2);
    /// May be executed.
    pub const EXECUTE: Access = Access(4);
    /// Device memory, not ordinary memory.
    pub const DEVICE: Access = Access(8);
    /// May be executed by the guest's kernel level alone, unless [`Access::EXECUTE`] is here as well.
    pub const KERNEL_EXECUTE: Access = Access(16);
    /// May be executed by the guest's user level alone, unless [`Access::EXECUTE`] is here as well.
    pub const USER_EXECUTE: Access = Access(32);
    /// Forbidden accesses are told to the guest itself, if it asked for that ([`GuestCall::Notify`]).
    pub const NOTIFY: Access = Access(64);
    /// Argument of [`Op::ViewCopy`]: each page as the host map has it.
    pub const AS_HOST: Access = Access(1 << 32);
    /// Every bit that a leaf of a guest can be given.
    pub const LEAF: Access = Access(0x77);

    /// Both together.
    pub const fn with(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// The same with one way to say each kind of execution.
    pub const fn normal(self) -> Access {
        const BOTH: u64 = Access::KERNEL_EXECUTE.0 | Access::USER_EXECUTE.0;
        if self.0 & Access::EXECUTE.0 != 0 || self.0 & BOTH == BOTH {
            Access(self.0 & !BOTH | Access::EXECUTE.0)
        } else {
            self
        }
    }

    /// Whether one kind of execution alone is allowed: what CPUs without FEAT_XNX cannot say.
    pub const fn splits_execute(self) -> bool {
        self.normal().0 & (Access::KERNEL_EXECUTE.0 | Access::USER_EXECUTE.0) != 0
    }

    /// What must be allowed of memory for a leaf to say this.
    pub const fn needs(self) -> Access {
        let any = Access::EXECUTE.0 | Access::KERNEL_EXECUTE.0 | Access::USER_EXECUTE.0;
        let execute = if self.0 & any != 0 { Access::EXECUTE.0 } else { 0 };
        Access(self.0 & 3 | execute)
    }

    /// Whether every bit of `need` is here.
    pub const fn covers(self, need: Access) -> bool {
        self.0 & need.0 == need.0
    }
}

/// What a vCPU stopped for. Each class has a route of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum ExitClass {
    /// An access the second stage does not allow, outside every device window.
    Memory = 0,
    /// An access in a device window.
    Device = 1,
    /// A trapped system register access or trapped instruction of that space.
    Register = 2,
    /// HVC.
    Hypercall = 3,
    /// SMC.
    Firmware = 4,
    /// WFE or WFI that the kernel does not answer itself.
    Wait = 5,
    /// Breakpoint, watchpoint, single step.
    Debug = 6,
    /// Floating point or vector use that the kernel does not answer itself.
    Float = 7,
    /// Everything else: instructions and states a guest must not use.
    Illegal = 8,
    /// A system error (SError) the guest caused.
    SystemError = 9,
}

/// Number of exit classes, and of routes in a vCPU.
pub const EXIT_CLASSES: usize = 16;

impl ExitClass {
    /// Every class, in order of number.
    pub const ALL: [ExitClass; 10] = [
        ExitClass::Memory, ExitClass::Device, ExitClass::Register, ExitClass::Hypercall, ExitClass::Firmware,
        ExitClass::Wait, ExitClass::Debug, ExitClass::Float, ExitClass::Illegal, ExitClass::SystemError,
    ];

    /// The class with this number.
    pub fn from_number(number: u64) -> Option<ExitClass> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// First word of an exit message: class, what kind of access, where it came from.
///
/// Bits 0–7 class; 8–15 width of the access in bytes (0 = not known from the syndrome); 16–20 the register it moves;
/// 21 the register is 64 bits wide; 22 the value is sign-extended; 32–47 view; 48–55 length of the instruction in
/// bytes (0 = the program counter is past it already); flags below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct ExitHeader(pub u64);

impl ExitHeader {
    /// A write.
    pub const WRITE: u64 = 1 << 24;
    /// An instruction fetch.
    pub const FETCH: u64 = 1 << 25;
    /// The access was the guest's own page-table walk.
    pub const WALK: u64 = 1 << 26;
    /// `m3` holds the guest virtual address.
    pub const VIRTUAL_VALID: u64 = 1 << 27;
    /// A leaf is there but forbids the access (else it is absent).
    pub const PERMISSION: u64 = 1 << 28;
    /// The instruction came from the guest's user level.
    pub const USER: u64 = 1 << 29;
    /// An atomic or exclusive access.
    pub const EXCLUSIVE: u64 = 1 << 30;
    /// A data access in big-endian order: the value travels as the register holds it, its bytes lie in memory turned.
    pub const BIG_ENDIAN: u64 = 1 << 31;
    /// Set by p2m: the access is watched, and nobody need be asked: it shall happen.
    pub const ALLOWED: u64 = 1 << 57;
    /// The step that an answer asked for ([`Answer::REPORT`]) is over; the program counter is where the vCPU goes on.
    pub const STEPPED: u64 = 1 << 56;

    /// What the vCPU stopped for.
    pub fn class(self) -> Option<ExitClass> {
        ExitClass::from_number(self.0 & 0xff)
    }

    /// Width of the access in bytes, when the syndrome says so.
    pub fn width(self) -> Option<u8> {
        match (self.0 >> 8) as u8 {
            0 => None,
            bytes => Some(bytes),
        }
    }

    /// The general register that the access moves.
    pub const fn register(self) -> u8 {
        (self.0 >> 16) as u8 & 31
    }

    /// Whether that register is 64 bits wide.
    pub const fn is_wide(self) -> bool {
        self.0 >> 21 & 1 == 1
    }

    /// Whether a read is sign-extended.
    pub const fn is_signed(self) -> bool {
        self.0 >> 22 & 1 == 1
    }

    /// Whether this flag is set.
    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// The view the vCPU was in.
    pub const fn view(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Bytes from the program counter to the next instruction.
    pub const fn length(self) -> u8 {
        (self.0 >> 48) as u8
    }
}

/// An exit as a server receives it: the ten words of the message by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exit {
    /// `m0`.
    pub header: ExitHeader,
    /// `m1`: the machine's own syndrome (ESR_EL2 on AArch64).
    pub syndrome: u64,
    /// `m2`: guest-physical address, for memory and device exits.
    pub physical: u64,
    /// `m3`: guest virtual address where the header says it is valid.
    pub virtual_address: u64,
    /// `m4`: program counter (group [`Groups::PC`]).
    pub pc: u64,
    /// `m5`: value of the register that a write moves (group [`Groups::VALUE`]).
    pub value: u64,
    /// `m6`–`m9`: x0–x3 (group [`Groups::GENERAL`]).
    pub general: [u64; 4],
}

impl Exit {
    /// From the words of the message.
    pub const fn from_words(m: [u64; WORDS]) -> Exit {
        Exit {
            header: ExitHeader(m[0]),
            syndrome: m[1],
            physical: m[2],
            virtual_address: m[3],
            pc: m[4],
            value: m[5],
            general: [m[6], m[7], m[8], m[9]],
        }
    }

    /// To the words of the message.
    pub const fn to_words(&self) -> [u64; WORDS] {
        let g = self.general;
        [
            self.header.0, self.syndrome, self.physical, self.virtual_address, self.pc, self.value, g[0], g[1], g[2],
            g[3],
        ]
    }
}

/// Which register groups travel in an exit message; words of other groups are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Groups(pub u64);

impl Groups {
    /// Program counter in `m4`.
    pub const PC: Groups = Groups(1);
    /// Value of the register that the access moves in `m5`.
    pub const VALUE: Groups = Groups(2);
    /// x0–x3 in `m6`–`m9`.
    pub const GENERAL: Groups = Groups(4);

    /// Both together.
    pub const fn with(self, other: Groups) -> Groups {
        Groups(self.0 | other.0)
    }
}

/// What an answer to an exit changes in the vCPU; goes into `x0` of [`Op::ReplyAndWait`]. Unknown bits are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Answer(pub u64);

impl Answer {
    /// Go on as it was: the instruction is tried again.
    pub const RETRY: Answer = Answer(0);
    /// Skip the instruction.
    pub const ADVANCE: Answer = Answer(1);
    /// Program counter = `m4`.
    pub const PC: Answer = Answer(2);
    /// x0–x3 = `m6`–`m9`.
    pub const GENERAL: Answer = Answer(4);
    /// The register in bits 8–12 = `m5` (31 = none).
    pub const REGISTER: Answer = Answer(8);
    /// The vCPU stays stopped until [`Op::VcpuStart`].
    pub const STOP: Answer = Answer(16);
    /// The vCPU executes one instruction in the view in bits 16–31, then goes on in the view it was in, by itself; what
    /// else this answer changes is done first. Virtual interrupts wait meanwhile, and so does the guest's own single step.
    /// An instruction that ends in an exception of the guest's, or that its exit's server does for it, has been executed.
    /// An exit on the way that is answered with `RETRY` leaves the step as it is; another `STEP` chooses another view
    /// for it, and `STOP`, or whatever else stops the vCPU, ends it. Refused, and nothing of the answer done:
    /// `OutOfRange`, `NotMapped` (no such view), `BadArgument` (with `STOP`).
    pub const STEP: Answer = Answer(32);
    /// With `STEP`: afterwards the vCPU stops with an exit of class [`ExitClass::Debug`] that says
    /// [`ExitHeader::STEPPED`].
    pub const REPORT: Answer = Answer(64);
    /// Every bit that means something.
    pub const KNOWN: u64 = 0xffff_1f7f;
    /// Those that a server is answered with most quickly.
    pub const QUICK: u64 = 0x1f0f;

    /// Both together.
    pub const fn with(self, other: Answer) -> Answer {
        Answer(self.0 | other.0)
    }

    /// With the register that `m5` goes to.
    pub const fn register(self, n: u8) -> Answer {
        Answer(self.0 | Self::REGISTER.0 | ((n & 31) as u64) << 8)
    }

    /// One step in this view.
    pub const fn step(self, view: u16) -> Answer {
        Answer(self.0 | Self::STEP.0 | (view as u64) << 16)
    }

    /// The view of the step.
    pub const fn view(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether this bit is set.
    pub const fn has(self, bit: Answer) -> bool {
        self.0 & bit.0 != 0
    }
}

/// What traps in a vCPU, for [`Op::VcpuTraps`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Traps(pub u64);

impl Traps {
    /// Nothing beside what always does.
    pub const NONE: Traps = Traps(0);
    /// Breakpoint instructions stop the vCPU, class [`ExitClass::Debug`]. While the guest steps itself they go to it as ever.
    pub const BREAKPOINT: Traps = Traps(1);
    /// Writes of the registers that say how its memory is translated stop the vCPU, class [`ExitClass::Register`].
    pub const MEMORY_REGISTERS: Traps = Traps(2);
    /// Every bit that means something.
    pub const ALL: Traps = Traps(3);

    /// Whether this bit is set.
    pub const fn has(self, bit: Traps) -> bool {
        self.0 & bit.0 != 0
    }
}

/// What goes with a guest-wide line from one vCPU to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineState(pub u64);

impl LineState {
    /// The guest has it enabled.
    pub const ENABLED: u64 = 1;
    /// An edge came, or it was made pending.
    pub const PENDING: u64 = 1 << 1;
    /// Its input is high.
    pub const LEVEL: u64 = 1 << 2;
    /// It is edge triggered.
    pub const EDGE: u64 = 1 << 3;
    /// It is in group 1.
    pub const GROUP: u64 = 1 << 4;

    /// These bits and this priority.
    pub const fn new(bits: u64, priority: u8) -> LineState {
        LineState(bits & 31 | (priority as u64) << 8)
    }

    /// Whether this is so.
    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    /// Its priority.
    pub const fn priority(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether nothing else is said.
    pub const fn is_known(self) -> bool {
        self.0 & !0xff1f == 0
    }
}

/// A service of a source of interrupts that has begun, as [`Op::QueueTake`] gives it: bits 0–15 the source, 16 its line
/// fired since the service before, 32–63 which service of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Service(pub u64);

impl Service {
    /// Of these parts.
    pub const fn new(source: u16, turn: u32, latched: bool) -> Service {
        Service(source as u64 | (latched as u64) << 16 | (turn as u64) << 32)
    }

    /// Which source, as [`Op::LineForward`] numbered it.
    pub const fn source(self) -> u16 {
        self.0 as u16
    }

    /// Whether the line fired since the service before.
    pub const fn has_fired(self) -> bool {
        self.0 >> 16 & 1 == 1
    }
}

/// A bit field that every virtual line has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LineField {
    /// Forwarded when pending.
    Enabled = 0,
    /// Pending by software or edge.
    Pending = 1,
    /// Taken and not yet ended.
    Active = 2,
    /// Edge triggered (else by level).
    Edge = 3,
    /// The input of a level line is high.
    Level = 4,
    /// In group 1 (else group 0).
    Group = 5,
}

impl LineField {
    /// The field with this number.
    pub fn from_number(number: u64) -> Option<LineField> {
        use LineField::*;
        [Enabled, Pending, Active, Edge, Level, Group].get(usize::try_from(number).ok()?).copied()
    }
}

/// Virtual lines a guest can have: 32 private ones a vCPU, the rest the guest's.
pub const VIRTUAL_LINES: u64 = 128;

/// A vCPU register by number, for [`Op::VcpuGet`] and [`Op::VcpuSet`]. 0–30 are x0–x30.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum VcpuRegister {
    X0 = 0, X1 = 1, X2 = 2, X3 = 3, X30 = 30,
    /// Program counter.
    Pc = 32,
    /// Processor state. M must be EL0t, EL1t or EL1h of AArch64.
    Pstate = 33,
    SpEl0 = 34, SpEl1 = 35, ElrEl1 = 36, SpsrEl1 = 37, VbarEl1 = 38, SctlrEl1 = 39, Ttbr0El1 = 40, Ttbr1El1 = 41,
    TcrEl1 = 42, MairEl1 = 43, EsrEl1 = 44, FarEl1 = 45, CpacrEl1 = 46, TpidrEl1 = 47, TpidrEl0 = 48, TpidrroEl0 = 49,
    ContextidrEl1 = 50, CntkctlEl1 = 51, CntvCtl = 52, CntvCval = 53, Vmpidr = 54, Vpidr = 55, AmairEl1 = 56,
    Afsr0El1 = 57, Afsr1El1 = 58, ParEl1 = 59, CsselrEl1 = 60,
    /// Virtual counter offset, in ticks.
    Cntvoff = 61,
    /// 1 while the guest's virtual timer is held masked by the kernel because its line is in flight.
    TimerHeld = 62,
}

/// Floating-point registers of a vCPU, for [`Op::VcpuGet`] and [`Op::VcpuSet`]. Reading or writing one puts the vCPU's
/// state into memory first if it is in hardware.
pub mod float_register {
    /// The first number; all from here on are floating-point registers.
    pub const FIRST: u64 = 0x1000;
    /// Lanes of 128 bits in its scalable vectors, 0 without them. Read only.
    pub const LENGTH: u64 = 0x1000;
    /// FPSR.
    pub const FPSR: u64 = 0x1001;
    /// FPCR.
    pub const FPCR: u64 = 0x1002;
    /// ZCR_EL1, where there are scalable vectors.
    pub const ZCR_EL1: u64 = 0x1003;
    /// Word w (64 bits) of vector n is at 32 n + w from here.
    pub const VECTORS: u64 = 0x2000;
    /// Word w of predicate n is at 4 n + w from here; FFR is number 16. The last word of one may have fewer bits.
    pub const PREDICATES: u64 = 0x3000;
}

/// Words of the record of a thread's fault, read by [`Op::ThreadFault`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ThreadFault {
    /// 0 = it runs, 1 = it ended by itself, 2 = it faulted, 3 = it took too long for an answer.
    State = 0,
    /// The machine's syndrome.
    Syndrome = 1,
    /// The address.
    Address = 2,
    /// The program counter.
    Pc = 3,
    /// The stack pointer.
    Sp = 4,
    /// Whom it kept waiting for too long: 0 nobody, 1 a thread, 2 a vCPU.
    LateFor = 5,
    /// That vCPU's number in its guest.
    LateVcpu = 6,
    /// The first word of that vCPU's exit ([`ExitHeader`]).
    LateExit = 7,
    /// The first `x0`–`x30` stand at 8–38.
    General = 8,
}

/// A fact about the machine, for [`Op::Fact`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fact {
    /// CPUs that run.
    Cpus = 0,
    /// Ticks of the clock a second.
    ClockHz = 1,
    /// Instructions (ticks at 1 GHz) from the kernel's first to root's, from the counter.
    BootTicks = 2,
    /// Bytes of memory that the kernel keeps.
    KernelMemory = 3,
    /// Free names in the pool of [`Kind`] `x2` on this CPU.
    FreeNames = 4,
    /// Main ID register of CPU 0.
    Midr = 5,
    /// An ID register of the machine, by its encoding CRm<<3|op2 in `x2` (op0 = 3, op1 = 0, CRn = 0).
    IdRegister = 6,
    /// List registers of the virtual interrupt interface.
    ListRegisters = 7,
    /// Words shared between CPUs that this CPU has written on IPC and exit paths.
    SharedWrites = 8,
    /// What this CPU has and what its errata need, one bit each (kernel/aarch64/src/features.rs names them).
    Silicon = 16,
    /// What this CPU does at every entry about its predictors: firmware function in bits 0–31 (0 = none), taken branches
    /// in 32–39, 40 = CLRBHB. 0 = nothing.
    Predictors = 17,
    /// Lengths that scalable vectors can have on every CPU: bit n for n + 1 lanes of 128 bits; 0 = there are none.
    VectorLengths = 32,
    /// Bytes of floating-point registers that moved between hardware and memory on this CPU.
    FloatBytes = 33,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_register() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::from_register(refusal.to_register()), Err(refusal));
        }
        assert_eq!(Refusal::from_register(7), Ok(7));
        assert_eq!(Refusal::from_register(i64::MIN as u64), Err(Refusal::NoOperation));
    }

    #[test]
    fn operations_are_listed_once_and_in_order() {
        for pair in Op::ALL.windows(2) {
            assert!((pair[0] as u8) < pair[1] as u8);
        }
        assert_eq!(Op::from_number(0x63), Some(Op::Fact));
        assert_eq!(Op::from_number(0x6f), None);
        assert_eq!(Op::from_number(Op::LAST), Op::ALL.last().copied());
        assert_eq!(Op::from_number(Op::LAST + 1), None);
        assert_eq!(Op::from_number(0xff), None);
    }

    #[test]
    fn both_kinds_of_execution_are_one() {
        let both = Access::KERNEL_EXECUTE.with(Access::USER_EXECUTE);
        assert_eq!(both.normal(), Access::EXECUTE);
        assert!(!both.splits_execute() && Access::USER_EXECUTE.splits_execute());
        assert!(!Access::EXECUTE.with(Access::KERNEL_EXECUTE).splits_execute());
        assert_eq!(Access(2).with(Access::KERNEL_EXECUTE).with(Access::NOTIFY).needs(), Access(6));
    }

    #[test]
    fn guest_calls_are_their_immediates() {
        for call in [GuestCall::Switch, GuestCall::Notify, GuestCall::Return] {
            assert_eq!(GuestCall::from_number(call as u16), Some(call));
        }
        assert_eq!(GuestCall::from_number(0), None);
        assert_eq!(core::mem::size_of::<NoticePage>(), NoticePage::WORDS * 8);
    }

    #[test]
    fn an_exit_keeps_its_words() {
        let words = [0x0001_0000_0302_0401, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let exit = Exit::from_words(words);
        assert_eq!(exit.to_words(), words);
        assert_eq!(exit.header.class(), Some(ExitClass::Device));
        assert_eq!(exit.header.width(), Some(4));
        assert_eq!(exit.header.register(), 2);
    }

    #[test]
    fn an_answer_that_steps_names_its_view() {
        let answer = Answer::ADVANCE.register(31).with(Answer::REPORT).step(511);
        assert_eq!((answer.view(), answer.0 & !Answer::KNOWN), (511, 0));
        assert!(answer.has(Answer::STEP) && !answer.has(Answer::STOP));
        assert_eq!(Answer::QUICK & (Answer::STEP.0 | Answer::REPORT.0 | Answer::STOP.0), 0);
        assert_eq!(Answer::RETRY.step(0), Answer::STEP, "view 0 is no bits");
    }
}
