// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: virtual addresses in every server, and the capabilities each server starts with.
//!
//! Root builds these; the runtime and the servers rely on them.

/// Servers are linked here.
pub const PROGRAM: u64 = 0x0020_0000;
/// The server's configuration, postcard, read-only. The first 8 bytes are its length.
pub const CONFIG: u64 = 0x1000_0000;
/// Stack of thread `i` ends at `STACKS + (i + 1) * STACK_STRIDE`; the page below its `STACK_BYTES` is never mapped.
pub const STACKS: u64 = 0x2000_0000;
/// Distance between stacks.
pub const STACK_STRIDE: u64 = 0x0002_0000;
/// Bytes of a stack.
pub const STACK_BYTES: u64 = 0x0001_8000;
/// Message buffer page of thread `i` is at `BUFFERS + i * 4096`.
pub const BUFFERS: u64 = 0x2800_0000;
/// Ring page `i` of a server is at `RINGS + i * 4096`. See `runtime::ring` for what is in a page, [`ring`] for which is
/// which. All ring pages are parts of one run that root splits; each is mapped in the two domains that share it.
pub const RINGS: u64 = 0x3000_0000;
/// Most ring pages of a server.
pub const MAX_RINGS: usize = 256;
/// The image's payload, read-only, where a server gets to see it.
pub const PAYLOAD: u64 = 0x4000_0000;
/// Most bytes of a payload.
pub const PAYLOAD_BYTES: u64 = 0x4000_0000;
/// Root maps frames that it fills for others here, for as long as that takes.
pub const SCRATCH: u64 = 0x3c00_0000;
/// Bytes of that window.
pub const SCRATCH_BYTES: u64 = 0x0400_0000;
/// Device pages of a server: page `i` at `DEVICE + i * 4096`. The console has one, the UART; irqfwd's are [`message`]'s, smmu's
/// [`space`]'s, a vcpu server's [`bus`]'s.
pub const DEVICE: u64 = 0x3800_0000;
/// Most of them.
pub const DEVICE_PAGES: usize = 256;
/// irqfwd: memory that the interrupt translation service reads and writes by itself, see [`message`]. smmu: the SMMU's, see [`space`].
pub const TABLES: u64 = 0x3a00_0000;
/// Most bytes of it.
pub const TABLES_BYTES: u64 = 0x0100_0000;

/// Bits of the signal to a monitor's reading thread.
pub mod monitor_signal {
    /// There is something in a ring.
    pub const TOLD: u64 = 1;
}

/// Where a vcpu server has pages of the functions of PCI that its guest sees: pages from [`DEVICE`] on.
pub mod bus {
    /// The configuration page of the function with this place in [`crate::plan::BusPlan::functions`], to be read.
    pub const fn configuration(place: usize) -> usize {
        2 * place
    }
    /// The page of its registers that the table of its messages begins on, if it has one.
    pub const fn table(place: usize) -> usize {
        2 * place + 1
    }
}

/// irqfwd, where messages make lines: which device page is which, and what is in the memory that it shares with hardware.
pub mod message {
    use crate::plan::MAX_FUNCTIONS;

    /// The first page of the translation service's registers (GITS).
    pub const SERVICE: usize = 0;
    /// The configuration page of the function with this place in [`crate::plan::MessagePlan::functions`].
    pub const fn function(place: usize) -> usize {
        1 + place
    }
    /// The page of the same function's registers that the table of its messages begins on, if it has one.
    pub const fn table(place: usize) -> usize {
        1 + MAX_FUNCTIONS + place
    }
    /// The first page of a redistributor (GICR), in the order of their addresses.
    pub const fn redistributor(place: usize) -> usize {
        1 + 2 * MAX_FUNCTIONS + place
    }

    /// Everything in the shared memory lies in blocks of so many bytes, which their own addresses are multiples of.
    pub const BLOCK: u64 = 0x1_0000;
    /// Blocks for so many CPUs.
    pub const fn blocks(cpus: u64) -> u64 {
        3 + cpus
    }
    /// Where root writes the machine address of the first block.
    pub const ADDRESS: u64 = 0;
}

