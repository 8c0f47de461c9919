// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device tree as a guest of ours reads it. (The composer only writes trees, and the kernel reads none.)

use dtoolkit::fdt::Fdt;
use trellis_guest_platform::tree::{MAX_CPUS, Tree};

/// Any bytes.
pub fn run(bytes: &[u8]) {
    let Ok(fdt) = Fdt::new(bytes) else { return };
    let tree = Tree::read(fdt);
    assert!(tree.cpus <= MAX_CPUS);
    for key in ["name", "loops", "misdeed"] {
        let _ = (tree.arguments.value(key), tree.arguments.number(key, 1));
    }
}

/// The tree that the composer gives a guest, and one without nodes.
pub fn seeds() -> Vec<Vec<u8>> {
    let tree = crate::compose::smallest().guests()[0].placement.tree.clone();
    let words = [0xd00d_feed_u32, 72, 56, 72, 40, 17, 16, 0, 0, 16, 0, 0, 0, 0, 1, 0, 2, 9];
    vec![tree, words.iter().flat_map(|word| word.to_be_bytes()).collect()]
}
