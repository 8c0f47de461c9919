// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting a guest: its parts go from the image's payload into its memory, vCPU 0 to its entry.

use crate::psci;
use trellis_idl::interface;
use trellis_idl::kernel::{PAGE, Refusal};
use trellis_idl::layout::slot;
use trellis_idl::plan::{Load, VcpuConfig};
use trellis_idl::wire::{P2mOp, PageRange, PageRanges};
use trellis_runtime::{Guest, Portal, System, message};

/// Most bytes of one copy into guest memory.
const PIECE: usize = 64 << 10;

/// The image's payload, as this server sees it.
pub trait Payload {
    /// A part of it; none when it does not lie in the payload.
    fn part(&self, offset: u64, bytes: u64) -> Option<&[u8]>;
}

/// Loads every part and starts vCPU 0; `on` is called just before it runs.
pub fn start(
    system: &impl System, config: &VcpuConfig<'_>, payload: &impl Payload, on: impl FnOnce(),
) -> Result<(), Refusal> {
    // Root's calls come to the control thread, the one behind those of the vCPUs.
    let p2m = Portal::at(slot::P2M + u64::from(config.vcpus));
    message::attach(system, p2m, interface::P2M)?;
    populate(system, p2m, config)?;
    for load in &config.loads {
        fill(system, payload, load)?;
    }
    psci::enter(system, 0, config.entry, config.x0, on)
}

fn fill(system: &impl System, payload: &impl Payload, load: &Load) -> Result<(), Refusal> {
    let bytes = payload.part(load.part.offset, load.part.bytes).ok_or(Refusal::OutOfRange)?;
    let mut address = load.address;
    for piece in bytes.chunks(PIECE) {
        let copied = Guest::at(slot::GUEST).write(system, address, piece)?;
        if copied != piece.len() as u64 {
            return Err(Refusal::NotMapped);
        }
        address += copied;
    }
    Ok(())
}

/// Has p2m give the pages of all parts their frames, in one call.
fn populate(system: &impl System, p2m: Portal, config: &VcpuConfig<'_>) -> Result<(), Refusal> {
    let mut ranges = PageRanges::new();
    for load in config.loads.iter().filter(|load| load.part.bytes > 0) {
        ranges.push(range(config, load)?).map_err(|_| Refusal::OutOfRange)?;
    }
    if ranges.is_empty() {
        return Ok(());
    }
    p2m.ask(system, P2mOp::PopulateAll as u64, &ranges)
}

/// The pages of a part, which lies in the guest's memory.
fn range(config: &VcpuConfig<'_>, load: &Load) -> Result<PageRange, Refusal> {
    let offset = load.address.checked_sub(config.memory_base).ok_or(Refusal::OutOfRange)?;
    let end = offset.checked_add(load.part.bytes).ok_or(Refusal::OutOfRange)?;
    if end > config.memory_bytes {
        return Err(Refusal::OutOfRange);
    }
    let pages = (load.address % PAGE + load.part.bytes).div_ceil(PAGE);
    Ok(PageRange { first: load.address / PAGE, pages })
}

#[cfg(test)]
mod tests;
