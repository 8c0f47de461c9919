// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest did something that nobody answers: what root is told about it.

use heapless::Vec;
use trellis_idl::kernel::{Exit, VcpuRegister};
use trellis_idl::wire::Crash;
use trellis_runtime::{System, Vcpu};

/// What the stopped vCPU was at.
pub fn collect(system: &impl System, vcpu: Vcpu, index: u8, exit: &Exit) -> Crash {
    // A register that cannot be read is reported as zero: the report matters more than any one of them.
    let get = |register| vcpu.get(system, register).unwrap_or(0);
    let general: Vec<u64, 31> = (0..31).map(|n| vcpu.get_general(system, n).unwrap_or(0)).collect();
    Crash {
        vcpu: index,
        class: exit.header.0 as u8,
        syndrome: exit.syndrome,
        physical: exit.physical,
        virtual_address: exit.virtual_address,
        pc: get(VcpuRegister::Pc),
        pstate: get(VcpuRegister::Pstate),
        general,
    }
}
