// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload while it is filled: parts at page boundaries, each with its name and hash.
//!
//! Two parts of the same content are one: guests of one kernel share its bytes.

use crate::program::ComposeError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use trellis_idl::kernel::PAGE;
use trellis_idl::plan::Part;

/// Ends every image: the length of its index and this word.
pub const TRAILER: u64 = u64::from_le_bytes(*b"TRLINDEX");
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 16;

/// One part of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub name: String,
    /// From the image's first byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: [u8; 32],
}

/// SHA-256.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The payload so far.
#[derive(Default)]
pub struct Payload {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    known: BTreeMap<[u8; 32], Part>,
}

impl Payload {
    /// Puts a part at the next page, or finds it there already.
    pub fn add(&mut self, name: impl Into<String>, bytes: &[u8]) -> Part {
        let sha256 = hash(bytes);
        let part = *self.known.entry(sha256).or_insert_with(|| {
            let offset = self.bytes.len() as u64;
            self.bytes.extend_from_slice(bytes);
            pad(&mut self.bytes);
            Part { offset, bytes: bytes.len() as u64 }
        });
        self.entries.push(Entry { name: name.into(), offset: part.offset, bytes: part.bytes, sha256 });
        part
    }

    /// A configuration: its length in 8 bytes, then postcard.
    pub fn add_config(&mut self, name: &str, config: &impl Serialize) -> Result<Part, ComposeError> {
        let encoded = postcard::to_stdvec(config).map_err(|_| ComposeError::Encoding("configuration"))?;
        let length = (encoded.len() as u64).to_le_bytes();
        Ok(self.add(format!("config.{name}"), &[&length[..], &encoded].concat()))
    }

    /// Appends itself and the index to the kernel, whose bytes are whole pages.
    pub fn finish(self, mut image: Vec<u8>) -> Result<Vec<u8>, ComposeError> {
        let base = image.len() as u64;
        let kernel = Entry { name: "kernel".into(), offset: 0, bytes: base, sha256: hash(&image) };
        let parts = self.entries.into_iter().map(|entry| Entry { offset: entry.offset + base, ..entry });
        let index: Vec<Entry> = std::iter::once(kernel).chain(parts).collect();
        let index = postcard::to_stdvec(&index).map_err(|_| ComposeError::Encoding("index"))?;
        image.extend_from_slice(&self.bytes);
        image.extend_from_slice(&index);
        let end = (image.len() + TRAILER_BYTES).next_multiple_of(PAGE as usize);
        image.resize(end - TRAILER_BYTES, 0);
        image.extend_from_slice(&(index.len() as u64).to_le_bytes());
        image.extend_from_slice(&TRAILER.to_le_bytes());
        Ok(image)
    }

    /// Bytes that `finish` will append: known before, since the kernel's header says them and the index hashes that.
    pub fn finished_bytes(&self, base: u64) -> Result<u64, ComposeError> {
        let kernel = Entry { name: "kernel".into(), offset: 0, bytes: base, sha256: [0; 32] };
        let parts = self.entries.iter().map(|entry| Entry { offset: entry.offset + base, ..entry.clone() });
        let index: Vec<Entry> = std::iter::once(kernel).chain(parts).collect();
        let index = postcard::to_stdvec(&index).map_err(|_| ComposeError::Encoding("index"))?;
        Ok((self.bytes.len() as u64 + (index.len() + TRAILER_BYTES) as u64).next_multiple_of(PAGE))
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
}
