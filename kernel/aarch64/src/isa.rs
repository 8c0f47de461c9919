// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every instruction that Rust cannot say. On the board only.

use crate::context::El1;
use crate::debug::{Count, Debug};
use crate::features::Features;
use core::arch::asm;

/// Reads a system register by name.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register has no effect but the value, and this crate runs at EL2 only.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register by name. What it means is said where it is used.
macro_rules! write {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register belongs to EL2 or to the vCPU that this CPU holds; the caller says why the value is right.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
    }};
}

pub(crate) use {read, write};

/// Context synchronisation.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Completion of everything before, inner shareable.
pub fn dsb_ish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
}

/// Completion of stores before: table entries are seen by walkers after it.
pub fn dsb_ishst() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
}

/// Completion for the full system: devices, caches.
pub fn dsb_sy() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Wakes CPUs that wait for an event.
pub fn sev() {
    // SAFETY: an event.
    unsafe { asm!("sev", options(nostack, preserves_flags)) };
}

/// A hint in a loop that waits for another CPU.
pub fn yield_now() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
}

/// Sleeps until an interrupt is pending (masked or not).
pub fn wfi() {
    // SAFETY: wakes at any interrupt.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Nothing can be said or done.
pub fn stop() -> ! {
    loop {
        wfi();
    }
}

/// Invalidates this CPU's stage 1 entries of the current VMID.
pub fn tlbi_vmalle1_local() {
    // SAFETY: only removes cached translations.
    unsafe { asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates this CPU's stage 1 and 2 entries of the current VMID.
pub fn tlbi_vmalls12e1_local() {
    // SAFETY: only removes cached translations.
    unsafe { asm!("tlbi vmalls12e1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates stage 1 and 2 of the current VMID on all CPUs.
pub fn tlbi_vmalls12e1is() {
    // SAFETY: only removes cached translations.
    unsafe { asm!("dsb ishst", "tlbi vmalls12e1is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates one page of stage 2 of the current VMID on all CPUs. Must be followed by [`tlbi_vmalle1is`].
pub fn tlbi_ipas2e1is(page: u64) {
    // SAFETY: only removes cached translations; the operand is address >> 12.
    unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page & 0xf_ffff_ffff, options(nostack, preserves_flags)) };
}

/// Invalidates stage 1 of the current VMID on all CPUs, after stage 2 (combined entries are tagged by stage 1).
pub fn tlbi_vmalle1is() {
    // SAFETY: only removes cached translations.
    unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Invalidates the kernel's own map on all CPUs.
pub fn tlbi_alle2is() {
    // SAFETY: only removes cached translations.
    unsafe { asm!("dsb ishst", "tlbi alle2is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Cleans and invalidates one line of data cache to the point of coherency.
pub fn dc_civac(address: u64) {
    // SAFETY: writes back what is in the cache; contents stay.
    unsafe { asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
}

/// Cleans one line of data cache to the point of unification.
pub fn dc_cvau(address: u64) {
    // SAFETY: writes back what is in the cache; contents stay.
    unsafe { asm!("dc cvau, {}", in(reg) address, options(nostack, preserves_flags)) };
}

/// Invalidates all instruction caches, inner shareable.
pub fn ic_ialluis() {
    // SAFETY: instructions are fetched again.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Zeroes one block of [`zva_bytes`] bytes.
///
/// # Safety
/// The block is memory that the kernel may write and nothing in Rust refers to.
pub unsafe fn dc_zva(address: u64) {
    // SAFETY: by the caller.
    unsafe { asm!("dc zva, {}", in(reg) address, options(nostack, preserves_flags)) };
}

/// Tries of [`swap`]: whoever writes there all the time cannot keep this CPU.
const TRIES: u64 = 64;

/// Compares and swaps the bits in `mask` of 16 bytes by exclusives, which every CPU has. Two words that are read by LDXP
/// are of one moment only if STXP succeeds (Arm ARM B2.2.1); else what is said of a pair may be of two.
///
/// # Safety
/// The address is a multiple of 16, of memory that the kernel may write and nothing in Rust refers to.
pub unsafe fn swap(address: u64, mask: [u64; 2], expected: [u64; 2], new: [u64; 2]) -> (bool, [u64; 2]) {
    let (failed, low, high): (u64, u64, u64);
    // SAFETY: by the caller.
    unsafe {
        asm!("2: mov {s:w}, 1", "ldaxp {a}, {b}, [{at}]", "eor {t}, {a}, {e0}", "and {t}, {t}, {m0}", "eor {u}, {b}, {e1}",
            "and {u}, {u}, {m1}", "orr {t}, {t}, {u}", "cbnz {t}, 3f", "bic {t}, {a}, {m0}", "orr {t}, {t}, {n0}",
            "bic {u}, {b}, {m1}", "orr {u}, {u}, {n1}", "stlxp {s:w}, {t}, {u}, [{at}]", "cbz {s:w}, 3f",
            "sub {n}, {n}, 1", "cbnz {n}, 2b", "3: clrex", at = in(reg) address, e0 = in(reg) expected[0],
            e1 = in(reg) expected[1], m0 = in(reg) mask[0], m1 = in(reg) mask[1], n0 = in(reg) new[0], n1 = in(reg) new[1],
            a = out(reg) low, b = out(reg) high, t = out(reg) _, u = out(reg) _, s = out(reg) failed,
            n = inout(reg) TRIES => _, options(nostack));
    }
    (failed == 0, [low, high])
}

/// Bytes that [`dc_zva`] zeroes, or none when it is prohibited (DCZID_EL0).
pub fn zva_bytes() -> Option<u64> {
    let id = read!("dczid_el0");
    if id & 16 == 0 { Some(4 << (id & 15)) } else { None }
}

/// Smallest data cache line in bytes (CTR_EL0.DminLine).
pub fn cache_line() -> u64 {
    4 << (read!("ctr_el0") >> 16 & 15)
}

unsafe extern "C" {
    fn translate_read(address: u64) -> u64;
    fn translate_write(address: u64) -> u64;
}

/// Translates a guest virtual address by the loaded guest's stage 1: the only AT in the image. PAR is put back.
/// None: it no longer translates; let the guest try again.
///
/// Errata 1319367, 1319537, 1165522 …: a speculative AT may walk with a mixed context and leave what it found in the
/// TLB, if the image has one in a page that can be executed. So its page (`entry.S`) is mapped only here, where the
/// guest's context is whole: VTTBR, HCR and the EL1 registers are all its own. No other change of VTTBR or HCR then
/// needs a guard. Affected CPUs pay for it here; others have the page mapped always.
pub fn translate(address: u64, write: bool) -> Option<u64> {
    let saved = read!("par_el1");
    let apart = features().has(Features::TRANSLATE_APART);
    if apart {
        use_map(crate::stage1::translating());
    }
    // SAFETY: AT only writes PAR_EL1, which is restored below; its page is mapped now.
    let par = unsafe { if write { translate_write(address) } else { translate_read(address) } };
    if apart {
        use_map(crate::stage1::plain());
    }
    write!("par_el1", saved);
    if par & 1 == 1 { None } else { Some(par & 0x0000_ffff_ffff_f000 | address & 0xfff) }
}

/// The kernel's own map with or without the page of the AT instruction. What the other map's walks left in the TLB for
/// that page goes, table entries included (TLBI VAE2, not VALE2; Arm ARM D8.17.6): the maps are the same elsewhere.
fn use_map(root: u64) {
    write!("ttbr0_el2", root);
    let page = translate_page() >> 12;
    // SAFETY: only removes cached translations.
    unsafe { asm!("isb", "tlbi vae2, {}", "dsb nsh", "isb", in(reg) page, options(nostack, preserves_flags)) };
}

/// The page of the AT instruction.
pub fn translate_page() -> u64 {
    translate_read as *const () as u64
}

/// What this CPU has and needs: [`Features`], put here at its start.
pub fn features() -> Features {
    Features(read!("tpidr_el2"))
}

/// Calls a hypervisor by HVC, at EL1 only.
pub fn hvc(function: u64) -> u64 {
    let result;
    // SAFETY: as for [`smc`].
    unsafe { asm!("hvc 0", inout("x0") function => result, clobber_abi("C"), options(nostack)) };
    result
}

/// Lets a pending SError of the kernel's own in, if there is one (it is masked everywhere else).
pub fn let_errors_in() {
    // SAFETY: the handler saves nothing but what `clobber_abi` gives up, and comes back or panics.
    unsafe { asm!("dsb sy", "msr daifclr, #4", "isb", "msr daifset, #4", clobber_abi("C"), options(nostack)) };
}

/// Calls the firmware by SMC.
pub fn smc(function: u64, a: u64, b: u64, c: u64) -> u64 {
    let result: u64;
    // SAFETY: SMCCC: x0–x3 arguments, x0–x17 may change; PSCI does not touch memory of ours.
    unsafe {
        asm!("smc #0", inout("x0") function => result, inout("x1") a => _, inout("x2") b => _, inout("x3") c => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    result
}

macro_rules! el1_registers {
    ($($field:ident $name:literal),* $(,)?) => {
        /// Saves the registers that are switched lazily.
        pub fn save_el1(el1: &mut El1) {
            $(el1.$field = read!($name);)*
        }

        /// Loads them.
        pub fn load_el1(el1: &El1) {
            $(write!($name, el1.$field);)*
        }
    };
}

el1_registers! {
    sp_el1 "sp_el1", elr "elr_el1", spsr "spsr_el1", vbar "vbar_el1", ttbr0 "ttbr0_el1", ttbr1 "ttbr1_el1",
    tcr "tcr_el1", mair "mair_el1", amair "amair_el1", esr "esr_el1", far "far_el1", afsr0 "afsr0_el1",
    afsr1 "afsr1_el1", par "par_el1", cpacr "cpacr_el1", contextidr "contextidr_el1", tpidr_el1 "tpidr_el1",
    tpidr_el0 "tpidr_el0", tpidrro_el0 "tpidrro_el0", cntkctl "cntkctl_el1", csselr "csselr_el1",
    vmpidr "vmpidr_el2", vpidr "vpidr_el2", cntvoff "cntvoff_el2", cntv_cval "cntv_cval_el0", cntv_ctl "cntv_ctl_el0",
}

/// Saves and clears the registers of EL1 that are in force at EL0 while a server runs: two thread pointers, and whether
/// EL0 may use the virtual timer (CNTKCTL_EL1, Arm ARM D19.12.15).
#[inline(always)]
pub fn veil(el1: &mut El1) {
    el1.tpidr_el0 = read!("tpidr_el0");
    el1.tpidrro_el0 = read!("tpidrro_el0");
    el1.cntkctl = read!("cntkctl_el1");
    write!("tpidr_el0", 0);
    write!("tpidrro_el0", 0);
    write!("cntkctl_el1", 0);
}

/// Loads them.
#[inline(always)]
pub fn unveil(el1: &El1) {
    write!("tpidr_el0", el1.tpidr_el0);
    write!("tpidrro_el0", el1.tpidrro_el0);
    write!("cntkctl_el1", el1.cntkctl);
}

macro_rules! debug_registers {
    ($($n:literal $value:literal $control:literal),*; $($m:literal $watched:literal $watch:literal),*) => {
        /// Loads breakpoints and watchpoints, as many as there are. The hardware's OS lock is open meanwhile; the guest's
        /// is played by its vcpu server.
        pub fn load_debug(debug: &Debug, count: Count) {
            write!("oslar_el1", 0);
            $(if $n < count.breakpoints {
                write!($value, debug.breakpoints[$n][0]);
                write!($control, debug.breakpoints[$n][1]);
            })*
            $(if $m < count.watchpoints {
                write!($watched, debug.watchpoints[$m][0]);
                write!($watch, debug.watchpoints[$m][1]);
            })*
        }
    };
}

debug_registers! {
    0 "dbgbvr0_el1" "dbgbcr0_el1", 1 "dbgbvr1_el1" "dbgbcr1_el1", 2 "dbgbvr2_el1" "dbgbcr2_el1",
    3 "dbgbvr3_el1" "dbgbcr3_el1", 4 "dbgbvr4_el1" "dbgbcr4_el1", 5 "dbgbvr5_el1" "dbgbcr5_el1";
    0 "dbgwvr0_el1" "dbgwcr0_el1", 1 "dbgwvr1_el1" "dbgwcr1_el1", 2 "dbgwvr2_el1" "dbgwcr2_el1",
    3 "dbgwvr3_el1" "dbgwcr3_el1"
}
