// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events: exits that somebody wants to hear of before they are answered here (`heard.rs`), and how each is answered when
//! it has been heard, for whoever decides that and knows no machine ([`VcpuOp::Complete`](trellis_idl::wire::VcpuOp::Complete)).

use crate::access::Trouble;
use crate::heard::register;
use crate::psci::{Switched, status};
use crate::server::{Outside, UNDEFINED, VcpuServer, Verdict, class_of, past, vcpu_at};
use crate::sysreg::Trapped;
use crate::watched::{Said, Stopped};
use trellis_idl::event::{EventKind, Injected, REQUEST, Wish};
use trellis_idl::kernel::{Answer, Exit, ExitClass, ExitHeader, Refusal, Traps, VcpuRegister, WORDS};
use trellis_idl::layout::{badge as badges, slot};
use trellis_idl::wire::Order;
use trellis_runtime::{Guest, Reply, System, Vcpu};

/// ESR_EL1 of BRK: class 0x3c, 32-bit instruction (Arm ARM D24.2.40).
const BREAKPOINT: u64 = 0x3c << 26 | 1 << 25;
/// Fault status: synchronous external abort, not on a table walk; bit 10: the fault address is not valid (Arm ARM D24.2.40).
const EXTERNAL: u64 = 0x10;
const NO_ADDRESS: u64 = 1 << 10;

/// Who is asked about an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hearing {
    /// Nobody: it is answered as any.
    Unasked,
    /// The session in this slot.
    Asked(u64),
    /// Nobody, and there is nothing to do.
    Answered,
}