/// smmu: which device page is which, and what is in the memory that it shares with the SMMU.
pub mod space {
    use crate::kernel::PAGE;

    /// The first page of the SMMU's registers, and the page of the queue of events, 64 KiB behind it.
    pub const REGISTERS: usize = 0;
    /// See [`REGISTERS`].
    pub const EVENTS: usize = 1;
    /// Bytes of its registers.
    pub const REGISTER_BYTES: u64 = 0x2_0000;

    /// Where root writes the machine address of the shared memory.
    pub const ADDRESS: u64 = 0;
    /// Where the queue of commands is, and that of events: a page each.
    pub const COMMAND_QUEUE: u64 = PAGE;
    /// See [`COMMAND_QUEUE`].
    pub const EVENT_QUEUE: u64 = 2 * PAGE;
    /// Bytes of an entry of the table of streams.
    pub const STREAM_BYTES: u64 = 64;
    /// Fewest bits of a stream's number: such a table fills a page.
    pub const LEAST_BITS: u8 = 6;
    /// Most of them: a function's has so many.
    pub const MOST_BITS: u8 = 16;

    /// Where the table of streams is, whose numbers have so many bits, and what the address of the whole is a multiple of: the
    /// table lies at a multiple of its size.
    pub const fn streams(bits: u8) -> u64 {
        let bytes = STREAM_BYTES << bits;
        if bytes > 4 * PAGE { bytes } else { 4 * PAGE }
    }

    /// Where the tables of device spaces are, behind each other.
    pub const fn tables(bits: u8) -> u64 {
        streams(bits) + (STREAM_BYTES << bits)
    }
}

/// Which ring page is which, as page numbers from [`RINGS`].
pub mod ring {
    use crate::plan::MAX_SERVERS;

    /// p2m, vcpu, irqfwd, smmu, monitors: this server's log (to console). Lines of text.
    pub const LOG: usize = 0;
    /// p2m, vcpu, irqfwd, smmu, monitors: reports (to root), [`crate::wire::ToRoot`] as records.
    pub const REPORT: usize = 1;
    /// Monitors: what they were told of and said to it (to root), [`crate::wire::Seen`] as records.
    pub const SEEN: usize = 2;
    /// vcpu: bytes that the guest's serial port sends (to console).
    pub const SERIAL_OUT: usize = 2;
    /// vcpu: bytes that the guest's serial port receives (from console).
    pub const SERIAL_IN: usize = 3;

    /// p2m, vcpu: the first of the event rings (to monitors), of the first session one for each vCPU, then of the next.
    pub const EVENTS: usize = 4;
    /// Monitor: the first of the event rings of the guest at this place: p2m's, one for each vCPU, then vcpu's.
    pub const fn heard(place: usize) -> usize {
        4 + place * 2 * crate::plan::MAX_VCPUS
    }

    /// Console: the log of the server with this index in the plan. Index 0, the console itself, is root's log.
    pub const fn console_log(server: usize) -> usize {
        server
    }
    /// Console: what this guest's serial port sends.
    pub const fn console_out(guest: usize) -> usize {
        MAX_SERVERS + 2 * guest
    }
    /// Console: what this guest's serial port receives.
    pub const fn console_in(guest: usize) -> usize {
        MAX_SERVERS + 2 * guest + 1
    }
    /// Console: [`crate::wire::Report`]s from root, as records.
    pub const CONSOLE_REPORT: usize = MAX_SERVERS + 2 * crate::plan::MAX_GUESTS;
    /// Console: what the host asked, [`crate::control::FromHost`] as records (to root).
    pub const CONSOLE_ASKED: usize = CONSOLE_REPORT + 1;
    /// Console: [`crate::control::Answer`]s from root, as records.
    pub const CONSOLE_ANSWER: usize = CONSOLE_REPORT + 2;
    /// Console: the second log of the monitor with this place among monitors: two of one name run while one takes the other's
    /// place, and each has rings of its own.
    pub const fn console_second(monitor: usize) -> usize {
        CONSOLE_ANSWER + 1 + monitor
    }

