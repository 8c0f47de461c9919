// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the loader to root: check the header, map, start the interrupt controller, make root.

use crate::cpu::{BLOCK_OFFSET, Cpu, SHARED, first, last_records};
use crate::features::level_refusal;
use crate::gic::Gic;
use crate::isa::{self, stop};
use crate::part::Midr;
use crate::log::{LOG, Serial};
use crate::secondary;
use crate::silicon;
use crate::stage1::{self, Image};
use core::fmt::Write;
use core::sync::atomic::Ordering;
use trellis_core::init;
use trellis_idl::trace::Record;
use trellis_idl::boot::{BootHeader, MAGIC, VERSION, flags};

core::arch::global_asm!(include_str!("boot.S"), cpu_offset = const BLOCK_OFFSET);

/// The header that the composer fills in, in the kernel's first page.
#[unsafe(link_section = ".boot_header")]
#[unsafe(no_mangle)]
static BOOT_HEADER: BootHeader = BootHeader::EMPTY;

/// Stands in for the header before boot.
pub static NO_HEADER: BootHeader = BootHeader::EMPTY;

/// The boot CPU's block.
#[unsafe(no_mangle)]
static mut BOOT_CPU: Cpu = Cpu::new(0);

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __boot_start: u8;
    static __boot_end: u8;
    static __rodata_end: u8;
    static __bss_end: u8;
}

pub(crate) fn header() -> &'static BootHeader {
    // The composer wrote over it after it was linked: the compiler may not know what is in it.
    core::hint::black_box(&BOOT_HEADER)
}

/// Called by `boot.S` with the MMU off: image's first byte, counter at the first instruction, device tree, exception
/// level.
#[unsafe(no_mangle)]
extern "C" fn boot_main(image: u64, first_tick: u64, _device_tree: u64, level: u64) -> ! {
    let header = header();
    if header.magic != MAGIC || header.version != VERSION {
        stop();
    }
    let contradiction = (!header.holds_together()).then_some("the image's header contradicts itself");
    if let Some(why) = contradiction.or_else(|| level_refusal(level)).or_else(silicon::refusal) {
        refuse(header, level, why);
    }
    let linked = Image {
        start: image,
        text_end: &raw const __text_end as u64,
        boot: (&raw const __boot_start as u64, &raw const __boot_end as u64),
        translate: isa::translate_page(),
        constants_end: &raw const __rodata_end as u64,
    };
    stage1::build(header, linked);
    stage1::switch_on();
    // SAFETY: boot runs once, on the boot CPU; this is the only reference ever made to its block here.
    let cpu = unsafe { &mut *&raw mut BOOT_CPU };
    cpu.machine.header = header;
    cpu.machine.first_tick = first_tick;
    cpu.machine.kernel_bytes = &raw const __bss_end as u64 - &raw const __image_start as u64;
    silicon::begin_common();
    if header.flags & flags::VECTORS != 0 {
        crate::fp::announce(&mut Serial(if header.uart.kind == 1 { header.uart.base } else { 0 }));
    }
    cpu.set_up(header);
    Gic::start_distributor(&header.gic);
    cpu.machine.gic = Gic::start(&header.gic);
    greet(cpu);
    silicon::report(cpu);
    let mut free = init::free_memory(header, image >> 12);
    SHARED.running.fetch_or(1, Ordering::AcqRel);
    let [(first_free, pages_free), ..] = &mut free;
    let others = secondary::start_all(cpu, header, *first_free, *pages_free);
    *first_free += others.pages;
    *pages_free -= others.pages;
    cpu.machine.kernel_bytes += others.pages * 4096;
    let made = init::root(&mut cpu.local, &SHARED, &mut cpu.machine, header, image >> 12, &free);
    if let Err(refusal) = made {
        panic!("root cannot be made: {refusal:?}");
    }
    let missing = others.wait();
    if missing != 0 {
        let _ = writeln!(LOG.lock(), "CPUs {missing:#x} do not start");
    }
    report_vectors(cpu, header);
    if missing != 0 {
        // One of them may still come, and begins in the code of boot.
        first(cpu)
    }
    let pages = (linked.boot.1 - linked.boot.0) / 4096;
    cpu.machine.kernel_bytes -= pages * 4096;
    if let Err(refusal) = init::give_boot_pages(&SHARED, linked.boot.0 >> 12, pages) {
        panic!("root gets nothing of boot: {refusal:?}");
    }
    leave(cpu, linked)
}

