// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest with its two servers: p2m is the small system's inner server, vcpu its outer one; root records its signals.

use crate::handle::Handle;
use std::cell::RefCell;
use trellis_hosted::guest::Touch;
use trellis_hosted::small::{self, INNER, OUTER, ROOT, grant, must, slot as root};
use trellis_hosted::{Hosted, Now, Settings, laws};
use trellis_idl::kernel::{Access, ExitClass, Groups, Op, Rights, WORDS};
use trellis_idl::layout::{badge, slot};
use trellis_idl::plan::{Load, P2mConfig, Part, Populate, VcpuConfig};
use trellis_idl::wire::{ToRoot, VcpuOp};
use trellis_p2m::P2m;
use trellis_p2m::view::Views;
use trellis_runtime::memory::Absent;
use trellis_runtime::{Consumer, Portal, Reply, RingPage, Server, Shared, System, dispatch};
use trellis_vcpu::{Rings, VcpuServer};

/// Pages of the guest's memory.
pub const PAGES: u64 = 1024;
/// First byte of it.
pub const BASE: u64 = small::GUEST_PAGE * 4096;
/// Where the guest starts.
pub const ENTRY: u64 = BASE + 0x8_0000;
/// The guest's image: the payload.
pub static IMAGE: [u8; 5000] = [0x5a; 5000];

/// Who got the CPU, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Station {
    /// p2m serves.
    P2m,
    /// vcpu serves.
    Vcpu,
    /// Root was signalled.
    Root,
}

type Rings3 = Rings<&'static RingPage, Absent>;

/// The system.
#[derive(Debug)]
pub struct World {
    /// The kernel on its machine.
    pub hosted: RefCell<Hosted>,
    /// Who served since [`World::went`] was asked last.
    stations: RefCell<Vec<Station>>,
    p2m: P2m,
    vcpu: VcpuServer<'static, Rings3>,
    reports: &'static RingPage,
    serial: &'static RingPage,
}

fn payload(offset: u64, bytes: u64) -> Option<&'static [u8]> {
    IMAGE.get(usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(bytes)?).ok()?)
}

/// A ring page that lives as long as the test.
fn page() -> &'static RingPage {
    Box::leak(Box::new(RingPage::new()))
}

impl World {
    /// Everything made, the guest not started; root at work.
    pub fn new() -> World {
        let mut hosted = small::system(Settings::default());
        bind(&mut hosted);
        let [serial, input, reports] = [page(), page(), page()];
        let loads = [Load { part: Part { offset: 0, bytes: IMAGE.len() as u64 }, address: ENTRY }];
        let config = VcpuConfig {
            watchers: 0,
            guest: "script",
            vcpus: 1,
            memory_base: BASE,
            memory_bytes: PAGES * 4096,
            loads: heapless::Vec::from_slice(&loads).expect("one fits"),
            entry: ENTRY,
            x0: BASE,
            gic: 3,
            aarch32: false,
            bus: None,
        };
        let memory =
            P2mConfig { guest: "script", first_page: small::GUEST_PAGE, pages: PAGES, populate: Populate::Lazy, vcpus: 1, gicv_page: None, watchers: 0, views: 5, view: heapless::Vec::new(), devices: Default::default() };
        World {
            hosted: RefCell::new(hosted),
            stations: RefCell::default(),
            p2m: P2m::start(&Nobody, &memory, Box::leak(Box::new(Shared::new(Views::new()))), &[]).expect("lazy population asks for nothing"),
            vcpu: VcpuServer::new(config, Rings::new(serial, input, reports, payload, |_| Absent)),
            reports,
            serial,
        }
    }

    /// The same, with the guest at its first instruction and root asleep.
    pub fn started() -> World {
        let world = World::new();
        let mut words = [0; WORDS];
        words[0] = VcpuOp::Start as u64;
        let handle = Handle { world: &world, thread: ROOT };
        let answer = handle.call(root::FREE + 1, words).expect("vcpu answers");
        assert_eq!(answer[0], 0, "started");
        world.sleep();
        world.went();
        world
    }

