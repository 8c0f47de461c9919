// SPDX-License-Identifier: MIT OR Apache-2.0
//! What monitors watch: rules of guests' pages, and whether they make sense together with the guests that they name.

use crate::guest::Guest;
use crate::manifest::{GuestEntry, Manifest, is_reserved};
use crate::hear;
use crate::monitor::{Image, MonitorEntry, STANDARD, ServerEntry, Shipped};
use crate::problem::{Code, Problem, nearest};
use crate::quantity::show_size;
use crate::table::{Placed, Problems, Table};
use crate::view::range_of;
use std::collections::BTreeSet;
use trellis_idl::kernel::{Access, Inside, MAX_VIEWS, PAGE, SESSIONS};
use trellis_idl::plan::{MAX_RULES, MAX_WATCHED, RulePlan, RuleVerdict};

/// Most CPUs on which a monitor has threads, besides the one that answers root.
const MAX_CPUS: usize = 8;

/// Most pages of a guard.
const GUARDED: u64 = 1 << 14;

const RULE_KEYS: [&str; 6] = ["guest", "pages", "access", "verdict", "log", "walks"];
const PAGES: &str = "pages = \"0x40200000..0x40280000\"";

/// Words for the accesses that a rule watches.
pub const ACCESSES: [(&str, Access); 7] = [
    ("r", Access::READ),
    ("w", Access::WRITE),
    ("x", Access::EXECUTE),
    ("rw", Access::READ.with(Access::WRITE)),
    ("rx", Access::READ.with(Access::EXECUTE)),
    ("wx", Access::WRITE.with(Access::EXECUTE)),
    ("rwx", Access::READ.with(Access::WRITE).with(Access::EXECUTE)),
];

/// Words for verdicts.
pub const VERDICTS: [(&str, RuleVerdict); 5] = [
    ("allow", RuleVerdict::Allow), ("report", RuleVerdict::Report), ("deny", RuleVerdict::Deny), ("fault", RuleVerdict::Fault),
    ("stop", RuleVerdict::Stop),
];

/// What becomes of what a rule speaks of, in words.
pub fn said(verdict: RuleVerdict, log: bool) -> String {
    let verdict = match verdict {
        RuleVerdict::Allow => "allowed",
        RuleVerdict::Deny => "denied",
        RuleVerdict::Stop => "stops",
        RuleVerdict::Fault => "an exception in the guest",
        RuleVerdict::Report => "happens, and is reported",
    };
    format!("{verdict}{}", if log { ", and logged" } else { "" })
}

/// A rule's pages and accesses in one sentence.
pub fn describe_pages(rule: &RulePlan) -> String {
    let known = Access(u64::from(rule.access & !RulePlan::NO_WALKS));
    let access = ACCESSES.iter().find(|(_, access)| *access == known).map_or("?", |(word, _)| word);
    let walks = if rule.access & RulePlan::NO_WALKS != 0 { " but for table walks" } else { "" };
    let end = rule.first.saturating_add(rule.pages);
    let said = said(rule.verdict, rule.log);
    format!("{:#x}..{:#x} {access}{walks}: {said}", rule.first.saturating_mul(PAGE), end.saturating_mul(PAGE))
}

/// One rule as it stands in a manifest.
#[derive(Clone, Debug)]
pub struct RuleEntry {
    /// `guest`.
    pub guest: Placed<String>,
    /// `pages`: the first, and how many.
    pub pages: Placed<(u64, u64)>,
    /// `access`.
    pub access: Placed<Access>,
    /// `verdict`.
    pub verdict: Placed<RuleVerdict>,
    /// `log`.
    pub log: bool,
    /// `walks`, if it is there.
    pub walks: Option<Placed<bool>>,
}

impl RuleEntry {
    /// Whether what the guest's own walks of its tables do is none.
    pub fn ignores_walks(&self) -> bool {
        self.walks.as_ref().is_some_and(|walks| !walks.value)
    }

    /// Its pages and accesses in one sentence.
    pub fn describe(&self) -> String {
        describe_pages(&self.plan(0))
    }

