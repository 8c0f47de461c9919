// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decides what follows from what happens: events in, actions out. No system call, no time, no memory of its own.

use heapless::Vec;
use trellis_idl::plan::{MAX_GUESTS, MAX_SERVERS, OnReset, Plan, Role};
use trellis_idl::wire::{Fault, GuestEnd, Report, after_reset};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest's vcpu server says that it ended.
    Ended(u8, GuestEnd),
    /// A guest's vcpu server says that it wants a reset.
    Reset(u8),
    /// A guest could not be started, at first or again.
    NotStarted(u8),
    /// A thread of a server stopped; with its registers when it faulted.
    ServerStopped(u8, Option<Fault>),
}

/// What shall be done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "three of these exist at a time")]
pub enum Action {
    /// Tell the host.
    Report(Report),
    /// Stop a guest's vCPUs: one of its servers is gone.
    Stop(u8),
    /// Start a guest again from its image.
    Reboot(u8),
    /// Switch the machine off.
    Off,
}

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
    times: u32,
    /// It ended, and whether well.
    ended: Option<bool>,
}

/// What root remembers of the system.
#[derive(Debug)]
pub struct Policy {
    guests: Vec<Life, MAX_GUESTS>,
    /// Each server's role, and whether it stopped.
    servers: Vec<(Role, bool), MAX_SERVERS>,
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
            times: 0,
            ended: None,
        });
        Policy {
            guests: guests.collect(),
            servers: plan.servers.iter().map(|server| (server.role, false)).collect(),
            off: false,
        }
    }

    /// Whether this server has stopped.
    pub fn has_stopped(&self, server: usize) -> bool {
        self.servers.get(server).is_none_or(|(_, stopped)| *stopped)
    }

    /// Decides.
    pub fn decide(&mut self, event: Event) -> Actions {
        let mut actions = Actions::new();
        match event {
            Event::Ended(guest, end) => self.end(guest, end, &mut actions),
            Event::Reset(guest) => self.reset(guest, &mut actions),
            Event::NotStarted(guest) => {
                let vcpu = self.guests.get(usize::from(guest)).map_or(0, |life| life.vcpu);
                self.end(guest, GuestEnd::Server(vcpu), &mut actions);
            }
            Event::ServerStopped(server, record) => self.server_stopped(server, record, &mut actions),
        }
        actions
    }

    /// A guest ended; the last essential one takes the machine with it.
    fn end(&mut self, guest: u8, end: GuestEnd, actions: &mut Actions) {
        let Some(life) = self.guests.get_mut(usize::from(guest)) else { return };
        if life.ended.is_some() {
            return;
        }
        life.ended = Some(matches!(end, GuestEnd::Off | GuestEnd::Reset | GuestEnd::Status(0)));
        push(actions, Action::Report(Report::GuestEnded { guest, end }));
        let goes_on = self.guests.iter().any(|life| life.essential && life.ended.is_none());
        if !goes_on && !self.off {
            self.off = true;
            let well = self.guests.iter().all(|life| life.ended != Some(false));
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
            None => {
                life.times = life.times.saturating_add(1);
                let times = life.times;
                push(actions, Action::Report(Report::GuestRebooted { guest, times }));
                push(actions, Action::Reboot(guest));
            }
        }
    }

    fn server_stopped(&mut self, server: u8, record: Option<Fault>, actions: &mut Actions) {
        let Some((role, stopped)) = self.servers.get_mut(usize::from(server)) else { return };
        if core::mem::replace(stopped, true) {
            return;
        }
        let role = *role;
        if let Some(record) = record {
            push(actions, Action::Report(Report::ServerFaulted { server, record }));
        }
        match role {
            // Nobody hears reports any more; the guests go on.
            Role::Console => {}
            Role::P2m(guest) | Role::Vcpu(guest) => {
                let lives = self.guests.get(usize::from(guest)).is_some_and(|life| life.ended.is_none());
                if lives {
                    push_first(actions, Action::Stop(guest));
                }
                self.end(guest, GuestEnd::Server(server), actions);
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
    use crate::fake::plan;
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
        assert_eq!(policy.decide(Event::Reset(1)), [ended(1, GuestEnd::Reset)]);
    }

    #[test]
    fn a_server_that_faults_takes_its_guest_along_and_is_reported_once() {
        let mut policy = Policy::new(&plan());
        let record = Fault { syndrome: 1, address: 2, pc: 3, sp: 4, general: Vec::new() };
        let actions = policy.decide(Event::ServerStopped(3, Some(record.clone())));
        let fault = Action::Report(Report::ServerFaulted { server: 3, record });
        assert_eq!(actions, [Action::Stop(1), fault, ended(1, GuestEnd::Server(3))]);
        assert_eq!(policy.decide(Event::ServerStopped(3, None)), []);
        assert_eq!(policy.decide(Event::ServerStopped(0, None)), []);
        let last = policy.decide(Event::NotStarted(0));
        assert_eq!(last[0], ended(0, GuestEnd::Server(2)));
        assert_eq!(last[1..], off(false));
    }

    fn event() -> impl Strategy<Value = Event> {
        let end = prop_oneof![Just(GuestEnd::Off), Just(GuestEnd::Status(1)), Just(GuestEnd::Reset)];
        let fault = Fault { syndrome: 0, address: 0, pc: 0, sp: 0, general: Vec::new() };
        prop_oneof![
            (0u8..4, end).prop_map(|(guest, end)| Event::Ended(guest, end)),
            (0u8..4).prop_map(Event::Reset),
            (0u8..4).prop_map(Event::NotStarted),
            (0u8..8, proptest::option::of(Just(fault))).prop_map(|(server, fault)| Event::ServerStopped(server, fault)),
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
                        Action::Reboot(guest) => prop_assert_eq!(ends[usize::from(guest)], 0),
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
