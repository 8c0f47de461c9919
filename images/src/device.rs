// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices of a board that guests may own: what board files say of them, and whether the manifest hands out each once and
//! alone on its pages.

use crate::board::Board;
use crate::function::{self, Requester};
use crate::manifest::{DeviceEntry, GuestEntry};
use crate::pci;
use crate::problem::{Code, Problem, nearest};
use crate::ranges::{self, Pending, RegisterRange, Stretch, Table};
use crate::smmu;
use crate::table::{Problems, not_there_yet};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::platform::{OWNED, OWNED_END};
use trellis_idl::plan::{MAX_DEVICES, MAX_SOURCES};

/// Devices that the kernel hands to root at most.
const MOST_RUNS: usize = 16;
/// Lines from here on a guest does not have.
const LINES_END: u32 = 128;
/// Its first that is not private.
const FIRST_LINE: u32 = 32;
/// The line of every guest's own serial port.
const SERIAL_LINE: u32 = 33;
/// Distance of owned devices in a guest, so that a guest with large pages can map each alone.
const STRIDE: u64 = 0x1_0000;

/// A device of a board.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Device {
    /// As manifests name it.
    pub name: String,
    /// First byte of its registers, where they are one range.
    #[serde(default)]
    pub base: u64,
    /// Bytes of them.
    #[serde(default)]
    pub bytes: u64,
    /// Its interrupts.
    #[serde(default)]
    pub lines: Vec<u32>,
    /// They are triggered by an edge, not by their level.
    #[serde(default)]
    pub edge: bool,
    /// What drivers look for in a device tree.
    pub compatible: Vec<String>,
    /// Names of its clocks, as drivers look for them; all run at 24 MHz.
    #[serde(default)]
    pub clock_names: Vec<String>,
    /// It reads and writes memory by itself.
    #[serde(default)]
    pub dma: bool,
    /// It is this function of PCI: its registers are put to `base`, and it interrupts by messages.
    #[serde(default)]
    pub function: Option<Requester>,
    /// How many different ones it writes.
    #[serde(default)]
    pub messages: u8,
    /// A function's registers, where they are not one range alone with its first base address register.
    #[serde(default)]
    pub ranges: Vec<RegisterRange>,
    /// The table of its messages (MSI-X), if it has one.
    #[serde(default)]
    pub table: Option<Table>,
    /// Where it says which of them wait.
    #[serde(default)]
    pub pending: Option<Pending>,
    /// By which an SMMU knows it.
    #[serde(default)]
    pub stream_ids: Vec<u32>,
    /// What the emulator is told when a guest owns it.
    #[serde(default)]
    pub emulator: Vec<String>,
}

impl Device {
    /// Whether it reads and writes memory by itself. What writes messages does.
    pub fn has_dma(&self) -> bool {
        self.dma || self.function.is_some()
    }

    /// Whether two devices have a page in common.
    fn meets(&self, other: &Device) -> bool {
        let others = other.all_ranges();
        self.all_ranges().iter().any(|range| others.iter().any(|other| range.meets(&other.pages())))
    }
}

/// A device that a guest owns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owned {
    /// Which.
    pub device: Device,
    /// Where the guest sees its ranges, in their order.
    pub places: Vec<u64>,
    /// What the guest is shown of it, and where.
    pub stretches: Vec<Stretch>,
    /// Its interrupts as the guest numbers them, in the order of the device's.
    pub lines: Vec<u32>,
    /// The kernel hands its interrupts on.
    pub direct: bool,
    /// The SMMU keeps it to the guest's memory.
    pub protected: bool,
    /// The guest sees it as a function of PCI, by its configuration.
    pub as_pci: bool,
    /// Where the manifest names it: bytes from its beginning.
    pub at: usize,
}