    /// The same for a monitor, to which the guest is the one at this place.
    pub fn plan(&self, guest: u8) -> RulePlan {
        let (first, pages) = self.pages.value;
        let walks = if self.ignores_walks() { RulePlan::NO_WALKS } else { 0 };
        RulePlan { guest, first, pages, access: self.access.value.0 as u8 | walks, verdict: self.verdict.value, log: self.log }
    }

    /// Whether both speak of the same page.
    fn meets(&self, other: &RuleEntry) -> bool {
        let ((first, pages), (other_first, other_pages)) = (self.pages.value, other.pages.value);
        self.guest.value == other.guest.value && first < other_first + other_pages && other_first < first + pages
    }

    /// Whether both speak of the same access, and say different things.
    fn contradicts(&self, other: &RuleEntry) -> bool {
        let says = |rule: &RuleEntry| (rule.verdict.value, rule.log, rule.ignores_walks());
        let alike = says(self) == says(other);
        self.meets(other) && self.access.value.0 & other.access.value.0 != 0 && !alike
    }
}

/// Reads the key `watch` of a server's configuration.
pub fn read(config: &Table<'_, '_>, problems: &mut Problems) -> Vec<RuleEntry> {
    config.allow(&["watch", "events"], &[], problems);
    let example = format!("watch = [{{ guest = \"web\", {PAGES}, access = \"w\", verdict = \"allow\" }}]");
    if config.get("events").is_none() {
        config.require("watch", &format!("{example}, or {}", hear::EXAMPLE), problems);
    }
    let name = format!("a rule of {}", config.name.trim_start_matches("the configuration of "));
    let rules = config.tables("watch", &name, &example, problems);
    rules.iter().filter_map(|table| rule(table, problems)).collect()
}

fn rule(table: &Table<'_, '_>, problems: &mut Problems) -> Option<RuleEntry> {
    table.allow(&RULE_KEYS, &[], problems);
    table.require("guest", "guest = \"web\"", problems);
    table.require("pages", PAGES, problems);
    table.require("access", "access = \"w\"", problems);
    table.require("verdict", "verdict = \"allow\", \"report\", \"deny\", \"fault\" or \"stop\"", problems);
    let guest = table.text("guest", "guest = \"web\"", problems);
    let pages = table.text("pages", PAGES, problems).and_then(|text| pages(text, problems));
    let access = table.choice("access", &ACCESSES, problems);
    let verdict = table.choice("verdict", &VERDICTS, problems);
    let log = table.flag("log", problems).is_some_and(|log| log.value);
    let walks = table.flag("walks", problems);
    Some(RuleEntry { guest: guest?, pages: pages?, access: access?, verdict: verdict?, log, walks })
}

fn pages(text: Placed<String>, problems: &mut Problems) -> Option<Placed<(u64, u64)>> {
    let range = range_of(&text.value);
    if range.is_none() {
        problems.push(
            Problem::new(Code::WatchPages, format!("`{}` is not a range of pages", text.value))
                .at(text.span.clone(), "not whole pages, or not a range")
                .hint(format!("the guest's addresses, multiples of 4096, the end behind the last byte: {PAGES}")),
        );
    }
    range.map(|range| Placed::new(range, text.span))
}

/// Checks who watches whom, and every rule against its guest.
pub fn check(manifest: &Manifest, problems: &mut Problems) {
    for guest in &manifest.guests {
        watched(guest, manifest, problems);
    }
    for (index, server) in manifest.servers.iter().enumerate() {
        whom(server, manifest, problems);
        kind_of_monitor(server, problems);
        for (number, rule) in server.rules.iter().enumerate() {
            one(rule, server, manifest, problems);
            let other = server.rules[..number].iter().find(|other| rule.contradicts(other));
            problems.extend(other.map(|other| contradiction(other, rule)));
            let others = manifest.servers[..index].iter();
            let other = others.flat_map(|other| other.rules.iter().map(move |rule| (other, rule))).find(|(_, other)| rule.meets(other));
            problems.extend(other.map(|(other, first)| two_watchers([other, server], [first, rule])));
        }
    }
}

