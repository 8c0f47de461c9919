// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything goes in a guest's memory: kernel, initial file system, device tree.
//!
//! Guests disagree about the device tree: some look at the first byte of memory, others follow x0, and flat images
//! may want it above their end. So an Image gets it above everything, the others at the first byte where that is free.

use crate::device_tree::{MEMORY_BASE, Platform};
use crate::kernel_file::{Flaw, KernelFile, Piece};
use crate::manifest::Kind;
use crate::problem::Code;
use crate::quantity::show_size;
use std::ops::Range;

/// Block that guest memory consists of.
pub const BLOCK: u64 = 2 << 20;
/// Loads a vcpu server's configuration holds, the initial file system and the device tree among them.
const MAX_KERNEL_PIECES: usize = 6;

/// A guest's memory before it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The kernel.
    pub kernel: KernelFile,
    /// The initial file system.
    pub initrd: Option<Range<u64>>,
    /// Where the device tree is: vCPU 0's x0.
    pub tree_at: u64,
    /// The device tree.
    pub tree: Vec<u8>,
}

/// Places everything, or says what is in the way.
pub fn place(kind: Kind, kernel: KernelFile, initrd_bytes: Option<u64>, mut platform: Platform<'_>) -> Result<Placement, Flaw> {
    check_pieces(&kernel.pieces)?;
    platform.initrd = initrd_bytes.map(|_| 0..0);
    let tree_bytes = build(&platform)?.len() as u64;
    let first = kernel.pieces.first().map_or(MEMORY_BASE, |piece| piece.address);
    let mut end = kernel.pieces.last().map_or(MEMORY_BASE, |piece| piece.address + piece.memory_bytes);
    if first < MEMORY_BASE {
        return Err(outside(&kernel.pieces[0], platform.memory_bytes));
    }
    platform.initrd = match initrd_bytes {
        None => None,
        Some(bytes) => {
            let start = up(end, BLOCK)?;
            end = start.checked_add(bytes).ok_or_else(nowhere)?;
            Some(start..end)
        }
    };
    let tree_at = tree_place(kind, first, end, tree_bytes)?;
    let needed = end.max(tree_at + tree_bytes) - MEMORY_BASE;
    if needed > platform.memory_bytes {
        return Err(too_small(kind, &kernel, needed, platform.memory_bytes));
    }
    Ok(Placement { kernel, tree_at, tree: build(&platform)?, initrd: platform.initrd })
}

fn tree_place(kind: Kind, first: u64, end: u64, bytes: u64) -> Result<u64, Flaw> {
    let fits_below = MEMORY_BASE + bytes <= first;
    match kind {
        Kind::Image => up(end, BLOCK),
        Kind::Raw | Kind::Elf if fits_below => Ok(MEMORY_BASE),
        Kind::Elf => up(end, BLOCK),
        Kind::Raw => Err(Flaw::new(
            Code::Overlap,
            format!("the kernel at {first:#x} lies on the device tree at {MEMORY_BASE:#x}"),
            format!("raw kernels find their device tree in the first {}; use load-offset = \"2M\"", show_size(up(bytes, 4096)?)),
        )),
    }
}

fn check_pieces(pieces: &[Piece]) -> Result<(), Flaw> {
    for piece in pieces {
        piece.address.checked_add(piece.memory_bytes).filter(|end| *end < 1 << 60).ok_or_else(nowhere)?;
    }
    if pieces.is_empty() {
        return Err(Flaw::new(Code::ElfSegments, "this ELF file loads nothing", "it has no PT_LOAD segment: is it an object file?"));
    }
    if pieces.iter().filter(|piece| !piece.file.is_empty()).count() > MAX_KERNEL_PIECES {
        let message = format!("this ELF file has {} segments to load", pieces.len());
        return Err(Flaw::new(Code::TooManyLoads, message, format!("link it with at most {MAX_KERNEL_PIECES}")));
    }
    match pieces.windows(2).find(|pair| pair[0].address + pair[0].memory_bytes > pair[1].address) {
        None => Ok(()),
        Some(pair) => Err(Flaw::new(
            Code::Overlap,
            format!("the {} and the {} overlap", pair[0].name, pair[1].name),
            "its linker script gives two segments the same physical addresses",
        )),
    }
}

