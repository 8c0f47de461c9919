// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links both as servers when built for the board.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../runtime/server.ld");
    println!("cargo:rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{script}");
    }
}
