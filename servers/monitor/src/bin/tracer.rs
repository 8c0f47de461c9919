// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the tracer to the board, as `main.rs` does the standard monitor.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_monitor::Tracer;
    use trellis_monitor::board::{Bound, bind};
    use trellis_runtime::Svc;

    type Server = Bound<Tracer>;

    trellis_runtime::server!(Server, build, attends);

    fn build(_: &Svc) -> Result<Server, &'static str> {
        bind(|config| Ok(Tracer::new(&config.rules)))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("monitors run on the board only");
}
