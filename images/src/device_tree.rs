// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device tree a guest is handed: the virt-like platform that the vcpu server shows.
//!
//! Its addresses are a requirement, since some guests know them by heart. No token but nodes and properties is
//! written: one guest's parser stops at any other.

use crate::device::Owned;
use crate::pci;
use std::ops::Range;
use trellis_idl::layout::platform::{CPU_INTERFACE, DISTRIBUTOR, REDISTRIBUTOR_BYTES, REDISTRIBUTORS, SERIAL};
use vm_fdt::{FdtWriter, FdtWriterResult};

/// First byte of every guest's memory.
pub const MEMORY_BASE: u64 = 0x4000_0000;

/// Handles: the interrupt controller, the clock, the frame that makes lines of messages.
pub(crate) const INTC: u32 = 1;
const CLOCK: u32 = 2;
pub(crate) const FRAME_HANDLE: u32 = 3;

const LEVEL_HIGH: u32 = 4;
pub(crate) const EDGE_RISING: u32 = 1;

/// What the tree says about one guest.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// Bytes of memory from [`MEMORY_BASE`].
    pub memory_bytes: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// 2 or 3.
    pub gic: u8,
    /// Command line.
    pub command_line: &'a str,
    /// Where the initial file system is.
    pub initrd: Option<Range<u64>>,
    /// Devices that it owns.
    pub devices: &'a [Owned],
}

impl Platform<'_> {
    /// The tree, flattened.
    pub fn device_tree(&self) -> FdtWriterResult<Vec<u8>> {
        let mut tree = FdtWriter::new()?;
        let root = tree.begin_node("")?;
        tree.property_string("compatible", "linux,dummy-virt")?;
        tree.property_string("model", "trellis,virt")?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_u32("interrupt-parent", INTC)?;
        self.aliases(&mut tree)?;
        self.chosen(&mut tree)?;
        self.memory(&mut tree)?;
        self.cpus(&mut tree)?;
        self.psci(&mut tree)?;
        self.timer(&mut tree)?;
        self.interrupt_controller(&mut tree)?;
        self.clock(&mut tree)?;
        self.serial(&mut tree)?;
        self.devices.iter().filter(|owned| !owned.as_pci).try_for_each(|owned| device(&mut tree, owned))?;
        pci::bus_node(&mut tree, self.devices)?;
        tree.end_node(root)?;
        tree.finish()
    }

    fn aliases(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("aliases")?;
        tree.property_string("serial0", "/pl011@9000000")?;
        tree.end_node(node)
    }

    fn chosen(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("chosen")?;
        tree.property_string("bootargs", self.command_line)?;
        tree.property_string("stdout-path", "/pl011@9000000")?;
        if pci::functions(self.devices).next().is_some() {
            // Registers stay where they are: base address registers keep nothing else.
            tree.property_u32("linux,pci-probe-only", 1)?;
        }
        if let Some(initrd) = &self.initrd {
            tree.property_u64("linux,initrd-start", initrd.start)?;
            tree.property_u64("linux,initrd-end", initrd.end)?;
        }
        tree.end_node(node)
    }

    fn memory(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("memory@40000000")?;
        tree.property_string("device_type", "memory")?;
        tree.property_array_u64("reg", &[MEMORY_BASE, self.memory_bytes])?;
        tree.end_node(node)
    }

    fn cpus(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let cpus = tree.begin_node("cpus")?;
        tree.property_u32("#address-cells", 1)?;
        tree.property_u32("#size-cells", 0)?;
        for index in 0..u32::from(self.vcpus) {
            let cpu = tree.begin_node(&format!("cpu@{index:x}"))?;
            tree.property_string("device_type", "cpu")?;
            tree.property_string("compatible", "arm,armv8")?;
            tree.property_string("enable-method", "psci")?;
            tree.property_u32("reg", index)?;
            tree.end_node(cpu)?;
        }
        tree.end_node(cpus)
    }

    fn psci(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("psci")?;
        let compatible = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"].map(String::from);
        tree.property_string_list("compatible", compatible.into())?;
        tree.property_string("method", "hvc")?;
        // The function numbers that PSCI 0.1 left to the tree; as in PSCI 1.1, section 5.1.
        tree.property_u32("cpu_suspend", 0xc400_0001)?;
        tree.property_u32("cpu_off", 0x8400_0002)?;
        tree.property_u32("cpu_on", 0xc400_0003)?;
        tree.property_u32("migrate", 0xc400_0005)?;
        tree.end_node(node)
    }

    fn timer(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        // A GICv2 tree says for a private interrupt which CPUs it goes to.
        let flags = if self.gic == 2 { LEVEL_HIGH | ((1 << self.vcpus) - 1) << 8 } else { LEVEL_HIGH };
        let node = tree.begin_node("timer")?;
        tree.property_string_list("compatible", ["arm,armv8-timer", "arm,armv7-timer"].map(String::from).into())?;
        tree.property_array_u32("interrupts", &[1, 13, flags, 1, 14, flags, 1, 11, flags, 1, 10, flags])?;
        tree.property_null("always-on")?;
        tree.end_node(node)
    }

    fn interrupt_controller(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("intc@8000000")?;
        if self.gic == 2 {
            tree.property_string("compatible", "arm,cortex-a15-gic")?;
            tree.property_array_u64("reg", &[DISTRIBUTOR, 0x1_0000, CPU_INTERFACE, 0x2000])?;
        } else {
            tree.property_string("compatible", "arm,gic-v3")?;
            let bytes = REDISTRIBUTOR_BYTES * u64::from(self.vcpus);
            tree.property_array_u64("reg", &[DISTRIBUTOR, 0x1_0000, REDISTRIBUTORS, bytes])?;
            tree.property_u32("#redistributor-regions", 1)?;
        }
        tree.property_null("interrupt-controller")?;
        tree.property_u32("#interrupt-cells", 3)?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_phandle(INTC)?;
        pci::frame_node(tree, self.devices)?;
        tree.end_node(node)
    }

    fn clock(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("apb-pclk")?;
        tree.property_string("compatible", "fixed-clock")?;
        tree.property_u32("#clock-cells", 0)?;
        tree.property_u32("clock-frequency", 24_000_000)?;
        tree.property_string("clock-output-names", "clk24mhz")?;
        tree.property_phandle(CLOCK)?;
        tree.end_node(node)
    }

    fn serial(&self, tree: &mut FdtWriter) -> FdtWriterResult<()> {
        let node = tree.begin_node("pl011@9000000")?;
        tree.property_string_list("compatible", ["arm,pl011", "arm,primecell"].map(String::from).into())?;
        tree.property_array_u64("reg", &[SERIAL, 0x1000])?;
        tree.property_array_u32("interrupts", &[0, 1, LEVEL_HIGH])?;
        tree.property_array_u32("clocks", &[CLOCK, CLOCK])?;
        tree.property_string_list("clock-names", ["uartclk", "apb_pclk"].map(String::from).into())?;
        tree.end_node(node)
    }
}

