// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding server on the kernel's core and a machine of ordinary memory: root's thread is the server, a guest with a
//! vCPU on each of two CPUs owns the line.

use heapless::Vec;
use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use trellis_core::trap::Trap;
use trellis_hosted::small::{self, ROOT, anywhere, must, slot};
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::kernel::{FIRST_MESSAGE, LineField, LineState, Op, PLACE, Refusal, WORDS};
use trellis_idl::layout::root_slot;
use trellis_irqfwd::its::Failure;
use trellis_irqfwd::messages::Gate;
use trellis_irqfwd::{Counters, Forwarder, Limit, Post, Queue, Wish};
use trellis_runtime::handle::Tie;
use trellis_runtime::{Line, Machine, Signal, System, Vcpu};

const LINE: u64 = 34;
const LINE_SLOT: u64 = slot::FREE;
const SECOND: u64 = slot::FREE + 1;
const BIT: u32 = 1 << (LINE - 32);
const VCPUS: [Vcpu; 2] = [Vcpu::at(slot::VCPU), Vcpu::at(SECOND)];

/// The kernel as root's thread on CPU 0 asks it; whether it waits for the next of its queue, and how often it asked at all.
struct Kernel(RefCell<Hosted>, Cell<bool>, Cell<u32>);

impl System for Kernel {
    fn invoke(&self, op: Op, arguments: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let mut hosted = self.0.borrow_mut();
        self.2.set(self.2.get() + 1);
        hosted.syscall(0, op as u16, arguments, [0; WORDS]);
        hosted.deliver_kicks();
        assert_eq!(hosted.now(0), Now::Thread(ROOT), "{op:?} was meant to come back");
        let [x0, x1, x2] = hosted.registers(0).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::Unsupported)
    }

    fn wait(&self, mask: u64, deadline: u64) -> u64 {
        self.0.borrow_mut().syscall(0, Op::Wait as u16, [mask, deadline, 0, 0, 0, 0], [0; WORDS]);
        0
    }

    /// While it waits nothing comes back, as when a deadline has passed; the next call is where it goes on.
    fn queue_next(&self, [vcpu, service, others, deadline]: [u64; 4]) -> Result<[u64; 3], Refusal> {
        let mut hosted = self.0.borrow_mut();
        if !self.1.replace(false) {
            self.2.set(self.2.get() + 1);
            hosted.syscall(0, Op::QueueNext as u16, [vcpu, service, others, deadline, 0, 0], [0; WORDS]);
            // Another CPU that has to be asked has answered.
            hosted.deliver_kicks();
        }
        if hosted.now(0) != Now::Thread(ROOT) {
            self.1.set(true);
            return Ok([0; 3]);
        }
        let [x0, x1, x2] = hosted.registers(0).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

impl Kernel {
    /// A guest that enables the line; root is about to serve CPU 0's queue.
    fn new() -> Kernel {
        let mut hosted = small::system(Settings { cpus: 2, ..Settings::default() });
        must(&mut hosted, Op::LineCreate, [root_slot::SYSTEM, LINE, LINE_SLOT, 0, 0, 0]);
        anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, 1, SECOND, small::VCPU_PRIORITY, 0]).expect("a vCPU");
        for vcpu in [slot::VCPU, SECOND] {
            anywhere(&mut hosted, Op::LinesEnable, [vcpu, 1, 0, 0, 0, 0]).expect("root may");
        }
        must(&mut hosted, Op::GuestMap, [slot::GUEST, small::GUEST_PAGE, slot::MEMORY, 0, 512, 7]);
        for vcpu in [slot::VCPU, SECOND] {
            anywhere(&mut hosted, Op::VcpuStart, [vcpu, 0, 0, 0, 0, 0]).expect("it is stopped");
        }
        let kernel = Kernel(RefCell::new(hosted), Cell::new(false), Cell::new(0));
        VCPUS[0].lines_write(&kernel, LineField::Enabled, 32, BIT, BIT).expect("root may");
        kernel
    }

    fn queue(&self, adopt: bool) -> Queue {
        Queue::open(self, Machine::at(root_slot::SYSTEM), Signal::at(slot::SIGNALS[0]), adopt).expect("root may")
    }

    /// The device raises its line: root runs if that is forwarded to CPU 0.
    fn fire(&self, cpu: u16) {
        self.0.borrow_mut().trap(cpu, Trap::Line(LINE as u32));
    }

    fn is_active(&self) -> bool {
        self.0.borrow().board.borrow().active.contains(&(LINE as u32))
    }

    /// The CPU that the line comes to.
    fn comes_to(&self) -> Option<u16> {
        self.0.borrow().board.borrow().lines.get(&(LINE as u32)).copied()
    }

    /// Root waits, the guest's vCPU on this CPU takes the line and ends it, root goes on. Whether there was one.
    fn guest_serves(&self, cpu: u16) -> bool {
        // What it was signalled for so far is taken first.
        while self.0.borrow().now(0) == Now::Thread(ROOT) {
            self.wait(1, 0);
        }
        let mut hosted = self.0.borrow_mut();
        let line = if matches!(hosted.now(cpu), Now::Guest(_)) { hosted.acknowledge(cpu) } else { None };
        if let Some(line) = line {
            hosted.end_of_interrupt(cpu, line);
        }
        drop(hosted);
        self.wake_root();
        line == Some(LINE as u8)
    }

    /// Root is signalled by nobody in particular, if it waits.
    fn wake_root(&self) {
        let mut hosted = self.0.borrow_mut();
        if hosted.now(0) == Now::Thread(ROOT) {
            return;
        }
        let root = hosted.cpus[0].local.threads.name_at(ROOT).0;
        let Hosted { cpus, shared, .. } = &mut *hosted;
        let this = &mut cpus[0];
        let id = trellis_core::pool::Id::from_word(root);
        trellis_core::signal::raise(&mut this.local, shared, &mut this.machine, id, 1);
        assert_eq!(hosted.trap(0, Trap::Spurious), Now::Thread(ROOT));
    }

    fn pass_time(&self, ticks: u64) {
        let now = self.0.borrow().board.borrow().now;
        self.0.borrow().board.borrow_mut().now = now + ticks;
    }

    fn move_line(&self, from: usize, to: usize) {
        let state = VCPUS[from].line_take(self, LINE).expect("it is not active");
        VCPUS[to].line_target(self, LINE, state).expect("it is nowhere");
    }
}

