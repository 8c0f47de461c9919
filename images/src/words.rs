// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules of monitors in the manifest's words, one by one: for whoever adds them to a running system, and lists them.

use crate::hear::{describe_event, KINDS};
use crate::quantity::parse_bits;
use crate::view::range_of;
use crate::watch::{ACCESSES, VERDICTS, describe_pages};
use trellis_idl::plan::{EventPlan, Rule, RulePlan, RuleVerdict};

fn choose<T: Copy>(key: &str, text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    let all = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("{key} is one of: {}", all()))
}

/// What a rule says, by its word.
pub fn verdict(text: &str) -> Result<RuleVerdict, String> {
    choose("the verdict", text, &VERDICTS)
}

/// A rule about memory. The error says what is wrong.
pub fn pages(pages: &str, access: &str, verdict: &str, log: bool, walks: bool) -> Result<Rule, String> {
    let (first, pages) = range_of(pages).ok_or("pages are written as 0x40200000..0x40280000: multiples of 4096, the end behind the last byte")?;
    let access = choose("the access", access, &ACCESSES)?.0 as u8 | if walks { 0 } else { RulePlan::NO_WALKS };
    Ok(Rule::Pages(RulePlan { guest: 0, first, pages, access, verdict: self::verdict(verdict)?, log }))
}

/// A rule about something else.
pub fn event(kind: &str, verdict: &str, log: bool, only_changes: bool, ignored: Option<&str>) -> Result<Rule, String> {
    let ignored = ignored.map(|bits| parse_bits(bits).ok_or("bits are written as 0xffff000000000000")).transpose()?.unwrap_or(0);
    let (kind, verdict) = (choose("what is heard", kind, &KINDS)?, self::verdict(verdict)?);
    Ok(Rule::Event(EventPlan { guest: 0, kind, only_changes, ignored, verdict, log }))
}

/// A rule in one sentence.
pub fn describe(rule: &Rule) -> String {
    match rule {
        Rule::Pages(rule) => describe_pages(rule),
        Rule::Event(rule) => describe_event(rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_written_as_in_a_manifest_and_read_as_a_sentence() {
        let rule = pages("0x40800000..0x40802000", "rw", "deny", true, false).expect("a rule");
        assert_eq!(describe(&rule), "0x40800000..0x40802000 rw but for table walks: denied, and logged");
        let rule = event("ttbr0", "report", false, true, Some("0xffff_0000_0000_0000")).expect("a rule");
        assert_eq!(describe(&rule), "a write of TTBR0_EL1 that changes it, but for bits 0xffff000000000000: happens, and is reported");
    }

    #[test]
    fn what_is_no_word_is_told_with_those_that_are() {
        assert!(pages("0x40800001..0x40802000", "w", "deny", false, true).is_err_and(|why| why.contains("multiples of 4096")));
        assert!(pages("0x40800000..0x40802000", "q", "deny", false, true).is_err_and(|why| why.ends_with("r, w, x, rw, rx, wx, rwx")));
        assert!(event("smc", "forbid", false, false, None).is_err_and(|why| why.contains("allow, report, deny")));
        assert!(event("interrupt", "allow", false, false, None).is_err_and(|why| why.contains("vcpu-start")));
        assert!(event("ttbr0", "allow", false, false, Some("12")).is_err());
    }
}
