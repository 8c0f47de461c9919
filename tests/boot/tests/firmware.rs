// SPDX-License-Identifier: MIT OR Apache-2.0
//! Firmware that keeps SVE for itself (CPTR_EL3.EZ clear), which the emulator's own never does: a few instructions at
//! EL3, loaded beside the image and started first. One kind gives a refused access back as an undefined instruction, the
//! other never comes back.

use std::path::Path;
use std::time::{Duration, Instant};
use trellis_cli::emulator::{Emulator, Event};
use trellis_cli::names::Names;
use trellis_cli::session::{Outputs, Session};
use trellis_cli::status::Status;
use trellis_cli::system::{Host, emulation};
use trellis_images::System;

/// Starts the image at EL2, non-secure, with everything allowed but SVE and SME.
const START: [u32; 28] = [
    0x1000_4000, // adr x0, 0x800
    0xd51e_c000, // msr vbar_el3, x0
    0xd280_a620, // mov x0, 0x531: NS, RES1, HCE, RW
    0xf2a3_0060, // movk x0, 0x1803, lsl 16: APK, API, FGTEn, ECVEn
    0xf2c0_0800, // movk x0, 0x40, lsl 32: HXEn
    0xd51e_1100, // msr scr_el3, x0
    0xd51e_115f, // msr cptr_el3, xzr
    0xd51e_133f, // msr mdcr_el3, xzr
    0xd280_01e0, // mov x0, 15
    0xd51e_cca0, // msr icc_sre_el3, x0
    0xd503_3fdf, // isb
    0xd2a1_0000, // mov x0, 0x8000000: the distributor
    0xd280_06e1, // mov x1, 0x37
    0xb900_0001, // str w1, [x0]
    0x1280_0001, // mov w1, -1: every interrupt is group 1, non-secure
    0xd280_1002, // mov x2, 0x80
    0xb822_6801, // 1: str w1, [x0, x2]
    0x9100_1042, // add x2, x2, 4
    0xf102_805f, // cmp x2, 0xa0
    0x54ff_ffa1, // b.ne 1b
    0xd2a1_0160, // mov x0, 0x80b0000: the redistributor's
    0xb900_8001, // str w1, [x0, 0x80]
    0xd280_7920, // mov x0, 0x3c9: EL2h
    0xd51e_4000, // msr spsr_el3, x0
    0xd2a8_0400, // mov x0, 0x40200000
    0xd51e_4020, // msr elr_el3, x0
    0xaa1f_03e0, // mov x0, xzr
    0xd69f_03e0, // eret
];

/// What EL2 did wrong, or an SMC. At this offset: a synchronous exception from a lower level.
const VECTOR: usize = 0xc00;
const TRAP: [u32; 30] = [
    0xd53e_5212, // mrs x18, esr_el3
    0xd35a_fe52, // lsr x18, x18, 26
    0xf100_5e5f, // cmp x18, 0x17
    0x5400_01e0, // b.eq 2f
    0xf100_665f, // cmp x18, 0x19
    0x5400_0001, // b.ne .: nothing else is refused
    0xd53e_4031, // mrs x17, elr_el3
    0xd51c_4031, // msr elr_el2, x17
    0xd53e_4011, // mrs x17, spsr_el3
    0xd51c_4011, // msr spsr_el2, x17
    0xd2a0_4011, // mov x17, 1 << 25
    0xd51c_5211, // msr esr_el2, x17
    0xd53c_c011, // mrs x17, vbar_el2
    0x9108_0231, // add x17, x17, 0x200
    0xd51e_4031, // msr elr_el3, x17
    0xd280_7931, // mov x17, 0x3c9
    0xd51e_4011, // msr spsr_el3, x17
    0xd69f_03e0, // eret
    0xd2b0_8012, // 2: mov x18, 0x84000000
    0xf280_0112, // movk x18, 8: SYSTEM_OFF
    0xeb12_001f, // cmp x0, x18
    0x5400_0060, // b.eq 3f
    0x9280_0000, // mov x0, -1: no such function
    0xd69f_03e0, // eret
    0x1000_0081, // 3: adr x1, 4f
    0xd280_0300, // mov x0, 0x18: semihosting's exit
    0xd45e_0000, // hlt 0xf000
    0x1400_0000, // b .
    0x0002_0026, // 4: the application ended
    0,
];
/// Where in [`TRAP`] a refused access begins to be given back.
const GIVES_BACK: usize = 6;
const STAY: u32 = 0x1400_0000; // b .