fn wish(limit: Limit) -> Wish {
    Wish {
        line: Line::at(LINE_SLOT),
        guest_line: 0,
        vcpus: Vec::from_slice(&VCPUS).expect("two fit"),
        cpus: Vec::from_slice(&[0, 1]).expect("two fit"),
        limit,
        direct: false,
        number: LINE as u32,
        gate: None,
    }
}

/// A guest whose line is forwarded.
fn bound(limit: Limit) -> (Kernel, Forwarder, Queue, u16) {
    let kernel = Kernel::new();
    let (forwarder, queue) = (Forwarder::new(), kernel.queue(false));
    let source = forwarder.bind(&kernel, wish(limit)).expect("nobody has it");
    (kernel, forwarder, queue, source)
}

fn counters(kernel: &Kernel, forwarder: &Forwarder, source: u16) -> Counters {
    forwarder.counters(kernel, source).expect("it is bound")
}

#[test]
fn what_an_earlier_server_counted_is_counted_on() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    let before = Counters { taken: 10, passed: 9, direct: 0, moved: 2, waited: 1, storms: 3 };
    kernel.fire(0);
    assert!(!forwarder.serve(&kernel, queue) && kernel.guest_serves(0));
    assert_eq!(forwarder.restore(&kernel, source, before, [0, 1, 0, 0, 0, 0, 0, u64::MAX], 2), Ok(()));
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 11, passed: 10, direct: 0, moved: 2, waited: 1, storms: 3 });
    assert_eq!(forwarder.restore(&kernel, source, Counters { passed: u64::MAX, ..Counters::default() }, [0, 0, 0, 0, 0, 0, 0, 1], 0), Ok(()));
    assert_eq!(counters(&kernel, &forwarder, source).passed, u64::MAX, "a count does not wrap");
    assert_eq!(forwarder.delays(&kernel, source).map(|delays| (delays[2], delays[8])), Some((1, u64::MAX)));
    assert_eq!(forwarder.restore(&kernel, source + 1, before, [0; 8], 0), Err(trellis_idl::kernel::Refusal::Gone));
}

#[test]
fn each_interrupt_reaches_the_guest_once() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    for count in 1..=5 {
        kernel.fire(0);
        assert!(!forwarder.serve(&kernel, queue), "nothing is left to do");
        assert!(kernel.guest_serves(0));
        assert!(!kernel.guest_serves(0) && !kernel.is_active());
        let expected = Counters { taken: count, passed: count, ..Counters::default() };
        assert_eq!(counters(&kernel, &forwarder, source), expected);
    }
    laws::full(&kernel.0.borrow()).expect("the laws hold");
}

