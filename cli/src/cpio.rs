// SPDX-License-Identifier: MIT OR Apache-2.0
//! An initramfs: a cpio archive in the "newc" format, byte-identical for the same entries.

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written. Everything belongs to root and has no time.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(self, path: &str) -> Archive {
        self.entry(path, DIRECTORY, (0, 0), b"")
    }

    /// Adds an executable file.
    pub fn program(self, path: &str, bytes: &[u8]) -> Archive {
        self.entry(path, PROGRAM, (0, 0), bytes)
    }

    /// Adds a file that nobody executes.
    pub fn file(self, path: &str, bytes: &[u8]) -> Archive {
        self.entry(path, FILE, (0, 0), bytes)
    }

    /// Adds a symbolic link.
    pub fn link(self, path: &str, target: &str) -> Archive {
        self.entry(path, LINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(self, path: &str, major: u32, minor: u32) -> Archive {
        self.entry(path, CHARACTER_DEVICE, (major, minor), b"")
    }

    /// The whole archive.
    pub fn finish(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"").bytes
    }

    fn entry(mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Archive {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let (bytes, name) = (data.len() as u32, path.len() as u32 + 1);
        // inode, mode, user, group, links, time, bytes, device of the file (2), device itself (2), name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, bytes, 0, 0, device.0, device.1, name, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_data_are_padded_to_four_bytes() {
        let archive = Archive::default().directory("bin").program("init", b"#!x").finish();
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(&archive[110..116], b"bin\0\0\0");
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.contains("init\0\0#!x\0"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
    }
}