    /// Root: the reports of the server with this index in the plan.
    pub const fn root_report(server: usize) -> usize {
        server
    }
    /// Root: its own log.
    pub const ROOT_LOG: usize = MAX_SERVERS;
    /// Root: [`crate::wire::Report`]s to console, as records.
    pub const ROOT_REPORT: usize = MAX_SERVERS + 1;
    /// Root: what the host asked, from console.
    pub const ROOT_ASKED: usize = MAX_SERVERS + 2;
    /// Root: answers to console.
    pub const ROOT_ANSWER: usize = MAX_SERVERS + 3;
    /// Root: the second ring of reports of the monitor with this place among monitors.
    pub const fn root_second(monitor: usize) -> usize {
        ROOT_ANSWER + 1 + monitor
    }
    /// Root: what the monitor with this place among monitors was told of, while it lives in this half (0 or 1).
    pub const fn root_seen(monitor: usize, half: usize) -> usize {
        ROOT_ANSWER + 1 + crate::plan::MAX_MONITORS + 2 * monitor + half
    }
}

/// Capability slots that every server starts with.
pub mod slot {
    /// Never a capability.
    pub const NONE: u64 = 0;
    /// Signal to root: something to look at (a report in the ring, an end).
    pub const ROOT: u64 = 1;
    /// Signal to console: there is output in a ring.
    pub const CONSOLE: u64 = 2;
    /// The guest of a p2m or vcpu server.
    pub const GUEST: u64 = 3;
    /// p2m: the guest's memory, one run; [`BLANK`] and the frames of GICv2's interface follow.
    pub const MEMORY: u64 = 4;
    /// p2m: a page of zeroes, for devices that are not there.
    pub const BLANK: u64 = 6;
    /// vcpu: portal to p2m; slot `P2M + thread` is the one on that thread's CPU.
    pub const P2M: u64 = 16;
    /// p2m: portal to the guest's vcpu server, slot `VCPU_SERVER + thread`: exits that are not p2m's are forwarded there.
    pub const VCPU_SERVER: u64 = 48;
    /// vcpu: the guest's vCPUs, slot `VCPU + i`.
    pub const VCPU: u64 = 32;
    /// console: signals to the vcpu servers (input waits), slot `INPUT + guest`.
    pub const INPUT: u64 = 16;
    /// console: the UART's line.
    pub const UART_LINE: u64 = 5;
    /// console: signal to root: the host asked something.
    pub const ASKED: u64 = 8;
    /// console: the system capability with the right to read the kernel's log. irqfwd: with the right to serve queues.
    pub const SYSTEM: u64 = 6;
    /// p2m: the guest's own devices, slot `DEVICE + i` in the order of its configuration.
    pub const DEVICE: u64 = 56;
    /// irqfwd: signal to thread `i`: its CPU's queue is not empty any more.
    pub const QUEUE: u64 = 16;
    /// irqfwd: the lines, slot `LINE + i` in the order of its configuration.
    pub const LINE: u64 = 32;
    /// smmu: the SMMU's lines: there are events, and something is wrong with it.
    pub const SMMU_LINE: u64 = 16;
    /// See [`SMMU_LINE`].
    pub const SMMU_ERROR: u64 = 17;
    /// irqfwd: vCPU `i` of guest `g`, slot `VCPUS + 8 * g + i`; those of guests that have ended are not there.
    pub const VCPUS: u64 = 96;
    /// vcpu: signal to this server's own attending thread, the one behind the control thread, with the bit
    /// [`super::vcpu_signal::TIMER`].
    pub const SELF: u64 = 7;
    /// p2m, vcpu: the guest's sessions, slot `SESSION + n`; empty where nobody watches.
    pub const SESSION: u64 = 8;
    /// p2m, vcpu: signals to the reading thread of the session's monitor, there is something in a ring: slots `READER + 2 * n`
    /// and the one behind it, since one monitor may take another's place.
    pub const READER: u64 = 40;
    /// Monitor: what it has of each guest that it watches, see [`super::watched`].
    pub const WATCHED: u64 = 64;
}

