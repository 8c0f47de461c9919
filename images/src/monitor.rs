// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a manifest says of monitors: the servers that it names, what each watches, and which guest has which.
//!
//! Here it is read; `watch` asks whether it makes sense together with the guests.

use crate::quantity::show_time;
use crate::swap::{self, SwapEntry};
use crate::table::{Later, Placed, Problems, Table};
use crate::hear::{self, EventEntry};
use crate::watch::{self, RuleEntry};
use trellis_idl::plan::{SwapPlan, Without};

/// Times that a monitor may take for a verdict, in microseconds: the kernel's own limits are wider.
const DEADLINES: std::ops::Range<u64> = 1_000..60_000_001;
/// What it may take where the manifest says nothing.
pub const DEADLINE: u64 = 1_000_000;
/// The monitor that comes with Trellis and does what rules say.
pub const STANDARD: &str = "monitor-standard";
/// Every monitor that comes with Trellis, by name.
pub const SHIPPED: [(&str, Shipped); 3] =
    [(STANDARD, Shipped::Standard), ("monitor-tracer", Shipped::Tracer), ("monitor-guard", Shipped::Guard)];

/// A monitor that comes with Trellis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shipped {
    /// Does what rules say.
    Standard,
    /// Follows the execution of pages.
    Tracer,
    /// Lets no page be both written and executed.
    Guard,
}

const FORWARD_KEYS: [&str; 1] = ["swap"];
const SERVER_KEYS: [&str; 3] = ["image", "config", "swap"];
const SERVER_LATER: [Later; 1] = [
    ("interfaces", "a look at a program's interfaces before it boots (root compares them when it starts)"),
];
const MONITOR_KEYS: [&str; 8] = [
    "server", "verdict-deadline", "without-monitor", "reads-memory", "writes-memory", "writes-registers", "pauses",
    "reports-per-second",
];
/// Reports that may be read in a second: more than the reading thread has time for need no limit.
const REPORTS: std::ops::Range<u64> = 1..1_000_001;
const WITHOUT_KEYS: [&str; 1] = ["memory"];
const WITHOUT_LATER: [Later; 1] = [("register", "a policy of its own for each kind of event")];

/// A guest's `[guest.NAME.monitor]`, or one of them.
#[derive(Clone, Debug)]
pub struct MonitorEntry {
    /// `server`: the name of a `[server.NAME]`.
    pub server: Placed<String>,
    /// `verdict-deadline`, in microseconds.
    pub deadline: u64,
    /// `without-monitor`.
    pub without: Without,
    /// `reads-memory`.
    pub reads: bool,
    /// `writes-memory`.
    pub writes: bool,
    /// `writes-registers`.
    pub sets: bool,
    /// `pauses`.
    pub pauses: bool,
    /// `reports-per-second`; 0 = no limit.
    pub reports: u32,
}

/// What a server's program is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Image {
    /// One that comes with Trellis.
    Shipped(Shipped),
    /// An ELF file, relative to the manifest.
    File(String),
}

/// A monitor's program.
#[derive(Clone, Debug)]
pub enum Program {
    /// One that comes with Trellis.
    Shipped(Shipped),
    /// Another's ELF file.
    Own(Vec<u8>),
}

/// One `[server.NAME]`.
#[derive(Clone, Debug)]
pub struct ServerEntry {
    /// Its name.
    pub name: Placed<String>,
    /// `image`.
    pub image: Option<Placed<Image>>,
    /// `config.watch`.
    pub rules: Vec<RuleEntry>,
    /// `swap`.
    pub swap: SwapEntry,
    /// `config.events`.
    pub events: Vec<EventEntry>,
}

/// irqfwd's name.
pub const IRQFWD: &str = "irqfwd";

/// `[server.irqfwd]`.
#[derive(Clone, Debug)]
pub struct ForwardEntry {
    /// Where it is named.
    pub name: Placed<String>,
    /// `swap`.
    pub swap: SwapEntry,
}

/// A monitor as it is put into the image: its server, and the guests that it watches.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// Its name.
    pub name: String,
    /// Its program.
    pub program: Program,
    /// The guests by their index, each with the session that this monitor has.
    pub guests: Vec<(usize, u8)>,
    /// What it watches.
    pub rules: Vec<RuleEntry>,
    /// What is kept for another one in its place.
    pub swap: Option<SwapPlan>,
    /// What else it hears.
    pub events: Vec<EventEntry>,
}