/// What a board file says of its devices and cannot be.
pub fn contradiction(board: &Board) -> Option<String> {
    for (index, device) in board.devices.iter().enumerate() {
        let (name, ranges) = (&device.name, device.all_ranges());
        let is_nowhere = |range: &RegisterRange| range.bytes == 0 || range.base.checked_add(range.bytes).is_none_or(|end| end > 1 << 48);
        if ranges.iter().any(is_nowhere) {
            return Some(format!("device `{name}` has no bytes, or some where no address is"));
        }
        if board.devices.iter().take(index).any(|other| other.name == *name) {
            return Some(format!("two devices are called `{name}`"));
        }
        let on_pages = |base: u64, bytes: u64| {
            let pages = base / PAGE..(base + bytes).div_ceil(PAGE);
            ranges.iter().any(|range| range.meets(&pages))
        };
        if board.ram.iter().any(|ram| on_pages(ram.base, ram.bytes)) {
            return Some(format!("device `{name}` lies in memory"));
        }
        let own = [(board.uart.base, PAGE), (board.gic.distributor, PAGE), (board.gic.cpu, PAGE)];
        if own.iter().any(|(base, bytes)| on_pages(*base, *bytes)) {
            return Some(format!("device `{name}` lies on a page of the serial port or the interrupt controller"));
        }
        if device.lines.iter().any(|line| !(FIRST_LINE..board.gic.lines).contains(line) || *line == board.uart.line) {
            return Some(format!("device `{name}` has a line that no device has, or that of the serial port"));
        }
        if let Some(sentence) = ranges::contradiction(device) {
            return Some(sentence);
        }
    }
    None
}

/// What a guest owns and where it sees it. What is wrong with that [`check`] says.
pub fn owned(entry: &GuestEntry, board: &Board) -> Vec<Owned> {
    let mut next = OWNED;
    let known = entry.devices.iter().filter_map(|entry| Some((entry, find(board, entry)?)));
    let place = |(entry, device): (&DeviceEntry, &Device)| {
        let (mut places, mut stretches) = (Vec::new(), Vec::new());
        for range in device.all_ranges() {
            let bytes = (range.pages().end - range.pages().start) * PAGE;
            let base = next.next_multiple_of(bytes.next_power_of_two().max(STRIDE));
            next = base.saturating_add(bytes);
            places.push(base + range.base % PAGE);
            stretches.extend(device.shown(&range, base + range.base % PAGE));
        }
        let protected = entry.unprotected.is_none() && smmu::protects(board, device);
        let (lines, direct, at) = (Vec::new(), entry.direct, entry.device.span.start);
        Owned { device: device.clone(), places, stretches, lines, direct, protected, as_pci: entry.as_pci.is_some(), at }
    };
    let mut all: Vec<Owned> = known.map(place).collect();
    number(&mut all);
    all
}

/// Gives each interrupt a number in the guest: its own, or where the guest has no such line or it is taken, a high one. Those that a
/// frame makes of messages follow each other. Devices that share a line share its number.
fn number(all: &mut [Owned]) {
    let mut own = BTreeSet::from([SERIAL_LINE]);
    let keeps: BTreeSet<u32> = all
        .iter()
        .flat_map(|owned| owned.device.lines.iter().copied())
        .filter(|line| (FIRST_LINE..LINES_END).contains(line) && own.insert(*line))
        .collect();
    let framed: u32 = all.iter().filter(|owned| owned.is_framed()).map(|owned| owned.device.lines.len() as u32).sum();
    let is_free = |first: &u32| (*first..first + framed).all(|line| !own.contains(&line));
    // Where there is no such place, these are none, which is refused.
    let first = (FIRST_LINE..=LINES_END.saturating_sub(framed)).rev().find(is_free);
    let mut frame = first.into_iter().flat_map(|first| first..first + framed);
    own.extend(frame.clone());
    for owned in all.iter_mut().filter(|owned| owned.is_framed()) {
        owned.lines = owned.device.lines.iter().map(|_| frame.next().unwrap_or(0)).collect();
    }
    let mut free = (FIRST_LINE..LINES_END).rev().filter(|line| !own.contains(line));
    let mut given = BTreeMap::new();
    for owned in all.iter_mut().filter(|owned| !owned.is_framed()) {
        // One that is left without is one too many, which is refused.
        let of = |line: &u32| if keeps.contains(line) { *line } else { *given.entry(*line).or_insert_with(|| free.next().unwrap_or(0)) };
        owned.lines = owned.device.lines.iter().map(of).collect();
    }
}

