// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wire does not change by accident: the bytes of one message of each kind, and the hash of each interface.

use heapless::{String, Vec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use trellis_idl::control::{
    EventState, Handed, Offer, Piece, Proof, Replaced, Step, Unfit,
    Answer, Ask, Control, Ended, FromHost, GuestLoad, GuestState, Head, Life, Load, Name, Part, Refused, ServerState, Silicon,
    RuleState, SourceState, SystemState, VcpuState, ViewState, Watch, WatchWhat,
};
use trellis_idl::event::EventKind;
use trellis_idl::interface::{CONTROL, HOST, IRQFWD, Interface, MONITOR, P2M, SMMU, VCPU};
use trellis_idl::plan::{Budget, EventPlan, MonitorConfig, OnReset, Populate, Rule, RulePlan, RuleVerdict, WatchedPlan};
use trellis_idl::trace::{Record, TraceKind, Who};
use trellis_idl::wire::{AddedRule, Crash, Fault, GuestEnd, IrqfwdOp, KnownRule, MAX_PAYLOAD, MonitorOp, MonitorState, P2mOp, PageRange, PageRanges, Report, Seen, SmmuOp, Stopped, ToRoot, VcpuOp};

fn is<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, golden: &str) {
    let mut buffer = [0; 1024];
    let bytes = postcard::to_slice(value, &mut buffer).expect("it fits");
    let hex: std::string::String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "{value:?}");
    assert_eq!(postcard::from_bytes::<T>(bytes).as_ref(), Ok(value));
}

fn crash() -> Crash {
    Crash {
        vcpu: 1,
        class: 0,
        syndrome: 0x9300_0047,
        physical: 0x900_0000,
        virtual_address: 0xffff_8000_0000_1000,
        pc: 0x4008_0124,
        pstate: 0x3c5,
        general: Vec::from_slice(&[0, 1, 300]).expect("three fit"),
    }
}

fn fault() -> Fault {
    Fault { syndrome: 0x9200_0006, address: 8, pc: 0x20_0000, sp: 0x2001_0000, general: Vec::from_slice(&[7]).expect("one") }
}

fn records() -> Vec<Record, 12> {
    let who = Who::Vcpu { guest: 1, number: 2 };
    Vec::from_slice(&[
        Record { what: TraceKind::Exit.with(0x5a00_0000), argument: 0x4008_0000, time: 1_000, who },
        Record { what: TraceKind::Idle.with(0), argument: 0, time: 1_001, who: Who::Nobody },
    ])
    .expect("two fit")
}

fn ranges() -> PageRanges {
    Vec::from_slice(&[PageRange { first: 0x4_0000, pages: 512 }]).expect("one fits")
}

#[test]
fn messages_keep_their_bytes() {
    is(&Report::Started { boot_ticks: 73_495, clock_hz: 1_000_000_000, kernel_memory: 487_424, version: 2, schema: 0x1234 }, "0097be048094ebdc0380e01d02b424");
    is(&Report::GuestEnded { guest: 1, end: GuestEnd::Off }, "010100");
    is(&Report::GuestEnded { guest: 0, end: GuestEnd::Status(7) }, "01000207");
    is(&Report::GuestEnded { guest: 0, end: GuestEnd::Crash(crash()) }, "0100030100c7808098098080804880a080808080e0ffff01a482a08004c507030001ac02");
    is(&Report::GuestRebooted { guest: 0, times: 200 }, "0200c801");
    is(&Report::ServerFaulted { server: 3, record: fault() }, "03038680809009088080800180808480020107");
    is(&Report::Off { well: true }, "0401");
    is(&Report::ServerLate { server: 2, exit: Some((0, 3)) }, "0502010003");
    is(&Report::Trace { cpu: 1, is_gap: true, records: records() }, "06010102808080d0058080a08004e80702010280808080808080800400e90700");
    is(&Report::Last { cpu: 0, records: records() }, "070002808080d0058080a08004e80702010280808080808080800400e90700");
    let stopped = Stopped { guest: 1, line: 15, address: 0x4400_0000, event: 0x10, writes: true, more: 300 };
    is(&Report::DeviceStopped(stopped), "08010f808080a0041001ac02");
    is(&ToRoot::DeviceStopped(stopped), "05010f808080a0041001ac02");
    is(&ToRoot::Ended(GuestEnd::Reset), "0001");
    is(&ToRoot::Ended(GuestEnd::Server(2)), "000402");
    is(&ToRoot::Reset, "01");
    is(&ToRoot::Ready, "02");
    is(&ToRoot::Failed(String::try_from("no memory").expect("short")), "03096e6f206d656d6f7279");
    is(&ToRoot::Stop(1), "0401");
    is(&ToRoot::Ended(GuestEnd::Stopped(5)), "000605");
    is(&ranges(), "018080108004");
    is(&[Populate::Eager, Populate::Lazy], "0001");
    is(&[OnReset::Reboot, OnReset::End], "0001");
    is(&MonitorState { version: 1, body: Vec::from_slice(&[1, 2, 200]).expect("three fit") }, "01030102c8");
    is(&[RuleVerdict::Allow, RuleVerdict::Deny, RuleVerdict::Stop, RuleVerdict::Fault], "00010203");
    is(&Budget { time_us: 4_000, period_us: 10_000 }, "a01f904e");
}

