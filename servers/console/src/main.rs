// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds console to the board.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_console::Console;
    use trellis_idl::plan::ConsoleConfig;
    use trellis_runtime::memory::DevicePage;
    use trellis_runtime::{Svc, config, ring};

    trellis_runtime::entry!(main);

    fn main(_thread: u64) -> ! {
        let Ok(config) = config::<ConsoleConfig<'_>>() else { panic!("no configuration") };
        let mut console = Console::new(&config, DevicePage::at(0), ring::page);
        console.open(&Svc);
        loop {
            console.step(&Svc);
        }
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("console runs on the board only");
}
