// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the composer decided: which servers, which guests, where everything stands in the payload.
//!
//! Postcard, read in place by root; each server's own configuration is a part of its own. The composer has checked
//! it; root checks again whatever an index could break.

use heapless::Vec;
use crate::control::Control;
use crate::event::EventKind;
use crate::kernel::SESSIONS;
use crate::wire::ViewAccess;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Version of this file's types.
pub const VERSION: u16 = 9;
/// Most servers in an image (root's signal word has one bit each).
pub const MAX_SERVERS: usize = 48;
/// Most guests in an image.
pub const MAX_GUESTS: usize = 16;
/// Most vCPUs of a guest.
pub const MAX_VCPUS: usize = 8;
/// Most devices of a guest.
pub const MAX_DEVICES: usize = 8;
/// Most lines of all devices that guests own.
pub const MAX_SOURCES: usize = 64;
/// Most functions of guests that write messages.
pub const MAX_FUNCTIONS: usize = 8;
/// Most ranges of registers of a function: it has so many base address registers.
pub const MAX_RANGES: usize = 6;
/// Most streams of devices behind an SMMU.
pub const MAX_STREAMS: usize = 16;

/// Bytes of the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From the payload's first byte; page aligned.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The whole image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan<'a> {
    /// [`VERSION`].
    pub version: u16,
    /// The manifest's name.
    pub name: &'a str,
    /// In order of start: console first, then p2m and vcpu of each guest, then irqfwd if a guest owns a device,
    /// then smmu if the SMMU keeps one to its guest's memory, then monitors.
    #[serde(borrow)]
    pub servers: Vec<ServerPlan<'a>, MAX_SERVERS>,
    /// The guests.
    #[serde(borrow)]
    pub guests: Vec<GuestPlan<'a>, MAX_GUESTS>,
    /// The manifest's text, for `trellis query`.
    pub manifest: Part,
    /// Physical line of the board's first serial port.
    pub uart_line: u32,
    /// Root sends what every CPU does to the host, for as long as the system runs.
    pub trace: bool,
    /// What the host may do by the control channel.
    pub control: Control,
}

/// A piece of a program: mapped straight from the payload, or copied when it is writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where in the payload.
    pub part: Part,
    /// Virtual address, page aligned.
    pub address: u64,
    /// Bytes in memory; the rest is zero.
    pub memory_bytes: u64,
    /// [`crate::kernel::Access`] bits.
    pub access: u64,
}

/// What a server is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The serial port. Rank 5.
    Console,
    /// The maps of the guest with this index. Rank 1.
    P2m(u8),
    /// The processor and platform of the guest with this index. Rank 2.
    Vcpu(u8),
    /// The interrupts of all devices that guests own. Rank 2.
    Irqfwd,
    /// The device spaces of all devices behind the SMMU. Rank 2.
    Smmu,
    /// Watches guests. Rank 3.
    Monitor,
}

impl Role {
    /// Calls go to lower ranks only, forwards to higher ones. Root's is 4.
    pub const fn rank(self) -> u8 {
        match self {
            Role::P2m(_) => 1,
            Role::Vcpu(_) | Role::Irqfwd | Role::Smmu => 2,
            Role::Monitor => 3,
            Role::Console => 5,
        }
    }
}

/// One server: a domain, its program, its threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerPlan<'a> {
    /// Unique name, as logs show it.
    pub name: &'a str,
    /// What it is there for.
    pub role: Role,
    /// Entry address.
    pub entry: u64,
    /// The program's pieces.
    pub segments: Vec<Segment, 6>,
    /// CPU of each thread. For p2m and vcpu: thread `i` serves vCPU `i`, and one more, the last, is the control
    /// thread on root's CPU. Root adds to each vcpu server a thread of index vCPUs + 1 on root's CPU that attends to
    /// input and timers. For irqfwd: one for each CPU that devices interrupt, and the control thread on root's CPU. For a
    /// monitor: one for each CPU on which a vCPU is watched, each once, and the control thread on root's CPU. For the
    /// console: one thread. For smmu: the control thread on root's CPU; root adds one there that attends to events.
    pub cpus: Vec<u8, 9>,
    /// Pages of page tables.
    pub table_pages: u16,
    /// Capability slots.
    pub slots: u16,
    /// Its configuration ([`P2mConfig`], [`VcpuConfig`], [`IrqfwdConfig`], [`SmmuConfig`], [`MonitorConfig`] or [`ConsoleConfig`]), if any.
    pub config: Part,
    /// Each of its threads has floating-point registers of its own; otherwise their use is a fault.
    pub float: bool,
    /// Monitor: what is kept for another one in its place; nobody may take it if there is nothing.
    pub swap: Option<SwapPlan>,
}