    /// Root at work, with the portals that [`Self::p2m`] and root's slots name.
    pub fn root(&self) -> Handle<'_> {
        Handle { world: self, thread: ROOT }
    }

    /// Root's portal to p2m, as the vcpu server has it.
    pub const fn p2m() -> Portal {
        Portal::at(root::FREE + 3)
    }

    /// Root's portal to vcpu.
    pub const fn vcpu() -> Portal {
        Portal::at(root::FREE + 1)
    }

    /// Root waits for signals.
    fn sleep(&self) {
        self.hosted.borrow_mut().syscall(0, Op::Wait as u16, [u64::MAX >> 1, 0, 0, 0, 0, 0], [0; WORDS]);
        self.run();
    }

    /// Lets servers work until the guest runs or nothing does.
    pub fn run(&self) -> Now {
        loop {
            let now = self.hosted.borrow().now(0);
            let Now::Thread(thread) = now else { break now };
            self.activate(thread);
        }
    }

    /// Lets others work until this thread goes on.
    pub(crate) fn run_until(&self, thread: u16) {
        loop {
            match self.hosted.borrow().now(0) {
                Now::Thread(now) if now == thread => return,
                Now::Thread(_) => {}
                other => panic!("thread {thread} waits for ever: {other:?}"),
            }
            let Now::Thread(other) = self.hosted.borrow().now(0) else { return };
            self.activate(other);
        }
    }

    /// A thread that got the CPU does what it has to, and waits again.
    fn activate(&self, thread: u16) {
        let system = Handle { world: self, thread };
        let registers = self.hosted.borrow().registers(0);
        let (x0, words) = (registers.x[0], registers.words);
        let (station, reply) = match thread {
            INNER => (Station::P2m, self.serve(&self.p2m, Station::P2m, &system, x0, words)),
            OUTER => (Station::Vcpu, self.serve(&self.vcpu, Station::Vcpu, &system, x0, words)),
            ROOT => {
                self.stations.borrow_mut().push(Station::Root);
                self.hosted.borrow_mut().syscall(0, Op::Wait as u16, [u64::MAX >> 1, 0, 0, 0, 0, 0], [0; WORDS]);
                return;
            }
            other => panic!("thread {other} has no program"),
        };
        let mut hosted = self.hosted.borrow_mut();
        let (op, x0, bytes, words) = match reply {
            // What a server leaves in the registers of words that it does not say is its own affair.
            Reply::Value(answer, value) => {
                let left = 0xdead_beef_dead_beef;
                (Op::ReplyAndWait, answer.0, 0, [left, left, left, left, left, value, left, left, left, left])
            }
            Reply::Exit(answer, words) => (Op::ReplyAndWait, answer.0, 0, words),
            Reply::Call(words) => (Op::ReplyAndWait, 0, 0, words),
            Reply::Letter(words, bytes) => (Op::ReplyAndWait, 0, bytes as u64, words),
            Reply::Forward(portal, words) | Reply::Watched(portal, words) => (Op::Forward, portal, 0, words),
        };
        let after = hosted.syscall(0, op as u16, [x0, bytes, 0, 0, 0, 0], words);
        assert_ne!(after, Now::Thread(thread), "{station:?}: {op:?} was refused: {:?}", hosted.registers(0).x);
    }

    fn serve(&self, server: &impl Server, who: Station, system: &Handle<'_>, badge: u64, words: [u64; WORDS]) -> Reply {
        self.stations.borrow_mut().push(who);
        dispatch(server, system, badge, words)
    }

    /// Who served since this was asked last.
    pub fn went(&self) -> Vec<Station> {
        laws::full(&self.hosted.borrow()).expect("the laws hold");
        self.stations.take()
    }

    /// The guest touches memory or a device; true if it goes on afterwards.
    pub fn touch(&self, address: u64, access: Access) -> bool {
        let touched = self.hosted.borrow_mut().touch(0, address, access);
        match touched {
            Touch::Reached(_) => true,
            Touch::Stopped(_) => self.run() == Now::Guest(0),
        }
    }

    /// The guest executes `hvc #0` with these in x0–x3; true if it goes on afterwards.
    pub fn hypercall(&self, x: [u64; 4]) -> bool {
        // ESR: class 0x16 (HVC from AArch64), 32-bit instruction; the program counter is past it already.
        let words = [0, 0x16 << 26 | 1 << 25, 0, 0, ENTRY, 0, x[0], x[1], x[2], x[3]];
        self.hosted.borrow_mut().exit(0, ExitClass::Hypercall, words);
        self.run() == Now::Guest(0)
    }

    /// A general register of the vCPU.
    pub fn general(&self, n: usize) -> u64 {
        self.hosted.borrow().cpus[0].local.vcpus.at(0).context.general(n)
    }

    /// The program counter of the vCPU.
    pub fn pc(&self) -> u64 {
        self.hosted.borrow().cpus[0].local.vcpus.at(0).context.pc()
    }

    /// The next report that root finds.
    pub fn report(&self) -> Option<ToRoot> {
        Consumer::new(self.reports).receive::<ToRoot>().map(|report| report.expect("a report that is understood"))
    }

    /// What the guest's serial port sent.
    pub fn serial(&self) -> Vec<u8> {
        let mut bytes = [0; 256];
        let count = Consumer::new(self.serial).read(&mut bytes);
        bytes[..count].to_vec()
    }
}

