// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controller of the host, of either version.
//!
//! Priority drop and deactivation are split (EOImode = 1): the kernel drops at once; what a guest shall end itself
//! stays active until it does, through a hardware-tied list register.

use crate::gic2::Gic2;
use crate::gic3::Gic3;
use crate::mmio;
use crate::registers::{pack_list, unpack_list};
use trellis_core::lines::ListEntry;
use trellis_idl::boot;

/// The virtual timer's private line.
pub const VIRTUAL_TIMER: u32 = 27;
/// The hypervisor timer's private line.
pub const ALARM: u32 = 26;
/// The maintenance interrupt's private line.
pub const MAINTENANCE: u32 = 25;
/// The software interrupt by which CPUs kick each other.
pub const KICK: u32 = 0;

/// The controller as one CPU uses it.
#[derive(Clone, Copy, Debug)]
pub enum Gic {
    /// Before [`Gic::start`].
    None,
    /// Version 2.
    V2(Gic2),
    /// Version 3.
    V3(Gic3),
}

impl Gic {
    /// Brings up the distributor: once, on the boot CPU.
    pub fn start_distributor(board: &boot::Gic) {
        match board.version {
            2 => Gic2::start_distributor(board.distributor),
            _ => Gic3::start_distributor(board.distributor),
        }
    }

    /// Brings up this CPU's part.
    pub fn start(board: &boot::Gic) -> Gic {
        match board.version {
            2 => Gic::V2(Gic2::start(board)),
            _ => Gic::V3(Gic3::start(board.distributor, board.cpu)),
        }
    }

    /// Number of list registers.
    #[inline]
    pub fn lists(&self) -> usize {
        match self {
            Gic::V3(gic) => gic.lists(),
            Gic::V2(gic) => gic.lists(),
            Gic::None => 0,
        }
    }

    /// Takes the pending interrupt and drops its priority. 1020 to 1023: none.
    #[inline]
    pub fn acknowledge(&self) -> u32 {
        match self {
            Gic::V3(gic) => gic.acknowledge(),
            Gic::V2(gic) => gic.acknowledge(),
            Gic::None => 1023,
        }
    }

    /// Deactivates a line that the kernel ends itself.
    #[inline]
    pub fn deactivate(&self, line: u32) {
        match self {
            Gic::V3(gic) => gic.deactivate(line),
            Gic::V2(gic) => gic.deactivate(line),
            Gic::None => {},
        }
    }

    /// Makes a device line inactive, whichever CPU acknowledged it.
    pub fn end_line(&self, line: u32) {
        match self {
            Gic::V3(gic) => gic.end_line(line),
            Gic::V2(gic) => gic.end_line(line),
            Gic::None => {},
        }
    }

    /// Masks or unmasks a device line; unmasked it comes to this CPU.
    #[inline]
    pub fn mask(&self, line: u32, masked: bool) {
        match self {
            Gic::V3(gic) => gic.mask(line, masked),
            Gic::V2(gic) => gic.mask(line, masked),
            Gic::None => {},
        }
    }

    /// A device line is triggered by an edge, or by its level: GICD_ICFGR, alike in both (GICv3 12.9.9, GICv2 4.3.13).
    pub fn set_edge(&self, line: u32, edge: bool) {
        let distributor = match self {
            Gic::V3(gic) => gic.distributor,
            Gic::V2(gic) => gic.distributor,
            Gic::None => return,
        };
        let (register, bit) = (distributor + 0xc00 + 4 * (line as u64 / 16), 2 << (2 * (line % 16)));
        let others = mmio::read32(register) & !bit;
        mmio::write32(register, if edge { others | bit } else { others });
    }

    /// A device line that comes to this CPU comes to another one, by its affinity.
    pub fn bequeath(&self, line: u32, mpidr: u64) {
        match self {
            Gic::V3(gic) => gic.bequeath(line, mpidr),
            Gic::V2(gic) => gic.bequeath(line, mpidr),
            Gic::None => {}
        }
    }

    /// No interrupt reaches this CPU any more.
    pub fn close(&self) {
        match self {
            Gic::V3(gic) => gic.close(),
            Gic::V2(gic) => gic.close(),
            Gic::None => {}
        }
    }

    /// Sends the kick to a CPU by its affinity.
    #[inline]
    pub fn kick(&self, mpidr: u64) {
        match self {
            Gic::V3(gic) => gic.kick(mpidr),
            Gic::V2(gic) => gic.kick(mpidr),
            Gic::None => {},
        }
    }

    /// Whether the virtual timer's physical line is active on this CPU.
    #[inline]
    pub fn timer_active(&self) -> bool {
        match self {
            Gic::V3(gic) => gic.timer_active(),
            Gic::V2(gic) => gic.timer_active(),
            Gic::None => false,
        }
    }

    /// Makes it so.
    #[inline]
    pub fn set_timer_active(&self, active: bool) {
        match self {
            Gic::V3(gic) => gic.set_timer_active(active),
            Gic::V2(gic) => gic.set_timer_active(active),
            Gic::None => {},
        }
    }

    /// One list register of the loaded vCPU.
    #[inline]
    pub fn list(&self, index: usize) -> ListEntry {
        match self {
            Gic::V3(gic) => gic.list(index),
            Gic::V2(gic) => gic.list(index),
            Gic::None => ListEntry::default(),
        }
    }

    /// Writes one.
    #[inline(always)]
    pub fn set_list(&self, index: usize, entry: ListEntry) {
        let word = pack_list(entry);
        match self {
            Gic::V3(gic) => gic.set_list(index, word),
            _ => self.set_list_in_memory(index, word),
        }
    }

    /// The same where list registers are in memory, in version 3's format: all that both need is one word.
    #[cfg_attr(target_os = "none", optimize(speed))]
    #[cold]
    #[inline(never)]
    fn set_list_in_memory(&self, index: usize, word: u64) {
        if let Gic::V2(gic) = self {
            gic.set_list(index, unpack_list(word));
        }
    }

    /// List registers of the loaded vCPU that hold nothing, one bit each.
    #[inline(always)]
    pub fn empty_lists(&self) -> u64 {
        match self {
            Gic::V3(gic) => gic.empty_lists(),
            Gic::V2(gic) => gic.empty_lists(),
            Gic::None => 0,
        }
    }

    /// Saves the virtual interface of the loaded vCPU.
    #[inline]
    pub fn save(&self, lists: &mut [u64; 16], vmcr: &mut u64, priorities: &mut u64) {
        match self {
            Gic::V3(gic) => gic.save(lists, vmcr, priorities),
            Gic::V2(gic) => gic.save(lists, vmcr, priorities),
            Gic::None => {},
        }
    }

    /// Loads it.
    #[inline]
    pub fn load(&self, lists: &[u64; 16], vmcr: u64, priorities: u64) {
        match self {
            Gic::V3(gic) => gic.load(lists, vmcr, priorities),
            Gic::V2(gic) => gic.load(lists, vmcr, priorities),
            Gic::None => {},
        }
    }

    /// Whether virtual interrupts come at all, and whether the underflow maintenance interrupt is asked for.
    #[inline]
    pub fn control(&self, on: bool, underflow: bool) {
        // En and UIE, alike in both (GICv3 12.4.2, GICv2 5.3.1). Without En there is no maintenance interrupt either.
        let control = u32::from(on) | u32::from(underflow) << 1;
        match self {
            Gic::V3(gic) => gic.control(control),
            Gic::V2(gic) => gic.control(control),
            Gic::None => {},
        }
    }
}
