// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the vcpu server to the board: its rings, its payload, its configuration.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::{ring, slot, vcpu_signal};
    use trellis_idl::{plan::VcpuConfig, wire::ToRoot};
    use trellis_runtime::memory::payload;
    use trellis_runtime::event_ring::pages;
    use trellis_runtime::ring::page;
    use trellis_runtime::{Once, RingPage, Signal, Svc, System, config, serve};
    use trellis_vcpu::{Outside, Rings, VcpuServer};

    type Bound = VcpuServer<'static, Rings<&'static RingPage>>;
    static SERVER: Once<Bound> = Once::new();

    fn build() -> Result<Bound, &'static str> {
        let config: VcpuConfig<'static> = config().map_err(|_| "no configuration that is understood")?;
        let rings = Rings::new(page(ring::SERIAL_OUT), page(ring::SERIAL_IN), page(ring::REPORT), payload);
        rings.report(&Svc, &ToRoot::Ready);
        Signal::at(slot::ROOT).raise(&Svc).map_err(|_| "root does not listen")?;
        let events = pages(ring::EVENTS, usize::from(config.watchers) * usize::from(config.vcpus));
        Ok(VcpuServer::new(config, rings).telling(events))
    }

    /// Threads up to the control thread serve; one more, where the plan has it, attends to input and timers.
    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if Svc.thread() <= server.control_thread() {
            serve(server);
        }
        loop {
            let deadline = server.attend(&Svc).unwrap_or(0);
            Svc.wait(vcpu_signal::INPUT | vcpu_signal::TIMER, deadline);
        }
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
