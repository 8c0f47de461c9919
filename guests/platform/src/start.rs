// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the first instruction to `guest_main`: the arm64 Image header, the move to the linked address when loaded
//! elsewhere, the map, a stack per CPU; then what the device tree says becomes the [`Machine`].

use core::arch::global_asm;
use core::cell::OnceCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use dtoolkit::fdt::Fdt;

use crate::arguments::Arguments;
use crate::tree::{MAX_CPUS, Tree};
use crate::{cpu, gic, map, psci, uart};

// Registers kept through start-up: x20 = device tree, x21 = counter at a secondary's first instruction, x22 = this is
// the boot CPU. Nothing is read from memory that a cache could hold differently before the map is on: the boot CPU
// invalidates its own image after its last store with the MMU off (Arm ARM D8, mismatched attributes).
global_asm!(
    r#"
    .section .head, "ax"
    b _start
    .long 0
    .quad 0
    .quad _image_bytes
    .quad 0xa
    .quad 0, 0, 0
    .ascii "ARM\x64"
    .long 0

    .global _start
_start:
    msr daifset, #0xf
    mov x20, x0
    mov x22, #1
    adr x4, _head
    ldr x5, =_head
    cmp x4, x5
    b.eq 2f
    ldr x6, =_data_end
1:  ldp x8, x9, [x4], #16
    stp x8, x9, [x5], #16
    cmp x5, x6
    b.lo 1b
    dsb sy
    ic iallu
    dsb sy
    isb
    ldr x6, =2f
    br x6
2:  ldr x4, =_bss
    ldr x5, =_stacks
3:  stp xzr, xzr, [x4], #16
    cmp x4, x5
    b.lo 3b
    dsb sy
    mrs x6, ctr_el0
    ubfx x6, x6, #16, #4
    mov x7, #4
    lsl x7, x7, x6
    ldr x4, =_head
    ldr x5, =_end
4:  dc ivac, x4
    add x4, x4, x7
    cmp x4, x5
    b.lo 4b
    dsb sy
    mov x0, #0
    b 5f

    .global _secondary
_secondary:
    mrs x21, cntvct_el0
    msr daifset, #0xf
    mov x22, #0
5:  msr tpidr_el1, x0
    ldr x1, ={mair}
    msr mair_el1, x1
    ldr x1, ={tcr}
    mrs x2, id_aa64mmfr0_el1
    and x2, x2, #7
    mov x3, #5
    cmp x2, x3
    csel x2, x2, x3, lo
    orr x1, x1, x2, lsl #32
    msr tcr_el1, x1
    ldr x1, ={table}
    msr ttbr0_el1, x1
    ldr x1, =vectors
    msr vbar_el1, x1
    msr cpacr_el1, xzr
    msr mdscr_el1, xzr
    isb
    tlbi vmalle1
    dsb nsh
    ic iallu
    dsb nsh
    isb
    ldr x1, ={sctlr}
    msr sctlr_el1, x1
    isb
    ldr x1, =_stacks
    add x2, x0, #1
    add x1, x1, x2, lsl #14
    msr spsel, #1
    mov sp, x1
    mov x29, xzr
    mov x30, xzr
    cbz x22, 6f
    mov x0, x20
    b {boot}
6:  mov x1, x21
    b {secondary}
    .ltorg
    "#,
    mair = const map::MAIR,
    tcr = const map::TCR,
    table = sym map::TABLE,
    sctlr = const map::SCTLR,
    boot = sym boot,
    secondary = sym secondary,
);

unsafe extern "C" {
    static _head: u8;
    static _end: u8;
    fn _secondary();
}

unsafe extern "Rust" {
    /// The guest's own program, made by [`guest!`](crate::guest).
    safe fn guest_main(machine: &'static Machine);
}

/// Names the function that a guest begins with.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        // SAFETY: the name is unique in the program: only this macro makes it, once a guest.
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(machine: &'static $crate::Machine) {
            $main(machine)
        }
    };
}