/// Capability slots of a monitor, for each guest that it watches ([`crate::plan::MonitorConfig::guests`]).
///
/// A thread of a guest's server is named by its vCPU; the one behind the last vCPU is the control thread, on root's CPU.
/// A monitor's own threads: one on each CPU of a vCPU that it watches, and the control thread on root's CPU, the last,
/// which root alone calls ([`badge::ROOT`]).
pub mod watched {
    use super::slot::WATCHED;

    /// Slots of one guest.
    const STRIDE: u64 = 64;

    /// Slots of a monitor that watches so many guests.
    pub const fn slots(guests: u64) -> u64 {
        WATCHED + STRIDE * guests
    }

    /// The guest, with the rights that the manifest gives.
    pub const fn guest(guest: u64) -> u64 {
        slots(guest)
    }

    /// Portal to a thread of its p2m, with the badge [`super::badge::monitor`].
    pub const fn p2m(guest: u64, thread: u64) -> u64 {
        slots(guest) + 8 + thread
    }

    /// Portal to a thread of its vcpu server, with the same badge.
    pub const fn vcpu_server(guest: u64, thread: u64) -> u64 {
        slots(guest) + 24 + thread
    }

    /// One of its vCPUs.
    pub const fn vcpu(guest: u64, vcpu: u64) -> u64 {
        slots(guest) + 40 + vcpu
    }
}

/// Capability slots that root starts with, made by the kernel.
pub mod root_slot {
    /// Root's own domain.
    pub const DOMAIN: u64 = 1;
    /// Root's own thread.
    pub const THREAD: u64 = 2;
    /// The machine.
    pub const SYSTEM: u64 = 3;
    /// The image's payload, one run, mapped read-only at [`super::PAYLOAD`] too.
    pub const PAYLOAD: u64 = 4;
    /// Free memory: runs at `MEMORY`, `MEMORY + 1`, … as many as `BootHeader::ram` has entries, and one behind them of what
    /// only boot needed.
    pub const MEMORY: u64 = 8;
    /// Device runs, in the order of `BootHeader::devices`.
    pub const DEVICES: u64 = 16;
    /// First slot that root uses as it likes.
    pub const FREE: u64 = 64;
}

/// Where every guest's devices are, in guest-physical bytes. Some guests have these addresses built in, so they are fixed.
pub mod platform {
    use crate::kernel::PAGE;

    /// Two banks of flash, neither of them there: all that lies below the interrupt controller.
    pub const FLASH: u64 = 0;
    /// Bytes of both.
    pub const FLASH_BYTES: u64 = 0x0800_0000;
    /// Interrupt distributor (GICD).
    pub const DISTRIBUTOR: u64 = 0x0800_0000;
    /// Bytes of it.
    pub const DISTRIBUTOR_BYTES: u64 = 0x1_0000;
    /// CPU interface (GICC) of a version 2 guest: the hardware's virtual one is mapped there.
    pub const CPU_INTERFACE: u64 = 0x0801_0000;
    /// Frame that makes lines of messages (GICv2m), where the guest sees functions of PCI.
    pub const FRAME: u64 = 0x0802_0000;
    /// Redistributors (GICR) of a version 3 guest, one a vCPU.
    pub const REDISTRIBUTORS: u64 = 0x080a_0000;
    /// Bytes of each.
    pub const REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
    /// Serial port (PL011).
    pub const SERIAL: u64 = 0x0900_0000;
    /// Real-time clock (PL031).
    pub const CLOCK: u64 = 0x0901_0000;
    /// Slots for paravirtual devices.
    pub const SLOTS: u64 = 0x0a00_0000;
    /// Bytes of a slot.
    pub const SLOT_BYTES: u64 = 0x200;
    /// Slots that there are.
    pub const SLOT_COUNT: u64 = 32;
    /// Devices of the machine that the guest owns are shown from here on.
    pub const OWNED: u64 = 0x0b00_0000;
    /// And end here.
    pub const OWNED_END: u64 = 0x1000_0000;
    /// Configuration of functions of PCI, those of bus 0, where the guest sees any: a page each, eight for a device.
    pub const CONFIGURATION: u64 = 0x3f00_0000;
    /// Bytes of it.
    pub const CONFIGURATION_BYTES: u64 = 0x10_0000;

