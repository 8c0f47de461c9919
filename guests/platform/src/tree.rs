// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest wants to know from its device tree: command line, CPUs, memory. Whatever is missing or broken becomes
//! an empty value, so that a guest can still say what it did find.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

use crate::arguments::Arguments;

/// Most CPUs that a guest of this project uses.
pub const MAX_CPUS: usize = 8;

/// The platform's own serial port.
const SERIAL: u64 = 0x0900_0000;

/// What the tree said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tree<'a> {
    /// `chosen/bootargs`.
    pub arguments: Arguments<'a>,
    /// The CPUs' affinities, in the tree's order.
    pub affinities: [u64; MAX_CPUS],
    /// How many of them are valid.
    pub cpus: usize,
    /// First byte of memory.
    pub memory_base: u64,
    /// Bytes of the first range of memory.
    pub memory_bytes: u64,
    /// Bytes of the tree itself.
    pub bytes: u64,
    /// A PL031 clock of the guest's own.
    pub clock: Option<Device>,
    /// A page where writing a number rings it.
    pub bell: Option<Device>,
    /// The emulator's device for teaching.
    pub edu: Option<Device>,
    /// A network card (82574L) with several interrupts.
    pub card: Option<Card>,
    /// A network card (82576) with several interrupts, and a reset of its own.
    pub twin: Option<Card>,
    /// A source of randomness, as Virtio 1.2 has it.
    pub random: Option<Device>,
    /// A PL011 serial port of the guest's own, beside the platform's.
    pub port: Option<Device>,
}

/// A device with one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// First byte of its registers.
    pub base: u64,
    /// Its interrupt.
    pub line: u32,
}

/// Most interrupts of a [`Card`].
pub const MAX_LINES: usize = 8;

/// A device with several interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// First byte of its first registers.
    pub base: u64,
    /// Its interrupts; those behind the last one are 0.
    pub lines: [u32; MAX_LINES],
}

impl<'a> Tree<'a> {
    /// Reads what is needed from a checked tree.
    pub fn read(fdt: Fdt<'a>) -> Tree<'a> {
        let mut tree = Tree { bytes: fdt.data().len() as u64, ..Tree::default() };
        tree.arguments = Arguments(bootargs(fdt).unwrap_or(""));
        tree.read_cpus(fdt);
        if let Some((base, bytes)) = memory(fdt) {
            tree.memory_base = base;
            tree.memory_bytes = bytes;
        }
        tree.clock = device(fdt, "arm,pl031");
        tree.port = device(fdt, "arm,pl011");
        tree.bell = device(fdt, "trellis,doorbell");
        tree.edu = device(fdt, "trellis,edu");
        tree.card = card(fdt, "trellis,card");
        tree.twin = card(fdt, "trellis,twin");
        tree.random = device(fdt, "trellis,random");
        tree
    }

    fn read_cpus(&mut self, fdt: Fdt<'a>) {
        let Ok(cpus) = fdt.cpus() else { return };
        for cpu in cpus.cpus().take(MAX_CPUS) {
            let Some(reg) = cpu.property("reg") else { continue };
            self.affinities[self.cpus] = big_endian(reg.value());
            self.cpus += 1;
        }
    }
}

fn bootargs<'a>(fdt: Fdt<'a>) -> Option<&'a str> {
    fdt.find_node("/chosen")?.property("bootargs")?.value_as::<&'a str>().ok()
}

fn memory(fdt: Fdt<'_>) -> Option<(u64, u64)> {
    let range = fdt.memory().ok()?.reg().ok()??.next()?;
    Some((range.address().ok()?, range.size().ok()?))
}

/// The first such device that is not the platform's serial port: a node below the root with two cells of address and a
/// shared interrupt.
fn device(fdt: Fdt<'_>, compatible: &str) -> Option<Device> {
    card(fdt, compatible).map(|card| Device { base: card.base, line: card.lines[0] })
}

/// The same with all of its interrupts.
fn card(fdt: Fdt<'_>, compatible: &str) -> Option<Card> {
    let found = |node: &dtoolkit::fdt::FdtNode<'_>| {
        let names = node.property("compatible")?;
        let named = names.value().split(|byte| *byte == 0).any(|name| name == compatible.as_bytes());
        let (base, interrupts) = (node.property("reg")?, node.property("interrupts")?);
        let base = big_endian(base.value().get(..8)?);
        let mut lines = [0; MAX_LINES];
        lines[0] = shared_line(interrupts.value().get(4..8)?)?;
        for (line, cells) in lines.iter_mut().zip(interrupts.value().chunks_exact(12)) {
            *line = shared_line(cells.get(4..8)?)?;
        }
        (named && base != SERIAL).then_some(Card { base, lines })
    };
    fdt.root().children().find_map(|node| found(&node))
}

/// The line of a shared interrupt, by its cell; there are 988 (GICv3 2.2.1).
fn shared_line(cell: &[u8]) -> Option<u32> {
    let number = big_endian(cell);
    (number < 988).then(|| number as u32 + 32)
}