/// Two guests: one asks for vectors, one does not.
const MANIFEST: &str = r#"
name = "firmware"
board = "virt"

[guest.scalable]
kernel = "vectors"
command-line = "name=scalable seed=1 rounds=20"
memory = "16M"
on-reset = "end"
sve = 256

[guest.fixed]
kernel = "vectors"
command-line = "name=fixed seed=2 bits=0 rounds=20"
memory = "16M"
on-reset = "end"
"#;

fn firmware(gives_back: bool) -> Vec<u8> {
    let mut trap = TRAP;
    if !gives_back {
        trap[GIVES_BACK] = STAY;
    }
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let mut all = bytes(&START);
    all.resize(VECTOR, 0);
    all.extend(bytes(&trap));
    // The exit's second word: well.
    all.extend([0; 8]);
    all
}

/// Ends a machine that has not come to its end by itself, however slow the host is.
const LIMIT: Duration = Duration::from_secs(300);
/// How long a machine that shall say nothing more is listened to. A slow host hears less of it, and passes.
const SILENCE: Duration = Duration::from_secs(2);
/// What the kernel says before it asks.
const QUESTION: &str = "if nothing follows, the firmware refuses SVE (CPTR_EL3.EZ)";

/// What a machine with this firmware says until it switches itself off, or for a while after the question if it hangs
/// there: consoles, logs, whether every guest that must has ended well.
fn boot(gives_back: bool) -> (String, String, Session) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let host = Host::default();
    let system = System::from_text(Path::new("firmware.toml"), MANIFEST.into(), &host).expect("a good manifest");
    let image = host.compose(&system).expect("an image");
    let names = Names::from_image(&image, "firmware.toml").expect("its own image");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a written file");
        path.display().to_string()
    };
    let (image, below) = (file("image", &image), file("firmware", &firmware(gives_back)));
    let board = emulation(&system, Some("max"), true).expect("an emulated board");
    let mut arguments: Vec<String> =
        ["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio"].map(String::from).to_vec();
    arguments.extend(board.into_iter().map(|word| word.replace("virtualization=on", "virtualization=on,secure=on")));
    arguments.extend(["-icount", "shift=0,sleep=off", "-semihosting", "-device"].map(String::from));
    arguments.push(format!("loader,file={image},addr={:#x},force-raw=on", system.board().image_at));
    arguments.extend(["-device".into(), format!("loader,file={below},addr=0x78000000,cpu-num=0,force-raw=on")]);
    let emulator = Emulator::start(&arguments).expect("the emulator starts");
    let mut session = Session::new(names, None);
    let (mut out, mut log, mut serial) = (Vec::new(), Vec::new(), Vec::new());
    let mut deadline = Instant::now() + LIMIT;
    let mut is_asked = false;
    loop {
        if !gives_back && !is_asked && String::from_utf8_lossy(&serial).contains(QUESTION) {
            (is_asked, deadline) = (true, Instant::now() + SILENCE);
        }
        let mut outputs = Outputs { out: &mut out, log: &mut log };
        match emulator.next(Some(deadline)) {
            Event::Serial(bytes) => {
                session.take(&bytes, &mut outputs).expect("memory takes it");
                serial.extend(bytes);
            }
            Event::Complaint(bytes) => log.extend(bytes),
            Event::Quiet => {}
            Event::Late | Event::Closed => break session.finish(&mut outputs).expect("memory takes it"),
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out), text(&log), session)
}

#[test]
fn sve_that_firmware_refuses_is_reported_and_the_machine_goes_on_without() {
    let (out, log, session) = boot(true);
    assert!(session.is_off(), "the machine comes to its end\n{out}\n{log}");
    assert!(log.contains("a CPU has SVE and its firmware keeps it (CPTR_EL3.EZ)"), "{log}");
    assert!(log.contains("it asks for SVE vectors of 256 bits, and the CPUs of this machine have none in common"), "{log}");
    assert!(out.contains("fixed: every register right on 1 of 1 CPUs"), "the other guest runs\n{out}\n{log}");
    assert_eq!(session.status(), Status::GuestFailed, "the refused guest counts as failed\n{out}\n{log}");
}

#[test]
fn firmware_that_never_comes_back_leaves_the_question_as_the_last_line() {
    let (out, log, session) = boot(false);
    assert!(!session.is_off() && out.is_empty(), "{out}\n{log}");
    let last = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    assert!(last.ends_with(QUESTION), "{log}");
}
