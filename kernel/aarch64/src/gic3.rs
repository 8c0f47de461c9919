// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv3: system registers and two MMIO frames.

use crate::gic::{ALARM, KICK, MAINTENANCE, VIRTUAL_TIMER};
use crate::isa::{self, read, write};
use crate::mmio;
use trellis_core::lines::ListEntry;

use crate::registers::unpack_list;

/// GICD registers (GICv3 12.9).
const GICD_CTLR: u64 = 0;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IGROUPR: u64 = 0x80;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_IROUTER: u64 = 0x6000;
/// Affinity fields of MPIDR_EL1 and of a route.
const AFFINITY: u64 = 0xff_00ff_ffff;
/// GICR registers: the second frame (12.11).
const GICR_SGI: u64 = 0x1_0000;
const GICR_TYPER: u64 = 0x08;
const GICR_WAKER: u64 = 0x14;
const GICR_ISACTIVER: u64 = GICR_SGI + 0x300;
const GICR_ICACTIVER: u64 = GICR_SGI + 0x380;

/// Where the controller is.
#[derive(Clone, Copy, Debug)]
pub struct Gic3 {
    pub(crate) distributor: u64,
    redistributor: u64,
    lists: usize,
}

impl Gic3 {
    /// Brings up the distributor: once, on the boot CPU.
    pub fn start_distributor(distributor: u64) {
        // Group 1 non-secure, affinity routing: as the emulator's single security state needs it.
        mmio::write32(distributor + GICD_CTLR, 0x13);
        for word in 1..32 {
            mmio::write32(distributor + GICD_IGROUPR + 4 * word, u32::MAX);
            mmio::write32(distributor + GICD_ICENABLER + 4 * word, u32::MAX);
        }
    }

    /// The redistributor of this CPU: by affinity, as GICR_TYPER says it.
    fn find_redistributor(redistributors: u64) -> u64 {
        let mpidr = read!("mpidr_el1");
        let affinity = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
        let mut at = redistributors;
        loop {
            let kind = mmio::read64(at + GICR_TYPER);
            // Bit 4: the last one; then it must be this.
            if kind >> 32 == affinity || kind >> 4 & 1 == 1 {
                return at;
            }
            at += 0x2_0000;
        }
    }

    /// Brings up this CPU's redistributor and interfaces.
    pub fn start(distributor: u64, redistributors: u64) -> Gic3 {
        let redistributor = Self::find_redistributor(redistributors);
        mmio::write32(redistributor + GICR_WAKER, 0);
        while mmio::read32(redistributor + GICR_WAKER) & 4 != 0 {}
        mmio::write32(redistributor + GICR_SGI + GICD_IGROUPR, u32::MAX);
        mmio::write32(redistributor + GICR_SGI + GICD_ICENABLER, u32::MAX);
        for word in 0..8 {
            mmio::write32(redistributor + GICR_SGI + GICD_IPRIORITYR + 4 * word, 0x8080_8080);
        }
        let own = 1 << VIRTUAL_TIMER | 1 << ALARM | 1 << MAINTENANCE | 1 << KICK;
        mmio::write32(redistributor + GICR_SGI + GICD_ISENABLER, own);
        write!("ICC_SRE_EL2", 0xf);
        isa::isb();
        write!("ICC_PMR_EL1", 0xf8);
        write!("ICC_BPR1_EL1", 0);
        write!("ICC_CTLR_EL1", 1 << 1);
        write!("ICC_IGRPEN1_EL1", 1);
        write!("ICH_HCR_EL2", 1);
        isa::isb();
        let lists = (read!("ICH_VTR_EL2") & 31) as usize + 1;
        Gic3 { distributor, redistributor, lists }
    }

    /// Number of list registers.
    pub fn lists(&self) -> usize {
        self.lists
    }

    /// Takes the pending interrupt and drops its priority. 1020 to 1023: none.
    #[inline(always)]
    pub fn acknowledge(&self) -> u32 {
        let line = (read!("ICC_IAR1_EL1") & 0xff_ffff) as u32;
        // Four numbers say that there is none (2.2.1); LPIs are above them.
        if line & !3 != 1020 {
            // The acknowledge must be over before the device is touched.
            isa::dsb_sy();
            write!("ICC_EOIR1_EL1", line as u64);
            isa::isb();
        }
        line
    }

    /// Deactivates a line that the kernel ends itself.
    pub fn deactivate(&self, line: u32) {
        write!("ICC_DIR_EL1", line as u64);
    }

    /// Makes a device line inactive (GICv3 12.9.9).
    pub fn end_line(&self, line: u32) {
        mmio::write32(self.distributor + GICD_ICACTIVER + 4 * (line as u64 / 32), 1 << (line % 32));
    }

