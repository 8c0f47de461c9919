// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor's rules about everything but memory: what it hears of each guest, and how often it did.

use core::sync::atomic::{AtomicU64, Ordering};
use heapless::Vec;
use trellis_idl::event::{EventKind, Wish};
use trellis_idl::plan::{EventPlan, MAX_EVENT_RULES, MAX_VCPUS, RuleVerdict};

/// And what this rule speaks of is heard too.
fn hear(wish: &mut Wish, plan: &EventPlan) {
    let bit = plan.kind.bit();
    wish.kinds |= bit;
    wish.told = wish.told & !bit | if plan.verdict == RuleVerdict::Report { bit } else { 0 };
    if let Some(ignored) = wish.ignored.get_mut(plan.kind as usize) {
        *ignored = plan.ignored;
        wish.only_changes |= if plan.only_changes { bit } else { 0 };
    }
}

/// The rules, and how often each was used for each vCPU.
#[derive(Debug)]
pub struct Hearing {
    all: Vec<EventPlan, MAX_EVENT_RULES>,
    /// Each number has one writer, as in `rules.rs`.
    seen: [[AtomicU64; MAX_EVENT_RULES]; MAX_VCPUS],
}

impl Hearing {
    /// None of them has been used.
    pub fn new(rules: &[EventPlan]) -> Hearing {
        let all = rules.iter().take(MAX_EVENT_RULES).copied().collect();
        Hearing { all, seen: [const { [const { AtomicU64::new(0) }; MAX_EVENT_RULES] }; MAX_VCPUS] }
    }

    /// The rules, in their order.
    pub fn all(&self) -> &[EventPlan] {
        &self.all
    }

    /// The rule that speaks of this.
    pub fn find(&self, guest: usize, kind: EventKind) -> Option<(usize, &EventPlan)> {
        self.all.iter().enumerate().find(|(_, rule)| usize::from(rule.guest) == guest && rule.kind == kind)
    }

    /// A rule was used for a vCPU.
    pub fn count(&self, vcpu: usize, rule: usize) {
        let seen = &self.seen[vcpu % MAX_VCPUS][rule % MAX_EVENT_RULES];
        seen.store(seen.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// How often a rule was used.
    pub fn seen(&self, rule: usize) -> u64 {
        let of = |row: &[AtomicU64; MAX_EVENT_RULES]| row[rule % MAX_EVENT_RULES].load(Ordering::Acquire);
        self.seen.iter().map(of).fold(0, u64::wrapping_add)
    }

    /// All that is to be heard of a guest.
    pub fn wish(&self, guest: usize) -> Wish {
        // Where two speak of one kind the first counts.
        wish_of(self.all.iter().rev(), guest)
    }
}

/// All that these rules hear of a guest; of two about one kind the last counts.
pub fn wish_of<'r>(rules: impl Iterator<Item = &'r EventPlan>, guest: usize) -> Wish {
    let mut wish = Wish::default();
    rules.filter(|rule| usize::from(rule.guest) == guest).for_each(|rule| hear(&mut wish, rule));
    wish
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(guest: u8, kind: EventKind, only_changes: bool, ignored: u64) -> EventPlan {
        EventPlan { guest, kind, only_changes, ignored, verdict: RuleVerdict::Allow, log: false }
    }

    #[test]
    fn a_guests_rules_are_one_wish() {
        let hearing = Hearing::new(&[
            rule(0, EventKind::Tables1, true, 0), rule(1, EventKind::Power, false, 0), rule(0, EventKind::Context, false, 7),
            rule(0, EventKind::Firmware, true, 9),
        ]);
        let kinds = EventKind::Tables1.bit() | EventKind::Context.bit() | EventKind::Firmware.bit();
        assert_eq!(hearing.wish(0), Wish { kinds, only_changes: 4, ignored: [0, 0, 0, 0, 0, 7], told: 0 });
        assert_eq!(hearing.wish(2), Wish::default());
        assert_eq!(hearing.find(0, EventKind::Context).map(|(index, _)| index), Some(2));
        assert_eq!(hearing.find(1, EventKind::Context), None);
    }

    #[test]
    fn each_rule_counts_for_itself() {
        let hearing = Hearing::new(&[rule(0, EventKind::Tables1, true, 0), rule(1, EventKind::Power, false, 0)]);
        for vcpu in 0..MAX_VCPUS {
            (0..=vcpu).for_each(|_| hearing.count(vcpu, 1));
        }
        assert_eq!((hearing.seen(0), hearing.seen(1)), (0, 36));
    }
}
