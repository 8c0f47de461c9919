// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds smmu to the board: a thread that answers root, and one that reads what the SMMU says.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_runtime::memory::Mapped;
    use trellis_runtime::{Once, Svc, serve};
    use trellis_smmu::Server;
    use trellis_smmu::board::{build, tell};

    static SERVER: Once<Server<Mapped>> = Once::new();

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if Svc.thread() == 0 {
            serve(server);
        }
        server.attend(&Svc, tell)
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("smmu runs on the board only");
}
