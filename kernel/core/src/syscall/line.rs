// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations on physical lines and on this CPU's queue of those that are forwarded.

use super::{Call, Done, MORE};
use crate::forward::{self, FORWARDED, QueueServer, SOURCES};
use crate::lines;
use crate::local::THREADS;
use crate::machine::Machine;
use crate::shared::{LINES, LineSlot};
use crate::signal_word;
use core::sync::atomic::Ordering;
use trellis_idl::boot::MAX_CPUS;
use trellis_idl::kernel::{FIRST_MESSAGE, Kind, MESSAGES, Refusal, Rights};

impl<'a, M: Machine> Call<'a, M> {
    pub(super) fn line_create(&mut self) -> Done {
        self.name(0, Kind::System, Rights::CONTROL)?;
        // Software and private lines are the kernel's own; they are never handed out.
        let is_message = self.a[1].wrapping_sub(FIRST_MESSAGE) < MESSAGES;
        if !(32..1020).contains(&self.a[1]) && !is_message {
            return Err(Refusal::OutOfRange);
        }
        if self.a[3] > 1 {
            return Err(Refusal::BadArgument);
        }
        let control = self.shared.control.lock();
        self.check_empty(self.table, self.a[2])?;
        if !is_message {
            self.machine.set_edge(self.a[1] as u32, self.a[3] == 1);
        }
        self.put(&control, self.a[2], Kind::Line, Rights::ALL, self.a[1])?;
        Ok(0)
    }

    /// The number of the line that an argument names.
    #[cfg_attr(target_os = "none", optimize(speed))]
    fn line(&self, argument: usize) -> Result<u32, Refusal> {
        self.name(argument, Kind::Line, Rights::CONTROL).map(|line| line as u32)
    }

