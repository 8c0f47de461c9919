// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the vcpu server to the board: its rings, its payload, its configuration.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::{ring, slot};
    use trellis_idl::{plan::VcpuConfig, wire::ToRoot};
    use trellis_runtime::memory::{DevicePage, payload};
    use trellis_runtime::event_ring::of_guest;
    use trellis_runtime::ring::page;
    use trellis_runtime::{RingPage, Signal, Svc, config};
    use trellis_vcpu::{Outside, Rings, VcpuServer};

    type Bound = VcpuServer<'static, Rings<&'static RingPage, DevicePage>>;

    // Threads up to the control thread serve; one more, where the plan has it, attends to input and timers.
    trellis_runtime::server!(Bound, build, attends);

    fn build(system: &Svc) -> Result<Bound, &'static str> {
        let config: VcpuConfig<'static> = config().map_err(|_| "no configuration that is understood")?;
        let rings = Rings::new(page(ring::SERIAL_OUT), page(ring::SERIAL_IN), page(ring::REPORT), payload, DevicePage::at);
        rings.report(system, &ToRoot::Ready);
        Signal::at(slot::ROOT).raise(system).map_err(|_| "root does not listen")?;
        let events = of_guest(config.watchers, config.vcpus);
        Ok(VcpuServer::new(config, rings).telling(events))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
