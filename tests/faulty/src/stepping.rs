// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that step, for tests: p2m lets every access that a view forbids be done in view 0, one instruction each; the vcpu
//! server lets its guest ask for a step of its next instruction, and counts those that are over.

use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, WORDS};
use trellis_runtime::{Reply, Server, System};

/// Hypercall: the next instruction is executed in a step in view 0, of whose end the server is told.
pub const STEP_NEXT: u64 = 0xc600_57e9;
/// Hypercall: how many such steps are over.
pub const STEPS_OVER: u64 = 0xc600_57ea;

/// A server that steps.
#[derive(Debug)]
pub struct Stepping<S> {
    /// What it is besides.
    pub server: S,
    over: AtomicU64,
}

impl<S> Stepping<S> {
    /// Around this one.
    pub const fn new(server: S) -> Stepping<S> {
        Stepping { server, over: AtomicU64::new(0) }
    }

    /// What it does itself.
    fn own(&self, exit: &Exit) -> Option<(Answer, u64)> {
        let header = exit.header;
        match header.class()? {
            ExitClass::Memory if header.has(ExitHeader::PERMISSION) && header.view() != 0 => {
                let count = self.over.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_multiple_of(1000) {
                    trellis_runtime::log!("{count} accesses stepped over");
                }
                Some((Answer::RETRY.step(0), 0))
            }
            ExitClass::Hypercall if exit.general[0] == STEP_NEXT => Some((Answer::REPORT.step(0), 0)),
            ExitClass::Hypercall if exit.general[0] == STEPS_OVER => {
                Some((Answer::RETRY.register(0), self.over.load(Ordering::Relaxed)))
            }
            ExitClass::Debug if header.has(ExitHeader::STEPPED) => {
                self.over.fetch_add(1, Ordering::Relaxed);
                Some((Answer::RETRY, 0))
            }
            _ => None,
        }
    }
}

impl<S: Server> Server for Stepping<S> {
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        match self.own(exit) {
            Some((answer, value)) => Reply::Exit(answer, [0, 0, 0, 0, 0, value, 0, 0, 0, 0]),
            None => self.server.exit(system, badge, exit),
        }
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        self.server.call(system, badge, words)
    }

    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        self.server.letter(system, badge, words, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_view_forbids_is_stepped_over() {
        let stepping = Stepping::new(());
        let memory = |flags| Exit { header: ExitHeader(flags), ..Exit::default() };
        assert_eq!(stepping.own(&memory(ExitHeader::PERMISSION | 1 << 32)), Some((Answer::STEP, 0)));
        assert_eq!(stepping.own(&memory(ExitHeader::PERMISSION)), None);
        assert_eq!(stepping.own(&memory(1 << 32)), None);
    }
}
