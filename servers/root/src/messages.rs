// SPDX-License-Identifier: MIT OR Apache-2.0
//! What irqfwd gets where messages make lines: registers of the interrupt translation service and the redistributors, the
//! configuration pages of functions and the pages of their tables of messages, and memory for the tables that this hardware
//! keeps.
//!
//! Whoever tells this hardware where its tables are can have it write anywhere. Nobody but irqfwd gets these pages, and only
//! in a system where a guest owns such a function; where it sees the function as such, its vcpu server has the same pages of that,
//! the configuration to read it.

use crate::build::{READ_WRITE, addressed};
use crate::supply::Supply;
use crate::{Board, StartError, Step};
use trellis_idl::kernel::{Access, PAGE};
use trellis_idl::layout::message::{BLOCK, SERVICE, blocks, function, redistributor, table};
use trellis_idl::layout::platform::REDISTRIBUTOR_BYTES;
use trellis_idl::layout::{DEVICE, DEVICE_PAGES, TABLES, TABLES_BYTES, root_slot};
use trellis_idl::plan::MessagePlan;
use trellis_runtime::{Domain, Frames, System};

/// Device runs that there can be; the first is the console's.
const RUNS: u8 = 16;

/// Memory for the tables, which begins with its own machine address.
#[inline(never)]
pub fn tables(
    system: &impl System, board: &impl Board, supply: &mut Supply, plan: Option<&MessagePlan>,
) -> Result<Option<Frames>, StartError> {
    let Some(plan) = plan else { return Ok(None) };
    addressed(system, board, supply, pages(plan), BLOCK / PAGE).map(Some)
}

fn pages(plan: &MessagePlan) -> u64 {
    blocks(plan.cpus.len() as u64) * BLOCK / PAGE
}

/// Maps it all for irqfwd.
#[inline(never)]
pub fn attach(system: &impl System, plan: Option<&MessagePlan>, tables: Option<Frames>, domain: Domain) -> Result<(), StartError> {
    let (Some(plan), Some(tables)) = (plan, tables) else { return Ok(()) };
    if pages(plan) * PAGE > TABLES_BYTES || redistributor(plan.frames.into()) > DEVICE_PAGES {
        return Err(StartError::Plan("more redistributors than there is room for"));
    }
    domain.map(system, TABLES, tables, 0, pages(plan), READ_WRITE).step("map tables")?;
    map(system, domain, SERVICE, plan.service, 0)?;
    for (place, one) in plan.functions.iter().enumerate() {
        map(system, domain, function(place), one.run, 0)?;
        if let Some(its) = one.table {
            map(system, domain, table(place), its.run, 0)?;
        }
    }
    for place in 0..usize::from(plan.frames) {
        let first = place as u64 * REDISTRIBUTOR_BYTES / PAGE;
        map(system, domain, redistributor(place), plan.redistributors, first)?;
    }
    Ok(())
}

/// Maps a page of a device's run at a place.
pub fn map(system: &impl System, domain: Domain, place: usize, run: u8, page: u64) -> Result<(), StartError> {
    map_as(system, domain, place, (run, page), READ_WRITE)
}

/// The same with this access.
pub fn map_as(system: &impl System, domain: Domain, place: usize, (run, page): (u8, u64), access: Access) -> Result<(), StartError> {
    if !(1..RUNS).contains(&run) {
        return Err(StartError::Plan("a device that is not there"));
    }
    let frames = Frames::at(root_slot::DEVICES + u64::from(run));
    domain.map(system, DEVICE + place as u64 * PAGE, frames, page, 1, access).step("map a device")
}
