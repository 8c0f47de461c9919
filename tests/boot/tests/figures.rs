// SPDX-License-Identifier: MIT OR Apache-2.0
//! The benchmark against the committed figures: what grows by more than 2 % needs a commit that says so.

use trellis_boot_tests::tree;
use trellis_cli::bench::Bench;
use trellis_cli::figures::{Figure, parse, worse};
use trellis_cli::session::Outputs;

const FILE: &str = "tests/bench/figures.txt";

#[test]
fn no_figure_grows_unnoticed() {
    let text = std::fs::read_to_string(tree::root().join(FILE)).expect("the committed figures");
    let before = parse(&text).unwrap_or_else(|error| panic!("{FILE}: {error}"));
    if before.is_empty() {
        println!("no figures are committed yet in {FILE}");
        return;
    }
    let (mut out, mut log) = (Vec::new(), Vec::new());
    let measured = Bench::default().measure(&mut Outputs { out: &mut out, log: &mut log });
    let log = String::from_utf8_lossy(&log).into_owned();
    let (now, status) = measured.unwrap_or_else(|failure| panic!("{}\n{log}", failure.text(false)));
    assert_eq!(status as u8, 0, "the probe ends well\n{log}");
    let lines: Vec<String> = now.iter().map(Figure::line).collect();
    let worse = worse(&now, &before);
    assert!(worse.is_empty(), "{}\nThe figures now, for {FILE}:\n{}", worse.join("\n"), lines.join("\n"));
}