/// The server waits at its queue.
fn waits(kernel: &Kernel, queue: Queue) -> Post {
    let post = Post::new(queue);
    // It is told to look once, as whoever begins to serve a queue is.
    let woken = post.wait(kernel).expect("it is its own");
    assert_eq!((woken.bits, woken.served, kernel.1.get()), (0, None, true));
    post
}

/// The server goes on where it waits, and waits again. Whether it was given a service.
fn goes_on(kernel: &Kernel, forwarder: &Forwarder, post: &mut Post) -> bool {
    let woken = post.wait(kernel).expect("it is its own");
    let is_given = woken.served.is_some();
    let woken = forwarder.step(kernel, post, woken).expect("it is its own");
    assert_eq!((woken.served, kernel.1.get()), (None, true), "it waits");
    is_given
}

#[test]
fn an_interrupt_costs_one_call() {
    let (kernel, forwarder, queue, source) = bound(Limit { most: 100, window: 1, cool_down: 1 });
    let mut post = waits(&kernel, queue);
    for count in 1..=5 {
        kernel.fire(0);
        let before = kernel.2.get();
        assert!(goes_on(&kernel, &forwarder, &mut post), "it is given the service");
        assert_eq!(kernel.2.get(), before + 1, "handing on and waiting is one");
        assert!(kernel.guest_serves(0) && !kernel.is_active());
        assert!(!goes_on(&kernel, &forwarder, &mut post), "nobody in particular");
        let mut hosted = kernel.0.borrow_mut();
        assert_eq!(hosted.acknowledge(0), None);
        drop(hosted);
        kernel.wake_root();
        let expected = Counters { taken: count, passed: count, ..Counters::default() };
        assert_eq!(counters(&kernel, &forwarder, source), expected);
        assert!(!goes_on(&kernel, &forwarder, &mut post));
    }
    laws::full(&kernel.0.borrow()).expect("the laws hold");
}

#[test]
fn what_the_vcpu_does_not_take_goes_to_the_one_that_does() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    kernel.move_line(0, 1);
    let mut post = waits(&kernel, queue);
    kernel.fire(0);
    assert!(goes_on(&kernel, &forwarder, &mut post));
    assert_eq!(kernel.comes_to(), Some(1), "the next comes where it is wanted");
    assert!(kernel.guest_serves(1) && !kernel.is_active());
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 1, passed: 1, moved: 1, ..Counters::default() });
    // It comes to this CPU still, whose server's vCPU is another CPU's now.
    Line::at(LINE_SLOT).open_at(&kernel, 0).expect("root may");
    assert!(!goes_on(&kernel, &forwarder, &mut post));
    kernel.fire(0);
    assert!(goes_on(&kernel, &forwarder, &mut post));
    assert!(kernel.guest_serves(1) && !kernel.is_active());
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 2, passed: 2, moved: 1, ..Counters::default() });
}

#[test]
fn what_no_vcpu_takes_is_tried_again_by_the_one_that_waits() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    let state = VCPUS[0].line_take(&kernel, LINE).expect("it is not active");
    let mut post = waits(&kernel, queue);
    kernel.fire(0);
    assert!(goes_on(&kernel, &forwarder, &mut post));
    kernel.wake_root();
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 1, waited: 1, ..Counters::default() });
    VCPUS[1].line_target(&kernel, LINE, state).expect("it is nowhere");
    assert!(!goes_on(&kernel, &forwarder, &mut post));
    kernel.0.borrow_mut().advance(1_000_000);
    assert!(!goes_on(&kernel, &forwarder, &mut post), "its time has come");
    assert!(kernel.guest_serves(1));
    assert_eq!(counters(&kernel, &forwarder, source).passed, 1);
    // A tick is a microsecond here.
    assert_eq!(forwarder.delays(&kernel, source), Some([0, 0, 0, 0, 0, 0, 0, 0, 1]), "a second");
}

/// A line that cools down is opened again though another line interrupts meanwhile.
#[test]
fn other_interrupts_do_not_make_a_server_forget_what_it_has_to_do() {
    let (kernel, forwarder, queue, source) = bound(Limit { most: 2, window: 1000, cool_down: 50_000 });
    let other = Line::at(SECOND + 1);
    must(&mut kernel.0.borrow_mut(), Op::LineCreate, [root_slot::SYSTEM, LINE + 1, SECOND + 1, 0, 0, 0]);
    VCPUS[0].lines_write(&kernel, LineField::Enabled, 32, BIT << 1, BIT << 1).expect("root may");
    forwarder.bind(&kernel, Wish { line: other, number: LINE as u32 + 1, ..wish(Limit::NONE) }).expect("nobody has it");
    let mut post = waits(&kernel, queue);
    for _ in 0..2 {
        kernel.fire(0);
        assert!(goes_on(&kernel, &forwarder, &mut post));
        assert!(kernel.guest_serves(0));
        goes_on(&kernel, &forwarder, &mut post);
    }
    assert_eq!(kernel.comes_to(), None, "it came too often");
    kernel.0.borrow_mut().trap(0, Trap::Line(LINE as u32 + 1));
    assert!(goes_on(&kernel, &forwarder, &mut post));
    assert_eq!(kernel.comes_to(), None);
    kernel.0.borrow_mut().advance(60_000);
    assert!(!goes_on(&kernel, &forwarder, &mut post), "a deadline");
    assert_eq!(kernel.comes_to(), Some(0));
    kernel.wake_root();
    assert_eq!(counters(&kernel, &forwarder, source).storms, 1);
}

