// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the guard to the board, as `main.rs` does the standard monitor.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_monitor::Guard;
    use trellis_monitor::board::{Bound, bind};
    use trellis_runtime::Svc;

    type Server = Bound<Guard>;

    trellis_runtime::server!(Server, build, attends);

    fn build(_: &Svc) -> Result<Server, &'static str> {
        bind(|config| Guard::new(&config.rules).ok_or("more pages than can be guarded"))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("monitors run on the board only");
}
