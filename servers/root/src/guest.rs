// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a guest: its memory, its vCPUs, which server each exit goes to, and what its two servers may do to it.

use crate::build::Built;
use crate::messages;
use crate::supply::Supply;
use crate::{StartError, Step};
use heapless::Vec;
use trellis_idl::kernel::{Access, ExitClass, Fact, Groups, Inside, PAGE, Rights};
use trellis_idl::layout::{PAYLOAD, badge, bus, badge::pauser, platform, root_slot, slot, vcpu_signal};
use trellis_idl::plan::{GuestPlan, MAX_VCPUS, Sve, VcpuConfig};
use trellis_idl::wire::GuestEnd;
use trellis_runtime::handle::{GuestShape, VcpuSetup, budget};
use trellis_runtime::{Frames, Guest, Machine, Portal, Signal, System, Vcpu};

/// Highest priority of a vCPU: root must be able to run.
pub const MAX_PRIORITY: u8 = 200;
/// Pages of a 2 MiB and of a 1 GiB block.
const BLOCK: u64 = 512;
const GIANT: u64 = BLOCK * BLOCK;

/// What p2m may map everything with, also what it maps with less: which leaf came with which right the kernel does not know, so
/// a guest's views get no access that one of its frames does not allow.
const READ_WRITE_EXECUTE: Rights = Rights::READ.with(Rights::WRITE).with(Rights::EXECUTE);

/// A guest that exists.
#[derive(Clone, Debug)]
pub struct Made {
    /// The guest itself.
    pub guest: Guest,
    /// Its memory; p2m has it too.
    pub memory: Frames,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu, MAX_VCPUS>,
    /// Root's way to its p2m server.
    pub p2m: Portal,
    /// Root's way to its vcpu server.
    pub vcpu: Portal,
    /// Wakes its vcpu server's attending thread; console gets it.
    pub input: Signal,
}

/// What each class of exits is sent with; memory faults go to p2m, all others to vcpu.
fn groups(class: ExitClass) -> Groups {
    match class {
        ExitClass::Memory => Groups::PC,
        ExitClass::Device | ExitClass::Register => Groups::PC.with(Groups::VALUE),
        _ => Groups::PC.with(Groups::GENERAL),
    }
}

/// Lanes of a guest's scalable vectors on this machine, or why it cannot be started: a length that hardware would
/// round down is none.
pub fn lanes(wish: Sve, lengths: u16) -> Result<u8, GuestEnd> {
    let most = (u16::BITS - lengths.leading_zeros()) as u8;
    match wish {
        Sve::Off => Ok(0),
        Sve::Most if most != 0 => Ok(most),
        Sve::Most => Err(GuestEnd::Vectors { wanted: 0, lengths }),
        Sve::Lanes(wanted @ 1..=16) if lengths >> (wanted - 1) & 1 == 1 => Ok(wanted),
        Sve::Lanes(wanted) => Err(GuestEnd::Vectors { wanted, lengths }),
    }
}

/// Lengths of vectors that all CPUs of this machine have.
pub fn lengths(system: &impl System) -> u16 {
    Machine::at(root_slot::SYSTEM).fact(system, Fact::VectorLengths, 0).unwrap_or(0) as u16
}

