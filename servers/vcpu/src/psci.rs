// SPDX-License-Identifier: MIT OR Apache-2.0
//! PSCI 1.1 (DEN 0022D): which vCPUs run, and the guest's power switch. `hypercall.rs` brings the calls.
//!
//! A vCPU's state is one atomic word: of several callers that want to start one vCPU, the one that takes it from off
//! to pending does.

use core::sync::atomic::{AtomicU8, Ordering};
use trellis_idl::kernel::Refusal;
use trellis_idl::layout::slot;
use trellis_idl::plan::MAX_VCPUS;
use trellis_runtime::{System, Vcpu};

/// Function numbers, without the bit that says 64-bit arguments.
pub mod function {
    /// Which version of this interface.
    pub const VERSION: u32 = 0x8400_0000;
    /// The caller waits for an interrupt, or sleeps deeper.
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    /// The caller goes off.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// Another CPU starts at an entry.
    pub const CPU_ON: u32 = 0x8400_0003;
    /// Whether a CPU runs.
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    /// Whether a trusted system sits on one CPU.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// The machine goes off.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// The machine starts anew.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// Whether a function exists.
    pub const FEATURES: u32 = 0x8400_000a;
    /// The 64-bit form of a function.
    pub const WIDE: u32 = 0x4000_0000;
}

/// Return values.
pub mod status {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// There is no such function.
    pub const NOT_SUPPORTED: i64 = -1;
    /// No such CPU, or no such level.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// The CPU runs.
    pub const ALREADY_ON: i64 = -4;
    /// Somebody is starting it.
    pub const ON_PENDING: i64 = -5;
    /// The kernel refused.
    pub const INTERNAL_FAILURE: i64 = -6;
    /// Nothing can start there.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// PSCI 1.1.
const VERSION_1_1: i64 = 0x1_0001;
/// There is no trusted system to move.
const NO_MIGRATION: i64 = 2;
/// Of an MPIDR, the bits that name a CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Whether a vCPU runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// It runs.
    On = 0,
    /// It does not.
    Off = 1,
    /// Somebody is starting it.
    Pending = 2,
}

/// Whether a function switches a vCPU or the whole guest on or off.
pub const fn is_power(id: u32) -> bool {
    use function::*;
    matches!(id & !WIDE, CPU_ON) || matches!(id, CPU_OFF | SYSTEM_OFF | SYSTEM_RESET)
}

/// What a call asks to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Nothing more: this is the answer.
    Answer(i64),
    /// The calling vCPU stops.
    StopSelf,
    /// The guest is off.
    SystemOff,
    /// The guest starts anew.
    SystemReset,
}

/// Who is told what becomes of vCPUs. What it is told of a vCPU that is not the caller happens while nobody else can switch that one.
pub trait Switched {
    /// It is about to run.
    fn starts(&self, vcpu: u8, entry: u64, x0: u64);
    /// It does not run any more, or not after all.
    fn stops(&self, vcpu: u8);
}

/// Nobody is told.
impl Switched for () {
    fn starts(&self, _: u8, _: u64, _: u64) {}
    fn stops(&self, _: u8) {}
}

/// The guest's memory, where every CPU must start.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Power states of a guest's vCPUs.
#[derive(Debug)]
pub struct Power {
    states: [AtomicU8; MAX_VCPUS],
    vcpus: u8,
    memory: Memory,
}

impl Power {
    /// All off.
    pub const fn new(vcpus: u8, memory: Memory) -> Power {
        Power { states: [const { AtomicU8::new(State::Off as u8) }; MAX_VCPUS], vcpus, memory }
    }

    /// All off again.
    pub fn reset(&self) {
        for state in &self.states {
            state.store(State::Off as u8, Ordering::Release);
        }
    }

    /// Says what a vCPU is now.
    pub fn set(&self, vcpu: u8, state: State) {
        if let Some(word) = self.states.get(usize::from(vcpu)) {
            word.store(state as u8, Ordering::Release);
        }
    }

    /// vCPUs that are not off: a bit each.
    pub fn on(&self) -> u64 {
        let is_on = |state: &AtomicU8| state.load(Ordering::Acquire) != State::Off as u8;
        (0..).zip(&self.states).filter(|(_, state)| is_on(state)).fold(0, |bits, (index, _)| bits | 1u64 << index)
    }

    /// A call of which nobody is told.
    #[cfg(test)]
    fn call(&self, system: &impl System, caller: u8, id: u32, arguments: [u64; 3]) -> Option<Request> {
        self.call_telling(system, caller, id, arguments, &())
    }

