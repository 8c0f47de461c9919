// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does and where it leads: through the kernel core and the real servers.

use trellis_idl::kernel::{Access, ExitClass};
use trellis_idl::wire::{GuestEnd, ToRoot};
use trellis_walks::Station::{P2m, Root, Vcpu};
use trellis_walks::World;
use trellis_walks::world::{BASE, ENTRY, PAGES};

/// PL011 of the guest's platform: data and flags.
const SERIAL: u64 = 0x0900_0000;
const FLAGS: u64 = SERIAL + 0x18;
/// PSCI 5.1: PSCI_VERSION and SYSTEM_OFF.
const PSCI_VERSION: u64 = 0x8400_0000;
const SYSTEM_OFF: u64 = 0x8400_0008;

#[test]
fn root_starts_the_guest_and_its_image_is_in_its_memory() {
    let world = World::started();
    assert_eq!(world.pc(), ENTRY);
    assert_eq!(world.general(0), BASE);
    assert!(world.touch(ENTRY, Access::READ));
    assert_eq!(world.went(), [], "p2m gave it frames when the image was loaded");
}

#[test]
fn the_first_touch_of_a_page_reaches_p2m_and_is_tried_again() {
    let world = World::started();
    let far = BASE + (PAGES - 1) * 4096;
    assert!(world.touch(far, Access::WRITE));
    assert_eq!(world.went(), [P2m]);
    assert_eq!(world.pc(), ENTRY, "the same instruction");
    assert!(world.touch(far, Access::WRITE));
    assert_eq!(world.went(), [], "it is there now");
}

#[test]
fn a_device_touch_reaches_vcpu_in_one_hop_without_locks_or_shared_writes() {
    let world = World::started();
    let before = world.hosted.borrow().sharing();
    assert!(world.touch(FLAGS, Access::READ));
    assert_eq!(world.hosted.borrow().sharing(), before);
    assert_eq!(world.went(), [Vcpu]);
    assert_eq!(world.general(1) & 0x80, 0x80, "the transmitter is empty");
    assert_eq!(world.pc(), ENTRY + 4);
}

#[test]
fn a_byte_for_the_serial_port_arrives_in_the_ring() {
    let world = World::started();
    world.hosted.borrow_mut().cpus[0].local.vcpus.at_mut(0).context.set_general(1, u64::from(b'T'));
    assert!(world.touch(SERIAL, Access::WRITE));
    assert_eq!(world.serial(), b"T");
    assert_eq!(world.went()[0], Vcpu);
}

#[test]
fn the_firmwares_version_is_answered() {
    let world = World::started();
    assert!(world.hypercall([PSCI_VERSION, 0, 0, 0]));
    assert_eq!(world.general(0), 0x1_0001);
    assert_eq!(world.went(), [Vcpu]);
}

#[test]
fn a_touch_outside_memory_ends_the_guest_with_a_report() {
    let world = World::started();
    let nowhere = BASE + PAGES * 4096 + 0x123;
    assert!(!world.touch(nowhere, Access::WRITE));
    assert_eq!(world.went(), [P2m, Vcpu, Root]);
    let Some(ToRoot::Ended(GuestEnd::Crash(crash))) = world.report() else { panic!("no report of a crash") };
    assert_eq!((crash.class, crash.physical, crash.pc), (ExitClass::Memory as u8, nowhere, ENTRY));
    assert_eq!(crash.general[0], BASE);
    assert_eq!(world.report(), None);
}

#[test]
fn a_guest_that_switches_itself_off_is_reported() {
    let world = World::started();
    assert!(!world.hypercall([SYSTEM_OFF, 0, 0, 0]));
    assert_eq!(world.went(), [Vcpu, Root]);
    assert_eq!(world.report(), Some(ToRoot::Ended(GuestEnd::Off)));
}
