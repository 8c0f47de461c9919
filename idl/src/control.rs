// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control channel: what the host asks a running system, and what root answers.
//!
//! Both travel as payloads of frames of [`crate::wire::FrameKind::Control`], postcard. Each begins with a [`Head`], which is
//! the same in every version, so that whoever meets another version can say so. An answer has one or more parts under
//! the number of its question; the last is [`Part::Done`] or [`Part::Refused`]. New questions, parts and refusals go to
//! the end of their enums: that changes no byte of the others, and no version.

use crate::kernel::Refusal;
use crate::plan::{MAX_GUESTS, Rule};
use crate::wire::{GuestEnd, KnownRule, Seen, ViewAccess};
use heapless::{String, Vec};
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Version of everything behind the head.
pub const VERSION: u16 = 1;

/// A name of a guest, a server or a system: at most 31 bytes in a manifest.
pub type Name = String<32>;

/// What every question and every part of an answer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Head {
    /// [`VERSION`] of whoever sends it.
    pub version: u16,
    /// Which question; chosen by who asks.
    pub number: u32,
}

/// What the host is allowed, by the manifest's `control`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Control {
    /// Nothing.
    #[default]
    Off,
    /// To look.
    Observe,
    /// Everything.
    Full,
}

/// A question, or an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Ask {
    /// How everybody is: [`Part::System`], [`Part::Guest`], [`Part::Server`], [`Part::Silicon`], [`Part::Source`].
    Status,
    /// Keeps a guest from running.
    Pause(Name),
    /// Lets it go on.
    Resume(Name),
    /// Starts it again from its image.
    Reboot(Name),
    /// Its views: [`Part::View`].
    Views(Name),
    /// What CPUs did during the last so many milliseconds, as far back as they remember: [`Part::Load`].
    Load(u16),
    /// Ends a monitor, or irqfwd, as if it had crashed, and makes it again: [`Part::Replaced`] of a monitor.
    Kill(Name),
    /// Begins to upload a program, and forgets what was uploaded before.
    Upload(Offer),
    /// The next bytes of it.
    Piece(Piece),
    /// Puts what was uploaded into the place of this monitor: [`Part::Replaced`]. Refused: everything is as it was.
    Swap(Name),
    /// What monitors were told of, from this number on, as far back as is remembered: [`Part::Event`], and then the number
    /// that comes next ([`Part::Until`]). Numbers that are left out are events that were lost.
    Events(u64),
    /// About the rules of a guest's monitor.
    Watch(Watch),
}

/// What the host wants of the rules of a guest's monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Watch {
    /// The guest.
    pub guest: Name,
    /// The monitor; empty: the guest's only one.
    pub monitor: Name,
    /// What.
    pub what: WatchWhat,
}

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum WatchWhat {
    /// To see them: [`Part::Rule`].
    List,
    /// One more, whatever guest it names: [`Part::Rule`] is what it became.
    Add(Rule),
    /// The one that was added and has this number no more.
    Remove(u16),
}

/// A rule of a guest's monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct RuleState {
    /// Index of the monitor's server in the plan.
    pub server: u8,
    /// What the monitor says of it.
    pub known: KnownRule,
}

/// An event of which a monitor was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct EventState {
    /// Its number among all of this system.
    pub sequence: u64,
    /// Index of the monitor's server in the plan.
    pub server: u8,
    /// Index of the guest in the plan.
    pub guest: u8,
    /// What it was.
    pub seen: Seen,
}

/// Most bytes of a piece of an upload.
pub const UPLOAD_PIECE: usize = 256;

/// A program that shall take a monitor's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Offer {
    /// Which monitor's.
    pub monitor: Name,
    /// Bytes of its ELF file.
    pub bytes: u32,
    /// SHA-256 of them.
    pub digest: [u8; 32],
    /// What its signer says of it, where the manifest names one.
    pub proof: Option<Proof>,
    /// It begins without what the old one knows.
    pub is_fresh: bool,
}

/// What a signer says of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Proof {
    /// Its number: none that is lower than an earlier one's is taken.
    pub counter: u64,
    /// Ed25519 signature of [`statement`], in two halves.
    pub signature: [[u8; 32]; 2],
}

/// What is signed of a program: what it is for, its number (little-endian), and its SHA-256.
pub fn statement(counter: u64, digest: &[u8; 32]) -> [u8; 56] {
    let mut statement = [0; 56];
    statement[..16].copy_from_slice(b"trellis monitor\0");
    statement[16..24].copy_from_slice(&counter.to_le_bytes());
    statement[24..].copy_from_slice(digest);
    statement
}

/// Bytes of an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Piece {
    /// Where they belong: behind all that came before.
    pub offset: u32,
    /// They.
    pub bytes: Vec<u8, UPLOAD_PIECE>,
}

impl Ask {
    /// Whether it only looks.
    pub const fn only_looks(&self) -> bool {
        matches!(self, Ask::Status | Ask::Views(_) | Ask::Load(_) | Ask::Events(_) | Ask::Watch(Watch { what: WatchWhat::List, .. }))
    }
}

