// SPDX-License-Identifier: MIT OR Apache-2.0
//! The register walks of drivers, through distributor and redistributor.

use super::*;
use crate::bus;
use crate::fake::Fake;
use crate::redistributor::{self, Redistributor};
use std::collections::HashSet;
use trellis_idl::kernel::Op;

fn read(state: &mut Distributor, system: &Fake, offset: u64) -> u32 {
    bus::read(&mut Version3 { state, system }, offset, 4) as u32
}

fn write(state: &mut Distributor, system: &Fake, offset: u64, value: u32) {
    bus::write(&mut Version3 { state, system }, offset, 4, value.into());
}

#[test]
fn linux_sets_up_a_version_3_distributor() {
    let (mut state, system) = (Distributor::new(2), Fake::new(2));
    assert_eq!(read(&mut state, &system, 0xffe8) & 0xf0, 0x30);
    let lines = ((read(&mut state, &system, 0x4) & 31) + 1) * 32;
    assert_eq!(lines, 128);
    write(&mut state, &system, 0x0, 0);
    for first in (32..lines).step_by(32) {
        write(&mut state, &system, 0x80 + u64::from(first / 8), u32::MAX);
        write(&mut state, &system, 0x180 + u64::from(first / 8), u32::MAX);
        write(&mut state, &system, 0x380 + u64::from(first / 8), u32::MAX);
    }
    for first in (32..lines).step_by(16) {
        write(&mut state, &system, 0xc00 + u64::from(first / 4), 0);
    }
    for first in (32..lines).step_by(4) {
        write(&mut state, &system, 0x400 + u64::from(first), 0xa0a0_a0a0);
    }
    write(&mut state, &system, 0x0, 0x13);
    assert_eq!(read(&mut state, &system, 0x0), 0x53);
    assert!(system.state.lock().unwrap().forwards);
    for line in 32..lines {
        bus::write(&mut Version3 { state: &mut state, system: &system }, 0x6000 + 8 * u64::from(line), 8, 0);
    }
    // request_irq(33): level, route to CPU 1, enable.
    write(&mut state, &system, 0x6000 + 8 * 33, 1);
    write(&mut state, &system, 0x104, 1 << 1);
    assert!(system.line(0, LineField::Enabled, 33) && system.line(0, LineField::Group, 33));
    assert_eq!((system.priority(0, 33), system.state.lock().unwrap().targets[&33]), (0xa0, 1));
    assert_eq!(read(&mut state, &system, 0x6000 + 8 * 33), 1);
    assert_eq!(read(&mut state, &system, 0x184), 2);
    write(&mut state, &system, 0x184, 2);
    assert!(!system.line(0, LineField::Enabled, 33));
}

#[test]
fn only_vcpus_that_exist_are_told_that_lines_may_come() {
    let (mut state, system) = (Distributor::new(3), Fake::new(3));
    write(&mut state, &system, 0x0, 3);
    state.reset(&system);
    let done = std::mem::take(&mut system.state.lock().unwrap().done);
    let told = done.iter().filter(|(op, _)| *op == Op::LinesEnable).map(|(_, a)| (a[0] - slot::VCPU, a[1]));
    assert_eq!(told.collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (2, 0)]);
}

#[test]
fn an_edge_line_is_configured_and_pended() {
    let (mut state, system) = (Distributor::new(1), Fake::new(1));
    write(&mut state, &system, 0xc0c, 2 << 2);
    assert!(system.line(0, LineField::Edge, 49));
    assert_eq!(read(&mut state, &system, 0xc0c), 8);
    write(&mut state, &system, 0x204, 1 << 17);
    assert_eq!(read(&mut state, &system, 0x284), 1 << 17);
    // A level line reads as pending while its input is high.
    vcpu_at(0).lines_write(&system, LineField::Level, 32, 2, 2).unwrap();
    assert_eq!(read(&mut state, &system, 0x204), 1 << 17 | 2);
    bus::write(&mut Version3 { state: &mut state, system: &system }, 0x421, 1, 0x57);
    assert_eq!(system.priority(0, 33), 0x50);
    assert_eq!(read(&mut state, &system, 0x420), 0x5000);
}

