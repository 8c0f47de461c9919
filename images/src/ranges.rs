// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ranges of a device's registers: one, or of a function of PCI as many as it has base address registers for. The pages with
//! the table of a function's messages are nobody's but irqfwd's; the guest is shown the stretches around them.

use crate::device::Device;
use serde::Deserialize;
use std::ops::Range;
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::{MAX_RANGES, TablePlace};

/// Bytes of an entry of a table of messages, and most entries (PCI Local Bus 3.0, 6.8.2).
const ENTRY: u64 = 16;
const MOST_ENTRIES: u16 = 2048;
/// The least bytes of a range.
const LEAST: u64 = 16;

/// A range of a function's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRange {
    /// Which base address register it has.
    pub register: u8,
    /// Where it is put.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The table of a function's messages (MSI-X).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Entries that it has at most.
    pub entries: u16,
    /// The range that it is in, by its base address register.
    pub register: u8,
    /// Where it begins there.
    pub offset: u32,
}

/// Where a function says which of its messages wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The range, by its base address register.
    pub register: u8,
    /// Where it begins there.
    pub offset: u32,
}

/// Registers of a device that follow each other, and that its guest is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The first byte in the machine.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where the guest sees the first one.
    pub address: u64,
}

impl Stretch {
    /// The page of the machine that it begins on.
    pub fn page(&self) -> u64 {
        self.base / PAGE
    }

    /// Pages that it lies on.
    pub fn pages(&self) -> u64 {
        (self.base % PAGE).saturating_add(self.bytes).div_ceil(PAGE)
    }
}

impl RegisterRange {
    /// The pages of the machine that it lies on.
    pub fn pages(&self) -> Range<u64> {
        self.base / PAGE..self.base.saturating_add(self.bytes).div_ceil(PAGE)
    }

    /// Whether a page of it is one of the others.
    pub fn meets(&self, pages: &Range<u64>) -> bool {
        let own = self.pages();
        own.start < pages.end && pages.start < own.end
    }
}

impl Table {
    /// Where the first message and the others are.
    pub fn place(&self) -> TablePlace {
        TablePlace { register: self.register, offset: self.offset }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.entries) * ENTRY
    }

    /// A bit for each entry, in words of 64.
    fn pending_bytes(&self) -> u64 {
        u64::from(self.entries).div_ceil(64) * 8
    }
}

impl Device {
    /// All of its registers.
    pub fn all_ranges(&self) -> Vec<RegisterRange> {
        if self.ranges.is_empty() { vec![RegisterRange { register: 0, base: self.base, bytes: self.bytes }] } else { self.ranges.clone() }
    }

    /// The range that a base address register has.
    pub fn range(&self, register: u8) -> Option<RegisterRange> {
        self.all_ranges().into_iter().find(|range| range.register == register)
    }

    /// The page of the machine that the table of its messages begins on.
    pub fn table_page(&self) -> Option<u64> {
        let table = self.table?;
        Some((self.range(table.register)?.base + u64::from(table.offset)) / PAGE)
    }

    /// Pages of the machine with what no guest sees, ascending.
    pub fn hidden(&self) -> Vec<Range<u64>> {
        let (Some(table), Some(pending)) = (self.table, self.pending) else { return Vec::new() };
        let all = [(table.register, table.offset, table.bytes()), (pending.register, pending.offset, table.pending_bytes())];
        let pages = |(register, offset, bytes): (u8, u32, u64)| {
            let first = self.range(register)?.base.saturating_add(offset.into());
            Some(first / PAGE..first.saturating_add(bytes).div_ceil(PAGE))
        };
        let mut hidden: Vec<_> = all.into_iter().filter_map(pages).collect();
        hidden.sort_by_key(|pages| pages.start);
        hidden
    }

    /// What its guest is shown of a range, put to this address.
    pub fn shown(&self, range: &RegisterRange, address: u64) -> Vec<Stretch> {
        let end = range.base.saturating_add(range.bytes);
        let (mut at, mut shown) = (range.base, Vec::new());
        let mut show = |at: u64, end: u64| {
            if at < end {
                shown.push(Stretch { base: at, bytes: end - at, address: address.saturating_add(at - range.base) });
            }
        };
        for pages in self.hidden().into_iter().filter(|pages| range.meets(pages)) {
            show(at, (pages.start * PAGE).min(end));
            at = at.max(pages.end * PAGE);
        }
        show(at, end);
        shown
    }
}

