// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a program gets from Linux: its arguments, the machine's capabilities, and a few system calls.

use core::arch::{asm, global_asm};
use core::fmt;

global_asm!(".globl _start", "_start:", "mov x0, sp", "bl begin", "brk #0");

const WRITE: u64 = 64;
const EXIT_GROUP: u64 = 94;
const PRCTL: u64 = 167;
const SVE_SET_LENGTH: u64 = 50;
const HWCAP: u64 = 16;
const HWCAP_SVE: u64 = 1 << 22;

/// What lies on the stack at the start: count, arguments, 0, environment, 0, pairs of capabilities, 0.
#[derive(Clone, Copy)]
pub struct Start(*const u64);

impl Start {
    fn word(self, index: usize) -> u64 {
        // SAFETY: Linux puts these words there; nobody reads past the zero that ends them.
        unsafe { self.0.add(index).read() }
    }

    /// An argument as a decimal number.
    pub fn number(self, index: usize) -> Option<u64> {
        if index as u64 >= self.word(0) {
            return None;
        }
        let (mut at, mut number) = (self.word(1 + index) as *const u8, 0u64);
        loop {
            // SAFETY: an argument ends with a zero byte, which ends this loop.
            let byte = unsafe { at.read() };
            match byte {
                0 => return Some(number),
                b'0'..=b'9' => number = number.wrapping_mul(10) + u64::from(byte - b'0'),
                _ => return None,
            }
            at = at.wrapping_add(1);
        }
    }

    /// Whether Linux says that there are scalable vectors.
    pub fn has_scalable(self) -> bool {
        let mut index = 1 + self.word(0) as usize + 1;
        while self.word(index) != 0 {
            index += 1;
        }
        index += 1;
        while self.word(index) != 0 {
            if self.word(index) == HWCAP {
                return self.word(index + 1) & HWCAP_SVE != 0;
            }
            index += 2;
        }
        false
    }
}

fn call(number: u64, a: u64, b: u64, c: u64) -> i64 {
    let result;
    // SAFETY: these calls read memory that the caller owns and change none.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") 0, in("x4") 0,
            options(nostack))
    };
    result
}

/// Asks for vectors of so many bytes; the next shorter length that there is comes back.
pub fn set_length(bytes: u64) -> u64 {
    call(PRCTL, SVE_SET_LENGTH, bytes, 0) as u64 & 0xffff
}

/// Ends the program.
pub fn exit(status: u64) -> ! {
    call(EXIT_GROUP, status, 0, 0);
    loop {
        core::hint::spin_loop();
    }
}

/// Says a line to the standard output, in one piece: others write there too.
pub fn say(line: fmt::Arguments<'_>) {
    let mut whole = Line { bytes: [0; 128], used: 0 };
    // What does not fit is left out.
    let _ = fmt::write(&mut whole, format_args!("{line}\n"));
    call(WRITE, 1, whole.bytes.as_ptr() as u64, whole.used as u64);
}

struct Line {
    bytes: [u8; 128],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..self.used + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}

/// Where Rust begins.
#[unsafe(no_mangle)]
extern "C" fn begin(stack: *const u64) -> ! {
    exit(crate::churn::run(Start(stack)))
}

#[panic_handler]
fn panicked(what: &core::panic::PanicInfo<'_>) -> ! {
    say(format_args!("churn: WRONG: {what}"));
    exit(2)
}