    /// A call from vCPU `caller`; `None` = no function of PSCI.
    pub fn call_telling(
        &self, system: &impl System, caller: u8, id: u32, arguments: [u64; 3], switched: &impl Switched,
    ) -> Option<Request> {
        let is_wide = id & function::WIDE != 0;
        let [first, second, third] = if is_wide { arguments } else { arguments.map(|word| word & 0xffff_ffff) };
        use function::*;
        Some(match (id & !WIDE, is_wide) {
            (VERSION, false) => Request::Answer(VERSION_1_1),
            // Stand-by may end at once for any reason, and power-down may be taken for stand-by (5.4.4).
            (CPU_SUSPEND, _) => Request::Answer(status::SUCCESS),
            (CPU_OFF, false) => {
                // Before it is off: whoever starts it again tells of that afterwards.
                switched.stops(caller);
                self.set(caller, State::Off);
                Request::StopSelf
            }
            (CPU_ON, _) => Request::Answer(self.start(system, [first, second, third], switched)),
            (AFFINITY_INFO, _) => Request::Answer(self.affinity(first, second)),
            (MIGRATE_INFO_TYPE, false) => Request::Answer(NO_MIGRATION),
            (SYSTEM_OFF, false) => Request::SystemOff,
            (SYSTEM_RESET, false) => Request::SystemReset,
            (FEATURES, false) => Request::Answer(features(first as u32)),
            _ => return None,
        })
    }

    /// CPU_ON: exactly one of several callers gets it done.
    fn start(&self, system: &impl System, [target, entry, context]: [u64; 3], switched: &impl Switched) -> i64 {
        let Some(index) = self.index(target) else { return status::INVALID_PARAMETERS };
        let Some(state) = self.states.get(usize::from(index)) else { return status::INVALID_PARAMETERS };
        let inside = entry.checked_sub(self.memory.base).is_some_and(|offset| offset < self.memory.bytes);
        if entry & 3 != 0 || !inside {
            return status::INVALID_ADDRESS;
        }
        let (off, pending) = (State::Off as u8, State::Pending as u8);
        match state.compare_exchange(off, pending, Ordering::AcqRel, Ordering::Acquire) {
            Err(found) if found == pending => status::ON_PENDING,
            Err(_) => status::ALREADY_ON,
            Ok(_) => match enter(system, index, entry, context, || self.begins(index, entry, context, switched)) {
                Ok(()) => status::SUCCESS,
                Err(refusal) => {
                    switched.stops(index);
                    self.set(index, State::Off);
                    // It has said CPU_OFF and is still on its way out: to the caller it is on.
                    if refusal == Refusal::BadState { status::ALREADY_ON } else { status::INTERNAL_FAILURE }
                }
            },
        }
    }

    /// A vCPU is about to run.
    pub fn begins(&self, index: u8, entry: u64, x0: u64, switched: &impl Switched) {
        switched.starts(index, entry, x0);
        self.set(index, State::On);
    }

    /// AFFINITY_INFO: on if any CPU that the level leaves is on.
    fn affinity(&self, target: u64, level: u64) -> i64 {
        let mask = match level {
            0 => AFFINITY,
            1 => AFFINITY & !0xff,
            2 => AFFINITY & !0xffff,
            3 => AFFINITY & !0xff_ffff,
            _ => return status::INVALID_PARAMETERS,
        };
        if target & !AFFINITY != 0 {
            return status::INVALID_PARAMETERS;
        }
        let states = self.states.iter().take(self.vcpus.into());
        let named = states.zip(0u64..).filter(|(_, number)| (number ^ target) & mask == 0);
        // On (0) is less than off (1) is less than pending (2).
        let least = named.map(|(state, _)| state.load(Ordering::Acquire)).min();
        least.map_or(status::INVALID_PARAMETERS, i64::from)
    }

    /// The vCPU with this affinity.
    fn index(&self, target: u64) -> Option<u8> {
        u8::try_from(target).ok().filter(|index| *index < self.vcpus)
    }
}

/// PSCI_FEATURES: what a function can; SMCCC_VERSION is asked for here too.
fn features(id: u32) -> i64 {
    use function::*;
    let both = [CPU_SUSPEND, CPU_ON, AFFINITY_INFO];
    let narrow = [VERSION, CPU_OFF, MIGRATE_INFO_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES, crate::hypercall::SMCCC_VERSION];
    if both.contains(&(id & !WIDE)) || narrow.contains(&id) { status::SUCCESS } else { status::NOT_SUPPORTED }
}

/// Puts a stopped vCPU at an entry as after reset and lets it run; `on` is called just before: once it runs, it must not
/// find itself off. Reset leaves it at EL1h with everything masked and its affinity as it was made.
pub fn enter(system: &impl System, index: u8, entry: u64, x0: u64, on: impl FnOnce()) -> Result<(), Refusal> {
    on();
    Vcpu::at(slot::VCPU + u64::from(index)).launch(system, entry, x0)
}

#[cfg(test)]
mod tests;