/// What is kept for a server that the host may put into another's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapPlan {
    /// Pages of its program, and of its file, at most.
    pub pages: u16,
    /// Who must have signed it (Ed25519).
    pub signer: Option<[u8; 32]>,
    /// The lowest number that a signed one may have: an older one is refused.
    pub counter: u64,
}

/// Most pages of a [`SwapPlan`].
pub const MAX_SWAP_PAGES: u16 = 1024;

/// How much of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Microseconds in each period.
    pub time_us: u32,
    /// The period in microseconds.
    pub period_us: u32,
}

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPlan<'a> {
    /// Unique name.
    pub name: &'a str,
    /// First guest-physical byte of its memory.
    pub memory_base: u64,
    /// Bytes of memory; a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// CPU of each vCPU.
    pub cpus: Vec<u8, MAX_VCPUS>,
    /// 0 (lowest) – 255.
    pub priority: u8,
    /// Per vCPU; none = the whole CPU by priority.
    pub budget: Option<Budget>,
    /// Pages of page tables for its maps.
    pub table_pages: u32,
    /// Views it may have, its host map among them (1 to [`crate::kernel::MAX_VIEWS`]).
    pub views: u16,
    /// What it may do about them itself ([`crate::kernel::Inside`] bits).
    pub inside: u8,
    /// The system goes on as long as an essential guest does.
    pub essential: bool,
    /// What PSCI SYSTEM_RESET, or the death of one of its servers, leads to.
    pub on_reset: OnReset,
    /// Index of its p2m server.
    pub p2m: u8,
    /// Index of its vcpu server.
    pub vcpu: u8,
    /// Line in the manifest where `[guest.NAME]` stands.
    pub manifest_line: u32,
    /// Scalable vectors.
    pub sve: Sve,
    /// Its devices, by their place in [`crate::boot::BootHeader::devices`]; p2m's configuration says where they are.
    pub devices: Vec<u8, MAX_DEVICES>,
    /// Who watches it: each has the session of its place here.
    pub watchers: Vec<WatcherPlan, { SESSIONS as usize }>,
}

/// A monitor of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatcherPlan {
    /// Index of the monitor's server.
    pub server: u8,
    /// The guest's place in [`MonitorConfig::guests`].
    pub place: u8,
    /// Microseconds that it may take for a verdict.
    pub deadline_us: u32,
    /// What becomes of the guest while there is no monitor.
    pub without: Without,
    /// It may read the guest's memory.
    pub reads: bool,
    /// It may write it.
    pub writes: bool,
    /// It may write the registers of stopped vCPUs.
    pub sets: bool,
    /// It may stop vCPUs for a while, and start them.
    pub pauses: bool,
}

/// What becomes of a watched guest whose monitor is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Without {
    /// A vCPU that does what is watched waits for the next monitor. Where there will be none, the guest ends.
    Hold,
    /// The guest ends.
    Stop,
    /// It goes on, unwatched until the next monitor is there.
    Allow,
}

/// Scalable vectors of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sve {
    /// None: their use is undefined.
    Off,
    /// Of exactly so many lanes of 128 bits.
    Lanes(u8),
    /// The longest that every CPU has; a machine without any is refused.
    Most,
}

/// What happens when a guest asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnReset {
    /// It starts again from its image.
    Reboot,
    /// It has ended.
    End,
}

/// When guest memory gets its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Populate {
    /// All before the guest starts.
    Eager,
    /// Each page (or 2 MiB block) at its first touch.
    Lazy,
}

/// Configuration of a p2m server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct P2mConfig<'a> {
    /// The guest's name.
    pub guest: &'a str,
    /// First guest page of memory.
    pub first_page: u64,
    /// Pages of memory.
    pub pages: u64,
    /// When frames are mapped.
    pub populate: Populate,
    /// vCPUs of the guest.
    pub vcpus: u8,
    /// Pages mapped without the guest's memory: GICv2's virtual CPU interface (guest page, machine run in
    /// [`crate::layout::slot::MEMORY`] + 1). None on GICv3.
    pub gicv_page: Option<u64>,
    /// Monitors that watch it, each with a session.
    pub watchers: u8,
    /// Views the guest may have, its host map among them.
    pub views: u16,
    /// Views that are there from the start: 1, 2, …
    pub view: Vec<ViewPlan, MAX_PLANNED_VIEWS>,
    /// Where the guest's own devices are, in the order of their runs in [`crate::layout::slot::DEVICE`].
    pub devices: Vec<DevicePages, MAX_DEVICES>,
}