#[test]
fn private_lines_are_not_in_a_version_3_distributor() {
    let (mut state, system) = (Distributor::new(1), Fake::new(1));
    write(&mut state, &system, 0x100, u32::MAX);
    write(&mut state, &system, 0x400, u32::MAX);
    write(&mut state, &system, 0x6000, u32::MAX);
    assert!(system.state.lock().unwrap().done.is_empty());
    write(&mut state, &system, 0x6000 + 8 * 40, 7);
    assert_eq!(read(&mut state, &system, 0x6000 + 8 * 40), 0, "no such CPU");
    write(&mut state, &system, 0x6000 + 8 * 40, 1 << 31);
    assert_eq!(read(&mut state, &system, 0x6000 + 8 * 40), 1 << 31);
}

#[test]
fn linux_wakes_a_redistributor_and_sets_up_private_lines() {
    let (mut state, system) = (Redistributor::new(), Fake::new(2));
    let mut view =
        redistributor::View { state: &mut state, system: &system, vcpu: vcpu_at(1), index: 1, is_last: true };
    assert_eq!(bus::read(&mut view, 0xffe8, 4), 0x3b);
    assert_eq!(bus::read(&mut view, 0x8, 8), 1 << 32 | 1 << 8 | 1 << 4);
    assert_eq!(bus::read(&mut view, 0x14, 4), 6);
    bus::write(&mut view, 0x14, 4, 0);
    assert_eq!(bus::read(&mut view, 0x14, 4), 0);
    bus::write(&mut view, 0x1_0080, 4, 0xffff_ffff);
    bus::write(&mut view, 0x1_0180, 4, 0xffff_0000);
    bus::write(&mut view, 0x1_0418, 4, 0xa0a0_a0a0);
    bus::write(&mut view, 0x1_0100, 4, 1 << 27 | 0xffff);
    assert!(system.line(1, LineField::Enabled, 27) && !system.line(0, LineField::Enabled, 27));
    assert_eq!(bus::read(&mut view, 0x1_0100, 4), 1 << 27 | 0xffff);
    assert_eq!(system.priority(1, 27), 0xa0);
    assert_eq!(bus::read(&mut view, 0x1_0c00, 4), 0xaaaa_aaaa);
    bus::write(&mut view, 0x1_0c04, 4, 0);
    assert_eq!(bus::read(&mut view, 0x1_0c04, 4), 0);
    for reserved in [0x70, 0x78, 0x1_0104, 0x1_0d00, 0x1_0e00] {
        bus::write(&mut view, reserved, 8, u64::MAX);
        assert_eq!(bus::read(&mut view, reserved, 8), 0);
    }
}

#[test]
fn a_version_2_distributor_is_banked_and_sends_interrupts() {
    let (mut state, system) = (Distributor::new(2), Fake::new(2));
    let mut view = Version2 { state: &mut state, system: &system, vcpu: 1 };
    assert_eq!(bus::read(&mut view, 0x4, 4), 1 << 5 | 3);
    assert_eq!(bus::read(&mut view, 0xfe8, 4), 0x2b);
    assert_eq!(bus::read(&mut view, 0x800, 4), 0x0202_0202);
    bus::write(&mut view, 0x820, 4, 0x0101_0201);
    assert_eq!(bus::read(&mut view, 0x820, 4), 0x0101_0201);
    assert_eq!(system.state.lock().unwrap().targets[&33], 1);
    bus::write(&mut view, 0x100, 4, 1 << 27);
    assert!(system.line(1, LineField::Enabled, 27) && !system.line(0, LineField::Enabled, 27));
    bus::write(&mut view, 0xf00, 4, 1 << 24 | 5);
    let senders = |vcpu, line| system.state.lock().unwrap().senders.get(&(vcpu, line)).copied().unwrap_or(0);
    assert_eq!((senders(0, 5), senders(1, 5)), (0b10, 0));
    bus::write(&mut view, 0xf00, 4, 2 << 16 | 6);
    assert_eq!(bus::read(&mut view, 0xf14, 4), 0b10 << 16);
    bus::write(&mut view, 0xf26, 1, 0b01);
    assert_eq!((senders(1, 6), bus::read(&mut view, 0xf14, 4)), (0b11, 0b11 << 16));
    bus::write(&mut view, 0xf16, 1, 0b10);
    assert_eq!((senders(1, 6), bus::read(&mut view, 0xf24, 4)), (0b01, 0b01 << 16));
    bus::write(&mut view, 0x200, 4, 0xffff);
    assert!(!system.line(1, LineField::Pending, 3), "only by sender");
}