/// Makes a guest beside its two servers, which do not run yet.
pub fn make(
    system: &impl System, supply: &mut Supply, plan: &GuestPlan<'_>, config: &VcpuConfig<'_>, lanes: u8, p2m: &Built, vcpu: &Built,
) -> Result<Made, StartError> {
    let tables = supply.take(system, plan.table_pages.into())?;
    let slot = supply.slot();
    let shape = GuestShape {
        views: plan.views, inside: Inside(plan.inside.into()), lanes, vcpus: plan.cpus.len() as u64,
    };
    let guest = Guest::create(system, tables, slot, shape).step("make a guest")?;
    if config.gic == 2 {
        // The second device of a board with GICv2 is the virtual CPU interface.
        let interface = Frames::at(root_slot::DEVICES + 1);
        interface.grant(system, p2m.domain, slot::MEMORY + 1, READ_WRITE_EXECUTE).step("grant the interrupt interface")?;
    }
    let pages = plan.memory_bytes / PAGE;
    let memory = supply.take_aligned(system, pages, if pages >= GIANT { GIANT } else { BLOCK })?;
    guest.grant(system, p2m.domain, slot::GUEST, Rights::EDIT.with(Rights::EXECUTE)).step("grant a guest")?;
    grant_memory(system, memory, p2m)?;
    let blank = supply.take(system, 1)?;
    blank.grant(system, p2m.domain, slot::BLANK, READ_WRITE_EXECUTE).step("grant a blank page")?;
    let access = Rights::READ.with(Rights::WRITE).with(Rights::LINES);
    guest.grant(system, vcpu.domain, slot::GUEST, access).step("grant a guest")?;

    let mut vcpus = Vec::new();
    for (index, cpu) in (0u8..).zip(&plan.cpus) {
        let setup = VcpuSetup { cpu: *cpu, number: index, priority: plan.priority.min(MAX_PRIORITY), budget: time(plan) };
        let slot = supply.slot();
        let one = Vcpu::create(system, guest, setup, slot).step("make a vCPU")?;
        let rights = READ_WRITE_EXECUTE.with(Rights::LINES);
        one.grant_badged(system, vcpu.domain, slot::VCPU + u64::from(index), rights, pauser::VCPU_SERVER).step("grant a vCPU")?;
        exits(system, supply, one, index, config, plan, p2m, vcpu)?;
        vcpus.push(one).map_err(|_| StartError::Plan("too many vCPUs"))?;
    }
    calls(system, supply, p2m, vcpu)?;
    let attending = vcpu.threads.last().ok_or(StartError::Plan("no attending thread"))?;
    let input = attending.signal(system, vcpu_signal::INPUT, supply.slot()).step("make a signal")?;
    input.grant(system, vcpu.domain, slot::SELF, Rights::USE).step("grant a signal")?;
    let control = plan.cpus.len();
    Ok(Made {
        guest,
        memory,
        vcpus,
        p2m: portal(system, supply, p2m, control, badge::ROOT)?,
        vcpu: portal(system, supply, vcpu, control, badge::ROOT)?,
        input,
    })
}

/// Gives p2m the guest's memory, also again after it was reclaimed.
pub fn grant_memory(system: &impl System, memory: Frames, p2m: &Built) -> Result<(), StartError> {
    memory.grant(system, p2m.domain, slot::MEMORY, READ_WRITE_EXECUTE).step("grant memory")
}

/// Gives p2m the pages of the guest's own devices.
pub fn devices(system: &impl System, plan: &GuestPlan<'_>, p2m: &Built) -> Result<(), StartError> {
    for (slot, device) in (slot::DEVICE..).zip(&plan.devices) {
        let run = Frames::at(root_slot::DEVICES + u64::from(*device));
        run.grant(system, p2m.domain, slot, READ_WRITE_EXECUTE).step("grant a device")?;
    }
    Ok(())
}

/// Time of a guest's vCPU, and of the thread that attends to it.
pub fn time(plan: &GuestPlan<'_>) -> u64 {
    plan.budget.map_or(0, |share| budget(share.time_us, share.period_us))
}

/// A portal into a thread of a server, in root's table.
fn portal(
    system: &impl System, supply: &mut Supply, server: &Built, thread: usize, badge: u64,
) -> Result<Portal, StartError> {
    let thread = server.threads.get(thread).ok_or(StartError::Plan("too few threads"))?;
    thread.portal(system, badge, supply.slot()).step("make a portal")
}