/// The tracer and the guard are about one thing each.
fn kind_of_monitor(server: &ServerEntry, problems: &mut Problems) {
    let Some(Image::Shipped(shipped)) = server.image.as_ref().map(|image| &image.value) else { return };
    let (wanted, what) = match shipped {
        Shipped::Standard => return,
        Shipped::Tracer => (Access::EXECUTE, "the tracer follows execution, and nothing else"),
        Shipped::Guard => (Access::WRITE.with(Access::EXECUTE), "the guard keeps writing and execution apart"),
    };
    let word = if *shipped == Shipped::Tracer { "x" } else { "wx" };
    for walks in server.rules.iter().filter_map(|rule| rule.walks.as_ref()) {
        problems.push(
            Problem::new(Code::KeyDoesNotApply, what)
                .at(walks.span.clone(), "walks of the guest's tables are no matter of it")
                .hint("leave `walks` out, or have \"monitor-standard\" watch these pages"),
        );
    }
    for rule in server.rules.iter().filter(|rule| rule.access.value != wanted) {
        problems.push(Problem::new(Code::BadChoice, what).at(rule.access.span.clone(), "another access").hint(format!("write it as: access = \"{word}\"")));
    }
    for rule in server.rules.iter().filter(|rule| *shipped == Shipped::Tracer && rule.verdict.value != RuleVerdict::Allow) {
        problems.push(
            Problem::new(Code::BadChoice, "the tracer lets everything happen")
                .at(rule.verdict.span.clone(), "another verdict")
                .hint("write it as: verdict = \"allow\", or have \"monitor-standard\" watch these pages"),
        );
    }
    for rule in server.rules.iter().filter(|rule| *shipped == Shipped::Guard && rule.verdict.value == RuleVerdict::Report) {
        problems.push(
            Problem::new(Code::BadChoice, "the guard decides at once")
                .at(rule.verdict.span.clone(), "nothing is reported afterwards")
                .hint("write it as: verdict = \"stop\", \"fault\" or \"allow\""),
        );
    }
    let pages = server.rules.iter().fold(0u64, |all, rule| all.saturating_add(rule.pages.value.1));
    if let (Shipped::Guard, Some(last), true) = (shipped, server.rules.last(), pages > GUARDED) {
        problems.push(
            Problem::new(Code::TooManyRules, format!("server `{}` guards {pages} pages, too many", server.name.value))
                .at(last.pages.span.clone(), "with these")
                .hint(format!("at most {GUARDED} ({})", show_size(GUARDED * PAGE))),
        );
    }
    if let Some(event) = server.events.first() {
        problems.push(
            Problem::new(Code::KeyDoesNotApply, what)
                .at(event.kind.span.clone(), "it hears no events")
                .hint("have \"monitor-standard\" hear them, in a server of its own"),
        );
    }
}

/// A server watches somebody, not too many, on not too many CPUs, by not too many rules.
fn whom(server: &ServerEntry, manifest: &Manifest, problems: &mut Problems) {
    let guests: Vec<_> = manifest.guests.iter().filter(|guest| guest.watcher(&server.name.value).is_some()).collect();
    let (name, place) = (&server.name.value, || server.name.span.clone());
    if guests.is_empty() {
        problems.push(
            Problem::new(Code::IdleServer, format!("server `{name}` watches no guest"))
                .at(place(), "no guest has it as its monitor")
                .hint(format!("write below the guest: [guest.NAME.monitor] with server = \"{name}\"")),
        );
    }
    if let Some(guest) = guests.get(MAX_WATCHED) {
        let problem = Problem::new(Code::TooManyWatched, format!("server `{name}` watches {} guests, too many", guests.len())).at(place(), "this server");
        problems.push(problem.at(guest.name.span.clone(), "the first one too many").hint(format!("at most {MAX_WATCHED}; name another server, of the same image")));
    }
    let cpus: BTreeSet<u64> = guests.iter().flat_map(|guest| guest.cpu_numbers()).collect();
    if cpus.len() > MAX_CPUS {
        problems.push(
            Problem::new(Code::TooManyWatched, format!("server `{name}` watches guests on {} CPUs, too many", cpus.len()))
                .at(place(), "has a thread on each of them")
                .hint(format!("at most {MAX_CPUS}; name another server, of the same image, for some of its guests")),
        );
    }
    if let Some(rule) = server.rules.get(MAX_RULES) {
        problems.push(
            Problem::new(Code::TooManyRules, format!("server `{name}` has {} rules, too many", server.rules.len()))
                .at(rule.guest.span.clone(), "the first one too many")
                .hint(format!("a monitor has at most {MAX_RULES}; stretches of pages may be long")),
        );
    }
}

