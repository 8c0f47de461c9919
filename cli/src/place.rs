// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are on the host: the project's folder and the cache.

use crate::status::{Doing, Failure};
use std::path::{Path, PathBuf};

/// The project's folder: `TRELLIS_ROOT`, or where this tool was compiled.
pub fn root() -> PathBuf {
    match std::env::var_os("TRELLIS_ROOT") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned(),
    }
}

/// What is fetched once and kept: `$XDG_CACHE_HOME/trellis`, or `~/.cache/trellis`.
pub fn cache() -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let base = base.ok_or_else(|| Failure::hinted("there is no place for a cache", "set HOME or XDG_CACHE_HOME"))?;
    let cache = base.join("trellis");
    std::fs::create_dir_all(&cache).doing(|| format!("create {}", cache.display()))?;
    Ok(cache)
}