fn name(text: &str) -> Name {
    Name::try_from(text).expect("a short name")
}

/// Questions, and what console makes of them.
#[test]
fn questions_keep_their_bytes() {
    is(&Head { version: 1, number: 300 }, "01ac02");
    is(&Ask::Status, "00");
    is(&Ask::Pause(name("web")), "0103776562");
    is(&Ask::Resume(name("web")), "0203776562");
    is(&Ask::Reboot(name("web")), "0303776562");
    is(&Ask::Views(name("web")), "0403776562");
    is(&Ask::Load(1_000), "05e807");
    is(&Ask::Kill(name("web")), "0603776562");
    let offer = Offer { monitor: name("m"), bytes: 300, digest: [0x11; 32], proof: None, is_fresh: true };
    is(&Ask::Upload(offer.clone()), &format!("07016dac02{}0001", "11".repeat(32)));
    let proof = Some(Proof { counter: 5, signature: [[0x22; 32], [0x33; 32]] });
    let signed = Ask::Upload(Offer { proof, is_fresh: false, ..offer });
    is(&signed, &format!("07016dac02{}0105{}{}00", "11".repeat(32), "22".repeat(32), "33".repeat(32)));
    is(&Ask::Piece(Piece { offset: 300, bytes: [7, 8].into_iter().collect() }), "08ac02020708");
    is(&Ask::Swap(name("web")), "0903776562");
    is(&Ask::Events(300), "0aac02");
    let pages = Rule::Pages(RulePlan { guest: 0, first: 0x4_0200, pages: 1, access: 2, verdict: RuleVerdict::Deny, log: true });
    let event = Rule::Event(EventPlan { guest: 0, kind: EventKind::Stop, only_changes: false, ignored: 0, verdict: RuleVerdict::Report, log: false });
    let watch = |what| Ask::Watch(Watch { guest: name("web"), monitor: name(""), what });
    is(&watch(WatchWhat::List), "0b037765620000");
    is(&watch(WatchWhat::Add(pages)), "0b037765620001000080841001020101");
    is(&watch(WatchWhat::Add(event)), "0b03776562000101000e00000400");
    is(&watch(WatchWhat::Remove(101)), "0b03776562000265");
    let known = KnownRule { number: 101, is_added: true, rule: event, counts: [300, 1, 2, 3, 4] };
    is(&RuleState { server: 3, known }, "03650101000e00000400ac0201020304");
    is(&AddedRule { rule: event, number: 0, applies: true }, "01000e000004000001");
    is(&FromHost::Asked(7, Ask::Status), "000700");
    is(&FromHost::Foreign(7), "0107");
    is(&FromHost::Meaningless(7), "0207");
}

fn answer(part: Part) -> Answer {
    Answer { head: Head { version: 1, number: 5 }, part }
}

