// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line as scripts use it: words, exit statuses, what goes to which stream.

use std::process::{Command, Output};

fn trellis(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trellis"));
    command.args(arguments).output().expect("the tool starts")
}

fn status(arguments: &[&str]) -> Option<i32> {
    trellis(arguments).status.code()
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [&["dance"][..], &[], &["check"], &["build", "x.toml"], &["run", "--timeout", "never"], &["run", "--icoun"]] {
        assert_eq!(status(arguments), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_and_version_end_with_0() {
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert_eq!(status(arguments), Some(0), "{arguments:?}");
    }
}

#[test]
fn every_command_has_its_words() {
    let help = |command| String::from_utf8_lossy(&trellis(&[command, "--help"]).stdout).into_owned();
    let words = ["--board", "--cpu", "--icount", "--timeout", "--console", "[MANIFEST]"];
    assert!(words.iter().all(|word| help("run").contains(word)));
    assert!(help("build").contains("-o, --output <IMAGE>") && help("query").contains("<IMAGE>"));
    assert!(help("explain").contains("--svg <FILE>") && help("bench").contains("--json"));
}

#[test]
fn a_manifest_that_is_not_there_or_not_one_ends_with_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("none.toml");
    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, "name = \"x\"\nboard = \"vitr\"\n[guest.a\n").expect("room for a file");
    for path in [missing, broken] {
        for command in ["check", "run", "explain"] {
            let output = trellis(&[command, &path.to_string_lossy()]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command}: {text}");
            assert!(text.contains("trellis::manifest::") && output.stdout.is_empty(), "{text}");
        }
    }
}

#[test]
fn a_file_that_is_no_image_cannot_be_queried() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), [0; 9000]).expect("room for a file");
    assert_eq!(status(&["query", &file.path().to_string_lossy()]), Some(2));
    assert_eq!(status(&["query", "/no/such/image"]), Some(1));
}

/// Whoever reads the page knows every command and option, and finds none there that the tool does not have.
#[test]
fn the_page_about_commands_has_what_the_tool_has() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
    let page = std::fs::read_to_string(page).expect("the page about commands");
    let options = |text: &str| -> std::collections::BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| word.starts_with("--"));
        words.filter(|word| word.as_bytes().get(2).is_some_and(u8::is_ascii_alphabetic)).map(str::to_owned).collect()
    };
    // `./trellis test` is the script's own.
    let mut known = options("--nightly");
    for command in ["run", "check", "build", "query", "explain", "ctl", "sign", "bench"] {
        assert!(page.contains(&format!("## `./trellis {command}")), "{command}");
        known.extend(options(&String::from_utf8_lossy(&trellis(&[command, "--help"]).stdout)));
    }
    for command in ["top", "swap", "events", "watch"] {
        known.extend(options(&String::from_utf8_lossy(&trellis(&["ctl", command, "--help"]).stdout)));
    }
    // `-o` stands there by its short name; help is for those who ask.
    known.retain(|option| option != "--help" && option != "--output");
    assert!(page.contains("-o IMAGE"));
    assert_eq!(options(&page), known);
}