impl Default for World {
    fn default() -> Self {
        World::new()
    }
}

/// Portals with the badges that the servers know, routes and windows, as root makes them on a board.
fn bind(hosted: &mut Hosted) {
    let [inner, outer, _] = root::THREADS;
    let [p2m, vcpu, _] = root::DOMAINS;
    let portals = [
        (inner, badge::EXIT), (outer, badge::ROOT), (outer, badge::EXIT), (inner, badge::VCPU_SERVER),
    ];
    for (number, (thread, badge)) in (0..).zip(portals) {
        must(hosted, Op::PortalCreate, [thread, badge, root::FREE + number, 0, 0, 0]);
    }
    let groups = Groups::PC.with(Groups::VALUE).with(Groups::GENERAL).0;
    for class in ExitClass::ALL {
        let portal = if class == ExitClass::Memory { root::FREE } else { root::FREE + 2 };
        must(hosted, Op::VcpuRoute, [root::VCPU, class as u64, portal, groups, badge::EXIT, 0]);
    }
    // Serial port, interrupt controller.
    for (number, (page, pages)) in (0..).zip([(0x9000, 1), (0x8000, 16), (0x80a0, 32)]) {
        must(hosted, Op::VcpuWindow, [root::VCPU, number, page, pages, ExitClass::Device as u64, 0]);
    }
    grant(hosted, root::FREE + 2, p2m, slot::VCPU_SERVER, Rights::USE);
    for thread in 0..2 {
        grant(hosted, root::FREE + 3, vcpu, slot::P2M + thread, Rights::USE);
    }
    grant(hosted, root::SIGNALS[0], vcpu, slot::CONSOLE, Rights::USE);
}

/// A system that is asked for nothing.
struct Nobody;

impl System for Nobody {
    fn invoke(&self, op: Op, _: [u64; 6]) -> Result<[u64; 3], trellis_idl::kernel::Refusal> {
        panic!("{op:?} before there is a kernel")
    }

    fn call(&self, _: u64, _: [u64; WORDS]) -> Result<[u64; WORDS], trellis_idl::kernel::Refusal> {
        panic!("a call before there is a kernel")
    }

    fn wait(&self, _: u64, _: u64) -> u64 {
        panic!("a wait before there is a kernel")
    }

    fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8; 4096]) -> R) -> R {
        f(&mut [0; 4096])
    }
}
