// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest with views on several CPUs: the real p2m library over the kernel core, its calls made by root.
//!
//! Three vCPUs, two of them on one CPU. A vCPU whose access is not allowed stops, since it has no routes; then p2m is
//! asked as a thread would be that serves it, and the vCPU goes on.

use std::cell::RefCell;
use trellis_hosted::guest::Touch;
use trellis_hosted::small::{self, must, slot as root};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Access, Answer, Exit, ExitHeader, GuestCall, Op, Refusal, SESSIONS, WORDS};
use trellis_idl::layout::{badge, slot};
use trellis_idl::plan::{P2mConfig, Populate, ViewPlan};
use trellis_idl::wire::{P2mOp, from_answer};
use trellis_p2m::P2m;
use trellis_p2m::view::Views;
use trellis_runtime::event_ring::EventPage;
use trellis_runtime::{Reply, Server, Shared, System};

/// First page of the guest's memory.
pub const FIRST: u64 = small::GUEST_PAGE;
/// Pages of it.
pub const PAGES: u64 = 1024;
/// Views it may have.
pub const VIEWS: u64 = small::VIEWS;
/// CPUs of the vCPUs, by number in the guest less one.
const CPUS: [u16; 3] = [1, 1, 2];
/// First slot of their capabilities.
pub const VCPUS: u64 = root::FREE + 1;
/// Where a vCPU is told of forbidden accesses.
pub const ENTRY: u64 = 0x4000;

/// The kernel, as root sees it.
#[derive(Debug)]
pub struct Kernel {
    /// The machine.
    pub hosted: RefCell<Hosted>,
    /// Sessions whose readers were woken.
    pub wakes: RefCell<Vec<u64>>,
}

impl Kernel {
    /// An operation of root's, wherever it is done.
    pub fn ask(&self, op: Op, a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        let mut hosted = self.hosted.borrow_mut();
        hosted.syscall(0, op as u16, a, [0; WORDS]);
        while hosted.now(0) != Now::Thread(small::ROOT) {
            hosted.deliver_kicks();
        }
        let [x0, x1, x2] = hosted.registers(0).x;
        Refusal::from_register(x0).map(|x0| [x0, x1, x2])
    }
}

impl System for Kernel {
    fn invoke(&self, op: Op, mut a: [u64; 6]) -> Result<[u64; 3], Refusal> {
        if op == Op::Signal {
            self.wakes.borrow_mut().push(a[0] - slot::READER);
            return Ok([0; 3]);
        }
        assert_eq!(a[0], slot::GUEST, "p2m works on its guest alone");
        a[0] = root::GUEST;
        if op == Op::GuestMap {
            assert_eq!(a[2], slot::MEMORY);
            a[2] = root::MEMORY;
        }
        self.ask(op, a)
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], Refusal> {
        Err(Refusal::NoCapability)
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        0
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}

/// The guest.
#[derive(Debug)]
pub struct Watched {
    /// The kernel below.
    pub kernel: Kernel,
    p2m: P2m,
    /// What its monitors are told: of each session a ring for each vCPU.
    pub told: &'static [EventPage],
    /// Machine page of the first page of memory.
    pub frame: u64,
    /// Events that each vCPU has had.
    events: RefCell<[u64; 16]>,
}

/// What became of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Went {
    /// It reached the frame of this page of the guest's memory.
    To(u64),
    /// The guest itself was told.
    Told,
    /// Nobody allows it.
    Refused,
    /// It is an event of this session.
    Event(u64),
    /// It happens, and a session is told.
    Happens,
}

impl Watched {
    /// With tables for everything.
    pub fn new(populate: Populate, view: &[ViewPlan]) -> Watched {
        Watched::with_tables(populate, view, 128)
    }

    /// With so many pages for tables.
    pub fn with_tables(populate: Populate, view: &[ViewPlan], tables: u64) -> Watched {
        let mut hosted = small::system_with(Settings { cpus: 3, ..Settings::default() }, tables);
        let run = must(&mut hosted, Op::FramesInfo, [root::MEMORY, 0, 0, 0, 0, 0])[1];
        let kernel = Kernel { hosted: RefCell::new(hosted), wakes: RefCell::default() };
        for (number, cpu) in (1..).zip(CPUS) {
            let a = [root::GUEST, cpu.into(), number, VCPUS + number, 50, 0];
            kernel.ask(Op::VcpuCreate, a).expect("a vCPU");
        }
        let config = P2mConfig {
            guest: "watched",
            first_page: FIRST,
            pages: PAGES,
            populate,
            vcpus: 4,
            gicv_page: None,
            watchers: SESSIONS as u8,
            views: VIEWS as u16,
            view: heapless::Vec::from_slice(view).expect("few views"),
            devices: Default::default(),
        };
        let told = Box::leak((0..SESSIONS * 4).map(|_| EventPage::EMPTY).collect::<Box<[EventPage]>>());
        let p2m = P2m::start(&kernel, &config, Box::leak(Box::new(Shared::new(Views::new()))), told).expect("p2m starts");
        Watched { kernel, p2m, told, frame: run, events: RefCell::default() }
    }

    /// A call of root's to p2m: values, or the refusal and the first page it is about.
    pub fn call(&self, op: P2mOp, given: &[u64]) -> Result<[u64; 2], (Refusal, u64)> {
        self.call_as(badge::ROOT, op, given)
    }

    /// A call of the monitor that has this session.
    pub fn monitor(&self, session: u64, op: P2mOp, given: &[u64]) -> Result<[u64; 2], (Refusal, u64)> {
        self.call_as(badge::monitor(session, 1), op, given)
    }

