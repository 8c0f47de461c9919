// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first instructions of a server, and its last ones after a panic.

use crate::svc::Svc;
use crate::system::System;
use core::arch::global_asm;
use core::fmt::Write;
use trellis_idl::kernel::Op;

// Whoever started the thread gave it a stack and its first word: root for a server, the kernel for root.
global_asm!(
    ".pushsection .text.start, \"ax\"",
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "b trellis_main",
    ".popsection",
);

/// Binds `fn main(first_word: u64) -> !` as the program's start, for every thread of it.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[allow(unsafe_code, reason = "the start-up code finds the program by this name")]
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn trellis_main(first_word: u64) -> ! {
            let main: fn(u64) -> ! = $main;
            main(first_word)
        }
    };
}

/// Binds `fn build(&Svc) -> Result<impl Server, &'static str>`: whichever thread comes first builds the server, all
/// of them serve it.
#[macro_export]
macro_rules! server {
    // One thread more than serve attends to what signals say.
    ($kind:ty, $build:path, attends) => {
        static SERVER: $crate::Once<$kind> = $crate::Once::new();

        fn main(_thread: u64) -> ! {
            use $crate::{Attends, System};
            let system = $crate::Svc;
            let server = match SERVER.get_or_build(&system, || $build(&system)) {
                Ok(server) => server,
                Err(why) => panic!("{why}"),
            };
            if system.thread() <= Attends::control_thread(server) {
                $crate::serve(server);
            }
            loop {
                let (signals, deadline) = Attends::attend(server, &system);
                system.wait(signals, deadline);
            }
        }

        $crate::entry!(main);
    };
    ($kind:ty, $build:path) => {
        static SERVER: $crate::Once<$kind> = $crate::Once::new();

        fn main(_thread: u64) -> ! {
            let system = $crate::Svc;
            match SERVER.get_or_build(&system, || $build(&system)) {
                Ok(server) => $crate::serve(server),
                Err(why) => panic!("{why}"),
            }
        }

        $crate::entry!(main);
    };
}

/// Text put into a message buffer; what does not fit is left out.
struct Text<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        let count = room.len().min(text.len());
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.used += count;
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    let mut used = 0;
    Svc.take_buffer_back();
    Svc.with_buffer(|buffer| {
        let mut text = Text { bytes: &mut buffer[..512], used: 0 };
        // Writing to this text cannot fail.
        let _ = writeln!(text, "server: {info}");
        used = text.used;
    });
    let _ = Svc.invoke(Op::Log, [used as u64, 0, 0, 0, 0, 0]);
    Svc.exit()
}