    fn slot_of(&self, line: u32) -> &'a LineSlot {
        let shared = self.shared;
        &shared.lines[line as usize % LINES]
    }

    pub(super) fn line_bind(&mut self) -> Done {
        let line = self.line(0)?;
        let signal = self.cap(1, Kind::Signal, Rights::USE)?;
        let _control = self.shared.control.lock();
        let slot = self.slot_of(line);
        if slot.bits.load(Ordering::Relaxed) & FORWARDED != 0 {
            return Err(Refusal::Occupied);
        }
        slot.bits.store(signal.word.badge(), Ordering::Relaxed);
        slot.thread.store(signal.name, Ordering::Release);
        self.machine.mask(line, false);
        Ok(0)
    }

    #[cfg_attr(target_os = "none", optimize(speed))]
    pub(super) fn line_ack(&mut self) -> Done {
        let line = self.line(0)?;
        let (masked, cpu) = (self.a[1], self.a[2]);
        if masked > 1 || cpu > MAX_CPUS as u64 {
            return Err(Refusal::BadArgument);
        }
        if cpu != 0 && cpu != self.local.cpu as u64 + 1 {
            return self.go_on_at(1 << (cpu - 1));
        }
        self.machine.mask(line, masked == 1);
        Ok(0)
    }

    pub(super) fn line_forward(&mut self) -> Done {
        let line = self.line(0)?;
        // The guest's line, which may have another number. What no guest has is refused where it is tied.
        let guests = if self.a[1] == 0 { line.into() } else { self.a[1] };
        let ends = line as u64 | if guests < 128 { guests << 16 } else { 0 };
        let _control = self.shared.control.lock();
        let slot = self.slot_of(line);
        let forwarding = &self.shared.forwarding;
        let before = slot.bits.load(Ordering::Relaxed);
        let place = &forwarding.lines[before as usize % SOURCES];
        if before & FORWARDED != 0 && forwarding.line_of(before as u16) == line {
            match forwarding.sources.bind(before as u16) {
                // It was released while a server had it, and nobody asked again: what came then is dropped.
                Ok(()) => {
                    place.store(ends, Ordering::Relaxed);
                    self.machine.end_line(line);
                }
                Err(Refusal::Occupied) => {}
                Err(refusal) => return Err(refusal),
            }
            return self.with((before as u16).into(), [place.load(Ordering::Relaxed) >> 32, 0]);
        }
        if before != 0 {
            return Err(Refusal::Occupied);
        }
        let bound = |source: &u16| forwarding.sources.bind(*source).is_ok();
        let source = (0..SOURCES as u16).find(bound).ok_or(Refusal::Quota)?;
        forwarding.lines[source as usize % SOURCES].store(ends, Ordering::Relaxed);
        slot.thread.store(0, Ordering::Relaxed);
        slot.bits.store(FORWARDED | source as u64, Ordering::Release);
        self.with(source.into(), [0, 0])
    }

    /// Gives 1 as long as the source is in a queue or with a server. Done twice it does nothing the second time.
    pub(super) fn line_release(&mut self) -> Done {
        let line = self.line(0)?;
        let _control = self.shared.control.lock();
        let slot = self.slot_of(line);
        let bits = slot.bits.load(Ordering::Relaxed);
        if bits & FORWARDED == 0 {
            return Ok(0);
        }
        self.machine.mask(line, true);
        let (forwarding, source) = (&self.shared.forwarding, bits as u16);
        // Another line has the source already: this one's use of it was over some time ago.
        if forwarding.line_of(source) == line && forwarding.sources.unbind(source).is_err() {
            return MORE;
        }
        slot.bits.store(0, Ordering::Release);
        self.machine.end_line(line);
        Ok(0)
    }

    pub(super) fn line_tie(&mut self) -> Done {
        let index = self.vcpu(Rights::LINES)?;
        let line = self.line(1)?;
        let way = self.a[2];
        if way > 2 {
            return Err(Refusal::BadArgument);
        }
        let _control = self.shared.control.lock();
        let slot = self.slot_of(line);
        let source = slot.bits.load(Ordering::Relaxed);
        let guests = if source & FORWARDED == 0 { line.min(128) as u8 } else { self.shared.forwarding.ends_of(source as u16).1 };
        lines::tie(self.local, self.machine, index, guests, line as u16, way != 0)?;
        let name = self.local.vcpus.name_at(index).0;
        // The word is the vCPU's as long as the line is forwarded.
        let ours = way == 2 || slot.thread.load(Ordering::Relaxed) == name;
        if ours && slot.bits.load(Ordering::Acquire) & FORWARDED != 0 {
            slot.thread.store(if way == 2 { name } else { 0 }, Ordering::Relaxed);
        }
        Ok(0)
    }

    pub(super) fn line_pass(&mut self) -> Done {
        let index = self.vcpu(Rights::LINES)?;
        let service = self.a[1];
        let (physical, line) = self.shared.forwarding.ends_of(service as u16);
        if !self.local.vcpus.at(index).lines.is_tied_here(physical, line) {
            return Err(Refusal::BadState);
        }
        forward::complete(self.local, self.shared, self.machine, service)?;
        lines::arrive_tied(self.local, index, line);
        Ok(0)
    }

    /// Hands on, and gives what waits in the queue. When nothing does, the caller waits ([`super::dispatch`]); another CPU,
    /// which is asked since the vCPU is its own, refuses.
    pub(super) fn queue_next(&mut self) -> Done {
        let server = self.local.server;
        let me = self.caller.filter(|me| self.local.threads.name_at(*me).0 == server.thread).ok_or(Refusal::BadState)?;
        if self.a[0] != 0 {
            self.line_pass()?;
        }
        // It looks itself.
        signal_word::take(&self.shared.cpus[self.local.cpu as usize % MAX_CPUS].signals[me as usize % THREADS], server.bits);
        let service = forward::take(self.local, self.shared, self.machine);
        self.with(server.bits, service)
    }

    pub(super) fn queue_serve(&mut self) -> Done {
        self.name(0, Kind::System, Rights::LINES)?;
        let signal = self.cap(1, Kind::Signal, Rights::USE)?;
        if self.a[2] > 1 {
            return Err(Refusal::BadArgument);
        }
        self.shared.served.fetch_or(1 << (self.local.cpu & 63), Ordering::AcqRel);
        self.local.server = QueueServer { thread: signal.name, bits: signal.word.badge() };
        if self.a[2] == 1 {
            for source in 0..SOURCES as u16 {
                let source = self.shared.forwarding.sources.adopt(source);
                forward::queue(self.local, self.shared, self.machine, source);
            }
        }
        // What has waited here for somebody wakes nobody any more.
        forward::wake(self.local, self.shared, self.machine, self.local.server);
        Ok(0)
    }

    pub(super) fn queue_take(&mut self) -> Done {
        self.name(0, Kind::System, Rights::LINES)?;
        let mut taken = [0; 2];
        let mut count = 0;
        while count < taken.len()
            && let [service, (1..)] = forward::take(self.local, self.shared, self.machine)
        {
            taken[count] = service;
            count += 1;
        }
        self.with(count as u64, taken)
    }

    pub(super) fn queue_done(&mut self) -> Done {
        self.name(0, Kind::System, Rights::LINES)?;
        forward::complete(self.local, self.shared, self.machine, self.a[1])?;
        Ok(0)
    }
}