/// Most views that a manifest describes.
pub const MAX_PLANNED_VIEWS: usize = 8;
/// Most stretches of pages that it describes in one of them.
pub const MAX_PLANNED_PAGES: usize = 8;

/// A view that is there from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewPlan {
    /// Access of pages that have none of their own.
    pub default: ViewAccess,
    /// The guest itself may enter it.
    pub shown: bool,
    /// Pages with something of their own.
    pub pages: Vec<PagesPlan, MAX_PLANNED_PAGES>,
}

/// Pages of a view with something of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagesPlan {
    /// First guest page.
    pub first: u64,
    /// How many.
    pub pages: u64,
    /// Their access.
    pub access: ViewAccess,
    /// The guest itself is told of what is forbidden.
    pub notify: bool,
    /// The pages, from this one on, whose frames are shown instead.
    pub shows: Option<u64>,
}

/// Where a device of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePages {
    /// First guest page.
    pub page: u64,
    /// Pages.
    pub pages: u64,
}

/// Configuration of irqfwd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqfwdConfig {
    /// CPU of each vCPU of each guest; nothing where a guest has no device.
    pub guests: Vec<Vec<u8, MAX_VCPUS>, MAX_GUESTS>,
    /// The lines, in the order of their capabilities in [`crate::layout::slot::LINE`].
    pub sources: Vec<SourcePlan, MAX_SOURCES>,
    /// What it needs for lines that messages make; nothing where there are none.
    pub messages: Option<MessagePlan>,
}

/// Who writes messages, and what makes interrupts of them. Runs of registers are named by their place in
/// [`crate::boot::BootHeader::devices`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessagePlan {
    /// The run of the interrupt translation service's registers.
    pub service: u8,
    /// That of the redistributors'.
    pub redistributors: u8,
    /// The machine address of the first one.
    pub redistributors_at: u64,
    /// How many there are at most.
    pub frames: u8,
    /// Where messages are written to (GITS_TRANSLATER).
    pub doorbell: u64,
    /// CPUs to which they may come, each with its affinity as a redistributor has it (GICR_TYPER).
    pub cpus: Vec<(u8, u32), MAX_VCPUS>,
    /// Who writes them.
    pub functions: Vec<FunctionPlan, MAX_FUNCTIONS>,
}

/// A function of a PCI device that a guest owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPlan {
    /// Which guest.
    pub guest: u8,
    /// The run of its configuration page, which no guest sees.
    pub run: u8,
    /// Bus, device and function, by which the translation service knows it.
    pub requester: u16,
    /// Where its registers are to be, all of them, ascending by their base address registers.
    pub ranges: Vec<RangePlan, MAX_RANGES>,
    /// The line that its first message makes; the others' follow.
    pub line: u32,
    /// Its messages: a power of two, where it has no table of them.
    pub messages: u8,
    /// The table of its messages (MSI-X); none: they are in its configuration page (MSI).
    pub table: Option<TablePlan>,
    /// Its guest says which message an entry of its table writes ([`BusPlan`]): any of those that are the guest's functions' of
    /// this kind, counted in the order in which these are listed.
    pub chosen: bool,
}

/// A range of a function's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangePlan {
    /// Where it is to be, at a multiple of its size.
    pub base: u64,
    /// Which base address register it has: below [`MAX_RANGES`]. Where that one has 64 bits it takes the next one too.
    pub register: u8,
    /// Its size: 2 to the power of this.
    pub bits: u8,
}

/// Where a function keeps its messages, and which of them wait. No guest sees the pages that these are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlan {
    /// The run that begins with the page of the first entry. All that are used are on that page.
    pub run: u8,
    /// Entries that there are at most.
    pub entries: u16,
    /// The table.
    pub at: TablePlace,
    /// A bit for each entry: its message waits until it is let go.
    pub pending: TablePlace,
}

/// A place in a function's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePlace {
    /// The range, by its base address register.
    pub register: u8,
    /// Bytes from its first one on: a multiple of 8.
    pub offset: u32,
}

