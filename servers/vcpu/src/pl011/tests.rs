// SPDX-License-Identifier: MIT OR Apache-2.0
//! The register walks of drivers.

use super::*;
use crate::bus;
use crate::fake::Desk;

const DATA: u64 = 0x00;
const LINE_CONTROL: u64 = 0x2c;
const LEVELS: u64 = 0x34;
const MASK: u64 = 0x38;
const MASKED_STATUS: u64 = 0x40;
const CLEAR: u64 = 0x44;

fn read(port: &mut Pl011, wire: &Desk, offset: u64) -> u32 {
    bus::read(&mut View { port, wire }, offset, 4) as u32
}

fn write(port: &mut Pl011, wire: &Desk, offset: u64, value: u32) {
    bus::write(&mut View { port, wire }, offset, 4, value.into());
}

fn typed(wire: &Desk, text: &str) {
    wire.typed.lock().unwrap().extend(text.bytes());
}

#[test]
fn early_output_waits_for_room_and_sends_bytes() {
    let (mut port, wire) = (Pl011::new(), Desk::default());
    for byte in b"hello\n" {
        assert_eq!(read(&mut port, &wire, FLAGS) & TRANSMIT_FULL, 0);
        bus::write(&mut View { port: &mut port, wire: &wire }, DATA, 1, (*byte).into());
        assert_ne!(read(&mut port, &wire, FLAGS) & TRANSMIT_EMPTY, 0);
    }
    assert_eq!(*wire.sent.lock().unwrap(), b"hello\n");
    assert!(port.take_wake());
    assert!(!port.take_wake());
}

#[test]
fn identification_is_that_of_a_pl011() {
    let (mut port, wire) = (Pl011::new(), Desk::default());
    let id = (0..4).fold(0, |all, i| all | read(&mut port, &wire, 0xfe0 + 4 * i) << (8 * i));
    assert_eq!(id & 0x000f_ffff, 0x0004_1011);
    let cell = (0..4).fold(0, |all, i| all | read(&mut port, &wire, 0xff0 + 4 * i) << (8 * i));
    assert_eq!(cell, 0xb105_f00d);
}

#[test]
fn polled_input_arrives_in_order() {
    let (mut port, wire) = (Pl011::new(), Desk::default());
    assert_eq!(read(&mut port, &wire, FLAGS) & RECEIVE_EMPTY, RECEIVE_EMPTY);
    typed(&wire, "ok");
    let mut got = Vec::new();
    while read(&mut port, &wire, FLAGS) & RECEIVE_EMPTY == 0 {
        got.push(read(&mut port, &wire, DATA) as u8);
    }
    assert_eq!(got, b"ok");
}

/// As Linux opens the port: FIFOs on, receive at half, interrupts on.
fn opened(wire: &Desk) -> Pl011 {
    let mut port = Pl011::new();
    write(&mut port, wire, LEVELS, 0x12);
    write(&mut port, wire, CLEAR, 0xffff);
    write(&mut port, wire, 0x30, 0x301);
    write(&mut port, wire, LINE_CONTROL, 0x70);
    write(&mut port, wire, MASK, RECEIVE | TIME_OUT);
    port
}

#[test]
fn a_key_press_raises_the_line_and_reading_it_lowers_it() {
    let wire = Desk::default();
    let mut port = opened(&wire);
    assert_eq!(port.level_change(), None);
    typed(&wire, "x");
    port.look(&wire);
    assert_eq!(port.level_change(), Some(true));
    assert_eq!(read(&mut port, &wire, MASKED_STATUS), TIME_OUT);
    assert_eq!(read(&mut port, &wire, DATA), u32::from(b'x'));
    assert_eq!(port.level_change(), Some(false));
}

#[test]
fn half_a_fifo_raises_the_receive_interrupt_and_nothing_is_lost_beyond_it() {
    let wire = Desk::default();
    let mut port = opened(&wire);
    let text: String = (0..100).map(|i| char::from(b'!' + i % 90)).collect();
    typed(&wire, &text);
    port.look(&wire);
    assert_eq!(read(&mut port, &wire, MASKED_STATUS), RECEIVE | TIME_OUT);
    assert_eq!(read(&mut port, &wire, FLAGS) & RECEIVE_FULL, RECEIVE_FULL);
    let mut got = String::new();
    while read(&mut port, &wire, FLAGS) & RECEIVE_EMPTY == 0 {
        got.push(read(&mut port, &wire, DATA) as u8 as char);
    }
    assert_eq!(got, text);
    assert_eq!(read(&mut port, &wire, MASKED_STATUS), 0);
}

#[test]
fn a_full_ring_holds_the_sender_until_there_is_room() {
    let wire = Desk::default();
    let mut port = opened(&wire);
    *wire.room.lock().unwrap() = Some(2);
    write(&mut port, &wire, MASK, TRANSMIT);
    write(&mut port, &wire, DATA, b'a'.into());
    assert_eq!(port.level_change(), Some(true), "the transmitter is empty at once");
    write(&mut port, &wire, DATA, b'b'.into());
    assert_eq!(read(&mut port, &wire, FLAGS) & TRANSMIT_FULL, TRANSMIT_FULL);
    assert_eq!(port.level_change(), Some(false));
    assert!(port.take_wake(), "the console must make room");
    *wire.room.lock().unwrap() = None;
    port.look(&wire);
    assert_eq!(port.level_change(), Some(true));
    write(&mut port, &wire, DATA, b'c'.into());
    assert_eq!(*wire.sent.lock().unwrap(), b"abc");
}

proptest::proptest! {
    #[test]
    fn no_access_makes_it_panic(
        accesses in proptest::collection::vec(
            (0u64..0x1000, 1u8..=8, proptest::option::of(proptest::num::u64::ANY)),
            1..60,
        ),
    ) {
        let (mut port, wire) = (Pl011::new(), Desk::default());
        typed(&wire, &"k".repeat(200));
        for (offset, width, value) in accesses {
            let mut view = View { port: &mut port, wire: &wire };
            match value {
                None => assert_eq!(bus::read(&mut view, offset, width) & !bus::bits(width), 0),
                Some(value) => bus::write(&mut view, offset, width, value),
            }
            assert!(port.count <= DEPTH);
        }
    }
}