/// Where a vCPU's exits go, and p2m's way to hand one on.
#[allow(clippy::too_many_arguments, reason = "everything that two servers and a vCPU have to do with each other")]
fn exits(
    system: &impl System, supply: &mut Supply, one: Vcpu, index: u8, config: &VcpuConfig<'_>, plan: &GuestPlan<'_>, p2m: &Built,
    vcpu: &Built,
) -> Result<(), StartError> {
    let badge = badge::EXIT | u64::from(index);
    let faults = portal(system, supply, p2m, index.into(), badge)?;
    let others = portal(system, supply, vcpu, index.into(), badge)?;
    others
        .grant(system, p2m.domain, slot::VCPU_SERVER + u64::from(index), Rights::USE)
        .step("grant a portal")?;
    for class in ExitClass::ALL {
        let portal = if class == ExitClass::Memory { faults } else { others };
        one.route(system, class, portal, groups(class), badge).step("route exits")?;
    }
    let own = platform::windows(config.gic, plan.cpus.len() as u64);
    for (number, (page, pages)) in (0u8..).zip(own.into_iter().chain(bus_windows(config))) {
        one.window(system, number, page, pages, ExitClass::Device).step("make a window")?;
    }
    Ok(())
}

/// Windows on what the guest sees of functions of PCI.
fn bus_windows(config: &VcpuConfig<'_>) -> impl Iterator<Item = (u64, u64)> {
    let bus = config.bus.iter();
    bus.flat_map(|bus| platform::BUS_WINDOWS.into_iter().chain(bus.functions.iter().flat_map(|one| &one.hidden).map(|run| (run.page, run.pages))))
}

/// Gives a vcpu server the pages of functions that the guest sees: of the configuration to read it, of the table of messages to fill it.
pub fn functions(system: &impl System, config: &VcpuConfig<'_>, vcpu: &Built) -> Result<(), StartError> {
    for (place, one) in config.bus.iter().flat_map(|bus| bus.functions.iter().enumerate()) {
        messages::map_as(system, vcpu.domain, bus::configuration(place), (one.run, 0), Access::READ)?;
        if let Some(table) = one.table {
            messages::map(system, vcpu.domain, bus::table(place), table.run, 0)?;
        }
    }
    Ok(())
}

/// The vcpu server's calls to p2m: from each serving thread to p2m's thread on the same CPU.
fn calls(system: &impl System, supply: &mut Supply, p2m: &Built, vcpu: &Built) -> Result<(), StartError> {
    for thread in 0..p2m.threads.len() {
        let number = thread as u64;
        let portal = portal(system, supply, p2m, thread, badge::VCPU_SERVER | number)?;
        portal.grant(system, vcpu.domain, slot::P2M + number, Rights::USE).step("grant a portal")?;
    }
    Ok(())
}

/// Pages of page tables that a vcpu server needs to see what it loads.
pub fn load_tables(config: &VcpuConfig<'_>) -> u64 {
    config.loads.iter().map(|load| load.part.bytes.div_ceil(BLOCK * PAGE) + 1).sum::<u64>() + 1
}

/// Shows a vcpu server the parts of the payload that it loads into its guest, and nothing else of it.
pub fn loads(
    system: &impl System, supply: &mut Supply, config: &VcpuConfig<'_>, vcpu: &Built,
) -> Result<(), StartError> {
    for (index, load) in config.loads.iter().enumerate() {
        let again = config.loads.iter().take(index).any(|before| before.part == load.part);
        if again || load.part.bytes == 0 {
            continue;
        }
        let run = supply.part(system, load.part)?;
        let pages = load.part.bytes.div_ceil(PAGE);
        vcpu.domain
            .map(system, PAYLOAD + load.part.offset, run, 0, pages, Access::READ)
            .step("map the payload")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_given_exactly_or_not_at_all() {
        // 128, 256 and 512 bits.
        assert_eq!([Sve::Off, Sve::Lanes(2), Sve::Most].map(|wish| lanes(wish, 0b1011)), [Ok(0), Ok(2), Ok(4)]);
        assert_eq!(lanes(Sve::Lanes(3), 0b1011), Err(GuestEnd::Vectors { wanted: 3, lengths: 0b1011 }));
        assert_eq!(lanes(Sve::Lanes(0), u16::MAX), Err(GuestEnd::Vectors { wanted: 0, lengths: u16::MAX }));
        assert_eq!(lanes(Sve::Lanes(200), u16::MAX), Err(GuestEnd::Vectors { wanted: 200, lengths: u16::MAX }));
        assert_eq!(lanes(Sve::Most, 0), Err(GuestEnd::Vectors { wanted: 0, lengths: 0 }));
        assert_eq!(lanes(Sve::Off, 0), Ok(0));
    }
}
