// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's real-time clock, an Arm PL031 (DDI 0224). No board here knows the date, so it counts seconds from the
//! machine's start until the guest sets it; the alarm is absent, its interrupt never comes.

use crate::bus::{Registers, merge};

/// RTCPeriphID0–3 and RTCPCellID0–3.
const IDENTITY: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// What the clock remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pl031 {
    /// Seconds to add to those since start.
    difference: u32,
    /// RTCMR and RTCLR as written.
    alarm: u32,
    loaded: u32,
    /// RTCIMSC.
    mask: u32,
}

impl Pl031 {
    /// As after reset.
    pub const fn new() -> Pl031 {
        Pl031 { difference: 0, alarm: 0, loaded: 0, mask: 0 }
    }
}

/// The clock at a moment.
#[derive(Debug)]
pub struct View<'a> {
    /// What it remembers.
    pub state: &'a mut Pl031,
    /// Seconds since the machine's start.
    pub seconds: u32,
}

impl Registers for View<'_> {
    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            0x00 => self.seconds.wrapping_add(self.state.difference),
            0x04 => self.state.alarm,
            0x08 => self.state.loaded,
            // RTCCR: it runs.
            0x0c => 1,
            0x10 => self.state.mask,
            0xfe0..0x1000 => IDENTITY.get((offset as usize - 0xfe0) / 4).copied().unwrap_or(0).into(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, lanes: u32) {
        match offset {
            0x04 => self.state.alarm = merge(self.state.alarm, value, lanes),
            0x08 => {
                self.state.loaded = merge(self.state.loaded, value, lanes);
                self.state.difference = self.state.loaded.wrapping_sub(self.seconds);
            }
            0x10 => self.state.mask = merge(self.state.mask, value, lanes) & 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_once_set_goes_on() {
        let mut state = Pl031::new();
        View { state: &mut state, seconds: 5 }.write(8, 1_700_000_000, u32::MAX);
        assert_eq!(View { state: &mut state, seconds: 7 }.read(0), 1_700_000_002);
        assert_eq!(View { state: &mut state, seconds: 7 }.read(0xfe0), 0x31);
    }
}
