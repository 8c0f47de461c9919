// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's interrupt distributor (GICD), version 3 or 2. Line state is the kernel's (`bank.rs`); kept here is only
//! what a guest reads back, and which vCPU each guest-wide line is in.

use crate::bank;
use crate::bus::{Registers, merge};
use trellis_idl::kernel::{LineField, VIRTUAL_LINES};
use trellis_idl::layout::slot;
use trellis_runtime::{System, Vcpu};

/// Guest-wide lines.
const SHARED_LINES: usize = VIRTUAL_LINES as usize - 32;
/// GICD_CTLR: forward groups 0 and 1.
const ENABLE: u32 = 3;
/// GICD_CTLR of version 3: one security state (DS), affinity routing (ARE); both always on.
const FIXED_CONTROL: u32 = 1 << 6 | 1 << 4;
/// GICD_TYPER.ITLinesNumber.
const LINE_BLOCKS: u32 = VIRTUAL_LINES as u32 / 32 - 1;
/// GICD_TYPER of version 3: 10 identifier bits, no 1-of-N routing.
const TYPE_3: u32 = 1 << 25 | 9 << 19 | LINE_BLOCKS;
/// GICD_IIDR: product "T", implementer as for an Arm design.
pub const IMPLEMENTER: u32 = 0x5400_043b;
/// GICD_IROUTER.IRM: any CPU will do.
const ANY: u8 = 0x80;

/// What the distributor remembers.
#[derive(Debug)]
pub struct Distributor {
    /// vCPUs of the guest.
    vcpus: u8,
    control: u32,
    /// vCPU that the guest sends each guest-wide line to, and [`ANY`].
    routes: [u8; SHARED_LINES],
    /// vCPU that each is in. It goes where it is sent as soon as it is not active.
    homes: [u8; SHARED_LINES],
    /// Some line is not where it is sent.
    is_late: bool,
}

impl Distributor {
    /// As after reset, of a guest with so many vCPUs.
    pub const fn new(vcpus: u8) -> Distributor {
        Distributor { vcpus, control: 0, routes: [0; SHARED_LINES], homes: [0; SHARED_LINES], is_late: false }
    }

    /// Everything as after reset, the kernel's part too.
    pub fn reset(&mut self, system: &impl System) {
        self.forward(system, false);
        for vcpu in (0..self.vcpus).filter(|vcpu| *vcpu == 0 || self.homes.contains(vcpu)) {
            for first in (32..VIRTUAL_LINES).step_by(32) {
                bank::reset(system, vcpu_at(vcpu), first);
            }
        }
        // Inactive by now, so they can go. A physical line that is tied to one of them comes to where it is.
        for (line, home) in (32..).zip(self.homes).filter(|(_, home)| *home != 0) {
            if let Ok(state) = vcpu_at(home).line_take(system, line) {
                let _ = vcpu_at(0).line_target(system, line, state);
            }
        }
        *self = Distributor::new(self.vcpus);
    }

    /// The input of a level line has changed.
    pub fn set_level(&mut self, system: &impl System, line: u32, level: bool) {
        self.settle(system);
        let (bit, first) = (1 << (line & 31), u64::from(line & !31));
        let home = vcpu_at(self.home(line.into()));
        let _ = home.lines_write(system, LineField::Level, first, bit, if level { bit } else { 0 });
    }

    /// A message makes a line pending.
    pub fn raise(&mut self, system: &impl System, line: u32) {
        self.settle(system);
        let (bit, first) = (1 << (line & 31), u64::from(line & !31));
        let home = vcpu_at(self.home(line.into()));
        let _ = home.lines_write(system, LineField::Pending, first, bit, bit);
    }

    /// The vCPU that a guest-wide line is in.
    fn home(&self, line: u64) -> u8 {
        line.checked_sub(32).and_then(|index| self.homes.get(index as usize)).copied().unwrap_or(0)
    }

    /// Lines go where they are sent. One that is active stays until the guest has ended it (GICv2 4.3.12), and is tried
    /// again whenever the guest or a device has to do with guest-wide lines.
    fn settle(&mut self, system: &impl System) {
        if !self.is_late {
            return;
        }
        self.is_late = false;
        for (line, (route, home)) in (32..).zip(self.routes.iter().zip(&mut self.homes)) {
            let to = route & !ANY;
            if to == *home {
                continue;
            }
            match vcpu_at(*home).line_take(system, line) {
                Ok(state) => {
                    // A refusal would mean that the vCPU is gone; its line then has nobody to go to.
                    let _ = vcpu_at(to).line_target(system, line, state);
                    *home = to;
                }
                Err(_) => self.is_late = true,
            }
        }
    }

