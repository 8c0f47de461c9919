// SPDX-License-Identifier: MIT OR Apache-2.0
//! A file that is said to be an image, as `trellis query` and `trellis run` read it.

use trellis_cli::names::Names;
use trellis_images::query;

/// The bytes are written over a good image from both of its ends: its header's half first, then its index's.
pub fn run(bytes: &[u8]) {
    let _ = (query(bytes), Names::from_image(bytes, "m.toml"));
    thread_local! {
        static GOOD: Vec<u8> = good();
    }
    let mut image = GOOD.with(Clone::clone);
    let (front, back) = bytes.split_at(bytes.len() / 2);
    let header = trellis_idl::boot::HEADER_OFFSET;
    image.iter_mut().skip(header).zip(front).for_each(|(at, byte)| *at ^= byte);
    let start = image.len().saturating_sub(back.len());
    image[start..].iter_mut().zip(back).for_each(|(at, byte)| *at ^= byte);
    if let Ok(queried) = query(&image) {
        for part in queried.parts.iter().filter(|part| part.intact) {
            assert!(part.offset + part.bytes <= image.len() as u64, "{} is intact and not there", part.name);
        }
    }
    let _ = Names::from_image(&image, "m.toml");
}

fn good() -> Vec<u8> {
    crate::compose::smallest().compose(&crate::compose::programs()).expect("the smallest system is an image")
}

/// Nothing changed; the end of a good image as it is; each of the header's first words changed.
pub fn seeds() -> Vec<Vec<u8>> {
    let image = good();
    let mut seeds = vec![vec![], image[image.len() - 600..].to_vec(), vec![0; 900]];
    seeds.extend((0..12).map(|word| {
        let mut bytes = vec![0; 400];
        bytes[word * 8] = 0x10;
        bytes[399 - word] = 0x10;
        bytes
    }));
    seeds
}
