// SPDX-License-Identifier: MIT OR Apache-2.0
//! A driver's way through a function's configuration and its table, and what no driver would do.

use super::*;
use crate::bus;
use crate::fake::Sheet;
use proptest::prelude::*;
use trellis_idl::layout::bus as bus_page;
use trellis_idl::plan::{DevicePages, TablePlace};

/// Where the guest sees the ranges of the first function.
const REGISTERS: u64 = 0x0b00_0000;
const WIDE_REGISTERS: u64 = 0x0b01_0000;
const TABLE_AT: u64 = REGISTERS;
const WAITS_AT: u64 = REGISTERS + 0x800;
const DOORBELL: u64 = 0x1_0809_0040;
const FIRST_LINE: u32 = 100;
/// The guest's place of messages, as two words.
const DOOR: u32 = (FRAME + FRAME_SET) as u32;

/// Two functions: with a table of three entries, four of the machine's, and without.
pub(crate) fn plan() -> BusPlan {
    let range = |register, base, bits| RangePlan { base, register, bits };
    let table = TablePlan {
        run: 8, entries: 4, at: TablePlace { register: 1, offset: 0 }, pending: TablePlace { register: 1, offset: 0x800 },
    };
    let with = ShownFunction {
        run: 6,
        ranges: [range(1, REGISTERS, 12), range(4, WIDE_REGISTERS, 14)].into_iter().collect(),
        table: Some(table),
        entries: 3,
        hidden: [DevicePages { page: REGISTERS / PAGE, pages: 1 }].into_iter().collect(),
        wire: None,
    };
    let without = ShownFunction { run: 7, ranges: [range(0, 0x0c00_0000, 20)].into_iter().collect(), wire: Some(99), ..ShownFunction::default() };
    BusPlan { doorbell: DOORBELL, first_line: FIRST_LINE as u8, lines: 3, functions: [with, without].into_iter().collect() }
}

/// The first one's configuration: power states, messages in a table, plain messages, the vendor's own, PCI Express.
pub(crate) fn configuration() -> Sheet {
    Sheet::new(&[
        (0x00, 0x1041_1af4), (0x04, 0x0010_0006), (0x08, 0x0200_0001), (0x0c, 0x0080_0010), (0x14, 0x1015_0000), (0x20, 0x0000_000c), (0x24, 0x80),
        (0x2c, 0x1100_1af4), (0x30, 0xfff8_0001), (0x34, 0x40), (0x3c, 0x0100),
        (0x40, 0x0003_5001), (0x44, 0x8),
        (0x50, 0x8003_6011), (0x54, 0x1), (0x58, 0x801),
        (0x60, 0x0080_7005), (0x64, 0xdead_0040), (0x68, 0x1234),
        (0x70, 0x0110_8009), (0x74, 0x4), (0x7c, 0x1000),
        (0x80, 0x0092_0010), (0x84, 0x1000_8fc1), (0x88, 0x2810),
        (0x100, 0x0001_0001),
    ])
}

struct World {
    plan: BusPlan,
    state: Functions,
    sheets: [(Sheet, Sheet); 2],
}

impl World {
    fn new() -> World {
        let masked: Vec<(usize, u32), 4> = (0..4).map(|entry| (16 * entry + 12, 1)).collect();
        let other = Sheet::new(&[(0x00, 0x11e8_1234), (0x04, 0x0010_0002), (0x08, 0x00ff_0010), (0x10, 0x1000_0000), (0x34, 0x40), (0x40, 0x0080_0005)]);
        World { plan: plan(), state: Functions::new(), sheets: [(configuration(), Sheet::new(&masked)), (other, Sheet::default())] }
    }

    fn access(&mut self, address: u64, width: u8, write: Option<u64>) -> Option<u64> {
        let (place, offset) = find(&self.plan, address)?;
        let page = |place: usize| {
            let (configuration, table) = &self.sheets[place / 2];
            if place == bus_page::configuration(place / 2) { configuration.clone() } else { table.clone() }
        };
        fn transact(device: &mut impl Registers, offset: u64, width: u8, write: Option<u64>) -> u64 {
            let Some(value) = write else { return bus::read(device, offset, width) };
            bus::write(device, offset, width, value);
            0
        }
        Some(match place {
            Place::Frame => transact(&mut Frame { plan: &self.plan, raise: |_| {} }, offset, width, write),
            Place::Configuration(None) => transact(&mut Nothing, offset, width, write),
            Place::Configuration(Some(place)) => transact(&mut Configuration(View::new(&self.plan, &mut self.state, place, page)), offset, width, write),
            Place::Hidden(place) => transact(&mut Hidden(View::new(&self.plan, &mut self.state, place, page)), offset, width, write),
        })
    }

