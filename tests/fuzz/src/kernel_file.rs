// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest kernels that users bring: ELF, arm64 Image and raw files.

use crate::elf;
use trellis_images::{KernelFile, Kind};

const MEMORY: u64 = 0x4000_0000;

/// The first byte says which kind the others are, and whether the manifest names an offset.
pub fn run(bytes: &[u8]) {
    let Some((which, file)) = bytes.split_first() else { return };
    let kind = [Kind::Image, Kind::Raw, Kind::Elf][usize::from(which % 3)];
    let offset = (which & 0x80 != 0).then(|| u64::from(which & 0x7f) << 57 | 0x1000);
    let Ok(kernel) = KernelFile::parse(kind, file, MEMORY, offset) else { return };
    // Whether a piece ends within memory is asked when it is placed: targets `manifest` and `compose` get there.
    for piece in &kernel.pieces {
        let bytes = file.get(piece.file.clone()).expect("a piece lies in its file");
        assert!(bytes.len() as u64 <= piece.memory_bytes, "a piece is longer than its memory");
    }
}

/// Good ones of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let elf = elf::program(&[(5, MEMORY, &[0xd5; 16], 16), (6, MEMORY + 0x1000, b"data", 9000)]);
    let image = elf::image(0x8_0000, 4096);
    vec![[vec![0], image].concat(), [vec![1], vec![0x14; 40]].concat(), [vec![0x81], vec![0x14; 8]].concat(), [vec![2], elf].concat()]
}
