// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a denied access changes although it does not happen: registers that it loads, the base it moves, the status of an
//! exclusive store. Pure: reads the vCPU's registers through a closure, says what to write.

use crate::instruction::{Offset, WriteBack, extend};
use crate::kind::Kind;
use heapless::Vec;

/// A register that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// x0–x30.
    General(u8),
    /// The stack pointer that the vCPU uses.
    Stack,
    /// A whole vector register: this word below, zeroes above.
    Vector(u8),
}

/// Most registers that one instruction changes: four vectors and a base.
const MOST: usize = 5;

/// Registers and their new values.
pub type Changes = Vec<(Register, u64), MOST>;

/// A general register as an operand (31 = zero) or as a base (31 = stack pointer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// An operand.
    General(u8),
    /// A base.
    Base(u8),
}

/// What changes when an access is denied and a read gives `value`. None: what it changes cannot be said so (one lane of a
/// vector register).
pub fn denied<E>(kind: &Kind, value: u64, read: impl Fn(Operand) -> Result<u64, E>) -> Result<Option<Changes>, E> {
    let mut changes = Changes::new();
    match *kind {
        Kind::Plain(transfer) => {
            if transfer.is_load {
                let value = transfer.extend(value);
                load(&mut changes, transfer.first, value);
                transfer.second.into_iter().for_each(|second| load(&mut changes, second, value));
            }
            move_base(&mut changes, transfer.base, transfer.offset, transfer.write_back, read)?;
        }
        Kind::Exclusive(exclusive) if exclusive.is_load => {
            let value = extend(value, exclusive.bytes, false, false);
            load(&mut changes, exclusive.first, value);
            exclusive.second.into_iter().for_each(|second| load(&mut changes, second, value));
        }
        Kind::Exclusive(exclusive) => load(&mut changes, exclusive.status, 0),
        Kind::Atomic { old, bytes, is_pair } => {
            let value = extend(value, bytes, false, false);
            load(&mut changes, old, value);
            if is_pair {
                load(&mut changes, old | 1, value);
            }
        }
        Kind::Vectors(vectors) => {
            if vectors.is_load && vectors.is_partial {
                return Ok(None);
            }
            if vectors.is_load {
                let value = extend(value, vectors.bytes, false, false);
                for n in 0..vectors.count {
                    let register = if n == 1 { vectors.second.unwrap_or(vectors.first + 1) } else { vectors.first + n };
                    set(&mut changes, Register::Vector(register & 31), value);
                }
            }
            move_base(&mut changes, vectors.base, vectors.offset, vectors.write_back, read)?;
        }
        Kind::ZeroBlock => {}
    }
    Ok(Some(changes))
}

/// A base that is loaded as well keeps what the base becomes: the architecture leaves it open, and this is as good.
fn set(changes: &mut Changes, register: Register, value: u64) {
    // One instruction changes no more than there is room for.
    let _ = changes.push((register, value));
}

fn load(changes: &mut Changes, number: u8, value: u64) {
    if number != 31 {
        set(changes, Register::General(number), value);
    }
}

fn move_base<E>(
    changes: &mut Changes, base: u8, offset: Offset, write_back: WriteBack, read: impl Fn(Operand) -> Result<u64, E>,
) -> Result<(), E> {
    if write_back == WriteBack::None {
        return Ok(());
    }
    let offset = match offset {
        Offset::Constant(constant) => constant as u64,
        // With write-back it is never extended.
        Offset::Register { number, .. } => read(Operand::General(number))?,
    };
    let moved = read(Operand::Base(base))?.wrapping_add(offset);
    set(changes, if base == 31 { Register::Stack } else { Register::General(base) }, moved);
    Ok(())
}
