// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watchers that come, go, die and are replaced in any order, on several CPUs, while vCPUs have one event after the
//! other: each event gets one verdict, whoever gives it, and nothing else happens to its vCPU.

mod common;

use common::{lawful, wake_root};
use proptest::prelude::*;
use trellis_core::machine::VcpuContext;
use trellis_core::portal::Client;
use trellis_core::thread::FaultRecord;
use trellis_core::trap::Trap;
use trellis_core::vcpu::VcpuState;
use trellis_hosted::small::{self, ROOT, anywhere, inner_slot, slot};
use trellis_hosted::{Hosted, Now, Settings};
use trellis_idl::kernel::{Answer, ExitClass, Op, PASSIVE, Refusal, Seat, VcpuRegister};

/// Most CPUs of a story.
const MOST: u64 = 4;
const VCPU: u64 = slot::FREE;
const FINDER: u64 = slot::FREE + 10;
const FINDER_PORTAL: u64 = slot::FREE + 20;
/// Thread, and portal, of a seat's watcher on a CPU.
const fn watcher(seat: u64, cpu: u64) -> [u64; 2] {
    let first = slot::FREE + 30 + 2 * (seat * MOST + cpu);
    [first, first + 1]
}

/// What a watcher does when it is asked, or root when it may.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// The CPU goes on by itself: the guest has an event, or the watcher answers.
    Go,
    /// Whoever watches there breaks down, if it runs.
    Crash,
    /// Kicks are delivered.
    Kicks,
    /// Root changes who is asked.
    Commit(u64),
    /// Root settles this CPU's vCPU.
    Settle,
    /// Root ends the watcher of a seat on this CPU, whatever it does, and makes another.
    Renew(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => Just(Act::Go),
        1 => Just(Act::Crash),
        2 => Just(Act::Kicks),
        2 => (0..4u64).prop_map(Act::Commit),
        2 => Just(Act::Settle),
        1 => (0..2u64).prop_map(Act::Renew),
    ]
}

struct Story {
    hosted: Hosted,
    cpus: u64,
    epoch: u64,
    /// By CPU: the number of the vCPU's last event, and whether it is open.
    events: Vec<(u64, bool)>,
    verdicts: u64,
}

impl Story {
    fn new(cpus: u64) -> Story {
        let mut hosted = small::system(Settings { cpus: cpus as u16, ..Settings::default() });
        let mut story = {
            for cpu in 0..cpus {
                must(&mut hosted, Op::ThreadCreate, [slot::DOMAINS[0], cpu, PASSIVE, FINDER + cpu, 0, 0]);
                serve(&mut hosted, FINDER + cpu, cpu);
                must(&mut hosted, Op::PortalCreate, [FINDER + cpu, 0, FINDER_PORTAL + cpu, 0, 0, 0]);
                must(&mut hosted, Op::VcpuCreate, [slot::GUEST, cpu, cpu + 1, VCPU + cpu, 50, 0]);
                let route = [VCPU + cpu, ExitClass::Memory as u64, FINDER_PORTAL + cpu, 7, 0, 0];
                must(&mut hosted, Op::VcpuRoute, route);
            }
            Story { hosted, cpus, epoch: 1, events: vec![(0, false); cpus as usize], verdicts: 0 }
        };
        for cpu in 0..cpus {
            for seat in 0..2 {
                story.make(seat, cpu);
            }
            must(&mut story.hosted, Op::VcpuStart, [VCPU + cpu, 0, 0, 0, 0, 0]);
        }
        story.root_sleeps();
        story
    }

    /// What can be seen of it: who runs where with which words, and what became of the events.
    fn seen(&self) -> (Vec<(Now, [u64; 10])>, &[(u64, bool)], u64, u64) {
        let now = (0..self.cpus as u16).map(|cpu| (self.hosted.now(cpu), self.hosted.registers(cpu).words));
        (now.collect(), &self.events, self.verdicts, self.epoch)
    }

