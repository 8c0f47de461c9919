// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves bytes: rings to the serial port, the serial port to guests; sleeps when there is nothing to move.

use crate::channel::Channels;
use crate::control;
use crate::frame::{Decoder, Incoming, Outgoing};
use crate::uart::Pl011;
use trellis_idl::kernel::PAGE;
use trellis_idl::layout::{console_signal, ring, slot};
use trellis_idl::plan::ConsoleConfig;
use trellis_idl::wire::{FrameKind, MAX_PAYLOAD};
use trellis_runtime::handle::clock;
use trellis_runtime::memory::Registers;
use trellis_runtime::ring::MAX_RECORD;
use trellis_runtime::{Line, Machine, Producer, RingPage, Signal, System};

/// What wakes the console.
const WAKES: u64 = console_signal::OUTPUT | console_signal::LINE | console_signal::ROOT;
/// Frames that go out at most after root wants an end: guests that are not essential may go on writing.
const LAST_FRAMES: u32 = 1024;
/// Bytes taken from the serial port in one go, so that input starves no output.
const MAX_INPUT: usize = 256;

/// The console.
#[derive(Debug)]
pub struct Console<R, P> {
    uart: Pl011<R>,
    channels: Channels<P>,
    outgoing: Outgoing,
    decoder: Decoder,
    /// The kernel's log, taken and not sent yet.
    kernel: KernelText,
    /// Root wants an end: frames that may still go out.
    closing: Option<u32>,
}

/// Bytes of the kernel's log on their way.
#[derive(Debug)]
struct KernelText {
    bytes: [u8; PAGE as usize],
    sent: usize,
    used: usize,
}

impl<R: Registers, P: Fn(usize) -> &'static RingPage> Console<R, P> {
    /// A console for these channels on this PL011; `page` gives its ring page `i`.
    pub fn new(config: &ConsoleConfig<'_>, registers: R, page: P) -> Console<R, P> {
        let guests = config.channels.iter().filter(|channel| channel.is_guest).count();
        let servers = config.channels.len() - guests;
        Console {
            uart: Pl011::new(registers),
            channels: Channels::new(page, [servers, config.monitors.into()], guests),
            outgoing: Outgoing::new(),
            decoder: Decoder::new(),
            kernel: KernelText { bytes: [0; PAGE as usize], sent: 0, used: 0 },
            closing: None,
        }
    }

    /// Opens the serial port. Its line was bound to our signal by root.
    pub fn open(&mut self, system: &impl System) {
        self.uart.open();
        // Without a line (a console for output only) there is nothing to acknowledge.
        let _ = Line::at(slot::UART_LINE).acknowledge(system);
    }

    /// Moves what can be moved now, then waits for more.
    pub fn step(&mut self, system: &impl System) {
        let mut is_more = self.input(system);
        while self.output(system) {
            is_more = self.input(system);
        }
        if self.is_closed() {
            self.closing = None;
            self.uart.finish();
            // Root waits for this with a deadline of its own.
            let _ = Signal::at(slot::ROOT).raise(system);
        }
        // What is left in the queue has had its interrupt.
        if is_more {
            return;
        }
        let bits = wait(system);
        if bits & console_signal::LINE != 0 {
            // A byte that comes after this interrupts again.
            self.uart.end_interrupt();
            let _ = Line::at(slot::UART_LINE).acknowledge(system);
        }
        if bits & console_signal::ROOT != 0 {
            self.closing = Some(LAST_FRAMES);
        }
    }

    /// Sends a piece. False: nothing is left, or the serial port takes no more now.
    fn output(&mut self, system: &impl System) -> bool {
        if self.outgoing.rest().is_empty() && !self.refill(system) {
            return false;
        }
        let sent = self.uart.send(self.outgoing.rest());
        self.outgoing.advance(sent);
        self.outgoing.rest().is_empty()
    }

    /// Makes the next frame. False: there is none.
    fn refill(&mut self, system: &impl System) -> bool {
        match &mut self.closing {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.kernel.fill(system) {
            let piece = self.kernel.take();
            self.outgoing.fill(FrameKind::KernelLog, 0, piece);
            return true;
        }
        let mut bytes = [0; MAX_RECORD];
        let Some(piece) = self.channels.next(&mut bytes) else { return false };
        self.outgoing.fill(piece.kind, piece.channel, bytes.get(..piece.bytes).unwrap_or_default());
        true
    }

    /// Whether everything went out that shall go out before the end.
    fn is_closed(&self) -> bool {
        self.closing.is_some() && self.outgoing.rest().is_empty()
    }

    /// Takes what the host sent. True: there may be more.
    fn input(&mut self, system: &impl System) -> bool {
        for _ in 0..MAX_INPUT {
            let Some(byte) = self.uart.receive() else { return false };
            let Some(frame) = self.decoder.push(byte) else { continue };
            deliver(system, &self.channels, frame);
        }
        true
    }
}

