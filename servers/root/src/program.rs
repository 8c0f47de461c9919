// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program out of an uploaded file: which bytes go where, and what makes it unfit. The rules are the composer's.
//!
//! Only the file's first page is looked at: its headers stand there, or it is refused.

use elf::abi::{EM_AARCH64, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};
use heapless::Vec;
use trellis_idl::control::Unfit;
use trellis_idl::kernel::{Access, PAGE};
use trellis_idl::layout::{CONFIG, PROGRAM};

/// Most pieces of a program: the plan's.
pub const PIECES: usize = 6;
/// Bytes of a file's header, of what in it says how to read the rest, and of a segment's.
const HEADER: usize = 64;
const IDENT: usize = 16;
const SEGMENT: usize = 56;

/// A piece of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Bytes there.
    pub bytes: u64,
    /// Virtual address, anywhere in a page.
    pub address: u64,
    /// Bytes in memory; the rest is zero.
    pub memory_bytes: u64,
    /// Access bits.
    pub access: Access,
}

impl Piece {
    /// Bytes of its first page before it.
    pub const fn before(&self) -> u64 {
        self.address % PAGE
    }

    /// Pages that it lies in.
    pub const fn pages(&self) -> u64 {
        (self.before() + self.memory_bytes).div_ceil(PAGE)
    }

    const fn end(&self) -> u64 {
        (self.address + self.memory_bytes).next_multiple_of(PAGE)
    }
}

/// A program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Where its threads begin.
    pub entry: u64,
    /// Its pieces, by address.
    pub pieces: Vec<Piece, PIECES>,
}

impl Program {
    /// Reads the headers in the first page of a file of so many bytes; the program has so many pages at most.
    pub fn read(head: &[u8], file: u64, most_pages: u64) -> Result<Program, Unfit> {
        let (ident, tail) = head.get(..HEADER).and_then(|header| header.split_at_checked(IDENT)).ok_or(Unfit::Format)?;
        let ident = parse_ident::<LittleEndian>(ident).map_err(|_| Unfit::Format)?;
        let header = FileHeader::parse_tail(ident, tail).map_err(|_| Unfit::Format)?;
        if header.class != Class::ELF64 || usize::from(header.e_phentsize) != SEGMENT {
            return Err(Unfit::Format);
        }
        if header.e_machine != EM_AARCH64 {
            return Err(Unfit::Machine);
        }
        let mut pieces = Vec::new();
        for segment in SegmentTable::new(LittleEndian, Class::ELF64, segments(&header, head)?).iter() {
            if segment.p_type == PT_LOAD && segment.p_memsz > 0 {
                pieces.push(piece(&segment, file)?).map_err(|_| Unfit::Segments)?;
            }
        }
        pieces.sort_unstable_by_key(|piece: &Piece| piece.address);
        check(&pieces, header.e_entry, most_pages)?;
        Ok(Program { entry: header.e_entry, pieces })
    }
}

/// The bytes of the segments' headers.
fn segments<'a>(header: &FileHeader<LittleEndian>, head: &'a [u8]) -> Result<&'a [u8], Unfit> {
    let from = usize::try_from(header.e_phoff).map_err(|_| Unfit::Format)?;
    let end = from.checked_add(usize::from(header.e_phnum) * SEGMENT);
    end.and_then(|end| head.get(from..end)).ok_or(Unfit::Format)
}

fn piece(segment: &ProgramHeader, file: u64) -> Result<Piece, Unfit> {
    let piece = Piece {
        offset: segment.p_offset,
        bytes: segment.p_filesz,
        address: segment.p_vaddr,
        memory_bytes: segment.p_memsz,
        access: access(segment.p_flags),
    };
    let is_in_file = piece.offset.checked_add(piece.bytes).is_some_and(|end| end <= file);
    let is_in_place = piece.address.checked_add(piece.memory_bytes).is_some_and(|end| end <= CONFIG);
    if !is_in_file || !is_in_place || piece.address < PROGRAM || piece.bytes > piece.memory_bytes {
        return Err(Unfit::Outside);
    }
    if piece.access.covers(Access::WRITE.with(Access::EXECUTE)) {
        return Err(Unfit::WritableCode);
    }
    Ok(piece)
}

fn access(flags: u32) -> Access {
    let pairs = [(4, Access::READ), (2, Access::WRITE), (1, Access::EXECUTE)];
    pairs.iter().filter(|(flag, _)| flags & flag != 0).fold(Access::default(), |all, (_, access)| all.with(*access))
}

