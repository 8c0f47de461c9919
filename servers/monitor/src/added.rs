// SPDX-License-Identifier: MIT OR Apache-2.0
//! The standard monitor's rules that came while it ran, each at a place of its own for as long as it is there. Few events are theirs, so
//! a lock is taken for them; those of the manifest know nothing of it.

use crate::event::{Event, What};
use crate::hearing;
use crate::rules;
use heapless::Vec;
use trellis_idl::event::{EventKind, Wish};
use trellis_idl::kernel::{Access, Refusal};
use trellis_idl::plan::{EventPlan, FIRST_ADDED, MAX_ADDED, MAX_RULES, Rule, RulePlan, RuleVerdict};
use trellis_runtime::{Shared, System};

/// The rules, and how often each was used.
#[derive(Debug)]
pub struct Added(Shared<[Option<(Rule, u64)>; MAX_ADDED]>);

/// The number of the rule at a place.
pub const fn number_of(place: usize) -> u16 {
    FIRST_ADDED + place as u16
}

/// The place of the rule with a number.
pub fn place_of(number: u16) -> Option<usize> {
    number.checked_sub(FIRST_ADDED).map(usize::from).filter(|place| *place < MAX_ADDED)
}

impl Default for Added {
    fn default() -> Added {
        Added::new()
    }
}

impl Added {
    /// None.
    pub const fn new() -> Added {
        Added(Shared::new([None; MAX_ADDED]))
    }

    /// The rules, each with its place.
    pub fn all(&self, system: &impl System) -> Vec<(usize, Rule), MAX_ADDED> {
        let all = self.0.lock(system);
        all.iter().enumerate().filter_map(|(place, rule)| rule.map(|(rule, _)| (place, rule))).collect()
    }

    /// The one at a place, and how often it was used.
    pub fn at(&self, system: &impl System, place: usize) -> Option<(Rule, u64)> {
        self.0.lock(system).get(place).copied().flatten()
    }

    /// Puts a rule at the place of this number, or at any. Refused `Quota`: there is none.
    pub fn put(&self, system: &impl System, rule: Rule, number: u16) -> Result<usize, Refusal> {
        let mut all = self.0.lock(system);
        let free = || all.iter().position(Option::is_none);
        let place = if number == 0 { free() } else { place_of(number).filter(|place| all[*place].is_none()) };
        let place = place.ok_or(Refusal::Quota)?;
        all[place] = Some((rule, 0));
        Ok(place)
    }

    /// Takes it away again.
    pub fn take(&self, system: &impl System, place: usize) -> Option<Rule> {
        self.0.lock(system).get_mut(place)?.take().map(|(rule, _)| rule)
    }

    /// The rule that speaks of an event, which is used once more.
    #[cold]
    #[inline(never)]
    pub fn find(&self, system: &impl System, event: &Event) -> Option<(usize, Rule)> {
        let what = event.what()?;
        let mut all = self.0.lock(system);
        let mut found = all.iter_mut().enumerate().filter_map(|(place, rule)| rule.as_mut().map(|rule| (place, rule)));
        let (place, (rule, used)) = found.find(|(_, (rule, _))| speaks(rule, event, what))?;
        // One that is told again is counted already.
        *used = used.wrapping_add((!event.again).into());
        Some((place, *rule))
    }
}

/// Whether a rule is about this.
fn speaks(rule: &Rule, event: &Event, what: What) -> bool {
    match (rule, what) {
        (Rule::Pages(rule), What::Access(access)) => rules::speaks(rule, event.guest, event.page(), access, event.is_walk()),
        (Rule::Event(rule), What::Heard(kind)) => usize::from(rule.guest) == event.guest && rule.kind == kind,
        _ => false,
    }
}

/// Whether a rule makes sense, for a guest with these pages.
pub fn check(rule: &Rule, (first, pages): (u64, u64)) -> Result<(), Refusal> {
    match rule {
        Rule::Pages(rule) => {
            let all = Access::READ.with(Access::WRITE).with(Access::EXECUTE).0 as u8;
            let is_inside = rule.first >= first && rule.first.checked_add(rule.pages).is_some_and(|end| end <= first + pages);
            let executes = rule.access & Access::EXECUTE.0 as u8 != 0;
            if rule.access & all == 0 || rule.access & !(all | RulePlan::NO_WALKS) != 0 || (executes && rule.verdict == RuleVerdict::Deny) {
                return Err(Refusal::BadArgument);
            }
            if is_inside && rule.pages != 0 { Ok(()) } else { Err(Refusal::OutOfRange) }
        }
        Rule::Event(rule) => {
            let is_late = rule.kind.is_only_told() && rule.verdict != RuleVerdict::Report;
            let comes_again = rule.kind == EventKind::Debug && rule.verdict == RuleVerdict::Deny;
            let has_options = rule.only_changes || rule.ignored != 0;
            let is_wrong = is_late || comes_again || (has_options && !rule.kind.is_register());
            if is_wrong { Err(Refusal::BadArgument) } else { Ok(()) }
        }
    }
}

/// Whether two rules speak of the same thing.
pub fn overlap(one: &Rule, other: &Rule) -> bool {
    match (one, other) {
        (Rule::Pages(one), Rule::Pages(other)) => {
            let meets = one.first < other.first.saturating_add(other.pages) && other.first < one.first.saturating_add(one.pages);
            meets && one.guest == other.guest && one.access & other.access & !RulePlan::NO_WALKS != 0
        }
        (Rule::Event(one), Rule::Event(other)) => (one.guest, one.kind) == (other.guest, other.kind),
        _ => false,
    }
}

/// Those about memory of both lists.
pub fn pages_of(manifest: &[RulePlan], added: &[(usize, Rule)]) -> Vec<RulePlan, MAX_RULES> {
    let late = added.iter().filter_map(|(_, rule)| if let Rule::Pages(rule) = rule { Some(*rule) } else { None });
    manifest.iter().copied().chain(late).take(MAX_RULES).collect()
}

/// All that is to be heard of a guest.
pub fn wish_of(manifest: &[EventPlan], added: &[(usize, Rule)], guest: usize) -> Wish {
    let late = added.iter().filter_map(|(_, rule)| if let Rule::Event(rule) = rule { Some(rule) } else { None });
    // Where two speak of one kind the first counts.
    hearing::wish_of(late.chain(manifest.iter().rev()), guest)
}