impl MonitorEntry {
    /// What it has for a verdict, and what becomes of the guest without it.
    pub fn describe(&self) -> String {
        let without = match self.without {
            Without::Hold => "without it, who does what is watched waits for the next one, and the guest ends if there is none",
            Without::Stop => "without it, the guest ends",
            Without::Allow => "without it, the guest goes on unwatched",
        };
        let rights = [
            (self.reads, "reads the guest's memory"), (self.writes, "writes the guest's memory"),
            (self.sets, "writes its registers"), (self.pauses, "pauses it"),
        ];
        let rights: Vec<_> = rights.into_iter().filter(|(has, _)| *has).map(|(_, right)| right).collect();
        let rights = if rights.is_empty() { String::new() } else { format!("; it {}", rights.join(", ")) };
        let reports = if self.reports == 0 { String::new() } else { format!("; at most {} reports a second are read", self.reports) };
        format!("a verdict within {}; {without}{rights}{reports}", show_time(self.deadline))
    }
}

impl Monitor {
    /// The place of a guest among those that it watches.
    pub fn place_of(&self, guest: usize) -> Option<u8> {
        self.guests.iter().position(|(index, _)| *index == guest).map(|place| place as u8)
    }
}

/// Reads a guest's key `monitor`: one table, or several.
pub fn read(table: &Table<'_, '_>, problems: &mut Problems) -> Vec<MonitorEntry> {
    let name = format!("the monitor of {}", table.name);
    let is_list = table.get("monitor").is_some_and(|(_, value)| value.value.is_array());
    let tables = match is_list {
        true => table.tables("monitor", &name, "[[guest.NAME.monitor]]", problems),
        false => table.table("monitor", name, "[guest.NAME.monitor]", problems).into_iter().collect(),
    };
    tables.iter().filter_map(|table| one(table, problems)).collect()
}

fn one(table: &Table<'_, '_>, problems: &mut Problems) -> Option<MonitorEntry> {
    table.allow(&MONITOR_KEYS, &[], problems);
    table.require("server", "server = \"watchdog\", which is a [server.watchdog]", problems);
    let deadline = table.time("verdict-deadline", DEADLINES, problems);
    let without = without(table, problems);
    let mut right = |key| table.flag(key, problems).is_some_and(|right| right.value);
    let [reads, writes, sets, pauses] = ["reads-memory", "writes-memory", "writes-registers", "pauses"].map(&mut right);
    Some(MonitorEntry {
        server: table.text("server", "server = \"watchdog\"", problems)?,
        deadline: deadline.map_or(DEADLINE, |deadline| deadline.value),
        without,
        reads,
        writes,
        sets,
        pauses,
        reports: table.number("reports-per-second", REPORTS, problems).map_or(0, |reports| reports.value as u32),
    })
}

fn without(table: &Table<'_, '_>, problems: &mut Problems) -> Without {
    let name = format!("`without-monitor` of {}", table.name);
    let Some(table) = table.table("without-monitor", name, "without-monitor = { memory = \"hold\" }", problems) else {
        return Without::Hold;
    };
    table.allow(&WITHOUT_KEYS, &WITHOUT_LATER, problems);
    let words = [("hold", Without::Hold), ("stop", Without::Stop), ("allow", Without::Allow)];
    table.choice("memory", &words, problems).map_or(Without::Hold, |word| word.value)
}

/// Reads `[server.irqfwd]`.
pub fn forward(name: Placed<String>, table: &Table<'_, '_>, problems: &mut Problems) -> ForwardEntry {
    table.allow(&FORWARD_KEYS, &[], problems);
    ForwardEntry { name, swap: swap::read(table, problems) }
}

/// Reads one `[server.NAME]`.
pub fn server(name: Placed<String>, table: &Table<'_, '_>, problems: &mut Problems) -> ServerEntry {
    table.allow(&SERVER_KEYS, &SERVER_LATER, problems);
    table.require("image", &format!("image = \"{STANDARD}\""), problems);
    let image = table.text("image", &format!("image = \"{STANDARD}\""), problems);
    let of = |text: String| match SHIPPED.iter().find(|(name, _)| *name == text) {
        Some((_, shipped)) => Image::Shipped(*shipped),
        None => Image::File(text),
    };
    let image = image.map(|text| text.map(of));
    let config = table.table("config", format!("the configuration of {}", table.name), "[server.NAME.config]", problems);
    let (rules, events) = config.map_or_else(Default::default, |config| {
        (watch::read(&config, problems), hear::read(&config, problems))
    });
    ServerEntry { name, image, rules, events, swap: swap::read(table, problems) }
}
