// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket by which others talk to a running system: this user's alone, there while the system runs, and no longer.

use crate::status::{Doing, Failure};
use rustix::fs::Mode;
use rustix::process::umask;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket that others connect to.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: UnixListener,
    /// Which file it is: another one of this name is not ours to remove.
    file: Option<(u64, u64)>,
}

impl Door {
    /// Makes the socket. What nobody listens at any more is replaced; anything else of this name is in the way.
    pub fn open(path: &Path) -> Result<Door, Failure> {
        let shown = path.display();
        if let Ok(there) = std::fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(Failure::usage(format!("{shown} is there and is no socket"), "choose another name for --control"));
            }
            match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).doing(|| format!("remove the socket {shown}, at which nobody listens"))?;
                }
                _ => {
                    let hint = "another system runs there; choose another name for --control";
                    return Err(Failure::usage(format!("the socket {shown} is in use"), hint));
                }
            }
        }
        // Nobody else may connect, not even for a moment.
        let before = umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.doing(|| format!("listen at {shown}"))?;
        Ok(Door { path: path.to_owned(), listener, file: file(path) })
    }

    /// Waits for the next who connects.
    pub fn next(&self) -> std::io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }

    /// Connects to it, so that whoever waits wakes up.
    pub fn knock(&self) {
        // It fails when nobody waits any more.
        let _ = UnixStream::connect(&self.path);
    }

    /// Takes the name away.
    pub fn close(&self) {
        if self.file.is_some() && file(&self.path) == self.file {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

fn file(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn text(path: &Path) -> String {
        Door::open(path).expect_err("it is in the way").text(false)
    }

    #[test]
    fn it_is_this_users_alone_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let door = Door::open(&path).expect("a socket");
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(text(&path).contains("is in use"));
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_nobody_listens_at_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists(), "its owner did not tidy up");
        let door = Door::open(&path).expect("nobody listens there");
        std::fs::remove_file(&path).expect("somebody removes it");
        std::fs::write(&path, "mine").expect("and puts a file there");
        assert!(text(&path).contains("is no socket"));
        drop(door);
        assert!(path.exists(), "which stays");
    }
}