/// What a board file says of a function's ranges and cannot be.
pub fn contradiction(device: &Device) -> Option<String> {
    let name = &device.name;
    if device.function.is_none() {
        let has = !device.ranges.is_empty() || device.table.is_some() || device.pending.is_some();
        return has.then(|| format!("device `{name}` has ranges or a table of messages, and is no function of PCI"));
    }
    if !device.ranges.is_empty() && (device.base, device.bytes) != (0, 0) {
        return Some(format!("device `{name}` has ranges, and `base` and `bytes` of its own"));
    }
    let ranges = device.all_ranges();
    if ranges.windows(2).any(|pair| pair[0].register >= pair[1].register) || ranges.iter().any(|range| usize::from(range.register) >= MAX_RANGES) {
        return Some(format!("device `{name}`: base address registers are 0 to 5, and ranges ascend by them"));
    }
    for (index, range) in ranges.iter().enumerate() {
        if !range.bytes.is_power_of_two() || range.bytes < LEAST || !range.base.is_multiple_of(range.bytes.max(PAGE)) {
            return Some(format!("device `{name}`: a function's registers have a power of two of bytes, and begin at a multiple of it"));
        }
        let taken = ranges.get(index + 1).is_some_and(|next| next.register == range.register + 1) || usize::from(range.register) + 1 == MAX_RANGES;
        if range.base >> 32 != 0 && taken {
            return Some(format!("device `{name}`: a range above 4G takes two base address registers, and the one behind {} is not free", range.register));
        }
        if ranges.iter().take(index).any(|other| other.meets(&range.pages())) {
            return Some(format!("device `{name}`: two of its ranges share a page"));
        }
    }
    table_contradiction(device)
}