/// Whether pieces in the order of their addresses make a program.
fn check(pieces: &[Piece], entry: u64, most_pages: u64) -> Result<(), Unfit> {
    if pieces.is_empty() {
        return Err(Unfit::Segments);
    }
    if pieces.windows(2).any(|pair| matches!(pair, [first, second] if first.end() > second.address)) {
        return Err(Unfit::SharedPage);
    }
    let code = pieces.iter().find(|piece| entry >= piece.address && entry - piece.address < piece.bytes);
    if !code.is_some_and(|code| code.access.covers(Access::EXECUTE)) {
        return Err(Unfit::Entry);
    }
    if pieces.iter().map(Piece::pages).sum::<u64>() > most_pages { Err(Unfit::Memory) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offset, bytes, address, bytes in memory, flags (4 read, 2 write, 1 execute).
    pub type Segment = (u64, u64, u64, u64, u32);

    /// The headers of a file for AArch64.
    pub fn file(entry: u64, segments: &[Segment]) -> std::vec::Vec<u8> {
        let mut file = std::vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend([2u16, 183].map(u16::to_le_bytes).concat());
        file.extend(1u32.to_le_bytes());
        file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(0u32.to_le_bytes());
        file.extend([64, 56, segments.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
        for (offset, bytes, address, memory, flags) in segments {
            file.extend([1u32, *flags].map(u32::to_le_bytes).concat());
            file.extend([*offset, *address, *address, *bytes, *memory, 0x1000].map(u64::to_le_bytes).concat());
        }
        file
    }

    pub const CODE: Segment = (0x1000, 0x800, PROGRAM, 0x800, 5);
    pub const DATA: Segment = (0x2000, 0x100, PROGRAM + 0x1000, 0x1800, 6);

    fn read(entry: u64, segments: &[Segment]) -> Result<Program, Unfit> {
        Program::read(&file(entry, segments), 0x3000, 16)
    }

    #[test]
    fn a_program_is_read_as_its_headers_say() {
        let program = read(PROGRAM + 4, &[DATA, CODE]).expect("a program");
        assert_eq!((program.entry, program.pieces.len()), (PROGRAM + 4, 2));
        let [code, data] = [program.pieces[0], program.pieces[1]];
        assert_eq!((code.address, code.offset, code.bytes, code.access.0), (PROGRAM, 0x1000, 0x800, 5));
        assert_eq!((data.pages(), data.before(), data.access.0), (2, 0, 3));
        let odd = Piece { address: PROGRAM + 0x10, memory_bytes: PAGE, ..Piece::default() };
        assert_eq!((odd.before(), odd.pages()), (0x10, 2));
    }

    #[test]
    fn each_way_to_be_unfit_is_told() {
        let spoilt = |spoil: fn(&mut std::vec::Vec<u8>)| {
            let mut file = file(PROGRAM, &[CODE]);
            spoil(&mut file);
            Program::read(&file, 0x3000, 16)
        };
        assert_eq!(spoilt(|file| file[0] = 0), Err(Unfit::Format));
        assert_eq!(spoilt(|file| file[4] = 1), Err(Unfit::Format), "32 bits");
        assert_eq!(spoilt(|file| file[5] = 2), Err(Unfit::Format), "big-endian");
        assert_eq!(spoilt(|file| file.truncate(100)), Err(Unfit::Format), "headers that are cut off");
        assert_eq!(spoilt(|file| file[18] = 62), Err(Unfit::Machine));
        assert_eq!(read(PROGRAM, &[]), Err(Unfit::Segments));
        assert_eq!(read(PROGRAM, &[CODE; 7]), Err(Unfit::Segments));
        for outside in [
            (0x2801, 0x800, PROGRAM, 0x800, 5), (u64::MAX, 0x800, PROGRAM, 0x800, 5), (0, 0x800, PROGRAM - 1, 0x800, 5),
            (0, 0x800, CONFIG - 0x100, 0x800, 5), (0, 0x800, u64::MAX - 4, 0x800, 5), (0, 0x800, PROGRAM, 0x7ff, 5),
        ] {
            assert_eq!(read(PROGRAM, &[outside]), Err(Unfit::Outside), "{outside:x?}");
        }
        assert_eq!(read(PROGRAM, &[CODE, (0, 8, PROGRAM + 0xff0, 8, 6)]), Err(Unfit::SharedPage));
        assert_eq!(read(PROGRAM, &[(0, 8, PROGRAM, 8, 7)]), Err(Unfit::WritableCode));
        for entry in [PROGRAM - 4, PROGRAM + 0x800, PROGRAM + 0x1000, 0, u64::MAX] {
            assert_eq!(read(entry, &[CODE, DATA]), Err(Unfit::Entry), "{entry:#x}");
        }
        assert_eq!(read(PROGRAM, &[CODE, (0, 0, PROGRAM + 0x1000, 16 * PAGE, 6)]), Err(Unfit::Memory));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_break_it_and_what_it_takes_fits(
            segments in prop::collection::vec(
                (0..0x4000u64, 0..0x4000u64, prop_oneof![PROGRAM - 0x1000..PROGRAM + 0x8000, any::<u64>()], 0..0x4000u64, 0..8u32), 0..8,
            ),
            entry in PROGRAM - 8..PROGRAM + 0x8000,
            spoilt in prop::option::of((0..200usize, any::<u8>())),
        ) {
            let mut file = file(entry, &segments);
            if let Some((at, byte)) = spoilt && let Some(place) = file.get_mut(at) {
                *place = byte;
            }
            if let Ok(program) = Program::read(&file, 0x3000, 16) {
                prop_assert!(program.pieces.iter().map(Piece::pages).sum::<u64>() <= 16);
                for piece in &program.pieces {
                    prop_assert!(piece.address >= PROGRAM && piece.address + piece.memory_bytes <= CONFIG);
                    prop_assert!(piece.offset + piece.bytes <= 0x3000 && piece.bytes <= piece.memory_bytes);
                }
            }
        }
    }
}
