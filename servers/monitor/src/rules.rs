// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor's rules: which one an access falls under, how often each was used, and what they ask of p2m.

use core::sync::atomic::{AtomicU64, Ordering};
use heapless::Vec;
use trellis_idl::kernel::Access;
use trellis_idl::plan::{MAX_RULES, MAX_VCPUS, RulePlan, RuleVerdict};
use trellis_idl::wire::{P2mOp, ViewAccess};

/// Pages of a guest, and all that may be done to them without a word.
pub type Stretch = ((u64, u64), ViewAccess);

/// Whether a rule speaks of a page of a guest.
#[inline(always)]
fn is_of(rule: &RulePlan, guest: usize, page: u64) -> bool {
    usize::from(rule.guest) == guest && page.wrapping_sub(rule.first) < rule.pages
}

/// The rules, and what each vCPU did that they speak of.
#[derive(Debug)]
pub struct Rules {
    all: Vec<RulePlan, MAX_RULES>,
    /// Each number has one writer: the thread that serves that vCPU's one open event. So no word is fought for.
    seen: [[AtomicU64; MAX_RULES]; MAX_VCPUS],
}

impl Rules {
    /// None of them has been used.
    pub fn new(rules: &[RulePlan]) -> Rules {
        let all = rules.iter().take(MAX_RULES).copied().collect();
        Rules { all, seen: [const { [const { AtomicU64::new(0) }; MAX_RULES] }; MAX_VCPUS] }
    }

    /// The rules, in their order.
    pub fn all(&self) -> &[RulePlan] {
        &self.all
    }

    /// The first rule that speaks of such an access to a page of a guest.
    #[inline(always)]
    pub fn find(&self, guest: usize, page: u64, access: Access) -> Option<(usize, &RulePlan)> {
        self.all.iter().enumerate().find(|(_, rule)| is_of(rule, guest, page) && access.0 & u64::from(rule.access) != 0)
    }

    /// The same of a walk of the guest's tables, of which nobody knows whether it reads its table or marks it.
    #[cold]
    pub fn find_walk(&self, guest: usize, page: u64, access: Access) -> Option<(usize, &RulePlan)> {
        let of = |access| self.all.iter().enumerate().find(|(_, rule)| speaks(rule, guest, page, access, true));
        of(access).or_else(|| of(DATA))
    }