#[test]
fn a_source_that_is_let_go_while_it_is_served_is_ended() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    let mut post = waits(&kernel, queue);
    kernel.fire(0);
    let woken = post.wait(&kernel).expect("it is its own");
    assert!(woken.served.is_some());
    assert_eq!(forwarder.unbind(&kernel, source, queue), Err(Refusal::Again), "a server has it");
    let woken = forwarder.step(&kernel, &mut post, woken).expect("it is its own");
    assert_eq!((woken.served, kernel.1.get()), (None, true));
    kernel.wake_root();
    assert_eq!(forwarder.unbind(&kernel, source, queue), Ok(()));
    assert!(!kernel.is_active() && !kernel.guest_serves(0));
}

#[test]
fn the_line_follows_the_guests_wish() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    kernel.move_line(0, 1);
    kernel.fire(0);
    assert!(!forwarder.serve(&kernel, queue));
    assert_eq!(kernel.comes_to(), Some(1), "the next comes where it is wanted");
    assert!(!kernel.guest_serves(0));
    assert!(kernel.guest_serves(1) && !kernel.is_active());
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 1, passed: 1, moved: 1, ..Counters::default() });
}

#[test]
fn an_interrupt_that_comes_while_the_line_is_nowhere_waits() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    let state = VCPUS[0].line_take(&kernel, LINE).expect("it is not active");
    kernel.fire(0);
    assert!(forwarder.serve(&kernel, queue), "it is to be tried again");
    let at = forwarder.attend(&kernel).expect("soon");
    VCPUS[1].line_target(&kernel, LINE, state).expect("it is nowhere");
    kernel.pass_time(at);
    assert_eq!(forwarder.attend(&kernel), None);
    assert!(kernel.guest_serves(1));
    assert_eq!(counters(&kernel, &forwarder, source).passed, 1);
}

#[test]
fn what_nobody_takes_is_kept_and_tried_ever_more_seldom() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    VCPUS[0].line_take(&kernel, LINE).expect("it is not active");
    kernel.fire(0);
    assert!(forwarder.serve(&kernel, queue));
    let now = || kernel.0.borrow().board.borrow().now;
    let (begin, mut last) = (now(), 0);
    for tries in 0..200 {
        let at = forwarder.attend(&kernel).expect("it is not given up");
        assert!(tries < 20 || at - now() >= last, "try {tries} comes sooner than the one before");
        last = at - now();
        kernel.0.borrow().board.borrow_mut().now = at;
    }
    let (_, hertz) = trellis_runtime::handle::clock(&kernel);
    assert!(last <= hertz + 1 && now() - begin > 100 * hertz, "in the end once a second");
    assert_eq!(counters(&kernel, &forwarder, source), Counters { taken: 1, waited: 1, ..Counters::default() });
    forwarder.unbind(&kernel, source, queue).expect("nobody has it");
    assert!(!kernel.is_active(), "a released line is not stuck");
}

