// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the guard to the board, as `main.rs` does the standard monitor.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::ring;
    use trellis_idl::plan::{MAX_VCPUS, MonitorConfig};
    use trellis_monitor::{Ears, Guard, MonitorServer, Reports};
    use trellis_runtime::event_ring::pages;
    use trellis_runtime::ring::page;
    use trellis_runtime::{RingPage, Svc};

    type Server = MonitorServer<'static, Guard, Reports<&'static RingPage>>;

    trellis_runtime::server!(Server, build, attends);

    /// The rings of what it is told.
    fn ears(config: &MonitorConfig<'_>) -> Ears {
        Ears::new(config, |place, vcpus| [0, MAX_VCPUS].map(|from| pages(ring::heard(place) + from, vcpus)))
    }

    fn build(_: &Svc) -> Result<Server, &'static str> {
        let config: MonitorConfig<'static> = trellis_runtime::config().map_err(|_| "no configuration")?;
        let monitor = Guard::new(&config.rules).ok_or("more pages than can be guarded")?;
        Ok(MonitorServer::new(&config, monitor, Reports::new(page(ring::REPORT))).hearing(ears(&config)))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("monitors run on the board only");
}
