// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions of PCI devices that guests may own: what board files say of them, the lines that their messages make, and what
//! irqfwd is told.

use crate::board::Board;
use crate::device::{Device, Owned};
use crate::system::{System, bounded};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeSet;
use trellis_idl::boot::Range;
use trellis_idl::kernel::{FIRST_MESSAGE, MESSAGES, PAGE};
use trellis_idl::plan::{FunctionPlan, MAX_FUNCTIONS, MessagePlan, RangePlan, TablePlace, TablePlan};

/// Where messages are written to, from the first register of the translation service (GITS_TRANSLATER, GICv3 12.18).
const DOORBELL: u64 = 0x1_0040;
/// Bytes of the service's registers, and of a redistributor's.
const SERVICE_BYTES: u64 = 0x2_0000;
const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;

/// What makes interrupts of messages, and where the functions that write them are configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Messages {
    /// First byte of the interrupt translation service's registers (GITS).
    pub service: u64,
    /// First byte of PCI's configuration space: a page for each function.
    pub configuration: u64,
}

/// Bus, device and function in one number, as a function's accesses bear it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Requester(pub u16);

impl Requester {
    /// From text such as `00:02.0`.
    fn parse(text: &str) -> Option<Requester> {
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number = |text: &str, end: u16| u16::from_str_radix(text, 16).ok().filter(|number| *number < end);
        Some(Requester(number(bus, 256)? << 8 | number(device, 32)? << 3 | number(function, 8)?))
    }
}

impl std::fmt::Display for Requester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 31, self.0 & 7)
    }
}

impl Messages {
    /// Where messages are written to.
    pub const fn doorbell(self) -> u64 {
        self.service + DOORBELL
    }
}

impl<'de> Deserialize<'de> for Requester {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom(format!("`{text}` is not a function such as \"00:02.0\": bus, device, function"));
        Requester::parse(&text).ok_or_else(wrong)
    }
}

/// What a board file says of its functions and cannot be.
pub fn contradiction(board: &Board) -> Option<String> {
    let mut seen = BTreeSet::new();
    for device in &board.devices {
        let name = &device.name;
        let Some(requester) = device.function else {
            if device.messages != 0 {
                return Some(format!("device `{name}` writes messages, and is no function of PCI"));
            }
            continue;
        };
        if board.messages.is_none() || board.gic.version != 3 {
            return Some(format!("device `{name}` is a function of PCI, and the board has no [messages] or a GICv2"));
        }
        let is_so_many = device.messages > 0 && (device.messages.is_power_of_two() || device.table.is_some());
        if !is_so_many || u64::from(device.messages) > MESSAGES || !device.lines.is_empty() {
            let messages = if device.table.is_some() { "1 to" } else { "1, 2, 4, …" };
            return Some(format!("device `{name}` is a function of PCI: it has {messages} {MESSAGES} messages, and no lines"));
        }
        if !seen.insert(requester) {
            return Some(format!("two devices are function {requester}"));
        }
    }
    let messages: u64 = board.devices.iter().map(|device| u64::from(device.messages)).sum();
    if messages > MESSAGES {
        return Some(format!("all functions together write {messages} messages, and there are lines for {MESSAGES}"));
    }
    own(board).into_iter().find_map(|own| {
        let aligned = own.base.is_multiple_of(PAGE);
        let pages = own.base / PAGE..(own.base + own.bytes).div_ceil(PAGE);
        let meets = |device: &Device| device.all_ranges().iter().any(|range| range.meets(&pages));
        let met = board.devices.iter().find(|device| meets(device));
        match met {
            Some(device) => Some(format!("device `{}` lies where messages are made interrupts of, or functions are configured", device.name)),
            None => (!aligned).then(|| "[messages] does not name whole pages".to_string()),
        }
    })
}

/// What no device may lie in.
fn own(board: &Board) -> Vec<Range> {
    let Some(messages) = board.messages else { return Vec::new() };
    let redistributors = Range { base: board.gic.cpu, bytes: REDISTRIBUTOR_BYTES * board.cpus.len() as u64 };
    let functions = board.devices.iter().filter_map(|device| device.function).map(|function| configuration(messages, function));
    [Range { base: messages.service, bytes: SERVICE_BYTES }, redistributors].into_iter().chain(functions).collect()
}

fn configuration(messages: Messages, function: Requester) -> Range {
    Range { base: messages.configuration + u64::from(function.0) * PAGE, bytes: PAGE }
}

/// Gives each message of each function a line, in the order of the board file.
pub fn number(board: &mut Board) {
    let mut next = FIRST_MESSAGE as u32;
    for device in board.devices.iter_mut().filter(|device| device.function.is_some()) {
        device.lines = (next..).take(device.messages.into()).collect();
        device.edge = true;
        next += u32::from(device.messages);
    }
}

