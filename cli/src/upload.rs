// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program on its way to a running system: piece by piece, a few of them at a time.

use crate::asking::Asking;
use crate::sign;
use crate::status::{Doing, Failure};
use indicatif::{ProgressBar, ProgressStyle};
use object::LittleEndian;
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use std::path::Path;
use trellis_idl::control::{Ask, Name, Offer, Part, Piece, UPLOAD_PIECE};

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Program {
    file: Vec<u8>,
    offer: Offer,
}

/// What of an ELF file is loaded, with its headers: names and all that debuggers need stay here. Of what cannot be read, all of
/// it: the system says why it does not take that.
pub fn lean(mut file: Vec<u8>) -> Vec<u8> {
    let Some(end) = loaded(&file).filter(|end| *end <= file.len() as u64) else { return file };
    file.truncate(end as usize);
    // There are no sections any more: e_shoff, e_shentsize, e_shnum and e_shstrndx of an ELF64 header.
    for place in [40..48, 58..64] {
        file[place].fill(0);
    }
    file
}

/// Where the last byte that is loaded ends, and the headers.
fn loaded(file: &[u8]) -> Option<u64> {
    let elf = ElfFile64::<LittleEndian>::parse(file).ok()?;
    let header = elf.elf_header();
    let headers = header.e_phoff(LittleEndian).checked_add(u64::from(header.e_phnum(LittleEndian)) * 56)?;
    let segments = elf.elf_program_headers().iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
    let ends = segments.map(|segment| segment.p_offset(LittleEndian).checked_add(segment.p_filesz(LittleEndian)));
    ends.chain([Some(headers), Some(64)]).try_fold(0, |most, end| Some(end?.max(most)))
}

impl Program {
    /// The program in a file, with the signature beside it or in the file that is named.
    pub fn read(monitor: Name, path: &Path, signature: Option<&Path>, is_fresh: bool) -> Result<Program, Failure> {
        let file = lean(std::fs::read(path).doing(|| format!("read {}", path.display()))?);
        let bytes = u32::try_from(file.len()).map_err(|_| Failure::says(format!("{} is too long", path.display())))?;
        let offer = Offer { monitor, bytes, digest: sign::digest(&file), proof: sign::proof(path, signature)?, is_fresh };
        Ok(Program { file, offer })
    }

    /// Sends it, and has it take the monitor's place. Back: what the system says of that.
    pub fn send(&self, asking: &mut Asking) -> Result<Vec<Part>, Failure> {
        asking.ask(&Ask::Upload(self.offer.clone()))?;
        let bar = ProgressBar::new(self.offer.bytes.into());
        let style = ProgressStyle::with_template("uploading {wide_bar} {bytes} of {total_bytes} ({eta})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let pieces = self.file.chunks(UPLOAD_PIECE).enumerate().map(|(index, bytes)| {
            Ask::Piece(Piece { offset: (index * UPLOAD_PIECE) as u32, bytes: bytes.iter().copied().collect() })
        });
        let sent = asking.ask_all(pieces, || bar.inc(UPLOAD_PIECE as u64));
        bar.finish_and_clear();
        sent?;
        asking.ask(&Ask::Swap(self.offer.monitor.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers of a file with one segment, and something behind it.
    fn file(offset: u64, bytes: u64) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([2u16, 183].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([0x20_0000u64, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        file.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
        file.extend([1u32, 5].map(u32::to_le_bytes).concat());
        file.extend([offset, 0x20_0000, 0x20_0000, bytes, bytes, 0x1000].map(u64::to_le_bytes).concat());
        file.resize(5000, 7);
        file
    }

    #[test]
    fn only_what_is_loaded_is_sent() {
        let whole = file(200, 1000);
        let sent = lean(whole.clone());
        assert_eq!((sent.len(), &sent[64..]), (1200, &whole[64..1200]));
        assert_eq!(lean(sent.clone()), sent, "nothing more can be left out");
        assert_eq!(lean(file(0, 10)).len(), 120, "the headers are sent in any case");
        for strange in [vec![], vec![1; 300], file(4990, 11), file(u64::MAX, 5)] {
            assert_eq!(lean(strange.clone()), strange);
        }
    }
}
