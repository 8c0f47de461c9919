// SPDX-License-Identifier: MIT OR Apache-2.0
//! What monitors hear of this guest's processor: which session hears what, and what is none of its events.
//!
//! Asked on the way of every exit that is not a device's, so what is asked first is one word, and nobody waits for whoever
//! changes it.

use crate::sysreg::{Encoding, Trapped, memory_register};
use crate::psci::is_power;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use trellis_idl::event::{EVENT_KINDS, EVENT_REGISTERS, EventKind, REQUEST, Wish};
use trellis_idl::kernel::{Exit, ExitClass, ExitHeader, Refusal, SESSIONS, Traps, VcpuRegister};
use trellis_idl::plan::MAX_VCPUS;
use trellis_runtime::{Shared, System};

/// Those of registers.
const REGISTERS: u32 = (1 << EVENT_REGISTERS) - 1;

/// Who hears what.
#[derive(Debug)]
pub struct Heard {
    any: AtomicU32,
    sessions: [AtomicU8; EVENT_KINDS],
    only_changes: AtomicU32,
    ignored: [AtomicU64; EVENT_REGISTERS],
    told: AtomicU32,
    /// Events that each vCPU has had; its thread alone counts them.
    events: [AtomicU64; MAX_VCPUS],
    /// The kinds of each session; held while they change.
    own: Shared<[u32; SESSIONS as usize]>,
}

impl Heard {
    /// Nobody hears anything.
    pub const fn new() -> Heard {
        Heard {
            any: AtomicU32::new(0),
            sessions: [const { AtomicU8::new(0) }; EVENT_KINDS],
            only_changes: AtomicU32::new(0),
            ignored: [const { AtomicU64::new(0) }; EVENT_REGISTERS],
            told: AtomicU32::new(0),
            events: [const { AtomicU64::new(0) }; MAX_VCPUS],
            own: Shared::new([0; SESSIONS as usize]),
        }
    }

    /// Whether anybody hears anything.
    #[inline(always)]
    pub fn is_quiet(&self) -> bool {
        self.any.load(Ordering::Relaxed) == 0
    }

    /// Which event an exit is, and whose; with the number that this vCPU's next one has.
    pub fn find(&self, exit: &Exit) -> Option<(EventKind, u8)> {
        let any = self.any.load(Ordering::Acquire);
        let is_heard = |kind: &EventKind| any & kind.bit() != 0;
        let [exact, other] = kinds(exit);
        let kind = exact.filter(is_heard).or_else(|| other.filter(is_heard))?;
        Some((kind, self.sessions[kind as usize].load(Ordering::Relaxed)))
    }

    /// Which event a hypercall is, and whose, if its session is told and not asked: [`Heard::find`] and [`Heard::is_told`] of
    /// one class of exits, in registers.
    #[inline(always)]
    pub fn told_call(&self, exit: &Exit) -> Option<(EventKind, u8)> {
        let any = self.any.load(Ordering::Acquire);
        let kind = call(exit).filter(|kind| any & kind.bit() != 0).unwrap_or(EventKind::Hypercall);
        let is_told = any & self.told.load(Ordering::Relaxed) & kind.bit() != 0;
        is_told.then(|| (kind, self.sessions[kind as usize].load(Ordering::Relaxed)))
    }

    /// Whose a kind is that no exit is.
    pub fn session_of(&self, kind: EventKind) -> Option<u8> {
        let is_heard = self.any.load(Ordering::Acquire) & kind.bit() != 0;
        is_heard.then(|| self.sessions[kind as usize].load(Ordering::Relaxed))
    }

    /// Whether its session is told, and not asked.
    pub fn is_told(&self, kind: EventKind) -> bool {
        self.told.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// The word that tells an event from this vCPU's others. One that is told again has it already.
    #[inline(always)]
    pub fn note(&self, kind: EventKind, vcpu: u8, exit: &Exit) -> u64 {
        if EventKind::of_note(exit.physical).is_some() {
            return exit.physical;
        }
        let count = &self.events[usize::from(vcpu) % MAX_VCPUS];
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Relaxed);
        kind.note(next)
    }

    /// Whether a register's write is an event. What changes nothing is one unless only changes are; what changes ignored
    /// bits alone is none.
    pub fn is_event(&self, kind: EventKind, old: u64, new: u64) -> bool {
        let Some(ignored) = self.ignored.get(kind as usize) else { return true };
        match old ^ new {
            0 => self.only_changes.load(Ordering::Relaxed) & kind.bit() == 0,
            changed => changed & !ignored.load(Ordering::Relaxed) != 0,
        }
    }

    /// A session hears this and nothing else from now on; `arm` makes that trap, and what others hear.
    pub fn listen(
        &self, system: &impl System, session: u8, wish: &Wish, arm: impl Fn(Traps) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut traps = self.choose(&mut *self.own.lock(system), session, wish)?;
        loop {
            arm(traps)?;
            // Nobody holds a lock while a vCPU is stopped: another session may have chosen meanwhile, and armed first.
            let now = traps_of(all_of(&*self.own.lock(system)));
            if now == traps {
                return Ok(());
            }
            traps = now;
        }
    }

