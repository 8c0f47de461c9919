// SPDX-License-Identifier: MIT OR Apache-2.0
//! What floating-point registers cost when two guests take turns on a CPU: one turn is a start by root, the guest's run,
//! its hypercall to a server, its stop and the signal back. The guests use nothing, fixed vectors or scalable ones.

use crate::paths::{ECHO, EXITS_PORTAL, Serial, exits_server, kernel, now, split, write_code};
use core::arch::global_asm;
use core::fmt::Write;
use trellis_idl::kernel::{Access, Fact, Groups, Op, PASSIVE, VcpuRegister};
use trellis_idl::kernel::float_register::VECTORS;
use trellis_idl::layout::{self, root_slot};
use trellis_runtime::{Svc, System};

/// Turns of each guest that are measured.
const TURNS: u64 = 24;
/// Longer than the time slice in which traps are counted as a storm, in ticks.
const CALM: u64 = 11_000_000;
/// Turns of both guests that make a storm.
const STORM: u64 = 4;

/// Slots: of each of the two guests tables, guest and vCPU; the code.
const GUESTS: [[u64; 3]; 2] = [[90, 91, 92], [93, 94, 95]];
const CODE: u64 = 96;
const AREA: u64 = 97;
/// Threads, each with its portal behind it.
const FORBIDDEN: u64 = 98;
const KEEPER: u64 = 100;
/// Where the second domain has the code.
const CODE_IN_ECHO: u64 = layout::PROGRAM + 0x1000;

/// What the guest does in its turn, in its x20.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Use {
    Nothing = 0,
    Fixed = 1,
    Scalable = 2,
    /// Instead of a turn: 1,000 hypercalls, whose ticks come out in x1.
    Calls = 3,
}

global_asm!(
    ".pushsection .rodata.turns, \"a\"",
    ".arch_extension fp",
    ".arch_extension simd",
    ".arch_extension sve",
    "turns_begin:",
    "mov x9, #0x330000",
    "msr cpacr_el1, x9",
    "isb",
    "1: cbz x20, 3f",
    "cmp x20, #2",
    "b.lo 2f",
    "b.hi 4f",
    "mov z0.b, #1",
    "b 3f",
    "2: movi v0.16b, #1",
    "3: mov x0, #-1",
    "hvc #0",
    "b 1b",
    "4: mov x9, #1000",
    "mov x0, #0",
    "mrs x10, cntvct_el0",
    "5: hvc #0",
    "sub x9, x9, #1",
    "cbnz x9, 5b",
    "mrs x11, cntvct_el0",
    "sub x1, x11, x10",
    "b 3b",
    // A server's thread: answers with what it kept in a vector register, and keeps what it was called with.
    "keeper_begin:",
    "mov x0, xzr",
    "mov x1, xzr",
    "svc #1",
    "fmov x20, d0",
    "fmov d0, x19",
    "mov x19, x20",
    "b keeper_begin",
    "turns_end:",
    ".popsection",
);

unsafe extern "C" {
    static turns_begin: u32;
    static keeper_begin: u32;
    static turns_end: u32;
}

/// Two guests with vectors of so many lanes.
fn make(lanes: [u64; 2]) {
    for ([tables, guest, vcpu], lanes) in GUESTS.into_iter().zip(lanes) {
        kernel(Op::GuestCreate, [tables, 1, guest, lanes, u64::from(lanes != 0), 0]);
        let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0;
        kernel(Op::GuestMap, [guest, 0x40000, CODE, 0, 1, all]);
        kernel(Op::VcpuCreate, [guest, 0, 0, vcpu, 100, 0]);
        let groups = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;
        for class in 0..10 {
            kernel(Op::VcpuRoute, [vcpu, class, EXITS_PORTAL, groups, 0, 0]);
        }
        kernel(Op::VcpuReset, [vcpu, 0, 0, 0, 0, 0]);
        kernel(Op::VcpuSet, [vcpu, VcpuRegister::Pc as u64, 0x4000_0000, 0, 0, 0]);
    }
}

fn destroy() {
    for [_, guest, vcpu] in GUESTS {
        kernel(Op::GuestDestroy, [guest, 0, 0, 0, 0, 0]);
        kernel(Op::Drop, [vcpu, 0, 0, 0, 0, 0]);
    }
}

fn choose(uses: [Use; 2]) {
    for ([_, _, vcpu], what) in GUESTS.into_iter().zip(uses) {
        kernel(Op::VcpuSet, [vcpu, 20, what as u64, 0, 0, 0]);
    }
}

fn turn(guest: usize) {
    kernel(Op::VcpuStart, [GUESTS[guest][2], 0, 0, 0, 0, 0]);
    Svc.wait(1, 0);
}

fn bytes() -> u64 {
    kernel(Op::Fact, [root_slot::SYSTEM, Fact::FloatBytes as u64, 0, 0, 0, 0])[1]
}

/// Lets the server answer the one that stopped last, and traps be forgotten.
fn settle() {
    Svc.wait(0, now() + CALM);
}

