// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports from root as sentences. The board sends numbers; names and manifest lines come from the image.

use crate::names::Names;
use crate::syndrome::{Syndrome, stopped_for};
use crate::timeline::before_fault;
use trellis_idl::kernel::ExitClass;
use trellis_idl::wire::{Crash, Fault, GuestEnd, Report, Stopped};

/// The lines that say what a report means, on a board whose clock has so many ticks a second.
pub fn sentences(report: &Report, names: &Names, hertz: u64) -> Vec<String> {
    match report {
        Report::Started { boot_ticks, clock_hz, kernel_memory, .. } => vec![started(*boot_ticks, *clock_hz, *kernel_memory)],
        Report::GuestEnded { guest, end } => ended(*guest, end, names),
        Report::GuestRebooted { guest, times } => {
            vec![format!("guest {} starts again, restart {times}", names.guest(*guest))]
        }
        Report::ServerFaulted { server, record } => faulted(*server, record, names),
        Report::DeviceStopped(one) => stopped(one, names),
        Report::ServerLate { server, exit } => vec![late(*server, *exit, names)],
        // They go into the timeline.
        Report::Trace { .. } => Vec::new(),
        Report::Last { cpu, records } => before_fault(*cpu, records, hertz, names),
        Report::Off { well: true } => vec!["all guests have ended well, switching off".into()],
        Report::Off { well: false } => vec!["not every guest has ended well, switching off".into()],
    }
}

/// What a device did that its guest must not, and who gave the guest the device.
fn stopped(one: &Stopped, names: &Names) -> Vec<String> {
    let what = match (one.event, one.writes) {
        (0x10 | 0x11, true) => format!("wrote to {:#x}, which is not its guest's", one.address),
        (0x10 | 0x11, false) => format!("read from {:#x}, which is not its guest's", one.address),
        (0x13, true) => format!("wrote to {:#x}, where it may not", one.address),
        (0x13, false) => format!("read from {:#x}, where it may not", one.address),
        (event, _) => format!("made an access that could not be translated (event {event:#x}, address {:#x})", one.address),
    };
    let more = match one.more {
        0 => String::new(),
        1 => ", and did such a thing once more before".into(),
        more => format!(", and did such things {more} times more before"),
    };
    let mut lines = vec![format!("a device of guest {} {what}{more}: it was stopped", names.guest(one.guest))];
    lines.extend(names.line(one.line).map(|line| format!("  given by {line}")));
    lines
}

fn late(server: u8, exit: Option<(u8, u8)>, names: &Names) -> String {
    let of = exit.and_then(|(vcpu, class)| Some((vcpu, ExitClass::from_number(class.into())?)));
    let what = of.map_or("a call".into(), |(vcpu, class)| format!("an exit of vCPU {vcpu}, class {class:?}"));
    format!("server {} does not answer: it took too long for {what}", names.server(server))
}

/// Whether this is an end that the manifest and the guest wanted.
pub fn is_good_end(end: &GuestEnd) -> bool {
    matches!(end, GuestEnd::Off | GuestEnd::Reset)
}

fn started(ticks: u64, hz: u64, memory: u64) -> String {
    let micros = u128::from(ticks) * 1_000_000 / u128::from(hz.max(1));
    let kib = memory.div_ceil(1024);
    format!("runs {micros} µs ({ticks} ticks) after the kernel's first instruction; the kernel keeps {kib} KiB")
}

fn ended(guest: u8, end: &GuestEnd, names: &Names) -> Vec<String> {
    let name = names.guest(guest);
    match end {
        GuestEnd::Off => vec![format!("guest {name} switched itself off")],
        GuestEnd::Reset => vec![format!("guest {name} asked for a reset, which ends it (on-reset = \"end\")")],
        GuestEnd::Status(status) => vec![format!("guest {name} ended with status {status}")],
        GuestEnd::Vectors { wanted, lengths } => vec![format!("guest {name} was not started: {}", no_vectors(*wanted, *lengths))],
        GuestEnd::Crash(crash) => crashed(guest, crash, names),
        GuestEnd::Server(server) => {
            vec![format!("guest {name} ended because its server {} stopped", names.server(*server))]
        }
        GuestEnd::Stopped(server) => {
            vec![format!("guest {name} was stopped by {}, which watches it", names.server(*server))]
        }
    }
}

fn crashed(guest: u8, crash: &Crash, names: &Names) -> Vec<String> {
    let syndrome = Syndrome(crash.syndrome);
    let mut lines = vec![format!("guest {} crashed: vCPU {} {}", names.guest(guest), crash.vcpu, why(crash))];
    lines.push(format!("  program counter {:#x}, in EL{}", crash.pc, crash.pstate >> 2 & 3));
    if is_access(crash) {
        lines.extend(owner(guest, crash, names));
    }
    lines.push(format!("  syndrome {:#x}: {}", crash.syndrome, syndrome.cause()));
    lines.push(format!("  pc  {:016x}  pstate {:016x}", crash.pc, crash.pstate));
    lines.extend(registers(&crash.general));
    lines
}

