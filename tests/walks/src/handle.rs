// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel, as a thread of a real server sees it: what `runtime::Svc` is on a board.

use crate::world::World;
use trellis_hosted::small;
use trellis_idl::kernel::{Op, PAGE, Refusal, WORDS};
use trellis_runtime::System;

/// One thread's way into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Handle<'a> {
    /// Where it lives.
    pub world: &'a World,
    /// Its index.
    pub thread: u16,
}

impl Handle<'_> {
    fn syscall(&self, op: Op, a: [u64; 6], words: [u64; WORDS]) -> Result<[u64; 3], Refusal> {
        self.world.hosted.borrow_mut().syscall(0, op as u16, a, words);
        self.world.run_until(self.thread);
        let [x0, x1, x2] = self.world.hosted.borrow().registers(0).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    /// Machine address of this thread's message buffer.
    fn buffer(&self) -> u64 {
        let hosted = self.world.hosted.borrow();
        let page = hosted.cpus[0].local.threads.at(self.thread).buffer;
        assert_ne!(page, 0, "thread {} has no message buffer", self.thread);
        page * PAGE
    }
}

impl System for Handle<'_> {
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        self.syscall(op, arguments, [0; WORDS])
    }

    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        self.syscall(Op::Call, [portal, 0, 0, 0, 0, 0], words)?;
        Ok(self.world.hosted.borrow().registers(0).words)
    }

    fn call_with_buffer(
        &self, portal: u64, words: [u64; WORDS], bytes: usize,
    ) -> Result<([u64; WORDS], usize), Refusal> {
        let [bytes, ..] = self.syscall(Op::Call, [portal, bytes as u64, 0, 0, 0, 0], words)?;
        Ok((self.world.hosted.borrow().registers(0).words, bytes as usize))
    }

    fn wait(&self, mask: u64, deadline: u64) -> u64 {
        self.syscall(Op::Wait, [mask, deadline, 0, 0, 0, 0], [0; WORDS]).map_or(0, |[bits, ..]| bits)
    }

    fn read_guest(&self, guest: u64, address: u64, bytes: &mut [u8]) -> Result<u64, Refusal> {
        let mut done = 0;
        for piece in bytes.chunks_mut(PAGE as usize) {
            let a = [guest, address + done, small::BUFFER, piece.len() as u64, 0, 0];
            let [count, ..] = self.syscall(Op::GuestRead, a, [0; WORDS])?;
            self.with_buffer(|buffer| piece[..count as usize].copy_from_slice(&buffer[..count as usize]));
            done += count;
            if count < piece.len() as u64 {
                break;
            }
        }
        Ok(done)
    }

    fn write_guest(&self, guest: u64, address: u64, bytes: &[u8]) -> Result<u64, Refusal> {
        let mut done = 0;
        for piece in bytes.chunks(PAGE as usize) {
            self.with_buffer(|buffer| buffer[..piece.len()].copy_from_slice(piece));
            let a = [guest, address + done, small::BUFFER, piece.len() as u64, 0, 0];
            let [count, ..] = self.syscall(Op::GuestWrite, a, [0; WORDS])?;
            done += count;
            if count < piece.len() as u64 {
                break;
            }
        }
        Ok(done)
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        let address = self.buffer();
        let board = self.world.hosted.borrow().board.clone();
        let mut bytes = std::array::from_fn(|i| board.borrow().byte(address + i as u64));
        let result = f(&mut bytes);
        for (at, byte) in (address..).zip(bytes) {
            board.borrow_mut().set_byte(at, byte);
        }
        result
    }
}
