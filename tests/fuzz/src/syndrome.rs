// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's exit as the machine tells it to the kernel: any syndrome in any state becomes words or an answer.

use trellis_aarch64::context::Vcpu;
use trellis_aarch64::decode::{self, Common, Decoded};
use trellis_aarch64::registers::Esr;
use trellis_core::machine::VcpuContext;
use trellis_idl::kernel::{Exit, ExitHeader};

/// Syndrome, state, program counter, then general registers; and a software interrupt's word.
pub fn run(bytes: &[u8]) {
    let mut words = bytes.chunks(8).map(|piece| {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        u64::from_le_bytes(word)
    });
    let mut next = || words.next().unwrap_or_default();
    let mut context = Vcpu::EMPTY;
    let esr = Esr(next());
    (context.pstate, context.pc) = (next(), next());
    context.x.iter_mut().for_each(|x| *x = next());
    let before = context.pc;
    let message = match decode::common(&mut context, esr) {
        Common::Exit(_) | Common::Fault { .. } => true,
        Common::SoftwareInterrupt { .. } | Common::GuestCall(_) => false,
        Common::Rare => matches!(decode::rare(&mut context, esr), Decoded::Exit(_)),
    };
    if message {
        let exit = Exit::from_words(context.exit);
        assert_eq!((exit.syndrome, exit.pc, context.pc), (esr.0, before, before));
        assert_eq!(exit.header.has(ExitHeader::USER), context.pstate & 0xf == 0);
        assert!(exit.header.width().is_none_or(|width| [1, 2, 4, 8].contains(&width)), "{:?}", exit.header);
    }
    let asked = decode::software_interrupt(esr.0);
    assert!(asked.line < 16);
}

/// Each class.
pub fn seeds() -> Vec<Vec<u8>> {
    let classes = (0..64u64).map(|class| class << 26 | 1 << 25);
    let details = [0x9381_0047, 0x939f_0047 | 0x0900_0018 << 32, 0x6200_0000 | 0x3a_1800];
    classes.chain(details).map(|esr| [esr, 0x3c5, 0x8_0000, 1, 2, 3].iter().flat_map(|word| word.to_le_bytes()).collect()).collect()
}
