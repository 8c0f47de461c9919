// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory compared and swapped, and what traps by order.

mod common;

use common::*;
use trellis_hosted::Hosted;
use trellis_hosted::small::{GUEST_PAGE, must, slot};
use trellis_idl::kernel::{ExitClass, Op, Refusal, Rights, Traps};
use trellis_idl::layout::root_slot;

const PLACE: u64 = GUEST_PAGE * 4096 + 0x40;

fn memory() -> Hosted {
    let mut hosted = system();
    must(&mut hosted, Op::GuestMap, [slot::GUEST, GUEST_PAGE, slot::MEMORY, 0, 2, 7]);
    set(&mut hosted, 0, 0x8877_6655_4433_2211);
    set(&mut hosted, 8, 0x0102_0304_0506_0708);
    hosted
}

fn frame(hosted: &Hosted) -> u64 {
    let guest = hosted.shared.guests[0].lock();
    guest.leaf(&hosted.cpus[0].machine, 0, GUEST_PAGE).expect("it is mapped").page * 4096 + 0x40
}

fn set(hosted: &mut Hosted, offset: u64, value: u64) {
    let at = frame(hosted) + offset;
    hosted.board.borrow_mut().set_word(at, value);
}

fn both(hosted: &Hosted) -> [u64; 2] {
    let at = frame(hosted);
    [0, 8].map(|offset| hosted.board.borrow().word(at + offset))
}

fn swap(hosted: &mut Hosted, size: u64, address: u64, expected: [u64; 2], new: [u64; 2]) -> Result<[u64; 3], Refusal> {
    hosted.invoke(0, Op::GuestSwap, [slot::GUEST, size << 56 | address, expected[0], expected[1], new[0], new[1]])
}

#[test]
fn every_size_at_every_place_is_swapped_and_nothing_beside_it() {
    for size in 0..4 {
        for place in (0..16u64).step_by(1 << size) {
            let mut hosted = memory();
            let bytes: Vec<u8> = both(&hosted).iter().flat_map(|word| word.to_le_bytes()).collect();
            let range = place as usize..place as usize + (1 << size);
            let mut old = [0; 8];
            old[..1 << size].copy_from_slice(&bytes[range.clone()]);
            let old = u64::from_le_bytes(old);
            // What is above the value's own bytes counts for nothing.
            let above = if size == 3 { 0 } else { u64::MAX << (8 << size) };
            assert_eq!(swap(&mut hosted, size, PLACE + place, [old ^ 1, 0], [0; 2]), Ok([0, old, 0]));
            assert_eq!(both(&hosted), both(&memory()), "another value was expected");
            assert_eq!(swap(&mut hosted, size, PLACE + place, [old | above, 7], [!old, 9]), Ok([1, old, 0]));
            let mut expected = bytes.clone();
            range.for_each(|at| expected[at] = !expected[at]);
            let found: Vec<u8> = both(&hosted).iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(found, expected, "size {size} at {place}");
        }
    }
}

#[test]
fn a_pair_is_swapped_if_both_of_it_are_as_expected() {
    let mut hosted = memory();
    let [low, high] = both(&hosted);
    for wrong in [[low ^ 1, high], [low, high ^ 1 << 63]] {
        assert_eq!(swap(&mut hosted, 4, PLACE, wrong, [1, 2]), Ok([0, low, high]));
    }
    assert_eq!(swap(&mut hosted, 4, PLACE, [low, high], [1, 2]), Ok([1, low, high]));
    assert_eq!(both(&hosted), [1, 2]);
}

#[test]
fn what_is_not_memory_or_not_aligned_is_not_swapped() {
    let mut hosted = memory();
    for (size, address, refusal) in [
        (5, PLACE, Refusal::BadArgument),
        (255, PLACE, Refusal::BadArgument),
        (3, PLACE + 4, Refusal::BadArgument),
        (4, PLACE + 8, Refusal::BadArgument),
        (0, (GUEST_PAGE + 2) * 4096, Refusal::NotMapped),
        (3, u64::MAX >> 8 & !7, Refusal::NotMapped),
    ] {
        assert_eq!(swap(&mut hosted, size, address, [0; 2], [0; 2]), Err(refusal), "{size} {address:#x}");
    }
    must(&mut hosted, Op::GuestMap, [slot::GUEST, 0x9000, root_slot::DEVICES, 0, 1, 3]);
    assert_eq!(swap(&mut hosted, 3, 0x900_0000, [0; 2], [0; 2]), Err(Refusal::BadArgument), "a device");
    for rights in [Rights::READ, Rights::WRITE] {
        let weak = slot::FREE + u64::from(rights.0);
        must(&mut hosted, Op::Grant, [slot::GUEST, root_slot::DOMAIN, weak, rights.0.into(), 0, 0]);
        let asked = hosted.invoke(0, Op::GuestSwap, [weak, 3 << 56 | PLACE, 0, 0, 0, 0]);
        assert_eq!(asked, Err(Refusal::MissingRight));
    }
}

#[test]
fn traps_are_said_of_a_vcpu_that_does_not_run_and_stay() {
    let mut hosted = guest_runs();
    let traps = |hosted: &Hosted| hosted.cpus[0].local.vcpus.at(0).context.traps;
    hosted.exit(0, ExitClass::Register, [0; 10]);
    let say = |hosted: &mut Hosted, bits: u64| {
        hosted.invoke(0, Op::VcpuTraps, [trellis_hosted::small::inner_slot::VCPU, bits, 0, 0, 0, 0]).map(|_| ())
    };
    assert_eq!(say(&mut hosted, 4), Err(Refusal::BadArgument));
    assert_eq!(say(&mut hosted, u64::MAX), Err(Refusal::BadArgument));
    assert_eq!(say(&mut hosted, Traps::ALL.0), Ok(()));
    assert_eq!(traps(&hosted), Traps::ALL);
    reply(&mut hosted, 16, [0; 10]);
    let vcpu = hosted.cpus[0].local.vcpus.at_mut(0);
    trellis_core::machine::VcpuContext::reset(&mut vcpu.context);
    assert_eq!(traps(&hosted), Traps::ALL);
    lawful(&hosted);
}

#[test]
fn traps_of_a_vcpu_that_runs_are_not_changed() {
    let mut hosted = system();
    must(&mut hosted, Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]);
    assert_eq!(hosted.invoke(0, Op::VcpuTraps, [slot::VCPU, 1, 0, 0, 0, 0]), Err(Refusal::BadState));
    must(&mut hosted, Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]);
    must(&mut hosted, Op::VcpuTraps, [slot::VCPU, 1, 0, 0, 0, 0]);
    must(&mut hosted, Op::Grant, [slot::VCPU, root_slot::DOMAIN, slot::FREE, Rights::READ.0.into(), 0, 0]);
    assert_eq!(hosted.invoke(0, Op::VcpuTraps, [slot::FREE, 0, 0, 0, 0, 0]), Err(Refusal::MissingRight));
}
