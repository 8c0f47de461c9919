// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on the machine as a whole: power, the log, facts.

use super::{Call, Done};
use crate::machine::Machine;
use core::sync::atomic::Ordering;
use crate::retire;
use crate::trace;
use trellis_idl::kernel::{Fact, Kind, PAGE, Refusal, Rights};

impl<M: Machine> Call<'_, M> {
    pub(super) fn system_off(&mut self) -> Done {
        self.name(0, Kind::System, Rights::CONTROL)?;
        self.machine.power(self.a[1] == 1);
        Err(Refusal::Unsupported)
    }

    pub(super) fn buffer(&self) -> Result<u64, Refusal> {
        match self.buffer {
            0 => Err(Refusal::NotMapped),
            page => Ok(page * PAGE),
        }
    }

    pub(super) fn trace_read(&mut self) -> Done {
        self.name(0, Kind::System, Rights::CONTROL)?;
        if self.a[1] != self.local.cpu as u64 {
            return Err(Refusal::WrongCpu);
        }
        let buffer = self.buffer()?;
        let [first, rest @ ..] = trace::read(self.local, self.machine, self.a[2], buffer / PAGE);
        self.with(first, rest)
    }

    pub(super) fn cpu_retire(&mut self) -> Done {
        self.name(0, Kind::System, Rights::CONTROL)?;
        if self.a[1] != self.local.cpu as u64 {
            return Err(Refusal::WrongCpu);
        }
        retire::begin(self.local, self.shared, self.machine).and(Ok(0))
    }

    pub(super) fn log(&mut self) -> Done {
        if self.a[0] > PAGE {
            return Err(Refusal::OutOfRange);
        }
        let buffer = self.buffer()?;
        self.machine.log(buffer, self.a[0]);
        Ok(0)
    }

    pub(super) fn log_read(&mut self) -> Done {
        self.name(0, Kind::System, Rights::READ)?;
        let buffer = self.buffer()?;
        Ok(self.machine.log_read(buffer, PAGE))
    }

    pub(super) fn fact(&mut self) -> Done {
        if self.a[1] != Fact::IdRegister as u64 {
            self.name(0, Kind::System, Rights::READ)?;
        }
        let value = match self.a[1] {
            w if w == Fact::SharedWrites as u64 => self.local.shared_writes,
            w if w == Fact::FreeNames as u64 => self.free_names(self.a[2])?,
            w if w == Fact::VectorLengths as u64 => self.shared.vector_lengths.load(Ordering::Acquire),
            w if w == Fact::FloatBytes as u64 => self.local.float.moved,
            which => self.machine.fact(which, self.a[2])?,
        };
        self.with(0, [value, 0])
    }

    pub(super) fn free_names(&self, kind: u64) -> Result<u64, Refusal> {
        let control = self.shared.control.lock();
        Ok(match kind {
            k if k == Kind::Domain as u64 => control.domains.free(),
            k if k == Kind::Guest as u64 => control.guests.free(),
            k if k == Kind::Frames as u64 => control.runs.pool.free(),
            k if k == Kind::Thread as u64 => self.local.threads.free(),
            k if k == Kind::Vcpu as u64 => self.local.vcpus.free(),
            k if k == Kind::Portal as u64 => self.local.portals.free(),
            _ => return Err(Refusal::BadArgument),
        } as u64)
    }
}
