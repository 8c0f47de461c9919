// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor with a weakness.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_faulty::watching::Weak;
    use trellis_idl::layout::ring;
    use trellis_idl::plan::MonitorConfig;
    use trellis_monitor::{MonitorServer, Reports};
    use trellis_runtime::ring::page;
    use trellis_runtime::{RingPage, Svc};

    type Server = MonitorServer<'static, Weak, Reports<&'static RingPage>>;

    trellis_runtime::server!(Server, build);

    fn build(_: &Svc) -> Result<Server, &'static str> {
        let config: MonitorConfig<'static> = trellis_runtime::config().map_err(|_| "no configuration")?;
        Ok(MonitorServer::new(&config, Weak::new(&config.rules, &config.events), Reports::new(page(ring::REPORT))))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