    fn read(&mut self, address: u64) -> u32 {
        self.access(address, 4, None).expect("a device") as u32
    }

    fn write(&mut self, address: u64, value: u32) {
        self.access(address, 4, Some(value.into())).expect("a device");
    }

    /// Of the first function's configuration.
    fn at(&mut self, at: u64) -> u32 {
        self.read(CONFIGURATION + at)
    }

    fn put(&mut self, at: u64, value: u32) {
        self.write(CONFIGURATION + at, value);
    }

    /// An entry as the function has it.
    fn entry(&self, index: usize) -> [u32; 4] {
        [0, 4, 8, 12].map(|word| self.sheets[0].1.read(16 * index + word))
    }

    fn name(&mut self, index: u64, words: [u32; 3]) {
        (0..).zip(words).for_each(|(word, value)| self.write(TABLE_AT + 16 * index + 4 * word, value));
    }

    /// The driver masks all, fills, and lets go, as drivers do.
    fn enable(&mut self) {
        self.put(0x50, TABLE_WRITES | TABLE_MASKED);
        (0..3).for_each(|index| self.name(index as u64, [DOOR, 0, FIRST_LINE + index]));
        self.put(0x50, TABLE_WRITES);
    }
}

#[test]
fn a_function_is_found_and_others_are_not() {
    let mut world = World::new();
    assert_eq!([0, 8, 0x2c].map(|at| world.at(at)), [0x1041_1af4, 0x0200_0001, 0x1100_1af4]);
    // One function a device, whatever the header says.
    assert_eq!(world.at(0xc), 0);
    assert_eq!(world.read(CONFIGURATION + 0x8000), 0x11e8_1234);
    for number in (0..256).filter(|number| ![0, 8].contains(number)) {
        assert_eq!(world.read(CONFIGURATION + number * PAGE), NOTHING, "function {number}");
        world.write(CONFIGURATION + number * PAGE + 4, 7);
    }
    assert_eq!(world.access(CONFIGURATION + CONFIGURATION_BYTES, 4, None), None);
    assert_eq!(world.access(CONFIGURATION - 4, 4, None), None);
    // Nothing beyond the first 256 bytes.
    assert!((0x100..0x1000).step_by(4).all(|at| world.at(at) == 0));
    // One that is not there any more.
    world.sheets[1].0.set(0, NOTHING);
    assert_eq!([0, 4, 0x40].map(|at| world.read(CONFIGURATION + 0x8000 + at)), [NOTHING; 3]);
}

#[test]
fn registers_are_sized_and_stay_where_they_are() {
    let mut world = World::new();
    let bases = |world: &mut World| [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30].map(|at| world.at(at));
    let as_found = [0, REGISTERS as u32, 0, 0, WIDE_REGISTERS as u32 | 0xc, 0, 0];
    assert_eq!(bases(&mut world), as_found);
    for at in (0x10..=0x30).step_by(4) {
        world.put(at, u32::MAX);
    }
    assert_eq!(bases(&mut world), [0, 0xffff_f000, 0, 0, 0xffff_c00c, u32::MAX, 0]);
    for at in (0x10..=0x30).step_by(4) {
        world.put(at, 0x2000_0000);
    }
    assert_eq!(bases(&mut world), as_found);
    assert_eq!(world.access(CONFIGURATION + 0x20, 8, None), Some(WIDE_REGISTERS | 0xc));
    assert_eq!(world.sheets[0].0.written(), []);
}

#[test]
fn a_command_is_kept_and_does_nothing() {
    let mut world = World::new();
    assert_eq!(world.at(4), 0x0010_0000);
    world.put(4, 0xffff_ffff);
    assert_eq!(world.at(4), 0x0010_0546);
    // A byte of it.
    world.access(CONFIGURATION + 5, 1, Some(0)).expect("a device");
    assert_eq!(world.at(4), 0x0010_0046);
    world.put(0x3c, 0xffff_ff2a);
    assert_eq!(world.at(0x3c), 0x2a);
    assert_eq!(world.read(CONFIGURATION + 0x803c), 0x100, "it has a wire");
    assert_eq!(world.sheets[0].0.written(), []);
}