/// The vCPU that the guest sends the line to goes to another CPU, and has another name there.
#[test]
fn what_comes_while_a_vcpu_moves_is_its_own_when_its_new_name_is_known() {
    for (direct, told) in [(false, 1), (false, 500), (true, 1)] {
        let kernel = Kernel::new();
        let (forwarder, queue) = (Forwarder::new(), kernel.queue(false));
        let source = forwarder.bind(&kernel, Wish { direct, ..wish(Limit::NONE) }).expect("nobody has it");
        let place = SECOND + 2;
        let mut hosted = kernel.0.borrow_mut();
        anywhere(&mut hosted, Op::VcpuCreate, [slot::GUEST, 1, PLACE, place, small::VCPU_PRIORITY, 0]).expect("a place");
        anywhere(&mut hosted, Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]).expect("it runs");
        anywhere(&mut hosted, Op::VcpuMove, [slot::VCPU, 0, 0, 0, 0, 0]).expect("it is stopped");
        hosted.deliver_kicks();
        drop(hosted);
        kernel.fire(0);
        assert!(kernel.is_active());
        forwarder.serve(&kernel, queue);
        // However long nobody tells it, the interrupt is not lost.
        for _ in 0..told {
            let at = forwarder.attend(&kernel).expect("it is not given up");
            kernel.0.borrow().board.borrow_mut().now = at;
        }
        assert_eq!(forwarder.moved(&kernel, source, 2, Vcpu::at(place), 1), Err(Refusal::OutOfRange));
        forwarder.moved(&kernel, source, 0, Vcpu::at(place), 1).expect("it is bound");
        assert_eq!((forwarder.attend(&kernel), kernel.comes_to()), (None, Some(1)), "the line follows it");
        anywhere(&mut kernel.0.borrow_mut(), Op::VcpuStop, [SECOND, 0, 0, 0, 0, 0]).expect("the other one runs");
        while anywhere(&mut kernel.0.borrow_mut(), Op::VcpuStart, [place, 0, 0, 0, 0, 0]) == Err(Refusal::Again) {
            kernel.0.borrow_mut().trap(1, Trap::Spurious);
        }
        assert!(kernel.guest_serves(1) && !kernel.is_active(), "it has it at its new place");
        kernel.fire(1);
        forwarder.serve(&kernel, queue);
        assert_eq!(counters(&kernel, &forwarder, source).direct, u64::from(direct), "as before the move");
    }
}

#[test]
fn a_line_that_comes_too_often_is_masked_for_a_while() {
    let (kernel, forwarder, queue, source) = bound(Limit { most: 3, window: 100, cool_down: 1000 });
    for _ in 0..2 {
        kernel.fire(0);
        assert!(!forwarder.serve(&kernel, queue));
        assert!(kernel.guest_serves(0));
    }
    kernel.fire(0);
    assert!(forwarder.serve(&kernel, queue), "it is to be opened again");
    assert_eq!(kernel.comes_to(), None);
    assert!(kernel.guest_serves(0), "this one still comes");
    let at = forwarder.attend(&kernel).expect("it cools down");
    kernel.pass_time(500);
    assert_eq!((forwarder.attend(&kernel), kernel.comes_to()), (Some(at), None));
    kernel.pass_time(600);
    assert_eq!((forwarder.attend(&kernel), kernel.comes_to()), (None, Some(0)));
    assert_eq!(counters(&kernel, &forwarder, source).storms, 1);
    // Masked by its owner it stays so, however long it cooled down.
    forwarder.mask(&kernel, source, true).expect("it is bound");
    forwarder.mask(&kernel, source, true).expect("twice is once");
    kernel.pass_time(5000);
    assert_eq!((forwarder.attend(&kernel), kernel.comes_to()), (None, None));
    forwarder.mask(&kernel, source, false).expect("it is bound");
    assert_eq!(kernel.comes_to(), Some(0));
}

#[test]
fn unbinding_waits_for_what_is_on_its_way_and_can_be_done_again() {
    let (kernel, forwarder, queue, source) = bound(Limit::NONE);
    kernel.fire(0);
    assert_eq!(forwarder.unbind(&kernel, source, queue), Err(Refusal::Again), "its source is in the queue");
    assert_eq!(forwarder.rebind(&kernel, source, queue, wish(Limit::NONE)), Err(Refusal::Again));
    assert_eq!(forwarder.mask(&kernel, source, false), Err(Refusal::BadState));
    assert!(!forwarder.serve(&kernel, queue));
    assert_eq!(forwarder.rebind(&kernel, source, queue, wish(Limit::NONE)), Ok(source));
    assert!(!kernel.is_active());
    kernel.fire(0);
    assert!(!forwarder.serve(&kernel, queue) && kernel.guest_serves(0));
    assert_eq!(forwarder.unbind(&kernel, source, queue), Ok(()));
    assert_eq!(forwarder.unbind(&kernel, source, queue), Ok(()), "a second time does nothing");
    assert_eq!((kernel.comes_to(), forwarder.counters(&kernel, source)), (None, None));
}

