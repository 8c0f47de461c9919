// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks at the CPU it runs on: refuses it or chooses what its errata, features and predictors need, switches off what
//! is hidden from guests, and folds its ID registers into what all CPUs have.

use crate::cpu::Cpu;
use crate::errata::{self, Remedy};
use crate::features::{self, Features, Registers, common, same_caches};
use crate::isa::{self, read, write};
use crate::log::LOG;
use crate::part::Midr;
use crate::predictor::{Known, Offer, Policy, Stores, firmware};
use crate::traps;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::boot::{BootHeader, flags, start};

fn registers() -> Registers {
    Registers {
        midr: read!("midr_el1"),
        pfr0: read!("id_aa64pfr0_el1"),
        pfr1: read!("id_aa64pfr1_el1"),
        dfr0: read!("id_aa64dfr0_el1"),
        isar1: read!("id_aa64isar1_el1"),
        isar2: read!("S3_0_C0_C6_2"),
        mmfr0: read!("id_aa64mmfr0_el1"),
        mmfr1: read!("id_aa64mmfr1_el1"),
        mmfr4: read!("S3_0_C0_C7_4"),
    }
}

/// Why this CPU cannot run the kernel. Leaves HCR_EL2 with E2H = 0 where that is possible.
pub fn refusal() -> Option<&'static str> {
    write!("hcr_el2", crate::registers::HCR_SERVER);
    isa::isb();
    features::refusal(&registers(), read!("hcr_el2"))
}

/// Chooses for this CPU, and tells it. Features go into TPIDR_EL2, where [`isa::features`] finds them.
#[inline(never)]
pub fn choose(header: &BootHeader) -> Policy {
    let seen = registers();
    let features = Features::of(&seen);
    write!("tpidr_el2", features.0);
    hide(features);
    if header.flags & flags::EMULATED != 0 {
        return Policy::EMULATED;
    }
    let offers = if header.start == start::PSCI { ask_firmware() } else { [Offer::Absent; 3] };
    let Registers { midr, pfr0, pfr1, isar2, mmfr1, .. } = seen;
    let policy = Policy::choose(&Known { midr: Midr(midr), pfr0, pfr1, isar2, mmfr1, offers });
    if policy.stores == Stores::Firmware {
        isa::smc(firmware::WORKAROUND_2 as u64, 1, 0, 0);
    }
    policy
}

/// What firmware has (DEN 0028, 8.1: PSCI 1.0 says whether there is SMCCC_VERSION, and that whether there is the rest).
fn ask_firmware() -> [Offer; 3] {
    let there = |answer: u64| answer as i32 >= 0;
    let version = isa::smc(firmware::PSCI_VERSION, 0, 0, 0) as i32;
    if version < 0x1_0000
        || !there(isa::smc(firmware::PSCI_FEATURES, firmware::VERSION, 0, 0))
        || (isa::smc(firmware::VERSION, 0, 0, 0) as i32) < 0x1_0001
    {
        return [Offer::Absent; 3];
    }
    [firmware::WORKAROUND_1, firmware::WORKAROUND_2, firmware::WORKAROUND_3]
        .map(|function| Offer::from_answer(isa::smc(firmware::FEATURES, function as u64, 0, 0)))
}

/// Registers of extensions that guests are not shown, which reset to anything. Fine-grained traps stay off but for those
/// whose bits let through, which trap while they are zero (Arm ARM D19.2.48).
fn hide(features: Features) {
    if features.has(Features::FINE_TRAPS) {
        write!("S3_4_C1_C1_4", 0); // HFGRTR_EL2
        write!("S3_4_C1_C1_5", 0); // HFGWTR_EL2
        write!("S3_4_C1_C1_6", 0); // HFGITR_EL2
        write!("S3_4_C3_C1_4", 0); // HDFGRTR_EL2
        write!("S3_4_C3_C1_5", 0); // HDFGWTR_EL2
    }
    if features.has(Features::EXTENDED_CONTROL) {
        write!("S3_4_C1_C2_2", 0); // HCRX_EL2
    }
    if features.has(Features::PARTITIONS) {
        write!("S3_4_C10_C5_0", traps::value(traps::MPAM)); // MPAM2_EL2
    }
    if features.has(Features::TRACE_FILTERS) {
        write!("S3_4_C1_C2_1", 0); // TRFCR_EL2
    }
    // HPMN: every counter is the guest's part of the PMU, which is hidden; without a PMU there is no PMCR_EL0.
    let counters = if features.has(Features::COUNTERS) { read!("pmcr_el0") >> 11 & 31 } else { 0 };
    write!("mdcr_el2", crate::registers::MDCR | counters);
}

