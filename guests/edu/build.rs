// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the bare-metal form by the platform's script; the host form needs nothing.

fn main() {
    println!("cargo::rerun-if-changed=../platform/guest.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo::rustc-link-arg-bins=-T{}/../platform/guest.ld", env!("CARGO_MANIFEST_DIR"));
        println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
