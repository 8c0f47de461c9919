// SPDX-License-Identifier: MIT OR Apache-2.0
//! What messages can do to the machine's own record of a vCPU: no bit of EL2's registers, no list register, and only
//! those processor states that a guest may be in.

use trellis_aarch64::context::Vcpu;
use trellis_aarch64::registers::Pstate;
use trellis_core::machine::VcpuContext;
use trellis_idl::kernel::VcpuRegister;

/// One change: what kind, which register or mask, and a word.
const CHANGE: usize = 18;

/// What only the kernel writes.
fn kernels_own(vcpu: &Vcpu) -> impl PartialEq + std::fmt::Debug + use<> {
    (vcpu.hcr, vcpu.cptr, vcpu.vttbr, vcpu.vmcr, vcpu.active_priorities, vcpu.lists, vcpu.timer_active, vcpu.underflow)
}

/// Changes one after the other.
pub fn run(bytes: &[u8]) {
    let mut vcpu = Vcpu::EMPTY;
    vcpu.set_map(3, 0x4_0000, 1);
    vcpu.reset();
    let before = kernels_own(&vcpu);
    for change in bytes.chunks_exact(CHANGE) {
        let (which, word) = (u64_at(change, 2), u64_at(change, 10));
        match change[0] % 4 {
            0 => drop(vcpu.set(u64::from(change[1]), word)),
            1 => vcpu.answer(which, &[word; 10]),
            2 => vcpu.exception(which, word),
            _ => vcpu.advance(),
        }
        assert_eq!(kernels_own(&vcpu), before, "a message wrote what is the kernel's");
        assert!(Pstate::for_guest(vcpu.pstate).is_some(), "a message chose the state {:#x}", vcpu.pstate);
        assert_eq!(vcpu.get(VcpuRegister::Pstate as u64), Ok(vcpu.pstate));
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Every register with ones, every bit of the state by itself, and each kind of change.
pub fn seeds() -> Vec<Vec<u8>> {
    let change = |kind: u8, register: u8, which: u64, word: u64| {
        [[kind, register].as_slice(), &which.to_le_bytes(), &word.to_le_bytes()].concat()
    };
    let ones = (0..64).flat_map(|register| change(0, register, 0, u64::MAX)).collect();
    let states = (0..64).flat_map(|bit| change(0, VcpuRegister::Pstate as u8, 0, 1 << bit | 5)).collect();
    let kinds = [change(1, 0, u64::MAX, u64::MAX), change(2, 0, 0x9200_0000, 8), change(3, 0, 0, 0)].concat();
    vec![ones, states, kinds]
}