/// One or two cells as a number.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_that_cannot_be_is_no_line() {
        assert_eq!(shared_line(&[0, 0, 0, 2]), Some(34));
        assert_eq!(shared_line(&[0, 0, 3, 0xdb]), Some(1019));
        assert_eq!(shared_line(&[0, 0, 3, 0xdc]), None);
        assert_eq!(shared_line(&[0xff; 4]), None);
    }

    /// A tree written by hand, so that the test needs no compiler: header, one reservation, structure, names.
    struct Writer {
        structure: Vec<u8>,
        names: Vec<u8>,
    }

    impl Writer {
        fn word(&mut self, word: u32) {
            self.structure.extend(word.to_be_bytes());
        }

        fn padded(&mut self, bytes: &[u8]) {
            self.structure.extend(bytes);
            self.structure.resize(self.structure.len().next_multiple_of(4), 0);
        }

        fn node(&mut self, name: &str) {
            self.word(1);
            self.padded(&[name.as_bytes(), b"\0"].concat());
        }

        fn property(&mut self, name: &str, value: &[u8]) {
            self.word(3);
            self.word(value.len() as u32);
            self.word(self.names.len() as u32);
            self.padded(value);
            self.names.extend([name.as_bytes(), b"\0"].concat());
        }

        fn end(&mut self) {
            self.word(2);
        }

        fn finish(mut self) -> Vec<u8> {
            self.word(9);
            let structure = 40 + 16;
            let names = structure + self.structure.len();
            let total = names + self.names.len();
            let header = [0xd00d_feed, total, structure, names, 40, 17, 16, 0, self.names.len(), self.structure.len()];
            let header = header.iter().flat_map(|word| (*word as u32).to_be_bytes());
            header.chain([0; 16]).chain(self.structure).chain(self.names).collect()
        }
    }

    fn example() -> Vec<u8> {
        let mut tree = Writer { structure: Vec::new(), names: Vec::new() };
        tree.node("");
        tree.property("#address-cells", &2u32.to_be_bytes());
        tree.property("#size-cells", &2u32.to_be_bytes());
        tree.node("chosen");
        tree.property("bootargs", b"name=one loops=3\0");
        tree.end();
        tree.node("memory@40000000");
        tree.property("device_type", b"memory\0");
        tree.property("reg", &[0x4000_0000u64.to_be_bytes(), 0x1000_0000u64.to_be_bytes()].concat());
        tree.end();
        tree.node("cpus");
        tree.property("#address-cells", &1u32.to_be_bytes());
        tree.property("#size-cells", &0u32.to_be_bytes());
        for cpu in [0u32, 0x101] {
            tree.node(if cpu == 0 { "cpu@0" } else { "cpu@101" });
            tree.property("device_type", b"cpu\0");
            tree.property("reg", &cpu.to_be_bytes());
            tree.end();
        }
        tree.end();
        for (name, compatible, base, line) in [
            ("pl011@9000000", "arm,pl011\0arm,primecell\0", 0x900_0000u64, 1u32),
            ("rtc@b000000", "arm,pl031\0arm,primecell\0", 0xb00_0000, 2),
            ("serial1@b010000", "arm,pl011\0arm,primecell\0", 0xb01_0000, 8),
            ("card@b100000", "trellis,card\0", 0xb10_0000, 95),
        ] {
            tree.node(name);
            tree.property("compatible", compatible.as_bytes());
            tree.property("reg", &[base.to_be_bytes(), 0x1000u64.to_be_bytes()].concat());
            let more: &[u32] = if line == 95 { &[0, 94, 1, 0, 93, 1] } else { &[] };
            let cells = [&[0, line, 4], more].concat();
            tree.property("interrupts", &cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<u8>>());
            tree.end();
        }
        tree.end();
        tree.finish()
    }

    #[test]
    fn command_line_cpus_and_memory_are_found() {
        let bytes = example();
        let tree = Fdt::new(&bytes).map(Tree::read).expect("the example is a valid tree");
        assert_eq!(tree.arguments.value("name"), Some("one"));
        assert_eq!((tree.cpus, &tree.affinities[..2]), (2, &[0, 0x101][..]));
        assert_eq!((tree.memory_base, tree.memory_bytes), (0x4000_0000, 0x1000_0000));
        assert_eq!(tree.bytes, bytes.len() as u64);
        assert_eq!(tree.clock, Some(Device { base: 0xb00_0000, line: 34 }));
        assert_eq!(tree.port, Some(Device { base: 0xb01_0000, line: 40 }));
        assert_eq!(tree.card, Some(Card { base: 0xb10_0000, lines: [127, 126, 125, 0, 0, 0, 0, 0] }));
    }

    #[test]
    fn an_empty_tree_gives_empty_values() {
        let mut empty = Writer { structure: Vec::new(), names: Vec::new() };
        empty.node("");
        empty.end();
        let bytes = empty.finish();
        let tree = Fdt::new(&bytes).map(Tree::read).expect("an empty tree is valid");
        assert_eq!((tree.cpus, tree.memory_bytes, tree.arguments.0), (0, 0, ""));
    }
}
