// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's kernel file: what of it goes where in the guest's memory, and where the guest begins.
//!
//! Knows the three kinds of file; `place` adds initial file system and device tree.

use crate::manifest::Kind;
use crate::problem::Code;
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, read::elf::ElfFile64};
use std::ops::Range;

/// Where a raw kernel, and an Image without an offset of its own, is put above the first byte of memory.
pub const DEFAULT_OFFSET: u64 = 2 << 20;

/// Part of a file and where it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// How a sentence names it.
    pub name: String,
    /// Guest-physical address.
    pub address: u64,
    /// Bytes of the file.
    pub file: Range<usize>,
    /// Bytes in memory; what the file does not fill is zero.
    pub memory_bytes: u64,
}

/// A kernel file, understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelFile {
    /// What goes where, by address.
    pub pieces: Vec<Piece>,
    /// Where the guest begins.
    pub entry: u64,
}

/// Why a file cannot be a kernel, to be shown at the manifest line that names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// What kind of problem.
    pub code: Code,
    /// The sentence.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Flaw {
    pub(crate) fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Flaw {
        Flaw { code, message: message.into(), hint: hint.into() }
    }
}

impl KernelFile {
    /// Reads a kernel of a kind for memory that begins at `memory_base`.
    pub fn parse(kind: Kind, bytes: &[u8], memory_base: u64, load_offset: Option<u64>) -> Result<KernelFile, Flaw> {
        match kind {
            Kind::Image => image(bytes, memory_base),
            Kind::Raw => raw(bytes, memory_base, load_offset.unwrap_or(DEFAULT_OFFSET)),
            Kind::Elf => elf(bytes),
        }
    }
}

/// A word about what a file is, for hints.
fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    let magic = |at: usize, word: &[u8]| bytes.get(at..at + word.len()) == Some(word);
    match () {
        _ if magic(0, b"\x7fELF") => Some("an ELF file: say kind = \"elf\""),
        _ if magic(56, b"ARM\x64") => Some("an arm64 Image: say kind = \"image\""),
        _ if magic(0, b"\x1f\x8b") => Some("compressed with gzip: unpack it first (gunzip)"),
        _ if magic(0, b"\x28\xb5\x2f\xfd") => Some("compressed with zstd: unpack it first (unzstd)"),
        _ if magic(0, b"MZ\0\0zimg") => Some("a compressed EFI kernel: unpack it to a plain Image first"),
        _ if magic(0, b"MZ") => Some("an EFI program for another machine"),
        _ => None,
    }
}

fn hint(bytes: &[u8], otherwise: &str) -> String {
    match looks_like(bytes) {
        Some(what) => format!("this is {what}"),
        None => otherwise.into(),
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|slice| slice.try_into().ok()).map_or(0, u64::from_le_bytes)
}

// Linux Documentation/arch/arm64/booting.rst: text_offset at 8, image_size at 16, flags at 24, magic at 56.
fn image(bytes: &[u8], memory_base: u64) -> Result<KernelFile, Flaw> {
    if bytes.get(56..60) != Some(b"ARM\x64") {
        let hint = hint(bytes, "its bytes 56 to 59 should be \"ARM\\x64\"; raw files without a header need kind = \"raw\"");
        return Err(Flaw::new(Code::NotAnImage, "this is not an arm64 Image", hint));
    }
    let (text_offset, size, flags) = (word(bytes, 8), word(bytes, 16), word(bytes, 24));
    let unsupported = |message: &str, hint: &str| Err(Flaw::new(Code::ImageUnsupported, message, hint));
    if flags & 1 != 0 {
        return unsupported("this Image is big-endian", "build it for a little-endian processor");
    }
    if !matches!(flags >> 1 & 3, 0 | 1) {
        return unsupported("this Image wants pages larger than 4 KiB", "build it with 4 KiB pages, which every board has");
    }
    if size == 0 {
        return unsupported("this Image does not say how much memory it needs", "its header's image_size is 0: use Linux 3.17 or later");
    }
    if size < bytes.len() as u64 {
        return unsupported("this Image is longer than its header says", "the file may be damaged: its image_size is too small");
    }
    // A kernel that does not care (0 since Linux 5.8) leaves the first block for the device tree of others.
    let offset = if text_offset < 4096 { DEFAULT_OFFSET + text_offset } else { text_offset };
    let Some(address) = memory_base.checked_add(offset) else {
        return unsupported("this Image wants to be loaded beyond all memory", "its header's text_offset is too large");
    };
    let piece = Piece { name: format!("kernel at {address:#x}"), address, file: 0..bytes.len(), memory_bytes: size };
    Ok(KernelFile { pieces: vec![piece], entry: address })
}

