// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest makes the vcpu server decode: an instruction, found through tables of the guest's own making.

use trellis_vcpu::instruction::{Offset, decode};
use trellis_runtime::stage1::Regime;

/// Bytes of guest memory that the walk sees, over and over.
const WINDOW: usize = 64;

/// An instruction, the control registers, an address, then memory.
pub fn run(bytes: &[u8]) {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.iter_mut().zip(bytes.iter().skip(at * 8)).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    };
    if let Ok(transfer) = decode(word(0) as u32) {
        assert!([1, 2, 4, 8].contains(&transfer.bytes) && transfer.total_bytes() <= 16, "{transfer:?}");
        assert!(transfer.first < 32 && transfer.base < 32 && transfer.second.is_none_or(|second| second < 32));
        if let Offset::Register { number, shift, .. } = transfer.offset {
            assert!(number < 32 && shift <= 4);
        }
        let _ = transfer.extend(word(1));
    }
    let regime = Regime { sctlr: word(1), tcr: word(2), ttbr0: word(3), ttbr1: word(4) };
    let mut steps = 0;
    let read = |address: u64| {
        steps += 1;
        assert!(steps <= 4, "a walk has at most four levels");
        assert!(address.is_multiple_of(8), "a descriptor lies at a multiple of eight");
        Some(word(6 + (address / 8) as usize % (WINDOW / 8)))
    };
    if let Ok(found) = regime.translate(word(5), read) {
        assert!(found < 1 << 52, "an address beyond what the architecture has");
    }
}

/// Loads, stores, pairs; walks with each granule in each half.
pub fn seeds() -> Vec<Vec<u8>> {
    let instructions = [0xb940_0020_u32, 0xf800_0c41, 0x2941_0c02, 0x38e1_6803, 0xc8df_fc20, 0xd50b_7420, 0x1940_0020];
    let controls = [0x19_u64 | 0x10 << 16 | 2 << 30, 0x10 | 2 << 14 | 1 << 30, 0x10 | 1 << 14 | 3 << 30];
    let mut seeds = Vec::new();
    for (index, instruction) in instructions.iter().enumerate() {
        let address = if index % 2 == 0 { 0x40_1234 } else { 0xffff_8000_0012_3458 };
        let mut words = vec![u64::from(*instruction), 1, controls[index % 3], 0x4000_0000, 0x4001_0000, address];
        words.extend([0x4002_0003, 0x4003_0003, 0x4004_0703, 0x4005_0701, 0, 0x4006_0003, 0x4007_0703, 1]);
        seeds.push(words.iter().flat_map(|word| word.to_le_bytes()).collect());
    }
    seeds
}