/// Whether the crash is about an address.
fn is_access(crash: &Crash) -> bool {
    matches!(crash.exit_class(), Some(ExitClass::Memory | ExitClass::Device))
}

/// Completes "vCPU 0 …".
fn why(crash: &Crash) -> String {
    let syndrome = Syndrome(crash.syndrome);
    match crash.exit_class() {
        Some(ExitClass::Memory | ExitClass::Device) if syndrome.is_permission() => {
            format!("{} {:#x}, where it may not", syndrome.access(), crash.physical)
        }
        Some(ExitClass::Memory) => format!("{} {:#x}, where it has nothing", syndrome.access(), crash.physical),
        Some(class) if is_access(crash) => {
            format!("{} {:#x}: {}", syndrome.access(), crash.physical, stopped_for(class))
        }
        Some(class) => format!("stopped for {}", stopped_for(class)),
        None => format!("stopped for exit class {}, which this tool does not know", crash.class),
    }
}

/// Which line of the manifest gives the guest the address, or what it gives instead.
fn owner(guest: u8, crash: &Crash, names: &Names) -> Vec<String> {
    let mut lines = vec![format!("  guest virtual address {:#x}", crash.virtual_address)];
    let known = names.guests.get(usize::from(guest));
    let Some((known, line)) = known.zip(names.memory_line(guest)) else {
        return lines;
    };
    let (first, end) = (known.memory.start, known.memory.end);
    lines.push(if known.memory.contains(&crash.physical) {
        format!("  {:#x} is in its memory {first:#x}..{end:#x}", crash.physical)
    } else {
        format!("  {:#x} is outside its memory {first:#x}..{end:#x}", crash.physical)
    });
    lines.push(format!("  given by {line}"));
    lines
}

fn faulted(server: u8, fault: &Fault, names: &Names) -> Vec<String> {
    let syndrome = Syndrome(fault.syndrome);
    let mut what = format!("stopped for {}", syndrome.cause());
    if syndrome.is_fetch() || syndrome.is_data() {
        what = format!("{} {:#x}, where it may not", syndrome.access(), fault.address);
    }
    let mut lines = vec![format!("server {} faulted: it {what}", names.server(server))];
    lines.push(format!("  syndrome {:#x}: {}", fault.syndrome, syndrome.cause()));
    lines.push(format!("  pc  {:016x}  sp     {:016x}", fault.pc, fault.sp));
    lines.extend(registers(&fault.general));
    lines
}

/// x0–x30, four a line.
fn registers(general: &[u64]) -> Vec<String> {
    let row = |(number, values): (usize, &[u64])| {
        let cells = values.iter().enumerate();
        let cells = cells.map(|(column, value)| format!("{:<3} {value:016x}", format!("x{}", number * 4 + column)));
        format!("  {}", cells.collect::<Vec<_>>().join("  "))
    };
    general.chunks(4).enumerate().map(row).collect()
}

