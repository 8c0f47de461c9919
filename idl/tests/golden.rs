// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wire does not change by accident: the bytes of one message of each kind, and the hash of each interface.

use heapless::{String, Vec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use trellis_idl::interface::{HOST, IRQFWD, Interface, MONITOR, P2M, VCPU};
use trellis_idl::plan::{Budget, MonitorConfig, OnReset, Populate, RulePlan, RuleVerdict, WatchedPlan};
use trellis_idl::trace::{Record, TraceKind, Who};
use trellis_idl::wire::{Crash, Fault, GuestEnd, IrqfwdOp, MonitorOp, MonitorState, P2mOp, PageRange, PageRanges, Report, ToRoot, VcpuOp};

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
    is(&[RuleVerdict::Allow, RuleVerdict::Deny, RuleVerdict::Stop], "000102");
    is(&Budget { time_us: 4_000, period_us: 10_000 }, "a01f904e");
}

#[test]
fn a_monitors_configuration_keeps_its_bytes() {
    let guest = WatchedPlan { name: "web", session: 0, view: 1, vcpus: 2 };
    let rule = RulePlan { guest: 0, first: 0x4_0200, pages: 1, access: 2, verdict: RuleVerdict::Deny, log: true };
    let config = MonitorConfig {
        guests: Vec::from_slice(&[guest]).expect("one fits"),
        rules: Vec::from_slice(&[rule]).expect("one fits"),
        hands_over: true,
    };
    let mut buffer = [0; 64];
    let bytes = postcard::to_slice(&config, &mut buffer).expect("it fits");
    let hex: std::string::String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "010377656200010201008084100102010101");
    assert_eq!(postcard::from_bytes(bytes), Ok(config));
}

#[test]
fn operations_keep_their_numbers() {
    for (number, op) in [(1, VcpuOp::Start), (2, VcpuOp::Reset), (3, VcpuOp::Complete)] {
        assert_eq!((VcpuOp::from_number(number), op as u64), (Some(op), number));
    }
    let p2m = [P2mOp::Ready, P2mOp::Populate, P2mOp::Reset, P2mOp::Protect, P2mOp::Blank, P2mOp::PopulateAll];
    for (number, op) in (1..).zip(p2m) {
        assert_eq!((P2mOp::from_number(number), op as u64), (Some(op), number));
    }
    for (number, op) in (1..).zip([IrqfwdOp::Bind, IrqfwdOp::Unbind, IrqfwdOp::Count]) {
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
    assert_eq!(MonitorOp::from_number(0), None, "0 is ATTACH");
}

/// Who changes a type that crosses changes a hash here, on purpose; who changes what one means counts its version up.
#[test]
fn interfaces_keep_their_schema() {
    let golden = [
        (P2M, Interface { number: 1, version: 1, schema: 0x0135_024b_772c_d1a9 }),
        (VCPU, Interface { number: 2, version: 1, schema: 0x750d_24e8_e0c6_acd9 }),
        (IRQFWD, Interface { number: 4, version: 1, schema: 0x3cba_fe64_b8e1_482e }),
        (MONITOR, Interface { number: 5, version: 1, schema: 0xdc33_40e9_c202_3588 }),
        (HOST, Interface { number: 3, version: 1, schema: 0x69dc_5bdc_224c_0b85 }),
    ];
    for (now, then) in golden {
        assert_eq!(now, then, "{:#x}", now.schema);
    }
}
