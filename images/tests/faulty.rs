// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every faulty manifest in `faulty/` is refused with exactly the words that stand beside it.
//!
//! `TRELLIS_EXPECT=write cargo test -p trellis-images` writes what is said now; look at the difference before
//! committing it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use trellis_images::{Code, Download, Report, Source, System};

/// Boards that are `functions-board.toml` or `smmu-board.toml`, as their names begin, with one thing said otherwise: their names, what it
/// says, and what they do.
const OTHERWISE: [(&str, &str, &str); 14] = [
    ("functions-many-board.toml", "messages = 4", "messages = 32"),
    ("functions-three-board.toml", "messages = 4", "messages = 3"),
    ("functions-name-board.toml", "function = \"00:02.0\"", "function = \"00:20.0\""),
    ("functions-twice-board.toml", "function = \"00:03.0\"", "function = \"00:02.0\""),
    ("functions-place-board.toml", "base = 0x20100000", "base = 0x20102000"),
    ("functions-service-board.toml", "base = 0x0c000000", "base = 0x08090000"),
    ("functions-no-function-board.toml", "lines = [153]", "lines = [153]\nmessages = 1"),
    ("functions-ranges-board.toml", "function = \"00:04.0\"", "lines = []"),
    ("functions-table-board.toml", "register = 4, offset = 0x1000", "register = 4, offset = 0x7ff0"),
    ("functions-overlap-board.toml", "base = 0x8000000000", "base = 0x20200000"),
    ("functions-none-board.toml", "[messages]\nservice = 0x08080000\nconfiguration = 0x4010000000\n", ""),
    ("smmu-twice-board.toml", "lines = [56]", "lines = [56]\nstream-ids = [3, 16]"),
    ("smmu-odd-board.toml", "base = 0x09050000", "base = 0x09051000"),
    ("smmu-line-board.toml", "lines = [106, 109]", "lines = [106, 54]"),
];

/// Files as they are, and boards that are nearly one of them; one guest of ours; no downloads.
struct Shelf;

impl Source for Shelf {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        let Some((name, said, instead)) = OTHERWISE.iter().find(|(name, ..)| path.ends_with(name)) else {
            return std::fs::read(path);
        };
        let board = std::fs::read_to_string(path.with_file_name(if name.starts_with("smmu") { "smmu-board.toml" } else { "functions-board.toml" }))?;
        assert_eq!(board.matches(said).count(), 1, "the board says {said} once");
        Ok(board.replace(said, instead).into_bytes())
    }

    fn guest(&self, _: &str) -> Result<PathBuf, String> {
        Ok("tests/files/good.elf".into())
    }

    fn fetch(&self, _: Download) -> Result<PathBuf, String> {
        Err("there is no network".into())
    }
}

fn manifests() -> Vec<PathBuf> {
    let folder = std::fs::read_dir("tests/faulty").expect("a folder of fixtures");
    let mut paths: Vec<_> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

fn refusal(path: &Path) -> Report {
    match System::load(path, &Shelf) {
        Err(report) => report,
        Ok(_) => panic!("{} was accepted", path.display()),
    }
}

#[test]
fn every_faulty_manifest_is_refused_in_the_expected_words() {
    let write = std::env::var("TRELLIS_EXPECT").is_ok_and(|value| value == "write");
    let mut wrong = Vec::new();
    for path in manifests() {
        let said = refusal(&path).render(false);
        let expected = path.with_extension("expected");
        if write {
            std::fs::write(&expected, &said).expect("the expectation is written");
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
            wrong.push(format!("{}:\n{said}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_has_a_faulty_manifest() {
    // Said about files that no fixture can be: one that is not there, and one of a megabyte.
    let elsewhere = [Code::Unreadable, Code::TooLong];
    let mut seen: BTreeSet<Code> = elsewhere.into();
    for path in manifests() {
        seen.extend(refusal(&path).problems().iter().map(|problem| problem.code()));
    }
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !seen.contains(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_problem_has_a_hint_and_a_place() {
    for path in manifests() {
        for problem in refusal(&path).problems() {
            assert!(miette::Diagnostic::help(problem).is_some(), "{}: {problem:?}", path.display());
            assert!(miette::Diagnostic::labels(problem).is_some(), "{}: {problem:?}", path.display());
        }
    }
}

#[test]
fn a_manifest_that_is_not_there_or_too_long_is_refused() {
    assert_eq!(refusal(Path::new("tests/nowhere.toml")).problems()[0].code(), Code::Unreadable);
    struct Long;
    impl Source for Long {
        fn read(&self, _: &Path) -> std::io::Result<Vec<u8>> {
            Ok(vec![b'#'; (1 << 20) + 1])
        }
        fn guest(&self, _: &str) -> Result<PathBuf, String> {
            Err("none".into())
        }
        fn fetch(&self, _: Download) -> Result<PathBuf, String> {
            Err("none".into())
        }
    }
    let report = System::load(Path::new("long.toml"), &Long).expect_err("too long");
    assert_eq!(report.problems()[0].code(), Code::TooLong);
}
