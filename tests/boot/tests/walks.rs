// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walks in `docs/walks` name real functions: each row is `| step | file | function | what happens |`, both names
//! in backquotes; several functions of one file may stand in a row.

use trellis_boot_tests::{source, tree};

/// The file and the functions of a row, if it is one.
fn row(line: &str) -> Option<(String, Vec<String>)> {
    let cells: Vec<&str> = line.trim().strip_prefix('|')?.split('|').map(str::trim).collect();
    let [step, file, functions, ..] = cells.as_slice() else { return None };
    step.parse::<u32>().ok()?;
    Some((quoted(file).into_iter().next()?, quoted(functions)))
}

/// What stands in backquotes, without types and parentheses: `` `Domain::cap()` `` is `cap`.
fn quoted(cell: &str) -> Vec<String> {
    let inside = cell.split('`').skip(1).step_by(2);
    let plain = inside.map(|name| name.split('(').next().unwrap_or(name).rsplit("::").next().unwrap_or(name).trim());
    plain.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn faults(name: &str, walk: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, line) in walk.lines().enumerate() {
        let Some((file, functions)) = row(line) else { continue };
        let place = format!("{name}:{}", number + 1);
        match std::fs::read_to_string(tree::root().join(&file)) {
            Err(_) => faults.push(format!("{place}: there is no file {file}")),
            Ok(_) if functions.is_empty() => faults.push(format!("{place}: names no function")),
            Ok(text) => {
                let gone = functions.iter().filter(|function| !source::defines(&text, function));
                faults.extend(gone.map(|function| format!("{place}: {file} has no function {function}")));
            }
        }
    }
    faults
}

#[test]
fn every_function_of_a_walk_exists() {
    let mut wrong = Vec::new();
    for walk in tree::files(&tree::root().join("docs/walks"), ".md") {
        let text = std::fs::read_to_string(&walk).expect("a walk is text");
        let name = format!("docs/walks/{}", walk.file_name().unwrap_or_default().to_string_lossy());
        if !text.lines().any(|line| row(line).is_some()) {
            wrong.push(format!("{name}: no row `| 1 | \\`file\\` | \\`function\\` | … |`"));
        }
        wrong.extend(faults(&name, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_walk_that_names_what_is_not_there_is_found_out() {
    let walk = "| # | file | function |\n|---|---|---|\n| 1 | `tests/boot/src/tree.rs` | `root`, `crates` | good |\n\
                | 2 | `tests/boot/src/tree.rs` | `Tree::gone()` | bad |\n| 3 | `no/such/file.rs` | `x` | bad |\n| 4 | `idl/src/lib.rs` | | bad |\n";
    let expected = [
        "w:4: tests/boot/src/tree.rs has no function gone",
        "w:5: there is no file no/such/file.rs",
        "w:6: names no function",
    ];
    assert_eq!(faults("w", walk), expected);
}
