// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fixed ranges of a server's address space as safe values: configuration, payload, scratch window, device page.

use core::fmt::Debug;
use serde::Deserialize;

/// Most bytes of a configuration.
pub const MAX_CONFIG: usize = 1 << 16;

/// Why there is no configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    /// Its length is impossible.
    Length,
    /// It is not what this server understands.
    Encoding,
}

/// Decodes a configuration page range: 8 bytes length, then postcard.
pub fn decode_config<'a, T: Deserialize<'a>>(length: u64, bytes: &'a [u8]) -> Result<T, ConfigError> {
    let length = usize::try_from(length).map_err(|_| ConfigError::Length)?;
    let bytes = bytes.get(..length).ok_or(ConfigError::Length)?;
    postcard::from_bytes(bytes).map_err(|_| ConfigError::Encoding)
}

/// Registers of a device: offsets in bytes, 32 bits wide. On the board a [`DevicePage`], in tests what a test makes.
pub trait Registers {
    /// Reads one; 0 outside the page.
    fn read(&self, offset: usize) -> u32;
    /// Writes one; nothing outside the page.
    fn write(&self, offset: usize, value: u32);
    /// Reads one of 64 bits.
    fn read_wide(&self, offset: usize) -> u64 {
        u64::from(self.read(offset)) | u64::from(self.read(offset + 4)) << 32
    }
    /// Writes one of 64 bits.
    fn write_wide(&self, offset: usize, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}

/// A page of registers of a device that is not there: as a bus reads where nobody answers.
#[derive(Clone, Copy, Debug)]
pub struct Absent;

impl Registers for Absent {
    fn read(&self, _offset: usize) -> u32 {
        u32::MAX
    }

    fn write(&self, _offset: usize, _value: u32) {}
}

/// Memory that a server shares with hardware: words of 64 bits by their offset in bytes. On the board [`Tables`], in tests
/// what a test makes.
pub trait SharedMemory {
    /// Reads one; 0 outside of it.
    fn read(&self, offset: u64) -> u64;
    /// Writes one; nothing outside of it.
    fn write(&self, offset: u64, value: u64);
    /// What was written is seen by hardware before it sees what is written to its registers from here on.
    fn publish(&self);
}

/// What a server that drives hardware with tables in memory reaches it by. On the board [`Mapped`], in tests a model of it.
pub trait Hardware: Debug + Send + Sync {
    /// A page of registers.
    type Page: Registers + Debug + Send + Sync;
    /// The memory that is shared with it.
    type Memory: SharedMemory;
    /// The page with this place ([`trellis_idl::layout::message`], [`trellis_idl::layout::space`]).
    fn page(&self, place: usize) -> Self::Page;
    /// The memory.
    fn memory(&self) -> &Self::Memory;
}

#[cfg(target_os = "none")]
pub use board::{DevicePage, Mapped, Tables, config, payload, scratch_read, scratch_write};

#[cfg(target_os = "none")]
mod board {
    use super::{ConfigError, Hardware, MAX_CONFIG, Registers, SharedMemory, decode_config};
    use serde::Deserialize;
    use trellis_idl::kernel::PAGE;
    use trellis_idl::layout::{CONFIG, DEVICE, DEVICE_PAGES, PAYLOAD, PAYLOAD_BYTES, SCRATCH, SCRATCH_BYTES, TABLES, TABLES_BYTES};

    /// This server's configuration.
    pub fn config<T: Deserialize<'static>>() -> Result<T, ConfigError> {
        // SAFETY: root mapped the configuration's pages read-only before the first instruction; nobody writes them.
        let length = unsafe { core::ptr::read(CONFIG as *const u64) };
        if length > (MAX_CONFIG - 8) as u64 {
            return Err(ConfigError::Length);
        }
        // SAFETY: as above; root maps as many pages as the length needs.
        let bytes = unsafe { core::slice::from_raw_parts((CONFIG + 8) as *const u8, length as usize) };
        decode_config(length, bytes)
    }