#[test]
fn a_binding_that_fails_leaves_nothing() {
    let kernel = Kernel::new();
    let forwarder = Forwarder::new();
    let broken = Wish { vcpus: Vec::from_slice(&[VCPUS[0], Vcpu::at(slot::GUEST)]).expect("two fit"), ..wish(Limit::NONE) };
    assert_eq!(forwarder.bind(&kernel, broken), Err(Refusal::WrongKind));
    let nobody = Wish { vcpus: Vec::new(), cpus: Vec::new(), ..wish(Limit::NONE) };
    assert_eq!(forwarder.bind(&kernel, nobody), Err(Refusal::BadArgument));
    let nowhere = Wish { cpus: Vec::from_slice(&[50, 1]).expect("two fit"), ..wish(Limit::NONE) };
    assert!(forwarder.bind(&kernel, nowhere).is_err(), "there is no CPU 50");
    assert_eq!(kernel.comes_to(), None);
    assert_eq!(forwarder.bind(&kernel, wish(Limit::NONE)), Ok(0), "the line and its source are free");
    assert_eq!(forwarder.bind(&kernel, wish(Limit::NONE)), Err(Refusal::Occupied));
}

/// A number that follows from the one before.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Binding, unbinding, masking, moving lines and vCPUs, reset and loss of the server, in random order with interrupts in flight: in the end
/// the line comes, and nothing is left over.
#[test]
fn whatever_happens_the_line_comes_in_the_end() {
    let rounds = std::env::var("TRELLIS_ROUNDS").ok().and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let mut seed = 7;
    let kernel = Kernel::new();
    let mut queue = kernel.queue(false);
    let mut forwarder = Forwarder::new();
    let mut home = 0;
    for round in 0..rounds {
        for _ in 0..next(&mut seed) % 12 {
            step(&kernel, &mut forwarder, &mut queue, &mut home, &mut seed);
        }
        settle(&kernel, &forwarder, queue, home, round);
    }
}

fn step(kernel: &Kernel, forwarder: &mut Forwarder, queue: &mut Queue, home: &mut usize, seed: &mut u64) {
    match next(seed) % 11 {
        10 => there_and_back(kernel, forwarder, *queue, next(seed)),
        0 | 1 => kernel.fire(0),
        2 => serve_some(kernel, forwarder, *queue, next(seed)),
        3 => drop(kernel.guest_serves(*home as u16)),
        4 => {
            let direct = next(seed).is_multiple_of(2);
            let _ = forwarder.bind(kernel, Wish { direct, ..wish(Limit::NONE) });
        }
        5 => drop(forwarder.unbind(kernel, 0, *queue)),
        6 => drop(forwarder.mask(kernel, 0, next(seed).is_multiple_of(2))),
        7 => {
            if let Ok(state) = VCPUS[*home].line_take(kernel, LINE) {
                let to = 1 - *home;
                VCPUS[to].line_target(kernel, LINE, state).expect("it is nowhere");
                *home = to;
            }
        }
        8 => {
            // The guest drops what is pending or taken.
            for field in [LineField::Pending, LineField::Active] {
                VCPUS[*home].lines_write(kernel, field, 32, BIT, 0).expect("root may");
            }
        }
        _ => {
            // The server is lost, with what it knew; another one begins with what is bound already released.
            *forwarder = Forwarder::new();
            if next(seed).is_multiple_of(2) {
                // As a server that was started again: it binds, then adopts.
                let direct = next(seed).is_multiple_of(2);
                let bind = || forwarder.bind(kernel, Wish { direct, ..wish(Limit::NONE) });
                let bound = bind();
                *queue = kernel.queue(true);
                if bound == Err(Refusal::Again) {
                    // It was leaving, and a service of it went down with the server.
                    forwarder.serve(kernel, *queue);
                    assert_eq!(bind(), Ok(0));
                }
                return;
            }
            *queue = kernel.queue(true);
            for vcpu in VCPUS {
                vcpu.tie(kernel, Line::at(LINE_SLOT), Tie::No).expect("root may");
            }
            while !Line::at(LINE_SLOT).release(kernel).expect("root may") {
                forwarder.serve(kernel, *queue);
            }
        }
    }
}

