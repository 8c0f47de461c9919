// SPDX-License-Identifier: MIT OR Apache-2.0
//! irqfwd with a weakness: after twenty interrupts it takes one out of its queue and crashes with it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use core::convert::Infallible;
    use trellis_idl::kernel::Refusal;
    use trellis_irqfwd::board::{OnBoard, build};
    use trellis_runtime::{Once, Svc, serve};

    /// Interrupts that a thread serves before it crashes with the next.
    const LIFE: u32 = 20;

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

    /// Serves this thread's queue, for a while.
    fn forward(server: &OnBoard) -> Result<Infallible, Refusal> {
        let mut post = server.post(&Svc, Svc.thread())?;
        let mut woken = post.wait(&Svc)?;
        for _ in 0..LIFE {
            woken = server.step(&Svc, &mut post, woken)?;
        }
        trellis_faulty::crash();
        panic!("{woken:?} was to be the last")
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
