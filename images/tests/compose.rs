// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images: the same for the same inputs, readable by the kernel, by root, and by `query`.

use std::path::{Path, PathBuf};
use trellis_idl::boot::{BootHeader, HEADER_OFFSET, MAGIC};
use trellis_idl::control::Control;
use trellis_idl::event::EventKind;
use trellis_idl::kernel::{Access, PAGE};
use trellis_idl::layout::PROGRAM;
use trellis_idl::plan::{
    BusPlan, ConsoleConfig, DevicePages, EventPlan, FunctionPlan, IrqfwdConfig, MessagePlan, MonitorConfig, P2mConfig, Part, Plan, RangePlan, Role, RulePlan,
    RuleVerdict, ShownFunction, SmmuConfig, SourcePlan, SpacePlan, StreamPlan, TablePlace, TablePlan, VcpuConfig, WatchedPlan, WatcherPlan, Without,
};
use trellis_images::{ComposeError, Download, Programs, Source, System, query};
use zerocopy::{FromBytes, IntoBytes};

/// Our guest is an ELF file; every download is an Image or a few bytes.
struct Shelf;

impl Source for Shelf {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn guest(&self, _: &str) -> Result<PathBuf, String> {
        Ok("tests/files/good.elf".into())
    }

    fn fetch(&self, download: Download) -> Result<PathBuf, String> {
        Ok(if download == Download::Linux { "tests/files/good.img" } else { "tests/files/flat.bin" }.into())
    }
}

fn system(path: &str) -> System {
    System::load(Path::new(path), &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)))
}

