// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds the standard monitor to the board: a thread on each CPU on which it watches, and one that answers root.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::ring;
    use trellis_monitor::board::{Bound, bind};
    use trellis_monitor::{Noted, Standard};
    use trellis_runtime::RingPage;
    use trellis_runtime::ring::page;
    use trellis_runtime::Svc;

    type Server = Bound<Standard<Noted<&'static RingPage>>>;

    trellis_runtime::server!(Server, build, attends);

    fn build(_: &Svc) -> Result<Server, &'static str> {
        bind(|config| Ok(Standard::with(&config.rules, &config.events, Noted::new(page(ring::SEEN)))))
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("monitors run on the board only");
}
