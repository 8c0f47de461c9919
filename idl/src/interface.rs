// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interfaces by number, version and schema hash: two programs that disagree learn it when they meet, not later.
//!
//! Whoever calls a portal for the first time asks with [`ATTACH`] in `m0`, number and version in `m1`, the hash in `m2`. The
//! answer is 0 where all three agree, else 1 + `Unsupported`, with what the server has in `m1` and `m2`. The hash is
//! `postcard-schema`'s: of the names, order and types of everything that crosses.

use crate::control::{Answer, Ask, FromHost, Head};
use crate::event::{EventKind, Injected};
use crate::kernel::WORDS;
use crate::wire::{AddedRule, IrqfwdOp, KnownRule, MonitorOp, MonitorState, Order, P2mOp, PageRanges, Report, SmmuOp, ToRoot, VcpuOp};
use postcard_schema::Schema;
use postcard_schema::key::Key;

/// The operation that every server has, in `m0`.
pub const ATTACH: u64 = 0;

/// An interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Which; never used again for another.
    pub number: u16,
    /// Counts changes of meaning that no schema shows.
    pub version: u16,
    /// Of the types that cross.
    pub schema: u64,
}

/// What a p2m server answers and reports.
pub const P2M: Interface = Interface::of::<(P2mOp, PageRanges, ToRoot)>(1, 1, "p2m");
/// What a vcpu server answers and reports.
pub const VCPU: Interface = Interface::of::<(VcpuOp, Order, EventKind, Injected, ToRoot)>(2, 1, "vcpu");
/// What irqfwd answers and reports.
pub const IRQFWD: Interface = Interface::of::<(IrqfwdOp, ToRoot)>(4, 1, "irqfwd");
/// What a monitor answers and reports.
pub const MONITOR: Interface = Interface::of::<(MonitorOp, MonitorState, AddedRule, KnownRule, ToRoot)>(5, 1, "monitor");
/// What smmu answers and reports.
pub const SMMU: Interface = Interface::of::<(SmmuOp, ToRoot)>(6, 1, "smmu");
/// What the host asks a running system, and what it answers; console hands questions to root.
pub const CONTROL: Interface = Interface::of::<(Head, Ask, Answer, FromHost)>(8, crate::control::VERSION, "control");
/// What root reports to the host.
pub const HOST: Interface = Interface::of::<Report>(3, 1, "host");

impl Interface {
    /// With the hash of these types.
    pub const fn of<T: Schema>(number: u16, version: u16, name: &str) -> Interface {
        Interface { number, version, schema: u64::from_le_bytes(Key::for_path::<T>(name).to_bytes()) }
    }

    /// Under a first word: the question, or the answer.
    pub const fn to_words(self, first: u64) -> [u64; WORDS] {
        let which = self.number as u64 | (self.version as u64) << 16;
        [first, which, self.schema, 0, 0, 0, 0, 0, 0, 0]
    }

    /// Whether these words, of a question or an answer, mean just this interface.
    pub const fn is_in(self, words: &[u64; WORDS]) -> bool {
        let own = self.to_words(0);
        words[1] == own[1] && words[2] == own[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_version_or_schema_is_another_interface() {
        assert!(P2M.is_in(&P2M.to_words(ATTACH)) && P2M.is_in(&P2M.to_words(17)));
        let others = [
            VCPU,
            Interface { number: 9, ..P2M },
            Interface { version: P2M.version + 1, ..P2M },
            Interface { schema: P2M.schema ^ 1 << 63, ..P2M },
        ];
        assert!(others.iter().all(|other| !P2M.is_in(&other.to_words(ATTACH))));
    }

    #[test]
    fn the_hash_follows_the_types() {
        #[derive(Schema)]
        #[allow(dead_code)]
        enum Two {
            Ready,
            Reset,
        }
        #[derive(Schema)]
        #[allow(dead_code)]
        enum Turned {
            Reset,
            Ready,
        }
        let hashes = [Interface::of::<Two>(1, 1, "x"), Interface::of::<Turned>(1, 1, "x"), Interface::of::<Two>(1, 1, "y")];
        assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2]);
    }
}
