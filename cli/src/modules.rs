// SPDX-License-Identifier: MIT OR Apache-2.0
//! Modules of a Linux kernel, out of its package: the wanted ones with all that they depend on, in the order in which they
//! are to be loaded. Each says itself what it depends on, in its section `.modinfo`; a list of that is only made where the
//! package is installed.

use crate::status::{Doing, Failure};
use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A module: its name, as the kernel has it, and its file, unpacked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Module {
    /// With underscores, whatever the file is called.
    pub name: String,
    /// An ELF file.
    pub bytes: Vec<u8>,
}

/// These modules out of a folder and all below it, each after what it depends on.
pub fn with_all_they_need(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>, Failure> {
    let mut files = BTreeMap::new();
    list(folder, &mut files)?;
    let mut found = Vec::new();
    for name in wanted {
        add(name, &files, &mut Vec::new(), &mut found)?;
    }
    Ok(found)
}

/// `above` are those that wait for this one.
fn add(name: &str, files: &BTreeMap<String, PathBuf>, above: &mut Vec<String>, found: &mut Vec<Module>) -> Result<(), Failure> {
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if above.iter().any(|waits| waits == name) {
        return Err(Failure::says(format!("the kernel's module {name} depends on itself")));
    }
    let file = files.get(name).ok_or_else(|| Failure::says(format!("the kernel package has no module {name}")))?;
    let bytes = unpacked(file)?;
    above.push(name.to_owned());
    for needed in needs(&bytes).ok_or_else(|| Failure::says(format!("{} is no module of a kernel", file.display())))? {
        add(&needed, files, above, found)?;
    }
    above.pop();
    found.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Modules by their names.
fn list(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Failure> {
    for entry in folder.read_dir().doing(|| format!("list {}", folder.display()))? {
        let entry = entry.doing(|| format!("list {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&path, files)?;
        } else if let Some(name) = name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz")) {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// A file's bytes, decompressed if it is.
fn unpacked(file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = fs::read(file).doing(|| format!("read {}", file.display()))?;
    if file.extension().is_none_or(|kind| kind != "xz") {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    let done = lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut unpacked);
    done.map_err(|error| Failure::says(format!("{} does not decompress: {error:?}", file.display())))?;
    Ok(unpacked)
}

/// What a module depends on: words `key=value`, each with a zero behind it.
fn needs(module: &[u8]) -> Option<Vec<String>> {
    let file = ElfFile64::<LittleEndian>::parse(module).ok()?;
    let words = file.section_by_name(".modinfo")?.data().ok()?;
    let mut words = words.split(|byte| *byte == 0);
    let names = words.find_map(|word| word.strip_prefix(b"depends=".as_slice()))?;
    let names = std::str::from_utf8(names).ok()?;
    Some(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the sections `.modinfo` and that of names.
    fn module(words: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let names_at = 64 + words.len();
        let sections_at = (names_at + names.len()).next_multiple_of(8);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        let half = |file: &mut Vec<u8>, number: u16| file.extend(number.to_le_bytes());
        let word = |file: &mut Vec<u8>, number: usize| file.extend((number as u32).to_le_bytes());
        let long = |file: &mut Vec<u8>, number: usize| file.extend((number as u64).to_le_bytes());
        // To be relocated, AArch64, version 1; no entry, no segments, sections; of these three of 64 bytes, names in the third.
        half(&mut file, 1);
        half(&mut file, 183);
        word(&mut file, 1);
        [0, 0, sections_at].iter().for_each(|number| long(&mut file, *number));
        word(&mut file, 0);
        [64, 0, 0, 64, 3, 2].iter().for_each(|number| half(&mut file, *number));
        file.extend(words.as_bytes());
        file.extend(names);
        file.resize(sections_at + 64, 0);
        for (name, kind, at, bytes) in [(1, 1, 64, words.len()), (10, 3, names_at, names.len())] {
            word(&mut file, name);
            word(&mut file, kind);
            [0, 0, at, bytes].iter().for_each(|number| long(&mut file, *number));
            [0, 0].iter().for_each(|number| word(&mut file, *number));
            [1, 0].iter().for_each(|number| long(&mut file, *number));
        }
        file
    }

    /// A folder with these modules, each with what it depends on.
    fn folder(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, needed) in modules {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder above")).expect("a folder");
            fs::write(path, module(&format!("license=GPL\0depends={needed}\0name=x\0"))).expect("a module");
        }
        folder
    }

    fn names(folder: &Path, wanted: &[&str]) -> Result<Vec<String>, Failure> {
        Ok(with_all_they_need(folder, wanted)?.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn each_comes_after_what_it_depends_on_and_once() {
        let all = [("net/the-card.ko", "ring,bus"), ("bus/bus.ko", "ring"), ("bus/ring.ko", ""), ("bus/bus_pci.ko", "the-legacy,bus,ring"), ("a/b/the-legacy.ko", ""), ("other.ko", "gone")];
        let folder = folder(&all);
        let found = names(folder.path(), &["bus_pci", "the_card"]).expect("all are there");
        assert_eq!(found, ["the_legacy", "ring", "bus", "bus_pci", "the_card"]);
        assert_eq!(names(folder.path(), &["bus", "ring"]).expect("both are there"), ["ring", "bus"]);
    }

    #[test]
    fn a_compressed_one_is_decompressed() {
        let folder = folder(&[("card.ko", "ring"), ("ring.ko", "")]);
        let plain = fs::read(folder.path().join("ring.ko")).expect("a module");
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut plain.as_slice(), &mut packed).expect("it compresses");
        fs::write(folder.path().join("ring.ko.xz"), packed).expect("a module");
        fs::remove_file(folder.path().join("ring.ko")).expect("it is there");
        let found = with_all_they_need(folder.path(), &["card"]).expect("both are there");
        assert_eq!(found[0], Module { name: "ring".into(), bytes: plain });
    }

    #[test]
    fn what_is_missing_circular_or_none_is_said() {
        let folder = folder(&[("a.ko", "b"), ("b.ko", "c"), ("c.ko", "b"), ("d.ko", "gone")]);
        for (name, content) in [("e.ko", b"\x7fELF".as_slice()), ("f.ko", b""), ("g.ko.xz", b"no"), ("h.ko", &module("license=GPL\0"))] {
            fs::write(folder.path().join(name), content).expect("a file");
        }
        let cases = [("a", "depends on itself"), ("d", "no module gone"), ("e", "is no module"), ("f", "is no module"), ("g", "does not decompress"), ("h", "is no module"), ("i", "no module i")];
        for (name, said) in cases {
            let failure = names(folder.path(), &[name]).expect_err(name).text(false);
            assert!(failure.contains(said), "{name}: {failure}");
        }
    }
}