/// The boot CPU runs the code of boot no more, and no other CPU does.
#[inline(never)]
fn leave(cpu: &'static mut Cpu, image: Image) -> ! {
    stage1::forget_boot(image);
    first(cpu)
}

fn greet(cpu: &Cpu) {
    let _ = writeln!(
        LOG.lock(),
        "Trellis {} on {}, {} list registers, {} Hz",
        env!("CARGO_PKG_VERSION"),
        Midr(isa::read!("midr_el1")),
        cpu.machine.gic.lists(),
        cpu.machine.hertz
    );
}

/// Which lengths of vectors all CPUs have that came up, if a guest may have some.
fn report_vectors(cpu: &Cpu, header: &BootHeader) {
    if header.flags & flags::VECTORS == 0 {
        return;
    }
    let lengths = SHARED.vector_lengths.load(Ordering::Acquire);
    let here = u64::from(cpu.machine.lengths.0);
    let _ = writeln!(LOG.lock(), "Vectors: lengths {lengths:#x} (of 128 bits, one bit each), here {here:#x}");
    if crate::fp::is_refused() {
        let _ = writeln!(LOG.lock(), "Vectors: a CPU has SVE and its firmware keeps it (CPTR_EL3.EZ)");
    }
}

/// Says why the kernel cannot run here, and switches off where firmware can.
fn refuse(header: &BootHeader, level: u64, why: &str) -> ! {
    let mut serial = serial(header);
    for text in ["Trellis cannot run here: ", why, ".\n"] {
        let _ = serial.write_str(text);
    }
    if header.start == trellis_idl::boot::start::PSCI {
        // PSCI 5.9, SYSTEM_OFF: at EL1 it is a hypervisor that listens.
        if level == 1 { isa::hvc(0x8400_0008) } else { isa::smc(0x8400_0008, 0, 0, 0) };
    }
    stop()
}

/// The serial port, polled: nobody else uses it any more.
fn serial(header: &BootHeader) -> Serial {
    Serial(header.uart_base())
}

/// Puts what is left of the log out.
pub(crate) fn say_all(header: &BootHeader) {
    let mut serial = serial(header);
    // Whoever holds the log when the kernel panics never lets go; take only what is free.
    while let Some(byte) = LOG.try_lock().and_then(|mut log| log.take()) {
        let _ = serial.write_char(byte as char);
    }
}

/// Says what this CPU did last.
pub(crate) fn say_records(header: &BootHeader, records: &[Record]) {
    let mut serial = serial(header);
    let _ = writeln!(serial, "what this CPU did last:");
    for record in records {
        let _ = writeln!(serial, "{record}");
    }
}

/// Records of the trace that a panic prints.
const LAST_WORDS: u64 = 16;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let header = header();
    let (mut serial, place) = (serial(header), info.location());
    // Piece by piece: what a string needs to be put into columns would be code for this alone.
    let _ = serial.write_str("\nkernel panic: ");
    let _ = serial.write_str(place.map_or("", |place| place.file()));
    let _ = writeln!(serial, ":{}: {}", place.map_or(0, |place| u64::from(place.line())), info.message());
    say_all(header);
    let _ = writeln!(serial, "what this CPU did last:");
    last_records(LAST_WORDS, |record| {
        let _ = writeln!(serial, "{record}");
    });
    if header.start == trellis_idl::boot::start::PSCI {
        isa::smc(0x8400_0008, 0, 0, 0);
    }
    stop()
}