    /// The windows in which a guest's accesses are its vcpu server's to answer: first page and pages.
    pub const fn windows(gic: u8, vcpus: u64) -> [(u64, u64); 6] {
        let redistributors = if gic == 3 { REDISTRIBUTOR_BYTES * vcpus } else { 0 };
        [
            (DISTRIBUTOR / PAGE, DISTRIBUTOR_BYTES / PAGE),
            (REDISTRIBUTORS / PAGE, redistributors / PAGE),
            (SERIAL / PAGE, 1),
            (CLOCK / PAGE, 1),
            (SLOTS / PAGE, SLOT_BYTES * SLOT_COUNT / PAGE),
            (FLASH / PAGE, FLASH_BYTES / PAGE),
        ]
    }

    /// Those beside them where the guest sees functions of PCI. The pages of their registers that it has not got are others.
    pub const BUS_WINDOWS: [(u64, u64); 2] = [(FRAME / PAGE, 1), (CONFIGURATION / PAGE, CONFIGURATION_BYTES / PAGE)];
}

/// Bits of root's signal word.
pub mod root_signal {
    /// Bit of the server with this index in the plan (a report waits, it ended or it faulted).
    pub const fn server(index: usize) -> u64 {
        1 << index
    }
    /// The host asked something. A signal has no more bits, and the composer makes fewer servers than there may be.
    pub const ASKED: u64 = 1 << (crate::plan::MAX_SERVERS - 1);
}

/// Bits of the console's signal word.
pub mod console_signal {
    /// Some ring has output.
    pub const OUTPUT: u64 = 1;
    /// The UART's line was raised.
    pub const LINE: u64 = 2;
    /// Root has something (power-off: drain everything).
    pub const ROOT: u64 = 4;
}

/// Bits of the signal word of a vcpu server's attending thread.
pub mod vcpu_signal {
    /// Console input waits in the ring, or its other ring has room again.
    pub const INPUT: u64 = 1;
    /// A guest's physical timer has another deadline.
    pub const TIMER: u64 = 2;
}

/// Bits of the signal word of irqfwd's threads.
pub mod irqfwd_signal {
    /// The CPU's queue is not empty any more.
    pub const QUEUE: u64 = 1;
}

/// Bits of the signal word of smmu's attending thread.
pub mod smmu_signal {
    /// There are events in the queue.
    pub const EVENTS: u64 = 1;
    /// Something is wrong with the SMMU itself.
    pub const ERROR: u64 = 2;
}

/// Badges by which a server knows who asks.
pub mod badge {
    /// An exit of the vCPU in the low 8 bits.
    pub const EXIT: u64 = 0;
    /// A call from the guest's vcpu server, thread in the low 8 bits.
    pub const VCPU_SERVER: u64 = 1 << 8;
    /// A call from root.
    pub const ROOT: u64 = 2 << 8;
    /// A call from a monitor: see [`monitor`].
    pub const MONITOR: u64 = 3 << 8;

    /// p2m, vcpu: a call from the monitor that has this session of the guest, to this thread.
    pub const fn monitor(session: u64, thread: u64) -> u64 {
        MONITOR | (session & 15) << 4 | thread & 15
    }

    /// Whose call it is, of [`monitor`]: the session.
    pub const fn session(badge: u64) -> u8 {
        (badge >> 4) as u8 & 15
    }

    /// Monitor: an event of a vCPU of the guest that has this place among those that it watches. An [`EXIT`], whose words are
    /// those of the vCPU's; only `m9` is p2m's: which event of this vCPU it is, the same when it is told again.
    pub const fn event(guest: u64, vcpu: u64) -> u64 {
        EXIT | (guest & 15) << 4 | vcpu & 15
    }

