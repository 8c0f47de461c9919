// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device registers by physical address (the kernel maps devices where they are). They are read with load-acquire:
//! among exclusives a plain load from a device may deadlock a Cortex-A57 (erratum 832075), and it costs no more.

macro_rules! access {
    ($read:ident $write:ident $type:ty, $load:literal) => {
        /// Reads a device register.
        pub fn $read(address: u64) -> $type {
            let value: $type;
            // SAFETY: the address comes from the board's description; device memory is mapped where it is, and no Rust
            // object lives there.
            unsafe { core::arch::asm!($load, out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
            value
        }

        /// Writes a device register.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: as for reading.
            unsafe { core::ptr::write_volatile(address as *mut $type, value) }
        }
    };
}

access!(read8 write8 u8, "ldarb {:w}, [{}]");
access!(read32 write32 u32, "ldar {:w}, [{}]");
access!(read64 write64 u64, "ldar {:x}, [{}]");
