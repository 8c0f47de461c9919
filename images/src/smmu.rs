// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SMMU of a board: which devices go through it, which of them it keeps to their guest's memory, and what smmu is told.

use crate::board::Board;
use crate::device::{Device, Owned};
use crate::guest::Guest;
use crate::system::{System, bounded, line_of};
use serde::Deserialize;
use std::collections::BTreeSet;
use trellis_idl::boot::Range;
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::TABLES_BYTES;
use trellis_idl::layout::space::{LEAST_BITS, MOST_BITS, REGISTER_BYTES, tables};
use trellis_idl::plan::{MAX_STREAMS, SmmuConfig, SpacePlan, StreamPlan};

/// The server's name.
pub const SMMU: &str = "smmu";
/// Pages that a table maps whose entries map 2 MiB each.
const GIANT: u64 = 512 * 512;
/// A device space ends here: what lies behind it no device reaches.
const SPACE_END: u64 = 1 << 39;

/// An SMMUv3.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Smmu {
    /// First byte of its registers.
    pub base: u64,
    /// Its lines: there are events, and something is wrong with it.
    pub lines: [u32; 2],
    /// The stream of function 00:00.0, if functions go through it; that of another is by its number higher.
    #[serde(default)]
    pub functions: Option<u32>,
    /// What the emulator is told when a device goes through it.
    #[serde(default)]
    pub emulator: Vec<String>,
}

/// By which the SMMU knows a device: nothing, if it does not go through it.
pub fn streams(board: &Board, device: &Device) -> Vec<u32> {
    let Some(smmu) = &board.smmu else { return Vec::new() };
    let function = device.function.and_then(|function| Some(smmu.functions? + u32::from(function.0)));
    device.stream_ids.iter().copied().chain(function).collect()
}

/// Whether the SMMU can keep a device to its guest's memory.
pub fn protects(board: &Board, device: &Device) -> bool {
    device.has_dma() && !streams(board, device).is_empty()
}

/// What a board file says of its SMMU and cannot be.
pub fn contradiction(board: &Board) -> Option<String> {
    let smmu = board.smmu.as_ref()?;
    let Some(end) = smmu.base.checked_add(REGISTER_BYTES).filter(|_| smmu.base.is_multiple_of(0x1_0000)) else {
        return Some("the SMMU does not begin at a multiple of 64 KiB".into());
    };
    let meets = |device: &&Device| {
        device.all_ranges().iter().any(|range| range.base < end && smmu.base < range.base.saturating_add(range.bytes))
    };
    if let Some(device) = board.devices.iter().find(meets) {
        return Some(format!("device `{}` lies in the SMMU's registers", device.name));
    }
    let taken = |line: &u32| board.uart.line == *line || board.devices.iter().any(|device| device.lines.contains(line));
    if smmu.lines.iter().any(|line| !(32..board.gic.lines).contains(line) || taken(line)) || smmu.lines[0] == smmu.lines[1] {
        return Some("the SMMU has a line that is none, or another's".into());
    }
    if board.messages.is_some_and(|messages| messages.service >= SPACE_END - 0x2_0000) {
        return Some("messages are written to where no device behind the SMMU can".into());
    }
    let mut seen = BTreeSet::new();
    for device in &board.devices {
        for stream in streams(board, device) {
            if stream >> MOST_BITS != 0 || !seen.insert(stream) {
                return Some(format!("device `{}` has stream {stream:#x}, which is another's too, or has more than {MOST_BITS} bits", device.name));
            }
        }
    }
    None
}

/// How many streams guests own is too many.
pub fn too_many<'a>(board: &Board, owned: impl Iterator<Item = &'a Owned>) -> bool {
    owned.map(|owned| streams(board, &owned.device).len()).sum::<usize>() > MAX_STREAMS
}

impl System {
    /// Whether smmu is there: it keeps a device to its guest's memory.
    pub fn has_smmu(&self) -> bool {
        self.owned().any(|(_, owned)| owned.protected)
    }

    /// The device run of its registers, which comes behind all others.
    pub(crate) fn smmu_run(&self) -> Option<(String, Range)> {
        let smmu = self.board.smmu.as_ref().filter(|_| self.has_smmu())?;
        Some((SMMU.to_uppercase(), Range { base: smmu.base, bytes: REGISTER_BYTES }))
    }

    /// What smmu is told; nothing where it is not there.
    pub(crate) fn smmu_config(&self) -> Option<SmmuConfig> {
        let smmu = self.board.smmu.as_ref().filter(|_| self.has_smmu())?;
        let run = self.board.fixed_devices().len() + self.stretches().count() + self.message_runs().len();
        let plans = self.owned().flat_map(|(guest, owned)| {
            let plan = move |number| StreamPlan { number, guest: guest as u8, protected: owned.protected, line: line_of(&self.text, owned.at) };
            streams(&self.board, &owned.device).into_iter().map(plan)
        });
        let plans: Vec<StreamPlan> = plans.collect();
        let most = plans.iter().map(|plan| plan.number).max().unwrap_or(0);
        let stream_bits = ((u32::BITS - most.leading_zeros()) as u8).max(LEAST_BITS);
        let spaces: Vec<SpacePlan> = (0..self.guests.len()).filter_map(|guest| self.space(guest)).collect();
        let pages = tables(stream_bits) / PAGE + spaces.iter().map(|space| u64::from(space.tables)).sum::<u64>();
        Some(SmmuConfig { run: run as u8, lines: smmu.lines, stream_bits, pages: pages as u32, spaces: bounded(spaces), streams: bounded(plans) })
    }

    /// The device space of a guest, if it owns a device that has one.
    fn space(&self, guest: usize) -> Option<SpacePlan> {
        let mut own = self.guests[guest].devices.iter().filter(|owned| owned.protected).peekable();
        own.peek()?;
        let writes = own.any(|owned| owned.device.messages > 0);
        let doorbell = self.board.messages.filter(|_| writes).map(|messages| messages.doorbell() / PAGE);
        let (first, pages) = (Guest::MEMORY_BASE / PAGE, self.guests[guest].memory_bytes / PAGE);
        // The first table, one for each GiB, and two for the doorbell.
        let tables = 1 + (first + pages).div_ceil(GIANT) - first / GIANT + 2;
        Some(SpacePlan { guest: guest as u8, first, pages, doorbell, tables: tables as u16 })
    }

    /// Bytes of memory that smmu and the SMMU share, with what may be lost before it so that it lies where it must.
    pub(crate) fn smmu_bytes(&self) -> u64 {
        self.smmu_config().map_or(0, |config| u64::from(config.pages) * PAGE + trellis_idl::layout::space::streams(config.stream_bits))
    }
}

const _: () = assert!(tables(MOST_BITS) < TABLES_BYTES);

impl Guest {
    /// Devices that its device space is for.
    pub(crate) fn protected(&self) -> impl Iterator<Item = &Owned> {
        self.devices.iter().filter(|owned| owned.protected)
    }
}