impl<O: Outside> VcpuServer<'_, O> {
    /// Whether a hypercall is a request of which a monitor is told: then that is done, and the guest goes on. In registers, as
    /// what tells most tells often.
    #[inline(always)]
    pub(crate) fn is_told(&self, system: &impl System, index: u8, exit: &Exit) -> bool {
        let Some((kind @ EventKind::Request, session)) = self.heard.told_call(exit) else { return false };
        let number = self.heard.note(kind, index, exit);
        self.tells.tell(system, session, index.into(), number, Exit { physical: number, ..*exit }.to_words());
        true
    }

    /// Whether somebody hears of an exit, which then says which event it is.
    #[cold]
    #[inline(never)]
    pub(crate) fn event(&self, system: &impl System, index: u8, exit: &mut Exit) -> Hearing {
        let Some((kind, session)) = self.heard.find(exit) else { return Hearing::Unasked };
        if let (true, Some(trapped)) = (kind.is_register(), Trapped::from_syndrome(exit.syndrome)) {
            let Some((_, written)) = register(trapped.register) else { return Hearing::Unasked };
            // One that cannot be read is as good as zero: that something is written is told in any case.
            let old = vcpu_at(index).get(system, written).unwrap_or(0);
            if !self.heard.is_event(kind, old, trapped.written(exit.value)) {
                return Hearing::Unasked;
            }
            exit.virtual_address = old;
        }
        exit.physical = self.heard.note(kind, index, exit);
        if !self.heard.is_told(kind) {
            return Hearing::Asked(slot::SESSION + u64::from(session));
        }
        self.tells.tell(system, session, index.into(), exit.physical, exit.to_words());
        // Nobody but a monitor answers a request, and this one answers nothing.
        if kind == EventKind::Request { Hearing::Answered } else { Hearing::Unasked }
    }

    /// Nobody need be asked: the event is answered as if nobody had wanted to hear of it.
    pub(crate) fn unheard(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        let index = badges::index(badge);
        let (answer, value) = match self.complete(system, index, exit, Order::Do, 0, exit.physical) {
            Ok(said) => said,
            Err(_) => (self.crashed(system, index, exit).answer, 0),
        };
        Reply::Value(answer, value)
    }

    /// A monitor hears this from now on.
    pub(crate) fn listen(&self, system: &impl System, badge: u64, words: &[u64; WORDS]) -> Result<(), Refusal> {
        let [_, a, b, c, d, e, f, g, h, _] = *words;
        let wish = Wish::from_words([a, b, c, d, e, f, g, h])?;
        self.heard.listen(system, badges::session(badge), &wish, |traps| {
            (0..self.vcpus()).try_for_each(|index| arm(system, vcpu_at(index), traps))
        })
    }

    /// How to answer an event: see [`Order`]. Asked again for the same one it says the same, and does nothing.
    pub fn complete(
        &self, system: &impl System, index: u8, exit: &Exit, order: Order, value: u64, number: u64,
    ) -> Result<Said, Refusal> {
        let local = self.local(index).ok_or(Refusal::OutOfRange)?;
        if let Some(said) = local.lock(system).watched.said(number) {
            return Ok(said);
        }
        let is_memory = exit.header.class() == Some(ExitClass::Memory);
        let said = match order {
            Order::Inject => self.inject(system, index, exit, Injected::from_number(value).ok_or(Refusal::BadArgument)?),
            _ if is_memory => {
                let on = Stopped { system, guest: Guest::at(slot::GUEST), vcpu: vcpu_at(index) };
                local.lock(system).watched.complete(&on, exit, order, value).map_err(refusal)
            }
            Order::Do => self.carry_out(system, index, exit),
            Order::Deny => leave_out(exit, None),
            Order::Give => leave_out(exit, Some(value)),
        }?;
        local.lock(system).watched.remember(number, said);
        Ok(said)
    }

    /// What the guest tried is done, as if nobody had heard of it.
    fn carry_out(&self, system: &impl System, index: u8, told: &Exit) -> Result<Said, Refusal> {
        let (vcpu, mut exit) = (vcpu_at(index), *told);
        match exit.header.class() {
            Some(ExitClass::Register) => {
                let trapped = Trapped::from_syndrome(exit.syndrome).ok_or(Refusal::BadArgument)?;
                if !trapped.is_read && trapped.general != 31 {
                    exit.value = vcpu.get_general(system, trapped.general)?;
                }
            }
            Some(ExitClass::Hypercall | ExitClass::Firmware) => {
                for (number, general) in (0..).zip(&mut exit.general) {
                    *general = vcpu.get_general(system, number)?;
                }
                if EventKind::of_note(exit.physical) == Some(EventKind::Request) && exit.general[0] as u32 == REQUEST as u32 {
                    return Ok((past(&exit).register(0), 0));
                }
            }
            Some(ExitClass::Debug) if !exit.header.has(ExitHeader::STEPPED) => {}
            _ => return Err(Refusal::BadArgument),
        }
        exit.physical = 0;
        let Verdict { answer, value } = self.other(system, index, exit);
        Ok((answer, value))
    }

    /// The guest gets an exception where it stands.
    fn inject(&self, system: &impl System, index: u8, exit: &Exit, what: Injected) -> Result<Said, Refusal> {
        let vcpu = vcpu_at(index);
        if exit.header.class() == Some(ExitClass::Hypercall) {
            // It stands behind the instruction already.
            let pc = vcpu.get(system, VcpuRegister::Pc)?;
            vcpu.set(system, VcpuRegister::Pc, pc.wrapping_sub(4))?;
        }
        let (syndrome, address) = match what {
            Injected::Breakpoint => (BREAKPOINT, 0),
            Injected::Abort if exit.header.class() == Some(ExitClass::Memory) => abort(exit),
            Injected::Abort | Injected::Undefined => (UNDEFINED, 0),
        };
        vcpu.exception(system, syndrome, address)?;
        Ok((Answer::RETRY, 0))
    }
}

/// Tells whoever hears it what becomes of vCPUs, by the rings of those that switch them: of their own where they start, for nobody
/// else uses the ring of a vCPU that is off.
pub(crate) struct Telling<'a, 'b, O, S> {
    server: &'a VcpuServer<'b, O>,
    system: &'a S,
}

impl<'b, O: Outside> VcpuServer<'b, O> {
    /// For what becomes of this guest's vCPUs.
    pub(crate) fn telling_of<'a, S: System>(&'a self, system: &'a S) -> Telling<'a, 'b, O, S> {
        Telling { server: self, system }
    }

    /// The guest has ended by what one vCPU did, and every other has been stopped.
    #[cold]
    pub(crate) fn all_stop(&self, system: &impl System, caller: u8) {
        let (on, telling) = (self.on(), self.telling_of(system));
        // Others' threads may be in the middle of telling something: their rings are their own.
        (0..self.vcpus()).filter(|vcpu| on >> vcpu & 1 == 1).for_each(|vcpu| telling.stopped(caller, vcpu));
    }
}