    fn make(&mut self, seat: u64, cpu: u64) {
        let [thread, portal] = watcher(seat, cpu);
        let domain = slot::DOMAINS[1 + seat as usize];
        must(&mut self.hosted, Op::ThreadCreate, [domain, cpu, PASSIVE, thread, 0, 0]);
        serve(&mut self.hosted, thread, cpu);
        must(&mut self.hosted, Op::PortalCreate, [thread, cpu << 8 | seat, portal, 0, 0, 0]);
        must(&mut self.hosted, Op::SessionPlace, [slot::SESSION, cpu + 1, seat, portal, 0, 0]);
    }

    fn root_sleeps(&mut self) {
        self.hosted.syscall(0, Op::Wait as u16, [1, 0, 0, 0, 0, 0], [0; 10]);
    }

    /// Root does something, whatever else is going on.
    fn root<R>(&mut self, what: impl FnOnce(&mut Story) -> R) -> R {
        wake_root(&mut self.hosted);
        let result = what(self);
        self.root_sleeps();
        result
    }

    fn take(&mut self, cpu: u64, act: Act) {
        match act {
            Act::Go => self.go(cpu),
            Act::Crash if self.watches(cpu).is_some() => {
                self.hosted.trap(cpu as u16, Trap::Fault(FaultRecord::default()));
            }
            Act::Crash => {}
            Act::Kicks => self.hosted.deliver_kicks(),
            Act::Commit(seat) => {
                let a = [slot::SESSION, self.epoch, seat, 0, 0, 0];
                self.epoch = self.root(|story| must(&mut story.hosted, Op::SessionCommit, a)[0]);
            }
            Act::Settle => self.root(|story| story.settle(cpu)),
            Act::Renew(seat) => self.root(|story| {
                let [thread, portal] = watcher(seat, cpu);
                must(&mut story.hosted, Op::ThreadDestroy, [thread, 0, 0, 0, 0, 0]);
                must(&mut story.hosted, Op::Drop, [thread, 0, 0, 0, 0, 0]);
                must(&mut story.hosted, Op::Drop, [portal, 0, 0, 0, 0, 0]);
                story.make(seat, cpu);
            }),
        }
    }

    /// Root settles a vCPU. A watcher that lost its event there may go first: what it does it pays itself.
    fn settle(&mut self, cpu: u64) {
        self.hosted.syscall(0, Op::SessionSettle as u16, [slot::SESSION, cpu + 1, 0, 0, 0, 0], [0; 10]);
        for _ in 0..20 {
            self.hosted.deliver_kicks();
            if self.hosted.now(0) == Now::Thread(ROOT) {
                let settled = Refusal::from_register(self.hosted.registers(0).x[0]);
                assert!(settled.is_ok(), "{settled:?}");
                return;
            }
            self.go(0);
        }
        panic!("root never goes on");
    }

    /// The seat of the watcher that runs there.
    fn watches(&self, cpu: u64) -> Option<u64> {
        let Now::Thread(index) = self.hosted.now(cpu as u16) else { return None };
        let rank = self.hosted.cpus[cpu as usize].local.threads.at(index).rank;
        (rank == 2 || rank == 3).then(|| u64::from(rank) - 2)
    }

    fn go(&mut self, cpu: u64) {
        let (at, index) = (cpu as u16, cpu as usize);
        match self.hosted.now(at) {
            Now::Guest(vcpu) => {
                let pc = self.hosted.cpus[index].local.vcpus.at(vcpu).context.get(VcpuRegister::Pc as u64);
                let (number, open) = &mut self.events[index];
                if std::mem::replace(open, false) {
                    self.verdicts += 1;
                }
                assert_eq!(pc, Ok(*number * 4), "the verdict of its last event, and nothing since");
                (*number, *open) = (*number + 1, true);
                let number = *number;
                self.hosted.exit(at, ExitClass::Memory, [0; 10]);
                let words = [0, 1, 2, 3, 4, 5, 6, 7, 8, number];
                let now = self.hosted.syscall(at, Op::Forward as u16, [inner_slot::SESSION, 0, 0, 0, 0, 0], words);
                let refused = Refusal::from_register(self.hosted.registers(at).x[0]) == Err(Refusal::Gone);
                if matches!(now, Now::Thread(_)) && self.watches(cpu).is_none() && refused {
                    self.answer(at, number);
                }
            }
            Now::Thread(_) => {
                let number = self.hosted.registers(at).words[9];
                if self.watches(cpu).is_some() {
                    // A watcher whose event was taken back answers it all the same.
                    assert!(number <= self.events[index].0);
                }
                self.answer(at, number);
            }
            Now::Idle => {}
        }
    }

