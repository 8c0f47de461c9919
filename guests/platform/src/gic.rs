// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GICv3: one distributor, one redistributor frame of 128 KiB a CPU, the CPU interface in system registers.
//! Group 1, EOImode 0. Where there is a GICv2 instead, set-up and the interrupt vector use [`crate::gic2`].

use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{self, device_read, device_write};
use crate::{gic2, read_register, timer, write_register};

/// The distributor.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// The first CPU's redistributor.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of a redistributor.
pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// Numbers from here on are no interrupts.
pub const SPURIOUS: u32 = 1020;

static IS_VERSION_2: AtomicBool = AtomicBool::new(false);

/// Whether the controller is a GICv2.
#[inline(always)]
pub fn is_version_2() -> bool {
    IS_VERSION_2.load(Ordering::Relaxed)
}

/// Enables affinity routing and group 1 (GICD_CTLR.ARE, EnableGrp1).
pub fn init_distributor() {
    // ID_AA64PFR0_EL1.GIC: whether this CPU has registers for one. Asked once, since a hypervisor answers.
    IS_VERSION_2.store(read_register!("id_aa64pfr0_el1") >> 24 & 15 == 0, Ordering::Relaxed);
    if is_version_2() {
        return gic2::init_distributor();
    }
    device_write(DISTRIBUTOR, 0x12);
    while device_read(DISTRIBUTOR) & 1 << 31 != 0 {
        core::hint::spin_loop();
    }
}

/// Wakes this CPU's redistributor, enables all SGIs and the virtual timer, and opens the CPU interface.
pub fn init_cpu() {
    if is_version_2() {
        return gic2::init_cpu();
    }
    let frame = redistributor();
    device_write(frame + 0x14, device_read(frame + 0x14) & !2);
    while device_read(frame + 0x14) & 4 != 0 {
        core::hint::spin_loop();
    }
    let private = frame + 0x1_0000;
    device_write(private + 0x80, u32::MAX);
    for word in 0..8 {
        device_write(private + 0x400 + 4 * word, 0xa0a0_a0a0);
    }
    device_write(private + 0x100, 0xffff | 1 << timer::LINE);
    write_register!("icc_sre_el1", read_register!("icc_sre_el1") | 1);
    write_register!("icc_pmr_el1", 0xff);
    write_register!("icc_bpr1_el1", 0);
    write_register!("icc_ctlr_el1", 0);
    write_register!("icc_igrpen1_el1", 1);
}

/// The redistributor whose GICR_TYPER names this CPU, or the last one looked at.
fn redistributor() -> u64 {
    let affinity = cpu::affinity();
    let wanted = (affinity >> 32 << 24 | affinity & 0xff_ffff) as u32;
    let mut frame = REDISTRIBUTORS;
    for _ in 0..crate::tree::MAX_CPUS {
        let is_last = device_read(frame + 8) & 1 << 4 != 0;
        if device_read(frame + 12) == wanted || is_last {
            break;
        }
        frame += REDISTRIBUTOR_BYTES;
    }
    frame
}

/// Lets a shared line come to the CPU of this index and affinity (GICD_ITARGETSR, GICD_IROUTER; level, group 1 on GICv3).
pub fn open(line: u32, index: usize, affinity: u64) {
    let (word, bit) = (u64::from(line / 32) * 4, 1 << (line % 32));
    let byte = u64::from(line & !3);
    let shift = line % 4 * 8;
    let with = |offset: u64, value: u32| device_read(DISTRIBUTOR + offset + byte) & !(0xff << shift) | value << shift;
    device_write(DISTRIBUTOR + 0x400 + byte, with(0x400, 0xa0));
    if is_version_2() {
        device_write(DISTRIBUTOR + 0x800 + byte, with(0x800, 1 << index));
    } else {
        device_write(DISTRIBUTOR + 0x80 + word, device_read(DISTRIBUTOR + 0x80 + word) | bit);
        route(line, affinity);
    }
    device_write(DISTRIBUTOR + 0x100 + word, bit);
}

/// The same for one that an edge triggers (GICD_ICFGR).
pub fn open_edge(line: u32, index: usize, affinity: u64) {
    let place = DISTRIBUTOR + 0xc00 + u64::from(line / 16) * 4;
    device_write(place, device_read(place) | 2 << (line % 16 * 2));
    open(line, index, affinity);
}

/// Sends a shared line to another CPU (GICD_IROUTER).
pub fn route(line: u32, affinity: u64) {
    let place = DISTRIBUTOR + 0x6000 + 8 * u64::from(line);
    device_write(place, affinity as u32);
    device_write(place + 4, (affinity >> 32) as u32);
}

/// Takes the interrupt of the highest priority.
#[inline(always)]
pub fn acknowledge() -> u32 {
    read_register!("icc_iar1_el1") as u32 & 0xff_ffff
}

/// Ends an interrupt.
#[inline(always)]
pub fn end(line: u32) {
    write_register!("icc_eoir1_el1", u64::from(line));
}

/// Takes and ends whatever is pending; how many there were.
pub fn discard() -> u32 {
    let mut count = 0;
    if is_version_2() {
        while let taken = gic2::acknowledge()
            && taken.line() < SPURIOUS
        {
            gic2::end(taken);
            count += 1;
        }
        return count;
    }
    loop {
        let line = acknowledge();
        if line >= SPURIOUS {
            return count;
        }
        end(line);
        count += 1;
    }
}

/// The word for ICC_SGI1R_EL1 that sends `line` (0-15) to one CPU.
pub const fn sgi_to(affinity: u64, line: u32) -> u64 {
    let target = 1 << (affinity & 0xf);
    let range = (affinity >> 4 & 0xf) << 44;
    let clusters = (affinity >> 8 & 0xff) << 16 | (affinity >> 16 & 0xff) << 32 | (affinity >> 32 & 0xff) << 48;
    target | range | clusters | (line as u64) << 24
}

/// The word that sends `line` to every other CPU.
pub const fn sgi_to_others(line: u32) -> u64 {
    1 << 40 | (line as u64) << 24
}

/// Sends it, after all stores so far.
#[inline(always)]
pub fn send(word: u64) {
    // SAFETY: sends an interrupt; whoever it is for has vectors.
    unsafe {
        core::arch::asm!("dsb ishst", "msr icc_sgi1r_el1, {}", "isb", in(reg) word, options(nostack, preserves_flags))
    };
}