#[test]
fn a_line_is_looked_for_and_changed_where_it_was_sent() {
    let (mut state, system) = (Distributor::new(4), Fake::new(4));
    let mut view = Version2 { state: &mut state, system: &system, vcpu: 3 };
    bus::write(&mut view, 0x820, 4, 0x0401_0801);
    system.state.lock().unwrap().done.clear();
    bus::write(&mut view, 0x104, 4, 0b1110);
    let written: Vec<_> = system.state.lock().unwrap().done.iter().map(|(op, a)| (*op, a[0] - slot::VCPU, a[3])).collect();
    // Lines 33, 34 and 35 are with vCPUs 3, 0 and 2; each gets its own only.
    let expected = [(0, 0b0100), (2, 0b1000), (3, 0b0010)].map(|(vcpu, which)| (Op::LinesWrite, vcpu, which));
    assert_eq!(written, expected);
    assert_eq!(bus::read(&mut view, 0x104, 4), 0b1110);
    bus::write(&mut view, 0x420, 4, 0x8090_a0b0);
    assert_eq!(bus::read(&mut view, 0x420, 4), 0x8090_a0b0);
    bus::write(&mut view, 0xc08, 4, 0b10_10_00_00);
    assert_eq!(bus::read(&mut view, 0xc08, 4), 0b10_10_00_00);
}

#[test]
fn a_line_that_is_active_goes_later_and_is_the_old_vcpus_until_then() {
    let (mut state, system) = (Distributor::new(2), Fake::new(2));
    let target = || system.state.lock().unwrap().targets.get(&33).copied();
    system.state.lock().unwrap().active.insert(33);
    write(&mut state, &system, 0x6000 + 8 * 33, 1);
    assert_eq!((read(&mut state, &system, 0x6000 + 8 * 33), target()), (1, None));
    state.set_level(&system, 33, true);
    assert_eq!(target(), None);
    assert_eq!(system.state.lock().unwrap().done.last().map(|(op, a)| (*op, a[0])), Some((Op::LinesWrite, slot::VCPU)));
    system.state.lock().unwrap().active.clear();
    state.set_level(&system, 33, false);
    assert_eq!(target(), Some(1));
    assert_eq!(system.state.lock().unwrap().done.last().map(|(op, a)| (*op, a[0])), Some((Op::LinesWrite, slot::VCPU + 1)));
    let done = system.state.lock().unwrap().done.len();
    state.set_level(&system, 33, true);
    assert_eq!(system.state.lock().unwrap().done.len(), done + 1, "nothing is left to move");
}

#[test]
fn a_reset_leaves_no_line_at_another_vcpu() {
    let (mut state, system) = (Distributor::new(2), Fake::new(2));
    write(&mut state, &system, 0x6000 + 8 * 40, 1);
    write(&mut state, &system, 0x104, 1 << 8);
    assert_eq!(system.state.lock().unwrap().targets.get(&40), Some(&1));
    state.reset(&system);
    // The kernel knows it too: a physical line that is tied to it would go to the other one for ever.
    assert_eq!(system.state.lock().unwrap().targets.get(&40), Some(&0));
    assert_eq!(read(&mut state, &system, 0x6000 + 8 * 40), 0);
    assert!(!system.line(0, LineField::Enabled, 40));
    let reset: HashSet<u64> = system.state.lock().unwrap().done.iter().map(|(_, a)| a[0]).collect();
    assert!(reset.contains(&slot::VCPU) && reset.contains(&(slot::VCPU + 1)));
}

proptest::proptest! {
    #[test]
    fn no_access_makes_any_of_them_panic(
        accesses in proptest::collection::vec(
            (0u64..0x1_0000, 1u8..=8, proptest::num::u64::ANY),
            1..60,
        ),
    ) {
        let (system, older) = (Fake::new(2), Fake::new(2));
        let (mut three, mut two, mut private) = (Distributor::new(2), Distributor::new(2), Redistributor::new());
        for (offset, width, value) in accesses {
            let mut view = Version3 { state: &mut three, system: &system };
            bus::write(&mut view, offset, width, value);
            bus::read(&mut view, offset, width);
            for offset in [offset, offset & 0xfff] {
                let mut view = Version2 { state: &mut two, system: &older, vcpu: 1 };
                bus::write(&mut view, offset, width, value);
                bus::read(&mut view, offset, width);
            }
            let mut view =
                redistributor::View { state: &mut private, system: &system, vcpu: vcpu_at(1), index: 1, is_last: true };
            bus::write(&mut view, offset & 0xfff | 0x1_0000, width, value);
            bus::read(&mut view, offset & 0xfff | 0x1_0000, width);
        }
    }
}
