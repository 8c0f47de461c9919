// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole instructions against a device made of words.

use super::*;
use crate::fake::{Fake, MEMORY, Scratch};
use trellis_idl::layout::slot;

/// The device's page.
const DEVICE: u64 = 0x0900_0000;
const EL1H: u64 = 0x3c5;

/// Runs one instruction with a valid virtual address equal to the physical one.
fn run(system: &Fake, devices: &Scratch, word: u32, far: u64) -> Result<(), Trouble> {
    run_as(system, devices, ExitHeader(1 | ExitHeader::VIRTUAL_VALID), word, far)
}

fn run_as(system: &Fake, devices: &Scratch, header: ExitHeader, word: u32, far: u64) -> Result<(), Trouble> {
    system.put(MEMORY + 0x100, &word.to_le_bytes());
    system.set(0, VcpuRegister::Pc as u64, MEMORY + 0x100);
    let exit = Exit { header, physical: far, virtual_address: far, syndrome: 0x9200_0006, ..Exit::default() };
    emulate(system, Guest::at(slot::GUEST), Vcpu::at(slot::VCPU), &exit, devices)
}

fn machine() -> (Fake, Scratch) {
    let system = Fake::new(1);
    system.set(0, VcpuRegister::Pstate as u64, EL1H);
    (system, Scratch::default())
}

#[test]
fn a_post_indexed_load_moves_value_and_base() {
    let (system, devices) = machine();
    system.set(0, 4, DEVICE + 0x18);
    devices.words.borrow_mut().insert(DEVICE + 0x18, 0x1122_3344_5566_7788);
    assert_eq!(run(&system, &devices, 0xf840_8483, DEVICE + 0x18), Ok(()));
    assert_eq!((system.general(0, 3), system.general(0, 4)), (0x1122_3344_5566_7788, DEVICE + 0x20));
}

#[test]
fn a_pushed_pair_writes_twice_and_moves_the_right_stack_pointer() {
    let (system, devices) = machine();
    system.set(0, VcpuRegister::SpEl1 as u64, DEVICE + 0x40);
    system.set(0, VcpuRegister::SpEl0 as u64, 0x1234);
    system.set(0, 4, 0x44);
    system.set(0, 5, 0x55);
    assert_eq!(run(&system, &devices, 0xa9bf_17e4, DEVICE + 0x30), Ok(()));
    assert_eq!(*devices.seen.borrow(), [(DEVICE + 0x30, 8, Some(0x44)), (DEVICE + 0x38, 8, Some(0x55))]);
    assert_eq!(system.register(0, VcpuRegister::SpEl1), DEVICE + 0x30);
    assert_eq!(system.register(0, VcpuRegister::SpEl0), 0x1234);
}

#[test]
fn a_big_endian_guest_sees_each_register_of_a_pair_turned() {
    let (system, devices) = machine();
    system.set(0, 8, DEVICE);
    devices.words.borrow_mut().extend([(DEVICE, 0x1122_3344), (DEVICE + 4, 0x55)]);
    let header = ExitHeader(1 | ExitHeader::VIRTUAL_VALID | ExitHeader::BIG_ENDIAN);
    assert_eq!(run_as(&system, &devices, header, 0x2940_1d06, DEVICE), Ok(()));
    assert_eq!((system.general(0, 6), system.general(0, 7)), (0x4433_2211, 0x5500_0000));
    assert_eq!(run_as(&system, &devices, header, 0x2900_1d06, DEVICE), Ok(()));
    assert_eq!(devices.seen.borrow()[2..], [(DEVICE, 4, Some(0x1122_3344)), (DEVICE + 4, 4, Some(0x55))]);
}

