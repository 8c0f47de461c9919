// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watched accesses: how an exit is answered so that the access is carried out, or seems to have been, for whoever decides
//! that and knows no machine ([`VcpuOp::Complete`](trellis_idl::wire::VcpuOp::Complete)).
//!
//! Most are carried out by one step in view 0, whatever the instruction is. Exclusive ones are done here
//! (`exclusive.rs`), with the vCPU followed from one to the next, and so are those whose execution is watched; denied ones change registers alone (`complete.rs`).

use crate::access::{Registers, Trouble, instruction, read, translate, walk};
use crate::complete::{Operand, Register, denied};
use crate::exclusive::{Monitor, Next, to_memory, to_registers};
use crate::kind::{Exclusive, Kind};
use trellis_idl::kernel::{Answer, Exit, ExitHeader, Refusal, VcpuRegister, float_register};
use trellis_idl::wire::Order;
use trellis_runtime::stage1::{Translation, Use, User};
use trellis_runtime::{Guest, System, Vcpu};

/// What an answer changes, and the one word that it moves.
pub type Said = (Answer, u64);

/// It is carried out by one step in the host map.
const STEPPED_OVER: Said = (Answer::RETRY.step(0), 0);

/// What one vCPU's watched accesses leave behind.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    monitor: Monitor,
    /// The exit that was completed last, and what was said.
    last: Option<(u64, Answer, u64)>,
    /// The page of the instruction whose execution was watched last, virtual; [`NO_PAGE`] = another kind of access was.
    code: u64,
}

/// No address is in this page.
const NO_PAGE: u64 = u64::MAX;

impl Watched {
    /// Nothing.
    pub const fn new() -> Watched {
        Watched { monitor: Monitor::IDLE, last: None, code: NO_PAGE }
    }

    /// What was said to the exit of this number, if it was the last one.
    pub fn said(&self, number: u64) -> Option<Said> {
        self.last.filter(|(last, ..)| *last == number).map(|(_, answer, word)| (answer, word))
    }

    /// This was said to it.
    pub fn remember(&mut self, number: u64, said: Said) {
        self.last = Some((number, said.0, said.1));
    }

    /// How to answer an exit of class Memory.
    pub fn complete(
        &mut self, on: &Stopped<'_, impl System>, exit: &Exit, order: Order, value: u64,
    ) -> Result<Said, Trouble> {
        match order {
            Order::Do => self.carry_out(on, exit),
            Order::Deny | Order::Give => deny(on, exit, value),
            Order::Inject => Err(Trouble::Refused(Refusal::BadArgument)),
        }
    }

    fn carry_out(&mut self, on: &Stopped<'_, impl System>, exit: &Exit) -> Result<Said, Trouble> {
        // An access whose syndrome says what it moves is none of the exclusive ones (Arm ARM D24.2.40, ISV).
        if exit.header.width().is_some() && !exit.header.has(ExitHeader::WALK) {
            return Ok(STEPPED_OVER);
        }
        self.code = NO_PAGE;
        // A walk that is watched comes with each instruction: a step forgets all walks.
        if exit.header.has(ExitHeader::FETCH) || exit.header.has(ExitHeader::WALK) {
            return self.execute(on, exit.header.view());
        }
        let Some(Kind::Exclusive(exclusive)) = on.instruction().ok().and_then(Kind::of) else {
            return Ok(STEPPED_OVER);
        };
        self.monitor = Monitor::begin(exit.physical >> 12);
        let view = exit.header.view();
        if exclusive.is_load {
            return self.load(on, &exclusive, exit.physical, view);
        }
        // This one fails, as it may; its status goes where register 31 is nobody's.
        Ok((Answer::ADVANCE.with(Answer::REPORT).register(exclusive.status).step(view), 1))
    }

    /// An instruction that may not be executed in this view is, in view 0. Steps from one to the next would clear the exclusive
    /// monitor in between, so exclusive accesses are done here, wherever their data are.
    fn execute(&mut self, on: &Stopped<'_, impl System>, view: u16) -> Result<Said, Trouble> {
        let Ok(word) = on.instruction() else { return Ok(STEPPED_OVER) };
        self.code = on.page()?;
        if let Some(Kind::Exclusive(exclusive)) = Kind::of(word) {
            return self.execute_exclusive(on, &exclusive, word, view);
        }
        if !self.monitor.is_on() {
            return Ok(STEPPED_OVER);
        }
        Ok(match self.monitor.next(word) {
            Next::Step => (Answer::REPORT.step(0), 0),
            _ => STEPPED_OVER,
        })
    }

