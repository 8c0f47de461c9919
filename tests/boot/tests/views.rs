// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that uses its views from inside.

use std::time::Duration;
use trellis_boot_tests::story;

#[test]
fn a_guest_enters_views_and_is_told_of_what_they_forbid() {
    let seen = story::seen(&story::of("views.toml", Duration::from_secs(120)), &[]);
    seen.expect_good_end();
    let with = |text: &str| seen.guests_with(|line| line.contains(text));
    for line in [
        "it shows the other page: 2", "it shows its own: 1", "a hidden view is not entered: -12", "nor one that cannot be: -6",
        "told of the write: 1", "which was then done: 8", "in view: 2", "and its state: 964", "views: done",
    ] {
        seen.expect(with(line) == ["views"], line);
    }
    seen.expect(with("WRONG").is_empty(), "nothing went wrong");
}