/// Device runs that root gets beside the board's own and those of the devices, when guests own these.
pub fn runs<'a>(board: &Board, owned: impl Iterator<Item = &'a Owned>) -> Vec<(String, Range)> {
    let functions: Vec<(&Device, Requester)> = owned.filter_map(|owned| Some((&owned.device, owned.device.function?))).collect();
    let (Some(messages), false) = (board.messages, functions.is_empty()) else { return Vec::new() };
    let service = ("interrupt translation service".to_string(), Range { base: messages.service, bytes: PAGE });
    let bytes = REDISTRIBUTOR_BYTES * board.cpus.len() as u64;
    let redistributors = ("redistributors".to_string(), Range { base: board.gic.cpu, bytes });
    let page = |(device, function): &(&Device, Requester)| (format!("configuration of {}", device.name), configuration(messages, *function));
    let table = |(device, _): &(&Device, Requester)| {
        Some((format!("messages of {}", device.name), Range { base: device.table_page()? * PAGE, bytes: PAGE }))
    };
    let pages = functions.iter().map(page).chain(functions.iter().filter_map(table));
    [service, redistributors].into_iter().chain(pages).collect()
}

/// How many functions guests own is too many.
pub fn too_many<'a>(owned: impl Iterator<Item = &'a Owned>) -> bool {
    owned.filter(|owned| owned.device.function.is_some()).count() > MAX_FUNCTIONS
}

impl System {
    /// What irqfwd needs for messages; nothing where no guest owns a function.
    pub(crate) fn message_plan(&self) -> Option<MessagePlan> {
        let shown: usize = self.owned().map(|(_, owned)| owned.stretches.len()).sum();
        let first = (self.board.fixed_devices().len() + shown) as u8;
        let owners: Vec<_> = self.owned().filter(|(_, owned)| owned.device.function.is_some()).collect();
        let messages = self.board.messages.filter(|_| !owners.is_empty())?;
        let cpus: BTreeSet<u8> = owners.iter().flat_map(|(guest, _)| self.guests[*guest].cpus.iter().copied()).collect();
        let mut next = first + 2 + owners.len() as u8;
        let functions = (first + 2..).zip(&owners).filter_map(|(run, (guest, owned))| {
            let device = &owned.device;
            Some(FunctionPlan {
                guest: *guest as u8,
                run,
                requester: device.function?.0,
                ranges: bounded(device.all_ranges().iter().map(|range| RangePlan {
                    base: range.base,
                    register: range.register,
                    bits: range.bytes.trailing_zeros() as u8,
                })),
                line: *device.lines.first()?,
                messages: device.messages,
                table: table(device, &mut next),
                chosen: owned.is_framed(),
            })
        });
        Some(MessagePlan {
            service: first,
            redistributors: first + 1,
            redistributors_at: self.board.gic.cpu,
            frames: self.board.cpus.len() as u8,
            doorbell: messages.doorbell(),
            cpus: bounded(cpus.into_iter().filter_map(|cpu| Some((cpu, affinity(*self.board.cpus.get(usize::from(cpu))?))))),
            functions: bounded(functions),
        })
    }
}

/// Where the table of a function's messages is, if it has one. Its page is the next run.
fn table(device: &Device, next: &mut u8) -> Option<TablePlan> {
    let (table, pending) = (device.table?, device.pending?);
    let run = std::mem::replace(next, *next + 1);
    let pending = TablePlace { register: pending.register, offset: pending.offset };
    Some(TablePlan { run, entries: table.entries, at: table.place(), pending })
}

/// An affinity as a redistributor has it, in 32 bits (GICR_TYPER, GICv3 12.11.38), of one as MPIDR_EL1 has it.
const fn affinity(mpidr: u64) -> u32 {
    (mpidr >> 32 << 24 | mpidr & 0xff_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_named_as_people_name_it() {
        for (text, number) in [("00:02.0", 0x10), ("0:2.0", 0x10), ("ff:1f.7", 0xffff), ("01:00.3", 0x103)] {
            assert_eq!(Requester::parse(text), Some(Requester(number)), "{text}");
        }
        for text in ["", "00:02", "00.02.0", "100:00.0", "00:20.0", "00:00.8", "0x0:00.0", "00:00.0.0", "-1:00.0"] {
            assert_eq!(Requester::parse(text), None, "{text}");
        }
        assert_eq!(Requester(0x1fd).to_string(), "01:1f.5");
    }

    #[test]
    fn an_affinity_has_its_fields_side_by_side() {
        assert_eq!(affinity(0x12_0034_5678), 0x1234_5678);
    }
}
