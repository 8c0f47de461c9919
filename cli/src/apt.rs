// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages of the boards' architecture, downloaded and unpacked, never installed.
//!
//! apt runs with folders of its own in the cache and the machine's own sources, so that nothing of the machine
//! changes and no rights are needed.

use crate::status::{Doing, Failure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// apt as it looks from an arm64 machine.
#[derive(Debug)]
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// With its state in this folder; fetches the lists of packages.
    pub fn new(folder: &Path) -> Result<Apt, Failure> {
        for part in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(folder.join(part)).doing(|| format!("create {}", folder.join(part).display()))?;
        }
        let apt = Apt { folder: folder.to_owned() };
        run(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    /// The package that a package without content of its own stands for: its first dependency beginning like this.
    pub fn dependency(&self, package: &str, prefix: &str) -> Result<String, Failure> {
        let text = run(self.command("apt-cache").args(["depends", "--important", package]))?;
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        depends.map(str::trim).find(|name| name.starts_with(prefix)).map(str::to_owned).ok_or_else(|| {
            Failure::says(format!("the package {package} depends on nothing that begins with {prefix}"))
        })
    }

    /// Downloads a package and unpacks it; back comes the folder.
    pub fn unpack(&self, package: &str) -> Result<PathBuf, Failure> {
        let folder = self.folder.join("unpacked").join(package);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).doing(|| format!("create {}", folder.display()))?;
        run(self.command("apt-get").args(["-qq", "download", package]).current_dir(&folder))?;
        let archive = find(&folder, |name| name.ends_with(".deb"))?;
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&folder))?;
        std::fs::remove_file(&archive).doing(|| format!("remove {}", archive.display()))?;
        Ok(folder)
    }

    /// Removes what was unpacked.
    pub fn clean(&self) {
        // What stays costs room and nothing else.
        let _ = std::fs::remove_dir_all(self.folder.join("unpacked"));
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        let options = [
            "APT::Architecture=arm64".into(),
            "APT::Architectures=arm64".into(),
            // The user apt would switch to cannot read a cache in somebody's home.
            "APT::Sandbox::User=root".into(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            "Dir::State::status=/dev/null".into(),
            // Translations and other indices are of no use here.
            "Acquire::Languages=none".into(),
        ];
        options.iter().for_each(|option: &String| {
            command.args(["-o", option]);
        });
        command
    }
}

/// The first file of a folder whose name is wanted.
pub fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf, Failure> {
    let entries = folder.read_dir().doing(|| format!("list {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let found = paths.into_iter().find(|path| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy())));
    found.ok_or_else(|| Failure::says(format!("a package is not as expected: {} lacks a file", folder.display())))
}

/// Runs a command to its end; back comes what it printed.
fn run(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        Failure::hinted(
            format!("could not start {program}: {error}"),
            "real guests are fetched by Debian's apt; where there is none, give the manifest files of your own",
        )
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::hinted(format!("{program} failed ({})", output.status), complaint))
}