    fn execute_exclusive(
        &mut self, on: &Stopped<'_, impl System>, exclusive: &Exclusive, word: u32, view: u16,
    ) -> Result<Said, Trouble> {
        let registers = on.registers()?;
        let address = registers.base(exclusive.base)?;
        let what = if exclusive.is_load { Use::Read } else { Use::Write };
        // Without a translation it takes its own abort.
        let Ok(found) = walk(on.system, on.guest, on.vcpu, address) else { return Ok(STEPPED_OVER) };
        if !found.permits(what, User::of(registers.state)) {
            self.monitor.give_up();
            // A load takes its own abort; a store whose monitor is clear need not, and would be tried for ever.
            return if exclusive.is_load { Ok(STEPPED_OVER) } else { on.permission_fault(&registers, &found, address) };
        }
        if let Some([old, new]) = found.marked(what) {
            on.guest.swap(on.system, found.at, 3, [old, 0], [new, 0])?;
        }
        if !self.monitor.is_on() || !self.monitor.watches(found.address) {
            self.monitor = Monitor::begin(found.address >> 12);
        }
        let said = match self.monitor.next(word) {
            Next::Access(exclusive) => self.access(on, &exclusive, view)?,
            _ => (Answer::RETRY, 0),
        };
        // What nobody does here the vCPU does itself.
        Ok(if said == (Answer::RETRY, 0) { STEPPED_OVER } else { said })
    }

    /// A step that was asked for here is over: what is to be done next. None: it was not asked for here.
    pub fn stepped(&mut self, on: &Stopped<'_, impl System>, exit: &Exit) -> Option<Said> {
        if !self.monitor.is_on() {
            return None;
        }
        let view = exit.header.view();
        // In the page whose execution is watched each is told of, before it is done here.
        let is_told = self.code != NO_PAGE && on.page().is_ok_and(|page| page == self.code);
        let done = on.instruction().and_then(|word| match self.monitor.next(word) {
            Next::Over => Ok((Answer::RETRY, 0)),
            Next::Access(_) if is_told => Ok((Answer::REPORT.step(view), 0)),
            Next::Step => Ok((Answer::REPORT.step(view), 0)),
            Next::Access(exclusive) => self.access(on, &exclusive, view),
        });
        // Whatever cannot be done here the vCPU does itself, and what it then does not get is nobody's promise.
        Some(done.unwrap_or_else(|_| {
            self.monitor.give_up();
            (Answer::RETRY, 0)
        }))
    }

    fn access(&mut self, on: &Stopped<'_, impl System>, exclusive: &Exclusive, view: u16) -> Result<Said, Trouble> {
        let address = on.translate(on.registers()?.base(exclusive.base)?)?;
        if !self.monitor.watches(address) || !address.is_multiple_of(1 << exclusive.size()) {
            self.monitor.give_up();
            return Ok((Answer::RETRY, 0));
        }
        if exclusive.is_load {
            return self.load(on, exclusive, address, view);
        }
        let Some(expected) = self.monitor.store(address, exclusive.size()) else {
            return Ok((Answer::ADVANCE.with(Answer::REPORT).register(exclusive.status).step(view), 1));
        };
        let registers = on.registers()?;
        let second = exclusive.second.map_or(Ok(0), |second| registers.general(second))?;
        let new = to_memory(exclusive, [registers.general(exclusive.first)?, second], registers.is_big_endian()?);
        let (written, _) = on.guest.swap(on.system, address, exclusive.size(), expected, new)?;
        if written {
            self.monitor.give_up();
            return Ok((Answer::ADVANCE.register(exclusive.status), 0));
        }
        Ok((Answer::ADVANCE.with(Answer::REPORT).register(exclusive.status).step(view), 1))
    }

    fn load(
        &mut self, on: &Stopped<'_, impl System>, exclusive: &Exclusive, address: u64, view: u16,
    ) -> Result<Said, Trouble> {
        let size = exclusive.size();
        if !address.is_multiple_of(1 << size) {
            // An alignment fault, which comes before any map forbids anything.
            self.monitor.give_up();
            return Ok((Answer::RETRY, 0));
        }
        let found = on.load(address, size)?;
        let registers = on.registers()?;
        let [first, second] = to_registers(exclusive, found, registers.is_big_endian()?);
        registers.set_general(exclusive.first, first)?;
        if let Some(number) = exclusive.second {
            registers.set_general(number, second)?;
        }
        self.monitor.loaded(address, size, found);
        Ok((Answer::ADVANCE.with(Answer::REPORT).step(view), 0))
    }
}

