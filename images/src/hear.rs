// SPDX-License-Identifier: MIT OR Apache-2.0
//! What monitors hear beside accesses to memory: rules of events, and whether they make sense together with the guests that
//! they name.

use crate::manifest::Manifest;
use crate::monitor::ServerEntry;
use crate::problem::{Code, Problem};
use crate::quantity::parse_bits;
use crate::table::{Placed, Problems, Table};
use crate::watch::{VERDICTS, rule_guest, said};
use trellis_idl::event::EventKind;
use trellis_idl::plan::{EventPlan, MAX_EVENT_RULES, RuleVerdict};

const EVENT_KEYS: [&str; 6] = ["guest", "on", "only-changes", "ignore", "verdict", "log"];
/// What such a rule looks like.
pub const EXAMPLE: &str = "events = [{ guest = \"web\", on = \"ttbr0\", verdict = \"allow\" }]";

/// Words for what is heard.
pub const KINDS: [(&str, EventKind); 15] = [
    ("sctlr", EventKind::SystemControl), ("ttbr0", EventKind::Tables0), ("ttbr1", EventKind::Tables1), ("tcr", EventKind::Translation),
    ("mair", EventKind::Attributes), ("contextidr", EventKind::Context), ("id-register", EventKind::Identity),
    ("smc", EventKind::Firmware), ("hvc", EventKind::Hypercall), ("request", EventKind::Request), ("power", EventKind::Power),
    ("breakpoint", EventKind::Breakpoint), ("debug", EventKind::Debug), ("vcpu-start", EventKind::Start), ("vcpu-stop", EventKind::Stop),
];

/// Registers whose writes trap one by one only with FEAT_FGT (Arm ARM D24.2.60, HFGWTR_EL2); HCR_EL2.TVM has none of them.
const FINE: [&str; 10] = ["vbar", "tpidr", "tpidr_el0", "tpidrro_el0", "cpacr", "par", "csselr", "sp_el0", "elr", "spsr"];

/// One rule as it stands in a manifest.
#[derive(Clone, Debug)]
pub struct EventEntry {
    /// `guest`.
    pub guest: Placed<String>,
    /// `on`.
    pub kind: Placed<EventKind>,
    /// `only-changes`.
    pub only_changes: bool,
    /// `ignore`.
    pub ignored: u64,
    /// `verdict`.
    pub verdict: Placed<RuleVerdict>,
    /// `log`.
    pub log: bool,
}

impl EventEntry {
    /// What it hears, and what it says, in one sentence.
    pub fn describe(&self) -> String {
        describe_event(&self.plan(0))
    }

    /// The same for a monitor, to which the guest is the one at this place.
    pub fn plan(&self, guest: u8) -> EventPlan {
        let (kind, verdict) = (self.kind.value, self.verdict.value);
        EventPlan { guest, kind, only_changes: self.only_changes, ignored: self.ignored, verdict, log: self.log }
    }
}

/// What a rule hears, and what it says, in one sentence.
pub fn describe_event(rule: &EventPlan) -> String {
    let kind = rule.kind;
    let what = match (kind, kind.register()) {
        (_, Some(register)) => format!("a write of {register}"),
        (EventKind::Identity, _) => "a read of an ID register".into(),
        (EventKind::Firmware, _) => "a call to firmware (SMC)".into(),
        (EventKind::Hypercall, _) => "a call to the hypervisor (HVC)".into(),
        (EventKind::Request, _) => "a request to its monitor".into(),
        (EventKind::Power, _) => "a vCPU or the guest switched on or off".into(),
        (EventKind::Breakpoint, _) => "a breakpoint instruction".into(),
        (EventKind::Start, _) => "a vCPU that begins to run".into(),
        (EventKind::Stop, _) => "a vCPU that runs no more".into(),
        _ => "another debug exception".to_string(),
    };
    let changes = if rule.only_changes { " that changes it" } else { "" };
    let ignored = if rule.ignored == 0 { String::new() } else { format!(", but for bits {:#x}", rule.ignored) };
    let said = said(rule.verdict, rule.log);
    format!("{what}{changes}{ignored}: {said}")
}

/// How a manifest calls it.
fn word(kind: EventKind) -> &'static str {
    KINDS.iter().find(|(_, known)| *known == kind).map_or("?", |(word, _)| word)
}

/// Reads the key `events` of a server's configuration.
pub fn read(config: &Table<'_, '_>, problems: &mut Problems) -> Vec<EventEntry> {
    let name = format!("a rule about events of {}", config.name.trim_start_matches("the configuration of "));
    let rules = config.tables("events", &name, EXAMPLE, problems);
    rules.iter().filter_map(|table| rule(table, problems)).collect()
}