/// The line about this CPU in the kernel's log.
pub fn report(cpu: &Cpu) {
    let midr = Midr(read!("midr_el1"));
    let mut log = LOG.lock();
    let _ = core::write!(log, "cpu {}: {midr}, errata", cpu.local.cpu);
    let mut any = false;
    for row in errata::of(midr).filter(|row| row.remedy != Remedy::Guest) {
        any = true;
        let _ = core::write!(log, " {}", row.number);
    }
    if !any {
        let _ = log.write_str(" none");
    }
    let _ = writeln!(log, "; {}", cpu.machine.policy);
}

/// What all CPUs that run have of each ID register; 0 at first.
static COMMON: [AtomicU64; PLACES.len()] = [const { AtomicU64::new(0) }; PLACES.len()];

/// The boot CPU's CTR_EL0.
static CACHES: AtomicU64 = AtomicU64::new(0);

/// Signed fields (15 = not there): floating point and vectors; PMU; granules.
const fn signed(place: u8) -> &'static [u32] {
    match place {
        0x20 => &[16, 20],
        0x28 => &[8],
        0x38 => &[24, 28],
        _ => &[],
    }
}

/// The boot CPU's ID registers are what all CPUs have, so far.
pub fn begin_common() {
    CACHES.store(read!("ctr_el0"), Ordering::Relaxed);
    for (slot, place) in COMMON.iter().zip(PLACES) {
        slot.store(own(place), Ordering::Relaxed);
    }
}

/// Takes away what this CPU has not; says so when it differs. A guest starts only after the CPUs it runs on. False: its
/// caches differ from the boot CPU's so that no guest may run on both, and it must stay off.
pub fn join_common(cpu: u16) -> bool {
    let (first, mine) = (CACHES.load(Ordering::Acquire), read!("ctr_el0"));
    if !same_caches(first, mine) {
        let _ = writeln!(LOG.lock(), "cpu {cpu}: CTR_EL0 is {mine:#x}, on CPU 0 {first:#x}; it stays off");
        return false;
    }
    for (slot, place) in COMMON.iter().zip(PLACES) {
        let mine = own(place);
        let before = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, |all| Some(common(all, mine, signed(place))));
        if before != Ok(mine) {
            let now = slot.load(Ordering::Acquire);
            let place = u64::from(place);
            let _ = writeln!(LOG.lock(), "cpu {cpu}: ID register {place:#x} is {mine:#x}; guests see {now:#x} at most");
        }
    }
    true
}

/// An ID register by CRm << 3 | op2: what all CPUs have; identities are this CPU's own.
#[inline(never)]
pub fn id_register(place: u64) -> u64 {
    match PLACES.iter().position(|known| u64::from(*known) == place) {
        Some(index) => COMMON[index].load(Ordering::Acquire),
        None => identity(place),
    }
}

macro_rules! id_registers {
    ($($place:literal $name:literal),*; $($identity:literal $register:literal),*) => {
        /// Places of the feature registers that servers may ask for.
        const PLACES: [u8; [$($place as u8),*].len()] = [$($place),*];

        /// This CPU's own.
        #[inline(never)]
        fn own(place: u8) -> u64 {
            match place {
                $($place => read!($name),)*
                _ => 0,
            }
        }

        /// Who this CPU is.
        fn identity(place: u64) -> u64 {
            match place {
                $($identity => read!($register),)*
                _ => 0,
            }
        }
    };
}

id_registers! {
    0x20 "id_aa64pfr0_el1", 0x21 "id_aa64pfr1_el1", 0x28 "id_aa64dfr0_el1", 0x29 "id_aa64dfr1_el1",
    0x2c "id_aa64afr0_el1", 0x2d "id_aa64afr1_el1", 0x30 "id_aa64isar0_el1", 0x31 "id_aa64isar1_el1",
    0x32 "S3_0_C0_C6_2", 0x38 "id_aa64mmfr0_el1", 0x39 "id_aa64mmfr1_el1", 0x3a "S3_0_C0_C7_2", 0x08 "id_pfr0_el1",
    0x09 "id_pfr1_el1", 0x0a "id_dfr0_el1", 0x0b "id_afr0_el1", 0x0c "id_mmfr0_el1", 0x0d "id_mmfr1_el1",
    0x0e "id_mmfr2_el1", 0x0f "id_mmfr3_el1", 0x10 "id_isar0_el1", 0x11 "id_isar1_el1", 0x12 "id_isar2_el1",
    0x13 "id_isar3_el1", 0x14 "id_isar4_el1", 0x15 "id_isar5_el1", 0x16 "id_mmfr4_el1", 0x18 "mvfr0_el1",
    0x19 "mvfr1_el1", 0x1a "mvfr2_el1";
    0 "midr_el1", 5 "mpidr_el1", 6 "revidr_el1"
}
