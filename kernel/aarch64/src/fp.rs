// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating-point and vector registers on the board: which lengths there are, and how they move.

use crate::cpu::{GUARD, SERVER, VECTORS};
use crate::isa::{self, read, write};
use crate::log::Serial;
use crate::registers;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};
use trellis_core::float::{FloatMove, Layout, Lengths, MOST_LANES};

core::arch::global_asm!(include_str!("fp.S"), SERVER = const SERVER, GUARD = const GUARD, VECTORS = const VECTORS);

unsafe extern "C" {
    fn save_fixed(area: u64);
    fn load_fixed(area: u64);
    fn save_scalable(area: u64, predicates: u64);
    fn load_scalable(area: u64, predicates: u64);
    fn probe_length(zcr: u64) -> u64;
}

/// A CPU says that it has SVE, and EL3 does not let it be used.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether firmware keeps SVE for itself on some CPU.
pub fn is_refused() -> bool {
    REFUSED.load(Ordering::Relaxed)
}

/// Moves the registers of an owner with so many lanes. Traps are off meanwhile and then as they were; ERET synchronises.
pub fn carry(way: FloatMove, lanes: u8, area: u64) {
    let traps = read!("cptr_el2");
    write!("cptr_el2", registers::cptr_of_owner(lanes));
    isa::isb();
    if lanes != 0 {
        // ZCR_EL2: the longest vector of EL2 and of those below (Arm ARM D24.2.217). It stays for its owner.
        write!("S3_4_C1_C2_0", u64::from(lanes) - 1);
        isa::isb();
    }
    let predicates = area + Layout::new(lanes).predicates();
    // SAFETY: the area is the owner's own, of the size that `Layout` says for its lanes; the traps are off; the kernel
    // itself keeps nothing in these registers.
    unsafe {
        match (way, lanes) {
            (FloatMove::Save, 0) => save_fixed(area),
            (FloatMove::Load, 0) => load_fixed(area),
            (FloatMove::Save, _) => save_scalable(area, predicates),
            (FloatMove::Load, _) => load_scalable(area, predicates),
        }
    }
    write!("cptr_el2", traps);
}

/// A bit of a CPU's guard: the thread that runs has its registers.
pub const OPEN: u64 = 1 << 42;

/// The running thread has its registers until its next entry: no trap. The guarded vectors put the trap back.
pub fn open_thread() {
    write!("cpacr_el1", registers::CPACR_FLOAT);
    write!("cptr_el2", registers::CPTR_FLOAT);
}

/// Lengths that vectors of this CPU can have, by trying: hardware takes the longest that is not longer than the wish
/// (Arm ARM B1.4.2). A CPU without SVE is not touched: its own ID register says so, whatever other CPUs have.
pub fn discover() -> Lengths {
    if read!("id_aa64pfr0_el1") >> 32 & 15 == 0 {
        return Lengths(0);
    }
    write!("cptr_el2", registers::CPTR_VECTORS);
    isa::isb();
    let mut lengths = 0;
    let mut wish = u64::from(MOST_LANES);
    while wish != 0 {
        // SAFETY: at boot; a refused access comes back as an exception, which makes it 0.
        let lanes = unsafe { probe_length(wish - 1) } / 16;
        if lanes == 0 || lanes > wish {
            REFUSED.store(true, Ordering::Relaxed);
            break;
        }
        lengths |= 1 << (lanes - 1);
        wish = lanes - 1;
    }
    write!("cptr_el2", registers::CPTR_TRAP_ALL);
    Lengths(lengths)
}

/// Says on the serial port what comes next: firmware that neither allows SVE nor gives the trap back never returns.
pub fn announce(serial: &mut Serial) {
    let _ = writeln!(serial, "Trellis asks for vector lengths; if nothing follows, the firmware refuses SVE (CPTR_EL3.EZ)");
}
