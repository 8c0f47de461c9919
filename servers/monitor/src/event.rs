// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor is told: an access of a vCPU that it asked to be told of.
//!
//! The vCPU waits until the event is answered. Its words are the kernel's own, p2m adds nothing to them.

use trellis_idl::kernel::{Access, Exit, ExitHeader, PAGE};
use trellis_idl::layout::badge;

/// An access that is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The guest, by its place among those that this monitor watches.
    pub guest: usize,
    /// Which of its vCPUs.
    pub vcpu: usize,
    /// The exit itself.
    pub exit: Exit,
}

impl Event {
    /// What a portal's badge and the exit's words say.
    #[inline(always)]
    pub fn of(badge: u64, exit: &Exit) -> Event {
        let (guest, vcpu) = badge::of_event(badge);
        Event { guest, vcpu, exit: *exit }
    }

    /// What was tried: one of read, write and execute. An access of the guest's own table walk is a read or a write.
    #[inline(always)]
    pub const fn access(&self) -> Access {
        let header = self.exit.header;
        if header.has(ExitHeader::FETCH) && !header.has(ExitHeader::WALK) {
            Access::EXECUTE
        } else if header.has(ExitHeader::WRITE) {
            Access::WRITE
        } else {
            Access::READ
        }
    }

    /// The guest-physical address.
    pub const fn physical(&self) -> u64 {
        self.exit.physical
    }

    /// The guest page.
    #[inline(always)]
    pub const fn page(&self) -> u64 {
        self.exit.physical / PAGE
    }

    /// The guest virtual address, where it is known.
    pub const fn virtual_address(&self) -> Option<u64> {
        if self.exit.header.has(ExitHeader::VIRTUAL_VALID) { Some(self.exit.virtual_address) } else { None }
    }

    /// Where the vCPU stands: the instruction has not been executed.
    pub const fn pc(&self) -> u64 {
        self.exit.pc
    }

    /// Bytes that the access moves, where the machine says so: it does for loads and stores of one general register.
    #[inline(always)]
    pub fn width(&self) -> Option<u8> {
        self.exit.header.width()
    }

    /// Which event of this vCPU it is, as p2m counts; the same when it is told again.
    pub const fn number(&self) -> u64 {
        self.exit.general[3]
    }

    /// Whether the guest's own table walk is what accessed it, for whatever the instruction does.
    pub const fn is_walk(&self) -> bool {
        self.exit.header.has(ExitHeader::WALK)
    }

    /// Whether the instruction is the guest's user level's.
    pub const fn is_user(&self) -> bool {
        self.exit.header.has(ExitHeader::USER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(flags: u64) -> Event {
        let exit = Exit { header: ExitHeader(flags), physical: 0x4020_0010, virtual_address: 7, ..Exit::default() };
        Event::of(badge::event(3, 2), &exit)
    }

    #[test]
    fn an_event_says_who_did_what_where() {
        let plain = event(8 << 8 | ExitHeader::WRITE);
        assert_eq!((plain.guest, plain.vcpu, plain.page(), plain.width()), (3, 2, 0x4_0200, Some(8)));
        assert_eq!((plain.virtual_address(), event(ExitHeader::VIRTUAL_VALID).virtual_address()), (None, Some(7)));
    }

    #[test]
    fn what_was_tried_is_one_thing() {
        use ExitHeader as H;
        assert_eq!(event(0).access(), Access::READ);
        assert_eq!(event(H::WRITE).access(), Access::WRITE);
        assert_eq!(event(H::FETCH).access(), Access::EXECUTE);
        assert_eq!(event(H::FETCH | H::WALK).access(), Access::READ, "the walk for a fetch");
        assert_eq!(event(H::WRITE | H::WALK).access(), Access::WRITE);
    }
}
