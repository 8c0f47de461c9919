// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much unsafe code there is, crate by crate, against the committed numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use trellis_boot_tests::{source, tree};

/// Crates that may have some; everybody else forbids it (style: decisions apart from hardware and unsafe).
const MAY: [&str; 15] = [
    "kernel/aarch64", "kernel/hosted", "runtime", "guests/acts", "guests/churn", "guests/hello", "guests/hostile", "guests/platform",
    "guests/probe", "guests/steps", "guests/vectors", "guests/views", "guests/watched", "tests/walks", "tests/bench",
];
const FILE: &str = "tests/boot/unsafe.txt";

fn counted() -> BTreeMap<String, usize> {
    let crates = tree::crates().into_iter();
    let count = |folder: &String| -> usize {
        let files = tree::files(&tree::root().join(folder).join("src"), ".rs");
        let texts = files.iter().map(|file| std::fs::read_to_string(file).expect("source is text"));
        texts.map(|text| source::count(&source::code(&text), "unsafe")).sum()
    };
    crates.map(|folder| (folder.clone(), count(&folder))).filter(|(_, count)| *count > 0).collect()
}

/// `FOLDER COUNT` a line.
fn committed() -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(tree::root().join(FILE)).expect("the committed numbers");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| {
        let (folder, count) = line.split_once(' ').unwrap_or_else(|| panic!("{FILE}: not `FOLDER COUNT`: {line}"));
        (folder.to_owned(), count.trim().parse().unwrap_or_else(|_| panic!("{FILE}: not a number: {line}")))
    }).collect()
}

#[test]
fn unsafe_code_grows_only_in_a_commit_that_says_so() {
    let (counted, committed) = (counted(), committed());
    let mut now = String::new();
    for (folder, count) in &counted {
        let _ = writeln!(now, "{folder} {count}");
    }
    println!("uses of `unsafe`, crate by crate:\n{now}");
    let grown = counted.iter().any(|(folder, count)| *count > committed.get(folder).copied().unwrap_or(0));
    assert!(!grown, "more `unsafe` than {FILE} says; if that must be, say why in the commit that raises it. Now:\n{now}");
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    let mut wrong = Vec::new();
    for folder in tree::crates() {
        for root in ["src/lib.rs", "src/main.rs"] {
            let path = tree::root().join(&folder).join(root);
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            // A file with nothing in it yet has nothing to forbid.
            let is_empty = source::code(&text).trim().is_empty();
            // The macro that binds a server to the board brings an attribute that `forbid` would not let pass.
            let lints = if root == "src/main.rs" { &["#![forbid(unsafe_code)]", "#![deny(unsafe_code)]"][..] } else { &["#![forbid(unsafe_code)]"] };
            let has_one = lints.iter().any(|lint| source::code(&text).contains(lint));
            if !MAY.contains(&folder.as_str()) && !is_empty && !has_one {
                wrong.push(format!("{folder}/{root} does not forbid unsafe code"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
