// SPDX-License-Identifier: MIT OR Apache-2.0
//! Binds irqfwd to the board: a thread for each CPU's queue, and one that answers root.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use core::convert::Infallible;
    use trellis_idl::kernel::Refusal;
    use trellis_irqfwd::board::{OnBoard, build};
    use trellis_runtime::{Once, Svc, serve};

    static SERVER: Once<OnBoard> = Once::new();

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if server.is_control(Svc.thread()) {
            server.settle(&Svc);
            serve(server);
        }
        let Err(why) = forward(server);
        panic!("this CPU's queue is another's: {why:?}");
    }

    /// Serves this thread's queue for as long as it has it.
    fn forward(server: &OnBoard) -> Result<Infallible, Refusal> {
        let mut post = server.post(&Svc, Svc.thread())?;
        let mut woken = post.wait(&Svc)?;
        loop {
            woken = server.step(&Svc, &mut post, woken)?;
        }
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("irqfwd runs on the board only");
}
