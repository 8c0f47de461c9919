// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs Linux to be a guest: instructions until it is off, beside those on the bare board at EL1.

use std::fs;
use std::path::Path;
use std::time::Duration;
use trellis_boot_tests::count::{Counted, count};
use trellis_boot_tests::story;
use trellis_cli::debian;
use trellis_cli::system::{Host, emulation, load};
use trellis_images::System;

const LIMIT: Duration = Duration::from_secs(300);
/// Per mille.
const BAR: u64 = 1_150;

#[test]
fn linux_needs_at_most_1_15_times_the_instructions_of_the_bare_board() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let host = Host::default();
    let system = load(&story::manifest("linux.toml"), None, &host).expect("a good manifest");
    let (guest, bare) = (on_trellis(&system, &host, folder.path()), on_the_board(&system, folder.path()));
    for counted in [&guest, &bare] {
        assert!(counted.serial.contains("reboot: Power down"), "Linux comes to its end:\n{}", counted.serial);
    }
    let ratio = guest.instructions * 1000 / bare.instructions;
    let sentence = format!(
        "{} instructions as a guest, {} on the bare board: {}.{:03} times",
        guest.instructions,
        bare.instructions,
        ratio / 1000,
        ratio % 1000
    );
    println!("{sentence}");
    assert!(ratio <= BAR, "{sentence}");
}

fn on_trellis(system: &System, host: &Host, folder: &Path) -> Counted {
    let image = folder.join("linux.img");
    fs::write(&image, host.compose(system).expect("an image")).expect("a written image");
    let mut arguments = emulation(system, None, true).expect("an emulated board");
    arguments.extend(["-kernel".into(), image.display().to_string()]);
    count("guest", &arguments, folder, LIMIT)
}

/// The same kernel, initial file system, command line and device tree, without anything below.
fn on_the_board(system: &System, folder: &Path) -> Counted {
    let linux = debian::linux().expect("Debian's Linux");
    let [guest] = system.guests() else { panic!("one guest") };
    let tree = folder.join("linux.dtb");
    fs::write(&tree, &guest.placement.tree).expect("a written device tree");
    let memory = format!("{}M", guest.memory_bytes >> 20);
    let machine = ["-machine", "virt,gic-version=3,dtb-randomness=off", "-nic", "none"];
    let board = ["-cpu", "cortex-a57", "-smp", "1", "-m", &memory];
    let clock = ["-global", "cortex-a57-arm-cpu.cntfrq=1000000000"];
    let mut arguments: Vec<String> = machine.iter().chain(&board).chain(&clock).map(|word| (*word).to_owned()).collect();
    for (option, path) in [("-kernel", &linux.kernel), ("-initrd", &linux.initramfs), ("-dtb", &tree)] {
        arguments.extend([option.into(), path.display().to_string()]);
    }
    count("bare", &arguments, folder, LIMIT)
}
