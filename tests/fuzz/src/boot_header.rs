// SPDX-License-Identifier: MIT OR Apache-2.0
//! The image's header, on its way through the kernel: whatever it says, root is made or refused.

use trellis_hosted::hosted::{self, FIRST_PAGE, Hosted};
use trellis_hosted::{Settings, laws};
use trellis_idl::boot::BootHeader;
use zerocopy::{FromBytes, IntoBytes};

/// A header of any bytes over a good one: what the bytes do not reach stays good.
pub fn run(bytes: &[u8]) {
    let settings = Settings::default();
    let mut words = hosted::header(&settings).as_bytes().to_vec();
    for (at, byte) in words.iter_mut().zip(bytes) {
        *at ^= byte;
    }
    let Ok(header) = BootHeader::read_from_bytes(&words) else { return };
    if let Ok(hosted) = Hosted::with_header(settings, &header) {
        laws::full(&hosted).unwrap_or_else(|broken| panic!("{broken}"));
        assert!(hosted.board.borrow().is_memory(FIRST_PAGE));
    }
}

/// The good header, and one with each number changed.
pub fn seeds() -> Vec<Vec<u8>> {
    let words = size_of::<BootHeader>() / 8;
    let interesting = (0..words).filter(|word| !(24..86).contains(word)).map(|word| {
        let mut bytes = vec![0; word * 8 + 8];
        bytes[word * 8 + word % 8] = 0x80;
        bytes
    });
    [vec![]].into_iter().chain(interesting).collect()
}
