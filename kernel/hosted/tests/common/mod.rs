// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stories share.
#![allow(dead_code)]

use std::sync::atomic::Ordering;
use trellis_core::errand::Errand;
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, CLIENT, INNER, OUTER, ROOT, inner_slot, must, slot};
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::kernel::{Op, Refusal};

pub const WORDS: [u64; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
pub const BACK: [u64; 10] = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1];

/// A small system on one CPU; root runs.
pub fn system() -> Hosted {
    small::system(Settings::default())
}

/// The same, with the client running and root asleep until a signal with bit 1.
pub fn client_runs() -> Hosted {
    let mut hosted = system();
    must(&mut hosted, Op::ThreadStart, [slot::THREADS[2], 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Thread(CLIENT));
    hosted
}

/// The same with the vCPU running and nobody else.
pub fn guest_runs() -> Hosted {
    let mut hosted = system();
    must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(wait(&mut hosted), Now::Guest(0));
    hosted
}

pub fn wait(hosted: &mut Hosted) -> Now {
    hosted.syscall(0, Op::Wait as u16, [1, 0, 0, 0, 0, 0], [0; 10])
}

pub fn call(hosted: &mut Hosted, portal: u64, words: [u64; 10]) -> Now {
    hosted.syscall(0, Op::Call as u16, [portal, 0, 0, 0, 0, 0], words)
}

pub fn reply(hosted: &mut Hosted, mask: u64, words: [u64; 10]) -> Now {
    hosted.syscall(0, Op::ReplyAndWait as u16, [mask, 0, 0, 0, 0, 0], words)
}

pub fn forward(hosted: &mut Hosted, portal: u64, words: [u64; 10]) -> Now {
    hosted.syscall(0, Op::Forward as u16, [portal, 0, 0, 0, 0, 0], words)
}

/// Root goes on after its `wait`, whoever runs on CPU 0.
pub fn wake_root(hosted: &mut Hosted) {
    let mail = &hosted.shared.cpus[0];
    mail.signals[ROOT as usize].fetch_or(1, Ordering::AcqRel);
    mail.errands.leave(Errand::Signal(ROOT));
    assert_eq!(hosted.trap(0, Trap::Kick), Now::Thread(ROOT));
    lawful(hosted);
}

/// What `x0` says on CPU 0.
pub fn x0(hosted: &Hosted) -> Result<u64, Refusal> {
    Refusal::from_register(hosted.registers(0).x[0])
}

pub fn words(hosted: &Hosted) -> [u64; 10] {
    hosted.registers(0).words
}

/// Every law still holds.
pub fn lawful(hosted: &Hosted) {
    laws::full(hosted).expect("the laws hold");
}

/// Names used by stories only.
pub const NAMES: [u16; 4] = [ROOT, INNER, OUTER, CLIENT];
/// Portals as the client's and outer server's tables have them.
pub const TO_INNER: u64 = inner_slot::INNER;
pub const TO_OUTER: u64 = inner_slot::OUTER;
