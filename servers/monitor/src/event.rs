// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor is told: an access of a vCPU, or something else that it does, of which it asked to be told.
//!
//! The vCPU waits until the event is answered. Its words are the kernel's own; p2m, or the vcpu server, adds which it is.

use trellis_idl::event::EventKind;
use trellis_idl::kernel::{Access, Exit, ExitClass, ExitHeader, PAGE};
use trellis_idl::layout::badge;

/// What a vCPU tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// One of read, write and execute, of a page that is watched.
    Access(Access),
    /// Something else that is heard.
    Heard(EventKind),
}

/// What is watched or heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The guest, by its place among those that this monitor watches.
    pub guest: usize,
    /// Which of its vCPUs.
    pub vcpu: usize,
    /// The exit itself.
    pub exit: Exit,
    /// It was decided before, here or by the monitor before this one, and is told again: it is counted already.
    pub again: bool,
}

impl Event {
    /// What a portal's badge and the exit's words say.
    #[inline(always)]
    pub fn of(badge: u64, exit: &Exit) -> Event {
        let (guest, vcpu) = badge::of_event(badge);
        Event { guest, vcpu, exit: *exit, again: false }
    }

    /// What was tried. None: nothing that anybody is told of.
    #[inline(always)]
    pub fn what(&self) -> Option<What> {
        if self.exit.header.0 & 0xff == ExitClass::Memory as u64 {
            Some(What::Access(self.access()))
        } else {
            EventKind::of_note(self.exit.physical).map(What::Heard)
        }
    }

    /// Of an access to memory, what was tried: one of read, write and execute. An access of the guest's own table walk is a read or a write.
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

    /// Which event of this vCPU it is, as whoever told it counts; the same when it is told again.
    pub const fn number(&self) -> u64 {
        if self.exit.header.0 & 0xff == ExitClass::Memory as u64 { self.exit.general[3] } else { self.exit.physical }
    }

    /// Of a register's write: what it held, and what it is to hold.
    pub const fn change(&self) -> (u64, u64) {
        (self.exit.virtual_address, self.exit.value)
    }

    /// Of a call: what the guest has in `x0`–`x3`.
    pub const fn arguments(&self) -> [u64; 4] {
        self.exit.general
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
    fn what_is_heard_says_its_kind_and_its_number() {
        let note = EventKind::Tables0.note(77);
        let exit = Exit { header: ExitHeader(ExitClass::Register as u64), physical: note, virtual_address: 1, value: 2, ..Exit::default() };
        let written = Event::of(badge::event(0, 0), &exit);
        assert_eq!((written.what(), written.number(), written.change()), (Some(What::Heard(EventKind::Tables0)), note, (1, 2)));
        assert_eq!(event(ExitHeader::WRITE).what(), Some(What::Access(Access::WRITE)));
        let forged = Event::of(0, &Exit { physical: 0x4020_0000, ..exit });
        assert_eq!(forged.what(), None);
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
