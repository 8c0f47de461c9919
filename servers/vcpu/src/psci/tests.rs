// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of functions, and races.

use super::function::*;
use super::*;
use crate::fake::{Fake, MEMORY};
use trellis_idl::kernel::{Op, VcpuRegister};

const ENTRY: u64 = MEMORY + 0x1000;
const RAM: Memory = Memory { base: MEMORY, bytes: 1 << 20 };

fn booted(vcpus: u8) -> (Fake, Power) {
    let power = Power::new(vcpus, RAM);
    power.set(0, State::On);
    (Fake::new(vcpus.into()), power)
}

fn answer(power: &Power, system: &Fake, id: u32, arguments: [u64; 3]) -> i64 {
    match power.call(system, 0, id, arguments) {
        Some(Request::Answer(value)) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn facts_are_those_of_version_1_1() {
    let (system, power) = booted(1);
    assert_eq!(answer(&power, &system, VERSION, [0; 3]), 0x1_0001);
    assert_eq!(answer(&power, &system, MIGRATE_INFO_TYPE, [0; 3]), 2);
    assert_eq!(answer(&power, &system, CPU_SUSPEND | WIDE, [0; 3]), 0);
    assert_eq!(power.call(&system, 0, 0x8400_0005, [0; 3]), None);
    assert_eq!(power.call(&system, 0, VERSION | WIDE, [0; 3]), None);
    assert_eq!(power.call(&system, 0, SYSTEM_OFF, [0; 3]), Some(Request::SystemOff));
    assert_eq!(power.call(&system, 0, SYSTEM_RESET, [0; 3]), Some(Request::SystemReset));
}

#[test]
fn features_name_every_function_and_nothing_else() {
    let (system, power) = booted(1);
    let there = [
        VERSION, CPU_SUSPEND, CPU_SUSPEND | WIDE, CPU_OFF, CPU_ON, CPU_ON | WIDE, AFFINITY_INFO, AFFINITY_INFO | WIDE,
        MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES, 0x8000_0000,
    ];
    for id in (VERSION..VERSION + 0x20).flat_map(|id| [id, id | WIDE]).chain([0x8000_0000]) {
        let expected = if there.contains(&id) { 0 } else { -1 };
        assert_eq!(answer(&power, &system, FEATURES, [id.into(), 0, 0]), expected, "{id:#x}");
    }
}

#[test]
fn a_cpu_starts_where_it_is_told_with_its_context() {
    let (system, power) = booted(2);
    assert_eq!(answer(&power, &system, AFFINITY_INFO | WIDE, [1, 0, 0]), 1);
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0x77]), 0);
    assert_eq!(system.register(1, VcpuRegister::Pc), ENTRY);
    assert_eq!(system.register(1, VcpuRegister::X0), 0x77);
    assert_eq!(system.register(1, VcpuRegister::Pstate), 0x3c5);
    assert_eq!(system.register(1, VcpuRegister::Vmpidr), 0x8000_0001);
    assert!(system.state.lock().unwrap().running.contains(&1));
    assert_eq!(answer(&power, &system, AFFINITY_INFO | WIDE, [1, 0, 0]), 0);
    assert_eq!(power.on(), 0b11);
    power.call(&system, 1, CPU_OFF, [0; 3]);
    assert_eq!(power.on(), 0b01);
    power.set(1, State::On);
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), status::ALREADY_ON);
}

#[test]
fn wrong_requests_to_start_say_what_is_wrong() {
    let (system, power) = booted(2);
    for (arguments, expected) in [
        ([2, ENTRY, 0], status::INVALID_PARAMETERS),
        ([0x100, ENTRY, 0], status::INVALID_PARAMETERS),
        ([u64::MAX, ENTRY, 0], status::INVALID_PARAMETERS),
        ([1, ENTRY + 2, 0], status::INVALID_ADDRESS),
        ([1, MEMORY - 4, 0], status::INVALID_ADDRESS),
        ([1, MEMORY + (1 << 20), 0], status::INVALID_ADDRESS),
        ([0, ENTRY, 0], status::ALREADY_ON),
    ] {
        assert_eq!(answer(&power, &system, CPU_ON | WIDE, arguments), expected, "{arguments:x?}");
    }
    // The 32-bit form takes the low halves only.
    assert_eq!(answer(&power, &system, CPU_ON, [0xffff_ffff_0000_0001, ENTRY | 1 << 40, 0]), 0);
}

#[test]
fn a_cpu_that_the_kernel_will_not_start_is_off_again() {
    let (system, power) = booted(2);
    system.state.lock().unwrap().refuse = Some((Op::VcpuLaunch, Refusal::BadState));
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), status::ALREADY_ON);
    system.state.lock().unwrap().refuse = Some((Op::VcpuLaunch, Refusal::Quota));
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), status::INTERNAL_FAILURE);
    system.state.lock().unwrap().refuse = None;
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), 0);
}

#[test]
fn of_racing_callers_exactly_one_starts_the_cpu() {
    for _ in 0..200 {
        let (system, power) = booted(4);
        let together = std::sync::Barrier::new(3);
        let winners: usize = std::thread::scope(|scope| {
            let (system, power, together) = (&system, &power, &together);
            let racers = [0u8, 1, 2].map(|caller| {
                scope.spawn(move || {
                    together.wait();
                    power.call(system, caller, CPU_ON | WIDE, [3, ENTRY, caller.into()])
                })
            });
            let results = racers.map(|racer| racer.join().unwrap());
            assert!(results.iter().all(|result| {
                let losing = [status::ALREADY_ON, status::ON_PENDING].map(|status| Some(Request::Answer(status)));
                *result == Some(Request::Answer(0)) || losing.contains(result)
            }));
            results.iter().filter(|result| **result == Some(Request::Answer(0))).count()
        });
        assert_eq!((winners, system.count(Op::VcpuLaunch)), (1, 1));
    }
}

#[test]
fn an_off_cpu_can_be_started_again_and_levels_are_masks() {
    let (system, power) = booted(2);
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), 0);
    assert_eq!(power.call(&system, 1, CPU_OFF, [0; 3]), Some(Request::StopSelf));
    assert_eq!(answer(&power, &system, AFFINITY_INFO, [1, 0, 0]), 1);
    assert_eq!(answer(&power, &system, AFFINITY_INFO, [0, 1, 0]), 0);
    assert_eq!(answer(&power, &system, AFFINITY_INFO, [0, 4, 0]), status::INVALID_PARAMETERS);
    assert_eq!(answer(&power, &system, AFFINITY_INFO, [5, 0, 0]), status::INVALID_PARAMETERS);
    system.state.lock().unwrap().running.clear();
    assert_eq!(answer(&power, &system, CPU_ON | WIDE, [1, ENTRY, 0]), 0);
}

proptest::proptest! {
    #[test]
    fn no_call_makes_it_panic(
        ids in proptest::collection::vec(
            (proptest::num::u32::ANY, 0u32..64, proptest::array::uniform3(proptest::num::u64::ANY)),
            1..20,
        ),
    ) {
        let (system, power) = booted(2);
        for (any, near, arguments) in ids {
            power.call(&system, 0, any, arguments);
            power.call(&system, 1, VERSION + near, arguments);
        }
    }
}