#[test]
fn only_what_works_is_linked() {
    let mut world = World::new();
    let (mut seen, mut at) = (Vec::<(u32, u32), 8>::new(), world.at(0x34));
    while at != 0 {
        let word = world.at(at.into());
        seen.push((at, word & 0xff)).expect("an end");
        at = word >> 8 & 0xff;
    }
    assert_eq!(seen, [(0x50, TABLE), (0x70, VENDOR), (0x80, EXPRESS)]);
    assert_eq!([0x40, 0x44, 0x60, 0x64, 0x68].map(|at| world.at(at)), [0; 5], "and what is not is not told");
    assert_eq!([0x50, 0x54, 0x58].map(|at| world.at(at)), [0x0002_7011, 1, 0x801], "three of four entries");
    assert_eq!([0x70, 0x7c].map(|at| world.at(at)), [0x0110_8009, 0x1000]);
    assert_eq!(world.at(0x84), 0x8fc1, "it cannot be reset by its guest");
    // Plain messages alone: no capability at all.
    assert_eq!([0x34, 0x40].map(|at| world.read(CONFIGURATION + 0x8000 + at)), [0, 0]);
    // A ring of capabilities has an end.
    world.sheets[0].0.set(0x80, 0x0092_4010);
    assert_eq!(world.at(0x80), 0x0092_0010);
    world.sheets[0].0.set(4, 2);
    assert_eq!(world.at(0x34), 0, "no capabilities");
}

#[test]
fn an_entry_gets_the_doorbell_and_the_event_of_its_line() {
    let mut world = World::new();
    world.enable();
    assert_eq!(world.entry(0)[3], 1, "as the guest masks it");
    for index in 0..3 {
        world.write(TABLE_AT + 16 * index + 12, 0);
        assert_eq!(world.entry(index as usize), [DOORBELL as u32, 1, index as u32, 0]);
        assert_eq!(world.read(TABLE_AT + 16 * index + 8), FIRST_LINE + index as u32, "and reads what it wrote");
    }
    assert_eq!(world.entry(3), [0, 0, 0, 1], "nobody's");
    // Another line: masked first, then changed, then open.
    world.sheets[0].1.written();
    world.write(TABLE_AT + 24, FIRST_LINE);
    let door = [(16, DOORBELL as u32), (20, 1), (24, 0)];
    assert_eq!(world.sheets[0].1.written(), [&[(28, 1)], &door[..], &[(28, 0)]].concat());
    // The same again changes nothing.
    world.write(TABLE_AT + 24, FIRST_LINE);
    assert_eq!(world.sheets[0].1.written(), []);
}

#[test]
fn an_entry_that_names_no_line_stays_masked() {
    let good = [DOOR, 0, FIRST_LINE + 2];
    let bad = [
        [DOOR, 0, FIRST_LINE - 1], [DOOR, 0, FIRST_LINE + 3], [DOOR, 0, u32::MAX], [DOOR, 0, 0], [DOOR, 0, FIRST_LINE | 1 << 16],
        [DOOR + 4, 0, FIRST_LINE], [DOOR, 1, FIRST_LINE], [0, 0, FIRST_LINE], [DOORBELL as u32, 1, 0], [0x4000_0000, 0, FIRST_LINE],
    ];
    for words in bad {
        let mut world = World::new();
        world.enable();
        world.write(TABLE_AT + 12, 0);
        assert_eq!(world.entry(0)[3], 0);
        world.name(0, words);
        assert_eq!(world.entry(0)[3], 1, "{words:x?}");
        assert_eq!(world.entry(0)[..2], [DOORBELL as u32, 1], "and no other address is there");
        world.name(0, good);
        assert_eq!(world.entry(0), [DOORBELL as u32, 1, 2, 0]);
    }
}

#[test]
fn all_are_masked_while_the_capability_says_so() {
    let mut world = World::new();
    (0..3).for_each(|index| world.write(TABLE_AT + 16 * index + 12, 0));
    (0..3).for_each(|index| world.name(index, [DOOR, 0, FIRST_LINE]));
    let masks = |world: &World| [0, 1, 2].map(|index| world.entry(index)[3]);
    assert_eq!(masks(&world), [1; 3], "not switched on");
    for (control, masked) in [(TABLE_WRITES, 0), (TABLE_WRITES | TABLE_MASKED, 1), (TABLE_WRITES, 0), (0, 1), (TABLE_WRITES, 0), (TABLE_MASKED, 1)] {
        world.put(0x50, control);
        assert_eq!(masks(&world), [masked; 3], "{control:x}");
        assert_eq!(world.at(0x50) & (TABLE_WRITES | TABLE_MASKED), control);
    }
    // The upper byte alone, as some do.
    world.access(CONFIGURATION + 0x53, 1, Some(0x80)).expect("a device");
    assert_eq!(masks(&world), [0; 3]);
    world.state = Functions::new();
    assert_eq!(world.at(0x50) >> 16, 2, "after a reset nothing is on");
}

