// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds p2m to the board.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::plan::P2mConfig;
    use trellis_p2m::P2m;
    use trellis_p2m::view::Views;
    use trellis_runtime::event_ring::of_guest;
    use trellis_runtime::{Shared, Svc};

    trellis_runtime::server!(P2m, build);

    static VIEWS: Shared<Views> = Shared::new(Views::new());

    fn build(system: &Svc) -> Result<P2m, &'static str> {
        let config = trellis_runtime::config().map_err(|_| "no configuration")?;
        P2m::start(system, &config, &VIEWS, of_guest(config.watchers, config.vcpus)).map_err(|_| "the guest's memory cannot be mapped")
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("p2m runs on the board only");
}
