// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host asks through the console: what of it is obeyed, and how far the answer has come.
//!
//! A question is answered part by part, as the ring to console has room, and the next one is taken when that is done: a
//! host that floods waits for itself.

use trellis_idl::control::{Ask, Control, FromHost, Refused};

/// Parts that are made in one turn: then others have theirs.
pub const TURN: usize = 16;
/// Turns a second while an answer is on its way.
pub const RATE: u64 = 1000;

/// A question that is being answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub number: u32,
    /// What was asked, or why it is refused.
    pub ask: Result<Ask, Refused>,
    /// The part of the answer that comes next.
    pub step: u16,
}

/// What root knows of the host.
#[derive(Debug)]
pub struct Host {
    control: Control,
    /// When root started.
    pub since: u64,
    /// Guests that it paused: a bit each.
    paused: u16,
    /// The question that is being answered.
    pub pending: Option<Pending>,
}

impl Host {
    /// One that may do this and has done nothing.
    pub const fn new(control: Control, since: u64) -> Host {
        Host { control, since, paused: 0, pending: None }
    }

    /// What the manifest allows.
    pub const fn control(&self) -> Control {
        self.control
    }

    /// Whether it paused this guest.
    pub const fn has_paused(&self, guest: usize) -> bool {
        guest < 16 && self.paused >> guest & 1 == 1
    }

    /// Says whether it has.
    pub const fn set_paused(&mut self, guest: usize, paused: bool) {
        if guest < 16 {
            self.paused = self.paused & !(1 << guest) | (paused as u16) << guest;
        }
    }

    /// Decides whether a question is obeyed.
    pub fn decide(&self, heard: FromHost) -> Pending {
        let (number, ask) = match heard {
            FromHost::Foreign(number) => (number, Err(Refused::Version)),
            FromHost::Meaningless(number) => (number, Err(Refused::NotUnderstood)),
            FromHost::Asked(number, ask) => (number, self.allow(ask)),
        };
        // One that may do nothing learns nothing else.
        let ask = if self.control == Control::Off { Err(Refused::Off) } else { ask };
        Pending { number, ask, step: 0 }
    }

    fn allow(&self, ask: Ask) -> Result<Ask, Refused> {
        match self.control {
            Control::Full => Ok(ask),
            Control::Observe if ask.only_looks() => Ok(ask),
            Control::Observe => Err(Refused::ObserveOnly),
            Control::Off => Err(Refused::Off),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::control::{Name, Watch, WatchWhat};
    use trellis_idl::event::EventKind;
    use trellis_idl::plan::{EventPlan, Rule, RuleVerdict};

    fn all() -> [Ask; 8] {
        let name = || Name::try_from("a").expect("a short name");
        [Ask::Status, Ask::Views(name()), Ask::Load(5), Ask::Events(1), Ask::Pause(name()), Ask::Resume(name()), Ask::Reboot(name()), Ask::Kill(name())]
    }

    #[test]
    fn the_manifest_decides_what_is_obeyed() {
        for (index, ask) in all().into_iter().enumerate() {
            let answer = |control| Host::new(control, 0).decide(FromHost::Asked(7, ask.clone())).ask;
            assert_eq!(answer(Control::Off), Err(Refused::Off));
            let looks = if index < 4 { Ok(ask.clone()) } else { Err(Refused::ObserveOnly) };
            assert_eq!(answer(Control::Observe), looks);
            assert_eq!(answer(Control::Full), Ok(ask.clone()));
        }
    }

    #[test]
    fn who_may_only_look_sees_rules_and_changes_none() {
        let ask = |what| Ask::Watch(Watch { guest: Name::new(), monitor: Name::new(), what });
        let decided = |control, what| Host::new(control, 0).decide(FromHost::Asked(7, ask(what))).ask;
        let event = EventPlan { guest: 0, kind: EventKind::Stop, only_changes: false, ignored: 0, verdict: RuleVerdict::Report, log: true };
        for what in [WatchWhat::Add(Rule::Event(event)), WatchWhat::Remove(101)] {
            assert_eq!(decided(Control::Observe, what), Err(Refused::ObserveOnly));
            assert_eq!(decided(Control::Full, what), Ok(ask(what)));
        }
        assert_eq!(decided(Control::Observe, WatchWhat::List), Ok(ask(WatchWhat::List)));
        assert_eq!(decided(Control::Off, WatchWhat::List), Err(Refused::Off));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_number() {
        let host = Host::new(Control::Full, 0);
        let foreign = host.decide(FromHost::Foreign(3));
        assert_eq!((foreign.number, foreign.ask), (3, Err(Refused::Version)));
        assert_eq!(host.decide(FromHost::Meaningless(4)).ask, Err(Refused::NotUnderstood));
        assert_eq!(Host::new(Control::Off, 0).decide(FromHost::Foreign(3)).ask, Err(Refused::Off));
    }

    #[test]
    fn each_guest_is_paused_by_itself() {
        let mut host = Host::new(Control::Full, 0);
        host.set_paused(15, true);
        host.set_paused(3, true);
        host.set_paused(15, false);
        host.set_paused(99, true);
        assert!((0..100).all(|guest| host.has_paused(guest) == (guest == 3)));
    }
}
