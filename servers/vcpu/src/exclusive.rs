// SPDX-License-Identifier: MIT OR Apache-2.0
//! The exclusive monitor of a vCPU, played: for exclusive accesses to a page whose accesses are stepped over.
//!
//! An exception return clears the hardware's monitor, so a stepped exclusive store never succeeds. An allowed store fails
//! once therefore, as the architecture lets it; then the vCPU executes one instruction after the other, each looked at before,
//! until it comes back to the exclusive load. That is done here, and so is the store that follows: it compares memory
//! with what was loaded and writes if that is the same (a value that changed and changed back is taken for unchanged).

use crate::kind::Exclusive;

/// Instructions that are followed before it is given up.
const PATIENCE: u8 = 64;

/// What was loaded exclusively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    address: u64,
    size: u8,
    value: [u64; 2],
}

/// What is known of the vCPU's way from a failed store to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Monitor {
    /// Instructions that are followed still; 0 = none is.
    left: u8,
    page: u64,
    held: Option<Held>,
}

/// What is to be done with the instruction that the vCPU stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It executes that itself, in one more step.
    Step,
    /// It is an exclusive access that may be to the page.
    Access(Exclusive),
    /// It is followed no more.
    Over,
}

impl Monitor {
    /// Follows nothing.
    pub const IDLE: Monitor = Monitor { left: 0, page: 0, held: None };

    /// From here on, for accesses to this guest page.
    pub const fn begin(page: u64) -> Monitor {
        Monitor { left: PATIENCE, page, held: None }
    }

    /// Whether it follows a vCPU.
    pub const fn is_on(&self) -> bool {
        self.left != 0
    }

    /// Whether an access is to the page.
    pub const fn watches(&self, address: u64) -> bool {
        address >> 12 == self.page
    }

    /// Before an instruction is executed.
    pub fn next(&mut self, word: u32) -> Next {
        let Some(left) = self.left.checked_sub(1).filter(|left| *left != 0) else { return self.give_up() };
        self.left = left;
        if let Some(crate::kind::Kind::Exclusive(exclusive)) = crate::kind::Kind::of(word) {
            return Next::Access(exclusive);
        }
        match word {
            // CLREX.
            _ if word & 0xffff_f0ff == 0xd503_305f => self.held = None,
            // Calls, breakpoints, exception returns, WFE and WFI: what comes then is another story.
            _ if word >> 24 == 0xd4 || word >> 16 == 0xd69f || matches!(word, 0xd503_205f | 0xd503_207f) => {
                return self.give_up();
            }
            _ => {}
        }
        Next::Step
    }

    /// It is followed no more.
    pub fn give_up(&mut self) -> Next {
        *self = Monitor::IDLE;
        Next::Over
    }

    /// An exclusive load was done, and read this.
    pub fn loaded(&mut self, address: u64, size: u8, value: [u64; 2]) {
        self.held = Some(Held { address, size, value });
    }

    /// An exclusive store: what memory must hold for it to succeed; none if it fails anyhow. Either way nothing is held
    /// any more.
    pub fn store(&mut self, address: u64, size: u8) -> Option<[u64; 2]> {
        let held = self.held.take()?;
        (held.address == address && held.size == size).then_some(held.value)
    }
}

/// Registers of a pair as memory has them, in the guest's order of bytes: two words, the lower address first.
pub fn to_memory(exclusive: &Exclusive, registers: [u64; 2], is_big: bool) -> [u64; 2] {
    let turned = registers.map(|value| turn(value, exclusive.bytes, is_big));
    match (exclusive.second, exclusive.bytes) {
        (None, _) => [turned[0], 0],
        (Some(_), 8) => turned,
        (Some(_), _) => [turned[0] | turned[1] << 32, 0],
    }
}

/// The other way.
pub fn to_registers(exclusive: &Exclusive, memory: [u64; 2], is_big: bool) -> [u64; 2] {
    let values = match (exclusive.second, exclusive.bytes) {
        (None, _) | (Some(_), 8) => memory,
        (Some(_), _) => [memory[0] & 0xffff_ffff, memory[0] >> 32],
    };
    values.map(|value| turn(value, exclusive.bytes, is_big))
}

fn turn(value: u64, bytes: u8, is_big: bool) -> u64 {
    let bits = 64 - 8 * u32::from(bytes.clamp(1, 8));
    if is_big { value.swap_bytes() >> bits } else { value << bits >> bits }
}

#[cfg(test)]
mod tests;
