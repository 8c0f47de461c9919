// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks at a plan before anything is built from it: every index that something else relies on.

use crate::StartError;
use trellis_idl::layout::PROGRAM;
use crate::watch;
use trellis_idl::plan::{GuestPlan, MAX_MONITORS, MAX_SERVERS, MAX_WATCHED, Plan, Role, ServerPlan, VERSION};

/// Devices of a boot header.
const DEVICES: u8 = 16;

/// Pages of a program at most; what is behind belongs to the configuration.
const PROGRAM_END: u64 = trellis_idl::layout::CONFIG;

/// Whether the plan holds together.
pub fn check(plan: &Plan<'_>) -> Result<(), StartError> {
    if plan.version != VERSION {
        return Err(StartError::Plan("another version"));
    }
    if plan.servers.first().map(|server| server.role) != Some(Role::Console) {
        return Err(StartError::Plan("console is not the first server"));
    }
    plan.servers.iter().try_for_each(server)?;
    plan.guests.iter().enumerate().try_for_each(|(index, one)| guest(plan, index, one))?;
    let consoles = plan.servers.iter().filter(|server| server.role == Role::Console).count();
    let owners = plan.guests.iter().any(|guest| !guest.devices.is_empty());
    let forwarders = plan.servers.iter().filter(|server| server.role == Role::Irqfwd).count();
    let behind = plan.servers.get(1 + 2 * plan.guests.len()).map(|server| server.role);
    if forwarders != usize::from(owners) || owners && behind != Some(Role::Irqfwd) {
        return Err(StartError::Plan("devices without irqfwd, or irqfwd without devices"));
    }
    let shields = plan.servers.iter().filter(|server| server.role == Role::Smmu).count();
    let next = plan.servers.get(2 + 2 * plan.guests.len()).map(|server| server.role);
    if shields > 1 || shields == 1 && (!owners || next != Some(Role::Smmu)) {
        return Err(StartError::Plan("smmu without devices"));
    }
    let monitors = plan.servers.iter().filter(|server| server.role == Role::Monitor).count();
    // The last bit of root's signal word is the host's.
    if plan.servers.len() == MAX_SERVERS || consoles != 1 || plan.servers.len() != 1 + 2 * plan.guests.len() + forwarders + shields + monitors {
        return Err(StartError::Plan("servers that belong to nobody"));
    }
    if monitors > MAX_MONITORS {
        return Err(StartError::Plan("too many monitors"));
    }
    (0..plan.servers.len()).try_for_each(|number| monitor(plan, number))
}

/// A monitor's guests have its places in their order, and it has a thread on each of their CPUs.
fn monitor(plan: &Plan<'_>, number: usize) -> Result<(), StartError> {
    let is_monitor = plan.servers.get(number).is_some_and(|server| server.role == Role::Monitor);
    let watched = watch::watched_by(plan, number);
    let in_order = watched.enumerate().all(|(place, (.., watcher))| usize::from(watcher.place) == place);
    let count = watch::watched_by(plan, number).count();
    if !in_order || count > MAX_WATCHED || is_monitor != (count > 0) {
        return Err(StartError::Plan("a monitor that watches nobody, or a guest watched by no monitor"));
    }
    Ok(())
}

fn server(server: &ServerPlan<'_>) -> Result<(), StartError> {
    for segment in &server.segments {
        let end = segment.address.checked_add(segment.memory_bytes);
        let inside = segment.address >= PROGRAM && end.is_some_and(|end| end <= PROGRAM_END);
        if !inside || segment.part.bytes > segment.memory_bytes {
            return Err(StartError::Plan("a segment outside the program"));
        }
    }
    if server.cpus.is_empty() {
        return Err(StartError::Plan("a server without threads"));
    }
    Ok(())
}