fn rule(table: &Table<'_, '_>, problems: &mut Problems) -> Option<EventEntry> {
    table.allow(&EVENT_KEYS, &[], problems);
    table.require("guest", "guest = \"web\"", problems);
    table.require("on", "on = \"ttbr0\"", problems);
    table.require("verdict", "verdict = \"allow\", \"report\", \"deny\", \"fault\" or \"stop\"", problems);
    let guest = table.text("guest", "guest = \"web\"", problems);
    let kind = kind(table, problems);
    let verdict = table.choice("verdict", &VERDICTS, problems);
    let log = table.flag("log", problems).is_some_and(|log| log.value);
    let only_changes = table.flag("only-changes", problems);
    let ignored = table.text("ignore", "ignore = \"0xffff000000000000\"", problems).and_then(|text| bits(text, problems));
    if let Some(kind) = kind.as_ref().filter(|kind| !kind.value.is_register()) {
        let keys = [("only-changes", only_changes.as_ref().map(|flag| &flag.span)), ("ignore", ignored.as_ref().map(|bits| &bits.span))];
        for (key, span) in keys {
            problems.extend(span.map(|span| {
                Problem::new(Code::KeyDoesNotApply, format!("`{key}` means nothing for \"{}\"", word(kind.value)))
                    .at(span.clone(), "of registers that are written alone")
                    .at(kind.span.clone(), "this is none")
                    .hint(format!("leave `{key}` out"))
            }));
        }
    }
    let (only_changes, ignored) = (only_changes.is_some_and(|flag| flag.value), ignored.map_or(0, |bits| bits.value));
    Some(EventEntry { guest: guest?, kind: kind?, only_changes, ignored, verdict: verdict?, log })
}

/// The key `on`. Registers that this machine could tell of only with more than every CPU has are known by name.
fn kind(table: &Table<'_, '_>, problems: &mut Problems) -> Option<Placed<EventKind>> {
    let (_, value) = table.get("on")?;
    if let Some(name) = value.value.as_str().filter(|name| FINE.contains(name)) {
        problems.push(
            Problem::new(Code::NotThereYet, format!("writes of `{name}` cannot be heard"))
                .at(value.span, "traps only with FEAT_FGT")
                .hint("CPUs before Armv8.6 cannot trap it by itself, and Trellis does not use FEAT_FGT; sctlr, ttbr0, ttbr1, tcr, mair and contextidr can be heard"),
        );
        return None;
    }
    if value.value.as_str() == Some("interrupt") {
        problems.push(
            Problem::new(Code::NotThereYet, "interrupts that a guest takes cannot be heard")
                .at(value.span, "no instruction traps there")
                .hint("watch the execution of the page with its interrupt vectors: access = \"x\" (VBAR_EL1 + 0x280, and + 0x480 from the user level)"),
        );
        return None;
    }
    table.choice("on", &KINDS, problems)
}

fn bits(text: Placed<String>, problems: &mut Problems) -> Option<Placed<u64>> {
    let bits = parse_bits(&text.value);
    if bits.is_none() {
        problems.push(
            Problem::new(Code::OutOfRange, format!("`{}` is not bits of a register", text.value))
                .at(text.span.clone(), "not a number of at most 64 bits")
                .hint("write it as: ignore = \"0xffff000000000000\""),
        );
    }
    bits.map(|bits| Placed::new(bits, text.span))
}

/// Checks every server's rules about events against the guests.
pub fn check(manifest: &Manifest, problems: &mut Problems) {
    for (index, server) in manifest.servers.iter().enumerate() {
        if let Some(rule) = server.events.get(MAX_EVENT_RULES) {
            problems.push(
                Problem::new(Code::TooManyRules, format!("server `{}` has {} rules about events, too many", server.name.value, server.events.len()))
                    .at(rule.guest.span.clone(), "the first one too many")
                    .hint(format!("a monitor has at most {MAX_EVENT_RULES}; name another server, of the same image")),
            );
        }
        for (number, rule) in server.events.iter().enumerate() {
            rule_guest(&rule.guest, server, manifest, problems);
            if (rule.kind.value, rule.verdict.value) == (EventKind::Debug, RuleVerdict::Deny) {
                problems.push(
                    Problem::new(Code::BadChoice, "a breakpoint that is denied comes again for ever")
                        .at(rule.verdict.span.clone(), "cannot be skipped")
                        .hint("let it happen (\"allow\"), or end the guest (\"stop\")"),
                );
            }
            if rule.kind.value.is_only_told() && rule.verdict.value != RuleVerdict::Report {
                problems.push(
                    Problem::new(Code::BadChoice, format!("nobody can be asked about \"{}\"", word(rule.kind.value)))
                        .at(rule.verdict.span.clone(), "it has happened when it is found")
                        .hint("write verdict = \"report\", or decide about the calls that ask for it: on = \"power\""),
                );
            }
            let same = |other: &&EventEntry| (&other.guest.value, other.kind.value) == (&rule.guest.value, rule.kind.value);
            let own = server.events[..number].iter().find(same).map(|other| (server, other));
            let before = manifest.servers[..index].iter().flat_map(|other| other.events.iter().map(move |rule| (other, rule)));
            let first = own.or_else(|| before.into_iter().find(|(_, other)| same(other)));
            problems.extend(first.map(|(other, first)| twice([other, server], [first, rule])));
        }
    }
}

fn twice(servers: [&ServerEntry; 2], [first, second]: [&EventEntry; 2]) -> Problem {
    let [one, other] = servers.map(|server| &server.name.value);
    let who = if one == other { format!("`{one}` hears") } else { format!("`{one}` and `{other}` hear") };
    Problem::new(Code::WatchContradiction, format!("{who} \"{}\" of guest `{}` twice", word(second.kind.value), second.guest.value))
        .at(first.kind.span.clone(), first.describe())
        .at(second.kind.span.clone(), second.describe())
        .hint("each kind of event of a guest is one rule's")
}
