// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lists of checks in `docs/checks*.md` name tests that exist: a name in backquotes that is a sentence, five words or
//! more, is a test's.

use std::collections::BTreeSet;
use trellis_boot_tests::{source, tree};

/// Names in backquotes that are sentences.
fn sentences(text: &str) -> Vec<&str> {
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    text.split('`').skip(1).step_by(2).filter(is_name).filter(|name| name.matches('_').count() >= 4).collect()
}

/// Functions of every Rust file.
fn functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in tree::crates() {
        for file in ["src", "tests"].iter().flat_map(|room| tree::files(&tree::root().join(&folder).join(room), ".rs")) {
            let code = source::code(&std::fs::read_to_string(&file).expect("a readable file"));
            let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
            found.extend(words.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].to_owned()));
        }
    }
    found
}

#[test]
fn every_test_that_a_list_of_checks_names_exists() {
    let known = functions();
    let mut missing = Vec::new();
    let mut seen = 0;
    for list in tree::files(&tree::root().join("docs"), ".md") {
        let name = list.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("checks") {
            continue;
        }
        let text = std::fs::read_to_string(&list).expect("a readable list");
        for sentence in sentences(&text) {
            seen += 1;
            if !known.contains(sentence) {
                missing.push(format!("{name}: {sentence}"));
            }
        }
    }
    assert!(seen > 0, "there are lists");
    assert!(missing.is_empty(), "no such tests:\n{}", missing.join("\n"));
}

#[test]
fn a_sentence_has_five_words() {
    assert_eq!(sentences("`a_b_c_d` `Fact::A` x_y_z_v_w `one_two_three_four_five`"), ["one_two_three_four_five"]);
}

#[test]
fn every_check_of_views_and_events_has_a_test_or_a_reason() {
    for (name, begin) in [("docs/checks-views.md", "| ALT"), ("docs/checks-events.md", "| EVT")] {
        let page = std::fs::read_to_string(tree::root().join(name)).expect("the page");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(begin)).collect();
        assert!(rows.len() > 20, "the page has its rows");
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert!(!sentences(cells[2]).is_empty() || !cells[3].is_empty(), "neither a test nor a reason: {row}");
        }
    }
}
