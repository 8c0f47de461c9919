// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv2 (GIC-400): four MMIO frames. Interrupts stay in group 0, as a controller without security extensions, and the
//! emulator's, needs it; addresses come from the board's header.

use crate::gic::{ALARM, KICK, MAINTENANCE, VIRTUAL_TIMER};
use crate::isa;
use crate::mmio;
use crate::registers::{pack_list, pack_list_2, unpack_list, unpack_list_2};
use trellis_core::lines::ListEntry;
use trellis_idl::boot;

/// GICD registers (GICv2 4.3).
const GICD_CTLR: u64 = 0;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_SGIR: u64 = 0xf00;
/// GICC registers (4.4). DIR is in the second page.
const GICC_CTLR: u64 = 0;
const GICC_PMR: u64 = 0x4;
const GICC_IAR: u64 = 0xc;
const GICC_EOIR: u64 = 0x10;
const GICC_DIR: u64 = 0x1000;
/// GICH registers (5.3).
const GICH_HCR: u64 = 0;
const GICH_VTR: u64 = 0x4;
const GICH_VMCR: u64 = 0x8;
const GICH_ELRSR: u64 = 0x30;
const GICH_APR: u64 = 0xf0;
const GICH_LR: u64 = 0x100;

/// The controller as one CPU uses it.
#[derive(Clone, Copy, Debug)]
pub struct Gic2 {
    pub(crate) distributor: u64,
    cpu: u64,
    control: u64,
    lists: usize,
    /// This CPU's bit among the interfaces.
    own: u8,
}

impl Gic2 {
    /// Brings up the distributor: once, on the boot CPU.
    pub fn start_distributor(distributor: u64) {
        for word in 1..32 {
            mmio::write32(distributor + GICD_ICENABLER + 4 * word, u32::MAX);
        }
        mmio::write32(distributor + GICD_CTLR, 1);
    }

    /// Brings up this CPU's interfaces.
    pub fn start(gic: &boot::Gic) -> Gic2 {
        let distributor = gic.distributor;
        // The private lines' target registers say which interface this is (GICv2 4.3.12).
        let own = mmio::read32(distributor + GICD_ITARGETSR) as u8;
        mmio::write32(distributor + GICD_ICENABLER, u32::MAX);
        for word in 0..8 {
            mmio::write32(distributor + GICD_IPRIORITYR + 4 * word, 0x8080_8080);
        }
        let lines = 1 << VIRTUAL_TIMER | 1 << ALARM | 1 << MAINTENANCE | 1 << KICK;
        mmio::write32(distributor + GICD_ISENABLER, lines);
        mmio::write32(gic.cpu + GICC_PMR, 0xf8);
        // Enable, and EOImode: dropping the priority does not deactivate.
        mmio::write32(gic.cpu + GICC_CTLR, 1 | 1 << 9);
        mmio::write32(gic.control + GICH_HCR, 1);
        let lists = (mmio::read32(gic.control + GICH_VTR) & 0x3f) as usize + 1;
        Gic2 { distributor, cpu: gic.cpu, control: gic.control, lists: lists.min(16), own }
    }

    /// Number of list registers.
    pub fn lists(&self) -> usize {
        self.lists
    }

    /// Takes the pending interrupt and drops its priority. 1020 and above: none. A kick is over with that.
    pub fn acknowledge(&self) -> u32 {
        let value = mmio::read32(self.cpu + GICC_IAR);
        let line = value & 0x3ff;
        if line < 1020 {
            isa::dsb_sy();
            mmio::write32(self.cpu + GICC_EOIR, value);
            if line < 16 {
                // A software interrupt is deactivated with its sender, which only this value names.
                mmio::write32(self.cpu + GICC_DIR, value);
            }
        }
        line
    }

    /// Deactivates a line that the kernel ends itself.
    pub fn deactivate(&self, line: u32) {
        if line >= 16 {
            mmio::write32(self.cpu + GICC_DIR, line);
        }
    }