fn table_contradiction(device: &Device) -> Option<String> {
    let name = &device.name;
    let (table, pending) = match (device.table, device.pending) {
        (Some(table), Some(pending)) => (table, pending),
        (None, None) => return None,
        _ => return Some(format!("device `{name}`: `table` and `pending` go together")),
    };
    if !(1..=MOST_ENTRIES).contains(&table.entries) || u16::from(device.messages) > table.entries {
        return Some(format!("device `{name}`: a table has 1 to {MOST_ENTRIES} entries, and one for each message"));
    }
    let fits = |register: u8, offset: u32, bytes: u64| {
        device.range(register).is_some_and(|range| offset.is_multiple_of(8) && u64::from(offset) + bytes <= range.bytes)
    };
    if !fits(table.register, table.offset, table.bytes()) || !fits(pending.register, pending.offset, table.pending_bytes()) {
        return Some(format!("device `{name}`: `table` or `pending` does not lie in one of its ranges, at a multiple of 8"));
    }
    if u64::from(table.offset) % PAGE + u64::from(device.messages) * ENTRY > PAGE {
        return Some(format!("device `{name}`: the entries of its messages are not on one page"));
    }
    let is_shown = device.all_ranges().iter().any(|range| !device.shown(range, 0).is_empty());
    (!is_shown).then(|| format!("device `{name}` has nothing but a table of messages that its guest could use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Device {
        toml::from_str(&format!("name = \"x\"\nfunction = \"00:03.0\"\nmessages = 2\ncompatible = []\n{text}")).expect("a device")
    }

    /// As (page of the machine, pages, page of the guest), put to 0x1000 pages above where it is.
    fn shown(device: &Device) -> Vec<(u64, u64, u64)> {
        let put = |range: &RegisterRange| device.shown(range, range.base + 0x100_0000);
        device.all_ranges().iter().flat_map(put).map(|one| (one.page(), one.pages(), one.address / PAGE)).collect()
    }

    #[test]
    fn a_guest_is_shown_all_but_the_pages_with_the_table() {
        let ranges = "ranges = [{ register = 0, base = 0x10000000, bytes = 0x8000 }, { register = 4, base = 0x8000000000, bytes = 0x1000 }]\n";
        let cases: [(&str, &[(u64, u64, u64)]); 6] = [
            ("", &[(0x10000, 8, 0x11000), (0x800_0000, 1, 0x800_1000)]),
            ("table = { entries = 2, register = 0, offset = 0 }\npending = { register = 0, offset = 0x800 }", &[(0x10001, 7, 0x11001), (0x800_0000, 1, 0x800_1000)]),
            ("table = { entries = 2, register = 0, offset = 0x7000 }\npending = { register = 4, offset = 0 }", &[(0x10000, 7, 0x11000)]),
            (
                "table = { entries = 2, register = 0, offset = 0x2000 }\npending = { register = 0, offset = 0x5000 }",
                &[(0x10000, 2, 0x11000), (0x10003, 2, 0x11003), (0x10006, 2, 0x11006), (0x800_0000, 1, 0x800_1000)],
            ),
            // The last entry ends on the next page, and the waiting ones begin before the table.
            (
                "table = { entries = 257, register = 0, offset = 0x3000 }\npending = { register = 0, offset = 0x1ff8 }",
                &[(0x10000, 1, 0x11000), (0x10005, 3, 0x11005), (0x800_0000, 1, 0x800_1000)],
            ),
            ("table = { entries = 2, register = 4, offset = 0x20 }\npending = { register = 4, offset = 0x40 }", &[(0x10000, 8, 0x11000)]),
        ];
        for (table, expected) in cases {
            let device = device(&format!("{ranges}{table}"));
            assert_eq!(contradiction(&device), None, "{table}");
            assert_eq!(shown(&device), expected, "{table}");
        }
    }

    #[test]
    fn what_ranges_and_tables_cannot_be_is_said() {
        let range = |register: u64, base: u64, bytes: u64| format!("{{ register = {register}, base = {base}, bytes = {bytes} }}");
        let ranges = |all: &[String]| format!("ranges = [{}]\n", all.join(", "));
        let two = ranges(&[range(0, 0x1000_0000, 0x8000), range(1, 0x1001_0000, 0x1000)]);
        let table = |entries: u64, register: u64, offset: u64| format!("{two}table = {{ entries = {entries}, register = {register}, offset = {offset} }}\n");
        let pending = |register: u64, offset: u64| format!("pending = {{ register = {register}, offset = {offset} }}\n");
        let cases = [
            (ranges(&[range(1, 0x1000_0000, 0x1000), range(0, 0x1001_0000, 0x1000)]), "ascend"),
            (ranges(&[range(1, 0x1000_0000, 0x1000), range(1, 0x1001_0000, 0x1000)]), "ascend"),
            (ranges(&[range(6, 0x1000_0000, 0x1000)]), "ascend"),
            (ranges(&[range(0, 0x1000_0000, 0x3000)]), "power of two"),
            (ranges(&[range(0, 0x1000_0000, 8)]), "power of two"),
            (ranges(&[range(0, 0x1000_1000, 0x2000)]), "power of two"),
            (ranges(&[range(0, 0x1_0000_0000, 0x1000), range(1, 0x1000_0000, 0x1000)]), "above 4G"),
            (ranges(&[range(5, 0x1_0000_0000, 0x1000)]), "above 4G"),
            (ranges(&[range(0, 0x1000_0000, 0x2000), range(2, 0x1000_1000, 0x1000)]), "share a page"),
            (format!("base = 4096\nbytes = 4096\n{two}"), "of its own"),
            (table(2, 0, 0), "go together"),
            (format!("{two}{}", pending(0, 0)), "go together"),
            (table(1, 0, 0) + &pending(0, 0x800), "one for each message"),
            (table(2049, 0, 0) + &pending(1, 0), "1 to 2048"),
            (table(2, 2, 0) + &pending(1, 0), "does not lie"),
            (table(2, 0, 4) + &pending(1, 0), "does not lie"),
            (table(2, 0, 0x7ff0) + &pending(1, 0), "does not lie"),
            (table(2, 0, 0) + &pending(1, 0x1000), "does not lie"),
            (table(2, 0, 0xff0) + &pending(1, 0), "on one page"),
            (format!("{}table = {{ entries = 2, register = 0, offset = 0 }}\n{}", ranges(&[range(0, 0x1000_0000, 0x1000)]), pending(0, 0x800)), "nothing but"),
        ];
        for (text, said) in cases {
            assert!(contradiction(&device(&text)).is_some_and(|sentence| sentence.contains(said)), "{text}: not {said}");
        }
    }
}
