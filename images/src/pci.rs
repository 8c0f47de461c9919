// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions that a guest sees as such: what its vcpu server is told of them, and the bus in its device tree.

use crate::device::{Device, Owned};
use crate::device_tree::{EDGE_RISING, FRAME_HANDLE, INTC};
use crate::system::{System, bounded};
use std::ops::Range;
use trellis_idl::kernel::{PAGE, WINDOWS};
use trellis_idl::layout::platform::{self, CONFIGURATION, CONFIGURATION_BYTES, FRAME, OWNED, OWNED_END};
use trellis_idl::plan::{BusPlan, DevicePages, RangePlan, ShownFunction};
use vm_fdt::{FdtWriter, FdtWriterResult};

/// Windows of a vCPU that are free for pages which the guest has not got.
const MOST_HIDDEN: usize = WINDOWS - platform::windows(3, 1).len() - platform::BUS_WINDOWS.len();

/// Of an address on the bus: memory of 32 bits; the device's number; of a wire: the first.
const MEMORY: u32 = 0x0200_0000;
const DEVICE: u32 = 11;
const FIRST_WIRE: u32 = 1;

impl Owned {
    /// Its messages go to the frame.
    pub(crate) fn is_framed(&self) -> bool {
        self.as_pci && self.device.table.is_some()
    }

    /// Pages of its registers, in the guest, that the guest has not got.
    fn hidden(&self) -> Vec<Range<u64>> {
        let mut all: Vec<Range<u64>> = Vec::new();
        let ranges = self.device.all_ranges();
        for pages in self.device.hidden() {
            let found = ranges.iter().zip(&self.places).find(|(range, _)| range.pages().contains(&pages.start));
            let Some((range, place)) = found else { continue };
            let first = place / PAGE + (pages.start - range.pages().start);
            let run = first..first + (pages.end - pages.start);
            match all.last_mut() {
                // What waits is often on the same page as the table, or on the next one.
                Some(last) if last.start <= run.end && run.start <= last.end => *last = last.start.min(run.start)..last.end.max(run.end),
                _ => all.push(run),
            }
        }
        all
    }
}

/// Whether a guest's functions hide more than its vCPUs have windows for.
pub(crate) fn too_many(all: &[Owned]) -> bool {
    functions(all).map(|owned| owned.hidden().len()).sum::<usize>() > MOST_HIDDEN
}

impl System {
    /// What a guest's vcpu server is told of functions that the guest sees; nothing where there are none.
    pub(crate) fn bus_plan(&self, guest: usize) -> Option<BusPlan> {
        let plan = self.message_plan()?;
        let owned: Vec<&Owned> = functions(&self.guests[guest].devices).collect();
        let of = |device: &Device| plan.functions.iter().find(|function| Some(function.requester) == device.function.map(|number| number.0));
        let functions = owned.iter().filter_map(|owned| {
            let function = of(&owned.device)?;
            let ranges = function.ranges.iter().zip(&owned.places).map(|(range, place)| RangePlan { base: *place, ..*range });
            let hidden = owned.hidden().into_iter().map(|pages| DevicePages { page: pages.start, pages: pages.end - pages.start });
            Some(ShownFunction {
                run: function.run,
                ranges: bounded(ranges),
                table: function.table,
                entries: if owned.is_framed() { function.messages } else { 0 },
                hidden: bounded(hidden),
                wire: wire(owned).map(|line| line as u8),
            })
        });
        let (first, lines) = frame(owned.iter().copied());
        let bus = BusPlan { doorbell: plan.doorbell, first_line: first as u8, lines: lines as u8, functions: bounded(functions) };
        (!owned.is_empty()).then_some(bus)
    }
}

/// The line of the guest that is a function's wire.
fn wire(owned: &Owned) -> Option<u32> {
    if owned.is_framed() { None } else { owned.lines.first().copied() }
}

/// The first line that the frame makes, and how many.
fn frame<'a>(owned: impl Iterator<Item = &'a Owned>) -> (u32, u32) {
    let lines: Vec<u32> = owned.filter(|owned| owned.is_framed()).flat_map(|owned| owned.lines.iter().copied()).collect();
    (lines.first().copied().unwrap_or(0), lines.len() as u32)
}

/// The functions that a guest sees, of all that it owns.
pub(crate) fn functions(devices: &[Owned]) -> impl Iterator<Item = &Owned> {
    devices.iter().filter(|owned| owned.as_pci)
}

/// The frame, inside the interrupt controller's node.
pub(crate) fn frame_node(tree: &mut FdtWriter, devices: &[Owned]) -> FdtWriterResult<()> {
    let (first, lines) = frame(functions(devices));
    if lines == 0 {
        return Ok(());
    }
    tree.property_null("ranges")?;
    let node = tree.begin_node(&format!("v2m@{FRAME:x}"))?;
    tree.property_string("compatible", "arm,gic-v2m-frame")?;
    tree.property_null("msi-controller")?;
    tree.property_array_u64("reg", &[FRAME, PAGE])?;
    tree.property_u32("arm,msi-base-spi", first)?;
    tree.property_u32("arm,msi-num-spis", lines)?;
    tree.property_phandle(FRAME_HANDLE)?;
    tree.end_node(node)
}

/// The bus. Its functions' registers are where they are, at the same addresses, and their accesses see what caches hold.
pub(crate) fn bus_node(tree: &mut FdtWriter, devices: &[Owned]) -> FdtWriterResult<()> {
    if functions(devices).next().is_none() {
        return Ok(());
    }
    let node = tree.begin_node(&format!("pcie@{CONFIGURATION:x}"))?;
    tree.property_string("compatible", "pci-host-ecam-generic")?;
    tree.property_string("device_type", "pci")?;
    tree.property_array_u64("reg", &[CONFIGURATION, CONFIGURATION_BYTES])?;
    tree.property_array_u32("bus-range", &[0, 0])?;
    tree.property_u32("linux,pci-domain", 0)?;
    tree.property_null("dma-coherent")?;
    tree.property_u32("#address-cells", 3)?;
    tree.property_u32("#size-cells", 2)?;
    let registers = OWNED as u32;
    tree.property_array_u32("ranges", &[MEMORY, 0, registers, 0, registers, 0, (OWNED_END - OWNED) as u32])?;
    if functions(devices).any(Owned::is_framed) {
        tree.property_u32("msi-parent", FRAME_HANDLE)?;
    }
    let wires: Vec<(u32, u32)> = (0u32..).zip(functions(devices)).filter_map(|(place, owned)| Some((place, wire(owned)?))).collect();
    if !wires.is_empty() {
        tree.property_u32("#interrupt-cells", 1)?;
        tree.property_array_u32("interrupt-map-mask", &[0x1f << DEVICE, 0, 0, 7])?;
        let entry = |(place, line): &(u32, u32)| [place << DEVICE, 0, 0, FIRST_WIRE, INTC, 0, 0, 0, line - 32, EDGE_RISING];
        tree.property_array_u32("interrupt-map", &wires.iter().flat_map(entry).collect::<Vec<_>>())?;
    }
    tree.end_node(node)
}
