// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the kernel position independent, with its own layout, when it is built for the board.

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rerun-if-changed=src/boot.S");
    println!("cargo:rerun-if-changed=src/entry.S");
    println!("cargo:rerun-if-changed=src/fp.S");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo:rustc-link-arg-bins=-T{folder}/kernel.ld");
        println!("cargo:rustc-link-arg-bins=-pie");
        println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
        println!("cargo:rustc-link-arg-bins=-znotext");
        println!("cargo:rustc-link-arg-bins=-Bsymbolic");
        println!("cargo:rustc-link-arg-bins=-znorelro");
        // Functions that are the same are one: nothing here compares their addresses.
        println!("cargo:rustc-link-arg-bins=--icf=all");
    }
}
