// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that belongs to one guest: its two servers, itself, and what connects them. Made together, taken apart
//! together, and made again of the same slots and the same memory.

use crate::build::{self, Built, LENT, Time};
use crate::guest::{self, Made};
use crate::supply::{Lot, Supply};
use crate::wire::{self, Rings};
use crate::{Board, StartError, Step, patiently};
use trellis_idl::kernel::Rights;
use trellis_idl::layout::{self, root_signal, root_slot, slot};
use trellis_idl::plan::{Plan, Role, VcpuConfig};
use trellis_runtime::{Signal, System, Thread};

/// Microseconds that a server may take for an exit, or for another server's call in the middle of one.
const EXIT: u64 = 5_000_000;
/// Microseconds that it may take for something root asks: loading a guest is among it.
const CONTROL: u64 = 30_000_000;

const SELF: Thread = Thread::at(root_slot::THREAD);

/// What every guest's servers are connected to: the console, and its signal for output.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The console.
    pub console: &'a Built,
    /// Wakes it.
    pub output: Signal,
}

/// A guest and its servers. Nothing of them runs yet.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its p2m server.
    pub p2m: Built,
    /// Its vcpu server.
    pub vcpu: Built,
    /// The guest.
    pub made: Made,
}

/// Makes guest `index` of the plan with its servers.
pub fn make(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, index: usize, rings: &Rings,
    ends: Ends<'_>,
) -> Result<Whole, StartError> {
    let missing = StartError::Plan("a guest without servers");
    let guest = plan.guests.get(index).ok_or(missing)?;
    let p2m = server(system, board, supply, plan, guest.p2m)?;
    let vcpu = server(system, board, supply, plan, guest.vcpu)?;
    let config: VcpuConfig<'_> = build::config(board, plan.servers.get(usize::from(guest.vcpu)).ok_or(missing)?)?;
    // One that cannot have what it asks for is not started (`Root::begin`).
    let lanes = guest::lanes(guest.sve, guest::lengths(system)).unwrap_or(0);
    let made = guest::make(system, supply, guest, &config, lanes, &p2m, &vcpu)?;
    guest::loads(system, supply, &config, &vcpu)?;
    guest::devices(system, guest, &p2m)?;
    guest::functions(system, &config, &vcpu)?;
    wire::attach(system, rings, p2m.domain, vcpu.domain)?;
    made.input.grant(system, ends.console.domain, slot::INPUT + index as u64, Rights::USE).step("grant a signal")?;
    for (number, server) in [(guest.p2m, &p2m), (guest.vcpu, &vcpu)] {
        let vcpus = guest.cpus.len();
        supervise(system, supply, number.into(), server, |thread| if thread < vcpus { EXIT } else { CONTROL })?;
        ends.output.grant(system, server.domain, slot::CONSOLE, Rights::USE).step("grant a signal")?;
    }
    Ok(Whole { p2m, vcpu, made })
}

/// Takes a guest and its servers apart, whatever they are doing; their slots are empty and their memory is zeroes.
pub fn take_apart(system: &impl System, lot: &Lot, whole: [&Built; 2], made: &Made) -> Result<(), StartError> {
    // The console has a copy of this one, which nothing else would take out of its slot.
    made.input.revoke(system).step("revoke a signal")?;
    made.guest.destroy(system).step("destroy a guest")?;
    for server in whole {
        server.domain.destroy(system).step("destroy a domain")?;
    }
    lot.take_back(system)
}

/// A server of a guest, without what connects it.
fn server(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: &Plan<'_>, number: u8,
) -> Result<Built, StartError> {
    let server = plan.servers.get(usize::from(number)).ok_or(StartError::Plan("no such server"))?;
    let (attending, tables) = match server.role {
        Role::Vcpu(index) => {
            let guest = plan.guests.get(usize::from(index)).ok_or(StartError::Plan("no such guest"))?;
            let priority = u64::from(guest.priority.min(guest::MAX_PRIORITY)) + 1;
            (Time { priority, budget: guest::time(guest) }, guest::load_tables(&build::config(board, server)?))
        }
        Role::P2m(_) | Role::Console | Role::Irqfwd | Role::Smmu | Role::Monitor => (LENT, 0),
    };
    let times = build::times(server.role, server.cpus.len(), attending);
    build::server(system, board, supply, server, &times, tables)
}

/// Root hears a server's threads end, and take too long for an answer; the server can wake root.
pub fn supervise(
    system: &impl System, supply: &mut Supply, index: usize, server: &Built, patience: impl Fn(usize) -> u64,
) -> Result<Signal, StartError> {
    let slot = supply.slot();
    let signal = patiently(system, || SELF.signal(system, root_signal::server(index), slot)).step("make a signal")?;
    signal.grant(system, server.domain, layout::slot::ROOT, Rights::USE).step("grant a signal")?;
    for (number, thread) in server.threads.iter().enumerate() {
        thread.supervise(system, signal, patience(number)).step("supervise a thread")?;
    }
    Ok(signal)
}
