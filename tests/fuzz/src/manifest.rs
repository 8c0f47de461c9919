// SPDX-License-Identifier: MIT OR Apache-2.0
//! A manifest, a board of the user's own and a kernel, all from the fuzzer: an answer, never a panic.

use std::path::{Path, PathBuf};
use trellis_images::{Download, Source, System};

/// Files by what their names end in.
struct Shelf<'a> {
    board: &'a [u8],
    file: &'a [u8],
}

impl Source for Shelf<'_> {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        let is_board = path.extension().is_some_and(|ending| ending == "toml");
        Ok(if is_board { self.board.to_vec() } else { self.file.to_vec() })
    }

    fn guest(&self, name: &str) -> Result<PathBuf, String> {
        Ok(name.into())
    }

    fn fetch(&self, download: Download) -> Result<PathBuf, String> {
        Ok(download.name().into())
    }
}

/// The manifest up to the first zero byte, then the board's file up to the next, then the kernel's.
pub fn run(bytes: &[u8]) {
    let mut pieces = bytes.splitn(3, |byte| *byte == 0);
    let mut piece = || pieces.next().unwrap_or_default();
    let (text, board, file) = (piece(), piece(), piece());
    let text = String::from_utf8_lossy(text).into_owned();
    match System::from_text(Path::new("m.toml"), text, &Shelf { board, file }) {
        Err(report) => {
            assert!(!report.problems().is_empty());
            for problem in report.problems() {
                assert!(!problem.message().is_empty());
            }
            report.render(false);
        }
        Ok(system) => assert!(!system.explain().is_empty()),
    }
}

const FULL: &str = r#"name = "full"
board = "BOARD"
control = "off"
[guest.one]
kind = "elf"
kernel = "hello"
initrd = "debian:busybox-initrd"
command-line = "a b"
memory = "64M"
populate = "lazy"
cpus = [0, 1]
priority = 7
budget = { time = "4ms", period = "10ms" }
gic = 3
on-reset = "end"
essential = true
[guest.two]
kind = "raw"
kernel = "flat.bin"
load-offset = "2M"
memory = "0x4000000"
"#;

/// A manifest with everything, on built-in boards and on a board of its own.
pub fn seeds() -> Vec<Vec<u8>> {
    let elf = crate::elf::program(&[(5, 0x4000_0000, &[0xd5; 16], 16)]);
    let board = trellis_images::Board::built_in("virt").unwrap_or_default();
    let of = |name: &str, board: &str| [FULL.replace("BOARD", name).as_bytes(), b"\0", board.as_bytes(), b"\0", &elf].concat();
    vec![of("virt", ""), of("virt-gicv2", ""), of("raspi4b", ""), of("own.toml", board), b"name = \"n\"\nboard = \"virt\"\n".to_vec()]
}
