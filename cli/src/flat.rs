// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's ELF as the flat bytes that a boot loader puts into memory.

use crate::status::Failure;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, elf};

/// A kernel larger than this is a broken link, not a kernel.
const LARGEST: u64 = 64 << 20;

/// Every loaded segment at its place, counted from the lowest physical address; gaps and what is zero at start are
/// zero bytes, since nothing may follow the kernel in an image where its zeroed memory is.
pub fn flatten(file: &[u8]) -> Result<Vec<u8>, Failure> {
    let broken = |error: object::Error| Failure::says(format!("the kernel is not a usable ELF file: {error}"));
    let header = elf::FileHeader64::<LittleEndian>::parse(file).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let all = header.program_headers(endian, file).map_err(broken)?;
    let loads: Vec<_> = all.iter().filter(|part| part.p_type(endian) == elf::PT_LOAD && part.p_memsz(endian) > 0).collect();
    let first = loads.iter().map(|part| part.p_paddr(endian)).min().unwrap_or(0);
    let end = loads.iter().map(|part| part.p_paddr(endian).saturating_add(part.p_memsz(endian))).max().unwrap_or(0);
    if loads.is_empty() || end - first > LARGEST {
        return Err(Failure::says("the kernel's ELF file loads nothing, or more than 64 MiB"));
    }
    let mut flat = vec![0; (end - first) as usize];
    for part in loads {
        let bytes = part.data(endian, file).map_err(|()| Failure::says("the kernel's ELF file is cut off"))?;
        let at = (part.p_paddr(endian) - first) as usize;
        let place = at.checked_add(bytes.len()).and_then(|end| flat.get_mut(at..end));
        place.ok_or_else(|| Failure::says("a segment of the kernel's ELF file is longer than its memory"))?.copy_from_slice(bytes);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of program headers (physical address, bytes, bytes in memory) and nothing else.
    fn elf_of(parts: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [2u16, 183] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [0u64, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64, 56, parts.len() as u16, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * parts.len() as u64;
        for (address, bytes, memory) in parts {
            file.extend(1u32.to_le_bytes());
            file.extend(5u32.to_le_bytes());
            for word in [offset, *address, *address, bytes.len() as u64, *memory, 4096] {
                file.extend(word.to_le_bytes());
            }
            offset += bytes.len() as u64;
        }
        parts.iter().for_each(|(_, bytes, _)| file.extend(*bytes));
        file
    }

    #[test]
    fn segments_land_at_their_distance_and_the_rest_is_zero() {
        let file = elf_of(&[(0x1008, b"data", 8), (0x1000, b"code", 4)]);
        assert_eq!(flatten(&file).expect("a good file"), b"code\0\0\0\0data\0\0\0\0");
    }

    #[test]
    fn broken_files_are_refused() {
        let far = elf_of(&[(0, b"x", 1), (u64::MAX - 4, b"y", 1)]);
        let long = elf_of(&[(0x1000, b"more than memory", 4)]);
        let whole = elf_of(&[(0x1000, b"code", 4)]);
        for file in [b"".as_slice(), b"MZ", &far, &long, &whole[..whole.len() - 2], &elf_of(&[])] {
            assert!(flatten(file).is_err());
        }
    }
}
