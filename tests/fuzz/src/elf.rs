// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files for seeds, made by code: an ELF program and an arm64 Image.

use trellis_idl::boot::{BootHeader, HEADER_OFFSET};
use zerocopy::IntoBytes;

/// An ELF file for AArch64 with these segments (flags, address, bytes, bytes in memory), which begins in its first one.
pub fn program(segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
    let entry = segments.first().map_or(0, |segment| segment.1);
    let mut file = [&b"\x7fELF\x02\x01\x01"[..], &[0; 9]].concat();
    file.extend([2u16, 183].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([entry, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0, 0, 64, 56, segments.len() as u16, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let mut offset = (64 + 56 * segments.len()) as u64;
    for (flags, address, bytes, memory) in segments {
        file.extend([1, *flags].iter().flat_map(|word| word.to_le_bytes()));
        let words = [offset, *address, *address, bytes.len() as u64, *memory, 4096];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        offset += bytes.len() as u64;
    }
    segments.iter().for_each(|segment| file.extend(segment.2));
    file
}

/// An arm64 Image of so many bytes in memory, with text at this offset.
pub fn image(text_offset: u64, size: u64) -> Vec<u8> {
    let mut file = vec![0u8; 128];
    file[8..16].copy_from_slice(&text_offset.to_le_bytes());
    file[16..24].copy_from_slice(&size.to_le_bytes());
    file[24..32].copy_from_slice(&0xau64.to_le_bytes());
    file[56..60].copy_from_slice(b"ARM\x64");
    file
}

/// The kernel as the linker leaves it, with nothing in it.
pub fn kernel() -> Vec<u8> {
    let mut file = image(0, 8192);
    file.resize(8000, 0);
    file[HEADER_OFFSET..HEADER_OFFSET + size_of::<BootHeader>()].copy_from_slice(BootHeader::EMPTY.as_bytes());
    file
}
