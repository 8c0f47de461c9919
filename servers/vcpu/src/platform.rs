// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of the guest's devices an address means.

use crate::bus::Registers;
use trellis_idl::layout::platform::{
    CLOCK, DISTRIBUTOR, DISTRIBUTOR_BYTES, FLASH, FLASH_BYTES, REDISTRIBUTOR_BYTES, REDISTRIBUTORS, SLOT_BYTES, SLOT_COUNT, SLOTS,
};
pub use trellis_idl::layout::platform::SERIAL;

/// The serial port's interrupt line.
pub const SERIAL_LINE: u32 = 33;

/// A device but the serial port, which is looked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The interrupt distributor.
    Distributor,
    /// The redistributor of this vCPU.
    Redistributor(u8),
    /// The real-time clock.
    Clock,
    /// Paravirtual devices, none of them there.
    EmptySlots,
    /// Two banks of flash, neither of them there.
    EmptyFlash,
}

/// The device at an address, and the offset in it.
pub fn find(address: u64, gic: u8, vcpus: u8) -> Option<(Device, u64)> {
    let within = |base: u64, bytes: u64| address.checked_sub(base).filter(|offset| *offset < bytes);
    if let Some(offset) = within(DISTRIBUTOR, DISTRIBUTOR_BYTES) {
        return Some((Device::Distributor, offset));
    }
    if let Some(offset) = within(REDISTRIBUTORS, REDISTRIBUTOR_BYTES * u64::from(vcpus)) {
        return (gic == 3).then_some((Device::Redistributor((offset / REDISTRIBUTOR_BYTES) as u8), offset % REDISTRIBUTOR_BYTES));
    }
    if let Some(offset) = within(FLASH, FLASH_BYTES) {
        return Some((Device::EmptyFlash, offset));
    }
    if let Some(offset) = within(CLOCK, 0x1000) {
        return Some((Device::Clock, offset));
    }
    let offset = within(SLOTS, SLOT_BYTES * SLOT_COUNT)?;
    Some((Device::EmptySlots, offset % SLOT_BYTES))
}

/// A paravirtual slot without a device: virtio-mmio version 2, device 0 (Virtio 1.2, 4.2.2).
#[derive(Clone, Copy, Debug)]
pub struct EmptySlots;

impl Registers for EmptySlots {
    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x0 => u32::from_le_bytes(*b"virt"),
            0x4 => 2,
            _ => 0,
        }
    }

    fn write(&mut self, _offset: u64, _value: u32, _lanes: u32) {}
}

/// Flash that is not there: nothing answers the query command, so a probe finds no chip. Once a page of it was read, p2m
/// shows zeroes there, so that a guest that reads all of it does so at the speed of memory; writes come here always.
#[derive(Clone, Copy, Debug)]
pub struct EmptyFlash;

impl Registers for EmptyFlash {
    fn read(&mut self, _offset: u64) -> u32 {
        0
    }

    fn write(&mut self, _offset: u64, _value: u32, _lanes: u32) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_find_their_devices() {
        assert_eq!(find(0x0800_0104, 3, 1), Some((Device::Distributor, 0x104)));
        assert_eq!(find(0x080d_0080, 3, 2), Some((Device::Redistributor(1), 0x1_0080)));
        assert_eq!(find(0x080c_0000, 3, 1), None);
        assert_eq!(find(0x080a_0000, 2, 1), None);
        assert_eq!(find(0x0a00_0208, 3, 1), Some((Device::EmptySlots, 8)));
        assert_eq!(find(0x0a00_4000, 3, 1), None);
    }
}