    fn answer(&mut self, cpu: u16, number: u64) {
        let words = [0, 0, 0, 0, number * 4, 0, 0, 0, 0, 0];
        let mask = if self.serves_vcpu(cpu) { Answer::PC.0 } else { 0 };
        self.hosted.syscall(cpu, Op::ReplyAndWait as u16, [mask, 0, 0, 0, 0, 0], words);
    }

    fn serves_vcpu(&self, cpu: u16) -> bool {
        let Now::Thread(index) = self.hosted.now(cpu) else { return false };
        self.hosted.cpus[cpu as usize].local.threads.at(index).client != Client::None
    }

    /// With watchers that live and answer every event comes to its end.
    fn ends_well(&mut self) {
        for cpu in 0..self.cpus {
            self.take(cpu, Act::Renew(0));
        }
        self.take(0, Act::Commit(Seat::First as u64));
        (0..self.cpus).for_each(|cpu| self.take(cpu, Act::Settle));
        for cpu in 0..self.cpus {
            let mut left = 20;
            while !matches!(self.hosted.now(cpu as u16), Now::Guest(_)) {
                self.take(cpu, Act::Go);
                self.hosted.deliver_kicks();
                left -= 1;
                assert!(left > 0, "vCPU {cpu} never goes on");
            }
            self.take(cpu, Act::Go);
            assert!(self.hosted.cpus[cpu as usize].local.vcpus.names().all(|id| {
                self.hosted.cpus[cpu as usize].local.vcpus.at(id.index() as u16).state != VcpuState::Owed
            }));
        }
        let had: u64 = self.events.iter().map(|(number, open)| number - u64::from(*open)).sum();
        assert_eq!(self.verdicts, had, "each event that is over got one verdict");
    }
}

fn must(hosted: &mut Hosted, op: Op, a: [u64; 6]) -> [u64; 3] {
    anywhere(hosted, op, a).unwrap_or_else(|refusal| panic!("{op:?} {a:x?}: {refusal:?}"))
}

/// Starts a server; it waits.
fn serve(hosted: &mut Hosted, thread: u64, cpu: u64) {
    hosted.syscall(0, Op::ThreadStart as u16, [thread, 0x20_0000, 0, 0, 0, 0], [0; 10]);
    hosted.deliver_kicks();
    let at = cpu as u16;
    // It starts with a priority above all servers'.
    while let Now::Thread(index) = hosted.now(at)
        && hosted.cpus[cpu as usize].local.threads.at(index).client == Client::None
        && hosted.cpus[cpu as usize].local.threads.at(index).rank != 4
    {
        hosted.syscall(at, Op::ReplyAndWait as u16, [0; 6], [0; 10]);
    }
    assert_eq!(hosted.now(0), Now::Thread(ROOT));
}

fn schedules() -> u32 {
    if std::env::var("TRELLIS_NIGHTLY").is_ok() { 100_000 } else { 10_000 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_gets_one_verdict_whatever_becomes_of_its_watchers(
        cpus in 1..MOST + 1,
        acts in prop::collection::vec((0..MOST, act()), 1..40),
    ) {
        let mut story = Story::new(cpus);
        for (cpu, act) in acts {
            story.take(cpu % cpus, act);
        }
        lawful(&story.hosted);
        story.ends_well();
    }

    #[test]
    fn nobody_can_tell_how_an_event_was_handed_on(
        cpus in 1..MOST + 1,
        acts in prop::collection::vec((0..MOST, act()), 1..40),
    ) {
        let (mut hot, mut slow) = (Story::new(cpus), Story::new(cpus));
        slow.hosted.only_slow = true;
        for (cpu, act) in acts {
            hot.take(cpu % cpus, act);
            slow.take(cpu % cpus, act);
            prop_assert_eq!(hot.seen(), slow.seen(), "{:?} on CPU {}", act, cpu % cpus);
        }
    }
}
