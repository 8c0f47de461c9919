// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel for tests: remembers what is mapped and what was asked.

use crate::P2m;
use crate::view::Views;
use std::cell::{Cell, RefCell};
use trellis_idl::kernel::{Access, Op, Refusal, WORDS};
use trellis_idl::layout::slot;
use trellis_idl::plan::{DevicePages, P2mConfig, Populate};
use trellis_runtime::{Shared, System};

/// Remembers: pieces mapped as (guest page, page of the run, pages), and operations.
#[derive(Default)]
pub struct Fake {
    maps: RefCell<Vec<(u64, u64, u64)>>,
    blanks: RefCell<Vec<u64>>,
    operations: RefCell<Vec<Op>>,
    refusing: Cell<bool>,
}

impl Fake {
    pub fn maps(&self) -> Vec<(u64, u64, u64)> {
        self.maps.borrow().clone()
    }

    /// Guest pages that show zeroes.
    pub fn blanks(&self) -> Vec<u64> {
        self.blanks.borrow().clone()
    }

    pub fn operations(&self) -> Vec<Op> {
        self.operations.borrow().clone()
    }

    pub fn refuse_maps(&self) {
        self.refusing.set(true);
    }
}

impl System for Fake {
    fn invoke(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        assert_eq!(a[0], slot::GUEST);
        self.operations.borrow_mut().push(op);
        let mut maps = self.maps.borrow_mut();
        match op {
            Op::GuestMap if a[2] == slot::BLANK => {
                assert_eq!((a[3], a[4], a[5]), (0, 1, Access::READ.0));
                let mut blanks = self.blanks.borrow_mut();
                if blanks.contains(&a[1]) {
                    return Err(Refusal::Occupied);
                }
                blanks.push(a[1]);
            }
            Op::GuestMap if a[2] == slot::DEVICE => {}
            Op::GuestMap => {
                assert_eq!(a[2], slot::MEMORY);
                if self.refusing.get() {
                    return Err(Refusal::Quota);
                }
                if maps.iter().any(|(page, _, pages)| a[1] < page + pages && *page < a[1] + a[4]) {
                    return Err(Refusal::Occupied);
                }
                maps.push((a[1], a[3], a[4]));
            }
            Op::GuestUnmap => maps.retain(|(page, _, _)| !(a[1]..a[1] + a[2]).contains(page)),
            Op::GuestProtect => {}
            Op::ViewCopy => return Ok([a[2], 1, 0]),
            // No vCPU has a number yet.
            Op::ViewSwitch => return Err(Refusal::NotMapped),
            other => panic!("{other:?}"),
        }
        Ok([0; 3])
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::NoCapability)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// A server of 4 MiB at 1 GiB.
pub fn p2m(fake: &Fake, populate: Populate) -> P2m {
    with_devices(fake, populate, &[])
}

/// The same, of a guest that owns devices.
pub fn with_devices(fake: &Fake, populate: Populate, devices: &[DevicePages]) -> P2m {
    let config = P2mConfig {
        guest: "g", first_page: 0x40000, pages: 0x400, populate, vcpus: 4, gicv_page: None, watchers: 0, views: 4,
        view: heapless::Vec::new(), devices: heapless::Vec::from_slice(devices).unwrap(),
    };
    P2m::start(fake, &config, Box::leak(Box::new(Shared::new(Views::new()))), &[]).unwrap()
}