impl<O: Outside, S: System> Telling<'_, '_, O, S> {
    fn stopped(&self, ring: u8, vcpu: u8) {
        let pc = vcpu_at(vcpu).get(self.system, VcpuRegister::Pc).unwrap_or(0);
        self.tell(EventKind::Stop, (ring, vcpu), (pc, 0));
    }

    #[cold]
    fn tell(&self, kind: EventKind, (ring, vcpu): (u8, u8), (pc, x0): (u64, u64)) {
        let Some(session) = self.server.heard.session_of(kind) else { return };
        let header = ExitHeader(ExitClass::Hypercall as u64);
        let mut exit = Exit { header, virtual_address: vcpu.into(), pc, general: [x0, 0, 0, 0], ..Exit::default() };
        exit.physical = self.server.heard.note(kind, ring, &exit);
        self.server.tells.tell(self.system, session, ring.into(), exit.physical, exit.to_words());
    }
}

impl<O: Outside, S: System> Switched for Telling<'_, '_, O, S> {
    fn starts(&self, vcpu: u8, entry: u64, x0: u64) {
        self.tell(EventKind::Start, (vcpu, vcpu), (entry, x0));
    }

    fn stops(&self, vcpu: u8) {
        self.stopped(vcpu, vcpu);
    }
}

/// Times that a vCPU is paused to change what traps in it: another thread here may end the pause for its own reasons.
const PAUSES: u32 = 8;

/// Changes what traps in a vCPU. While it runs: for a moment it does not, and nobody inside sees that.
fn arm(system: &impl System, vcpu: Vcpu, traps: Traps) -> Result<(), Refusal> {
    let mut done = vcpu.set_traps(system, traps);
    for _ in 0..PAUSES {
        if done != Err(Refusal::BadState) {
            break;
        }
        vcpu.pause(system)?;
        done = vcpu.set_traps(system, traps);
        vcpu.resume(system)?;
    }
    done
}

/// Why a memory access cannot be completed, to whoever asked.
fn refusal(trouble: Trouble) -> Refusal {
    match trouble {
        Trouble::Refused(refusal) => refusal,
        Trouble::Walk(_) | Trouble::NoInstruction => Refusal::NotMapped,
        _ => Refusal::Unsupported,
    }
}

/// It has no effect: registers are as if it had, and a read finds this, or zero; a call finds this, or that there is no such.
fn leave_out(exit: &Exit, value: Option<u64>) -> Result<Said, Refusal> {
    match exit.header.class() {
        Some(ExitClass::Register) => {
            let trapped = Trapped::from_syndrome(exit.syndrome).ok_or(Refusal::BadArgument)?;
            let moved = if trapped.is_read { Answer::RETRY.register(trapped.general) } else { Answer::RETRY };
            Ok((past(exit).with(moved), value.filter(|_| trapped.is_read).unwrap_or(0)))
        }
        Some(ExitClass::Hypercall | ExitClass::Firmware) => {
            Ok((past(exit).register(0), value.unwrap_or(status::NOT_SUPPORTED as u64)))
        }
        Some(ExitClass::Debug) if class_of(exit.syndrome) == 0x3c => Ok((Answer::ADVANCE, 0)),
        // A breakpoint that is not delivered comes again for ever.
        Some(ExitClass::Debug) => Err(Refusal::Unsupported),
        _ => Err(Refusal::BadArgument),
    }
}

/// ESR_EL1 and FAR_EL1 of an access or a fetch that went wrong outside: classes 0x20 and 0x24 from the user level, the odd ones
/// from its own; WnR as it was (Arm ARM D24.2.40).
fn abort(exit: &Exit) -> (u64, u64) {
    let header = exit.header;
    let is_fetch = header.has(ExitHeader::FETCH);
    let class = if is_fetch { 0x20 } else { 0x24 } | u64::from(!header.has(ExitHeader::USER));
    let write = if is_fetch { 0 } else { exit.syndrome & 1 << 6 };
    let (address, unknown) = match header.has(ExitHeader::VIRTUAL_VALID) {
        true => (exit.virtual_address, 0),
        false => (0, NO_ADDRESS),
    };
    (class << 26 | 1 << 25 | write | unknown | EXTERNAL, address)
}

#[cfg(test)]
mod tests;
