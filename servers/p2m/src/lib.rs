// SPDX-License-Identifier: MIT OR Apache-2.0
//! p2m: owns a guest's host map. Memory faults come here from the kernel; root and the guest's vcpu server call.
//!
//! [`map`] knows the guest's memory, [`fault`] decides what an access is, [`control`] answers calls.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod control;
pub mod fault;
pub mod map;
#[cfg(test)]
mod fake;

use core::sync::atomic::AtomicU32;
use map::Map;
use trellis_idl::kernel::{Exit, Refusal, WORDS};
use trellis_idl::plan::{P2mConfig, Populate};
use trellis_runtime::{Reply, Server, System};

/// The server.
#[derive(Debug)]
pub struct P2m {
    map: Map,
    populate: Populate,
    /// Guest page of GICv2's virtual CPU interface, which the hardware answers.
    interface: Option<u64>,
    /// Accesses refused since the guest started.
    refused: AtomicU32,
}

impl P2m {
    /// The server of this guest; with eager population all of its memory is mapped when this returns.
    pub fn start(system: &impl System, config: &P2mConfig<'_>) -> Result<P2m, Refusal> {
        let map = Map::new(config.first_page, config.pages)?;
        let p2m = P2m { map, populate: config.populate, interface: config.gicv_page, refused: AtomicU32::new(0) };
        p2m.begin(system)?;
        Ok(p2m)
    }

    /// Maps what a guest has from its first instruction on.
    fn begin(&self, system: &impl System) -> Result<(), Refusal> {
        if let Some(page) = self.interface {
            map::map_interface(system, page)?;
        }
        match self.populate {
            Populate::Eager => self.map.map_all(system),
            Populate::Lazy => Ok(()),
        }
    }
}

impl Server for P2m {
    #[inline(always)]
    fn exit(&self, system: &impl System, badge: u64, exit: &Exit) -> Reply {
        self.fault(system, badge, exit)
    }

    fn call(&self, system: &impl System, badge: u64, words: [u64; WORDS]) -> Reply {
        self.control(system, badge, words, 0)
    }

    fn letter(&self, system: &impl System, badge: u64, words: [u64; WORDS], bytes: usize) -> Reply {
        self.control(system, badge, words, bytes)
    }
}
