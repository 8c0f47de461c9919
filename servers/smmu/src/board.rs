// SPDX-License-Identifier: MIT OR Apache-2.0
//! The server as it is on the board.

use crate::Server;
use trellis_idl::layout::{ring, slot};
use trellis_idl::plan::SmmuConfig;
use trellis_idl::wire::{Stopped, ToRoot};
use trellis_runtime::memory::Mapped;
use trellis_runtime::ring::page;
use trellis_runtime::{Producer, Signal, Svc, config, log};

/// Makes it of its configuration.
pub fn build() -> Result<Server<Mapped>, &'static str> {
    let config: SmmuConfig = config().map_err(|_| "no configuration that is understood")?;
    Server::start(Mapped, config).map_err(|why| {
        log!("the SMMU cannot be used: {why:?}");
        "no device can be kept to its guest"
    })
}

/// Tells root. What it has no room for is lost.
pub fn tell(stopped: Stopped) {
    Producer::new(page(ring::REPORT)).send(&ToRoot::DeviceStopped(stopped));
    // A root that is no more hears nothing.
    let _ = Signal::at(slot::ROOT).raise(&Svc);
}
