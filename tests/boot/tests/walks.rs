// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walks in `docs/walks` name real functions, in the order in which they run.
//!
//! Each row is `| step | file | function | what happens |`, both names in backquotes; several functions of one file may
//! stand in a row, in order. A function is *called by* one that stands before it in the same table: its name is in that
//! one's body, behind the name of whatever the same body called last. Where the processor or a message leads from one
//! function to the next (an exception, ERET, a server's entry) no body says so: such a step has a star.

use std::collections::BTreeMap;
use trellis_boot_tests::{source, tree};

/// A row that is one.
struct Row {
    /// Line of the file, from 1.
    line: usize,
    /// The processor leads here.
    jumps: bool,
    file: String,
    functions: Vec<String>,
}

fn row(number: usize, line: &str) -> Option<Row> {
    let cells: Vec<&str> = line.trim().strip_prefix('|')?.split('|').map(str::trim).collect();
    let [step, file, functions, ..] = cells.as_slice() else { return None };
    let jumps = step.ends_with('*');
    step.trim_end_matches('*').trim().parse::<u32>().ok()?;
    Some(Row { line: number + 1, jumps, file: quoted(file).into_iter().next()?, functions: quoted(functions) })
}

/// The rows of each table.
fn tables(walk: &str) -> Vec<Vec<Row>> {
    let mut tables = vec![Vec::new()];
    for (number, line) in walk.lines().enumerate() {
        match row(number, line) {
            Some(row) => tables.last_mut().expect("there is one").push(row),
            None if !line.trim_start().starts_with('|') => tables.push(Vec::new()),
            None => {}
        }
    }
    tables.retain(|table: &Vec<Row>| !table.is_empty());
    tables
}

/// What stands in backquotes, without types and parentheses: `` `Domain::cap()` `` is `cap`.
fn quoted(cell: &str) -> Vec<String> {
    let inside = cell.split('`').skip(1).step_by(2);
    let plain = inside.map(|name| name.split('(').next().unwrap_or(name).rsplit("::").next().unwrap_or(name).trim());
    plain.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Functions of a table that were walked through, with how far each body has been followed.
#[derive(Default)]
struct Walked(Vec<(Vec<String>, usize)>);

impl Walked {
    /// Goes on to a function; says whether somebody before calls it, not before what was called already.
    fn step(&mut self, function: &str) -> bool {
        for (bodies, reached) in self.0.iter_mut().rev() {
            let places = bodies.iter().flat_map(|body| source::positions(body, function));
            if let Some(place) = places.filter(|place| place >= reached).min() {
                *reached = place;
                return true;
            }
        }
        false
    }
}

fn faults(name: &str, walk: &str) -> Vec<String> {
    tables(walk).iter().flat_map(|table| table_faults(name, table)).collect()
}

fn table_faults(name: &str, table: &[Row]) -> Vec<String> {
    let (mut faults, mut walked, mut texts) = (Vec::new(), Walked::default(), BTreeMap::new());
    for (index, row) in table.iter().enumerate() {
        let place = format!("{name}:{}", row.line);
        let file = &row.file;
        let text = texts.entry(file).or_insert_with(|| std::fs::read_to_string(tree::root().join(file)));
        let Ok(text) = text else {
            faults.push(format!("{place}: there is no file {file}"));
            continue;
        };
        if row.functions.is_empty() {
            faults.push(format!("{place}: names no function"));
        }
        for (at, function) in row.functions.iter().enumerate() {
            if !source::defines(text, function) {
                faults.push(format!("{place}: {file} has no function {function}"));
                continue;
            }
            let begins = at == 0 && (index == 0 || row.jumps);
            if !walked.step(function) && !begins {
                faults.push(format!("{place}: nothing above calls {function}, or not as late"));
            }
            walked.0.push((source::bodies(text, function), 0));
        }
    }
    faults
}

#[test]
fn every_function_of_a_walk_is_reached_in_its_order() {
    let mut wrong = Vec::new();
    for walk in tree::files(&tree::root().join("docs/walks"), ".md") {
        let text = std::fs::read_to_string(&walk).expect("a walk is text");
        let name = format!("docs/walks/{}", walk.file_name().unwrap_or_default().to_string_lossy());
        if tables(&text).is_empty() {
            wrong.push(format!("{name}: no row `| 1 | \\`file\\` | \\`function\\` | … |`"));
        }
        wrong.extend(faults(&name, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_walk_that_names_what_is_not_there_is_found_out() {
    let walk = "| # | file | function |\n|---|---|---|\n| 1 | `tests/boot/src/tree.rs` | `files`, `entries` | good |\n\
                | 2 | `tests/boot/src/tree.rs` | `Tree::gone()` | bad |\n| 3 | `no/such/file.rs` | `x` | bad |\n| 4 | `idl/src/lib.rs` | | bad |\n";
    let expected = [
        "w:4: tests/boot/src/tree.rs has no function gone",
        "w:5: there is no file no/such/file.rs",
        "w:6: names no function",
    ];
    assert_eq!(faults("w", walk), expected);
}

#[test]
fn a_walk_out_of_order_is_found_out() {
    // `crates` calls `folders` with what `root` gave; `folders` calls `entries`.
    let walk = |rows: &[&str]| {
        let rows = rows.iter().enumerate().map(|(i, names)| format!("| {} | `tests/boot/src/tree.rs` | {names} | |\n", i + 1));
        faults("w", &rows.collect::<String>())
    };
    assert_eq!(walk(&["`crates`", "`folders`, `entries`"]), [""; 0]);
    assert_eq!(walk(&["`crates`", "`root`", "`folders`"]), ["w:3: nothing above calls folders, or not as late"]);
    assert_eq!(walk(&["`crates`", "`entries`"]), ["w:2: nothing above calls entries, or not as late"]);
    assert_eq!(walk(&["`folders`", "`crates`"]), ["w:2: nothing above calls crates, or not as late"]);
    assert_eq!(walk(&["`source_of`"]), ["w:1: tests/boot/src/tree.rs has no function source_of"]);
    assert_eq!(faults("w", "| 1 | `tests/boot/src/tree.rs` | `folders` | |\n| 2* | `tests/boot/src/tree.rs` | `crates` | |\n"), [""; 0]);
}