/// The first vCPU goes to the other CPU and comes back, with another name each time. The line may come meanwhile, and the
/// server learns each new name before or after it has served that.
fn there_and_back(kernel: &Kernel, forwarder: &Forwarder, queue: Queue, how: u64) {
    let other = SECOND + 2;
    let ask = |op, a| {
        let answer = anywhere(&mut kernel.0.borrow_mut(), op, a);
        kernel.0.borrow_mut().deliver_kicks();
        answer
    };
    ask(Op::VcpuStop, [slot::VCPU, 0, 0, 0, 0, 0]).expect("root may");
    for (leg, (from, to, cpu)) in [(slot::VCPU, other, 1), (other, slot::VCPU, 0)].into_iter().enumerate() {
        let name_first = how >> leg & 1 == 1;
        // The slot that it comes from is empty by the time that it comes back there.
        ask(Op::VcpuCreate, [slot::GUEST, cpu, PLACE, to, small::VCPU_PRIORITY, 0]).expect("a place");
        ask(Op::VcpuMove, [from, 0, 0, 0, 0, 0]).expect("it is stopped");
        ask(Op::Drop, [from, 0, 0, 0, 0, 0]).expect("nobody needs its old name");
        if how >> 2 & 1 == 1 {
            kernel.fire(0);
        }
        if !name_first {
            forwarder.serve(kernel, queue);
        }
        // Nothing is bound: there is nobody to be told.
        let _ = forwarder.moved(kernel, 0, 0, Vcpu::at(to), cpu as u8);
    }
    while ask(Op::VcpuStart, [slot::VCPU, 0, 0, 0, 0, 0]) == Err(Refusal::Again) {
        kernel.0.borrow_mut().trap(1, Trap::Spurious);
    }
}

/// The server serves all there is, or what it is given where it waits, until it waits again; and is then called away.
fn serve_some(kernel: &Kernel, forwarder: &Forwarder, queue: Queue, how: u64) {
    if how.is_multiple_of(3) {
        forwarder.serve(kernel, queue);
        return;
    }
    let mut post = Post::new(queue);
    let mut woken = post.wait(kernel).expect("it is its own");
    if how % 3 == 2 && kernel.1.get() {
        kernel.fire(0);
        woken = post.wait(kernel).expect("it is its own");
    }
    while !kernel.1.get() {
        woken = forwarder.step(kernel, &mut post, woken).expect("it is its own");
    }
    kernel.1.set(false);
    kernel.wake_root();
}

/// What is in flight arrives, the line is bound anew and comes.
fn settle(kernel: &Kernel, forwarder: &Forwarder, queue: Queue, home: usize, round: u32) {
    forwarder.serve(kernel, queue);
    kernel.pass_time(1000);
    forwarder.attend(kernel);
    while kernel.guest_serves(home as u16) {}
    while forwarder.unbind(kernel, 0, queue).is_err() {
        forwarder.serve(kernel, queue);
    }
    assert!(!kernel.is_active(), "round {round}: the line is stuck");
    assert_eq!(forwarder.bind(kernel, wish(Limit::NONE)), Ok(0), "round {round}");
    kernel.fire(0);
    forwarder.serve(kernel, queue);
    assert!(kernel.guest_serves(home as u16), "round {round}: the line is dead");
    assert!(!kernel.is_active());
    while forwarder.unbind(kernel, 0, queue).is_err() {
        forwarder.serve(kernel, queue);
    }
    laws::quick(&kernel.0.borrow()).expect("the laws hold");
}

#[test]
fn a_state_that_moves_keeps_what_is_pending() {
    let (kernel, forwarder, queue, _) = bound(Limit::NONE);
    kernel.fire(0);
    forwarder.serve(&kernel, queue);
    let state = VCPUS[0].line_take(&kernel, LINE).expect("it is not active");
    assert!(LineState(state.0).has(LineState::PENDING));
    VCPUS[1].line_target(&kernel, LINE, state).expect("it is nowhere");
    assert!(kernel.guest_serves(1) && !kernel.is_active());
}

#[test]
fn a_direct_line_needs_its_server_only_when_the_guest_moves_it() {
    let kernel = Kernel::new();
    let (forwarder, queue) = (Forwarder::new(), kernel.queue(false));
    let source = forwarder.bind(&kernel, Wish { direct: true, ..wish(Limit::NONE) }).expect("nobody has it");
    for _ in 0..3 {
        kernel.fire(0);
        assert!(kernel.guest_serves(0));
    }
    forwarder.serve(&kernel, queue);
    assert_eq!(counters(&kernel, &forwarder, source), Counters { direct: 3, ..Counters::default() });
    kernel.move_line(0, 1);
    kernel.fire(0);
    forwarder.serve(&kernel, queue);
    assert_eq!(kernel.comes_to(), Some(1));
    assert!(kernel.guest_serves(1));
    kernel.fire(1);
    assert!(kernel.guest_serves(1) && !kernel.is_active());
    let expected = Counters { taken: 1, passed: 1, moved: 1, direct: 4, ..Counters::default() };
    assert_eq!(counters(&kernel, &forwarder, source), expected);
    assert_eq!(forwarder.unbind(&kernel, source, queue), Ok(()));
}

