// SPDX-License-Identifier: MIT OR Apache-2.0
//! Round by round: fill, spin, look.

use core::arch::global_asm;

use crate::linux::{Start, say, set_length};

// The same moves as those of the guest `vectors`.
global_asm!(include_str!("../../vectors/src/registers.S"));

unsafe extern "C" {
    fn put_fixed(vectors: *const u8, predicates: *const u8, status: *const u64);
    fn take_fixed(vectors: *mut u8, predicates: *mut u8, status: *mut u64);
    fn put_scalable(vectors: *const u8, predicates: *const u8, status: *const u64);
    fn take_scalable(vectors: *mut u8, predicates: *mut u8, status: *mut u64);
}

const VECTORS: usize = 32 * 256;
const PREDICATES: usize = 17 * 32;

/// All registers at the longest length.
#[repr(C, align(16))]
struct Registers {
    vectors: [u8; VECTORS],
    predicates: [u8; PREDICATES],
    status: [u64; 2],
}

const NONE: Registers = Registers { vectors: [0; VECTORS], predicates: [0; PREDICATES], status: [0; 2] };

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Fills what vectors of so many bytes have; 0 = fixed ones. FFR holds ones, then zeroes.
fn fill(bytes: usize, state: &mut u64, to: &mut Registers) {
    to.vectors[..32 * bytes.max(16)].fill_with(|| next(state) as u8);
    to.predicates[..2 * bytes].fill_with(|| next(state) as u8);
    let ones = next(state) as usize % (bytes + 1);
    for (index, byte) in to.predicates[2 * bytes..][..bytes / 8].iter_mut().enumerate() {
        *byte = (0..8).filter(|bit| index * 8 + bit < ones).fold(0, |byte, bit| byte | 1 << bit);
    }
    // Cumulative flags, and rounding modes (Arm ARM C5.2.9, C5.2.10).
    to.status = [next(state) & 0x0800_009f, next(state) & 0x07c0_0000];
}

fn is_same(bytes: usize, was: &Registers, is: &Registers) -> bool {
    let (vectors, predicates) = (32 * bytes.max(16), 17 * bytes / 8);
    was.vectors[..vectors] == is.vectors[..vectors]
        && was.predicates[..predicates] == is.predicates[..predicates]
        && was.status == is.status
}

/// Fills, spins, takes: no system call from the first load to the last store.
fn round(bytes: usize, spins: u64, was: &Registers, is: &mut Registers) {
    let (vectors, predicates, status) = (was.vectors.as_ptr(), was.predicates.as_ptr(), was.status.as_ptr());
    let to = (is.vectors.as_mut_ptr(), is.predicates.as_mut_ptr(), is.status.as_mut_ptr());
    // SAFETY: the longest registers fit; this program, built without floating point, keeps nothing in them.
    unsafe { if bytes == 0 { put_fixed(vectors, predicates, status) } else { put_scalable(vectors, predicates, status) } };
    for _ in 0..spins {
        core::hint::spin_loop();
    }
    // SAFETY: as above.
    unsafe { if bytes == 0 { take_fixed(to.0, to.1, to.2) } else { take_scalable(to.0, to.1, to.2) } };
}

/// Does it; the program's status comes back.
pub fn run(start: Start) -> u64 {
    let (rounds, seed) = (start.number(1).unwrap_or(100), start.number(2).unwrap_or(1));
    let longest = if start.has_scalable() { set_length(256) as usize } else { 0 };
    say(format_args!("churn {seed}: vectors of {} bits", longest * 8));
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let (mut was, mut is) = (NONE, NONE);
    for number in 0..rounds {
        // Another length now and then, as far as there are others.
        let bytes = if longest == 0 { 0 } else { set_length(16 << (next(&mut state) % 5)).min(longest as u64) as usize };
        fill(bytes, &mut state, &mut was);
        let spins = next(&mut state) % 100_000;
        round(bytes, spins, &was, &mut is);
        if !is_same(bytes, &was, &is) {
            say(format_args!("churn {seed}: WRONG in round {number}, vectors of {} bits", bytes * 8));
            return 1;
        }
    }
    say(format_args!("churn {seed}: every register right"));
    0
}
