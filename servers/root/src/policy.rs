// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decides what follows from what happens: events in, actions out. No system call, no time, no memory of its own.

use heapless::Vec;
use trellis_idl::control::Ended;
use trellis_idl::plan::{MAX_GUESTS, MAX_SERVERS, OnReset, Plan, Role};
use trellis_idl::wire::{Fault, GuestEnd, Report, after_reset};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest's vcpu server says that it ended.
    Ended(u8, GuestEnd),
    /// A guest's vcpu server says that it wants a reset.
    Reset(u8),
    /// The host wants a guest to start again.
    Reboot(u8),
    /// A guest could not be started, at first or again.
    NotStarted(u8),
    /// A server stopped, at this second.
    ServerStopped(u8, Death, u64),
    /// A guest cannot go on: its monitor says so, or there is none any more.
    Condemned(u8, GuestEnd),
    /// The host ends a monitor, irqfwd or smmu, so that there is another one.
    Killed(u8),
}

/// How a server stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// A thread of it ended by itself, or it said that it cannot go on.
    Ended,
    /// A thread of it faulted, with these registers.
    Faulted(Fault),
    /// A thread of it took too long for an answer: to this vCPU's exit of this class, or to a thread.
    Late(Option<(u8, u8)>),
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "five of these exist at a time")]
pub enum Action {
    /// Tell the host.
    Report(Report),
    /// Stop a guest and its servers: one of them is gone.
    Stop(u8),
    /// Make a guest and its servers anew, and start it: one of them is gone.
    Rebuild(u8),
    /// Start a guest again from its image.
    Reboot(u8),
    /// Make irqfwd or smmu anew: their guests go on.
    Revive(u8),
    /// Make a monitor anew: what its guests do meanwhile is as the manifest says.
    Relieve(u8),
    /// A monitor is not made again: its guests go on or not, as the manifest says.
    Abandon(u8),
    /// Switch the machine off.
    Off,
}

/// Deaths of a guest's servers, each soon after the last, after which they are not made again.
pub const MOST_DEATHS: u32 = 3;
/// Seconds without a death after which earlier ones do not count any more.
pub const CALM: u64 = 60;

/// Most actions that one event leads to.
pub const MAX_ACTIONS: usize = 5;
/// Actions, in their order.
pub type Actions = Vec<Action, MAX_ACTIONS>;

/// How a guest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Life {
    essential: bool,
    on_reset: OnReset,
    vcpu: u8,
    /// Its servers.
    servers: [u8; 2],
    times: u32,
    /// How often in a row its servers died, and when they did last.
    deaths: u32,
    died: u64,
    /// How it ended, if it did.
    ended: Option<Ended>,
}

/// What root remembers of the system.
#[derive(Debug)]
pub struct Policy {
    guests: Vec<Life, MAX_GUESTS>,
    /// Each server's role, and whether it stopped.
    servers: Vec<(Role, bool), MAX_SERVERS>,
    /// How often in a row irqfwd, smmu or a monitor died, and when it did last.
    deaths: Vec<(u32, u64), MAX_SERVERS>,
    off: bool,
}

impl Policy {
    /// A system that has just been started.
    pub fn new(plan: &Plan<'_>) -> Policy {
        // With no essential guest the system ends with its last one.
        let none = plan.guests.iter().all(|guest| !guest.essential);
        let guests = plan.guests.iter().map(|guest| Life {
            essential: guest.essential || none,
            on_reset: guest.on_reset,
            vcpu: guest.vcpu,
            servers: [guest.p2m, guest.vcpu],
            times: 0,
            deaths: 0,
            died: 0,
            ended: None,
        });
        Policy {
            guests: guests.collect(),
            servers: plan.servers.iter().map(|server| (server.role, false)).collect(),
            deaths: plan.servers.iter().map(|_| (0, 0)).collect(),
            off: false,
        }
    }

