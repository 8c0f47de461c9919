// SPDX-License-Identifier: MIT OR Apache-2.0
//! The vcpu server with a weakness.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_faulty::Faulty;
    use trellis_idl::layout::{ring, slot, vcpu_signal};
    use trellis_idl::wire::ToRoot;
    use trellis_runtime::memory::{DevicePage, payload};
    use trellis_runtime::ring::page;
    use trellis_runtime::{Once, RingPage, Signal, Svc, System, config, serve};
    use trellis_vcpu::{Outside, Rings, VcpuServer};

    type Bound = Faulty<VcpuServer<'static, Rings<&'static RingPage, DevicePage>>>;

    static SERVER: Once<Bound> = Once::new();

    fn build() -> Result<Bound, &'static str> {
        let config = config().map_err(|_| "no configuration that is understood")?;
        let rings = Rings::new(page(ring::SERIAL_OUT), page(ring::SERIAL_IN), page(ring::REPORT), payload, DevicePage::at);
        rings.report(&Svc, &ToRoot::Ready);
        Signal::at(slot::ROOT).raise(&Svc).map_err(|_| "root does not listen")?;
        Ok(Faulty(VcpuServer::new(config, rings)))
    }

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if Svc.thread() <= server.0.control_thread() {
            serve(server);
        }
        loop {
            let deadline = server.0.attend(&Svc).unwrap_or(0);
            Svc.wait(vcpu_signal::INPUT | vcpu_signal::TIMER, deadline);
        }
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
