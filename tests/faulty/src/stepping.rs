// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that step, for tests: they let every access that a view forbids happen, as a monitor would that allows all; the vcpu
//! server lets its guest ask for a step of its next instruction, and counts those that are over.

use core::sync::atomic::{AtomicU64, Ordering};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Traps, WORDS};
use trellis_idl::layout::{badge, slot};
use trellis_idl::wire::Order;
use trellis_p2m::P2m;
use trellis_runtime::{Reply, Server, System, Vcpu};
use trellis_vcpu::{Outside, VcpuServer};

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
    /// vCPUs that asked for a step, one bit each.
    asked: AtomicU64,
    over: AtomicU64,
    allowed: AtomicU64,
    trapped: [AtomicU64; 2],
}

impl<S> Stepping<S> {
    /// Around this one.
    pub const fn new(server: S) -> Stepping<S> {
        let [asked, over, allowed] = [const { AtomicU64::new(0) }; 3];
        Stepping { server, vcpus: 0, asked, over, allowed, trapped: [const { AtomicU64::new(0) }; 2] }
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
    fn own(&self, vcpu: u8, exit: &Exit) -> Option<(Answer, u64)> {
        let header = exit.header;
        let own = 1 << (vcpu & 63);
        match header.class()? {
            ExitClass::Hypercall if exit.general[0] == STEP_NEXT => {
                self.asked.fetch_or(own, Ordering::Relaxed);
                Some((Answer::REPORT.step(0), 0))
            }
            ExitClass::Hypercall if exit.general[0] == STEPS_OVER => {
                Some((Answer::RETRY.register(0), self.over.load(Ordering::Relaxed)))
            }
            ExitClass::Debug if header.has(ExitHeader::STEPPED) && self.asked.fetch_and(!own, Ordering::Relaxed) & own != 0 => {
                self.over.fetch_add(1, Ordering::Relaxed);
                Some((Answer::RETRY, 0))
            }
            _ => None,
        }
    }
}

/// Whether a view forbids it.
const fn is_watched(exit: &Exit) -> bool {
    exit.header.0 as u8 == ExitClass::Memory as u8 && exit.header.has(ExitHeader::PERMISSION) && exit.header.view() != 0
}

/// Who lets watched accesses happen, as who decides that would.
pub trait Allow {
    /// The answer to one, which is the `number`th.
    fn allow(&self, system: &impl System, vcpu: u8, exit: &Exit, number: u64) -> Reply;
}

impl Allow for P2m {
    /// What says by itself what it moves is stepped over at once; what may be an exclusive access is the vcpu server's.
    fn allow(&self, _: &impl System, vcpu: u8, exit: &Exit, number: u64) -> Reply {
        if number.is_multiple_of(1000) {
            trellis_runtime::log!("{number} accesses allowed");
        }
        match exit.header.width() {
            Some(_) => Reply::Value(Answer::RETRY.step(0), 0),
            None => Reply::Forward(slot::VCPU_SERVER + u64::from(vcpu), exit.to_words()),
        }
    }
}

impl<O: Outside> Allow for VcpuServer<'_, O> {
    fn allow(&self, system: &impl System, vcpu: u8, exit: &Exit, number: u64) -> Reply {
        match self.complete(system, vcpu, exit, Order::Do, 0, number) {
            Ok((answer, value)) => Reply::Value(answer, value),
            Err(refusal) => {
                trellis_runtime::log!("an access at {:#x} is not completed: {refusal:?}", exit.physical);
                Reply::Value(Answer::STOP, 0)
            }
        }
    }
}

impl<S: Server + Allow> Server for Stepping<S> {
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        self.count(exit);
        if is_watched(exit) {
            let number = self.allowed.fetch_add(1, Ordering::Relaxed) + 1;
            return self.server.allow(system, badge::index(badge), exit, number);
        }
        match self.own(badge::index(badge), exit) {
            Some((answer, value)) => Reply::Value(answer, value),
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
    fn only_what_a_view_forbids_is_allowed_here() {
        let memory = |flags| Exit { header: ExitHeader(flags), ..Exit::default() };
        assert!(is_watched(&memory(ExitHeader::PERMISSION | 1 << 32)));
        assert!(!is_watched(&memory(ExitHeader::PERMISSION)) && !is_watched(&memory(1 << 32)));
        assert!(!is_watched(&memory(ExitHeader::PERMISSION | 1 << 32 | 1)), "a device");
    }

    #[test]
    fn only_who_asked_hears_of_the_end_of_a_step() {
        let stepping = Stepping::new(());
        let over = Exit { header: ExitHeader(ExitHeader::STEPPED | ExitClass::Debug as u64), ..Exit::default() };
        assert_eq!(stepping.own(1, &over), None);
        let ask = Exit { header: ExitHeader(ExitClass::Hypercall as u64), general: [STEP_NEXT, 0, 0, 0], ..Exit::default() };
        assert_eq!(stepping.own(1, &ask), Some((Answer::REPORT.step(0), 0)));
        assert_eq!((stepping.own(0, &over), stepping.own(1, &over), stepping.own(1, &over)), (None, Some((Answer::RETRY, 0)), None));
    }
}