/// An ELF file with code at the usual place, and data of `flags` in the page behind it.
fn program(flags: u32) -> Vec<u8> {
    let mut file = [&b"\x7fELF\x02\x01\x01"[..], &[0; 9]].concat();
    file.extend(2u16.to_le_bytes().into_iter().chain(183u16.to_le_bytes()).chain(1u32.to_le_bytes()));
    for word in [PROGRAM + 16, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    for (flags, address, offset, bytes, memory) in [(5u32, PROGRAM, 176u64, 32u64, 32u64), (flags, PROGRAM + 0x1010, 208, 8, 9000)] {
        file.extend(1u32.to_le_bytes().into_iter().chain(flags.to_le_bytes()));
        for word in [offset, address, address, bytes, memory, PAGE] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend([0xd5; 40]);
    file
}

fn kernel(version: u32, magic: u64) -> Vec<u8> {
    let mut kernel = vec![0u8; 5000];
    kernel[16..24].copy_from_slice(&20_000u64.to_le_bytes());
    kernel[56..60].copy_from_slice(b"ARM\x64");
    let header = BootHeader { magic, version, ..BootHeader::EMPTY };
    kernel[HEADER_OFFSET..HEADER_OFFSET + size_of::<BootHeader>()].copy_from_slice(header.as_bytes());
    kernel
}

fn programs() -> Programs {
    let program = program(6);
    Programs { kernel: kernel(1, 0), root: program.clone(), console: program.clone(), p2m: program.clone(), vcpu: program.clone(), irqfwd: program.clone(), monitor: program.clone(), tracer: program.clone(), guard: program.clone(), smmu: program, trace: false }
}

fn header(image: &[u8]) -> BootHeader {
    BootHeader::read_from_prefix(&image[HEADER_OFFSET..]).expect("a header").0
}

fn part(image: &[u8], part: Part) -> &[u8] {
    let start = (header(image).payload.base + part.offset) as usize;
    &image[start..start + part.bytes as usize]
}

fn config(image: &[u8], at: Part) -> &[u8] {
    let (length, rest) = part(image, at).split_at(8);
    assert_eq!(u64::from_le_bytes(length.try_into().expect("eight bytes")), rest.len() as u64);
    rest
}

#[test]
fn the_same_inputs_make_the_same_image() {
    let image = system("hello.toml").compose(&programs()).expect("an image");
    assert_eq!(image, system("hello.toml").compose(&programs()).expect("an image"));
}

#[test]
fn the_kernel_finds_plan_and_root_through_its_header() {
    let image = system("hello.toml").compose(&programs()).expect("an image");
    let header = header(&image);
    assert_eq!((header.magic, header.cpus, header.image_bytes), (MAGIC, 1, image.len() as u64));
    assert_eq!(header.payload.base, 20_480, "the kernel's zeroed memory comes first");
    assert_eq!(header.payload.base + header.payload.bytes, header.image_bytes);
    assert_eq!(&image[16..24], header.image_bytes.to_le_bytes());
    assert!(image[5000..20_480].iter().all(|byte| *byte == 0));
    let [code, data, none, _] = header.root;
    assert_eq!((code.address, code.access, header.root_entry), (PROGRAM, 5, PROGRAM + 16));
    assert_eq!(image[code.offset as usize..][..32], [0xd5; 32]);
    assert_eq!((data.address, data.file_bytes, data.memory_bytes, data.access), (PROGRAM + 0x1000, 24, 9016, 3));
    assert_eq!(image[data.offset as usize..][15..17], [0, 0xd5], "bytes before a segment in its page are zero");
    assert_eq!(none.memory_bytes, 0);
    assert!(header.root.iter().all(|segment| segment.offset % PAGE == 0));
}

#[test]
fn root_finds_servers_and_guests_through_the_plan() {
    let image = system("hello.toml").compose(&programs()).expect("an image");
    let found = header(&image).plan;
    let plan: Plan<'_> = postcard::from_bytes(part(&image, Part { offset: found.base, bytes: found.bytes })).expect("a plan");
    let names: Vec<_> = plan.servers.iter().map(|server| server.name).collect();
    assert_eq!(names, ["console", "p2m.one", "vcpu.one", "p2m.two", "vcpu.two"]);
    assert_eq!(plan.servers[2].cpus[..], [0, 0], "one thread a vCPU and the control thread");
    assert_eq!((plan.guests[1].p2m, plan.guests[1].vcpu, plan.guests[1].manifest_line), (3, 4, 12));
    for server in &plan.servers {
        assert!(server.segments.iter().all(|segment| segment.part.offset % PAGE == 0 && segment.address % PAGE == 0));
        match server.role {
            Role::Console => {
                let config: ConsoleConfig<'_> = postcard::from_bytes(config(&image, server.config)).expect("a configuration");
                let names: Vec<_> = config.channels.iter().map(|channel| channel.name).collect();
                assert_eq!(names, ["console", "p2m.one", "vcpu.one", "p2m.two", "vcpu.two", "one", "two"]);
            }
            Role::P2m(_) => {
                let config: P2mConfig<'_> = postcard::from_bytes(config(&image, server.config)).expect("a configuration");
                assert_eq!((config.first_page, config.pages, config.gicv_page), (0x40000, 4096, None));
            }
            Role::Irqfwd | Role::Smmu | Role::Monitor => panic!("no guest of it owns a device or is watched"),
            Role::Vcpu(_) => {
                let config: VcpuConfig<'_> = postcard::from_bytes(config(&image, server.config)).expect("a configuration");
                assert_eq!((config.entry, config.x0), (0x4020_0000, 0x4000_0000));
                assert_eq!(part(&image, config.loads[1].part)[..4], 0xd00d_feed_u32.to_be_bytes());
            }
        }
    }
}

#[test]
fn servers_have_floating_point_only_where_the_manifest_says_so() {
    let text = std::fs::read_to_string("hello.toml").expect("the manifest");
    for (line, float) in [("", false), ("server-float = \"fault\"\n", false), ("server-float = \"own\"\n", true)] {
        let system = System::from_text(Path::new("hello.toml"), format!("{line}{text}"), &Shelf);
        let system = system.unwrap_or_else(|report| panic!("{}", report.render(false)));
        assert!(system.plan().servers.iter().all(|server| server.float == float), "{line}");
    }
}

#[test]
fn the_host_may_do_what_the_manifest_says() {
    let text = std::fs::read_to_string("hello.toml").expect("the manifest");
    let cases = [
        ("", Control::Off, "nothing"), ("control = \"off\"\n", Control::Off, "nothing"),
        ("control = \"observe\"\n", Control::Observe, "change nothing"), ("control = \"full\"\n", Control::Full, "restart guests"),
    ];
    for (line, control, words) in cases {
        let system = System::from_text(Path::new("hello.toml"), format!("{line}{text}"), &Shelf);
        let system = system.unwrap_or_else(|report| panic!("{}", report.render(false)));
        assert_eq!(system.plan().control, control);
        let explained = system.explain();
        assert!(explained.lines().any(|line| line.starts_with("host   ") && line.contains(words)), "{explained}");
    }
}

#[test]
fn root_finds_devices_through_header_plan_and_configurations() {
    for (path, direct) in [("devices.toml", false), ("devices-direct.toml", true)] {
        let system = system(path);
        let image = system.compose(&programs()).expect("an image");
        let found = header(&image);
        let [uart, rtc, port, none] = [0, 1, 2, 3].map(|place| (found.devices[place].base, found.devices[place].bytes));
        assert_eq!((uart, rtc, port, none), ((0x900_0000, PAGE), (0x901_0000, PAGE), (0x904_0000, PAGE), (0, 0)));
        let plan = Part { offset: found.plan.base, bytes: found.plan.bytes };
        let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
        assert_eq!(plan.guests[0].devices[..], [1, 2]);
        let irqfwd = plan.servers.last().expect("servers");
        assert_eq!((irqfwd.name, irqfwd.role, &irqfwd.cpus[..]), ("irqfwd", Role::Irqfwd, &[0, 0][..]));
        let forward: IrqfwdConfig = postcard::from_bytes(config(&image, irqfwd.config)).expect("a configuration");
        let source = |line| SourcePlan { guest: 0, line, guest_line: line as u8, edge: false, direct };
        assert_eq!((&forward.sources[..], &forward.guests[0][..]), (&[source(34), source(40)][..], &[0][..]));
        let maps: P2mConfig<'_> = postcard::from_bytes(config(&image, plan.servers[1].config)).expect("a configuration");
        let at = |page| DevicePages { page, pages: 1 };
        assert_eq!(maps.devices[..], [at(0xb000), at(0xb010)]);
        let tree = &system.guests()[0].placement.tree;
        for name in [&b"rtc@b000000\0"[..], b"arm,pl031\0", b"serial1@b010000\0"] {
            assert!(tree.windows(name.len()).any(|window| window == name), "{name:?}");
        }
        assert_eq!(system.emulator_arguments(), ["-serial", "null"]);
    }
    let hello = system("hello.toml");
    assert_eq!((header(&hello.compose(&programs()).expect("an image")).devices[1].bytes, hello.plan().servers.len()), (0, 5));
}

#[test]
fn a_line_that_a_guest_does_not_have_gets_a_number_of_the_guests() {
    let system = system("tests/files/devices-numbers.toml");
    let image = system.compose(&programs()).expect("an image");
    let found = header(&image);
    let plan = Part { offset: found.plan.base, bytes: found.plan.bytes };
    let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
    let irqfwd = plan.servers.last().expect("servers");
    let forward: IrqfwdConfig = postcard::from_bytes(config(&image, irqfwd.config)).expect("a configuration");
    let lines: Vec<_> = forward.sources.iter().map(|source| (source.line, source.guest_line)).collect();
    assert_eq!(lines, [(153, 127), (33, 126), (34, 34)]);
    let tree = &system.guests()[0].placement.tree;
    // A level line, by its number among the shared ones.
    for cells in [[0u32, 95, 4], [0, 94, 4], [0, 2, 4]].map(|cells| cells.map(u32::to_be_bytes).concat()) {
        assert!(tree.windows(12).any(|window| window == cells), "{cells:?}");
    }
}

#[test]
fn a_function_gets_a_line_for_each_message_and_irqfwd_what_makes_them() {
    let text = std::fs::read_to_string("edu.toml").expect("the manifest");
    let text = text.replace("board = \"virt\"", "board = \"tests/files/functions-board.toml\"").replace("cpus = [0]", "cpus = [2, 1]");
    let text = text + "[[guest.edu.device]]\ndevice = \"net\"\ndma = \"unprotected\"\n";
    let system = System::from_text(Path::new("edu.toml"), text, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
    let image = system.compose(&programs()).expect("an image");
    let found = header(&image);
    let runs: Vec<_> = found.devices[1..8].iter().map(|run| (run.base, run.bytes)).collect();
    let (gits, gicr) = ((0x0808_0000, PAGE), (0x080a_0000, 8 * 0x2_0000));
    let [edu, net] = [0x10u64, 0x18].map(|function| (0x40_1000_0000 + function * PAGE, PAGE));
    assert_eq!(runs, [(0x2000_0000, 0x10_0000), (0x2010_0000, 0x4000), gits, gicr, edu, net, (0, 0)]);
    let plan = Part { offset: found.plan.base, bytes: found.plan.bytes };
    let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
    assert_eq!(plan.guests[0].devices[..], [1, 2], "what makes lines of messages is no guest's");
    let forward: IrqfwdConfig =
        postcard::from_bytes(config(&image, plan.servers.last().expect("servers").config)).expect("a configuration");
    let lines: Vec<_> = forward.sources.iter().map(|source| (source.line, source.guest_line, source.edge)).collect();
    let expected = (0..6).map(|number| (8192 + number, 127 - number as u8, true));
    assert_eq!(lines, expected.collect::<Vec<_>>());
    let range = |base, bits| [RangePlan { base, register: 0, bits }].into_iter().collect();
    let function = |run, requester, base, bits, line, messages| FunctionPlan { guest: 0, run, requester, ranges: range(base, bits), line, messages, table: None, chosen: false };
    let messages = MessagePlan {
        service: 3,
        redistributors: 4,
        redistributors_at: 0x080a_0000,
        frames: 8,
        doorbell: 0x0809_0040,
        cpus: [(1, 1), (2, 2)].into_iter().collect(),
        functions: [function(5, 0x10, 0x2000_0000, 20, 8192, 4), function(6, 0x18, 0x2010_0000, 14, 8196, 2)].into_iter().collect(),
    };
    assert_eq!(forward.messages, Some(messages));
    let explained = system.explain();
    for words in ["configure edu (00:02.0), net (00:03.0)", "edu reads and writes all of memory by itself", "redistributors at 0x80a0000"] {
        assert!(explained.contains(words), "{explained}");
    }
    // Its lines are edges.
    let cells = [0u32, 95, 1].map(u32::to_be_bytes).concat();
    assert!(system.guests()[0].placement.tree.windows(12).any(|window| window == cells));
}

#[test]
fn a_function_with_several_ranges_shows_its_guest_all_but_the_pages_with_its_table() {
    let text = std::fs::read_to_string("edu.toml").expect("the manifest");
    let text = text.replace("board = \"virt\"", "board = \"tests/files/functions-board.toml\"");
    let text = text + "[[guest.edu.device]]\ndevice = \"card\"\ndma = \"unprotected\"\n";
    let system = System::from_text(Path::new("edu.toml"), text, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
    let image = system.compose(&programs()).expect("an image");
    let found = header(&image);
    let runs: Vec<_> = found.devices[1..12].iter().map(|run| (run.base, run.bytes)).collect();
    let wide = 0x80_0000_0000;
    let shown = [(0x2000_0000, 0x10_0000), (0x2020_0000, 0x2_0000), (wide, PAGE), (wide + 2 * PAGE, PAGE), (wide + 4 * PAGE, 4 * PAGE)];
    let own = [(0x0808_0000, PAGE), (0x080a_0000, 8 * 0x2_0000), (0x40_1001_0000, PAGE), (0x40_1002_0000, PAGE), (wide + PAGE, PAGE)];
    assert_eq!(runs, [&shown[..], &own[..], &[(0, 0)]].concat());
    let plan = Part { offset: found.plan.base, bytes: found.plan.bytes };
    let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
    assert_eq!(plan.guests[0].devices[..], [1, 2, 3, 4, 5]);
    let maps: P2mConfig<'_> = postcard::from_bytes(config(&image, plan.servers[1].config)).expect("a configuration");
    let at = |page, pages| DevicePages { page, pages };
    assert_eq!(maps.devices[..], [at(0xb000, 256), at(0xb100, 32), at(0xb120, 1), at(0xb122, 1), at(0xb124, 4)], "with the gaps");
    let forward: IrqfwdConfig =
        postcard::from_bytes(config(&image, plan.servers.last().expect("servers").config)).expect("a configuration");
    let card = forward.messages.expect("functions").functions[1].clone();
    let ranges = [RangePlan { base: 0x2020_0000, register: 0, bits: 17 }, RangePlan { base: wide, register: 4, bits: 15 }];
    let place = |offset| TablePlace { register: 4, offset };
    let table = TablePlan { run: 10, entries: 8, at: place(0x1000), pending: place(0x3000) };
    assert_eq!((&card.ranges[..], card.run, card.table, card.messages), (&ranges[..], 9, Some(table), 3));
    let explained = system.explain();
    for words in ["32 page(s) at 0x20200000, seen at 0xb100000", "1 page(s) at 0x8000002000, seen at 0xb122000", "messages of card at 0x8000001000"] {
        assert!(explained.contains(words), "{explained}");
    }
    // Each of them in the tree, in order.
    let cells = [0xb10_0000u64, 0x2_0000, 0xb12_0000, PAGE, 0xb12_2000, PAGE, 0xb12_4000, 4 * PAGE].map(u64::to_be_bytes).concat();
    assert!(system.guests()[0].placement.tree.windows(cells.len()).any(|window| window == cells));
}

#[test]
fn devices_that_share_a_line_share_what_forwards_it() {
    let device = |name: &str, rest: &str| format!("[[guest.g.device]]\ndevice = \"{name}\"\n{rest}");
    let head = "name = \"test\"\nboard = \"tests/files/devices-board.toml\"\n[guest.g]\nkernel = \"hello\"\nmemory = \"16M\"\n";
    let direct = "forward = \"direct\"\n";
    for (rest, is_direct) in [(["", ""], false), ([direct, ""], false), (["", direct], false), ([direct, direct], true)] {
        let text = format!("{head}{}{}{}", device("high", ""), device("two", rest[0]), device("one", rest[1]));
        let system = System::from_text(Path::new("shared.toml"), text, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
        let image = system.compose(&programs()).expect("an image");
        let plan = Part { offset: header(&image).plan.base, bytes: header(&image).plan.bytes };
        let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
        let forward: IrqfwdConfig =
            postcard::from_bytes(config(&image, plan.servers.last().expect("servers").config)).expect("a configuration");
        let source = |line, guest_line, direct| SourcePlan { guest: 0, line, guest_line, edge: false, direct };
        assert_eq!(forward.sources[..], [source(153, 127, false), source(52, 52, is_direct)]);
        // Both nodes of the tree name it.
        let cells = [0u32, 20, 4].map(u32::to_be_bytes).concat();
        assert_eq!(system.guests()[0].placement.tree.windows(12).filter(|window| *window == cells).count(), 2);
    }
}

#[test]
fn a_guest_that_sees_functions_finds_them_on_a_bus_and_their_messages_in_a_frame() {
    let text = std::fs::read_to_string("edu.toml").expect("the manifest");
    let text = text.replace("board = \"virt\"", "board = \"tests/files/functions-board.toml\"");
    let text = text.replace("device = \"edu\"", "device = \"edu\"\nas = \"pci\"");
    let text = text + "[[guest.edu.device]]\ndevice = \"card\"\ndma = \"unprotected\"\nas = \"pci\"\n";
    let text = text + "[[guest.edu.device]]\ndevice = \"high\"\n";
    let system = System::from_text(Path::new("edu.toml"), text, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
    let image = system.compose(&programs()).expect("an image");
    let plan = Part { offset: header(&image).plan.base, bytes: header(&image).plan.bytes };
    let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
    let vcpu: VcpuConfig<'_> = postcard::from_bytes(config(&image, plan.servers[2].config)).expect("a configuration");
    let forward: IrqfwdConfig =
        postcard::from_bytes(config(&image, plan.servers.last().expect("servers").config)).expect("a configuration");
    let functions = forward.messages.expect("functions").functions;
    assert_eq!(functions.iter().map(|one| (one.chosen, one.table.is_some(), one.messages)).collect::<Vec<_>>(), [(false, false, 4), (true, true, 3)]);
    // Three follow each other for the table's messages, and the highest that are left are the others'.
    let lines: Vec<_> = forward.sources.iter().map(|source| u32::from(source.guest_line)).collect();
    assert_eq!(lines, [124, 123, 122, 121, 125, 126, 127, 120]);
    let range = |base, register, bits| RangePlan { base, register, bits };
    let edu = ShownFunction { run: functions[0].run, ranges: [range(0xb00_0000, 0, 20)].into_iter().collect(), wire: Some(124), ..ShownFunction::default() };
    let card = ShownFunction {
        run: functions[1].run,
        ranges: [range(0xb10_0000, 0, 17), range(0xb12_0000, 4, 15)].into_iter().collect(),
        table: functions[1].table,
        entries: 3,
        hidden: [0xb121, 0xb123].map(|page| DevicePages { page, pages: 1 }).into_iter().collect(),
        wire: None,
    };
    let bus = BusPlan { doorbell: 0x0809_0040, first_line: 125, lines: 3, functions: [edu, card].into_iter().collect() };
    assert_eq!(vcpu.bus, Some(bus));
    let tree = &system.guests()[0].placement.tree;
    let has = |bytes: &[u8]| tree.windows(bytes.len()).any(|window| window == bytes);
    let cells = |cells: &[u32]| cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<u8>>();
    for words in ["pcie@3f000000", "pci-host-ecam-generic", "v2m@8020000", "arm,gic-v2m-frame", "linux,pci-probe-only", "dma-coherent", "high@b"] {
        assert!(has(words.as_bytes()), "{words}");
    }
    assert!(!has(b"edu@") && !has(b"card@"), "they are on the bus");
    assert!(has(&cells(&[0, 0, 0, 1, 1, 0, 0, 0, 92, 1])), "device 0's wire is an edge of interrupt 124");
    assert!(has(&cells(&[0x0200_0000, 0, 0x0b00_0000, 0, 0x0b00_0000, 0, 0x0500_0000])));
    let explained = system.explain();
    let said = ["finds edu by its configuration, as a function of PCI: its first message is its wire", "read the configuration of card, and fill the table of its messages"];
    said.into_iter().for_each(|words| assert!(explained.contains(words), "{explained}"));
}

#[test]
fn a_device_behind_the_smmu_gets_a_space_of_its_guests_memory_unless_the_manifest_says_otherwise() {
    let text = std::fs::read_to_string("dma.toml").expect("the manifest");
    let text = text.replace("board = \"virt\"", "board = \"tests/files/smmu-functions-board.toml\"");
    let second = "\n[[guest.neighbour.device]]\ndevice = \"net\"\ndma = \"unprotected\"\n";
    let shared = System::from_text(Path::new("dma.toml"), text + second, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
    assert_eq!(shared.emulator_arguments()[..2], ["-machine", "iommu=smmuv3"]);
    let image = shared.compose(&programs()).expect("an image");
    let run = header(&image).devices[7];
    assert_eq!((run.base, run.bytes), (0x0905_0000, 0x2_0000), "behind all others");
    let plan = Part { offset: header(&image).plan.base, bytes: header(&image).plan.bytes };
    let plan: Plan<'_> = postcard::from_bytes(part(&image, plan)).expect("a plan");
    let names: Vec<_> = plan.servers.iter().skip(5).map(|server| (server.name, server.role, server.cpus.len())).collect();
    assert_eq!(names, [("irqfwd", Role::Irqfwd, 3), ("smmu", Role::Smmu, 1)]);
    let found: SmmuConfig = postcard::from_bytes(config(&image, plan.servers[6].config)).expect("a configuration");
    let stream = |number, guest, protected, line| StreamPlan { number, guest, protected, line };
    let expected = SmmuConfig {
        run: 7,
        lines: [106, 109],
        stream_bits: 6,
        pages: 9,
        spaces: [SpacePlan { guest: 0, first: 0x4_0000, pages: 4096, doorbell: Some(0x8090), tables: 4 }].into_iter().collect(),
        streams: [stream(0x10, 0, true, 15), stream(0x18, 1, false, 25)].into_iter().collect(),
    };
    assert_eq!(found, expected);
    let explained = shared.explain();
    for words in [
        "edu reads and writes this memory by itself, at the guest's addresses, and no other", "net reads and writes all of memory by itself",
        "may show edu (stream 0x10) guest dma's memory alone", "may show net (stream 0x18) all of memory, unprotected", "SMMU at 0x9050000",
    ] {
        assert!(explained.contains(words), "{words}\n{explained}");
    }
    // Where nobody needs it, nothing of it is there.
    let edu = system("edu.toml");
    assert!(!edu.has_smmu() && edu.emulator_arguments()[0] == "-device" && edu.servers().len() == 4);
}

/// Two guests, one of them watched by two monitors, of which one is a program of its own and watches both.
const WATCHED: &str = r#"
name = "watched"
board = "virt"
[guest.web]
kernel = "hello"
memory = "16M"
cpus = [1, 2, 1]
views = 3
[[guest.web.view]]
default = "rx"
[[guest.web.monitor]]
server = "own"
verdict-deadline = "50ms"
without-monitor = { memory = "stop" }
reads-memory = true
writes-memory = true
pauses = true
[[guest.web.monitor]]
server = "watchdog"
[guest.db]
kernel = "hello"
memory = "16M"
[guest.db.monitor]
server = "own"
without-monitor = { memory = "allow" }
[server.watchdog]
image = "monitor-standard"
[server.watchdog.config]
watch = [{ guest = "web", pages = "0x40800000..0x40802000", access = "rx", verdict = "stop", log = true }]
[server.own]
image = "OWN"
[server.own.config]
watch = [
    { guest = "db", pages = "0x40200000..0x40201000", access = "w", verdict = "deny" },
    { guest = "web", pages = "0x40200000..0x40201000", access = "w", verdict = "allow" },
]
events = [
    { guest = "db", on = "smc", verdict = "fault" },
    { guest = "web", on = "ttbr0", only-changes = true, ignore = "0xffff_0000_0000_0000", verdict = "allow", log = true },
]
"#;

#[test]
fn root_finds_monitors_through_plan_and_configurations() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(folder.join("own.elf"), program(6)).expect("a program in the folder for temporary files");
    let text = WATCHED.replace("OWN", &folder.join("own.elf").display().to_string());
    let system = System::from_text(Path::new("watched.toml"), text, &Shelf).unwrap_or_else(|report| panic!("{}", report.render(false)));
    let image = system.compose(&Programs { monitor: program(4 | 2), ..programs() }).expect("an image");
    let found = header(&image).plan;
    let plan: Plan<'_> = postcard::from_bytes(part(&image, Part { offset: found.base, bytes: found.bytes })).expect("a plan");
    let names: Vec<_> = plan.servers.iter().map(|server| (server.name, server.role)).skip(5).collect();
    assert_eq!(names, [("watchdog", Role::Monitor), ("own", Role::Monitor)]);
    assert_eq!((&plan.servers[5].cpus[..], &plan.servers[6].cpus[..]), (&[1, 2, 0][..], &[0, 1, 2, 0][..]));
    let watcher = |server, place, deadline_us, without, reads| WatcherPlan {
        server, place, deadline_us, without, reads, writes: reads, sets: false, pauses: reads,
    };
    let second = watcher(5, 0, 1_000_000, Without::Hold, false);
    assert_eq!(plan.guests[0].watchers[..], [watcher(6, 0, 50_000, Without::Stop, true), second]);
    assert_eq!(plan.guests[1].watchers[..], [watcher(6, 1, 1_000_000, Without::Allow, false)]);
    assert_eq!((plan.guests[0].views, plan.guests[1].views), (4, 2), "one more, to be watched in");

    let watched = |name, session, view, vcpus| WatchedPlan { name, session, view, vcpus, first_page: 0x4_0000, pages: 0x1000, gic: 3, reports: 0 };
    let rule = |guest, first, pages, access, verdict, log| RulePlan { guest, first, pages, access, verdict, log };
    let standard: MonitorConfig<'_> = postcard::from_bytes(config(&image, plan.servers[5].config)).expect("a configuration");
    assert_eq!(standard.guests[..], [watched("web", 1, 2, 3)]);
    assert_eq!(standard.rules[..], [rule(0, 0x40800, 2, 5, RuleVerdict::Stop, true)]);
    let own: MonitorConfig<'_> = postcard::from_bytes(config(&image, plan.servers[6].config)).expect("a configuration");
    assert_eq!(own.guests[..], [watched("web", 0, 2, 3), watched("db", 0, 1, 1)]);
    let event = |guest, kind, only_changes, ignored, verdict, log| EventPlan { guest, kind, only_changes, ignored, verdict, log };
    assert_eq!(own.events[..], [
        event(1, EventKind::Firmware, false, 0, RuleVerdict::Fault, false),
        event(0, EventKind::Tables0, true, 0xffff << 48, RuleVerdict::Allow, true),
    ]);
    let rules = [rule(1, 0x40200, 1, 2, RuleVerdict::Deny, false), rule(0, 0x40200, 1, 2, RuleVerdict::Allow, false)];
    assert_eq!(own.rules[..], rules);
    let queried = query(&image).expect("an image of ours");
    for part in ["program.monitor.0", "program.own.0", "config.watchdog", "config.own"] {
        assert!(queried.parts.iter().any(|known| known.name == part), "{part}");
    }

    let said = system.explain();
    for words in [
        "server own (rank 3) on CPUs 0, 1, 2",
        "watches guest web, in view 2 of its memory:\n    rule 2: 0x40200000..0x40201000 w: allowed\n",
        "rule 1: 0x40800000..0x40802000 rx: stops, and logged",
        "watched by own, in view 2: a verdict within 50ms; without it, the guest ends; it reads the guest's memory, writes the guest's memory, pauses it",
        "may write guest web's memory",
        "may stop and start guest web's vCPUs",
        "  events, rule 1: a call to firmware (SMC): an exception in the guest",
        "  events, rule 2: a write of TTBR0_EL1 that changes it, but for bits 0xffff000000000000: allowed, and logged",
        "watched by own, in view 1: a verdict within 1s; without it, the guest goes on unwatched",
        "may hand exits that watchdog watches on to it",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let picture = system.picture();
    for words in ["watches web, db", "2 rules", "watched by own, in view 2:", "0x40800000..0x40802000 rx"] {
        assert!(picture.contains(words), "{words}");
    }
    if let Ok(folder) = std::env::var("TRELLIS_PICTURES") {
        std::fs::write(format!("{folder}/watched.svg"), picture).expect("the picture is written");
        std::fs::write(format!("{folder}/watched.txt"), said).expect("the text is written");
    }
}

#[test]
fn an_image_says_what_it_consists_of() {
    let mut image = system("linux.toml").compose(&programs()).expect("an image");
    let queried = query(&image).expect("an image of ours");
    assert_eq!(queried.manifest, std::fs::read_to_string("linux.toml").expect("the manifest"));
    assert!(queried.parts.iter().all(|part| part.intact));
    let kernel = queried.parts.iter().find(|part| part.name == "guest.linux.kernel.0").expect("the guest's kernel");
    image[kernel.offset as usize] ^= 1;
    let damaged = query(&image).expect("still an image");
    let names: Vec<_> = damaged.parts.iter().filter(|part| !part.intact).map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["guest.linux.kernel.0"]);
    assert!(query(&image[..image.len() - 4096]).is_err());
    assert!(query(b"").is_err());
}

#[test]
fn unfit_programs_are_refused() {
    let system = system("hello.toml");
    let refused = |programs: &Programs| system.compose(programs).expect_err("unfit");
    assert_eq!(refused(&Programs { kernel: kernel(2, 0), ..programs() }), ComposeError::KernelVersion(2));
    assert_eq!(refused(&Programs { kernel: kernel(1, MAGIC), ..programs() }), ComposeError::KernelHasHeader(MAGIC));
    assert_eq!(refused(&Programs { kernel: vec![0; 64], ..programs() }), ComposeError::KernelNotAnImage);
    assert_eq!(refused(&Programs { vcpu: program(7), ..programs() }), ComposeError::WritableCode("vcpu", PROGRAM + 0x1010));
    assert!(matches!(refused(&Programs { p2m: program(4), ..programs() }), ComposeError::Program("p2m", _)));
    assert!(matches!(refused(&Programs { root: b"\x7fELF".to_vec(), ..programs() }), ComposeError::Program("root", _)));
    let mut long = kernel(1, 0);
    long[16..24].copy_from_slice(&100u64.to_le_bytes());
    assert_eq!(refused(&Programs { kernel: long, ..programs() }), ComposeError::KernelSize(100, 5000));
}

#[test]
fn the_examples_are_good_and_explained() {
    for path in ["hello.toml", "linux.toml", "u-boot.toml", "devices.toml", "devices-direct.toml", "monitor.toml"] {
        let system = system(path);
        let text = system.explain();
        for (name, _) in system.servers() {
            assert!(text.contains(name), "{name} in {text}");
            assert!(system.picture().contains(name));
        }
        if let Ok(folder) = std::env::var("TRELLIS_PICTURES") {
            std::fs::write(format!("{folder}/{path}.svg"), system.picture()).expect("the picture is written");
            std::fs::write(format!("{folder}/{path}.txt"), text).expect("the text is written");
            let tree = &system.guests()[0].placement.tree;
            std::fs::write(format!("{folder}/{path}.dtb"), tree).expect("the device tree is written");
        }
    }
    assert_eq!(Access::READ.with(Access::EXECUTE).0, 5);
}
