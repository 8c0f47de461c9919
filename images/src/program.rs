// SPDX-License-Identifier: MIT OR Apache-2.0
//! A server's program: its ELF file as pieces to map, and what makes one unfit.

use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::LittleEndian;
use std::fmt;
use trellis_idl::kernel::{Access, PAGE};
use trellis_idl::layout;

/// Why an image cannot be composed of these programs. The manifest is not to blame: the build is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ComposeError {
    /// The kernel is no flat arm64 Image with room for its header.
    KernelNotAnImage,
    /// The kernel is part of an image already, or damaged: the header's magic is this.
    KernelHasHeader(u64),
    /// The kernel knows another version of the header: this one.
    KernelVersion(u32),
    /// The kernel's own size is wrong: it says this, its file has that.
    KernelSize(u64, u64),
    /// A program cannot be read: its name and why.
    Program(&'static str, String),
    /// A program has a segment that is writable and executable, at this address.
    WritableCode(&'static str, u64),
    /// A part of the plan cannot be encoded.
    Encoding(&'static str),
    /// The image does not fit into the board's memory: its bytes and what there is.
    TooLarge(u64, u64),
}

impl ComposeError {
    /// Code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            ComposeError::KernelNotAnImage => "trellis::compose::kernel_not_an_image",
            ComposeError::KernelHasHeader(_) => "trellis::compose::kernel_has_header",
            ComposeError::KernelVersion(_) => "trellis::compose::kernel_version",
            ComposeError::KernelSize(..) => "trellis::compose::kernel_size",
            ComposeError::Program(..) => "trellis::compose::program",
            ComposeError::WritableCode(..) => "trellis::compose::writable_code",
            ComposeError::Encoding(_) => "trellis::compose::encoding",
            ComposeError::TooLarge(..) => "trellis::compose::too_large",
        }
    }
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ComposeError::KernelNotAnImage => write!(f, "the kernel is not a flat arm64 Image"),
            ComposeError::KernelHasHeader(magic) => write!(f, "the kernel is composed already (its header begins with {magic:#x})"),
            ComposeError::KernelVersion(version) => write!(f, "the kernel's header is of version {version}, not of this tool's"),
            ComposeError::KernelSize(said, file) => write!(f, "the kernel says it takes {said} bytes, but its file has {file}"),
            ComposeError::Program(name, why) => write!(f, "the program of {name} cannot be used: {why}"),
            ComposeError::WritableCode(name, at) => write!(f, "the program of {name} has writable code at {at:#x}"),
            ComposeError::Encoding(what) => write!(f, "the {what} cannot be encoded"),
            ComposeError::TooLarge(bytes, room) => write!(f, "the image takes {bytes} bytes, the board has {room} for it"),
        }
    }
}

impl std::error::Error for ComposeError {}

impl miette::Diagnostic for ComposeError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(ComposeError::code(self)))
    }
}

/// A piece of a program: whole pages, from the payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramPiece {
    /// Virtual address, page aligned.
    pub address: u64,
    /// What the file has for it, from the page's beginning.
    pub bytes: Vec<u8>,
    /// Bytes in memory; the rest is zero.
    pub memory_bytes: u64,
    /// Access bits.
    pub access: Access,
}

/// A server's program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Where its threads begin.
    pub entry: u64,
    /// Its pieces, by address.
    pub pieces: Vec<ProgramPiece>,
}

impl Program {
    /// Reads an ELF file with at most `most` segments; `name` is for the error.
    pub fn parse(name: &'static str, bytes: &[u8], most: usize) -> Result<Program, ComposeError> {
        let error = |why: &str| ComposeError::Program(name, why.into());
        let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|why| error(&why.to_string()))?;
        let header = file.elf_header();
        if header.e_machine(LittleEndian) != elf::EM_AARCH64 {
            return Err(error("it is for another machine"));
        }
        let headers = header.program_headers(LittleEndian, bytes).map_err(|why| error(&why.to_string()))?;
        let mut pieces = Vec::new();
        for segment in headers {
            if segment.p_type(LittleEndian) == elf::PT_LOAD && segment.p_memsz(LittleEndian) > 0 {
                pieces.push(piece(name, segment, bytes)?);
            }
        }
        pieces.sort_by_key(|piece| piece.address);
        if pieces.is_empty() || pieces.len() > most {
            return Err(error(&format!("it has {} segments, not 1 to {most}", pieces.len())));
        }
        if pieces.windows(2).any(|pair| (pair[0].address + pair[0].memory_bytes).next_multiple_of(PAGE) > pair[1].address) {
            return Err(error("two of its segments share a page"));
        }
        let entry = header.e_entry(LittleEndian);
        let inside = |piece: &&ProgramPiece| entry >= piece.address && entry - piece.address < piece.bytes.len() as u64;
        match pieces.iter().find(inside) {
            Some(code) if code.access.covers(Access::EXECUTE) => Ok(Program { entry, pieces }),
            _ => Err(error("it does not begin in its code")),
        }
    }
}

fn piece(name: &'static str, segment: &elf::ProgramHeader64<LittleEndian>, file: &[u8]) -> Result<ProgramPiece, ComposeError> {
    let error = |why: &str| ComposeError::Program(name, why.into());
    let content = segment.data(LittleEndian, file).map_err(|()| error("a segment lies outside of the file"))?;
    let (start, bytes) = (segment.p_vaddr(LittleEndian), segment.p_memsz(LittleEndian));
    let access = access(segment.p_flags(LittleEndian).0);
    if access.covers(Access::WRITE.with(Access::EXECUTE)) {
        return Err(ComposeError::WritableCode(name, start));
    }
    let end = start.checked_add(bytes).filter(|end| *end <= layout::CONFIG && start >= layout::PROGRAM);
    if end.is_none() || (content.len() as u64) > bytes {
        return Err(error("a segment lies outside of where programs go"));
    }
    let before = start % PAGE;
    let padded = [vec![0; before as usize], content.to_vec()].concat();
    // Only writable pieces are copied; the others are mapped as they are and can have no zeroes of their own.
    if !access.covers(Access::WRITE) && (padded.len() as u64).next_multiple_of(PAGE) < before + bytes {
        return Err(error("a segment that cannot be written has pages the file does not fill"));
    }
    Ok(ProgramPiece { address: start - before, bytes: padded, memory_bytes: before + bytes, access })
}

fn access(flags: u32) -> Access {
    let pairs = [(4, Access::READ), (2, Access::WRITE), (1, Access::EXECUTE)];
    pairs.iter().filter(|(flag, _)| flags & flag != 0).fold(Access::default(), |all, (_, access)| all.with(*access))
}
