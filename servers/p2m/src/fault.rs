// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decides what a guest's access is that its maps do not allow: memory not given yet, or nothing of p2m's.

use crate::P2m;
use crate::map::GUEST;
use crate::patch::Watcher;
use crate::view::Found;
use crate::watch;
use core::sync::atomic::Ordering;
use trellis_idl::kernel::{Access, Answer, Exit, ExitClass, ExitHeader, PAGE, Refusal};
use trellis_idl::layout::{badge as badges, slot};
use trellis_runtime::{Reply, System, log};

/// Refused accesses that are each logged; after these, only powers of two.
const LOGGED: u32 = 4;

/// An event says which of its vCPU it is, where a word of the exit is unused.
#[inline(always)]
fn numbered(exit: &Exit, number: u64) -> Exit {
    let [a, b, c, _] = exit.general;
    Exit { general: [a, b, c, number], ..*exit }
}

impl P2m {
    /// A page of memory that is absent gets its frame; everything else is the vcpu server's to answer.
    #[inline(always)]
    pub(crate) fn fault(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        let page = exit.physical / PAGE;
        // Class, view and whether a leaf is there, in one comparison: the host map's absent page.
        let absent = exit.header.0 & (0xffff << 32 | 0xff | ExitHeader::PERMISSION) == ExitClass::Memory as u64;
        if absent && self.map.has(page) && !self.special.load(Ordering::Acquire) {
            if self.map.touch(system, page).is_ok() {
                return Reply::Value(Answer::RETRY, 0);
            }
        } else if exit.header.class() == Some(ExitClass::Memory) {
            let found = if exit.header.has(ExitHeader::PERMISSION) {
                let recent = if self.map.has(page) { self.recent.find(badge, exit.header, page) } else { None };
                recent.map_or_else(|| self.forbidden(system, badge, exit, page), |watcher| Ok(Some(watcher)))
            } else {
                self.absent(system, exit, page).map(|()| None)
            };
            match found {
                Ok(Some(watcher)) if watcher.has_wishes() && watcher.ignores_walks() && exit.header.has(ExitHeader::WALK) => {
                    return watch::allowed(badge, &numbered(exit, self.recent.next(badge)));
                }
                Ok(Some(watcher)) if watcher.has_wishes() && watcher.is_told() => {
                    let number = self.recent.next(badge);
                    let numbered = numbered(exit, number);
                    self.tells.tell(system, watcher.session(), badges::index(badge).into(), number, numbered.to_words());
                    return watch::allowed(badge, &numbered);
                }
                Ok(Some(watcher)) => {
                    let numbered = numbered(exit, self.recent.next(badge));
                    return Reply::Watched(slot::SESSION + u64::from(watcher.session()), numbered.to_words());
                }
                Ok(None) => return Reply::Value(Answer::RETRY, 0),
                Err(_) => {}
            }
        }
        // Not p2m's business: the vcpu server decides about the guest's life.
        self.note_refused(exit.header, exit.physical, exit.pc);
        Reply::Forward(slot::VCPU_SERVER + u64::from(badges::index(badge)), exit.to_words())
    }

    /// Whether this is the guest's and no memory: a device, or the hardware's part of the interrupt controller.
    #[inline(always)]
    fn is_device(&self, page: u64) -> bool {
        let is_interface = self.interface.is_some_and(|first| page.wrapping_sub(first) < 2);
        is_interface || self.devices.iter().any(|device| page.wrapping_sub(device.page) < device.pages)
    }

    /// A page that a view, or a host map with more to it, does not show yet. Refused: it is not to be shown.
    #[inline(never)]
    fn absent(&self, system: &impl System, exit: &Exit, page: u64) -> Result<(), Refusal> {
        let view = exit.header.view();
        if !self.is_device(page) {
            return self.views.lock(system).absent(system, &self.map, view, page);
        }
        // What is no memory every view has as the host map.
        if view == 0 { Err(Refusal::MissingRight) } else { GUEST.copy_view(system, view, (page, 1), Access::AS_HOST, 1).map(drop) }
    }