/// A line of a device that a guest owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Which guest.
    pub guest: u8,
    /// The physical line.
    pub line: u32,
    /// The guest's line that it comes as.
    pub guest_line: u8,
    /// An edge triggers it, not its level.
    pub edge: bool,
    /// The kernel hands it on, and irqfwd keeps control.
    pub direct: bool,
}

/// Configuration of smmu.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmmuConfig {
    /// The run of its registers, by its place in [`crate::boot::BootHeader::devices`].
    pub run: u8,
    /// Its lines: there are events, and something is wrong with it. Both are edges.
    pub lines: [u32; 2],
    /// Bits of a stream's number; others are none of the table, and stopped.
    pub stream_bits: u8,
    /// Pages of the memory that it shares with the SMMU.
    pub pages: u32,
    /// The device spaces.
    pub spaces: Vec<SpacePlan, MAX_GUESTS>,
    /// Who writes and reads memory behind it.
    pub streams: Vec<StreamPlan, MAX_STREAMS>,
}

/// A device space: what a guest's devices see of memory, which is what the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpacePlan {
    /// Which guest.
    pub guest: u8,
    /// First guest page of its memory.
    pub first: u64,
    /// Pages of it.
    pub pages: u64,
    /// The page to which messages are written, if a device writes any: the machine's own.
    pub doorbell: Option<u64>,
    /// Pages for its tables, behind those of the spaces before it.
    pub tables: u16,
}

/// What a device's accesses bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPlan {
    /// The stream's number.
    pub number: u32,
    /// The guest that owns the device.
    pub guest: u8,
    /// It sees the guest's device space only; otherwise all of memory.
    pub protected: bool,
    /// The line of the manifest that gives the guest the device.
    pub line: u32,
}

/// Most guests that one monitor watches.
pub const MAX_WATCHED: usize = 8;
/// Most monitors in an image.
pub const MAX_MONITORS: usize = 8;
/// Most rules of a monitor about memory.
pub const MAX_RULES: usize = 32;
/// Most rules of a monitor about other events.
pub const MAX_EVENT_RULES: usize = 16;

/// Configuration of a monitor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorConfig<'a> {
    /// The guests that it watches; their order is the one of its capabilities ([`crate::layout::watched`]).
    #[serde(borrow)]
    pub guests: Vec<WatchedPlan<'a>, MAX_WATCHED>,
    /// What it watches there; where more than one speaks of an access, the first counts.
    pub rules: Vec<RulePlan, MAX_RULES>,
    /// What else of the guests it hears; each kind once for each guest.
    pub events: Vec<EventPlan, MAX_EVENT_RULES>,
    /// It gives what it has counted to the one that comes after it.
    pub hands_over: bool,
    /// Its threads that serve: the last is root's, and the one behind it reads what the monitor is told.
    pub threads: u8,
}

/// A guest that a monitor watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchedPlan<'a> {
    /// The guest's name.
    pub name: &'a str,
    /// Which of the guest's sessions is this monitor's (below [`crate::kernel::SESSIONS`]).
    pub session: u8,
    /// The view of the guest in which it is watched; all its monitors name the same one, which no manifest describes.
    pub view: u16,
    /// vCPUs of the guest. The one behind the last means, in [`crate::layout::watched`], the control threads.
    pub vcpus: u8,
    /// First guest page of its memory.
    pub first_page: u64,
    /// Pages of memory.
    pub pages: u64,
    /// Version of its interrupt controller, which says where that is ([`crate::layout::platform`]).
    pub gic: u8,
    /// Events that are read of it in a second at most, of those of which the monitor is told; 0 = all.
    pub reports: u32,
}

/// What a monitor watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct RulePlan {
    /// Which guest, by its place in [`MonitorConfig::guests`].
    pub guest: u8,
    /// First guest page.
    pub first: u64,
    /// Pages.
    pub pages: u64,
    /// Accesses that are watched: bits of [`crate::kernel::Access`] (read, write, execute), and [`RulePlan::NO_WALKS`].
    pub access: u8,
    /// What is said to each.
    pub verdict: RuleVerdict,
    /// Each is written to the log.
    pub log: bool,
}

impl RulePlan {
    /// In `access`: what the guest's own walks of its tables do to these pages is none.
    pub const NO_WALKS: u8 = 1 << 7;
}

/// What a monitor hears of a guest beside accesses to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct EventPlan {
    /// Which guest, by its place in [`MonitorConfig::guests`].
    pub guest: u8,
    /// What it does.
    pub kind: EventKind,
    /// A register's writes that leave it as it is are none.
    pub only_changes: bool,
    /// A register's writes that change these bits alone are none.
    pub ignored: u64,
    /// What is said to each.
    pub verdict: RuleVerdict,
    /// Each is written to the log.
    pub log: bool,
}

