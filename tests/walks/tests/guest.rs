// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does and where it leads: through the kernel core and the real servers.

use trellis_idl::interface::{self, Interface};
use trellis_idl::kernel::{Access, ExitClass};
use trellis_idl::kernel::{Refusal, WORDS};
use trellis_idl::wire::{GuestEnd, P2mOp, PageRange, PageRanges, ToRoot};
use trellis_runtime::{System, message};
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

/// Every eighth page of the guest's memory from this one on.
fn every_eighth(first: u64, count: u64) -> PageRanges {
    (0..count).map(|index| PageRange { first: BASE / 4096 + first + 8 * index, pages: 1 }).collect()
}

#[test]
fn a_message_longer_than_ten_words_reaches_p2m_whole() {
    let world = World::new();
    let (ask, operation) = (World::p2m(), P2mOp::PopulateAll as u64);
    for (count, in_buffer) in [(1, false), (100, true)] {
        let ranges = every_eighth(0, count);
        let (_, bytes) = message::encode(&world.root(), operation, &ranges).expect("it fits a page");
        assert_eq!(bytes > 0, in_buffer);
        assert_eq!(ask.ask(&world.root(), operation, &ranges), Ok(()));
    }
    world.went();
    // One range outside of the guest's memory: the refusal comes back through the same portal.
    let outside = every_eighth(PAGES, 40);
    assert_eq!(ask.ask::<_, ()>(&world.root(), operation, &outside), Err(Refusal::OutOfRange));
    assert_eq!(world.went(), [P2m]);
}

#[test]
fn nobody_sends_what_another_left_in_the_servers_buffer() {
    let world = World::new();
    let operation = P2mOp::PopulateAll as u64;
    let (words, bytes) = message::encode(&world.root(), operation, &every_eighth(0, 100)).expect("it fits a page");
    assert_eq!(World::p2m().ask(&world.root(), operation, &every_eighth(0, 100)), Ok(()));
    // The same words without the bytes, with fewer and with more.
    for came in [0, 1, bytes - 1, bytes + 1] {
        let (answer, _) = world.root().call_with_buffer(World::p2m().slot(), words, came).expect("p2m answers");
        assert_eq!(answer[0], 1 + Refusal::BadArgument as u64, "{came}");
    }
    assert_eq!(world.root().call_with_buffer(World::p2m().slot(), words, 4097), Err(Refusal::BadArgument));
    assert_eq!(world.root().call(World::p2m().slot(), [operation; WORDS]).expect("an answer")[0], 1 + Refusal::BadArgument as u64);
}

#[test]
fn p2m_and_vcpu_say_at_once_when_another_interface_is_meant() {
    let world = World::new();
    let (p2m, vcpu) = (World::p2m(), World::vcpu());
    assert_eq!(message::attach(&world.root(), p2m, interface::P2M), Ok(()));
    assert_eq!(message::attach(&world.root(), vcpu, interface::VCPU), Ok(()));
    let newer = Interface { version: interface::P2M.version + 1, ..interface::P2M };
    let other = Interface { schema: !interface::VCPU.schema, ..interface::VCPU };
    for (portal, meant) in [(p2m, newer), (p2m, interface::VCPU), (vcpu, other), (vcpu, interface::HOST)] {
        assert_eq!(message::attach(&world.root(), portal, meant), Err(Refusal::Unsupported), "{meant:?}");
    }
}
