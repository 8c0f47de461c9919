// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a monitor may look at and change of a guest, each by a right that the manifest gives: memory, registers, a pause.
//!
//! Registers are those of a vCPU that stands still: in an event, paused, or never started (`BadState` otherwise).

use crate::guest::{Here, WatchedGuest};
use trellis_idl::kernel::{Refusal, VcpuRegister, float_register};
use trellis_idl::layout::platform;
use trellis_idl::wire::P2mOp;
use trellis_runtime::System;
use trellis_runtime::stage1::{Regime, Translation, WalkError};

/// Words of the longest vector register: 2048 bits (Arm ARM A1.4).
pub const VECTOR_WORDS: usize = 32;

/// What stands at a part of a guest's physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Memory.
    Memory,
    /// A device that its vcpu server plays.
    Device,
}

/// A part of a guest's physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    /// First page.
    pub first: u64,
    /// Pages.
    pub pages: u64,
    /// What is there.
    pub kind: Kind,
}

impl WatchedGuest<'_> {
    /// What is where, of all that the guest was given. Devices of the machine that it owns are not among it.
    pub fn map(&self) -> impl Iterator<Item = Area> + use<> {
        let (first, pages) = self.pages();
        let memory = Area { first, pages, kind: Kind::Memory };
        let windows = platform::windows(self.gic(), self.vcpus().into());
        let device = |(first, pages)| Area { first, pages, kind: Kind::Device };
        core::iter::once(memory).chain(windows.into_iter().map(device).filter(|area| area.pages != 0))
    }

    /// Reads guest-physical memory. Back: bytes that are there; a page that was never touched is not. `MissingRight` or
    /// `NoCapability`: the manifest does not say `reads-memory`.
    pub fn read(&self, system: &impl System, address: u64, bytes: &mut [u8]) -> Result<usize, Refusal> {
        self.memory().read(system, address, bytes).map(|count| count as usize)
    }

    /// The same of a word, in the usual order of bytes.
    pub fn read_word(&self, system: &impl System, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let count = self.read(system, address, &mut bytes).ok()?;
        (count == 8).then_some(u64::from_le_bytes(bytes))
    }

    /// Writes guest-physical memory, also where the view in which it is watched forbids that. Back: bytes written.
    /// `MissingRight` or `NoCapability`: the manifest does not say `writes-memory`.
    pub fn write(&self, system: &impl System, address: u64, bytes: &[u8]) -> Result<usize, Refusal> {
        self.memory().write(system, address, bytes).map(|count| count as usize)
    }

    /// A register of a vCPU that stands still.
    pub fn register(&self, system: &impl System, vcpu: usize, register: VcpuRegister) -> Result<u64, Refusal> {
        self.vcpu(vcpu).get(system, register)
    }

    /// `x0`–`x30` of one.
    pub fn general(&self, system: &impl System, vcpu: usize) -> Result<[u64; 31], Refusal> {
        let mut all = [0; 31];
        for (number, value) in (0..).zip(&mut all) {
            *value = self.vcpu(vcpu).get_general(system, number)?;
        }
        Ok(all)
    }

    /// The vector register of this number: 128 bits, or as many as its scalable vectors have, the lowest word first. Back: how
    /// many words. `OutOfRange`: there is no such register.
    pub fn vector(&self, system: &impl System, vcpu: usize, number: u8, words: &mut [u64; VECTOR_WORDS]) -> Result<usize, Refusal> {
        if number > 31 {
            return Err(Refusal::OutOfRange);
        }
        let vcpu = self.vcpu(vcpu);
        // Without scalable vectors it has one lane.
        let count = 2 * vcpu.get_float(system, float_register::LENGTH)?.max(1) as usize;
        let first = float_register::VECTORS + 32 * u64::from(number);
        for (register, word) in (first..).zip(words.iter_mut().take(count)) {
            *word = vcpu.get_float(system, register)?;
        }
        Ok(count.min(VECTOR_WORDS))
    }

    /// FPSR and FPCR.
    pub fn float_status(&self, system: &impl System, vcpu: usize) -> Result<[u64; 2], Refusal> {
        let get = |register| self.vcpu(vcpu).get_float(system, register);
        Ok([get(float_register::FPSR)?, get(float_register::FPCR)?])
    }

    /// Writes one. `MissingRight`: the manifest does not say `writes-registers`.
    pub fn set_register(&self, system: &impl System, vcpu: usize, register: VcpuRegister, value: u64) -> Result<(), Refusal> {
        self.vcpu(vcpu).set(system, register, value)
    }

    /// How a vCPU that stands still translates addresses.
    pub fn regime(&self, system: &impl System, vcpu: usize) -> Result<Regime, Refusal> {
        let get = |register| self.register(system, vcpu, register);
        Ok(Regime {
            sctlr: get(VcpuRegister::SctlrEl1)?,
            tcr: get(VcpuRegister::TcrEl1)?,
            ttbr0: get(VcpuRegister::Ttbr0El1)?,
            ttbr1: get(VcpuRegister::Ttbr1El1)?,
        })
    }

    /// Walks the guest's own tables under these roots, which need not be those that it uses now.
    pub fn translate(&self, system: &impl System, regime: &Regime, address: u64) -> Result<Translation, WalkError> {
        regime.walk(address, |at| self.read_word(system, at))
    }

    /// Keeps every vCPU from running until [`WatchedGuest::resume`], unseen inside. Back: how many serve an exit still, and stop
    /// behind it. `MissingRight`: the manifest does not say `pauses`.
    pub fn pause(&self, system: &impl System) -> Result<usize, Refusal> {
        let mut served = 0;
        for vcpu in 0..usize::from(self.vcpus()) {
            served += usize::from(self.vcpu(vcpu).pause(system)?);
        }
        Ok(served)
    }

    /// That is over, for all of them. They go on unless the host or another monitor pauses them too.
    pub fn resume(&self, system: &impl System) -> Result<(), Refusal> {
        (0..usize::from(self.vcpus())).try_for_each(|vcpu| self.vcpu(vcpu).resume(system).map(drop))
    }

    /// [`P2mOp::ViewAccess`]: what the view in which it is watched lets it do with a page; and whether that is the view's default.
    pub fn access(&self, system: &impl System, here: Here, page: u64) -> Result<(u64, bool), Refusal> {
        let at = self.view() << 48 | page & ((1 << 48) - 1);
        let answer = self.p2m(here).order(system, P2mOp::ViewAccess as u64, [at, 0, 0])?;
        Ok((answer[1], answer[2] == 1))
    }
}