fn outside(piece: &Piece, memory_bytes: u64) -> Flaw {
    Flaw::new(
        Code::OutsideMemory,
        format!("the {} ({}) lies outside of the guest's memory", piece.name, show_size(piece.memory_bytes)),
        format!("a guest's memory is {MEMORY_BASE:#x}..{:#x}", MEMORY_BASE.saturating_add(memory_bytes)),
    )
}

// A segment that begins beyond the memory is linked for elsewhere; one that only ends there wants more memory.
fn too_small(kind: Kind, kernel: &KernelFile, needed: u64, memory_bytes: u64) -> Flaw {
    let beyond = kernel.pieces.iter().find(|piece| piece.address >= MEMORY_BASE + memory_bytes);
    match beyond {
        Some(piece) if kind == Kind::Elf => outside(piece, memory_bytes),
        _ => Flaw::new(
            Code::MemoryTooSmall,
            format!("{} of memory are too little for what is loaded", show_size(memory_bytes)),
            match needed.checked_next_multiple_of(BLOCK) {
                Some(bytes) => format!("kernel, initial file system and device tree alone end at {}", show_size(bytes)),
                None => "the kernel wants more memory than there can be".into(),
            },
        ),
    }
}

fn build(platform: &Platform<'_>) -> Result<Vec<u8>, Flaw> {
    let flaw = |error| Flaw::new(Code::BadCommandLine, format!("no device tree can be written: {error}"), "shorten the command line");
    platform.device_tree().map_err(flaw)
}

fn up(address: u64, to: u64) -> Result<u64, Flaw> {
    address.checked_next_multiple_of(to).filter(|address| *address < 1 << 60).ok_or_else(nowhere)
}

fn nowhere() -> Flaw {
    Flaw::new(Code::OutsideMemory, "this is loaded beyond all memory", "its addresses are damaged or for another machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform() -> Platform<'static> {
        Platform { memory_bytes: 64 << 20, vcpus: 1, gic: 3, command_line: "", initrd: None, devices: &[] }
    }

    fn kernel(address: u64, memory_bytes: u64) -> KernelFile {
        let piece = Piece { name: "kernel".into(), address, file: 0..16, memory_bytes };
        KernelFile { pieces: vec![piece], entry: address }
    }

    #[test]
    fn an_image_has_its_tree_above_all_and_others_at_the_first_byte() {
        let image = place(Kind::Image, kernel(0x4020_0000, 0x30_0000), Some(5000), platform()).expect("fits");
        assert_eq!(image.initrd, Some(0x4060_0000..0x4060_1388));
        assert_eq!(image.tree_at, 0x4080_0000);
        let raw = place(Kind::Raw, kernel(0x4020_0000, 0x30_0000), None, platform()).expect("fits");
        assert_eq!(raw.tree_at, MEMORY_BASE);
    }

    #[test]
    fn a_raw_kernel_on_the_tree_is_refused_and_an_elf_moves_it() {
        assert_eq!(place(Kind::Raw, kernel(MEMORY_BASE, 8192), None, platform()).unwrap_err().code, Code::Overlap);
        assert_eq!(place(Kind::Elf, kernel(MEMORY_BASE, 8192), None, platform()).expect("fits").tree_at, 0x4020_0000);
    }

    #[test]
    fn addresses_at_the_end_of_everything_are_refused() {
        assert_eq!(place(Kind::Elf, kernel(u64::MAX - 4096, 4096), Some(5), platform()).unwrap_err().code, Code::OutsideMemory);
    }
}