/// A guest's monitors must be there, and nothing may lead around them.
fn watched(guest: &GuestEntry, manifest: &Manifest, problems: &mut Problems) {
    for (index, monitor) in guest.monitors.iter().enumerate() {
        let name = &monitor.server.value;
        if !manifest.servers.iter().any(|server| server.name.value == *name) {
            problems.push(unknown(monitor, guest, manifest));
        }
        if let Some(same) = guest.monitors[..index].iter().find(|other| other.server.value == *name) {
            problems.push(
                Problem::new(Code::DuplicateName, format!("guest `{}` has the monitor `{name}` twice", guest.name.value))
                    .at(monitor.server.span.clone(), "again here")
                    .at(same.server.span.clone(), "first here")
                    .hint("keep one of them"),
            );
        }
    }
    let Some(monitor) = guest.monitors.first() else { return };
    if let Some(last) = guest.monitors.get(SESSIONS as usize) {
        problems.push(
            Problem::new(Code::TooManyWatched, format!("guest `{}` has {} monitors, too many", guest.name.value, guest.monitors.len()))
                .at(last.server.span.clone(), "the first one too many")
                .hint(format!("at most {SESSIONS}")),
        );
    }
    if let (true, Some(span)) = (guest.views.inside != Inside::NONE, &guest.views.inside_span) {
        problems.push(
            Problem::new(Code::WatchEvaded, format!("guest `{}` could leave the view in which it is watched", guest.name.value))
                .at(span.clone(), "may enter other views itself")
                .at(monitor.server.span.clone(), "watched by this server")
                .hint("leave `views-inside` out: its monitor alone says in which view a watched guest is"),
        );
    }
    if u64::from(guest.views.count) >= MAX_VIEWS {
        problems.push(
            Problem::new(Code::OutOfRange, format!("guest `{}` has no room for the view in which it is watched", guest.name.value))
                .at(monitor.server.span.clone(), "watches it in a view of its own")
                .hint(format!("views = {} at most", MAX_VIEWS - 1)),
        );
    }
}

fn unknown(monitor: &MonitorEntry, guest: &GuestEntry, manifest: &Manifest) -> Problem {
    let name = &monitor.server.value;
    if is_reserved(name) {
        return Problem::new(Code::UnknownServer, format!("`{name}` watches nobody"))
            .at(monitor.server.span.clone(), format!("to watch guest `{}`", guest.name.value))
            .hint(format!("give the monitor a name of its own: server = \"watchdog\", and [server.watchdog] with image = \"{STANDARD}\""));
    }
    let hint = match nearest(name, manifest.servers.iter().map(|server| server.name.value.as_str())) {
        Some(meant) => format!("did you mean \"{meant}\"?"),
        None => format!("add it: [server.{name}] with image = \"{STANDARD}\""),
    };
    Problem::new(Code::UnknownServer, format!("there is no server `{name}`"))
        .at(monitor.server.span.clone(), format!("to watch guest `{}`", guest.name.value))
        .hint(hint)
}

