// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plan and each server's configuration, as root and the servers read them.

use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use trellis_idl::plan::{
    BusPlan, Channel, ConsoleConfig, DevicePages, FunctionPlan, GuestPlan, IrqfwdConfig, Load, MessagePlan, MonitorConfig, OnReset, P2mConfig,
    PagesPlan, Part, Plan, Populate, RangePlan, Role, Segment, ServerPlan, ShownFunction, SmmuConfig, SourcePlan, SpacePlan, StreamPlan, Sve,
    TablePlace, TablePlan, VERSION, VcpuConfig, ViewPlan,
};
use trellis_idl::wire::ViewAccess;

/// The first byte says which type the others are.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 7 {
        0 => {
            if let Some(plan) = decoded::<Plan<'_>>(bytes) {
                // Root starts from what passes; either word is an answer.
                let _ = trellis_root::check::check(&plan);
            }
        }
        1 => drop(decoded::<P2mConfig<'_>>(bytes)),
        2 => drop(decoded::<VcpuConfig<'_>>(bytes)),
        3 => drop(decoded::<ConsoleConfig<'_>>(bytes)),
        4 => drop(decoded::<MonitorConfig<'_>>(bytes)),
        5 => drop(decoded::<IrqfwdConfig>(bytes)),
        _ => drop(decoded::<SmmuConfig>(bytes)),
    }
}

/// What the bytes say; said again and read again it is the same.
pub fn decoded<'a, T: Serialize + Deserialize<'a> + PartialEq + Debug + Clone>(bytes: &'a [u8]) -> Option<T> {
    let value: T = postcard::from_bytes(bytes).ok()?;
    let again = postcard::to_stdvec(&value).expect("what was decoded encodes");
    // Lengths may be written longer than they need be, so the bytes may differ; encoding its own words changes nothing.
    let longest = bytes.len();
    assert!(again.len() <= longest, "{longest} bytes became {}", again.len());
    Some(value)
}

fn message(which: u8, value: &impl Serialize) -> Vec<u8> {
    [vec![which], postcard::to_stdvec(value).expect("it encodes")].concat()
}

/// A system with one guest, and each configuration.
pub fn seeds() -> Vec<Vec<u8>> {
    let part = Part { offset: 4096, bytes: 100 };
    let segment = Segment { part, address: trellis_idl::layout::PROGRAM, memory_bytes: 4096, access: 5 };
    let server = |name, role, cpus: &[u8]| ServerPlan {
        name,
        role,
        entry: trellis_idl::layout::PROGRAM,
        segments: [segment].into_iter().collect(),
        cpus: cpus.iter().copied().collect(),
        table_pages: 16,
        slots: 64,
        config: part,
        float: false,
        swap: None,
    };
    let servers =
        [server("console", Role::Console, &[0]), server("p2m.a", Role::P2m(0), &[0, 0]), server("vcpu.a", Role::Vcpu(0), &[0, 0])];
    let guest = GuestPlan {
        name: "a",
        memory_base: 0x4000_0000,
        memory_bytes: 2 << 20,
        cpus: [0].into_iter().collect(),
        priority: 100,
        budget: None,
        table_pages: 8,
        views: 2,
        inside: 3,
        essential: true,
        on_reset: OnReset::End,
        sve: Sve::Off,
        devices: Default::default(),
        watchers: Default::default(),
        p2m: 1,
        vcpu: 2,
        manifest_line: 3,
    };
    let plan = Plan {
        version: VERSION,
        name: "one",
        servers: servers.into_iter().collect(),
        guests: [guest].into_iter().collect(),
        manifest: part,
        uart_line: 33,
        trace: false,
        control: Default::default(),
    };
    assert_eq!(trellis_root::check::check(&plan), Ok(()), "the seed is a good plan");
    let watched = PagesPlan { first: 0x4_0000, pages: 2, access: ViewAccess(1), notify: true, shows: Some(0x4_0100) };
    let view = ViewPlan { default: ViewAccess::ALL, shown: true, pages: [watched].into_iter().collect() };
    let p2m = P2mConfig {
        guest: "a",
        first_page: 0x4_0000,
        pages: 512,
        populate: Populate::Lazy,
        vcpus: 1,
        gicv_page: Some(0x8010),
        watchers: 0,
        views: 2,
        view: [view].into_iter().collect(),
        devices: Default::default(),
    };
    let place = |offset| TablePlace { register: 1, offset };
    let function = ShownFunction {
        run: 5,
        ranges: [RangePlan { base: 0xb00_0000, register: 1, bits: 12 }].into_iter().collect(),
        table: Some(TablePlan { run: 6, entries: 4, at: place(0), pending: place(0x800) }),
        entries: 4,
        hidden: [DevicePages { page: 0xb000, pages: 1 }].into_iter().collect(),
        wire: None,
    };
    let vcpu = VcpuConfig {
        watchers: 0,
        guest: "a",
        vcpus: 1,
        memory_base: 0x4000_0000,
        memory_bytes: 2 << 20,
        loads: [Load { part, address: 0x4000_0000 }].into_iter().collect(),
        entry: 0x4000_0000,
        x0: 0x4010_0000,
        gic: 3,
        aarch32: false,
        bus: Some(BusPlan { doorbell: 0x809_0040, first_line: 124, lines: 4, functions: [function.clone()].into_iter().collect() }),
    };
    let channel = Channel { name: "a", is_guest: true };
    let console = ConsoleConfig { channels: [channel; 3].into_iter().collect(), uart: true, monitors: 0 };
    let own = FunctionPlan {
        guest: 0, run: 5, requester: 0x28, ranges: function.ranges, line: 8192, messages: 4, table: function.table, chosen: true,
    };
    let messages = MessagePlan {
        service: 2,
        redistributors: 3,
        redistributors_at: 0x80a_0000,
        frames: 8,
        doorbell: 0x809_0040,
        cpus: [(0, 0)].into_iter().collect(),
        functions: [own].into_iter().collect(),
    };
    let source = SourcePlan { guest: 0, line: 8192, guest_line: 124, edge: true, direct: false };
    let irqfwd = IrqfwdConfig {
        guests: [[0].into_iter().collect()].into_iter().collect(), sources: [source].into_iter().collect(), messages: Some(messages),
    };
    let smmu = SmmuConfig {
        run: 7,
        lines: [106, 109],
        stream_bits: 6,
        pages: 9,
        spaces: [SpacePlan { guest: 0, first: 0x4_0000, pages: 512, doorbell: Some(0x8090), tables: 4 }].into_iter().collect(),
        streams: [StreamPlan { number: 0x28, guest: 0, protected: true, line: 7 }].into_iter().collect(),
    };
    vec![message(0, &plan), message(1, &p2m), message(2, &vcpu), message(3, &console), message(5, &irqfwd), message(6, &smmu)]
}