/// A rule of a monitor, of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Rule {
    /// About memory.
    Pages(RulePlan),
    /// About something else.
    Event(EventPlan),
}

impl Rule {
    /// Which guest it is about, by its place in [`MonitorConfig::guests`].
    pub const fn guest(&self) -> u8 {
        match self {
            Rule::Pages(rule) => rule.guest,
            Rule::Event(rule) => rule.guest,
        }
    }

    /// The same about another guest.
    pub const fn of(self, guest: u8) -> Rule {
        match self {
            Rule::Pages(rule) => Rule::Pages(RulePlan { guest, ..rule }),
            Rule::Event(rule) => Rule::Event(EventPlan { guest, ..rule }),
        }
    }
}

/// Rules that a monitor can be given while it runs.
pub const MAX_ADDED: usize = 16;
/// The number of the first of them; those of the manifest have lower ones, from 1 on.
pub const FIRST_ADDED: u16 = 101;

/// What a rule says to an access, or to another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum RuleVerdict {
    /// It happens.
    Allow,
    /// It does not happen, and the guest goes on behind it.
    Deny,
    /// The vCPU stops for good, and root ends the guest.
    Stop,
    /// It does not happen, and the guest gets an exception there: an abort, or an undefined instruction where nothing is accessed.
    Fault,
    /// It happens at once, and the monitor is told of it afterwards.
    Report,
}

/// Bytes to put into guest memory before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Where in the payload.
    pub part: Part,
    /// Guest-physical address.
    pub address: u64,
}

/// Configuration of a vcpu server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuConfig<'a> {
    /// The guest's name.
    pub guest: &'a str,
    /// vCPUs of the guest.
    pub vcpus: u8,
    /// Monitors that watch it, each with a session.
    pub watchers: u8,
    /// First guest-physical byte of memory.
    pub memory_base: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What to load: image, initramfs, device tree.
    pub loads: Vec<Load, 8>,
    /// Where vCPU 0 starts.
    pub entry: u64,
    /// Its x0 (address of the device tree).
    pub x0: u64,
    /// 2 or 3: what kind of interrupt controller the guest sees.
    pub gic: u8,
    /// The host has FEAT_… unknown at composition; this says what the manifest allows. AArch32 at user level.
    pub aarch32: bool,
    /// What it shows of functions of PCI as such; none are shown so if there is none.
    pub bus: Option<BusPlan>,
}

/// Functions of PCI as a guest finds them: by their configuration, on bus 0, each device 0, 1, 2, … with one function. They interrupt by
/// writing messages to a frame (GICv2m) that makes lines of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusPlan {
    /// Where the machine's messages are written to (GITS_TRANSLATER).
    pub doorbell: u64,
    /// The guest's line that message 0 makes; the others' follow.
    pub first_line: u8,
    /// Messages.
    pub lines: u8,
    /// The functions.
    pub functions: Vec<ShownFunction, MAX_FUNCTIONS>,
}

/// A function whose configuration a guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownFunction {
    /// The run of its configuration page, by its place in [`crate::boot::BootHeader::devices`]. It is only read.
    pub run: u8,
    /// Where the guest sees its registers, ascending by their base address registers.
    pub ranges: Vec<RangePlan, MAX_RANGES>,
    /// The table of its messages, whose entries the guest fills; none: it has a wire.
    pub table: Option<TablePlan>,
    /// Entries of it that the guest sees.
    pub entries: u8,
    /// Pages of its registers that the guest has not got: those with the table, and with what waits.
    pub hidden: Vec<DevicePages, 2>,
    /// The guest's line that its wire is.
    pub wire: Option<u8>,
}

/// Configuration of the console server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig<'a> {
    /// One for each server in plan order (0 = the console itself, whose place is root's), then one for each guest.
    #[serde(borrow)]
    pub channels: Vec<Channel<'a>, MAX_SERVERS>,
    /// The UART is a PL011 at [`crate::layout::DEVICE`].
    pub uart: bool,
    /// So many servers, the last ones, are monitors, and have two logs each.
    pub monitors: u8,
}

/// One channel of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel<'a> {
    /// Name of a guest or server.
    pub name: &'a str,
    /// Bytes of a guest's serial port (else a server's log).
    pub is_guest: bool,
}
