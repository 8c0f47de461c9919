// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the composer gets bytes from; the host tool decides what that means.
//!
//! The composer itself opens no file and fetches nothing: it asks a [`Source`]. So the same code checks a manifest on
//! disk, in a test and in a fuzzer.

use std::path::{Path, PathBuf};

/// Something the tool can fetch by name: in a manifest, `debian:NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Download {
    /// Debian's arm64 cloud kernel: an arm64 Image.
    Linux,
    /// An initial file system made of Debian's static busybox.
    BusyboxInitrd,
    /// The same with a program of ours that keeps vector registers busy.
    ChurnInitrd,
    /// The same with Linux' drivers for a network card of Virtio's on PCI.
    NetworkInitrd,
    /// U-Boot for QEMU's virt board: a raw image.
    UBoot,
}

impl Download {
    /// Every download.
    pub const ALL: [Download; 5] =
        [Download::Linux, Download::BusyboxInitrd, Download::ChurnInitrd, Download::NetworkInitrd, Download::UBoot];

    /// How a manifest names it.
    pub const fn name(self) -> &'static str {
        match self {
            Download::Linux => "debian:linux",
            Download::BusyboxInitrd => "debian:busybox-initrd",
            Download::ChurnInitrd => "debian:busybox-churn-initrd",
            Download::NetworkInitrd => "debian:busybox-network-initrd",
            Download::UBoot => "debian:u-boot",
        }
    }
}

/// Guests of ours, as manifests name them. All are ELF files.
pub const OUR_GUESTS: [&str; 10] = ["acts", "alarm", "edu", "hello", "hostile", "probe", "steps", "vectors", "views", "watched"];

/// What the composer asks of its caller.
pub trait Source {
    /// Bytes of a file.
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>>;

    /// Where one of [`OUR_GUESTS`] was built, or a sentence why it was not.
    fn guest(&self, name: &str) -> Result<PathBuf, String>;

    /// Where a download lies, or a sentence why it could not be had.
    fn fetch(&self, download: Download) -> Result<PathBuf, String>;
}

/// Plain files; guests of ours in one folder, and downloads in another, each under its own name.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// Where guests of ours lie, each under its own name.
    pub guests: PathBuf,
    /// Where downloads lie: `linux`, `busybox-initrd`, `busybox-churn-initrd`,
    /// `busybox-network-initrd`, `u-boot`.
    pub downloads: PathBuf,
}

impl Source for Folders {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn guest(&self, name: &str) -> Result<PathBuf, String> {
        Ok(self.guests.join(name))
    }

    fn fetch(&self, download: Download) -> Result<PathBuf, String> {
        let name = download.name();
        Ok(self.downloads.join(name.strip_prefix("debian:").unwrap_or(name)))
    }
}