#[test]
fn answers_keep_their_bytes() {
    is(&answer(Part::Done), "010500");
    let refusals = [
        Refused::Off, Refused::ObserveOnly, Refused::Version, Refused::NotUnderstood, Refused::NoGuest, Refused::Ended,
        Refused::Kernel(3), Refused::Server,
    ];
    is(&refusals, "000102030405060307");
    is(&[Refused::NoSwap, Refused::TooLarge(5), Refused::CutOff(6), Refused::Digest, Refused::Signature], "0c0d050e060f10");
    is(&[Refused::Older(7), Refused::Unfit(Unfit::Entry), Refused::Fails(Step::Watch), Refused::Interface, Refused::State(3)], "110712061303141503");
    is(&[Refused::NoMonitor, Refused::NothingWatched, Refused::GivenUp, Refused::Lost], "08090a0b");
    is(&[Refused::StillPaused], "16");
    let rules = [
        Refused::Unwatched, Refused::NotItsMonitor, Refused::WhichMonitor, Refused::NoRules, Refused::Senseless, Refused::Elsewhere, Refused::Overlaps,
        Refused::RulesFull, Refused::NoRule, Refused::Manifests,
    ];
    is(&rules, "1718191a1b1c1d1e1f20");
    is(&answer(Part::Refused(Refused::Ended)), "01050105");
    let system = SystemState {
        name: name("box"), control: Control::Full, up: 200, clock_hz: 62_500_000, cpus: 2, kernel_bytes: 4096, free_bytes: 0,
    };
    is(&answer(Part::System(system)), "01050203626f7802c801a0d9e61d02802000");
    let vcpus = Vec::from_slice(&[VcpuState { cpu: 1, is_on: true, view: 3 }]).expect("one fits");
    let guest = GuestState {
        guest: 1, name: name("web"), life: Life::Ended(Ended::Status(9)), reboots: 2, memory_bytes: 1 << 20, views: [8, 2],
        tables: [30, 12], stopped: 5, vcpus,
    };
    is(&answer(Part::Guest(guest)), "01050301037765620202090280804008021e0c0501010103");
    let server = ServerState { server: 2, name: name("p2m.a"), rank: 1, has_stopped: false, threads: 3, memory_bytes: 8192 };
    is(&answer(Part::Server(server)), "010504020570326d2e610100038040");
    let silicon = Silicon { midr: 0x41, features: 0x20, predictors: 0, memory_model: 2, list_registers: 4, vectors: 0 };
    is(&answer(Part::Silicon(silicon)), "010505412000020400");
    is(&answer(Part::View(ViewState { view: 2, default: 0x102, vcpus: 1 })), "01050602820201");
    let guests = Vec::from_slice(&[GuestLoad { guest: 1, ticks: 20, exits: 3 }]).expect("one fits");
    let replaced = Replaced { server: 3, guests: 1, owed: 2, ticks: 300, clock_hz: 100, state: Handed::Taken(200) };
    is(&answer(Part::Replaced(replaced)), "010508030102ac026402c801");
    let source = SourceState {
        guest: 1, line: 300, guest_line: 127, is_direct: true, passed: 9, straight: 200, waited: 1, storms: 2, moved: 3,
        delays: [4, 5, 0, 0, 0, 0, 0, 0, 0],
    };
    is(&answer(Part::Source(source)), "01050901ac027f0109c801010203040500000000000000");
    let seen = Seen { place: 1, vcpu: 2, rule: 3, verdict: 1, number: 300, lost: 4, header: 5, physical: 6, pc: 7, time: 8 };
    is(&seen, "01020301ac020405060708");
    is(&answer(Part::Event(EventState { sequence: 9, server: 3, guest: 0, seen })), "01050a09030001020301ac020405060708");
    is(&answer(Part::Until(10, 100)), "01050b0a64");
    is(&[Handed::Lost, Handed::NotWanted, Handed::NotGiven(4)], "00010304");
    is(&answer(Part::Load(Load { cpu: 0, ticks: 100, idle: 40, interrupts: 2, guests })), "0105070064280201011403");
}

/// Every part of an answer fits a frame, however long its numbers are.
#[test]
fn the_longest_answers_fit_a_frame() {
    let name = Name::try_from("x".repeat(32).as_str()).expect("32 bytes");
    let vcpus = std::iter::repeat_n(VcpuState { cpu: 255, is_on: true, view: u16::MAX }, 8).collect();
    let guests = std::iter::repeat_n(GuestLoad { guest: 255, ticks: u64::MAX, exits: u32::MAX }, 16).collect();
    let all = u64::MAX;
    let parts = [
        Part::System(SystemState { name: name.clone(), control: Control::Full, up: all, clock_hz: all, cpus: 255, kernel_bytes: all, free_bytes: all }),
        Part::Guest(GuestState {
            guest: 255, name: name.clone(), life: Life::Ended(Ended::Status(all)), reboots: u32::MAX, memory_bytes: all,
            views: [u16::MAX; 2], tables: [u32::MAX; 2], stopped: all, vcpus,
        }),
        Part::Server(ServerState { server: 255, name, rank: 255, has_stopped: true, threads: 255, memory_bytes: all }),
        Part::Silicon(Silicon { midr: all, features: all, predictors: all, memory_model: all, list_registers: 255, vectors: u16::MAX }),
        Part::Source(SourceState {
            guest: 255, line: u16::MAX, guest_line: 255, is_direct: true, passed: all, straight: all, waited: all, storms: all,
            moved: all, delays: [all; 9],
        }),
        Part::Load(Load { cpu: 255, ticks: all, idle: all, interrupts: u32::MAX, guests }),
    ];
    for part in parts {
        let whole = Answer { head: Head { version: u16::MAX, number: u32::MAX }, part };
        let bytes = postcard::to_slice(&whole, &mut [0; 1024]).expect("it encodes").len();
        assert!(bytes <= MAX_PAYLOAD, "{bytes} bytes: {whole:?}");
    }
}

