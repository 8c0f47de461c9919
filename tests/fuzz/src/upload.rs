// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program that a host sends to a running system: pieces in any order, and headers of any kind.

use crate::elf;
use trellis_idl::control::{Name, Offer, Proof, Refused};
use trellis_idl::layout::{CONFIG, PROGRAM};
use trellis_idl::plan::SwapPlan;
use trellis_root::program::Program;
use trellis_root::upload::Upload;

/// Pages of a program and of its file.
const PAGES: u16 = 16;

/// The first byte says whether the others are a file, or pieces of one: where each belongs, how long it is, and it.
pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, file)) => read(file),
        Some((signed, pieces)) => sent(pieces, signed & 1 == 1),
        None => {}
    }
}

/// What is taken lies where programs go, comes out of the file, and fits.
fn read(file: &[u8]) {
    let Ok(program) = Program::read(&file[..file.len().min(4096)], file.len() as u64, PAGES.into()) else { return };
    let mut pages = 0;
    for piece in &program.pieces {
        assert!(piece.address >= PROGRAM && piece.address + piece.memory_bytes <= CONFIG);
        assert!(piece.offset + piece.bytes <= file.len() as u64 && piece.bytes <= piece.memory_bytes);
        assert!(!piece.access.covers(trellis_idl::kernel::Access(2 | 4)), "nothing is written and executed");
        pages += piece.pages();
    }
    assert!(pages <= PAGES.into() && !program.pieces.is_empty());
    assert!(program.pieces.windows(2).all(|pair| pair[0].address / 4096 + pair[0].pages() <= pair[1].address / 4096));
}

/// Only the next bytes are taken, no more than was announced, and nothing else than what was announced is what it was said to be.
fn sent(mut rest: &[u8], is_signed: bool) {
    let swap = SwapPlan { pages: PAGES, signer: is_signed.then_some([7; 32]), counter: 1 };
    let proof = is_signed.then_some(Proof { counter: 1, signature: [[1; 32], [2; 32]] });
    let monitor = Name::try_from("m").expect("a short name");
    let announced = rest.len() as u32;
    let offer = Offer { monitor, bytes: announced, digest: [0; 32], proof, is_fresh: false };
    let Ok(mut upload) = Upload::begin(offer, &swap) else { return assert!(announced > u32::from(PAGES) << 12) };
    let mut came = 0;
    while let [offset, length, behind @ ..] = rest {
        let (piece, behind) = behind.split_at(behind.len().min((*length).into()));
        rest = behind;
        let fits = u32::from(*offset) == came && came + piece.len() as u32 <= announced;
        assert_eq!(upload.take((*offset).into(), piece), if fits { Ok(()) } else { Err(Refused::CutOff(came)) });
        came += if fits { piece.len() as u32 } else { 0 };
    }
    let expected = if came == announced { Refused::Digest } else { Refused::CutOff(came) };
    assert_eq!(upload.verify(&swap, 1), Err(expected), "nobody finds bytes with such a sum");
}

/// A program, and pieces in their order and out of it.
pub fn seeds() -> Vec<Vec<u8>> {
    let program = elf::program(&[(5, PROGRAM, &[0xd5; 32], 32), (6, PROGRAM + 0x1010, &[1; 8], 9000)]);
    vec![[vec![0], program].concat(), vec![1, 0, 2, 8, 9, 2, 3, 1, 2, 3], vec![2, 0, 2, 8, 9, 1, 3, 1, 2, 3, 2, 200, 1]]
}
