// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading and starting.

use super::*;
use crate::fake::{Desk, Fake, MEMORY};
use trellis_idl::kernel::VcpuRegister;
use trellis_idl::plan::Part;

fn config(loads: &[Load]) -> VcpuConfig<'static> {
    VcpuConfig {
        watchers: 0,
        guest: "g",
        vcpus: 2,
        memory_base: MEMORY,
        memory_bytes: 1 << 20,
        loads: loads.iter().copied().collect(),
        entry: MEMORY + 0x80,
        x0: MEMORY + 0x9000,
        gic: 3,
        aarch32: false,
        bus: None,
    }
}

fn load(offset: u64, bytes: u64, address: u64) -> Load {
    Load { part: Part { offset, bytes }, address }
}

#[test]
fn parts_reach_memory_in_pieces_and_vcpu_0_its_entry() {
    let system = Fake::new(2);
    let payload: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).collect();
    let desk = Desk { payload: payload.clone(), ..Desk::default() };
    let config = config(&[load(4096, 150_000, MEMORY + 0x1234), load(0, 0, MEMORY)]);
    let mut is_on = false;
    assert_eq!(start(&system, &config, &desk, || is_on = true), Ok(()));
    assert!(is_on);
    let state = system.state.lock().unwrap();
    assert_eq!(state.memory[0x1234..0x1234 + 150_000], payload[4096..4096 + 150_000]);
    let (portal, words) = state.calls[0];
    assert_eq!((portal, words[0]), (slot::P2M + 2, P2mOp::PopulateAll as u64));
    let ranges: PageRanges = trellis_runtime::message::decode(&system, &words, 0).unwrap();
    assert_eq!(ranges, [PageRange { first: MEMORY / 4096 + 1, pages: 37 }]);
    assert_eq!(state.calls.len(), 1, "an empty part needs no pages");
    drop(state);
    assert_eq!(system.register(0, VcpuRegister::Pc), MEMORY + 0x80);
    assert_eq!(system.register(0, VcpuRegister::X0), MEMORY + 0x9000);
    assert_eq!(system.register(0, VcpuRegister::Pstate), 0x3c5);
    assert_eq!(system.register(0, VcpuRegister::Vmpidr), 0x8000_0000);
    assert_eq!(system.state.lock().unwrap().running.len(), 1);
}

#[test]
fn parts_that_lie_outside_are_refused() {
    let system = Fake::new(2);
    let desk = Desk { payload: vec![1; 8192], ..Desk::default() };
    for (wrong, refusal) in [
        (load(8000, 4096, MEMORY), Refusal::OutOfRange),
        (load(0, 4096, MEMORY - 4096), Refusal::OutOfRange),
        (load(0, 4096, MEMORY + (1 << 20) - 100), Refusal::OutOfRange),
        (load(0, 4096, u64::MAX - 10), Refusal::OutOfRange),
    ] {
        assert_eq!(start(&system, &config(&[wrong]), &desk, || ()), Err(refusal), "{wrong:x?}");
    }
    system.state.lock().unwrap().call_answer = 1 + Refusal::Quota as u64;
    assert_eq!(start(&system, &config(&[load(0, 64, MEMORY)]), &desk, || ()), Err(Refusal::Quota));
    assert!(system.state.lock().unwrap().running.is_empty());
}
