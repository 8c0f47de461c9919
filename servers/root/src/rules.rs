// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules that the host has added to monitors: what makes them last longer than the monitor that has them.

use heapless::Vec;
use trellis_idl::plan::{MAX_ADDED, MAX_MONITORS, Rule};

/// Rules that are remembered, of all monitors.
const MOST: usize = MAX_ADDED * MAX_MONITORS;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Whose: the index of the monitor's server.
    pub server: u8,
    /// Its number there.
    pub number: u16,
    /// What it says.
    pub rule: Rule,
}

/// All of them.
#[derive(Debug)]
pub struct Kepts(Vec<Kept, MOST>);

impl Kepts {
    /// None.
    pub const NONE: Kepts = Kepts(Vec::new());

    /// One more. There is room for as many as all monitors take.
    pub fn keep(&mut self, kept: Kept) {
        self.forget(kept.server, kept.number);
        let _ = self.0.push(kept);
    }

    /// One less.
    pub fn forget(&mut self, server: u8, number: u16) {
        self.0.retain(|kept| (kept.server, kept.number) != (server, number));
    }

    /// None of this monitor's any more.
    pub fn forget_all(&mut self, server: u8) {
        self.0.retain(|kept| kept.server != server);
    }

    /// The next one of a monitor, behind the one with this number.
    pub fn next(&self, server: u8, behind: u16) -> Option<Kept> {
        let own = self.0.iter().filter(|kept| kept.server == server && kept.number > behind);
        own.min_by_key(|kept| kept.number).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trellis_idl::plan::{FIRST_ADDED, RulePlan, RuleVerdict};

    #[test]
    fn each_monitors_rules_are_remembered_in_order_and_all_fit() {
        let rule = |first| Rule::Pages(RulePlan { guest: 0, first, pages: 1, access: 2, verdict: RuleVerdict::Deny, log: false });
        let mut all = Kepts::NONE;
        for server in 0..MAX_MONITORS as u8 {
            (0..MAX_ADDED as u16).rev().for_each(|n| all.keep(Kept { server, number: FIRST_ADDED + n, rule: rule(n.into()) }));
        }
        let numbers = |all: &Kepts, server| {
            let mut behind = 0;
            std::iter::from_fn(|| all.next(server, behind).inspect(|kept| behind = kept.number)).map(|kept| kept.number).collect::<std::vec::Vec<_>>()
        };
        let every: std::vec::Vec<u16> = (FIRST_ADDED..FIRST_ADDED + MAX_ADDED as u16).collect();
        assert!((0..MAX_MONITORS as u8).all(|server| numbers(&all, server) == every));
        all.keep(Kept { server: 3, number: FIRST_ADDED, rule: rule(99) });
        assert_eq!(all.next(3, 0).map(|kept| kept.rule), Some(rule(99)), "a number is one rule's");
        all.forget(3, FIRST_ADDED + 1);
        all.forget_all(4);
        assert_eq!((numbers(&all, 3).len(), numbers(&all, 4).len(), numbers(&all, 5).len()), (MAX_ADDED - 1, 0, MAX_ADDED));
    }
}