#[test]
fn a_signed_pair_is_extended_into_both_registers() {
    let (system, devices) = machine();
    system.set(0, 8, DEVICE);
    devices.words.borrow_mut().extend([(DEVICE, 0x8000_0000), (DEVICE + 4, 7)]);
    assert_eq!(run(&system, &devices, 0x68c1_1d06, DEVICE), Ok(()));
    assert_eq!((system.general(0, 6), system.general(0, 7)), (0xffff_ffff_8000_0000, 7));
    assert_eq!(system.general(0, 8), DEVICE + 8);
}

#[test]
fn the_instruction_is_found_through_the_guests_tables() {
    let (system, devices) = machine();
    // 39 bits, 4 KiB: root at MEMORY + 0x4000, one 1 GiB block that maps 0x8000_0000 to 0x4000_0000.
    system.put(MEMORY + 0x4010, &(MEMORY | 1u64).to_le_bytes());
    for (register, value) in [
        (VcpuRegister::SctlrEl1, 1),
        (VcpuRegister::TcrEl1, 25 | 1 << 23),
        (VcpuRegister::Ttbr0El1, MEMORY + 0x4000),
        (VcpuRegister::Pc, 0x8000_0100),
    ] {
        system.set(0, register as u64, value);
    }
    system.put(MEMORY + 0x100, &0xf900_001fu32.to_le_bytes());
    let header = ExitHeader(1 | ExitHeader::VIRTUAL_VALID);
    system.set(0, 0, 0xabcd_e008);
    let exit = Exit { header, physical: DEVICE + 8, virtual_address: 0xabcd_e008, ..Exit::default() };
    assert_eq!(emulate(&system, Guest::at(slot::GUEST), Vcpu::at(slot::VCPU), &exit, &devices), Ok(()));
    assert_eq!(*devices.seen.borrow(), [(DEVICE + 8, 8, Some(0))]);
    system.set(0, VcpuRegister::Pc as u64, 0x1_0000_0100);
    let lost = emulate(&system, Guest::at(slot::GUEST), Vcpu::at(slot::VCPU), &exit, &devices);
    assert_eq!(lost, Err(Trouble::Walk(WalkError::Absent)));
}

#[test]
fn what_cannot_be_carried_out_says_why() {
    let (system, devices) = machine();
    assert_eq!(run(&system, &devices, 0x3dc0_0020, DEVICE), Err(Trouble::Instruction(NotEmulated::Vector)));
    system.set(0, 11, DEVICE + 0xff8);
    assert_eq!(run(&system, &devices, 0xa840_2969, DEVICE + 0xff8), Err(Trouble::Elsewhere), "over the page's end");
    system.set(0, 13, DEVICE + 0x2000);
    assert_eq!(run(&system, &devices, 0x88df_fdac, DEVICE), Err(Trouble::Elsewhere), "another address than trapped");
    system.set(0, VcpuRegister::Pstate as u64, 0x10);
    assert_eq!(run(&system, &devices, 0x88df_fdac, DEVICE), Err(Trouble::Narrow));
    let fetch = Exit { header: ExitHeader(1 | ExitHeader::FETCH), ..Exit::default() };
    let got = emulate(&system, Guest::at(slot::GUEST), Vcpu::at(slot::VCPU), &fetch, &devices);
    assert_eq!(got, Err(Trouble::NotData));
    assert!(devices.seen.borrow().is_empty());
}

#[test]
fn cache_maintenance_on_a_device_is_nothing() {
    let (system, devices) = machine();
    let exit = Exit { header: ExitHeader(1), syndrome: 0x9200_0146, ..Exit::default() };
    assert_eq!(emulate(&system, Guest::at(slot::GUEST), Vcpu::at(slot::VCPU), &exit, &devices), Ok(()));
}

proptest::proptest! {
    #[test]
    fn no_instruction_and_no_registers_make_it_panic(
        word: u32,
        values in proptest::array::uniform32(proptest::num::u64::ANY),
    ) {
        let (system, devices) = machine();
        for (number, value) in values.iter().enumerate() {
            system.set(0, number as u64, *value);
        }
        let _ = run(&system, &devices, word, DEVICE);
    }
}
