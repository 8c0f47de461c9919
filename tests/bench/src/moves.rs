// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPUs that move between two CPUs, on the board: three guests with vectors of 2048 and 256 bits and with fixed ones keep
//! something of their own in every floating-point register, run for a moment, and look whether it is still there.

use crate::paths::{Serial, kernel, now, split, write_code};
use core::arch::global_asm;
use core::fmt::Write;
use trellis_idl::kernel::{Access, Op, PLACE, Refusal, VcpuRegister};
use trellis_idl::layout::root_slot;
use trellis_runtime::{Svc, System};

/// How often all of them run.
const ROUNDS: u64 = 200;
/// First slot of this program's: of each guest tables, guest, memory, vCPU, and the vCPU's when it has moved.
const SLOTS: u64 = 100;
const CODE: u64 = 99;
/// Lanes of 128 bits of each guest's vectors; 0 = fixed ones.
const LANES: [u64; 3] = [16, 2, 0];
/// Pages of a guest's memory: what its registers shall hold, then what they held last.
const PAGES: u64 = 6;
/// Where they are, in the guest and here.
const THERE: u64 = 0x40010;
const HERE: u64 = 0x5000_0000;
/// Its own numbers: which registers it has, how often it has looked, whether something was wrong.
const SCALABLE: u64 = 20;
const LOOKED: u64 = 21;
const WRONG: u64 = 22;