/// Lets both take turns; `calm` keeps their traps apart. Prints instructions and bytes of one turn.
fn figure(name: &str, calm: bool) {
    let (mut spent, before) = (0, bytes());
    for _ in 0..TURNS {
        for guest in [0, 1] {
            let begin = now();
            turn(guest);
            spent += now() - begin;
        }
        if calm {
            settle();
        }
    }
    let moved = bytes() - before;
    let _ = writeln!(Serial, "figure {name} {} instructions", spent / (2 * TURNS));
    let _ = writeln!(Serial, "figure {name}_bytes {} bytes", moved / (2 * TURNS));
}

/// The lazy way: whoever uses registers traps once a turn.
fn lazy(name: &str, lanes: [u64; 2], uses: [Use; 2]) {
    make(lanes);
    choose(uses);
    turn(0);
    turn(1);
    settle();
    figure(name, true);
    destroy();
}

/// Registers move at each switch, without a trap: so they do for a while after a storm of traps.
fn eager(name: &str, lanes: u64) {
    make([lanes; 2]);
    choose([Use::Scalable; 2]);
    for _ in 0..STORM {
        turn(0);
        turn(1);
    }
    figure(name, false);
    destroy();
}

/// An exit to a server and back, without live vectors and with them: to the instruction the same.
fn exits(lanes: u64) {
    make([lanes; 2]);
    let calls = || {
        choose([Use::Calls; 2]);
        turn(0);
        settle();
        let ticks = kernel(Op::VcpuGet, [GUESTS[0][2], 1, 0, 0, 0, 0])[1];
        (ticks - 2000) / 1000
    };
    let without = [calls(), calls()][1];
    choose([Use::Scalable; 2]);
    turn(0);
    settle();
    let before = bytes();
    let with = calls();
    let _ = writeln!(Serial, "figure exit_hvc_no_vectors {without} instructions");
    let _ = writeln!(Serial, "figure exit_hvc_live_vectors {with} instructions");
    assert!(bytes() == before, "an exit moved floating-point registers");
    assert!(with == without, "an exit with live vectors costs {with} instructions, without {without}");
    destroy();
}

/// A server's thread that uses floating point breaks its contract, unless it was given a save area: then what it keeps
/// is still there after a guest used the registers, and the guest's after it did.
fn threads(at: &mut u64) {
    split(1, AREA, at);
    let keeper = CODE_IN_ECHO + (&raw const keeper_begin as u64 - &raw const turns_begin as u64);
    kernel(Op::DomainMap, [ECHO, CODE_IN_ECHO, CODE, 0, 1, Access::READ.with(Access::EXECUTE).0]);
    for (thread, portal) in [(FORBIDDEN, FORBIDDEN + 1), (KEEPER, KEEPER + 1)] {
        kernel(Op::ThreadCreate, [ECHO, 0, PASSIVE, thread, 0, 0]);
        kernel(Op::PortalCreate, [thread, 0, portal, 0, 0, 0]);
        kernel(Op::ThreadStart, [thread, keeper, 0, 0, 0, 0]);
    }
    let refused = Svc.call(FORBIDDEN + 1, [7; 10]);
    let fault = |word| kernel(Op::ThreadFault, [FORBIDDEN, word, 0, 0, 0, 0])[1];
    assert!(refused.is_err() && fault(0) == 2, "a thread without permission used floating point: {refused:?}");
    // Unknown, or a trapped access of these registers: the loaded guest's own control register decides which.
    assert!(matches!(fault(1) >> 26, 0 | 7), "it stopped for something else: {:#x}", fault(1));
    kernel(Op::ThreadFloat, [KEEPER, AREA, 0, 0, 0, 0]);
    make([16, 2]);
    choose([Use::Scalable; 2]);
    for pass in 0..10 {
        let kept = Svc.call(KEEPER + 1, [1000 + pass; 10]).map(|words| words[0]);
        assert!(kept == Ok(if pass == 0 { 0 } else { 999 + pass }), "pass {pass}: the thread kept {kept:?}");
        turn((pass % 2) as usize);
        settle();
        let own = kernel(Op::VcpuGet, [GUESTS[(pass % 2) as usize][2], VECTORS, 0, 0, 0, 0])[1];
        assert!(own == 0x0101_0101_0101_0101, "pass {pass}: the guest has {own:#x}");
    }
    destroy();
    kernel(Op::ThreadDestroy, [KEEPER, 0, 0, 0, 0, 0]);
    let _ = writeln!(Serial, "checked: threads with floating point and without");
}

/// Measures everything.
pub fn run(at: &mut u64) {
    exits_server(at);
    split(1, CODE, at);
    for [tables, ..] in GUESTS {
        split(32, tables, at);
    }
    let begin = &raw const turns_begin;
    write_code(CODE, begin, (&raw const turns_end as usize - begin as usize) / 4);
    let (none, fixed, scalable) = (Use::Nothing, Use::Fixed, Use::Scalable);
    lazy("fp_switch_none", [0, 0], [none, none]);
    lazy("fp_switch_one", [0, 0], [fixed, none]);
    lazy("fp_switch_both_v", [0, 0], [fixed, fixed]);
    for (name, lanes) in
        [("fp_switch_both_128", 1), ("fp_switch_both_256", 2), ("fp_switch_both_512", 4), ("fp_switch_both_2048", 16)]
    {
        lazy(name, [lanes, lanes], [scalable, scalable]);
    }
    eager("fp_switch_eager_256", 2);
    eager("fp_switch_eager_2048", 16);
    threads(at);
    exits(16);
}
