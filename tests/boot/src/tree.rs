// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's folder as the checks see it.

use std::fs;
use std::path::{Path, PathBuf};

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every folder with a crate of the workspace, relative to the root, sorted.
pub fn crates() -> Vec<String> {
    let mut found = Vec::new();
    for room in [".", "kernel", "servers", "guests", "tests"] {
        for folder in folders(&root().join(room)) {
            if folder.join("Cargo.toml").is_file() {
                let path = folder.strip_prefix(root().join(".")).unwrap_or(&folder);
                found.push(path.to_string_lossy().trim_start_matches("./").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Every file below a folder whose name ends like this, sorted.
pub fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder) {
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn folders(room: &Path) -> Vec<PathBuf> {
    entries(room).into_iter().filter(|path| path.is_dir()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
