// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an image consists of, from the image alone.

use crate::payload::{Entry, TRAILER, TRAILER_BYTES, hash};
use std::fmt;
use trellis_idl::boot::{BootHeader, HEADER_OFFSET, MAGIC, VERSION};
use zerocopy::FromBytes;

/// A part as the image's index has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartInfo {
    /// What it is.
    pub name: String,
    /// From the image's first byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 that the index has.
    pub sha256: [u8; 32],
    /// Whether the image's bytes still have that hash.
    pub intact: bool,
}

impl PartInfo {
    /// The hash in hexadecimal digits.
    pub fn sha256_text(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An image, read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Queried {
    /// The manifest it was composed of.
    pub manifest: String,
    /// Its parts in order.
    pub parts: Vec<PartInfo>,
}

/// Why a file cannot be read as an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueryError {
    /// It has no header of ours.
    NotAnImage,
    /// A header of another version: this one.
    Version(u32),
    /// It is shorter or longer than its header says.
    Length,
    /// Its index is damaged.
    Index,
    /// It holds no manifest.
    NoManifest,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueryError::NotAnImage => write!(f, "this is not an image of Trellis"),
            QueryError::Version(version) => write!(f, "this image is of version {version}, this tool reads version {VERSION}"),
            QueryError::Length => write!(f, "this image is not as long as it says: was it copied to its end?"),
            QueryError::Index => write!(f, "the index of this image is damaged"),
            QueryError::NoManifest => write!(f, "this image holds no manifest"),
        }
    }
}

impl std::error::Error for QueryError {}
impl miette::Diagnostic for QueryError {}

/// Reads an image back.
pub fn query(image: &[u8]) -> Result<Queried, QueryError> {
    let header = image.get(HEADER_OFFSET..).and_then(|rest| BootHeader::read_from_prefix(rest).ok());
    let (header, _) = header.filter(|(header, _)| header.magic == MAGIC).ok_or(QueryError::NotAnImage)?;
    if header.version != VERSION {
        return Err(QueryError::Version(header.version));
    }
    if header.image_bytes != image.len() as u64 {
        return Err(QueryError::Length);
    }
    let parts = index(image).ok_or(QueryError::Index)?;
    let parts: Vec<PartInfo> = parts.into_iter().map(|entry| info(image, entry)).collect();
    let manifest = parts.iter().find(|part| part.name == "manifest").and_then(|part| content(image, part.offset, part.bytes));
    let manifest = manifest.ok_or(QueryError::NoManifest)?;
    Ok(Queried { manifest: String::from_utf8_lossy(manifest).into_owned(), parts })
}

fn index(image: &[u8]) -> Option<Vec<Entry>> {
    let trailer = image.last_chunk::<TRAILER_BYTES>()?;
    let (bytes, magic) = trailer.split_at(8);
    if magic != TRAILER.to_le_bytes() {
        return None;
    }
    // The index begins at the last page boundary from which it and the trailer reach the end.
    let bytes = usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()?;
    let taken = bytes.checked_add(TRAILER_BYTES)?.checked_next_multiple_of(4096)?;
    let start = image.len().checked_sub(taken)?;
    postcard::from_bytes(image.get(start..start.checked_add(bytes)?)?).ok()
}

fn content(image: &[u8], offset: u64, bytes: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    image.get(start..start.checked_add(usize::try_from(bytes).ok()?)?)
}

fn info(image: &[u8], entry: Entry) -> PartInfo {
    let intact = content(image, entry.offset, entry.bytes).is_some_and(|bytes| hash(bytes) == entry.sha256);
    PartInfo { name: entry.name, offset: entry.offset, bytes: entry.bytes, sha256: entry.sha256, intact }
}
