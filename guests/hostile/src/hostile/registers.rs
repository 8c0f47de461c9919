// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every identification, debug and counter register, by encoding, read and written.

use trellis_guest_platform::fault::execute;
use trellis_guest_platform::{Machine, println, read_register};

use super::Outcome;

/// op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy)]
struct Register(u32, u32, u32, u32, u32);

impl Register {
    /// The bits that `mrs` and `msr` share, with x0.
    const fn bits(self) -> u32 {
        self.0 << 19 | self.1 << 16 | self.2 << 12 | self.3 << 8 | self.4 << 5
    }

    fn read(self) -> Option<u64> {
        execute(0xd520_0000 | self.bits(), 0, 0).ok()
    }

    fn write(self, value: u64) -> bool {
        execute(0xd500_0000 | self.bits(), value, 0).is_ok()
    }
}

/// What came of a block of registers.
#[derive(Default)]
struct Tally {
    readable: u32,
    writable: u32,
    all: u32,
}

/// All op2 of a range of CRm.
fn block(op0: u32, op1: u32, crn: u32, crms: core::ops::Range<u32>) -> impl Iterator<Item = Register> {
    crms.flat_map(move |crm| (0..8).map(move |op2| Register(op0, op1, crn, crm, op2)))
}

fn tell(what: &str, tally: &Tally) {
    println!("{what}: {} encodings, {} readable, {} writable", tally.all, tally.readable, tally.writable);
}

pub(super) fn write_id_registers(_: &'static Machine) -> Outcome {
    let before = (read_register!("midr_el1"), read_register!("mpidr_el1"));
    let identity = sweep(block(3, 0, 0, 0..1), &[!0]);
    let features = sweep(block(3, 0, 0, 1..8), &[!0]);
    let caches = sweep(block(3, 1, 0, 0..1).chain(block(3, 3, 0, 0..1)), &[!0]);
    for (what, tally) in [("identity", &identity), ("features", &features), ("caches", &caches)] {
        tell(what, tally);
    }
    if identity.writable + features.writable + caches.writable != 0 {
        return Err("an identification register could be written");
    }
    // Arm ARM D23: encodings of this space without a register read as zero.
    if features.readable != features.all {
        return Err("a feature register could not be read");
    }
    let after = (read_register!("midr_el1"), read_register!("mpidr_el1"));
    if before == after { Ok(()) } else { Err("the CPU changed its identity") }
}

/// Everything on, then everything off, with debug exceptions masked (PSTATE.D).
pub(super) fn debug_registers(_: &'static Machine) -> Outcome {
    let values = [!0, 0x5555_5555_5555_5555, 0];
    tell("breakpoints, watchpoints", &sweep(block(2, 0, 0, 0..16), &values));
    tell("locks", &sweep(block(2, 0, 1, 0..16), &values));
    tell("claims", &sweep(block(2, 0, 7, 0..16), &values));
    tell("transfer", &sweep(block(2, 3, 0, 0..8), &values));
    tell("counters", &sweep(block(3, 3, 9, 12..15), &values));
    tell("counter interrupts", &sweep(block(3, 0, 9, 14..15), &values));
    tell("event counters", &sweep(block(3, 3, 14, 8..16), &values));
    Ok(())
}

fn sweep(registers: impl Iterator<Item = Register>, values: &[u64]) -> Tally {
    let mut tally = Tally::default();
    for register in registers {
        tally.all += 1;
        tally.readable += u32::from(register.read().is_some());
        // The last value must be written whatever became of the first.
        tally.writable += u32::from(values.iter().filter(|value| register.write(**value)).count() > 0);
    }
    tally
}