    /// A rule was used for a vCPU.
    #[inline(always)]
    pub fn count(&self, vcpu: usize, rule: usize) {
        let seen = &self.seen[vcpu % MAX_VCPUS][rule % MAX_RULES];
        // Whoever sees this sees that the event was begun with ([`Decided`](crate::decided::Decided)).
        seen.store(seen.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// How often a rule was used.
    pub fn seen(&self, rule: usize) -> u64 {
        let of = |row: &[AtomicU64; MAX_RULES]| row[rule % MAX_RULES].load(Ordering::Acquire);
        self.seen.iter().map(of).fold(0, u64::wrapping_add)
    }

    /// What may be done to a page of a guest without a word.
    pub fn allowed(&self, guest: usize, page: u64) -> ViewAccess {
        allowed(&self.all, guest, page)
    }

    /// The stretches of a guest's pages that are watched, each in one way.
    pub fn stretches(&self, guest: usize) -> impl Iterator<Item = Stretch> + '_ {
        stretches(&self.all, guest)
    }
}

/// Accesses that a walk may be.
const DATA: Access = Access::READ.with(Access::WRITE);

/// Whether a rule speaks of such an access to a page. Of a walk: if it speaks of walks.
pub fn speaks(rule: &RulePlan, guest: usize, page: u64, access: Access, is_walk: bool) -> bool {
    let quiet = if is_walk { RulePlan::NO_WALKS } else { 0 };
    is_of(rule, guest, page) && access.0 & u64::from(rule.access) != 0 && rule.access & quiet == 0
}

/// The rules that speak of a page of a guest.
fn of_page(rules: &[RulePlan], guest: usize, page: u64) -> impl Iterator<Item = &RulePlan> {
    rules.iter().filter(move |rule| is_of(rule, guest, page))
}

/// What may be done to a page of a guest without a word.
pub fn allowed(rules: &[RulePlan], guest: usize, page: u64) -> ViewAccess {
    let watched = of_page(rules, guest, page).fold(0, |all, rule| all | u16::from(rule.access) & ViewAccess::ALL.0);
    if watched == 0 { ViewAccess::DEFAULT } else { ViewAccess(ViewAccess::ALL.0 & !watched) }
}

/// What p2m need not ask about a page that is watched: nothing, if every rule that speaks of it wants to be told alone; and nothing of
/// walks, if none that speaks of its reads or writes speaks of walks.
pub fn wishes(rules: &[RulePlan], guest: usize, page: u64) -> u64 {
    let told = of_page(rules, guest, page).all(|rule| rule.verdict == RuleVerdict::Report);
    let mut data = of_page(rules, guest, page).filter(|rule| u64::from(rule.access) & DATA.0 != 0);
    let quiet = data.all(|rule| rule.access & RulePlan::NO_WALKS != 0);
    (if told { P2mOp::TOLD } else { 0 }) | if quiet { P2mOp::NO_WALKS } else { 0 }
}

/// Where what rules say of a guest's pages may change, in order.
fn edges(rules: &[RulePlan], guest: usize) -> Vec<u64, { 2 * MAX_RULES }> {
    let mut edges: Vec<u64, { 2 * MAX_RULES }> = Vec::new();
    for rule in rules.iter().filter(|rule| usize::from(rule.guest) == guest) {
        for edge in [rule.first, rule.first.saturating_add(rule.pages)] {
            // Two for each rule: they fit.
            let _ = edges.push(edge);
        }
    }
    edges.sort_unstable();
    edges
}

/// The stretches of a guest's pages that are watched, each in one way.
pub fn stretches(rules: &[RulePlan], guest: usize) -> impl Iterator<Item = Stretch> + '_ {
    let edges = edges(rules, guest);
    let count = edges.len().saturating_sub(1);
    (0..count).filter_map(move |n| {
        let (first, end) = (*edges.get(n)?, *edges.get(n + 1)?);
        let access = allowed(rules, guest, first);
        (first < end && access != ViewAccess::DEFAULT).then_some(((first, end - first), access))
    })
}

