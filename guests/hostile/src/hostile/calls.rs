// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random hypercalls and secure monitor calls, but for those that would rightly end or stop this guest.

use trellis_guest_platform::fault::{attempt, execute};
use trellis_guest_platform::{Machine, cpu, println};

use super::Outcome;

/// PSCI functions (low byte) that end, stop or restart a CPU or the guest: 1 CPU_SUSPEND, 2 CPU_OFF, 3 CPU_ON,
/// 8 SYSTEM_OFF, 9 SYSTEM_RESET, 0xb CPU_FREEZE, 0xc CPU_DEFAULT_SUSPEND, 0xe SYSTEM_SUSPEND, 0x12 SYSTEM_RESET2,
/// 0x15 SYSTEM_OFF2.
const ENDING: [u32; 10] = [1, 2, 3, 8, 9, 0xb, 0xc, 0xe, 0x12, 0x15];
const UNKNOWN: u64 = 0x8400_00ff;

/// Xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn new(machine: &Machine) -> Random {
        Random(machine.arguments().number("seed", 0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A function number, every other one near those that exist.
    fn function(&mut self) -> u64 {
        loop {
            let number = match self.next() & 7 {
                0 => 0x8400_0000 | self.next() & 0x1f,
                1 => 0xc400_0000 | self.next() & 0x1f,
                2 => 0x8000_0000 | self.next() & 0x3,
                3 => self.next() & 0xff00_ffff | 1 << 31,
                _ => self.next(),
            };
            if !is_ending(number) {
                return number;
            }
        }
    }
}

/// The upper half does not count.
fn is_ending(number: u64) -> bool {
    let number = number as u32;
    number & !0x4000_00ff == 0x8400_0000 && ENDING.contains(&(number & 0xff))
}

/// Calls by function number, most of them answered -1.
fn storm(machine: &Machine, call: fn([u64; 4]) -> [u64; 4]) -> Outcome {
    let mut random = Random::new(machine);
    let loops = machine.arguments().number("loops", 1_000);
    let (mut unknown, mut faults) = (0, 0);
    for _ in 0..loops {
        let arguments = [random.function(), random.next(), random.next(), random.next()];
        match attempt(|| call(arguments)) {
            Ok(answer) => unknown += u64::from(answer[0] as i32 == -1),
            Err(_) => faults += 1,
        }
    }
    println!("{loops} calls: {unknown} unknown, {faults} undefined");
    match attempt(|| call([UNKNOWN, 0, 0, 0])[0] as i32) {
        Ok(-1) => Ok(()),
        Ok(_) => Err("an unknown function was not answered -1"),
        Err(fault) => {
            println!("{fault}");
            Ok(())
        }
    }
}

pub(super) fn random_hypercalls(machine: &'static Machine) -> Outcome {
    immediates(machine, 0xd400_0002);
    storm(machine, cpu::hvc)
}

pub(super) fn random_smc(machine: &'static Machine) -> Outcome {
    immediates(machine, 0xd400_0003);
    storm(machine, cpu::smc)
}

/// The call with other immediates than 0, which no convention uses.
fn immediates(machine: &Machine, instruction: u32) {
    let mut random = Random::new(machine);
    let mut faults = 0;
    for _ in 0..100 {
        let immediate = (random.next() & 0xffff) as u32;
        faults += u64::from(execute(instruction | immediate << 5, random.function(), random.next()).is_err());
    }
    println!("100 random immediates: {faults} undefined");
}
