// SPDX-License-Identifier: MIT OR Apache-2.0
//! What root sees of the machine besides the kernel: the payload, the window it fills frames through, its rings.

use crate::events::Events;
use crate::rules::Kepts;
use trellis_idl::plan::Part;
use trellis_runtime::{RingPage, Shared};

/// The machine's memory as far as root may see it.
pub trait Board {
    /// Bytes of a part of the payload.
    fn payload(&self, part: Part) -> Option<&'static [u8]>;
    /// Writes into the scratch window ([`trellis_idl::layout::SCRATCH`]), where root has just mapped frames.
    fn scratch(&self, offset: u64, bytes: &[u8]) -> bool;
    /// Reads from there. False: outside of it.
    fn scratch_read(&self, offset: u64, bytes: &mut [u8]) -> bool;
    /// Where what monitors were told of is remembered: too much for a stack.
    fn events(&self) -> &'static Shared<Events>;
    /// Where rules are remembered that the host has added to monitors.
    fn rules(&self) -> &'static Shared<Kepts>;
    /// Ring page `index` of root's own.
    fn ring(&self, index: usize) -> &'static RingPage;
}