fn guest(plan: &Plan<'_>, index: usize, guest: &GuestPlan<'_>) -> Result<(), StartError> {
    let role = |server: u8| plan.servers.get(usize::from(server)).map(|server| server.role);
    let own = u8::try_from(index).ok();
    if role(guest.p2m) != own.map(Role::P2m) || role(guest.vcpu) != own.map(Role::Vcpu) {
        return Err(StartError::Plan("a guest with another's server"));
    }
    let threads = |server: u8| plan.servers.get(usize::from(server)).map(|server| server.cpus.len());
    let wanted = Some(guest.cpus.len() + 1);
    if guest.cpus.is_empty() || threads(guest.p2m) != wanted || threads(guest.vcpu) != wanted {
        return Err(StartError::Plan("a guest with too few or too many threads"));
    }
    let mut others = plan.guests.iter().take(index).flat_map(|other| &other.devices);
    // The first is the console's, and there are as many as the kernel makes runs.
    let own = |device: &u8| (1..DEVICES).contains(device);
    if !guest.devices.iter().all(own) || others.any(|device| guest.devices.contains(device)) {
        return Err(StartError::Plan("a device that is not the guest's own"));
    }
    let mut watchers = guest.watchers.iter().enumerate();
    let is_monitor = |server: u8| plan.servers.get(usize::from(server)).is_some_and(|server| server.role == Role::Monitor);
    let twice = |index: usize, server: u8| guest.watchers.iter().take(index).any(|other| other.server == server);
    if !watchers.all(|(index, watcher)| is_monitor(watcher.server) && !twice(index, watcher.server)) {
        return Err(StartError::Plan("a guest watched by no monitor, or twice by one"));
    }
    if guest.memory_bytes == 0 || !guest.memory_bytes.is_multiple_of(2 << 20) {
        return Err(StartError::Plan("guest memory that is no multiple of 2 MiB"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{MONITOR, plan, plan_with_device, plan_with_monitor, plan_with_shield};
    use trellis_idl::plan::Without;

    #[test]
    fn a_device_needs_irqfwd_and_one_owner() {
        assert_eq!(check(&plan_with_device()), Ok(()));
        let spoilt: [fn(&mut Plan<'_>); 6] = [
            |plan| drop(plan.servers.pop()),
            |plan| plan.guests[1].devices.clear(),
            |plan| plan.guests[0].devices.push(1).unwrap(),
            |plan| plan.guests[1].devices[0] = 0,
            |plan| plan.guests[1].devices[0] = DEVICES,
            |plan| plan.servers.swap(4, 5),
        ];
        for (index, spoil) in spoilt.iter().enumerate() {
            let mut plan = plan_with_device();
            spoil(&mut plan);
            assert!(check(&plan).is_err(), "{index}");
        }
    }

    #[test]
    fn smmu_comes_behind_irqfwd_and_once() {
        assert_eq!(check(&plan_with_shield()), Ok(()));
        let spoilt: [fn(&mut Plan<'_>); 3] = [
            |plan| plan.servers.swap(5, 6),
            |plan| {
                let again = plan.servers[6].clone();
                plan.servers.push(again).unwrap();
            },
            |plan| {
                plan.servers.remove(5);
                plan.guests[1].devices.clear();
            },
        ];
        for (index, spoil) in spoilt.iter().enumerate() {
            let mut plan = plan_with_shield();
            spoil(&mut plan);
            assert!(check(&plan).is_err(), "{index}");
        }
    }

    #[test]
    fn who_is_watched_has_a_monitor_and_each_monitor_its_guests_in_order() {
        for guests in [&[0][..], &[1], &[0, 1]] {
            assert_eq!(check(&plan_with_monitor(guests, Without::Hold)), Ok(()));
        }
        let spoilt: [fn(&mut Plan<'_>); 6] = [
            |plan| drop(plan.servers.pop()),
            |plan| plan.guests.iter_mut().for_each(|guest| guest.watchers.clear()),
            |plan| plan.guests[0].watchers[0].server = 0,
            |plan| plan.guests[1].watchers[0].place = 0,
            |plan| plan.guests[1].watchers[0].server = MONITOR as u8 + 1,
            |plan| {
                let again = plan.guests[1].watchers[0];
                plan.guests[1].watchers.push(again).unwrap();
            },
        ];
        for (index, spoil) in spoilt.iter().enumerate() {
            let mut plan = plan_with_monitor(&[0, 1], Without::Hold);
            spoil(&mut plan);
            assert!(check(&plan).is_err(), "{index}");
        }
    }

    #[test]
    fn a_right_plan_passes_and_each_wrong_index_does_not() {
        assert_eq!(check(&plan()), Ok(()));
        let spoilt: [fn(&mut Plan<'_>); 8] = [
            |plan| plan.version += 1,
            |plan| plan.servers[0].role = Role::P2m(0),
            |plan| plan.guests[1].p2m = 1,
            |plan| plan.guests[0].vcpu = 200,
            |plan| plan.guests[0].cpus.push(0).unwrap(),
            |plan| plan.guests[0].memory_bytes += 4096,
            |plan| plan.servers[1].segments[0].address = PROGRAM_END - 4096,
            |plan| plan.servers[2].cpus.clear(),
        ];
        for (index, spoil) in spoilt.iter().enumerate() {
            let mut plan = plan();
            spoil(&mut plan);
            assert!(check(&plan).is_err(), "{index}");
        }
    }
}