    /// Which bits of a register of the bank are about lines in this vCPU.
    fn part(&self, vcpu: u8, offset: u64) -> u32 {
        bank::lanes(offset, |line| self.home(line) == vcpu)
    }

    /// Reads a register about guest-wide lines, wherever they are.
    fn read(&self, system: &impl System, offset: u64) -> u32 {
        (0..self.vcpus).fold(0, |all, vcpu| match self.part(vcpu, offset) {
            0 => all,
            part => all | bank::read(system, vcpu_at(vcpu), offset) & part,
        })
    }

    /// Writes one.
    fn write(&mut self, system: &impl System, offset: u64, value: u32, lanes: u32) {
        self.settle(system);
        for vcpu in 0..self.vcpus {
            let part = self.part(vcpu, offset) & lanes;
            if part != 0 {
                bank::write(system, vcpu_at(vcpu), offset, value & part, part);
            }
        }
    }

    fn set_control(&mut self, system: &impl System, value: u32) {
        let control = value & ENABLE;
        if (control != 0) != (self.control != 0) {
            self.forward(system, control != 0);
        }
        self.control = control;
    }

    /// Opens or closes the way to every vCPU: the kernel keeps this with each.
    fn forward(&self, system: &impl System, on: bool) {
        for index in 0..self.vcpus {
            // One that the kernel does not know any more has no lines that could come.
            let _ = vcpu_at(index).lines_enable(system, on);
        }
    }

    fn route(&self, line: u64) -> u8 {
        line.checked_sub(32).and_then(|index| self.routes.get(index as usize)).copied().unwrap_or(0)
    }

    fn set_route(&mut self, system: &impl System, line: u64, vcpu: u8, any: bool) {
        let place = line.checked_sub(32).and_then(|index| self.routes.get_mut(index as usize));
        if let Some(place) = place {
            *place = vcpu | if any { ANY } else { 0 };
            self.is_late = true;
            self.settle(system);
        }
    }
}

fn vcpu_at(index: u8) -> Vcpu {
    Vcpu::at(slot::VCPU + u64::from(index))
}

/// The distributor as one vCPU sees it.
#[derive(Debug)]
pub struct Version3<'a, S> {
    /// What it remembers.
    pub state: &'a mut Distributor,
    /// The kernel.
    pub system: &'a S,
}

/// Line of GICD_IROUTER at this offset, and whether it is the upper half.
fn router(offset: u64) -> Option<(u64, bool)> {
    let line = offset.checked_sub(0x6000)? / 8;
    (32..VIRTUAL_LINES).contains(&line).then_some((line, offset & 4 != 0))
}

/// The bank's register at this offset when it is about guest-wide lines: with affinity routing the private lines are
/// in the redistributors only.
fn is_shared(offset: u64) -> bool {
    bank::first_line(offset).is_some_and(|first| first >= 32)
}

impl<S: System> Registers for Version3<'_, S> {
    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x0 => self.state.control | FIXED_CONTROL,
            0x4 => TYPE_3,
            0x8 => IMPLEMENTER,
            // GICD_PIDR2: version 3.
            0xffe8 => 0x3b,
            _ if is_shared(offset) => self.state.read(self.system, offset),
            _ => match router(offset) {
                Some((line, false)) => {
                    let route = self.state.route(line);
                    u32::from(route & !ANY) | u32::from(route & ANY) << 24
                }
                _ => 0,
            },
        }
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        match offset {
            0x0 => {
                let value = merge(self.state.control, value, lanes);
                self.state.set_control(self.system, value);
            }
            _ if is_shared(offset) => self.state.write(self.system, offset, value, lanes),
            _ => {
                let Some((line, false)) = router(offset) else { return };
                let any = value >> 31 == 1;
                let affinity = value & 0x00ff_ffff;
                match u8::try_from(affinity) {
                    Ok(vcpu) if any || vcpu < self.state.vcpus => {
                        self.state.set_route(self.system, line, if any { 0 } else { vcpu }, any);
                    }
                    // No such CPU: the line would go nowhere; it stays where it was.
                    _ => {}
                }
            }
        }
    }
}