/// What console tells root of a frame that came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum FromHost {
    /// A question with this number.
    Asked(u32, Ask),
    /// Something in another version than ours.
    Foreign(u32),
    /// Something that means nothing in ours.
    Meaningless(u32),
}

/// A part of the answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Answer {
    /// Our version, and which question.
    pub head: Head,
    /// What is said.
    pub part: Part,
}

/// What an answer consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Part {
    /// That was all; an order has been carried out.
    Done,
    /// No.
    Refused(Refused),
    /// The system as a whole.
    System(SystemState),
    /// A guest.
    Guest(GuestState),
    /// A server.
    Server(ServerState),
    /// What the machine's CPUs have.
    Silicon(Silicon),
    /// A view of the guest that was asked for.
    View(ViewState),
    /// What a CPU did.
    Load(Load),
    /// Another monitor is asked from now on.
    Replaced(Replaced),
    /// A line of a device that a guest owns.
    Source(SourceState),
    /// An event of which a monitor was told.
    Event(EventState),
    /// The number that the next event will have, and ticks a second.
    Until(u64, u64),
    /// A rule of the monitor that was asked for.
    Rule(RuleState),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Refused {
    /// The manifest says `control = "off"`.
    Off,
    /// The manifest says `control = "observe"`, and this would change something.
    ObserveOnly,
    /// The question is in another version; the head of this answer says which one would do.
    Version,
    /// The question means nothing to this system.
    NotUnderstood,
    /// There is no such guest.
    NoGuest,
    /// The guest has ended.
    Ended,
    /// The kernel refused: a [`Refusal`]'s number.
    Kernel(u8),
    /// One of the guest's servers did not do what it should.
    Server,
    /// There is no such monitor.
    NoMonitor,
    /// Every guest that the monitor watches has ended.
    NothingWatched,
    /// The monitor was lost too often, and is not made again.
    GivenUp,
    /// The monitor could not be made again, and its guests have gone the way that the manifest says.
    Lost,
    /// The manifest keeps no memory for another one in its place.
    NoSwap,
    /// The file is longer than what is kept for it: so many bytes.
    TooLarge(u32),
    /// The upload is not whole: so many bytes came.
    CutOff(u32),
    /// What came has another SHA-256 than was said.
    Digest,
    /// It is not signed by whom the manifest names.
    Signature,
    /// It is older than what was there: the lowest number that is taken.
    Older(u64),
    /// It is no program for a server.
    Unfit(Unfit),
    /// It could not be made, or did not do what it should, in this step.
    Fails(Step),
    /// It has another interface than this system.
    Interface,
    /// It does not take over what the old one knows: a [`Refusal`]'s number.
    State(u8),
    /// The host's pause of the guest is over, but a monitor pauses it too.
    StillPaused,
    /// Nobody watches the guest.
    Unwatched,
    /// The monitor does not watch this guest.
    NotItsMonitor,
    /// Several monitors watch the guest, and none is named.
    WhichMonitor,
    /// The monitor is none that rules can be added to.
    NoRules,
    /// A rule says what makes no sense.
    Senseless,
    /// A rule is about pages that are not the guest's.
    Elsewhere,
    /// Another rule speaks of that already, or another monitor has it.
    Overlaps,
    /// The monitor has as many rules as it can.
    RulesFull,
    /// There is no such rule of this guest among those that were added.
    NoRule,
    /// The rule is the manifest's.
    Manifests,
}

/// Why a file is no program for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Unfit {
    /// It is no ELF file, or its headers are not in its first page.
    Format,
    /// It is for another machine.
    Machine,
    /// It has none, or too many, that are loaded.
    Segments,
    /// A segment lies outside of the file, or of where programs go.
    Outside,
    /// Two segments share a page.
    SharedPage,
    /// A segment can be written and executed.
    WritableCode,
    /// It does not begin in its code.
    Entry,
    /// It takes more memory than is kept for it.
    Memory,
}

/// A step of putting a monitor into another's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Step {
    /// It is made beside the old one.
    Make,
    /// It begins, and says which interface it has.
    Begin,
    /// It takes over what the old one knows.
    TakeOver,
    /// It watches the guests.
    Watch,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::Kernel(refusal as u8)
    }
}

/// A monitor in the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Replaced {
    /// Index of its server in the plan.
    pub server: u8,
    /// Guests that it watches.
    pub guests: u8,
    /// vCPUs that waited for a verdict meanwhile; each has been asked about again.
    pub owed: u8,
    /// Ticks from the moment at which nobody was asked any more to the one at which all that was owed had been given to the
    /// new one: no guest waited for longer.
    pub ticks: u64,
    /// Ticks a second.
    pub clock_hz: u64,
    /// What the new one knows of what the old one knew.
    pub state: Handed,
}

/// What became of a monitor's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Handed {
    /// It was lost with the monitor.
    Lost,
    /// Nobody wanted it.
    NotWanted,
    /// So many bytes of it were handed over.
    Taken(u16),
    /// The old one gave none: a [`Refusal`]'s number.
    NotGiven(u8),
}