global_asm!(
    r#"
    .pushsection .rodata.moves, "a"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .macro moves_fixed operation
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \operation q\n, [x0, \n * 16]
    .endr
    .endm
    .macro moves_scalable operation
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \operation z\n, [x0, \n, mul vl]
    .endr
    .endm
    .macro moves_predicates operation
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \operation p\n, [x1, \n, mul vl]
    .endr
    .endm
moves_begin:
    mov x9, #0x330000
    msr cpacr_el1, x9
    isb
    movz x0, #0x4001, lsl #16
    add x1, x0, #0x2000
    mov x23, #0x9f
    msr fpsr, x23
    mov x24, #0xc00000
    msr fpcr, x24
    cbz x20, 1f
    moves_scalable ldr
    ldr p0, [x1, #16, mul vl]
    wrffr p0.b
    moves_predicates ldr
    b 2f
1:  moves_fixed ldr
2:  hvc #0
    movz x0, #0x4001, lsl #16
    add x0, x0, #0x3000
    add x1, x0, #0x2000
    cbz x20, 3f
    moves_scalable str
    moves_predicates str
    rdffr p0.b
    str p0, [x1, #16, mul vl]
    ldr p0, [x1]
    b 4f
3:  moves_fixed str
4:  movz x1, #0x4001, lsl #16
    mov x2, x0
5:  ldr x3, [x1], #8
    ldr x4, [x0], #8
    eor x3, x3, x4
    orr x22, x22, x3
    cmp x1, x2
    b.lo 5b
    mrs x3, fpsr
    eor x3, x3, x23
    orr x22, x22, x3
    mrs x3, fpcr
    eor x3, x3, x24
    orr x22, x22, x3
    add x21, x21, #1
    b 2b
moves_end:
    .popsection
"#
);

unsafe extern "C" {
    static moves_begin: u32;
    static moves_end: u32;
}

struct Guest {
    slots: [u64; 5],
    cpu: u64,
}

/// An operation that may have to be asked for again.
fn surely(op: Op, arguments: [u64; 6]) -> [u64; 3] {
    loop {
        match Svc.invoke(op, arguments) {
            Err(Refusal::Again) => {}
            Ok(values) => return values,
            Err(refusal) => panic!("{op:?} {arguments:x?}: {refusal:?}"),
        }
    }
}

impl Guest {
    fn new(index: u64, lanes: u64, at: &mut u64) -> Guest {
        let slots = [0, 1, 2, 3, 4].map(|n| SLOTS + 5 * index + n);
        let [tables, guest, memory, vcpu, _] = slots;
        split(32, tables, at);
        split(PAGES, memory, at);
        kernel(Op::GuestCreate, [tables, 1, guest, lanes, u64::from(lanes != 0), 0]);
        let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0;
        kernel(Op::GuestMap, [guest, 0x40000, CODE, 0, 1, Access::READ.with(Access::EXECUTE).0]);
        kernel(Op::GuestMap, [guest, THERE, memory, 0, PAGES, all]);
        fill(memory, index + 1, lanes);
        // No class of exits has a route: whatever stops it leaves it stopped.
        kernel(Op::VcpuCreate, [guest, index % 2, 0, vcpu, 100, 0]);
        kernel(Op::VcpuReset, [vcpu, 0, 0, 0, 0, 0]);
        kernel(Op::VcpuSet, [vcpu, VcpuRegister::Pc as u64, 0x4000_0000, 0, 0, 0]);
        kernel(Op::VcpuSet, [vcpu, SCALABLE, u64::from(lanes != 0), 0, 0, 0]);
        Guest { slots, cpu: index % 2 }
    }

    fn start(&self) {
        surely(Op::VcpuStart, [self.slots[3], 0, 0, 0, 0, 0]);
    }

    /// A register, when it has stopped.
    fn register(&self, n: u64) -> u64 {
        loop {
            match Svc.invoke(Op::VcpuGet, [self.slots[3], n, 0, 0, 0, 0]) {
                Ok([_, value, _]) => return value,
                // It runs: on this CPU only while nobody here does.
                Err(Refusal::BadState | Refusal::Again) => drop(Svc.wait(0, now() + 20_000)),
                Err(refusal) => panic!("a register: {refusal:?}"),
            }
        }
    }

    fn go(&mut self) {
        let [_, guest, _, old, new] = self.slots;
        self.cpu ^= 1;
        surely(Op::VcpuCreate, [guest, self.cpu, PLACE, new, 100, 0]);
        surely(Op::VcpuMove, [old, 0, 0, 0, 0, 0]);
        surely(Op::Drop, [old, 0, 0, 0, 0, 0]);
        self.slots.swap(3, 4);
    }
}

/// Puts what its registers shall hold into a guest's memory: bytes of its own, and an FFR that an instruction can leave.
fn fill(memory: u64, seed: u64, lanes: u64) {
    let write = Access::READ.with(Access::WRITE).0;
    kernel(Op::DomainMap, [root_slot::DOMAIN, HERE, memory, 0, PAGES, write]);
    let half = PAGES / 2 * 4096;
    for at in 0..half {
        let ffr = (0x2000 + 32 * lanes..0x2000 + 34 * lanes).contains(&at);
        let byte = if ffr { 0xff } else { (at * 7 + at / 256 * 31 + seed * 85) as u8 };
        for copy in [at, at + half] {
            // SAFETY: the pages were mapped just now, and the guest does not run.
            unsafe { ((HERE + copy) as *mut u8).write_volatile(byte) };
        }
    }
    kernel(Op::DomainUnmap, [root_slot::DOMAIN, HERE, PAGES, 0, 0, 0]);
}

/// Each runs once and has found everything right, this often so far.
fn all_look(guests: &[Guest], before: u64) {
    guests.iter().for_each(Guest::start);
    for (guest, lanes) in guests.iter().zip(LANES) {
        let (looked, wrong) = (guest.register(LOOKED), guest.register(WRONG));
        assert!(looked == before, "the guest with {lanes} lanes has looked {looked} times, not {before}");
        assert!(wrong == 0, "the guest with {lanes} lanes finds what is not its own: {wrong:#x}");
    }
}

/// Lets them run, some together on a CPU, and move at random in between; then all leave the second CPU, which stops.
pub fn run(at: &mut u64) {
    split(1, CODE, at);
    let begin = &raw const moves_begin;
    write_code(CODE, begin, (&raw const moves_end as usize - begin as usize) / 4);
    let mut guests = [0, 1, 2].map(|index| Guest::new(index, LANES[index as usize], at));
    let (mut random, mut moves) = (1u64, 0u64);
    for round in 0..ROUNDS {
        all_look(&guests, round);
        for guest in &mut guests {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if random >> 62 != 0 {
                guest.go();
                moves += 1;
            }
        }
    }
    let _ = writeln!(Serial, "checked: {moves} moves between CPUs, every register right");
    if guests.iter().all(|guest| guest.cpu == 0) {
        guests[0].go();
    }
    let retire = [root_slot::SYSTEM, 1, 0, 0, 0, 0];
    assert!(Svc.invoke(Op::CpuRetire, retire) == Err(Refusal::BadState), "a CPU with vCPUs does not stop");
    guests.iter_mut().filter(|guest| guest.cpu == 1).for_each(Guest::go);
    surely(Op::CpuRetire, retire);
    for round in ROUNDS..ROUNDS + 10 {
        all_look(&guests, round);
        let refused = Svc.invoke(Op::CpuRetire, retire);
        assert!(refused == Err(Refusal::WrongCpu), "the CPU has stopped: {refused:?}");
    }
    let _ = writeln!(Serial, "checked: CPU 1 has stopped, and the others go on");
}