#[test]
fn what_waits_is_read_from_the_function() {
    let mut world = World::new();
    world.sheets[0].1.set(0x800, 0b101);
    assert_eq!([WAITS_AT, WAITS_AT + 4, WAITS_AT + 8].map(|at| world.read(at)), [0b101, 0, 0]);
    world.write(WAITS_AT, 0);
    // The machine's own fourth entry is nobody's business, nor what else is on the page.
    world.sheets[0].1.set(48, 0x55);
    world.sheets[0].1.set(0x900, 0x55);
    assert_eq!([TABLE_AT + 48, TABLE_AT + 0x900].map(|at| world.read(at)), [0, 0]);
    // While its registers are nowhere, nothing of them is touched.
    world.sheets[0].0.set(4, 0x0010_0000);
    world.sheets[0].1.written();
    world.enable();
    world.write(TABLE_AT + 12, 0);
    assert_eq!(world.read(WAITS_AT), 0);
    assert_eq!(world.sheets[0].1.written(), []);
}

#[test]
fn the_frame_says_its_lines_and_raises_them() {
    let (plan, mut raised) = (plan(), Vec::<u32, 8>::new());
    let mut frame = Frame { plan: &plan, raise: |line| raised.push(line).expect("room") };
    assert_eq!(bus::read(&mut frame, FRAME_TYPE, 4), u64::from(FIRST_LINE) << 16 | 3);
    assert!((0..PAGE).step_by(4).filter(|at| *at != FRAME_TYPE).all(|at| bus::read(&mut frame, at, 4) == 0));
    for line in [FIRST_LINE, FIRST_LINE + 2, FIRST_LINE + 3, FIRST_LINE - 1, 0, u32::MAX] {
        bus::write(&mut frame, FRAME_SET, 4, line.into());
    }
    bus::write(&mut frame, 0, 4, FIRST_LINE.into());
    assert_eq!(raised, [FIRST_LINE, FIRST_LINE + 2]);
}

/// Something that a guest may write, of what lies here.
fn write() -> impl Strategy<Value = (u64, u8, u64)> {
    let table = (0..0x50u64).prop_map(|at| TABLE_AT + at);
    let control = (0..0x100u64).prop_map(|at| CONFIGURATION + at);
    let words = prop_oneof![
        Just(u64::from(DOOR)), Just(0), Just(1), Just(u64::MAX), Just(u64::from(TABLE_WRITES)), (0..8u64).prop_map(|line| u64::from(FIRST_LINE) - 1 + line), any::<u64>(),
    ];
    let place = prop_oneof![4 => table, 1 => control, 2 => Just(CONFIGURATION + 0x50), 1 => (0..PAGE).prop_map(|at| TABLE_AT + at)];
    (place, prop_oneof![Just(1u8), Just(2), Just(4), Just(4), Just(4), Just(8)], words)
}

proptest! {
    /// Whatever a guest writes: the configuration stays as it is, an entry is open only with the doorbell and a message of the
    /// frame, and none that is open is changed.
    #[test]
    fn nothing_but_messages_of_its_own_gets_into_the_table(writes in proptest::collection::vec(write(), 1..200)) {
        let mut world = World::new();
        world.enable();
        world.sheets[0].1.written();
        for (address, width, value) in writes {
            let mut was_open = [0, 1, 2, 3].map(|index| world.entry(index)[3] & 1 == 0);
            world.access(address, width, Some(value));
            prop_assert_eq!(world.sheets[0].0.written(), []);
            for (at, word) in world.sheets[0].1.written() {
                prop_assert!(at < 48, "only entries that it sees");
                match at % 16 {
                    12 => was_open[at / 16] = word & 1 == 0,
                    _ => prop_assert!(!was_open[at / 16], "an open one was changed"),
                }
            }
            for entry in [0, 1, 2].map(|index| world.entry(index)) {
                let is_own = entry[..2] == [DOORBELL as u32, 1] && entry[2] < 3;
                prop_assert!(entry[3] & 1 == 1 || is_own, "{:x?}", entry);
            }
        }
    }
}