/// The stretches of these pages, watched or not.
pub fn within(rules: &[RulePlan], guest: usize, (first, pages): (u64, u64)) -> impl Iterator<Item = Stretch> + '_ {
    let end = first.saturating_add(pages);
    let inner = edges(rules, guest);
    let mut from = first;
    core::iter::from_fn(move || {
        let (start, next) = (from, inner.iter().copied().find(|edge| *edge > from).unwrap_or(end).min(end));
        from = next;
        (start < next).then(|| ((start, next - start), allowed(rules, guest, start)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(guest: u8, first: u64, pages: u64, access: u8) -> RulePlan {
        RulePlan { guest, first, pages, access, verdict: RuleVerdict::Allow, log: false }
    }

    #[test]
    fn the_first_rule_that_speaks_of_an_access_counts() {
        let rules = Rules::new(&[rule(0, 10, 2, 2), rule(0, 11, 5, 3), rule(1, 10, 1, 7)]);
        let found = |guest, page, access| rules.find(guest, page, access).map(|(index, _)| index);
        assert_eq!(found(0, 11, Access::WRITE), Some(0));
        assert_eq!(found(0, 11, Access::READ), Some(1));
        assert_eq!(found(0, 12, Access::WRITE), Some(1));
        assert_eq!(found(1, 10, Access::EXECUTE), Some(2));
        assert_eq!((found(0, 10, Access::READ), found(0, 9, Access::WRITE), found(0, 16, Access::WRITE)), (None, None, None));
        assert_eq!((found(2, 10, Access::WRITE), found(0, u64::MAX, Access::WRITE)), (None, None));
    }

    #[test]
    fn a_walk_is_a_rules_that_speaks_of_walks() {
        let quiet = RulePlan::NO_WALKS;
        let rules = Rules::new(&[rule(0, 10, 2, 2 | quiet), rule(0, 11, 1, 1), rule(0, 13, 1, 3 | quiet), rule(0, 13, 1, 4), rule(0, 20, 1, 2)]);
        let walk = |page, access| rules.find_walk(0, page, access).map(|(index, _)| index);
        // What it did to its table nobody knows for certain.
        for access in [Access::READ, Access::WRITE] {
            assert_eq!((walk(10, access), walk(11, access), walk(13, access), walk(20, access)), (None, Some(1), None, Some(4)));
        }
        assert_eq!(rules.find(0, 10, Access::WRITE).map(|(index, _)| index), Some(0), "what is no walk is its all the same");
        let ignored = [10, 11, 13, 20].map(|page| wishes(rules.all(), 0, page) == P2mOp::NO_WALKS);
        assert_eq!(ignored, [true, false, true, false], "a rule about execution has no say in it");
        assert_eq!(wishes(rules.all(), 0, 11), 0);
    }

    #[test]
    fn each_rule_counts_for_itself() {
        let rules = Rules::new(&[rule(0, 10, 2, 2), rule(0, 11, 5, 3)]);
        for vcpu in 0..MAX_VCPUS {
            (0..=vcpu).for_each(|_| rules.count(vcpu, 1));
        }
        assert_eq!((rules.seen(0), rules.seen(1)), (0, 36));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stretches_say_of_each_page_what_the_rules_say(
            rules in prop::collection::vec((0..2u8, 0..20u64, 0..8u64, 0..8u8), 0..MAX_RULES),
        ) {
            let plans: std::vec::Vec<RulePlan> =
                rules.iter().map(|(guest, first, pages, access)| rule(*guest, *first, *pages, *access)).collect();
            let rules = Rules::new(&plans);
            for guest in 0..2 {
                let stretches: std::vec::Vec<Stretch> = rules.stretches(guest).collect();
                for page in 0..40 {
                    let around = |((first, pages), _): &&Stretch| (*first..first + pages).contains(&page);
                    let found: std::vec::Vec<_> = stretches.iter().filter(around).collect();
                    prop_assert!(found.len() <= 1);
                    let said = found.first().map_or(ViewAccess::DEFAULT, |(_, access)| *access);
                    prop_assert_eq!(said, rules.allowed(guest, page));
                    // What is not allowed without a word has a rule.
                    for access in [Access::READ, Access::WRITE, Access::EXECUTE] {
                        let is_free = said.now().is_none_or(|now| now.covers(access));
                        prop_assert_eq!(is_free, rules.find(guest, page, access).is_none());
                    }
                }
            }
        }

        #[test]
        fn each_page_of_a_range_is_in_one_stretch_of_it(
            rules in prop::collection::vec((0..2u8, 0..20u64, 0..8u64, 0..8u8), 0..MAX_RULES), first in 0..30u64, pages in 0..20u64,
        ) {
            let plans: std::vec::Vec<RulePlan> =
                rules.iter().map(|(guest, first, pages, access)| rule(*guest, *first, *pages, *access)).collect();
            let mut next = first;
            for ((start, count), access) in within(&plans, 0, (first, pages)) {
                prop_assert!(start == next && count > 0);
                next = start + count;
                prop_assert!((start..next).all(|page| allowed(&plans, 0, page) == access));
            }
            prop_assert_eq!(next, first + pages);
        }

        #[test]
        fn no_rules_overwhelm_it(
            rules in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u64>(), any::<u8>()), 0..80),
            page in any::<u64>(),
        ) {
            let plans: std::vec::Vec<RulePlan> =
                rules.iter().map(|(guest, first, pages, access)| rule(*guest, *first, *pages, *access)).collect();
            let rules = Rules::new(&plans);
            let _ = rules.find(3, page, Access::WRITE);
            prop_assert!(rules.stretches(3).count() <= 2 * MAX_RULES);
        }
    }
}
