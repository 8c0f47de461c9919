// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two vCPUs whose exclusive accesses to one watched counter are played, in every order that a random schedule finds.

use super::*;
use crate::kind::Kind;

/// ldxr x1, [x2]; add x1, x1, #1; stxr w3, x1, [x2]; cbnz w3, the load.
const LOOP: [u32; 4] = [0xc85f_7c41, 0x9100_0421, 0xc803_7c41, 0x35ff_ffa3];
const ADDRESS: u64 = 0x4080_2040;

struct Vcpu {
    at: usize,
    x1: u64,
    left: u32,
    monitor: Monitor,
}

impl Vcpu {
    /// Until the next instruction of its that anybody else can see. Outside a sequence that is followed its exclusive store is
    /// forbidden, fails, and begins one.
    fn go(&mut self, memory: &mut u64) {
        let word = LOOP[self.at];
        let exclusive = match self.monitor.is_on() {
            true => match self.monitor.next(word) {
                Next::Access(exclusive) => Some(exclusive),
                Next::Step => None,
                Next::Over => return,
            },
            false => match Kind::of(word) {
                Some(Kind::Exclusive(exclusive)) => Some(exclusive),
                _ => None,
            },
        };
        match (self.at, exclusive) {
            (0, Some(exclusive)) => {
                if self.monitor.is_on() {
                    self.monitor.loaded(ADDRESS, exclusive.size(), [*memory, 0]);
                }
                self.x1 = *memory;
            }
            (1, None) => self.x1 += 1,
            (2, Some(exclusive)) => {
                let expected = self.monitor.is_on().then(|| self.monitor.store(ADDRESS, exclusive.size())).flatten();
                if expected == Some([*memory, 0]) {
                    *memory = self.x1;
                    self.left -= 1;
                    self.monitor.give_up();
                    self.at = 0;
                    return;
                }
                if !self.monitor.is_on() {
                    self.monitor = Monitor::begin(ADDRESS >> 12);
                }
            }
            (3, None) => {
                self.at = 0;
                return;
            }
            other => panic!("{other:?}"),
        }
        self.at += 1;
    }
}

proptest::proptest! {
    #[test]
    fn two_vcpus_count_exactly(schedule in proptest::collection::vec(proptest::bool::ANY, 1..400)) {
        let mut memory = 0;
        let mut vcpus = [(); 2].map(|()| Vcpu { at: 0, x1: 0, left: 20, monitor: Monitor::IDLE });
        let mut turns = schedule.iter().cycle();
        for turn in 0..100_000 {
            let one = usize::from(*turns.next().unwrap());
            // Alone, if the other has finished or is never asked.
            let one = if vcpus[one].left == 0 || turn > 20_000 && turn % 2 == 0 { 1 - one } else { one };
            if vcpus[one].left > 0 {
                vcpus[one].go(&mut memory);
            }
            if vcpus.iter().all(|vcpu| vcpu.left == 0) {
                break;
            }
        }
        proptest::prop_assert_eq!(memory, 40);
    }

    #[test]
    fn registers_and_memory_say_the_same(first: u64, second: u64, big: bool, size in 0u8..4, pair: bool) {
        let bytes = 1 << if pair { 2 | size & 1 } else { size };
        let exclusive = Exclusive { is_load: true, bytes, status: 31, first: 0, second: pair.then_some(1), base: 2 };
        let mask = u64::MAX >> (64 - 8 * u32::from(bytes));
        let memory = to_memory(&exclusive, [first, second], big);
        let back = to_registers(&exclusive, memory, big);
        proptest::prop_assert_eq!(back[0], first & mask);
        if pair {
            proptest::prop_assert_eq!(back[1], second & mask);
        }
    }
}

#[test]
fn a_store_elsewhere_fails_and_nothing_is_held_then() {
    let mut monitor = Monitor::begin(ADDRESS >> 12);
    monitor.loaded(ADDRESS, 3, [7, 0]);
    assert_eq!(monitor.store(ADDRESS + 8, 3), None);
    assert_eq!(monitor.store(ADDRESS, 3), None, "the first took it");
    monitor.loaded(ADDRESS, 3, [7, 0]);
    assert_eq!(monitor.store(ADDRESS, 2), None, "another size");
    monitor.loaded(ADDRESS, 3, [7, 0]);
    assert_eq!(monitor.next(0xd503_3f5f), Next::Step, "clrex");
    assert_eq!(monitor.store(ADDRESS, 3), None);
    monitor.loaded(ADDRESS, 3, [7, 0]);
    assert_eq!(monitor.store(ADDRESS, 3), Some([7, 0]));
}

#[test]
fn nobody_is_followed_for_ever_or_into_another_story() {
    let mut monitor = Monitor::begin(1);
    let steps = (0..1000).take_while(|_| monitor.next(0xd503_201f) == Next::Step).count();
    assert!((10..64).contains(&steps) && !monitor.is_on());
    for (word, text) in [
        (0xd400_0001u32, "svc"), (0xd400_0002, "hvc"), (0xd420_0000, "brk"), (0xd69f_03e0, "eret"), (0xd503_205f, "wfe"),
        (0xd503_207f, "wfi"),
    ] {
        let mut monitor = Monitor::begin(1);
        assert_eq!((monitor.next(word), monitor.is_on()), (Next::Over, false), "{text}");
    }
    let mut idle = Monitor::IDLE;
    assert_eq!(idle.next(0xd503_201f), Next::Over);
}