/// Waits for something to do. Output alone is left to gather for a millisecond: this server runs before its writers do,
/// and would else send each byte in a frame of its own.
fn wait(system: &impl System) -> u64 {
    let bits = system.wait(WAKES, 0);
    if bits != console_signal::OUTPUT {
        return bits;
    }
    let (now, hz) = clock(system);
    bits | system.wait(WAKES & !console_signal::OUTPUT, now + hz / 1000 + 1)
}

/// Hands on what came: input to a guest, questions to root. What does not fit is lost, as on a real serial port.
fn deliver<P: Fn(usize) -> &'static RingPage>(system: &impl System, channels: &Channels<P>, frame: Incoming<'_>) {
    match frame.kind {
        FrameKind::Guest if usize::from(frame.channel) < channels.guests() => input(system, channels, frame),
        FrameKind::Control => ask(system, channels, frame.payload),
        _ => {}
    }
}

/// Tells root what the host asks.
fn ask<P: Fn(usize) -> &'static RingPage>(system: &impl System, channels: &Channels<P>, payload: &[u8]) {
    let Some(heard) = control::decode(payload) else { return };
    if Producer::new(channels.page(ring::CONSOLE_ASKED)).send(&heard) {
        // Without root there is nobody to answer.
        let _ = Signal::at(slot::ASKED).raise(system);
    }
}

/// Puts input into a guest's ring and tells its vcpu server.
fn input<P: Fn(usize) -> &'static RingPage>(system: &impl System, channels: &Channels<P>, frame: Incoming<'_>) {
    let guest = usize::from(frame.channel);
    let page = channels.page(ring::console_in(guest));
    if Producer::new(page).write(frame.payload) > 0 {
        // A server that is gone misses nothing.
        let _ = Signal::at(slot::INPUT + guest as u64).raise(system);
    }
}

impl KernelText {
    /// Whether there is text; asks the kernel for more when all was taken.
    fn fill(&mut self, system: &impl System) -> bool {
        if self.sent < self.used {
            return true;
        }
        let taken = Machine::at(slot::SYSTEM).log_read(system).unwrap_or(0).min(PAGE) as usize;
        system.with_buffer(|buffer| {
            if let (Some(to), Some(from)) = (self.bytes.get_mut(..taken), buffer.get(..taken)) {
                to.copy_from_slice(from);
            }
        });
        (self.sent, self.used) = (0, taken);
        taken > 0
    }

