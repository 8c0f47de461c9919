// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the program as a server: at a server's address, in page-aligned pieces.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{}/../../runtime/server.ld", env!("CARGO_MANIFEST_DIR"));
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    }
    println!("cargo:rerun-if-changed=../../runtime/server.ld");
}