    /// An access that a leaf forbids: an event of this watcher's, or it may be tried again. Refused: nobody here wants it.
    #[inline(never)]
    fn forbidden(&self, system: &impl System, badge: u64, exit: &Exit, page: u64) -> Result<Option<Watcher>, Refusal> {
        if self.is_device(page) {
            return Err(Refusal::MissingRight);
        }
        let mut views = self.views.lock(system);
        let found = views.forbidden(system, &self.map, exit);
        self.special.store(views.is_host_special(), Ordering::Release);
        Ok(match found? {
            Found::Shown => None,
            Found::Watched(watcher, allowed) => {
                // Under the lock: nobody has changed what was found.
                self.recent.note(badge, exit.header.view(), page, allowed, watcher);
                Some(watcher)
            }
        })
    }

    /// Logs a refused access, unless there are too many. By value: the exit stays in registers.
    #[cold]
    #[inline(never)]
    fn note_refused(&self, header: ExitHeader, physical: u64, pc: u64) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count <= LOGGED || count.is_power_of_two() {
            let access = match header {
                header if header.has(ExitHeader::WRITE) => "write to",
                header if header.has(ExitHeader::FETCH) => "fetch from",
                _ => "read of",
            };
            log!("refused {count}: {access} {physical:#x} at pc {pc:#x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::{Fake, p2m, with_devices};
    use trellis_idl::kernel::{Answer, Exit, ExitHeader, Op};
    use trellis_idl::layout::{badge, slot};
    use trellis_idl::plan::{DevicePages, Populate};
    use trellis_runtime::{Reply, Server};

    fn access(physical: u64, flags: u64) -> Exit {
        Exit { header: ExitHeader(flags), physical, pc: 0x4008_0000, ..Exit::default() }
    }

    #[test]
    fn the_first_touch_of_memory_is_tried_again() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Lazy);
        assert!(fake.maps().is_empty());
        let reply = p2m.exit(&fake, badge::EXIT, &access(0x4020_1234, ExitHeader::WRITE));
        assert_eq!(reply, Reply::Value(Answer::RETRY, 0));
        assert_eq!(fake.maps(), [(0x40200, 0x200, 0x200)]);
    }

    #[test]
    fn what_is_not_memory_goes_to_the_vcpu_server_of_the_same_thread() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Eager);
        for (address, flags) in [
            (0x3fff_f000, 0),
            (0x4040_0000, ExitHeader::FETCH),
            (u64::MAX, 0),
            (0x4020_0000, 1),
        ] {
            let exit = access(address, flags);
            let reply = p2m.exit(&fake, badge::EXIT | 3, &exit);
            assert_eq!(reply, Reply::Forward(slot::VCPU_SERVER + 3, exit.to_words()));
        }
    }

    #[test]
    fn a_device_of_the_guests_own_is_in_every_view_as_in_the_host_map() {
        let fake = Fake::default();
        let p2m = with_devices(&fake, Populate::Eager, &[DevicePages { page: 0x9000, pages: 2 }]);
        const VIEW: u64 = 1 << 32;
        let is_tried_again = |physical, flags| {
            p2m.exit(&fake, badge::EXIT, &access(physical, flags)) == Reply::Value(Answer::RETRY, 0)
        };
        assert!(is_tried_again(0x900_1008, VIEW | ExitHeader::WRITE));
        assert_eq!(fake.operations().last(), Some(&Op::ViewCopy));
        assert!(!is_tried_again(0x900_1008, VIEW | ExitHeader::FETCH | ExitHeader::PERMISSION), "it forbids that itself");
        assert!(!is_tried_again(0x900_2008, VIEW), "behind it is nothing");
        assert!(!is_tried_again(0x900_1008, 0), "the host map has it from the start");
    }

    #[test]
    fn memory_that_the_kernel_refuses_to_map_is_not_tried_for_ever() {
        let fake = Fake::default();
        let p2m = p2m(&fake, Populate::Lazy);
        fake.refuse_maps();
        let reply = p2m.exit(&fake, badge::EXIT, &access(0x4000_0000, 0));
        assert!(matches!(reply, Reply::Forward(..)));
    }
}
