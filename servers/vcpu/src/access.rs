// SPDX-License-Identifier: MIT OR Apache-2.0
//! Accesses to devices: those that the syndrome describes, and those whose instruction must be read and carried out.
//!
//! A data abort has a valid syndrome (ISV) only for loads and stores of one general register without write-back
//! (Arm ARM D24.2.40). For the others the instruction is found through the guest's own tables (`trellis_runtime::stage1`), decoded
//! (`instruction.rs`) and carried out here, register by register.

use crate::bus::Order;
use crate::instruction::{NotEmulated, Offset, Transfer, WriteBack, decode};
use trellis_idl::kernel::{Exit, ExitHeader, Refusal, VcpuRegister};
use trellis_runtime::stage1::{Regime, Translation, WalkError};
use trellis_runtime::{Guest, System, Vcpu};

/// Why an access cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no device at this address.
    NoDevice,
    /// The guest fetches instructions or walks its tables in a device.
    NotData,
    /// It runs 32-bit code, whose instructions are not decoded here.
    Narrow,
    /// The instruction has no translation.
    Walk(WalkError),
    /// The instruction lies where there is no memory.
    NoInstruction,
    /// This instruction is not emulated.
    Instruction(NotEmulated),
    /// The access goes over a page's end, or the instruction is not the one that was trapped.
    Elsewhere,
    /// The kernel did not do what was asked.
    Refused(Refusal),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Refused(refusal)
    }
}

/// Devices by guest-physical address: bytes, and the value of a write. Back: the value read.
pub trait Devices {
    /// One access of 1–8 bytes; none = nobody lives there.
    fn access(&self, address: u64, bytes: u8, write: Option<u64>) -> Option<u64>;
}

/// ISS.CM: the abort comes from cache maintenance, which has no effect on a device.
const CACHE_MAINTENANCE: u64 = 1 << 8;
/// PSTATE: 32-bit state.
const NARROW: u64 = 1 << 4;

/// Carries out the instruction of an exit without a valid syndrome. The caller then skips it.
pub fn emulate(system: &impl System, guest: Guest, vcpu: Vcpu, exit: &Exit, devices: &impl Devices) -> Result<(), Trouble> {
    if exit.header.has(ExitHeader::WALK) || exit.header.has(ExitHeader::FETCH) {
        return Err(Trouble::NotData);
    }
    if exit.syndrome & CACHE_MAINTENANCE != 0 {
        return Ok(());
    }
    let state = vcpu.get(system, VcpuRegister::Pstate)?;
    if state & NARROW != 0 {
        return Err(Trouble::Narrow);
    }
    let word = instruction(system, guest, vcpu)?;
    let transfer = decode(word).map_err(Trouble::Instruction)?;
    carry_out(&Registers { system, vcpu, state }, &transfer, exit, devices)
}

/// The instruction that the vCPU stands at.
pub(crate) fn instruction(system: &impl System, guest: Guest, vcpu: Vcpu) -> Result<u32, Trouble> {
    let pc = vcpu.get(system, VcpuRegister::Pc)?;
    let address = translate(system, guest, vcpu, pc)?;
    read(system, guest, address).map(u32::from_le_bytes).ok_or(Trouble::NoInstruction)
}

/// Where a virtual address of a stopped vCPU is.
pub(crate) fn translate(system: &impl System, guest: Guest, vcpu: Vcpu, address: u64) -> Result<u64, Trouble> {
    walk(system, guest, vcpu, address).map(|found| found.address)
}

/// The same, with all that its tables say.
pub(crate) fn walk(system: &impl System, guest: Guest, vcpu: Vcpu, address: u64) -> Result<Translation, Trouble> {
    let regime = Regime {
        sctlr: vcpu.get(system, VcpuRegister::SctlrEl1)?,
        tcr: vcpu.get(system, VcpuRegister::TcrEl1)?,
        ttbr0: vcpu.get(system, VcpuRegister::Ttbr0El1)?,
        ttbr1: vcpu.get(system, VcpuRegister::Ttbr1El1)?,
    };
    regime.walk(address, |at| read(system, guest, at).map(u64::from_le_bytes)).map_err(Trouble::Walk)
}