/// The version 2 distributor as one vCPU sees it: its private lines are banked.
#[derive(Debug)]
pub struct Version2<'a, S> {
    /// What it remembers.
    pub state: &'a mut Distributor,
    /// The kernel.
    pub system: &'a S,
    /// The one that accesses.
    pub vcpu: u8,
}

/// The lowest bit of each byte, side by side.
fn every_eighth(word: u32) -> u32 {
    (0..4).fold(0, |all, i| all | (word >> (8 * i) & 1) << i)
}

/// Offsets at which a version 2 guest finds pending bits of software interrupts: they are read here and written by sender
/// (GICv2 4.3.7, 4.3.8).
const fn is_software_pending(offset: u64) -> bool {
    matches!(offset, 0x200 | 0x280)
}

impl<S: System> Version2<'_, S> {
    fn targets(&self, first: u64) -> u32 {
        (0..4).fold(0, |all, i| {
            let target = if first < 32 { self.vcpu } else { self.state.route(first + i) & 7 };
            all | 1 << target << (8 * i)
        })
    }

    fn set_targets(&mut self, first: u64, value: u32, lanes: u32) {
        for i in 0..4 {
            let target = (value >> (8 * i)) as u8;
            let vcpu = target.trailing_zeros() as u8;
            if lanes >> (8 * i) & 1 == 1 && vcpu < self.state.vcpus {
                self.state.set_route(self.system, first + i, vcpu, false);
            }
        }
    }

    /// GICD_SGIR: filter, list and number of an inter-processor interrupt.
    fn send(&self, value: u32) {
        let line = value & 15;
        let everybody = (1u32 << self.state.vcpus) - 1;
        let targets = match value >> 24 & 3 {
            0 => value >> 16 & everybody,
            1 => everybody & !(1 << self.vcpu),
            2 => 1 << self.vcpu,
            _ => 0,
        };
        for vcpu in (0..self.state.vcpus).filter(|vcpu| targets >> vcpu & 1 == 1) {
            let _ = vcpu_at(vcpu).software_write(self.system, self.vcpu, 1 << line, true);
        }
    }

    /// GICD_CPENDSGIR, GICD_SPENDSGIR: a byte an interrupt, a bit a sender.
    fn pend(&self, first: u64, value: u32, pending: bool) {
        for sender in 0..self.state.vcpus {
            let which = every_eighth(value >> sender);
            if which != 0 {
                let _ = vcpu_at(self.vcpu).software_write(self.system, sender, which << first, pending);
            }
        }
    }

    fn pending(&self, first: u64) -> u32 {
        (0..self.state.vcpus).fold(0, |all, sender| {
            let bits = vcpu_at(self.vcpu).software_read(self.system, sender).unwrap_or(0) >> first;
            (0..4).fold(all, |all, i| all | (bits >> i & 1) << (8 * i + u32::from(sender)))
        })
    }
}

impl<S: System> Registers for Version2<'_, S> {
    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x0 => self.state.control,
            0x4 => u32::from(self.state.vcpus.saturating_sub(1)) << 5 | LINE_BLOCKS,
            0x8 => IMPLEMENTER,
            0x800..0x880 => self.targets(offset & 0x7c),
            0xf10..0xf30 => self.pending(offset & 0xc),
            0xfe8 => 0x2b,
            _ if is_shared(offset) => self.state.read(self.system, offset),
            _ => bank::read(self.system, vcpu_at(self.vcpu), offset),
        }
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        match offset {
            0x0 => {
                let value = merge(self.state.control, value, lanes);
                self.state.set_control(self.system, value);
            }
            0x820..0x880 => self.set_targets(offset & 0x7c, value, lanes),
            0xf00 => self.send(value),
            0xf10..0xf20 => self.pend(offset & 0xc, value, false),
            0xf20..0xf30 => self.pend(offset & 0xc, value, true),
            _ if is_shared(offset) => self.state.write(self.system, offset, value, lanes),
            _ if is_software_pending(offset) => {
                let private = lanes & 0xffff_0000;
                bank::write(self.system, vcpu_at(self.vcpu), offset, value & private, private);
            }
            _ => bank::write(self.system, vcpu_at(self.vcpu), offset, value, lanes),
        }
    }
}

#[cfg(test)]
mod tests;