fn find<'a>(board: &'a Board, entry: &DeviceEntry) -> Option<&'a Device> {
    board.devices.iter().find(|device| device.name == entry.device.value)
}

/// Checks what all guests together own.
pub fn check(guests: &[GuestEntry], board: &Board, problems: &mut Problems) {
    let all: Vec<(&GuestEntry, &DeviceEntry)> =
        guests.iter().flat_map(|guest| guest.devices.iter().map(move |device| (guest, device))).collect();
    for (index, (guest, entry)) in all.iter().enumerate() {
        let Some(device) = find(board, entry) else {
            problems.push(unknown(board, entry));
            continue;
        };
        let same = all[..index].iter().find(|(_, other)| other.device.value == entry.device.value);
        if let Some((other, first)) = same {
            problems.push(taken(guest, entry, other, first));
            continue;
        }
        alone(board, entry, device, problems);
        memory(board, entry, device, problems);
        shown(entry, device, problems);
        lines(board, guest, entry, device, problems);
    }
    room(guests, board, problems);
}

fn unknown(board: &Board, entry: &DeviceEntry) -> Problem {
    let name = &entry.device.value;
    let names: Vec<_> = board.devices.iter().map(|device| device.name.as_str()).collect();
    let hint = match nearest(name, names.iter().copied()) {
        Some(meant) => format!("did you mean \"{meant}\"? The board file lists: {}", names.join(", ")),
        None if names.is_empty() => "the board file lists no [[device]]; add it to a board file of your own".to_string(),
        None => format!("the board file lists: {}", names.join(", ")),
    };
    Problem::new(Code::UnknownDevice, format!("board `{}` has no device `{name}`", board.name))
        .at(entry.device.span.clone(), "no such device")
        .hint(hint)
}

fn taken(guest: &GuestEntry, entry: &DeviceEntry, other: &GuestEntry, first: &DeviceEntry) -> Problem {
    let name = &entry.device.value;
    let whose = |one: &GuestEntry| format!("guest `{}` asks for it", one.name.value);
    Problem::new(Code::DeviceTaken, format!("device `{name}` is asked for twice"))
        .at(first.device.span.clone(), whose(other))
        .at(entry.device.span.clone(), whose(guest))
        .hint("a device has one owner; leave it to one of them")
}

/// Whoever gets its pages gets what else is on them.
fn alone(board: &Board, entry: &DeviceEntry, device: &Device, problems: &mut Problems) {
    let others = board.devices.iter().filter(|other| other.name != device.name && other.meets(device));
    let names: Vec<_> = others.map(|other| format!("`{}`", other.name)).collect();
    if !names.is_empty() {
        let first = device.all_ranges().first().map_or(0, |range| range.pages().start * PAGE);
        problems.push(
            Problem::new(Code::DevicePageShared, format!("device `{}` shares a page with {}", device.name, names.join(", ")))
                .at(entry.device.span.clone(), format!("its registers are on the page at {first:#x}"))
                .hint("its owner could use the other one too; pages are the smallest that can be handed out"),
        );
    }
}

