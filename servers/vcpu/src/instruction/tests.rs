// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encodings as an assembler writes them.

use super::*;

fn one(is_load: bool, bytes: u8, first: u8, base: u8, offset: i64) -> Transfer {
    Transfer {
        is_load,
        bytes,
        is_signed: false,
        is_wide: bytes == 8,
        first,
        second: None,
        base,
        offset: Offset::Constant(offset),
        write_back: WriteBack::None,
    }
}

fn by(number: u8, option: u8, shift: u8) -> Offset {
    Offset::Register { number, option, shift }
}

#[test]
fn constant_offsets_decode() {
    for (word, text, expected) in [
        (0xb940_0441, "ldr w1, [x2, #4]", one(true, 4, 1, 2, 4)),
        (0xb85f_d251, "ldur w17, [x18, #-3]", one(true, 4, 17, 18, -3)),
        (0xf801_0a93, "sttr x19, [x20, #16]", one(false, 8, 19, 20, 16)),
        (0xf900_001f, "str xzr, [x0]", one(false, 8, 31, 0, 0)),
        (0x88df_fdac, "ldar w12, [x13]", one(true, 4, 12, 13, 0)),
        (0x089f_fdee, "stlrb w14, [x15]", one(false, 1, 14, 15, 0)),
        (0xc89f_fe30, "stlr x16, [x17]", one(false, 8, 16, 17, 0)),
        (0xb8bf_c041, "ldapr w1, [x2]", one(true, 4, 1, 2, 0)),
        (0x995f_c041, "ldapur w1, [x2, #-4]", one(true, 4, 1, 2, -4)),
        (0x5900_6083, "stlurh w3, [x4, #6]", one(false, 2, 3, 4, 6)),
    ] {
        assert_eq!(decode(word), Ok(expected), "{text}");
    }
}

#[test]
fn write_back_and_sign_decode() {
    let after = Transfer { write_back: WriteBack::After, ..one(true, 8, 3, 4, 8) };
    assert_eq!(decode(0xf840_8483), Ok(after), "ldr x3, [x4], #8");
    let before = Transfer { write_back: WriteBack::Before, ..one(false, 4, 5, 6, -4) };
    assert_eq!(decode(0xb81f_ccc5), Ok(before), "str w5, [x6, #-4]!");
    let narrow = Transfer { is_signed: true, ..one(true, 1, 13, 31, 3) };
    assert_eq!(decode(0x39c0_0fed), Ok(narrow), "ldrsb w13, [sp, #3]");
    let wide = Transfer { is_signed: true, is_wide: true, ..one(true, 4, 5, 6, 8) };
    assert_eq!(decode(0x9980_80c5), Ok(wide), "ldapursw x5, [x6, #8]");
}

#[test]
fn register_offsets_decode() {
    let plain = Transfer { offset: by(9, 3, 0), ..one(true, 1, 7, 8, 0) };
    assert_eq!(decode(0x3869_6907), Ok(plain), "ldrb w7, [x8, x9]");
    let signed = Transfer { is_signed: true, offset: by(12, 6, 1), ..one(true, 2, 10, 11, 0) };
    assert_eq!(decode(0x78ac_d96a), Ok(Transfer { is_wide: true, ..signed }), "ldrsh x10, [x11, w12, sxtw #1]");
    let shifted = Transfer { offset: by(16, 3, 1), ..one(false, 2, 14, 15, 0) };
    assert_eq!(decode(0x7830_79ee), Ok(shifted), "strh w14, [x15, x16, lsl #1]");
    let unsigned = Transfer { is_signed: true, is_wide: true, offset: by(3, 2, 0), ..one(true, 4, 1, 2, 0) };
    assert_eq!(decode(0xb8a3_4841), Ok(unsigned), "ldrsw x1, [x2, w3, uxtw]");
}

#[test]
fn pairs_decode() {
    let pair = |second, transfer| Transfer { second: Some(second), ..transfer };
    assert_eq!(decode(0x2941_0861), Ok(pair(2, one(true, 4, 1, 3, 8))), "ldp w1, w2, [x3, #8]");
    let push = Transfer { write_back: WriteBack::Before, ..one(false, 8, 4, 31, -16) };
    assert_eq!(decode(0xa9bf_17e4), Ok(pair(5, push)), "stp x4, x5, [sp, #-16]!");
    let words = Transfer { is_signed: true, is_wide: true, write_back: WriteBack::After, ..one(true, 4, 6, 8, 8) };
    assert_eq!(decode(0x68c1_1d06), Ok(pair(7, words)), "ldpsw x6, x7, [x8], #8");
    assert_eq!(decode(0xa840_2969), Ok(pair(10, one(true, 8, 9, 11, 0))), "ldnp x9, x10, [x11]");
}

#[test]
fn what_is_not_emulated_says_why() {
    for (word, text, why) in [
        (0x3dc0_0020, "ldr q0, [x1]", NotEmulated::Vector),
        (0x6d00_0440, "stp d0, d1, [x2]", NotEmulated::Vector),
        (0xbc40_4460, "ldr s0, [x3], #4", NotEmulated::Vector),
        (0x4c40_7020, "ld1 {v0.16b}, [x1]", NotEmulated::Vector),
        (0x885f_7c20, "ldxr w0, [x1]", NotEmulated::Atomic),
        (0x8802_fc20, "stlxr w2, w0, [x1]", NotEmulated::Atomic),
        (0xb820_0041, "ldadd w0, w1, [x2]", NotEmulated::Atomic),
        (0x88a0_7c41, "cas w0, w1, [x2]", NotEmulated::Atomic),
        (0x3820_8041, "swpb w0, w1, [x2]", NotEmulated::Atomic),
        (0xd503_201f, "nop", NotEmulated::Unknown),
        (0xf980_0000, "prfm pldl1keep, [x0]", NotEmulated::Unknown),
        (0xd50b_7420, "dc zva, x0", NotEmulated::ZeroBlock),
    ] {
        assert_eq!(decode(word), Err(why), "{text}");
    }
}

#[test]
fn loads_extend_as_their_form_says() {
    assert_eq!(extend(0x1_80, 1, false, false), 0x80);
    assert_eq!(extend(0x80, 1, true, false), 0xffff_ff80);
    assert_eq!(extend(0x80, 1, true, true), 0xffff_ffff_ffff_ff80);
    assert_eq!(extend(u64::MAX, 4, false, false), 0xffff_ffff);
    assert_eq!(extend(u64::MAX, 8, false, true), u64::MAX);
}

proptest::proptest! {
    #[test]
    fn no_word_makes_it_panic(word: u32, value: u64) {
        if let Ok(transfer) = decode(word) {
            transfer.extend(value);
            assert!(transfer.total_bytes() <= 16);
        }
    }
}