/// Why a machine cannot give a guest its vectors, with both numbers.
fn no_vectors(wanted: u8, lengths: u16) -> String {
    let all: Vec<u32> = (0..16).filter(|bit| lengths >> bit & 1 == 1).map(|bit| (bit + 1) * 128).collect();
    let known = all.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let bits = u32::from(wanted) * 128;
    match all.iter().rev().find(|length| **length <= bits) {
        _ if all.is_empty() && wanted == 0 => {
            "it asks for SVE vectors, and the CPUs of this machine have none in common".into()
        }
        _ if all.is_empty() => {
            format!("it asks for SVE vectors of {bits} bits, and the CPUs of this machine have none in common")
        }
        Some(less) => format!(
            "it asks for SVE vectors of {bits} bits, and the CPUs of this machine would give it {less} (they have {known})"
        ),
        None => format!("it asks for SVE vectors of {bits} bits, and the CPUs of this machine have {known}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::tests::two_guests;

    fn crash(class: ExitClass, syndrome: u64, physical: u64) -> Crash {
        let general = (0..31).collect();
        Crash {
            vcpu: 1,
            class: class as u8,
            syndrome,
            physical,
            virtual_address: 0xffff_8000_0000_1000,
            pc: 0x4008_0124,
            pstate: 0x3c5,
            general,
        }
    }

    fn end(end: GuestEnd) -> String {
        sentences(&Report::GuestEnded { guest: 0, end }, &two_guests(), 1_000_000_000).join("\n")
    }

    #[test]
    fn what_a_device_must_not_do_is_said_with_the_line_that_gives_it() {
        let one = Stopped { guest: 0, line: 5, address: 0x4400_0000, event: 0x10, writes: true, more: 0 };
        let said = |one: Stopped| sentences(&Report::DeviceStopped(one), &two_guests(), 1_000_000_000).join("\n");
        let given = "\n  given by two.toml:5: kernel = \"hello\"";
        assert_eq!(said(one), format!("a device of guest web wrote to 0x44000000, which is not its guest's: it was stopped{given}"));
        let many = said(Stopped { event: 0x13, writes: false, more: 7, line: 99, ..one });
        assert_eq!(many, "a device of guest web read from 0x44000000, where it may not, and did such things 7 times more before: it was stopped");
        let other = said(Stopped { event: 4, address: 0, line: 0, more: 1, ..one });
        assert!(other.contains("could not be translated (event 0x4, address 0x0), and did such a thing once more before"), "{other}");
    }

    #[test]
    fn ordinary_ends_are_one_sentence() {
        assert_eq!(end(GuestEnd::Off), "guest web switched itself off");
        assert_eq!(end(GuestEnd::Status(7)), "guest web ended with status 7");
        assert_eq!(
            end(GuestEnd::Vectors { wanted: 3, lengths: 0b1011 }),
            "guest web was not started: it asks for SVE vectors of 384 bits, and the CPUs of this machine would give it \
             256 (they have 128, 256, 512)"
        );
        assert_eq!(
            end(GuestEnd::Vectors { wanted: 0, lengths: 0 }),
            "guest web was not started: it asks for SVE vectors, and the CPUs of this machine have none in common"
        );
        assert_eq!(end(GuestEnd::Server(2)), "guest web ended because its server vcpu-web stopped");
        assert!(is_good_end(&GuestEnd::Reset) && !is_good_end(&GuestEnd::Status(7)));
    }

    #[test]
    fn a_write_outside_memory_names_the_line_that_gives_memory() {
        let text = end(GuestEnd::Crash(crash(ExitClass::Memory, 0x9200_0046, 0x8000_0000)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "guest web crashed: vCPU 1 wrote to 0x80000000, where it has nothing");
        assert_eq!(lines[1], "  program counter 0x40080124, in EL1");
        assert_eq!(lines[2], "  guest virtual address 0xffff800000001000");
        assert_eq!(lines[3], "  0x80000000 is outside its memory 0x40000000..0x41000000");
        assert_eq!(lines[4], "  given by two.toml:6: memory = \"16M\"");
        assert_eq!(lines[5], "  syndrome 0x92000046: a data access");
        assert_eq!(lines[6], "  pc  0000000040080124  pstate 00000000000003c5");
        assert_eq!(lines[7], "  x0  0000000000000000  x1  0000000000000001  x2  0000000000000002  x3  0000000000000003");
        assert_eq!(lines[14], "  x28 000000000000001c  x29 000000000000001d  x30 000000000000001e");
        assert_eq!(lines.len(), 15);
    }

    #[test]
    fn an_exit_without_an_address_names_none() {
        let text = end(GuestEnd::Crash(crash(ExitClass::Illegal, 0, 0)));
        assert!(text.starts_with("guest web crashed: vCPU 1 stopped for an instruction or state that it may not use\n"));
        assert!(!text.contains("given by"));
    }

    #[test]
    fn a_server_that_does_not_answer_is_said_to_and_to_whom() {
        let said = |exit| sentences(&Report::ServerLate { server: 3, exit }, &two_guests(), 0);
        let class = ExitClass::Hypercall as u8;
        let [line] = &said(Some((1, class)))[..] else { panic!() };
        assert!(line.ends_with(" does not answer: it took too long for an exit of vCPU 1, class Hypercall"), "{line}");
        assert!(said(None)[0].ends_with(" for a call") && said(Some((0, 99)))[0].ends_with(" for a call"));
    }

    #[test]
    fn a_server_fault_names_the_server_and_its_registers() {
        let record = Fault { syndrome: 0x9200_0006, address: 8, pc: 0x20_0000, sp: 0x2001_0000, general: (0..31).collect() };
        let lines = sentences(&Report::ServerFaulted { server: 3, record }, &two_guests(), 1_000_000_000);
        assert_eq!(lines[0], "server p2m-db faulted: it read from 0x8, where it may not");
        assert_eq!(lines[2], "  pc  0000000000200000  sp     0000000020010000");
    }

    #[test]
    fn a_start_says_how_long_it_took() {
        let report = Report::Started { boot_ticks: 812_034, clock_hz: 1_000_000_000, kernel_memory: 1_048_577, version: 1, schema: 0 };
        let expected = "runs 812 µs (812034 ticks) after the kernel's first instruction; the kernel keeps 1025 KiB";
        assert_eq!(sentences(&report, &two_guests(), 1_000_000_000), [expected]);
        let report = Report::Started { boot_ticks: 1, clock_hz: 0, kernel_memory: 0, version: 1, schema: 0 };
        assert_eq!(sentences(&report, &two_guests(), 1_000_000_000).len(), 1);
    }
}
