// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two sides of a server: what it may ask ([`System`]) and what it is asked ([`Server`]).

use trellis_idl::kernel::{Answer, Exit, Op, Refusal, WORDS};

/// What a server can ask of the kernel. On the board this is `svc`; in host tests, the core on the hosted machine or
/// a record of what was asked.
pub trait System {
    /// Any operation but the ones that wait, carry message words or fill the caller's memory. Back: `x0`, `x1`, `x2`.
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal>;

    /// Calls a portal and waits for the answer: words there, words back.
    fn call(&self, portal: u64, words: [u64; WORDS]) -> Result<[u64; WORDS], Refusal>;

    /// Calls a portal with the first `bytes` of this thread's message buffer. Back: the words, and how much of the buffer
    /// came with the answer. A system whose server sends nothing longer than ten words need not have this.
    fn call_with_buffer(
        &self, portal: u64, words: [u64; WORDS], bytes: usize,
    ) -> Result<([u64; WORDS], usize), Refusal> {
        if bytes == 0 { self.call(portal, words).map(|words| (words, 0)) } else { Err(Refusal::Unsupported) }
    }

    /// Waits for bits of this thread's signal word (deadline in ticks, 0 = for ever). 0 = the deadline passed.
    fn wait(&self, mask: u64, deadline: u64) -> u64;

    /// [`Op::QueueNext`], which waits as well. A system whose server forwards no interrupts need not have this.
    fn queue_next(&self, _arguments: [u64; 4]) -> Result<[u64; 3], Refusal> {
        Err(Refusal::Unsupported)
    }

    /// Copies guest memory to `bytes` (at most 64 KiB): [`Op::GuestRead`]. Back: bytes copied. A system whose server
    /// has no guest need not have this.
    fn read_guest(&self, _guest: u64, _address: u64, _bytes: &mut [u8]) -> Result<u64, Refusal> {
        Err(Refusal::Unsupported)
    }

    /// Copies `bytes` (at most 64 KiB) to guest memory: [`Op::GuestWrite`]. Back: bytes copied.
    fn write_guest(&self, _guest: u64, _address: u64, _bytes: &[u8]) -> Result<u64, Refusal> {
        Err(Refusal::Unsupported)
    }

    /// This thread's message buffer.
    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R;
}

/// What a server says to the one it serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// To a vCPU: what changes, and the value of the one register that does; an answer that names nothing longer.
    Value(Answer, u64),
    /// To a vCPU: what changes, and the words it changes to.
    Exit(Answer, [u64; WORDS]),
    /// To a caller.
    Call([u64; WORDS]),
    /// To a caller, with so many bytes of this thread's message buffer.
    Letter([u64; WORDS], usize),
    /// Somebody of a higher rank shall answer: the portal's slot, and the words it gets.
    Forward(u64, [u64; WORDS]),
    /// Whoever watches the guest shall answer: the session's slot, and the words it gets. Where nobody need be asked,
    /// [`Server::unwatched`] answers.
    Watched(u64, [u64; WORDS]),
}

/// A server with a thread of its own behind those that serve.
pub trait Attends: Server {
    /// Index of the last thread that serves.
    fn control_thread(&self) -> usize;

    /// Does what there is to do. Back: signals that wake it, and when it goes on though none comes (0 = never).
    fn attend(&self, system: &impl System) -> (u64, u64);
}

/// A server: a value that is asked. Threads of one server share it, so it locks inside where it must.
pub trait Server: Sync {
    /// A vCPU stopped; the badge is the route's.
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply;

    /// Nobody need be asked about an exit that [`Reply::Watched`] was said to: how this server decides it.
    fn unwatched(&self, _system: &impl System, _badge: u64, _exit: &Exit) -> Reply {
        Reply::Exit(Answer::STOP, [0; WORDS])
    }

    /// Somebody called; the badge is the portal's.
    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply;

    /// The same with so many bytes in this thread's message buffer ([`crate::message`]). A server that expects nothing
    /// longer than ten words never looks there.
    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], _bytes: usize) -> Reply {
        self.call(system, badge, words)
    }
}