pub(crate) fn read<const N: usize>(system: &impl System, guest: Guest, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let count = guest.read(system, address, &mut bytes).ok()?;
    (count == N as u64).then_some(bytes)
}

/// General registers and the stack pointer of a stopped vCPU.
pub(crate) struct Registers<'a, S> {
    pub(crate) system: &'a S,
    pub(crate) vcpu: Vcpu,
    pub(crate) state: u64,
}

impl<S: System> Registers<'_, S> {
    pub(crate) fn general(&self, number: u8) -> Result<u64, Refusal> {
        if number == 31 { Ok(0) } else { self.vcpu.get_general(self.system, number) }
    }

    pub(crate) fn set_general(&self, number: u8, value: u64) -> Result<(), Refusal> {
        if number == 31 { Ok(()) } else { self.vcpu.set_general(self.system, number, value) }
    }

    /// Which register number 31 is as a base: PSTATE.SP and the level choose (Arm ARM D1.2.2).
    pub(crate) fn stack(&self) -> VcpuRegister {
        if self.state & 0xf == 0b0101 { VcpuRegister::SpEl1 } else { VcpuRegister::SpEl0 }
    }

    pub(crate) fn base(&self, number: u8) -> Result<u64, Refusal> {
        if number == 31 { self.vcpu.get(self.system, self.stack()) } else { self.general(number) }
    }

    pub(crate) fn set_base(&self, number: u8, value: u64) -> Result<(), Refusal> {
        if number == 31 { self.vcpu.set(self.system, self.stack(), value) } else { self.set_general(number, value) }
    }

    fn offset(&self, offset: Offset) -> Result<u64, Refusal> {
        Ok(match offset {
            Offset::Constant(value) => value as u64,
            Offset::Register { number, option, shift } => {
                let value = self.general(number)?;
                let extended = match option {
                    2 => value & 0xffff_ffff,
                    6 => i64::from(value as i32) as u64,
                    _ => value,
                };
                extended << shift
            }
        })
    }
}

fn carry_out(
    registers: &Registers<'_, impl System>, transfer: &Transfer, exit: &Exit, devices: &impl Devices,
) -> Result<(), Trouble> {
    let base = registers.base(transfer.base)?;
    let moved = base.wrapping_add(registers.offset(transfer.offset)?);
    let start = if transfer.write_back == WriteBack::After { base } else { moved };
    let physical = physical(start, transfer, exit)?;
    move_values(registers, transfer, physical, Order::of(exit.header), devices)?;
    if transfer.write_back != WriteBack::None {
        registers.set_base(transfer.base, moved)?;
    }
    Ok(())
}

/// Where the whole access lies. It is the page that was trapped, or it is not this access that was trapped.
fn physical(start: u64, transfer: &Transfer, exit: &Exit) -> Result<u64, Trouble> {
    let within = start & 0xfff;
    let page_differs = (start ^ exit.virtual_address) << 8 >> 20 != 0;
    let is_other = exit.header.has(ExitHeader::VIRTUAL_VALID) && page_differs;
    if is_other || within + transfer.total_bytes() > 4096 {
        return Err(Trouble::Elsewhere);
    }
    Ok(exit.physical & !0xfff | within)
}

fn move_values(
    registers: &Registers<'_, impl System>, transfer: &Transfer, physical: u64, order: Order, devices: &impl Devices,
) -> Result<(), Trouble> {
    let mut values = [0; 2];
    let numbers = [Some(transfer.first), transfer.second];
    for (index, number) in numbers.into_iter().enumerate() {
        let Some(number) = number else { continue };
        let address = physical + index as u64 * u64::from(transfer.bytes);
        let write = if transfer.is_load { None } else { Some(order.turn(registers.general(number)?, transfer.bytes)) };
        let value = devices.access(address, transfer.bytes, write).ok_or(Trouble::NoDevice)?;
        if let Some(place) = values.get_mut(index) {
            *place = transfer.extend(order.turn(value, transfer.bytes));
        }
    }
    if transfer.is_load {
        for (number, value) in numbers.into_iter().zip(values) {
            if let Some(number) = number {
                registers.set_general(number, value)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
