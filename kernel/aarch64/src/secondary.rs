// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other CPUs: a block each behind the image, started by PSCI or a release address, then idle until asked.

use crate::boot::header;
use crate::cpu::{BLOCK_OFFSET, Cpu, SHARED};
use crate::gic::Gic;
use crate::isa::{self, read};
use crate::machine::TRACE_BYTES;
use crate::silicon;
use crate::stage1;
use core::sync::atomic::Ordering;
use trellis_idl::boot::{BootHeader, start};

unsafe extern "C" {
    static secondary_entry: u8;
}

/// PSCI CPU_ON, 64-bit (PSCI 5.6).
const CPU_ON: u64 = 0xc400_0003;

/// How long the boot CPU waits for those it started, in seconds: a CPU comes within milliseconds, an emulator's on a busy
/// machine within one or two seconds.
const PATIENCE: u64 = 10;

/// Pages of a block.
const PAGES: u64 = size_of::<Cpu>().div_ceil(4096) as u64;

/// What became of the other CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    /// Pages that their blocks take.
    pub pages: u64,
    /// Those that were started, one bit each.
    started: u64,
}

/// Starts every CPU but this one. Blocks are made from the boot CPU's, which nothing has run on yet, in pages from `first`
/// on; CPUs for which there is no room or which firmware refuses stay off.
pub fn start_all(boot: &Cpu, header: &BootHeader, first: u64, pages: u64) -> Others {
    let mut others = Others { pages: 0, started: 0 };
    if header.start == start::NONE || header.cpus < 2 {
        return others;
    }
    // A block's alignment is what makes its trace go round.
    others.pages = (first.wrapping_neg() % (align_of::<Cpu>() as u64 / 4096)).min(pages);
    for cpu in 1..header.cpus.min(64) as u16 {
        if others.pages + PAGES > pages {
            break;
        }
        let at = (first + others.pages) << 12;
        others.pages += PAGES;
        make_block(boot, at, cpu);
        if start_one(header, cpu, at + BLOCK_OFFSET as u64) {
            others.started |= 1 << cpu;
        }
    }
    others
}

impl Others {
    /// Waits until every CPU that was started runs: root asks them for operations at once, and what is asked of a CPU that
    /// does not run is refused. Back: those that never came, one bit each.
    pub fn wait(&self) -> u64 {
        let until = read!("cntpct_el0") + PATIENCE * read!("cntfrq_el0");
        loop {
            let missing = self.started & !SHARED.running.load(Ordering::Acquire);
            if missing == 0 || read!("cntpct_el0") > until {
                return missing;
            }
            isa::yield_now();
        }
    }
}

/// Copies the block without its stack, with an empty trace, names it, and cleans it: its CPU begins with the caches off.
fn make_block(boot: &Cpu, at: u64, cpu: u16) {
    let block = at as *mut Cpu;
    // SAFETY: `at` is free memory of the block's size and alignment; the boot block holds no pointer into itself and no
    // thread yet, so a copy of it is a block of its own.
    unsafe {
        let source = (boot as *const Cpu).cast::<u8>().add(BLOCK_OFFSET);
        let target = block.cast::<u8>().add(BLOCK_OFFSET);
        core::ptr::copy_nonoverlapping(source, target, size_of::<Cpu>() - BLOCK_OFFSET);
        core::ptr::write_bytes(block.cast::<u8>(), 0, TRACE_BYTES as usize);
        (*block).local.set_cpu(cpu);
    }
    let mut line = at;
    while line < at + PAGES * 4096 {
        isa::dc_civac(line);
        line += isa::cache_line();
    }
    isa::dsb_sy();
}

/// Whether the CPU was started, as far as its firmware says.
fn start_one(header: &BootHeader, cpu: u16, block: u64) -> bool {
    let entry = &raw const secondary_entry as u64;
    match header.start {
        start::PSCI => {
            isa::smc(CPU_ON, header.mpidr[cpu as usize & 63], entry, block) == 0
        }
        start::SPIN_TABLE => {
            let place = header.release + 8 * cpu as u64;
            // The entry finds its block through the affinity, since a release address carries no argument.
            BLOCKS[cpu as usize & 63].store(block, Ordering::Release);
            isa::dc_civac(&raw const BLOCKS[cpu as usize & 63] as u64);
            crate::mmio::write64(place, entry);
            isa::dc_civac(place);
            isa::dsb_sy();
            isa::sev();
            true
        }
        _ => false,
    }
}

/// Block of each CPU that a release address starts; `secondary_entry` reads it by affinity level 0.
#[unsafe(no_mangle)]
static BLOCKS: [core::sync::atomic::AtomicU64; 64] = [const { core::sync::atomic::AtomicU64::new(0) }; 64];

/// Called by `boot.S` with the MMU off and SP in the block.
#[unsafe(no_mangle)]
extern "C" fn secondary_main(block: *mut u8) -> ! {
    if silicon::refusal().is_some() {
        // Nobody waits for it: a guest that wants this CPU is refused.
        isa::stop();
    }
    stage1::switch_on();
    let header = header();
    // SAFETY: `start_one` passed this CPU's own block; nobody else refers to it.
    let cpu = unsafe { &mut *block.sub(BLOCK_OFFSET).cast::<Cpu>() };
    cpu.set_up(header);
    cpu.machine.gic = Gic::start(&header.gic);
    if !silicon::join_common(cpu.local.cpu) {
        isa::stop();
    }
    silicon::report(cpu);
    crate::cpu::first(cpu)
}
