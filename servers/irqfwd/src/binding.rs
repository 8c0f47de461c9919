// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a line: forwarded and masked, open, leaving. Each state is a type, and what is not possible in it is not
//! there.

use crate::messages::{Gate, Nobody};
use trellis_idl::kernel::Refusal;
use trellis_runtime::handle::Tie;
use trellis_runtime::{Line, System, Vcpu};

/// Forwarded to some vCPUs, masked.
#[derive(Debug)]
#[must_use = "the line stays forwarded"]
pub struct Masked<G = Nobody> {
    line: Line,
    source: u16,
    /// Whom else to ask than the kernel that it may come, by which number: messages make it.
    gate: Option<(G, u32)>,
}

/// It may come.
#[derive(Debug)]
#[must_use = "the line stays open"]
pub struct Open<G = Nobody>(Masked<G>);

/// To be nobody's: masked and tied to no vCPU, but its source may be in a queue or with a server.
#[derive(Debug)]
#[must_use = "the line is not free yet"]
pub struct Leaving {
    line: Line,
}

/// Makes a line a source that all these vCPUs can get as this line of theirs; `direct`: the first of them without a server. Where one of them
/// refuses, nothing is left of it. A line that is a source already, since a server before this one made it so, stays it.
pub fn bind<G: Gate>(
    system: &impl System, line: Line, guest_line: u8, vcpus: &[Vcpu], direct: bool, gate: Option<(G, u32)>,
) -> Result<Masked<G>, Refusal> {
    let (source, _) = line.forward(system, guest_line)?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        let tie = if direct && index == 0 { Tie::Direct } else { Tie::Ends };
        if let Err(refusal) = vcpu.tie(system, line, tie) {
            untie(system, line, vcpus.get(..index).unwrap_or_default());
            // It never was open: nobody can have its source.
            let _ = line.release(system);
            return Err(refusal);
        }
    }
    Ok(Masked { line, source, gate })
}

fn untie(system: &impl System, line: Line, vcpus: &[Vcpu]) {
    for vcpu in vcpus {
        // A vCPU that is gone has nothing tied to it.
        let _ = vcpu.tie(system, line, Tie::No);
    }
}

impl<G: Gate> Masked<G> {
    /// The number of its source.
    pub const fn source(&self) -> u16 {
        self.source
    }

    /// It comes to this CPU from now on.
    pub fn open(self, system: &impl System, cpu: u8) -> Result<Open<G>, (Masked<G>, Refusal)> {
        match self.open_at(system, cpu) {
            Ok(()) => Ok(Open(self)),
            Err(refusal) => Err((self, refusal)),
        }
    }

    fn open_at(&self, system: &impl System, cpu: u8) -> Result<(), Refusal> {
        match &self.gate {
            Some((gate, number)) => gate.open(system, *number, cpu),
            None => self.line.open_at(system, cpu),
        }
    }

    /// It is to be nobody's.
    pub fn leave(self, system: &impl System, vcpus: &[Vcpu]) -> Leaving {
        untie(system, self.line, vcpus);
        Leaving { line: self.line }
    }
}

impl<G: Gate> Open<G> {
    /// The number of its source.
    pub const fn source(&self) -> u16 {
        self.0.source
    }

    /// It comes to another CPU from now on.
    pub fn move_to(&self, system: &impl System, cpu: u8) -> Result<(), Refusal> {
        self.0.open_at(system, cpu)
    }

    /// It goes straight to this vCPU from now on.
    pub fn direct_to(&self, system: &impl System, vcpu: Vcpu) -> Result<(), Refusal> {
        vcpu.tie(system, self.0.line, Tie::Direct)
    }

    /// It does not come any more.
    pub fn mask(self, system: &impl System) -> Masked<G> {
        match &self.0.gate {
            Some((gate, number)) => gate.close(system, *number),
            // The kernel refuses this only to who has no line.
            None => drop(self.0.line.mask(system)),
        }
        self.0
    }
}

impl Leaving {
    /// Whether it is free now, and its source another's.
    pub fn is_free(&self, system: &impl System) -> Result<bool, Refusal> {
        self.line.release(system)
    }
}