/// The system as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct SystemState {
    /// Its name in the manifest.
    pub name: Name,
    /// What the host may do.
    pub control: Control,
    /// Ticks since root started.
    pub up: u64,
    /// Ticks a second.
    pub clock_hz: u64,
    /// CPUs that run.
    pub cpus: u8,
    /// Bytes that the kernel keeps.
    pub kernel_bytes: u64,
    /// Bytes that belong to nobody yet.
    pub free_bytes: u64,
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Life {
    /// It runs, or waits for an interrupt.
    Runs,
    /// It is kept from running.
    Paused,
    /// It has ended.
    Ended(Ended),
}

/// How a guest ended, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Ended {
    /// It switched itself off.
    Off,
    /// It asked for a reset, and the manifest says that this ends it.
    Reset,
    /// With a status of its own.
    Status(u64),
    /// It did something that nobody answers.
    Crash,
    /// This server of it stopped.
    Server(u8),
    /// The machine has no such vectors as it asks for.
    Vectors,
    /// This monitor of it stopped it, or the lack of one did.
    Stopped(u8),
}

impl From<&GuestEnd> for Ended {
    fn from(end: &GuestEnd) -> Ended {
        match end {
            GuestEnd::Off => Ended::Off,
            GuestEnd::Reset => Ended::Reset,
            GuestEnd::Status(status) => Ended::Status(*status),
            GuestEnd::Crash(_) => Ended::Crash,
            GuestEnd::Server(server) => Ended::Server(*server),
            GuestEnd::Vectors { .. } => Ended::Vectors,
            GuestEnd::Stopped(server) => Ended::Stopped(*server),
        }
    }
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct GuestState {
    /// Its index in the plan.
    pub guest: u8,
    /// Its name.
    pub name: Name,
    /// What it does.
    pub life: Life,
    /// How often it was started again.
    pub reboots: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Views it may have, and has.
    pub views: [u16; 2],
    /// Pages of page tables that its maps may have, and that are left.
    pub tables: [u32; 2],
    /// Accesses of its devices that the SMMU stopped, as far as it told of them.
    pub stopped: u64,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuState, 8>,
}

/// A vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct VcpuState {
    /// The CPU that it runs on.
    pub cpu: u8,
    /// The guest has it switched on.
    pub is_on: bool,
    /// The view that it is in.
    pub view: u16,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ServerState {
    /// Its index in the plan.
    pub server: u8,
    /// Its name.
    pub name: Name,
    /// Its rank.
    pub rank: u8,
    /// It has stopped, and is not made again.
    pub has_stopped: bool,
    /// Its threads.
    pub threads: u8,
    /// Bytes of its program, stacks, buffers and page tables.
    pub memory_bytes: u64,
}

/// A line of a device that a guest owns, and what it did since it was bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct SourceState {
    /// The guest's index in the plan.
    pub guest: u8,
    /// The physical line.
    pub line: u16,
    /// The guest's line that it comes as.
    pub guest_line: u8,
    /// The kernel hands its interrupts on.
    pub is_direct: bool,
    /// Interrupts that irqfwd handed to a vCPU.
    pub passed: u64,
    /// Interrupts that the kernel did.
    pub straight: u64,
    /// Those that no vCPU took at first.
    pub waited: u64,
    /// Times that it was masked since it came too often.
    pub storms: u64,
    /// Times that it went to another vCPU.
    pub moved: u64,
    /// How many of those that irqfwd handed on had waited for less than 1, 4, 16, 64, 256, 1024, 4096 and 16384
    /// microseconds, and longer.
    pub delays: [u64; 9],
}

/// What the CPU that root runs on has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Silicon {
    /// MIDR_EL1 of CPU 0.
    pub midr: u64,
    /// [`crate::kernel::Fact::Silicon`].
    pub features: u64,
    /// [`crate::kernel::Fact::Predictors`].
    pub predictors: u64,
    /// ID_AA64MMFR1_EL1.
    pub memory_model: u64,
    /// List registers.
    pub list_registers: u8,
    /// [`crate::kernel::Fact::VectorLengths`].
    pub vectors: u16,
}

/// A view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ViewState {
    /// Its index.
    pub view: u16,
    /// What it lets the guest do with pages that have no access of their own: a [`ViewAccess`].
    pub default: u16,
    /// vCPUs that are in it: a bit each.
    pub vcpus: u8,
}

impl ViewState {
    /// Its default access; none if a later version wrote it.
    pub fn access(&self) -> Option<ViewAccess> {
        ViewAccess::from_word(self.default.into()).ok()
    }
}

/// What a CPU did lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Load {
    /// Which.
    pub cpu: u8,
    /// Ticks that are looked at, up to now.
    pub ticks: u64,
    /// Ticks that it was idle.
    pub idle: u64,
    /// Interrupts that did not go straight to whoever ran.
    pub interrupts: u32,
    /// Guests that were there.
    pub guests: Vec<GuestLoad, MAX_GUESTS>,
}

/// What a guest did on a CPU lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct GuestLoad {
    /// Its index in the plan.
    pub guest: u8,
    /// Ticks that it, or a server on its behalf, ran.
    pub ticks: u64,
    /// Exits that left the kernel's hands.
    pub exits: u32,
}