/// A rule is for a guest that its server watches, and that can be done to it.
fn one(rule: &RuleEntry, server: &ServerEntry, manifest: &Manifest, problems: &mut Problems) {
    let Some(guest) = rule_guest(&rule.guest, server, manifest, problems) else { return };
    outside(rule, guest, problems);
    if let Some(walks) = rule.walks.as_ref().filter(|_| rule.access.value == Access::EXECUTE) {
        problems.push(
            Problem::new(Code::KeyDoesNotApply, "`walks` means nothing for execution")
                .at(walks.span.clone(), "a walk reads its table, or marks it")
                .at(rule.access.span.clone(), "this is neither")
                .hint("leave `walks` out"),
        );
    }
    if rule.verdict.value == RuleVerdict::Deny && rule.access.value.covers(Access::EXECUTE) {
        problems.push(
            Problem::new(Code::BadChoice, "execution cannot be denied")
                .at(rule.verdict.span.clone(), "an instruction that is not executed leaves nothing to go on with")
                .hint("give the guest an exception there (\"fault\"), or end it (\"stop\")"),
        );
    }
}

/// The guest that a rule names, if its server watches it.
pub fn rule_guest<'m>(
    named: &Placed<String>, server: &ServerEntry, manifest: &'m Manifest, problems: &mut Problems,
) -> Option<&'m GuestEntry> {
    let name = &named.value;
    let Some(guest) = manifest.guests.iter().find(|guest| guest.name.value == *name) else {
        let hint = match nearest(name, manifest.guests.iter().map(|guest| guest.name.value.as_str())) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "name a guest as its table [guest.NAME] does".into(),
        };
        problems.push(
            Problem::new(Code::WatchUnknownGuest, format!("there is no guest `{name}` to watch"))
                .at(named.span.clone(), "no such guest")
                .hint(hint),
        );
        return None;
    };
    if guest.watcher(&server.name.value).is_none() {
        problems.push(not_its_monitor(named, server, guest));
    }
    Some(guest)
}

fn not_its_monitor(named: &Placed<String>, server: &ServerEntry, guest: &GuestEntry) -> Problem {
    let (name, watcher) = (&guest.name.value, &server.name.value);
    let problem = Problem::new(Code::WatchNotItsMonitor, format!("server `{watcher}` does not watch guest `{name}`"))
        .at(named.span.clone(), format!("a rule of `{watcher}`"));
    match guest.monitors.first() {
        Some(monitor) => problem
            .at(monitor.server.span.clone(), "but this is its monitor")
            .hint("move the rule to that server, or name this one there"),
        None => problem
            .at(guest.name.span.clone(), "has no monitor")
            .hint(format!("write below the guest: [guest.{name}.monitor] with server = \"{watcher}\"")),
    }
}

fn outside(rule: &RuleEntry, guest: &GuestEntry, problems: &mut Problems) {
    let Some(memory) = &guest.memory else { return };
    let (first, pages) = rule.pages.value;
    let (start, end) = (Guest::MEMORY_BASE / PAGE, Guest::MEMORY_BASE.saturating_add(memory.value) / PAGE);
    if first < start || first.saturating_add(pages) > end {
        problems.push(
            Problem::new(Code::WatchOutsideMemory, format!("these pages are not the memory of guest `{}`", guest.name.value))
                .at(rule.pages.span.clone(), "watched here")
                .at(memory.span.clone(), format!("memory is {:#x}..{:#x}", start * PAGE, end * PAGE))
                .hint("a guest sees its memory from 0x40000000 on; what is no memory cannot be watched"),
        );
    }
}

fn contradiction(first: &RuleEntry, second: &RuleEntry) -> Problem {
    let guest = &second.guest.value;
    Problem::new(Code::WatchContradiction, format!("two rules say different things about the same access of guest `{guest}`"))
        .at(first.pages.span.clone(), first.describe())
        .at(second.pages.span.clone(), second.describe())
        .hint("each access has one verdict: make their pages or their accesses disjoint")
}

fn two_watchers(servers: [&ServerEntry; 2], rules: [&RuleEntry; 2]) -> Problem {
    let [first, second] = servers.map(|server| &server.name.value);
    Problem::new(Code::WatchContradiction, format!("`{first}` and `{second}` watch the same pages of guest `{}`", rules[0].guest.value))
        .at(rules[0].pages.span.clone(), format!("by `{first}`"))
        .at(rules[1].pages.span.clone(), format!("by `{second}`"))
        .hint("a page is watched by one monitor; make their pages disjoint")
}