    /// Makes a device line inactive (GICv2 4.3.10).
    pub fn end_line(&self, line: u32) {
        mmio::write32(self.distributor + GICD_ICACTIVER + 4 * (line as u64 / 32), 1 << (line % 32));
    }

    /// Masks or unmasks a device line; unmasked it comes to this CPU.
    pub fn mask(&self, line: u32, masked: bool) {
        if !(32..1020).contains(&line) {
            return;
        }
        let (word, bit) = (4 * (line as u64 / 32), 1 << (line % 32));
        if masked {
            mmio::write32(self.distributor + GICD_ICENABLER + word, bit);
        } else {
            mmio::write8(self.distributor + GICD_ITARGETSR + line as u64, self.own);
            mmio::write8(self.distributor + GICD_IPRIORITYR + line as u64, 0x80);
            mmio::write32(self.distributor + GICD_ISENABLER + word, bit);
        }
    }

    /// A device line that comes to this CPU comes to another one, whose interface has the number of its affinity level 0.
    pub fn bequeath(&self, line: u32, mpidr: u64) {
        let targets = self.distributor + GICD_ITARGETSR + line as u64;
        if (32..1020).contains(&line) && mmio::read8(targets) == self.own {
            mmio::write8(targets, 1 << (mpidr & 7));
        }
    }

    /// The CPU interface signals nothing any more.
    pub fn close(&self) {
        mmio::write32(self.cpu + GICC_CTLR, 0);
    }

    /// Sends the kick to a CPU: its interface has the number of its affinity level 0.
    pub fn kick(&self, mpidr: u64) {
        isa::dsb_ishst();
        mmio::write32(self.distributor + GICD_SGIR, 1 << (16 + (mpidr & 7)) | KICK);
    }

    /// Whether the virtual timer's physical line is active on this CPU.
    pub fn timer_active(&self) -> bool {
        mmio::read32(self.distributor + GICD_ISACTIVER) & 1 << VIRTUAL_TIMER != 0
    }

    /// Makes it so.
    pub fn set_timer_active(&self, active: bool) {
        let register = if active { GICD_ISACTIVER } else { GICD_ICACTIVER };
        mmio::write32(self.distributor + register, 1 << VIRTUAL_TIMER);
    }

    /// One list register of the loaded vCPU.
    pub fn list(&self, index: usize) -> ListEntry {
        unpack_list_2(mmio::read32(self.control + GICH_LR + 4 * index as u64))
    }

    /// List registers that hold nothing, one bit each (GICH_ELRSR0, GICv2 5.3.7).
    pub fn empty_lists(&self) -> u64 {
        mmio::read32(self.control + GICH_ELRSR) as u64 & 0xffff
    }

    /// Writes one.
    pub fn set_list(&self, index: usize, entry: ListEntry) {
        mmio::write32(self.control + GICH_LR + 4 * index as u64, pack_list_2(entry));
    }

    /// Saves the virtual interface of the loaded vCPU. Contexts hold list registers in GICv3's format.
    pub fn save(&self, lists: &mut [u64; 16], vmcr: &mut u64, priorities: &mut u64) {
        for (index, list) in lists.iter_mut().enumerate().take(self.lists) {
            *list = pack_list(self.list(index));
        }
        *vmcr = mmio::read32(self.control + GICH_VMCR) as u64;
        *priorities = mmio::read32(self.control + GICH_APR) as u64;
    }

    /// Loads it.
    pub fn load(&self, lists: &[u64; 16], vmcr: u64, priorities: u64) {
        for (index, list) in lists.iter().enumerate().take(self.lists) {
            self.set_list(index, unpack_list(*list));
        }
        mmio::write32(self.control + GICH_VMCR, vmcr as u32);
        mmio::write32(self.control + GICH_APR, priorities as u32);
    }

    /// GICH_HCR.
    pub fn control(&self, control: u32) {
        mmio::write32(self.control + GICH_HCR, control);
    }
}