    /// Whether this server has stopped.
    pub fn has_stopped(&self, server: usize) -> bool {
        self.servers.get(server).is_none_or(|(_, stopped)| *stopped)
    }

    /// Whether this guest has ended.
    pub fn has_ended(&self, guest: usize) -> bool {
        self.guests.get(guest).is_none_or(|life| life.ended.is_some())
    }

    /// How this guest ended, if it did, and how often it was started again.
    pub fn life(&self, guest: usize) -> (Option<Ended>, u32) {
        self.guests.get(guest).map_or((None, 0), |life| (life.ended, life.times))
    }

    /// Decides.
    pub fn decide(&mut self, event: Event) -> Actions {
        let mut actions = Actions::new();
        match event {
            Event::Ended(guest, end) => self.end(guest, end, &mut actions),
            Event::Reset(guest) => self.reset(guest, &mut actions),
            Event::Reboot(guest) => self.start_again(guest, &mut actions),
            Event::NotStarted(guest) => {
                let vcpu = self.guests.get(usize::from(guest)).map_or(0, |life| life.vcpu);
                self.end(guest, GuestEnd::Server(vcpu), &mut actions);
            }
            Event::ServerStopped(server, death, now) => self.server_stopped(server, death, now, &mut actions),
            Event::Condemned(guest, end) => self.condemned(guest, end, &mut actions),
            // That is no fault of it: it does not count.
            Event::Killed(server) => match self.servers.get(usize::from(server)) {
                Some((Role::Monitor, false)) => push(&mut actions, Action::Relieve(server)),
                Some((Role::Irqfwd | Role::Smmu, false)) => push(&mut actions, Action::Revive(server)),
                _ => {}
            },
        }
        actions
    }

    /// A guest ended; the last essential one takes the machine with it.
    fn end(&mut self, guest: u8, end: GuestEnd, actions: &mut Actions) {
        let Some(life) = self.guests.get_mut(usize::from(guest)) else { return };
        if life.ended.is_some() {
            return;
        }
        life.ended = Some(Ended::from(&end));
        push(actions, Action::Report(Report::GuestEnded { guest, end }));
        let goes_on = self.guests.iter().any(|life| life.essential && life.ended.is_none());
        if !goes_on && !self.off {
            self.off = true;
            let is_good = |end: Ended| matches!(end, Ended::Off | Ended::Reset | Ended::Status(0));
            let well = self.guests.iter().all(|life| life.ended.is_none_or(is_good));
            push(actions, Action::Report(Report::Off { well }));
            push(actions, Action::Off);
        }
    }

    fn reset(&mut self, guest: u8, actions: &mut Actions) {
        let Some(life) = self.guests.get_mut(usize::from(guest)) else { return };
        if life.ended.is_some() {
            return;
        }
        match after_reset(life.on_reset) {
            Some(end) => self.end(guest, end, actions),
            None => self.start_again(guest, actions),
        }
    }

    /// A guest starts again from its image.
    fn start_again(&mut self, guest: u8, actions: &mut Actions) {
        let life = self.guests.get_mut(usize::from(guest)).filter(|life| life.ended.is_none());
        let Some(life) = life else { return };
        life.times = life.times.saturating_add(1);
        let times = life.times;
        push(actions, Action::Report(Report::GuestRebooted { guest, times }));
        push(actions, Action::Reboot(guest));
    }

