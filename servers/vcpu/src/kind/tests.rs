// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instruction words as the assembler writes them, and what each changes when it is denied.

use super::*;
use crate::complete::{Operand, Register, denied};
use std::convert::Infallible;

/// Every register holds its number times 0x1000; the stack pointer is number 31.
fn changes(word: u32) -> Option<Vec<(Register, u64)>> {
    let read = |operand| -> Result<u64, Infallible> {
        Ok(match operand {
            Operand::General(31) => 0,
            Operand::General(n) | Operand::Base(n) => u64::from(n) * 0x1000,
        })
    };
    let kind = Kind::of(word)?;
    let Ok(changes) = denied(&kind, 0x1_8081_8283, read);
    changes.map(|changes| changes.iter().copied().collect())
}

use Register::{General as X, Stack, Vector as V};

#[test]
fn a_denied_access_changes_what_it_would_have_changed_but_memory() {
    const VALUE: u64 = 0x1_8081_8283;
    const LOW: u64 = 0x8081_8283;
    let table: &[(u32, &str, &[(Register, u64)])] = &[
        (0xf840_8441, "ldr x1, [x2], #8", &[(X(1), VALUE), (X(2), 0x2008)]),
        (0xb81f_cc41, "str w1, [x2, #-4]!", &[(X(2), 0x1ffc)]),
        (0xa9c1_0fe1, "ldp x1, x3, [sp, #16]!", &[(X(1), VALUE), (X(3), VALUE), (Stack, 0x1f010)]),
        (0x39c0_00c5, "ldrsb w5, [x6]", &[(X(5), 0xffff_ff83)]),
        (0xf823_6841, "str x1, [x2, x3]", &[]),
        (0xc85f_7c41, "ldxr x1, [x2]", &[(X(1), VALUE)]),
        (0xc803_7c41, "stxr w3, x1, [x2]", &[(X(3), 0)]),
        (0x885f_fc41, "ldaxr w1, [x2]", &[(X(1), LOW)]),
        (0x8803_ffe1, "stlxr w3, w1, [sp]", &[(X(3), 0)]),
        (0xc87f_1041, "ldxp x1, x4, [x2]", &[(X(1), VALUE), (X(4), VALUE)]),
        (0xc823_1041, "stxp w3, x1, x4, [x2]", &[(X(3), 0)]),
        (0x887f_9041, "ldaxp w1, w4, [x2]", &[(X(1), LOW), (X(4), LOW)]),
        (0x8823_9041, "stlxp w3, w1, w4, [x2]", &[(X(3), 0)]),
        (0x085f_7c41, "ldxrb w1, [x2]", &[(X(1), 0x83)]),
        (0x4803_7c41, "stxrh w3, w1, [x2]", &[(X(3), 0)]),
        (0xf821_0062, "ldadd x1, x2, [x3]", &[(X(2), VALUE)]),
        (0xb8e1_8062, "swpal w1, w2, [x3]", &[(X(2), LOW)]),
        (0xf821_007f, "stadd x1, [x3]", &[]),
        (0xc8e1_fc62, "casal x1, x2, [x3]", &[(X(1), VALUE)]),
        (0x4824_7c66, "casp x4, x5, x6, x7, [x3]", &[(X(4), VALUE), (X(5), VALUE)]),
        (0x0864_fc66, "caspal w4, w5, w6, w7, [x3]", &[(X(4), LOW), (X(5), LOW)]),
        (0x08a1_7c62, "casb w1, w2, [x3]", &[(X(1), 0x83)]),
        (0xf8bf_c041, "ldapr x1, [x2]", &[(X(1), VALUE)]),
        (0x3cc1_0441, "ldr q1, [x2], #16", &[(V(1), VALUE), (X(2), 0x2010)]),
        (0xfc00_8c43, "str d3, [x2, #8]!", &[(X(2), 0x2008)]),
        (0x3d40_0441, "ldr b1, [x2, #1]", &[(V(1), 0x83)]),
        (0xacc1_1441, "ldp q1, q5, [x2], #32", &[(V(1), VALUE), (V(5), VALUE), (X(2), 0x2020)]),
        (0x2dbf_0841, "stp s1, s2, [x2, #-8]!", &[(X(2), 0x1ff8)]),
        (0x4c40_7041, "ld1 {v1.16b}, [x2]", &[(V(1), VALUE)]),
        (0x4c9f_2041, "st1 {v1.16b-v4.16b}, [x2], #64", &[(X(2), 0x2040)]),
        (
            0x0cc3_005e, "ld4 {v30.8b, v31.8b, v0.8b, v1.8b}, [x2], x3",
            &[(V(30), VALUE), (V(31), VALUE), (V(0), VALUE), (V(1), VALUE), (X(2), 0x5000)],
        ),
        (0x0dbf_9041, "st2 {v1.s, v2.s}[1], [x2], #8", &[(X(2), 0x2008)]),
        (0x4ddf_c841, "ld1r {v1.4s}, [x2], #4", &[(V(1), VALUE), (X(2), 0x2004)]),
        (0x3cdf_d042, "ldur q2, [x2, #-3]", &[(V(2), VALUE)]),
        (0xac41_0861, "ldnp q1, q2, [x3, #32]", &[(V(1), VALUE), (V(2), VALUE)]),
        (0xd50b_7423, "dc zva, x3", &[]),
        (0x5800_0007, "ldr x7, .", &[(X(7), VALUE)]),
        (0x9c00_0000, "ldr q0, .", &[(V(0), VALUE)]),
        (0xc89f_fc41, "stlr x1, [x2]", &[]),
    ];
    for (word, text, expected) in table {
        assert_eq!(changes(*word).as_deref(), Some(*expected), "{text}");
    }
}

#[test]
fn what_is_no_access_and_what_moves_one_lane_is_not_known() {
    for (word, text) in [
        (0xd503_201fu32, "nop"), (0x8b02_0020, "add x0, x1, x2"), (0xd503_3f5f, "clrex"), (0x1400_0000, "b ."),
        (0xd69f_03e0, "eret"), (0x0d40_8441, "ld1 {v1.d}[0], [x2]"),
    ] {
        assert_eq!(changes(word), None, "{text}");
    }
}

#[test]
fn exclusives_say_what_they_move() {
    let of = |word| match Kind::of(word) {
        Some(Kind::Exclusive(exclusive)) => exclusive,
        other => panic!("{word:#x}: {other:?}"),
    };
    let pair = of(0x8823_9041);
    assert_eq!((pair.is_load, pair.bytes, pair.status, pair.first, pair.second, pair.base), (false, 4, 3, 1, Some(4), 2));
    assert_eq!((pair.size(), of(0xc823_1041).size(), of(0x085f_7c41).size(), of(0xc85f_7c41).size()), (3, 4, 0, 3));
    assert_eq!(of(0x8803_ffe1).base, 31);
}

proptest::proptest! {
    #[test]
    fn no_word_makes_it_panic(word: u32) {
        let _ = changes(word);
        let mut monitor = crate::exclusive::Monitor::begin(1);
        let _ = monitor.next(word);
    }

    /// The space of loads and stores, which few random words hit.
    #[test]
    fn no_load_or_store_makes_it_panic(word: u32) {
        for group in [0x0800_0000, 0x0c00_0000, 0x1800_0000, 0x1c00_0000, 0x2800_0000, 0x2c00_0000, 0x3800_0000, 0x3c00_0000] {
            let _ = changes(word & !0x3e00_0000 | group | word & 0x0100_0000);
        }
    }
}
