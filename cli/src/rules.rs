// SPDX-License-Identifier: MIT OR Apache-2.0
//! `trellis ctl watch`: rules of a guest's monitor, listed, added and removed while both run.

use crate::asking::{Asking, name};
use crate::columns;
use crate::ctl::pretty;
use crate::standing::Standing;
use crate::status::Failure;
use clap::Args;
use serde_json::{Value, json};
use trellis_idl::control::{Ask, Part, RuleState, Watch, WatchWhat};
use trellis_idl::plan::Rule;
use trellis_images::words;

/// Which guest, and what of its rules.
#[derive(Args, Clone, Debug, Default)]
pub struct Rules {
    /// The guest's name
    pub guest: String,
    /// The monitor's name [default: the guest's only one]
    #[arg(long, value_name = "NAME")]
    pub monitor: Option<String>,
    /// Adds a rule about these pages, as in the manifest: 0x40200000..0x40280000
    #[arg(long, value_name = "RANGE", requires = "access", conflicts_with_all = ["on", "remove"])]
    pub pages: Option<String>,
    /// Accesses of them: r, w, x or several
    #[arg(long, requires = "pages")]
    pub access: Option<String>,
    /// What the guest's own walks of its page tables do there is none
    #[arg(long, requires = "pages")]
    pub no_walks: bool,
    /// Adds a rule about this event, as in the manifest: ttbr0, smc, breakpoint, vcpu-start, …
    #[arg(long, value_name = "EVENT", conflicts_with = "remove")]
    pub on: Option<String>,
    /// Writes that leave the register as it is are none
    #[arg(long, requires = "on")]
    pub only_changes: bool,
    /// Writes that change these bits alone are none
    #[arg(long, value_name = "BITS", requires = "on")]
    pub ignore: Option<String>,
    /// What the rule says: allow, report, deny, fault or stop
    #[arg(long, default_value = "allow")]
    pub verdict: String,
    /// Each is written to the monitor's log
    #[arg(long)]
    pub log: bool,
    /// Removes the rule with this number, which was added
    #[arg(long, value_name = "NUMBER")]
    pub remove: Option<u16>,
}

impl Rules {
    /// Does it. Back: what is printed.
    pub fn carry_out(&self, asking: &mut Asking, is_json: bool) -> Result<String, Failure> {
        let what = self.what()?;
        let monitor = self.monitor.as_deref().map(name).transpose()?.unwrap_or_default();
        let parts = asking.ask(&Ask::Watch(Watch { guest: name(&self.guest)?, monitor, what }))?;
        let standing = Standing::of(&asking.ask(&Ask::Status)?);
        Ok(match what {
            _ if is_json => pretty(&json(&parts, &standing)),
            WatchWhat::List => text(&parts, &standing),
            WatchWhat::Add(_) => rules(&parts).map(|state| added(state, &standing, &self.guest)).collect(),
            WatchWhat::Remove(number) => format!("rule {number} of guest {} is no more\n", self.guest),
        })
    }

    /// What the host wants.
    pub fn what(&self) -> Result<WatchWhat, Failure> {
        let wrong = |why| Failure::usage(why, "docs/manifest.md says what rules look like");
        if let Some(number) = self.remove {
            return Ok(WatchWhat::Remove(number));
        }
        let rule = match (&self.pages, &self.on) {
            (Some(pages), _) => words::pages(pages, self.access.as_deref().unwrap_or_default(), &self.verdict, self.log, !self.no_walks),
            (None, Some(on)) => words::event(on, &self.verdict, self.log, self.only_changes, self.ignore.as_deref()),
            (None, None) => return Ok(WatchWhat::List),
        };
        rule.map(WatchWhat::Add).map_err(wrong)
    }
}

fn rules(parts: &[Part]) -> impl Iterator<Item = &RuleState> {
    parts.iter().filter_map(|part| if let Part::Rule(rule) = part { Some(rule) } else { None })
}

