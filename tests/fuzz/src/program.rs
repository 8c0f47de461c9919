// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of servers and the kernel's own file, as the build or a user hands them to the composer.

use crate::elf;
use trellis_cli::flat::flatten;
use trellis_idl::layout::PROGRAM;
use trellis_images::{Programs, System};

/// The first byte says in whose place the file stands.
pub fn run(bytes: &[u8]) {
    let Some((which, file)) = bytes.split_first() else { return };
    let mut programs = crate::compose::programs();
    let place = match which % 3 {
        0 => &mut programs.root,
        1 => &mut programs.p2m,
        _ => {
            // Whatever is flat may be a kernel.
            if let Ok(flat) = flatten(file) {
                composed(&Programs { kernel: flat, ..programs.clone() });
            }
            &mut programs.kernel
        }
    };
    *place = file.to_vec();
    composed(&programs);
}

fn composed(programs: &Programs) {
    thread_local! {
        static SYSTEM: System = crate::compose::smallest();
    }
    SYSTEM.with(|system| {
        if let Ok(image) = system.compose(programs) {
            crate::compose::is_sound(&image);
        }
    });
}

/// Good ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let program = elf::program(&[(5, PROGRAM, &[0xd5; 32], 32), (6, PROGRAM + 0x1010, &[1; 8], 9000)]);
    let kernel = elf::kernel();
    let linked = elf::program(&[(5, 0x4020_0000, &kernel, kernel.len() as u64)]);
    vec![[vec![0], program.clone()].concat(), [vec![1], program].concat(), [vec![2], kernel].concat(), [vec![2], linked].concat()]
}
