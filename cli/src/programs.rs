// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs on the board, built by cargo in one go: the kernel, the servers, our own guests.
//!
//! The launcher says which toolchain can build for bare metal, by `TRELLIS_BOARD_CARGO`, `TRELLIS_BOARD_RUSTC` and
//! `TRELLIS_BOARD_CORE` ("prebuilt", or "source" where `core` must be built too); without it, the distribution's.

use crate::place;
use crate::progress::Progress;
use crate::status::{Doing, Failure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Folder of the kernel for AArch64.
pub const KERNEL: &str = "kernel/aarch64";

/// Folder of the program that stands in root's place and measures the kernel's own paths.
pub const BENCH_ROOT: &str = "tests/bench";

/// Folder of a guest's servers with a weakness, which a guest can make crash or hang.
const FAULTY: &str = "tests/faulty";

/// Programs by the folder they are made of, such as `servers/root`; where one folder makes several, by folder and name.
pub type Programs = BTreeMap<String, PathBuf>;

/// Builds every program of this folder that runs on an AArch64 board; those with a weakness only if they are asked for.
pub fn build(faulty: bool) -> Result<Programs, Failure> {
    let root = place::root();
    let mut progress = Progress::of("building the board's programs (kernel, servers, guests)");
    let mut cargo = command(&root, faulty)?.spawn().map_err(|error| {
        Failure::hinted(format!("could not start the board's cargo: {error}"), "`./trellis` installs a toolchain for bare metal")
    })?;
    let complaints = cargo.stderr.take().map(|stream| thread::spawn(move || read(stream)));
    let programs = collect(&mut cargo, &root, &mut progress);
    let status = cargo.wait().doing(|| "wait for cargo".into())?;
    let complaints = complaints.and_then(|thread| thread.join().ok()).unwrap_or_default();
    drop(progress);
    if !status.success() {
        return Err(Failure::hinted("the board's programs do not build", complaints));
    }
    Ok(programs)
}

/// Packages with a program for the board: the kernel, the one that measures, each server and guest with a `main.rs`.
fn packages(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut folders = vec![root.join(KERNEL), root.join(BENCH_ROOT)];
    for room in ["servers", "guests"] {
        let room = root.join(room);
        for entry in room.read_dir().doing(|| format!("list {}", room.display()))? {
            folders.push(entry.doing(|| format!("list {}", room.display()))?.path());
        }
    }
    folders.retain(|folder| folder.join("src/main.rs").is_file());
    folders.sort();
    Ok(folders)
}

fn command(root: &Path, faulty: bool) -> Result<Command, Failure> {
    let variable = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
    let mut cargo = Command::new(variable("TRELLIS_BOARD_CARGO", "/usr/bin/cargo"));
    // Flags and wrappers meant for the host's programs must not reach the board's.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    // Programs and their data are within 1 MiB: one instruction finds an address, where two are the default.
    cargo.env("RUSTFLAGS", "-Ccode-model=tiny");
    cargo.env("RUSTC", variable("TRELLIS_BOARD_RUSTC", "/usr/bin/rustc"));
    // The distribution's compiler is a stable one. Building `core`, and to say function by function what is
    // compiled for speed, count as unstable.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo.args(["build", "--release", "--quiet", "--bins", "--message-format=json-render-diagnostics", "--target", TARGET]);
    if variable("TRELLIS_BOARD_CORE", "source") == "source" {
        // Nothing here formats numbers or sorts where speed counts.
        let features = "-Zbuild-std-features=compiler-builtins-mem,optimize_for_size";
        cargo.args(["-Zbuild-std=core,alloc,compiler_builtins", features]);
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", "ld.lld");
    }
    let faulty = faulty.then(|| root.join(FAULTY));
    for folder in packages(root)?.into_iter().chain(faulty) {
        cargo.arg("-p").arg(name(&folder)?);
    }
    cargo.arg("--target-dir").arg(root.join("target/board")).current_dir(root);
    cargo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(cargo)
}

/// The package's name, from its manifest: the first `name = "…"`.
fn name(folder: &Path) -> Result<String, Failure> {
    let path = folder.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    name.map(str::to_owned).ok_or_else(|| Failure::says(format!("{} names no package", path.display())))
}

/// What cargo says about one thing it made.
#[derive(Deserialize)]
struct Artifact {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
    fresh: Option<bool>,
}

/// What it was made of.
#[derive(Deserialize)]
struct Target {
    name: String,
    src_path: PathBuf,
}

fn collect(cargo: &mut Child, root: &Path, progress: &mut Progress) -> Programs {
    let mut programs = Programs::new();
    let Some(messages) = cargo.stdout.take() else { return programs };
    for message in BufReader::new(messages).lines().map_while(Result::ok) {
        let Ok(artifact) = serde_json::from_str::<Artifact>(&message) else { continue };
        let Some(folder) = artifact.manifest_path.as_deref().and_then(Path::parent) else { continue };
        let folder = folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().into_owned();
        if artifact.fresh == Some(false) {
            progress.step(&folder);
        }
        if let (Some(executable), Some(target)) = (artifact.executable, artifact.target) {
            let is_only_one = target.src_path.ends_with("src/main.rs");
            programs.insert(if is_only_one { folder } else { format!("{folder}/{}", target.name) }, executable);
        }
    }
    programs
}

fn read(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read before an error is still worth showing.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crates_with_a_program_are_built() {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["kernel/aarch64", "servers/root", "guests/hello", "guests/platform"] {
            std::fs::create_dir_all(root.path().join(folder).join("src")).expect("a folder");
        }
        for folder in ["servers/root", "guests/hello"] {
            std::fs::write(root.path().join(folder).join("src/main.rs"), "").expect("a file");
        }
        let found = packages(root.path()).expect("folders to list");
        assert_eq!(found, [root.path().join("guests/hello"), root.path().join("servers/root")]);
    }

    #[test]
    fn the_name_of_a_package_is_read_from_its_manifest() {
        assert_eq!(name(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("our own manifest"), "trellis-cli");
    }
}