    /// A call by whoever has this badge.
    pub fn call_as(&self, badge: u64, op: P2mOp, given: &[u64]) -> Result<[u64; 2], (Refusal, u64)> {
        let mut words = [0; WORDS];
        words[0] = op as u64;
        words[1..=given.len()].copy_from_slice(given);
        match self.p2m.call(&self.kernel, badge, words) {
            Reply::Call(words) => from_answer(words[0]).map(|()| [words[1], words[2]]).map_err(|why| (why, words[2])),
            other => panic!("{other:?}"),
        }
    }

    /// An operation of the kernel's on the guest.
    pub fn kernel(&self, op: Op, given: &[u64]) -> Result<[u64; 3], Refusal> {
        let mut a = [root::GUEST, 0, 0, 0, 0, 0];
        a[1..=given.len()].copy_from_slice(given);
        self.kernel.ask(op, a)
    }

    /// CPU of a vCPU.
    pub fn cpu(vcpu: u64) -> u16 {
        CPUS[vcpu as usize - 1]
    }

    /// Lets one vCPU run on its CPU, and no other there.
    pub fn run(&self, vcpu: u64) {
        for (number, cpu) in (1..).zip(CPUS) {
            if cpu == Self::cpu(vcpu) && number != vcpu {
                self.kernel.ask(Op::VcpuStop, [VCPUS + number, 0, 0, 0, 0, 0]).expect("it can be stopped");
            }
        }
        // It may run already.
        let _ = self.kernel.ask(Op::VcpuStart, [VCPUS + vcpu, 0, 0, 0, 0, 0]);
        let cpu = Self::cpu(vcpu);
        let mut hosted = self.kernel.hosted.borrow_mut();
        hosted.deliver_kicks();
        assert_eq!(hosted.now(cpu), Now::Guest((vcpu - 1 - u64::from(cpu - 1) * 2) as u16), "vCPU {vcpu} runs");
    }

    /// A vCPU is switched off and starts anew, as one that another vCPU starts.
    pub fn launch(&self, vcpu: u64) {
        self.kernel.ask(Op::VcpuStop, [VCPUS + vcpu, 0, 0, 0, 0, 0]).expect("it can be stopped");
        self.kernel.ask(Op::VcpuLaunch, [VCPUS + vcpu, FIRST * 4096, 0, 0, 0, 0]).expect("it is stopped");
    }

    /// A vCPU accesses a page of memory or what is no memory, as often as it is told to try again.
    pub fn touch(&self, vcpu: u64, page: u64, access: Access) -> Went {
        let cpu = Self::cpu(vcpu);
        for _ in 0..8 {
            self.run(vcpu);
            let touched = self.kernel.hosted.borrow_mut().touch(cpu, page * 4096 + 8, access);
            match touched {
                Touch::Reached(at) => return Went::To(at - self.frame + FIRST),
                Touch::Stopped(Now::Guest(_)) => return Went::Told,
                Touch::Stopped(_) => {}
            }
            let index = (vcpu - 1 - u64::from(cpu - 1) * 2) as u16;
            let words = {
                use trellis_core::machine::VcpuContext;
                *self.kernel.hosted.borrow().cpus[cpu as usize].local.vcpus.at(index).context.exit()
            };
            match self.p2m.exit(&self.kernel, badge::EXIT | vcpu, &Exit::from_words(words)) {
                Reply::Value(Answer::RETRY, _) => {}
                Reply::Value(answer, _) if answer == Answer::RETRY.step(0) => return self.happens(vcpu),
                Reply::Forward(_, words) if ExitHeader(words[0]).has(ExitHeader::ALLOWED) => return self.happens(vcpu),
                Reply::Forward(..) => return Went::Refused,
                Reply::Watched(session, words) => {
                    let events = &mut self.events.borrow_mut()[vcpu as usize];
                    *events += 1;
                    assert_eq!(words[WORDS - 1], *events, "each event of vCPU {vcpu} has its number");
                    return Went::Event(session - slot::SESSION);
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("vCPU {vcpu} never gets beyond {page:#x} ({access:?})");
    }

    fn happens(&self, vcpu: u64) -> Went {
        self.events.borrow_mut()[vcpu as usize] += 1;
        Went::Happens
    }

    /// What p2m says to an access in a view that a leaf forbids, by the flags of its exit.
    pub fn tell(&self, vcpu: u64, view: u64, page: u64, flags: u64) -> Reply {
        let header = ExitHeader(flags | ExitHeader::PERMISSION | view << 32);
        let exit = Exit { header, physical: page * 4096 + 8, ..Exit::default() };
        self.p2m.exit(&self.kernel, badge::EXIT | vcpu, &exit)
    }

    /// A call of a vCPU that the kernel answers: its x0 afterwards.
    pub fn guest_call(&self, vcpu: u64, call: GuestCall, x: [u64; 2]) -> u64 {
        self.run(vcpu);
        let cpu = Self::cpu(vcpu);
        let mut hosted = self.kernel.hosted.borrow_mut();
        hosted.guest_call(cpu, call, x);
        hosted.cpus[cpu as usize].local.vcpus.at((vcpu - 1 - u64::from(cpu - 1) * 2) as u16).context.general(0)
    }

    /// The view a vCPU is in, as the kernel says.
    pub fn view_of(&self, vcpu: u64) -> u64 {
        self.kernel(Op::ViewOf, &[vcpu]).expect("it lives")[0]
    }
}
