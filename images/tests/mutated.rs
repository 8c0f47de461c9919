// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whatever a manifest, a kernel file or an image consists of: an answer, never a panic.

use proptest::prelude::*;
use std::path::{Path, PathBuf};
use trellis_images::{Download, KernelFile, Kind, Source, System, query};

struct Shelf(Vec<u8>);

impl Source for Shelf {
    fn read(&self, _: &Path) -> std::io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn guest(&self, _: &str) -> Result<PathBuf, String> {
        Ok("guest".into())
    }

    fn fetch(&self, _: Download) -> Result<PathBuf, String> {
        Ok("download".into())
    }
}

const FULL: &str = r#"
name = "full"
board = "virt"
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

fn look(text: String, file: &[u8]) {
    if let Err(report) = System::from_text(Path::new("m.toml"), text, &Shelf(file.to_vec())) {
        assert!(!report.problems().is_empty());
        report.render(false);
    }
}

/// A change at a place: bytes taken out, and others put in.
fn change() -> impl Strategy<Value = (usize, usize, String)> {
    let words = prop_oneof![
        Just("\"".to_string()), Just("18446744073709551615".into()), Just("-1".into()), Just("[".into()), Just("\n".into()),
        Just("\"99999999999G\"".into()), Just("guest.one.".into()), Just("µ".into()), Just("{}".into()), Just("".into()),
        "[ -~]{0,6}", ".{0,3}",
    ];
    (0..FULL.len(), 0usize..9, words)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_manifests_are_answered(changes in prop::collection::vec(change(), 1..5)) {
        let mut bytes = FULL.as_bytes().to_vec();
        for (at, taken, put) in changes {
            let at = at.min(bytes.len());
            let end = (at + taken).min(bytes.len());
            bytes.splice(at..end, put.into_bytes());
        }
        look(String::from_utf8_lossy(&bytes).into_owned(), include_bytes!("files/good.elf"));
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = System::load(Path::new("m.toml"), &Shelf(bytes));
    }

    #[test]
    fn any_values_are_answered(values in prop::collection::vec("[ -~µ]{0,12}", 12)) {
        let keys = ["kind", "kernel", "initrd", "command-line", "memory", "populate", "cpus", "priority", "budget", "gic", "on-reset", "load-offset"];
        let lines: String = keys.iter().zip(&values).map(|(key, value)| format!("{key} = {value}\n")).collect();
        look(format!("name = \"n\"\nboard = \"virt\"\n[guest.one]\n{lines}"), b"x");
    }

    #[test]
    fn changed_kernel_files_are_answered(
        changes in prop::collection::vec((0usize..160, any::<u8>()), 0..12),
        kind in prop_oneof![Just(Kind::Image), Just(Kind::Raw), Just(Kind::Elf)],
        elf in any::<bool>(),
    ) {
        let mut file = if elf { include_bytes!("files/good.elf").to_vec() } else { include_bytes!("files/good.img").to_vec() };
        for (at, byte) in changes {
            let at = at.min(file.len() - 1);
            file[at] = byte;
        }
        let _ = KernelFile::parse(kind, &file, 0x4000_0000, Some(u64::MAX));
        let manifest = FULL.replace("\"elf\"", &format!("\"{}\"", kind.name())).replace("\"hello\"", "\"k\"");
        look(manifest.replace("load-offset", "# load-offset"), &file);
    }

    #[test]
    fn any_bytes_are_answered_as_images(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = query(&bytes);
    }
}