/// What an earlier server had bound, was serving and had in the queue comes to the next one, and from there to the guest.
#[test]
fn a_server_that_follows_a_lost_one_loses_nothing() {
    for taken in [false, true] {
        let (kernel, lost, _, source) = bound(Limit::NONE);
        kernel.fire(0);
        if taken {
            let (_, [service, _]) = Machine::at(root_slot::SYSTEM).queue_take(&kernel).expect("root may");
            assert!(service.has_fired());
        }
        drop(lost);
        let next = Forwarder::new();
        assert_eq!(next.bind(&kernel, wish(Limit::NONE)), Ok(source), "it is the same source");
        let queue = kernel.queue(true);
        next.serve(&kernel, queue);
        assert!(kernel.guest_serves(0), "taken before: {taken}");
        assert!(!kernel.guest_serves(0) && !kernel.is_active());
        kernel.fire(0);
        next.serve(&kernel, queue);
        assert!(kernel.guest_serves(0));
        assert_eq!(counters(&kernel, &next, source), Counters { taken: 2, passed: 2, ..Counters::default() });
        laws::full(&kernel.0.borrow()).expect("the laws hold");
    }
}

/// A gate that remembers what it was asked: the CPU that the line was opened at, or that it was closed.
#[derive(Debug, Default)]
struct Asked(Mutex<std::vec::Vec<(u32, Option<u8>)>>);

impl Asked {
    fn taken(&self) -> std::vec::Vec<(u32, Option<u8>)> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

impl Gate for &Asked {
    fn open(&self, _: &impl System, line: u32, cpu: u8) -> Result<(), Refusal> {
        self.0.lock().expect("nobody panics with it").push((line, Some(cpu)));
        if cpu == 9 { Err(Refusal::BadState) } else { Ok(()) }
    }

    fn close(&self, _: &impl System, line: u32) {
        self.0.lock().expect("nobody panics with it").push((line, None));
    }

    fn connect(&self, _: &impl System, _: u8) -> Result<(), Failure> {
        Ok(())
    }

    fn disconnect(&self, _: &impl System, _: u8) -> Result<(), Failure> {
        Ok(())
    }
}

/// Whoever has the translation service opens, moves and masks what messages make; the kernel forwards it like any other.
#[test]
fn a_line_that_messages_make_is_opened_moved_and_masked_by_its_gate() {
    const MESSAGE: u32 = FIRST_MESSAGE as u32 + 5;
    let asked = Asked::default();
    let kernel = Kernel::new();
    let line = Line::at(slot::FREE + 2);
    must(&mut kernel.0.borrow_mut(), Op::LineCreate, [root_slot::SYSTEM, MESSAGE.into(), line.slot(), 1, 0, 0]);
    let (forwarder, queue) = (Forwarder::new(), kernel.queue(false));
    let limit = Limit { most: 3, window: 1000, cool_down: 100 };
    let wish = |cpus: [u8; 2]| Wish {
        line,
        guest_line: LINE as u8,
        vcpus: Vec::from_slice(&VCPUS).expect("two fit"),
        cpus: Vec::from_slice(&cpus).expect("two fit"),
        limit,
        direct: false,
        number: MESSAGE,
        gate: Some(&asked),
    };
    assert_eq!(forwarder.bind(&kernel, wish([9, 1])), Err(Refusal::BadState), "its gate does not open");
    let source = forwarder.bind(&kernel, wish([0, 1])).expect("nothing was left of it");
    assert_eq!(asked.taken(), [(MESSAGE, Some(9)), (MESSAGE, Some(0))]);
    let fire = || {
        kernel.0.borrow_mut().trap(0, Trap::Line(MESSAGE));
    };
    for _ in 0..2 {
        fire();
        forwarder.serve(&kernel, queue);
        assert!(kernel.guest_serves(0) && !kernel.guest_serves(0));
    }
    // The third one in too short a time is handed on, and was the last for a while.
    fire();
    assert!(forwarder.serve(&kernel, queue), "it is to be opened again");
    assert!(kernel.guest_serves(0));
    assert_eq!(asked.taken(), [(MESSAGE, None)]);
    kernel.pass_time(200);
    assert_eq!(forwarder.attend(&kernel), None);
    assert_eq!(asked.taken(), [(MESSAGE, Some(0))]);
    // It follows its guest's wish.
    kernel.move_line(0, 1);
    fire();
    assert!(!forwarder.serve(&kernel, queue));
    assert!(kernel.guest_serves(1));
    assert_eq!(asked.taken(), [(MESSAGE, Some(1))]);
    forwarder.unbind(&kernel, source, queue).expect("nothing is on its way");
    assert_eq!((asked.taken(), kernel.comes_to()), (vec![(MESSAGE, None)], None));
    laws::full(&kernel.0.borrow()).expect("the laws hold");
}