    fn choose(&self, own: &mut [u32; SESSIONS as usize], session: u8, wish: &Wish) -> Result<Traps, Refusal> {
        let mine = own.get(usize::from(session)).copied().ok_or(Refusal::OutOfRange)?;
        // No kind is two sessions'.
        let others = all_of(own) & !mine;
        if others & wish.kinds != 0 {
            return Err(Refusal::Occupied);
        }
        // What is not heard any more goes first, so that its options are nobody's when they change.
        self.any.store(others | mine & wish.kinds, Ordering::Release);
        for kind in EventKind::ALL.into_iter().filter(|kind| wish.kinds & kind.bit() != 0) {
            self.sessions[kind as usize].store(session, Ordering::Relaxed);
            if let Some(ignored) = self.ignored.get(kind as usize) {
                ignored.store(wish.ignored[kind as usize], Ordering::Relaxed);
            }
        }
        let changes = self.only_changes.load(Ordering::Relaxed) & !wish.kinds | wish.only_changes & wish.kinds;
        self.only_changes.store(changes, Ordering::Relaxed);
        let told = self.told.load(Ordering::Relaxed) & !wish.kinds | wish.told;
        self.told.store(told, Ordering::Relaxed);
        if let Some(mine) = own.get_mut(usize::from(session)) {
            *mine = wish.kinds;
        }
        self.any.store(others | wish.kinds, Ordering::Release);
        Ok(traps_of(others | wish.kinds))
    }
}

/// What any session hears.
fn all_of(own: &[u32; SESSIONS as usize]) -> u32 {
    own.iter().fold(0, |all, kinds| all | kinds)
}

/// What must trap so that these are exits at all.
fn traps_of(kinds: u32) -> Traps {
    let breakpoints = EventKind::Breakpoint.bit() | EventKind::Debug.bit();
    let part = |these: u32, traps: Traps| if kinds & these != 0 { traps.0 } else { 0 };
    Traps(part(breakpoints, Traps::BREAKPOINT) | part(REGISTERS, Traps::MEMORY_REGISTERS))
}

/// What an exit is, the more exact name first.
fn kinds(exit: &Exit) -> [Option<EventKind>; 2] {
    match exit.header.class() {
        Some(ExitClass::Register) => [Trapped::from_syndrome(exit.syndrome).and_then(of_register), None],
        Some(ExitClass::Hypercall) => [call(exit), Some(EventKind::Hypercall)],
        Some(ExitClass::Firmware) => [call(exit), Some(EventKind::Firmware)],
        Some(ExitClass::Debug) if exit.header.has(ExitHeader::STEPPED) => [None; 2],
        // BRK of 64-bit code (Arm ARM D24.2.40).
        Some(ExitClass::Debug) if exit.syndrome >> 26 & 0x3f == 0x3c => [Some(EventKind::Breakpoint), None],
        Some(ExitClass::Debug) => [Some(EventKind::Debug), None],
        _ => [None; 2],
    }
}

#[inline(always)]
fn call(exit: &Exit) -> Option<EventKind> {
    match exit.general[0] as u32 {
        // The instruction's own number is zero (SMCCC 2.9).
        _ if exit.syndrome as u16 != 0 => None,
        id if id == REQUEST as u32 => Some(EventKind::Request),
        id if is_power(id) => Some(EventKind::Power),
        _ => None,
    }
}

fn of_register(trapped: Trapped) -> Option<EventKind> {
    match (trapped.is_read, trapped.register.fields()) {
        (true, (3, 0, 0, 1..=7, _)) => Some(EventKind::Identity),
        (true, _) => None,
        (false, _) => register(trapped.register).map(|(kind, _)| kind),
    }
}

/// The kind of a register's writes, and the register.
pub fn register(name: Encoding) -> Option<(EventKind, VcpuRegister)> {
    let register = memory_register(name)?;
    let kind = match register {
        VcpuRegister::SctlrEl1 => EventKind::SystemControl,
        VcpuRegister::Ttbr0El1 => EventKind::Tables0,
        VcpuRegister::Ttbr1El1 => EventKind::Tables1,
        VcpuRegister::TcrEl1 => EventKind::Translation,
        VcpuRegister::MairEl1 => EventKind::Attributes,
        VcpuRegister::ContextidrEl1 => EventKind::Context,
        _ => return None,
    };
    Some((kind, register))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POWER: u64 = 0x8400_0002;

    #[test]
    fn the_short_way_of_calls_finds_what_the_long_one_does() {
        let system = crate::fake::Fake::new(1);
        let calls = [EventKind::Request, EventKind::Power, EventKind::Hypercall, EventKind::Firmware];
        let chosen = |bits: u32| calls.iter().enumerate().filter(move |(place, _)| bits >> place & 1 != 0).fold(0, |all, (_, kind)| all | kind.bit());
        let mut told = 0;
        for (kinds, half) in (0..16).flat_map(|kinds| (0..16).map(move |half| (kinds, half & kinds))) {
            let heard = Heard::new();
            let wish = Wish { kinds: chosen(kinds), told: chosen(half), ..Wish::default() };
            heard.listen(&system, 3, &wish, |_| Ok(())).expect("nobody else hears");
            for (id, syndrome) in [REQUEST, POWER, 0xc600_0000, 0].into_iter().flat_map(|id| [(id, 0), (id, 7)]) {
                let header = ExitHeader(ExitClass::Hypercall as u64);
                let exit = Exit { header, syndrome, general: [id, 0, 0, 0], ..Exit::default() };
                let long = heard.find(&exit).filter(|(kind, _)| heard.is_told(*kind));
                assert_eq!(heard.told_call(&exit), long, "{kinds:#b} {half:#b} {id:#x} {syndrome}");
                told += usize::from(long.is_some());
            }
        }
        assert!(told > 100, "{told}: otherwise nothing was compared");
    }
}
