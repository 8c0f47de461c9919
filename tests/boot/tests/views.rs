// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that uses its views from inside.

use std::time::Duration;
use trellis_boot_tests::story;
use trellis_cli::run::Run;
use trellis_cli::status::Status;

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

#[test]
fn one_level_alone_may_execute_where_the_cpu_can_tell_them_apart() {
    let seen = story::seen(&Run { cpu: Some("max".into()), ..story::of("split.toml", Duration::from_secs(120)) }, &[]);
    seen.expect_good_end();
    for line in ["the kernel level executes it: 0", "told of the execution: 1", "a fetch: 1", "split: done"] {
        seen.expect(seen.guests_with(|text| text.contains(line)) == ["split"], line);
    }
    seen.expect(seen.guests_with(|line| line.contains("WRONG")).is_empty(), "nothing went wrong");
}

#[test]
fn where_the_cpu_cannot_a_guest_ends_with_the_reason() {
    let seen = story::seen(&Run { cpu: Some("cortex-a72".into()), ..story::of("split.toml", Duration::from_secs(120)) }, &[]);
    seen.expect(seen.outcome.status != Status::Well, "it does not go on as if it had been forbidden");
    seen.expect(seen.log.contains("refused ViewCopy: Unsupported"), "and the report says what was refused");
    seen.expect(seen.guests_with(|line| line.contains("executes it")).is_empty(), "nothing is executed there");
}
