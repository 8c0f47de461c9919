// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device registers by physical address (the kernel maps devices where they are).

macro_rules! access {
    ($read:ident $write:ident $type:ty) => {
        /// Reads a device register.
        pub fn $read(address: u64) -> $type {
            // SAFETY: the address comes from the board's description; device memory is mapped where it is, and no Rust
            // object lives there.
            unsafe { core::ptr::read_volatile(address as *const $type) }
        }

        /// Writes a device register.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: as for reading.
            unsafe { core::ptr::write_volatile(address as *mut $type, value) }
        }
    };
}

access!(read8 write8 u8);
access!(read32 write32 u32);
access!(read64 write64 u64);
