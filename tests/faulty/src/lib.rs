// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers with a weakness, for tests only: irqfwd, smmu and a monitor die by themselves; a guest that knows the word makes the one of its own that it
//! asks crash, hang or end, in the middle of its exit. All else they do as the shipped ones, which they wrap; those do not know the word.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod stepping;
pub mod watching;

use trellis_idl::kernel::{Exit, ExitClass, Op, PAGE, WORDS};
use trellis_runtime::{Reply, Server, System};

/// Hypercall by which a guest spoils its vcpu server; x1 is the [`Way`].
pub const HYPERCALL: u64 = 0xc600_0bad;
/// The first of the pages, one for each [`Way`], that spoil the p2m server when they are touched: no memory, no device.
pub const FIRST_PAGE: u64 = 0x6660_0000 / PAGE;

/// What becomes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It uses a ring page that it does not have.
    Crash,
    /// It runs in a circle.
    Spin,
    /// It waits for what never comes.
    Sleep,
    /// The thread ends.
    End,
}

impl Way {
    const ALL: [Way; 4] = [Way::Crash, Way::Spin, Way::Sleep, Way::End];

    /// What an exit asks for, if it does.
    fn asked(exit: &Exit) -> Option<Way> {
        let number = match exit.header.class()? {
            ExitClass::Hypercall if exit.general[0] == HYPERCALL => exit.general[1],
            ExitClass::Memory => (exit.physical / PAGE).checked_sub(FIRST_PAGE)?,
            _ => return None,
        };
        Way::ALL.get(usize::try_from(number).ok()?).copied()
    }

    fn go(self, system: &impl System) -> ! {
        loop {
            match self {
                Way::Crash => crash(),
                Way::Spin => core::hint::spin_loop(),
                Way::Sleep => drop(system.wait(1 << 63, 0)),
                Way::End => drop(system.invoke(Op::Exit, [0; 6])),
            }
        }
    }
}

/// Root gives no server as many ring pages as there is room for.
pub fn crash() {
    #[cfg(target_os = "none")]
    trellis_runtime::Consumer::new(trellis_runtime::ring::page(trellis_idl::layout::MAX_RINGS - 1)).clear();
}

/// A server with the weakness.
#[derive(Debug)]
pub struct Faulty<S>(pub S);

impl<S: Server> Server for Faulty<S> {
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        match Way::asked(exit) {
            Some(way) => way.go(system),
            None => self.0.exit(system, badge, exit),
        }
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        self.0.call(system, badge, words)
    }

    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        self.0.letter(system, badge, words, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::kernel::ExitHeader;

    fn exit(class: ExitClass, general: [u64; 2], physical: u64) -> Exit {
        let general = [general[0], general[1], 0, 0];
        Exit { header: ExitHeader(class as u64), general, physical, ..Exit::default() }
    }

    #[test]
    fn only_the_word_spoils_a_server() {
        for (number, way) in (0..).zip(Way::ALL) {
            assert_eq!(Way::asked(&exit(ExitClass::Hypercall, [HYPERCALL, number], 0)), Some(way));
            let address = (FIRST_PAGE + number) * PAGE + 8;
            assert_eq!(Way::asked(&exit(ExitClass::Memory, [0; 2], address)), Some(way));
            assert_eq!(Way::asked(&exit(ExitClass::Device, [HYPERCALL, number], address)), None);
        }
        assert_eq!(Way::asked(&exit(ExitClass::Hypercall, [HYPERCALL, 4], 0)), None);
        assert_eq!(Way::asked(&exit(ExitClass::Hypercall, [HYPERCALL - 1, 0], 0)), None);
        assert_eq!(Way::asked(&exit(ExitClass::Memory, [0; 2], 0x4000_0000)), None);
        assert_eq!(Way::asked(&exit(ExitClass::Memory, [0; 2], (FIRST_PAGE + 4) * PAGE)), None);
    }
}