/// No effect on memory; registers as if there had been one.
fn deny(on: &Stopped<'_, impl System>, exit: &Exit, value: u64) -> Result<Said, Trouble> {
    if exit.header.has(ExitHeader::WALK) || exit.header.has(ExitHeader::FETCH) {
        return Err(Trouble::NotData);
    }
    let unknown = Trouble::Refused(Refusal::Unsupported);
    let kind = Kind::of(on.instruction()?).ok_or(unknown)?;
    let registers = on.registers()?;
    let read = |operand| match operand {
        Operand::General(number) => registers.general(number),
        Operand::Base(number) => registers.base(number),
    };
    for (register, value) in denied(&kind, value, read)?.ok_or(unknown)? {
        match register {
            Register::General(number) => registers.set_general(number, value)?,
            Register::Stack => registers.set_base(31, value)?,
            Register::Vector(number) => on.set_vector(number, value)?,
        }
    }
    Ok((Answer::ADVANCE, 0))
}

/// A stopped vCPU of a guest.
#[derive(Debug)]
pub struct Stopped<'a, S> {
    /// The kernel.
    pub system: &'a S,
    /// The guest.
    pub guest: Guest,
    /// The vCPU.
    pub vcpu: Vcpu,
}

impl<'a, S: System> Stopped<'a, S> {
    fn instruction(&self) -> Result<u32, Trouble> {
        instruction(self.system, self.guest, self.vcpu)
    }

    /// The virtual page that it stands in.
    fn page(&self) -> Result<u64, Trouble> {
        Ok(self.vcpu.get(self.system, VcpuRegister::Pc)? >> 12)
    }

    fn translate(&self, address: u64) -> Result<u64, Trouble> {
        translate(self.system, self.guest, self.vcpu, address)
    }

    /// 64-bit code only: the other kind has exclusives too, and they are not followed.
    fn registers(&self) -> Result<Registers<'a, S>, Trouble> {
        let state = self.vcpu.get(self.system, VcpuRegister::Pstate)?;
        if state >> 4 & 1 == 1 {
            return Err(Trouble::Narrow);
        }
        Ok(Registers { system: self.system, vcpu: self.vcpu, state })
    }

    /// The guest gets the fault that its tables have for a store there: class 0x24 from the user level, 0x25 from its own, a write;
    /// status 0b0010LL without access flag, else 0b0011LL (Arm ARM D24.2.40).
    fn permission_fault(&self, registers: &Registers<'_, S>, found: &Translation, address: u64) -> Result<Said, Trouble> {
        let class = if User::of(registers.state).is_low { 0x24 } else { 0x25 };
        let kind = if found.is_accessible() { 0b1100 } else { 0b1000 };
        let syndrome = class << 26 | 1 << 25 | 1 << 6 | kind | u64::from(found.level);
        self.vcpu.exception(self.system, syndrome, address)?;
        Ok((Answer::RETRY, 0))
    }

    fn load(&self, address: u64, size: u8) -> Result<[u64; 2], Trouble> {
        let found: [u8; 16] = match size {
            // A swap of what is there for itself reads a pair at one moment, where a copy would not; it writes nothing new.
            4 => return self.load_pair(address),
            _ => {
                let mut bytes = [0; 16];
                let own = 1usize << size;
                let whole: [u8; 8] = read(self.system, self.guest, address & !7).ok_or(Trouble::NoInstruction)?;
                let at = (address & 7) as usize;
                let part = whole.get(at..at + own).ok_or(Trouble::Elsewhere)?;
                bytes.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
                bytes
            }
        };
        let word = found.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Ok([word, 0])
    }

    fn load_pair(&self, address: u64) -> Result<[u64; 2], Trouble> {
        let mut expected = [0; 2];
        // As many tries as hold while others write there; the first finds what it is.
        for _ in 0..8 {
            let (same, found) = self.guest.swap(self.system, address, 4, expected, expected)?;
            if same {
                return Ok(found);
            }
            expected = found;
        }
        Err(Trouble::Elsewhere)
    }

    /// A whole vector register: this word below, zeroes above.
    fn set_vector(&self, number: u8, value: u64) -> Result<(), Refusal> {
        let lanes = self.vcpu.get_float(self.system, float_register::LENGTH)?.max(1);
        for word in 0..2 * lanes {
            let register = float_register::VECTORS + 32 * u64::from(number) + word;
            self.vcpu.set_float(self.system, register, if word == 0 { value } else { 0 })?;
        }
        Ok(())
    }
}

impl<S: System> Registers<'_, S> {
    /// SCTLR_EL1.E0E at EL0, .EE at EL1 (Arm ARM D24.2.174).
    fn is_big_endian(&self) -> Result<bool, Refusal> {
        let control = self.vcpu.get(self.system, VcpuRegister::SctlrEl1)?;
        Ok(control >> if self.state & 0xf == 0 { 24 } else { 25 } & 1 == 1)
    }
}