    fn server_stopped(&mut self, server: u8, death: Death, now: u64, actions: &mut Actions) {
        let Some((role, stopped)) = self.servers.get_mut(usize::from(server)) else { return };
        if core::mem::replace(stopped, true) {
            return;
        }
        let role = *role;
        match death {
            Death::Ended => {}
            Death::Faulted(record) => push(actions, Action::Report(Report::ServerFaulted { server, record })),
            Death::Late(exit) => push(actions, Action::Report(Report::ServerLate { server, exit })),
        }
        match role {
            // Nobody hears reports any more; the guests go on.
            Role::Console => {}
            Role::P2m(guest) | Role::Vcpu(guest) => self.lost(guest, server, now, actions),
            Role::Irqfwd | Role::Smmu if self.again(server, now) => push(actions, Action::Revive(server)),
            // Guests go on without what their devices have to say.
            Role::Irqfwd => {}
            // Devices see what they saw, and a guest with one does not start again.
            Role::Smmu => {}
            Role::Monitor if self.again(server, now) => push(actions, Action::Relieve(server)),
            Role::Monitor => push(actions, Action::Abandon(server)),
        }
    }

    /// Whether a server that guests can wait for is made again: it does not die too often in a row.
    fn again(&mut self, server: u8, now: u64) -> bool {
        let index = usize::from(server);
        let Some((deaths, died)) = self.deaths.get_mut(index) else { return false };
        *deaths = if now.saturating_sub(*died) > CALM { 1 } else { deaths.saturating_add(1) };
        *died = now;
        let again = *deaths <= MOST_DEATHS;
        if let Some((_, stopped)) = self.servers.get_mut(index) {
            *stopped = !again;
        }
        again
    }

    /// A guest ends that has done nothing wrong itself.
    fn condemned(&mut self, guest: u8, end: GuestEnd, actions: &mut Actions) {
        let Some(life) = self.guests.get(usize::from(guest)).filter(|life| life.ended.is_none()) else { return };
        for server in life.servers {
            if let Some((_, stopped)) = self.servers.get_mut(usize::from(server)) {
                *stopped = true;
            }
        }
        push(actions, Action::Stop(guest));
        self.end(guest, end, actions);
    }

    /// A guest has lost a server: it gets both anew and starts again, unless the manifest or too many deaths forbid it.
    fn lost(&mut self, guest: u8, server: u8, now: u64, actions: &mut Actions) {
        let Some(life) = self.guests.get_mut(usize::from(guest)).filter(|life| life.ended.is_none()) else { return };
        life.deaths = if now.saturating_sub(life.died) > CALM { 1 } else { life.deaths.saturating_add(1) };
        life.died = now;
        let servers = life.servers;
        let again = after_reset(life.on_reset).is_none() && life.deaths <= MOST_DEATHS;
        if again {
            life.times = life.times.saturating_add(1);
            let times = life.times;
            push(actions, Action::Report(Report::GuestRebooted { guest, times }));
            push(actions, Action::Rebuild(guest));
        } else {
            push_first(actions, Action::Stop(guest));
            self.end(guest, GuestEnd::Server(server), actions);
        }
        for server in servers {
            if let Some((_, stopped)) = self.servers.get_mut(usize::from(server)) {
                *stopped = !again;
            }
        }
    }
}

/// Appends: a server's death is the longest (stop, its record, the guest's end, off twice).
fn push(actions: &mut Actions, action: Action) {
    let fits = actions.push(action).is_ok();
    debug_assert!(fits, "more actions than one event can have");
}

