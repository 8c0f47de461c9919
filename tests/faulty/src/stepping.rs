// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that step, for tests: p2m lets every access that a view forbids be done in view 0, one instruction each; the vcpu
//! server lets its guest ask for a step of its next instruction, and counts those that are over.

use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Traps, WORDS};
use trellis_idl::layout::slot;
use trellis_runtime::{Reply, Server, System, Vcpu};

/// Hypercall: the next instruction is executed in a step in view 0, of whose end the server is told.
pub const STEP_NEXT: u64 = 0xc600_57e9;
/// Hypercall: how many such steps are over.
pub const STEPS_OVER: u64 = 0xc600_57ea;

/// A server that steps.
#[derive(Debug)]
pub struct Stepping<S> {
    /// What it is besides.
    pub server: S,
    /// vCPUs of its guest, in which everything traps that can; none for a server that may not say so.
    vcpus: u8,
    over: AtomicU64,
    trapped: [AtomicU64; 2],
}

impl<S> Stepping<S> {
    /// Around this one.
    pub const fn new(server: S) -> Stepping<S> {
        Stepping { server, vcpus: 0, over: AtomicU64::new(0), trapped: [const { AtomicU64::new(0) }; 2] }
    }

    /// Around this one, a vcpu server with so many vCPUs, in which everything traps that can: it says so when it has seen one
    /// and when it has seen many.
    pub fn trapping(server: S, vcpus: u8) -> Stepping<S> {
        Stepping { vcpus, ..Stepping::new(server) }
    }

    /// Counts what traps because it was asked to, and nothing else would have stopped for.
    fn count(&self, exit: &Exit) {
        let what = match (exit.header.class(), exit.syndrome >> 26 & 0x3f) {
            // MSR of op0 3, op1 0, CRn 2: TTBR0_EL1, TTBR1_EL1, TCR_EL1.
            (Some(ExitClass::Register), 0x18) if exit.syndrome & 0x31_fc01 == 0x30_0800 => 0,
            (Some(ExitClass::Debug), 0x3c) => 1,
            _ => return,
        };
        let count = self.trapped[what].fetch_add(1, Ordering::Relaxed) + 1;
        if count == 1 || count == 100 {
            let name = ["writes of a table's address", "breakpoint instructions"][what];
            trellis_runtime::log!("{count} {name} trapped");
        }
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
        self.count(exit);
        match self.own(exit) {
            Some((answer, value)) => Reply::Exit(answer, [0, 0, 0, 0, 0, value, 0, 0, 0, 0]),
            None => self.server.exit(system, badge, exit),
        }
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        for index in 0..self.vcpus {
            // Before its guest starts they are stopped, afterwards it stays as it was said.
            let _ = Vcpu::at(slot::VCPU + u64::from(index)).set_traps(system, Traps::ALL);
        }
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
