// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same kernel on several CPUs, and on every board: GICv3 and GICv2, PSCI and release addresses.

use std::io::Write;
use std::time::{Duration, Instant};
use trellis_boot_tests::story;
use trellis_cli::emulator::{Emulator, Event};
use trellis_cli::run::Run;

/// Debian's kernel with four vCPUs on four CPUs of this board.
fn four_vcpus_on(board: &str) {
    let run = Run { board: Some(board.into()), ..story::of("linux-smp.toml", Duration::from_secs(400)) };
    let seen = story::seen(&run, &[]);
    seen.expect_good_end();
    for text in ["processors: 4", "trellis: linux is up", "reboot: Power down"] {
        seen.expect(seen.guests_with(|line| line.contains(text)).len() == 1, text);
    }
}

#[test]
fn linux_uses_four_cpus_with_gicv3() {
    four_vcpus_on("virt");
}

#[test]
fn linux_uses_four_cpus_with_gicv2() {
    four_vcpus_on("virt-gicv2");
}

#[test]
fn linux_uses_four_cpus_of_a_raspberry_pi_4() {
    four_vcpus_on("raspi4b");
}

/// Our own guest on the GICv2 of this board: each vCPU sends the first an interrupt, which names its sender.
fn senders_on(board: &str) {
    let mut manifest = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    let text = "name = \"four\"\nboard = \"virt-gicv2\"\n\n[guest.four]\nkernel = \"hello\"\nmemory = \"16M\"\ncpus = [0, 1, 2, 3]\n";
    manifest.write_all(text.as_bytes()).expect("a manifest is written");
    let timeout = Some(Duration::from_secs(120));
    let run = Run { manifest: Some(manifest.path().to_owned()), board: Some(board.into()), timeout, ..Run::default() };
    let seen = story::seen(&run, &[]);
    seen.expect_good_end();
    seen.expect(seen.guests_with(|line| line.contains("software interrupts from CPUs 0b1110")).len() == 1, "each sender is named");
}

#[test]
fn software_interrupts_say_who_sent_them_with_gicv2() {
    senders_on("virt-gicv2");
}

#[test]
fn software_interrupts_say_who_sent_them_on_a_raspberry_pi_4() {
    senders_on("raspi4b");
}

/// CPUs that do not come must not end in silence: the emulator is given fewer than the image wants.
#[test]
fn a_machine_with_too_few_cpus_says_so_and_switches_itself_off() {
    let mut manifest = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    let text = "name = \"four\"\nboard = \"virt\"\n\n[guest.four]\nkernel = \"hello\"\nmemory = \"16M\"\ncpus = [0, 1, 2, 3]\n";
    manifest.write_all(text.as_bytes()).expect("a manifest is written");
    let run = Run { manifest: Some(manifest.path().to_owned()), ..Run::default() };
    let (mut arguments, _image, _) = run.command_line().expect("it composes");
    let count = arguments.iter().position(|argument| argument == "-smp").expect("it has four") + 1;
    arguments[count] = "2".into();
    let text = serial(&arguments);
    assert!(text.contains("the system cannot be started"), "{text}");
}

/// Without EL2 there is nothing to do but to say so.
#[test]
fn a_start_at_el1_is_refused_with_a_sentence() {
    let (mut arguments, _image, _) = story::of("hello.toml", Duration::from_secs(60)).command_line().expect("it composes");
    let machine = arguments.iter_mut().find(|argument| argument.contains("virtualization=on")).expect("it has EL2");
    *machine = machine.replace("virtualization=on,", "");
    let text = serial(&arguments);
    assert!(text.contains("Trellis cannot run here: started at EL1"), "{text}");
}

/// What such a machine writes until it switches itself off.
fn serial(arguments: &[String]) -> String {
    let emulator = Emulator::start(arguments).expect("the emulator starts");
    let (mut seen, limit) = (Vec::new(), Instant::now() + Duration::from_secs(300));
    loop {
        match emulator.next(Some(limit)) {
            Event::Serial(bytes) | Event::Complaint(bytes) => seen.extend(bytes),
            Event::Quiet => {}
            Event::Late => panic!("it never ends: {}", String::from_utf8_lossy(&seen)),
            Event::Closed => break,
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}