fn push_first(actions: &mut Actions, action: Action) {
    let fits = actions.insert(0, action).is_ok();
    debug_assert!(fits, "more actions than one event can have");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{MONITOR, plan, plan_with_monitor};
    use trellis_idl::plan::Without;
    use proptest::prelude::*;

    fn ended(guest: u8, end: GuestEnd) -> Action {
        Action::Report(Report::GuestEnded { guest, end })
    }

    fn off(well: bool) -> [Action; 2] {
        [Action::Report(Report::Off { well }), Action::Off]
    }

    #[test]
    fn the_machine_goes_off_with_the_last_essential_guest() {
        let mut policy = Policy::new(&plan());
        assert_eq!(policy.decide(Event::Ended(0, GuestEnd::Off)), [ended(0, GuestEnd::Off)]);
        assert_eq!(policy.decide(Event::Ended(0, GuestEnd::Off)), []);
        let last = policy.decide(Event::Ended(1, GuestEnd::Status(0)));
        assert_eq!(last[0], ended(1, GuestEnd::Status(0)));
        assert_eq!(last[1..], off(true));
    }

    #[test]
    fn a_guest_that_is_not_essential_keeps_nobody_up() {
        let mut plan = plan();
        plan.guests[1].essential = false;
        let mut policy = Policy::new(&plan);
        assert_eq!(policy.decide(Event::Ended(0, GuestEnd::Off))[1..], off(true));
        plan.guests[0].essential = false;
        let mut policy = Policy::new(&plan);
        assert_eq!(policy.decide(Event::Ended(0, GuestEnd::Off)).len(), 1);
        assert_eq!(policy.decide(Event::Ended(1, GuestEnd::Status(3)))[1..], off(false));
    }

    #[test]
    fn a_reset_reboots_or_ends_as_the_manifest_says() {
        let mut plan = plan();
        plan.guests[1].on_reset = OnReset::End;
        let mut policy = Policy::new(&plan);
        for times in 1..4 {
            let report = Action::Report(Report::GuestRebooted { guest: 0, times });
            assert_eq!(policy.decide(Event::Reset(0)), [report, Action::Reboot(0)]);
        }
        // Whoever asks from outside asks for just that.
        let report = Action::Report(Report::GuestRebooted { guest: 1, times: 1 });
        assert_eq!(policy.decide(Event::Reboot(1)), [report, Action::Reboot(1)]);
        assert_eq!(policy.decide(Event::Reset(1)), [ended(1, GuestEnd::Reset)]);
        assert_eq!(policy.life(1), (Some(Ended::Reset), 1));
        assert_eq!(policy.decide(Event::Reboot(1)), [], "it has ended");
    }

    #[test]
    fn a_server_that_faults_takes_its_guest_along_and_is_reported_once() {
        let mut plan = plan();
        plan.guests[1].on_reset = OnReset::End;
        let mut policy = Policy::new(&plan);
        let record = Fault { syndrome: 1, address: 2, pc: 3, sp: 4, general: Vec::new() };
        let actions = policy.decide(Event::ServerStopped(3, Death::Faulted(record.clone()), 0));
        let fault = Action::Report(Report::ServerFaulted { server: 3, record });
        assert_eq!(actions, [Action::Stop(1), fault, ended(1, GuestEnd::Server(3))]);
        assert_eq!(policy.decide(Event::ServerStopped(3, Death::Ended, 0)), []);
        assert_eq!(policy.decide(Event::ServerStopped(4, Death::Ended, 0)), [], "it went with the other one");
        assert_eq!(policy.decide(Event::ServerStopped(0, Death::Ended, 0)), []);
        let last = policy.decide(Event::NotStarted(0));
        assert_eq!(last[0], ended(0, GuestEnd::Server(2)));
        assert_eq!(last[1..], off(false));
    }

    #[test]
    fn a_guest_gets_new_servers_until_they_die_too_often_in_a_row() {
        let mut policy = Policy::new(&plan());
        let mut now = 100;
        for times in 1..=7 {
            // Each third death comes after a calm time.
            now += if times % 3 == 1 { CALM + 1 } else { 5 };
            let late = Some((0, 3));
            let seen = policy.decide(Event::ServerStopped(1, Death::Late(late), now));
            let report = Action::Report(Report::ServerLate { server: 1, exit: late });
            let again = Action::Report(Report::GuestRebooted { guest: 0, times });
            assert_eq!(seen, [report, again, Action::Rebuild(0)]);
            assert!(!policy.has_stopped(1) && !policy.has_stopped(2));
        }
        for death in 2..=MOST_DEATHS {
            assert_eq!(policy.decide(Event::ServerStopped(2, Death::Ended, now)).len(), 2, "{death}");
        }
        let last = policy.decide(Event::ServerStopped(2, Death::Ended, now));
        assert_eq!(last, [Action::Stop(0), ended(0, GuestEnd::Server(2))]);
        assert!(policy.has_stopped(1) && policy.has_stopped(2));
    }

    #[test]
    fn a_monitor_is_made_again_until_it_dies_too_often_in_a_row() {
        let mut policy = Policy::new(&plan_with_monitor(&[0, 1], Without::Hold));
        let mut now = 100;
        let monitor = MONITOR as u8;
        for death in 1..=7 {
            // Each third death comes after a calm time.
            now += if death % 3 == 1 { CALM + 1 } else { 5 };
            assert_eq!(policy.decide(Event::ServerStopped(monitor, Death::Ended, now)), [Action::Relieve(monitor)]);
            assert!(!policy.has_stopped(MONITOR));
        }
        for death in 2..=MOST_DEATHS {
            let seen = policy.decide(Event::ServerStopped(monitor, Death::Late(None), now));
            let report = Action::Report(Report::ServerLate { server: monitor, exit: None });
            assert_eq!(seen, [report, Action::Relieve(monitor)], "{death}");
        }
        assert_eq!(policy.decide(Event::ServerStopped(monitor, Death::Ended, now)), [Action::Abandon(monitor)]);
        assert!(policy.has_stopped(MONITOR));
        assert_eq!(policy.decide(Event::ServerStopped(monitor, Death::Ended, now)), []);
    }

    #[test]
    fn a_guest_is_condemned_once_and_its_servers_go_with_it() {
        let mut policy = Policy::new(&plan());
        let end = GuestEnd::Stopped(5);
        assert_eq!(policy.decide(Event::Condemned(1, end.clone())), [Action::Stop(1), ended(1, end.clone())]);
        assert_eq!(policy.decide(Event::Condemned(1, end)), []);
        assert_eq!(policy.decide(Event::ServerStopped(3, Death::Ended, 0)), [], "it was stopped");
        assert_eq!(policy.decide(Event::Ended(0, GuestEnd::Off))[1..], off(false));
    }

    fn event() -> impl Strategy<Value = Event> {
        let end = prop_oneof![Just(GuestEnd::Off), Just(GuestEnd::Status(1)), Just(GuestEnd::Reset)];
        let fault = Fault { syndrome: 0, address: 0, pc: 0, sp: 0, general: Vec::new() };
        prop_oneof![
            (0u8..4, end).prop_map(|(guest, end)| Event::Ended(guest, end)),
            (0u8..4).prop_map(Event::Reset),
            (0u8..4).prop_map(Event::Reboot),
            (0u8..4).prop_map(Event::NotStarted),
            (0u8..4).prop_map(|guest| Event::Condemned(guest, GuestEnd::Stopped(5))),
            (0u8..8, 0u8..3, 0u64..200).prop_map(move |(server, how, now)| {
                let deaths = [Death::Ended, Death::Faulted(fault.clone()), Death::Late(None)];
                Event::ServerStopped(server, deaths[usize::from(how)].clone(), now)
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_each_guest_ends_once_and_the_machine_goes_off_once(
            events in proptest::collection::vec(event(), 0..40),
        ) {
            let mut policy = Policy::new(&plan());
            let mut ends = [0; 2];
            let mut offs = 0;
            for event in events {
                for action in policy.decide(event) {
                    match action {
                        Action::Report(Report::GuestEnded { guest, .. }) => ends[usize::from(guest)] += 1,
                        Action::Reboot(guest) | Action::Rebuild(guest) => {
                            prop_assert_eq!(ends[usize::from(guest)], 0);
                        }
                        Action::Off => offs += 1,
                        _ => {}
                    }
                }
            }
            prop_assert!(ends.iter().all(|times| *times <= 1));
            prop_assert_eq!(offs, usize::from(ends == [1, 1]));
        }
    }
}