    /// The next piece.
    fn take(&mut self) -> &[u8] {
        let start = self.sent;
        self.sent = self.used.min(start + MAX_PAYLOAD);
        self.bytes.get(start..self.sent).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uart::fake::Wire;
    use proptest::prelude::*;
    use trellis_idl::control::{Ask, FromHost, Head, VERSION};
    use std::cell::{Cell, RefCell};
    use trellis_idl::kernel::{Op, Refusal, WORDS};
    use trellis_idl::plan::Channel;
    use trellis_idl::wire::{ROOT_CHANNEL, SECOND_LOG};

    /// A kernel with a log and signals.
    #[derive(Default)]
    struct Fake {
        log: RefCell<Vec<u8>>,
        buffer: RefCell<Vec<u8>>,
        raised: RefCell<Vec<u64>>,
        /// What the next wait gives.
        bits: Cell<u64>,
        waits: RefCell<Vec<(u64, u64)>>,
    }

    impl System for Fake {
        fn invoke(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
            match op {
                Op::LogRead => {
                    assert_eq!(a[0], slot::SYSTEM);
                    let log = self.log.take();
                    *self.buffer.borrow_mut() = log.clone();
                    return Ok([log.len() as u64, 0, 0]);
                }
                Op::Signal => self.raised.borrow_mut().push(a[0]),
                Op::LineAck => assert_eq!(a[0], slot::UART_LINE),
                Op::Clock => return Ok([5_000_000, 1_000_000_000, 0]),
                other => panic!("{other:?}"),
            }
            Ok([0; 3])
        }
        fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
            Err(Refusal::NoCapability)
        }
        fn wait(&self, mask: u64, deadline: u64) -> u64 {
            self.waits.borrow_mut().push((mask, deadline));
            self.bits.take() & mask
        }
        fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
            let mut page = [0; 4096];
            let bytes = self.buffer.borrow();
            page[..bytes.len()].copy_from_slice(&bytes);
            f(&mut page)
        }
    }

    type Frame = (FrameKind, u8, Vec<u8>);

    fn frames(wire: &Wire) -> Vec<Frame> {
        let mut decoder = Decoder::new();
        let bytes = wire.out.take();
        bytes.iter().filter_map(|b| decoder.push(*b).map(|f| (f.kind, f.channel, f.payload.to_vec()))).collect()
    }

    fn pages() -> &'static [RingPage] {
        Vec::leak((0..128).map(|_| RingPage::new()).collect())
    }

    /// Three servers (console, p2m, vcpu) and two guests.
    fn console<'a>(
        wire: &'a Wire, pages: &'static [RingPage],
    ) -> Console<&'a Wire, impl Fn(usize) -> &'static RingPage> {
        wire.room.set(usize::MAX);
        let mut config = ConsoleConfig { channels: Default::default(), uart: true, monitors: 1 };
        for is_guest in [false, false, false, true, true] {
            config.channels.push(Channel { name: "x", is_guest }).ok();
        }
        Console::new(&config, wire, move |index| &pages[index])
    }

    #[test]
    fn each_ring_comes_out_as_its_own_channel() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        Producer::new(&pages[ring::console_log(0)]).write(b"root\n");
        Producer::new(&pages[ring::console_log(2)]).write(b"vcpu\n");
        Producer::new(&pages[ring::console_out(1)]).write(b"guest\n");
        // The last server is a monitor: another one of its name has a log of its own.
        Producer::new(&pages[ring::console_second(0)]).write(b"second\n");
        Producer::new(&pages[ring::CONSOLE_REPORT]).write_record(&[1, 2, 3]);
        fake.log.borrow_mut().extend_from_slice(b"kernel\n");
        console.open(&fake);
        console.step(&fake);
        let expected: Vec<Frame> = vec![
            (FrameKind::KernelLog, 0, b"kernel\n".to_vec()),
            (FrameKind::ServerLog, ROOT_CHANNEL, b"root\n".to_vec()),
            (FrameKind::ServerLog, 2, b"vcpu\n".to_vec()),
            (FrameKind::Guest, 1, b"guest\n".to_vec()),
            (FrameKind::ServerLog, 2 + SECOND_LOG, b"second\n".to_vec()),
            (FrameKind::Report, 0, vec![1, 2, 3]),
        ];
        assert_eq!(frames(&wire), expected);
    }

    #[test]
    fn a_guest_that_floods_starves_nobody() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        let mut flood = Producer::new(&pages[ring::console_out(0)]);
        Producer::new(&pages[ring::console_out(1)]).write(&[b'a'; 600]);
        Producer::new(&pages[ring::CONSOLE_REPORT]).write_record(&[9]);
        let mut seen = Vec::new();
        for _ in 0..100 {
            flood.write(&[b'f'; 4000]);
            console.refill(&fake);
            seen.push(console.outgoing.rest()[1]);
            let sent = console.uart.send(console.outgoing.rest());
            console.outgoing.advance(sent);
        }
        let quiet: Vec<Frame> = frames(&wire).into_iter().filter(|(_, channel, p)| *channel == 1 || p == &[9]).collect();
        assert_eq!(quiet.len(), 4, "600 bytes in three turns, and the report");
    }

    #[test]
    fn a_slow_wire_loses_nothing() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        let text: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
        Producer::new(&pages[ring::console_out(0)]).write(&text);
        for _ in 0..2000 {
            wire.room.set(16);
            console.step(&fake);
        }
        let out: Vec<u8> = frames(&wire).into_iter().flat_map(|(_, _, payload)| payload).collect();
        assert_eq!(out, text);
    }

    #[test]
    fn input_reaches_its_guest_and_no_other() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        let mut frame = Outgoing::new();
        for (kind, channel) in [(FrameKind::Guest, 1), (FrameKind::Guest, 2), (FrameKind::Report, 0)] {
            frame.fill(kind, channel, b"version\n");
            wire.input.borrow_mut().extend(frame.rest());
        }
        fake.bits.set(console_signal::LINE);
        console.step(&fake);
        let mut bytes = [0; 20];
        let mut input = trellis_runtime::Consumer::new(&pages[ring::console_in(1)]);
        assert_eq!(input.read(&mut bytes), 8);
        assert_eq!(&bytes[..8], b"version\n");
        assert_eq!(*fake.raised.borrow(), [slot::INPUT + 1]);
    }

    /// A question as it travels.
    fn question(number: u32, ask: &Ask) -> Vec<u8> {
        let mut payload = [0; 64];
        let payload = postcard::to_slice(&(Head { version: VERSION, number }, ask), &mut payload).expect("it fits");
        let mut frame = Outgoing::new();
        frame.fill(FrameKind::Control, 0, payload);
        frame.rest().to_vec()
    }

    fn asked(pages: &'static [RingPage]) -> Vec<FromHost> {
        let mut ring = trellis_runtime::Consumer::new(&pages[ring::CONSOLE_ASKED]);
        core::iter::from_fn(|| ring.receive::<FromHost>()).map(|heard| heard.expect("a question")).collect()
    }

    #[test]
    fn questions_reach_root_decoded_and_answers_go_out_as_they_are() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        let whole = question(7, &Ask::Status);
        let mut foreign = Outgoing::new();
        foreign.fill(FrameKind::Control, 0, &[99, 8, 1, 2, 3]);
        // A host that goes away in the middle of a frame, and one that comes after it and ends that first.
        let torn = &whole[..whole.len() / 2];
        wire.input.borrow_mut().extend([torn, &[0], &whole, foreign.rest()].concat());
        fake.bits.set(console_signal::LINE);
        console.step(&fake);
        assert_eq!(asked(pages), [FromHost::Asked(7, Ask::Status), FromHost::Foreign(8)]);
        assert_eq!(*fake.raised.borrow(), [slot::ASKED; 2]);
        Producer::new(&pages[ring::CONSOLE_ANSWER]).write_record(&[1, 7, 0]);
        console.step(&fake);
        assert_eq!(frames(&wire), [(FrameKind::Control, 0, vec![1, 7, 0])]);
    }

    #[test]
    fn a_host_that_floods_fills_its_ring_and_starves_nobody() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        let mut said = 0;
        for round in 0..200u8 {
            for number in 0..20 {
                wire.input.borrow_mut().extend(question(number, &Ask::Load(1)));
            }
            Producer::new(&pages[ring::console_out(0)]).write(&[round]);
            wire.room.set(64);
            fake.bits.set(console_signal::LINE);
            console.step(&fake);
            said += frames(&wire).len();
            // At most so many bytes are taken each time; the others wait on the wire.
            wire.input.borrow_mut().clear();
        }
        assert!(said >= 190, "the guest's bytes went out all the while: {said}");
        let heard = asked(pages);
        assert!(heard.len() > 100 && heard.iter().all(|heard| matches!(heard, FromHost::Asked(_, Ask::Load(1)))));
    }

    proptest! {
        #[test]
        fn no_stream_of_bytes_breaks_it_and_root_hears_only_whole_questions(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| (false, bytes)),
                    any::<u32>().prop_map(|number| (false, question(number, &Ask::Status))),
                    any::<u32>().prop_map(|number| (true, [&[0u8], question(number, &Ask::Status).as_slice()].concat())),
                ],
                0..20,
            ),
        ) {
            let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
            let mut console = console(&wire, pages);
            wire.input.borrow_mut().extend(pieces.iter().flat_map(|(_, bytes)| bytes));
            for _ in 0..20 {
                fake.bits.set(console_signal::LINE);
                console.step(&fake);
            }
            prop_assert!(wire.input.borrow().is_empty());
            let whole = pieces.iter().filter(|(begins_anew, _)| *begins_anew).count();
            prop_assert!(asked(pages).len() >= whole, "each question after an end is heard");
        }
    }

    #[test]
    fn output_gathers_for_a_millisecond_and_input_does_not() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        fake.bits.set(console_signal::OUTPUT);
        console.step(&fake);
        assert_eq!(fake.waits.take(), [(WAKES, 0), (WAKES & !console_signal::OUTPUT, 6_000_001)]);
        fake.bits.set(console_signal::OUTPUT | console_signal::LINE);
        console.step(&fake);
        assert_eq!(fake.waits.take(), [(WAKES, 0)]);
    }

    #[test]
    fn nobody_sleeps_over_bytes_whose_interrupt_was_ended() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        wire.input.borrow_mut().extend([7; 2 * MAX_INPUT + 1]);
        console.step(&fake);
        console.step(&fake);
        assert!(fake.waits.borrow().is_empty());
        console.step(&fake);
        assert_eq!(fake.waits.take(), [(WAKES, 0)]);
        assert!(wire.input.borrow().is_empty());
    }

    #[test]
    fn root_hears_when_all_went_out() {
        let (wire, fake, pages) = (Wire::default(), Fake::default(), pages());
        let mut console = console(&wire, pages);
        Producer::new(&pages[ring::CONSOLE_REPORT]).write_record(&[4]);
        fake.bits.set(console_signal::ROOT);
        wire.room.set(2);
        console.step(&fake);
        console.step(&fake);
        assert!(fake.raised.borrow().is_empty(), "the frame is on its way still");
        wire.room.set(100);
        console.step(&fake);
        assert_eq!(*fake.raised.borrow(), [slot::ROOT]);
        assert_eq!(frames(&wire), [(FrameKind::Report, 0, vec![4])]);
        console.step(&fake);
        assert_eq!(fake.raised.borrow().len(), 1);
    }
}
