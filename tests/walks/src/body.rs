// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel, as a thread of the whole system sees it, on whichever CPU: what `runtime::Svc` is on a board.

use crate::whole::Whole;
use trellis_idl::kernel::{Op, PAGE, Refusal, WORDS};
use trellis_idl::layout::{BUFFERS, slot};
use trellis_runtime::System;

/// One thread's way into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Where it lives.
    pub whole: &'static Whole,
    /// Its CPU.
    pub cpu: u16,
    /// Its index there.
    pub thread: u16,
}

/// Where a thread crashed that was to: nothing of its program is executed any more.
pub(crate) struct Dead;

impl Body {
    fn syscall(&self, op: Op, a: [u64; 6], words: [u64; WORDS]) -> Result<[u64; 3], Refusal> {
        if self.whole.is_dead(self.cpu, self.thread) {
            if !std::thread::panicking() {
                std::panic::resume_unwind(Box::new(Dead));
            }
            return Err(Refusal::Gone);
        }
        self.whole.hosted.borrow_mut().syscall(self.cpu, op as u16, a, words);
        if !self.whole.run_until(self.cpu, self.thread) {
            return Err(Refusal::Gone);
        }
        let [x0, x1, x2] = self.whole.hosted.borrow().registers(self.cpu).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    /// Where this thread's message buffer is mapped, and its machine address.
    fn buffer(&self) -> (u64, u64) {
        let hosted = self.whole.hosted.borrow();
        let thread = hosted.cpus[self.cpu as usize].local.threads.at(self.thread);
        assert_ne!(thread.buffer, 0, "thread {} of CPU {} has no message buffer", self.thread, self.cpu);
        let root = hosted.shared.domains[thread.domain as usize].lock().space.root;
        let shows = |page: &u64| {
            let leaf = hosted.board.borrow().walk(root, BUFFERS / PAGE + page);
            leaf.is_some_and(|leaf| leaf.page == thread.buffer)
        };
        let page = (0..16).find(shows).expect("a buffer among the domain's buffers");
        (BUFFERS + page * PAGE, thread.buffer * PAGE)
    }

    /// Copies between guest and caller by way of the message buffer, a page at a time.
    fn copy(&self, op: Op, guest: u64, address: u64, bytes: u64, mut piece: impl FnMut(u64, u64)) -> Result<u64, Refusal> {
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(PAGE);
            if op == Op::GuestWrite {
                piece(done, count);
            }
            let [copied, ..] = self.syscall(op, [guest, address + done, self.buffer().0, count, 0, 0], [0; WORDS])?;
            if op == Op::GuestRead {
                piece(done, copied);
            }
            done += copied;
            if copied < count {
                break;
            }
        }
        Ok(done)
    }
}

impl System for Body {
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Signal && arguments[0] == slot::ROOT && self.whole.puts_off(self.cpu, self.thread) {
            return Ok([0; 3]);
        }
        self.syscall(op, arguments, [0; WORDS])
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        self.syscall(Op::Call, [portal, 0, 0, 0, 0, 0], words)?;
        Ok(self.whole.hosted.borrow().registers(self.cpu).words)
    }

    fn call_with_buffer(
        &self, portal: u64, words: [u64; WORDS], bytes: usize,
    ) -> Result<([u64; WORDS], usize), Refusal> {
        let [bytes, ..] = self.syscall(Op::Call, [portal, bytes as u64, 0, 0, 0, 0], words)?;
        Ok((self.whole.hosted.borrow().registers(self.cpu).words, bytes as usize))
    }

    fn wait(&self, mask: u64, deadline: u64) -> u64 {
        self.syscall(Op::Wait, [mask, deadline, 0, 0, 0, 0], [0; WORDS]).map_or(0, |[bits, ..]| bits)
    }

    fn read_guest(&self, guest: u64, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        self.copy(Op::GuestRead, guest, address, bytes.len() as u64, |from, count| {
            let range = from as usize..(from + count) as usize;
            self.with_buffer(|buffer| bytes[range].copy_from_slice(&buffer[..count as usize]));
        })
    }

    fn write_guest(&self, guest: u64, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        self.copy(Op::GuestWrite, guest, address, bytes.len() as u64, |from, count| {
            let range = from as usize..(from + count) as usize;
            self.with_buffer(|buffer| buffer[..count as usize].copy_from_slice(&bytes[range]));
        })
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        let (_, address) = self.buffer();
        let board = self.whole.hosted.borrow().board.clone();
        let mut bytes = [0; 4096];
        for (at, word) in (address..).step_by(8).zip(bytes.as_chunks_mut::<8>().0) {
            *word = board.borrow().word(at).to_le_bytes();
        }
        let before = bytes;
        let result = f(&mut bytes);
        let words = bytes.as_chunks::<8>().0.iter().zip(before.as_chunks::<8>().0);
        for (at, (word, before)) in (address..).step_by(8).zip(words) {
            if word != before {
                board.borrow_mut().set_word(at, u64::from_le_bytes(*word));
            }
        }
        result
    }
}