    /// The guest and the vCPU of [`event`].
    pub const fn of_event(badge: u64) -> (usize, usize) {
        ((badge >> 4) as usize & 15, badge as usize & 15)
    }

    /// Who asks: [`EXIT`], [`VCPU_SERVER`], [`ROOT`] or [`MONITOR`].
    pub const fn kind(badge: u64) -> u64 {
        badge & !0xff
    }

    /// The low 8 bits.
    pub const fn index(badge: u64) -> u8 {
        badge as u8
    }

    /// Badges of capabilities to a vCPU: in whose name it is paused ([`PAUSERS`](crate::kernel::PAUSERS)). Root's have none, which is 0.
    pub mod pauser {
        /// The guest's vcpu server.
        pub const VCPU_SERVER: u64 = 1;

        /// The monitor that has this session, in one of its two halves.
        pub const fn monitor(session: u64, half: u64) -> u64 {
            2 + 2 * session + half
        }

        /// Both halves of it, a bit each.
        pub const fn monitors(session: u64) -> u64 {
            1 << monitor(session, 0) | 1 << monitor(session, 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_RINGS, badge, ring, slot, watched};
    use crate::plan::{MAX_GUESTS, MAX_MONITORS, MAX_SERVERS, MAX_VCPUS, MAX_WATCHED};
    use std::collections::BTreeSet;

    #[test]
    fn a_monitors_slots_are_each_for_one_thing() {
        let (guests, threads) = (MAX_WATCHED as u64, MAX_VCPUS as u64 + 1);
        let mut seen = BTreeSet::from([slot::NONE, slot::ROOT, slot::CONSOLE]);
        for guest in 0..guests {
            assert!(seen.insert(watched::guest(guest)));
            for thread in 0..threads {
                assert!(seen.insert(watched::p2m(guest, thread)) && seen.insert(watched::vcpu_server(guest, thread)));
            }
            assert!((0..threads - 1).all(|vcpu| seen.insert(watched::vcpu(guest, vcpu))));
        }
        assert!(seen.last().is_some_and(|last| *last < watched::slots(guests)));
    }

    #[test]
    fn each_ring_page_is_for_one_thing() {
        let (servers, monitors) = (0..MAX_SERVERS, 0..MAX_MONITORS);
        let console = servers.clone().map(ring::console_log).chain(monitors.clone().map(ring::console_second));
        let console = console.chain((0..MAX_GUESTS).flat_map(|guest| [ring::console_out(guest), ring::console_in(guest)]));
        let console: std::vec::Vec<usize> = console.chain([ring::CONSOLE_REPORT, ring::CONSOLE_ASKED, ring::CONSOLE_ANSWER]).collect();
        let root = servers.map(ring::root_report).chain(monitors.clone().map(ring::root_second));
        let root = root.chain(monitors.flat_map(|monitor| [ring::root_seen(monitor, 0), ring::root_seen(monitor, 1)]));
        let root: std::vec::Vec<usize> = root.chain([ring::ROOT_LOG, ring::ROOT_REPORT, ring::ROOT_ASKED, ring::ROOT_ANSWER]).collect();
        for pages in [console, root] {
            assert!(pages.iter().all(|page| *page < MAX_RINGS));
            assert_eq!(pages.iter().collect::<BTreeSet<_>>().len(), pages.len());
        }
    }

    #[test]
    fn badges_say_what_they_were_made_of() {
        for (a, b) in (0..4).flat_map(|a| (0..9).map(move |b| (a, b))) {
            let call = badge::monitor(a, b);
            assert_eq!((badge::kind(call), badge::session(call), u64::from(badge::index(call)) & 15), (badge::MONITOR, a as u8, b));
            let event = badge::event(a, b);
            assert_eq!((badge::kind(event), badge::of_event(event)), (badge::EXIT, (a as usize, b as usize)));
        }
    }
}