fn raw(bytes: &[u8], memory_base: u64, offset: u64) -> Result<KernelFile, Flaw> {
    if bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"\x1f\x8b") {
        return Err(Flaw::new(Code::NotRaw, "this is not a raw kernel", hint(bytes, "")));
    }
    let Some(address) = memory_base.checked_add(offset) else {
        return Err(Flaw::new(Code::OutsideMemory, "load-offset leads beyond all memory", "the usual one is \"2M\""));
    };
    let piece = Piece { name: format!("kernel at {address:#x}"), address, file: 0..bytes.len(), memory_bytes: bytes.len() as u64 };
    Ok(KernelFile { pieces: vec![piece], entry: address })
}

fn elf(bytes: &[u8]) -> Result<KernelFile, Flaw> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Flaw::new(Code::NotAnElf, "this is not an ELF file", hint(bytes, "it should be an ELF64 file for AArch64")));
    }
    // Class and machine stand at the same place in every ELF file, so a foreign one is named before it is parsed.
    let machine = bytes.get(18..20).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    if bytes.get(4) != Some(&2) || bytes.get(5) != Some(&1) || machine != Some(elf::EM_AARCH64.0) {
        return Err(Flaw::new(
            Code::ElfWrongMachine,
            "this ELF file is for another machine",
            "it must be 64-bit, little-endian, AArch64: build it for target aarch64",
        ));
    }
    let mut pieces = elf_pieces(bytes)
        .map_err(|error| Flaw::new(Code::NotAnElf, format!("this ELF file is broken: {error}"), "was it copied to its end?"))?;
    pieces.sort_by_key(|piece| piece.1.address);
    let entry = word(bytes, 24);
    let Some(entry) = physical_entry(&pieces, entry) else {
        return Err(Flaw::new(
            Code::ElfEntry,
            format!("this ELF file begins at {entry:#x}, where it loads nothing"),
            "its linker script should put the entry into a loaded segment",
        ));
    };
    Ok(KernelFile { pieces: pieces.into_iter().map(|(_, piece)| piece).collect(), entry })
}

type ElfPiece = (u64, Piece);

fn elf_pieces(bytes: &[u8]) -> Result<Vec<ElfPiece>, String> {
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|error| error.to_string())?;
    let endian = LittleEndian;
    let headers = file.elf_header().program_headers(endian, bytes).map_err(|error| error.to_string())?;
    let mut pieces = Vec::new();
    for header in headers.iter().filter(|header| header.p_type(endian) == elf::PT_LOAD && header.p_memsz(endian) > 0) {
        let (start, length) = (header.p_offset(endian), header.p_filesz(endian));
        let end = start.checked_add(length).filter(|end| *end <= bytes.len() as u64).ok_or("a segment lies outside of the file")?;
        let (address, memory_bytes) = (header.p_paddr(endian), header.p_memsz(endian));
        if length > memory_bytes || address.checked_add(memory_bytes).is_none() {
            return Err("a segment has impossible sizes".into());
        }
        let name = format!("segment at {address:#x}");
        let piece = Piece { name, address, file: start as usize..end as usize, memory_bytes };
        pieces.push((header.p_vaddr(endian), piece));
    }
    Ok(pieces)
}

/// The entry is a virtual address; the guest begins without an MMU.
fn physical_entry(pieces: &[ElfPiece], entry: u64) -> Option<u64> {
    let inside = |base: u64, piece: &Piece| entry >= base && entry - base < piece.memory_bytes;
    let virtual_one = pieces.iter().find(|(base, piece)| inside(*base, piece));
    let physical_one = pieces.iter().find(|(_, piece)| inside(piece.address, piece));
    match (virtual_one, physical_one) {
        (Some((base, piece)), _) => Some(piece.address + (entry - base)),
        (None, Some(_)) => Some(entry),
        (None, None) if pieces.is_empty() => Some(entry),
        (None, None) => None,
    }
}
