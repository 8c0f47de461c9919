// SPDX-License-Identifier: MIT OR Apache-2.0
//! irqfwd with a weakness: after twenty interrupts it takes one out of its queue and crashes with it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![deny(unsafe_code)]

#[cfg(target_os = "none")]
mod board {
    use trellis_idl::layout::irqfwd_signal;
    use trellis_irqfwd::Irqfwd;
    use trellis_runtime::{Once, Svc, System, config, serve};

    /// Times that a thread is woken before it crashes; the first is its beginning.
    const LIFE: u32 = 21;

    static SERVER: Once<Irqfwd> = Once::new();

    fn build() -> Result<Irqfwd, &'static str> {
        let config = config().map_err(|_| "no configuration that is understood")?;
        Ok(Irqfwd::start(&Svc, config))
    }

    fn main(_first_word: u64) -> ! {
        let server = match SERVER.get_or_build(&Svc, build) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        };
        if server.is_control(Svc.thread()) {
            serve(server);
        }
        let Ok(queue) = server.post(&Svc, Svc.thread()) else { panic!("this CPU's queue is another's") };
        for _ in 0..LIFE {
            Svc.wait(irqfwd_signal::QUEUE, 0);
            server.serve(&Svc, queue);
        }
        Svc.wait(irqfwd_signal::QUEUE, 0);
        let taken = queue.take(&Svc);
        trellis_faulty::crash();
        panic!("{taken:?} was to be the last")
    }

    trellis_runtime::entry!(main);
}

#[cfg(not(target_os = "none"))]
fn main() {}