fn added(state: &RuleState, standing: &Standing, guest: &str) -> String {
    let (number, rule) = (state.known.number, words::describe(&state.known.rule));
    format!("rule {number} of {} for guest {guest}: {rule}\n", standing.server_name(state.server))
}

/// Which list a number of the manifest's is of.
fn list(state: &RuleState) -> &'static str {
    match state.known.rule {
        _ if state.known.is_added => "added",
        Rule::Pages(_) => "watch",
        Rule::Event(_) => "events",
    }
}

/// As lines.
pub fn text(parts: &[Part], standing: &Standing) -> String {
    let head = ["RULE", "OF", "MONITOR", "SEEN", "ALLOWED", "DENIED", "STOPPED", "WHAT IT SAYS"].map(String::from).to_vec();
    let row = |state: &RuleState| {
        let [seen, allowed, denied, stopped, _] = state.known.counts.map(|count| count.to_string());
        let monitor = standing.server_name(state.server).into();
        vec![state.known.number.to_string(), list(state).into(), monitor, seen, allowed, denied, stopped, words::describe(&state.known.rule)]
    };
    columns::lines("", &std::iter::once(head).chain(rules(parts).map(row)).collect::<Vec<_>>())
}

/// As JSON.
pub fn json(parts: &[Part], standing: &Standing) -> Value {
    let row = |state: &RuleState| {
        let [seen, allowed, denied, stopped, spared] = state.known.counts;
        json!({
            "number": state.known.number, "of": list(state), "monitor": standing.server_name(state.server), "says": words::describe(&state.known.rule),
            "seen": seen, "allowed": allowed, "denied": denied, "stopped": stopped, "lines_spared": spared,
        })
    };
    rules(parts).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use trellis_idl::wire::KnownRule;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        rules: Rules,
    }

    fn what(line: &[&str]) -> Result<WatchWhat, String> {
        let line = Line::try_parse_from(["watch", "web"].iter().chain(line)).map_err(|error| error.to_string())?;
        line.rules.what().map_err(|failure| failure.text(false))
    }

    #[test]
    fn a_rule_is_said_in_the_manifests_words() {
        let rule = words::pages("0x40800000..0x40801000", "w", "deny", true, false);
        let said = ["--pages", "0x40800000..0x40801000", "--access", "w", "--verdict", "deny", "--log", "--no-walks"];
        assert_eq!(what(&said).ok(), rule.map(WatchWhat::Add).ok());
        let rule = words::event("ttbr0", "allow", false, true, Some("0xff"));
        assert_eq!(what(&["--on", "ttbr0", "--only-changes", "--ignore", "0xff"]).ok(), rule.map(WatchWhat::Add).ok());
        assert_eq!((what(&[]), what(&["--remove", "103"])), (Ok(WatchWhat::List), Ok(WatchWhat::Remove(103))));
        for wrong in [
            &["--pages", "0x40800000..0x40801000"][..], &["--access", "w"], &["--on", "smc", "--remove", "1"], &["--only-changes"],
            &["--on", "smc", "--verdict", "maybe"], &["--on", "interrupt"], &["--pages", "1..2", "--access", "w"], &["--remove", "x"],
        ] {
            assert!(what(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn rules_are_listed_with_what_they_did() {
        let state = |number, is_added, rule: Result<Rule, String>| {
            Part::Rule(RuleState { server: 3, known: KnownRule { number, is_added, rule: rule.expect("a rule"), counts: [9, 7, 2, 0, 4] } })
        };
        let parts = [
            state(1, false, words::pages("0x40800000..0x40801000", "w", "allow", false, true)), state(1, false, words::event("smc", "deny", true, false, None)),
            state(101, true, words::event("vcpu-start", "report", false, false, None)), Part::Done,
        ];
        let text = text(&parts, &Standing::default());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..2], ["1", "watch"]);
        assert_eq!(lines[3][..2], ["101", "added"]);
        assert!(text.lines().nth(2).is_some_and(|line| line.ends_with("a call to firmware (SMC): denied, and logged")), "{text}");
        assert_eq!(json(&parts, &Standing::default())[2]["seen"], json!(9));
    }
}
