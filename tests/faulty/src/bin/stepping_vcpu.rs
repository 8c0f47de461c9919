// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vcpu server that steps when its guest asks.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_faulty::stepping::Stepping;
    use trellis_idl::layout::{ring, slot, vcpu_signal};
    use trellis_idl::plan::VcpuConfig;
    use trellis_idl::wire::ToRoot;
    use trellis_runtime::memory::{DevicePage, payload};
    use trellis_runtime::ring::page;
    use trellis_runtime::{Once, RingPage, Signal, Svc, System, config, serve};
    use trellis_vcpu::{Outside, Rings, VcpuServer};

    type Bound = Stepping<VcpuServer<'static, Rings<&'static RingPage, DevicePage>>>;

    static SERVER: Once<Bound> = Once::new();

    fn build() -> Result<Bound, &'static str> {
        let config: VcpuConfig<'static> = config().map_err(|_| "no configuration that is understood")?;
        let rings = Rings::new(page(ring::SERIAL_OUT), page(ring::SERIAL_IN), page(ring::REPORT), payload, DevicePage::at);
        rings.report(&Svc, &ToRoot::Ready);
        Signal::at(slot::ROOT).raise(&Svc).map_err(|_| "root does not listen")?;
        let vcpus = config.vcpus;
        Ok(Stepping::trapping(VcpuServer::new(config, rings), vcpus))
    }

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if Svc.thread() <= server.server.control_thread() {
            serve(server);
        }
        loop {
            let deadline = server.server.attend(&Svc).unwrap_or(0);
            Svc.wait(vcpu_signal::INPUT | vcpu_signal::TIMER, deadline);
        }
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