    /// A part of the image's payload; none when it cannot lie in the payload's range.
    pub fn payload(offset: u64, bytes: u64) -> Option<&'static [u8]> {
        let end = offset.checked_add(bytes)?;
        if end > PAYLOAD_BYTES {
            return None;
        }
        // SAFETY: this range holds nothing but the payload, read-only and never changed; where it ends, reading is a
        // fault of this thread.
        Some(unsafe { core::slice::from_raw_parts((PAYLOAD + offset) as *const u8, bytes as usize) })
    }

    /// Writes into the scratch window, where root maps frames that it fills for others. False: outside the window.
    pub fn scratch_write(offset: u64, bytes: &[u8]) -> bool {
        let Some(end) = offset.checked_add(bytes.len() as u64) else { return false };
        if end > SCRATCH_BYTES {
            return false;
        }
        // SAFETY: no Rust object lives in the scratch window and no reference into it is ever made.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (SCRATCH + offset) as *mut u8, bytes.len()) };
        true
    }

    /// Reads from the scratch window. False: outside the window.
    pub fn scratch_read(offset: u64, bytes: &mut [u8]) -> bool {
        let Some(end) = offset.checked_add(bytes.len() as u64) else { return false };
        if end > SCRATCH_BYTES {
            return false;
        }
        // SAFETY: no Rust object lives in the scratch window and no reference into it is ever made; every byte there may be
        // read, and where nothing is mapped reading is a fault of this thread.
        unsafe { core::ptr::copy_nonoverlapping((SCRATCH + offset) as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// A page of device registers behind [`DEVICE`].
    #[derive(Clone, Copy, Debug, Default)]
    pub struct DevicePage(usize);

    impl DevicePage {
        /// The page with this place; the first one where there is no such place.
        pub const fn at(place: usize) -> DevicePage {
            DevicePage(if place < DEVICE_PAGES { place * PAGE as usize } else { 0 })
        }
    }

    impl Registers for DevicePage {
        fn read(&self, offset: usize) -> u32 {
            if offset >= PAGE as usize || offset % 4 != 0 {
                return 0;
            }
            // SAFETY: inside the device pages, aligned; no Rust object lives there.
            unsafe { core::ptr::read_volatile((DEVICE as usize + self.0 + offset) as *const u32) }
        }

        fn write(&self, offset: usize, value: u32) {
            if offset >= PAGE as usize || offset % 4 != 0 {
                return;
            }
            // SAFETY: inside the device pages, aligned; no Rust object lives there.
            unsafe { core::ptr::write_volatile((DEVICE as usize + self.0 + offset) as *mut u32, value) }
        }

        fn read_wide(&self, offset: usize) -> u64 {
            if offset >= PAGE as usize || offset % 8 != 0 {
                return 0;
            }
            // SAFETY: inside the device pages, aligned; no Rust object lives there.
            unsafe { core::ptr::read_volatile((DEVICE as usize + self.0 + offset) as *const u64) }
        }

        fn write_wide(&self, offset: usize, value: u64) {
            if offset >= PAGE as usize || offset % 8 != 0 {
                return;
            }
            // SAFETY: inside the device pages, aligned; no Rust object lives there.
            unsafe { core::ptr::write_volatile((DEVICE as usize + self.0 + offset) as *mut u64, value) }
        }
    }

    /// Pages and memory where root has mapped them.
    #[derive(Clone, Copy, Debug)]
    pub struct Mapped;

    impl Hardware for Mapped {
        type Page = DevicePage;
        type Memory = Tables;

        fn page(&self, place: usize) -> DevicePage {
            DevicePage::at(place)
        }

        fn memory(&self) -> &Tables {
            &Tables
        }
    }

    /// The memory at [`TABLES`]; where root has mapped nothing, an access is a fault of this thread.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Tables;

    impl SharedMemory for Tables {
        fn read(&self, offset: u64) -> u64 {
            if offset >= TABLES_BYTES || offset % 8 != 0 {
                return 0;
            }
            // SAFETY: inside the range, aligned; no Rust object lives there.
            unsafe { core::ptr::read_volatile((TABLES + offset) as *const u64) }
        }

        fn write(&self, offset: u64, value: u64) {
            if offset >= TABLES_BYTES || offset % 8 != 0 {
                return;
            }
            // SAFETY: inside the range, aligned; no Rust object lives there, and what hardware does with it is no object's either.
            unsafe { core::ptr::write_volatile((TABLES + offset) as *mut u64, value) }
        }

        fn publish(&self) {
            // SAFETY: orders accesses, and does nothing else.
            unsafe { core::arch::asm!("dsb ishst", options(nostack, preserves_flags)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_longer_than_its_pages_is_refused() {
        assert_eq!(decode_config::<u8>(3, &[1, 2]), Err(ConfigError::Length));
        assert_eq!(decode_config::<u8>(u64::MAX, &[1, 2]), Err(ConfigError::Length));
        assert_eq!(decode_config::<(u8, u8)>(1, &[1, 2]), Err(ConfigError::Encoding));
        assert_eq!(decode_config::<(u8, u8)>(2, &[1, 2]), Ok((1, 2)));
    }
}
