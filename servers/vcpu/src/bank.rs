// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers with a bit, a byte or two bits per line, which distributor and redistributor have in common.
//!
//! The state itself is the kernel's; here register offsets become [`LineField`]s (Arm GIC specification IHI 0069, 12.9
//! and 12.11; IHI 0048 4.3 for version 2).

use trellis_idl::kernel::{LineField, VIRTUAL_LINES};
use trellis_runtime::{System, Vcpu};

/// Priority bits that exist: 32 levels, as the virtual interface of most hardware has.
const PRIORITY_BITS: u32 = 0xf8f8_f8f8;
/// Inter-processor interrupts are edge triggered, which cannot be changed.
const IPI_CONFIGURATION: u32 = 0xaaaa_aaaa;

/// A register of the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Bits, written as they are.
    Plain(LineField),
    /// Bits; ones set.
    Set(LineField),
    /// Bits; ones clear.
    Clear(LineField),
    /// Bytes.
    Priority,
    /// Two bits.
    Configuration,
}

/// Register and first line at an offset.
fn find(offset: u64) -> Option<(Register, u64)> {
    use LineField::{Active, Enabled, Group, Pending};
    let (register, lines_per_byte) = match offset >> 7 {
        1 => (Register::Plain(Group), 8),
        2 => (Register::Set(Enabled), 8),
        3 => (Register::Clear(Enabled), 8),
        4 => (Register::Set(Pending), 8),
        5 => (Register::Clear(Pending), 8),
        6 => (Register::Set(Active), 8),
        7 => (Register::Clear(Active), 8),
        8..=15 => return known(Register::Priority, offset & 0x3fc),
        24 | 25 => return known(Register::Configuration, (offset & 0xfc) * 4),
        _ => return None,
    };
    known(register, (offset & 0x7c) * lines_per_byte)
}

fn known(register: Register, first: u64) -> Option<(Register, u64)> {
    (first < VIRTUAL_LINES).then_some((register, first))
}

/// First line of the register at this offset, if it is one of the bank with lines that exist.
pub fn first_line(offset: u64) -> Option<u64> {
    find(offset).map(|(_, first)| first)
}

/// The bits of a register of the bank that are about lines for which this holds; none for other registers.
pub fn lanes(offset: u64, holds: impl Fn(u64) -> bool) -> u32 {
    let Some((register, first)) = find(offset) else { return 0 };
    let bits = match register {
        Register::Plain(_) | Register::Set(_) | Register::Clear(_) => 1,
        Register::Configuration => 2,
        Register::Priority => 8,
    };
    let mask = (1 << bits) - 1;
    (0..32 / bits).filter(|i| holds(first + i)).fold(0, |all, i| all | mask << (i * bits))
}

/// Reads a register of the bank; others read as zero.
pub fn read(system: &impl System, vcpu: Vcpu, offset: u64) -> u32 {
    let Some((register, first)) = find(offset) else { return 0 };
    let bits = |field| vcpu.lines_read(system, field, first & !31).unwrap_or(0);
    match register {
        Register::Set(LineField::Pending) | Register::Clear(LineField::Pending) => {
            // A level line is pending while its input is high, whatever was latched.
            bits(LineField::Pending) | bits(LineField::Level) & !bits(LineField::Edge)
        }
        Register::Plain(field) | Register::Set(field) | Register::Clear(field) => bits(field),
        Register::Priority => vcpu.lines_priority_read(system, first).unwrap_or(0),
        Register::Configuration if first == 0 => IPI_CONFIGURATION,
        Register::Configuration => spread(bits(LineField::Edge) >> (first & 16)),
    }
}

/// Writes the bits in `lanes` of a register of the bank.
pub fn write(system: &impl System, vcpu: Vcpu, offset: u64, value: u32, lanes: u32) {
    let Some((register, first)) = find(offset) else { return };
    // A refusal here would mean that the vCPU is gone; the guest's write then has nobody to go to.
    let _ = match register {
        Register::Plain(field) => vcpu.lines_write(system, field, first, lanes, value),
        Register::Set(field) => vcpu.lines_write(system, field, first, value, u32::MAX),
        Register::Clear(field) => vcpu.lines_write(system, field, first, value, 0),
        Register::Priority => vcpu.lines_priority(system, first, value & PRIORITY_BITS, bytes_of(lanes)),
        Register::Configuration if first == 0 => Ok(()),
        Register::Configuration => {
            let shift = first & 16;
            vcpu.lines_write(system, LineField::Edge, first & !31, gather(lanes) << shift, gather(value) << shift)
        }
    };
}

/// Every line of this vCPU from `first` on as after reset.
pub fn reset(system: &impl System, vcpu: Vcpu, first: u64) {
    use LineField::{Active, Edge, Enabled, Group, Level, Pending};
    for field in [Enabled, Pending, Active, Group, Level] {
        let _ = vcpu.lines_write(system, field, first, u32::MAX, 0);
    }
    let edge = if first == 0 { 0xffff } else { 0 };
    let _ = vcpu.lines_write(system, Edge, first, u32::MAX, edge);
    for quad in (first..first + 32).step_by(4) {
        let _ = vcpu.lines_priority(system, quad, 0, 0xf);
    }
}

/// Bit i of the low half to bit 2i + 1.
fn spread(bits: u32) -> u32 {
    (0..16).fold(0, |all, i| all | (bits >> i & 1) << (2 * i + 1))
}

/// Bit 2i + 1 to bit i.
fn gather(pairs: u32) -> u32 {
    (0..16).fold(0, |all, i| all | (pairs >> (2 * i + 1) & 1) << i)
}

/// Which whole bytes a mask of bits covers.
fn bytes_of(lanes: u32) -> u8 {
    (0..4).fold(0, |all, byte| all | ((lanes >> (8 * byte) & 1) as u8) << byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_name_the_registers_of_the_manual() {
        assert_eq!(find(0x084), Some((Register::Plain(LineField::Group), 32)));
        assert_eq!(find(0x104), Some((Register::Set(LineField::Enabled), 32)));
        assert_eq!(find(0x180), Some((Register::Clear(LineField::Enabled), 0)));
        assert_eq!(find(0x38c), Some((Register::Clear(LineField::Active), 96)));
        assert_eq!(find(0x421), Some((Register::Priority, 32)));
        assert_eq!(find(0xc08), Some((Register::Configuration, 32)));
        assert_eq!(find(0x110), None);
        assert_eq!(find(0x480), None);
        assert_eq!(find(0x800), None);
    }

    #[test]
    fn configuration_bits_go_there_and_back() {
        for bits in [0, 1, 0x8000, 0xffff, 0x1234] {
            assert_eq!(gather(spread(bits)), bits);
        }
        assert_eq!(spread(3), 0b1010);
        assert_eq!(bytes_of(0x00ff_ff00), 0b0110);
    }
}