    /// Masks or unmasks a device line; unmasked it comes to this CPU.
    #[inline(always)]
    pub fn mask(&self, line: u32, masked: bool) {
        if !(32..1020).contains(&line) {
            return;
        }
        let (word, bit) = (4 * (line as u64 / 32), 1 << (line % 32));
        if masked {
            mmio::write32(self.distributor + GICD_ICENABLER + word, bit);
        } else {
            let affinity = read!("mpidr_el1") & AFFINITY;
            mmio::write64(self.distributor + GICD_IROUTER + 8 * line as u64, affinity);
            mmio::write8(self.distributor + GICD_IPRIORITYR + line as u64, 0x80);
            mmio::write32(self.distributor + GICD_ISENABLER + word, bit);
        }
    }

    /// A device line that comes to this CPU comes to another one, by its affinity (GICv3 12.9.22).
    pub fn bequeath(&self, line: u32, mpidr: u64) {
        let route = self.distributor + GICD_IROUTER + 8 * line as u64;
        if (32..1020).contains(&line) && mmio::read64(route) == read!("mpidr_el1") & AFFINITY {
            mmio::write64(route, mpidr & AFFINITY);
        }
    }

    /// The CPU interface signals nothing any more, and the redistributor does not expect it to (GICv3 11.1).
    pub fn close(&self) {
        write!("ICC_IGRPEN1_EL1", 0);
        isa::isb();
        mmio::write32(self.redistributor + GICR_WAKER, mmio::read32(self.redistributor + GICR_WAKER) | 1 << 1);
    }

    /// Sends the kick to a CPU by its affinity.
    pub fn kick(&self, mpidr: u64) {
        let sgi = (mpidr >> 32 & 0xff) << 48 | (mpidr >> 16 & 0xff) << 32 | (mpidr >> 8 & 0xff) << 16
            | (KICK as u64) << 24 | 1 << (mpidr & 15);
        isa::dsb_ishst();
        write!("ICC_SGI1R_EL1", sgi);
        isa::isb();
    }

    /// Whether the virtual timer's physical line is active on this CPU.
    pub fn timer_active(&self) -> bool {
        mmio::read32(self.redistributor + GICR_ISACTIVER) & 1 << VIRTUAL_TIMER != 0
    }

    /// Makes it so.
    pub fn set_timer_active(&self, active: bool) {
        let register = if active { GICR_ISACTIVER } else { GICR_ICACTIVER };
        mmio::write32(self.redistributor + register, 1 << VIRTUAL_TIMER);
    }

    /// One list register of the loaded vCPU.
    pub fn list(&self, index: usize) -> ListEntry {
        unpack_list(read_list(index))
    }

    /// List registers that hold nothing, one bit each (ICH_ELRSR_EL2, GICv3 12.4.3).
    pub fn empty_lists(&self) -> u64 {
        read!("ICH_ELRSR_EL2")
    }

    /// Writes one.
    #[inline(always)]
    pub fn set_list(&self, index: usize, word: u64) {
        // Mostly it is the first.
        if index == 0 {
            write!("ICH_LR0_EL2", word);
        } else {
            write_list(index, word);
        }
    }

    /// Saves the virtual interface of the loaded vCPU.
    pub fn save(&self, lists: &mut [u64; 16], vmcr: &mut u64, priorities: &mut u64) {
        for (index, list) in lists.iter_mut().enumerate().take(self.lists) {
            *list = read_list(index);
        }
        *vmcr = read!("ICH_VMCR_EL2");
        *priorities = read!("ICH_AP1R0_EL2");
    }

    /// Loads it.
    pub fn load(&self, lists: &[u64; 16], vmcr: u64, priorities: u64) {
        for (index, list) in lists.iter().enumerate().take(self.lists) {
            write_list(index, *list);
        }
        write!("ICH_VMCR_EL2", vmcr);
        write!("ICH_AP1R0_EL2", priorities);
    }

    /// ICH_HCR_EL2.
    pub fn control(&self, control: u32) {
        write!("ICH_HCR_EL2", control.into());
    }
}

macro_rules! lists {
    ($($index:literal $name:literal),*) => {
        #[cfg_attr(target_os = "none", optimize(speed))]
        fn read_list(index: usize) -> u64 {
            match index {
                $($index => read!($name),)*
                _ => 0,
            }
        }

        #[cfg_attr(target_os = "none", optimize(speed))]
        fn write_list(index: usize, value: u64) {
            match index {
                $($index => write!($name, value),)*
                _ => {}
            }
        }
    };
}

lists! {
    0 "ICH_LR0_EL2", 1 "ICH_LR1_EL2", 2 "ICH_LR2_EL2", 3 "ICH_LR3_EL2", 4 "ICH_LR4_EL2", 5 "ICH_LR5_EL2",
    6 "ICH_LR6_EL2", 7 "ICH_LR7_EL2", 8 "ICH_LR8_EL2", 9 "ICH_LR9_EL2", 10 "ICH_LR10_EL2", 11 "ICH_LR11_EL2",
    12 "ICH_LR12_EL2", 13 "ICH_LR13_EL2", 14 "ICH_LR14_EL2", 15 "ICH_LR15_EL2"
}