/// What a started CPU does: the machine, its index, and the counter at its first instruction.
pub type CpuMain = fn(&'static Machine, usize, u64);

/// What this guest runs on.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// What the device tree said.
    pub tree: Tree<'static>,
    /// Where the device tree is; 0 = there was none.
    pub tree_at: u64,
}

impl Machine {
    /// The command line.
    pub fn arguments(&self) -> Arguments<'static> {
        self.tree.arguments
    }

    /// CPUs of the guest, at least one.
    pub fn cpus(&self) -> usize {
        self.tree.cpus.clamp(1, MAX_CPUS)
    }

    /// Affinity of a CPU.
    pub fn affinity(&self, index: usize) -> u64 {
        self.tree.affinities[index % MAX_CPUS]
    }

    /// Starts CPU `index` at `main`; back comes what PSCI says (0 = started).
    pub fn start(&self, index: usize, main: CpuMain) -> i64 {
        CPU_MAIN.store(main as usize, Ordering::Release);
        psci::cpu_on(self.affinity(index), entry_point(), index as u64)
    }

    /// The largest stretch of memory that holds neither this program nor the device tree, in whole 2 MiB: first byte
    /// and byte behind it.
    pub fn free_memory(&self) -> (u64, u64) {
        let (first, last) = (self.tree.memory_base, self.tree.memory_base + self.tree.memory_bytes);
        let tree = (self.tree_at, self.tree_at + self.tree.bytes);
        let (image, end) = (image_range().1, last);
        let gaps = if tree.0 >= image && tree.0 < end {
            [(image, tree.0), (tree.1, end)]
        } else {
            [(image.max(first), end), (0, 0)]
        };
        let whole = gaps.map(|(from, to)| (from.next_multiple_of(2 << 20), to & !((2 << 20) - 1)));
        if whole[1].1.saturating_sub(whole[1].0) > whole[0].1.saturating_sub(whole[0].0) { whole[1] } else { whole[0] }
    }
}

/// Where this program is in memory, stacks included.
pub fn image_range() -> (u64, u64) {
    (&raw const _head as u64, &raw const _end as u64)
}

/// Where a started CPU begins.
pub fn entry_point() -> u64 {
    _secondary as *const () as u64
}

/// What all CPUs share after the boot CPU has made it.
struct Shared(OnceCell<Machine>);

// SAFETY: the boot CPU sets the cell before it starts any other CPU, and CPU_ON orders the two; nobody sets it again.
unsafe impl Sync for Shared {}

static MACHINE: Shared = Shared(OnceCell::new());
static CPU_MAIN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn boot(tree: *const u8) -> ! {
    uart::init();
    let machine = MACHINE.0.get_or_init(|| read_machine(tree));
    gic::init_distributor();
    gic::init_cpu();
    guest_main(machine);
    psci::system_off()
}

extern "C" fn secondary(index: usize, entered: u64) -> ! {
    gic::init_cpu();
    let main = CPU_MAIN.load(Ordering::Acquire);
    if let (Some(machine), true) = (MACHINE.0.get(), main != 0) {
        // SAFETY: the word is not zero, so `Machine::start` put a `CpuMain` there.
        let main = unsafe { core::mem::transmute::<usize, CpuMain>(main) };
        main(machine, index, entered);
    }
    psci::cpu_off()
}

fn read_machine(tree: *const u8) -> Machine {
    let mut machine = Machine { tree: Tree::default(), tree_at: tree as u64 };
    if !tree.is_null() {
        // SAFETY: the platform puts the address of a device tree into x0; its memory is left alone from here on.
        if let Ok(fdt) = unsafe { Fdt::from_raw(tree) } {
            machine.tree = Tree::read(fdt);
        }
    }
    if machine.tree.cpus == 0 {
        machine.tree.affinities[0] = cpu::affinity();
    }
    machine
}