#[test]
fn a_monitors_configuration_keeps_its_bytes() {
    let guest = WatchedPlan { name: "web", session: 0, view: 1, vcpus: 2, first_page: 0x4_0000, pages: 512, gic: 3, reports: 300 };
    let rule = RulePlan { guest: 0, first: 0x4_0200, pages: 1, access: 2, verdict: RuleVerdict::Deny, log: true };
    let event =
        EventPlan { guest: 0, kind: EventKind::Tables0, only_changes: true, ignored: 1, verdict: RuleVerdict::Allow, log: false };
    let config = MonitorConfig {
        guests: Vec::from_slice(&[guest]).expect("one fits"),
        rules: Vec::from_slice(&[rule]).expect("one fits"),
        events: Vec::from_slice(&[event]).expect("one fits"),
        hands_over: true,
        threads: 3,
    };
    let mut buffer = [0; 64];
    let bytes = postcard::to_slice(&config, &mut buffer).expect("it fits");
    let hex: std::string::String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "0103776562000102808010800403ac02010080841001020101010001010100000103");
    assert_eq!(postcard::from_bytes(bytes), Ok(config));
}

#[test]
fn operations_keep_their_numbers() {
    for (number, op) in [(1, VcpuOp::Start), (2, VcpuOp::Reset), (3, VcpuOp::Complete), (4, VcpuOp::Power), (5, VcpuOp::Listen)] {
        assert_eq!((VcpuOp::from_number(number), op as u64), (Some(op), number));
    }
    let p2m = [P2mOp::Ready, P2mOp::Populate, P2mOp::Reset, P2mOp::Protect, P2mOp::Blank, P2mOp::PopulateAll];
    for (number, op) in (1..).zip(p2m) {
        assert_eq!((P2mOp::from_number(number), op as u64), (Some(op), number));
    }
    for (number, op) in (1..).zip([IrqfwdOp::Bind, IrqfwdOp::Unbind, IrqfwdOp::Count, IrqfwdOp::Moved, IrqfwdOp::Delays]) {
        assert_eq!((IrqfwdOp::from_number(number), op as u64), (Some(op), number));
    }
    let monitor = [MonitorOp::Begin, MonitorOp::Adopt, MonitorOp::Export, MonitorOp::Import, MonitorOp::Count];
    for (number, op) in (1..).zip(monitor) {
        assert_eq!((MonitorOp::from_number(number), op as u64), (Some(op), number));
    }
    for (number, op) in (48..).zip([P2mOp::WatchJoin, P2mOp::Watch, P2mOp::WatchEnter, P2mOp::WatchLeave]) {
        assert_eq!((P2mOp::from_number(number), op as u64), (Some(op), number));
    }
    assert_eq!((VcpuOp::from_number(0), P2mOp::from_number(0), IrqfwdOp::from_number(0)), (None, None, None), "0 is ATTACH");
    for (number, op) in (1..).zip([SmmuOp::Attach, SmmuOp::Detach]) {
        assert_eq!((SmmuOp::from_number(number), op as u64), (Some(op), number));
    }
    for (number, op) in (8..).zip([IrqfwdOp::Disconnect, IrqfwdOp::Connect]) {
        assert_eq!((IrqfwdOp::from_number(number), op as u64), (Some(op), number));
    }
    assert_eq!((MonitorOp::from_number(0), SmmuOp::from_number(0)), (None, None), "0 is ATTACH");
}

/// Who changes a type that crosses changes a hash here, on purpose; who changes what one means counts its version up.
#[test]
fn interfaces_keep_their_schema() {
    let golden = [
        (P2M, Interface { number: 1, version: 1, schema: 0xe07d_1a29_9ade_71fd }),
        (VCPU, Interface { number: 2, version: 1, schema: 0x3067_bbb0_4a74_8489 }),
        (IRQFWD, Interface { number: 4, version: 1, schema: 0x2086_1834_d911_3b13 }),
        (SMMU, Interface { number: 6, version: 1, schema: 0x7c40_a98e_ddec_1472 }),
        (MONITOR, Interface { number: 5, version: 1, schema: 0xc1b8_1220_923d_0adf }),
        (CONTROL, Interface { number: 8, version: 1, schema: 0xffba_3369_afe8_432b }),
        (HOST, Interface { number: 3, version: 1, schema: 0x432a_c7e2_8c63_4581 }),
    ];
    for (now, then) in golden {
        assert_eq!(now, then, "{:#x}", now.schema);
    }
}