/// What it could do to memory that is not its guest's.
fn memory(board: &Board, entry: &DeviceEntry, device: &Device, problems: &mut Problems) {
    match (&entry.unprotected, device.has_dma()) {
        (Some(key), false) => problems.push(
            Problem::new(Code::KeyDoesNotApply, format!("device `{}` does not touch memory by itself", device.name))
                .at(key.clone(), "means nothing here")
                .hint("leave it out"),
        ),
        (None, false) => {}
        (None, true) if smmu::protects(board, device) => {}
        (Some(_), true) if device.function.is_some() => {}
        (Some(key), true) => {
            problems.push(not_there_yet("dma = \"unprotected\"", "guest memory mapped one to one for a device", key.clone()));
        }
        (None, true) => problems.push(
            Problem::new(Code::DeviceDma, format!("device `{}` could write to all of memory", device.name))
                .at(entry.device.span.clone(), match board.smmu {
                    None => "touches memory by itself, and the board has no SMMU",
                    Some(_) => "touches memory by itself, and does not go through the board's SMMU: it has no stream-ids",
                })
                .hint("dma = \"unprotected\" says that its guest is trusted with the whole machine"),
        ),
    }
}

/// As what it is shown.
fn shown(entry: &DeviceEntry, device: &Device, problems: &mut Problems) {
    if let (Some(key), None) = (&entry.as_pci, device.function) {
        problems.push(
            Problem::new(Code::KeyDoesNotApply, format!("device `{}` is no function of PCI", device.name))
                .at(key.clone(), "means nothing here")
                .hint("leave it out: its guest finds it in the device tree"),
        );
    }
}

/// Devices that share a line are one guest's: whose interrupt it is only their drivers can tell.
fn lines(board: &Board, guest: &GuestEntry, entry: &DeviceEntry, device: &Device, problems: &mut Problems) {
    for line in &device.lines {
        let is_owned = |other: &Device| guest.devices.iter().any(|entry| entry.device.value == other.name);
        let mut others = board.devices.iter().filter(|other| other.name != device.name && other.lines.contains(line));
        let Some(other) = others.find(|other| device.edge || other.edge || !is_owned(other)) else { continue };
        let hint = if device.edge || other.edge {
            "an edge of one would hide the other's; lines that are shared are triggered by their level".into()
        } else {
            format!("a line has one guest: give it `{}` too", other.name)
        };
        problems.push(
            Problem::new(
                Code::DeviceLine,
                format!("interrupt {line} of device `{}` cannot be handed on: device `{}` has the same", device.name, other.name),
            )
            .at(entry.device.span.clone(), "this device")
            .hint(hint),
        );
    }
}

fn room(guests: &[GuestEntry], board: &Board, problems: &mut Problems) {
    let mut runs = board.fixed_devices().len();
    let mut sources = 0;
    let mut before = Vec::new();
    for guest in guests {
        let all = owned(guest, board);
        let own: usize = all.iter().map(|owned| owned.stretches.len()).sum();
        runs += own;
        before.extend(all.iter().cloned());
        let smmu = usize::from(before.iter().any(|owned| owned.protected));
        let runs = runs + function::runs(board, before.iter()).len() + smmu;
        sources += all.iter().flat_map(|owned| &owned.device.lines).collect::<BTreeSet<_>>().len();
        let past = all.iter().flat_map(|owned| &owned.stretches).any(|one| one.address.saturating_add(one.bytes) > OWNED_END);
        let Some(last) = guest.devices.last() else { continue };
        let has_no_line = all.iter().any(|owned| owned.lines.contains(&0));
        let is_too_much =
            function::too_many(before.iter()) || smmu::too_many(board, before.iter()) || pci::too_many(&all) || has_no_line;
        if own > MAX_DEVICES || runs > MOST_RUNS || sources > MAX_SOURCES || past || is_too_much {
            problems.push(
                Problem::new(Code::TooManyDevices, format!("guest `{}` owns too much", guest.name.value))
                    .at(last.device.span.clone(), "one too many")
                    .hint(format!(
                        "at most {MAX_DEVICES} ranges of registers a guest, {} and {MAX_SOURCES} interrupts in all, {} MiB of registers a guest",
                        MOST_RUNS - board.fixed_devices().len(),
                        (OWNED_END - OWNED) >> 20
                    )),
            );
            return;
        }
    }
}
