// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that are live on one CPU and wanted by another, in every order that memory allows: what is wanted goes to
//! the CPU that has them as an errand, and what that CPU put into memory is seen whole by the one that asked.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use std::sync::atomic::Ordering;
use trellis_core::errand::{Errand, Errands, Word};
use trellis_core::float::{Owner, Registers, State};

/// A word with the orderings of the kernel's, or (`RELAXED`) with none.
struct Shared<const RELAXED: bool>(AtomicU64);

impl<const RELAXED: bool> Shared<RELAXED> {
    fn new() -> Self {
        Shared(AtomicU64::new(0))
    }

    fn order() -> Ordering {
        if RELAXED { Ordering::Relaxed } else { Ordering::AcqRel }
    }
}

impl<const RELAXED: bool> Word for Shared<RELAXED> {
    fn set(&self, bits: u64) -> u64 {
        self.0.fetch_or(bits, Self::order())
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Self::order())
    }

    fn take_only(&self, bits: u64) -> bool {
        self.0.compare_exchange(bits, 0, Self::order(), Ordering::Relaxed).is_ok()
    }
}

const OWNER: Owner = Owner::Vcpu(0x1_0000_0001);
/// Times that the guest writes its registers.
const WRITES: u64 = 2;

/// A vCPU: its side of the record, and its save area. Reached only by the CPU that has it.
struct Vcpu {
    state: State,
    area: [u64; 2],
}

/// Two CPUs' errands, and the vCPU that moves from one to the other.
struct System<const RELAXED: bool> {
    errands: [Errands<Shared<RELAXED>>; 2],
    vcpu: UnsafeCell<Vcpu>,
}

impl<const RELAXED: bool> System<RELAXED> {
    fn new() -> Self {
        let errands = || Errands::of(Shared::new(), Shared::new(), Shared::new());
        System { errands: [errands(), errands()], vcpu: UnsafeCell::new(Vcpu { state: State::new(2, 5), area: [0; 2] }) }
    }

    /// CPU 1, where the guest runs: between two of its writes, and after the last, it looks what others want.
    fn home(&self) {
        let mut registers = Registers::NEW;
        let mut hardware = [0; 2];
        for value in 1..=WRITES {
            // SAFETY: loom fails the test if another CPU is there at the same time.
            self.vcpu.with_mut(|vcpu| unsafe {
                if !registers.hold(1, OWNER, &(*vcpu).state) {
                    hardware = (*vcpu).area;
                    registers.take(1, OWNER, &mut (*vcpu).state);
                }
            });
            hardware = [value; 2];
            if self.errands[1].take().askers & 1 != 0 {
                return self.flush(&mut registers, hardware);
            }
        }
        while self.errands[1].take().askers & 1 == 0 {
            thread::yield_now();
        }
        self.flush(&mut registers, hardware);
    }

    /// The state goes to memory; whoever asked is told.
    fn flush(&self, registers: &mut Registers, hardware: [u64; 2]) {
        // SAFETY: as above.
        self.vcpu.with_mut(|vcpu| unsafe {
            assert!(registers.give(1, OWNER, &mut (*vcpu).state), "it was live here");
            (*vcpu).area = hardware;
            assert!(!registers.hold(1, OWNER, &(*vcpu).state));
        });
        self.errands[0].leave(Errand::Answer);
    }

    /// CPU 0, which wants the vCPU: afterwards it is its own.
    fn elsewhere(&self) {
        self.errands[1].leave(Errand::Request(0));
        while !self.errands[0].take().answered {
            thread::yield_now();
        }
        let mut registers = Registers::NEW;
        // SAFETY: as above.
        self.vcpu.with_mut(|vcpu| unsafe {
            assert!(!(*vcpu).state.is_away(), "it is in memory");
            let [low, high] = (*vcpu).area;
            assert!(low == high && (1..=WRITES).contains(&low), "whole, and what the guest wrote");
            registers.take(0, OWNER, &mut (*vcpu).state);
            assert!(registers.hold(0, OWNER, &(*vcpu).state));
        });
    }
}

fn explore<const RELAXED: bool>() {
    loom::model(|| {
        let system = Arc::new(System::<RELAXED>::new());
        let other = system.clone();
        let home = thread::spawn(move || other.home());
        system.elsewhere();
        home.join().expect("the home CPU ends");
    });
}

#[test]
fn live_registers_reach_another_cpu_whole_in_every_order() {
    explore::<false>();
}

#[test]
#[should_panic]
fn without_order_between_the_words_the_model_finds_the_mistake() {
    explore::<true>();
}
