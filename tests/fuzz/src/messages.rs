// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages between servers and over the serial port, and the fixed words of the kernel's own.

use crate::plan::decoded;
use serde::Serialize;
use trellis_cli::names::Names;
use trellis_cli::report;
use trellis_idl::interface::HOST;
use trellis_idl::kernel::{Exit, Op, Refusal};
use trellis_idl::wire::{self, Crash, Fault, FrameKind, GuestEnd, P2mOp, Report, ToRoot, VcpuOp};

/// The first byte says which type the others are.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 3 {
        0 => {
            if let Some(report) = decoded::<Report>(bytes) {
                // Records of the trace go into the timeline without a word, and there may be none before a fault.
                let silent = matches!(report, Report::Trace { .. } | Report::Last { .. });
                let said = report::sentences(&report, &Names::default(), u64::from(*which / 3));
                assert!(silent || !said.is_empty());
            }
        }
        1 => drop(decoded::<ToRoot>(bytes)),
        _ => words(bytes),
    }
}

/// Registers as the kernel or another server left them.
fn words(bytes: &[u8]) {
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let words: [u64; 10] = std::array::from_fn(|_| words.next().unwrap_or_default());
    let exit = Exit::from_words(words);
    assert!(exit.header.register() < 32);
    assert!(Op::from_number(words[0] as u16).is_none_or(|op| op as u64 == words[0] & 0xffff));
    assert!(VcpuOp::from_number(words[0]).is_none_or(|op| op as u64 == words[0]));
    assert!(P2mOp::from_number(words[0]).is_none_or(|op| op as u64 == words[0]));
    assert!(FrameKind::from_number(words[0] as u8).is_none_or(|kind| kind as u8 == words[0] as u8));
    if let Err(refusal) = wire::from_answer(words[1]) {
        assert_eq!(wire::from_answer(wire::to_answer(Err(refusal))), Err(refusal));
    }
    if let Err(refusal) = Refusal::from_register(words[2]) {
        assert_eq!(Refusal::from_register(refusal.to_register()), Err(refusal));
    }
}

fn message(which: u8, value: &impl Serialize) -> Vec<u8> {
    [vec![which], postcard::to_stdvec(value).expect("it encodes")].concat()
}

/// One of each.
pub fn seeds() -> Vec<Vec<u8>> {
    let general = || (0..31u64).collect();
    let crash =
        Crash { vcpu: 1, class: 0, syndrome: 0x9200_0047, physical: 9, virtual_address: 8, pc: 7, pstate: 5, general: general() };
    let fault = Fault { syndrome: 1, address: 2, pc: 3, sp: 4, general: general() };
    let ends = [GuestEnd::Off, GuestEnd::Reset, GuestEnd::Status(3), GuestEnd::Crash(crash), GuestEnd::Server(2)];
    let mut reports = vec![
        Report::Started { boot_ticks: 1, clock_hz: 62_500_000, kernel_memory: 4096, version: HOST.version, schema: HOST.schema },
        Report::GuestRebooted { guest: 0, times: 2 },
        Report::ServerFaulted { server: 1, record: fault },
        Report::Off { well: true },
    ];
    reports.extend(ends.iter().cloned().map(|end| Report::GuestEnded { guest: 0, end }));
    let mut to_root: Vec<ToRoot> = ends.into_iter().map(ToRoot::Ended).collect();
    to_root.extend([ToRoot::Reset, ToRoot::Ready, ToRoot::Failed("no memory".try_into().expect("it is short"))]);
    let words: Vec<u8> = [2u64, 1 + Refusal::Gone as u64, Refusal::Quota.to_register()].iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut seeds: Vec<Vec<u8>> = reports.iter().map(|report| message(0, report)).collect();
    seeds.extend(to_root.iter().map(|note| message(1, note)));
    seeds.push([vec![2], words].concat());
    seeds
}
