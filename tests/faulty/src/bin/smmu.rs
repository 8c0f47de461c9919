// SPDX-License-Identifier: MIT OR Apache-2.0
//! smmu with a weakness: it crashes when it is to tell of the third access that was stopped.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use core::sync::atomic::{AtomicU32, Ordering};
    use trellis_idl::wire::Stopped;
    use trellis_runtime::memory::Mapped;
    use trellis_runtime::{Once, Svc, serve};
    use trellis_smmu::Server;
    use trellis_smmu::board::{build, tell};

    /// What it tells before that.
    const LIFE: u32 = 2;

    static SERVER: Once<Server<Mapped>> = Once::new();
    static TOLD: AtomicU32 = AtomicU32::new(0);

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if Svc.thread() == 0 {
            serve(server);
        }
        server.attend(&Svc, tell_or_crash)
    }

    fn tell_or_crash(stopped: Stopped) {
        if TOLD.fetch_add(1, Ordering::Relaxed) == LIFE {
            trellis_faulty::crash();
        }
        tell(stopped);
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