/// A device that the guest owns: as its driver looks for it, with the guest's numbers of its lines.
fn device(tree: &mut FdtWriter, owned: &Owned) -> FdtWriterResult<()> {
    let device = &owned.device;
    let first = owned.stretches.first().map_or(0, |stretch| stretch.address);
    let node = tree.begin_node(&format!("{}@{first:x}", device.name))?;
    tree.property_string_list("compatible", device.compatible.clone())?;
    let registers: Vec<u64> = owned.stretches.iter().flat_map(|stretch| [stretch.address, stretch.bytes]).collect();
    tree.property_array_u64("reg", &registers)?;
    if !device.lines.is_empty() {
        let trigger = if device.edge { EDGE_RISING } else { LEVEL_HIGH };
        let cells: Vec<u32> = owned.lines.iter().flat_map(|line| [0, line - 32, trigger]).collect();
        tree.property_array_u32("interrupts", &cells)?;
    }
    if !device.clock_names.is_empty() {
        tree.property_array_u32("clocks", &vec![CLOCK; device.clock_names.len()])?;
        tree.property_string_list("clock-names", device.clock_names.clone())?;
    }
    tree.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(gic: u8, initrd: Option<Range<u64>>) -> Vec<u8> {
        let platform = Platform { memory_bytes: 64 << 20, vcpus: 2, gic, command_line: "quiet", initrd, devices: &[] };
        platform.device_tree().expect("a tree")
    }

    /// Tokens of the structure block, properties stepped over.
    fn tokens(tree: &[u8]) -> Vec<u32> {
        let word = |at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().expect("four bytes"));
        let mut at = word(8) as usize;
        let mut tokens = Vec::new();
        loop {
            tokens.push(word(at));
            match word(at) {
                1 => at += 4 + (tree[at + 4..].iter().position(|byte| *byte == 0).expect("an end") + 4) / 4 * 4,
                3 => at += 12 + (word(at + 4) as usize).div_ceil(4) * 4,
                9 => return tokens,
                _ => at += 4,
            }
        }
    }

    #[test]
    fn no_token_but_nodes_and_properties() {
        for gic in [2, 3] {
            assert!(tokens(&tree(gic, None)).iter().all(|token| matches!(token, 1 | 2 | 3 | 9)));
        }
    }

    #[test]
    fn the_length_does_not_depend_on_addresses() {
        assert_eq!(tree(3, Some(0..0)).len(), tree(3, Some(0x4400_0000..0x4500_0000)).len());
    }
}
